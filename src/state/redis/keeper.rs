//! What is done in the background: errands that nobody waits for, and a round of looking after everything.
//!
//! Invariant: it waits for no answer longer than `timeout`, and what it keeps to do is bounded: what does not fit either
//! ends by itself (a lease) or is put back from the gateway's own memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::remote::{Hold, Remote};
use super::{ERRANDS, Shared};
use crate::clock::UnixMillis;

/// Failed proofs are told to the others so often.
const TICK: Duration = Duration::from_millis(200);

/// In ticks: marks are looked at, and captured secrets read.
const ROUND: u64 = 2;
const CAPTURES: u64 = 25;

/// Errands in the pipeline at one time.
const AT_ONCE: usize = 64;

/// An ask whose answer was not heard may be carried out after its release was: so that is told twice.
const AGAIN: Duration = Duration::from_secs(1);

/// Of one call, so that no script holds up the others for long.
const SWEEP_STEPS: u64 = 500;

/// Calls of one errand: a million claims that ended at one time do not keep the releases and commits behind them waiting.
const SWEEPS_AT_ONCE: usize = 16;
const RESTORED_AT_ONCE: usize = 500;

/// Clocks that differ by more are told of: leases and claims have margins for less.
const SKEW: Duration = Duration::from_secs(5);

pub(super) enum Errand {
    /// Until its lease has ended, were it to fail.
    Release {
        remote: Arc<Remote>,
        hold: Hold,
        until: Instant,
    },
    Commit {
        remote: Arc<Remote>,
        hold: Hold,
    },
    Sweep {
        remote: Arc<Remote>,
        now: UnixMillis,
    },
    /// All before it have been tried.
    Tell(oneshot::Sender<()>),
}

pub(super) async fn keep(shared: Arc<Shared>, mut errands: mpsc::Receiver<Errand>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut round, mut waiting, mut batch) = (Round::default(), VecDeque::new(), Vec::new());
    loop {
        tokio::select! {
            _ = errands.recv_many(&mut batch, AT_ONCE) => {
                if batch.is_empty() {
                    return;
                }
                let tell = run(&mut batch, &mut waiting).await;
                if !tell.is_empty() {
                    // What failed before is of this: there may be no other time for it.
                    finish(&shared, &mut waiting).await;
                }
                for done in tell {
                    // Whoever asked may be gone.
                    let _ = done.send(());
                }
            }
            _ = ticks.tick() => {
                round.tick(&shared).await;
                try_again(&shared, &mut waiting).await;
            }
            () = shared.hurry.notified() => put_back(&shared),
        }
    }
}

/// With the time at which it is to be tried again.
type Waiting = VecDeque<(Instant, Errand)>;

/// Who is to be told that all this was tried.
async fn run(batch: &mut Vec<Errand>, waiting: &mut Waiting) -> Vec<oneshot::Sender<()>> {
    let mut under_way = JoinSet::new();
    let mut tell = Vec::new();
    for errand in batch.drain(..) {
        match errand {
            Errand::Tell(done) => tell.push(done),
            errand => {
                under_way.spawn(tried(errand));
            }
        }
    }
    while let Some(left) = under_way.join_next().await {
        let Ok(Some(left)) = left else { continue };
        if waiting.len() < ERRANDS {
            waiting.push_back(left);
        } else {
            match left.1 {
                Errand::Commit { remote, .. } => remote.put_back_later(),
                Errand::Sweep { remote, .. } => remote.is_swept.store(false, Ordering::Relaxed),
                Errand::Release { .. } | Errand::Tell(_) => {}
            }
        }
    }
    tell
}

/// Tries once more what is known to have been accepted, and no gateway but this one knows of it.
async fn finish(shared: &Arc<Shared>, waiting: &mut Waiting) {
    let (commits, rest) = waiting.drain(..).partition(|(_, errand)| matches!(errand, Errand::Commit { .. }));
    *waiting = rest;
    let commits: Waiting = commits;
    for mut chunk in chunks(commits.into_iter().map(|(_, errand)| errand).collect()) {
        run(&mut chunk, waiting).await;
    }
    let remotes = shared.remotes().clone();
    for remote in remotes.iter().filter(|remote| remote.owes.load(Ordering::Relaxed)) {
        put_back_once(remote).await;
    }
}

async fn try_again(shared: &Arc<Shared>, waiting: &mut Waiting) {
    if !shared.link.is_up() {
        let now = Instant::now();
        waiting.retain(|(_, errand)| !matches!(errand, Errand::Release { until, .. } if *until <= now));
        return;
    }
    let mut due = Vec::new();
    for _ in 0..waiting.len() {
        match waiting.pop_front() {
            Some((at, errand)) if at <= Instant::now() && due.len() < AT_ONCE * 16 => due.push(errand),
            Some(later) => waiting.push_back(later),
            None => break,
        }
    }
    for chunk in chunks(due) {
        let mut chunk = chunk;
        run(&mut chunk, waiting).await;
    }
}

fn chunks(mut all: Vec<Errand>) -> Vec<Vec<Errand>> {
    let mut chunks = Vec::new();
    while !all.is_empty() {
        let rest = all.split_off(all.len().min(AT_ONCE));
        chunks.push(std::mem::replace(&mut all, rest));
    }
    chunks
}

