//! What the configuration says of a broker, and the defaults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::template::Template;
use crate::dial::Address;
use crate::redis_link;
use crate::secret::Secret;
use crate::tls_client::TlsSettings;

/// A broker on one's own network confirms within milliseconds; one that takes seconds is in trouble.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a publish key is remembered at Redis: as long as providers repeat a delivery.
pub(crate) const DEFAULT_DEDUPE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) engine: Engine,
    /// From a place to the confirmation.
    pub(crate) timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) queue_timeout: Duration,
}

#[derive(Clone)]
pub(crate) enum Engine {
    CeleryOverRedis { server: redis_link::Settings, task: CeleryTask, list: RedisList },
    CeleryOverAmqp { server: AmqpServer, task: CeleryTask, target: AmqpTarget },
    Stream { server: redis_link::Settings, target: StreamTarget },
    Amqp { server: AmqpServer, target: AmqpTarget },
    Nats(NatsTarget),
}

/// What of the body goes into an event's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The parsed JSON, or the text.
    Data,
    /// The raw bytes.
    Base64,
    Both,
}

/// How a broker other than Celery's is handed an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The raw body, and attributes beside it: CloudEvents' binary mode.
    Binary,
    /// CloudEvents' structured mode: one JSON text. Either `data` or `data_base64`, as the specification has it.
    CloudEvents,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CeleryTask {
    pub(crate) task: Template,
    pub(crate) queue: Template,
    /// The broker's own number: on Redis 0 is served first, on AMQP 9 is.
    pub(crate) priority: u8,
    pub(crate) expires: Option<Duration>,
    pub(crate) countdown: Option<Duration>,
    pub(crate) ignore_result: bool,
    pub(crate) payload: Payload,
}

/// The worker's `broker_transport_options`, as far as they shape the key of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RedisList {
    pub(crate) key_prefix: String,
    pub(crate) priority_steps: Vec<u8>,
    pub(crate) sep: String,
    pub(crate) dedupe: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamTarget {
    pub(crate) stream: Template,
    /// Approximately. None: the stream grows.
    pub(crate) max_len: Option<u64>,
    pub(crate) dedupe: Duration,
    pub(crate) format: Format,
}

#[derive(Clone)]
pub(crate) struct AmqpServer {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) login: Login,
    /// None: in the clear.
    pub(crate) tls: Option<TlsSettings>,
    pub(crate) connect_timeout: Duration,
    pub(crate) heartbeat: Duration,
}

/// At an AMQP broker.
#[derive(Clone)]
pub(crate) enum Login {
    Password {
        username: String,
        password: Secret,
    },
    /// SASL EXTERNAL: who the client certificate says.
    Certificate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AmqpTarget {
    /// Empty: the default exchange, which routes by the queue's name.
    pub(crate) exchange: String,
    pub(crate) routing_key: Template,
    pub(crate) declare: Declare,
    pub(crate) priority: Option<u8>,
    pub(crate) expires: Option<Duration>,
    /// Of `kind = "amqp"`.
    pub(crate) format: Format,
}

/// What becomes of the queue before anything is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Declare {
    /// It is whoever consumes it who makes it.
    None,
    /// It must be there.
    Passive(String),
    /// Made, durable, with these arguments.
    Active(String, BTreeMap<String, serde_json::Value>),
}

#[derive(Clone)]
pub(crate) struct NatsTarget {
    /// `host:port`, the first that answers.
    pub(crate) servers: Vec<Address>,
    pub(crate) subject: Template,
    /// The stream that must take it, where one is named.
    pub(crate) stream: Option<String>,
    pub(crate) auth: NatsAuth,
    pub(crate) tls: Option<TlsSettings>,
    pub(crate) connect_timeout: Duration,
    pub(crate) format: Format,
    /// The largest body of a source that publishes here: compared with what the server takes.
    pub(crate) max_body: u64,
}

