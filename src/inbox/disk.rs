//! The store's files: the only file that knows their names, their format and when they are safe.
//!
//! # Files, in the folder `[inbox] path`, mode 0700
//!
//! `inbox.db`   an SQLite database, mode 0600; `application_id` [`APPLICATION_ID`], `user_version` [`FORMAT`]:
//!
//! | table        | a row is                                                                                   |
//! |--------------|--------------------------------------------------------------------------------------------|
//! | `names`      | a number for the name of a source (kind 0) or an upstream (kind 1); never deleted          |
//! | `meta`       | a fact about the store itself                                                              |
//! | `deliveries` | an accepted delivery, without its bytes; `seq` is the order of acceptance, never reused    |
//! | `contents`   | the bytes of that delivery: an encoded parcel (`parcel.rs`), packed (`packing.rs`)         |
//! | `tasks`      | one delivery to one upstream: its state, its attempts, when it is due                      |
//! | `claims`     | what was accepted, so that it is not accepted again; as in `state/disk.rs`                 |
//! | `counts`     | how many tasks there are by source, upstream and state                                     |
//! | `quarantine` | a request that was refused for its signature alone, whole; never delivered by itself       |
//!
//! Every table and index that an append touches grows at its end (`seq`, the request id of version 7, due times, expiry),
//! so appending costs the same in an empty store as in one of millions of rows. That is why claims are not looked up
//! here: an index over random prints would touch a page of its own for each. `state`'s ledger in memory, filled from
//! here before the first request, judges; the row is written in the transaction that stores the delivery, so the two
//! can never disagree after a crash.
//!
//! `inbox.db-wal`, `inbox.db-shm`   SQLite's write-ahead log and its index. The log belongs to the database: without it,
//!              deliveries are missing. A copy of the store is a copy of both.
//! `lock`       locked by the one process that has the store open. The kernel lets go of it when the process ends in
//!              whatever way. Holds the id of the machine's boot in which the store was used last.
//! `inbox.db.new`  a database being made, never one in use.
//!
//! # What survives
//!
//! - The journal is a write-ahead log with `synchronous = FULL`: a commit has been synced to the disk before anybody hears
//!   of it. Deliveries that wait together share one commit, and so one sync.
//! - A transaction torn by power loss fails its checksum in the log and is dropped whole, with all after it: none of it
//!   was acknowledged.
//! - Attempts under way are not in the file. After a crash their tasks are waiting as they were, and are sent again:
//!   at least once, with the same `X-Request-Id` and `Idempotency-Key`.
//! - `meta` says whether the store was closed (`clean`). If not, all of it is checked before anything is served; the log
//!   is, before SQLite may drop what is behind damage in it (`log.rs`).
//! - An unreadable or foreign file is refused at start and never replaced. A new database gets its name only when it is
//!   whole and synced.
//!
//! Nothing here may open and close `inbox.db` by itself while SQLite has it open: closing any descriptor of a file drops
//! all POSIX locks the process holds on it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::log::{self, Verdict};
use super::tally::Counts;
use super::{Settings, check};
use crate::clock::UnixMillis;
use crate::database::{self, Unlocked, beside, stored};

