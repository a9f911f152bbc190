//! The one writer: everything that waits, in one transaction and one sync. One file, since what a batch is, how it is
//! committed and who hears of it are one promise.
//!
//! Invariant: whoever waits hears `Ok` only after the commit that holds what was asked for. One failure does not take
//! others with it: a batch that cannot be committed is tried again one by one. A settlement is never given up: it is
//! kept until it can be written, and its task stays leased so long. One file, for what a batch is made of, how it is
//! committed and who hears of it when are one order.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::disk::{self, Held};
use super::feed::Feeds;
use super::keeper::{self, Keeper};
use super::packing::Packed;
use super::quarantine::Release;
use super::room::{Room, Standing};
use super::rows::{self, Stored};
use super::tally::{Counts, Tally};
use super::{AppendError, Attempt, Entry, Meters, Rules, Steady, Task, TaskKey};
use crate::clock::UnixMillis;

/// Waiting for the writer. Beyond it callers wait for room: they hold a request each, which is bounded above.
const QUEUE: usize = 4096;

/// In one transaction: enough to share a sync among all that queued up during the one before.
const MAX_BATCH: usize = 1024;

/// Bytes of deliveries in one transaction: a batch of large ones must not make all of them wait for minutes of writing.
const MAX_BATCH_BYTES: usize = 16 << 20;

/// Bytes of a body that are compressed and encrypted in about a millisecond; more is done where nobody else waits.
const PACKED_AT_ONCE: usize = 256 << 10;

const TICK: Duration = Duration::from_secs(1);

/// The writer has been at one thing for so long: the disk hangs, and nobody knows for how long.
const HANGS: Duration = Duration::from_secs(10);

/// Pages that a commit writes to the log, however little is in it: the ends of tables and indexes.
const PAGES_OF_A_COMMIT: usize = 12;

type Answer<T> = oneshot::Sender<Result<T, String>>;

/// What is to be told once the commit has succeeded, or failed.
type Conclusion = Box<dyn FnOnce(Result<(), String>) + Send>;

/// None: it failed, and its asker has heard.
type Work = Box<dyn FnOnce(&Connection, &mut Tally) -> Option<Conclusion> + Send>;

enum Message {
    Append(Box<Append>),
    Settle(Box<Settling>),
    Work(Work),
    Tick,
    Close(oneshot::Sender<()>),
}

pub(super) struct Append {
    pub(super) entry: Entry,
    pub(super) packed: Packed,
    since: Instant,
    /// Out of the quarantine, in the same transaction.
    pub(super) release: Option<Release>,
    answer: oneshot::Sender<Result<(), AppendError>>,
}

pub(super) struct Settling {
    pub(super) key: TaskKey,
    pub(super) attempt: Attempt,
    answer: Answer<()>,
}

pub(super) struct Handle {
    to_writer: mpsc::Sender<Message>,
    vitals: Arc<Vitals>,
    rules: Rules,
    standing: Arc<Standing>,
    clock: Steady,
}

/// What the writer and the callers tell each other without waiting.
struct Vitals {
    runs: AtomicBool,
    writes: AtomicBool,
    /// By the inbox's clock, in milliseconds: since when the writer has been at what it does. 0: it waits.
    since: AtomicU64,
}

impl Vitals {
    fn hangs(&self, now: UnixMillis) -> bool {
        match self.since.load(Ordering::Relaxed) {
            0 => false,
            since => UnixMillis(since).after(HANGS) <= now,
        }
    }
}

const STOPPED: &str = "the writer has stopped";

pub(super) fn start(
    opened: disk::Opened,
    clock: Steady,
    rules: Rules,
    meters: Meters,
    feeds: Arc<Feeds>,
) -> io::Result<Handle> {
    let disk::Opened { connection, held, path, counts, .. } = opened;
    let vitals =
        Arc::new(Vitals { runs: AtomicBool::new(true), writes: AtomicBool::new(true), since: AtomicU64::new(0) });
    let (to_writer, inbox) = mpsc::channel(QUEUE);
    let next_seq = connection.query_row("SELECT ifnull(max(seq), 0) + 1 FROM deliveries", [], |row| row.get(0));
    let standing = Arc::<Standing>::default();
    let room = Room::new(rules.clone(), standing.clone(), &path, &connection);
    let keeper = Keeper::start(&path, held.database.clone(), rules.clone(), clock, standing.clone())?;
    let writer = Writer {
        connection,
        inbox,
        clock,
        meters,
        feeds,
        counts,
        tally: Tally::default(),
        next_seq: next_seq.map_err(io::Error::other)?,
        last_time: UnixMillis::default(),
        unwritten: Vec::new(),
        room,
        standing: standing.clone(),
        unkept: 0,
        closing: None,
        runs: Running(vitals.clone()),
        keeper,
        _held: held,
    };
    let ticking = to_writer.downgrade();
    thread::Builder::new().name("inbox-writer".into()).spawn(move || writer.run())?;
    thread::Builder::new().name("inbox-ticker".into()).spawn(move || {
        loop {
            thread::sleep(TICK);
            // A full queue means that the writer is awake; it will hear the next one.
            match ticking.upgrade().map(|to_writer| to_writer.try_send(Message::Tick)) {
                None | Some(Err(mpsc::error::TrySendError::Closed(_))) => break,
                Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => {}
            }
        }
    })?;
    Ok(Handle { to_writer, vitals, rules, standing, clock })
}

