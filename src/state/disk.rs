//! Committed claims in one SQLite file: the only file here that knows SQL, files and threads.
//! One file of source as well, though a long one: the format, who may write it and when it is safe are one argument.
//!
//! # Files
//!
//! `PATH`       the database, mode 0600; `application_id` [`APPLICATION_ID`], `user_version` [`SCHEMA_VERSION`]:
//!
//! | table     | columns                                | meaning                                                       |
//! |-----------|----------------------------------------|---------------------------------------------------------------|
//! | `sources` | `id`, `name`                           | numbers for the names of sources; rows are never deleted      |
//! | `claims`  | `source`, `expires`, `kind`, `print`   | the primary key is all four, in this order                    |
//! | `probe`   | `id`, `filler`                         | empty, but for a moment while writing is tried after an error |
//! | `captured`| `source`, `name`, `secret`             | secrets that senders brought, as they are; the first one stays |
//!
//! `expires` is wall-clock milliseconds since 1970; `kind` is 0 for a replay key, 1 for an event id; `print` is 16
//! bytes (see `shelf.rs`). A print may have several rows; the latest `expires` counts. The order of the key makes rows
//! arrive near the end of their source's range and expire at its beginning, so neither touches pages all over the file;
//! looking up a print in it would be slow, and is never done: the ledger in memory answers, the file only remembers.
//!
//! `PATH-wal`, `PATH-shm`   SQLite's write-ahead log and its index. The log belongs to the database: without it, commits
//!              are missing. A copy of the state is a copy of both.
//! `PATH.lock`  empty; locked by the one process that serves from this file. SQLite's own locks would let two take turns,
//!              each with a memory that knows nothing of what the other accepted. The kernel lets go of the lock when
//!              the process ends in whatever way, so a file left behind means nothing.
//! `PATH.new`   a database being made, never one in use.
//!
//! # What survives
//!
//! Only commits are written, never reservations: after a crash nothing is in flight, and what had not been committed is
//! new again, which is what the sender's retry needs.
//!
//! - A commit is answered after its transaction's frames went into the log with `write()`. From there the kernel has
//!   them, and no crash of this process (kill -9 included) loses them.
//! - `sync = "os"` is SQLite's `synchronous = NORMAL`: commits do not wait for the disk, and a thread of ours syncs the
//!   log once a second. Power loss takes at most what was committed since. Not `OFF`: that leaves out the syncs around
//!   a checkpoint too, and then power loss could tear the database itself.
//! - `sync = "power"` is `synchronous = FULL`: the log is synced before a commit is answered. Commits that wait
//!   together share one transaction, and so one sync.
//! - A transaction torn by power loss fails its checksum in the log and is dropped whole, with all after it.
//! - An unreadable or foreign file is refused at start, and never replaced: an empty one would accept every replay. A new
//!   database gets its name only when it is whole and synced, so an empty file at `PATH` is damage and not a beginning.
//!
//! # Threads
//!
//! One writer owns the connection. It settles a commit in the ledger's table itself, after the write and before the
//! answer: the caller's future may be gone by then. The ticker wakes it each second (expired rows, the probe) and syncs
//! the log. Neither reads a clock: expiry goes by the latest `now` that a caller brought.
//!
//! Nothing here may open and close `PATH` by itself while SQLite has it open: closing any descriptor of a file drops all
//! POSIX locks the process holds on it. The log carries no such locks.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::shelf::Print;
use super::table::{Record, SharedTable, Table, Token, lock};
use super::{Meters, StateError};
use crate::clock::UnixMillis;
use crate::database::{self, Unlocked, beside, folder_of, stored};
use crate::secret::Secret;

