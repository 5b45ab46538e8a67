//! TCP as hostile and slow clients speak it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use common::{Bed, dig_until};

/// A SOA query for the internal zone.
fn query() -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x06hearth\x08internal\x00\x00\x06\x00\x01");
    query
}

fn framed(query: &[u8]) -> Vec<u8> {
    [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], query].concat()
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Reads one reply; `None` when the server has closed.
fn reply(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut reply = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut reply).ok()?;
    Some(reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_cut_into_queries_and_closed_when_hopeless() {
    let Some(bed) = Bed::new() else { return };
    bed.ready().await;
    let server = bed.serve().await;
    dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
        answer.status == "NOERROR"
    })
    .await;

    let mut trickle = connect(server.dns);
    trickle.set_nodelay(true).unwrap();
    for byte in framed(&query()) {
        trickle.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let first = reply(&mut trickle).unwrap();
    assert_eq!((first[3] & 0xf, &first[..2]), (0, &[0x12, 0x34][..]));
    trickle.write_all(&framed(&query())).unwrap();
    assert_eq!(reply(&mut trickle).unwrap(), first, "the connection stays open");

    for hopeless in [
        &[0, 0][..],
        // A query of that length; an update may be as long.
        &[0xff, 0xff, 0xbe, 0xef, 0x01],
        &framed(b"short"),
        &framed(&[0x80; 40]),
    ] {
        let mut stream = connect(server.dns);
        stream.write_all(hopeless).unwrap();
        let asked = Instant::now();
        assert_eq!(reply(&mut stream), None, "{hopeless:?}");
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "{hopeless:?} was not closed at once"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_clients_do_not_keep_others_out() {
    let Some(bed) = Bed::new() else { return };
    bed.ready().await;
    let server = bed.serve().await;
    dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
        answer.status == "NOERROR"
    })
    .await;

    // One that asks without ever reading.
    let mut deaf = connect(server.dns);
    deaf.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let many = framed(&query()).repeat(2000);
    while deaf.write_all(&many).is_ok() {}

    // As many idle connections as one address may have; the next one is closed.
    let mut idle: Vec<TcpStream> = (0..200).map(|_| connect(server.dns)).collect();
    let refused = idle.iter_mut().rev().take(60).all(|stream| {
        let _ = stream.write_all(&framed(&query()));
        reply(stream).is_none()
    });
    assert!(refused, "one address has more connections than allowed");
    assert_eq!(server.metric(&bed.pki, "flashdns_tcp_connections").await, 128);

    // Everybody else is served.
    assert_eq!(server.dig(&["hearth.internal", "SOA"]).status, "NOERROR");
    assert_eq!(
        server
            .dig(&["hearth.internal", "SOA", "+tcp", "-b", "127.0.0.2"])
            .status,
        "NOERROR"
    );
    drop(idle);
    drop(deaf);
    let free = Instant::now();
    while server.metric(&bed.pki, "flashdns_tcp_connections").await > 0 {
        assert!(free.elapsed() < common::PATIENCE, "connections are left over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_and_noise_get_no_reply() {
    let Some(bed) = Bed::new() else { return };
    bed.ready().await;
    let server = bed.serve().await;
    dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
        answer.status == "NOERROR"
    })
    .await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut response = query();
    response[2] = 0x81;
    let mut buffer = [0; 512];
    for silent in [&response[..], b"x", b""] {
        socket.send_to(silent, server.dns).unwrap();
        assert!(socket.recv(&mut buffer).is_err(), "{silent:?} was answered");
    }
    socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let long = [&query()[..], &[0; 4000]].concat();
    socket.send_to(&long, server.dns).unwrap();
    assert!(socket.recv(&mut buffer).is_ok());
    assert_eq!(
        buffer[3] & 0xf,
        1,
        "a datagram longer than any query is malformed"
    );
    server.stop().await;
}
