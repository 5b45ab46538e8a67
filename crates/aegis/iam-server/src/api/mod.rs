//! HTTP around the application. Handlers parse, call, answer; they decide nothing.
//!
//! The router and the OpenAPI document come from the same list, so that neither can have an endpoint that the other
//! lacks; `tests/endpoints.rs` walks it and fails for an endpoint without its row of expected answers.

mod admin;
mod device_page;
mod extract;
mod oauth;
mod people;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hearth_service::error::{ApiError, ErrorKind};
use iam_client::Authorizer;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::{Aegis, Revised};

/// Longest request body, in bytes.
const MAX_BODY: usize = 64 * 1024;

impl FromRef<Aegis> for Authorizer {
    fn from_ref(aegis: &Aegis) -> Self {
        aegis.authorizer().clone()
    }
}

impl<T: serde::Serialize> IntoResponse for Revised<T> {
    fn into_response(self) -> Response {
        let revision = [(iam_client::wire::REVISION_HEADER, self.revision.to_string())];
        (revision, axum::Json(self.value)).into_response()
    }
}

/// The answer 201 to a change that made something.
struct Created<T>(Revised<T>);

impl<T: serde::Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (axum::http::StatusCode::CREATED, self.0).into_response()
    }
}

/// The answer 204 to a change that leaves nothing to show.
struct Gone(Revised<()>);

impl IntoResponse for Gone {
    fn into_response(self) -> Response {
        let revision = [(iam_client::wire::REVISION_HEADER, self.0.revision.to_string())];
        (axum::http::StatusCode::NO_CONTENT, revision).into_response()
    }
}

fn endpoints() -> OpenApiRouter<Aegis> {
    let info = InfoBuilder::new()
        .title("Aegis")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Identity and rights of a Hearth cluster."))
        .build();
    let mut components = Components::new();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let api = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .build();
    OpenApiRouter::with_openapi(api)
        .routes(routes!(oauth::discovery))
        .routes(routes!(oauth::jwks))
        .routes(routes!(oauth::device_authorization))
        .routes(routes!(oauth::token))
        .routes(routes!(oauth::revoke))
        .routes(routes!(device_page::show, device_page::decide))
        .routes(routes!(people::bootstrap))
        .routes(routes!(people::sign_in))
        .routes(routes!(people::whoami))
        .routes(routes!(people::change_password))
        .routes(routes!(admin::list_roles))
        .routes(routes!(admin::list_organisations, admin::create_organisation))
        .routes(routes!(admin::list_projects, admin::create_project))
        .routes(routes!(admin::get_project))
        .routes(routes!(people::list_users, people::create_user))
        .routes(routes!(people::get_user, people::change_user))
        .routes(routes!(
            people::list_service_accounts,
            people::create_service_account
        ))
        .routes(routes!(people::delete_service_account))
        .routes(routes!(people::create_secret))
        .routes(routes!(people::list_groups))
        .routes(routes!(people::put_group, people::delete_group))
        .routes(routes!(admin::list_bindings, admin::create_binding))
        .routes(routes!(admin::delete_binding))
        .routes(routes!(admin::check))
        .routes(routes!(admin::list_audit))
        .routes(routes!(admin::renew_certificate))
}

/// The OpenAPI document.
#[must_use]
pub fn openapi() -> OpenApi {
    endpoints().into_openapi()
}

/// The router, without health.
pub fn router(aegis: Aegis) -> Router {
    let (router, api) = endpoints().split_for_parts();
    router
        .route("/openapi.json", get(|| async move { axum::Json(api) }))
        .fallback(|| async { ApiError::new(ErrorKind::NotFound, "there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                ErrorKind::InvalidArgument,
                "this address does not take this method",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(aegis)
}
