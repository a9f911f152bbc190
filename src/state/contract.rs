//! What every kind of store must do. Each test runs against each of them; a new kind adds itself to `contract!`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::redis_link::testing;

pub(super) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const KEPT: Duration = Duration::from_secs(300);

pub(super) fn key(n: u64) -> Key {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    key
}

pub(super) fn ask(replay: &[u64]) -> Ask {
    let replay = replay.iter().copied().map(key).collect();
    Ask { replay, keep_until: NOW.after(KEPT), event: None, event_keep_until: NOW, lease: LEASE }
}

pub(super) fn ask_event(replay: &[u64], event: u64) -> Ask {
    Ask { event: Some(key(event)), event_keep_until: NOW.after(KEPT), ..ask(replay) }
}

pub(super) fn at(millis: u64) -> UnixMillis {
    UnixMillis(NOW.0 + millis)
}

pub(super) fn first(claim: Result<Claim, StateError>) -> Reservation {
    match claim {
        Ok(Claim::First(reservation)) => reservation,
        other => panic!("not first but {other:?}"),
    }
}

fn duplicate(claim: Result<Claim, StateError>) -> Reservation {
    match claim {
        Ok(Claim::Duplicate(reservation)) => reservation,
        other => panic!("not a duplicate but {other:?}"),
    }
}

macro_rules! assert_claim {
    ($claim:expr, $expected:pat) => {{
        let claim = $claim;
        assert!(matches!(&claim, $expected), "{claim:?}");
    }};
}
pub(super) use assert_claim;

pub(super) async fn commit(mut reservation: Reservation) {
    assert_eq!(reservation.commit(NOW).await, Ok(Committed::Yes));
}

/// A folder of its own for one test, gone with it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hookward-state-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).expect("a new folder");
        Self(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder is nobody's loss.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn open(settings: &Settings) -> State {
    State::open(settings, NOW, Meters::unregistered()).expect("a state that opens")
}

/// On a server of its own, and in the tests' time.
pub(super) fn open_redis(server: &testing::Redis, remembers: bool) -> State {
    let settings = RedisSettings { timeout: Duration::from_secs(20), ..RedisSettings::new(server.settings()) };
    let redis = redis::Redis::open_in_the_askers_time(&settings, remembers, Meters::unregistered());
    let state = State::Redis(Ledgers::default(), Arc::new(redis.expect("settings that can be used")));
    testing::until("the state is connected", || state.is_healthy());
    state
}

macro_rules! contract {
    ($($name:ident,)+) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::open(&super::Settings::Memory)).await;
            })+
        }
        mod disk {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                for sync in [SyncMode::Os, SyncMode::Power] {
                    let folder = Folder::new();
                    let settings = DiskSettings { sync, ..DiskSettings::new(folder.path().join("claims.db")) };
                    super::$name(open(&Settings::Disk(settings))).await;
                }
            })+
        }
        mod shared {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                // Where this gateway forgets what it accepted, the store alone judges.
                for remembers in [false, true] {
                    let server = testing::Redis::start();
                    super::$name(open_redis(&server, remembers)).await;
                }
            })+
        }
    };
}

contract! {
    a_key_is_first_then_in_flight_then_a_replay,
    of_a_hundred_at_once_exactly_one_is_first,
    letting_go_makes_every_key_new_again,
    several_keys_stand_and_fall_together,
    an_event_known_is_a_duplicate_and_its_keys_are_reserved,
    a_replay_is_told_before_anything_in_flight_and_that_before_a_duplicate,
    a_lease_ends_to_the_millisecond_and_cannot_commit_after,
    many_leases_that_ended_at_once_leave_nothing_to_their_holders,
    a_renewed_lease_runs_on_and_an_ended_one_does_not_come_back,
    what_was_accepted_is_refused_until_exactly_its_time,
    a_commit_repeats_its_answer_and_later_ends_do_not_undo_it,
    a_full_ledger_refuses_what_is_new_and_forgets_nothing,
    a_full_ledger_has_room_again_when_claims_expire,
    events_have_their_own_bound_and_the_oldest_goes,
    an_ask_without_replay_keys_claims_its_event,
    sources_do_not_see_each_other,
    a_ledger_is_the_same_by_name_and_takes_on_its_new_bound,
    a_sweep_gives_up_what_has_expired,
    an_hour_of_claims_that_come_and_expire_stays_small,
    a_closed_state_reserves_and_commits_no_more_than_it_can_keep,
}

async fn a_key_is_first_then_in_flight_then_a_replay(state: State) {
    assert!(state.is_healthy());
    let ledger = state.ledger("a", 100);
    let reservation = first(ledger.reserve(ask(&[1]), NOW).await);
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::InFlight));
    commit(reservation).await;
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
    first(ledger.reserve(ask(&[2]), NOW).await).release().await;
}

