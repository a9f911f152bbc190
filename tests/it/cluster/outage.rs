//! Redis dies, hangs, comes back, and comes back empty.

use super::stage::{event, gateways, kept, ready, refused_for_now, source, state};
use crate::support::engines::Redis;
use crate::support::{Gateway, Upstream, eventually};
use std::time::{Duration, Instant};

const KEPT: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
/// Of `[state]`, by default.
const TIMEOUT: Duration = Duration::from_millis(250);
/// On a machine that does much else at the same time.
const SLACK: Duration = Duration::from_millis(750);
const RECOVERY: Duration = Duration::from_secs(5);

/// Refused within the timeout, several times; how long the longest took.
fn refuses(gateway: &Gateway, first: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for n in first..first + 5 {
        let start = Instant::now();
        let answer = event("shop", &format!("evt_{n}")).send(gateway.public());
        longest = longest.max(start.elapsed());
        assert!(refused_for_now(&answer), "{answer:?}");
    }
    assert!(longest < TIMEOUT + SLACK, "{longest:?}");
    longest
}

/// How long it took until a new delivery was accepted again.
fn serves_again(gateway: &Gateway, name: &str) -> Duration {
    let start = Instant::now();
    let delivery = event("shop", name);
    eventually("it serves again", || (delivery.send(gateway.public()).status == 200).then_some(()));
    assert!(start.elapsed() < RECOVERY, "{:?}", start.elapsed());
    start.elapsed()
}

#[test]
fn without_redis_deliveries_are_refused_within_the_timeout_and_it_serves_within_five_seconds_of_its_return() {
    let (mut redis, upstream) = (Redis::start_with(&KEPT), Upstream::start());
    let gateways = gateways(2, &state(&redis, ""), &upstream, &source("shop", ""));
    let before = event("shop", "evt_before");
    eventually("it is accepted", || (before.send(gateways[0].public()).status == 200).then_some(()));
    redis.kill();
    let longest = refuses(&gateways[1], 0);
    let errors = gateways[1].metric("hookward_state_errors_total", &[]);
    assert!(errors >= 5.0, "{errors}");
    eventually("the balancer is told", || (ready(&gateways[1]).0 == 503).then_some(()));
    assert_eq!(ready(&gateways[1]).1, "not ready: the state store does not work\n");
    redis.restart();
    let back = gateways.iter().map(|gateway| serves_again(gateway, &format!("evt_{}", gateway.pid()))).max();
    // What was refused meanwhile is new, and what was accepted before is known to all.
    assert_eq!(event("shop", "evt_0").send(gateways[0].public()).status, 200);
    assert_eq!(before.send(gateways[1].public()).status, 409);
    assert_eq!(upstream.count(), 4);
    eventually("the balancer is told", || (ready(&gateways[1]).0 == 200).then_some(()));
    eprintln!("killed: refused within {longest:?}; served again after {back:?}");
}

#[test]
fn a_redis_that_hangs_is_one_that_is_away() {
    let (redis, upstream) = (Redis::start(), Upstream::start());
    let gateways = gateways(2, &state(&redis, ""), &upstream, &source("shop", ""));
    redis.pause();
    let delivery = event("shop", "evt_hung");
    assert!(refused_for_now(&delivery.send(gateways[0].public())));
    let longest = refuses(&gateways[0], 0);
    redis.resume();
    let back = serves_again(&gateways[0], "evt_after");
    // What was asked while it hung may have been carried out since: it strands nothing.
    let start = Instant::now();
    eventually("the retry passes", || (delivery.send(gateways[1].public()).status == 200).then_some(()));
    assert!(start.elapsed() < RECOVERY, "{:?}", start.elapsed());
    assert_eq!(upstream.count(), 2);
    eprintln!("stopped: refused within {longest:?}; served again after {back:?}");
}

#[test]
fn told_to_allow_a_gateway_goes_on_by_its_own_memory_says_so_and_tells_the_others_afterwards() {
    let (mut redis, upstream) = (Redis::start(), Upstream::start());
    let state = state(&redis, "on_failure = \"allow\"");
    let gateways = gateways(2, &state, &upstream, &source("shop", ""));
    redis.kill();
    let deliveries: Vec<_> = (0..5).map(|n| event("shop", &format!("evt_{n}"))).collect();
    for delivery in &deliveries {
        assert_eq!(delivery.send(gateways[0].public()).status, 200);
        assert_eq!(delivery.send(gateways[0].public()).status, 409, "its own memory knows it");
    }
    assert!(gateways[0].metric("hookward_state_fallback_total", &[("source", "shop")]) >= 5.0);
    assert!(gateways[0].metric("hookward_state_errors_total", &[]) >= 1.0);
    gateways[0].wait_for_log("this gateway judges by its own memory");
    assert_eq!(ready(&gateways[0]).0, 200);
    redis.restart();
    eventually("what was accepted meanwhile is told", || (kept(&redis, "shop") >= deliveries.len()).then_some(()));
    // Until then it, too, goes by its own memory.
    eventually("the other is connected again", || {
        (gateways[1].log_text().matches("Redis: connected").count() >= 2).then_some(())
    });
    let start = Instant::now();
    for delivery in &deliveries {
        eventually("known to the other", || match delivery.send(gateways[1].public()).status {
            409 => Some(()),
            503 => None,
            other => panic!("{other}"),
        });
    }
    assert!(start.elapsed() < RECOVERY, "{:?}", start.elapsed());
    assert_eq!(upstream.count(), deliveries.len());
}

#[test]
fn a_redis_that_comes_back_empty_is_noticed_told_of_and_filled_again_by_those_who_remember() {
    let (mut redis, upstream) = (Redis::start(), Upstream::start());
    let gateways = gateways(2, &state(&redis, ""), &upstream, &source("shop", ""));
    let accepted: Vec<_> = (0..10).map(|n| event("shop", &format!("evt_{n}"))).collect();
    for (n, delivery) in accepted.iter().enumerate() {
        eventually("it is accepted", || (delivery.send(gateways[n % 2].public()).status == 200).then_some(()));
    }
    redis.kill();
    redis.restart();
    // Each of them at the gateway that did not accept it: it is never new.
    for (n, delivery) in accepted.iter().enumerate() {
        eventually("refused as a replay", || match delivery.send(gateways[(n + 1) % 2].public()).status {
            409 => Some(()),
            503 => None,
            other => panic!("evt_{n}: {other}"),
        });
    }
    assert_eq!(kept(&redis, "shop"), accepted.len());
    for gateway in &gateways {
        gateway.wait_for_log("Redis has lost what was accepted");
        assert!(gateway.metric("hookward_state_lost_total", &[]) >= 1.0);
    }
    let back = serves_again(&gateways[0], "evt_new");
    assert_eq!(upstream.count(), accepted.len() + 1);
    eprintln!("came back empty: served again {back:?} later");
}
