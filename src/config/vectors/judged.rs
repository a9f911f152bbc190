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
use crate::gateway::source::Settings;
use crate::verify::{Refused, Reply, Verified};

/// A proof wants a certificate or a key set, and once more the key set when it lacks the key.
const MOST_DOCUMENTS: usize = 4;

/// Judges a vector's request by a source that was loaded for it. Err: why it is not what is expected.
pub(super) fn judge(vector: &Vector, source: &Settings) -> Result<(), String> {
    let delivery = vector.delivery()?;
    let method = delivery.method.clone();
    let shelf = Shelf::default();
    let judged = shelf.judge(vector, source, delivery);
    if vector.0["reason"] == "untrusted_key_url" && !shelf.is_untouched() {
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
            let reply = verified.challenge().ok_or("accepted, and not seen to be a handshake")?;
            replies(reply, &vector.0["expected_response"])
        }
        (Expect::Reject, Err(refused)) if vector.kind() == Kind::Handshake => {
            status(refused.refusal.status().as_u16(), &vector.0["expected_response"])
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
        let found = vector.config()["fetch_stub"][&*wanted.url].as_str().map(|text| {
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
            "content-type" => reply.content_type.as_ref().and_then(|value| value.to_str().ok()),
            _ => None,
        };
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
