//! A message is accepted once; a retry of one that was not accepted always gets through.

mod restart;

use crate::support::gateway::{Folder, hookward};
use crate::support::http::{connect, read_answer};
use crate::support::upstream::ClosedPort;
use crate::support::{Answer, Gate, Gateway, Reply, Request, Upstream, eventually, sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr};

const SECRET: &str = "a-secret-of-some-length";

/// `[sources.NAME]` at `/NAME`, its provider as named, and further keys.
fn source(name: &str, provider: &str, more: &str) -> String {
    format!(
        "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"{provider}\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n{more}\n"
    )
}

/// As GitHub signs: the body alone.
fn github(path: &str, body: &[u8]) -> Request {
    Request::post(path, body).header("X-Hub-Signature-256", sign::github(SECRET, body))
}

/// As Stripe signs: the time and the body, whose `id` is the event's.
fn stripe(path: &str, time: u64, id: &str) -> Request {
    let body = format!("{{\"id\":\"{id}\",\"type\":\"invoice.paid\"}}");
    Request::post(path, body.as_bytes()).header("Stripe-Signature", sign::stripe(SECRET, time, body.as_bytes()))
}

fn refused_for_now(answer: &Answer) -> bool {
    answer.status == 503
        && answer.header("retry-after").is_some_and(|seconds| seconds.parse().is_ok_and(|s: u32| s > 0))
}

#[test]
fn a_replay_is_refused_where_retries_are_signed_anew_and_acknowledged_where_they_are_not_unless_told_otherwise() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!(
        "{}{}{}{}{}",
        upstream.table(),
        source("stripe", "stripe", ""),
        source("stripe-lenient", "stripe", "on_replay = \"acknowledge\""),
        source("github", "github", ""),
        source("github-strict", "github", "on_replay = \"reject\""),
    ));
    let now = sign::now();
    for (name, request, expected) in [
        ("stripe", stripe("/stripe", now, "evt_1"), 409),
        ("stripe-lenient", stripe("/stripe-lenient", now, "evt_1"), 202),
        ("github", github("/github", b"{}"), 202),
        ("github-strict", github("/github-strict", b"{}"), 409),
    ] {
        assert_eq!(request.send(gateway.public()).status, 200, "{name}");
        let forwarded = upstream.count();
        let replay = request.send(gateway.public());
        assert_eq!(replay.status, expected, "{name}");
        assert_eq!(upstream.count(), forwarded, "{name}");
        assert_eq!((gateway.outcome(name, "accepted"), gateway.outcome(name, "replay")), (1, 1), "{name}");
        assert_eq!(gateway.audit_of(&replay.request_id())["outcome"], "replay", "{name}");
    }
}

#[test]
fn an_acknowledged_replay_is_answered_with_the_status_body_and_type_that_the_source_names() {
    let upstream = Upstream::start();
    let told = "acknowledge = { status = 200, body = \"{\\\"ok\\\":true}\", content_type = \"application/json\" }";
    let gateway = Gateway::start(&format!(
        "{}{}{}",
        upstream.table(),
        source("told", "github", told),
        source("status", "github", "acknowledge = 204")
    ));
    assert_eq!(github("/told", b"{}").send(gateway.public()).text(), "ok");
    let replay = github("/told", b"{}").send(gateway.public());
    assert_eq!((replay.status, replay.text().as_str()), (200, "{\"ok\":true}"));
    assert_eq!(replay.header("content-type"), Some("application/json"));

    assert_eq!(github("/status", b"{}").send(gateway.public()).status, 200);
    let replay = github("/status", b"{}").send(gateway.public());
    assert_eq!((replay.status, replay.body.len()), (204, 0));
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_newly_signed_delivery_with_an_id_that_was_accepted_is_acknowledged_rejected_or_forwarded_as_told() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!(
        "{}{}{}{}",
        upstream.table(),
        source("default", "stripe", ""),
        source("reject", "stripe", "on_duplicate = \"reject\""),
        source("forward", "stripe", "on_duplicate = \"forward\""),
    ));
    let now = sign::now();
    for (name, expected, forwarded, duplicates) in
        [("default", 202, 1, 1), ("reject", 409, 1, 1), ("forward", 200, 2, 0)]
    {
        let path = format!("/{name}");
        let before = upstream.count();
        assert_eq!(stripe(&path, now - 1, "evt_1").send(gateway.public()).status, 200, "{name}");
        assert_eq!(stripe(&path, now, "evt_1").send(gateway.public()).status, expected, "{name}");
        assert_eq!(upstream.count() - before, forwarded, "{name}");
        assert_eq!(gateway.outcome(name, "duplicate"), duplicates, "{name}");
        // Another event is neither.
        assert_eq!(stripe(&path, now, "evt_2").send(gateway.public()).status, 200, "{name}");
    }
    // What was forwarded as a duplicate was accepted, and its copy is a replay.
    assert_eq!(stripe("/forward", now, "evt_1").send(gateway.public()).status, 409);
}

