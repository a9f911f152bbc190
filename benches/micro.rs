//! What one piece of work costs: parsing, templates, schemes, claims, limits, heads, encodings.
//!
//! Without arguments, or with words that names are to contain: medians in time, measured in turns, so that a slower
//! minute of the machine slows all. `--list` names the cases, each with how often it is to run to be counted, and
//! `--count NAME N` runs that one N times behind one call to warm it, for `benches/instructions.py`, which counts what
//! `counted_calls` executes.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use hookward::measuring::{Case, Run, cases};

/// Long enough that reading the clock does not count.
const BATCH: Duration = Duration::from_micros(200);
const BATCHES: usize = 300;

fn main() {
    // Cargo's own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--list"] => cases().iter().for_each(|case| println!("{}\t{}", case.name, case.times)),
        ["--count", name, times] => count(name, times.parse().expect("a number of times")),
        _ => time(&words),
    }
}

fn count(name: &str, times: u32) {
    let all = cases();
    let case = all.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("{name}: there is no such case"));
    let mut run = (case.make)();
    assert!(run(), "{name}: ended otherwise than it should");
    assert!(counted_calls(&mut run, times), "{name}: ended otherwise than it should");
}

/// Nothing else is counted, so it must stay a function; one within it would have a name with the same beginning.
#[inline(never)]
fn counted_calls(run: &mut Run, times: u32) -> bool {
    for _ in 0..times {
        if !black_box(run()) {
            return false;
        }
    }
    true
}

struct Meter {
    name: &'static str,
    /// A case may be good for so many calls and no more.
    make: fn() -> Run,
    run: Run,
    left: u32,
    most: u32,
    times: u32,
    /// Nanoseconds of one call, a batch's mean.
    measured: Vec<f64>,
}

impl Meter {
    fn new(case: &Case) -> Self {
        let (run, most) = ((case.make)(), case.times);
        let measured = Vec::with_capacity(BATCHES);
        let mut meter = Self { name: case.name, make: case.make, run, left: most, most, times: 1, measured };
        // Warm, and long enough a batch.
        while meter.batch() < BATCH && meter.times * 2 <= most {
            meter.times *= 2;
        }
        meter
    }

    fn batch(&mut self) -> Duration {
        if self.left < self.times {
            self.run = (self.make)();
            self.left = self.most;
        }
        self.left -= self.times;
        let start = Instant::now();
        assert!(counted_calls(&mut self.run, self.times), "{}: ended otherwise than it should", self.name);
        start.elapsed()
    }

    fn measure(&mut self) {
        let took = self.batch();
        self.measured.push(took.as_secs_f64() * 1e9 / f64::from(self.times));
    }

    fn median(&mut self) -> f64 {
        self.measured.sort_by(f64::total_cmp);
        self.measured.get(self.measured.len() / 2).copied().unwrap_or_default()
    }
}

fn time(words: &[&str]) {
    let is_meant = |case: &&Case| words.is_empty() || words.iter().any(|word| case.name.contains(word));
    let mut meters: Vec<Meter> = cases().iter().filter(is_meant).map(Meter::new).collect();
    for _ in 0..BATCHES {
        meters.iter_mut().for_each(Meter::measure);
    }
    println!("{:<48} {:>12}", "case", "median ns");
    for meter in &mut meters {
        let median = meter.median();
        println!("{:<48} {median:>12.0}", meter.name);
    }
}
