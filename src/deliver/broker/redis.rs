//! Events onto Redis: as Celery's messages on the list that its workers read, or as entries of a stream.
//!
//! Invariant: one script both notes that a delivery was published and publishes it, or does neither: a repetition after
//! an answer that was lost adds nothing, and a refusal leaves no note behind that would swallow the next attempt.
//!
//! A server that was killed while it wrote its log cuts off the command that is not whole, and of the script's others
//! before it may carry out what is left (valkey-io/valkey#4342; seen of Redis 7.0). So a note says
//! `0` until the message stands behind it, and counts from when it says `1`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, sleep};

use super::celery;
use super::event::Event;
use super::settings::{CeleryTask, Engine, Format, Payload, RedisList, Settings, StreamTarget};
use crate::deliver::failure::{Fault, SendError};
use crate::redis_link::{Link, LinkError, Script};

/// The longest value that Redis takes unless told otherwise (`proto-max-bulk-len`).
const LONGEST_VALUE: usize = 512 * 1024 * 1024;

const MOMENT: Duration = Duration::from_millis(5);

/// KEYS: the note, the list. ARGV: how long the note lasts in seconds, the message.
static PUSH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'list' then
  return redis.error_reply('WRONGTYPE the queue is a ' .. kind)
end
if redis.call('GET', KEYS[1]) == '1' then
  return 0
end
redis.call('SET', KEYS[1], '0', 'EX', ARGV[1])
local pushed = redis.pcall('LPUSH', KEYS[2], ARGV[2])
if type(pushed) == 'table' and pushed.err then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
end
return pushed
",
    )
});

/// KEYS: the note, the stream. ARGV: how long the note lasts in seconds, about how many entries to keep (empty: all),
/// then the entry's fields and values.
static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'stream' then
  return redis.error_reply('WRONGTYPE the stream is a ' .. kind)
end
if redis.call('GET', KEYS[1]) == '1' then
  return 0
end
redis.call('SET', KEYS[1], '0', 'EX', ARGV[1])
local command = {'XADD', KEYS[2]}
if ARGV[2] ~= '' then
  command[3], command[4], command[5] = 'MAXLEN', '~', ARGV[2]
end
command[#command + 1] = '*'
for i = 3, #ARGV do
  command[#command + 1] = ARGV[i]
end
local added = redis.pcall(unpack(command))
if type(added) == 'table' and added.err then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
end
return added
",
    )
});

pub(super) struct Sink {
    name: Arc<str>,
    link: Arc<Link>,
    kind: Kind,
}

enum Kind {
    List { task: CeleryTask, list: RedisList },
    Stream(StreamTarget),
}

impl Sink {
    pub(super) fn start(settings: &Settings) -> Result<Self, String> {
        let (server, kind) = match &settings.engine {
            Engine::CeleryOverRedis { server, task, list } => {
                (server, Kind::List { task: task.clone(), list: list.clone() })
            }
            Engine::Stream { server, target } => (server, Kind::Stream(target.clone())),
            Engine::CeleryOverAmqp { .. } | Engine::Amqp { .. } | Engine::Nats(_) => {
                return Err("is not published to over Redis".to_owned());
            }
        };
        let link = Link::start(server.clone())?;
        Ok(Self { name: settings.name.clone(), link, kind })
    }

