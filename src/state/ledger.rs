//! One source's memory as the request path sees it: what it says to an ask.
//!
//! Invariant: nothing is reserved while it is not known what was accepted, and what is reserved in a store elsewhere is
//! held here too, so that this gateway never takes what it knows, whatever became of that store.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::disk::Disk;
use super::redis::{Remote, Verdict};
use super::reservation::{Reservation, Store};
use super::shelf::Print;
use super::table::{Full, Judgement, Record, SharedTable, Table, Token, lock};
use super::{Ask, Claim, Claimed, Key, Limits, RateLimit, StateError};
use crate::client::ClientKey;
use crate::clock::UnixMillis;

pub(crate) struct Ledger {
    table: SharedTable,
    store: Store,
    /// Why what the store has for this source could not be read. While it is set nothing is reserved: an empty memory
    /// would take every replay for new.
    unread: Mutex<Option<String>>,
    /// The same for what an inbox has for it, where there is one. Some: it was read, and how.
    seeded: Mutex<Option<Result<(), String>>>,
}

impl Ledger {
    pub(super) fn in_memory(max_claims: usize) -> Self {
        let table = Arc::new(Mutex::new(Table::new(max_claims)));
        Self { table, store: Store::Memory, unread: Mutex::new(None), seeded: Mutex::default() }
    }

    pub(super) fn on_disk(source: &str, max_claims: usize, disk: Arc<Disk>) -> Self {
        let table = Arc::new(Mutex::new(Table::new(max_claims)));
        let store = Store::Disk { disk, source: source.into() };
        let ledger =
            Self { table, store, unread: Mutex::new(Some("it was not read yet".into())), seeded: Mutex::default() };
        ledger.read_store();
        ledger
    }

    pub(super) fn in_redis(max_claims: usize, remote: Arc<Remote>) -> Self {
        let table = Arc::new(Mutex::new(Table::new(max_claims)));
        remote.remembers_in(&table);
        Self { table, store: Store::Redis(remote), unread: Mutex::new(None), seeded: Mutex::default() }
    }

    /// The name was asked for again.
    pub(super) fn adopt(&self, max_claims: usize) {
        lock(&self.table).resize(max_claims);
        if let Store::Redis(remote) = &self.store {
            remote.resize(max_claims);
        }
        self.read_store();
    }

    pub(crate) async fn reserve(&self, ask: Ask, now: UnixMillis) -> Result<Claim, StateError> {
        self.is_readable(now)?;
        let lease = ask.lease;
        let record = record_of(ask);
        match &self.store {
            Store::Memory | Store::Disk { .. } => self.reserve_here(record, lease, now),
            Store::Redis(remote) => {
                let asked = Some((record, lease));
                match Box::pin(self.claim_there(remote, asked, true, Vec::new(), now)).await {
                    Ok(Claimed::First(Some(reservation))) => Ok(Claim::First(reservation)),
                    Ok(Claimed::Duplicate(Some(reservation))) => Ok(Claim::Duplicate(reservation)),
                    Ok(Claimed::InFlight) => Ok(Claim::InFlight),
                    Ok(Claimed::Replay) => Ok(Claim::Replay),
                    Ok(Claimed::First(None) | Claimed::Duplicate(None) | Claimed::Limited(_)) => {
                        Err(StateError::Store("Redis answered something unheard of".to_owned()))
                    }
                    Err(Unanswered { record: Some((record, lease)), .. }) if remote.allows_on_failure() => {
                        remote.count_fallback();
                        self.reserve_here(record, lease, now)
                    }
                    Err(unanswered) => Err(unanswered.error),
                }
            }
        }
    }

    /// Reserves, and spends what a first delivery spends. `ask` None: there is nothing to claim. A duplicate is reserved,
    /// and spends, where the caller takes them. Err: somebody elsewhere has to be asked first, by `claim`.
    pub(crate) fn claim_at_once(
        &self,
        ask: Option<Ask>,
        takes_duplicates: bool,
        limits: &Limits,
        client: ClientKey,
        now: UnixMillis,
    ) -> Result<Result<Claimed, StateError>, Option<Ask>> {
        match self.store {
            Store::Memory | Store::Disk { .. } => {}
            Store::Redis(_) => return Err(ask),
        }
        let claimed = self.is_readable(now);
        Ok(claimed.and_then(|()| self.claim_here(ask.map(asked), takes_duplicates, limits, client, now)))
    }

