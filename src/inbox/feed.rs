//! Which tasks of an upstream are in memory, and which one is sent next.
//!
//! Invariant: a task that is held is handed out to nobody else, and it is held until its settlement is committed. What
//! waits on disk and is not held is never forgotten: either it comes due no earlier than `wake`, or `more` is set.
//!
//! A scan reads the disk while settlements go on, so what it read may be over already: what was let go of since a scan
//! began is left out of its results, or a task just delivered would be sent again. What the writer has just committed
//! is offered in memory and taken as it is, where nothing older waits and there is room; else it is found on the disk
//! when its time comes, so that memory does not grow with what waits.
//!
//! Nothing of this is written anywhere: a process that ends has held nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Inbox, Loaded, Task, TaskKey};
use crate::clock::UnixMillis;

/// Of one upstream in memory, those under way included: more than are sent during one look at the disk.
const MOST_TASKS: usize = 1024;

/// Bytes of their parcels, beyond which no further one is read.
const MOST_BYTES: usize = 16 << 20;

/// What a parcel takes beside its body.
const BESIDE_THE_BODY: usize = 1024;

/// With fewer than this at hand the disk is looked at again: sending goes on meanwhile.
const FEW: usize = 256;

/// Nothing should be left behind; were it, it would be found at the latest after this.
const SAFETY: Duration = Duration::from_secs(60);

/// After a look at the disk that failed.
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);

/// For so long a task that could not be read is left alone, so that it does not stand in the way of those that can.
const ASIDE: Duration = Duration::from_secs(60);

/// What was read so long ago may have ended by an operator's hand since.
const OLD: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Feeds {
    // Guards the map alone.
    by_upstream: Mutex<HashMap<Arc<str>, Arc<Feed>>>,
}

impl Feeds {
    pub(super) fn of(&self, upstream: &str) -> Arc<Feed> {
        let mut feeds = self.by_upstream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(upstream) {
            return feed.clone();
        }
        let upstream: Arc<str> = upstream.into();
        let feed = Arc::new(Feed::new(upstream.clone()));
        feeds.insert(upstream, feed.clone());
        feed
    }
}

pub(crate) struct Feed {
    upstream: Arc<str>,
    // Guards what is held and what is known of the disk: one decision. Never held across a read or an await.
    state: Mutex<State>,
    /// For the one who waits in `next`.
    changed: Notify,
}

struct State {
    /// Somebody takes tasks from here; else none is kept in memory.
    is_served: bool,
    ready: VecDeque<Ready>,
    held: HashMap<i64, Hold>,
    /// Of all that is held.
    bytes: usize,
    /// There may be tasks on the disk that are due and not held.
    more: bool,
    /// When the first of those that are on the disk and not held comes due, as far as is known.
    wake: Option<UnixMillis>,
    /// While the disk is read: what was let go of since that began.
    scan: Option<HashSet<i64>>,
    last_scan: Option<Instant>,
    not_before: Option<Instant>,
    /// Counts what came from outside: operators, lanes.
    news: u64,
    /// Held though nobody has them, until then.
    aside: Vec<(Instant, i64)>,
}

struct Ready {
    loaded: Loaded,
    since: Instant,
}

struct Hold {
    bytes: usize,
    /// As counted when it was taken. A later one may have been about this task.
    news: u64,
}

/// What becomes of a task that is let go of.
enum Then {
    Ended,
    DueAt(UnixMillis),
    /// As it was: it waits on the disk.
    Unchanged,
}

impl Feed {
    fn new(upstream: Arc<str>) -> Self {
        let state = State {
            is_served: false,
            ready: VecDeque::new(),
            held: HashMap::new(),
            bytes: 0,
            // What an earlier process left.
            more: true,
            wake: None,
            scan: None,
            last_scan: None,
            not_before: None,
            news: 0,
            aside: Vec::new(),
        };
        Self { upstream, state: Mutex::new(state), changed: Notify::new() }
    }