/// "hkwd".
const APPLICATION_ID: i32 = 0x686b_7764;
const SCHEMA_VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE sources (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE claims (
        source INTEGER NOT NULL, expires INTEGER NOT NULL, kind INTEGER NOT NULL, print BLOB NOT NULL,
        PRIMARY KEY (source, expires, kind, print)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE probe (id INTEGER PRIMARY KEY, filler BLOB NOT NULL) STRICT;
";

/// Made where it is missing: files from before it are of the same format but for this.
const SCHEMA_OF_CAPTURES: &str = "
    CREATE TABLE IF NOT EXISTS captured (
        source TEXT NOT NULL, name TEXT NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (source, name)
    ) STRICT, WITHOUT ROWID;
";

const KIND_REPLAY: i64 = 0;
const KIND_EVENT: i64 = 1;

/// Commits waiting for the writer. Beyond it callers wait for room: they hold a request each, which is bounded above.
const QUEUE: usize = 1024;

/// Commits in one transaction: enough to share a sync among all that queued up during the one before.
const MAX_BATCH: usize = 512;

/// What power loss may take with `sync = "os"`.
const TICK: Duration = Duration::from_secs(1);

/// Expired rows deleted at a time (and all others of the same millisecond), between which waiting commits are served.
const PURGE_ROWS: i64 = 1000;

/// The log is cut back to this after a checkpoint, should a burst have made it longer.
const LOG_BYTES: i64 = 64 << 20;

/// An operator looking into the file with `sqlite3` may hold its lock for a moment.
const BUSY_WAIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    pub(crate) sync: SyncMode,
    /// The database never grows beyond it, so that it fails with some of the disk left: a disk that is really full
    /// cannot even record deletions.
    pub(crate) max_bytes: u64,
}

impl Settings {
    /// Fifty million claims with their overhead; far more than memory is likely to be given for.
    pub(crate) const DEFAULT_MAX_BYTES: u64 = 4 << 30;

    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, sync: SyncMode::default(), max_bytes: Self::DEFAULT_MAX_BYTES }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SyncMode {
    #[default]
    Os,
    Power,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{path}: another process serves from this state file; stop it, or give this one its own `path`")]
    InUse { path: PathBuf },
    #[error(
        "{path}: the state file is damaged ({detail}). It was left as it is. Restore it and {path}-wal from a copy; or, \
         accepting that everything accepted until now could be accepted once more, move both away and start again"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("{path}: this is not a state file of hookward; give `path` a name of its own")]
    Foreign { path: PathBuf },
    #[error("{path}: written by a newer hookward (format {found}, this one knows {SCHEMA_VERSION}); run that version")]
    Newer { path: PathBuf, found: i32 },
    #[error(
        "{path}: the state file is missing, but its log {path}-wal is there. Restore the file; or, accepting that \
         everything accepted until now could be accepted once more, move the log away"
    )]
    LogWithoutFile { path: PathBuf },
    #[error("{path}: {detail}; check that the folder exists, is writable and is on a local disk")]
    Unusable { path: PathBuf, detail: String },
    #[error("Redis cannot be used: {detail}")]
    Redis { detail: String },
}

pub(crate) struct Disk {
    path: PathBuf,
    to_writer: mpsc::Sender<Message>,
    vitals: Arc<Vitals>,
}

/// What the threads and the callers tell each other without waiting.
struct Vitals {
    runs: AtomicBool,
    writes: AtomicBool,
    syncs: AtomicBool,
    /// The log has frames that were written and not synced.
    unsynced: AtomicBool,
    latest: AtomicU64,
    errors: IntCounter,
}

enum Message {
    Commit(Job),
    Capture(Capture),
    Tick,
    Close(oneshot::Sender<()>),
}

impl Disk {
    pub(super) fn open(settings: &Settings, now: UnixMillis, meters: Meters) -> Result<Self, OpenError> {
        // SQLite follows links. The lock and the log must lie beside the same file, whatever name leads to it.
        let path = std::fs::canonicalize(&settings.path).unwrap_or_else(|_| settings.path.clone());
        let settings = &Settings { path, ..settings.clone() };
        let path = &settings.path;
        let unusable = |error: io::Error| OpenError::Unusable { path: path.clone(), detail: error.to_string() };
        let folder = folder_of(path);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let held = lock_file(path)?;
        if !path.try_exists().map_err(unusable)? {
            create(path)?;
        }
        let connection = connect(settings)?;
        // The log's own name must survive power loss too; SQLite syncs the folder only with its first full sync.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(unusable)?;

        let vitals = Arc::new(Vitals {
            runs: AtomicBool::new(true),
            writes: AtomicBool::new(true),
            syncs: AtomicBool::new(true),
            unsynced: AtomicBool::new(false),
            latest: AtomicU64::new(now.0),
            errors: meters.errors,
        });
        let (to_writer, inbox) = mpsc::channel(QUEUE);
        let (keep_ticking, ticking) = std_mpsc::channel();
        let writer = Writer {
            connection,
            inbox,
            sources: HashMap::new(),
            closing: None,
            runs: Running(Arc::clone(&vitals)),
            _ticker: keep_ticking,
            _lock: held,
        };
        let ticker = Ticker {
            log: beside(path, "-wal"),
            ticking,
            to_writer: to_writer.downgrade(),
            vitals: Arc::clone(&vitals),
        };
        spawn("state-writer", move || writer.run()).map_err(unusable)?;
        spawn("state-ticker", move || ticker.run()).map_err(unusable)?;
        Ok(Self { path: path.clone(), to_writer, vitals })
    }

