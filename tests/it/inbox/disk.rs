//! A disk that is full, a file that somebody else has locked, folders that are none: senders hear to come again, the
//! operator hears why, and nothing that was acknowledged is lost or delivered over and over.

use super::stage::{body, configuration, event, ready, refused_for_now, source, store, upstream, wait_until_settled};
use crate::support::gateway::{BINARY, Folder, hookward};
use crate::support::{Gate, Gateway, PATIENCE, Reply, Upstream, eventually};
use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `sh -c SCRIPT` in the folder, with the gateway's own command as its arguments; SCRIPT ends in `exec "$@"`.
fn wrapped(command: &mut Command, before: &[&str], script: &str) {
    let mut words = before.to_vec();
    words.extend(["sh", "-c", script, "sh", BINARY, "run", "--config", "gateway.toml"]);
    let mut shell = Command::new(words[0]);
    shell.args(&words[1..]).current_dir(command.get_current_dir().expect("a folder"));
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    *command = shell;
}

/// A file limit sends SIGXFSZ before the write fails; a full disk does not.
fn without_sigxfsz(command: &mut Command) {
    wrapped(command, &[], "trap '' XFSZ; exec \"$@\"");
}

/// The upstream answers the third delivery and those after it when the gate is opened.
fn held_from_the_third(gate: &Gate) -> Upstream {
    let held = gate.clone();
    Upstream::with(move |_, number| match number {
        0 | 1 => Reply::Status(200),
        _ => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
    })
}

/// Two are delivered, two are at the upstream, when the disk is filled; what must hold from then until it is freed.
fn outlives_a_full_disk(
    gateway: &Gateway,
    application: &Upstream,
    gate: &Gate,
    fill: impl FnOnce(),
    free: impl FnOnce(),
) {
    let send = |name: &str| event("shop", name, 3000).send(gateway.public());
    for (number, name) in ["early-1", "early-2", "held-1", "held-2"].into_iter().enumerate() {
        assert_eq!(send(name).status, 202, "{name}");
        application.wait_for(number + 1);
    }
    wait_until_settled(gateway, 2);
    assert_eq!(ready(gateway).0, 200);

    fill();
    for name in ["refused-1", "refused-2"] {
        let answer = send(name);
        assert!(refused_for_now(&answer), "{answer:?}");
    }
    let (status, told) = ready(gateway);
    assert!(status == 503 && told.contains("inbox"), "{status} {told}");
    let failures = || gateway.metric("hookward_inbox_errors_total", &[]);
    let before = failures();
    gate.open();
    // That they were delivered cannot be written down, which is tried again and again; delivering them is not.
    eventually("writing fails repeatedly", || (failures() >= before + 3.0).then_some(()));
    assert_eq!(application.count(), 4);
    assert_eq!(ready(gateway).0, 503);

    free();
    eventually("it is ready again by itself", || (ready(gateway).0 == 200).then_some(()));
    assert_eq!(send("refused-1").status, 202, "what was refused is new");
    assert_eq!(send("held-1").status, 409, "what was accepted is not");
    application.wait_for(5);
    wait_until_settled(gateway, 5);
    let mut came: Vec<Vec<u8>> = application.received().into_iter().map(|request| request.body).collect();
    let mut due: Vec<Vec<u8>> =
        ["early-1", "early-2", "held-1", "held-2", "refused-1"].map(|name| body(name, 3000)).to_vec();
    came.sort();
    due.sort();
    assert!(came == due, "each of them once");
}

/// The files may grow no further: writes fail, as on a full disk.
fn limit_files(gateway: &Gateway, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).expect("a pid"));
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).expect("a limit");
}

#[test]
fn while_files_cannot_grow_senders_are_told_to_come_again_and_what_was_delivered_is_not_delivered_again() {
    let gate = Gate::default();
    let application = held_from_the_third(&gate);
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", "")));
    let gateway = Gateway::start_with(Default::default(), &text, without_sigxfsz);
    outlives_a_full_disk(
        &gateway,
        &application,
        &gate,
        || limit_files(&gateway, Some(1)),
        || limit_files(&gateway, None),
    );
    // And it is all on the disk: nothing is delivered again after a crash.
    let folder = gateway.kill();
    let gateway = Gateway::start_in(folder, &text);
    assert_eq!(event("shop", "held-2", 3000).send(gateway.public()).status, 409);
    assert_eq!(event("shop", "last", 0).send(gateway.public()).status, 202);
    assert_eq!(application.wait_for(6)[5].body, body("last", 0));
}

