//! Reaching a server that the operator names, and reaching it again: where it is, and the waits between attempts.
//!
//! Invariant: the waits double from the first to the longest, each with its own share of chance: a server that is back
//! is found within a second or so, and one that is gone is not hammered by a fleet in step.

use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

pub(crate) struct Waits(Duration);

impl Waits {
    const FIRST: Duration = Duration::from_millis(50);
    pub(crate) const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    /// Before the next attempt: from half of what it would be without chance.
    pub(crate) fn take(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(Self::LONGEST);
        wait.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second_and_none_is_less_than_half_of_it() {
        let mut waits = Waits::new();
        for whole in [50, 100, 200, 400, 800, 1000, 1000] {
            let (whole, wait) = (Duration::from_millis(whole), waits.take());
            assert!((whole / 2..=whole).contains(&wait), "{wait:?} of {whole:?}");
        }
    }
}
