//! The providers' own libraries accept what the gateway accepts: as senders in front of it, as receivers behind it.

use crate::support::gateway::{Folder, hookward};
use crate::support::{Gateway, Request, sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Where tests/run installs the libraries: a Python environment and node_modules.
fn peers() -> PathBuf {
    let folder = std::env::var_os("HOOKWARD_PEERS");
    PathBuf::from(folder.expect("HOOKWARD_PEERS is not set: run tests/run, which installs the providers' libraries"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Python,
    Node,
}

use Language::{Node, Python};

impl Language {
    fn name(self) -> &'static str {
        match self {
            Python => "python",
            Node => "node",
        }
    }

    fn start(self, python: &str, node: &str, argument: &str) -> Peer {
        let peers = peers();
        let mut command = match self {
            Python => {
                let mut command = Command::new(peers.join("venv/bin/python"));
                command.args(["-c", python, argument]);
                command
            }
            // Given as text, it finds its imports from the folder where node_modules is.
            Node => {
                let mut command = Command::new("node");
                command.args(["--input-type=module", "--eval", node, "--", argument]);
                command
            }
        };
        let spawned = command.current_dir(&peers).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child =
            spawned.unwrap_or_else(|error| panic!("{self:?} in {}: {error}; run tests/run", peers.display()));
        let (jobs, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Peer { child, jobs, answers: BufReader::new(answers) }
    }

    fn sender(self) -> Peer {
        self.start(include_str!("../peers/send.py"), include_str!("../peers/send.mjs"), "")
    }
}

/// A program with a provider's library in it, ended with the value.
struct Peer {
    child: Child,
    jobs: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the peer speaks UTF-8");
        assert!(line.ends_with('\n'), "the peer ended: {line:?}; was it installed? run tests/run");
        line
    }

    /// Has one webhook signed and posted; the status and body of what came back.
    fn send(&mut self, job: &Value) -> (u16, String) {
        writeln!(self.jobs, "{job}").expect("the peer listens");
        let answer: Value = serde_json::from_str(&self.line()).expect("an answer in JSON");
        let status = answer["status"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status");
        (status, answer["body"].as_str().expect("a body").to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Receiver {
    language: Language,
    address: SocketAddr,
    _peer: Peer,
}

impl Receiver {
    fn start(language: Language, provider: &str, secret: &str) -> Self {
        let secrets = json!({ provider: secret }).to_string();
        let mut peer =
            language.start(include_str!("../peers/receive.py"), include_str!("../peers/receive.mjs"), &secrets);
        let port: u16 = peer.line().trim().parse().expect("a port");
        Self { language, address: SocketAddr::from(([127, 0, 0, 1], port)), _peer: peer }
    }

    fn table(&self) -> String {
        format!("\n[upstreams.{}]\nurls = [\"http://{}\"]\n", self.language.name(), self.address)
    }

    fn verified(&self, provider: &str) -> (u16, String) {
        (200, format!("verified by {provider} ({})", self.language.name()))
    }
}

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

struct Provider {
    name: &'static str,
    /// What the sender signs with, and what a stranger would.
    secret: &'static str,
    other: &'static str,
    /// What verifies: the same, but for public keys.
    public: &'static str,
    signs_time: bool,
    senders: &'static [Language],
    receivers: &'static [Language],
    headers: &'static [(&'static str, &'static str)],
    bodies: &'static [(&'static str, &'static str)],
}

const GITHUB: Provider = Provider {
    name: "github",
    secret: "It's a Secret to Everybody",
    other: "It's a Secret to Nobody",
    public: "It's a Secret to Everybody",
    signs_time: false,
    senders: &[Node],
    receivers: &[Node, Python],
    headers: &[("X-GitHub-Event", "push")],
    bodies: &[
        (JSON, r#"{"ref":"refs/heads/main","forced":false}"#),
        (JSON, "{\"message\":\"Zoë — 你好 🎉\",\r\n \"escaped\":\"\\u00e9\\/\"}\n"),
        (FORM, "payload=%7B%22zen%22%3A%22Keep+it+logically+awesome.%22%7D"),
        (JSON, "{}"),
    ],
};

const STRIPE: Provider = Provider {
    name: "stripe",
    secret: "whsec_test_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",
    other: "whsec_test_another",
    public: "whsec_test_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",
    signs_time: true,
    senders: &[Node, Python],
    receivers: &[Node, Python],
    headers: &[],
    bodies: &[
        (JSON, r#"{"id":"evt_1","object":"event","type":"invoice.paid"}"#),
        (JSON, "{\r\n  \"id\": \"evt_2\",\n  \"object\": \"event\", \"name\": \"Zoë — 你好 🎉 \\u00e9\"\n}\n"),
        (JSON, r#"{"object":"event"}"#),
    ],
};

const SLACK: Provider = Provider {
    name: "slack",
    secret: "8f742231b10e8888abcd99yyyzzz85a5",
    other: "00000000000000000000000000000000",
    public: "8f742231b10e8888abcd99yyyzzz85a5",
    signs_time: true,
    senders: &[Python],
    receivers: &[Node, Python],
    headers: &[("X-Slack-Retry-Num", "1"), ("X-Slack-Retry-Reason", "http_timeout")],
    bodies: &[
        (JSON, r#"{"type":"event_callback","event_id":"Ev1","event":{"type":"app_mention"}}"#),
        (JSON, "{\"type\":\"event_callback\",\"event_id\":\"Ev2\",\"text\":\"Zoë — 你好 🎉 \\/\"}"),
        (FORM, "command=%2Fweather&text=94070+%E2%9C%93&response_url=https%3A%2F%2Fhooks.slack.com%2F1%2F2&user=U1"),
        (FORM, "payload=%7B%22type%22%3A%22block_actions%22%7D"),
        (JSON, "{}"),
        (FORM, ""),
    ],
};

const SHOPIFY: Provider = Provider {
    name: "shopify",
    secret: "hush-this-is-a-client-secret",
    other: "hush-this-is-another-secret",
    public: "hush-this-is-a-client-secret",
    signs_time: false,
    senders: &[Node],
    receivers: &[Node],
    headers: &[
        ("X-Shopify-Topic", "orders/create"),
        ("X-Shopify-Shop-Domain", "example.myshopify.com"),
        ("X-Shopify-API-Version", "2026-07"),
        ("X-Shopify-Triggered-At", "2026-03-29T18:00:27.877041743Z"),
    ],
    bodies: &[
        (JSON, r#"{"id":820982911946154508,"total_price":"404.95"}"#),
        (JSON, "{\"note\":\"Zoë — 你好 🎉 \\u00e9\\/\"}\r\n"),
        (JSON, "{}"),
    ],
};

const STANDARD_WEBHOOKS: Provider = Provider {
    name: "standard-webhooks",
    secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    other: "whsec_hWSpv+Ae679FTw4lhkjLX0WMQnq+KnI1",
    public: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    signs_time: true,
    senders: &[Node, Python],
    receivers: &[Node, Python],
    headers: &[],
    bodies: &[
        (JSON, r#"{"type":"contact.created","data":{"id":"1f81eb52"}}"#),
        (JSON, "{\"type\":\"contact.renamed\",\"name\":\"Zoë — 你好 🎉 \\u00e9\"}\r\n"),
        ("text/plain", "not JSON: ✓"),
        (JSON, "{}"),
        (JSON, ""),
    ],
};

const DISCORD: Provider = Provider {
    name: "discord",
    secret: "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    other: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    public: "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    signs_time: true,
    senders: &[Python],
    receivers: &[Node, Python],
    headers: &[],
    bodies: &[
        (JSON, r#"{"id":"1412345678901234567","type":2,"data":{"name":"ping"}}"#),
        (JSON, "{\"id\":\"2\",\"type\":2,\"data\":{\"name\":\"grüße 日本語 😀 \\u00e9\"}}\n"),
        (JSON, r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#),
        (JSON, "{}"),
    ],
};

/// Where a job differs from an honest one.
#[derive(Default)]
struct Forgery {
    secret: Option<&'static str>,
    appended: &'static str,
    seconds_off: i64,
}

impl Provider {
    fn source(&self, name: &str, upstream: &str, upstream_path: &str) -> String {
        format!(
            "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"{}\"\nsecrets = [{{ value = \"{}\" }}]\n\
             upstream = \"{upstream}\"\nupstream_path = \"/{upstream_path}\"\n",
            self.name, self.public
        )
    }

    /// One delivery, number `number` of the test.
    fn job(&self, to: SocketAddr, path: &str, number: usize, forgery: &Forgery) -> Value {
        let (content_type, body) = self.bodies[number % self.bodies.len()];
        let mut headers = serde_json::Map::from_iter([("Content-Type".to_owned(), json!(content_type))]);
        headers.extend(self.headers.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        // The header for an id, where the sender makes it and no library does.
        let id = match self.name {
            "github" => Some("X-GitHub-Delivery"),
            "shopify" => Some("X-Shopify-Webhook-Id"),
            _ => None,
        };
        headers.extend(id.map(|name| (name.to_owned(), json!(format!("id-{number}")))));
        json!({
            "provider": self.name,
            "url": format!("http://{to}/{path}"),
            "secret": forgery.secret.unwrap_or(self.secret),
            "time": sign::now().checked_add_signed(forgery.seconds_off).expect("after 1970"),
            "id": format!("msg_{number}"),
            "headers": headers,
            "sign": STANDARD.encode(body),
            "send": STANDARD.encode(format!("{body}{}", forgery.appended)),
        })
    }

    /// Genuine ones pass and are verified again behind; what a stranger makes of them does not get there.
    fn is_proven_before_and_behind(&self) {
        let receivers: Vec<_> =
            self.receivers.iter().map(|language| Receiver::start(*language, self.name, self.public)).collect();
        let name = |sender: Language, receiver: &Receiver| format!("{}-{}", sender.name(), receiver.language.name());
        let mut configuration = String::new();
        for receiver in &receivers {
            configuration.push_str(&receiver.table());
            for sender in self.senders {
                let source = self.source(&name(*sender, receiver), receiver.language.name(), self.name);
                configuration.push_str(&source);
            }
        }
        let gateway = Gateway::start(&configuration);
        assert!(!self.senders.is_empty() && !receivers.is_empty() && self.bodies.len() >= 3);
        for language in self.senders {
            let mut sender = language.sender();
            for receiver in &receivers {
                let source = name(*language, receiver);
                let mut deliver =
                    |to, path: &str, number, forgery: Forgery| sender.send(&self.job(to, path, number, &forgery));
                for number in 0..self.bodies.len() {
                    let answer = deliver(gateway.public(), &source, number, Forgery::default());
                    assert_eq!(answer, receiver.verified(self.name), "{source} {number}");
                }
                let stranger = || Forgery { secret: Some(self.other), ..Forgery::default() };
                let changed = || Forgery { appended: "\n", ..Forgery::default() };
                for number in 0..self.bodies.len() {
                    assert_eq!(deliver(gateway.public(), &source, number, stranger()).0, 401, "{source} {number}");
                    assert_eq!(deliver(gateway.public(), &source, number, changed()).0, 401, "{source} {number}");
                }
                // The receiver is one that can say no.
                let answer = deliver(receiver.address, self.name, 0, stranger());
                assert_eq!(answer.0, 400, "{source}: {}", answer.1);

                let late: &[i64] = if self.signs_time { &[-600, 600] } else { &[] };
                for seconds_off in late.iter().copied() {
                    let answer = deliver(gateway.public(), &source, 0, Forgery { seconds_off, ..Forgery::default() });
                    assert_eq!(answer.0, 401, "{source} {seconds_off}");
                }
                assert_eq!(gateway.outcome(&source, "accepted"), self.bodies.len() as u64, "{source}");
                assert_eq!(gateway.outcome(&source, "bad_signature"), 2 * self.bodies.len() as u64, "{source}");
                assert_eq!(gateway.outcome(&source, "stale"), late.len() as u64, "{source}");
            }
        }
    }

    /// Its libraries accept what `hookward sign` makes.
    fn is_imitated_by_sign(&self) {
        let folder = Folder::new();
        folder.write("key.hex", self.secret);
        let configuration =
            "[listeners.public]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:9\"]\n";
        folder.write("gateway.toml", format!("{configuration}{}", self.source("it", "app", "in")));
        for language in self.receivers {
            let receiver = Receiver::start(*language, self.name, self.public);
            for (number, (content_type, body)) in self.bodies.iter().enumerate() {
                folder.write("body", body);
                let mut arguments = vec!["sign", "--config", "gateway.toml", "--source", "it", "--body", "body"];
                if self.public != self.secret {
                    arguments.extend(["--private-key", "key.hex"]);
                }
                let (code, out, err) = hookward(&folder.0, &arguments);
                assert_eq!((code, err.as_str()), (0, ""), "{}", self.name);
                let proof: Vec<_> = out
                    .lines()
                    .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("not a header: {line}")))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                let mut request = Request::post(&format!("/{}", self.name), *body).headers(proof);
                for (name, value) in self.headers.iter().chain([&("Content-Type", *content_type)]) {
                    request = request.header(name, value);
                }
                let answer = request.send(receiver.address);
                assert_eq!((answer.status, answer.text()), receiver.verified(self.name), "{number}");
                // The same proof for another body is none.
                request.body.push(b'\n');
                assert_eq!(request.send(receiver.address).status, 400, "{} {number}", self.name);
            }
        }
    }
}

#[test]
fn what_octokit_signs_passes_and_octokit_and_gidgethub_verify_it_again() {
    GITHUB.is_proven_before_and_behind();
}

#[test]
fn what_the_stripe_libraries_sign_passes_and_they_verify_it_again() {
    STRIPE.is_proven_before_and_behind();
}

#[test]
fn what_the_slack_sdk_signs_passes_and_it_and_bolt_verify_it_again() {
    SLACK.is_proven_before_and_behind();
}

#[test]
fn what_the_shopify_library_signs_passes_and_it_verifies_it_again() {
    SHOPIFY.is_proven_before_and_behind();
}

#[test]
fn what_the_standard_webhooks_libraries_sign_passes_and_they_verify_it_again() {
    STANDARD_WEBHOOKS.is_proven_before_and_behind();
}

#[test]
fn what_discords_key_signs_passes_and_the_discord_libraries_verify_it_again() {
    DISCORD.is_proven_before_and_behind();
}

#[test]
fn the_providers_libraries_accept_what_hookward_sign_makes() {
    let providers = [&GITHUB, &STRIPE, &SLACK, &SHOPIFY, &STANDARD_WEBHOOKS, &DISCORD];
    std::thread::scope(|scope| {
        for provider in providers {
            scope.spawn(|| provider.is_imitated_by_sign());
        }
    });
}

/// Services behind the gateway then check one scheme, whoever sent, and no header of the sender's stands in its way.
#[test]
fn what_the_gateway_signs_for_an_upstream_is_verified_by_both_standard_webhooks_libraries() {
    let internal = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    for language in [Node, Python] {
        let receiver = Receiver::start(language, "standard-webhooks", internal);
        let unsigned = receiver.table().replace("[upstreams.", "[upstreams.unsigned-");
        let upstream = language.name();
        let gateway = Gateway::start(&format!(
            "{}sign = {{ secret = {{ value = \"{internal}\" }} }}\n{unsigned}{}{}{}",
            receiver.table(),
            GITHUB.source("github", upstream, "standard-webhooks"),
            STANDARD_WEBHOOKS.source("standard-webhooks", upstream, "standard-webhooks"),
            GITHUB.source("unsigned", &format!("unsigned-{upstream}"), "standard-webhooks"),
        ));
        let mut sender = Node.sender();
        for provider in [&GITHUB, &STANDARD_WEBHOOKS] {
            for number in 0..provider.bodies.len() {
                let job = provider.job(gateway.public(), provider.name, number, &Forgery::default());
                let answer = sender.send(&job);
                assert_eq!(answer, receiver.verified("standard-webhooks"), "{} {number}", provider.name);
            }
        }
        let job = GITHUB.job(gateway.public(), "unsigned", 0, &Forgery::default());
        assert_eq!(sender.send(&job).0, 400, "nothing was signed for this one");
    }
}
