//! Every way known to us of forging an access token, each refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use hearth_types::PrincipalId;
use iam_authn::token::{AccessClaims, Expectation, KeySet, PublicKey, SigningKey, TokenError, sign, verify};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const EXPECT: Expectation<'static> = Expectation {
    issuer: "https://aegis.test",
    audience: "hearth",
};

struct Bench {
    pair: KeyPair,
    key: SigningKey,
    keys: KeySet,
    public: PublicKey,
}

fn bench() -> Bench {
    let pair = KeyPair::generate().unwrap();
    let public = PublicKey::from_point("k1", pair.der_bytes()).unwrap();
    let mut keys = KeySet::default();
    keys.insert(public.clone()).unwrap();
    let key = SigningKey::from_pkcs8_der("k1", &pair.serialize_der());
    Bench {
        pair,
        key,
        keys,
        public,
    }
}

fn claims() -> AccessClaims {
    AccessClaims {
        iss: EXPECT.issuer.to_owned(),
        sub: "0199c2f2-7d3c-7a53-9b7e-2f6f0a4b1c2d"
            .parse::<PrincipalId>()
            .unwrap(),
        aud: EXPECT.audience.to_owned(),
        exp: NOW + 300,
        iat: NOW,
        jti: "t1".to_owned(),
        client_id: "hearth-cli".to_owned(),
        epoch: 1,
    }
}

fn b64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

impl Bench {
    fn check(&self, token: &str) -> Result<AccessClaims, TokenError> {
        verify(token, &self.keys, EXPECT, NOW)
    }

    /// Any header, any claims, signed properly with the real key.
    fn signed(&self, header: &Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            b64(header.to_string().as_bytes()),
            b64(claims.to_string().as_bytes())
        );
        let key = EncodingKey::from_ec_der(&self.pair.serialize_der());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::ES256).unwrap();
        format!("{message}.{signature}")
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"})
}

#[test]
fn a_good_token_passes() {
    let bench = bench();
    let token = sign(&claims(), &bench.key).unwrap();
    assert_eq!(bench.check(&token), Ok(claims()));
    assert_eq!(
        bench.check(&bench.signed(&header(), &serde_json::to_value(claims()).unwrap())),
        Ok(claims())
    );
}

#[test]
fn algorithms_of_the_callers_choice_are_refused() {
    let bench = bench();
    let body = serde_json::to_value(claims()).unwrap();
    for alg in [
        "none", "None", "NONE", "", "HS256", "RS256", "ES384", "EdDSA", "es256",
    ] {
        let token = bench.signed(&json!({"alg": alg, "typ": "at+jwt", "kid": "k1"}), &body);
        assert_eq!(bench.check(&token), Err(TokenError::Malformed), "{alg}");
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        assert!(bench.check(&unsigned).is_err(), "{alg} without a signature");
    }
    assert_eq!(
        bench.check(&bench.signed(&json!({"typ": "at+jwt", "kid": "k1"}), &body)),
        Err(TokenError::Malformed)
    );
}

#[test]
fn the_public_key_is_no_hmac_secret() {
    let bench = bench();
    for secret in [
        bench.pair.public_key_pem().into_bytes(),
        bench.pair.der_bytes().to_vec(),
        bench.public.x.clone().into_bytes(),
    ] {
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some("k1".to_owned());
        let token = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap();
        assert_eq!(bench.check(&token), Err(TokenError::Malformed));
        // The same signature under a header that claims ES256.
        let (_, rest) = token.split_once('.').unwrap();
        let forged = format!(
            "{}.{rest}",
            b64(json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"})
                .to_string()
                .as_bytes())
        );
        assert!(bench.check(&forged).is_err());
    }
}

#[test]
fn a_token_cannot_bring_or_point_to_its_key() {
    let bench = bench();
    let body = serde_json::to_value(claims()).unwrap();
    let other = KeyPair::generate().unwrap();
    let own = PublicKey::from_point("k1", other.der_bytes()).unwrap().to_jwk();
    for (member, value) in [
        ("jwk", own),
        ("jku", json!("https://evil.test/jwks")),
        ("x5u", json!("https://evil.test/chain")),
        ("x5c", json!(["AAAA"])),
        ("crit", json!(["b64"])),
        ("b64", json!(false)),
        ("cty", json!("JWT")),
    ] {
        let mut header = header();
        header[member] = value;
        assert_eq!(
            bench.check(&bench.signed(&header, &body)),
            Err(TokenError::Malformed),
            "{member}"
        );
    }
    for kid in ["k2", "", "../../dev/null", "k1\u{0}", "K1", "' or 1=1"] {
        let token = bench.signed(&json!({"alg": "ES256", "typ": "at+jwt", "kid": kid}), &body);
        assert_eq!(bench.check(&token), Err(TokenError::UnknownKey), "{kid:?}");
    }
    let foreign = SigningKey::from_pkcs8_der("k1", &other.serialize_der());
    assert_eq!(
        bench.check(&sign(&claims(), &foreign).unwrap()),
        Err(TokenError::Signature)
    );
}

