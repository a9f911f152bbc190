//! What was accepted, so that it is not accepted twice, and the counters behind rate limits.
//!
//! This room knows keys, times and clients; it knows no webhook. The contract, which `contract.rs` runs against every
//! kind of store:
//! - a claim has two phases. A *reservation* is a lease held by one caller: of any number of identical asks at one
//!   moment exactly one is first, the others are told that it is in flight. It ends in a commit, a release (dropping it
//!   is one) or the end of its lease.
//! - what was *committed* is refused as a replay until its `keep_until`, not one millisecond less: nothing else ever
//!   removes it, neither a full table (that answers [`StateError::Full`]) nor a reload of the configuration.
//! - event ids are convenience, not defence: when there are too many, those that would have expired first go.
//! - sources do not see each other.
//!
//! Time is an argument. It is the wall clock, and must not run backwards (`clock.rs` sees to that).

mod disk;
mod keyed;
mod ledger;
mod limits;
mod rate;
mod redis;
mod reservation;
mod shelf;
mod table;
mod throttle;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod survival;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Gauge, HistogramVec, IntCounter, IntCounterVec};

use crate::clock::UnixMillis;
use crate::secret::Secret;

pub(crate) use self::keyed::Keyed;
pub(crate) use disk::{OpenError, Settings as DiskSettings, SyncMode};
pub(crate) use ledger::Ledger;
pub(crate) use limits::{Limits, Per, RateLimit};
pub(crate) use rate::{KeyedRate, Quota, Rate};
pub(crate) use redis::{OnFailure, Settings as RedisSettings};
pub(crate) use reservation::{Committed, HandedOver, Reservation};
pub(crate) use table::Record;
pub(crate) use throttle::Throttle;

/// A MAC or a SHA-256 digest, padded with zeros where it is shorter.
pub(crate) type Key = [u8; 32];

/// Per source. About an hour of 500 deliveries a second; 100 MB when full, twice that when all carry event ids.
pub(crate) const DEFAULT_MAX_CLAIMS: usize = 2_000_000;

/// What one remembered key costs in memory at worst, for the operator who is told what `max_claims` means. An event id
/// is one more key.
pub(crate) const BYTES_PER_CLAIM: usize = 50;

#[derive(Clone, Debug, Default)]
pub(crate) enum Settings {
    #[default]
    Memory,
    Disk(DiskSettings),
    Redis(Box<RedisSettings>),
}

impl Settings {
    /// Equal in everything, secrets included.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory, Self::Memory) => true,
            (Self::Disk(one), Self::Disk(two)) => one == two,
            (Self::Redis(one), Self::Redis(two)) => one.is_same(two),
            _ => false,
        }
    }
}

/// One delivery asks to be the first of its kind.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Claimed together; any one known means replay. Empty for proofs that have no replay key.
    pub(crate) replay: Vec<Key>,
    pub(crate) keep_until: UnixMillis,
    pub(crate) event: Option<Key>,
    pub(crate) event_keep_until: UnixMillis,
    /// How long the reservation holds unless it is renewed.
    pub(crate) lease: Duration,
}

/// The answer, judged in this order: replay, in flight, duplicate, first.
#[derive(Debug)]
pub(crate) enum Claim {
    First(Reservation),
    /// A copy holds one of these keys and may yet fail.
    InFlight,
    /// One of the replay keys was committed.
    Replay,
    /// The event id was committed, the replay keys are new. Both are reserved now: the caller commits as with `First`
    /// or lets go.
    Duplicate(Reservation),
}

/// The same with what first deliveries spend: judged in one step, so that what is over a limit has claimed nothing, and
/// what is no first delivery has spent nothing.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Without a reservation: it had nothing to claim.
    First(Option<Reservation>),
    InFlight,
    Replay,
    /// With a reservation where the caller takes duplicates.
    Duplicate(Option<Reservation>),
    /// Over one of the source's limits, for so long.
    Limited(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    #[error("as many claims are remembered as max_claims allows; raise it, or shorten the window they are kept for")]
    Full,
    #[error("the state store failed: {0}")]
    Store(String),
}

#[derive(Clone)]
pub(crate) struct Meters {
    /// `hookward_state_errors_total`: commits, loads and syncs that failed, and questions to Redis.
    pub(crate) errors: IntCounter,
    /// `hookward_state_fallback_total`, by source.
    pub(crate) fallbacks: IntCounterVec,
    /// `hookward_state_lost_total`.
    pub(crate) lost: IntCounter,
    /// `hookward_state_clock_skew_seconds`.
    pub(crate) skew: Gauge,
    /// `hookward_state_duration_seconds`, by operation.
    pub(crate) durations: HistogramVec,
}

impl Meters {
    #[cfg(test)]
    pub(crate) fn unregistered() -> Self {
        let counter = || IntCounter::new("counter", "of a test").expect("a constant name is a valid name");
        let opts = || prometheus::Opts::new("labelled", "of a test");
        Self {
            errors: counter(),
            fallbacks: IntCounterVec::new(opts(), &["source"]).expect("valid names"),
            lost: counter(),
            skew: Gauge::with_opts(opts()).expect("a valid name"),
            durations: HistogramVec::new(opts().into(), &["operation"]).expect("valid names"),
        }
    }
}

