//! Certificates and key sets from the network, for proofs that name them.
//!
//! Invariant: a look-up never waits; one flight per url, a bounded number of urls, and nothing is fetched that is not
//! https to an address that may be reached. What was fetched outlives reloads that leave `[fetch]` as it is.

mod address;
mod failure;
mod meters;
mod shelf;
mod target;
#[cfg(test)]
mod tests;
mod transport;

use crate::clock::Clock;
use crate::fetched::{Library, Lookup, NamedBy, Wanted};
use arc_swap::ArcSwap;
use shelf::{Begin, Landing, Shelf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use target::Target;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use transport::{Names, Transport};

pub(crate) use failure::FetchError;
pub(crate) use meters::Meters;
pub(crate) use transport::Settings;

/// Certificates and keys are a few KiB.
const MOST_BYTES: usize = 64 << 10;
/// Key sets of platforms with many tenants are larger.
const MOST_BYTES_OF_A_SET: usize = 1 << 20;

/// Flights at a time for urls that requests name.
const TURNS: usize = 16;
/// Flights for urls of the configuration, and visits: they never wait for what strangers invent.
const OWN_TURNS: usize = 8;

pub(crate) struct Fetcher {
    /// Guards what is kept; nothing waits under it.
    shelf: Mutex<Shelf>,
    transport: ArcSwap<Transport>,
    turns: Semaphore,
    own_turns: Semaphore,
    clock: Arc<Clock>,
    meters: Meters,
}

impl Fetcher {
    pub(crate) fn new(settings: Settings, clock: Arc<Clock>, meters: Meters) -> Arc<Self> {
        Self::with_names(settings, Names::System, clock, meters)
    }

    fn with_names(settings: Settings, names: Names, clock: Arc<Clock>, meters: Meters) -> Arc<Self> {
        Arc::new(Self {
            shelf: Mutex::default(),
            transport: ArcSwap::from_pointee(Transport::new(settings, names)),
            turns: Semaphore::new(TURNS),
            own_turns: Semaphore::new(OWN_TURNS),
            clock,
            meters,
        })
    }

    /// A reload: what was fetched stays where the rules do. Under others it might not have been fetched: a CA that was
    /// withdrawn must not go on to speak through what it once vouched for.
    pub(crate) fn configure(&self, settings: Settings) {
        let mut shelf = self.shelf();
        if self.transport.load().has(&settings) {
            return;
        }
        self.transport.store(Arc::new(Transport::new(settings, Names::System)));
        shelf.clear();
    }

    /// Waits until the document is here, or cannot be had. Dropping the future does not end a flight that others share.
    pub(crate) async fn fetch(self: &Arc<Self>, wanted: &Wanted) -> Result<(), FetchError> {
        let target = match Target::parse(&wanted.url, self.transport.load().ports()) {
            Ok(target) => target,
            Err(error) => {
                tracing::warn!(%error, "a url that a proof allowed is refused");
                self.meters.count("", error.label(), false);
                return Err(error);
            }
        };
        let begin = self.shelf().begin(wanted, &target.host_text, self.clock.now());
        let mut flight = match begin {
            Begin::Here => return Ok(()),
            Begin::Refused(error) => {
                let is_ours = wanted.named_by == NamedBy::Configuration;
                self.meters.count(&target.host_text, error.label(), is_ours);
                return Err(error);
            }
            Begin::Join(flight) => flight,
            Begin::Fly(landing, flight) => {
                tokio::spawn(self.clone().fly(wanted.clone(), target, landing));
                flight
            }
        };
        let landed = flight.wait_for(Option::is_some).await;
        landed.ok().and_then(|landed| landed.clone()).unwrap_or(Err(FetchError::TimedOut))
    }

    async fn fly(self: Arc<Self>, wanted: Wanted, target: Target, landing: watch::Sender<Landing>) {
        let Wanted { url, named_by, .. } = wanted;
        let begun = Instant::now();
        let turns = match named_by {
            NamedBy::Request => &self.turns,
            NamedBy::Configuration => &self.own_turns,
        };
        let turn = turns.acquire().await;
        let transport = self.transport.load_full();
        let answer = match &turn {
            Ok(_) => transport.get(&target, most_bytes(&target)).await,
            Err(_) => Err(FetchError::Crowded),
        };
        drop(turn);
        let host = target.host_text.as_str();
        let result = answer.as_ref().map_or_else(FetchError::label, |_| "ok");
        self.meters.record(host, result, named_by == NamedBy::Configuration, begun.elapsed());
        let now = self.clock.now();
        let mut shelf = self.shelf();
        if !Arc::ptr_eq(&transport, &self.transport.load()) {
            // By rules that no longer hold: whoever waits asks again, by the new ones.
            drop(shelf);
            landing.send_replace(Some(Ok(())));
            return;
        }
        let landed = match answer {
            Ok(answer) => {
                shelf.keep(&url, answer.bytes, answer.life, now);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(host, %error, "keys or a certificate could not be fetched");
                shelf.fail(&url, error.clone(), now);
                Err(error)
            }
        };
        self.meters.documents.set(i64::try_from(shelf.documents()).unwrap_or(i64::MAX));
        drop(shelf);
        landing.send_replace(Some(landed));
    }

    /// Asks for a page for its effect: the confirmation of a subscription. Nothing is kept.
    pub(crate) async fn visit(&self, url: &str) -> Result<(), FetchError> {
        let begun = Instant::now();
        let transport = self.transport.load_full();
        let target = Target::parse(url, transport.ports())?;
        let visited = match self.own_turns.try_acquire() {
            Ok(_turn) => transport.visit(&target).await,
            Err(_) => Err(FetchError::Crowded),
        };
        let result = visited.as_ref().map_or_else(FetchError::label, |()| "ok");
        self.meters.record(&target.host_text, result, true, begun.elapsed());
        visited
    }

    /// Fetches anew what is in use and nearly out of date. Call it every few seconds.
    pub(crate) fn refresh(self: &Arc<Self>) {
        let due = self.shelf().due(self.clock.now());
        for wanted in due {
            let fetcher = self.clone();
            tokio::spawn(async move {
                // Failures are counted and logged where they happen; the last known good stays.
                drop(fetcher.fetch(&wanted).await);
            });
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // A panic under the lock leaves a map with one entry more or less.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Library for Fetcher {
    fn look_up(&self, url: &str) -> Lookup {
        self.shelf().look_up(url, self.clock.now())
    }
}

/// A certificate ends in `.pem` or stands under a path of certificates; everything else is taken for a set of keys.
fn most_bytes(target: &Target) -> usize {
    let path = target.path_and_query.as_str();
    if path.ends_with(".pem") || path.contains("/certs/") { MOST_BYTES } else { MOST_BYTES_OF_A_SET }
}
