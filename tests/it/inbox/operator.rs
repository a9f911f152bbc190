//! An operator looks into the inbox and mends it: the same questions with the same answers, whether the gateway runs or
//! stands still.

use super::stage::{body, configuration, counted, event, source, upstream, wait_until_settled};
use crate::support::gateway::{BINARY, Folder, PLAIN, hookward};
use crate::support::upstream::{ClosedPort, Reply};
use crate::support::{Answer, Gateway, Request, Upstream, eventually, sign};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const TOKEN: &str = "Bearer an-admin-token-for-tests";

type Said = (i32, String, String);

/// Of a gateway that runs on ports that were free.
fn ask(gateway: &Gateway, arguments: &[&str]) -> Said {
    let port = format!("http://{}", gateway.address("admin"));
    hookward(&gateway.folder.0, &[&["inbox", "--admin", &port], arguments].concat())
}

/// Of the file.
fn ask_file(folder: &Folder, arguments: &[&str]) -> Said {
    hookward(&folder.0, &[&["inbox"], arguments].concat())
}

fn stop(mut gateway: Gateway) -> Arc<Folder> {
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().success());
    gateway.folder.clone()
}

fn objects(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Refuses for good whatever is called gone, until it is mended.
fn moody() -> (Upstream, Arc<AtomicBool>) {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = mended.clone();
    let upstream = Upstream::with(move |request, _| {
        let is_gone = request.body.windows(4).any(|window| window == b"gone");
        Reply::Status(if is_gone && !is_mended.load(Ordering::SeqCst) { 410 } else { 200 })
    });
    (upstream, mended)
}

fn send(gateway: &Gateway, source: &str, names: &[&str]) {
    for name in names {
        assert_eq!(event(source, name, 0).send(gateway.public()).status, 202, "{name}");
    }
}

fn wait_for(gateway: &Gateway, state: &str, count: u64) {
    eventually(&format!("{count} are {state}"), || (counted(gateway, state) == count).then_some(()));
}

/// What a terminal obeys, or a person misreads.
fn assert_harmless(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2028}'));
    assert_eq!(bad, None, "{text:?}");
}

