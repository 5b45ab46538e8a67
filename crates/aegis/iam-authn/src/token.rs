//! Access tokens: JWTs of the profile of RFC 9068, signed with ES256 (RFC 7518 section 3.4).
//!
//! Strict on purpose: the header is exactly `{alg, typ, kid}`; a token that brings its own key, a chain, a link to
//! one, or an algorithm of its choice is refused before any key is looked at.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hearth_types::PrincipalId;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

/// Longest life of an access token, in seconds.
pub const MAX_LIFETIME_S: u64 = 600;
/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_LENGTH: usize = 4096;
/// How far an issuer's clock may be ahead of ours, in seconds. Expiry has no such slack.
const CLOCK_SLACK_S: u64 = 30;
const TYPE: &str = "at+jwt";

/// What a token says (RFC 9068 section 2.2, and `epoch`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessClaims {
    /// Who issued it: Aegis's public URL.
    pub iss: String,
    /// Whom it is about.
    pub sub: PrincipalId,
    /// For whom it is meant.
    pub aud: String,
    /// End of its life, in seconds since 1970.
    pub exp: u64,
    /// When it was issued, in seconds since 1970.
    pub iat: u64,
    /// Its own id.
    pub jti: String,
    /// The client that asked for it, for example `hearth-cli`.
    pub client_id: String,
    /// The principal's epoch at that time: raising the principal's epoch voids the token.
    pub epoch: u64,
}

/// The public half of a signing key, as JWKS shows it (RFC 7517, RFC 7518 section 6.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// The key's id.
    pub kid: String,
    /// First coordinate, base64url.
    pub x: String,
    /// Second coordinate, base64url.
    pub y: String,
}

/// A key of a [`KeySet`] that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing key `{0}` is not a P-256 key")]
pub struct KeyError(String);

/// The keys that tokens may be signed with.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: BTreeMap<String, (PublicKey, DecodingKey)>,
}

/// The private half of a signing key.
pub struct SigningKey {
    kid: String,
    key: EncodingKey,
}

/// What a verifier insists on.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The issuer.
    pub issuer: &'a str,
    /// The audience.
    pub audience: &'a str,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT of our profile.
    #[error("the token is not an access token of this cluster")]
    Malformed,
    /// Signed with a key that is not (or no longer) in the set.
    #[error("the token is signed with a key that this cluster does not use")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    Signature,
    /// Issued by somebody else.
    #[error("the token comes from another issuer")]
    Issuer,
    /// Meant for somebody else.
    #[error("the token is meant for another audience")]
    Audience,
    /// Its life is over.
    #[error("the token has expired; run `hearth login` again")]
    Expired,
    /// Its times make no sense: issued in the future or living too long.
    #[error("the token's times are not plausible; compare the clocks of the machines")]
    Times,
}

impl PublicKey {
    /// From the uncompressed point of a P-256 key: 0x04, then two times 32 bytes (SEC 1 section 2.3.3).
    ///
    /// # Errors
    /// [`KeyError`] when `point` is anything else.
    pub fn from_point(kid: &str, point: &[u8]) -> Result<Self, KeyError> {
        let wrong = || KeyError(kid.to_owned());
        let (4, rest) = point
            .split_first()
            .map(|(tag, rest)| (*tag, rest))
            .ok_or_else(wrong)?
        else {
            return Err(wrong());
        };
        if rest.len() != 64 {
            return Err(wrong());
        }
        let (x, y) = rest.split_at(32);
        Ok(Self {
            kid: kid.to_owned(),
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// The key as a member of a JWKS document.
    #[must_use]
    pub fn to_jwk(&self) -> serde_json::Value {
        serde_json::json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid, "x": self.x, "y": self.y,
        })
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl KeySet {
    /// Adds or replaces a key.
    ///
    /// # Errors
    /// [`KeyError`] when the coordinates are not base64url.
    pub fn insert(&mut self, key: PublicKey) -> Result<(), KeyError> {
        let decoding =
            DecodingKey::from_ec_components(&key.x, &key.y).map_err(|_| KeyError(key.kid.clone()))?;
        self.keys.insert(key.kid.clone(), (key, decoding));
        Ok(())
    }

    /// Removes a key: its tokens are void from now on.
    pub fn remove(&mut self, kid: &str) {
        self.keys.remove(kid);
    }

    /// The keys, by id.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values().map(|(key, _)| key)
    }
}

impl SigningKey {
    /// From a PKCS#8 document in DER form.
    #[must_use]
    pub fn from_pkcs8_der(kid: &str, der: &[u8]) -> Self {
        Self {
            kid: kid.to_owned(),
            key: EncodingKey::from_ec_der(der),
        }
    }

    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

/// Signs a token.
///
/// # Errors
/// [`TokenError::Times`] when it would live longer than [`MAX_LIFETIME_S`], [`TokenError::Signature`] when the key is
/// not usable.
pub fn sign(claims: &AccessClaims, key: &SigningKey) -> Result<String, TokenError> {
    if claims.exp.saturating_sub(claims.iat) > MAX_LIFETIME_S {
        return Err(TokenError::Times);
    }
    let mut header = Header::new(Algorithm::ES256);
    header.typ = Some(TYPE.to_owned());
    header.kid = Some(key.kid.clone());
    jsonwebtoken::encode(&header, claims, &key.key).map_err(|_| TokenError::Signature)
}

/// The only header there is. Anything else in it (`jwk`, `jku`, `x5u`, `x5c`, `crit`, ...) makes parsing fail, and
/// serde refuses a member that stands twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader {
    alg: String,
    typ: String,
    kid: String,
}

/// Checks a token at `now_s` seconds since 1970 and returns what it says.
///
/// # Errors
/// [`TokenError`], the first thing that is wrong. The order tells nothing about keys: the claims are looked at only
/// once the signature is right.
pub fn verify(
    token: &str,
    keys: &KeySet,
    expect: Expectation<'_>,
    now_s: u64,
) -> Result<AccessClaims, TokenError> {
    if token.len() > MAX_TOKEN_LENGTH {
        return Err(TokenError::Malformed);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed);
    };
    let header = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| TokenError::Malformed)?;
    let header: StrictHeader = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
    if header.alg != "ES256" || header.typ != TYPE {
        return Err(TokenError::Malformed);
    }
    let (_, key) = keys.keys.get(&header.kid).ok_or(TokenError::UnknownKey)?;
    let mut validation = Validation::new(Algorithm::ES256);
    // Only the signature is the library's part: it has no clock of ours, and our errors are more precise.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<AccessClaims>(token, key, &validation)
        .map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::Signature,
            _ => TokenError::Malformed,
        })?
        .claims;
    check_claims(&claims, expect, now_s)?;
    Ok(claims)
}

fn check_claims(claims: &AccessClaims, expect: Expectation<'_>, now_s: u64) -> Result<(), TokenError> {
    if claims.iss != expect.issuer {
        return Err(TokenError::Issuer);
    }
    if claims.aud != expect.audience {
        return Err(TokenError::Audience);
    }
    if claims.exp <= now_s {
        return Err(TokenError::Expired);
    }
    let lifetime = claims.exp.checked_sub(claims.iat).ok_or(TokenError::Times)?;
    if lifetime > MAX_LIFETIME_S || claims.iat > now_s.saturating_add(CLOCK_SLACK_S) {
        return Err(TokenError::Times);
    }
    Ok(())
}
