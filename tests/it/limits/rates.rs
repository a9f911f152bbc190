//! How often.

use super::{SECRET, assert_limited, open, send_from, source, start};
use crate::support::{Answer, Gateway, Request, Upstream, eventually, sign};

fn github(rate_limit: &str) -> String {
    source("github", &format!("provider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n{rate_limit}"))
}

fn delivery(body: &str) -> Request {
    Request::post("/github", body).header("X-Hub-Signature-256", sign::github(SECRET, body.as_bytes()))
}

fn forgery() -> Request {
    Request::post("/github", "forged").header("X-Hub-Signature-256", sign::github("not-the-secret", b"forged"))
}

#[test]
fn a_sources_rate_is_spent_by_first_deliveries_and_by_nothing_else() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[github("rate_limit = { rate = \"1/h\", burst = 3 }")]);
    let send = |request: &Request| request.send(gateway.public());
    let statuses = |answers: Vec<Answer>| answers.iter().map(|answer| answer.status).collect::<Vec<_>>();
    assert_eq!(statuses((0..5).map(|_| send(&forgery())).collect()), [401; 5]);
    assert_eq!(send(&delivery("1")).status, 200);
    assert_eq!(statuses((0..5).map(|_| send(&delivery("1"))).collect()), [202; 5], "replays are acknowledged");
    assert_eq!(send(&delivery("2")).status, 200);
    assert_eq!(statuses((0..5).map(|_| send(&forgery())).collect()), [401; 5]);
    assert_eq!(send(&delivery("3")).status, 200);
    let over = send(&delivery("4"));
    assert_limited(&gateway, &over, 429, "rate_limited");
    let wait: u32 = over.header("retry-after").expect("checked").parse().expect("checked");
    assert!((3000..=3601).contains(&wait), "it says how long an hour's budget takes: {wait}");
    // Being over the rate neither hides a forgery nor blocks the answer to a copy.
    assert_eq!(send(&forgery()).status, 401);
    assert_eq!(send(&delivery("1")).status, 202);
    assert_eq!(upstream.count(), 3);
}

#[test]
fn what_was_over_the_rate_gets_through_when_it_comes_again() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[github("rate_limit = { rate = \"2/s\", burst = 1 }")]);
    let over = (0..100).map(|n| format!("{{\"n\":{n}}}")).find(|body| {
        let answer = delivery(body).send(gateway.public());
        if answer.status == 429 {
            assert_limited(&gateway, &answer, 429, "rate_limited");
        }
        answer.status == 429
    });
    let over = over.expect("two a second are fewer than a hundred in a row");
    eventually("the retry passes", || (delivery(&over).send(gateway.public()).status == 200).then_some(()));
    assert_eq!(delivery(&over).send(gateway.public()).status, 202, "and counts as accepted from then on");
}

#[test]
fn a_client_over_its_own_rate_leaves_the_others_theirs() {
    let upstream = Upstream::start();
    let limits = "rate_limit = [{ rate = \"1/h\", burst = 2 }, { rate = \"1/h\", burst = 1, per = \"client\" }]";
    let gateway = start(&upstream, "", &[github(limits)]);
    let send = |client: u8, body: &str| send_from(client, gateway.public(), &delivery(body));
    assert_eq!(send(1, "1").status, 200);
    for n in 0..5 {
        assert_limited(&gateway, &send(1, &format!("1 {n}")), 429, "rate_limited");
    }
    // Those five took nothing of what all share.
    assert_eq!(send(2, "2").status, 200);
    assert_limited(&gateway, &send(3, "3"), 429, "rate_limited");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_client_keeps_its_own_rate_while_that_of_all_is_spent() {
    let upstream = Upstream::start();
    let limits = "rate_limit = [{ rate = \"1/h\", burst = 1, per = \"client\" }, { rate = \"4/s\", burst = 1 }]";
    let gateway = start(&upstream, "", &[github(limits)]);
    let send = |client: u8| send_from(client, gateway.public(), &delivery(&client.to_string()));
    // Somebody comes too soon behind somebody else; what they may send in an hour is still theirs.
    let refused = (1..=250).find(|client| send(*client).status == 429).expect("four a second are fewer");
    eventually("the retry passes", || (send(refused).status == 200).then_some(()));
}

const FAILURES: &str = "failed_auth = { rate = \"1/h\", burst = 3 }";

#[test]
fn whoever_guesses_passwords_is_not_listened_to_any_more() {
    let upstream = Upstream::start();
    let bearer = |name: &str| source(name, "bearer = [{ value = \"the-bearer-token-of-tests\" }]");
    let gateway = start(&upstream, FAILURES, &[bearer("one"), bearer("two")]);
    let guess = |path: &str, client: u8, token: &str| {
        let sent = Request::post(path, "{}").header("Authorization", format!("Bearer {token}"));
        send_from(client, gateway.public(), &sent)
    };
    let right = "the-bearer-token-of-tests";
    assert_eq!(guess("/one", 1, right).status, 200);
    for n in 0..3 {
        assert_eq!(guess("/one", 1, &format!("guess-{n}")).status, 401);
    }
    assert_limited(&gateway, &guess("/one", 1, "guess-3"), 429, "auth_throttled");
    // Unseen: the next guess could be right, and nobody would know.
    assert_limited(&gateway, &guess("/one", 1, right), 429, "auth_throttled");
    assert_eq!(upstream.count(), 1);
    // It is between this client and this source.
    assert_eq!(guess("/one", 2, right).status, 200);
    assert_eq!(guess("/two", 1, right).status, 200);
}

#[test]
fn forgers_do_not_lock_out_the_genuine_sender_on_their_address() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, FAILURES, &[github("")]);
    for _ in 0..3 {
        assert_eq!(forgery().send(gateway.public()).status, 401);
    }
    for n in 0..5 {
        assert_limited(&gateway, &forgery().send(gateway.public()), 429, "auth_throttled");
        assert_eq!(delivery(&format!("{n}")).send(gateway.public()).status, 200);
    }
    assert_eq!(upstream.count(), 5);
    assert_eq!(gateway.outcome("github", "bad_signature"), 3);
    assert_eq!(gateway.outcome("github", "auth_throttled"), 5);
}

#[test]
fn copies_have_a_budget_of_their_own() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[github("")]);
    assert_eq!(delivery("1").send(gateway.public()).status, 200);
    let limited = (0..2000).map(|_| delivery("1").send(gateway.public())).find(|answer| answer.status != 202);
    assert_limited(&gateway, &limited.expect("a limit"), 429, "rate_limited");
    assert_eq!(delivery("2").send(gateway.public()).status, 200);
    assert_eq!(send_from(2, gateway.public(), &delivery("1")).status, 202);
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_limit_of_one_source_is_not_another_ones() {
    let upstream = Upstream::start();
    let gateway: Gateway = start(&upstream, "", &[github("rate_limit = { rate = \"1/h\", burst = 1 }"), open("other")]);
    assert_eq!(delivery("1").send(gateway.public()).status, 200);
    assert_limited(&gateway, &delivery("2").send(gateway.public()), 429, "rate_limited");
    for _ in 0..5 {
        assert_eq!(Request::post("/other", "{}").send(gateway.public()).status, 200);
    }
}
