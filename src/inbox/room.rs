//! Room for what comes: the store's limits, and what leaves it in time.
//!
//! Invariant: nothing goes while a task of it has not ended, limits or not: at a limit senders are refused. What is dead
//! stays for `keep_dead` even then, for somebody has to look at it; what was delivered makes room early, the oldest
//! first. All of it happens in steps of [`STEP`] within the writer's transactions, so that no append waits for it; and
//! settlements are written at any limit, for the database may grow a little beyond `max_size` for them.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rusqlite::{Connection, OptionalExtension, params};

use super::tally::{State, Tally};
use super::{AppendError, Rules, Settings, disk};
use crate::clock::UnixMillis;
use crate::database::{beside, stored};

/// What a step may take. A sync of a good disk takes as long.
const STEP: Duration = Duration::from_millis(2);

/// Deliveries looked at in a row, between two looks at the time.
const SLICE: i64 = 64;

/// Expired claims that go in one step.
const CLAIMS: i64 = 256;

const CLAIMS_STAY: Duration = Duration::from_secs(3600);

/// Pages given back in one step: each may have to be moved.
const PAGES: i64 = 32;

/// So many deliveries in a row that are too young to go: those behind them are younger still.
const YOUNG: u32 = 1000;

/// Looking for what may go is repeated after this, twice as long each time it found nothing, up to the longest.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// Before senders are refused at the limit, room is looked for so long.
const LAST_SEARCH: Duration = Duration::from_millis(250);

/// The database may grow so far beyond `max_size`, for settlements and for what a batch was estimated too small.
const RESERVE: u64 = 64 << 20;

/// The rows of a delivery and their places in the indexes, beside its content.
const ROWS: u64 = 1024;

/// What the writer and the keeper find out, for those who want to append.
#[derive(Default)]
pub(super) struct Standing {
    /// Less than `min_free` is left on the disk.
    is_short: AtomicBool,
    /// When the oldest delivery was received that has a task which has not ended, by source.
    oldest: ArcSwap<HashMap<Arc<str>, UnixMillis>>,
    /// The log has been written back but for what came during that: the writer's turn.
    pub(super) remainder: AtomicBool,
    /// The keeper has found damage.
    pub(super) is_damaged: AtomicBool,
    /// Its file is no longer where it was opened: what was added now would be gone with the process.
    pub(super) is_gone: AtomicBool,
}

impl Standing {
    /// What can be said before the writer has to be asked.
    pub(super) fn refusal(&self, source: &str, settings: &Settings, now: UnixMillis) -> Option<AppendError> {
        if self.is_gone.load(Ordering::Relaxed) {
            return Some(AppendError::Store("its file was taken away".to_owned()));
        }
        if self.is_short.load(Ordering::Relaxed) {
            return Some(AppendError::NoRoomOnDisk);
        }
        let oldest = self.oldest.load().get(source).copied();
        oldest.is_some_and(|oldest| is_too_old(oldest, settings.max_age, now)).then_some(AppendError::TooOld)
    }

    pub(super) fn set_oldest(&self, oldest: HashMap<Arc<str>, UnixMillis>) {
        self.oldest.store(Arc::new(oldest));
    }
}

pub(super) fn is_too_old(received: UnixMillis, max_age: Duration, now: UnixMillis) -> bool {
    received.after(max_age) < now
}

/// When the oldest delivery of each source was received that some upstream is still to have.
pub(super) fn oldest(connection: &Connection) -> rusqlite::Result<HashMap<Arc<str>, UnixMillis>> {
    let mut select = connection.prepare_cached(
        "SELECT n.name, min(d.received)
         FROM (SELECT DISTINCT source, upstream FROM counts WHERE state < 2 AND n > 0) c
         JOIN names n ON n.id = c.source
         JOIN deliveries d ON d.seq = (
             SELECT min(t.seq) FROM tasks t WHERE t.upstream = c.upstream AND t.source = c.source AND t.state < 2
         ) GROUP BY n.name",
    )?;
    let rows = select.query_map([], |row| {
        Ok((Arc::from(row.get::<_, String>(0)?), UnixMillis(u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0))))
    })?;
    rows.collect()
}

/// How long the log may get before it is written back: an eighth of a small store.
pub(super) fn log_bytes(settings: &Settings) -> u64 {
    (settings.max_size / 8).clamp(256 << 10, 64 << 20)
}

/// Beyond it the log is cut off. Above what it comes to in steady use: cutting it off and growing it again takes longer
/// than a sync.
fn longest_log(settings: &Settings) -> u64 {
    log_bytes(settings) * 2
}

