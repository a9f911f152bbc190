//! Recorded and published deliveries of real providers, judged at the time each was made for.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use super::samples::{discord, github, shopify, slack, standard_webhooks, stripe};
use super::*;

/// How many of a file's vectors are accepted, refused and answered as challenges.
type Counts = (usize, usize, usize);

fn run(file: &str, preset: impl Fn(&[&str]) -> Settings) -> Counts {
    let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
    let mut counts = (0, 0, 0);
    for vector in &vectors {
        let name = vector["id"].as_str().unwrap();
        let mut settings = preset(&secrets(&vector["config"]));
        if let Some(timestamp) = settings.scheme.as_mut().and_then(|scheme| scheme.timestamp.as_mut()) {
            timestamp.tolerance = tolerance(&vector["config"]);
        }
        let now = UnixMillis::from_secs(vector["now_unix"].as_u64().unwrap());
        let judged = Verifier::build(settings).unwrap().judge(delivery(&vector["request"]), now);
        match (vector["expect"].as_str().unwrap(), judged) {
            ("accept", Ok(verified)) => {
                assert_eq!(verified.challenge(), None, "{name}");
                assert!(!verified.replay_keys().is_empty(), "{name}");
                assert_names(name, &verified, &vector["meta"]);
                counts.0 += 1;
            }
            ("reject", Err(refused)) => {
                assert_eq!(Some(refused.refusal), expected_refusal(vector["reason"].as_str().unwrap()), "{name}");
                counts.1 += 1;
            }
            ("challenge", Ok(verified)) => {
                assert_reply(name, verified.challenge(), &vector["expected_response"]);
                counts.2 += 1;
            }
            (expected, judged) => panic!("{name}: expected {expected}, got {judged:?}"),
        }
    }
    assert_eq!(counts.0 + counts.1 + counts.2, vectors.len());
    counts
}

fn secrets(config: &Value) -> Vec<&str> {
    match (&config["secrets"], &config["public_key"], &config["signing"]["secret"]) {
        (Value::Array(secrets), _, _) => secrets.iter().map(|secret| secret.as_str().unwrap()).collect(),
        (_, Value::String(one), _) | (_, _, Value::String(one)) => vec![one],
        _ => panic!("no secret in {config}"),
    }
}

fn tolerance(config: &Value) -> Duration {
    let stated = [&config["tolerance_s"], &config["tolerance_seconds"], &config["signing"]["tolerance_seconds"]];
    stated.into_iter().find_map(Value::as_u64).map_or(Duration::MAX, Duration::from_secs)
}

fn delivery(request: &Value) -> Delivery {
    let uri: Uri = request["url"].as_str().unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for header in request["headers"].as_array().unwrap() {
        let (name, value) = (header[0].as_str().unwrap(), header[1].as_str().unwrap());
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value.trim()).unwrap());
    }
    Delivery {
        method: Method::from_bytes(request["method"].as_str().unwrap().as_bytes()).unwrap(),
        scheme: "https",
        authority: uri.authority().unwrap().to_string(),
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        headers,
        body: STANDARD.decode(request["body_base64"].as_str().unwrap()).unwrap().into(),
    }
}

fn expected_refusal(reason: &str) -> Option<Refusal> {
    Some(match reason {
        "missing_signature" => Refusal::MissingSignature,
        "malformed_signature" => Refusal::MalformedSignature,
        "bad_signature" | "wrong_secret" | "wrong_key" => Refusal::BadSignature,
        "missing_timestamp" => Refusal::MissingTimestamp,
        "malformed_timestamp" => Refusal::MalformedTimestamp,
        "stale_timestamp" | "future_timestamp" => Refusal::Stale,
        _ => return None,
    })
}

fn assert_names(name: &str, verified: &Verified, meta: &Value) {
    if let Some(id) = meta["replay_id"].as_str() {
        assert_eq!(verified.event_id(), Some(id), "{name}");
    }
    if let Some(event_type) = meta["event_type"].as_str() {
        assert_eq!(verified.event_type(), Some(event_type), "{name}");
    }
}

fn assert_reply(name: &str, reply: Option<&Reply>, expected: &Value) {
    let reply = reply.unwrap_or_else(|| panic!("{name}: not recognised"));
    assert_eq!(u64::from(reply.status.as_u16()), expected["status"].as_u64().unwrap(), "{name}");
    assert_eq!(reply.body, STANDARD.decode(expected["body_base64"].as_str().unwrap()).unwrap(), "{name}");
    let content_type = expected["headers"][0][1].as_str();
    assert_eq!(reply.content_type.as_ref().map(|value| value.to_str().unwrap()), content_type, "{name}");
}

macro_rules! vectors {
    ($file:literal) => {
        include_str!(concat!("../../tests/vectors/", $file, ".json"))
    };
}

#[test]
fn github_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("github"), github), (7, 9, 0));
}

#[test]
fn stripe_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("stripe"), stripe), (8, 11, 0));
}

#[test]
fn slack_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("slack"), slack), (5, 12, 0));
    assert_eq!(run(vectors!("hs_slack"), slack), (0, 2, 1));
}

#[test]
fn shopify_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("shopify"), shopify), (6, 5, 0));
}

#[test]
fn standard_webhooks_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("standard-webhooks"), standard_webhooks), (9, 13, 0));
}

#[test]
fn discord_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("discord"), discord), (3, 7, 0));
    assert_eq!(run(vectors!("hs_discord"), discord), (0, 1, 1));
}
