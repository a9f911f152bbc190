//! One connection made: the name looked up, TCP, TLS, the login, the database, and an answer to PING.
//!
//! Invariant: all of it has one deadline; what goes wrong is told in words that hold no secret and no server's text.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ProtocolVersion, RedisConnectionInfo, RedisError, Value};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::{Address, Settings};
use crate::secret::Secret;

/// Commands that wait to be written, on one connection. Whoever comes when there are so many waits until his deadline.
const MOST_UNWRITTEN: usize = 256;
const CLOSED: &str = "the server closed the connection";

/// As whom to speak, and how.
#[derive(Clone)]
pub(super) struct Manner {
    username: Option<String>,
    password: Option<Secret>,
    tls: Option<(Arc<ClientConfig>, Option<ServerName<'static>>)>,
    within: Duration,
}

/// Ends with the last that holds it: then all who wait for an answer are told that it broke.
pub(super) struct Connected {
    address: Address,
    connection: MultiplexedConnection,
    driver: AbortHandle,
}

impl Manner {
    pub(super) fn of(settings: &Settings) -> Result<Self, String> {
        let tls = settings.tls.as_ref().map(|tls| {
            let config = tls.client_config().map_err(|error| error.to_string())?;
            let name = tls.server_name.clone().map(|name| {
                ServerName::try_from(name).map_err(|_| "tls.server_name is neither a name nor an address".to_owned())
            });
            Ok::<_, String>((Arc::new(config), name.transpose()?))
        });
        let (username, password) = (settings.username.clone(), settings.password.clone());
        Ok(Self { username, password, tls: tls.transpose()?, within: settings.connect_timeout })
    }

    pub(super) fn without_login(&self) -> Self {
        Self { username: None, password: None, ..self.clone() }
    }

    pub(super) fn has_login(&self) -> bool {
        self.password.is_some()
    }

    /// What is returned has answered a PING. The notifier hears when it has ended.
    pub(super) async fn connect(
        &self,
        address: &Address,
        database: i64,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Connected, String> {
        let until = Instant::now() + self.within;
        match timeout_at(until, self.connect_somehow(address, database, until, ended)).await {
            Ok(result) => result.map_err(|why| format!("{address}: {why}")),
            Err(_) => Err(format!("{address}: no answer within {:?}", self.within)),
        }
    }

    async fn connect_somehow(
        &self,
        address: &Address,
        database: i64,
        until: Instant,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Connected, String> {
        let tcp = tcp(address, until).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let connected = match &self.tls {
            None => Connected::over(address.clone(), tcp, ended).await?,
            Some((config, name)) => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => ServerName::try_from(address.host.clone()).map_err(|_| "no name for TLS".to_owned())?,
                };
                let handshake = TlsConnector::from(config.clone()).connect(name, tcp);
                // A Redis without TLS takes the greeting for the beginning of a command, and waits for more.
                let stream = timeout_at(until, handshake).await.map_err(|_| {
                    format!("no answer to the greeting of TLS within {:?}; has this port TLS?", self.within)
                })?;
                let stream = stream.map_err(|error| format!("TLS: {error}"))?;
                Connected::over(address.clone(), stream, ended).await?
            }
        };
        match self.greet(&connected, database).await {
            // What a server with TLS does with bytes that are none.
            Err(why) if why == CLOSED && self.tls.is_none() => Err(format!("{why}; does it want TLS (rediss://)?")),
            greeted => greeted.map(|()| connected),
        }
    }

    async fn greet(&self, connected: &Connected, database: i64) -> Result<(), String> {
        if let Some(password) = &self.password {
            let mut login = redis::cmd("AUTH");
            if let Some(username) = &self.username {
                login.arg(username);
            }
            login.arg(password.expose());
            connected.expect("AUTH", &login).await?;
        }
        if database != 0 {
            connected.expect("SELECT", redis::cmd("SELECT").arg(database)).await?;
        }
        connected.expect("PING", &redis::cmd("PING")).await
    }
}

/// Each address of the name has its share of the time.
async fn tcp(address: &Address, until: Instant) -> io::Result<TcpStream> {
    let mut addresses: Vec<_> = tokio::net::lookup_host((address.host.as_str(), address.port)).await?.collect();
    addresses.dedup();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (tried, one) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = until.saturating_duration_since(Instant::now()) / left;
        match timeout_at(Instant::now() + share, TcpStream::connect(one)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl Connected {
    async fn over(
        address: Address,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self, String> {
        // Without a login, a database and a library's name nothing is sent here.
        let nobody = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(MOST_UNWRITTEN);
        let made = MultiplexedConnection::new_with_config(&nobody, stream, config).await;
        let (connection, driver) = made.map_err(|error| why(&error, ""))?;
        let driver = tokio::spawn(async move {
            driver.await;
            ended();
        });
        Ok(Self { address, connection, driver: driver.abort_handle() })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn is_over(&self) -> bool {
        self.driver.is_finished()
    }

    pub(super) fn close(&self) {
        self.driver.abort();
    }

    /// A server's refusal is an error here, whichever way the crate tells it.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.connection.clone().send_packed_command(command).await.and_then(Value::extract_error)
    }

    /// Where a slot is just moving to: the node takes the command only right after ASKING.
    pub(super) async fn ask_while_moving(&self, command: &Cmd) -> Result<Value, RedisError> {
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        let answers = self.connection.clone().send_packed_commands(&both, 1, 1).await?;
        answers.into_iter().next().unwrap_or(Value::Nil).extract_error()
    }

    async fn expect(&self, what: &str, command: &Cmd) -> Result<(), String> {
        self.ask(command).await.map(drop).map_err(|error| why(&error, what))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// For the log. Of a server's refusal only the code: the rest of its text could quote what it was sent.
pub(super) fn why(error: &RedisError, what: &str) -> String {
    match error.code() {
        Some("WRONGPASS") => "the server takes neither this username nor this password (WRONGPASS)".to_owned(),
        Some("NOAUTH") => "the server wants a login (NOAUTH)".to_owned(),
        Some(code @ ("NOPERM" | "LOADING" | "MASTERDOWN")) => format!("{what} is refused ({code})"),
        Some(code) => format!("{what} is refused ({code}); is it as the configuration says?"),
        None if error.is_connection_dropped() => CLOSED.to_owned(),
        // The system's or TLS's words.
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}

/// Whether a login, or another, could help.
pub(super) fn wants_login(why: &str) -> bool {
    why.ends_with("(NOAUTH)") || why.ends_with("(NOPERM)")
}
