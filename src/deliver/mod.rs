//! Getting a parcel to the one it is for, and its answer back.
//!
//! Invariant: a parcel is offered a second time only where the first offer certainly did nothing (nothing was written),
//! or where the operator accepts the doubt (`repeat_on_stale`); every wait in here has a deadline; what an upstream
//! sends is bounded and never trusted to be well formed.

mod answer;
mod balance;
mod broker;
mod connect;
mod discover;
mod endpoint;
mod failure;
mod gate;
mod health;
pub(crate) mod http;
mod http1;
mod meters;
mod names;
mod pool;
mod queue;
mod retry;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub(crate) use self::answer::{Answer, AnswerBody};
pub(crate) use self::balance::Balance;
pub(crate) use self::broker::{
    Alphabet, AmqpServer, AmqpTarget, Broker, CeleryTask, DEFAULT_DEDUPE, DEFAULT_TIMEOUT as DEFAULT_BROKER_TIMEOUT,
    Declare, Engine, Format, LONGEST_SUBJECT, Login, NatsAuth, NatsTarget, Payload, RedisList,
    Settings as BrokerSettings, StreamTarget, Template,
};
pub(crate) use self::connect::Protocol;
pub(crate) use self::failure::{Fault, SendError};
pub(crate) use self::meters::{AddressMeters, Ending, Meters};
pub(crate) use self::retry::{Ended, Schedule, Statuses, Verdict, retry_after};
pub(crate) use self::settings::{BuildError, DEFAULT_PROBE_TIMEOUT, HealthCheck, Settings as HttpSettings};
#[cfg(fuzzing)]
pub(crate) use self::wire::read as read_answer;
use crate::parcel::{Parcel, Tag};

/// Where a parcel can go. A closed set, chosen by the configuration.
pub(crate) enum Destination {
    Http {
        upstream: Arc<http::Upstream>,
        settings: Box<HttpSettings>,
        /// Dropped with the destination: the health checks and the lookups end.
        _tending: watch::Sender<bool>,
    },
    Broker(Box<Broker>),
}

#[derive(Clone)]
pub(crate) enum Settings {
    Http(HttpSettings),
    Broker(BrokerSettings),
}

/// What came of a parcel that arrived.
pub(crate) enum Sent {
    /// Whoever got it said so in its own words.
    Answered(Answer),
    /// A broker has it, and has said that it will keep it.
    Confirmed,
}

impl Settings {
    pub(crate) fn name(&self) -> &Arc<str> {
        match self {
            Self::Http(settings) => &settings.name,
            Self::Broker(settings) => &settings.name,
        }
    }

    /// As an operator looks for them in the metrics: without credentials.
    pub(crate) fn url_labels(&self) -> Vec<String> {
        match self {
            Self::Http(settings) => settings.url_labels().collect(),
            Self::Broker(settings) => vec![settings.label()],
        }
    }

    pub(crate) fn is_broker(&self) -> bool {
        matches!(self, Self::Broker(_))
    }

    pub(crate) fn is_nats(&self) -> bool {
        matches!(self, Self::Broker(BrokerSettings { engine: Engine::Nats(_), .. }))
    }

    /// How long what is published twice under one name is published once, where that is for us to say.
    pub(crate) fn dedupe(&self) -> Option<Duration> {
        match self {
            Self::Broker(BrokerSettings { engine: Engine::CeleryOverRedis { list, .. }, .. }) => Some(list.dedupe),
            Self::Broker(BrokerSettings { engine: Engine::Stream { target, .. }, .. }) => Some(target.dedupe),
            Self::Http(_) | Self::Broker(_) => None,
        }
    }

    /// The largest that its sources take, for a broker that has to be asked whether it takes them.
    pub(crate) fn expect_bodies_of(&mut self, bytes: u64) {
        if let Self::Broker(BrokerSettings { engine: Engine::Nats(target), .. }) = self {
            target.max_body = bytes;
        }
    }
}

