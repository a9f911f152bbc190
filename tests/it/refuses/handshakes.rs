//! Challenges are answered by the gateway, to those alone who can sign them.

use super::{SECRET, assert_refused, preset, source, start};
use crate::support::{Answer, Gateway, Request, Upstream, sign};
use ed25519_dalek::{Signer, SigningKey};

fn slack(gateway: &Gateway, secret: &str, body: &str) -> Answer {
    let now = sign::now();
    let sent = Request::post("/slack", body).header("Content-Type", "application/json");
    let sent = sent.header("X-Slack-Request-Timestamp", now.to_string());
    sent.header("X-Slack-Signature", sign::slack(secret, now, body.as_bytes())).send(gateway.public())
}

#[test]
fn slacks_url_verification_is_echoed_to_slack_alone() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("slack")]);
    let body =
        r#"{"token":"x","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}"#;
    let answer = slack(&gateway, SECRET, body);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P");
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "challenge");

    let forged = slack(&gateway, "not-the-secret", body);
    assert_refused(&gateway, &forged, 401, "bad_signature", "forged");
    assert!(!forged.text().contains("3eZbrw1aBm2rZgRNFdxV"));
    let unsigned = Request::post("/slack", body).send(gateway.public());
    assert_refused(&gateway, &unsigned, 401, "missing_signature", "unsigned");
    // What a browser would take for a page is not echoed, though Slack itself had signed it.
    let markup = r#"{"type":"url_verification","challenge":"<script>alert(1)</script>"}"#;
    assert_refused(&gateway, &slack(&gateway, SECRET, markup), 400, "malformed", "markup");
    assert_eq!(upstream.count(), 0, "a challenge goes no further");

    assert_eq!(slack(&gateway, SECRET, r#"{"type":"event_callback","event_id":"E1"}"#).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn discords_ping_is_answered_with_a_pong_to_discord_alone() {
    let upstream = Upstream::start();
    let key = SigningKey::from_bytes(&[7; 32]);
    let stranger = SigningKey::from_bytes(&[8; 32]);
    let public = hex::encode(key.verifying_key().as_bytes());
    let discord = source("discord", &format!("provider = \"discord\"\nsecrets = [{{ value = \"{public}\" }}]"));
    let gateway = start(&upstream, &[discord]);
    let send = |key: &SigningKey, body: &str| {
        let now = sign::now().to_string();
        let signature = hex::encode(key.sign(format!("{now}{body}").as_bytes()).to_bytes());
        let sent = Request::post("/discord", body).header("X-Signature-Timestamp", now);
        sent.header("X-Signature-Ed25519", signature).send(gateway.public())
    };
    let ping = r#"{"id":"1","type":1,"version":1}"#;
    let pong = send(&key, ping);
    assert_eq!((pong.status, pong.text().as_str()), (200, r#"{"type":1}"#));
    assert_eq!(pong.header("content-type"), Some("application/json"));
    // Discord checks that an endpoint does refuse.
    assert_refused(&gateway, &send(&stranger, ping), 401, "bad_signature", "forged");
    let event_ping = send(&key, r#"{"version":1,"application_id":"1","type":0}"#);
    assert_eq!((event_ping.status, event_ping.body.len()), (204, 0));
    assert_eq!(upstream.count(), 0);
    // A webhook event has type 1 as well, and is none.
    let event = r#"{"version":1,"application_id":"1","type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#;
    assert_eq!(send(&key, event).status, 200);
    assert_eq!(upstream.wait_for(1)[0].header("x-hookward-event-type").as_deref(), Some("APPLICATION_AUTHORIZED"));
}

#[test]
fn handshakes_are_five_a_second_and_forgeries_spend_none_of_them() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("slack")]);
    let body = |n: u32| format!(r#"{{"type":"url_verification","challenge":"c{n}"}}"#);
    for n in 0..20 {
        assert_eq!(slack(&gateway, "not-the-secret", &body(n)).status, 401);
    }
    let begun = std::time::Instant::now();
    let mut answered = 0;
    let limited = (0..200).map(|n| slack(&gateway, SECRET, &body(n))).find(|answer| {
        answered += u32::from(answer.status == 200);
        answer.status != 200
    });
    let limited = limited.expect("a limit");
    let earned = begun.elapsed().as_secs() as u32 * 5 + 5;
    assert!((5..=5 + earned).contains(&answered), "{answered}");
    assert_refused(&gateway, &limited, 429, "challenge_limited", "the next one");
    assert_eq!(limited.header("retry-after"), Some("1"));
    // Deliveries have a budget of their own.
    assert_eq!(slack(&gateway, SECRET, r#"{"type":"event_callback"}"#).status, 200);
    assert_eq!(upstream.count(), 1);
}
