//! What etcd's key-value store does, written a second time and as simply as it goes: whole states of every revision in
//! memory, no index, no storage. It shares no code with `chainfire-core`; the checkers replay the log on it.

use std::collections::BTreeMap;

use bytes::Bytes;
use chainfire_client::wire::{
    etcdserverpb::{
        self as pb, compare::CompareResult, compare::CompareTarget, compare::TargetUnion,
        range_request::SortOrder, range_request::SortTarget, request_op::Request, response_op::Response,
    },
    mvccpb::{Event, KeyValue, event::EventType},
};
use chainfire_core::OpError;
use chainfire_server::simulation::{Answer, Command};

/// Shortest time to live that is granted, seconds.
const MIN_TTL_S: i64 = 2;

type State = BTreeMap<Bytes, KeyValue>;

/// The store with all of its past.
#[derive(Debug)]
pub(crate) struct Model {
    /// State at each revision; the place is the revision.
    states: Vec<State>,
    /// Events of each revision.
    events: BTreeMap<i64, Vec<Event>>,
    pub(crate) compacted: i64,
    pub(crate) leases: BTreeMap<i64, i64>,
}

/// Whether `key` lies in the range that a request names.
pub(crate) fn within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        _ => key >= start && key < end,
    }
}

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        revision,
        ..Default::default()
    })
}

/// One revision being written.
struct Draft {
    state: State,
    revision: i64,
    events: Vec<Event>,
}

impl Draft {
    /// The revision that reads see.
    fn now(&self) -> i64 {
        self.revision - i64::from(self.events.is_empty())
    }

    fn put(&mut self, put: &pb::PutRequest) -> pb::PutResponse {
        let old = self.state.get(&put.key).cloned();
        let value = old
            .as_ref()
            .filter(|_| put.ignore_value)
            .map(|kv| kv.value.clone());
        let lease = old.as_ref().filter(|_| put.ignore_lease).map(|kv| kv.lease);
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.as_ref().map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: old.as_ref().map_or(1, |kv| kv.version + 1),
            value: value.unwrap_or_else(|| put.value.clone()),
            lease: lease.unwrap_or(put.lease),
        };
        self.state.insert(put.key.clone(), kv.clone());
        self.events.push(Event {
            r#type: EventType::Put.into(),
            kv: Some(kv),
            prev_kv: None,
        });
        pb::PutResponse {
            header: header(self.revision),
            prev_kv: old.filter(|_| put.prev_kv),
        }
    }

    fn delete(&mut self, delete: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let doomed: Vec<KeyValue> = self
            .state
            .values()
            .filter(|kv| within(&kv.key, &delete.key, &delete.range_end))
            .cloned()
            .collect();
        for kv in &doomed {
            self.state.remove(&kv.key);
            self.events.push(Event {
                r#type: EventType::Delete.into(),
                kv: Some(KeyValue {
                    key: kv.key.clone(),
                    mod_revision: self.revision,
                    ..Default::default()
                }),
                prev_kv: None,
            });
        }
        pb::DeleteRangeResponse {
            header: header(self.now()),
            deleted: i64::try_from(doomed.len()).unwrap_or(i64::MAX),
            prev_kvs: if delete.prev_kv { doomed } else { Vec::new() },
        }
    }
}

impl Model {
    /// The empty store at revision 1.
    pub(crate) fn new() -> Model {
        Model {
            states: vec![State::new(), State::new()],
            events: BTreeMap::new(),
            compacted: -1,
            leases: BTreeMap::new(),
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        i64::try_from(self.states.len()).unwrap_or(i64::MAX) - 1
    }

    fn state(&self, revision: i64) -> Option<&State> {
        self.states.get(usize::try_from(revision).ok()?)
    }

    /// A key's pair at the end of a revision.
    pub(crate) fn pair_at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        self.state(revision)?.get(key)
    }

    /// The events of all revisions from `from` on.
    pub(crate) fn events(&self, from: i64) -> impl Iterator<Item = (i64, &Vec<Event>)> {
        self.events
            .range(from..)
            .map(|(revision, events)| (*revision, events))
    }

    fn draft(&self) -> Draft {
        Draft {
            state: self.states.last().cloned().unwrap_or_default(),
            revision: self.revision() + 1,
            events: Vec::new(),
        }
    }

    fn keep(&mut self, draft: Draft) {
        if !draft.events.is_empty() {
            self.events.insert(draft.revision, draft.events);
            self.states.push(draft.state);
        }
    }

