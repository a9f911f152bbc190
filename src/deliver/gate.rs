//! How many requests may be at each endpoint at once, who waits for a place, and which endpoint a place is at.
//!
//! Invariant: an endpoint never has more than `max_in_flight` requests; a `Slot` is one of them, and dropping it hands
//! the place to whoever's turn it is (`queue.rs`), under the same lock, so that newcomers cannot push in. A place is not bound
//! to an endpoint until it is taken: an endpoint that hangs fills its own places and no others. Which endpoints there
//! are changes while requests are at them: a slot names its endpoint by an id that is never given twice, and one that
//! was taken away gets nothing new and is counted until its last request has ended, so that its coming back does not
//! let in more than it may have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::{Instant, timeout};

use super::balance::{self, Balance, Candidate};
use super::health::{Health, Sign, Standing};
use super::names::Address;
use super::queue::Queue;

/// So many endpoints are tried by one request although they are believed bad. Beyond that it is an upstream that is
/// down, and a request must not knock at all the addresses that a name may have.
const MOST_TRIES_OF_BAD: usize = 8;
/// Each gateway tries an ejected endpoint again a little earlier or later than its sisters.
const EJECTION_JITTER: std::ops::RangeInclusive<f64> = 0.8..=1.2;

pub(super) struct Gate<E> {
    balance: Balance,
    max_in_flight: usize,
    in_flight: IntGauge,
    /// By url.
    shown: Vec<Shown>,
    /// How many endpoints are in use.
    used: AtomicUsize,
    /// Guards the endpoints, the counts, the health and the queue: they are one decision. Held for a few comparisons,
    /// never across an await.
    state: Mutex<State<E>>,
}

/// What the metrics show of one url.
#[derive(Clone)]
pub(super) struct Shown {
    /// Any of its endpoints is.
    pub(super) healthy: IntGauge,
    pub(super) addresses: IntGauge,
    pub(super) healthy_addresses: IntGauge,
}

struct State<E> {
    /// Those in use first, in the order of the urls and of their addresses; behind them those on their way out.
    members: Vec<Member<E>>,
    /// How many of them are in use.
    used: usize,
    turn: usize,
    next_id: u64,
    queue: Queue<Slot<E>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u64);

struct Member<E> {
    id: Id,
    url: usize,
    address: Address,
    endpoint: Arc<E>,
    in_flight: usize,
    health: Health,
    is_leaving: bool,
}

/// A place at one endpoint. Settling it says what became of the request; dropping it unsettled says nothing about the
/// endpoint.
pub(super) struct Slot<E> {
    gate: Arc<Gate<E>>,
    pub(super) id: Id,
    pub(super) url: usize,
    pub(super) endpoint: Arc<E>,
    pub(super) since: Instant,
    ended: Option<Instant>,
    is_trial: bool,
    sign: Sign,
    /// A slot that could not be handed over is undone by the one who holds the lock.
    is_void: bool,
}

/// What a new list of addresses changed.
pub(super) struct Change<E> {
    pub(super) joined: usize,
    pub(super) left: Vec<Arc<E>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    Busy,
    /// No address of any url is known.
    Nowhere,
}

impl<E> Gate<E> {
    /// `shown`: one for each url. There are no endpoints until they are arranged.
    pub(super) fn new(
        balance: Balance,
        max_in_flight: usize,
        queue_timeout: Duration,
        in_flight: IntGauge,
        shown: Vec<Shown>,
    ) -> Arc<Self> {
        for url in &shown {
            // Not known to be bad.
            url.healthy.set(1);
        }
        let state = State { members: Vec::new(), used: 0, turn: 0, next_id: 0, queue: Queue::new(queue_timeout) };
        Arc::new(Self { balance, max_in_flight, in_flight, shown, used: AtomicUsize::new(0), state: Mutex::new(state) })
    }

