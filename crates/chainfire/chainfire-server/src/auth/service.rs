//! etcd's Auth service. Changes go through the log; questions are answered after a barrier.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chainfire_client::wire::etcdserverpb::{self as pb, auth_server::Auth as AuthRpc};
use chainfire_core::{
    OpError,
    auth::{By, Permission, ROOT},
};
use tonic::{Request, Response, Status};

use super::{
    Caller, Credential, Hasher,
    record::{AuthBody, AuthRecord, AuthenticateRecord, PasswordRecord, permission, permission_message},
    tokens::{TokenProvider, random_token},
};
use crate::{
    node::{Node, status},
    record::{LogBody, ReplyBody},
};

/// How often a password is checked again because auth changed under it.
const MAX_CHECKS: usize = 8;

/// The Auth service of a member.
pub(crate) struct AuthService {
    node: Node,
    hasher: Hasher,
}

fn wrong_reply() -> Status {
    Status::internal("the state machine answered another question")
}

impl AuthService {
    pub(crate) fn new(node: Node, hasher: Hasher) -> AuthService {
        AuthService { node, hasher }
    }

    /// Who asks, if there is nothing against it from the beginning.
    async fn administrator(&self, credential: &Credential) -> Result<Caller, Status> {
        let caller = self.node.caller(credential).await.map_err(status)?;
        caller.propose_administration().map_err(status)?;
        Ok(caller)
    }

    async fn propose(&self, by: &By, body: AuthBody) -> Result<Option<pb::ResponseHeader>, Status> {
        let body = LogBody::Auth(AuthRecord { body: Some(body) });
        match self.node.propose(by, body).await.map_err(status)? {
            ReplyBody::Done(revision) => Ok(self.node.header_at(revision)),
            _ => Err(wrong_reply()),
        }
    }

    /// Puts an administrator's request through the log.
    async fn change<T>(
        &self,
        request: Request<T>,
        body: impl FnOnce(T) -> AuthBody,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.administrator(&Credential::of(&request)).await?;
        self.propose(caller.by(), body(request.into_inner())).await
    }

    /// Who asks a question, after a barrier: rights and answer are of the same state.
    async fn asker(&self, credential: Credential) -> Result<Caller, Status> {
        credential.rights().administer().map_err(status)?;
        self.node.read_barrier().await.map_err(status)?;
        self.node.caller(&credential).await.map_err(status)
    }

    /// Hashes a password for an administrator. Only for one: it is work that anybody could ask for.
    async fn hashed(&self, caller: &Caller, password: String) -> Result<String, Status> {
        self.node.read_barrier().await.map_err(status)?;
        caller.administer().map_err(status)?;
        self.hasher.hash(password).await
    }

    /// The revision of auth at which the password fits.
    async fn check_password(&self, name: &str, password: &str) -> Result<u64, Status> {
        let auth = self.node.shared.auth.current();
        if !auth.enabled() {
            return Err(status(OpError::AuthNotEnabled));
        }
        // Whoever has no password is told the same, after the same time, as who has another: it is nobody's business
        // which names there are.
        let user = auth.user(name).filter(|user| !user.no_password);
        let hash = user.map(|user| String::from_utf8_lossy(&user.password).into_owned());
        if self.hasher.fits(password.to_owned(), hash).await? {
            Ok(auth.revision())
        } else {
            tracing::info!(user = name, "a wrong user name or password was given");
            Err(status(OpError::AuthFailed))
        }
    }

    /// A token for a user whose password has been checked; `None` when auth has changed since.
    async fn token(&self, name: &str, revision: u64) -> Result<Option<(i64, String)>, Status> {
        if let TokenProvider::Jwt(jwt) = &self.node.tokens {
            let token = jwt
                .sign(name, revision)
                .ok_or_else(|| Status::unknown("auth: token signing attempted with verify-only key"))?;
            return Ok(Some((self.node.shared.store().revision(), token)));
        }
        let body = AuthBody::Authenticate(AuthenticateRecord {
            name: name.to_owned(),
            token: random_token(),
            revision,
        });
        let body = LogBody::Auth(AuthRecord { body: Some(body) });
        match self.node.propose(&By::System, body).await {
            Ok(ReplyBody::Token(given)) => Ok(Some((given.revision, given.token))),
            Ok(_) => Err(wrong_reply()),
            Err(OpError::AuthOldRevision) => Ok(None),
            Err(error) => Err(status(error)),
        }
    }
}