async fn of_a_hundred_at_once_exactly_one_is_first(state: State) {
    let ledger = state.ledger("a", 1000);
    for round in 0..20 {
        let barrier = Arc::new(tokio::sync::Barrier::new(100));
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let (ledger, barrier) = (Arc::clone(&ledger), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    match ledger.reserve(ask_event(&[round * 2, round * 2 + 1], round), NOW).await {
                        Ok(Claim::First(reservation)) => {
                            commit(reservation).await;
                            true
                        }
                        Ok(Claim::InFlight | Claim::Replay) => false,
                        other => panic!("{other:?}"),
                    }
                })
            })
            .collect();
        let mut firsts = 0;
        for task in tasks {
            firsts += usize::from(task.await.expect("a task that does not panic"));
        }
        assert_eq!(firsts, 1);
    }
}

async fn letting_go_makes_every_key_new_again(state: State) {
    let ledger = state.ledger("a", 3);
    first(ledger.reserve(ask_event(&[1, 2, 3], 4), NOW).await).release().await;
    assert_eq!(ledger.len(), 0);
    drop(first(ledger.reserve(ask_event(&[1, 2, 3], 4), NOW).await));
    state.settle().await;
    for n in 1..=3 {
        let reservation = first(ledger.reserve(ask_event(&[n], 4), NOW).await);
        assert_eq!(ledger.len(), 1);
        reservation.release().await;
    }
}

async fn several_keys_stand_and_fall_together(state: State) {
    let ledger = state.ledger("a", 100);
    let reservation = first(ledger.reserve(ask(&[1, 2, 2, 1]), NOW).await);
    assert_eq!(ledger.len(), 2);
    assert_claim!(ledger.reserve(ask(&[2, 3]), NOW).await, Ok(Claim::InFlight));
    // What was refused has reserved nothing: 3 is free.
    first(ledger.reserve(ask(&[3]), NOW).await).release().await;
    commit(reservation).await;
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
    assert_claim!(ledger.reserve(ask(&[3, 2]), NOW).await, Ok(Claim::Replay));
    first(ledger.reserve(ask(&[3]), NOW).await).release().await;
}

async fn an_event_known_is_a_duplicate_and_its_keys_are_reserved(state: State) {
    let ledger = state.ledger("a", 100);
    let reservation = first(ledger.reserve(ask_event(&[1], 7), NOW).await);
    assert_claim!(ledger.reserve(ask_event(&[2], 7), NOW).await, Ok(Claim::InFlight));
    commit(reservation).await;

    let again = duplicate(ledger.reserve(ask_event(&[2], 7), NOW).await);
    assert_claim!(ledger.reserve(ask_event(&[2], 7), NOW).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask_event(&[3], 7), NOW).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask(&[2]), NOW).await, Ok(Claim::InFlight));
    again.release().await;
    commit(duplicate(ledger.reserve(ask_event(&[2], 7), NOW).await)).await;
    assert_claim!(ledger.reserve(ask(&[2]), NOW).await, Ok(Claim::Replay));
    assert_claim!(ledger.reserve(ask_event(&[3], 7), at(300_000)).await, Ok(Claim::First(_)));
    state.settle().await;
    assert_claim!(ledger.reserve(ask_event(&[3], 7), at(299_999)).await, Ok(Claim::Duplicate(_)));
}

async fn a_replay_is_told_before_anything_in_flight_and_that_before_a_duplicate(state: State) {
    let ledger = state.ledger("a", 100);
    commit(first(ledger.reserve(ask_event(&[1], 7), NOW).await)).await;
    let _held = first(ledger.reserve(ask(&[2]), NOW).await);
    assert_claim!(ledger.reserve(ask_event(&[1, 2], 7), NOW).await, Ok(Claim::Replay));
    assert_claim!(ledger.reserve(ask_event(&[2], 7), NOW).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask_event(&[3], 7), NOW).await, Ok(Claim::Duplicate(_)));
}

async fn a_lease_ends_to_the_millisecond_and_cannot_commit_after(state: State) {
    let ledger = state.ledger("a", 2);
    let mut slow = first(ledger.reserve(ask(&[1, 2]), NOW).await);
    assert_claim!(ledger.reserve(ask(&[2]), at(29_999)).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask(&[3]), at(29_999)).await, Err(StateError::Full));
    let second = first(ledger.reserve(ask(&[2]), at(30_000)).await);
    assert_eq!(slow.commit(at(30_000)).await, Ok(Committed::Lost));
    assert_eq!(slow.commit(NOW).await, Ok(Committed::Lost));
    drop(slow);
    state.settle().await;
    // The late one has neither recorded anything nor let go of what the second holds.
    assert_claim!(ledger.reserve(ask(&[2]), at(30_000)).await, Ok(Claim::InFlight));
    first(ledger.reserve(ask(&[1]), at(30_000)).await).release().await;
    second.release().await;

    let mut alone = first(ledger.reserve(ask(&[5]), NOW).await);
    assert_eq!(alone.commit(at(30_000)).await, Ok(Committed::Lost));
    first(ledger.reserve(ask(&[5]), NOW).await).release().await;
}

