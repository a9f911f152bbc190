//! What a link promises, with real servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value, cmd};
use tokio::time::sleep;

use super::testing::{Authority, Cluster, Redis, until};
use super::{Link, LinkError, Script, Settings, Topology};
use crate::secret::Secret;
use crate::tls_client::TlsSettings;

const PATIENCE: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(2);

fn words(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    words.iter().for_each(|word| {
        command.arg(*word);
    });
    command
}

fn text(text: &str) -> Result<Value, LinkError> {
    Ok(Value::BulkString(text.as_bytes().to_vec()))
}

fn refused(code: &str) -> Result<Value, LinkError> {
    Err(LinkError::Refused { code: code.to_owned() })
}

async fn reached(what: &str, mut reached: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !reached().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

async fn up(settings: Settings) -> Arc<Link> {
    let link = Link::start(settings).unwrap();
    let begun = Instant::now();
    while !link.is_up() {
        assert!(begun.elapsed() < PATIENCE, "not up: {:?}", link.ask(&cmd("PING"), SOON).await);
        sleep(Duration::from_millis(5)).await;
    }
    link
}

/// Why a link never came up.
async fn why_down(settings: Settings) -> String {
    let link = Link::start(settings).unwrap();
    reached("tried", async || link.known_up().is_some()).await;
    match link.ask(&cmd("PING"), SOON).await {
        Err(LinkError::Down(why)) => why,
        answer => panic!("{answer:?}"),
    }
}

fn with_login(settings: Settings, username: Option<&str>, password: &str) -> Settings {
    let username = username.map(str::to_owned);
    Settings { username, password: Some(Secret::new(password.as_bytes().to_vec())), ..settings }
}

fn with_tls(settings: Settings, tls: TlsSettings) -> Settings {
    Settings { tls: Some(tls), ..settings }
}

#[tokio::test]
async fn a_server_is_asked_in_the_database_of_the_settings() {
    let redis = Redis::start();
    let link = up(Settings { database: 3, ..redis.settings() }).await;
    assert_eq!(link.ask(&words(&["SET", "a", "b"]), SOON).await, Ok(Value::Okay));
    assert_eq!(link.ask(&words(&["GET", "a"]), SOON).await, text("b"));
    assert_eq!(redis.info("db3"), "keys=1,expires=0,avg_ttl=0");
    assert_eq!(Settings { database: 3, ..redis.settings() }.label(), format!("redis://127.0.0.1:{}/3", redis.port));
}

#[tokio::test]
async fn a_refusal_is_told_by_its_code_and_never_by_what_was_sent() {
    let redis = Redis::start();
    let link = up(redis.settings()).await;
    assert_eq!(link.ask(&words(&["NONSENSE", "s3cret"]), SOON).await, refused("ERR"));
    link.ask(&words(&["SET", "a", "b"]), SOON).await.unwrap();
    assert_eq!(link.ask(&words(&["LPUSH", "a", "b"]), SOON).await, refused("WRONGTYPE"));
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(link.ask(&words(&["SET", "b", "c"]), SOON).await, refused("OOM"));
}

#[tokio::test]
async fn a_user_with_the_rule_of_the_documentation_can_do_what_is_needed_and_little_else() {
    let page = include_str!("../../docs/shared-state.md");
    let rule = page.lines().find(|line| line.starts_with("user hookward on ")).unwrap();
    let redis = Redis::with(&[&rule.replace("PASSWORD", "s3cret"), "user default on >other ~* &* +@all"]);
    let link = up(Settings { database: 1, ..with_login(redis.settings(), Some("hookward"), "s3cret") }).await;
    let script = Script::new(
        "redis.call('SET', KEYS[1], ARGV[1], 'PX', 1000) redis.call('ZADD', KEYS[2], 1, 'a') redis.call('PEXPIRE', KEYS[2], 9)
         redis.call('HSET', KEYS[3], 'a', 'b') redis.call('TIME') redis.call('TYPE', KEYS[3]) return redis.call('DEL', KEYS[1])",
    );
    let keys: [&[u8]; 3] = [b"hookward:{a}:1", b"hookward:{a}:2", b"hookward:{a}:3"];
    assert_eq!(link.run(&script, &keys, &[b"b"], SOON).await, Ok(Value::Int(1)));
    for needed in [words(&["INFO"]), words(&["ROLE"]), words(&["HGETALL", "hookward:{a}:3"])] {
        link.ask(&needed, SOON).await.unwrap();
    }
    for refusal in
        [words(&["GET", "elsewhere"]), words(&["FLUSHALL"]), words(&["CONFIG", "GET", "*"]), words(&["KEYS", "*"])]
    {
        assert_eq!(link.ask(&refusal, SOON).await, refused("NOPERM"));
    }
}

/// What is logged on this thread, until it is dropped.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("Redis")).map(str::to_owned).collect()
    }

    /// With a second one beside it: for a single one, tracing asks whichever thread comes to a line first whether anybody
    /// wants it, and the threads of other tests say no for all.
    fn keep(&self) -> (tracing::Dispatch, tracing::subscriber::DefaultGuard) {
        let log = self.clone();
        let second = tracing::Dispatch::new(tracing_subscriber::registry());
        let writer = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || log.clone());
        (second, tracing::subscriber::set_default(writer.finish()))
    }
}

