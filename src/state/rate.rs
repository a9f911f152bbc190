//! How often may something happen? One budget, or one budget a client, on governor's arithmetic (GCRA: a budget of
//! `burst`, refilled evenly).
//!
//! What must stay true:
//! - a table of clients never grows past its bound, whoever sends from however many addresses;
//! - a client in the table keeps its own budget until that is full again: crowding the table cannot give it a new one.
//!   Newcomers to a table full of live budgets share a single one, so that they are neither unlimited nor locked out
//!   for good;
//! - looking (`is_spent`) spends nothing and makes no entry.
//!
//! Time is the monotonic clock here: budgets say nothing about timestamps and need not survive a restart.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::RateLimiter;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};

use super::keyed::Keyed;
use crate::client::ClientKey;
use crate::clock;

/// So many per time, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    count: NonZeroU32,
    per: Duration,
    burst: NonZeroU32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuotaError {
    #[error("{text:?} is not a rate; write a whole number and a unit: \"100/s\", \"10/m\" or \"5/h\"")]
    Form { text: String },
    #[error("a rate of zero would refuse everything; to close a source, remove it")]
    ZeroRate,
    #[error("a burst of zero would refuse everything; leave `burst` out, or make it 1 or more")]
    ZeroBurst,
    #[error("{text:?} is faster than {MAX_PER_SECOND} a second, where a limit means nothing; lower it")]
    TooFast { text: String },
    #[error("a burst of {burst} at {text:?} takes longer than 30 days to refill; lower `burst`")]
    RefillsTooSlowly { text: String, burst: u32 },
}

/// The time for one is a whole number of nanoseconds; up to here rounding it is off by less than 0.1 %.
const MAX_PER_SECOND: u64 = 1_000_000;

/// Also keeps governor's sums of nanoseconds far from the end of 64 bits.
const MAX_REFILL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Quota {
    /// `rate` as in "100/s". Without `burst`: what comes in one second, at least 1.
    pub(crate) fn parse(rate: &str, burst: Option<u32>) -> Result<Self, QuotaError> {
        let text = || rate.to_owned();
        let form = || QuotaError::Form { text: text() };
        let (count, unit) = rate.trim().split_once('/').ok_or_else(form)?;
        let per_seconds: u32 = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            _ => return Err(form()),
        };
        let count = count.trim();
        // `parse` would take a sign.
        if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(form());
        }
        // All digits, so the only way to fail is to be too large.
        let count: u32 = count.parse().map_err(|_| QuotaError::TooFast { text: text() })?;
        let count = NonZeroU32::new(count).ok_or(QuotaError::ZeroRate)?;
        if u64::from(count.get()) > MAX_PER_SECOND * u64::from(per_seconds) {
            return Err(QuotaError::TooFast { text: text() });
        }
        let burst = burst.unwrap_or(count.get().div_ceil(per_seconds));
        let burst = NonZeroU32::new(burst).ok_or(QuotaError::ZeroBurst)?;
        let quota = Self { count, per: Duration::from_secs(per_seconds.into()), burst };
        if quota.cell().checked_mul(burst.get()).is_none_or(|refill| refill > MAX_REFILL) {
            return Err(QuotaError::RefillsTooSlowly { text: text(), burst: burst.get() });
        }
        Ok(quota)
    }

    pub(crate) fn per_second(&self) -> f64 {
        f64::from(self.count.get()) / self.per.as_secs_f64()
    }

    pub(crate) fn burst(&self) -> u32 {
        self.burst.get()
    }

    /// The time in which one more is earned.
    pub(super) fn cell(&self) -> Duration {
        self.per / self.count.get()
    }

    fn governor(&self) -> governor::Quota {
        governor::Quota::with_period(self.cell())
            .expect("a rate is at most MAX_PER_SECOND, so a cell takes some time")
            .allow_burst(self.burst)
    }
}