#[test]
fn a_gateway_that_runs_and_one_that_stands_still_give_the_same_answers() {
    let (app, _) = moody();
    let gateway = Gateway::start_in(
        Arc::default(),
        &configuration("", &(upstream("app", &app, "") + &source("shop", "app", ""))),
    );
    send(&gateway, "shop", &["one", "gone-2", "three"]);
    wait_for(&gateway, "dead", 1);
    wait_until_settled(&gateway, 2);
    let questions: [&[&str]; 9] = [
        &["list", "--json"],
        &["list"],
        &[
            "list",
            "--state",
            "dead",
            "--source",
            "shop",
            "--upstream",
            "app",
            "--since",
            "1h",
            "--event",
            "pu*",
            "--json",
        ],
        &["list", "--id", "three", "--oldest", "--json"],
        &["show", "gone-2"],
        &["show", "gone-2", "--json"],
        &["show", "1", "--body"],
        &["export"],
        &["retry", "--state", "dead", "--dry-run"],
    ];
    let running = questions.map(|question| ask(&gateway, question));
    let (_, stats, _) = ask(&gateway, &["stats", "--json"]);
    let folder = stop(gateway);
    for (question, answer) in questions.iter().zip(running) {
        assert_eq!(answer.0, 0, "{question:?}: {answer:?}");
        assert_eq!(ask_file(&folder, question), answer, "{question:?}");
    }
    let (_, later, _) = ask_file(&folder, &["stats", "--json"]);
    let [stats, later] = [stats, later].map(|stats| objects(&stats).remove(0));
    assert_eq!(stats["tasks"], later["tasks"]);
    assert_eq!((&stats["waiting"], &stats["dead"]), (&0.into(), &1.into()));

    let rows = objects(&ask_file(&folder, &["list", "--json"]).1);
    let ids: Vec<_> = rows.iter().map(|row| row["event_id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["three", "gone-2", "one"]);
    let dead = &rows[1];
    assert_eq!((&dead["state"], &dead["status"], &dead["attempts"]), (&"dead".into(), &410.into(), &1.into()));
    let (_, shown, _) = ask_file(&folder, &["show", "1", "--json"]);
    let shown = objects(&shown).remove(0);
    assert_eq!(shown["body_base64"], STANDARD.encode(body("one", 0)));
    assert_eq!((&shown["method"], &shown["path"]), (&"POST".into(), &"/shop".into()));
    let (_, table, _) = ask_file(&folder, &["list", "--state", "dead"]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].starts_with("received              request id"), "{table}");
    assert!(lines[1].contains("  shop    push   app       dead   1         20"), "{table}");
}

#[test]
fn a_dead_letter_that_is_retried_arrives_under_a_key_of_its_own() {
    let (app, mended) = moody();
    let text = configuration("", &(upstream("app", &app, "") + &source("shop", "app", "")));
    let gateway = Gateway::start_in(Arc::default(), &text);
    send(&gateway, "shop", &["gone-1", "gone-2"]);
    wait_for(&gateway, "dead", 2);
    // The two were sent side by side.
    let first = app.received().into_iter().find(|received| received.body == body("gone-1", 0)).expect("an attempt");
    mended.store(true, Ordering::SeqCst);

    // While it runs: at once.
    assert_eq!(ask(&gateway, &["retry", "gone-1"]), (0, "1 retried\n".to_owned(), String::new()));
    wait_until_settled(&gateway, 1);
    let again = app.wait_for(3).remove(2);
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("x-request-id"), first.header("x-request-id"));
    let key = first.header("idempotency-key").expect("a key");
    assert_eq!(again.header("idempotency-key"), Some(format!("{key}:1")));
    let (_, row, _) = ask(&gateway, &["list", "--id", "gone-1", "--json"]);
    assert_eq!(objects(&row)[0]["generation"], 1);

    // While it stands still: at the next start.
    let folder = stop(gateway);
    assert_eq!(ask_file(&folder, &["retry", "--all"]), (0, "1 retried\n".to_owned(), String::new()));
    let (code, _, said) = ask_file(&folder, &["retry", "--all"]);
    assert_eq!((code, &*said), (1, "without --state and without an id dead letters alone are looked for\n"));
    let gateway = Gateway::start_in(folder, &text);
    wait_until_settled(&gateway, 2);
    assert_eq!(app.wait_for(4)[3].body, body("gone-2", 0));
}

#[test]
fn what_is_discarded_is_not_delivered_and_what_comes_after_it_is() {
    let port = ClosedPort::new();
    let rest = format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n{}", port.address(), source("shop", "app", ""));
    let gateway = Gateway::start_in(Arc::default(), &configuration("", &rest));
    send(&gateway, "shop", &["one", "two"]);
    // Nobody asked for the waiting ones: without --state it is about dead letters.
    let (code, out, _) = ask(&gateway, &["discard", "--source", "shop"]);
    assert_eq!((code, out.as_str()), (1, "0 discarded\n"));
    let (code, out, _) =
        ask(&gateway, &["discard", "--source", "shop", "--state", "waiting", "--until", "0s", "--json"]);
    assert_eq!(code, 0);
    assert_eq!(objects(&out)[0]["changed"], 2);
    assert_eq!((counted(&gateway, "discarded"), counted(&gateway, "waiting")), (2, 0));
    let app = port.open(|_, _| Reply::Status(200));
    send(&gateway, "shop", &["three"]);
    // By then the upstream may be thought to be down: it is due at once by an operator's word.
    eventually("the third is delivered", || {
        ask(&gateway, &["retry", "three"]);
        (counted(&gateway, "delivered") >= 1).then_some(())
    });
    assert!(app.received().iter().all(|received| received.body == body("three", 0)));
    // What was given up can be taken up again.
    assert_eq!(ask(&gateway, &["retry", "--state", "discarded"]).1, "2 retried\n");
    eventually("all are delivered", || (counted(&gateway, "delivered") == 3).then_some(()));
}