async fn many_leases_that_ended_at_once_leave_nothing_to_their_holders(state: State) {
    let ledger = state.ledger("a", 1000);
    let mut late = Vec::new();
    for n in 0..500 {
        late.push(first(ledger.reserve(ask_event(&[n], n), NOW).await));
    }
    // More than one call gives up by itself: the last of them is still in the books when it is claimed anew.
    let second = first(ledger.reserve(ask_event(&[499], 499), at(30_000)).await);
    ledger.sweep(at(30_000));
    drop(late);
    state.settle().await;
    assert_eq!(ledger.len(), 1);
    assert_claim!(ledger.reserve(ask(&[499]), at(30_000)).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask_event(&[], 499), at(30_000)).await, Ok(Claim::InFlight));
    second.release().await;
}

async fn a_renewed_lease_runs_on_and_an_ended_one_does_not_come_back(state: State) {
    let ledger = state.ledger("a", 100);
    let mut reservation = first(ledger.reserve(ask(&[1]), NOW).await);
    assert!(reservation.renew(at(29_999), LEASE).await);
    assert_claim!(ledger.reserve(ask(&[1]), at(59_998)).await, Ok(Claim::InFlight));
    assert!(!reservation.renew(at(59_999), LEASE).await);
    assert_eq!(reservation.commit(at(59_999)).await, Ok(Committed::Lost));

    let mut kept = first(ledger.reserve(ask(&[1]), NOW).await);
    assert!(kept.renew(at(20_000), LEASE).await);
    assert_eq!(kept.commit(at(49_999)).await, Ok(Committed::Yes));
    assert!(!kept.renew(at(49_999), LEASE).await);
}

async fn what_was_accepted_is_refused_until_exactly_its_time(state: State) {
    let ledger = state.ledger("a", 100);
    // Times that do not come in order, and one in the past.
    for (n, millis) in [(1, 90_000), (2, 10_001), (3, 500_123), (4, 1), (5, 0)] {
        let claim = ledger.reserve(Ask { keep_until: at(millis), ..ask(&[n]) }, NOW).await;
        commit(first(claim)).await;
    }
    for (n, millis) in [(4, 1), (2, 10_001), (1, 90_000), (3, 500_123)] {
        assert_claim!(ledger.reserve(ask(&[n]), at(millis - 1)).await, Ok(Claim::Replay));
        first(ledger.reserve(ask(&[n]), at(millis)).await).release().await;
    }
    // Accepted again in its new time, it is refused again.
    let again = Ask { keep_until: at(900_000), ..ask(&[1]) };
    let mut reservation = first(ledger.reserve(again.clone(), at(600_000)).await);
    assert_eq!(reservation.commit(at(600_000)).await, Ok(Committed::Yes));
    assert_claim!(ledger.reserve(again.clone(), at(899_999)).await, Ok(Claim::Replay));
    first(ledger.reserve(again, at(900_000)).await).release().await;
}

async fn a_commit_repeats_its_answer_and_later_ends_do_not_undo_it(state: State) {
    let ledger = state.ledger("a", 100);
    let mut reservation = first(ledger.reserve(ask(&[1]), NOW).await);
    assert_eq!(reservation.commit(NOW).await, Ok(Committed::Yes));
    assert_eq!(reservation.commit(at(1_000_000)).await, Ok(Committed::Yes));
    reservation.release().await;
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
    assert_eq!(ledger.len(), 1);
}

async fn a_full_ledger_refuses_what_is_new_and_forgets_nothing(state: State) {
    let ledger = state.ledger("a", 3);
    commit(first(ledger.reserve(ask(&[1]), NOW).await)).await;
    commit(first(ledger.reserve(ask(&[2]), NOW).await)).await;
    assert_claim!(ledger.reserve(ask(&[3, 4]), NOW).await, Err(StateError::Full));
    let third = first(ledger.reserve(ask(&[3]), NOW).await);
    for n in 4..100 {
        assert_claim!(ledger.reserve(ask(&[n]), NOW).await, Err(StateError::Full));
    }
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
    assert_claim!(ledger.reserve(ask(&[2]), NOW).await, Ok(Claim::Replay));
    assert_claim!(ledger.reserve(ask(&[3]), NOW).await, Ok(Claim::InFlight));
    third.release().await;
    first(ledger.reserve(ask(&[4]), NOW).await).release().await;
}

