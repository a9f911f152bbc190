//! Durable until settled: what was acknowledged to a sender, until every upstream that it is for has had it.
//!
//! Invariant: `append` returns `Ok` only when the delivery, its tasks and its claims are committed and synced, all in one
//! transaction; nothing that was acknowledged is ever dropped to make room. A task leaves the waiting ones only by a
//! settlement that was committed. Only the process that holds the store's lock has it open, and what it has leased it
//! knows in memory alone: a crash gives every lease back by itself.

mod check;
mod disk;
mod feed;
mod keeper;
mod log;
mod packing;
mod quarantine;
mod reader;
mod room;
mod rows;
mod salvage;
pub(crate) mod search;
#[cfg(test)]
mod survival;
mod tally;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus::{Histogram, IntCounter};
use rusqlite::Connection;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::clock::UnixMillis;
use crate::parcel::Parcel;

pub(crate) use disk::OpenError;
pub(crate) use feed::{Feed, Lease};
pub(crate) use packing::{Packing, SealingKey};
pub(crate) use quarantine::{Dropped, Limits as QuarantineLimits, Summary as QuarantineSummary, Suspect};
pub(crate) use reader::{Due, Loaded, Oldest};
pub(crate) use salvage::salvage;
pub(crate) use tally::{Count, State, Tally};

use feed::Feeds;
use quarantine::Quarantine;
use reader::Readers;
use tally::Counts;
use writer::Handle;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// A folder; made where it is missing.
    pub(crate) folder: PathBuf,
    /// Of the files. Beyond it nothing more is taken.
    pub(crate) max_size: u64,
    /// What is to be left of the disk for others. Below it nothing more is taken.
    pub(crate) min_free: u64,
    /// While something of a source has waited for longer nothing more of it is taken.
    pub(crate) max_age: Duration,
    /// For so long what was delivered, or discarded, can be found.
    pub(crate) keep_delivered: Duration,
    /// And what was given up.
    pub(crate) keep_dead: Duration,
    pub(crate) quarantine: QuarantineLimits,
    pub(crate) packing: Packing,
}

impl Settings {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            max_size: 10 << 30,
            min_free: 256 << 20,
            max_age: 7 * DAY,
            keep_delivered: 3 * DAY,
            keep_dead: 30 * DAY,
            quarantine: QuarantineLimits::default(),
            packing: Packing::default(),
        }
    }
}

/// The settings in force, for all who go by them.
type Rules = Arc<ArcSwap<Settings>>;

/// An accepted delivery: stored once, and delivered to the upstream of each of `tasks`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) source: Arc<str>,
    /// By the wall clock.
    pub(crate) received: UnixMillis,
    /// The `X-Request-Id` of every attempt. Of version 7, so that its index grows at its end.
    pub(crate) request_id: Uuid,
    /// One name for the delivery, the same for the provider's every retry of it.
    pub(crate) delivery_id: String,
    pub(crate) event_id: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) parcel: Arc<Parcel>,
    pub(crate) claims: Claims,
    pub(crate) tasks: Vec<NewTask>,
}

/// What is remembered of the delivery, so that it is not accepted a second time: the prints of `state`'s ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) prints: Vec<Print>,
    pub(crate) keep_until: UnixMillis,
    pub(crate) event: Option<Print>,
    pub(crate) event_keep_until: UnixMillis,
}

pub(crate) type Print = [u8; 16];

/// A claim read back: a replay key's, or an event id's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed {
    pub(crate) print: Print,
    pub(crate) is_event: bool,
    pub(crate) until: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewTask {
    pub(crate) upstream: Arc<str>,
    /// In place of the parcel's, whose query goes along. Not encrypted: it is the operator's, or what anybody may see.
    pub(crate) path: Option<String>,
    /// What must arrive in order has one lane; None: it need not.
    pub(crate) lane: Option<i64>,
}

/// One delivery to one upstream, as it stood when it was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TaskKey {
    pub(crate) seq: i64,
    pub(crate) upstream: Arc<str>,
    /// How often an operator had it delivered anew.
    pub(crate) generation: u32,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) key: TaskKey,
    pub(crate) source: Arc<str>,
    pub(crate) received: UnixMillis,
    pub(crate) request_id: Uuid,
    pub(crate) delivery_id: String,
    /// Made before.
    pub(crate) attempts: u32,
    /// Its path is the task's.
    pub(crate) parcel: Arc<Parcel>,
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) end: End,
    /// Nothing was sent, and so it was no attempt, when this is false.
    pub(crate) counted: bool,
    pub(crate) status: Option<u16>,
    /// For the operator: no header, no body, no secret. Cut to 200 characters.
    pub(crate) note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Delivered,
    Retry { after: Duration },
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AppendError {
    #[error("the inbox has reached its `max_size`")]
    Full,
    #[error("less than `min_free` is left on the inbox's disk")]
    NoRoomOnDisk,
    #[error("something older than `max_age` still waits")]
    TooOld,
    #[error("the inbox failed: {0}")]
    Store(String),
}

#[derive(Clone)]
pub(crate) struct Meters {
    /// Seconds from the hand-over of a delivery to its commit.
    pub(crate) append: Histogram,
    /// Seconds of a commit, its sync included.
    pub(crate) commit: Histogram,
    /// Deliveries that shared one commit.
    pub(crate) batch: Histogram,
    /// Failed writes and reads.
    pub(crate) errors: IntCounter,
}

