//! One upstream's tasks, one after the other into as many attempts at a time as it bears.
//!
//! Invariant: upstreams share nothing here but the store: what one does, however slowly, keeps no other waiting.

use super::flow::Flow;
use crate::deliver::Destination;
use crate::gateway::Door;
use crate::gateway::dispatch::attempt;
use crate::inbox::{Feed, Inbox, Loaded};
use crate::telemetry::Metrics;
use prometheus::{Histogram, IntCounter};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

pub(super) struct Line {
    pub(super) door: Arc<Door>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) upstream: Arc<str>,
    pub(super) meters: Meters,
    /// For the one that waits for a place among the senders who wait for an answer.
    pub(super) in_line: Semaphore,
    feed: Arc<Feed>,
    flow: Arc<Flow>,
}

pub(super) struct Meters {
    /// In the order of `attempt::Outcome::ALL`.
    attempts: [IntCounter; attempt::Outcome::ALL.len()],
    /// Seconds from the acceptance to the delivery.
    pub(super) duration: Histogram,
}

impl Meters {
    fn new(metrics: &Metrics, upstream: &str) -> Self {
        Self {
            attempts: attempt::Outcome::ALL.map(|result| metrics.inbox_attempts(upstream, result.label())),
            duration: metrics.inbox_delivery_seconds(upstream),
        }
    }

    pub(super) fn count(&self, result: attempt::Outcome) {
        self.attempts[result as usize].inc();
    }
}

impl Line {
    pub(super) fn new(door: Arc<Door>, inbox: Arc<Inbox>, upstream: Arc<str>) -> Arc<Self> {
        let (feed, stage) = (inbox.feed(&upstream), door.metrics.inbox_breaker_state(&upstream));
        stage.set(0);
        let meters = Meters::new(&door.metrics, &upstream);
        let flow = Flow::new(upstream.clone(), stage);
        Arc::new(Self { door, inbox, upstream, meters, in_line: Semaphore::new(1), feed, flow })
    }

    /// Until it is dropped. Attempts under way go on.
    pub(super) async fn run(self: Arc<Self>, mut reloaded: watch::Receiver<()>) {
        loop {
            let snapshot = self.door.snapshot();
            let most = snapshot.upstreams.get(&*self.upstream).map(|upstream| most_at_once(upstream));
            drop(snapshot);
            let sending = async {
                match most {
                    Some(most) => self.send_one(most).await,
                    // Gone by a reload: whoever began this is about to end it.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = reloaded.changed() => {}
                () = sending => {}
            }
        }
    }

    async fn send_one(self: &Arc<Self>, most: usize) {
        self.flow.clear(most).await;
        let lease = self.feed.next(&self.inbox).await;
        if matches!(lease.loaded(), Loaded::Unreadable { .. }) {
            tokio::spawn(self.clone().bury(lease));
            return;
        }
        if lease.is_old() {
            let (inbox, key) = (self.inbox.clone(), lease.loaded().key().clone());
            let waits = tokio::task::spawn_blocking(move || inbox.waits(&key)).await;
            // One that cannot be looked up is sent: twice is better than never.
            if matches!(waits, Ok(Ok(false))) {
                drop(lease);
                return;
            }
        }
        let Some(passage) = self.flow.enter() else {
            lease.put_back();
            return;
        };
        let work = self.door.detached.clone().try_acquire_owned();
        // The process is ending, and waits for what is under way: no more of it.
        let (Ok(work), false) = (work, self.door.dispatch.is_stopped()) else {
            lease.put_back();
            return std::future::pending().await;
        };
        let line = self.clone();
        tokio::spawn(async move {
            line.attempt(lease, passage).await;
            drop(work);
        });
    }

    /// Nobody takes tasks any more.
    pub(super) fn rest(&self) {
        self.feed.rest();
    }
}

fn most_at_once(upstream: &Destination) -> usize {
    upstream.most_at_once().max(1)
}
