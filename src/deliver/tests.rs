//! Upstreams as they come: real sockets that answer, stall, reset, lie and leave.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fields::Fields;
use ::http::{Method, Uri};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http::Upstream;
use super::meters::{Ending, Meters};
use super::settings::{BuildError, HealthCheck, Settings};
use super::*;
use crate::secret::Secret;
use crate::tls_client::{ClientIdentity, TlsError, TlsSettings};

mod discovery;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough never to be reached by a test that passes.
const NEVER: Duration = Duration::from_secs(30);

fn settings(urls: &[String]) -> Settings {
    Settings {
        name: "app".into(),
        urls: urls.iter().map(|url| url.parse::<Uri>().unwrap()).collect(),
        timeout: NEVER,
        connect_timeout: NEVER,
        max_in_flight: 16,
        queue_timeout: NEVER,
        balance: Balance::LeastRequests,
        health: None,
        tls: TlsSettings::default(),
        protocol: Protocol::Auto,
        repeat_on_stale: true,
        max_idle_per_url: 8,
        idle_timeout: NEVER,
        max_answer_head: 16 * 1024,
        resolve_interval: NEVER,
    }
}

fn upstream(settings: Settings) -> (Arc<Upstream>, Meters) {
    let meters = Meters::unregistered(settings.urls.len());
    (Upstream::new(settings, meters.clone()).unwrap(), meters)
}

fn parcel() -> Parcel {
    let mut headers = Fields::new();
    headers.insert("x-request-id", "r-1".parse().unwrap());
    Parcel {
        method: Method::POST,
        path_and_query: "/hook?a=b".to_owned(),
        headers,
        body: Bytes::from_static(b"{\"n\":1}"),
        credentials: Vec::new(),
    }
}

async fn text(answer: Answer) -> Result<String, SendError> {
    let bytes = answer.body.collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

async fn fault(upstream: &Upstream) -> Fault {
    match upstream.send(&parcel()).await {
        Err(error) => error.fault,
        Ok(answer) => panic!("answered {}", answer.status),
    }
}

/// Until something that needs no time but turns of other tasks has happened.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// An upstream whose every connection follows a script.
struct Raw {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Raw {
    async fn start<F, T>(script: F) -> Self
    where
        F: Fn(Wire, usize) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    fn on<F, T>(listener: TcpListener, script: F) -> Self
    where
        F: Fn(Wire, usize) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(script(Wire(stream), counted.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, connections, _accepting: accepting }
    }

    /// Answers every request the same way.
    async fn answering(answer: &'static str) -> Self {
        Self::start(move |mut wire, _| async move {
            while wire.request().await.is_some() {
                wire.write(answer).await;
            }
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

struct Wire(TcpStream);

impl Wire {
    /// Head and body; None when the other side closed.
    async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).await.ok()?;
        Some((head, body))
    }

    async fn write(&mut self, text: &str) {
        // The other side may have gone; the test says what it makes of that.
        drop(self.0.write_all(text.as_bytes()).await);
    }

    /// Until the other side closes.
    async fn hang(&mut self) {
        while matches!(self.0.read(&mut [0; 1024]).await, Ok(read) if read > 0) {}
    }

    fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }
}

/// A port on which nothing listens.
async fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn what_arrives_is_the_body_and_a_head_with_one_host_and_one_length() {
    let (seen, mut received) = mpsc::channel(1);
    let raw = Raw::start(move |mut wire, _| {
        let seen = seen.clone();
        async move {
            seen.send(wire.request().await.unwrap()).await.unwrap();
            wire.write(OK).await;
        }
    })
    .await;
    let (upstream, _) = upstream(settings(&[raw.url()]));
    let mut sent = parcel();
    for (name, value) in [
        ("host", "elsewhere"),
        ("content-length", "99"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("te", "trailers"),
        ("connection", "upgrade, x-hop"),
        ("upgrade", "h2c"),
        ("x-hop", "1"),
    ] {
        sent.headers.insert(name, value.parse().unwrap());
    }
    let answer = upstream.send(&sent).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-length"], "2");
    assert_eq!(text(answer).await.unwrap(), "ok");
    let (head, body) = received.recv().await.unwrap();
    assert_eq!(body, b"{\"n\":1}");
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "post /hook?a=b http/1.1");
    lines.sort_unstable();
    assert_eq!(lines, ["content-length: 7", &format!("host: {}", raw.address), "x-request-id: r-1"]);
}

#[tokio::test]
async fn a_connection_serves_again_after_its_answer_was_read() {
    let raw = Raw::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
    let (upstream, meters) = upstream(settings(&[raw.url()]));
    for _ in 0..3 {
        assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "ok");
        assert_eq!(meters.idle_connections.get(), 1);
    }
    assert_eq!(raw.connections(), 1);
    drop(upstream.send(&parcel()).await.unwrap());
    assert_eq!(meters.idle_connections.get(), 0, "an answer left unread takes its connection with it");
    assert_eq!(meters.in_flight.get(), 0);
    assert_eq!(meters.of(Ending::Success).get(), 4);
    assert_eq!(meters.duration.get_sample_count(), 4);
}

#[tokio::test]
async fn a_connection_at_rest_holds_nothing_of_the_body_that_it_sent() {
    let raw = Raw::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (upstream, meters) = upstream(settings(&[raw.url()]));
    let sent = Parcel { body: vec![b'x'; 100_000].into(), ..parcel() };
    assert_eq!(text(upstream.send(&sent).await.unwrap()).await.unwrap(), "ok");
    assert_eq!(meters.idle_connections.get(), 1);
    assert!(sent.body.is_unique(), "somebody else still has it");
}

#[tokio::test]
async fn an_upstream_that_closes_after_each_answer_without_saying_so_costs_nothing() {
    let raw = Raw::start(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(OK).await;
    })
    .await;
    let (upstream, _) = upstream(settings(&[raw.url()]));
    for _ in 0..20 {
        assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "ok");
    }
    assert_eq!(raw.connections(), 20);
}

