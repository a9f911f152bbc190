//! A delivery as an event (CloudEvents 1.0): its attributes, the headers that may go along, and its body.
//!
//! Invariant: credentials never go onto a broker: neither the headers that hold them anywhere (`authorization`, cookies)
//! nor those in which this source's senders present theirs.

use std::time::{Duration, UNIX_EPOCH};

use crate::fields::Fields;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::data::Data;
use super::settings::Payload;
use crate::parcel::{Parcel, Tag};

/// Besides hop-by-hop ones and `host`, which no parcel has.
const WITHHELD: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

pub(super) struct Event<'a> {
    /// The same for every retry of a delivery.
    pub(super) id: &'a str,
    /// The source's name.
    pub(super) name: &'a str,
    /// `/github`.
    pub(super) source: String,
    /// `webhook.github.push`, or `webhook.github` where the event has no type.
    pub(super) kind: String,
    /// When it was received: RFC 3339, UTC.
    pub(super) time: String,
    /// The same in seconds since 1970.
    pub(super) seconds: u64,
    pub(super) content_type: Option<&'a str>,
    /// As the provider has them.
    pub(super) event_id: Option<&'a str>,
    pub(super) event_type: Option<&'a str>,
    pub(super) request_id: &'a str,
    /// The checks that passed.
    pub(super) verified: &'a str,
    pub(super) traceparent: Option<&'a str>,
    /// `{source}:{delivery id}`: by it a broker tells a repetition.
    pub(super) key: String,
    pub(super) body: &'a Bytes,
    parcel: &'a Parcel,
}

impl<'a> Event<'a> {
    pub(super) fn of(parcel: &'a Parcel, tag: &'a Tag) -> Self {
        let headers = &parcel.headers;
        let event_type = text(headers, "x-hookward-event-type");
        let kind = match event_type {
            Some(event) => format!("webhook.{}.{event}", tag.source),
            None => format!("webhook.{}", tag.source),
        };
        Self {
            id: &tag.delivery_id,
            name: &tag.source,
            source: format!("/{}", tag.source),
            kind,
            time: rfc3339(tag.received.0),
            seconds: tag.received.as_secs(),
            content_type: text(headers, "content-type"),
            event_id: text(headers, "x-hookward-event-id"),
            event_type,
            request_id: text(headers, "x-request-id").unwrap_or_default(),
            verified: text(headers, "x-hookward-verified").unwrap_or_default(),
            traceparent: text(headers, "traceparent"),
            key: tag.publish_key(),
            body: &parcel.body,
            parcel,
        }
    }

    /// What the sender wrote, and nothing that proves who it is.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&'a str, &'a HeaderValue)> {
        let credentials = &self.parcel.credentials;
        self.parcel.headers.iter().filter_map(move |(name, value)| {
            let is_ours = name.as_str().starts_with("x-hookward-") || *name == "x-request-id" || *name == "traceparent";
            let is_withheld = WITHHELD.contains(&name.as_str()) || credentials.contains(name);
            (!is_ours && !is_withheld).then_some((name.as_str(), value))
        })
    }

    /// CloudEvents' JSON format. Strict: as the specification has it, the body either as JSON in `data` or as
    /// `data_base64`, and no attribute that is a list; otherwise what Celery's tasks get.
    pub(super) fn json(&self, payload: Payload, strict: bool) -> String {
        let mut json = Object::with_capacity(self.body.len().saturating_mul(3) + 1024);
        json.text("specversion", "1.0");
        json.text("id", self.id);
        json.text("source", &self.source);
        json.text("type", &self.kind);
        json.text("time", &self.time);
        json.text("datacontenttype", self.content_type.unwrap_or_default());
        let data = if payload == Payload::Base64 { Data::Bytes } else { Data::of(self.content_type, self.body) };
        let needs_base64 = match data {
            Data::Json(text) => {
                json.raw("data", text);
                payload == Payload::Both && !strict
            }
            // Without a content type a strict reader would take a string for JSON.
            Data::Text(_) if strict => true,
            Data::Text(text) => {
                json.string("data", text);
                payload == Payload::Both
            }
            Data::Bytes => true,
        };
        if needs_base64 && !(strict && self.body.is_empty()) {
            json.string("data_base64", &STANDARD.encode(self.body));
        }
        json.text("hookwardsource", self.name);
        json.text("hookwardverified", self.verified);
        json.text("hookwardrequestid", self.request_id);
        json.text("hookwardeventid", self.event_id.unwrap_or_default());
        json.text("hookwardeventtype", self.event_type.unwrap_or_default());
        if !strict {
            json.raw("hookwardheaders", &self.headers_json());
        }
        json.text("traceparent", self.traceparent.unwrap_or_default());
        json.end()
    }

    /// `[["content-type", "application/json"], …]`, in order, with those that came twice.
    pub(super) fn headers_json(&self) -> String {
        let headers: Vec<_> = self.headers().map(|(name, value)| (name, header_text(value))).collect();
        serde_json::to_string(&headers).unwrap_or_default()
    }

    /// The same for every copy of a delivery.
    pub(super) fn task_id(&self) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("hookward:{}", self.key).as_bytes())
    }
}

/// A JSON object that is written as it grows.
struct Object(String);

impl Object {
    fn with_capacity(bytes: usize) -> Self {
        let mut json = String::with_capacity(bytes);
        json.push('{');
        Self(json)
    }

    /// An attribute; one that is empty is left out.
    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.string(name, value);
        }
    }

    fn string(&mut self, name: &str, value: &str) {
        self.raw(name, &quoted(value));
    }

    /// What is JSON already.
    fn raw(&mut self, name: &str, json: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&quoted(name));
        self.0.push(':');
        self.0.push_str(json);
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value that is no UTF-8 is read as Latin-1, byte for byte, as Python's servers read all of them.
fn header_text(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    }
}

fn text<'a>(headers: &'a Fields, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
}

/// Of milliseconds since 1970.
pub(super) fn rfc3339(millis: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH);
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
