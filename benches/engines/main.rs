//! What engines cost: publishing with confirms to each broker, and the state in Redis beside the state in memory. The built
//! binary, senders over plaintext keep-alive connections, each request signed anew, and real engines on the same machine.
//!
//! Every run is bounded, ends by itself and kills what it started. One answer that is not 2xx makes it void, and so does a
//! delivery that was acknowledged and is not on the broker.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

mod broker;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/gateway.rs"]
mod gateway;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/sender.rs"]
mod sender;
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
mod support;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/upstream.rs"]
mod upstream;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::broker::Engine;
use crate::gateway::{Gateway, Usage};
use crate::sender::{Phase, Sender, Until};
use crate::support::engines::Redis;
use crate::upstream::Upstream;

/// Not counted.
const WARM: Duration = Duration::from_secs(2);

/// On two cores, with the engine on them too.
const WANTED_PUBLISHED: f64 = 5_000.0;
const WANTED_RATIO: f64 = 0.6;
const WANTED_ROUND_TRIP: f64 = 150.0;

#[derive(Parser)]
#[command(about = "Measures brokers behind the gateway, and the state in Redis")]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Where the gateway's folder is made
    #[arg(long, global = true, default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// Connections, each with one request under way
    #[arg(long, global = true, default_value_t = 256)]
    senders: usize,
    #[arg(long, global = true, default_value_t = 10)]
    seconds: u64,
    /// cargo says it to every benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// Confirmed deliveries a second to each broker
    Brokers {
        /// Those alone with this in their name
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Throughput with Redis beside memory, in turns, and what a round trip adds to a lonely delivery
    State {
        #[arg(long, default_value_t = 3)]
        turns: usize,
    },
}

fn main() {
    let arguments = Arguments::parse();
    let bench =
        Bench { folder: arguments.folder, senders: arguments.senders, length: Duration::from_secs(arguments.seconds) };
    println!("{}", gateway::machine());
    match arguments.what {
        Some(What::Brokers { only }) => bench.brokers(&only),
        Some(What::State { turns }) => bench.state(turns),
        None => {
            bench.brokers("");
            bench.state(3);
        }
    }
}

struct Bench {
    folder: PathBuf,
    senders: usize,
    length: Duration,
}

impl Bench {
    fn brokers(&self, only: &str) {
        println!("\n1 KiB, {} senders, {} s each; wanted {WANTED_PUBLISHED:.0}/s", self.senders, self.length.as_secs());
        println!(
            "{:<22} {:>9} {:>8} {:>8} {:>10} {:>10} {:>10}",
            "confirmed by", "each s", "p50 ms", "p99 ms", "gateway us", "engine us", "sender us"
        );
        for (name, start) in broker::ALL {
            if name.contains(only) {
                self.broker(name, &start());
            }
        }
    }

    fn broker(&self, name: &str, engine: &Engine) {
        let tables = format!("[state]\nmax_claims = 20000000\n[upstreams.tasks]\n{}\n", engine.upstream);
        let gateway = Gateway::start(&self.folder, &tables, "upstream = \"tasks\"");
        wait_until_taken(&gateway);
        let mut sender = Sender::starting_at(&gateway, self.senders, 1 << 40);
        let warm = sender.run(Until::Time(WARM));
        warm.demand_sound();
        let before = (Usage::now(&gateway), gateway::cpu(engine.pid));
        let phase = sender.run(Until::Time(self.length));
        let usage = Usage::now(&gateway).since(&before.0);
        let engine_cpu = gateway::cpu(engine.pid) - before.1;
        phase.demand_sound();
        let each = |total: f64| total / phase.answered() as f64 * 1e6;
        println!(
            "{:<22} {:>9.0} {:>8.1} {:>8.1} {:>10.1} {:>10.1} {:>10.1}",
            name,
            phase.rate(),
            phase.at(0.5) / 1000.0,
            phase.at(0.99) / 1000.0,
            each(usage.gateway_cpu),
            each(engine_cpu),
            each(usage.own_cpu)
        );
        let (sent, there) = ((1 + warm.answered() + phase.answered()) as u64, engine.count());
        assert_eq!(there, sent, "void: {name}: on the broker, and acknowledged");
    }

