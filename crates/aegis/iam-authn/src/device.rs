//! Codes of the device flow (RFC 8628) that people type.

/// How long a device may wait for its user, in seconds.
pub const LIFETIME_S: u64 = 600;
/// Shortest time between two polls of a device, in seconds.
pub const POLL_INTERVAL_S: u64 = 2;
/// Consonants only: no words, and nothing that is read as something else (RFC 8628 section 6.1).
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const LENGTH: usize = 8;

/// A user code from fresh random bytes, as people see it: `BCDF-GHJK`. 34 bits, with a short life and few tries.
#[must_use]
pub fn user_code(random: &[u8; LENGTH]) -> String {
    let mut code = String::with_capacity(LENGTH + 1);
    for (at, byte) in random.iter().enumerate() {
        if at == LENGTH / 2 {
            code.push('-');
        }
        // 256 is no multiple of 20: the bias costs a fraction of a bit.
        let letter = ALPHABET
            .get(usize::from(*byte) % ALPHABET.len())
            .copied()
            .unwrap_or(b'B');
        code.push(char::from(letter));
    }
    code
}

/// What a person typed, brought into the form of [`user_code`]; `None` when it cannot be one.
#[must_use]
pub fn normalise(typed: &str) -> Option<String> {
    let letters: Vec<char> = typed
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .map(|c| c.to_ascii_uppercase())
        .take(LENGTH + 1)
        .collect();
    let valid = letters.len() == LENGTH
        && letters
            .iter()
            .all(|c| u8::try_from(*c).is_ok_and(|byte| ALPHABET.contains(&byte)));
    valid.then(|| {
        let (first, second): (Vec<_>, Vec<_>) = letters
            .into_iter()
            .enumerate()
            .partition(|(at, _)| *at < LENGTH / 2);
        let text = |half: Vec<(usize, char)>| half.into_iter().map(|(_, c)| c).collect::<String>();
        format!("{}-{}", text(first), text(second))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_code_survives_careless_typing(random in any::<[u8; 8]>()) {
            let code = user_code(&random);
            prop_assert_eq!(code.len(), 9);
            let careless = format!(" {}", code.to_lowercase().replace('-', " "));
            prop_assert_eq!(normalise(&careless), Some(code));
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            if let Some(code) = normalise(&text) {
                prop_assert_eq!(normalise(&code), Some(code.clone()));
            }
        }
    }

    #[test]
    fn refuses_what_is_no_code() {
        for bad in ["", "BCDF", "BCDF-GHJA", "BCDF-GHJKL", "ÄCDF-GHJK"] {
            assert_eq!(normalise(bad), None, "{bad}");
        }
    }
}
