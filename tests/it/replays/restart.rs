//! `state.kind = "disk"`: what was accepted before the process ended, however it ended, is refused after.

use super::{github, refused_for_now, source, stripe};
use crate::support::gateway::{BINARY, Folder, PLAIN, hookward};
use crate::support::{Gate, Gateway, Reply, Upstream, eventually, sign};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::process::{Command, Stdio};
use std::sync::Arc;

const DISK: &str = "[state]\nkind = \"disk\"\npath = \"state/claims.db\"\n";

fn configuration(upstream: &Upstream, state: &str) -> String {
    format!("{PLAIN}{state}{}{}{}", upstream.table(), source("stripe", "stripe", ""), source("github", "github", ""))
}

fn survives(state: &str, end: impl FnOnce(Gateway) -> Arc<Folder>) {
    let upstream = Upstream::start();
    let configuration = configuration(&upstream, state);
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &configuration);
    let signed = stripe("/stripe", sign::now() - 60, "evt_1");
    let unsigned_time = github("/github", b"{}");
    assert_eq!(signed.send(gateway.public()).status, 200);
    assert_eq!(unsigned_time.send(gateway.public()).status, 200);

    let gateway = Gateway::start_in(end(gateway), &configuration);
    assert_eq!(gateway.metric("hookward_claims", &[("source", "stripe")]), 1.0);
    assert_eq!(signed.send(gateway.public()).status, 409);
    assert_eq!(unsigned_time.send(gateway.public()).status, 202);
    // The event's id is remembered too, and what is new passes.
    assert_eq!(stripe("/stripe", sign::now(), "evt_1").send(gateway.public()).status, 202);
    assert_eq!(stripe("/stripe", sign::now(), "evt_2").send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 3);
}

#[test]
fn a_delivery_accepted_before_kill_9_is_refused_after_it() {
    survives(DISK, Gateway::kill);
}

#[test]
fn a_delivery_accepted_before_kill_9_is_refused_after_it_with_every_commit_synced() {
    survives(&format!("{DISK}sync = \"power\"\n"), Gateway::kill);
}

#[test]
fn a_delivery_accepted_before_sigterm_is_refused_after_it() {
    survives(DISK, |mut gateway| {
        gateway.signal("TERM");
        assert!(gateway.wait_for_exit().success());
        gateway.folder.clone()
    });
}

#[test]
fn what_was_in_flight_at_kill_9_passes_when_it_is_sent_again() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, number| match number {
        0 => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    });
    let configuration = configuration(&upstream, DISK);
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &configuration);
    let delivery = stripe("/stripe", sign::now(), "evt_1");
    let (to, first) = (gateway.public(), delivery.clone());
    let sender = std::thread::spawn(move || first.try_send(to));
    upstream.wait_for(1);
    let folder = gateway.kill();
    assert!(sender.join().expect("a sender").is_err(), "the sender heard nothing");
    gate.open();

    let gateway = Gateway::start_in(folder, &configuration);
    assert_eq!(delivery.send(gateway.public()).status, 200);
    assert_eq!(delivery.send(gateway.public()).status, 409);
}

#[test]
fn a_second_process_on_one_state_file_does_not_start_and_says_why() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &configuration(&upstream, DISK));
    let (code, _, said) = hookward(&gateway.folder.0, &["run", "--config", "gateway.toml"]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("state/claims.db: another process serves from this state file"), "{said}");
    // Nor by another name of the file.
    let link = gateway.folder.path("link.db");
    std::os::unix::fs::symlink("state/claims.db", &link).expect("a link");
    let folder = Folder::new();
    let linked = DISK.replace("state/claims.db", &link.display().to_string());
    folder.write("gateway.toml", configuration(&upstream, &linked));
    let (code, _, said) = hookward(&folder.0, &["run", "--config", "gateway.toml"]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("state/claims.db: another process serves from this state file"), "{said}");
    // The first is unharmed.
    let delivery = stripe("/stripe", sign::now(), "evt_1");
    assert_eq!(delivery.send(gateway.public()).status, 200);
    assert_eq!(delivery.send(gateway.public()).status, 409);
}

#[test]
fn a_damaged_or_foreign_state_file_is_named_and_left_as_it_is() {
    let upstream = Upstream::start();
    for (content, expected) in [
        (b"".to_vec(), "the state file is damaged"),
        ([b"SQLite format 3\0".as_slice(), &[0x5a; 8192]].concat(), "the state file is damaged"),
        (b"not a database, but a letter of more than sixteen bytes".to_vec(), "state file"),
    ] {
        let folder = Folder::new();
        folder.write("gateway.toml", configuration(&upstream, DISK));
        let path = folder.write("state/claims.db", &content);
        let (code, _, said) = hookward(&folder.0, &["run", "--config", "gateway.toml"]);
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("state/claims.db") && said.contains(expected), "{said}");
        assert_eq!(std::fs::read(&path).expect("the file"), content, "it was changed");
    }
}

/// The file may grow no further: writes fail, as on a full disk.
fn limit_files(gateway: &Gateway, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).expect("a pid"));
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).expect("a limit");
}

#[test]
fn on_a_full_disk_the_upstreams_answer_is_relayed_the_operator_is_told_and_the_claim_is_made_good_later() {
    let upstream = Upstream::start();
    let folder = Arc::new(Folder::new());
    // A file limit sends SIGXFSZ before the write fails; a full disk does not.
    let gateway = Gateway::start_with(folder, &configuration(&upstream, DISK), |command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", BINARY, "run", "--config", "gateway.toml"]);
        shell.current_dir(command.get_current_dir().expect("a folder"));
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = shell;
    });
    assert_eq!(stripe("/stripe", sign::now(), "evt_1").send(gateway.public()).status, 200);
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 200);

    limit_files(&gateway, Some(1));
    let delivery = stripe("/stripe", sign::now(), "evt_2");
    let answer = delivery.send(gateway.public());
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "the upstream has done the work");
    assert!(gateway.metric("hookward_state_errors_total", &[]) >= 1.0);
    let ready = gateway.get("/readyz").expect("an answer");
    assert_eq!((ready.status, ready.text().as_str()), (503, "not ready: the state store does not work\n"));
    // It is not known as accepted yet, and it is not new either.
    assert!(refused_for_now(&delivery.send(gateway.public())));

    limit_files(&gateway, None);
    eventually("the store works again", || (gateway.get("/readyz")?.status == 200).then_some(()));
    eventually("the claim is made good", || (delivery.send(gateway.public()).status == 409).then_some(()));
    let folder = gateway.kill();
    let gateway = Gateway::start_in(folder, &configuration(&upstream, DISK));
    assert_eq!(delivery.send(gateway.public()).status, 409);
    assert_eq!(upstream.count(), 2);
}
