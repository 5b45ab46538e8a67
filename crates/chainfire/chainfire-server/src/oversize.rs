//! Messages beyond the connection's limit, refused in the words of the gRPC library that etcd is built on: clients know
//! that code and text, and not our library's.

use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use tonic::Status;

/// How our library begins the refusal; the size and the limit follow.
const OURS: &str = "Error, decoded message length too large";
/// Its code, out of range, as it stands in the headers.
const OUT_OF_RANGE: HeaderValue = HeaderValue::from_static("11");

/// Translates the refusal, and leaves every other answer alone.
pub(crate) async fn translate(response: Response) -> Response {
    if response.headers().get(Status::GRPC_STATUS) != Some(&OUT_OF_RANGE) {
        return response;
    }
    let translated =
        Status::from_header_map(response.headers()).and_then(|status| as_etcd_says(status.message()));
    match translated {
        Some(text) => {
            let refusal: http::Response<tonic::body::Body> = Status::resource_exhausted(text).into_http();
            refusal.map(axum::body::Body::new).into_response()
        }
        None => response,
    }
}

fn as_etcd_says(text: &str) -> Option<String> {
    let mut numbers = text
        .strip_prefix(OURS)?
        .split(|c: char| !c.is_ascii_digit())
        .filter(|number| !number.is_empty());
    let (found, limit) = (numbers.next()?, numbers.next()?);
    Some(format!(
        "grpc: received message larger than max ({found} vs. {limit})"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_that_refusal_is_translated() {
        let ours =
            "Error, decoded message length too large: found 2534266 bytes, the limit is: 2097152 bytes";
        assert_eq!(
            as_etcd_says(ours).unwrap(),
            "grpc: received message larger than max (2534266 vs. 2097152)"
        );
        assert_eq!(
            as_etcd_says("etcdserver: mvcc: required revision has been compacted"),
            None
        );
    }
}