#[test]
fn a_process_told_to_stop_on_a_full_disk_ends_in_time_and_what_it_could_not_write_down_is_delivered_again() {
    let gate = Gate::default();
    let held = gate.clone();
    let application = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let rest = format!(
        "\n[limits]\ndrain_timeout = \"500ms\"\n{}{}",
        upstream("app", &application, ""),
        source("shop", "app", "")
    );
    let text = configuration("", &rest);
    let mut gateway = Gateway::start_with(Default::default(), &text, without_sigxfsz);
    for name in ["one", "two"] {
        assert_eq!(event("shop", name, 0).send(gateway.public()).status, 202);
    }
    application.wait_for(2);
    limit_files(&gateway, Some(1));
    gate.open();
    let failures = || gateway.metric("hookward_inbox_errors_total", &[]);
    eventually("writing fails", || (failures() >= 1.0).then_some(()));
    gateway.signal("TERM");
    gateway.wait_for_exit();
    assert_eq!(application.count(), 2);

    let gateway = Gateway::start_in(gateway.folder.clone(), &text);
    wait_until_settled(&gateway, 2);
    let copies = application.wait_for(4);
    for name in ["one", "two"] {
        let of_one: Vec<_> = copies.iter().filter(|copy| copy.body == body(name, 0)).collect();
        assert_eq!(of_one.len(), 2, "{name}");
        for id in ["x-request-id", "idempotency-key"] {
            assert_eq!(of_one[0].header(id), of_one[1].header(id), "{name}: {id}");
        }
    }
}

#[test]
fn a_source_that_is_refused_for_its_oldest_delivery_is_named_in_the_log_and_so_is_the_end_of_it() {
    let gate = Gate::default();
    let held = gate.clone();
    let application = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let rest = upstream("app", &application, "timeout = \"60s\"") + &source("shop", "app", "");
    let gateway = Gateway::start_in(Default::default(), &configuration("max_age = \"1s\"", &rest));
    assert_eq!(event("shop", "old", 0).send(gateway.public()).status, 202);
    application.wait_for(1);
    let told = gateway.wait_for_log("has waited for longer than [inbox] max_age: more of it is refused with 503");
    assert!(told.contains("shop"), "{told}");
    eventually("it is refused", || refused_for_now(&event("shop", "new", 0).send(gateway.public())).then_some(()));
    gate.open();
    gateway.wait_for_log("nothing of this source has waited for longer than max_age any more");
    eventually("it is taken", || (event("shop", "newer", 0).send(gateway.public()).status == 202).then_some(()));
}

