//! Where a request ends: bodies, lengths and codings, and those who want two readers to disagree about them.

use super::{SECRET, answers_to, assert_refused, open, preset, source, start};
use crate::support::http::{connect, raw, read_answer};
use crate::support::{Gateway, Request, Upstream, sign};
use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

/// Were this read as a request of its own, it would be forwarded: `/inner` takes anything.
const SMUGGLED: &str = "POST /inner HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: 2\r\n\r\nhi";

fn smuggler(upstream: &Upstream) -> Gateway {
    start(upstream, &[open("outer"), open("inner")])
}

/// The upstream never saw what was hidden, and what it saw of the outer request is one request with one length.
#[track_caller]
fn assert_nothing_smuggled(upstream: &Upstream, what: &str) {
    for received in upstream.received() {
        assert_eq!(received.target, "/outer", "{what}");
        assert!(received.header("transfer-encoding").is_none(), "{what}");
        assert_eq!(received.all("content-length"), [received.body.len().to_string()], "{what}");
    }
}

#[test]
fn two_lengths_or_a_coding_that_is_not_exactly_chunked_smuggle_nothing() {
    let upstream = Upstream::start();
    let gateway = smuggler(&upstream);
    let chunked = "2\r\nhi\r\n0\r\n\r\n";
    let cl = format!("Content-Length: {}\r\n", chunked.len());
    let cases = [
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n".to_owned(), 501),
        ("chunked twice in one", "Transfer-Encoding: chunked, chunked\r\n".to_owned(), 501),
        ("chunked twice in two", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".to_owned(), 501),
        (", chunked", "Transfer-Encoding: ,chunked\r\n".to_owned(), 501),
        ("identity, chunked", "Transfer-Encoding: identity, chunked\r\n".to_owned(), 501),
        ("in two, gzip first", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n".to_owned(), 501),
        ("identity", "Transfer-Encoding: identity\r\n".to_owned(), 400),
        ("identity and a length", format!("Transfer-Encoding: identity\r\n{cl}"), 400),
        ("chunked, identity", "Transfer-Encoding: chunked, identity\r\n".to_owned(), 400),
        ("xchunked", "Transfer-Encoding: xchunked\r\n".to_owned(), 400),
        ("a vertical tab", "Transfer-Encoding: \x0bchunked\r\n".to_owned(), 400),
        ("quoted", "Transfer-Encoding: \"chunked\"\r\n".to_owned(), 400),
        ("chunked; q", "Transfer-Encoding: chunked;q=1\r\n".to_owned(), 400),
        ("empty", "Transfer-Encoding: \r\n".to_owned(), 400),
        ("two lengths", "Content-Length: 2\r\nContent-Length: 4\r\n".to_owned(), 400),
        ("two in one", "Content-Length: 2, 4\r\n".to_owned(), 400),
        ("+2", "Content-Length: +2\r\n".to_owned(), 400),
        ("-2", "Content-Length: -2\r\n".to_owned(), 400),
        ("0x2", "Content-Length: 0x2\r\n".to_owned(), 400),
        ("2 0", "Content-Length: 2 0\r\n".to_owned(), 400),
        ("2.0", "Content-Length: 2.0\r\n".to_owned(), 400),
        ("no number", "Content-Length: \r\n".to_owned(), 400),
        ("over 64 bits", "Content-Length: 18446744073709551618\r\n".to_owned(), 400),
        ("obs-fold", "Transfer-Encoding:\r\n chunked\r\n".to_owned(), 400),
        ("obs-fold behind another", format!("X-A: b\r\n Transfer-Encoding: chunked\r\n{cl}"), 400),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n".to_owned(), 400),
        ("a space before the length's colon", "Content-Length : 2\r\n".to_owned(), 400),
        ("a space before the name", " Content-Length: 2\r\n".to_owned(), 400),
        ("a bare CR", "X-A: b\rContent-Length: 2\r\n".to_owned(), 400),
        ("a NUL", "X-A: b\0c\r\n".to_owned(), 400),
        ("no colon", "Content-Length 2\r\n".to_owned(), 400),
    ];
    for (what, headers, status) in cases {
        let head = format!("POST /outer HTTP/1.1\r\nHost: hooks.example.com\r\n{headers}\r\n");
        for body in [format!("{chunked}{SMUGGLED}"), SMUGGLED.to_owned()] {
            let answers = answers_to(gateway.public(), format!("{head}{body}"));
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            assert_eq!(statuses, [status], "{what}");
            assert_eq!(answers[0].header("connection"), Some("close"), "{what}");
        }
    }
    assert_eq!(upstream.count(), 0);
    // An old version has no codings.
    let old = format!(
        "POST /outer HTTP/1.0\r\nHost: hooks.example.com\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}{SMUGGLED}"
    );
    let answers = answers_to(gateway.public(), old);
    assert_eq!((answers.len(), answers[0].status, upstream.count()), (1, 400, 0));
}

#[test]
fn a_length_beside_chunked_is_ignored_and_the_connection_ends_with_that_request() {
    let upstream = Upstream::start();
    let gateway = smuggler(&upstream);
    for length in ["Content-Length: 4\r\n", "Content-Length: 0\r\n", "Content-Length: 200\r\n"] {
        for headers in
            [format!("{length}Transfer-Encoding: chunked\r\n"), format!("Transfer-Encoding: chunked\r\n{length}")]
        {
            let head = format!("POST /outer HTTP/1.1\r\nHost: hooks.example.com\r\n{headers}\r\n");
            let before = upstream.count();
            let answers = answers_to(gateway.public(), format!("{head}2\r\nhi\r\n0\r\n\r\n{SMUGGLED}"));
            assert_eq!(answers.len(), 1, "{headers}");
            assert_eq!((answers[0].status, answers[0].header("connection")), (200, Some("close")), "{headers}");
            assert_eq!(upstream.received()[before].body, b"hi");
            assert_eq!(upstream.count(), before + 1);
            // The other way round: the length says that there is more than the chunks do.
            let answers = answers_to(gateway.public(), format!("{head}0\r\n\r\n{SMUGGLED}"));
            assert_eq!(answers.len(), 1, "{headers}");
            assert_eq!((answers[0].status, answers[0].header("connection")), (200, Some("close")), "{headers}");
        }
    }
    assert_nothing_smuggled(&upstream, "length and chunked");
}

#[test]
fn a_chunk_that_is_no_chunk_ends_the_connection_and_forwards_nothing() {
    let upstream = Upstream::start();
    let gateway = smuggler(&upstream);
    let head = "POST /outer HTTP/1.1\r\nHost: hooks.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "+2\r\nhi\r\n0\r\n\r\n",
        "-2\r\nhi\r\n0\r\n\r\n",
        "0x2\r\nhi\r\n0\r\n\r\n",
        "g\r\nhi\r\n0\r\n\r\n",
        "\r\nhi\r\n0\r\n\r\n",
        "2\r\nhixx\r\n0\r\n\r\n",
        "2\rhi\r\n0\r\n\r\n",
        "2;a\nb\r\nhi\r\n0\r\n\r\n",
        "10000000000000002\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nno trailer\r\n\r\n",
    ] {
        let answers = answers_to(gateway.public(), format!("{head}{chunks}{SMUGGLED}"));
        assert_eq!(answers.len(), 1, "{chunks:?}: {answers:?}");
        assert_refused(&gateway, &answers[0], 400, "malformed", chunks);
        assert_eq!(answers[0].header("connection"), Some("close"), "{chunks:?}");
        assert_eq!(upstream.count(), 0, "{chunks:?}");
    }
    // Its twin, extension and all.
    let answers = answers_to(gateway.public(), format!("{head}2;name=value\r\nhi\r\n0\r\n\r\n"));
    assert_eq!((answers[0].status, upstream.count()), (200, 1));
}

#[test]
fn bare_line_feeds_hide_nothing() {
    let upstream = Upstream::start();
    let gateway = smuggler(&upstream);
    // A reader that waits for CRLF sees one long header here; we see two, and write them anew.
    let head = "POST /outer HTTP/1.1\r\nHost: hooks.example.com\r\nX-A: b\nContent-Length: 2\r\n\r\n";
    let answers = answers_to(gateway.public(), format!("{head}hi"));
    assert_eq!((answers.len(), answers[0].status), (1, 200));
    let received = upstream.wait_for(1).remove(0);
    assert_eq!((received.all("x-a"), received.body), (vec!["b".to_owned()], b"hi".to_vec()));
    let crammed = |value: &[u8]| value.iter().any(|b| matches!(b, b'\r' | b'\n'));
    assert!(!received.headers.iter().any(|(_, value)| crammed(value)), "{:?}", received.headers);
    assert_nothing_smuggled(&upstream, "a bare LF");
}

#[test]
fn a_chunked_body_is_verified_whole_its_trailers_are_dropped_and_its_connection_closes() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github")]);
    let send = |body: &str, trailer: &str, header: &str| {
        let bytes = format!(
            "POST /github HTTP/1.1\r\nHost: hooks.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-Late\r\n\
             {header}\r\n{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n{trailer}\r\n",
            3,
            &body[..3],
            body.len() - 3,
            &body[3..]
        );
        answers_to(gateway.public(), bytes)
    };
    let body = "{\"chunked\":true}";
    let proof = format!("X-Hub-Signature-256: {}\r\n", sign::github(SECRET, body.as_bytes()));
    let answers = send(body, "X-Late: 1\r\nX-Hookward-Verified: me\r\n", &proof);
    assert_eq!((answers.len(), answers[0].status, answers[0].header("connection")), (1, 200, Some("close")));
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.body, body.as_bytes());
    assert_eq!(received.all("content-length"), [body.len().to_string()]);
    assert_eq!(received.all("x-hookward-verified"), ["github"]);
    for dropped in ["x-late", "trailer", "te", "transfer-encoding"] {
        assert_eq!(received.header(dropped), None, "{dropped}");
    }
    // What comes behind the body proves nothing.
    let other = "{\"chunked\":null}";
    let late = format!("X-Hub-Signature-256: {}\r\n", sign::github(SECRET, other.as_bytes()));
    let answers = send(other, &late, "");
    assert_refused(&gateway, &answers[0], 401, "missing_signature", "the signature in a trailer");
    assert_eq!(answers[0].header("connection"), Some("close"));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_body_is_bytes_and_arrives_as_it_came() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github")]);
    let gzip: &[u8] = &[
        0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0xae, 0x05, 0x00, 0x43, 0xbf, 0xa6, 0xa3,
        0x02, 0x00, 0x00, 0x00,
    ];
    let bodies: [(&[u8], &str); 6] = [
        (gzip, "gzip"),
        (b"", "identity"),
        (b"\xff\xfe\x00\x80{", "identity"),
        (b"\xef\xbb\xbf{\"bom\":1}", "identity"),
        (b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n", "identity"),
        (&[b'['; 20_000], "identity"),
    ];
    for (position, (body, coding)) in bodies.into_iter().enumerate() {
        let genuine = Request::post("/github", body)
            .header("Content-Encoding", coding)
            .header("Content-Type", "application/json")
            .header("X-Hub-Signature-256", sign::github(SECRET, body));
        let mut forged = genuine.clone();
        forged.body.push(b' ');
        assert_refused(&gateway, &forged.send(gateway.public()), 401, "bad_signature", "a byte more");
        assert_eq!(genuine.send(gateway.public()).status, 200, "body {position}");
        let received = upstream.received().remove(position);
        assert_eq!(received.body, body);
        assert_eq!(received.header("content-encoding").as_deref(), Some(coding));
    }
    assert_eq!(upstream.count(), bodies.len());
}

