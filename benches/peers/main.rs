//! hookward beside nginx with Lua, HAProxy and a floor: equal work, one core for the gateway and one for the rest, in
//! rounds that take turns. What it costs is CPU from /proc, for each request answered.
//!
//! Every answer is checked: one that is not the wanted one, and one delivery that the upstream did not see, make the run
//! void. `src/measuring.rs` is not asked for anything; the feature keeps `cargo test --all-targets` from running this.
#![expect(clippy::print_stdout, reason = "a benchmark tells what it found")]

mod certificates;
mod floor;
mod gateways;
mod http2;
mod load;
mod message;
mod process;
mod rows;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::certificates::Certificates;
use crate::gateways::{Gateway, Kind, Peer, Setting, Transport};
use crate::load::{Load, Pattern, Phase};
use crate::process::machine;
use crate::rows::{Row, Work};
use crate::upstream::Upstream;

mod upstream;

#[derive(Parser)]
#[command(about = "Measures hookward beside nginx + Lua, HAProxy and a floor")]
struct Arguments {
    #[command(subcommand)]
    floor: Option<Floor>,
    /// Under four minutes for all: a glance, not a result
    #[arg(long)]
    short: bool,
    /// Those rows alone with this in their key; more than one may be given
    #[arg(long)]
    only: Vec<String>,
    /// How often each gateway has its turn
    #[arg(long)]
    rounds: Option<usize>,
    /// Of each turn
    #[arg(long)]
    seconds: Option<f64>,
    /// Another hookward, or several to compare: NAME=PATH
    #[arg(long, value_name = "NAME=PATH")]
    hookward: Vec<String>,
    /// hookward alone, without the others
    #[arg(long)]
    alone: bool,
    /// Where the gateways' folders are made
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// cargo says it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Floor {
    /// The reference proxy by itself; the benchmark starts it so
    #[command(hide = true)]
    Floor {
        port: u16,
        upstream: u16,
        #[arg(long)]
        certificates: Option<PathBuf>,
        #[arg(long)]
        mutual: bool,
    },
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(Floor::Floor { port, upstream, certificates, mutual }) = &arguments.floor {
        return floor::run(*port, *upstream, certificates.as_deref(), *mutual);
    }
    let missing = gateways::missing();
    assert!(missing.is_empty(), "missing here: apt-get install {}", missing.join(" "));
    process::pin_ourselves();
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).expect("up to the hard limit");
    let bench = Bench::new(&arguments);
    println!("{}", machine());
    for peer in &bench.peers {
        println!("{:<12} {}", peer.name, gateways::version(&peer.kind));
    }
    for row in rows::ALL {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| row.key.contains(only)) {
            bench.row(row);
        }
    }
    fs::remove_dir_all(&bench.folder).expect("a folder of our own");
}

struct Bench {
    peers: Vec<Peer>,
    rounds: usize,
    length: Duration,
    folder: PathBuf,
    certificates: Certificates,
    runtime: tokio::runtime::Runtime,
    upstream: Upstream,
}

/// Not counted: pools fill, code is compiled, tables grow.
const WARM: f64 = 0.2;

