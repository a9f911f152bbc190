//! Out of the inbox: every upstream's waiting tasks to where they go.
//!
//! Invariant: whatever is configured or not, a stored task is delivered, dead by its schedule, or waiting. Those of an
//! upstream that is no longer configured wait until it is again.

mod attempt;
mod breaker;
mod flow;
mod line;

use super::Door;
use super::source::{Sources, Way};
use crate::inbox::{Inbox, State};
use crate::telemetry::Metrics;
use line::Line;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Takes away the series of an upstream that is gone.
pub(super) fn forget(upstream: &str, sources: &Sources, metrics: &Metrics) {
    let sources = sources.all().iter().map(|source| &*source.settings.name);
    metrics.forget_deliveries_to(upstream, &attempt::Outcome::ALL.map(attempt::Outcome::label), sources);
}

/// What the deliverers are told.
pub(super) struct Dispatch {
    reloaded: watch::Sender<()>,
    stopped: watch::Sender<bool>,
}

impl Dispatch {
    pub(super) fn new() -> Self {
        Self { reloaded: watch::Sender::new(()), stopped: watch::Sender::new(false) }
    }

    pub(super) fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Another configuration is in force.
    pub(super) fn reloaded(&self) {
        self.reloaded.send_replace(());
    }
}

impl Door {
    /// Begins to deliver what the inbox holds, now or once there is one.
    pub(crate) fn start_dispatching(self: &Arc<Self>) {
        tokio::spawn(supervise(self.clone()));
    }

    /// Attempts under way go on; no other begins.
    pub(crate) fn stop_dispatching(&self) {
        self.dispatch.stopped.send_replace(true);
    }
}

struct Running {
    line: Arc<Line>,
    task: JoinHandle<()>,
}

async fn supervise(door: Arc<Door>) {
    let (mut reloaded, mut stopped) = (door.dispatch.reloaded.subscribe(), door.dispatch.stopped.subscribe());
    let mut lines: HashMap<Arc<str>, Running> = HashMap::new();
    loop {
        if let Some(inbox) = door.inbox.load_full() {
            adjust(&door, &inbox, &mut lines).await;
            tell_of_strays(&door, &inbox);
        }
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            changed = reloaded.changed() => if changed.is_err() { break },
        }
    }
    for running in lines.into_values() {
        running.end().await;
    }
}

/// A line for every upstream that there is, and for no other.
async fn adjust(door: &Arc<Door>, inbox: &Arc<Inbox>, lines: &mut HashMap<Arc<str>, Running>) {
    let gateway = door.snapshot();
    let gone: Vec<_> = lines.keys().filter(|name| !gateway.upstreams.contains_key(&***name)).cloned().collect();
    for name in gone {
        if let Some(running) = lines.remove(&name) {
            running.end().await;
        }
    }
    for name in gateway.upstreams.keys().filter(|name| !lines.contains_key(name.as_str())).collect::<Vec<_>>() {
        let upstream: Arc<str> = name.as_str().into();
        let line = Line::new(door.clone(), inbox.clone(), upstream.clone());
        let task = tokio::spawn(line.clone().run(door.dispatch.reloaded.subscribe()));
        lines.insert(upstream, Running { line, task });
    }
    // At zero with their source, so that `rate()` sees the first.
    for source in gateway.sources.all().iter().filter(|source| source.settings.delivery == Way::Inbox) {
        for upstream in source.settings.routes.upstreams() {
            door.metrics.inbox_dead(&source.settings.name, upstream);
        }
    }
}

impl Running {
    async fn end(self) {
        self.task.abort();
        // Ended or aborted: either way it takes no task any more.
        let _ = self.task.await;
        self.line.rest();
    }
}

fn tell_of_strays(door: &Door, inbox: &Inbox) {
    let gateway = door.snapshot();
    let mut strays: BTreeMap<Arc<str>, i64> = BTreeMap::new();
    for count in inbox.counts() {
        let waits = matches!(count.state, State::Waiting | State::Behind) && count.tasks > 0;
        if waits && !gateway.upstreams.contains_key(&*count.upstream) {
            *strays.entry(count.upstream).or_default() += count.tasks;
        }
    }
    for (upstream, waiting) in strays {
        tracing::warn!(
            upstream = &*upstream,
            waiting,
            "deliveries wait in the inbox for an upstream that is not configured; they go when it is again"
        );
    }
}
