//! The REST interface: routes, and how requests are read.

mod console;
mod extract;
mod images;
mod nodes;
mod operations;
mod projects;
mod vms;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use hearth_service::error::{ApiError, ErrorKind};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

/// Largest JSON body: 32 SSH keys of 16 KiB, 32 KiB of user data, and some air.
const MAX_JSON_BYTES: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "PlasmaVMC",
        description = "Virtual machines, images and nodes. Every request needs a bearer token of Aegis. Errors have \
            the body `ErrorBody`: what happened, why, and what to do.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Bearer)
)]
struct Api;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("bearer", scheme);
        api.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("bearer", [])]);
    }
}

fn api() -> (Router<App>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(vms::create, vms::list))
        .routes(routes!(vms::get, vms::delete))
        .routes(routes!(vms::start))
        .routes(routes!(vms::stop))
        .routes(routes!(vms::reset))
        .routes(routes!(vms::pause))
        .routes(routes!(vms::resume))
        .routes(routes!(console::open))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(images::list))
        .routes(routes!(images::get, images::import, images::delete))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get, nodes::update))
        .routes(routes!(projects::get_quota, projects::set_quota))
        .routes(routes!(projects::create_group, projects::list_groups))
        .routes(routes!(projects::get_group, projects::delete_group))
        .routes(routes!(projects::explain_creation))
        .routes(routes!(projects::explain_vm))
        .split_for_parts()
}

/// All routes of the REST interface, and `others` beside them.
pub(crate) fn router(app: App, others: Router) -> Router {
    let (router, _) = api();
    router
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorKind::Unimplemented, "this address does not take that method")
                .hint("the interface is described in openapi/plasmavmc.json")
        })
        .with_state(app)
        .merge(others)
        // Last, because the gRPC routes bring a fallback of their own.
        .fallback(async || {
            ApiError::new(ErrorKind::NotFound, "there is nothing at this address")
                .hint("the interface is described in openapi/plasmavmc.json")
        })
}

/// The OpenAPI description, JSON, as it is committed in `openapi/plasmavmc.json`.
///
/// # Errors
/// Never in practice: every part of it has a JSON form.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    let (_, openapi) = api();
    Ok(openapi.to_pretty_json()? + "\n")
}
