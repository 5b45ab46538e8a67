//! The typed client of Aegis's REST interface: for the command line and for servers that renew certificates.

use std::path::Path;
use std::time::{Duration, SystemTime};

use hearth_service::error::{ErrorBody, ErrorKind};
use hearth_service::tls::{Identity, TlsError, anonymous_client_config};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::wire::{
    AuditView, BindingView, BootstrapRequest, CheckAnswer, CheckRequest, DEVICE_GRANT, DeviceAuthorization,
    DeviceRequest, GroupMembers, GroupView, NewBinding, NewOrganisation, NewProject, NewSecret,
    NewServiceAccount, NewUser, OAuthError, OrganisationView, Page, PasswordChange, ProjectView, RenewAnswer,
    RenewRequest, RevokeRequest, RoleView, ServiceAccountView, SessionRequest, TokenRequest, TokenResponse,
    UserChange, UserView, WhoAmI,
};

/// The public client that the command line is.
pub const CLI_CLIENT: &str = "hearth-cli";
/// Longest one call may take.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A token is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(30);
/// Most pages of one listing, so that a defective server cannot keep a client busy for ever.
const MAX_PAGES: usize = 1000;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file or the certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No answer.
    #[error("cannot reach Aegis at {url}; `hearth status` shows what runs")]
    Unreachable {
        /// Where.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// An answer that this client does not understand.
    #[error("Aegis answered in a way that this version does not understand ({status})")]
    Unexpected {
        /// The HTTP status.
        status: u16,
    },
    /// A refusal.
    #[error("{message}")]
    Api {
        /// What kind.
        kind: ErrorKind,
        /// What happened and why.
        message: String,
        /// What to do next.
        hint: Option<String>,
        /// The request, as it stands in the server's log.
        request_id: Option<String>,
    },
    /// A refusal of an OAuth endpoint.
    #[error("{description}")]
    OAuth {
        /// `invalid_grant`, `access_denied`, ...
        error: String,
        /// For people.
        description: String,
    },
    /// The person did not approve in time.
    #[error("the code has expired before it was approved; try again")]
    DeviceExpired,
}

/// What a poll of the device flow says.
#[derive(Debug)]
pub enum DeviceWait {
    /// Not approved yet; poll again after this time.
    Pending(Duration),
    /// Approved.
    Done(TokenResponse),
}

/// Tokens that a tool keeps between calls.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// The access token.
    pub access_token: String,
    /// When it expires, in seconds since 1970.
    pub expires_at: u64,
    /// Gets the next pair, once: store the new session before using it.
    pub refresh_token: Option<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// From an answer that came at `now`.
    #[must_use]
    pub fn new(tokens: TokenResponse, now: SystemTime) -> Self {
        let now_s = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Self {
            access_token: tokens.access_token,
            expires_at: now_s.saturating_add(tokens.expires_in),
            refresh_token: tokens.refresh_token,
        }
    }

    /// Whether the access token is about to expire at `now`.
    #[must_use]
    pub fn needs_refresh(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Duration::from_secs(self.expires_at) <= now + RENEW_BEFORE
    }
}

/// Calls Aegis. Clones share the connections.
#[derive(Clone, Debug)]
pub struct AegisClient {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

type Result<T> = std::result::Result<T, ClientError>;

impl AegisClient {
    /// For people's tools: trusts the authorities in `ca`, shows no certificate.
    ///
    /// # Errors
    /// [`ClientError::Tls`] when `ca` cannot be used.
    pub fn new(url: &str, ca: &Path) -> Result<Self> {
        Self::with(url, anonymous_client_config(ca)?)
    }

    /// For servers and the root shell: shows the identity's certificate.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when no client can be made of it.
    pub fn with_identity(url: &str, identity: &Identity) -> Result<Self> {
        Self::with(url, rustls::ClientConfig::clone(&identity.client_config()))
    }

    fn with(url: &str, tls: rustls::ClientConfig) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()
            .map_err(|source| ClientError::Unreachable {
                url: url.clone(),
                source,
            })?;
        Ok(Self {
            http,
            url,
            token: None,
        })
    }

