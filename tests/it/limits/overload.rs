//! Many times what the upstream serves: it is kept busy, who is served is served soon, and the others are told at once.

use super::source;
use crate::support::http::{connect, read_answer};
use crate::support::{Gateway, Reply, Request, Upstream, eventually};
use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Four at once, each 40 ms: a hundred a second.
const PLACES: usize = 4;
const SERVICE: Duration = Duration::from_millis(40);
/// Whoever waited in turn would be served just before this is over.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(800);

/// Six times as much, from senders of which none waits for another.
const SENDERS: u32 = 120;
const EACH_EVERY: Duration = Duration::from_millis(200);
const FLOOD: Duration = Duration::from_secs(4);

struct Told {
    status: u16,
    retry_after: Option<String>,
    took: Duration,
}

/// Sends on one connection whenever it is time, and when it is late as soon as it can.
fn send(to: SocketAddr, start: Instant, own: u32) -> Vec<Told> {
    let mut stream = connect(to).expect("a connection");
    let mut answers = BufReader::new(stream.try_clone().expect("a handle"));
    let mut told = Vec::new();
    let mut due = start + EACH_EVERY * own / SENDERS;
    while due < start + FLOOD {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        stream.write_all(&Request::post("/a", "a body of some bytes").bytes()).expect("written");
        let answer = read_answer(&mut answers).expect("an answer");
        let retry_after = answer.header("retry-after").map(str::to_owned);
        told.push(Told { status: answer.status, retry_after, took: sent.elapsed() });
        due += EACH_EVERY;
    }
    told
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_flood_is_served_as_fast_as_the_upstream_can_and_the_rest_is_told_at_once_before_its_body_is_read() {
    let upstream = Upstream::with(|_, _| {
        std::thread::sleep(SERVICE);
        Reply::Status(200)
    });
    let gateway = Gateway::start(&format!(
        "{}max_in_flight = {PLACES}\nqueue_timeout = \"{}ms\"\n{}",
        upstream.table(),
        QUEUE_TIMEOUT.as_millis(),
        source("a", "danger_accept_unverified = true")
    ));
    let to = gateway.public();
    let memory = || gateway.metric("process_resident_memory_bytes", &[]);
    let before = memory();

    let start = Instant::now() + Duration::from_millis(50);
    let senders: Vec<_> = (0..SENDERS).map(|own| std::thread::spawn(move || send(to, start, own))).collect();
    let told: Vec<Told> = senders.into_iter().flat_map(|sender| sender.join().expect("a sender")).collect();

    let (served, refused): (Vec<_>, Vec<_>) = told.iter().partition(|told| told.status == 200);
    assert!(refused.iter().all(|told| told.status == 503 && told.retry_after.is_some()));
    let could = FLOOD.as_millis() / SERVICE.as_millis() * PLACES as u128;
    assert!(served.len() as u128 * 2 > could, "{} served of {could} that could be", served.len());
    assert!(refused.len() > served.len(), "{} refused: no flood", refused.len());
    let took = |told: &[&Told]| median(told.iter().map(|told| told.took).collect());
    assert!(took(&served) < QUEUE_TIMEOUT / 2, "half of the served waited {:?}", took(&served));
    assert!(took(&refused) < QUEUE_TIMEOUT / 2, "half of the refused waited {:?}", took(&refused));

    let audit = eventually("every request is in the audit log", || {
        let audit = gateway.audit();
        (audit.len() >= told.len()).then_some(audit)
    });
    let busy: Vec<_> = audit.iter().filter(|line| line["outcome"] == "upstream_busy").collect();
    let unread = busy.iter().filter(|line| line["body_bytes"] == 0).count();
    assert_eq!(busy.len(), refused.len());
    assert!(unread * 2 > busy.len(), "{unread} of {} were refused before their body was read", busy.len());
    let grown = (memory() - before) / 1_048_576.0;
    assert!(grown < 64.0, "{grown} MiB more");

    // The flood is over: what comes next is served as if it had never been.
    let over = Instant::now();
    eventually("all are served again", || {
        (0..3 * PLACES).all(|_| Request::post("/a", "x").send(to).status == 200).then_some(())
    });
    assert!(over.elapsed() < Duration::from_secs(2) + 10 * SERVICE * PLACES as u32, "after {:?}", over.elapsed());
}
