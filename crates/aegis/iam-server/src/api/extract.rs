//! Extractors whose refusals are our errors.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::rejection::{FormRejection, JsonRejection, QueryRejection};
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts};
use axum::http::request::Parts;
use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::server::RequestId;
use hearth_types::{MAX_PAGE_SIZE, PageToken};
use iam_client::wire::Page;

use crate::app::Origin;

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidArgument, message)
}

/// A JSON body.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(BodyError))]
pub(super) struct Json<T>(pub(super) T);

/// A form body.
#[derive(FromRequest)]
#[from_request(via(axum::Form), rejection(BodyError))]
pub(super) struct Form<T>(pub(super) T);

/// Query parameters.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(BodyError))]
pub(super) struct Query<T>(pub(super) T);

/// A body that is not what the endpoint takes. The message names the field and never repeats its value.
pub(super) struct BodyError(pub(super) ApiError);

impl From<JsonRejection> for BodyError {
    fn from(rejection: JsonRejection) -> Self {
        Self(refused(format!(
            "the request's JSON is not what this takes: {}",
            rejection.body_text()
        )))
    }
}

impl From<FormRejection> for BodyError {
    fn from(rejection: FormRejection) -> Self {
        Self(refused(format!(
            "the request's form is not what this takes: {}",
            rejection.body_text()
        )))
    }
}

impl From<QueryRejection> for BodyError {
    fn from(rejection: QueryRejection) -> Self {
        Self(refused(format!(
            "the query is not what this takes: {}",
            rejection.body_text()
        )))
    }
}

impl axum::response::IntoResponse for BodyError {
    fn into_response(self) -> axum::response::Response {
        self.0.into_response()
    }
}

/// Where the request comes from and its id, as the listener noted them.
pub(super) struct Caller {
    pub(super) origin: Origin,
    pub(super) request_id: RequestId,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let address = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|info| info.0.ip());
        // Without a listener in front (tests) there is no address: all share one.
        let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let request_id = parts
            .extensions
            .get::<RequestId>()
            .cloned()
            .unwrap_or_else(|| RequestId(String::new()));
        Ok(Self {
            origin: Origin { address },
            request_id,
        })
    }
}

/// The limit of a page.
pub(super) fn limit(limit: Option<u32>) -> Result<usize, ApiError> {
    match limit.unwrap_or(MAX_PAGE_SIZE) {
        limit @ 1..=MAX_PAGE_SIZE => Ok(usize::try_from(limit).unwrap_or(1)),
        limit => Err(refused(format!(
            "the limit {limit} is not between 1 and {MAX_PAGE_SIZE}"
        ))),
    }
}

/// The page token, if one was given.
pub(super) fn token(page: Option<&str>) -> Result<Option<PageToken>, ApiError> {
    page.map(|page| {
        page.parse()
            .map_err(|error: hearth_types::PageTokenError| refused(error.to_string()))
    })
    .transpose()
}

/// One page of a listing, sorted by `key`.
pub(super) fn page<T>(
    mut items: Vec<T>,
    key: impl Fn(&T) -> String,
    wanted: Option<u32>,
    after: Option<&str>,
) -> Result<Page<T>, ApiError> {
    let (wanted, after) = (limit(wanted)?, token(after)?);
    items.sort_by_cached_key(&key);
    if let Some(after) = after {
        items.retain(|item| key(item).as_str() > after.position());
    }
    let more = items.len() > wanted;
    items.truncate(wanted);
    let last = items.last().filter(|_| more).map(key);
    let next_page = last
        .and_then(|last| PageToken::after(&last).ok())
        .map(|token| token.to_string());
    Ok(Page { items, next_page })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once_in_order() {
        let items = || vec!["b", "e", "a", "d", "c"];
        let mut seen = Vec::new();
        let mut next = None;
        loop {
            let page = page(items(), |item| (*item).to_owned(), Some(2), next.as_deref())
                .ok()
                .unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(page.items);
            next = page.next_page;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
        assert!(limit(Some(0)).is_err() && limit(Some(1001)).is_err());
        assert!(token(Some("zz")).is_err());
    }
}
