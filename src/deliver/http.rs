//! An HTTP upstream: several urls with their addresses, and what is owed to a request until its answer has been read.
//!
//! Invariant: one deadline covers all attempts and the whole answer. A request goes to another endpoint only if nothing
//! of it was written; it is repeated after something was written at most once, and only where a used connection ended
//! without a byte of an answer. Everything else is a failure for the sender to repeat. No request looks a name up; it
//! waits for a lookup only while no address of any url has ever been known.

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use ::http::uri::Scheme;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, AnswerBody, Live};
use super::connect;
use super::discover::{Discovery, Keeper};
use super::endpoint::{Answered, Endpoint, Failed, Probe, Site};
use super::failure::{Fault, SendError};
use super::gate::{self, NoPlace, Shown};
use super::health::Sign;
use super::meters::{Ending, Meters};
use super::names::Names;
use super::pool::Lease;
use super::settings::{BuildError, Settings};

use crate::clock;
use crate::parcel::Parcel;

pub(super) type Gate = gate::Gate<Endpoint>;
type Slot = gate::Slot<Endpoint>;

pub(crate) struct Upstream {
    name: Arc<str>,
    sites: Vec<Arc<Site>>,
    gate: Arc<Gate>,
    discovery: Arc<Discovery>,
    meters: Arc<Meters>,
    timeout: Duration,
    connect_timeout: Duration,
    queue_timeout: Duration,
    repeat_on_stale: bool,
    health: Option<Probe>,
    /// Dropped with the upstream: the probing and the looking up end.
    alive: watch::Sender<()>,
}

impl Upstream {
    /// Names have no address until `tend` runs.
    pub(crate) fn new(settings: Settings, meters: Meters) -> Result<Arc<Self>, BuildError> {
        Self::asking(Names::System, settings, meters)
    }

    pub(super) fn asking(names: Names, settings: Settings, meters: Meters) -> Result<Arc<Self>, BuildError> {
        if settings.urls.is_empty() {
            return Err(BuildError::NoUrls);
        }
        let any_tls = settings.urls.iter().any(|url| url.scheme() == Some(&Scheme::HTTPS));
        let tls = any_tls.then(|| connect::client_config(&settings.tls, settings.protocol)).transpose()?;
        let site =
            |(index, url)| Site::new(index, url, &settings, tls.as_ref(), &meters.idle_connections).map(Arc::new);
        let sites: Vec<_> = settings.urls.iter().enumerate().map(site).collect::<Result<_, _>>()?;
        let health = settings.health.as_ref().map(Probe::new).transpose()?;
        let shown = meters.healthy.iter().zip(&meters.addresses).map(|(healthy, of)| Shown {
            healthy: healthy.clone(),
            addresses: of.known.clone(),
            healthy_addresses: of.healthy.clone(),
        });
        let gate = Gate::new(
            settings.balance,
            settings.max_in_flight.max(1),
            settings.queue_timeout,
            meters.in_flight.clone(),
            shown.collect(),
        );
        for site in &sites {
            if let Some(address) = site.literal() {
                gate.arrange(site.index, &[address], |address| site.endpoint(address));
            }
        }
        let discovery = Discovery::new(names, settings.name.clone(), settings.resolve_interval, &sites);
        Ok(Arc::new(Self {
            name: settings.name,
            sites,
            gate,
            discovery: Arc::new(discovery),
            meters: Arc::new(meters),
            timeout: settings.timeout,
            connect_timeout: settings.connect_timeout,
            queue_timeout: settings.queue_timeout,
            repeat_on_stale: settings.repeat_on_stale,
            health,
            alive: watch::Sender::new(()),
        }))
    }

    /// Takes over what another knows of the same names, so that a change of the configuration while the resolver is
    /// down costs no address.
    pub(super) fn inherit(&self, other: &Self) {
        for site in &self.sites {
            let same =
                |one: &&Arc<Site>| one.name().is_some() && one.name() == site.name() && one.port() == site.port();
            let known = other.sites.iter().find(same).map(|one| other.gate.addresses(one.index)).unwrap_or_default();
            if !known.is_empty() {
                self.gate.arrange(site.index, &known, |address| site.endpoint(address));
            }
        }
    }

    pub(crate) async fn send(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        let started = clock::steady();
        let slot = match self.gate.admit(started).await {
            Err(NoPlace::Nowhere) => match Box::pin(self.first_address()).await {
                Ok(()) => self
                    .gate
                    .admit(Instant::now())
                    .await
                    .map_err(|_| self.busy("all addresses have max_in_flight requests")),
                Err(error) => Err(error),
            },
            admitted => admitted.map_err(|_| self.busy("all addresses have max_in_flight requests")),
        };
        let sent = match slot {
            Ok(slot) => self.attempt(parcel, slot, started).await,
            Err(error) => Err(error),
        };
        sent.inspect_err(|error| self.meters.record(Ending::by(error.fault), started))
    }

    /// Without waiting for a place, and without a line in the metrics where there is none.
    pub(crate) async fn send_at_once(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        let started = Instant::now();
        let slot = match self.gate.admit_now() {
            Err(NoPlace::Nowhere) => match Box::pin(self.first_address()).await {
                Ok(()) => self.gate.admit_now().map_err(|_| self.busy("no address has a place now"))?,
                Err(error) => {
                    self.meters.record(Ending::by(error.fault), started);
                    return Err(error);
                }
            },
            admitted => admitted.map_err(|_| self.busy("no address has a place now"))?,
        };
        let sent = self.attempt(parcel, slot, started).await;
        sent.inspect_err(|error| self.meters.record(Ending::by(error.fault), started))
    }