/// The store of one gateway. Outlives configuration snapshots.
pub(crate) struct Inbox {
    writer: Handle,
    readers: Readers,
    feeds: Arc<Feeds>,
    counts: Arc<Counts>,
    clock: Steady,
    folder: PathBuf,
    rules: Rules,
    pub(crate) quarantine: Quarantine,
}

impl Inbox {
    /// Makes the store where there is none. Blocking; holds the store's lock until the last of it is dropped.
    pub(crate) fn open(settings: &Settings, now: UnixMillis, meters: Meters) -> Result<Arc<Self>, OpenError> {
        let opened = disk::open(settings, now)?;
        // What a second takes back no retry notices; more was taken off every due time.
        let clock = Steady::from(now.max(opened.last_time));
        let rules = Arc::new(ArcSwap::from_pointee(settings.clone()));
        let feeds = Arc::new(Feeds::default());
        let counts = opened.counts.clone();
        let readers = Readers::new(opened.path.clone(), rules.clone());
        let folder = opened.folder.clone();
        let unusable = |detail: String| OpenError::Unusable { path: folder.clone(), detail };
        let quarantine =
            Quarantine::read(&opened.connection, rules.clone()).map_err(|error| unusable(error.to_string()))?;
        let writer = writer::start(opened, clock, rules.clone(), meters, feeds.clone())
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Arc::new(Self { writer, readers, feeds, counts, clock, folder, rules, quarantine }))
    }

    /// The clock that dues are told by.
    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Whatever name leads to it.
    pub(crate) fn is_in(&self, folder: &Path) -> bool {
        folder.canonicalize().is_ok_and(|folder| folder == self.folder)
    }

    /// Goes by other settings from now on; the folder stays.
    pub(crate) fn adjust(&self, settings: Settings) {
        self.quarantine.limit(settings.quarantine);
        self.rules.store(Arc::new(settings));
    }

    /// Resolves when the delivery is committed and synced, or surely is not. Whoever drops this future before that does
    /// not learn which.
    pub(crate) async fn append(&self, entry: Entry) -> Result<(), AppendError> {
        self.writer.append(entry, None).await
    }

    /// Resolves when it is committed. A write that fails is kept and repeated by the writer, and the task is settled
    /// once it succeeds: what was delivered must not be sent again because the disk was full.
    pub(crate) async fn settle(&self, key: &TaskKey, attempt: Attempt) -> Result<(), String> {
        self.writer.settle(key.clone(), attempt).await
    }

    /// Does something in the writer's next transaction, all or nothing. Must be quick: appends wait for it.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &mut Tally) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let (answer, answered) = oneshot::channel();
        self.writer.work(work, answer).await?;
        answered.await.map_err(|_| "the writer has stopped".to_owned())?
    }

    /// Reads on a connection of its own. Blocking; a long transaction holds the log back.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, String> {
        self.readers.read(work)
    }

    /// The first waiting tasks by due time, those that are not yet due and those that are leased included. Blocking.
    pub(crate) fn due(&self, upstream: &str, limit: usize) -> Result<Vec<Due>, String> {
        self.readers.due(upstream, limit)
    }

    /// In the order asked for; those that ended meanwhile are left out. Blocking.
    pub(crate) fn load(&self, upstream: &Arc<str>, seqs: &[i64]) -> Result<Vec<Loaded>, String> {
        self.readers.load(upstream, seqs)
    }

    /// Is it waiting still, as it was handed out? Blocking.
    pub(crate) fn waits(&self, key: &TaskKey) -> Result<bool, String> {
        self.readers.waits(key)
    }

    /// What was stored of a delivery, whatever became of it. Blocking.
    pub(crate) fn content(&self, seq: i64) -> Result<Parcel, String> {
        self.readers.content(seq)
    }

    /// Where freshly committed tasks of this upstream are offered. Made by the first who asks.
    pub(crate) fn feed(&self, upstream: &str) -> Arc<Feed> {
        self.feeds.of(upstream)
    }

    /// Tasks by source, upstream and state, as committed last.
    pub(crate) fn counts(&self) -> Vec<Count> {
        self.counts.all()
    }

    /// When the oldest delivery that still waits was received, by source and upstream. Blocking.
    pub(crate) fn oldest(&self, counts: &[Count]) -> Result<Vec<Oldest>, String> {
        self.readers.oldest(counts)
    }

    /// Bytes of the file and its log.
    pub(crate) fn size(&self) -> u64 {
        let length = |name: &str| self.folder.join(name).metadata().map_or(0, |file| file.len());
        length("inbox.db") + length("inbox.db-wal")
    }

    /// What is remembered of a source's accepted deliveries, the expired that are still there included: it is the wall
    /// clock that they expire by, and that may have been set back. Blocking.
    pub(crate) fn seeds(&self, source: &str, each: impl FnMut(Seed)) -> Result<(), String> {
        self.readers.seeds(source, each)
    }

    /// Can a delivery be stored, as far as is known? Becomes true again by itself when writing works again.
    pub(crate) fn is_healthy(&self) -> bool {
        self.writer.is_healthy()
    }

    /// Commits what was handed over and lets go of the file.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }
}

/// The wall clock as it was at the start, moved on by the monotonic one: set back or forward, the wall clock would keep
/// retries from coming due, or have all of them come due at once.
#[derive(Clone, Copy, Debug)]
struct Steady {
    began: UnixMillis,
    since: Instant,
}

impl Steady {
    fn from(began: UnixMillis) -> Self {
        Self { began, since: Instant::now() }
    }

    fn now(&self) -> UnixMillis {
        self.began.after(self.since.elapsed())
    }
}
