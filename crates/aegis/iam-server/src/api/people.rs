//! Sign-in, users, service accounts, groups.

use axum::extract::{Path, State};
use hearth_service::error::ApiError;
use iam_client::OpContext;
use iam_client::wire::{
    BootstrapRequest, GroupMembers, GroupView, NewSecret, NewServiceAccount, NewUser, Page, PageQuery,
    PasswordChange, ServiceAccountView, SessionRequest, TokenResponse, UserChange, UserView, WhoAmI,
};

use super::extract::{BodyError, Caller, Json, Query, page};
use super::oauth::no_store;
use super::{Created, Gone};
use crate::app::{Aegis, Revised};

type Body<T> = Result<Json<T>, BodyError>;
type Params<T> = Result<Query<T>, BodyError>;

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        error.0
    }
}

#[utoipa::path(post, path = "/v1/bootstrap", tag = "sign-in", request_body = BootstrapRequest,
    responses((status = 201, body = UserView), (status = 403, description = "Wrong token"),
        (status = 412, description = "Done before")))]
pub(super) async fn bootstrap(
    State(aegis): State<Aegis>,
    caller: Caller,
    body: Body<BootstrapRequest>,
) -> Result<Created<UserView>, ApiError> {
    let Json(body) = body?;
    Ok(Created(
        aegis.bootstrap(&body, caller.origin, &caller.request_id).await?,
    ))
}

#[utoipa::path(post, path = "/v1/sessions", tag = "sign-in", request_body = SessionRequest,
    responses((status = 200, body = TokenResponse), (status = 401, description = "Wrong name or password"),
        (status = 429, description = "Too many failures")))]
pub(super) async fn sign_in(
    State(aegis): State<Aegis>,
    caller: Caller,
    body: Body<SessionRequest>,
) -> Result<axum::response::Response, ApiError> {
    use axum::response::IntoResponse as _;
    let Json(body) = body?;
    let tokens: TokenResponse = aegis.sign_in(&body, caller.origin, &caller.request_id).await?;
    Ok(no_store(axum::Json(tokens).into_response()))
}

#[utoipa::path(get, path = "/v1/whoami", tag = "sign-in", security(("bearer" = [])),
    responses((status = 200, body = WhoAmI)))]
pub(super) async fn whoami(State(aegis): State<Aegis>, context: OpContext) -> axum::Json<WhoAmI> {
    axum::Json(aegis.whoami(&context))
}

#[utoipa::path(post, path = "/v1/whoami/password", tag = "sign-in", security(("bearer" = [])),
    request_body = PasswordChange, responses((status = 204, description = "Changed; other sign-ins have ended")))]
pub(super) async fn change_password(
    State(aegis): State<Aegis>,
    context: OpContext,
    caller: Caller,
    body: Body<PasswordChange>,
) -> Result<Gone, ApiError> {
    let Json(body) = body?;
    Ok(Gone(aegis.change_password(&context, &body, caller.origin).await?))
}

#[utoipa::path(get, path = "/v1/users", tag = "users", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, body = Page<UserView>)))]
pub(super) async fn list_users(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<UserView>>, ApiError> {
    let Query(query) = query?;
    let users = aegis.users(&context)?;
    Ok(axum::Json(page(
        users,
        |user| user.name.to_string(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(post, path = "/v1/users", tag = "users", security(("bearer" = [])), request_body = NewUser,
    responses((status = 201, body = UserView), (status = 409, description = "The name is taken")))]
pub(super) async fn create_user(
    State(aegis): State<Aegis>,
    context: OpContext,
    body: Body<NewUser>,
) -> Result<Created<UserView>, ApiError> {
    let Json(body) = body?;
    Ok(Created(aegis.create_user(&context, &body).await?))
}

#[utoipa::path(get, path = "/v1/users/{user}", tag = "users", security(("bearer" = [])),
    params(("user" = String, Path)), responses((status = 200, body = UserView)))]
pub(super) async fn get_user(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(user): Path<String>,
) -> Result<axum::Json<UserView>, ApiError> {
    Ok(axum::Json(aegis.user(&context, &user)?))
}

#[utoipa::path(patch, path = "/v1/users/{user}", tag = "users", security(("bearer" = [])),
    params(("user" = String, Path)), request_body = UserChange, responses((status = 200, body = UserView)))]
pub(super) async fn change_user(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(user): Path<String>,
    body: Body<UserChange>,
) -> Result<Revised<UserView>, ApiError> {
    let Json(body) = body?;
    aegis.change_user(&context, &user, &body).await
}

#[utoipa::path(get, path = "/v1/projects/{project}/service-accounts", tag = "users", security(("bearer" = [])),
    params(("project" = String, Path), PageQuery), responses((status = 200, body = Page<ServiceAccountView>)))]