/// "hkwi".
const APPLICATION_ID: i32 = 0x686b_7769;
const FORMAT: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE names (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL, UNIQUE (kind, name)) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE deliveries (
        seq INTEGER PRIMARY KEY, source INTEGER NOT NULL, received INTEGER NOT NULL, request_id BLOB NOT NULL,
        delivery_id TEXT NOT NULL, event_id TEXT, event_type TEXT, length INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX by_request ON deliveries (request_id);
    CREATE TABLE contents (seq INTEGER PRIMARY KEY, key BLOB, packing INTEGER NOT NULL, content BLOB NOT NULL) STRICT;
    CREATE TABLE tasks (
        seq INTEGER NOT NULL, upstream INTEGER NOT NULL, source INTEGER NOT NULL, state INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL DEFAULT 0, due INTEGER NOT NULL,
        finished INTEGER, status INTEGER, note TEXT, lane INTEGER, path TEXT, PRIMARY KEY (seq, upstream)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tasks_due ON tasks (upstream, due, seq) WHERE state = 0;
    CREATE INDEX tasks_waiting ON tasks (upstream, source, seq) WHERE state < 2;
    CREATE INDEX tasks_lanes ON tasks (upstream, lane, seq) WHERE state < 2 AND lane IS NOT NULL;
    CREATE TABLE claims (
        source INTEGER NOT NULL, expires INTEGER NOT NULL, kind INTEGER NOT NULL, print BLOB NOT NULL,
        PRIMARY KEY (source, expires, kind, print)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE counts (
        source INTEGER NOT NULL, upstream INTEGER NOT NULL, state INTEGER NOT NULL, n INTEGER NOT NULL,
        PRIMARY KEY (source, upstream, state)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY, source INTEGER NOT NULL, received INTEGER NOT NULL, expires INTEGER NOT NULL,
        client TEXT NOT NULL, size INTEGER NOT NULL, request_id BLOB NOT NULL, key BLOB, packing INTEGER NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    CREATE INDEX quarantine_of_source ON quarantine (source, id);
    CREATE INDEX quarantine_expires ON quarantine (expires);
";

/// `claims.kind`.
pub(super) const CLAIM_OF_A_MESSAGE: i64 = 0;
pub(super) const CLAIM_OF_AN_EVENT: i64 = 1;

/// Several deliveries of a kilobyte fit on a page, and large ones need few.
pub(super) const PAGE_BYTES: u32 = 8192;

pub(super) const NAME: &str = "inbox.db";

/// An operator looking into the file with `sqlite3` may hold its lock for a moment.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(5);

/// The log is cut back to this after a checkpoint, should a burst have made it longer.
const LOG_BYTES: i64 = 64 << 20;

/// The writer's pages in memory, in KiB.
const CACHE_KIB: i32 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{path}: another process has this inbox open; stop it, or give this one its own `path`")]
    InUse { path: PathBuf },
    #[error(
        "{path}: the inbox is damaged ({detail}). It was left as it is. `hookward inbox salvage --config FILE` copies what \
         is readable of it; or restore the whole folder from a copy"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("{path}: this is not an inbox of hookward; give `path` a folder of its own")]
    Foreign { path: PathBuf },
    #[error("{path}: written by a newer hookward (format {found}, this one knows {FORMAT}); run that version")]
    Newer { path: PathBuf, found: i32 },
    #[error(
        "{path}: the inbox's database is missing, but its log is there. Restore the database; or move the log away"
    )]
    LogWithoutFile { path: PathBuf },
    #[error("{path}: {detail}; check that the folder exists, is writable and is on a local disk")]
    Unusable { path: PathBuf, detail: String },
}

/// Open for as long as the store is.
pub(super) struct Held {
    _lock: File,
    /// For syncing alone. Nobody may close it while SQLite has the same file open.
    pub(super) database: Arc<File>,
}

pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) held: Held,
    pub(super) folder: PathBuf,
    pub(super) path: PathBuf,
    pub(super) counts: Arc<Counts>,
    /// The latest time that the store has seen.
    pub(super) last_time: UnixMillis,
}

pub(super) fn open(settings: &Settings, now: UnixMillis) -> Result<Opened, OpenError> {
    let unusable = |error: io::Error| OpenError::Unusable { path: settings.folder.clone(), detail: error.to_string() };
    DirBuilder::new().recursive(true).mode(0o700).create(&settings.folder).map_err(unusable)?;
    // Whatever name leads to it, the lock lies beside the same file.
    let folder = std::fs::canonicalize(&settings.folder).map_err(unusable)?;
    let lock = lock(&folder)?;
    let path = folder.join(NAME);
    if !path.try_exists().map_err(unusable)? {
        create(&path)?;
    }
    let failed = |error: rusqlite::Error| match is_damage(&error) {
        true => OpenError::Damaged { path: path.clone(), detail: error.to_string() },
        false => OpenError::Unusable { path: path.clone(), detail: error.to_string() },
    };
    let verdict = log::examine(&beside(&path, "-wal"), PAGE_BYTES as usize).map_err(unusable)?;
    match verdict {
        Verdict::Whole => {}
        Verdict::Torn => tracing::warn!(
            path = %path.display(),
            "the inbox's log ends within a write: it was cut off by power loss, and nobody was told that it was stored"
        ),
        Verdict::Damaged { at } => {
            let detail = format!("its log cannot be read from byte {at} on, behind which there is more");
            return Err(OpenError::Damaged { path, detail });
        }
    }
    // After power loss the index, which is never synced, may be older than the log: it would tell of commits that are in
    // the database by now, and a whole store would be refused.
    let tells = is_of_this_boot(&lock, boot().as_deref());
    let short = || log::is_short(&beside(&path, "-wal"), &beside(&path, "-shm"), PAGE_BYTES as usize);
    if tells && short().map_err(unusable)? {
        let detail =
            "its log is shorter than what had been committed to it; where it was restored from a copy, inbox.db-shm \
                      is not of that copy and is to be removed"
                .to_owned();
        return Err(OpenError::Damaged { path, detail });
    }
    let connection = connect(&path, &failed)?;
    let was_closed: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE key = 'clean'", [], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    if was_closed != Some(1) {
        if let Some(detail) = check::whole(&connection, &path).map_err(failed)? {
            return Err(OpenError::Damaged { path, detail });
        }
        check::recount(&connection).map_err(failed)?;
    }
    // The log's own name must survive power loss too.
    File::open(&folder).and_then(|folder| folder.sync_all()).map_err(unusable)?;
    let counts = Arc::new(Counts::read(&connection).map_err(failed)?);
    let last_time = connection
        .query_row("SELECT value FROM meta WHERE key = 'last_time'", [], |row| row.get::<_, i64>(0))
        .optional()
        .map_err(failed)?;
    let last_time = UnixMillis(u64::try_from(last_time.unwrap_or(0)).unwrap_or(0));
    let last_time = set_back(&connection, last_time, now).map_err(failed)?;
    // Harmless when it fails: the index beside the log is not asked then.
    let _ = write_boot(&lock, boot().as_deref());
    // Not before all of it could be read: what is refused is left as it is.
    connection.execute("REPLACE INTO meta VALUES ('clean', 0)", []).map_err(failed)?;
    let held = Held { _lock: lock, database: Arc::new(File::open(&path).map_err(unusable)?) };
    Ok(Opened { connection, held, folder, path, counts, last_time })
}

