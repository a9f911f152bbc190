//! hookward beside nginx with Lua, HAProxy and a floor: equal work, one core for the gateway and one for the rest, in
//! rounds that take turns. What it costs is CPU from /proc, for each request answered.
//!
//! Every answer is checked: one that is not the wanted one, and one delivery that the upstream did not see, make the run
//! void. `src/measuring.rs` is not asked for anything; the feature keeps `cargo test --all-targets` from running this.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark tells what it found")]

mod certificates;
mod floor;
mod gateways;
mod http2;
mod idle;
mod load;
mod message;
mod process;
mod report;
mod rows;
mod upstream;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::certificates::Certificates;
use crate::gateways::{Gateway, Kind, Peer, Setting, Transport};
use crate::load::{Load, Pattern, Phase};
use crate::process::machine;
use crate::report::{Figure, Finding, Spread};
use crate::rows::{Row, Work};
use crate::upstream::Upstream;

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
    /// Kept open, or streams, or under way at once
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// The binary of cargo install qhook, for the row stored-1k
    #[arg(long, value_name = "PATH")]
    qhook: Option<PathBuf>,
    /// hookward without the others, its process id printed for a profiler
    #[arg(long)]
    alone: bool,
    /// Into benches/peers/RESULTS.md too
    #[arg(long)]
    write: bool,
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
    // What makes a run void is said, and where in here it was noticed is nobody's business.
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        eprintln!("\n{}", text.unwrap_or("void"));
    }));
    prove_that_errors_are_seen();
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
    let mut findings = Vec::new();
    for row in rows::ALL {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| row.key.contains(only)) {
            for finding in bench.row(row) {
                println!("{}", finding.print());
                findings.push(finding);
            }
        }
    }
    println!("\n{}", report::summary(&findings));
    if arguments.write {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/RESULTS.md");
        let how = format!("{} rounds of {} s", bench.rounds, bench.length.as_secs_f64());
        report::write(&path, &bench.peers, &findings, &how);
        println!("written: {}", path.display());
    }
    fs::remove_dir_all(&bench.folder).expect("a folder of our own");
}

struct Bench {
    peers: Vec<Peer>,
    rounds: usize,
    /// Those of latency are noisier.
    rounds_of_tails: usize,
    rounds_of_memory: usize,
    length: Duration,
    connections: usize,
    alone: bool,
    /// Connections.
    idle: usize,
    folder: PathBuf,
    certificates: Certificates,
    runtime: tokio::runtime::Runtime,
    upstream: Upstream,
}