/// The monotonic clock of the operating system, read once a turn; governor's default trusts a counter of the CPU that a
/// virtual machine may change on moving.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steady;

impl Clock for Steady {
    type Instant = Instant;

    fn now(&self) -> Instant {
        clock::steady().into_std()
    }
}

/// One budget.
pub(crate) struct Rate<C: Clock = Steady>(RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>);

impl Rate {
    pub(crate) fn new(quota: Quota) -> Self {
        Self::with_clock(quota, Steady)
    }
}

impl<C: Clock> Rate<C> {
    pub(super) fn with_clock(quota: Quota, clock: C) -> Self {
        Self(RateLimiter::direct_with_clock(quota.governor(), clock))
    }

    /// Err: how long until there is one to take.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        self.0.check().map_err(|until| until.wait_time_from(self.0.clock().now()))
    }
}

/// One budget for each client, in a bounded table.
pub(crate) struct KeyedRate<C: Clock = Steady>(RateLimiter<Touch, Budgets, C, NoOpMiddleware<C::Instant>>);

impl KeyedRate {
    /// As many clients as one source is likely to see misbehave at once; 5 MB when full.
    pub(crate) const DEFAULT_MAX_CLIENTS: usize = 65_536;

    pub(crate) fn new(quota: Quota, max_clients: usize) -> Self {
        Self::with_clock(quota, max_clients, Steady)
    }
}

impl<C: Clock> KeyedRate<C> {
    fn with_clock(quota: Quota, max_clients: usize, clock: C) -> Self {
        let clients = Clients { slots: Vec::new(), places: HashMap::default(), hand: 0, shared: None };
        let budgets = Budgets { cell: quota.cell().into(), max_clients, clients: Mutex::new(clients) };
        Self(RateLimiter::new(quota.governor(), budgets, clock))
    }

    /// Err: how long until this client has one to take.
    pub(crate) fn take(&self, client: ClientKey) -> Result<(), Duration> {
        self.touch(Touch::Spend(client))
    }

    /// Would `take` be refused now? How long for, without spending anything.
    pub(crate) fn peek(&self, client: ClientKey) -> Result<(), Duration> {
        self.touch(Touch::Look(client))
    }

    pub(crate) fn is_spent(&self, client: ClientKey) -> bool {
        self.peek(client).is_err()
    }

    /// Others have counted too: the client's budget is full in so long, unless that takes longer here.
    pub(crate) fn adopt(&self, client: ClientKey, full_in: Duration) {
        // Adopting is allowed to whoever has spent everything.
        let _ = self.touch(Touch::Adopt(client, full_in));
    }

    fn touch(&self, touch: Touch) -> Result<(), Duration> {
        self.0.check_key(&touch).map_err(|until| until.wait_time_from(self.0.clock().now()))
    }
}

/// governor cannot look without spending. But it leaves storing the result to the store, and hands it the key: so the
/// key says whether to store.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Touch {
    Spend(ClientKey),
    Look(ClientKey),
    /// No less than what is told, which comes from elsewhere.
    Adopt(ClientKey, Duration),
}

struct Budgets {
    cell: Nanos,
    max_clients: usize,
    // Guards the table for a lookup and a few steps of the hand; no await is near.
    clients: Mutex<Clients>,
}

struct Clients {
    /// Each client with the time at which its budget will be full again (GCRA's "theoretical arrival time").
    slots: Vec<(ClientKey, Nanos)>,
    places: HashMap<ClientKey, usize, Keyed>,
    /// Goes round the slots and removes full budgets, which say no more than a missing one.
    hand: usize,
    /// The budget of all who find no room.
    shared: Option<Nanos>,
}

/// Slots looked at for a newcomer: two would keep up with any rate of them.
const HAND_STEPS: usize = 4;

/// Slots looked at when there is no room: past it the newcomer shares, though a full budget may be elsewhere. The hand
/// goes on from there with the next one.
const HAND_STEPS_WHEN_FULL: usize = 64;

