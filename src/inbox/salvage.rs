//! What is readable of a damaged store, copied into a new one.
//!
//! Invariant: the damaged files are only read. What was saved and what was not is told in numbers, and nothing is guessed
//! in silence: a task whose content is gone becomes a dead letter that says so, and a delivery whose tasks are gone
//! becomes a dead letter for each upstream that its source has. An operator decides about those; all others are
//! delivered as they would have been. What had been delivered since the damage began may be delivered again.
//!
//! The way: a copy of the database is made beside the new one; what can be trusted of the log is written into it
//! (`log.rs`); where its first page is damaged, that of a new store stands in, for the schema is always made in the same
//! order and so its tables begin at the same pages. Then each table is read from both ends, and what lies between is
//! halved until only what is really unreadable is left.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};

use super::disk::{self, PAGE_BYTES};
use super::{check, log};
use crate::database::beside;

const PAGE: usize = PAGE_BYTES as usize;

/// Failing reads of one table, after which what has not been found is given up: a page of a tree of a few levels may hide
/// thousands of rows, each of which is asked for.
const TRIES: u32 = 200_000;

const COPY: &str = "damaged.db";

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Salvaged {
    /// Rows of each table.
    pub(crate) saved: Vec<(String, u64)>,
    /// In words, a line each; empty when nothing was lost.
    pub(crate) lost: Vec<String>,
    /// The new store.
    pub(crate) folder: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SalvageError {
    #[error("{path}: {detail}")]
    Unusable { path: PathBuf, detail: String },
    #[error(transparent)]
    Store(#[from] disk::OpenError),
    #[error("the new store cannot be written: {0}")]
    New(#[from] rusqlite::Error),
}

/// Makes a new store in `to`, which must not have one.
pub(crate) fn salvage(from: &Path, to: &Path) -> Result<Salvaged, SalvageError> {
    let unusable = |path: &Path, error: &dyn std::fmt::Display| SalvageError::Unusable {
        path: path.into(),
        detail: error.to_string(),
    };
    let _held = disk::lock(from)?;
    let (old, new) = (from.join(disk::NAME), to.join(disk::NAME));
    if !old.is_file() {
        return Err(unusable(&old, &"there is no database to copy from"));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(|error| unusable(to, &error))?;
    if new.exists() || beside(&new, "-wal").exists() {
        return Err(unusable(&new, &"there is one already; choose another folder with --to"));
    }
    disk::create(&new)?;
    let copy = to.join(COPY);
    let mut salvaged = Salvaged { folder: to.into(), ..Salvaged::default() };
    mend(&old, &new, &copy, &mut salvaged).map_err(|error| unusable(&old, &error))?;
    let copied = fill(&copy, &new, &mut salvaged);
    std::fs::remove_file(&copy).map_err(|error| unusable(&copy, &error))?;
    copied?;
    File::open(&new).and_then(|new| new.sync_all()).map_err(|error| unusable(&new, &error))?;
    Ok(salvaged)
}

/// A copy that SQLite can open, with what the log has.
fn mend(old: &Path, new: &Path, copy: &Path, salvaged: &mut Salvaged) -> io::Result<()> {
    let mut whole = [0; PAGE];
    File::open(new)?.read_exact(&mut whole)?;
    let mut first = [0; PAGE];
    // Shorter than a page: then the new one stands in for it.
    let _ = File::open(old)?.read_exact(&mut first);
    let (magic, id, format) = (0..16, 68..72, 60..64);
    if first.get(magic.clone()) == whole.get(magic) && first.get(id.clone()) != whole.get(id) {
        return Err(io::Error::other("this is not an inbox of hookward"));
    }
    if first.get(68..72) == whole.get(68..72) && first.get(format.clone()) > whole.get(format) {
        return Err(io::Error::other("it was written by a newer hookward; run that version"));
    }

    let mut target = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(copy)?;
    let unread = copy_pages(&mut File::open(old)?, &mut target)?;
    if unread > 0 {
        salvaged.lost.push(format!("{unread} pages of the file cannot be read from the disk"));
    }
    let applied = log::apply(&beside(old, "-wal"), PAGE, &mut target)?;
    if applied.bad > 0 {
        salvaged.lost.push(format!("{} of {} pages in the log are damaged", applied.bad, applied.bad + applied.pages));
    }

    // Both halves of the header that SQLite compares: without a log, of this length, with no free pages to trust.
    let length = target.metadata()?.len().div_ceil(PAGE as u64);
    target.set_len(length.max(1) * PAGE as u64)?;
    let pages = u32::try_from(length.max(1)).unwrap_or(u32::MAX).to_be_bytes();
    let mut own = [0; PAGE];
    target.seek(SeekFrom::Start(0))?;
    target.read_exact(&mut own)?;
    let mut write_first = |mut page: [u8; PAGE]| {
        page[18..20].fill(1);
        page[28..32].copy_from_slice(&pages);
        page[32..40].fill(0);
        page.copy_within(24..28, 92);
        target.seek(SeekFrom::Start(0))?;
        target.write_all(&page)
    };
    write_first(own)?;
    if schema(copy).is_none_or(|found| schema(new).as_ref() != Some(&found)) {
        write_first(whole)?;
        salvaged.lost.push("the first page of the file is damaged; that of a new store stood in for it".to_owned());
    }
    Ok(())
}

fn copy_pages(from: &mut File, to: &mut File) -> io::Result<u64> {
    let (length, mut unread, mut page) = (from.metadata()?.len(), 0, [0; PAGE]);
    for at in (0..length).step_by(PAGE) {
        let some = usize::try_from(length - at).unwrap_or(PAGE).min(PAGE);
        let piece = page.get_mut(..some).unwrap_or_default();
        from.seek(SeekFrom::Start(at))?;
        if from.read_exact(piece).is_err() {
            piece.fill(0);
            unread += 1;
        }
        to.write_all(piece)?;
    }
    Ok(unread)
}

type Schema = Vec<(String, i64, Option<String>)>;

fn schema(path: &Path) -> Option<Schema> {
    let read = || -> rusqlite::Result<Schema> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut select = connection.prepare("SELECT name, rootpage, sql FROM sqlite_schema ORDER BY name")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect()
    };
    read().ok()
}

fn fill(copy: &Path, new: &Path, salvaged: &mut Salvaged) -> Result<(), SalvageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let damaged = Connection::open_with_flags(copy, flags)?;
    damaged.execute_batch("PRAGMA cell_size_check = ON")?;
    let mut fresh = Connection::open_with_flags(new, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Nobody uses it before it is whole; until then a crash means to begin anew.
    fresh.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")?;
    let writing = fresh.transaction()?;
    let tables: Vec<String> = {
        let mut select = writing.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
             AND name NOT IN ('meta', 'counts') ORDER BY rowid",
        )?;
        let names = select.query_map([], |row| row.get(0))?;
        names.collect::<rusqlite::Result<_>>()?
    };
    for table in &tables {
        let mut salvage = Table::new(table, &damaged, &writing)?;
        salvage.copy();
        if salvage.unread > 0 {
            let (unread, rows) = (salvage.unread, salvage.saved);
            salvaged.lost.push(format!("{table}: {unread} places of the table cannot be read ({rows} rows were)"));
        }
        salvaged.saved.push((table.clone(), salvage.saved));
    }
    let counted = damaged.query_row("SELECT ifnull(sum(n), 0) FROM counts", [], |row| row.get::<_, i64>(0));
    reconcile(&writing, counted.ok(), salvaged)?;
    let last_time = damaged.query_row("SELECT value FROM meta WHERE key = 'last_time'", [], |row| row.get::<_, i64>(0));
    if let Ok(last_time) = last_time {
        writing.execute("REPLACE INTO meta VALUES ('last_time', ?1)", [last_time])?;
    }
    writing.commit()?;
    check::recount(&fresh)?;
    Ok(())
}

/// Makes what was saved fit together.
fn reconcile(new: &Connection, counted: Option<i64>, salvaged: &mut Salvaged) -> rusqlite::Result<()> {
    let number = |sql: &str| new.query_row(sql, [], |row| row.get::<_, i64>(0));
    let tasks = number("SELECT count(*) FROM tasks")?;
    match counted {
        Some(counted) if counted > tasks => {
            salvaged.lost.push(format!("{} of {counted} tasks could not be read", counted - tasks));
        }
        Some(_) => {}
        None => salvaged.lost.push("how many tasks there were cannot be read".to_owned()),
    }
    let mut lost = |rows: usize, what: &str| {
        if rows > 0 {
            salvaged.lost.push(format!("{rows} {what}"));
        }
    };
    let gone = "DELETE FROM tasks WHERE seq NOT IN (SELECT seq FROM deliveries)";
    lost(new.execute(gone, [])?, "tasks belong to deliveries that could not be read");
    let gone = "DELETE FROM contents WHERE seq NOT IN (SELECT seq FROM deliveries)";
    lost(new.execute(gone, [])?, "contents belong to deliveries that could not be read");

    // A name that is gone is told by its number, so that its tasks can be found and retried under a source of that name.
    for (kind, column) in [(0, "source"), (1, "upstream")] {
        let nameless = format!(
            "INSERT INTO names (id, kind, name) SELECT DISTINCT {column}, {kind}, 'lost-' || {column} FROM tasks
             WHERE {column} NOT IN (SELECT id FROM names)"
        );
        lost(new.execute(&nameless, [])?, "names of sources or upstreams could not be read");
    }
    let orphans = new.execute(
        "INSERT INTO tasks (seq, upstream, source, state, due, finished, note)
         SELECT d.seq, u.upstream, d.source, 3, d.received, d.received,
                'salvaged: its task could not be read; retry it if it was not delivered'
         FROM deliveries d JOIN (SELECT DISTINCT source, upstream FROM tasks) u ON u.source = d.source
         WHERE d.seq NOT IN (SELECT seq FROM tasks)",
        [],
    )?;
    lost(orphans, "tasks could not be read: they are dead letters, to be retried if they were not delivered");
    let taskless = number("SELECT count(*) FROM deliveries WHERE seq NOT IN (SELECT seq FROM tasks)")?;
    lost(usize::try_from(taskless).unwrap_or_default(), "deliveries are for upstreams that could not be read");
    let empty = new.execute(
        "UPDATE tasks SET state = 3, finished = due, note = 'salvaged: its content could not be read'
         WHERE state < 2 AND seq NOT IN (SELECT seq FROM contents)",
        [],
    )?;
    lost(empty, "tasks have no content any more and are dead letters");
    // Of a lane that has lost the one that was waiting, the next is. Where an older one is behind it, an operator retried that.
    new.execute(
        "UPDATE tasks SET state = 0 WHERE state = 1 AND seq = (
             SELECT min(b.seq) FROM tasks b WHERE b.upstream = tasks.upstream AND b.lane = tasks.lane AND b.state < 2)
         AND NOT EXISTS (
             SELECT 1 FROM tasks w WHERE w.upstream = tasks.upstream AND w.lane = tasks.lane AND w.state = 0)",
        [],
    )?;
    Ok(())
}

/// One table, from the damaged store into the new one.
struct Table<'a> {
    name: &'a str,
    key: &'static str,
    columns: usize,
    damaged: &'a Connection,
    new: &'a Connection,
    saved: u64,
    unread: u64,
    tries: u32,
}

