//! Which tasks of an upstream are in memory, and which one is sent next. One file, though a long one: who holds a task,
//! what is known of the disk and what a look at it may bring are one argument.
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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::{Due, Inbox, Loaded, Task, TaskKey};
use crate::clock::UnixMillis;

/// Of one upstream in memory, those under way included: with a quarter of them at hand the disk is looked at again, and
/// sending goes on meanwhile.
const MOST_TASKS: usize = 1024;

/// Bytes of their parcels, beyond which no further one is read.
const MOST_BYTES: usize = 16 << 20;

/// And of all upstreams together, beyond which each has [`LEAST_BYTES`] all the same: however many are down with much that
/// waits for them, the others are sent what is theirs, and memory does not grow by [`MOST_BYTES`] with each.
const MOST_OF_ALL: usize = 256 << 20;
const LEAST_BYTES: usize = 1 << 20;

/// What a parcel takes beside its body and what its headers say.
const BESIDE_THE_BODY: usize = 1024;

/// Nothing should be left behind; were it, it would be found at the latest after this.
const SAFETY: Duration = Duration::from_secs(60);

/// After a look at the disk that failed.
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);

/// For so long a task that could not be read, or at whose sending something broke, is left alone, so that it does not stand in the way of those that can.
const ASIDE: Duration = Duration::from_secs(60);

/// Of those so many: a number each. What is behind them is sent; with more than that, something is wrong with all.
const MOST_ASIDE: usize = 1 << 16;

/// What was read so long ago may have ended by an operator's hand since.
const OLD: Duration = Duration::from_secs(1);

/// Looks at the disk at once, of all upstreams: each is short, and has a connection to the file of its own.
const SCANS_AT_ONCE: usize = 4;

pub(crate) struct Feeds {
    // Guards the map alone.
    by_upstream: Mutex<HashMap<Arc<str>, Arc<Feed>>>,
    scans: Arc<Semaphore>,
    /// Of all that is held, by whichever feed.
    bytes: Arc<AtomicUsize>,
}

impl Default for Feeds {
    fn default() -> Self {
        Self { by_upstream: Mutex::default(), scans: Arc::new(Semaphore::new(SCANS_AT_ONCE)), bytes: Arc::default() }
    }
}

impl Feeds {
    pub(super) fn of(&self, upstream: &str) -> Arc<Feed> {
        let mut feeds = self.by_upstream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(upstream) {
            return feed.clone();
        }
        let upstream: Arc<str> = upstream.into();
        let feed = Arc::new(Feed::new(upstream.clone(), self.scans.clone(), self.bytes.clone()));
        feeds.insert(upstream, feed.clone());
        feed
    }
}

pub(crate) struct Feed {
    upstream: Arc<str>,
    /// Turns at the disk.
    scans: Arc<Semaphore>,
    // Guards what is held and what is known of the disk: one decision. Never held across a read or an await.
    state: Mutex<State>,
    /// For the one who waits in `next`.
    changed: Notify,
}

struct State {
    most_tasks: usize,
    most_bytes: usize,
    most_of_all: usize,
    /// Somebody takes tasks from here; else none is kept in memory.
    is_served: bool,
    ready: VecDeque<Ready>,
    held: HashMap<i64, Hold>,
    /// Of all that is held.
    bytes: usize,
    /// And by all feeds.
    of_all: Arc<AtomicUsize>,
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
    /// Held though nobody has them, until then; the first to be taken back first.
    aside: VecDeque<(Instant, i64)>,
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
    fn new(upstream: Arc<str>, scans: Arc<Semaphore>, of_all: Arc<AtomicUsize>) -> Self {
        let state = State {
            most_tasks: MOST_TASKS,
            most_bytes: MOST_BYTES,
            most_of_all: MOST_OF_ALL,
            is_served: false,
            ready: VecDeque::new(),
            held: HashMap::new(),
            bytes: 0,
            of_all,
            // What an earlier process left.
            more: true,
            wake: None,
            scan: None,
            last_scan: None,
            not_before: None,
            news: 0,
            aside: VecDeque::new(),
        };
        Self { upstream, scans, state: Mutex::new(state), changed: Notify::new() }
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
        let scans = self.scans.clone();
        tokio::spawn(async move {
            // The semaphore is never closed; were it, nobody would have to wait.
            let turn = scans.acquire_owned().await;
            // A scan that panics has been undone when it was dropped.
            let _ = tokio::task::spawn_blocking(move || scan.run()).await;
            drop(turn);
        });
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
        self.has_places() && self.has_bytes()
    }