    /// Hands a commit to the writer: None when the token is not current any more. Whoever drops this future before it
    /// is done has handed over nothing.
    pub(super) async fn commit(
        &self,
        table: &SharedTable,
        source: &Arc<str>,
        token: Token,
        now: UnixMillis,
    ) -> Result<Option<oneshot::Receiver<Result<(), String>>>, StateError> {
        self.saw(now);
        let stopped = |_closed| StateError::Store("the writer has stopped".into());
        let room = self.to_writer.reserve().await.map_err(stopped)?;
        let Some(record) = lock(table).begin_commit(token, now) else {
            return Ok(None);
        };
        let (answer, answered) = oneshot::channel();
        let (table, source) = (Arc::clone(table), Arc::clone(source));
        room.send(Message::Commit(Job { table, source, token, record, answer: Some(answer) }));
        Ok(Some(answered))
    }

    /// Reads what has not expired, row by row, on a connection of its own. The source's first commit comes after.
    pub(super) fn load(&self, source: &str, table: &mut Table) -> Result<(), String> {
        let mut load = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_WAIT)?;
            let mut statement = connection.prepare(
                "SELECT kind, print, expires FROM claims
                 WHERE source = (SELECT id FROM sources WHERE name = ?1) AND expires > ?2 ORDER BY expires",
            )?;
            let mut rows = statement.query(params![source, stored(self.vitals.latest())])?;
            while let Some(row) = rows.next()? {
                let (print, until): (Print, i64) = (row.get(1)?, row.get(2)?);
                let until = UnixMillis(u64::try_from(until).unwrap_or(0));
                match row.get(0)? {
                    KIND_EVENT => table.restore_event(print, until),
                    // An unknown kind can only come from a newer format, which was refused at start.
                    _ => table.restore_replay(print, until),
                }
            }
            Ok(())
        };
        load().map_err(|error: rusqlite::Error| {
            self.vitals.errors.inc();
            let path = self.path.display();
            tracing::error!(source, %path, %error, "what was accepted could not be read, so the source accepts nothing");
            format!("what {source} accepted could not be read from {path}: {error}")
        })
    }

    pub(super) fn captured(&self, source: &str, name: &str) -> Result<Option<Secret>, StateError> {
        let read = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_WAIT)?;
            let select = "SELECT secret FROM captured WHERE source = ?1 AND name = ?2";
            connection.query_row(select, [source, name], |row| row.get::<_, Vec<u8>>(0)).optional()
        };
        let found = read().map_err(|error: rusqlite::Error| StateError::Store(error.to_string()))?;
        Ok(found.map(Secret::new))
    }

    pub(super) async fn capture(&self, source: &str, name: &str, secret: &Secret) -> Result<bool, StateError> {
        let stopped = || StateError::Store("the writer has stopped".into());
        let (answer, answered) = oneshot::channel();
        let capture = Capture { source: source.into(), name: name.into(), secret: secret.clone(), answer };
        self.to_writer.send(Message::Capture(capture)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?.map_err(StateError::Store)
    }

    pub(super) fn saw(&self, now: UnixMillis) {
        self.vitals.latest.fetch_max(now.0, Ordering::Relaxed);
    }

    pub(super) fn is_healthy(&self) -> bool {
        let vitals = &self.vitals;
        [&vitals.runs, &vitals.writes, &vitals.syncs].iter().all(|sign| sign.load(Ordering::Relaxed))
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.to_writer.send(Message::Close(done)).await.is_ok() {
            // An error means that the writer ended without answering: then too it is closed.
            let _ = closed.await;
        }
    }
}

