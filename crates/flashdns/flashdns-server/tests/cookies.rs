//! DNS cookies that all servers know, and the rate of replies to those who have none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use common::{Bed, PATIENCE, Running, dig_until};
use flashdns_server::Config;

/// Longest silence that is taken for the end of the replies.
const QUIET: Duration = Duration::from_secs(2);

fn config(bed: &Bed, folder: &str) -> Config {
    let mut config = bed.config(bed.data.path().join(folder));
    let seal = bed.pki.folder.path().join("seal.key");
    std::fs::write(&seal, [7; 32]).unwrap();
    config.flashdns.seal_key_file = Some(seal);
    config
}

async fn serve(bed: &Bed, config: &Config) -> Running {
    let server = bed.serve_config(config, None).await;
    dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
        answer.status == "NOERROR"
    })
    .await;
    server
}

/// The whole cookie of a reply, in hexadecimal digits.
fn cookie(server: &Running, given: &str) -> String {
    let answer = server.dig(&["hearth.internal", "SOA", &format!("+cookie={given}")]);
    let line = answer
        .text
        .lines()
        .find_map(|line| line.strip_prefix("; COOKIE: "));
    let line = line.unwrap_or_else(|| panic!("no cookie: {}", answer.text));
    assert!(line.contains("(good)"), "{line}");
    line.split(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_of_one_server_is_good_at_the_other() {
    let Some(bed) = Bed::new() else { return };
    bed.ready().await;
    let one = serve(&bed, &config(&bed, "one")).await;
    let two = serve(&bed, &config(&bed, "two")).await;
    let client = "0102030405060708";
    // Until both have the secret from the store, each makes cookies of its own.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let made = cookie(&one, client);
        assert_eq!((made.len(), &made[..16]), (48, client));
        if cookie(&two, &made) == made {
            break;
        }
        assert!(Instant::now() < deadline, "the servers have different secrets");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(two.metric(&bed.pki, "flashdns_cookies_good_total").await >= 1);
    let stored = bed.store.get("/flashdns/v1/cookies").await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&stored.value).starts_with("{\"version\":1,"));

    // One bit less is none of ours, and is answered with a good one.
    let made = cookie(&one, client);
    let last = if made.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{last}", &made[..47]);
    assert_ne!(cookie(&one, &forged), forged);
    for length in [1, 7, 9, 15, 41] {
        let option = format!("+ednsopt=10:{}", "01".repeat(length));
        let answer = one.dig(&["hearth.internal", "SOA", "+nocookie", &option]);
        assert_eq!(answer.status, "FORMERR", "{length}: {}", answer.text);
    }
    one.stop().await;
    two.stop().await;
}

/// Sends queries and counts replies: whole, cut short, none.
fn flood(server: &Running, query: &[u8], queries: usize) -> (usize, usize, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.dns).unwrap();
    socket.set_read_timeout(Some(QUIET)).unwrap();
    let (mut whole, mut cut, mut bytes) = (0, 0, 0);
    let mut reply = [0; 2048];
    let mut note = |length: usize, reply: &[u8]| {
        bytes += length;
        if reply[2] & 2 == 0 { whole += 1 } else { cut += 1 }
    };
    for number in 0..queries {
        socket.send(query).unwrap();
        // Few at a time: nothing must be lost in buffers.
        if number % 16 == 15 {
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            while let Ok(length) = socket.recv(&mut reply) {
                note(length, &reply);
            }
        }
    }
    socket.set_read_timeout(Some(QUIET)).unwrap();
    while let Ok(length) = socket.recv(&mut reply) {
        note(length, &reply);
    }
    (whole, cut, bytes)
}

/// `hearth.internal SOA` with EDNS and perhaps a cookie.
fn query(cookie: Option<&str>) -> Vec<u8> {
    let mut query =
        b"\xbe\xef\x01\0\0\x01\0\0\0\0\0\x01\x06hearth\x08internal\0\0\x06\0\x01\0\0\x29\x04\xd0\0\0\0\0"
            .to_vec();
    let option: Vec<u8> = cookie.map_or_else(Vec::new, |cookie| {
        let bytes = (0..cookie.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&cookie[at..at + 2], 16).unwrap());
        let bytes: Vec<u8> = bytes.collect();
        [&[0, 10, 0, u8::try_from(bytes.len()).unwrap()][..], &bytes].concat()
    });
    query.extend(u16::try_from(option.len()).unwrap().to_be_bytes());
    query.extend(option);
    query
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_cookie_gets_a_rate_and_the_rest_cut_short() {
    let Some(bed) = Bed::new() else { return };
    bed.ready().await;
    let mut config = config(&bed, "one");
    config.flashdns.udp_threads = 1;
    config.flashdns.response_rate.per_second = 10;
    let server = serve(&bed, &config).await;
    let sent = 800;
    let started = Instant::now();
    let (whole, cut, bytes) = flood(&server, &query(None), sent);
    // A burst of two seconds' worth, then ten a second; of the rest every second one is cut short.
    let most = 20 + 10 * (usize::try_from(started.elapsed().as_secs()).unwrap() + 1);
    assert!(whole <= most, "{whole} whole replies, at most {most}");
    let rest = sent - whole;
    assert!(cut.abs_diff(rest / 2) <= 1, "{cut} of {rest} cut short");
    assert!(
        bytes < sent * query(None).len() * 3 / 2,
        "{bytes} bytes back for {sent} queries"
    );
    let limited = async |what: &str| {
        let name = format!("flashdns_limited_total{{outcome=\"{what}\"}}");
        server.metric(&bed.pki, &name).await
    };
    assert_eq!(limited("slip").await, cut as u64);
    assert_eq!(limited("drop").await, (rest - cut) as u64);

    // Over TCP nothing is limited, nor is who has a cookie.
    assert_eq!(server.dig(&["hearth.internal", "SOA", "+tcp"]).answer.len(), 1);
    let over_tcp = server
        .dig(&["hearth.internal", "SOA", "+tcp", "+cookie=0102030405060708"])
        .text;
    let line = over_tcp
        .lines()
        .find_map(|line| line.strip_prefix("; COOKIE: "))
        .unwrap();
    let good = line.split(' ').next().unwrap();
    assert_eq!(
        flood(&server, &query(Some(good)), 200),
        (200, 0, 200 * reply_length(&server, good))
    );
    server.stop().await;

    config.flashdns.response_rate.exempt_networks = vec!["127.0.0.0/8".to_owned()];
    let server = serve(&bed, &config).await;
    assert_eq!(flood(&server, &query(None), 200).0, 200);
    server.stop().await;
}

fn reply_length(server: &Running, cookie: &str) -> usize {
    flood(server, &query(Some(cookie)), 1).2
}
