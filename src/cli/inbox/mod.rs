//! `inbox`: looking into the durable inbox, and mending what lies in it. One file, for every command is its words and the
//! pages it asks for, and all of them share both.
//!
//! Invariant: the same questions with the same answers for a gateway that runs and for one that stands still; `place.rs`
//! finds out which it is, and nothing else here knows. What a stranger wrote (ids, headers, bodies) reaches the terminal
//! through `print.rs` alone, which lets none of it drive the terminal.

mod export;
mod place;
mod print;
mod reverify;
mod salvage;

use super::{NO, UNUSABLE_CONFIGURATION, USAGE, complain};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Subcommand, ValueEnum};
use http::{Method, Uri};
use place::Place;
use serde_json::Value;
use serde_json::value::RawValue;
use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use url::form_urlencoded;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
    /// The operator's port of a running gateway, where it is not the configured address: http://10.0.0.5:9090. The token
    /// is the configured one.
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<Uri>,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it, for as long as the command runs")]
enum What {
    #[command(flatten)]
    Asked(Asked),
    /// Copy what is readable of a damaged inbox, whose gateway is stopped, into a new one.
    Salvage(salvage::Salvaging),
}

/// What a store that can be opened is asked.
#[derive(Subcommand)]
enum Asked {
    /// Deliveries and what became of them at each upstream, the newest first.
    List(Listing),
    /// One delivery whole: its headers, its body, and each upstream's attempts.
    Show(Showing),
    /// Deliver again, or now: dead letters, where neither --state nor an id says otherwise.
    Retry(Retrying),
    /// Give up: dead letters, where neither --state nor an id says otherwise.
    Discard(Discarding),
    /// Everything that is needed to make the requests again, a JSON object a line, the oldest first.
    Export(export::Exporting),
    /// How many wait, for how long, and how large it has grown.
    Stats {
        /// For programs: one object.
        #[arg(long)]
        json: bool,
    },
    /// What is kept because its signature alone did not match, by source.
    Quarantine(reverify::Listing),
    /// Judge again what is kept of a source, at the time it came, now that its secret is mended: what proves genuine is
    /// delivered.
    Reverify(reverify::Reverifying),
}

/// What to look for. Several values of one kind: any of them; several kinds: all of them.
#[derive(clap::Args)]
#[group(skip)]
struct Filter {
    /// Of this source; several with commas, or the option again.
    #[arg(long = "source", value_name = "NAME", value_delimiter = ',')]
    sources: Vec<String>,
    /// For this upstream.
    #[arg(long = "upstream", value_name = "NAME", value_delimiter = ',')]
    upstreams: Vec<String>,
    /// What became of it; behind: an earlier one of its order comes first.
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',')]
    states: Vec<State>,
    /// Received at this time or later: RFC 3339, or an age: 90s, 15m, 2h, 3d.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Received before this time: RFC 3339, or an age.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// The event's type; * stands for any text: invoice.*
    #[arg(long = "event", value_name = "GLOB")]
    events: Vec<String>,
    /// A request id, a delivery id, an event id or a number; `request:`, `delivery:`, `event:` and `seq:` before it say
    /// which.
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    Waiting,
    Behind,
    Delivered,
    Dead,
    Discarded,
}

#[derive(clap::Args)]
struct Listing {
    #[command(flatten)]
    filter: Filter,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u64,
    /// Go on where an earlier list ended: what it printed last.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// The oldest first.
    #[arg(long)]
    oldest: bool,
    /// For programs: one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Showing {
    /// As in `list --id`. Of several the newest.
    id: String,
    /// The body alone, byte for byte, to standard output.
    #[arg(long, conflicts_with = "json")]
    body: bool,
    /// Credentials too, which are masked otherwise.
    #[arg(long)]
    reveal: bool,
    /// For programs: one object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Choice {
    /// These alone; as in --id.
    #[arg(value_name = "ID")]
    named: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Needed where nothing else says which: every dead letter.
    #[arg(long)]
    all: bool,
    /// At most so many, the oldest first.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Change nothing and say how many it would be.
    #[arg(long)]
    dry_run: bool,
    /// For programs: one object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Retrying {
    #[command(flatten)]
    choice: Choice,
    /// Spread over time: so many a second, as 50/s (also /m and /h).
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
}

#[derive(clap::Args)]
struct Discarding {
    #[command(flatten)]
    choice: Choice,
}

/// Why there is no answer, and the exit code that says so.
struct Failure {
    code: u8,
    why: String,
}

