//! A claim that was made and is not decided: committed, let go, or handed to whoever writes it down elsewhere.
//!
//! Invariant: a reservation that its holder drops is released, except while its commit is in the hands of the disk
//! writer: then the writer decides. A written commit stands though nobody waits for it any more; one that failed
//! keeps its keys reserved until the lease ends, since whoever held it cannot be asked.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::StateError;
use super::disk::Disk;
use super::redis::{Hold, Remote};
use super::table::{Record, SharedTable, Token, lock};
use crate::clock::UnixMillis;

#[derive(Clone)]
pub(super) enum Store {
    Memory,
    Disk {
        disk: Arc<Disk>,
        source: Arc<str>,
    },
    /// Where all gateways ask. The table has what this one holds and has accepted.
    Redis(Arc<Remote>),
}

/// Room for a claim that was made and has not been decided. Dropping it is letting go.
#[must_use = "dropping a reservation releases it"]
pub(crate) struct Reservation {
    table: SharedTable,
    store: Store,
    token: Token,
    lease: Duration,
    /// In the store that all gateways share. None: there is no such store, or it did not answer.
    hold: Option<Box<Hold>>,
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
    pub(super) fn new(table: &SharedTable, store: &Store, token: Token, lease: Duration) -> Self {
        let (table, store) = (Arc::clone(table), store.clone());
        Self { table, store, token, lease, hold: None, settled: None, pending: None }
    }

    /// In the store that all gateways share, too.
    pub(super) fn with(mut self, hold: Hold) -> Self {
        self.hold = Some(Box::new(hold));
        self
    }