/// How much may be in the log before it is written back, if the second is not over.
pub(super) fn nudge_bytes(settings: &Settings) -> usize {
    usize::try_from(log_bytes(settings) / 4).unwrap_or(usize::MAX)
}

/// Of the writer.
pub(super) struct Room {
    rules: Rules,
    standing: Arc<Standing>,
    folder: PathBuf,
    log: PathBuf,
    database: PathBuf,
    /// The file that is open, whatever its name is by now.
    inode: Option<u64>,
    page_bytes: u64,
    /// How far what may go has been looked for; None while resting.
    sweep: Option<Sweep>,
    /// The same for what was delivered and has to make room early.
    press: Option<Sweep>,
    rest: Duration,
    /// The log is not tried to be cut off before.
    shorten_at: Instant,
    sweep_at: Instant,
    press_at: Instant,
    /// There are expired claims.
    claims: bool,
    /// There are pages to be given back.
    vacuum: bool,
    is_full: bool,
    max_pages: u64,
}

#[derive(Default)]
struct Sweep {
    after: i64,
    young: u32,
    found: u64,
}

impl Room {
    pub(super) fn new(rules: Rules, standing: Arc<Standing>, database: &Path, connection: &Connection) -> Self {
        let page_bytes = connection.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0)).unwrap_or(8192);
        let now = Instant::now();
        let room = Self {
            rules,
            standing,
            folder: database.parent().unwrap_or(Path::new(".")).to_owned(),
            log: beside(database, "-wal"),
            database: database.to_owned(),
            inode: inode(database),
            page_bytes: u64::from(page_bytes.max(512)),
            sweep: None,
            press: None,
            rest: REST,
            shorten_at: now,
            sweep_at: now,
            press_at: now,
            claims: true,
            vacuum: true,
            is_full: false,
            max_pages: 0,
        };
        room.look_at_the_disk();
        room
    }

    /// Once a second.
    pub(super) fn tick(&mut self, connection: &Connection) {
        self.look_at_the_disk();
        let settings = self.rules.load_full();
        let max_pages = ((settings.max_size.saturating_add(RESERVE)) / self.page_bytes).min(u64::from(u32::MAX - 1));
        if max_pages != self.max_pages {
            let limited = connection
                .pragma_update(None, "max_page_count", i64::try_from(max_pages).unwrap_or(i64::MAX))
                .and_then(|()| {
                    let longest = i64::try_from(longest_log(&settings)).unwrap_or(i64::MAX);
                    connection.pragma_update(None, "journal_size_limit", longest)
                });
            if limited.is_ok() {
                self.max_pages = max_pages;
            }
        }
        let now = Instant::now();
        if self.sweep.is_none() && now >= self.sweep_at {
            self.sweep = Some(Sweep::default());
            self.claims = true;
        }
        // At nine tenths, so that there is room again before anybody has to be refused.
        let is_near = self.used(connection).is_ok_and(|used| used > settings.max_size / 10 * 9);
        let is_pressed = is_near || self.standing.is_short.load(Ordering::Relaxed);
        if is_pressed && self.press.is_none() && now >= self.press_at {
            self.press = Some(Sweep::default());
        }
        self.vacuum = true;
    }

    fn look_at_the_disk(&self) {
        let is_gone = inode(&self.database) != self.inode;
        if self.standing.is_gone.swap(is_gone, Ordering::Relaxed) != is_gone {
            let path = self.database.display();
            if is_gone {
                tracing::error!(
                    %path,
                    "the inbox's file was moved away or replaced while it is open: deliveries are refused with 503; put it back"
                );
            } else {
                tracing::warn!(%path, "the inbox's file is back");
            }
        }
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let min_free = self.rules.load().min_free;
        let is_short = free < min_free;
        if self.standing.is_short.swap(is_short, Ordering::Relaxed) != is_short {
            if is_short {
                tracing::error!(free, min_free, "the inbox's disk is nearly full: deliveries are refused with 503");
            } else {
                tracing::warn!(free, "the inbox's disk has room again");
            }
        }
    }

    /// Bytes in use: pages that are free are room.
    fn used(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let (all, free) = pages(connection)?;
        let log = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        // What it may come to counts already, or there would be room at one moment and none at the next.
        let log = log.max(longest_log(&self.rules.load()));
        Ok(all.saturating_sub(free) * self.page_bytes + log)
    }

    /// Is it time to write the log back, with so many bytes written to it since?
    pub(super) fn is_long(&self, written: usize) -> bool {
        written > nudge_bytes(&self.rules.load())
    }

    /// How many bytes of new deliveries there is room for.
    pub(super) fn left(&self, connection: &Connection) -> u64 {
        let max_size = self.rules.load().max_size;
        // A file that cannot even say how long it is will fail the write, with its own words.
        self.used(connection).map_or(u64::MAX, |used| max_size.saturating_sub(used))
    }

    /// Writes the log back and cuts it off, where it is long enough to matter. Waits a moment for the keeper, which may
    /// be at it; a reader that is in the way for longer leaves it as it is, and is not waited for again and again.
    pub(super) fn shorten_log(&mut self, connection: &Connection) {
        let log = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        if log <= longest_log(&self.rules.load()) || Instant::now() < self.shorten_at {
            return;
        }
        let shorten = || {
            connection.busy_timeout(LAST_SEARCH)?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        };
        // Harmless when it fails: nothing in it is lost, and whoever asked for room finds none.
        let is_in_the_way = shorten().unwrap_or(true);
        let _ = connection.busy_timeout(disk::BUSY_WAIT);
        if is_in_the_way {
            self.shorten_at = Instant::now() + REST;
        }
    }

    pub(super) fn cost(content: usize) -> u64 {
        content as u64 + content as u64 / 32 + ROWS
    }

    /// Somebody would have to be refused. Until when it is worth while to look for what may go; None when all was seen.
    pub(super) fn search(&mut self) -> Option<Instant> {
        if self.press.is_none() && Instant::now() >= self.press_at {
            self.press = Some(Sweep::default());
        }
        self.press.is_some().then(|| Instant::now() + LAST_SEARCH)
    }

    /// Something was delivered since it was looked for.
    pub(super) fn settled(&mut self) {
        self.press_at = Instant::now();
    }

    pub(super) fn is_searching(&self) -> bool {
        self.press.is_some()
    }

    pub(super) fn note_full(&mut self, is_full: bool) {
        if self.is_full != is_full {
            self.is_full = is_full;
            let max_size = self.rules.load().max_size;
            if is_full {
                tracing::error!(
                    max_size,
                    "the inbox is full: deliveries are refused with 503 until some were delivered"
                );
            } else {
                tracing::warn!(max_size, "the inbox has room again");
            }
        }
    }

    /// Is there anything to be done?
    pub(super) fn has_work(&self) -> bool {
        self.sweep.is_some() || self.press.is_some() || self.claims || self.vacuum
    }

    /// A step, in a transaction of the writer's. `newest` stays, so that no number is given twice.
    pub(super) fn step(
        &mut self,
        transaction: &Connection,
        tally: &mut Tally,
        now: UnixMillis,
        newest: i64,
    ) -> rusqlite::Result<()> {
        let ends = Instant::now() + STEP;
        while let Some(mut press) = self.press.take() {
            let is_over = self.slice(&mut press, true, transaction, tally, now, newest)?;
            let max_size = self.rules.load().max_size;
            // Down to four fifths: so it is not looked for again with the next delivery.
            let is_enough =
                !self.standing.is_short.load(Ordering::Relaxed) && self.used(transaction)? < max_size / 5 * 4;
            if is_over || is_enough {
                self.press_at = Instant::now() + if press.found > 0 { Duration::ZERO } else { REST };
                self.vacuum = true;
            } else {
                self.press = Some(press);
            }
            if Instant::now() >= ends {
                return Ok(());
            }
        }
        while let Some(mut sweep) = self.sweep.take() {
            if self.slice(&mut sweep, false, transaction, tally, now, newest)? {
                self.rest = if sweep.found > 0 { REST } else { (self.rest * 2).min(LONGEST_REST) };
                self.sweep_at = Instant::now() + self.rest;
                self.vacuum = true;
            } else {
                self.sweep = Some(sweep);
            }
            if Instant::now() >= ends {
                return Ok(());
            }
        }
        if self.claims {
            self.claims = forget_claims(transaction, now)? > 0;
            return Ok(());
        }
        if self.vacuum {
            self.vacuum = give_back(transaction)?;
        }
        Ok(())
    }

    /// The transaction of the last step failed: what it had found is still there.
    pub(super) fn again(&mut self) {
        self.sweep = None;
        self.press = None;
        self.sweep_at = Instant::now() + REST;
        self.press_at = self.sweep_at;
        (self.claims, self.vacuum) = (false, false);
    }

    /// Looks at some deliveries, and deletes of them what may go. True at the end.
    fn slice(
        &self,
        sweep: &mut Sweep,
        is_pressed: bool,
        transaction: &Connection,
        tally: &mut Tally,
        now: UnixMillis,
        newest: i64,
    ) -> rusqlite::Result<bool> {
        let (keep_delivered, keep_dead) = {
            let settings = self.rules.load();
            (millis(settings.keep_delivered), millis(settings.keep_dead))
        };
        let now = stored(now);
        let mut select = transaction.prepare_cached(
            "SELECT d.seq, d.received,
                    (SELECT max(CASE WHEN state < 2 THEN 9223372036854775807
                                     WHEN state IN (2, 4) THEN ifnull(finished, d.received) + ?2
                                     ELSE ifnull(finished, d.received) + ?3 END) FROM tasks WHERE seq = d.seq),
                    (SELECT min(state IN (2, 4)) FROM tasks WHERE seq = d.seq)
             FROM deliveries d WHERE d.seq > ?1 ORDER BY d.seq LIMIT ?4",
        )?;
        let found = select
            .query_map(params![sweep.after, keep_delivered, keep_dead, SLICE], |row| {
                let (seq, received): (i64, i64) = (row.get(0)?, row.get(1)?);
                let goes = row.get::<_, Option<i64>>(2)?.unwrap_or(received.saturating_add(keep_delivered));
                let is_delivered = row.get::<_, Option<bool>>(3)?.unwrap_or(true);
                let is_young = received.saturating_add(keep_delivered.min(keep_dead)) > now;
                Ok((seq, goes <= now || is_pressed && is_delivered, is_young))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut is_over = i64::try_from(found.len()).is_ok_and(|found| found < SLICE);
        for (seq, goes, is_young) in found {
            if seq >= newest {
                break;
            }
            sweep.after = seq;
            if goes {
                delete(transaction, tally, seq)?;
                sweep.found += 1;
            }
            sweep.young = if is_young && !is_pressed { sweep.young + 1 } else { 0 };
            is_over |= sweep.young > YOUNG;
        }
        Ok(is_over)
    }
}

/// Asked of its name: opening the file a second time would drop SQLite's locks on it.
fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|file| file.ino())
}

