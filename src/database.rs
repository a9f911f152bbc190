//! An SQLite file that one process serves from: its lock, its making, and the names of the files beside it.
//!
//! Invariant: a database gets its name only when it is whole and synced, so an empty file of that name is damage and not
//! a beginning. The kernel lets go of a lock when its process ends in whatever way, so a lock file left behind means
//! nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::clock::UnixMillis;

#[derive(Debug)]
pub(crate) enum Unlocked {
    /// Another process has it.
    InUse,
    Failed(String),
}

/// Locks the file of this name, made where it is missing, for as long as it is held. SQLite's own locks would let two
/// processes take turns.
pub(crate) fn lock(path: &Path) -> Result<File, Unlocked> {
    let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
    let held = options.map_err(|error| Unlocked::Failed(error.to_string()))?;
    match held.try_lock() {
        Ok(()) => Ok(held),
        Err(TryLockError::WouldBlock) => Err(Unlocked::InUse),
        Err(TryLockError::Error(error)) => Err(Unlocked::Failed(format!("it cannot be locked: {error}"))),
    }
}

/// Makes a database by these statements beside its final name, whole and synced, and only then names it.
pub(crate) fn create(path: &Path, statements: &str) -> Result<(), String> {
    let unfinished = beside(path, ".new");
    let make = || -> Result<(), Box<dyn std::error::Error>> {
        for left in [unfinished.clone(), beside(&unfinished, "-journal")] {
            match std::fs::remove_file(left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(&unfinished)?;
        let connection = Connection::open_with_flags(&unfinished, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.execute_batch(statements)?;
        connection.close().map_err(|(_, error)| error)?;
        std::fs::rename(&unfinished, path)?;
        File::open(folder_of(path))?.sync_all()?;
        Ok(())
    };
    make().map_err(|error| error.to_string())
}

/// `PATH` and more, as SQLite names the files beside a database.
pub(crate) fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// SQLite's integers are signed; a time past the year 292,278,994 is for ever.
pub(crate) fn stored(time: UnixMillis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}