    /// Those that are left alone take none: what cannot be sent now must not keep back what can.
    fn has_places(&self) -> bool {
        self.held.len() < self.most_tasks + self.aside.len() && self.aside.len() < MOST_ASIDE
    }

    fn has_bytes(&self) -> bool {
        let is_tight = self.bytes >= LEAST_BYTES && self.of_all.load(Ordering::Relaxed) >= self.most_of_all;
        self.bytes < self.most_bytes && !is_tight
    }

    fn hold(&mut self, seq: i64, bytes: usize) {
        self.held.insert(seq, Hold { bytes: 0, news: self.news });
        self.weigh(seq, bytes);
    }

    /// What was held before it was known how large it is.
    fn weigh(&mut self, seq: i64, bytes: usize) {
        if let Some(hold) = self.held.get_mut(&seq) {
            hold.bytes = bytes;
            self.bytes += bytes;
            self.of_all.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn let_go(&mut self, seq: i64, then: Then) {
        if let Some(hold) = self.held.remove(&seq) {
            self.bytes -= hold.bytes;
            self.of_all.fetch_sub(hold.bytes, Ordering::Relaxed);
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
        while let Some((_, seq)) = self.aside.front().copied().filter(|(until, _)| *until <= now) {
            self.aside.pop_front();
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
        self.more && may && self.ready.len() < self.most_tasks / 4 && self.has_room()
    }

    /// Until there is something to be done without having been told.
    fn wait(&self, now: UnixMillis) -> Duration {
        let until = |time: Instant| time.saturating_duration_since(Instant::now());
        let mut wait = SAFETY;
        // One that has come waits for room, of which one is told.
        if let Some(time) = self.not_before.filter(|time| *time > Instant::now()) {
            wait = wait.min(until(time));
        }
        if let Some(wake) = self.wake {
            wait = wait.min(Duration::from_millis(wake.0.saturating_sub(now.0)));
        }
        if let Some((time, _)) = self.aside.front() {
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
            state.held.len() + state.scan.as_ref().map_or(0, HashSet::len) + state.most_tasks
        };
        let rows = self.inbox.due(&self.feed.upstream, limit)?;
        let wanted = self.choose(&rows, self.inbox.now());
        if rows.len() >= limit {
            self.feed.lock().more = true;
        }
        Ok(wanted)
    }

    /// Of what was read, which may be over meanwhile.
    fn choose(&self, rows: &[Due], now: UnixMillis) -> Vec<i64> {
        let mut state = self.feed.lock();
        let mut wanted = Vec::new();
        for row in rows {
            if state.held.contains_key(&row.seq) || state.scan.as_ref().is_some_and(|gone| gone.contains(&row.seq)) {
                continue;
            }
            if row.due > now {
                // Those that follow come due later.
                state.wake_at(row.due);
                break;
            }
            if !state.has_places() {
                state.more = true;
                break;
            }
            state.hold(row.seq, 0);
            wanted.push(row.seq);
        }
        wanted
    }

    /// One by one, so that a large one costs only itself, and the first are sent while the others are read.
    fn load(&self, wanted: &[i64]) {
        let feed = &self.feed;
        let mut is_told = false;
        for (position, seq) in wanted.iter().enumerate() {
            if !feed.lock().has_bytes() {
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
                    // What keeps one from being read keeps many.
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::error!(
                            upstream,
                            seq,
                            why,
                            "a delivery cannot be read from the inbox; it is left for a minute, and so are others like it"
                        );
                    }
                    feed.lock().aside.push_back((Instant::now() + ASIDE, *seq));
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
    let headers = task.parcel.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    task.parcel.body.len() + headers.sum::<usize>() + BESIDE_THE_BODY
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

    /// It was read a while ago, or before something was told, and may have ended since by an operator's hand.
    pub(crate) fn is_old(&self) -> bool {
        let Some(leased) = &self.leased else { return false };
        let state = self.feed.lock();
        let hold = state.held.get(&leased.loaded.key().seq);
        leased.since.elapsed() >= OLD || hold.is_some_and(|hold| hold.news != state.news)
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
        let Some(leased) = self.leased.take() else { return };
        let seq = leased.loaded.key().seq;
        if std::thread::panicking() {
            // It would do so again, at once and for ever.
            self.feed.lock().aside.push_back((Instant::now() + ASIDE, seq));
        } else {
            self.feed.let_go(seq, Then::Unchanged);
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

#[cfg(test)]
mod tests {
    use super::super::tally::Kind;
    use super::super::tests::{Folder, ended, entry, open};
    use super::super::{End, State as TaskState};
    use super::*;
    use proptest::prelude::*;
    use tokio::task::JoinSet;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn feed(inbox: &Inbox, most_tasks: usize, most_bytes: usize) -> Arc<Feed> {
        let feed = inbox.feed("app");
        let mut state = feed.lock();
        (state.most_tasks, state.most_bytes) = (most_tasks, most_bytes);
        drop(state);
        feed
    }

    async fn next(feed: &Arc<Feed>, inbox: &Arc<Inbox>) -> Lease {
        timeout(PATIENCE, feed.next(inbox)).await.expect("a task that is due")
    }

    fn body(lease: &Lease) -> String {
        match lease.loaded() {
            Loaded::Task(task) => String::from_utf8_lossy(&task.parcel.body).into_owned(),
            Loaded::Unreadable { why, .. } => panic!("{why}"),
        }
    }

    async fn settle(inbox: &Inbox, lease: Lease, end: End) {
        inbox.settle(lease.loaded().key(), ended(end)).await.expect("a settlement");
        match end {
            End::Delivered | End::Dead => lease.ended(),
            End::Retry { after } => lease.due_at(inbox.now().after(after)),
        }
    }

    fn held(feed: &Feed) -> (usize, usize) {
        let state = feed.lock();
        (state.held.len(), state.bytes)
    }

    fn waiting(inbox: &Inbox) -> i64 {
        let waits = |state| matches!(state, TaskState::Waiting | TaskState::Behind);
        inbox.counts().iter().filter(|count| waits(count.state)).map(|count| count.tasks).sum()
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_comes_before_what_is_new() {
        let folder = Folder::new();
        let inbox = open(&folder);
        for body in ["a", "b"] {
            inbox.append(entry(body, None)).await.expect("room");
        }
        inbox.close().await;
        drop(inbox);
        let inbox = open(&folder);
        inbox.append(entry("c", None)).await.expect("room");
        let feed = feed(&inbox, 8, MOST_BYTES);
        for expected in ["a", "b", "c"] {
            let lease = next(&feed, &inbox).await;
            assert_eq!(body(&lease), expected);
            settle(&inbox, lease, End::Delivered).await;
        }
        assert_eq!(waiting(&inbox), 0);
    }

    #[tokio::test]
    async fn one_that_is_held_is_not_handed_out_again_and_one_dropped_is() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        inbox.append(entry("a", None)).await.expect("room");
        let held = next(&feed, &inbox).await;
        inbox.append(entry("b", None)).await.expect("room");
        feed.look_again();
        let second = next(&feed, &inbox).await;
        assert_eq!((body(&held).as_str(), body(&second).as_str()), ("a", "b"));
        drop(held);
        assert_eq!(body(&next(&feed, &inbox).await), "a");
    }

    /// What was read from the disk just before a settlement says that the task waits.
    #[tokio::test]
    async fn one_that_was_settled_while_the_disk_was_read_is_not_sent_again() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        inbox.append(entry("a", None)).await.expect("room");
        let lease = next(&feed, &inbox).await;
        // The look at the disk that found it ends a moment later.
        while feed.lock().scan.is_some() {
            tokio::task::yield_now().await;
        }
        feed.lock().scan = Some(HashSet::new());
        let scan = Scan { feed: feed.clone(), inbox: inbox.clone(), is_done: true };
        let rows = inbox.due("app", 8).expect("a store that can be read");
        assert_eq!(rows.len(), 1);
        settle(&inbox, lease, End::Delivered).await;
        assert_eq!(scan.choose(&rows, inbox.now()), [0_i64; 0]);
        drop(scan);
        assert!(inbox.due("app", 8).expect("a store that can be read").is_empty());
    }

    #[tokio::test]
    async fn a_task_comes_back_when_it_is_due_and_not_before() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        inbox.append(entry("a", None)).await.expect("room");
        let after = Duration::from_millis(60);
        let lease = next(&feed, &inbox).await;
        let before = Instant::now();
        settle(&inbox, lease, End::Retry { after }).await;
        let again = next(&feed, &inbox).await;
        assert!(before.elapsed() >= after, "{:?}", before.elapsed());
        match again.loaded() {
            Loaded::Task(task) => assert_eq!(task.attempts, 1),
            Loaded::Unreadable { why, .. } => panic!("{why}"),
        }
    }

    #[tokio::test]
    async fn no_more_is_in_memory_than_may_be_and_the_rest_is_found_on_the_disk() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, 5 * BESIDE_THE_BODY);
        // From here on it is served.
        assert!(timeout(Duration::from_millis(1), feed.next(&inbox)).await.is_err());
        for number in 0..40 {
            inbox.append(entry(&format!("{number:02}"), None)).await.expect("room");
        }
        for number in 0..40 {
            let lease = next(&feed, &inbox).await;
            {
                let state = feed.lock();
                assert!(state.held.len() <= 8 && state.bytes <= 6 * BESIDE_THE_BODY + 12, "{}", state.bytes);
            }
            assert_eq!(body(&lease), format!("{number:02}"));
            settle(&inbox, lease, End::Delivered).await;
        }
        assert_eq!(held(&feed), (0, 0));
    }

    #[tokio::test]
    async fn what_nobody_takes_any_more_is_kept_on_the_disk_alone() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        for body in ["a", "b", "c"] {
            inbox.append(entry(body, None)).await.expect("room");
        }
        let held = next(&feed, &inbox).await;
        feed.rest();
        settle(&inbox, held, End::Delivered).await;
        inbox.append(entry("d", None)).await.expect("room");
        // A look at the disk that was under way may end later; it keeps nothing either.
        let before = Instant::now();
        while !feed.lock().held.is_empty() {
            assert!(before.elapsed() < PATIENCE);
            tokio::task::yield_now().await;
        }
        for expected in ["b", "c", "d"] {
            let lease = next(&feed, &inbox).await;
            assert_eq!(body(&lease), expected);
            settle(&inbox, lease, End::Delivered).await;
        }
    }

    #[tokio::test]
    async fn a_lane_goes_on_as_soon_as_the_one_before_has_ended() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        for (body, lane) in [("a1", 1), ("a2", 1), ("b1", 2), ("a3", 1)] {
            inbox.append(entry(body, Some(lane))).await.expect("room");
        }
        let (a1, b1) = (next(&feed, &inbox).await, next(&feed, &inbox).await);
        assert_eq!((body(&a1).as_str(), body(&b1).as_str()), ("a1", "b1"));
        assert!(timeout(Duration::from_millis(20), feed.next(&inbox)).await.is_err());
        settle(&inbox, a1, End::Delivered).await;
        let a2 = next(&feed, &inbox).await;
        assert_eq!(body(&a2), "a2");
        settle(&inbox, a2, End::Dead).await;
        assert_eq!(body(&next(&feed, &inbox).await), "a3");
    }

    /// As an operator does who has it delivered once more while it is under way.
    #[tokio::test]
    async fn one_that_is_to_be_delivered_anew_while_it_is_held_is_handed_out_afterwards() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        inbox.append(entry("a", None)).await.expect("room");
        let held = next(&feed, &inbox).await;
        let anew = inbox.write(|connection, tally| {
            let upstream = tally.id(connection, Kind::Upstream, "app")?;
            tally.touch(upstream);
            connection.execute("UPDATE tasks SET generation = generation + 1", [])
        });
        assert_eq!(anew.await, Ok(1));
        assert!(timeout(Duration::from_millis(20), feed.next(&inbox)).await.is_err(), "one at a time");
        assert_eq!(inbox.waits(held.loaded().key()), Ok(false));
        settle(&inbox, held, End::Delivered).await;
        let again = next(&feed, &inbox).await;
        assert_eq!((body(&again).as_str(), again.loaded().key().generation), ("a", 1));
        assert_eq!(inbox.waits(again.loaded().key()), Ok(true));
        settle(&inbox, again, End::Delivered).await;
        assert_eq!(waiting(&inbox), 0);
    }

    #[tokio::test]
    async fn one_at_which_its_sender_broke_does_not_stand_in_the_way_of_the_others() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 8, MOST_BYTES);
        for body in ["a", "b"] {
            inbox.append(entry(body, None)).await.expect("room");
        }
        let lease = next(&feed, &inbox).await;
        let broke = tokio::spawn(async move { panic!("at {}", body(&lease)) }).await;
        assert!(broke.is_err());
        let other = next(&feed, &inbox).await;
        assert_eq!(body(&other), "b");
        assert!(timeout(Duration::from_millis(20), feed.next(&inbox)).await.is_err());
        feed.lock().aside[0].0 = Instant::now();
        assert_eq!(body(&next(&feed, &inbox).await), "a");
    }

