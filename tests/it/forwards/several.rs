//! Several urls behind one upstream, connections that go stale, and no more requests at once than were asked for.

use super::{ONE_THREAD, delivery, source};
use crate::support::gateway::PLAIN;
use crate::support::http::{connect, read_answer};
use crate::support::upstream::ClosedPort;
use crate::support::{Gate, Gateway, Reply, Upstream, eventually};
use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn gateway(urls: &[String], more: &str) -> Gateway {
    let urls = urls.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
    Gateway::start(&format!("[upstreams.app]\nurls = [{urls}]\n{more}\n{}", source("github", "/github", "")))
}

fn healthy(gateway: &Gateway, url: &str) -> bool {
    let series = format!("hookward_upstream_healthy{{upstream=\"app\",url=\"{url}\"}} ");
    let metrics = gateway.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("no {series}in\n{metrics}")) == "1"
}

fn repeats(gateway: &Gateway) -> f64 {
    gateway.metric("hookward_upstream_repeats_total", &[("upstream", "app")])
}

/// Sends delivery 0, which the first url holds; then 1 to 6; how many of these each url got.
fn six_beside_a_slow_one(balance: &str) -> (usize, usize) {
    let gate = Gate::default();
    let held = gate.clone();
    let first = Upstream::with(move |_, number| match number {
        0 => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    });
    let second = Upstream::start();
    let gateway = gateway(&[first.url(), second.url()], &format!("balance = \"{balance}\""));
    let to = gateway.public();
    let slow = std::thread::spawn(move || delivery("/github", 0).send(to).status);
    first.wait_for(1);
    for number in 1..7 {
        assert_eq!(delivery("/github", number).send(to).status, 200);
    }
    gate.open();
    assert_eq!(slow.join().expect("a sender"), 200);
    (first.count() - 1, second.count())
}

#[test]
fn least_requests_leaves_a_slow_url_alone() {
    assert_eq!(six_beside_a_slow_one("least_requests"), (0, 6));
}

#[test]
fn round_robin_goes_by_turns_whatever_is_in_flight() {
    assert_eq!(six_beside_a_slow_one("round_robin"), (3, 3));
}

#[test]
fn a_url_that_refuses_connections_loses_no_delivery() {
    let dead = ClosedPort::new();
    let alive = Upstream::start();
    let dead_url = format!("http://{}", dead.address());
    let gateway = gateway(&[dead_url.clone(), alive.url()], "");
    let to = gateway.public();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let senders: Vec<_> =
            (0..40).map(|number| scope.spawn(move || delivery("/github", number).send(to).status)).collect();
        senders.into_iter().map(|sender| sender.join().expect("a sender")).collect()
    });
    assert_eq!(statuses, [200; 40]);
    assert_eq!(alive.count(), 40);
    assert!(repeats(&gateway) >= 1.0);
    assert!(!healthy(&gateway, &dead_url) && healthy(&gateway, &alive.url()));
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 200, "one url is enough");
    // Back again, it is found by an ordinary delivery.
    let back = dead.open(|_, _| Reply::Status(200));
    let mut number = 40;
    eventually("the url is in use again", || {
        number += 1;
        assert_eq!(delivery("/github", number).send(to).status, 200);
        (back.count() > 0).then_some(())
    });
    assert!(healthy(&gateway, &dead_url));
}

#[test]
fn a_url_that_hangs_is_left_alone_after_three_timeouts() {
    let gate = Gate::default();
    let held = gate.clone();
    let hanging = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Close)));
    let good = Upstream::start();
    let gateway = gateway(&[hanging.url(), good.url()], "timeout = \"500ms\"\nbalance = \"round_robin\"");
    let send = |number| delivery("/github", number).send(gateway.public()).status;
    let before: Vec<u16> = (0..6).map(send).collect();
    assert_eq!(before, [504, 200, 504, 200, 504, 200]);
    assert!(!healthy(&gateway, &hanging.url()));
    let after: Vec<u16> = (6..36).map(send).collect();
    let lost = after.iter().filter(|status| **status != 200).count();
    // One, at most, is the attempt to find out whether it is back.
    assert!(lost <= 1, "{after:?}");
    gate.open();
}

