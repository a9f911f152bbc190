//! What several gateways on one Redis promise, against a real server that is paused, killed, emptied and locked.

use std::future::Future;
use std::time::{Duration, Instant};

use governor::clock::FakeRelativeClock;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::super::contract::{KEPT, LEASE, NOW, ask, assert_claim, first, key, open_redis};
use super::super::rate::Rate;
use super::super::table::{Full, Judgement, Table};
use super::super::{
    Ask, Claim, Claimed, Committed, Ledger, Ledgers, Limits, Meters, Per, Quota, RateLimit, RedisSettings, Reservation,
    State,
};
use super::*;
use crate::client::ClientKey;
use crate::redis_link::testing::{Redis as Server, until};

fn settings(server: &Server) -> RedisSettings {
    RedisSettings::new(server.settings())
}

fn open(settings: &RedisSettings) -> (State, Meters) {
    let meters = Meters::unregistered();
    let redis = Redis::open(settings, meters.clone()).expect("settings that can be used");
    (State::Redis(Ledgers::default(), Arc::new(redis)), meters)
}

/// One that is connected, and waits for a machine that is busy with other tests.
fn gateway(server: &Server) -> (State, Meters) {
    let (state, meters) = open(&RedisSettings { timeout: Duration::from_secs(2), ..settings(server) });
    until("the state is connected", || state.is_healthy());
    (state, meters)
}

/// Of this machine, as the server tells it.
fn now(server: &Server) -> UnixMillis {
    let Value::Array(time) = server.cli(&["TIME"]) else { panic!("no time") };
    let part = |value: &Value| match value {
        Value::BulkString(text) => String::from_utf8_lossy(text).parse::<u64>().expect("a number"),
        other => panic!("{other:?}"),
    };
    UnixMillis(part(&time[0]) * 1000 + part(&time[1]) / 1000)
}

fn fresh(keys: &[u64], now: UnixMillis) -> Ask {
    Ask { keep_until: now.after(KEPT), event_keep_until: now.after(KEPT), ..ask(keys) }
}

