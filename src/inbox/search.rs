//! What an operator asks of the store and does with it: find, show, deliver again, discard, count.
//! One file: what is found is what is changed, by the same walk over the same rows.
//!
//! Invariant: nothing here stalls an append, however many rows there are. A question walks the rows in steps, each a read
//! transaction of its own over at most [`STEP`] deliveries, and stops after [`PATIENCE`] with a cursor to go on from; a
//! change is made [`CHANGES`] rows at a time in the writer's own transactions, and only to a task that is still in the
//! state it was found in. Values reach SQL as parameters alone.
//!
//! # In whose hands is a task?
//!
//! The dispatcher may hold a task that an operator changes; nothing waits for it. An attempt that ends after its task was
//! discarded, or given a new generation, is not recorded: it names a generation that is no longer there. A task that was
//! made due at once while it is being sent stays the same task: that attempt counts.
//!
//! # Order
//!
//! Cursors go by (seq, upstream), so no row is met twice in one walk, whatever becomes of it. Retries walk from the oldest:
//! of one lane the first then stands before those behind it. Discards walk from the newest: what is let past by a discard
//! has been passed already, and is not discarded in its turn.

use super::rows::{has_unended, promote};
use super::tally::{Kind, State, Tally};
use super::{Inbox, disk};
use crate::clock::UnixMillis;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Deliveries in one read transaction: some milliseconds.
const STEP: i64 = 5_000;

/// Tasks in one write transaction.
const CHANGES: usize = 200;

/// How long one page is looked for.
const PATIENCE: Duration = Duration::from_millis(500);

/// By how much the order of arrival may differ from that of acceptance: a slow body lies between.
const SLACK: Duration = Duration::from_secs(600);

/// Of ids in one question.
pub(crate) const MOST_IDS: usize = 1_000;

/// What to look for. Several values of one kind: any of them; several kinds: all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) sources: Vec<String>,
    pub(crate) upstreams: Vec<String>,
    pub(crate) states: Vec<State>,
    pub(crate) since: Option<UnixMillis>,
    /// Exclusive.
    pub(crate) until: Option<UnixMillis>,
    pub(crate) events: Vec<Glob>,
    pub(crate) ids: Vec<Id>,
}

impl Filter {
    /// Everything there is: for a change that has to be said.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { sources, upstreams, states, since, until, events, ids } = self;
        sources.is_empty()
            && upstreams.is_empty()
            && states.is_empty()
            && since.is_none()
            && until.is_none()
            && events.is_empty()
            && ids.is_empty()
    }
}

/// A text in which `*` stands for any text.
#[derive(Clone, Debug)]
pub(crate) struct Glob(String);

impl Glob {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Each part is taken where it is found first: with no other wildcard than `*` that is never wrong.
    fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut parts: Vec<_> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            let Some(at) = text.find(part) else { return false };
            text = text.get(at + part.len()..).unwrap_or_default();
        }
        text.ends_with(last)
    }
}

/// Under which name a delivery is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    Seq(i64),
    Request(Uuid),
    Delivery(String),
    Event(String),
    /// A number or a request id, where there is one; else a delivery's or an event's.
    Any(String),
}

impl Id {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let named = text.split_once(':');
        match named {
            Some(("seq", number)) => match number.parse() {
                Ok(seq) => Ok(Self::Seq(seq)),
                Err(_) => Err(format!("{text:?} is no number of a delivery")),
            },
            Some(("request", id)) => match Uuid::parse_str(id) {
                Ok(id) => Ok(Self::Request(id)),
                Err(_) => Err(format!("{text:?} is no request id: these are UUIDs")),
            },
            Some(("delivery", id)) => Ok(Self::Delivery(id.to_owned())),
            Some(("event", id)) => Ok(Self::Event(id.to_owned())),
            _ if text.is_empty() => Err("an id is empty".to_owned()),
            _ => Ok(Self::Any(text.to_owned())),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    OldestFirst,
    NewestFirst,
}

/// Where a walk stands: it goes on after this task, and never beyond the last delivery that there was when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    seq: i64,
    upstream: i64,
    last: i64,
}

