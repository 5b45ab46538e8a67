//! Requests that may be repeated: with an idempotency key, the same request is carried out once and answered the same.
//!
//! The record of a request is written in the transaction of its change. So there is no moment at which the change
//! stands and a repetition would not find it, nor one at which two of them run: the second loses its transaction,
//! looks again, and gives the first one's answer. A request that was refused has changed nothing and leaves nothing.

use chainfire_client::Compare;
use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::ProjectId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::vm::{invalid, now_ms};
use crate::store::records::VERSION;
use crate::store::requests::{Along, RequestRecord};
use crate::store::{Store, encode, keys};

const MAX_KEY: usize = 128;

/// The `Idempotency-Key` of a request, if it has one.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestKey(Option<String>);

impl RequestKey {
    /// Reads the header.
    pub(crate) fn parse(header: Option<&[u8]>) -> Result<Self, ApiError> {
        let Some(bytes) = header else {
            return Ok(Self(None));
        };
        let fits = (1..=MAX_KEY).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        match std::str::from_utf8(bytes) {
            Ok(key) if fits => Ok(Self(Some(key.to_owned()))),
            _ => Err(invalid("the Idempotency-Key header is not usable")
                .hint("use 1 to 128 of a-z, A-Z, 0-9, - and _")),
        }
    }

    pub(crate) fn as_deref(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// One request.
pub(crate) struct Once<'a> {
    store: &'a Store,
    keyed: Option<Keyed>,
}

struct Keyed {
    /// Where its record is.
    at: String,
    call: &'static str,
    sha256: String,
}

impl<'a> Once<'a> {
    /// A request to something in a project, or of the whole cluster: the same key means nothing elsewhere. `what`
    /// is everything that makes it another request.
    pub(crate) fn new(
        store: &'a Store,
        project: Option<ProjectId>,
        key: &RequestKey,
        call: &'static str,
        what: &impl Serialize,
    ) -> Result<Self, ApiError> {
        let Some(key) = key.as_deref() else {
            return Ok(Self { store, keyed: None });
        };
        let keyed = Keyed {
            at: keys::request(project, key),
            call,
            sha256: sha256_of(&(call, what))?,
        };
        Ok(Self {
            store,
            keyed: Some(keyed),
        })
    }

    /// The answer, if this request was carried out before.
    pub(crate) async fn earlier<T: DeserializeOwned>(&self) -> Result<Option<T>, ApiError> {
        let Some(keyed) = &self.keyed else {
            return Ok(None);
        };
        let Some(found) = self.store.request(&keyed.at).await? else {
            return Ok(None);
        };
        if found.value.sha256 != keyed.sha256 {
            return Err(other_request(&found.value.call));
        }
        let answer = serde_json::from_value(found.value.answer);
        answer
            .map(Some)
            .map_err(|error| ApiError::internal("reading the answer to an earlier request", error))
    }

    /// What goes into the transaction that carries it out.
    pub(crate) fn along<T: Serialize>(&self, answer: &T) -> Result<Along, ApiError> {
        let Some(keyed) = &self.keyed else {
            return Ok(Along::default());
        };
        let answer = serde_json::to_value(answer)
            .map_err(|error| ApiError::internal("keeping the answer to a request", error))?;
        let record = RequestRecord {
            version: VERSION,
            call: keyed.call.to_owned(),
            sha256: keyed.sha256.clone(),
            answer,
            at_ms: now_ms(),
        };
        Ok(Along {
            guards: vec![Compare::absent(&keyed.at)],
            writes: vec![encode(&keyed.at, &record)?],
        })
    }

    /// Keeps the answer to a request that found everything as it asks for. False: the same request was faster.
    pub(crate) async fn keep<T: Serialize>(
        &self,
        answer: &T,
        guards: Vec<Compare>,
    ) -> Result<bool, ApiError> {
        if self.keyed.is_none() {
            return Ok(true);
        }
        let mut along = self.along(answer)?;
        along.guards.extend(guards);
        Ok(self.store.keep_answer(along).await?)
    }

    /// Where the record of it is, if it has a key.
    pub(crate) fn at(&self) -> Option<&str> {
        self.keyed.as_ref().map(|keyed| keyed.at.as_str())
    }
}

/// The answer to a key that is spent.
pub(crate) fn other_request(call: &str) -> ApiError {
    let message = format!("this idempotency key was used for another request ({call})");
    ApiError::new(ErrorKind::Conflict, message).hint("use a new key for a new request")
}

pub(crate) fn sha256_of(what: &impl Serialize) -> Result<String, ApiError> {
    let bytes = serde_json::to_vec(what).map_err(|error| ApiError::internal("reading the request", error))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_plain_words() {
        let long = "k".repeat(MAX_KEY);
        for good in ["a", "0190d0c0-0000-7000", "A_b", long.as_str()] {
            assert_eq!(
                RequestKey::parse(Some(good.as_bytes())).unwrap().as_deref(),
                Some(good)
            );
        }
        assert!(RequestKey::parse(None).unwrap().as_deref().is_none());
        let longer = "k".repeat(MAX_KEY + 1);
        for bad in ["", "a b", "a/b", "ä", longer.as_str()] {
            assert!(RequestKey::parse(Some(bad.as_bytes())).is_err(), "{bad}");
        }
    }
}