/// Whether this machine lets a test mount a file system that only the test sees.
fn may_mount(folder: &Folder) -> bool {
    std::fs::create_dir_all(folder.path("inbox")).expect("a folder");
    let tried =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs", "inbox"]).current_dir(&folder.0).output();
    let told = match tried {
        Ok(done) if done.status.success() => return true,
        Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    eprintln!("\nNOT TESTED: mounting is not permitted here, and a small file system was to be filled: {told}\n");
    false
}

fn on_a_small_file_system(command: &mut Command, options: &str) {
    let script = format!("mount -t tmpfs -o {options} tmpfs inbox && exec \"$@\"");
    wrapped(command, &["unshare", "-rm"], &script);
}

/// The inbox's folder as the gateway sees it.
fn seen_by(gateway: &Gateway) -> PathBuf {
    let folder = gateway.folder.path("inbox");
    Path::new(&format!("/proc/{}/root", gateway.pid())).join(folder.strip_prefix("/").expect("an absolute path"))
}

#[test]
fn on_a_file_system_that_runs_full_senders_are_told_to_come_again_and_what_was_delivered_is_not_delivered_again() {
    let folder = Arc::new(Folder::new());
    if !may_mount(&folder) {
        return;
    }
    let gate = Gate::default();
    let application = held_from_the_third(&gate);
    let text = configuration(
        "min_free = \"0B\"",
        &format!("{}{}", upstream("app", &application, ""), source("shop", "app", "")),
    );
    let gateway = Gateway::start_with(folder, &text, |command| on_a_small_file_system(command, "size=4m"));
    let inbox = seen_by(&gateway);
    let ballast = inbox.join("ballast");
    outlives_a_full_disk(
        &gateway,
        &application,
        &gate,
        || {
            let mut file = File::create(&ballast).expect("a file");
            while file.write_all(&[0x5a; 512]).is_ok() {}
        },
        || std::fs::remove_file(&ballast).expect("removed"),
    );
}

#[test]
fn a_start_on_a_file_system_without_room_says_so_and_with_room_it_starts() {
    for (options, what) in [("size=4k", "bytes"), ("size=4m,nr_inodes=2", "files")] {
        let folder = Arc::new(Folder::new());
        if !may_mount(&folder) {
            return;
        }
        let application = Upstream::start();
        folder.write(
            "gateway.toml",
            configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", ""))),
        );
        let mut command = Command::new("true");
        command.current_dir(&folder.0);
        on_a_small_file_system(&mut command, options);
        let done = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(78), "{what}: {said}");
        assert!(said.contains("/inbox") && !said.contains("panicked"), "{what}: {said}");
        assert!(said.contains("full") || said.contains("No space left"), "{what}: {said}");
    }
}

#[test]
fn a_file_that_is_locked_for_a_moment_delays_the_sender_and_one_locked_for_long_refuses_it_for_now() {
    let application = Upstream::start();
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", "")));
    let gateway = Gateway::start_in(Default::default(), &text);
    let to = gateway.public();
    let other = Connection::open(store(&gateway.folder)).expect("the store opens");

    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let sender = std::thread::spawn(move || event("shop", "patient", 0).send(to));
    // It is at the writer once it is counted; half a second of waiting is the fault itself.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!sender.is_finished(), "nothing is acknowledged that is not stored");
    other.execute_batch("COMMIT").expect("released");
    assert_eq!(sender.join().expect("a sender").status, 202);
    application.wait_for(1);

    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let begun = Instant::now();
    let answer = event("shop", "refused", 0).send(to);
    assert!(refused_for_now(&answer), "{answer:?}");
    assert!(begun.elapsed() < PATIENCE / 2, "it waited {:?}", begun.elapsed());
    // A provider that tries again at once finds no second way in.
    let again = event("shop", "refused", 0).send(to);
    assert!(refused_for_now(&again), "{again:?}");
    assert_eq!(ready(&gateway).0, 503);
    other.execute_batch("COMMIT").expect("released");
    eventually("it is ready again by itself", || (ready(&gateway).0 == 200).then_some(()));
    let answer = eventually("the retry passes", || {
        let answer = event("shop", "refused", 0).send(to);
        (!refused_for_now(&answer)).then_some(answer)
    });
    assert!(matches!(answer.status, 202 | 409), "{answer:?}");
    application.wait_for(2);
    assert_eq!(event("shop", "last", 0).send(to).status, 202);
    let bodies: Vec<Vec<u8>> = application.wait_for(3).into_iter().map(|request| request.body).collect();
    assert!(bodies == ["patient", "refused", "last"].map(|name| body(name, 0)), "each of them once");
}

#[test]
fn a_reader_that_forgot_its_transaction_stops_neither_senders_nor_deliveries() {
    let application = Upstream::start();
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", "")));
    let gateway = Gateway::start_in(Default::default(), &text);
    let other = Connection::open(store(&gateway.folder)).expect("the store opens");
    other.execute_batch("BEGIN; SELECT count(*) FROM deliveries").expect("a snapshot");
    for number in 0..20 {
        assert_eq!(event("shop", &number.to_string(), 0).send(gateway.public()).status, 202);
    }
    application.wait_for(20);
    let seen: i64 = other.query_row("SELECT count(*) FROM deliveries", [], |row| row.get(0)).expect("a count");
    assert_eq!(seen, 0);
}

