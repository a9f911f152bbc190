//! `[state]`: where it is remembered what was accepted.
//!
//! Invariant: a key of another kind of store is an error, for somebody counts on it.

use super::reader::Table;
use super::redis;
use crate::state::{self, DiskSettings, OnFailure, RedisSettings, Settings, SyncMode};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Disk,
    Redis,
}

const OF_DISK: [&str; 2] = ["path", "sync"];
const OF_REDIS: [&str; 11] = [
    "url",
    "cluster",
    "sentinels",
    "master",
    "username",
    "password",
    "tls",
    "connect_timeout",
    "timeout",
    "on_failure",
    "key_prefix",
];

pub(super) struct Read {
    pub(super) settings: Settings,
    pub(super) max_claims: u64,
    /// A restart forgets.
    pub(super) is_memory: bool,
}

pub(super) fn read(table: &Table<'_>) -> Read {
    let kinds = [("memory", Kind::Memory), ("disk", Kind::Disk), ("redis", Kind::Redis)];
    let kind = table.choice("kind", Some("memory"), &kinds).unwrap_or(Kind::Memory);
    let max_claims = table.count("max_claims", state::DEFAULT_MAX_CLAIMS as u64, 1_000..=100_000_000);
    if kind != Kind::Disk {
        belongs_to(table, &OF_DISK, r#"kind = "disk""#);
    }
    if kind != Kind::Redis {
        belongs_to(table, &OF_REDIS, r#"kind = "redis""#);
    }
    let settings = match kind {
        Kind::Memory => Settings::Memory,
        Kind::Disk => Settings::Disk(disk(table)),
        // Without one nothing is served: it was told of.
        Kind::Redis => in_redis(table).map_or(Settings::Memory, |redis| Settings::Redis(Box::new(redis))),
    };
    table.check_unknown();
    Read { settings, max_claims, is_memory: kind == Kind::Memory }
}

fn belongs_to(table: &Table<'_>, keys: &[&'static str], kind: &str) {
    for key in keys.iter().filter(|key| table.has(key)) {
        table.error(key, format!("belongs to {kind}"), kind);
    }
    table.ignore(keys);
}

fn disk(table: &Table<'_>) -> DiskSettings {
    let path = table.text("path").unwrap_or_else(|| {
        table.note_default("path", "\"hookward-state.db\"");
        "hookward-state.db".to_owned()
    });
    let mut disk = DiskSettings::new(table.base().join(PathBuf::from(path)));
    if let Some(sync) = table.choice("sync", Some("os"), &[("os", SyncMode::Os), ("power", SyncMode::Power)]) {
        disk.sync = sync;
    }
    disk
}

fn in_redis(table: &Table<'_>) -> Option<RedisSettings> {
    let millisecond = Duration::from_millis(1);
    let timeout =
        table.duration("timeout", RedisSettings::DEFAULT_TIMEOUT, (10 * millisecond)..=(10_000 * millisecond));
    let ways = [("reject", OnFailure::Reject), ("allow", OnFailure::Allow)];
    let on_failure = table.choice("on_failure", Some("reject"), &ways).unwrap_or_default();
    if on_failure == OnFailure::Allow {
        let what = "while Redis does not answer every gateway judges alone: of a delivery that is sent to several, each takes one";
        table.warn("on_failure", what, r#"on_failure = "reject" answers 503, and senders come again"#);
    }
    if !table.has("key_prefix") {
        table.note_default("key_prefix", &format!("{:?}", RedisSettings::DEFAULT_KEY_PREFIX));
    }
    let key_prefix = table.parsed("key_prefix", prefix);
    let link = redis::read(table);
    let defaults = RedisSettings::new(link?);
    Some(RedisSettings { timeout, on_failure, key_prefix: key_prefix.unwrap_or(defaults.key_prefix), ..defaults })
}

/// No braces: what stands in them decides which node of a cluster has a key.
fn prefix(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    match (1..=64).contains(&text.len()) && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not 1 to 64 letters, digits or any of - _ . : /")),
    }
}