impl Failure {
    fn new(code: u8, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

type Done = Result<ExitCode, Failure>;

/// Ids of one question: the operator's port takes heads of 16 KiB.
const LONGEST_IDS: usize = 8 << 10;

/// Parameters of a question, in the words of the operator's port.
type Query = Vec<(&'static str, String)>;

pub(super) fn inbox(config: &Path, arguments: &Arguments) -> ExitCode {
    let ask = |asked: &Asked, place: Place| {
        let done = match asked {
            Asked::List(listing) => list(&place, listing),
            Asked::Show(showing) => show(&place, showing),
            Asked::Retry(Retrying { choice, rate }) => {
                act(&place, "retry", choice, rate.iter().map(|rate| ("rate", rate.clone())).collect())
            }
            Asked::Discard(Discarding { choice }) => act(&place, "discard", choice, Vec::new()),
            Asked::Export(exporting) => export::export(&place, exporting),
            Asked::Stats { json } => stats(&place, *json),
            Asked::Quarantine(listing) => reverify::list(&place, listing),
            Asked::Reverify(reverifying) => reverify::reverify(&place, reverifying),
        };
        place.leave();
        done
    };
    let done = match &arguments.what {
        What::Salvage(salvaging) => salvage::salvage(config, salvaging),
        What::Asked(asked) => Place::find(config, arguments.admin.as_ref()).and_then(|place| ask(asked, place)),
    };
    done.unwrap_or_else(|Failure { code, why }| {
        complain(&why);
        ExitCode::from(code)
    })
}

/// A line of what was asked for. Where nobody reads any more (`| head`) it goes on quietly to its end: a store that is not
/// closed is checked from its first byte to its last at the next start.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

impl Filter {
    fn query(&self) -> Query {
        let mut query = Query::new();
        query.extend(self.sources.iter().map(|name| ("source", name.clone())));
        query.extend(self.upstreams.iter().map(|name| ("upstream", name.clone())));
        let states = self.states.iter().filter_map(ValueEnum::to_possible_value);
        query.extend(states.map(|state| ("state", state.get_name().to_owned())));
        query.extend(self.since.iter().map(|time| ("since", time.clone())));
        query.extend(self.until.iter().map(|time| ("until", time.clone())));
        query.extend(self.events.iter().map(|event| ("event", event.clone())));
        query.extend(self.ids.iter().map(|id| ("id", id.clone())));
        query
    }
}

/// Asks page after page, until there is none or `take` has enough. A page may be empty and not the last: each looks
/// through a bounded part of the store. More ids than one question can carry become several questions.
fn each_page(
    place: &Place,
    (method, path): (&Method, &str),
    query: Query,
    mut take: impl FnMut(&Page) -> Result<Enough, Failure>,
) -> Result<Option<String>, Failure> {
    let (ids, mut query): (Query, Query) = query.into_iter().partition(|(name, _)| *name == "id");
    let mut groups = in_groups(ids)?.into_iter();
    let mut group = groups.next().unwrap_or_default();
    loop {
        let whole: Query = group.iter().chain(&query).cloned().collect();
        let answer = place.ask(method, path, &encoded(&whole))?;
        let page: Page = serde_json::from_slice(&answer).map_err(|error| strange(&error))?;
        let left = match take(&page)? {
            Enough::No(left) => left,
            Enough::Yes => return Ok(page.next),
        };
        query.retain(|(name, _)| !matches!(*name, "after" | "limit" | "due_from"));
        query.extend(left.map(|left| ("limit", left.to_string())));
        query.extend(page.due_from.map(|from| ("due_from", from.to_string())));
        match page.next {
            Some(next) => query.push(("after", next)),
            None => match groups.next() {
                Some(following) => group = following,
                None => return Ok(None),
            },
        }
    }
}

/// Each short enough for one question.
fn in_groups(ids: Query) -> Result<Vec<Query>, Failure> {
    let mut groups: Vec<(usize, Query)> = Vec::new();
    for id in ids {
        let length = encoded(&vec![id.clone()]).len() + 1;
        if length > LONGEST_IDS {
            return Err(Failure::new(USAGE, "an id is longer than any that there is"));
        }
        match groups.last_mut() {
            Some((total, group)) if *total + length <= LONGEST_IDS => {
                *total += length;
                group.push(id);
            }
            _ => groups.push((length, vec![id])),
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

fn strange(error: &serde_json::Error) -> Failure {
    Failure::new(NO, format!("the answer is not understood: {error}"))
}

enum Enough {
    Yes,
    /// Go on, with at most so many more.
    No(Option<u64>),
}

/// One answer. Deliveries stay as they were written: what is exported is copied and not made anew.
#[derive(serde::Deserialize)]
struct Page {
    #[serde(default)]
    deliveries: Vec<Box<RawValue>>,
    #[serde(default)]
    matched: u64,
    #[serde(default)]
    changed: u64,
    #[serde(default)]
    behind: u64,
    /// When the next one would be due.
    #[serde(default)]
    due_from: Option<u64>,
    #[serde(default)]
    next: Option<String>,
}

fn encoded(query: &Query) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish()
}

fn list(place: &Place, listing: &Listing) -> Done {
    let mut query = listing.filter.query();
    query.push(("limit", listing.limit.to_string()));
    query.extend(listing.after.iter().map(|after| ("after", after.clone())));
    if listing.oldest {
        query.push(("order", "oldest".to_owned()));
    }
    let mut found = 0;
    let mut rows = Vec::new();
    let next = each_page(place, (&Method::GET, "/inbox/deliveries"), query, |page| {
        found += page.deliveries.len() as u64;
        for delivery in &page.deliveries {
            match listing.json {
                true => say(&print::json(delivery.get())),
                false => rows.push(print::row(&understood(delivery)?)),
            }
        }
        Ok(if found >= listing.limit { Enough::Yes } else { Enough::No(Some(listing.limit - found)) })
    })?;
    if !rows.is_empty() {
        print::table(&print::COLUMNS, &rows);
    }
    if found == 0 {
        complain("nothing in the inbox matches");
        return Ok(ExitCode::from(NO));
    }
    if let Some(next) = next {
        complain(&format!("there may be more: --after {}", print::plain(&next)));
    }
    Ok(ExitCode::SUCCESS)
}

fn understood(raw: &RawValue) -> Result<Value, Failure> {
    serde_json::from_str(raw.get()).map_err(|error| strange(&error))
}

fn show(place: &Place, showing: &Showing) -> Done {
    let id: String = form_urlencoded::byte_serialize(showing.id.as_bytes()).collect();
    // In a path a plus is a plus.
    let path = format!("/inbox/deliveries/{}", id.replace('+', "%20"));
    let query = if showing.reveal { vec![("reveal", "1".to_owned())] } else { Query::new() };
    let answer = place.ask(&Method::GET, &path, &encoded(&query))?;
    let delivery: Value = serde_json::from_slice(&answer).map_err(|error| strange(&error))?;
    if showing.json {
        say(&print::json(&delivery.to_string()));
    } else if showing.body {
        return write_body(&delivery);
    } else {
        print::delivery(&delivery);
    }
    Ok(ExitCode::SUCCESS)
}

fn write_body(delivery: &Value) -> Done {
    if let Some(why) = delivery["unreadable"].as_str() {
        return Err(Failure::new(NO, format!("the body cannot be read: {}", print::plain(why))));
    }
    let body = STANDARD
        .decode(delivery["body_base64"].as_str().unwrap_or_default())
        .map_err(|error| Failure::new(NO, format!("the answer is not understood: {error}")))?;
    let mut out = std::io::stdout().lock();
    if out.is_terminal() && print::could_drive_a_terminal(&body) {
        let why = "the body has bytes that could drive this terminal; send it to a file or a pipe, or leave out --body";
        return Err(Failure::new(NO, why));
    }
    // Nobody reads it any more: as with `say`, no failure.
    let _ = out.write_all(&body).and_then(|()| out.flush());
    Ok(ExitCode::SUCCESS)
}

fn act(place: &Place, verb: &str, choice: &Choice, mut query: Query) -> Done {
    query.extend(choice.filter.query());
    query.extend(choice.named.iter().map(|id| ("id", id.clone())));
    query.extend(choice.limit.map(|limit| ("limit", limit.to_string())));
    if choice.all {
        query.push(("all", "1".to_owned()));
    }
    if choice.dry_run {
        query.push(("dry_run", "1".to_owned()));
    }
    let (mut matched, mut changed, mut behind) = (0, 0, 0);
    each_page(place, (&Method::POST, &format!("/inbox/{verb}")), query, |page| {
        matched += page.matched;
        changed += page.changed;
        behind += page.behind;
        Ok(match choice.limit {
            Some(limit) if matched >= limit => Enough::Yes,
            limit => Enough::No(limit.map(|limit| limit - matched)),
        })
    })?;
    let (done, would) = if verb == "retry" { ("retried", "be retried") } else { ("discarded", "be discarded") };
    if choice.json {
        say(
            &serde_json::json!({ "matched": matched, "changed": changed, "behind": behind, "dry_run": choice.dry_run })
                .to_string(),
        );
    } else {
        let what = if choice.dry_run { format!("{matched} would {would}") } else { format!("{changed} {done}") };
        let waits = match behind {
            0 => String::new(),
            _ => format!("; {behind} of them when it is their turn, behind an earlier delivery of the same order"),
        };
        say(&format!("{what}{waits}"));
    }
    if matched > 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let Filter { states, ids, .. } = &choice.filter;
    if states.is_empty() && ids.is_empty() && choice.named.is_empty() {
        complain("without --state and without an id dead letters alone are looked for");
    }
    Ok(ExitCode::from(NO))
}

fn stats(place: &Place, as_json: bool) -> Done {
    let answer = place.ask(&Method::GET, "/inbox/stats", "")?;
    let stats: Value = serde_json::from_slice(&answer).map_err(|error| strange(&error))?;
    match as_json {
        true => say(&print::json(&stats.to_string())),
        false => print::stats(&stats),
    }
    Ok(ExitCode::SUCCESS)
}