/// Outlives every configuration snapshot: a reload that dropped it would open the door to replays.
pub(crate) enum State {
    Memory(Ledgers),
    Disk(Ledgers, Arc<disk::Disk>),
    Redis(Ledgers, Arc<redis::Redis>),
}

impl State {
    /// Blocking, and where it is Redis, in a runtime. One that does not answer is no error: what is asked of it is
    /// refused until it does.
    pub(crate) fn open(settings: &Settings, now: UnixMillis, meters: Meters) -> Result<Self, OpenError> {
        Ok(match settings {
            Settings::Memory => Self::Memory(Ledgers::default()),
            Settings::Disk(settings) => {
                Self::Disk(Ledgers::default(), Arc::new(disk::Disk::open(settings, now, meters)?))
            }
            Settings::Redis(settings) => {
                Self::Redis(Ledgers::default(), Arc::new(redis::Redis::open(settings, meters)?))
            }
        })
    }

    /// One source's memory: for one name always the same ledger, with `max_claims` as given last. With a store on disk
    /// the first call for a name reads what the file has for it, blocking (about a second for a million claims). When
    /// that fails the ledger refuses every ask rather than forget, and the next call tries again.
    pub(crate) fn ledger(&self, source: &str, max_claims: usize) -> Arc<Ledger> {
        match self {
            Self::Memory(ledgers) => ledgers.ledger(source, max_claims, || Ledger::in_memory(max_claims)),
            Self::Disk(ledgers, disk) => {
                ledgers.ledger(source, max_claims, || Ledger::on_disk(source, max_claims, Arc::clone(disk)))
            }
            Self::Redis(ledgers, redis) => {
                ledgers.ledger(source, max_claims, || Ledger::in_redis(max_claims, redis.remote(source, max_claims)))
            }
        }
    }

    /// Failed proofs of one source's clients, counted against this quota.
    pub(crate) fn throttle(&self, source: &str, quota: Quota) -> Throttle {
        match self {
            Self::Memory(_) | Self::Disk(..) => Throttle::alone(quota),
            Self::Redis(_, redis) => Throttle::shared(quota, |rate| redis.failures(source, quota, rate)),
        }
    }

    /// Other gateways ask and fill it too.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(..))
    }

    /// For what was captured before to be known at the start.
    pub(crate) async fn read_captures(&self) {
        match self {
            Self::Memory(_) | Self::Disk(..) => {}
            Self::Redis(_, redis) => redis.read_captures().await,
        }
    }

    /// The secret that was kept under this name, if one was. From disk, and so not for the request path.
    pub(crate) fn captured(&self, source: &str, name: &str) -> Result<Option<Secret>, StateError> {
        match self {
            Self::Memory(ledgers) => Ok(ledgers.captures().get(&(source.into(), name.into())).cloned()),
            Self::Disk(_, disk) => disk.captured(source, name),
            Self::Redis(_, redis) => Ok(redis.captured(source, name)),
        }
    }

    /// Keeps the secret that a sender brought. False: another one is kept under this name, and stays.
    pub(crate) async fn capture(&self, source: &str, name: &str, secret: &Secret) -> Result<bool, StateError> {
        match self {
            Self::Memory(ledgers) => Ok(match ledgers.captures().entry((source.into(), name.into())) {
                Entry::Occupied(_) => false,
                Entry::Vacant(free) => {
                    free.insert(secret.clone());
                    true
                }
            }),
            Self::Disk(_, disk) => disk.capture(source, name, secret).await,
            Self::Redis(_, redis) => redis.capture(source, name, secret).await,
        }
    }

    /// Can a claim be committed, as far as is known? Becomes true again by itself when writing works again.
    pub(crate) fn is_healthy(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Disk(_, disk) => disk.is_healthy(),
            Self::Redis(_, redis) => redis.is_healthy(),
        }
    }

    /// Finishes the commits that were handed over, makes them durable and lets go of the file. Commits fail from then
    /// on. A process that ends without it loses nothing either; the next start only has more of the log to read.
    pub(crate) async fn close(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Disk(_, disk) => disk.close().await,
            Self::Redis(_, redis) => redis.close().await,
        }
    }

    /// Waits until what was begun in the background has been tried.
    #[cfg(test)]
    async fn settle(&self) {
        if let Self::Redis(_, redis) = self {
            redis.settle().await;
        }
    }
}

/// Ledgers by source name. They are never removed: a source that goes and comes back must find what it accepted. Names
/// come from the operator's configuration, so their number is bounded by what was ever configured in this process.
#[derive(Default)]
pub(crate) struct Ledgers {
    // Guards the map alone; held while a new ledger is read from disk so that two callers cannot both make it.
    by_source: Mutex<HashMap<Box<str>, Arc<Ledger>>>,
    /// Secrets that senders brought, by source and name, where there is no disk. One for each that was ever awaited.
    captures: Mutex<Captures>,
}

/// By source and name.
type Captures = HashMap<(Box<str>, Box<str>), Secret>;

impl Ledgers {
    fn captures(&self) -> MutexGuard<'_, Captures> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self, source: &str, max_claims: usize, make: impl FnOnce() -> Ledger) -> Arc<Ledger> {
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ledger) = by_source.get(source) {
            ledger.adopt(max_claims);
            return Arc::clone(ledger);
        }
        let ledger = Arc::new(make());
        by_source.insert(source.into(), Arc::clone(&ledger));
        ledger
    }
}