#[tonic::async_trait]
impl AuthRpc for AuthService {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let header = self.change(request, AuthBody::Enable).await?;
        tracing::info!("authentication was switched on");
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = self.change(request, AuthBody::Disable).await?;
        tracing::warn!("authentication was switched off");
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        // Nobody has to say who they are: clients ask this to know whether they must.
        self.node.require_leader(request.metadata())?;
        self.node.read_barrier().await.map_err(status)?;
        let auth = self.node.shared.auth.current();
        Ok(Response::new(pb::AuthStatusResponse {
            header: self.node.header(),
            enabled: auth.enabled(),
            auth_revision: auth.revision(),
        }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let message = request.into_inner();
        self.node.read_barrier().await.map_err(status)?;
        for _ in 0..MAX_CHECKS {
            let revision = self.check_password(&message.name, &message.password).await?;
            if let Some((revision, token)) = self.token(&message.name, revision).await? {
                return Ok(Response::new(pb::AuthenticateResponse {
                    header: self.node.header_at(revision),
                    token,
                }));
            }
        }
        Err(status(OpError::AuthOldRevision))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.administrator(&Credential::of(&request)).await?;
        let message = request.into_inner();
        let no_password = message.options.is_some_and(|options| options.no_password);
        let hash = if no_password {
            String::new()
        } else {
            self.hashed(&caller, message.password).await?
        };
        let body = AuthBody::UserAdd(PasswordRecord {
            name: message.name,
            hash: hash.into(),
            no_password,
        });
        let header = self.propose(caller.by(), body).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.asker(Credential::of(&request)).await?;
        let name = request.into_inner().name;
        caller.see_user(&name).map_err(status)?;
        let auth = self.node.shared.auth.current();
        let user = auth.user(&name).ok_or_else(|| status(OpError::UserNotFound))?;
        Ok(Response::new(pb::AuthUserGetResponse {
            header: self.node.header(),
            roles: user.roles.clone(),
        }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.asker(Credential::of(&request)).await?;
        caller.administer().map_err(status)?;
        let auth = self.node.shared.auth.current();
        Ok(Response::new(pb::AuthUserListResponse {
            header: self.node.header(),
            users: auth.users().map(|user| user.name.clone()).collect(),
        }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let header = self.change(request, AuthBody::UserDelete).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.administrator(&Credential::of(&request)).await?;
        let message = request.into_inner();
        let hash = if message.password.is_empty() {
            // A hash that was made elsewhere; an empty one fits no password. etcd has no code for a malformed one.
            STANDARD.decode(&message.hashed_password).map_err(|_| {
                Status::unknown("auth: authentication failed, password was given for no password user")
            })?
        } else {
            self.hashed(&caller, message.password).await?.into_bytes()
        };
        let body = AuthBody::UserChangePassword(PasswordRecord {
            name: message.name,
            hash: hash.into(),
            no_password: false,
        });
        let header = self.propose(caller.by(), body).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let header = self.change(request, AuthBody::UserGrantRole).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let header = self.change(request, AuthBody::UserRevokeRole).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let header = self.change(request, AuthBody::RoleAdd).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.asker(Credential::of(&request)).await?;
        let name = request.into_inner().role;
        caller.see_role(&name).map_err(status)?;
        let auth = self.node.shared.auth.current();
        let role = auth.role(&name).ok_or_else(|| status(OpError::RoleNotFound))?;
        let perm = if name == ROOT {
            vec![permission_message(&Permission::everything())]
        } else {
            role.permissions.iter().map(permission_message).collect()
        };
        Ok(Response::new(pb::AuthRoleGetResponse {
            header: self.node.header(),
            perm,
        }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self.asker(Credential::of(&request)).await?;
        caller.administer().map_err(status)?;
        let auth = self.node.shared.auth.current();
        Ok(Response::new(pb::AuthRoleListResponse {
            header: self.node.header(),
            roles: auth.roles().map(|role| role.name.clone()).collect(),
        }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let header = self.change(request, AuthBody::RoleDelete).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        // A kind of access that this release does not know must not come into the log.
        let known = request.get_ref().perm.clone().map(permission).transpose();
        known.map_err(status)?;
        let header = self.change(request, AuthBody::RoleGrantPermission).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let header = self.change(request, AuthBody::RoleRevokePermission).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}
