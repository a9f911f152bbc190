//! `[upstreams.NAME]` whose `kind` is a broker.
//!
//! Invariant: names that depend on a delivery are made of parts that a broker takes whatever a sender writes.

use super::engine;
use super::reader::Table;
use super::redis;
use crate::deliver::{
    Alphabet, AmqpServer, AmqpTarget, BrokerSettings as Settings, CeleryTask, DEFAULT_BROKER_TIMEOUT, DEFAULT_DEDUPE,
    Declare, Engine, Format, LONGEST_SUBJECT, Login, NatsAuth, NatsTarget, Payload, RedisList, StreamTarget, Template,
};
use crate::secret::Secret;
use std::ops::RangeInclusive;
use std::time::Duration;

const MINUTES: Duration = Duration::from_secs(600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(10);
const MOST_NAME: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Celery,
    Amqp,
    Nats,
    RedisStream,
}

pub(super) fn read(name: &str, kind: Kind, table: &Table<'_>, max_body: u64) -> Option<Settings> {
    if table.has("sign") {
        let what = "belongs to kind = \"http\": what goes onto a broker is not signed again";
        table.error("sign", what, "the broker's own access control");
        table.ignore(&["sign"]);
    }
    let timeout = table.duration("timeout", DEFAULT_BROKER_TIMEOUT, MILLISECOND..=MINUTES);
    let queue_timeout = table.duration("queue_timeout", Duration::from_millis(250), Duration::ZERO..=MINUTES);
    let max_in_flight = usize::try_from(table.count("max_in_flight", 256, 1..=100_000)).unwrap_or(usize::MAX);
    let engine = match kind {
        Kind::Celery => celery(table),
        Kind::Amqp => amqp(table),
        Kind::Nats => nats(table, max_body),
        Kind::RedisStream => stream(table),
    };
    Some(Settings { name: name.into(), engine: engine?, timeout, max_in_flight, queue_timeout })
}

