//! An unmodified Celery worker on Redis runs each webhook as one task, and what Redis cannot take is not acknowledged.

use super::{
    MARK, assert_no_secret, configuration, delivery, github, peers, python, read, refused_for_now, send_all,
    send_until_taken,
};
use crate::support::engines::Redis;
use crate::support::gateway::Folder;
use crate::support::{Gateway, PATIENCE, Request, eventually};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const JSON: &str = "application/json";

/// `celery worker`, with its output in a file; ended with the value.
struct Worker {
    child: Child,
    folder: Folder,
}

impl Worker {
    fn start(redis: &Redis, prefix: Option<&str>) -> Self {
        let folder = Folder::new();
        folder.write("tasks.py", include_str!("../../peers/celery_worker.py"));
        let log = std::fs::File::create(folder.path("worker.log")).expect("a file");
        let mut command = Command::new(peers().join("venv/bin/celery"));
        command.args(["-A", "tasks", "worker", "--loglevel", "DEBUG", "--pool", "solo", "--without-gossip"]);
        command.args(["--without-mingle", "--without-heartbeat", "--hostname", "w@localhost"]);
        command.env("BROKER", redis.url()).env("RESULTS", redis.url()).current_dir(&folder.0).stdin(Stdio::null());
        if let Some(prefix) = prefix {
            command.env("KEY_PREFIX", prefix);
        }
        command.stdout(log.try_clone().expect("another handle")).stderr(log);
        Self { child: command.spawn().expect("tests/run installs celery"), folder }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&read(&self.folder, "worker.log")).into_owned()
    }

    fn lives(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn upstream(redis: &Redis, more: &str) -> String {
    let url = redis.url();
    format!("\n[upstreams.tasks]\nkind = \"celery\"\nurl = \"{url}\"\ntask = \"hooks.handle\"\n{more}\n")
}

fn length(redis: &Redis, list: &str) -> usize {
    redis.cli(&["LLEN", list]).trim().parse().expect("a number")
}

/// What tasks have written, in their order; waits until there are so many.
fn ran(redis: &Redis, worker: &mut Worker, count: usize) -> Vec<Value> {
    let start = Instant::now();
    while length(redis, "ran") < count {
        assert!(worker.lives(), "the worker ended:\n{}", worker.log());
        let waited = start.elapsed();
        assert!(waited < 3 * PATIENCE, "{} of {count} ran:\n{}", length(redis, "ran"), worker.log());
        thread::sleep(Duration::from_millis(20));
    }
    let lines = redis.cli(&["LRANGE", "ran", "0", "-1"]);
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The messages on a list that no worker has read, the latest first.
fn queued(redis: &Redis, list: &str) -> Vec<Value> {
    let lines = redis.cli(&["LRANGE", list, "0", "-1"]);
    lines.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn arguments(message: &Value) -> Vec<u8> {
    STANDARD.decode(message["body"].as_str().expect("a text")).expect("base64")
}

/// How often each body is on the list, by kombu's envelope.
fn bodies(messages: &[Value]) -> BTreeMap<Vec<u8>, usize> {
    let mut bodies = BTreeMap::new();
    for message in messages {
        let arguments: Value = serde_json::from_slice(&arguments(message)).expect("JSON");
        let text = arguments[0][0]["data_base64"].as_str().expect("a text");
        *bodies.entry(STANDARD.decode(text).expect("base64")).or_insert(0) += 1;
    }
    bodies
}

#[test]
fn five_hundred_webhooks_run_as_five_hundred_tasks_of_an_unmodified_worker() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, None);
    let gateway = Gateway::start_in(
        std::sync::Arc::new(Folder::new()),
        &configuration("tasks", "", &upstream(&redis, "timeout = \"20s\"")),
    );
    let deliveries: Vec<Request> = (0..500).map(delivery).collect();
    for (number, answer) in send_all(gateway.public(), &deliveries).iter().enumerate() {
        assert_eq!(answer.status, 202, "{number}");
    }
    let marker = github(b"{\"last\": true}", "push", JSON);
    assert_eq!(send_until_taken(gateway.public(), &marker), 1);
    let ran = ran(&redis, &mut worker, 501);
    assert_eq!((ran.len(), length(&redis, "celery")), (501, 0), "{}", worker.log());

    let ids: BTreeSet<&str> = ran.iter().filter_map(|task| task["id"].as_str()).collect();
    assert_eq!(ids.len(), 501);
    let by_body: BTreeMap<Vec<u8>, &Value> =
        ran.iter().map(|task| (hex::decode(task["body"].as_str().expect("hex")).expect("hex"), task)).collect();
    assert_eq!(by_body.len(), 501, "byte for byte, each once");
    for (number, delivery) in deliveries.iter().enumerate() {
        let task = by_body.get(&delivery.body).unwrap_or_else(|| panic!("the body of {number} got lost"));
        let expected = match (number % 4, number / 4 % 24) {
            (3, _) => "json",
            (_, 1 | 6 | 7 | 8 | 10 | 11 | 13 | 16 | 17 | 18 | 19 | 20 | 21) => "text",
            (_, 2 | 22) => "none",
            _ => "json",
        };
        assert_eq!(task["data"], expected, "{number}: {}", String::from_utf8_lossy(&delivery.body));
        let event = &task["event"];
        let source = delivery.target.trim_start_matches('/');
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["source"], format!("/{source}"));
        assert_eq!(event["hookwardsource"], source);
        assert_eq!(
            event["type"],
            if source == "github" {
                "webhook.github.push".to_owned()
            } else {
                event["type"].as_str().expect("a type").to_owned()
            }
        );
        assert_eq!((task["task"].as_str(), task["argsrepr"].as_str()), (Some("hooks.handle"), Some("(<webhook>,)")));
        assert_eq!(task["ignore_result"], true);
        assert_eq!((&task["traceparent"], &task["header"]), (&event["traceparent"], &event["traceparent"]));
        assert!(
            event["traceparent"].is_string() && event["time"].is_string() && event["hookwardrequestid"].is_string()
        );
        if source == "github" {
            let headers = &event["hookwardheaders"];
            let values = |wanted: &str| -> Vec<&str> {
                let all = headers.as_array().expect("a list").iter();
                all.filter(|header| header[0] == wanted).filter_map(|header| header[1].as_str()).collect()
            };
            assert_eq!(values("x-twice"), ["one", "two"]);
            assert_eq!(values("x-odd"), ["caf\u{e9} \u{ff}"], "Latin-1");
            assert_eq!(values("x-github-event"), ["push"]);
        }
    }
    assert_no_secret(serde_json::to_string(&ran).expect("JSON").as_bytes(), "what the tasks got");
    let log = worker.log();
    assert!(worker.lives() && !log.contains(MARK) && !log.contains("Traceback"), "{log}");
    assert_no_secret(log.as_bytes(), "the worker's log");
}

