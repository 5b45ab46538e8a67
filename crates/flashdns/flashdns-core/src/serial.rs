//! Zone serial numbers: 32 bits that wrap (RFC 1982).

use std::cmp::Ordering;

/// The serial of a Chainfire revision: its low 32 bits. Revisions rise by small steps, so serials taken
/// from successive ones rise in RFC 1982's sense.
#[must_use]
pub fn from_revision(revision: u64) -> u32 {
    let [.., a, b, c, d] = revision.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// RFC 1982 section 3.2's comparison; `None` where the RFC leaves it undefined (exactly 2^31 apart).
#[must_use]
pub fn compare(a: u32, b: u32) -> Option<Ordering> {
    const HALF: u32 = 1 << 31;
    match b.wrapping_sub(a) {
        0 => Some(Ordering::Equal),
        HALF => None,
        distance if distance < HALF => Some(Ordering::Less),
        _ => Some(Ordering::Greater),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_1982() {
        assert_eq!(compare(1, 1), Some(Ordering::Equal));
        assert_eq!(compare(1, 2), Some(Ordering::Less));
        assert_eq!(compare(u32::MAX, 0), Some(Ordering::Less));
        assert_eq!(compare(0, u32::MAX), Some(Ordering::Greater));
        assert_eq!(compare(0, 1 << 31), None);
        assert_eq!(compare(100, 100 + (1 << 31) - 1), Some(Ordering::Less));
        assert_eq!(compare(100, 100 + (1 << 31) + 1), Some(Ordering::Greater));
    }

    #[test]
    fn revisions_keep_their_order_across_the_wrap() {
        let before = from_revision(u64::from(u32::MAX));
        let after = from_revision(u64::from(u32::MAX) + 3);
        assert_eq!(compare(before, after), Some(Ordering::Less));
    }
}
