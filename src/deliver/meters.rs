//! How requests to an upstream end, and the handles that count it.

use super::failure::Fault;
use super::health::Sign;
use ::http::StatusCode;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};
use tokio::time::Instant;

/// How a request ended: the metric's `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Success,
    Redirect,
    ClientError,
    ServerError,
    Busy,
    Unavailable,
    TimedOut,
    Broken,
    TooLarge,
}

impl Ending {
    pub(crate) const ALL: [Self; 9] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::Busy,
        Self::Unavailable,
        Self::TimedOut,
        Self::Broken,
        Self::TooLarge,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timeout",
            Self::Broken => "broken",
            Self::TooLarge => "too_large",
        }
    }

    /// Statuses beyond 599 exist on the wire and mean nothing: they count as the server's errors.
    pub(super) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            ..300 => Self::Success,
            300..400 => Self::Redirect,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }

    pub(super) fn by(fault: Fault) -> Self {
        match fault {
            Fault::Busy => Self::Busy,
            Fault::Unavailable => Self::Unavailable,
            Fault::TimedOut => Self::TimedOut,
            Fault::Broken => Self::Broken,
            Fault::TooLarge => Self::TooLarge,
        }
    }

    pub(super) fn sign(self) -> Sign {
        match self {
            Self::Success | Self::Redirect | Self::ClientError | Self::ServerError => Sign::Life,
            Self::TimedOut | Self::Broken => Sign::Failure,
            Self::Unavailable => Sign::Unreachable,
            Self::Busy | Self::TooLarge => Sign::Nothing,
        }
    }
}

#[derive(Clone)]
pub(crate) struct Meters {
    /// In the order of `Ending::ALL`: once for each `send`, when its answer has been read to its end, whichever end.
    pub(crate) requests: [IntCounter; Ending::ALL.len()],
    /// Seconds, over the same time.
    pub(crate) duration: Histogram,
    /// By url, in the order of the settings.
    pub(crate) healthy: Vec<IntGauge>,
    /// The same; a broker has none.
    pub(crate) addresses: Vec<AddressMeters>,
    pub(crate) in_flight: IntGauge,
    pub(crate) idle_connections: IntGauge,
    /// Attempts after the first.
    pub(crate) repeats: IntCounter,
}

/// Of one url.
#[derive(Clone)]
pub(crate) struct AddressMeters {
    pub(crate) known: IntGauge,
    pub(crate) healthy: IntGauge,
    pub(crate) resolve_failures: IntCounter,
}

impl Meters {
    pub(crate) fn unregistered(urls: usize) -> Self {
        let counter = || IntCounter::new("unregistered", "unregistered").expect("a constant name is valid");
        let gauge = || IntGauge::new("unregistered", "unregistered").expect("a constant name is valid");
        let histogram = HistogramOpts::new("unregistered", "unregistered");
        Self {
            requests: std::array::from_fn(|_| counter()),
            duration: Histogram::with_opts(histogram).expect("a constant name is valid"),
            healthy: (0..urls).map(|_| gauge()).collect(),
            addresses: (0..urls)
                .map(|_| AddressMeters { known: gauge(), healthy: gauge(), resolve_failures: counter() })
                .collect(),
            in_flight: gauge(),
            idle_connections: gauge(),
            repeats: counter(),
        }
    }

    pub(crate) fn of(&self, ending: Ending) -> &IntCounter {
        &self.requests[ending as usize]
    }

    pub(super) fn record(&self, ending: Ending, started: Instant) {
        self.record_at(ending, started, Instant::now());
    }

    /// For whoever knows what time it is.
    pub(super) fn record_at(&self, ending: Ending, started: Instant, ended: Instant) {
        self.of(ending).inc();
        self.duration.observe(ended.saturating_duration_since(started).as_secs_f64());
    }
}