/// How far a read came before it failed.
enum Came {
    All,
    /// The last key that was read.
    Until(Option<i64>),
}

impl<'a> Table<'a> {
    fn new(name: &'a str, damaged: &'a Connection, new: &'a Connection) -> rusqlite::Result<Self> {
        let key = match name {
            "names" => "id",
            "claims" => "expires",
            "deliveries" | "contents" | "tasks" => "seq",
            _ => "rowid",
        };
        let columns = new.prepare(&format!("SELECT * FROM {name}"))?.column_count();
        Ok(Self { name, key, columns, damaged, new, saved: 0, unread: 0, tries: 0 })
    }

    fn copy(&mut self) {
        if self.name != "claims" {
            let (low, high) = self.bounds("");
            return self.range("", low, high);
        }
        // Their order is by source first.
        let sources = self.new.prepare("SELECT id FROM names WHERE kind = 0").and_then(|mut select| {
            let ids = select.query_map([], |row| row.get::<_, i64>(0))?;
            ids.collect::<rusqlite::Result<Vec<_>>>()
        });
        for source in sources.unwrap_or_default() {
            let within = format!("source = {source} AND");
            let (low, high) = self.bounds(&within);
            self.range(&within, low, high);
        }
    }

    /// The first key and the last. Where an end cannot be read, the other tables with the same key may know it.
    fn bounds(&self, within: &str) -> (i64, i64) {
        let same: &[&str] = match self.key {
            "seq" => &["deliveries", "contents", "tasks"],
            _ => &[self.name],
        };
        let end = |sql: &str| {
            let found = same.iter().filter_map(|table| {
                let sql = sql.replace("TABLE", table);
                self.damaged.query_row(&sql, [], |row| row.get::<_, Option<i64>>(0)).ok().flatten()
            });
            found.collect::<Vec<_>>()
        };
        let first = end(&format!("SELECT min({}) FROM TABLE WHERE {within} 1", self.key));
        let last = end(&format!("SELECT max({}) FROM TABLE WHERE {within} 1", self.key));
        (first.into_iter().min().unwrap_or(0), last.into_iter().max().unwrap_or(1 << 42))
    }

