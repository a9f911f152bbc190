//! What time is it, and for how long is something remembered?
//!
//! Invariant: freshness and expiry are judged by one wall clock which never runs backwards in the process. Were it to
//! step back, a claim that has expired could meet a timestamp that is fresh again, and a replay would pass.
//! Everything below `gateway` and `cli` takes `now` as an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        self.at_least(wall())
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
}
