//! Pages of long listings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most items on one page of any listing.
pub const MAX_PAGE_SIZE: u32 = 1000;
const MAX_POSITION_LENGTH: usize = 1024;

/// Where the next page of a listing begins: the last position seen, in an opaque text (hexadecimal) for the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PageToken(String);

/// A text that no server has given out as a page token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page token is not one that this server gave out; start again without it")]
pub struct PageTokenError;

impl PageToken {
    /// A token for the page after `position` (a key or a name, at most 1024 bytes).
    ///
    /// # Errors
    /// [`PageTokenError`] when the position is empty or longer.
    pub fn after(position: &str) -> Result<Self, PageTokenError> {
        if position.is_empty() || position.len() > MAX_POSITION_LENGTH {
            return Err(PageTokenError);
        }
        Ok(Self(position.to_owned()))
    }

    /// The position that the token was made from.
    #[must_use]
    pub fn position(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for PageToken {
    type Err = PageTokenError;

    fn from_str(text: &str) -> Result<Self, PageTokenError> {
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(PageTokenError);
        }
        let bytes: Option<Vec<u8>> = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
            .collect();
        let position = bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(PageTokenError)?;
        Self::after(&position)
    }
}

impl TryFrom<String> for PageToken {
    type Error = PageTokenError;

    fn try_from(text: String) -> Result<Self, PageTokenError> {
        text.parse()
    }
}

impl From<PageToken> for String {
    fn from(token: PageToken) -> Self {
        token.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(position in "\\PC{1,40}") {
            let token = PageToken::after(&position).unwrap();
            let back: PageToken = token.to_string().parse().unwrap();
            prop_assert_eq!(back.position(), position);
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = text.parse::<PageToken>();
        }
    }
}
