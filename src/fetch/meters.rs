//! How fetches are counted.
//!
//! Invariant: a bounded number of hosts is told apart, and none that only strangers have named: hosts of the
//! configuration, and those that once answered.

use prometheus::{Histogram, IntCounterVec, IntGauge};
#[cfg(test)]
use prometheus::{HistogramOpts, Opts};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// More hosts than this are counted as `other`: SNS alone has a host for each region.
const MOST_HOSTS: usize = 32;

pub(crate) struct Meters {
    /// By host and result.
    pub(crate) fetches: IntCounterVec,
    /// Seconds, of those that went out.
    pub(crate) duration: Histogram,
    /// Documents kept.
    pub(crate) documents: IntGauge,
    /// Guards the hosts that have a series of their own.
    hosts: Mutex<HashSet<String>>,
}

impl Meters {
    pub(crate) fn new(fetches: IntCounterVec, duration: Histogram, documents: IntGauge) -> Self {
        Self { fetches, duration, documents, hosts: Mutex::default() }
    }

    #[cfg(test)]
    pub(crate) fn unregistered() -> Self {
        let fetches = IntCounterVec::new(Opts::new("unregistered", "unregistered"), &["host", "result"]);
        let duration = Histogram::with_opts(HistogramOpts::new("unregistered", "unregistered"));
        let documents = IntGauge::new("unregistered", "unregistered");
        let valid = "a constant name is valid";
        Self::new(fetches.expect(valid), duration.expect(valid), documents.expect(valid))
    }

    pub(super) fn record(&self, host: &str, result: &str, is_ours: bool, took: Duration) {
        self.count(host, result, is_ours);
        self.duration.observe(took.as_secs_f64());
    }

    pub(super) fn count(&self, host: &str, result: &str, is_ours: bool) {
        let is_real = is_ours || result == "ok";
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = hosts.contains(host) || (is_real && hosts.len() < MOST_HOSTS && hosts.insert(host.to_owned()));
        drop(hosts);
        self.fetches.with_label_values(&[if known { host } else { "other" }, result]).inc();
    }
}
