//! Every bound on what one packet, name or record set may cost.

/// Largest UDP reply sent to a client whose EDNS allows it, in bytes (DNS flag day 2020: never fragments).
pub const MAX_UDP_REPLY: usize = 1232;
/// Largest UDP reply to a client without EDNS, in bytes (RFC 1035, 2.3.4).
pub const PLAIN_UDP_REPLY: usize = 512;
/// Largest reply over TCP, in bytes (its length field has 16 bits).
pub const MAX_TCP_REPLY: usize = 65_535;
/// CNAMEs and DNAMEs followed for one question.
pub const MAX_CNAME_CHAIN: usize = 16;
/// Record sets whose targets' addresses are looked up for the additional section.
pub const MAX_ADDITIONAL_LOOKUPS: usize = 32;
/// Names of a reply that later names may be compressed against.
pub const MAX_COMPRESSION_NAMES: usize = 16;
/// Records in a query's additional section that are looked at; more is FORMERR.
pub const MAX_QUERY_RECORDS: u16 = 8;
/// Longest name in wire form, in bytes (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 255;
/// Longest label, in bytes.
pub const MAX_LABEL: usize = 63;
/// Most labels a name of 255 bytes can hold, the root included.
pub const MAX_LABELS: usize = 128;
/// Largest total of one record set's data, in bytes, so that it fits one TCP reply with room to spare.
pub const MAX_RRSET_BYTES: usize = 60_000;
/// Longest presentation form of one record's data that is parsed, in bytes.
pub const MAX_RDATA_TEXT: usize = 16_384;
/// Longest zone file that is read, in bytes: a million records and more.
pub const MAX_ZONE_TEXT: usize = 256 << 20;
/// Compression pointers followed in one name.
pub const MAX_POINTERS: usize = 64;
/// Records that a zone's changes may hold in memory for incremental transfers, all zones together.
pub const MAX_JOURNAL_RECORDS: usize = 100_000;
/// Steps of changes that are kept.
pub const MAX_JOURNAL_STEPS: usize = 10_000;
/// Records of an incremental transfer; with more the zone is sent whole.
pub const MAX_IXFR_RECORDS: usize = 20_000;
/// Records of one section of an update.
pub const MAX_UPDATE_RECORDS: usize = 2048;
/// Names that one update looks at or changes: one transaction of the store.
pub const MAX_UPDATE_NAMES: usize = 120;
