//! The generator: closed loops over connections that are kept or made anew, and arrivals at fixed times. One thread, with
//! the upstream on it too.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::http2;
use crate::message::{Head, Letters, status};
use crate::process;

const ARRIVALS_A_SECOND: u32 = 2_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// The next request when the last was answered, on connections that are kept.
    Kept,
    /// The same, each on a connection of its own.
    Anew,
    /// The same, in streams of HTTP/2.
    Streams,
    /// At fixed times, whatever the answers take.
    Paced,
}

#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) pattern: Pattern,
    pub(crate) connections: usize,
    pub(crate) body: usize,
    pub(crate) forged: bool,
    pub(crate) stored: bool,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Load {
    /// Against the gateway at this address, whose family of processes has this one at its head.
    pub(crate) async fn run(&self, address: SocketAddr, pid: u32, length: Duration) -> Phase {
        let mut connections = Vec::new();
        if matches!(self.pattern, Pattern::Kept | Pattern::Paced) {
            for _ in 0..self.connections {
                connections.push(self.connect(address).await.expect("the gateway accepts"));
            }
        }
        let multiplexed = match self.pattern {
            Pattern::Streams => http2::connect(address, self.tls.as_ref(), self.connections).await,
            _ => Vec::new(),
        };
        let ourselves = std::process::id();
        let core = process::core();
        let (cpu, own, start) = (process::cpu(pid), process::cpu_alone(ourselves), Instant::now());
        let end = start + length;
        let mut tasks = JoinSet::new();
        let arrivals = Arc::new(Arrivals { start, next: Mutex::new(0), end });
        match self.pattern {
            Pattern::Kept => connections.into_iter().for_each(|wire| {
                tasks.spawn(self.clone().keep(address, wire, end));
            }),
            Pattern::Paced => connections.into_iter().for_each(|wire| {
                tasks.spawn(self.clone().pace(address, wire, arrivals.clone()));
            }),
            Pattern::Anew => (0..self.connections).for_each(|_| {
                tasks.spawn(self.clone().anew(address, end));
            }),
            Pattern::Streams => multiplexed.into_iter().for_each(|sender| {
                tasks.spawn(http2::send(sender, Letters::new(self.body, self.forged), end));
            }),
        }
        let mut whole = Phase::default();
        while let Some(ended) = tasks.join_next().await {
            whole.join(ended.expect("a sender that ends"));
        }
        whole.took = start.elapsed();
        whole.cpu = process::cpu(pid) - cpu;
        whole.core = process::core() - core;
        whole.own_cpu = process::cpu_alone(ourselves) - own;
        whole.latencies.sort_unstable();
        whole
    }

    async fn keep(self, address: SocketAddr, mut wire: Wire, end: Instant) -> Phase {
        let (mut phase, mut letters, mut buffer) = (Phase::default(), self.letters(), vec![0; 8192]);
        loop {
            let start = Instant::now();
            if start >= end {
                return phase;
            }
            let last = phase.note(exchange(&mut wire, letters.next(), &mut buffer).await, start);
            if last && !self.reconnect(address, &mut wire, &mut phase).await {
                return phase;
            }
        }
    }

    async fn anew(self, address: SocketAddr, end: Instant) -> Phase {
        let (mut phase, mut letters, mut buffer) = (Phase::default(), self.letters(), vec![0; 8192]);
        loop {
            let start = Instant::now();
            if start >= end || !phase.broken.is_empty() {
                return phase;
            }
            let answer = match self.connect(address).await {
                Ok(mut wire) => {
                    let answer = exchange(&mut wire, letters.next(), &mut buffer).await;
                    // Either side may be the first to close.
                    let _ = wire.shutdown().await;
                    answer
                }
                Err(error) => Err(error),
            };
            phase.note(answer, start);
        }
    }

    /// One waits for the next arrival, spinning, for a timer of the runtime knows whole milliseconds only; the others
    /// queue up behind it.
    async fn pace(self, address: SocketAddr, mut wire: Wire, arrivals: Arc<Arrivals>) -> Phase {
        let (mut phase, mut letters, mut buffer) = (Phase::default(), self.letters(), vec![0; 8192]);
        loop {
            let planned = {
                let mut next = arrivals.next.lock().await;
                let planned = arrivals.start + Duration::from_secs(1) * *next / ARRIVALS_A_SECOND;
                if planned >= arrivals.end {
                    return phase;
                }
                *next += 1;
                while Instant::now() < planned {
                    tokio::task::yield_now().await;
                }
                planned
            };
            phase.late.push(planned.elapsed().as_nanos() as u32);
            let last = phase.note(exchange(&mut wire, letters.next(), &mut buffer).await, planned);
            if last && !self.reconnect(address, &mut wire, &mut phase).await {
                return phase;
            }
        }
    }

    fn letters(&self) -> Letters {
        Letters::new(self.body, self.forged)
    }

    /// After an answer that said close; false, and noted, where the gateway takes no more.
    async fn reconnect(&self, address: SocketAddr, wire: &mut Wire, phase: &mut Phase) -> bool {
        if !phase.broken.is_empty() {
            return false;
        }
        phase.closed += 1;
        match self.connect(address).await {
            Ok(new) => *wire = new,
            Err(error) => phase.broken.push(error.to_string()),
        }
        phase.broken.is_empty()
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Wire> {
        connect(address, self.tls.as_ref()).await
    }
}

struct Arrivals {
    start: Instant,
    next: Mutex<u32>,
    end: Instant,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
pub(crate) type Wire = Box<dyn Stream>;

pub(crate) async fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Wire> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(match tls {
        None => Box::new(stream),
        Some(config) => {
            let name = ServerName::try_from("localhost").expect("a name");
            Box::new(TlsConnector::from(config.clone()).connect(name, stream).await?)
        }
    })
}

/// The status, and whether the gateway closes behind its answer.
pub(crate) async fn exchange(wire: &mut Wire, request: &[u8], buffer: &mut [u8]) -> io::Result<(u16, bool)> {
    wire.write_all(request).await?;
    wire.flush().await?;
    let mut held = 0;
    loop {
        // A deadline for each would cost more than the answer: the whole run has one.
        let read = wire.read(&mut buffer[held..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        held += read;
        match Head::parse(&buffer[..held]) {
            Some(head) if head.whole() <= held => return Ok((status(buffer), head.last)),
            _ => {}
        }
    }
}

/// What came of one run.
#[derive(Default)]
pub(crate) struct Phase {
    pub(crate) took: Duration,
    /// Of the gateway, in seconds.
    pub(crate) cpu: f64,
    /// Of the gateway's core, whoever used it.
    pub(crate) core: f64,
    /// Of the generator and the upstream together.
    pub(crate) own_cpu: f64,
    pub(crate) answers: BTreeMap<u16, u64>,
    /// In nanoseconds, from the planned time where there is one; in ascending order when the run has ended.
    pub(crate) latencies: Vec<u32>,
    /// How long after its planned time a request was sent.
    pub(crate) late: Vec<u32>,
    /// Connections that the gateway closed behind an answer.
    pub(crate) closed: u64,
    pub(crate) broken: Vec<String>,
}

impl Phase {
    /// True when the connection is of no more use.
    pub(crate) fn note(&mut self, answer: io::Result<(u16, bool)>, start: Instant) -> bool {
        match answer {
            Ok((status, last)) => {
                *self.answers.entry(status).or_default() += 1;
                self.latencies.push(start.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
                last
            }
            Err(error) => {
                self.broken.push(error.to_string());
                true
            }
        }
    }

    fn join(&mut self, other: Self) {
        for (status, times) in other.answers {
            *self.answers.entry(status).or_default() += times;
        }
        self.latencies.extend(other.latencies);
        self.late.extend(other.late);
        self.closed += other.closed;
        self.broken.extend(other.broken);
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.answers.get(&200).copied().unwrap_or(0)
    }

    /// Microseconds of the gateway's CPU for each answer.
    pub(crate) fn cpu_each(&self) -> f64 {
        self.cpu / self.answered() as f64 * 1e6
    }

    pub(crate) fn rate(&self) -> f64 {
        self.answered() as f64 / self.took.as_secs_f64()
    }

    /// Percent of the gateway's core.
    pub(crate) fn busy(&self) -> f64 {
        self.cpu / self.took.as_secs_f64() * 100.0
    }

    /// Percent of the gateway's core that went to others.
    pub(crate) fn disturbed(&self) -> f64 {
        (self.core - self.cpu).max(0.0) / self.took.as_secs_f64() * 100.0
    }

    /// Percent of the core of generator and upstream.
    pub(crate) fn busy_ourselves(&self) -> f64 {
        self.own_cpu / self.took.as_secs_f64() * 100.0
    }

    /// Microseconds.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share).round() as usize).copied().map_or(f64::NAN, f64::from) / 1000.0
    }

    /// Why this run counts for nothing, if so: one answer that is not the wanted one, one that broke off, or another number
    /// forwarded than accepted.
    pub(crate) fn void(&self, wanted: u16, forwarded: u64) -> Option<String> {
        let accepted = self.accepted();
        if let Some(first) = self.broken.first() {
            return Some(format!("{} broken, the first: {first}", self.broken.len()));
        }
        if self.answers.keys().any(|&status| status != wanted) || self.answered() == 0 {
            return Some(format!("answers other than {wanted}: {:?}", self.answers));
        }
        (accepted != forwarded).then(|| format!("{accepted} accepted, but {forwarded} forwarded"))
    }
}
