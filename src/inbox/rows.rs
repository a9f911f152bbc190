//! What a transaction writes: a delivery with its tasks and claims, the end of an attempt, the next of a lane.
//!
//! Invariant: whatever changes the state of a task tells the tally, and of the tasks of one lane that have not ended at
//! most one is waiting; the others are behind it.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::disk::{CLAIM_OF_A_MESSAGE, CLAIM_OF_AN_EVENT};
use super::packing::KeyId;
use super::tally::{Kind, State, Tally};
use super::writer::{Append, Settling};
use super::{Claims, End};
use crate::clock::UnixMillis;
use crate::database::stored;

/// For a person to read.
const LONGEST_NOTE: usize = 200;

/// What was stored of an append: its `seq`, and which of its tasks are waiting (the others are behind).
pub(super) struct Stored {
    pub(super) seq: i64,
    pub(super) waiting: Vec<bool>,
}

pub(super) fn insert(
    transaction: &Connection,
    tally: &mut Tally,
    append: &Append,
    seq: i64,
    now: UnixMillis,
) -> rusqlite::Result<Stored> {
    let Append { entry, packed, release, .. } = append;
    let source = tally.id(transaction, Kind::Source, &entry.source)?;
    transaction.prepare_cached("INSERT INTO deliveries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
        seq,
        source,
        stored(entry.received),
        entry.request_id.as_bytes(),
        entry.delivery_id,
        entry.event_id,
        entry.event_type,
        i64::try_from(entry.parcel.body.len()).unwrap_or(i64::MAX),
    ])?;
    let key = packed.key.as_ref().map(KeyId::as_bytes);
    transaction.prepare_cached("INSERT INTO contents VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        seq,
        key,
        packed.packing,
        packed.content
    ])?;
    let mut waiting = Vec::with_capacity(entry.tasks.len());
    for task in &entry.tasks {
        let upstream = tally.id(transaction, Kind::Upstream, &task.upstream)?;
        let state = match task.lane {
            Some(lane) if has_unended(transaction, upstream, lane)? => State::Behind,
            Some(_) | None => State::Waiting,
        };
        transaction
            .prepare_cached(
                "INSERT INTO tasks (seq, upstream, source, state, due, lane, path) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![seq, upstream, source, state as i64, stored(now), task.lane, task.path])?;
        tally.add(source, upstream, state, 1);
        waiting.push(state == State::Waiting);
    }
    remember(transaction, source, &entry.claims, entry.received)?;
    if let Some(release) = release {
        release.carry_out(transaction)?;
    }
    Ok(Stored { seq, waiting })
}

fn remember(transaction: &Connection, source: i64, claims: &Claims, received: UnixMillis) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO claims VALUES (?1, ?2, ?3, ?4)")?;
    let keep_until = in_order(claims.keep_until, received);
    for print in &claims.prints {
        insert.execute(params![source, stored(keep_until), CLAIM_OF_A_MESSAGE, print])?;
    }
    if let Some(event) = &claims.event {
        insert.execute(params![source, stored(claims.event_keep_until), CLAIM_OF_AN_EVENT, event])?;
    }
    Ok(())
}

/// Most senders sign whole seconds. All claims of one second would lie in the order of their prints, each commit would
/// touch a page for nearly every one of its claims, and write it: told apart by the millisecond of arrival, they grow at
/// the end. Never earlier than asked for, and less than a second later.
fn in_order(keep_until: UnixMillis, received: UnixMillis) -> UnixMillis {
    match keep_until.0.is_multiple_of(1000) {
        true => keep_until.after(Duration::from_millis(received.0 % 1000)),
        false => keep_until,
    }
}

pub(super) fn has_unended(transaction: &Connection, upstream: i64, lane: i64) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("SELECT 1 FROM tasks WHERE upstream = ?1 AND lane = ?2 AND state < 2 LIMIT 1")?
        .exists(params![upstream, lane])
}

/// Does nothing where the task is no longer as it was handed out: an operator was quicker.
pub(super) fn settle(
    transaction: &Connection,
    tally: &mut Tally,
    settling: &Settling,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    let Settling { key, attempt, .. } = settling;
    let upstream = tally.id(transaction, Kind::Upstream, &key.upstream)?;
    let (state, due, finished) = match attempt.end {
        End::Delivered => (State::Delivered, now, Some(now)),
        End::Dead => (State::Dead, now, Some(now)),
        End::Retry { after } => (State::Waiting, now.after(after), None),
    };
    let note: String = attempt.note.chars().take(LONGEST_NOTE).collect();
    let settled = transaction
        .prepare_cached(
            "UPDATE tasks SET state = ?1, due = ?2, finished = ?3, attempts = attempts + ?4, status = ?5, note = ?6
             WHERE seq = ?7 AND upstream = ?8 AND state = 0 AND generation = ?9 RETURNING source, lane",
        )?
        .query_row(
            params![
                state as i64,
                stored(due),
                finished.map(stored),
                attempt.counted,
                attempt.status,
                note,
                key.seq,
                upstream,
                key.generation
            ],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)),
        )
        .optional()?;
    let Some((source, lane)) = settled else { return Ok(()) };
    if state != State::Waiting {
        tally.add(source, upstream, State::Waiting, -1);
        tally.add(source, upstream, state, 1);
        if let Some(lane) = lane {
            promote(transaction, tally, upstream, lane, now)?;
        }
    }
    Ok(())
}

/// What was first in its lane has ended: the next one's turn, unless another is waiting already.
pub(super) fn promote(
    transaction: &Connection,
    tally: &mut Tally,
    upstream: i64,
    lane: i64,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    let promoted = transaction
        .prepare_cached(
            "UPDATE tasks SET state = 0, due = ?3 WHERE upstream = ?1 AND seq = (
                 SELECT min(seq) FROM tasks WHERE upstream = ?1 AND lane = ?2 AND state < 2
             ) AND state = 1 AND NOT EXISTS (
                 SELECT 1 FROM tasks WHERE upstream = ?1 AND lane = ?2 AND state < 2 AND state = 0
             ) RETURNING source",
        )?
        .query_row(params![upstream, lane, stored(now)], |row| row.get::<_, i64>(0))
        .optional()?;
    if let Some(source) = promoted {
        tally.add(source, upstream, State::Behind, -1);
        tally.add(source, upstream, State::Waiting, 1);
        tally.touch(upstream);
    }
    Ok(())
}

/// Needs new pages, as an append may: a disk that takes only a small change must not look healthy.
pub(super) fn try_writing(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute_batch("REPLACE INTO meta VALUES ('probe', zeroblob(65536)); DELETE FROM meta WHERE key = 'probe'")
}

pub(super) fn write_time(connection: &Connection, now: UnixMillis) -> rusqlite::Result<()> {
    connection.prepare_cached("REPLACE INTO meta VALUES ('last_time', ?1)")?.execute([stored(now)]).map(drop)
}
