//! Who may send at all: addresses, content types, and proxies that speak for others.

use super::{answers_to, assert_refused, open, source, start};
use crate::support::gateway::PLAIN;
use crate::support::{Answer, Gateway, Request, Upstream};
use std::sync::Arc;

const OPEN: &str = "danger_accept_unverified = true\n";

#[test]
fn an_address_that_is_not_listed_is_refused() {
    let upstream = Upstream::start();
    let gateway = start(
        &upstream,
        &[
            source("others", &format!("{OPEN}allow_ips = [\"192.0.2.0/24\", \"2001:db8::/32\"]")),
            source("ours", &format!("{OPEN}allow_ips = [\"192.0.2.0/24\", \"127.0.0.0/8\"]")),
        ],
    );
    assert_refused(&gateway, &Request::post("/others", "{}").send(gateway.public()), 403, "address_not_allowed", "");
    // Nobody here is a trusted proxy, so nobody can say that it is somebody else.
    for (name, value) in [("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.1"), ("X-Real-IP", "192.0.2.1")]
    {
        let answer = Request::post("/others", "{}").header(name, value).send(gateway.public());
        assert_refused(&gateway, &answer, 403, "address_not_allowed", name);
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(Request::post("/ours", "{}").send(gateway.public()).status, 200);
}

#[test]
fn a_content_type_that_is_not_listed_is_a_415() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[source("typed", &format!("{OPEN}content_types = [\"application/json\"]"))]);
    let send = |types: &[&str]| {
        let sent = types.iter().fold(Request::post("/typed", "{}"), |sent, kind| sent.header("Content-Type", kind));
        sent.send(gateway.public())
    };
    for types in [
        &[][..],
        &[""],
        &["text/plain"],
        &["application/jsonp"],
        &["text/plain; application/json"],
        &["application/json, text/plain"],
        &["application/json", "application/json"],
        &["multipart/form-data; boundary=application/json"],
    ] {
        assert_refused(&gateway, &send(types), 415, "unsupported_media_type", &format!("{types:?}"));
    }
    assert_eq!(upstream.count(), 0);
    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=utf-8"] {
        assert_eq!(send(&[kind]).status, 200, "{kind}");
    }
}

#[test]
fn a_method_that_is_not_listed_is_a_405_that_names_those_that_are() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[source("two", &format!("{OPEN}methods = [\"POST\", \"PUT\"]")), open("one")]);
    let send =
        |method: &str, path: &str| Request::new(method, path).header("Content-Length", "0").send(gateway.public());
    let refused = send("DELETE", "/two");
    assert_refused(&gateway, &refused, 405, "method_not_allowed", "DELETE");
    assert_eq!(refused.header("allow"), Some("POST, PUT"));
    assert_eq!(send("PUT", "/one").header("allow"), Some("POST"));
    assert_eq!(upstream.count(), 0);
    assert_eq!(send("PUT", "/two").status, 200);
}

/// A gateway behind proxies on 127.0.0.0/8 and 10.0.0.0/8; `/theirs` is for 192.0.2.7 alone.
fn behind_proxies(upstream: &Upstream, proxy_protocol: bool) -> Gateway {
    let trust = format!(
        "[listeners.public]\nproxy_protocol = {proxy_protocol}\n\
         trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\", \"fd00::/8\"]"
    );
    let configuration = format!(
        "{}{}{}{}",
        PLAIN.replace("[listeners.public]", &trust),
        upstream.table(),
        source("theirs", &format!("{OPEN}allow_ips = [\"192.0.2.7/32\"]")),
        open("any")
    );
    Gateway::start_in(Arc::new(crate::support::gateway::Folder::new()), &configuration)
}