async fn a_full_ledger_has_room_again_when_claims_expire(state: State) {
    let ledger = state.ledger("a", 100);
    for n in 0..100 {
        commit(first(ledger.reserve(ask(&[n]), NOW).await)).await;
    }
    assert_claim!(ledger.reserve(ask(&[100]), at(299_999)).await, Err(StateError::Full));
    // Room comes back within a second or so of the expiry.
    let all: Vec<u64> = (100..200).collect();
    first(ledger.reserve(ask(&all), at(301_024)).await).release().await;
}

async fn events_have_their_own_bound_and_the_oldest_goes(state: State) {
    let ledger = state.ledger("a", 3);
    let event = |n: u64, millis: u64| Ask { event_keep_until: at(60_000 + millis), ..ask_event(&[], n) };
    for n in 1..=4 {
        commit(first(ledger.reserve(event(n, n), NOW).await)).await;
    }
    assert_eq!(ledger.len(), 0);
    for n in 2..=4 {
        duplicate(ledger.reserve(event(n, n), NOW).await).release().await;
    }
    first(ledger.reserve(event(1, 1), NOW).await).release().await;
}

async fn an_ask_without_replay_keys_claims_its_event(state: State) {
    let ledger = state.ledger("a", 2);
    let one = first(ledger.reserve(ask_event(&[], 1), NOW).await);
    assert_claim!(ledger.reserve(ask_event(&[], 1), NOW).await, Ok(Claim::InFlight));
    let _two = first(ledger.reserve(ask_event(&[], 2), NOW).await);
    assert_claim!(ledger.reserve(ask_event(&[], 3), NOW).await, Err(StateError::Full));
    commit(one).await;
    duplicate(ledger.reserve(ask_event(&[], 1), NOW).await).release().await;
}

async fn sources_do_not_see_each_other(state: State) {
    let (a, b) = (state.ledger("a", 1), state.ledger("b", 1));
    commit(first(a.reserve(ask_event(&[1], 1), NOW).await)).await;
    assert_claim!(a.reserve(ask_event(&[2], 2), NOW).await, Err(StateError::Full));
    commit(first(b.reserve(ask_event(&[1], 1), NOW).await)).await;
}

async fn a_ledger_is_the_same_by_name_and_takes_on_its_new_bound(state: State) {
    let before = state.ledger("a", 2);
    commit(first(before.reserve(ask(&[1, 2]), NOW).await)).await;
    let after = state.ledger("a", 1);
    assert!(Arc::ptr_eq(&before, &after));
    assert_eq!((after.len(), after.capacity()), (2, 1));
    // A lower bound forgets nothing.
    assert_claim!(after.reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
    assert_claim!(after.reserve(ask(&[3]), NOW).await, Err(StateError::Full));
    state.ledger("a", 3);
    first(before.reserve(ask(&[3]), NOW).await).release().await;
}

async fn a_sweep_gives_up_what_has_expired(state: State) {
    let ledger = state.ledger("a", 10_000);
    for n in 0..1000 {
        commit(first(ledger.reserve(ask(&[n * 3, n * 3 + 1, n * 3 + 2]), NOW).await)).await;
    }
    let held = first(ledger.reserve(Ask { lease: KEPT * 2, ..ask(&[5000]) }, NOW).await);
    assert_eq!(ledger.len(), 3001);
    ledger.sweep(at(299_999));
    state.settle().await;
    assert_eq!(ledger.len(), 3001);
    ledger.sweep(at(301_024));
    state.settle().await;
    assert_eq!(ledger.len(), 1);
    drop(held);
}

async fn an_hour_of_claims_that_come_and_expire_stays_small(state: State) {
    let ledger = state.ledger("a", 1000);
    for second in 0..3600 {
        let now = at(second * 1000);
        let claim =
            Ask { keep_until: now.after(KEPT), event_keep_until: now.after(KEPT), ..ask_event(&[second], second) };
        let mut reservation = first(ledger.reserve(claim, now).await);
        assert_eq!(reservation.commit(now).await, Ok(Committed::Yes));
        assert!(ledger.len() <= 302, "{} at {second}", ledger.len());
    }
}

async fn a_closed_state_reserves_and_commits_no_more_than_it_can_keep(state: State) {
    let ledger = state.ledger("a", 100);
    let mut reservation = first(ledger.reserve(ask(&[1]), NOW).await);
    state.close().await;
    state.close().await;
    match (&state, reservation.commit(NOW).await) {
        (State::Memory(_), Ok(Committed::Yes)) => {}
        (State::Disk(..), Err(StateError::Store(_))) => {
            assert!(!state.is_healthy());
            assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::InFlight));
        }
        (State::Redis(..), Err(StateError::Store(_))) => {
            assert!(!state.is_healthy());
            assert_claim!(ledger.reserve(ask(&[2]), NOW).await, Err(StateError::Store(_)));
        }
        (_, other) => panic!("{other:?}"),
    }
}
