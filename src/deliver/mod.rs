//! Getting a parcel to the one it is for, and its answer back.
//!
//! Invariant: a parcel is offered a second time only where the first offer certainly did nothing (nothing was written),
//! or where the operator accepts the doubt (`repeat_on_stale`); every wait in here has a deadline; what an upstream
//! sends is bounded and never trusted to be well formed.

mod answer;
mod balance;
mod connect;
mod failure;
mod gate;
mod health;
pub(crate) mod http;
mod meters;
mod pool;
mod retry;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub(crate) use self::answer::{Answer, AnswerBody};
pub(crate) use self::balance::Balance;
pub(crate) use self::connect::{ClientIdentity, Protocol, TlsSettings};
pub(crate) use self::failure::{Fault, SendError};
pub(crate) use self::meters::{Ending, Meters};
pub(crate) use self::retry::{Ended, Schedule, Statuses, Verdict, retry_after};
pub(crate) use self::settings::{BuildError, DEFAULT_PROBE_TIMEOUT, HealthCheck, Settings};
use crate::parcel::Parcel;

/// Where a parcel can go. A closed set, chosen by the configuration.
pub(crate) enum Destination {
    Http {
        upstream: Arc<http::Upstream>,
        settings: Box<Settings>,
        /// Dropped with the destination: the health checks end.
        _probing: watch::Sender<bool>,
    },
}

impl Destination {
    /// Builds it and starts its health checks. Needs a runtime.
    pub(crate) fn start(settings: Settings, meters: Meters) -> Result<Arc<Self>, BuildError> {
        let upstream = http::Upstream::new(settings.clone(), meters)?;
        let (probing, stop) = watch::channel(false);
        tokio::spawn(upstream.clone().probe_forever(stop));
        Ok(Arc::new(Self::Http { upstream, settings: Box::new(settings), _probing: probing }))
    }

    /// Whether it was started with these settings, so that a reload can leave it as it is.
    pub(crate) fn has(&self, other: &Settings) -> bool {
        match self {
            Self::Http { settings, .. } => settings.is_same(other),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        match self {
            Self::Http { settings, .. } => settings,
        }
    }

    pub(crate) async fn send(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        match self {
            Self::Http { upstream, .. } => upstream.send(parcel).await,
        }
    }

    /// Only if there is a place now that nobody waits for.
    pub(crate) async fn send_at_once(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        match self {
            Self::Http { upstream, .. } => upstream.send_at_once(parcel).await,
        }
    }

    /// Worth refusing a delivery before its body is read.
    pub(crate) fn is_saturated(&self) -> bool {
        match self {
            Self::Http { upstream, .. } => upstream.is_saturated(),
        }
    }

    /// For readiness: something behind this is healthy, or not yet known to be bad.
    pub(crate) fn can_forward(&self) -> bool {
        match self {
            Self::Http { upstream, .. } => upstream.can_forward(),
        }
    }

    /// The longest that `send` and the reading of its answer can take: the lease of a claim is longer.
    pub(crate) fn longest(&self) -> Duration {
        match self {
            Self::Http { upstream, .. } => upstream.longest(),
        }
    }
}

/// Whether these settings can be put to work: certificates that parse, keys that fit, urls that can be asked.
pub(crate) fn check(settings: &Settings) -> Result<(), BuildError> {
    http::Upstream::new(settings.clone(), Meters::unregistered(settings.urls.len())).map(drop)
}
