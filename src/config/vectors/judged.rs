//! What becomes of a vector's request, and whether that is what must become of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use super::vector::{Expect, Kind, Vector};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::{Document, Library, Lookup, Wanted};
use crate::gateway::source::{Acknowledge, Settings};
use crate::verify::{Refused, Reply, Verified};

/// A proof wants a certificate or a key set, and once more the key set when it lacks the key.
const MOST_DOCUMENTS: usize = 4;

/// Judges a vector's request by a source that was loaded for it. Err: why it is not what is expected.
pub(super) fn judge(vector: &Vector, source: &Settings) -> Result<(), String> {
    let delivery = vector.delivery()?;
    let method = delivery.method.clone();
    if let Some(answered) = unproven(vector, source, &delivery) {
        return answered;
    }
    let shelf = Shelf::default();
    let judged = shelf.judge(vector, source, delivery);
    let of_the_proof = vector.kind() == Kind::Signature;
    if of_the_proof && vector.0["reason"] == "untrusted_key_url" && !shelf.is_untouched() {
        return Err("was fetched from, and must not be".to_owned());
    }
    match (vector.expect(), judged) {
        (Expect::Accept, Ok(verified)) => {
            if verified.challenge().is_some() {
                return Err("taken for a handshake".to_owned());
            }
            if !source.methods.contains(&method) {
                return Err(format!("the source does not take {method}"));
            }
            names(&verified, &vector.0["meta"])
        }
        (Expect::Challenge, Ok(verified)) => {
            let acknowledged = acknowledged(source);
            // Some providers' only handshake is how each delivery is acknowledged.
            let is_in_each = vector.config()["handshake"] == "fixed-ack";
            let reply = verified.challenge().or(is_in_each.then_some(&acknowledged));
            let outbound = vector.0["expected_response"]["outbound"][0]["url"].as_str();
            if verified.visit() != outbound {
                return Err(format!("{outbound:?} is to be visited, and {:?} would be", verified.visit()));
            }
            replies(reply.ok_or("accepted, and not seen to be a handshake")?, &vector.0["expected_response"])
        }
        (Expect::Reject, Err(refused)) if vector.kind() == Kind::Handshake => {
            let expected = &vector.0["expected_response"];
            if expected["body_match"] == "empty" && !source.refuses_without_body {
                return Err("refused with a body, and to be refused without".to_owned());
            }
            status(refused.refusal.status().as_u16(), expected)
        }
        (Expect::Reject, Err(refused)) => {
            let (reasons, label) = (vector.reasons(), refused.refusal.label());
            if reasons.contains(&label) {
                return Ok(());
            }
            Err(format!("refused with {label} ({}), and not with any of {}", refused.note, reasons.join(", ")))
        }
        (_, Err(refused)) => Err(format!("refused: {} ({})", refused.refusal.label(), refused.note)),
        (Expect::Reject, Ok(_)) => Err(format!("accepted, and to be refused: {}", vector.0["reason"])),
    }
}

/// What the gateway answers before it asks for a proof; None: it goes on to ask for one.
fn unproven(vector: &Vector, source: &Settings, delivery: &Delivery) -> Option<Result<(), String>> {
    let expected = &vector.0["expected_response"];
    let Delivery { method, headers, query, .. } = delivery;
    let takes = source.methods.contains(method);
    let lets_in = takes || source.verifier.admits(method, headers, query.as_deref());
    let asked = if lets_in { source.verifier.ask(delivery) } else { None };
    match (vector.expect(), asked.map(|asked| asked.answer)) {
        (Expect::Accept, Some(_)) => Some(Err("taken for a handshake".to_owned())),
        (Expect::Challenge, Some(Ok(granted))) => {
            let captured = granted.captured.map(|secret| String::from_utf8_lossy(secret.expose()).into_owned());
            let stated = expected["captured"]["secret"].as_str();
            if stated.is_some() && captured.as_deref() != stated {
                return Some(Err("the secret was not captured".to_owned()));
            }
            Some(replies(&granted.reply, expected))
        }
        (Expect::Reject, Some(Ok(_))) => Some(Err("answered as a handshake, and to be refused".to_owned())),
        (expect, Some(Err(declined))) => Some(match expect {
            Expect::Reject if vector.kind() == Kind::Handshake => {
                status(declined.status.unwrap_or(declined.refusal.status()).as_u16(), expected)
            }
            _ => Err(format!("refused as a handshake: {} ({})", declined.refusal.label(), declined.note)),
        }),
        (Expect::Reject, None) if !takes && vector.kind() == Kind::Handshake => Some(status(405, expected)),
        (_, None) => None,
    }
}

