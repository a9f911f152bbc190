//! Two and three gateways, all well.

use super::stage::{Client, event, gateways, refused_for_now, source, state};
use crate::support::engines::Redis;
use crate::support::{Gateway, Request, Upstream, eventually};
use std::collections::HashSet;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const EVENTS: usize = 200;
/// On each gateway, one connection each.
const SENDERS: usize = 20;

/// Copies of one delivery reach all gateways at the same moment.
fn one_of_all_copies_is_forwarded(many: usize) {
    let (redis, upstream) = (Redis::start(), Upstream::start());
    let gateways = gateways(many, &state(&redis, "timeout = \"10s\""), &upstream, &source("shop", ""));
    let events: Vec<Request> = (0..EVENTS).map(|n| event("shop", &format!("evt_{n}"))).collect();
    let together: Vec<Barrier> = events.iter().map(|_| Barrier::new(many)).collect();
    let answers: Vec<(usize, u16)> = thread::scope(|scope| {
        let (events, together) = (&events, &together);
        let send = |gateway: &Gateway, first: usize| {
            let mut client = Client::new(gateway.public());
            scope.spawn(move || {
                let mut answers = Vec::new();
                for n in (first..EVENTS).step_by(SENDERS) {
                    together[n].wait();
                    let answer = client.send(&events[n]);
                    // 429: copies have a budget of their own.
                    assert!(matches!(answer.status, 200 | 409 | 429) || refused_for_now(&answer), "{answer:?}");
                    answers.push((n, answer.status));
                }
                answers
            })
        };
        let senders: Vec<_> =
            gateways.iter().flat_map(|gateway| (0..SENDERS).map(move |first| send(gateway, first))).collect();
        senders.into_iter().flat_map(|sender| sender.join().expect("a sender")).collect()
    });
    assert_eq!(answers.len(), EVENTS * many);
    for n in 0..EVENTS {
        let of_it: Vec<u16> = answers.iter().filter(|(of, _)| *of == n).map(|(_, status)| *status).collect();
        assert_eq!(of_it.iter().filter(|status| **status == 200).count(), 1, "event {n}: {of_it:?}");
    }
    let forwarded: HashSet<Vec<u8>> = upstream.received().into_iter().map(|request| request.body).collect();
    assert_eq!((forwarded.len(), upstream.count()), (EVENTS, EVENTS));
    // By whichever it was accepted: from now on it is a replay to all.
    for gateway in &gateways {
        let mut client = Client::new(gateway.public());
        for event in &events {
            eventually("it is refused as a replay", || match client.send(event).status {
                409 => Some(()),
                429 => None,
                other => panic!("{other}"),
            });
        }
    }
    assert_eq!(upstream.count(), EVENTS);
    let at_once = answers.iter().filter(|(_, status)| *status == 503).count();
    eprintln!("{many} gateways: {EVENTS} forwarded once, {at_once} copies met one in flight");
}

#[test]
fn of_two_copies_that_reach_two_gateways_at_once_one_is_forwarded() {
    one_of_all_copies_is_forwarded(2);
}

#[test]
fn of_three_copies_that_reach_three_gateways_at_once_one_is_forwarded() {
    one_of_all_copies_is_forwarded(3);
}

#[test]
fn a_retry_of_what_failed_behind_one_gateway_passes_at_the_other_and_its_event_is_a_duplicate_everywhere() {
    let redis = Redis::start();
    let upstream = Upstream::with(|_, number| crate::support::Reply::Status(if number == 0 { 500 } else { 200 }));
    let gateways = gateways(2, &state(&redis, "timeout = \"10s\""), &upstream, &source("shop", ""));
    let delivery = event("shop", "evt_1");
    assert_eq!(delivery.send(gateways[0].public()).status, 500);
    assert_eq!(delivery.send(gateways[1].public()).status, 200);
    assert_eq!(delivery.send(gateways[0].public()).status, 409);
    // The same event, signed at another second.
    let again = eventually("a second passes", || {
        Some(event("shop", "evt_1")).filter(|again| again.headers != delivery.headers)
    });
    for gateway in &gateways {
        assert_eq!(again.send(gateway.public()).status, 202, "a duplicate is acknowledged");
    }
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_limit_of_a_hundred_a_second_holds_within_a_tenth_over_three_gateways() {
    const LENGTH: Duration = Duration::from_secs(5);
    const BURST: f64 = 20.0;
    let (redis, upstream) = (Redis::start(), Upstream::start());
    let limit = format!("rate_limit = {{ rate = \"100/s\", burst = {BURST} }}");
    let gateways = gateways(3, &state(&redis, "timeout = \"10s\""), &upstream, &source("shop", &limit));
    let start = Instant::now();
    let accepted: usize = thread::scope(|scope| {
        let send = |gateway: &Gateway, name: String| {
            let mut client = Client::new(gateway.public());
            scope.spawn(move || {
                let (mut accepted, mut sent) = (0, 0);
                while start.elapsed() < LENGTH {
                    let answer = client.send(&event("shop", &format!("evt_{name}_{sent}")));
                    assert!(matches!(answer.status, 200 | 429), "{answer:?}");
                    accepted += usize::from(answer.status == 200);
                    sent += 1;
                }
                accepted
            })
        };
        let senders: Vec<_> = (0..12).map(|n| send(&gateways[n % 3], n.to_string())).collect();
        senders.into_iter().map(|sender| sender.join().expect("a sender")).sum()
    });
    let (accepted, wanted) = (accepted as f64, 100.0 * start.elapsed().as_secs_f64());
    eprintln!("{accepted} accepted where {wanted:.0} and a burst of {BURST} are allowed");
    assert!(accepted <= 1.1 * (wanted + BURST), "{accepted} of {wanted}");
    assert!(accepted >= 0.9 * wanted, "{accepted} of {wanted}");
    assert_eq!(upstream.count(), accepted as usize);
}

#[test]
fn guesses_at_one_gateway_count_at_the_other_within_a_second() {
    let (redis, upstream) = (Redis::start(), Upstream::start());
    let bearer = "\n[limits]\nfailed_auth = { rate = \"1/h\", burst = 3 }\n[sources.shop]\npath = \"/shop\"\nupstream = \"app\"\n\
                  bearer = [{ value = \"the-bearer-token-of-tests\" }]\n";
    let gateways = gateways(2, &state(&redis, "timeout = \"10s\""), &upstream, bearer);
    let guess = |gateway: &Gateway, token: &str| {
        Request::post("/shop", "{}").header("Authorization", format!("Bearer {token}")).send(gateway.public()).status
    };
    for n in 0..3 {
        assert_eq!(guess(&gateways[0], &format!("guess-{n}")), 401);
    }
    assert_eq!(guess(&gateways[0], "the-bearer-token-of-tests"), 429);
    assert_eq!(guess(&gateways[1], "the-bearer-token-of-tests"), 200, "who has not failed here is heard here");
    assert_eq!(guess(&gateways[1], "guess-3"), 401);
    let start = Instant::now();
    eventually("the other gateway knows too", || {
        (guess(&gateways[1], "the-bearer-token-of-tests") == 429).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
