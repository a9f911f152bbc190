//! The store's promises, on a real file.

use std::path::PathBuf;

use bytes::Bytes;
use http::Method;

use super::*;

pub(super) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

/// A folder of its own, gone with the value.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let name = format!("hookward-inbox-{}", Uuid::from_bytes(rand::random()));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies among temporary files and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Meters {
    pub(super) fn unregistered() -> Self {
        let histogram = || {
            let named = prometheus::HistogramOpts::new("unregistered", "unregistered");
            Histogram::with_opts(named).expect("a constant name is valid")
        };
        let errors = IntCounter::new("unregistered", "unregistered").expect("a constant name is valid");
        Self { append: histogram(), commit: histogram(), batch: histogram(), errors }
    }
}

pub(super) fn open(folder: &Folder) -> Arc<Inbox> {
    let settings = Settings::new(folder.0.clone());
    Inbox::open(&settings, NOW, Meters::unregistered()).expect("an inbox that opens")
}

pub(super) fn entry(body: &str, lane: Option<i64>) -> Entry {
    let parcel = Parcel {
        method: Method::POST,
        path_and_query: "/hooks".to_owned(),
        headers: Default::default(),
        body: Bytes::from(body.to_owned()),
        credentials: Vec::new(),
    };
    Entry {
        source: "shop".into(),
        received: NOW,
        request_id: uuid::Builder::from_unix_timestamp_millis(NOW.0, &rand::random()).into_uuid(),
        delivery_id: format!("id-{body}"),
        event_id: Some(body.to_owned()),
        event_type: Some("order.paid".to_owned()),
        parcel: Arc::new(parcel),
        claims: Claims {
            prints: vec![rand::random()],
            keep_until: NOW.after(Duration::from_secs(60)),
            ..Claims::default()
        },
        tasks: vec![NewTask { upstream: "app".into(), path: None, lane }],
    }
}

pub(super) fn ended(end: End) -> Attempt {
    Attempt { end, counted: true, status: Some(200), note: String::new() }
}

/// The bodies of what is due, in order.
fn due(inbox: &Inbox) -> Vec<(TaskKey, String)> {
    let due = inbox.due("app", 100).expect("a store that can be read");
    let seqs: Vec<_> = due.iter().filter(|due| due.due <= inbox.now()).map(|due| due.seq).collect();
    let loaded = inbox.load(&"app".into(), &seqs).expect("a store that can be read");
    let read = loaded.into_iter().map(|loaded| match loaded {
        Loaded::Task(task) => (task.key, String::from_utf8_lossy(&task.parcel.body).into_owned()),
        Loaded::Unreadable { why, .. } => panic!("{why}"),
    });
    read.collect()
}

fn bodies(inbox: &Inbox) -> Vec<String> {
    due(inbox).into_iter().map(|(_, body)| body).collect()
}

#[tokio::test]
async fn what_was_appended_is_due_until_it_is_settled_and_after_a_restart_too() {
    let folder = Folder::new();
    let inbox = open(&folder);
    for body in ["a", "b", "c"] {
        inbox.append(entry(body, None)).await.expect("room");
    }
    assert_eq!(bodies(&inbox), ["a", "b", "c"]);
    let first = due(&inbox).remove(0).0;
    inbox.settle(&first, ended(End::Delivered)).await.expect("a settlement");
    assert_eq!(bodies(&inbox), ["b", "c"]);
    let second = due(&inbox).remove(0).0;
    inbox.settle(&second, ended(End::Retry { after: Duration::from_secs(60) })).await.expect("a settlement");
    assert_eq!(bodies(&inbox), ["c"]);
    inbox.close().await;
    drop(inbox);

    let inbox = open(&folder);
    assert_eq!(bodies(&inbox), ["c"]);
    let mut counts: Vec<_> = inbox.counts().into_iter().map(|count| (count.state, count.tasks)).collect();
    counts.sort();
    assert_eq!(counts, [(State::Waiting, 2), (State::Delivered, 1)]);
    let mut seeds = Vec::new();
    inbox.seeds("shop", |seed| seeds.push(seed)).expect("claims");
    assert_eq!(seeds.len(), 3);
}

#[tokio::test]
async fn in_a_lane_the_next_is_due_when_the_one_before_has_ended() {
    let folder = Folder::new();
    let inbox = open(&folder);
    for (body, lane) in [("a1", 1), ("a2", 1), ("b1", 2), ("a3", 1)] {
        inbox.append(entry(body, Some(lane))).await.expect("room");
    }
    assert_eq!(bodies(&inbox), ["a1", "b1"]);
    let a1 = due(&inbox).remove(0).0;
    inbox.settle(&a1, ended(End::Retry { after: Duration::from_secs(60) })).await.expect("a settlement");
    assert_eq!(bodies(&inbox), ["b1"]);
    inbox.settle(&a1, ended(End::Dead)).await.expect("a settlement");
    assert_eq!(bodies(&inbox), ["b1", "a2"]);
}

