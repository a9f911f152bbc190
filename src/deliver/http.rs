//! An HTTP upstream: several urls, and what is owed to a request until its answer has been read.
//!
//! Invariant: one deadline covers all attempts and the whole answer. A request goes to another url only if nothing of
//! it was written; it is repeated after something was written at most once, and only where a used connection ended
//! without a byte of an answer. Everything else is a failure for the sender to repeat.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{HeaderMap, Method, StatusCode, Uri, Version};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::answer::{Answer, AnswerBody};
use super::connect::{self, Connector, Request};
use super::failure::{Fault, SendError};
use super::gate::{Gate, Slot};
use super::health::Sign;
use super::meters::{Ending, Meters};
use super::pool::{Lease, NoConnection, Pool};
use super::settings::{BuildError, HealthCheck, Settings};

use crate::parcel::Parcel;

/// Several gateways must not probe in step.
const PROBE_JITTER: std::ops::RangeInclusive<f64> = 0.8..=1.1;

pub(crate) struct Upstream {
    name: Arc<str>,
    endpoints: Arc<[Endpoint]>,
    gate: Arc<Gate>,
    meters: Arc<Meters>,
    timeout: Duration,
    queue_timeout: Duration,
    repeat_on_stale: bool,
    health: Option<Probe>,
    /// Dropped with the upstream: the probing ends.
    alive: watch::Sender<()>,
}

struct Endpoint {
    scheme: Scheme,
    authority: Authority,
    /// The authority again, for errors and as the `Host`.
    name: Arc<str>,
    host: HeaderValue,
    pool: Arc<Pool>,
}

#[derive(Clone)]
struct Probe {
    path: PathAndQuery,
    interval: Duration,
    timeout: Duration,
}

/// Why one attempt brought no answer.
enum Failed {
    /// Nothing was written: safe to go elsewhere.
    Unreached(String),
    /// Nothing was written because the connection closed first: safe to open another to the same url.
    WasClosed(String),
    /// Written to a used connection, which ended without a byte of an answer.
    Stale(String),
    Final(SendError),
}

impl Upstream {
    pub(crate) fn new(settings: Settings, meters: Meters) -> Result<Arc<Self>, BuildError> {
        if settings.urls.is_empty() {
            return Err(BuildError::NoUrls);
        }
        let any_tls = settings.urls.iter().any(|url| url.scheme() == Some(&Scheme::HTTPS));
        let tls = any_tls.then(|| connect::client_config(&settings.tls, settings.protocol)).transpose()?;
        let endpoints: Vec<_> = settings
            .urls
            .iter()
            .map(|url| Endpoint::new(url, &settings, tls.as_ref(), &meters))
            .collect::<Result<_, _>>()?;
        let health = settings.health.as_ref().map(Probe::new).transpose()?;
        let gate = Gate::new(
            endpoints.len(),
            settings.balance,
            settings.max_in_flight.max(1),
            settings.queue_timeout,
            meters.in_flight.clone(),
            meters.healthy.clone(),
        );
        Ok(Arc::new(Self {
            name: settings.name,
            endpoints: endpoints.into(),
            gate,
            meters: Arc::new(meters),
            timeout: settings.timeout,
            queue_timeout: settings.queue_timeout,
            repeat_on_stale: settings.repeat_on_stale,
            health,
            alive: watch::Sender::new(()),
        }))
    }

    pub(crate) async fn send(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        let started = Instant::now();
        let sent = match self.gate.admit().await {
            Ok(slot) => self.attempt(parcel, slot, started).await,
            Err(_) => Err(SendError::new(Fault::Busy, &self.name, "all urls have max_in_flight requests")),
        };
        sent.inspect_err(|error| self.meters.record(Ending::by(error.fault), started))
    }

    /// Without waiting for a place, and without a line in the metrics where there is none.
    pub(crate) async fn send_at_once(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        let started = Instant::now();
        let slot = self.gate.admit_now();
        let slot = slot.ok_or_else(|| SendError::new(Fault::Busy, &self.name, "no url has a place now"))?;
        let sent = self.attempt(parcel, slot, started).await;
        sent.inspect_err(|error| self.meters.record(Ending::by(error.fault), started))
    }

    pub(crate) fn is_saturated(&self) -> bool {
        self.gate.is_saturated()
    }

    pub(crate) fn can_forward(&self) -> bool {
        self.gate.can_forward()
    }

    /// One deadline covers all attempts, so repeats add nothing.
    pub(crate) fn longest(&self) -> Duration {
        self.queue_timeout + self.timeout
    }

