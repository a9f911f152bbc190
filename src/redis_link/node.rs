//! A lasting connection to one server: a given one, or whichever the sentinels say is the master.
//!
//! Invariant: there is at most one connection at a time. It is given up when it broke, when a PING has no answer in
//! time, and when a server that should take writes does not; another is then made for as long as the node lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::{Cmd, RedisError, Value};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::connect::{self, Connected, Manner};
use super::{Address, LinkError, sentinel};
use crate::dial::Waits;

/// A connection that broke sooner than this was not a good one: the waits go on growing.
const GOOD_AFTER: Duration = Duration::from_secs(2);

const PING_EVERY: Duration = Duration::from_secs(1);
const PING_WITHIN: Duration = Duration::from_secs(1);

/// In pings: how often the sentinels are asked whether it is still the master. One that was cut off from them would
/// not say so itself.
const SENTINELS_EVERY: u32 = 5;

/// Questions that wait for an answer at the same time, on one connection.
const MOST_IN_FLIGHT: usize = 4096;

/// Between two lines in the log about one outage.
const SILENT_FOR: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(super) enum Place {
    Fixed(Address),
    Master { sentinels: Vec<Address>, name: String },
}

pub(super) struct Node {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    place: Place,
    label: String,
    manner: Manner,
    database: i64,
    connection: ArcSwapOption<Connected>,
    /// Why there is none, for whoever asks meanwhile.
    why: ArcSwapOption<String>,
    in_flight: Semaphore,
    /// Something was wrong: is it alive?
    doubted: Arc<Notify>,
    /// It is alive, and no longer the right one.
    unfit: AtomicBool,
    /// None until the first attempt has ended.
    up: watch::Sender<Option<bool>>,
    /// How often any node of the link came up.
    came_up: watch::Sender<u64>,
}

/// Of a server's refusal more than outsiders need.
pub(super) enum Failed {
    Link(LinkError),
    Refused(RedisError),
}

impl Node {
    pub(super) fn start(
        place: Place,
        label: String,
        manner: Manner,
        database: i64,
        came_up: watch::Sender<u64>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            place,
            label,
            manner,
            database,
            connection: ArcSwapOption::empty(),
            why: ArcSwapOption::empty(),
            in_flight: Semaphore::new(MOST_IN_FLIGHT),
            doubted: Arc::new(Notify::new()),
            unfit: AtomicBool::new(false),
            up: watch::Sender::new(None),
            came_up,
        });
        let keeper = tokio::spawn(keep(shared.clone())).abort_handle();
        Arc::new(Self { shared, keeper })
    }

    pub(super) fn host(&self) -> &str {
        match &self.shared.place {
            Place::Fixed(address) => &address.host,
            Place::Master { name, .. } => name,
        }
    }

    pub(super) fn up(&self) -> Option<bool> {
        *self.shared.up.borrow()
    }

    #[cfg(test)]
    pub(super) fn came_up(&self) -> u64 {
        *self.shared.came_up.borrow()
    }

    /// Until it is known whether it can be reached at all.
    pub(super) async fn tried(&self, until: Instant) {
        let mut up = self.shared.up.subscribe();
        drop(timeout_at(until, up.wait_for(Option::is_some)).await);
    }

    pub(super) async fn ask(&self, command: &Cmd, until: Instant) -> Result<Value, Failed> {
        self.put(command, false, until).await
    }

    pub(super) async fn ask_while_moving(&self, command: &Cmd, until: Instant) -> Result<Value, Failed> {
        self.put(command, true, until).await
    }

    async fn put(&self, command: &Cmd, moving: bool, until: Instant) -> Result<Value, Failed> {
        let shared = &*self.shared;
        let down = |why: &str| Failed::Link(LinkError::Down(why.to_owned()));
        let connection = || shared.connection.load_full().filter(|one| !one.is_over());
        let Some(mut one) = connection() else {
            let why = shared.why.load_full();
            return Err(down(why.as_deref().map_or("not yet connected", String::as_str)));
        };
        let permit = match shared.in_flight.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let full = || down("too many questions wait for an answer");
                let Ok(Ok(permit)) = timeout_at(until, shared.in_flight.acquire()).await else { return Err(full()) };
                // Freed by one whose time was over at the same moment: there is none left to send anything.
                if Instant::now() >= until {
                    return Err(full());
                }
                one = connection().ok_or_else(|| down("the connection broke"))?;
                permit
            }
        };
        let answer = async {
            match moving {
                false => one.ask(command).await,
                true => one.ask_while_moving(command).await,
            }
        };
        let answer = timeout_at(until, answer).await;
        drop(permit);
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.code().is_some() => {
                // Of a master that was made a replica; the sentinels, or the name's address, know the new one.
                if error.code() == Some("READONLY") {
                    shared.unfit.store(true, Ordering::Relaxed);
                    shared.doubted.notify_one();
                }
                Err(Failed::Refused(error))
            }
            Ok(Err(error)) => {
                shared.doubted.notify_one();
                Err(Failed::Link(LinkError::Broken(connect::why(&error, ""))))
            }
            Err(_) => {
                shared.doubted.notify_one();
                Err(Failed::Link(LinkError::TimedOut))
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.keeper.abort();
        if let Some(connection) = self.shared.connection.swap(None) {
            connection.close();
        }
    }
}