/// A sender whose customers choose the ids (those with control characters are none); and a header that is no text.
fn hostile(gateway: &Gateway) -> Answer {
    let body = "{\"id\":\"--all\\u202etxt' OR 1\",\"type\":\"paid\\u2028dead\",\"x\":\"\u{9b}2J\u{7f}\u{202e}\"}";
    let signature = sign::stripe("a-secret-of-28-letters-0001", sign::now(), body.as_bytes());
    Request::post("/stripe?token=needle-in-the-query&x=1", body)
        .header("Stripe-Signature", signature)
        .header("X-Odd", b"\xff\xc2\x9b2J")
        .header("Authorization", "Bearer needle-in-a-header")
        .header("Cookie", "session=needle-in-a-cookie")
        .header("X-Shop-Key", "needle-in-a-key")
        .send(gateway.public())
}

const STRIPE: &str = "\n[sources.stripe]\npath = \"/stripe\"\nprovider = \"stripe\"\n\
    secrets = [{ value = \"a-secret-of-28-letters-0001\" }]\nupstream = \"app\"\ndelivery = \"inbox\"\n";

#[test]
fn nothing_that_a_sender_chose_drives_the_operators_terminal_and_no_credential_is_shown_unasked() {
    let app = Upstream::start();
    let gateway = Gateway::start_in(Arc::default(), &configuration("", &(upstream("app", &app, "") + STRIPE)));
    assert_eq!(hostile(&gateway).status, 202);
    wait_until_settled(&gateway, 1);
    for question in [
        &["list"][..],
        &["list", "--json"],
        &["show", "1"],
        &["show", "1", "--json"],
        &["export"],
        &["stats"],
        &["stats", "--json"],
    ] {
        for revealing in [false, true] {
            let is_shown = matches!(question[0], "show" | "export");
            if revealing && !is_shown {
                continue;
            }
            let question: Vec<_> = question.iter().copied().chain(revealing.then_some("--reveal")).collect();
            let (code, out, said) = ask(&gateway, &question);
            assert_eq!(code, 0, "{question:?}: {said}");
            assert_harmless(&out);
            assert_harmless(&said);
            let needles = out.matches("needle-in-a").count() + out.matches("needle-in-the-query").count();
            assert_eq!(needles, if revealing { 4 } else { 0 }, "{question:?}: {out}");
        }
    }
    let (_, out, _) = ask(&gateway, &["show", "1"]);
    assert!(out.contains("\nevent       paid\\u{2028}dead\nevent id    --all\\u{202e}txt' OR 1\n"), "{out}");
    assert!(out.contains("POST /stripe?token=…&x=1\n"), "{out}");
    assert!(out.contains("\nauthorization: (masked; --reveal shows it)\n"), "{out}");
    let (_, out, _) = ask(&gateway, &["show", "1", "--json"]);
    let shown = objects(&out).remove(0);
    assert_eq!(shown["event_id"], "--all\u{202e}txt' OR 1");
    let odd =
        shown["headers"].as_array().expect("headers").iter().find(|header| header["name"] == "x-odd").expect("it");
    assert_eq!(odd["value_base64"], STANDARD.encode(b"\xff\xc2\x9b2J"));
    // Found by its own name, though it looks like a flag.
    let id = shown["event_id"].as_str().expect("an id");
    assert_eq!(ask(&gateway, &["show", "--json", "--", id]).1, out);
    assert_eq!(ask(&gateway, &["show", "--", "--all"]).0, 1);
    assert_eq!(ask(&gateway, &["retry", "--dry-run", "--", "--all"]).0, 1);
}