impl StateStore for Budgets {
    type Key = Touch;

    fn measure_and_replace<T, F, E>(&self, key: &Touch, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (client, spends) = match *key {
            Touch::Spend(client) => (client, true),
            Touch::Look(client) => (client, false),
            Touch::Adopt(client, full_in) => return self.adopt(client, full_in.into(), judge),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&place) = clients.places.get(&client) {
            let (taken, full_at) = judge(Some(clients.slots[place].1))?;
            if spends {
                clients.slots[place].1 = full_at;
            }
            return Ok(taken);
        }

        // A fresh budget is full one cell after now once it was spent from: so the judge tells us what now is.
        let (taken, full_at) = judge(None)?;
        clients.sweep(full_at, self.cell, self.max_clients);
        if clients.slots.len() < self.max_clients {
            if spends {
                clients.add(client, full_at);
            }
            return Ok(taken);
        }
        let (taken, full_at) = judge(clients.shared)?;
        if spends {
            clients.shared = Some(full_at);
        }
        Ok(taken)
    }
}

impl Budgets {
    fn adopt<T, F, E>(&self, client: ClientKey, full_in: Nanos, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // A fresh budget that was spent from is full one cell after now.
        let (taken, fresh) = judge(None)?;
        let full_at = fresh.saturating_sub(self.cell) + full_in;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&place) = clients.places.get(&client) {
            let kept = &mut clients.slots[place].1;
            *kept = full_at.max(*kept);
            return Ok(taken);
        }
        clients.sweep(fresh, self.cell, self.max_clients);
        // One that finds no room shares a budget already.
        if clients.slots.len() < self.max_clients {
            clients.add(client, full_at);
        }
        Ok(taken)
    }
}

impl Clients {
    fn sweep(&mut self, fresh_full_at: Nanos, cell: Nanos, max_clients: usize) {
        for step in 0..HAND_STEPS_WHEN_FULL {
            let is_full = self.slots.len() >= max_clients;
            if self.slots.is_empty() || (step >= HAND_STEPS && !is_full) {
                return;
            }
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let (client, full_at) = self.slots[self.hand];
            if full_at + cell > fresh_full_at {
                self.hand += 1;
                continue;
            }
            self.slots.swap_remove(self.hand);
            self.places.remove(&client);
            if let Some((moved, _)) = self.slots.get(self.hand) {
                self.places.insert(*moved, self.hand);
            }
        }
    }