/// The first connection answers once and then drops the second request unanswered; later ones answer.
async fn stale_once(requests: mpsc::Sender<String>) -> Raw {
    Raw::start(move |mut wire, number| {
        let requests = requests.clone();
        async move {
            let mut served = 0;
            while let Some((head, _)) = wire.request().await {
                requests.send(head).await.unwrap();
                if number == 0 && served == 1 {
                    return;
                }
                served += 1;
                wire.write(OK).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_used_connection_that_ends_without_a_byte_is_repeated_once_with_the_same_head() {
    let (requests, mut received) = mpsc::channel(8);
    let raw = stale_once(requests).await;
    let (upstream, meters) = upstream(settings(&[raw.url()]));
    for _ in 0..2 {
        assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "ok");
    }
    let heads = [received.recv().await, received.recv().await, received.recv().await];
    assert_eq!(heads[1], heads[2]);
    assert!(heads[2].as_ref().unwrap().contains("x-request-id: r-1"));
    assert_eq!(meters.repeats.get(), 1);
}

#[tokio::test]
async fn without_repeat_on_stale_the_race_is_a_failure() {
    let (requests, mut received) = mpsc::channel(8);
    let raw = stale_once(requests).await;
    let mut settings = settings(&[raw.url()]);
    settings.repeat_on_stale = false;
    let (upstream, meters) = upstream(settings);
    text(upstream.send(&parcel()).await.unwrap()).await.unwrap();
    assert_eq!(fault(&upstream).await, Fault::Broken);
    assert_eq!(meters.repeats.get(), 0);
    assert_eq!(meters.of(Ending::Broken).get(), 1);
    assert!(received.recv().await.is_some() && received.recv().await.is_some() && received.try_recv().is_err());
}

#[tokio::test]
async fn one_byte_of_an_answer_is_enough_not_to_repeat() {
    let raw = Raw::start(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(OK).await;
        wire.request().await.unwrap();
        wire.write("H").await;
    })
    .await;
    let (upstream, meters) = upstream(settings(&[raw.url()]));
    text(upstream.send(&parcel()).await.unwrap()).await.unwrap();
    assert_eq!(fault(&upstream).await, Fault::Broken);
    assert_eq!((raw.connections(), meters.repeats.get()), (1, 0));
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_not_repeated_anywhere() {
    let breaking = || {
        Raw::start(|mut wire, number| async move {
            wire.request().await.unwrap();
            if number % 2 == 0 {
                wire.reset();
            }
        })
    };
    let raws = [breaking().await, breaking().await];
    let (upstream, meters) = upstream(settings(&[raws[0].url(), raws[1].url()]));
    for attempts in 1..=4 {
        let error = upstream.send(&parcel()).await.err().unwrap();
        assert_eq!(error.fault, Fault::Broken);
        assert!(error.detail.starts_with("127.0.0.1:"), "{}", error.detail);
        assert_eq!(raws[0].connections() + raws[1].connections(), attempts);
    }
    assert_eq!(meters.repeats.get(), 0);
}

#[tokio::test]
async fn a_refused_connection_sends_the_request_to_the_next_url() {
    let raw = Raw::answering(OK).await;
    let (upstream, meters) = upstream(settings(&[refusing().await, raw.url(), refusing().await]));
    for _ in 0..6 {
        assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "ok");
    }
    assert!((1..=2).contains(&meters.repeats.get()), "each refusing url is found out once, then ejected");
    assert_eq!(meters.healthy[1].get(), 1);
    assert!(upstream.can_forward());
}

#[tokio::test]
async fn with_every_url_refusing_the_upstream_is_unavailable_but_tried_each_time() {
    let urls = [refusing().await, refusing().await];
    let (upstream, meters) = upstream(settings(&urls));
    for _ in 0..3 {
        let error = upstream.send(&parcel()).await.err().unwrap();
        assert_eq!(error.fault, Fault::Unavailable);
        assert!(urls.iter().any(|url| error.detail.starts_with(&url["http://".len()..])), "{}", error.detail);
    }
    assert_eq!(meters.repeats.get(), 3);
    assert_eq!(meters.of(Ending::Unavailable).get(), 3);
    assert_eq!((meters.healthy[0].get(), meters.healthy[1].get()), (0, 0));
    assert!(!upstream.can_forward());
}

#[tokio::test]
async fn an_ejected_url_returns_when_it_listens_again() {
    let good = Raw::answering("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
    let back = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = back.local_addr().unwrap();
    drop(back);
    let (upstream, meters) = upstream(settings(&[format!("http://{address}"), good.url()]));
    for _ in 0..3 {
        assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "good");
    }
    assert_eq!(meters.healthy[0].get(), 0);
    let _back = Raw::on(TcpListener::bind(address).await.unwrap(), |mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.write(OK).await;
        }
    });
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(text(upstream.send(&parcel()).await.unwrap()).await.unwrap());
    }
    assert!(answers.contains(&"ok".to_owned()) && answers.contains(&"good".to_owned()), "{answers:?}");
    assert_eq!(meters.healthy[0].get(), 1);
}

