//! Failed proofs, per client: judged by this gateway's own count, which others add to where the state is shared.

use std::sync::Arc;
use std::time::Duration;

use super::rate::{KeyedRate, Quota};
use super::redis::SharedFailures;
use crate::client::ClientKey;

pub(crate) struct Throttle {
    rate: Arc<KeyedRate>,
    shared: Option<Arc<SharedFailures>>,
}

impl Throttle {
    pub(super) fn alone(quota: Quota) -> Self {
        Self { rate: Arc::new(KeyedRate::new(quota, KeyedRate::DEFAULT_MAX_CLIENTS)), shared: None }
    }

    pub(super) fn shared(quota: Quota, share: impl FnOnce(&Arc<KeyedRate>) -> Arc<SharedFailures>) -> Self {
        let alone = Self::alone(quota);
        let shared = share(&alone.rate);
        Self { shared: Some(shared), ..alone }
    }

    /// Err: how long until this client may fail once more.
    pub(crate) fn take(&self, client: ClientKey) -> Result<(), Duration> {
        self.rate.take(client)?;
        if let Some(shared) = &self.shared {
            shared.note(client);
        }
        Ok(())
    }

    pub(crate) fn is_spent(&self, client: ClientKey) -> bool {
        self.rate.is_spent(client)
    }
}
