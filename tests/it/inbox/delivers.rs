//! What is stored reaches its upstream: exactly, at least once, in time, and none in another's way.

use super::stage::{configuration, event, source, upstream};
use crate::support::{Gateway, Upstream};

#[test]
fn what_was_acknowledged_is_delivered_with_its_bytes_and_headers() {
    let app = Upstream::start();
    let gateway = Gateway::start_in(
        Default::default(),
        &configuration("", &format!("{}{}", upstream("app", &app, ""), source("github", "app", ""))),
    );
    let sent = event("github", "one", 3000).header("Content-Type", "application/json").header("X-Own", "kept");
    let answer = sent.send(gateway.public());
    assert_eq!(answer.status, 202);
    let received = app.wait_for(1).remove(0);
    assert_eq!(received.body, sent.body);
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/github"));
    let header = |name: &str| received.header(name).unwrap_or_default();
    assert_eq!(header("x-request-id"), answer.request_id());
    assert_eq!(header("x-hookward-attempt"), "1");
    assert_eq!(header("x-hookward-source"), "github");
    assert_eq!(header("x-hookward-verified"), "github");
    assert_eq!(header("x-own"), "kept");
    assert_eq!(header("content-type"), "application/json");
    assert!(header("idempotency-key").starts_with("github:"), "{received:?}");
}
