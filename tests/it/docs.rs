//! The pages say what the program does: every key, metric and label, and every example loads.

use crate::support::gateway::{BINARY, Folder, PLAIN};
use crate::support::{Gateway, Request, Upstream, sign};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// `include` is gone when the tables are read: it has no value of its own to print.
const NOT_A_SETTING: &str = "include";

/// A public key of Ed25519 (RFC 8032, section 7.1, test 1).
const PUBLIC_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
const OTHER_SECRET: &str = "0123456789abcdef0123456789abcdef";

pub(crate) fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

/// A folder with everything that the pages' examples name: certificates, revocation list, secrets.
pub(crate) fn stage(configuration: &str) -> Folder {
    let folder = Folder::new();
    folder.write("gateway.toml", configuration);
    let made = Command::new(BINARY).current_dir(&folder.0).arg("certs").output().expect("the binary runs");
    assert!(made.status.success(), "{made:?}");
    if configuration.contains("provider_files") {
        let own = page("docs/providers-own.md");
        let preset = own.split("```toml preset\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a preset");
        folder.write("providers/acme.toml", preset);
    }
    for name in ["crl-ca.pem", "crl.pem"] {
        folder.write(&format!("certs/{name}"), page(&format!("tests/configs/certs/{name}")));
    }
    for line in configuration.lines().filter(|line| !line.trim_start().starts_with('#')) {
        for name in named(line, "file = \"") {
            folder.write(&name, secret_of(&name));
        }
        for name in named(line, "credential = \"") {
            folder.write(&format!("credentials/{name}"), secret_of(&name));
        }
    }
    folder
}

/// What NATS' tools write for a user: a JWT, and the seed of its key.
const NATS_CREDENTIALS: &str = "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJKV1QifQ.e30.c2ln\n------END NATS USER JWT------\n\n\
     -----BEGIN USER NKEY SEED-----\nSUAGCIDUMVZXIIDLMV4SA33GEBSXMZLSPF2GQ2LOM4XHI33NNQXC4LTFOI\n------END USER NKEY SEED------\n";

/// One that reads as text, as hexadecimal and as base64.
fn secret_of(name: &str) -> String {
    if name.ends_with(".creds") {
        return NATS_CREDENTIALS.to_owned();
    }
    hex::encode(sign::hmac_sha256(b"a key", &[name.as_bytes()]))
}

/// Each NAME in `KEY = "NAME"`.
fn named(text: &str, key: &str) -> Vec<String> {
    text.split(key).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
}

pub(crate) fn check(folder: &Folder, arguments: &[&str]) -> (i32, String, String) {
    let text = std::fs::read_to_string(folder.path("gateway.toml")).expect("the configuration");
    let mut command = Command::new(BINARY);
    command.current_dir(&folder.0).args(["check", "--config", "gateway.toml"]).args(arguments);
    command.env("CREDENTIALS_DIRECTORY", folder.path("credentials"));
    for name in named(&text, "env = \"") {
        let value = match name.as_str() {
            name if name.ends_with("PUBLIC_KEY") => PUBLIC_KEY.to_owned(),
            name if name.starts_with("WHSEC_") => format!("whsec_{}", secret_of(name)),
            name if name.ends_with("AMQP_URL") => "amqp://hookward:a-password@localhost/hooks".to_owned(),
            name if name.ends_with("_URL") => "redis://hookward:a-password@localhost/0".to_owned(),
            // Each its own, as it should be.
            name => secret_of(name),
        };
        command.env(name, value);
    }
    let done = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (done.status.code().unwrap_or(-1), text(done.stdout), text(done.stderr))
}

/// What `check --effective` prints: the key with NAME for names and without positions, the value, and whether it is a
/// default.
fn effective(configuration: &str) -> Vec<(String, String, bool)> {
    let (code, out, err) = check(&stage(configuration), &["--effective"]);
    assert_eq!(code, 0, "{err}");
    let settings = out.lines().filter_map(|line| {
        let (setting, from) = line.rsplit_once("  # ")?;
        let (key, value) = setting.split_once(" = ")?;
        Some((general(key), value.to_owned(), from == "default"))
    });
    let settings: Vec<_> = settings.collect();
    assert!(settings.len() > 30, "{out}");
    settings
}