/// Until it is there, or for the few seconds in which a gateway recovers.
async fn within_five_seconds<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "not within five seconds: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn commit_within_five_seconds(reservation: &mut Reservation, time: UnixMillis) {
    let begun = Instant::now();
    while reservation.commit(time).await != Ok(Committed::Yes) {
        assert!(begun.elapsed() < Duration::from_secs(5), "not committed in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn becomes_a_replay(ledger: &Ledger, keys: &[u64], server: &Server) {
    within_five_seconds("a replay", || async {
        let claim = ledger.reserve(fresh(keys, now(server)), now(server)).await;
        matches!(claim, Ok(Claim::Replay)).then_some(())
    })
    .await;
}

async fn accept(ledger: &Ledger, keys: &[u64], server: &Server) {
    let mut reservation = within_five_seconds("a first", || async {
        match ledger.reserve(fresh(keys, now(server)), now(server)).await {
            Ok(Claim::First(reservation)) => Some(reservation),
            // What was reserved for nobody comes free in a moment.
            Err(StateError::Store(_)) | Ok(Claim::InFlight) => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(reservation.commit(now(server)).await, Ok(Committed::Yes));
}

#[derive(Clone, Debug)]
enum Step {
    Reserve { keys: Vec<u8>, event: Option<u8>, keep: u64, lease: u64 },
    Commit(usize),
    Release(usize),
    Renew(usize, u64),
    Pass(u64),
}

/// Times a second apart, as the one forgets to the millisecond and the other by the second.
fn step() -> impl Strategy<Value = Step> {
    let keys = prop::collection::btree_set(0..24_u8, 1..4).prop_map(|keys| keys.into_iter().collect());
    prop_oneof![
        6 => (keys, prop::option::of(0..6_u8), 0..9_u64, 1..9_u64)
            .prop_map(|(keys, event, keep, lease)| Step::Reserve { keys, event, keep, lease }),
        4 => (0..8_usize).prop_map(Step::Commit),
        1 => (0..8_usize).prop_map(Step::Release),
        1 => ((0..8_usize), 1..9_u64).prop_map(|(which, lease)| Step::Renew(which, lease)),
        3 => (1..6_u64).prop_map(Step::Pass),
    ]
}

/// The script and the table in memory, asked the same.
async fn agree(state: &State, source: &str, steps: Vec<Step>) -> Result<(), TestCaseError> {
    const MOST: usize = 1000;
    let ledger = state.ledger(source, MOST);
    let mut table = Table::new(MOST);
    let mut now = 1_600_000_000_000_u64;
    let mut open = Vec::new();
    for step in steps {
        match step {
            Step::Reserve { keys, event, keep, lease } => {
                let (keep_until, lease) = (UnixMillis(now + keep * 1000), Duration::from_secs(lease));
                let ask = Ask {
                    replay: keys.iter().map(|&n| key(n.into())).collect(),
                    keep_until,
                    event: event.map(|n| key(n.into())),
                    event_keep_until: keep_until,
                    lease,
                };
                let record = super::super::ledger::record_of(ask.clone());
                let expected = table.reserve(record, UnixMillis(now), UnixMillis(now).after(lease));
                let found = ledger.reserve(ask, UnixMillis(now)).await;
                match (found, expected) {
                    (Ok(Claim::First(there)), Ok(Judgement::First(here)))
                    | (Ok(Claim::Duplicate(there)), Ok(Judgement::Duplicate(here))) => open.push((there, here)),
                    (Ok(Claim::InFlight), Ok(Judgement::InFlight)) | (Ok(Claim::Replay), Ok(Judgement::Replay)) => {}
                    (Err(StateError::Full), Err(Full)) => {}
                    (found, expected) => prop_assert!(false, "{found:?}, not {expected:?}"),
                }
            }
            Step::Commit(back) if back < open.len() => {
                let (mut there, here) = open.remove(open.len() - 1 - back);
                let expected = match table.begin_commit(here, UnixMillis(now)) {
                    Some(_) => {
                        table.finish_commit(here);
                        Committed::Yes
                    }
                    None => Committed::Lost,
                };
                prop_assert_eq!(there.commit(UnixMillis(now)).await, Ok(expected));
            }
            Step::Release(back) if back < open.len() => {
                let (there, here) = open.remove(open.len() - 1 - back);
                there.release().await;
                table.release(here);
            }
            Step::Renew(back, lease) if back < open.len() => {
                let (there, here) = &open[open.len() - 1 - back];
                let lease = Duration::from_secs(lease);
                let expected = table.renew(*here, UnixMillis(now), UnixMillis(now).after(lease));
                prop_assert_eq!(there.renew(UnixMillis(now), lease).await, expected);
            }
            Step::Commit(_) | Step::Release(_) | Step::Renew(..) => {}
            Step::Pass(seconds) => now += seconds * 1000,
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scripts_judge_as_the_table_in_memory_does() {
    let server = Server::start();
    let state = open_redis(&server, false);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(100) });
        let case = std::cell::Cell::new(0);
        let judged = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
            case.set(case.get() + 1);
            runtime.block_on(agree(&state, &format!("source-{}", case.get()), steps))
        });
        judged.unwrap();
    });
}

fn client(n: u8) -> ClientKey {
    ClientKey::of(std::net::IpAddr::from([192, 0, 2, n]))
}

fn limit(rate: &str, burst: u32, per: Per) -> RateLimit {
    RateLimit { quota: Quota::parse(rate, Some(burst)).expect("a rate"), per }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_counted_as_governor_counts_them() {
    let server = Server::start();
    let state = open_redis(&server, false);
    // Slow ones: a budget vanishes when by the server's own clock it is full, and that clock goes on while this test's stands.
    for (n, (rate, burst)) in [("20/m", 10), ("7/m", 2), ("10/m", 1), ("60/h", 5), ("1/h", 3)].iter().enumerate() {
        let ledger = state.ledger(&format!("source-{n}"), 1000);
        let limits = Limits::new(&[limit(rate, *burst, Per::Source)]);
        let clock = FakeRelativeClock::default();
        let local = Rate::with_clock(Quota::parse(rate, Some(*burst)).unwrap(), clock.clone());
        let mut time = NOW;
        for _ in 0..200 {
            let step = Duration::from_millis(rand::random_range(0..8000) * u64::from(rand::random_bool(0.5)));
            clock.advance(step);
            time = time.after(step);
            let shared = ledger.claim(None, true, &limits, client(1), time).await.unwrap();
            match (shared, local.take()) {
                (Claimed::First(None), Ok(())) => {}
                (Claimed::Limited(there), Err(here)) => {
                    assert!(there.abs_diff(here) < Duration::from_micros(5), "{rate}: {there:?}, not {here:?}");
                }
                (shared, local) => panic!("{rate}: {shared:?}, not {local:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_one_limit_spends_no_other_and_claims_nothing() {
    let server = Server::start();
    let state = open_redis(&server, false);
    let ledger = state.ledger("a", 1000);
    let limits = Limits::new(&[limit("3/h", 3, Per::Source), limit("1/h", 1, Per::Client)]);
    let claim = |n, client| ledger.claim(Some(ask(&[n])), false, &limits, client, NOW);
    let Ok(Claimed::First(Some(_one))) = claim(1, client(1)).await else { panic!("not first") };
    for n in 2..20 {
        assert!(matches!(claim(n, client(1)).await, Ok(Claimed::Limited(_))));
    }
    // Replays and copies in flight spend nothing either.
    assert!(matches!(claim(1, client(2)).await, Ok(Claimed::InFlight)));
    let Ok(Claimed::First(Some(_two))) = claim(2, client(2)).await else { panic!("not first") };
    let Ok(Claimed::First(Some(_three))) = claim(3, client(3)).await else { panic!("not first") };
    assert!(matches!(claim(4, client(4)).await, Ok(Claimed::Limited(_))));
    assert_eq!(ledger.len(), 3);
    // Nothing that a client makes stays: each budget goes when it is full again.
    for name in ["hookward:{a}:rate:0", "hookward:{a}:rate:1:192.0.2.1"] {
        let Value::Int(left) = server.cli(&["PTTL", name]) else { panic!("no time") };
        assert!((1..=3_600_002).contains(&left), "{name}: {left}");
    }
    assert_eq!(server.cli(&["EXISTS", "hookward:{a}:rate:1:192.0.2.4"]), Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_copies_at_three_gateways_one_is_first() {
    let server = Server::start();
    let states = [gateway(&server).0, gateway(&server).0, gateway(&server).0];
    let ledgers: Vec<_> = states.iter().map(|state| state.ledger("a", 10_000)).collect();
    let mut firsts = tokio::task::JoinSet::new();
    let time = now(&server);
    for n in 0..200_u64 {
        for gateway in [n % 3, (n + 1) % 3] {
            let ledger = ledgers[gateway as usize].clone();
            firsts.spawn(async move {
                match ledger.reserve(fresh(&[n], time), time).await {
                    Ok(Claim::First(mut reservation)) => {
                        assert_eq!(reservation.commit(time).await, Ok(Committed::Yes));
                        Some(n)
                    }
                    Ok(Claim::InFlight | Claim::Replay) => None,
                    other => panic!("{other:?}"),
                }
            });
        }
    }
    let mut found: Vec<u64> = firsts.join_all().await.into_iter().flatten().collect();
    found.sort_unstable();
    assert_eq!(found, (0..200).collect::<Vec<_>>());
    for ledger in &ledgers {
        assert_claim!(ledger.reserve(fresh(&[7], time), time).await, Ok(Claim::Replay));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_gateways_together_keep_a_limit() {
    let server = Server::start();
    let states = [gateway(&server).0, gateway(&server).0, gateway(&server).0];
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for state in states {
        let time = now(&server);
        tasks.spawn(async move {
            let ledger = state.ledger("a", 1000);
            // As much as a busy machine keeps these from asking for.
            let limits = Limits::new(&[limit("100/s", 50, Per::Source)]);
            let mut taken = 0_u32;
            while begun.elapsed() < Duration::from_secs(2) {
                match ledger.claim(None, true, &limits, client(1), time).await.unwrap() {
                    Claimed::First(None) => taken += 1,
                    Claimed::Limited(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    other => panic!("{other:?}"),
                }
            }
            taken
        });
    }
    let taken: u32 = tasks.join_all().await.into_iter().sum();
    let allowed = 50.0 + 100.0 * begun.elapsed().as_secs_f64();
    assert!((allowed * 0.9..=allowed * 1.1).contains(&f64::from(taken)), "{taken}, not {allowed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_server_is_waited_for_no_longer_than_allowed_and_what_it_reserved_comes_free() {
    let server = Server::start();
    let (state, _) = open(&settings(&server));
    until("the state is connected", || state.is_healthy());
    let (other, _) = gateway(&server);
    let (ledger, elsewhere) = (state.ledger("a", 100), other.ledger("a", 100));
    let time = now(&server);
    server.pause();
    let begun = Instant::now();
    let claim = ledger.reserve(fresh(&[1], time), time).await;
    assert_claim!(claim, Err(StateError::Store(_)));
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(240) && waited < Duration::from_secs(1), "{waited:?}");
    server.resume();
    // The lease would last for thirty seconds.
    accept(&elsewhere, &[1], &server).await;
    becomes_a_replay(&ledger, &[1], &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_is_told_again() {
    let server = Server::start();
    let (state, _) = gateway(&server);
    let (ledger, time) = (state.ledger("a", 100), now(&server));
    let mut reservation = first(ledger.reserve(fresh(&[1], time), time).await);
    server.pause();
    assert!(matches!(reservation.commit(time).await, Err(StateError::Store(_))));
    server.resume();
    commit_within_five_seconds(&mut reservation, time).await;
    becomes_a_replay(&gateway(&server).0.ledger("a", 100), &[1], &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_survives_that_the_server_was_killed_and_forgot_the_reservation() {
    let mut server = Server::start();
    let (state, _) = gateway(&server);
    let (ledger, time) = (state.ledger("a", 100), now(&server));
    let mut reservation = first(ledger.reserve(fresh(&[1], time), time).await);
    server.kill();
    assert!(matches!(reservation.commit(time).await, Err(StateError::Store(_))));
    until("the loss is seen", || !state.is_healthy());
    server.restart();
    commit_within_five_seconds(&mut reservation, time).await;
    becomes_a_replay(&gateway(&server).0.ledger("a", 100), &[1], &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_server_is_noticed_and_filled_again_by_the_gateways_that_know() {
    let server = Server::start();
    let (one, meters) = gateway(&server);
    let (two, _) = gateway(&server);
    let (ledger, elsewhere) = (one.ledger("a", 10_000), two.ledger("a", 10_000));
    for n in 0..20 {
        accept(&ledger, &[n], &server).await;
    }
    let time = now(&server);
    assert_claim!(elsewhere.reserve(fresh(&[3], time), time).await, Ok(Claim::Replay));
    server.cli(&["FLUSHALL"]);
    let begun = Instant::now();
    for n in 0..20 {
        // Refused for a moment, and never taken for new.
        within_five_seconds("a replay", || async {
            match elsewhere.reserve(fresh(&[n], now(&server)), now(&server)).await {
                Ok(Claim::Replay) => Some(()),
                Err(StateError::Store(_)) => None,
                other => panic!("{n}: {other:?}"),
            }
        })
        .await;
    }
    accept(&elsewhere, &[100], &server).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    becomes_a_replay(&ledger, &[100], &server).await;
    assert_eq!(meters.lost.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_begins_without_a_server_refuses_and_serves_when_there_is_one() {
    let mut server = Server::start();
    let settings = settings(&server);
    server.kill();
    let (state, meters) = open(&settings);
    let ledger = state.ledger("a", 100);
    let begun = Instant::now();
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Err(StateError::Store(_)));
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!(!state.is_healthy());
    assert!(meters.errors.get() > 0);
    server.restart();
    accept(&ledger, &[1], &server).await;
    assert!(state.is_healthy());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_is_allowed_a_gateway_judges_alone_and_tells_the_others_later() {
    let mut server = Server::start();
    let (state, meters) = open(&RedisSettings { on_failure: OnFailure::Allow, ..settings(&server) });
    let ledger = state.ledger("a", 100);
    accept(&ledger, &[1], &server).await;
    let time = now(&server);
    server.kill();
    assert!(state.is_healthy());
    assert_claim!(ledger.reserve(fresh(&[1], time), time).await, Ok(Claim::Replay));
    let mut reservation = first(ledger.reserve(fresh(&[2], time), time).await);
    assert_claim!(ledger.reserve(fresh(&[2], time), time).await, Ok(Claim::InFlight));
    assert_eq!(reservation.commit(time).await, Ok(Committed::Yes));
    assert_claim!(ledger.reserve(fresh(&[2], time), time).await, Ok(Claim::Replay));
    assert!(meters.fallbacks.with_label_values(&["a"]).get() >= 2);
    let limits = Limits::new(&[limit("1/h", 1, Per::Source)]);
    assert!(matches!(ledger.claim(None, false, &limits, client(1), time).await, Ok(Claimed::First(None))));
    assert!(matches!(ledger.claim(None, false, &limits, client(1), time).await, Ok(Claimed::Limited(_))));
    server.restart();
    let other = gateway(&server).0;
    for keys in [[1], [2]] {
        let ledger = other.ledger("a", 100);
        within_five_seconds("the others know", || async {
            let time = now(&server);
            let claim = ledger.reserve(fresh(&keys, time), time).await;
            matches!(claim, Ok(Claim::Replay)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_and_a_full_server_are_refused_and_seen_to_be_well_again() {
    let server = Server::start();
    let (state, meters) = gateway(&server);
    let (ledger, time) = (state.ledger("a", 100), now(&server));
    first(ledger.reserve(fresh(&[1], time), time).await).release().await;
    for (break_it, mend_it) in [
        (["ACL", "SETUSER", "default", "-zadd"], ["ACL", "SETUSER", "default", "+zadd"]),
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        (["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]),
    ] {
        let mut open = first(ledger.reserve(fresh(&[meters.errors.get() + 10], time), time).await);
        server.cli(&break_it);
        if break_it.contains(&"maxmemory") {
            // What was accepted is remembered by a server that takes nothing new.
            assert_eq!(open.commit(time).await, Ok(Committed::Yes));
        }
        let errors = meters.errors.get();
        assert_claim!(ledger.reserve(fresh(&[2], time), time).await, Err(StateError::Store(_)));
        assert!(meters.errors.get() > errors);
        assert!(!state.is_healthy());
        server.cli(&mend_it);
        // Without traffic, which an unwell gateway may not get.
        within_five_seconds("it is well", || async { state.is_healthy().then_some(()) }).await;
        first(ledger.reserve(fresh(&[3], time), time).await).release().await;
        drop(open);
        state.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_frees_commits_and_renews_nothing_of_another() {
    let server = Server::start();
    let state = gateway(&server).0;
    let State::Redis(_, redis) = &state else { panic!("in Redis") };
    let (ledger, time) = (state.ledger("a", 100), now(&server));
    let held = first(ledger.reserve(Ask { event: Some(key(1)), ..fresh(&[1, 2], time) }, time).await);
    let remote = redis.remote("a", 100);
    let record = super::super::ledger::record_of(Ask { event: Some(key(1)), ..fresh(&[1, 2], time) });
    let forged = Hold { token: [0; 16], record };
    remote.try_release(&forged, time).await.unwrap();
    assert_eq!(remote.renew(&forged, time, LEASE).await, Ok(false));
    assert_eq!(remote.commit(&forged, time).await, Ok(false));
    let other = gateway(&server).0.ledger("a", 100);
    for keys in [1, 2] {
        assert_claim!(other.reserve(fresh(&[keys], time), time).await, Ok(Claim::InFlight));
    }
    held.release().await;
    first(other.reserve(fresh(&[1, 2], time), time).await).release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_neither_ends_a_lease_nor_forgets_a_claim() {
    let server = Server::start();
    let (ahead, behind) = (gateway(&server).0.ledger("a", 100), gateway(&server).0.ledger("a", 100));
    let time = now(&server);
    let (future, past) = (time.after(KEPT * 1000), UnixMillis(time.0 - 3_600_000));
    let mut held = first(behind.reserve(Ask { keep_until: time.after(KEPT), ..ask(&[1]) }, past).await);
    assert_claim!(ahead.reserve(fresh(&[1], future), future).await, Ok(Claim::InFlight));
    assert_eq!(held.commit(past).await, Ok(Committed::Yes));
    assert_claim!(ahead.reserve(fresh(&[1], future), future).await, Ok(Claim::Replay));
    // Nor does it make room by letting go of what others remember.
    ahead.sweep(future);
    assert_claim!(gateway(&server).0.ledger("a", 100).reserve(fresh(&[1], time), time).await, Ok(Claim::Replay));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_fails_at_one_gateway_is_throttled_at_the_others() {
    let server = Server::start();
    let states = [gateway(&server).0, gateway(&server).0];
    let quota = Quota::parse("1/m", Some(5)).unwrap();
    let [one, two] = [0, 1].map(|n: usize| states[n].throttle("a", quota));
    for _ in 0..5 {
        assert_eq!(one.take(client(1)), Ok(()));
    }
    assert!(one.is_spent(client(1)) && !two.is_spent(client(1)));
    until("it is told", || server.cli(&["EXISTS", "hookward:{a}:failed:192.0.2.1"]) == Value::Int(1));
    // What it fails there is told, and what the others have counted comes back.
    assert_eq!(two.take(client(1)), Ok(()));
    within_five_seconds("the other knows", || async { two.is_spent(client(1)).then_some(()) }).await;
    assert!(!two.is_spent(client(2)));
    let Value::Int(left) = server.cli(&["PTTL", "hookward:{a}:failed:192.0.2.1"]) else { panic!("no time") };
    assert!((1..=300_002).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_secrets_that_senders_bring_to_several_gateways_the_first_stays() {
    let server = Server::start();
    let (one, two) = (gateway(&server).0, gateway(&server).0);
    let (first, second) = (Secret::new(b"first".to_vec()), Secret::new(b"second".to_vec()));
    assert_eq!(one.capture("a", "asana", &first).await, Ok(true));
    assert_eq!(one.capture("a", "asana", &first).await, Ok(true), "its answer may have been lost");
    assert_eq!(two.capture("a", "asana", &second).await, Ok(false));
    assert!(two.captured("a", "asana").unwrap().is_some_and(|kept| kept.matches(b"first")));
    let third = gateway(&server).0;
    third.read_captures().await;
    assert!(third.captured("a", "asana").unwrap().is_some_and(|kept| kept.matches(b"first")));
    assert!(third.captured("b", "asana").unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_keeps_every_source_whole_on_one_of_its_nodes() {
    let cluster = crate::redis_link::testing::Cluster::start(3);
    let settings = RedisSettings { timeout: Duration::from_secs(5), ..RedisSettings::new(cluster.settings()) };
    let (one, two) = (open(&settings).0, open(&settings).0);
    until("both are connected", || one.is_healthy() && two.is_healthy());
    let limits = Limits::new(&[limit("100/s", 100, Per::Source), limit("100/s", 100, Per::Client)]);
    let mut holders = std::collections::BTreeSet::new();
    for n in 0..20 {
        let source = format!("source-{n}");
        let time = now(&cluster.nodes[0]);
        let (here, there) = (one.ledger(&source, 100), two.ledger(&source, 100));
        let claimed = here.claim(Some(fresh(&[n], time)), true, &limits, client(1), time).await;
        let Ok(Claimed::First(Some(mut reservation))) = claimed else { panic!("{claimed:?}") };
        assert_claim!(there.reserve(fresh(&[n], time), time).await, Ok(Claim::InFlight));
        assert_eq!(reservation.commit(time).await, Ok(Committed::Yes));
        assert_claim!(there.reserve(fresh(&[n], time), time).await, Ok(Claim::Replay));
        holders.insert(cluster.holder_of(&format!("hookward:{{{source}}}:replay")));
    }
    assert!(holders.len() > 1, "{holders:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_inbox_wrote_is_told_to_the_others_and_what_it_did_not_write_is_free() {
    let server = Server::start();
    let (state, other) = (gateway(&server).0, gateway(&server).0);
    let (ledger, elsewhere) = (state.ledger("a", 100), other.ledger("a", 100));
    let time = now(&server);
    let hand_over = async |n| first(ledger.reserve(fresh(&[n], time), time).await).hand_over(time).expect("its lease");
    let (written, failed) = (hand_over(1).await, hand_over(2).await);
    for n in [1, 2] {
        assert_claim!(elsewhere.reserve(fresh(&[n], time), time).await, Ok(Claim::InFlight));
    }
    server.pause();
    written.written();
    failed.not_written();
    server.resume();
    becomes_a_replay(&elsewhere, &[1], &server).await;
    within_five_seconds("it is free", || async {
        matches!(elsewhere.reserve(fresh(&[2], time), time).await, Ok(Claim::First(_))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_inbox_has_is_judged_by_its_gateway_at_once_and_by_the_others_soon() {
    let server = Server::start();
    let state = gateway(&server).0;
    let (ledger, time) = (state.ledger("a", 100_000), now(&server));
    let prints: Vec<_> = (0..3000)
        .map(|n| super::super::ledger::record_of(fresh(&[n], time)).prints.first().copied().expect("one"))
        .collect();
    server.cli(&["CLIENT", "PAUSE", "300", "WRITE"]);
    ledger.seed_once(|remember| {
        prints.iter().for_each(|print| remember(*print, false, time.after(KEPT)));
        Ok(())
    });
    assert_claim!(ledger.reserve(fresh(&[2999], time), time).await, Ok(Claim::Replay));
    let other = gateway(&server).0;
    for n in [0, 1023, 1024, 2999] {
        let elsewhere = other.ledger("a", 100_000);
        within_five_seconds("the others know", || async {
            server.cli(&["ZCARD", "hookward:{a}:replay"]).eq(&Value::Int(3000)).then_some(())
        })
        .await;
        assert_claim!(elsewhere.reserve(fresh(&[n], time), time).await, Ok(Claim::Replay));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_is_remembered_though_this_machines_clock_leapt_beyond_the_lease() {
    let server = Server::start();
    let state = gateway(&server).0;
    let (ledger, time) = (state.ledger("a", 100), now(&server));
    let leapt = time.after(LEASE * 2);
    let mut held = first(ledger.reserve(fresh(&[1], time), time).await);
    assert_eq!(held.commit(leapt).await, Ok(Committed::Yes));
    let mut unwritten = first(ledger.reserve(fresh(&[2], time), time).await);
    assert!(unwritten.keep_unwritten(leapt));
    drop((held, unwritten));
    state.settle().await;
    let elsewhere = gateway(&server).0.ledger("a", 100);
    for ledger in [&ledger, &elsewhere] {
        for keys in [1, 2] {
            assert_claim!(ledger.reserve(fresh(&[keys], time), time).await, Ok(Claim::Replay));
        }
    }
    // What somebody else holds by now is still theirs.
    let mut late = first(ledger.reserve(Ask { lease: Duration::from_millis(1), ..fresh(&[3], time) }, time).await);
    let theirs = within_five_seconds("the lease's end", || async {
        match elsewhere.reserve(fresh(&[3], time), time).await {
            Ok(Claim::First(reservation)) => Some(reservation),
            _ => None,
        }
    })
    .await;
    assert_eq!(late.commit(leapt).await, Ok(Committed::Lost));
    drop(late);
    state.settle().await;
    assert_claim!(elsewhere.reserve(fresh(&[3], time), time).await, Ok(Claim::InFlight));
    theirs.release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_ends_tells_once_more_what_it_could_not_tell_before() {
    let server = Server::start();
    let (state, meters) = gateway(&server);
    let (ledger, time) = (state.ledger("a", 100), now(&server));
    let written = |reservation: Reservation| reservation.hand_over(time).expect("under its lease").written();
    let reservation = first(ledger.reserve(fresh(&[1], time), time).await);
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let failed = meters.durations.with_label_values(&["commit"]);
    written(reservation);
    until("the commit was tried", || failed.get_sample_count() > 0);
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    state.close().await;
    let elsewhere = gateway(&server).0.ledger("a", 100);
    assert_claim!(elsewhere.reserve(fresh(&[1], time), time).await, Ok(Claim::Replay));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_given_up_by_the_ten_thousand_keeps_no_commit_waiting() {
    const CLAIMS: u64 = 50_000;
    let server = Server::start();
    let (state, meters) = gateway(&server);
    let (ledger, time) = (state.ledger("a", 1_000_000), now(&server));
    let reservation = first(ledger.reserve(fresh(&[1], time), time).await);
    let fill = "for i = 1, ARGV[1] do redis.call('ZADD', KEYS[1], '1', i) end";
    server.cli(&["EVAL", fill, "1", "hookward:{a}:replay", &CLAIMS.to_string()]);
    let sweeps = meters.durations.with_label_values(&["sweep"]);
    let before = sweeps.get_sample_count();
    ledger.sweep(time);
    reservation.hand_over(time).expect("under its lease").written();
    state.settle().await;
    assert!(sweeps.get_sample_count() - before < CLAIMS / 1000);
    let elsewhere = gateway(&server).0.ledger("a", 1_000_000);
    assert_claim!(elsewhere.reserve(fresh(&[1], time), time).await, Ok(Claim::Replay));
    // All of it goes in the end.
    until("what ended was given up", || {
        ledger.sweep(time);
        server.cli(&["ZCARD", "hookward:{a}:replay"]) == Value::Int(1)
    });
}
