//! What a provider asks of a new endpoint is answered by the gateway, in the provider's words, and is of no use to
//! anybody else: neither the answers nor the refusals make deliveries, signatures or pages.

use crate::support::gateway::{Folder, PLAIN, hookward};
use crate::support::{Answer, Gateway, Request, Upstream, eventually, sign};
use base64::Engine;
use std::sync::Arc;

const SECRET: &str = "a-shared-secret-for-tests";
const TOKEN: &str = "a-token-for-handshakes";

fn source(name: &str, rest: &str) -> String {
    format!("\n[sources.{name}]\npath = \"/{name}\"\nupstream = \"app\"\nprovider = \"{name}\"\n{rest}\n")
}

fn keyed(name: &str, rest: &str) -> String {
    source(name, &format!("secrets = [{{ value = \"{SECRET}\" }}]\n{rest}"))
}

fn token() -> String {
    format!("handshake.token = {{ value = \"{TOKEN}\" }}")
}

fn start(upstream: &Upstream, sources: &[String]) -> Gateway {
    Gateway::start(&format!("{}{}", upstream.table(), sources.concat()))
}

#[track_caller]
fn assert_answered(gateway: &Gateway, answer: &Answer, status: u16, body: &str) {
    assert_eq!((answer.status, answer.text().as_str()), (status, body));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "challenge");
}

#[track_caller]
fn assert_refused(gateway: &Gateway, answer: &Answer, status: u16, reason: &str) {
    let outcome = gateway.audit_of(&answer.request_id())["outcome"].clone();
    assert_eq!((answer.status, outcome.as_str().unwrap_or_default()), (status, reason));
    assert!(!answer.text().contains("1158201444"), "the challenge was told: {}", answer.text());
}

#[test]
fn metas_challenge_is_echoed_to_whoever_knows_the_verify_token_and_by_get_alone() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("meta", &token())]);
    let get = |query: &str| Request::new("GET", &format!("/meta?{query}")).send(gateway.public());
    let right = format!("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={TOKEN}");
    let answer = get(&right);
    assert_answered(&gateway, &answer, 200, "1158201444");
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(answer.header("content-length"), Some("10"));

    assert_refused(&gateway, &get(&right.replace(TOKEN, "wrong")), 403, "bad_credentials");
    assert_refused(&gateway, &get("hub.mode=subscribe&hub.challenge=1158201444"), 403, "missing_credentials");
    assert_refused(&gateway, &get(&right.replace("=subscribe", "=unsubscribe")), 403, "bad_claims");
    assert_refused(&gateway, &get(&right.replace("1158201444", "%3Cscript%3E")), 403, "malformed");
    // No handshake: a method that the source does not take.
    assert_refused(&gateway, &get("hub.challenge=1158201444"), 405, "method_not_allowed");
    // A delivery is no question, whatever its URL says.
    let posted = Request::post(&format!("/meta?{right}"), "{}").send(gateway.public());
    assert_refused(&gateway, &posted, 401, "missing_signature");
    for method in ["PUT", "DELETE", "TRACE", "OPTIONS"] {
        let answer = Request::new(method, &format!("/meta?{right}")).send(gateway.public());
        assert_eq!(answer.status, 405, "{method}");
    }
    let signed = Request::post("/meta", "{}").header("X-Hub-Signature-256", sign::github(SECRET, b"{}"));
    assert_eq!(signed.send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn without_its_token_a_handshake_is_off_and_check_says_so() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("meta", "")]);
    let target = "/meta?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=";
    let answer = Request::new("GET", target).send(gateway.public());
    assert_refused(&gateway, &answer, 405, "method_not_allowed");
    let arguments = ["check", "--config", "gateway.toml"];
    let (_, out, err) = hookward(&gateway.folder.0, &arguments);
    assert!(format!("{out}{err}").contains("is off: there is no handshake.token"), "{out}{err}");
}

#[test]
fn fitbits_wrong_code_is_answered_with_404_and_its_right_one_with_204() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("fitbit", &token())]);
    let verify = |code: &str| Request::new("GET", &format!("/fitbit?verify={code}")).send(gateway.public());
    assert_answered(&gateway, &verify(TOKEN), 204, "");
    assert_refused(&gateway, &verify("incorrect"), 404, "bad_credentials");
    assert_refused(&gateway, &verify(""), 404, "missing_credentials");
}

