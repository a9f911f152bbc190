//! All of the vectors in `tests/vectors`, and in the folder that `HOOKWARD_VECTORS` names: none is left out, and none
//! may fail but those that are listed here with the reason.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::vector::{Expect, Kind, Vector};
use super::{asymmetric_keys, handshakes, hmac, http_signatures, platforms, tokens};
use super::{configuration, judged, loaded, quoted, source};
use crate::config::{self, Severity};
use crate::gateway::source::Settings;

/// What only a lenient receiver accepts (`strict`), or only a thorough one (`quirk-optional`), and why it is not done.
const NOT_HONOURED: &[(&str, &str)] = &[
    (
        "coinbase_cdp/ok_v0_form",
        "the older form signs no headers: a v1 signature passes as v0 of a longer body, and v1 could be stripped",
    ),
    (
        "segment/ok_batch_first_event",
        "of a batch the first event alone is signed; verify.batch = \"first_item\" takes it",
    ),
];

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

#[test]
fn every_preset_agrees_with_every_vector_of_its_provider() {
    let vectors = read(Path::new(FOLDER));
    let of_hmac = vectors.iter().filter(|vector| vector.kind() == Kind::Hmac).count();
    assert_eq!((of_hmac, vectors.len() - of_hmac), (1_558, 449));

    let report = run(&vectors, None);
    println!("{}", report.table());
    let failing = report.failing_providers();
    assert!(failing.is_empty(), "{failing:?}\n{}", report.told(|_| true));
    let counted =
        report.rows.values().map(|row| row.accepted + row.refused + row.challenged + row.not_honoured + row.failed);
    assert_eq!(counted.sum::<usize>(), vectors.len());
}

#[test]
fn every_preset_agrees_with_the_vectors_of_the_folder_that_the_environment_names() {
    let Some(folder) = std::env::var_os("HOOKWARD_VECTORS") else { return };
    let vectors = read(Path::new(&folder));
    assert!(!vectors.is_empty(), "HOOKWARD_VECTORS: there is no vector in {}", folder.display());
    let report = run(&vectors, Some(Path::new(&folder)));
    println!("{}", report.table());
    assert!(report.failures.is_empty(), "{} failed:\n{}", report.failures.len(), report.told(|_| true));
}

/// Presets that share their provider's requests with another preset of it, so that each has fewer than it should.
const SHARED: &[&str] = &["fireblocks", "fireblocks-jws", "ms-graph", "ms-graph-rich"];

/// A preset that differs from another in the names of its headers alone, and is proven by that one's vectors.
const RENAMED: &[(&str, &str)] = &[("svix-asymmetric", "standard-webhooks-v1a")];

#[test]
fn a_preset_with_other_names_for_its_headers_agrees_with_the_vectors_of_the_first() {
    let vectors = std::fs::read_to_string(Path::new(FOLDER).join("asymmetric-vectors.json")).unwrap();
    let listed: Vec<Value> = serde_json::from_str(&vectors.replace("\"webhook-", "\"svix-")).unwrap();
    for (renamed, first) in RENAMED {
        let (mut sources, mut judged) = (HashMap::new(), 0);
        for vector in listed.iter().cloned().map(Vector) {
            let Some(keys) = toml(&vector).filter(|keys| super::preset_of(keys).as_deref() == Some(*first)) else {
                continue;
            };
            let keys = keys.replace(&format!("\"{first}\""), &format!("\"{renamed}\""));
            let source = sources.entry(keys).or_insert_with_key(|keys| source(keys, None)).as_ref().unwrap();
            judged::judge(&vector, source).unwrap_or_else(|why| panic!("{}: {why}", vector.id()));
            judged += 1;
        }
        assert!(judged >= 6, "{renamed}: {judged}");
    }
}