pub(super) async fn list_service_accounts(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(project): Path<String>,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<ServiceAccountView>>, ApiError> {
    let Query(query) = query?;
    let accounts = aegis.service_accounts(&context, &project)?;
    Ok(axum::Json(page(
        accounts,
        |account| account.name.to_string(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(post, path = "/v1/projects/{project}/service-accounts", tag = "users", security(("bearer" = [])),
    params(("project" = String, Path)), request_body = NewServiceAccount,
    responses((status = 201, body = ServiceAccountView)))]
pub(super) async fn create_service_account(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(project): Path<String>,
    body: Body<NewServiceAccount>,
) -> Result<Created<ServiceAccountView>, ApiError> {
    let Json(body) = body?;
    Ok(Created(
        aegis.create_service_account(&context, &project, &body).await?,
    ))
}

#[utoipa::path(delete, path = "/v1/projects/{project}/service-accounts/{account}", tag = "users",
    security(("bearer" = [])), params(("project" = String, Path), ("account" = String, Path)),
    responses((status = 204, description = "Removed with its secrets and bindings")))]
pub(super) async fn delete_service_account(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path((project, account)): Path<(String, String)>,
) -> Result<Gone, ApiError> {
    Ok(Gone(
        aegis.delete_service_account(&context, &project, &account).await?,
    ))
}

#[utoipa::path(post, path = "/v1/projects/{project}/service-accounts/{account}/secrets", tag = "users",
    security(("bearer" = [])), params(("project" = String, Path), ("account" = String, Path)),
    responses((status = 201, description = "The secret, shown this once", body = NewSecret)))]
pub(super) async fn create_secret(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path((project, account)): Path<(String, String)>,
) -> Result<axum::response::Response, ApiError> {
    use axum::response::IntoResponse as _;
    let secret = aegis.create_secret(&context, &project, &account).await?;
    Ok(no_store(Created(secret).into_response()))
}

#[utoipa::path(get, path = "/v1/groups", tag = "users", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, body = Page<GroupView>)))]
pub(super) async fn list_groups(
    State(aegis): State<Aegis>,
    context: OpContext,
    query: Params<PageQuery>,
) -> Result<axum::Json<Page<GroupView>>, ApiError> {
    let Query(query) = query?;
    let groups = aegis.groups(&context)?;
    Ok(axum::Json(page(
        groups,
        |group| group.name.to_string(),
        query.limit,
        query.page.as_deref(),
    )?))
}

#[utoipa::path(put, path = "/v1/groups/{group}", tag = "users", security(("bearer" = [])),
    params(("group" = String, Path)), request_body = GroupMembers, responses((status = 200, body = GroupView)))]
pub(super) async fn put_group(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(group): Path<String>,
    body: Body<GroupMembers>,
) -> Result<Revised<GroupView>, ApiError> {
    let Json(body) = body?;
    aegis.put_group(&context, &group, &body).await
}

#[utoipa::path(delete, path = "/v1/groups/{group}", tag = "users", security(("bearer" = [])),
    params(("group" = String, Path)), responses((status = 204, description = "Removed with its bindings")))]
pub(super) async fn delete_group(
    State(aegis): State<Aegis>,
    context: OpContext,
    Path(group): Path<String>,
) -> Result<Gone, ApiError> {
    Ok(Gone(aegis.delete_group(&context, &group).await?))
}