#[test]
fn other_types_of_token_are_refused() {
    let bench = bench();
    let body = serde_json::to_value(claims()).unwrap();
    for typ in [
        "JWT",
        "jwt",
        "id_token",
        "logout+jwt",
        "AT+JWT",
        "application/at+jwt",
        "",
    ] {
        let token = bench.signed(&json!({"alg": "ES256", "typ": typ, "kid": "k1"}), &body);
        assert_eq!(bench.check(&token), Err(TokenError::Malformed), "{typ}");
    }
    assert!(
        bench
            .check(&bench.signed(&json!({"alg": "ES256", "kid": "k1"}), &body))
            .is_err()
    );
}

type Edit = fn(&mut Value);

#[test]
fn wrong_claims_are_refused() {
    let bench = bench();
    let cases: [(&str, Edit, TokenError); 17] = [
        (
            "issuer",
            |c| c["iss"] = json!("https://aegis.test/"),
            TokenError::Issuer,
        ),
        ("audience", |c| c["aud"] = json!("other"), TokenError::Audience),
        (
            "audience list",
            |c| c["aud"] = json!(["hearth", "other"]),
            TokenError::Malformed,
        ),
        ("expired", |c| c["exp"] = json!(NOW), TokenError::Expired),
        (
            "long expired",
            |c| {
                c["exp"] = json!(NOW - 1000);
                c["iat"] = json!(NOW - 1300);
            },
            TokenError::Expired,
        ),
        (
            "text for exp",
            |c| c["exp"] = json!((NOW + 300).to_string()),
            TokenError::Malformed,
        ),
        ("negative exp", |c| c["exp"] = json!(-1), TokenError::Malformed),
        ("fraction", |c| c["exp"] = json!(1.9e9), TokenError::Malformed),
        (
            "no exp",
            |c| {
                c.as_object_mut().unwrap().remove("exp");
            },
            TokenError::Malformed,
        ),
        (
            "no aud",
            |c| {
                c.as_object_mut().unwrap().remove("aud");
            },
            TokenError::Malformed,
        ),
        (
            "no iss",
            |c| {
                c.as_object_mut().unwrap().remove("iss");
            },
            TokenError::Malformed,
        ),
        (
            "no epoch",
            |c| {
                c.as_object_mut().unwrap().remove("epoch");
            },
            TokenError::Malformed,
        ),
        (
            "no iat",
            |c| {
                c.as_object_mut().unwrap().remove("iat");
            },
            TokenError::Malformed,
        ),
        (
            "lives too long",
            |c| c["exp"] = json!(NOW + 3600),
            TokenError::Times,
        ),
        (
            "from the future",
            |c| {
                c["iat"] = json!(NOW + 100);
                c["exp"] = json!(NOW + 200);
            },
            TokenError::Times,
        ),
        (
            "ends before it begins",
            |c| c["iat"] = json!(NOW + 400),
            TokenError::Times,
        ),
        (
            "sub is no id",
            |c| c["sub"] = json!("admin"),
            TokenError::Malformed,
        ),
    ];
    for (name, edit, expected) in cases {
        let mut body = serde_json::to_value(claims()).unwrap();
        edit(&mut body);
        assert_eq!(
            bench.check(&bench.signed(&header(), &body)),
            Err(expected),
            "{name}"
        );
    }
}

#[test]
fn duplicate_members_are_refused() {
    let bench = bench();
    let body = serde_json::to_string(&claims()).unwrap().replacen(
        '{',
        "{\"sub\":\"0199c2f2-7d3c-7a53-9b7e-2f6f0a4b1c2e\",",
        1,
    );
    let message = format!(
        "{}.{}",
        b64(header().to_string().as_bytes()),
        b64(body.as_bytes())
    );
    let key = EncodingKey::from_ec_der(&bench.pair.serialize_der());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::ES256).unwrap();
    assert_eq!(
        bench.check(&format!("{message}.{signature}")),
        Err(TokenError::Malformed)
    );
}

#[test]
fn tampering_is_found_at_every_byte() {
    let bench = bench();
    let token = sign(&claims(), &bench.key).unwrap();
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).unwrap();
        // The last character of a part has bits that base64url ignores or refuses: never another accepted meaning.
        if let Ok(read) = bench.check(&forged) {
            assert_eq!(read, claims(), "byte {at} changed the meaning");
        }
    }
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        &format!("{token}."),
        &format!(" {token}"),
        &format!("{token} "),
        &"x".repeat(5000),
    ] {
        assert!(bench.check(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_removed_key_voids_its_tokens() {
    let mut bench = bench();
    let token = sign(&claims(), &bench.key).unwrap();
    bench.keys.remove("k1");
    assert_eq!(bench.check(&token), Err(TokenError::UnknownKey));
}

#[test]
fn no_token_is_made_that_lives_too_long() {
    let bench = bench();
    let mut claims = claims();
    claims.exp = claims.iat + 601;
    assert_eq!(sign(&claims, &bench.key), Err(TokenError::Times));
}