#[tokio::test]
async fn a_second_process_cannot_open_the_store() {
    let folder = Folder::new();
    let _open = open(&folder);
    let settings = Settings::new(folder.0.clone());
    let refused = Inbox::open(&settings, NOW, Meters::unregistered()).err();
    assert!(matches!(refused, Some(OpenError::InUse { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_claim_that_ends_with_a_second_lies_in_the_order_of_arrival_and_never_ends_early() {
    let folder = Folder::new();
    let inbox = open(&folder);
    let ends = NOW.after(Duration::from_secs(60));
    let mut expected = Vec::new();
    for (number, millis) in [0, 7, 999].into_iter().enumerate() {
        let received = NOW.after(Duration::from_millis(millis));
        let print = [u8::MAX - number as u8; 16];
        let claims = Claims { prints: vec![print], keep_until: ends, ..Claims::default() };
        inbox.append(Entry { received, claims, ..entry(&number.to_string(), None) }).await.expect("stored");
        expected.push((print, ends.after(Duration::from_millis(millis))));
    }
    // A time of its own is left as it is.
    let odd = ends.after(Duration::from_millis(1500));
    let claims = Claims { prints: vec![[7; 16]], keep_until: odd, ..Claims::default() };
    inbox
        .append(Entry { received: NOW.after(Duration::from_millis(900)), claims, ..entry("odd", None) })
        .await
        .expect("stored");
    expected.push(([7; 16], odd));
    let mut seeds = Vec::new();
    inbox.seeds("shop", |seed| seeds.push((seed.print, seed.until))).expect("claims");
    assert_eq!(seeds, expected);
}

#[tokio::test]
async fn a_mistake_in_what_an_operator_asked_for_is_undone_and_ends_no_delivery() {
    let folder = Folder::new();
    let inbox = open(&folder);
    inbox.append(entry("a", None)).await.expect("room");
    let broken = inbox.write(|connection, tally| -> rusqlite::Result<()> {
        connection.execute("DELETE FROM tasks", [])?;
        tally.add(1, 1, State::Waiting, -1);
        panic!("a mistake");
    });
    assert!(broken.await.is_err());
    inbox.append(entry("b", None)).await.expect("room");
    assert!(inbox.is_healthy());
    assert_eq!(bodies(&inbox), ["a", "b"]);
    let waiting: i64 = inbox.counts().iter().map(|count| count.tasks).sum();
    assert_eq!(waiting, 2);
}

#[tokio::test]
async fn what_was_delivered_is_written_down_where_there_is_no_room_for_what_comes() {
    let folder = Folder::new();
    let inbox = open(&folder);
    inbox.append(entry("a", None)).await.expect("room");
    let a = due(&inbox).remove(0).0;
    let pages = inbox.write(|connection, _| {
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        connection.pragma_update(None, "max_page_count", pages)
    });
    pages.await.expect("a limit");
    // While the writer is held, both come: they share a transaction.
    let (held, holding) = std::sync::mpsc::channel::<()>();
    let held_up = inbox.write(move |_, _| {
        // An error means that the test is over.
        let _ = holding.recv();
        Ok(())
    });
    let body: String = (0..100_000).map(|_| char::from(rand::random_range(b' '..b'~'))).collect();
    let (_, appended, settled, ()) = tokio::join!(
        biased;
        held_up,
        async {
            let appended = inbox.append(entry(&body, None)).await;
            (appended, Instant::now())
        },
        async {
            let settled = inbox.settle(&a, ended(End::Delivered)).await;
            (settled, Instant::now())
        },
        async { drop(held) }
    );
    assert!(matches!(appended.0, Err(AppendError::Store(_))), "{:?}", appended.0);
    assert_eq!(settled.0, Ok(()));
    let after = settled.1.saturating_duration_since(appended.1);
    assert!(after < Duration::from_millis(900), "written at once and not with the next second's tick: {after:?}");
    assert!(bodies(&inbox).is_empty());
}

#[tokio::test]
async fn what_was_done_is_counted_before_whoever_asked_for_it_hears_that_it_was() {
    let folder = Folder::new();
    let inbox = open(&folder);
    inbox.append(entry("one", None)).await.expect("stored");
    for round in 1..=300 {
        let changed = inbox.write(|connection, tally| {
            let source = tally.id(connection, tally::Kind::Source, "shop")?;
            let upstream = tally.id(connection, tally::Kind::Upstream, "app")?;
            tally.add(source, upstream, State::Discarded, 1);
            Ok(())
        });
        changed.await.expect("written");
        let counted = inbox.counts().into_iter().find(|count| count.state == State::Discarded);
        assert_eq!(counted.map(|count| count.tasks), Some(round));
    }
}
