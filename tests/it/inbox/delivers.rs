//! What is stored reaches its upstream: exactly, at least once, in time, and none in another's way.

use super::stage::{body, configuration, event, number, refused_for_now, source, upstream};
use crate::support::gateway::{Folder, hookward};
use crate::support::http::Answer;
use crate::support::upstream::{ClosedPort, Received};
use crate::support::{Gate, Gateway, Reply, Request, Upstream, eventually, sign};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SECRET: &str = "a-secret-of-some-length";
const OFTEN: &str = "retry = { attempts = 1000, first = \"10ms\", max = \"10ms\" }";

fn start(rest: &str) -> Gateway {
    Gateway::start_in(Default::default(), &configuration("", rest))
}

fn accepted(gateway: &Gateway, source: &str, name: &str) -> Answer {
    let answer = event(source, name, 0).send(gateway.public());
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer
}

fn full(status: u16, headers: Vec<(&'static str, &'static str)>) -> Reply {
    Reply::Full { status, headers, body: Vec::new() }
}

/// Which of `event`'s names this is.
fn is(received: &Received, name: &str) -> bool {
    received.body == body(name, 0)
}

fn attempts(gateway: &Gateway, upstream: &str, result: &str) -> u64 {
    gateway.metric("hookward_inbox_attempts_total", &[("upstream", upstream), ("result", result)]) as u64
}

fn wait_for_attempts(gateway: &Gateway, upstream: &str, result: &str, count: u64) {
    eventually(&format!("{count} attempts are {result}"), || {
        (attempts(gateway, upstream, result) >= count).then_some(())
    });
    assert_eq!(attempts(gateway, upstream, result), count, "{result}");
}

/// An attempt is counted when it ends, and written down a moment later.
fn wait_for_tasks(folder: &Folder, such: &str, count: i64) {
    let query = format!("SELECT count(*) FROM tasks WHERE {such}");
    eventually(&format!("{count} tasks with {such}"), || (number(folder, &query) >= count).then_some(()));
    assert_eq!(number(folder, &query), count, "{such}");
}

#[test]
fn what_was_acknowledged_is_delivered_with_its_bytes_and_headers() {
    let app = Upstream::start();
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("github", "app", "")));
    let sent = event("github", "one", 3000).header("Content-Type", "application/json").header("X-Own", "kept");
    let answer = sent.send(gateway.public());
    assert_eq!(answer.status, 202);
    let received = app.wait_for(1).remove(0);
    assert_eq!(received.body, sent.body);
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/github"));
    let header = |name: &str| received.header(name).unwrap_or_default();
    assert_eq!(header("x-request-id"), answer.request_id());
    assert_eq!(header("x-hookward-attempt"), "1");
    assert_eq!(header("x-hookward-source"), "github");
    assert_eq!(header("x-hookward-verified"), "github");
    assert_eq!(header("x-own"), "kept");
    assert_eq!(header("content-type"), "application/json");
    assert!(header("idempotency-key").starts_with("github:"), "{received:?}");
    wait_for_attempts(&gateway, "app", "delivered", 1);
}

