//! One source's memory as the request path sees it: reserve, then commit or let go.
//!
//! Invariant: a reservation that its holder drops is released, except while its commit is in the hands of the disk
//! writer: then the writer decides. A written commit stands though nobody waits for it any more; one that failed
//! keeps its keys reserved until the lease ends, since whoever held it cannot be asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::disk::Disk;
use super::shelf::Print;
use super::table::{Full, Judgement, Record, SharedTable, Table, Token, lock};
use super::{Ask, Claim, Claimed, Key, Limits, StateError};
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

#[derive(Clone)]
enum Store {
    Memory,
    Disk { disk: Arc<Disk>, source: Arc<str> },
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

    /// The name was asked for again.
    pub(super) fn adopt(&self, max_claims: usize) {
        lock(&self.table).resize(max_claims);
        self.read_store();
    }

    pub(crate) async fn reserve(&self, ask: Ask, now: UnixMillis) -> Result<Claim, StateError> {
        if let Some(why) = &*self.unread.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(StateError::Store(why.clone()));
        }
        if let Some(Err(why)) = &*self.seeded.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(StateError::Store(why.clone()));
        }
        if let Store::Disk { disk, .. } = &self.store {
            disk.saw(now);
        }
        let mut prints: Vec<Print> = ask.replay.iter().map(print).collect();
        // Two secrets with one value make one MAC twice.
        prints.sort_unstable();
        prints.dedup();
        let record = Record {
            prints,
            keep_until: ask.keep_until,
            event: ask.event.as_ref().map(print),
            event_keep_until: ask.event_keep_until,
        };
        let judgement = lock(&self.table).reserve(record, now, now.after(ask.lease));
        match judgement {
            Ok(Judgement::First(token)) => Ok(Claim::First(self.writable(token)?)),
            Ok(Judgement::Duplicate(token)) => Ok(Claim::Duplicate(self.writable(token)?)),
            Ok(Judgement::InFlight) => Ok(Claim::InFlight),
            Ok(Judgement::Replay) => Ok(Claim::Replay),
            Err(Full) => Err(StateError::Full),
        }
    }

    /// Reserves, and spends what a first delivery spends. `ask` None: there is nothing to claim. A duplicate is reserved,
    /// and spends, where the caller takes them.
    pub(crate) async fn claim(
        &self,
        ask: Option<Ask>,
        takes_duplicates: bool,
        limits: &Limits,
        client: ClientKey,
        now: UnixMillis,
    ) -> Result<Claimed, StateError> {
        let (reservation, is_duplicate) = match ask {
            None => (None, false),
            Some(ask) => match self.reserve(ask, now).await? {
                Claim::First(reservation) => (Some(reservation), false),
                Claim::Duplicate(reservation) if takes_duplicates => (Some(reservation), true),
                Claim::Duplicate(reservation) => {
                    reservation.release().await;
                    return Ok(Claimed::Duplicate(None));
                }
                Claim::InFlight => return Ok(Claimed::InFlight),
                Claim::Replay => return Ok(Claimed::Replay),
            },
        };
        if let Err(wait) = limits.spend(client) {
            if let Some(reservation) = reservation {
                reservation.release().await;
            }
            return Ok(Claimed::Limited(wait));
        }
        Ok(if is_duplicate { Claimed::Duplicate(reservation) } else { Claimed::First(reservation) })
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
    }

    /// Replay keys reserved and remembered, against `capacity`.
    pub(crate) fn len(&self) -> usize {
        lock(&self.table).len()
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
    fn writable(&self, token: Token) -> Result<Reservation, StateError> {
        let (table, store) = (Arc::clone(&self.table), self.store.clone());
        let reservation = Reservation { table, store, token, settled: None, pending: None };
        match &self.store {
            Store::Disk { disk, .. } if !disk.is_healthy() => {
                Err(StateError::Store("the state file cannot be written".into()))
            }
            Store::Disk { .. } | Store::Memory => Ok(reservation),
        }
    }
}

