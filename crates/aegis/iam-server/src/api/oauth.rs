//! The OAuth endpoints: discovery (RFC 8414), keys, device flow (RFC 8628), tokens (RFC 6749), revocation (RFC 7009).

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hearth_service::error::{ApiError, ErrorKind, http_status};
use iam_client::wire::{
    DEVICE_GRANT, DeviceAuthorization, DeviceRequest, OAuthError, RevokeRequest, TokenRequest, TokenResponse,
};

use super::extract::{BodyError, Caller, Form};
use crate::app::{Aegis, DeviceError, SessionError};

/// A refusal in OAuth's form.
pub(super) struct OAuthRefusal {
    status: StatusCode,
    error: &'static str,
    description: String,
}

fn refusal(error: &'static str, description: impl ToString) -> OAuthRefusal {
    OAuthRefusal {
        status: StatusCode::BAD_REQUEST,
        error,
        description: description.to_string(),
    }
}

impl IntoResponse for OAuthRefusal {
    fn into_response(self) -> Response {
        let body = OAuthError {
            error: self.error.to_owned(),
            error_description: Some(self.description),
        };
        no_store((self.status, Json(body)).into_response())
    }
}

impl From<ApiError> for OAuthRefusal {
    fn from(error: ApiError) -> Self {
        let name = match error.kind {
            ErrorKind::InvalidArgument => "invalid_request",
            ErrorKind::Unavailable | ErrorKind::ResourceExhausted => "temporarily_unavailable",
            ErrorKind::Conflict => "invalid_grant",
            _ => "server_error",
        };
        if error.kind == ErrorKind::Internal {
            tracing::error!(error = %hearth_service::tasks::chain(&error), "an OAuth request failed");
        }
        Self {
            status: http_status(error.kind),
            error: name,
            description: error.to_string(),
        }
    }
}

impl From<BodyError> for OAuthRefusal {
    fn from(error: BodyError) -> Self {
        error.0.into()
    }
}

impl From<SessionError> for OAuthRefusal {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Ended => refusal("invalid_grant", error),
            // RFC 6749 section 5.2: 401 for a client that cannot prove itself.
            SessionError::Client => Self {
                status: StatusCode::UNAUTHORIZED,
                ..refusal("invalid_client", error)
            },
            SessionError::Api(error) => error.into(),
        }
    }
}

impl From<DeviceError> for OAuthRefusal {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Pending => refusal("authorization_pending", error),
            DeviceError::SlowDown => refusal("slow_down", error),
            DeviceError::Denied => refusal("access_denied", error),
            DeviceError::Expired => refusal("expired_token", error),
            DeviceError::Client => refusal("invalid_client", error),
            DeviceError::Api(error) => error.into(),
        }
    }
}

/// Answers with tokens or codes are never stored (RFC 6749 section 5.1).
pub(super) fn no_store(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[utoipa::path(get, path = "/.well-known/openid-configuration", tag = "oauth",
    responses((status = 200, description = "What this provider offers", body = serde_json::Value)))]
pub(super) async fn discovery(State(aegis): State<Aegis>) -> Json<serde_json::Value> {
    let issuer = &aegis.settings().public_url;
    Json(serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/jwks.json"),
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "device_authorization_endpoint": format!("{issuer}/oauth2/device_authorization"),
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "grant_types_supported": [DEVICE_GRANT, "refresh_token", "client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_post"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

#[utoipa::path(get, path = "/jwks.json", tag = "oauth",
    responses((status = 200, description = "The keys that tokens are signed with", body = serde_json::Value)))]
pub(super) async fn jwks(State(aegis): State<Aegis>) -> Json<serde_json::Value> {
    Json(aegis.jwks())
}

#[utoipa::path(post, path = "/oauth2/device_authorization", tag = "oauth",
    request_body(content = DeviceRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = DeviceAuthorization), (status = 400, body = OAuthError)))]
pub(super) async fn device_authorization(
    State(aegis): State<Aegis>,
    caller: Caller,
    form: Result<Form<DeviceRequest>, BodyError>,
) -> Result<Response, OAuthRefusal> {
    let Form(form) = form?;
    Ok(no_store(
        Json(aegis.device_begin(&form.client_id, caller.origin).await?).into_response(),
    ))
}

#[utoipa::path(post, path = "/oauth2/token", tag = "oauth",
    request_body(content = TokenRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = TokenResponse), (status = 400, body = OAuthError), (status = 401, body = OAuthError)))]
pub(super) async fn token(
    State(aegis): State<Aegis>,
    caller: Caller,
    form: Result<Form<TokenRequest>, BodyError>,
) -> Result<Response, OAuthRefusal> {
    let Form(form) = form?;
    let needs = |field: &str| refusal("invalid_request", format!("this grant type needs `{field}`"));
    let client = form.client_id.as_deref().unwrap_or_default();
    let tokens = match form.grant_type.as_str() {
        DEVICE_GRANT => {
            let code = form.device_code.as_deref().ok_or_else(|| needs("device_code"))?;
            aegis.device_poll(code, client, &caller.request_id).await?
        }
        "refresh_token" => {
            let token = form
                .refresh_token
                .as_deref()
                .ok_or_else(|| needs("refresh_token"))?;
            aegis.refresh(token, &caller.request_id).await?
        }
        "client_credentials" => {
            let secret = form
                .client_secret
                .as_deref()
                .ok_or_else(|| needs("client_secret"))?;
            aegis.client_credentials(client, secret).await?
        }
        _ => {
            return Err(refusal(
                "unsupported_grant_type",
                "see /.well-known/openid-configuration",
            ));
        }
    };
    Ok(no_store(Json(tokens).into_response()))
}

#[utoipa::path(post, path = "/oauth2/revoke", tag = "oauth",
    request_body(content = RevokeRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "The session has ended, or there was none")))]
pub(super) async fn revoke(
    State(aegis): State<Aegis>,
    caller: Caller,
    form: Result<Form<RevokeRequest>, BodyError>,
) -> Result<StatusCode, OAuthRefusal> {
    let Form(form) = form?;
    aegis.revoke(&form.token, &caller.request_id).await?;
    Ok(StatusCode::OK)
}