/// What is left to do of it, and when.
async fn tried(errand: Errand) -> Option<(Instant, Errand)> {
    match errand {
        Errand::Release { remote, hold, until } => {
            let done = remote.try_release(&hold, UnixMillis(0)).await.is_ok();
            let at = if done { Instant::now() + AGAIN } else { Instant::now() };
            let is_last = Instant::now() >= until;
            // The second time it is short of a lease.
            (!is_last).then_some((at, Errand::Release { remote, hold, until: if done { at } else { until } }))
        }
        Errand::Commit { remote, hold } => {
            let committed = match remote.try_commit(&hold, UnixMillis(0)).await {
                Ok(true) => true,
                // Somebody else holds it, and this is accepted all the same.
                Ok(false) => {
                    let record = &hold.record;
                    let replay: Vec<_> = record.prints.iter().map(|print| (*print, record.keep_until)).collect();
                    let event: Vec<_> = record.event.iter().map(|event| (*event, record.event_keep_until)).collect();
                    remote.try_restore(&replay, &event, UnixMillis(0)).await.is_ok()
                }
                Err(_) => false,
            };
            (!committed).then(|| (Instant::now(), Errand::Commit { remote, hold }))
        }
        Errand::Sweep { remote, now } => {
            for _ in 0..SWEEPS_AT_ONCE {
                // What could not be asked is done the next time.
                if !matches!(remote.try_sweep(now, SWEEP_STEPS).await, Ok(gone) if gone > 0) {
                    remote.is_swept.store(false, Ordering::Relaxed);
                    return None;
                }
            }
            Some((Instant::now(), Errand::Sweep { remote, now }))
        }
        Errand::Tell(_) => None,
    }
}

#[derive(Default)]
struct Round {
    ticks: u64,
    was_up: bool,
    told_of_skew: bool,
}

impl Round {
    async fn tick(&mut self, shared: &Arc<Shared>) {
        self.ticks += 1;
        let is_up = shared.link.is_up();
        let came_up = is_up && !std::mem::replace(&mut self.was_up, is_up);
        if !is_up {
            return;
        }
        self.share_failures(shared).await;
        if came_up || self.ticks.is_multiple_of(ROUND) {
            self.look_after(shared).await;
            put_back(shared);
        }
        if came_up || self.ticks.is_multiple_of(CAPTURES) {
            // They are read again soon.
            let _ = shared.read_captures().await;
        }
        if came_up {
            warn_of_eviction(shared).await;
        }
    }

    async fn share_failures(&self, shared: &Arc<Shared>) {
        let all: Vec<_> = {
            let failures = shared.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failures.iter().filter_map(std::sync::Weak::upgrade).collect()
        };
        for failures in all {
            failures.share(shared).await;
        }
    }

    async fn look_after(&mut self, shared: &Arc<Shared>) {
        let remotes: Vec<_> = shared.remotes().clone();
        let mut all_well = true;
        for some in remotes.chunks(AT_ONCE) {
            let mut under_way = JoinSet::new();
            for remote in some {
                let remote = remote.clone();
                under_way.spawn(async move {
                    let looked = match remote.is_failing() {
                        true => remote.try_writing(UnixMillis(0)).await,
                        false => remote.try_sweep(UnixMillis(0), 0).await.map(drop),
                    };
                    looked.map_err(|error| remote.failed(&error)).is_ok()
                });
            }
            while let Some(well) = under_way.join_next().await {
                all_well &= well.unwrap_or(false);
            }
        }
        if all_well && shared.told.swap(false, Ordering::Relaxed) {
            tracing::warn!("the state in Redis answers again");
        }
        let skew = shared.skew_millis.load(Ordering::Relaxed);
        shared.meters.skew.set(skew as f64 / 1000.0);
        let differ = Duration::from_millis(skew.unsigned_abs()) > SKEW;
        if differ && !self.told_of_skew {
            tracing::warn!(
                seconds = skew as f64 / 1000.0,
                "this machine's clock and that of Redis differ: set both by NTP. Over a minute, replays could pass where the clock is behind"
            );
        }
        self.told_of_skew = differ;
    }
}

/// Begins it, for every source that needs it.
fn put_back(shared: &Arc<Shared>) {
    if !shared.link.is_up() {
        return;
    }
    for remote in shared.remotes().iter() {
        let wanted = remote.owes.load(Ordering::Relaxed) || remote.is_being_restored();
        if wanted && !remote.is_putting_back.swap(true, Ordering::Relaxed) {
            let remote = remote.clone();
            tokio::spawn(async move {
                put_back_all(&remote).await;
                remote.is_putting_back.store(false, Ordering::Relaxed);
            });
        }
    }
}

async fn put_back_all(remote: &Arc<Remote>) {
    put_back_once(remote).await;
    while !remote.restored() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where it does not get to the end, it is owed again.
async fn put_back_once(remote: &Arc<Remote>) {
    remote.owes.store(false, Ordering::Relaxed);
    let Some(table) = remote.table() else { return };
    let mut part = 0;
    loop {
        let Some((replay, events)) = super::super::table::lock(&table).part(part) else { break };
        part += 1;
        for some in replay.chunks(RESTORED_AT_ONCE) {
            if remote.try_restore(some, &[], UnixMillis(0)).await.is_err() {
                return remote.owes.store(true, Ordering::Relaxed);
            }
        }
        for some in events.chunks(RESTORED_AT_ONCE) {
            if remote.try_restore(&[], some, UnixMillis(0)).await.is_err() {
                return remote.owes.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// A server that evicts forgets claims, and whoever may fill it decides which.
async fn warn_of_eviction(shared: &Shared) {
    let mut info = redis::cmd("INFO");
    info.arg("memory");
    // Not everybody may ask.
    let Ok(answer) = shared.link.ask(&info, shared.timeout).await else { return };
    let text = match answer {
        Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
        Value::VerbatimString { text, .. } => text,
        _ => return,
    };
    let said = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let evicts = said("maxmemory_policy:").is_some_and(|policy| policy.starts_with("allkeys"));
    if evicts {
        tracing::warn!(
            policy = said("maxmemory_policy:"),
            "Redis evicts keys when its memory is full, and a claim that is evicted can be accepted once more: set maxmemory-policy noeviction"
        );
    }
}
