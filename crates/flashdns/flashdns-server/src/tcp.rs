//! Streams (RFC 7766): every complete query that has arrived is answered before the next read, all replies
//! of one wake-up leave in one write.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flashdns_core::{Outcome, Transport, update::is_update};
use hearth_service::tasks::{Kind, TaskError, Tasks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use crate::{server::Shared, signed, updates, xfr};

/// Open connections in the process.
const MAX_CONNECTIONS: usize = 1024;
/// Open connections of one client address.
const MAX_PER_CLIENT: usize = 128;
/// A connection is closed this long after its last complete query, however it trickles.
const IDLE: Duration = Duration::from_secs(10);
/// A client that does not take its replies for this long is dropped.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest query but for updates; a frame that announces more ends the connection.
const MAX_QUERY: usize = 4096;
/// Replies are written once this many bytes have gathered, or nothing is left to answer.
const FLUSH_AT: usize = 64 * 1024;
/// Pause after a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

impl Clients {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(address).or_insert(0);
        if *count >= MAX_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Guest {
            clients: self.clone(),
            address,
        })
    }
}

/// A client's place; leaving frees it.
struct Guest {
    clients: Arc<Clients>,
    address: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut clients = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.address);
            }
        }
    }
}

/// Accepts connections until the stop.
pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>, tasks: Tasks) -> Result<(), TaskError> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let clients = Arc::new(Clients::default());
    loop {
        let (slot, accepted) = tokio::select! {
            () = tasks.stopping() => return Ok(()),
            both = async { (slots.clone().acquire_owned().await, listener.accept().await) } => both,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(guest) = clients.enter(remote.ip()) else {
            continue;
        };
        let (shared, stop) = (shared.clone(), tasks.clone());
        tasks.spawn("dns-tcp-connection", Kind::Background, async move {
            shared.metrics.connections.inc();
            // How a connection ends is the client's doing and worth no more than a debug line.
            let ended = tokio::select! {
                () = stop.stopping() => Ok(()),
                ended = converse(stream, &shared, remote.ip()) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%remote, %error, "a DNS connection ended");
            }
            shared.metrics.connections.dec();
            drop((guest, slot));
            Ok(())
        });
    }
}

/// Where a listener is bound.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn converse(mut stream: TcpStream, shared: &Shared, client: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input: Vec<u8> = Vec::with_capacity(512);
    let (mut output, mut reply) = (Vec::new(), Vec::new());
    let mut deadline = Instant::now() + IDLE;
    loop {
        let mut used = 0;
        let mut is_over = false;
        while let Some(frame) = frame(input.get(used..).unwrap_or(&[]))? {
            used += 2 + frame.len();
            if xfr::is_wanted(frame) {
                flush(&mut stream, &mut output).await?;
                let outcome = xfr::serve(&mut stream, shared, frame, client).await?;
                shared.metrics.queries.count(Transport::Tcp, outcome);
                continue;
            }
            if is_update(frame) {
                flush(&mut stream, &mut output).await?;
                updates::on_stream(shared, frame, client, &mut reply).await;
                let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
                output.extend(length.to_be_bytes());
                output.extend_from_slice(&reply);
                continue;
            }
            let secrets = shared.cookies.load().at(signed::now_s());
            let cookies = signed::cookies(&secrets, client);
            let (outcome, _) = signed::answer(shared, frame, Transport::Tcp, cookies, &mut reply);
            shared.metrics.queries.count(Transport::Tcp, outcome);
            match (outcome, u16::try_from(reply.len())) {
                (Outcome::Reply { .. }, Ok(length)) => {
                    output.extend(length.to_be_bytes());
                    output.extend_from_slice(&reply);
                }
                // Not a query: nothing sensible follows on this connection.
                _ => {
                    is_over = true;
                    break;
                }
            }
            if output.len() >= FLUSH_AT {
                flush(&mut stream, &mut output).await?;
            }
        }
        if used > 0 {
            deadline = Instant::now() + IDLE;
            input.drain(..used);
        }
        flush(&mut stream, &mut output).await?;
        if is_over {
            return Ok(());
        }
        let read = timeout_at(deadline, (&mut stream).take(FLUSH_AT as u64).read_buf(&mut input)).await;
        if read.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Ok(());
        }
    }
}

/// The first complete query in `input`, without its length; an error when it is longer than allowed.
fn frame(input: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    // Updates may be as long as a frame can be; that it is one stands in its third byte.
    let is_update = rest.get(2).is_none_or(|flags| flags & 0x78 == 0x28);
    if length > MAX_QUERY && !is_update {
        return Err(io::Error::other("a query is longer than allowed"));
    }
    Ok(rest.get(..length))
}

async fn flush(stream: &mut TcpStream, output: &mut Vec<u8>) -> io::Result<()> {
    if !output.is_empty() {
        timeout(WRITE_DEADLINE, stream.write_all(output))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        output.clear();
    }
    Ok(())
}
