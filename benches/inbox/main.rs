//! What the durable inbox costs and what it keeps: the built binary with `delivery = "inbox"`, senders over plaintext
//! keep-alive connections, each request signed anew, and the disk's own fdatasync measured beside it.
//!
//! Every run is bounded, ends by itself and kills the gateway it started. One answer that is not the acknowledgement
//! makes it void. `src/measuring.rs` is not asked for anything; the feature keeps `cargo test --all-targets` from running this.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

mod disk;
mod gateway;
mod sender;
mod upstream;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::disk::Syncs;
use crate::gateway::{Gateway, Usage};
use crate::sender::{Phase, Sender, Until};
use crate::upstream::Upstream;

/// Not counted.
const WARM: Duration = Duration::from_secs(2);

/// What is wanted on two cores, where the disk syncs fast enough; and of deliveries a sync, or half of what arrives
/// during one, whichever is less.
const WANTED_RATE: f64 = 15_000.0;
const WANTED_PER_SYNC: f64 = 40.0;
const WANTED_MEMORY_MIB: f64 = 200.0;

#[derive(Parser)]
#[command(about = "Measures the durable inbox")]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Where the gateway's folder is made: the disk that is measured
    #[arg(long, global = true, default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// Connections, each with one request under way
    #[arg(long, global = true, default_value_t = 256)]
    senders: usize,
    /// cargo says it to every benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// Acknowledgements a second and their latency: paced, with nobody to deliver to, and while delivering
    Load {
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Of the paced part, a second
        #[arg(long, default_value_t = 1000)]
        pace: u32,
        /// Only the part with nobody to deliver to: to look at it with a profiler
        #[arg(long)]
        append_only: bool,
    },
    /// Appends a second from an empty store to this many rows
    Flat {
        #[arg(long, default_value_t = 5_000_000)]
        rows: u64,
    },
    /// Memory with so many deliveries waiting, after a kill and a new start, and while they drain
    Memory {
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
    },
}

fn main() {
    let arguments = Arguments::parse();
    let bench = Bench { folder: arguments.folder, senders: arguments.senders };
    println!("{}", gateway::machine());
    match arguments.what.unwrap_or(What::Load { seconds: 20, pace: 1000, append_only: false }) {
        What::Load { seconds, append_only: true, .. } => bench.append_only(Duration::from_secs(seconds)),
        What::Load { seconds, pace, append_only: false } => bench.load(Duration::from_secs(seconds), pace),
        What::Flat { rows } => bench.flat(rows),
        What::Memory { rows } => bench.memory(rows),
    }
}

struct Bench {
    folder: PathBuf,
    senders: usize,
}

impl Bench {
    fn gateway(&self, upstream: &Upstream) -> Gateway {
        let tables = format!(
            "[state]\nmax_claims = 20000000\n[inbox]\npath = \"inbox\"\nmax_size = \"60GiB\"\n\
             [upstreams.app]\nurls = [\"http://127.0.0.1:{}\"]\n",
            upstream.port()
        );
        Gateway::start(&self.folder, &tables, "upstream = \"app\"\ndelivery = \"inbox\"")
    }

    fn load(&self, length: Duration, pace: u32) {
        disk::demand_room(&self.folder, 8 << 30);
        {
            let upstream = Upstream::reserve();
            let gateway = self.gateway(&upstream);
            let mut sender = Sender::new(&gateway, self.senders);
            sender.run(Until::Time(WARM)).demand_sound();

            let mut syncs = Syncs::measure(gateway.folder());
            let paced = sender.paced(pace, length);
            syncs.join(Syncs::measure(gateway.folder()));
            println!("\nfdatasync of 8 KiB appended, beside it: {syncs}");
            println!("{pace}/s, from the planned arrival: {paced}");
            println!(
                "  p99 {:.0} us = {:.2} of the disk's p99, {:.2} of its median; wanted: within 3",
                paced.at(0.99),
                paced.at(0.99) / syncs.at(0.99),
                paced.at(0.99) / syncs.at(0.5)
            );
            paced.demand_sound();

            println!("\n{} senders, nobody to deliver to:", self.senders);
            let (phase, usage) = self.measured(&gateway, &mut sender, Until::Time(length));
            self.judge(&phase, &usage, &syncs);
        }
        {
            let upstream = Upstream::reserve();
            upstream.serve();
            let gateway = self.gateway(&upstream);
            let mut sender = Sender::new(&gateway, self.senders);
            let warm = sender.run(Until::Time(WARM));
            warm.demand_sound();
            let before = upstream.answered();
            println!("\n{} senders, and an upstream that answers at once:", self.senders);
            let syncs = Syncs::measure(gateway.folder());
            let (phase, usage) = self.measured(&gateway, &mut sender, Until::Time(length));
            let during = upstream.answered() - before;
            self.judge(&phase, &usage, &syncs);
            println!("  delivered meanwhile: {:.0}/s", during as f64 / phase.took.as_secs_f64());
            let (left, start) = (upstream.answered(), Instant::now());
            let all = (warm.answered() + phase.answered()) as u64;
            let is_whole = upstream.wait_for(all, Duration::from_secs(300));
            let rest = upstream.answered() - left;
            println!(
                "  the rest of {rest}: {:.0}/s; {} of {all} acknowledged are delivered",
                rest as f64 / start.elapsed().as_secs_f64(),
                upstream.answered()
            );
            assert!(is_whole, "void: not all that was acknowledged came to the upstream");
        }
    }

