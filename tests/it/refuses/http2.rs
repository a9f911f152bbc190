//! The same over HTTP/2, where a request has other ways of saying two things at once.

use super::{SECRET, open, preset, start};
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, block};
use crate::support::{Gateway, Request, Upstream, sign};

/// What became of a request made of these fields: the first byte of its answer's header block (0x88: `:status 200`,
/// RFC 7541 appendix A; 0x8c: 400, 0x8d: 404), or None where the stream or the connection was reset.
fn status(gateway: &Gateway, fields: &[(&str, &str)], body: &[u8]) -> Option<u8> {
    let mut frames = Frames::connect(gateway.public());
    frames.send(HEADERS, END_HEADERS, 1, &block(fields)).expect("written");
    // The gateway may have reset the stream by now.
    let _ = frames.send(DATA, END_STREAM, 1, body);
    loop {
        let frame = frames.next().ok()?;
        match frame.kind {
            HEADERS => return frame.payload.first().copied(),
            RST_STREAM | GOAWAY => return None,
            _ => {}
        }
    }
}

const OK: Option<u8> = Some(0x88);
const BAD_REQUEST: Option<u8> = Some(0x8c);
const NOT_FOUND: Option<u8> = Some(0x8d);

fn to<'a>(path: &'a str, authority: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
}

#[test]
fn a_request_over_http2_means_one_thing_or_nothing() {
    let upstream = Upstream::start();
    let named = "\n[sources.named]\nhost = \"right.test\"\npath = \"/x\"\nupstream = \"app\"\ndanger_accept_unverified = true\n";
    let tree = "\n[sources.tree]\npath = \"/tree/*\"\nupstream = \"app\"\ndanger_accept_unverified = true\n";
    let gateway = start(&upstream, &[open("bare"), named.to_owned(), tree.to_owned()]);
    let with = |fields: &[(&str, &str)]| {
        let all = [&to("/bare", "any.test"), fields].concat();
        status(&gateway, &all, b"{}")
    };
    for fields in [
        &[("transfer-encoding", "chunked")][..],
        &[("connection", "close")],
        &[("content-length", "1")],
        &[("content-length", "3")],
        &[("content-length", "+2")],
        &[("content-length", "2"), ("content-length", "3")],
        &[(":path", "/tree/x")],
        &[(":authority", "right.test")],
        &[("X-Upper", "1")],
        &[("x-a", "b\r\nx-c: d")],
        &[("x a", "b")],
        &[("te", "gzip")],
    ] {
        let became = with(fields);
        assert!(matches!(became, None | BAD_REQUEST), "{fields:?}: {became:?}");
    }
    // RFC 9113 §8.3.1: a Host may stand beside the authority, once, and says the same.
    for hosts in [&["any.test", "any.test"][..], &["a.test", "b.test"], &["b.test"], &[""], &["u@any.test"]] {
        let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        assert_eq!(with(&fields), BAD_REQUEST, "{hosts:?}");
    }
    assert_eq!(with(&[("host", "Any.test")]), OK);
    let before = upstream.count();
    for (path, authority) in
        [("/x", "wrong.test"), ("//x", "right.test"), ("/tree/../x", "right.test"), ("/tree/%2e%2e/x", "right.test")]
    {
        assert_eq!(status(&gateway, &to(path, authority), b"{}"), NOT_FOUND, "{path} {authority}");
    }
    for authority in ["", "u@right.test", "right.test:abc", "right test"] {
        let became = status(&gateway, &to("/bare", authority), b"{}");
        assert!(matches!(became, None | BAD_REQUEST), "{authority}: {became:?}");
    }
    let connect = [(":method", "CONNECT"), (":authority", "169.254.169.254:80")];
    assert_ne!(status(&gateway, &connect, b""), OK);
    let websocket = [&to("/bare", "any.test")[1..], &[(":method", "CONNECT"), (":protocol", "websocket")]].concat();
    assert_ne!(status(&gateway, &websocket, b""), OK);
    assert_eq!(upstream.count(), before);

    assert_eq!(status(&gateway, &to("/x", "right.test"), b"{}"), OK);
    assert_eq!(with(&[("content-length", "2"), ("te", "trailers")]), OK);
    let received = upstream.received().pop().expect("one");
    assert_eq!((received.target.as_str(), received.all("content-length")), ("/bare", vec!["2".to_owned()]));
    assert_eq!((received.header("te"), received.all("host").len()), (None, 1));
}

#[test]
fn trailers_over_http2_are_dropped_and_prove_nothing() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github")]);
    let body = b"{\"trailers\":2}";
    let signature = sign::github(SECRET, body);
    let send = |head: &[(&str, &str)], trailers: &[(&str, &str)]| {
        let mut frames = Frames::connect(gateway.public());
        let head = [&to("/github", "any.test"), head].concat();
        frames.send(HEADERS, END_HEADERS, 1, &block(&head)).expect("written");
        frames.send(DATA, 0, 1, body).expect("written");
        frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers)).expect("written");
        frames.next_of(HEADERS).expect("an answer").payload[0]
    };
    let late = send(&[], &[("x-hub-signature-256", &signature)]);
    assert_ne!(Some(late), OK);
    assert_eq!((gateway.outcome("github", "missing_signature"), upstream.count()), (1, 0));
    let genuine = send(&[("x-hub-signature-256", &signature)], &[("x-hookward-verified", "me"), ("x-late", "1")]);
    assert_eq!(Some(genuine), OK);
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.all("x-hookward-verified"), ["github"]);
    assert_eq!((received.header("x-late"), received.header("trailer")), (None, None));
    assert_eq!(Request::post("/github", "{}").send(gateway.public()).status, 401);
}