impl Vitals {
    fn latest(&self) -> UnixMillis {
        UnixMillis(self.latest.load(Ordering::Relaxed))
    }
}

/// A secret to be kept. The answer: whether it is the first of its name.
struct Capture {
    source: String,
    name: String,
    secret: Secret,
    answer: oneshot::Sender<Result<bool, String>>,
}

/// A commit in the writer's hands. Dropped without an answer (the writer is going) it counts as failed.
struct Job {
    table: SharedTable,
    source: Arc<str>,
    token: Token,
    record: Record,
    answer: Option<oneshot::Sender<Result<(), String>>>,
}

impl Job {
    fn settle(mut self, written: Result<(), String>) {
        match written {
            Ok(()) => lock(&self.table).finish_commit(self.token),
            Err(_) => lock(&self.table).fail_commit(self.token),
        }
        if let Some(answer) = self.answer.take() {
            // Nobody listens when the caller gave up: the table knows all the same.
            let _ = answer.send(written);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.answer.is_some() {
            lock(&self.table).fail_commit(self.token);
        }
    }
}

// Fields are dropped in this order: the lock goes last.
struct Writer {
    connection: Connection,
    inbox: mpsc::Receiver<Message>,
    /// Numbers of sources that are certainly in the file; emptied when a transaction failed.
    sources: HashMap<Arc<str>, i64>,
    closing: Option<oneshot::Sender<()>>,
    runs: Running,
    _ticker: std_mpsc::Sender<()>,
    _lock: File,
}

/// However the writer ends, a panic included, nobody goes on believing in it.
struct Running(Arc<Vitals>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.runs.store(false, Ordering::Relaxed);
    }
}

impl Writer {
    fn run(mut self) {
        while let Some(message) = self.inbox.blocking_recv() {
            if self.serve(message) {
                self.probe();
                self.purge(true);
            }
        }
        self.finish();
    }

