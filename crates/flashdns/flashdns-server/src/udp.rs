//! Datagrams: a thread per socket, many datagrams per system call, no timer.
//!
//! The kernel spreads clients over the sockets of one port (`SO_REUSEPORT`). A thread sleeps in `recvmmsg`
//! until something comes, answers all of it and sends the replies with one `sendmmsg`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Shutdown, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use flashdns_core::{
    Ask, Outcome, Transport, answer_to,
    limits::MAX_UDP_REPLY,
    rrl::{self, Limiter, Verdict},
    truncated,
    update::is_update,
};
use hearth_service::tasks::{TaskError, Tasks};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, sendto},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use crate::{
    metrics::LimitLabels,
    server::Shared,
    signed,
    updates::{self, Taken},
};

/// Datagrams per system call.
const BATCH: usize = 32;
/// Longest query read; what is longer is cut and then malformed. No honest query comes near.
const MAX_QUERY: usize = 2048;
/// Buffer of received datagrams that a socket asks for: a burst of some thousand queries.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Binds one socket of a shared port.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Answers on `socket` from a thread of its own until the stop.
pub(crate) async fn run(socket: UdpSocket, shared: Arc<Shared>, tasks: Tasks) -> Result<(), TaskError> {
    let socket = Arc::new(socket);
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, end) = oneshot::channel();
    let thread = {
        let (socket, stop) = (socket.clone(), stop.clone());
        let body = move || {
            let result = serve(&socket, &shared, &stop);
            // Nobody listens only when the process ends.
            let _ = ended.send(result);
        };
        std::thread::Builder::new()
            .name("dns-udp".to_owned())
            .spawn(body)?
    };
    let mut end = end;
    let result = tokio::select! {
        result = &mut end => result,
        () = tasks.stopping() => {
            stop.store(true, Ordering::Release);
            wake(&socket);
            end.await
        }
    };
    drop(thread);
    match result {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err("the thread that answers UDP panicked".into()),
    }
}

/// Wakes a thread out of `recvmmsg`. Linux reports that the socket is not connected and wakes it all the same.
fn wake(socket: &UdpSocket) {
    let _ = socket2::SockRef::from(socket).shutdown(Shutdown::Both);
}

fn serve(socket: &Arc<UdpSocket>, shared: &Shared, stop: &AtomicBool) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut queries = vec![[0; MAX_QUERY]; BATCH];
    let mut replies: Vec<Vec<u8>> = (0..BATCH).map(|_| Vec::with_capacity(MAX_UDP_REPLY)).collect();
    let mut senders = Vec::with_capacity(BATCH);
    let mut gate = Gate::new(shared)?;
    loop {
        let received = receive(fd, &mut queries);
        if stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let received = match received {
            Ok(received) => received,
            // Interrupted, or the kernel is short of memory for a moment.
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::ECONNREFUSED) => {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        senders.clear();
        let snapshot = shared.published.load();
        let secrets = shared.cookies.load().at(signed::now_s());
        for ((length, sender), query) in received.into_iter().zip(&queries) {
            let (Some(reply), Some(query)) = (replies.get_mut(senders.len()), query.get(..length)) else {
                continue;
            };
            if is_update(query) {
                if let Some(client) = sender.as_ref().and_then(socket_address)
                    && let Taken::Replied = updates::datagram(shared, query, socket, client, reply)
                {
                    senders.push(sender);
                }
                continue;
            }
            let client = sender.as_ref().and_then(address);
            let cookies = client.and_then(|client| signed::cookies(&secrets, client));
            let (outcome, is_proven) = if signed::is_special(query) {
                signed::special(shared, query, client, cookies, reply)
            } else {
                let ask = Ask {
                    transport: Transport::Udp,
                    room: 0,
                    cookies,
                };
                answer_to(&snapshot, query, &ask, reply)
            };
            shared.metrics.queries.count(Transport::Udp, outcome);
            if is_proven {
                shared.metrics.cookies_good.inc();
            } else if let (Some(gate), Some(client)) = (&mut gate, client)
                && !gate.lets(shared, client, query, outcome, reply)
            {
                continue;
            }
            if outcome != Outcome::Silence && sender.is_some() {
                senders.push(sender);
            }
        }
        drop(snapshot);
        send(fd, &replies, &senders, shared);
    }
}

