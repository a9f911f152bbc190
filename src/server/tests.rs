//! The listener as its peers meet it: real sockets, real handshakes, port 0.

use std::future::pending;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{CertifiedKeyFiles, ClientAuth, Tls, TlsError};
use super::*;
use crate::clock::UnixMillis;
use crate::secret::Secret;
use crate::threads::Threads;

/// No test needs it; one that is broken ends by it.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);
/// For what must not come into play.
const LONG: Duration = Duration::from_secs(30);

const LIMITS: Limits = Limits {
    max_connections_per_client: 100,
    max_header_bytes: 32 * 1024,
    header_timeout: LONG,
    handshake_timeout: LONG,
    idle_timeout: LONG,
    max_concurrent_streams: 100,
};

fn settings() -> Settings {
    Settings {
        name: "public".into(),
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        proxy_protocol: false,
        trusted_proxies: Arc::new([]),
        limits: LIMITS,
    }
}

fn loopback() -> Arc<[ipnet::IpNet]> {
    Arc::new(["127.0.0.0/8".parse().unwrap()])
}

type Answer = super::Response<BoxBody<Bytes, std::io::Error>>;

struct Served {
    listener: Arc<Listener>,
    meters: Meters,
    stop: watch::Sender<Stop>,
    done: JoinHandle<()>,
}

impl Served {
    fn address(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    async fn ends(self) {
        timeout(PATIENCE, self.done).await.expect("the listener ends").unwrap();
    }
}

fn bind(settings: Settings, permits: Arc<Permits>) -> (Arc<Listener>, Meters) {
    let meters = Meters::unregistered();
    (Listener::bind(settings, None, meters.clone(), permits, Threads::none()).unwrap(), meters)
}

fn start<H, F>(bound: (Arc<Listener>, Meters), handler: H) -> Served
where
    H: Fn(super::Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (listener, meters) = bound;
    let (stop, signal) = watch::channel(Stop::Serve);
    let done = tokio::spawn(Arc::clone(&listener).serve(handler, signal));
    Served { listener, meters, stop, done }
}

fn serve(settings: Settings) -> Served {
    start(bind(settings, Permits::new(100)), describe)
}

/// Answers with what the handler was told.
async fn describe(request: super::Request, peer: Arc<Peer>) -> Answer {
    let version = request.head.version;
    let body = request.body.collect().await.map(|body| body.to_bytes().len()).unwrap_or_default();
    let tls = match &peer.tls {
        None => "none".to_owned(),
        Some(tls) => {
            let client = tls.certificate.as_ref().map_or("none".to_owned(), |client| client.dns_names.join(","));
            format!(
                "{} client={client} serves-a={} serves-b={}",
                tls.server_name.as_deref().unwrap_or("-"),
                tls.served.serves("a.example"),
                tls.served.serves("x.b.example"),
            )
        }
    };
    let (address, local) = (peer.address, peer.local);
    text(format!("{version:?} {body} from={address} to={local} tls={tls}"))
}

fn text(text: impl Into<Bytes>) -> Answer {
    super::Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed())
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n";
const GET_AND_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server closes")?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// Reads one HTTP/1 answer of a declared length, and nothing behind it.
async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    loop {
        bytes.push(timeout(PATIENCE, stream.read_u8()).await.expect("an answer").expect("a whole answer"));
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_lowercase();
            let length =
                length.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse::<usize>().unwrap();
            if body.len() == length {
                return text.into_owned();
            }
        }
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream.write_all(GET).await.unwrap();
    read_answer(stream).await
}

