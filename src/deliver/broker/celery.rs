//! A delivery as a Celery task: the message that an unmodified worker runs (task protocol 2), and kombu's envelope
//! around it for Redis.
//!
//! Invariant: nothing that a sender wrote stands outside `arguments` but an event's name within a task's and the
//! trace's id: a malformed envelope ends the whole worker, and what a worker logs of a task (`argsrepr`) is a constant.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::{Builder, Uuid};

use super::event::{Event, rfc3339};
use super::settings::CeleryTask;
use crate::clock::{Clock, UnixMillis};

/// What a worker writes into its log in place of the arguments.
const SHOWN_ARGUMENTS: &str = "(<webhook>,)";

pub(super) struct Message {
    /// The same for every copy of a delivery.
    pub(super) id: Uuid,
    /// The JSON text `[[event], {}, {…}]`: positional arguments, named ones, and callbacks, of which there are none.
    pub(super) arguments: String,
    pub(super) headers: Map<String, Value>,
}

/// `countdown` and `expires` count from now, as Celery's own do, and not from when the delivery was received: one that
/// an inbox held for long, or that an operator sends again, would have expired before it got here.
pub(super) fn message(event: &Event<'_>, task: &CeleryTask) -> Message {
    message_at(event, task, Clock::default().now())
}

fn message_at(event: &Event<'_>, task: &CeleryTask, now: UnixMillis) -> Message {
    let name = task.task.fill(event.name, event.event_type);
    let id = event.task_id();
    let at = |wait: Option<Duration>| wait.map_or(Value::Null, |wait| rfc3339(now.after(wait).0).into());
    let mut headers = Map::new();
    let mut say = |name: &str, value: Value| drop(headers.insert(name.to_owned(), value));
    say("lang", json!("py"));
    say("task", json!(name));
    say("id", json!(id.to_string()));
    say("root_id", json!(id.to_string()));
    say("parent_id", Value::Null);
    say("group", Value::Null);
    say("retries", json!(0));
    say("eta", at(task.countdown));
    say("expires", at(task.expires));
    say("timelimit", json!([null, null]));
    say("shadow", Value::Null);
    say("argsrepr", json!(SHOWN_ARGUMENTS));
    say("kwargsrepr", json!("{}"));
    say("origin", json!(*ORIGIN));
    say("ignore_result", json!(task.ignore_result));
    if let Some(traceparent) = event.traceparent {
        say("traceparent", json!(traceparent));
    }
    let event = event.json(task.payload, false);
    let arguments =
        format!(r#"[[{event}], {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]"#);
    Message { id, arguments, headers }
}

/// As workers' events name who sent a task.
static ORIGIN: LazyLock<String> = LazyLock::new(|| {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    format!("hookward@{}", host.as_deref().map(str::trim).filter(|host| !host.is_empty()).unwrap_or("localhost"))
});

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Envelope<'a> {
    body: String,
    content_type: &'static str,
    content_encoding: &'static str,
    headers: &'a Map<String, Value>,
    properties: Properties<'a>,
}

#[derive(Serialize)]
struct Properties<'a> {
    correlation_id: String,
    reply_to: &'static str,
    /// Persistent.
    delivery_mode: u8,
    priority: u8,
    delivery_info: DeliveryInfo<'a>,
    body_encoding: &'static str,
    delivery_tag: String,
}

#[derive(Serialize)]
struct DeliveryInfo<'a> {
    exchange: &'static str,
    routing_key: &'a str,
}