    /// Ends when `stop` turns true or its sender goes, when the upstream is dropped, or at once without a health check.
    pub(crate) async fn probe_forever(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let Some(probe) = self.health.clone() else {
            return;
        };
        let mut alive = self.alive.subscribe();
        let mut probing = JoinSet::new();
        for url in 0..self.endpoints.len() {
            probing.spawn(probe_one(Arc::clone(&self.endpoints), url, Arc::clone(&self.gate), probe.clone()));
        }
        // From here on only the parts are held: a reload that drops the upstream must end this.
        drop(self);
        tokio::select! {
            // Whether told to stop or left alone, it is over; dropping the set ends the probes.
            _ = stop.wait_for(|stop| *stop) => {}
            _ = alive.changed() => {}
        }
    }

    async fn attempt(&self, parcel: &Parcel, mut slot: Slot, started: Instant) -> Result<Answer, SendError> {
        let deadline = Instant::now() + self.timeout;
        let mut tried = Vec::new();
        let mut has_doubled = false;
        let mut rested = true;
        loop {
            let endpoint = &self.endpoints[slot.url];
            let failed = match endpoint.exchange(parcel, rested, deadline).await {
                Ok((response, lease)) => {
                    let exchange = Exchange {
                        slot,
                        lease,
                        pool: Arc::clone(&endpoint.pool),
                        meters: Arc::clone(&self.meters),
                        started,
                        status: response.status(),
                    };
                    return Ok(endpoint.answer(response, exchange, deadline, &parcel.method).await);
                }
                Err(failed) => failed,
            };
            match failed {
                Failed::WasClosed(_) if rested => rested = false,
                Failed::Stale(_) if self.repeat_on_stale && !has_doubled => {
                    has_doubled = true;
                    rested = false;
                }
                Failed::Stale(what) => {
                    return Err(SendError::new(Fault::Broken, &endpoint.name, &what));
                }
                Failed::WasClosed(what) | Failed::Unreached(what) => {
                    tried.push(slot.url);
                    slot.settle(Sign::Unreachable);
                    match self.gate.another(&tried) {
                        Some(other) => slot = other,
                        None => {
                            return Err(SendError::new(Fault::Unavailable, &endpoint.name, &what));
                        }
                    }
                    rested = true;
                }
                Failed::Final(error) => {
                    slot.settle(Ending::by(error.fault).sign());
                    return Err(error);
                }
            }
            self.meters.repeats.inc();
        }
    }
}

impl Endpoint {
    fn new(
        url: &Uri,
        settings: &Settings,
        tls: Option<&Arc<rustls::ClientConfig>>,
        meters: &Meters,
    ) -> Result<Self, BuildError> {
        let server_name = settings.tls.server_name.as_deref();
        let connector = Connector::new(url, tls, server_name, settings.protocol, settings.max_answer_head)?;
        let unusable = |why| BuildError::Url { url: url.to_string(), why };
        let scheme = url.scheme().cloned().ok_or_else(|| unusable("it has no scheme"))?;
        let authority = url.authority().cloned().ok_or_else(|| unusable("it has no host"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| unusable("its host is no header value"))?;
        let pool = Pool::new(
            connector,
            settings.connect_timeout,
            settings.max_idle_per_url,
            settings.idle_timeout,
            meters.idle_connections.clone(),
        );
        Ok(Self { scheme, name: authority.as_str().into(), authority, host, pool })
    }

    async fn exchange(
        &self,
        parcel: &Parcel,
        rested: bool,
        deadline: Instant,
    ) -> Result<(hyper::Response<Incoming>, Lease), Failed> {
        let late = || Failed::Final(SendError::new(Fault::TimedOut, &self.name, "no answer at the deadline"));
        let broken = |what: &str| Failed::Final(SendError::new(Fault::Broken, &self.name, what));
        let mut lease = match self.pool.check_out(rested, deadline).await {
            Ok(lease) => lease,
            Err(NoConnection::Failed(what)) => return Err(Failed::Unreached(what)),
            Err(NoConnection::TooLate) => return Err(late()),
        };
        let path = PathAndQuery::try_from(parcel.path_and_query.as_str());
        let path = path.map_err(|_| broken("the parcel's path is not one that HTTP can carry"))?;
        let headers = self.head(parcel);
        let request = self.request(parcel.method.clone(), path, headers, parcel.body.clone(), lease.is_http2());
        let Ok(answered) = timeout_at(deadline, lease.send(request)).await else {
            lease.abandon();
            return Err(late());
        };
        match answered {
            // Nobody asked to switch protocols; what follows is not HTTP.
            Ok(response) if response.status().is_informational() => {
                Err(broken("the upstream switched protocols unasked"))
            }
            Ok(response) => Ok((response, lease)),
            Err(error) if error.nothing_written => Err(Failed::WasClosed(error.detail)),
            Err(error) if error.was_stale => Err(Failed::Stale(error.detail)),
            Err(error) => Err(broken(&error.detail)),
        }
    }

    /// The parcel's headers, with framing that is ours alone: whatever was declared before, the body is these bytes.
    fn head(&self, parcel: &Parcel) -> HeaderMap {
        let mut headers = parcel.headers.clone();
        remove_hop_by_hop(&mut headers);
        headers.remove(EXPECT);
        headers.remove(CONTENT_LENGTH);
        let method_has_body = matches!(parcel.method, Method::POST | Method::PUT | Method::PATCH);
        if method_has_body || !parcel.body.is_empty() {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(parcel.body.len()));
        }
        headers
    }

