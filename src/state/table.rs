//! One source's claims: what is reserved, by whom and for how long, and what was committed.
//!
//! Pure: no clock, no I/O; `ledger.rs` asks, `disk.rs` settles what it has written. What must stay true:
//! - a print in `replay_held` or `events_held` names a token in `open`, and every open token holds all of its prints:
//!   they are taken and let go together;
//! - an open token is in `leases` exactly when it is not being committed. A commit under way has no end but the
//!   writer's answer: were its lease to run out meanwhile, a copy could be first while the disk says accepted;
//! - tokens are never used twice, so one that ended can neither commit nor release what a later one holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keyed::Keyed;
use super::shelf::{MAX_ENTRIES, Print, Shelf};
use crate::clock::UnixMillis;

/// Guards the whole of one source's table, for a few microseconds at a time; never held across an await or a write. One
/// lock a source, not several: the keys of an ask are judged and taken in one step.
pub(super) type SharedTable = Arc<Mutex<Table>>;

/// A panic while the lock was held would be a bug in this file. Refusing everything from then on would turn it into an
/// outage of the source, and no step of a table leaves a committed replay key forgotten.
pub(super) fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Table {
    max_claims: usize,
    replay: Shelf,
    events: Shelf,
    replay_held: HashMap<Print, Token, Keyed>,
    events_held: HashMap<Print, Token, Keyed>,
    open: HashMap<Token, Open, Keyed>,
    leases: BTreeSet<(UnixMillis, Token)>,
    last_token: Token,
}

pub(super) type Token = u64;

pub(super) type Kept = (Print, UnixMillis);

/// Steps of giving up what has expired that one `reserve` does beside its own work: more than it can add, so a backlog
/// shrinks under any load, and few enough to stay in the microseconds.
const RECLAIM_STEPS: usize = 32;

struct Open {
    lease_until: UnixMillis,
    committing: bool,
    record: Record,
}

