//! A range answered in pieces (etcd 3.7): of an answer of any size, a few pieces at most are in memory.
//!
//! ```text
//!   first page pins the revision ──> piece: pairs ──> piece: pairs ──> last piece: pairs, header, more, count
//! ```

use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::{KeyRange, KeyValue, OpError, Range, RangeOutcome, SortOrder, SortTarget, check};
use hearth_service::tasks::Kind;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    auth::Caller,
    convert,
    node::{MAX_REQUEST_BYTES, Node, status, storage_status},
};

/// Pieces that wait for a slow client.
const PIECE_QUEUE: usize = 2;
/// Most pairs in a piece.
const PIECE_PAIRS: usize = 1024;
/// A piece is full at this size, bytes; its last pair may go beyond.
const PIECE_BYTES: usize = MAX_REQUEST_BYTES;

type Piece = Result<pb::RangeStreamResponse, Status>;

/// Checks a request: what cannot be said in order of keys is refused, with etcd's words.
pub(crate) fn check(message: pb::RangeRequest) -> Result<Range, Status> {
    let range = convert::range(message).map_err(status)?;
    check::range(&range).map_err(status)?;
    // As in etcd, only the order that the keys have anyway is served.
    let as_they_lie = match range.sort_order {
        SortOrder::None => true,
        SortOrder::Ascend => range.sort_target == SortTarget::Key,
        SortOrder::Descend => false,
    };
    if !as_they_lie {
        return Err(Status::unimplemented(
            "RangeStream does not support custom sort orders",
        ));
    }
    let bounds = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    if bounds.iter().any(|bound| *bound != 0) {
        return Err(Status::unimplemented(
            "RangeStream does not support revision filters",
        ));
    }
    Ok(range)
}

/// Starts answering; it ends when the client has everything or is gone.
pub(crate) fn start(node: &Node, caller: Caller, range: Range) -> impl Stream<Item = Piece> + Send + use<> {
    let (pieces, stream) = mpsc::channel(PIECE_QUEUE);
    let node = node.clone();
    let tasks = node.tasks.clone();
    tasks.spawn("range stream", Kind::Background, async move {
        tokio::select! {
            () = node.tasks.stopping() => {}
            () = answer(&node, &caller, range, &pieces) => {}
        }
        Ok(())
    });
    ReceiverStream::new(stream)
}

async fn answer(node: &Node, caller: &Caller, range: Range, pieces: &mpsc::Sender<Piece>) {
    let mut answer = Answer {
        node,
        rest: range.keys.clone(),
        revision: range.revision,
        left: u64::try_from(range.limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(u64::MAX),
        range,
        header: 0,
        sent: 0,
    };
    loop {
        // Checked after each read: a right that ended meanwhile ends the answer.
        let piece = answer.next().await.and_then(|piece| {
            caller.still_reads(&answer.range.keys).map_err(status)?;
            Ok(piece)
        });
        let (piece, over) = match piece {
            Ok((piece, over)) => (Ok(piece), over),
            Err(error) => (Err(error), true),
        };
        if pieces.send(piece).await.is_err() || over {
            return;
        }
    }
}

/// How far an answer has come.
struct Answer<'a> {
    node: &'a Node,
    range: Range,
    rest: KeyRange,
    /// What the whole answer is read at; 0 or less before the first piece of an answer about now.
    revision: i64,
    /// The store's revision at the first piece; 0 before it.
    header: i64,
    /// Pairs that the limit still allows.
    left: u64,
    sent: i64,
}

impl Answer<'_> {
    async fn next(&mut self) -> Result<(pb::RangeStreamResponse, bool), Status> {
        if self.range.count_only {
            let counted = self.count(self.range.keys.clone()).await?;
            self.header = counted.revision;
            return Ok((self.last(Vec::new(), false, counted.count), true));
        }
        let (kvs, more) = self.page().await?;
        let pairs = u64::try_from(kvs.len()).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(pairs);
        self.sent += i64::try_from(kvs.len()).unwrap_or(0);
        if let Some(last) = kvs.last() {
            self.rest = self.rest.after(&last.key);
        }
        if more && self.left > 0 {
            let reply = pb::RangeResponse {
                kvs: kvs.into_iter().map(convert::kv).collect(),
                ..Default::default()
            };
            return Ok((piece(reply), false));
        }
        let unsent = if more {
            self.count(self.rest.clone()).await?.count
        } else {
            0
        };
        Ok((self.last(kvs, more, self.sent + unsent), true))
    }

    /// How many keys of a range there are at the revision of the answer.
    async fn count(&self, keys: KeyRange) -> Result<RangeOutcome, Status> {
        let range = Range {
            count_only: true,
            revision: self.revision,
            ..Range::of(keys)
        };
        self.node.read(&range).await
    }

    /// The next pairs, read on a thread that may block.
    async fn page(&mut self) -> Result<(Vec<KeyValue>, bool), Status> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE_PAIRS);
        let page = self
            .node
            .shared
            .store()
            .page(&self.rest, self.revision, limit)
            .map_err(status)?;
        if self.header == 0 {
            self.header = page.now;
            if self.revision <= 0 {
                self.revision = page.now;
            }
        }
        let (tables, keys_only) = (self.node.shared.tables.clone(), self.range.keys_only);
        let fetched = tokio::task::spawn_blocking(move || page.fetch(&tables, keys_only, PIECE_BYTES))
            .await
            .map_err(|_| status(OpError::Stopped))?;
        match fetched {
            Ok(Some(page)) => Ok(page),
            // Nothing that the pinned revision shows goes away but by compaction beyond it.
            Ok(None) => Err(status(OpError::Compacted)),
            Err(error) => Err(storage_status(&error)),
        }
    }

    fn last(&self, kvs: Vec<KeyValue>, more: bool, count: i64) -> pb::RangeStreamResponse {
        piece(pb::RangeResponse {
            header: self.node.header_at(self.header),
            kvs: kvs.into_iter().map(convert::kv).collect(),
            more,
            count,
        })
    }
}

fn piece(reply: pb::RangeResponse) -> pb::RangeStreamResponse {
    pb::RangeStreamResponse {
        range_response: Some(reply),
    }
}
