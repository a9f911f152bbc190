//! What all requests share: bytes of bodies held, and requests in flight per client.
//!
//! Invariant: every byte that is held is counted, and is given back by `Drop`, whatever becomes of its request. Where a
//! client's, a source's or the whole room is used up, the unfinished bodies that cost others most (bytes held, times how
//! long) make room: somebody who sends a byte a second must not keep out somebody who is done in a millisecond. Room
//! that a cut body is about to leave is given away once; nobody is cut unless that makes room enough.

use crate::client::ClientKey;
use crate::state::Keyed;
use prometheus::IntGauge;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// One client may hold this part of all, one source that.
const CLIENT_SHARE: u64 = 8;
const SOURCE_SHARE: u64 = 2;

/// A body younger than this is not judged slow.
const TOO_YOUNG_TO_JUDGE: Duration = Duration::from_secs(1);

/// A search that found too little is not repeated for this long: it walks over all unfinished bodies under the lock,
/// and those who are refused may come back as fast as they like. At most eight clients, two sources and the whole can
/// be full at once, so this bounds the searches in vain; every other search ends somebody's request.
const SEARCH_AGAIN: Duration = Duration::from_millis(100);

/// Bytes of bodies, of all requests.
pub(crate) struct Buffer {
    most: AtomicUsize,
    held: Mutex<Held>,
    gauge: IntGauge,
}

/// What the lock guards: sums that must agree. Held for a few additions, and for one walk over the unfinished bodies
/// when room has run out.
#[derive(Default)]
struct Held {
    total: Tally,
    by_client: HashMap<ClientKey, Tally, Keyed>,
    by_source: HashMap<Arc<str>, Tally, BuildHasherDefault<OfName>>,
    /// Those that came in parts, by number: whoever holds nothing, or is whole, is nobody's victim.
    unfinished: HashMap<u64, Arc<Body>>,
    next: u64,
}

#[derive(Default)]
struct Tally {
    held: u64,
    /// The part of it whose bodies were cut and whose requests have yet to notice.
    leaving: u64,
    /// When a search last found too little, and how much there was at most.
    searched: Option<(Instant, u64)>,
}

/// FNV-1a: names are the operator's, and nobody else chooses which of them meet in a table.
struct OfName(u64);

impl Default for OfName {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for OfName {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }

    fn finish(&self) -> u64 {
        // The table looks at the highest bits too, which the last bytes have hardly reached.
        self.0 ^ self.0.rotate_left(32)
    }
}

/// Whose a body is, and since when.
#[derive(Clone)]
struct Owner {
    client: ClientKey,
    source: Arc<str>,
    started: Instant,
}

/// One that is unfinished, or was.
struct Body {
    owner: Owner,
    bytes: AtomicUsize,
    cut: AtomicBool,
    wake: Notify,
}

/// Whose room.
#[derive(Clone, Copy)]
enum Scope {
    Client,
    Source,
    All,
}

fn rooms(most: u64) -> [(Scope, u64); 3] {
    [(Scope::Client, most / CLIENT_SHARE), (Scope::Source, most / SOURCE_SHARE), (Scope::All, most)]
}

/// One body's share, given back when dropped.
pub(crate) struct Share {
    buffer: Arc<Buffer>,
    owner: Owner,
    /// Bytes of a body that was never unfinished.
    whole: AtomicUsize,
    /// One that is, or was.
    body: OnceLock<Arc<Body>>,
    /// Among the unfinished; 0: it is not, or was never.
    number: AtomicU64,
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
        Share {
            buffer: self.clone(),
            owner: Owner { client, source, started },
            whole: AtomicUsize::new(0),
            body: OnceLock::new(),
            number: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: &Held) {
        self.gauge.set(i64::try_from(held.total.held).unwrap_or(i64::MAX));
    }
}

impl Share {
    /// Counts bytes that have come, of a body that goes on.
    pub(crate) fn grow(&self, bytes: usize) -> Result<(), NoRoom> {
        self.take(bytes, false)
    }

    /// Counts a body that has come in one piece: it is held, and never unfinished.
    pub(crate) fn hold_whole(&self, bytes: usize) -> Result<(), NoRoom> {
        self.take(bytes, true)
    }

