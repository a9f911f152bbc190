//! A genuine webhook comes in and reaches the service behind, whole.

use crate::support::{Gateway, Request, Upstream, sign};

pub(crate) const SECRET: &str = "a-github-secret-for-tests";

pub(crate) fn github(upstream: &Upstream) -> String {
    format!(
        "{}\n[sources.github]\npath = \"/github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n",
        upstream.table()
    )
}

pub(crate) fn push(body: &[u8]) -> Request {
    Request::post("/github", body)
        .header("X-Hub-Signature-256", sign::github(SECRET, body))
        .header("X-GitHub-Event", "push")
        .header("X-GitHub-Delivery", "d-1")
        .header("Content-Type", "application/json")
}

#[test]
fn a_genuine_delivery_reaches_the_upstream_byte_for_byte_with_what_was_proven() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    // Not UTF-8, a NUL, CRLF, trailing spaces: whatever was signed arrives.
    let body = b"{\"ref\":\"\xff\x00\r\n\"}  \n";
    let answer = push(body).send(gateway.public());
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));

    let received = upstream.wait_for(1).remove(0);
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/github"));
    assert_eq!(received.body, body);
    assert_eq!(received.header("x-hookward-source").as_deref(), Some("github"));
    assert_eq!(received.header("x-hookward-verified").as_deref(), Some("github"));
    assert_eq!(received.header("x-hookward-event-id").as_deref(), Some("d-1"));
    assert_eq!(received.header("x-hookward-event-type").as_deref(), Some("push"));
    assert_eq!(received.header("x-request-id"), Some(answer.request_id()));
    // Apps may verify again.
    assert_eq!(received.header("x-hub-signature-256"), Some(sign::github(SECRET, body)));
    assert_eq!(received.header("host"), Some(upstream.address.to_string()));
    assert_eq!(received.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(received.header("x-forwarded-host").as_deref(), Some("hooks.example.com"));
    assert_eq!(received.header("x-forwarded-proto").as_deref(), Some("http"));

    let audit = gateway.audit_of(&answer.request_id());
    assert_eq!(
        (&audit["outcome"], &audit["source"], &audit["event_id"]),
        (&"accepted".into(), &"github".into(), &"d-1".into())
    );
    assert_eq!(gateway.outcome("github", "accepted"), 1);
}

#[test]
fn a_forged_delivery_does_not_and_the_sender_learns_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    let genuine = push(b"{}");
    let mut forged = genuine.clone();
    forged.body = b"[]".to_vec();
    let answer = forged.send(gateway.public());
    assert_eq!(answer.status, 401);
    assert!(!answer.text().contains("signature"), "{}", answer.text());
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "bad_signature");
    assert_eq!(gateway.outcome("github", "bad_signature"), 1);
    // Its twin, unharmed, passes.
    assert_eq!(genuine.send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_hundred_copies_at_once_reach_the_upstream_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    let to = gateway.public();
    let senders: Vec<_> =
        (0..100).map(|_| std::thread::spawn(move || push(b"{\"copy\":true}").send(to).status)).collect();
    let statuses: Vec<u16> = senders.into_iter().map(|sender| sender.join().expect("a sender")).collect();
    assert_eq!(statuses.len(), 100);
    assert_eq!(upstream.count(), 1, "{statuses:?}");
    // One got the upstream's answer; the others were told to come back, or that it is done.
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 202 | 429 | 503)), "{statuses:?}");
}