impl Cursor {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(|part| part.parse().ok().filter(|number: &i64| *number >= 0));
        let cursor = Self { seq: parts.next()??, upstream: parts.next()??, last: parts.next()?? };
        parts.next().is_none().then_some(cursor)
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.seq, self.upstream, self.last)
    }
}

/// A task and the delivery it belongs to, without content.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) seq: i64,
    upstream_id: i64,
    pub(crate) source: Arc<str>,
    pub(crate) upstream: Arc<str>,
    pub(crate) state: State,
    pub(crate) attempts: u32,
    pub(crate) generation: u32,
    /// By the inbox's steady clock.
    pub(crate) due: UnixMillis,
    pub(crate) finished: Option<UnixMillis>,
    pub(crate) status: Option<u16>,
    pub(crate) note: Option<String>,
    pub(crate) received: UnixMillis,
    pub(crate) request_id: Uuid,
    pub(crate) delivery_id: String,
    pub(crate) event_id: Option<String>,
    pub(crate) event_type: Option<String>,
    /// Of the body.
    pub(crate) length: u64,
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) found: Vec<Found>,
    /// `None`: there is nothing more. A page without anything found may still have a next one.
    pub(crate) next: Option<Cursor>,
    /// The last delivery that there was when the walk began.
    last: i64,
}

impl Page {
    /// Goes on behind this delivery, whatever more of it there is.
    pub(crate) fn behind(&self, seq: i64) -> Cursor {
        Cursor { seq, upstream: i64::MAX, last: self.last }
    }
}

/// One page of what matches: at most `most` tasks, blocking for about [`PATIENCE`] at most.
pub(crate) fn page(
    inbox: &Inbox,
    filter: &Filter,
    order: Order,
    after: Option<Cursor>,
    most: usize,
) -> Result<Page, String> {
    let began = Instant::now();
    let Some(mut walk) = inbox.read(|connection| Walk::prepare(connection, filter, order, after))? else {
        return Ok(Page { found: Vec::new(), next: None, last: 0 });
    };
    let last = walk.at.last;
    let mut found = Vec::new();
    loop {
        let ended = inbox.read(|connection| walk.step(connection, most, &mut found))?;
        if ended {
            return Ok(Page { found, next: None, last });
        }
        if found.len() >= most || began.elapsed() >= PATIENCE {
            return Ok(Page { found, next: Some(walk.at), last });
        }
    }
}

/// A question with its names and ids looked up, and how far it has got.
struct Walk {
    order: Order,
    at: Cursor,
    /// Inclusive: what the times of the question leave.
    first: i64,
    last: i64,
    /// Only these, all of them known; or whatever else matches.
    seqs: Option<Vec<i64>>,
    /// Conditions in SQL and their values.
    conditions: Vec<String>,
    values: Vec<Value>,
    events: Vec<Glob>,
    looks_for_ids: bool,
    /// Only tasks that have not ended, which have an index of their own: (upstream, source).
    unended: Option<Vec<(i64, i64)>>,
    names: HashMap<i64, Arc<str>>,
}