    /// The same client, with an access token on every call.
    #[must_use]
    pub fn with_token(&self, access_token: &str) -> Self {
        Self {
            token: Some(access_token.to_owned()),
            ..self.clone()
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|source| ClientError::Unreachable {
            url: self.url.clone(),
            source,
        })
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        let status = response.status();
        let body = response
            .bytes()
            .await
            .map_err(|source| ClientError::Unreachable {
                url: self.url.clone(),
                source,
            })?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        // An answer without a body reads as `null`, for calls that return `()`.
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|_| ClientError::Unexpected {
            status: status.as_u16(),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.request(Method::GET, path)).await
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut items = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let request = self.request(Method::GET, path);
            let request = match &next {
                Some(page) => request.query(&[("page", page)]),
                None => request,
            };
            let page: Page<T> = self.json(request).await?;
            items.extend(page.items);
            next = page.next_page;
            if next.is_none() {
                break;
            }
        }
        Ok(items)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.json(self.request(Method::DELETE, path)).await
    }

    /// Makes the first administrator, once in the cluster's life.
    ///
    /// # Errors
    /// [`ClientError::Api`] when it was done before or the token is wrong.
    pub async fn bootstrap(&self, request: &BootstrapRequest) -> Result<UserView> {
        self.post("/v1/bootstrap", request).await
    }

    /// Signs in with a password.
    ///
    /// # Errors
    /// [`ClientError::Api`] when name or password is wrong.
    pub async fn sign_in(&self, request: &SessionRequest) -> Result<TokenResponse> {
        self.post("/v1/sessions", request).await
    }

    /// Begins the device flow.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn device_begin(&self) -> Result<DeviceAuthorization> {
        let form = DeviceRequest {
            client_id: CLI_CLIENT.to_owned(),
            scope: None,
        };
        self.json(
            self.request(Method::POST, "/oauth2/device_authorization")
                .form(&form),
        )
        .await
    }

    /// Asks once whether the person has approved. `interval` is the pause used so far.
    ///
    /// # Errors
    /// [`ClientError::DeviceExpired`], or [`ClientError::OAuth`] when it was refused.
    pub async fn device_poll(&self, device_code: &str, interval: Duration) -> Result<DeviceWait> {
        let form = TokenRequest {
            grant_type: DEVICE_GRANT.to_owned(),
            client_id: Some(CLI_CLIENT.to_owned()),
            device_code: Some(device_code.to_owned()),
            ..TokenRequest::default()
        };
        match self.token(&form).await {
            Ok(tokens) => Ok(DeviceWait::Done(tokens)),
            Err(ClientError::OAuth { error, .. }) if error == "authorization_pending" => {
                Ok(DeviceWait::Pending(interval))
            }
            // RFC 8628 section 3.5: five seconds more from now on.
            Err(ClientError::OAuth { error, .. }) if error == "slow_down" => {
                Ok(DeviceWait::Pending(interval + Duration::from_secs(5)))
            }
            Err(ClientError::OAuth { error, .. }) if error == "expired_token" => {
                Err(ClientError::DeviceExpired)
            }
            Err(other) => Err(other),
        }
    }

    /// The next pair of tokens. A refresh token works once; using it again ends the session.
    ///
    /// # Errors
    /// [`ClientError::OAuth`] `invalid_grant` when the session has ended.
    pub async fn refresh(&self, refresh_token: &str) -> Result<TokenResponse> {
        let form = TokenRequest {
            grant_type: "refresh_token".to_owned(),
            client_id: Some(CLI_CLIENT.to_owned()),
            refresh_token: Some(refresh_token.to_owned()),
            ..TokenRequest::default()
        };
        self.token(&form).await
    }

    /// A service account's access token.
    ///
    /// # Errors
    /// [`ClientError::OAuth`] when the id or the secret is wrong.
    pub async fn client_credentials(&self, client_id: &str, client_secret: &str) -> Result<TokenResponse> {
        let form = TokenRequest {
            grant_type: "client_credentials".to_owned(),
            client_id: Some(client_id.to_owned()),
            client_secret: Some(client_secret.to_owned()),
            ..TokenRequest::default()
        };
        self.token(&form).await
    }

    async fn token(&self, form: &TokenRequest) -> Result<TokenResponse> {
        self.json(self.request(Method::POST, "/oauth2/token").form(form))
            .await
    }

    /// Ends the session of a refresh token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke(&self, refresh_token: &str) -> Result<()> {
        let form = RevokeRequest {
            token: refresh_token.to_owned(),
            token_type_hint: None,
        };
        self.json(self.request(Method::POST, "/oauth2/revoke").form(&form))
            .await
    }

    /// Who the caller is.
    ///
    /// # Errors
    /// [`ClientError`], as every call below.
    pub async fn whoami(&self) -> Result<WhoAmI> {
        self.get("/v1/whoami").await
    }

    /// Changes the caller's own password.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_password(&self, change: &PasswordChange) -> Result<()> {
        self.post("/v1/whoami/password", change).await
    }

    /// The built-in roles.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn roles(&self) -> Result<Vec<RoleView>> {
        self.list("/v1/roles").await
    }

    /// The organisations that the caller may see.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn organisations(&self) -> Result<Vec<OrganisationView>> {
        self.list("/v1/organisations").await
    }

    /// Adds an organisation.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_organisation(&self, new: &NewOrganisation) -> Result<OrganisationView> {
        self.post("/v1/organisations", new).await
    }

    /// The projects that the caller may see.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn projects(&self) -> Result<Vec<ProjectView>> {
        self.list("/v1/projects").await
    }

    /// Adds a project.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_project(&self, new: &NewProject) -> Result<ProjectView> {
        self.post("/v1/projects", new).await
    }

    /// The users.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn users(&self) -> Result<Vec<UserView>> {
        self.list("/v1/users").await
    }

    /// Adds a user.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_user(&self, new: &NewUser) -> Result<UserView> {
        self.post("/v1/users", new).await
    }

    /// Disables or enables a user.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_user(&self, name: &str, change: &UserChange) -> Result<UserView> {
        self.json(
            self.request(Method::PATCH, &format!("/v1/users/{name}"))
                .json(change),
        )
        .await
    }

    /// The service accounts of a project.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn service_accounts(&self, project: &str) -> Result<Vec<ServiceAccountView>> {
        self.list(&format!("/v1/projects/{project}/service-accounts"))
            .await
    }

    /// Adds a service account.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_service_account(
        &self,
        project: &str,
        new: &NewServiceAccount,
    ) -> Result<ServiceAccountView> {
        self.post(&format!("/v1/projects/{project}/service-accounts"), new)
            .await
    }

    /// Removes a service account and its secrets.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_service_account(&self, project: &str, name: &str) -> Result<()> {
        self.delete(&format!("/v1/projects/{project}/service-accounts/{name}"))
            .await
    }

    /// Makes a secret of a service account.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_secret(&self, project: &str, account: &str) -> Result<NewSecret> {
        self.json(self.request(
            Method::POST,
            &format!("/v1/projects/{project}/service-accounts/{account}/secrets"),
        ))
        .await
    }

    /// The groups.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn groups(&self) -> Result<Vec<GroupView>> {
        self.list("/v1/groups").await
    }

    /// Makes a group, or gives one its members.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_group(&self, name: &str, members: &GroupMembers) -> Result<GroupView> {
        self.json(
            self.request(Method::PUT, &format!("/v1/groups/{name}"))
                .json(members),
        )
        .await
    }

    /// Removes a group.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_group(&self, name: &str) -> Result<()> {
        self.delete(&format!("/v1/groups/{name}")).await
    }

    /// The bindings on a place.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn bindings(&self, on: &str) -> Result<Vec<BindingView>> {
        self.list(&format!("/v1/bindings?on={on}")).await
    }

    /// Grants.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_binding(&self, new: &NewBinding) -> Result<BindingView> {
        self.post("/v1/bindings", new).await
    }

    /// Takes a grant away.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_binding(&self, id: &str) -> Result<()> {
        self.delete(&format!("/v1/bindings/{id}")).await
    }

    /// Decides and says why.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check(&self, request: &CheckRequest) -> Result<CheckAnswer> {
        self.post("/v1/check", request).await
    }

    /// The changes, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit(&self, limit: u32) -> Result<Page<AuditView>> {
        self.json(self.request(Method::GET, "/v1/audit").query(&[("limit", limit)]))
            .await
    }

    /// A new certificate for the identity that this client shows.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn renew_certificate(&self, request: &RenewRequest) -> Result<RenewAnswer> {
        self.post("/v1/certificates/renew", request).await
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
        return ClientError::Api {
            kind: error.kind,
            message: error.message,
            hint: error.hint,
            request_id: error.request_id,
        };
    }
    if let Ok(OAuthError {
        error,
        error_description,
    }) = serde_json::from_slice(body)
    {
        let description = error_description.unwrap_or_else(|| error.clone());
        return ClientError::OAuth { error, description };
    }
    ClientError::Unexpected {
        status: status.as_u16(),
    }
}