/// What a commit makes known.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) prints: Vec<Print>,
    pub(crate) keep_until: UnixMillis,
    pub(crate) event: Option<Print>,
    pub(crate) event_keep_until: UnixMillis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    First(Token),
    InFlight,
    Replay,
    Duplicate(Token),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Table {
    pub(super) fn new(max_claims: usize) -> Self {
        Self {
            max_claims: max_claims.min(MAX_ENTRIES),
            replay: Shelf::default(),
            events: Shelf::default(),
            replay_held: HashMap::default(),
            events_held: HashMap::default(),
            open: HashMap::default(),
            leases: BTreeSet::new(),
            last_token: 0,
        }
    }

    /// Replay keys reserved and remembered.
    pub(super) fn len(&self) -> usize {
        self.replay.len() + self.replay_held.len()
    }

    pub(super) fn max_claims(&self) -> usize {
        self.max_claims
    }

    /// Lowering it below what is remembered forgets nothing: the table is full until enough has expired.
    pub(super) fn resize(&mut self, max_claims: usize) {
        self.max_claims = max_claims.min(MAX_ENTRIES);
    }

    pub(super) fn reserve(
        &mut self,
        record: Record,
        now: UnixMillis,
        lease_until: UnixMillis,
    ) -> Result<Judgement, Full> {
        self.reclaim(now, RECLAIM_STEPS + 2 * record.prints.len());

        let is_known = |shelf: &Shelf, print| shelf.until(print).is_some_and(|until| until > now);
        if record.prints.iter().any(|print| is_known(&self.replay, print)) {
            return Ok(Judgement::Replay);
        }

        let holders = record.prints.iter().filter_map(|print| self.replay_held.get(print));
        let event_holder = record.event.as_ref().and_then(|event| self.events_held.get(event));
        let holders: Vec<Token> = holders.chain(event_holder).copied().collect();
        if holders.iter().any(|token| self.open.get(token).is_some_and(|open| open.runs(now))) {
            return Ok(Judgement::InFlight);
        }
        for token in holders {
            self.end(token);
        }

        // Reservations without replay keys are counted too: they hold memory like the others.
        while self.len() + record.prints.len() > self.max_claims || self.open.len() >= self.max_claims {
            if !self.reclaim_claim(now) {
                return Err(Full);
            }
        }

        let is_duplicate = record.event.as_ref().is_some_and(|event| is_known(&self.events, event));
        self.last_token += 1;
        let token = self.last_token;
        for print in &record.prints {
            self.replay_held.insert(*print, token);
        }
        if let Some(event) = record.event {
            self.events_held.insert(event, token);
        }
        self.leases.insert((lease_until, token));
        self.open.insert(token, Open { lease_until, committing: false, record });
        Ok(if is_duplicate { Judgement::Duplicate(token) } else { Judgement::First(token) })
    }

    /// One of them was committed. What is in flight is not looked at.
    pub(super) fn is_replay(&self, record: &Record, now: UnixMillis) -> bool {
        record.prints.iter().any(|print| self.replay.until(print).is_some_and(|until| until > now))
    }

    /// What was committed, in parts of at most some thousand that are numbered from zero: replay keys and events. None
    /// behind the last.
    pub(super) fn part(&self, number: usize) -> Option<(Vec<Kept>, Vec<Kept>)> {
        match (self.replay.part(number), self.events.part(number)) {
            (None, None) => None,
            (replay, events) => Some((replay.unwrap_or_default(), events.unwrap_or_default())),
        }
    }

    /// Holds the reservation whatever its lease says, until `finish_commit` or `fail_commit`. None: the lease is over,
    /// or the token is not current, and nothing must be written.
    pub(super) fn begin_commit(&mut self, token: Token, now: UnixMillis) -> Option<Record> {
        let open = self.open.get_mut(&token)?;
        if !open.runs(now) {
            self.end(token);
            return None;
        }
        open.committing = true;
        self.leases.remove(&(open.lease_until, token));
        Some(open.record.clone())
    }

    pub(super) fn finish_commit(&mut self, token: Token) {
        if let Some(record) = self.end(token) {
            for print in record.prints {
                self.replay.put(print, record.keep_until);
            }
            if let Some(event) = record.event {
                self.remember_event(event, record.event_keep_until);
            }
        }
    }

    /// Both in one step, where nobody has to be asked in between. False: the lease is over, or the token is not current.
    pub(super) fn commit(&mut self, token: Token, now: UnixMillis) -> bool {
        let runs = self.open.get(&token).is_some_and(|open| open.runs(now));
        if runs {
            self.finish_commit(token);
        } else {
            self.end(token);
        }
        runs
    }

    /// The reservation goes on under its lease: the caller may try again.
    pub(super) fn fail_commit(&mut self, token: Token) {
        if let Some(open) = self.open.get_mut(&token) {
            open.committing = false;
            self.leases.insert((open.lease_until, token));
        }
    }

    pub(super) fn release(&mut self, token: Token) {
        if self.open.get(&token).is_some_and(|open| !open.committing) {
            self.end(token);
        }
    }

    /// False when there was nothing left to renew: a lease that has run out cannot be had back.
    pub(super) fn renew(&mut self, token: Token, now: UnixMillis, lease_until: UnixMillis) -> bool {
        let Some(open) = self.open.get_mut(&token).filter(|open| open.runs(now)) else {
            return false;
        };
        let before = std::mem::replace(&mut open.lease_until, lease_until);
        if !open.committing {
            self.leases.remove(&(before, token));
            self.leases.insert((lease_until, token));
        }
        true
    }

    /// What an earlier process committed. Takes all there is: the bound is for what is new.
    pub(super) fn restore_replay(&mut self, print: Print, until: UnixMillis) {
        self.replay.put(print, until);
    }

    pub(super) fn restore_event(&mut self, print: Print, until: UnixMillis) {
        self.remember_event(print, until);
    }

    /// What a store elsewhere was told of, though nothing is reserved for it here any more.
    pub(super) fn restore(&mut self, record: &Record) {
        for print in &record.prints {
            self.restore_replay(*print, record.keep_until);
        }
        if let Some(event) = record.event {
            self.restore_event(event, record.event_keep_until);
        }
    }

    /// At most `steps` steps of giving up what has expired; false when nothing is left to give up.
    pub(super) fn reclaim(&mut self, now: UnixMillis, steps: usize) -> bool {
        (0..steps).all(|_| {
            let claims = self.reclaim_claim(now);
            self.events.reclaim_one(now) || claims
        })
    }

    fn reclaim_claim(&mut self, now: UnixMillis) -> bool {
        match self.leases.first() {
            Some(&(until, token)) if until <= now => {
                self.end(token);
                true
            }
            _ => self.replay.reclaim_one(now),
        }
    }

    fn remember_event(&mut self, event: Print, until: UnixMillis) {
        if self.events.len() >= self.max_claims && self.events.until(&event).is_none() {
            self.events.pop_soonest();
        }
        self.events.put(event, until);
    }

    fn end(&mut self, token: Token) -> Option<Record> {
        let open = self.open.remove(&token)?;
        self.leases.remove(&(open.lease_until, token));
        for print in &open.record.prints {
            self.replay_held.remove(print);
        }
        if let Some(event) = &open.record.event {
            self.events_held.remove(event);
        }
        Some(open.record)
    }
}

