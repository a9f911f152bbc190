//! One connection, from its first byte to its last: who is it, what does it speak, and is it still worth keeping?
//!
//! One task, one future and one timer for each connection. Invariants: every state has a deadline (the PROXY header and
//! the TLS handshake, the first byte, a request's head, idleness, an answer that nobody reads, closing), and what is only
//! needed to begin (handshake state) is boxed and gone before the connection can be idle; what is only needed for requests
//! (the buffers of both directions) goes when an HTTP/1 connection has been idle for a moment, and comes back with the
//! next byte.
//!
//! One file: the connection and the watchdog that sends it to rest and ends it take turns with each other, and what one may
//! do is read from the other.
//!
//! The watchdog stands beside HTTP and not within: hyper, which speaks HTTP/2 here, has no deadline for a head that does
//! not end nor for a connection that is idle.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus::IntGauge;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::activity::{Activity, Answer, Verdict};
use super::http1;
use super::parting::{Parting, Signals};
use super::permits::{ClientPermit, Permit, Permits};
use super::proxy_protocol::{self, Header};
use super::request::{Request, Response};
use super::transport::{LINGER, Protocol, Socket, Transport, Watched};
use super::{Limits, Meters, Peer, Settings, Stop};
use crate::client::ClientKey;
use crate::clock::{self, InTurns, Turn};
use crate::threads::{self, Seat};

/// One request's body in flight may fill its window before the handler reads; bodies are small.
const STREAM_WINDOW: u32 = 64 * 1024;
/// And all of a connection's together, no more than this.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// hyper's default, 400 KiB a stream, is 40 MiB a connection. Answers to webhooks are a few bytes.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Streams reset before we accepted them (CVE-2023-44487), and streams that we reset for an error (CVE-2025-8671).
const MAX_PENDING_RESETS: usize = 20;
const MAX_ERROR_RESETS: usize = 256;
/// A ping finds the peer that vanished without a FIN, while requests of its are in flight.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// For how long, while we stop, a connection may be open before its first request begins: it was taken from the backlog,
/// and its request is on the way.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);
/// HTTP/2: a peer learns of our GOAWAY a round trip later, and what it began before is served. One that was judged by what
/// is no longer in force may not want to hear; from then on its streams are refused.
const LAST_STREAMS_GRACE: Duration = Duration::from_secs(1);

/// HTTP/1: a connection that has been idle for this long gives back its buffers. Short against the time for which senders keep
/// connections, so that those which are in use at once decide the memory and not those that are open; and long enough that
/// a busy one never is, and that another look at each open connection this often is nothing.
const PARKED_AFTER: Duration = Duration::from_millis(500);

const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A socket that has been let in.
pub(super) struct Accepted {
    pub(super) tcp: Arriving,
    pub(super) address: SocketAddr,
    /// The listener's; what it was asked by is to be looked up only where that is every address of the machine.
    pub(super) bound: SocketAddr,
    pub(super) settings: Arc<Settings>,
    pub(super) permits: Arc<Permits>,
    pub(super) permit: Permit,
    /// `None` for trusted proxies; with PROXY protocol the client is counted once it is known.
    pub(super) client: Option<ClientPermit>,
    /// Changes when what the peer is judged by is replaced.
    pub(super) judgement: watch::Receiver<()>,
    /// On the thread that serves it.
    pub(super) seat: Seat,
}

/// A socket belongs to one thread's poll: this one's, or that of the thread it is on its way to.
pub(super) enum Arriving {
    Here(TcpStream),
    Elsewhere(std::net::TcpStream),
}

impl Arriving {
    fn arrive(self) -> io::Result<TcpStream> {
        match self {
            Self::Here(tcp) => Ok(tcp),
            Self::Elsewhere(tcp) => TcpStream::from_std(tcp),
        }
    }
}

pub(super) async fn run<H, F, B>(accepted: Accepted, meters: Arc<Meters>, handler: H, stop: watch::Receiver<Stop>)
where
    H: Fn(Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Accepted { tcp, address, bound, settings, permits, permit, client, judgement, seat: _seat } = accepted;
    let signals = Signals { stop, judgement };
    let _open = Open::count(&meters.connections);
    let _permit = permit;
    let limits = settings.limits;
    // Boxed: a handshake's state is far larger than what an idle connection needs.
    let established = Box::pin(establish(tcp, (address, bound), &settings, &permits, &meters, signals.clone())).await;
    drop((settings, permits, meters));
    let Some(Established { io, protocol, peer, activity, client_behind_proxy }) = established else { return };
    let _client = client.or(client_behind_proxy);
    let service = Requests { handler, peer, activity: Arc::clone(&activity) };
    let mut http = Http::start(io, protocol, service, &limits);
    let end = watch(&mut http, &activity, &limits, signals).await;
    Box::pin(http.close(end, &activity, address)).await;
}