    /// Everything that waits, in one transaction; true when a tick was among it.
    fn serve(&mut self, first: Message) -> bool {
        let (mut jobs, mut ticked) = (Vec::new(), false);
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Commit(job) => jobs.push(job),
                Message::Capture(capture) => self.capture(capture),
                Message::Tick => ticked = true,
                Message::Close(done) => {
                    // What was handed over before is still received, and nothing after.
                    self.inbox.close();
                    self.closing = Some(done);
                }
            }
            next = if jobs.len() < MAX_BATCH { self.inbox.try_recv().ok() } else { None };
        }
        if !jobs.is_empty() {
            self.commit(jobs);
        }
        ticked
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let mut written = self.write(&jobs);
        if let Err(rusqlite::Error::SqliteFailure(error, _)) = &written
            && error.code == ErrorCode::DiskFull
        {
            // What has expired may be all that is in the way; and a log written back needs less room than a log.
            self.purge(false);
            self.checkpoint();
            written = self.write(&jobs);
        }
        self.note(&written);
        let written = written.map_err(|error| error.to_string());
        for job in jobs {
            job.settle(written.clone());
        }
    }

    fn capture(&mut self, capture: Capture) {
        let Capture { source, name, secret, answer } = capture;
        let insert = "INSERT OR IGNORE INTO captured VALUES (?1, ?2, ?3)";
        let written = self.connection.execute(insert, params![source, name, secret.expose()]);
        if written.is_ok() {
            self.vitals().unsynced.store(true, Ordering::Release);
        }
        // Whoever asked may be gone; what is kept is kept.
        let _ = answer.send(written.map(|rows| rows == 1).map_err(|error| error.to_string()));
    }

    fn write(&mut self, jobs: &[Job]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut added = Vec::new();
        {
            let mut insert = transaction.prepare("INSERT OR IGNORE INTO claims VALUES (?1, ?2, ?3, ?4)")?;
            for Job { source, record, .. } in jobs {
                let known = self
                    .sources
                    .get(source)
                    .or_else(|| added.iter().find_map(|(name, id): &(Arc<str>, i64)| (name == source).then_some(id)));
                let id = match known {
                    Some(id) => *id,
                    None => {
                        transaction.execute("INSERT OR IGNORE INTO sources (name) VALUES (?1)", [&**source])?;
                        let select = "SELECT id FROM sources WHERE name = ?1";
                        let id = transaction.query_row(select, [&**source], |row| row.get(0))?;
                        added.push((Arc::clone(source), id));
                        id
                    }
                };
                for print in &record.prints {
                    insert.execute(params![id, stored(record.keep_until), KIND_REPLAY, print])?;
                }
                if let Some(event) = &record.event {
                    insert.execute(params![id, stored(record.event_keep_until), KIND_EVENT, event])?;
                }
            }
        }
        transaction.commit()?;
        self.sources.extend(added);
        self.vitals().unsynced.store(true, Ordering::Release);
        Ok(())
    }

    /// After a failure, tries whether writing works again, so that health does not depend on traffic which an unhealthy
    /// gateway may not get. It needs new pages, as a commit may: a full file must not look healthy.
    fn probe(&mut self) {
        if self.vitals().writes.load(Ordering::Relaxed) {
            return;
        }
        self.purge(false);
        let tried = self
            .connection
            .execute("REPLACE INTO probe VALUES (1, zeroblob(16384))", [])
            .and_then(|_| self.connection.execute("DELETE FROM probe", []))
            .map(drop);
        self.note(&tried);
    }

    fn note(&self, written: &rusqlite::Result<()>) {
        let vitals = self.vitals();
        let wrote = vitals.writes.swap(written.is_ok(), Ordering::Relaxed);
        match written {
            Ok(()) if !wrote => tracing::warn!("claims can be written again"),
            Ok(()) => {}
            Err(error) => {
                vitals.errors.inc();
                // Once for each outage: the counter counts the rest.
                if wrote {
                    tracing::error!(%error, "accepted claims cannot be written");
                }
            }
        }
    }

    /// Deletes what has expired, slice by slice. With `yielding`, commits that arrive meanwhile go first.
    fn purge(&mut self, yielding: bool) {
        let now = stored(self.vitals().latest());
        loop {
            match purge_slice(&self.connection, now) {
                Ok(0) => break,
                Ok(_) => self.vitals().unsynced.store(true, Ordering::Release),
                Err(error) => {
                    // Rows that stay too long do no harm, and the next tick tries again.
                    tracing::debug!(%error, "expired claims were not deleted");
                    break;
                }
            }
            if yielding && let Ok(message) = self.inbox.try_recv() {
                // Another tick has nothing to add to the one under way.
                self.serve(message);
            }
            if yielding && self.closing.is_some() {
                // The next start goes on with it.
                break;
            }
        }
    }

    fn checkpoint(&self) {
        // Harmless when it fails: the log stays as long as it is, and nothing in it is lost.
        let done = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = done {
            tracing::debug!(%error, "the log was not written back");
        }
    }

    fn finish(mut self) {
        self.checkpoint();
        let closing = self.closing.take();
        // The file and its lock are let go before anybody hears that they are.
        drop(self);
        if let Some(done) = closing {
            // Nobody listens when the caller of close gave up.
            let _ = done.send(());
        }
    }

    fn vitals(&self) -> &Vitals {
        &self.runs.0
    }
}

/// Deletes up to [`PURGE_ROWS`] rows of one source, and those of the same millisecond as the last: 0 when none are left.
fn purge_slice(connection: &Connection, now: i64) -> rusqlite::Result<usize> {
    let some = "SELECT id FROM sources WHERE EXISTS (SELECT 1 FROM claims WHERE source = id AND expires <= ?1) LIMIT 1";
    let Some(source) = connection.query_row(some, [now], |row| row.get::<_, i64>(0)).optional()? else {
        return Ok(0);
    };
    let last = "SELECT expires FROM claims WHERE source = ?1 AND expires <= ?2 ORDER BY expires LIMIT 1 OFFSET ?3";
    let last: Option<i64> =
        connection.query_row(last, params![source, now, PURGE_ROWS], |row| row.get(0)).optional()?;
    connection.execute("DELETE FROM claims WHERE source = ?1 AND expires <= ?2", [source, last.unwrap_or(now)])
}

struct Ticker {
    log: PathBuf,
    /// Ends when the writer does.
    ticking: std_mpsc::Receiver<()>,
    /// Weak: a ticker must not keep the writer waiting for it.
    to_writer: mpsc::WeakSender<Message>,
    vitals: Arc<Vitals>,
}