/// `sources.github.id[0].header` is the key `sources.NAME.id.header`.
fn general(key: &str) -> String {
    let mut parts: Vec<&str> = key.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect();
    if matches!(parts.first(), Some(&("listeners" | "upstreams" | "sources")))
        && let Some(name) = parts.get_mut(1)
    {
        *name = "NAME";
    }
    parts.join(".")
}

/// The page's tables: under a heading with a `[table]`, the keys in a row's first cell; and the cell of the default.
fn documented() -> BTreeMap<String, String> {
    let text = page("docs/configuration.md");
    let mut prefix = String::new();
    let mut keys = BTreeMap::new();
    let mut in_keys = false;
    for line in text.lines() {
        in_keys = line.starts_with('|') && (in_keys || line.starts_with("| key | type | default | range | "));
        if let Some(heading) = line.strip_prefix("## ") {
            let table = heading.strip_prefix("`[").and_then(|rest| rest.strip_suffix("]`"));
            prefix = table.map_or_else(String::new, |table| format!("{table}."));
        } else if in_keys && line.starts_with("| `") {
            let cells: Vec<&str> = line.split(" | ").collect();
            let default = cells.get(2).copied().unwrap_or_default();
            for key in code(cells.first().copied().unwrap_or_default()) {
                let twice = keys.insert(format!("{prefix}{key}"), default.to_owned());
                assert!(twice.is_none(), "{prefix}{key} stands there twice");
            }
        }
    }
    keys
}

/// What stands in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_configuration_page_has_every_key_and_no_other() {
    let settings = ["everything", "sparse", "shared", "shared-cluster", "shared-sentinels"]
        .map(|file| effective(&page(&format!("tests/configs/{file}.toml"))));
    let known: BTreeSet<String> = settings.into_iter().flatten().map(|(key, ..)| key).collect();
    let documented: BTreeSet<String> = documented().into_keys().filter(|key| key != NOT_A_SETTING).collect();
    let missing: Vec<_> = known.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&known).collect();
    assert!(missing.is_empty(), "not in docs/configuration.md: {missing:#?}");
    assert!(
        invented.is_empty(),
        "in docs/configuration.md, and unknown to check, or not in tests/configs/everything.toml: {invented:#?}"
    );
}