/// Long enough for one answer at least.
const A_FEW: Duration = Duration::from_millis(50);
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
        if let Some(path) = &arguments.qhook {
            let path = fs::canonicalize(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            peers.push(Peer { name: "qhook".to_owned(), kind: Kind::Qhook(path) });
        }
        // At each turn of its scheduler it looks for what came: with the upstream on it, a busy generator must not delay answers.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(16).build();
        let runtime = runtime.expect("a runtime");
        Self {
            peers,
            rounds: arguments.rounds.unwrap_or(3).max(1),
            rounds_of_tails: arguments.rounds.unwrap_or(if arguments.short { 3 } else { 7 }).max(1),
            rounds_of_memory: arguments.rounds.unwrap_or(if arguments.short { 1 } else { 3 }).max(1),
            idle: if arguments.short { 2_000 } else { 10_000 },
            length: Duration::from_secs_f64(arguments.seconds.unwrap_or(if arguments.short { 1.0 } else { 5.0 })),
            connections: arguments.connections.max(1),
            alone: arguments.alone,
            certificates: Certificates::make(&folder),
            folder,
            upstream: Upstream::start(&runtime),
            runtime,
        }
    }

    fn row(&self, row: &'static Row) -> Vec<Finding> {
        match row.work {
            Work::Load { pattern, forged } => vec![self.load(row, pattern, forged)],
            // Of interest beside another that does it.
            Work::Stored if self.peers.iter().any(|peer| matches!(peer.kind, Kind::Qhook(_))) => {
                vec![self.load(row, Pattern::Kept, false)]
            }
            Work::Stored => Vec::new(),
            Work::Idle => self.idle(row),
        }
    }

    fn load(&self, row: &'static Row, pattern: Pattern, forged: bool) -> Finding {
        let peers = self.peers.iter().filter(|peer| row.is_for(&peer.kind));
        let gateways: Vec<Gateway> = peers.map(|peer| Gateway::start(peer, &self.setting(row))).collect();
        let protocol: &[u8] = if pattern == Pattern::Streams { b"h2" } else { b"http/1.1" };
        let tls = (row.transport != Transport::Plain)
            .then(|| self.certificates.client(row.transport == Transport::Mutual, Some(protocol)));
        let load = Load {
            pattern,
            connections: self.connections,
            body: row.body,
            forged,
            tls,
            stored: row.work == Work::Stored,
        };
        let mut phases: Vec<Vec<Phase>> = gateways.iter().map(|_| Vec::new()).collect();
        for gateway in &gateways {
            if self.alone {
                println!("{}: {}, process {}", row.key, gateway.peer.name, gateway.pid());
            }
            self.prove_that_it_checks(&load, gateway);
            self.turn(&load, gateway, self.length.mul_f64(WARM));
        }
        let rounds = if pattern == Pattern::Paced { self.rounds_of_tails } else { self.rounds };
        for _ in 0..rounds {
            for (gateway, phases) in gateways.iter().zip(&mut phases) {
                phases.push(self.turn(&load, gateway, self.length));
            }
        }
        let paced = pattern == Pattern::Paced;
        let figures = gateways.iter().zip(&phases).map(|(gateway, phases)| {
            let of = |value: fn(&Phase) -> f64| Spread::of(phases.iter().map(value));
            let cpu: fn(&Phase) -> f64 = Phase::cpu_each;
            let median: fn(&Phase) -> f64 = |phase| phase.at(0.5);
            let (value, other) = if paced { (median, cpu) } else { (cpu, median) };
            let beside = vec![
                of(other),
                of(|phase| phase.at(0.99)),
                of(|phase| phase.at(0.999)),
                of(Phase::rate),
                of(Phase::busy),
                of(Phase::busy_ourselves),
            ];
            Figure { peer: gateway.peer.clone(), values: phases.iter().map(value).collect(), beside }
        });
        Finding {
            key: row.key,
            title: row.title.to_owned(),
            unit: if paced { "p50, µs" } else { "CPU each, µs" },
            beside: if paced {
                &["CPU each, µs", "p99, µs", "p99.9, µs", "each s", "core busy, %", "other busy, %"]
            } else {
                &["p50, µs", "p99, µs", "p99.9, µs", "each s", "core busy, %", "other busy, %"]
            },
            figures: figures.collect(),
            disturbed: phases.iter().flatten().map(Phase::disturbed).fold(0.0, f64::max),
            bars: row.bars,
        }
    }

    fn idle(&self, row: &'static Row) -> Vec<Finding> {
        let tls = self.certificates.client(false, Some(b"http/1.1"));
        let (mut rest, mut each) = (Vec::new(), Vec::new());
        for peer in self.peers.iter().filter(|peer| row.is_for(&peer.kind)) {
            let mut measured = Vec::new();
            for _ in 0..self.rounds_of_memory {
                let gateway = Gateway::start(peer, &self.setting(row));
                let memory = idle::measure(gateway.address, gateway.pid(), &tls, self.idle);
                measured.push(self.runtime.block_on(memory));
            }
            let figure = |value: fn(&idle::Memory) -> f64| Figure {
                peer: peer.clone(),
                values: measured.iter().map(value).collect(),
                beside: Vec::new(),
            };
            each.push(figure(|memory| memory.each / 1024.0));
            // The floor runs in this very program, and shares its pages.
            if peer.kind != Kind::Floor {
                rest.push(figure(|memory| memory.rest / 1_048_576.0));
            }
        }
        let finding = |key, title: String, unit, figures, bars| Finding {
            key,
            title,
            unit,
            beside: &[],
            figures,
            disturbed: 0.0,
            bars,
        };
        let title = format!("{} {}", self.idle, row.title);
        vec![
            finding(row.key, title, "PSS each, KiB", each, row.bars),
            finding("rest", "at rest, after one request".to_owned(), "PSS, MiB", rest, rows::REST),
        ]
    }

    fn setting(&self, row: &Row) -> Setting<'_> {
        Setting {
            folder: &self.folder,
            certificates: &self.certificates,
            transport: row.transport,
            upstream: self.upstream.port,
            length: row.body,
            stored: row.work == Work::Stored,
        }
    }

    /// Genuine requests pass and forged ones are refused: a gateway that does not look would win.
    fn prove_that_it_checks(&self, load: &Load, gateway: &Gateway) {
        for forged in [false, true] {
            let pattern = if load.pattern == Pattern::Streams { Pattern::Streams } else { Pattern::Anew };
            let few = Load { pattern, connections: 1, forged, ..load.clone() };
            self.turn(&few, gateway, A_FEW);
        }
    }

    fn turn(&self, load: &Load, gateway: &Gateway, length: Duration) -> Phase {
        let before = self.upstream.answered();
        let run = load.run(gateway.address, gateway.pid(), length);
        let run = async { tokio::time::timeout(length + process::PATIENCE, run).await };
        let phase = self.runtime.block_on(run);
        let name = &gateway.peer.name;
        let phase = phase.unwrap_or_else(|_| panic!("void: {name}: a request without an answer"));
        let wanted = if load.forged { gateway.refusal() } else { 200 };
        // What is stored comes later.
        let forwarded = if load.stored { phase.accepted() } else { self.upstream.answered() - before };
        if let Some(why) = phase.void(wanted, forwarded) {
            panic!("void: {name}: {why}");
        }
        phase
    }
}

/// A benchmark has no tests, so it asks itself each time: one wrong answer, one that broke off and one that was never
/// forwarded each make a run void, and a run without answers is none.
fn prove_that_errors_are_seen() {
    let phase = |answers: &[(u16, u64)]| Phase { answers: answers.iter().copied().collect(), ..Phase::default() };
    let sound = phase(&[(200, 1000)]);
    assert_eq!(sound.void(200, 1000), None, "a sound run counts");
    assert_eq!(phase(&[(401, 1000)]).void(401, 0), None, "refusals count where they are wanted");
    assert!(sound.void(401, 1000).is_some(), "a forgery that was let in");
    assert!(sound.void(200, 999).is_some(), "an answer that the upstream did not give");
    assert!(phase(&[(200, 999), (503, 1)]).void(200, 999).is_some(), "one refusal among a thousand");
    assert!(phase(&[]).void(200, 0).is_some(), "nothing answered");
    let broken = Phase { broken: vec!["reset".to_owned()], ..phase(&[(200, 1000)]) };
    assert!(broken.void(200, 1000).is_some(), "a connection that broke off");
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
