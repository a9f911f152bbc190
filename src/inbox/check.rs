//! Is the store whole? All at once after an unclean stop, before anything is served; in small pieces beside the traffic
//! after a clean one.
//!
//! Invariant: damage is told, with the file's name and what to do, and never mended silently. Only the counts are
//! mended, for they can be counted again; and that is told too. A piece is a read of some milliseconds, so that the log
//! can be written back between two of them.

use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension};

use super::packing::{Packing, Unreadable};

/// Deliveries in one piece.
const PIECE: usize = 64;

/// Of contents that cannot be read so many are told one by one.
const TOLD: u64 = 10;

/// What is wrong, in words; None: nothing is.
pub(super) fn whole(connection: &Connection, path: &Path) -> rusqlite::Result<Option<String>> {
    let begun = Instant::now();
    // The second looks whether the indexes have each task, and no other: one that is missing would never be due.
    for check in ["PRAGMA quick_check(1)", "PRAGMA integrity_check(tasks)"] {
        let verdict: String = connection.query_row(check, [], |row| row.get(0))?;
        if verdict != "ok" {
            return Ok(Some(verdict.replace('\n', " ")));
        }
    }
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let astray =
        number("SELECT count(*) FROM tasks t WHERE NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.seq = t.seq)")?;
    let empty = number(
        "SELECT count(*) FROM tasks t WHERE state < 2 AND NOT EXISTS (SELECT 1 FROM contents c WHERE c.seq = t.seq)",
    )?;
    let nameless = number(
        "SELECT count(*) FROM (SELECT DISTINCT source, upstream FROM tasks) t
         WHERE NOT EXISTS (SELECT 1 FROM names n WHERE n.id = t.source AND n.kind = 0)
            OR NOT EXISTS (SELECT 1 FROM names n WHERE n.id = t.upstream AND n.kind = 1)",
    )?;
    for (found, what) in [
        (astray, "deliveries are missing, and their tasks are there"),
        (empty, "contents are missing, and are still to be delivered"),
        (nameless, "sources or upstreams have lost their names"),
    ] {
        if found > 0 {
            return Ok(Some(format!("{found} {what}")));
        }
    }
    let took = begun.elapsed();
    tracing::info!(path = %path.display(), ?took, "the inbox was not closed the last time; it was checked, and is whole");
    Ok(None)
}

/// Counts the tasks, and puts right what `counts` says of them.
pub(super) fn recount(connection: &Connection) -> rusqlite::Result<()> {
    const COUNTED: &str = "SELECT source, upstream, state, count(*) FROM tasks GROUP BY source, upstream, state";
    const TOLD: &str = "SELECT source, upstream, state, n FROM counts WHERE n <> 0";
    let differ = format!("SELECT EXISTS ({COUNTED} EXCEPT {TOLD}) OR EXISTS ({TOLD} EXCEPT {COUNTED})");
    if connection.query_row(&differ, [], |row| row.get(0))? {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(&format!("DELETE FROM counts; INSERT INTO counts {COUNTED}"))?;
        transaction.commit()?;
        tracing::warn!("the inbox's counts of tasks were wrong; they were counted anew");
    }
    Ok(())
}

/// The check beside the traffic: how far it has come.
#[derive(Default)]
pub(super) struct Pieces {
    after: i64,
    seen: u64,
    unreadable: u64,
    sealed: u64,
}

/// What a piece came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    More,
    Done,
    /// In words.
    Damage(String),
}

impl Pieces {
    pub(super) fn next(&mut self, connection: &Connection, packing: &Packing) -> rusqlite::Result<Piece> {
        let from = self.after;
        let mut select = connection.prepare_cached(
            "SELECT d.seq, d.request_id, c.key, c.packing, c.content FROM deliveries d
             LEFT JOIN contents c ON c.seq = d.seq WHERE d.seq > ?1 ORDER BY d.seq LIMIT ?2",
        )?;
        let mut rows = select.query([from, PIECE as i64])?;
        let mut found = 0;
        while let Some(row) = rows.next()? {
            found += 1;
            self.after = row.get(0)?;
            let Some(form) = row.get::<_, Option<i64>>(3)? else {
                return Ok(Piece::Damage(format!("the content of delivery {} is missing", self.after)));
            };
            let request_id: Option<[u8; 16]> = row.get(1).ok();
            let key: Option<Vec<u8>> = row.get(2)?;
            let content = row.get(4)?;
            let read = request_id.ok_or(Unreadable::Damaged("its request id is none"));
            match read.and_then(|id| packing.unpack(&id, key.as_deref(), form, content)) {
                Ok(_) => {}
                Err(Unreadable::KeyMissing { .. }) => self.sealed += 1,
                Err(why) => self.tell(why),
            }
        }
        self.seen += found;
        let tasks: Option<i64> = connection
            .prepare_cached(
                "SELECT seq FROM tasks t WHERE seq > ?1 AND seq <= ?2
                 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.seq = t.seq) LIMIT 1",
            )?
            .query_row([from, self.after], |row| row.get(0))
            .optional()?;
        if let Some(seq) = tasks {
            return Ok(Piece::Damage(format!("delivery {seq} is missing, and its tasks are there")));
        }
        if found == PIECE as u64 {
            return Ok(Piece::More);
        }
        let Self { seen, unreadable, sealed, .. } = *self;
        if sealed > 0 {
            tracing::warn!(
                sealed,
                "deliveries in the inbox are encrypted with a key that [inbox] encryption_key has not"
            );
        }
        tracing::debug!(seen, unreadable, "the inbox was checked");
        Ok(Piece::Done)
    }

    /// One content: its tasks become dead letters when they are due, and all others are delivered.
    fn tell(&mut self, why: Unreadable) {
        self.unreadable += 1;
        if self.unreadable <= TOLD {
            let seq = self.after;
            tracing::error!(seq, %why, "a delivery in the inbox cannot be read; its tasks will be dead letters");
        }
    }
}