#[test]
fn the_configuration_page_says_every_default_as_check_prints_it() {
    let documented = documented();
    let mut wrong = String::new();
    let mut defaults = 0;
    let settings = ["sparse", "shared"].map(|file| effective(&page(&format!("tests/configs/{file}.toml"))));
    for (key, value, is_default) in settings.into_iter().flatten() {
        defaults += usize::from(is_default);
        let said = documented.get(&key).map(String::as_str).unwrap_or_default();
        if is_default && !code(said).any(|shown| shown == value) {
            let _ = writeln!(wrong, "{key}: the default is {value}, the page says {said}");
        }
    }
    assert!(defaults > 50, "{defaults}");
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_metric_and_every_outcome_is_in_the_readme_and_no_other() {
    let upstream = Upstream::start();
    let observed = "[sources.watched]\npath = \"/watched\"\nprovider = \"slack\"\nmode = \"observe\"\nexpect_every = \"1h\"\n\
                    secrets = [{ value = \"0123456789abcdef0123\" }]\nupstream = \"app\"\n";
    let kept = "[sources.kept]\npath = \"/kept\"\nprovider = \"github\"\ndelivery = \"inbox\"\nquarantine = true\n\
                  secrets = [{ value = \"abcdef0123456789abcd\" }]\nupstream = \"app\"\n";
    // Some metrics are there only where there is TLS.
    let secure = "[listeners.secure]\naddress = \"127.0.0.1:0\"\ntls.certificate = \"certs/dev/server.pem\"\n\
                  tls.private_key = \"certs/dev/server.key\"\n";
    let folder = Arc::new(stage(""));
    let stored = "[sources.stored]\npath = \"/stored\"\ndelivery = \"inbox\"\nupstream = \"app\"\n\
                  danger_accept_unverified = true\n";
    let gateway = Gateway::start_in(folder, &format!("{PLAIN}{}\n{observed}{secure}{stored}{kept}", upstream.table()));
    assert_eq!(Request::post("/stored", "{}").send(gateway.public()).status, 202);
    upstream.wait_for(1);
    // Requests that no source matched are counted from the first on.
    assert_eq!(Request::post("/nobody", "{}").send(gateway.public()).status, 404);
    let metrics = gateway.metrics();
    let readme = page("README.md");
    let said: BTreeSet<&str> = code(&readme).collect();

    let names: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("hookward_"))
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !said.contains(**name)).collect();
    assert!(missing.is_empty(), "metrics that README.md does not name: {missing:?}");
    let words = said.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let invented: Vec<_> = words.filter(|word| word.starts_with("hookward_") && !names.contains(word)).collect();
    assert!(invented.is_empty(), "metrics in README.md that are not there: {invented:?}");

    let outcomes: BTreeSet<String> = metrics
        .lines()
        .filter(|line| line.starts_with("hookward_deliveries_total"))
        .flat_map(|line| named(line, "outcome=\""))
        .collect();
    assert!(outcomes.len() > 30, "{outcomes:?}");
    let missing: Vec<_> = outcomes.iter().filter(|outcome| !said.contains(outcome.as_str())).collect();
    assert!(missing.is_empty(), "outcomes that README.md does not name: {missing:?}");
}

/// An example with what it leaves out, because the reader has it already.
fn completed(example: &str) -> String {
    let has = |table: &str| example.lines().any(|line| line.starts_with(table));
    let mut rest = String::new();
    if !has("[listeners.") {
        rest.push_str(
            "[listeners.public]\naddress = \"0.0.0.0:8443\"\ntls.certificate = \"certs/dev/server.pem\"\n\
             tls.private_key = \"certs/dev/server.key\"\ntls.client_ca = \"certs/dev/ca.pem\"\n",
        );
    }
    if !has("[state]") {
        rest.push_str("[state]\nkind = \"disk\"\n");
    }
    let own_upstream = example.split("[upstreams.").nth(1).and_then(|rest| rest.split([']', '.']).next());
    if own_upstream.is_none() {
        rest.push_str("[upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n");
    }
    if !has("[sources.") {
        let upstream = own_upstream.unwrap_or("app");
        let _ = write!(
            rest,
            "[sources.some]\npath = \"/some\"\nprovider = \"stripe\"\nsecrets = [{{ env = \"SOME_SECRET\" }}]\n\
             upstream = \"{upstream}\"\n"
        );
    }
    // A file's own keys stand before its first table, and so the rest behind the example.
    format!("{example}\n{rest}")
}

