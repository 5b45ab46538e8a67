//! Organisations, projects, roles, bindings, explanations, the audit trail, certificates.

use axum::extract::{Path, State};
use hearth_service::error::ApiError;
use iam_client::OpContext;
use iam_client::wire::{
    AuditView, BindingQuery, BindingView, CheckAnswer, CheckRequest, NewBinding, NewOrganisation, NewProject,
    OrganisationView, Page, PageQuery, ProjectView, RenewAnswer, RenewRequest, RoleView,
};

use super::extract::{BodyError, Json, Query, limit, page, token};
use super::{Created, Gone};
use crate::app::{Aegis, Revised};

type Body<T> = Result<Json<T>, BodyError>;
type Params<T> = Result<Query<T>, BodyError>;
/// Records on one page of the audit trail unless asked otherwise.
const AUDIT_PAGE: u32 = 100;

#[utoipa::path(get, path = "/v1/roles", tag = "rights", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, body = Page<RoleView>)))]
pub(super) async fn list_roles(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<RoleView>>, ApiError> {
    let Query(query) = query?;
    let roles = aegis.roles(&context)?;
    Ok(axum::Json(page(
        roles,
        |role| role.name.clone(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(get, path = "/v1/organisations", tag = "places", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, body = Page<OrganisationView>)))]
pub(super) async fn list_organisations(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<OrganisationView>>, ApiError> {
    let Query(query) = query?;
    let all = aegis.organisations(&context);
    Ok(axum::Json(page(
        all,
        |one| one.name.to_string(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(post, path = "/v1/organisations", tag = "places", security(("bearer" = [])),
    request_body = NewOrganisation, responses((status = 201, body = OrganisationView)))]
pub(super) async fn create_organisation(
    State(aegis): State<Aegis>,
    context: OpContext,
    body: Body<NewOrganisation>,
) -> Result<Created<OrganisationView>, ApiError> {
    let Json(body) = body?;
    Ok(Created(aegis.create_organisation(&context, &body).await?))
}

#[utoipa::path(get, path = "/v1/projects", tag = "places", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, description = "Those that the caller may see", body = Page<ProjectView>)))]
pub(super) async fn list_projects(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<ProjectView>>, ApiError> {
    let Query(query) = query?;
    let all = aegis.projects(&context);
    Ok(axum::Json(page(
        all,
        |one| one.name.to_string(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(post, path = "/v1/projects", tag = "places", security(("bearer" = [])), request_body = NewProject,
    responses((status = 201, body = ProjectView)))]
pub(super) async fn create_project(
    State(aegis): State<Aegis>,
    context: OpContext,
    body: Body<NewProject>,
) -> Result<Created<ProjectView>, ApiError> {
    let Json(body) = body?;
    Ok(Created(aegis.create_project(&context, &body).await?))
}

#[utoipa::path(get, path = "/v1/projects/{project}", tag = "places", security(("bearer" = [])),
    params(("project" = String, Path)), responses((status = 200, body = ProjectView)))]
pub(super) async fn get_project(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(project): Path<String>,
) -> Result<axum::Json<ProjectView>, ApiError> {
    Ok(axum::Json(aegis.project(&context, &project)?))
}

#[utoipa::path(get, path = "/v1/bindings", tag = "rights", security(("bearer" = [])), params(BindingQuery),
    responses((status = 200, body = Page<BindingView>)))]
pub(super) async fn list_bindings(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<BindingQuery>,
) -> Result<axum::Json<Page<BindingView>>, ApiError> {
    let Query(query) = query?;
    let all = aegis.bindings(&context, query.on.as_deref().unwrap_or("root"))?;
    Ok(axum::Json(page(
        all,
        |one| one.id.to_string(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(post, path = "/v1/bindings", tag = "rights", security(("bearer" = [])), request_body = NewBinding,
    responses((status = 201, body = BindingView)))]
pub(super) async fn create_binding(
    State(aegis): State<Aegis>,
    context: OpContext,
    body: Body<NewBinding>,
) -> Result<Created<BindingView>, ApiError> {
    let Json(body) = body?;
    Ok(Created(aegis.create_binding(&context, &body).await?))
}

#[utoipa::path(delete, path = "/v1/bindings/{binding}", tag = "rights", security(("bearer" = [])),
    params(("binding" = String, Path)), responses((status = 204, description = "Taken away")))]
pub(super) async fn delete_binding(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(binding): Path<String>,
) -> Result<Gone, ApiError> {
    Ok(Gone(aegis.delete_binding(&context, &binding).await?))
}

#[utoipa::path(post, path = "/v1/check", tag = "rights", security(("bearer" = [])), request_body = CheckRequest,
    responses((status = 200, body = CheckAnswer)))]
pub(super) async fn check(
    State(aegis): State<Aegis>,
    context: OpContext,
    body: Body<CheckRequest>,
) -> Result<axum::Json<CheckAnswer>, ApiError> {
    let Json(body) = body?;
    Ok(axum::Json(aegis.check(&context, &body)?))
}

#[utoipa::path(get, path = "/v1/audit", tag = "rights", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, description = "Newest first", body = Page<AuditView>)))]
pub(super) async fn list_audit(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<AuditView>>, ApiError> {
    let Query(query) = query?;
    let wanted = limit(Some(query.limit.unwrap_or(AUDIT_PAGE)))?;
    let after = token(query.page.as_deref())?;
    Ok(axum::Json(aegis.audit(&context, wanted, after.as_ref()).await?))
}

#[utoipa::path(post, path = "/v1/certificates/renew", tag = "certificates", request_body = RenewRequest,
    responses((status = 200, body = RenewAnswer), (status = 403, description = "Not signed in by certificate")))]
pub(super) async fn renew_certificate(
    State(aegis): State<Aegis>,
    context: OpContext,
    body: Body<RenewRequest>,
) -> Result<Revised<RenewAnswer>, ApiError> {
    let Json(body) = body?;
    aegis.renew_certificate(&context, &body.csr).await
}