    pub(super) async fn publish(&self, event: &Event<'_>, deadline: Instant) -> Result<(), SendError> {
        // Two encodings in base64, one in the other, are what is certain of its length before it is made.
        let certain = event.body.len() as u64 * if matches!(self.kind, Kind::List { .. }) { 16 } else { 9 } / 9;
        if certain > LONGEST_VALUE as u64 {
            return Err(self.too_large());
        }
        let (script, key, seconds, arguments) = match &self.kind {
            Kind::List { task, list } => {
                let queue = task.queue.fill(event.name, event.event_type);
                let envelope = celery::envelope(&celery::message(event, task), &queue, task.priority);
                (&PUSH, list.key(&queue, task.priority), list.dedupe.as_secs(), vec![envelope.into_bytes()])
            }
            Kind::Stream(target) => {
                let key = target.stream.fill(event.name, event.event_type);
                let mut arguments = vec![target.max_len.map(|most| most.to_string()).unwrap_or_default().into_bytes()];
                for (name, value) in fields(event, target.format) {
                    arguments.extend([name.as_bytes().to_vec(), value]);
                }
                (&ADD, key, target.dedupe.as_secs(), arguments)
            }
        };
        if arguments.iter().any(|argument| argument.len() > LONGEST_VALUE) {
            return Err(self.too_large());
        }
        self.connected(deadline).await;
        let note = note(&key, &self.name, &event.key);
        let seconds = seconds.max(1).to_string();
        let arguments: Vec<&[u8]> =
            std::iter::once(seconds.as_bytes()).chain(arguments.iter().map(Vec::as_slice)).collect();
        let within = deadline.saturating_duration_since(Instant::now());
        match self.link.run(script, &[note.as_bytes(), key.as_bytes()], &arguments, within).await {
            // The list's length or 0, or the entry's id.
            Ok(Value::Int(_) | Value::BulkString(_) | Value::SimpleString(_)) => Ok(()),
            Ok(_) => Err(self.error(Fault::Broken, "answered something else than a confirmation")),
            Err(error) => Err(self.error(fault(&error), &error.to_string())),
        }
    }

    /// After a start the first deliveries come before the connection is there, and wait for it.
    async fn connected(&self, deadline: Instant) {
        while self.is_up().is_none() && Instant::now() < deadline {
            sleep(MOMENT).await;
        }
    }

    /// None: not known yet.
    pub(super) fn is_up(&self) -> Option<bool> {
        self.link.known_up()
    }

    fn too_large(&self) -> SendError {
        self.error(Fault::TooLarge, "the message would be larger than the 512 MiB that Redis takes")
    }

    fn error(&self, fault: Fault, what: &str) -> SendError {
        SendError::new(fault, &self.name, what)
    }
}

/// What Redis refused it did not do.
fn fault(error: &LinkError) -> Fault {
    match error {
        LinkError::Down(_) | LinkError::Refused { .. } => Fault::Unavailable,
        LinkError::TimedOut => Fault::TimedOut,
        LinkError::Broken(_) => Fault::Broken,
    }
}

impl RedisList {
    /// Where kombu's workers look for messages of this priority.
    fn key(&self, queue: &str, priority: u8) -> String {
        let Self { key_prefix, priority_steps, sep, .. } = self;
        // As kombu does it: the last step that is not above, and where all are, the last of them.
        let step = priority_steps.iter().rfind(|step| **step <= priority).or(priority_steps.last());
        match step {
            None | Some(0) => format!("{key_prefix}{queue}"),
            Some(step) => format!("{key_prefix}{queue}{sep}{step}"),
        }
    }
}

/// The key under which it stands that an upstream published an event there: on the cluster's node where that is. Another
/// upstream may publish the same event as another task on the same list, or on one with the same hash tag.
fn note(key: &str, upstream: &str, publish_key: &str) -> String {
    let hashed = hashed(key);
    let list = if hashed == key { String::new() } else { format!("{key}:") };
    format!("hookward:sent:{{{hashed}}}:{list}{upstream}:{publish_key}")
}

/// The part of a key that decides on which node of a cluster it lies: what stands in the first pair of braces, and
/// without one, or with nothing in it, all of it.
fn hashed(key: &str) -> &str {
    key.split_once('{')
        .and_then(|(_, behind)| behind.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key)
}

