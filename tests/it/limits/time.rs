//! How long.

use super::{connect_from, open, start};
use crate::support::http::{connect, read_answer};
use crate::support::{Answer, Gateway, Request, Upstream};
use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

/// Sends what is given, piece by piece, and returns all that comes back until the gateway closes.
fn until_closed(gateway: &Gateway, pieces: &[&[u8]], pause: Duration) -> (Vec<u8>, Duration) {
    let mut stream = connect(gateway.public()).expect("a connection");
    let begun = Instant::now();
    for (position, piece) in pieces.iter().enumerate() {
        if position > 0 {
            std::thread::sleep(pause);
        }
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let mut all = Vec::new();
    // A reset behind the last byte is an end as well.
    let _ = stream.read_to_end(&mut all);
    (all, begun.elapsed())
}

fn answer(bytes: &[u8]) -> Answer {
    read_answer(&mut BufReader::new(bytes)).expect("an answer")
}

#[test]
fn a_slow_head_is_a_408_and_only_when_part_of_it_has_come() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "header_timeout = \"400ms\"\nidle_timeout = \"30s\"", &[open("a")]);
    let at_once = Duration::ZERO;
    let (bytes, took) = until_closed(&gateway, &[b"POST /a HTTP/1.1\r\nHost: hooks"], at_once);
    assert_eq!((answer(&bytes).status, answer(&bytes).header("connection")), (408, Some("close")));
    assert!((Duration::from_millis(350)..Duration::from_secs(10)).contains(&took), "{took:?}");
    // However steadily it comes, the time runs from the first byte.
    let drip: Vec<&[u8]> = b"POST /a HTTP/1.1\r\nHost: hooks.example.com\r\n".chunks(3).collect();
    let (bytes, took) = until_closed(&gateway, &drip, Duration::from_millis(50));
    assert!(bytes.is_empty() || answer(&bytes).status == 408);
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Nothing was asked, so nothing is answered.
    let (bytes, _) = until_closed(&gateway, &[b""], at_once);
    assert_eq!(bytes, b"");
    assert_eq!(upstream.count(), 0);
    // On a kept connection the time runs from the next head's first byte, not from the last answer.
    let mut stream = connect(gateway.public()).expect("a connection");
    for _ in 0..2 {
        stream.write_all(&Request::post("/a", "{}").bytes()).expect("written");
        assert_eq!(read_answer(&mut BufReader::new(&mut stream)).expect("an answer").status, 200);
        std::thread::sleep(Duration::from_millis(600));
    }
    stream.write_all(b"POST").expect("written");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an end");
    assert_eq!(answer(&rest).status, 408);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "idle_timeout = \"300ms\"", &[open("a")]);
    let mut stream = connect(gateway.public()).expect("a connection");
    stream.write_all(&Request::post("/a", "{}").bytes()).expect("written");
    let begun = Instant::now();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("a clean end");
    assert!((Duration::from_millis(250)..Duration::from_secs(10)).contains(&begun.elapsed()));
    let mut reader = BufReader::new(&all[..]);
    assert_eq!(read_answer(&mut reader).expect("the answer").status, 200);
    // A 408 here would be taken for the answer to the next request.
    assert_eq!(reader.buffer(), b"");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_body_has_one_deadline_however_steadily_it_drips() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "body_timeout = \"1s\"", &[open("a")]);
    let head = b"POST /a HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: 1000\r\n\r\n";
    let chunked = b"POST /a HTTP/1.1\r\nHost: hooks.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    let drip: Vec<&[u8]> = std::iter::once(&head[..]).chain([&b"."[..]; 15]).collect();
    let chunks: Vec<&[u8]> = std::iter::once(&chunked[..]).chain([&b"1\r\n.\r\n"[..]; 15]).collect();
    let pause = Duration::from_millis(100);
    let (nothing, a_part) = (vec![&head[..]], vec![&head[..], b"..."]);
    std::thread::scope(|scope| {
        let tries = [&nothing, &a_part, &drip, &chunks].map(|pieces| {
            let gateway = &gateway;
            scope.spawn(move || until_closed(gateway, pieces, pause))
        });
        for (position, tried) in tries.into_iter().enumerate() {
            let (bytes, took) = tried.join().expect("a sender");
            let answer = answer(&bytes);
            assert_eq!((answer.status, answer.header("connection")), (408, Some("close")), "try {position}");
            assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "body_timeout");
            assert!((Duration::from_millis(950)..Duration::from_secs(10)).contains(&took), "try {position}: {took:?}");
        }
    });
    assert_eq!(upstream.count(), 0);
    // Slow, and done in time.
    let mut stream = connect(gateway.public()).expect("a connection");
    for piece in [&b"POST /a HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: 2\r\n\r\n"[..], b"{", b"}"] {
        stream.write_all(piece).expect("written");
        std::thread::sleep(pause);
    }
    assert_eq!(read_answer(&mut BufReader::new(stream)).expect("an answer").status, 200);
}

#[test]
fn a_hundred_slow_senders_do_not_hurt_a_good_one() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[open("a")]);
    let slow_head = b"POST /a HTTP/1.1\r\nHost: hooks.example.com\r\nX-Slow: ";
    let slow_body = b"POST /a HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: 1000000\r\n\r\n";
    let mut slow: Vec<_> = (0..100u8)
        .map(|n| {
            let mut stream = connect_from(2, gateway.public());
            stream.write_all(if n % 2 == 0 { slow_head } else { slow_body }).expect("written");
            stream
        })
        .collect();
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        for stream in &mut slow {
            stream.write_all(b".").expect("still open");
        }
        // On the address of the slow ones as well: it is not theirs alone.
        for client in [1, 2] {
            let begun = Instant::now();
            assert_eq!(super::send_from(client, gateway.public(), &Request::post("/a", "{}")).status, 200);
            worst = worst.max(begun.elapsed());
        }
    }
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    assert_eq!(upstream.count(), 40);
    assert!(gateway.metric("hookward_connections", &[("listener", "public")]) >= 100.0);
}
