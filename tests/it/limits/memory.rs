//! How much at once: bytes held, requests and connections.

use super::{assert_limited, connect_from, open, send_from, source, start};
use crate::support::http::read_answer;
use crate::support::upstream::{Gate, Reply};
use crate::support::{Gateway, Request, Upstream, eventually};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const KIB: usize = 1024;

/// The least that can be configured: 1 MiB, so 128 KiB a client and 512 KiB a source.
const BUFFERED: &str = "max_buffered = \"1MiB\"\nmax_body = \"256KiB\"";

/// Begins a body of `declared` bytes and sends `sent` of them.
fn begin(gateway: &Gateway, client: u8, path: &str, declared: usize, sent: usize) -> TcpStream {
    let mut stream = connect_from(client, gateway.public());
    let head = format!("POST {path} HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: {declared}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &vec![b'.'; sent]].concat()).expect("written");
    stream
}

fn wait_until_held(gateway: &Gateway, bytes: usize) {
    // What is held may be more than what came: room that was taken for the rest counts as well.
    eventually(&format!("{bytes} bytes are held"), || {
        let held = gateway.metric("hookward_buffered_bytes", &[]) as usize;
        (held == bytes || bytes > 0 && held > bytes).then_some(())
    });
}

#[test]
fn one_client_holds_an_eighth_of_the_memory_for_bodies() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, BUFFERED, &[open("a")]);
    let slow = begin(&gateway, 1, "/a", 110 * KIB, 100 * KIB);
    wait_until_held(&gateway, 100 * KIB);
    let another = Request::post("/a", vec![b'.'; 40 * KIB]);
    assert_limited(&gateway, &send_from(1, gateway.public(), &another), 503, "buffer_full");
    assert_eq!(send_from(2, gateway.public(), &another).status, 200);
    // What is given back can be used again.
    drop(slow);
    wait_until_held(&gateway, 0);
    assert_eq!(send_from(1, gateway.public(), &another).status, 200);
    assert_eq!(upstream.count(), 2);
    wait_until_held(&gateway, 0);
}

#[test]
fn one_source_holds_half_of_the_memory_for_bodies() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, BUFFERED, &[open("a"), open("b")]);
    let slow: Vec<_> = (1..=4).map(|client| begin(&gateway, client, "/a", 128 * KIB + 1, 128 * KIB)).collect();
    wait_until_held(&gateway, 512 * KIB);
    let to = |path: &str| send_from(9, gateway.public(), &Request::post(path, "{}"));
    assert_limited(&gateway, &to("/a"), 503, "buffer_full");
    assert_eq!(to("/b").status, 200);
    drop(slow);
}

#[test]
fn when_all_memory_is_held_the_slowest_body_makes_room() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, BUFFERED, &[open("a"), open("b"), open("c")]);
    // It holds the most, and for the longest.
    let mut slowest = begin(&gateway, 1, "/a", 128 * KIB, 127 * KIB);
    let slow: Vec<_> = (2..=8)
        .map(|client| begin(&gateway, client, if client <= 4 { "/a" } else { "/b" }, 120 * KIB + 1, 120 * KIB))
        .collect();
    let held = 127 * KIB + 7 * 120 * KIB;
    wait_until_held(&gateway, held);
    // A second is how long a body may take before it is judged.
    std::thread::sleep(Duration::from_millis(1100));
    let answer = send_from(9, gateway.public(), &Request::post("/c", vec![b'.'; 100 * KIB]));
    assert_eq!(answer.status, 200);
    let cut = read_answer(&mut BufReader::new(&mut slowest)).expect("an answer");
    assert_limited(&gateway, &cut, 503, "buffer_full");
    // The other seven are still there, and end well.
    wait_until_held(&gateway, held - 127 * KIB);
    for mut stream in slow {
        stream.write_all(b".").expect("written");
        assert_eq!(read_answer(&mut BufReader::new(stream)).expect("an answer").status, 200);
    }
    assert_eq!(upstream.count(), 8);
    wait_until_held(&gateway, 0);
}