#[tokio::test]
async fn an_answer_that_does_not_come_or_does_not_end_is_late() {
    let silent = Raw::start(|mut wire, _| async move { wire.hang().await }).await;
    let dripping = Raw::start(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
        for _ in 0..100 {
            wire.write("x").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for (url, head_comes) in [(silent.url(), false), (dripping.url(), true)] {
        let mut settings = settings(&[url]);
        settings.timeout = Duration::from_millis(300);
        let (upstream, meters) = upstream(settings);
        let started = Instant::now();
        let error = match upstream.send(&parcel()).await {
            Ok(answer) => {
                assert!(head_comes);
                text(answer).await.unwrap_err()
            }
            Err(error) => {
                assert!(!head_comes);
                error
            }
        };
        assert_eq!(error.fault, Fault::TimedOut);
        assert!((300..3000).contains(&started.elapsed().as_millis()));
        assert_eq!(meters.of(Ending::TimedOut).get(), 1);
        assert_eq!((meters.in_flight.get(), meters.idle_connections.get()), (0, 0));
    }
}

#[tokio::test]
async fn a_body_that_never_stops_is_cut_at_the_deadline() {
    let raw = Raw::start(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\n\r\n").await;
        while wire.0.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
    })
    .await;
    let mut settings = settings(&[raw.url()]);
    settings.timeout = Duration::from_millis(300);
    let (upstream, _) = upstream(settings);
    let mut answer = upstream.send(&parcel()).await.unwrap();
    let error = loop {
        if let Err(error) = answer.body.frame().await.unwrap() {
            break error;
        }
    };
    assert_eq!(error.fault, Fault::TimedOut);
    assert!(answer.body.frame().await.is_none());
}

#[tokio::test]
async fn a_cut_answer_is_an_error_and_never_a_clean_end() {
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive!",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfive!\r\n",
    ] {
        let raw = Raw::start(move |mut wire, _| async move {
            wire.request().await.unwrap();
            wire.write(cut).await;
        })
        .await;
        let (upstream, meters) = upstream(settings(&[raw.url()]));
        let answer = upstream.send(&parcel()).await.unwrap();
        assert_eq!(text(answer).await.unwrap_err().fault, Fault::Broken, "{cut}");
        assert_eq!(meters.of(Ending::Broken).get(), 1);
        assert_eq!((meters.in_flight.get(), meters.idle_connections.get()), (0, 0));
    }
}

#[tokio::test]
async fn what_is_not_an_answer_is_broken() {
    let huge = format!("HTTP/1.1 200 OK\r\nX-Huge: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Many: 1\r\n".repeat(101));
    for answer in [
        huge.as_str(),
        &many,
        "\u{0}\u{1}\u{7f}garbage\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 99999 OK\r\n\r\n",
    ] {
        let owned = answer.to_owned();
        let raw = Raw::start(move |mut wire, _| {
            let answer = owned.clone();
            async move {
                wire.request().await.unwrap();
                wire.write(&answer).await;
                wire.hang().await;
            }
        })
        .await;
        let (upstream, _) = upstream(settings(&[raw.url()]));
        assert_eq!(fault(&upstream).await, Fault::Broken, "{}", &answer[..40.min(answer.len())]);
    }
}

#[tokio::test]
async fn interim_answers_trailers_and_hop_by_hop_headers_stay_behind() {
    let raw = Raw::answering(concat!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        "HTTP/1.1 202 Accepted\r\nConnection: keep-alive, X-Hop, Content-Length\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n",
        "X-Kept: 1\r\nTransfer-Encoding: chunked\r\nTrailer: X-After\r\n\r\n2\r\nok\r\n0\r\nX-After: 1\r\n\r\n",
    ))
    .await;
    let (upstream, meters) = upstream(settings(&[raw.url()]));
    let answer = upstream.send(&parcel()).await.unwrap();
    assert_eq!(answer.status, 202);
    assert_eq!(answer.headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-kept"]);
    let collected = answer.body.collect().await.unwrap();
    assert!(collected.trailers().is_none());
    assert_eq!(collected.to_bytes(), "ok");
    assert_eq!(meters.idle_connections.get(), 1);
}