    fn range(&mut self, within: &str, low: i64, high: i64) {
        if low > high || self.tries > TRIES {
            self.unread += u64::from(low <= high);
            return;
        }
        let low = match self.read(within, low, high, "ASC") {
            Came::All => return,
            Came::Until(last) => last.map_or(low, |last| last.saturating_add(1)),
        };
        let high = match self.read(within, low, high, "DESC") {
            Came::All => return,
            Came::Until(last) => last.map_or(high, |last| last.saturating_sub(1)),
        };
        if low >= high {
            self.unread += 1;
            return;
        }
        let middle = low + (high - low) / 2;
        self.range(within, low, middle);
        self.range(within, middle + 1, high);
    }

    fn read(&mut self, within: &str, low: i64, high: i64, order: &str) -> Came {
        let Self { name, key, columns, .. } = *self;
        let sql = format!("SELECT {key}, * FROM {name} WHERE {within} {key} BETWEEN ?1 AND ?2 ORDER BY {key} {order}");
        let places = vec!["?"; columns].join(", ");
        let (mut last, mut saved) = (None, 0);
        let mut copy = || -> rusqlite::Result<()> {
            let mut insert = self.new.prepare_cached(&format!("INSERT INTO {name} VALUES ({places})"))?;
            let mut select = self.damaged.prepare_cached(&sql)?;
            let mut rows = select.query([low, high])?;
            while let Some(row) = rows.next()? {
                let at: i64 = row.get(0)?;
                if !(low..=high).contains(&at) {
                    return Err(rusqlite::Error::InvalidQuery);
                }
                let values = (1..=columns).map(|column| row.get::<_, Value>(column));
                let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
                last = Some(at);
                // What the new table does not take (of another type, or there already) is none of a store's rows.
                saved += insert.execute(params_from_iter(values)).unwrap_or(0) as u64;
            }
            Ok(())
        };
        let done = copy();
        self.saved += saved;
        match done {
            Ok(()) => Came::All,
            Err(_) => {
                self.tries += 1;
                Came::Until(last)
            }
        }
    }
}
