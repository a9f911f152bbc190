//! The connections to one endpoint: those at rest, and those that requests share.
//!
//! Own code, because two questions decide whether a delivery may be repeated: was anything written, and had the
//! connection been used before. A general client answers neither with certainty.
//!
//! Invariant: an HTTP/1 connection rests here only after an answer was read to its clean end, on the shelf of the thread
//! that read it: its socket belongs to that thread's poll. Last in, first out: the warmest connection is the least likely
//! to have been closed by the upstream, and the others may age and go. One that the upstream closes goes at once. How
//! many there are is bounded by the requests in flight plus `max_idle`.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::threads;

use super::connect::{Connector, Opened, Request, Shared};
use super::failure::cause;
use super::http1::{Connection, NoAnswer};
use super::names::Address;

/// When a stream fails because its connection did, the connection's own task ends in the same breath.
const END_SEEN_WITHIN: Duration = Duration::from_millis(50);

pub(super) struct Pool {
    connector: Arc<Connector>,
    address: Address,
    connect_timeout: Duration,
    max_idle: usize,
    idle_timeout: Duration,
    idle_gauge: IntGauge,
    /// Learned from the last handshake: only then is it worth waiting for another request's connection.
    shares: AtomicBool,
    /// One at a time opens a connection that is to be shared, or a burst would open one each.
    opening: tokio::sync::Mutex<()>,
    /// HTTP/2: those in use and those at rest, on whichever thread. Guards the list; never held across an await.
    shared: Mutex<Vec<Arc<InUse>>>,
    /// HTTP/1: by thread.
    shelves: Box<[Shelf]>,
    /// On all shelves.
    resting: Arc<AtomicUsize>,
    /// Nothing comes to rest here any more.
    is_closed: AtomicBool,
    is_swept_of_shared: AtomicBool,
}

/// Beyond so many threads two share a shelf: a connection may then be driven from a thread that its socket does not
/// belong to, which works and costs a wake-up.
const SHELVES: usize = 32;

/// The connections at rest of one thread.
#[derive(Default)]
struct Shelf {
    /// Guards the list and whether it is swept; never held across an await.
    rest: Mutex<Rest>,
    /// Something was heard of a connection at rest.
    heard: Arc<Notify>,
    waker: OnceLock<Waker>,
}

#[derive(Default)]
struct Rest {
    singles: VecDeque<Resting>,
    is_swept: bool,
}

struct Resting {
    single: Box<Connection>,
    since: Instant,
    _counted: Counted,
}

/// What a connection at rest wakes.
struct Heard(Arc<Notify>);

impl Wake for Heard {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

struct InUse {
    shared: Shared,
    /// Raised under the pool's lock only, so that the peer's limit holds; lowered whenever a stream ends.
    streams: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// A connection for one request.
pub(super) enum Lease {
    Single(Box<Connection>),
    Shared(Stream),
}

pub(super) struct Stream {
    connection: Arc<InUse>,
    pool: Arc<Pool>,
    was_used: bool,
}

/// Why there is no connection.
pub(super) enum NoConnection {
    Failed(String),
    /// The whole exchange's time is over, not only the time for connecting.
    TooLate,
}

impl Pool {
    pub(super) fn new(
        connector: Arc<Connector>,
        address: Address,
        connect_timeout: Duration,
        max_idle: usize,
        idle_timeout: Duration,
        idle_gauge: IntGauge,
    ) -> Arc<Self> {
        Arc::new(Self {
            shares: AtomicBool::new(connector.expects_shared()),
            connector,
            address,
            connect_timeout,
            max_idle,
            idle_timeout,
            idle_gauge,
            opening: tokio::sync::Mutex::new(()),
            shared: Mutex::default(),
            shelves: (0..SHELVES).map(|_| Shelf::default()).collect(),
            resting: Arc::default(),
            is_closed: AtomicBool::new(false),
            is_swept_of_shared: AtomicBool::new(false),
        })
    }

    /// `rested` says whether an HTTP/1 connection that has served before will do, and what time it is. A shared one
    /// always will: those known to have failed are no longer in the list.
    pub(super) async fn check_out(
        self: &Arc<Self>,
        rested: Option<Instant>,
        deadline: Instant,
    ) -> Result<Lease, NoConnection> {
        if let Some(single) = rested.and_then(|now| self.wake_single(now)) {
            return Ok(Lease::Single(single));
        }
        if let Some(stream) = self.join_shared() {
            return Ok(Lease::Shared(stream));
        }
        let until = deadline.min(Instant::now() + self.connect_timeout);
        // Boxed: what connecting takes is far more than what a request on an open connection needs.
        match timeout_at(until, Box::pin(self.open(until))).await {
            Ok(opened) => opened.map_err(NoConnection::Failed),
            Err(_) if until == deadline => Err(NoConnection::TooLate),
            Err(_) => Err(NoConnection::Failed(format!("connecting: not done after {:?}", self.connect_timeout))),
        }
    }