    /// The same, whoever has to be asked.
    pub(crate) async fn claim(
        &self,
        ask: Option<Ask>,
        takes_duplicates: bool,
        limits: &Limits,
        client: ClientKey,
        now: UnixMillis,
    ) -> Result<Claimed, StateError> {
        self.is_readable(now)?;
        let asked = ask.map(asked);
        let Store::Redis(remote) = &self.store else {
            return self.claim_here(asked, takes_duplicates, limits, client, now);
        };
        // Boxed: whoever has no Redis shall not carry what waiting for it takes.
        match Box::pin(self.claim_there(remote, asked, takes_duplicates, limits.of(client), now)).await {
            Ok(claimed) => Ok(claimed),
            Err(Unanswered { record, error }) if remote.allows_on_failure() && error != StateError::Full => {
                remote.count_fallback();
                self.claim_here(record, takes_duplicates, limits, client, now)
            }
            Err(unanswered) => Err(unanswered.error),
        }
    }

    fn is_readable(&self, now: UnixMillis) -> Result<(), StateError> {
        if let Some(why) = &*self.unread.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(StateError::Store(why.clone()));
        }
        if let Some(Err(why)) = &*self.seeded.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(StateError::Store(why.clone()));
        }
        if let Store::Disk { disk, .. } = &self.store {
            disk.saw(now);
        }
        Ok(())
    }

    fn reserve_here(&self, record: Record, lease: Duration, now: UnixMillis) -> Result<Claim, StateError> {
        let judgement = lock(&self.table).reserve(record, now, now.after(lease));
        match judgement {
            Ok(Judgement::First(token)) => Ok(Claim::First(self.writable(token, lease)?)),
            Ok(Judgement::Duplicate(token)) => Ok(Claim::Duplicate(self.writable(token, lease)?)),
            Ok(Judgement::InFlight) => Ok(Claim::InFlight),
            Ok(Judgement::Replay) => Ok(Claim::Replay),
            Err(Full) => Err(StateError::Full),
        }
    }

    /// Without a word to a store elsewhere: what is reserved here alone is let go of by dropping it.
    fn claim_here(
        &self,
        asked: Option<(Record, Duration)>,
        takes_duplicates: bool,
        limits: &Limits,
        client: ClientKey,
        now: UnixMillis,
    ) -> Result<Claimed, StateError> {
        let (reservation, is_duplicate) = match asked {
            None => (None, false),
            Some((record, lease)) => match self.reserve_here(record, lease, now)? {
                Claim::First(reservation) => (Some(reservation), false),
                Claim::Duplicate(reservation) if takes_duplicates => (Some(reservation), true),
                Claim::Duplicate(_) => return Ok(Claimed::Duplicate(None)),
                Claim::InFlight => return Ok(Claimed::InFlight),
                Claim::Replay => return Ok(Claimed::Replay),
            },
        };
        if let Err(wait) = limits.spend(client) {
            return Ok(Claimed::Limited(wait));
        }
        Ok(if is_duplicate { Claimed::Duplicate(reservation) } else { Claimed::First(reservation) })
    }

    /// What this gateway accepted is refused before anybody is asked, and what the store gives is held here too: so
    /// that no gateway takes what it knows, whatever became of the store.
    async fn claim_there(
        &self,
        remote: &Arc<Remote>,
        asked: Option<(Record, Duration)>,
        takes_duplicates: bool,
        limits: Vec<(Option<ClientKey>, &RateLimit)>,
        now: UnixMillis,
    ) -> Result<Claimed, Unanswered> {
        if asked.is_none() && limits.is_empty() {
            return Ok(Claimed::First(None));
        }
        if let Some((record, _)) = &asked
            && lock(&self.table).is_replay(record, now)
        {
            return Ok(Claimed::Replay);
        }
        let (record, lease) = match &asked {
            Some((record, lease)) => (Some(record), *lease),
            None => (None, Duration::ZERO),
        };
        let answer = match remote.claim(record, lease, takes_duplicates, &limits, now).await {
            Ok(answer) => answer,
            Err(error) => return Err(Unanswered { record: asked, error }),
        };
        match answer.verdict {
            Verdict::First | Verdict::Duplicate => {}
            Verdict::InFlight => return Ok(Claimed::InFlight),
            Verdict::Replay => return Ok(Claimed::Replay),
            Verdict::NotTaken => return Ok(Claimed::Duplicate(None)),
            Verdict::Limited(wait) => return Ok(Claimed::Limited(wait)),
            Verdict::Full => return Err(Unanswered { record: None, error: StateError::Full }),
        }
        let (Some(hold), Some((record, _))) = (answer.hold, asked) else { return Ok(Claimed::First(None)) };
        let judged = lock(&self.table).reserve(record, now, now.after(lease));
        let (token, known_here) = match judged {
            Ok(Judgement::First(token)) => (token, false),
            Ok(Judgement::Duplicate(token)) => (token, true),
            Ok(Judgement::InFlight) => {
                remote.release(hold, now, lease).await;
                return Ok(Claimed::InFlight);
            }
            Ok(Judgement::Replay) => {
                remote.release(hold, now, lease).await;
                return Ok(Claimed::Replay);
            }
            Err(Full) => {
                remote.release(hold, now, lease).await;
                return Err(Unanswered { record: None, error: StateError::Full });
            }
        };
        let reservation = self.reservation(token, lease).with(hold);
        if answer.verdict == Verdict::First && !known_here {
            return Ok(Claimed::First(Some(reservation)));
        }
        if takes_duplicates {
            return Ok(Claimed::Duplicate(Some(reservation)));
        }
        reservation.release().await;
        Ok(Claimed::Duplicate(None))
    }

    /// Takes in what another store remembers, once; after a failure the next call tries again, and until then nothing
    /// is reserved.
    pub(crate) fn seed_once(&self, read: impl FnOnce(&mut dyn FnMut(Print, bool, UnixMillis)) -> Result<(), String>) {
        let mut seeded = self.seeded.lock().unwrap_or_else(PoisonError::into_inner);
        if *seeded == Some(Ok(())) {
            return;
        }
        let mut table = lock(&self.table);
        *seeded = Some(read(&mut |print, is_event, until| match is_event {
            true => table.restore_event(print, until),
            false => table.restore_replay(print, until),
        }));
        if let Store::Redis(remote) = &self.store {
            remote.put_back_later();
        }
    }

    /// Replay keys reserved and remembered, against `capacity`.
    pub(crate) fn len(&self) -> usize {
        match &self.store {
            Store::Memory | Store::Disk { .. } => lock(&self.table).len(),
            Store::Redis(remote) => remote.claims(),
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        lock(&self.table).max_claims()
    }

    /// Gives up all that has expired. `reserve` does so in small steps anyway; this is for a source that went quiet.
    pub(crate) fn sweep(&self, now: UnixMillis) {
        if let Store::Disk { disk, .. } = &self.store {
            disk.saw(now);
        }
        // In slices of well under a millisecond, so that no request waits behind the whole of it.
        const SLICE: usize = 1024;
        while lock(&self.table).reclaim(now, SLICE) {}
        if let Store::Redis(remote) = &self.store {
            remote.sweep_later(now);
        }
    }

    fn read_store(&self) {
        let Store::Disk { disk, source } = &self.store else {
            return;
        };
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if unread.is_some() {
            // Reading it a second time after half of it came in is harmless: the later time of each entry stands.
            *unread = disk.load(source, &mut lock(&self.table)).err();
        }
    }

    /// What cannot be recorded must not be let in: after its lease it could be let in again. The writer tries by itself
    /// whether it can write again, so nobody has to be let in to find out.
    fn writable(&self, token: Token, lease: Duration) -> Result<Reservation, StateError> {
        let reservation = self.reservation(token, lease);
        match &self.store {
            Store::Disk { disk, .. } if !disk.is_healthy() => {
                Err(StateError::Store("the state file cannot be written".into()))
            }
            Store::Memory | Store::Disk { .. } | Store::Redis(_) => Ok(reservation),
        }
    }

    fn reservation(&self, token: Token, lease: Duration) -> Reservation {
        Reservation::new(&self.table, &self.store, token, lease)
    }
}

/// Nobody has judged it: what was asked for, and why not.
struct Unanswered {
    record: Option<(Record, Duration)>,
    error: StateError,
}

/// What is asked for, and for how long.
fn asked(ask: Ask) -> (Record, Duration) {
    let lease = ask.lease;
    (record_of(ask), lease)
}

pub(super) fn record_of(ask: Ask) -> Record {
    let mut prints: Vec<Print> = ask.replay.iter().map(print).collect();
    // Two secrets with one value make one MAC twice.
    prints.sort_unstable();
    prints.dedup();
    Record {
        prints,
        keep_until: ask.keep_until,
        event: ask.event.as_ref().map(print),
        event_keep_until: ask.event_keep_until,
    }
}

/// Hashed and not merely cut: a caller's key may be a short MAC padded with zeros on whichever side.
fn print(key: &Key) -> Print {
    let digest = Sha256::digest(key);
    let mut print = Print::default();
    print.copy_from_slice(&digest[..16]);
    print
}
