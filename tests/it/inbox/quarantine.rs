//! `quarantine = true`: a wrong secret costs no events, and nothing is accepted by it that would not have been.

use super::stage::{SECRET, configuration, event, source, store, upstream};
use crate::support::gateway::{Folder, hookward};
use crate::support::{Answer, Gateway, Request, Upstream, eventually, sign};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread;

const KEPT: &str = "quarantine = true";

/// Behind a trusted proxy, so that requests come from whom they say.
const BEHIND_A_PROXY: &str = r#"
[listeners.public]
address = "127.0.0.1:0"
trusted_proxies = ["127.0.0.1/32"]
[admin]
address = "127.0.0.1:0"
token = { value = "an-admin-token-for-tests" }
[log]
format = "json"
level = "debug"
"#;

fn start(text: &str) -> Gateway {
    Gateway::start_in(Arc::new(Folder::new()), text)
}

/// The same configuration with a secret that is not the sender's.
fn mistyped(text: &str) -> String {
    text.replace(SECRET, "a-secret-that-was-mistyped")
}

fn shop(application: &Upstream, more: &str) -> String {
    let app = upstream("app", application, "");
    configuration("", &format!("{app}{}", source("shop", "app", &format!("{KEPT}\n{more}"))))
}

fn ask(gateway: &Gateway, method: &str, path: &str) -> Answer {
    let token = "Bearer an-admin-token-for-tests";
    Request::new(method, path).header("Authorization", token).send(gateway.address("admin"))
}