/// What comes is an end without a byte.
async fn is_closed_silently(stream: &mut TcpStream) -> bool {
    match read_all(stream).await {
        Ok(text) => text.is_empty(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

async fn http2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> (hyper::client::conn::http2::SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    (send, tokio::spawn(connection))
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("http://a.example/").body(Empty::new()).unwrap()
}

async fn body_of(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

// ---- Deadlines in HTTP/1 ----

#[tokio::test]
async fn a_silent_client_is_closed_without_a_word() {
    let served = serve(Settings { limits: Limits { header_timeout: SHORT, ..LIMITS }, ..settings() });
    assert!(is_closed_silently(&mut served.connect().await).await);
}

#[tokio::test]
async fn a_head_that_does_not_end_gets_408_and_the_connection_is_closed() {
    let served = serve(Settings { limits: Limits { header_timeout: SHORT, ..LIMITS }, ..settings() });
    for part in [&b"P"[..], b"PRI * HTTP", b"GET / HTTP/1.1\r\nhost: a.exa"] {
        let mut stream = served.connect().await;
        stream.write_all(part).await.unwrap();
        let answer = read_all(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_second_head_that_does_not_end_gets_408_too() {
    let served = serve(Settings { limits: Limits { header_timeout: SHORT, ..LIMITS }, ..settings() });
    let mut stream = served.connect().await;
    ask(&mut stream).await;
    stream.write_all(b"GET / HT").await.unwrap();
    assert!(read_all(&mut stream).await.unwrap().starts_with("HTTP/1.1 408 "));
}

#[tokio::test]
async fn dripping_a_head_does_not_gain_time() {
    let served = serve(Settings { limits: Limits { header_timeout: SHORT, ..LIMITS }, ..settings() });
    let mut stream = served.connect().await;
    let began = Instant::now();
    let mut dripped = 0;
    // The answer, or the end, shows up as something to read.
    let mut answer = [0; 12];
    loop {
        if stream.write_all(b"G").await.is_err() {
            break;
        }
        dripped += 1;
        match timeout(SHORT / 10, stream.read_exact(&mut answer)).await {
            Err(_) => assert!(began.elapsed() < PATIENCE, "still open"),
            Ok(read) => {
                read.unwrap();
                assert_eq!(&answer, b"HTTP/1.1 408");
                break;
            }
        }
    }
    assert!(dripped > 1, "it was never dripping");
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let served = serve(Settings { limits: Limits { idle_timeout: SHORT, ..LIMITS }, ..settings() });
    let mut stream = served.connect().await;
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert!(is_closed_silently(&mut stream).await);
}

#[tokio::test]
async fn idle_time_is_not_header_time() {
    // Were the header's deadline to run while the connection is idle, it would ring first.
    let limits = Limits { header_timeout: SHORT, idle_timeout: SHORT * 4, ..LIMITS };
    let served = serve(Settings { limits, ..settings() });
    let mut stream = served.connect().await;
    // The body is left unread by nobody here, but a stray line end after it is what old clients send.
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    read_answer(&mut stream).await;
    let began = Instant::now();
    assert!(is_closed_silently(&mut stream).await);
    assert!(began.elapsed() >= SHORT * 3, "closed after {:?}", began.elapsed());
}

/// Longer than a connection keeps what only requests need.
const REST: Duration = Duration::from_secs(3);

/// Time passes for everybody here, and what it brings is done.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
}

#[tokio::test]
async fn a_connection_that_rested_answers_as_before_in_the_clear_and_over_tls() {
    let served = serve(settings());
    let mut stream = served.connect().await;
    pass(REST).await;
    for _ in 0..3 {
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200 "));
        pass(REST).await;
    }
    let authority = Authority::new("server ca");
    let served = serve(with_tls(without_clients(vec![authority.issue("a.example").files()])));
    let config = Arc::new(client(&authority, &[], None));
    let mut stream = connect_tls(served.address(), &config, "a.example").await.unwrap();
    pass(REST).await;
    for _ in 0..3 {
        assert!(ask(&mut stream).await.contains("tls=a.example "));
        pass(REST).await;
    }
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await.unwrap(), "", "a rest hides no goodbye");
    wait_until(|| served.meters.connections.get() == 0).await;
}

#[tokio::test]
async fn half_a_head_behind_a_request_outlives_a_rest() {
    let served = serve(settings());
    let mut stream = served.connect().await;
    let both = [GET, GET].concat();
    let (sent, rest) = both.split_at(GET.len() + 9);
    stream.write_all(sent).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
    for _ in 0..3 {
        pass(REST).await;
    }
    stream.write_all(rest).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_when_its_time_is_over_and_when_we_stop() {
    let served = serve(Settings { limits: Limits { idle_timeout: REST * 2, ..LIMITS }, ..settings() });
    let mut stream = served.connect().await;
    ask(&mut stream).await;
    pass(REST).await;
    assert_eq!(served.meters.connections.get(), 1);
    pass(REST).await;
    assert!(is_closed_silently(&mut stream).await);
    let mut stream = served.connect().await;
    ask(&mut stream).await;
    pass(REST).await;
    served.stop.send_replace(Stop::StopAccepting);
    assert!(is_closed_silently(&mut stream).await);
    served.ends().await;
}

#[tokio::test]
async fn a_stray_line_end_behind_a_request_is_no_request() {
    let limits = Limits { header_timeout: SHORT, ..LIMITS };
    let served = serve(Settings { limits, ..settings() });
    let mut stream = served.connect().await;
    ask(&mut stream).await;
    stream.write_all(b"\r\n").await.unwrap();
    assert!(is_closed_silently(&mut stream).await);
}

#[tokio::test]
async fn a_handler_may_take_longer_than_the_idle_time() {
    let limits = Limits { header_timeout: SHORT / 4, idle_timeout: SHORT / 4, ..LIMITS };
    let served = start(bind(Settings { limits, ..settings() }, Permits::new(10)), |_, _| async {
        tokio::time::sleep(SHORT * 2).await;
        text("late")
    });
    let mut stream = served.connect().await;
    assert!(ask(&mut stream).await.ends_with("late"));
}

#[tokio::test]
async fn an_answer_may_pause_for_longer_than_the_idle_time() {
    let limits = Limits { idle_timeout: SHORT / 4, ..LIMITS };
    let served = start(bind(Settings { limits, ..settings() }, Permits::new(10)), |_, _| async {
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            send.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
            // Longer than the watchdog's least wait, too.
            tokio::time::sleep(Duration::from_millis(1200)).await;
            send.send(Ok(Frame::data(Bytes::from_static(b"two")))).await.unwrap();
        });
        super::Response::new(BodyExt::boxed(frames_of(receive)))
    });
    let mut stream = served.connect().await;
    stream.write_all(GET_AND_CLOSE).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.contains("two") && answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let limits = Limits { idle_timeout: SHORT, ..LIMITS };
    let served = start(bind(Settings { limits, ..settings() }, Permits::new(10)), |_, _| async {
        text(vec![b'x'; 64 * 1024 * 1024])
    });
    let mut stream = served.connect().await;
    stream.write_all(GET_AND_CLOSE).await.unwrap();
    let connections = served.meters.connections.clone();
    wait_until(|| connections.get() == 1).await;
    wait_until(|| connections.get() == 0).await;
    assert!(read_all(&mut stream).await.is_err(), "a cut answer looks whole");
}

#[tokio::test]
async fn too_long_a_head_gets_431() {
    let served = serve(settings());
    let mut stream = served.connect().await;
    let head = format!("GET / HTTP/1.1\r\nhost: a.example\r\nx: {}\r\n\r\n", "y".repeat(40 * 1024));
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_all(&mut stream).await.unwrap().starts_with("HTTP/1.1 431 "));
    let many = "x: y\r\n".repeat(200);
    let mut stream = served.connect().await;
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: a.example\r\n{many}\r\n").as_bytes()).await.unwrap();
    assert!(read_all(&mut stream).await.unwrap().starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let served = start(bind(settings(), Permits::new(10)), |_, _| async {
        let mut answer = text("too large");
        answer.status = http::StatusCode::PAYLOAD_TOO_LARGE;
        answer
    });
    let mut stream = served.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 90000000\r\n\r\n").await.unwrap();
    // Megabytes, and no look at the answer before they are written: a reset would overtake it.
    for _ in 0..200 {
        stream.write_all(&[b'x'; 65536]).await.expect("the server still listens");
    }
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

// ---- One request after the other ----

/// Echoes a body that it has read, and leaves another alone.
async fn echo(request: super::Request, _: Arc<Peer>) -> Answer {
    let path = request.head.uri.path().to_owned();
    match path.as_str() {
        "/unread" => text(path),
        _ => match request.body.collect().await {
            Ok(body) => text([path.as_bytes(), b" ", &body.to_bytes()].concat()),
            Err(error) => text(format!("{path} {error}")),
        },
    }
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a.example\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn requests_that_come_at_once_are_answered_in_their_order_however_many() {
    let served = start(bind(settings(), Permits::new(10)), echo);
    let mut stream = served.connect().await;
    let chunked = "POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx: y\r\n\r\n";
    let sent: String = (0..50).map(|number| format!("{}{chunked}\r\n", post("/p", &number.to_string()))).collect();
    stream.write_all(sent.as_bytes()).await.unwrap();
    for number in 0..50 {
        assert!(read_answer(&mut stream).await.ends_with(&format!("/p {number}")));
        assert!(read_answer(&mut stream).await.ends_with("/c hi"));
    }
}

#[tokio::test]
async fn a_body_that_nobody_wanted_is_passed_over_or_ends_the_connection_and_is_never_a_request() {
    let served = start(bind(settings(), Permits::new(10)), echo);
    let hidden = post("/hidden", "");
    let mut stream = served.connect().await;
    stream.write_all([post("/unread", &hidden), post("/next", "x")].concat().as_bytes()).await.unwrap();
    assert!(read_answer(&mut stream).await.ends_with("/unread"));
    assert!(read_answer(&mut stream).await.ends_with("/next x"));
    // Its end has not come when it is answered.
    let mut stream = served.connect().await;
    let cut = post("/unread", &format!("{hidden}..."));
    stream.write_all(&cut.as_bytes()[..cut.len() - 3]).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("/unread"), "{answer}");
    // Nor is it asked for.
    let mut stream = served.connect().await;
    let waits =
        format!("POST /unread HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n{hidden}");
    stream.write_all(waits.as_bytes()).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("/unread"), "{answer}");
}

#[tokio::test]
async fn a_body_that_is_asked_for_is_sent_behind_the_word_and_one_that_has_come_needs_none() {
    let served = start(bind(settings(), Permits::new(10)), echo);
    let head = "POST /p HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    let mut stream = served.connect().await;
    for _ in 0..2 {
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut word = [0; 25];
        timeout(PATIENCE, stream.read_exact(&mut word)).await.unwrap().unwrap();
        assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"hi").await.unwrap();
        assert!(read_answer(&mut stream).await.ends_with("/p hi"));
    }
    stream.write_all(format!("{head}ho").as_bytes()).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_old_client_is_kept_where_it_asks_for_it_and_told_so() {
    let served = serve(settings());
    let mut stream = served.connect().await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
        assert!(read_answer(&mut stream).await.contains("connection: keep-alive\r\n"));
    }
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(read_all(&mut stream).await.unwrap().contains("connection: close\r\n"));
}

#[tokio::test]
async fn a_long_body_arrives_whole_in_the_clear_and_over_tls_however_it_is_cut() {
    let authority = Authority::new("server ca");
    let config = Arc::new(client(&authority, &[], None));
    let clear = start(bind(settings(), Permits::new(10)), echo);
    let tls =
        start(bind(with_tls(without_clients(vec![authority.issue("a.example").files()])), Permits::new(10)), echo);
    for length in [1, 1000, 8 * 1024, 31 * 1024, 33 * 1024, 300 * 1024] {
        let body: String = (0..length).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        let whole = post("/p", &body);
        for cut in [1, 70, 4000, 1 << 20] {
            let mut streams: [Box<dyn Stream>; 2] = [
                Box::new(clear.connect().await),
                Box::new(connect_tls(tls.address(), &config, "a.example").await.unwrap()),
            ];
            for stream in &mut streams {
                let (first, rest) = whole.as_bytes().split_at(cut.min(whole.len()));
                stream.write_all(first).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
                stream.write_all(rest).await.unwrap();
                stream.flush().await.unwrap();
                let mut answer = vec![0; 64];
                let mut got = timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
                assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{length} {cut}");
                while !answer[..got].ends_with(&body.as_bytes()[body.len().saturating_sub(40)..]) || got < length {
                    answer.resize(got + 4096, 0);
                    got += timeout(PATIENCE, stream.read(&mut answer[got..])).await.unwrap().unwrap();
                }
                assert!(answer[..got].ends_with(body.as_bytes()), "{length} {cut}");
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[tokio::test]
async fn the_body_of_a_request_that_was_answered_reads_nothing_of_the_next() {
    let (keep, mut kept) = mpsc::channel(2);
    let served = start(bind(settings(), Permits::new(10)), move |request: super::Request, _| {
        let path = request.head.uri.path().to_owned();
        // The first one is read later than it should be.
        keep.try_send(request.body).unwrap();
        async { text(path) }
    });
    let mut stream = served.connect().await;
    stream.write_all([post("/one", "first"), post("/two", "second")].concat().as_bytes()).await.unwrap();
    assert!(read_answer(&mut stream).await.ends_with("/one"));
    assert!(read_answer(&mut stream).await.ends_with("/two"));
    let late = kept.recv().await.unwrap();
    assert!(http_body::Body::is_end_stream(&late));
    assert!(late.collect().await.is_err());
}

#[tokio::test]
async fn a_sender_that_leaves_ends_its_handler() {
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let running = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&running);
    let served = start(bind(settings(), Permits::new(10)), move |_: super::Request, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&counted));
        async move {
            pending::<()>().await;
            drop(running);
            text("")
        }
    });
    let mut stream = served.connect().await;
    stream.write_all(post("/p", "").as_bytes()).await.unwrap();
    wait_until(|| running.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    wait_until(|| running.load(Ordering::SeqCst) == 0 && served.meters.connections.get() == 0).await;
}

// ---- Answers and handlers that go wrong ----

#[tokio::test]
async fn an_answer_that_fails_half_way_never_ends_cleanly() {
    let served = start(bind(settings(), Permits::new(10)), |_, _| async {
        // A pause between the two, so that the beginning is on the wire before the failure.
        let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        tokio::spawn(async move {
            send.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
            tokio::time::sleep(SHORT).await;
            let _ = send.send(Err(std::io::Error::other("cut"))).await;
        });
        super::Response::new(BodyExt::boxed(frames_of(receive)))
    });
    for request in [GET, b"GET / HTTP/1.0\r\nhost: a.example\r\n\r\n"] {
        let mut stream = served.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("half") && !answer.contains("\r\n0\r\n"), "{answer}");
    }
    let (mut send, _connection) = http2(served.connect().await).await;
    let answer = send.send_request(get()).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
}

/// A body out of a channel.
fn frames_of(
    receive: mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>,
) -> impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send + Sync {
    struct Channel(mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>);
    impl http_body::Body for Channel {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            self.0.poll_recv(cx)
        }
    }
    Channel(receive)
}

#[tokio::test]
async fn a_panic_in_a_handler_costs_one_connection() {
    let permits = Permits::new(1);
    let served = start(bind(settings(), permits), |request: super::Request, peer| async move {
        assert!(request.head.uri.path() != "/panic", "as asked");
        describe(request, peer).await
    });
    for _ in 0..3 {
        let mut stream = served.connect().await;
        stream.write_all(b"GET /panic HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        assert!(is_closed_silently(&mut stream).await);
    }
    let mut stream = served.connect().await;
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(served.meters.connections.get(), 1);
}

async fn wait_until(condition: impl Fn() -> bool) {
    let looking = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("it comes true");
}

// ---- HTTP/2 ----

#[tokio::test]
async fn http2_with_prior_knowledge_works_in_the_clear() {
    let served = serve(settings());
    let (mut send, _connection) = http2(served.connect().await).await;
    let answer = send.send_request(get()).await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    assert!(body_of(answer).await.starts_with("HTTP/2.0 0 from=127.0.0.1:"));
}

#[tokio::test]
async fn a_preface_in_pieces_is_still_http2() {
    let served = serve(settings());
    let mut stream = served.connect().await;
    stream.set_nodelay(true).unwrap();
    for byte in super::transport::HTTP2_PREFACE {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut frame = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[3], 4, "not a SETTINGS frame: {frame:?}");
}

#[tokio::test]
async fn an_http2_head_that_does_not_end_is_closed() {
    let served = serve(Settings { limits: Limits { header_timeout: SHORT, ..LIMITS }, ..settings() });
    let settings_frame = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS of one byte, END_STREAM, and no END_HEADERS; then HEADERS that promise more than comes.
    for begun in [&[0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82][..], &[0, 0, 9, 1, 5, 0, 0, 0, 1, 0x82]] {
        let mut stream = served.connect().await;
        stream.write_all(super::transport::HTTP2_PREFACE).await.unwrap();
        stream.write_all(&settings_frame).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes");
    }
}

#[tokio::test]
async fn an_idle_http2_connection_is_told_to_go_away() {
    let served = serve(Settings { limits: Limits { idle_timeout: SHORT, ..LIMITS }, ..settings() });
    let (mut send, connection) = http2(served.connect().await).await;
    body_of(send.send_request(get()).await.unwrap()).await;
    timeout(PATIENCE, connection).await.expect("the server closes").unwrap().expect("with a word");
}

#[tokio::test]
async fn no_more_streams_than_allowed_are_handled_at_once() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let limits = Limits { max_concurrent_streams: 3, ..LIMITS };
    let handler = {
        let most = Arc::clone(&most);
        move |_: super::Request, _| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                text("")
            }
        }
    };
    let served = start(bind(Settings { limits, ..settings() }, Permits::new(10)), handler);
    let (mut send, _connection) = http2(served.connect().await).await;
    // From now on the client knows the limit, and keeps to it; one that does not has its streams refused.
    send.send_request(get()).await.unwrap();
    let mut asked = Vec::new();
    for _ in 0..20 {
        let mut send = send.clone();
        asked.push(tokio::spawn(async move { send.send_request(get()).await.unwrap().status() }));
    }
    for answer in asked {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

// ---- TLS ----

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

struct Issued {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, |_| {})
    }

    fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    fn revoke(&self, serial: u64, next_update: i32) -> Vec<u8> {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap().into_bytes()
    }
}

