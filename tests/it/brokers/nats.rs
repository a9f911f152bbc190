//! NATS JetStream: what was acknowledged is in the stream, once, byte for byte, whatever happens to the server.

use crate::support::certs::Authority;
use crate::support::engines::{Nats, free_port};
use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Answer, Gateway, Request, eventually, sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECRET: &str = "a-secret-of-some-length";

/// nats-py in a process of its own.
struct Reader {
    child: Child,
    jobs: ChildStdin,
    answers: BufReader<ChildStdout>,
}

struct Message {
    subject: String,
    headers: BTreeMap<String, String>,
    data: Vec<u8>,
}

impl Reader {
    fn of(nats: &Nats) -> Self {
        Self::with(&json!({ "servers": nats.url() }))
    }

    fn with(options: &Value) -> Self {
        let peers = std::env::var_os("HOOKWARD_PEERS").map(PathBuf::from);
        let peers = peers.expect("HOOKWARD_PEERS is not set: run tests/run, which installs nats-py");
        let spawned = Command::new(peers.join("venv/bin/python"))
            .args(["-c", include_str!("../../peers/nats_stream.py"), &options.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = spawned.expect("python starts");
        let (jobs, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { child, jobs, answers: BufReader::new(answers) }
    }

    fn ask(&mut self, job: &Value) -> Value {
        writeln!(self.jobs, "{job}").expect("python reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("python writes");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{job}: {line:?}: {error}"));
        assert!(answer.get("error").is_none(), "{job}: {answer}");
        answer
    }

    /// A stream called HOOKS that takes `hooks.>`, with further settings.
    fn create(&mut self, more: &Value) {
        let mut job = json!({ "do": "create", "name": "HOOKS", "subjects": ["hooks.>"] });
        let settings = more.as_object().expect("settings");
        job.as_object_mut().expect("a job").extend(settings.clone());
        self.ask(&job);
    }

    fn count(&mut self) -> u64 {
        self.ask(&json!({ "do": "count", "stream": "HOOKS" }))["count"].as_u64().expect("a number")
    }

    fn read(&mut self) -> Vec<Message> {
        let answer = self.ask(&json!({ "do": "read", "stream": "HOOKS" }));
        let messages = answer["messages"].as_array().expect("messages");
        let message = |message: &Value| Message {
            subject: message["subject"].as_str().expect("a subject").to_owned(),
            headers: serde_json::from_value(message["headers"].clone()).expect("headers"),
            data: STANDARD.decode(message["data"].as_str().expect("data")).expect("base64"),
        };
        messages.iter().map(message).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn upstream(url: &str, more: &str) -> String {
    format!("\n[upstreams.stream]\nkind = \"nats\"\nurls = [\"{url}\"]\n{more}\n")
}

/// As GitHub signs.
fn source(more: &str) -> String {
    format!(
        "\n[sources.shop]\npath = \"/shop\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         upstream = \"stream\"\n{more}\n"
    )
}

fn start(nats: &Nats, more: &str) -> Gateway {
    Gateway::start(&format!("{}{}", upstream(&nats.url(), more), source("")))
}

fn ready(gateway: &Gateway, status: u16) {
    eventually(&format!("/readyz says {status}"), || gateway.get("/readyz").filter(|answer| answer.status == status));
}

/// All 256 values, and a name.
fn body(name: &str) -> Vec<u8> {
    let mut body = format!("{name}\r\n").into_bytes();
    body.extend(0..=255_u8);
    body
}

fn event(body: Vec<u8>) -> Request {
    let signature = sign::github(SECRET, &body);
    Request::post("/shop", body).header("X-Hub-Signature-256", signature).header("X-GitHub-Event", "push")
}

fn refused_for_now(answer: &Answer) -> bool {
    answer.status == 503 && answer.header("retry-after").is_some()
}

/// From several senders at once; each until it is told 2xx.
fn send_all(to: SocketAddr, bodies: &[Vec<u8>], senders: usize, patience: Duration) {
    std::thread::scope(|scope| {
        for part in bodies.chunks(bodies.len().div_ceil(senders)) {
            scope.spawn(move || {
                for body in part {
                    let start = Instant::now();
                    loop {
                        let answer = event(body.clone()).send(to);
                        if answer.status == 202 {
                            break;
                        }
                        assert!(start.elapsed() < patience, "{}: {}", answer.status, answer.text());
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
    });
}

fn bodies(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| body(&format!("delivery {n}"))).collect()
}

/// Each is there, and nothing twice.
fn assert_once(messages: &[Message], sent: &[Vec<u8>]) {
    let read: BTreeSet<&[u8]> = messages.iter().map(|message| &*message.data).collect();
    let wanted: BTreeSet<&[u8]> = sent.iter().map(|body| &**body).collect();
    assert_eq!((messages.len(), read.len(), read == wanted), (sent.len(), wanted.len(), true));
}

#[test]
fn what_is_acknowledged_is_in_the_stream_once_byte_for_byte() {
    let nats = Nats::start();
    let mut reader = Reader::of(&nats);
    reader.create(&json!({}));
    let gateway = start(&nats, "jetstream = \"HOOKS\"");
    ready(&gateway, 200);
    let sent = bodies(500);
    send_all(gateway.public(), &sent, 8, Duration::ZERO);
    let messages = reader.read();
    assert_once(&messages, &sent);
    for message in &messages {
        let header = |name: &str| message.headers.get(name).map(String::as_str).unwrap_or_default();
        assert_eq!(message.subject, "hooks.shop");
        assert_eq!((header("ce-specversion"), header("ce-source")), ("1.0", "/shop"));
        assert_eq!((header("ce-type"), header("http-x-github-event")), ("webhook.shop.push", "push"));
        assert_eq!(header("Nats-Msg-Id"), format!("shop:{}", header("ce-id")));
        assert_eq!(header("http-x-hub-signature-256"), sign::github(SECRET, &message.data));
        assert!(header("ce-time").ends_with('Z') && !header("traceparent").is_empty(), "{:?}", message.headers);
    }

    // Without its memory of them the gateway takes them again; the stream knows them.
    let gateway = Gateway::start(&format!("{}{}", upstream(&nats.url(), ""), source("")));
    ready(&gateway, 200);
    send_all(gateway.public(), &sent[..20], 2, Duration::ZERO);
    assert_eq!(reader.count(), 500);
}

#[test]
fn a_sender_can_neither_speak_to_the_stream_nor_leave_a_password_there() {
    let nats = Nats::start();
    let mut reader = Reader::of(&nats);
    reader.create(&json!({ "allow_rollup_hdrs": true }));
    // A second one that knows nothing of what the first was sent: only the stream can tell a repetition.
    for gateway in [start(&nats, ""), start(&nats, "")] {
        ready(&gateway, 200);
        for name in ["one", "two", "three"] {
            let answer = event(body(name))
                // nats-server looks for the first place in all headers where the name stands, and when that is not the
                // beginning of a line, there is no such header for it.
                .header("A", "Nats-Msg-Id")
                .header("B", "Nats-Msg-Id: the-same")
                .header("C", "x Nats-Msg-Id: the-same")
                .header("Nats-Msg-Id", "the-same")
                .header("D", "Nats-Rollup: all")
                .header("Nats-Rollup", "all")
                .header("E", "Nats-Expected-Last-Sequence: 77")
                .header("X-Name", "Gr\u{fc}\u{df}e".as_bytes())
                .header("X-Latin", [0xe9, 0x80])
                .header("X-Long", "x".repeat(8000))
                .header("Authorization", "Bearer do-not-store")
                .header("Cookie", "session=do-not-store")
                .send(gateway.public());
            assert_eq!(answer.status, 202, "{}", gateway.log_text());
        }
    }
    let messages = reader.read();
    assert_once(&messages, &[body("one"), body("two"), body("three")]);
    for message in &messages {
        assert_eq!(message.headers["http-x-name"], "Gr%C3%BC%C3%9Fe");
        assert_eq!(message.headers["http-x-latin"], "%E9%80");
        assert_eq!(message.headers["http-x-long"].len(), 8000);
        assert!(message.headers.values().all(|value| !value.contains("do-not-store")), "{:?}", message.headers);
    }
}

#[test]
fn whatever_stands_in_headers_the_connection_lasts() {
    let nats = Nats::start();
    let mut reader = Reader::of(&nats);
    reader.create(&json!({}));
    let gateway = start(&nats, "");
    ready(&gateway, 200);
    let mut state = 7_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    let names = b"!#$%&'*+-.^_`|~09azAZ";
    let mut sent = Vec::new();
    let mut refused = 0;
    for n in 0..150 {
        let body = body(&format!("random {n}"));
        let mut request = event(body.clone());
        for _ in 0..random(12) {
            let name: String = (0..=random(30)).map(|_| char::from(names[random(names.len())])).collect();
            // CR, LF and NUL among them: no request can hold those, and none with them gets further than its listener.
            let few = [b'\r', b'\n', 0, b'\t', b' ', b':', b'%', 0x7f, 0xff];
            let value: Vec<u8> = (0..random(60))
                .map(|_| match random(40) {
                    0 if n % 5 == 0 => few[random(few.len())],
                    1..=8 => 0x80 + u8::try_from(random(128)).expect("a byte"),
                    _ => 0x20 + u8::try_from(random(95)).expect("a byte"),
                })
                .collect();
            request = request.header(&name, value);
        }
        match request.send(gateway.public()).status {
            202 => sent.push(body),
            status => {
                assert_eq!(status, 400, "{n}: {}", gateway.log_text());
                refused += 1;
            }
        }
    }
    assert!(sent.len() > 100 && refused > 0, "{} and {refused}", sent.len());
    assert_once(&reader.read(), &sent);
    assert!(!gateway.log_text().contains("has ended"), "{}", gateway.log_text());
}

#[test]
fn senders_come_again_while_no_stream_takes_it_and_until_one_has_room() {
    let nats = Nats::start();
    let mut reader = Reader::of(&nats);
    let gateway = start(&nats, "");
    ready(&gateway, 200);
    assert!(refused_for_now(&event(body("first")).send(gateway.public())));
    gateway.wait_for_log("no stream takes the subject hooks.shop");
    reader.create(&json!({ "max_msgs": 1, "discard": "new", "max_msg_size": 4096 }));
    // The claim was given back: the same delivery is not a replay.
    assert_eq!(event(body("first")).send(gateway.public()).status, 202);
    assert!(refused_for_now(&event(body("second")).send(gateway.public())));
    gateway.wait_for_log("maximum messages exceeded");
    // Larger than the stream takes, at any time.
    assert_eq!(event(vec![b'x'; 5000]).send(gateway.public()).status, 413);
    reader.ask(&json!({ "do": "update", "name": "HOOKS", "subjects": ["hooks.>"], "max_msgs": 2, "discard": "new" }));
    assert_eq!(event(body("second")).send(gateway.public()).status, 202);
    assert_once(&reader.read(), &[body("first"), body("second")]);
}

#[test]
fn a_stream_of_another_name_is_not_the_one_that_was_meant() {
    let nats = Nats::start();
    Reader::of(&nats).create(&json!({}));
    let gateway = start(&nats, "jetstream = \"ORDERS\"");
    ready(&gateway, 200);
    assert!(refused_for_now(&event(body("first")).send(gateway.public())));
    gateway.wait_for_log("expected stream does not match");
}

#[test]
fn what_is_too_large_for_the_server_is_refused_for_good_and_harms_nothing_else() {
    let nats = Nats::start_with("max_payload: 128KB");
    let mut reader = Reader::of(&nats);
    reader.create(&json!({}));
    let gateway = start(&nats, "");
    gateway.wait_for_log("do not fit the server's max_payload");
    ready(&gateway, 200);
    let sent = bodies(60);
    let to = gateway.public();
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(to, &sent, 3, Duration::ZERO));
        for n in 0..10 {
            assert_eq!(event(vec![b'a' + n; 128 << 10]).send(to).status, 413);
        }
    });
    assert_once(&reader.read(), &sent);
    assert!(!gateway.log_text().contains("has ended"), "{}", gateway.log_text());
    // It is not warned of bodies that fit.
    let small = Gateway::start(&format!("{}{}", upstream(&nats.url(), ""), source("max_body = \"1000B\"")));
    ready(&small, 200);
    small.wait_for_log("connected to NATS");
    assert!(!small.log_text().contains("do not fit"), "{}", small.log_text());
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_when_the_server_is_killed() {
    let mut nats = Nats::start();
    let mut reader = Reader::of(&nats);
    reader.create(&json!({}));
    let inbox = "\n[inbox]\npath = \"inbox\"\n";
    let gateway = Gateway::start(&format!("{inbox}{}{}", upstream(&nats.url(), ""), source("delivery = \"inbox\"")));
    let sent = bodies(300);
    let to = gateway.public();
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(to, &sent, 4, Duration::from_secs(20)));
        eventually("some are in the stream", || (reader.count() > 30).then_some(()));
        nats.kill();
        gateway.wait_for_log("the connection to NATS has ended");
        nats.restart();
    });
    let back = Instant::now();
    eventually("all are in the stream", || (reader.count() >= 300).then_some(()));
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    assert_once(&reader.read(), &sent);
}

#[test]
fn a_server_that_does_not_answer_costs_the_timeout_and_nothing_comes_out_double() {
    let nats = Nats::start();
    let mut reader = Reader::of(&nats);
    reader.create(&json!({}));
    let gateway = start(&nats, "timeout = \"400ms\"");
    ready(&gateway, 200);
    let sent = bodies(20);
    let to = gateway.public();
    send_all(to, &sent[..2], 1, Duration::ZERO);
    nats.pause();
    std::thread::scope(|scope| {
        for body in &sent[2..] {
            scope.spawn(move || {
                let start = Instant::now();
                assert!(refused_for_now(&event(body.clone()).send(to)));
                assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
            });
        }
    });
    gateway.wait_for_log("no confirmation at the deadline");
    // Questions whether it lives go without an answer.
    gateway.wait_for_log("the connection to NATS has ended");
    ready(&gateway, 503);
    let start = Instant::now();
    assert!(refused_for_now(&event(sent[2].clone()).send(to)));
    assert!(start.elapsed() < Duration::from_secs(2), "without a connection there is nothing to wait for");
    nats.resume();
    let resumed = Instant::now();
    send_all(to, &sent[2..], 4, Duration::from_secs(20));
    assert!(resumed.elapsed() < Duration::from_secs(15), "{:?}", resumed.elapsed());
    assert_once(&reader.read(), &sent);
}

#[test]
fn a_gateway_starts_before_its_broker_and_works_soon_after_it() {
    let mut nats = Nats::start();
    let mut reader = Reader::of(&nats);
    reader.create(&json!({}));
    nats.stop();
    let gateway = start(&nats, "");
    gateway.wait_for_log("NATS cannot be reached");
    ready(&gateway, 503);
    assert!(refused_for_now(&event(body("one")).send(gateway.public())));
    nats.restart();
    let start = Instant::now();
    send_all(gateway.public(), &[body("one")], 1, Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    ready(&gateway, 200);
    assert_once(&reader.read(), &[body("one")]);
    // One line for each state, however often it was tried.
    let log = gateway.log_text();
    assert_eq!(log.matches("NATS cannot be reached").count(), 1, "{log}");
    assert_eq!(log.matches("connected to NATS").count(), 1, "{log}");
}

#[test]
fn a_login_is_a_password_a_token_or_a_key_and_none_is_ever_told() {
    let key = nkeys::KeyPair::new_user();
    let seed = key.seed().expect("a seed");
    let users = format!(
        "authorization {{ users: [ {{ user: hookward, password: right-password }}, {{ nkey: {} }}, \
         {{ user: shy, password: shy-password, permissions: {{ publish: [\"other.>\"] }} }} ] }}",
        key.public_key()
    );
    let nats = Nats::start_with(&users);
    let options = json!({ "servers": nats.url(), "user": "hookward", "password": "right-password" });
    let mut reader = Reader::with(&options);
    reader.create(&json!({}));

    let right = start(&nats, "username = \"hookward\"\npassword = { value = \"right-password\" }");
    ready(&right, 200);
    assert_eq!(event(body("password")).send(right.public()).status, 202);

    let by_key = start(&nats, &format!("nkey = {{ value = \"{seed}\" }}"));
    ready(&by_key, 200);
    assert_eq!(event(body("key")).send(by_key.public()).status, 202);

    let wrong = start(&nats, "username = \"hookward\"\npassword = { value = \"wrong-password\" }");
    wrong.wait_for_log("the server refuses the login");
    ready(&wrong, 503);
    assert!(refused_for_now(&event(body("wrong")).send(wrong.public())));

    let nobody = start(&nats, "");
    nobody.wait_for_log("the server refuses the login");

    // It may connect, and not publish: told at once, and not at the deadline.
    let shy = start(&nats, "timeout = \"25s\"\nusername = \"shy\"\npassword = { value = \"shy-password\" }");
    ready(&shy, 200);
    let begun = Instant::now();
    assert!(refused_for_now(&event(body("shy")).send(shy.public())));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    shy.wait_for_log("the server forbids publishing to hooks.shop");

    let tokens = Nats::start_with("authorization { token: right-token }");
    Reader::with(&json!({ "servers": tokens.url(), "token": "right-token" })).create(&json!({}));
    let by_token = start(&tokens, "token = { value = \"right-token\" }");
    ready(&by_token, 200);
    assert_eq!(event(body("token")).send(by_token.public()).status, 202);

    for gateway in [&right, &by_key, &wrong, &nobody, &shy, &by_token] {
        let log = gateway.log_text();
        for secret in ["right-password", "wrong-password", "shy-password", "right-token", &seed] {
            assert!(!log.contains(secret), "{log}");
        }
    }
    assert_once(&reader.read(), &[body("password"), body("key")]);
}

#[test]
fn with_tls_the_server_must_be_the_one_that_is_meant() {
    let folder = Folder::new();
    let authority = Authority::new(&folder, "broker");
    let stranger = Authority::new(&folder, "stranger");
    let pair = authority.server("nats", "DNS:broker.internal,IP:127.0.0.1");
    let client = authority.client("gateway", "DNS:gateway.internal");
    let tls = |more: &str| {
        format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\"{more} }}",
            pair.certificate.display(),
            pair.key.display(),
            authority.pem().display()
        )
    };
    let nats = Nats::start_with(&tls(", verify: true"));
    let url = nats.url().replace("nats://", "tls://");
    let trusting = |ca: &Authority, more: &str| {
        let ca = ca.pem().display().to_string();
        let (certificate, key) = (client.certificate.display(), client.key.display());
        let keys = format!("tls = {{ ca = \"{ca}\", certificate = \"{certificate}\", private_key = \"{key}\"{more} }}");
        Gateway::start(&format!("{}{}", upstream(&url, &keys), source("")))
    };
    let good = trusting(&authority, "");
    good.wait_for_log("connected to NATS");
    ready(&good, 200);
    // Over TLS as well: there is no stream.
    assert!(refused_for_now(&event(body("one")).send(good.public())));
    good.wait_for_log("no stream takes the subject");
    let by_name = trusting(&authority, ", server_name = \"broker.internal\"");
    by_name.wait_for_log("connected to NATS");

    let unknown = trusting(&stranger, "");
    unknown.wait_for_log("UnknownIssuer");
    ready(&unknown, 503);
    let misnamed = trusting(&authority, ", server_name = \"other.internal\"");
    misnamed.wait_for_log("NATS cannot be reached");
    ready(&misnamed, 503);
    assert!(misnamed.log_text().contains("not valid for name"), "{}", misnamed.log_text());

    // In the clear to a server that wants TLS: the Mozilla roots do not know it.
    let clear = start(&nats, "");
    clear.wait_for_log("UnknownIssuer");
    // TLS to a server that has none: nothing is said in the clear.
    let plain = Nats::start();
    let keys = format!("tls = {{ ca = \"{}\" }}", authority.pem().display());
    let url = plain.url().replace("nats://", "tls://");
    let strict = Gateway::start(&format!("{}{}", upstream(&url, &keys), source("")));
    strict.wait_for_log("NATS cannot be reached");
    ready(&strict, 503);
}

#[test]
fn the_next_server_is_taken_when_one_is_gone() {
    let mut first = Nats::start();
    let second = Nats::start();
    let mut readers = [Reader::of(&first), Reader::of(&second)];
    readers.iter_mut().for_each(|reader| reader.create(&json!({})));
    let urls = format!(
        "\n[upstreams.stream]\nkind = \"nats\"\nurls = [\"{}\", \"{}\"]\nformat = \"cloudevents\"\n",
        first.url(),
        second.url()
    );
    let gateway = Gateway::start(&format!("{urls}{}", source("")));
    ready(&gateway, 200);
    send_all(gateway.public(), &[b"{\"n\": 1.50}".to_vec()], 1, Duration::ZERO);
    let messages = readers[0].read();
    let event: Value = serde_json::from_slice(&messages[0].data).expect("JSON");
    assert_eq!(messages[0].headers["content-type"], "application/cloudevents+json");
    assert_eq!((&event["specversion"], &event["source"]), (&json!("1.0"), &json!("/shop")));
    first.kill();
    send_all(gateway.public(), &[b"{\"n\": 2}".to_vec()], 1, Duration::from_secs(10));
    assert_eq!(readers[1].count(), 1);
}

#[test]
fn a_destination_that_a_reload_replaced_leaves_no_connection() {
    let port = free_port();
    let nats = Nats::start_with(&format!("http: \"127.0.0.1:{port}\""));
    Reader::of(&nats).create(&json!({}));
    let connections = || {
        let answer = Request::new("GET", "/connz").send(SocketAddr::from(([127, 0, 0, 1], port)));
        let told: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let named = |connection: &&Value| connection["name"] == "hookward";
        told["connections"].as_array().map_or(0, |all| all.iter().filter(named).count())
    };
    let configuration =
        |timeout: &str| format!("{PLAIN}{}{}", upstream(&nats.url(), &format!("timeout = \"{timeout}\"")), source(""));
    let mut gateway = Gateway::start_in(Arc::new(Folder::new()), &configuration("1s"));
    eventually("it is connected", || (connections() == 1).then_some(()));
    for timeout in ["2s", "3s", "4s"] {
        assert!(gateway.reload(&configuration(timeout)));
        // The new one is waited for, and nobody is sent away.
        assert_eq!(event(body(timeout)).send(gateway.public()).status, 202);
    }
    eventually("the old ones are gone", || (connections() == 1).then_some(()));
    // The same configuration keeps its connection.
    assert!(gateway.reload(&configuration("4s")));
    assert_eq!(gateway.log_text().matches("connected to NATS").count(), 4);
}
