//! Signed tokens (RFC 7519): every member that has the public key recognises them, whoever signed them.
//!
//! They carry the user and the revision of auth that they were made under; under any later one they are refused.

use std::{path::PathBuf, time::Duration};

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::tokens::DEFAULT_TTL_S;

/// Why signed tokens cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtProblem {
    /// An option that does not exist.
    #[error("there is no option `{0}`; there are pub-key, priv-key, sign-method and ttl")]
    Unknown(String),
    /// The method of signing.
    #[error(
        "`{0}` is no sign-method that is served; take one of HS256, RS256, PS256, ES256 (or their 384 and, but for ES, 512) or EdDSA"
    )]
    Method(String),
    /// The time to live.
    #[error("`{0}` is no ttl; write for example 10m or 90s")]
    Ttl(String),
    /// A key's file.
    #[error("cannot read the key `{path}`: {why}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A key of another kind.
    #[error("the {which} does not fit the sign-method; it has to be PEM (the private one PKCS#8)")]
    Key {
        /// The option that names it.
        which: &'static str,
    },
    /// A key too few.
    #[error("{0} is needed for this sign-method")]
    Missing(&'static str),
    /// Keys of two pairs.
    #[error("pub-key and priv-key do not belong together")]
    Mismatch,
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// Makes and recognises signed tokens.
pub(crate) struct Jwt {
    header: Header,
    /// Absent: this member only recognises them.
    sign: Option<EncodingKey>,
    verify: DecodingKey,
    validation: Validation,
    ttl: Duration,
}

impl Jwt {
    /// Reads the keys that the options name.
    pub(crate) fn load(options: &[(String, String)]) -> Result<Jwt, JwtProblem> {
        let mut keys: [Option<Vec<u8>>; 2] = [None, None];
        let mut method = "";
        let mut ttl = Duration::from_secs(DEFAULT_TTL_S);
        for (name, value) in options {
            match name.as_str() {
                "pub-key" => keys[0] = read(value)?,
                "priv-key" => keys[1] = read(value)?,
                "sign-method" => method = value,
                "ttl" if value.is_empty() => {}
                "ttl" => ttl = go_duration(value).ok_or_else(|| JwtProblem::Ttl(value.clone()))?,
                other => return Err(JwtProblem::Unknown(other.to_owned())),
            }
        }
        let algorithm: Algorithm = method
            .parse()
            .map_err(|_| JwtProblem::Method(method.to_owned()))?;
        let [public, private] = keys;
        Jwt::new(algorithm, public.as_deref(), private.as_deref(), ttl)
    }

    pub(crate) fn new(
        algorithm: Algorithm,
        public: Option<&[u8]>,
        private: Option<&[u8]>,
        ttl: Duration,
    ) -> Result<Jwt, JwtProblem> {
        let (sign, verify) = keys(algorithm.family(), public, private)?;
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        // One without an end is made by hand only, with the private key; etcd takes it too.
        validation.required_spec_claims.clear();
        let jwt = Jwt {
            header: Header::new(algorithm),
            sign,
            verify,
            validation,
            ttl,
        };
        if jwt.sign.is_some()
            && jwt
                .sign("probe", 1)
                .and_then(|token| jwt.verify(&token))
                .is_none()
        {
            return Err(JwtProblem::Mismatch);
        }
        Ok(jwt)
    }

    /// A token of a user under a revision of auth; `None` without a private key.
    pub(crate) fn sign(&self, username: &str, revision: u64) -> Option<String> {
        let exp = jsonwebtoken::get_current_timestamp() + self.ttl.as_secs().max(1);
        let claims = Claims {
            username: username.to_owned(),
            revision,
            exp: Some(exp),
        };
        jsonwebtoken::encode(&self.header, &claims, self.sign.as_ref()?).ok()
    }

    /// User and revision of a token that is valid now.
    pub(crate) fn verify(&self, token: &str) -> Option<(String, u64)> {
        let data = jsonwebtoken::decode::<Claims>(token, &self.verify, &self.validation).ok()?;
        Some((data.claims.username, data.claims.revision))
    }
}

fn read(path: &str) -> Result<Option<Vec<u8>>, JwtProblem> {
    if path.is_empty() {
        return Ok(None);
    }
    std::fs::read(path).map(Some).map_err(|error| JwtProblem::File {
        path: path.into(),
        why: error.to_string(),
    })
}

fn keys(
    family: AlgorithmFamily,
    public: Option<&[u8]>,
    private: Option<&[u8]>,
) -> Result<(Option<EncodingKey>, DecodingKey), JwtProblem> {
    if family == AlgorithmFamily::Hmac {
        // One key for both.
        let secret = private.filter(|key| !key.is_empty());
        let secret = secret.ok_or(JwtProblem::Missing("priv-key"))?;
        return Ok((
            Some(EncodingKey::from_secret(secret)),
            DecodingKey::from_secret(secret),
        ));
    }
    let public = public.ok_or(JwtProblem::Missing("pub-key"))?;
    let (sign, verify) = match family {
        AlgorithmFamily::Rsa => (
            private.map(EncodingKey::from_rsa_pem),
            DecodingKey::from_rsa_pem(public),
        ),
        AlgorithmFamily::Ec => (
            private.map(EncodingKey::from_ec_pem),
            DecodingKey::from_ec_pem(public),
        ),
        _ => (
            private.map(EncodingKey::from_ed_pem),
            DecodingKey::from_ed_pem(public),
        ),
    };
    let sign = sign
        .transpose()
        .map_err(|_| JwtProblem::Key { which: "priv-key" })?;
    let verify = verify.map_err(|_| JwtProblem::Key { which: "pub-key" })?;
    Ok((sign, verify))
}

/// A duration as Go writes it, in whole units: `1h30m`, `90s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    (!sum.is_zero()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hmac(secret: &str, ttl: Duration) -> Jwt {
        Jwt::new(Algorithm::HS256, None, Some(secret.as_bytes()), ttl).unwrap()
    }

    #[test]
    fn a_token_comes_back_from_the_same_key_only() {
        let jwt = hmac("one", Duration::from_secs(60));
        let token = jwt.sign("alice", 7).unwrap();
        assert_eq!(jwt.verify(&token), Some(("alice".to_owned(), 7)));
        assert_eq!(hmac("two", Duration::from_secs(60)).verify(&token), None);
        let other = Jwt::new(Algorithm::HS384, None, Some(b"one"), Duration::from_secs(60)).unwrap();
        assert_eq!(other.verify(&token), None, "another method with the same key");
        for wrong in ["", "x", "a.b.c", "abc.5"] {
            assert_eq!(jwt.verify(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_ended_token_is_none() {
        let jwt = hmac("one", Duration::from_secs(60));
        let now = jsonwebtoken::get_current_timestamp();
        let made = |exp| {
            let claims = Claims {
                username: "alice".into(),
                revision: 7,
                exp,
            };
            jsonwebtoken::encode(&jwt.header, &claims, jwt.sign.as_ref().unwrap()).unwrap()
        };
        assert_eq!(jwt.verify(&made(Some(now - 2))), None);
        assert!(jwt.verify(&made(Some(now + 60))).is_some());
        assert!(jwt.verify(&made(None)).is_some());
    }

    #[test]
    fn no_key_is_taken_for_another_and_none_does_without() {
        let ttl = Duration::from_secs(60);
        let none = |algorithm, public, private| Jwt::new(algorithm, public, private, ttl).err().unwrap();
        assert_eq!(
            none(Algorithm::HS256, None, None),
            JwtProblem::Missing("priv-key")
        );
        assert_eq!(none(Algorithm::RS256, None, None), JwtProblem::Missing("pub-key"));
        assert_eq!(
            none(Algorithm::ES256, Some(b"rubbish"), None),
            JwtProblem::Key { which: "pub-key" }
        );
        let options = |list: &[(&str, &str)]| {
            let list: Vec<_> = list
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect();
            Jwt::load(&list).err().unwrap()
        };
        assert_eq!(options(&[]), JwtProblem::Method(String::new()));
        assert_eq!(
            options(&[("sign-method", "none")]),
            JwtProblem::Method("none".into())
        );
        assert_eq!(
            options(&[("colour", "red")]),
            JwtProblem::Unknown("colour".into())
        );
        assert_eq!(options(&[("ttl", "soon")]), JwtProblem::Ttl("soon".into()));
    }

    #[test]
    fn durations_are_gos() {
        let table = [
            ("10m", Some(600_000)),
            ("1h30m", Some(5_400_000)),
            ("90s", Some(90_000)),
            ("250ms", Some(250)),
            ("", None),
            ("10", None),
            ("m", None),
            ("0s", None),
            ("1d", None),
        ];
        for (text, millis) in table {
            assert_eq!(go_duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