    /// A connection of its own, past both lists: for health probes, which are to learn whether connecting works.
    pub(super) async fn open_apart(self: &Arc<Self>, until: Instant) -> Result<Lease, String> {
        Ok(match self.connector.open(&self.address, until).await? {
            Opened::Single(single) => Lease::Single(single),
            Opened::Shared(shared) => Lease::Shared(Stream::new(InUse::new(shared), self)),
        })
    }

    pub(super) fn give_back(self: &Arc<Self>, mut single: Box<Connection>, now: Instant) {
        if self.max_idle == 0 || !single.comes_to_rest() {
            return;
        }
        let shelf = self.shelf();
        if !single.is_quiet(&mut Context::from_waker(shelf.waker())) {
            return;
        }
        let mut rest = shelf.rest();
        if self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        // The oldest of this thread goes for it; where there is none, the other threads have all that may rest.
        if self.resting.load(Ordering::Relaxed) >= self.max_idle && rest.singles.pop_front().is_none() {
            return;
        }
        rest.singles.push_back(Resting { single, since: now, _counted: Counted::new(self) });
        if !std::mem::replace(&mut rest.is_swept, true) {
            self.sweep_later(threads::number() % SHELVES, now);
        }
    }

    fn wake_single(&self, now: Instant) -> Option<Box<Connection>> {
        let shelf = self.shelf();
        loop {
            let mut single = {
                let mut rest = shelf.rest();
                let resting = rest.singles.pop_back()?;
                if now.saturating_duration_since(resting.since) >= self.idle_timeout {
                    // All others have rested longer.
                    rest.singles.clear();
                    return None;
                }
                resting.single
            };
            if single.is_quiet(&mut Context::from_waker(Waker::noop())) {
                return Some(single);
            }
        }
    }

    /// Of the thread that asks.
    fn shelf(&self) -> &Shelf {
        &self.shelves[threads::number() % SHELVES]
    }

    fn join_shared(self: &Arc<Self>) -> Option<Stream> {
        if !self.shares.load(Ordering::Relaxed) {
            return None;
        }
        let mut shared = self.shared();
        shared.retain(|connection| !connection.is_over(self.idle_timeout));
        let free = shared.iter().filter(|connection| connection.has_room());
        let least = free.min_by_key(|connection| connection.streams.load(Ordering::Relaxed))?;
        Some(Stream::on(least, self))
    }

    async fn open(self: &Arc<Self>, until: Instant) -> Result<Lease, String> {
        let turn = if self.shares.load(Ordering::Relaxed) {
            let turn = self.opening.lock().await;
            if let Some(stream) = self.join_shared() {
                return Ok(Lease::Shared(stream));
            }
            Some(turn)
        } else {
            None
        };
        let opened = self.connector.open(&self.address, until).await?;
        let lease = match opened {
            Opened::Single(single) => {
                self.shares.store(false, Ordering::Relaxed);
                Lease::Single(single)
            }
            Opened::Shared(shared) => {
                self.shares.store(true, Ordering::Relaxed);
                let stream = Stream::new(InUse::new(shared), self);
                let mut shared = self.shared();
                if !self.is_closed.load(Ordering::Relaxed) {
                    shared.push(Arc::clone(&stream.connection));
                    if !self.is_swept_of_shared.swap(true, Ordering::Relaxed) {
                        self.sweep_shared_later();
                    }
                }
                drop(shared);
                Lease::Shared(stream)
            }
        };
        drop(turn);
        Ok(lease)
    }

    /// The address is gone: what rests is closed at once, what is in use when its requests have ended.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // Under each lock once: who looked before has put down what is taken here.
        let shared = std::mem::take(&mut *self.shared());
        let singles: Vec<_> = self.shelves.iter().map(|shelf| std::mem::take(&mut shelf.rest().singles)).collect();
        drop((singles, shared));
    }