    fn take(&self, bytes: usize, is_whole: bool) -> Result<(), NoRoom> {
        let most = self.buffer.most.load(Ordering::Relaxed) as u64;
        let more = bytes as u64;
        let mut held = self.buffer.lock();
        if self.is_cut() {
            return Err(NoRoom);
        }
        held.make_room(more, most, &self.owner, self.held())?;
        self.count(&mut held, bytes);
        match (self.number.load(Ordering::Relaxed), is_whole) {
            (0, false) => {
                held.next += 1;
                let number = held.next;
                let begun = || {
                    let bytes = AtomicUsize::new(self.whole.swap(0, Ordering::Relaxed));
                    Arc::new(Body {
                        owner: self.owner.clone(),
                        bytes,
                        cut: AtomicBool::new(false),
                        wake: Notify::new(),
                    })
                };
                held.unfinished.insert(number, self.body.get_or_init(begun).clone());
                self.number.store(number, Ordering::Relaxed);
            }
            (number @ 1.., true) => {
                held.unfinished.remove(&number);
                self.number.store(0, Ordering::Relaxed);
            }
            (0, true) | (1.., false) => {}
        }
        Ok(())
    }

    /// Counts bytes that would be convenient, if nobody has to go for them; says whether it did.
    pub(crate) fn grow_if_free(&self, bytes: usize) -> bool {
        let most = self.buffer.most.load(Ordering::Relaxed) as u64;
        let more = bytes as u64;
        let mut held = self.buffer.lock();
        let is_free = rooms(most).into_iter().all(|room| held.missing(room, more, &self.owner) == 0);
        let grows = is_free && !self.is_cut();
        if grows {
            self.count(&mut held, bytes);
        }
        grows
    }

    fn count(&self, held: &mut Held, bytes: usize) {
        held.update(&self.owner, |tally| tally.held += bytes as u64);
        self.body.get().map_or(&self.whole, |body| &body.bytes).fetch_add(bytes, Ordering::Relaxed);
        self.buffer.show(held);
    }

    /// Waits until somebody else's body needs this one's room.
    pub(crate) async fn cut(&self) {
        // Whoever reads it makes it unfinished, and looks here again before they wait.
        let body = poll_fn(|_| self.body.get().map_or(Poll::Pending, Poll::Ready)).await;
        while !body.is_cut() {
            body.wake.notified().await;
        }
    }

    fn held(&self) -> u64 {
        self.body.get().map_or(self.whole.load(Ordering::Relaxed) as u64, |body| body.held())
    }

    fn is_cut(&self) -> bool {
        self.body.get().is_some_and(|body| body.is_cut())
    }

    /// The body is whole: from here on it is not slow, it is being worked on. One that was cut meanwhile has no room
    /// to be worked on in: it was given to somebody else.
    pub(crate) fn finish(&self) -> Result<(), NoRoom> {
        match self.number.swap(0, Ordering::Relaxed) {
            // It holds nothing.
            0 => Ok(()),
            number => self.buffer.lock().unfinished.remove(&number).map(drop).ok_or(NoRoom),
        }
    }
}

impl Held {
    /// Sees to it that `more` bytes fit into all three rooms, or cuts nobody. The bytes of a cut body are held until
    /// its request lets go of them, a moment later; for that moment more than `most` may be held, by as much.
    fn make_room(&mut self, more: u64, most: u64, asking: &Owner, has: u64) -> Result<(), NoRoom> {
        let mut victims = BTreeMap::new();
        for room in rooms(most) {
            let scope = room.0;
            let going: u64 = victims
                .values()
                .filter(|body: &&Arc<Body>| scope.has(asking, &body.owner))
                .map(|body| body.held())
                .sum();
            let missing = self.missing(room, more, asking).saturating_sub(going);
            if missing > 0 {
                self.choose(scope, missing, (asking, has), &mut victims)?;
            }
        }
        for (number, body) in victims {
            self.unfinished.remove(&number);
            self.update(&body.owner, |tally| tally.leaving += body.held());
            body.cut.store(true, Ordering::Relaxed);
            body.wake.notify_one();
        }
        Ok(())
    }

    fn missing(&self, (scope, limit): (Scope, u64), more: u64, asking: &Owner) -> u64 {
        let (held, leaving) = self.tally(scope, asking).map_or((0, 0), |tally| (tally.held, tally.leaving));
        (held + more).saturating_sub(limit + leaving)
    }

