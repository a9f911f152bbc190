//! What the store must still do at its limits, after a crash and on a disk that fails; on real files.

use std::fs;

use rusqlite::Connection;

use super::salvage::SalvageError;
use super::tests::{Folder, NOW, ended, entry};
use super::*;

fn settings(folder: &Folder) -> Settings {
    Settings { min_free: 0, ..Settings::new(folder.0.clone()) }
}

fn open(settings: &Settings, now: UnixMillis) -> Arc<Inbox> {
    Inbox::open(settings, now, Meters::unregistered()).expect("an inbox that opens")
}

fn large(name: &str, bytes: usize) -> Entry {
    let mut entry = entry(name, None);
    // Nothing that could be made smaller.
    let body: Vec<u8> = (0..bytes / 16 + 1).flat_map(|_| rand::random::<[u8; 16]>()).collect();
    entry.parcel = Arc::new(Parcel { body: body.into(), ..(*entry.parcel).clone() });
    entry
}

fn waiting(inbox: &Inbox) -> Vec<TaskKey> {
    let due = inbox.due("app", 100_000).expect("a store that can be read");
    due.into_iter().map(|due| TaskKey { seq: due.seq, upstream: "app".into(), generation: 0 }).collect()
}

async fn deliver(inbox: &Inbox, keys: &[TaskKey]) {
    for key in keys {
        inbox.settle(key, ended(End::Delivered)).await.expect("a settlement");
    }
}

/// Waits for it: the store tells nobody.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tasks(inbox: &Inbox, state: State) -> i64 {
    inbox.counts().into_iter().filter(|count| count.state == state).map(|count| count.tasks).sum()
}

fn size(folder: &Folder) -> u64 {
    ["inbox.db", "inbox.db-wal"].iter().map(|name| fs::metadata(folder.0.join(name)).map_or(0, |file| file.len())).sum()
}

/// What a process that died this instant would leave behind: the kernel has what was written, nothing more.
fn as_a_crash_would_leave_it(from: &Folder) -> Folder {
    let copy = Folder::new();
    fs::create_dir(&copy.0).unwrap();
    for name in ["inbox.db", "inbox.db-wal"] {
        fs::copy(from.0.join(name), copy.0.join(name)).unwrap();
    }
    copy
}