#[test]
fn behind_trusted_proxies_the_client_is_read_from_right_to_left() {
    let upstream = Upstream::start();
    let gateway = behind_proxies(&upstream, false);
    let send = |headers: &[(&str, &str)]| {
        let sent = headers.iter().fold(Request::post("/theirs", "{}"), |sent, (name, value)| sent.header(name, value));
        sent.send(gateway.public())
    };
    let client = |answer: &Answer| gateway.audit_of(&answer.request_id())["client"].clone();
    // What stands left of the first address that is no proxy of ours was written by a stranger.
    for (headers, who) in [
        (&[][..], "127.0.0.1"),
        (&[("X-Forwarded-For", "192.0.2.7, 198.51.100.1")], "198.51.100.1"),
        (&[("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        (&[("X-Forwarded-For", "192.0.2.7, 198.51.100.1, 10.0.0.1")], "198.51.100.1"),
        (&[("X-Forwarded-For", "192.0.2.7, unknown")], "127.0.0.1"),
        (&[("X-Forwarded-For", "192.0.2.7, \u{7f}")], "127.0.0.1"),
        (&[("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for=198.51.100.1")], "127.0.0.1"),
        (&[("Forwarded", "for=192.0.2.7, for=_hidden")], "127.0.0.1"),
        (&[("X-Real-IP", "192.0.2.7")], "127.0.0.1"),
        (&[("X_Forwarded_For", "192.0.2.7")], "127.0.0.1"),
    ] {
        let answer = send(headers);
        if answer.header("x-request-id").is_none() {
            assert_eq!(answer.status, 400, "{headers:?}");
            continue;
        }
        assert_refused(&gateway, &answer, 403, "address_not_allowed", &format!("{headers:?}"));
        assert_eq!(client(&answer), who, "{headers:?}");
    }
    assert_eq!(upstream.count(), 0);
    for headers in [
        &[("X-Forwarded-For", "192.0.2.7")][..],
        &[("X-Forwarded-For", "10.9.9.9, 198.51.100.1, 192.0.2.7, 10.0.0.1")],
        &[("X-Forwarded-For", "::ffff:192.0.2.7")],
        &[("Forwarded", "for=198.51.100.1, for=\"192.0.2.7:4711\";proto=https")],
        &[("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for=192.0.2.7")],
    ] {
        let answer = send(headers);
        assert_eq!(answer.status, 200, "{headers:?}");
        assert_eq!(client(&answer), "192.0.2.7", "{headers:?}");
    }
    // What the proxy said is extended, not replaced.
    let received = upstream.received().remove(1);
    let chain = "10.9.9.9, 198.51.100.1, 192.0.2.7, 10.0.0.1, 127.0.0.1";
    assert_eq!(received.header("x-forwarded-for").as_deref(), Some(chain));
}

#[test]
fn a_forwarded_host_never_routes() {
    let upstream = Upstream::start();
    let gateway = behind_proxies(&upstream, false);
    for name in ["X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-Forwarded-Prefix"]
    {
        let answer = Request::post("/nowhere", "{}").header(name, "/any").send(gateway.public());
        assert_refused(&gateway, &answer, 404, "no_source", name);
    }
    let answer = Request::new("GET", "/any").header("X-HTTP-Method-Override", "POST").send(gateway.public());
    assert_refused(&gateway, &answer, 405, "method_not_allowed", "method override");
    assert_eq!(upstream.count(), 0);
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family, 0, u8::try_from(addresses.len()).expect("short")]);
    header.extend_from_slice(addresses);
    header
}

#[test]
fn a_proxy_header_says_who_the_client_is_and_nobody_gets_in_without_one() {
    let upstream = Upstream::start();
    let gateway = behind_proxies(&upstream, true);
    let request = |path: &str| Request::post(path, "{}").bytes();
    let send = |header: &[u8], path: &str| answers_to(gateway.public(), [header, &request(path)].concat());
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
    let binary = v2(1, 0x11, &[192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 1, 187]);
    for header in [&v1[..], &binary] {
        let answers = send(header, "/theirs");
        assert_eq!(answers[0].status, 200);
        assert_eq!(gateway.audit_of(&answers[0].request_id())["client"], "192.0.2.7");
        let received = upstream.received().pop().expect("one");
        assert_eq!(received.header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
        assert_eq!(received.header("x-forwarded-port").as_deref(), Some("443"));
    }
    assert_eq!(upstream.count(), 2);
    let other = send(b"PROXY TCP4 198.51.100.9 198.51.100.1 4711 443\r\n", "/theirs");
    assert_refused(&gateway, &other[0], 403, "address_not_allowed", "another client");
    assert_eq!(gateway.audit_of(&other[0].request_id())["client"], "198.51.100.9");
    // The client is no proxy of ours, so its own word for itself counts for nothing.
    let spoofing = [
        &b"PROXY TCP4 198.51.100.9 198.51.100.1 4711 443\r\n"[..],
        &Request::post("/theirs", "{}").header("X-Forwarded-For", "192.0.2.7").bytes(),
    ]
    .concat();
    assert_refused(&gateway, &answers_to(gateway.public(), spoofing)[0], 403, "address_not_allowed", "spoofed");
    // The balancer's own health check.
    let local = send(&v2(0, 0, &[]), "/any");
    assert_eq!((local[0].status, upstream.count()), (200, 3));
    assert_eq!(gateway.audit_of(&local[0].request_id())["client"], "127.0.0.1");
    for broken in [
        &b""[..],
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 +4711 443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\n",
        b"proxy TCP4 192.0.2.7 198.51.100.1 4711 443\r\n",
        &v2(1, 0x31, &[b'x'; 216]),
        &v2(1, 0x12, &[192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 1, 187]),
    ] {
        assert_eq!(send(broken, "/theirs").len(), 0, "{broken:?}");
    }
    // A second header is no header but the request's first line, and a bad one.
    let twice = send(&[&v1[..], v1].concat(), "/theirs");
    assert!(twice.iter().all(|answer| answer.status == 400), "{twice:?}");
    assert_eq!(upstream.count(), 3);
}

#[test]
fn a_stranger_cannot_bring_a_proxy_header() {
    let upstream = Upstream::start();
    let trust = "[listeners.public]\nproxy_protocol = true\ntrusted_proxies = [\"192.0.2.0/24\"]";
    let configuration = format!("{}{}{}", PLAIN.replace("[listeners.public]", trust), upstream.table(), open("any"));
    let gateway = Gateway::start_in(Arc::new(crate::support::gateway::Folder::new()), &configuration);
    let request = Request::post("/any", "{}").bytes();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
    assert_eq!(answers_to(gateway.public(), [&header[..], &request].concat()).len(), 0);
    assert_eq!(answers_to(gateway.public(), &request).len(), 0);
    assert_eq!(upstream.count(), 0);
}
