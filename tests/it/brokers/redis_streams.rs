//! Entries of a Redis Stream, read back by Redis's own Python client.

use super::{MARK, assert_no_secret, configuration, delivery, github, python, read, send_all, send_until_taken};
use crate::support::engines::Redis;
use crate::support::gateway::Folder;
use crate::support::{Gateway, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

const JSON: &str = "application/json";

/// Each entry as a list of its fields and values, the values in base64.
const READ: &str = r#"
import base64, json, sys, redis
server = redis.Redis.from_url(sys.argv[1])
stream = sys.argv[2]
server.xgroup_create(stream, "workers", id="0")
while True:
    found = server.xreadgroup("workers", "one", {stream: ">"}, count=100)
    if not found:
        break
    for entry, fields in found[0][1]:
        print(json.dumps([[name.decode(), base64.b64encode(value).decode()] for name, value in fields.items()]))
        server.xack(stream, "workers", entry)
"#;

fn entries(redis: &Redis, stream: &str) -> Vec<Vec<(String, Vec<u8>)>> {
    let lines = python(READ, &[&redis.url(), stream]);
    let entry = |line: &str| {
        let fields: Vec<(String, String)> = serde_json::from_str(line).expect("JSON");
        fields.into_iter().map(|(name, value)| (name, STANDARD.decode(value).expect("base64"))).collect()
    };
    lines.lines().map(entry).collect()
}

fn upstream(redis: &Redis, more: &str) -> String {
    format!("\n[upstreams.events]\nkind = \"redis-stream\"\nurl = \"{}\"\ntimeout = \"20s\"\n{more}\n", redis.url())
}

fn start(configuration: &str) -> Gateway {
    Gateway::start_in(Arc::new(Folder::new()), configuration)
}

#[test]
fn five_hundred_webhooks_are_five_hundred_entries_of_a_stream_and_no_credential_is_anywhere_in_redis() {
    let redis = Redis::start();
    let gateway = start(&configuration("events", "", &upstream(&redis, "")));
    let deliveries: Vec<Request> = (0..500).map(delivery).collect();
    assert!(send_all(gateway.public(), &deliveries).iter().all(|answer| answer.status == 202));
    assert_eq!(send_until_taken(gateway.public(), &deliveries[0]), 1, "a copy is acknowledged, and not published");

    // All of Redis as it lies on the disk, uncompressed.
    redis.cli(&["CONFIG", "SET", "rdbcompression", "no"]);
    redis.cli(&["SAVE"]);
    let dump = read(&redis.folder, "dump.rdb");
    let has_mark = dump.windows(MARK.len()).any(|window| window == MARK.as_bytes());
    assert!(has_mark, "what is looked through is what was published");
    assert_no_secret(&dump, "Redis");

    let entries = entries(&redis, "hookward");
    assert_eq!(entries.len(), 500);
    let by_body: BTreeMap<&[u8], &Vec<(String, Vec<u8>)>> =
        entries.iter().map(|fields| (&*fields.last().expect("fields").1, fields)).collect();
    for (number, delivery) in deliveries.iter().enumerate() {
        let fields = by_body.get(&*delivery.body).unwrap_or_else(|| panic!("the body of {number} got lost"));
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        let always =
            ["specversion", "id", "source", "type", "time", "datacontenttype", "headers", "requestid", "verified"];
        assert_eq!(names[..9], always, "{number}");
        assert_eq!(names.last(), Some(&"data"));
        let value = |wanted: &str| &fields.iter().find(|(name, _)| name == wanted).expect(wanted).1;
        assert_eq!(value("source"), delivery.target.as_bytes());
        let headers: Vec<(String, String)> = serde_json::from_slice(value("headers")).expect("JSON");
        assert!(headers.iter().any(|(name, _)| name == "content-type"), "{headers:?}");
        assert!(names.contains(&"traceparent"));
    }
}

#[test]
fn a_stream_is_trimmed_to_about_its_length_and_one_that_is_something_else_takes_nothing() {
    let redis = Redis::start();
    let gateway = start(&configuration("events", "", &upstream(&redis, "stream = \"hooks:{source}\"\nmax_len = 100")));
    let events: Vec<Request> = (0..400).map(|n| github(format!("{{\"n\": {n}}}").as_bytes(), "push", JSON)).collect();
    assert!(send_all(gateway.public(), &events).iter().all(|answer| answer.status == 202));
    let length: usize = redis.cli(&["XLEN", "hooks:github"]).trim().parse().expect("a number");
    assert!((100..=200).contains(&length), "{length}");

    redis.cli(&["SET", "hooks:stripe", "a string"]);
    let stripe = delivery(2);
    assert_eq!(stripe.send(gateway.public()).status, 503);
    redis.cli(&["DEL", "hooks:stripe"]);
    send_until_taken(gateway.public(), &stripe);
    assert_eq!(
        redis.cli(&["XLEN", "hooks:stripe"]).trim(),
        "1",
        "the refusal left nothing that swallows the next attempt"
    );
}

#[test]
fn a_structured_event_is_one_that_the_cloudevents_sdk_takes() {
    let redis = Redis::start();
    let gateway = start(&configuration("events", "", &upstream(&redis, "format = \"cloudevents\"")));
    let deliveries: Vec<Request> = (0..96).map(delivery).collect();
    assert!(send_all(gateway.public(), &deliveries).iter().all(|answer| answer.status == 202));
    let empty = github(b"", "push", JSON);
    assert_eq!(send_until_taken(gateway.public(), &empty), 1);
    let program = r#"
import json, sys, redis
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
for _, fields in redis.Redis.from_url(sys.argv[1]).xrange("hookward"):
    (text,) = fields.values()
    plain = json.loads(text)
    event = JSONFormat().read(CloudEvent, text)
    data = event.get_data()
    print(json.dumps({
        "id": event.get_id(), "source": event.get_source(), "verified": event.get_extension("hookwardverified"),
        "both": "data" in plain and "data_base64" in plain,
        "headers": "hookwardheaders" in plain,
        "body": data.hex() if isinstance(data, bytes) else None,
        "json": None if isinstance(data, bytes) else plain.get("data") == data,
    }))
"#;
    let lines = python(program, &[&redis.url()]);
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.len(), 97);
    assert!(events.iter().all(|event| event["both"] == false && event["headers"] == false));
    assert!(events.iter().all(|event| event["verified"].is_string()));
    let raw = |event: &&Value| event["body"].is_string();
    let raw: Vec<&str> = events.iter().filter(raw).filter_map(|event| event["body"].as_str()).collect();
    let form = deliveries.iter().find(|delivery| delivery.body.starts_with(b"n=")).expect("a form");
    assert!(raw.contains(&&*hex::encode(&form.body)), "what is no JSON comes as its bytes");
    assert!(raw.len() > 20 && raw.len() < 80, "{}", raw.len());
}