impl Issued {
    fn files(&self) -> CertifiedKeyFiles {
        CertifiedKeyFiles {
            label: "server.pem".to_owned(),
            chain: self.certificate.pem().into_bytes(),
            key: Secret::new(self.key.serialize_pem().into_bytes()),
        }
    }
}

fn without_clients(certificates: Vec<CertifiedKeyFiles>) -> tls::Settings {
    tls::Settings { certificates, client_ca: None, client_auth: ClientAuth::None, client_crl: None }
}

fn with_tls(tls: tls::Settings) -> Settings {
    Settings { tls: Some(Arc::new(Tls::build(tls).unwrap())), ..settings() }
}

fn client(authority: &Authority, alpn: &[&str], identity: Option<&Issued>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
            builder.with_client_auth_cert(vec![identity.certificate.der().clone()], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn connect_tls(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::clone(config)).connect(ServerName::try_from(name).unwrap(), tcp).await
}

/// In TLS 1.3 a client learns only behind its own handshake that its certificate was refused.
async fn ask_tls(served: &Served, config: ClientConfig, name: &'static str) -> std::io::Result<String> {
    let mut stream = connect_tls(served.address(), &Arc::new(config), name).await?;
    stream.write_all(GET_AND_CLOSE).await?;
    read_all(&mut stream).await
}

#[tokio::test]
async fn alpn_chooses_the_protocol() {
    let authority = Authority::new("server ca");
    let served = serve(with_tls(without_clients(vec![authority.issue("a.example").files()])));
    for alpn in [&["http/1.1"][..], &[]] {
        let answer = ask_tls(&served, client(&authority, alpn, None), "a.example").await.unwrap();
        assert!(answer.contains("HTTP/1.1 0 "), "{answer}");
    }
    let config = Arc::new(client(&authority, &["h2", "http/1.1"], None));
    let (mut send, _connection) = http2(connect_tls(served.address(), &config, "a.example").await.unwrap()).await;
    assert!(body_of(send.send_request(get()).await.unwrap()).await.starts_with("HTTP/2.0 "));
    let unknown = client(&authority, &["spdy/3"], None);
    assert!(ask_tls(&served, unknown, "a.example").await.is_err());
    assert_eq!(served.meters.handshakes_ok.get(), 3);
    assert_eq!(served.meters.handshakes_failed.get(), 1);
}

#[tokio::test]
async fn the_cheapest_suite_is_spoken_whatever_the_client_names_first_and_the_longest_where_it_names_nothing_else() {
    use rustls::crypto::aws_lc_rs::cipher_suite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 as SHORT_12, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 as LONG_12,
        TLS13_AES_128_GCM_SHA256 as SHORT_13, TLS13_AES_256_GCM_SHA384 as LONG_13,
    };
    let authority = Authority::new("server ca");
    let served = serve(with_tls(without_clients(vec![authority.issue("a.example").files()])));
    for (version, offered, spoken) in [
        (&rustls::version::TLS13, vec![LONG_13, SHORT_13], SHORT_13),
        (&rustls::version::TLS13, vec![LONG_13], LONG_13),
        (&rustls::version::TLS12, vec![LONG_12, SHORT_12], SHORT_12),
        (&rustls::version::TLS12, vec![LONG_12], LONG_12),
    ] {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).unwrap();
        let provider =
            rustls::crypto::CryptoProvider { cipher_suites: offered, ..rustls::crypto::aws_lc_rs::default_provider() };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = connect_tls(served.address(), &Arc::new(config), "a.example").await.unwrap();
        assert_eq!(stream.get_ref().1.negotiated_cipher_suite().unwrap().suite(), spoken.suite());
    }
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate_and_the_first_is_the_default() {
    let authority = Authority::new("server ca");
    let certificates = ["a.example", "*.b.example", "c.b.example"].map(|name| authority.issue(name).files());
    let served = serve(with_tls(without_clients(certificates.into())));
    let config = || client(&authority, &[], None);
    let first = ask_tls(&served, config(), "a.example").await.unwrap();
    assert!(first.contains("tls=a.example client=none serves-a=true serves-b=false"), "{first}");
    let wildcard = ask_tls(&served, config(), "x.b.example").await.unwrap();
    assert!(wildcard.contains("tls=x.b.example client=none serves-a=false serves-b=true"), "{wildcard}");
    let exact = ask_tls(&served, config(), "c.b.example").await.unwrap();
    assert!(exact.contains("tls=c.b.example client=none serves-a=false serves-b=false"), "{exact}");
    // The default certificate is not good for this name, as its client finds out.
    assert!(ask_tls(&served, config(), "other.example").await.is_err());
}

