//! DNS relay of one tap: questions of the guest go to the node's resolver, answers come back.
//!
//! Messages are passed on as they are; what they mean is the resolver's business.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Questions of one guest under way at once; further ones wait in the socket.
const MAX_QUESTIONS: usize = 32;
/// TCP connections of one guest at once.
const MAX_CONNECTIONS: usize = 8;
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// Largest UDP message: what EDNS can announce.
const MAX_MESSAGE: usize = 65_535;
const MAX_QUESTION: usize = 4096;

/// A socket of the gateway's address that only hears the tap.
pub(super) fn bind(kind: Type, tap: &str, address: Ipv4Addr) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.bind(&SocketAddr::from((address, 0)).into())?;
    Ok(socket)
}

/// Relays UDP until dropped.
pub(super) async fn serve_udp(socket: UdpSocket, resolver: SocketAddr) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut running = FuturesUnordered::new();
    let mut buffer = [0; MAX_QUESTION];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer), if running.len() < MAX_QUESTIONS => match received {
                Ok((n, from)) => {
                    let question = buffer.get(..n).unwrap_or_default().to_vec();
                    running.push(relay(socket.clone(), resolver, question, from));
                }
                Err(error) => {
                    tracing::debug!(%error, "DNS receive");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(relayed) = running.next() => if let Err(error) = relayed {
                tracing::debug!(%error, %resolver, "a DNS question was not answered");
            },
        }
    }
}

async fn relay(
    socket: Arc<UdpSocket>,
    resolver: SocketAddr,
    question: Vec<u8>,
    from: SocketAddr,
) -> io::Result<()> {
    // A fresh socket per question: its random port makes answers hard to forge.
    let local: SocketAddr = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let upstream = UdpSocket::bind(local).await?;
    upstream.connect(resolver).await?;
    upstream.send(&question).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    let n = tokio::time::timeout(ANSWER_LIMIT, upstream.recv(&mut answer)).await??;
    socket.send_to(answer.get(..n).unwrap_or_default(), from).await?;
    Ok(())
}

/// Relays TCP until dropped.
pub(super) async fn serve_tcp(listener: TcpListener, resolver: SocketAddr) -> io::Result<()> {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if running.len() < MAX_CONNECTIONS => match accepted {
                Ok((mut guest, _)) => running.push(async move {
                    let relayed = async {
                        let mut upstream = TcpStream::connect(resolver).await?;
                        tokio::io::copy_bidirectional(&mut guest, &mut upstream).await
                    };
                    tokio::time::timeout(CONNECTION_LIMIT, relayed).await
                }),
                Err(error) => {
                    tracing::debug!(%error, "DNS accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = running.next() => if let Ok(Err(error)) = ended {
                tracing::debug!(%error, %resolver, "a DNS connection broke");
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn questions_go_and_answers_come_over_both_transports() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = upstream.local_addr().unwrap();
        let upstream_tcp = TcpListener::bind(resolver).await.unwrap();
        let relay_udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay_tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp, tcp) = (relay_udp.local_addr().unwrap(), relay_tcp.local_addr().unwrap());
        let asking = async {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(b"question", udp).await.unwrap();
            let mut buffer = [0; 64];
            let (n, from) = upstream.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], b"question");
            upstream.send_to(b"answer", from).await.unwrap();
            let n = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], b"answer");
            let mut client = TcpStream::connect(tcp).await.unwrap();
            client.write_all(b"long question").await.unwrap();
            let (mut server, _) = upstream_tcp.accept().await.unwrap();
            let mut long = [0; 13];
            server.read_exact(&mut long).await.unwrap();
            server.write_all(&long).await.unwrap();
            client.read_exact(&mut long).await.unwrap();
            assert_eq!(&long, b"long question");
        };
        tokio::select! {
            ended = serve_udp(relay_udp, resolver) => panic!("{ended:?}"),
            ended = serve_tcp(relay_tcp, resolver) => panic!("{ended:?}"),
            done = tokio::time::timeout(SOON, asking) => done.unwrap(),
        }
    }
}
