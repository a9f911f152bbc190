//! The request path: one immutable snapshot of the configuration at work, and what outlives it.
//!
//! Invariant: a request takes one `Arc<Gateway>` and is judged by it to its end. Claims, counters, pools, rates and the
//! clock outlive snapshots, so that a reload neither forgets a delivery nor refills a budget.

mod admit;
mod body;
mod bound;
mod budget;
mod detached;
mod dispatch;
pub(crate) mod explain;
mod forwarded;
mod handshake;
mod journey;
pub(crate) mod lane;
#[cfg(feature = "measure")]
pub(crate) mod measured;
mod pack;
pub(crate) mod quarantine;
mod receive;
pub(crate) mod refused;
mod respond;
pub(crate) mod route;
pub(crate) mod silence;
pub(crate) mod source;
mod visit;

use crate::clock::Clock;
use crate::deliver::{self, Destination};
use crate::fetch::{self, Fetcher};
use crate::inbox::{Dropped, Inbox};
use crate::state::{Quota, State};
use crate::telemetry::{Audit, Metrics};
use crate::verify::SigningKey;
use arc_swap::{ArcSwap, ArcSwapOption};
use body::Pace;
use budget::{Buffer, InFlight};
use http::HeaderValue;
use ipnet::IpNet;
use refused::Refusals;
use silence::{Silence, Turn};
use source::{Budgets, Outlet, Source, Sources, Way};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Clients that failed too often still have their signatures verified, so many at a time: genuine senders share
/// addresses with forgers, but forgers may not have the processor.
const THROTTLED_VERIFICATIONS: usize = 4;

/// The part of `[limits]` that the request path keeps.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) max_buffered: u64,
    pub(crate) max_requests_per_client: usize,
    pub(crate) min_body_rate: u64,
    pub(crate) body_timeout: Duration,
    pub(crate) failed_auth: Quota,
    /// Refused deliveries that the operator's port can explain; 0: none.
    pub(crate) keep_refused: usize,
}

/// What the request path knows of a listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerView {
    pub(crate) name: Arc<str>,
    pub(crate) trusted_proxies: Arc<[IpNet]>,
}

pub(crate) struct UpstreamSettings {
    pub(crate) settings: deliver::Settings,
    pub(crate) signs: Option<Arc<SigningKey>>,
}

/// Everything that a snapshot is made of.
pub(crate) struct Plan {
    pub(crate) limits: Limits,
    pub(crate) listeners: Vec<ListenerView>,
    pub(crate) upstreams: BTreeMap<String, UpstreamSettings>,
    pub(crate) sources: Vec<source::Settings>,
    pub(crate) fetch: fetch::Settings,
}

/// A snapshot.
pub(crate) struct Gateway {
    pace: Pace,
    /// A handful.
    listeners: Vec<ListenerView>,
    pub(crate) upstreams: BTreeMap<String, Arc<Destination>>,
    /// What signs for an upstream that asks for it.
    pub(crate) signing: HashMap<String, Arc<SigningKey>>,
    pub(crate) sources: Sources,
}

/// The process's side of the request path: the snapshot in force and what outlives it.
pub(crate) struct Door {
    current: ArcSwap<Gateway>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Audit,
    pub(crate) state: Arc<State>,
    /// Once there is one it stays, whatever a reload says: what it holds is still to be delivered.
    pub(crate) inbox: ArcSwapOption<Inbox>,
    aside: quarantine::Aside,
    /// What was fetched for proofs so far.
    pub(crate) fetcher: Arc<Fetcher>,
    buffer: Arc<Buffer>,
    in_flight: Arc<InFlight>,
    pub(crate) refusals: Refusals,
    throttled: Semaphore,
    /// Turns at judging large bodies: as many as there are processors.
    large_bodies: Arc<Semaphore>,
    /// Tells those who deliver from the inbox.
    dispatch: dispatch::Dispatch,
    draining: AtomicBool,
    /// One permit per detached piece of work, so that a drain can wait for them.
    detached: Arc<Semaphore>,
}

/// Corrections of a running clock are smaller.
const CLOCK_MAY_BE_BEHIND: Duration = Duration::from_secs(5);

/// As many pieces of detached work as there can be requests; the semaphore only counts.
const MOST_DETACHED: u32 = 1 << 24;