struct Open(IntGauge);

impl Open {
    fn count(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Established {
    io: Watched,
    protocol: Protocol,
    peer: Arc<Peer>,
    activity: Arc<Activity>,
    client_behind_proxy: Option<ClientPermit>,
}

/// From a socket to a peer that is known and a protocol that is chosen.
async fn establish(
    tcp: Arriving,
    (socket_address, bound): (SocketAddr, SocketAddr),
    settings: &Settings,
    permits: &Arc<Permits>,
    meters: &Meters,
    mut signals: Signals,
) -> Option<Established> {
    let limits = &settings.limits;
    let deadline = Instant::now() + limits.handshake_timeout;
    let mut address = socket_address;
    let tcp = tcp.arrive().ok()?;
    let mut local = canonical(if bound.ip().is_unspecified() { tcp.local_addr().ok()? } else { bound });
    let mut socket = Socket::new(tcp);
    let mut client_behind_proxy = None;
    if settings.proxy_protocol {
        match timeout_at(deadline, proxy_protocol::read(&mut socket)).await {
            Ok(Ok(Header::NoClient)) => {}
            Ok(Ok(Header::Client { source, destination })) => {
                address = canonical(source);
                local = canonical(destination);
                let key = ClientKey::of(address.ip());
                client_behind_proxy = permits.acquire_client(key, limits.max_connections_per_client);
                if client_behind_proxy.is_none() {
                    meters.refused_connections.inc();
                    tracing::debug!(%address, "refused: the client has its share of connections");
                    return None;
                }
            }
            Ok(Err(error)) => {
                meters.refused_connections.inc();
                tracing::debug!(proxy = %socket_address, %error, "refused: no usable PROXY header");
                return None;
            }
            Err(_) => {
                meters.refused_connections.inc();
                tracing::debug!(proxy = %socket_address, "refused: the PROXY header did not come in time");
                return None;
            }
        }
    }

    let mut peer = Peer { listener: Arc::clone(&settings.name), address, local, tls: None };
    let (transport, protocol, head_since) = if let Some(tls) = &settings.tls {
        let (stream, tls_peer, protocol) = match timeout_at(deadline, tls.handshake(socket)).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                meters.handshakes_failed.inc();
                tracing::debug!(%address, %error, "the TLS handshake failed");
                return None;
            }
            Err(_) => {
                meters.handshakes_timed_out.inc();
                tracing::debug!(%address, "the TLS handshake did not end in time");
                return None;
            }
        };
        meters.handshakes_ok.inc();
        peer.tls = Some(tls_peer);
        // An HTTP/2 client owes its preface from now on; an HTTP/1 client may have connected ahead of need.
        let head_since = (protocol == Protocol::Http2).then(Instant::now);
        (Transport::Tls(stream), protocol, head_since)
    } else {
        let grace_is_over = async {
            signals.parting().await;
            sleep(FIRST_REQUEST_GRACE).await;
        };
        tokio::select! {
            came = timeout(limits.header_timeout, socket.first_byte()) => match came {
                Ok(Ok(true)) => {}
                // Nothing came, so there is nothing to answer.
                Ok(Ok(false) | Err(_)) | Err(_) => return None,
            },
            () = grace_is_over => return None,
        }
        let first_byte = Instant::now();
        let protocol = match timeout_at(first_byte + limits.header_timeout, socket.protocol()).await {
            Ok(protocol) => protocol.ok()?,
            // Half a preface: as HTTP/1 it is an unfinished head, and its time is over.
            Err(_) => Protocol::Http1,
        };
        (Transport::Plain(socket), protocol, Some(first_byte))
    };
    let activity = Activity::new(head_since);
    let io = Watched::new(transport, protocol, Arc::clone(&activity));
    Some(Established { io, protocol, peer: Arc::new(peer), activity, client_behind_proxy })
}

