//! What the service behind receives, and what the sender hears of its answer.

mod discovery;
mod observed;
mod several;
mod wire;

use crate::support::gateway::PLAIN;
use crate::support::http::raw;
use crate::support::upstream::{ClosedPort, Received};
use crate::support::{Gate, Gateway, Reply, Request, Upstream, eventually, sign};
use std::collections::BTreeSet;

const SECRET: &str = "a-secret-of-some-length";

/// `[sources.NAME]` at `path`, as GitHub signs, to `[upstreams.app]`, and further keys.
fn source(name: &str, path: &str, more: &str) -> String {
    format!(
        "\n[sources.{name}]\npath = \"{path}\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n{}{more}\n",
        if more.contains("upstream =") { "" } else { "upstream = \"app\"\n" }
    )
}

fn signed(method: &str, target: &str, body: &[u8]) -> Request {
    let request = Request { body: body.to_vec(), ..Request::new(method, target) };
    request.header("X-Hub-Signature-256", sign::github(SECRET, body))
}

/// The `number`-th delivery: none is a replay of another.
fn delivery(target: &str, number: usize) -> Request {
    signed("POST", target, format!("{{\"number\":{number}}}").as_bytes())
}

fn full(status: u16, headers: Vec<(&'static str, &'static str)>, body: &[u8]) -> Reply {
    Reply::Full { status, headers, body: body.to_vec() }
}

fn names(received: &Received) -> BTreeSet<String> {
    received.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect()
}

/// A connection to an upstream rests on the thread that used it: with two, the second sender could be served by the other.
const ONE_THREAD: &str = "[limits]\nthreads = 1";

#[test]
fn the_upstream_receives_the_senders_headers_and_exactly_these_of_the_gateways() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let answer = signed("POST", "/github", b"{}")
        .header("X-GitHub-Event", "push")
        .header("X-GitHub-Delivery", "d-1")
        .header("User-Agent", "GitHub-Hookshot/1")
        .header("Content-Type", "application/json")
        .send(gateway.public());
    let received = upstream.wait_for(1).remove(0);
    let expected = [
        "content-length",
        "content-type",
        "forwarded",
        "host",
        "traceparent",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-github-delivery",
        "x-github-event",
        "x-hookward-event-id",
        "x-hookward-event-type",
        "x-hookward-source",
        "x-hookward-verified",
        "x-hub-signature-256",
        "x-request-id",
    ];
    assert_eq!(names(&received), expected.map(str::to_owned).into());
    let port = gateway.public().port().to_string();
    for (name, value) in [
        ("content-length", "2"),
        ("host", upstream.address.to_string().as_str()),
        ("forwarded", "for=127.0.0.1;host=\"hooks.example.com\";proto=http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "hooks.example.com"),
        ("x-forwarded-port", &port),
        ("x-forwarded-proto", "http"),
        ("x-hookward-event-id", "d-1"),
        ("x-hookward-event-type", "push"),
        ("x-hookward-source", "github"),
        ("x-hookward-verified", "github"),
        ("x-request-id", &answer.request_id()),
    ] {
        assert_eq!(received.all(name), [value], "{name}");
    }
}

#[test]
fn a_trace_begins_here_with_an_id_of_its_own_for_each_request() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for number in 0..2 {
        let sent = delivery("/github", number).header("traceparent", theirs).header("tracestate", "a=b");
        assert_eq!(sent.send(gateway.public()).status, 200);
    }
    let traces: Vec<Vec<String>> = upstream.wait_for(2).iter().map(|received| received.all("traceparent")).collect();
    for trace in &traces {
        let [trace] = trace.as_slice() else { panic!("one traceparent: {trace:?}") };
        let parts: Vec<&str> = trace.split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2], "{trace}");
        assert!(trace.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{trace}");
        assert!(!trace.contains("4bf92f3577b34da6a3ce929d0e0e4736"), "a stranger's trace went on");
    }
    assert_ne!(traces[0], traces[1]);
    assert!(upstream.received().iter().all(|received| received.all("tracestate").is_empty()));
}

