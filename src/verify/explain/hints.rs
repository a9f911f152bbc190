//! What would have made it pass? Found by trying, one change at a time.
//!
//! Invariant: a hint is told where the changed request, or the changed configuration, was judged and passed (late, at
//! most). The first that passes ends the search: what passes with one thing changed is right in all others. Only where
//! nothing passes is something supposed: a header or a body that is plainly not there, or compressed. The trials are bounded in number
//! and in bytes judged.

use super::super::Verifier;
use super::story::span;
use super::{Case, Change, Hint, bodies, headers, schemes, times, urls};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::refusal::Refusal;

const MOST_TRIALS: usize = 3000;
/// A trial hashes the body, perhaps several times.
const MOST_BYTES: usize = 1 << 30;
/// A trial costs more than its body.
const TRIAL_BYTES: usize = 1024;

/// Work under way.
pub(super) struct Search<'a> {
    pub(super) verifier: &'a Verifier,
    pub(super) case: &'a Case<'a>,
    /// The times of which the request speaks.
    times: Vec<UnixMillis>,
    /// It is stale, and nothing else was found amiss.
    is_stale: bool,
    trials_left: usize,
    bytes_left: usize,
    hints: Vec<Hint>,
}

/// How a trial passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Now,
    /// All but its time.
    At(UnixMillis),
    /// All but its time, and that is not known.
    Late,
}

pub(super) fn find(verifier: &Verifier, case: &Case<'_>, refusal: Refusal) -> Vec<Hint> {
    if !(verifier.has_signature() || verifier.is_guessable()) || !refusal.is_unproven() {
        return Vec::new();
    }
    let mut search = Search {
        verifier,
        case,
        times: times::stated(case.delivery),
        is_stale: refusal == Refusal::Stale,
        trials_left: MOST_TRIALS,
        bytes_left: MOST_BYTES,
        hints: Vec::new(),
    };
    if search.is_stale {
        schemes::try_units(&mut search);
        if search.hints.is_empty() {
            search.tell_clock();
        }
        return search.hints;
    }
    headers::try_all(&mut search);
    bodies::try_all(&mut search);
    urls::try_all(&mut search);
    schemes::try_secrets(&mut search);
    schemes::try_settings(&mut search);
    schemes::try_units(&mut search);
    schemes::try_other_sources(&mut search);
    schemes::try_providers(&mut search);
    if search.hints.is_empty() {
        bodies::suppose_lost(&mut search);
        if search.hints.is_empty() {
            bodies::suppose_compressed(&mut search);
        }
        headers::suppose_missing(&mut search);
    }
    search.hints
}

impl Search<'_> {
    pub(super) fn is_done(&self) -> bool {
        self.trials_left == 0 || self.bytes_left == 0 || !self.hints.is_empty()
    }

    /// The source's own verifier on a changed request.
    pub(super) fn passes(&mut self, delivery: Delivery) -> Option<Passed> {
        if self.is_done() { None } else { self.judged(self.verifier, delivery) }
    }

    /// A rebuilt verifier on the request as it is.
    pub(super) fn passes_with(&mut self, change: &Change<'_>) -> Option<Passed> {
        self.passes_both(change, self.case.delivery.clone())
    }

    pub(super) fn passes_both(&mut self, change: &Change<'_>, delivery: Delivery) -> Option<Passed> {
        if self.is_done() {
            return None;
        }
        let rebuilt = self.case.workshop.rebuilt(self.case.source, change)?;
        // What accepts anything explains nothing.
        if !rebuilt.has_signature() && !rebuilt.is_guessable() {
            return None;
        }
        self.judged(&rebuilt, delivery)
    }

    fn judged(&mut self, verifier: &Verifier, delivery: Delivery) -> Option<Passed> {
        let delivery = self.trial(verifier, delivery, self.case.now)?;
        let delivery = match delivery {
            Ok(()) => return Some(Passed::Now),
            Err((delivery, Refusal::Stale)) => delivery,
            Err(_) => return None,
        };
        let mut delivery = delivery;
        for time in self.times.clone() {
            match self.trial(verifier, *delivery, time)? {
                Ok(()) => return Some(Passed::At(time)),
                Err((back, _)) => delivery = back,
            }
        }
        (!self.is_stale).then_some(Passed::Late)
    }

    /// `None`: no more.
    fn trial(
        &mut self,
        verifier: &Verifier,
        delivery: Delivery,
        now: UnixMillis,
    ) -> Option<Result<(), (Box<Delivery>, Refusal)>> {
        self.trials_left = self.trials_left.checked_sub(1)?;
        self.bytes_left = self.bytes_left.checked_sub(delivery.body.len() + TRIAL_BYTES)?;
        Some(match verifier.judge(delivery, now, self.case.library) {
            Ok(_) => Ok(()),
            Err(refused) => Err((refused.delivery, refused.refusal)),
        })
    }

    pub(super) fn tell(&mut self, kind: &'static str, says: impl Into<String>, try_this: impl Into<String>) {
        self.hints.push(Hint { kind, says: says.into(), try_this: try_this.into() });
    }

    /// As `tell`, and that it is late, if it is.
    pub(super) fn tell_passed(
        &mut self,
        passed: Passed,
        kind: &'static str,
        says: impl Into<String>,
        try_this: impl Into<String>,
    ) {
        let mut says = says.into();
        match passed {
            Passed::Now => {}
            Passed::At(time) => {
                says.push_str(&format!(" (and its time is {} off)", span(self.case.now.distance(time).as_secs())));
            }
            Passed::Late => says.push_str(" (and its time is off)"),
        }
        self.tell(kind, says, try_this);
    }

    /// The message is genuine: how far is its time off?
    fn tell_clock(&mut self) {
        for time in self.times.clone() {
            let Some(judged) = self.trial(self.verifier, self.case.delivery.clone(), time) else { return };
            if judged.is_err() {
                continue;
            }
            let off = self.case.now.distance(time).as_secs();
            let which = if time < self.case.now { "before" } else { "after" };
            let says = format!(
                "the message is genuine, and would have passed at {}: its time is {} {which} the time of judging",
                time.as_secs(),
                span(off)
            );
            let by_the_hour = off >= 1800 && (off + 120) % 1800 <= 240;
            let try_this = match (by_the_hour && off <= 15 * 3600, time < self.case.now) {
                (true, _) => "whole (half) hours: the sender, or this machine, takes a local time for UTC".to_owned(),
                (false, true) => format!(
                    "a saved request is judged at its own time with --now {}; one that came so late was resent without \
                     being signed anew, or a clock is off",
                    time.as_secs()
                ),
                (false, false) => "set this machine's clock by NTP; the sender's is ahead of it".to_owned(),
            };
            self.tell("clock", says, try_this);
            return;
        }
    }
}