#[test]
fn a_duplicate_that_is_forwarded_on_purpose_has_a_name_of_its_own() {
    let upstream = Upstream::start();
    let more = "on_duplicate = \"forward\"\ndelivery = \"inbox\"";
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("shop", "stripe", more)));
    let now = sign::now();
    assert_eq!(stripe("/shop", now - 1, "evt_1").send(gateway.public()).status, 202);
    assert_eq!(stripe("/shop", now, "evt_1").send(gateway.public()).status, 202);
    let received = upstream.wait_for(2);
    let keys: Vec<_> = received.iter().filter_map(|request| request.header("idempotency-key")).collect();
    // Or the receiver would drop the second as a repetition of the first.
    let mut names: Vec<_> = keys.iter().map(|key| key.split(':').take(2).collect::<Vec<_>>().join(":")).collect();
    names.dedup();
    assert_eq!((names, keys[0] == keys[1]), (vec!["shop:evt_1".to_owned()], false), "{keys:?}");
}

/// The first attempt ends as `script` says and is answered with `status`; the same bytes again are accepted; a third
/// time they are a replay.
fn a_retry_passes_after(status: u16, timeout: &str, first: impl Fn() -> Reply + Send + Sync + 'static) {
    let upstream = Upstream::with(move |_, number| if number == 0 { first() } else { Reply::Status(200) });
    let gateway = Gateway::start(&format!(
        "{}timeout = \"{timeout}\"\n{}{}",
        upstream.table(),
        source("github", "github", ""),
        source("stripe", "stripe", "")
    ));
    let delivery = github("/github", b"{}").header("X-GitHub-Delivery", "d-1");
    assert_eq!(delivery.send(gateway.public()).status, status);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "github")]), 0.0, "the claim is let go");
    assert_eq!(delivery.send(gateway.public()).status, 200);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "github")]), 1.0);
    assert_eq!(delivery.send(gateway.public()).status, 202);
    assert_eq!(upstream.count(), 2);
    assert_eq!(gateway.outcome("github", "accepted"), 1);
}

#[test]
fn a_retry_passes_after_the_upstreams_5xx() {
    a_retry_passes_after(500, "20s", || Reply::Status(500));
}

#[test]
fn a_retry_passes_after_the_upstreams_4xx() {
    a_retry_passes_after(404, "20s", || Reply::Status(404));
}

#[test]
fn a_retry_passes_after_the_upstreams_timeout() {
    let gate = Gate::default();
    let held = gate.clone();
    a_retry_passes_after(504, "1s", move || Reply::Held(held.clone(), Box::new(Reply::Close)));
    gate.open();
}

#[test]
fn a_retry_passes_after_the_upstreams_reset() {
    a_retry_passes_after(502, "20s", || Reply::Reset);
}

#[test]
fn a_retry_passes_after_the_upstream_hung_up() {
    a_retry_passes_after(502, "20s", || Reply::Close);
}

#[test]
fn a_retry_passes_after_the_upstream_refused_the_connection() {
    let port = ClosedPort::new();
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nurls = [\"http://{}\"]\n{}",
        port.address(),
        source("stripe", "stripe", "")
    ));
    let delivery = stripe("/stripe", sign::now(), "evt_1");
    assert!(refused_for_now(&delivery.send(gateway.public())));
    assert_eq!(gateway.outcome("stripe", "upstream_unavailable"), 1);
    let upstream = port.open(|_, _| Reply::Status(200));
    assert_eq!(delivery.send(gateway.public()).status, 200);
    assert_eq!(delivery.send(gateway.public()).status, 409);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_copy_of_a_delivery_in_flight_is_told_to_come_back_even_where_replays_are_acknowledged() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let gateway =
        Gateway::start(&format!("{}{}", upstream.table(), source("github", "github", "on_replay = \"acknowledge\"")));
    let to = gateway.public();
    let first = std::thread::spawn(move || github("/github", b"{}").send(to));
    upstream.wait_for(1);
    // A 2xx here would be a lie: the first may yet fail.
    let copy = github("/github", b"{}").send(to);
    assert!(refused_for_now(&copy), "{copy:?}");
    assert_eq!(gateway.outcome("github", "in_flight"), 1);
    gate.open();
    assert_eq!(first.join().expect("a sender").status, 200);
    assert_eq!(github("/github", b"{}").send(to).status, 202);
    assert_eq!((gateway.outcome("github", "replay"), upstream.count()), (1, 1));
}

