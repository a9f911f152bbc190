//! One address of an upstream's url, and what goes over the wire to it and comes back: the only one that knows HTTP's
//! framing on this side.
//!
//! Invariant: every address of a url is asked for the url's own name, in `Host` and in TLS, and never for its address.
//! What a sender declared of the framing never reaches the upstream: the body is these bytes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::fields::Fields;
use ::http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, USER_AGENT};
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{Method, Uri, Version};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::IntGauge;
use tokio::time::{Instant, timeout_at};

use super::connect::{Connector, Request};
use super::failure::{Fault, SendError};
use super::http1::{Connection, NoAnswer};
use super::names::{Address, Host};
use super::pool::{Lease, NoConnection, Pool};
use super::settings::{BuildError, HealthCheck, Settings};
use super::wire::{self, Head};
use crate::parcel::Parcel;
use crate::timer;

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

/// A request as it goes out, whatever it goes over.
struct Outgoing<'a> {
    method: &'a Method,
    path: Asked<'a>,
    headers: &'a Fields,
    body: &'a Bytes,
}

/// What is asked for. Most paths are plain, and HTTP/1 needs their text alone.
enum Asked<'a> {
    Plain(&'a str),
    Parsed(PathAndQuery),
}

impl<'a> Asked<'a> {
    fn new(text: &'a str) -> Option<Self> {
        match is_plain(text) {
            true => Some(Self::Plain(text)),
            false => PathAndQuery::try_from(text).ok().map(Self::Parsed),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Parsed(path) => path.as_str(),
        }
    }

    fn parsed(self) -> Option<PathAndQuery> {
        match self {
            Self::Plain(text) => PathAndQuery::try_from(text).ok(),
            Self::Parsed(path) => Some(path),
        }
    }
}

/// Longer paths are judged by whoever knows how long one may be.
const LONGEST_PLAIN: usize = 4 * 1024;

/// Whether a path and its query hold nothing but what RFC 3986 has in them, so that every parser takes them as they are.
fn is_plain(text: &str) -> bool {
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'/' | b'-' | b'.' | b'_' | b'~' | b'%' | b':' | b'@' | b'!' | b'$' | b'&'..=b',' | b';' | b'=' | b'?'
            )
    };
    text.starts_with('/') && text.len() <= LONGEST_PLAIN && text.bytes().all(is_plain)
}

/// An answer whose head has come.
pub(super) struct Answered {
    pub(super) head: Head,
    /// HTTP/2: its body. HTTP/1: the lease has it.
    pub(super) incoming: Option<Incoming>,
    pub(super) lease: Lease,
}

impl Endpoint {
    /// `begun`: not long ago.
    pub(super) async fn exchange(
        &self,
        parcel: &Parcel,
        rested: bool,
        begun: Instant,
        deadline: Instant,
    ) -> Result<Answered, Failed> {
        let late = || Failed::Final(SendError::new(Fault::TimedOut, &self.name, "no answer at the deadline"));
        let broken = |what: &str| Failed::Final(SendError::new(Fault::Broken, &self.name, what));
        let mut lease = match self.pool.check_out(rested.then_some(begun), deadline).await {
            Ok(lease) => lease,
            Err(NoConnection::Failed(what)) => return Err(Failed::Unreached(what)),
            Err(NoConnection::TooLate) => return Err(late()),
        };
        let path = Asked::new(&parcel.path_and_query);
        let path = path.ok_or_else(|| broken("the parcel's path is not one that HTTP can carry"))?;
        let outgoing = Outgoing { method: &parcel.method, path, headers: &parcel.headers, body: &parcel.body };
        let Ok(answered) = timer::within(deadline, pin!(self.ask(&mut lease, outgoing))).await else {
            lease.abandon();
            return Err(late());
        };
        match answered {
            Ok((head, incoming)) => Ok(Answered { head, incoming, lease }),
            Err(error) if error.nothing_written => Err(Failed::WasClosed(error.detail)),
            Err(error) if error.was_stale => Err(Failed::Stale(error.detail)),
            Err(error) => Err(broken(&error.detail)),
        }
    }