/// kombu's, as it lies in a Redis list. The delivery tag is another one in each message, also in two of one delivery:
/// by it kombu keeps what a worker has taken and not yet acknowledged.
pub(super) fn envelope(message: &Message, queue: &str, priority: u8) -> String {
    let envelope = Envelope {
        body: STANDARD.encode(&message.arguments),
        content_type: "application/json",
        content_encoding: "utf-8",
        headers: &message.headers,
        properties: Properties {
            correlation_id: message.id.to_string(),
            reply_to: "",
            delivery_mode: 2,
            priority,
            delivery_info: DeliveryInfo { exchange: "", routing_key: queue },
            body_encoding: "base64",
            delivery_tag: Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
        },
    };
    serde_json::to_string(&envelope).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::{Payload, Template};
    use crate::fields::Fields;
    use crate::parcel::{Parcel, Tag};
    use bytes::Bytes;
    use http::{HeaderName, HeaderValue, Method};

    const NOW: UnixMillis = UnixMillis(1_719_750_896_123);

    fn parcel(body: &[u8]) -> Parcel {
        let mut headers = Fields::new();
        for (name, value) in [
            ("content-type", &b"application/json"[..]),
            ("x-twice", b"one"),
            ("x-twice", b"two"),
            ("x-odd", b"caf\xe9"),
            ("x-utf8", "caf\u{e9}".as_bytes()),
            ("authorization", b"Bearer secret"),
            ("cookie", b"secret"),
            ("x-token", b"secret"),
            ("traceparent", b"00-1-1-00"),
            ("x-request-id", b"r1"),
            ("x-hookward-verified", b"github"),
            ("x-hookward-event-type", b"push\"},"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("a value"));
        }
        let credentials = vec![HeaderName::from_static("x-token")];
        let body = Bytes::copy_from_slice(body);
        Parcel { method: Method::POST, path_and_query: "/".to_owned(), headers, body, credentials }
    }

    fn tag(generation: u32) -> Tag {
        Tag { source: "shop".into(), delivery_id: "1\"}".to_owned(), generation, received: UnixMillis(0) }
    }

    fn task() -> CeleryTask {
        let template = |text| Template::parse(text, crate::deliver::Alphabet::Dotted).expect("a template");
        CeleryTask {
            task: template("hooks.{event}"),
            queue: template("celery"),
            priority: 4,
            expires: None,
            countdown: None,
            ignore_result: true,
            payload: Payload::Both,
        }
    }

    fn made(body: &[u8], task: &CeleryTask) -> Message {
        let (parcel, tag) = (parcel(body), tag(0));
        message_at(&Event::of(&parcel, &tag), task, NOW)
    }

    fn event(message: &Message) -> Value {
        let arguments: Value = serde_json::from_str(&message.arguments).expect("JSON");
        assert_eq!(arguments[1], json!({}));
        assert_eq!(arguments[2], json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null}));
        assert_eq!(arguments.as_array().map(Vec::len), Some(3));
        assert_eq!(arguments[0].as_array().map(Vec::len), Some(1));
        arguments[0][0].clone()
    }

    #[test]
    fn the_envelope_is_kombus_and_holds_nothing_of_the_webhook_outside_its_body() {
        let message = made(b"{\"mark\": 1}", &task());
        let text = envelope(&message, "celery", 4);
        let envelope: Value = serde_json::from_str(&text).expect("JSON");
        let id = message.id.to_string();
        assert_eq!(envelope["body"], STANDARD.encode(&message.arguments));
        assert_eq!(envelope["content-type"], "application/json");
        assert_eq!(envelope["content-encoding"], "utf-8");
        let tag = envelope["properties"]["delivery_tag"].as_str().expect("a tag").to_owned();
        assert_eq!(
            envelope["properties"],
            json!({"correlation_id": id, "reply_to": "", "delivery_mode": 2, "priority": 4, "body_encoding": "base64",
                   "delivery_info": {"exchange": "", "routing_key": "celery"}, "delivery_tag": tag})
        );
        assert_eq!(Uuid::parse_str(&tag).expect("a UUID").get_version_num(), 4);
        assert_ne!(tag, id);
        assert_eq!(
            envelope["headers"],
            json!({"lang": "py", "task": "hooks.push___", "id": id, "root_id": id, "parent_id": null, "group": null,
                   "retries": 0, "eta": null, "expires": null, "timelimit": [null, null], "shadow": null,
                   "argsrepr": "(<webhook>,)", "kwargsrepr": "{}", "origin": *ORIGIN, "ignore_result": true,
                   "traceparent": "00-1-1-00"})
        );
        assert!(ORIGIN.starts_with("hookward@") && ORIGIN.len() > "hookward@".len());
        assert!(!text.contains("mark") && !text.contains("secret"));
        let again: Value = serde_json::from_str(&super::envelope(&message, "celery", 4)).expect("JSON");
        assert_ne!(again["properties"]["delivery_tag"], tag, "a fresh one in each message");
    }

    #[test]
    fn every_copy_of_a_delivery_has_one_task_id_and_an_operators_redelivery_its_own() {
        assert_eq!(made(b"a", &task()).id, made(b"b", &task()).id);
        let parcel = parcel(b"a");
        let redelivered = tag(1);
        assert_ne!(message_at(&Event::of(&parcel, &redelivered), &task(), NOW).id, made(b"a", &task()).id);
        let plain = Tag { delivery_id: "1".to_owned(), ..tag(0) };
        let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"hookward:shop:1");
        assert_eq!(message_at(&Event::of(&parcel, &plain), &task(), NOW).id, id);
    }

    #[test]
    fn countdown_and_expires_count_from_the_publishing() {
        let waits = CeleryTask {
            countdown: Some(Duration::from_secs(5)),
            expires: Some(Duration::from_secs(3600)),
            ignore_result: false,
            ..task()
        };
        let headers = made(b"", &waits).headers;
        assert_eq!(headers["eta"], "2024-06-30T12:35:01.123Z");
        assert_eq!(headers["expires"], "2024-06-30T13:34:56.123Z");
        assert_eq!(headers["ignore_result"], false);
    }

    #[test]
    fn the_event_has_every_number_as_it_stood_and_no_credential() {
        let body = br#"{"a": 12345678901234567890, "b": 50.750, "c": 1e400}"#;
        let message = made(body, &task());
        assert!(message.arguments.contains(std::str::from_utf8(body).expect("a text")));
        assert!(!message.arguments.contains("secret"));
        let event = event(&made(b"{}", &task()));
        assert_eq!(event["id"], "1\"}");
        assert_eq!(event["type"], "webhook.shop.push\"},");
        assert_eq!(event["time"], "1970-01-01T00:00:00Z");
        assert_eq!((&event["data"], &event["data_base64"]), (&json!({}), &json!("e30=")));
        assert_eq!((&event["hookwardsource"], &event["hookwardverified"]), (&json!("shop"), &json!("github")));
        assert_eq!(event["hookwardrequestid"], "r1");
        let headers = json!([
            ["content-type", "application/json"],
            ["x-twice", "one"],
            ["x-twice", "two"],
            ["x-odd", "caf\u{e9}"],
            ["x-utf8", "caf\u{e9}"]
        ]);
        assert_eq!(event["hookwardheaders"], headers);
        let names = event.as_object().expect("an object").keys();
        let is_attribute = |name: &String| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        assert!(names.filter(|name| *name != "data_base64").all(is_attribute));
    }

    #[test]
    fn a_payload_is_what_was_asked_for_and_never_lost() {
        let parts = |body: &[u8], payload| {
            let event = event(&made(body, &CeleryTask { payload, ..task() }));
            (event.get("data").cloned(), event.get("data_base64").cloned())
        };
        assert_eq!(parts(b"[1]", Payload::Both), (Some(json!([1])), Some(json!("WzFd"))));
        assert_eq!(parts(b"[1]", Payload::Data), (Some(json!([1])), None));
        assert_eq!(parts(b"[1]", Payload::Base64), (None, Some(json!("WzFd"))));
        assert_eq!(parts(b"[1", Payload::Data), (Some(json!("[1")), None));
        assert_eq!(parts(b"\xff", Payload::Both), (None, Some(json!("/w=="))));
        assert_eq!(parts(b"\xff", Payload::Data), (None, Some(json!("/w=="))), "nothing else can hold it");
    }

    #[test]
    fn a_strict_event_has_either_data_or_base64_and_no_lists() {
        let strict = |body: &[u8]| -> Value {
            let (parcel, tag) = (parcel(body), tag(0));
            serde_json::from_str(&Event::of(&parcel, &tag).json(Payload::Both, true)).expect("JSON")
        };
        for (body, has_data, has_base64) in
            [(&b"[1]"[..], true, false), (b"[1", false, true), (b"\xff", false, true), (b"", false, false)]
        {
            let event = strict(body);
            assert_eq!((event.get("data").is_some(), event.get("data_base64").is_some()), (has_data, has_base64));
            assert!(event.get("hookwardheaders").is_none());
        }
    }
}