/// IPv4 clients of an IPv6 socket are IPv4 clients.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Hands requests to the handler.
pub(super) struct Requests<H> {
    pub(super) handler: H,
    pub(super) peer: Arc<Peer>,
    pub(super) activity: Arc<Activity>,
}

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// HTTP/2's. HTTP/1 asks the handler itself.
impl<H, F, B> Service<http::Request<Incoming>> for Requests<H>
where
    H: Fn(Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
{
    type Response = http::Response<Answer<B>>;
    type Error = h2::Error;
    type Future = InTurns<dyn Future<Output = Result<Self::Response, h2::Error>> + Send>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let has_body = !request.body().is_end_stream();
        if self.activity.is_outdated_for(LAST_STREAMS_GRACE) {
            // Nothing was done, so it may be sent again on another connection (RFC 9113 §8.7).
            return InTurns::new(Box::pin(async { Err(h2::Reason::REFUSED_STREAM.into()) }));
        }
        let handling = self.activity.request_begins(false, has_body);
        let (handler, peer) = (self.handler.clone(), Arc::clone(&self.peer));
        // The handler is asked in there, so that what it makes is made where it stays.
        InTurns::new(Box::pin(async move {
            Ok(handler(request.into(), peer).await.map_into_http(|body| handling.answered_with(body)))
        }))
    }
}

/// hyper asks for the time with each frame of a request, to know when the peer was last heard: in a turn's time.
struct TurnsTimer(TokioTimer);

impl Timer for TurnsTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.0.sleep(duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        self.0.sleep_until(deadline)
    }

    fn now(&self) -> std::time::Instant {
        clock::steady().into_std()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: std::time::Instant) {
        self.0.reset(sleep, new_deadline);
    }
}

type Http2<H> = http2::Connection<TokioIo<Watched>, Requests<H>, TokioExecutor>;

enum Http<H, F, B>
where
    H: Fn(Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    One(Box<http1::Connection<H, F, B>>),
    Two(Pin<Box<Http2<H>>>),
}

/// Why a connection is over.
enum End {
    /// HTTP says so.
    Done(Result<(), BoxError>),
    /// We say so, and the peer may be told.
    Closed,
    /// We say so, and the peer would not hear.
    Dropped,
}

impl<H, F, B> Http<H, F, B>
where
    H: Fn(Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn start(io: Watched, protocol: Protocol, service: Requests<H>, limits: &Limits) -> Self {
        match protocol {
            Protocol::Http1 => Self::One(Box::new(http1::Connection::new(io, service, limits))),
            Protocol::Http2 => {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TurnsTimer(TokioTimer::new()))
                    .max_concurrent_streams(limits.max_concurrent_streams)
                    .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
                    .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                    .max_local_error_reset_streams(MAX_ERROR_RESETS)
                    .max_send_buf_size(MAX_SEND_BUFFER)
                    .adaptive_window(false)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_TIMEOUT)
                    .serve_connection(TokioIo::new(io), service);
                Self::Two(Box::pin(connection))
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::One(connection) => connection.poll(cx),
            Self::Two(connection) => connection.as_mut().poll(cx).map_err(Into::into),
        }
    }

    /// HTTP/1 between two requests: gives back what only requests need.
    fn rest(&mut self) {
        if let Self::One(connection) = self {
            connection.rest();
        }
    }

    fn rests(&self) -> bool {
        matches!(self, Self::One(connection) if connection.rests())
    }

    /// HTTP/1: close behind the answer in flight. HTTP/2: GOAWAY, and finish the streams.
    fn graceful_shutdown(&mut self) {
        match self {
            Self::One(connection) => connection.graceful_shutdown(),
            Self::Two(connection) => connection.as_mut().graceful_shutdown(),
        }
    }

    fn is_http1(&self) -> bool {
        !matches!(self, Self::Two(_))
    }

    async fn close(self, end: End, activity: &Activity, address: SocketAddr) {
        match (self, end) {
            (_, End::Done(Ok(()))) => {}
            (_, End::Done(Err(error))) => tracing::debug!(%address, %error, "the connection ended early"),
            (Self::One(connection), End::Closed) => {
                // To a client that has not begun to ask, a 408 would be the answer to its next request.
                let is_late = connection.is_asked() && !activity.is_busy() && !activity.is_stalled();
                let last_word = if is_late { REQUEST_TIMEOUT } else { b"" };
                // Late or not: it is over.
                let _ = timeout(LINGER, connection.close(last_word)).await;
            }
            (Self::Two(_), End::Closed) | (_, End::Dropped) => {
                tracing::debug!(%address, "closed a connection that made no progress");
            }
        }
    }
}