#[test]
fn a_client_has_so_many_requests_in_flight_and_the_next_one_waits_its_turn() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |request, _| match request.target.as_str() {
        "/held" => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    });
    let gateway = start(&upstream, "max_requests_per_client = 2", &[open("held"), open("free")]);
    let to = gateway.public();
    // One waits for the upstream, the other has not sent its body yet: both are in flight.
    let waiting = std::thread::spawn(move || send_from(1, to, &Request::post("/held", "{}")).status);
    upstream.wait_for(1);
    let mut slow = begin(&gateway, 1, "/free", 4 * KIB, KIB);
    wait_until_held(&gateway, KIB + 2);
    assert_limited(&gateway, &send_from(1, to, &Request::post("/free", "{}")), 429, "client_busy");
    assert_eq!(send_from(2, to, &Request::post("/free", "{}")).status, 200);
    slow.write_all(&vec![b'.'; 3 * KIB]).expect("written");
    assert_eq!(read_answer(&mut BufReader::new(slow)).expect("an answer").status, 200);
    eventually("there is a place again", || {
        (send_from(1, to, &Request::post("/free", "{}")).status == 200).then_some(())
    });
    gate.open();
    assert_eq!(waiting.join().expect("the one that waited"), 200);
}

/// A connection that is served and stays open.
fn kept(gateway: &Gateway, client: u8) -> TcpStream {
    let mut stream = connect_from(client, gateway.public());
    stream.write_all(&Request::post("/a", "{}").bytes()).expect("written");
    assert_eq!(read_answer(&mut BufReader::new(&mut stream)).expect("an answer").status, 200);
    stream
}

#[test]
fn a_client_has_so_many_connections_and_the_next_one_is_closed() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "max_connections_per_client = 2", &[open("a")]);
    let kept_open = [kept(&gateway, 1), kept(&gateway, 1)];
    let mut third = connect_from(1, gateway.public());
    let mut nothing = Vec::new();
    let read = third.read_to_end(&mut nothing);
    assert!(matches!(read, Ok(0)) || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    drop(kept(&gateway, 2));
    drop(kept_open);
    eventually("a place is free again", || {
        let mut stream = connect_from(1, gateway.public());
        stream.write_all(&Request::post("/a", "{}").bytes()).ok()?;
        read_answer(&mut BufReader::new(stream)).ok()
    });
}

#[test]
fn beyond_all_connections_the_next_one_waits_and_is_served_when_one_ends() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "max_connections = 2", &[open("a")]);
    let (first, second) = (kept(&gateway, 1), kept(&gateway, 2));
    let mut third = connect_from(3, gateway.public());
    third.write_all(&Request::post("/a", "{}").bytes()).expect("written");
    third.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    let early = third.read(&mut [0]).expect_err("no answer yet");
    assert!(matches!(early.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{early}");
    // The operator's port has connections of its own.
    assert_eq!(gateway.get("/healthz").expect("an answer").status, 200);
    assert_eq!(upstream.count(), 2);
    drop(first);
    third.set_read_timeout(Some(crate::support::PATIENCE)).expect("a socket");
    assert_eq!(read_answer(&mut BufReader::new(third)).expect("an answer").status, 200);
    drop(second);
}

#[test]
fn a_head_is_as_long_as_configured_and_no_longer() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "max_header_bytes = \"8KiB\"", &[open("a")]);
    let with = |length: usize| Request::post("/a", "{}").header("X-Long", "x".repeat(length)).send(gateway.public());
    assert_eq!(with(7 * KIB).status, 200);
    let over = with(9 * KIB);
    assert_eq!((over.status, over.header("connection")), (431, Some("close")));
    let target = Request::post(&format!("/a?{}", "x".repeat(9 * KIB)), "{}").send(gateway.public());
    assert_eq!(target.status, 431);
    let many = (0..101).fold(Request::post("/a", "{}"), |sent, n| sent.header(&format!("X-{n}"), "1"));
    assert_eq!(many.send(gateway.public()).status, 431);
    let fewer = (0..90).fold(Request::post("/a", "{}"), |sent, n| sent.header(&format!("X-{n}"), "1"));
    assert_eq!(fewer.send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_full_upstream_is_a_503_and_not_a_queue() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let gateway = Gateway::start(&format!(
        "{}max_in_flight = 1\nqueue_timeout = \"100ms\"\n{}",
        upstream.table(),
        source("a", "danger_accept_unverified = true")
    ));
    let to = gateway.public();
    let waiting = std::thread::spawn(move || Request::post("/a", "1").send(to).status);
    upstream.wait_for(1);
    assert_limited(&gateway, &Request::post("/a", "2").send(to), 503, "upstream_busy");
    gate.open();
    assert_eq!(waiting.join().expect("the one that waited"), 200);
    assert_eq!(upstream.count(), 1);
}
