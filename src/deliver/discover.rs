//! What goes on beside the requests for as long as an upstream lives: its names are looked up again and again, and its
//! endpoints are probed.
//!
//! Invariant: no answer of a resolver takes away the last address that is known. A name is looked up by one lookup at a
//! time, never more often than once in `LEAST_PAUSE`; one that hangs holds up its own name and nothing else.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connect::EndOnDrop;
use super::endpoint::{Endpoint, Probe, Site};
use super::gate::Id;
use super::http::Gate;
use super::names::{Address, Names};

/// Several gateways must not probe or ask in step.
const JITTER: std::ops::RangeInclusive<f64> = 0.8..=1.1;
/// A lookup that takes longer is told of as failed. Its answer counts all the same, whenever it comes.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// However much somebody wishes to know: resolvers are not to be stormed because an upstream is down.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// What all names of one upstream share with its requests.
pub(super) struct Discovery {
    names: Arc<Names>,
    upstream: Arc<str>,
    interval: Duration,
    /// So many names have not been looked up even once.
    new: watch::Sender<usize>,
    /// By url: somebody found all its addresses unreachable.
    hurry: Vec<Notify>,
    /// The last failure, for the error of a request that finds no address at all.
    trouble: Mutex<Option<String>>,
}

/// Looks after one url.
pub(super) struct Keeper {
    site: Arc<Site>,
    gate: Arc<Gate>,
    discovery: Arc<Discovery>,
    probe: Option<Probe>,
    probing: HashMap<Id, EndOnDrop>,
    failures: Option<IntCounter>,
    is_failing: bool,
}

impl Discovery {
    pub(super) fn new(names: Names, upstream: Arc<str>, interval: Duration, sites: &[Arc<Site>]) -> Self {
        Self {
            names: Arc::new(names),
            upstream,
            interval,
            new: watch::Sender::new(sites.iter().filter(|site| site.name().is_some()).count()),
            hurry: sites.iter().map(|_| Notify::new()).collect(),
            trouble: Mutex::new(None),
        }
    }

    pub(super) fn is_new(&self) -> bool {
        *self.new.borrow() > 0
    }

    /// Until every name was looked up once, or as soon as it is `enough`.
    pub(super) async fn looked(&self, enough: impl Fn() -> bool) {
        // The sender is here, so it cannot have gone.
        let _ = self.new.subscribe().wait_for(|new| *new == 0 || enough()).await;
    }

    /// The next lookup of the url's name is due at once.
    pub(super) fn hurry(&self, url: usize) {
        if let Some(hurry) = self.hurry.get(url) {
            hurry.notify_one();
        }
    }

    /// Why there is no address; somebody who wants one asks for it to be looked for at once.
    pub(super) fn nowhere(&self) -> String {
        self.hurry.iter().for_each(Notify::notify_one);
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        format!("resolving: {}", trouble.as_deref().unwrap_or("no answer yet"))
    }
}

impl Keeper {
    pub(super) fn new(
        site: Arc<Site>,
        gate: Arc<Gate>,
        discovery: Arc<Discovery>,
        probe: Option<Probe>,
        failures: Option<IntCounter>,
    ) -> Self {
        Self { site, gate, discovery, probe, probing: HashMap::new(), failures, is_failing: false }
    }

    /// For ever: it ends by being dropped.
    pub(super) async fn keep(mut self) {
        self.probe_all();
        let Some(name) = self.site.name().cloned() else {
            return std::future::pending().await;
        };
        let mut is_new = true;
        let mut patience = LEAST_PAUSE;
        loop {
            let asked = Instant::now();
            let looking = Arc::clone(&self.discovery.names).look_up(Arc::clone(&name), self.site.port());
            let mut looking = pin!(looking);
            let found = match timeout(LOOKUP_TIMEOUT, &mut looking).await {
                Ok(found) => found,
                Err(_) => {
                    self.failed(&format!("no answer after {LOOKUP_TIMEOUT:?}"));
                    self.has_looked(&mut is_new);
                    looking.await
                }
            };
            match found {
                Ok(addresses) => self.found(&addresses),
                Err(error) => self.failed(&error),
            }
            self.has_looked(&mut is_new);
            // Where nothing is known, waiting for the whole interval would be waiting for nothing.
            let interval = if self.knows_some() { self.discovery.interval } else { patience };
            patience = (patience * 2).min(self.discovery.interval).max(LEAST_PAUSE);
            tokio::select! {
                () = sleep(interval.mul_f64(rand::random_range(JITTER))) => {}
                () = self.hurried(asked) => {}
            }
        }
    }

    fn has_looked(&self, is_new: &mut bool) {
        if std::mem::take(is_new) {
            self.discovery.new.send_modify(|new| *new = new.saturating_sub(1));
        }
    }

    fn knows_some(&self) -> bool {
        !self.gate.endpoints(self.site.index).is_empty()
    }

    async fn hurried(&self, asked: Instant) {
        match self.discovery.hurry.get(self.site.index) {
            Some(hurry) => hurry.notified().await,
            None => std::future::pending().await,
        }
        sleep_until(asked + LEAST_PAUSE).await;
    }

    fn found(&mut self, addresses: &[Address]) {
        let was_known = self.knows_some();
        let change = self.gate.arrange(self.site.index, addresses, |address| self.site.endpoint(address));
        for endpoint in &change.left {
            endpoint.pool.close();
        }
        self.probe_all();
        let (upstream, name) = (&*self.discovery.upstream, self.site.label());
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(upstream, name, addresses = addresses.len(), "the upstream's name is resolved again");
        }
        let (joined, left) = (change.joined, change.left.len());
        if was_known && joined + left > 0 {
            tracing::info!(
                upstream,
                name,
                joined,
                left,
                addresses = addresses.len(),
                "the upstream's addresses changed"
            );
        }
    }

    fn failed(&mut self, error: &str) {
        let (upstream, name) = (&*self.discovery.upstream, self.site.label());
        let known = self.gate.endpoints(self.site.index).len();
        if known == 0 {
            self.gate.not_found(self.site.index);
        }
        if let Some(failures) = &self.failures {
            failures.inc();
        }
        // Once, until it is mended: it is asked again all the time.
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                upstream,
                name,
                error,
                known,
                "the upstream's name cannot be resolved; the addresses known before stay in use"
            );
        }
        let trouble = format!("{name}: {error}");
        *self.discovery.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    /// Those that joined are probed from now on, those that left no more.
    fn probe_all(&mut self) {
        let Some(probe) = &self.probe else { return };
        let endpoints = self.gate.endpoints(self.site.index);
        self.probing.retain(|id, _| endpoints.iter().any(|(used, _)| used == id));
        for (id, endpoint) in endpoints {
            self.probing.entry(id).or_insert_with(|| {
                let (gate, discovery) = (Arc::clone(&self.gate), Arc::clone(&self.discovery));
                let probing = probe_one(id, endpoint, gate, discovery, probe.clone(), self.site.index);
                EndOnDrop(tokio::spawn(probing).abort_handle())
            });
        }
    }
}

async fn probe_one(
    id: Id,
    endpoint: Arc<Endpoint>,
    gate: Arc<Gate>,
    discovery: Arc<Discovery>,
    probe: Probe,
    url: usize,
) {
    loop {
        let is_healthy = endpoint.is_healthy(&probe).await;
        gate.probed(id, is_healthy);
        if !is_healthy && !gate.is_healthy(url) {
            discovery.hurry(url);
        }
        sleep(probe.interval.mul_f64(rand::random_range(JITTER))).await;
    }
}