impl Destination {
    /// Builds it and starts its lookups and health checks, or begins to connect. `before`: what had its name until now.
    /// Needs a runtime.
    pub(crate) fn start(settings: Settings, meters: Meters, before: Option<&Self>) -> Result<Arc<Self>, BuildError> {
        let settings = match settings {
            Settings::Broker(settings) => {
                return Ok(Arc::new(Self::Broker(Box::new(Broker::start(settings, meters)?))));
            }
            Settings::Http(settings) => settings,
        };
        let upstream = http::Upstream::new(settings.clone(), meters)?;
        if let Some(Self::Http { upstream: before, .. }) = before {
            upstream.inherit(before);
        }
        let (tending, stop) = watch::channel(false);
        tokio::spawn(upstream.clone().tend(stop));
        Ok(Arc::new(Self::Http { upstream, settings: Box::new(settings), _tending: tending }))
    }

    /// Whether it was started with these settings, so that a reload can leave it as it is.
    pub(crate) fn has(&self, other: &Settings) -> bool {
        match (self, other) {
            (Self::Http { settings, .. }, Settings::Http(other)) => settings.is_same(other),
            (Self::Broker(broker), Settings::Broker(other)) => broker.settings().is_same(other),
            (Self::Http { .. } | Self::Broker(_), _) => false,
        }
    }

    pub(crate) fn is_broker(&self) -> bool {
        matches!(self, Self::Broker(_))
    }

    pub(crate) fn url_labels(&self) -> Vec<String> {
        match self {
            Self::Http { settings, .. } => settings.url_labels().collect(),
            Self::Broker(broker) => vec![broker.settings().label()],
        }
    }

    /// So many can be under way.
    pub(crate) fn most_at_once(&self) -> usize {
        match self {
            Self::Http { settings, upstream, .. } => {
                settings.urls.len().max(upstream.addresses()).saturating_mul(settings.max_in_flight)
            }
            Self::Broker(broker) => broker.settings().max_in_flight,
        }
    }

    pub(crate) async fn send(&self, parcel: &Parcel, tag: &Tag) -> Result<Sent, SendError> {
        match self {
            Self::Http { upstream, .. } => upstream.send(parcel).await.map(Sent::Answered),
            Self::Broker(broker) => Box::pin(broker.send(parcel, tag)).await.map(|()| Sent::Confirmed),
        }
    }

    /// Only if there is a place now that nobody waits for.
    pub(crate) async fn send_at_once(&self, parcel: &Parcel, tag: &Tag) -> Result<Sent, SendError> {
        match self {
            Self::Http { upstream, .. } => upstream.send_at_once(parcel).await.map(Sent::Answered),
            Self::Broker(broker) => Box::pin(broker.send_at_once(parcel, tag)).await.map(|()| Sent::Confirmed),
        }
    }

    /// Worth refusing a delivery before its body is read.
    pub(crate) fn is_saturated(&self) -> bool {
        match self {
            Self::Http { upstream, .. } => upstream.is_saturated(),
            Self::Broker(broker) => broker.is_saturated(),
        }
    }

    /// For readiness: something behind this is healthy, or not yet known to be bad.
    pub(crate) fn can_forward(&self) -> bool {
        match self {
            Self::Http { upstream, .. } => upstream.can_forward(),
            Self::Broker(broker) => broker.can_forward(),
        }
    }

    /// Gauges that are read, not kept.
    pub(crate) fn refresh_gauges(&self) {
        match self {
            Self::Http { .. } => {}
            Self::Broker(broker) => broker.refresh_gauges(),
        }
    }

    /// The longest that `send` and the reading of its answer can take: the lease of a claim is longer.
    pub(crate) fn longest(&self) -> Duration {
        match self {
            Self::Http { upstream, .. } => upstream.longest(),
            Self::Broker(broker) => broker.longest(),
        }
    }
}

/// Whether these settings can be put to work: certificates that parse, keys that fit, urls that can be asked.
pub(crate) fn check(settings: &HttpSettings) -> Result<(), BuildError> {
    http::Upstream::new(settings.clone(), Meters::unregistered(settings.urls.len())).map(drop)
}
