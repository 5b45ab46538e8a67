//! `Maintenance.Snapshot`: a backup of this member's state as a stream of pieces.
//!
//! The length is told with the first piece, so the state is read twice from one picture: nothing of it is kept in
//! memory or on the disk, which may be the reason for the backup.

use std::sync::Arc;

use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::OpError;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    maintenance::ETCD_VERSION,
    node::{GROUP, Node, status, storage_status},
    offline::{Maker, Picture, WriteEnd, take_picture},
};

/// Streams at once on a member: each keeps old versions of what changes meanwhile from being given back.
pub(crate) const MAX_STREAMS: usize = 4;
/// Size of a piece, bytes (etcd's).
const PIECE_BYTES: usize = 32 << 10;
/// Pieces that wait for the client.
const QUEUE: usize = 8;

type Piece = Result<pb::SnapshotResponse, Status>;

/// Begins a stream; the picture is of a moment after the call.
pub(crate) async fn stream(
    node: &Node,
    streams: &Arc<Semaphore>,
) -> Result<impl Stream<Item = Piece> + Send + use<>, Status> {
    let permit = streams
        .clone()
        .try_acquire_owned()
        .map_err(|_| status(OpError::TooManyRequests))?;
    let raft = node
        .raft
        .status(GROUP)
        .await
        .ok_or_else(|| status(OpError::Stopped))?;
    let maker = Maker {
        cluster: node.config.cluster.clone(),
        cluster_id: node.config.cluster_id(),
        member: node.config.member.clone(),
        member_id: node.id,
        term: raft.leader.term,
        members: raft.membership,
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let node = node.clone();
    // Ends with the work, or with the receiver: a client that goes away closes the channel.
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let picture = match take_picture(&node.shared, maker) {
            Ok(picture) => picture,
            Err(error) => return drop(sender.blocking_send(Err(storage_status(&error)))),
        };
        if let Err(error) = send(&node, &picture, &sender) {
            // Nobody to tell when the client is gone.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Ok(ReceiverStream::new(receiver))
}

fn send(node: &Node, picture: &Picture, sender: &mpsc::Sender<Piece>) -> Result<(), Status> {
    let mut remaining = picture.length().map_err(|error| storage_status(&error))?;
    let mut ready: Vec<u8> = Vec::with_capacity(PIECE_BYTES);
    let header = node.header_at(picture.header.revision);
    let mut give = |blob: Vec<u8>| {
        remaining = remaining.saturating_sub(blob.len() as u64);
        let piece = pb::SnapshotResponse {
            header,
            remaining_bytes: remaining,
            blob: blob.into(),
            version: ETCD_VERSION.to_owned(),
        };
        sender.blocking_send(Ok(piece)).map_err(|_| ())
    };
    let written = picture.write(|mut bytes| {
        while !bytes.is_empty() {
            let room = (PIECE_BYTES - ready.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            ready.extend_from_slice(now);
            bytes = later;
            if ready.len() == PIECE_BYTES {
                give(std::mem::replace(&mut ready, Vec::with_capacity(PIECE_BYTES)))?;
            }
        }
        Ok(())
    });
    match written {
        Ok(()) => {}
        Err(WriteEnd::Engine(error)) => return Err(storage_status(&error)),
        Err(WriteEnd::Sink(())) => return Ok(()),
    }
    if !ready.is_empty() {
        // A client that is gone needs no last piece.
        let _ = give(ready);
    }
    Ok(())
}
