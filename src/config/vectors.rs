//! Recorded and published deliveries of real providers, judged at the time each was made for by the presets, which are
//! loaded the way that users load them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use super::{Loaded, Severity, load};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::gateway::source::{OnReplay, Settings};
use crate::refusal::Refusal;
use crate::verify::{Reply, Verified};

/// Loads a text from a folder of its own, without any environment.
pub(super) fn loaded(text: &str) -> Loaded {
    let folder = Folder::new();
    let file = folder.0.join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    load(&file, &|_| None)
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hookward-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is a small file among temporary ones.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The one source of a configuration that names a preset and secrets, and `more` of the source's own keys.
fn source(provider: &str, secrets: &[&str], more: &str) -> Settings {
    // TOML's own spelling, whatever characters a secret has.
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let secrets: Vec<_> = secrets.iter().map(|secret| format!("{{ value = {} }}", quoted(secret))).collect();
    let text = format!(
        "[listeners.public]\naddress = \"127.0.0.1:0\"\n\
         [upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n\
         [sources.it]\npath = \"/in\"\nupstream = \"app\"\nprovider = {}\nsecrets = [{}]\n{more}\n",
        quoted(provider),
        secrets.join(", ")
    );
    let Loaded { config, problems, .. } = loaded(&text);
    let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{provider}: {errors:?}");
    config.unwrap().plan.sources.pop().unwrap()
}

/// How many of a file's vectors are accepted, refused and answered as challenges.
type Counts = (usize, usize, usize);

fn run(file: &str, provider: &str) -> Counts {
    let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
    let mut counts = (0, 0, 0);
    for vector in &vectors {
        let name = vector["id"].as_str().unwrap();
        let source = source(provider, &secrets(&vector["config"]), &tolerance(&vector["config"]));
        let now = UnixMillis::from_secs(vector["now_unix"].as_u64().unwrap());
        let judged = source.verifier.judge(delivery(&vector["request"]), now, &NoLibrary);
        match (vector["expect"].as_str().unwrap(), judged) {
            ("accept", Ok(verified)) => {
                assert_eq!(verified.challenge(), None, "{name}");
                assert!(!verified.replay_keys().is_empty(), "{name}");
                assert_names(name, &verified, &vector["meta"]);
                counts.0 += 1;
            }
            ("reject", Err(refused)) => {
                assert_eq!(Some(refused.refusal), expected_refusal(vector["reason"].as_str().unwrap()), "{name}");
                counts.1 += 1;
            }
            ("challenge", Ok(verified)) => {
                assert_reply(name, verified.challenge(), &vector["expected_response"]);
                counts.2 += 1;
            }
            (expected, judged) => panic!("{name}: expected {expected}, got {judged:?}"),
        }
    }
    assert_eq!(counts.0 + counts.1 + counts.2, vectors.len());
    counts
}

fn secrets(config: &Value) -> Vec<&str> {
    match (&config["secrets"], &config["public_key"], &config["signing"]["secret"]) {
        (Value::Array(secrets), _, _) => secrets.iter().map(|secret| secret.as_str().unwrap()).collect(),
        (_, Value::String(one), _) | (_, _, Value::String(one)) => vec![one],
        _ => panic!("no secret in {config}"),
    }
}

/// The line that sets what the vector states. Where it states that there is none, the largest that can be set.
fn tolerance(config: &Value) -> String {
    let names = ["/tolerance_s", "/tolerance_seconds", "/signing/tolerance_seconds"];
    match names.into_iter().find_map(|name| config.pointer(name)) {
        Some(Value::Null) => "verify.timestamp.tolerance = \"1d\"".to_owned(),
        Some(seconds) => format!("verify.timestamp.tolerance = \"{}s\"", seconds.as_u64().unwrap()),
        None => String::new(),
    }
}

fn delivery(request: &Value) -> Delivery {
    let uri: Uri = request["url"].as_str().unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for header in request["headers"].as_array().unwrap() {
        let (name, value) = (header[0].as_str().unwrap(), header[1].as_str().unwrap());
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value.trim()).unwrap());
    }
    Delivery {
        method: Method::from_bytes(request["method"].as_str().unwrap().as_bytes()).unwrap(),
        scheme: "https",
        authority: uri.authority().unwrap().to_string(),
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        headers,
        body: STANDARD.decode(request["body_base64"].as_str().unwrap()).unwrap().into(),
    }
}

