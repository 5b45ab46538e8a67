//! How messages leave: injected.

use crate::{NodeId, PeerMessage};

/// Sends messages to other members. Called on the owner thread: it must not block. Messages may be lost, delayed,
/// reordered or sent twice; Raft copes.
///
/// What arrives goes to [`crate::HostHandle::step`], once the receiver has made sure, by the peer's certificate,
/// that `message.from` is who it says.
pub trait Transport: Send {
    /// Queues `message` for node `message.to`, or drops it when the queue is full.
    fn send(&mut self, message: PeerMessage);

    /// A member's address became known or changed (`Some`), or the member was removed (`None`).
    fn peer_changed(&mut self, node: NodeId, address: Option<&str>);
}
