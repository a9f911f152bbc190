//! Whoever takes webhooks off a broker: an unmodified Celery worker, and each broker's own client library, all of them in
//! Python and ended with the test.

use super::engines::{Running, output_to, tail};
use super::eventually;
use super::gateway::Folder;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Messages as JSON, one a line, in the order in which they came.
pub(crate) struct Consumer {
    folder: Folder,
    _running: Running,
}

impl Consumer {
    /// `celery worker` on this queue, with tasks of these names and further settings (a JSON object). It is ready when this
    /// returns.
    pub(crate) fn celery(broker: &str, queue: &str, tasks: &[&str], settings: &str) -> Self {
        let arguments = ["-A", "tasks", "worker", "-l", "INFO", "-P", "prefork", "-c", "2", "-Q", queue];
        let consumer = Self::start("celery", |command, folder| {
            command.args(["-m", "celery"]).args(arguments).args(["--without-gossip", "--without-mingle"]);
            command.current_dir(peers_folder()).env("PYTHONDONTWRITEBYTECODE", "1");
            command.env("BROKER", broker).env("SETTINGS", settings).env("TASKS", tasks.join(","));
            command.env("RECORD", folder.path("messages"));
            let [stdout, stderr] = output_to(folder, "log");
            command.stdout(stdout).stderr(stderr);
        });
        eventually("the worker is ready", || consumer.log().contains(" ready.").then_some(()));
        consumer
    }

    /// `consume.py` with these arguments.
    pub(crate) fn of(arguments: &[&str]) -> Self {
        Self::start(arguments[0], |command, folder| {
            let file = std::fs::File::create(folder.path("messages")).expect("a file");
            command.arg(peers_folder().join("consume.py")).args(arguments).stdout(Stdio::from(file));
            let [_, stderr] = output_to(folder, "log");
            command.stderr(stderr);
        })
    }

    fn start(name: &str, prepare: impl FnOnce(&mut Command, &Folder)) -> Self {
        let folder = Folder::new();
        let mut command = Command::new(python(name));
        prepare(&mut command, &folder);
        let running = Running::start(command);
        Self { folder, _running: running }
    }

    /// What has come so far.
    pub(crate) fn messages(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.path("messages")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    pub(crate) fn wait_for(&self, count: usize) -> Vec<serde_json::Value> {
        eventually(&format!("the consumer has {count} messages:\n{}", self.log()), || {
            Some(self.messages()).filter(|messages| messages.len() >= count)
        })
    }

    pub(crate) fn log(&self) -> String {
        tail(&self.folder, "log")
    }
}

/// With the libraries of tests/peers/requirements.txt.
fn python(whose: &str) -> PathBuf {
    let peers = std::env::var_os("HOOKWARD_PEERS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers"), PathBuf::from);
    let python = peers.join("venv/bin/python3");
    assert!(python.is_file(), "{whose}: {} is not there; tests/run makes it", python.display());
    python
}

fn peers_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

#[test]
fn a_celery_worker_runs_what_celery_itself_sends() {
    let redis = super::engines::Redis::start();
    let worker = Consumer::celery(&redis.url(), "hooks", &["hooks.handle"], "{}");
    let mut sender = Command::new(python("celery"));
    sender.args(["-c", "import tasks; tasks.app.send_task('hooks.handle', args=[{'id': 'evt_1'}], queue='hooks')"]);
    sender
        .current_dir(peers_folder())
        .env("BROKER", redis.url())
        .env("RECORD", "/dev/null")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    assert!(sender.status().expect("python runs").success());
    let messages = worker.wait_for(1);
    assert_eq!(
        (&messages[0]["task"], &messages[0]["args"]),
        (&"hooks.handle".into(), &serde_json::json!([{ "id": "evt_1" }]))
    );
}

#[test]
fn the_readers_of_streams_and_of_nats_tell_what_came() {
    let redis = super::engines::Redis::start();
    redis.cli(&["xadd", "hooks", "*", "type", "push", "data", "{}"]);
    let reader = Consumer::of(&["stream", &redis.url(), "hooks"]);
    let messages = reader.wait_for(1);
    assert_eq!((&messages[0]["body"], &messages[0]["fields"]["type"]), (&"e30=".into(), &"push".into()));
    let nats = super::engines::Nats::start();
    let reader = Consumer::of(&["nats", &nats.url(), "HOOKS", "hooks.>"]);
    assert_eq!(reader.wait_for(1)[0]["ready"], true);
    let mut sender = Command::new(python("nats"));
    let publish = "import asyncio, nats, sys\nasync def main():\n c = await nats.connect(sys.argv[1])\n \
                   await c.jetstream().publish('hooks.shop', b'{}', headers={'ce-id': '1'})\nasyncio.run(main())";
    sender.args(["-c", publish, &nats.url()]);
    assert!(sender.status().expect("python runs").success());
    let messages = reader.wait_for(2);
    assert_eq!((&messages[1]["body"], &messages[1]["headers"]["ce-id"]), (&"e30=".into(), &"1".into()));
}

#[test]
fn the_reader_of_amqp_tells_what_came_and_goes_on_after_a_restart_of_the_broker() {
    let mut rabbit = super::engines::Rabbit::start();
    let publish = |rabbit: &super::engines::Rabbit| {
        let mut sender = Command::new(python("amqp"));
        let script = "import pika, sys\nc = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()\n\
                      c.queue_declare('hooks', durable=True)\n\
                      c.basic_publish('', 'hooks', b'{}', pika.BasicProperties(message_id='1', headers={'ce-id': '1'}))";
        sender.args(["-c", script, &rabbit.url()]);
        assert!(sender.status().expect("python runs").success());
    };
    publish(&rabbit);
    let reader = Consumer::of(&["amqp", &rabbit.url(), "hooks"]);
    let messages = reader.wait_for(1);
    assert_eq!((&messages[0]["body"], &messages[0]["properties"]["message_id"]), (&"e30=".into(), &"1".into()));
    assert_eq!(messages[0]["headers"]["ce-id"], "1");
    rabbit.kill();
    rabbit.restart();
    publish(&rabbit);
    reader.wait_for(2);
}