impl Bench {
    fn new(arguments: &Arguments) -> Self {
        let folder = arguments.folder.join(format!("hookward-peers-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder of our own");
        let mut peers: Vec<Peer> = arguments.hookward.iter().map(|named| other(named)).collect();
        if peers.is_empty() {
            let path = std::env::var_os("HOOKWARD").unwrap_or_else(|| env!("CARGO_BIN_EXE_hookward").into());
            peers.push(hookward("hookward", path.into()));
        }
        if !arguments.alone {
            let others = [("nginx + Lua", Kind::Nginx), ("HAProxy", Kind::Haproxy), ("floor", Kind::Floor)];
            peers.extend(others.map(|(name, kind)| Peer { name: name.to_owned(), kind }));
        }
        // At each turn of its scheduler it looks for what came: with the upstream on it, a busy generator must not delay answers.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(16).build();
        let runtime = runtime.expect("a runtime");
        Self {
            peers,
            rounds: arguments.rounds.unwrap_or(3).max(1),
            length: Duration::from_secs_f64(arguments.seconds.unwrap_or(if arguments.short { 1.0 } else { 5.0 })),
            certificates: Certificates::make(&folder),
            folder,
            upstream: Upstream::start(&runtime),
            runtime,
        }
    }

    fn row(&self, row: &Row) {
        let setting = Setting {
            folder: &self.folder,
            certificates: &self.certificates,
            transport: row.transport,
            upstream: self.upstream.port,
            length: row.body,
        };
        let gateways: Vec<Gateway> = self
            .peers
            .iter()
            .filter(|peer| peer.kind != Kind::Floor || row.has_floor())
            .map(|peer| Gateway::start(peer, &setting))
            .collect();
        let protocol: &[u8] = if row.pattern() == Some(Pattern::Streams) { b"h2" } else { b"http/1.1" };
        let tls = (row.transport != Transport::Plain)
            .then(|| self.certificates.client(row.transport == Transport::Mutual, Some(protocol)));
        let Work::Load { pattern, forged } = row.work;
        let load = Load { pattern, connections: 32, body: row.body, forged, tls };
        println!("\n{}", row.title);
        let mut phases: Vec<Vec<Phase>> = gateways.iter().map(|_| Vec::new()).collect();
        for gateway in &gateways {
            self.turn(&load, gateway, self.length.mul_f64(WARM));
        }
        for _ in 0..self.rounds {
            for (gateway, phases) in gateways.iter().zip(&mut phases) {
                phases.push(self.turn(&load, gateway, self.length));
            }
        }
        self.report(row, &gateways, &phases);
    }

    fn turn(&self, load: &Load, gateway: &Gateway, length: Duration) -> Phase {
        let before = self.upstream.answered();
        let run = load.run(gateway.address, gateway.pid(), length);
        let run = async { tokio::time::timeout(length + process::PATIENCE, run).await };
        let phase = self.runtime.block_on(run);
        let name = &gateway.peer.name;
        let phase = phase.unwrap_or_else(|_| panic!("void: {name}: a request without an answer"));
        let forwarded = self.upstream.answered() - before;
        if let Some(why) = phase.void(if load.forged { 401 } else { 200 }, forwarded) {
            panic!("void: {name}: {why}");
        }
        phase
    }

    fn report(&self, row: &Row, gateways: &[Gateway], phases: &[Vec<Phase>]) {
        println!(
            "  {:<12} {:>8} {:>15} {:>9} {:>6} {:>9} {:>9} {:>9}",
            "", "us CPU", "(spread)", "each s", "busy", "p50 us", "p99 us", "p99.9 us"
        );
        for (gateway, phases) in gateways.iter().zip(phases) {
            let of = |value: fn(&Phase) -> f64| Spread::of(phases.iter().map(value));
            let cpu = of(Phase::cpu_each);
            println!(
                "  {:<12} {:>8.1} {:>15} {:>9.0} {:>5.0}% {:>9.0} {:>9.0} {:>9.0}",
                gateway.peer.name,
                cpu.median,
                format!("{:.1} to {:.1}", cpu.least, cpu.most),
                of(Phase::rate).median,
                of(|phase| phase.cpu / phase.took.as_secs_f64() * 100.0).median,
                of(|phase| phase.at(0.5)).median,
                of(|phase| phase.at(0.99)).median,
                of(|phase| phase.at(0.999)).median,
            );
        }
        let value = |phases: &[Phase]| Spread::of(phases.iter().map(|phase| row.value(phase))).median;
        for (ours, phases_of_ours) in gateways.iter().zip(phases) {
            if !matches!(ours.peer.kind, Kind::Hookward(_)) {
                continue;
            }
            for (peer, phases) in gateways.iter().zip(phases) {
                if peer.peer == ours.peer {
                    continue;
                }
                let ratio = value(phases_of_ours) / value(phases);
                let bar = row.bars.iter().find(|bar| bar.against == peer.peer.name);
                println!(
                    "  {} / {} = {ratio:.2}{}",
                    ours.peer.name,
                    peer.peer.name,
                    bar.map_or(String::new(), |bar| bar.verdict(ratio))
                );
            }
        }
    }
}

fn hookward(name: &str, path: PathBuf) -> Peer {
    assert!(path.exists(), "{}: build it first, cargo build --release", path.display());
    let path = fs::canonicalize(path).expect("it is there");
    Peer { name: name.to_owned(), kind: Kind::Hookward(path) }
}

fn other(named: &str) -> Peer {
    let (name, path) = named.split_once('=').expect("--hookward NAME=PATH");
    hookward(name, path.into())
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }
}
