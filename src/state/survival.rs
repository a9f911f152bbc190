//! What the store on disk must still know after a crash, and what it must refuse to start from.

use std::fs;
use std::future::{Future, poll_fn};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::contract::{Folder, KEPT, LEASE, NOW, ask, ask_event, assert_claim, at, commit, first, key, open};
use super::*;

fn settings(folder: &Path) -> DiskSettings {
    DiskSettings::new(folder.join("state").join("claims.db"))
}

fn state(folder: &Path) -> State {
    open(&Settings::Disk(settings(folder)))
}

fn refusal(settings: &DiskSettings) -> OpenError {
    match State::open(&Settings::Disk(settings.clone()), NOW, Meters::unregistered()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

/// What a process that died this instant would leave behind: the kernel has what was written, nothing more.
fn as_a_crash_would_leave_it(from: &Path) -> Folder {
    let copy = Folder::new();
    fs::create_dir(copy.path().join("state")).unwrap();
    for name in ["claims.db", "claims.db-wal"] {
        fs::copy(from.join("state").join(name), copy.path().join("state").join(name)).unwrap();
    }
    copy
}

#[tokio::test]
async fn a_commit_that_was_answered_survives_a_crash_and_a_reservation_does_not() {
    for sync in [SyncMode::Os, SyncMode::Power] {
        let folder = Folder::new();
        let running = open(&Settings::Disk(DiskSettings { sync, ..settings(folder.path()) }));
        let ledger = running.ledger("a", 100);
        commit(first(ledger.reserve(ask_event(&[1, 2], 7), NOW).await)).await;
        let _in_flight = first(ledger.reserve(ask(&[3]), NOW).await);

        let left = as_a_crash_would_leave_it(folder.path());
        let revived = state(left.path());
        let ledger = revived.ledger("a", 100);
        assert_eq!(ledger.len(), 2);
        assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
        assert_claim!(ledger.reserve(ask(&[2]), at(299_999)).await, Ok(Claim::Replay));
        assert_claim!(ledger.reserve(ask_event(&[4], 7), NOW).await, Ok(Claim::Duplicate(_)));
        assert_claim!(ledger.reserve(ask(&[3]), NOW).await, Ok(Claim::First(_)));
        assert_claim!(revived.ledger("b", 100).reserve(ask_event(&[1], 7), NOW).await, Ok(Claim::First(_)));
        assert_claim!(ledger.reserve(ask(&[1]), at(300_000)).await, Ok(Claim::First(_)));
    }
}

#[tokio::test]
async fn a_closed_state_opens_again_with_all_it_accepted() {
    let folder = Folder::new();
    let before = state(folder.path());
    commit(first(before.ledger("a", 100).reserve(ask(&[1]), NOW).await)).await;
    before.close().await;
    assert!(!folder.path().join("state/claims.db-wal").exists());
    let after = state(folder.path());
    assert_claim!(after.ledger("a", 100).reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
}

#[tokio::test]
async fn a_source_that_was_away_finds_what_it_accepted() {
    let folder = Folder::new();
    let before = state(folder.path());
    commit(first(before.ledger("away", 100).reserve(ask(&[1]), NOW).await)).await;
    before.close().await;
    let without = state(folder.path());
    commit(first(without.ledger("other", 100).reserve(ask(&[1]), NOW).await)).await;
    without.close().await;
    let with = state(folder.path());
    assert_claim!(with.ledger("away", 100).reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
}

/// Begins a commit and gives up on it: polled once, it is with the writer. Ready where the writer was quicker than that.
async fn hand_over(reservation: &mut Reservation) -> Poll<Result<Committed, StateError>> {
    // Free of the scheduler's fairness: a task that has gone on for 128 steps, as the writer was always quicker than it
    // looked, is told to wait, and then nothing would be with the writer.
    let commit = tokio::task::coop::unconstrained(reservation.commit(NOW));
    let mut commit = pin!(commit);
    poll_fn(|context| Poll::Ready(commit.as_mut().poll(context))).await
}

#[tokio::test]
async fn a_commit_whose_caller_is_gone_is_whole_or_was_never_begun() {
    let folder = Folder::new();
    let running = state(folder.path());
    let ledger = running.ledger("a", 1000);
    for n in 0..200 {
        let mut reservation = first(ledger.reserve(ask_event(&[n], n), NOW).await);
        let _either = hand_over(&mut reservation).await;
        if n % 4 == 3 {
            // Another one is answered after it. Then the first, asked again, still tells of the same commit.
            commit(first(ledger.reserve(ask(&[500 + n]), NOW).await)).await;
        }
        if n % 2 == 1 {
            assert_eq!(reservation.commit(NOW).await, Ok(Committed::Yes));
        }
    }
    // The queue is served in order, so once this one is answered all are.
    commit(first(ledger.reserve(ask(&[999]), NOW).await)).await;
    let left = as_a_crash_would_leave_it(folder.path());
    let revived = state(left.path());
    for n in 0..200 {
        assert_claim!(ledger.reserve(ask(&[n]), NOW).await, Ok(Claim::Replay));
        assert_claim!(revived.ledger("a", 1000).reserve(ask(&[n]), NOW).await, Ok(Claim::Replay));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_that_come_together_are_all_written() {
    let folder = Folder::new();
    let running = open(&Settings::Disk(DiskSettings { sync: SyncMode::Power, ..settings(folder.path()) }));
    let ledger = running.ledger("a", 10_000);
    let mut tasks = tokio::task::JoinSet::new();
    // More than the writer's queue holds, so some have to wait for room.
    for n in 0..3000 {
        let ledger = Arc::clone(&ledger);
        tasks.spawn(async move { commit(first(ledger.reserve(ask(&[n]), NOW).await)).await });
    }
    assert_eq!(tasks.join_all().await.len(), 3000);
    let left = as_a_crash_would_leave_it(folder.path());
    assert_eq!(state(left.path()).ledger("a", 10_000).len(), 3000);
}

/// Commits a hundred claims at a time until the file is full; the reservation that failed, the number of its first claim
/// and the error.
async fn fill(ledger: &Arc<Ledger>) -> (Reservation, u64, StateError) {
    for start in (0..100_000).step_by(100) {
        let keys: Vec<u64> = (start..start + 100).collect();
        let mut reservation = first(ledger.reserve(ask(&keys), NOW).await);
        if let Err(error) = reservation.commit(NOW).await {
            return (reservation, start, error);
        }
    }
    panic!("it never filled up");
}

fn small(folder: &Path) -> State {
    open(&Settings::Disk(DiskSettings { max_bytes: 256 << 10, ..settings(folder) }))
}

#[tokio::test]
async fn a_full_disk_fails_commits_keeps_their_reservations_and_recovers() {
    let folder = Folder::new();
    let running = small(folder.path());
    let ledger = running.ledger("a", 1_000_000);
    let (mut failed, start, error) = fill(&ledger).await;
    assert!(matches!(&error, StateError::Store(why) if why.contains("full")), "{error:?}");
    assert!(!running.is_healthy());
    assert_claim!(ledger.reserve(ask(&[start]), NOW).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask(&[0]), NOW).await, Ok(Claim::Replay));
    assert_eq!(failed.commit(NOW).await, Err(error));

    // What was accepted expires; the same commit then succeeds and the store is well again.
    assert!(failed.renew(at(1), KEPT * 2).await);
    assert_eq!(failed.commit(at(300_000)).await, Ok(Committed::Yes));
    assert!(running.is_healthy());
    let claim = Ask { keep_until: at(900_000), ..ask(&[500_000]) };
    let mut reservation = first(ledger.reserve(claim, at(300_000)).await);
    assert_eq!(reservation.commit(at(300_000)).await, Ok(Committed::Yes));
    let left = as_a_crash_would_leave_it(folder.path());
    let revived = state(left.path());
    let claim = revived.ledger("a", 1_000_000).reserve(ask(&[500_000]), at(899_999)).await;
    assert_claim!(claim, Ok(Claim::Replay));
}

#[tokio::test]
async fn a_commit_that_failed_with_nobody_waiting_holds_its_keys_until_the_lease_ends() {
    let folder = Folder::new();
    let running = small(folder.path());
    let ledger = running.ledger("a", 1_000_000);
    let keys: Vec<u64> = (200_000..202_000).collect();
    let mut abandoned = first(ledger.reserve(ask(&keys), NOW).await);
    let (mut failed, start, _) = fill(&ledger).await;
    // A failed commit may be tried again, so: until one is left behind whose answer nobody has read.
    while hand_over(&mut abandoned).await.is_ready() {}
    assert!(failed.commit(NOW).await.is_err());
    drop(abandoned);
    assert_claim!(ledger.reserve(ask(&[200_000]), at(29_999)).await, Ok(Claim::InFlight));
    for n in [start, 200_000] {
        // The keys are free again, and nothing new is let in that could not be recorded either.
        assert_claim!(ledger.reserve(ask(&[n]), NOW.after(LEASE)).await, Err(StateError::Store(_)));
    }
}

#[tokio::test]
async fn health_comes_back_without_traffic() {
    let folder = Folder::new();
    let running = small(folder.path());
    let ledger = running.ledger("a", 1_000_000);
    let (_failed, _, _) = fill(&ledger).await;
    assert!(!running.is_healthy());
    ledger.sweep(at(300_000));
    let began = Instant::now();
    while !running.is_healthy() {
        assert!(began.elapsed() < Duration::from_secs(20), "it stays unwell");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_commit_that_failed_ends_with_its_lease() {
    let folder = Folder::new();
    let running = state(folder.path());
    let ledger = running.ledger("a", 100);
    let mut failed = first(ledger.reserve(ask(&[1]), NOW).await);
    running.close().await;
    assert!(matches!(failed.commit(NOW).await, Err(StateError::Store(_))));
    assert_claim!(ledger.reserve(ask(&[1]), at(29_999)).await, Ok(Claim::InFlight));
    assert_claim!(ledger.reserve(ask(&[1]), NOW.after(LEASE)).await, Err(StateError::Store(_)));
}

#[tokio::test]
async fn nothing_new_is_let_in_that_could_not_be_recorded() {
    let folder = Folder::new();
    let running = small(folder.path());
    let ledger = running.ledger("a", 1_000_000);
    let (mut failed, _, _) = fill(&ledger).await;
    assert!(!running.is_healthy());
    assert_claim!(ledger.reserve(ask(&[700_000]), NOW).await, Err(StateError::Store(_)));
    // What is known is known.
    assert_claim!(ledger.reserve(ask(&[0]), NOW).await, Ok(Claim::Replay));
    // And what was accepted all the same is remembered, if only until the end of the process.
    assert!(failed.keep_unwritten(at(1)));
    drop(failed);
    assert_claim!(ledger.reserve(ask(&[0]), NOW.after(LEASE)).await, Ok(Claim::Replay));
}

#[tokio::test]
async fn what_has_expired_leaves_the_file() {
    let folder = Folder::new();
    let before = state(folder.path());
    let ledger = before.ledger("a", 100_000);
    for n in 0..30 {
        let keys: Vec<u64> = (n * 100..n * 100 + 100).collect();
        commit(first(ledger.reserve(ask(&keys), NOW).await)).await;
    }
    commit(first(ledger.reserve(Ask { keep_until: at(900_000), ..ask(&[5000]) }, NOW).await)).await;
    let reader = rusqlite::Connection::open(settings(folder.path()).path).unwrap();
    let rows = || reader.query_row("SELECT count(*) FROM claims", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows(), 3001);
    ledger.sweep(at(300_000));
    let began = Instant::now();
    while rows() > 1 {
        assert!(began.elapsed() < Duration::from_secs(20), "{} rows are left", rows());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_file_is_private_and_has_one_process() {
    let folder = Folder::new();
    let settings = settings(folder.path());
    let running = state(folder.path());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&settings.path), 0o600);
    assert_eq!(mode(&folder.path().join("state")), 0o700);

    let error = refusal(&settings);
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("claims.db: another process"), "{error}");
    running.close().await;
    state(folder.path());
}

#[tokio::test]
async fn damaged_foreign_and_newer_files_are_refused_and_left_alone() {
    let folder = Folder::new();
    let settings = settings(folder.path());
    let running = state(folder.path());
    let ledger = running.ledger("a", 100_000);
    for n in 0..50 {
        let keys: Vec<u64> = (n * 100..n * 100 + 100).collect();
        commit(first(ledger.reserve(ask(&keys), NOW).await)).await;
    }
    running.close().await;
    let good = fs::read(&settings.path).unwrap();
    assert!(good.len() > 100_000);

    let mut torn = good.clone();
    torn[40_000..60_000].fill(0xA5);
    let mut headless = good.clone();
    headless[..100].fill(0);
    let cut = good[..good.len() / 2].to_vec();
    for bad in [torn, headless, cut, Vec::new(), b"not a database at all, but long enough to look at".repeat(99)] {
        fs::write(&settings.path, &bad).unwrap();
        let error = refusal(&settings);
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("claims.db: the state file is damaged"), "{error}");
        assert!(fs::read(&settings.path).unwrap() == bad, "it was changed");
    }

    let altered = |sql: &str| {
        fs::write(&settings.path, &good).unwrap();
        rusqlite::Connection::open(&settings.path).unwrap().execute_batch(sql).unwrap();
        refusal(&settings)
    };
    let error = altered("PRAGMA user_version = 2");
    assert!(matches!(error, OpenError::Newer { found: 2, .. }), "{error}");
    let error = altered("PRAGMA application_id = 1");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    fs::remove_file(&settings.path).unwrap();
    fs::write(beside_wal(&settings.path), b"what was committed last").unwrap();
    let error = refusal(&settings);
    assert!(matches!(error, OpenError::LogWithoutFile { .. }), "{error}");
    fs::remove_file(beside_wal(&settings.path)).unwrap();
    fs::write(&settings.path, &good).unwrap();
    let running = state(folder.path());
    assert_eq!(running.ledger("a", 100_000).len(), 5000);
}

fn beside_wal(path: &Path) -> PathBuf {
    path.with_file_name("claims.db-wal")
}

#[tokio::test]
async fn a_source_that_cannot_be_read_accepts_nothing_until_it_can() {
    let folder = Folder::new();
    let running = state(folder.path());
    commit(first(running.ledger("a", 100).reserve(ask(&[1]), NOW).await)).await;
    let reader = rusqlite::Connection::open(settings(folder.path()).path).unwrap();
    reader.execute_batch("ALTER TABLE claims RENAME TO elsewhere").unwrap();
    let ledger = running.ledger("b", 100);
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Err(StateError::Store(_)));
    reader.execute_batch("ALTER TABLE elsewhere RENAME TO claims").unwrap();
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Err(StateError::Store(_)));
    assert!(Arc::ptr_eq(&ledger, &running.ledger("b", 100)));
    assert_claim!(ledger.reserve(ask(&[1]), NOW).await, Ok(Claim::First(_)));
}

/// Seconds of work: run by hand, with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_million_claims_start_quickly_and_fit_in_memory() {
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let folder = Folder::new();
    let running = state(folder.path());
    let ledger = running.ledger("a", 2_000_000);
    let began = Instant::now();
    for n in 0..2000 {
        let replay = (n * 500..n * 500 + 500).map(key).collect();
        let claim = Ask { keep_until: at(60_000 + n * 43_200), ..Ask { replay, ..ask(&[]) } };
        commit(first(ledger.reserve(claim, NOW).await)).await;
    }
    println!("a million committed in {:?}; {} MiB resident", began.elapsed(), resident());
    running.close().await;
    drop((running, ledger));
    let before = resident();
    let began = Instant::now();
    let running = state(folder.path());
    let checked = began.elapsed();
    let ledger = running.ledger("a", 2_000_000);
    println!("checked in {checked:?}, loaded in {:?}; {before} -> {} MiB", began.elapsed() - checked, resident());
    println!("the file has {} MiB", fs::metadata(settings(folder.path()).path).unwrap().len() >> 20);
    assert_eq!(ledger.len(), 1_000_000);
}

#[tokio::test]
async fn a_secret_that_was_brought_survives_a_crash_and_the_first_one_stays() {
    let folder = Folder::new();
    let running = state(folder.path());
    let secret = |text: &str| Secret::new(text.into());
    let kept = |state: &State, name| state.captured("a", name).unwrap().map(|secret| secret.expose().to_vec());
    assert_eq!(kept(&running, "first"), None);
    assert_eq!(running.capture("a", "first", &secret("one")).await, Ok(true));
    assert_eq!(running.capture("a", "first", &secret("two")).await, Ok(false));
    assert_eq!(running.capture("a", "second", &secret("two")).await, Ok(true));
    assert_eq!(running.capture("b", "first", &secret("three")).await, Ok(true));
    let left = as_a_crash_would_leave_it(folder.path());
    let revived = state(left.path());
    assert_eq!(kept(&revived, "first").as_deref(), Some(&b"one"[..]));
    assert_eq!(kept(&revived, "second").as_deref(), Some(&b"two"[..]));
    assert_eq!(kept(&revived, "third"), None);
    assert_eq!(revived.capture("a", "first", &secret("four")).await, Ok(false));
}

#[tokio::test]
async fn a_file_from_before_secrets_were_brought_takes_some() {
    let folder = Folder::new();
    let before = state(folder.path());
    commit(first(before.ledger("a", 100).reserve(ask(&[1]), NOW).await)).await;
    before.close().await;
    rusqlite::Connection::open(settings(folder.path()).path).unwrap().execute_batch("DROP TABLE captured").unwrap();
    let after = state(folder.path());
    assert_eq!(after.capture("a", "first", &Secret::new(b"one".to_vec())).await, Ok(true));
    assert_claim!(after.ledger("a", 100).reserve(ask(&[1]), NOW).await, Ok(Claim::Replay));
}