/// What the gateway says where it answers in the upstream's place.
fn acknowledged(source: &Settings) -> Reply {
    let Acknowledge { status, content_type, body } = source.acknowledge.clone();
    Reply { status, content_type, headers: Vec::new(), body }
}

/// What the vector's network would answer (`fetch_stub`), fetched when a proof first wants it, as the gateway does.
#[derive(Default)]
struct Shelf(Mutex<HashMap<Arc<str>, Option<Arc<Document>>>>);

impl Library for Shelf {
    fn look_up(&self, url: &str) -> Lookup {
        match self.0.lock().unwrap().get(url) {
            Some(Some(document)) => Lookup::Here(document.clone()),
            Some(None) => Lookup::Unavailable,
            None => Lookup::Missing,
        }
    }
}

impl Shelf {
    fn judge(&self, vector: &Vector, source: &Settings, delivery: Delivery) -> Result<Verified, Refused> {
        let mut judged = source.verifier.judge(delivery, vector.now(), self);
        for _ in 0..MOST_DOCUMENTS {
            match judged {
                Err(Refused { wanted: Some(wanted), delivery, .. }) => {
                    self.fetch(wanted, vector);
                    judged = source.verifier.judge(*delivery, vector.now(), self);
                }
                decided => return decided,
            }
        }
        judged
    }

    fn fetch(&self, wanted: Wanted, vector: &Vector) {
        // What is wanted is a parsed url; the network would be asked for the same, however it was written.
        let stub = vector.config()["fetch_stub"].as_object().into_iter().flatten();
        let mut same = stub.filter(|(url, _)| url::Url::parse(url).is_ok_and(|url| url.as_str() == &*wanted.url));
        let found = same.next().and_then(|(_, text)| text.as_str()).map(|text| {
            let at = wanted.newer_than.map_or(vector.now(), |older| UnixMillis(older.0 + 1));
            Arc::new(Document::new(Bytes::copy_from_slice(text.as_bytes()), at))
        });
        self.0.lock().unwrap().insert(wanted.url, found);
    }

    fn is_untouched(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

/// The event's id and type are those that the vector names, where it names any.
fn names(verified: &Verified, meta: &Value) -> Result<(), String> {
    for (what, found, stated) in [
        ("id", verified.event_id(), meta["replay_id"].as_str()),
        ("type", verified.event_type(), meta["event_type"].as_str()),
    ] {
        if stated.is_some() && found != stated {
            return Err(format!("the event's {what} is {stated:?}, and {found:?} was found"));
        }
    }
    Ok(())
}

/// One of the answers that the vector calls right.
fn replies(reply: &Reply, expected: &Value) -> Result<(), String> {
    let first = answers(reply, expected);
    let alternatives = expected["alternatives"].as_array().into_iter().flatten();
    if first.is_ok() || alternatives.into_iter().any(|other| answers(reply, other).is_ok()) { Ok(()) } else { first }
}

fn answers(reply: &Reply, expected: &Value) -> Result<(), String> {
    status(reply.status.as_u16(), expected)?;
    for header in expected["headers"].as_array().into_iter().flatten() {
        let (name, value) = (header[0].as_str().unwrap_or_default(), header[1].as_str().unwrap_or_default());
        let found = match name.to_ascii_lowercase().as_str() {
            "content-type" => reply.content_type.as_ref(),
            other => reply.headers.iter().find(|(name, _)| name == other).map(|(_, value)| value),
        };
        let found = found.and_then(|value| value.to_str().ok());
        // A parameter (`; charset=utf-8`) is the receiver's own affair.
        if found.map(|found| found.split(';').next().unwrap_or(found).trim()) != Some(value) {
            return Err(format!("{name}: {value} is to be answered, and {found:?} is"));
        }
    }
    let body = STANDARD.decode(expected["body_base64"].as_str().unwrap_or_default()).map_err(|e| e.to_string())?;
    let is_same = match expected["body_match"].as_str() {
        Some("any") => true,
        Some("empty") => reply.body.is_empty(),
        Some("json") => {
            let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
            parsed(&body).is_some() && parsed(&body) == parsed(&reply.body)
        }
        _ => body == reply.body,
    };
    let shown = String::from_utf8_lossy(&reply.body);
    is_same.then_some(()).ok_or_else(|| format!("{} is to be answered, and {shown} is", String::from_utf8_lossy(&body)))
}

fn status(found: u16, expected: &Value) -> Result<(), String> {
    let stated = expected["status"].as_u64();
    let is_right = match expected["status_match"].as_str() {
        Some("4xx") => (400..500).contains(&found),
        _ => stated == Some(u64::from(found)),
    };
    is_right.then_some(()).ok_or_else(|| format!("answered with {found}, and not with {stated:?}"))
}