#[test]
fn a_newly_signed_copy_of_an_event_in_flight_is_told_to_come_back_too() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, number| match number {
        0 => Reply::Held(held.clone(), Box::new(Reply::Status(500))),
        _ => Reply::Status(200),
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("stripe", "stripe", "")));
    let (to, now) = (gateway.public(), sign::now());
    let first = std::thread::spawn(move || stripe("/stripe", now - 1, "evt_1").send(to));
    upstream.wait_for(1);
    assert!(refused_for_now(&stripe("/stripe", now, "evt_1").send(to)));
    gate.open();
    assert_eq!(first.join().expect("a sender").status, 500);
    assert_eq!(stripe("/stripe", now, "evt_1").send(to).status, 200);
}

fn exactly_one_of_a_hundred(state: &str) {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{state}{}{}", upstream.table(), source("stripe", "stripe", "")));
    let (to, delivery) = (gateway.public(), stripe("/stripe", sign::now(), "evt_1"));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..100).map(|_| scope.spawn(|| delivery.send(to).status)).collect();
        senders.into_iter().map(|sender| sender.join().expect("a sender")).collect()
    });
    assert_eq!(statuses.len(), 100);
    assert_eq!(upstream.count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409 | 429 | 503)), "{statuses:?}");
    assert_eq!(gateway.outcome("stripe", "accepted"), 1);
}

#[test]
fn of_a_hundred_copies_at_once_exactly_one_is_forwarded_with_memory_state() {
    exactly_one_of_a_hundred("");
}

#[test]
fn of_a_hundred_copies_at_once_exactly_one_is_forwarded_with_disk_state() {
    exactly_one_of_a_hundred("[state]\nkind = \"disk\"\n");
}

#[test]
fn of_a_hundred_copies_at_once_on_one_http_2_connection_exactly_one_is_forwarded() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("stripe", "stripe", "")));
    let (to, delivery) = (gateway.public(), stripe("/stripe", sign::now(), "evt_1"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let statuses = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(to).await.expect("a connection");
        let executor = hyper_util::rt::TokioExecutor::new();
        let stream = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut sending = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let mut request = http::Request::post(format!("http://hooks.example.com{}", delivery.target));
            for (name, value) in &delivery.headers {
                request = request.header(name, value.as_slice());
            }
            let body = http_body_util::Full::new(bytes::Bytes::from(delivery.body.clone()));
            let (request, mut sender) = (request.body(body).expect("a request"), sender.clone());
            sending.spawn(async move { sender.send_request(request).await.expect("an answer").status().as_u16() });
        }
        sending.join_all().await
    });
    assert_eq!(statuses.len(), 100);
    assert_eq!(upstream.count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409 | 429 | 503)), "{statuses:?}");
}

/// Sends a delivery and hangs up while the upstream holds it; the upstream then answers `status`.
fn hung_up_on(status: u16) -> (Gateway, Upstream, Request) {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, number| match number {
        0 => Reply::Held(held.clone(), Box::new(Reply::Status(status))),
        _ => Reply::Status(200),
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("stripe", "stripe", "")));
    let delivery = stripe("/stripe", sign::now(), "evt_1");
    let mut stream = connect(gateway.public()).expect("a connection");
    stream.write_all(&delivery.bytes()).expect("sent");
    upstream.wait_for(1);
    stream.shutdown(Shutdown::Both).expect("hung up");
    drop(stream);
    eventually("the gateway has seen it", || {
        (gateway.metric("hookward_connections", &[("listener", "public")]) == 0.0).then_some(())
    });
    assert!(refused_for_now(&delivery.send(gateway.public())), "it is still in flight");
    gate.open();
    (gateway, upstream, delivery)
}