    /// From now on the url's addresses are these. Those that stay keep their endpoint, its places and its health; who
    /// waits may find a place at a new one.
    pub(super) fn arrange(
        self: &Arc<Self>,
        url: usize,
        addresses: &[Address],
        mut make: impl FnMut(&Address) -> Arc<E>,
    ) -> Change<E> {
        let mut state = self.lock();
        let mut change = Change { joined: 0, left: Vec::new() };
        for member in state.members.iter_mut().filter(|member| member.url == url && !member.is_leaving) {
            if !addresses.contains(&member.address) {
                member.is_leaving = true;
                change.left.push(Arc::clone(&member.endpoint));
            }
        }
        for address in addresses {
            let known = state.members.iter_mut().find(|member| member.url == url && member.address == *address);
            match known {
                Some(member) if !member.is_leaving => continue,
                // It is back before its last request has ended: its places are still counted, all else begins anew.
                Some(member) => {
                    member.is_leaving = false;
                    member.health = Health::default();
                    member.endpoint = make(address);
                }
                None => {
                    let id = Id(state.next_id);
                    state.next_id += 1;
                    state.members.push(Member {
                        id,
                        url,
                        address: address.clone(),
                        endpoint: make(address),
                        in_flight: 0,
                        health: Health::default(),
                        is_leaving: false,
                    });
                }
            }
            change.joined += 1;
        }
        state.members.retain(|member| !member.is_leaving || member.in_flight > 0);
        state.members.sort_by(|one, other| {
            (one.is_leaving, one.url, &one.address).cmp(&(other.is_leaving, other.url, &other.address))
        });
        state.used = state.members.iter().filter(|member| !member.is_leaving).count();
        self.used.store(state.used, Ordering::Relaxed);
        self.show(&state, url);
        self.hand_out(&mut state, Instant::now());
        change
    }

    /// The endpoints of a url that are in use.
    pub(super) fn endpoints(&self, url: usize) -> Vec<(Id, Arc<E>)> {
        let state = self.lock();
        let of_url = state.used().iter().filter(|member| member.url == url);
        of_url.map(|member| (member.id, Arc::clone(&member.endpoint))).collect()
    }

    pub(super) fn addresses(&self, url: usize) -> Vec<Address> {
        let state = self.lock();
        state.used().iter().filter(|member| member.url == url).map(|member| member.address.clone()).collect()
    }