/// Room for a claim that was made and has not been decided. Dropping it is letting go.
#[must_use = "dropping a reservation releases it"]
pub(crate) struct Reservation {
    table: SharedTable,
    store: Store,
    token: Token,
    settled: Option<Committed>,
    /// The writer's answer to come. Kept here, not in the future of `commit`: a caller that gave up on that future may
    /// ask again and must hear about the same commit.
    pending: Option<oneshot::Receiver<Result<(), String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Committed {
    Yes,
    /// The lease ran out before, so somebody else may hold these keys: nothing was recorded.
    Lost,
}

impl Reservation {
    /// On disk the record is written when this returns `Ok(Yes)`. After an error the reservation stands until its
    /// lease ends, and commit may be called again; once decided it only repeats its answer.
    pub(crate) async fn commit(&mut self, now: UnixMillis) -> Result<Committed, StateError> {
        if let Some(settled) = self.settled {
            return Ok(settled);
        }
        let settled = match &self.store {
            Store::Memory => {
                let mut table = lock(&self.table);
                match table.begin_commit(self.token, now) {
                    Some(_) => {
                        table.finish_commit(self.token);
                        Committed::Yes
                    }
                    None => Committed::Lost,
                }
            }
            Store::Disk { disk, source } => {
                if self.pending.is_none() {
                    self.pending = disk.commit(&self.table, source, self.token, now).await?;
                }
                match &mut self.pending {
                    None => Committed::Lost,
                    Some(pending) => {
                        let answer = pending.await.unwrap_or_else(|_gone| Err("the writer has stopped".into()));
                        self.pending = None;
                        answer.map_err(StateError::Store)?;
                        Committed::Yes
                    }
                }
            }
        };
        self.settled = Some(settled);
        Ok(settled)
    }

    /// Remembers it in memory alone: the record could not be written, and forgetting it as well would be worse. True: it
    /// is remembered until it expires or the process ends.
    pub(crate) fn keep_unwritten(&mut self, now: UnixMillis) -> bool {
        if self.pending.is_some() || self.settled.is_some() {
            return self.settled == Some(Committed::Yes);
        }
        let mut table = lock(&self.table);
        let kept = table.begin_commit(self.token, now).is_some();
        if kept {
            table.finish_commit(self.token);
            self.settled = Some(Committed::Yes);
        }
        kept
    }

    /// For somebody else to write down, together with what it is a claim to. None: the lease is over, and somebody else
    /// may hold these keys.
    pub(crate) fn hand_over(mut self, now: UnixMillis) -> Option<HandedOver> {
        let record = lock(&self.table).begin_commit(self.token, now)?;
        // From here on the other one decides.
        self.settled = Some(Committed::Yes);
        Some(HandedOver { table: Arc::clone(&self.table), token: self.token, record, decided: false })
    }

    /// Frees the keys at once: the next copy is first.
    #[expect(clippy::unused_async, reason = "a store elsewhere is told before the sender is answered")]
    pub(crate) async fn release(self) {
        drop(self);
    }

    /// The lease lasts until `now + lease` from here. False: it had run out, and renewing cannot bring it back.
    #[expect(clippy::unused_async, reason = "a store elsewhere has to be asked")]
    pub(crate) async fn renew(&self, now: UnixMillis, lease: Duration) -> bool {
        lock(&self.table).renew(self.token, now, now.after(lease))
    }
}

/// A claim that is being written down elsewhere. It holds whatever its lease says; dropped undecided it goes on under its
/// lease, for nobody knows then whether it was written.
#[must_use = "nobody knows otherwise whether it was written"]
pub(crate) struct HandedOver {
    table: SharedTable,
    token: Token,
    record: Record,
    decided: bool,
}

impl HandedOver {
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn written(mut self) {
        self.decided = true;
        lock(&self.table).finish_commit(self.token);
    }

    /// It surely was not: the next copy is first.
    pub(crate) fn not_written(mut self) {
        self.decided = true;
        let mut table = lock(&self.table);
        table.fail_commit(self.token);
        table.release(self.token);
    }
}

impl Drop for HandedOver {
    fn drop(&mut self) {
        if !self.decided {
            lock(&self.table).fail_commit(self.token);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled.is_none() && self.pending.is_none() {
            lock(&self.table).release(self.token);
        }
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation")
            .field("token", &self.token)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

/// Hashed and not merely cut: a caller's key may be a short MAC padded with zeros on whichever side.
fn print(key: &Key) -> Print {
    let digest = Sha256::digest(key);
    let mut print = Print::default();
    print.copy_from_slice(&digest[..16]);
    print
}
