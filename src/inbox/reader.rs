//! Reading beside the writer: what is due, what it says, what was claimed.
//!
//! Invariant: a read transaction is short, for the log cannot be written back past it; and what is read may be a moment
//! old, so whoever leases by it must know what was settled meanwhile (`feed.rs`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use uuid::Uuid;

use super::disk::{self, BUSY_WAIT};
use super::packing::{Packing, Unreadable as Sealed};
use super::tally::{self, Kind};
use super::{Count, Print, Rules, Seed, State, Task, TaskKey};
use crate::clock::UnixMillis;
use crate::parcel::Parcel;

/// Kept open between reads; more are opened when more read at once.
const MOST_IDLE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) seq: i64,
    /// By the inbox's clock.
    pub(crate) due: UnixMillis,
}

pub(crate) enum Loaded {
    Task(Box<Task>),
    /// It is there, and cannot be sent as it is: what its content holds cannot be read.
    Unreadable {
        key: TaskKey,
        why: String,
    },
}

/// Where something waits, since when.
pub(crate) struct Oldest {
    pub(crate) source: Arc<str>,
    pub(crate) upstream: Arc<str>,
    pub(crate) received: UnixMillis,
}

pub(super) struct Readers {
    path: PathBuf,
    rules: Rules,
    // Guards the list alone; a connection that reads is not in it.
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, rules: Rules) -> Self {
        Self { path, rules, idle: Mutex::default() }
    }

    pub(super) fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, String> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = idle.map_or_else(|| self.connect(), Ok).map_err(|error| error.to_string())?;
        let done = work(&connection).map_err(|error| error.to_string())?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
        Ok(done)
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY_WAIT)?;
        Ok(connection)
    }

    pub(super) fn due(&self, upstream: &str, limit: usize) -> Result<Vec<Due>, String> {
        self.read(|connection| {
            let Some(upstream) = tally::known(connection, Kind::Upstream, upstream)? else { return Ok(Vec::new()) };
            let mut select = connection.prepare_cached(
                "SELECT seq, due FROM tasks WHERE upstream = ?1 AND state = 0 ORDER BY due, seq LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = select
                .query_map(params![upstream, limit], |row| Ok(Due { seq: row.get(0)?, due: time(row.get(1)?) }))?;
            rows.collect()
        })
    }

    pub(super) fn load(&self, upstream: &Arc<str>, seqs: &[i64]) -> Result<Vec<Loaded>, String> {
        let rules = self.rules.load();
        self.read(|connection| {
            let Some(id) = tally::known(connection, Kind::Upstream, upstream)? else { return Ok(Vec::new()) };
            let mut select = connection.prepare_cached(
                "SELECT t.attempts, t.generation, t.path, n.name, d.received, d.request_id,
                        d.delivery_id, c.content, c.key, c.packing
                 FROM tasks t LEFT JOIN deliveries d ON d.seq = t.seq LEFT JOIN contents c ON c.seq = t.seq
                 LEFT JOIN names n ON n.id = t.source
                 WHERE t.seq = ?1 AND t.upstream = ?2 AND t.state = ?3",
            )?;
            let mut loaded = Vec::with_capacity(seqs.len());
            for seq in seqs {
                let found = select
                    .query_row(params![seq, id, State::Waiting as i64], |row| {
                        read_task(row, *seq, upstream, &rules.packing)
                    })
                    .optional()?;
                loaded.extend(found);
            }
            Ok(loaded)
        })
    }

    pub(super) fn waits(&self, key: &TaskKey) -> Result<bool, String> {
        self.read(|connection| {
            let Some(upstream) = tally::known(connection, Kind::Upstream, &key.upstream)? else { return Ok(false) };
            connection
                .prepare_cached(
                    "SELECT 1 FROM tasks WHERE seq = ?1 AND upstream = ?2 AND state = ?3 AND generation = ?4",
                )?
                .exists(params![key.seq, upstream, State::Waiting as i64, key.generation])
        })
    }

    pub(super) fn content(&self, seq: i64) -> Result<Parcel, String> {
        let found = self.read(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT d.request_id, c.key, c.packing, c.content FROM contents c JOIN deliveries d ON d.seq = c.seq
                 WHERE c.seq = ?1",
            )?;
            let row = select.query_row([seq], |row| {
                Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, Option<Vec<u8>>>(1)?, row.get(2)?, row.get(3)?))
            });
            row.optional()
        })?;
        let (request_id, key, packing, content) = found.ok_or_else(|| "it is missing".to_owned())?;
        let rules = self.rules.load();
        let content = rules.packing.unpack(&request_id, key.as_deref(), packing, content);
        Parcel::decode(&content.map_err(|why| why.to_string())?).map_err(|why| why.to_string())
    }

    /// One look-up for each that `counts` has waiting tasks of.
    pub(super) fn oldest(&self, counts: &[Count]) -> Result<Vec<Oldest>, String> {
        self.read(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT d.received FROM tasks t JOIN deliveries d ON d.seq = t.seq
                 WHERE t.upstream = (SELECT id FROM names WHERE kind = 1 AND name = ?1)
                   AND t.source = (SELECT id FROM names WHERE kind = 0 AND name = ?2) AND t.state < 2
                 ORDER BY t.seq LIMIT 1",
            )?;
            let mut found = Vec::new();
            for count in counts.iter().filter(|count| count.state == State::Waiting && count.tasks > 0) {
                let (source, upstream) = (count.source.clone(), count.upstream.clone());
                let received = select.query_row([&*upstream, &*source], |row| row.get(0)).optional()?;
                found.extend(received.map(|received| Oldest { source, upstream, received: time(received) }));
            }
            Ok(found)
        })
    }

    pub(super) fn seeds(&self, source: &str, mut each: impl FnMut(Seed)) -> Result<(), String> {
        self.read(|connection| {
            let Some(source) = tally::known(connection, Kind::Source, source)? else { return Ok(()) };
            let mut select = connection.prepare("SELECT kind, print, expires FROM claims WHERE source = ?1")?;
            let mut rows = select.query([source])?;
            while let Some(row) = rows.next()? {
                let (kind, print, until): (i64, Print, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                each(Seed { print, is_event: kind == disk::CLAIM_OF_AN_EVENT, until: time(until) });
            }
            Ok(())
        })
    }
}

