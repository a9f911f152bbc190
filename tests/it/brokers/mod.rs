//! Webhooks become messages that a broker's own consumers take: what they get, once, and nothing that is a secret.
//! The stage: sources that sign as four providers do, bodies of every shape, and the consumers' Python.

mod amqp;
mod celery;
mod nats;
mod redis_streams;

use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Answer, Request, sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

pub(super) const SECRET: &str = "a-secret-of-some-length";
/// In every body: no log may have it.
pub(super) const MARK: &str = "payload-mark-5b1f";
/// What must not get onto a broker.
const TOKEN: &str = "a-telegram-token-that-is-secret";
const BEARER: &str = "Bearer somebodys-own-secret";
const COOKIE: &str = "session=cookie-that-is-secret";

/// Where tests/run installs the consumers' libraries.
pub(super) fn peers() -> PathBuf {
    let folder = std::env::var_os("HOOKWARD_PEERS");
    PathBuf::from(folder.expect("HOOKWARD_PEERS is not set: run tests/run, which installs the consumers' libraries"))
}

/// A program in Python, run to its end: what it printed.
pub(super) fn python(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(peers().join("venv/bin/python"));
    let done = command.args(["-c", program]).args(arguments).output().expect("tests/run installs Python's environment");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("UTF-8")
}

/// Listeners, sources at `/github`, `/standard`, `/stripe` and `/telegram` that publish to `to`, and what is given.
pub(super) fn configuration(to: &str, of_each_source: &str, rest: &str) -> String {
    let standard = format!("whsec_{}", STANDARD.encode(SECRET.repeat(2)));
    let sources = [("github", SECRET), ("standard", &*standard), ("stripe", SECRET), ("telegram", TOKEN)];
    let mut text = format!("{PLAIN}{rest}");
    for (name, secret) in sources {
        let provider = if name == "standard" { "standard-webhooks" } else { name };
        text.push_str(&format!(
            "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"{provider}\"\nsecrets = [{{ value = \"{secret}\" }}]\n\
             upstream = \"{to}\"\nmax_body = \"4MiB\"\n{of_each_source}\n"
        ));
    }
    text
}

pub(super) fn github(body: &[u8], event: &str, content_type: &str) -> Request {
    Request::post("/github", body)
        .header("X-Hub-Signature-256", sign::github(SECRET, body))
        .header("X-GitHub-Event", event)
        .header("Content-Type", content_type)
        .header("X-Odd", b"caf\xe9 \xff")
        .header("X-Twice", "one")
        .header("X-Twice", "two")
        .header("Cookie", COOKIE)
        .header("Authorization", BEARER)
}