#[test]
fn what_a_trusted_proxy_says_of_the_way_is_extended_and_its_trace_goes_on() {
    let upstream = Upstream::start();
    let trusting = PLAIN.replace(
        "[admin]",
        "trusted_proxies = [\"127.0.0.1/32\"]\n[listeners.strict]\naddress = \"127.0.0.1:0\"\n[admin]",
    );
    let configuration = format!("{trusting}{}{}", upstream.table(), source("github", "/github", ""));
    let gateway = Gateway::start_in(Default::default(), &configuration);
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let sent = |number| {
        delivery("/github", number)
            .header("X-Forwarded-For", "192.0.2.7")
            .header("X-Forwarded-Proto", "https")
            .header("X-Forwarded-Host", "hooks.example.org")
            .header("traceparent", theirs)
    };
    assert_eq!(sent(0).send(gateway.address("public")).status, 200);
    assert_eq!(sent(1).send(gateway.address("strict")).status, 200);
    let received = upstream.wait_for(2);
    let told = |number: usize| {
        ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].map(|name| received[number].all(name).join("|"))
    };
    assert_eq!(told(0), ["192.0.2.7, 127.0.0.1", "https", "hooks.example.org"]);
    assert_eq!(told(1), ["127.0.0.1", "http", "hooks.example.com"]);
    let trace = received[0].header("traceparent").expect("a trace");
    assert!(trace.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && trace != theirs, "{trace}");
}

#[test]
fn hop_by_hop_headers_end_at_the_gateway_and_cannot_take_its_own_away() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let hops = [
        ("Connection", "X-Hop, X-Hookward-Verified, X-Hookward-Source, X-Request-Id, Upgrade, HTTP2-Settings"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Trailer", "X-Late"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("Expect", "100-continue"),
    ];
    let mut request = signed("POST", "/github", b"{}").header("X-Kept", "1");
    for (name, value) in hops {
        request = request.header(name, value);
    }
    assert_eq!(request.send(gateway.public()).status, 200);
    let received = upstream.wait_for(1).remove(0);
    let names = names(&received);
    for (name, _) in hops {
        assert!(!names.contains(&name.to_ascii_lowercase()), "{name} went through");
    }
    for name in ["x-kept", "x-hookward-verified", "x-hookward-source", "x-request-id", "x-hub-signature-256"] {
        assert!(names.contains(name), "{name} did not");
    }
}

#[test]
fn a_chunked_body_arrives_whole_with_its_length_and_without_its_trailers() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let bytes = format!(
        "POST /github HTTP/1.1\r\nHost: hooks.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-Hookward-Verified\r\nX-Hub-Signature-256: {}\r\n\r\n3\r\n{{\"a\r\n4\r\n\":1}}\r\n0\r\nX-Hookward-Verified: forged\r\nX-Late: 1\r\n\r\n",
        sign::github(SECRET, b"{\"a\":1}")
    );
    assert_eq!(raw(gateway.public(), bytes).expect("an answer").status, 200);
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.body, b"{\"a\":1}");
    assert_eq!((received.all("content-length"), received.all("transfer-encoding")), (vec!["7".to_owned()], vec![]));
    assert_eq!((received.all("x-hookward-verified"), received.all("x-late")), (vec!["github".to_owned()], vec![]));
}

#[test]
fn repeated_headers_arrive_as_often_and_in_their_order() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let request = signed("POST", "/github", b"{}").header("X-Tag", "b").header("X-Other", "o").header("x-tag", "a");
    assert_eq!(request.header("X-Tag", b"\xe9\"").send(gateway.public()).status, 200);
    let received = upstream.wait_for(1).remove(0);
    let tags: Vec<&[u8]> = received.headers.iter().filter(|(name, _)| name == "x-tag").map(|(_, v)| &**v).collect();
    assert_eq!(tags, [b"b".as_slice(), b"a", b"\xe9\""]);
}

#[test]
fn the_path_goes_on_as_it_came_or_as_upstream_path_says_and_the_query_is_kept() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!(
        "{}{}{}{}{}",
        upstream.table(),
        source("plain", "/plain", ""),
        source("whole", "/whole", "upstream_path = \"/hooks/github\""),
        source("prefix", "/prefix/*", "upstream_path = \"/behind/*\""),
        source("folded", "/folded/*", "upstream_path = \"/one\""),
    ));
    for (number, (sent, expected)) in [
        ("/plain", "/plain"),
        ("/plain?a=1&a=2&b=%20%2F+", "/plain?a=1&a=2&b=%20%2F+"),
        ("/plain?", "/plain?"),
        ("/whole", "/hooks/github"),
        ("/whole?x=/y?z", "/hooks/github?x=/y?z"),
        ("/prefix/a/b%20c", "/behind/a/b%20c"),
        ("/prefix/?q", "/behind/?q"),
        ("/folded/a/b?q=1", "/one?q=1"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(delivery(sent, number).send(gateway.public()).status, 200, "{sent}");
        assert_eq!(upstream.received().pop().expect("one more").target, expected, "{sent}");
    }
}