fn read_task(row: &rusqlite::Row<'_>, seq: i64, upstream: &Arc<str>, packing: &Packing) -> rusqlite::Result<Loaded> {
    let key = TaskKey { seq, upstream: upstream.clone(), generation: row.get(1)? };
    let unreadable = |why: &str| Ok(Loaded::Unreadable { key: key.clone(), why: why.to_owned() });
    let (Some(source), Some(received)) = (row.get::<_, Option<String>>(3)?, row.get::<_, Option<i64>>(4)?) else {
        return unreadable("its delivery is missing");
    };
    let (Ok(request_id), Some(content)) = (row.get(5), row.get::<_, Option<Vec<u8>>>(7)?) else {
        return unreadable("its content is missing");
    };
    let sealed_with: Option<Vec<u8>> = row.get(8)?;
    let content = match packing.unpack(&request_id, sealed_with.as_deref(), row.get(9)?, content) {
        Ok(content) => content,
        // It can be read again with the key, or by the version, that is wanting: it waits for that.
        Err(why @ (Sealed::KeyMissing { .. } | Sealed::Unknown(_))) => {
            return Err(rusqlite::Error::FromSqlConversionFailure(7, Type::Blob, Box::new(why)));
        }
        Err(why) => return unreadable(&why.to_string()),
    };
    let mut parcel = match Parcel::decode(&content) {
        Ok(parcel) => parcel,
        Err(why) => return unreadable(&why.to_string()),
    };
    if let Some(path) = row.get::<_, Option<String>>(2)? {
        parcel.go_to(&path);
    }
    Ok(Loaded::Task(Box::new(Task {
        source: source.into(),
        received: time(received),
        request_id: Uuid::from_bytes(request_id),
        delivery_id: row.get(6)?,
        attempts: row.get(0)?,
        parcel: Arc::new(parcel),
        key,
    })))
}

fn time(stored: i64) -> UnixMillis {
    UnixMillis(u64::try_from(stored).unwrap_or(0))
}
