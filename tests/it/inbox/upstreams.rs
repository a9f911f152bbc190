//! Upstreams that are down, that reset what they took, that never answer; and a gateway that is told to stop meanwhile.

use super::stage::{body, configuration, event, number, source, upstream, wait_until_settled};
use crate::support::http::connect;
use crate::support::upstream::{ClosedPort, Received};
use crate::support::{Gate, Gateway, Reply, Upstream, eventually};
use std::collections::{BTreeMap, BTreeSet};

const SOON: &str = "retry = { attempts = 1000, first = \"10ms\", max = \"100ms\" }";

/// How often each body came.
fn copies(upstream: &Upstream) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    for request in upstream.received() {
        *counts.entry(request.body).or_insert(0) += 1;
    }
    counts
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

fn accept(gateway: &Gateway, source: &str, names: &[String]) {
    for name in names {
        assert_eq!(event(source, name, 0).send(gateway.public()).status, 202, "{name}");
    }
}

fn expected(names: &[String], copies: usize) -> BTreeMap<Vec<u8>, usize> {
    names.iter().map(|name| (body(name, 0), copies)).collect()
}

#[test]
fn an_upstream_that_is_down_for_the_first_half_gets_everything_once() {
    let port = ClosedPort::new();
    let text = configuration(
        "",
        &format!("\n[upstreams.app]\nurls = [\"http://{}\"]\n{}", port.address(), source("shop", "app", SOON)),
    );
    let gateway = Gateway::start_in(Default::default(), &text);
    let all = names("event", 60);
    accept(&gateway, "shop", &all[..30]);
    let application = port.open(|_, _| Reply::Status(200));
    accept(&gateway, "shop", &all[30..]);
    application.wait_for(all.len());
    wait_until_settled(&gateway, 60);
    assert_eq!(copies(&application), expected(&all, 1));
}

#[test]
fn an_upstream_that_takes_a_delivery_and_resets_gets_it_again_under_the_same_name() {
    // Every fifth one: an upstream that fails time after time is left alone for a while.
    let is_reset = |id: &str| id.ends_with('0') || id.ends_with('5');
    let application = Upstream::with(move |request, _| match request.header("x-hookward-attempt").as_deref() {
        Some("1" | "2") if request.header("x-github-delivery").is_some_and(|id| is_reset(&id)) => Reply::Reset,
        _ => Reply::Status(200),
    });
    let text = configuration("", &format!("{}{}", upstream("app", &application, ""), source("shop", "app", SOON)));
    let gateway = Gateway::start_in(Default::default(), &text);
    let all = names("event", 20);
    accept(&gateway, "shop", &all);
    wait_until_settled(&gateway, 20);
    let mut by_id: BTreeMap<String, Vec<Received>> = BTreeMap::new();
    for request in application.received() {
        by_id.entry(request.header("x-github-delivery").expect("an id")).or_default().push(request);
    }
    assert_eq!(by_id.len(), all.len());
    for (id, copies) in by_id {
        let names = |copy: &Received| (copy.header("x-request-id"), copy.header("idempotency-key"));
        let first = names(&copies[0]);
        assert!(first.0.is_some() && first.1.is_some(), "{id}: {first:?}");
        assert!(copies.iter().all(|copy| names(copy) == first && copy.body == body(&id, 0)), "{id}");
        let attempts: BTreeSet<_> = copies.iter().filter_map(|copy| copy.header("x-hookward-attempt")).collect();
        let expected = if is_reset(&id) { 3 } else { 1 };
        assert_eq!(attempts.len(), expected, "{id}: {attempts:?}");
        // A request on a connection that was kept is repeated at once where that closed before any byte of an answer.
        assert!((expected..expected * 2).contains(&copies.len()), "{id}: {} copies", copies.len());
    }
}

#[test]
fn an_upstream_that_never_answers_is_tried_again_and_another_gets_its_own_meanwhile() {
    let gate = Gate::default();
    let held = gate.clone();
    let hanging = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let working = Upstream::start();
    let text = configuration(
        "",
        &format!(
            "{}{}{}{}",
            upstream("hanging", &hanging, "timeout = \"200ms\"\nmax_in_flight = 2"),
            upstream("working", &working, ""),
            source("shop", "hanging", SOON),
            source("forge", "working", SOON)
        ),
    );
    let gateway = Gateway::start_in(Default::default(), &text);
    let (stuck, free) = (names("stuck", 3), names("free", 20));
    accept(&gateway, "shop", &stuck);
    accept(&gateway, "forge", &free);
    // Nothing has left the one that hangs, and the other has all.
    working.wait_for(free.len());
    assert_eq!(copies(&working), expected(&free, 1));
    eventually("one is tried again after its time-out", || {
        hanging
            .received()
            .iter()
            .any(|request| request.header("x-hookward-attempt").as_deref() == Some("2"))
            .then_some(())
    });
    assert_eq!(
        number(
            &gateway.folder,
            "SELECT count(*) FROM tasks JOIN names ON id = upstream WHERE name = 'hanging' AND state = 0"
        ),
        3
    );
    gate.open();
    wait_until_settled(&gateway, 23);
    assert_eq!(copies(&working), expected(&free, 1));
    assert!(expected(&stuck, 1).keys().all(|body| copies(&hanging).contains_key(body)));
}

#[test]
fn at_sigterm_attempts_under_way_are_finished_and_what_waits_is_delivered_after_the_next_start() {
    let gate = Gate::default();
    let held = gate.clone();
    let application = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let text = configuration(
        "",
        &format!("{}{}", upstream("app", &application, "max_in_flight = 2"), source("shop", "app", SOON)),
    );
    let mut gateway = Gateway::start_in(Default::default(), &text);
    let all = names("event", 10);
    accept(&gateway, "shop", &all);
    application.wait_for(2);
    gateway.signal("TERM");
    // When it accepts no connection any more, it begins no attempt either.
    eventually("the listener is closed", || connect(gateway.public()).err());
    gate.open();
    assert!(gateway.wait_for_exit().success());
    // Those two were heard to the end, and no other was begun.
    assert_eq!(application.count(), 2);
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM tasks WHERE state = 2"), 2);
    assert_eq!(number(&gateway.folder, "SELECT count(*) FROM tasks WHERE state = 0"), 8);
    let gateway = Gateway::start_in(gateway.folder.clone(), &text);
    application.wait_for(10);
    wait_until_settled(&gateway, 10);
    assert_eq!(copies(&application), expected(&all, 1));
}

#[test]
fn an_attempt_that_outlasts_the_drain_is_cut_and_made_again_after_the_next_start() {
    let gate = Gate::default();
    let held = gate.clone();
    let application = Upstream::with(move |_, number| match number {
        0 => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    });
    let text = configuration(
        "",
        &format!(
            "\n[limits]\ndrain_timeout = \"200ms\"\n{}{}",
            upstream("app", &application, ""),
            source("shop", "app", SOON)
        ),
    );
    let mut gateway = Gateway::start_in(Default::default(), &text);
    accept(&gateway, "shop", &names("event", 1));
    application.wait_for(1);
    gateway.signal("TERM");
    gateway.wait_for_exit();
    gate.open();
    let _gateway = Gateway::start_in(gateway.folder.clone(), &text);
    let copies = application.wait_for(2);
    assert_eq!(copies[0].body, copies[1].body);
    assert_eq!(copies[0].header("idempotency-key"), copies[1].header("idempotency-key"));
}