#[tokio::test]
async fn a_length_that_is_not_the_bodys_is_not_passed_on() {
    let raw = Raw::answering("HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n").await;
    let (upstream, _) = upstream(settings(&[raw.url()]));
    let answer = upstream.send(&parcel()).await.unwrap();
    assert!(answer.headers.len() == 0);
    assert!(answer.body.is_end_stream());
}

/// Announces each request and answers when told to.
async fn on_command() -> (Raw, mpsc::Receiver<()>, watch::Sender<bool>) {
    let (arrived, arrivals) = mpsc::channel(64);
    let go = watch::Sender::new(false);
    let told = go.clone();
    let raw = Raw::start(move |mut wire, _| {
        let (arrived, mut told) = (arrived.clone(), told.subscribe());
        async move {
            while wire.request().await.is_some() {
                arrived.send(()).await.unwrap();
                if told.wait_for(|go| *go).await.is_err() {
                    return;
                }
                wire.write(OK).await;
            }
        }
    })
    .await;
    (raw, arrivals, go)
}

fn send_many(upstream: &Arc<Upstream>, many: usize) -> JoinSet<Result<String, SendError>> {
    let mut sending = JoinSet::new();
    for _ in 0..many {
        let upstream = Arc::clone(upstream);
        sending.spawn(async move { text(upstream.send(&parcel()).await?).await });
    }
    sending
}

#[tokio::test]
async fn beyond_max_in_flight_requests_wait_and_then_are_told_busy() {
    let (raw, mut arrivals, go) = on_command().await;
    let mut settings = settings(&[raw.url()]);
    settings.max_in_flight = 2;
    settings.queue_timeout = Duration::from_millis(50);
    let (upstream, meters) = upstream(settings);
    let held = send_many(&upstream, 2);
    arrivals.recv().await.unwrap();
    arrivals.recv().await.unwrap();
    assert_eq!(fault(&upstream).await, Fault::Busy);
    assert_eq!(meters.of(Ending::Busy).get(), 1);
    assert_eq!(meters.in_flight.get(), 2);
    go.send_replace(true);
    assert!(held.join_all().await.iter().all(Result::is_ok));
    assert_eq!(meters.in_flight.get(), 0);
    assert_eq!(send_many(&upstream, 20).join_all().await.iter().filter(|sent| sent.is_ok()).count(), 20);
    assert!(raw.connections() <= 2);
}

/// One place, and an answer of so many bytes, written whole.
async fn one_place(bytes: usize, timeout: Duration) -> (Raw, Arc<Upstream>, Meters) {
    let raw = Raw::start(move |mut wire, _| async move {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n{}", "x".repeat(bytes));
        while wire.request().await.is_some() {
            wire.write(&answer).await;
        }
    })
    .await;
    let mut settings = settings(&[raw.url()]);
    settings.max_in_flight = 1;
    settings.queue_timeout = Duration::from_millis(20);
    settings.timeout = timeout;
    let (upstream, meters) = upstream(settings);
    (raw, upstream, meters)
}

/// Longer than what is read at once.
const LONG: usize = 64 * 1024 + 1;

#[tokio::test]
async fn a_place_is_held_until_a_long_answer_is_read_or_dropped() {
    let (_raw, upstream, meters) = one_place(LONG, NEVER).await;
    let answer = upstream.send(&parcel()).await.unwrap();
    assert_eq!(fault(&upstream).await, Fault::Busy);
    drop(answer);
    let mut answer = upstream.send(&parcel()).await.unwrap();
    let mut read = 0;
    while !answer.body.is_end_stream() {
        assert_eq!(meters.in_flight.get(), 1);
        read += answer.body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, LONG, "the length said so: the place is free before the body is dropped");
    assert!(upstream.send(&parcel()).await.is_ok());
}

#[tokio::test]
async fn a_short_answer_frees_its_place_and_its_connection_before_anybody_reads_it() {
    let (raw, upstream, meters) = one_place(LONG - 1, NEVER).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(upstream.send(&parcel()).await.unwrap());
        assert_eq!((meters.in_flight.get(), meters.idle_connections.get()), (0, 1));
    }
    for answer in answers {
        assert_eq!(answer.body.size_hint().exact(), Some(LONG as u64 - 1));
        assert_eq!(text(answer).await.unwrap().len(), LONG - 1);
    }
    assert_eq!((raw.connections(), meters.of(Ending::Success).get()), (1, 3));
}

