//! `[inbox]`, and how a source that stores its deliveries repeats and orders them.
//!
//! Invariant: what bounds the store is compared with what is to fit into it, and what has no effect is told: a key of
//! the inbox beside a source that forwards is an error, for somebody counts on it.

use super::quarantine;
use super::reader::Table;
use super::sources::Read;
use super::units::{header_name, show_duration, show_size};
use crate::deliver::{Ended, Fault, Schedule, Statuses, Verdict};
use crate::gateway::lane::Order;
use crate::gateway::source::Way;
use crate::inbox::{Packing, SealingKey, Settings};
use crate::verify::is_pointer;
use std::collections::BTreeMap;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const LARGEST: u64 = 1 << 50;

/// Of the largest bodies, fewer than this would fill the store.
const FEWEST_BODIES: u64 = 16;

/// Folders that a restart of the machine empties.
const EMPTIED: [&str; 4] = ["/tmp", "/run", "/var/run", "/dev/shm"];

pub(super) fn read(table: &Table<'_>) -> Settings {
    let path = table.text("path").unwrap_or_else(|| {
        table.note_default("path", "\"inbox\"");
        "inbox".to_owned()
    });
    let folder = table.base().join(path);
    if folder.exists() && !folder.is_dir() {
        table.error("path", format!("{} is no folder", folder.display()), "a folder that holds nothing else");
    }
    let defaults = Settings::new(folder);
    let settings = Settings {
        max_size: table.size("max_size", defaults.max_size, (1 << 20)..=LARGEST),
        min_free: table.size("min_free", defaults.min_free, 0..=LARGEST),
        max_age: table.duration("max_age", defaults.max_age, SECOND..=YEAR),
        keep_delivered: table.duration("keep_delivered", defaults.keep_delivered, Duration::ZERO..=YEAR),
        keep_dead: table.duration("keep_dead", defaults.keep_dead, SECOND..=10 * YEAR),
        quarantine: quarantine::limits(&table.table_or_empty("quarantine")),
        packing: packing(table),
        ..defaults
    };
    table.check_unknown();
    settings
}

/// The first key encrypts, all decrypt.
fn packing(table: &Table<'_>) -> Packing {
    let keys = if table.has("encryption_key") { table.secrets("encryption_key") } else { Vec::new() };
    let parsed = keys.iter().filter_map(|named| match SealingKey::parse(&named.secret) {
        Ok(key) => Some(key),
        Err(what) => {
            table.error("encryption_key", format!("{}: {what}", named.name), "");
            None
        }
    });
    Packing::new(parsed.collect())
}

/// What stands in `[inbox]`, and what the sources want of it.
pub(super) fn compare(table: &Table<'_>, settings: &Settings, sources: &[Read]) {
    let storing = || sources.iter().filter(|source| source.settings.delivery == Way::Inbox);
    if storing().next().is_none() {
        if table.is_written() {
            table.warn("", "no source has delivery = \"inbox\"", "");
        }
        return;
    }
    if let Some(folder) = EMPTIED.into_iter().find(|folder| settings.folder.starts_with(folder)) {
        let what =
            format!("lies in {folder}, which a restart of the machine may empty: what was acknowledged would be lost");
        table.warn("path", what, "a folder on a disk, /var/lib/hookward/inbox say");
    }
    let largest = storing().map(|source| source.settings.max_body).max().unwrap_or_default();
    if settings.max_size < largest.saturating_mul(FEWEST_BODIES) {
        let what = format!(
            "{} is full with fewer than {FEWEST_BODIES} bodies of a source's `max_body` ({}): senders would get 503",
            show_size(settings.max_size),
            show_size(largest)
        );
        table.warn("max_size", what, "room for as much as comes while an upstream is down");
    }
    let longest = storing().map(|source| (lasts(&source.settings.retry), &source.settings.name)).max();
    if let Some((lasts, name)) = longest.filter(|(lasts, _)| *lasts > settings.max_age) {
        let what = format!(
            "{} is shorter than the retries of sources.{name} last ({}): before a delivery that its upstream does not take is given up, this source's sender would get 503",
            show_duration(&settings.max_age),
            show_duration(&to_the_hour(lasts))
        );
        table.warn("max_age", what, "a longer max_age, or fewer attempts");
    }
}

