//! The steps of one judgement, in words; and the words for the scheme that signs a template.
//!
//! Invariant: what is told was found by the functions that judge. A presented signature is cut to its beginning, for one
//! that is genuine and merely late would still be a credential.

use std::fmt::Write as _;

use super::super::presented::{Place, Presented, TimestampPlace};
use super::super::proof::{Failure, Proof, Question};
use super::super::prover::{Keys, Prover};
use super::super::template::{Facts, UrlForm};
use super::super::{Fault, Findings};
use super::veil::Veil;
use crate::clock::UnixMillis;
use crate::refusal::Refusal;

/// Of a message: this much of its beginning and its end.
const SHOWN_HEAD: usize = 120;
const SHOWN_TAIL: usize = 40;
/// Of a signature's text.
const SHOWN_SIGNATURE: usize = 16;
const SHOWN_MAC: usize = 4;
/// A story is for a person.
const MOST_STEPS: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) about: String,
    pub(crate) says: String,
    /// `None`: a fact, neither good nor bad.
    pub(crate) ok: Option<bool>,
}

impl Step {
    pub(crate) fn new(about: impl Into<String>, ok: Option<bool>, says: impl Into<String>) -> Self {
        Self { about: about.into(), says: says.into(), ok }
    }
}

#[derive(Debug)]
pub(crate) struct Story {
    steps: Vec<Step>,
    shows_expected: bool,
    veil: Veil,
}

impl Story {
    pub(super) fn new(shows_expected: bool, veil: Veil) -> Self {
        Self { steps: Vec::new(), shows_expected, veil }
    }

    pub(super) fn into_parts(self) -> (Vec<Step>, Veil) {
        (self.steps, self.veil)
    }

    /// What was signed: its beginning and its end, without any secret.
    fn message(&self, bytes: &[u8]) -> String {
        shown(&self.veil.bytes(bytes))
    }

    fn add(&mut self, about: impl Into<String>, ok: Option<bool>, says: impl Into<String>) {
        if self.steps.len() < MOST_STEPS {
            self.steps.push(Step::new(about, ok, says));
        }
    }

    pub(crate) fn good(&mut self, about: impl Into<String>, says: impl Into<String>) {
        self.add(about, Some(true), says);
    }

    pub(crate) fn bad(&mut self, about: impl Into<String>, says: impl Into<String>) {
        self.add(about, Some(false), says);
    }

    pub(crate) fn fact(&mut self, about: impl Into<String>, says: impl Into<String>) {
        self.add(about, None, says);
    }

    /// How a proof ended.
    pub(crate) fn judged(&mut self, proof: &str, outcome: &Result<Findings, Failure>) {
        match outcome {
            Ok(_) => self.good(proof, "proven"),
            Err(Failure { fault: Fault { refusal, note }, .. }) => {
                self.bad(proof, format!("{}: {note}", refusal.label()));
            }
        }
    }
}

/// The beginning and the end of what was signed, with everything unprintable spelled out.
fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN_HEAD + SHOWN_TAIL {
        return format!("\"{}\"", escaped(bytes));
    }
    let (head, _) = bytes.split_at_checked(SHOWN_HEAD).unwrap_or_default();
    let (_, tail) = bytes.split_at_checked(bytes.len() - SHOWN_TAIL).unwrap_or_default();
    format!("\"{}\" … \"{}\"", escaped(head), escaped(tail))
}

pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn beginning(text: &str) -> String {
    let length = text.chars().count();
    match text.char_indices().nth(SHOWN_SIGNATURE) {
        Some((end, _)) => {
            format!("\"{}…\" ({length} characters)", escaped(text.get(..end).unwrap_or_default().as_bytes()))
        }
        None => format!("\"{}\"", escaped(text.as_bytes())),
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Header(names) | Place::EveryHeader(names) => header(names),
        Place::Query(name) => format!("query parameter {name}"),
        Place::Form(name) => format!("form field {name}"),
        Place::Json(pointer) => format!("JSON {pointer}"),
        Place::HeaderJson { names, pointer } => format!("{}, JSON {pointer}", header(names)),
    }
}

fn header(names: &[http::HeaderName]) -> String {
    format!("header {}", names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" or "))
}

fn timestamp_place(place: &TimestampPlace) -> String {
    match place {
        TimestampPlace::Header(name) => format!("header {name}"),
        TimestampPlace::Pair(name) => format!("`{name}` beside the signature"),
        TimestampPlace::Json(pointer) => format!("JSON {pointer}"),
        _ => "beside the signature".to_owned(),
    }
}

/// `2 h 5 min before now`.
pub(super) fn from_now(time: UnixMillis, now: UnixMillis) -> String {
    let distance = now.distance(time);
    let which = if time <= now { "before now" } else { "after now" };
    format!("{} {which}", span(distance.as_secs()))
}

pub(super) fn span(secs: u64) -> String {
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min {} s", secs / 60, secs % 60),
        7200..=172_799 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} days", secs / 86_400),
    }
}