#[tokio::test]
async fn the_deadline_frees_the_place_of_an_answer_that_nobody_reads() {
    let (_raw, upstream, meters) = one_place(LONG, Duration::from_millis(300)).await;
    let started = Instant::now();
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(upstream.send(&parcel()).await.unwrap());
        assert_eq!((fault(&upstream).await, meters.in_flight.get()), (Fault::Busy, 1));
        eventually("the place is free", || meters.in_flight.get() == 0).await;
    }
    assert!(started.elapsed() < NEVER / 2);
    for mut answer in unread {
        // A reset for the sender, not a clean end; and then nothing more.
        assert!(!answer.body.is_end_stream());
        assert_eq!(answer.body.frame().await.unwrap().unwrap_err().fault, Fault::TimedOut);
        assert!(answer.body.frame().await.is_none());
    }
    // The connections were in mid-answer; and that nobody read does not speak against the upstream.
    assert_eq!((meters.idle_connections.get(), meters.healthy[0].get()), (0, 1));
    assert_eq!((meters.of(Ending::Success).get(), meters.of(Ending::TimedOut).get()), (4, 0));
}

#[tokio::test]
async fn the_deadline_of_a_streamed_answer_wakes_who_waits_for_it_and_counts_against_the_upstream() {
    let raw = Raw::start(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        wire.hang().await;
    })
    .await;
    let mut settings = settings(&[raw.url()]);
    settings.timeout = Duration::from_millis(300);
    let (upstream, meters) = upstream(settings);
    let mut answer = upstream.send(&parcel()).await.unwrap();
    assert_eq!(answer.body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert_eq!(answer.body.frame().await.unwrap().unwrap_err().fault, Fault::TimedOut);
    assert_eq!((meters.of(Ending::TimedOut).get(), meters.in_flight.get()), (1, 0));
}

#[tokio::test]
async fn a_short_answer_that_is_cut_is_relayed_as_far_as_it_came_and_ends_in_an_error() {
    let raw = Raw::start(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive!").await;
    })
    .await;
    let (upstream, _) = upstream(settings(&[raw.url()]));
    let mut answer = upstream.send(&parcel()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.size_hint().exact()), (200, None));
    assert_eq!(answer.body.frame().await.unwrap().unwrap().into_data().unwrap(), "five!");
    assert!(!answer.body.is_end_stream());
    assert_eq!(answer.body.frame().await.unwrap().unwrap_err().fault, Fault::Broken);
    assert!(answer.body.frame().await.is_none() && answer.body.is_end_stream());
}

#[tokio::test]
async fn giving_up_half_way_frees_the_place() {
    let (raw, mut arrivals, _go) = on_command().await;
    let mut settings = settings(&[raw.url()]);
    settings.max_in_flight = 1;
    let (upstream, meters) = upstream(settings);
    for _ in 0..3 {
        let mut sending = send_many(&upstream, 1);
        arrivals.recv().await.unwrap();
        sending.shutdown().await;
        assert_eq!(meters.in_flight.get(), 0);
    }
}

#[tokio::test]
async fn a_hanging_url_takes_its_own_places_and_no_others() {
    let (hanging, mut arrivals, _go) = on_command().await;
    let good = Raw::answering(OK).await;
    let mut settings = settings(&[hanging.url(), good.url()]);
    settings.max_in_flight = 2;
    settings.balance = Balance::RoundRobin;
    let (upstream, meters) = upstream(settings);
    let mut stuck = send_many(&upstream, 20);
    for _ in 0..18 {
        assert!(stuck.join_next().await.unwrap().unwrap().is_ok());
    }
    arrivals.recv().await.unwrap();
    arrivals.recv().await.unwrap();
    assert_eq!(meters.in_flight.get(), 2);
    assert!(arrivals.try_recv().is_err());
}

#[tokio::test]
async fn requests_are_spread_over_the_urls() {
    for balance in [Balance::LeastRequests, Balance::RoundRobin] {
        let counts = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let mut raws = Vec::new();
        for count in &counts {
            let count = Arc::clone(count);
            let counting = Raw::start(move |mut wire, _| {
                let count = Arc::clone(&count);
                async move {
                    while wire.request().await.is_some() {
                        count.fetch_add(1, Ordering::SeqCst);
                        wire.write(OK).await;
                    }
                }
            });
            raws.push(counting.await);
        }
        let mut settings = settings(&raws.iter().map(Raw::url).collect::<Vec<_>>());
        settings.balance = balance;
        let (upstream, _) = upstream(settings);
        for _ in 0..12 {
            text(upstream.send(&parcel()).await.unwrap()).await.unwrap();
        }
        assert_eq!(counts.map(|count| count.load(Ordering::SeqCst)), [4, 4, 4], "{balance:?}");
    }
}

#[tokio::test]
async fn three_late_answers_eject_a_url() {
    let silent = Raw::start(|mut wire, _| async move { wire.hang().await }).await;
    let good = Raw::answering(OK).await;
    let mut settings = settings(&[silent.url(), good.url()]);
    settings.timeout = Duration::from_millis(100);
    settings.balance = Balance::RoundRobin;
    let (upstream, meters) = upstream(settings);
    let mut late = 0;
    while meters.healthy[0].get() == 1 {
        late += usize::from(upstream.send(&parcel()).await.is_err());
    }
    assert_eq!(late, 3);
    for _ in 0..4 {
        assert!(upstream.send(&parcel()).await.is_ok());
    }
}

