//! How many requests may be at each url at once, who waits for a place, and which url a place is at.
//!
//! Invariant: a url never has more than `max_in_flight` requests; a `Slot` is one of them, and dropping it hands the
//! place to whoever has waited longest, under the same lock, so that newcomers cannot push in. A place is not bound to
//! a url until it is taken: a url that hangs fills its own places and no others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::balance::{self, Balance, Candidate};
use super::health::{Health, Sign, Standing};

/// Waiting for `queue_timeout` is for bursts: those who cannot hope for a place in time are told so at once. Four
/// rounds of places, or a thousand, is more than any upstream serves in the time one may wait.
const QUEUED_PER_PLACE: usize = 4;
const LEAST_QUEUE: usize = 1024;
/// Each gateway tries an ejected url again a little earlier or later than its sisters.
const EJECTION_JITTER: std::ops::RangeInclusive<f64> = 0.8..=1.2;

pub(super) struct Gate {
    balance: Balance,
    max_in_flight: usize,
    queue_timeout: Duration,
    longest_queue: usize,
    in_flight: IntGauge,
    healthy: Vec<IntGauge>,
    /// Guards the counts, the health and the queue: they are one decision. Held for a few comparisons, never across
    /// an await.
    state: Mutex<State>,
}

struct State {
    urls: Vec<Url>,
    turn: usize,
    queue: VecDeque<Waiting>,
}

#[derive(Default)]
struct Url {
    in_flight: usize,
    health: Health,
}

struct Waiting {
    since: Instant,
    place: oneshot::Sender<Slot>,
}

/// A place at one url. Settling it says what became of the request; dropping it unsettled says nothing about the url.
pub(super) struct Slot {
    gate: Arc<Gate>,
    pub(super) url: usize,
    is_trial: bool,
    sign: Sign,
    /// A slot that could not be handed over is undone by the one who holds the lock.
    is_void: bool,
}

#[derive(Debug)]
pub(super) struct NoPlace;

impl Gate {
    pub(super) fn new(
        urls: usize,
        balance: Balance,
        max_in_flight: usize,
        queue_timeout: Duration,
        in_flight: IntGauge,
        healthy: Vec<IntGauge>,
    ) -> Arc<Self> {
        for gauge in &healthy {
            gauge.set(1);
        }
        Arc::new(Self {
            balance,
            max_in_flight,
            queue_timeout,
            longest_queue: LEAST_QUEUE.max(QUEUED_PER_PLACE.saturating_mul(urls.saturating_mul(max_in_flight))),
            in_flight,
            healthy,
            state: Mutex::new(State {
                urls: (0..urls).map(|_| Url::default()).collect(),
                turn: 0,
                queue: VecDeque::new(),
            }),
        })
    }

