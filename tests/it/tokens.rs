//! Tokens that prove a request, over real sockets: who gets through, who does not, and that nobody gets through twice.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::support::{Gateway, Request, Upstream, sign};

const SECRET: &str = "a shared secret of forty characters long";
const BODY: &str = r#"{"id":"evt_1","type":"paid","amount":100}"#;

const SOURCE: &str = "
[sources.pay]
path = \"/pay\"
secrets = [{ value = \"a shared secret of forty characters long\" }]
upstream = \"app\"
id = { claim = \"jti\" }
event = { json = \"/type\" }
[sources.pay.jwt]
header = \"Authorization\"
prefix = \"Bearer\"
algorithms = [\"HS256\"]
issuer = \"pay.example\"
body_hash = { claim = \"payload_hash\" }
resends = \"resigned\"
";

fn token(header: &str, id: &str, lifetime: i64, body: &str) -> String {
    let exp = i64::try_from(sign::now()).expect("a time of this century") + lifetime;
    let hash = hex::encode(Sha256::digest(body));
    let claims = format!(r#"{{"iss":"pay.example","exp":{exp},"jti":"{id}","payload_hash":"{hash}"}}"#);
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mac = sign::hmac_sha256(SECRET.as_bytes(), &[signed.as_bytes()]);
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
}

fn genuine(id: &str) -> String {
    token(r#"{"alg":"HS256","typ":"JWT"}"#, id, 60, BODY)
}

fn start(upstream: &Upstream) -> Gateway {
    Gateway::start(&format!("{}{SOURCE}", upstream.table()))
}

/// The status to the sender and the reason in the audit log.
fn sent(gateway: &Gateway, authorization: &str, body: &str) -> (u16, String) {
    let answer = Request::post("/pay", body).header("Authorization", authorization).send(gateway.public());
    let outcome = gateway.audit_of(&answer.request_id())["outcome"].as_str().unwrap_or_default().to_owned();
    (answer.status, outcome)
}

#[test]
fn a_genuine_token_brings_its_body_through_with_the_names_that_it_proves() {
    let upstream = Upstream::start();
    let gateway = start(&upstream);
    let bearer = format!("Bearer {}", genuine("id-1"));
    assert_eq!(sent(&gateway, &bearer, BODY), (200, "accepted".to_owned()));
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.body, BODY.as_bytes());
    assert_eq!(received.header("x-hookward-verified").as_deref(), Some("jwt"));
    assert_eq!(received.header("x-hookward-event-id").as_deref(), Some("id-1"));
    assert_eq!(received.header("x-hookward-event-type").as_deref(), Some("paid"));
}

#[test]
fn a_token_passes_once_and_its_event_is_a_duplicate_when_it_is_signed_anew() {
    let upstream = Upstream::start();
    let gateway = start(&upstream);
    let first = format!("Bearer {}", genuine("id-1"));
    assert_eq!(sent(&gateway, &first, BODY), (200, "accepted".to_owned()));
    assert_eq!(sent(&gateway, &first, BODY), (409, "replay".to_owned()));
    // The word before it is no part of the token.
    assert_eq!(sent(&gateway, &first.replace("Bearer", "BEARER"), BODY), (409, "replay".to_owned()));
    let anew = format!("Bearer {}", token(r#"{"alg":"HS256"}"#, "id-1", 120, BODY));
    assert_eq!(sent(&gateway, &anew, BODY), (202, "duplicate".to_owned()));
    assert_eq!(sent(&gateway, &format!("Bearer {}", genuine("id-2")), BODY), (200, "accepted".to_owned()));
    assert_eq!(upstream.wait_for(2).len(), 2);
}

#[test]
fn every_refused_token_gets_the_same_answer_and_its_own_word_in_the_log() {
    let upstream = Upstream::start();
    let gateway = start(&upstream);
    let good = genuine("id-1");
    let (signed, _) = good.rsplit_once('.').expect("three parts");
    let forged = sign::hmac_sha256(b"another secret of forty characters, too", &[signed.as_bytes()]);
    for (authorization, body, reason) in [
        (String::new(), BODY, "missing_signature"),
        ("Basic YTpi".to_owned(), BODY, "missing_signature"),
        ("Bearer nonsense".to_owned(), BODY, "malformed_signature"),
        (format!("Bearer {good}="), BODY, "malformed_signature"),
        (format!("Bearer {signed}."), BODY, "bad_signature"),
        (format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(forged)), BODY, "bad_signature"),
        (format!("Bearer {}", token(r#"{"alg":"none"}"#, "id-1", 60, BODY)), BODY, "algorithm_not_allowed"),
        (format!("Bearer {}", token(r#"{"alg":"HS256"}"#, "id-1", -1, BODY)), BODY, "stale"),
        (format!("Bearer {good}"), r#"{"amount":999}"#, "body_mismatch"),
    ] {
        let answer = Request::post("/pay", body).header("Authorization", &authorization).send(gateway.public());
        let outcome = gateway.audit_of(&answer.request_id())["outcome"].clone();
        assert_eq!((answer.status, outcome.as_str()), (401, Some(reason)), "{authorization}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{reason}");
        assert!(!answer.text().contains(reason), "{reason}");
    }
    let log = gateway.log_text();
    assert!(!log.contains(SECRET) && !log.contains(signed), "a token or its secret is in the log");
    assert_eq!(sent(&gateway, &format!("Bearer {good}"), BODY), (200, "accepted".to_owned()));
    assert_eq!(upstream.wait_for(1).len(), 1);
}