impl Ticker {
    fn run(self) {
        while let Err(std_mpsc::RecvTimeoutError::Timeout) = self.ticking.recv_timeout(TICK) {
            self.sync();
            let Some(to_writer) = self.to_writer.upgrade() else {
                break;
            };
            // A full queue means that the writer is awake; it will hear the next one.
            let _ = to_writer.try_send(Message::Tick);
        }
    }

    fn sync(&self) {
        // Cleared before syncing: a commit that lands meanwhile asks for one more.
        if !self.vitals.unsynced.swap(false, Ordering::Acquire) {
            return;
        }
        let synced = File::open(&self.log).and_then(|log| log.sync_data());
        let synced_before = self.vitals.syncs.swap(synced.is_ok(), Ordering::Relaxed);
        if let Err(error) = synced {
            self.vitals.unsynced.store(true, Ordering::Release);
            self.vitals.errors.inc();
            if synced_before {
                let log = self.log.display();
                tracing::error!(%log, %error, "accepted claims are not reaching the disk; power loss would lose them");
            }
        }
    }
}

fn lock_file(path: &Path) -> Result<File, OpenError> {
    database::lock(&beside(path, ".lock")).map_err(|error| match error {
        Unlocked::InUse => OpenError::InUse { path: path.into() },
        Unlocked::Failed(detail) => OpenError::Unusable { path: path.into(), detail },
    })
}

fn create(path: &Path) -> Result<(), OpenError> {
    if beside(path, "-wal").exists() {
        return Err(OpenError::LogWithoutFile { path: path.into() });
    }
    let statements = format!(
        "PRAGMA synchronous = FULL; BEGIN; PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA} {SCHEMA_OF_CAPTURES} COMMIT;"
    );
    database::create(path, &statements).map_err(|detail| OpenError::Unusable { path: path.into(), detail })
}

fn connect(settings: &Settings) -> Result<Connection, OpenError> {
    let path = &settings.path;
    let damaged = |detail: String| OpenError::Damaged { path: path.clone(), detail };
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => damaged(error.to_string()),
        _ => OpenError::Unusable { path: path.clone(), detail: error.to_string() },
    };

    if path.metadata().is_ok_and(|file| file.len() == 0) {
        return Err(damaged("it is empty".into()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_WAIT).map_err(failed)?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0)).map_err(failed);
    if number("application_id")? != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.clone() });
    }
    let found = number("user_version")?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.clone(), found });
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(damaged(verdict.replace('\n', " ")));
    }

    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!("its file system does not carry a write-ahead log (journal mode stays {mode})");
        return Err(OpenError::Unusable { path: path.clone(), detail });
    }
    let synchronous = match settings.sync {
        SyncMode::Os => "NORMAL",
        SyncMode::Power => "FULL",
    };
    // SQLite counts pages in 32 bits.
    let page = u64::try_from(number("page_size")?.max(512)).unwrap_or(512);
    let pages = (settings.max_bytes / page).clamp(1, u64::from(u32::MAX - 1));
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = {synchronous}; PRAGMA journal_size_limit = {LOG_BYTES}; PRAGMA max_page_count = {pages};
             {SCHEMA_OF_CAPTURES}"
        ))
        .map_err(failed)?;
    Ok(connection)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::state::table::Judgement;

    #[test]
    fn a_job_that_dies_with_its_writer_leaves_its_keys_to_the_lease() {
        let (now, ends) = (UnixMillis(1_000), UnixMillis(2_000));
        let record = Record { prints: vec![[1; 16]], keep_until: ends, event: None, event_keep_until: ends };
        let table = Arc::new(Mutex::new(Table::new(1)));
        assert_eq!(lock(&table).reserve(record.clone(), now, ends), Ok(Judgement::First(1)));
        let begun = lock(&table).begin_commit(1, now).expect("a lease that runs");
        let (answer, mut answered) = oneshot::channel();
        drop(Job { table: Arc::clone(&table), source: "a".into(), token: 1, record: begun, answer: Some(answer) });
        assert!(matches!(answered.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert_eq!(lock(&table).reserve(record.clone(), UnixMillis(1_999), ends), Ok(Judgement::InFlight));
        assert_eq!(lock(&table).reserve(record, ends, ends), Ok(Judgement::First(2)));
    }
}
