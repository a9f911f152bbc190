//! Failed proofs, counted here and told to the other gateways a moment later.
//!
//! Invariant: no request waits for it. A client is throttled by what its own gateway counted at once, and by what the
//! others counted within a fraction of a second; were Redis away, by its own gateway alone. The keys that strangers
//! make in Redis are bounded as the gateway's own table is: each is gone when its budget is full, and newcomers to a
//! full table share one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::Value;

use super::super::{KeyedRate, Quota};
use super::Shared;
use super::wire::micros;
use crate::client::ClientKey;

/// Clients between two rounds. Failures of more are not told.
const MOST_CLIENTS: usize = 8192;

/// Of one call.
const AT_ONCE: usize = 100;

pub(crate) struct SharedFailures {
    source: Arc<str>,
    quota: Quota,
    rate: Arc<KeyedRate>,
    // Guards the map alone, for an addition or to take it.
    untold: Mutex<HashMap<ClientKey, u32>>,
}

impl SharedFailures {
    pub(super) fn new(source: &str, quota: Quota, rate: &Arc<KeyedRate>) -> Self {
        Self { source: source.into(), quota, rate: rate.clone(), untold: Mutex::default() }
    }

    pub(crate) fn note(&self, client: ClientKey) {
        self.add(client, 1);
    }

    fn add(&self, client: ClientKey, more: u32) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() < MOST_CLIENTS || untold.contains_key(&client) {
            let count = untold.entry(client).or_default();
            *count = count.saturating_add(more);
        }
    }

    pub(super) async fn share(&self, shared: &Shared) {
        let untold = std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner));
        let mut untold: Vec<_> = untold.into_iter().collect();
        while !untold.is_empty() {
            let some = untold.split_off(untold.len().saturating_sub(AT_ONCE));
            let keys: Vec<_> = some
                .iter()
                .map(|(client, _)| format!("{}:{{{}}}:failed:{client}", shared.prefix, self.source))
                .collect();
            let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
            let (cell, burst) = (micros(self.quota.cell()), self.quota.burst().to_string());
            let counts: Vec<_> = some.iter().map(|(_, count)| count.to_string()).collect();
            let mut arguments = vec![b"server".as_slice(), b"0", &cell, burst.as_bytes()];
            arguments.extend(counts.iter().map(String::as_bytes));
            let Ok(Value::Array(waits)) =
                shared.link.run(&shared.scripts.failures, &keys, &arguments, shared.timeout).await
            else {
                // Told again in the next round, though it may have been heard: a throttle may be too strict for a moment.
                some.into_iter().chain(untold).for_each(|(client, count)| self.add(client, count));
                return;
            };
            for ((client, _), wait) in some.iter().zip(waits) {
                if let Value::Int(wait) = wait {
                    self.rate.adopt(*client, Duration::from_micros(u64::try_from(wait).unwrap_or(0)));
                }
            }
        }
    }
}
