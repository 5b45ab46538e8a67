//! The REST interface: routes, and how requests are read.

mod app;
mod files;
mod keys;
mod wire;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State,
        rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection},
    },
    http::{HeaderName, StatusCode, header::CONTENT_TYPE, request::Parts},
};
use flashdns_client::types::{KeyList, MadeKey, NewKey, ZoneImport, ZoneList};
use hearth_service::error::{ApiError, ErrorKind};
use iam_client::OpContext;
use serde::de::DeserializeOwned;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use app::{App, MAX_NAMES_PER_ZONE, MAX_SETS_PER_NAME};
use wire::{DeleteQuery, ErrorBody, ImportQuery, ListQuery, NewRecord, Record, RecordList};

/// Largest JSON body: the longest record data with room for escapes.
const MAX_JSON_BYTES: usize = 64 * 1024;
/// Media type of zone files (RFC 4027).
const ZONE_FILE: &str = "text/dns";
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
    let files = OpenApiRouter::new()
        .routes(routes!(export_zone, import_zone))
        .layer(DefaultBodyLimit::max(files::MAX_FILE_BYTES));
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(list_zones))
        .routes(routes!(list_records, create_record))
        .routes(routes!(delete_record))
        .routes(routes!(list_keys, create_key))
        .routes(routes!(delete_key))
        .merge(files)
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

/// The zone's stored records as a zone file (RFC 1035, section 5), with the SOA, NS and name server's addresses that
/// make it a whole zone. Records of running VMs are not in it.
#[utoipa::path(
    get, path = "/v1/zones/{zone}/file", operation_id = "export_zone", tag = "zones",
    params(("zone" = String, Path, description = "Name of the zone")),
    responses(
        (status = 200, body = String, content_type = ZONE_FILE),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)
    )
)]
async fn export_zone(
    ctx: OpContext,
    State(app): State<App>,
    Parameters(zone): Parameters<String>,
) -> Result<([(HeaderName, &'static str); 1], String), ApiError> {
    let file = app.export_zone(&ctx, &zone).await?;
    Ok(([(CONTENT_TYPE, ZONE_FILE)], file))
}

/// Replaces the zone's stored records by those of a zone file. The file is checked as a whole first: with anything wrong
/// in it nothing is changed, and the error names line and column. Up to 128 names that change are one transaction.
#[utoipa::path(
    put, path = "/v1/zones/{zone}/file", operation_id = "import_zone", tag = "zones",
    params(("zone" = String, Path, description = "Name of the zone"), ImportQuery),
    request_body(content = String, content_type = ZONE_FILE, description = "At most 16 MiB"),
    responses((status = 200, body = ZoneImport), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn import_zone(
    ctx: OpContext,
    State(app): State<App>,
    Parameters(zone): Parameters<String>,
    Params(query): Params<ImportQuery>,
    Text(file): Text,
) -> Result<Json<ZoneImport>, ApiError> {
    app.import_zone(&ctx, &zone, file, query.dry_run).await.map(Json)
}

/// Lists the caller's TSIG keys, without their secrets.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "list_keys", tag = "keys",
    responses((status = 200, body = KeyList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn list_keys(ctx: OpContext, State(app): State<App>) -> Json<KeyList> {
    Json(app.list_keys(&ctx))
}

/// Makes a TSIG key that has the caller's rights. Its secret is in this answer and never shown again.
#[utoipa::path(
    post, path = "/v1/keys", operation_id = "create_key", tag = "keys", request_body = NewKey,
    responses((status = 201, body = MadeKey), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn create_key(
    ctx: OpContext,
    State(app): State<App>,
    Body(key): Body<NewKey>,
) -> Result<(StatusCode, Json<MadeKey>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.create_key(&ctx, key).await?)))
}

/// Deletes a TSIG key: what it signs is refused from then on.
#[utoipa::path(
    delete, path = "/v1/keys/{name}", operation_id = "delete_key", tag = "keys",
    params(("name" = String, Path, description = "Name of the key")),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
async fn delete_key(
    ctx: OpContext,
    State(app): State<App>,
    Parameters(name): Parameters<String>,
) -> Result<StatusCode, ApiError> {
    app.delete_key(&ctx, &name).await?;
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

/// A body of text.
struct Text(String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = Bytes::from_request(request, state).await;
        let bytes = read.map_err(|why: BytesRejection| unreadable("request", &why.body_text()))?;
        String::from_utf8(bytes.into()).map(Self).map_err(|error| {
            let good = error
                .as_bytes()
                .get(..error.utf8_error().valid_up_to())
                .unwrap_or(&[]);
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            app::invalid(format!(
                "line {line}: the file is not UTF-8; write such bytes as `\\` and three digits"
            ))
        })
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