#[test]
fn every_preset_is_proven_by_two_genuine_and_four_spoiled_requests() {
    let vectors = read(Path::new(FOLDER));
    let mut counted: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for vector in &vectors {
        let Some(preset) = toml(vector).and_then(|keys| super::preset_of(&keys)) else { continue };
        let (genuine, spoiled) = counted.entry(preset).or_default();
        match vector.kind() {
            Kind::Hmac | Kind::Signature if vector.expect() == Expect::Accept => *genuine += 1,
            Kind::Hmac | Kind::Signature => *spoiled += 1,
            // What only asks something is counted for itself.
            Kind::Handshake | Kind::Primitive => {}
        }
    }
    let (mut proven, mut wrong) = (0, Vec::new());
    let (presets, _) = config::providers(None);
    for preset in presets.iter().map(|provider| provider.preset.as_str()) {
        match counted.get(preset) {
            Some((2.., 4..)) => proven += 1,
            // A handshake alone.
            Some((0, 0)) => {}
            None if RENAMED.iter().any(|(renamed, _)| *renamed == preset) => proven += 1,
            Some((1.., 1..)) if SHARED.contains(&preset) => proven += 1,
            found => wrong.push(format!("{preset}: {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(proven >= 175, "{proven}");
}

#[test]
fn no_preset_draws_a_complaint_of_its_own() {
    let vectors = read(Path::new(FOLDER));
    let mut tried = BTreeMap::new();
    for vector in vectors.iter().filter(|vector| vector.expect() != Expect::Reject) {
        let Some(keys) = toml(vector) else { continue };
        let Some(preset) = super::preset_of(&keys) else { continue };
        tried.entry(preset).or_insert_with_key(|preset| {
            let file = format!("preset {preset}");
            let mut problems = loaded(&configuration(&keys, None)).problems;
            problems.retain(|problem| problem.severity != Severity::Note);
            // Of the vectors' secrets, some of which are short.
            problems.retain(|problem| !problem.what.contains("can be found by trying"));
            problems.retain(|problem| problem.at.as_ref().is_some_and(|at| *at.file == *file));
            problems.iter().map(ToString::to_string).collect::<Vec<_>>()
        });
    }
    let complaints: Vec<_> = tried.into_values().flatten().collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

const ACME: &str = r#"
name = "Acme Rockets"
[verify]
algorithm = "hmac-sha256"
signature = { header = "X-Acme-Signature", prefix = "v1=", encoding = "hex" }
message = "{timestamp}.{body}"
timestamp = { header = "X-Acme-Timestamp" }
"#;

#[test]
fn a_provider_is_added_by_one_file_and_its_vectors() {
    let folder = super::Folder::new();
    std::fs::write(folder.0.join("acme.toml"), ACME).unwrap();
    // HMAC-SHA256 with the key "a-secret-of-acme" over "1760000000.{}", made with openssl.
    let signature = "v1=55df650525bc6b993b398c2283822a0ec3c40a5bb5ed9eb1d6632da9666286f9";
    let vector = |id: &str, signature: &str, now: u64, reason: Option<&str>| {
        serde_json::json!({
            "id": format!("acme/{id}"), "provider": "acme", "config": { "secrets": ["a-secret-of-acme"] },
            "request": {
                "method": "POST", "url": "https://hooks.example.com/acme", "body_base64": "e30=",
                "headers": [["X-Acme-Timestamp", "1760000000"], ["X-Acme-Signature", signature]],
            },
            "now_unix": now, "expect": if reason.is_some() { "reject" } else { "accept" }, "reason": reason,
        })
    };
    let vectors = [
        vector("genuine", signature, 1_760_000_300, None),
        vector("stale", signature, 1_760_000_301, Some("stale_timestamp")),
        vector("no prefix", &signature[3..], 1_760_000_000, Some("malformed_signature")),
        vector("of another body", &signature.replace('a', "b"), 1_760_000_000, Some("bad_signature")),
    ];
    std::fs::write(folder.0.join("acme.json"), Value::from(vectors.to_vec()).to_string()).unwrap();

    let vectors = read(&folder.0);
    let report = run(&vectors, Some(&folder.0));
    assert!(report.failures.is_empty(), "{}", report.told(|_| true));
    let Row { accepted, refused, .. } = &report.rows["acme"];
    assert_eq!((*accepted, *refused), (1, 3));
    // The twin: without the file there is no such provider.
    assert_eq!(run(&vectors, None).rows["acme"].failed, 4);
}

/// The vectors of all `*.json` files of a folder.
fn read(folder: &Path) -> Vec<Vector> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut vectors = Vec::new();
    for file in files {
        let text = std::fs::read(&file).unwrap();
        let listed: Vec<Value> =
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        vectors.extend(listed.into_iter().map(Vector));
    }
    vectors
}

struct Report<'a> {
    rows: BTreeMap<&'a str, Row>,
    failures: Vec<(&'a Vector, String)>,
}

#[derive(Default)]
struct Row {
    accepted: usize,
    refused: usize,
    challenged: usize,
    not_honoured: usize,
    failed: usize,
}

/// `folder`: where further presets may be.
fn run<'a>(vectors: &'a [Vector], folder: Option<&Path>) -> Report<'a> {
    let mut report = Report { rows: BTreeMap::new(), failures: Vec::new() };
    // Loading costs far more than judging, and most vectors of a provider share their configuration.
    let mut sources = HashMap::new();
    for vector in vectors {
        let row = report.rows.entry(vector.provider()).or_default();
        let excused = NOT_HONOURED.iter().find(|(id, _)| *id == vector.id());
        match (judged_as_configured(vector, folder, &mut sources), excused) {
            (Ok(()), None) => match vector.expect() {
                Expect::Accept => row.accepted += 1,
                Expect::Reject => row.refused += 1,
                Expect::Challenge => row.challenged += 1,
            },
            (Err(_), Some(_)) if vector.has_tag("strict") || vector.has_tag("quirk-optional") => row.not_honoured += 1,
            (found, excused) => {
                row.failed += 1;
                let excused = excused.map(|(_, reason)| format!("is excused for nothing: {reason}"));
                report.failures.push((vector, excused.or(found.err()).unwrap_or_default()));
            }
        }
    }
    report
}

fn judged_as_configured(
    vector: &Vector,
    folder: Option<&Path>,
    sources: &mut HashMap<String, Result<Settings, String>>,
) -> Result<(), String> {
    if vector.kind() == Kind::Primitive {
        return http_signatures::primitive(vector);
    }
    let keys = toml(vector).ok_or("nobody has said how its `config` is spelled in TOML")?;
    let source = sources.entry(keys).or_insert_with_key(|keys| source(keys, folder)).as_ref().map_err(Clone::clone)?;
    judged::judge(vector, source)
}

/// What a user would write for the vector's source.
fn toml(vector: &Vector) -> Option<String> {
    let (provider, config) = (vector.provider(), vector.config());
    let keys = match vector.kind() {
        Kind::Hmac => hmac::toml(provider, config),
        Kind::Handshake => handshakes::toml(provider, config),
        Kind::Primitive => None,
        Kind::Signature => asymmetric_keys::toml(provider, config)
            .or_else(|| tokens::toml(provider, config))
            .or_else(|| http_signatures::toml(provider, config))
            .or_else(|| platforms::toml(provider, config))
            .or_else(|| hmac::among_signatures(provider, config)),
    };
    let public_url = vector.public_url().map(|url| format!("public_url = {}\n", quoted(url))).unwrap_or_default();
    // First, because the keys of a family may end in tables of their own.
    Some(public_url + &keys?)
}

impl<'a> Report<'a> {
    fn failing_providers(&self) -> Vec<&'a str> {
        self.rows.iter().filter(|(_, row)| row.failed > 0).map(|(provider, _)| *provider).collect()
    }

    /// One line for all vectors of a provider that fail in the same way.
    fn told(&self, is_told: impl Fn(&str) -> bool) -> String {
        let mut lines: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (vector, why) in self.failures.iter().filter(|(vector, _)| is_told(vector.provider())) {
            lines.entry((vector.provider(), why)).or_default().push(vector.id());
        }
        let lines = lines.into_iter().map(|((_, why), ids)| format!("{}: {why}", ids.join(" ")));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, cells: [&dyn std::fmt::Display; 5]| {
            let [accepted, refused, challenged, not_honoured, failed] = cells;
            let _ =
                writeln!(text, "{name:<26} {accepted:>8} {refused:>8} {challenged:>10} {not_honoured:>12} {failed:>6}");
        };
        line("provider", [&"accepted", &"refused", &"challenged", &"not honoured", &"failed"]);
        let mut sum = Row::default();
        for (provider, row) in &self.rows {
            line(provider, [&row.accepted, &row.refused, &row.challenged, &row.not_honoured, &row.failed]);
            sum.accepted += row.accepted;
            sum.refused += row.refused;
            sum.challenged += row.challenged;
            sum.not_honoured += row.not_honoured;
            sum.failed += row.failed;
        }
        let name = format!("{} providers", self.rows.len());
        line(&name, [&sum.accepted, &sum.refused, &sum.challenged, &sum.not_honoured, &sum.failed]);
        text
    }
}
