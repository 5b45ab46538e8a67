//! Between etcd's messages and the core's types.

use chainfire_client::wire::{
    etcdserverpb::{
        self as pb, compare::TargetUnion, range_request, request_op::Request as OpRequest,
        response_op::Response as OpResponse,
    },
    mvccpb,
};
use chainfire_core::{
    Alarm, AlarmChange, AlarmKind, Command, Compare, CompareOp, CompareTarget, DeleteOutcome, DeleteRange,
    Event, EventKind, KeyRange, KeyValue, Op, OpError, OpReply, Put, PutOutcome, Range, RangeOutcome,
    SortOrder, SortTarget, Txn, TxnOutcome, check,
};

use crate::{
    auth,
    record::{AlarmRecord, LogBody},
};

pub(crate) fn range(message: pb::RangeRequest) -> Result<Range, OpError> {
    let sort_order = match range_request::SortOrder::try_from(message.sort_order) {
        Ok(range_request::SortOrder::None) => SortOrder::None,
        Ok(range_request::SortOrder::Ascend) => SortOrder::Ascend,
        Ok(range_request::SortOrder::Descend) => SortOrder::Descend,
        Err(_) => return Err(OpError::InvalidSortOption),
    };
    let sort_target = match range_request::SortTarget::try_from(message.sort_target) {
        Ok(range_request::SortTarget::Key) => SortTarget::Key,
        Ok(range_request::SortTarget::Version) => SortTarget::Version,
        Ok(range_request::SortTarget::Create) => SortTarget::Create,
        Ok(range_request::SortTarget::Mod) => SortTarget::Mod,
        Ok(range_request::SortTarget::Value) => SortTarget::Value,
        Err(_) => return Err(OpError::InvalidSortOption),
    };
    Ok(Range {
        keys: KeyRange::new(message.key, message.range_end),
        limit: message.limit,
        revision: message.revision,
        sort_order,
        sort_target,
        keys_only: message.keys_only,
        count_only: message.count_only,
        min_mod_revision: message.min_mod_revision,
        max_mod_revision: message.max_mod_revision,
        min_create_revision: message.min_create_revision,
        max_create_revision: message.max_create_revision,
    })
}

pub(crate) fn put(message: pb::PutRequest) -> Put {
    Put {
        key: message.key,
        value: message.value,
        lease: message.lease,
        prev_kv: message.prev_kv,
        ignore_value: message.ignore_value,
        ignore_lease: message.ignore_lease,
    }
}

pub(crate) fn delete(message: pb::DeleteRangeRequest) -> DeleteRange {
    DeleteRange {
        keys: KeyRange::new(message.key, message.range_end),
        prev_kv: message.prev_kv,
    }
}

/// Converts a transaction; what is wrong with it is told by [`check::txn`], but for a nesting too deep to convert and
/// for comparisons that this release does not know.
pub(crate) fn txn(message: pb::TxnRequest) -> Result<Txn, OpError> {
    nested_txn(message, 0)
}

fn nested_txn(message: pb::TxnRequest, depth: usize) -> Result<Txn, OpError> {
    if depth > check::MAX_TXN_DEPTH {
        return Err(OpError::TooManyOps);
    }
    let ops = |ops: Vec<pb::RequestOp>| {
        ops.into_iter()
            .map(|op| self::op(op, depth))
            .collect::<Result<Vec<Op>, _>>()
    };
    Ok(Txn {
        compare: message
            .compare
            .into_iter()
            .map(compare)
            .collect::<Result<_, _>>()?,
        success: ops(message.success)?,
        failure: ops(message.failure)?,
    })
}

fn op(message: pb::RequestOp, depth: usize) -> Result<Op, OpError> {
    Ok(match message.request {
        Some(OpRequest::RequestRange(message)) => Op::Range(range(message)?),
        Some(OpRequest::RequestPut(message)) => Op::Put(put(message)),
        Some(OpRequest::RequestDeleteRange(message)) => Op::Delete(delete(message)),
        Some(OpRequest::RequestTxn(message)) => Op::Txn(nested_txn(message, depth + 1)?),
        None => Op::Nothing,
    })
}

fn compare(message: pb::Compare) -> Result<Compare, OpError> {
    let op = match pb::compare::CompareResult::try_from(message.result) {
        Ok(pb::compare::CompareResult::Equal) => CompareOp::Equal,
        Ok(pb::compare::CompareResult::Greater) => CompareOp::Greater,
        Ok(pb::compare::CompareResult::Less) => CompareOp::Less,
        Ok(pb::compare::CompareResult::NotEqual) => CompareOp::NotEqual,
        Err(_) => return Err(OpError::KeyNotFound),
    };
    // A value of another kind than the target's counts as absent, and an absent one as zero or empty.
    let number =
        |wanted: fn(&TargetUnion) -> Option<i64>| message.target_union.as_ref().and_then(wanted).unwrap_or(0);
    let target = match pb::compare::CompareTarget::try_from(message.target) {
        Ok(pb::compare::CompareTarget::Version) => CompareTarget::Version(number(|value| match value {
            TargetUnion::Version(value) => Some(*value),
            _ => None,
        })),
        Ok(pb::compare::CompareTarget::Create) => CompareTarget::Create(number(|value| match value {
            TargetUnion::CreateRevision(value) => Some(*value),
            _ => None,
        })),
        Ok(pb::compare::CompareTarget::Mod) => CompareTarget::Mod(number(|value| match value {
            TargetUnion::ModRevision(value) => Some(*value),
            _ => None,
        })),
        Ok(pb::compare::CompareTarget::Lease) => CompareTarget::Lease(number(|value| match value {
            TargetUnion::Lease(value) => Some(*value),
            _ => None,
        })),
        Ok(pb::compare::CompareTarget::Value) => CompareTarget::Value(match message.target_union {
            Some(TargetUnion::Value(value)) => value,
            _ => bytes::Bytes::new(),
        }),
        Err(_) => return Err(OpError::KeyNotFound),
    };
    Ok(Compare {
        keys: KeyRange::new(message.key, message.range_end),
        op,
        target,
    })
}

