//! What remembering costs: claims a second, memory, an hour of them, and whether a request pays for how many sources there
//! are. The first three call the library's own tables, without a gateway around them; the last drives the built binary.
//!
//! Every run is bounded and ends by itself; one claim that is not judged as it should be makes it void.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/gateway.rs"]
mod gateway;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/sender.rs"]
mod sender;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/upstream.rs"]
mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use hookward::measuring::Claims;

use crate::gateway::Gateway;
use crate::sender::{Sender, Until};
use crate::upstream::Upstream;

const WANTED_CLAIMS: f64 = 100_000.0;
const WANTED_MEMORY_MIB: f64 = 100.0;
const MIB: f64 = 1_048_576.0;

/// Of the simulated clock: 2025-10-09, as milliseconds.
const START: u64 = 1_760_000_000_000;
/// A tolerance of five minutes, and one: what a source with signed times remembers for.
const KEPT: u64 = 360_000;

#[derive(Parser)]
#[command(about = "Measures what is remembered of deliveries")]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Where the gateway's folder is made
    #[arg(long, global = true, default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// cargo says it to every benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// Claims a second, each with its limit and its commit: from one thread and several, of one source and of many
    Claims {
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Threads at once, the most
        #[arg(long, default_value_t = 4)]
        threads: usize,
    },
    /// Memory of this whole process with so many claims remembered
    Memory {
        #[arg(long, default_value_t = 1_000_000)]
        claims: u64,
    },
    /// An hour of claims that come and expire, under a simulated clock, in twelve slices
    Hour {
        /// A second
        #[arg(long, default_value_t = 500)]
        rate: u64,
    },
    /// CPU a request of a gateway with 10 sources and of one with 1,000, in turns
    Sources {
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        #[arg(long, default_value_t = 20_000)]
        requests: u64,
    },
}

fn main() {
    let arguments = Arguments::parse();
    println!("{}", gateway::machine());
    match arguments.what {
        None => {
            claims(Duration::from_secs(2), 4);
            memory(1_000_000);
            hour(500);
            sources(&arguments.folder, 7, 20_000);
        }
        Some(What::Claims { seconds, threads }) => claims(Duration::from_secs_f64(seconds), threads),
        Some(What::Memory { claims }) => memory(claims),
        Some(What::Hour { rate }) => hour(rate),
        Some(What::Sources { rounds, requests }) => sources(&arguments.folder, rounds, requests),
    }
}

fn claims(length: Duration, most_threads: usize) {
    const SOURCES: usize = 64;
    println!("\n{:<28} {:>12} {:>14}", "claimed and committed", "a second", "CPU each, us");
    for (what, sources) in [("one source", 1), ("64 sources", SOURCES)] {
        let mut threads = 1;
        while threads <= most_threads {
            let claims = Arc::new(Claims::of_sources(sources, 2_000_000));
            let cpu = gateway::cpu(std::process::id());
            let (done, took) = claimed(&claims, sources, threads, length);
            let cpu = gateway::cpu(std::process::id()) - cpu;
            let rate = done as f64 / took.as_secs_f64();
            let verdict = if rate >= WANTED_CLAIMS { "" } else { "  fewer than wanted" };
            println!(
                "{:<28} {rate:>12.0} {:>14.2}{verdict}",
                format!("{what}, {threads} threads"),
                cpu / done as f64 * 1e6
            );
            threads *= 2;
        }
    }
}

/// Each thread claims messages of its own. The clock runs a hundred times as fast, so that much expires meanwhile.
fn claimed(claims: &Arc<Claims>, sources: usize, threads: usize, length: Duration) -> (u64, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let running: Vec<_> = (0..threads as u64)
        .map(|own| {
            let (claims, stop) = (claims.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut done = 0;
                let mut now = START;
                while !stop.load(Ordering::Relaxed) {
                    if done % 64 == 0 {
                        now = START + start.elapsed().as_micros() as u64 / 10;
                    }
                    let number = (own << 48) + done;
                    let source = (number % sources as u64) as usize;
                    assert!(claims.accept(source, number, now, now + 60_000), "void: a new message was not first");
                    done += 1;
                }
                done
            })
        })
        .collect();
    std::thread::sleep(length);
    stop.store(true, Ordering::Relaxed);
    let done = running.into_iter().map(|thread| thread.join().expect("a thread that ends")).sum();
    (done, start.elapsed())
}

fn memory(many: u64) {
    let claims = Claims::of_sources(1, 2 * many as usize);
    let before = resident();
    // Evenly over an hour that is remembered whole.
    let at = |number: u64| START + number * 3_600_000 / many;
    for number in 0..many {
        assert!(claims.accept(0, number, at(number), at(number) + 7_200_000), "void: a new message was not first");
    }
    let after = resident();
    assert!(
        claims.remembered() == many as usize
            && (0..many).step_by(997).all(|number| claims.is_replay(0, number, at(many)))
    );
    println!(
        "\n{} claims remembered, memory of this whole process (RSS): {:.1} MiB, {:.1} before (wanted: under {WANTED_MEMORY_MIB:.0})",
        claims.remembered(),
        after / MIB,
        before / MIB
    );
    println!("  the table's share: {:.1} bytes a claim", (after - before) / many as f64);
}