#[test]
fn a_token_that_is_guessed_at_is_soon_not_looked_at() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("fitbit", &token())]);
    let verify = |code: &str| Request::new("GET", &format!("/fitbit?verify={code}")).send(gateway.public());
    let throttled = (0..200).map(|n| verify(&format!("guess{n}"))).find(|answer| answer.status == 429);
    assert_refused(&gateway, &throttled.expect("a limit"), 429, "auth_throttled");
    assert_eq!(verify(TOKEN).status, 429);
}

#[test]
fn trellos_head_is_answered_with_nothing_but_200() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("trello", "public_url = \"https://hooks.example.com/trello\"")]);
    let stream = Request::new("HEAD", "/trello").header("Connection", "close");
    // An answer to HEAD has no body, whatever its head says of one.
    let answer = stream.send(gateway.public());
    assert_answered(&gateway, &answer, 200, "");
    assert_refused(&gateway, &Request::new("GET", "/trello").send(gateway.public()), 405, "method_not_allowed");
}

#[test]
fn cloudevents_lets_listed_origins_deliver_and_tells_others_nothing() {
    let upstream = Upstream::start();
    let rest = "danger_accept_unverified = true\nhandshake = { origins = [\"events.example.com\"], rate = 120 }";
    let gateway = start(&upstream, &[source("cloudevents", rest)]);
    let options = |origin: &str, rate: Option<&str>| {
        let sent = Request::new("OPTIONS", "/cloudevents").header("WebHook-Request-Origin", origin);
        let sent = sent.header("WebHook-Request-Callback", "http://169.254.169.254/latest/meta-data");
        rate.map_or(sent.clone(), |rate| sent.header("WebHook-Request-Rate", rate)).send(gateway.public())
    };
    let answer = options("events.example.com", Some("100000"));
    assert_answered(&gateway, &answer, 200, "");
    assert_eq!(answer.header("webhook-allowed-origin"), Some("events.example.com"));
    assert_eq!(answer.header("webhook-allowed-rate"), Some("120"));
    assert_eq!(answer.header("allow"), Some("POST"));
    assert_eq!(options("events.example.com", None).header("webhook-allowed-rate"), None);
    for origin in ["evil.example", "events.example.com.evil.example", "vents.example.com", "*"] {
        let answer = options(origin, Some("60"));
        assert_refused(&gateway, &answer, 403, "bad_claims");
        assert_eq!(answer.header("webhook-allowed-origin"), None, "{origin}");
    }
    let plain = Request::new("OPTIONS", "/cloudevents").send(gateway.public());
    assert_refused(&gateway, &plain, 405, "method_not_allowed");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn graphs_validation_token_is_echoed_as_text_that_no_browser_runs() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("ms-graph", "")]);
    let target = "/ms-graph?validationToken=%3Cb%3Ex%3C%2Fb%3E%26y";
    let answer = Request::post(target, "").send(gateway.public());
    assert_answered(&gateway, &answer, 200, "<b>x</b>&y");
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    let split = Request::post("/ms-graph?validationToken=1158201444%0D%0AX:1", "").send(gateway.public());
    assert_refused(&gateway, &split, 400, "malformed");
    // With a body it is a delivery.
    let body = format!(r#"{{"value":[{{"clientState":"{SECRET}"}}]}}"#);
    assert_eq!(Request::post(target, body).send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_question_in_a_body_is_answered_when_its_token_is_right() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("lark", "")]);
    let ask = |token: &str| {
        let body = format!(r#"{{"challenge":"1158201444","token":"{token}","type":"url_verification"}}"#);
        Request::post("/lark", body).header("Content-Type", "application/json").send(gateway.public())
    };
    let answer = ask(SECRET);
    assert_answered(&gateway, &answer, 200, r#"{"challenge":"1158201444"}"#);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_refused(&gateway, &ask("another"), 401, "bad_credentials");
    assert_eq!(upstream.count(), 0);
    let event = format!(r#"{{"schema":"2.0","header":{{"token":"{SECRET}","event_id":"e1"}},"event":{{}}}}"#);
    assert_eq!(Request::post("/lark", event).send(gateway.public()).status, 200);
}

fn crc(gateway: &Gateway, token: &str) -> Answer {
    Request::new("GET", &format!("/x-twitter?crc_token={token}&nonce=b8a3")).send(gateway.public())
}

#[test]
fn what_the_crc_signs_for_anybody_is_never_taken_for_a_delivery() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("x-twitter", "")]);
    let signature = |text: &str| {
        let mac = sign::hmac_sha256(SECRET.as_bytes(), &[text.as_bytes()]);
        format!("sha256={}", base64::engine::general_purpose::STANDARD.encode(mac))
    };
    let answer = crc(&gateway, "9b4507b3-9040");
    assert_answered(&gateway, &answer, 200, &format!(r#"{{"response_token":"{}"}}"#, signature("9b4507b3-9040")));

    let deliver = |body: &str, signature: &str| {
        let sent = Request::post("/x-twitter", body).header("x-twitter-webhooks-signature", signature);
        sent.send(gateway.public())
    };
    // The very signature that the gateway handed out, over the very text it was handed out for.
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let forged = deliver("9b4507b3-9040", told["response_token"].as_str().expect("a signature"));
    assert_refused(&gateway, &forged, 401, "not_covered");
    for (body, why) in [("true", "no object"), ("", "nothing"), ("\"{}\"", "a string")] {
        assert_refused(&gateway, &deliver(body, &signature(body)), 401, "not_covered");
        assert_eq!(upstream.count(), 0, "{why}");
    }
    // And nothing that a delivery could be is signed.
    for oracle in ["%7B%22a%22%3A1%7D", "%5B%5D", "%20%7B%7D"] {
        assert_refused(&gateway, &crc(&gateway, oracle), 400, "malformed");
    }
    assert_eq!(deliver(r#"{"for_user_id":"1"}"#, &signature(r#"{"for_user_id":"1"}"#)).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn one_stranger_does_not_spend_the_handshakes_of_all() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_in(
        Arc::new(Folder::new()),
        &format!(
            "{}{}{}",
            PLAIN.replacen(
                "address = \"127.0.0.1:0\"",
                "address = \"127.0.0.1:0\"\ntrusted_proxies = [\"127.0.0.1\"]",
                1
            ),
            upstream.table(),
            keyed("x-twitter", "")
        ),
    );
    let crc = |from: &str| {
        let sent = Request::new("GET", "/x-twitter?crc_token=abc").header("X-Forwarded-For", from);
        sent.send(gateway.public())
    };
    let limited = (0..50).map(|_| crc("203.0.113.9")).find(|answer| answer.status != 200).expect("a limit");
    assert_refused(&gateway, &limited, 429, "challenge_limited");
    assert_eq!(limited.header("retry-after"), Some("1"));
    // What the stranger was refused came out of nobody else's share: a second later there is room, however it goes on.
    let answered = eventually("another client's handshake is answered", || {
        crc("203.0.113.9");
        Some(crc("198.51.100.7")).filter(|answer| answer.status == 200)
    });
    assert!(answered.text().contains("response_token"));
}

#[test]
fn xeros_wrong_signatures_get_401_and_not_a_byte_of_body() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("xero", "")]);
    let body = r#"{"events":[],"lastEventSequence":0,"firstEventSequence":0,"entropy":"S0m3r4Nd0mt3xt"}"#;
    let send = |secret: &str| {
        let mac = sign::hmac_sha256(secret.as_bytes(), &[body.as_bytes()]);
        let signature = base64::engine::general_purpose::STANDARD.encode(mac);
        Request::post("/xero", body).header("x-xero-signature", signature).send(gateway.public())
    };
    assert_answered(&gateway, &send(SECRET), 200, "");
    let refused = send("another");
    assert_refused(&gateway, &refused, 401, "bad_signature");
    assert!(refused.body.is_empty());
    assert_eq!(upstream.count(), 0);
}