/// The command of a log record, but for an expiry, whose term has to be looked at first.
pub(crate) fn command(body: LogBody) -> Result<Command, OpError> {
    Ok(match body {
        LogBody::Put(message) => Command::Put(put(message)),
        LogBody::Delete(message) => Command::Delete(delete(message)),
        LogBody::Txn(message) => Command::Txn(txn(message)?),
        LogBody::Compact(message) => Command::Compact {
            revision: message.revision,
        },
        LogBody::Grant(message) => Command::LeaseGrant {
            id: message.id,
            ttl_s: message.ttl,
        },
        LogBody::Revoke(message) => Command::LeaseRevoke { id: message.id },
        LogBody::Checkpoint(message) => Command::LeaseCheckpoint {
            leases: message.ids.into_iter().zip(message.remaining_s).collect(),
        },
        LogBody::Expire(message) => Command::LeaseExpire { ids: message.ids },
        LogBody::Alarm(message) => Command::Alarm(alarm_change(message)?),
        // These change no keys; the machine has taken them before it asks.
        LogBody::Auth(record) => Command::Auth(auth::record::command(record)?),
        LogBody::Members(_) | LogBody::RestartDigest(_) => return Err(OpError::NotCapable),
    })
}

/// The kind of an alarm; `None`: no kind, or one that this release does not know.
pub(crate) fn alarm_kind(kind: i32) -> Option<AlarmKind> {
    match pb::AlarmType::try_from(kind) {
        Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
        Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
        Ok(pb::AlarmType::None) | Err(_) => None,
    }
}

fn alarm_change(message: pb::AlarmRequest) -> Result<AlarmChange, OpError> {
    use pb::alarm_request::AlarmAction;
    let alarm = Alarm {
        kind: alarm_kind(message.alarm).ok_or(OpError::NotCapable)?,
        member: message.member_id,
    };
    match AlarmAction::try_from(message.action) {
        Ok(AlarmAction::Activate) => Ok(AlarmChange::Raise(alarm)),
        Ok(AlarmAction::Deactivate) => Ok(AlarmChange::Clear(alarm)),
        Ok(AlarmAction::Get) | Err(_) => Err(OpError::NotCapable),
    }
}

pub(crate) fn alarm(alarm: Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember {
        member_id: alarm.member,
        alarm: kind.into(),
    }
}

pub(crate) fn alarm_record(alarm: Alarm) -> AlarmRecord {
    let message = self::alarm(alarm);
    AlarmRecord {
        kind: message.alarm,
        member: message.member_id,
    }
}

/// A stored alarm; `None` for one of a newer release.
pub(crate) fn stored_alarm(record: &AlarmRecord) -> Option<Alarm> {
    Some(Alarm {
        kind: alarm_kind(record.kind)?,
        member: record.member,
    })
}

pub(crate) fn kv(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

pub(crate) fn event(event: Event, prev: Option<KeyValue>) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(kv(event.kv)),
        prev_kv: prev.map(kv),
    }
}

/// A header that says the revision only; the rest is filled in where the answer leaves.
fn at(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        revision,
        ..Default::default()
    })
}

pub(crate) fn range_reply(outcome: RangeOutcome) -> pb::RangeResponse {
    pb::RangeResponse {
        header: at(outcome.revision),
        kvs: outcome.kvs.into_iter().map(kv).collect(),
        more: outcome.more,
        count: outcome.count,
    }
}

pub(crate) fn put_reply(outcome: PutOutcome) -> pb::PutResponse {
    pb::PutResponse {
        header: at(outcome.revision),
        prev_kv: outcome.prev_kv.map(kv),
    }
}

pub(crate) fn delete_reply(outcome: DeleteOutcome) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: at(outcome.revision),
        deleted: outcome.deleted,
        prev_kvs: outcome.prev_kvs.into_iter().map(kv).collect(),
    }
}

pub(crate) fn txn_reply(outcome: TxnOutcome) -> pb::TxnResponse {
    let op = |reply| match reply {
        OpReply::Range(outcome) => OpResponse::ResponseRange(range_reply(outcome)),
        OpReply::Put(outcome) => OpResponse::ResponsePut(put_reply(outcome)),
        OpReply::Delete(outcome) => OpResponse::ResponseDeleteRange(delete_reply(outcome)),
        OpReply::Txn(outcome) => OpResponse::ResponseTxn(txn_reply(outcome)),
    };
    pb::TxnResponse {
        header: at(outcome.revision),
        succeeded: outcome.succeeded,
        responses: outcome
            .replies
            .into_iter()
            .map(|reply| pb::ResponseOp {
                response: Some(op(reply)),
            })
            .collect(),
    }
}
