//! Peer URLs, as `etcdctl` gives and shows them, and what of them the transport dials.
//!
//! Raft's configuration holds one address for each member: its URLs joined by commas. Members from before there were
//! URLs have a bare `host:port` there. Members always speak TLS to each other, whatever the scheme says.

use chainfire_core::OpError;

/// Most URLs of one member.
const MAX_URLS: usize = 16;
/// Longest URL, bytes.
const MAX_URL_BYTES: usize = 1024;

/// The address for Raft's configuration, or etcd's refusal.
pub(crate) fn address(urls: &[String]) -> Result<String, OpError> {
    let mut checked: Vec<&str> = urls.iter().map(|url| url.trim()).collect();
    let good = (1..=MAX_URLS).contains(&checked.len()) && checked.iter().all(|url| is_peer_url(url));
    if !good {
        return Err(OpError::MemberBadUrls);
    }
    checked.sort_unstable();
    Ok(checked.join(","))
}

fn is_peer_url(url: &str) -> bool {
    let Some(rest) = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
    else {
        return false;
    };
    let Some((host, port)) = rest.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    url.len() <= MAX_URL_BYTES
        && port.parse::<u16>().is_ok_and(|port| port > 0)
        && (bracketed && host.len() > 2 || !host.is_empty() && host.chars().all(plain))
}

/// The URLs of an address, for people and tools.
pub(crate) fn listed(address: &str) -> Vec<String> {
    let url = |part: &str| {
        if part.contains("://") {
            part.to_owned()
        } else {
            format!("https://{part}")
        }
    };
    address
        .split(',')
        .filter(|part| !part.is_empty())
        .map(url)
        .collect()
}

/// What the URLs of an address have after their schemes.
pub(crate) fn endpoints(address: &str) -> impl Iterator<Item = &str> {
    address
        .split(',')
        .map(|part| part.split_once("://").map_or(part, |(_, rest)| rest))
        .filter(|part| !part.is_empty())
}

/// Whether two addresses have a URL in common: schemes do not tell members apart.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    endpoints(a).any(|one| endpoints(b).any(|other| one == other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_as_etcd_does() {
        let check = |urls: &[&str]| address(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
        let good = [
            (&["https://10.0.0.1:2380"][..], "https://10.0.0.1:2380"),
            (&[" http://b:1", "https://a:2"], "http://b:1,https://a:2"),
            (&["https://[::1]:2380"], "https://[::1]:2380"),
        ];
        for (urls, expected) in good {
            assert_eq!(check(urls).as_deref(), Ok(expected), "{urls:?}");
        }
        let bad: [&[&str]; 9] = [
            &[],
            &[""],
            &["10.0.0.1:2380"],
            &["ftp://a:1"],
            &["https://a"],
            &["https://a:0"],
            &["https://a:1/path"],
            &["https://:1"],
            &["https://a:1,https://b:1"],
        ];
        for urls in bad {
            assert_eq!(check(urls), Err(OpError::MemberBadUrls), "{urls:?}");
        }
    }

    #[test]
    fn addresses_of_both_kinds_are_understood() {
        assert_eq!(listed("127.0.0.1:2380"), ["https://127.0.0.1:2380"]);
        assert_eq!(listed("http://a:1,https://b:2"), ["http://a:1", "https://b:2"]);
        assert_eq!(endpoints("http://a:1,b:2").collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert!(overlap("a:1", "https://b:2,http://a:1") && !overlap("a:1", "a:2"));
    }
}