fn expected_refusal(reason: &str) -> Option<Refusal> {
    Some(match reason {
        "missing_signature" => Refusal::MissingSignature,
        "malformed_signature" => Refusal::MalformedSignature,
        "bad_signature" | "wrong_secret" | "wrong_key" => Refusal::BadSignature,
        "missing_timestamp" => Refusal::MissingTimestamp,
        "malformed_timestamp" => Refusal::MalformedTimestamp,
        "stale_timestamp" | "future_timestamp" => Refusal::Stale,
        _ => return None,
    })
}

fn assert_names(name: &str, verified: &Verified, meta: &Value) {
    if let Some(id) = meta["replay_id"].as_str() {
        assert_eq!(verified.event_id(), Some(id), "{name}");
    }
    if let Some(event_type) = meta["event_type"].as_str() {
        assert_eq!(verified.event_type(), Some(event_type), "{name}");
    }
}

fn assert_reply(name: &str, reply: Option<&Reply>, expected: &Value) {
    let reply = reply.unwrap_or_else(|| panic!("{name}: not recognised"));
    assert_eq!(u64::from(reply.status.as_u16()), expected["status"].as_u64().unwrap(), "{name}");
    assert_eq!(reply.body, STANDARD.decode(expected["body_base64"].as_str().unwrap()).unwrap(), "{name}");
    let content_type = expected["headers"][0][1].as_str();
    assert_eq!(reply.content_type.as_ref().map(|value| value.to_str().unwrap()), content_type, "{name}");
}

macro_rules! vectors {
    ($file:literal) => {
        include_str!(concat!("../../tests/vectors/", $file, ".json"))
    };
}

#[test]
fn github_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("github"), "github"), (7, 9, 0));
}

#[test]
fn stripe_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("stripe"), "stripe"), (8, 11, 0));
}

#[test]
fn slack_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("slack"), "slack"), (5, 12, 0));
    assert_eq!(run(vectors!("hs_slack"), "slack"), (0, 2, 1));
}

#[test]
fn shopify_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("shopify"), "shopify"), (6, 5, 0));
}

#[test]
fn standard_webhooks_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("standard-webhooks"), "standard-webhooks"), (9, 13, 0));
}

#[test]
fn discord_agrees_with_its_vectors() {
    assert_eq!(run(vectors!("discord"), "discord"), (3, 7, 0));
    assert_eq!(run(vectors!("hs_discord"), "discord"), (0, 1, 1));
}

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);
const HMAC_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn preset(provider: &str) -> Settings {
    source(provider, &[if provider == "discord" { PUBLIC } else { HMAC_SECRET }], "")
}

/// A delivery to the preset as its provider would make it, judged `late` seconds after it was signed.
fn judged(
    provider: &str,
    body: &str,
    headers: &[(&'static str, &'static str)],
    late: u64,
) -> Result<Verified, Refusal> {
    let source = preset(provider);
    let draft = Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: None,
        headers: headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect(),
        body: body.to_owned().into(),
    };
    let private = crate::secret::Secret::new(SEED.into());
    let draft = source.verifier.sign(draft, "msg_1", NOW, Some(&private)).unwrap().delivery;
    let now = UnixMillis(NOW.0 + late * 1000);
    source.verifier.judge(draft, now, &NoLibrary).map_err(|refused| refused.refusal)
}

#[test]
fn every_preset_that_signs_a_time_allows_five_minutes() {
    for provider in ["stripe", "slack", "standard-webhooks", "discord"] {
        assert!(judged(provider, "{}", &[], 300).is_ok(), "{provider}");
        assert_eq!(judged(provider, "{}", &[], 301).err(), Some(Refusal::Stale), "{provider}");
    }
    for provider in ["github", "shopify"] {
        let verified = judged(provider, "{}", &[], 301).unwrap();
        assert_eq!(verified.signed_at(), None, "{provider}");
    }
}