impl Walk {
    /// `None`: nothing can match.
    fn prepare(
        connection: &Connection,
        filter: &Filter,
        order: Order,
        after: Option<Cursor>,
    ) -> rusqlite::Result<Option<Self>> {
        let mut names = HashMap::new();
        let mut ids = HashMap::new();
        let mut statement = connection.prepare_cached("SELECT id, kind, name FROM names")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, kind, name): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            names.insert(id, Arc::from(name.as_str()));
            ids.insert((kind, name), id);
        }
        let known = |kind: Kind, asked: &[String]| -> Vec<i64> {
            asked.iter().filter_map(|name| ids.get(&(kind as i64, name.clone())).copied()).collect()
        };
        let sources = known(Kind::Source, &filter.sources);
        let upstreams = known(Kind::Upstream, &filter.upstreams);
        if sources.is_empty() != filter.sources.is_empty() || upstreams.is_empty() != filter.upstreams.is_empty() {
            return Ok(None);
        }
        let end = |which: &str| {
            let select = format!("SELECT {which}(seq) FROM deliveries");
            connection.query_row(&select, [], |row| row.get::<_, Option<i64>>(0))
        };
        let (Some(lowest), Some(highest)) = (end("min")?, end("max")?) else { return Ok(None) };
        let highest = after.map_or(highest, |after| after.last.min(highest));
        let first = match filter.since {
            Some(since) => first_received(connection, UnixMillis(since.0.saturating_sub(millis(SLACK))), lowest)?,
            None => lowest,
        };
        let last = match filter.until {
            Some(until) => first_received(connection, until.after(SLACK), lowest)?.saturating_sub(1).min(highest),
            None => highest,
        };

        let mut walk = Self {
            order,
            at: after.unwrap_or(match order {
                Order::OldestFirst => Cursor { seq: first.saturating_sub(1), upstream: i64::MAX, last: highest },
                Order::NewestFirst => Cursor { seq: last, upstream: i64::MAX, last: highest },
            }),
            first,
            last,
            seqs: None,
            conditions: Vec::new(),
            values: Vec::new(),
            events: filter.events.clone(),
            looks_for_ids: false,
            unended: None,
            names,
        };
        walk.only("t.source", &sources);
        walk.only("t.upstream", &upstreams);
        let states: Vec<i64> = filter.states.iter().map(|state| *state as i64).collect();
        walk.only("t.state", &states);
        if !filter.states.is_empty() && filter.states.iter().all(|state| *state <= State::Behind) {
            walk.unended = Some(unended(connection, &upstreams, &sources)?);
        }
        if let Some(since) = filter.since {
            walk.when("d.received >= ?", disk::stored(since));
        }
        if let Some(until) = filter.until {
            walk.when("d.received < ?", disk::stored(until));
        }
        if !filter.ids.is_empty() {
            walk.only_these(connection, &filter.ids)?;
        }
        Ok(Some(walk))
    }

    fn when(&mut self, condition: &str, value: i64) {
        self.conditions.push(condition.to_owned());
        self.values.push(Value::Integer(value));
    }

    fn only(&mut self, column: &str, values: &[i64]) {
        if !values.is_empty() {
            self.conditions.push(format!("{column} IN ({})", marks(values.len())));
            self.values.extend(values.iter().map(|value| Value::Integer(*value)));
        }
    }

    /// Numbers and request ids are found by an index; what the sender called its delivery is looked for row by row, since
    /// an index of random ids would make every append write all over the file.
    fn only_these(&mut self, connection: &Connection, ids: &[Id]) -> rusqlite::Result<()> {
        let mut seqs = BTreeSet::new();
        let (mut deliveries, mut events) = (Vec::new(), Vec::new());
        let by_request = |id: &Uuid| {
            let select = "SELECT seq FROM deliveries WHERE request_id = ?1";
            connection.query_row(select, [id.as_bytes()], |row| row.get::<_, i64>(0)).optional()
        };
        let is_there = |seq: i64| {
            let select = "SELECT 1 FROM deliveries WHERE seq = ?1";
            connection.query_row(select, [seq], |_| Ok(())).optional()
        };
        for id in ids {
            match id {
                Id::Seq(seq) => drop(seqs.insert(*seq)),
                Id::Request(id) => seqs.extend(by_request(id)?),
                Id::Delivery(id) => deliveries.push(id),
                Id::Event(id) => events.push(id),
                Id::Any(text) => {
                    let by_number = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
                    if let Some(seq) = by_number
                        && is_there(seq)?.is_some()
                    {
                        seqs.insert(seq);
                    } else if let Ok(id) = Uuid::parse_str(text)
                        && let Some(seq) = by_request(&id)?
                    {
                        seqs.insert(seq);
                    } else {
                        deliveries.push(text);
                        events.push(text);
                    }
                }
            }
        }
        if deliveries.is_empty() && events.is_empty() {
            self.seqs = Some(seqs.into_iter().collect());
            return Ok(());
        }
        self.looks_for_ids = true;
        let texts = [("d.delivery_id", deliveries), ("d.event_id", events)];
        let texts = texts.into_iter().filter(|(_, texts)| !texts.is_empty());
        let mut any: Vec<_> = texts
            .map(|(column, texts)| {
                self.values.extend(texts.iter().map(|text| Value::Text((*text).clone())));
                format!("{column} IN ({})", marks(texts.len()))
            })
            .collect();
        if !seqs.is_empty() {
            any.push(format!("d.seq IN ({})", marks(seqs.len())));
            self.values.extend(seqs.into_iter().map(Value::Integer));
        }
        self.conditions.push(format!("({})", any.join(" OR ")));
        Ok(())
    }

    /// Looks through the next step and moves on. True: that was the last.
    fn step(&mut self, connection: &Connection, most: usize, found: &mut Vec<Found>) -> rusqlite::Result<bool> {
        if let Some(seqs) = self.seqs.clone() {
            let mut conditions = vec![format!("t.seq IN ({})", marks(seqs.len()))];
            conditions.push(self.beyond().to_owned());
            let mut values: Vec<_> = seqs.into_iter().map(Value::Integer).collect();
            values.extend([Value::Integer(self.at.seq), Value::Integer(self.at.upstream)]);
            return self.look(connection, conditions, values, most, found);
        }
        let Some(next) = self.next_candidate(connection)? else { return Ok(true) };
        let (low, high) = match self.order {
            Order::OldestFirst => (next, next.saturating_add(STEP - 1).min(self.last)),
            Order::NewestFirst => (next.saturating_sub(STEP - 1).max(self.first), next),
        };
        let conditions = vec!["t.seq BETWEEN ? AND ?".to_owned(), self.beyond().to_owned()];
        let values = [low, high, self.at.seq, self.at.upstream].into_iter().map(Value::Integer).collect();
        if !self.look(connection, conditions, values, most, found)? {
            return Ok(false);
        }
        match self.order {
            Order::OldestFirst => (self.at.seq, self.at.upstream) = (high, i64::MAX),
            Order::NewestFirst => (self.at.seq, self.at.upstream) = (low, 0),
        }
        Ok(match self.order {
            Order::OldestFirst => high >= self.last,
            Order::NewestFirst => low <= self.first,
        })
    }

    fn beyond(&self) -> &'static str {
        match self.order {
            Order::OldestFirst => "(t.seq, t.upstream) > (?, ?)",
            Order::NewestFirst => "(t.seq, t.upstream) < (?, ?)",
        }
    }

    /// The next delivery that may match: long stretches that were pruned, or where everything has ended, are passed over.
    fn next_candidate(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        // The cursor's own delivery may have further tasks.
        let from = match self.order {
            Order::OldestFirst => self.at.seq.max(self.first),
            Order::NewestFirst => self.at.seq.min(self.last),
        };
        let (which, compare) = match self.order {
            Order::OldestFirst => ("min", ">="),
            Order::NewestFirst => ("max", "<="),
        };
        let next = match &self.unended {
            None => {
                let select = format!("SELECT {which}(seq) FROM deliveries WHERE seq {compare} ?1");
                connection.prepare_cached(&select)?.query_row([from], |row| row.get(0))?
            }
            Some(pairs) => {
                let select = format!(
                    "SELECT {which}(seq) FROM tasks WHERE upstream = ?1 AND source = ?2 AND state < 2 AND seq {compare} ?3"
                );
                let mut statement = connection.prepare_cached(&select)?;
                let mut next: Option<i64> = None;
                for (upstream, source) in pairs {
                    let one: Option<i64> = statement.query_row([*upstream, *source, from], |row| row.get(0))?;
                    next = match (next, one, self.order) {
                        (Some(a), Some(b), Order::OldestFirst) => Some(a.min(b)),
                        (Some(a), Some(b), Order::NewestFirst) => Some(a.max(b)),
                        (a, b, _) => a.or(b),
                    };
                }
                next
            }
        };
        Ok(next.filter(|next: &i64| (self.first..=self.last).contains(next)))
    }

    /// True: all rows were looked at. Otherwise `most` were found, and the cursor stands at the last of them.
    fn look(
        &mut self,
        connection: &Connection,
        mut conditions: Vec<String>,
        mut values: Vec<Value>,
        most: usize,
        found: &mut Vec<Found>,
    ) -> rusqlite::Result<bool> {
        conditions.extend(self.conditions.iter().cloned());
        values.extend(self.values.iter().cloned());
        // Which table is walked and which is looked into: ids stand in the deliveries, all else in the tasks.
        let tables = match self.looks_for_ids {
            true => "deliveries AS d CROSS JOIN tasks AS t ON t.seq = d.seq",
            false => "tasks AS t CROSS JOIN deliveries AS d ON d.seq = t.seq",
        };
        let direction = match self.order {
            Order::OldestFirst => "t.seq, t.upstream",
            Order::NewestFirst => "t.seq DESC, t.upstream DESC",
        };
        let conditions = conditions.join(" AND ");
        let conditions = if self.looks_for_ids { conditions.replacen("t.seq", "d.seq", 1) } else { conditions };
        let select = format!(
            "SELECT t.seq, t.upstream, t.source, t.state, t.attempts, t.generation, t.due, t.finished, t.status, t.note,
                    d.received, d.request_id, d.delivery_id, d.event_id, d.event_type, d.length
             FROM {tables} WHERE {conditions} ORDER BY {direction}"
        );
        let mut statement = connection.prepare_cached(&select)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            let one = self.read(row)?;
            let event = one.event_type.as_deref().unwrap_or_default();
            if !self.events.is_empty() && !self.events.iter().any(|glob| glob.matches(event)) {
                continue;
            }
            if found.len() >= most {
                return Ok(false);
            }
            (self.at.seq, self.at.upstream) = (one.seq, one.upstream_id);
            found.push(one);
        }
        Ok(true)
    }

    fn read(&self, row: &Row<'_>) -> rusqlite::Result<Found> {
        let name = |id: i64| self.names.get(&id).cloned().unwrap_or_else(|| "?".into());
        let upstream_id = row.get(1)?;
        Ok(Found {
            seq: row.get(0)?,
            upstream_id,
            source: name(row.get(2)?),
            upstream: name(upstream_id),
            // Of a newer format there is none: that was refused at start.
            state: State::of(row.get(3)?).unwrap_or(State::Dead),
            attempts: row.get(4)?,
            generation: row.get(5)?,
            due: at(row.get::<_, Option<i64>>(6)?.unwrap_or_default()),
            finished: row.get::<_, Option<i64>>(7)?.map(at),
            status: row.get(8)?,
            note: row.get(9)?,
            received: at(row.get(10)?),
            request_id: row.get::<_, [u8; 16]>(11).map(Uuid::from_bytes)?,
            delivery_id: row.get(12)?,
            event_id: row.get(13)?,
            event_type: row.get(14)?,
            length: u64::try_from(row.get::<_, i64>(15)?).unwrap_or_default(),
        })
    }
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn at(stored: i64) -> UnixMillis {
    UnixMillis(u64::try_from(stored).unwrap_or_default())
}

