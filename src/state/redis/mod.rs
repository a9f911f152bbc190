//! Claims, limits and captured secrets in Redis (or Valkey), shared by all gateways that name the same one.
//!
//! # Keys
//!
//! All keys of a source have its name as their hash tag, so that a cluster keeps them on one node and a script may use
//! them together; `P` is `key_prefix`:
//!
//! | key                        | type   | what                                                                  |
//! |----------------------------|--------|-----------------------------------------------------------------------|
//! | `P:{source}:mark`          | string | chance, made by whoever finds none: it tells an emptied store from a kept one |
//! | `P:{source}:replay`        | zset   | print of a replay key, kept until (milliseconds since 1970)           |
//! | `P:{source}:events`        | zset   | the same of event ids                                                 |
//! | `P:{source}:held`          | zset   | reserved print of a replay key, end of its lease                      |
//! | `P:{source}:held-events`   | zset   | the same of event ids                                                 |
//! | `P:{source}:holders`       | hash   | `r` or `e` and a print, the token of who holds it                     |
//! | `P:{source}:rate:N`        | string | GCRA: when the source's Nth limit is full again, in microseconds      |
//! | `P:{source}:rate:N:CLIENT` | string | the same for one client                                               |
//! | `P:{source}:failed:CLIENT` | string | the same of failed proofs                                             |
//! | `P:captures`               | hash   | source, a zero byte and a name, the secret that a sender brought      |
//!
//! Keys of rates expire when their budget is full; no other key ever does, so that no policy but one that evicts
//! everything (`allkeys-*`) can take claims away.
//!
//! # What holds
//!
//! - Every script judges and writes in one step, and its first write is the one that is refused: a store that is
//!   read-only or without enough replicas changes nothing. One that is full takes commits, and no claims.
//! - A token is chance made here, so that an ask whose answer is lost can be let go by it.
//! - Every gateway remembers by itself what it accepted (`table.rs`). It judges by that first, and puts it back where
//!   the store was emptied.
//! - Nothing waits for Redis longer than `timeout`.

mod failures;
mod keeper;
mod remote;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::Value;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::{KeyedRate, Meters, OpenError, Quota, StateError};
use crate::clock::UnixMillis;
use crate::redis_link::{self, Link, LinkError, Script};
use crate::secret::Secret;
use keeper::Errand;

pub(super) use failures::SharedFailures;
pub(super) use remote::{Hold, Remote, Verdict};

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) link: redis_link::Settings,
    /// What a delivery waits for an answer.
    pub(crate) timeout: Duration,
    pub(crate) on_failure: OnFailure,
    pub(crate) key_prefix: String,
}

/// What becomes of a delivery while Redis does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// The sender is told to come again.
    #[default]
    Reject,
    /// This gateway judges by what it remembers itself.
    Allow,
}

impl Settings {
    pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_millis(250);
    pub(crate) const DEFAULT_KEY_PREFIX: &str = "hookward";

    pub(crate) fn new(link: redis_link::Settings) -> Self {
        let (timeout, key_prefix) = (Self::DEFAULT_TIMEOUT, Self::DEFAULT_KEY_PREFIX.to_owned());
        Self { link, timeout, on_failure: OnFailure::default(), key_prefix }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        let Self { link, timeout, on_failure, key_prefix } = self;
        link.is_same(&other.link)
            && (*timeout, *on_failure) == (other.timeout, other.on_failure)
            && *key_prefix == other.key_prefix
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("link", &self.link.label()).finish_non_exhaustive()
    }
}

/// Errands that wait for the keeper. Beyond it what is to be remembered is put back as a whole, and what is to be let
/// go ends with its lease.
const ERRANDS: usize = 16_384;

/// A gateway begins without knowing what was captured only where Redis does not answer within this time.
const OPENING: Duration = Duration::from_secs(2);

