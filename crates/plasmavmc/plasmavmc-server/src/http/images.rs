//! `/v1/images`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::{ErrorBody, Image, ImageList, ImageQuery};

use super::extract::{KeyHeader, Params};
use crate::app::once::RequestKey;
use crate::app::{App, image};

/// Lists the images.
#[utoipa::path(
    get, path = "/v1/images", operation_id = "list_images", tag = "images",
    responses((status = 200, body = ImageList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(ctx: OpContext, State(app): State<App>) -> Result<Json<ImageList>, ApiError> {
    image::list(&app, &ctx).await.map(Json)
}

/// Shows an image.
#[utoipa::path(
    get, path = "/v1/images/{name}", operation_id = "get_image", tag = "images",
    params(("name" = String, Path, description = "Name of the image")),
    responses((status = 200, body = Image), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn get(
    ctx: OpContext,
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Image>, ApiError> {
    image::get(&app, &ctx, &name).await.map(Json)
}

/// Imports the body as an image. The same bytes under the same name may be imported again.
#[utoipa::path(
    put, path = "/v1/images/{name}", operation_id = "import_image", tag = "images",
    params(("name" = String, Path, description = "Name of the image"), ImageQuery, KeyHeader),
    request_body(content_type = "application/octet-stream", description = "The bytes of the image"),
    responses((status = 200, body = Image), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn import(
    ctx: OpContext,
    State(app): State<App>,
    Path(name): Path<String>,
    Params(query): Params<ImageQuery>,
    key: RequestKey,
    body: Body,
) -> Result<Json<Image>, ApiError> {
    image::import(&app, &ctx, &name, &query, &key, body.into_data_stream())
        .await
        .map(Json)
}

/// Deletes an image that no VM was made from.
#[utoipa::path(
    delete, path = "/v1/images/{name}", operation_id = "delete_image", tag = "images",
    params(("name" = String, Path, description = "Name of the image"), KeyHeader),
    responses((status = 204, description = "Deleted"), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn delete(
    ctx: OpContext,
    State(app): State<App>,
    Path(name): Path<String>,
    key: RequestKey,
) -> Result<StatusCode, ApiError> {
    image::delete(&app, &ctx, &name, &key)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}