#[test]
fn the_operators_port_wants_the_token_the_right_method_and_words_that_it_knows() {
    let (app, _) = moody();
    let gateway = Gateway::start_in(
        Arc::default(),
        &configuration("", &(upstream("app", &app, "") + &source("shop", "app", ""))),
    );
    send(&gateway, "shop", &["gone-1"]);
    wait_for(&gateway, "dead", 1);
    let port = gateway.address("admin");
    let with = |method: &str, path: &str| Request::new(method, path).header("Authorization", TOKEN).send(port);
    for path in ["/inbox/deliveries", "/inbox/deliveries/1", "/inbox/export", "/inbox/stats", "/inbox/nothing"] {
        assert_eq!(Request::new("GET", path).send(port).status, 401, "{path}");
    }
    for path in ["/inbox/retry?all=1", "/inbox/discard?all=1"] {
        assert_eq!(Request::new("POST", path).send(port).status, 401, "{path}");
        let forged = Request::new("POST", path).header("Authorization", "Bearer an-admin-token-for-testz");
        assert_eq!(forged.send(port).status, 401, "{path}");
        for method in ["GET", "PUT", "DELETE"] {
            let answer = with(method, path);
            assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method} {path}");
        }
    }
    for path in ["/inbox/deliveries", "/inbox/export", "/inbox/stats", "/inbox/deliveries/1"] {
        let answer = with("POST", path);
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{path}");
        assert_eq!(with("GET", path).status, 200, "{path}");
    }
    for (method, target, words) in [
        ("POST", "/inbox/retry", "retry what? Name ids or a filter, or say --all (all=1) for every dead letter"),
        (
            "POST",
            "/inbox/discard?dry_run=1",
            "discard what? Name ids or a filter, or say --all (all=1) for every dead letter",
        ),
        ("POST", "/inbox/discard?sorce=shop", "\"sorce\" is no parameter of this"),
        ("GET", "/inbox/deliveries?limit=0", "limit: \"0\" is not a number above 0"),
        ("GET", "/inbox/deliveries?after=x", "after: \"x\" is not a cursor"),
        ("GET", "/inbox/deliveries/%ff", "\"%ff\" is no UTF-8"),
    ] {
        let answer = with(method, target);
        assert_eq!((answer.status, answer.text().trim_end()), (400, words), "{target}");
    }
    assert_eq!(with("GET", "/inbox/deliveries/nobody").status, 404);
    assert_eq!(with("GET", "/inbox/nothing").status, 404);
    assert_eq!(with("GET", "/inbox/deliveries?id=%27%20OR%201%3D1%20--").text(), "{\"deliveries\":[],\"next\":null}\n");
    // None of it changed anything.
    assert_eq!(counted(&gateway, "dead"), 1);
    let changed = with("POST", "/inbox/discard?state=dead");
    assert_eq!(serde_json::from_slice::<Value>(&changed.body).expect("JSON")["changed"], 1);
}

#[test]
fn an_export_is_whole_and_for_its_owner_alone() {
    let app = Upstream::start();
    let gateway = Gateway::start_in(
        Arc::default(),
        &configuration("", &(upstream("app", &app, "") + &source("shop", "app", "") + STRIPE)),
    );
    let names: Vec<String> = (0..7).map(|number| format!("n-{number}")).collect();
    for name in &names {
        // Together more than one page holds.
        assert_eq!(event("shop", name, 900_000).send(gateway.public()).status, 202);
    }
    assert_eq!(hostile(&gateway).status, 202);
    wait_until_settled(&gateway, 8);
    let (code, out, said) = ask(&gateway, &["export", "--output", "kept.jsonl"]);
    assert_eq!((code, out.as_str()), (0, ""), "{said}");
    assert_eq!(said, "of 8 deliveries 1 have credentials, which were masked; --reveal writes them too\n");
    let file = gateway.folder.path("kept.jsonl");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    let exported = objects(&fs::read_to_string(&file).expect("text"));
    let ids: Vec<_> = exported.iter().take(7).map(|object| object["event_id"].as_str().expect("an id")).collect();
    assert_eq!(ids, names);
    for (object, name) in exported.iter().zip(&names) {
        assert_eq!(object["body_base64"], STANDARD.encode(body(name, 900_000)), "{name}");
        assert_eq!((&object["method"], &object["path"]), (&"POST".into(), &"/shop".into()));
        let headers = object["headers"].as_array().expect("headers");
        let signature = headers.iter().find(|header| header["name"] == "x-hub-signature-256").expect("a signature");
        assert_eq!(signature["value"], sign::github(super::stage::SECRET, &body(name, 900_000)));
        assert_eq!(object["tasks"][0]["state"], "delivered");
    }
    // Never over what is there.
    let (code, _, said) = ask(&gateway, &["export", "--output", "kept.jsonl"]);
    assert_eq!(code, 1);
    assert!(said.starts_with("kept.jsonl: "), "{said}");
    assert_eq!(objects(&ask(&gateway, &["export", "--limit", "3"]).1).len(), 3);
    assert_eq!(ask(&gateway, &["export", "--state", "dead"]).0, 1);
    let folder = stop(gateway);
    assert_eq!(objects(&ask_file(&folder, &["export"]).1), exported);
}

