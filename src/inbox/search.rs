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

use super::Inbox;
use super::rows::{has_unended, promote};
use super::tally::{Kind, State, Tally};
use crate::clock::UnixMillis;
use crate::database::stored;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Deliveries in one read transaction: some milliseconds.
const STEP: i64 = 5_000;

/// Tasks in one write transaction.
const CHANGES: usize = 500;

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
            walk.when("d.received >= ?", stored(since));
        }
        if let Some(until) = filter.until {
            walk.when("d.received < ?", stored(until));
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
            if !self.events.is_empty() {
                let event = row.get_ref(14)?.as_str_or_null()?.unwrap_or_default();
                if !self.events.iter().any(|glob| glob.matches(event)) {
                    continue;
                }
            }
            if found.len() >= most {
                return Ok(false);
            }
            let one = self.read(row)?;
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
/// of acceptance, so halving finds it. (Where the machine's clock was set back between two runs, some of those around it may
/// be missed.)
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
    let due = stored(due);
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
        .execute(params![found.seq, task.upstream, State::Discarded as i64, stored(now)])?;
    tally.add(task.source, task.upstream, task.state, -1);
    tally.add(task.source, task.upstream, State::Discarded, 1);
    // It may be in memory already, about to be sent.
    tally.touch(task.upstream);
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

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, NOW, ended, entry, open};
    use super::super::{Attempt, End, Entry, Loaded, NewTask, TaskKey};
    use super::*;

    fn of(source: &str, upstreams: &[&str], body: &str, event: &str) -> Entry {
        let tasks = upstreams.iter().map(|name| NewTask { upstream: (*name).into(), path: None, lane: None }).collect();
        Entry { source: source.into(), event_type: Some(event.to_owned()), tasks, ..entry(body, None) }
    }

    fn all(inbox: &Inbox, filter: &Filter, order: Order, most: usize) -> Vec<String> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = page(inbox, filter, order, after, most).expect("a store that can be read");
            assert!(page.found.len() <= most);
            let named = |found: &Found| format!("{}>{}", found.event_id.as_deref().unwrap_or_default(), found.upstream);
            found.extend(page.found.iter().map(named));
            match page.next {
                // Cursors go over the wire.
                Some(next) => after = Cursor::parse(&next.to_string()),
                None => return found,
            }
        }
    }

    fn newest(inbox: &Inbox, filter: &Filter) -> Vec<String> {
        all(inbox, filter, Order::NewestFirst, 1_000)
    }

    fn one(inbox: &Inbox, id: &str) -> Found {
        let filter = Filter { ids: vec![Id::parse(id).expect("an id")], ..Filter::default() };
        let mut page = page(inbox, &filter, Order::NewestFirst, None, 10).expect("a store that can be read");
        assert_eq!(page.found.len(), 1, "{id}");
        page.found.remove(0)
    }

    fn key(found: &Found) -> TaskKey {
        TaskKey { seq: found.seq, upstream: found.upstream.clone(), generation: found.generation }
    }

    async fn end(inbox: &Inbox, id: &str, end: End) {
        inbox.settle(&key(&one(inbox, id)), ended(end)).await.expect("a settlement");
    }

    fn now() -> Change {
        Change::Retry { from: UnixMillis(5), gap: 0 }
    }

    fn only(states: &[State]) -> Filter {
        Filter { states: states.to_vec(), ..Filter::default() }
    }

    /// What is counted is what there is.
    fn assert_counts_are_exact(inbox: &Inbox) {
        let counted = "SELECT source, upstream, state, n FROM counts WHERE n <> 0 ORDER BY 1, 2, 3";
        let there = "SELECT source, upstream, state, count(*) FROM tasks GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
        let rows = |select: &'static str| {
            inbox
                .read(move |connection| {
                    let mut select = connection.prepare(select)?;
                    let rows = select
                        .query_map([], |row| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
                    rows.collect::<rusqlite::Result<Vec<_>>>()
                })
                .expect("a store that can be read")
        };
        assert_eq!(rows(counted), rows(there));
    }

    #[tokio::test]
    async fn every_filter_finds_what_it_names_and_nothing_else() {
        let folder = Folder::new();
        let inbox = open(&folder);
        for (at, entry) in [
            of("shop", &["app", "billing"], "1a", "order.paid"),
            of("shop", &["app"], "2b", "order.created"),
            of("github", &["app"], "3c", "push"),
            of("github", &["ci"], "4d", "pull_request"),
        ]
        .into_iter()
        .enumerate()
        {
            inbox.append(Entry { received: NOW.after(Duration::from_secs(at as u64)), ..entry }).await.expect("room");
        }
        end(&inbox, "3c", End::Dead).await;
        end(&inbox, "4d", End::Delivered).await;
        let everything = Filter::default();
        assert_eq!(newest(&inbox, &everything), ["4d>ci", "3c>app", "2b>app", "1a>billing", "1a>app"]);
        let text = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let globs = |list: &[&str]| list.iter().map(|text| Glob::new(text)).collect::<Vec<_>>();
        let second = |at: u64| Some(NOW.after(Duration::from_secs(at)));
        for (filter, found) in [
            (Filter { sources: text(&["github"]), ..everything.clone() }, &["4d>ci", "3c>app"][..]),
            (Filter { sources: text(&["github", "nobody"]), ..everything.clone() }, &["4d>ci", "3c>app"]),
            (Filter { sources: text(&["nobody"]), ..everything.clone() }, &[]),
            // A source's name is no upstream's.
            (Filter { upstreams: text(&["shop"]), ..everything.clone() }, &[]),
            (Filter { upstreams: text(&["app"]), ..everything.clone() }, &["3c>app", "2b>app", "1a>app"]),
            (only(&[State::Dead]), &["3c>app"]),
            (only(&[State::Dead, State::Delivered]), &["4d>ci", "3c>app"]),
            (only(&[State::Waiting]), &["2b>app", "1a>billing", "1a>app"]),
            (only(&[State::Behind]), &[]),
            (Filter { sources: text(&["github"]), ..only(&[State::Waiting]) }, &[]),
            (Filter { upstreams: text(&["billing"]), ..only(&[State::Waiting]) }, &["1a>billing"]),
            (Filter { events: globs(&["order.*"]), ..everything.clone() }, &["2b>app", "1a>billing", "1a>app"]),
            (Filter { events: globs(&["push", "pull*st"]), ..everything.clone() }, &["4d>ci", "3c>app"]),
            (Filter { events: globs(&["order"]), ..everything.clone() }, &[]),
            (Filter { since: second(2), ..everything.clone() }, &["4d>ci", "3c>app"]),
            (Filter { until: second(1), ..everything.clone() }, &["1a>billing", "1a>app"]),
            (Filter { since: second(1), until: second(2), ..everything.clone() }, &["2b>app"]),
            (Filter { since: second(4), ..everything.clone() }, &[]),
            (Filter { until: second(0), ..everything.clone() }, &[]),
        ] {
            assert_eq!(newest(&inbox, &filter), found, "{filter:?}");
        }
    }

    #[tokio::test]
    async fn a_delivery_is_found_under_each_of_its_names_and_under_no_others() {
        let folder = Folder::new();
        let inbox = open(&folder);
        // The event ids are numbers, as Telegram's are: one is also the number of a delivery.
        for body in ["2", "77", "8f14e45f-ceea-467f-a8f2-1c9a3b0d7a11"] {
            inbox.append(of("shop", &["app"], body, "x")).await.expect("room");
        }
        let request_id = one(&inbox, "seq:1").request_id;
        for (id, event) in [
            ("1", "2"),
            ("2", "77"),
            ("seq:2", "77"),
            ("event:2", "2"),
            ("77", "77"),
            ("id-77", "77"),
            ("delivery:id-77", "77"),
            ("8f14e45f-ceea-467f-a8f2-1c9a3b0d7a11", "8f14e45f-ceea-467f-a8f2-1c9a3b0d7a11"),
            (&format!("request:{request_id}"), "2"),
            (&request_id.to_string().to_uppercase(), "2"),
        ] {
            assert_eq!(one(&inbox, id).event_id.as_deref(), Some(event), "{id}");
        }
        for id in ["event:id-77", "delivery:77", "seq:77", "-1", "+1", "' OR 1=1 --", "%", "*", "\u{1b}[2J"] {
            let filter = Filter { ids: vec![Id::parse(id).expect("an id")], ..Filter::default() };
            assert!(newest(&inbox, &filter).is_empty(), "{id}");
        }
        // An index for the one, row by row for the other, in one question.
        let ids = ["1", "77"].map(|id| Id::parse(id).expect("an id")).to_vec();
        assert_eq!(newest(&inbox, &Filter { ids, ..Filter::default() }), ["77>app", "2>app"]);
    }

    #[tokio::test]
    async fn page_by_page_everything_is_met_once_in_either_order() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let mut expected = Vec::new();
        for body in 0..23 {
            let upstreams = ["a", "b", "c"].get(..=body % 3).expect("some");
            inbox.append(of("shop", upstreams, &format!("e{body}"), "x")).await.expect("room");
            expected.extend(upstreams.iter().map(|upstream| format!("e{body}>{upstream}")));
        }
        for most in [1, 2, 3, 7, 1_000] {
            assert_eq!(all(&inbox, &Filter::default(), Order::OldestFirst, most), expected);
            assert_eq!(all(&inbox, &only(&[State::Waiting]), Order::OldestFirst, most), expected);
        }
        expected.reverse();
        for most in [1, 2, 3, 7, 1_000] {
            assert_eq!(all(&inbox, &Filter::default(), Order::NewestFirst, most), expected);
            assert_eq!(all(&inbox, &only(&[State::Waiting]), Order::NewestFirst, most), expected);
        }
    }

    #[tokio::test]
    async fn what_comes_while_one_walks_is_not_met() {
        let folder = Folder::new();
        let inbox = open(&folder);
        for body in ["a", "b", "c"] {
            inbox.append(of("shop", &["app"], body, "x")).await.expect("room");
        }
        let first = page(&inbox, &Filter::default(), Order::OldestFirst, None, 2).expect("a page");
        inbox.append(of("shop", &["app"], "d", "x")).await.expect("room");
        let rest = page(&inbox, &Filter::default(), Order::OldestFirst, first.next, 10).expect("a page");
        assert_eq!(rest.found.iter().map(|found| found.event_id.as_deref()).collect::<Vec<_>>(), [Some("c")]);
    }

    /// Rows with these numbers and times of receipt, made without a commit for each.
    async fn fill(inbox: &Inbox, numbers: Vec<(i64, UnixMillis, State)>) {
        let made = inbox.write(move |connection, tally| {
            let source = tally.id(connection, Kind::Source, "shop")?;
            let upstream = tally.id(connection, Kind::Upstream, "app")?;
            for (seq, received, state) in numbers {
                connection.prepare_cached("INSERT INTO deliveries VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'x', 0)")?.execute(
                    params![
                        seq,
                        source,
                        stored(received),
                        Uuid::from_u128(seq as u128).as_bytes(),
                        format!("id-{seq}"),
                        format!("e{seq}")
                    ],
                )?;
                connection
                    .prepare_cached("INSERT INTO tasks (seq, upstream, source, state, due) VALUES (?1, ?2, ?3, ?4, 0)")?
                    .execute(params![seq, upstream, source, state as i64])?;
                tally.add(source, upstream, state, 1);
            }
            Ok(())
        });
        made.await.expect("rows");
    }

    #[tokio::test]
    async fn of_many_rows_and_long_gaps_the_right_ones_are_found() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let far = 4_000_000_000_000;
        let numbers: Vec<i64> = (1..=12_000).chain(far..far + 6_000).collect();
        let rows = numbers.iter().enumerate().map(|(place, seq)| {
            let state = if place % 5_999 == 0 { State::Waiting } else { State::Delivered };
            (*seq, NOW.after(Duration::from_secs(place as u64)), state)
        });
        fill(&inbox, rows.collect()).await;
        let mut waiting = Vec::new();
        for place in [0, 5_999, 11_998, 17_997] {
            waiting.push(format!("e{}>app", numbers.get(place).expect("a number")));
        }
        assert_eq!(all(&inbox, &only(&[State::Waiting]), Order::OldestFirst, 3), waiting);
        assert_eq!(all(&inbox, &Filter::default(), Order::OldestFirst, 700).len(), numbers.len());
        waiting.reverse();
        assert_eq!(all(&inbox, &only(&[State::Waiting]), Order::NewestFirst, 3), waiting);
        assert_eq!(all(&inbox, &Filter::default(), Order::NewestFirst, 700).len(), numbers.len());
        assert_eq!(one(&inbox, "event:e12").seq, 12);
        let times = Filter {
            since: Some(NOW.after(Duration::from_secs(11_990))),
            until: Some(NOW.after(Duration::from_secs(12_010))),
            ..Filter::default()
        };
        let found = all(&inbox, &times, Order::OldestFirst, 1_000);
        assert_eq!(found.len(), 20);
        assert_eq!(found.first().map(String::as_str), Some("e11991>app"));
        assert_eq!(found.last(), Some(&format!("e{}>app", far + 9)));
    }

    #[tokio::test]
    async fn a_dead_letter_that_is_retried_begins_anew_and_an_attempt_of_before_is_not_counted() {
        let folder = Folder::new();
        let inbox = open(&folder);
        inbox.append(of("shop", &["app"], "a", "x")).await.expect("room");
        let before = key(&one(&inbox, "a"));
        end(&inbox, "a", End::Dead).await;
        for state in [State::Dead, State::Delivered, State::Discarded] {
            let done = change(&inbox, only(&[state]), now(), None, 10, true).await.expect("a trial");
            assert_eq!((done.matched, done.changed), (1, 0));
            let done = change(&inbox, only(&[state]), now(), None, 10, false).await.expect("a retry");
            assert_eq!((done.matched, done.changed, done.behind), (1, 1, 0));
            let found = one(&inbox, "a");
            assert_eq!((found.state, found.attempts, found.due), (State::Waiting, 0, UnixMillis(5)));
            assert_eq!(found.finished, None);
            assert_counts_are_exact(&inbox);
            // The attempt of before ends now.
            inbox.settle(&before, ended(End::Delivered)).await.expect("a settlement");
            assert_eq!(one(&inbox, "a").state, State::Waiting);
            let loaded = inbox.load(&"app".into(), &[1]).expect("a store that can be read");
            assert!(matches!(loaded.as_slice(), [Loaded::Task(task)] if task.key == key(&found)));
            if state == State::Dead {
                end(&inbox, "a", End::Delivered).await;
            } else {
                change(&inbox, only(&[State::Waiting]), Change::Discard, None, 10, false).await.expect("a discard");
            }
        }
        assert_eq!(one(&inbox, "a").generation, 3);
        assert_counts_are_exact(&inbox);
    }

    #[tokio::test]
    async fn a_waiting_one_that_is_retried_is_due_at_once_and_its_attempt_under_way_counts() {
        let folder = Folder::new();
        let inbox = open(&folder);
        inbox.append(of("shop", &["app"], "a", "x")).await.expect("room");
        end(&inbox, "a", End::Retry { after: Duration::from_secs(3_600) }).await;
        let held = key(&one(&inbox, "a"));
        let done = change(&inbox, only(&[State::Waiting]), now(), None, 10, false).await.expect("a retry");
        assert_eq!((done.matched, done.changed), (1, 1));
        let found = one(&inbox, "a");
        assert_eq!((found.due, found.generation, found.attempts), (UnixMillis(5), 0, 1));
        inbox.settle(&held, ended(End::Delivered)).await.expect("a settlement");
        assert_eq!(one(&inbox, "a").state, State::Delivered);
        assert_counts_are_exact(&inbox);
    }

    #[tokio::test]
    async fn retries_are_spread_over_time_and_over_pages() {
        let folder = Folder::new();
        let inbox = open(&folder);
        for body in ["a", "b", "c", "d", "e"] {
            inbox.append(of("shop", &["app"], body, "x")).await.expect("room");
        }
        let (mut from, mut after) = (UnixMillis(1_000), None);
        loop {
            let spread = Change::Retry { from, gap: 20_000 };
            let done = change(&inbox, only(&[State::Waiting]), spread, after, 2, false).await.expect("a retry");
            (from, after) = (done.from.expect("a time"), done.next);
            if after.is_none() {
                break;
            }
        }
        let dues: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|body| one(&inbox, body).due.0).collect();
        assert_eq!(dues, [1_000, 1_020, 1_040, 1_060, 1_080]);
    }

    async fn lane(inbox: &Inbox, bodies: &[&str]) {
        for body in bodies {
            inbox.append(entry(body, Some(7))).await.expect("room");
        }
    }

    fn states(inbox: &Inbox, bodies: &[&str]) -> Vec<State> {
        bodies.iter().map(|body| one(inbox, body).state).collect()
    }

    #[tokio::test]
    async fn retried_dead_letters_of_a_lane_come_one_after_the_other_in_their_old_order() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let bodies = ["a", "b", "c"];
        lane(&inbox, &bodies).await;
        end(&inbox, "a", End::Dead).await;
        end(&inbox, "b", End::Dead).await;
        assert_eq!(states(&inbox, &bodies), [State::Dead, State::Dead, State::Waiting]);
        let done = change(&inbox, only(&[State::Dead]), now(), None, 10, false).await.expect("a retry");
        assert_eq!((done.changed, done.behind), (2, 2));
        assert_eq!(states(&inbox, &bodies), [State::Behind, State::Behind, State::Waiting]);
        // Those that are behind are retried in their turn.
        let done = change(&inbox, only(&[State::Behind]), now(), None, 10, false).await.expect("a retry");
        assert_eq!(done.matched, 0);
        for body in ["c", "a", "b"] {
            end(&inbox, body, End::Delivered).await;
        }
        assert_eq!(states(&inbox, &bodies), [State::Delivered; 3]);
        assert_counts_are_exact(&inbox);
        // Nothing of the lane is left: the first goes at once.
        let done = change(&inbox, only(&[State::Delivered]), now(), None, 10, false).await.expect("a retry");
        assert_eq!((done.changed, done.behind), (3, 2));
        assert_eq!(states(&inbox, &bodies), [State::Waiting, State::Behind, State::Behind]);
        assert_counts_are_exact(&inbox);
    }

    #[tokio::test]
    async fn a_discarded_one_lets_the_next_of_its_lane_past_and_takes_no_other_with_it() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let bodies = ["a", "b", "c"];
        lane(&inbox, &bodies).await;
        let held = key(&one(&inbox, "a"));
        let done = change(&inbox, only(&[State::Waiting]), Change::Discard, None, 1, false).await.expect("a discard");
        assert_eq!((done.matched, done.changed), (1, 1));
        // The walk is over: the one that was let past was behind when the walk came by.
        assert_eq!(done.next, None);
        assert_eq!(states(&inbox, &bodies), [State::Discarded, State::Waiting, State::Behind]);
        // It was being sent, and it arrived: it stays given up.
        inbox.settle(&held, ended(End::Delivered)).await.expect("a settlement");
        assert_eq!(states(&inbox, &bodies), [State::Discarded, State::Waiting, State::Behind]);
        let both = only(&[State::Waiting, State::Behind]);
        let done = change(&inbox, both, Change::Discard, None, 10, false).await.expect("a discard");
        assert_eq!(done.changed, 2);
        assert_eq!(states(&inbox, &bodies), [State::Discarded; 3]);
        assert_counts_are_exact(&inbox);
    }

    #[tokio::test]
    async fn what_ended_well_is_not_discarded() {
        let folder = Folder::new();
        let inbox = open(&folder);
        inbox.append(of("shop", &["app"], "a", "x")).await.expect("room");
        end(&inbox, "a", End::Delivered).await;
        let done = change(&inbox, Filter::default(), Change::Discard, None, 10, false).await.expect("done");
        assert_eq!((done.matched, done.changed), (0, 0));
        assert_eq!(one(&inbox, "a").state, State::Delivered);
    }

    #[tokio::test]
    async fn what_an_attempt_said_last_is_found() {
        let folder = Folder::new();
        let inbox = open(&folder);
        inbox.append(of("shop", &["app"], "a", "x")).await.expect("room");
        let attempt = Attempt { end: End::Dead, counted: true, status: Some(410), note: "gone".to_owned() };
        inbox.settle(&key(&one(&inbox, "a")), attempt).await.expect("a settlement");
        let found = one(&inbox, "a");
        assert_eq!((found.status, found.note.as_deref(), found.attempts), (Some(410), Some("gone"), 1));
        assert!(found.finished.is_some());
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (glob, text) in [
            ("*", ""),
            ("*", "a"),
            ("invoice.*", "invoice.paid"),
            ("*.paid", "invoice.paid"),
            ("i*.*d", "invoice.paid"),
            ("a*a", "aa"),
            ("a*b*b", "abb"),
            ("**", "x"),
            ("[a]?", "[a]?"),
        ] {
            assert!(Glob::new(glob).matches(text), "{glob} {text}");
        }
        for (glob, text) in
            [("invoice.*", "invoice"), ("a*a", "a"), ("a*b*b", "ab"), ("", "a"), ("A", "a"), ("a?", "ab")]
        {
            assert!(!Glob::new(glob).matches(text), "{glob} {text}");
        }
    }

    #[test]
    fn a_cursor_reads_back_and_nothing_else_is_one() {
        let cursor = Cursor { seq: 7, upstream: i64::MAX, last: 9 };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        for wrong in ["", "1", "1-2", "1-2-3-4", "-1-2-3", "1--2-3", "a-b-c", "1-2-99999999999999999999"] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong}");
        }
    }
}
