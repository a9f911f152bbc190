//! `inbox quarantine` and `inbox reverify`: what was refused for its signature alone, and having it judged again.
//!
//! Invariant: judging again is the running gateway's own: it alone knows what was accepted since, and has the keys.

use super::place::Place;
use super::print::{self, plain};
use super::{Done, Failure, NO, encoded, say};
use crate::cli::complain;
use http::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Listing {
    /// Of this source alone.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// For programs: one object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct Reverifying {
    /// The source whose secret was mended, in a configuration that the gateway has loaded.
    #[arg(long, value_name = "NAME")]
    source: String,
    /// For programs: one object.
    #[arg(long)]
    json: bool,
}

const COLUMNS: [&str; 6] = ["source", "requests", "bytes", "clients", "oldest", "newest"];

/// One round's answer, and the sum of all.
#[derive(Default, serde::Deserialize, serde::Serialize)]
struct Told {
    accepted: u64,
    replays: u64,
    duplicates: u64,
    challenges: u64,
    still_refused: BTreeMap<String, u64>,
    in_flight: u64,
    expired: u64,
    unreadable: u64,
    stopped: Option<String>,
    #[serde(skip_serializing)]
    next: Option<i64>,
}

impl Told {
    fn add(&mut self, more: Self) {
        self.accepted += more.accepted;
        self.replays += more.replays;
        self.duplicates += more.duplicates;
        self.challenges += more.challenges;
        for (reason, count) in more.still_refused {
            *self.still_refused.entry(reason).or_default() += count;
        }
        self.in_flight += more.in_flight;
        self.expired += more.expired;
        self.unreadable += more.unreadable;
        self.stopped = more.stopped;
        self.next = more.next;
    }
}

pub(super) fn list(place: &Place, listing: &Listing) -> Done {
    let query = listing.source.iter().map(|name| ("source", name.clone())).collect();
    let answer = place.ask(&Method::GET, "/inbox/quarantine", &encoded(&query))?;
    let told: Value = serde_json::from_slice(&answer).map_err(|error| not_understood(&error))?;
    if listing.json {
        say(&print::json(&told.to_string()));
        return Ok(ExitCode::SUCCESS);
    }
    let cell = |one: &Value, name: &str| match &one[name] {
        Value::String(text) => plain(text),
        other => other.to_string(),
    };
    let kept = told["quarantine"].as_array().into_iter().flatten();
    let names = ["source", "count", "bytes", "clients", "oldest", "newest"];
    let rows: Vec<[String; 6]> = kept.map(|one| names.map(|name| cell(one, name))).collect();
    if rows.is_empty() {
        complain("nothing is in the quarantine");
        return Ok(ExitCode::from(NO));
    }
    print::table(&COLUMNS, &rows);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn reverify(place: &Place, reverifying: &Reverifying) -> Done {
    let mut sum = Told::default();
    loop {
        let mut query = vec![("source", reverifying.source.clone())];
        query.extend(sum.next.map(|next| ("after", next.to_string())));
        let answer = place.ask(&Method::POST, "/inbox/reverify", &encoded(&query))?;
        sum.add(serde_json::from_slice(&answer).map_err(|error| not_understood(&error))?);
        if sum.next.is_none() || sum.stopped.is_some() {
            break;
        }
    }
    if reverifying.json {
        say(&print::json(&serde_json::to_string(&sum).map_err(|error| not_understood(&error))?));
    } else {
        for line in lines(&sum) {
            say(&line);
        }
    }
    match &sum.stopped {
        Some(why) => Err(Failure::new(NO, format!("not all were judged: {}", plain(why)))),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::new(NO, format!("the answer is not understood: {error}"))
}

fn lines(sum: &Told) -> Vec<String> {
    let mut lines =
        vec![format!("{} accepted: they are in the inbox now, in the order in which they came", sum.accepted)];
    let mut say_of = |count: u64, what: &str| {
        if count > 0 {
            lines.push(format!("{count} {what}"));
        }
    };
    say_of(sum.replays, "replays of what was accepted before: dropped");
    say_of(sum.duplicates, "duplicates of events that were accepted before: dropped");
    say_of(sum.challenges, "questions of the provider, which it asks again by itself: dropped");
    for (reason, count) in &sum.still_refused {
        say_of(*count, &format!("refused still ({}): kept", plain(reason)));
    }
    say_of(sum.in_flight, "copies of what is under way just now: kept, try again");
    say_of(sum.expired, "older than [inbox] quarantine max_age: about to be dropped");
    say_of(sum.unreadable, "that cannot be read: kept; see the log");
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_is_not_spoken_of_and_rounds_are_added_up() {
        let mut sum = Told::default();
        for (accepted, refused, next) in [(2, 1, Some(7)), (1, 0, None)] {
            let still_refused =
                if refused > 0 { BTreeMap::from([("bad_signature".to_owned(), refused)]) } else { BTreeMap::new() };
            sum.add(Told { accepted, still_refused, next, ..Told::default() });
        }
        assert_eq!(sum.next, None);
        assert_eq!(
            lines(&sum),
            [
                "3 accepted: they are in the inbox now, in the order in which they came",
                "1 refused still (bad_signature): kept",
            ]
        );
    }
}
