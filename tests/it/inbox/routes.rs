//! What is stored goes to every upstream that wants it, as often and in such an order as its source says.

use super::stage::{SECRET, configuration, number, source, upstream};
use crate::support::{Gate, Gateway, Reply, Request, Upstream, eventually, sign};
use std::sync::Arc;

fn start(text: &str) -> Gateway {
    Gateway::start_in(Arc::default(), &configuration("", text))
}

/// A delivery of this type and this body to `/shop`.
fn event(kind: &str, body: &str) -> Request {
    Request::post("/shop", body)
        .header("X-Hub-Signature-256", sign::github(SECRET, body.as_bytes()))
        .header("X-GitHub-Delivery", sign::github("an id", body.as_bytes()))
        .header("X-GitHub-Event", kind)
}

fn wait_for_number(gateway: &Gateway, query: &str, wanted: i64) {
    eventually(query, || (number(&gateway.folder, query) == wanted).then_some(()));
}

fn bodies(upstream: &Upstream) -> Vec<String> {
    upstream.received().into_iter().map(|one| String::from_utf8_lossy(&one.body).into_owned()).collect()
}

#[test]
fn a_delivery_is_stored_once_and_each_upstream_has_its_own_attempts_and_its_own_end() {
    let slow = Upstream::with(|_, before| Reply::Status(if before < 2 { 503 } else { 200 }));
    let gone = Upstream::with(|_, _| Reply::Status(410));
    let (audit, rest) = (Upstream::start(), Upstream::start());
    let routes = "retry = { first = \"20ms\" }\n\
        [[sources.shop.routes]]\nevents = [\"order.*\"]\nupstream = \"slow\"\nupstream_path = \"/hooks/orders\"\n\
        [[sources.shop.routes]]\nevents = [\"*.made\"]\njson = { \"/eu\" = true }\nupstream = \"gone\"\n\
        [[sources.shop.routes]]\nupstream = \"audit\"\n\
        [[sources.shop.routes]]\nevents = [\"order.made\"]\nupstream = \"slow\"\nupstream_path = \"/never\"\n";
    let gateway = start(&format!(
        "{}{}{}{}{}",
        upstream("slow", &slow, ""),
        upstream("gone", &gone, ""),
        upstream("audit", &audit, ""),
        upstream("rest", &rest, ""),
        source("shop", "rest", routes)
    ));
    let answer = event("order.made", r#"{"eu":true}"#).send(gateway.public());
    assert_eq!(answer.status, 202);
    assert_eq!(gateway.audit_of(&answer.request_id())["upstream"], "slow,gone,audit");
    let received = slow.wait_for(3);
    assert!(received.iter().all(|one| one.target == "/hooks/orders" && one.body == br#"{"eu":true}"#));
    assert_eq!(audit.wait_for(1).remove(0).target, "/shop");
    gone.wait_for(1);
    wait_for_number(&gateway, "SELECT count(*) FROM tasks WHERE state = 2", 2);
    wait_for_number(&gateway, "SELECT count(*) FROM tasks WHERE state = 3", 1);
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM deliveries"), 1);
    assert_eq!(number(&gateway.folder, "SELECT max(attempts) FROM tasks"), 3);
    // Its twin is for one of them alone.
    assert_eq!(event("ping", "{}").send(gateway.public()).status, 202);
    audit.wait_for(2);
    assert_eq!((slow.count(), gone.count(), rest.count()), (3, 1, 0));
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM tasks"), 4);
}

#[test]
fn what_no_route_takes_is_acknowledged_and_not_stored() {
    let app = Upstream::start();
    let table = source("shop", "app", "").replace("upstream = \"app\"\n", "");
    let routes = "[[sources.shop.routes]]\nevents = [\"order.*\"]\nupstream = \"app\"\n";
    let gateway = start(&format!("{}{table}{routes}", upstream("app", &app, "")));
    assert_eq!(event("ping", "1").send(gateway.public()).status, 202);
    assert_eq!(gateway.outcome("shop", "unrouted"), 1);
    assert_eq!(event("ping", "1").send(gateway.public()).status, 409);
    assert_eq!(event("order.made", "2").send(gateway.public()).status, 202);
    app.wait_for(1);
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM deliveries"), 1);
    assert_eq!((gateway.outcome("shop", "unrouted"), gateway.outcome("shop", "accepted")), (1, 1));
}

/// An upstream that holds what this text is in until the gate is opened.
fn holding(text: &'static str, gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::with(move |received, _| match String::from_utf8_lossy(&received.body).contains(text) {
        true => Reply::Held(gate.clone(), Box::new(Reply::Status(200))),
        false => Reply::Status(200),
    })
}

#[test]
fn deliveries_of_one_customer_wait_for_each_other_and_for_nobody_elses() {
    let gate = Gate::default();
    let app = holding("\"first\"", &gate);
    let order = "order_by = { json = \"/customer\" }\n";
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", order)));
    let body = |customer: &str, n: &str| format!(r#"{{"customer":"{customer}","n":"{n}"}}"#);
    for sent in [body("a", "first"), body("a", "second"), body("b", "1"), body("a", "third"), r#"{"n":1}"#.to_owned()] {
        assert_eq!(event("push", &sent).send(gateway.public()).status, 202);
    }
    app.wait_for(3);
    wait_for_number(&gateway, "SELECT count(*) FROM tasks WHERE state = 2", 2);
    // Those behind the held one, and none besides.
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM tasks WHERE state = 1"), 2);
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM tasks WHERE lane IS NULL"), 1);
    assert_eq!(number(&gateway.folder, "SELECT count(DISTINCT lane) FROM tasks"), 2);
    gate.open();
    app.wait_for(5);
    let of_a: Vec<_> = bodies(&app).into_iter().filter(|text| text.contains("\"a\"")).collect();
    assert_eq!(of_a, [body("a", "first"), body("a", "second"), body("a", "third")]);
}

#[test]
fn a_source_in_order_is_delivered_in_the_order_in_which_it_was_acknowledged() {
    let gate = Gate::default();
    let app = holding("first", &gate);
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", "order = \"source\"\n")));
    let sent: Vec<String> = ["first", "2", "3", "4", "5", "6"].map(str::to_owned).into();
    for body in &sent {
        assert_eq!(event("push", body).send(gateway.public()).status, 202);
    }
    app.wait_for(1);
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM tasks WHERE state = 1"), 5);
    assert_eq!(app.count(), 1);
    gate.open();
    app.wait_for(6);
    assert_eq!(bodies(&app), sent);
}