    /// In turns, each with a gateway and a Redis of its own, so that a slower minute of the machine slows both.
    fn state(&self, turns: usize) {
        let (mut memory, mut redis) = (Vec::new(), Vec::new());
        println!("\nstate in memory and in Redis, {} senders, {} s each", self.senders, self.length.as_secs());
        println!(
            "{:<8} {:>9} {:>10} {:>10} {:>12} {:>10}",
            "", "each s", "gateway us", "redis us", "lonely p50 us", "p99 us"
        );
        for _ in 0..turns.max(1) {
            memory.push(self.turn(None));
            redis.push(self.turn(Some(Redis::start())));
        }
        let median = |turns: &[Turn], of: fn(&Turn) -> f64| {
            let mut values: Vec<f64> = turns.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let rates = [&memory, &redis].map(|turns| median(turns, |turn| turn.rate));
        let lonely = [&memory, &redis].map(|turns| median(turns, |turn| turn.lonely));
        println!("throughput, Redis by memory: {:.2} (wanted {WANTED_RATIO})", rates[1] / rates[0]);
        println!(
            "a round trip (claim, commit) adds {:.0} us to a lonely delivery's median (wanted under {WANTED_ROUND_TRIP:.0})",
            (lonely[1] - lonely[0]) / 2.0
        );
    }

    fn turn(&self, redis: Option<Redis>) -> Turn {
        let upstream = Upstream::reserve();
        upstream.serve();
        let state = match &redis {
            None => "kind = \"memory\"".to_owned(),
            Some(redis) => format!("kind = \"redis\"\nurl = \"{}\"\ntimeout = \"10s\"", redis.url()),
        };
        let tables = format!(
            "[state]\nmax_claims = 20000000\n{state}\n[upstreams.app]\nurls = [\"http://127.0.0.1:{}\"]\n",
            upstream.port()
        );
        let gateway = Gateway::start(&self.folder, &tables, "upstream = \"app\"");
        let lonely = self.lonely(&gateway);
        let operations = ["claim", "commit"].map(|operation| mean(&gateway, operation));
        let mut sender = Sender::starting_at(&gateway, self.senders, 1 << 40);
        sender.run(Until::Time(WARM)).demand_sound();
        let engine_cpu = || redis.as_ref().map_or(0.0, |redis| gateway::cpu(redis.pid()));
        let before = (Usage::now(&gateway), engine_cpu());
        let phase = sender.run(Until::Time(self.length));
        let (usage, engine) = (Usage::now(&gateway).since(&before.0), engine_cpu() - before.1);
        phase.demand_sound();
        let each = |total: f64| total / phase.answered() as f64 * 1e6;
        println!(
            "{:<8} {:>9.0} {:>10.1} {:>10.1} {:>12.0} {:>10.0}",
            if redis.is_some() { "redis" } else { "memory" },
            phase.rate(),
            each(usage.gateway_cpu),
            each(engine),
            lonely.at(0.5),
            lonely.at(0.99)
        );
        if redis.is_some() {
            let [claim, commit] = operations;
            println!(
                "  by the gateway's own histogram, lonely, on average: claim {claim:.0} us, commit {commit:.0} us"
            );
        }
        Turn { rate: phase.rate(), lonely: lonely.at(0.5) }
    }

    /// One request at a time: latency without a queue.
    fn lonely(&self, gateway: &Gateway) -> Phase {
        let mut sender = Sender::new(gateway, 1);
        sender.run(Until::Time(WARM)).demand_sound();
        let phase = sender.run(Until::Time(self.length / 2));
        phase.demand_sound();
        phase
    }
}

/// The gateway is ready before it is connected: one delivery, sent until the broker has confirmed it.
fn wait_until_taken(gateway: &Gateway) {
    let (mut sender, start) = (Sender::new(gateway, 1), Instant::now());
    while sender.run(Until::Count(1)).answered() == 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "void: the broker takes nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Turn {
    rate: f64,
    /// Microseconds.
    lonely: f64,
}

/// Of the gateway's questions of this kind, in microseconds.
fn mean(gateway: &Gateway, operation: &str) -> f64 {
    let of =
        |what: &str| gateway.metric_of(&format!("hookward_state_duration_seconds_{what}"), &format!("\"{operation}\""));
    of("sum") / of("count") * 1e6
}

const MIB: f64 = 1_048_576.0;

/// Of values in ascending order.
fn quantile(sorted: &[u32], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().map_or(f64::NAN, f64::from)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
