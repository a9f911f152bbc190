//! Has a sender gone quiet?
//!
//! Invariant: a silence is told once, when it has lasted as long as the source says, and its end once; both by the
//! monotonic clock, so that a wall clock that is set makes nobody quiet. Accepting a delivery costs one atomic write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is known of one source; outlives reloads.
#[derive(Debug)]
pub(crate) struct Silence {
    /// Quiet is counted from here where nothing was accepted yet.
    began: Instant,
    /// Milliseconds behind `began` at which a delivery was accepted last.
    heard: AtomicU64,
    is_told: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    WentQuiet { since: Duration },
    CameBack,
}

impl Silence {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { began: now, heard: AtomicU64::new(0), is_told: AtomicBool::new(false) }
    }

    pub(crate) fn hear(&self, now: Instant) {
        let since = now.saturating_duration_since(self.began).as_millis();
        self.heard.fetch_max(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn is_quiet(&self, expected: Duration, now: Instant) -> bool {
        self.lasts(now) >= expected
    }

    /// What is to be told now, if anything.
    pub(crate) fn turn(&self, expected: Duration, now: Instant) -> Option<Turn> {
        let since = self.lasts(now);
        let is_quiet = since >= expected;
        match (self.is_told.swap(is_quiet, Ordering::Relaxed), is_quiet) {
            (false, true) => Some(Turn::WentQuiet { since }),
            (true, false) => Some(Turn::CameBack),
            (true, true) | (false, false) => None,
        }
    }

    fn lasts(&self, now: Instant) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        now.saturating_duration_since(self.began).saturating_sub(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_and_its_end_are_told_once_each() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let expected = Duration::from_secs(60);
        let silence = Silence::begin(began);
        assert_eq!(silence.turn(expected, at(59)), None);
        assert_eq!(silence.turn(expected, at(60)), Some(Turn::WentQuiet { since: expected }));
        assert!(silence.is_quiet(expected, at(61)));
        assert_eq!(silence.turn(expected, at(61)), None);
        silence.hear(at(100));
        assert!(!silence.is_quiet(expected, at(101)));
        assert_eq!(silence.turn(expected, at(101)), Some(Turn::CameBack));
        assert_eq!(silence.turn(expected, at(159)), None);
        assert_eq!(silence.turn(expected, at(160)), Some(Turn::WentQuiet { since: expected }));
        // Two that end at the same time may tell so in either order.
        silence.hear(at(200));
        silence.hear(at(190));
        assert_eq!(silence.turn(expected, at(259)), Some(Turn::CameBack));
        assert_eq!(
            silence.turn(Duration::from_secs(10), at(259)),
            Some(Turn::WentQuiet { since: Duration::from_secs(59) })
        );
    }
}