fn hour(rate: u64) {
    const SLICES: u64 = 12;
    let claims = Claims::of_sources(1, 2_000_000);
    let many = rate * 3600 / SLICES;
    println!("\n{:>8} {:>11} {:>13} {:>14} {:>9}", "minute", "remembered", "CPU each, us", "longest, us", "RSS, MiB");
    let (mut costs, mut sizes) = (Vec::new(), Vec::new());
    for slice in 0..SLICES {
        let cpu = gateway::cpu(std::process::id());
        let mut longest = Duration::ZERO;
        for number in slice * many..(slice + 1) * many {
            let now = START + number * 1000 / rate;
            let start = Instant::now();
            assert!(claims.accept(0, number, now, now + KEPT), "void: a new message was not first");
            longest = longest.max(start.elapsed());
        }
        let cpu = gateway::cpu(std::process::id()) - cpu;
        costs.push(cpu / many as f64 * 1e6);
        sizes.push(resident() / MIB);
        println!(
            "{:>8} {:>11} {:>13.3} {:>14.0} {:>9.1}",
            (slice + 1) * 60 / SLICES,
            claims.remembered(),
            cpu / many as f64 * 1e6,
            longest.as_secs_f64() * 1e6,
            resident() / MIB
        );
    }
    let known = (rate * 3600).saturating_sub(rate * KEPT / 1000 / 2);
    assert!(claims.is_replay(0, known, START + 3_600_000), "void: a message was forgotten before its time");
    println!(
        "the second half beside the first but one slice, medians: CPU {:.2}, RSS {:.2}",
        halves(&costs),
        halves(&sizes)
    );
}

/// The median of the second half by that of the first without its first slice, in which there is nothing to expire yet.
fn halves(values: &[f64]) -> f64 {
    let (first, second) = values.split_at(values.len() / 2);
    median(second) / median(&first[1..])
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn sources(folder: &Path, rounds: usize, requests: u64) {
    let upstream = Upstream::reserve();
    upstream.serve();
    let (few, many) = (10, 1000);
    let gateways = [few, many].map(|sources| with_sources(folder, &upstream, sources));
    let mut senders = [(few, &gateways[0]), (many, &gateways[1])].map(|(sources, gateway)| {
        let mut sender = Sender::new(gateway, 32);
        sender.aim_at((1..sources).map(path).collect());
        sender
    });
    println!();
    for ((gateway, sender), sources) in gateways.iter().zip(&mut senders).zip([few, many]) {
        println!("{sources} sources, at rest: {}", gateway.memory());
        sender.run(Until::Count(requests)).demand_sound();
    }
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for ((gateway, sender), costs) in gateways.iter().zip(&mut senders).zip(&mut costs) {
            // The process alone is asked: telling the metrics of a thousand sources would cost more than a request.
            let before = gateway::cpu(gateway.pid());
            let phase = sender.run(Until::Count(requests));
            phase.demand_sound();
            costs.push((gateway::cpu(gateway.pid()) - before) / phase.answered() as f64 * 1e6);
        }
    }
    let [few_cost, many_cost] = costs.map(|costs| median(&costs));
    println!("\n{few} sources: {few_cost:.1} us of CPU a request, {}", gateways[0].memory());
    println!("{many} sources: {many_cost:.1} us of CPU a request, {}", gateways[1].memory());
    println!("medians of {rounds} rounds of {requests}: {:.2} times", many_cost / few_cost);
}

/// The gateway's own source is one of them, and gets nothing.
fn with_sources(folder: &Path, upstream: &Upstream, sources: usize) -> Gateway {
    let mut tables = format!("[upstreams.app]\nurls = [\"http://127.0.0.1:{}\"]\n", upstream.port());
    for number in 1..sources {
        let path = String::from_utf8(path(number).to_vec()).expect("digits");
        let secret = std::str::from_utf8(gateway::SECRET).expect("text");
        tables.push_str(&format!(
            "[sources.s{number}]\npath = \"{path}\"\nsecrets = [{{ value = \"{secret}\" }}]\nupstream = \"app\"\n\
             rate_limit = {{ rate = \"1000000/s\", burst = 1000000 }}\n[sources.s{number}.verify]\n\
             algorithm = \"hmac-sha256\"\n\
             signature = {{ header = \"X-Acme-Signature\", encoding = \"hex\", prefix = \"v1=\" }}\n\
             message = \"{{timestamp}}.{{body}}\"\n\
             timestamp = {{ header = \"X-Acme-Timestamp\", unit = \"s\", tolerance = \"5m\" }}\n\
             id = {{ header = \"X-Acme-Delivery\" }}\nevent = {{ json = \"/type\" }}\n"
        ));
    }
    Gateway::start(folder, &tables, "upstream = \"app\"")
}

fn path(source: usize) -> [u8; 5] {
    let mut path = *b"/0000";
    for (at, digit) in path[1..].iter_mut().rev().zip(format!("{source:04}").bytes().rev()) {
        *at = digit;
    }
    path
}

/// Bytes.
fn resident() -> f64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) * 1024.0
}

/// Of values in ascending order.
fn quantile(sorted: &[u32], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().map_or(f64::NAN, f64::from)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
