//! Names that people choose.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name: one DNS label (RFC 1035 section 2.3.4).
pub const MAX_NAME_LENGTH: usize = 63;

/// A name that is also a DNS label: 1 to 63 of `a-z`, `0-9`, `-`, beginning with a letter, not ending with `-`
/// (RFC 1035 section 2.3.1, lower case only).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name must not be empty; use 1 to 63 of a-z, 0-9 and -")]
    Empty,
    /// More than [`MAX_NAME_LENGTH`] bytes.
    #[error("the name is {0} characters long; use at most 63, because it becomes a DNS label")]
    TooLong(usize),
    /// A character that a DNS label does not allow.
    #[error("the name `{name}` has the character `{character}`; use a-z, 0-9 and -")]
    Character {
        /// The text as given.
        name: String,
        /// The first character at fault.
        character: char,
    },
    /// The first character is no letter.
    #[error("the name `{0}` must begin with a letter a-z")]
    Start(String),
    /// The last character is `-`.
    #[error("the name `{0}` must not end with -")]
    End(String),
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(text: &str) -> Result<(), NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME_LENGTH {
            return Err(NameError::TooLong(text.chars().count()));
        }
        if let Some(character) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(NameError::Character {
                name: text.to_owned(),
                character,
            });
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(NameError::Start(text.to_owned()));
        }
        if text.ends_with('-') {
            return Err(NameError::End(text.to_owned()));
        }
        Ok(())
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::check(&text)?;
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rejects_what_dns_rejects() {
        let long = "a".repeat(64);
        for bad in ["", "A", "a_b", "1a", "-a", "a-", "a.b", "../x", "ü", "a b", &long] {
            assert!(bad.parse::<Name>().is_err(), "`{bad}` was accepted");
        }
        for good in ["a", "web", "web-1", "a--b", &long[..63]] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        assert_eq!(
            "we_b".parse::<Name>().unwrap_err().to_string(),
            "the name `we_b` has the character `_`; use a-z, 0-9 and -"
        );
    }

    proptest! {
        #[test]
        fn round_trips(text in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?") {
            let name: Name = text.parse().unwrap();
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = text.parse::<Name>();
        }
    }
}