#[tokio::test]
async fn the_end_of_the_last_answer_is_a_close_notify() {
    let authority = Authority::new("server ca");
    let served = serve(with_tls(without_clients(vec![authority.issue("a.example").files()])));
    // `read_all` fails with UnexpectedEof on a connection that was cut.
    assert!(ask_tls(&served, client(&authority, &[], None), "a.example").await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_closed() {
    let authority = Authority::new("server ca");
    let tls = with_tls(without_clients(vec![authority.issue("a.example").files()]));
    let served = serve(Settings { limits: Limits { handshake_timeout: SHORT, ..LIMITS }, ..tls });
    for part in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = served.connect().await;
        stream.write_all(part).await.unwrap();
        assert!(is_closed_silently(&mut stream).await);
    }
    assert_eq!(served.meters.handshakes_timed_out.get(), 2);
}

#[tokio::test]
async fn an_http2_client_that_never_sends_its_preface_is_closed() {
    let authority = Authority::new("server ca");
    let tls = with_tls(without_clients(vec![authority.issue("a.example").files()]));
    let served = serve(Settings { limits: Limits { header_timeout: SHORT, ..LIMITS }, ..tls });
    let config = Arc::new(client(&authority, &["h2"], None));
    let mut stream = connect_tls(served.address(), &config, "a.example").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes");
}

struct ClientSide {
    server: Authority,
    clients: Authority,
    good: Issued,
    foreign: Issued,
    expired: Issued,
    revoked: Issued,
}

impl ClientSide {
    fn new() -> Self {
        let clients = Authority::new("client ca");
        Self {
            server: Authority::new("server ca"),
            good: clients.issue_with("good.example", |params| params.serial_number = Some(SerialNumber::from(1))),
            revoked: clients
                .issue_with("revoked.example", |params| params.serial_number = Some(SerialNumber::from(66))),
            expired: clients.issue_with("expired.example", |params| params.not_after = date_time_ymd(2020, 1, 1)),
            foreign: Authority::new("client ca").issue("good.example"),
            clients,
        }
    }

    fn tls(&self, client_auth: ClientAuth, client_crl: Option<Vec<u8>>) -> tls::Settings {
        tls::Settings {
            certificates: vec![self.server.issue("a.example").files()],
            client_ca: Some(self.clients.certificate.pem().into_bytes()),
            client_auth,
            client_crl,
        }
    }

    async fn ask(&self, served: &Served, identity: Option<&Issued>) -> std::io::Result<String> {
        ask_tls(served, client(&self.server, &[], identity), "a.example").await
    }
}

#[tokio::test]
async fn a_bad_client_certificate_fails_the_handshake_whether_requested_or_required() {
    let side = ClientSide::new();
    for client_auth in [ClientAuth::Request, ClientAuth::Require] {
        let served = serve(with_tls(side.tls(client_auth, Some(side.clients.revoke(66, 4000)))));
        let answer = side.ask(&served, Some(&side.good)).await.unwrap();
        assert!(answer.contains("client=good.example "), "{answer}");
        for (bad, who) in [(&side.foreign, "foreign"), (&side.expired, "expired"), (&side.revoked, "revoked")] {
            assert!(side.ask(&served, Some(bad)).await.is_err(), "{client_auth:?} takes a {who} certificate");
        }
        assert_eq!(served.meters.handshakes_failed.get(), 3);
        let none = side.ask(&served, None).await;
        match client_auth {
            ClientAuth::Request => assert!(none.unwrap().contains("client=none ")),
            _ => assert!(none.is_err()),
        }
    }
}

#[tokio::test]
async fn revocation_fails_closed() {
    let side = ClientSide::new();
    // Of another CA: nothing is known of ours.
    let foreign = serve(with_tls(side.tls(ClientAuth::Require, Some(Authority::new("else").revoke(66, 4000)))));
    assert!(side.ask(&foreign, Some(&side.good)).await.is_err());
    // Past its nextUpdate.
    let stale = serve(with_tls(side.tls(ClientAuth::Require, Some(side.clients.revoke(66, 2021)))));
    assert!(side.ask(&stale, Some(&side.good)).await.is_err());
    // An intermediate's own list is missing: what it signed cannot be looked up.
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &side.clients.issuer).unwrap();
    let intermediate = Authority { issuer: Issuer::new(params, key), certificate };
    let leaf = intermediate.issue("leaf.example");
    let config = || {
        let mut config = client(&side.server, &[], None);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        let chain = vec![leaf.certificate.der().clone(), intermediate.certificate.der().clone()];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = rustls::sign::CertifiedKey::from_der(chain, key, &provider).unwrap();
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        config
    };
    let mut lists = side.clients.revoke(66, 4000);
    let without = serve(with_tls(side.tls(ClientAuth::Require, Some(lists.clone()))));
    assert!(ask_tls(&without, config(), "a.example").await.is_err());
    lists.extend(intermediate.revoke(66, 4000));
    let with = serve(with_tls(side.tls(ClientAuth::Require, Some(lists))));
    assert!(ask_tls(&with, config(), "a.example").await.unwrap().contains("client=leaf.example "));
}

