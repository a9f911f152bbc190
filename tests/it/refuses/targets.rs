//! Where a request says it goes, to whom, and who it says it is.

use super::{answers_to, open, source, start};
use crate::support::{Answer, Gateway, Request, Upstream};

const NO_PROOF: &str = "danger_accept_unverified = true";

fn reason(gateway: &Gateway, answer: &Answer) -> String {
    // What hyper refuses before a request exists has no id.
    let Some(id) = answer.header("x-request-id") else { return String::new() };
    gateway.audit_of(id)["outcome"].as_str().unwrap_or_default().to_owned()
}

fn doors() -> Vec<String> {
    vec![
        open("x"),
        "\n[sources.tree]\npath = \"/tree/*\"\nupstream = \"app\"\ndanger_accept_unverified = true\n".to_owned(),
    ]
}

#[test]
fn a_path_is_compared_as_sent_and_nothing_is_decoded_or_folded() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &doors());
    for target in [
        "//x",
        "/x/",
        "/X",
        "/x/..",
        "/x/../x",
        "/y/../x",
        "/./x",
        "/x/.",
        "/%78",
        "/x%00",
        "/x%20",
        "/x;a=b",
        "/x/*",
        "/",
        "/tree",
        "/TREE/a",
        "//tree/a",
        "/tree//a",
        "/tree/../x",
        "/tree/a/../../x",
        "/tree/..",
        "/tree/.",
        "/tree/./a",
        "/tree/%2e%2e/x",
        "/tree/%2E%2e/x",
        "/tree/.%2e/x",
        "/tree/a%2fb",
        "/tree/a%2Fb",
        "/tree/..%2fx",
        "/tree/a%5cb",
        "/tree/a%5Cb",
        "/tree/a%00",
        // Servlet containers cut the parameter off first, and fold then.
        "/tree/..;/x",
        "/tree/.;a=b/x",
    ] {
        let answer = Request::post(target, "{}").send(gateway.public());
        assert_eq!((answer.status, reason(&gateway, &answer).as_str()), (404, "no_source"), "{target}");
    }
    for (target, status) in [
        ("/tree/a\\b", 404),
        ("/tree/..\\x", 404),
        ("x", 404),
        ("\\x", 400),
        ("/x\0", 400),
        ("/tree/\0", 400),
        ("", 400),
    ] {
        assert_eq!(Request::post(target, "{}").send(gateway.public()).status, status, "{target:?}");
    }
    assert_eq!(upstream.count(), 0);
    for target in ["/x", "/x?a=../b", "/tree/", "/tree/a/b", "/tree/a..b/.c", "/tree/%20?x=%2e%2e"] {
        assert_eq!(Request::post(target, "{}").send(gateway.public()).status, 200, "{target}");
    }
    let targets: Vec<_> = upstream.received().into_iter().map(|received| received.target).collect();
    assert_eq!(targets, ["/x", "/x?a=../b", "/tree/", "/tree/a/b", "/tree/a..b/.c", "/tree/%20?x=%2e%2e"]);
}

fn by_host() -> Vec<String> {
    let named = |name: &str, host: &str| {
        format!("\n[sources.{name}]\nhost = \"{host}\"\npath = \"/x\"\nupstream = \"app\"\n{NO_PROOF}\n")
    };
    vec![named("right", "right.test"), named("six", "[2001:db8::1]"), source("bare", NO_PROOF)]
}

fn raw(gateway: &Gateway, head: &str) -> Vec<Answer> {
    answers_to(gateway.public(), format!("{head}Content-Length: 2\r\n\r\n{{}}"))
}

#[test]
fn a_source_is_found_by_the_one_host_that_the_request_names() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &by_host());
    let found = |head: &str| {
        let before = upstream.count();
        let answers = raw(&gateway, head);
        assert_eq!(answers.len(), 1, "{head:?}");
        let status = answers[0].status;
        let source = upstream.received().get(before).and_then(|received| received.header("x-hookward-source"));
        (status, source.unwrap_or_else(|| reason(&gateway, &answers[0])))
    };
    let passed = |name: &str| (200, name.to_owned());
    let refused = |status: u16, reason: &str| (status, reason.to_owned());
    for host in ["right.test", "RIGHT.test", "right.test:8443", "right.test.", "Right.Test.:1"] {
        assert_eq!(found(&format!("POST /x HTTP/1.1\r\nHost: {host}\r\n")), passed("right"), "{host}");
    }
    for host in ["[2001:db8::1]", "[2001:DB8::1]:443"] {
        assert_eq!(found(&format!("POST /x HTTP/1.1\r\nHost: {host}\r\n")), passed("six"), "{host}");
    }
    // RFC 9112 §3.2.2: the absolute form wins over Host.
    assert_eq!(found("POST http://right.test/x HTTP/1.1\r\nHost: wrong.test\r\n"), passed("right"));
    assert_eq!(found("POST http://wrong.test/x HTTP/1.1\r\nHost: right.test\r\n"), refused(404, "no_source"));
    assert_eq!(found("POST http://right.test//x HTTP/1.1\r\nHost: right.test\r\n"), refused(404, "no_source"));
    for host in ["wrong.test", "right.test.evil.test", "evil-right.test", "xright.test", "127.0.0.1"] {
        assert_eq!(found(&format!("POST /x HTTP/1.1\r\nHost: {host}\r\n")), refused(404, "no_source"), "{host}");
    }
    // Even where no source names a host: what is no host is no request.
    for host in [
        "",
        " ",
        "u@right.test",
        "right.test@evil.test",
        "right.test/x",
        "right.test?x",
        "right.test#x",
        "right test",
        "right.test, right.test",
        "\"right.test\"",
        "right.test%00",
        "right.test:abc",
        "right.test:80:80",
        "[2001:db8::1",
        "<x>",
        ":80",
    ] {
        for path in ["/x", "/bare"] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n");
            assert_eq!(found(&head), refused(400, "malformed"), "{host}");
        }
    }
    for hosts in ["", "Host: right.test\r\nHost: right.test\r\n", "Host: right.test\r\nhost: wrong.test\r\n"] {
        assert_eq!(found(&format!("POST /bare HTTP/1.1\r\n{hosts}")), refused(400, "malformed"), "{hosts:?}");
    }
    let absolute = "POST http://u:p@right.test/x HTTP/1.1\r\nHost: right.test\r\n";
    assert_eq!(found(absolute), refused(400, "malformed"));
    // What does not count must be valid all the same.
    let beside = "POST http://right.test/x HTTP/1.1\r\nHost: u@wrong.test\r\n";
    assert_eq!(found(beside), refused(400, "malformed"));
    assert_eq!(found("POST /bare HTTP/1.1\r\nHost: anything.test\r\n"), passed("bare"));
    let received = upstream.received();
    let hosts: Vec<_> = received.iter().flat_map(|received| received.all("host")).collect();
    assert_eq!(hosts, vec![upstream.address.to_string(); received.len()], "the upstream's own, once each");
}

