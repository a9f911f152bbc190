//! kill -9, many times and at random moments, while events are accepted, delivered, pruned and vacuumed.
//!
//! What must hold: an event that was acknowledged reaches the upstream, byte for byte; one that reaches it again does so
//! under the same `X-Request-Id` and `Idempotency-Key`, and only because its attempt was under way when the process was
//! killed; and an event is accepted once, though nothing but the inbox remembers it.

use super::stage::{body, configuration, event, number, refused_for_now, source, upstream};
use crate::support::gateway::{BINARY, Folder};
use crate::support::http::{connect, read_answer};
use crate::support::{Answer, Gateway, Reply, Request, Upstream, eventually};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// While it serves; those during a start come on top.
const KILLS: usize = 50;
const SENDERS: usize = 6;
/// Attempts under way at a time, and so the most that one kill can have delivered again.
const IN_FLIGHT: usize = 8;

#[test]
fn fifty_kills_at_random_moments_lose_nothing_that_was_acknowledged_and_repeat_only_what_was_under_way() {
    let seed = Seed::new();
    let mut chance = Chance(seed.0);
    // Some are refused at first, so that attempts that failed and wait for their next are there to be lost too.
    let application = Upstream::with(|_, number| Reply::Status(if is_refused(number) { 503 } else { 200 }));
    let text = configuration(
        "keep_delivered = \"1s\"\nmax_size = \"4MiB\"\nmin_free = \"0B\"",
        &format!(
            "{}{}",
            upstream("app", &application, &format!("max_in_flight = {IN_FLIGHT}")),
            source("shop", "app", "retry = { attempts = 1000, first = \"10ms\", max = \"50ms\" }"),
        ),
    );
    let door = Arc::new(Door::default());
    let senders: Vec<_> = (0..SENDERS).map(|name| Sender::start("shop", name, &door, &mut chance)).collect();
    let Survived { mut gateway, lives, killed_starting } = survive(KILLS, &text, &[&application], &door, &mut chance);
    let mut sent = HashMap::new();
    for sender in senders {
        sent.extend(sender.join().expect("a sender"));
    }
    let acknowledged: Vec<&String> =
        sent.iter().filter(|(_, fate)| **fate == Fate::Acknowledged).map(|(name, _)| name).collect();
    let bodies: HashMap<&String, Vec<u8>> = sent.keys().map(|name| (name, event_body(name))).collect();
    eventually("every acknowledged event is at the upstream", || {
        let received: HashSet<Vec<u8>> = application.received().into_iter().map(|request| request.body).collect();
        acknowledged.iter().all(|name| received.contains(&bodies[name])).then_some(())
    });
    eventually("nothing is left to deliver", || {
        (number(&gateway.folder, "SELECT count(*) FROM tasks WHERE state IN (0, 1)") == 0).then_some(())
    });
    // What was accepted is known, by whichever life, and nothing of it is accepted again.
    let mut refused = 0;
    for name in acknowledged.iter().step_by(acknowledged.len() / 40 + 1) {
        assert_eq!(event("shop", name, padding(name)).send(gateway.public()).status, 409, "{name} was accepted before");
        refused += 1;
    }
    eventually("delivered events are pruned", || {
        let kept = number(&gateway.folder, "SELECT count(*) FROM deliveries");
        (kept < i64::try_from(acknowledged.len()).expect("a count") / 2).then_some(())
    });
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().success());
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'"), 0);

    let repeats = repeats(&application, &lives, &sent);
    let most = repeats.values().max().copied().unwrap_or(0);
    assert!(most <= IN_FLIGHT, "one kill repeated {most} events, with {IN_FLIGHT} attempts at a time: {repeats:?}");
    let abandoned = sent.len() - acknowledged.len();
    eprintln!(
        "{KILLS} kills while serving, {killed_starting} while starting: {} events acknowledged, all of them delivered; \
         {abandoned} given up by their senders unacknowledged; {} requests to the upstream, {} of them repeats, at most \
         {most} for one kill; {refused} of {refused} copies refused afterwards",
        acknowledged.len(),
        application.count(),
        repeats.values().sum::<usize>(),
    );
}