    /// Applies one entry of the log.
    pub(crate) fn apply(&mut self, command: &Command) -> Result<Answer, OpError> {
        let mut draft = self.draft();
        let answer = match command {
            Command::Put(put) => {
                self.check_put(&draft.state, put, true)?;
                Answer::Put(draft.put(put))
            }
            Command::Delete(delete) => Answer::Delete(draft.delete(delete)),
            Command::Txn(txn) => Answer::Txn(self.txn(&mut draft, txn)?),
            Command::Compact(compact) => return self.compact(compact.revision),
            Command::Grant(grant) => return self.grant(grant),
            Command::Revoke(revoke) => {
                return if self.end(revoke.id) {
                    Ok(Answer::Done(self.revision()))
                } else {
                    Err(OpError::LeaseNotFound)
                };
            }
            // What is left of leases is no part of what clients see.
            Command::Checkpoint(..) => return Ok(Answer::Done(self.revision())),
            Command::Expire(ids, _) => {
                for id in ids {
                    self.end(*id);
                }
                return Ok(Answer::Done(self.revision()));
            }
        };
        self.keep(draft);
        Ok(answer)
    }

    fn compact(&mut self, revision: i64) -> Result<Answer, OpError> {
        if revision <= self.compacted {
            return Err(OpError::Compacted);
        }
        if revision > self.revision() {
            return Err(OpError::FutureRevision);
        }
        self.compacted = revision;
        Ok(Answer::Done(self.revision()))
    }

    fn grant(&mut self, grant: &pb::LeaseGrantRequest) -> Result<Answer, OpError> {
        if self.leases.contains_key(&grant.id) {
            return Err(OpError::LeaseExists);
        }
        let ttl = grant.ttl.max(MIN_TTL_S);
        self.leases.insert(grant.id, ttl);
        Ok(Answer::Granted(pb::LeaseGrantResponse {
            header: header(self.revision()),
            id: grant.id,
            ttl,
            error: String::new(),
        }))
    }

    /// A lease ends, and its keys with it in one revision.
    fn end(&mut self, id: i64) -> bool {
        if self.leases.remove(&id).is_none() {
            return false;
        }
        let mut draft = self.draft();
        let keys: Vec<Bytes> = draft
            .state
            .values()
            .filter(|kv| kv.lease == id)
            .map(|kv| kv.key.clone())
            .collect();
        for key in keys {
            draft.delete(&pb::DeleteRangeRequest {
                key,
                ..Default::default()
            });
        }
        self.keep(draft);
        true
    }

    fn check_put(&self, state: &State, put: &pb::PutRequest, lease_first: bool) -> Result<(), OpError> {
        let no_lease = put.lease != 0 && !self.leases.contains_key(&put.lease);
        let no_key = (put.ignore_value || put.ignore_lease) && !state.contains_key(&put.key);
        match (no_lease, no_key) {
            (true, true) if lease_first => Err(OpError::LeaseNotFound),
            (_, true) => Err(OpError::KeyNotFound),
            (true, false) => Err(OpError::LeaseNotFound),
            (false, false) => Ok(()),
        }
    }

    /// Whether all conditions hold on `state`.
    fn holds(state: &State, txn: &pb::TxnRequest) -> bool {
        txn.compare.iter().all(|compare| {
            let mut pairs = state
                .values()
                .filter(|kv| within(&kv.key, &compare.key, &compare.range_end))
                .peekable();
            if pairs.peek().is_none() {
                return compare.target() != CompareTarget::Value && compares(compare, &KeyValue::default());
            }
            pairs.all(|kv| compares(compare, kv))
        })
    }