    /// Adds the dearest bodies of this room to the victims, until there is what is missing. Whoever costs others more
    /// than they do gets no room at their expense: one hog must not outlive forty small ones by asking for more.
    fn choose(
        &mut self,
        scope: Scope,
        mut missing: u64,
        (asking, has): (&Owner, u64),
        victims: &mut BTreeMap<u64, Arc<Body>>,
    ) -> Result<(), NoRoom> {
        let now = Instant::now();
        if let Some((since, found)) = self.tally(scope, asking).and_then(|tally| tally.searched)
            && now.saturating_duration_since(since) < SEARCH_AGAIN
            && missing > found
        {
            return Err(NoRoom);
        }
        let own_cost = asking.cost(has, now);
        let mut found = 0;
        let mut candidates = BinaryHeap::new();
        for (number, body) in &self.unfinished {
            let cost = body.owner.cost(body.held(), now);
            if cost == 0 || !scope.has(asking, &body.owner) {
                continue;
            }
            found += body.held();
            // The asking body is as dear as itself, and so never its own victim.
            if cost > own_cost && !victims.contains_key(number) {
                candidates.push((cost, *number));
            }
        }
        while missing > 0 {
            let dearest =
                candidates.pop().and_then(|(_, number)| Some((number, self.unfinished.get(&number)?.clone())));
            let Some((number, body)) = dearest else {
                if let Some(tally) = self.tally_mut(scope, asking) {
                    tally.searched = Some((now, found));
                }
                return Err(NoRoom);
            };
            missing = missing.saturating_sub(body.held());
            victims.insert(number, body);
        }
        Ok(())
    }

    fn tally(&self, scope: Scope, of: &Owner) -> Option<&Tally> {
        match scope {
            Scope::Client => self.by_client.get(&of.client),
            Scope::Source => self.by_source.get(&of.source),
            Scope::All => Some(&self.total),
        }
    }

    fn tally_mut(&mut self, scope: Scope, of: &Owner) -> Option<&mut Tally> {
        match scope {
            Scope::Client => self.by_client.get_mut(&of.client),
            Scope::Source => self.by_source.get_mut(&of.source),
            Scope::All => Some(&mut self.total),
        }
    }

    /// The same change to all three sums. Entries at zero go, so that the tables are as large as what is held, not as
    /// what was ever seen.
    fn update(&mut self, of: &Owner, change: impl Fn(&mut Tally)) {
        change(&mut self.total);
        update(self.by_client.entry(of.client), &change);
        update(self.by_source.entry(of.source.clone()), &change);
    }
}

fn update<K>(entry: Entry<'_, K, Tally>, change: impl Fn(&mut Tally)) {
    match entry {
        Entry::Occupied(mut tally) => {
            change(tally.get_mut());
            if tally.get().held == 0 {
                tally.remove();
            }
        }
        Entry::Vacant(free) => {
            let mut tally = Tally::default();
            change(&mut tally);
            if tally.held > 0 {
                free.insert(tally);
            }
        }
    }
}

impl Body {
    fn held(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) as u64
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }
}

impl Owner {
    /// Of a body that holds so much: bytes times milliseconds that others could not have. One that came fast and stalls
    /// grows dearer by standing there, and pace plays no part. 0: too young to judge, or nothing to give.
    fn cost(&self, held: u64, now: Instant) -> u128 {
        let age = now.saturating_duration_since(self.started);
        if age < TOO_YOUNG_TO_JUDGE { 0 } else { u128::from(held) * age.as_millis() }
    }
}

impl Scope {
    /// Whether this body uses the asking body's room.
    fn has(self, asking: &Owner, body: &Owner) -> bool {
        match self {
            Self::Client => body.client == asking.client,
            Self::Source => body.source == asking.source,
            Self::All => true,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let bytes = self.held();
        let number = *self.number.get_mut();
        if bytes == 0 && number == 0 {
            return;
        }
        let mut held = self.buffer.lock();
        let leaving = if self.is_cut() { bytes } else { 0 };
        if number > 0 {
            held.unfinished.remove(&number);
        }
        held.update(&self.owner, |tally| {
            tally.held = tally.held.saturating_sub(bytes);
            tally.leaving = tally.leaving.saturating_sub(leaving);
        });
        self.buffer.show(&held);
    }
}

/// Requests in flight, per client; HTTP/2 streams are requests.
pub(crate) struct InFlight {
    most: AtomicUsize,
    /// Guards only this map. As large as the number of requests in flight.
    clients: Mutex<HashMap<ClientKey, usize, Keyed>>,
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
        if let Entry::Occupied(mut count) = clients.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(most: u64) -> Arc<Buffer> {
        Buffer::new(most, IntGauge::new("held", "held").expect("a valid name"))
    }

    fn client(last: u8) -> ClientKey {
        ClientKey::of([192, 0, 2, last].into())
    }

    fn seconds_ago(seconds: u64) -> Instant {
        Instant::now() - Duration::from_secs(seconds)
    }

