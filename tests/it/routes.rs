//! A delivery goes where its event, its headers and its body send it.

use crate::accepts::{SECRET, push};
use crate::support::{Gateway, Reply, Request, Upstream, eventually, sign};

fn upstreams(named: &[(&str, &Upstream)]) -> String {
    named
        .iter()
        .map(|(name, upstream)| format!("[upstreams.{name}]\nurls = [\"http://{}\"]\n", upstream.address))
        .collect()
}

fn github(routes: &str) -> String {
    format!(
        "[sources.github]\npath = \"/github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n{routes}"
    )
}

/// Signed, of one event and with a body of its own, so that none is a replay of another.
fn event(name: &str, body: &str) -> Request {
    Request::post("/github", body.as_bytes())
        .header("X-Hub-Signature-256", sign::github(SECRET, body.as_bytes()))
        .header("X-GitHub-Event", name)
        .header("X-GitHub-Delivery", sign::github("an id", body.as_bytes()))
}

#[test]
fn an_event_goes_to_the_upstream_of_the_first_route_that_matches() {
    let (code, issues, rest) = (Upstream::start(), Upstream::start(), Upstream::start());
    let routes = "upstream = \"rest\"\n\
                  [[sources.github.routes]]\nevents = [\"push\", \"pull_request*\"]\nupstream = \"code\"\nupstream_path = \"/hooks/code\"\n\
                  [[sources.github.routes]]\nevents = [\"issue*\"]\nupstream = \"issues\"\n";
    let all = upstreams(&[("code", &code), ("issues", &issues), ("rest", &rest)]);
    let gateway = Gateway::start(&format!("{all}{}", github(routes)));
    for (name, body) in [
        ("push", "1"),
        ("pull_request_review", "2"),
        ("issues", "3"),
        ("issue_comment", "4"),
        ("ping", "5"),
        ("pushed", "6"),
    ] {
        assert_eq!(event(name, body).send(gateway.public()).status, 200, "{name}");
    }
    let bodies = |upstream: &Upstream| {
        upstream.received().into_iter().map(|one| String::from_utf8_lossy(&one.body).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(bodies(&code), ["1", "2"]);
    assert_eq!(bodies(&issues), ["3", "4"]);
    assert_eq!(bodies(&rest), ["5", "6"]);
    assert_eq!(code.received().first().map(|one| one.target.clone()).as_deref(), Some("/hooks/code"));
    assert_eq!(rest.received().first().map(|one| one.target.clone()).as_deref(), Some("/github"));
    assert_eq!(gateway.outcome("github", "accepted"), 6);
}

#[test]
fn headers_and_the_body_choose_a_route_and_all_conditions_must_hold() {
    let (eu, rest) = (Upstream::start(), Upstream::start());
    let routes = "upstream = \"rest\"\n\
                  [[sources.github.routes]]\nevents = [\"push\"]\nheaders = { \"x-shop\" = [\"eu-*\", \"uk\"] }\n\
                  json = { \"/repository/private\" = true, \"/number\" = [1, 2] }\nupstream = \"eu\"\n";
    let gateway = Gateway::start(&format!("{}{}", upstreams(&[("eu", &eu), ("rest", &rest)]), github(routes)));
    let body = |number: u32, private: bool| format!(r#"{{"number":{number},"repository":{{"private":{private}}}}}"#);
    let send = |request: Request| {
        let answer = request.send(gateway.public());
        assert_eq!(answer.status, 200);
        gateway.audit_of(&answer.request_id())["upstream"].clone()
    };
    assert_eq!(send(event("push", &body(1, true)).header("X-Shop", "eu-3")), "eu");
    assert_eq!(send(event("push", &format!("{} ", body(2, true))).header("X-Shop", "us").header("X-SHOP", "uk")), "eu");
    assert_eq!(send(event("push", &body(3, true)).header("X-Shop", "eu-3")), "rest");
    assert_eq!(send(event("push", &body(1, false)).header("X-Shop", "eu-3")), "rest");
    assert_eq!(send(event("push", &format!("{}  ", body(1, true))).header("X-Shop", "us")), "rest");
    assert_eq!(send(event("push", &format!("{}   ", body(1, true)))), "rest");
    assert_eq!(send(event("issues", &format!("{}    ", body(1, true))).header("X-Shop", "uk")), "rest");
    // What one parser reads as true and another as false is neither.
    assert_eq!(
        send(event("push", r#"{"number":1,"number":7,"repository":{"private":true}}"#).header("X-Shop", "uk")),
        "rest"
    );
    assert_eq!(send(event("push", "not json").header("X-Shop", "uk")), "rest");
    assert_eq!((eu.count(), rest.count()), (2, 7));
}

#[test]
fn what_no_route_takes_is_acknowledged_and_counted_as_unrouted() {
    let upstream = Upstream::start();
    let routes = "acknowledge = { status = 200, body = \"noted\" }\n\
                  [[sources.github.routes]]\nevents = [\"push\"]\nupstream = \"app\"\n";
    let gateway = Gateway::start(&format!("{}{}", upstreams(&[("app", &upstream)]), github(routes)));
    let answer = event("ping", "1").send(gateway.public());
    assert_eq!((answer.status, answer.text().as_str()), (200, "noted"));
    let audit = gateway.audit_of(&answer.request_id());
    assert_eq!((&audit["outcome"], &audit["upstream"]), (&"unrouted".into(), &serde_json::Value::Null));
    assert_eq!(gateway.outcome("github", "unrouted"), 1);
    // It was taken: a copy of it is a replay.
    assert_eq!(event("ping", "1").send(gateway.public()).status, 200);
    assert_eq!((gateway.outcome("github", "replay"), gateway.outcome("github", "unrouted")), (1, 1));
    // And nobody gets there without a proof.
    let mut forged = event("ping", "2");
    forged.body = b"3".to_vec();
    assert_eq!(forged.send(gateway.public()).status, 401);
    assert_eq!(gateway.outcome("github", "unrouted"), 1);
    assert_eq!(push(b"{}").send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_delivery_whose_upstream_refuses_it_passes_again_and_the_others_are_not_asked() {
    let failing = Upstream::with(|_, before| Reply::Status(if before == 0 { 500 } else { 204 }));
    let rest = Upstream::start();
    let routes = "upstream = \"rest\"\n[[sources.github.routes]]\nevents = [\"push\"]\nupstream = \"code\"\n";
    let gateway = Gateway::start(&format!("{}{}", upstreams(&[("code", &failing), ("rest", &rest)]), github(routes)));
    assert_eq!(event("push", "1").send(gateway.public()).status, 500);
    assert_eq!(event("push", "1").send(gateway.public()).status, 204);
    assert_eq!((failing.count(), rest.count()), (2, 0));
}

#[test]
fn one_upstream_at_its_limit_does_not_keep_deliveries_from_another() {
    let gate = crate::support::Gate::default();
    let held = gate.clone();
    let slow = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let quick = Upstream::start();
    let tables = format!(
        "[upstreams.slow]\nurls = [\"http://{}\"]\nmax_in_flight = 1\nqueue_timeout = \"0s\"\n{}",
        slow.address,
        upstreams(&[("quick", &quick)])
    );
    let routes = "upstream = \"quick\"\n[[sources.github.routes]]\nevents = [\"push\"]\nupstream = \"slow\"\n";
    let gateway = Gateway::start(&format!("{tables}{}", github(routes)));
    let to = gateway.public();
    let first = std::thread::spawn(move || event("push", "1").send(to).status);
    slow.wait_for(1);
    let answer = event("push", "2").send(to);
    assert_eq!(answer.status, 503);
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_busy");
    assert_eq!(event("issues", "3").send(to).status, 200);
    gate.open();
    assert_eq!(first.join().expect("a sender"), 200);
}

#[test]
fn an_observed_delivery_goes_where_it_would_go_if_it_were_proven() {
    let (code, rest) = (Upstream::start(), Upstream::start());
    let routes = "mode = \"observe\"\nupstream = \"rest\"\n\
                  [[sources.github.routes]]\nevents = [\"push\"]\njson = { \"/a\" = 1 }\nupstream = \"code\"\n";
    let gateway = Gateway::start(&format!("{}{}", upstreams(&[("code", &code), ("rest", &rest)]), github(routes)));
    let mut forged = event("push", "{}");
    forged.body = br#"{"a":1}"#.to_vec();
    assert_eq!(forged.send(gateway.public()).status, 200);
    let received = code.wait_for(1).remove(0);
    assert_eq!(received.header("x-hookward-would-refuse").as_deref(), Some("bad_signature"));
    assert_eq!(received.header("x-hookward-event-type"), None);
    assert_eq!(event("push", r#"{"a":1}"#).send(gateway.public()).status, 200);
    assert_eq!(code.wait_for(2).remove(1).header("x-hookward-verified").as_deref(), Some("github"));
    assert_eq!(rest.count(), 0);
}

#[test]
fn each_upstream_signs_what_goes_to_it_and_no_other() {
    let (signed, plain) = (Upstream::start(), Upstream::start());
    let tables = format!(
        "{}[upstreams.signed]\nurls = [\"http://{}\"]\nsign = {{ secret = {{ value = \"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd\" }} }}\n",
        upstreams(&[("plain", &plain)]),
        signed.address
    );
    let routes = "upstream = \"plain\"\n[[sources.github.routes]]\nevents = [\"push\"]\nupstream = \"signed\"\n";
    let gateway = Gateway::start(&format!("{tables}{}", github(routes)));
    assert_eq!(event("push", "1").send(gateway.public()).status, 200);
    assert_eq!(event("ping", "2").send(gateway.public()).status, 200);
    assert!(signed.wait_for(1).remove(0).header("webhook-signature").is_some());
    assert_eq!(plain.wait_for(1).remove(0).header("webhook-signature"), None);
}

#[test]
fn a_reload_sends_events_elsewhere_without_dropping_one() {
    let (old, new) = (Upstream::start(), Upstream::start());
    let all = upstreams(&[("old", &old), ("new", &new)]);
    let to = |name: &str| {
        let routes =
            format!("upstream = \"old\"\n[[sources.github.routes]]\nevents = [\"push\"]\nupstream = \"{name}\"\n");
        format!("{}{all}{}", crate::support::gateway::PLAIN, github(&routes))
    };
    let mut gateway = Gateway::start_in(std::sync::Arc::default(), &to("old"));
    assert_eq!(event("push", "1").send(gateway.public()).status, 200);
    assert!(gateway.reload(&to("new")));
    assert_eq!(event("push", "2").send(gateway.public()).status, 200);
    assert_eq!((old.count(), new.count()), (1, 1));
}

#[test]
fn the_operators_port_names_every_upstream_of_a_source() {
    let (code, rest) = (Upstream::start(), Upstream::start());
    let routes = "upstream = \"rest\"\n[[sources.github.routes]]\nevents = [\"push\"]\nupstream = \"code\"\n";
    let gateway = Gateway::start(&format!("{}{}", upstreams(&[("code", &code), ("rest", &rest)]), github(routes)));
    let asked = Request::new("GET", "/sources").header("Authorization", "Bearer an-admin-token-for-tests");
    let answer = eventually("the operator's port answers", || asked.clone().try_send(gateway.address("admin")).ok());
    let told: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
    assert_eq!(told["sources"][0]["upstreams"], serde_json::json!(["code", "rest"]));
    assert_eq!(told["sources"][0]["upstream"], "rest");
    assert_eq!(told["sources"][0]["upstream_can_forward"], true);
}