#[test]
fn a_failure_is_tried_again_under_the_same_names_and_with_a_new_number() {
    let app = Upstream::with(|_, before| Reply::Status(if before < 2 { 500 } else { 200 }));
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", OFTEN)));
    let answer = accepted(&gateway, "shop", "one");
    let received = app.wait_for(3);
    let all = |name: &str| received.iter().map(|request| request.header(name).unwrap_or_default()).collect::<Vec<_>>();
    assert_eq!(all("x-hookward-attempt"), ["1", "2", "3"]);
    assert_eq!(all("x-request-id"), vec![answer.request_id(); 3]);
    let keys = all("idempotency-key");
    assert!(!keys[0].is_empty() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert!(received.iter().all(|request| is(request, "one")));
    wait_for_attempts(&gateway, "app", "delivered", 1);
    assert_eq!(attempts(&gateway, "app", "retried"), 2);
    // Settled: a restart sends nothing.
    wait_for_tasks(&gateway.folder, "state = 2 AND attempts = 3", 1);
}

#[test]
fn each_attempt_is_signed_anew_where_the_upstream_wants_it_signed() {
    let app = Upstream::with(|_, before| Reply::Status(if before == 0 { 503 } else { 204 }));
    let key = b"0123456789abcdef0123456789abcdef";
    let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let signs = format!("sign = {{ secret = {{ value = \"{secret}\" }} }}");
    let gateway = start(&format!("{}{}", upstream("app", &app, &signs), source("shop", "app", OFTEN)));
    accepted(&gateway, "shop", "one");
    let received = app.wait_for(2);
    for request in &received {
        let header = |name: &str| request.header(name).expect(name);
        let time = header("webhook-timestamp").parse().expect("seconds");
        assert!(sign::now() - time < 60, "the time is this attempt's");
        let expected = sign::standard_webhooks(key, &header("webhook-id"), time, &request.body);
        assert_eq!(header("webhook-signature"), expected);
        assert_eq!(header("idempotency-key"), format!("shop:{}", header("webhook-id")));
    }
}

#[test]
fn an_upstream_that_says_when_to_come_again_is_left_alone_until_then() {
    let app = Upstream::with(|_, before| match before {
        0 => full(503, vec![("Retry-After", "2")]),
        _ => Reply::Status(200),
    });
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", OFTEN)));
    let before = std::time::Instant::now();
    accepted(&gateway, "shop", "one");
    app.wait_for(2);
    assert!(before.elapsed() >= std::time::Duration::from_secs(2), "{:?}", before.elapsed());
}

#[test]
fn what_is_refused_for_good_is_a_dead_letter_at_once_unless_the_operator_says_otherwise() {
    let app = Upstream::with(|request, _| Reply::Status(if request.target == "/gone" { 410 } else { 404 }));
    let more = "retry = { attempts = 2, first = \"10ms\", statuses = { \"404\" = \"retry\" } }";
    let gateway =
        start(&format!("{}{}{}", upstream("app", &app, ""), source("gone", "app", OFTEN), source("lost", "app", more)));
    accepted(&gateway, "gone", "one");
    wait_for_attempts(&gateway, "app", "dead", 1);
    accepted(&gateway, "lost", "two");
    wait_for_attempts(&gateway, "app", "dead", 2);
    assert_eq!(attempts(&gateway, "app", "retried"), 1);
    assert_eq!(
        app.received().iter().map(|request| request.target.as_str()).collect::<Vec<_>>(),
        ["/gone", "/lost", "/lost"]
    );
    let dead_of = |source| gateway.metric("hookward_inbox_dead_total", &[("source", source), ("upstream", "app")]);
    assert_eq!((dead_of("gone"), dead_of("lost")), (1.0, 1.0));
    wait_for_tasks(&gateway.folder, "state = 3", 2);
    wait_for_tasks(&gateway.folder, "state = 3 AND attempts = 1 AND status = 410", 1);
}

#[test]
fn an_upstream_that_fails_is_asked_by_one_delivery_before_the_others_follow() {
    let works = Arc::new(AtomicBool::new(false));
    let (ok, gate) = (works.clone(), Gate::default());
    let held = gate.clone();
    let app = Upstream::with(move |_, _| match ok.load(Ordering::SeqCst) {
        true => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        false => Reply::Status(500),
    });
    let retry = "retry = { attempts = 1000, first = \"1ms\", max = \"1ms\" }";
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", retry)));
    for number in 0..50 {
        accepted(&gateway, "shop", &format!("e{number}"));
    }
    let stage = || gateway.metric("hookward_inbox_breaker_state", &[("upstream", "app")]);
    let under_way = || gateway.metric("hookward_upstream_in_flight", &[("upstream", "app")]);
    // What was under way when it was given up has been answered: from here on one at a time is sent.
    eventually("the upstream is left alone", || (stage() == 2.0 && under_way() == 0.0).then_some(()));
    works.store(true, Ordering::SeqCst);
    let asked = eventually("one asks", || (stage() == 1.0 && under_way() == 1.0).then(|| app.count()));
    // All others are due, and none comes while the one has not been answered.
    accepted(&gateway, "shop", "late");
    wait_for_attempts(&gateway, "app", "delivered", 0);
    assert_eq!(app.count(), asked);
    gate.open();
    wait_for_attempts(&gateway, "app", "delivered", 51);
    assert_eq!(stage(), 0.0);
    gateway.wait_for_log("the upstream works again");
}

#[test]
fn one_dead_upstream_keeps_no_other_waiting() {
    let (closed, app) = (ClosedPort::new(), Upstream::start());
    let dead = format!("\n[upstreams.dead]\nurls = [\"http://{}\"]\n", closed.address());
    let gateway = start(&format!(
        "{dead}{}{}{}",
        upstream("app", &app, ""),
        source("down", "dead", OFTEN),
        source("shop", "app", "")
    ));
    for number in 0..30 {
        accepted(&gateway, "down", &format!("d{number}"));
        accepted(&gateway, "shop", &format!("s{number}"));
    }
    wait_for_attempts(&gateway, "app", "delivered", 30);
    assert_eq!(attempts(&gateway, "dead", "delivered"), 0);
    let revived = closed.open(|_, _| Reply::Status(200));
    wait_for_attempts(&gateway, "dead", "delivered", 30);
    assert_eq!(revived.count(), 30);
}

#[test]
fn no_more_is_under_way_than_the_upstream_bears() {
    let gate = Gate::default();
    let held = gate.clone();
    let app = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let gateway = start(&format!("{}{}", upstream("app", &app, "max_in_flight = 3"), source("shop", "app", "")));
    for number in 0..12 {
        accepted(&gateway, "shop", &format!("e{number}"));
    }
    app.wait_for(3);
    assert_eq!(app.count(), 3);
    gate.open();
    wait_for_attempts(&gateway, "app", "delivered", 12);
    assert_eq!(app.count(), 12);
    // Waiting for a place is no attempt.
    assert!(app.received().iter().all(|request| request.header("x-hookward-attempt").as_deref() == Some("1")));
}

#[test]
fn in_order_of_the_source_nothing_overtakes_what_is_tried_again() {
    let failed = AtomicBool::new(false);
    let app = Upstream::with(move |request, _| {
        Reply::Status(if is(request, "a1") && !failed.swap(true, Ordering::SeqCst) { 500 } else { 200 })
    });
    let ordered = format!("order = \"source\"\n{OFTEN}");
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", &ordered)));
    let names = ["a0", "a1", "a2", "a3", "a4"];
    for name in names {
        accepted(&gateway, "shop", name);
    }
    let received = app.wait_for(6);
    let order: Vec<_> =
        received.iter().filter_map(|request| names.into_iter().find(|name| is(request, name))).collect();
    assert_eq!(order, ["a0", "a1", "a1", "a2", "a3", "a4"]);
}

fn of_customer(customer: &str, number: usize) -> Request {
    let body = format!("{{\"customer\":\"{customer}\",\"number\":{number}}}");
    let signature = sign::github(SECRET, body.as_bytes());
    Request::post("/shop", body)
        .header("X-Hub-Signature-256", signature)
        .header("X-GitHub-Delivery", format!("{customer}{number}"))
}

#[test]
fn in_order_of_a_key_one_key_waits_for_itself_and_for_no_other() {
    let works = Arc::new(AtomicBool::new(false));
    let ok = works.clone();
    let app = Upstream::with(move |request, _| {
        let is_of_a = request.body.starts_with(b"{\"customer\":\"a\"");
        Reply::Status(if is_of_a && !ok.load(Ordering::SeqCst) { 429 } else { 200 })
    });
    let ordered = format!("order_by = {{ json = \"/customer\" }}\n{OFTEN}");
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", &ordered)));
    for number in 0..5 {
        for customer in ["a", "b"] {
            assert_eq!(of_customer(customer, number).send(gateway.public()).status, 202);
        }
    }
    let of = |customer: &str| {
        let all = app.received().into_iter().map(|request| String::from_utf8_lossy(&request.body).into_owned());
        let beginning = format!("{{\"customer\":\"{customer}\",\"number\":");
        all.filter_map(|body| body.strip_prefix(&beginning)?.strip_suffix('}')?.parse::<usize>().ok())
            .collect::<Vec<_>>()
    };
    wait_for_attempts(&gateway, "app", "delivered", 5);
    assert_eq!(of("b"), [0, 1, 2, 3, 4]);
    assert!(of("a").iter().all(|number| *number == 0), "{:?}", of("a"));
    works.store(true, Ordering::SeqCst);
    wait_for_attempts(&gateway, "app", "delivered", 10);
    let mut of_a = of("a");
    of_a.dedup();
    assert_eq!(of_a, [0, 1, 2, 3, 4]);
}

#[test]
fn a_reload_changes_the_schedule_and_the_upstream_of_what_waits() {
    let closed = ClosedPort::new();
    let down = format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n", closed.address());
    let never = "retry = { attempts = 100, first = \"1s\", max = \"1s\" }";
    let folder = Arc::new(Folder::new());
    let mut gateway = Gateway::start_in(folder, &configuration("", &format!("{down}{}", source("shop", "app", never))));
    accepted(&gateway, "shop", "one");
    eventually("it was tried", || (attempts(&gateway, "app", "retried") >= 1).then_some(()));
    let app = Upstream::with(|_, _| Reply::Status(500));
    let once = "retry = { attempts = 1 }";
    assert!(
        gateway.reload(&configuration("", &format!("{}{}", upstream("app", &app, ""), source("shop", "app", once))))
    );
    app.wait_for(1);
    wait_for_attempts(&gateway, "app", "dead", 1);
    assert_eq!(app.count(), 1);
}

#[test]
fn a_reload_with_a_larger_max_size_takes_deliveries_again() {
    let closed = ClosedPort::new();
    let rest = format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n{}", closed.address(), source("shop", "app", ""));
    let small = configuration("max_size = \"1MiB\"", &rest);
    let mut gateway = Gateway::start_in(Default::default(), &small);
    let is_taken = |gateway: &Gateway, number: usize| {
        let answer = event("shop", &format!("event-{number}"), 100_000).send(gateway.public());
        assert!(answer.status == 202 || refused_for_now(&answer), "{answer:?}");
        answer.status == 202
    };
    let full = (0..20).find(|number| !is_taken(&gateway, *number)).expect("it is full");
    assert!(gateway.reload(&small));
    assert!(!is_taken(&gateway, full), "as full as before");
    assert!(gateway.reload(&configuration("max_size = \"64MiB\"", &rest)));
    assert!((full..full + 5).all(|number| is_taken(&gateway, number)));
    assert!(gateway.reload(&small));
    assert!(!is_taken(&gateway, 100), "and a smaller one is kept to");
}

#[test]
fn what_waits_for_an_upstream_that_is_no_longer_configured_goes_when_it_is_again() {
    let (app, other, gate) = (Upstream::start(), Upstream::start(), Gate::default());
    // It never answers: an attempt that ended behind the reload would go by the schedule of a source that is gone.
    let silent = Upstream::with(move |_, _| Reply::Held(gate.clone(), Box::new(Reply::Status(200))));
    let silent_app = upstream("app", &silent, "");
    let without = configuration("", &format!("{}{}", upstream("other", &other, ""), source("else", "other", "")));
    let folder = Arc::new(Folder::new());
    let mut gateway =
        Gateway::start_in(folder, &configuration("", &format!("{silent_app}{}", source("shop", "app", OFTEN))));
    for name in ["one", "two", "three"] {
        accepted(&gateway, "shop", name);
    }
    silent.wait_for(3);
    assert!(gateway.reload(&without));
    let told = gateway.wait_for_log("for an upstream that is not configured");
    assert!(told.contains("\"waiting\":3") && told.contains("\"upstream\":\"app\""), "{told}");
    accepted(&gateway, "else", "four");
    other.wait_for(1);
    // A restart does not drop them either.
    let folder = gateway.kill();
    let mut gateway = Gateway::start_in(folder, &without);
    let told = gateway.wait_for_log("for an upstream that is not configured");
    assert!(told.contains("\"waiting\":3"), "{told}");
    // Their source is gone too; its deliveries are owed all the same.
    assert!(gateway.reload(&configuration("", &format!("{}{}", upstream("app", &app, ""), source("else", "app", "")))));
    wait_for_attempts(&gateway, "app", "delivered", 3);
    assert_eq!(app.count(), 3);
}

#[test]
fn what_an_operator_discarded_while_its_upstream_was_down_is_not_sent_when_that_is_back() {
    let closed = ClosedPort::new();
    let down = format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n", closed.address());
    let gateway = start(&format!("{down}{}{}", source("shop", "app", OFTEN), source("toys", "app", OFTEN)));
    for number in 0..10 {
        accepted(&gateway, "shop", &format!("s{number}"));
        accepted(&gateway, "toys", &format!("t{number}"));
    }
    eventually("the upstream is left alone", || {
        (gateway.metric("hookward_inbox_breaker_state", &[("upstream", "app")]) == 2.0).then_some(())
    });
    let url = format!("http://{}", gateway.address("admin"));
    let arguments = ["inbox", "discard", "--source", "shop", "--state", "waiting", "--all", "--admin", &url];
    let (code, _, err) = hookward(&gateway.folder.0, &arguments);
    assert_eq!(code, 0, "{err}");
    wait_for_tasks(&gateway.folder, "state = 4", 10);
    let app = closed.open(|_, _| Reply::Status(200));
    wait_for_attempts(&gateway, "app", "delivered", 10);
    assert!(app.received().iter().all(|request| request.target == "/toys"), "{:?}", app.received());
}

#[test]
fn what_cannot_be_read_from_the_store_is_a_dead_letter_and_in_nobodys_way() {
    let closed = ClosedPort::new();
    let down = format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n", closed.address());
    let text = |upstream: &str| configuration("", &format!("{upstream}{}", source("shop", "app", OFTEN)));
    let gateway = Gateway::start_in(Default::default(), &text(&down));
    for name in ["one", "two", "three"] {
        accepted(&gateway, "shop", name);
    }
    let folder = gateway.kill();
    let changed = number(&folder, "UPDATE contents SET content = x'ff00' WHERE seq = 2 RETURNING seq");
    assert_eq!(changed, 2);
    let app = Upstream::start();
    let gateway = Gateway::start_in(folder, &text(&upstream("app", &app, "")));
    wait_for_attempts(&gateway, "app", "delivered", 2);
    gateway.wait_for_log("cannot be read from the inbox: a dead letter");
    wait_for_tasks(&gateway.folder, "state = 3 AND length(note) > 10", 1);
    assert_eq!(app.count(), 2);
}