#[test]
fn what_the_head_already_forbids_is_refused_without_asking_for_the_body() {
    let upstream = Upstream::start();
    let gateway = start(
        &upstream,
        &[preset("github"), source("here", "allow_ips = [\"192.0.2.1/32\"]\ndanger_accept_unverified = true")],
    );
    let cases = [
        ("POST /nowhere", "Content-Length: 10\r\n", 404),
        ("PUT /github", "Content-Length: 10\r\n", 405),
        ("POST /here", "Content-Length: 10\r\n", 403),
        ("POST /github", "Content-Length: 26214401\r\n", 413),
        ("POST /github", "Content-Length: 99999999999\r\n", 413),
        ("POST /github", "Content-Length: 9223372036854775807\r\n", 413),
    ];
    for (start, length, status) in cases {
        for expect in ["Expect: 100-continue\r\n", ""] {
            let begun = Instant::now();
            let mut stream = connect(gateway.public()).expect("a connection");
            let head = format!("{start} HTTP/1.1\r\nHost: hooks.example.com\r\n{length}{expect}\r\n");
            stream.write_all(head.as_bytes()).expect("written");
            let mut line = [0; 12];
            stream.read_exact(&mut line).expect("an answer");
            assert_eq!(line, format!("HTTP/1.1 {status}").as_bytes(), "{start} {length}{expect}");
            assert!(begun.elapsed() < Duration::from_secs(5), "it waited for the body");
        }
    }
    // Its twin is asked for the body once somebody wants it.
    let body = b"{\"expected\":1}";
    let whole = push_signed(body).header("Expect", "100-continue").bytes();
    let (head, rest) = whole.split_at(whole.len() - body.len());
    let mut stream = connect(gateway.public()).expect("a connection");
    stream.write_all(head).expect("written");
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(rest).expect("written");
    assert_eq!(read_answer(&mut BufReader::new(stream)).expect("an answer").status, 200);
    assert_eq!(upstream.wait_for(1)[0].header("expect"), None);
}

