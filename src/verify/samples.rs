//! Settings of the shapes that the presets have, for the promises of `judge` in `tests`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;

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
    Settings { label: label.into(), scheme: Some(scheme), id, event, ..Settings::default() }
}

fn hmac_sha256(keys: Vec<Key>, headers: &[&'static str], layout: Layout, encoding: Encoding, message: &str) -> Scheme {
    let place = Place::Header(headers.iter().map(|name| header(name)).collect());
    Scheme {
        algorithm: Algorithm::HmacSha256,
        keys,
        key_choice: KeyChoice::default(),
        signature: SignatureAt { place, layout, encoding },
        message: Template::parse(message).unwrap(),
        timestamp: None,
        required_headers: Vec::new(),
        single_use: false,
        more: More::default(),
    }
}

fn seconds(place: TimestampPlace, tolerance: Duration) -> Option<Timestamp> {
    Some(Timestamp { place, unit: Unit::Seconds, tolerance: Some(tolerance), future: Future::Tolerance })
}

fn plain(prefix: &str) -> Layout {
    Layout::Plain { prefix: prefix.into() }
}

/// One that comes with every proof.
pub(super) fn handshake(when: Vec<Condition>, answer: Answer) -> Handshake {
    let (methods, guards) = (Vec::new(), Vec::new());
    Handshake { methods, when, signed: true, guards, answer, refused_with: None, capture: None }
}

pub(super) fn answer(status: u16, content_type: Option<&'static str>, body: AnswerBody) -> Answer {
    let status = StatusCode::from_u16(status).unwrap();
    let content_type = content_type.map(HeaderValue::from_static);
    Answer { status, content_type, headers: Vec::new(), body, computed: None, alphabet: Alphabet::Token }
}

pub(super) fn github(secrets: &[&str]) -> Settings {
    let keys = keys(secrets, KeyEncoding::Utf8, None);
    let scheme = hmac_sha256(keys, &["x-hub-signature-256"], plain("sha256="), Encoding::Hex, "{body}");
    let id = vec![Locator::Header(header("x-github-delivery"))];
    settings("github", scheme, id, vec![Locator::Header(header("x-github-event"))])
}

pub(super) fn stripe(secrets: &[&str]) -> Settings {
    let layout = Layout::Pairs { separator: ',', equals: '=', key: "v1".into(), groups: None };
    let keys = keys(secrets, KeyEncoding::Utf8, None);
    let mut scheme = hmac_sha256(keys, &["stripe-signature"], layout, Encoding::Hex, "{timestamp}.{body}");
    scheme.timestamp = seconds(TimestampPlace::Pair("t".into()), FIVE_MINUTES);
    settings("stripe", scheme, vec![Locator::Json("/id".into())], vec![Locator::Json("/type".into())])
}

pub(super) fn slack(secrets: &[&str]) -> Settings {
    let keys = keys(secrets, KeyEncoding::Utf8, None);
    let mut scheme = hmac_sha256(keys, &["x-slack-signature"], plain("v0="), Encoding::Hex, "v0:{timestamp}:{body}");
    scheme.timestamp = seconds(TimestampPlace::Header(header("x-slack-request-timestamp")), FIVE_MINUTES);
    let when = vec![Condition::Equals(Locator::Json("/type".into()), json!("url_verification"))];
    let echo = AnswerBody::Text(vec![Piece::Echo(Locator::Json("/challenge".into()))]);
    let handshakes = vec![handshake(when, answer(200, Some("text/plain"), echo))];
    let event = ["/event/type", "/type"].map(|pointer| Locator::Json(pointer.into()));
    let event = event.into_iter().chain([Locator::Form("command".into())]).collect();
    Settings { handshakes, ..settings("slack", scheme, vec![Locator::Json("/event_id".into())], event) }
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
    scheme.algorithm = Algorithm::Signature(SignatureAlgorithm::Ed25519);
    scheme.timestamp = seconds(TimestampPlace::Header(header("x-signature-timestamp")), FIVE_MINUTES);
    let ping = |kind: u64, status, content_type, body: &'static [u8]| {
        let kind = Condition::Equals(Locator::Json("/type".into()), json!(kind));
        let when = vec![kind, Condition::Absent(Locator::Json("/event".into()))];
        handshake(when, answer(status, content_type, AnswerBody::Fixed(Bytes::from_static(body))))
    };
    let handshakes = vec![ping(1, 200, Some("application/json"), br#"{"type":1}"#), ping(0, 204, None, b"")];
    let event = ["/event/type", "/type"].map(|pointer| Locator::Json(pointer.into())).to_vec();
    Settings { handshakes, ..settings("discord", scheme, vec![Locator::Json("/id".into())], event) }
}
