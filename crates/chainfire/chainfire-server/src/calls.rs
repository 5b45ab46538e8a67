//! How many calls of each kind began, and how they ended, under the names of gRPC's Prometheus libraries: dashboards and
//! alerts made for etcd look for them.
//!
//! The table is made once from the descriptors; a call costs a look into it and two atomic additions.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::HeaderMap;
use http_body_util::BodyExt;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use prost_reflect::{DescriptorError, DescriptorPool, MethodDescriptor};
use tonic::Code;

/// gRPC's codes under the names that the metric has for them, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// One kind of call.
#[derive(Debug)]
struct Method {
    service: String,
    name: String,
    kind: &'static str,
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// The counts. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Calls(Arc<HashMap<String, Method>>);

fn kind(method: &MethodDescriptor) -> &'static str {
    match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => "unary",
        (true, false) => "client_stream",
        (false, true) => "server_stream",
        (true, true) => "bidi_stream",
    }
}

impl Calls {
    /// A table of all calls of etcd's API.
    pub(crate) fn new() -> Result<Calls, DescriptorError> {
        let pool = DescriptorPool::decode(chainfire_client::wire::DESCRIPTORS)?;
        let mut table = HashMap::new();
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let method = Method {
                    service: service.full_name().to_owned(),
                    name: method.name().to_owned(),
                    kind: kind(&method),
                    started: AtomicU64::new(0),
                    handled: Default::default(),
                };
                table.insert(path, method);
            }
        }
        Ok(Calls(Arc::new(table)))
    }

    fn start(&self, path: &str) -> Option<Call> {
        let method = self.0.get(path)?;
        method.started.fetch_add(1, Ordering::Relaxed);
        Some(Call {
            calls: self.clone(),
            path: path.to_owned(),
            ended: false,
        })
    }
}

/// A call under way. One that is dropped before it said how it ended was given up by its caller.
struct Call {
    calls: Calls,
    path: String,
    ended: bool,
}

impl Call {
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let method = self.calls.0.get(&self.path);
        let count = method.and_then(|method| method.handled.get(usize::try_from(i32::from(code)).ok()?));
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends it if these headers or trailers say how.
    fn end_by(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.end(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Counts a call.
pub(crate) async fn count(State(calls): State<Calls>, request: Request, next: Next) -> Response {
    let Some(mut call) = calls.start(request.uri().path()) else {
        return next.run(request).await;
    };
    let response = next.run(request).await;
    call.end_by(response.headers());
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(trailers) = frame.trailers_ref() {
                call.end_by(trailers);
            }
            frame
        }))
    })
}

type Labels<'a> = [(&'static str, &'a str); 4];

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut methods: Vec<&Method> = self.0.values().collect();
        methods.sort_by_key(|method| (&method.service, &method.name));
        // All from the start: a rate needs a zero to begin at.
        let mut started = encoder.encode_descriptor(
            "grpc_server_started",
            "Calls that began",
            None,
            MetricType::Counter,
        )?;
        for method in &methods {
            let labels = &labels(method, "")[1..];
            let count = ConstCounter::new(method.started.load(Ordering::Relaxed));
            count.encode(started.encode_family(&labels)?)?;
        }
        let mut handled = encoder.encode_descriptor(
            "grpc_server_handled",
            "Calls that ended, by how",
            None,
            MetricType::Counter,
        )?;
        for method in methods {
            for (code, count) in CODES.iter().zip(&method.handled) {
                let count = ConstCounter::new(count.load(Ordering::Relaxed));
                count.encode(handled.encode_family(&labels(method, code))?)?;
            }
        }
        Ok(())
    }
}

fn labels<'a>(method: &'a Method, code: &'a str) -> Labels<'a> {
    [
        ("grpc_code", code),
        ("grpc_method", &method.name),
        ("grpc_service", &method.service),
        ("grpc_type", method.kind),
    ]
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn shown(calls: &Calls) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(calls.clone()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn calls_are_counted_by_how_they_end() {
        let calls = Calls::new().unwrap();
        assert!(calls.start("/etcdserverpb.KV/Nothing").is_none());
        let put = "/etcdserverpb.KV/Put";
        let mut good = calls.start(put).unwrap();
        let headers =
            |code: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
        good.end_by(&HeaderMap::new());
        good.end_by(&headers("0"));
        drop(good);
        calls.start(put).unwrap().end_by(&headers("14"));
        drop(calls.start("/etcdserverpb.Watch/Watch").unwrap());
        let text = shown(&calls);
        let line = |start: &str| {
            text.lines()
                .find(|line| line.starts_with(start))
                .unwrap()
                .to_owned()
        };
        let of = |code: &str, method: &str, service: &str, kind: &str| {
            let labels = format!(
                "grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"etcdserverpb.{service}\",grpc_type=\"{kind}\""
            );
            line(&format!("grpc_server_handled_total{{{labels}}}"))
        };
        assert!(of("OK", "Put", "KV", "unary").ends_with(" 1"));
        assert!(of("Unavailable", "Put", "KV", "unary").ends_with(" 1"));
        assert!(of("Canceled", "Watch", "Watch", "bidi_stream").ends_with(" 1"));
        assert!(of("OK", "Range", "KV", "unary").ends_with(" 0"));
        let began = "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
        assert!(line(began).ends_with(" 2"));
    }
}