#[test]
fn a_source_says_how_often_and_after_which_statuses_its_deliveries_are_tried_again() {
    let app = Upstream::with(|received, _| {
        Reply::Status(match received.header("x-github-event").as_deref() {
            Some("hidden") => 404,
            Some("broken") => 500,
            _ => 302,
        })
    });
    let retry = "retry = { attempts = 3, first = \"10ms\", jitter = 0, statuses = { \"404\" = \"retry\", \"5xx\" = \"dead\", \"302\" = \"delivered\" } }\n";
    let gateway = start(&format!("{}{}", upstream("app", &app, ""), source("shop", "app", retry)));
    for (kind, body) in [("hidden", "1"), ("broken", "2"), ("moved", "3")] {
        assert_eq!(event(kind, body).send(gateway.public()).status, 202);
    }
    wait_for_number(&gateway, "SELECT count(*) FROM tasks WHERE state = 3", 2);
    wait_for_number(&gateway, "SELECT count(*) FROM tasks WHERE state = 2", 1);
    assert_eq!(number(&gateway.folder, "SELECT attempts FROM tasks WHERE status = 404"), 3);
    assert_eq!(number(&gateway.folder, "SELECT attempts FROM tasks WHERE status = 500"), 1);
    assert_eq!(app.count(), 5);
}
