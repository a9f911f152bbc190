//! How a connection to RabbitMQ begins: dialled, under the operator's own TLS settings, logged in, its queue declared.
//!
//! Invariant: the password is in no URI, no error and no log line. lapin gets a stream that is ready, and makes none.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::auth::AuthProvider;
use lapin::options::QueueDeclareOptions;
use lapin::tcp::RustlsConnector;
use lapin::types::{FieldTable, LongString, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use serde_json::Value;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::super::settings::{AmqpServer, Declare, Login};
use super::connection::told;
use super::message::{short, value};
use crate::deliver::failure::cause;

/// RabbitMQ's own default. A header that does not fit into one frame cannot be sent at all.
const FRAME_MAX: u32 = 131_072;

/// RabbitMQ's own default.
const MOST_CHANNELS: usize = 2047;

/// Aborts: nothing that the kernel still holds of ours is sent.
pub(super) fn end(socket: &std::net::TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    let _ = socket.shutdown(Shutdown::Both);
}

pub(super) struct EndUnlessKept<'a>(Option<&'a std::net::TcpStream>);

impl<'a> EndUnlessKept<'a> {
    pub(super) fn new(socket: &'a std::net::TcpStream) -> Self {
        Self(Some(socket))
    }

    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for EndUnlessKept<'_> {
    fn drop(&mut self) {
        if let Some(socket) = self.0 {
            end(socket);
        }
    }
}

/// Dials and logs in. What is given up on the way leaves no thread behind.
pub(super) async fn connect(
    server: &AmqpServer,
    tls: Option<&RustlsConnector>,
    max_in_flight: usize,
) -> Result<(Connection, std::net::TcpStream), String> {
    let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
    let dialling = async {
        let found = lookup_host((server.host.as_str(), server.port)).await;
        let addresses: Vec<SocketAddr> = found.map_err(|error| format!("no address: {error}"))?.collect();
        let stream = AsyncTcpStream::connect(&runtime, addresses).await.map_err(|error| error.to_string())?;
        let AsyncTcpStream::Plain(plain) = &stream else { return Err("no plain stream".to_owned()) };
        let socket = plain.get_ref().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        let stream = match tls {
            None => stream,
            Some(connector) => {
                let settings = server.tls.as_ref();
                let name = settings.and_then(|tls| tls.server_name.as_deref()).unwrap_or(&server.host);
                stream.into_rustls(connector, name).await.map_err(|error| format!("TLS: {}", cause(&error)))?
            }
        };
        Ok((stream, std::net::TcpStream::from(socket)))
    };
    let late = |what: &str| format!("{what} took longer than connect_timeout");
    let (stream, socket) = timeout(server.connect_timeout, dialling).await.map_err(|_| late("connecting"))??;
    let guard = EndUnlessKept::new(&socket);
    let stream = Mutex::new(Some(stream));
    let greeting = Connection::connector(
        uri(server, max_in_flight),
        runtime,
        async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
        },
        ConnectionProperties::default()
            .with_client_property("product".into(), "hookward".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
            .with_connection_name("hookward".into())
            .with_auth_provider(Auth::of(server)),
    );
    let greeted = timeout(server.connect_timeout, greeting).await.map_err(|_| late("the login"))?;
    let connection = greeted.map_err(|error| match error.kind() {
        ErrorKind::ProtocolError(_) => told(&error),
        // What a port with TLS does with a greeting that is none: it ends the connection, or says what is no AMQP.
        _ if server.tls.is_none() => format!("{}; does it want TLS (amqps://)?", told(&error)),
        _ => told(&error),
    })?;
    guard.keep();
    Ok((connection, socket))
}

/// Without the password, which lapin need not know.
fn uri(server: &AmqpServer, max_in_flight: usize) -> AMQPUri {
    let username = match &server.login {
        Login::Password { username, .. } => username.clone(),
        Login::Certificate => String::new(),
    };
    AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username, password: String::new() },
            host: server.host.clone(),
            port: server.port,
        },
        vhost: server.vhost.clone(),
        query: AMQPQueryString {
            frame_max: Some(FRAME_MAX),
            // One for each publication, as many for those that were given up, and one for what a new connection asks.
            channel_max: u16::try_from(max_in_flight.saturating_mul(2).saturating_add(1).min(MOST_CHANNELS)).ok(),
            heartbeat: Some(u16::try_from(server.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            connection_timeout: None,
            auth_mechanism: None,
        },
    }
}

/// SASL: PLAIN, or EXTERNAL by the certificate that TLS showed.
struct Auth(Login);

impl Auth {
    fn of(server: &AmqpServer) -> Self {
        Self(server.login.clone())
    }
}

impl AuthProvider for Auth {
    fn mechanism(&self) -> ShortString {
        match self.0 {
            Login::Password { .. } => "PLAIN".into(),
            Login::Certificate => "EXTERNAL".into(),
        }
    }

    fn auth_starter(&self) -> Result<LongString, String> {
        Ok(match &self.0 {
            Login::Password { username, password } => {
                [b"\0", username.as_bytes(), b"\0", password.expose()].concat().into()
            }
            Login::Certificate => LongString::default(),
        })
    }
}

/// Once for each connection, on a channel of its own: a refusal closes it.
pub(super) async fn declare(connection: &Connection, declare: &Declare) -> Result<(), String> {
    let (queue, options, arguments) = match declare {
        Declare::None => return Ok(()),
        Declare::Passive(queue) => (queue, QueueDeclareOptions { passive: true, ..Default::default() }, None),
        Declare::Active(queue, arguments) => {
            (queue, QueueDeclareOptions { durable: true, ..Default::default() }, Some(arguments))
        }
    };
    let refused = |error: &lapin::Error| format!("the queue {queue:?} cannot be declared: {}", told(error));
    let name = short(queue).ok_or("the queue's name is longer than AMQP's 255 bytes")?;
    let arguments = arguments.map(table).transpose()?.unwrap_or_default();
    let channel = connection.create_channel().await.map_err(|error| told(&error))?;
    channel.queue_declare(name, options, arguments).await.map_err(|error| refused(&error))?;
    Ok(())
}

fn table(arguments: &BTreeMap<String, Value>) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, argument) in arguments {
        table.insert(short(name).ok_or("an argument's name is longer than AMQP's 255 bytes")?, value(argument));
    }
    Ok(table)
}