/// From the first attempt to the last.
fn lasts(schedule: &Schedule) -> Duration {
    let wait = |made| match schedule.verdict(Ended::Fault(Fault::TimedOut), made, 0.5) {
        Verdict::Retry(wait) => wait,
        Verdict::Delivered | Verdict::Dead => Duration::ZERO,
    };
    (1..schedule.attempts).map(wait).sum()
}

/// Nobody counts the seconds of days.
fn to_the_hour(duration: Duration) -> Duration {
    match duration.as_secs() {
        secs @ 0..=7200 => Duration::from_secs(secs),
        secs => Duration::from_secs(secs.next_multiple_of(3600)),
    }
}

/// What a source says of its stored deliveries.
pub(super) struct OfSource {
    pub(super) retry: Schedule,
    pub(super) order: Order,
}

pub(super) fn of_source(source: &Table<'_>, way: Way, observes: bool) -> OfSource {
    const KEYS: [&str; 3] = ["retry", "order", "order_by"];
    if way == Way::Proxy {
        for key in KEYS.into_iter().filter(|key| source.has(key)) {
            source.error(key, "belongs to delivery = \"inbox\"", "delivery = \"inbox\"");
        }
        source.ignore(&KEYS);
        return OfSource { retry: Schedule::default(), order: Order::None };
    }
    if observes {
        source.error(
            "mode",
            "observes, and the inbox would acknowledge and deliver what is not proven",
            r#"delivery = "proxy" while it observes"#,
        );
    }
    OfSource { retry: retry(source), order: order(source) }
}

fn retry(source: &Table<'_>) -> Schedule {
    let table = source.table_or_empty("retry");
    let millisecond = Duration::from_millis(1);
    let attempts = table.count("attempts", Schedule::DEFAULT_ATTEMPTS.into(), 1..=1000);
    let first = table.has("first").then(|| table.duration("first", SECOND, millisecond..=DAY));
    if first.is_none() {
        table.ignore(&["first"]);
        table.note_default("first", "5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h");
    }
    let max = table.duration("max", Schedule::DEFAULT_MAX, millisecond..=DAY);
    if first.is_some_and(|first| first > max) {
        table.warn("max", "is shorter than `first`, and so every wait is as long as `max`", "");
    }
    let jitter = table.share("jitter", Schedule::DEFAULT_JITTER);
    let mut statuses = BTreeMap::new();
    for (rule, treatment) in table.scalars("statuses") {
        let treated = treatment.as_str().and_then(|word| word.parse().ok());
        match (rule.parse(), treated) {
            (Ok(rule), Some(treated)) => {
                statuses.insert(rule, treated);
            }
            (Err(_), _) => table.error("statuses", format!("{rule:?} is no status"), r#""404" or "4xx""#),
            (Ok(_), None) => {
                let what = format!("{rule}: {treatment} is none of the choices");
                table.error("statuses", what, r#""delivered", "retry", "dead""#);
            }
        }
    }
    table.check_unknown();
    let attempts = u32::try_from(attempts).unwrap_or(Schedule::DEFAULT_ATTEMPTS);
    Schedule { attempts, first, max, jitter, statuses: Statuses(statuses) }
}

fn order(source: &Table<'_>) -> Order {
    let whole = source.choice("order", Some("none"), &[("none", false), ("source", true)]).unwrap_or(false);
    let Some(by) = source.table("order_by") else {
        return if whole { Order::Source } else { Order::None };
    };
    if source.has("order") {
        source.error("order_by", "stands beside `order`", "one of them: `order_by` keeps those of one key in order");
    }
    let json = by.parsed("json", |text| match is_pointer(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a JSON pointer; begin it with `/`")),
    });
    let header = by.parsed("header", header_name);
    let found = match (json, header, by.has("json"), by.has("header")) {
        (Some(pointer), None, true, false) => Order::Json(pointer),
        (None, Some(name), false, true) => Order::Header(name),
        (_, _, true, true) => {
            by.error("", "says more than one place", "one of json, header");
            Order::None
        }
        (_, _, false, false) => {
            by.error("", "says no place: one of json, header", r#"json = "/customer""#);
            Order::None
        }
        // What is wrong with it was told.
        (..) => Order::None,
    };
    by.finish();
    found
}
