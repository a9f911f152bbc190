//! A store whose bytes are not what was written: it is refused with words that help, or everything acknowledged is
//! accounted for. Never a panic, never a changed body, never a silence.

use super::stage::{body, configuration, counted, event, source, upstream};
use crate::support::gateway::{BINARY, Folder, hookward};
use crate::support::upstream::ClosedPort;
use crate::support::{Answer, Gateway, Request, Upstream, eventually};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

const EVENTS: usize = 60;

fn name(number: usize) -> String {
    format!("event-{number}")
}

/// Some of several pages.
fn padding(number: usize) -> usize {
    if number.is_multiple_of(10) { 20_000 } else { number * 17 }
}

/// `EVENTS` acknowledged ones, none of them delivered; the gateway ended as told.
fn filled(end: impl FnOnce(Gateway) -> Arc<Folder>) -> Arc<Folder> {
    let port = ClosedPort::new();
    let rest = format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n{}", port.address(), source("shop", "app", ""));
    let gateway = Gateway::start_in(Default::default(), &configuration("", &rest));
    for number in 0..EVENTS {
        assert_eq!(event("shop", &name(number), padding(number)).send(gateway.public()).status, 202);
    }
    end(gateway)
}

fn filled_and_stopped() -> Arc<Folder> {
    filled(|mut gateway| {
        gateway.signal("TERM");
        assert!(gateway.wait_for_exit().success());
        gateway.folder.clone()
    })
}

fn copied(from: &Folder) -> Folder {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inbox")).expect("a folder");
    for entry in std::fs::read_dir(from.path("inbox")).expect("the inbox") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder.path("inbox").join(entry.file_name())).expect("copied");
    }
    folder
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// Exit code 78, the file and the way out named.
    Refused,
    /// It serves, and every event was delivered as it was sent.
    Intact,
    /// It serves; what is missing at the upstream is a dead letter, or it says that the store is damaged.
    Told,
}

/// Starts on a damaged copy, with an upstream that works, and holds it to the promise.
fn start_on(folder: &Folder, damage: &str) -> Met {
    let application = Upstream::start();
    let rest = format!("{}{}", upstream("app", &application, ""), source("shop", "app", ""));
    folder.write("gateway.toml", configuration("", &rest));
    let log = folder.path("log");
    let mut child = Command::new(BINARY)
        .args(["run", "--config", "gateway.toml"])
        .current_dir(&folder.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("a file"))
        .spawn()
        .expect("the binary starts");
    let said = || String::from_utf8_lossy(&std::fs::read(&log).expect("the log")).into_owned();
    let _told = Told(&said);
    let met = eventually(&format!("{damage}: refused, or all events are accounted for"), || {
        if let Some(status) = child.try_wait().expect("a child") {
            let said = said();
            assert_eq!(status.code(), Some(78), "{damage}: {said}");
            assert!(said.contains("inbox.db") && said.contains("hookward inbox salvage"), "{damage}: {said}");
            return Some(Met::Refused);
        }
        let bodies: HashSet<Vec<u8>> = application.received().into_iter().map(|request| request.body).collect();
        if bodies.len() == EVENTS {
            return Some(Met::Intact);
        }
        let told = said().contains("hookward inbox salvage")
            && asked(&said(), "/readyz").is_some_and(|answer| answer.status == 503);
        let dead = dead_letters(&said()).unwrap_or(0);
        (told || dead + bodies.len() >= EVENTS).then_some(Met::Told)
    });
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    let said = said();
    assert!(!said.contains("panicked"), "{damage}: {said}");
    let sent: HashSet<Vec<u8>> = (0..EVENTS).map(|number| body(&name(number), padding(number))).collect();
    for request in application.received() {
        assert!(sent.contains(&request.body), "{damage}: a body was delivered that nobody had sent");
    }
    met
}

/// What the process said, should the test fail.
struct Told<'a>(&'a dyn Fn() -> String);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the gateway's log:\n{}", (self.0)());
        }
    }
}

/// What the operator's port, which the log names, answers, if it does.
fn asked(log: &str, path: &str) -> Option<Answer> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut admins = lines.filter(|line| line["listener"] == "admin");
    let at: SocketAddr = admins.find_map(|line| line["address"].as_str()?.parse().ok())?;
    Request::new("GET", path).header("Authorization", "Bearer an-admin-token-for-tests").try_send(at).ok()
}

/// Not looked up in the file: whoever opens that repairs its log, and the gateway would find it mended.
fn dead_letters(log: &str) -> Option<usize> {
    let stats: serde_json::Value = serde_json::from_slice(&asked(log, "/inbox/stats")?.body).ok()?;
    usize::try_from(stats["dead"].as_u64()?).ok()
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("a byte");
}

fn zero(path: &Path, from: u64, length: usize) {
    let file = OpenOptions::new().write(true).open(path).expect("the file");
    file.write_all_at(&vec![0; length], from).expect("zeroes");
}

fn truncate(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).expect("the file").set_len(length).expect("truncated");
}

fn length(path: &Path) -> u64 {
    path.metadata().expect("the file").len()
}

