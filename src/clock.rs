//! What time is it, and for how long is something remembered?
//!
//! Invariant: freshness and expiry are judged by one wall clock which never runs backwards in the process. Were it to
//! step back, a claim that has expired could meet a timestamp that is fresh again, and a replay would pass.
//! Everything below `gateway` and `cli` takes `now` as an argument.
//!
//! In a [`Turn`] of a connection both clocks stand still: what is done in one turn is done at one time, and asking for it
//! a dozen times took a twentieth of a request. Who measures how long something took asks [`read`].

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct UnixMillis(pub(crate) u64);

impl UnixMillis {
    pub(crate) const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    pub(crate) const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        let millis = wait.as_secs().saturating_mul(1000).saturating_add(u64::from(wait.subsec_millis()));
        Self(self.0.saturating_add(millis))
    }

    /// How far apart two times are, whichever comes first.
    pub(crate) fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }
}

/// The process's wall clock. Share one; two would each be monotone and disagree.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: AtomicU64,
}

impl Clock {
    pub(crate) fn now(&self) -> UnixMillis {
        self.at_least(unjudged().0)
    }

    /// How far the machine's clock is behind what was used already. Time stands still until it has caught up.
    pub(crate) fn behind(&self) -> Duration {
        let wall = wall();
        Duration::from_millis(self.at_least(wall).0.saturating_sub(wall))
    }

    fn at_least(&self, wall: u64) -> UnixMillis {
        let last = self.last.load(Ordering::Relaxed);
        // Most of the time somebody read it in the same millisecond.
        let last = if last < wall { self.last.fetch_max(wall, Ordering::Relaxed) } else { last };
        UnixMillis(last.max(wall))
    }
}

/// The machine's clock, which may step back: to tell people, not to judge by.
pub(crate) fn unjudged() -> UnixMillis {
    let Some(turn) = TURN.get() else { return UnixMillis(wall()) };
    let wall = turn.wall.unwrap_or_else(wall);
    TURN.set(Some(Reading { wall: Some(wall), ..turn }));
    UnixMillis(wall)
}

/// When a turn is under way, the time at which it was read last.
pub(crate) fn steady() -> Instant {
    TURN.get().map_or_else(Instant::now, |turn| turn.steady)
}

/// The time at this moment; a turn that is under way goes on from there.
pub(crate) fn read() -> Instant {
    let steady = Instant::now();
    if let Some(turn) = TURN.get() {
        TURN.set(Some(Reading { steady, ..turn }));
    }
    steady
}

#[derive(Clone, Copy)]
struct Reading {
    steady: Instant,
    /// In milliseconds; once somebody has asked.
    wall: Option<u64>,
}

thread_local! {
    static TURN: Cell<Option<Reading>> = const { Cell::new(None) };
}

/// While it lives, its thread's time is that of its beginning. For one poll of a task: it must not be held across an
/// await, nor by what may block.
pub(crate) struct Turn(());

impl Turn {
    pub(crate) fn begin(now: Instant) -> Self {
        TURN.set(Some(Reading { steady: now, wall: None }));
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.set(None);
    }
}

/// Work whose every poll is a turn.
pub(crate) struct InTurns<F: ?Sized>(Pin<Box<F>>);

impl<F: ?Sized> InTurns<F> {
    pub(crate) fn new(work: Pin<Box<F>>) -> Self {
        Self(work)
    }
}

impl<F: Future + ?Sized> Future for InTurns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _turn = Turn::begin(Instant::now());
        self.0.as_mut().poll(cx)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one wall clock")]
fn wall() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wall.as_secs().saturating_mul(1000).saturating_add(u64::from(wall.subsec_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_does_not_take_time_back() {
        let clock = Clock::default();
        assert_eq!(clock.at_least(1_000), UnixMillis(1_000));
        assert_eq!(clock.at_least(400), UnixMillis(1_000));
        assert_eq!(clock.at_least(1_001), UnixMillis(1_001));
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_turn_time_stands_still_until_it_is_read_and_after_it_goes_on() {
        let begun = Instant::now();
        let turn = Turn::begin(begun);
        let wall = unjudged();
        tokio::time::advance(Duration::from_secs(1)).await;
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!((steady(), unjudged()), (begun, wall));
        assert_eq!(read(), begun + Duration::from_secs(1));
        assert_eq!(steady(), begun + Duration::from_secs(1));
        // Another thread has a time of its own.
        assert!(std::thread::spawn(unjudged).join().expect("a time") > wall);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(turn);
        assert_eq!(steady(), begun + Duration::from_secs(2));
        assert!(unjudged() > wall);
    }

    #[tokio::test(start_paused = true)]
    async fn work_in_turns_has_a_time_for_each_and_leaves_none_behind() {
        let work = InTurns::new(Box::pin(async {
            let first = steady();
            tokio::time::sleep(Duration::from_secs(5)).await;
            steady() - first
        }));
        assert_eq!(work.await, Duration::from_secs(5));
        assert!(TURN.get().is_none());
    }
}
