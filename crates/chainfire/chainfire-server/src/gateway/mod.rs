//! etcd's JSON gateway: `POST /v3/...` on the client port.
//!
//! A call over JSON is turned into the gRPC call and given to the member's own services, with the caller's identity and
//! token, so nothing about rights or meaning is decided here. Streams answer with one JSON object a line.
//!
//! ```text
//!   HTTP body ──json──> gRPC frames ──> the services ──> gRPC frames ──json──> {...} or {"result":{...}} lines
//! ```
//! Calls from web pages are refused: a page that somebody happens to look at must not write to a store on loopback.

mod endpoints;
mod json;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::{Body, BodyDataStream},
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::{Bytes, BytesMut};
use hearth_service::tasks::{Kind, Tasks};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use prost_reflect::{DescriptorError, DescriptorPool, MethodDescriptor};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status, service::Routes};
use tower::ServiceExt;

use crate::node::MAX_MESSAGE_BYTES;

/// Largest JSON text of one message, bytes: base64 takes four bytes for three.
const MAX_TEXT: usize = MAX_MESSAGE_BYTES * 4 / 3 + 4096;
/// Requests, or lines, that wait on one stream.
const STREAM_QUEUE: usize = 8;
/// Headers that clients pass on as metadata begin so.
const METADATA: &str = "grpc-metadata-";

/// What the paths lead to.
struct Gateway {
    routes: Routes,
    calls: BTreeMap<&'static str, MethodDescriptor>,
    tasks: Tasks,
}

/// The gateway to these services, to be merged into the router of the client port.
pub(crate) fn router(routes: &Routes, tasks: &Tasks) -> Result<Router, DescriptorError> {
    let pool = DescriptorPool::decode(chainfire_client::wire::DESCRIPTORS)?;
    let mut calls = BTreeMap::new();
    for endpoint in endpoints::ENDPOINTS {
        let service = pool.get_service_by_name(endpoint.service);
        let method =
            service.and_then(|service| service.methods().find(|method| method.name() == endpoint.method));
        calls.extend(method.map(|method| (endpoint.path, method)));
    }
    let gateway = Gateway {
        routes: routes.clone(),
        calls,
        tasks: tasks.clone(),
    };
    Ok(Router::new()
        .route("/v3/{*path}", any(answer))
        .with_state(Arc::new(gateway)))
}

async fn answer(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let path = request.uri().path().strip_prefix("/v3/").unwrap_or_default();
    let Some(call) = gateway.calls.get(path) else {
        return refusal(&Status::not_found("Not Found"));
    };
    if request.method() != Method::POST {
        return refusal(&Status::unimplemented("Method Not Allowed"));
    }
    if request.headers().contains_key(header::ORIGIN) {
        return refusal(&Status::permission_denied(
            "the store does not answer web pages; call it from a program",
        ));
    }
    let outcome = Call {
        gateway: &gateway,
        method: call,
    };
    outcome
        .run(request)
        .await
        .unwrap_or_else(|status| refusal(&status))
}

/// One call under way.
struct Call<'a> {
    gateway: &'a Gateway,
    method: &'a MethodDescriptor,
}