impl Handle {
    pub(super) async fn append(&self, entry: Entry, release: Option<Release>) -> Result<(), AppendError> {
        if let Some(refusal) = self.refusal(&entry.source) {
            return Err(refusal);
        }
        // Those that wait hold their bodies until it is known what became of them. No more of them, while nothing moves.
        if self.vitals.hangs(self.clock.now()) {
            return Err(AppendError::Store("the disk takes too long".to_owned()));
        }
        let packed = self.pack(&entry).await.map_err(AppendError::Store)?;
        let (answer, answered) = oneshot::channel();
        self.send(Message::Append(Box::new(Append { entry, packed, since: Instant::now(), release, answer })))
            .await
            .map_err(AppendError::Store)?;
        answered.await.map_err(|_| AppendError::Store(STOPPED.to_owned()))?
    }

    /// Why a delivery of this source would not be taken now.
    pub(super) fn refusal(&self, source: &str) -> Option<AppendError> {
        self.standing.refusal(source, &self.rules.load(), self.clock.now())
    }

    /// Here, where many can do it at once, and not in the writer.
    async fn pack(&self, entry: &Entry) -> Result<Packed, String> {
        let (rules, parcel, request_id) = (self.rules.load_full(), entry.parcel.clone(), *entry.request_id.as_bytes());
        let takes_long = parcel.body.len() > PACKED_AT_ONCE;
        let pack = move || rules.packing.pack(&request_id, parcel.encode());
        if !takes_long {
            return pack();
        }
        tokio::task::spawn_blocking(pack).await.map_err(|error| error.to_string())?
    }

    pub(super) async fn settle(&self, key: TaskKey, attempt: Attempt) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Settle(Box::new(Settling { key, attempt, answer }))).await?;
        answered.await.map_err(|_| STOPPED.to_owned())?
    }

    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &mut Tally) -> rusqlite::Result<T> + Send + 'static,
        answer: Answer<T>,
    ) -> Result<(), String> {
        let work: Work = Box::new(move |connection, tally| match guarded(|| work(connection, tally)) {
            Ok(done) => Some(Box::new(move |committed| {
                // Whoever asked may be gone; what was done is done.
                let _ = answer.send(committed.map(|()| done));
            })),
            Err(error) => {
                let _ = answer.send(Err(error));
                None
            }
        });
        self.send(Message::Work(work)).await
    }

    async fn send(&self, message: Message) -> Result<(), String> {
        self.to_writer.send(message).await.map_err(|_| STOPPED.to_owned())
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.vitals.runs.load(Ordering::Relaxed)
            && self.vitals.writes.load(Ordering::Relaxed)
            && !self.vitals.hangs(self.clock.now())
            && !self.standing.is_damaged.load(Ordering::Relaxed)
            && !self.standing.is_gone.load(Ordering::Relaxed)
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.to_writer.send(Message::Close(done)).await.is_ok() {
            // An error means that the writer ended without answering: then too it is closed.
            let _ = closed.await;
        }
    }
}

/// A mistake in what somebody asked for must not end the writer, on which all deliveries depend: it is undone, as is
/// whatever fails.
fn guarded<T>(work: impl FnOnce() -> rusqlite::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("it broke off half-way, and was undone".to_owned()),
    }
}

struct Writer {
    connection: Connection,
    inbox: mpsc::Receiver<Message>,
    clock: Steady,
    meters: Meters,
    feeds: Arc<Feeds>,
    counts: Arc<Counts>,
    tally: Tally,
    next_seq: i64,
    /// When the present time was last written down.
    last_time: UnixMillis,
    /// Settlements that could not be written yet.
    unwritten: Vec<Settling>,
    room: Room,
    standing: Arc<Standing>,
    /// About how many bytes were written since the keeper was told.
    unkept: usize,
    closing: Option<oneshot::Sender<()>>,
    runs: Running,
    keeper: Keeper,
    _held: Held,
}