#[tokio::test]
async fn an_outage_is_two_lines_in_the_log_however_many_attempts_it_takes() {
    let log = Log::default();
    let _kept = log.keep();
    let mut redis = Redis::with(&["requirepass s3cret"]);
    let link = up(with_login(redis.settings(), None, "s3cret")).await;
    redis.kill();
    reached("down", async || link.known_up() == Some(false)).await;
    sleep(Duration::from_millis(700)).await;
    redis.restart();
    reached("up again", async || link.is_up()).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("INFO") && lines[0].contains("connected"), "{lines:#?}");
    assert!(lines[1].contains("WARN") && lines[1].contains("the server closed the connection"), "{lines:#?}");
    assert!(lines[2].contains("INFO") && lines[2].contains(&redis.settings().label()), "{lines:#?}");

    let wrong = Link::start(with_login(redis.settings(), None, "wr0ng")).unwrap();
    reached("refused", async || wrong.known_up() == Some(false)).await;
    let lines = log.lines();
    assert!(lines[3].contains("WARN") && lines[3].contains("(WRONGPASS)"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("s3cret") || line.contains("wr0ng")), "{lines:#?}");
}

#[tokio::test]
async fn a_wrong_password_is_named_as_such_and_shown_nowhere() {
    let redis = Redis::with(&["requirepass right"]);
    up(with_login(redis.settings(), None, "right")).await;
    for username in [None, Some("nobody-knows")] {
        let why = why_down(with_login(redis.settings(), username, "s3cret")).await;
        assert_eq!(
            why,
            format!("127.0.0.1:{}: the server takes neither this username nor this password (WRONGPASS)", redis.port)
        );
    }
    let why = why_down(redis.settings()).await;
    assert_eq!(why, format!("127.0.0.1:{}: the server wants a login (NOAUTH)", redis.port));
}

#[tokio::test]
async fn tls_is_spoken_with_whom_the_authority_vouches_for_and_with_nobody_else() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let redis = Redis::with_tls(&authority, &[]);
    let link = up(with_tls(redis.settings(), authority.trusted())).await;
    assert_eq!(link.ask(&words(&["ECHO", "a"]), SOON).await, text("a"));
    assert_eq!(with_tls(redis.settings(), authority.trusted()).label(), format!("rediss://127.0.0.1:{}", redis.port));

    let named = TlsSettings { server_name: Some("localhost".to_owned()), ..authority.trusted() };
    up(with_tls(redis.settings(), named)).await;

    let why = why_down(with_tls(redis.settings(), stranger.trusted())).await;
    assert!(why.ends_with("TLS: invalid peer certificate: UnknownIssuer"), "{why}");
    let elsewhere = TlsSettings { server_name: Some("elsewhere.test".to_owned()), ..authority.trusted() };
    let why = why_down(with_tls(redis.settings(), elsewhere)).await;
    assert!(why.contains("not valid for name \"elsewhere.test\""), "{why}");
    // Mozilla's roots vouch for nobody's own authority.
    let why = why_down(with_tls(redis.settings(), TlsSettings::default())).await;
    assert!(why.contains("TLS: invalid peer certificate"), "{why}");
    // In the clear there is no answer from it.
    why_down(redis.settings()).await;
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    let authority = Authority::new();
    let redis = Redis::with_tls(&authority, &["tls-auth-clients yes"]);
    let identity = Some(authority.identity());
    let link = up(with_tls(redis.settings(), TlsSettings { identity, ..authority.trusted() })).await;
    assert_eq!(link.ask(&words(&["ECHO", "a"]), SOON).await, text("a"));
    why_down(with_tls(redis.settings(), authority.trusted())).await;
    let strangers = Some(Authority::new().identity());
    why_down(with_tls(redis.settings(), TlsSettings { identity: strangers, ..authority.trusted() })).await;
}

