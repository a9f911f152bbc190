//! What the configuration says of an HTTP upstream, and the defaults.

use super::balance::Balance;
use super::connect::Protocol;
use crate::tls_client::{TlsError, TlsSettings};
use ::http::Uri;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Below what the servers behind webhooks keep idle connections for: Node.js and uvicorn 5 s, most others longer
/// (nginx 75 s, Puma 20 s). Who closes first decides who races; `repeat_on_stale` covers the few that are shorter.
pub(crate) const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Enough for a burst to find its connections again, few enough not to weigh on the upstream.
pub(crate) const DEFAULT_MAX_IDLE_PER_URL: usize = 64;
pub(crate) const DEFAULT_MAX_ANSWER_HEAD: usize = 64 * 1024;
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const DEFAULT_QUEUE_TIMEOUT: Duration = Duration::from_millis(250);
pub(crate) const DEFAULT_MAX_IN_FLIGHT: usize = 256;
/// What an operator expects to wait after a rollout; the resolver's own cache keeps it cheap.
pub(crate) const DEFAULT_RESOLVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unless the interval is shorter.
pub(crate) const DEFAULT_PROBE_TIMEOUT: Duration = Duration::from_secs(2);
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    /// Scheme and authority; no path.
    pub(crate) urls: Vec<Uri>,
    /// From the first attempt to the last byte of the answer.
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    /// Per address.
    pub(crate) max_in_flight: usize,
    pub(crate) queue_timeout: Duration,
    pub(crate) balance: Balance,
    pub(crate) health: Option<HealthCheck>,
    pub(crate) tls: TlsSettings,
    pub(crate) protocol: Protocol,
    pub(crate) repeat_on_stale: bool,
    pub(crate) max_idle_per_url: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_answer_head: usize,
    /// How long the addresses of a name are believed.
    pub(crate) resolve_interval: Duration,
}

impl Settings {
    pub(crate) fn new(name: Arc<str>, urls: Vec<Uri>) -> Self {
        Self {
            name,
            urls,
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            queue_timeout: DEFAULT_QUEUE_TIMEOUT,
            balance: Balance::LeastRequests,
            health: None,
            tls: TlsSettings::default(),
            protocol: Protocol::Auto,
            repeat_on_stale: true,
            max_idle_per_url: DEFAULT_MAX_IDLE_PER_URL,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            max_answer_head: DEFAULT_MAX_ANSWER_HEAD,
            resolve_interval: DEFAULT_RESOLVE_INTERVAL,
        }
    }

    /// As an operator writes them and looks for them in the metrics: without the slash that an empty path prints as.
    pub(crate) fn url_labels(&self) -> impl Iterator<Item = String> {
        self.urls.iter().map(|url| url.to_string().trim_end_matches('/').to_owned())
    }

    /// Equal in everything. Written out, so that a new setting cannot be left out unseen.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let Self {
            name,
            urls,
            timeout,
            connect_timeout,
            max_in_flight,
            queue_timeout,
            balance,
            health,
            tls,
            protocol,
            repeat_on_stale,
            max_idle_per_url,
            idle_timeout,
            max_answer_head,
            resolve_interval,
        } = self;
        *name == other.name
            && *urls == other.urls
            && (*timeout, *connect_timeout, *queue_timeout, *idle_timeout)
                == (other.timeout, other.connect_timeout, other.queue_timeout, other.idle_timeout)
            && (*max_in_flight, *max_idle_per_url, *max_answer_head)
                == (other.max_in_flight, other.max_idle_per_url, other.max_answer_head)
            && *resolve_interval == other.resolve_interval
            && (*balance, *protocol, *repeat_on_stale) == (other.balance, other.protocol, other.repeat_on_stale)
            && *health == other.health
            && tls.is_same(&other.tls)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub(crate) path: String,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum BuildError {
    #[error("the upstream has no url")]
    NoUrls,
    #[error("url {url} cannot be used: {why}")]
    Url { url: String, why: &'static str },
    #[error("the health path {path:?} is not one that HTTP can carry; it begins with `/`")]
    HealthPath { path: String },
    #[error("the upstream's {0}")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Broker(String),
}