/// Those of a stream's entry.
fn fields(event: &Event<'_>, format: Format) -> Vec<(&'static str, Vec<u8>)> {
    if format == Format::CloudEvents {
        return vec![("event", event.json(Payload::Data, true).into_bytes())];
    }
    let attributes = [
        ("specversion", "1.0"),
        ("id", event.id),
        ("source", &event.source),
        ("type", &event.kind),
        ("time", &event.time),
        ("datacontenttype", event.content_type.unwrap_or_default()),
        ("headers", &event.headers_json()),
        ("requestid", event.request_id),
        ("verified", event.verified),
        ("eventid", event.event_id.unwrap_or_default()),
        ("eventtype", event.event_type.unwrap_or_default()),
        ("traceparent", event.traceparent.unwrap_or_default()),
    ];
    attributes
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name, value.as_bytes().to_vec()))
        .chain([("data", event.body.to_vec())])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(key_prefix: &str, priority_steps: &[u8]) -> RedisList {
        let (key_prefix, sep) = (key_prefix.to_owned(), "\u{6}\u{16}".to_owned());
        RedisList { key_prefix, priority_steps: priority_steps.to_vec(), sep, dedupe: Duration::from_secs(1) }
    }

    #[test]
    fn a_priority_has_its_list_where_kombu_looks_for_it() {
        let steps = [0, 3, 6, 9];
        let keys: Vec<_> = (0..=9).map(|priority| list("", &steps).key("celery", priority)).collect();
        let step = |step: u8| format!("celery\u{6}\u{16}{step}");
        assert_eq!(keys[..3], ["celery", "celery", "celery"]);
        assert_eq!(keys[3..], [step(3), step(3), step(3), step(6), step(6), step(6), step(9)]);
        assert_eq!(list("app:", &steps).key("celery", 0), "app:celery");
        assert_eq!(list("", &[0]).key("celery", 9), "celery");
        // Python's steps[bisect(steps, 0) - 1] is the last one.
        assert_eq!(list("", &[3, 6]).key("celery", 0), step(6));
    }

    #[test]
    fn a_note_lies_where_its_list_does() {
        for (key, hash_tag) in [
            ("celery", "celery"),
            ("celery\u{6}\u{16}3", "celery\u{6}\u{16}3"),
            ("{app}:celery", "app"),
            ("a{app}:celery{b}", "app"),
            ("hooks:shop", "hooks:shop"),
        ] {
            assert_eq!(hashed(key), hash_tag);
            for publish_key in ["shop:1", "shop:}{x}", "{}"] {
                let note = note(key, "tasks", publish_key);
                assert_eq!(hashed(&note), hash_tag, "{note}");
                assert!(note.starts_with(&format!("hookward:sent:{{{hash_tag}}}:")), "{note}");
                assert!(note.ends_with(&format!(":tasks:{publish_key}")), "{note}");
            }
        }
    }

    #[test]
    fn what_one_upstream_published_says_nothing_of_another_or_of_another_list() {
        let places = [("a", "one"), ("a", "other"), ("{a}:x", "one"), ("{a}:y", "one"), ("x{a}:y", "one")];
        let notes: std::collections::BTreeSet<_> =
            places.iter().map(|(key, upstream)| note(key, upstream, "shop:1")).collect();
        assert_eq!(notes.len(), places.len(), "{notes:?}");
        assert_eq!(note("celery", "tasks", "shop:1"), "hookward:sent:{celery}:tasks:shop:1");
    }

    #[test]
    fn what_redis_did_not_do_is_told_from_what_it_may_have_done() {
        let refused = |code: &str| fault(&LinkError::Refused { code: code.to_owned() });
        for code in ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "LOADING", "WRONGTYPE", "NOPERM", "CROSSSLOT"] {
            assert_eq!(refused(code), Fault::Unavailable, "{code}");
        }
        assert_eq!(fault(&LinkError::Down(String::new())), Fault::Unavailable);
        assert_eq!(fault(&LinkError::TimedOut), Fault::TimedOut);
        assert_eq!(fault(&LinkError::Broken(String::new())), Fault::Broken);
    }
}