/// Talks until session tickets must have come, and tells how the handshake went.
async fn handshake_kind(served: &Served, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut stream = connect_tls(served.address(), config, "a.example").await.unwrap();
    stream.write_all(GET_AND_CLOSE).await.unwrap();
    read_all(&mut stream).await.unwrap();
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn a_session_ends_with_the_configuration_that_made_it() {
    let authority = Authority::new("server ca");
    let issued = authority.issue("a.example");
    let served = serve(with_tls(without_clients(vec![issued.files()])));
    let config = Arc::new(client(&authority, &[], None));
    assert_eq!(handshake_kind(&served, &config).await, HandshakeKind::Full);
    assert_eq!(handshake_kind(&served, &config).await, HandshakeKind::Resumed);
    served.listener.update(with_tls(without_clients(vec![issued.files()])));
    assert_eq!(handshake_kind(&served, &config).await, HandshakeKind::Full);
}

#[tokio::test]
async fn a_client_that_asks_nothing_gets_its_session_ticket_all_the_same() {
    let authority = Authority::new("server ca");
    let served = serve(with_tls(without_clients(vec![authority.issue("a.example").files()])));
    let config = Arc::new(client(&authority, &[], None));
    let mut stream = connect_tls(served.address(), &config, "a.example").await.unwrap();
    timeout(PATIENCE, async {
        while stream.get_ref().1.tls13_tickets_received() == 0 {
            // Nothing else ever comes, so this only looks.
            let _ = timeout(SHORT, stream.read(&mut [0; 8])).await;
        }
    })
    .await
    .unwrap();
    // And is served as if nothing had been.
    stream.write_all(GET_AND_CLOSE).await.unwrap();
    assert!(read_all(&mut stream).await.unwrap().contains("HTTP/1.1 0 "));
}

#[tokio::test]
async fn whoever_has_asked_all_gets_the_session_ticket_with_the_answer_and_is_not_woken_before() {
    let authority = Authority::new("server ca");
    let settings = with_tls(without_clients(vec![authority.issue("a.example").files()]));
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let served = start(bind(settings, Permits::new(8)), {
        let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
        move |_, _| {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            async move {
                // The connection has had turns in which it waited.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                begun.notify_one();
                go.notified().await;
                text("done")
            }
        }
    });
    let config = Arc::new(client(&authority, &[], None));
    let mut session = rustls::ClientConnection::new(config, "a.example".try_into().unwrap()).unwrap();
    // Said before the handshake has ended, so it goes with its last words.
    Write::write_all(&mut session.writer(), GET_AND_CLOSE).unwrap();
    let mut stream = TcpStream::connect(served.address()).await.unwrap();
    let mut answer = [0; 256];
    let mut read = 0;
    let mut was_asked = false;
    while read == 0 {
        let mut out = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut out).unwrap();
        }
        stream.write_all(&out).await.unwrap();
        if !session.is_handshaking() && !std::mem::replace(&mut was_asked, true) {
            timeout(PATIENCE, begun.notified()).await.unwrap();
            let socket = stream.into_std().unwrap();
            assert_eq!(socket.peek(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            stream = TcpStream::from_std(socket).unwrap();
            go.notify_one();
        }
        let mut came = Vec::new();
        assert!(timeout(PATIENCE, stream.read_buf(&mut came)).await.unwrap().unwrap() > 0);
        session.read_tls(&mut &came[..]).unwrap();
        session.process_new_packets().unwrap();
        read = Read::read(&mut session.reader(), &mut answer).unwrap_or(0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    assert_eq!(session.tls13_tickets_received(), 1);
}

#[tokio::test]
async fn no_session_carries_a_clients_identity() {
    let side = ClientSide::new();
    let served = serve(with_tls(side.tls(ClientAuth::Request, None)));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(side.server.certificate.der().clone()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(side.good.key.serialize_der()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![side.good.certificate.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        assert_eq!(handshake_kind(&served, &config).await, HandshakeKind::Full);
        assert_eq!(handshake_kind(&served, &config).await, HandshakeKind::Full);
    }
}

#[tokio::test]
async fn a_reload_shows_the_new_certificate_and_forgets_the_old_ca() {
    let side = ClientSide::new();
    let served = serve(with_tls(side.tls(ClientAuth::Require, None)));
    let config = Arc::new(client(&side.server, &[], Some(&side.good)));
    let mut open = connect_tls(served.address(), &config, "a.example").await.unwrap();
    assert!(ask(&mut open).await.contains("client=good.example "));
    let mut next = side.tls(ClientAuth::Require, None);
    next.client_ca = Some(Authority::new("other ca").certificate.pem().into_bytes());
    next.certificates =
        vec![side.server.issue_with("a.example", |params| params.not_after = date_time_ymd(3000, 1, 1)).files()];
    served.listener.update(with_tls(next));
    assert_eq!(
        served.meters.certificate_expiry.with_label_values(&["public"]).get(),
        date_time_ymd(3000, 1, 1).unix_timestamp()
    );
    assert!(ask_tls(&served, (*config).clone(), "a.example").await.is_err());
    // Who was let in on the old CA's word is told to go.
    assert_eq!(read_all(&mut open).await.unwrap(), "");
}

/// Each differs from the first in one thing that peers are judged by.
fn judged_otherwise(side: &ClientSide) -> Vec<(&'static str, Settings)> {
    let base = || side.tls(ClientAuth::Request, Some(side.clients.revoke(66, 4000)));
    let tls = |change: fn(&mut tls::Settings, &ClientSide)| {
        let mut settings = base();
        change(&mut settings, side);
        with_tls(settings)
    };
    vec![
        ("client_ca", tls(|tls, _| tls.client_ca = Some(Authority::new("other").certificate.pem().into_bytes()))),
        ("client_crl", tls(|tls, side| tls.client_crl = Some(side.clients.revoke(1, 4000)))),
        ("no client_crl", tls(|tls, _| tls.client_crl = None)),
        ("client_auth", tls(|tls, _| tls.client_auth = ClientAuth::Require)),
        ("trusted_proxies", Settings { trusted_proxies: loopback(), ..with_tls(base()) }),
        ("proxy_protocol", Settings { proxy_protocol: true, trusted_proxies: loopback(), ..with_tls(base()) }),
        ("no tls", settings()),
    ]
}

#[tokio::test]
async fn a_client_stays_connected_until_a_reload_changes_what_it_was_judged_by() {
    let side = ClientSide::new();
    let list = side.clients.revoke(66, 4000);
    let ca = side.clients.certificate.pem().into_bytes();
    // The files as they were, read again, and a renewed certificate of the server's.
    let same = || {
        let mut tls = side.tls(ClientAuth::Request, Some(list.clone()));
        tls.client_ca = Some(ca.clone());
        with_tls(tls)
    };
    for (what, next) in judged_otherwise(&side) {
        let served = serve(same());
        let config = Arc::new(client(&side.server, &["http/1.1"], Some(&side.good)));
        let mut one = connect_tls(served.address(), &config, "a.example").await.unwrap();
        assert!(ask(&mut one).await.contains("client=good.example "));
        let config = Arc::new(client(&side.server, &["h2"], Some(&side.good)));
        let (mut two, connection) = http2(connect_tls(served.address(), &config, "a.example").await.unwrap()).await;
        body_of(two.send_request(get()).await.unwrap()).await;

        served.listener.update(same());
        served.listener.update(Settings { limits: Limits { max_header_bytes: 9000, ..LIMITS }, ..same() });
        let answer = ask(&mut one).await;
        assert!(answer.contains("client=good.example ") && !answer.contains("connection: close"), "{what}: {answer}");
        body_of(two.send_request(get()).await.unwrap()).await;

        served.listener.update(next);
        assert_eq!(read_all(&mut one).await.unwrap(), "", "{what}");
        timeout(PATIENCE, connection).await.expect("GOAWAY, and the end").unwrap().unwrap();
        assert!(two.send_request(get()).await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn what_is_in_flight_when_peers_are_judged_anew_is_answered_and_nothing_behind_it() {
    let (entered, mut entries) = mpsc::channel(2);
    let (release, released) = watch::channel(false);
    let served = start(bind(settings(), Permits::new(3)), move |_, _| {
        let (entered, mut released) = (entered.clone(), released.clone());
        async move {
            entered.send(()).await.unwrap();
            released.wait_for(|released| *released).await.unwrap();
            text("done")
        }
    });
    let mut one = served.connect().await;
    // The second is there before the first is answered.
    one.write_all(&[GET, GET].concat()).await.unwrap();
    entries.recv().await.unwrap();
    let (mut two, connection) = http2(served.connect().await).await;
    let in_flight = tokio::spawn(async move { two.send_request(get()).await });
    entries.recv().await.unwrap();
    served.listener.update(Settings { trusted_proxies: loopback(), ..settings() });
    release.send(true).unwrap();
    let answer = read_all(&mut one).await.unwrap();
    assert!(answer.ends_with("done") && answer.contains("connection: close"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert_eq!(body_of(in_flight.await.unwrap().unwrap()).await, "done");
    timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    // Whoever connects now stays.
    let mut fresh = served.connect().await;
    assert!(!ask(&mut fresh).await.contains("connection: close"));
    ask(&mut fresh).await;
}

/// Sends GET / on a stream of its own and waits for what becomes of it: an answer, or the code of its reset.
async fn raw_stream(io: &mut TcpStream, stream: u32) -> Result<(), u32> {
    // Static indices for GET, http and /; then :authority, literal.
    let head = b"\x82\x86\x84\x41\x09a.example";
    let length = u32::try_from(head.len()).unwrap().to_be_bytes();
    let id = stream.to_be_bytes();
    io.write_all(&[&length[1..], &[1, 5], &id, head].concat()).await.unwrap();
    loop {
        let mut frame = [0; 9];
        io.read_exact(&mut frame).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        match (frame[3], u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) == stream) {
            (1, true) => return Ok(()),
            (3, true) => return Err(u32::from_be_bytes(payload.try_into().unwrap())),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_http2_client_that_does_not_hear_goaway_is_refused_all_the_same() {
    const REFUSED_STREAM: u32 = 7;
    let served = serve(settings());
    let mut io = served.connect().await;
    // Neither our settings nor our ping is acknowledged.
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    raw_stream(&mut io, 1).await.unwrap();
    served.listener.update(Settings { trusted_proxies: loopback(), ..settings() });
    let refused = async {
        let mut stream = 3;
        while raw_stream(&mut io, stream).await.is_ok() {
            stream += 2;
            tokio::time::sleep(SHORT / 4).await;
        }
        raw_stream(&mut io, stream + 2).await
    };
    assert_eq!(timeout(PATIENCE, refused).await.expect("it is refused in the end"), Err(REFUSED_STREAM));
    // With nothing in flight, the connection goes too.
    let meters = served.meters.clone();
    wait_until(|| meters.connections.get() == 0).await;
}

fn refusal(settings: tls::Settings) -> TlsError {
    Tls::build(settings).err().expect("refused")
}

#[test]
fn says_what_is_wrong_with_certificates_and_keys() {
    let authority = Authority::new("ca");
    let (one, other) = (authority.issue("a.example"), authority.issue("a.example"));
    let label = || "server.pem".to_owned();
    assert_eq!(refusal(without_clients(vec![])), TlsError::NoCertificate);
    let mismatched = CertifiedKeyFiles { key: other.files().key, ..one.files() };
    assert_eq!(refusal(without_clients(vec![mismatched])), TlsError::KeyMismatch { label: label() });
    let swapped = CertifiedKeyFiles { key: Secret::new(one.files().chain), ..one.files() };
    assert_eq!(refusal(without_clients(vec![swapped])), TlsError::Key { label: label() });
    for chain in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x82"] {
        let empty = CertifiedKeyFiles { chain: chain.to_vec(), ..one.files() };
        assert!(matches!(refusal(without_clients(vec![empty])), TlsError::Certificate { .. }));
    }
    let with = |client_auth, client_ca: Option<&[u8]>, client_crl: Option<&[u8]>| tls::Settings {
        certificates: vec![one.files()],
        client_ca: client_ca.map(<[u8]>::to_vec),
        client_auth,
        client_crl: client_crl.map(<[u8]>::to_vec),
    };
    let ca = authority.certificate.pem().into_bytes();
    assert_eq!(refusal(with(ClientAuth::Request, None, None)), TlsError::NoClientCa);
    assert_eq!(refusal(with(ClientAuth::None, Some(&ca), None)), TlsError::ClientCaUnused);
    assert!(matches!(refusal(with(ClientAuth::Require, Some(b"no PEM"), None)), TlsError::ClientCa(_)));
    for crl in [&b"nonsense"[..], &ca] {
        assert!(matches!(refusal(with(ClientAuth::Require, Some(&ca), Some(crl))), TlsError::ClientCrl(_)));
    }
    assert!(Tls::build(with(ClientAuth::Require, Some(&ca), Some(&authority.revoke(1, 4000)))).is_ok());
}

#[test]
fn warns_of_what_ends_soon_or_has_ended() {
    let authority = Authority::new("ca");
    let end = date_time_ymd(2030, 6, 15);
    let issued = authority.issue_with("a.example", |params| params.not_after = end);
    let tls = Tls::build(without_clients(vec![authority.issue("b.example").files(), issued.files()])).unwrap();
    assert_eq!(tls.not_after(), end.unix_timestamp());
    assert!(tls.served().any(|served| served.serves("b.example")));
    let warnings = |year, month, day| {
        tls.warnings(UnixMillis::from_secs(u64::try_from(date_time_ymd(year, month, day).unix_timestamp()).unwrap()))
    };
    assert!(warnings(2030, 5, 30).is_empty());
    assert!(warnings(2030, 6, 5)[0].contains("expires in 10 days"));
    assert!(warnings(2030, 6, 16)[0].contains("expired 1 days ago"));
}

// ---- PROXY protocol and permits ----

#[tokio::test]
async fn a_proxy_header_names_the_client_in_the_clear_and_before_tls() {
    let authority = Authority::new("server ca");
    let plain = Settings { proxy_protocol: true, trusted_proxies: loopback(), ..settings() };
    let encrypted = Settings {
        proxy_protocol: true,
        trusted_proxies: loopback(),
        ..with_tls(without_clients(vec![authority.issue("a.example").files()]))
    };
    let (plain, encrypted) = (serve(plain), serve(encrypted));
    let v1 = b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 4000 443\r\n".to_vec();
    let mut v2 = ppp::v2::PROTOCOL_PREFIX.to_vec();
    v2.extend([0x21, 0x11, 0, 12, 192, 0, 2, 7, 192, 0, 2, 1, 0x0f, 0xa0, 1, 187]);
    for (header, local) in [(v1, "[2001:db8::1]:443"), (v2, "192.0.2.1:443")] {
        let expected = format!("from=192.0.2.7:4000 to={local}");
        let mut stream = plain.connect().await;
        // In one segment: nothing behind the header may be lost.
        stream.write_all(&[&header, GET_AND_CLOSE].concat()).await.unwrap();
        let answer = read_all(&mut stream).await.unwrap();
        assert!(answer.contains(&expected), "{answer}");

        let mut tcp = encrypted.connect().await;
        tcp.write_all(&header).await.unwrap();
        let config = Arc::new(client(&authority, &[], None));
        let name = ServerName::try_from("a.example").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        stream.write_all(GET_AND_CLOSE).await.unwrap();
        let answer = read_all(&mut stream).await.unwrap();
        assert!(answer.contains(&expected), "{answer}");
    }
}

#[tokio::test]
async fn a_balancer_that_speaks_for_itself_keeps_its_own_address() {
    let served = serve(Settings { proxy_protocol: true, trusted_proxies: loopback(), ..settings() });
    let mut local = ppp::v2::PROTOCOL_PREFIX.to_vec();
    local.extend([0x20, 0, 0, 0]);
    let mut stream = served.connect().await;
    stream.write_all(&[&local, GET_AND_CLOSE].concat()).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.contains("from=127.0.0.1:"), "{answer}");
}

#[tokio::test]
async fn a_proxy_header_is_required_exact_in_time_and_from_whom_we_trust() {
    let limits = Limits { handshake_timeout: SHORT, ..LIMITS };
    let trusting = serve(Settings { proxy_protocol: true, trusted_proxies: loopback(), limits, ..settings() });
    for bad in [GET, b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 +443\r\n", b"PROXY TCP4 192.0", b""] {
        let mut stream = trusting.connect().await;
        stream.write_all(bad).await.unwrap();
        assert!(is_closed_silently(&mut stream).await);
    }
    assert_eq!(trusting.meters.refused_connections.get(), 4);

    let elsewhere: Arc<[ipnet::IpNet]> = Arc::new(["192.0.2.0/24".parse().unwrap()]);
    let distrusting = serve(Settings { proxy_protocol: true, trusted_proxies: elsewhere, ..settings() });
    let mut stream = distrusting.connect().await;
    // The connection may be gone before this is written.
    let _ = stream.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\r\n").await;
    assert!(is_closed_silently(&mut stream).await);
    assert_eq!(distrusting.meters.refused_connections.get(), 1);
}

#[tokio::test]
async fn a_client_has_its_share_of_connections_and_a_trusted_proxy_has_no_share() {
    let limits = Limits { max_connections_per_client: 2, ..LIMITS };
    let served = serve(Settings { limits, ..settings() });
    let (mut one, mut two) = (served.connect().await, served.connect().await);
    ask(&mut one).await;
    ask(&mut two).await;
    assert!(is_closed_silently(&mut served.connect().await).await);
    assert_eq!(served.meters.refused_connections.get(), 1);
    drop(one);
    let meters = served.meters.clone();
    wait_until(|| meters.connections.get() == 1).await;
    ask(&mut served.connect().await).await;

    let trusting = serve(Settings { limits, trusted_proxies: loopback(), ..settings() });
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut stream = trusting.connect().await;
        assert!(ask(&mut stream).await.contains("from="));
        open.push(stream);
    }
}

#[tokio::test]
async fn behind_a_proxy_the_clients_share_is_its_own() {
    let limits = Limits { max_connections_per_client: 1, ..LIMITS };
    let served = serve(Settings { limits, proxy_protocol: true, trusted_proxies: loopback(), ..settings() });
    let from = |client: &str| [format!("PROXY TCP4 {client} 192.0.2.1 4000 443\r\n").as_bytes(), GET].concat();
    let mut first = served.connect().await;
    first.write_all(&from("192.0.2.7")).await.unwrap();
    read_answer(&mut first).await;
    let mut again = served.connect().await;
    again.write_all(&from("192.0.2.7")).await.unwrap();
    assert!(is_closed_silently(&mut again).await);
    let mut another = served.connect().await;
    another.write_all(&from("192.0.2.8")).await.unwrap();
    read_answer(&mut another).await;
}

#[tokio::test]
async fn beyond_the_limit_in_all_a_connection_waits_its_turn_on_every_listener() {
    let permits = Permits::new(1);
    let here = start(bind(settings(), Arc::clone(&permits)), describe);
    let there = start(bind(settings(), permits), describe);
    let mut first = here.connect().await;
    ask(&mut first).await;
    let mut second = there.connect().await;
    second.write_all(GET_AND_CLOSE).await.unwrap();
    assert!(timeout(SHORT, second.read_u8()).await.is_err(), "served beyond the limit");
    drop(first);
    assert!(read_all(&mut second).await.unwrap().starts_with("HTTP/1.1 200 "));
}

// ---- Stopping ----

#[tokio::test]
async fn stopping_serves_the_backlog_and_what_is_in_flight_and_closes_what_is_idle() {
    let (entered, mut entries) = mpsc::channel(10);
    let (release, released) = watch::channel(false);
    let handler = move |request: super::Request, _: Arc<Peer>| {
        let (entered, mut released) = (entered.clone(), released.clone());
        async move {
            if request.head.uri.path() == "/slow" {
                entered.send(()).await.unwrap();
                released.wait_for(|released| *released).await.unwrap();
            }
            text("done")
        }
    };
    // Room for three, all taken: the backlog gets in as the idle one leaves.
    let served = start(bind(settings(), Permits::new(3)), handler);
    let mut idle = served.connect().await;
    ask(&mut idle).await;
    let mut busy = served.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    entries.recv().await.unwrap();
    let (mut send, connection) = http2(served.connect().await).await;
    let slow = Request::get("http://a.example/slow").body(Empty::new()).unwrap();
    let in_flight = tokio::spawn(async move { send.send_request(slow).await });
    entries.recv().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut stream = served.connect().await;
        stream.write_all(GET).await.unwrap();
        waiting.push(stream);
    }

    served.stop.send(Stop::StopAccepting).unwrap();
    assert!(is_closed_silently(&mut idle).await);
    for stream in &mut waiting {
        let answer = read_all(stream).await.unwrap();
        assert!(answer.ends_with("done") && answer.contains("connection: close"), "{answer}");
    }
    release.send(true).unwrap();
    let answer = read_all(&mut busy).await.unwrap();
    assert!(answer.ends_with("done") && answer.contains("connection: close"), "{answer}");
    assert_eq!(body_of(in_flight.await.unwrap().unwrap()).await, "done");
    timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    let address = served.address();
    served.ends().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_head_that_has_begun_when_we_stop_is_served() {
    let served = serve(settings());
    let mut stream = served.connect().await;
    ask(&mut stream).await;
    stream.write_all(&GET[..9]).await.unwrap();
    let mut other = served.connect().await;
    ask(&mut other).await;
    served.stop.send(Stop::StopAccepting).unwrap();
    assert!(is_closed_silently(&mut other).await);
    stream.write_all(&GET[9..]).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    served.ends().await;
}

#[tokio::test]
async fn stopping_does_not_wait_for_clients_that_never_asked() {
    let served = serve(settings());
    let (_send, connection) = http2(served.connect().await).await;
    let mut silent = served.connect().await;
    let meters = served.meters.clone();
    wait_until(|| meters.connections.get() == 2).await;
    served.stop.send(Stop::StopAccepting).unwrap();
    let _ = timeout(PATIENCE, connection).await.unwrap();
    assert!(is_closed_silently(&mut silent).await);
    served.ends().await;
}

#[tokio::test]
async fn a_request_on_its_way_when_we_stop_is_served() {
    let authority = Authority::new("server ca");
    let served = serve(with_tls(without_clients(vec![authority.issue("a.example").files()])));
    let config = Arc::new(client(&authority, &[], None));
    let mut stream = connect_tls(served.address(), &config, "a.example").await.unwrap();
    let meters = served.meters.clone();
    wait_until(|| meters.handshakes_ok.get() == 1).await;
    served.stop.send(Stop::StopAccepting).unwrap();
    // Until the socket is closed, the connection has certainly heard of it.
    wait_until(|| std::net::TcpStream::connect(served.address()).is_err()).await;
    stream.write_all(GET).await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    served.ends().await;
}

#[tokio::test]
async fn aborting_drops_everything() {
    let served = start(bind(settings(), Permits::new(1)), |_, _| pending::<Answer>());
    let mut busy = served.connect().await;
    busy.write_all(GET).await.unwrap();
    // One more, for which there is no room.
    let mut waiting = served.connect().await;
    waiting.write_all(GET).await.unwrap();
    let meters = served.meters.clone();
    wait_until(|| meters.connections.get() == 1).await;
    served.stop.send(Stop::StopAccepting).unwrap();
    served.stop.send(Stop::Abort).unwrap();
    assert!(is_closed_silently(&mut busy).await);
    assert!(is_closed_silently(&mut waiting).await);
    served.ends().await;
    assert_eq!(meters.connections.get(), 0);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let (listener, _) = bind(settings(), Permits::new(1));
    let again = Settings { address: listener.local_addr(), ..settings() };
    let refused = Listener::bind(again, None, Meters::unregistered(), Permits::new(1), Threads::none()).err().unwrap();
    assert!(matches!(refused, super::listen::BindError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains(&listener.local_addr().to_string()));
}

#[tokio::test]
async fn an_inherited_socket_is_served_as_it_is() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let meters = Meters::unregistered();
    let listener = Listener::bind(settings(), Some(socket), meters.clone(), Permits::new(1), Threads::none()).unwrap();
    assert_eq!(listener.local_addr(), address);
    let served = start((listener, meters), describe);
    ask(&mut served.connect().await).await;
}
