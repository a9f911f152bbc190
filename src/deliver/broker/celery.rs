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
    /// The task's name.
    pub(super) task: String,
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
    Message { task: name, id, arguments, headers }
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
