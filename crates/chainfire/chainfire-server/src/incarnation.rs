//! Which life of the cluster a data folder belongs to.
//!
//! A cluster that was restored from a backup, or recovered from a lost majority, is another cluster: everything derived
//! from its name (its id, the ids of its members) must differ from before, so that no message, vote or client of the
//! old one is taken for its own. The file `DATA/incarnation` says which life it is; the first has none.

use std::{io, path::Path};

use crate::Chainfire;

/// The file within the data folder.
pub(crate) const FILE: &str = "incarnation";
/// Longest incarnation.
pub(crate) const MAX_BYTES: usize = 64;

/// The incarnation of a data folder; empty in the first life.
pub(crate) fn read(data_dir: &Path) -> io::Result<String> {
    let text = match std::fs::read_to_string(data_dir.join(FILE)) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    if is_valid(&text) {
        Ok(text)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not an incarnation: 1 to 64 letters, digits, `-` and `_`",
        ))
    }
}

/// Whether a text may be one.
pub(crate) fn is_valid(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= MAX_BYTES && text.bytes().all(allowed)
}

/// The name that ids are derived from. `#` stands in no configured name that anybody has used without it: the names of
/// two lives differ.
pub(crate) fn full_name(cluster: &str, incarnation: &str) -> String {
    if incarnation.is_empty() {
        cluster.to_owned()
    } else {
        format!("{cluster}#{incarnation}")
    }
}

/// The configuration with the name that ids are derived from.
pub(crate) fn applied_to(config: &Chainfire, incarnation: &str) -> Chainfire {
    Chainfire {
        cluster: full_name(&config.cluster, incarnation),
        ..config.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_life_has_none_and_rubbish_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), "");
        std::fs::write(dir.path().join(FILE), "a1-b_2\n").unwrap();
        assert_eq!(read(dir.path()).unwrap(), "a1-b_2");
        for rubbish in ["", "a b", "a#b", &"x".repeat(65)] {
            std::fs::write(dir.path().join(FILE), rubbish).unwrap();
            assert!(read(dir.path()).is_err(), "{rubbish}");
        }
    }

    #[test]
    fn names_of_lives_differ() {
        assert_eq!(full_name("hearth", ""), "hearth");
        assert_ne!(full_name("hearth", "a"), full_name("hearth", "b"));
    }
}