#[test]
fn a_url_whose_health_check_fails_gets_nothing_until_it_succeeds() {
    let well = Arc::new(AtomicBool::new(false));
    let state = well.clone();
    let sick = Upstream::with(move |request, _| match request.target.as_str() {
        "/healthz" if !state.load(Ordering::SeqCst) => Reply::Status(503),
        _ => Reply::Status(200),
    });
    let good = Upstream::start();
    let gateway = gateway(&[sick.url(), good.url()], "health = { path = \"/healthz\", interval = \"50ms\" }");
    let deliveries = |upstream: &Upstream| upstream.received().iter().filter(|one| one.target == "/github").count();
    eventually("it is set aside", || (!healthy(&gateway, &sick.url())).then_some(()));
    let probe = sick.received().remove(0);
    assert_eq!((probe.method.as_str(), probe.header("user-agent").as_deref()), ("GET", Some("hookward-health")));
    for number in 0..10 {
        assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
    }
    assert_eq!((deliveries(&sick), deliveries(&good)), (0, 10));
    well.store(true, Ordering::SeqCst);
    eventually("it is back", || healthy(&gateway, &sick.url()).then_some(()));
    for number in 10..20 {
        assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
    }
    assert!(deliveries(&sick) > 0);
}

/// Closes the connection on the second request, which comes on a used connection, without a byte of an answer.
fn closes_on_the_second() -> Upstream {
    Upstream::with(|_, number| if number == 1 { Reply::Close } else { Reply::Status(200) })
}

#[test]
fn a_request_that_met_the_end_of_a_used_connection_is_repeated_once_under_the_same_id() {
    let upstream = closes_on_the_second();
    let gateway = gateway(&[upstream.url()], ONE_THREAD);
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200);
    let answer = delivery("/github", 1).send(gateway.public());
    assert_eq!(answer.status, 200);
    let received = upstream.received();
    assert_eq!(received.iter().map(|one| one.connection).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(received[1].header("x-request-id"), Some(answer.request_id()));
    assert_eq!(received[2].header("x-request-id"), Some(answer.request_id()));
    assert_eq!(received[1].body, received[2].body);
    assert_eq!((repeats(&gateway), gateway.outcome("github", "accepted")), (1.0, 2));
    assert!(healthy(&gateway, &upstream.url()), "a stale connection is nobody's fault");
}

#[test]
fn a_request_is_repeated_once_and_no_more() {
    let upstream = Upstream::with(|_, number| if number > 0 { Reply::Close } else { Reply::Status(200) });
    let gateway = gateway(&[upstream.url()], ONE_THREAD);
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200);
    assert_eq!(delivery("/github", 1).send(gateway.public()).status, 502);
    assert_eq!((upstream.count(), repeats(&gateway)), (3, 1.0));
}

#[test]
fn with_repeat_on_stale_off_the_sender_is_told_and_repeats_it_itself() {
    let upstream = closes_on_the_second();
    let gateway = gateway(&[upstream.url()], &format!("repeat_on_stale = false\n{ONE_THREAD}"));
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200);
    assert_eq!(delivery("/github", 1).send(gateway.public()).status, 502);
    assert_eq!((upstream.count(), repeats(&gateway)), (2, 0.0));
    assert_eq!(delivery("/github", 1).send(gateway.public()).status, 200);
}

#[test]
fn connections_that_the_upstream_closed_while_they_rested_cost_no_delivery() {
    let upstream = Upstream::start();
    let gateway = gateway(&[upstream.url()], "");
    for number in 0..20 {
        let status = delivery("/github", number).send(gateway.public()).status;
        let connections: Vec<usize> = upstream.received().iter().map(|one| one.connection).collect();
        assert_eq!(status, 200, "{number}: {} connections, requests on {connections:?}", upstream.connections());
        upstream.hang_up();
    }
    assert_eq!((upstream.count(), upstream.connections()), (20, 20));
}