#[test]
fn asterisk_authority_form_connect_and_trace_lead_nowhere() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &doors());
    let host = "Host: hooks.example.com\r\n";
    for target in [
        "OPTIONS *",
        "POST *",
        "CONNECT hooks.example.com:443",
        "CONNECT 169.254.169.254:80",
        "POST hooks.example.com",
        "POST http://hooks.example.com",
    ] {
        let answers = raw(&gateway, &format!("{target} HTTP/1.1\r\n{host}"));
        let found: Vec<_> = answers.iter().map(|answer| (answer.status, reason(&gateway, answer))).collect();
        assert_eq!(found, [(404, "no_source".to_owned())], "{target}");
    }
    let connect = raw(&gateway, &format!("CONNECT /x HTTP/1.1\r\n{host}"));
    assert_eq!((connect[0].status, connect[0].header("allow")), (405, Some("POST")));
    for method in ["TRACE", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post", "PRI", "X"] {
        let answers = raw(&gateway, &format!("{method} /x HTTP/1.1\r\n{host}"));
        let answer = answers.first().unwrap_or_else(|| panic!("{method}"));
        assert_eq!((answer.status, reason(&gateway, answer).as_str()), (405, "method_not_allowed"), "{method}");
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(raw(&gateway, &format!("POST /x HTTP/1.1\r\n{host}"))[0].status, 200);
}

#[test]
fn a_first_line_that_is_none_is_a_400() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &doors());
    for line in [
        "POST /x",
        "POST /x ",
        "POST  /x HTTP/1.1",
        "POST /x  HTTP/1.1",
        "POST /x HTTP/1.1 ",
        "POST\t/x HTTP/1.1",
        " POST /x HTTP/1.1",
        "P(ST /x HTTP/1.1",
        "POST /x HTTP/1.2",
        "POST /x HTTP/2.0",
        "POST /x http/1.1",
        "POST /x HTTP/1.1 HTTP/1.1",
        "POST /x /y HTTP/1.1",
        "/x HTTP/1.1",
    ] {
        let answers = raw(&gateway, &format!("{line}\r\nHost: hooks.example.com\r\n"));
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [400], "{line}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn nobody_speaks_in_the_gateways_name() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &doors());
    let spoofed = [
        "X-Hookward-Source",
        "X-Hookward-Verified",
        "X-Hookward-Event-Id",
        "X-Hookward-Event-Type",
        "X-Hookward-Client-Cert",
        "X-Hookward-Would-Refuse",
        "X-Hookward-Anything",
        "x_hookward_verified",
        "X_Hookward-Source",
        "X-Request-Id",
        "X_Request_Id",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "Forwarded",
        "X-Real-IP",
        "traceparent",
        "tracestate",
    ];
    let mut sent = Request::post("/x", "{}");
    for name in spoofed {
        sent = sent.header(name, "spoofed").header(name, "spoofed");
    }
    // And whoever has it taken away behind us gains nothing either.
    sent = sent.header("Connection", "X-Hookward-Source, X-Hookward-Verified, X-Request-Id, X-Forwarded-For, X-Hop");
    let answer = sent.header("X-Hop", "1").header("X-Kept", "1").send(gateway.public());
    assert_eq!(answer.status, 200);
    assert_ne!(answer.request_id(), "spoofed");

    let received = upstream.wait_for(1).remove(0);
    let wrong: Vec<_> = received.headers.iter().filter(|(_, value)| value == b"spoofed").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for (name, value) in [
        ("x-hookward-source", "x"),
        ("x-request-id", &answer.request_id()),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "hooks.example.com"),
        ("x-forwarded-port", &gateway.public().port().to_string()),
        ("forwarded", "for=127.0.0.1;host=\"hooks.example.com\";proto=http"),
        ("x-kept", "1"),
    ] {
        assert_eq!(received.all(name), [value], "{name}");
    }
    assert_eq!(received.all("traceparent").len(), 1);
    // Nothing was proven, and nothing is said to have been.
    for absent in ["x-hookward-verified", "x-hookward-event-id", "x-hop", "connection", "x-real-ip", "tracestate"] {
        assert_eq!(received.header(absent), None, "{absent}");
    }
    let audit = gateway.audit_of(&answer.request_id());
    assert_eq!(audit["client"], "127.0.0.1");
}