#[tokio::test]
async fn at_max_size_senders_are_refused_settlements_are_not_and_room_comes_back() {
    let folder = Folder::new();
    let settings = Settings { max_size: 2 << 20, ..settings(&folder) };
    let inbox = open(&settings, NOW);
    let mut stored = 0;
    let began = Instant::now();
    loop {
        match inbox.append(large("x", 20_000)).await {
            Ok(()) => stored += 1,
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                if stored > 40 {
                    break;
                }
                // The log counts too, until it was written back, and a busy disk takes its time for that.
                assert!(began.elapsed() < Duration::from_secs(30), "{stored}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert!(stored < 200, "it never filled up");
    }
    assert_eq!(tasks(&inbox, State::Waiting), stored, "nothing that was acknowledged is gone");
    assert!(size(&folder) <= (2 << 20) + (1 << 20), "{}", size(&folder));
    assert!(inbox.is_healthy(), "full is no damage");

    // Delivered, they make room long before keep_delivered is over, and those that wait stay.
    let keys = waiting(&inbox);
    deliver(&inbox, &keys[..keys.len() / 2]).await;
    let again = (keys.len() / 2 - 5) as i64;
    let began = Instant::now();
    for _ in 0..again {
        // While the log is being written back to a busy disk a sender may be told once more to come again.
        while let Err(error) = inbox.append(large("y", 20_000)).await {
            assert_eq!(error, AppendError::Full);
            assert!(began.elapsed() < Duration::from_secs(30), "no room came back");
        }
    }
    assert_eq!(tasks(&inbox, State::Waiting), stored - (keys.len() / 2) as i64 + again);
    assert!(tasks(&inbox, State::Delivered) < (keys.len() / 2) as i64);
    let waits: Vec<i64> = waiting(&inbox).iter().map(|key| key.seq).collect();
    assert!(keys[keys.len() / 2..].iter().all(|key| waits.contains(&key.seq)));
}

#[tokio::test]
async fn what_is_dead_is_not_taken_to_make_room() {
    let folder = Folder::new();
    let settings = Settings { max_size: 1 << 20, ..settings(&folder) };
    let inbox = open(&settings, NOW);
    while inbox.append(large("x", 20_000)).await.is_ok() {}
    let keys = waiting(&inbox);
    for key in &keys {
        inbox.settle(key, ended(End::Dead)).await.expect("a settlement at the limit");
    }
    assert_eq!(inbox.append(large("y", 20_000)).await, Err(AppendError::Full));
    assert_eq!(tasks(&inbox, State::Dead), keys.len() as i64);
}

#[tokio::test]
async fn what_has_ended_goes_in_time_and_the_file_gives_its_space_back() {
    let folder = Folder::new();
    let settings = Settings { keep_delivered: Duration::ZERO, ..settings(&folder) };
    let inbox = open(&settings, NOW);
    for _ in 0..120 {
        inbox.append(large("x", 50_000)).await.expect("room");
    }
    let full = size(&folder);
    assert!(full > 6 << 20, "{full}");
    let keys = waiting(&inbox);
    deliver(&inbox, &keys[..100]).await;
    for key in &keys[100..110] {
        inbox.settle(key, ended(End::Dead)).await.expect("a settlement");
    }
    until("delivered ones went", || tasks(&inbox, State::Delivered) == 0).await;
    assert_eq!((tasks(&inbox, State::Dead), tasks(&inbox, State::Waiting)), (10, 10));
    let left = inbox.read(|connection| connection.query_row("SELECT count(*) FROM contents", [], |row| row.get(0)));
    assert_eq!(left, Ok(20));
    inbox.close().await;
    drop(inbox);
    let inbox = open(&settings, NOW);
    until("the space is back", || fs::metadata(folder.0.join("inbox.db")).unwrap().len() < 2 << 20).await;
    assert_eq!(waiting(&inbox), keys[110..]);
}

#[tokio::test]
async fn a_number_is_never_given_twice_though_all_have_gone() {
    let folder = Folder::new();
    let settings = Settings { keep_delivered: Duration::ZERO, ..settings(&folder) };
    let inbox = open(&settings, NOW);
    for name in ["a", "b", "c"] {
        inbox.append(entry(name, None)).await.expect("room");
    }
    let before = waiting(&inbox);
    deliver(&inbox, &before).await;
    until("they went", || tasks(&inbox, State::Delivered) <= 1).await;
    inbox.close().await;
    drop(inbox);
    let inbox = open(&settings, NOW);
    inbox.append(entry("d", None)).await.expect("room");
    let after = waiting(&inbox);
    assert!(after[0].seq > before[2].seq, "{after:?}");
}

#[tokio::test]
async fn a_source_that_has_waited_too_long_is_refused_and_another_is_not() {
    let folder = Folder::new();
    let inbox = open(&Settings { max_age: Duration::from_secs(60), ..settings(&folder) }, NOW);
    inbox.append(Entry { received: UnixMillis(NOW.0 - 61_000), ..entry("old", None) }).await.expect("room");
    let key = waiting(&inbox).remove(0);
    let began = Instant::now();
    let refused = loop {
        if let Err(refused) = inbox.append(entry("new", None)).await {
            break refused;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it is never refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused, AppendError::TooOld);
    inbox.append(Entry { source: "other".into(), ..entry("o", None) }).await.expect("another source has room");

    deliver(&inbox, &[key]).await;
    let began = Instant::now();
    while inbox.append(entry("new", None)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it stays refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn below_min_free_senders_are_refused_until_there_is_room() {
    let folder = Folder::new();
    let inbox = open(&Settings { min_free: u64::MAX, ..settings(&folder) }, NOW);
    assert_eq!(inbox.append(entry("a", None)).await, Err(AppendError::NoRoomOnDisk));
    inbox.adjust(settings(&folder));
    let began = Instant::now();
    while inbox.append(entry("a", None)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it stays refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_log_stays_short_while_appends_never_pause() {
    let folder = Folder::new();
    let settings = Settings { max_size: 64 << 20, ..settings(&folder) };
    let inbox = open(&settings, NOW);
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let inbox = inbox.clone();
        senders.spawn(async move {
            for _ in 0..60 {
                inbox.append(large("x", 40_000)).await.expect("room");
            }
        });
    }
    senders.join_all().await;
    let log = fs::metadata(folder.0.join("inbox.db-wal")).unwrap().len();
    assert!(log < 32 << 20, "the log has {log} bytes after 40 MB in a store of 64 MiB");
    assert_eq!(tasks(&inbox, State::Waiting), 960);
}

#[tokio::test]
async fn expired_claims_go_and_the_others_stay() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW);
    inbox.append(entry("a", None)).await.expect("room");
    let mut lasting = entry("b", None);
    lasting.claims.keep_until = NOW.after(9 * DAY);
    inbox.append(lasting).await.expect("room");
    inbox.close().await;
    drop(inbox);
    let inbox = open(&settings(&folder), NOW.after(DAY));
    let left = || inbox.read(|connection| connection.query_row("SELECT count(*) FROM claims", [], |row| row.get(0)));
    until("the expired one went", || left() == Ok(1)).await;
}

#[tokio::test]
async fn a_clock_set_back_between_two_runs_does_not_hold_deliveries_up() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW.after(365 * DAY));
    inbox.append(entry("now", None)).await.expect("room");
    inbox.append(entry("later", None)).await.expect("room");
    let keys = waiting(&inbox);
    inbox.settle(&keys[1], ended(End::Retry { after: Duration::from_secs(3600) })).await.expect("a settlement");
    inbox.close().await;
    drop(inbox);

    let inbox = open(&settings(&folder), NOW);
    assert!(inbox.now().distance(NOW) < Duration::from_secs(10), "the clock is today's: {:?}", inbox.now());
    let due = inbox.due("app", 10).expect("a store that can be read");
    assert_eq!(due[0].seq, keys[0].seq);
    assert!(due[0].due <= inbox.now());
    let wait = Duration::from_millis(due[1].due.0 - inbox.now().0);
    assert!(wait > Duration::from_secs(3500) && wait <= Duration::from_secs(3600), "{wait:?}");
}

#[tokio::test]
async fn an_encrypted_store_opens_its_deliveries_with_the_old_key_and_the_new() {
    let folder = Folder::new();
    let key = |digit: &str| {
        let text = format!("{}{}", digit.repeat(32), "07".repeat(16));
        SealingKey::parse(&crate::secret::Secret::new(text.into_bytes())).expect("a key")
    };
    let with = |keys: Vec<SealingKey>| Settings { packing: Packing::new(keys), ..settings(&folder) };
    let inbox = open(&with(vec![key("1")]), NOW);
    inbox.append(entry("MARKER-first", None)).await.expect("room");
    inbox.adjust(with(vec![key("2"), key("1")]));
    inbox.append(entry("MARKER-second", None)).await.expect("room");
    let seqs: Vec<i64> = waiting(&inbox).iter().map(|key| key.seq).collect();
    let bodies = |inbox: &Inbox| -> Vec<String> {
        let read = |seq: &i64| match inbox.load(&"app".into(), &[*seq]).as_deref() {
            Ok([Loaded::Task(task)]) => String::from_utf8_lossy(&task.parcel.body).into_owned(),
            // Not a dead letter: it waits for the key.
            Err(why) => why.to_owned(),
            Ok(_) => panic!("it is there, and it is not broken"),
        };
        seqs.iter().map(read).collect()
    };
    assert_eq!(bodies(&inbox), ["MARKER-first", "MARKER-second"]);
    inbox.close().await;
    drop(inbox);
    let inbox = open(&with(vec![key("2")]), NOW);
    let told = bodies(&inbox);
    assert!(told[0].contains(&key("1").id().to_string()) && told[0].contains("encryption_key"), "{told:?}");
    assert_eq!(told[1], "MARKER-second");
}

fn number(path: &std::path::Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// A closed store with some deliveries of every state.
async fn closed(folder: &Folder, deliveries: usize) -> Vec<i64> {
    let inbox = open(&settings(folder), NOW);
    let mut appends = tokio::task::JoinSet::new();
    for n in 0..deliveries {
        let inbox = inbox.clone();
        appends.spawn(async move { inbox.append(large(&format!("n{n}"), 2_000 + n % 7 * 3000)).await });
    }
    assert!(appends.join_all().await.into_iter().all(|appended| appended.is_ok()));
    let keys = waiting(&inbox);
    assert_eq!(keys.len(), deliveries);
    deliver(&inbox, &keys[..5]).await;
    inbox.settle(&keys[5], ended(End::Dead)).await.expect("a settlement");
    inbox.close().await;
    keys[6..].iter().map(|key| key.seq).collect()
}

fn refusal(folder: &Folder) -> OpenError {
    match Inbox::open(&settings(folder), NOW, Meters::unregistered()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

fn readable(inbox: &Inbox) -> Vec<i64> {
    let seqs: Vec<i64> = waiting(inbox).iter().map(|key| key.seq).collect();
    let loaded = inbox.load(&"app".into(), &seqs).expect("a store that can be read");
    let tasks = loaded.into_iter().filter_map(|loaded| match loaded {
        Loaded::Task(task) => Some(task.key.seq),
        Loaded::Unreadable { .. } => None,
    });
    tasks.collect()
}

#[tokio::test]
async fn damaged_foreign_newer_and_headless_files_are_refused_each_in_its_own_words_and_left_alone() {
    let folder = Folder::new();
    closed(&folder, 60).await;
    let path = folder.0.join("inbox.db");
    let good = fs::read(&path).unwrap();

    let mut headless = good.clone();
    headless[..100].fill(0);
    let cut = good[..good.len() / 2].to_vec();
    for (bad, why) in
        [(headless, "headless"), (cut, "cut"), (Vec::new(), "empty"), (b"no database ".repeat(999), "text")]
    {
        fs::write(&path, &bad).unwrap();
        let error = refusal(&folder);
        let told = error.to_string();
        assert!(matches!(error, OpenError::Damaged { .. }), "{why}: {told}");
        assert!(told.contains("inbox.db: the inbox is damaged"), "{why}: {told}");
        assert!(told.contains("`hookward inbox salvage --config FILE`"), "{why}: {told}");
        assert!(fs::read(&path).unwrap() == bad, "{why}: it was changed");
    }
    let altered = |sql: &str| {
        fs::write(&path, &good).unwrap();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        refusal(&folder)
    };
    let error = altered("PRAGMA user_version = 99");
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    let error = altered("PRAGMA application_id = 1");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    for left in ["inbox.db", "inbox.db-wal", "inbox.db-shm"] {
        let _ = fs::remove_file(folder.0.join(left));
    }
    fs::write(folder.0.join("inbox.db-wal"), b"what was committed last").unwrap();
    let error = refusal(&folder);
    assert!(matches!(error, OpenError::LogWithoutFile { .. }), "{error}");
}

#[tokio::test]
async fn after_a_crash_damage_is_found_before_anything_is_served() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW);
    for n in 0..30 {
        inbox.append(entry(&format!("n{n}"), None)).await.expect("room");
    }
    let left = as_a_crash_would_leave_it(&folder);
    assert_eq!(readable(&open(&settings(&left), NOW)).len(), 30);

    // Its log: the first transaction of it.
    let left = as_a_crash_would_leave_it(&folder);
    let log = left.0.join("inbox.db-wal");
    let mut bytes = fs::read(&log).unwrap();
    bytes[32 + 24 + 100] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let error = refusal(&left);
    assert!(matches!(&error, OpenError::Damaged { detail, .. } if detail.contains("its log")), "{error}");

    // A task whose delivery is not there, and a task that no index knows of.
    for (sql, words) in [
        ("DELETE FROM deliveries WHERE seq = 7", "deliveries are missing"),
        ("DELETE FROM contents WHERE seq = 7", "contents are missing"),
        ("DELETE FROM names WHERE kind = 1", "names"),
    ] {
        let left = as_a_crash_would_leave_it(&folder);
        Connection::open(left.0.join("inbox.db")).unwrap().execute_batch(sql).unwrap();
        let error = refusal(&left);
        assert!(matches!(&error, OpenError::Damaged { detail, .. } if detail.contains(words)), "{error}");
    }
}

#[tokio::test]
async fn wrong_counts_are_counted_again_after_a_crash() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW);
    for n in 0..3 {
        inbox.append(entry(&format!("n{n}"), None)).await.expect("room");
    }
    let left = as_a_crash_would_leave_it(&folder);
    Connection::open(left.0.join("inbox.db")).unwrap().execute_batch("UPDATE counts SET n = 77").unwrap();
    assert_eq!(tasks(&open(&settings(&left), NOW), State::Waiting), 3);
}

#[tokio::test]
async fn after_a_clean_stop_damage_is_found_beside_the_traffic_and_makes_the_store_unhealthy() {
    let folder = Folder::new();
    closed(&folder, 60).await;
    let path = folder.0.join("inbox.db");
    assert_eq!(number(&path, "SELECT value FROM meta WHERE key = 'clean'"), 1);
    let whole = open(&settings(&folder), NOW);
    assert_eq!(number(&path, "SELECT value FROM meta WHERE key = 'clean'"), 0);
    whole.close().await;
    drop(whole);
    Connection::open(&path).unwrap().execute_batch("DELETE FROM contents WHERE seq = 40").unwrap();
    let inbox = open(&settings(&folder), NOW);
    until("the damage was found", || !inbox.is_healthy()).await;
    inbox.close().await;
    drop(inbox);
    // Stopped in an orderly way, and still no store to start with.
    let refused = Inbox::open(&settings(&folder), NOW, Meters::unregistered()).err();
    assert!(matches!(refused, Some(OpenError::Damaged { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_flipped_bit_in_a_body_is_told_and_the_other_deliveries_are_delivered() {
    let folder = Folder::new();
    let waits = closed(&folder, 60).await;
    let path = folder.0.join("inbox.db");
    let mut bytes = fs::read(&path).unwrap();
    let content: Vec<u8> = Connection::open(&path)
        .unwrap()
        .query_row("SELECT content FROM contents WHERE seq = 30", [], |r| r.get(0))
        .unwrap();
    let at = bytes.windows(32).position(|window| window == &content[200..232]).expect("its body is in the file");
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let inbox = open(&settings(&folder), NOW);
    let read = readable(&inbox);
    assert_eq!(read.len(), waits.len() - 1);
    assert!(!read.contains(&30));
}

/// Whatever was flipped or cut off: the store is refused, or it works and what it lost is told; nothing panics.
#[tokio::test]
async fn no_damage_makes_a_start_panic_and_salvage_gets_back_what_is_elsewhere() {
    let folder = Folder::new();
    let waits = closed(&folder, 150).await;
    let good = fs::read(folder.0.join("inbox.db")).unwrap();
    let (mut refused, mut worked, mut got_back) = (0, 0, 0);
    for round in 0..30_u64 {
        let damaged = Folder::new();
        fs::create_dir(&damaged.0).unwrap();
        let mut bytes = good.clone();
        let at = usize::try_from(rand::random::<u64>() % bytes.len() as u64).unwrap();
        match round % 3 {
            0 => bytes[at] ^= 1 << (round % 8),
            1 => {
                let end = (at + 8192).min(bytes.len());
                bytes[at..end].fill(0xA5);
            }
            _ => bytes.truncate(at),
        }
        fs::write(damaged.0.join("inbox.db"), &bytes).unwrap();
        if let Ok(inbox) = Inbox::open(&settings(&damaged), NOW, Meters::unregistered()) {
            worked += 1;
            let _either = inbox.load(&"app".into(), &waits);
            inbox.close().await;
            drop(inbox);
        } else {
            refused += 1;
        }
        // As it was found: a start that works writes, one that is refused may have begun to.
        for left in ["inbox.db-wal", "inbox.db-shm"] {
            let _ = fs::remove_file(damaged.0.join(left));
        }
        fs::write(damaged.0.join("inbox.db"), &bytes).unwrap();
        let to = damaged.0.join("salvaged");
        let Ok(salvaged) = salvage(&damaged.0, &to) else {
            // Only where its very identity was damaged.
            assert!(at < 100, "byte {at}, round {round}");
            continue;
        };
        assert!(fs::read(damaged.0.join("inbox.db")).unwrap() == bytes, "the damaged file was changed");
        let inbox = open(&Settings { folder: to, ..settings(&damaged) }, NOW);
        let back = readable(&inbox);
        assert!(back.iter().all(|seq| waits.contains(seq) || *seq <= 6), "byte {at}: a delivery that was none");
        let lost = waits.iter().filter(|seq| !back.contains(seq)).count();
        got_back += usize::from(lost < 30);
        if round % 3 == 0 {
            assert!(lost <= 40, "byte {at}: {lost} lost, {:?}", salvaged.lost);
        }
        let is_told = !salvaged.lost.is_empty() || tasks(&inbox, State::Waiting) > back.len() as i64;
        assert!(lost == 0 || is_told, "byte {at}: {lost} lost without a word");
    }
    assert!(refused > 3 && worked > 2, "{refused} refused, {worked} worked");
    assert!(got_back > 12, "{got_back}");
}

#[tokio::test]
async fn salvage_of_a_whole_store_loses_nothing_and_says_so() {
    let folder = Folder::new();
    let waits = closed(&folder, 80).await;
    let to = Folder::new();
    let salvaged = salvage(&folder.0, &to.0).expect("a store to copy from");
    assert_eq!(salvaged.lost, Vec::<String>::new());
    let saved: std::collections::HashMap<_, _> = salvaged.saved.into_iter().collect();
    assert_eq!((saved["deliveries"], saved["contents"], saved["tasks"], saved["claims"]), (80, 80, 80, 80));
    let inbox = open(&settings(&to), NOW);
    assert_eq!(readable(&inbox), waits);
    assert_eq!((tasks(&inbox, State::Delivered), tasks(&inbox, State::Dead)), (5, 1));
    let again = salvage(&folder.0, &to.0);
    assert!(matches!(again, Err(SalvageError::Unusable { .. })), "it never overwrites one");
}

#[tokio::test]
async fn salvage_takes_what_only_the_log_has_and_leaves_out_what_is_damaged_in_it() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW);
    for n in 0..40 {
        inbox.append(entry(&format!("n{n}"), None)).await.expect("room");
    }
    let left = as_a_crash_would_leave_it(&folder);
    let to = left.0.join("new");
    assert_eq!(salvage(&left.0, &to).expect("a store to copy from").lost, Vec::<String>::new());
    assert_eq!(readable(&open(&Settings { folder: to, ..settings(&left) }, NOW)).len(), 40);

    let log = left.0.join("inbox.db-wal");
    let mut bytes = fs::read(&log).unwrap();
    let middle = 32 + (bytes.len() / 2 / 8216) * 8216;
    bytes[middle + 24 + 4000] ^= 1;
    fs::write(&log, &bytes).unwrap();
    assert!(matches!(refusal(&left), OpenError::Damaged { .. }));
    let to = left.0.join("mended");
    let salvaged = salvage(&left.0, &to).expect("a store to copy from");
    assert!(salvaged.lost.iter().any(|line| line.contains("pages in the log")), "{:?}", salvaged.lost);
    let back = readable(&open(&Settings { folder: to, ..settings(&left) }, NOW));
    assert!(back.len() >= 30, "{} of 40", back.len());
}

/// An operator retried an older one of a lane, which comes when the one that waits has ended.
#[tokio::test]
async fn salvage_lets_no_two_of_one_lane_go_at_once() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW);
    for name in ["a", "b", "c"] {
        inbox.append(entry(name, Some(7))).await.expect("room");
    }
    let a = waiting(&inbox).remove(0);
    inbox.settle(&a, ended(End::Dead)).await.expect("a settlement");
    let retried = inbox.write(|connection, _| connection.execute("UPDATE tasks SET state = 1 WHERE state = 3", []));
    assert_eq!(retried.await, Ok(1));
    inbox.close().await;
    drop(inbox);
    let to = Folder::new();
    salvage(&folder.0, &to.0).expect("a store to copy from");
    let inbox = open(&settings(&to), NOW);
    for expected in [2, 1, 3] {
        let now = waiting(&inbox);
        assert_eq!(now.iter().map(|key| key.seq).collect::<Vec<_>>(), [expected]);
        inbox.settle(&now[0], ended(End::Delivered)).await.expect("a settlement");
    }
}

/// The log was written back and cut off; its index, which is never synced, is on the disk as it was before that.
#[tokio::test]
async fn an_index_that_power_loss_left_behind_keeps_no_whole_store_from_starting() {
    let folder = Folder::new();
    let inbox = open(&settings(&folder), NOW);
    for n in 0..5 {
        inbox.append(entry(&format!("n{n}"), None)).await.expect("room");
    }
    let left = as_a_crash_would_leave_it(&folder);
    for name in ["inbox.db-shm", "lock"] {
        fs::copy(folder.0.join(name), left.0.join(name)).unwrap();
    }
    inbox.close().await;
    drop(inbox);
    // All is in the database, and nothing in the log.
    fs::copy(folder.0.join("inbox.db"), left.0.join("inbox.db")).unwrap();
    fs::write(left.0.join("inbox.db-wal"), b"").unwrap();
    // In one and the same boot that cannot be, and so the log was cut.
    assert!(matches!(refusal(&left), OpenError::Damaged { .. }));
    let lock = left.0.join("lock");
    let boot = fs::read_to_string(&lock).unwrap();
    fs::write(&lock, boot.replace(|letter: char| letter.is_ascii_hexdigit(), "0")).unwrap();
    let inbox = open(&settings(&left), NOW);
    assert_eq!(readable(&inbox).len(), 5);
    assert_eq!(fs::read_to_string(&lock).unwrap(), boot);
}
