//! Transaction signatures (RFC 8945): who sent a message, and that it is as it was sent.
//!
//! ```text
//!   request ── find ──> Request ── verify(key, now) ──> Signer ── sign ──> reply, reply, ...
//!                                        └── Refusal ── refuse ──> reply with the error
//! ```
//! Each signature of a reply covers the one before it, the first that of the request; so replies of a transfer
//! can neither be left out nor be put in another order.

use std::{fmt, sync::Arc};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};

use crate::{
    message::{self, HEADER},
    name::DnsName,
    rr::Rtype,
    wire::{Reader, u16_at},
};

/// Seconds that clocks may differ, as our own signatures say it (RFC 8945, 10).
const FUDGE_S: u16 = 300;
/// Most additional records of a message that are looked at.
const MAX_ADDITIONAL: u16 = 64;
const CLASS_ANY: u16 = 255;
const TSIG: Rtype = Rtype(250);
const NOTAUTH: u16 = 9;

/// A hash that signatures are made with. Only those that RFC 8945 still recommends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `hmac-sha256`
    Sha256,
    /// `hmac-sha384`
    Sha384,
    /// `hmac-sha512`
    Sha512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// Its name, without the last dot.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "hmac-sha256",
            Self::Sha384 => "hmac-sha384",
            Self::Sha512 => "hmac-sha512",
        }
    }

    /// The algorithm of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Bytes of a signature; also the length that a secret should have.
    #[must_use]
    pub const fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn wire(self) -> Vec<u8> {
        let name = self.name().as_bytes();
        let mut wire = vec![u8::try_from(name.len()).unwrap_or(0)];
        wire.extend_from_slice(name);
        wire.push(0);
        wire
    }

    const fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

/// A shared secret with its name.
pub struct Key {
    name: DnsName,
    algorithm: Algorithm,
    secret: hmac::Key,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, {})", self.name, self.algorithm.name())
    }
}

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn new(name: DnsName, algorithm: Algorithm, secret: &[u8]) -> Self {
        let secret = hmac::Key::new(algorithm.hmac(), secret);
        Self {
            name,
            algorithm,
            secret,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &DnsName {
        &self.name
    }

    /// Bytes that a signature adds to a message, at most.
    #[must_use]
    pub fn room(&self) -> usize {
        // Type, class, time to live, length; time, fudge, size, id, error, length of other data, a time in it.
        self.name.wire().len() + 10 + self.algorithm.wire().len() + 16 + 6 + self.algorithm.length()
    }
}

/// The message is not one that has a signature in its place (FORMERR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message or its signature is malformed")]
pub struct Malformed;

/// A message's signature, not checked yet.
#[derive(Debug)]
pub struct Request<'m> {
    /// The message up to the signature.
    body: &'m [u8],
    key: DnsName,
    algorithm: DnsName,
    time_s: u64,
    fudge_s: u16,
    mac: &'m [u8],
    original_id: [u8; 2],
    error: u16,
    other: &'m [u8],
}

/// Why a signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such key, or it is of another algorithm.
    BadKey,
    /// The signature is not the message's.
    BadSignature,
    /// The message is too old or from the future.
    BadTime,
    /// The signature is cut shorter than is accepted here.
    BadTruncation,
}

impl Refusal {
    const fn code(self) -> u16 {
        match self {
            Self::BadSignature => 16,
            Self::BadKey => 17,
            Self::BadTime => 18,
            Self::BadTruncation => 22,
        }
    }
}

/// The signature of a message, if it has one: the last additional record (RFC 8945, 5.1).
///
/// # Errors
/// [`Malformed`]: the message cannot be read, or has a signature where none may be.
pub fn find(message: &[u8]) -> Result<Option<Request<'_>>, Malformed> {
    find_in(message).ok_or(Malformed)
}

