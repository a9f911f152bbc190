//! Providers are data: those that come with hookward are listed as they are, and a user's own are added by a file.

use crate::support::gateway::{BINARY, Folder, hookward};
use crate::support::{Gateway, Request, Upstream, sign};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// A provider that no program knows, written by its user in ten lines.
const ACME: &str = "\
name = \"Acme Rockets\"
docs = \"https://acme.example/docs/webhooks\"
body = \"authenticated\"

[verify]
algorithm = \"hmac-sha256\"
signature = { header = \"X-Acme-Signature\", prefix = \"v1=\", encoding = \"hex\" }
message = \"{timestamp}.{body}\"
timestamp = { header = \"X-Acme-Timestamp\", unit = \"s\", tolerance = \"5m\" }
id = { json = \"/id\" }
event = { json = \"/type\" }
";

const SECRET: &str = "a-secret-of-acme-0123456789";

const SOURCE: &str = "
[sources.rockets]
path = \"/acme\"
provider = \"acme\"
secrets = [{ value = \"a-secret-of-acme-0123456789\" }]
upstream = \"app\"
";

const REST: &str =
    "[listeners.public]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n";

fn folder_with(provider: &str) -> Folder {
    let folder = Folder::new();
    folder.write("providers/acme.toml", provider);
    folder.write("gateway.toml", format!("provider_files = \"providers\"\n{REST}{SOURCE}"));
    folder
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_provider_is_added_by_one_file_and_its_vectors() {
    let upstream = Upstream::start();
    let folder = folder_with(ACME);
    let (code, out, err) = hookward(&folder.0, &["check", "--strict"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");

    // Listed and shown beside those that come with the program.
    let (code, out, _) = hookward(&folder.0, &["providers"]);
    assert_eq!(code, 0);
    assert!(lines(&out).iter().any(|line| line.starts_with("acme ") && line.contains("hmac-sha256")), "{out}");
    assert!(lines(&out).iter().any(|line| line.starts_with("github ")), "{out}");
    let (code, out, _) = hookward(&folder.0, &["providers", "show", "acme"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("acme: Acme Rockets\n"), "{out}");
    assert!(out.contains("https://acme.example/docs/webhooks") && out.ends_with(ACME), "{out}");

    // Its vectors, signed by code that is not hookward's, each answered as it says.
    let text =
        format!("provider_files = \"providers\"\n{}\n{}{SOURCE}", crate::support::gateway::PLAIN, upstream.table());
    let folder = Arc::new(folder);
    let gateway = Gateway::start_in(folder.clone(), &text);
    let now = sign::now();
    let body = "{\"id\":\"r-1\",\"type\":\"rocket.launched\"}";
    let mac = |secret: &str, time: u64, body: &str| {
        let message = format!("{time}.{body}");
        format!("v1={}", hex::encode(sign::hmac_sha256(secret.as_bytes(), &[message.as_bytes()])))
    };
    let genuine = mac(SECRET, now, body);
    let vectors = serde_json::json!([
        { "name": "genuine", "time": now, "signature": genuine, "body": body, "status": 200 },
        { "name": "another body", "time": now, "signature": genuine, "body": "{\"id\":\"r-2\"}", "status": 401 },
        { "name": "another secret", "time": now, "signature": mac("another", now, body), "body": body, "status": 401 },
        { "name": "no prefix", "time": now, "signature": &genuine[3..], "body": body, "status": 401 },
        { "name": "stale", "time": now - 400, "signature": mac(SECRET, now - 400, body), "body": body, "status": 401 },
        { "name": "again", "time": now, "signature": genuine, "body": body, "status": 202 },
    ]);
    folder.write("acme-vectors.json", vectors.to_string());
    let vectors: Vec<Value> =
        serde_json::from_slice(&std::fs::read(folder.path("acme-vectors.json")).unwrap()).unwrap();
    for vector in &vectors {
        let text = |key: &str| vector[key].as_str().unwrap().to_owned();
        let answer = Request::post("/acme", text("body"))
            .header("X-Acme-Timestamp", vector["time"].to_string())
            .header("X-Acme-Signature", text("signature"))
            .send(gateway.public());
        assert_eq!(u64::from(answer.status), vector["status"].as_u64().unwrap(), "{}", text("name"));
    }
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.header("x-hookward-verified").as_deref(), Some("acme"));
    assert_eq!(received.header("x-hookward-event-id").as_deref(), Some("r-1"));
    assert_eq!(received.header("x-hookward-event-type").as_deref(), Some("rocket.launched"));

    // And the program itself sends as the provider does.
    folder.write("body.json", "{\"id\":\"r-9\",\"type\":\"rocket.landed\"}");
    let to = format!("http://{}", gateway.public());
    let sent = Command::new(BINARY)
        .current_dir(&folder.0)
        .args(["send", "--source", "rockets", "--to", &to, "--body", "body.json"])
        .output()
        .expect("the binary runs");
    assert!(sent.status.success(), "{sent:?}");
}

#[test]
fn a_reload_reads_the_files_of_providers_again() {
    let upstream = Upstream::start();
    let folder = Arc::new(folder_with(ACME));
    let text =
        format!("provider_files = \"providers\"\n{}\n{}{SOURCE}", crate::support::gateway::PLAIN, upstream.table());
    let mut gateway = Gateway::start_in(folder.clone(), &text);
    let to = gateway.public();
    let signed = |header: &str, id: &str| {
        let (now, body) = (sign::now(), format!("{{\"id\":\"{id}\"}}"));
        let message = format!("{now}.{body}");
        let mac = hex::encode(sign::hmac_sha256(SECRET.as_bytes(), &[message.as_bytes()]));
        Request::post("/acme", body)
            .header("X-Acme-Timestamp", now.to_string())
            .header(header, format!("v1={mac}"))
            .send(to)
            .status
    };
    assert_eq!((signed("X-Acme-Signature", "1"), signed("X-Acme-Proof", "2")), (200, 401));
    folder.write("providers/acme.toml", ACME.replace("X-Acme-Signature", "X-Acme-Proof"));
    assert!(gateway.reload(&text), "{}", gateway.log_text());
    assert_eq!((signed("X-Acme-Signature", "3"), signed("X-Acme-Proof", "4")), (401, 200));
}

#[test]
fn what_is_wrong_in_a_providers_file_is_told_with_file_and_line_whether_a_source_names_it_or_not() {
    let wrong = ACME.replace("algorithm = \"hmac-sha256\"", "algorithm = \"hmac-sha257\"").replace("id = {", "ids = {");
    for source in [
        SOURCE,
        "[sources.other]\npath = \"/o\"\nprovider = \"github\"\nupstream = \"app\"\nsecrets = [{ value = \"0123456789abcdef\" }]\n",
    ] {
        let folder = folder_with(&wrong);
        folder.write("gateway.toml", format!("provider_files = \"providers\"\n{REST}{source}"));
        let (code, _, err) = hookward(&folder.0, &["check"]);
        assert_eq!(code, 78, "{err}");
        let told: Vec<_> = lines(&err).into_iter().filter(|line| line.contains("error:")).collect();
        assert_eq!(told.len(), 2, "{err}");
        assert!(told[0].starts_with("providers/acme.toml:6: error: ") && told[0].contains("verify.algorithm"), "{err}");
        assert!(told[1].starts_with("providers/acme.toml:10: error: ") && told[1].contains("unknown key"), "{err}");
    }
}

#[test]
fn a_providers_file_names_no_secret_and_opens_no_door() {
    let folder = folder_with(&format!("danger_accept_unverified = true\nsecrets = [{{ value = \"x\" }}]\n{ACME}"));
    let (code, _, err) = hookward(&folder.0, &["check"]);
    assert_eq!(code, 78, "{err}");
    for (line, key) in [(1, "danger_accept_unverified"), (2, "secrets")] {
        let told = format!("providers/acme.toml:{line}: error: {key}: belongs to a source, and not to a provider");
        assert!(err.contains(&told), "{err}");
    }
}

#[test]
fn a_file_named_like_a_built_in_preset_takes_its_place_and_check_says_so() {
    let folder = Folder::new();
    folder.write("providers/github.toml", ACME);
    let source = SOURCE.replace("\"acme\"", "\"github\"");
    folder.write("gateway.toml", format!("provider_files = \"providers\"\n{REST}{source}"));
    let (code, _, err) = hookward(&folder.0, &["check"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("providers/github.toml: warning: takes the place of the preset \"github\""), "{err}");
    let (_, out, _) = hookward(&folder.0, &["providers", "show", "github"]);
    assert!(out.starts_with("github: Acme Rockets\n"), "{out}");
}

#[test]
fn a_folder_of_providers_that_is_not_there_is_an_error() {
    let folder = Folder::new();
    folder.write("gateway.toml", format!("provider_files = \"nowhere\"\n{REST}{SOURCE}"));
    for command in ["check", "providers"] {
        let (code, _, err) = hookward(&folder.0, &[command]);
        assert_eq!(code, 78, "{err}");
        assert!(err.contains("gateway.toml:1: error: provider_files: nowhere: "), "{err}");
    }
    // The twin: none is asked for, and none is missing.
    let (code, out, _) = hookward(&Folder::new().0, &["providers"]);
    assert_eq!(code, 0);
    assert!(out.contains("\nstripe "), "{out}");
}

#[test]
fn a_provider_is_found_by_its_name_and_by_its_header() {
    let folder = Folder::new();
    let found = |text: &str| {
        let (code, out, err) = hookward(&folder.0, &["providers", "search", text, "--json"]);
        let found: Vec<Value> = serde_json::from_str(&out).expect(&err);
        let names = found.iter().map(|provider| provider["preset"].as_str().expect("a name").to_owned());
        (code, names.collect::<Vec<_>>())
    };
    assert_eq!(found("GitHub").1.first().map(String::as_str), Some("github"));
    let (code, by_header) = found("x-hub-signature-256");
    assert!(code == 0 && by_header.contains(&"github".to_owned()), "{by_header:?}");
    assert_eq!(found("no such provider"), (1, Vec::new()));
    let (code, _, err) = hookward(&folder.0, &["providers", "show", "gihub"]);
    assert_eq!(code, 1);
    assert!(err.contains("did you mean \"github\"?"), "{err}");
}

#[test]
fn the_page_of_providers_is_what_the_program_prints() {
    let (code, out, err) = hookward(&Folder::new().0, &["providers", "list", "--markdown"]);
    assert_eq!(code, 0, "{err}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/providers.md");
    let page = std::fs::read_to_string(page).unwrap_or_default();
    assert!(page == out, "hookward providers list --markdown > docs/providers.md");
}

/// Of which one is the kind that a preset takes: text, hexadecimal and base64 at once; a login; public keys of Ed25519,
/// P-256, secp256k1 and RSA.
const KEYS: [&str; 6] = [
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "hooks:0123456789abcdef0123456789abcdef",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE6etFTWNW3Y1hPblLvRnlnEbxOSlU0yxM35Vn0xyuDyr477kJALIzKqiiBBtLKa3W1pjzYdvBfgF5e8rMc0MYog==",
    "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEhlwbPaLuajJ6lmu5bJRX7ymDTf3B9nEEjnQ/ZeL7Cq4c3NHVP8dD36RChubop38ZY3ZtgdtxjwljpDUC2AgYpw==",
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtJzHeOlwj0za6qXpbMFQWtuaaRiovLgxlx8NFrhBOG1Byvi6OrIQBONP \
    m7I9H+LrvcVyHo6h69g3O2YGyLFgFwasvOJfnAj7cA4rrXfgrr+U/+TUgzuK+VK5BRPmJ0efd3+a3UXP1LmO+1C1xcvEUAAml/iv \
    KVfwToZZdyqm8ShYfF7nnHW+5b7zjw1QPLPd4sJHFZ7SMDR+Ao+IBhdB05e6OF+eVOSz/LeJgswU7RLcpw4lus2Htv+mnAsYkHHp \
    AJhH4LoFbxvvr6iP2Lwvzf7ngm6ZQFMR955qLKhqUSbhSb9Q0yx+F4rWdP3EMAa7f3BxBEAjFc5+FMl0+v8LeQIDAQAB",
];

#[test]
fn the_source_that_providers_show_prints_loads_for_every_preset() {
    let folder = Folder::new();
    let (code, list, _) = hookward(&folder.0, &["providers", "list", "--json"]);
    assert_eq!(code, 0);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let presets: Vec<&str> =
        list.as_array().expect("an array").iter().filter_map(|one| one["preset"].as_str()).collect();
    assert!(presets.len() > 150, "{}", presets.len());
    let sources: Vec<String> = presets
        .iter()
        .map(|preset| {
            let (_, shown, _) = hookward(&folder.0, &["providers", "show", preset]);
            let from = shown.split("A source to begin with:\n").nth(1).expect("a source");
            from.split("The preset; what").next().unwrap_or_default().to_owned()
        })
        .collect();
    folder.write("gateway.toml", format!("{REST}{}", sources.concat()));
    // Each preset gets the next kind of key until one fits; what else is wrong is wrong with every kind.
    let mut kinds = vec![0; presets.len()];
    loop {
        let mut check = Command::new(BINARY);
        check.current_dir(&folder.0).args(["check", "--config", "gateway.toml"]).env("VERIFY_TOKEN", KEYS[0]);
        for (preset, kind) in presets.iter().zip(&kinds) {
            check.env(format!("{}_SECRET", preset.to_uppercase().replace('-', "_")), KEYS[*kind]);
        }
        let done = check.output().expect("the binary runs");
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        let errors: Vec<&str> = lines(&told).into_iter().filter(|line| line.contains(": error: ")).collect();
        if errors.is_empty() {
            assert_eq!(done.status.code(), Some(0), "{told}");
            return;
        }
        for (preset, kind) in presets.iter().zip(&mut kinds) {
            if errors.iter().any(|error| error.contains(&format!(" sources.{preset}.secrets: "))) {
                *kind += 1;
                assert!(*kind < KEYS.len(), "{preset} takes no key: {told}");
            }
        }
        let others: Vec<_> = errors.iter().filter(|error| !error.contains(".secrets: ")).collect();
        assert!(others.is_empty(), "{others:#?}");
    }
}
