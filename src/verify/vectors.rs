//! Recorded and published deliveries of real providers, judged at the time each was made for.
//!
//! The settings here are those that the presets of the same names must come to.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::*;

const FIVE_MINUTES: Duration = Duration::from_secs(300);

fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

fn keys(secrets: &[&str], encoding: KeyEncoding, prefix: Option<&str>) -> Vec<Key> {
    let format = KeyFormat { encoding, strip_prefix: prefix.map(str::to_owned) };
    secrets.iter().map(|secret| Key::decode(&Secret::new((*secret).into()), &format).unwrap()).collect()
}

fn settings(label: &str, scheme: Scheme, id: Vec<Locator>, event: Vec<Locator>) -> Settings {
    let (basic, bearer, token, public_url) = (None, None, None, None);
    Settings { label: label.into(), scheme: Some(scheme), basic, bearer, token, id, event, public_url }
}

fn hmac_sha256(keys: Vec<Key>, headers: &[&'static str], layout: Layout, encoding: Encoding, message: &str) -> Scheme {
    let place = Place::Header(headers.iter().map(|name| header(name)).collect());
    Scheme {
        algorithm: Algorithm::HmacSha256,
        keys,
        signature: SignatureAt { place, layout, encoding },
        message: Template::parse(message).unwrap(),
        timestamp: None,
        required_headers: Vec::new(),
        handshakes: Vec::new(),
        single_use: false,
    }
}

fn seconds(place: TimestampPlace, tolerance: Duration) -> Option<Timestamp> {
    Some(Timestamp { place, unit: Unit::Seconds, tolerance })
}

fn plain(prefix: &str) -> Layout {
    Layout::Plain { prefix: prefix.into() }
}

pub(super) fn github(secrets: &[&str]) -> Settings {
    let keys = keys(secrets, KeyEncoding::Utf8, None);
    let scheme = hmac_sha256(keys, &["x-hub-signature-256"], plain("sha256="), Encoding::Hex, "{body}");
    let id = vec![Locator::Header(header("x-github-delivery"))];
    settings("github", scheme, id, vec![Locator::Header(header("x-github-event"))])
}

pub(super) fn stripe(secrets: &[&str]) -> Settings {
    let layout = Layout::Pairs { separator: ',', equals: '=', key: "v1".into() };
    let keys = keys(secrets, KeyEncoding::Utf8, None);
    let mut scheme = hmac_sha256(keys, &["stripe-signature"], layout, Encoding::Hex, "{timestamp}.{body}");
    scheme.timestamp = seconds(TimestampPlace::Pair("t".into()), FIVE_MINUTES);
    settings("stripe", scheme, vec![Locator::Json("/id".into())], vec![Locator::Json("/type".into())])
}

pub(super) fn slack(secrets: &[&str]) -> Settings {
    let keys = keys(secrets, KeyEncoding::Utf8, None);
    let mut scheme = hmac_sha256(keys, &["x-slack-signature"], plain("v0="), Encoding::Hex, "v0:{timestamp}:{body}");
    scheme.timestamp = seconds(TimestampPlace::Header(header("x-slack-request-timestamp")), FIVE_MINUTES);
    scheme.handshakes = vec![Handshake {
        match_json: vec![("/type".into(), json!("url_verification"))],
        absent_json: Vec::new(),
        answer: Answer {
            status: StatusCode::OK,
            content_type: Some(HeaderValue::from_static("text/plain")),
            body: AnswerBody::Echo("/challenge".into()),
        },
    }];
    let event = ["/event/type", "/type"].map(|pointer| Locator::Json(pointer.into()));
    let event = event.into_iter().chain([Locator::Form("command".into())]).collect();
    settings("slack", scheme, vec![Locator::Json("/event_id".into())], event)
}

pub(super) fn shopify(secrets: &[&str]) -> Settings {
    let both = |names: [&'static str; 2]| names.map(|name| Locator::Header(header(name))).to_vec();
    let names = ["x-shopify-hmac-sha256", "shopify-hmac-sha256"];
    let scheme = hmac_sha256(keys(secrets, KeyEncoding::Utf8, None), &names, plain(""), Encoding::Base64, "{body}");
    let id = both(["x-shopify-webhook-id", "shopify-webhook-id"]);
    settings("shopify", scheme, id, both(["x-shopify-topic", "shopify-topic"]))
}

pub(super) fn standard_webhooks(secrets: &[&str]) -> Settings {
    let layout = Layout::List { separator: ' ', prefix: "v1,".into() };
    let keys = keys(secrets, KeyEncoding::Base64, Some("whsec_"));
    let message = "{header:webhook-id}.{timestamp}.{body}";
    let mut scheme = hmac_sha256(keys, &["webhook-signature"], layout, Encoding::Base64, message);
    scheme.timestamp = seconds(TimestampPlace::Header(header("webhook-timestamp")), FIVE_MINUTES);
    scheme.required_headers = vec![header("webhook-id")];
    let id = vec![Locator::Header(header("webhook-id"))];
    settings("standard-webhooks", scheme, id, vec![Locator::Json("/type".into())])
}

pub(super) fn discord(public_keys: &[&str]) -> Settings {
    let keys = keys(public_keys, KeyEncoding::Hex, None);
    let mut scheme = hmac_sha256(keys, &["x-signature-ed25519"], plain(""), Encoding::Hex, "{timestamp}{body}");
    scheme.algorithm = Algorithm::Ed25519;
    scheme.timestamp = seconds(TimestampPlace::Header(header("x-signature-timestamp")), FIVE_MINUTES);
    let json_answer = Some(HeaderValue::from_static("application/json"));
    let ping = |kind: u64, status, content_type, body: &'static [u8]| Handshake {
        match_json: vec![("/type".into(), json!(kind))],
        absent_json: vec!["/event".into()],
        answer: Answer { status, content_type, body: AnswerBody::Fixed(Bytes::from_static(body)) },
    };
    scheme.handshakes =
        vec![ping(1, StatusCode::OK, json_answer, br#"{"type":1}"#), ping(0, StatusCode::NO_CONTENT, None, b"")];
    let event = ["/event/type", "/type"].map(|pointer| Locator::Json(pointer.into())).to_vec();
    settings("discord", scheme, vec![Locator::Json("/id".into())], event)
}

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