#[test]
fn a_sender_that_hangs_up_half_way_does_not_undo_what_the_upstream_accepted() {
    let (gateway, upstream, delivery) = hung_up_on(200);
    eventually("the upstream's answer is recorded", || (gateway.outcome("stripe", "accepted") == 1).then_some(()));
    assert_eq!(delivery.send(gateway.public()).status, 409);
    assert_eq!(upstream.count(), 1);
    // Recorded once: as accepted, and not as gone.
    let id = upstream.received().remove(0).header("x-request-id").expect("a request id");
    gateway.audit_of(&id);
    let lines: Vec<_> = gateway.audit().into_iter().filter(|line| line["request_id"] == id.as_str()).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((gateway.outcome("stripe", "accepted"), gateway.outcome("stripe", "client_gone")), (1, 0));
}

#[test]
fn a_sender_that_hangs_up_half_way_strands_no_claim_when_the_upstream_fails() {
    let (gateway, upstream, delivery) = hung_up_on(500);
    eventually("the upstream's answer is recorded", || {
        (gateway.outcome("stripe", "upstream_error") == 1).then_some(())
    });
    assert_eq!(delivery.send(gateway.public()).status, 200);
    assert_eq!((upstream.count(), gateway.outcome("stripe", "client_gone")), (2, 0));
}

#[test]
fn one_message_under_two_live_secrets_is_one_message() {
    let upstream = Upstream::start();
    let two = "[sources.two]\npath = \"/two\"\nprovider = \"github\"\nsecrets = [{ value = \"the-new-secret-0123\" }, { value = \"the-old-secret-0123\" }]\nupstream = \"app\"\non_replay = \"reject\"\n";
    let gateway = Gateway::start(&format!("{}{two}", upstream.table()));
    let signed = |secret: &str, body: &[u8]| {
        Request::post("/two", body).header("X-Hub-Signature-256", sign::github(secret, body))
    };
    for (body, first, second) in [
        (b"{\"n\":1}", "the-new-secret-0123", "the-old-secret-0123"),
        (b"{\"n\":2}", "the-old-secret-0123", "the-new-secret-0123"),
    ] {
        assert_eq!(signed(first, body).send(gateway.public()).status, 200);
        assert_eq!(signed(second, body).send(gateway.public()).status, 409);
    }
    assert_eq!((upstream.count(), gateway.outcome("two", "replay")), (2, 2));
}

#[test]
fn changing_an_id_that_is_not_signed_does_not_make_a_delivery_new() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::start(&format!("{}{}", upstream.table(), source("github", "github", "on_replay = \"reject\"")));
    assert_eq!(github("/github", b"{}").header("X-GitHub-Delivery", "d-1").send(gateway.public()).status, 200);
    assert_eq!(github("/github", b"{}").header("X-GitHub-Delivery", "d-2").send(gateway.public()).status, 409);
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 409);
    assert_eq!(upstream.count(), 1);
    // It may make one a duplicate, though: another body with an id that was accepted.
    assert_eq!(github("/github", b"[]").header("X-GitHub-Delivery", "d-1").send(gateway.public()).status, 202);
    assert_eq!(gateway.outcome("github", "duplicate"), 1);
}

#[test]
fn another_spelling_of_the_proof_does_not_make_a_delivery_new() {
    let upstream = Upstream::start();
    let key = b"0123456789abcdef0123456789abcdef";
    let standard = format!(
        "[sources.standard]\npath = \"/standard\"\nprovider = \"standard-webhooks\"\nsecrets = [{{ value = \"whsec_{}\" }}]\nupstream = \"app\"\n",
        BASE64.encode(key)
    );
    let gateway = Gateway::start(&format!(
        "{}{standard}{}",
        upstream.table(),
        source("github", "github", "on_replay = \"reject\"")
    ));
    let now = sign::now();
    let genuine = sign::standard_webhooks(key, "msg_1", now, b"{}");
    let other = format!("v1,{}", BASE64.encode([7; 32]));
    let spelled = |signatures: &str| {
        Request::post("/standard", b"{}".as_slice())
            .header("webhook-id", "msg_1")
            .header("webhook-timestamp", now.to_string())
            .header("webhook-signature", signatures)
            .send(gateway.public())
            .status
    };
    assert_eq!(spelled(&genuine), 200);
    for signatures in [
        genuine.clone(),
        format!("{genuine} {other}"),
        format!("{other} {genuine}"),
        format!("{genuine} {genuine}"),
        format!("v1a,AAAA {genuine}"),
    ] {
        assert_eq!(spelled(&signatures), 409, "{signatures}");
    }

    let signature = sign::github(SECRET, b"{}");
    let upper = format!("sha256={}", signature.trim_start_matches("sha256=").to_uppercase());
    let sent = |signature: &str| {
        let request = Request::post("/github", b"{}".as_slice()).header("X-Hub-Signature-256", signature);
        request.send(gateway.public()).status
    };
    assert_eq!((sent(&signature), sent(&upper)), (200, 409));
    assert_eq!(upstream.count(), 2);
}