    /// The operations that will run, all branches chosen on the state before: nested ones included, in order.
    fn chosen<'a>(state: &State, txn: &'a pb::TxnRequest) -> Vec<&'a pb::RequestOp> {
        let branch = if Model::holds(state, txn) {
            &txn.success
        } else {
            &txn.failure
        };
        let mut all = Vec::new();
        for op in branch {
            all.push(op);
            if let Some(Request::RequestTxn(nested)) = &op.request {
                all.extend(Model::chosen(state, nested));
            }
        }
        all
    }

    fn txn(&self, draft: &mut Draft, txn: &pb::TxnRequest) -> Result<pb::TxnResponse, OpError> {
        let before = draft.state.clone();
        let chosen = Model::chosen(&before, txn);
        for op in &chosen {
            if let Some(Request::RequestPut(put)) = &op.request {
                self.check_put(&before, put, false)?;
            }
        }
        for op in &chosen {
            if let Some(Request::RequestRange(range)) = &op.request {
                self.check_revision(range.revision, self.revision())?;
            }
        }
        let mut reply = self.run(draft, &before, txn)?;
        reply.header = header(draft.now());
        Ok(reply)
    }

    fn run(
        &self,
        draft: &mut Draft,
        before: &State,
        txn: &pb::TxnRequest,
    ) -> Result<pb::TxnResponse, OpError> {
        let succeeded = Model::holds(before, txn);
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::new();
        for op in branch {
            let response = match &op.request {
                Some(Request::RequestPut(put)) => Response::ResponsePut(draft.put(put)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Response::ResponseDeleteRange(draft.delete(delete))
                }
                Some(Request::RequestTxn(nested)) => {
                    let mut reply = self.run(draft, before, nested)?;
                    reply.header = header(0);
                    Response::ResponseTxn(reply)
                }
                Some(Request::RequestRange(range)) => {
                    let state = if range.revision > 0 {
                        self.state(range.revision).ok_or(OpError::FutureRevision)?
                    } else {
                        &draft.state
                    };
                    Response::ResponseRange(select(state, range, draft.now()))
                }
                None => return Err(OpError::KeyNotFound),
            };
            responses.push(pb::ResponseOp {
                response: Some(response),
            });
        }
        Ok(pb::TxnResponse {
            header: None,
            succeeded,
            responses,
        })
    }

    fn check_revision(&self, revision: i64, now: i64) -> Result<(), OpError> {
        if revision > now {
            Err(OpError::FutureRevision)
        } else if revision > 0 && revision < self.compacted {
            Err(OpError::Compacted)
        } else {
            Ok(())
        }
    }

    /// Answers a range when the store was at revision `now`; compaction is left aside.
    pub(crate) fn range_at(&self, range: &pb::RangeRequest, now: i64) -> Option<pb::RangeResponse> {
        let at = if range.revision > 0 { range.revision } else { now };
        Some(select(self.state(at).filter(|_| at <= now)?, range, now))
    }

    /// Answers a reading transaction when the store was at revision `now`; compaction is left aside.
    pub(crate) fn read_txn_at(&self, txn: &pb::TxnRequest, now: i64) -> Option<pb::TxnResponse> {
        let state = self.state(now)?.clone();
        let mut draft = Draft {
            state,
            revision: now + 1,
            events: Vec::new(),
        };
        let before = draft.state.clone();
        let mut reply = self.run(&mut draft, &before, txn).ok()?;
        reply.header = header(now);
        Some(reply)
    }
}

fn compares(compare: &pb::Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target_union {
        Some(TargetUnion::Version(value)) => kv.version.cmp(value),
        Some(TargetUnion::CreateRevision(value)) => kv.create_revision.cmp(value),
        Some(TargetUnion::ModRevision(value)) => kv.mod_revision.cmp(value),
        Some(TargetUnion::Lease(value)) => kv.lease.cmp(value),
        Some(TargetUnion::Value(value)) => kv.value.cmp(value),
        None => return false,
    };
    match compare.result() {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
    }
}

/// What of a state a range asks for.
fn select(state: &State, range: &pb::RangeRequest, now: i64) -> pb::RangeResponse {
    let mut kvs: Vec<KeyValue> = state
        .values()
        .filter(|kv| within(&kv.key, &range.key, &range.range_end))
        .cloned()
        .collect();
    let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    kvs.retain(|kv| {
        within(kv.mod_revision, range.min_mod_revision, range.max_mod_revision)
            && within(
                kv.create_revision,
                range.min_create_revision,
                range.max_create_revision,
            )
    });
    if range.sort_order() != SortOrder::None {
        match range.sort_target() {
            SortTarget::Key => kvs.sort_by(|a, b| a.key.cmp(&b.key)),
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
        }
        if range.sort_order() == SortOrder::Descend {
            // Equal ones keep the order of their keys.
            kvs.reverse();
            let key = |kv: &KeyValue| match range.sort_target() {
                SortTarget::Key => 0,
                SortTarget::Version => kv.version,
                SortTarget::Create => kv.create_revision,
                SortTarget::Mod => kv.mod_revision,
                SortTarget::Value => 0,
            };
            if !matches!(range.sort_target(), SortTarget::Key | SortTarget::Value) {
                kvs.sort_by(|a, b| key(b).cmp(&key(a)).then_with(|| a.key.cmp(&b.key)));
            } else if range.sort_target() == SortTarget::Value {
                kvs.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| a.key.cmp(&b.key)));
            }
        }
    }
    let limit = usize::try_from(range.limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    let more = !range.count_only && kvs.len() > limit;
    kvs.truncate(limit);
    if range.count_only {
        kvs.clear();
    }
    if range.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    pb::RangeResponse {
        header: header(now),
        kvs,
        more,
        count,
    }
}
