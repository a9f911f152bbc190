//! RabbitMQ: an unmodified Celery worker runs each webhook as one task, pika reads them byte for byte, and what the broker
//! does not confirm, or returns, is not acknowledged.

use super::{MARK, assert_no_secret, configuration, delivery, github, peers, read, refused_for_now, send_all};
use super::{SECRET, send_until_taken};
use crate::support::certs::{Authority, path};
use crate::support::engines::{Rabbit, Redis, free_port};
use crate::support::gateway::Folder;
use crate::support::{Answer, Gateway, PATIENCE, Request, eventually};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

const JSON: &str = "application/json";

/// One for all tests that leave it in peace, each with queues of its own.
struct Shared {
    rabbit: Rabbit,
    tls_port: u16,
    ca: String,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let folder = Folder::new();
        let authority = Authority::new(&folder, "the broker's CA");
        let pair = authority.server("broker", "DNS:localhost,DNS:broker.example");
        let tls_port = free_port();
        let ca = std::fs::read_to_string(authority.pem()).expect("a certificate");
        let further = format!(
            "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n",
            path(&authority.pem()),
            path(&pair.certificate),
            path(&pair.key),
        );
        Shared { rabbit: Rabbit::start_in(folder, &further), tls_port, ca }
    })
}

/// pika.
struct Console {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Console {
    fn at(rabbit: &Rabbit) -> Self {
        let mut command = Command::new(peers().join("venv/bin/python"));
        command.args(["-c", include_str!("../../peers/rabbit_console.py")]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/run installs Python's environment");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut console = Self { child, input, output: BufReader::new(output) };
        console.ask(&json!({"do": "connect", "url": format!("{}?heartbeat=0", rabbit.url())}));
        console
    }

    fn ask(&mut self, asked: &Value) -> Value {
        writeln!(self.input, "{asked}").expect("the console reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the console answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{asked} failed"))
    }

    fn declare(&mut self, queue: &str, arguments: Value) {
        self.ask(&json!({"do": "declare", "queue": queue, "arguments": arguments}));
    }

    fn count(&mut self, queue: &str) -> u64 {
        self.ask(&json!({"do": "count", "queue": queue})).as_u64().expect("a number")
    }