/// A connection as it is, and what all sources share. Dropped, it stops the keeper.
pub(crate) struct Redis {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    link: Arc<Link>,
    timeout: Duration,
    on_failure: OnFailure,
    prefix: String,
    time: Time,
    scripts: Scripts,
    meters: Meters,
    errands: mpsc::Sender<Errand>,
    /// Something is to be looked after before the keeper's next round.
    hurry: Notify,
    remotes: Mutex<Vec<Arc<Remote>>>,
    failures: Mutex<Vec<Weak<SharedFailures>>>,
    captures: Mutex<HashMap<Vec<u8>, Secret>>,
    closed: AtomicBool,
    /// Somebody was told that Redis does not answer.
    told: AtomicBool,
    skew_millis: AtomicI64,
}

/// Whose clock ends leases and fills budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// The server's, which is one for all gateways.
    Server,
    /// The asker's, for tests that say what time it is. Where nothing is remembered here, the store judges everything.
    #[cfg(test)]
    Asker { remembers: bool },
}

struct Scripts {
    claim: Script,
    commit: Script,
    release: Script,
    renew: Script,
    restore: Script,
    sweep: Script,
    failures: Script,
}

macro_rules! script {
    ($name:literal) => {
        Script::new(concat!(include_str!("clock.lua"), include_str!($name)))
    };
}

impl Scripts {
    fn new() -> Self {
        Self {
            claim: script!("claim.lua"),
            commit: script!("commit.lua"),
            release: script!("release.lua"),
            renew: script!("renew.lua"),
            restore: script!("restore.lua"),
            sweep: script!("sweep.lua"),
            failures: script!("failures.lua"),
        }
    }
}

impl Redis {
    /// Needs a runtime. It opens though Redis does not answer: what is asked then is refused, until it does.
    pub(super) fn open(settings: &Settings, meters: Meters) -> Result<Self, OpenError> {
        Self::open_with(settings, meters, Time::Server)
    }

    #[cfg(test)]
    pub(super) fn open_in_the_askers_time(
        settings: &Settings,
        remembers: bool,
        meters: Meters,
    ) -> Result<Self, OpenError> {
        Self::open_with(settings, meters, Time::Asker { remembers })
    }

    fn open_with(settings: &Settings, meters: Meters, time: Time) -> Result<Self, OpenError> {
        let link = Link::start(settings.link.clone()).map_err(|detail| OpenError::Redis { detail })?;
        let (errands, to_do) = mpsc::channel(ERRANDS);
        let shared = Arc::new(Shared {
            link,
            timeout: settings.timeout,
            on_failure: settings.on_failure,
            prefix: settings.key_prefix.clone(),
            time,
            scripts: Scripts::new(),
            meters,
            errands,
            hurry: Notify::new(),
            remotes: Mutex::default(),
            failures: Mutex::default(),
            captures: Mutex::default(),
            closed: AtomicBool::new(false),
            told: AtomicBool::new(false),
            skew_millis: AtomicI64::new(0),
        });
        let keeper = tokio::spawn(keeper::keep(shared.clone(), to_do)).abort_handle();
        Ok(Self { shared, keeper })
    }

    pub(super) fn remote(&self, source: &str, max_claims: usize) -> Arc<Remote> {
        let remote = Remote::new(self.shared.clone(), source, max_claims);
        self.shared.remotes().push(remote.clone());
        remote
    }

    pub(super) fn is_healthy(&self) -> bool {
        let shared = &self.shared;
        !shared.closed.load(Ordering::Relaxed)
            && (shared.on_failure == OnFailure::Allow
                || (shared.link.is_up() && !shared.remotes().iter().any(|remote| remote.is_failing())))
    }

