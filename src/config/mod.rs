//! One TOML file (and what it includes) made into what the rooms work with, or all that is wrong with it at once.
//!
//! Invariant: everything is read, resolved, decoded and built here, before a port is bound or a running configuration
//! is replaced. Whatever loads cannot fail later for what stands in the file.

mod about;
mod brokers;
mod engine;
mod fetch;
mod guessable;
mod handshakes;
mod http_signature;
mod inbox;
mod jwt;
mod listeners;
mod more;
mod node;
mod platform;
mod problem;
#[cfg(test)]
mod properties;
mod providers;
mod quarantine;
mod reader;
mod redis;
mod routes;
mod scheme;
mod secret_ref;
mod sources;
mod state;
mod units;
mod upstreams;
#[cfg(test)]
mod vectors;
mod verification;
mod workbench;

use crate::clock::Clock;
use crate::gateway::source::Way;
use crate::gateway::{Limits, ListenerView, Plan, UpstreamSettings};
use crate::inbox as store;
use crate::state::{BYTES_PER_CLAIM, Quota, Settings as State};
use crate::telemetry::{Format, Level, Target};
use node::{Kind, Node};
use problem::At;
use providers::Presets;
use reader::{Ledger, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

#[cfg(fuzzing)]
pub(crate) use crate::gateway::source::Settings as Source;
pub(crate) use about::Provider;
pub(crate) use listeners::{Admin, ListenerPlan};
pub(crate) use problem::{Problem, Severity};
pub(crate) use reader::Effective;
pub(crate) use units::nearest;
pub(crate) use workbench::Workbench;

/// Everything that `run` needs.
pub(crate) struct Config {
    pub(crate) listeners: Vec<ListenerPlan>,
    pub(crate) admin: Option<Admin>,
    pub(crate) max_connections: usize,
    /// That serve connections; 0: one for each processor that the process may use.
    pub(crate) threads: usize,
    pub(crate) drain_delay: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) state: State,
    /// Where a source wants one.
    pub(crate) inbox: Option<store::Settings>,
    pub(crate) log: Log,
    pub(crate) plan: Plan,
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) format: Format,
    pub(crate) level: Level,
    pub(crate) audit: Target,
}

pub(crate) struct Loaded {
    /// Present where no problem is an error.
    pub(crate) config: Option<Config>,
    /// In the order of the files.
    pub(crate) problems: Vec<Problem>,
    pub(crate) effective: Vec<Effective>,
}

/// Where `{ env = "X" }` looks.
pub(crate) type Environment<'a> = &'a (dyn Fn(&str) -> Option<OsString> + Sync);

/// The process's own environment.
pub(crate) fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

pub(crate) fn load(path: &Path, environment: Environment<'_>) -> Loaded {
    let mut problems = Vec::new();
    let root = node::read(path, &mut problems);
    let Some(root) = root else { return Loaded { config: None, problems, effective: Vec::new() } };
    load_node(root, base_of(path), problems, environment)
}

/// What an operator's command needs of the file, whatever is wrong with the rest of it: the secrets of sources are seldom
/// in an operator's shell.
pub(crate) struct Office {
    pub(crate) admin: Option<Admin>,
    pub(crate) inbox: Option<store::Settings>,
    /// Of these tables alone.
    pub(crate) problems: Vec<Problem>,
}

pub(crate) fn office(path: &Path, environment: Environment<'_>) -> Office {
    let mut problems = Vec::new();
    let Some(root) = node::read(path, &mut problems) else { return Office { admin: None, inbox: None, problems } };
    let ledger = Ledger::new(base_of(path), problems, environment);
    let file = Table::root(&root, &ledger);
    let admin = file.table("admin").and_then(|table| listeners::read_admin(table, &[]));
    let inbox = inbox::read(&file.table_or_empty("inbox"));
    Office { admin, inbox: Some(inbox), problems: ledger.into_parts().0 }
}

/// A text that is in no file; its relative paths lead nowhere.
#[cfg(any(fuzzing, feature = "measure"))]
pub(crate) fn load_text(text: &str, environment: Environment<'_>) -> Loaded {
    let mut problems = Vec::new();
    let root = node::parse(&"text".into(), text, &mut problems);
    load_node(root, Path::new("/nonexistent"), problems, environment)
}