fn millis(of: Duration) -> i64 {
    i64::try_from(of.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

fn delete(transaction: &Connection, tally: &mut Tally, seq: i64) -> rusqlite::Result<()> {
    let mut tasks = transaction.prepare_cached("DELETE FROM tasks WHERE seq = ?1 RETURNING source, upstream, state")?;
    let mut rows = tasks.query([seq])?;
    while let Some(row) = rows.next()? {
        if let Some(state) = State::of(row.get(2)?) {
            tally.add(row.get(0)?, row.get(1)?, state, -1);
        }
    }
    drop(rows);
    transaction.prepare_cached("DELETE FROM contents WHERE seq = ?1")?.execute([seq])?;
    transaction.prepare_cached("DELETE FROM deliveries WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// Some of the expired claims of one source; 0 when there are none.
fn forget_claims(transaction: &Connection, now: UnixMillis) -> rusqlite::Result<usize> {
    // Some time later: the file's clock may be ahead of the one that judges claims, should that have been set back.
    let now = stored(now).saturating_sub(millis(CLAIMS_STAY));
    let source: Option<i64> = transaction
        .prepare_cached(
            "SELECT id FROM names
             WHERE kind = 0 AND EXISTS (SELECT 1 FROM claims WHERE source = id AND expires <= ?1) LIMIT 1",
        )?
        .query_row([now], |row| row.get(0))
        .optional()?;
    let Some(source) = source else { return Ok(0) };
    let last: Option<i64> = transaction
        .prepare_cached(
            "SELECT expires FROM claims WHERE source = ?1 AND expires <= ?2 ORDER BY expires LIMIT 1 OFFSET ?3",
        )?
        .query_row(params![source, now, CLAIMS], |row| row.get(0))
        .optional()?;
    transaction
        .prepare_cached("DELETE FROM claims WHERE source = ?1 AND expires <= ?2")?
        .execute(params![source, last.unwrap_or(now)])
}

/// Shortens the file by some pages, where more are free than will soon be used. True while there is more to give.
fn give_back(transaction: &Connection) -> rusqlite::Result<bool> {
    let (all, free) = pages(transaction)?;
    // One in sixteen stays for what comes next: moving pages to the front and growing again would be work for nothing.
    let kept = (all / 16).max(64);
    let Some(more) = free.checked_sub(kept).filter(|more| *more > 0) else { return Ok(false) };
    let some = i64::try_from(more).unwrap_or(PAGES).min(PAGES);
    let mut vacuum = transaction.prepare(&format!("PRAGMA incremental_vacuum({some})"))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}

fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let number = |pragma: &str| -> rusqlite::Result<u64> {
        let found: i64 = connection.prepare_cached(pragma)?.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(found).unwrap_or(0))
    };
    Ok((number("PRAGMA page_count")?, number("PRAGMA freelist_count")?))
}
