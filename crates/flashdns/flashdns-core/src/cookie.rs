//! DNS cookies (RFC 7873, RFC 9018): a client that returns ours has the address that it says it has.
//!
//! ```text
//!   server cookie: version 1 | 0 0 0 | seconds (4) | SipHash-2-4 of client cookie, the above and the address (8)
//! ```
//! Every server makes and knows the same cookies, since all have the same secrets. Making and checking keep nothing.

use std::net::IpAddr;

use crate::serial;

/// A secret.
pub type Secret = [u8; 16];
/// Bytes of a client's cookie.
pub(crate) const CLIENT: usize = 8;
/// Bytes of the cookies that we make.
pub(crate) const SERVER: usize = 16;
/// A cookie older than this is made anew (RFC 9018, 4.3).
const RENEW_S: u32 = 1800;
/// A cookie older than this counts as none.
const MAX_AGE_S: u32 = 3600;
/// How far a cookie may be from the future: clocks of servers differ.
const MAX_AHEAD_S: u32 = 300;

/// What answering needs to know of cookies: secrets, time, and who asks.
#[derive(Clone, Copy, Debug)]
pub struct Cookies<'s> {
    /// The secret that cookies are made with.
    pub current: &'s Secret,
    /// Secrets whose cookies are good as well: the one before, the one to come.
    pub others: &'s [Secret],
    /// Seconds since 1970, of which the low 32 bits count.
    pub now_s: u32,
    /// Where the query came from.
    pub client: IpAddr,
}

/// The cookie option of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent<'q> {
    pub(crate) client: &'q [u8; 8],
    /// 8 to 32 bytes, or none.
    pub(crate) server: &'q [u8],
}

impl<'q> Sent<'q> {
    /// Reads the option's data; `None`: it is malformed (RFC 7873, 5.2.2).
    pub(crate) fn read(data: &'q [u8]) -> Option<Self> {
        let (client, server) = data.split_first_chunk()?;
        matches!(server.len(), 0 | 8..=32).then_some(Self { client, server })
    }
}

impl Cookies<'_> {
    /// Whether a client has returned a cookie of ours.
    pub(crate) fn is_good(&self, sent: Sent<'_>) -> bool {
        let Some((head, hash)) = sent.server.split_first_chunk::<8>() else {
            return false;
        };
        // Unused bytes are covered by the hash, whatever they are (RFC 9018, 4.2).
        let [1, _, _, _, time @ ..] = *head else {
            return false;
        };
        let made_s = u32::from_be_bytes(time);
        let age = self.now_s.wrapping_sub(made_s);
        let is_past = serial::compare(made_s, self.now_s).is_some_and(std::cmp::Ordering::is_le);
        let is_timely = if is_past {
            age <= MAX_AGE_S
        } else {
            made_s.wrapping_sub(self.now_s) <= MAX_AHEAD_S
        };
        let secrets = std::iter::once(self.current).chain(self.others);
        let mut is_ours = false;
        for secret in secrets {
            let expected = self.hash(secret, sent.client, *head);
            // Both sides are hashes under a secret; comparing whole words tells nothing of a part.
            is_ours |= hash.len() == 8
                && u64::from_ne_bytes(expected) == u64::from_ne_bytes(hash.try_into().unwrap_or([0; 8]));
        }
        is_timely && is_ours
    }

    /// The server's cookie to send: the one returned while it is young, else a new one.
    pub(crate) fn make(&self, sent: Sent<'_>) -> [u8; 16] {
        if let Ok(known) = <[u8; 16]>::try_from(sent.server)
            && let [1, _, _, _, a, b, c, d, ..] = known
            && self.now_s.wrapping_sub(u32::from_be_bytes([a, b, c, d])) < RENEW_S
            && self.is_good(sent)
        {
            return known;
        }
        let mut cookie = [0; SERVER];
        let (head, hash) = cookie.split_at_mut(8);
        let [a, b, c, d] = self.now_s.to_be_bytes();
        let fields = [1, 0, 0, 0, a, b, c, d];
        head.copy_from_slice(&fields);
        hash.copy_from_slice(&self.hash(self.current, sent.client, fields));
        cookie
    }

    fn hash(&self, secret: &Secret, client: &[u8; 8], head: [u8; 8]) -> [u8; 8] {
        let mut data = [0; 32];
        let (cookies, address) = data.split_at_mut(16);
        let (first, second) = cookies.split_at_mut(8);
        first.copy_from_slice(client);
        second.copy_from_slice(&head);
        let length = match self.client {
            IpAddr::V4(v4) => {
                if let Some(place) = address.get_mut(..4) {
                    place.copy_from_slice(&v4.octets());
                }
                20
            }
            IpAddr::V6(v6) => {
                address.copy_from_slice(&v6.octets());
                32
            }
        };
        siphash_2_4(secret, data.get(..length).unwrap_or(&data)).to_le_bytes()
    }
}

