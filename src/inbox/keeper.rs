//! What goes on beside the writer: the log is written back, the oldest deliveries are looked up.
//!
//! Invariant: the keeper only reads, and holds no read transaction for long: past one the log could not be written back.
//! It copies what is in the log into the database while the writer goes on (a PASSIVE checkpoint waits for nobody and
//! nobody for it). The little that was written meanwhile is left to the writer, between two batches: only when nothing
//! is left does the log begin anew, and so it stays as short as [`room::log_bytes`] says under any load.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::check::{Piece, Pieces};
use super::room::{self, Standing};
use super::{Rules, Steady, disk};
use crate::clock::UnixMillis;

const TICK: Duration = Duration::from_secs(1);

/// Between two pieces of the check: it may take an hour, and must not be felt.
const PIECE_REST: Duration = Duration::from_millis(20);

/// So often one after the other: what is written during one is left for the next.
const ROUNDS: usize = 4;

/// Frames that the writer copies itself in a moment.
const REMAINDER: i64 = 256;

pub(super) struct Keeper {
    nudge: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(
        path: &Path,
        database: Arc<File>,
        rules: Rules,
        clock: Steady,
        standing: Arc<Standing>,
    ) -> std::io::Result<Self> {
        let (nudge, nudged) = sync_channel(1);
        let keeping = Keeping {
            path: path.to_owned(),
            database,
            rules,
            clock,
            standing,
            nudged,
            too_old: BTreeSet::new(),
            is_failing: false,
            pieces: Some(Pieces::default()),
        };
        let thread = thread::Builder::new().name("inbox-keeper".into()).spawn(move || keeping.run())?;
        Ok(Self { nudge: Some(nudge), thread: Some(thread) })
    }

    /// Much was written: the log wants to be written back.
    pub(super) fn nudge(&self) {
        if let Some(nudge) = &self.nudge {
            // Full means that it knows.
            let _ = nudge.try_send(());
        }
    }

    /// Waits until it has let go of the file.
    pub(super) fn stop(&mut self) {
        self.nudge = None;
        if let Some(thread) = self.thread.take() {
            // A panic of its thread was reported by the thread.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Keeping {
    path: PathBuf,
    /// Shared with the writer, which lets go of it last.
    database: Arc<File>,
    rules: Rules,
    clock: Steady,
    standing: Arc<Standing>,
    nudged: Receiver<()>,
    /// Sources that are refused for their oldest delivery, as told last.
    too_old: BTreeSet<Arc<str>>,
    is_failing: bool,
    /// Until all of the store has been seen.
    pieces: Option<Pieces>,
}

impl Keeping {
    fn run(mut self) {
        let (mut connection, mut ticked) = (None, Instant::now());
        loop {
            let rest = if self.pieces.is_some() { PIECE_REST } else { TICK };
            let is_nudged = match self.nudged.recv_timeout(rest) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let is_tick = ticked.elapsed() >= TICK;
            let kept = connected(&self.path, &mut connection).and_then(|connection| {
                if is_tick {
                    ticked = Instant::now();
                    let oldest = room::oldest(connection)?;
                    self.tell(&oldest);
                    self.standing.set_oldest(oldest);
                }
                self.check(connection)?;
                if is_tick || is_nudged { self.write_back(connection) } else { Ok(()) }
            });
            if let Err(error) = kept {
                connection = None;
                if !self.is_failing {
                    tracing::warn!(%error, "the inbox's log is not written back; it is tried again each second");
                }
                self.is_failing = true;
                // A disk that fails is not asked a thousand times a second.
                thread::sleep(TICK / 4);
            } else {
                self.is_failing = false;
            }
        }
    }

    /// Once for each source and time: the answers say 503 alone, and full looks the same.
    fn tell(&mut self, oldest: &HashMap<Arc<str>, UnixMillis>) {
        let (max_age, now) = (self.rules.load().max_age, self.clock.now());
        let is_too_old = |received: &UnixMillis| room::is_too_old(*received, max_age, now);
        let names: BTreeSet<Arc<str>> =
            oldest.iter().filter(|(_, received)| is_too_old(received)).map(|(source, _)| source.clone()).collect();
        for source in names.difference(&self.too_old) {
            tracing::error!(
                source = &**source,
                ?max_age,
                "a delivery of this source has waited for longer than [inbox] max_age: more of it is refused with 503 until \
                 its upstream has taken it, or it is discarded"
            );
        }
        for source in self.too_old.difference(&names) {
            tracing::warn!(source = &**source, "nothing of this source has waited for longer than max_age any more");
        }
        self.too_old = names;
    }

    fn check(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let Some(pieces) = &mut self.pieces else { return Ok(()) };
        let damage = match pieces.next(connection, &self.rules.load().packing) {
            Ok(Piece::More) => return Ok(()),
            Ok(Piece::Done) => None,
            Ok(Piece::Damage(what)) => Some(what),
            Err(error) if disk::is_damage(&error) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        self.pieces = None;
        if let Some(detail) = damage {
            let path = self.path.display();
            tracing::error!(
                %path,
                detail,
                "the inbox is damaged; stop, and copy what is readable with `hookward inbox salvage --config FILE`"
            );
            self.standing.is_damaged.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write_back(&self, connection: &Connection) -> rusqlite::Result<()> {
        let page_bytes = u64::from(disk::PAGE_BYTES);
        let long = i64::try_from(room::nudge_bytes(&self.rules.load()) as u64 / page_bytes).unwrap_or(i64::MAX);
        for _ in 0..ROUNDS {
            let (log, written_back) = checkpoint(connection)?;
            if log < long {
                return Ok(());
            }
            if log - written_back < REMAINDER {
                break;
            }
        }
        // What was copied is synced here, or the writer would have to wait for all of it. Should that fail, its own sync
        // fails as well, and says so.
        let _ = self.database.sync_data();
        self.standing.remainder.store(true, Ordering::Release);
        Ok(())
    }
}

fn connected<'a>(path: &Path, connection: &'a mut Option<Connection>) -> rusqlite::Result<&'a Connection> {
    let open = match connection.take() {
        Some(open) => open,
        None => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let open = Connection::open_with_flags(path, flags)?;
            open.busy_timeout(disk::BUSY_WAIT)?;
            open.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -2048")?;
            open
        }
    };
    Ok(connection.insert(open))
}

/// Copies what nobody is in the way of: how many frames the log has, and how many of them are in the database.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let mut checkpoint = connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?;
    checkpoint.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}