impl Door {
    pub(crate) fn open(
        plan: Plan,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
        audit: Audit,
        state: Arc<State>,
        inbox: Option<Arc<Inbox>>,
    ) -> Result<Arc<Self>, deliver::BuildError> {
        let buffer = Buffer::new(plan.limits.max_buffered, metrics.buffered_bytes.clone());
        let in_flight = InFlight::new(plan.limits.max_requests_per_client);
        let meters = fetch::Meters::new(
            metrics.fetches.clone(),
            metrics.fetch_seconds.clone(),
            metrics.fetched_documents.clone(),
        );
        let fetcher = Fetcher::new(plan.fetch.clone(), clock.clone(), meters);
        let refusals = Refusals::new(plan.limits.keep_refused);
        let gateway = Gateway::build(plan, None, &metrics, &state, inbox.as_deref())?;
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(gateway),
            clock,
            metrics,
            audit,
            state,
            inbox: ArcSwapOption::new(inbox),
            aside: quarantine::Aside::default(),
            fetcher,
            buffer,
            in_flight,
            refusals,
            throttled: Semaphore::new(THROTTLED_VERIFICATIONS),
            large_bodies: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from))),
            dispatch: dispatch::Dispatch::new(),
            draining: AtomicBool::new(false),
            detached: Arc::new(Semaphore::new(MOST_DETACHED as usize)),
        }))
    }

    pub(crate) fn snapshot(&self) -> Arc<Gateway> {
        self.current.load_full()
    }

    /// Swaps the configuration whole. Requests under way finish on the old one.
    pub(crate) fn swap(&self, plan: Plan) -> Result<(), deliver::BuildError> {
        let (limits, fetch) = (plan.limits.clone(), plan.fetch.clone());
        let old = self.current.load_full();
        let new = Gateway::build(plan, Some(&old), &self.metrics, &self.state, self.inbox.load().as_deref())?;
        self.fetcher.configure(fetch);
        self.buffer.resize(limits.max_buffered);
        self.in_flight.resize(limits.max_requests_per_client);
        self.refusals.resize(limits.keep_refused);
        new.forget_what_is_gone(&old, &self.metrics);
        self.current.store(Arc::new(new));
        self.dispatch.reloaded();
        Ok(())
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why nothing should be sent here now; None: ready.
    pub(crate) fn unready(&self) -> Option<&'static str> {
        let gateway = self.current.load();
        if self.is_draining() {
            Some("draining")
        } else if !self.state.is_healthy() {
            Some("the state store does not work")
        } else if self.inbox.load().as_ref().is_some_and(|inbox| !inbox.is_healthy()) {
            Some("the inbox cannot be written")
        } else if gateway.sources.all().iter().all(|source| source.settings.delivery == Way::Proxy)
            && !gateway.upstreams.is_empty()
            && !gateway.upstreams.values().any(|upstream| upstream.can_forward())
        {
            Some("no upstream can be reached")
        } else {
            None
        }
    }

    /// Waits until all detached work has ended. Call it when nothing new can begin.
    pub(crate) async fn quiet(&self) {
        // The semaphore is never closed; were it, there would be nothing to wait for.
        let _ = self.detached.acquire_many(MOST_DETACHED).await;
    }

    /// Gauges that are read, not kept: called before the metrics are written out. Blocking: it looks into the inbox.
    pub(crate) fn refresh_gauges(&self) {
        if let Some(inbox) = &*self.inbox.load() {
            self.refresh_inbox(inbox);
        }
        for upstream in self.current.load().upstreams.values() {
            upstream.refresh_gauges();
        }
        for source in self.current.load().sources.all() {
            source.meters.claims.set(i64::try_from(source.ledger.len()).unwrap_or(i64::MAX));
            source.meters.claims_limit.set(i64::try_from(source.ledger.capacity()).unwrap_or(i64::MAX));
            if let (Some(expected), Some(gauge)) = (source.settings.expect_every, &source.meters.silent) {
                gauge.set(i64::from(source.silence.is_quiet(expected, Instant::now())));
            }
        }
        for (source, count) in self.inbox.load().iter().flat_map(|inbox| inbox.quarantine.counts()) {
            let gauge = self.metrics.quarantined.with_label_values(&[&*source]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Tells of sources that have gone quiet, and of those that are back.
    pub(crate) fn listen_for_silence(&self) {
        for source in self.current.load().sources.all() {
            let Some(expected) = source.settings.expect_every else { continue };
            let name: &str = &source.settings.name;
            match source.silence.turn(expected, Instant::now()) {
                Some(Turn::WentQuiet { since }) => tracing::warn!(
                    source = name,
                    seconds = since.as_secs(),
                    "nothing was accepted for longer than `expect_every`: is the webhook still set up at the provider, and is what comes refused?"
                ),
                Some(Turn::CameBack) => tracing::info!(source = name, "deliveries are accepted again"),
                None => {}
            }
        }
    }

    fn refresh_inbox(&self, inbox: &Inbox) {
        let metrics = &self.metrics;
        metrics.inbox_size.set(i64::try_from(inbox.size()).unwrap_or(i64::MAX));
        for (source, count) in inbox.quarantine.counts() {
            metrics.quarantined.with_label_values(&[&*source]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let counts = inbox.counts();
        for count in &counts {
            metrics.inbox_depth(&count.source, &count.upstream, count.state.label()).set(count.tasks);
            metrics.inbox_oldest_age(&count.source, &count.upstream);
        }
        let now = self.clock.now();
        match inbox.oldest(&counts) {
            Ok(waiting) => {
                let mut idle: HashSet<_> = counts.iter().map(|count| (&*count.source, &*count.upstream)).collect();
                for oldest in &waiting {
                    idle.remove(&(&*oldest.source, &*oldest.upstream));
                    let age = Duration::from_millis(now.0.saturating_sub(oldest.received.0));
                    metrics.inbox_oldest_age(&oldest.source, &oldest.upstream).set(age.as_secs_f64());
                }
                for (source, upstream) in idle {
                    metrics.inbox_oldest_age(source, upstream).set(0.0);
                }
            }
            Err(error) => tracing::error!(error, "the inbox cannot be read"),
        }
    }

    /// Lets go of expired claims of sources that are quiet; busy ones do it as they go. Fetches keys anew before they run
    /// out.
    pub(crate) fn sweep(&self) {
        self.fetcher.refresh();
        self.expire_quarantine();
        let now = self.clock.now();
        let behind = self.clock.behind();
        self.metrics.clock_behind.set(behind.as_secs_f64());
        if behind > CLOCK_MAY_BE_BEHIND {
            tracing::error!(
                seconds = behind.as_secs(),
                "the machine's clock was set back; time stands still here until it has caught up, and signed deliveries may be refused as stale: restart once the clock is right"
            );
        }
        for source in self.current.load().sources.all() {
            self.take_what_others_captured(source);
            source.ledger.sweep(now);
            let (held, most) = (source.ledger.len(), source.ledger.capacity());
            let nearly_full = held * 5 >= most * 4;
            if nearly_full && !source.budgets.told_of_claims.swap(nearly_full, Ordering::Relaxed) {
                let name: &str = &source.settings.name;
                tracing::warn!(
                    source = name,
                    held,
                    most,
                    "the claim table is over 80 % full; at 100 % senders get 503: raise max_claims"
                );
            }
            if held * 2 < most {
                source.budgets.told_of_claims.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Gateway {
    fn build(
        plan: Plan,
        previous: Option<&Self>,
        metrics: &Metrics,
        state: &State,
        inbox: Option<&Inbox>,
    ) -> Result<Self, deliver::BuildError> {
        let mut upstreams = BTreeMap::new();
        let mut signing = HashMap::new();
        for (name, upstream) in plan.upstreams {
            // An upstream whose settings did not change keeps its connections, its health and its places.
            let before = previous.and_then(|gateway| gateway.upstreams.get(&name));
            let kept = before.filter(|old| old.has(&upstream.settings));
            let destination = match kept {
                Some(old) => old.clone(),
                None => {
                    let meters = upstream_meters(metrics, &upstream.settings);
                    Destination::start(upstream.settings, meters, before.map(|old| &**old))?
                }
            };
            signing.extend(upstream.signs.map(|key| (name.clone(), key)));
            upstreams.insert(name, destination);
        }
        let mut sources = Vec::new();
        for settings in plan.sources {
            let outlet = |name: &&Arc<str>| {
                let destination = upstreams.get(&***name).cloned()?;
                Some(Outlet { upstream: (*name).clone(), destination, signs: signing.get(&***name).cloned() })
            };
            let outlets: Vec<Outlet> = settings.routes.upstreams().iter().filter_map(outlet).collect();
            let before = previous.and_then(|gateway| gateway.sources.named(&settings.name));
            let budgets = match before {
                Some(old) if old.budgets.are_for(&settings.rate_limits, plan.limits.failed_auth) => old.budgets.clone(),
                _ => {
                    let quota = plan.limits.failed_auth;
                    let throttle = state.throttle(&settings.name, quota);
                    Arc::new(Budgets::new(&settings.rate_limits, quota, throttle))
                }
            };
            // Whoever begins to expect something is told of a silence that begins then.
            let silence = match before.filter(|old| old.settings.expect_every.is_some()) {
                Some(old) => old.silence.clone(),
                None => Arc::new(Silence::begin(Instant::now())),
            };
            if let Some(name) = &settings.awaits {
                let kept = state.captured(&settings.name, name).map_err(|error| error.to_string());
                let installed = kept.and_then(|secret| match secret {
                    Some(secret) => settings.verifier.install(&secret).map_err(|error| error.to_string()),
                    None => Ok(()),
                });
                if let Err(error) = installed {
                    let source: &str = &settings.name;
                    tracing::error!(
                        source,
                        error,
                        "the captured secret could not be read, so the source accepts nothing"
                    );
                }
            }
            let ledger = state.ledger(&settings.name, settings.max_claims);
            if let Some(inbox) = inbox {
                ledger.seed_once(|remember| {
                    inbox
                        .seeds(&settings.name, |seed| remember(seed.print, seed.is_event, seed.until))
                        .inspect_err(|why| tell_unread(&settings.name, why))
                });
            }
            if settings.quarantine {
                metrics.expect_quarantine(&settings.name, &Dropped::ALL.map(Dropped::label));
            }
            sources.push(Arc::new(Source {
                // Names of tables are plain.
                name: HeaderValue::from_str(&settings.name).unwrap_or(HeaderValue::from_static("")),
                ledger,
                meters: metrics.source(
                    &settings.name,
                    &settings.secret_names,
                    settings.observe,
                    settings.expect_every.is_some(),
                ),
                outlets,
                budgets,
                silence,
                settings,
            }));
        }
        Ok(Self {
            pace: Pace { min_rate: plan.limits.min_body_rate, longest: plan.limits.body_timeout },
            listeners: plan.listeners,
            upstreams,
            signing,
            sources: Sources::new(sources),
        })
    }

    /// Takes away the series of what the old snapshot had and this one has not, so that they do not stand still for ever:
    /// an upstream that is down, a secret that is idle.
    fn forget_what_is_gone(&self, old: &Self, metrics: &Metrics) {
        for source in old.sources.all() {
            let (name, secrets) = (&source.settings.name, &source.settings.secret_names);
            match self.sources.named(name) {
                None => metrics.forget_source(name, secrets),
                Some(new) => {
                    if new.settings.expect_every.is_none() {
                        metrics.forget_silence(name);
                    }
                    for secret in secrets.iter().filter(|secret| !new.settings.secret_names.contains(secret)) {
                        metrics.forget_secret(name, secret);
                    }
                }
            }
        }
        for (name, upstream) in &old.upstreams {
            let kept = self.upstreams.get(name);
            let is_kept = |url: &String| kept.is_some_and(|new| new.url_labels().contains(url));
            for url in upstream.url_labels().into_iter().filter(|url| !is_kept(url)) {
                metrics.forget_url(name, &url);
            }
            if kept.is_none() {
                metrics.forget_upstream(name, &deliver::Ending::ALL.map(deliver::Ending::label));
                dispatch::forget(name, &old.sources, metrics);
            }
        }
    }

    fn trusted(&self, listener: &str) -> &[IpNet] {
        let view = self.listeners.iter().find(|view| *view.name == *listener);
        view.map_or(&[], |view| &view.trusted_proxies)
    }
}

fn tell_unread(source: &str, why: &str) {
    tracing::error!(source, why, "what the inbox accepted could not be read, so the source accepts nothing");
}

fn upstream_meters(metrics: &Metrics, settings: &deliver::Settings) -> deliver::Meters {
    let name = settings.name();
    let of_addresses = |url: &String| deliver::AddressMeters {
        known: metrics.upstream_addresses(name, url),
        healthy: metrics.upstream_healthy_addresses(name, url),
        resolve_failures: metrics.upstream_resolve_failures(name, url),
    };
    let addresses =
        if settings.is_broker() { Vec::new() } else { settings.url_labels().iter().map(of_addresses).collect() };
    deliver::Meters {
        addresses,
        requests: deliver::Ending::ALL.map(|ending| metrics.upstream_requests(name, ending.label())),
        duration: metrics.upstream_seconds(name),
        healthy: settings.url_labels().iter().map(|url| metrics.upstream_healthy(name, url)).collect(),
        in_flight: metrics.upstream_in_flight(name),
        idle_connections: metrics.upstream_idle_connections(name),
        repeats: metrics.upstream_repeats(name),
    }
}