    /// How many endpoints are in use.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) async fn admit(self: &Arc<Self>, now: Instant) -> Result<Slot<E>, NoPlace> {
        let wait = {
            let mut state = self.lock();
            if state.used == 0 {
                return Err(NoPlace::Nowhere);
            }
            // An ejection may have ended since anybody last looked.
            if self.hand_out(&mut state, now)
                && let Some(slot) = self.take(&mut state, &[], now)
            {
                return Ok(slot);
            }
            let places = self.places(&state);
            state.queue.join(places, now).ok_or(NoPlace::Busy)?
        };
        match timeout(wait.at_most, wait.place).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => Err(NoPlace::Busy),
        }
    }

    /// A place, if there is one now and nobody waits for it.
    pub(super) fn admit_now(self: &Arc<Self>) -> Result<Slot<E>, NoPlace> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.used == 0 {
            return Err(NoPlace::Nowhere);
        }
        let slot = if self.hand_out(&mut state, now) { self.take(&mut state, &[], now) } else { None };
        slot.ok_or(NoPlace::Busy)
    }

    /// A place at an endpoint not yet tried, if there is one now: a request that failed at one has waited enough.
    pub(super) fn another(self: &Arc<Self>, tried: &[Id]) -> Option<Slot<E>> {
        self.take(&mut self.lock(), tried, Instant::now())
    }

    /// A newcomer, whose body is still to be read, would wait in vain.
    pub(super) fn is_saturated(&self) -> bool {
        let mut state = self.lock();
        // Most of the time, and then there is no need to know what time it is.
        if state.queue.is_empty() {
            return false;
        }
        let places = self.places(&state);
        state.queue.is_hopeless(places, Instant::now())
    }

    pub(super) fn can_forward(&self) -> bool {
        let now = Instant::now();
        self.lock().used().iter().any(|member| member.health.may_work(now))
    }

    /// Whether any endpoint of the url is believed good.
    pub(super) fn is_healthy(&self, url: usize) -> bool {
        self.lock().used().iter().any(|member| member.url == url && member.health.is_healthy())
    }

    pub(super) fn probed(self: &Arc<Self>, id: Id, succeeded: bool) {
        let mut state = self.lock();
        if let Some(probed) = state.members.iter_mut().find(|member| member.id == id && !member.is_leaving) {
            probed.health.probed(succeeded);
            let url = probed.url;
            self.show(&state, url);
        }
        self.hand_out(&mut state, Instant::now());
    }

    /// A url of which no address could be found yet is in no use.
    pub(super) fn not_found(&self, url: usize) {
        self.show(&self.lock(), url);
    }

    fn take(self: &Arc<Self>, state: &mut State<E>, tried: &[Id], now: Instant) -> Option<Slot<E>> {
        let only_hopeful = tried.len() >= MOST_TRIES_OF_BAD;
        let candidates = state.used().iter().enumerate().filter(|(_, member)| !tried.contains(&member.id));
        let candidates = candidates.map(|(position, member)| Candidate {
            position,
            in_flight: member.in_flight,
            has_room: member.in_flight < self.max_in_flight,
            standing: member.health.standing(now),
        });
        let candidates = candidates.filter(|candidate| !only_hopeful || candidate.standing != Standing::Bad);
        let chosen = balance::choose(self.balance, state.turn, state.used, candidates)?;
        state.turn = (chosen + 1) % state.used;
        let member = state.members.get_mut(chosen)?;
        member.in_flight += 1;
        self.in_flight.inc();
        let is_trial = member.health.standing(now) == Standing::Trial;
        if is_trial {
            member.health.begin_trial();
        }
        Some(Slot {
            gate: Arc::clone(self),
            id: member.id,
            url: member.url,
            endpoint: Arc::clone(&member.endpoint),
            since: now,
            ended: None,
            is_trial,
            sign: Sign::Nothing,
            is_void: false,
        })
    }

    /// True: nobody waits.
    fn hand_out(self: &Arc<Self>, state: &mut State<E>, now: Instant) -> bool {
        loop {
            if state.queue.is_empty() {
                return true;
            }
            let Some(slot) = self.take(state, &[], now) else {
                return false;
            };
            let Some(first) = state.queue.pop() else {
                return true;
            };
            if let Err(mut refused) = first.send(slot) {
                // It left between our look and our gift.
                self.put_back(state, &mut refused, now);
            }
        }
    }

    fn put_back(&self, state: &mut State<E>, slot: &mut Slot<E>, now: Instant) {
        slot.is_void = true;
        self.in_flight.dec();
        let Some(position) = state.members.iter().position(|member| member.id == slot.id) else {
            return;
        };
        let Some(member) = state.members.get_mut(position) else {
            return;
        };
        member.in_flight -= 1;
        if member.is_leaving {
            if member.in_flight == 0 {
                state.members.remove(position);
            }
            return;
        }
        // What it saw of an endpoint that left says nothing of the one that came to the same address.
        if !Arc::ptr_eq(&member.endpoint, &slot.endpoint) {
            return;
        }
        if slot.is_trial {
            member.health.end_trial();
        }
        if slot.sign != Sign::Nothing {
            let before = member.health.is_healthy();
            member.health.saw(slot.sign, now, rand::random_range(EJECTION_JITTER));
            if member.health.is_healthy() != before {
                self.show(state, slot.url);
            }
        }
    }

    fn show(&self, state: &State<E>, url: usize) {
        let Some(shown) = self.shown.get(url) else {
            return;
        };
        let (mut known, mut healthy) = (0, 0);
        for member in state.used().iter().filter(|member| member.url == url) {
            known += 1;
            healthy += i64::from(member.health.is_healthy());
        }
        shown.addresses.set(known);
        shown.healthy_addresses.set(healthy);
        shown.healthy.set(i64::from(healthy > 0));
    }

    fn places(&self, state: &State<E>) -> usize {
        state.used.saturating_mul(self.max_in_flight)
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // Nothing under the lock can leave it half-changed, so a panic elsewhere does not make it unusable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> State<E> {
    fn used(&self) -> &[Member<E>] {
        self.members.get(..self.used).unwrap_or_default()
    }
}

impl<E> Slot<E> {
    pub(super) fn settle(self, sign: Sign) {
        self.settle_at(sign, Instant::now());
    }

    /// For whoever knows what time it is.
    pub(super) fn settle_at(mut self, sign: Sign, ended: Instant) {
        (self.sign, self.ended) = (sign, Some(ended));
    }
}