#[test]
fn every_preset_finds_the_id_and_the_type_of_an_event_where_its_provider_writes_them() {
    let named = |provider, body, headers: &[_]| {
        let verified = judged(provider, body, headers, 0).unwrap();
        let id = verified.event_id().map(|id| (id.to_owned(), verified.event_id_is_signed()));
        (id, verified.event_type().map(str::to_owned))
    };
    let some = |id: &str, signed, event: &str| (Some((id.to_owned(), signed)), Some(event.to_owned()));

    assert_eq!(named("github", "{}", &[("x-github-event", "push")]), some("msg_1", false, "push"));
    assert_eq!(named("stripe", r#"{"id":"evt_1","type":"a.b"}"#, &[]), some("evt_1", true, "a.b"));
    assert_eq!(named("standard-webhooks", r#"{"type":"a.b"}"#, &[]), some("msg_1", true, "a.b"));
    assert_eq!(named("shopify", "{}", &[("x-shopify-topic", "orders/create")]), some("msg_1", false, "orders/create"));
    let unprefixed = [("shopify-topic", "orders/create"), ("shopify-webhook-id", "w-1")];
    assert_eq!(named("shopify", "{}", &unprefixed), some("w-1", false, "orders/create"));

    let event = r#"{"event_id":"Ev1","type":"event_callback","event":{"type":"app_mention"}}"#;
    assert_eq!(named("slack", event, &[]), some("Ev1", true, "app_mention"));
    assert_eq!(named("slack", r#"{"type":"block_actions"}"#, &[]), (None, Some("block_actions".to_owned())));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let command = "token=t&command=%2Fweather&text=94070";
    assert_eq!(named("slack", command, &form), (None, Some("/weather".to_owned())));

    assert_eq!(named("discord", r#"{"id":"1","type":2}"#, &[]), some("1", true, "2"));
    let webhook_event = r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#;
    assert_eq!(named("discord", webhook_event, &[]), (None, Some("APPLICATION_AUTHORIZED".to_owned())));
}

#[test]
fn a_discord_ping_is_answered_and_a_webhook_event_of_the_same_type_is_forwarded() {
    let answered = |body: &str| {
        let verified = judged("discord", body, &[], 0).unwrap();
        verified.challenge().map(|reply| (reply.status.as_u16(), reply.body.to_vec()))
    };
    assert_eq!(answered(r#"{"type":1}"#), Some((200, br#"{"type":1}"#.to_vec())));
    assert_eq!(answered(r#"{"type":0}"#), Some((204, Vec::new())));
    assert_eq!(answered(r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#), None);
}

#[test]
fn every_preset_answers_and_treats_copies_as_its_provider_wants() {
    for (provider, on_replay, acknowledge, max_body) in [
        ("github", OnReplay::Acknowledge, 202, 25 << 20),
        ("stripe", OnReplay::Reject, 202, 1 << 20),
        ("slack", OnReplay::Reject, 200, 1 << 20),
        ("shopify", OnReplay::Acknowledge, 200, 1 << 20),
        ("standard-webhooks", OnReplay::Reject, 202, 1 << 20),
        ("discord", OnReplay::Acknowledge, 204, 1 << 20),
    ] {
        let source = preset(provider);
        assert_eq!(source.on_replay, on_replay, "{provider}");
        assert_eq!(source.acknowledge.status.as_u16(), acknowledge, "{provider}");
        assert_eq!((source.acknowledge.body.len(), source.max_body), (0, max_body), "{provider}");
        assert_eq!(source.methods, [Method::POST], "{provider}");
        let window = (source.replay_window, source.dedupe_window);
        assert_eq!(window, (Duration::from_secs(86_400), Duration::from_secs(86_400)), "{provider}");
        assert!(source.verifier.has_replay_keys(), "{provider}");
    }
}
