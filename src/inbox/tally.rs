//! How many tasks there are, by source, upstream and state.
//!
//! Invariant: the table `counts` is changed in the same transaction as the tasks it counts, and what is told from memory
//! is what was committed last. Counting millions of rows at every scrape, or at a start, would take seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

/// Of a task. The numbers are those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    /// To be sent when it is due.
    Waiting = 0,
    /// To be sent when all that is before it in its lane has ended.
    Behind = 1,
    Delivered = 2,
    /// No attempt is left, or the upstream refused it for good.
    Dead = 3,
    /// An operator gave it up.
    Discarded = 4,
}

impl State {
    pub(crate) const ALL: [Self; 5] = [Self::Waiting, Self::Behind, Self::Delivered, Self::Dead, Self::Discarded];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Behind => "behind",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
        }
    }

    pub(crate) fn parse(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.label() == label)
    }

    pub(crate) fn of(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i64 == number)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) source: Arc<str>,
    pub(crate) upstream: Arc<str>,
    pub(crate) state: State,
    pub(crate) tasks: i64,
}

/// What a name is of. The numbers are those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Source = 0,
    Upstream = 1,
}

/// By source, upstream and state.
type Numbers = HashMap<(i64, i64, State), i64>;

/// What a transaction changes, to be written at its end.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    changes: Numbers,
    names: HashMap<(Kind, Arc<str>), i64>,
    /// Names that this transaction made: unknown again when it fails.
    made: Vec<(Kind, Arc<str>)>,
    /// Upstreams whose waiting tasks changed in another way than by an append: their feeds look again.
    touched: Vec<i64>,
}

impl Tally {
    pub(crate) fn add(&mut self, source: i64, upstream: i64, state: State, more: i64) {
        *self.changes.entry((source, upstream, state)).or_default() += more;
    }

    /// Waiting tasks of this upstream are there that its feed has not heard of.
    pub(crate) fn touch(&mut self, upstream: i64) {
        if !self.touched.contains(&upstream) {
            self.touched.push(upstream);
        }
    }

    /// The number of a name; a new one gets one.
    pub(crate) fn id(&mut self, connection: &Connection, kind: Kind, name: &str) -> rusqlite::Result<i64> {
        let key = (kind, Arc::from(name));
        if let Some(id) = self.names.get(&key) {
            return Ok(*id);
        }
        let id = match known(connection, kind, name)? {
            Some(id) => id,
            None => {
                connection
                    .prepare_cached("INSERT INTO names (kind, name) VALUES (?1, ?2)")?
                    .execute(params![kind as i64, name])?;
                self.made.push(key.clone());
                connection.last_insert_rowid()
            }
        };
        self.names.insert(key, id);
        Ok(id)
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let mut upsert = connection.prepare_cached(
            "INSERT INTO counts VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (source, upstream, state) DO UPDATE SET n = n + excluded.n",
        )?;
        for ((source, upstream, state), more) in &self.changes {
            if *more != 0 {
                upsert.execute(params![source, upstream, *state as i64, more])?;
            }
        }
        Ok(())
    }

    /// The transaction failed.
    pub(super) fn forget(&mut self) {
        self.changes.clear();
        self.touched.clear();
        for made in self.made.drain(..) {
            self.names.remove(&made);
        }
    }

    /// The transaction was committed: what it changed is known from now on. The names of the upstreams touched.
    pub(super) fn publish(&mut self, counts: &Counts) -> Vec<Arc<str>> {
        let touched = std::mem::take(&mut self.touched);
        let upstreams = self.names.iter().filter(|((kind, _), id)| *kind == Kind::Upstream && touched.contains(id));
        let upstreams = upstreams.map(|((_, name), _)| name.clone()).collect();
        let mut known = counts.lock();
        for (kind, name) in self.made.drain(..) {
            if let Some(id) = self.names.get(&(kind, name.clone())) {
                known.names.insert((kind, *id), name);
            }
        }
        for (key, more) in self.changes.drain() {
            *known.numbers.entry(key).or_default() += more;
        }
        upstreams
    }
}

pub(super) fn known(connection: &Connection, kind: Kind, name: &str) -> rusqlite::Result<Option<i64>> {
    let mut select = connection.prepare_cached("SELECT id FROM names WHERE kind = ?1 AND name = ?2")?;
    select.query_row(params![kind as i64, name], |row| row.get(0)).optional()
}

#[derive(Default)]
pub(crate) struct Counts(Mutex<Known>);

#[derive(Default)]
struct Known {
    numbers: Numbers,
    names: HashMap<(Kind, i64), Arc<str>>,
}

impl Counts {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut known = Known::default();
        let mut names = connection.prepare("SELECT kind, id, name FROM names")?;
        let mut rows = names.query([])?;
        while let Some(row) = rows.next()? {
            let kind = if row.get::<_, i64>(0)? == Kind::Source as i64 { Kind::Source } else { Kind::Upstream };
            known.names.insert((kind, row.get(1)?), row.get::<_, String>(2)?.into());
        }
        let mut numbers = connection.prepare("SELECT source, upstream, state, n FROM counts")?;
        let mut rows = numbers.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(state) = State::of(row.get(2)?) {
                known.numbers.insert((row.get(0)?, row.get(1)?, state), row.get(3)?);
            }
        }
        Ok(Self(Mutex::new(known)))
    }

    pub(super) fn all(&self) -> Vec<Count> {
        let known = self.lock();
        let name = |kind, id: i64| known.names.get(&(kind, id)).cloned().unwrap_or_default();
        let all = known.numbers.iter().map(|((source, upstream, state), tasks)| Count {
            source: name(Kind::Source, *source),
            upstream: name(Kind::Upstream, *upstream),
            state: *state,
            tasks: *tasks,
        });
        all.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
