//! One connection to one endpoint: TCP, TLS, HTTP handshake.
//!
//! Invariant: the TLS provider and roots are the ones given here, never a process-wide default; a connection's tasks
//! end when it is dropped.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::failure::cause;
use super::http1::{Connection, Transport};
use super::names::{Address, Host};
use super::settings::BuildError;
use crate::tls_client::TlsSettings;

/// HTTP/2 asks a silent peer whether it lives while requests wait for it: all requests share the connection, and TCP
/// alone would take a quarter of an hour to notice.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers to webhooks are small; the window bounds what an upstream can make us hold.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Of unsent body, per stream; the body is in memory already.
const SEND_BUFFER: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1 in the clear; over TLS what the upstream prefers.
    Auto,
    Http1,
    /// In the clear: prior knowledge. Over TLS: offered alone.
    Http2,
}

/// What all endpoints of one url share.
pub(super) struct Connector {
    pub(super) host: Host,
    pub(super) port: u16,
    protocol: Protocol,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    max_answer_head: usize,
}

pub(super) enum Opened {
    Single(Box<Connection>),
    Shared(Shared),
}

pub(super) type Request = http::Request<Full<Bytes>>;

/// HTTP/2: many requests at once.
pub(super) struct Shared {
    pub(super) sender: http2::SendRequest<Full<Bytes>>,
    /// How many streams the peer allows, as far as it is known.
    pub(super) limit: Arc<AtomicUsize>,
    /// It has brought an answer to some request.
    pub(super) was_used: AtomicBool,
    /// Closed when the connection has ended.
    pub(super) ended: watch::Receiver<()>,
    _tasks: watch::Sender<()>,
}

impl Connector {
    pub(super) fn new(
        url: &http::Uri,
        tls: Option<&Arc<ClientConfig>>,
        server_name: Option<&str>,
        protocol: Protocol,
        max_answer_head: usize,
    ) -> Result<Self, BuildError> {
        let invalid = |why: &'static str| BuildError::Url { url: without_user(url), why };
        let authority = url.authority().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it carries a user or password"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(invalid("it has a path; use the source's upstream_path"));
        }
        let host = Host::new(authority.host());
        let is_tls = if url.scheme() == Some(&Scheme::HTTPS) {
            true
        } else if url.scheme() == Some(&Scheme::HTTP) {
            false
        } else {
            return Err(invalid("its scheme is neither http nor https"));
        };
        let port = match (authority.port_u16(), is_tls) {
            (Some(0), _) => return Err(invalid("its port is 0")),
            (Some(port), _) => port,
            (None, _) if authority.port().is_some() => {
                return Err(invalid("its port is not a number below 65536"));
            }
            (None, true) => 443,
            (None, false) => 80,
        };
        let tls = match tls {
            Some(config) if is_tls => {
                // The url's own, whatever address the name has: that is what the certificate is for.
                let own = || match &host {
                    Host::Literal(address) => address.to_string(),
                    Host::Name(name) => name.to_string(),
                };
                let name = ServerName::try_from(server_name.map_or_else(own, ToOwned::to_owned))
                    .map_err(|_| invalid("its host or tls.server_name is no DNS name or address"))?;
                Some((TlsConnector::from(Arc::clone(config)), name))
            }
            _ => None,
        };
        Ok(Self { host, port, protocol, tls, max_answer_head })
    }

    /// Whether several requests can be expected to share a connection, before there is one.
    pub(super) fn expects_shared(&self) -> bool {
        self.protocol == Protocol::Http2
    }

    /// The caller holds the deadline; `until` only lets each address have its share of the time.
    pub(super) async fn open(&self, address: &Address, until: Instant) -> Result<Opened, String> {
        let tcp = dial(address, until).await?;
        // Heads and bodies are written whole; waiting for more would only add latency.
        tcp.set_nodelay(true).map_err(|error| format!("connecting: {error}"))?;
        let single = |transport| Ok(Opened::Single(Connection::new(transport, self.max_answer_head)));
        let Some((connector, name)) = &self.tls else {
            return match self.protocol {
                Protocol::Auto | Protocol::Http1 => single(Transport::Plain(tcp)),
                Protocol::Http2 => self.open_shared(tcp).await,
            };
        };
        let tls =
            connector.connect(name.clone(), tcp).await.map_err(|error| format!("TLS handshake: {}", cause(&error)))?;
        let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        match (is_h2, self.protocol) {
            (true, _) => self.open_shared(tls).await,
            (false, Protocol::Auto | Protocol::Http1) => single(Transport::Tls(Box::new(tls))),
            (false, Protocol::Http2) => Err("TLS handshake: the upstream does not offer HTTP/2".to_owned()),
        }
    }

    async fn open_shared<T>(&self, stream: T) -> Result<Opened, String>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (tasks, stop) = watch::channel(());
        let shaken = http2::Builder::new(UntilStopped(stop.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(self.max_answer_head).unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = shaken.map_err(|error| format!("HTTP/2 handshake: {}", cause(&error)))?;
        let limit = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        let (lives, ended) = watch::channel(());
        let known = Arc::clone(&limit);
        hyper::rt::Executor::execute(&UntilStopped(stop), async move {
            let mut connection = pin!(connection);
            // The peer's limit is known only to the connection, which only this task can ask.
            let outcome = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                known.store(connection.current_max_send_streams(), Ordering::Relaxed);
                polled
            });
            // As above: requests are told.
            drop(outcome.await);
            drop(lives);
        });
        Ok(Opened::Shared(Shared { sender, limit, was_used: AtomicBool::new(false), ended, _tasks: tasks }))
    }
}

async fn dial(address: &Address, until: Instant) -> Result<TcpStream, String> {
    let mut last = "connecting: there is no address".to_owned();
    for (position, one) in address.0.iter().enumerate() {
        let left = u32::try_from(address.0.len() - position).unwrap_or(1);
        let share = until.saturating_duration_since(Instant::now()) / left;
        last = match timeout(share, TcpStream::connect(one)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => format!("connecting: {error}"),
            Err(_) => "connecting: no answer in time".to_owned(),
        };
    }
    Err(last)
}

/// What all https urls of one upstream share: roots, identity, and what is offered.
pub(super) fn client_config(settings: &TlsSettings, protocol: Protocol) -> Result<Arc<ClientConfig>, BuildError> {
    let mut config = settings.client_config()?;
    config.alpn_protocols = match protocol {
        Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Protocol::Http1 => vec![b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"h2".to_vec()],
    };
    Ok(Arc::new(config))
}

fn without_user(url: &http::Uri) -> String {
    let authority = url.authority().map_or("", Authority::as_str);
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}", url.scheme_str().unwrap_or_default())
}

/// Ends a task when it is dropped.
pub(super) struct EndOnDrop(pub(super) AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs hyper's HTTP/2 tasks until the connection's owner drops the other end of the channel.
#[derive(Clone)]
struct UntilStopped(watch::Receiver<()>);

impl<F> hyper::rt::Executor<F> for UntilStopped
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let mut stop = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = task => {}
                // Nothing is ever sent: this is the owner's drop.
                _ = stop.changed() => {}
            }
        });
    }
}
