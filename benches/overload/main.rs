//! What a gateway does when ten times as much comes as the upstream serves: how much is served and how fast, what becomes of
//! the rest and how soon it is told, what that takes of memory, and how long it takes until all is as before.
//!
//! The built binary, and senders that do not wait for one another (open loop): every request has a time at which it is due,
//! and its answer's latency counts from then. Every run is bounded, ends by itself and kills the gateway it started.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

mod crowd;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/gateway.rs"]
mod gateway;
#[allow(dead_code, reason = "the inbox's benchmark uses all of it")]
#[path = "../inbox/sender.rs"]
mod sender;
mod upstream;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;

use crate::crowd::{Crowd, Stretch};
use crate::gateway::{Gateway, Memory};
use crate::upstream::Limited;

/// Before and after the flood, by what the upstream serves.
const CALM: f64 = 0.5;
const WARM: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(3);
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

const WANTED_SERVED: f64 = 0.95;
const WANTED_P99_MS: f64 = 100.0;
const WANTED_RECOVERY: Duration = Duration::from_secs(2);
const MIB: f64 = 1_048_576.0;

#[derive(Parser)]
#[command(about = "Measures a gateway under more than its upstream can serve")]
struct Arguments {
    /// So many requests the upstream serves at once
    #[arg(long, default_value_t = 10)]
    places: u32,
    /// Milliseconds that it takes for each
    #[arg(long, default_value_t = 50)]
    service: u32,
    /// Offered, a second
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Further keys of the upstream's table, `;` between them; default: several tables in turn
    #[arg(long)]
    upstream: Option<String>,
    /// Where the gateway's folder is made
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// cargo says it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let capacity = f64::from(arguments.places) * 1000.0 / f64::from(arguments.service);
    println!("{}", gateway::machine());
    println!(
        "the upstream serves {} at once, each in {} ms: {capacity:.0}/s; {}/s are offered for {} s",
        arguments.places, arguments.service, arguments.rate, arguments.seconds
    );
    let told = format!("max_in_flight = {}", arguments.places);
    let tables = match &arguments.upstream {
        Some(keys) => vec![keys.clone()],
        None => vec![told.clone(), format!("{told}; queue_timeout = \"50ms\""), String::new()],
    };
    for keys in tables {
        println!("\n[upstreams.app] {}", if keys.is_empty() { "as it comes" } else { &keys });
        run(&arguments, &keys.replace(';', "\n"), capacity);
    }
}

fn run(arguments: &Arguments, keys: &str, capacity: f64) {
    let upstream = Limited::start(arguments.places as usize, Duration::from_millis(arguments.service.into()));
    let tables = format!("[upstreams.app]\nurls = [\"http://127.0.0.1:{}\"]\n{keys}\n", upstream.port());
    let gateway = Gateway::start(&arguments.folder, &tables, "upstream = \"app\"");
    let mut crowd = Crowd::new(gateway.public);
    let calm = (capacity * CALM) as u32;

    let before = crowd.send(calm, WARM);
    println!("  before, {calm}/s: {before}");
    let rest = gateway.memory();

    let length = Duration::from_secs(arguments.seconds);
    let (flood, most) = looking(&gateway, || crowd.send(arguments.rate, length));
    println!("  flood, {}/s: {flood}", arguments.rate);
    println!(
        "  served {:.1}/s (wanted {:.0}), p99 {:.1} ms (wanted: under {WANTED_P99_MS:.0}); the upstream saw {} at once at most",
        flood.served_each_second(),
        capacity * WANTED_SERVED,
        flood.served_at(0.99),
        upstream.most_at_once()
    );
    let (all, unread) = refused(&gateway);
    println!("  of {all} that were refused, {unread} before their body was read");
    println!(
        "  memory: RSS {:.1} MiB at rest, {:.1} at most; PSS {:.1}, {:.1}",
        rest.resident / MIB,
        most.resident / MIB,
        rest.proportional / MIB,
        most.proportional / MIB
    );

    let after = crowd.send(calm, AFTER);
    println!("  after, {calm}/s: {after}");
    let slow = Duration::from_millis(arguments.service.into()) * 2;
    let recovered = after.last_bad(slow);
    println!(
        "  recovered after {} ms (wanted {}): since then all were served within {} ms",
        recovered.as_millis(),
        WANTED_RECOVERY.as_millis(),
        slow.as_millis()
    );
}

/// The most memory that was seen meanwhile.
fn looking(gateway: &Gateway, run: impl FnOnce() -> Stretch) -> (Stretch, Memory) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut most = gateway.memory();
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(BETWEEN_LOOKS);
                let now = gateway.memory();
                most.resident = most.resident.max(now.resident);
                most.proportional = most.proportional.max(now.proportional);
            }
            most
        });
        let stretch = run();
        is_over.store(true, Ordering::Relaxed);
        (stretch, looks.join().expect("a thread that ends"))
    })
}

/// As the audit log has it: all that were refused, and those of them of which no byte of body was read.
fn refused(gateway: &Gateway) -> (usize, usize) {
    let audit = read(gateway.folder().join("audit.log"));
    let busy: Vec<_> = audit.lines().filter(|line| line.contains(" outcome=upstream_busy ")).collect();
    let unread = busy.iter().filter(|line| line.contains(" body_bytes=0 ")).count();
    (busy.len(), unread)
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