impl<E> Drop for Slot<E> {
    fn drop(&mut self) {
        if self.is_void {
            return;
        }
        let gate = Arc::clone(&self.gate);
        let now = self.ended.unwrap_or_else(Instant::now);
        let mut state = gate.lock();
        let is_awaited = !state.queue.is_empty();
        if is_awaited {
            state.queue.saw(now - self.since, now);
        }
        gate.put_back(&mut state, self, now);
        if is_awaited {
            gate.hand_out(&mut state, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One url, with so many addresses. An endpoint is the last byte of its address.
    fn gate(endpoints: u8, max_in_flight: usize, queue_timeout: Duration) -> Arc<Gate<u8>> {
        let gauge = || IntGauge::new("g", "g").unwrap();
        let shown = Shown { healthy: gauge(), addresses: gauge(), healthy_addresses: gauge() };
        let gate = Gate::new(Balance::LeastRequests, max_in_flight, queue_timeout, gauge(), vec![shown]);
        arrange(&gate, &(0..endpoints).collect::<Vec<_>>());
        gate
    }

    fn arrange(gate: &Arc<Gate<u8>>, last_bytes: &[u8]) -> (usize, Vec<u8>) {
        let addresses: Vec<_> = last_bytes.iter().map(|last| address(*last)).collect();
        let change = gate.arrange(0, &addresses, |address| match address.0[0].ip() {
            std::net::IpAddr::V4(ip) => Arc::new(ip.octets()[3]),
            std::net::IpAddr::V6(_) => unreachable!(),
        });
        (change.joined, change.left.iter().map(|endpoint| **endpoint).collect())
    }

    fn address(last_byte: u8) -> Address {
        Address::from(std::net::SocketAddr::from(([10, 0, 0, last_byte], 80)))
    }

    /// Known and healthy addresses, and whether the url is shown as healthy.
    fn shown(gate: &Gate<u8>) -> (i64, i64, i64) {
        let shown = &gate.shown[0];
        (shown.addresses.get(), shown.healthy_addresses.get(), shown.healthy.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_goes_to_the_one_who_waited_longest() {
        let gate = gate(1, 1, Duration::from_secs(1));
        let held = gate.admit(Instant::now()).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = tokio::task::JoinSet::new();
        for number in 0..3 {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            waiters.spawn(async move {
                let _slot = gate.admit(Instant::now()).await.unwrap();
                order.lock().unwrap().push(number);
            });
            tokio::task::yield_now().await;
        }
        drop(held);
        waiters.join_all().await;
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
        assert_eq!(gate.in_flight.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_wait_goes_before_nobody_who_does() {
        let gate = gate(1, 2, Duration::from_secs(1));
        let (first, second) = (gate.admit_now().unwrap(), gate.admit_now().unwrap());
        assert!(gate.admit_now().is_err());
        let mut waiting = std::pin::pin!(gate.admit(Instant::now()));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is no place"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        assert!(gate.admit_now().is_err(), "it is the other's");
        drop(second);
        assert!(gate.admit_now().is_ok());
        assert!(waiting.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_and_leaves_no_place_taken() {
        let gate = gate(2, 1, Duration::from_millis(250));
        let (first, _second) = (gate.admit(Instant::now()).await.unwrap(), gate.admit(Instant::now()).await.unwrap());
        let before = Instant::now();
        assert!(gate.admit(Instant::now()).await.is_err());
        assert_eq!(before.elapsed(), Duration::from_millis(250));
        assert_eq!(gate.in_flight.get(), 2);
        let freed = *first.endpoint;
        drop(first);
        assert_eq!(*gate.admit(Instant::now()).await.unwrap().endpoint, freed);
    }

    #[tokio::test(start_paused = true)]
    async fn saturation_is_a_long_queue_that_does_not_move() {
        let gate = gate(1, 1, Duration::from_millis(200));
        let held = gate.admit(Instant::now()).await.unwrap();
        assert!(!gate.is_saturated());
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.admit(Instant::now()).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!gate.is_saturated(), "it may yet move");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(gate.is_saturated());
        drop(held);
        assert!(waiting.await.unwrap());
        assert!(!gate.is_saturated());
    }

    const SERVICE: Duration = Duration::from_millis(50);

    /// What became of those who came in one stretch of time.
    #[derive(Default)]
    struct Stretch {
        /// From coming to having been served.
        served: Vec<Duration>,
        /// From coming to being told, body and all.
        told_late: Vec<Duration>,
        told_before_the_body: usize,
    }

    impl Stretch {
        /// So many come each millisecond, for so long.
        async fn of(gate: &Arc<Gate<u8>>, each: usize, length: Duration) -> Self {
            let (mut came, mut told_before_the_body) = (tokio::task::JoinSet::new(), 0);
            let end = Instant::now() + length;
            while Instant::now() < end {
                for _ in 0..each {
                    if gate.is_saturated() {
                        told_before_the_body += 1;
                        continue;
                    }
                    let gate = Arc::clone(gate);
                    came.spawn(async move {
                        let start = Instant::now();
                        let slot = gate.admit(Instant::now()).await;
                        if slot.is_ok() {
                            tokio::time::sleep(SERVICE).await;
                        }
                        (slot.is_ok(), start.elapsed())
                    });
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut stretch = Self { told_before_the_body, ..Self::default() };
            for (is_served, took) in came.join_all().await {
                if is_served { stretch.served.push(took) } else { stretch.told_late.push(took) }
            }
            stretch.served.sort_unstable();
            stretch.told_late.sort_unstable();
            stretch
        }

        fn p99(&self) -> Duration {
            self.served[self.served.len() * 99 / 100]
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_times_what_the_upstream_serves_is_served_as_fast_as_it_can_and_the_rest_is_told_at_once() {
        // Ten places of 50 ms are 200 a second; 2,000 come.
        let gate = gate(1, 10, Duration::from_millis(250));
        let flood = Stretch::of(&gate, 2, Duration::from_secs(5)).await;
        let all = flood.served.len() + flood.told_late.len() + flood.told_before_the_body;
        assert!(flood.served.len() >= 950 && all == 10_000, "{} of {all} served", flood.served.len());
        assert!(flood.p99() < Duration::from_millis(100), "p99 {:?}", flood.p99());
        assert!(flood.told_before_the_body >= 7_000, "{}", flood.told_before_the_body);
        let told = flood.told_late[flood.told_late.len() / 2];
        assert!(told < Duration::from_millis(50), "half of the others after {told:?}");

        tokio::time::sleep(Duration::from_millis(250)).await;
        let after = Stretch::of(&gate, 1, SERVICE).await;
        assert_eq!((after.served.len(), after.told_before_the_body), (50, 0), "as if it had never been");
        assert_eq!(gate.in_flight.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_that_can_be_served_in_time_is_served_whole_and_in_turn() {
        let gate = gate(1, 10, Duration::from_millis(250));
        let burst = Stretch::of(&gate, 50, Duration::from_millis(1)).await;
        assert_eq!((burst.served.len(), burst.p99()), (50, 5 * SERVICE));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejected_endpoint_is_left_alone_then_tried_by_one_request_and_returns() {
        let gate = gate(2, 8, Duration::from_millis(10));
        let first = gate.admit(Instant::now()).await.unwrap();
        let bad = *first.endpoint;
        first.settle(Sign::Unreachable);
        assert_eq!(shown(&gate), (2, 1, 1), "one address is enough for the url");
        for _ in 0..4 {
            assert_ne!(*gate.admit(Instant::now()).await.unwrap().endpoint, bad);
        }
        tokio::time::advance(Duration::from_millis(1201)).await;
        let held: Vec<_> = [
            gate.admit(Instant::now()).await.unwrap(),
            gate.admit(Instant::now()).await.unwrap(),
            gate.admit(Instant::now()).await.unwrap(),
        ]
        .into();
        assert_eq!(held.iter().filter(|slot| *slot.endpoint == bad).count(), 1);
        for slot in held {
            slot.settle(Sign::Life);
        }
        assert_eq!(shown(&gate), (2, 2, 1));
        let held = [gate.admit(Instant::now()).await.unwrap(), gate.admit(Instant::now()).await.unwrap()];
        assert_ne!(held[0].endpoint, held[1].endpoint);
    }

    #[tokio::test(start_paused = true)]
    async fn with_all_endpoints_bad_they_are_tried_all_the_same() {
        let gate = gate(2, 8, Duration::from_millis(10));
        for _ in 0..2 {
            gate.admit(Instant::now()).await.unwrap().settle(Sign::Unreachable);
        }
        assert!(!gate.can_forward());
        assert_eq!(shown(&gate), (2, 0, 0));
        let slot = gate.admit(Instant::now()).await.unwrap();
        let other = gate.another(&[slot.id]).unwrap();
        assert!(gate.another(&[slot.id, other.id]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_knocks_at_eight_endpoints_that_are_believed_bad_and_at_any_number_of_good_ones() {
        for (bad, expected) in [(true, MOST_TRIES_OF_BAD), (false, 40)] {
            let gate = gate(40, 8, Duration::from_millis(10));
            for _ in 0..40 * usize::from(bad) {
                gate.admit(Instant::now()).await.unwrap().settle(Sign::Unreachable);
            }
            let mut slot = gate.admit(Instant::now()).await.unwrap();
            let mut tried = vec![slot.id];
            while let Some(another) = gate.another(&tried) {
                slot = another;
                tried.push(slot.id);
                drop(slot);
            }
            assert_eq!(tried.len(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_vanishes_gets_nothing_new_and_one_that_comes_is_used_at_once() {
        let gate = gate(2, 1, Duration::from_millis(10));
        let held = [gate.admit(Instant::now()).await.unwrap(), gate.admit(Instant::now()).await.unwrap()];
        assert_eq!(gate.admit(Instant::now()).await.err(), Some(NoPlace::Busy));
        assert_eq!(arrange(&gate, &[1, 2]), (1, vec![0]));
        assert_eq!(shown(&gate), (2, 2, 1));
        let new = gate.admit(Instant::now()).await.unwrap();
        assert_eq!(*new.endpoint, 2);
        assert_eq!(gate.in_flight.get(), 3, "those under way go on");
        drop(held);
        assert_eq!(*gate.admit(Instant::now()).await.unwrap().endpoint, 1);
        assert_eq!(gate.lock().members.len(), 2, "what has left is forgotten with its last request");
        assert_eq!(gate.in_flight.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_comes_back_while_requests_are_at_it_lets_in_no_more_than_it_may_have() {
        let gate = gate(1, 2, Duration::from_millis(10));
        let (first, second) = (gate.admit(Instant::now()).await.unwrap(), gate.admit(Instant::now()).await.unwrap());
        assert_eq!(arrange(&gate, &[7]), (1, vec![0]));
        assert_eq!(arrange(&gate, &[0]), (1, vec![7]));
        assert_eq!(gate.admit(Instant::now()).await.err(), Some(NoPlace::Busy));
        // What the former one did is not held against the one that is there now.
        first.settle(Sign::Unreachable);
        assert_eq!(shown(&gate), (1, 1, 1));
        let third = gate.admit(Instant::now()).await.unwrap();
        assert_eq!(gate.admit(Instant::now()).await.err(), Some(NoPlace::Busy));
        drop((second, third));
        assert_eq!(gate.in_flight.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_a_place_at_an_address_that_comes() {
        let gate = gate(1, 1, Duration::from_secs(1));
        let _held = gate.admit(Instant::now()).await.unwrap();
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { *gate.admit(Instant::now()).await.unwrap().endpoint }
        });
        tokio::task::yield_now().await;
        arrange(&gate, &[0, 1]);
        assert_eq!(waiting.await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_address_there_is_nothing_to_wait_for() {
        let gate = gate(0, 1, Duration::from_secs(1));
        assert_eq!(gate.admit(Instant::now()).await.err(), Some(NoPlace::Nowhere));
        assert_eq!(gate.admit_now().err(), Some(NoPlace::Nowhere));
        assert!(!gate.can_forward() && !gate.is_saturated());
        arrange(&gate, &[3]);
        assert!(gate.admit_now().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_addresses_again_change_nothing() {
        let gate = gate(3, 8, Duration::from_millis(10));
        gate.admit(Instant::now()).await.unwrap().settle(Sign::Unreachable);
        let held = gate.admit(Instant::now()).await.unwrap();
        assert_eq!(arrange(&gate, &[2, 0, 1]), (0, vec![]));
        assert_eq!(shown(&gate), (3, 2, 1), "ejections stay");
        drop(held);
        assert_eq!(gate.in_flight.get(), 0);
    }
}
