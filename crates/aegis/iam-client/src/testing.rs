//! A cluster's rights in memory, with a key that signs tokens: for the tests of servers that link this crate.

use std::time::{Duration, SystemTime};

use hearth_types::{BindingId, Name, OrganisationId, PrincipalId, ProjectId};
use iam_authn::token::{AccessClaims, MAX_LIFETIME_S, PublicKey, SigningKey, sign};
use iam_authz::{Node, PrincipalKind, Role, Subject};
use rcgen::PublicKeyData;
use uuid::Uuid;

use crate::records::{
    BindingRecord, OrganisationRecord, PrincipalRecord, ProjectRecord, SigningKeyRecord, VERSION,
    binding_key, organisation_key, principal_key, project_key, signing_key_key,
};
use crate::{Authorizer, AuthorizerConfig, Snapshot};

/// The issuer of the tokens of a [`TestWorld`].
pub const ISSUER: &str = "https://aegis.test";
/// The trust domain of a [`TestWorld`].
pub const DOMAIN: &str = "hearth.test";
const KID: &str = "test";

/// A world that tests change and sign tokens for.
#[derive(Debug)]
pub struct TestWorld {
    authorizer: Authorizer,
    key: SigningKey,
    organisation: OrganisationId,
}

/// What a test may run into while it makes a world.
#[derive(Debug, thiserror::Error)]
#[error("the test world cannot be made: {0}")]
pub struct TestWorldError(String);

fn text(name: &str) -> Result<Name, TestWorldError> {
    name.parse().map_err(|error| TestWorldError(format!("{error}")))
}

impl TestWorld {
    /// One organisation, `default`, and a signing key.
    ///
    /// # Errors
    /// [`TestWorldError`] when no key can be made.
    pub fn new() -> Result<Self, TestWorldError> {
        let failed = |error: &dyn std::fmt::Display| TestWorldError(error.to_string());
        let pair = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
        let public = PublicKey::from_point(KID, pair.der_bytes()).map_err(|error| failed(&error))?;
        let config = AuthorizerConfig::new(ISSUER, DOMAIN);
        let world = Self {
            authorizer: Authorizer::from_snapshot(config, Snapshot::empty(), Duration::ZERO),
            key: SigningKey::from_pkcs8_der(KID, &pair.serialize_der()),
            organisation: OrganisationId::from_uuid(Uuid::now_v7()),
        };
        world.put(
            &signing_key_key(KID),
            &SigningKeyRecord {
                v: VERSION,
                key: public,
            },
        );
        let record = OrganisationRecord {
            v: VERSION,
            name: text("default")?,
        };
        world.put(&organisation_key(world.organisation), &record);
        Ok(world)
    }

    /// What a server under test is given.
    #[must_use]
    pub fn authorizer(&self) -> Authorizer {
        self.authorizer.clone()
    }

    fn put<T: serde::Serialize>(&self, key: &str, record: &T) {
        // Records are plain structs: writing them cannot fail.
        let value = serde_json::to_vec(record).unwrap_or_default();
        self.authorizer
            .apply(self.authorizer.revision() + 1, [(key, Some(value.as_slice()))]);
    }

    /// Adds a project.
    ///
    /// # Errors
    /// [`TestWorldError`] when `name` is none.
    pub fn project(&self, name: &str) -> Result<ProjectId, TestWorldError> {
        let id = ProjectId::from_uuid(Uuid::now_v7());
        let record = ProjectRecord {
            v: VERSION,
            name: text(name)?,
            organisation: self.organisation,
            folder: None,
        };
        self.put(&project_key(id), &record);
        Ok(id)
    }

    /// Adds a user.
    ///
    /// # Errors
    /// [`TestWorldError`] when `name` is none.
    pub fn user(&self, name: &str) -> Result<PrincipalId, TestWorldError> {
        let id = PrincipalId::from_uuid(Uuid::now_v7());
        self.put(&principal_key(id), &self.record(name, false, 0)?);
        Ok(id)
    }

    #[expect(clippy::unused_self, reason = "reads better beside the others")]
    fn record(&self, name: &str, disabled: bool, epoch: u64) -> Result<PrincipalRecord, TestWorldError> {
        Ok(PrincipalRecord {
            v: VERSION,
            kind: PrincipalKind::User,
            name: text(name)?,
            disabled,
            epoch,
            project: None,
        })
    }

    /// Disables a user.
    ///
    /// # Errors
    /// [`TestWorldError`] when `name` is none.
    pub fn disable(&self, id: PrincipalId, name: &str) -> Result<(), TestWorldError> {
        self.put(&principal_key(id), &self.record(name, true, 1)?);
        Ok(())
    }

    /// Binds a role to a user.
    pub fn bind(&self, user: PrincipalId, role: Role, node: Node) -> BindingId {
        let id = BindingId::from_uuid(Uuid::now_v7());
        self.put(
            &binding_key(id),
            &BindingRecord {
                v: VERSION,
                subject: Subject::User(user),
                role,
                node,
            },
        );
        id
    }

    /// Takes a binding away.
    pub fn unbind(&self, id: BindingId) {
        self.authorizer
            .apply(self.authorizer.revision() + 1, [(binding_key(id).as_str(), None)]);
    }

    /// A valid access token of a user.
    ///
    /// # Errors
    /// [`TestWorldError`] when it cannot be signed.
    pub fn token(&self, user: PrincipalId) -> Result<String, TestWorldError> {
        self.token_at(user, SystemTime::now())
    }

    /// A token of a user that was issued at `at`: in the past, and it has expired.
    ///
    /// # Errors
    /// [`TestWorldError`] when it cannot be signed.
    pub fn token_at(&self, user: PrincipalId, at: SystemTime) -> Result<String, TestWorldError> {
        let iat = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|error| TestWorldError(error.to_string()))?
            .as_secs();
        let claims = AccessClaims {
            iss: ISSUER.to_owned(),
            sub: user,
            aud: crate::DEFAULT_AUDIENCE.to_owned(),
            exp: iat + MAX_LIFETIME_S,
            iat,
            jti: Uuid::now_v7().to_string(),
            client_id: "test".to_owned(),
            epoch: 0,
        };
        sign(&claims, &self.key).map_err(|error| TestWorldError(error.to_string()))
    }
}
