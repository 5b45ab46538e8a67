//! Between our wire messages and the Raft library's, by hand. What comes from the network is checked here: the
//! library asserts on malformed input, and an assertion must not be within a peer's reach.

use raft::eraftpb;

use crate::membership::{Member, Membership};
use crate::wire;

/// Kinds that may come over the network as they are. Snapshots come in chunks, proposals as `Forward`.
fn network_kind(kind: i32) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType as T;
    let known = [
        T::MsgAppend,
        T::MsgAppendResponse,
        T::MsgRequestVote,
        T::MsgRequestVoteResponse,
        T::MsgHeartbeat,
        T::MsgHeartbeatResponse,
        T::MsgTimeoutNow,
        T::MsgReadIndex,
        T::MsgReadIndexResp,
        T::MsgRequestPreVote,
        T::MsgRequestPreVoteResponse,
    ];
    known.into_iter().find(|t| *t as i32 == kind)
}

fn entry_kind(kind: i32) -> Option<eraftpb::EntryType> {
    use eraftpb::EntryType as T;
    [T::EntryNormal, T::EntryConfChange, T::EntryConfChangeV2]
        .into_iter()
        .find(|t| *t as i32 == kind)
}

/// The wire form of a message (its snapshot's content travels apart).
pub(crate) fn to_wire(message: eraftpb::Message) -> wire::RaftMessage {
    wire::RaftMessage {
        kind: message.msg_type as i32,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
        snapshot: None,
        entries: message
            .entries
            .into_iter()
            .map(|e| wire::Entry {
                kind: e.entry_type as i32,
                term: e.term,
                index: e.index,
                data: e.data,
                context: e.context,
            })
            .collect(),
    }
}

/// The library's form of a message from the network; `Err` says what is wrong with it.
pub(crate) fn from_wire(
    from: u64,
    to: u64,
    wire: wire::RaftMessage,
) -> Result<eraftpb::Message, &'static str> {
    let kind = network_kind(wire.kind).ok_or("a kind that peers do not send")?;
    let mut message = head(kind, from, to, &wire);
    let mut previous = (wire.index, wire.log_term);
    let mut entries = Vec::with_capacity(wire.entries.len());
    for e in wire.entries {
        if kind == eraftpb::MessageType::MsgAppend {
            if e.index != previous.0 + 1 || e.term < previous.1 || e.term > message.term {
                return Err("entries that do not follow each other");
            }
            previous = (e.index, e.term);
        }
        let entry = eraftpb::Entry {
            entry_type: entry_kind(e.kind).ok_or("an unknown kind of entry")?,
            term: e.term,
            index: e.index,
            data: e.data,
            context: e.context,
            ..eraftpb::Entry::default()
        };
        entries.push(entry);
    }
    let reads = matches!(
        kind,
        eraftpb::MessageType::MsgReadIndex | eraftpb::MessageType::MsgReadIndexResp
    );
    if reads && entries.len() != 1 {
        return Err("a read-index message without its context");
    }
    if kind == eraftpb::MessageType::MsgReadIndex && message.term != 0 {
        return Err("a read-index request with a term");
    }
    if kind != eraftpb::MessageType::MsgReadIndex && message.term == 0 {
        return Err("a message without a term");
    }
    message.entries = entries.into();
    Ok(message)
}

/// The snapshot message that a complete, verified transfer stands for.
pub(crate) fn snapshot_message(
    from: u64,
    to: u64,
    wire: &wire::RaftMessage,
) -> Result<(eraftpb::Message, Membership), &'static str> {
    let meta = wire.snapshot.as_ref().ok_or("a snapshot without a description")?;
    let membership = meta
        .membership
        .as_ref()
        .map(membership_from)
        .ok_or("a snapshot without members")?;
    if wire.term == 0 || meta.index == 0 || meta.term == 0 || meta.term > wire.term {
        return Err("a snapshot with an impossible place");
    }
    let mut message = head(eraftpb::MessageType::MsgSnapshot, from, to, wire);
    let metadata = message.mut_snapshot().mut_metadata();
    metadata.index = meta.index;
    metadata.term = meta.term;
    metadata.set_conf_state(membership.conf_state());
    Ok((message, membership))
}

fn head(kind: eraftpb::MessageType, from: u64, to: u64, wire: &wire::RaftMessage) -> eraftpb::Message {
    let mut message = eraftpb::Message::default();
    message.set_msg_type(kind);
    message.from = from;
    message.to = to;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    message.request_snapshot = wire.request_snapshot;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context.clone();
    message.priority = wire.priority;
    message
}

/// How a membership is stored and sent.
pub(crate) fn membership_to(membership: &Membership) -> wire::MembershipRecord {
    wire::MembershipRecord {
        members: membership
            .members
            .iter()
            .map(|m| wire::MemberRecord {
                id: m.id,
                address: m.address.clone(),
                learner: m.learner,
            })
            .collect(),
        outgoing: membership.outgoing.clone(),
        learners_next: membership.learners_next.clone(),
        auto_leave: membership.auto_leave,
    }
}

/// The reverse of [`membership_to`].
pub(crate) fn membership_from(record: &wire::MembershipRecord) -> Membership {
    Membership {
        members: record
            .members
            .iter()
            .map(|m| Member {
                id: m.id,
                address: m.address.clone(),
                learner: m.learner,
            })
            .collect(),
        outgoing: record.outgoing.clone(),
        learners_next: record.learners_next.clone(),
        auto_leave: record.auto_leave,
    }
}