fn socket_address(sender: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || {
        sender
            .as_sockaddr_in()
            .map(|v4| SocketAddr::from((v4.ip(), v4.port())))
    };
    let v6 = || {
        sender
            .as_sockaddr_in6()
            .map(|v6| SocketAddr::from((v6.ip(), v6.port())))
    };
    v4().or_else(v6)
}

fn address(sender: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = || sender.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let v6 = || sender.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
    v4().or_else(v6)
}

/// Limits what one thread sends.
struct Gate {
    limiter: Limiter,
    start: Instant,
}

impl Gate {
    fn new(shared: &Shared) -> io::Result<Option<Self>> {
        let Some(limits) = shared.response_rate else {
            return Ok(None);
        };
        let mut key = [0; 8];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Some(Self {
            limiter: Limiter::new(limits, u64::from_ne_bytes(key)),
            start: Instant::now(),
        }))
    }

    /// Whether a reply goes out; it may be cut short.
    fn lets(
        &mut self,
        shared: &Shared,
        client: IpAddr,
        query: &[u8],
        outcome: Outcome,
        reply: &mut Vec<u8>,
    ) -> bool {
        let kind = match outcome {
            Outcome::Silence => return true,
            Outcome::Reply { rcode: 0, .. } => rrl::Kind::Answer,
            Outcome::Reply { rcode: 3, .. } => rrl::Kind::Missing,
            Outcome::Reply { .. } => rrl::Kind::Error,
        };
        if shared
            .exempt_networks
            .iter()
            .any(|network| network.contains(client))
        {
            return true;
        }
        let [.., a, b, c, d] = self.start.elapsed().as_millis().to_be_bytes();
        let now_ms = u32::from_be_bytes([a, b, c, d]);
        let outcome = match self.limiter.count(client, kind, now_ms) {
            Verdict::Send => return true,
            Verdict::Slip => "slip",
            Verdict::Drop => "drop",
        };
        shared
            .metrics
            .limited
            .get_or_create(&LimitLabels { outcome })
            .inc();
        if outcome == "slip" {
            truncated(query, reply);
        }
        outcome == "slip"
    }
}

type Received = Vec<(usize, Option<SockaddrStorage>)>;

/// Waits for at least one datagram and takes those that are there.
fn receive(fd: i32, queries: &mut [[u8; MAX_QUERY]]) -> Result<Received, Errno> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(queries.len(), None);
    let mut slices: Vec<_> = queries.iter_mut().map(|query| [IoSliceMut::new(query)]).collect();
    let received = recvmmsg(
        fd,
        &mut headers,
        slices.iter_mut(),
        MsgFlags::MSG_WAITFORONE,
        None,
    )?;
    Ok(received.map(|message| (message.bytes, message.address)).collect())
}

/// Sends the first `senders.len()` replies. One that cannot be sent must not hold back the ones behind it.
fn send(fd: i32, replies: &[Vec<u8>], senders: &[Option<SockaddrStorage>], shared: &Shared) {
    let mut done = 0;
    while done < senders.len() {
        let (Some(replies), Some(senders)) = (replies.get(done..), senders.get(done..)) else {
            return;
        };
        let sent = match (senders, replies) {
            ([Some(sender)], [reply, ..]) => sendto(fd, reply, sender, MsgFlags::empty()).map(|_| 1),
            _ => send_batch(fd, replies, senders),
        };
        match sent {
            Ok(sent) if sent > 0 => done += sent,
            Err(Errno::EINTR) => {}
            _ => {
                shared.metrics.send_failures.inc();
                done += 1;
            }
        }
    }
}

fn send_batch(fd: i32, replies: &[Vec<u8>], senders: &[Option<SockaddrStorage>]) -> Result<usize, Errno> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(senders.len(), None);
    let slices: Vec<_> = replies
        .iter()
        .take(senders.len())
        .map(|reply| [IoSlice::new(reply)])
        .collect();
    sendmmsg(fd, &mut headers, slices.iter(), senders, [], MsgFlags::empty()).map(Iterator::count)
}