#[tokio::test]
async fn a_scheme_that_is_not_the_ports_is_told_as_what_it_probably_is() {
    let authority = Authority::new();
    let (plain, secure) = (Redis::start(), Redis::with_tls(&authority, &[]));
    let hasty = Settings { connect_timeout: Duration::from_millis(500), ..plain.settings() };
    let why = why_down(with_tls(hasty, authority.trusted())).await;
    assert!(why.ends_with("no answer to the greeting of TLS within 500ms; has this port TLS?"), "{why}");
    let why = why_down(Settings { tls: None, ..secure.settings() }).await;
    assert!(why.ends_with("the server closed the connection; does it want TLS (rediss://)?"), "{why}");
    up(plain.settings()).await;
    up(with_tls(secure.settings(), authority.trusted())).await;
}

#[tokio::test]
async fn a_tls_setting_that_cannot_work_is_told_before_anything_is_tried() {
    let redis = Redis::start();
    let broken = TlsSettings { server_name: Some("not a name".to_owned()), ..TlsSettings::default() };
    let error = Link::start(with_tls(redis.settings(), broken)).err();
    assert_eq!(error.as_deref(), Some("tls.server_name is neither a name nor an address"));
    let cluster = Settings { topology: Topology::Cluster(vec![redis.address()]), database: 1, ..redis.settings() };
    assert_eq!(Link::start(cluster).err().as_deref(), Some("a cluster has one database only, number 0"));
}

#[tokio::test]
async fn a_script_that_the_server_has_forgotten_is_sent_whole() {
    let mut redis = Redis::start();
    let link = up(redis.settings()).await;
    let script = Script::new("return redis.call('INCR', KEYS[1]) + ARGV[1]");
    assert_eq!(link.run(&script, &[b"a"], &[b"10"], SOON).await, Ok(Value::Int(11)));
    redis.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(link.run(&script, &[b"a"], &[b"10"], SOON).await, Ok(Value::Int(12)));
    redis.restart();
    reached("the script runs again", async || link.run(&script, &[b"a"], &[b"10"], SOON).await == Ok(Value::Int(11)))
        .await;
}

#[tokio::test]
async fn a_server_that_died_fails_questions_at_once_and_serves_within_seconds_of_its_return() {
    let mut redis = Redis::start();
    let link = up(redis.settings()).await;
    assert_eq!(link.came_up(), 1);

    redis.kill();
    reached("down, without a question", async || link.known_up() == Some(false)).await;
    let begun = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(link.ask(&cmd("PING"), SOON).await, Err(LinkError::Down(_))));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // As long as it takes for the waits to be at their longest.
    sleep(Duration::from_millis(2500)).await;
    match link.ask(&cmd("PING"), SOON).await {
        Err(LinkError::Down(why)) => assert!(why.to_lowercase().contains("connection refused"), "{why}"),
        answer => panic!("{answer:?}"),
    }

    redis.restart();
    let took = reached("up again", async || link.ask(&cmd("PING"), SOON).await.is_ok()).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(link.came_up(), 2);
}

