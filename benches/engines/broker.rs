//! Each broker with a place for deliveries, the upstream that leads there, and a count of what has come.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::runtime::Runtime;

use crate::support::engines::{Nats, Rabbit, Redis};

pub(crate) struct Engine {
    /// Keys of `[upstreams.tasks]`.
    pub(crate) upstream: String,
    pub(crate) pid: u32,
    count: Box<dyn Fn() -> u64>,
}

impl Engine {
    /// How many deliveries it has.
    pub(crate) fn count(&self) -> u64 {
        (self.count)()
    }
}

type Start = fn() -> Engine;

pub(crate) const ALL: [(&str, Start); 5] = [
    ("Celery over Redis", celery),
    ("Redis Streams", stream),
    ("NATS JetStream", nats),
    ("RabbitMQ", amqp),
    ("Celery over RabbitMQ", celery_over_amqp),
];

const QUEUE: &str = "hooks";
/// Everything may be under way at once that the senders send.
const PLACES: &str = "max_in_flight = 1024\nqueue_timeout = \"5s\"\ntimeout = \"10s\"\n";

fn redis() -> Redis {
    Redis::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"])
}

fn counted(redis: &Redis, command: &[&str]) -> u64 {
    redis.cli(command).trim().parse().expect("a number")
}

fn celery() -> Engine {
    let redis = redis();
    Engine {
        upstream: format!(
            "kind = \"celery\"\nurl = \"{}\"\ntask = \"hooks.handle\"\nqueue = \"{QUEUE}\"\n{PLACES}",
            redis.url()
        ),
        pid: redis.pid(),
        count: Box::new(move || counted(&redis, &["llen", QUEUE])),
    }
}

fn stream() -> Engine {
    let redis = redis();
    Engine {
        upstream: format!("kind = \"redis-stream\"\nurl = \"{}\"\nstream = \"{QUEUE}\"\n{PLACES}", redis.url()),
        pid: redis.pid(),
        count: Box::new(move || counted(&redis, &["xlen", QUEUE])),
    }
}

fn nats() -> Engine {
    let (nats, runtime) = (Nats::start(), runtime());
    let jetstream = runtime.block_on(async {
        let client = async_nats::connect(nats.url()).await.expect("it listens");
        let jetstream = async_nats::jetstream::new(client);
        let config = async_nats::jetstream::stream::Config {
            name: QUEUE.to_owned(),
            subjects: vec![format!("{QUEUE}.>")],
            storage: async_nats::jetstream::stream::StorageType::File,
            ..Default::default()
        };
        jetstream.create_stream(config).await.expect("a stream");
        jetstream
    });
    Engine {
        upstream: format!("kind = \"nats\"\nurls = [\"{}\"]\nsubject = \"{QUEUE}.{{source}}\"\n{PLACES}", nats.url()),
        pid: nats.pid(),
        count: Box::new(move || {
            let _lives = &nats;
            runtime.block_on(async {
                let mut stream = jetstream.get_stream(QUEUE).await.expect("the stream made above");
                stream.info().await.expect("its state").state.messages
            })
        }),
    }
}

fn amqp() -> Engine {
    rabbit(|url| format!("kind = \"amqp\"\nurl = {url}\nexchange = \"\"\nrouting_key = \"{QUEUE}\"\n"))
}

fn celery_over_amqp() -> Engine {
    rabbit(|url| format!("kind = \"celery\"\nurl = {url}\ntask = \"hooks.handle\"\nqueue = \"{QUEUE}\"\n"))
}

/// A durable classic queue.
fn rabbit(upstream: impl Fn(&str) -> String) -> Engine {
    let (rabbit, runtime) = (Rabbit::start(), runtime());
    let (connection, channel) = runtime.block_on(async {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&rabbit.url(), properties).await.expect("it listens");
        let channel = connection.create_channel().await.expect("a channel");
        declared(&channel, QueueDeclareOptions::durable()).await;
        (connection, channel)
    });
    let url = format!("{{ value = \"{}\" }}", rabbit.url());
    Engine {
        upstream: format!("{}{PLACES}", upstream(&url)),
        pid: rabbit.pid(),
        count: Box::new(move || {
            let _live = (&rabbit, &connection);
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            runtime.block_on(declared(&channel, passive))
        }),
    }
}

/// How many messages wait in it.
async fn declared(channel: &Channel, options: QueueDeclareOptions) -> u64 {
    let queue = channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await.expect("a queue");
    queue.message_count().into()
}

fn runtime() -> Runtime {
    // Whoever keeps a connection alive needs a thread while nobody waits.
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
