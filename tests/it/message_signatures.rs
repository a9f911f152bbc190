//! Senders that follow the standards of HTTP: RFC 9421, the drafts before it, WebSub, CloudEvents.

use crate::support::gateway::hookward;
use crate::support::{Gateway, Request, Upstream};

/// Each with one secret; deliveries are signed for the URL that the sender was told, which no proxy here changes.
fn standards(upstream: &Upstream) -> String {
    let source = |name: &str, secret: &str, more: &str| {
        format!(
            "[sources.{name}]\npath = \"/{name}\"\npublic_url = \"https://hooks.example.com/{name}\"\n\
             upstream = \"app\"\non_replay = \"reject\"\n\
             secrets = [{{ value = \"0123456789abcdef0123456789abcdef\"{secret} }}]\n{more}\n"
        )
    };
    let key = ", id = \"key-1\", algorithm = \"hmac-sha256\"";
    [
        upstream.table(),
        source("rfc9421", key, "provider = \"rfc9421\""),
        source("nonces", key, "http_signature = { require_nonce = true, tag = \"ours\" }"),
        source("draft", key, "provider = \"draft-cavage\""),
        source("hub", "", "provider = \"websub\""),
    ]
    .join("\n")
}

#[test]
fn what_a_sender_of_each_standard_signs_is_taken_once_and_only_as_it_was_signed() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&standards(&upstream));
    let folder = &gateway.folder;
    folder.write("body", "{\"n\": 1}\n");
    for (number, source) in ["rfc9421", "nonces", "draft", "hub"].into_iter().enumerate() {
        let arguments = ["sign", "--source", source, "--body", "body", "--id", "id-1", "--query", "k=v"];
        let (code, out, said) = hookward(&folder.0, &arguments);
        assert_eq!((code, said.as_str()), (0, ""), "{source}");
        let headers = || {
            let lines = out.lines().filter_map(|line| line.split_once(": "));
            lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>()
        };
        let post = |target: &str, body: &str| {
            let answer = Request::post(target, body).headers(headers()).send(gateway.public());
            (answer.status, gateway.audit_of(&answer.request_id())["outcome"].as_str().unwrap_or_default().to_owned())
        };
        let refused = |outcome: &str| (401, outcome.to_owned());
        let other_body = if source == "hub" { "bad_signature" } else { "body_mismatch" };
        let target = format!("/{source}?k=v");
        assert_eq!(post(&target, "{\"n\": 2}\n"), refused(other_body), "{source}");
        if source != "hub" {
            assert_eq!(post(&format!("/{source}?k=w"), "{\"n\": 1}\n"), refused("bad_signature"), "{source}");
        }
        assert_eq!(post(&target, "{\"n\": 1}\n"), (200, "accepted".to_owned()), "{source}: {out}");
        assert_eq!(post(&target, "{\"n\": 1}\n"), (409, "replay".to_owned()), "{source}");
        assert_eq!(upstream.wait_for(number + 1)[number].body, b"{\"n\": 1}\n", "{source}");
    }
}

#[test]
fn a_token_of_cloudevents_is_taken_from_the_header_and_from_the_query() {
    let upstream = Upstream::start();
    let source = "[sources.events]\npath = \"/events\"\nprovider = \"cloudevents-bearer\"\nupstream = \"app\"\n\
                  secrets = [{ value = \"a token of the sender\" }]\nhandshake.origins = [\"sender.example.com\"]\non_replay = \"reject\"\n";
    let gateway = Gateway::start(&format!("{}\n{source}", upstream.table()));
    let body = |id: u8| format!(r#"{{"specversion":"1.0","type":"a.b","source":"/s","id":"{id}"}}"#);
    let with = |token: &str, body: String| Request::post("/events", body).header("Authorization", token);

    let answer = with("Bearer a token of the sender", body(1)).send(gateway.public());
    assert_eq!(answer.status, 200);
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.header("x-hookward-event-id").as_deref(), Some("/s 1"));
    assert_eq!(received.header("x-hookward-event-type").as_deref(), Some("a.b"));
    let target = "/events?access_token=a+token%20of+the+sender";
    assert_eq!(Request::post(target, body(2)).send(gateway.public()).status, 200);
    assert_eq!(Request::post(target, body(2)).send(gateway.public()).status, 409, "known by its source and id");

    for (answer, outcome) in [
        (with("Bearer another token", body(3)).send(gateway.public()), "bad_credentials"),
        (with("Basic YTpi", body(3)).send(gateway.public()), "missing_credentials"),
        (Request::post("/events", body(3)).send(gateway.public()), "missing_credentials"),
    ] {
        assert_eq!(answer.status, 401, "{outcome}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], outcome);
    }
}