    /// A body of source `a` that has stood for so long with so many bytes.
    fn stalled(buffer: &Arc<Buffer>, of: u8, seconds: u64, bytes: usize) -> Share {
        let share = buffer.share(client(of), "a".into(), seconds_ago(seconds));
        share.grow(bytes).expect("there is room");
        share
    }

    fn cut<'a>(shares: impl IntoIterator<Item = &'a Share>) -> Vec<usize> {
        shares.into_iter().enumerate().filter(|(_, share)| share.is_cut()).map(|(at, _)| at).collect()
    }

    fn is_as_new(buffer: &Buffer) -> bool {
        let held = buffer.lock();
        (held.total.held, held.total.leaving, buffer.gauge.get()) == (0, 0, 0)
            && held.by_client.is_empty()
            && held.by_source.is_empty()
            && held.unfinished.is_empty()
    }

    #[test]
    fn a_body_that_came_in_one_piece_is_held_and_makes_room_for_nobody() {
        let buffer = buffer(800);
        let whole = buffer.share(client(1), "a".into(), seconds_ago(60));
        // As HTTP/2 may begin: with a frame of nothing.
        whole.grow(0).expect("there is room");
        whole.hold_whole(100).expect("there is room");
        assert_eq!(buffer.lock().total.held, 100);
        let other = buffer.share(client(1), "a".into(), Instant::now());
        assert_eq!(other.hold_whole(1), Err(NoRoom));
        assert_eq!(other.grow(1), Err(NoRoom));
        assert!(!whole.is_cut() && whole.finish() == Ok(()));
        let nothing = buffer.share(client(2), "a".into(), Instant::now());
        assert_eq!(nothing.finish(), Ok(()));
        drop((nothing, other, whole));
        assert!(is_as_new(&buffer));
        let unfinished = stalled(&buffer, 1, 60, 100);
        let other = buffer.share(client(1), "a".into(), Instant::now());
        assert_eq!(other.hold_whole(100), Ok(()));
        assert!(unfinished.is_cut() && unfinished.finish() == Err(NoRoom));
        drop((unfinished, other));
        assert!(is_as_new(&buffer));
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
        assert!(is_as_new(&buffer));
    }

    #[tokio::test]
    async fn four_stalled_clients_do_not_keep_a_fifth_out_of_their_source() {
        let buffer = buffer(800);
        let shares = [1, 2, 3, 4].map(|of| stalled(&buffer, of, 2 + u64::from(of), 100));
        let newcomer = buffer.share(client(5), "a".into(), Instant::now());
        assert_eq!(newcomer.grow(50), Ok(()));
        assert_eq!(cut(&shares), [3], "the one that stood longest");
        let [.., longest] = &shares;
        longest.cut().await;
        assert_eq!((longest.grow(1), longest.finish()), (Err(NoRoom), Err(NoRoom)));
        assert_eq!(newcomer.finish(), Ok(()));
        drop((shares, newcomer));
        assert!(is_as_new(&buffer));
    }

    #[test]
    fn a_stalled_body_does_not_keep_others_of_its_address_out_and_nobody_elses_is_cut_for_them() {
        let buffer = buffer(800);
        let neighbour = stalled(&buffer, 1, 100, 100);
        let hog = stalled(&buffer, 2, 5, 100);
        let newcomer = buffer.share(client(2), "b".into(), Instant::now());
        assert_eq!(newcomer.grow(50), Ok(()));
        assert_eq!(cut([&neighbour, &hog]), [1]);
    }

    #[test]
    fn the_dearest_of_all_makes_room_when_the_total_is_reached() {
        let buffer = buffer(800);
        let shares: Vec<_> = (0..8u8)
            .map(|n| {
                let share = buffer.share(client(n), if n % 2 == 0 { "a" } else { "b" }.into(), seconds_ago(10));
                share.grow(if n == 3 { 100 } else { 99 }).expect("there is room");
                share
            })
            .collect();
        let newcomer = buffer.share(client(9), "c".into(), Instant::now());
        assert_eq!(newcomer.grow(50), Ok(()));
        assert_eq!(cut(&shares), [3]);
    }

    #[test]
    fn one_hog_goes_before_forty_small_ones_even_if_it_came_fast() {
        let buffer = buffer(8000);
        let small: Vec<_> = (0..40).map(|_| stalled(&buffer, 1, 3, 10)).collect();
        let hog = stalled(&buffer, 1, 3, 600);
        let newcomer = buffer.share(client(1), "a".into(), Instant::now());
        assert_eq!(newcomer.grow(300), Ok(()));
        assert_eq!((cut(&small).len(), cut([&hog])), (0, vec![0]));
    }

