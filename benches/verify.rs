//! What verifying a delivery of 1 KiB costs, warm: the whole verifier (headers parsed, message built, signature checked,
//! time judged) and beside it the bare primitive. Medians; both are measured in turns, so that a slower minute of the
//! machine slows both.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

use std::time::{Duration, Instant};

use hookward::measuring::{Allowed, pairs};

/// Long enough that reading the clock does not count.
const BATCH: Duration = Duration::from_micros(200);
const BATCHES: usize = 2_000;

fn main() {
    println!("{:<12} {:>10} {:>10} {:>7} {:>8}", "1 KiB", "whole µs", "bare µs", "ratio", "more µs");
    for mut pair in pairs() {
        assert!((pair.whole)() && (pair.bare)(), "{}: not genuine", pair.name);
        let (mut whole, mut bare) = (Meter::new(&mut pair.whole), Meter::new(&mut pair.bare));
        for _ in 0..BATCHES {
            whole.measure();
            bare.measure();
        }
        let (whole, bare) = (whole.median(), bare.median());
        let (ratio, more) = (whole / bare, whole - bare);
        let is_within = match pair.allowed {
            Allowed::Times(most) => ratio <= most,
            Allowed::MoreMicroseconds(most) => more <= most,
        };
        let verdict = match (is_within, whole <= pair.most) {
            (true, true) => "",
            (false, _) => "beyond what the primitive allows for",
            (true, false) => "slower than wanted, as the primitive is here",
        };
        println!("{:<12} {whole:>10.2} {bare:>10.2} {ratio:>7.2} {more:>8.2}  {verdict}", pair.name);
    }
}

struct Meter<'a> {
    judge: &'a mut dyn FnMut() -> bool,
    times: u32,
    /// Microseconds of one call, a batch's mean.
    measured: Vec<f64>,
}

impl<'a> Meter<'a> {
    fn new(judge: &'a mut dyn FnMut() -> bool) -> Self {
        let mut meter = Self { judge, times: 1, measured: Vec::with_capacity(BATCHES) };
        // Warm, and long enough a batch.
        while meter.batch() < BATCH {
            meter.times *= 2;
        }
        meter
    }

    fn batch(&mut self) -> Duration {
        let start = Instant::now();
        for _ in 0..self.times {
            assert!(std::hint::black_box((self.judge)()), "judged otherwise than at first");
        }
        start.elapsed()
    }

    fn measure(&mut self) {
        let took = self.batch();
        self.measured.push(took.as_secs_f64() * 1e6 / f64::from(self.times));
    }

    fn median(&mut self) -> f64 {
        self.measured.sort_by(f64::total_cmp);
        self.measured.get(self.measured.len() / 2).copied().unwrap_or_default()
    }
}