#[tokio::test]
async fn a_mute_server_costs_nobody_more_than_his_time_and_is_found_out_by_a_ping() {
    let redis = Redis::start();
    let link = up(redis.settings()).await;
    redis.pause();
    let begun = Instant::now();
    assert_eq!(link.ask(&words(&["SET", "a", "b"]), Duration::from_millis(100)).await, Err(LinkError::TimedOut));
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    // One who waits longer is told when the connection is given up: what he asked may have been done.
    let answer = link.ask(&cmd("PING"), Duration::from_secs(10)).await;
    assert!(matches!(answer, Err(LinkError::Broken(_))), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    reached("down", async || link.known_up() == Some(false)).await;
    assert!(matches!(link.ask(&cmd("PING"), SOON).await, Err(LinkError::Down(_))));
    // Longer than any of the time-outs.
    sleep(Duration::from_millis(2500)).await;

    redis.resume();
    let took = reached("up again", async || link.ask(&cmd("PING"), SOON).await.is_ok()).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn a_late_answer_is_never_taken_for_that_of_a_later_question() {
    let redis = Redis::start();
    let link = up(redis.settings()).await;
    redis.pause();
    for number in 0..50 {
        let answer = link.ask(&words(&["ECHO", &format!("early-{number}")]), Duration::from_millis(2)).await;
        assert_eq!(answer, Err(LinkError::TimedOut));
    }
    redis.resume();
    for number in 0..50 {
        let later = format!("later-{number}");
        assert_eq!(link.ask(&words(&["ECHO", &later]), SOON).await, text(&later));
    }
    assert_eq!(link.came_up(), 1, "one connection all the time");
}

#[tokio::test]
async fn a_flood_while_the_server_is_mute_is_bounded_and_told_that_nothing_was_sent() {
    let redis = Redis::start();
    let link = up(redis.settings()).await;
    redis.pause();
    let begun = Instant::now();
    let payload = Arc::new(vec![b'x'; 4096]);
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..6000 {
        let (link, payload) = (link.clone(), payload.clone());
        flood.spawn(async move { link.ask(cmd("RPUSH").arg("a").arg(&**payload), Duration::from_secs(30)).await });
    }
    let (mut broken, mut unsent) = (0, 0);
    while let Some(answer) = flood.join_next().await {
        match answer.unwrap() {
            Err(LinkError::Broken(_)) => broken += 1,
            Err(LinkError::Down(_)) => unsent += 1,
            answer => panic!("{answer:?}"),
        }
    }
    assert_eq!((broken, unsent), (4096, 6000 - 4096));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    redis.resume();
    reached("serves again", async || link.ask(&cmd("PING"), SOON).await.is_ok()).await;
    let Value::Int(kept) = redis.cli(&["LLEN", "a"]) else { panic!() };
    assert!(kept <= broken, "{kept} of {broken}: none that was said to be unsent");
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_followed_when_another_takes_over() {
    let login = ["requirepass s3cret", "masterauth s3cret"];
    let first = Redis::with(&login);
    let second = Redis::with(&[login[0], login[1], &format!("replicaof 127.0.0.1 {}", first.port)]);
    let about = |name: &str| format!("sentinel auth-pass {name} s3cret");
    let sentinels: Vec<Redis> =
        (0..3).map(|_| Redis::sentinel("mymaster", first.port, 2, &[&about("mymaster")])).collect();
    until("the sentinels know each other and the replica", || {
        sentinels.iter().all(|one| {
            let words: Vec<String> = redis::from_redis_value(one.cli(&["SENTINEL", "MASTER", "mymaster"])).unwrap();
            let says = |name: &str, value: &str| words.chunks(2).any(|pair| pair == [name, value]);
            says("num-other-sentinels", "2") && says("num-slaves", "1")
        })
    });

    let addresses = sentinels.iter().map(Redis::address).collect();
    let topology = |master: &str, sentinels| Topology::Sentinel { sentinels, master: master.to_owned() };
    let settings = with_login(Settings::new(topology("mymaster", addresses)), None, "s3cret");
    let link = up(settings.clone()).await;
    assert_eq!(link.ask(&words(&["SET", "a", "1"]), SOON).await, Ok(Value::Okay));

    let why =
        why_down(Settings { topology: topology("other", vec![sentinels[0].address()]), ..settings.clone() }).await;
    assert!(why.ends_with(r#"knows no master named "other""#), "{why}");

    until("the replica has it", || second.cli(&["GET", "a"]) == Value::BulkString(b"1".to_vec()));
    // Mute, not gone: harder to notice, and it comes back believing that it is the master.
    first.pause();
    let took = reached("the other is written to", async || {
        link.ask(&words(&["SET", "a", "2"]), Duration::from_millis(250)).await.is_ok()
    })
    .await;
    assert_eq!(second.cli(&["GET", "a"]), Value::BulkString(b"2".to_vec()));
    assert!(took < Duration::from_secs(10), "{took:?} with half a second until the sentinels are sure");

    first.resume();
    for number in 0..20 {
        assert_eq!(link.ask(&words(&["SET", "b", &number.to_string()]), SOON).await, Ok(Value::Okay));
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(second.cli(&["GET", "b"]), Value::BulkString(b"19".to_vec()));
}

#[tokio::test]
async fn a_master_that_was_made_a_replica_is_left_after_the_first_refusal() {
    let (first, second) = (Redis::start(), Redis::start());
    let sentinel = Redis::sentinel("mymaster", first.port, 1, &[]);
    let topology = Topology::Sentinel { sentinels: vec![sentinel.address()], master: "mymaster".to_owned() };
    let link = up(Settings::new(topology)).await;
    // Behind the sentinel's back: it goes on naming it.
    first.cli(&["REPLICAOF", "127.0.0.1", &second.port.to_string()]);
    assert_eq!(link.ask(&words(&["SET", "a", "1"]), SOON).await, refused("READONLY"));
    reached("left", async || link.known_up() == Some(false)).await;
    first.cli(&["REPLICAOF", "NO", "ONE"]);
    reached("a master again", async || link.ask(&words(&["SET", "a", "1"]), SOON).await.is_ok()).await;
}

#[tokio::test]
async fn a_cluster_is_asked_where_a_key_lives_while_its_slot_moves_and_after() {
    let cluster = Cluster::start(3);
    let link = up(cluster.settings()).await;
    let script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    for number in 0..50 {
        let key = format!("{{{number}}}:a");
        assert_eq!(
            link.run(&script, &[key.as_bytes(), format!("{{{number}}}:b").as_bytes()], &[b"7"], SOON).await,
            Ok(Value::Int(7))
        );
    }
    let sizes: Vec<Value> = cluster.nodes.iter().map(|node| node.cli(&["DBSIZE"])).collect();
    assert!(sizes.iter().all(|size| *size != Value::Int(0)), "spread over all: {sizes:?}");
    assert_eq!(link.run(&script, &[b"{1}:a", b"{2}:a"], &[b"7"], SOON).await, refused("CROSSSLOT"));

    let (from, to) = (cluster.holder_of("{3}:a"), (cluster.holder_of("{3}:a") + 1) % 3);
    let id = |at: usize| -> String { redis::from_redis_value(cluster.nodes[at].cli(&["CLUSTER", "MYID"])).unwrap() };
    let slot = super::cluster::slot(b"{3}:a").to_string();
    cluster.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    cluster.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    // What has moved already is asked for at its new place, what has not at its old.
    cluster.nodes[from].cli(&["MIGRATE", "127.0.0.1", &cluster.nodes[to].port.to_string(), "{3}:a", "0", "5000"]);
    for expected in [14, 21] {
        assert_eq!(link.run(&script, &[b"{3}:a"], &[b"7"], SOON).await, Ok(Value::Int(expected)));
    }
    for node in [to, from] {
        cluster.nodes[node].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
    for expected in [28, 35] {
        assert_eq!(link.run(&script, &[b"{3}:a"], &[b"7"], SOON).await, Ok(Value::Int(expected)));
    }
    assert_eq!(cluster.nodes[to].cli(&["GET", "{3}:a"]), Value::BulkString(b"35".to_vec()));
}

#[tokio::test]
async fn in_a_cluster_a_replica_takes_over_from_a_master_that_died() {
    let mut cluster = Cluster::start(3);
    let replica = Redis::with(&["cluster-enabled yes"]);
    cluster.join(&replica);
    let id: String = redis::from_redis_value(cluster.nodes[0].cli(&["CLUSTER", "MYID"])).unwrap();
    until("the replica knows its master", || replica.try_cli(&["CLUSTER", "REPLICATE", &id]).is_ok());
    until("all know the replica", || {
        cluster.nodes.iter().all(|node| {
            let nodes: String = redis::from_redis_value(node.cli(&["CLUSTER", "NODES"])).unwrap();
            nodes.lines().any(|line| line.contains("slave") && line.contains(&id))
        })
    });
    until("it is in step", || replica.info("master_link_status") == "up");
    // One node is enough to find the others.
    let link = up(Settings::new(Topology::Cluster(vec![cluster.nodes[1].address()]))).await;
    let key = (0..).map(|number| format!("{{{number}}}")).find(|key| cluster.holder_of(key) == 0).unwrap();
    assert_eq!(link.ask(&words(&["SET", &key, "1"]), SOON).await, Ok(Value::Okay));
    until("the replica has it", || replica.cli(&["DBSIZE"]) == Value::Int(1));
    // Masters that met with one epoch settle on different ones, and until the replica has heard of it nobody votes for it.
    until("every master has an epoch of its own, as the replica knows", || {
        let nodes: String = redis::from_redis_value(replica.cli(&["CLUSTER", "NODES"])).unwrap();
        let masters = nodes.lines().filter(|line| line.contains("master"));
        let epochs: Vec<_> = masters.filter_map(|line| line.split(' ').nth(6)).collect();
        epochs.len() == 3 && epochs.iter().collect::<std::collections::HashSet<_>>().len() == 3
    });

    cluster.nodes[0].kill();
    let took = reached("the replica serves", async || {
        let answer = link.ask(&words(&["GET", &key]), Duration::from_millis(250)).await;
        answer == text("1")
    })
    .await;
    assert!(took < Duration::from_secs(8), "{took:?} with a second until the cluster is sure");
    reached("whole", async || link.is_up()).await;
}

#[test]
fn slots_are_those_of_the_cluster_specification() {
    assert_eq!(super::cluster::crc16(b"123456789"), 0x31C3);
    let slot = super::cluster::slot;
    assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
    assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
    assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    // An empty tag is none.
    assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
    assert_eq!(slot(b"foo{}{bar}"), super::cluster::crc16(b"foo{}{bar}") % 16384);
}
