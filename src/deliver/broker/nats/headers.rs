//! The headers of a message: CloudEvents' NATS binding, and what the sender wrote under `http-…`.
//!
//! Invariant: whatever a sender writes, a value is printable ASCII without a line's end, and none holds the name of one
//! of JetStream's own headers: nats-server (2.9 at least) looks for the first place in all of the headers' bytes where
//! `Nats-Msg-Id` stands, and when that is inside a value, the message has no id for it. A repetition would be stored.

use std::fmt::Write;

use async_nats::header::{HeaderMap, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::{HeaderName, HeaderValue};

use super::super::event::Event;
use super::super::settings::Format;

pub(super) fn of(event: &Event<'_>, format: Format, stream: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut say = |name: &'static str, value: &str| {
        if !value.is_empty() {
            put(&mut headers, HeaderName::from_static(name), &encoded(value.as_bytes(), is_attribute));
        }
    };
    match format {
        Format::Binary => {
            say("ce-specversion", "1.0");
            say("ce-id", event.id);
            say("ce-source", &event.source);
            say("ce-type", &event.kind);
            say("ce-time", &event.time);
        }
        Format::CloudEvents => {}
    }
    say("traceparent", event.traceparent.unwrap_or_default());
    say("hookward-request-id", event.request_id);
    say("hookward-verified", event.verified);
    say("hookward-event-id", event.event_id.unwrap_or_default());
    say("hookward-event-type", event.event_type.unwrap_or_default());
    let content_type = match format {
        Format::Binary => event.content_type.unwrap_or_default(),
        Format::CloudEvents => "application/cloudevents+json",
    };
    if !content_type.is_empty() {
        put(&mut headers, HeaderName::from_static("content-type"), &encoded(content_type.as_bytes(), is_text));
    }
    put(&mut headers, NATS_MESSAGE_ID, &encoded(event.key.as_bytes(), is_attribute));
    if let Some(stream) = stream {
        put(&mut headers, NATS_EXPECTED_STREAM, &encoded(stream.as_bytes(), is_text));
    }
    for (name, value) in event.headers() {
        // A name that is a token of HTTP is one of NATS.
        if let Ok(name) = format!("http-{name}").parse::<HeaderName>() {
            put(&mut headers, name, &encoded(value.as_bytes(), is_text));
        }
    }
    headers
}

/// The conversions of the client panic at what is no header; these do not.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.append(name, value);
    }
}

/// As CloudEvents' bindings have it for attributes.
fn is_attribute(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%'
}

/// The percent sign is encoded, so that decoding always gives back what was there.
fn is_text(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b'%'
}

/// With every other byte as `%XX`; so is a space at either end, which readers cut off.
fn encoded(value: &[u8], stands_for_itself: fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(value.len());
    for (at, byte) in value.iter().enumerate() {
        let is_edge = at == 0 || at + 1 == value.len();
        let is_theirs = value.get(at..at + 5).is_some_and(|word| word.eq_ignore_ascii_case(b"nats-"));
        match stands_for_itself(*byte) && !is_theirs && !(*byte == b' ' && is_edge) {
            true => text.push(char::from(*byte)),
            // Into a string it does not fail.
            false => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}