    fn add(&mut self, client: ClientKey, full_at: Nanos) {
        self.places.insert(client, self.slots.len());
        self.slots.push((client, full_at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    fn quota(rate: &str, burst: u32) -> Quota {
        Quota::parse(rate, Some(burst)).expect("a rate")
    }

    fn client(n: u32) -> ClientKey {
        ClientKey::of(std::net::Ipv4Addr::from_bits(n).into())
    }

    #[test]
    fn reads_rates_and_says_what_is_wrong_with_the_others() {
        let parsed = |rate, burst| Quota::parse(rate, burst).map(|quota| (quota.per_second(), quota.burst()));
        assert_eq!(parsed("100/s", Some(200)), Ok((100.0, 200)));
        assert_eq!(parsed("100/s", None), Ok((100.0, 100)));
        assert_eq!(parsed("90/m", None), Ok((1.5, 2)));
        assert_eq!(parsed(" 36 / h ", None), Ok((0.01, 1)));
        for text in ["", "100", "/s", "x/s", "1.5/s", "-1/s", "+1/s", "1/d", "1/s/s"] {
            assert_eq!(parsed(text, None), Err(QuotaError::Form { text: text.into() }), "{text}");
        }
        assert_eq!(parsed("0/s", None), Err(QuotaError::ZeroRate));
        assert_eq!(parsed("1/s", Some(0)), Err(QuotaError::ZeroBurst));
        assert_eq!(parsed("1000000/s", None), Ok((1e6, 1_000_000)));
        for text in ["1000001/s", "99999999999999999999/h"] {
            assert_eq!(parsed(text, None), Err(QuotaError::TooFast { text: text.into() }));
        }
        let slow = QuotaError::RefillsTooSlowly { text: "1/h".into(), burst: u32::MAX };
        assert_eq!(parsed("1/h", Some(u32::MAX)), Err(slow));
    }

    #[test]
    fn a_budget_is_its_burst_and_refills_at_its_rate() {
        let clock = FakeRelativeClock::default();
        let rate = Rate::with_clock(quota("10/s", 3), clock.clone());
        for _ in 0..3 {
            assert_eq!(rate.take(), Ok(()));
        }
        assert_eq!(rate.take(), Err(Duration::from_millis(100)));
        clock.advance(Duration::from_millis(99));
        assert_eq!(rate.take(), Err(Duration::from_millis(1)));
        clock.advance(Duration::from_millis(1));
        assert_eq!(rate.take(), Ok(()));
        assert_eq!(rate.take(), Err(Duration::from_millis(100)));
        clock.advance(Duration::from_secs(3600));
        assert_eq!((0..10).filter(|_| rate.take().is_ok()).count(), 3);
    }

    #[test]
    fn clients_have_budgets_of_their_own() {
        let rates = KeyedRate::with_clock(quota("1/m", 1), 10, FakeRelativeClock::default());
        assert_eq!(rates.take(client(1)), Ok(()));
        assert_eq!(rates.take(client(1)), Err(Duration::from_secs(60)));
        assert_eq!(rates.take(client(2)), Ok(()));
    }

    #[test]
    fn looking_spends_nothing_and_sees_when_a_budget_is_spent() {
        let clock = FakeRelativeClock::default();
        let rates = KeyedRate::with_clock(quota("1/s", 2), 10, clock.clone());
        for _ in 0..100 {
            assert!(!rates.is_spent(client(1)));
        }
        assert!(rates.0.check_key(&Touch::Look(client(1))).is_ok());
        assert_eq!(rates.take(client(1)), Ok(()));
        assert!(!rates.is_spent(client(1)));
        assert_eq!(rates.take(client(1)), Ok(()));
        assert_eq!(rates.peek(client(1)), Err(Duration::from_secs(1)));
        assert!(!rates.is_spent(client(2)));
        clock.advance(Duration::from_secs(1));
        assert!(!rates.is_spent(client(1)));
    }

    #[test]
    fn newcomers_to_a_full_table_share_one_budget_and_the_others_keep_theirs() {
        let clock = FakeRelativeClock::default();
        let rates = KeyedRate::with_clock(quota("1/s", 2), 100, clock.clone());
        for n in 0..100 {
            assert_eq!(rates.take(client(n)), Ok(()));
        }
        let newcomers = (1000..2000).filter(|&n| rates.take(client(n)).is_ok()).count();
        assert_eq!(newcomers, 2);
        assert!(rates.is_spent(client(5000)));
        for n in 0..100 {
            assert_eq!(rates.take(client(n)), Ok(()));
            assert!(rates.take(client(n)).is_err());
        }
        // Budgets that are full again make room: the newcomer has its own, and so have all that follow.
        clock.advance(Duration::from_secs(2));
        for n in 2000..2100 {
            assert_eq!((rates.take(client(n)), rates.take(client(n))), (Ok(()), Ok(())));
            assert!(rates.is_spent(client(n)));
        }
    }

    #[test]
    fn a_table_never_outgrows_its_bound_and_forgets_only_full_budgets() {
        let clock = FakeRelativeClock::default();
        let rates = KeyedRate::with_clock(quota("1/h", 1), 50, clock.clone());
        assert_eq!(rates.take(client(0)), Ok(()));
        for n in 1..10_000 {
            clock.advance(Duration::from_millis(100));
            let _either = rates.take(client(n));
            assert!(rates.take(client(0)).is_err());
        }
    }
}
