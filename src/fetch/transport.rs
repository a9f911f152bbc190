//! One GET: name, address, TLS, answer; all within one deadline.
//!
//! Invariant: a name is resolved once, what it resolved to is judged, and exactly that is connected to, so that a name
//! that resolves anew to something else gains nothing. No proxy, no redirect, no cookie, no credential.

use super::address::may_be_reached;
use super::failure::FetchError;
use super::target::{Name, Target};
use bytes::Bytes;
use http::header::{ACCEPT, AGE, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, HOST, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
#[cfg(test)]
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// Senders wait for some seconds, not more; the answer is a few KiB.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_ADDRESSES: usize = 4;
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 16 * 1024;

/// `[fetch]` of the configuration, its certificates parsed.
#[derive(Clone)]
pub(crate) struct Settings {
    tls: TlsConnector,
    /// To tell one from another.
    ca: Option<Vec<u8>>,
    allow_addresses: Vec<IpNet>,
    allow_ports: Vec<u16>,
}

pub(super) struct Transport {
    settings: Settings,
    names: Names,
}

#[cfg(test)]
pub(super) type Script = Box<dyn Fn(&str) -> Vec<IpAddr> + Send + Sync>;

pub(super) enum Names {
    System,
    #[cfg(test)]
    Scripted(Script),
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Bytes,
    /// How long it may be kept, as far as the server says.
    pub(super) life: Option<Duration>,
}

impl Settings {
    /// `ca`: PEM of roots that servers may have besides the built-in ones; the error tells what is wrong with it.
    /// `allow_addresses`: networks that would be refused as internal. `allow_ports`: besides 443.
    pub(crate) fn new(ca: Option<&[u8]>, allow_addresses: Vec<IpNet>, allow_ports: Vec<u16>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(pem) = ca {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| error.to_string())?;
                roots.add(certificate).map_err(|error| error.to_string())?;
            }
            if roots.len() == before {
                return Err("no certificate in it".to_owned());
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Self { tls, ca: ca.map(<[u8]>::to_vec), allow_addresses, allow_ports })
    }
}

impl Transport {
    pub(super) fn new(settings: Settings, names: Names) -> Self {
        Self { settings, names }
    }

    pub(super) fn has(&self, settings: &Settings) -> bool {
        let rules = |of: &Settings| (of.ca.clone(), of.allow_addresses.clone(), of.allow_ports.clone());
        rules(&self.settings) == rules(settings)
    }

