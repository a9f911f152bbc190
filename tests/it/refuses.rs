//! What a stranger tries does not work: the exact answer to each attempt, the exact word for it in the audit log, and the
//! genuine twin that passes.

mod framing;
mod handshakes;
mod http2;
mod proofs;
mod senders;
mod targets;

use crate::support::{Answer, Gateway, Upstream};
use std::io::BufReader;
use std::net::SocketAddr;

const SECRET: &str = "a-shared-secret-for-tests";

/// `[sources.NAME]` at `/NAME`, with the secret and the upstream that everybody here uses.
fn source(name: &str, rest: &str) -> String {
    format!("\n[sources.{name}]\npath = \"/{name}\"\nupstream = \"app\"\n{rest}\n")
}

fn preset(name: &str) -> String {
    source(name, &format!("provider = \"{name}\"\nsecrets = [{{ value = \"{SECRET}\" }}]"))
}

/// Anybody may send: what is tested stands before any proof.
fn open(name: &str) -> String {
    source(name, "danger_accept_unverified = true")
}

fn start(upstream: &Upstream, sources: &[String]) -> Gateway {
    Gateway::start(&format!("{}{}", upstream.table(), sources.concat()))
}

/// The status to the sender and the reason in the audit log.
#[track_caller]
fn assert_refused(gateway: &Gateway, answer: &Answer, status: u16, reason: &str, what: &str) {
    let outcome = gateway.audit_of(&answer.request_id())["outcome"].clone();
    assert_eq!((answer.status, outcome.as_str().unwrap_or_default()), (status, reason), "{what}");
}

/// Sends these bytes and reads every answer that comes back.
///
/// A last request of our own, for no source and with `Connection: close`, ends a connection that would otherwise stay
/// open; its 404 is left out. (A sender that shuts its side down is one that has left, and gets no answer.)
fn answers_to(to: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<Answer> {
    use std::io::Write;
    let last = b"GET /the-end HTTP/1.1\r\nHost: hooks.example.com\r\nConnection: close\r\n\r\n";
    let mut stream = crate::support::http::connect(to).expect("a connection");
    // The gateway may have refused and closed before it was all sent.
    let _ = stream.write_all(&[bytes.as_ref(), last].concat());
    let mut reader = BufReader::new(stream);
    let read = || crate::support::http::read_answer(&mut reader).ok();
    let mut answers: Vec<Answer> = std::iter::from_fn(read).collect();
    answers.pop_if(|answer| answer.status == 404 && answer.header("connection") == Some("close"));
    answers
}