#[test]
fn every_example_of_the_pages_loads_without_a_warning() {
    let mut examples = 0;
    let mut wrong = String::new();
    for name in [
        "README.md",
        "docs/brokers.md",
        "docs/configuration.md",
        "docs/cookbook.md",
        "docs/many-gateways.md",
        "docs/providers-own.md",
        "docs/shared-state.md",
        "SECURITY.md",
    ] {
        let text = page(name);
        for (position, _) in text.match_indices("```toml\n") {
            let block = text[position + "```toml\n".len()..].split("```").next().unwrap_or_default();
            examples += 1;
            let folder = stage(&completed(block));
            folder.write("sources.d/later.toml", "");
            let (code, _, err) = check(&folder, &["--strict"]);
            if code != 0 {
                let line = text[..position].lines().count() + 1;
                let _ = writeln!(wrong, "{name}:{line}: {code}\n{err}\n");
            }
        }
    }
    assert!(examples > 15, "{examples}");
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_shipped_example_loads_without_a_warning() {
    let (code, _, err) = check(&stage(&page("gateway.example.toml")), &["--strict"]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn what_the_shipped_example_has_commented_out_loads_in_place_of_what_it_replaces() {
    let example =
        page("gateway.example.toml").replace("kind = \"disk\" ", "#").replace("path = \"hookward-state.db\"", "#");
    let is_key =
        |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c == '[' || c.is_ascii_lowercase());
    let uncommented = example.lines().map(|line| if is_key(line) { &line[1..] } else { line });
    let text = uncommented.collect::<Vec<_>>().join("\n").replace("upstream = \"app\"", "upstream = \"tasks\"");
    assert!(text.contains("\nkind = \"redis\"") && text.contains("\n[upstreams.tasks]"), "{text}");
    let (code, _, err) = check(&stage(&text), &[]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn the_readmes_first_source_takes_its_first_webhook_with_the_commands_that_stand_there() {
    let readme = page("README.md");
    let example = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let upstream = Upstream::start();
    let text = example
        .replace("0.0.0.0:8443", "127.0.0.1:0")
        .replace("127.0.0.1:9090", "127.0.0.1:0")
        .replace("127.0.0.1:9000", &upstream.address.to_string());
    let folder = Arc::new(stage(&text));
    let gateway = Gateway::start_with(folder.clone(), &format!("{text}\n[log]\nformat = \"json\"\n"), |command| {
        command.env("GITHUB_SECRET", OTHER_SECRET);
    });
    folder.write("body.json", "{\"zen\":\"Speak like a human.\"}\n");
    let to = format!("https://localhost:{}", gateway.public().port());
    let mut send = Command::new(BINARY);
    send.current_dir(&folder.0).env("GITHUB_SECRET", OTHER_SECRET);
    send.args(["send", "--source", "github", "--to", &to, "--cacert", "certs/dev/ca.pem", "--body", "body.json"]);
    let sent = send.output().expect("the binary runs");
    assert!(sent.status.success(), "{sent:?}");
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.body, b"{\"zen\":\"Speak like a human.\"}\n");
    assert_eq!(received.header("x-hookward-verified").as_deref(), Some("github"));
}

#[test]
fn the_pages_count_the_presets_and_their_vectors_as_they_are() {
    let list = Command::new(BINARY).args(["providers", "list", "--json"]).output().expect("the binary runs");
    let presets: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let presets = presets.as_array().expect("an array").len();
    let mut vectors = 0;
    for name in ["hmac-vectors.json", "asymmetric-vectors.json"] {
        let file: serde_json::Value = serde_json::from_str(&page(&format!("tests/vectors/{name}"))).expect("JSON");
        vectors += file.as_array().or_else(|| file["vectors"].as_array()).expect("an array of vectors").len();
    }
    for (name, said) in [
        ("README.md", format!("[{presets} presets](docs/providers.md)")),
        ("CHANGELOG.md", format!("{presets} providers and forms of providers")),
        ("CHANGELOG.md", format!("{},{:03} recorded requests", vectors / 1000, vectors % 1000)),
    ] {
        assert!(page(name).contains(&said), "{name} does not say: {said}");
    }
}

#[test]
fn every_link_of_the_pages_leads_to_a_file_and_a_heading() {
    let pages = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned);
    let folder = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).expect("docs");
    let docs = folder.map(|entry| format!("docs/{}", entry.expect("an entry").file_name().display()));
    let mut wrong = String::new();
    for name in pages.into_iter().chain(docs) {
        let text = page(&name);
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            if link.starts_with("https://") || link.starts_with("http://") || link.contains([' ', '`']) {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
            let target = if file.is_empty() { here } else { here.parent().expect("a folder").join(file) };
            let Ok(text) = std::fs::read_to_string(&target).or_else(|error| match target.is_dir() {
                true => Ok(String::new()),
                false => Err(error),
            }) else {
                let _ = writeln!(wrong, "{name}: {link}: there is no such file");
                continue;
            };
            let headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
            if !heading.is_empty() && !headings.into_iter().any(|known| known == heading) {
                let _ = writeln!(wrong, "{name}: {link}: there is no such heading");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn contributing_names_every_room_and_every_fuzz_target() {
    let contributing = page("CONTRIBUTING.md");
    let said: BTreeSet<&str> = code(&contributing).collect();
    let house = contributing.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the house");
    let rooms: BTreeSet<&str> = house.split([' ', ',', '\n', '→']).filter(|word| !word.is_empty()).collect();
    let map = page("src/lib.rs");
    let named = map.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once(" | ")).map(|(room, _)| room);
    let known: BTreeSet<&str> =
        named.flat_map(|names| names.split("`, `")).map(|name| name.trim_matches('`')).collect();
    assert_eq!(rooms, known, "CONTRIBUTING.md, and the map in src/lib.rs");
    let targets = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets")).expect("targets");
    for target in targets {
        let name = target.expect("an entry").file_name().to_string_lossy().replace(".rs", "");
        assert!(said.contains(name.as_str()), "CONTRIBUTING.md does not name the fuzz target {name}");
    }
}

#[test]
fn every_proof_of_the_configuration_page_is_in_the_readme() {
    let readme = page("README.md");
    let said: BTreeSet<&str> = code(&readme).collect();
    let configuration = page("docs/configuration.md");
    let listed = configuration.split("All proofs that are configured must pass:\n").nth(1).expect("the proofs");
    let listed: Vec<&str> = code(listed.lines().next().unwrap_or_default()).collect();
    assert!(listed.len() > 8, "{listed:?}");
    // An address alone proves nothing; a preset is made of the others.
    for proof in listed.into_iter().filter(|proof| !["allow_ips", "provider"].contains(proof)) {
        assert!(said.contains(proof), "README.md does not name {proof}");
    }
}

#[test]
fn what_the_cookbook_says_is_run_and_sent_to_from_its_first_recipe_to_its_last() {
    let cookbook = page("docs/cookbook.md");
    let blocks: String = cookbook.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let upstream = Upstream::start();
    let text = format!(
        "[listeners.public]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n{}\n{blocks}\n\
         [log]\nformat = \"json\"\n",
        upstream.table()
    );
    let secrets = |command: &mut Command| {
        for name in named(&blocks, "env = \"") {
            let value = match name.as_str() {
                "DISCORD_PUBLIC_KEY" => PUBLIC_KEY.to_owned(),
                name if name.starts_with("WHSEC_") => format!("whsec_{}", secret_of(name)),
                name => secret_of(name),
            };
            command.env(name, value);
        }
    };
    let folder = Arc::new(stage(&text));
    let gateway = Gateway::start_with(folder.clone(), &text, |command| secrets(command));
    let sources: Vec<&str> =
        blocks.lines().filter_map(|line| line.strip_prefix("[sources.")?.strip_suffix(']')).collect();
    assert!(sources.len() > 12, "{sources:?}");
    let mut accepted = Vec::new();
    for source in sources {
        let body = match source {
            "twilio" => "From=%2B15551234567&MessageSid=SM1",
            _ => "{\"id\":\"evt_1\",\"type\":\"order.paid\",\"event\":\"order.paid\",\"entry\":[]}",
        };
        folder.write("body", body);
        let mut send = Command::new(BINARY);
        secrets(&mut send);
        let to = format!("http://{}", gateway.public());
        send.current_dir(&folder.0).args(["send", "--source", source, "--to", &to, "--body", "body"]);
        let sent = send.output().expect("the binary runs");
        let said = String::from_utf8_lossy(&sent.stderr).into_owned();
        match source {
            // The sender alone has the key.
            "discord" => assert!(said.contains("a public key cannot sign"), "{said}"),
            "sns" | "paypal" => assert!(said.contains("only the platform can sign this"), "{said}"),
            _ => {
                assert!(sent.status.success(), "{source}: {sent:?}");
                accepted.push(source);
            }
        }
    }
    let received = upstream.wait_for(accepted.len());
    let proven: Vec<_> = received.iter().filter_map(|request| request.header("x-hookward-verified")).collect();
    assert_eq!(proven.len(), accepted.len(), "{proven:?}");
}