/// The clock was set back while nothing ran: what was due in an hour is due in an hour, and not when the clock has caught
/// up. The time that the store goes on from.
fn set_back(connection: &Connection, last_time: UnixMillis, now: UnixMillis) -> rusqlite::Result<UnixMillis> {
    let by = last_time.0.saturating_sub(now.0);
    if by < 1000 {
        return Ok(last_time);
    }
    let by = i64::try_from(by).unwrap_or(i64::MAX);
    let transaction = connection.unchecked_transaction()?;
    transaction.execute("UPDATE tasks SET due = due - ?1 WHERE state = 0", [by])?;
    // Otherwise what has ended would be kept for so much longer.
    transaction.execute("UPDATE tasks SET finished = finished - ?1 WHERE finished > ?2", [by, stored(now)])?;
    transaction.execute("REPLACE INTO meta VALUES ('last_time', ?1)", [stored(now)])?;
    transaction.commit()?;
    tracing::warn!(
        milliseconds = by,
        "the clock was set back since the inbox was used last; what is due was moved with it"
    );
    Ok(now)
}

pub(super) fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join("lock");
    database::lock(&path).map_err(|error| match error {
        Unlocked::InUse => OpenError::InUse { path: folder.into() },
        Unlocked::Failed(detail) => OpenError::Unusable { path, detail },
    })
}

/// None where the system does not tell one boot from another.
fn boot() -> Option<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id").ok().filter(|id| !id.is_empty())
}

/// Nothing but a process can have ended since the store was used last: what it had written is there, synced or not.
fn is_of_this_boot(lock: &File, boot: Option<&[u8]>) -> bool {
    let Some(boot) = boot else { return false };
    let mut found = vec![0; boot.len()];
    lock.read_exact_at(&mut found, 0).is_ok() && found == boot
}

fn write_boot(lock: &File, boot: Option<&[u8]>) -> io::Result<()> {
    let Some(boot) = boot else { return lock.set_len(0) };
    lock.write_all_at(boot, 0)
}

pub(super) fn create(path: &Path) -> Result<(), OpenError> {
    if beside(path, "-wal").exists() {
        return Err(OpenError::LogWithoutFile { path: path.into() });
    }
    let statements = format!(
        "PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA synchronous = FULL; BEGIN;
         PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {SCHEMA}
         INSERT INTO meta VALUES ('clean', 1); COMMIT;"
    );
    database::create(path, &statements).map_err(|detail| OpenError::Unusable { path: path.into(), detail })
}

fn connect(path: &Path, failed: &dyn Fn(rusqlite::Error) -> OpenError) -> Result<Connection, OpenError> {
    let damaged = |detail: String| OpenError::Damaged { path: path.into(), detail };
    if path.metadata().is_ok_and(|file| file.len() == 0) {
        return Err(damaged("it is empty".into()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_WAIT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0)).map_err(failed);
    if number("application_id")? != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.into() });
    }
    let found = number("user_version")?;
    if found > FORMAT {
        return Err(OpenError::Newer { path: path.into(), found });
    }
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!("its file system does not carry a write-ahead log (journal mode stays {mode})");
        return Err(OpenError::Unusable { path: path.into(), detail });
    }
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = FULL; PRAGMA journal_size_limit = {LOG_BYTES}; PRAGMA cache_size = -{CACHE_KIB};
             PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 0;"
        ))
        .map_err(failed)?;
    Ok(connection)
}

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, why) => match failure.code {
            ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => true,
            // A schema that is not what this format has.
            ErrorCode::Unknown => {
                why.as_ref().is_some_and(|why| why.starts_with("no such") || why.contains("malformed"))
            }
            _ => false,
        },
        // The schema is strict: a value of another type was not written by SQLite.
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::SqlInputError { .. } => true,
        _ => false,
    }
}

/// After this nothing is written: the next start need not look at all of it first.
pub(super) fn mark_closed(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("REPLACE INTO meta VALUES ('clean', 1)", []).map(drop)
}