#[tokio::test]
async fn a_server_error_is_an_answer_and_ejects_nobody() {
    let raw = Raw::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let (upstream, meters) = upstream(settings(&[raw.url()]));
    for _ in 0..5 {
        assert_eq!(upstream.send(&parcel()).await.unwrap().status, 500);
    }
    assert_eq!((meters.healthy[0].get(), meters.of(Ending::ServerError).get(), raw.connections()), (1, 5, 1));
}

#[tokio::test]
async fn probes_set_a_url_aside_and_bring_it_back_and_end_with_the_upstream() {
    let status = Arc::new(Mutex::new("503 No"));
    let shown = Arc::clone(&status);
    let raw = Raw::start(move |mut wire, _| {
        let shown = Arc::clone(&shown);
        async move {
            let (head, _) = wire.request().await.unwrap();
            assert!(head.starts_with("get /healthz http/1.1\r\n"), "{head}");
            let status = *shown.lock().unwrap();
            wire.write(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await;
        }
    })
    .await;
    let mut settings = settings(&[raw.url()]);
    let interval = Duration::from_millis(5);
    settings.health = Some(HealthCheck { path: "/healthz".to_owned(), interval, timeout: Duration::from_secs(2) });
    let (upstream, meters) = upstream(settings);
    let (_stop, stopped) = watch::channel(false);
    let probing = tokio::spawn(Arc::clone(&upstream).tend(stopped));
    eventually("set aside", || meters.healthy[0].get() == 0).await;
    assert!(!upstream.can_forward());
    assert!(raw.connections() >= 2, "one failed probe is an accident");
    *status.lock().unwrap() = "301 There";
    eventually("back", || meters.healthy[0].get() == 1).await;
    assert!(upstream.can_forward());
    drop(upstream);
    tokio::time::timeout(Duration::from_secs(10), probing).await.unwrap().unwrap();
}

#[tokio::test]
async fn probing_stops_when_told() {
    let mut settings = settings(&[refusing().await]);
    settings.health = Some(HealthCheck { path: "/".to_owned(), interval: NEVER, timeout: Duration::from_secs(2) });
    let (upstream, _) = upstream(settings);
    let (stop, stopped) = watch::channel(false);
    let probing = tokio::spawn(Arc::clone(&upstream).tend(stopped));
    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(10), probing).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_at_rest_are_closed_on_time_and_with_their_upstream() {
    for by_time in [true, false] {
        let (closed, mut closes) = mpsc::channel(1);
        let raw = Raw::start(move |mut wire, _| {
            let closed = closed.clone();
            async move {
                wire.request().await.unwrap();
                wire.write(OK).await;
                wire.hang().await;
                closed.send(()).await.unwrap();
            }
        })
        .await;
        let mut settings = settings(&[raw.url()]);
        if by_time {
            settings.idle_timeout = Duration::from_millis(20);
        }
        let (upstream, meters) = upstream(settings);
        text(upstream.send(&parcel()).await.unwrap()).await.unwrap();
        let kept = by_time.then_some(upstream);
        closes.recv().await.unwrap();
        assert_eq!(meters.idle_connections.get(), 0);
        drop(kept);
    }
}

/// An HTTP/2 upstream; `script` gets each request with its number, and None ends the connection instead of answering.
async fn http2(
    streams: u32,
    script: impl Fn(usize, &hyper::Request<Incoming>) -> Option<String> + Send + Sync + 'static,
) -> Raw {
    let script = Arc::new(script);
    let requests = Arc::new(AtomicUsize::new(0));
    Raw::start(move |wire, _| {
        let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
        async move {
            let end = Arc::new(tokio::sync::Notify::new());
            let ends = Arc::clone(&end);
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let (script, requests, end) = (Arc::clone(&script), Arc::clone(&requests), Arc::clone(&end));
                async move {
                    let Some(answer) = script(requests.fetch_add(1, Ordering::SeqCst), &request) else {
                        end.notify_one();
                        return std::future::pending().await;
                    };
                    let body = request.into_body().collect().await?.to_bytes();
                    assert_eq!(body, parcel().body);
                    Ok::<_, hyper::Error>(hyper::Response::new(Full::new(Bytes::from(answer))))
                }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(wire.0), service);
            tokio::select! {
                served = serving => drop(served),
                () = ends.notified() => {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn http2_shares_one_connection_and_names_the_authority() {
    let raw = http2(100, |_, request| {
        assert!(!request.headers().contains_key("host"));
        assert_eq!(request.headers()["content-length"], "7");
        Some(format!("{} {}", request.uri(), request.headers()["x-request-id"].to_str().unwrap()))
    })
    .await;
    let mut settings = settings(&[raw.url()]);
    settings.protocol = Protocol::Http2;
    let (upstream, meters) = upstream(settings);
    let answers = send_many(&upstream, 16).join_all().await;
    let expected = format!("{}/hook?a=b r-1", raw.url());
    assert_eq!(answers, vec![Ok(expected); 16]);
    assert_eq!((raw.connections(), meters.in_flight.get()), (1, 0));
}

#[tokio::test]
async fn http2_opens_another_connection_when_the_peer_allows_no_more_streams() {
    let (arrived, mut arrivals) = mpsc::channel(8);
    let raw = http2(2, move |_, _| {
        arrived.try_send(()).unwrap();
        Some("x".repeat(LONG))
    })
    .await;
    let mut settings = settings(&[raw.url()]);
    settings.protocol = Protocol::Http2;
    let (upstream, _) = upstream(settings);
    // The first exchange teaches the peer's limit; from then on answers that are not read hold their streams.
    text(upstream.send(&parcel()).await.unwrap()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(upstream.send(&parcel()).await.unwrap());
    }
    for _ in 0..6 {
        arrivals.recv().await.unwrap();
    }
    assert!(raw.connections() > 1, "{}", raw.connections());
}

#[tokio::test]
async fn http2_repeats_what_a_used_connection_dropped() {
    let raw = http2(100, |number, _| (number != 1).then(|| number.to_string())).await;
    let mut settings = settings(&[raw.url()]);
    settings.protocol = Protocol::Http2;
    let (upstream, meters) = upstream(settings);
    assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "0");
    assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "2");
    assert_eq!((raw.connections(), meters.repeats.get()), (2, 1));
}

#[tokio::test]
async fn http2_does_not_repeat_what_a_fresh_connection_dropped() {
    let raw = http2(100, |_, _| None).await;
    let mut settings = settings(&[raw.url()]);
    settings.protocol = Protocol::Http2;
    let (upstream, meters) = upstream(settings);
    assert_eq!(fault(&upstream).await, Fault::Broken);
    assert_eq!((raw.connections(), meters.repeats.get()), (1, 0));
}

#[tokio::test]
async fn http2_retires_a_connection_on_which_an_answer_was_late() {
    let silent = Raw::start(|mut wire, _| async move { wire.hang().await }).await;
    let mut settings = settings(&[silent.url()]);
    settings.protocol = Protocol::Http2;
    settings.timeout = Duration::from_millis(100);
    let (upstream, meters) = upstream(settings);
    for _ in 0..2 {
        assert_eq!(fault(&upstream).await, Fault::TimedOut);
    }
    assert_eq!((silent.connections(), meters.in_flight.get()), (2, 0));
}

/// A certificate authority, and what it signed.
struct Pki {
    ca: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        Self { ca, issuer: rcgen::Issuer::new(params, key) }
    }

    fn certify(&self, name: &str) -> ClientIdentity {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem().into_bytes();
        ClientIdentity { certificate, private_key: Secret::new(key.serialize_pem().into_bytes()) }
    }

    /// Answers with the protocol and whether a client certificate came; `name` is what its certificate says.
    async fn serve(&self, name: &str, alpn: &[&[u8]], wants_client: bool) -> (Raw, String) {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let builder =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = match wants_client {
            true => builder.with_client_cert_verifier(verifier.build().unwrap()),
            false => builder.with_no_client_auth(),
        };
        let own = self.certify(name);
        let chain = vec![CertificateDer::from_pem_slice(&own.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(own.private_key.expose()).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let raw = Raw::start(move |wire, _| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(wire.0).await else {
                    return;
                };
                let had_certificate = stream.get_ref().1.peer_certificates().is_some();
                let service = service_fn(move |request: hyper::Request<Incoming>| async move {
                    let said = format!("{:?} {had_certificate}", request.version());
                    Ok::<_, hyper::Error>(hyper::Response::new(Full::new(Bytes::from(said))))
                });
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let stream = TokioIo::new(stream);
                // How it ends is the client's to say.
                if is_http2 {
                    drop(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(stream, service)
                            .await,
                    );
                } else {
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await);
                }
            }
        })
        .await;
        let url = format!("https://127.0.0.1:{}", raw.address.port());
        (raw, url)
    }

    fn settings(&self, url: String) -> Settings {
        let mut settings = settings(&[url]);
        settings.tls.ca = Some(self.ca.clone().into_bytes());
        settings
    }
}

#[tokio::test]
async fn tls_speaks_what_both_sides_can() {
    let pki = Pki::new();
    for (offered, protocol, spoken) in [
        (&[b"h2".as_slice(), b"http/1.1"][..], Protocol::Auto, Some("HTTP/2.0 false")),
        (&[b"h2", b"http/1.1"], Protocol::Http1, Some("HTTP/1.1 false")),
        (&[], Protocol::Auto, Some("HTTP/1.1 false")),
        (&[], Protocol::Http2, None),
    ] {
        let (raw, url) = pki.serve("127.0.0.1", offered, false).await;
        let mut settings = pki.settings(url);
        settings.protocol = protocol;
        let (upstream, _) = upstream(settings);
        for _ in 0..2 {
            match spoken {
                Some(spoken) => assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), spoken),
                None => assert_eq!(fault(&upstream).await, Fault::Unavailable),
            }
        }
        assert_eq!(raw.connections(), if spoken.is_some() { 1 } else { 2 });
    }
}

