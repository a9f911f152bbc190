//! What first deliveries spend: a source's budgets, shared by all its senders or one for each client.
//!
//! Invariant: a delivery that is over one of them spends nothing of the others. A client that is over its own takes
//! nothing of what all share, nor loses its own when that is spent: so its own is looked at first and taken last.

use std::time::Duration;

use super::rate::{KeyedRate, Quota, Rate};
use crate::client::ClientKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Per {
    Source,
    Client,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RateLimit {
    pub(crate) quota: Quota,
    pub(crate) per: Per,
}

/// One source's, in this process. They outlive reloads that do not change them.
pub(crate) struct Limits {
    limits: Vec<RateLimit>,
    buckets: Vec<Bucket>,
}

enum Bucket {
    Source(Rate),
    Client(KeyedRate),
}

impl Limits {
    pub(crate) fn new(limits: &[RateLimit]) -> Self {
        let bucket = |limit: &RateLimit| match limit.per {
            Per::Source => Bucket::Source(Rate::new(limit.quota)),
            Per::Client => Bucket::Client(KeyedRate::new(limit.quota, KeyedRate::DEFAULT_MAX_CLIENTS)),
        };
        Self { limits: limits.to_vec(), buckets: limits.iter().map(bucket).collect() }
    }

    pub(crate) fn are(&self, limits: &[RateLimit]) -> bool {
        self.limits == limits
    }

    /// For a store that spends them for all gateways: each limit, and whose budget of it.
    pub(super) fn of(&self, client: ClientKey) -> Vec<(Option<ClientKey>, &RateLimit)> {
        let of_client = |limit: &RateLimit| (limit.per == Per::Client).then_some(client);
        self.limits.iter().map(|limit| (of_client(limit), limit)).collect()
    }

    /// One delivery's worth of every limit. Err: how long to wait.
    pub(super) fn spend(&self, client: ClientKey) -> Result<(), Duration> {
        let own = || {
            self.buckets.iter().filter_map(|bucket| if let Bucket::Client(rate) = bucket { Some(rate) } else { None })
        };
        own().try_for_each(|rate| rate.peek(client))?;
        for bucket in &self.buckets {
            if let Bucket::Source(rate) = bucket {
                rate.take()?;
            }
        }
        own().try_for_each(|rate| rate.take(client))
    }
}