    /// No new request joins it; those that are on it go on.
    fn retire(&self, connection: &Arc<InUse>) {
        self.shared().retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Connections at rest are closed on time, and when the upstream closes them, although no request comes to look at
    /// them.
    fn sweep_later(self: &Arc<Self>, shelf: usize, now: Instant) {
        let pool = Arc::downgrade(self);
        let heard = Arc::clone(&self.shelves[shelf].heard);
        let mut next = now + self.idle_timeout;
        tokio::spawn(async move {
            loop {
                // Late or told: either way there is something to look at.
                let _ = timeout_at(next, heard.notified()).await;
                let Some(pool) = Weak::upgrade(&pool) else { return };
                let Some(later) = pool.sweep(&pool.shelves[shelf]) else { return };
                next = later;
            }
        });
    }

    fn sweep(&self, shelf: &Shelf) -> Option<Instant> {
        let now = Instant::now();
        let mut cx = Context::from_waker(shelf.waker());
        let mut rest = shelf.rest();
        rest.singles.retain_mut(|resting| now - resting.since < self.idle_timeout && resting.single.is_quiet(&mut cx));
        rest.is_swept = !rest.singles.is_empty();
        let oldest = rest.singles.front().map_or(now, |resting| resting.since);
        rest.is_swept.then_some(oldest + self.idle_timeout)
    }

    fn sweep_shared_later(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        let idle_timeout = self.idle_timeout;
        tokio::spawn(async move {
            loop {
                sleep_until(Instant::now() + idle_timeout).await;
                let Some(pool) = Weak::upgrade(&pool) else { return };
                let mut shared = pool.shared();
                shared.retain(|connection| !connection.is_over(pool.idle_timeout));
                if shared.is_empty() {
                    pool.is_swept_of_shared.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Arc<InUse>>> {
        // The list is whole between any two statements.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        // As above.
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waker(&self) -> &Waker {
        self.waker.get_or_init(|| Waker::from(Arc::new(Heard(Arc::clone(&self.heard)))))
    }
}

impl InUse {
    fn new(shared: Shared) -> Arc<Self> {
        Arc::new(Self { shared, streams: AtomicUsize::new(0), idle_since: Mutex::new(Instant::now()) })
    }

    fn is_over(&self, idle_timeout: Duration) -> bool {
        let is_idle = self.streams.load(Ordering::Relaxed) == 0;
        let idle_since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.sender.is_closed() || (is_idle && idle_since.elapsed() >= idle_timeout)
    }

    fn has_room(&self) -> bool {
        // A peer that allows no stream for the moment (limit 0) must not make us open connection after connection.
        self.streams.load(Ordering::Relaxed) < self.shared.limit.load(Ordering::Relaxed).max(1)
    }
}

impl Lease {
    /// The time is over: whatever hangs there may hang the next request too.
    pub(super) fn abandon(self) {
        if let Self::Shared(stream) = self {
            stream.pool.retire(&stream.connection);
        }
    }

    /// The answer was read to its clean end.
    pub(super) fn finish(self, pool: &Arc<Pool>, now: Instant) {
        if let Self::Single(single) = self {
            pool.give_back(single, now);
        }
    }
}

/// Why hyper has no answer for us.
struct Untold {
    /// The request came back as it was given.
    came_back: bool,
    detail: String,
}

/// What becomes of a request on its connection. hyper tells it to all requests that it knows of, but one that is handed
/// over in the very moment in which the connection's task ends can get lost between the two: it is never written, and
/// nobody is ever told. Waiting for that would use up the whole deadline.
async fn told<B>(
    sending: impl Future<Output = Result<Response<Incoming>, TrySendError<B>>>,
    mut ended: watch::Receiver<()>,
) -> Result<Response<Incoming>, Untold> {
    let mut sending = pin!(sending);
    let sent = tokio::select! {
        biased;
        sent = &mut sending => Some(sent),
        // Nothing is ever sent there: a change is the connection's end. What it told before then is there to be read.
        _ = ended.changed() => timeout(END_SEEN_WITHIN, &mut sending).await.ok(),
    };
    match sent {
        Some(sent) => {
            sent.map_err(|mut error| Untold { came_back: error.take_message().is_some(), detail: cause(error.error()) })
        }
        None => Err(Untold { came_back: false, detail: "the connection ended before it took the request".to_owned() }),
    }
}

impl Stream {
    fn new(connection: Arc<InUse>, pool: &Arc<Pool>) -> Self {
        Self::on(&connection, pool)
    }

    fn on(connection: &Arc<InUse>, pool: &Arc<Pool>) -> Self {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        let was_used = connection.shared.was_used.load(Ordering::Relaxed);
        Self { connection: Arc::clone(connection), pool: Arc::clone(pool), was_used }
    }

    /// The caller holds the deadline. Dropping this half-way resets the stream.
    pub(super) async fn send(&self, request: Request) -> Result<Response<Incoming>, NoAnswer> {
        let shared = &self.connection.shared;
        let untold = match told(shared.sender.clone().try_send_request(request), shared.ended.clone()).await {
            Ok(response) => {
                shared.was_used.store(true, Ordering::Relaxed);
                return Ok(response);
            }
            Err(untold) => untold,
        };
        // One stream can fail alone: that is an answer of a kind. Only the end of the whole connection is the
        // keep-alive race. The sender of that channel never sends: a change is the connection's end.
        let has_ended =
            shared.sender.is_closed() || timeout(END_SEEN_WITHIN, shared.ended.clone().changed()).await.is_ok();
        if has_ended {
            self.pool.retire(&self.connection);
        }
        Err(NoAnswer {
            nothing_written: untold.came_back,
            was_stale: self.was_used && has_ended,
            detail: untold.detail,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.connection.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.connection.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One more at rest, here and on the gauge, for as long as it lives.
struct Counted(Arc<AtomicUsize>, IntGauge);

impl Counted {
    fn new(pool: &Pool) -> Self {
        pool.resting.fetch_add(1, Ordering::Relaxed);
        pool.idle_gauge.inc();
        Self(Arc::clone(&pool.resting), pool.idle_gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        self.1.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_its_ended_connection_never_took_is_not_waited_for() {
        let (lives, ended) = watch::channel(());
        let sending = std::future::pending::<Result<_, TrySendError<()>>>();
        let waiting = tokio::spawn(told(sending, ended));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished(), "while the connection lives, its answer may come");
        drop(lives);
        let untold = timeout(2 * END_SEEN_WITHIN, waiting).await.unwrap().unwrap().unwrap_err();
        assert!(!untold.came_back);
    }
}
