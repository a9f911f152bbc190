//! Nobody gets more than their share, those who do not ask for more never notice, and whoever is sent away is told when
//! to come back. Clients are addresses of 127.0.0.0/8.

mod http2;
mod memory;
mod overload;
mod rates;
mod time;

use crate::support::{Answer, Gateway, PATIENCE, Request, Upstream, http};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

const SECRET: &str = "a-shared-secret-for-tests";

fn start(upstream: &Upstream, limits: &str, sources: &[String]) -> Gateway {
    Gateway::start(&format!("\n[limits]\n{limits}\n{}{}", upstream.table(), sources.concat()))
}

/// `[sources.NAME]` at `/NAME`.
fn source(name: &str, rest: &str) -> String {
    format!("\n[sources.{name}]\npath = \"/{name}\"\nupstream = \"app\"\n{rest}\n")
}

fn open(name: &str) -> String {
    source(name, "danger_accept_unverified = true")
}

/// A connection from 127.0.0.`client`.
fn connect_from(client: u8, to: SocketAddr) -> TcpStream {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&fd, &SocketAddr::from((Ipv4Addr::new(127, 0, 0, client), 0))).expect("an address of this machine");
    connect(&fd, &to).expect("a connection");
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

fn send_from(client: u8, to: SocketAddr, request: &Request) -> Answer {
    let mut stream = connect_from(client, to);
    stream.write_all(&request.bytes()).expect("written");
    http::read_answer(&mut BufReader::new(stream)).expect("an answer")
}

/// Sent away with this status and reason, and told when to come back.
#[track_caller]
fn assert_limited(gateway: &Gateway, answer: &Answer, status: u16, reason: &str) {
    let outcome = gateway.audit_of(&answer.request_id())["outcome"].clone();
    assert_eq!((answer.status, outcome.as_str().unwrap_or_default()), (status, reason));
    let seconds: Option<u32> = answer.header("retry-after").and_then(|text| text.parse().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{:?}", answer.headers);
}