#[test]
fn what_cannot_be_asked_is_said_with_what_to_do() {
    let folder = Arc::new(Folder::new());
    let said = |(code, _, said): Said| (code, said.trim_end().to_owned());
    assert_eq!(ask_file(&folder, &["list"]).0, 78);
    // A port that no other test listens on, so that the command finds it in the configuration.
    let pid = std::process::id();
    let admin = format!("127.77.{}.{}:9077", pid >> 8 & 0xff, 1 + pid % 250);
    let app = Upstream::start();
    let rest = upstream("app", &app, "")
        + "\n[sources.shop]\npath = \"/shop\"\nprovider = \"github\"\nsecrets = [{ env = \"HOOKWARD_TESTS_NEVER_SET\" }]\n\
           upstream = \"app\"\ndelivery = \"inbox\"\n";
    let with_admin = |admin: &str| {
        let listeners = PLAIN.split("[admin]").next().expect("listeners");
        format!("{listeners}\n{admin}\n[log]\nformat = \"json\"\n{rest}")
    };
    let full =
        with_admin(&format!("[admin]\naddress = \"{admin}\"\ntoken = {{ value = \"an-admin-token-for-tests\" }}"));
    folder.write("gateway.toml", &full);
    let (code, words) = said(ask_file(&folder, &["list"]));
    assert_eq!(code, 1);
    assert!(words.contains("there is no inbox here: is this the gateway's configuration"), "{words}");
    assert!(!folder.path("inbox").exists());

    let mut gateway = Gateway::start_with(folder.clone(), &full, |command| {
        command.env("HOOKWARD_TESTS_NEVER_SET", super::stage::SECRET);
    });
    send(&gateway, "shop", &["one"]);
    wait_until_settled(&gateway, 1);
    // This shell has no secret of any source.
    let (code, out, _) = ask_file(&folder, &["list", "--json"]);
    assert_eq!((code, objects(&out).len()), (0, 1));
    assert_eq!(
        said(ask_file(&folder, &["list", "--source", "nobody"])),
        (1, "nothing in the inbox matches".to_owned())
    );
    assert_eq!(said(ask_file(&folder, &["show", "nobody"])), (1, "nothing in the inbox has this id".to_owned()));
    let (code, words) = said(ask_file(&folder, &["retry"]));
    assert_eq!(
        (code, words.as_str()),
        (64, "retry what? Name ids or a filter, or say --all (all=1) for every dead letter")
    );
    for verb in ["retry", "discard"] {
        let (code, words) = said(ask_file(&folder, &[verb, "--source", "shop"]));
        assert_eq!((code, words.as_str()), (1, "without --state and without an id dead letters alone are looked for"));
        assert_eq!(said(ask_file(&folder, &[verb, "--state", "waiting"])), (1, String::new()), "{verb}");
    }
    let (code, words) = said(ask_file(&folder, &["export", "--output", "gateway.toml"]));
    assert_eq!((code, words.as_str()), (1, "gateway.toml: is there already, and is not written over: name a new file"));
    assert_eq!(ask_file(&folder, &["list", "--since", "yesterday"]).0, 64);
    assert_eq!(ask_file(&folder, &["list", "--state", "alive"]).0, 64);
    assert_eq!(ask_file(&folder, &["retry", "--all", "--rate", "fast"]).0, 64);

    for (admin, code, words) in [
        ("", 78, "can only be asked through its operator's port: write [admin]"),
        (&*format!("[admin]\naddress = \"{admin}\""), 78, "none is configured: write [admin] token"),
        (
            &format!("[admin]\naddress = \"{admin}\"\ntoken = {{ value = \"another-token-of-this-length\" }}"),
            78,
            "does not take the [admin] token of this configuration",
        ),
        (
            "[admin]\naddress = \"127.77.255.254:9078\"\ntoken = { value = \"an-admin-token-for-tests\" }",
            1,
            "the operator's port does not answer: 127.77.255.254:9078: ",
        ),
    ] {
        folder.write("gateway.toml", with_admin(admin));
        let (exit, said) = said(ask_file(&folder, &["stats"]));
        assert_eq!(exit, code, "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!said.contains("another-token"), "{said}");
    }
    // Its token is what a port is asked with.
    let unset =
        with_admin(&format!("[admin]\naddress = \"{admin}\"\ntoken = {{ env = \"HOOKWARD_TESTS_NEVER_SET\" }}"));
    folder.write("gateway.toml", &unset);
    let (code, words) = said(ask_file(&folder, &["stats"]));
    assert_eq!(code, 78);
    assert!(words.contains("admin.token: environment variable HOOKWARD_TESTS_NEVER_SET is not set"), "{words}");
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().success());
    // Nobody holds it any more, and no port is needed.
    assert_eq!(ask_file(&folder, &["stats"]).0, 0);
}

