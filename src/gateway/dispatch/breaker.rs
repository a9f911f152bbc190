//! May an upstream be sent another task now? Pure: time and chance are arguments.
//!
//! An upstream that fails time after time is left alone for a while that doubles, then asked by one task alone; when that
//! one arrives the others follow a few at a time, twice as many after each round. What waits meanwhile uses up none of
//! its attempts, and an upstream that has just come back is not met by all that was kept for it.

use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row: fewer are accidents.
const FAILURES_TO_OPEN: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// An upstream that is back is found within a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Several gateways must not ask in step: a wait is shorter or longer by so large a share.
const JITTER: f64 = 0.2;

#[derive(Debug)]
pub(super) struct Breaker {
    stage: Stage,
    failures: u32,
    /// The next one.
    wait: Duration,
    /// How many may be under way while it is being tried how much it bears; None: as many as are configured.
    window: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    Open {
        until: Instant,
    },
    /// One is under way that will tell.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Go,
    At(Instant),
    /// When one of those under way has ended.
    Later,
}

/// What an attempt says of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Life,
    Failure,
    Nothing,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { stage: Stage::Closed, failures: 0, wait: FIRST_WAIT, window: None }
    }

    /// `most`: what is configured to be under way at once.
    pub(super) fn ask(&self, under_way: usize, most: usize, now: Instant) -> Answer {
        match self.stage {
            Stage::Open { until } if now < until => Answer::At(until),
            Stage::Open { .. } => Answer::Go,
            Stage::HalfOpen => Answer::Later,
            Stage::Closed if under_way < self.window.unwrap_or(most).min(most) => Answer::Go,
            Stage::Closed => Answer::Later,
        }
    }

    /// After `Go`. Whether it is the one that will tell.
    pub(super) fn begin(&mut self) -> bool {
        let is_probe = matches!(self.stage, Stage::Open { .. });
        if is_probe {
            self.stage = Stage::HalfOpen;
        }
        is_probe
    }

    /// `random`: from 0 to 1.
    pub(super) fn saw(&mut self, sign: Sign, is_probe: bool, most: usize, now: Instant, random: f64) {
        let tells = is_probe && self.stage == Stage::HalfOpen;
        match sign {
            Sign::Life => {
                let was_closed = self.stage == Stage::Closed;
                (self.stage, self.failures, self.wait) = (Stage::Closed, 0, FIRST_WAIT);
                self.window = match self.window {
                    // One more for each that arrived: twice as many after each round.
                    Some(window) if was_closed => Some(window + 1).filter(|window| *window < most),
                    None if was_closed => None,
                    Some(_) | None => Some(1),
                };
            }
            Sign::Failure if tells => self.open(now, random),
            Sign::Failure if self.stage == Stage::Closed => {
                self.failures += 1;
                self.window = self.window.map(|window| (window / 2).max(1));
                if self.failures >= FAILURES_TO_OPEN {
                    self.open(now, random);
                }
            }
            Sign::Nothing if tells => self.stage = Stage::Open { until: now },
            // Of those that were under way when it opened: that is known.
            Sign::Failure | Sign::Nothing => {}
        }
    }

    fn open(&mut self, now: Instant, random: f64) {
        let factor = 1.0 + JITTER * (random.clamp(0.0, 1.0) * 2.0 - 1.0);
        self.stage = Stage::Open { until: now + self.wait.mul_f64(factor) };
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        (self.failures, self.window) = (0, None);
    }

    /// 0: closed, 1: half open, 2: open.
    pub(super) fn number(&self) -> i64 {
        match self.stage {
            Stage::Closed => 0,
            Stage::HalfOpen => 1,
            Stage::Open { .. } => 2,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage != Stage::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 8;
    const MIDDLE: f64 = 0.5;

    fn failed(breaker: &mut Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            breaker.saw(Sign::Failure, false, MOST, now, MIDDLE);
        }
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_four_do_not() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        failed(&mut breaker, 4, now);
        breaker.saw(Sign::Life, false, MOST, now, MIDDLE);
        failed(&mut breaker, 4, now);
        assert_eq!(breaker.ask(0, MOST, now), Answer::Go);
        failed(&mut breaker, 1, now);
        assert_eq!(breaker.ask(0, MOST, now), Answer::At(now + FIRST_WAIT));
        assert_eq!(breaker.number(), 2);
    }

    #[test]
    fn one_alone_asks_and_the_wait_doubles_up_to_a_minute_while_it_fails() {
        let (mut breaker, mut now) = (Breaker::new(), Instant::now());
        failed(&mut breaker, 5, now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let Answer::At(until) = breaker.ask(0, MOST, now) else { panic!("it is open") };
            waits.push((until - now).as_secs());
            now = until;
            assert_eq!(breaker.ask(3, MOST, now), Answer::Go);
            assert!(breaker.begin());
            assert_eq!((breaker.ask(0, MOST, now), breaker.number()), (Answer::Later, 1));
            // Of an attempt from before it opened.
            breaker.saw(Sign::Failure, false, MOST, now, MIDDLE);
            assert_eq!(breaker.ask(0, MOST, now), Answer::Later);
            breaker.saw(Sign::Failure, true, MOST, now, MIDDLE);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn after_the_one_that_arrived_the_others_follow_slowly() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        failed(&mut breaker, 5, now);
        let later = now + FIRST_WAIT;
        assert!(breaker.begin());
        breaker.saw(Sign::Life, true, MOST, later, MIDDLE);
        let window = |breaker: &Breaker| (0..=MOST).find(|n| breaker.ask(*n, MOST, later) == Answer::Later).unwrap();
        assert_eq!(window(&breaker), 1);
        breaker.saw(Sign::Life, false, MOST, later, MIDDLE);
        assert_eq!(window(&breaker), 2);
        for _ in 0..2 {
            breaker.saw(Sign::Life, false, MOST, later, MIDDLE);
        }
        assert_eq!(window(&breaker), 4);
        breaker.saw(Sign::Failure, false, MOST, later, MIDDLE);
        assert_eq!(window(&breaker), 2);
        for _ in 0..20 {
            breaker.saw(Sign::Life, false, MOST, later, MIDDLE);
        }
        assert_eq!(window(&breaker), MOST);
        // The wait has begun anew.
        failed(&mut breaker, 5, later);
        assert_eq!(breaker.ask(0, MOST, later), Answer::At(later + FIRST_WAIT));
    }

    #[test]
    fn one_that_was_to_tell_and_did_not_leaves_the_question_to_the_next() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        failed(&mut breaker, 5, now);
        let later = now + FIRST_WAIT;
        assert!(breaker.begin());
        breaker.saw(Sign::Nothing, true, MOST, later, MIDDLE);
        assert_eq!(breaker.ask(0, MOST, later), Answer::Go);
        assert!(breaker.begin());
    }

    #[test]
    fn chance_moves_the_wait_by_a_fifth() {
        let now = Instant::now();
        let wait = |random| {
            let mut breaker = Breaker::new();
            for _ in 0..5 {
                breaker.saw(Sign::Failure, false, MOST, now, random);
            }
            match breaker.ask(0, MOST, now) {
                Answer::At(until) => (until - now).as_millis(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((wait(0.0), wait(1.0)), (800, 1200));
    }
}