#[test]
fn tasks_are_named_by_the_event_served_by_priority_and_run_when_and_as_long_as_they_are_wanted() {
    let redis = Redis::start();
    let url = redis.url();
    let table = |name: &str, more: &str| {
        format!(
            "\n[upstreams.{name}]\nkind = \"celery\"\nurl = \"{url}\"\ntask = \"hooks.{{event}}\"\n\
             key_prefix = \"app:\"\n{more}\n\
             [sources.{name}]\npath = \"/{name}\"\nprovider = \"github\"\nsecrets = [{{ value = \"{}\" }}]\n\
             upstream = \"{name}\"\n",
            super::SECRET
        )
    };
    let gateway = Gateway::start(&format!(
        "{}{}{}{}",
        table("late", "priority = 9"),
        table("early", "priority = 2"),
        table("waits", "priority = 4\ncountdown = \"1500ms\""),
        table("expires", "expires = \"1ms\"")
    ));
    let send = |source: &str, event: &str| {
        let mut request = github(format!("{{\"{source}\": \"{MARK}\"}}").as_bytes(), event, JSON);
        request.target = format!("/{source}");
        assert_eq!(send_until_taken(gateway.public(), &request), 1);
    };
    send("late", "push");
    send("waits", "push");
    send("expires", "push");
    send("early", "issues.opened");
    let lists = ["app:celery", "app:celery\u{6}\u{16}3", "app:celery\u{6}\u{16}9"];
    assert_eq!(lists.map(|list| length(&redis, list)), [2, 1, 1]);
    let published = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");

    let mut worker = Worker::start(&redis, Some("app:"));
    let ran = ran(&redis, &mut worker, 3);
    let order: Vec<_> =
        ran.iter().map(|task| (task["event"]["hookwardsource"].as_str(), task["task"].as_str())).collect();
    let expected = [("early", "hooks.issues.opened"), ("late", "hooks.push"), ("waits", "hooks.push")];
    let sooner = expected.map(|(source, task)| (Some(source), Some(task)));
    // A worker that takes long to start finds the one that had to wait in its own place.
    let later = [sooner[0], sooner[2], sooner[1]];
    assert!(order == sooner || order == later, "{order:?}");
    let waited = ran.iter().find(|task| task["event"]["hookwardsource"] == "waits").expect("it ran");
    assert!(waited["at"].as_f64().expect("a time") >= published.as_secs_f64() + 0.5, "it ran at once");
    eventually("the worker says that one had expired", || {
        worker.log().contains("Discarding revoked task").then_some(())
    });
    assert_eq!(length(&redis, "ran"), 3);
}

