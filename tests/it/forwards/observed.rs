//! `mode = "observe"`, and `sign`: what the gateway says of a delivery to the service behind.

use super::{SECRET, delivery, signed, source};
use crate::support::upstream::Received;
use crate::support::{Gateway, Reply, Request, Upstream, sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

fn stripe_source(more: &str) -> String {
    format!(
        "\n[sources.stripe]\npath = \"/stripe\"\nprovider = \"stripe\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n{more}\n"
    )
}

fn stripe(secret: &str, time: u64, id: &str) -> Request {
    let body = format!("{{\"id\":\"{id}\",\"type\":\"invoice.paid\"}}");
    Request::post("/stripe", body.as_bytes()).header("Stripe-Signature", sign::stripe(secret, time, body.as_bytes()))
}

#[test]
fn an_observing_source_forwards_everything_and_marks_what_enforcing_would_refuse() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), stripe_source("mode = \"observe\"")));
    let now = sign::now();
    let mut unsigned = stripe(SECRET, now, "evt_1");
    unsigned.headers.clear();
    // A sender cannot mark its own as proven.
    let unsigned = unsigned.header("X-Hookward-Verified", "stripe");
    for (request, would) in [
        // Had one of these claimed, the genuine one after them would be a duplicate.
        (stripe("another-secret-altogether", now, "evt_1"), Some("bad_signature")),
        (stripe(SECRET, now - 3600, "evt_1"), Some("stale")),
        (unsigned, Some("missing_signature")),
        (stripe(SECRET, now, "evt_1"), None),
        (stripe(SECRET, now, "evt_1"), Some("replay")),
        (stripe(SECRET, now - 1, "evt_1"), Some("duplicate")),
        (stripe(SECRET, now, "evt_2"), None),
    ] {
        let before = upstream.count();
        let counted =
            |reason: &str| gateway.metric("hookward_would_refuse_total", &[("source", "stripe"), ("reason", reason)]);
        let refused_before = would.map(counted);
        let answer = request.send(gateway.public());
        assert_eq!((answer.status, upstream.count()), (200, before + 1), "{would:?}");
        let received = upstream.received().pop().expect("one more");
        assert_eq!(received.header("x-hookward-would-refuse").as_deref(), would);
        let verified = received.all("x-hookward-verified");
        assert_eq!(verified, if would.is_none() { vec!["stripe"] } else { vec![] }, "{would:?}");
        if let (Some(would), Some(before)) = (would, refused_before) {
            assert_eq!(counted(would), before + 1.0, "{would}");
        }
        let audit = gateway.audit_of(&answer.request_id());
        assert_eq!((&audit["outcome"], audit["would_refuse"].as_str()), (&"accepted".into(), would));
    }
    assert_eq!(gateway.outcome("stripe", "accepted"), 7);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "stripe")]), 2.0, "only the genuine ones claimed");
}

#[test]
fn an_observing_source_marks_what_its_rate_would_refuse_and_does_not_claim_it() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!(
        "{}{}",
        upstream.table(),
        source("github", "/github", "mode = \"observe\"\nrate_limit = { rate = \"1/h\", burst = 1 }")
    ));
    let marks: Vec<Option<String>> = [0, 1, 1]
        .map(|number| {
            assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
            upstream.received().pop().expect("one more").header("x-hookward-would-refuse")
        })
        .into();
    assert_eq!(marks, [None, Some("rate_limited".to_owned()), Some("rate_limited".to_owned())]);
}

#[test]
fn enforcing_is_the_twin_that_refuses() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), stripe_source("")));
    let now = sign::now();
    assert_eq!(stripe("another-secret-altogether", now, "evt_1").send(gateway.public()).status, 401);
    assert_eq!(stripe(SECRET, now - 3600, "evt_1").send(gateway.public()).status, 401);
    assert_eq!(upstream.count(), 0);
    assert_eq!(stripe(SECRET, now, "evt_1").send(gateway.public()).status, 200);
    assert_eq!(upstream.received().remove(0).all("x-hookward-would-refuse"), Vec::<String>::new());
}

/// The id, having checked the signature as a receiver would.
fn standard_webhooks_id(received: &Received) -> String {
    let [id, time, signature] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| {
        let mut all = received.all(name);
        assert_eq!(all.len(), 1, "{name}: {all:?}");
        all.remove(0)
    });
    let time: u64 = time.parse().expect("seconds");
    assert!(sign::now().abs_diff(time) < 60, "{time}");
    assert_eq!(signature, sign::standard_webhooks(KEY, &id, time, &received.body));
    id
}

#[test]
fn an_upstream_that_asks_for_it_gets_one_signature_whoever_sent_and_one_id_for_every_attempt() {
    // Each delivery fails once.
    let upstream = Upstream::with(|_, number| Reply::Status(if number % 2 == 0 { 500 } else { 200 }));
    let gateway = Gateway::start(&format!(
        "{}sign = {{ secret = {{ value = \"whsec_{}\" }} }}\n{}{}",
        upstream.table(),
        BASE64.encode(KEY),
        source("github", "/github", ""),
        stripe_source(""),
    ));
    let forged = |request: Request| {
        // Whatever the sender wrote there is not what the upstream checks.
        request.header("webhook-id", "forged").header("webhook-signature", "v1,AAAA").header("webhook-timestamp", "1")
    };
    let now = sign::now();
    for (first, second) in [
        (signed("POST", "/github", b"\xff{}"), signed("POST", "/github", b"\xff{}")),
        (stripe(SECRET, now - 1, "evt_1"), stripe(SECRET, now, "evt_1")),
    ] {
        assert_eq!(forged(first).send(gateway.public()).status, 500);
        assert_eq!(forged(second).send(gateway.public()).status, 200);
    }
    let ids: Vec<String> = upstream.received().iter().map(standard_webhooks_id).collect();
    assert_eq!(ids.len(), 4);
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[2..], ["evt_1", "evt_1"], "the provider's own id where its signature covers it");
    assert_ne!(ids[0], ids[2]);
}