#[test]
fn kills_do_not_change_the_order_in_which_a_source_reaches_each_of_its_upstreams() {
    let seed = Seed::new();
    let mut chance = Chance(seed.0);
    let reluctant = || Upstream::with(|_, number| Reply::Status(if is_refused(number) { 503 } else { 200 }));
    let (one, other) = (reluctant(), reluctant());
    let route = |upstream| format!("[[sources.shop.routes]]\nevents = [\"*\"]\nupstream = \"{upstream}\"\n");
    let ordered = "order = \"source\"\nretry = { attempts = 1000, first = \"10ms\", max = \"50ms\" }";
    let text = configuration(
        "keep_delivered = \"1s\"",
        &format!(
            "{}{}{}{}{}",
            upstream("one", &one, ""),
            upstream("other", &other, ""),
            source("shop", "one", ordered),
            route("one"),
            route("other"),
        ),
    );
    let door = Arc::new(Door::default());
    let sender = Sender::start("shop", 0, &door, &mut chance);
    let Survived { gateway, .. } = survive(15, &text, &[&one, &other], &door, &mut chance);
    let sent = sender.join().expect("a sender");
    eventually("nothing is left to deliver", || {
        (number(&gateway.folder, "SELECT count(*) FROM tasks WHERE state IN (0, 1)") == 0).then_some(())
    });
    for upstream in [&one, &other] {
        let numbers: Vec<usize> = upstream.received().iter().map(|request| number_of(&request.body)).collect();
        assert!(numbers.is_sorted(), "not in the order of their acceptance: {numbers:?}");
        let reached: HashSet<usize> = numbers.into_iter().collect();
        let lost = sent.iter().filter(|(_, fate)| **fate == Fate::Acknowledged).map(|(name, _)| name);
        let lost: Vec<&String> = lost.filter(|name| !reached.contains(&number_of(&event_body(name)))).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
    eprintln!("{} events in their order to two upstreams, through 15 kills", sent.len());
}

/// Which event of the only sender it is.
fn number_of(body: &[u8]) -> usize {
    let text = String::from_utf8_lossy(body);
    let name = text.split('"').nth(3).expect("the event's name");
    name.split_once('-').and_then(|(_, number)| number.parse().ok()).expect("its number")
}

/// The gateway's last life, in which it is left alone.
struct Survived {
    gateway: Gateway,
    /// How much the first of the upstreams had got when each life began.
    lives: Vec<usize>,
    killed_starting: usize,
}

/// Starts and kills, so many times while it serves and now and then while it starts. When it returns, senders are told
/// to finish.
fn survive(kills: usize, text: &str, upstreams: &[&Upstream], door: &Door, chance: &mut Chance) -> Survived {
    let mut folder = Arc::new(Folder::new());
    let (mut lives, mut killed, mut killed_starting) = (Vec::new(), 0, 0);
    while killed < kills {
        lives.push(upstreams[0].count());
        if chance.one_in(8) {
            folder = kill_while_it_starts(folder, text, Duration::from_millis(chance.below(150)));
            killed_starting += 1;
        } else {
            let gateway = Gateway::start_in(folder, text);
            door.open(gateway.public());
            // The fault itself, and nothing that is waited for: a moment like any other.
            thread::sleep(Duration::from_millis(20 + chance.below(180)));
            door.close();
            folder = gateway.kill();
            killed += 1;
        }
        for upstream in upstreams {
            upstream.wait_until_left();
        }
    }
    lives.push(upstreams[0].count());
    let gateway = Gateway::start_in(folder, text);
    door.open(gateway.public());
    door.finish();
    Survived { gateway, lives, killed_starting }
}

fn is_refused(number: usize) -> bool {
    number % 11 == 10
}

/// By the life that ended: how many events were delivered again after the upstream had said 200 to them in that life.
fn repeats(application: &Upstream, lives: &[usize], sent: &HashMap<String, Fate>) -> BTreeMap<usize, usize> {
    type Copy = (usize, Vec<Option<String>>);
    let mut by_body: HashMap<Vec<u8>, Vec<Copy>> = HashMap::new();
    for (number, request) in application.received().into_iter().enumerate() {
        let ids = ["x-request-id", "idempotency-key"].map(|name| request.header(name)).to_vec();
        assert!(ids.iter().all(Option::is_some), "{ids:?}");
        by_body.entry(request.body).or_default().push((number, ids));
    }
    let known: HashSet<Vec<u8>> = sent.keys().map(|name| event_body(name)).collect();
    let mut repeats = BTreeMap::new();
    for (body, copies) in by_body {
        let told = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert!(known.contains(&body), "nobody sent {told}");
        let mut taken = None;
        for (number, ids) in &copies {
            assert_eq!(ids, &copies[0].1, "{told}: another request");
            let life = lives.partition_point(|begun| begun <= number);
            if let Some(earlier) = taken.take() {
                assert!(earlier < life, "{told}: sent again by the process that had heard 200");
                *repeats.entry(earlier).or_insert(0) += 1;
            }
            if !is_refused(*number) {
                taken = Some(life);
            }
        }
    }
    repeats
}

fn kill_while_it_starts(folder: Arc<Folder>, text: &str, after: Duration) -> Arc<Folder> {
    folder.write("gateway.toml", text);
    let mut command = Command::new(BINARY);
    command.current_dir(&folder.0).args(["run", "--config", "gateway.toml"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    thread::sleep(after);
    child.kill().expect("a child");
    child.wait().expect("a child");
    folder
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// 202, or 409 for a copy of what had been sent before and not been answered.
    Acknowledged,
    /// Sent, never answered, and given up.
    Abandoned,
}

fn event_body(name: &str) -> Vec<u8> {
    body(name, padding(name))
}

/// Small ones and some of several pages.
fn padding(name: &str) -> usize {
    let hash = name.bytes().fold(7_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
    if hash % 16 == 0 { 20_000 } else { hash % 2_000 }
}

/// One after the other sends events that are all different, on a connection that is kept, to whatever address the
/// gateway has now; each until it is answered, or it gives up.
struct Sender {
    source: &'static str,
    name: usize,
    door: Arc<Door>,
    chance: Chance,
    connection: Option<BufReader<TcpStream>>,
}

impl Sender {
    fn start(
        source: &'static str,
        name: usize,
        door: &Arc<Door>,
        chance: &mut Chance,
    ) -> JoinHandle<HashMap<String, Fate>> {
        let sender = Self { source, name, door: door.clone(), chance: chance.fork(), connection: None };
        thread::spawn(move || sender.run())
    }

    fn run(mut self) -> HashMap<String, Fate> {
        let mut sent = HashMap::new();
        while !self.door.is_finished() {
            let name = format!("{}-{}", self.name, sent.len());
            let fate = self.deliver(&name);
            sent.insert(name, fate);
        }
        sent
    }

    fn deliver(&mut self, name: &str) -> Fate {
        let request = event(self.source, name, padding(name));
        let mut is_retry = false;
        loop {
            match self.exchange(&request) {
                Ok(answer) if answer.status == 202 => return Fate::Acknowledged,
                Ok(answer) if answer.status == 409 => {
                    assert!(is_retry, "{name}: refused as a replay, though it was sent once");
                    return Fate::Acknowledged;
                }
                Ok(answer) => {
                    let told = (answer.status, answer.text());
                    assert!(refused_for_now(&answer) || answer.status == 429, "{name}: {told:?}");
                    thread::sleep(Duration::from_millis(20));
                }
                Err(_) => {
                    self.connection = None;
                    is_retry = true;
                    if self.chance.one_in(4) {
                        return Fate::Abandoned;
                    }
                }
            }
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(BufReader::new(connect(self.door.wait())?)),
        };
        connection.get_mut().write_all(&request.bytes())?;
        read_answer(connection)
    }
}

/// Where the gateway listens now, if it does.
#[derive(Default)]
struct Door {
    state: Mutex<(Option<SocketAddr>, bool)>,
    changed: Condvar,
}

impl Door {
    fn open(&self, at: SocketAddr) {
        self.state.lock().expect("the door").0 = Some(at);
        self.changed.notify_all();
    }

    /// Connections that there are go on; there are no new ones.
    fn close(&self) {
        self.state.lock().expect("the door").0 = None;
    }

    fn wait(&self) -> SocketAddr {
        let state = self.state.lock().expect("the door");
        self.changed.wait_while(state, |state| state.0.is_none()).expect("the door").0.expect("it is open")
    }

    /// Nobody begins another event.
    fn finish(&self) {
        self.state.lock().expect("the door").1 = true;
    }

    fn is_finished(&self) -> bool {
        self.state.lock().expect("the door").1
    }
}

/// SplitMix64: the same chances again from the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// Told when the test fails; `HOOKWARD_SEED` sets it.
struct Seed(u64);

impl Seed {
    fn new() -> Self {
        let given = std::env::var("HOOKWARD_SEED").ok().map(|seed| seed.parse().expect("HOOKWARD_SEED is a number"));
        Self(given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            u64::try_from(now.as_nanos() & u128::from(u64::MAX)).expect("masked")
        }))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the same moments again: HOOKWARD_SEED={}", self.0);
        }
    }
}
