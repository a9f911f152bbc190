//! A lasting connection to Redis (or Valkey): one server, one that sentinels name, or a cluster.
//!
//! Invariant: one connection is shared by all who ask (their commands are pipelined), it is made anew by itself for as
//! long as the link lives, and no question waits longer than its asker allows. Neither a password nor the text of a
//! command gets into an error.

mod script;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, Value};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

pub(crate) use script::Script;
pub(crate) use settings::{Address, Settings, Topology};

/// Between two attempts to connect: doubling from the first to the last, so that a server that is back is found within
/// a second or so and one that is gone is not hammered.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A connection over which nothing came for so long is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(1);

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LinkError {
    /// Nothing was sent.
    #[error("no connection to Redis: {0}")]
    Down(String),
    /// It may have been carried out.
    #[error("Redis did not answer in time")]
    TimedOut,
    /// It may have been carried out.
    #[error("the connection to Redis broke: {0}")]
    Broken(String),
    /// The server said no: nothing was done. The code is the first word of its answer: `OOM`, `READONLY`, `NOPERM`.
    #[error("Redis refused: {code}")]
    Refused { code: String },
}

pub(crate) struct Link {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    settings: Settings,
    connection: ArcSwapOption<MultiplexedConnection>,
    /// Why there is none, for whoever asks meanwhile.
    why: ArcSwapOption<String>,
    broke: Notify,
    up: AtomicBool,
}

impl Link {
    /// Begins to connect; needs a runtime. What is asked before there is a connection is told so at once.
    pub(crate) fn start(settings: Settings) -> Result<Arc<Self>, String> {
        let client = settings.client()?;
        let shared = Arc::new(Shared {
            settings,
            connection: ArcSwapOption::empty(),
            why: ArcSwapOption::empty(),
            broke: Notify::new(),
            up: AtomicBool::new(false),
        });
        let keeper = tokio::spawn(keep(shared.clone(), client)).abort_handle();
        Ok(Arc::new(Self { shared, keeper }))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Relaxed)
    }

    pub(crate) async fn ask(&self, command: &Cmd, within: Duration) -> Result<Value, LinkError> {
        let until = Instant::now() + within;
        let Some(connection) = self.shared.connection.load_full() else {
            let why = self.shared.why.load_full().map_or_else(|| "not yet connected".to_owned(), |why| why.to_string());
            return Err(LinkError::Down(why));
        };
        let mut connection = (*connection).clone();
        match timeout_at(until, connection.send_packed_command(command)).await {
            Ok(Ok(Value::ServerError(error))) => Err(LinkError::Refused { code: error.code().to_owned() }),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let error = self::error(&error);
                if !matches!(error, LinkError::Refused { .. }) {
                    self.shared.broke.notify_one();
                }
                Err(error)
            }
            Err(_) => {
                self.shared.broke.notify_one();
                Err(LinkError::TimedOut)
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(shared: Arc<Shared>, client: Client) {
    let mut wait = FIRST_WAIT;
    loop {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(shared.settings.connect_timeout))
            .set_response_timeout(None);
        match client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => {
                wait = FIRST_WAIT;
                shared.connection.store(Some(Arc::new(connection.clone())));
                shared.up.store(true, Ordering::Relaxed);
                watch(&shared, connection).await;
                shared.up.store(false, Ordering::Relaxed);
                shared.connection.store(None);
            }
            Err(error) => {
                shared.why.store(Some(Arc::new(error.category().to_owned())));
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Until it is no longer good.
async fn watch(shared: &Shared, mut connection: MultiplexedConnection) {
    loop {
        tokio::select! {
            () = sleep(PING_EVERY) => {}
            () = shared.broke.notified() => {}
        }
        let until = Instant::now() + PING_EVERY;
        if !matches!(timeout_at(until, connection.send_packed_command(&redis::cmd("PING"))).await, Ok(Ok(_))) {
            return;
        }
    }
}

fn error(error: &RedisError) -> LinkError {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => {
            LinkError::Refused { code: error.code().unwrap_or("ERR").to_owned() }
        }
        _ if error.is_timeout() => LinkError::TimedOut,
        _ => LinkError::Broken(error.category().to_owned()),
    }
}
