//! What an operator asks of members. Most of it concerns the one member that answers: use a client with one endpoint.

use bytes::Bytes;
use tonic::Streaming;

use crate::{
    Client, Error, Result,
    conn::{CallKind, maintenance_stub, request},
    error::{Attempt, judge},
    wire::etcdserverpb::{self as pb, alarm_request::AlarmAction},
};

/// A checksum of one member's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHash {
    /// The member.
    pub member_id: u64,
    /// The checksum; equal on members whose state is equal at the same revision, if they are compacted alike.
    pub hash: u32,
    /// Up to which revision.
    pub hash_revision: i64,
    /// Oldest revision that is part of it.
    pub compact_revision: i64,
}

/// A raised alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The member that raised it.
    pub member_id: u64,
    /// `NOSPACE` or `CORRUPT`.
    pub kind: String,
}

/// A backup on its way.
#[derive(Debug)]
pub struct SnapshotPieces {
    stream: Streaming<pb::SnapshotResponse>,
    ended: bool,
}

impl SnapshotPieces {
    /// The next piece and how many bytes come after it; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<(Bytes, u64)>> {
        match self.stream.message().await {
            Ok(Some(piece)) => {
                self.ended = piece.remaining_bytes == 0;
                Ok(Some((piece.blob, piece.remaining_bytes)))
            }
            Ok(None) if self.ended => Ok(None),
            Ok(None) => Err(Error::Unavailable {
                detail: "the backup ended before its last piece".to_owned(),
            }),
            Err(status) => Err(final_error(&status)),
        }
    }
}

fn final_error(status: &tonic::Status) -> Error {
    match judge(status) {
        Attempt::NotApplied(error) | Attempt::Final(error) => error,
        Attempt::Unknown(detail) => Error::Unavailable { detail },
    }
}

impl Client {
    /// Begins a backup of the state of the member that answers. It may take longer than this client's deadline, which
    /// holds for its beginning only.
    pub async fn snapshot(&self) -> Result<SnapshotPieces> {
        let stream = self
            .call(CallKind::Idempotent, |channel| async move {
                // Without `hasleader`: a member without a leader has a state too.
                let mut stub = maintenance_stub(channel);
                Ok(stub.snapshot(pb::SnapshotRequest {}).await?.into_inner())
            })
            .await?;
        Ok(SnapshotPieces { stream, ended: false })
    }

    /// The checksum of the answering member's state up to `revision`; 0: all it has. The member reads all of it: see
    /// [`Client::with_deadline`].
    pub async fn state_hash(&self, revision: i64) -> Result<StateHash> {
        let reply = self
            .call(CallKind::Slow, |channel| async move {
                let mut stub = maintenance_stub(channel);
                Ok(stub.hash_kv(pb::HashKvRequest { revision }).await?.into_inner())
            })
            .await?;
        Ok(StateHash {
            member_id: reply.header.unwrap_or_default().member_id,
            hash: reply.hash,
            hash_revision: reply.hash_revision,
            compact_revision: reply.compact_revision,
        })
    }

    /// Hands leadership to member `to`; the leader must be the one that answers.
    pub async fn move_leader(&self, to: u64) -> Result<()> {
        self.call(CallKind::Idempotent, |channel| async move {
            let message = request(pb::MoveLeaderRequest { target_id: to });
            maintenance_stub(channel).move_leader(message).await.map(drop)
        })
        .await
    }

    /// The alarms that are raised.
    pub async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.alarm(AlarmAction::Get, 0, pb::AlarmType::None).await
    }

    /// Takes an alarm back, once its cause is gone; returns those that were taken back.
    pub async fn disarm(&self, alarm: &Alarm) -> Result<Vec<Alarm>> {
        let kind = pb::AlarmType::from_str_name(&alarm.kind).unwrap_or(pb::AlarmType::None);
        self.alarm(AlarmAction::Deactivate, alarm.member_id, kind).await
    }

    async fn alarm(&self, action: AlarmAction, member_id: u64, kind: pb::AlarmType) -> Result<Vec<Alarm>> {
        let reply = self
            .call(CallKind::Idempotent, |channel| async move {
                let message = pb::AlarmRequest {
                    action: action.into(),
                    member_id,
                    alarm: kind.into(),
                };
                Ok(maintenance_stub(channel).alarm(message).await?.into_inner())
            })
            .await?;
        let alarm = |alarm: pb::AlarmMember| Alarm {
            member_id: alarm.member_id,
            kind: alarm.alarm().as_str_name().to_owned(),
        };
        Ok(reply.alarms.into_iter().map(alarm).collect())
    }

    /// Asks the answering member to give space back; Chainfire does so by itself and answers at once.
    pub async fn defragment(&self) -> Result<()> {
        self.call(CallKind::Idempotent, |channel| async move {
            let mut stub = maintenance_stub(channel);
            stub.defragment(pb::DefragmentRequest {}).await.map(drop)
        })
        .await
    }
}