/// However the writer ends, it is known.
struct Running(Arc<Vitals>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.runs.store(false, Ordering::Relaxed);
    }
}

/// What one transaction is made of.
#[derive(Default)]
struct Batch {
    appends: Vec<Append>,
    settlings: Vec<Settling>,
    works: Vec<Work>,
    bytes: usize,
}

impl Batch {
    fn len(&self) -> usize {
        self.appends.len() + self.settlings.len() + self.works.len()
    }
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.inbox.blocking_recv() {
            self.begin();
            let (mut batch, ticked) = self.gather(first);
            self.make_room(&mut batch);
            self.write(batch);
            if ticked {
                self.probe();
                self.room.tick(&self.connection);
            }
            self.begin();
            self.keep_log();
            while self.inbox.is_empty() && self.room.has_work() && self.runs.0.writes.load(Ordering::Relaxed) {
                self.keep_house();
            }
            self.runs.0.since.store(0, Ordering::Relaxed);
        }
        self.finish();
    }

    /// It is seen to move.
    fn begin(&self) {
        self.runs.0.since.store(self.clock.now().0, Ordering::Relaxed);
    }

    /// All that waits, up to the bounds of a batch; and whether a tick was among it.
    fn gather(&mut self, first: Message) -> (Batch, bool) {
        let mut batch = Batch { settlings: std::mem::take(&mut self.unwritten), ..Batch::default() };
        let mut ticked = false;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Append(append) => {
                    batch.bytes += append.packed.content.len();
                    batch.appends.push(*append);
                }
                Message::Settle(settling) => batch.settlings.push(*settling),
                Message::Work(work) => batch.works.push(work),
                Message::Tick => ticked = true,
                Message::Close(done) => {
                    // What was handed over before is still received, and nothing after.
                    self.inbox.close();
                    self.closing = Some(done);
                }
            }
            let is_full = batch.len() >= MAX_BATCH || batch.bytes >= MAX_BATCH_BYTES;
            next = if is_full { None } else { self.inbox.try_recv().ok() };
        }
        (batch, ticked)
    }

    /// Of the deliveries that came, those for which there is room: what was delivered goes before anybody is refused.
    fn make_room(&mut self, batch: &mut Batch) {
        let cost = |append: &Append| Room::cost(append.packed.content.len());
        let all: u64 = batch.appends.iter().map(cost).sum();
        if all == 0 {
            return;
        }
        let mut left = self.room.left(&self.connection);
        if all > left {
            self.room.shorten_log(&self.connection);
            left = self.room.left(&self.connection);
        }
        if all > left {
            self.clear_away();
            // Clearing away was written to the log as well.
            self.room.shorten_log(&self.connection);
            left = self.room.left(&self.connection);
        }
        let mut refused = 0;
        for append in std::mem::take(&mut batch.appends) {
            if let Some(rest) = left.checked_sub(cost(&append)) {
                left = rest;
                batch.appends.push(append);
            } else {
                refused += 1;
                let _ = append.answer.send(Err(AppendError::Full));
            }
        }
        self.room.note_full(refused > 0);
    }

    /// Looks for what was delivered and may go, until there is enough room again or all was seen.
    fn clear_away(&mut self) {
        let Some(until) = self.room.search() else { return };
        while self.room.is_searching() && Instant::now() < until {
            self.keep_house();
        }
    }

    /// One step of what makes room, on its own.
    fn keep_house(&mut self) {
        let (_, tried) = self.commit(&[], &[], Vec::new());
        if tried.is_ok() {
            self.tally.publish(&self.counts);
        } else {
            self.room.again();
        }
        self.note(&tried);
    }

    /// The log stays short: see `keeper.rs`.
    fn keep_log(&mut self) {
        // Before the second is over, where it is long enough by then.
        if self.room.is_long(self.unkept) {
            self.unkept = 0;
            self.keeper.nudge();
        }
        if self.standing.remainder.swap(false, Ordering::Acquire) {
            let begun = Instant::now();
            // Harmless when it fails: the keeper goes on trying.
            let _ = keeper::checkpoint(&self.connection);
            let took = begun.elapsed();
            tracing::debug!(?took, "the rest of the inbox's log was written back");
        }
    }

    fn write(&mut self, batch: Batch) {
        self.try_write(batch, true);
    }

    fn try_write(&mut self, batch: Batch, may_repeat: bool) {
        let Batch { appends, settlings, works, .. } = batch;
        let together = appends.len() + settlings.len() + works.len();
        if together == 0 {
            return;
        }
        let begun = Instant::now();
        let (conclusions, tried) = self.commit(&appends, &settlings, works);
        if !(may_repeat && tried.as_ref().is_err_and(is_full)) {
            self.note(&tried);
        }
        if tried.is_ok() {
            // Before anybody hears of it: whoever asks then for the counts finds what was done.
            for upstream in self.tally.publish(&self.counts) {
                self.feeds.of(&upstream).look_again();
            }
        }
        let told = tried.as_ref().map(|_| ()).map_err(ToString::to_string);
        for conclusion in conclusions {
            conclusion(told.clone());
        }
        match tried {
            Ok(stored) => {
                self.meters.commit.observe(begun.elapsed().as_secs_f64());
                self.unkept += PAGES_OF_A_COMMIT * disk::PAGE_BYTES as usize + 2048 * together;
                self.unkept += appends.iter().map(|a| a.packed.content.len()).sum::<usize>();
                if !appends.is_empty() {
                    self.meters.batch.observe(appends.len() as f64);
                }
                for (append, stored) in appends.into_iter().zip(stored) {
                    self.acknowledge(append, &stored);
                }
                if !settlings.is_empty() {
                    self.room.settled();
                }
                for settling in settlings {
                    // Whoever asked may be gone; settled is settled.
                    let _ = settling.answer.send(Ok(()));
                }
            }
            Err(error) if together > 1 && !is_of_the_disk(&error) => {
                // One of them may be what fails, and the others must not fail with it.
                for append in appends {
                    self.write(Batch { appends: vec![append], ..Batch::default() });
                }
                for settling in settlings {
                    self.write(Batch { settlings: vec![settling], ..Batch::default() });
                }
            }
            Err(error) if may_repeat && is_full(&error) => {
                // A log that is written back needs less room than a log, and what was delivered is to go before anybody
                // is refused.
                self.room.shorten_log(&self.connection);
                self.clear_away();
                self.try_write(Batch { appends, settlings, ..Batch::default() }, false);
            }
            Err(error) => {
                let is_tried_alone = !appends.is_empty() && !settlings.is_empty();
                for append in appends {
                    let _ = append.answer.send(Err(AppendError::Store(error.to_string())));
                }
                if is_tried_alone {
                    // They need less room, and may have it where deliveries have none; and they make some.
                    self.try_write(Batch { settlings, ..Batch::default() }, false);
                } else {
                    self.unwritten.extend(settlings);
                }
            }
        }
    }

    fn commit(
        &mut self,
        appends: &[Append],
        settlings: &[Settling],
        works: Vec<Work>,
    ) -> (Vec<Conclusion>, rusqlite::Result<Vec<Stored>>) {
        self.begin();
        let mut conclusions = Vec::new();
        let tally = &mut self.tally;
        let (now, mut seq) = (self.clock.now(), self.next_seq);
        let dates = now >= self.last_time.after(TICK);
        let (connection, room) = (&mut self.connection, &mut self.room);
        let write = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut stored = Vec::with_capacity(appends.len());
            for append in appends {
                stored.push(rows::insert(&transaction, tally, append, seq, now)?);
                seq += 1;
            }
            for settling in settlings {
                rows::settle(&transaction, tally, settling, now)?;
            }
            for work in works {
                let before = tally.clone();
                transaction.execute_batch("SAVEPOINT work")?;
                match work(&transaction, tally) {
                    Some(conclusion) => conclusions.push(conclusion),
                    None => {
                        transaction.execute_batch("ROLLBACK TO work")?;
                        *tally = before;
                    }
                }
                transaction.execute_batch("RELEASE work")?;
            }
            if room.has_work() {
                let before = tally.clone();
                transaction.execute_batch("SAVEPOINT step")?;
                if let Err(error) = room.step(&transaction, tally, now, seq - 1) {
                    tracing::debug!(%error, "nothing was cleared away");
                    transaction.execute_batch("ROLLBACK TO step")?;
                    *tally = before;
                    room.again();
                }
                transaction.execute_batch("RELEASE step")?;
            }
            tally.write(&transaction)?;
            if dates {
                rows::write_time(&transaction, now)?;
            }
            transaction.commit()?;
            Ok(stored)
        };
        let tried = write();
        match &tried {
            Ok(_) => {
                self.next_seq = seq;
                self.last_time = if dates { now } else { self.last_time };
            }
            Err(_) => self.tally.forget(),
        }
        (conclusions, tried)
    }

    fn acknowledge(&self, append: Append, stored: &Stored) {
        let Append { entry, since, answer, .. } = append;
        self.meters.append.observe(since.elapsed().as_secs_f64());
        let _ = answer.send(Ok(()));
        for (task, _) in entry.tasks.into_iter().zip(&stored.waiting).filter(|(_, waiting)| **waiting) {
            let mut parcel = entry.parcel.clone();
            if let Some(path) = task.path {
                let mut own = (*parcel).clone();
                own.go_to(&path);
                parcel = Arc::new(own);
            }
            self.feeds.of(&task.upstream).offer(Task {
                key: TaskKey { seq: stored.seq, upstream: task.upstream, generation: 0 },
                source: entry.source.clone(),
                received: entry.received,
                request_id: entry.request_id,
                delivery_id: entry.delivery_id.clone(),
                attempts: 0,
                parcel,
            });
        }
    }

    fn note<T>(&self, tried: &rusqlite::Result<T>) {
        let wrote = self.runs.0.writes.swap(tried.is_ok(), Ordering::Relaxed);
        match tried {
            Ok(_) if !wrote => tracing::warn!("the inbox can be written again"),
            Ok(_) => {}
            Err(error) => {
                self.meters.errors.inc();
                // Once for each outage: the counter counts the rest.
                if wrote {
                    tracing::error!(%error, "the inbox cannot be written: deliveries are refused with 503");
                }
            }
        }
    }

    /// After a failure, tries whether writing works again, so that health does not depend on traffic which an unhealthy
    /// gateway may not get.
    fn probe(&mut self) {
        if self.runs.0.writes.load(Ordering::Relaxed) {
            return;
        }
        let (now, connection) = (self.clock.now(), &self.connection);
        let tried = rows::try_writing(connection).and_then(|()| rows::write_time(connection, now));
        self.note(&tried);
    }

    fn finish(mut self) {
        let batch = Batch { settlings: std::mem::take(&mut self.unwritten), ..Batch::default() };
        self.write(batch);
        // Harmless when it fails: what is due is so by a clock that is some seconds behind.
        let _ = rows::write_time(&self.connection, self.clock.now());
        self.keeper.stop();
        // Where damage was found the next start is to look at all of it, and to refuse what it finds. Harmless when it
        // fails: that start takes longer.
        if !self.standing.is_damaged.load(Ordering::Relaxed) {
            let _ = disk::mark_closed(&self.connection);
        }
        let closed = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = closed {
            // Harmless: the log stays as long as it is, and nothing in it is lost.
            tracing::debug!(%error, "the inbox's log was not written back");
        }
        let closing = self.closing.take();
        // The file and its lock are let go before anybody hears that they are.
        drop(self);
        if let Some(done) = closing {
            // Nobody listens when the caller of close gave up.
            let _ = done.send(());
        }
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// Failures that every write meets alike.
fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, ReadOnly, SystemIoFailure,
    };
    error.sqlite_error_code().is_some_and(|code| {
        matches!(
            code,
            CannotOpen
                | DatabaseBusy
                | DatabaseCorrupt
                | DatabaseLocked
                | DiskFull
                | NotADatabase
                | ReadOnly
                | SystemIoFailure
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, entry, open};
    use super::*;

    #[tokio::test]
    async fn while_the_disk_hangs_senders_are_refused_at_once_and_it_shows_and_both_end_with_it() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let (held, holding) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let (hung, (waits, refused)) = tokio::join!(
            inbox.write(move |_, _| {
                // An error in either means that the test is over.
                let _ = (begun.send(()), holding.recv());
                Ok(())
            }),
            async {
                has_begun.await.expect("a writer at work");
                let mut waits = Box::pin(inbox.append(entry("waits", None)));
                assert!(tokio::time::timeout(Duration::from_millis(1), &mut waits).await.is_err());
                assert!(inbox.is_healthy());
                let since = inbox.now().0 - 10_000;
                inbox.writer.vitals.since.store(since, Ordering::Relaxed);
                let refused = inbox.append(entry("refused", None)).await;
                assert!(!inbox.is_healthy());
                drop(held);
                (waits.await, refused)
            }
        );
        assert_eq!(hung, Ok(()));
        assert_eq!(waits, Ok(()));
        assert!(matches!(refused, Err(AppendError::Store(_))), "{refused:?}");
        assert_eq!(inbox.append(entry("new", None)).await, Ok(()));
        assert!(inbox.is_healthy());
        let stored: i64 = inbox.counts().iter().map(|count| count.tasks).sum();
        assert_eq!(stored, 2);
    }
}