#[test]
fn a_delivery_whose_confirmation_got_lost_is_sent_again_by_its_provider_and_stands_on_the_queue_once() {
    let redis = Redis::start();
    let gateway = Gateway::start_in(
        std::sync::Arc::new(Folder::new()),
        &configuration("tasks", "on_replay = \"reject\"", &upstream(&redis, "timeout = \"300ms\"")),
    );
    send_until_taken(gateway.public(), &github(b"{\"n\": 1}", "push", JSON));
    redis.pause();
    let lost = github(b"{\"n\": 2}", "push", JSON);
    let start = Instant::now();
    let answer = lost.send(gateway.public());
    assert!(refused_for_now(&answer), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(length_when_resumed(&redis), 2, "it was published, and nobody heard of it");
    send_until_taken(gateway.public(), &lost);
    assert_eq!(lost.send(gateway.public()).status, 409, "it was accepted");
    let messages = queued(&redis, "celery");
    assert_eq!(messages.len(), 2);
    assert_ne!(messages[0]["properties"]["delivery_tag"], messages[0]["headers"]["id"]);
}

fn length_when_resumed(redis: &Redis) -> usize {
    redis.resume();
    eventually("what was written is carried out", || Some(length(redis, "celery")).filter(|length| *length > 1))
}

#[test]
fn what_redis_does_not_take_is_not_acknowledged_and_is_taken_once_when_it_does() {
    let mut redis = Redis::start_with(&["--maxmemory-policy", "noeviction"]);
    let gateway = Gateway::start_in(
        std::sync::Arc::new(Folder::new()),
        &configuration("tasks", "on_replay = \"reject\"", &upstream(&redis, "timeout = \"2s\"")),
    );
    send_until_taken(gateway.public(), &github(b"{\"n\": 0}", "push", JSON));
    let mut published = 1;
    let nobody = Redis::start().port.to_string();
    let troubles: [(&str, &[&str], &[&str]); 4] = [
        ("OOM", &["CONFIG", "SET", "maxmemory", "1mb"], &["CONFIG", "SET", "maxmemory", "0"]),
        ("WRONGTYPE", &["RENAME", "celery", "aside"], &["DEL", "celery"]),
        ("READONLY", &["REPLICAOF", "127.0.0.1", &nobody], &["REPLICAOF", "NO", "ONE"]),
        (
            "NOREPLICAS",
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
    ];
    for (name, cause, cure) in troubles {
        let event = github(format!("{{\"n\": \"{name}\"}}").as_bytes(), "push", JSON);
        redis.cli(cause);
        if name == "WRONGTYPE" {
            redis.cli(&["SET", "celery", "a string"]);
        }
        for _ in 0..2 {
            let answer = event.send(gateway.public());
            assert!(refused_for_now(&answer), "{name}: {answer:?}");
        }
        gateway.wait_for_log(name);
        redis.cli(cure);
        if name == "WRONGTYPE" {
            redis.cli(&["RENAME", "aside", "celery"]);
        }
        send_until_taken(gateway.public(), &event);
        published += 1;
        assert_eq!(length(&redis, "celery"), published, "{name}");
        assert_eq!(event.send(gateway.public()).status, 409, "{name}: it was accepted");
    }
    redis.stop();
    let event = github(b"{\"n\": \"down\"}", "push", JSON);
    assert!(refused_for_now(&event.send(gateway.public())));
    redis.restart();
    send_until_taken(gateway.public(), &event);
    assert_eq!(length(&redis, "celery"), 1, "a restart without persistence is empty");
    let log = gateway.log_text();
    assert!(!log.contains("a string") && !log.contains("celery\\u0006"), "{log}");
}

#[test]
fn kills_of_redis_in_mid_stream_lose_nothing_that_was_acknowledged_and_double_nothing() {
    for delivery in ["proxy", "inbox"] {
        let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let more =
            format!("delivery = \"{delivery}\"\nretry = {{ attempts = 1000, first = \"10ms\", max = \"50ms\" }}");
        let more = if delivery == "inbox" { more } else { String::new() };
        let inbox = if delivery == "inbox" { "\n[inbox]\npath = \"inbox\"\nmin_free = \"0B\"\n" } else { "" };
        let rest = format!("{inbox}{}", upstream(&redis, "timeout = \"500ms\""));
        let gateway = Gateway::start_in(std::sync::Arc::new(Folder::new()), &configuration("tasks", &more, &rest));
        let events: Vec<Request> =
            (0..300).map(|n| github(format!("{{\"n\": {n}, \"m\": \"{MARK}\"}}").as_bytes(), "push", JSON)).collect();
        let to = gateway.public();
        thread::scope(|scope| {
            for sender in 0..6 {
                let events = &events;
                scope.spawn(move || {
                    events.iter().skip(sender).step_by(6).for_each(|event| {
                        send_until_taken(to, event);
                    })
                });
            }
            for wanted in [40, 120, 200] {
                eventually("some are published", || (length(&redis, "celery") > wanted).then_some(()));
                redis.kill();
                redis.restart();
            }
        });
        eventually("all are published", || (length(&redis, "celery") >= events.len()).then_some(()));
        let messages = queued(&redis, "celery");
        let bodies = bodies(&messages);
        assert!(events.iter().all(|event| bodies.get(&event.body) == Some(&1)), "{delivery}: each once");
        let ids: BTreeSet<_> = messages.iter().filter_map(|message| message["headers"]["id"].as_str()).collect();
        assert_eq!((messages.len(), ids.len()), (events.len(), events.len()), "{delivery}");
    }
}

/// Killed while it writes its log, Redis keeps the commands of a script that were whole, and carries them out at its next
/// start but one: the note without the message.
#[test]
fn what_redis_noted_and_cut_off_before_the_message_is_published_when_it_comes_again() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let start = |redis: &Redis| {
        let rest = upstream(redis, "timeout = \"2s\"");
        Gateway::start_in(std::sync::Arc::new(Folder::new()), &configuration("tasks", "", &rest))
    };
    let gateway = start(&redis);
    let event = |n: u32| github(format!("{{\"n\": {n}}}").as_bytes(), "push", JSON);
    for n in 0..2 {
        send_until_taken(gateway.public(), &event(n));
    }
    redis.kill();
    let log = redis.folder.path("appendonlydir/appendonly.aof.1.incr.aof");
    let written = std::fs::read(&log).expect("what Redis wrote");
    let last = written.windows(5).rposition(|window| window == b"LPUSH").expect("the second message");
    std::fs::write(&log, &written[..last + 100]).expect("cut");
    redis.restart();
    send_until_taken(gateway.public(), &event(2));
    redis.kill();
    redis.restart();
    // The gateway itself knows what it has accepted; another does not.
    let another = start(&redis);
    for n in 0..3 {
        send_until_taken(another.public(), &event(n));
    }
    let messages = queued(&redis, "celery");
    let bodies = bodies(&messages);
    assert!((0..3).all(|n| bodies.get(&event(n).body) == Some(&1)), "each once: {bodies:?}");
}

#[test]
fn in_a_cluster_a_list_or_stream_and_the_note_of_what_was_published_lie_on_one_node() {
    let redis = Redis::start_with(&["--cluster-enabled", "yes"]);
    redis.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    eventually("the cluster is whole", || redis.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(()));
    let lists = [
        ("priority = 9", "celery\u{6}\u{16}9"),
        ("key_prefix = \"{app}:\"\nqueue = \"a\"", "{app}:a"),
        ("key_prefix = \"x{app}:\"\npriority = 3\nqueue = \"a\"", "x{app}:a\u{6}\u{16}3"),
    ];
    for (keys, list) in lists {
        let gateway = Gateway::start_in(
            std::sync::Arc::new(Folder::new()),
            &configuration("tasks", "", &upstream(&redis, &format!("timeout = \"20s\"\n{keys}"))),
        );
        for number in 0..8 {
            assert_eq!(delivery(number).send(gateway.public()).status, 202, "{keys}");
        }
        assert_eq!(length(&redis, list), 8, "{keys}");
    }
}

#[test]
fn a_delivery_that_is_routed_to_two_upstreams_is_a_task_of_each_on_the_same_list() {
    let redis = Redis::start();
    let also = upstream(&redis, "").replace("upstreams.tasks", "upstreams.also").replace("hooks.handle", "hooks.also");
    let routes = "delivery = \"inbox\"\nroutes = [{ upstream = \"tasks\" }, { upstream = \"also\" }]";
    let rest = format!("\n[inbox]\npath = \"inbox\"\nmin_free = \"0B\"\n{}{also}", upstream(&redis, ""));
    let gateway = Gateway::start_in(std::sync::Arc::new(Folder::new()), &configuration("tasks", routes, &rest));
    send_until_taken(gateway.public(), &github(b"{\"n\": 1}", "push", JSON));
    eventually("both are published", || (length(&redis, "celery") == 2).then_some(()));
    let messages = queued(&redis, "celery");
    let tasks: BTreeSet<_> = messages.iter().filter_map(|message| message["headers"]["task"].as_str()).collect();
    assert_eq!(tasks, BTreeSet::from(["hooks.also", "hooks.handle"]));
}

/// What docs/brokers.md says that an ACL must allow, and nothing else.
#[test]
fn a_user_of_redis_who_may_only_publish_is_enough_and_one_who_may_not_gets_nothing_acknowledged() {
    let page = include_str!("../../../docs/brokers.md");
    let commands = page.split("user needs `").nth(1).and_then(|rest| rest.split('`').next()).expect("the commands");
    let redis = Redis::start();
    let mut setting = vec!["ACL", "SETUSER", "hookward", "on", ">a-password", "~hookward:sent:*", "~celery*", "-@all"];
    setting.extend(commands.split(' '));
    redis.cli(&setting);
    let login = "timeout = \"20s\"\nusername = \"hookward\"\npassword = { value = \"a-password\" }";
    let gateway =
        Gateway::start_in(std::sync::Arc::new(Folder::new()), &configuration("tasks", "", &upstream(&redis, login)));
    let event = |n: u32| github(format!("{{\"n\": {n}}}").as_bytes(), "push", JSON);
    assert_eq!(event(1).send(gateway.public()).status, 202);
    redis.cli(&["ACL", "SETUSER", "hookward", "-lpush"]);
    assert!(refused_for_now(&event(2).send(gateway.public())));
    redis.cli(&["ACL", "SETUSER", "hookward", "+lpush"]);
    assert_eq!(event(2).send(gateway.public()).status, 202, "the refusal left no note");
    assert_eq!(length(&redis, "celery"), 2);
    assert!(!gateway.log_text().contains("a-password"));
}

/// Python's own judgement of many texts: whatever stands in `data`, kombu decodes.
#[test]
fn whatever_a_sender_makes_up_kombu_decodes_every_message() {
    let redis = Redis::start();
    let gateway = Gateway::start_in(
        std::sync::Arc::new(Folder::new()),
        &configuration("tasks", "", &upstream(&redis, "timeout = \"20s\"")),
    );
    let events: Vec<Request> = (0..400_u32).map(|seed| github(&made_up(seed), "push", JSON)).collect();
    let answers = send_all(gateway.public(), &events);
    assert!(answers.iter().all(|answer| answer.status == 202));
    let program = r#"
import base64, json, sys, redis
from kombu.utils.json import loads
counts = {"json": 0, "text": 0, "none": 0}
for item in redis.Redis.from_url(sys.argv[1]).lrange("celery", 0, -1):
    envelope = loads(item)
    (event,), kwargs, embed = loads(base64.b64decode(envelope["body"], validate=True))
    assert kwargs == {} and set(embed) == {"callbacks", "errbacks", "chain", "chord"}, embed
    raw = base64.b64decode(event["data_base64"], validate=True)
    if "data" not in event:
        counts["none"] += 1
        continue
    data = event["data"]
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if isinstance(data, str) and data.encode("utf-8") == raw:
        counts["text"] += 1
    else:
        assert repr(data) == repr(value), raw[:200]
        counts["json"] += 1
print(json.dumps(counts))
"#;
    let counts: Value = serde_json::from_str(&python(program, &[&redis.url()])).expect("JSON");
    let count = |name: &str| counts[name].as_u64().expect("a count");
    assert_eq!(count("json") + count("text") + count("none"), 400, "{counts}");
    assert!(count("json") > 50 && count("text") > 50 && count("none") > 5, "{counts}");
}

/// Pieces of JSON and of what is none, strung together; about half of them are well formed.
fn made_up(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut chance = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let digits = "9".repeat(4296 + chance(9));
    let mut text = format!("[{seed}");
    for _ in 0..chance(6) {
        let depth = 124 + chance(8);
        let pieces: [&[u8]; 16] = [
            b"1e999",
            b"-0.0",
            digits.as_bytes(),
            br#""\ud83d\ude00\udead""#,
            br#"{"__type__": "base64"}"#,
            br#"{"__type\u005f_": "decimal", "__value__": "x"}"#,
            br#"{"a": {"b": [{}, [], ""]}}"#,
            br#"{"a": 1, "a": [2]}"#,
            b" \t\r\n null",
            b"-Infinity",
            b"tru",
            b"\"\x7f\"",
            b"{\"\\u0000\": \"\\\\\"}",
            b"0123",
            b"true",
            b"\"/\\/\"",
        ];
        text.push(',');
        match chance(17) {
            16 => text.push_str(&format!("{}{}", "[".repeat(depth), "]".repeat(depth))),
            piece => text.push_str(&String::from_utf8_lossy(pieces[piece])),
        }
    }
    text.push(']');
    let mut bytes = text.into_bytes();
    if chance(12) == 0 {
        bytes.push(0xfe);
    }
    bytes
}