fn load_node(mut root: Node, base: &Path, problems: Vec<Problem>, environment: Environment<'_>) -> Loaded {
    let ledger = Ledger::new(base, problems, environment);
    let presets = Presets::of(&root, &ledger);
    lay_presets(&mut root, &presets, &ledger);
    let config = read(&root, &presets, &ledger);
    let (mut problems, effective) = ledger.into_parts();
    problems.sort_by(|a, b| (&a.at, &a.key, a.severity).cmp(&(&b.at, &b.key, b.severity)));
    problems.dedup();
    let broken = problems.iter().any(|problem| problem.severity == Severity::Error);
    Loaded { config: config.filter(|_| !broken), problems, effective }
}

fn lay_presets(root: &mut Node, presets: &Presets, ledger: &Ledger) {
    let Kind::Table(table) = &mut root.kind else { return };
    let Some(Kind::Table(sources)) = table.get_mut("sources").map(|node| &mut node.kind) else { return };
    for (name, source) in sources {
        if let Err(provider) = presets.lay_under(source, ledger) {
            let listed = "`hookward providers` lists them";
            let (what, hint) = match &provider.kind {
                Kind::Text(text) => {
                    let near = units::nearest(text, presets.names());
                    let near = near.map(|near| format!("did you mean \"{near}\"? ")).unwrap_or_default();
                    (
                        format!("there is no preset {text:?}"),
                        format!("{near}{listed}; or write a `verify` table, or a file of your own in `provider_files`"),
                    )
                }
                other => (format!("is {}, not a string", other.name()), listed.to_owned()),
            };
            ledger.add(Severity::Error, Some(provider.at), &format!("sources.{name}.provider"), what, &hint);
        }
    }
}

/// What is wrong in the files of a user's own presets that no source names yet.
fn try_unused(presets: &Presets, around: &sources::Around<'_>, ledger: &Ledger) {
    for (name, node) in presets.unused(ledger) {
        let trial = ledger.beside();
        sources::read(&name, Table::root(&node, &trial), Some(&name), around);
        // A source without a path or secrets has more wrong with it, and none of that is the file's fault.
        let is_in_file = |at: &At| presets.own_file(&name).is_some_and(|file| at.file == *file);
        for Problem { severity, at, key, what, hint } in trial.into_parts().0 {
            if severity != Severity::Note && at.as_ref().is_some_and(is_in_file) {
                ledger.add(severity, at, &key, what, &hint);
            }
        }
    }
}

/// All presets: the built-in ones, and those of the file's `provider_files`, if there is a file.
pub(crate) fn providers(path: Option<&Path>) -> (Vec<Provider>, Vec<Problem>) {
    let mut problems = Vec::new();
    let Some(path) = path else { return (Presets::built_in().described(), problems) };
    let Some(root) = node::read(path, &mut problems) else { return (Vec::new(), problems) };
    let ledger = Ledger::new(base_of(path), Vec::new(), &|_| None);
    let presets = Presets::of(&root, &ledger);
    (presets.described(), ledger.into_parts().0)
}