/// A template scheme's own story: where its signature and its time are, what was signed, and which secret was compared.
pub(in super::super) fn tell(prover: &Prover, question: &Question<'_>, story: &mut Story) {
    let Question { delivery, json, public_url, now, .. } = *question;
    let scheme = &prover.scheme;
    if scheme.more.for_each.is_some() {
        story.fact("items", "every item of the body is signed by itself");
        story.judged(&prover.name(), &prover.examine(question));
        return;
    }
    let text = scheme.signature.find(delivery, json);
    let found_at = place(&scheme.signature.place);
    let mut presented = Presented::default();
    match &text {
        Err(fault) => story.bad("signature", format!("{found_at}: {}", fault.note)),
        Ok(text) => match scheme.signature.parse(text, &scheme.algorithm.signature_lengths()) {
            Err(fault) => story.bad("signature", format!("{found_at}: {}: {}", beginning(text), fault.note)),
            Ok(parsed) => {
                let count = parsed.candidates.len();
                let what = if count == 1 { "signature" } else { "signatures" };
                story.good("signature", format!("{found_at}: {}, {count} {what}", beginning(text)));
                presented = parsed;
            }
        },
    }
    let mut stamp = None;
    if let Some(timestamp) = &scheme.timestamp {
        let found_at = timestamp_place(&timestamp.place);
        match timestamp.place.find(delivery, &presented, json) {
            Err(fault) => story.bad("timestamp", format!("{found_at}: {}", fault.note)),
            Ok(text) => {
                match timestamp.unit.parse(&text) {
                    None => story
                        .bad("timestamp", format!("{found_at}: {} is not of the configured unit", beginning(&text))),
                    Some(stated) => {
                        let fresh = timestamp.is_fresh(stated, now);
                        let tolerance = match timestamp.tolerance {
                            Some(tolerance) => format!("the tolerance is {}", span(tolerance.as_secs())),
                            None => "it is not judged".to_owned(),
                        };
                        let says =
                            format!("{found_at}: {} is {}; {tolerance}", beginning(&text), from_now(stated, now));
                        story.add("timestamp", Some(fresh), says);
                    }
                }
                stamp = Some(text);
            }
        }
    }
    let missing = |name: &&http::HeaderName| !delivery.headers.contains_key(*name);
    for name in scheme.message_of(delivery).needed_headers().chain(&scheme.required_headers).filter(missing) {
        story.bad("header", format!("{name} is needed and not there"));
    }
    let body = scheme.more.document.signed_body(delivery);
    let facts = Facts {
        delivery,
        public_url,
        timestamp: stamp.as_deref(),
        pairs: &presented.pairs,
        json,
        body: body.as_deref(),
        url_form: UrlForm::AsIs,
    };
    let message = scheme.message_of(delivery).render(&facts);
    let whole = message.whole();
    if message.complete {
        story.fact("message", format!("{} bytes were signed: {}", whole.len(), story.message(&whole)));
    } else {
        story.bad("message", format!("incomplete; what there is: {}", story.message(&whole)));
    }
    if let Keys::Hmac(secrets) = &prover.keys
        && story.shows_expected
        && message.complete
    {
        let begins = |bytes: &[u8]| hex::encode(bytes.get(..SHOWN_MAC).unwrap_or_default());
        let theirs: Vec<_> = presented.candidates.iter().map(|candidate| begins(candidate)).collect();
        for (position, secret) in secrets.iter().enumerate() {
            let mac = secret.mac(&message.pieces);
            let same = theirs.iter().any(|theirs| begins(&mac).starts_with(theirs.as_str()));
            let says = format!(
                "secret {} makes {}… in {}; presented: {}",
                position + 1,
                begins(&mac),
                scheme.algorithm.name(),
                if theirs.is_empty() { "nothing".to_owned() } else { format!("{}…", theirs.join("…, ")) }
            );
            story.add("comparison", Some(same), says);
        }
    }
    let outcome = prover.examine(question);
    story.judged(&prover.name(), &outcome);
    if matches!(&outcome, Err(failure) if failure.fault.refusal == Refusal::Stale) {
        story.fact("freshness", "the signature is genuine; only the time is not");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_escaped_and_cut() {
        assert_eq!(escaped(b"a\"\\\n\r\t\x00\xff\xc3\xa9"), "a\\\"\\\\\\n\\r\\t\\u{0}\\xff\u{e9}");
        assert_eq!(escaped("\u{202e}".as_bytes()), "\\u{202e}");
        let long = shown(&[b'a'; 1000]);
        assert_eq!(long.matches('a').count(), SHOWN_HEAD + SHOWN_TAIL);
        assert_eq!(beginning(&"é".repeat(40)), format!("\"{}…\" (40 characters)", "é".repeat(16)));
        assert_eq!(from_now(UnixMillis::from_secs(1000), UnixMillis::from_secs(8500)), "2 h 5 min before now");
    }
}