/// Drives a connection until it ends or its time is over.
async fn watch<H, F, B>(http: &mut Http<H, F, B>, activity: &Activity, limits: &Limits, mut signals: Signals) -> End
where
    H: Fn(Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    // Neither is asked before it has rung: each turn of a busy connection would ask both, and hear nothing.
    let bell = Bell::new();
    let waker = Waker::from(Arc::clone(&bell));
    let mut parting = pin!(signals.parting());
    let mut alarm = pin!(sleep_until(Instant::now() + limits.idle_timeout));
    let mut stopped_at = None;
    let mut was_told = false;
    let mut closes_at = None;
    let mut resumed_at = Instant::now();
    let mut rang = false;
    poll_fn(move |cx| {
        rang |= bell.has_rung(cx.waker());
        let mut listening = Context::from_waker(&waker);
        loop {
            // What happens in one turn happens at one time.
            let now = Instant::now();
            let turn = Turn::begin(now);
            if rang
                && stopped_at.is_none()
                && let Poll::Ready(why) = parting.as_mut().poll(&mut listening)
            {
                stopped_at = Some(now);
                match why {
                    Parting::Stopping => activity.stop(),
                    Parting::Outdated => activity.outdate(),
                }
            }
            activity.turn_begins(http.is_http1().then_some(now));
            let rested = http.rests();
            let (polled, is_behind) = threads::falls_behind(|| http.poll(cx));
            if let Poll::Ready(result) = polled {
                return Poll::Ready(End::Done(result));
            }
            drop(turn);
            if rested && !http.rests() {
                resumed_at = now;
            }
            if is_behind {
                // Looked after in the turn that follows at once.
                return Poll::Pending;
            }
            let mut look_again = match activity.verdict(now, limits) {
                Verdict::LookAgain(at) => at,
                Verdict::Stalled => return Poll::Ready(End::Dropped),
                Verdict::HeadTimedOut | Verdict::Idle if http.is_http1() => return Poll::Ready(End::Closed),
                Verdict::HeadTimedOut | Verdict::Idle => match closes_at {
                    Some(at) => at,
                    None => {
                        http.graceful_shutdown();
                        was_told = true;
                        closes_at = Some(now + LINGER);
                        continue;
                    }
                },
            };
            if let (Some(since), false) = (stopped_at, was_told) {
                match on_stop(activity, since, now) {
                    OnStop::Wait(None) => {}
                    OnStop::Wait(Some(until)) => look_again = look_again.min(until),
                    OnStop::Close if http.is_http1() => return Poll::Ready(End::Closed),
                    OnStop::Close => {
                        http.graceful_shutdown();
                        was_told = true;
                        closes_at = Some(now + LINGER);
                        continue;
                    }
                    OnStop::Finish => {
                        http.graceful_shutdown();
                        was_told = true;
                        continue;
                    }
                }
            }
            if activity.is_busy() || activity.is_stalled() {
                // A request may have come in the same instant: then it is no longer idle, and is finished.
                closes_at = None;
            } else if was_told && closes_at.is_none() && !http.is_http1() {
                // All streams have ended; what is left is the peer's answer to our GOAWAY. HTTP/1 just closes.
                closes_at = Some(now + LINGER);
            }
            if let Some(at) = closes_at {
                if at <= now {
                    return Poll::Ready(End::Dropped);
                }
                look_again = look_again.min(at);
            }
            if http.is_http1()
                && !http.rests()
                && let Some(since) = activity.is_quiet_since()
            {
                // Behind a resumption too, or bytes that make no head would be parked and resumed without a pause.
                let parks_at = since.max(resumed_at) + PARKED_AFTER;
                if parks_at <= now {
                    http.rest();
                } else {
                    look_again = look_again.min(parks_at);
                }
            }
            // Moving the alarm costs; one that rings early is looked at and set again.
            if look_again < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(look_again);
                rang = true;
            }
            if !rang || alarm.as_mut().poll(&mut listening).is_pending() {
                rang = false;
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Wakes a connection, and tells it that it was not its peer that did.
struct Bell {
    rang: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    /// It has rung: what rings it is to be asked a first time.
    fn new() -> Arc<Self> {
        Arc::new(Self { rang: AtomicBool::new(true), task: AtomicWaker::new() })
    }

    /// Since it was asked last.
    fn has_rung(&self, task: &Waker) -> bool {
        // In this order: one that rings in between is heard now, or wakes the task again.
        self.task.register(task);
        self.rang.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.task.wake();
    }
}

enum OnStop {
    Wait(Option<Instant>),
    /// Let the request in flight end.
    Finish,
    Close,
}

/// A connection that has not been read from yet, and one with half a head, are not closed at once:
/// those have a request on the way, and its sender has been let in.
fn on_stop(activity: &Activity, stopped_at: Instant, now: Instant) -> OnStop {
    if activity.is_busy() {
        return OnStop::Finish;
    }
    // A head that has begun has its own deadline, and so has an answer that is still being written.
    if activity.is_in_head() || activity.is_stalled() {
        return OnStop::Wait(None);
    }
    let until = stopped_at.max(activity.began()) + FIRST_REQUEST_GRACE;
    if activity.is_fresh() && until > now {
        return OnStop::Wait(Some(until));
    }
    OnStop::Close
}