fn base_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn read(root: &Node, presets: &Presets, ledger: &Ledger) -> Option<Config> {
    let file = Table::root(root, ledger);
    // Read before the sources were.
    file.text("provider_files");

    let limits = file.table_or_empty("limits");
    let second = Duration::from_secs(1);
    let hour = Duration::from_secs(3600);
    let max_body = limits.size("max_body", 1 << 20, 1..=(1 << 30));
    let max_buffered = limits.size("max_buffered", 256 << 20, (1 << 20)..=(1 << 40));
    let max_requests_per_client = count(limits.count("max_requests_per_client", 256, 1..=1_000_000));
    let server_limits = listeners::ServerLimits {
        max_header_bytes: count(limits.size("max_header_bytes", 32 << 10, (8 << 10)..=(1 << 20))),
        header_timeout: limits.duration("header_timeout", 10 * second, (second / 10)..=hour),
        handshake_timeout: limits.duration("handshake_timeout", 10 * second, (second / 10)..=hour),
        idle_timeout: limits.duration("idle_timeout", 75 * second, (second / 10)..=hour),
        max_connections_per_client: count(limits.count("max_connections_per_client", 256, 1..=1_000_000)),
    };
    if !limits.has("min_body_rate") {
        limits.note_default("min_body_rate", "\"64KiB/s\"");
    }
    let min_body_rate = limits.parsed("min_body_rate", byte_rate).unwrap_or(64 << 10);
    let body_timeout = limits.duration("body_timeout", 480 * second, second..=hour);
    let max_connections = count(limits.count("max_connections", 10_000, 1..=10_000_000));
    let threads = count(limits.count("threads", 0, 0..=1024));
    let failed_auth = match limits.table("failed_auth") {
        Some(table) => {
            let quota = verification::quota(&table);
            table.finish();
            quota
        }
        None => {
            limits.note_default("failed_auth", "{ rate = \"10/s\", burst = 50 }");
            Quota::parse("10/s", Some(50)).ok()
        }
    };
    let drain_delay = limits.duration("drain_delay", Duration::ZERO, Duration::ZERO..=hour);
    let drain_timeout = limits.duration("drain_timeout", 30 * second, Duration::ZERO..=hour);
    limits.finish();

    let fetch = fetch::read(&file.table_or_empty("fetch"));
    let state = state::read(&file.table_or_empty("state"));
    let inbox_table = file.table_or_empty("inbox");
    let inbox = inbox::read(&inbox_table);
    let log = read_log(&file.table_or_empty("log"));

    let (listener_plans, listener_facts) = listeners::read(&file, &server_limits, Clock::default().now());
    let admin = file.table("admin").and_then(|table| listeners::read_admin(table, &listener_plans));

    let mut upstreams = BTreeMap::new();
    let mut upstream_names = BTreeMap::new();
    let mut upstream_places = BTreeMap::new();
    for (name, table) in file.named("upstreams") {
        upstream_places.insert(name.clone(), table.at());
        let upstream = upstreams::read(&name, table, max_body);
        let facts = upstreams::Facts {
            re_signs: upstream.as_ref().is_some_and(|upstream| upstream.signs.is_some()),
            is_broker: upstream.as_ref().is_some_and(|upstream| upstream.settings.is_broker()),
            is_nats: upstream.as_ref().is_some_and(|upstream| upstream.settings.is_nats()),
        };
        upstream_names.insert(name.clone(), facts);
        upstreams.extend(upstream.map(|upstream| (name, upstream)));
    }

    let around = sources::Around {
        listeners: &listener_facts,
        upstreams: &upstream_names,
        max_body,
        max_claims: state.max_claims,
        state_is_memory: state.is_memory,
        bytes_per_claim: BYTES_PER_CLAIM,
        quarantine_age: inbox.quarantine.max_age,
    };
    let mut read_sources = Vec::new();
    let tables = file.named("sources");
    let written = tables.len();
    if tables.is_empty() {
        file.error(
            "",
            "there is no source: every request would be answered with 404",
            "a table [sources.NAME]; see gateway.example.toml",
        );
    }
    if listener_plans.is_empty() && !file.has("listeners") {
        file.error("", "there is no listener", "[listeners.public] address = \"0.0.0.0:8443\"");
    }
    for (name, table) in tables {
        // One that there is: of another it was told that there is none.
        let preset = table
            .peek_text("provider")
            .filter(|name| presets.names().any(|known| known == name.as_str()) && presets.is_whole(name));
        if let Some(source) = sources::read(&name, table, preset.as_deref(), &around) {
            compare_with_buffer(&source, max_buffered, ledger);
            read_sources.push(source);
        }
    }
    try_unused(presets, &around, ledger);
    sources::compare(&read_sources, |severity, source, what, hint| {
        ledger.add(severity, source.at.clone(), &format!("sources.{}", source.settings.name), what, hint);
    });
    if read_sources.len() == written {
        inbox::compare(&inbox_table, &inbox, &read_sources);
    }
    for source in &read_sources {
        compare_with_dedupe(source, &upstreams, ledger);
    }
    for upstream in upstreams.values_mut() {
        let name = upstream.settings.name().clone();
        let senders = read_sources.iter().filter(|source| source.settings.routes.upstreams().contains(&&name));
        if let Some(most) = senders.map(|source| source.settings.max_body).max() {
            upstream.settings.expect_bodies_of(most);
        }
    }
    let used: BTreeSet<_> = read_sources
        .iter()
        .flat_map(|source| source.settings.routes.upstreams())
        .map(|name| name.to_string())
        .collect();
    // A source that did not load may well have named one.
    let all_loaded = read_sources.len() == written;
    for (name, place) in upstream_places.into_iter().filter(|(name, _)| all_loaded && !used.contains(name)) {
        ledger.add(Severity::Warning, place, &format!("upstreams.{name}"), "no source forwards to it".to_owned(), "");
    }
    file.finish();

    let views = listener_plans.iter().map(|plan| ListenerView {
        name: plan.settings.name.clone(),
        trusted_proxies: plan.settings.trusted_proxies.clone(),
    });
    let plan = Plan {
        limits: Limits {
            max_buffered,
            max_requests_per_client,
            min_body_rate,
            body_timeout,
            failed_auth: failed_auth?,
            keep_refused: admin.as_ref().map_or(0, |admin| admin.keep_refused),
        },
        listeners: views.collect(),
        upstreams,
        sources: read_sources.into_iter().map(|source| source.settings).collect(),
        fetch: fetch?,
    };
    let stores = plan.sources.iter().any(|source| source.delivery == Way::Inbox);
    // What an inbox holds is to be delivered though no source adds to it any more.
    let inbox = (stores || inbox.folder.join("inbox.db").exists()).then_some(inbox);
    Some(Config {
        listeners: listener_plans,
        admin,
        max_connections,
        threads,
        drain_delay,
        drain_timeout,
        state: state.settings,
        inbox,
        log,
        plan,
    })
}