impl Call<'_> {
    async fn run(&self, request: Request) -> Result<Response, Status> {
        let (parts, body) = request.into_parts();
        let body = if self.method.is_client_streaming() {
            self.feed(body).await?
        } else {
            let read = http_body_util::Limited::new(body, MAX_TEXT).collect().await;
            let text = read
                .map_err(|error| Status::invalid_argument(error.to_string()))?
                .to_bytes();
            Body::from(json::to_frame(&self.method.input(), &text)?)
        };
        let mut grpc = http::Request::new(body);
        *grpc.method_mut() = Method::POST;
        let service = self.method.parent_service();
        let uri = format!("/{}/{}", service.full_name(), self.method.name());
        *grpc.uri_mut() = uri
            .parse()
            .map_err(|_| Status::internal("the call has no address"))?;
        *grpc.version_mut() = http::Version::HTTP_2;
        *grpc.headers_mut() = metadata(&parts.headers);
        *grpc.extensions_mut() = parts.extensions;
        let Ok(reply) = self.gateway.routes.clone().oneshot(grpc).await;
        let mut replies = Replies::new(reply);
        if self.method.is_server_streaming() {
            self.stream(replies).await
        } else {
            let message = replies
                .next()
                .await?
                .ok_or_else(|| Status::internal("no answer"))?;
            // The status comes after the message.
            while replies.next().await?.is_some() {}
            Ok(in_json(
                StatusCode::OK,
                Body::from(json::to_text(&self.method.output(), message)?),
            ))
        }
    }

    /// The objects of a body as a stream of requests. The first is read at once, so that an error in it is seen.
    async fn feed(&self, body: Body) -> Result<Body, Status> {
        let mut objects = Objects {
            body: body.into_data_stream(),
            read: BytesMut::new(),
        };
        let kind = self.method.input();
        let first = match objects.next().await? {
            Some(text) => Some(json::to_frame(&kind, &text)?),
            None => None,
        };
        let (frames, stream) = mpsc::channel::<Result<Bytes, Status>>(STREAM_QUEUE);
        self.gateway
            .tasks
            .spawn("gateway requests", Kind::Background, async move {
                if let Some(first) = first
                    && frames.send(Ok(first)).await.is_err()
                {
                    return Ok(());
                }
                loop {
                    let next = tokio::select! {
                        () = frames.closed() => return Ok(()),
                        next = objects.next() => next,
                    };
                    let frame = match next {
                        Ok(Some(text)) => json::to_frame(&kind, &text),
                        Ok(None) => return Ok(()),
                        Err(error) => Err(error),
                    };
                    let over = frame.is_err();
                    if frames.send(frame).await.is_err() || over {
                        return Ok(());
                    }
                }
            });
        Ok(Body::from_stream(ReceiverStream::new(stream)))
    }

    /// The answers of a stream, a line each. The HTTP status is that of the first.
    async fn stream(&self, mut replies: Replies) -> Result<Response, Status> {
        let kind = self.method.output();
        let first = match replies.next().await {
            Ok(first) => first,
            Err(status) => {
                return Ok(in_json(
                    http_status(status.code()),
                    Body::from(error_line(&status)),
                ));
            }
        };
        let (lines, stream) = mpsc::channel::<Result<Bytes, Status>>(STREAM_QUEUE);
        let stop = self.gateway.tasks.clone();
        self.gateway
            .tasks
            .spawn("gateway answers", Kind::Background, async move {
                let mut next = Ok(first);
                loop {
                    let (line, over) = match next
                        .and_then(|message| message.map(|message| json::to_text(&kind, message)).transpose())
                    {
                        Ok(Some(text)) => (result_line(&text), false),
                        Ok(None) => return Ok(()),
                        Err(status) => (error_line(&status), true),
                    };
                    if lines.send(Ok(line)).await.is_err() || over {
                        return Ok(());
                    }
                    next = tokio::select! {
                        () = stop.stopping() => return Ok(()),
                        () = lines.closed() => return Ok(()),
                        next = replies.next() => next,
                    };
                }
            });
        Ok(in_json(
            StatusCode::OK,
            Body::from_stream(ReceiverStream::new(stream)),
        ))
    }
}

/// The JSON objects of a request's body.
struct Objects {
    body: BodyDataStream,
    read: BytesMut,
}

impl Objects {
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(text) = json::take_value(&mut self.read)? {
                return Ok(Some(text));
            }
            if self.read.len() > MAX_TEXT {
                return Err(Status::invalid_argument("the message is too large"));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.read.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
                None if self.read.trim_ascii().is_empty() => return Ok(None),
                None => return Err(Status::invalid_argument("the last object is not whole")),
            }
        }
    }
}

/// The messages of a gRPC answer, and its status as the error at the end.
struct Replies {
    body: tonic::body::Body,
    read: BytesMut,
    /// A status that came with the headers: there is nothing else.
    at_once: Option<Status>,
}

impl Replies {
    fn new(reply: http::Response<tonic::body::Body>) -> Replies {
        Replies {
            at_once: Status::from_header_map(reply.headers()),
            body: reply.into_body(),
            read: BytesMut::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(status) = self.at_once.take() {
                return over(status);
            }
            if let Some(message) = json::take_message(&mut self.read)? {
                return Ok(Some(message));
            }
            let frame = match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => frame?,
            };
            match frame.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(frame) => self.at_once = frame.trailers_ref().and_then(Status::from_header_map),
            }
        }
    }
}

fn over(status: Status) -> Result<Option<Bytes>, Status> {
    if status.code() == Code::Ok {
        Ok(None)
    } else {
        Err(status)
    }
}

/// What of HTTP's headers the services see: the token, and what the client marked as metadata.
fn metadata(given: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let marked = name.as_str().strip_prefix(METADATA).map(HeaderName::try_from);
        if let Some(Ok(name)) = marked {
            headers.append(name, value.clone());
        }
    }
    if let Some(token) = given.get(header::AUTHORIZATION) {
        headers.insert(header::AUTHORIZATION, token.clone());
        headers.insert("token", token.clone());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers
}

fn in_json(status: StatusCode, body: Body) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// An error as clients of old gateways (`error`) and of new ones (`code`, `message`) read it.
fn refusal(status: &Status) -> Response {
    let message = serde_json::Value::from(status.message());
    let code = i32::from(status.code());
    let text = format!("{{\"error\":{message},\"message\":{message},\"code\":{code}}}");
    in_json(http_status(status.code()), Body::from(text))
}

fn result_line(text: &[u8]) -> Bytes {
    [b"{\"result\":", text, b"}\n"].concat().into()
}

fn error_line(status: &Status) -> Bytes {
    let message = serde_json::Value::from(status.message());
    let code = i32::from(status.code());
    let http = http_status(status.code());
    let reason = http.canonical_reason().unwrap_or_default();
    let http = http.as_u16();
    let text = format!(
        "{{\"error\":{{\"grpc_code\":{code},\"http_code\":{http},\"message\":{message},\"http_status\":\"{reason}\",\"code\":{code}}}}}\n"
    );
    text.into()
}

/// The HTTP status of a gRPC code, as grpc-gateway has it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