#[test]
fn a_store_with_a_flipped_bit_anywhere_is_refused_or_accounts_for_every_event() {
    let whole = filled_and_stopped();
    let long = length(&whole.path("inbox/inbox.db"));
    let mut met = Vec::new();
    // All over the file, never the same place of a page.
    for step in 0..24 {
        let at = (long / 24) * step + (step * 331) % 8192;
        let folder = copied(&whole);
        flip(&folder.path("inbox/inbox.db"), at.min(long - 1));
        met.push(start_on(&folder, &format!("the byte at {at} of {long}")));
    }
    assert_eq!(met.len(), 24);
    // The content of an event is most of the file, and damage there costs that event alone.
    assert!(met.contains(&Met::Told), "{met:?}");
}

#[test]
fn a_store_that_was_cut_or_overwritten_is_refused_with_the_files_name_and_the_way_to_salvage_it() {
    let whole = filled_and_stopped();
    let long = length(&whole.path("inbox/inbox.db"));
    for to in [0, 100, 4096, 8192, long / 2, long - 8192] {
        let folder = copied(&whole);
        truncate(&folder.path("inbox/inbox.db"), to);
        assert_eq!(start_on(&folder, &format!("cut to {to} of {long}")), Met::Refused, "cut to {to} of {long}");
    }
    for (from, length) in [(0, 100), (0, 8192), (8192, 65536)] {
        let folder = copied(&whole);
        zero(&folder.path("inbox/inbox.db"), from, length);
        let damage = format!("{length} zeroes at {from}");
        assert_ne!(start_on(&folder, &damage), Met::Intact, "{damage}");
    }
    // The twin: what nobody has touched is delivered.
    assert_eq!(start_on(&copied(&whole), "nothing"), Met::Intact);
}

#[test]
fn a_damaged_log_of_a_killed_process_is_refused_and_an_undamaged_one_is_used() {
    let whole = filled(Gateway::kill);
    let log = |folder: &Folder| folder.path("inbox/inbox.db-wal");
    let long = length(&log(&whole));
    assert!(long > 100_000, "all of it is in the log: {long}");
    assert_eq!(start_on(&copied(&whole), "nothing"), Met::Intact);
    for at in [0, 17, 40, 32 + 24 + 100, long / 3, long / 2, long * 3 / 4] {
        let folder = copied(&whole);
        flip(&log(&folder), at);
        let damage = format!("the log's byte at {at} of {long}");
        assert_eq!(start_on(&folder, &damage), Met::Refused, "{damage}");
    }
    let folder = copied(&whole);
    zero(&log(&folder), 0, 32);
    assert_eq!(start_on(&folder, "a log without its head"), Met::Refused);
    for to in [0, 32, 40_000, long / 2, long - 1] {
        let folder = copied(&whole);
        truncate(&log(&folder), to);
        let damage = format!("the log cut to {to} of {long}");
        assert_eq!(start_on(&folder, &damage), Met::Refused, "{damage}");
    }
    let folder = copied(&whole);
    std::fs::remove_file(log(&folder)).expect("removed");
    assert_eq!(start_on(&folder, "no log"), Met::Refused);
    let folder = copied(&whole);
    flip(&log(&folder), long - 100);
    assert_eq!(start_on(&folder, "a flipped bit in the last commit"), Met::Refused);
}

#[test]
fn what_is_readable_of_a_refused_store_is_salvaged_beside_it_and_delivered() {
    let whole = filled(Gateway::kill);
    let long = length(&whole.path("inbox/inbox.db-wal"));
    let folder = copied(&whole);
    flip(&folder.path("inbox/inbox.db-wal"), long / 2);
    assert_eq!(start_on(&folder, "the log's middle"), Met::Refused);
    let (code, told, said) = hookward(&folder.0, &["inbox", "salvage", "--config", "gateway.toml"]);
    assert!(matches!(code, 0 | 1), "{code}: {told}{said}");

    let application = Upstream::start();
    let rest = format!("{}{}", upstream("app", &application, ""), source("shop", "app", ""));
    let text = configuration("", &rest).replace("path = \"inbox\"", "path = \"inbox.salvaged\"");
    let gateway = Gateway::start_in(Arc::new(folder), &text);
    // One bad page of the log costs the few whose newest words stood in it.
    let delivered = eventually("nothing is left to deliver", || {
        (counted(&gateway, "waiting") == 0).then(|| counted(&gateway, "delivered"))
    });
    assert!(delivered >= 50, "{delivered} of {EVENTS}: {told}{said}");
    let sent: HashSet<Vec<u8>> = (0..EVENTS).map(|number| body(&name(number), padding(number))).collect();
    assert!(application.received().iter().all(|request| sent.contains(&request.body)));
    // What was accepted is not accepted again.
    let again = (0..EVENTS)
        .filter(|number| event("shop", &name(*number), padding(*number)).send(gateway.public()).status == 202);
    assert!(again.count() <= EVENTS - 50);
    eprintln!("{delivered} of {EVENTS} events were salvaged: {told}{said}");
}