    async fn ask(&self, lease: &mut Lease, outgoing: Outgoing<'_>) -> Result<(Head, Option<Incoming>), NoAnswer> {
        match lease {
            Lease::Single(single) => self.ask_single(single, outgoing).await.map(|head| (head, None)),
            Lease::Shared(stream) => {
                // Boxed: few upstreams speak HTTP/2, and what it takes is far more.
                let method = outgoing.method;
                let Some(request) = self.request(outgoing) else {
                    let detail = "the parcel's path is not one that HTTP can carry".to_owned();
                    return Err(NoAnswer { nothing_written: false, was_stale: false, detail });
                };
                let response = Box::pin(stream.send(request)).await?;
                let (parts, incoming) = response.into_parts();
                let (status, mut headers) = (parts.status, Fields::from(parts.headers));
                if status.is_informational() {
                    let detail = "the upstream switched protocols unasked".to_owned();
                    return Err(NoAnswer { nothing_written: false, was_stale: false, detail });
                }
                headers.remove_every(wire::named_by_connection(headers.get_all(CONNECTION)));
                let is_told = method == Method::HEAD || declares(&headers, &incoming);
                headers.retain(|name| !wire::is_hop_by_hop(name) && (is_told || *name != CONTENT_LENGTH));
                Ok((Head { status, headers }, Some(incoming)))
            }
        }
    }

    async fn ask_single(&self, single: &mut Connection, outgoing: Outgoing<'_>) -> Result<Head, NoAnswer> {
        let Outgoing { method, path, headers, body } = outgoing;
        let length = has_length(method, body).then_some(body.len());
        wire::write_head(single.head(), (method, path.as_str()), &self.site.host, headers, length);
        single.ask(body.clone(), method).await
    }

    /// None: its path is no path, which a plain one always is.
    fn request(&self, outgoing: Outgoing<'_>) -> Option<Request> {
        let Outgoing { method, path, headers, body } = outgoing;
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.version_mut() = Version::HTTP_2;
        let mut target = ::http::uri::Parts::default();
        target.path_and_query = Some(path.parsed()?);
        target.scheme = Some(self.site.scheme.clone());
        target.authority = Some(self.site.authority.clone());
        // Scheme, authority and path are all given: these parts are a uri.
        *request.uri_mut() = Uri::from_parts(target).expect("scheme and authority come together");
        let named = wire::named_by_connection(headers.get_all(CONNECTION));
        let passed_on = headers.iter().filter(|(name, _)| wire::is_passed_on(name, &named));
        request.headers_mut().extend(passed_on.map(|(name, value)| (name.clone(), value.clone())));
        if has_length(method, body) {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Some(request)
    }

    /// Whether the url answers the health path with 2xx or 3xx, on a connection of its own.
    pub(super) async fn is_healthy(&self, probe: &Probe) -> bool {
        let until = Instant::now() + probe.timeout;
        let answered = timeout_at(until, async {
            let mut lease = self.pool.open_apart(until).await.ok()?;
            let mut headers = Fields::new();
            headers.insert(USER_AGENT, HeaderValue::from_static("hookward-health"));
            let (method, path, body) = (&Method::GET, Asked::Parsed(probe.path.clone()), &Bytes::new());
            let asked = self.ask(&mut lease, Outgoing { method, path, headers: &headers, body }).await;
            Some(asked.ok()?.0.status)
        });
        matches!(answered.await, Ok(Some(status)) if status.is_success() || status.is_redirection())
    }
}

fn has_length(method: &Method, body: &Bytes) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH) || !body.is_empty()
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

/// The answer has one Content-Length and it is the length that will be read.
fn declares(headers: &Fields, incoming: &Incoming) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH);
    let (Some(length), None) = (lengths.next(), lengths.next()) else {
        return false;
    };
    let declared = length.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    declared.is_some() && declared == incoming.size_hint().exact()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plain_path_is_what_every_parser_takes_as_it_is(text in "/[ -~é]{0,20}") {
            let parsed = PathAndQuery::try_from(text.as_str()).ok();
            if is_plain(&text) {
                prop_assert_eq!(parsed.as_ref().map(PathAndQuery::as_str), Some(text.as_str()));
            }
            prop_assert_eq!(Asked::new(&text).map(|path| path.as_str().to_owned()), parsed.map(|path| path.to_string()));
        }
    }

    #[test]
    fn what_github_and_others_ask_for_is_plain_and_what_http_cannot_carry_is_refused() {
        assert!(["/github", "/hooks/a-b_c.d~e/%20?x=1&y=a:b@c;d,(e)"].into_iter().all(is_plain));
        for refused in ["/a b", "/a\r\nHost: b", "/a\0"] {
            assert!(Asked::new(refused).is_none(), "{refused:?}");
        }
        assert!(!is_plain("/a#b") && !is_plain("a") && !is_plain("*") && !is_plain(""));
    }
}