#[test]
fn two_sources_do_not_share_what_they_remember() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::start(&format!("{}{}{}", upstream.table(), source("a", "github", ""), source("b", "github", "")));
    assert_eq!(github("/a", b"{}").send(gateway.public()).status, 200);
    assert_eq!(github("/b", b"{}").send(gateway.public()).status, 200);
    assert_eq!(github("/a", b"{}").send(gateway.public()).status, 202);
    assert_eq!(upstream.count(), 2);
}

/// Distinct deliveries over a few keep-alive connections; how many were accepted.
fn send_distinct(to: SocketAddr, path: &str, numbers: std::ops::Range<usize>) -> usize {
    let numbers: Vec<usize> = numbers.collect();
    std::thread::scope(|scope| {
        let sending = numbers.chunks(numbers.len().div_ceil(4)).map(|numbers| {
            scope.spawn(move || {
                let mut stream = connect(to).expect("a connection");
                let mut answers = BufReader::new(stream.try_clone().expect("a handle"));
                let accepted = numbers.iter().filter(|number| {
                    let request = github(path, format!("{{\"number\":{number}}}").as_bytes());
                    stream.write_all(&request.bytes()).expect("sent");
                    read_answer(&mut answers).expect("an answer").status == 200
                });
                accepted.count()
            })
        });
        let sending: Vec<_> = sending.collect();
        sending.into_iter().map(|sender| sender.join().expect("a sender")).sum()
    })
}

#[test]
fn a_full_memory_refuses_what_is_new_and_forgets_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!(
        "{}{}{}",
        upstream.table(),
        source("small", "github", "max_claims = 1000\non_replay = \"reject\""),
        source("other", "github", "")
    ));
    let to = gateway.public();
    assert_eq!(send_distinct(to, "/small", 0..1000), 1000);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "small")]), 1000.0);
    assert_eq!(gateway.metric("hookward_claims_limit", &[("source", "small")]), 1000.0);

    let new = github("/small", b"{\"number\":1000}").send(to);
    assert!(refused_for_now(&new), "{new:?}");
    assert_eq!(gateway.audit_of(&new.request_id())["outcome"], "claims_full");
    // Eviction is what an attacker would want: the first is still known.
    for number in [0, 500, 999] {
        let body = format!("{{\"number\":{number}}}");
        assert_eq!(github("/small", body.as_bytes()).send(to).status, 409, "{number}");
    }
    assert_eq!(upstream.count(), 1000);
    // And it is the one source's own trouble.
    assert_eq!(github("/other", b"{\"number\":1000}").send(to).status, 200);
}

#[test]
fn a_delivery_claims_once_for_each_live_secret_and_check_reckons_with_it() {
    let upstream = Upstream::start();
    let of = |secrets: usize, more: &str| {
        let secrets: Vec<_> =
            (0..secrets).map(|n| format!("{{ value = \"secret-number-{n}-of-some-length\" }}")).collect();
        format!(
            "{}{}[sources.s]\npath = \"/s\"\nsecrets = [{}]\nupstream = \"app\"\n{more}",
            crate::support::gateway::PLAIN,
            upstream.table(),
            secrets.join(", ")
        )
    };
    let github = "provider = \"github\"\n";
    let gateway = Gateway::start_in(Default::default(), &of(2, github));
    let signature = sign::github("secret-number-1-of-some-length", b"{}");
    let sent = Request::post("/s", b"{}".as_slice()).header("X-Hub-Signature-256", signature).send(gateway.public());
    assert_eq!(sent.status, 200);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "s")]), 2.0);

    let warns = |configuration: String| {
        let folder = Folder::new();
        folder.write("gateway.toml", configuration);
        let (code, said, complained) = hookward(&folder.0, &["check"]);
        assert_eq!(code, 0, "{complained}");
        format!("{said}{complained}").contains("sources.s.max_claims: ")
    };
    // 20 a second for a day are 1.7 million.
    let rate = "rate_limit = { rate = \"20/s\", burst = 50 }\n";
    assert!(!warns(of(1, &format!("{github}{rate}"))));
    assert!(warns(of(2, &format!("{github}{rate}"))));
    // A signed time is remembered for twice its tolerance and a minute, however long that is.
    let stripe = format!("provider = \"stripe\"\n{rate}");
    assert!(!warns(of(1, &stripe)));
    assert!(warns(of(1, &format!("{stripe}verify.timestamp.tolerance = \"20h\"\n"))));
}

