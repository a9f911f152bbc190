//! The real binary on ports of its own, an upstream that records and misbehaves on demand, and a sender that signs.
//! Nothing is mocked, and nothing waits for a length of time where it can wait for an event.

pub(crate) mod certs;
pub(crate) mod consumers;
pub(crate) mod curl;
pub(crate) mod engines;
pub(crate) mod folder;
pub(crate) mod frames;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod sign;
pub(crate) mod upstream;

pub(crate) use curl::Curl;
pub(crate) use gateway::Gateway;
pub(crate) use http::{Answer, Request};
pub(crate) use upstream::{Gate, Reply, Upstream};

use std::time::{Duration, Instant};

/// How long a test waits for what must happen: long, because a loaded machine is slow; it is the length of a failure
/// and never that of a success.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `done` says something, or panics with `what`.
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