    /// Besides 443.
    pub(super) fn ports(&self) -> &[u16] {
        &self.settings.allow_ports
    }
    /// A document: the status must be 200 and the body at most `most` bytes.
    pub(super) async fn get(&self, target: &Target, most: usize) -> Result<Answer, FetchError> {
        let asking = async {
            let (head, body) = self.ask(target).await?;
            match head.status {
                StatusCode::OK => {}
                status if status.is_redirection() => return Err(FetchError::Redirect),
                status => return Err(FetchError::Status(status.as_u16())),
            }
            if head.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
                return Err(FetchError::Answer("it is compressed, which was not asked for".to_owned()));
            }
            let bytes = read(body, most).await?;
            Ok(Answer { bytes, life: life(&head.headers) })
        };
        timeout(DEADLINE, asking).await.unwrap_or(Err(FetchError::TimedOut))
    }

    /// A visit: what the page says is of no interest, only that it was served.
    pub(super) async fn visit(&self, target: &Target) -> Result<(), FetchError> {
        let asking = async {
            let (head, _) = self.ask(target).await?;
            match head.status {
                status if status.is_success() => Ok(()),
                status if status.is_redirection() => Err(FetchError::Redirect),
                status => Err(FetchError::Status(status.as_u16())),
            }
        };
        timeout(DEADLINE, asking).await.unwrap_or(Err(FetchError::TimedOut))
    }

    async fn ask(&self, target: &Target) -> Result<(http::response::Parts, Incoming), FetchError> {
        let server_name = target.server_name()?;
        let tcp = self.dial(target).await?;
        let tls = self.settings.tls.connect(server_name, tcp).await.map_err(|error| FetchError::Tls(cause(&error)))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| FetchError::Answer(cause(&error)))?;
        let request = Request::get(&target.path_and_query)
            .header(HOST, target.host_header())
            .header(USER_AGENT, concat!("hookward/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::Url("its path is none that can be sent"))?;
        // The task ends with the connection; the connection ends with the answer, or with the body that is dropped.
        tokio::spawn(async move { drop(connection.await) });
        let answer = sender.send_request(request).await.map_err(|error| FetchError::Answer(cause(&error)))?;
        Ok(answer.into_parts())
    }

    async fn dial(&self, target: &Target) -> Result<TcpStream, FetchError> {
        let until = Instant::now() + DEADLINE;
        let addresses = self.resolve(&target.host, target.port).await?;
        let mut last = FetchError::Address;
        for (position, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - position).unwrap_or(1);
            let share = until.saturating_duration_since(Instant::now()) / left;
            last = match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => FetchError::Connect(error.to_string()),
                Err(_) => FetchError::TimedOut,
            };
        }
        Err(last)
    }

    /// Only addresses that may be reached. None is an error of its own.
    async fn resolve(&self, host: &Name, port: u16) -> Result<Vec<SocketAddr>, FetchError> {
        let found: Vec<SocketAddr> = match (host, &self.names) {
            (Name::Address(address), _) => vec![SocketAddr::new(*address, port)],
            (Name::Domain(name), Names::System) => {
                let resolving = tokio::net::lookup_host((name.as_str(), port)).await;
                resolving.map_err(|error| FetchError::Resolve(error.to_string()))?.collect()
            }
            #[cfg(test)]
            (Name::Domain(name), Names::Scripted(script)) => {
                script(name).into_iter().map(|address| SocketAddr::new(address, port)).collect()
            }
        };
        let reachable =
            found.into_iter().filter(|address| may_be_reached(address.ip(), &self.settings.allow_addresses));
        let reachable: Vec<_> = reachable.take(MAX_ADDRESSES).collect();
        if reachable.is_empty() { Err(FetchError::Address) } else { Ok(reachable) }
    }
}

async fn read(body: Incoming, most: usize) -> Result<Bytes, FetchError> {
    if body.size_hint().lower() > most as u64 {
        return Err(FetchError::TooLarge(most));
    }
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(FetchError::TooLarge(most)),
        Err(error) => Err(FetchError::Answer(cause(&*error))),
    }
}

/// `Cache-Control` less `Age`. What cannot be read is as if nothing were said.
fn life(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let mut longest = None;
    for directive in lines.flat_map(|line| line.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if matches!(directive.as_str(), "no-store" | "no-cache") {
            return Some(Duration::ZERO);
        }
        if let Some(secs) = directive.strip_prefix("max-age=").and_then(|secs| secs.trim_matches('"').parse().ok()) {
            longest = Some(Duration::from_secs(secs));
        }
    }
    let age = headers.get(AGE).and_then(|age| age.to_str().ok()).and_then(|age| age.parse().ok()).unwrap_or(0);
    longest.map(|longest| longest.saturating_sub(Duration::from_secs(age)))
}

/// An error with its sources: the outermost sentence says only in which step it failed.
fn cause(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[(&'static str, &'static str)]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        life(&headers).map(|life| life.as_secs())
    }

    #[test]
    fn the_life_is_what_the_server_says_less_the_answers_age() {
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[("cache-control", "public, max-age=600")]), Some(600));
        assert_eq!(said(&[("cache-control", "Max-Age=600"), ("age", "100")]), Some(500));
        assert_eq!(said(&[("cache-control", "max-age=600"), ("age", "900")]), Some(0));
        assert_eq!(said(&[("cache-control", "max-age=600, no-cache")]), Some(0));
        assert_eq!(said(&[("cache-control", "public"), ("cache-control", "no-store")]), Some(0));
        assert_eq!(said(&[("cache-control", "max-age=-1")]), None);
        assert_eq!(said(&[("cache-control", "max-age=99999999999999999999999")]), None);
    }
}
