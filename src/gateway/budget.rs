//! What all requests share: bytes of bodies held, and requests in flight per client.
//!
//! Invariant: every byte that is held is counted, and is given back by `Drop`, whatever becomes of its request. When
//! the total is reached the slowest unfinished body makes room: somebody who sends a byte a second must not keep out
//! somebody who is done in a millisecond.

use crate::client::ClientKey;
use prometheus::IntGauge;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// One client may hold this part of all, one source that.
const CLIENT_SHARE: u64 = 8;
const SOURCE_SHARE: u64 = 2;

/// A body younger than this is not judged slow.
const TOO_YOUNG_TO_JUDGE: std::time::Duration = std::time::Duration::from_secs(1);

/// Bytes of bodies, of all requests.
pub(crate) struct Buffer {
    most: AtomicUsize,
    held: Mutex<Held>,
    gauge: IntGauge,
}

/// What the lock guards: sums that must agree. Held for a few additions, and for a walk over the unfinished bodies
/// only when the total is reached.
#[derive(Default)]
struct Held {
    total: u64,
    by_client: HashMap<ClientKey, u64>,
    by_source: HashMap<Arc<str>, u64>,
    unfinished: HashMap<u64, Arc<Body>>,
    next: u64,
}

struct Body {
    started: Instant,
    bytes: AtomicUsize,
    cut: AtomicBool,
    wake: Notify,
}

/// One body's share, given back when dropped.
pub(crate) struct Share {
    buffer: Arc<Buffer>,
    body: Arc<Body>,
    number: u64,
    client: ClientKey,
    source: Arc<str>,
}

