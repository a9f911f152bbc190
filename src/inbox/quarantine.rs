//! What was refused for its signature alone, kept until the operator has mended the secret.
//!
//! Invariant: bounded for each source, in number, bytes and age, and one client has at most an eighth of that; who comes
//! when it is full is dropped, and nobody is pushed out: anybody on the internet can fill it, and must not be able to
//! empty it by that. All of them together have at most a quarter of the store, for what is proven goes before. Nothing in here is delivered by itself. A request leaves it in the very transaction that makes a
//! delivery of it, so that a crash leaves it in one of the two places and never in both.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::packing::{KeyId, Unreadable};
use super::tally::{self, Kind};
use super::{AppendError, Entry, Inbox, Rules};
use crate::clock::UnixMillis;
use crate::database::stored;

/// Of what there is, one client has so much at most.
const SHARE: u64 = 8;

/// Of the store's `max_size`, all that is kept has so much at most, of whatever sources: the rest is for what is proven.
const PART: u64 = 4;

/// What a row takes beside the request as it came.
const ROW: u64 = 1 << 10;

/// Large ones take many pages each: a step must not keep deliveries waiting.
const EXPIRED_IN_A_STEP: usize = 16;

/// `[inbox] quarantine`, of each source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_count: u64,
    /// Of bodies and headers as they came.
    pub(crate) max_size: u64,
    pub(crate) max_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_count: 1_000, max_size: 64 << 20, max_age: Duration::from_secs(72 * 3600) }
    }
}

/// Why a request is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The source's quarantine.
    Full,
    /// The client's share of it.
    ShareFull,
    /// Larger than a client's share.
    TooLarge,
    /// More come than are being written.
    Busy,
    Unwritten,
}

impl Dropped {
    pub(crate) const ALL: [Self; 5] = [Self::Full, Self::ShareFull, Self::TooLarge, Self::Busy, Self::Unwritten];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ShareFull => "client_share_full",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::Unwritten => "unwritten",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    count: u64,
    bytes: u64,
}

impl Load {
    fn has_room(self, size: u64, most: Self) -> bool {
        self.count < most.count && self.bytes.saturating_add(size) <= most.bytes
    }

    fn add(&mut self, size: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(size);
    }

    fn sub(&mut self, size: u64) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
    }
}

#[derive(Default)]
struct Held {
    all: Load,
    by_client: HashMap<Arc<str>, Load>,
}

/// How full each source's quarantine is. It is judged here, in memory, so that a flood costs the store nothing once the
/// place is full.
#[derive(Default)]
struct Books {
    limits: Limits,
    last_id: i64,
    /// Of the store, about.
    bytes: u64,
    by_source: HashMap<Arc<str>, Held>,
}

pub(crate) struct Quarantine {
    // Held for a look-up; shared with the places that are taken and not yet filled.
    books: Arc<Mutex<Books>>,
    rules: Rules,
}

/// Room for one request. Dropped unfilled it is free again.
#[derive(Debug)]
#[must_use = "dropping it gives the room back"]
pub(crate) struct Place {
    books: Arc<Mutex<Books>>,
    id: i64,
    source: Arc<str>,
    client: Arc<str>,
    size: u64,
    is_filled: bool,
}

/// One request that is kept, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) id: i64,
    pub(crate) request_id: Uuid,
    pub(crate) received: UnixMillis,
    pub(crate) expires: UnixMillis,
}

/// One source's quarantine, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) source: String,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) clients: u64,
    pub(crate) oldest: UnixMillis,
    pub(crate) newest: UnixMillis,
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Books {
    fn forget(&mut self, source: &str, client: &str, size: u64) {
        let Some(held) = self.by_source.get_mut(source) else { return };
        held.all.sub(size);
        self.bytes = self.bytes.saturating_sub(size.saturating_add(ROW));
        if let Some(load) = held.by_client.get_mut(client) {
            load.sub(size);
            if load.count == 0 {
                held.by_client.remove(client);
            }
        }
    }
}

impl Quarantine {
    pub(super) fn read(connection: &Connection, rules: Rules) -> rusqlite::Result<Self> {
        let mut books = Books { limits: rules.load().quarantine, ..Books::default() };
        books.last_id = connection.query_row("SELECT ifnull(max(id), 0) FROM quarantine", [], |row| row.get(0))?;
        let mut select = connection.prepare(
            "SELECT n.name, q.client, count(*), sum(q.size) FROM quarantine q JOIN names n ON n.id = q.source
             GROUP BY q.source, q.client",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (source, client): (String, String) = (row.get(0)?, row.get(1)?);
            let load = Load { count: number(row.get(2)?), bytes: number(row.get(3)?) };
            books.bytes = books.bytes.saturating_add(load.bytes).saturating_add(load.count.saturating_mul(ROW));
            let held = books.by_source.entry(source.into()).or_default();
            held.all.count += load.count;
            held.all.bytes = held.all.bytes.saturating_add(load.bytes);
            held.by_client.insert(client.into(), load);
        }
        Ok(Self { books: Arc::new(Mutex::new(books)), rules })
    }