#[test]
fn beyond_max_in_flight_a_delivery_waits_its_time_and_is_then_told_to_come_back() {
    let gate = Gate::default();
    let held = gate.clone();
    let slow = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let other = Upstream::start();
    let gateway = Gateway::start(&format!(
        "[upstreams.slow]\nurls = [\"{}\"]\nmax_in_flight = 2\nqueue_timeout = \"100ms\"\n{}{}{}",
        slow.url(),
        other.table(),
        source("slow", "/slow", "upstream = \"slow\""),
        source("other", "/other", ""),
    ));
    let to = gateway.public();
    let holding: Vec<_> =
        (0..2).map(|number| std::thread::spawn(move || delivery("/slow", number).send(to).status)).collect();
    slow.wait_for(2);
    let begun = std::time::Instant::now();
    let answer = delivery("/slow", 2).send(to);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(begun.elapsed().as_millis() >= 100, "it did not wait: {:?}", begun.elapsed());
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_busy");
    let busy = gateway.metric("hookward_upstream_requests_total", &[("upstream", "slow"), ("result", "busy")]);
    assert_eq!(busy, 1.0);
    // Another upstream has places of its own.
    assert_eq!(delivery("/other", 0).send(to).status, 200);
    gate.open();
    for sender in holding {
        assert_eq!(sender.join().expect("a sender"), 200);
    }
    // The claim was let go, so what was refused passes now.
    assert_eq!(delivery("/slow", 2).send(to).status, 200);
    assert_eq!(slow.count(), 3);
}

#[test]
fn a_delivery_that_waits_gets_the_next_place() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, number| match number {
        0 => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    });
    // Connections rest with the thread that used them.
    let gateway = gateway(&[upstream.url()], "max_in_flight = 1\nqueue_timeout = \"20s\"\n[limits]\nthreads = 1");
    let to = gateway.public();
    let senders: Vec<_> =
        (0..3).map(|number| std::thread::spawn(move || delivery("/github", number).send(to).status)).collect();
    upstream.wait_for(1);
    gate.open();
    for sender in senders {
        assert_eq!(sender.join().expect("a sender"), 200);
    }
    assert_eq!((upstream.count(), upstream.connections()), (3, 1), "one at a time, on one connection");
}

#[test]
fn an_upstream_or_url_that_a_reload_takes_away_leaves_the_metrics() {
    let (dead, alive) = (ClosedPort::new(), Upstream::start());
    let dead_url = format!("http://{}", dead.address());
    let configuration = |urls: &str, more: &str| {
        format!("{PLAIN}[upstreams.app]\nurls = [{urls}]\n{}{more}", source("github", "/github", ""))
    };
    let another = format!(
        "[upstreams.another]\nurls = [\"{dead_url}\"]\n{}",
        source("other", "/other", "upstream = \"another\"")
    );
    let both = configuration(&format!("\"{dead_url}\", \"{}\"", alive.url()), &another);
    let mut gateway = Gateway::start_in(Default::default(), &both);
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200);
    assert_eq!(delivery("/other", 0).send(gateway.public()).status, 503);
    assert!(!healthy(&gateway, &dead_url));

    assert!(gateway.reload(&configuration(&format!("\"{}\"", alive.url()), "")));
    let metrics = gateway.metrics();
    assert!(!metrics.contains(&dead_url), "{metrics}");
    assert!(!metrics.contains("upstream=\"another\""), "{metrics}");
    assert!(healthy(&gateway, &alive.url()));
    // What stays goes on counting.
    assert_eq!(delivery("/github", 1).send(gateway.public()).status, 200);
    let answered = gateway.metric("hookward_upstream_requests_total", &[("upstream", "app"), ("result", "2xx")]);
    assert_eq!(answered, 2.0);
}

#[test]
fn a_sender_that_does_not_read_its_answer_holds_a_place_no_longer_than_the_upstreams_time() {
    let upstream = Upstream::with(|_, number| match number {
        0 => Reply::Full { status: 200, headers: Vec::new(), body: vec![b'x'; 12_000_000] },
        _ => Reply::Status(200),
    });
    let gateway = gateway(&[upstream.url()], "max_in_flight = 1\nqueue_timeout = \"0s\"\ntimeout = \"2s\"");
    let mut deaf = connect(gateway.public()).expect("a connection");
    // What the sockets can hold is less than the answer.
    rustix::net::sockopt::set_socket_recv_buffer_size(&deaf, 64 * 1024).expect("a buffer");
    deaf.write_all(&delivery("/github", 0).bytes()).expect("sent");
    upstream.wait_for(1);
    eventually("the place is free", || (delivery("/github", 1).send(gateway.public()).status == 200).then_some(()));
    // Whoever did not read is not held against the upstream.
    let late = gateway.metric("hookward_upstream_requests_total", &[("upstream", "app"), ("result", "timeout")]);
    assert_eq!(late, 0.0);
    // What it reads at last does not end as if it were whole.
    let answer = read_answer(&mut BufReader::new(deaf)).map(|answer| (answer.status, answer.body.len()));
    assert!(answer.is_err(), "{answer:?}");
}