/// There is no room for these bytes, or the body was cut to make room for others.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl Buffer {
    pub(crate) fn new(most: u64, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(usize::try_from(most).unwrap_or(usize::MAX)),
            held: Mutex::default(),
            gauge,
        })
    }

    pub(crate) fn resize(&self, most: u64) {
        self.most.store(usize::try_from(most).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(crate) fn share(self: &Arc<Self>, client: ClientKey, source: Arc<str>, started: Instant) -> Share {
        let body =
            Arc::new(Body { started, bytes: AtomicUsize::new(0), cut: AtomicBool::new(false), wake: Notify::new() });
        let mut held = self.lock();
        let number = held.next;
        held.next += 1;
        held.unfinished.insert(number, body.clone());
        Share { buffer: self.clone(), body, number, client, source }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Counts bytes that have come.
    pub(crate) fn grow(&self, bytes: usize) -> Result<(), NoRoom> {
        let most = self.buffer.most.load(Ordering::Relaxed) as u64;
        let more = bytes as u64;
        let mut held = self.buffer.lock();
        if self.body.cut.load(Ordering::Relaxed) {
            return Err(NoRoom);
        }
        let client = held.by_client.get(&self.client).copied().unwrap_or(0);
        let source = held.by_source.get(&self.source).copied().unwrap_or(0);
        if client + more > most / CLIENT_SHARE || source + more > most / SOURCE_SHARE {
            return Err(NoRoom);
        }
        if held.total + more > most && !held.make_room(more, most, self.number) {
            return Err(NoRoom);
        }
        held.total += more;
        *held.by_client.entry(self.client).or_default() += more;
        *held.by_source.entry(self.source.clone()).or_default() += more;
        self.body.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.buffer.gauge.set(i64::try_from(held.total).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Waits until somebody else's body needs this one's room.
    pub(crate) async fn cut(&self) {
        while !self.body.cut.load(Ordering::Relaxed) {
            self.body.wake.notified().await;
        }
    }

    /// The body is whole: from here on it is not slow, it is being worked on.
    pub(crate) fn finish(&self) {
        self.buffer.lock().unfinished.remove(&self.number);
    }
}

impl Held {
    /// Cuts slow bodies until there is room. The bytes of a cut body count until its request lets go of them, a moment
    /// later; for that moment the total may be passed by as much.
    fn make_room(&mut self, more: u64, most: u64, asking: u64) -> bool {
        let mut freed = 0;
        while self.total + more > most + freed {
            let now = Instant::now();
            let pace = |body: &Body| {
                let age = now.saturating_duration_since(body.started).max(TOO_YOUNG_TO_JUDGE);
                body.bytes.load(Ordering::Relaxed) as f64 / age.as_secs_f64()
            };
            let slowest = self
                .unfinished
                .iter()
                .filter(|(number, body)| {
                    let old = now.saturating_duration_since(body.started) >= TOO_YOUNG_TO_JUDGE;
                    **number != asking && old && body.bytes.load(Ordering::Relaxed) > 0
                })
                .min_by(|(_, a), (_, b)| pace(a).total_cmp(&pace(b)))
                .map(|(number, _)| *number);
            let Some(victim) = slowest.and_then(|number| self.unfinished.remove(&number)) else { return false };
            victim.cut.store(true, Ordering::Relaxed);
            victim.wake.notify_one();
            freed += victim.bytes.load(Ordering::Relaxed) as u64;
        }
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.buffer.lock();
        let bytes = self.body.bytes.load(Ordering::Relaxed) as u64;
        held.unfinished.remove(&self.number);
        held.total = held.total.saturating_sub(bytes);
        give_back(&mut held.by_client, &self.client, bytes);
        give_back(&mut held.by_source, &self.source, bytes);
        self.buffer.gauge.set(i64::try_from(held.total).unwrap_or(i64::MAX));
    }
}

/// Entries at zero go, so that the tables are as large as what is held, not as what was ever seen.
fn give_back<K: Hash + Eq>(table: &mut HashMap<K, u64>, key: &K, bytes: u64) {
    if let Some(held) = table.get_mut(key) {
        *held = held.saturating_sub(bytes);
        if *held == 0 {
            table.remove(key);
        }
    }
}

/// Requests in flight, per client; HTTP/2 streams are requests.
pub(crate) struct InFlight {
    most: AtomicUsize,
    /// Guards only this map. As large as the number of requests in flight.
    clients: Mutex<HashMap<ClientKey, usize>>,
}

pub(crate) struct Place {
    table: Arc<InFlight>,
    client: ClientKey,
}

impl InFlight {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), clients: Mutex::default() })
    }

    pub(crate) fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    pub(crate) fn enter(self: &Arc<Self>, client: ClientKey) -> Option<Place> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= self.most.load(Ordering::Relaxed) {
            return None;
        }
        *count += 1;
        Some(Place { table: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.table.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn buffer(most: u64) -> Arc<Buffer> {
        Buffer::new(most, IntGauge::new("held", "held").expect("a valid name"))
    }

    fn client(last: u8) -> ClientKey {
        ClientKey::of([192, 0, 2, last].into())
    }

    fn long_ago() -> Instant {
        Instant::now() - Duration::from_secs(10)
    }

    #[test]
    fn one_client_holds_an_eighth_and_one_source_half() {
        let buffer = buffer(800);
        let first = buffer.share(client(1), "a".into(), Instant::now());
        assert_eq!(first.grow(100), Ok(()));
        assert_eq!(first.grow(1), Err(NoRoom));
        let others: Vec<_> = (2..5).map(|n| buffer.share(client(n), "a".into(), Instant::now())).collect();
        for other in &others {
            assert_eq!(other.grow(100), Ok(()));
        }
        let fifth = buffer.share(client(5), "a".into(), Instant::now());
        assert_eq!(fifth.grow(1), Err(NoRoom));
        let elsewhere = buffer.share(client(5), "b".into(), Instant::now());
        assert_eq!(elsewhere.grow(100), Ok(()));
        drop((first, others, fifth, elsewhere));
        let held = buffer.lock();
        assert_eq!((held.total, held.by_client.len(), held.by_source.len(), held.unfinished.len()), (0, 0, 0, 0));
    }

    #[tokio::test]
    async fn the_slowest_unfinished_body_makes_room() {
        let buffer = buffer(800);
        let shares: Vec<_> = (0..8u8)
            .map(|n| {
                let share = buffer.share(client(n), if n % 2 == 0 { "a" } else { "b" }.into(), long_ago());
                share.grow(if n == 3 { 99 } else { 100 }).expect("there is room");
                share
            })
            .collect();
        let newcomer = buffer.share(client(9), "c".into(), Instant::now());
        assert_eq!(newcomer.grow(50), Ok(()));
        let slowest = shares.get(3).expect("eight");
        slowest.cut().await;
        assert_eq!(slowest.grow(1), Err(NoRoom));
        assert!(shares.iter().filter(|share| share.body.cut.load(Ordering::Relaxed)).count() == 1);
    }

    #[test]
    fn a_finished_body_is_never_cut() {
        let buffer = buffer(800);
        let shares: Vec<_> = (0..8u8)
            .map(|n| {
                let share = buffer.share(client(n), if n % 2 == 0 { "a" } else { "b" }.into(), long_ago());
                share.grow(100).expect("there is room");
                share.finish();
                share
            })
            .collect();
        let newcomer = buffer.share(client(9), "c".into(), Instant::now());
        assert_eq!(newcomer.grow(50), Err(NoRoom));
        assert!(shares.iter().all(|share| !share.body.cut.load(Ordering::Relaxed)));
    }

    #[test]
    fn a_client_has_so_many_requests_in_flight_and_no_more() {
        let table = InFlight::new(2);
        let first = table.enter(client(1));
        let second = table.enter(client(1));
        assert!(first.is_some() && second.is_some());
        assert!(table.enter(client(1)).is_none());
        assert!(table.enter(client(2)).is_some());
        drop(first);
        assert!(table.enter(client(1)).is_some());
        drop(second);
        assert!(table.clients.lock().expect("unpoisoned").is_empty());
    }
}