fn reverify(gateway: &Gateway, source: &str) -> Value {
    let answer = ask(gateway, "POST", &format!("/inbox/reverify?source={source}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(&answer.text()).expect("JSON")
}

/// What is kept of a source, as committed.
fn kept(gateway: &Gateway, source: &str) -> u64 {
    let answer = ask(gateway, "GET", &format!("/inbox/quarantine?source={source}"));
    let told: Value = serde_json::from_str(&answer.text()).expect("JSON");
    told["quarantine"].as_array().expect("a list").iter().filter_map(|one| one["count"].as_u64()).sum()
}

fn wait_until_kept(gateway: &Gateway, source: &str, count: u64) {
    eventually(&format!("{count} are kept"), || (kept(gateway, source) == count).then_some(()));
}

fn counts(told: &Value) -> [u64; 4] {
    let refused = told["still_refused"].as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
    let count = |name: &str| told[name].as_u64().unwrap_or_else(|| panic!("{name}: {told}"));
    [count("accepted"), count("replays"), count("duplicates"), refused]
}

/// The event ids in order of acceptance.
fn accepted(gateway: &Gateway) -> Vec<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(store(&gateway.folder), flags).expect("the store opens");
    let mut select = file.prepare("SELECT event_id FROM deliveries ORDER BY seq").expect("a query");
    let ids = select.query_map([], |row| row.get(0)).expect("a query");
    ids.collect::<Result<_, _>>().expect("event ids")
}

#[test]
fn a_wrong_secret_costs_no_events_for_once_it_is_mended_they_are_judged_at_their_time_and_delivered_in_order() {
    let application = Upstream::start();
    // The signed times will be stale by the time the secret is right.
    let verify = "\n[sources.acme.verify]\nalgorithm = \"hmac-sha256\"\nmessage = \"{timestamp}.{body}\"\n\
         signature = { header = \"X-Signature\", encoding = \"hex\" }\n\
         timestamp = { header = \"X-Timestamp\", unit = \"s\", tolerance = \"5s\" }\nid = { json = \"/id\" }\n";
    let text = configuration(
        "",
        &format!(
            "{}\n[sources.acme]\npath = \"/acme/*\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n\
             delivery = \"inbox\"\n{KEPT}\n{verify}",
            upstream("app", &application, "max_in_flight = 1"),
        ),
    );
    let mut gateway = start(&mistyped(&text));
    let mut last = 0;
    let mut request_ids = Vec::new();
    for number in 0..10 {
        last = sign::now();
        let body = format!("{{\"id\":\"event-{number}\"}}");
        let stamp = last.to_string();
        let mac = sign::hmac_sha256(SECRET.as_bytes(), &[stamp.as_bytes(), b".", body.as_bytes()]);
        let sent = Request::post(&format!("/acme/{number}?x=%20"), body)
            .header("X-Timestamp", &stamp)
            .header("X-Signature", hex::encode(mac))
            .send(gateway.public());
        assert_eq!(sent.status, 401);
        request_ids.push(sent.request_id());
    }
    wait_until_kept(&gateway, "acme", 10);
    assert_eq!(counts(&reverify(&gateway, "acme")), [0, 0, 0, 10], "the secret is wrong still");
    assert_eq!((kept(&gateway, "acme"), application.count()), (10, 0));

    eventually("the last signed time is stale", || (sign::now() > last + 6).then_some(()));
    assert!(gateway.reload(&text));
    assert_eq!(counts(&reverify(&gateway, "acme")), [10, 0, 0, 0]);
    assert_eq!(kept(&gateway, "acme"), 0);
    let ids: Vec<String> = (0..10).map(|number| format!("event-{number}")).collect();
    assert_eq!(accepted(&gateway), ids);
    let mut received = application.wait_for(10);
    received.sort_by_key(|request| request.target.clone());
    for (number, request) in received.iter().enumerate() {
        assert_eq!(request.target, format!("/acme/{number}?x=%20"));
        assert_eq!(request.body, format!("{{\"id\":\"event-{number}\"}}").into_bytes());
        assert_eq!(request.header("x-request-id"), Some(request_ids[number].clone()), "as its sender was told");
        assert_eq!(request.header("x-hookward-event-id"), Some(ids[number].clone()));
        assert_eq!(request.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert!(request.header("x-hookward-verified").is_some());
    }
    assert_eq!(counts(&reverify(&gateway, "acme")), [0, 0, 0, 0], "a second round finds nothing");
    assert_eq!(gateway.outcome("acme", "accepted"), 10);
}

#[test]
fn what_was_forged_stays_and_what_is_amiss_otherwise_is_not_kept_at_all() {
    let application = Upstream::start();
    let text = shop(&application, "");
    let mut gateway = start(&mistyped(&text));
    let to = gateway.public();
    let forged = Request::post("/shop", "{}").header("X-Hub-Signature-256", sign::github("guessed", b"{}"));
    assert_eq!(forged.send(to).status, 401);
    assert_eq!(event("shop", "genuine", 10).send(to).status, 401);
    assert_eq!(Request::post("/shop", "{}").send(to).status, 401, "no signature");
    assert_eq!(Request::post("/shop", "{}").header("X-Hub-Signature-256", "sha256=zz").send(to).status, 401);
    wait_until_kept(&gateway, "shop", 2);
    assert!(gateway.reload(&text));
    let told = reverify(&gateway, "shop");
    assert_eq!(counts(&told), [1, 0, 0, 1]);
    assert_eq!(told["still_refused"], json!({ "bad_signature": 1 }));
    assert_eq!(kept(&gateway, "shop"), 1);
    assert_eq!(application.wait_for(1).len(), 1);
    assert_eq!(gateway.metric("hookward_inbox_quarantined", &[("source", "shop")]), 1.0);
}

#[test]
fn a_message_that_was_accepted_is_not_accepted_again_by_way_of_the_quarantine() {
    let application = Upstream::start();
    // Without the quarantine nothing would be known of them when they are judged again.
    let text = shop(&application, "replay_window = \"1s\"\ndedupe_window = \"1s\"");
    let mut gateway = start(&text);
    let body = super::stage::body("captured", 100);
    let captured = |id: &str, body: &[u8]| {
        Request::post("/shop", body)
            .header("X-Hub-Signature-256", sign::github(SECRET, body))
            .header("X-GitHub-Delivery", id)
    };
    assert_eq!(captured("first", &body).send(gateway.public()).status, 202);
    let begun = sign::now();
    assert!(gateway.reload(&mistyped(&text)));
    // The same bytes; the same message under another id, which nothing signs; and another message under the same id.
    assert_eq!(captured("first", &body).send(gateway.public()).status, 401);
    assert_eq!(captured("second", &body).send(gateway.public()).status, 401);
    assert_eq!(captured("first", b"another message").send(gateway.public()).status, 401);
    // What is new, twice.
    assert_eq!(event("shop", "new", 10).send(gateway.public()).status, 401);
    assert_eq!(event("shop", "new", 10).send(gateway.public()).status, 401);
    wait_until_kept(&gateway, "shop", 5);
    eventually("the windows are over", || (sign::now() > begun + 3).then_some(()));
    assert!(gateway.reload(&text));
    let told = reverify(&gateway, "shop");
    assert_eq!(counts(&told), [1, 3, 1, 0], "{told}");
    assert_eq!((kept(&gateway, "shop"), accepted(&gateway)), (0, vec!["first".to_owned(), "new".to_owned()]));
    // And what the quarantine let in is known at the door.
    assert_eq!(event("shop", "new", 10).send(gateway.public()).status, 409);
    application.wait_for(2);
    assert_eq!(gateway.outcome("shop", "accepted"), 2);
}

#[test]
fn an_attacker_fills_his_share_and_no_more_and_who_comes_when_it_is_full_is_dropped() {
    let application = Upstream::start();
    let text = format!(
        "{BEHIND_A_PROXY}\n[inbox]\nquarantine = {{ max_count = 16, max_size = \"1MiB\" }}\n{}{}",
        upstream("app", &application, ""),
        source("shop", "app", KEPT),
    );
    let mut gateway = start(&mistyped(&text));
    let from = |client: &str, request: Request| {
        let answer = request.header("X-Forwarded-For", client).send(gateway.public());
        assert_eq!(answer.status, 401);
    };
    let forged = |number: usize| {
        let body = format!("{{\"forged\":{number}}}");
        Request::post("/shop", &*body).header("X-Hub-Signature-256", sign::github("guessed", body.as_bytes()))
    };
    for number in 0..10 {
        from("192.0.2.1", forged(number));
    }
    wait_until_kept(&gateway, "shop", 2);
    from("192.0.2.2", event("shop", "genuine", 10));
    from("192.0.2.2", event("shop", "large", 200 << 10));
    wait_until_kept(&gateway, "shop", 3);
    // An IPv6 network is one client, whatever number of addresses it has.
    for number in 0..10 {
        from(&format!("2001:db8::{number}"), forged(100 + number));
    }
    wait_until_kept(&gateway, "shop", 5);
    for number in 0..20 {
        from(&format!("198.51.100.{number}"), forged(200 + number));
    }
    wait_until_kept(&gateway, "shop", 16);
    let dropped = |reason: &str| {
        let labels = [("source", "shop"), ("reason", reason)];
        gateway.metric("hookward_inbox_quarantine_dropped_total", &labels)
    };
    assert_eq!((dropped("client_share_full"), dropped("too_large"), dropped("full")), (16.0, 1.0, 9.0));
    assert!(gateway.reload(&text));
    assert_eq!(counts(&reverify(&gateway, "shop")), [1, 0, 0, 15], "who was there first is there still");
    application.wait_for(1);
    assert_eq!(accepted(&gateway), ["genuine"]);
}

#[test]
fn whoever_fails_too_often_has_nothing_more_kept() {
    let application = Upstream::start();
    let text = format!("{}\n[limits]\nfailed_auth = {{ rate = \"1/h\", burst = 3 }}\n", shop(&application, ""));
    let gateway = start(&mistyped(&text));
    let answers: Vec<u16> =
        (0..5).map(|number| event("shop", &format!("{number}"), 10).send(gateway.public()).status).collect();
    assert_eq!(answers, [401, 401, 401, 429, 429]);
    wait_until_kept(&gateway, "shop", 3);
}

#[test]
fn what_is_kept_outlives_the_process_and_its_room_is_counted_anew() {
    let application = Upstream::start();
    let text = shop(&application, "").replace("path = \"inbox\"", "path = \"inbox\"\nquarantine = { max_count = 8 }");
    let gateway = start(&mistyped(&text));
    assert_eq!(event("shop", "one", 10).send(gateway.public()).status, 401);
    wait_until_kept(&gateway, "shop", 1);
    let gateway = Gateway::start_in(gateway.kill(), &mistyped(&text));
    assert_eq!(event("shop", "two", 10).send(gateway.public()).status, 401);
    let dropped = [("source", "shop"), ("reason", "client_share_full")];
    eventually("the share is full", || {
        (gateway.metric("hookward_inbox_quarantine_dropped_total", &dropped) == 1.0).then_some(())
    });
    let gateway = Gateway::start_in(gateway.kill(), &text);
    assert_eq!(counts(&reverify(&gateway, "shop")), [1, 0, 0, 0]);
    application.wait_for(1);
    assert_eq!(accepted(&gateway), ["one"]);
}

#[test]
fn with_a_key_nothing_of_what_is_kept_can_be_read_from_the_files() {
    let application = Upstream::start();
    let key = format!("path = \"inbox\"\nencryption_key = {{ value = \"{}\" }}", "0123456789abcdef".repeat(4));
    let text = shop(&application, "").replace("path = \"inbox\"", &key);
    let mut gateway = start(&mistyped(&text));
    let sent = event("shop", "a-name-that-strangers-must-not-see", 10);
    assert_eq!(sent.send(gateway.public()).status, 401);
    wait_until_kept(&gateway, "shop", 1);
    for name in ["inbox.db", "inbox.db-wal"] {
        let file = std::fs::read(store(&gateway.folder).with_file_name(name)).expect(name);
        let needle = b"a-name-that-strangers-must-not-see";
        assert!(!file.windows(needle.len()).any(|window| window == needle), "{name}");
    }
    assert!(gateway.reload(&text));
    assert_eq!(counts(&reverify(&gateway, "shop")), [1, 0, 0, 0]);
    assert_eq!(application.wait_for(1)[0].body, super::stage::body("a-name-that-strangers-must-not-see", 10));
}

#[test]
fn what_is_too_old_is_let_go_and_makes_room() {
    let application = Upstream::start();
    let quarantine = "path = \"inbox\"\nquarantine = { max_count = 8, max_age = \"1s\" }";
    let gateway = start(&mistyped(&shop(&application, "").replace("path = \"inbox\"", quarantine)));
    assert_eq!(event("shop", "one", 10).send(gateway.public()).status, 401);
    eventually("it came and went", || {
        let share_is_free = gateway.metric("hookward_inbox_quarantined", &[("source", "shop")]) == 0.0;
        (share_is_free && kept(&gateway, "shop") == 0).then_some(())
    });
    assert_eq!(event("shop", "two", 10).send(gateway.public()).status, 401);
    assert_eq!(gateway.metric("hookward_inbox_quarantine_dropped_total", &[("source", "shop")]), 0.0);
}

#[test]
fn the_sender_hears_the_same_whether_its_request_is_kept_or_not() {
    let application = Upstream::start();
    let rest =
        format!("{}{}{}", upstream("app", &application, ""), source("kept", "app", KEPT), source("lost", "app", ""),);
    let gateway = start(&mistyped(&configuration("", &rest)));
    let told = |name: &str| {
        let answer = event(name, "one", 10).send(gateway.public());
        let (id, mut headers) = (answer.request_id(), answer.headers.clone());
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {value:?}").replace(&id, "ID")).collect();
        (answer.status, headers, answer.text().replace(&id, "ID"))
    };
    assert_eq!(told("kept"), told("lost"));
    wait_until_kept(&gateway, "kept", 1);
    assert_eq!(kept(&gateway, "lost"), 0);
}

#[test]
fn of_several_rounds_at_once_one_runs_and_nothing_is_delivered_twice() {
    let application = Upstream::start();
    let text = shop(&application, "");
    let mut gateway = start(&mistyped(&text));
    for number in 0..40 {
        assert_eq!(event("shop", &format!("{number}"), 10).send(gateway.public()).status, 401);
    }
    wait_until_kept(&gateway, "shop", 40);
    assert!(gateway.reload(&text));
    let asked: Vec<Answer> = thread::scope(|scope| {
        let ask = || ask(&gateway, "POST", "/inbox/reverify?source=shop");
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
    });
    let mut sum = 0;
    for answer in &asked {
        match answer.status {
            200 => {
                sum += serde_json::from_str::<Value>(&answer.text()).expect("JSON")["accepted"].as_u64().unwrap_or(0)
            }
            status => assert_eq!(status, 409, "{}", answer.text()),
        }
    }
    assert_eq!((sum, accepted(&gateway).len()), (40, 40));
    application.wait_for(40);
}

#[test]
fn the_command_line_asks_the_running_gateway_and_says_that_it_must_run() {
    let application = Upstream::start();
    let text = shop(&application, "");
    let mut gateway = start(&mistyped(&text));
    assert_eq!(event("shop", "one", 10).send(gateway.public()).status, 401);
    let forged = Request::post("/shop", "{}").header("X-Hub-Signature-256", sign::github("guessed", b"{}"));
    assert_eq!(forged.send(gateway.public()).status, 401);
    wait_until_kept(&gateway, "shop", 2);
    assert!(gateway.reload(&text));
    let admin = format!("http://{}", gateway.address("admin"));
    let (code, out, err) = hookward(&gateway.folder.0, &["inbox", "quarantine", "--admin", &admin]);
    assert!(code == 0 && out.contains("shop") && out.contains(" 2 "), "{out}{err}");
    let ask = ["inbox", "reverify", "--source", "shop", "--admin", &admin];
    let (code, out, err) = hookward(&gateway.folder.0, &ask);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("1 accepted") && out.contains("\n1 refused still (bad_signature): kept"), "{out}");
    let (code, out, err) = hookward(&gateway.folder.0, &[&ask[..], &["--json"]].concat());
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code} {out}{err}"));
    assert_eq!((code, counts(&told)), (0, [0, 0, 0, 1]));
    let (code, _, err) = hookward(&gateway.folder.0, &["inbox", "reverify", "--source", "nobody", "--admin", &admin]);
    assert!(code == 1 && err.contains("no source of this name"), "{code} {err}");
    application.wait_for(1);

    let folder = gateway.kill();
    let (code, out, err) = hookward(&folder.0, &["inbox", "quarantine"]);
    assert!(code == 0 && out.contains("shop"), "{out}{err}");
    let (code, _, err) = hookward(&folder.0, &["inbox", "reverify", "--source", "shop"]);
    assert!(code == 1 && err.contains("needs the gateway running"), "{code} {err}");
}

#[test]
fn only_the_operator_may_ask_and_only_for_a_source_that_stores() {
    let application = Upstream::start();
    let proxied = source("direct", "app", "").replace("delivery = \"inbox\"\n", "");
    let gateway = start(&format!("{}{proxied}", shop(&application, "")));
    let stranger = Request::new("POST", "/inbox/reverify?source=shop").send(gateway.address("admin"));
    assert_eq!(stranger.status, 401);
    assert_eq!(ask(&gateway, "GET", "/inbox/reverify?source=shop").status, 405);
    assert_eq!(ask(&gateway, "POST", "/inbox/reverify").status, 400);
    assert_eq!(ask(&gateway, "POST", "/inbox/reverify?source=nobody").status, 404);
    assert_eq!(ask(&gateway, "POST", "/inbox/reverify?source=direct").status, 409);
    assert_eq!(counts(&reverify(&gateway, "shop")), [0, 0, 0, 0]);
}