#[test]
fn the_method_is_kept() {
    let upstream = Upstream::start();
    let methods = "methods = [\"POST\", \"PUT\", \"PATCH\", \"DELETE\", \"GET\"]\nreplay_window = \"0s\"";
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", methods)));
    for (method, body, length) in [
        ("PUT", b"{}".as_slice(), Some("2")),
        ("PATCH", b"{}", Some("2")),
        ("POST", b"", Some("0")),
        ("DELETE", b"{}", Some("2")),
        ("DELETE", b"", None),
        ("GET", b"", None),
    ] {
        assert_eq!(signed(method, "/github", body).send(gateway.public()).status, 200, "{method}");
        let received = upstream.received().pop().expect("one more");
        assert_eq!((received.method.as_str(), received.body.as_slice()), (method, body));
        assert_eq!(received.header("content-length").as_deref(), length, "{method}");
    }
}

#[test]
fn the_largest_payload_that_github_sends_passes_whole_and_one_byte_more_does_not() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let body: Vec<u8> = (0..25 * 1024 * 1024u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(signed("POST", "/github", &body).send(gateway.public()).status, 200);
    assert!(upstream.wait_for(1).remove(0).body == body, "25 MiB arrived changed");
    let head = format!("POST /github HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
    assert_eq!(raw(gateway.public(), head).expect("an answer").status, 413);
}

#[test]
fn the_upstreams_answer_is_relayed_less_its_hop_by_hop_headers() {
    let upstream = Upstream::with(|_, number| match number {
        0 => full(
            418,
            vec![
                ("Content-Type", "text/x-tea"),
                ("Set-Cookie", "a=1"),
                ("Set-Cookie", "b=2"),
                ("Connection", "X-Hop, Keep-Alive"),
                ("Keep-Alive", "timeout=5"),
                ("X-Hop", "1"),
                ("Proxy-Authenticate", "Basic"),
                ("X-Request-Id", "the upstream's own"),
                ("Retry-After", "7"),
            ],
            b"short and stout",
        ),
        1 => Reply::Status(204),
        2 => full(302, vec![("Location", "/elsewhere")], b""),
        _ => full(200, Vec::new(), &vec![b'x'; 5_000_000]),
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let answer = delivery("/github", 0).send(gateway.public());
    assert_eq!((answer.status, answer.text().as_str()), (418, "short and stout"));
    assert_eq!(answer.header("content-type"), Some("text/x-tea"));
    assert_eq!(answer.header("retry-after"), Some("7"));
    let cookies: Vec<_> = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).collect();
    assert_eq!(cookies.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["a=1", "b=2"]);
    for name in ["x-hop", "keep-alive", "proxy-authenticate", "connection"] {
        assert_eq!(answer.header(name), None, "{name} went through");
    }
    assert_eq!(upstream.received()[0].header("x-request-id"), Some(answer.request_id()), "the gateway's id is the one");
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_refused");

    let answer = delivery("/github", 1).send(gateway.public());
    assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (204, 0, None));
    // A redirect is the sender's to follow, and no success.
    let answer = delivery("/github", 2).send(gateway.public());
    assert_eq!((answer.status, answer.header("location")), (302, Some("/elsewhere")));
    let answer = delivery("/github", 3).send(gateway.public());
    assert_eq!((answer.status, answer.body.len()), (200, 5_000_000));
    assert_eq!(answer.header("content-length"), Some("5000000"));
    assert_eq!((gateway.outcome("github", "accepted"), gateway.outcome("github", "upstream_refused")), (2, 2));
}

#[test]
fn an_answer_without_a_length_is_relayed_whole() {
    let upstream = Upstream::with(|_, number| {
        Reply::Raw(match number {
            0 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX-Late: 1\r\n\r\n"
                .to_vec(),
            1 => b"HTTP/1.1 200 OK\r\n\r\nhello world".to_vec(),
            2 => b"HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\nhello world".to_vec(),
            _ => b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world"
                .to_vec(),
        })
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    for number in 0..4 {
        let answer = delivery("/github", number).send(gateway.public());
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello world"), "{number}");
    }
}

#[test]
fn an_answer_that_is_cut_after_its_head_does_not_end_cleanly_for_the_sender() {
    let upstream = Upstream::with(|_, number| {
        Reply::Raw(match number {
            0 => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec(),
            _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n".to_vec(),
        })
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    for number in 0..2 {
        let answer = delivery("/github", number).try_send(gateway.public());
        assert!(answer.is_err(), "{number}: {answer:?}");
    }
    eventually("both are counted", || {
        let broken = gateway.metric("hookward_upstream_requests_total", &[("upstream", "app"), ("result", "broken")]);
        (broken == 2.0).then_some(())
    });
}

#[test]
fn what_is_no_answer_is_502() {
    let upstream = Upstream::with(|_, number| match number {
        0 => Reply::Close,
        1 => Reply::Reset,
        2 => Reply::Raw(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        3 => Reply::Raw(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_vec()),
        4 => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok".to_vec()),
        5 => Reply::Raw(format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(100_000)).into_bytes()),
        _ => Reply::Status(200),
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    for number in 0..6 {
        let answer = delivery("/github", number).send(gateway.public());
        assert_eq!(answer.status, 502, "{number}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{number}");
        // None of these connections had been used: what the upstream did with the request is unknown, so it was sent
        // once, and the sender's retry is the second time.
        assert_eq!(upstream.count(), number + 1, "{number}");
        assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_error", "{number}");
    }
    assert_eq!(gateway.metric("hookward_upstream_repeats_total", &[("upstream", "app")]), 0.0);
    gateway.wait_for_log("reset");
    assert_eq!(delivery("/github", 6).send(gateway.public()).status, 200);
}

#[test]
fn an_upstream_that_is_late_is_504_and_one_that_refuses_connections_503() {
    let gate = Gate::default();
    let held = gate.clone();
    let late = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    // The head in time, and the body never.
    let dripping = Upstream::with({
        let held = gate.clone();
        move |_, _| {
            let rest = Reply::Held(held.clone(), Box::new(Reply::Close));
            Reply::Begun(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nonly".to_vec(), Box::new(rest))
        }
    });
    let port = ClosedPort::new();
    let gateway = Gateway::start(&format!(
        "[upstreams.late]\nurls = [\"{}\"]\ntimeout = \"150ms\"\n[upstreams.dripping]\nurls = [\"{}\"]\ntimeout = \"150ms\"\n[upstreams.closed]\nurls = [\"http://{}\"]\n{}{}{}",
        late.url(),
        dripping.url(),
        port.address(),
        source("late", "/late", "upstream = \"late\""),
        source("dripping", "/dripping", "upstream = \"dripping\""),
        source("closed", "/closed", "upstream = \"closed\""),
    ));
    let answer = delivery("/late", 0).send(gateway.public());
    assert_eq!(answer.status, 504);
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_timeout");
    assert!(delivery("/dripping", 0).try_send(gateway.public()).is_err(), "a late body ended cleanly");
    let answer = delivery("/closed", 0).send(gateway.public());
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_unavailable");
    gate.open();
}

#[test]
fn a_gateway_that_can_reach_no_upstream_is_not_ready() {
    let port = ClosedPort::new();
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nurls = [\"http://{}\"]\nhealth = {{ path = \"/healthz\", interval = \"50ms\" }}\n{}",
        port.address(),
        source("github", "/github", ""),
    ));
    let ready = || gateway.get("/readyz").expect("an answer");
    eventually("it is known to be down", || (ready().status == 503).then_some(()));
    assert_eq!(ready().text(), "not ready: no upstream can be reached\n");
    assert_eq!(gateway.get("/healthz").expect("an answer").status, 200, "the process itself is well");
    let upstream = port.open(|_, _| Reply::Status(200));
    eventually("it is known to be back", || (ready().status == 200).then_some(()));
    assert_eq!(upstream.received()[0].target, "/healthz");
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200);
}

#[test]
fn upstreams_are_measured() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, number| match number {
        0 => Reply::Status(200),
        1 => Reply::Status(301),
        2 => Reply::Status(404),
        3 => Reply::Status(500),
        _ => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
    });
    let gateway = Gateway::start(&format!("{}{}\n{ONE_THREAD}", upstream.table(), source("github", "/github", "")));
    for number in 0..4 {
        delivery("/github", number).send(gateway.public());
    }
    let metric = |name: &str| gateway.metric(name, &[("upstream", "app")]);
    let result =
        |result: &str| gateway.metric("hookward_upstream_requests_total", &[("upstream", "app"), ("result", result)]);
    for (label, expected) in
        [("2xx", 1.0), ("3xx", 1.0), ("4xx", 1.0), ("5xx", 1.0), ("timeout", 0.0), ("unavailable", 0.0)]
    {
        assert_eq!(result(label), expected, "{label}");
    }
    assert_eq!(metric("hookward_upstream_duration_seconds_count"), 4.0);
    assert_eq!(gateway.metric("hookward_upstream_healthy", &[("upstream", "app"), ("url", &upstream.url())]), 1.0);
    // One connection served them all, and rests.
    assert_eq!((upstream.connections(), metric("hookward_upstream_idle_connections")), (1, 1.0));

    let to = gateway.public();
    let sender = std::thread::spawn(move || delivery("/github", 4).send(to).status);
    upstream.wait_for(5);
    assert_eq!((metric("hookward_upstream_in_flight"), metric("hookward_upstream_idle_connections")), (1.0, 0.0));
    gate.open();
    assert_eq!(sender.join().expect("a sender"), 200);
    assert_eq!((metric("hookward_upstream_in_flight"), result("2xx")), (0.0, 2.0));
}