/// SipHash-2-4 (Aumasson and Bernstein), as RFC 9018 wants it.
fn siphash_2_4(key: &Secret, data: &[u8]) -> u64 {
    fn round(v: &mut [u64; 4]) {
        let [a, b, c, d] = v;
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        for (place, byte) in word.iter_mut().zip(bytes) {
            *place = *byte;
        }
        u64::from_le_bytes(word)
    };
    let (low, high) = key.split_at(8);
    let (k0, k1) = (word(low), word(high));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut compress = |message: u64| {
        v[3] ^= message;
        round(&mut v);
        round(&mut v);
        v[0] ^= message;
    };
    let chunks = data.chunks_exact(8);
    let rest = chunks.remainder();
    chunks.for_each(|chunk| compress(word(chunk)));
    let [length, ..] = data.len().to_le_bytes();
    compress(word(rest) | u64::from(length) << 56);
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        let digits: Vec<u8> = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect();
        digits.try_into().unwrap()
    }

    /// From the reference implementation: key 00..0f, data 00..0e.
    #[test]
    fn siphash_is_siphash() {
        let key: [u8; 16] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let data: Vec<u8> = (0..15).collect();
        assert_eq!(siphash_2_4(&key, &data), 0xa129_ca61_49be_45e5);
        assert_eq!(siphash_2_4(&key, &[]), 0x726f_db47_dd0e_0e31);
    }

    /// RFC 9018, appendix A.
    #[test]
    fn the_examples_of_rfc_9018() {
        let secret = bytes("e5e973e5a6b2a43f48e7dc849e37bfcf");
        let client = bytes::<8>("2464c4abcf10c957");
        let cookies = Cookies {
            current: &secret,
            others: &[],
            now_s: 1_559_731_985,
            client: "198.51.100.100".parse().unwrap(),
        };
        let made = cookies.make(Sent {
            client: &client,
            server: &[],
        });
        assert_eq!(made, bytes("010000005cf79f111f8130c3eee29480"));
        let sent = |server| Sent {
            client: &client,
            server,
        };
        // Half an hour later it is still good, and is renewed when it is older.
        let later = |seconds: u32| Cookies {
            now_s: 1_559_731_985 + seconds,
            ..cookies
        };
        assert!(later(1700).is_good(sent(&made)) && later(1700).make(sent(&made)) == made);
        assert!(later(1900).is_good(sent(&made)) && later(1900).make(sent(&made)) != made);
        assert!(!later(3601).is_good(sent(&made)));
        let early = Cookies {
            now_s: 1_559_731_985 - 301,
            ..cookies
        };
        assert!(!early.is_good(sent(&made)));
        // Reserved bytes that another implementation filled.
        let other = Cookies {
            now_s: 1_559_728_085,
            client: "203.0.113.203".parse().unwrap(),
            ..cookies
        };
        let filled = Sent {
            client: &bytes("fc93fc62807ddb86"),
            server: &bytes::<16>("01abcdef5cf78f71a314227b6679ebf5"),
        };
        assert!(other.is_good(filled));
        let too_late = Cookies {
            now_s: 1_559_734_385,
            ..other
        };
        assert!(!too_late.is_good(filled));
        assert_ne!(too_late.make(filled)[..], *filled.server);
        // Another secret makes, the old one is still known; another address is another client.
        let fresh = [9; 16];
        let rolled = Cookies {
            current: &fresh,
            others: &[secret],
            ..cookies
        };
        assert!(rolled.is_good(sent(&made)));
        let elsewhere = Cookies {
            client: "198.51.100.101".parse().unwrap(),
            ..cookies
        };
        assert!(!elsewhere.is_good(sent(&made)));
        let mut changed = made;
        changed[15] ^= 1;
        assert!(!cookies.is_good(sent(&changed)));
    }

    #[test]
    fn only_some_lengths_are_cookies() {
        for length in 0..64 {
            let data = vec![1; length];
            let is_cookie = length == 8 || (16..=40).contains(&length);
            assert_eq!(Sent::read(&data).is_some(), is_cookie, "{length}");
        }
    }
}