fn push_signed(body: &[u8]) -> Request {
    Request::post("/github", body).header("X-Hub-Signature-256", sign::github(SECRET, body))
}

#[test]
fn a_body_over_the_limit_is_refused_and_never_cut_to_fit() {
    let upstream = Upstream::start();
    let github = format!("provider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nmax_body = \"1KiB\"");
    let gateway = start(&upstream, &[source("github", &github)]);
    let fits = [b'a'; 1024];
    let over = [b'a'; 1025];
    // Signed as if it had been cut: over its first KiB.
    let declared = Request::post("/github", over).header("X-Hub-Signature-256", sign::github(SECRET, &fits));
    let answer = declared.send(gateway.public());
    assert_refused(&gateway, &answer, 413, "too_large", "declared");
    assert_eq!(answer.header("connection"), Some("close"));
    let signature = sign::github(SECRET, &fits);
    let mut bytes = format!(
        "POST /github HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-Hub-Signature-256: {signature}\r\n\r\n401\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(&over);
    bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_refused(&gateway, &raw(gateway.public(), bytes).expect("an answer"), 413, "too_large", "chunked");
    assert_eq!(upstream.count(), 0);
    assert_eq!(push_signed(&fits).send(gateway.public()).status, 200);
}

#[test]
fn an_upgrade_is_neither_made_nor_passed_on() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github")]);
    for (position, upgrade) in ["h2c", "websocket", "TLS/1.3"].into_iter().enumerate() {
        let body = format!("{{\"upgrade\":{position}}}");
        let answer = push_signed(body.as_bytes())
            .header("Connection", "Upgrade, HTTP2-Settings")
            .header("Upgrade", upgrade)
            .header("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .send(gateway.public());
        assert_eq!(answer.status, 200, "{upgrade}");
        assert_eq!(answer.header("upgrade"), None);
        let received = upstream.received().remove(position);
        for dropped in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(received.header(dropped), None, "{upgrade}: {dropped}");
        }
    }
}

/// A body that ends before its length is no body, whatever was signed.
#[test]
fn a_body_that_ends_early_is_not_forwarded() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github")]);
    let body = b"{\"short\":1}";
    let bytes = push_signed(body).header("Content-Length", (body.len() + 1).to_string()).bytes();
    let mut stream = connect(gateway.public()).expect("a connection");
    stream.write_all(&bytes).expect("written");
    stream.shutdown(std::net::Shutdown::Write).expect("shut");
    crate::support::eventually("the cut delivery is recorded", || {
        gateway.audit().into_iter().find(|line| line["outcome"] == "client_gone")
    });
    assert_eq!(upstream.count(), 0);
    assert_eq!(push_signed(body).send(gateway.public()).status, 200);
}
