//! The house keeps its shape: each room imports only from rooms below it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top floor down. A room may use what stands in later lines; `cli` and `lib.rs` use everything.
const FLOORS: &[(&str, &[&str])] = &[
    ("measuring", &["config", "delivery", "fetched", "secret", "clock"]),
    ("fuzzing", &["cli", "config", "gateway", "verify", "delivery", "fetched", "secret", "clock"]),
    (
        "cli",
        &[
            "admin",
            "config",
            "gateway",
            "deliver",
            "parcel",
            "telemetry",
            "verify",
            "fetch",
            "state",
            "server",
            "delivery",
            "refusal",
            "fetched",
            "secret",
            "client",
            "clock",
        ],
    ),
    ("admin", &["gateway", "telemetry", "verify", "secret"]),
    // Its vectors make deliveries and name refusals.
    (
        "config",
        &[
            "gateway",
            "deliver",
            "verify",
            "fetch",
            "state",
            "server",
            "telemetry",
            "delivery",
            "refusal",
            "fetched",
            "secret",
            "clock",
        ],
    ),
    (
        "gateway",
        &[
            "deliver",
            "parcel",
            "telemetry",
            "verify",
            "fetch",
            "state",
            "server",
            "delivery",
            "refusal",
            "fetched",
            "client",
            "clock",
            "secret",
        ],
    ),
    ("deliver", &["parcel", "secret", "clock", "client"]),
    ("parcel", &["verify", "delivery"]),
    ("telemetry", &["refusal", "clock"]),
    ("verify", &["delivery", "refusal", "fetched", "secret", "clock"]),
    ("fetch", &["fetched", "clock"]),
    ("state", &["secret", "client", "clock"]),
    ("server", &["secret", "client", "clock"]),
    ("fetched", &["clock"]),
    ("delivery", &[]),
    ("refusal", &[]),
    ("secret", &[]),
    ("client", &[]),
    ("clock", &[]),
];

#[test]
fn arrows_between_rooms_point_down_only() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in sources(Path::new("src")) {
        let room = room_of(&file);
        if room == "lib" || room == "main" {
            continue;
        }
        let (_, allowed) = FLOORS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{} is in no room of the plan", file.display()));
        seen.insert(room.clone());
        let text = fs::read_to_string(&file).expect("a source file");
        for used in rooms_used(&text) {
            if used != room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: uses {used}", file.display()));
            }
        }
    }
    assert_eq!(seen.len(), FLOORS.len(), "rooms of the plan without a file: {seen:?}");
    assert!(wrong.is_empty(), "arrows that point up or aside:\n{}", wrong.join("\n"));
}

#[test]
fn the_plan_itself_points_down() {
    for (position, (room, allowed)) in FLOORS.iter().enumerate() {
        for below in *allowed {
            let floor = FLOORS.iter().position(|(name, _)| name == below).expect("a room of the plan");
            assert!(floor > position, "{room} may not use {below}");
        }
    }
}

/// Every file tells what it owns, and one of more than 500 lines without its tests says why it is one.
#[test]
fn every_file_opens_with_what_it_owns() {
    let files = sources(Path::new("src"));
    assert!(files.len() > 40, "{}", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        if room_of(&file) != "main" {
            assert!(text.starts_with("//! "), "{} does not say what it owns", file.display());
        }
        let production = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let is_test = file.file_name().is_some_and(|name| {
            ["tests.rs", "vectors.rs", "contract.rs", "survival.rs"].iter().any(|test| name == *test)
        });
        let lines = production.lines().count();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(
            is_test || lines <= 500 || head.contains("One file"),
            "{} has {lines} lines and does not say why (\"One file, …\")",
            file.display()
        );
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn room_of(file: &Path) -> String {
    let mut parts = file.strip_prefix("src").expect("below src").components();
    let first = parts.next().expect("a file").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a file names behind `crate::`, wherever it does.
fn rooms_used(text: &str) -> BTreeSet<String> {
    text.match_indices("crate::")
        .filter(|(at, _)| !text[..*at].ends_with('$'))
        .map(|(at, found)| {
            text[at + found.len()..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>()
        })
        .filter(|room| !room.is_empty())
        .collect()
}