    fn take(&mut self, queue: &str) -> Vec<Value> {
        self.ask(&json!({"do": "take", "queue": queue})).as_array().expect("messages").clone()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kind = "amqp"` under the name `tasks`, to the default exchange.
fn upstream(rabbit: &Rabbit, queue: &str, more: &str) -> String {
    let port = rabbit.port;
    format!(
        "\n[upstreams.tasks]\nkind = \"amqp\"\nurl = \"amqp://127.0.0.1:{port}/\"\nrouting_key = \"{queue}\"\n{more}\n"
    )
}

fn gateway(upstream: &str, of_each_source: &str) -> Gateway {
    Gateway::start_in(Arc::new(Folder::new()), &configuration("tasks", of_each_source, upstream))
}

fn connected(gateway: &Gateway) {
    gateway.wait_for_log("connected to amqp");
}

fn event(number: usize) -> Request {
    github(format!("{{\"n\": {number}, \"mark\": \"{MARK}\"}}").as_bytes(), "push", JSON)
}

fn ready(gateway: &Gateway) -> u16 {
    gateway.get("/readyz").expect("the operator's port answers").status
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn body(message: &Value) -> Vec<u8> {
    hex::decode(text(&message["body"])).expect("hex")
}

/// How often each body was published.
fn bodies(messages: &[Value]) -> BTreeMap<Vec<u8>, usize> {
    let mut bodies = BTreeMap::new();
    for message in messages {
        *bodies.entry(body(message)).or_insert(0) += 1;
    }
    bodies
}

fn refused(answers: &[Answer]) -> bool {
    answers.iter().all(refused_for_now)
}

#[test]
fn webhooks_run_once_each_as_tasks_of_an_unmodified_worker_on_rabbitmq() {
    struct Worker(Child);
    impl Drop for Worker {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let (shared, results) = (shared(), Redis::start());
    let port = shared.rabbit.port;
    let gateway = gateway(
        &format!(
            "\n[upstreams.tasks]\nkind = \"celery\"\nurl = \"amqp://127.0.0.1:{port}/\"\ntask = \"hooks.handle\"\n\
             queue = \"celery-tasks\"\npriority = 3\ntimeout = \"20s\"\n"
        ),
        "",
    );
    connected(&gateway);
    // Before a worker has ever run there is no queue, and RabbitMQ would confirm and drop the message.
    let deliveries: Vec<Request> = (0..500).map(delivery).collect();
    assert!(refused_for_now(&deliveries[0].send(gateway.public())));
    gateway.wait_for_log("returned, as no queue takes");

    let folder = Folder::new();
    folder.write("tasks.py", include_str!("../../peers/celery_worker.py"));
    let log = std::fs::File::create(folder.path("worker.log")).expect("a file");
    let mut command = Command::new(peers().join("venv/bin/celery"));
    command.args(["-A", "tasks", "worker", "--loglevel", "INFO", "--pool", "threads", "--without-gossip"]);
    command.args(["--without-mingle", "--without-heartbeat", "--hostname", "a@localhost", "-Q", "celery-tasks"]);
    command.env("BROKER", shared.rabbit.url()).env("RESULTS", results.url()).current_dir(&folder.0);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("another handle")).stderr(log);
    let _worker = Worker(command.spawn().expect("tests/run installs celery"));

    // The retry gets through when the queue is there: its claim was released.
    send_until_taken(gateway.public(), &deliveries[0]);
    for (number, answer) in send_all(gateway.public(), &deliveries[1..]).iter().enumerate() {
        assert_eq!(answer.status, 202, "{}", number + 1);
    }
    let count = || results.cli(&["LLEN", "ran"]).trim().parse::<usize>().expect("a number");
    let start = Instant::now();
    while count() < 500 {
        let log = || String::from_utf8_lossy(&read(&folder, "worker.log")).into_owned();
        assert!(start.elapsed() < 3 * PATIENCE, "{} of 500 ran:\n{}", count(), log());
        thread::sleep(Duration::from_millis(20));
    }
    // Whatever came after the last would be seen before this one.
    let marker = event(0);
    assert_eq!(send_until_taken(gateway.public(), &marker), 1);
    eventually("the last task ran", || (count() > 500).then_some(()));
    let lines = results.cli(&["LRANGE", "ran", "0", "-1"]);
    let ran: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(ran.len(), 501);
    let sent: BTreeMap<Vec<u8>, usize> =
        deliveries.iter().chain([&marker]).map(|delivery| (delivery.body.clone(), 1)).collect();
    assert_eq!(bodies(&ran), sent, "byte for byte, each once");
    let ids: BTreeSet<&str> = ran.iter().map(|task| text(&task["id"])).collect();
    assert_eq!(ids.len(), 501);
    for task in &ran {
        assert_eq!((text(&task["task"]), text(&task["argsrepr"])), ("hooks.handle", "(<webhook>,)"));
        assert_eq!((&task["traceparent"], &task["header"]), (&task["event"]["traceparent"], &task["traceparent"]));
        assert_ne!(task["data"], "wrong");
    }
    assert_no_secret(lines.as_bytes(), "a task");
    assert_no_secret(&read(&folder, "worker.log"), "the worker's log");
}

#[test]
fn pika_reads_bodies_byte_for_byte_attributes_as_headers_and_no_credentials() {
    let mut console = Console::at(&shared().rabbit);
    console.declare("plain", json!(null));
    let gateway =
        gateway(&upstream(&shared().rabbit, "plain", "priority = 4\nexpires = \"1h\"\ntimeout = \"20s\""), "");
    connected(&gateway);
    let deliveries: Vec<Request> = (0..96).map(delivery).collect();
    for answer in send_all(gateway.public(), &deliveries) {
        assert_eq!(answer.status, 202);
    }
    let messages = console.take("plain");
    assert_eq!(bodies(&messages), deliveries.iter().map(|delivery| (delivery.body.clone(), 1)).collect());
    assert!(messages.iter().any(|message| (0..=255).all(|byte| body(message).contains(&byte))), "all 256 values");
    assert_no_secret(&serde_json::to_vec(&messages).expect("JSON"), "a message");
    for message in &messages {
        let headers = &message["headers"];
        let source = text(&headers["ce-source"]).trim_start_matches('/').to_owned();
        assert_eq!(text(&message["message_id"]), format!("{source}:{}", text(&headers["ce-id"])));
        assert_eq!((&message["delivery_mode"], &message["app_id"]), (&json!(2), &json!("hookward")));
        assert_eq!((&message["priority"], &message["expiration"]), (&json!(4), &json!("3600000")));
        assert_eq!(message["type"], headers["ce-type"]);
        assert_eq!(
            (&headers["ce-specversion"], &message["content_type"]),
            (&json!("1.0"), &headers["http-content-type"])
        );
        assert!(message["timestamp"].as_u64().is_some_and(|at| at.abs_diff(crate::support::sign::now()) < 600));
        assert!(text(&headers["traceparent"]).starts_with("00-") && headers["hookward-request-id"].is_string());
        assert!(headers["hookward-verified"].is_string() && headers["ce-time"].is_string());
        if source == "github" {
            assert_eq!(text(&headers["ce-type"]), "webhook.github.push");
            assert_eq!(text(&headers["http-x-odd"]), "caf%E9 %FF");
            assert_eq!(text(&headers["http-x-twice"]), "one, two");
        }
    }
}

#[test]
fn headers_and_names_too_large_for_amqp_do_not_end_the_connection() {
    let mut console = Console::at(&shared().rabbit);
    console.declare("large", json!(null));
    let text = configuration("tasks", "", &upstream(&shared().rabbit, "large", "timeout = \"20s\""));
    let text = text.replacen("[admin]", "[limits]\nmax_header_bytes = \"400KiB\"\n[admin]", 1);
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &text);
    connected(&gateway);
    let mut many = event(1).header("X-Last", "small");
    for number in 0..6 {
        many = many.header(&format!("X-Large-{number}"), "v".repeat(40_000));
    }
    let long = event(2).header(&format!("X-{}", "n".repeat(300)), "1");
    assert_eq!(many.send(gateway.public()).status, 202);
    assert_eq!(long.send(gateway.public()).status, 202);
    let messages = console.take("large");
    let headers: Vec<&Value> = messages.iter().map(|message| &message["headers"]).collect();
    assert_eq!(headers.len(), 2);
    // Three of 40,000 bytes fit into a frame of 128 KiB.
    assert_eq!((&headers[0]["hookward-headers-omitted"], &headers[0]["http-x-last"]), (&json!("3"), &json!("small")));
    assert_eq!(headers[1]["hookward-headers-omitted"], "1");
    assert_eq!(gateway.log_text().matches("cannot be used").count(), 0, "{}", gateway.log_text());
}

#[test]
fn a_full_queue_that_rejects_is_not_acknowledged_until_it_has_room() {
    let mut console = Console::at(&shared().rabbit);
    console.declare("full", json!({"x-max-length": 1, "x-overflow": "reject-publish"}));
    let gateway = gateway(&upstream(&shared().rabbit, "full", ""), "");
    connected(&gateway);
    let taken: Vec<Request> = (0..2).map(event).collect();
    assert_eq!(taken[0].send(gateway.public()).status, 202);
    assert!(refused_for_now(&taken[1].send(gateway.public())));
    gateway.wait_for_log("refused it (nack)");
    assert_eq!(console.take("full").len(), 1);
    // The queue learns that it is empty a moment after its consumer has.
    send_until_taken(gateway.public(), &taken[1]);
    assert_eq!(body(&console.take("full")[0]), taken[1].body);
}

#[test]
fn an_exchange_that_is_missing_is_named_in_the_log_and_used_as_soon_as_it_is_there() {
    let mut console = Console::at(&shared().rabbit);
    let gateway = gateway(
        &upstream(&shared().rabbit, "hooks.{source}.{event}", "exchange = \"webhooks\"\ntimeout = \"20s\""),
        "",
    );
    connected(&gateway);
    let answers: Vec<Answer> = (0..20).map(|number| event(number).send(gateway.public())).collect();
    assert!(refused(&answers));
    assert!(gateway.wait_for_log("took no message").contains("no exchange 'webhooks' in vhost '/'"));
    assert_eq!(gateway.log_text().matches("took no message").count(), 1, "one line for one reason");
    console.declare("routed", json!(null));
    console.ask(
        &json!({"do": "exchange", "exchange": "webhooks", "kind": "topic", "queue": "routed", "key": "hooks.*.push"}),
    );
    send_until_taken(gateway.public(), &event(1));
    // The connection lived all the time, and a key that nothing is bound to is returned.
    assert!(refused_for_now(&github(b"{\"n\": 2}", "issues", JSON).send(gateway.public())));
    assert_eq!(gateway.log_text().matches("cannot be used").count(), 0, "{}", gateway.log_text());
    let messages = console.take("routed");
    assert_eq!(messages.iter().map(|message| text(&message["key"])).collect::<Vec<_>>(), ["hooks.github.push"]);
}

/// A way to the broker on which the first connection's bytes wait for so long.
fn slow_at_first(broker: u16, wait: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            thread::sleep(wait);
            let to = TcpStream::connect(("127.0.0.1", broker)).expect("the broker listens");
            for (mut from, mut to) in [(&from, &to), (&to, &from)]
                .map(|(a, b)| (a.try_clone(), b.try_clone()))
                .into_iter()
                .filter_map(|(a, b)| a.ok().zip(b.ok()))
            {
                thread::spawn(move || io::copy(&mut from, &mut to));
            }
        }
    });
    port
}

#[test]
fn what_comes_right_after_a_start_waits_for_the_connection_and_is_not_sent_away() {
    let mut console = Console::at(&shared().rabbit);
    console.declare("early", json!(null));
    let port = slow_at_first(shared().rabbit.port, Duration::from_millis(700));
    let slow =
        format!("\n[upstreams.tasks]\nkind = \"amqp\"\nurl = \"amqp://127.0.0.1:{port}/\"\nrouting_key = \"early\"\n");
    let gateway = gateway(&slow, "");
    assert!(!gateway.log_text().contains("connected to amqp"));
    let answer = event(1).send(gateway.public());
    assert_eq!(answer.status, 202, "{}", gateway.log_text());
    assert_eq!(console.count("early"), 1);

    // Nobody waits longer than the first attempt takes.
    let nobody = format!(
        "\n[upstreams.tasks]\nkind = \"amqp\"\nurl = \"amqp://127.0.0.1:{}/\"\nrouting_key = \"x\"\n",
        free_port()
    );
    let gateway = self::gateway(&nobody, "");
    let asked = Instant::now();
    assert!(refused_for_now(&event(2).send(gateway.public())));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[test]
fn a_wrong_password_is_told_without_the_password_and_the_gateway_is_not_ready() {
    let url = format!("amqp://127.0.0.1:{}/", shared().rabbit.port);
    let gateway = gateway(
        &format!(
            "\n[upstreams.tasks]\nkind = \"amqp\"\nurl = \"{url}\"\nusername = \"guest\"\n\
             password = {{ value = \"{SECRET}\" }}\nrouting_key = \"x\"\n"
        ),
        "",
    );
    assert!(gateway.wait_for_log("cannot be used").contains("ACCESS_REFUSED"));
    eventually("it is not ready", || (ready(&gateway) == 503).then_some(()));
    assert!(refused_for_now(&event(1).send(gateway.public())));
    assert!(!gateway.log_text().contains(SECRET));
}

#[test]
fn tls_takes_a_broker_of_the_given_authority_and_name_and_no_other() {
    let shared = shared();
    let mut console = Console::at(&shared.rabbit);
    console.declare("over-tls", json!(null));
    let folder = Arc::new(Folder::new());
    folder.write("ca.pem", &shared.ca);
    let other = Authority::new(&folder, "another CA");
    folder.write("other.pem", std::fs::read(other.pem()).expect("a certificate"));
    let start = |host: &str, tls: &str| {
        let url = format!("amqps://{host}:{}/", shared.tls_port);
        let upstream = format!(
            "\n[upstreams.tasks]\nkind = \"amqp\"\nurl = \"{url}\"\nrouting_key = \"over-tls\"\ntls = {{ {tls} }}\n"
        );
        Gateway::start_in(folder.clone(), &configuration("tasks", "", &upstream))
    };
    for (number, (host, tls)) in
        [("localhost", "ca = \"ca.pem\""), ("127.0.0.1", "ca = \"ca.pem\", server_name = \"broker.example\"")]
            .iter()
            .enumerate()
    {
        let gateway = start(host, tls);
        connected(&gateway);
        assert_eq!(event(number).send(gateway.public()).status, 202);
    }
    assert_eq!(console.count("over-tls"), 2);
    for (host, tls, why) in [
        ("localhost", "ca = \"other.pem\"", "UnknownIssuer"),
        ("127.0.0.1", "ca = \"ca.pem\"", "not valid for name"),
        ("localhost", "server_name = \"localhost\"", "UnknownIssuer"),
    ] {
        let gateway = start(host, tls);
        let line = gateway.wait_for_log("cannot be used");
        assert!(line.contains("TLS") && line.contains(why), "{line}");
        assert!(refused_for_now(&event(9).send(gateway.public())));
    }
    assert_eq!(console.count("over-tls"), 2);

    let (secure, plain) = (shared.tls_port, shared.rabbit.port);
    for (scheme, port, why) in [("amqps", plain, "TLS?"), ("amqp", secure, "amqps://")] {
        let url = format!("{scheme}://localhost:{port}/");
        let upstream = format!("\n[upstreams.tasks]\nkind = \"amqp\"\nurl = \"{url}\"\nrouting_key = \"over-tls\"\n");
        let gateway = Gateway::start_in(folder.clone(), &configuration("tasks", "", &upstream));
        let line = gateway.wait_for_log("cannot be used");
        assert!(line.contains(why), "{line}");
    }
}

#[test]
fn a_queue_is_declared_only_as_told_and_a_conflict_is_told() {
    let mut console = Console::at(&shared().rabbit);
    let passive = gateway(&upstream(&shared().rabbit, "awaited", "declare = \"passive\""), "");
    assert!(passive.wait_for_log("cannot be used").contains("no queue 'awaited' in vhost '/'"));
    assert!(refused_for_now(&event(1).send(passive.public())));
    let quorum = "declare = { x-queue-type = \"quorum\" }\ntimeout = \"20s\"";
    let active = gateway(&upstream(&shared().rabbit, "awaited", quorum), "");
    connected(&active);
    assert_eq!(event(2).send(active.public()).status, 202);
    connected(&passive);
    assert_eq!(event(3).send(passive.public()).status, 202);
    console.declare("classic", json!({"x-max-length": 10}));
    let conflict = gateway(&upstream(&shared().rabbit, "classic", quorum), "");
    let line = conflict.wait_for_log("cannot be used");
    assert!(line.contains("PRECONDITION_FAILED") && line.contains("classic"), "{line}");
    assert_eq!(ready(&conflict), 503);
    eventually("both are there", || (console.count("awaited") == 2).then_some(()));
}

#[test]
fn a_broker_with_an_alarm_is_down_at_once_and_afterwards_nothing_is_doubled() {
    let rabbit = Rabbit::start();
    let mut console = Console::at(&rabbit);
    console.declare("alarmed", json!(null));
    let gateway = gateway(&upstream(&rabbit, "alarmed", "timeout = \"4s\""), "");
    connected(&gateway);
    assert_eq!(event(0).send(gateway.public()).status, 202);

    rabbit.ctl(&["set_vm_memory_high_watermark", "0.00000001"]);
    // The first publication makes the broker say so.
    let start = Instant::now();
    assert!(refused_for_now(&event(1).send(gateway.public())));
    gateway.wait_for_log("the broker takes no messages");
    eventually("it is not ready", || (ready(&gateway) == 503).then_some(()));
    let answers: Vec<Answer> = (1..20).map(|number| event(number).send(gateway.public())).collect();
    assert!(refused(&answers));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}: no time-out was waited for", start.elapsed());

    rabbit.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    gateway.wait_for_log("takes messages again");
    for number in 1..20 {
        send_until_taken(gateway.public(), &event(number));
    }
    let messages = console.take("alarmed");
    assert_eq!(bodies(&messages), (0..20).map(|number| (event(number).body, 1)).collect(), "each once");

    // As large as the broker would ever take, and larger.
    rabbit.ctl(&["eval", "application:set_env(rabbit, max_message_size, 100000)."]);
    let fresh = self::gateway(&upstream(&rabbit, "alarmed", ""), "");
    connected(&fresh);
    assert_eq!(github(&vec![b'x'; 100_001], "push", "text/plain").send(fresh.public()).status, 413);
    assert_eq!(github(&vec![b'x'; 99_999], "push", "text/plain").send(fresh.public()).status, 202);

    // A broker that stands still.
    rabbit.pause();
    let start = Instant::now();
    assert!(refused_for_now(&event(30).send(gateway.public())));
    assert!(start.elapsed() >= Duration::from_secs(3), "it was waited for");
    gateway.wait_for_log("the broker says nothing");
    let start = Instant::now();
    assert!(refused_for_now(&event(30).send(gateway.public())));
    assert!(start.elapsed() < Duration::from_secs(3), "known to be down");
    rabbit.resume();
    send_until_taken(gateway.public(), &event(31));
    let messages = bodies(&console.take("alarmed"));
    assert_eq!(messages.get(&event(31).body), Some(&1));
}

#[test]
fn a_broker_that_is_killed_loses_nothing_that_was_acknowledged() {
    let mut rabbit = Rabbit::start();
    Console::at(&rabbit).declare("stored", json!(null));
    // RabbitMQ keeps a new queue in memory for a while; of messages it confirms what is on the disk.
    rabbit.ctl(&["eval", "mnesia:sync_log()."]);
    let inbox = "\n[inbox]\npath = \"inbox\"\n";
    let gateway = gateway(
        &format!("{inbox}{}", upstream(&rabbit, "stored", "timeout = \"5s\"")),
        "delivery = \"inbox\"\nretry = { attempts = 1000, first = \"100ms\", max = \"500ms\" }",
    );
    connected(&gateway);
    let deliveries: Vec<Request> = (0..300).map(event).collect();
    let answers = thread::scope(|scope| {
        let sending = scope.spawn(|| send_all(gateway.public(), &deliveries));
        eventually("some are under way", || (gateway.audit().len() > 50).then_some(()));
        rabbit.kill();
        sending.join().expect("the senders")
    });
    let acknowledged: BTreeSet<Vec<u8>> = (answers.iter().zip(&deliveries))
        .filter(|(answer, _)| answer.status == 202)
        .map(|(_, delivery)| delivery.body.clone())
        .collect();
    assert_eq!(acknowledged.len(), 300, "the inbox takes them whether or not there is a broker");
    gateway.wait_for_log("cannot be used");
    rabbit.restart();
    let mut console = Console::at(&rabbit);
    let mut messages = Vec::new();
    let start = Instant::now();
    while bodies(&messages).len() < 300 {
        assert!(start.elapsed() < 2 * PATIENCE, "{} of 300:\n{}", bodies(&messages).len(), gateway.log_text());
        messages.extend(console.take("stored"));
        thread::sleep(Duration::from_millis(20));
    }
    // One that was published twice has one identifier.
    let mut ids: BTreeMap<Vec<u8>, BTreeSet<&str>> = BTreeMap::new();
    for message in &messages {
        ids.entry(body(message)).or_default().insert(text(&message["message_id"]));
    }
    assert!(ids.values().all(|ids| ids.len() == 1));
}