    pub(super) async fn admit(self: &Arc<Self>) -> Result<Slot, NoPlace> {
        let place = {
            let now = Instant::now();
            let mut state = self.lock();
            // An ejection may have ended since anybody last looked.
            self.hand_out(&mut state, now);
            if state.queue.is_empty()
                && let Some(slot) = self.take(&mut state, &[], now)
            {
                return Ok(slot);
            }
            if state.queue.len() >= self.longest_queue {
                return Err(NoPlace);
            }
            let (give, place) = oneshot::channel();
            state.queue.push_back(Waiting { since: now, place: give });
            place
        };
        match timeout(self.queue_timeout, place).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => Err(NoPlace),
        }
    }

    /// A place, if there is one now and nobody waits for it.
    pub(super) fn admit_now(self: &Arc<Self>) -> Option<Slot> {
        let now = Instant::now();
        let mut state = self.lock();
        self.hand_out(&mut state, now);
        if state.queue.is_empty() { self.take(&mut state, &[], now) } else { None }
    }

    /// A place at a url not yet tried, if there is one now: a request that failed at one url has waited enough.
    pub(super) fn another(self: &Arc<Self>, tried: &[usize]) -> Option<Slot> {
        self.take(&mut self.lock(), tried, Instant::now())
    }

    /// Those who wait are many, and the first of them has used up half its time: a newcomer, whose body is still to be
    /// read, would wait in vain.
    pub(super) fn is_saturated(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        state.forget_the_gone();
        state.queue.len() >= state.urls.len().saturating_mul(self.max_in_flight)
            && state.queue.front().is_some_and(|first| now - first.since >= self.queue_timeout / 2)
    }

    pub(super) fn can_forward(&self) -> bool {
        let now = Instant::now();
        self.lock().urls.iter().any(|url| url.health.may_work(now))
    }

    pub(super) fn probed(self: &Arc<Self>, url: usize, succeeded: bool) {
        let mut state = self.lock();
        if let Some(probed) = state.urls.get_mut(url) {
            probed.health.probed(succeeded);
            self.show_health(url, &probed.health);
        }
        self.hand_out(&mut state, Instant::now());
    }

    fn take(self: &Arc<Self>, state: &mut State, tried: &[usize], now: Instant) -> Option<Slot> {
        let candidates =
            state.urls.iter().enumerate().filter(|(url, _)| !tried.contains(url)).map(|(url, of)| Candidate {
                url,
                in_flight: of.in_flight,
                has_room: of.in_flight < self.max_in_flight,
                standing: of.health.standing(now),
            });
        let chosen = balance::choose(self.balance, state.turn, state.urls.len(), candidates)?;
        state.turn = (chosen + 1) % state.urls.len();
        let url = state.urls.get_mut(chosen)?;
        url.in_flight += 1;
        self.in_flight.inc();
        let is_trial = url.health.standing(now) == Standing::Trial;
        if is_trial {
            url.health.begin_trial();
        }
        Some(Slot { gate: Arc::clone(self), url: chosen, is_trial, sign: Sign::Nothing, is_void: false })
    }

    fn hand_out(self: &Arc<Self>, state: &mut State, now: Instant) {
        loop {
            state.forget_the_gone();
            if state.queue.is_empty() {
                return;
            }
            let Some(slot) = self.take(state, &[], now) else {
                return;
            };
            let Some(first) = state.queue.pop_front() else {
                return;
            };
            if let Err(mut refused) = first.place.send(slot) {
                // It left between our look and our gift.
                self.put_back(state, &mut refused, now);
            }
        }
    }

    fn put_back(&self, state: &mut State, slot: &mut Slot, now: Instant) {
        slot.is_void = true;
        self.in_flight.dec();
        let Some(url) = state.urls.get_mut(slot.url) else {
            return;
        };
        url.in_flight -= 1;
        if slot.is_trial {
            url.health.end_trial();
        }
        if slot.sign != Sign::Nothing {
            url.health.saw(slot.sign, now, rand::random_range(EJECTION_JITTER));
            self.show_health(slot.url, &url.health);
        }
    }

    fn show_health(&self, url: usize, health: &Health) {
        if let Some(gauge) = self.healthy.get(url) {
            gauge.set(i64::from(health.is_healthy()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can leave it half-changed, so a panic elsewhere does not make it unusable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// All wait equally long, so those who gave up are at the front.
    fn forget_the_gone(&mut self) {
        while self.queue.front().is_some_and(|first| first.place.is_closed()) {
            self.queue.pop_front();
        }
    }
}

impl Slot {
    pub(super) fn settle(mut self, sign: Sign) {
        self.sign = sign;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.is_void {
            return;
        }
        let gate = Arc::clone(&self.gate);
        let now = Instant::now();
        let mut state = gate.lock();
        gate.put_back(&mut state, self, now);
        gate.hand_out(&mut state, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(urls: usize, max_in_flight: usize, queue_timeout: Duration) -> Arc<Gate> {
        let gauge = || IntGauge::new("g", "g").unwrap();
        let healthy = (0..urls).map(|_| gauge()).collect();
        Gate::new(urls, Balance::LeastRequests, max_in_flight, queue_timeout, gauge(), healthy)
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_goes_to_the_one_who_waited_longest() {
        let gate = gate(1, 1, Duration::from_secs(1));
        let held = gate.admit().await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = tokio::task::JoinSet::new();
        for number in 0..3 {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            waiters.spawn(async move {
                let _slot = gate.admit().await.unwrap();
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
        assert!(gate.admit_now().is_none());
        let mut waiting = std::pin::pin!(gate.admit());
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is no place"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        assert!(gate.admit_now().is_none(), "it is the other's");
        drop(second);
        assert!(gate.admit_now().is_some());
        assert!(waiting.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_and_leaves_no_place_taken() {
        let gate = gate(2, 1, Duration::from_millis(250));
        let (first, _second) = (gate.admit().await.unwrap(), gate.admit().await.unwrap());
        let before = Instant::now();
        assert!(gate.admit().await.is_err());
        assert_eq!(before.elapsed(), Duration::from_millis(250));
        assert_eq!(gate.in_flight.get(), 2);
        let freed = first.url;
        drop(first);
        assert_eq!(gate.admit().await.unwrap().url, freed);
    }

    #[tokio::test(start_paused = true)]
    async fn saturation_is_a_long_queue_that_does_not_move() {
        let gate = gate(1, 1, Duration::from_millis(200));
        let held = gate.admit().await.unwrap();
        assert!(!gate.is_saturated());
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.admit().await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!gate.is_saturated(), "it may yet move");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(gate.is_saturated());
        drop(held);
        assert!(waiting.await.unwrap());
        assert!(!gate.is_saturated());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejected_url_is_left_alone_then_tried_by_one_request_and_returns() {
        let gate = gate(2, 8, Duration::from_millis(10));
        let first = gate.admit().await.unwrap();
        let bad = first.url;
        first.settle(Sign::Unreachable);
        assert_eq!(gate.healthy[bad].get(), 0);
        for _ in 0..4 {
            assert_ne!(gate.admit().await.unwrap().url, bad);
        }
        tokio::time::advance(Duration::from_millis(1201)).await;
        let held: Vec<_> =
            [gate.admit().await.unwrap(), gate.admit().await.unwrap(), gate.admit().await.unwrap()].into();
        assert_eq!(held.iter().filter(|slot| slot.url == bad).count(), 1);
        for slot in held {
            slot.settle(Sign::Life);
        }
        assert_eq!(gate.healthy[bad].get(), 1);
        let held = [gate.admit().await.unwrap(), gate.admit().await.unwrap()];
        assert_ne!(held[0].url, held[1].url);
    }

    #[tokio::test(start_paused = true)]
    async fn with_all_urls_bad_they_are_tried_all_the_same() {
        let gate = gate(2, 8, Duration::from_millis(10));
        for _ in 0..2 {
            gate.admit().await.unwrap().settle(Sign::Unreachable);
        }
        assert!(!gate.can_forward());
        let slot = gate.admit().await.unwrap();
        assert!(gate.another(&[slot.url]).is_some());
        assert!(gate.another(&[0, 1]).is_none());
    }
}