impl Open {
    fn runs(&self, now: UnixMillis) -> bool {
        self.committing || self.lease_until > now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same rules over plain lists: nothing clever, nothing incremental.
    #[derive(Default)]
    struct Model {
        kept: Vec<(u8, u64)>,
        events: Vec<(u8, u64)>,
        open: Vec<Held>,
    }

    struct Held {
        token: Token,
        keys: Vec<u8>,
        event: Option<u8>,
        lease_until: u64,
        committing: bool,
    }

    impl Held {
        fn runs(&self, now: u64) -> bool {
            self.committing || self.lease_until > now
        }
    }

    const MAX: usize = 12;

    impl Model {
        fn reserve(&mut self, keys: &[u8], event: Option<u8>, now: u64) -> Result<&'static str, Full> {
            let known = |kept: &[(u8, u64)], key| kept.iter().any(|&(k, until)| k == key && until > now);
            self.kept.retain(|&(_, until)| until >> 10 >= now >> 10);
            self.events.retain(|&(_, until)| until > now);
            self.open.retain(|held| held.runs(now));
            if keys.iter().any(|&key| known(&self.kept, key)) {
                return Ok("replay");
            }
            let clashes = |held: &Held| {
                keys.iter().any(|key| held.keys.contains(key)) || (event.is_some() && held.event == event)
            };
            if self.open.iter().any(clashes) {
                return Ok("in flight");
            }
            let held: usize = self.open.iter().map(|held| held.keys.len()).sum();
            if self.kept.len() + held + keys.len() > MAX || self.open.len() >= MAX {
                return Err(Full);
            }
            Ok(if event.is_some_and(|event| known(&self.events, event)) { "duplicate" } else { "first" })
        }

        fn keep(list: &mut Vec<(u8, u64)>, key: u8, until: u64) {
            match list.iter_mut().find(|(k, _)| *k == key) {
                Some((_, kept)) => *kept = until.max(*kept),
                None => list.push((key, until)),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve { keys: Vec<u8>, event: Option<u8>, keep: u64, lease: u64 },
        Begin(usize),
        Finish(usize),
        Commit(usize),
        Fail(usize),
        Release(usize),
        Renew(usize, u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let keys = prop::collection::btree_set(0..24_u8, 1..4).prop_map(|keys| keys.into_iter().collect());
        prop_oneof![
            6 => (keys, prop::option::of(0..6_u8), 0..9_000_u64, 1..4_000_u64)
                .prop_map(|(keys, event, keep, lease)| Step::Reserve { keys, event, keep, lease }),
            3 => (0..8_usize).prop_map(Step::Begin),
            3 => (0..8_usize).prop_map(Step::Finish),
            2 => (0..8_usize).prop_map(Step::Commit),
            1 => (0..8_usize).prop_map(Step::Fail),
            1 => (0..8_usize).prop_map(Step::Release),
            1 => ((0..8_usize), 1..4_000_u64).prop_map(|(which, lease)| Step::Renew(which, lease)),
            3 => (1..2_500_u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn agrees_with_the_rules_written_naively(steps in prop::collection::vec(step(), 1..120)) {
            let (mut table, mut model) = (Table::new(MAX), Model::default());
            let (mut now, mut tokens) = (1_000_000_u64, Vec::<(Token, u64)>::new());
            // The latest tokens are the interesting ones; older ones have mostly ended, which must be harmless too.
            let pick = |tokens: &[(Token, u64)], back: usize| tokens.iter().rev().nth(back).copied();
            for step in steps {
                match step {
                    Step::Reserve { keys, event, keep, lease } => {
                        let record = Record {
                            prints: keys.iter().map(|&key| [key; 16]).collect(),
                            keep_until: UnixMillis(now + keep),
                            event: event.map(|event| [event; 16]),
                            event_keep_until: UnixMillis(now + keep),
                        };
                        let expected = model.reserve(&keys, event, now);
                        let judged = table.reserve(record, UnixMillis(now), UnixMillis(now + lease));
                        let token = match judged {
                            Ok(Judgement::First(token) | Judgement::Duplicate(token)) => Some(token),
                            Ok(Judgement::InFlight | Judgement::Replay) | Err(Full) => None,
                        };
                        let label = judged.map(|judged| match judged {
                            Judgement::First(_) => "first",
                            Judgement::InFlight => "in flight",
                            Judgement::Replay => "replay",
                            Judgement::Duplicate(_) => "duplicate",
                        });
                        prop_assert_eq!(label, expected);
                        if let Some(token) = token {
                            let lease_until = now + lease;
                            model.open.push(Held { token, keys, event, lease_until, committing: false });
                            tokens.push((token, now + keep));
                        }
                    }
                    Step::Begin(back) => if let Some((token, _)) = pick(&tokens, back) {
                        let held = model.open.iter_mut().find(|held| held.token == token && held.runs(now));
                        prop_assert_eq!(table.begin_commit(token, UnixMillis(now)).is_some(), held.is_some());
                        if let Some(held) = held { held.committing = true; }
                    },
                    Step::Finish(back) => if let Some((token, keep)) = pick(&tokens, back)
                        && let Some(at) = model.open.iter().position(|held| held.token == token && held.committing) {
                            let held = model.open.remove(at);
                            held.keys.into_iter().for_each(|key| Model::keep(&mut model.kept, key, keep));
                            if let Some(event) = held.event { Model::keep(&mut model.events, event, keep); }
                            table.finish_commit(token);
                        },
                    Step::Commit(back) => if let Some((token, keep)) = pick(&tokens, back) {
                        let at = model.open.iter().position(|held| held.token == token && held.runs(now));
                        prop_assert_eq!(table.commit(token, UnixMillis(now)), at.is_some());
                        if let Some(at) = at {
                            let held = model.open.remove(at);
                            held.keys.into_iter().for_each(|key| Model::keep(&mut model.kept, key, keep));
                            if let Some(event) = held.event { Model::keep(&mut model.events, event, keep); }
                        }
                    },
                    Step::Fail(back) => if let Some((token, _)) = pick(&tokens, back)
                        && let Some(held) = model.open.iter_mut().find(|held| held.token == token && held.committing) {
                            held.committing = false;
                            table.fail_commit(token);
                        },
                    Step::Release(back) => if let Some((token, _)) = pick(&tokens, back) {
                        model.open.retain(|held| held.token != token || held.committing);
                        table.release(token);
                    },
                    Step::Renew(back, lease) => if let Some((token, _)) = pick(&tokens, back) {
                        let held = model.open.iter_mut().find(|held| held.token == token && held.runs(now));
                        let renewed = table.renew(token, UnixMillis(now), UnixMillis(now + lease));
                        prop_assert_eq!(renewed, held.is_some());
                        if let Some(held) = held { held.lease_until = now + lease; }
                    },
                    Step::Pass(time) => now += time,
                }
                prop_assert_eq!(table.leases.len(), table.open.values().filter(|open| !open.committing).count());
            }
        }
    }
}