    #[tokio::test]
    async fn however_many_want_a_key_that_is_missing_what_comes_behind_them_is_sent() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, 4, MOST_BYTES);
        for number in 0..20 {
            inbox.append(entry(&format!("sealed {number}"), None)).await.expect("room");
        }
        let sealed = inbox.write(|connection, _| {
            connection.execute("UPDATE contents SET key = x'0102030405060708', packing = packing | 2", [])
        });
        assert_eq!(sealed.await, Ok(20));
        for number in 0..6 {
            inbox.append(entry(&number.to_string(), None)).await.expect("room");
        }
        for number in 0..6 {
            let lease = next(&feed, &inbox).await;
            assert_eq!(body(&lease), number.to_string());
            settle(&inbox, lease, End::Delivered).await;
        }
        inbox.append(entry("new", None)).await.expect("room");
        assert_eq!(body(&next(&feed, &inbox).await), "new");
        // None of them was given up: they wait for their key.
        assert_eq!(waiting(&inbox), 21);
    }

    #[tokio::test]
    async fn upstreams_with_much_that_waits_do_not_fill_the_memory_and_each_other_has_its_share() {
        let folder = Folder::new();
        let inbox = open(&folder);
        let names = ["a", "b", "c", "d"];
        let feeds = names.map(|name| inbox.feed(name));
        for feed in &feeds {
            feed.lock().most_of_all = 2 * LEAST_BYTES;
        }
        let half = "x".repeat(LEAST_BYTES / 2);
        for _ in 0..10 {
            let mut entry = entry(&half, None);
            let task = entry.tasks.remove(0);
            entry.tasks = names.map(|name| super::super::NewTask { upstream: name.into(), ..task.clone() }).into();
            entry.event_id = None;
            entry.delivery_id = "one".to_owned();
            inbox.append(entry).await.expect("room");
        }
        let mut taken = Vec::new();
        for feed in &feeds {
            // Nobody gives anything back, and each has something.
            taken.push(next(feed, &inbox).await);
            taken.push(next(feed, &inbox).await);
        }
        let of_all = || feeds[0].lock().of_all.load(Ordering::Relaxed);
        let held_by = |feed: &Arc<Feed>| feed.lock().bytes;
        assert_eq!(of_all(), feeds.iter().map(held_by).sum::<usize>());
        // The first might have more, as nobody else had anything; one that comes when there is no more has its share.
        assert!(held_by(&feeds[3]) <= LEAST_BYTES + half.len() + 2 * BESIDE_THE_BODY, "{}", held_by(&feeds[3]));
        assert!(of_all() <= 2 * LEAST_BYTES + 4 * (LEAST_BYTES + half.len()), "{}", of_all());
        for lease in taken {
            drop(lease);
        }
        for feed in &feeds {
            for _ in 0..10 {
                let lease = next(feed, &inbox).await;
                settle(&inbox, lease, End::Delivered).await;
            }
        }
        assert_eq!((of_all(), waiting(&inbox)), (0, 0));
    }

    /// What one who has a task does with it.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        Deliver,
        Retry(u64),
        Drop,
        PutBack,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            4 => Just(Deed::Deliver),
            2 => (0_u64..8).prop_map(Deed::Retry),
            1 => Just(Deed::Drop),
            1 => Just(Deed::PutBack),
        ]
    }

    /// Tasks are appended and taken at once by several; each does what `deeds` says, in turn.
    async fn run(tasks: usize, lanes: i64, deeds: Vec<Deed>, most_tasks: usize, rests: bool) {
        let folder = Folder::new();
        let inbox = open(&folder);
        let feed = feed(&inbox, most_tasks, MOST_BYTES);
        let appending = {
            let inbox = inbox.clone();
            tokio::spawn(async move {
                for number in 0..tasks {
                    let lane = i64::try_from(number).unwrap() % (lanes + 1);
                    let lane = (lane < lanes).then_some(lane);
                    inbox.append(entry(&format!("{number:04}"), lane)).await.expect("room");
                }
            })
        };
        let in_hand = Arc::new(Mutex::new(HashSet::new()));
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let mut others = JoinSet::new();
        let mut turns = deeds.into_iter().cycle();
        while delivered.lock().unwrap().len() < tasks {
            while others.try_join_next().is_some() {}
            if others.len() >= 5 {
                others.join_next().await;
                continue;
            }
            // Nothing may be due until one of the others is done.
            let lease = tokio::select! {
                lease = next(&feed, &inbox) => lease,
                Some(_) = others.join_next() => continue,
            };
            let deed = turns.next().unwrap();
            let seq = lease.loaded().key().seq;
            assert!(in_hand.lock().unwrap().insert(seq), "{seq} is in two hands");
            assert!(!delivered.lock().unwrap().contains(&seq), "{seq} was delivered already");
            if rests && seq % 7 == 0 {
                feed.rest();
            }
            let (inbox, in_hand, delivered) = (inbox.clone(), in_hand.clone(), delivered.clone());
            others.spawn(async move {
                tokio::task::yield_now().await;
                let end = match deed {
                    Deed::Deliver => End::Delivered,
                    Deed::Retry(millis) => End::Retry { after: Duration::from_millis(millis) },
                    Deed::Drop | Deed::PutBack => {
                        in_hand.lock().unwrap().remove(&seq);
                        return if matches!(deed, Deed::Drop) { drop(lease) } else { lease.put_back() };
                    }
                };
                inbox.settle(lease.loaded().key(), ended(end)).await.expect("a settlement");
                in_hand.lock().unwrap().remove(&seq);
                match end {
                    End::Retry { after } => lease.due_at(inbox.now().after(after)),
                    End::Delivered | End::Dead => {
                        delivered.lock().unwrap().push(seq);
                        lease.ended();
                    }
                }
            });
        }
        appending.await.unwrap();
        others.join_all().await;
        assert_eq!(waiting(&inbox), 0);
        let mut distinct = delivered.lock().unwrap().clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), tasks);
        assert_eq!(held(&feed), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
        #[test]
        fn whatever_is_done_in_whatever_order_a_task_is_in_one_hand_at_a_time_and_none_is_forgotten(
            tasks in 1_usize..80,
            lanes in 0_i64..4,
            mut deeds in proptest::collection::vec(deed(), 1..24),
            most_tasks in 4_usize..40,
            rests in any::<bool>(),
        ) {
            deeds.push(Deed::Deliver);
            let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
            threads.block_on(async {
                timeout(2 * PATIENCE, run(tasks, lanes, deeds, most_tasks, rests)).await.expect("none is forgotten");
            });
        }
    }
}
