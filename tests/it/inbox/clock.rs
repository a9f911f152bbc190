//! A wall clock that is set back or forward while deliveries wait: retries go on at their pace, and none comes early.
//! The clock is libfaketime's (package `faketime`); the monotonic one is left as it is, as it is by whoever sets a clock.

use super::stage::{configuration, event, number, source, upstream, wait_until_settled};
use crate::support::gateway::Folder;
use crate::support::{Gateway, Reply, Upstream, eventually};
use std::path::PathBuf;
use std::sync::Arc;

/// The library that the package's `faketime` preloads.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("a folder").map(|entry| entry.expect("an entry").path());
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is installed (Debian package faketime)")
}

/// A gateway whose wall clock is off by what the file `clock` of its folder says.
fn start(folder: Arc<Folder>, text: &str) -> Gateway {
    let clock = folder.path("clock");
    Gateway::start_with(folder, text, |command| {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    })
}

/// Refuses the first three attempts of every event whose id begins with `slow`.
fn reluctant() -> Upstream {
    Upstream::with(|request, _| match request.header("x-hookward-attempt").as_deref() {
        Some("1" | "2" | "3") if request.header("x-github-delivery").is_some_and(|id| id.starts_with("slow")) => {
            Reply::Status(503)
        }
        _ => Reply::Status(200),
    })
}

fn attempts(upstream: &Upstream, id: &str) -> usize {
    upstream.received().iter().filter(|request| request.header("x-github-delivery").as_deref() == Some(id)).count()
}

#[test]
fn retries_go_on_when_the_clock_is_set_back_by_a_year_while_they_wait_or_between_two_starts() {
    let application = reluctant();
    let retry = "retry = { attempts = 1000, first = \"300ms\", max = \"300ms\" }";
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", retry)));
    let folder = Arc::new(Folder::new());
    folder.write("clock", "+0");
    let gateway = start(folder.clone(), &text);
    assert_eq!(event("shop", "slow-1", 0).send(gateway.public()).status, 202);
    application.wait_for(1);
    folder.write("clock", "-365d");
    eventually("it is delivered at its fourth attempt", || (attempts(&application, "slow-1") == 4).then_some(()));

    // Again, and with a start between: what the file says is due lies a year ahead of the clock.
    folder.write("clock", "+0");
    let patient = text.replace("300ms", "2s");
    drop(gateway);
    let gateway = start(folder.clone(), &patient);
    assert_eq!(event("shop", "slow-2", 0).send(gateway.public()).status, 202);
    eventually("its first attempt has failed", || {
        (number(&folder, "SELECT count(*) FROM tasks WHERE state = 0 AND attempts = 1") == 1).then_some(())
    });
    gateway.kill();
    folder.write("clock", "-365d");
    let gateway = start(folder.clone(), &text);
    eventually("it is delivered at its fourth attempt", || (attempts(&application, "slow-2") == 4).then_some(()));
    // And what comes by that clock is accepted and delivered.
    assert_eq!(event("shop", "quick", 0).send(gateway.public()).status, 202);
    wait_until_settled(&gateway, 3);
}

#[test]
fn a_clock_that_is_set_forward_does_not_let_retries_come_before_their_time() {
    let application = reluctant();
    let retry = "retry = { attempts = 1000, first = \"1h\", max = \"1h\", jitter = 0.0 }";
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", retry)));
    let folder = Arc::new(Folder::new());
    folder.write("clock", "+0");
    let gateway = start(folder.clone(), &text);
    // Few, for an upstream that fails time after time is left alone.
    for number in 0..3 {
        assert_eq!(event("shop", &format!("slow-{number}"), 0).send(gateway.public()).status, 202);
    }
    let waiting = "SELECT count(*) FROM tasks WHERE state = 0 AND attempts = 1";
    eventually("all wait for their second attempt", || (number(&folder, waiting) == 3).then_some(()));
    folder.write("clock", "+1d");
    // What comes now is delivered now, and so are those after it: the dispatcher has looked for work many times.
    for number in 0..20 {
        assert_eq!(event("shop", &format!("quick-{number}"), 0).send(gateway.public()).status, 202);
        application.wait_for(4 + number);
    }
    assert_eq!(number(&folder, waiting), 3);
    assert_eq!(application.count(), 23);
    // Whoever starts it a day later finds their hour over.
    drop(gateway);
    let _gateway = start(folder.clone(), &text);
    application.wait_for(26);
}