    /// A task that was committed just now, by the writer: before any settlement of it can be.
    pub(super) fn offer(&self, task: Task) {
        let mut state = self.lock();
        let seq = task.key.seq;
        if state.held.contains_key(&seq) {
            // A look at the disk was quicker.
            return;
        }
        if state.is_served && !state.more && state.scan.is_none() && state.has_room() {
            state.hold(seq, size(&task));
            state.ready.push_back(Ready { loaded: Loaded::Task(Box::new(task)), since: Instant::now() });
        } else {
            state.more = true;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// There may be more on disk than was offered.
    pub(crate) fn look_again(&self) {
        let mut state = self.lock();
        state.more = true;
        state.news += 1;
        drop(state);
        self.changed.notify_one();
    }

    /// The next task that is due, whenever that is. For one caller at a time; whoever drops the future has taken none.
    pub(crate) async fn next(self: &Arc<Self>, inbox: &Arc<Inbox>) -> Lease {
        loop {
            let wait = {
                let mut state = self.lock();
                state.is_served = true;
                state.take_back();
                if state.wants_a_scan(inbox.now()) {
                    self.start_scan(&mut state, inbox);
                }
                if let Some(Ready { loaded, since }) = state.ready.pop_front() {
                    return Lease { feed: self.clone(), leased: Some(Leased { loaded, since }) };
                }
                state.wait(inbox.now())
            };
            // Whether it changed or the time has come: look.
            let _ = timeout(wait, self.changed.notified()).await;
        }
    }

    /// Nobody takes from here any more: what is at hand goes back to the disk.
    pub(crate) fn rest(&self) {
        let mut state = self.lock();
        state.is_served = false;
        state.more = true;
        for ready in std::mem::take(&mut state.ready) {
            state.let_go(ready.loaded.key().seq, Then::Unchanged);
        }
    }

    /// The state is the lock that the caller has.
    fn start_scan(self: &Arc<Self>, state: &mut State, inbox: &Arc<Inbox>) {
        state.scan = Some(HashSet::new());
        state.last_scan = Some(Instant::now());
        (state.more, state.wake) = (false, None);
        let scan = Scan { feed: self.clone(), inbox: inbox.clone(), is_done: false };
        tokio::task::spawn_blocking(move || scan.run());
    }

    fn let_go(&self, seq: i64, then: Then) {
        self.lock().let_go(seq, then);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.held.len() < MOST_TASKS && self.bytes < MOST_BYTES
    }

    fn hold(&mut self, seq: i64, bytes: usize) {
        self.held.insert(seq, Hold { bytes, news: self.news });
        self.bytes += bytes;
    }

    /// What was held before it was known how large it is.
    fn weigh(&mut self, seq: i64, bytes: usize) {
        if let Some(hold) = self.held.get_mut(&seq) {
            hold.bytes = bytes;
            self.bytes += bytes;
        }
    }

    fn let_go(&mut self, seq: i64, then: Then) {
        if let Some(hold) = self.held.remove(&seq) {
            self.bytes -= hold.bytes;
            // What was told meanwhile was perhaps of this one, and passed over since it was held.
            self.more |= hold.news != self.news;
        }
        if let Some(let_go) = &mut self.scan {
            let_go.insert(seq);
        }
        match then {
            Then::Ended => {}
            Then::DueAt(due) => self.wake_at(due),
            Then::Unchanged => self.more = true,
        }
    }

    fn wake_at(&mut self, due: UnixMillis) {
        self.wake = Some(self.wake.map_or(due, |wake| wake.min(due)));
    }

    /// Those that were left alone for long enough.
    fn take_back(&mut self) {
        let now = Instant::now();
        while let Some(position) = self.aside.iter().position(|(until, _)| *until <= now) {
            let (_, seq) = self.aside.swap_remove(position);
            self.let_go(seq, Then::Unchanged);
        }
    }

    fn wants_a_scan(&mut self, now: UnixMillis) -> bool {
        if self.wake.is_some_and(|wake| wake <= now) {
            (self.wake, self.more) = (None, true);
        }
        if self.last_scan.is_none_or(|last| last.elapsed() >= SAFETY) {
            self.more = true;
        }
        let may = self.scan.is_none() && self.not_before.is_none_or(|time| time <= Instant::now());
        self.more && may && self.ready.len() < FEW && self.has_room()
    }

    /// Until there is something to be done without having been told.
    fn wait(&self, now: UnixMillis) -> Duration {
        let until = |time: Instant| time.saturating_duration_since(Instant::now());
        let mut wait = SAFETY;
        if self.scan.is_none() && self.more {
            wait = wait.min(self.not_before.map_or(SAFETY, until));
        }
        if let Some(wake) = self.wake {
            wait = wait.min(Duration::from_millis(wake.0.saturating_sub(now.0)));
        }
        for (time, _) in &self.aside {
            wait = wait.min(until(*time));
        }
        // A time that has come by now is met at the next turn; a timer needs a moment.
        wait.max(Duration::from_millis(1))
    }
}

/// One look at the disk.
struct Scan {
    feed: Arc<Feed>,
    inbox: Arc<Inbox>,
    is_done: bool,
}

impl Scan {
    fn run(mut self) {
        let found = self.find();
        match found {
            Ok(wanted) => {
                self.load(&wanted);
                self.is_done = true;
            }
            Err(why) => {
                let upstream: &str = &self.feed.upstream;
                tracing::error!(
                    upstream,
                    why,
                    "the inbox cannot be read; what waits for this upstream goes on waiting"
                );
            }
        }
    }

    /// Takes hold of what is due.
    fn find(&self) -> Result<Vec<i64>, String> {
        let limit = {
            let state = self.feed.lock();
            // Those that are held stand among the first, and so may those that were let go of since.
            state.held.len() + state.scan.as_ref().map_or(0, HashSet::len) + MOST_TASKS
        };
        let rows = self.inbox.due(&self.feed.upstream, limit)?;
        let now = self.inbox.now();
        let mut state = self.feed.lock();
        let mut wanted = Vec::new();
        for row in &rows {
            if state.held.contains_key(&row.seq) || state.scan.as_ref().is_some_and(|gone| gone.contains(&row.seq)) {
                continue;
            }
            if row.due > now {
                // Those that follow come due later.
                state.wake_at(row.due);
                return Ok(wanted);
            }
            if state.held.len() >= MOST_TASKS {
                state.more = true;
                return Ok(wanted);
            }
            state.hold(row.seq, 0);
            wanted.push(row.seq);
        }
        state.more |= rows.len() >= limit;
        Ok(wanted)
    }

    /// One by one, so that a large one costs only itself, and the first are sent while the others are read.
    fn load(&self, wanted: &[i64]) {
        let feed = &self.feed;
        for (position, seq) in wanted.iter().enumerate() {
            if feed.lock().bytes >= MOST_BYTES {
                for rest in wanted.iter().skip(position) {
                    feed.let_go(*rest, Then::Unchanged);
                }
                return;
            }
            match self.inbox.load(&feed.upstream, &[*seq]) {
                Ok(mut loaded) => match loaded.pop() {
                    Some(loaded) => feed.take_in(*seq, loaded),
                    // An operator ended it.
                    None => feed.let_go(*seq, Then::Ended),
                },
                Err(why) => {
                    let upstream: &str = &feed.upstream;
                    tracing::error!(
                        upstream,
                        seq,
                        why,
                        "a delivery cannot be read from the inbox; it is left for a minute"
                    );
                    feed.lock().aside.push((Instant::now() + ASIDE, *seq));
                }
            }
        }
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        let mut state = self.feed.lock();
        state.scan = None;
        if self.is_done {
            state.not_before = None;
        } else {
            state.more = true;
            state.not_before = Some(Instant::now() + AFTER_A_FAILURE);
        }
        drop(state);
        self.feed.changed.notify_one();
    }
}

impl Feed {
    /// What was held without its bytes is here.
    fn take_in(&self, seq: i64, loaded: Loaded) {
        let mut state = self.lock();
        if !state.is_served {
            state.let_go(seq, Then::Unchanged);
            return;
        }
        let bytes = match &loaded {
            Loaded::Task(task) => size(task),
            Loaded::Unreadable { .. } => 0,
        };
        state.weigh(seq, bytes);
        state.ready.push_back(Ready { loaded, since: Instant::now() });
        drop(state);
        self.changed.notify_one();
    }
}

fn size(task: &Task) -> usize {
    task.parcel.body.len() + BESIDE_THE_BODY
}

/// A task that nobody else has. Dropped, it goes back to those that wait, as it was.
#[must_use]
pub(crate) struct Lease {
    feed: Arc<Feed>,
    /// None: let go of.
    leased: Option<Leased>,
}

struct Leased {
    loaded: Loaded,
    since: Instant,
}

impl Lease {
    pub(crate) fn loaded(&self) -> &Loaded {
        &self.leased.as_ref().expect("what is let go of is consumed").loaded
    }

    /// It was read a while ago, and may have ended since by an operator's hand.
    pub(crate) fn is_old(&self) -> bool {
        self.leased.as_ref().is_some_and(|leased| leased.since.elapsed() >= OLD)
    }

    /// Its settlement is committed, and it is over.
    pub(crate) fn ended(self) {
        self.conclude(Then::Ended);
    }

    /// Its settlement is committed, and it is due again then.
    pub(crate) fn due_at(self, due: UnixMillis) {
        self.conclude(Then::DueAt(due));
    }

    /// It is the next one to be handed out again.
    pub(crate) fn put_back(mut self) {
        let Some(Leased { loaded, since }) = self.leased.take() else { return };
        let mut state = self.feed.lock();
        if state.is_served {
            state.ready.push_front(Ready { loaded, since });
        } else {
            state.let_go(loaded.key().seq, Then::Unchanged);
        }
        drop(state);
        self.feed.changed.notify_one();
    }

    /// What became of it is not known to be written: nobody gets it again while this process lasts.
    pub(crate) fn keep(mut self) {
        self.leased = None;
    }

    fn conclude(mut self, then: Then) {
        if let Some(leased) = self.leased.take() {
            self.feed.let_go(leased.loaded.key().seq, then);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(leased) = self.leased.take() {
            self.feed.let_go(leased.loaded.key().seq, Then::Unchanged);
        }
    }
}

impl Loaded {
    pub(crate) fn key(&self) -> &TaskKey {
        match self {
            Self::Task(task) => &task.key,
            Self::Unreadable { key, .. } => key,
        }
    }
}
