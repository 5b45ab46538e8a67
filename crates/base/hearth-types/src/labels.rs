//! Labels on resources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most labels on one resource.
pub const MAX_LABELS: usize = 64;
const MAX_KEY_LENGTH: usize = 63;
const MAX_VALUE_LENGTH: usize = 255;

/// Key and value pairs by which people select resources. At most [`MAX_LABELS`]; keys of 1 to 63 of
/// `a-z 0-9 - _ . /`, values of at most 255 bytes without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// Why a set of pairs is no [`Labels`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// More than [`MAX_LABELS`].
    #[error("{0} labels are too many; a resource may have 64")]
    TooMany(usize),
    /// A key that is empty, too long or has other characters.
    #[error("the label key `{0}` is not allowed; use 1 to 63 of a-z, 0-9, -, _, . and /")]
    Key(String),
    /// A value that is too long or has control characters.
    #[error("the value of label `{0}` is not allowed; use at most 255 bytes without control characters")]
    Value(String),
}

impl Labels {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when every pair of `selector` is among these.
    #[must_use]
    pub fn matches(&self, selector: &Self) -> bool {
        selector.iter().all(|(key, value)| self.get(key) == Some(value))
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelError;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, LabelError> {
        if pairs.len() > MAX_LABELS {
            return Err(LabelError::TooMany(pairs.len()));
        }
        for (key, value) in &pairs {
            let key_fits = (1..=MAX_KEY_LENGTH).contains(&key.len())
                && key
                    .bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/'));
            if !key_fits {
                return Err(LabelError::Key(key.clone()));
            }
            if value.len() > MAX_VALUE_LENGTH || value.chars().any(char::is_control) {
                return Err(LabelError::Value(key.clone()));
            }
        }
        Ok(Self(pairs))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, LabelError> {
        Labels::try_from(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        )
    }

    #[test]
    fn selects_by_every_pair() {
        let node = labels(&[("rack", "a"), ("disk", "nvme")]).unwrap();
        assert!(node.matches(&labels(&[("rack", "a")]).unwrap()));
        assert!(node.matches(&Labels::default()));
        assert!(!node.matches(&labels(&[("rack", "a"), ("gpu", "yes")]).unwrap()));
    }

    #[test]
    fn refuses_bad_keys_and_values() {
        assert!(matches!(labels(&[("", "x")]), Err(LabelError::Key(_))));
        assert!(matches!(labels(&[("A", "x")]), Err(LabelError::Key(_))));
        assert!(matches!(labels(&[("a", "x\n")]), Err(LabelError::Value(_))));
        let many: BTreeMap<_, _> = (0..65).map(|i| (format!("k{i}"), String::new())).collect();
        assert_eq!(Labels::try_from(many), Err(LabelError::TooMany(65)));
    }
}
