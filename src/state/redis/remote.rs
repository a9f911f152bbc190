//! One source's claims in Redis: what is asked, and what the answers mean.
//!
//! Invariant: an ask that may have reserved something and was not heard is let go by its token, whether its answer was
//! late, was lost, or nobody waited for it any more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::Value;

use super::super::shelf::Print;
use super::super::table::{Record, SharedTable, Table};
use super::super::{RateLimit, StateError};
use super::keeper::Errand;
use super::wire::{Told, micros, millis, number, push_prints, score};
use super::{OnFailure, Shared, Time};
use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::redis_link::{LinkError, Script};

/// After the store was found emptied, nothing is claimed for so long: every gateway finds out by itself within its
/// keeper's round, and puts back what it accepted.
pub(super) const GRACE: Duration = Duration::from_millis(1500);

/// Marks that answers under way may still bring after the store was emptied, and for how long beyond `timeout`.
const OLD_MARKS: usize = 8;
const UNDER_WAY: Duration = Duration::from_secs(1);

pub(crate) struct Remote {
    this: Weak<Self>,
    shared: Arc<Shared>,
    pub(super) source: Arc<str>,
    keys: Keys,
    most: AtomicUsize,
    /// As the last answer told it.
    claims: AtomicUsize,
    failing: AtomicBool,
    /// What this gateway remembers is to be put (back) into the store.
    pub(super) owes: AtomicBool,
    pub(super) is_putting_back: AtomicBool,
    /// An errand for it is under way.
    pub(super) is_swept: AtomicBool,
    mark: Mutex<Mark>,
    /// What this gateway remembers of the source.
    table: Mutex<Weak<Mutex<Table>>>,
}

struct Keys {
    base: String,
    mark: Vec<u8>,
    replay: Vec<u8>,
    events: Vec<u8>,
    held: Vec<u8>,
    held_events: Vec<u8>,
    holders: Vec<u8>,
}

#[derive(Default)]
struct Mark {
    known: Option<Vec<u8>>,
    old: Vec<Vec<u8>>,
    changed: Option<Instant>,
    emptied: Option<Instant>,
}

pub(crate) type Token = [u8; 16];

/// What is held in the store.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) token: Token,
    pub(crate) record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    First,
    Duplicate,
    InFlight,
    Replay,
    /// One that the caller does not take: nothing was reserved.
    NotTaken,
    Limited(Duration),
    Full,
}

pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    pub(crate) hold: Option<Hold>,
}