const BROUGHT: &str = "b537207f20cbfa02357cf448134da559e8bd39d61597dcd5631b8012eae53e81";

fn with_state(upstream: &Upstream, source: &str) -> String {
    format!("{PLAIN}[state]\nkind = \"disk\"\npath = \"state.db\"\n{}{source}", upstream.table())
}

fn bring(gateway: &Gateway, secret: &str) -> Answer {
    Request::post("/asana", "{}").header("X-Hook-Secret", secret).send(gateway.public())
}

fn asana_delivery(gateway: &Gateway, secret: &str, body: &str) -> Answer {
    let signature = hex::encode(sign::hmac_sha256(secret.as_bytes(), &[body.as_bytes()]));
    Request::post("/asana", body).header("X-Hook-Signature", signature).send(gateway.public())
}

#[test]
fn asanas_secret_is_taken_once_while_awaited_and_signs_from_then_on_over_restarts_too() {
    let upstream = Upstream::start();
    let asana = source("asana", "handshake.await_secret = \"first\"");
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &with_state(&upstream, &asana));
    assert_refused(&gateway, &asana_delivery(&gateway, BROUGHT, r#"{"events":[1]}"#), 401, "missing_signature");

    let answer = bring(&gateway, BROUGHT);
    assert_answered(&gateway, &answer, 200, "");
    assert_eq!(answer.header("x-hook-secret"), Some(BROUGHT));
    assert_eq!(asana_delivery(&gateway, BROUGHT, r#"{"events":[2]}"#).status, 200);

    let usurper = "f".repeat(64);
    let refused = bring(&gateway, &usurper);
    assert_refused(&gateway, &refused, 401, "not_awaited");
    assert_eq!(refused.header("x-hook-secret"), None);
    assert_refused(&gateway, &asana_delivery(&gateway, &usurper, r#"{"events":[3]}"#), 401, "bad_signature");
    assert!(!gateway.log_text().contains(BROUGHT) && !gateway.log_text().contains(&usurper));

    let folder = gateway.kill();
    let gateway = Gateway::start_in(folder.clone(), &with_state(&upstream, &asana));
    assert_eq!(asana_delivery(&gateway, BROUGHT, r#"{"events":[4]}"#).status, 200);
    assert_refused(&gateway, &bring(&gateway, &usurper), 401, "not_awaited");

    // Another name waits for another secret, and the old one is none any more.
    let folder = gateway.kill();
    let again = source("asana", "handshake.await_secret = \"second\"");
    let gateway = Gateway::start_in(folder, &with_state(&upstream, &again));
    assert_refused(&gateway, &asana_delivery(&gateway, BROUGHT, r#"{"events":[5]}"#), 401, "missing_signature");
    assert_eq!(bring(&gateway, &usurper).status, 200);
    assert_eq!(asana_delivery(&gateway, &usurper, r#"{"events":[6]}"#).status, 200);
}

#[test]
fn a_secret_that_came_before_a_reload_counts_behind_it() {
    let upstream = Upstream::start();
    let asana = source("asana", "handshake.await_secret = \"first\"");
    let configuration = format!("{PLAIN}{}{asana}", upstream.table());
    let mut gateway = Gateway::start_in(Arc::new(Folder::new()), &configuration);
    assert_eq!(bring(&gateway, BROUGHT).status, 200);
    assert!(gateway.reload(&configuration));
    assert_eq!(asana_delivery(&gateway, BROUGHT, r#"{"events":[1]}"#).status, 200);
    assert_refused(&gateway, &bring(&gateway, &"f".repeat(64)), 401, "not_awaited");
}

#[test]
fn of_secrets_that_are_brought_at_once_one_is_taken() {
    let upstream = Upstream::start();
    let asana = source("asana", "handshake.await_secret = \"first\"");
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &with_state(&upstream, &asana));
    let secrets: Vec<String> = (0..4).map(|n| format!("{n}").repeat(64)).collect();
    let taken: Vec<&String> = std::thread::scope(|scope| {
        let senders: Vec<_> = secrets.iter().map(|secret| (secret, scope.spawn(|| bring(&gateway, secret)))).collect();
        let answers = senders.into_iter().map(|(secret, sender)| (secret, sender.join().expect("an answer")));
        answers.filter(|(_, answer)| answer.status == 200).map(|(secret, _)| secret).collect()
    });
    assert_eq!(taken.len(), 1);
    assert_eq!(asana_delivery(&gateway, taken[0], r#"{"events":[1]}"#).status, 200);
}

#[test]
fn a_source_with_a_secret_awaits_none() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[keyed("asana", "")]);
    assert_refused(&gateway, &bring(&gateway, BROUGHT), 401, "not_awaited");
    // A genuine delivery that carries such a header is a delivery.
    let signature = hex::encode(sign::hmac_sha256(SECRET.as_bytes(), &[b"{}"]));
    let sent = Request::post("/asana", "{}").header("X-Hook-Secret", BROUGHT).header("X-Hook-Signature", signature);
    assert_eq!(sent.send(gateway.public()).status, 200);
}

#[test]
fn notions_token_is_shown_to_the_operator_and_to_nobody_else() {
    let upstream = Upstream::start();
    let notion = source("notion", "handshake.await_secret = \"first\"");
    let asana = source("asana", "handshake.await_secret = \"first\"");
    let gateway = start(&upstream, &[notion, asana]);
    let token = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl";
    let body = format!(r#"{{"verification_token":"{token}"}}"#);
    let answer = Request::post("/notion", body.as_str()).send(gateway.public());
    assert_answered(&gateway, &answer, 200, "");
    assert_eq!(bring(&gateway, BROUGHT).status, 200);

    let admin = gateway.address("admin");
    assert_eq!(Request::new("GET", "/captured").send(admin).status, 401);
    let shown = Request::new("GET", "/captured").header("Authorization", "Bearer an-admin-token-for-tests").send(admin);
    let shown: serde_json::Value = serde_json::from_slice(&shown.body).expect("JSON");
    let of =
        |name: &str| shown["captured"].as_array().expect("a list").iter().find(|one| one["source"] == name).cloned();
    assert_eq!(of("notion").expect("notion")["secret"], token);
    let asana = of("asana").expect("asana");
    assert_eq!((&asana["secret"], &asana["has_come"]), (&serde_json::Value::Null, &serde_json::Value::Bool(true)));
    assert!(!gateway.log_text().contains(token));

    let signature = hex::encode(sign::hmac_sha256(token.as_bytes(), &[b"{}"]));
    let sent = Request::post("/notion", "{}").header("X-Notion-Signature", format!("sha256={signature}"));
    assert_eq!(sent.send(gateway.public()).status, 200);
}

#[test]
fn a_handshake_that_would_sign_deliveries_for_anybody_does_not_load() {
    let folder = Folder::new();
    let check = |message: &str, alphabet: &str, key: &str| {
        let text = format!(
            r#"
[listeners.public]
address = "127.0.0.1:0"
[upstreams.app]
urls = ["http://127.0.0.1:9"]
[sources.it]
path = "/it"
upstream = "app"
secrets = [{{ value = "{SECRET}" }}]
handshake.token = {{ value = "{TOKEN}" }}
[sources.it.verify]
algorithm = "hmac-sha256"
signature = {{ header = "X-Signature" }}
message = "{message}"
[[sources.it.handshakes]]
signed = false
methods = ["GET"]
alphabet = "{alphabet}"
compute = {{ of = "{{query:challenge}}", with = "hmac-sha256", key = "{key}" }}
json = {{ response = "{{computed}}" }}
"#
        );
        folder.write("gateway.toml", text);
        let (code, out, err) = hookward(&folder.0, &["check", "--config", "gateway.toml"]);
        (code, format!("{out}{err}"))
    };
    // A separator that the alphabet lacks, or the body itself, which must then begin as JSON does.
    for (message, alphabet, key) in
        [("v0:{body}", "token", "secret"), ("{body}", "token", "secret"), ("{body|sha256|hex}", "word", "token")]
    {
        let (code, told) = check(message, alphabet, key);
        assert_eq!(code, 0, "{message}: {told}");
    }
    for (message, alphabet) in
        [("{body|sha256|hex}", "word"), ("v0={body|sha256|hex}", "token"), ("{body}", "printable")]
    {
        let (code, told) = check(message, alphabet, "secret");
        assert_ne!(code, 0, "{message}");
        assert!(told.contains("signs for anybody") || told.contains("lets markup through"), "{told}");
    }
}