/// (upstream, source) with tasks that have not ended.
fn unended(connection: &Connection, upstreams: &[i64], sources: &[i64]) -> rusqlite::Result<Vec<(i64, i64)>> {
    let select = "SELECT DISTINCT upstream, source FROM counts WHERE state < 2 AND n > 0";
    let mut statement = connection.prepare_cached(select)?;
    let pairs = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let wanted = |(upstream, source): &(i64, i64)| {
        (upstreams.is_empty() || upstreams.contains(upstream)) && (sources.is_empty() || sources.contains(source))
    };
    pairs.filter(|pair| pair.as_ref().map_or(true, wanted)).collect()
}

/// The first delivery that was received at this time or later, or the number after the last: numbers are given in the order
/// of acceptance, so halving finds it.
fn first_received(connection: &Connection, time: UnixMillis, lowest: i64) -> rusqlite::Result<i64> {
    let highest: Option<i64> = connection.query_row("SELECT max(seq) FROM deliveries", [], |row| row.get(0))?;
    let (mut low, mut high) = (lowest, highest.unwrap_or(lowest).saturating_add(1));
    let mut statement =
        connection.prepare_cached("SELECT seq, received FROM deliveries WHERE seq >= ?1 ORDER BY seq LIMIT 1")?;
    while low < high {
        let middle = low + (high - low) / 2;
        let next =
            statement.query_row([middle], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).optional()?;
        match next {
            Some((seq, received)) if at(received) < time => low = seq.saturating_add(1),
            _ => high = middle,
        }
    }
    Ok(low)
}

