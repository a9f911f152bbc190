//! Senders that do not wait for one another: each request has a time at which it is due, and takes a connection that rests,
//! or a new one. One thread; the generator shares the cores with what it measures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::quantile;
use crate::sender::{Head, Request, status};

/// More than are ever under way while the gateway answers: whoever finds none is counted as not sent.
const MOST_CONNECTIONS: usize = 1500;
const LONGEST_WAIT: Duration = Duration::from_secs(10);

pub(crate) struct Crowd {
    address: SocketAddr,
    /// Of the next request: none is sent twice.
    number: u64,
}

/// What came of the requests of one stretch of time.
#[derive(Default)]
pub(crate) struct Stretch {
    length: Duration,
    /// Of the served and of the refused by status, in microseconds from when they were due; in ascending order at the end.
    served: Vec<u32>,
    refused: BTreeMap<u16, Vec<u32>>,
    /// When each was due after the start, whether it was served, and how long it took.
    all: Vec<(Duration, bool, Duration)>,
    late: Vec<u32>,
    not_sent: usize,
}

struct Connection {
    stream: TcpStream,
    request: Request,
}

#[derive(Default)]
struct Shared {
    resting: RefCell<Vec<Connection>>,
    stretch: RefCell<Stretch>,
}

impl Crowd {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, number: 1 }
    }

    pub(crate) fn send(&mut self, rate: u32, length: Duration) -> Stretch {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let arrivals = (f64::from(rate) * length.as_secs_f64()) as u32;
        let first = self.number;
        self.number += u64::from(arrivals);
        let (address, shared) = (self.address, Rc::new(Shared::default()));
        let local = LocalSet::new();
        let sending = shared.clone();
        let wave = async move {
            let start = Instant::now() + Duration::from_millis(10);
            let mut open = 0;
            let mut running = tokio::task::JoinSet::new();
            for arrival in 0..arrivals {
                let due = start + Duration::from_secs(1) * arrival / rate;
                // A timer of the runtime knows whole milliseconds only: it wakes late rather than early.
                if due > Instant::now() {
                    tokio::time::sleep_until(due.into()).await;
                }
                let rested = sending.resting.borrow_mut().pop();
                if rested.is_none() {
                    if open == MOST_CONNECTIONS {
                        sending.stretch.borrow_mut().not_sent += 1;
                        continue;
                    }
                    open += 1;
                }
                sending.stretch.borrow_mut().late.push(due.elapsed().as_micros() as u32);
                let (shared, number) = (sending.clone(), first + u64::from(arrival));
                running.spawn_local(async move {
                    let mut connection = match rested {
                        Some(connection) => connection,
                        None => Connection::open(address, number).await,
                    };
                    let asked = connection.ask(number);
                    let status = tokio::time::timeout(LONGEST_WAIT, asked).await.expect("void: no answer in time");
                    shared.stretch.borrow_mut().note(due - start, status, due.elapsed());
                    shared.resting.borrow_mut().push(connection);
                });
            }
            while let Some(ended) = running.join_next().await {
                ended.expect("void: a sender that did not end well");
            }
        };
        local.block_on(&runtime, wave);
        let stretch = shared.stretch.take();
        stretch.ended(length)
    }
}

impl Connection {
    async fn open(address: SocketAddr, seed: u64) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway accepts");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, request: Request::new(seed) }
    }

    async fn ask(&mut self, number: u64) -> u16 {
        self.stream.write_all(self.request.made(number)).await.expect("an open connection");
        let (mut buffer, mut held) = ([0; 4096], 0);
        loop {
            let read = self.stream.read(&mut buffer[held..]).await.expect("an open connection");
            if read == 0 {
                panic!("void: the gateway closed the connection");
            }
            held += read;
            if Head::parse(&buffer[..held]).is_some_and(|head| head.whole <= held) {
                return status(&buffer);
            }
        }
    }
}

impl Stretch {
    fn note(&mut self, due: Duration, status: u16, took: Duration) {
        let micros = took.as_micros() as u32;
        match status {
            200 => self.served.push(micros),
            429 | 503 => self.refused.entry(status).or_default().push(micros),
            other => panic!("void: answered with {other}"),
        }
        self.all.push((due, status == 200, took));
    }

    fn ended(mut self, length: Duration) -> Self {
        self.length = length;
        self.served.sort_unstable();
        self.late.sort_unstable();
        self.refused.values_mut().for_each(|refused| refused.sort_unstable());
        self
    }

    pub(crate) fn served_each_second(&self) -> f64 {
        self.served.len() as f64 / self.length.as_secs_f64()
    }

    /// Milliseconds.
    pub(crate) fn served_at(&self, share: f64) -> f64 {
        quantile(&self.served, share) / 1000.0
    }

    /// When the last request was due that was refused or took longer than this; nothing when there was none.
    pub(crate) fn last_bad(&self, slow: Duration) -> Duration {
        let bad = self.all.iter().filter(|(_, is_served, took)| !is_served || *took > slow);
        bad.map(|(due, ..)| *due).max().unwrap_or_default()
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let served = |share| self.served_at(share);
        write!(
            f,
            "{} served, p50 {:.1} p99 {:.1} max {:.1} ms",
            self.served.len(),
            served(0.5),
            served(0.99),
            served(1.0)
        )?;
        for (status, refused) in &self.refused {
            let at = |share| quantile(refused, share) / 1000.0;
            write!(f, "; {} x {status}, told after p50 {:.1} p99 {:.1} ms", refused.len(), at(0.5), at(0.99))?;
        }
        if self.not_sent > 0 {
            write!(f, "; {} not sent for want of a connection", self.not_sent)?;
        }
        write!(f, "; of it the senders' own lateness p99 {:.1} ms", quantile(&self.late, 0.99) / 1000.0)
    }
}