#[test]
fn many_ids_at_once_are_asked_for_in_several_questions() {
    let (app, _) = moody();
    let gateway = Gateway::start_in(
        Arc::default(),
        &configuration("", &(upstream("app", &app, "") + &source("shop", "app", ""))),
    );
    let names: Vec<String> = (0..100).map(|number| format!("gone-{number}-{}", "x".repeat(110))).collect();
    for name in &names {
        assert_eq!(event("shop", name, 0).send(gateway.public()).status, 202);
    }
    wait_for(&gateway, "dead", 100);
    let mut arguments = vec!["discard"];
    arguments.extend(names.iter().map(String::as_str));
    let (code, out, said) = ask(&gateway, &arguments);
    assert_eq!((code, out.as_str()), (0, "100 discarded\n"), "{said}");
    let long = "y".repeat(9_000);
    assert_eq!(ask(&gateway, &["show", &long]).0, 1);
    assert_eq!(ask(&gateway, &["discard", &long]).0, 64);
}

#[test]
fn a_list_that_nobody_reads_to_its_end_leaves_the_store_closed() {
    let (app, _) = moody();
    let gateway = Gateway::start_in(
        Arc::default(),
        &configuration("", &(upstream("app", &app, "") + &source("shop", "app", ""))),
    );
    send(&gateway, "shop", &["one", "two"]);
    wait_until_settled(&gateway, 2);
    let folder = stop(gateway);
    for question in [&["list"][..], &["list", "--json"], &["show", "1"], &["export"], &["stats"]] {
        let mut command = Command::new(BINARY);
        command.current_dir(&folder.0).arg("inbox").args(question).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary starts");
        drop(child.stdout.take());
        assert_eq!(child.wait().expect("a child").code(), Some(0), "{question:?}");
        // Its log was written back, which is the last thing that is done.
        let log = fs::metadata(folder.path("inbox/inbox.db-wal")).map_or(0, |log| log.len());
        assert_eq!(log, 0, "{question:?}");
    }
}
