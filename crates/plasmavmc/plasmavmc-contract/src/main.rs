//! A strict imitation of Firecracker's API, as a process of its own: for tests, never shipped.
//!
//! It checks every member of every request, every limit and every rule of order, and answers in
//! Firecracker's shapes. Written from the public description of the API. It runs no guest; in its place
//! it counts ticks on the serial console while it is "running", echoes lines, and ends on Ctrl+Alt+Del
//! like a guest whose kernel has `reboot=k`. What it does not know it refuses: it cannot be more
//! lenient than the real one by accident, only stricter.
//!
//! ```text
//!   NotStarted --InstanceStart--> Running <--PATCH /vm--> Paused
//!                                    |  Ctrl+Alt+Del
//!                                    v
//!                              the process ends with 0
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is its interface"
)]

mod machine;
mod requests;
mod wire;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use machine::Machine;
use wire::Answer;

/// Firecracker's own limit of a body.
const MAX_BODY: usize = 51_200;
const MAX_CONNECTIONS: usize = 32;
/// Firecracker's limit of an id.
const MAX_ID: usize = 64;

struct Options {
    id: String,
    socket: String,
}

fn options() -> Result<Options, String> {
    let (mut id, mut socket) = ("anonymous-instance".to_owned(), None);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or(format!("argument `{name}` needs a value"));
        match name.as_str() {
            "--id" => id = value()?,
            "--api-sock" => socket = Some(value()?),
            other => return Err(format!("found argument `{other}` which wasn't expected")),
        }
    }
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || id.len() > MAX_ID || !id.chars().all(good) {
        return Err(format!("invalid instance ID: {id}"));
    }
    let socket = socket.ok_or("the argument `--api-sock` is missing")?;
    Ok(Options { id, socket })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("Arguments parsing error: {message}");
            return ExitCode::from(153);
        }
    };
    let listener = match UnixListener::bind(&options.socket) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("Failed to open the API socket at: {}: {error}", options.socket);
            return ExitCode::FAILURE;
        }
    };
    let machine = Arc::new(Mutex::new(Machine::new(options.id)));
    let mut connections = JoinSet::new();
    connections.spawn(machine::guest(machine.clone()));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return ExitCode::FAILURE };
                if connections.len() < MAX_CONNECTIONS {
                    connections.spawn(serve(stream, machine.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: UnixStream, machine: Arc<Mutex<Machine>>) {
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let machine = machine.clone();
        async move {
            let (head, body) = request.into_parts();
            let answer = match Limited::new(body, MAX_BODY).collect().await {
                Ok(body) => requests::answer(&machine, &head.method, head.uri.path(), &body.to_bytes()),
                Err(_) => Answer::fault("Request payload with size too large."),
            };
            let mut response = hyper::Response::new(Full::new(Bytes::from(answer.body)));
            *response.status_mut() = answer.status;
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    // A client that hangs up ends its connection, nothing else.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