#[derive(Clone)]
pub(crate) enum NatsAuth {
    None,
    Password {
        username: String,
        password: Secret,
    },
    Token(Secret),
    /// The text of a `.creds` file: a JWT and the seed of its key.
    Credentials(Secret),
    /// The seed of a key.
    NKey(Secret),
}

impl Settings {
    /// As metrics and logs name it: without credentials.
    pub(crate) fn label(&self) -> String {
        match &self.engine {
            Engine::CeleryOverRedis { server, .. } | Engine::Stream { server, .. } => server.label(),
            Engine::CeleryOverAmqp { server, .. } | Engine::Amqp { server, .. } => {
                let scheme = if server.tls.is_some() { "amqps" } else { "amqp" };
                let vhost = if server.vhost == "/" { "" } else { &server.vhost };
                format!("{scheme}://{}:{}/{vhost}", server.host, server.port).trim_end_matches('/').to_owned()
            }
            Engine::Nats(target) => {
                let scheme = if target.tls.is_some() { "tls" } else { "nats" };
                let servers: Vec<_> = target.servers.iter().map(Address::to_string).collect();
                format!("{scheme}://{}", servers.join(","))
            }
        }
    }

    /// Equal in everything.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let Self { name, engine, timeout, max_in_flight, queue_timeout } = self;
        *name == other.name
            && (*timeout, *max_in_flight, *queue_timeout) == (other.timeout, other.max_in_flight, other.queue_timeout)
            && engine.is_same(&other.engine)
    }
}

impl Engine {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::CeleryOverRedis { server, task, list },
                Self::CeleryOverRedis { server: other, task: other_task, list: other_list },
            ) => server.is_same(other) && (task, list) == (other_task, other_list),
            (
                Self::CeleryOverAmqp { server, task, target },
                Self::CeleryOverAmqp { server: other, task: other_task, target: other_target },
            ) => server.is_same(other) && (task, target) == (other_task, other_target),
            (Self::Stream { server, target }, Self::Stream { server: other, target: other_target }) => {
                server.is_same(other) && target == other_target
            }
            (Self::Amqp { server, target }, Self::Amqp { server: other, target: other_target }) => {
                server.is_same(other) && target == other_target
            }
            (Self::Nats(target), Self::Nats(other)) => target.is_same(other),
            _ => false,
        }
    }
}

impl AmqpServer {
    fn is_same(&self, other: &Self) -> bool {
        let Self { host, port, vhost, login, tls, connect_timeout, heartbeat } = self;
        (host, port, vhost) == (&other.host, &other.port, &other.vhost)
            && login.is_same(&other.login)
            && is_same_tls(tls.as_ref(), other.tls.as_ref())
            && (connect_timeout, heartbeat) == (&other.connect_timeout, &other.heartbeat)
    }
}

impl Login {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Certificate, Self::Certificate) => true,
            (Self::Password { username, password }, Self::Password { username: name, password: word }) => {
                username == name && password.matches(word.expose())
            }
            _ => false,
        }
    }
}

impl NatsTarget {
    fn is_same(&self, other: &Self) -> bool {
        let Self { servers, subject, stream, auth, tls, connect_timeout, format, max_body } = self;
        (servers, subject, stream) == (&other.servers, &other.subject, &other.stream)
            && auth.is_same(&other.auth)
            && is_same_tls(tls.as_ref(), other.tls.as_ref())
            && (connect_timeout, format, max_body) == (&other.connect_timeout, &other.format, &other.max_body)
    }
}

impl NatsAuth {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Password { username, password }, Self::Password { username: name, password: word }) => {
                username == name && password.matches(word.expose())
            }
            (Self::Token(one), Self::Token(two))
            | (Self::Credentials(one), Self::Credentials(two))
            | (Self::NKey(one), Self::NKey(two)) => one.matches(two.expose()),
            _ => false,
        }
    }
}

fn is_same_tls(one: Option<&TlsSettings>, two: Option<&TlsSettings>) -> bool {
    match (one, two) {
        (None, None) => true,
        (Some(one), Some(two)) => one.is_same(two),
        _ => false,
    }
}
