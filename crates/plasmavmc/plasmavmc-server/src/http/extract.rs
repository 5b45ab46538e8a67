//! Reading requests so that what is wrong with them is answered like every other error.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::HeaderValue;
use axum::http::request::Parts;
use hearth_service::error::{ApiError, ErrorKind};
use plasmavmc_client::KEY_HEADER;
use serde::de::DeserializeOwned;

use crate::app::once::RequestKey;

fn unreadable(what: &str, why: &str) -> ApiError {
    ApiError::new(
        ErrorKind::InvalidArgument,
        format!("the {what} cannot be read: {why}"),
    )
    .hint("the interface is described in openapi/plasmavmc.json")
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = Json::<T>::from_request(request, state).await;
        let Json(value) = read.map_err(|why: JsonRejection| unreadable("request", &why.body_text()))?;
        Ok(Self(value))
    }
}

/// A JSON body that may be left out.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = bytes::Bytes::from_request(request, state)
            .await
            .map_err(|why| unreadable("request", &why.body_text()))?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|why| unreadable("request", &why.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut headers = parts.headers.get_all(KEY_HEADER).iter();
        match (headers.next(), headers.next()) {
            (Some(_), Some(_)) => Err(unreadable("Idempotency-Key header", "it is there more than once")),
            (header, _) => Self::parse(header.map(HeaderValue::as_bytes)),
        }
    }
}

/// The header that makes a request one that may be repeated.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the description of the interface reads it")]
pub(super) struct KeyHeader {
    /// 1 to 128 of a-z, A-Z, 0-9, - and _: the same key and request are carried out once and answered the same, as
    /// long as the key is remembered; the same key with another request is refused.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// The query string.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Query::<T>::from_request_parts(parts, state).await;
        let Query(value) = read.map_err(|why: QueryRejection| unreadable("query", &why.body_text()))?;
        Ok(Self(value))
    }
}