fn find_in(message: &[u8]) -> Option<Option<Request<'_>>> {
    let mut reader = Reader::new(message);
    let additional = reader.count(3);
    if additional == 0 {
        return Some(None);
    }
    for _ in 0..reader.count(0) {
        reader.question()?;
    }
    let before = u32::from(reader.count(1)) + u32::from(reader.count(2));
    for _ in 0..before {
        if reader.record()?.rtype == TSIG {
            return None;
        }
    }
    if additional > MAX_ADDITIONAL {
        return None;
    }
    for _ in 1..additional {
        if reader.record()?.rtype == TSIG {
            return None;
        }
    }
    let last = reader.record()?;
    if last.rtype != TSIG {
        return Some(None);
    }
    if reader.at() != message.len() || last.class != CLASS_ANY || last.ttl_s != 0 {
        return None;
    }
    let data = last.data;
    let length = crate::name::wire_len(data)?;
    let algorithm = DnsName::from_wire(data.get(..length)?).ok()?;
    let rest = data.get(length..)?;
    let time = rest.get(..6)?;
    let time_s = time.iter().fold(0, |time, byte| time << 8 | u64::from(*byte));
    let size = usize::from(u16_at(rest, 8)?);
    let mac = rest.get(10..10 + size)?;
    let rest = rest.get(10 + size..)?;
    let other_length = usize::from(u16_at(rest, 4)?);
    let other = rest.get(6..)?;
    if other.len() != other_length {
        return None;
    }
    Some(Some(Request {
        body: message.get(..last.at)?,
        key: last.owner,
        algorithm,
        time_s,
        fudge_s: u16_at(data, length + 6)?,
        mac,
        original_id: [*rest.first()?, *rest.get(1)?],
        error: u16_at(rest, 2)?,
        other,
    }))
}

impl Request<'_> {
    /// Name of the key that it claims.
    #[must_use]
    pub fn key(&self) -> &DnsName {
        &self.key
    }

    /// Checks the signature against the key of that name, if there is one (RFC 8945, 5.2).
    ///
    /// # Errors
    /// `Ok(Err(refusal))`: answer with [`refuse`]. `Err(Malformed)`: answer FORMERR.
    pub fn verify(&self, key: Option<&Arc<Key>>, now_s: u64) -> Result<Result<Signer, Refusal>, Malformed> {
        let Some(key) = key.filter(|key| *key.algorithm.wire() == *self.algorithm.wire()) else {
            return Ok(Err(Refusal::BadKey));
        };
        let full = key.algorithm.length();
        if self.mac.len() > full || self.mac.len() < (full / 2).max(10) {
            return Err(Malformed);
        }
        let mut digest = hmac::Context::with_key(&key.secret);
        let (head, rest) = self.body.split_at_checked(HEADER).ok_or(Malformed)?;
        let additional = u16_at(head, 10).unwrap_or(0).wrapping_sub(1);
        digest.update(&self.original_id);
        digest.update(head.get(2..10).unwrap_or(&[]));
        digest.update(&additional.to_be_bytes());
        digest.update(rest);
        digest.update(&variables(key, self.time_s, self.fudge_s, self.error, self.other));
        let tag = digest.sign();
        let expected = tag.as_ref().get(..self.mac.len()).unwrap_or(&[]);
        if verify_slices_are_equal(expected, self.mac).is_err() {
            return Ok(Err(Refusal::BadSignature));
        }
        if now_s.abs_diff(self.time_s) > u64::from(self.fudge_s) {
            return Ok(Err(Refusal::BadTime));
        }
        if self.mac.len() < full {
            return Ok(Err(Refusal::BadTruncation));
        }
        Ok(Ok(Signer {
            key: key.clone(),
            prior: self.mac.to_vec(),
            is_first: true,
        }))
    }
}