/// What is done to tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Ended ones begin anew, waiting ones are due: the first at `from` (by the steady clock), each further one `gap`
    /// microseconds later.
    Retry {
        from: UnixMillis,
        gap: u64,
    },
    Discard,
}

impl Change {
    fn order(self) -> Order {
        match self {
            Self::Retry { .. } => Order::OldestFirst,
            Self::Discard => Order::NewestFirst,
        }
    }

    fn can_touch(self, state: State) -> bool {
        match (self, state) {
            (Self::Retry { .. }, State::Behind) => false,
            (Self::Retry { .. }, _) => true,
            (Self::Discard, State::Waiting | State::Behind | State::Dead) => true,
            (Self::Discard, State::Delivered | State::Discarded) => false,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Changed {
    /// That match and could be changed.
    pub(crate) matched: u64,
    /// Fewer, where a task went on meanwhile.
    pub(crate) changed: u64,
    /// Of these, retried ones that come when it is their turn in their lane.
    pub(crate) behind: u64,
    /// When the next one would be due.
    pub(crate) from: Option<UnixMillis>,
    pub(crate) next: Option<Cursor>,
}

/// Changes at most `most` of what matches, and at most [`CHANGES`].
pub(crate) async fn change(
    inbox: &Arc<Inbox>,
    mut filter: Filter,
    change: Change,
    after: Option<Cursor>,
    most: usize,
    is_trial: bool,
) -> Result<Changed, String> {
    if filter.states.is_empty() {
        filter.states = State::ALL.to_vec();
    }
    filter.states.retain(|state| change.can_touch(*state));
    if filter.states.is_empty() {
        return Ok(Changed { matched: 0, changed: 0, behind: 0, from: None, next: None });
    }
    let states = filter.states.clone();
    let searching = Arc::clone(inbox);
    let searched =
        tokio::task::spawn_blocking(move || page(&searching, &filter, change.order(), after, most.min(CHANGES)));
    let Page { found, next, .. } = searched.await.map_err(|_| "the search failed".to_owned())??;
    let matched = found.len() as u64;
    let from = match change {
        Change::Retry { from, gap } => Some(UnixMillis(from.0.saturating_add(matched.saturating_mul(gap) / 1000))),
        Change::Discard => None,
    };
    if is_trial || found.is_empty() {
        return Ok(Changed { matched, changed: 0, behind: 0, from, next });
    }
    let now = inbox.now();
    let (changed, behind) = inbox
        .write(move |transaction, tally| {
            let (mut changed, mut behind) = (0, 0);
            for (place, one) in (0_u64..).zip(&found) {
                let became = match change {
                    Change::Retry { from, gap } => {
                        let due = UnixMillis(from.0.saturating_add(place.saturating_mul(gap) / 1000));
                        retry(transaction, tally, one, &states, due)?
                    }
                    Change::Discard => discard(transaction, tally, one, &states, now)?,
                };
                changed += u64::from(became.is_some());
                behind += u64::from(became == Some(State::Behind));
            }
            Ok((changed, behind))
        })
        .await?;
    Ok(Changed { matched, changed, behind, from, next })
}

/// What became of it; `None` where it is no longer in one of these states.
fn retry(
    connection: &Connection,
    tally: &mut Tally,
    found: &Found,
    states: &[State],
    due: UnixMillis,
) -> rusqlite::Result<Option<State>> {
    let Some(task) = Current::read(connection, tally, found, states)? else { return Ok(None) };
    let due = disk::stored(due);
    if task.state == State::Waiting {
        connection.prepare_cached("UPDATE tasks SET due = ?3 WHERE seq = ?1 AND upstream = ?2")?.execute(params![
            found.seq,
            task.upstream,
            due
        ])?;
        tally.touch(task.upstream);
        return Ok(Some(State::Waiting));
    }
    let becomes = match task.lane {
        Some(lane) if has_unended(connection, task.upstream, lane)? => State::Behind,
        Some(_) | None => State::Waiting,
    };
    connection
        .prepare_cached(
            "UPDATE tasks SET state = ?3, due = ?4, attempts = 0, generation = generation + 1, finished = NULL
             WHERE seq = ?1 AND upstream = ?2",
        )?
        .execute(params![found.seq, task.upstream, becomes as i64, due])?;
    tally.add(task.source, task.upstream, task.state, -1);
    tally.add(task.source, task.upstream, becomes, 1);
    tally.touch(task.upstream);
    Ok(Some(becomes))
}

fn discard(
    connection: &Connection,
    tally: &mut Tally,
    found: &Found,
    states: &[State],
    now: UnixMillis,
) -> rusqlite::Result<Option<State>> {
    let Some(task) = Current::read(connection, tally, found, states)? else { return Ok(None) };
    connection
        .prepare_cached("UPDATE tasks SET state = ?3, finished = ?4 WHERE seq = ?1 AND upstream = ?2")?
        .execute(params![found.seq, task.upstream, State::Discarded as i64, disk::stored(now)])?;
    tally.add(task.source, task.upstream, task.state, -1);
    tally.add(task.source, task.upstream, State::Discarded, 1);
    if let Some(lane) = task.lane {
        promote(connection, tally, task.upstream, lane, now)?;
    }
    Ok(Some(State::Discarded))
}

/// A task as the writer's transaction finds it.
struct Current {
    state: State,
    source: i64,
    upstream: i64,
    lane: Option<i64>,
}

impl Current {
    fn read(
        connection: &Connection,
        tally: &mut Tally,
        found: &Found,
        states: &[State],
    ) -> rusqlite::Result<Option<Self>> {
        // By its name, so that the writer knows whose feed is to look again.
        let upstream = tally.id(connection, Kind::Upstream, &found.upstream)?;
        let mut select =
            connection.prepare_cached("SELECT state, source, lane FROM tasks WHERE seq = ?1 AND upstream = ?2")?;
        let task = select
            .query_row(params![found.seq, upstream], |row| Ok((State::of(row.get(0)?), row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((Some(state), source, lane)) = task else { return Ok(None) };
        Ok(states.contains(&state).then_some(Self { state, source, upstream, lane }))
    }
}

/// When the oldest delivery of a source that an upstream has not had was received.
pub(crate) struct Oldest {
    pub(crate) source: Arc<str>,
    pub(crate) upstream: Arc<str>,
    pub(crate) received: UnixMillis,
}

/// By source and upstream, where there is one. Blocking.
pub(crate) fn oldest(inbox: &Inbox) -> Result<Vec<Oldest>, String> {
    inbox.read(|connection| {
        let mut select = connection.prepare_cached(
            "SELECT s.name, u.name, d.received FROM deliveries d, names s, names u
             WHERE s.id = ?1 AND u.id = ?2
               AND d.seq = (SELECT min(seq) FROM tasks WHERE upstream = ?2 AND source = ?1 AND state < 2)",
        )?;
        let mut all = Vec::new();
        for (upstream, source) in unended(connection, &[], &[])? {
            let one = select.query_row(params![source, upstream], |row| {
                Ok(Oldest {
                    source: row.get::<_, String>(0)?.into(),
                    upstream: row.get::<_, String>(1)?.into(),
                    received: at(row.get(2)?),
                })
            });
            all.extend(one.optional()?);
        }
        Ok(all)
    })
}

/// Bytes of the database, and how many of them are free to be filled again.
pub(crate) fn size(inbox: &Inbox) -> Result<(u64, u64), String> {
    inbox.read(|connection| {
        let number = |pragma| {
            let number = connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
            number.map(|number| u64::try_from(number).unwrap_or_default())
        };
        let page = number("page_size")?;
        Ok((number("page_count")?.saturating_mul(page), number("freelist_count")?.saturating_mul(page)))
    })
}