async fn keep(shared: Arc<Shared>) {
    let mut waits = Waits::new();
    let mut told = Told::default();
    loop {
        let why = match shared.connect().await {
            Ok(connection) => {
                let since = Instant::now();
                shared.unfit.store(false, Ordering::Relaxed);
                shared.connection.store(Some(connection.clone()));
                shared.up.send_replace(Some(true));
                shared.came_up.send_modify(|times| *times += 1);
                told.up(&shared.label);
                let why = watch(&shared, &connection).await;
                shared.why.store(Some(Arc::new(why.clone())));
                shared.connection.store(None);
                connection.close();
                if since.elapsed() >= GOOD_AFTER {
                    waits = Waits::new();
                    told.down = None;
                }
                why
            }
            Err(why) => {
                shared.why.store(Some(Arc::new(why.clone())));
                why
            }
        };
        shared.up.send_replace(Some(false));
        told.down(&shared.label, why);
        sleep(waits.take()).await;
    }
}

/// Of an outage the log has one line at its beginning and one at its end; more only when it goes on for another
/// reason, or when connections are made that do not last, and then not many.
#[derive(Default)]
struct Told {
    down: Option<(Instant, String)>,
    is_up: bool,
}

impl Told {
    fn up(&mut self, server: &str) {
        if !std::mem::replace(&mut self.is_up, true) {
            tracing::info!(server, "Redis: connected");
        }
    }

    fn down(&mut self, server: &str, why: String) {
        let is_news = match &self.down {
            Some((at, before)) => at.elapsed() >= SILENT_FOR && (self.is_up || *before != why),
            None => true,
        };
        if is_news {
            tracing::warn!(server, %why, "Redis: no connection; it is tried again until there is one");
            *self = Self { down: Some((Instant::now(), why)), is_up: false };
        }
    }
}

/// Until it is no longer good, and why.
async fn watch(shared: &Shared, connection: &Connected) -> String {
    let mut pings = 0_u32;
    loop {
        tokio::select! {
            () = sleep(PING_EVERY) => {}
            () = shared.doubted.notified() => {}
        }
        if connection.is_over() {
            return "the server closed the connection".to_owned();
        }
        if shared.unfit.load(Ordering::Relaxed) {
            return "it takes no writes (READONLY)".to_owned();
        }
        match timeout_at(Instant::now() + PING_WITHIN, connection.ask(&redis::cmd("PING"))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return connect::why(&error, "PING"),
            Err(_) => return format!("no answer to a PING within {PING_WITHIN:?}"),
        }
        pings = pings.wrapping_add(1);
        if let Place::Master { sentinels, name } = &shared.place
            && pings.is_multiple_of(SENTINELS_EVERY)
            && !sentinel::agree(&shared.manner, sentinels, name, connection.address()).await
        {
            return "the sentinels name another master".to_owned();
        }
    }
}

impl Shared {
    async fn connect(&self) -> Result<Arc<Connected>, String> {
        let (sentinels, name) = match &self.place {
            Place::Fixed(address) => {
                return self.manner.connect(address, self.database, self.ended()).await.map(Arc::new);
            }
            Place::Master { sentinels, name } => (sentinels, name),
        };
        let mut answers = sentinel::named(&self.manner, sentinels, name);
        let mut tried: Vec<Address> = Vec::new();
        let mut last = "no sentinel is given".to_owned();
        while let Some(answer) = answers.join_next().await {
            let address = match answer {
                Ok(Ok(address)) if !tried.contains(&address) => address,
                Ok(Err(why)) if tried.is_empty() => {
                    last = why;
                    continue;
                }
                _ => continue,
            };
            tried.push(address.clone());
            let found = async {
                let connection = self.manner.connect(&address, self.database, self.ended()).await?;
                sentinel::is_master(&connection).await.map_err(|why| format!("{address}: {why}"))?;
                Ok(Arc::new(connection))
            };
            match found.await {
                Ok(connection) => return Ok(connection),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    fn ended(&self) -> impl FnOnce() + Send + 'static {
        let doubted = self.doubted.clone();
        move || doubted.notify_one()
    }
}
