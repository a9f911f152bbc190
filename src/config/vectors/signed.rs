//! What `sign` makes for a preset, the preset accepts; and of what its signature covers, no byte can be another.
//! A checker that shares no code with us (tests/peers/reference) judges the signed requests too.

use std::path::Path;
use std::process::Command;

use crate::fields::Fields;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::{Folder, loaded, quoted};
use crate::clock::UnixMillis;
use crate::config::{Loaded, Severity};
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::gateway::source::Settings;
use crate::refusal::Refusal;
use crate::verify::Coverage;

const PRESETS: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/presets.rs"));

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);
/// Hexadecimal, base64 and text at once, so that any preset can read it.
const SECRET: &str = "5d6f4f34d8cd4b1a9c7e2f0a1b3c5d7e9f0a1b2c3d4e5f60718293a4b5c6d7e8";
/// With items, for the one preset that wants them.
const BODY: &str = r#"{"id":"evt_1","note":"é/x","notificationItems":[{"NotificationRequestItem":{"pspReference":"1","amount":{"value":5,"currency":"EUR"}}},{"NotificationRequestItem":{"pspReference":"2"}}]}"#;

/// The presets that prove themselves by a shared secret, and what their files say of the body.
fn shared_secret_presets() -> Vec<(String, toml::Table)> {
    let is_ours = |table: &toml::Table| {
        let algorithm = table.get("verify").and_then(|verify| verify.get("algorithm")?.as_str());
        let by_secret = algorithm.is_some_and(|name| name.starts_with("hmac-") || name.starts_with("sha"));
        let by_token = ["token", "basic"].iter().any(|name| table.contains_key(*name));
        (by_secret || by_token) && !table.contains_key("jwt")
    };
    let texts = PRESETS.iter().map(|(name, text)| ((*name).to_owned(), text.parse().expect("a preset is TOML")));
    texts.filter(|(_, table)| is_ours(table)).collect()
}

fn secret(preset: &toml::Table) -> String {
    if preset.contains_key("basic") { format!("hook:{SECRET}") } else { SECRET.to_owned() }
}

fn source(name: &str, preset: &toml::Table) -> Settings {
    let text = format!(
        "[listeners.public]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n\
         [sources.it]\npath = \"/in\"\nupstream = \"app\"\nprovider = {}\n\
         secrets = [{{ value = {}, id = \"key-1\" }}]\npublic_url = \"https://hooks.example.com/in\"\n",
        quoted(name),
        quoted(&secret(preset)),
    );
    let Loaded { config, problems, .. } = loaded(&text);
    let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{name}: {errors:?}");
    config.unwrap().plan.sources.pop().unwrap()
}

fn signed(source: &Settings) -> Delivery {
    let mut headers = Fields::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("x-event-type", HeaderValue::from_static("made"));
    let draft = Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: None,
        headers,
        body: Bytes::from_static(BODY.as_bytes()),
    };
    source.verifier.sign(draft, "msg_1", NOW, None).expect("a shared secret signs").delivery
}

fn refusal(source: &Settings, delivery: Delivery) -> Option<Refusal> {
    source.verifier.judge(delivery, NOW, &NoLibrary).err().map(|refused| refused.refusal)
}

#[test]
fn what_is_signed_for_a_preset_is_accepted_and_of_what_is_covered_no_byte_can_be_another() {
    let presets = shared_secret_presets();
    assert!(presets.len() >= 136, "{}", presets.len());
    let mut written: Vec<Value> = Vec::new();
    for (name, preset) in &presets {
        let source = source(name, preset);
        let delivery = signed(&source);
        assert_eq!(refusal(&source, delivery.clone()), None, "{name}");
        written.push(as_vector(name, &secret(preset), &delivery));
        assert_ne!(
            refusal(&source, Delivery { headers: Fields::new(), body: Bytes::new(), query: None, ..delivery.clone() }),
            None,
            "{name}"
        );

        if source.verifier.coverage() == Coverage::Whole {
            for position in 0..delivery.body.len() {
                let mut body = delivery.body.to_vec();
                body[position] ^= 1;
                let changed = Delivery { body: body.into(), ..delivery.clone() };
                assert_ne!(refusal(&source, changed), None, "{name}: byte {position} of the body");
            }
        }
        for (header, value) in proof_headers(&delivery) {
            for position in 0..value.len() {
                let mut bytes = value.clone();
                bytes[position] ^= 1;
                let Ok(changed) = HeaderValue::from_bytes(&bytes) else { continue };
                let mut delivery = delivery.clone();
                delivery.headers.insert(&header, changed);
                assert_ne!(refusal(&source, delivery), None, "{name}: byte {position} of {header}");
            }
        }
    }
    agrees_with_the_reference(&written);
}

/// Reads the same table of schemes that the vectors were made from; Python's standard library alone.
fn agrees_with_the_reference(signed: &[Value]) {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/reference");
    let table = reference.join("hmac-providers.json");
    let listed: Vec<Value> = serde_json::from_slice(&std::fs::read(&table).unwrap()).unwrap();
    let known: Vec<_> =
        signed.iter().filter(|vector| listed.iter().any(|provider| provider["id"] == vector["provider"])).collect();
    assert_eq!(known.len(), listed.len(), "every scheme of the table has a preset that signs");
    let folder = Folder::new();
    let file = folder.0.join("signed.json");
    std::fs::write(&file, serde_json::to_vec(&known).unwrap()).unwrap();
    let checked = Command::new("python3").arg(reference.join("check_hmac.py")).arg(&table).arg(&file).output();
    let checked = checked.expect("python3 is there");
    let told = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && told.contains(&format!("agree {}  disagree 0", known.len())), "{told}");
}

/// The headers that hold a signature, a time that is signed, or a credential.
fn proof_headers(delivery: &Delivery) -> Vec<(HeaderName, Vec<u8>)> {
    let proves = |name: &HeaderName| {
        let name = name.as_str();
        ["signature", "hmac", "-mac", "token", "timestamp", "webhook-auth", "vapi-secret", "authorization"]
            .iter()
            .any(|word| name.contains(word))
            // Counted by the provider, and signed by nobody.
            && !name.contains("idempotency")
    };
    let headers = delivery.headers.iter().filter(|(name, _)| proves(name));
    headers.map(|(name, value)| (name.clone(), value.as_bytes().to_vec())).collect()
}

fn as_vector(name: &str, secret: &str, delivery: &Delivery) -> Value {
    let headers: Vec<_> = delivery
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let query = delivery.query.as_deref().map(|query| format!("?{query}")).unwrap_or_default();
    json!({
        "id": format!("{name}/signed"),
        "provider": name.replace('-', "_"),
        "config": { "secrets": [secret], "public_key": "key-1" },
        "request": {
            "method": delivery.method.as_str(),
            "url": format!("https://hooks.example.com/in{query}"),
            "headers": headers,
            "body_base64": STANDARD.encode(&delivery.body),
        },
        "now_unix": NOW.as_secs(),
        "expect": "accept",
    })
}

#[test]
fn a_preset_says_of_the_body_what_its_signature_covers() {
    for (name, preset) in &shared_secret_presets() {
        let said = preset.get("body").and_then(|body| body.as_str()).unwrap_or_default();
        let allowed: &[&str] = match source(name, preset).verifier.coverage() {
            Coverage::Whole => &["authenticated"],
            // Of the fields that are signed none may be the event itself.
            Coverage::Partly => &["partly", "not"],
            Coverage::Nothing => &["not"],
        };
        assert!(allowed.contains(&said), "{name} says {said:?}, not one of {allowed:?}");
    }
}