    /// Finishes the errands, as far as Redis answers.
    pub(super) async fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.settle().await;
        self.keeper.abort();
    }

    /// Waits until what was left to do before has been tried.
    pub(super) async fn settle(&self) {
        let (done, settled) = oneshot::channel();
        if self.shared.errands.send(Errand::Tell(done)).await.is_ok() {
            // An error means that the keeper has ended: nothing is left that anybody would do.
            let _ = settled.await;
        }
    }

    pub(super) fn captured(&self, source: &str, name: &str) -> Option<Secret> {
        self.shared.captures().get(&capture_field(source, name)).cloned()
    }

    /// Of several that come at once, to whatever gateway, one is kept; a repeat of that one is told so again.
    pub(super) async fn capture(&self, source: &str, name: &str, secret: &Secret) -> Result<bool, StateError> {
        let (field, key) = (capture_field(source, name), self.shared.captures_key());
        let mut set = redis::cmd("HSETNX");
        set.arg(&key).arg(&field).arg(secret.expose());
        let is_first = match self.shared.ask(&set).await? {
            Value::Int(1) => true,
            _ => {
                let mut look = redis::cmd("HGET");
                look.arg(&key).arg(&field);
                let Value::BulkString(kept) = self.shared.ask(&look).await? else {
                    return Err(StateError::Store("Redis answered something unheard of".to_owned()));
                };
                let kept = Secret::new(kept);
                let is_ours = kept.matches(secret.expose());
                self.shared.captures().insert(field, kept);
                return Ok(is_ours);
            }
        };
        self.shared.captures().insert(field, secret.clone());
        Ok(is_first)
    }

    /// Reads what was captured before anybody asks for it. Not for threads that others wait for.
    pub(super) async fn read_captures(&self) {
        let reading = async {
            while self.shared.read_captures().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // The keeper reads them later.
        let _ = tokio::time::timeout(OPENING, reading).await;
    }

    /// Tells the others of what `rate` counts, and `rate` of what they have counted.
    pub(super) fn failures(&self, source: &str, quota: Quota, rate: &Arc<KeyedRate>) -> Arc<SharedFailures> {
        let failures = Arc::new(SharedFailures::new(source, quota, rate));
        let mut all = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|old| old.strong_count() > 0);
        all.push(Arc::downgrade(&failures));
        failures
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    fn remotes(&self) -> MutexGuard<'_, Vec<Arc<Remote>>> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn captures(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Secret>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn captures_key(&self) -> String {
        format!("{}:captures", self.prefix)
    }

    async fn ask(&self, command: &redis::Cmd) -> Result<Value, StateError> {
        self.link.ask(command, self.timeout).await.map_err(|error| self.failed(&error))
    }

    async fn read_captures(&self) -> Result<(), LinkError> {
        let mut all = redis::cmd("HGETALL");
        all.arg(self.captures_key());
        let answer = self.link.ask(&all, self.timeout).await?;
        let mut parts = match answer {
            Value::Array(parts) => parts.into_iter(),
            Value::Map(pairs) => {
                pairs.into_iter().flat_map(|(field, secret)| [field, secret]).collect::<Vec<_>>().into_iter()
            }
            _ => return Ok(()),
        };
        let mut captures = self.captures();
        while let (Some(Value::BulkString(field)), Some(Value::BulkString(secret))) = (parts.next(), parts.next()) {
            captures.insert(field, Secret::new(secret));
        }
        Ok(())
    }

    /// Counted, and told once for each outage.
    fn failed(&self, error: &LinkError) -> StateError {
        self.meters.errors.inc();
        if !self.told.swap(true, Ordering::Relaxed) {
            let instead = match self.on_failure {
                OnFailure::Reject => "deliveries are refused with 503",
                OnFailure::Allow => "this gateway judges by its own memory",
            };
            tracing::error!(%error, "the state in Redis cannot be asked; until it can, {instead}");
        }
        StateError::Store(error.to_string())
    }

    fn saw_time(&self, asked: UnixMillis, server: i64) {
        // What the keeper asks says no time.
        if self.time == Time::Server && asked.0 > 0 {
            let asked = i64::try_from(asked.0).unwrap_or(i64::MAX);
            self.skew_millis.store(asked.saturating_sub(server), Ordering::Relaxed);
        }
    }
}

fn capture_field(source: &str, name: &str) -> Vec<u8> {
    [source.as_bytes(), &[0], name.as_bytes()].concat()
}
