//! The senders: keep-alive connections, each request unique and signed when it is sent. One thread, requests made by writing
//! into the holes of prepared bytes: the generator shares the cores with what it measures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use crate::gateway::{Gateway, SECRET};
use crate::quantile;

const BODY_LENGTH: usize = 1024;
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Of the paced part. Each has its own share of the arrivals, so one slow answer delays nobody else's request.
const PACED_CONNECTIONS: u32 = 64;

#[derive(Clone, Copy)]
pub(crate) enum Until {
    Time(Duration),
    Count(u64),
}

pub(crate) struct Sender {
    address: SocketAddr,
    connections: usize,
    /// Of the next request: none is sent twice.
    number: u64,
    /// Where requests go, in turn.
    paths: Rc<[[u8; 5]]>,
}

impl Sender {
    pub(crate) fn new(gateway: &Gateway, connections: usize) -> Self {
        Self::starting_at(gateway, connections, 1)
    }

    /// Beside another that has sent the numbers below.
    pub(crate) fn starting_at(gateway: &Gateway, connections: usize, number: u64) -> Self {
        Self { address: gateway.public, connections, number, paths: [*b"/acme"].into() }
    }

    /// The paths of the sources that requests are for.
    #[allow(dead_code, reason = "the state's benchmark has many")]
    pub(crate) fn aim_at(&mut self, paths: Vec<[u8; 5]>) {
        self.paths = paths.into();
    }

    /// Every connection sends its next request when it has the answer to the last one.
    pub(crate) fn run(&mut self, until: Until) -> Phase {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let start = Instant::now();
        let (end, last) = match until {
            Until::Time(length) => (start + length, u64::MAX),
            Until::Count(count) => (start + Duration::from_secs(3600), self.number + count),
        };
        let shared = Rc::new(Shared { number: self.number.into(), last, end, phase: RefCell::default() });
        let local = LocalSet::new();
        for seed in 0..self.connections {
            local.spawn_local(send(self.address, shared.clone(), self.paths.clone(), Request::new(seed as u64)));
        }
        runtime.block_on(local);
        let shared = Rc::into_inner(shared).expect("all tasks have ended");
        self.number = shared.number.into_inner();
        shared.phase.into_inner().ended(start.elapsed())
    }

    /// So many a second at fixed times, whatever the answers take.
    pub(crate) fn paced(&mut self, rate: u32, length: Duration) -> Phase {
        let arrivals = (f64::from(rate) * length.as_secs_f64()) as u64;
        let (first, address) = (self.number, self.address);
        self.number += arrivals;
        // Threads that block: a timer of the runtime knows whole milliseconds only.
        let start = Instant::now() + Duration::from_millis(100);
        let threads: Vec<_> = (0..PACED_CONNECTIONS)
            .map(|own| {
                std::thread::spawn(move || {
                    let mut connection = TcpStream::connect(address).expect("the gateway accepts");
                    connection.set_nodelay(true).expect("a socket");
                    connection.set_read_timeout(Some(LONGEST_WAIT)).expect("a socket");
                    let mut request = Request::new(u64::from(own));
                    let mut phase = Phase::default();
                    let mut buffer = [0; 4096];
                    for arrival in (u64::from(own)..arrivals).step_by(PACED_CONNECTIONS as usize) {
                        let planned = start + Duration::from_secs(1) * arrival as u32 / rate;
                        std::thread::sleep(planned.saturating_duration_since(Instant::now()));
                        phase.late.push(planned.elapsed().as_micros() as u32);
                        connection.write_all(request.made(first + arrival)).expect("an open connection");
                        let status = read_answer(&mut connection, &mut buffer);
                        phase.note(status, planned.elapsed());
                    }
                    phase
                })
            })
            .collect();
        let mut whole = Phase::default();
        for thread in threads {
            let phase = thread.join().expect("a sender that ends");
            whole.latencies.extend(phase.latencies);
            whole.late.extend(phase.late);
            for (status, times) in phase.refused {
                *whole.refused.entry(status).or_default() += times;
            }
        }
        whole.ended(start.elapsed())
    }
}

struct Shared {
    number: RefCell<u64>,
    last: u64,
    end: Instant,
    phase: RefCell<Phase>,
}

async fn send(address: SocketAddr, shared: Rc<Shared>, paths: Rc<[[u8; 5]]>, mut request: Request) {
    let mut connection = tokio::net::TcpStream::connect(address).await.expect("the gateway accepts");
    connection.set_nodelay(true).expect("a socket");
    let mut buffer = vec![0; 4096];
    loop {
        let start = Instant::now();
        let number = {
            let mut number = shared.number.borrow_mut();
            if *number >= shared.last || start >= shared.end {
                return;
            }
            *number += 1;
            *number - 1
        };
        request.aim(&paths[number as usize % paths.len()]);
        connection.write_all(request.made(number)).await.expect("an open connection");
        let mut held = 0;
        let status = loop {
            let read = connection.read(&mut buffer[held..]).await.expect("an open connection");
            assert!(read > 0, "the gateway closed the connection");
            held += read;
            match Head::parse(&buffer[..held]) {
                Some(head) if head.whole <= held => break status(&buffer),
                _ => {}
            }
        };
        shared.phase.borrow_mut().note(status, start.elapsed());
    }
}

fn read_answer(connection: &mut TcpStream, buffer: &mut [u8]) -> u16 {
    let mut held = 0;
    loop {
        let read = connection.read(&mut buffer[held..]).expect("an answer in time");
        assert!(read > 0, "the gateway closed the connection");
        held += read;
        if Head::parse(&buffer[..held]).is_some_and(|head| head.whole <= held) {
            return status(buffer);
        }
    }
}