#[test]
fn a_delivery_passes_again_when_its_replay_window_is_over_and_not_before() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::start(&format!("{}{}", upstream.table(), source("github", "github", "replay_window = \"1s\"")));
    let before = std::time::Instant::now();
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 200);
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 202);
    eventually("the window is over", || (github("/github", b"{}").send(gateway.public()).status == 200).then_some(()));
    assert!(before.elapsed().as_secs_f64() >= 1.0, "{:?}", before.elapsed());
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_replay_window_of_zero_lets_identical_deliveries_through() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::start(&format!("{}{}", upstream.table(), source("github", "github", "replay_window = \"0s\"")));
    for _ in 0..3 {
        assert_eq!(github("/github", b"{\"heartbeat\":true}").send(gateway.public()).status, 200);
    }
    assert_eq!(upstream.count(), 3);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "github")]), 0.0);
}

#[test]
fn what_is_proven_by_a_token_or_password_alone_may_be_repeated_unless_an_id_is_named() {
    let upstream = Upstream::start();
    let common = "upstream = \"app\"\n";
    let token = "token = { header = \"X-Token\", secrets = [{ value = \"a-token-of-some-length\" }] }\n";
    let basic = "basic = { username = \"hooks\", password = { value = \"a-password-of-some-length\" } }\n";
    let gateway = Gateway::start(&format!(
        "{}[sources.token]\npath = \"/token\"\n{common}{token}[sources.basic]\npath = \"/basic\"\n{common}{basic}[sources.named]\npath = \"/named\"\n{common}{token}on_replay = \"reject\"\nid = {{ header = \"X-Event-Id\" }}\n",
        upstream.table()
    ));
    let with_token = |path: &str| Request::post(path, b"{}".as_slice()).header("X-Token", "a-token-of-some-length");
    let password = format!("Basic {}", BASE64.encode("hooks:a-password-of-some-length"));
    let with_password = Request::post("/basic", b"{}".as_slice()).header("Authorization", password);
    // Alertmanager repeats identical bodies on purpose.
    for _ in 0..2 {
        assert_eq!(with_token("/token").send(gateway.public()).status, 200);
        assert_eq!(with_password.send(gateway.public()).status, 200);
    }
    assert_eq!(with_token("/named").header("X-Event-Id", "e-1").send(gateway.public()).status, 200);
    assert_eq!(with_token("/named").header("X-Event-Id", "e-1").send(gateway.public()).status, 409);
    assert_eq!(with_token("/named").header("X-Event-Id", "e-2").send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 6);
}

#[test]
fn a_reload_forgets_nothing_not_even_when_a_secret_is_rolled_or_the_source_is_away_for_a_while() {
    let upstream = Upstream::start();
    let of = |secrets: &str| {
        format!(
            "{}{}[sources.other]\npath = \"/other\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n{secrets}",
            crate::support::gateway::PLAIN,
            upstream.table()
        )
    };
    let github_with = |secrets: &str| {
        of(&format!(
            "[sources.github]\npath = \"/github\"\nprovider = \"github\"\nsecrets = [{secrets}]\nupstream = \"app\"\non_replay = \"reject\"\n"
        ))
    };
    let old = format!("{{ value = \"{SECRET}\" }}");
    let rolled = format!("{{ value = \"a-new-secret-of-some-length\" }}, {old}");
    let mut gateway = Gateway::start_in(Default::default(), &github_with(&old));
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 200);

    assert!(gateway.reload(&github_with(&rolled)));
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 409);

    assert!(gateway.reload(&of("")));
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 404);
    assert!(gateway.reload(&github_with(&old)));
    assert_eq!(github("/github", b"{}").send(gateway.public()).status, 409);
    // A twin shows that the source works.
    assert_eq!(github("/github", b"[]").send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 2);
}