impl Remote {
    pub(super) fn new(shared: Arc<Shared>, source: &str, max_claims: usize) -> Arc<Self> {
        let base = format!("{}:{{{source}}}:", shared.prefix);
        let key = |name: &str| format!("{base}{name}").into_bytes();
        let keys = Keys {
            mark: key("mark"),
            replay: key("replay"),
            events: key("events"),
            held: key("held"),
            held_events: key("held-events"),
            holders: key("holders"),
            base,
        };
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            shared,
            source: source.into(),
            keys,
            most: AtomicUsize::new(max_claims),
            claims: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            is_putting_back: AtomicBool::new(false),
            is_swept: AtomicBool::new(false),
            mark: Mutex::default(),
            table: Mutex::default(),
        })
    }

    /// Where to find what this gateway remembers.
    pub(crate) fn remembers_in(&self, table: &SharedTable) {
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(table);
    }

    pub(super) fn table(&self) -> Option<SharedTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    pub(crate) fn resize(&self, max_claims: usize) {
        self.most.store(max_claims, Ordering::Relaxed);
    }

    pub(crate) fn claims(&self) -> usize {
        self.claims.load(Ordering::Relaxed)
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn allows_on_failure(&self) -> bool {
        self.shared.on_failure == OnFailure::Allow
    }

    /// What this gateway accepts, it remembers too.
    pub(crate) fn is_remembered_here(&self) -> bool {
        match self.shared.time {
            Time::Server => true,
            #[cfg(test)]
            Time::Asker { remembers } => remembers,
        }
    }

    /// A lease lasts for as long as the store says, whatever the clock here says.
    pub(crate) fn judges_leases(&self) -> bool {
        self.shared.time == Time::Server
    }

    /// A delivery is judged by this gateway alone.
    pub(crate) fn count_fallback(&self) {
        self.shared.meters.fallbacks.with_label_values(&[&*self.source]).inc();
    }

    pub(crate) async fn claim(
        self: &Arc<Self>,
        record: Option<&Record>,
        lease: Duration,
        takes_duplicates: bool,
        limits: &[(Option<ClientKey>, &RateLimit)],
        now: UnixMillis,
    ) -> Result<Answer, StateError> {
        if self.shared.closed.load(Ordering::Relaxed) {
            return Err(StateError::Store("it was closed".to_owned()));
        }
        // Told to allow, it would go by its own memory instead, which knows less than the store by then.
        if self.is_being_restored() && !self.allows_on_failure() {
            let what = "Redis was emptied, and what was accepted is being put back";
            return Err(StateError::Store(what.to_owned()));
        }
        let token: Token = rand::random();
        let keys = &self.keys;
        let rates: Vec<String> = limits
            .iter()
            .enumerate()
            .map(|(n, (client, _))| match client {
                None => format!("{}rate:{n}", keys.base),
                Some(client) => format!("{}rate:{n}:{client}", keys.base),
            })
            .collect();
        let mut all = keys.all().to_vec();
        all.extend(rates.iter().map(String::as_bytes));
        let mut arguments = self.begin(now);
        arguments.push(rand::random::<[u8; 16]>().to_vec());
        arguments.push(token.to_vec());
        arguments.push(millis(lease));
        arguments.push(number(self.most.load(Ordering::Relaxed) as u64));
        arguments.push(if takes_duplicates { b"1".to_vec() } else { b"0".to_vec() });
        push_prints(&mut arguments, record);
        for (_, limit) in limits {
            arguments.extend([micros(limit.quota.cell()), number(limit.quota.burst().into())]);
        }
        let hold = record.map(|record| Hold { token, record: record.clone() });
        let mut unheard = Unheard { remote: self, hold, lease };
        let answer = self.run(&self.shared.scripts.claim, "claim", &all, &arguments).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if matches!(error, LinkError::Down(_) | LinkError::Refused { .. }) {
                    unheard.hold = None;
                }
                return Err(self.failed(&error));
            }
        };
        let emptied = self.take_in(&answer, now);
        let verdict = match answer.verdict {
            0 => Verdict::First,
            1 => Verdict::Duplicate,
            2 => Verdict::InFlight,
            3 => Verdict::Replay,
            4 => Verdict::NotTaken,
            5 => Verdict::Limited(Duration::from_micros(answer.wait)),
            6 => Verdict::Full,
            _ => return Err(self.failed(&LinkError::Broken("an answer unheard of".to_owned()))),
        };
        if emptied && !self.allows_on_failure() {
            // What it says of a store that has just been emptied is worth nothing; what it reserved is let go.
            return Err(StateError::Store("Redis was emptied".to_owned()));
        }
        let hold = unheard.hold.take();
        let hold = hold.filter(|_| matches!(verdict, Verdict::First | Verdict::Duplicate));
        Ok(Answer { verdict, hold })
    }

    /// True: remembered. False: somebody else holds a part of it, and nothing was.
    pub(crate) async fn commit(&self, hold: &Hold, now: UnixMillis) -> Result<bool, StateError> {
        if self.shared.closed.load(Ordering::Relaxed) {
            return Err(StateError::Store("it was closed".to_owned()));
        }
        self.try_commit(hold, now).await.map_err(|error| self.failed(&error))
    }

    pub(super) async fn try_commit(&self, hold: &Hold, now: UnixMillis) -> Result<bool, LinkError> {
        let mut arguments = self.begin(now);
        arguments.push(rand::random::<[u8; 16]>().to_vec());
        arguments.push(hold.token.to_vec());
        arguments.push(score(hold.record.keep_until));
        arguments.push(number(self.most.load(Ordering::Relaxed) as u64));
        arguments.push(score(hold.record.event_keep_until));
        push_prints(&mut arguments, Some(&hold.record));
        let answer = self.run(&self.shared.scripts.commit, "commit", &self.keys.all(), &arguments).await?;
        self.take_in(&answer, now);
        Ok(answer.verdict == 0)
    }

    /// Tells the store before it returns, where the store answers; the keeper tries on where it does not.
    pub(crate) async fn release(&self, hold: Hold, now: UnixMillis, lease: Duration) {
        if let Err(error) = self.try_release(&hold, now).await {
            self.failed(&error);
            self.release_later(hold, lease);
        }
    }

    pub(super) async fn try_release(&self, hold: &Hold, now: UnixMillis) -> Result<(), LinkError> {
        let keys = &self.keys;
        let mut arguments = self.begin(now);
        arguments.push(hold.token.to_vec());
        push_prints(&mut arguments, Some(&hold.record));
        let keys: [&[u8]; 4] = [&keys.replay, &keys.held, &keys.held_events, &keys.holders];
        let answer = self.run(&self.shared.scripts.release, "release", &keys, &arguments).await?;
        self.take_in(&answer, now);
        Ok(())
    }

    pub(crate) fn release_later(&self, hold: Hold, lease: Duration) {
        let Some(remote) = self.this.upgrade() else { return };
        // Without room it ends with its lease.
        let _ = self.shared.errands.try_send(Errand::Release { remote, hold, until: Instant::now() + lease });
    }

    pub(crate) fn commit_later(&self, hold: Hold) {
        let Some(remote) = self.this.upgrade() else { return };
        if self.shared.errands.try_send(Errand::Commit { remote, hold }).is_err() {
            self.put_back_later();
        }
    }

    /// Everything that this gateway remembers.
    pub(crate) fn put_back_later(&self) {
        self.owes.store(true, Ordering::Relaxed);
        self.shared.hurry.notify_one();
    }

    /// False: it had ended, or is somebody else's.
    pub(crate) async fn renew(&self, hold: &Hold, now: UnixMillis, lease: Duration) -> Result<bool, StateError> {
        let keys = &self.keys;
        let mut arguments = self.begin(now);
        arguments.push(hold.token.to_vec());
        let record = &hold.record;
        arguments.push(number(record.prints.len() as u64));
        arguments.push(record.event.map(Vec::from).unwrap_or_default());
        arguments.push(millis(lease));
        arguments.extend(record.prints.iter().map(|print| print.to_vec()));
        let keys: [&[u8]; 3] = [&keys.held, &keys.held_events, &keys.holders];
        let renewed = self.raw(&self.shared.scripts.renew, "renew", &keys, &arguments).await;
        match renewed {
            Ok(value) => Ok(value == Value::Int(1)),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Adds what this gateway remembers. One call for some hundreds of them.
    pub(super) async fn try_restore(
        &self,
        replay: &[(Print, UnixMillis)],
        events: &[(Print, UnixMillis)],
        now: UnixMillis,
    ) -> Result<(), LinkError> {
        let keys = &self.keys;
        let mut arguments = self.begin(now);
        arguments.push(rand::random::<[u8; 16]>().to_vec());
        arguments.push(number(self.most.load(Ordering::Relaxed) as u64));
        arguments.push(number(replay.len() as u64));
        for (print, until) in replay.iter().chain(events) {
            arguments.extend([score(*until), print.to_vec()]);
        }
        let keys: [&[u8]; 4] = [&keys.mark, &keys.replay, &keys.events, &keys.held];
        let answer = self.run(&self.shared.scripts.restore, "restore", &keys, &arguments).await?;
        self.take_in(&answer, now);
        Ok(())
    }

    pub(crate) fn sweep_later(&self, now: UnixMillis) {
        let Some(remote) = self.this.upgrade() else { return };
        if remote.is_swept.swap(true, Ordering::Relaxed) {
            return;
        }
        // Without room it is done the next time.
        if self.shared.errands.try_send(Errand::Sweep { remote, now }).is_err() {
            self.is_swept.store(false, Ordering::Relaxed);
        }
    }

    /// Gives up at most so much; how much it was. With none it looks at the store's mark alone.
    pub(super) async fn try_sweep(&self, now: UnixMillis, steps: u64) -> Result<u64, LinkError> {
        let mut arguments = self.begin(now);
        arguments.extend([rand::random::<[u8; 16]>().to_vec(), number(steps)]);
        let answer = self.run(&self.shared.scripts.sweep, "sweep", &self.keys.all(), &arguments).await?;
        self.take_in(&answer, now);
        Ok(answer.verdict)
    }

    /// Does the store take what a claim would write? Reserves what nobody can ask for, and lets it go.
    pub(super) async fn try_writing(&self, now: UnixMillis) -> Result<(), LinkError> {
        let prints = vec![rand::random::<Print>()];
        let record = Record { prints, keep_until: now, event: None, event_keep_until: now };
        let hold = Hold { token: rand::random(), record };
        let mut arguments = self.begin(now);
        arguments.push(rand::random::<[u8; 16]>().to_vec());
        arguments.push(hold.token.to_vec());
        arguments.extend([number(1), number(u64::from(u32::MAX)), b"1".to_vec()]);
        push_prints(&mut arguments, Some(&hold.record));
        let answer = self.run(&self.shared.scripts.claim, "probe", &self.keys.all(), &arguments).await?;
        self.take_in(&answer, now);
        self.try_release(&hold, now).await
    }

    pub(super) fn is_being_restored(&self) -> bool {
        self.mark().emptied.is_some()
    }

    /// What this gateway knew is back. True: so long ago that all others have done the same.
    pub(super) fn restored(&self) -> bool {
        let mut mark = self.mark();
        let over = mark.emptied.is_none_or(|since| since.elapsed() >= GRACE);
        if over {
            mark.emptied = None;
        }
        over
    }

    fn mark(&self) -> std::sync::MutexGuard<'_, Mark> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True: the store has been emptied since the last answer.
    fn take_in(&self, answer: &Told, now: UnixMillis) -> bool {
        self.claims.store(usize::try_from(answer.claims).unwrap_or(usize::MAX), Ordering::Relaxed);
        self.failing.store(false, Ordering::Relaxed);
        self.shared.saw_time(now, answer.time);
        let Some(found) = &answer.mark else { return false };
        let mut mark = self.mark();
        if mark.known.as_ref() == Some(found) {
            return false;
        }
        // An answer that was under way. One that comes later is of a server that was away and is back.
        let is_under_way = mark.changed.is_some_and(|since| since.elapsed() < self.shared.timeout + UNDER_WAY);
        if is_under_way && mark.old.contains(found) {
            return false;
        }
        let Some(before) = mark.known.replace(found.clone()) else { return false };
        mark.old.truncate(OLD_MARKS - 1);
        mark.old.insert(0, before);
        mark.changed = Some(Instant::now());
        mark.emptied = mark.changed;
        drop(mark);
        self.shared.meters.lost.inc();
        tracing::error!(
            source = &*self.source,
            "Redis has lost what was accepted; this gateway puts back what it knows of, and what only gateways knew that are gone can be accepted once more"
        );
        self.put_back_later();
        true
    }

    pub(super) fn failed(&self, error: &LinkError) -> StateError {
        if matches!(error, LinkError::Refused { .. }) {
            self.failing.store(true, Ordering::Relaxed);
        }
        self.shared.failed(error)
    }

    fn begin(&self, now: UnixMillis) -> Vec<Vec<u8>> {
        let time: &[u8] = match self.shared.time {
            Time::Server => b"server",
            #[cfg(test)]
            Time::Asker { .. } => b"asker",
        };
        vec![time.to_vec(), score(now)]
    }

    async fn raw(
        &self,
        script: &Script,
        operation: &str,
        keys: &[&[u8]],
        arguments: &[Vec<u8>],
    ) -> Result<Value, LinkError> {
        let begun = Instant::now();
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let answer = self.shared.link.run(script, keys, &arguments, self.shared.timeout).await;
        self.shared.meters.durations.with_label_values(&[operation]).observe(begun.elapsed().as_secs_f64());
        answer
    }

    async fn run(
        &self,
        script: &Script,
        operation: &str,
        keys: &[&[u8]],
        arguments: &[Vec<u8>],
    ) -> Result<Told, LinkError> {
        let value = self.raw(script, operation, keys, arguments).await?;
        Told::of(value).ok_or_else(|| LinkError::Broken("an answer unheard of".to_owned()))
    }
}

/// An ask under way. Dropped, what it may have reserved is let go.
struct Unheard<'a> {
    remote: &'a Remote,
    hold: Option<Hold>,
    lease: Duration,
}

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.remote.release_later(hold, self.lease);
        }
    }
}

impl Keys {
    fn all(&self) -> [&[u8]; 6] {
        [&self.mark, &self.replay, &self.events, &self.held, &self.held_events, &self.holders]
    }
}