#[tokio::test]
async fn tls_refuses_a_stranger_and_a_wrong_name() {
    let pki = Pki::new();
    let (_raw, url) = pki.serve("app.internal", &[], false).await;
    let asking = |ca: &Pki, name: Option<&str>| {
        let mut settings = ca.settings(url.clone());
        settings.tls.server_name = name.map(str::to_owned);
        upstream(settings).0
    };
    let named = asking(&pki, Some("app.internal"));
    assert_eq!(text(named.send(&parcel()).await.unwrap()).await.unwrap(), "HTTP/1.1 false");
    for refusing in
        [asking(&pki, None), asking(&pki, Some("other.internal")), asking(&Pki::new(), Some("app.internal"))]
    {
        let error = refusing.send(&parcel()).await.err().unwrap();
        assert_eq!(error.fault, Fault::Unavailable);
        assert!(error.detail.contains("TLS handshake: invalid peer certificate"), "{}", error.detail);
    }
    let mut public_roots = settings(&[url]);
    public_roots.tls.server_name = Some("app.internal".to_owned());
    assert_eq!(fault(&upstream(public_roots).0).await, Fault::Unavailable);
}

#[tokio::test]
async fn tls_presents_its_certificate_when_asked() {
    let pki = Pki::new();
    let (_raw, url) = pki.serve("127.0.0.1", &[], true).await;
    let mut settings = pki.settings(url);
    assert!(upstream(settings.clone()).0.send(&parcel()).await.is_err());
    settings.tls.identity = Some(pki.certify("hookward.internal"));
    let (upstream, _) = upstream(settings);
    assert_eq!(text(upstream.send(&parcel()).await.unwrap()).await.unwrap(), "HTTP/1.1 true");
}

