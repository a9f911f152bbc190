//! How many connections there are, in all and of each client.
//!
//! Invariant: a permit is a value, and dropping it is the only way to give it back, so that no path out of a connection
//! (an error, a panic, an abort) can leak one. The table of clients holds only clients with a connection, so it is never
//! larger than the number of permits in all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::client::ClientKey;

/// Shared by all listeners of the process; its size follows the configuration.
pub(crate) struct Permits {
    /// Guards plain counting; nothing is done under it that can wait.
    counts: Mutex<Counts>,
    freed: Notify,
}

struct Counts {
    max: usize,
    held: usize,
    clients: HashMap<ClientKey, usize>,
}

impl Permits {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let counts = Counts { max, held: 0, clients: HashMap::new() };
        Arc::new(Self { counts: Mutex::new(counts), freed: Notify::new() })
    }

    /// Connections beyond a smaller size are left to end by themselves; until then nobody new gets in.
    pub(crate) fn resize(&self, max: usize) {
        self.counts().max = max;
        // Those who still find no room go back to waiting.
        self.freed.notify_waiters();
    }

    /// Waits for room. Cancelling it loses nothing.
    pub(super) async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            // Registered before looking, so that a permit given back in between is not missed.
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut counts = self.counts();
                if counts.held < counts.max {
                    counts.held += 1;
                    let room_is_left = counts.held < counts.max;
                    drop(counts);
                    // `resize` wakes only those who wait at that moment and `enable` may have eaten a wake-up meant
                    // for another listener: pass it on.
                    if room_is_left {
                        self.freed.notify_one();
                    }
                    return Permit(Arc::clone(self));
                }
            }
            freed.await;
        }
    }

    /// `None`: the client already has `max` connections.
    pub(super) fn acquire_client(self: &Arc<Self>, client: ClientKey, max: usize) -> Option<ClientPermit> {
        let mut counts = self.counts();
        let held = counts.clients.get(&client).copied().unwrap_or(0);
        if held >= max {
            return None;
        }
        counts.clients.insert(client, held + 1);
        Some(ClientPermit { permits: Arc::clone(self), client })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of the process.
pub(super) struct Permit(Arc<Permits>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.counts().held -= 1;
        self.0.freed.notify_one();
    }
}

/// One connection of a client.
pub(super) struct ClientPermit {
    permits: Arc<Permits>,
    client: ClientKey,
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut held) = self.permits.counts().clients.entry(self.client) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_permit_given_back_lets_the_next_one_in() {
        let permits = Permits::new(1);
        let first = permits.acquire().await;
        assert!(timeout(SOON, permits.acquire()).await.is_err());
        drop(first);
        assert!(timeout(SOON, permits.acquire()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn growing_lets_all_who_wait_in_and_shrinking_waits_for_those_inside() {
        let permits = Permits::new(1);
        let first = permits.acquire().await;
        let (second, third, ()) = tokio::join!(permits.acquire(), permits.acquire(), async { permits.resize(3) });
        permits.resize(1);
        drop((first, second));
        assert!(timeout(SOON, permits.acquire()).await.is_err(), "one is still held");
        drop(third);
        assert!(timeout(SOON, permits.acquire()).await.is_ok());
    }

    #[test]
    fn a_client_that_has_left_takes_no_room_in_the_table() {
        let permits = Permits::new(10);
        let client = ClientKey::of([192, 0, 2, 1].into());
        let held = permits.acquire_client(client, 2).unwrap();
        let also = permits.acquire_client(client, 2).unwrap();
        assert!(permits.acquire_client(client, 2).is_none());
        assert!(permits.acquire_client(ClientKey::of([192, 0, 2, 2].into()), 2).is_some());
        drop((held, also));
        assert!(permits.counts().clients.is_empty());
    }
}
