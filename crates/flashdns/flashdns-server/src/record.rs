//! How records lie in Chainfire: FlashDNS's own key layout.
//!
//! ```text
//! /flashdns/v1/zones/ZONE/names/NAME   JSON of all record sets at NAME (StoredName)
//! /flashdns/v1/serial                  decimal: revision that the serial has reached (see `state`)
//! /flashdns/v1/settle                  empty: its revision ends a moment in which servers may differ (see `state`)
//! /flashdns/v1/cookies                 secrets of DNS cookies (see `cookies`)
//! /flashdns/v1/keys/NAME               a TSIG key (see `keys`)
//! ```
//! ZONE and NAME are in presentation format with the last dot; a slash inside a label is escaped, so keys
//! split at slashes. All sets of a name are one value: "nothing stands beside a CNAME" is then a matter of
//! one compare-and-swap.

use flashdns_core::{DnsName, RrSet, Rtype, name::NameError, rr::RrSetError};
use serde::{Deserialize, Serialize};

/// Everything below it belongs to FlashDNS.
pub(crate) const PREFIX: &str = "/flashdns/v1/";
/// The high-water mark of the serial.
pub(crate) const SERIAL_KEY: &str = "/flashdns/v1/serial";
/// Written when changes came out of their order.
pub(crate) const SETTLE_KEY: &str = "/flashdns/v1/settle";
const ZONES: &str = "/flashdns/v1/zones/";
/// Version of [`StoredName`] that is written. A reader refuses a newer one.
const VERSION: u32 = 1;

/// The key of a name's records.
pub(crate) fn key(zone: &DnsName, name: &DnsName) -> String {
    format!("{}{name}", zone_prefix(zone))
}

/// Keys of a zone's names begin with this.
pub(crate) fn zone_prefix(zone: &DnsName) -> String {
    format!("{ZONES}{zone}/names/")
}

/// Why a stored key or value cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the key has not the form `{ZONES}ZONE/names/NAME`")]
    Key,
    #[error("the key holds no domain name")]
    Name(#[from] NameError),
    #[error("the value is not a stored name")]
    Json(#[from] serde_json::Error),
    #[error("the value has version {0}, newer than this program")]
    Version(u32),
    #[error("the value holds something other than hexadecimal digits")]
    Hex,
    #[error("the value holds records that do not go together")]
    Set(#[from] RrSetError),
    #[error("the value holds a type twice, or a CNAME beside other records")]
    Together,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredName {
    version: u32,
    sets: Vec<StoredSet>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSet {
    #[serde(rename = "type")]
    rtype: u16,
    ttl_s: u32,
    /// Wire form of each record's data, in hexadecimal digits.
    data: Vec<String>,
}

/// Zone and name of a key.
pub(crate) fn parse_key(key: &[u8]) -> Result<(DnsName, DnsName), RecordError> {
    let text = std::str::from_utf8(key).map_err(|_| RecordError::Key)?;
    let rest = text.strip_prefix(ZONES).ok_or(RecordError::Key)?;
    let (zone, name) = rest.split_once("/names/").ok_or(RecordError::Key)?;
    let parsed: (DnsName, DnsName) = (zone.parse()?, name.parse()?);
    // One spelling per name, or two keys could claim it.
    if self::key(&parsed.0, &parsed.1) != text {
        return Err(RecordError::Key);
    }
    Ok(parsed)
}

/// The sets in a value.
pub(crate) fn parse_value(value: &[u8]) -> Result<Vec<RrSet>, RecordError> {
    let stored: StoredName = serde_json::from_slice(value)?;
    if stored.version != VERSION {
        return Err(RecordError::Version(stored.version));
    }
    let mut sets: Vec<RrSet> = Vec::with_capacity(stored.sets.len());
    for set in stored.sets {
        let data: Option<Vec<Box<[u8]>>> = set.data.iter().map(|text| unhex(text)).collect();
        let set = RrSet::new(Rtype(set.rtype), set.ttl_s, data.ok_or(RecordError::Hex)?)?;
        if sets.iter().any(|other| other.rtype() == set.rtype()) {
            return Err(RecordError::Together);
        }
        sets.push(set);
    }
    if sets.len() > 1 && sets.iter().any(|set| set.rtype() == Rtype::CNAME) {
        return Err(RecordError::Together);
    }
    Ok(sets)
}

/// The value for these sets.
pub(crate) fn value(sets: &[RrSet]) -> Result<Vec<u8>, serde_json::Error> {
    let sets = sets.iter().map(|set| StoredSet {
        rtype: set.rtype().0,
        ttl_s: set.ttl_s(),
        data: set.rdatas().iter().map(|rdata| hex(rdata)).collect(),
    });
    serde_json::to_vec(&StoredName {
        version: VERSION,
        sets: sets.collect(),
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<Box<[u8]>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip() {
        let sets = vec![
            RrSet::new(Rtype::A, 60, vec![[192, 0, 2, 1].into()]).unwrap(),
            RrSet::new(Rtype::TXT, 5, vec![b"\x01a".as_slice().into()]).unwrap(),
        ];
        assert_eq!(parse_value(&value(&sets).unwrap()).unwrap(), sets);
    }

    #[test]
    fn keys_round_trip_and_have_one_spelling() {
        let (zone, name): (DnsName, DnsName) = ("d".parse().unwrap(), "a\\/names\\/b.d".parse().unwrap());
        let text = key(&zone, &name);
        assert_eq!(text, "/flashdns/v1/zones/d./names/a\\047names\\047b.d.");
        assert_eq!(parse_key(text.as_bytes()).unwrap(), (zone, name));
        for text in [
            "/flashdns/v1/zones/d./names/A.d.",
            "/flashdns/v1/zones/d/names/a.d.",
            "/x",
            SERIAL_KEY,
        ] {
            assert!(
                matches!(parse_key(text.as_bytes()), Err(RecordError::Key)),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_values_that_are_not_ours() {
        let refused = |text: &str| parse_value(text.as_bytes()).unwrap_err();
        assert!(matches!(refused("{"), RecordError::Json(_)));
        assert!(matches!(
            refused(r#"{"version":2,"sets":[]}"#),
            RecordError::Version(2)
        ));
        let set = |data: &str| format!(r#"{{"version":1,"sets":[{data}]}}"#);
        let a = r#"{"type":1,"ttl_s":1,"data":["01020304"]}"#;
        let cname = r#"{"type":5,"ttl_s":1,"data":["0000"]}"#;
        assert!(matches!(
            refused(&set(&format!("{a},{a}"))),
            RecordError::Together
        ));
        assert!(matches!(refused(&set(&a.replace("01", "+1"))), RecordError::Hex));
        assert!(matches!(
            refused(&set(&a.replace("01020304", "0102"))),
            RecordError::Set(_)
        ));
        assert!(matches!(refused(&set(cname)), RecordError::Set(_)));
    }
}