/// As the `number`th of a crowd: another provider, body and content type for each.
pub(super) fn delivery(number: usize) -> Request {
    let (body, content_type) = body(number);
    let time = sign::now();
    match number % 4 {
        0 => github(&body, "push", content_type),
        1 => {
            let id = format!("msg_{number}");
            let signature = sign::standard_webhooks(SECRET.repeat(2).as_bytes(), &id, time, &body);
            let request = Request::post("/standard", body).header("webhook-id", id);
            let request = request.header("webhook-timestamp", time.to_string()).header("webhook-signature", signature);
            request.header("Content-Type", content_type)
        }
        2 => {
            let signature = sign::stripe(SECRET, time, &body);
            Request::post("/stripe", body).header("Stripe-Signature", signature).header("Content-Type", content_type)
        }
        _ => {
            let body = format!(r#"{{"update_id": {number}, "message": "{MARK}"}}"#);
            let request = Request::post("/telegram", body).header("X-Telegram-Bot-Api-Secret-Token", TOKEN);
            request.header("Content-Type", "application/json").header("Cookie", COOKIE)
        }
    }
}

/// Harmless ones, and those that would end a task or a worker that took them for data.
fn body(number: usize) -> (Vec<u8>, &'static str) {
    let json = |value: &str| format!("{{\"n\": {number}, \"mark\": \"{MARK}\",\n \"value\": {value}}}").into_bytes();
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let digits = |many: usize| "7".repeat(many);
    let value = match number / 4 % 24 {
        0 => "{\"a\": [1, 2.50, true, null]}".to_owned(),
        1 => return (format!("n={number}&mark={MARK}&a=%20+b").into_bytes(), "application/x-www-form-urlencoded"),
        2 => {
            let bytes: Vec<u8> = (0..=255).chain(format!("{number}{MARK}").bytes()).collect();
            return (bytes, "application/octet-stream");
        }
        3 => "\"été 日本 \u{1f980} \u{2028}\"".to_owned(),
        4 => "[12345678901234567890123, 50.750, -0, 1e400, 1E-400]".to_owned(),
        // The object around it is the first level.
        5 => nested(127),
        6 => nested(128),
        7 => nested(1000),
        8 => nested(100_000),
        9 => digits(4300),
        10 => digits(4301),
        11 => format!("[-{}, {}.5]", digits(5000), digits(5000)),
        12 => format!("{}.25e7", digits(5000)),
        13 => "NaN".to_owned(),
        14 => r#"["\ud800", "\udc00\ud800", "\u0000"]"#.to_owned(),
        15 => r#"{"a": 1, "a": 2, "": {"": 0}}"#.to_owned(),
        16 => r#"{"__type__": "uuid", "__value__": 1}"#.to_owned(),
        17 => r#"[{"__value__": "x", "\u005f_type__": ["datetime"]}]"#.to_owned(),
        18 => return (format!("\u{feff}{{\"n\": {number}, \"mark\": \"{MARK}\"}}").into_bytes(), "application/json"),
        19 => return (json("\"\u{0}\u{1}\""), "application/json; charset=utf-8"),
        20 => "[1,]".to_owned(),
        21 => return (format!("{number}, {MARK}, \u{0} and a text").into_bytes(), "text/plain"),
        22 => return ([json("0"), b"\xff".to_vec()].concat(), "application/vnd.a+json"),
        _ => format!("\"{}\"", "\\\"[{".repeat(2000)),
    };
    (json(&value), "application/json")
}

/// From eight senders at once, in the order of the deliveries.
pub(super) fn send_all(to: SocketAddr, deliveries: &[Request]) -> Vec<Answer> {
    let mut answers: BTreeMap<usize, Answer> = BTreeMap::new();
    thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|sender| {
                scope.spawn(move || {
                    let own = deliveries.iter().enumerate().skip(sender).step_by(8);
                    own.map(|(number, delivery)| (number, delivery.send(to))).collect::<Vec<_>>()
                })
            })
            .collect();
        for sender in senders {
            answers.extend(sender.join().expect("a sender"));
        }
    });
    answers.into_values().collect()
}

/// As a provider does: again until it is taken. How often it was sent.
pub(super) fn send_until_taken(to: SocketAddr, delivery: &Request) -> usize {
    for attempt in 1.. {
        match delivery.send(to).status {
            202 => return attempt,
            503 => thread::sleep(std::time::Duration::from_millis(20)),
            status => panic!("answered with {status}"),
        }
        assert!(attempt < 3000, "never taken");
    }
    unreachable!("it is taken or panics")
}

/// 503, and when to come again.
pub(super) fn refused_for_now(answer: &Answer) -> bool {
    answer.status == 503 && answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok())
}

/// Neither as it is nor within base64 (which it may stand in at three offsets).
pub(super) fn assert_no_secret(bytes: &[u8], whose: &str) {
    for secret in [TOKEN, BEARER, COOKIE, SECRET] {
        let mut forms = vec![secret.as_bytes().to_vec()];
        for offset in 0..3 {
            let text = STANDARD.encode([&vec![b'x'; offset], secret.as_bytes()].concat());
            // Without the groups that its neighbours are part of.
            forms.push(text.as_bytes()[4..text.len() - 4].to_vec());
        }
        for form in forms {
            let found = bytes.windows(form.len()).any(|window| window == form);
            assert!(!found, "{} is in {whose}", String::from_utf8_lossy(&form));
        }
    }
}

/// What a folder holds of a file, or nothing.
pub(super) fn read(folder: &Folder, name: &str) -> Vec<u8> {
    std::fs::read(folder.path(name)).unwrap_or_default()
}