/// A signed event id names a delivery at the broker: what the source takes for new, the broker must not take for old.
fn compare_with_dedupe(source: &sources::Read, upstreams: &BTreeMap<String, UpstreamSettings>, ledger: &Ledger<'_>) {
    let settings = &source.settings;
    if !settings.verifier.id_is_signed() {
        return;
    }
    for name in settings.routes.upstreams() {
        let dedupe = upstreams.get(&**name).and_then(|upstream| upstream.settings.dedupe());
        let Some(dedupe) = dedupe.filter(|dedupe| *dedupe > settings.dedupe_window) else { continue };
        let what = format!(
            "{} is shorter than the `dedupe` of upstreams.{name} ({}): an event whose id comes again after it is acknowledged, and dropped there as a repetition",
            units::show_duration(&settings.dedupe_window),
            units::show_duration(&dedupe)
        );
        let key = format!("sources.{}.dedupe_window", settings.name);
        ledger.add(
            Severity::Warning,
            source.at.clone(),
            &key,
            what,
            "a shorter `dedupe` there, or a longer dedupe_window",
        );
    }
}

/// A body must fit into what its client and its source may hold of all bodies in flight.
fn compare_with_buffer(source: &sources::Read, max_buffered: u64, ledger: &Ledger<'_>) {
    let body = source.settings.max_body;
    let key = format!("sources.{}.max_body", source.settings.name);
    let shown = units::show_size(body);
    if body * 2 > max_buffered {
        let what = format!("a body of {shown} would be more than a source's half of `max_buffered`");
        ledger.add(Severity::Error, source.at.clone(), &key, what, "raise limits.max_buffered");
    } else if body * 8 > max_buffered {
        let what =
            format!("a body of {shown} would be more than a client's eighth of `max_buffered`, and refused with 503");
        let enough = units::show_size((body * 8).next_multiple_of(1 << 20));
        let hint = format!("limits.max_buffered = {enough:?}");
        ledger.add(Severity::Warning, source.at.clone(), &key, what, &hint);
    }
}

fn read_log(table: &Table<'_>) -> Log {
    let format = table.choice("format", Some("text"), &[("text", Format::Text), ("json", Format::Json)]);
    let levels = [("error", Level::Error), ("warn", Level::Warn), ("info", Level::Info), ("debug", Level::Debug)];
    let level = table.choice("level", Some("info"), &levels);
    let audit = match table.text("audit").as_deref() {
        None => {
            table.note_default("audit", "\"stderr\"");
            Target::Stderr
        }
        Some("stderr") => Target::Stderr,
        Some("off") => Target::Off,
        Some(path) => Target::File(table.base().join(path)),
    };
    table.check_unknown();
    Log { format: format.unwrap_or(Format::Text), level: level.unwrap_or(Level::Info), audit }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// `64KiB/s`, in bytes a second.
fn byte_rate(text: &str) -> Result<u64, String> {
    let rate = text.strip_suffix("/s").and_then(units::size);
    match rate {
        Some(rate) if rate >= 1 => Ok(rate),
        _ => Err(format!("{text:?} is not a rate like \"64KiB/s\"")),
    }
}