pub(crate) fn status(answer: &[u8]) -> u16 {
    answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

/// Of a message whose length is written in its head, as hyper writes it.
pub(crate) struct Head {
    /// With the body.
    pub(crate) whole: usize,
}

impl Head {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let mut length = 0;
        for line in bytes[..end].split(|&byte| byte == b'\n') {
            if let Some((name, value)) = line.split_at_checked(15)
                && name.eq_ignore_ascii_case(b"content-length:")
            {
                length = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
            }
        }
        Some(Self { whole: end + length })
    }
}

/// The bytes of a request of one connection, with holes for what differs.
pub(crate) struct Request {
    bytes: Vec<u8>,
    path: usize,
    signature: usize,
    timestamp: usize,
    id: usize,
    body: usize,
    keyed: Hmac<Sha256>,
}

const HEX_NUMBER: &str = "0000000000000000";

impl Request {
    pub(crate) fn new(seed: u64) -> Self {
        let mut body = format!(r#"{{"id":"{HEX_NUMBER}","type":"order.paid","pad":""#).into_bytes();
        // Nothing that a compressor makes small, so that what is written is what was sent.
        let mut state = seed.wrapping_mul(2) + 0x9E37_79B9_7F4A_7C15;
        while body.len() < BODY_LENGTH - 2 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            body.push(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[(state % 64) as usize]);
        }
        body.extend_from_slice(b"\"}");
        let mut bytes = Vec::new();
        let mut hole = |before: &str, hole: &str| {
            bytes.extend_from_slice(before.as_bytes());
            bytes.extend_from_slice(hole.as_bytes());
            bytes.len() - hole.len()
        };
        let head = format!(
            " HTTP/1.1\r\nHost: hooks.example.com\r\nUser-Agent: acme-hooks/1.0\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: {BODY_LENGTH}\r\n"
        );
        let path = hole("POST ", "/acme");
        let timestamp = hole(&format!("{head}X-Acme-Timestamp: "), &HEX_NUMBER[..10]);
        let id = hole("\r\nX-Acme-Delivery: ", HEX_NUMBER);
        let signature = hole("\r\nX-Acme-Signature: v1=", &HEX_NUMBER.repeat(4));
        hole("\r\n\r\n", "");
        let start = bytes.len();
        bytes.extend_from_slice(&body);
        let keyed = Hmac::new_from_slice(SECRET).expect("any length");
        Self { bytes, path, signature, timestamp, id, body: start, keyed }
    }

    /// To another source's path, as long as `/acme`.
    fn aim(&mut self, path: &[u8; 5]) {
        self.fill(self.path, path);
    }

    pub(crate) fn made(&mut self, number: u64) -> &[u8] {
        #[expect(clippy::disallowed_methods, reason = "a sender has a clock of its own")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let mut digits = [b'0'; 10];
        write!(&mut digits[..], "{now:010}").expect("ten digits until 2286");
        let mut name = [0; 16];
        hex::encode_to_slice(number.to_be_bytes(), &mut name).expect("sixteen digits");
        self.fill(self.timestamp, &digits);
        self.fill(self.id, &name);
        // Behind `{"id":"`.
        self.fill(self.body + 7, &name);
        let (body, mut mac) = (&self.bytes[self.body..], self.keyed.clone());
        mac.update(&digits);
        mac.update(b".");
        mac.update(body);
        let mut signature = [0; 64];
        hex::encode_to_slice(mac.finalize().into_bytes(), &mut signature).expect("64 digits");
        self.fill(self.signature, &signature);
        &self.bytes
    }

    fn fill(&mut self, at: usize, with: &[u8]) {
        self.bytes[at..at + with.len()].copy_from_slice(with);
    }
}

/// What came of one part of a run.
#[derive(Default)]
pub(crate) struct Phase {
    pub(crate) took: Duration,
    /// Of the acknowledged, in microseconds; in ascending order when the phase has ended.
    latencies: Vec<u32>,
    /// How long after the planned time a paced request was sent.
    late: Vec<u32>,
    refused: BTreeMap<u16, u64>,
}

impl Phase {
    fn note(&mut self, status: u16, took: Duration) {
        // The gateway's own word, or that of the upstream behind it.
        if matches!(status, 200 | 202) {
            self.latencies.push(took.as_micros() as u32);
        } else {
            *self.refused.entry(status).or_default() += 1;
        }
    }

    fn ended(mut self, took: Duration) -> Self {
        self.took = took;
        self.latencies.sort_unstable();
        self.late.sort_unstable();
        self
    }

    pub(crate) fn answered(&self) -> usize {
        self.latencies.len()
    }

    pub(crate) fn rate(&self) -> f64 {
        self.answered() as f64 / self.took.as_secs_f64()
    }

    /// Microseconds.
    pub(crate) fn at(&self, share: f64) -> f64 {
        quantile(&self.latencies, share)
    }

    pub(crate) fn demand_sound(&self) {
        assert!(
            self.refused.is_empty() && self.answered() > 0,
            "void: other answers than 200 and 202: {:?}",
            self.refused
        );
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (self.at(0.5), self.at(0.99), self.at(1.0));
        write!(f, "p50 {p50:.0} us, p99 {p99:.0} us, max {max:.0} us ({} answers)", self.answered())?;
        if !self.late.is_empty() {
            let (p50, p99) = (quantile(&self.late, 0.5), quantile(&self.late, 0.99));
            write!(f, "; of it the sender's own lateness p50 {p50:.0} us, p99 {p99:.0} us")?;
        }
        Ok(())
    }
}
