//! What each preset promises beside right verdicts: how long, under which names, and how it answers.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::{preset_with, source};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::gateway::source::{OnReplay, Settings};
use crate::refusal::Refusal;
use crate::verify::Verified;

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);
const HMAC_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn preset(provider: &str) -> Settings {
    source(&preset_with(provider, &[if provider == "discord" { PUBLIC } else { HMAC_SECRET }]), None).unwrap()
}

/// A delivery to the preset as its provider would make it, judged `late` seconds after it was signed.
fn judged(
    provider: &str,
    body: &str,
    headers: &[(&'static str, &'static str)],
    late: u64,
) -> Result<Verified, Refusal> {
    let source = preset(provider);
    let draft = Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: None,
        headers: headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect(),
        body: body.to_owned().into(),
    };
    let private = crate::secret::Secret::new(SEED.into());
    let draft = source.verifier.sign(draft, "msg_1", NOW, Some(&private)).unwrap().delivery;
    let now = UnixMillis(NOW.0 + late * 1000);
    source.verifier.judge(draft, now, &NoLibrary).map_err(|refused| refused.refusal)
}

#[test]
fn every_preset_that_signs_a_time_allows_five_minutes() {
    for provider in ["stripe", "slack", "standard-webhooks", "discord"] {
        assert!(judged(provider, "{}", &[], 300).is_ok(), "{provider}");
        assert_eq!(judged(provider, "{}", &[], 301).err(), Some(Refusal::Stale), "{provider}");
    }
    for provider in ["github", "shopify"] {
        let verified = judged(provider, "{}", &[], 301).unwrap();
        assert_eq!(verified.signed_at(), None, "{provider}");
    }
}

#[test]
fn every_preset_finds_the_id_and_the_type_of_an_event_where_its_provider_writes_them() {
    let named = |provider, body, headers: &[_]| {
        let verified = judged(provider, body, headers, 0).unwrap();
        let id = verified.event_id().map(|id| (id.to_owned(), verified.event_id_is_signed()));
        (id, verified.event_type().map(str::to_owned))
    };
    let some = |id: &str, signed, event: &str| (Some((id.to_owned(), signed)), Some(event.to_owned()));

    assert_eq!(named("github", "{}", &[("x-github-event", "push")]), some("msg_1", false, "push"));
    assert_eq!(named("stripe", r#"{"id":"evt_1","type":"a.b"}"#, &[]), some("evt_1", true, "a.b"));
    assert_eq!(named("standard-webhooks", r#"{"type":"a.b"}"#, &[]), some("msg_1", true, "a.b"));
    assert_eq!(named("shopify", "{}", &[("x-shopify-topic", "orders/create")]), some("msg_1", false, "orders/create"));
    let unprefixed = [("shopify-topic", "orders/create"), ("shopify-webhook-id", "w-1")];
    assert_eq!(named("shopify", "{}", &unprefixed), some("w-1", false, "orders/create"));

    let event = r#"{"event_id":"Ev1","type":"event_callback","event":{"type":"app_mention"}}"#;
    assert_eq!(named("slack", event, &[]), some("Ev1", true, "app_mention"));
    assert_eq!(named("slack", r#"{"type":"block_actions"}"#, &[]), (None, Some("block_actions".to_owned())));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let command = "token=t&command=%2Fweather&text=94070";
    assert_eq!(named("slack", command, &form), (None, Some("/weather".to_owned())));

    assert_eq!(named("discord", r#"{"id":"1","type":2}"#, &[]), some("1", true, "2"));
    let webhook_event = r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#;
    assert_eq!(named("discord", webhook_event, &[]), (None, Some("APPLICATION_AUTHORIZED".to_owned())));
}

#[test]
fn a_discord_ping_is_answered_and_a_webhook_event_of_the_same_type_is_forwarded() {
    let answered = |body: &str| {
        let verified = judged("discord", body, &[], 0).unwrap();
        verified.challenge().map(|reply| (reply.status.as_u16(), reply.body.to_vec()))
    };
    assert_eq!(answered(r#"{"type":1}"#), Some((200, br#"{"type":1}"#.to_vec())));
    assert_eq!(answered(r#"{"type":0}"#), Some((204, Vec::new())));
    assert_eq!(answered(r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#), None);
}

#[test]
fn every_preset_answers_and_treats_copies_as_its_provider_wants() {
    for (provider, on_replay, acknowledge, max_body) in [
        ("github", OnReplay::Acknowledge, 202, 25 << 20),
        ("stripe", OnReplay::Reject, 202, 1 << 20),
        ("slack", OnReplay::Reject, 200, 1 << 20),
        ("shopify", OnReplay::Acknowledge, 200, 1 << 20),
        ("standard-webhooks", OnReplay::Reject, 202, 1 << 20),
        ("discord", OnReplay::Acknowledge, 204, 1 << 20),
    ] {
        let source = preset(provider);
        assert_eq!(source.on_replay, on_replay, "{provider}");
        assert_eq!(source.acknowledge.status.as_u16(), acknowledge, "{provider}");
        assert_eq!((source.acknowledge.body.len(), source.max_body), (0, max_body), "{provider}");
        assert_eq!(source.methods, [Method::POST], "{provider}");
        let window = (source.replay_window, source.dedupe_window);
        assert_eq!(window, (Duration::from_secs(86_400), Duration::from_secs(86_400)), "{provider}");
        assert!(source.verifier.has_replay_keys(), "{provider}");
    }
}
