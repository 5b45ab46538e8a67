//! What FlashDNS counts, declared once.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use flashdns_core::{Outcome, Rtype, Transport};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Types counted by name; all others are one class.
const TYPES: [(Rtype, &str); 10] = [
    (Rtype::A, "A"),
    (Rtype::AAAA, "AAAA"),
    (Rtype::PTR, "PTR"),
    (Rtype::SOA, "SOA"),
    (Rtype::NS, "NS"),
    (Rtype::CNAME, "CNAME"),
    (Rtype::TXT, "TXT"),
    (Rtype::MX, "MX"),
    (Rtype::SRV, "SRV"),
    (Rtype::ANY, "ANY"),
];
/// Response codes that the core sends, and the packets it does not answer.
const RCODES: [(u16, &str); 7] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (16, "BADVERS"),
    (u16::MAX, "silence"),
];
const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
const CLASSES: usize = TYPES.len() + 2;
const CODES: usize = RCODES.len() + 1;

type Cells = [[[AtomicU64; CLASSES]; CODES]; TRANSPORTS.len()];

/// Queries by transport, response code and type. Plain atomics: it is in the path of every packet.
#[derive(Debug, Default)]
pub(crate) struct Queries(Cells);

impl Queries {
    pub(crate) fn count(&self, transport: Transport, outcome: Outcome) {
        let (code, rtype) = match outcome {
            Outcome::Silence => (u16::MAX, None),
            Outcome::Reply { rcode, rtype } => (rcode, rtype),
        };
        let code = RCODES
            .iter()
            .position(|(known, _)| *known == code)
            .unwrap_or(RCODES.len());
        let class = match rtype {
            None => TYPES.len() + 1,
            Some(rtype) => TYPES
                .iter()
                .position(|(known, _)| *known == rtype)
                .unwrap_or(TYPES.len()),
        };
        let transport = usize::from(transport == Transport::Tcp);
        let cell = self
            .0
            .get(transport)
            .and_then(|codes| codes.get(code)?.get(class));
        if let Some(cell) = cell {
            cell.fetch_add(1, Relaxed);
        }
    }
}

#[derive(Debug)]
struct QueriesCollector(Arc<Queries>);

impl Collector for QueriesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Packets received, by transport, response code and type asked for";
        let mut family = encoder.encode_descriptor("flashdns_queries", help, None, MetricType::Counter)?;
        for (transport, codes) in TRANSPORTS.iter().zip(&self.0.0) {
            for (code, classes) in codes.iter().enumerate() {
                let rcode = RCODES.get(code).map_or("other", |(_, name)| name);
                for (class, cell) in classes
                    .iter()
                    .enumerate()
                    .filter(|(_, cell)| cell.load(Relaxed) > 0)
                {
                    let unread = if class == TYPES.len() { "other" } else { "none" };
                    let rtype = TYPES.get(class).map_or(unread, |(_, name)| name);
                    let labels = [("transport", *transport), ("rcode", rcode), ("type", rtype)];
                    let counter = Counter::<u64>::default();
                    counter.inc_by(cell.load(Relaxed));
                    counter.encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// All metrics of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) queries: Arc<Queries>,
    /// Serial that is served.
    pub(crate) serial: Gauge<i64, AtomicI64>,
    /// Names that are served, empty non-terminals included.
    pub(crate) names: Gauge<i64, AtomicI64>,
    /// Keys or values in Chainfire that could not be read.
    pub(crate) bad_entries: Counter,
    /// Batches of changes applied.
    pub(crate) batches: Counter,
    /// Watches that are up to date now: 2 when all is well.
    pub(crate) feeds: Gauge<i64, AtomicI64>,
    /// Open TCP connections.
    pub(crate) connections: Gauge<i64, AtomicI64>,
    /// Replies that the system would not send.
    pub(crate) send_failures: Counter,
    /// Replies over UDP that were limited, by what was done: `slip` or `drop`.
    pub(crate) limited: Family<LimitLabels, Counter>,
    /// Queries over UDP with a good cookie or signature.
    pub(crate) cookies_good: Counter,
    /// Transfers asked for, by what came of it.
    pub(crate) transfers: Family<TransferLabels, Counter>,
    /// Messages whose signature was not good.
    pub(crate) signatures_refused: Counter,
    /// Updates, by response code.
    pub(crate) updates: Family<UpdateLabels, Counter>,
    /// NOTIFY messages sent.
    pub(crate) notify_sent: Counter,
    /// Times that a secondary did not answer NOTIFY at all.
    pub(crate) notify_unanswered: Counter,
}

/// What was done with a reply above the rate: `slip` or `drop`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct LimitLabels {
    pub(crate) outcome: &'static str,
}

/// How an update was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct UpdateLabels {
    pub(crate) rcode: &'static str,
}

