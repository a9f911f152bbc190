//! One address of an upstream's url, and what goes over the wire to it and comes back: the only one that knows HTTP's
//! framing on this side.
//!
//! Invariant: every address of a url is asked for the url's own name, in `Host` and in TLS, and never for its address.
//! What a sender declared of the framing never reaches the upstream: the body is these bytes.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{HeaderMap, Method, Uri, Version};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::IntGauge;
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, AnswerBody};
use super::connect::{Connector, Request};
use super::failure::{Fault, SendError};
use super::http::Exchange;
use super::names::{Address, Host};
use super::pool::{Lease, NoConnection, Pool};
use super::settings::{BuildError, HealthCheck, Settings};
use crate::parcel::Parcel;

/// What all addresses of one url share.
pub(super) struct Site {
    /// In the order of the settings.
    pub(super) index: usize,
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    connector: Arc<Connector>,
    connect_timeout: Duration,
    max_idle: usize,
    idle_timeout: Duration,
    idle_gauge: IntGauge,
}

pub(super) struct Endpoint {
    site: Arc<Site>,
    /// The authority, with the address where the authority does not tell it: for errors.
    pub(super) name: Arc<str>,
    pub(super) pool: Arc<Pool>,
}

#[derive(Clone)]
pub(super) struct Probe {
    path: PathAndQuery,
    pub(super) interval: Duration,
    timeout: Duration,
}

/// Why one attempt brought no answer.
pub(super) enum Failed {
    /// Nothing was written: safe to go elsewhere.
    Unreached(String),
    /// Nothing was written because the connection closed first: safe to open another to the same endpoint.
    WasClosed(String),
    /// Written to a used connection, which ended without a byte of an answer.
    Stale(String),
    Final(SendError),
}

impl Site {
    pub(super) fn new(
        index: usize,
        url: &Uri,
        settings: &Settings,
        tls: Option<&Arc<rustls::ClientConfig>>,
        idle_gauge: &IntGauge,
    ) -> Result<Self, BuildError> {
        let server_name = settings.tls.server_name.as_deref();
        let connector = Connector::new(url, tls, server_name, settings.protocol, settings.max_answer_head)?;
        let unusable = |why| BuildError::Url { url: url.to_string(), why };
        let scheme = url.scheme().cloned().ok_or_else(|| unusable("it has no scheme"))?;
        let authority = url.authority().cloned().ok_or_else(|| unusable("it has no host"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| unusable("its host is no header value"))?;
        Ok(Self {
            index,
            scheme,
            authority,
            host,
            connector: Arc::new(connector),
            connect_timeout: settings.connect_timeout,
            max_idle: settings.max_idle_per_url,
            idle_timeout: settings.idle_timeout,
            idle_gauge: idle_gauge.clone(),
        })
    }

    pub(super) fn label(&self) -> &str {
        self.authority.as_str()
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        match &self.connector.host {
            Host::Literal(_) => None,
            Host::Name(name) => Some(name),
        }
    }

    /// Where there is nothing to look up.
    pub(super) fn literal(&self) -> Option<Address> {
        match &self.connector.host {
            Host::Literal(ip) => Some(std::net::SocketAddr::new(*ip, self.port()).into()),
            Host::Name(_) => None,
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.connector.port
    }

    pub(super) fn endpoint(self: &Arc<Self>, address: &Address) -> Arc<Endpoint> {
        let name = match (self.name(), &*address.0) {
            (Some(_), [one]) => format!("{} ({})", self.authority, one.ip()),
            _ => self.authority.to_string(),
        };
        let pool = Pool::new(
            Arc::clone(&self.connector),
            address.clone(),
            self.connect_timeout,
            self.max_idle,
            self.idle_timeout,
            self.idle_gauge.clone(),
        );
        Arc::new(Endpoint { site: Arc::clone(self), name: name.into(), pool })
    }
}

impl Endpoint {
    pub(super) async fn exchange(
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
            target.scheme = Some(self.site.scheme.clone());
            target.authority = Some(self.site.authority.clone());
        } else {
            headers.insert(HOST, self.site.host.clone());
        }
        *request.method_mut() = method;
        // Scheme and authority are given together or not at all, and always with a path: these parts are a uri.
        *request.uri_mut() = Uri::from_parts(target).expect("scheme and authority come together");
        *request.headers_mut() = headers;
        request
    }

    pub(super) async fn answer(
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
    pub(super) async fn is_healthy(&self, probe: &Probe) -> bool {
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
    pub(super) fn new(check: &HealthCheck) -> Result<Self, BuildError> {
        let invalid = || BuildError::HealthPath { path: check.path.clone() };
        let path = PathAndQuery::try_from(check.path.as_str()).map_err(|_| invalid())?;
        if !check.path.starts_with('/') {
            return Err(invalid());
        }
        Ok(Self { path, interval: check.interval, timeout: check.timeout })
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
