//! Tokens: random ones that every member remembers, or signed ones that nobody has to.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::RngExt;

use super::jwt::{Jwt, JwtProblem};

/// Tokens remembered; the ones that would end first make room.
const MAX_TOKENS: usize = 65_536;
/// Letters of a random token: 22 of 52 are 125 bits.
const TOKEN_LETTERS: usize = 22;
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// How long a token lives after its last use, seconds (etcd's default).
pub(crate) const DEFAULT_TTL_S: u64 = 300;
/// How often ended tokens are looked for, at most.
const SWEEP: Duration = Duration::from_secs(10);

/// What `auth_token` in the configuration asks for, in etcd's notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenConfig {
    Simple,
    /// Options by name.
    Jwt(Vec<(String, String)>),
}

/// Why `auth_token` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenConfigProblem {
    /// Neither `simple` nor `jwt`.
    #[error(
        "[chainfire] auth_token is `{0}`; it is `simple` or `jwt,pub-key=...,priv-key=...,sign-method=...,ttl=...`"
    )]
    Kind(String),
    /// Not `name=value`, or twice.
    #[error("[chainfire] auth_token: the option `{0}` is not of the form name=value, or stands there twice")]
    Option(String),
    /// The keys or the method of signing.
    #[error("[chainfire] auth_token: {0}")]
    Jwt(#[from] JwtProblem),
}

impl TokenConfig {
    pub(crate) fn parse(text: &str) -> Result<TokenConfig, TokenConfigProblem> {
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options: Vec<(String, String)> = Vec::new();
        for part in parts {
            let pair = part
                .split_once('=')
                .filter(|(name, value)| !value.contains('=') && options.iter().all(|(held, _)| held != name));
            let (name, value) = pair.ok_or_else(|| TokenConfigProblem::Option(part.to_owned()))?;
            options.push((name.to_owned(), value.to_owned()));
        }
        match kind {
            "simple" => Ok(TokenConfig::Simple),
            "jwt" => Ok(TokenConfig::Jwt(options)),
            other => Err(TokenConfigProblem::Kind(other.to_owned())),
        }
    }
}

/// How tokens are made and recognised.
pub(crate) enum TokenProvider {
    /// By the log: see [`Tokens`].
    Simple,
    Jwt(Box<Jwt>),
}

impl TokenProvider {
    /// Reads the keys that the configuration names.
    pub(crate) fn new(config: &TokenConfig) -> Result<TokenProvider, TokenConfigProblem> {
        Ok(match config {
            TokenConfig::Simple => TokenProvider::Simple,
            TokenConfig::Jwt(options) => TokenProvider::Jwt(Box::new(Jwt::load(options)?)),
        })
    }
}

/// The random part of a new token.
pub(crate) fn random_token() -> String {
    let mut random = rand::rng();
    (0..TOKEN_LETTERS)
        .filter_map(|_| LETTERS.get(random.random_range(0..LETTERS.len())))
        .map(|letter| char::from(*letter))
        .collect()
}

/// The log entry that a random token says it came from.
pub(crate) fn token_index(token: &str) -> Option<u64> {
    let (_, index) = token.split_once('.')?;
    index.parse().ok()
}

/// The tokens that a member knows, each with its user and the user's `since`. They come from the log, so all members
/// know them, but each counts the time by itself and none of them remembers over a restart: clients then authenticate
/// again by themselves.
#[derive(Debug)]
pub(crate) struct Tokens(Mutex<Held>);

#[derive(Debug)]
struct Held {
    tokens: HashMap<String, Token>,
    ttl: Duration,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Token {
    user: String,
    since: u64,
    ends: Instant,
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens(Mutex::new(Held {
            tokens: HashMap::new(),
            ttl: Duration::from_secs(DEFAULT_TTL_S),
            swept: None,
        }))
    }
}

impl Tokens {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how long tokens live after their last use.
    pub(crate) fn set_ttl(&self, ttl: Duration) {
        self.held().ttl = ttl;
    }

    /// Remembers a token.
    pub(crate) fn give(&self, token: String, user: String, since: u64, now: Instant) {
        let mut held = self.held();
        let due = held.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP);
        if due || held.tokens.len() >= MAX_TOKENS {
            held.tokens.retain(|_, token| token.ends > now);
            held.swept = Some(now);
        }
        if held.tokens.len() >= MAX_TOKENS {
            let first = held.tokens.iter().min_by_key(|(_, token)| token.ends);
            if let Some(first) = first.map(|(token, _)| token.clone()) {
                held.tokens.remove(&first);
            }
        }
        let ends = now + held.ttl;
        held.tokens.insert(token, Token { user, since, ends });
    }

    /// Whose token it is; it lives on from now.
    pub(crate) fn find(&self, token: &str, now: Instant) -> Option<(String, u64)> {
        let mut held = self.held();
        let ttl = held.ttl;
        let found = held.tokens.get_mut(token).filter(|token| token.ends > now)?;
        found.ends = now + ttl;
        Some((found.user.clone(), found.since))
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        self.held().tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_is_etcds() {
        assert_eq!(TokenConfig::parse("simple"), Ok(TokenConfig::Simple));
        let options = vec![
            ("pub-key".to_owned(), "a.pem".to_owned()),
            ("ttl".to_owned(), "10m".to_owned()),
        ];
        assert_eq!(
            TokenConfig::parse("jwt,pub-key=a.pem,ttl=10m"),
            Ok(TokenConfig::Jwt(options))
        );
        for wrong in ["", "Simple", "jwt,a", "jwt,a=b=c", "jwt,a=b,a=c", "other,a=b"] {
            assert!(TokenConfig::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_lives_from_its_last_use_and_is_forgotten_after() {
        let tokens = Tokens::default();
        let mut now = Instant::now();
        tokens.give("t.1".into(), "alice".into(), 3, now);
        tokens.give("u.2".into(), "bob".into(), 4, now);
        let step = Duration::from_secs(DEFAULT_TTL_S - 1);
        for _ in 0..2 {
            now += step;
            assert_eq!(tokens.find("t.1", now), Some(("alice".into(), 3)));
        }
        assert_eq!(tokens.find("u.2", now), None);
        tokens.give("v.3".into(), "bob".into(), 4, now);
        assert_eq!(
            tokens.held().tokens.len(),
            2,
            "ended tokens go when new ones come"
        );
        tokens.clear();
        assert_eq!(tokens.find("t.1", now), None);
    }

    #[test]
    fn the_token_that_would_end_first_makes_room() {
        let tokens = Tokens::default();
        let start = Instant::now();
        for n in 0..u64::try_from(MAX_TOKENS).unwrap() {
            tokens.give(
                format!("t.{n}"),
                "alice".into(),
                1,
                start + Duration::from_micros(n),
            );
        }
        assert!(tokens.find("t.0", start + Duration::from_secs(1)).is_some());
        tokens.give("new".into(), "bob".into(), 1, start + Duration::from_secs(1));
        assert_eq!(tokens.held().tokens.len(), MAX_TOKENS);
        assert!(tokens.find("t.0", start + Duration::from_secs(2)).is_some());
        assert!(tokens.find("t.1", start + Duration::from_secs(2)).is_none());
    }

    #[test]
    fn random_tokens_differ_and_name_their_entry() {
        let token = random_token();
        assert_eq!(token.len(), TOKEN_LETTERS);
        assert_ne!(token, random_token());
        assert_eq!(token_index(&format!("{token}.77")), Some(77));
        for strange in ["", "a", "a.", "a.b", "a.1.2", "a.-1"] {
            assert_eq!(token_index(strange), None, "{strange}");
        }
    }
}