fn celery(table: &Table<'_>) -> Option<Engine> {
    let over_amqp = match table.node("url").map(|node| &node.kind) {
        Some(super::node::Kind::Text(text)) => text.starts_with("amqp"),
        // A reference is looked into for its scheme alone.
        Some(_) => table.secret("url").is_some_and(|named| named.secret.expose().starts_with(b"amqp")),
        None => false,
    };
    let task = template(table, "task", None, Alphabet::Dotted, r#"task = "hooks.handle", or "hooks.{event}""#);
    let queue = template(table, "queue", Some("celery"), Alphabet::Key, r#"queue = "celery""#);
    let priority = u8::try_from(table.count("priority", 0, 0..=9)).unwrap_or_default();
    let (expires, countdown) = (optional_duration(table, "expires"), optional_duration(table, "countdown"));
    let ignore_result = table.flag("ignore_result", true);
    let payloads = [("both", Payload::Both), ("data", Payload::Data), ("base64", Payload::Base64)];
    let payload = table.choice("payload", Some("both"), &payloads);
    if queue.as_ref().is_some_and(|queue| queue.fixed().is_none()) {
        let what = "depends on the delivery: a worker reads the queues that it is told of (-Q), and what comes for \
                    others waits there for ever";
        table.warn("queue", what, r#"one queue, and the event in the task's name: task = "hooks.{event}""#);
    }
    let task = task.zip(queue).zip(payload).map(|((task, queue), payload)| CeleryTask {
        task,
        queue,
        priority,
        expires,
        countdown,
        ignore_result,
        payload,
    });
    if over_amqp {
        for key in ["key_prefix", "priority_steps", "sep", "dedupe"] {
            belongs_elsewhere(table, key, "to Celery over Redis");
        }
        let server = amqp_server(table);
        // The default exchange routes by the name of the queue.
        let queue = task.as_ref().map(|task| task.queue.clone());
        let target = amqp_target(table, queue, Some(priority), expires, Format::Binary);
        return Some(Engine::CeleryOverAmqp { server: server?, task: task?, target: target? });
    }
    for key in ["exchange", "routing_key", "declare", "heartbeat"] {
        belongs_elsewhere(table, key, "to Celery over AMQP");
    }
    let list = RedisList {
        key_prefix: list_text(table, "key_prefix", ""),
        priority_steps: priority_steps(table),
        sep: list_text(table, "sep", "\u{6}\u{16}"),
        dedupe: dedupe(table),
    };
    let example =
        r#"url = "redis://…" or "amqp://…" (TLS: rediss, amqps), or { env = "BROKER_URL" } for one with a password"#;
    let server = redis::read_either(table, example);
    Some(Engine::CeleryOverRedis { server: server?, task: task?, list })
}

/// A part of a list's key. In a cluster a brace in it decides on the node, and the note that a delivery was published
/// has to lie on the same one: a prefix may be a whole hash tag, and nothing may hold a piece of one.
fn list_text(table: &Table<'_>, key: &'static str, default: &str) -> String {
    if !table.has(key) {
        table.note_default(key, &format!("{default:?}"));
        table.ignore(&[key]);
        return default.to_owned();
    }
    let checked = table.parsed(key, |text| {
        let outside = match text.split_once('{').map(|(before, rest)| (before, rest.split_once('}'))) {
            Some((before, Some((tag, behind)))) if key == "key_prefix" && !tag.is_empty() && !tag.contains('{') => {
                [before, behind].concat()
            }
            _ => text.to_owned(),
        };
        match outside.contains(['{', '}']) {
            true => Err(format!("{text:?} holds a brace that is no part of a hash tag such as \"{{app}}:\"")),
            false => Ok(text.to_owned()),
        }
    });
    checked.unwrap_or_default()
}

/// In ascending order, as kombu looks through them.
fn priority_steps(table: &Table<'_>) -> Vec<u8> {
    use super::node::Kind as Node;
    const DEFAULT: [u8; 4] = [0, 3, 6, 9];
    let Some(node) = table.node("priority_steps") else {
        table.note_default("priority_steps", &format!("{DEFAULT:?}"));
        return DEFAULT.to_vec();
    };
    let Node::Array(items) = &node.kind else {
        table.error("priority_steps", "is no array of numbers", "priority_steps = [0, 3, 6, 9]");
        return DEFAULT.to_vec();
    };
    let steps: Option<Vec<u8>> = items
        .iter()
        .map(|item| match item.kind {
            Node::Integer(number @ 0..=9) => u8::try_from(number).ok(),
            _ => None,
        })
        .collect();
    match steps.filter(|steps| steps.first() == Some(&0) && steps.is_sorted_by(|one, next| one < next)) {
        Some(steps) => {
            table.note_shown("priority_steps", &format!("{steps:?}"));
            steps
        }
        None => {
            let what = "holds what are no steps: numbers from 0 to 9 in ascending order, 0 the first";
            table.error("priority_steps", what, "priority_steps = [0, 3, 6, 9]");
            DEFAULT.to_vec()
        }
    }
}

fn amqp(table: &Table<'_>) -> Option<Engine> {
    let (server, format) = (amqp_server(table), format(table));
    let priority = table.has("priority").then(|| table.count("priority", 0, 0..=255));
    table.ignore(&["priority"]);
    let priority = priority.and_then(|priority| u8::try_from(priority).ok());
    let expires = optional_duration(table, "expires");
    if table.has("queue") {
        let what = "belongs to kind = \"celery\": without an `exchange`, `routing_key` is the queue's name";
        table.error("queue", what, r#"routing_key = "hooks""#);
    }
    table.ignore(&["queue"]);
    let target = amqp_target(table, None, priority, expires, format?);
    Some(Engine::Amqp { server: server?, target: target? })
}

fn amqp_server(table: &Table<'_>) -> Option<AmqpServer> {
    let example = r#"url = "amqp://broker:5672/", or { env = "AMQP_URL" } for one with a password"#;
    let located = engine::url(table, "url", &[("amqp", false), ("amqps", true)], 0, example);
    let Some(mut located) = located else {
        engine::ignore_server(table);
        table.ignore(&["connect_timeout", "heartbeat"]);
        return None;
    };
    if located.port == 0 {
        located.port = if located.tls { 5671 } else { 5672 };
    }
    let tls = engine::tls(table, located.tls);
    let login = match engine::login(table, &located) {
        (Some(username), Some(password)) => Login::Password { username, password },
        (None, None) if tls.as_ref().is_some_and(|tls| tls.identity.is_some()) => Login::Certificate,
        // The account that every RabbitMQ has, for connections from the same machine.
        (None, None) => Login::Password { username: "guest".to_owned(), password: Secret::new(b"guest".to_vec()) },
        _ => {
            table.error("", "`username` and `password` go together", r#"password = { env = "AMQP_PASSWORD" }"#);
            Login::Certificate
        }
    };
    Some(AmqpServer {
        vhost: if located.path.is_empty() { "/".to_owned() } else { located.path },
        host: located.host,
        port: located.port,
        login,
        tls,
        connect_timeout: table.duration("connect_timeout", CONNECT_TIMEOUT, MILLISECOND..=MINUTES),
        heartbeat: table.duration("heartbeat", HEARTBEAT, Duration::from_secs(1)..=MINUTES),
    })
}

fn amqp_target(
    table: &Table<'_>,
    queue: Option<Template>,
    priority: Option<u8>,
    expires: Option<Duration>,
    format: Format,
) -> Option<AmqpTarget> {
    let exchange = table.text("exchange").unwrap_or_default();
    if exchange.len() > MOST_NAME {
        table.error("exchange", "is longer than AMQP's 255 bytes", "");
    }
    let example = r#"routing_key = "hooks.{source}.{event}""#;
    let routing_key = match (table.has("routing_key"), &queue) {
        (false, Some(queue)) => Some(queue.clone()),
        _ => template(table, "routing_key", None, Alphabet::Key, example),
    };
    table.ignore(&["routing_key"]);
    let declare = declare(table, queue.as_ref().or(routing_key.as_ref()));
    Some(AmqpTarget { exchange, routing_key: routing_key?, declare: declare?, priority, expires, format })
}

/// `"none"`, `"passive"`, or a table of arguments.
fn declare(table: &Table<'_>, queue: Option<&Template>) -> Option<Declare> {
    use super::node::Kind as Node;
    let fixed = queue.and_then(Template::fixed).map(str::to_owned);
    let needs_name = |declare: &dyn Fn(String) -> Declare| match fixed.clone() {
        Some(queue) => Some(declare(queue)),
        None => {
            table.error(
                "declare",
                "there is no one queue to declare: its name depends on the delivery",
                r#"declare = "none""#,
            );
            None
        }
    };
    match table.node("declare").map(|node| &node.kind) {
        Some(Node::Table(_)) => {
            let arguments = table.scalars("declare");
            needs_name(&|queue| Declare::Active(queue, arguments.iter().cloned().collect()))
        }
        _ => match table.choice("declare", Some("none"), &[("none", false), ("passive", true)])? {
            true => needs_name(&Declare::Passive),
            false => Some(Declare::None),
        },
    }
}

fn stream(table: &Table<'_>) -> Option<Engine> {
    let stream = template(table, "stream", Some("hookward"), Alphabet::Key, r#"stream = "hooks:{source}""#);
    let max_len = table.has("max_len").then(|| table.count("max_len", 0, 1..=1_000_000_000_000));
    table.ignore(&["max_len"]);
    let (dedupe, format) = (dedupe(table), format(table));
    let server = redis::read(table)?;
    if max_len.is_none() {
        let what =
            "is missing: the stream keeps every event, also those that were read, until Redis has no memory left";
        table.remark("max_len", what, "max_len = 1000000 keeps about so many; what is trimmed unread is lost");
    }
    let target = StreamTarget { stream: stream?, max_len, dedupe, format: format? };
    Some(Engine::Stream { server, target })
}

fn nats(table: &Table<'_>, max_body: u64) -> Option<Engine> {
    let found = table.all_parsed("urls", |text| engine::host_and_port(text, &["nats", "tls"], 4222));
    let example = r#"urls = ["nats://127.0.0.1:4222"]"#;
    if !table.has("urls") {
        table.error("", "`urls` is missing", example);
    }
    let with_tls = found.iter().any(|(_, tls)| *tls);
    if found.iter().any(|(_, tls)| *tls != with_tls) {
        table.error("urls", "some begin with tls:// and some do not: one server could be had in the clear", "");
    }
    let subject = template(table, "subject", Some("hooks.{source}"), Alphabet::Dotted, r#"subject = "hooks.{source}""#);
    // The longest names there can be.
    let longest = |subject: &Template| subject.fill(&"s".repeat(64), Some(&"e".repeat(128))).len();
    if subject.as_ref().is_some_and(|subject| longest(subject) > LONGEST_SUBJECT) {
        table.error("subject", format!("can become longer than {LONGEST_SUBJECT} bytes"), "");
    }
    // All keys are read, whatever is wrong with one of them.
    let (auth, format) = (nats_login(table), format(table));
    let stream = table.parsed("jetstream", stream_name);
    let tls = engine::tls(table, with_tls);
    let connect_timeout = table.duration("connect_timeout", CONNECT_TIMEOUT, MILLISECOND..=MINUTES);
    let target = NatsTarget {
        servers: found.into_iter().map(|(address, _)| address).collect(),
        subject: subject?,
        stream,
        auth: auth?,
        tls,
        connect_timeout,
        format: format?,
        max_body,
    };
    (!target.servers.is_empty()).then_some(Engine::Nats(target))
}

/// What a NATS server lets a stream be called.
fn stream_name(text: &str) -> Result<String, String> {
    let is_strange = |c: char| !c.is_ascii_graphic() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    match text.is_empty() || text.len() > MOST_NAME || text.contains(is_strange) {
        true => Err(format!("{text:?} is no name of a stream")),
        false => Ok(text.to_owned()),
    }
}

fn nats_login(table: &Table<'_>) -> Option<NatsAuth> {
    let ways: Vec<_> = ["credentials", "nkey", "token", "username"].into_iter().filter(|key| table.has(key)).collect();
    if ways.len() > 1 || table.has("username") != table.has("password") {
        let what = "a login is one of `credentials`, `nkey`, `token`, and `username` with `password`";
        table.error("", what, r#"credentials = { file = "hookward.creds" }"#);
    }
    let secret = |key| table.secret(key).map(|named| named.secret);
    let (username, password) = (table.text("username"), secret("password"));
    let auth = match (secret("credentials"), secret("nkey"), secret("token"), username.zip(password)) {
        (Some(credentials), ..) => NatsAuth::Credentials(credentials),
        (_, Some(seed), ..) => NatsAuth::NKey(seed),
        (_, _, Some(token), _) => NatsAuth::Token(token),
        (.., Some((username, password))) => NatsAuth::Password { username, password },
        // One that leads nowhere was an error.
        _ if ways.is_empty() => NatsAuth::None,
        _ => return None,
    };
    match (auth.check(), &*ways) {
        (Err(what), [way, ..]) => {
            table.error(if *way == "username" { "password" } else { way }, what, "");
            None
        }
        _ => Some(auth),
    }
}

fn template(
    table: &Table<'_>,
    key: &'static str,
    default: Option<&str>,
    alphabet: Alphabet,
    example: &str,
) -> Option<Template> {
    match (table.has(key), default) {
        (false, Some(default)) => {
            table.note_default(key, &format!("{default:?}"));
            table.ignore(&[key]);
            Template::parse(default, alphabet).ok()
        }
        (false, None) => {
            table.needed_text(key, example);
            None
        }
        (true, _) => table.parsed(key, |text| Template::parse(text, alphabet)),
    }
}

fn format(table: &Table<'_>) -> Option<Format> {
    table.choice("format", Some("binary"), &[("binary", Format::Binary), ("cloudevents", Format::CloudEvents)])
}

fn dedupe(table: &Table<'_>) -> Duration {
    table.duration("dedupe", DEFAULT_DEDUPE, Duration::from_secs(1)..=YEAR)
}

fn optional_duration(table: &Table<'_>, key: &'static str) -> Option<Duration> {
    const RANGE: RangeInclusive<Duration> = MILLISECOND..=YEAR;
    let written = table.has(key).then(|| table.duration(key, Duration::ZERO, RANGE));
    table.ignore(&[key]);
    written
}

fn belongs_elsewhere(table: &Table<'_>, key: &'static str, whose: &str) {
    if table.has(key) {
        table.error(key, format!("belongs {whose}"), "remove it");
    }
    table.ignore(&[key]);
}