#[tokio::test]
async fn a_name_is_resolved_and_connecting_is_bounded() {
    let raw = Raw::answering(OK).await;
    // The name may have an IPv6 address first, on which nothing listens.
    let (by_name, meters) = upstream(settings(&[format!("http://localhost:{}", raw.address.port())]));
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::clone(&by_name).tend(stopped));
    assert_eq!(text(by_name.send(&parcel()).await.unwrap()).await.unwrap(), "ok");
    assert_eq!((meters.repeats.get(), meters.addresses[0].known.get()), (0, 1), "one machine, one endpoint");

    // Accepts at TCP's level and never says a word of TLS.
    let mute = Raw::start(|mut wire, _| async move { wire.hang().await }).await;
    let mut settings = settings(&[format!("https://{}", mute.address)]);
    settings.connect_timeout = Duration::from_millis(50);
    let (upstream, _) = upstream(settings);
    assert_eq!(fault(&upstream).await, Fault::Unavailable);
}

#[test]
fn settings_that_cannot_work_are_refused_with_the_reason() {
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings(&["https://app.internal:8443".to_owned()]);
        change(&mut settings);
        let urls = settings.urls.len();
        Upstream::new(settings, Meters::unregistered(urls)).err()
    };
    let url = |text: &'static str| move |settings: &mut Settings| settings.urls = vec![text.parse().unwrap()];
    let why = |change: &dyn Fn(&mut Settings)| match refused(change) {
        Some(BuildError::Url { url, why }) => {
            assert!(!url.contains("hunter2"), "{url}");
            why
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&|_| {}), None);
    assert_eq!(refused(&|settings| settings.urls.clear()), Some(BuildError::NoUrls));
    assert_eq!(why(&url("http://u:hunter2@app")), "it carries a user or password");
    assert_eq!(why(&url("http://app/base")), "it has a path; use the source's upstream_path");
    assert_eq!(why(&url("ftp://app")), "its scheme is neither http nor https");
    assert_eq!(why(&url("http://app:0")), "its port is 0");
    assert_eq!(why(&url("/only/a/path")), "it has no host");
    let ca = |pem: &'static str| move |settings: &mut Settings| settings.tls.ca = Some(pem.into());
    assert!(matches!(refused(&ca("")), Some(BuildError::Tls(TlsError::Ca(_)))));
    assert!(matches!(
        refused(&ca("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
        Some(BuildError::Tls(TlsError::Ca(_)))
    ));
    let identity = |certificate: Vec<u8>, key: Vec<u8>| {
        move |settings: &mut Settings| {
            let private_key = Secret::new(key.clone());
            settings.tls.identity = Some(ClientIdentity { certificate: certificate.clone(), private_key });
        }
    };
    let (one, other) = (Pki::new().certify("a"), Pki::new().certify("b"));
    assert_eq!(
        refused(&identity(one.certificate.clone(), b"hunter2".to_vec())),
        Some(BuildError::Tls(TlsError::PrivateKey))
    );
    assert!(matches!(
        refused(&identity(one.certificate, other.private_key.expose().to_vec())),
        Some(BuildError::Tls(TlsError::Certificate(_)))
    ));
    let health = |settings: &mut Settings| {
        let timeout = Duration::from_secs(1);
        settings.health = Some(HealthCheck { path: "health z".to_owned(), interval: timeout, timeout });
    };
    assert_eq!(refused(&health), Some(BuildError::HealthPath { path: "health z".to_owned() }));
}