    pub(crate) fn is_saturated(&self) -> bool {
        self.gate.is_saturated()
    }

    /// Also while the names of an upstream without any address are being looked up for the first time.
    pub(crate) fn can_forward(&self) -> bool {
        self.gate.can_forward() || (self.gate.used() == 0 && self.discovery.is_new())
    }

    /// How many addresses are in use.
    pub(crate) fn addresses(&self) -> usize {
        self.gate.used()
    }

    /// One deadline covers all attempts, so repeats add nothing.
    pub(crate) fn longest(&self) -> Duration {
        let has_names = self.sites.iter().any(|site| site.name().is_some());
        let first_address = if has_names { self.connect_timeout } else { Duration::ZERO };
        first_address + self.queue_timeout + self.timeout
    }

    /// Looks names up and probes. Ends when `stop` turns true or its sender goes, or when the upstream is dropped.
    pub(crate) async fn tend(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut alive = self.alive.subscribe();
        let mut tending = JoinSet::new();
        for site in &self.sites {
            let (gate, discovery) = (Arc::clone(&self.gate), Arc::clone(&self.discovery));
            let failures = self.meters.addresses.get(site.index).map(|of| of.resolve_failures.clone());
            tending.spawn(Keeper::new(Arc::clone(site), gate, discovery, self.health.clone(), failures).keep());
        }
        // From here on only the parts are held: a reload that drops the upstream must end this.
        drop(self);
        tokio::select! {
            // Whether told to stop or left alone, it is over; dropping the set ends what it does.
            _ = stop.wait_for(|stop| *stop) => {}
            _ = alive.changed() => {}
        }
    }

    fn busy(&self, what: &str) -> SendError {
        SendError::new(Fault::Busy, &self.name, what)
    }

    /// Waits for the first lookups, if there is none to tell yet.
    async fn first_address(&self) -> Result<(), SendError> {
        let until = Instant::now() + self.connect_timeout.min(self.timeout);
        // Late or over: what counts is whether there is an address now.
        let _ = timeout_at(until, self.discovery.looked(|| self.gate.used() > 0)).await;
        if self.gate.used() > 0 {
            return Ok(());
        }
        Err(SendError::new(Fault::Unavailable, &self.name, &self.discovery.nowhere()))
    }

    async fn attempt(&self, parcel: &Parcel, mut slot: Slot, started: Instant) -> Result<Answer, SendError> {
        let deadline = slot.since + self.timeout;
        let mut tried = Vec::new();
        let mut has_doubled = false;
        let mut rested = true;
        loop {
            let endpoint = Arc::clone(&slot.endpoint);
            let failed = match endpoint.exchange(parcel, rested, slot.since, deadline).await {
                Ok(Answered { head, incoming, lease }) => {
                    let meters = Arc::clone(&self.meters);
                    let exchange = Exchange { slot, lease, meters, started, status: head.status };
                    let mut live = Live { incoming, exchange };
                    let body = match live.is_short() {
                        true => {
                            let read = live.read(deadline, &endpoint.name).await;
                            AnswerBody::read(live, read)
                        }
                        false => AnswerBody::coming(live, deadline, Arc::clone(&endpoint.name)),
                    };
                    return Ok(Answer { status: head.status, headers: head.headers, body });
                }
                Err(failed) => failed,
            };
            match failed {
                Failed::WasClosed(_) if rested => rested = false,
                Failed::Stale(_) if self.repeat_on_stale && !has_doubled => {
                    has_doubled = true;
                    rested = false;
                }
                Failed::Stale(what) => {
                    return Err(SendError::new(Fault::Broken, &endpoint.name, &what));
                }
                Failed::WasClosed(what) | Failed::Unreached(what) => {
                    let url = slot.url;
                    tried.push(slot.id);
                    slot.settle(Sign::Unreachable);
                    if !self.gate.is_healthy(url) {
                        self.discovery.hurry(url);
                    }
                    match self.gate.another(&tried) {
                        Some(other) => slot = other,
                        None => {
                            return Err(SendError::new(Fault::Unavailable, &endpoint.name, &what));
                        }
                    }
                    rested = true;
                }
                Failed::Final(error) => {
                    slot.settle(Ending::by(error.fault).sign());
                    return Err(error);
                }
            }
            self.meters.repeats.inc();
        }
    }
}

/// What a request holds until its answer has been read: a place, a connection, and a line in the metrics.
pub(super) struct Exchange {
    pub(super) lease: Lease,
    slot: Slot,
    meters: Arc<Meters>,
    started: Instant,
    status: StatusCode,
}

impl Exchange {
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn end(self, ending: Ending, ended: Instant) {
        // The connection first, the place last: whoever is let in next shall find the connection at rest.
        match ending {
            Ending::TimedOut => self.lease.abandon(),
            Ending::Broken | Ending::Busy | Ending::Unavailable | Ending::TooLarge => drop(self.lease),
            Ending::Success | Ending::Redirect | Ending::ClientError | Ending::ServerError => {
                self.lease.finish(&self.slot.endpoint.pool, ended);
            }
        }
        self.meters.record_at(ending, self.started, ended);
        self.slot.settle_at(ending.sign(), ended);
    }

    /// Whoever read the answer stopped reading: the upstream did its part, the connection is in mid-answer.
    pub(super) fn leave(self) {
        drop(self.lease);
        let ending = Ending::of(self.status);
        let ended = clock::steady();
        self.meters.record_at(ending, self.started, ended);
        self.slot.settle_at(ending.sign(), ended);
    }
}
