//! A user's name and password, and the token that Chainfire gives for them.
//!
//! The token is asked for before the first call, kept by all clones, sent as `token` metadata, and asked for again when
//! a server says that it holds no more: tokens end by time, and with every change of users, roles and permissions.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::wire::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};

/// The metadata that carries the token.
const TOKEN: &str = "token";
/// What a server says of a token that it does not take (any more). Neither was applied.
const STALE: &[&str] = &[
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
];
/// What a server says while nobody needs to sign in.
const OFF: &str = "etcdserver: authentication is not enabled";

type Token = MetadataValue<tonic::metadata::Ascii>;

/// A channel that adds the token, where there is one.
pub(crate) type Link = InterceptedService<Channel, Attach>;

/// Adds the token to a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attach(Option<Arc<Login>>);

impl Interceptor for Attach {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.0.as_ref().and_then(|login| login.token()) {
            request.metadata_mut().insert(TOKEN, token);
        }
        Ok(request)
    }
}

/// Who a client is by name, with the token in use.
pub(crate) struct Login {
    name: String,
    password: String,
    token: RwLock<Option<Token>>,
    /// One sign-in at a time, so that a hundred calls with an old token sign in once.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Login {
    pub(crate) fn new(name: String, password: String) -> Login {
        Login {
            name,
            password,
            token: RwLock::default(),
            turn: Mutex::default(),
        }
    }

    fn token(&self) -> Option<Token> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, token: Option<Token>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Signs in unless there is a token. A cluster without users needs none.
    async fn ensure(&self, channel: Channel) -> Result<(), Status> {
        if self.token().is_some() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.token().is_some() {
            return Ok(());
        }
        let ask = AuthenticateRequest {
            name: self.name.clone(),
            password: self.password.clone(),
        };
        let token = match AuthClient::new(channel).authenticate(ask).await {
            Ok(reply) => reply.into_inner().token,
            Err(status) if status.message() == OFF => return Ok(()),
            Err(status) => return Err(status),
        };
        let token = MetadataValue::try_from(token)
            .map_err(|_| Status::internal("the server gave a token that is no metadata"))?;
        self.set(Some(token));
        Ok(())
    }
}

/// A channel as whoever the client is, signed in where it has a name.
pub(crate) async fn sign_in(login: Option<&Arc<Login>>, channel: Channel) -> Result<Link, Status> {
    if let Some(login) = login {
        login.ensure(channel.clone()).await?;
    }
    Ok(link(login, channel))
}

/// The same with the token at hand, if any.
pub(crate) fn link(login: Option<&Arc<Login>>, channel: Channel) -> Link {
    InterceptedService::new(channel, Attach(login.cloned()))
}

/// Whether a call was refused for its token and is to be repeated with a new one; forgets the token then. A client
/// without a name, and one that held no token, has nothing better to offer.
pub(crate) fn renews(login: Option<&Arc<Login>>, message: &str) -> bool {
    let Some(login) = login else {
        return false;
    };
    let stale =
        STALE.contains(&message) || (message == "etcdserver: user name is empty" && login.token().is_none());
    if stale {
        login.set(None);
    }
    stale
}
