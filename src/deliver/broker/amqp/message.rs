//! A delivery as an AMQP message: where it goes, its properties, its headers, its body.
//!
//! Invariant: whatever a sender wrote, the message is one that AMQP can carry. Its short strings (identifiers, names)
//! have at most 255 bytes, its header fits into one frame, its headers' values are printable ASCII.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::celery;
use super::super::event::Event;
use super::super::settings::{AmqpTarget, CeleryTask, Format, Payload};

/// Persistent.
const DELIVERY_MODE: u8 = 2;

/// How many of the sender's headers found no room.
const OMITTED: &str = "hookward-headers-omitted";

/// Of a frame around a content header: type, channel, size and end; and in it class, weight, body size and flags.
const FRAME_AND_HEADER: usize = 8 + 14;

pub(super) struct Message {
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// Why there is no such message.
pub(super) struct Unsendable(pub(super) &'static str);

impl Message {
    /// `frame_max`: what was agreed with the broker.
    pub(super) fn of(
        event: &Event<'_>,
        target: &AmqpTarget,
        task: Option<&CeleryTask>,
        frame_max: usize,
    ) -> Result<Self, Unsendable> {
        let routing_key = target.routing_key.fill(event.name, event.event_type);
        let routing_key = short(&routing_key).ok_or(Unsendable("the routing key is longer than AMQP's 255 bytes"))?;
        let (properties, body) = match task {
            Some(task) => as_task(event, task, target.priority),
            None => as_event(event, target, frame_max),
        };
        if header_len(&properties) > frame_max {
            return Err(Unsendable("the message's header is larger than the broker's frame_max"));
        }
        Ok(Self { routing_key, properties, body })
    }
}

/// As Celery's own producers publish (task protocol 2).
fn as_task(event: &Event<'_>, task: &CeleryTask, priority: Option<u8>) -> (BasicProperties, Bytes) {
    let message = celery::message(event, task);
    let mut headers = FieldTable::default();
    for (name, header) in &message.headers {
        if let Some(name) = short(name) {
            headers.insert(name, value(header));
        }
    }
    let id = identifier(&message.id.to_string());
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(DELIVERY_MODE)
        .with_correlation_id(id.clone())
        .with_message_id(id)
        .with_reply_to("".into())
        .with_priority(priority.unwrap_or_default())
        .with_headers(headers);
    (properties, message.arguments.into())
}

fn as_event(event: &Event<'_>, target: &AmqpTarget, frame_max: usize) -> (BasicProperties, Bytes) {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(DELIVERY_MODE)
        .with_message_id(identifier(&event.key))
        .with_timestamp(event.seconds)
        .with_app_id("hookward".into());
    let (content_type, body) = match target.format {
        Format::Binary => (event.content_type, event.body.clone()),
        Format::CloudEvents => (Some("application/cloudevents+json"), event.json(Payload::Data, true).into()),
    };
    if let Some(content_type) = content_type.and_then(short) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(kind) = short(&event.kind) {
        properties = properties.with_type(kind);
    }
    if let Some(priority) = target.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(expires) = target.expires.and_then(|expires| short(&expires.as_millis().to_string())) {
        properties = properties.with_expiration(expires);
    }
    let mut headers = FieldTable::default();
    let mut say = |name: &str, text: &str| {
        headers.insert(name.into(), text_value(text));
    };
    if target.format == Format::Binary {
        say("ce-specversion", "1.0");
        say("ce-id", event.id);
        say("ce-source", &event.source);
        say("ce-type", &event.kind);
        say("ce-time", &event.time);
    }
    say("hookward-request-id", event.request_id);
    say("hookward-verified", event.verified);
    if let Some(traceparent) = event.traceparent {
        say("traceparent", traceparent);
    }
    let properties_alone = properties.with_headers(FieldTable::default());
    let taken = header_len(&properties_alone) + table_len(&headers) + entry_len(OMITTED, 10);
    add_sent(&mut headers, event, frame_max.saturating_sub(taken));
    (properties_alone.with_headers(headers), body)
}

/// The sender's headers, as many as there is room for. One that came several times is one with commas (RFC 9110, 5.3).
fn add_sent(headers: &mut FieldTable, event: &Event<'_>, mut room: usize) {
    let mut sent: Vec<(String, String)> = Vec::new();
    for (name, header) in event.headers() {
        let text = printable(header.as_bytes());
        match sent.iter_mut().find(|(before, _)| before.strip_prefix("http-") == Some(name)) {
            Some((_, values)) => {
                values.push_str(", ");
                values.push_str(&text);
            }
            None => sent.push((format!("http-{name}"), text)),
        }
    }
    let mut omitted: u32 = 0;
    for (name, text) in sent {
        let len = entry_len(&name, text.len());
        match short(&name) {
            Some(name) if len <= room => {
                room -= len;
                headers.insert(name, text_value(&text));
            }
            _ => omitted += 1,
        }
    }
    if omitted > 0 {
        headers.insert(OMITTED.into(), text_value(&omitted.to_string()));
    }
}

fn text_value(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A key that is too long for AMQP stands as its SHA-256: still the same for every copy.
fn identifier(key: &str) -> ShortString {
    short(key).unwrap_or_else(|| hex::encode(Sha256::digest(key)).as_str().into())
}

/// Clients take a header's text for UTF-8, and some end when it is none. Decoding gives back what was sent.
fn printable(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Of the frame that holds the properties.
fn header_len(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.app_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    // Delivery mode, priority, timestamp.
    FRAME_AND_HEADER + texts + 2 + 8 + properties.headers().as_ref().map_or(0, |headers| 4 + table_len(headers))
}

fn table_len(table: &FieldTable) -> usize {
    table.into_iter().map(|(name, value)| 1 + name.as_str().len() + value_len(value)).sum()
}

fn entry_len(name: &str, text: usize) -> usize {
    1 + name.len() + 1 + 4 + text
}

fn value_len(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) => 1,
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::FieldArray(items) => 4 + items.as_slice().iter().map(value_len).sum::<usize>(),
        AMQPValue::FieldTable(table) => 4 + table_len(table),
        // Numbers.
        _ => 8,
    }
}

/// AMQP's short strings: names, keys and identifiers.
pub(super) const MOST_SHORT: usize = 255;

/// None: longer than AMQP has room for. (The conversion that does not fail panics.)
pub(super) fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// JSON's value as one of AMQP's.
pub(super) fn value(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => AMQPValue::LongLongInt(whole),
            (None, Some(fraction)) => AMQPValue::Double(fraction),
            (None, None) => AMQPValue::LongString(number.to_string().into()),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(items) => AMQPValue::FieldArray(items.iter().map(self::value).collect::<Vec<_>>().into()),
        Value::Object(entries) => {
            let mut table = FieldTable::default();
            for (name, entry) in entries {
                if let Some(name) = short(name) {
                    table.insert(name, self::value(entry));
                }
            }
            AMQPValue::FieldTable(table)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::fields::Fields;
    use crate::parcel::{Parcel, Tag};
    use http::{HeaderValue, Method};

    #[test]
    fn a_header_that_came_several_times_is_one_with_commas_whatever_came_between() {
        let mut headers = Fields::new();
        for (name, value) in [("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-ab", "4"), ("x-a", "5")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let (method, path_and_query, body) = (Method::POST, "/".to_owned(), Bytes::new());
        let parcel = Parcel { method, path_and_query, headers, body, credentials: Vec::new() };
        let tag = Tag { source: "shop".into(), delivery_id: "1".into(), generation: 0, received: UnixMillis(0) };
        let mut table = FieldTable::default();
        add_sent(&mut table, &Event::of(&parcel, &tag), 1024);
        let mut wanted = FieldTable::default();
        for (name, text) in [("http-x-a", "1, 3, 5"), ("http-x-b", "2"), ("http-x-ab", "4")] {
            wanted.insert(name.into(), text_value(text));
        }
        assert_eq!(table, wanted);
    }

    #[test]
    fn a_key_that_is_too_long_for_amqp_is_named_by_its_digest() {
        let fits = format!("shop:{}", "x".repeat(250));
        assert_eq!(identifier(&fits).as_str(), fits);
        let long = identifier(&format!("{fits}y"));
        assert_eq!(long.as_str().len(), 64);
        assert_eq!(long, identifier(&format!("{fits}y")));
        assert_ne!(long, identifier(&format!("{fits}z")));
        // Bytes count, and none is cut in two.
        assert_eq!(identifier(&"é".repeat(128)).as_str().len(), 64);
    }

    #[test]
    fn a_value_is_printable_and_decodes_to_what_was_sent() {
        assert_eq!(printable(b"t=1,v1=ab+/= \"~"), "t=1,v1=ab+/= \"~");
        let all: Vec<u8> = (0..=255).collect();
        let text = printable(&all);
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert_eq!(percent_encoding::percent_decode_str(&text).collect::<Vec<u8>>(), all);
    }

    #[test]
    fn what_a_header_takes_is_counted_as_it_is_written() {
        let entry = |name: &str, text: &str| {
            let mut table = FieldTable::default();
            table.insert(name.into(), text_value(text));
            table_len(&table)
        };
        // A short string: its length in a byte. A long one: a letter for its kind, its length in four.
        assert_eq!(entry("ce-id", "abc"), 1 + 5 + 1 + 4 + 3);
        assert_eq!(entry("ce-id", "abc"), entry_len("ce-id", 3));
        let nested = value(&serde_json::json!({"a": [null, true, 7, "x"], "b": 1.5}));
        assert_eq!(value_len(&nested), 1 + 4 + (2 + 1 + 4 + 1 + 2 + 9 + 6) + (2 + 9));
        let properties = BasicProperties::default().with_message_id("12345".into()).with_headers(FieldTable::default());
        assert!(header_len(&properties) >= FRAME_AND_HEADER + 6 + 4);
    }
}