    fn append_only(&self, length: Duration) {
        disk::demand_room(&self.folder, 8 << 30);
        let upstream = Upstream::reserve();
        let gateway = self.gateway(&upstream);
        let mut sender = Sender::new(&gateway, self.senders);
        let syncs = Syncs::measure(gateway.folder());
        sender.run(Until::Time(WARM)).demand_sound();
        println!("the gateway is process {}", gateway.pid());
        let (phase, usage) = self.measured(&gateway, &mut sender, Until::Time(length));
        self.judge(&phase, &usage, &syncs);
    }

    fn measured(&self, gateway: &Gateway, sender: &mut Sender, until: Until) -> (Phase, Usage) {
        let before = Usage::now(gateway);
        let phase = sender.run(until);
        let usage = Usage::now(gateway).since(&before);
        phase.demand_sound();
        (phase, usage)
    }

    fn judge(&self, phase: &Phase, usage: &Usage, syncs: &Syncs) {
        let rate = phase.rate();
        let each = |total: f64| total / phase.answered() as f64;
        let arrivals = rate * syncs.at(0.5) / 1e6;
        let wanted = WANTED_PER_SYNC.min(arrivals / 2.0);
        println!("  acknowledged {rate:.0}/s (wanted {WANTED_RATE:.0}); latency {phase}");
        println!(
            "  CPU a delivery: gateway {:.1} us, generator {:.1} us; written {:.1} KiB",
            each(usage.gateway_cpu) * 1e6,
            each(usage.own_cpu) * 1e6,
            each(usage.written) / 1024.0
        );
        println!(
            "  {:.1} deliveries a commit, {:.0} commits/s; {arrivals:.1} arrive during one fdatasync: wanted {wanted:.1}",
            phase.answered() as f64 / usage.commits,
            usage.commits / phase.took.as_secs_f64()
        );
    }

    fn flat(&self, rows: u64) {
        const SLICES: u64 = 20;
        disk::demand_room(&self.folder, rows * 4096);
        let upstream = Upstream::reserve();
        let gateway = self.gateway(&upstream);
        let mut sender = Sender::new(&gateway, self.senders);
        println!("fdatasync of 8 KiB appended, before: {}", Syncs::measure(gateway.folder()));
        println!(
            "{:>9} {:>9} {:>8} {:>8} {:>8} {:>7} {:>8} {:>9} {:>8}",
            "rows", "appends/s", "p50 us", "p99 us", "max ms", "CPU us", "wrote KiB", "disk MiB", "RSS MiB"
        );
        let (mut rates, mut costs, mut done) = (Vec::new(), Vec::new(), 0);
        while done < rows {
            let (phase, usage) = self.measured(&gateway, &mut sender, Until::Count((rows / SLICES).max(1)));
            let appends = phase.answered() as f64;
            done += phase.answered() as u64;
            rates.push(phase.rate());
            costs.push(usage.gateway_cpu / appends * 1e6);
            println!(
                "{done:>9} {:>9.0} {:>8.0} {:>8.0} {:>8.1} {:>7.1} {:>8.1} {:>9.0} {:>8.0}",
                phase.rate(),
                phase.at(0.5),
                phase.at(0.99),
                phase.at(1.0) / 1000.0,
                usage.gateway_cpu / appends * 1e6,
                usage.written / appends / 1024.0,
                disk::usage(gateway.folder()) as f64 / MIB,
                gateway.memory().resident / MIB
            );
        }
        println!("fdatasync of 8 KiB appended, after: {}", Syncs::measure(gateway.folder()));
        println!(
            "the last quarter beside the first, medians: appends/s {:.2}, gateway CPU an append {:.2}",
            last_to_first(&rates),
            last_to_first(&costs)
        );
    }

    fn memory(&self, rows: u64) {
        disk::demand_room(&self.folder, rows * 4096);
        let upstream = Upstream::reserve();
        let mut gateway = self.gateway(&upstream);
        let mut sender = Sender::new(&gateway, self.senders);
        let mut most = 0.0_f64;
        let mut tell = |what: &str, gateway: &Gateway| {
            let memory = gateway.memory();
            most = most.max(memory.most);
            println!("{what:<36} {memory}");
        };
        tell("at the start", &gateway);
        let mut done = 0;
        for step in [rows / 10, rows / 2, rows] {
            let phase = sender.run(Until::Count(step - done));
            phase.demand_sound();
            done += phase.answered() as u64;
            tell(&format!("{done} waiting"), &gateway);
        }
        let start = Instant::now();
        gateway.kill_and_start();
        tell(&format!("killed, ready again after {:.1} s", start.elapsed().as_secs_f64()), &gateway);
        upstream.serve();
        let start = Instant::now();
        for tenth in 1..=10 {
            if !upstream.wait_for(done * tenth / 10, Duration::from_secs(600)) {
                println!(
                    "void: {} of {done} delivered after {:.0} s",
                    upstream.answered(),
                    start.elapsed().as_secs_f64()
                );
                break;
            }
            if matches!(tenth, 1 | 5 | 10) {
                tell(&format!("{} delivered", upstream.answered()), &gateway);
            }
        }
        println!("drained at {:.0}/s", upstream.answered() as f64 / start.elapsed().as_secs_f64());
        println!("the most that was ever resident: {:.0} MiB (wanted: under {WANTED_MEMORY_MIB:.0})", most / MIB);
    }
}

const MIB: f64 = 1_048_576.0;

/// Of values in ascending order.
fn quantile(sorted: &[u32], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().map_or(f64::NAN, f64::from)
}

/// The median of the last quarter by that of the first: single slices tell more of the machine than of the store.
fn last_to_first(values: &[f64]) -> f64 {
    let quarter = (values.len() / 4).max(1);
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part.get(part.len() / 2).copied().unwrap_or(f64::NAN)
    };
    median(&values[values.len().saturating_sub(quarter)..]) / median(&values[..quarter.min(values.len())])
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