    /// On disk the record is written when this returns `Ok(Yes)`. After an error the reservation stands until its
    /// lease ends, and commit may be called again; once decided it only repeats its answer.
    pub(crate) async fn commit(&mut self, now: UnixMillis) -> Result<Committed, StateError> {
        if let Some(settled) = self.settled {
            return Ok(settled);
        }
        let settled = match &self.store {
            Store::Memory => {
                if lock(&self.table).commit(self.token, now) {
                    Committed::Yes
                } else {
                    Committed::Lost
                }
            }
            Store::Disk { disk, source } => {
                if self.pending.is_none() {
                    self.pending = Box::pin(disk.commit(&self.table, source, self.token, now)).await?;
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
            Store::Redis(remote) => {
                let writing = Writing::begin(&self.table, self.token, now);
                match (writing, &self.hold) {
                    // This machine's clock may have been set forward: there, where the leases of all are judged, it
                    // holds until somebody else does.
                    (None, Some(hold)) if remote.judges_leases() => {
                        let committed = Box::pin(remote.commit(hold, now)).await?;
                        if committed {
                            lock(&self.table).restore(&hold.record);
                        }
                        if committed { Committed::Yes } else { Committed::Lost }
                    }
                    (None, _) => {
                        if let Some(hold) = self.hold.take() {
                            Box::pin(remote.release(*hold, now, self.lease)).await;
                        }
                        Committed::Lost
                    }
                    (Some(writing), None) => {
                        writing.finish();
                        remote.put_back_later();
                        Committed::Yes
                    }
                    (Some(writing), Some(hold)) => {
                        let committed = Box::pin(remote.commit(hold, now)).await?;
                        match committed && remote.is_remembered_here() {
                            true => writing.finish(),
                            false => writing.give_up(),
                        }
                        if committed { Committed::Yes } else { Committed::Lost }
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
        let kept = lock(&self.table).commit(self.token, now);
        if kept {
            self.settled = Some(Committed::Yes);
        }
        let Store::Redis(remote) = &self.store else { return kept };
        match self.hold.take() {
            // What ended here alone is remembered all the same: it was accepted.
            Some(hold) if kept || remote.judges_leases() => {
                lock(&self.table).restore(&hold.record);
                self.settled = Some(Committed::Yes);
                remote.commit_later(*hold);
                true
            }
            Some(hold) => {
                self.hold = Some(hold);
                kept
            }
            None => {
                if kept {
                    remote.put_back_later();
                }
                kept
            }
        }
    }

    /// For somebody else to write down, together with what it is a claim to. None: the lease is over, and somebody else
    /// may hold these keys.
    pub(crate) fn hand_over(mut self, now: UnixMillis) -> Option<HandedOver> {
        let record = lock(&self.table).begin_commit(self.token, now)?;
        // From here on the other one decides.
        self.settled = Some(Committed::Yes);
        let there = match &self.store {
            Store::Memory | Store::Disk { .. } => None,
            Store::Redis(remote) => Some((Arc::clone(remote), self.hold.take(), self.lease)),
        };
        Some(HandedOver { table: Arc::clone(&self.table), token: self.token, record, there, decided: false })
    }

    /// Frees the keys at once, for other gateways too: the next copy is first.
    pub(crate) async fn release(mut self) {
        let hold = if self.settled.is_none() { self.hold.take() } else { None };
        let there = match &self.store {
            Store::Redis(remote) => hold.map(|hold| (Arc::clone(remote), hold, self.lease)),
            Store::Memory | Store::Disk { .. } => None,
        };
        drop(self);
        if let Some((remote, hold, lease)) = there {
            Box::pin(remote.release(*hold, UnixMillis(0), lease)).await;
        }
    }

    /// The lease lasts until `now + lease` from here. False: it had run out, and renewing cannot bring it back.
    pub(crate) async fn renew(&self, now: UnixMillis, lease: Duration) -> bool {
        let renewed = lock(&self.table).renew(self.token, now, now.after(lease));
        match (&self.store, &self.hold) {
            // One that does not answer may have it still; the commit will tell.
            (Store::Redis(remote), Some(hold)) if renewed => {
                Box::pin(remote.renew(hold, now, lease)).await.unwrap_or(true)
            }
            _ => renewed,
        }
    }
}

/// A commit that is being told to a store elsewhere. Dropped, it goes on under its lease and may be tried again.
struct Writing<'a> {
    table: &'a SharedTable,
    token: Token,
    is_open: bool,
}

impl<'a> Writing<'a> {
    fn begin(table: &'a SharedTable, token: Token, now: UnixMillis) -> Option<Self> {
        lock(table).begin_commit(token, now).map(|_| Self { table, token, is_open: true })
    }

    fn finish(mut self) {
        self.is_open = false;
        lock(self.table).finish_commit(self.token);
    }

    fn give_up(mut self) {
        self.is_open = false;
        let mut table = lock(self.table);
        table.fail_commit(self.token);
        table.release(self.token);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.is_open {
            lock(self.table).fail_commit(self.token);
        }
    }
}

/// A claim that is being written down elsewhere. It holds whatever its lease says; dropped undecided it goes on under its
/// lease, for nobody knows then whether it was written.
#[must_use = "nobody knows otherwise whether it was written"]
pub(crate) struct HandedOver {
    table: SharedTable,
    token: Token,
    record: Record,
    /// In a store that other gateways ask, where there is one.
    there: Option<(Arc<Remote>, Option<Box<Hold>>, Duration)>,
    decided: bool,
}

impl HandedOver {
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The other gateways are told a moment later, and until they are it is held from them.
    pub(crate) fn written(mut self) {
        self.decided = true;
        lock(&self.table).finish_commit(self.token);
        match self.there.take() {
            Some((remote, Some(hold), _)) => remote.commit_later(*hold),
            Some((remote, None, _)) => remote.put_back_later(),
            None => {}
        }
    }

    /// It surely was not: the next copy is first.
    pub(crate) fn not_written(mut self) {
        self.decided = true;
        let mut table = lock(&self.table);
        table.fail_commit(self.token);
        table.release(self.token);
        drop(table);
        if let Some((remote, Some(hold), lease)) = self.there.take() {
            remote.release_later(*hold, lease);
        }
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
            if let (Store::Redis(remote), Some(hold)) = (&self.store, self.hold.take()) {
                remote.release_later(*hold, self.lease);
            }
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