#[test]
fn a_second_process_on_one_inbox_does_not_start_and_says_why_and_the_first_goes_on() {
    let application = Upstream::start();
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", "")));
    let gateway = Gateway::start_in(Default::default(), &text);
    assert_eq!(event("shop", "before", 0).send(gateway.public()).status, 202);
    let refused = |folder: &Folder| {
        let (code, _, said) = hookward(&folder.0, &["run", "--config", "gateway.toml"]);
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("/inbox: another process has this inbox open"), "{said}");
    };
    refused(&gateway.folder);
    // Nor by another name of the folder.
    let folder = Folder::new();
    std::os::unix::fs::symlink(gateway.folder.path("inbox"), folder.path("inbox")).expect("a link");
    folder.write("gateway.toml", &text);
    refused(&folder);
    assert_eq!(event("shop", "after", 0).send(gateway.public()).status, 202);
    assert_eq!(event("shop", "before", 0).send(gateway.public()).status, 409);
    application.wait_for(2);
}

#[test]
fn a_folder_that_cannot_be_one_is_named_at_the_start_with_what_is_wrong_with_it() {
    let application = Upstream::start();
    let rest = format!("{}{}", upstream("app", &application, ""), source("shop", "app", ""));
    let started = |folder: &Folder, path: &str, before: &[&str]| {
        let text = configuration("", &rest).replace("path = \"inbox\"", &format!("path = \"{path}\""));
        folder.write("gateway.toml", text);
        let mut words = before.to_vec();
        words.extend([BINARY, "run", "--config", "gateway.toml"]);
        let done = Command::new(words[0]).args(&words[1..]).current_dir(&folder.0).output().expect("it runs");
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    // Root may write wherever it likes, unless this is taken from it.
    let is_root = rustix::process::geteuid().is_root();
    let humble: &[&str] = if is_root { &["setpriv", "--bounding-set=-dac_override,-dac_read_search"] } else { &[] };

    let folder = Folder::new();
    folder.write("a-file", "something");
    folder.write("not-a-store/inbox.db", "a letter of more than sixteen bytes, and no database");
    folder.write("foreign/keep", "");
    Connection::open(folder.path("foreign/inbox.db"))
        .and_then(|file| file.execute_batch("CREATE TABLE t (x)"))
        .expect("a database");
    std::fs::create_dir(folder.path("closed")).expect("a folder");
    std::fs::set_permissions(folder.path("closed"), Permissions::from_mode(0o500)).expect("closed");
    for (path, names, why) in [
        ("a-file", "a-file", "is no folder"),
        ("a-file/inbox", "a-file/inbox", "Not a directory"),
        ("closed", "closed", "Permission denied"),
        ("closed/inbox", "closed/inbox", "Permission denied"),
        ("not-a-store", "not-a-store/inbox.db", "hookward inbox salvage"),
        ("foreign", "foreign/inbox.db", "not an inbox of hookward"),
    ] {
        let (code, said) = started(&folder, path, humble);
        assert_eq!(code, Some(78), "{path}: {said}");
        assert!(said.contains(names) && said.contains(why), "{path}: {said}");
        assert!(!said.contains("panicked"), "{path}: {said}");
    }
    std::fs::set_permissions(folder.path("closed"), Permissions::from_mode(0o700)).expect("open again");
    assert_eq!(std::fs::read(folder.path("a-file")).expect("the file"), b"something", "it was changed");
}

#[test]
fn a_file_that_is_moved_away_while_it_is_open_is_missed_and_back_in_its_place_it_is_used_again() {
    let app = Upstream::start();
    let text = configuration("", &format!("{}{}", upstream("app", &app, ""), source("shop", "app", "")));
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &text);
    assert_eq!(event("shop", "before", 0).send(gateway.public()).status, 202);
    app.wait_for(1);
    let (file, away) = (gateway.folder.path("inbox/inbox.db"), gateway.folder.path("inbox/away.db"));
    std::fs::rename(&file, &away).expect("moved away");
    gateway.wait_for_log("moved away or replaced");
    assert_eq!(event("shop", "meanwhile", 0).send(gateway.public()).status, 503);
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 503);
    std::fs::rename(&away, &file).expect("put back");
    gateway.wait_for_log("file is back");
    assert_eq!(event("shop", "meanwhile", 0).send(gateway.public()).status, 202);
    app.wait_for(2);
}
