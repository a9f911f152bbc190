//! What one endpoint's past says about its next request. Pure: the time and the jitter are arguments.
//!
//! Two witnesses, either of which can speak against an endpoint: traffic (passive, always on) ejects for a while that
//! doubles, after which one request at a time may try again; probes (active, when configured) set it aside until a
//! probe succeeds, and that success ends an ejection too. An answer of any status is a sign of life to traffic: a 500
//! comes from the application, and sending its requests elsewhere would not mend it.

use std::time::Duration;

use tokio::time::Instant;

/// Timeouts and resets in a row before an endpoint is ejected: one is an accident, three are a pattern.
const FAILURES_TO_EJECT: u32 = 3;
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// An endpoint that comes back is found within half a minute, whatever it did before.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// One lost probe is an accident.
const PROBES_TO_SET_ASIDE: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    /// The ejection is over and nobody is trying: one request may.
    Trial,
    /// Ejected, or set aside by probes.
    Bad,
}

/// What became of a request, as far as it says something about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Life,
    /// Nothing listens there: certain enough to eject at once, since trying elsewhere costs nothing.
    Unreachable,
    /// Timed out, reset, or did not speak HTTP.
    Failure,
    /// Says nothing, such as a keep-alive connection that had gone stale.
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
    on_trial: bool,
    failed_probes: u32,
    set_aside: bool,
}

impl Health {
    pub(super) fn standing(&self, now: Instant) -> Standing {
        match self.ejected_until {
            _ if self.set_aside => Standing::Bad,
            None => Standing::Good,
            Some(until) if now < until || self.on_trial => Standing::Bad,
            Some(_) => Standing::Trial,
        }
    }

    /// For the gauge: proven bad and not yet proven good again.
    pub(super) fn is_healthy(&self) -> bool {
        !self.set_aside && self.ejected_until.is_none()
    }

    /// For readiness. An endpoint whose ejection is over counts: were it not so, a gateway whose only one was ejected
    /// would be taken out of service and never send the request that shows it is back.
    pub(super) fn may_work(&self, now: Instant) -> bool {
        !self.set_aside && self.ejected_until.is_none_or(|until| now >= until)
    }

    pub(super) fn begin_trial(&mut self) {
        self.on_trial = true;
    }

    pub(super) fn end_trial(&mut self) {
        self.on_trial = false;
    }

    /// `jitter` is a factor near 1: several gateways must not try again in step.
    pub(super) fn saw(&mut self, sign: Sign, now: Instant, jitter: f64) {
        match sign {
            Sign::Nothing => {}
            Sign::Life => {
                self.failures = 0;
                self.ejections = 0;
                self.ejected_until = None;
            }
            Sign::Unreachable => self.failed(FAILURES_TO_EJECT, now, jitter),
            Sign::Failure => self.failed(1, now, jitter),
        }
    }

    pub(super) fn probed(&mut self, succeeded: bool) {
        if succeeded {
            *self = Self { on_trial: self.on_trial, ..Self::default() };
        } else {
            self.failed_probes = self.failed_probes.saturating_add(1);
            self.set_aside |= self.failed_probes >= PROBES_TO_SET_ASIDE;
        }
    }

    fn failed(&mut self, weight: u32, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(weight);
        // Requests that were in flight when it was ejected fail one after another: that is one failure of the
        // endpoint, not many, and must not lengthen the ejection.
        let is_out = self.ejected_until.is_some_and(|until| now < until);
        let failed_its_trial = self.ejected_until.is_some();
        if is_out || (self.failures < FAILURES_TO_EJECT && !failed_its_trial) {
            return;
        }
        let doubled = FIRST_EJECTION.saturating_mul(1 << self.ejections.min(5)).min(LONGEST_EJECTION);
        self.ejected_until = Some(now + doubled.mul_f64(jitter));
        self.ejections = self.ejections.saturating_add(1);
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: f64 = 1.0;

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn three_failures_in_a_row_eject_and_an_answer_between_them_does_not() {
        let now = Instant::now();
        let mut health = Health::default();
        for sign in [Sign::Failure, Sign::Failure, Sign::Life, Sign::Failure, Sign::Nothing, Sign::Failure] {
            health.saw(sign, now, EVEN);
        }
        assert_eq!(health.standing(now), Standing::Good);
        health.saw(Sign::Failure, now, EVEN);
        assert_eq!(health.standing(now), Standing::Bad);
        assert!(!health.is_healthy());
    }

    #[test]
    fn after_an_ejection_one_request_at_a_time_may_try() {
        let start = Instant::now();
        let mut health = Health::default();
        health.saw(Sign::Unreachable, start, EVEN);
        assert_eq!(health.standing(after(start, 0.9)), Standing::Bad);
        assert!(!health.may_work(after(start, 0.9)));
        let back = after(start, 1.0);
        assert_eq!(health.standing(back), Standing::Trial);
        assert!(health.may_work(back));
        health.begin_trial();
        assert_eq!(health.standing(back), Standing::Bad);
        health.end_trial();
        health.saw(Sign::Life, back, EVEN);
        assert_eq!(health.standing(back), Standing::Good);
    }

    #[test]
    fn ejections_double_up_to_a_bound_and_late_failures_do_not_lengthen_them() {
        let mut now = Instant::now();
        let mut health = Health::default();
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            health.saw(Sign::Failure, now, EVEN);
            health.saw(Sign::Unreachable, now, EVEN);
            health.saw(Sign::Unreachable, now, EVEN);
            assert_eq!(health.standing(after(now, expected - 0.1)), Standing::Bad, "{expected} s");
            now = after(now, expected);
            assert_eq!(health.standing(now), Standing::Trial, "{expected} s");
        }
    }

    #[test]
    fn two_failed_probes_set_aside_and_one_good_one_ends_that_and_the_ejection() {
        let now = Instant::now();
        let mut health = Health::default();
        health.probed(false);
        assert_eq!(health.standing(now), Standing::Good);
        health.probed(false);
        health.saw(Sign::Unreachable, now, EVEN);
        assert_eq!(health.standing(after(now, 3600.0)), Standing::Bad);
        health.probed(true);
        assert_eq!(health.standing(now), Standing::Good);
    }
}