    fn request(
        &self,
        method: Method,
        path: PathAndQuery,
        mut headers: HeaderMap,
        body: Bytes,
        is_http2: bool,
    ) -> Request {
        let mut request = Request::new(Full::new(body));
        let mut target = ::http::uri::Parts::default();
        target.path_and_query = Some(path);
        headers.remove(HOST);
        if is_http2 {
            *request.version_mut() = Version::HTTP_2;
            target.scheme = Some(self.scheme.clone());
            target.authority = Some(self.authority.clone());
        } else {
            headers.insert(HOST, self.host.clone());
        }
        *request.method_mut() = method;
        // Scheme and authority are given together or not at all, and always with a path: these parts are a uri.
        *request.uri_mut() = Uri::from_parts(target).expect("scheme and authority come together");
        *request.headers_mut() = headers;
        request
    }

    async fn answer(
        &self,
        response: hyper::Response<Incoming>,
        exchange: Exchange,
        deadline: Instant,
        method: &Method,
    ) -> Answer {
        let (mut head, incoming) = response.into_parts();
        remove_hop_by_hop(&mut head.headers);
        if method != Method::HEAD && !declares(&head.headers, &incoming) {
            head.headers.remove(CONTENT_LENGTH);
        }
        let body = AnswerBody::begin(incoming, exchange, deadline, Arc::clone(&self.name)).await;
        Answer { status: head.status, headers: head.headers, body }
    }

    /// Whether the url answers the health path with 2xx or 3xx, on a connection of its own.
    async fn is_healthy(&self, probe: &Probe) -> bool {
        let until = Instant::now() + probe.timeout;
        let answered = timeout_at(until, async {
            let mut lease = self.pool.open_apart(until).await.ok()?;
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, HeaderValue::from_static("hookward-health"));
            if !lease.is_http2() {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let request = self.request(Method::GET, probe.path.clone(), headers, Bytes::new(), lease.is_http2());
            Some(lease.send(request).await.ok()?.status())
        });
        matches!(answered.await, Ok(Some(status)) if status.is_success() || status.is_redirection())
    }
}

impl Probe {
    fn new(check: &HealthCheck) -> Result<Self, BuildError> {
        let invalid = || BuildError::HealthPath { path: check.path.clone() };
        let path = PathAndQuery::try_from(check.path.as_str()).map_err(|_| invalid())?;
        if !check.path.starts_with('/') {
            return Err(invalid());
        }
        Ok(Self { path, interval: check.interval, timeout: check.timeout })
    }
}

async fn probe_one(endpoints: Arc<[Endpoint]>, url: usize, gate: Arc<Gate>, probe: Probe) {
    let endpoint = &endpoints[url];
    loop {
        gate.probed(url, endpoint.is_healthy(&probe).await);
        sleep(probe.interval.mul_f64(rand::random_range(PROBE_JITTER))).await;
    }
}

/// What a request holds until its answer has been read: a place, a connection, and a line in the metrics.
pub(super) struct Exchange {
    lease: Lease,
    slot: Slot,
    pool: Arc<Pool>,
    meters: Arc<Meters>,
    started: Instant,
    status: StatusCode,
}

impl Exchange {
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn end(self, ending: Ending) {
        // The connection first, the place last: whoever is let in next shall find the connection at rest.
        match ending {
            Ending::TimedOut => self.lease.abandon(),
            Ending::Broken | Ending::Busy | Ending::Unavailable | Ending::TooLarge => drop(self.lease),
            Ending::Success | Ending::Redirect | Ending::ClientError | Ending::ServerError => {
                self.lease.finish(&self.pool);
            }
        }
        self.meters.record(ending, self.started);
        self.slot.settle(ending.sign());
    }

    /// Whoever read the answer stopped reading: the upstream did its part, the connection is in mid-answer.
    pub(super) fn leave(self) {
        drop(self.lease);
        let ending = Ending::of(self.status);
        self.meters.record(ending, self.started);
        self.slot.settle(ending.sign());
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // Framing is judged by itself; naming it here must not unframe the message.
        .filter(|name| name != CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The answer has one Content-Length and it is the length that will be read.
fn declares(headers: &HeaderMap, incoming: &Incoming) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(length), None) = (lengths.next(), lengths.next()) else {
        return false;
    };
    let declared = length.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    declared.is_some() && declared == incoming.size_hint().exact()
}