    /// What is kept beyond new limits stays until it expires.
    pub(crate) fn limit(&self, limits: Limits) {
        lock(&self.books).limits = limits;
    }

    pub(crate) fn holds_any_of(&self, source: &str) -> bool {
        lock(&self.books).by_source.get(source).is_some_and(|held| held.all.count > 0)
    }

    pub(crate) fn max_age(&self) -> Duration {
        lock(&self.books).limits.max_age
    }

    /// Requests by source.
    pub(crate) fn counts(&self) -> Vec<(Arc<str>, u64)> {
        lock(&self.books).by_source.iter().map(|(source, held)| (source.clone(), held.all.count)).collect()
    }

    /// `size`: of the request as it came.
    pub(crate) fn admit(&self, source: &Arc<str>, client: &Arc<str>, size: u64) -> Result<Place, Dropped> {
        let mut books = lock(&self.books);
        let limits = books.limits;
        let most = Load { count: limits.max_count, bytes: limits.max_size };
        let share = Load { count: (limits.max_count / SHARE).max(1), bytes: limits.max_size / SHARE };
        if size > share.bytes {
            return Err(Dropped::TooLarge);
        }
        let bytes = books.bytes.saturating_add(size.saturating_add(ROW));
        if bytes > self.rules.load().max_size / PART {
            return Err(Dropped::Full);
        }
        let held = books.by_source.entry(source.clone()).or_default();
        if !held.all.has_room(size, most) {
            return Err(Dropped::Full);
        }
        let load = held.by_client.get(client).copied().unwrap_or_default();
        if !load.has_room(size, share) {
            return Err(Dropped::ShareFull);
        }
        held.all.add(size);
        held.by_client.entry(client.clone()).or_default().add(size);
        books.bytes = bytes;
        books.last_id += 1;
        Ok(Place {
            books: self.books.clone(),
            id: books.last_id,
            source: source.clone(),
            client: client.clone(),
            size,
            is_filled: false,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_filled {
            lock(&self.books).forget(&self.source, &self.client, self.size);
        }
    }
}

impl Inbox {
    /// A delivery of what was kept: it is appended and leaves the quarantine in one transaction.
    pub(crate) async fn append_released(&self, entry: Entry, suspect: Suspect) -> Result<(), AppendError> {
        let release = Release::of(suspect.id);
        let appended = self.writer.append(entry, Some(release.clone())).await;
        if appended.is_ok() {
            self.forget(release.gone());
        }
        appended
    }

    /// Writes down what a place was taken for; `content` is for whoever reads it back. Not where deliveries would be
    /// refused: strangers must not take the last of the room.
    pub(crate) async fn confine(
        &self,
        mut place: Place,
        received: UnixMillis,
        request_id: Uuid,
        content: Vec<u8>,
    ) -> Result<(), String> {
        if let Some(refusal) = self.writer.refusal(&place.source) {
            return Err(refusal.to_string());
        }
        let expires = received.after(self.quarantine.max_age());
        let (id, source, client, size) = (place.id, place.source.clone(), place.client.clone(), place.size);
        let (rules, id_bytes) = (self.rules.load_full(), *request_id.as_bytes());
        let packed = tokio::task::spawn_blocking(move || rules.packing.pack(&id_bytes, content));
        let packed = packed.await.map_err(|error| error.to_string())??;
        let written = self.write(move |transaction, tally| {
            let source = tally.id(transaction, Kind::Source, &source)?;
            transaction
                .prepare_cached("INSERT INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
                .execute(params![
                    id,
                    source,
                    stored(received),
                    stored(expires),
                    client,
                    i64::try_from(size).unwrap_or(i64::MAX),
                    request_id.as_bytes(),
                    packed.key.as_ref().map(KeyId::as_bytes),
                    packed.packing,
                    packed.content,
                ])
        });
        written.await?;
        place.is_filled = true;
        Ok(())
    }

    /// What is kept of a source behind this one, in order of arrival. Blocking.
    pub(crate) fn suspects(&self, source: &str, after: i64) -> Result<Vec<Suspect>, String> {
        self.read(|connection| {
            let Some(source) = tally::known(connection, Kind::Source, source)? else { return Ok(Vec::new()) };
            let mut select = connection.prepare(
                "SELECT id, request_id, received, expires FROM quarantine WHERE source = ?1 AND id > ?2 ORDER BY id",
            )?;
            let rows = select.query_map([source, after], |row| {
                Ok(Suspect {
                    id: row.get(0)?,
                    request_id: Uuid::from_bytes(row.get(1)?),
                    received: time(row.get(2)?),
                    expires: time(row.get(3)?),
                })
            })?;
            rows.collect()
        })
    }

    /// What was confined, or why it cannot be read; None: it is gone meanwhile. Blocking.
    pub(crate) fn confined(&self, suspect: Suspect) -> Result<Option<Result<Vec<u8>, Unreadable>>, String> {
        let found = self.read(|connection| {
            let select = "SELECT key, packing, content FROM quarantine WHERE id = ?1";
            let row = connection.query_row(select, [suspect.id], |row| {
                Ok((row.get::<_, Option<Vec<u8>>>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))
            });
            row.optional()
        });
        let Some((key, form, content)) = found? else { return Ok(None) };
        let packing = &self.rules.load().packing;
        Ok(Some(packing.unpack(suspect.request_id.as_bytes(), key.as_deref(), form, content)))
    }

    /// It is not to be delivered: it was accepted before, or is no delivery.
    pub(crate) async fn dismiss(&self, suspect: Suspect) -> Result<(), String> {
        let gone = self.write(move |transaction, _| discharge(transaction, suspect.id)).await?;
        self.forget(gone);
        Ok(())
    }

    /// Lets go of some that are too old. True: there may be more.
    pub(crate) async fn expire_quarantine(&self, now: UnixMillis) -> Result<bool, String> {
        let expired = self.write(move |transaction, _| {
            let mut select = transaction.prepare_cached("SELECT id FROM quarantine WHERE expires <= ?1 LIMIT ?2")?;
            let limit = i64::try_from(EXPIRED_IN_A_STEP).unwrap_or(i64::MAX);
            let ids: Vec<i64> =
                select.query_map(params![stored(now), limit], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let gone = ids.iter().filter_map(|id| discharge(transaction, *id).transpose());
            gone.collect::<rusqlite::Result<Vec<Gone>>>()
        });
        let expired = expired.await?;
        let may_be_more = expired.len() == EXPIRED_IN_A_STEP;
        for gone in expired {
            self.forget(Some(gone));
        }
        Ok(may_be_more)
    }

    /// Every source of which something is kept. Blocking.
    pub(crate) fn quarantined(&self) -> Result<Vec<Summary>, String> {
        self.read(|connection| {
            let mut select = connection.prepare(
                "SELECT n.name, count(*), sum(q.size), count(DISTINCT q.client), min(q.received), max(q.received)
                 FROM quarantine q JOIN names n ON n.id = q.source
                 GROUP BY q.source ORDER BY n.name",
            )?;
            let rows = select.query_map([], |row| {
                Ok(Summary {
                    source: row.get(0)?,
                    count: number(row.get(1)?),
                    bytes: number(row.get(2)?),
                    clients: number(row.get(3)?),
                    oldest: time(row.get(4)?),
                    newest: time(row.get(5)?),
                })
            })?;
            rows.collect()
        })
    }

    /// After the commit: only then is there room again.
    fn forget(&self, gone: Option<Gone>) {
        if let Some(Gone { source, client, size }) = gone {
            lock(&self.quarantine.books).forget(&source, &client, size);
        }
    }
}

/// Goes with an append, and comes back saying what it let go of.
#[derive(Clone)]
pub(super) struct Release {
    id: i64,
    // Written by the writer before it answers, read by the asker behind that.
    gone: Arc<Mutex<Option<Gone>>>,
}

impl Release {
    fn of(id: i64) -> Self {
        Self { id, gone: Arc::default() }
    }

    /// In the append's transaction.
    pub(super) fn carry_out(&self, transaction: &Connection) -> rusqlite::Result<()> {
        let gone = discharge(transaction, self.id)?;
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner) = gone;
        Ok(())
    }

    fn gone(&self) -> Option<Gone> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What left the table.
struct Gone {
    source: String,
    client: String,
    size: u64,
}

/// In the transaction of whoever takes it out.
fn discharge(transaction: &Connection, id: i64) -> rusqlite::Result<Option<Gone>> {
    let mut select = transaction.prepare_cached(
        "SELECT n.name, q.client, q.size FROM quarantine q JOIN names n ON n.id = q.source WHERE q.id = ?1",
    )?;
    let gone = select
        .query_row([id], |row| Ok(Gone { source: row.get(0)?, client: row.get(1)?, size: number(row.get(2)?) }))
        .optional()?;
    transaction.prepare_cached("DELETE FROM quarantine WHERE id = ?1")?.execute([id])?;
    Ok(gone)
}

fn number(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

fn time(stored: i64) -> UnixMillis {
    UnixMillis(number(stored))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, NOW, entry, open};
    use super::super::{Meters, Settings};
    use super::*;

    fn inbox(limits: Limits) -> (Arc<Inbox>, Folder) {
        let folder = Folder::new();
        let inbox = open(&folder);
        inbox.quarantine.limit(limits);
        (inbox, folder)
    }

    async fn keep(inbox: &Inbox, client: &str, size: u64) -> Result<(), Dropped> {
        let place = inbox.quarantine.admit(&"shop".into(), &client.into(), size)?;
        let request_id = Uuid::from_bytes(rand::random());
        inbox.confine(place, NOW, request_id, client.as_bytes().to_vec()).await.map_err(|_| Dropped::Unwritten)
    }

    fn kept(inbox: &Inbox) -> Vec<String> {
        let suspects = inbox.suspects("shop", 0).expect("a store that can be read");
        let content = |suspect: &Suspect| {
            let content = inbox.confined(*suspect).expect("a store that can be read");
            content.map(|content| content.expect("it is whole"))
        };
        let text = |content: Vec<u8>| String::from_utf8_lossy(&content).into_owned();
        suspects.iter().filter_map(content).map(text).collect()
    }

    fn count(inbox: &Inbox) -> u64 {
        inbox.quarantine.counts().iter().map(|(_, count)| count).sum()
    }

    #[tokio::test]
    async fn who_comes_when_it_is_full_is_dropped_and_one_client_fills_an_eighth() {
        let (inbox, folder) = inbox(Limits { max_count: 16, max_size: 1 << 20, ..Limits::default() });
        for expected in [Ok(()), Ok(()), Err(Dropped::ShareFull)] {
            assert_eq!(keep(&inbox, "a", 10).await, expected);
        }
        assert_eq!(keep(&inbox, "b", (1 << 17) + 1).await, Err(Dropped::TooLarge));
        assert_eq!(keep(&inbox, "b", 1 << 17).await, Ok(()));
        assert_eq!(keep(&inbox, "b", 1).await, Err(Dropped::ShareFull), "by its bytes");
        for number in 0..13 {
            assert_eq!(keep(&inbox, &format!("c{number}"), 10).await, Ok(()));
        }
        assert_eq!(keep(&inbox, "d", 10).await, Err(Dropped::Full));
        assert_eq!(kept(&inbox)[..3], ["a", "a", "b"], "nobody was pushed out");

        inbox.close().await;
        drop(inbox);
        let inbox = open(&folder);
        inbox.quarantine.limit(Limits { max_count: 16, ..Limits::default() });
        assert_eq!(keep(&inbox, "d", 10).await, Err(Dropped::Full), "and a restart makes no room");
        let (all, _) = (inbox.quarantined().expect("a store that can be read"), folder);
        assert_eq!((all[0].count, all[0].clients, all[0].oldest), (16, 15, NOW));
    }

    #[tokio::test]
    async fn room_that_was_taken_and_not_filled_is_free_again() {
        let (inbox, _folder) = inbox(Limits { max_count: 1, ..Limits::default() });
        let place = inbox.quarantine.admit(&"shop".into(), &"a".into(), 10).expect("room");
        assert_eq!(keep(&inbox, "b", 10).await, Err(Dropped::Full));
        drop(place);
        assert_eq!(keep(&inbox, "b", 10).await, Ok(()));
        assert_eq!((kept(&inbox), count(&inbox)), (vec!["b".to_owned()], 1));
    }

    /// Each source has its own, and a store may serve many.
    #[tokio::test]
    async fn strangers_fill_a_quarter_of_the_store_and_the_rest_is_for_what_is_proven() {
        let folder = Folder::new();
        let of = |max_size| Settings { max_size, ..Settings::new(folder.0.clone()) };
        let inbox = Inbox::open(&of(4 << 20), NOW, Meters::unregistered()).expect("a store");
        let admit = |inbox: &Inbox, source: String, client: &str| {
            inbox.quarantine.admit(&source.into(), &client.into(), 100 << 10)
        };
        let mut places = Vec::new();
        let dropped = loop {
            match admit(&inbox, format!("source-{}", places.len()), "a") {
                Ok(place) => places.push(place),
                Err(dropped) => break dropped,
            }
        };
        assert_eq!((places.len(), dropped), (10, Dropped::Full), "1 MiB of 4");
        places.pop();
        places.push(admit(&inbox, "one".to_owned(), "a").expect("what was given back is room"));
        for place in places {
            inbox.confine(place, NOW, Uuid::from_bytes(rand::random()), b"x".to_vec()).await.expect("it is kept");
        }
        inbox.close().await;
        drop(inbox);
        let inbox = Inbox::open(&of(4 << 20), NOW, Meters::unregistered()).expect("a store");
        assert_eq!(admit(&inbox, "two".to_owned(), "b").unwrap_err(), Dropped::Full, "and a restart makes no room");
        inbox.adjust(of(8 << 20));
        assert!(admit(&inbox, "two".to_owned(), "b").is_ok());
        while inbox.expire_quarantine(NOW.after(Limits::default().max_age)).await.expect("it is let go") {}
        inbox.adjust(of(1 << 20));
        assert!(admit(&inbox, "two".to_owned(), "b").is_ok());
    }

    /// A crash between two writes would lose a request, or keep one that was delivered.
    #[tokio::test]
    async fn a_request_leaves_the_quarantine_in_the_transaction_that_delivers_it_or_not_at_all() {
        let (inbox, folder) = inbox(Limits::default());
        keep(&inbox, "a", 10).await.expect("it is kept");
        let suspect = inbox.suspects("shop", 0).expect("a store that can be read")[0];
        let with = |sql: &'static str| inbox.write(move |connection, _| connection.execute_batch(sql));
        with("CREATE TRIGGER no BEFORE DELETE ON quarantine BEGIN SELECT raise(ABORT, 'no'); END")
            .await
            .expect("a trigger");
        assert!(inbox.append_released(entry("one", None), suspect).await.is_err());
        assert_eq!((kept(&inbox).len(), count(&inbox)), (1, 1));
        assert!(inbox.due("app", 10).expect("a store that can be read").is_empty(), "nothing of it was appended");

        with("DROP TRIGGER no; CREATE TRIGGER no BEFORE INSERT ON contents BEGIN SELECT raise(ABORT, 'no'); END")
            .await
            .expect("a trigger");
        assert!(inbox.append_released(entry("one", None), suspect).await.is_err());
        assert_eq!((kept(&inbox).len(), count(&inbox)), (1, 1), "it did not leave without being appended");

        with("DROP TRIGGER no").await.expect("no trigger");
        inbox.append_released(entry("one", None), suspect).await.expect("it is stored");
        assert_eq!((kept(&inbox).len(), count(&inbox)), (0, 0));
        inbox.close().await;
        drop(inbox);
        let inbox = open(&folder);
        assert_eq!((kept(&inbox).len(), inbox.due("app", 10).expect("a store that can be read").len()), (0, 1));
    }

    #[tokio::test]
    async fn one_that_is_damaged_is_told_apart_from_a_store_that_cannot_be_read() {
        let (inbox, _folder) = inbox(Limits::default());
        keep(&inbox, "a", 10).await.expect("it is kept");
        let suspect = inbox.suspects("shop", 0).expect("a store that can be read")[0];
        assert!(matches!(inbox.confined(suspect), Ok(Some(Ok(content))) if content == b"a"));
        let damage = "UPDATE quarantine SET content = zeroblob(length(content))";
        inbox.write(|connection, _| connection.execute_batch(damage)).await.expect("damaged");
        assert!(matches!(inbox.confined(suspect), Ok(Some(Err(_)))));
    }

    #[tokio::test]
    async fn what_is_too_old_is_let_go_in_small_steps_and_its_room_is_free() {
        let (inbox, _folder) = inbox(Limits::default());
        for number in 0..20 {
            keep(&inbox, &format!("{number}"), 10).await.expect("it is kept");
        }
        let expires = NOW.after(Limits::default().max_age);
        assert_eq!(inbox.expire_quarantine(UnixMillis(expires.0 - 1)).await, Ok(false));
        assert_eq!(count(&inbox), 20);
        assert_eq!(inbox.expire_quarantine(expires).await, Ok(true));
        assert_eq!((kept(&inbox).len(), count(&inbox)), (4, 4));
        assert_eq!(inbox.expire_quarantine(expires).await, Ok(false));
        assert_eq!((kept(&inbox).len(), count(&inbox)), (0, 0));
    }
}