    #[test]
    fn a_hog_that_asks_for_more_is_refused_instead_of_served_at_the_cost_of_small_ones() {
        let buffer = buffer(8000);
        let small: Vec<_> = (0..40).map(|_| stalled(&buffer, 1, 3, 10)).collect();
        let hog = stalled(&buffer, 1, 3, 600);
        assert_eq!(hog.grow(1), Err(NoRoom));
        assert_eq!(cut(&small).len(), 0);
        // Its twin: one of the small ones asks, and the hog goes.
        assert_eq!(small.first().expect("forty").grow(1), Ok(()));
        assert_eq!(cut([&hog]), [0]);
    }

    #[test]
    fn nobody_is_cut_for_room_that_is_already_being_left() {
        let buffer = buffer(800);
        let shares = [1, 2, 3, 4].map(|of| stalled(&buffer, of, 2, 100));
        let newcomer = buffer.share(client(5), "a".into(), Instant::now());
        for _ in 0..10 {
            assert_eq!(newcomer.grow(10), Ok(()));
        }
        assert_eq!(cut(&shares).len(), 1);
        assert_eq!(buffer.gauge.get(), 500, "what a cut body still holds is counted");
        // The room is used up again: now somebody else has to go.
        let another = buffer.share(client(6), "a".into(), Instant::now());
        assert_eq!(another.grow(1), Ok(()));
        assert_eq!(cut(&shares).len(), 2);
        drop((shares, newcomer, another));
        assert!(is_as_new(&buffer));
    }

    #[test]
    fn nobody_is_cut_in_vain() {
        let buffer = buffer(800);
        // The client's own stalled body would make room in its eighth, but the source's half is held by whole bodies.
        let whole = [1, 2, 3].map(|of| {
            let share = stalled(&buffer, of, 9, 100);
            share.finish().expect("not cut");
            share
        });
        let own = stalled(&buffer, 4, 9, 10);
        let young = buffer.share(client(5), "a".into(), Instant::now());
        young.grow(90).expect("there is room");
        let newcomer = buffer.share(client(4), "a".into(), Instant::now());
        assert_eq!(newcomer.grow(95), Err(NoRoom));
        assert_eq!(cut(whole.iter().chain([&own, &young])).len(), 0);
        assert_eq!(newcomer.grow(5), Ok(()), "five fit where ten can be had");
        assert_eq!(cut([&own]), [0]);
    }

    #[test]
    fn nobody_goes_for_room_that_is_only_convenient() {
        let buffer = buffer(800);
        let old = stalled(&buffer, 1, 9, 60);
        let newcomer = buffer.share(client(1), "a".into(), Instant::now());
        assert!(newcomer.grow_if_free(40));
        assert!(!newcomer.grow_if_free(1));
        assert_eq!((cut([&old]).len(), buffer.gauge.get()), (0, 100));
        drop((old, newcomer));
        assert!(is_as_new(&buffer));
    }

    #[test]
    fn a_finished_body_is_never_cut() {
        let buffer = buffer(800);
        let shares: Vec<_> = (0..8u8)
            .map(|n| {
                let share = buffer.share(client(n), if n % 2 == 0 { "a" } else { "b" }.into(), seconds_ago(10));
                share.grow(100).expect("there is room");
                share.finish().expect("not cut");
                share
            })
            .collect();
        let newcomer = buffer.share(client(9), "c".into(), Instant::now());
        assert_eq!(newcomer.grow(50), Err(NoRoom));
        assert!(cut(&shares).is_empty());
    }

    #[test]
    fn a_search_in_vain_is_not_repeated_at_once_but_one_that_can_succeed_is_made() {
        let buffer = buffer(800);
        let old = stalled(&buffer, 1, 5, 20);
        let young = buffer.share(client(1), "a".into(), Instant::now());
        young.grow(80).expect("there is room");
        let newcomer = buffer.share(client(1), "a".into(), Instant::now());
        assert_eq!(newcomer.grow(21), Err(NoRoom));
        let searched = |buffer: &Buffer| buffer.lock().by_client.get(&client(1)).and_then(|tally| tally.searched);
        let first = searched(&buffer);
        assert_eq!(first.map(|(_, found)| found), Some(20));
        assert_eq!(newcomer.grow(21), Err(NoRoom));
        assert_eq!(searched(&buffer), first);
        assert_eq!(newcomer.grow(20), Ok(()));
        assert_eq!(cut([&old, &young]), [0]);
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
