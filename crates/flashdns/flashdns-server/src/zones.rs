//! Which zones there are and which one a name belongs to.
//!
//! The domain is one zone on the wire. For rights it is cut by its first label: names two or more labels
//! below it belong to the project whose name that label is, the rest to the root of the hierarchy.

use flashdns_core::{Catalog, DnsName, RrSet, Rtype, ZoneSettings, name::NameError, rr::RrSetError};
use hearth_types::Name;

use crate::config::Zones;

/// Time to live of SOA, NS and the name server's addresses, in seconds.
const ZONE_TTL_S: u32 = 3600;
/// How long "does not exist" may be remembered, in seconds: short, since VMs come at any moment.
const NEGATIVE_TTL_S: u32 = 5;
const REFRESH_S: u32 = 3600;
const RETRY_S: u32 = 600;
const EXPIRE_S: u32 = 7 * 86_400;

/// Why the automatic zones could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ZoneError {
    /// A name derived from the domain is too long.
    #[error("the domain is too long for the names below it")]
    Name(#[from] NameError),
    /// A record of a zone is not allowed; the settings are constants, so this is a defect.
    #[error("the zone's own records cannot be made")]
    Record(#[from] RrSetError),
}

impl Zones {
    /// Name of the zones' name server.
    pub(crate) fn server(&self) -> Result<DnsName, NameError> {
        self.domain.child("ns")
    }

    /// What the server itself puts at a zone's top.
    pub(crate) fn settings(&self, apex: &DnsName) -> Result<ZoneSettings, NameError> {
        let server = self.server()?;
        Ok(ZoneSettings {
            apex: apex.clone(),
            primary: server.clone(),
            mailbox: self.domain.child("hostmaster")?,
            servers: vec![server],
            ttl_s: ZONE_TTL_S,
            refresh_s: REFRESH_S,
            retry_s: RETRY_S,
            expire_s: EXPIRE_S,
            negative_ttl_s: NEGATIVE_TTL_S,
        })
    }

    /// Whether a zone is one on the wire, with a top of its own; a project's is a part of the domain.
    pub(crate) fn has_apex(&self, name: &DnsName) -> bool {
        *name == self.domain || self.reverse.contains(name)
    }

    /// Why records cannot be stored: the server makes them itself, or they cannot be answered with.
    pub(crate) fn refuse(&self, zone: &DnsName, name: &DnsName, rtype: Rtype) -> Result<(), String> {
        if self.server().is_ok_and(|server| server == *name) {
            return Err(format!(
                "`{name}` is the name server itself; its addresses come from its configuration"
            ));
        }
        let is_apex = self.has_apex(name);
        let reason = match rtype {
            Rtype::SOA => "a zone's SOA is made by the server",
            Rtype::NS | Rtype::CNAME | Rtype::DNAME | Rtype::DS if is_apex => {
                return Err(format!(
                    "at the top of the zone `{zone}` there is no NS, CNAME, DNAME or DS to add"
                ));
            }
            Rtype::NS | Rtype::DS if name.is_wildcard() => "a wildcard cannot be delegated (RFC 4592, 4.2)",
            Rtype::DNAME if name.is_wildcard() => {
                "a wildcard cannot redirect what lies below it (RFC 6672, 3.3)"
            }
            _ => return Ok(()),
        };
        Err(reason.to_owned())
    }

    /// Adds the domain and the reverse zones with their SOA and NS to an empty catalog.
    pub(crate) fn add_to(&self, catalog: &mut Catalog) -> Result<(), ZoneError> {
        for apex in std::iter::once(&self.domain).chain(&self.reverse) {
            catalog.add_zone(&self.settings(apex)?)?;
        }
        catalog.set_records(&self.server()?, self.server_addresses()?);
        Ok(())
    }

    /// The name server's A and AAAA.
    pub(crate) fn server_addresses(&self) -> Result<Vec<RrSet>, RrSetError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in &self.servers {
            match address {
                std::net::IpAddr::V4(address) => v4.push(Box::from(address.octets())),
                std::net::IpAddr::V6(address) => v6.push(Box::from(address.octets())),
            }
        }
        let mut addresses = Vec::new();
        for (rtype, rdatas) in [(Rtype::A, v4), (Rtype::AAAA, v6)] {
            if !rdatas.is_empty() {
                addresses.push(RrSet::new(rtype, ZONE_TTL_S, rdatas)?);
            }
        }
        Ok(addresses)
    }

    /// The project that a zone name `PROJECT.domain` belongs to.
    pub(crate) fn project_of_zone(&self, zone: &DnsName) -> Option<Name> {
        (zone.parent()? == self.domain).then(|| first_label(zone))?
    }

    /// Name of a project's zone.
    pub(crate) fn project_zone(&self, project: &Name) -> Result<DnsName, NameError> {
        self.domain.child(project.as_str())
    }

    /// The zone whose editors may change a name; `None` for names that are not ours.
    pub(crate) fn zone_of(&self, name: &DnsName) -> Option<DnsName> {
        if !name.is_within(&self.domain) {
            let around = self.reverse.iter().filter(|zone| name.is_within(zone));
            return around.max_by_key(|zone| zone.wire().len()).cloned();
        }
        let mut at = name.clone();
        let mut depth = 0;
        while let Some(above) = at.parent() {
            if at == self.domain {
                break;
            }
            if above == self.domain && depth > 0 && first_label(&at).is_some() {
                return Some(at);
            }
            depth += 1;
            at = above;
        }
        Some(self.domain.clone())
    }
}

fn first_label(name: &DnsName) -> Option<Name> {
    std::str::from_utf8(name.labels().next()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_one_zone() {
        let name = |text: &str| -> DnsName { text.parse().unwrap() };
        let zones = Zones {
            domain: name("h.i"),
            reverse: vec![name("10.in-addr.arpa"), name("77.10.in-addr.arpa")],
            servers: vec![],
        };
        for (text, zone) in [
            ("h.i", Some("h.i.")),
            ("www.h.i", Some("h.i.")),
            ("*.h.i", Some("h.i.")),
            ("web.p.h.i", Some("p.h.i.")),
            ("*.web.p.h.i", Some("p.h.i.")),
            ("_sip._tcp.h.i", Some("h.i.")),
            ("i", None),
            ("example", None),
            ("1.0.77.10.in-addr.arpa", Some("77.10.in-addr.arpa.")),
            ("1.0.78.10.in-addr.arpa", Some("10.in-addr.arpa.")),
            ("1.0.78.11.in-addr.arpa", None),
        ] {
            assert_eq!(
                zones.zone_of(&name(text)).map(|zone| zone.to_string()).as_deref(),
                zone,
                "{text}"
            );
        }
        assert_eq!(zones.project_of_zone(&name("p.h.i")).unwrap().to_string(), "p");
        assert_eq!(zones.project_of_zone(&name("_p.h.i")), None);
        assert_eq!(zones.project_of_zone(&name("h.i")), None);
    }
}
