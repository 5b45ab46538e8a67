//! The REST interface: routes, and how requests are read.

mod app;
mod wire;

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
};
use hearth_service::error::{ApiError, ErrorKind};
use iam_client::OpContext;
use serde::de::DeserializeOwned;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use app::App;
use wire::{DeleteQuery, ErrorBody, ListQuery, NewRecord, Record, RecordList, ZoneList};

/// Largest JSON body: the longest record data with room for escapes.
const MAX_JSON_BYTES: usize = 64 * 1024;
const DESCRIBED: &str = "the interface is described in openapi/flashdns.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "FlashDNS",
        description = "Zones and their records. Every request needs a bearer token of Aegis. Errors have the body \
            `ErrorBody`: what happened, why, and what to do.",
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
        .routes(routes!(list_zones))
        .routes(routes!(list_records, create_record))
        .routes(routes!(delete_record))
        .split_for_parts()
}

/// All routes of the REST interface, and `others` beside them.
pub(crate) fn router(app: App, others: Router) -> Router {
    let (router, _) = api();
    router
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorKind::Unimplemented, "this address does not take that method").hint(DESCRIBED)
        })
        .with_state(app)
        .merge(others)
        .fallback(async || {
            ApiError::new(ErrorKind::NotFound, "there is nothing at this address").hint(DESCRIBED)
        })
}

/// The OpenAPI description, JSON, as it is committed in `openapi/flashdns.json`.
///
/// # Errors
/// Never in practice: every part of it has a JSON form.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    let (_, openapi) = api();
    Ok(openapi.to_pretty_json()? + "\n")
}

/// Lists the zones that the caller may see.
#[utoipa::path(
    get, path = "/v1/zones", operation_id = "list_zones", tag = "zones",
    responses((status = 200, body = ZoneList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn list_zones(ctx: OpContext, State(app): State<App>) -> Result<Json<ZoneList>, ApiError> {
    app.list_zones(&ctx).map(Json)
}

/// Lists the records of a zone by name: stored ones and those of running VMs, without the zone's own SOA and NS.
#[utoipa::path(
    get, path = "/v1/zones/{zone}/records", operation_id = "list_records", tag = "records",
    params(("zone" = String, Path, description = "Name of the zone"), ListQuery),
    responses((status = 200, body = RecordList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn list_records(
    ctx: OpContext,
    State(app): State<App>,
    Parameters(zone): Parameters<String>,
    Params(query): Params<ListQuery>,
) -> Result<Json<RecordList>, ApiError> {
    app.list_records(&ctx, &zone, query).await.map(Json)
}

/// Adds a record. All records of one name and type share the time to live given last. When the call returns, this
/// server answers with it.
#[utoipa::path(
    post, path = "/v1/zones/{zone}/records", operation_id = "create_record", tag = "records",
    params(("zone" = String, Path, description = "Name of the zone")), request_body = NewRecord,
    responses((status = 201, body = Record), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn create_record(
    ctx: OpContext,
    State(app): State<App>,
    Parameters(zone): Parameters<String>,
    Body(record): Body<NewRecord>,
) -> Result<(StatusCode, Json<Record>), ApiError> {
    let created = app.create_record(&ctx, &zone, record).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// Deletes one record, or without `data` all records of a name and type.
#[utoipa::path(
    delete, path = "/v1/zones/{zone}/records/{name}/{type}", operation_id = "delete_record", tag = "records",
    params(
        ("zone" = String, Path, description = "Name of the zone"),
        ("name" = String, Path, description = "Whole name of the record"),
        ("type" = String, Path, description = "Type of the record"),
        DeleteQuery
    ),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn delete_record(
    ctx: OpContext,
    State(app): State<App>,
    Parameters((zone, name, rtype)): Parameters<(String, String, String)>,
    Params(query): Params<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    app.delete_record(&ctx, &zone, &name, &rtype, query.data.as_deref())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn unreadable(what: &str, why: &str) -> ApiError {
    ApiError::new(
        ErrorKind::InvalidArgument,
        format!("the {what} cannot be read: {why}"),
    )
    .hint(DESCRIBED)
}

/// A JSON body.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = Json::<T>::from_request(request, state).await;
        let Json(value) = read.map_err(|why: JsonRejection| unreadable("request", &why.body_text()))?;
        Ok(Self(value))
    }
}

/// The query string.
struct Params<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Query::<T>::from_request_parts(parts, state).await;
        let Query(value) = read.map_err(|why: QueryRejection| unreadable("query", &why.body_text()))?;
        Ok(Self(value))
    }
}

/// The variable parts of the path.
struct Parameters<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        let Path(value) = read.map_err(|why: PathRejection| unreadable("address", &why.body_text()))?;
        Ok(Self(value))
    }
}