/// What came of a transfer: `whole`, `changes`, `current` or `refused`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TransferLabels {
    /// Name of the key; empty without one.
    pub(crate) key: String,
    pub(crate) outcome: &'static str,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(QueriesCollector(self.queries.clone())));
        registry.register(
            "flashdns_serial",
            "Serial number that is served",
            self.serial.clone(),
        );
        registry.register(
            "flashdns_names",
            "Names in the tree that is served",
            self.names.clone(),
        );
        registry.register(
            "flashdns_bad_entries",
            "Keys or values in Chainfire that could not be read",
            self.bad_entries.clone(),
        );
        registry.register(
            "flashdns_batches",
            "Batches of changes applied",
            self.batches.clone(),
        );
        registry.register(
            "flashdns_feeds",
            "Watches on Chainfire that are up to date",
            self.feeds.clone(),
        );
        registry.register(
            "flashdns_tcp_connections",
            "Open TCP connections",
            self.connections.clone(),
        );
        registry.register(
            "flashdns_send_failures",
            "UDP replies that the system would not send",
            self.send_failures.clone(),
        );
        registry.register(
            "flashdns_limited",
            "Replies over UDP above the rate, by what was done",
            self.limited.clone(),
        );
        registry.register(
            "flashdns_cookies_good",
            "Queries over UDP with a good cookie or signature",
            self.cookies_good.clone(),
        );
        registry.register(
            "flashdns_transfers",
            "Transfers asked for, by what came of it",
            self.transfers.clone(),
        );
        registry.register(
            "flashdns_signatures_refused",
            "Messages whose signature was not good",
            self.signatures_refused.clone(),
        );
        registry.register(
            "flashdns_updates",
            "Updates by response code",
            self.updates.clone(),
        );
        registry.register(
            "flashdns_notify_sent",
            "NOTIFY messages sent to secondaries",
            self.notify_sent.clone(),
        );
        registry.register(
            "flashdns_notify_unanswered",
            "Times that a secondary answered no NOTIFY",
            self.notify_unanswered.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        let reply = |rcode, rtype| Outcome::Reply { rcode, rtype };
        metrics.queries.count(Transport::Udp, reply(0, Some(Rtype::A)));
        metrics.queries.count(Transport::Udp, reply(0, Some(Rtype::A)));
        metrics
            .queries
            .count(Transport::Tcp, reply(3, Some(Rtype(65280))));
        metrics.queries.count(Transport::Udp, reply(1, None));
        metrics.queries.count(Transport::Udp, Outcome::Silence);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "flashdns_queries_total{transport=\"udp\",rcode=\"NOERROR\",type=\"A\"} 2",
            "flashdns_queries_total{transport=\"tcp\",rcode=\"NXDOMAIN\",type=\"other\"} 1",
            "flashdns_queries_total{transport=\"udp\",rcode=\"FORMERR\",type=\"none\"} 1",
            "flashdns_queries_total{transport=\"udp\",rcode=\"silence\",type=\"none\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
    }
}