/// The fields of a signature that it covers itself (RFC 8945, 4.3.3).
fn variables(key: &Key, time_s: u64, fudge_s: u16, error: u16, other: &[u8]) -> Vec<u8> {
    let mut bytes = key.name.wire().to_vec();
    bytes.extend(CLASS_ANY.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(key.algorithm.wire());
    bytes.extend(timers(time_s, fudge_s));
    bytes.extend(error.to_be_bytes());
    bytes.extend(u16::try_from(other.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(other);
    bytes
}

fn timers(time_s: u64, fudge_s: u16) -> [u8; 8] {
    let [.., a, b, c, d, e, f] = time_s.to_be_bytes();
    let [high, low] = fudge_s.to_be_bytes();
    [a, b, c, d, e, f, high, low]
}

/// Signs the replies to one request, or requests of our own.
#[derive(Debug)]
pub struct Signer {
    key: Arc<Key>,
    /// The signature before: the request's, or the last reply's. Empty for a request.
    prior: Vec<u8>,
    is_first: bool,
}

impl Signer {
    /// Signs a request of our own.
    #[must_use]
    pub fn request(key: Arc<Key>) -> Self {
        Self {
            key,
            prior: Vec::new(),
            is_first: true,
        }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// Appends the signature of the next message.
    pub fn sign(&mut self, message: &mut Vec<u8>, now_s: u64) {
        self.sign_with(message, now_s, 0, &[]);
    }

    fn sign_with(&mut self, message: &mut Vec<u8>, time_s: u64, error: u16, other: &[u8]) {
        let mut digest = hmac::Context::with_key(&self.key.secret);
        if !self.prior.is_empty() {
            digest.update(&u16::try_from(self.prior.len()).unwrap_or(0).to_be_bytes());
            digest.update(&self.prior);
        }
        digest.update(message);
        if self.is_first {
            digest.update(&variables(&self.key, time_s, FUDGE_S, error, other));
        } else {
            digest.update(&timers(time_s, FUDGE_S));
        }
        let tag = digest.sign();
        append(
            message,
            &self.key.name,
            &self.key.algorithm.wire(),
            (time_s, FUDGE_S),
            tag.as_ref(),
            error,
            other,
        );
        self.prior = tag.as_ref().to_vec();
        self.is_first = false;
    }
}

/// Appends a signature record.
fn append(
    message: &mut Vec<u8>,
    key: &DnsName,
    algorithm: &[u8],
    (time_s, fudge_s): (u64, u16),
    mac: &[u8],
    error: u16,
    other: &[u8],
) {
    let id = [
        message.first().copied().unwrap_or(0),
        message.get(1).copied().unwrap_or(0),
    ];
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let mut data = algorithm.to_vec();
    data.extend(timers(time_s, fudge_s));
    data.extend(length(mac.len()));
    data.extend_from_slice(mac);
    data.extend(id);
    data.extend(error.to_be_bytes());
    data.extend(length(other.len()));
    data.extend_from_slice(other);
    message.extend_from_slice(key.wire());
    message.extend(TSIG.0.to_be_bytes());
    message.extend(CLASS_ANY.to_be_bytes());
    message.extend([0; 4]);
    message.extend(length(data.len()));
    message.extend(data);
    let additional = u16_at(message, 10).unwrap_or(0).wrapping_add(1);
    if let Some(field) = message.get_mut(10..12) {
        field.copy_from_slice(&additional.to_be_bytes());
    }
}

/// Writes the reply to a message whose signature was refused (RFC 8945, 5.3.2): NOTAUTH, signed where that can be.
pub fn refuse(
    query: &[u8],
    request: &Request<'_>,
    key: Option<&Arc<Key>>,
    refusal: Refusal,
    now_s: u64,
    out: &mut Vec<u8>,
) {
    message::reply(query, NOTAUTH, out);
    let code = refusal.code();
    match (refusal, key) {
        (Refusal::BadTime | Refusal::BadTruncation, Some(key)) => {
            let mut signer = Signer {
                key: key.clone(),
                prior: request.mac.to_vec(),
                is_first: true,
            };
            let now = timers(now_s, 0);
            let other = if refusal == Refusal::BadTime {
                now.get(..6).unwrap_or(&[])
            } else {
                &[]
            };
            // The client's own time, so that it can check the reply's signature (RFC 8945, 5.2.3).
            signer.sign_with(out, request.time_s, code, other);
        }
        _ => append(
            out,
            &request.key,
            request.algorithm.wire(),
            (request.time_s, request.fudge_s),
            &[],
            code,
            &[],
        ),
    }
}

/// Whether a message may have a signature: a cheap look before [`find`].
#[must_use]
pub fn may_be_signed(message: &[u8]) -> bool {
    // EDNS alone is one additional record of type 41; a signature of type 250 is the last.
    match u16_at(message, 10) {
        None | Some(0) => false,
        Some(1) => {
            let question = message.get(HEADER..).and_then(crate::name::wire_len);
            let at = question.map(|length| HEADER + length + 4);
            // An owner that is the root, and type OPT.
            at.and_then(|at| message.get(at..at + 3)) != Some(&[0, 0, 41])
        }
        Some(_) => true,
    }
}
