//! What the language promises beyond the vectors: tricks that a valid signature must not cover, each with its twin.

use crate::fields::Fields;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};

use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::gateway::source::Settings;
use crate::refusal::Refusal;
use crate::verify::Verified;

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);
const SECRET: &str = "5d6f4f34d8cd4b1a9c7e2f0a1b3c5d7e9f0a1b2c3d4e5f60718293a4b5c6d7e8";

fn source(keys: &str) -> Result<Settings, String> {
    super::source(keys, None)
}

fn preset(name: &str, more: &str) -> Settings {
    let keys = format!(
        "provider = \"{name}\"\nsecrets = [{{ value = \"{SECRET}\", id = \"key-1\" }}]\n\
         public_url = \"https://hooks.example.com/in\"\n{more}"
    );
    source(&keys).unwrap()
}

fn draft(content_type: &'static str, body: impl Into<Bytes>) -> Delivery {
    let mut headers = Fields::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: None,
        headers,
        body: body.into(),
    }
}

fn json(body: &str) -> Delivery {
    draft("application/json", body.to_owned())
}

fn signed(source: &Settings, draft: Delivery) -> Delivery {
    source.verifier.sign(draft, "msg_1", NOW, None).unwrap().delivery
}

fn judged(source: &Settings, delivery: &Delivery) -> Result<Verified, Refusal> {
    source.verifier.judge(delivery.clone(), NOW, &NoLibrary).map_err(|refused| refused.refusal)
}

fn refusal(source: &Settings, delivery: &Delivery) -> Option<Refusal> {
    judged(source, delivery).err()
}

fn keys(source: &Settings, delivery: &Delivery) -> Vec<[u8; 32]> {
    judged(source, delivery).unwrap().replay_keys().to_vec()
}

fn with_body(delivery: &Delivery, body: impl Into<Bytes>) -> Delivery {
    Delivery { body: body.into(), ..delivery.clone() }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.to_vec()).unwrap()
}

#[test]
fn every_item_of_an_adyen_notification_is_proven_and_is_a_replay_by_itself() {
    let adyen = preset("adyen", "");
    let item =
        |psp: &str| format!(r#"{{"NotificationRequestItem":{{"pspReference":"{psp}","amount":{{"value":5}}}}}}"#);
    let of = |items: &[String]| signed(&adyen, json(&format!(r#"{{"notificationItems":[{}]}}"#, items.join(","))));
    let both = of(&[item("1"), item("2")]);
    let [first, second] = ["1", "2"].map(|psp| keys(&adyen, &of(&[item(psp)])));
    assert_eq!(keys(&adyen, &both), [first, second].concat());

    let second_changed = with_body(&both, text(&both).replace(r#""pspReference":"2""#, r#""pspReference":"3""#));
    assert_eq!(refusal(&adyen, &second_changed), Some(Refusal::BadSignature));
    let appended = text(&both).replace("]}", r#",{"NotificationRequestItem":{"pspReference":"9"}}]}"#);
    assert_eq!(refusal(&adyen, &with_body(&both, appended)), Some(Refusal::MissingSignature));
    for nothing in [r#"{"notificationItems":[]}"#, "{}", "", "[]"] {
        assert_eq!(refusal(&adyen, &with_body(&both, nothing)), Some(Refusal::MalformedSignature), "{nothing}");
    }
    // The upstream's parser may read the other one of two.
    let doubled = text(&both).replacen(r#""pspReference":"1""#, r#""pspReference":"1","pspReference":"9""#, 1);
    assert!(refusal(&adyen, &with_body(&both, doubled)).is_some());
}

#[test]
fn mailguns_token_is_a_replay_whatever_the_event_says() {
    let mailgun = preset("mailgun", "");
    let delivery = signed(&mailgun, json(r#"{"event-data":{"event":"opened"}}"#));
    let other_event = with_body(&delivery, text(&delivery).replace("opened", "bounced"));
    assert_eq!(keys(&mailgun, &delivery).len(), 1);
    assert_eq!(keys(&mailgun, &delivery), keys(&mailgun, &other_event));
    let other_token = with_body(&delivery, text(&delivery).replace("msg_1", "msg_2"));
    assert_eq!(refusal(&mailgun, &other_token), Some(Refusal::BadSignature));
}

#[test]
fn a_source_with_a_replay_template_takes_nothing_that_lacks_it() {
    let github = preset("github", "replay = \"{header:X-Nonce}\"\n");
    let without = signed(&github, json("{}"));
    assert_eq!(refusal(&github, &without), Some(Refusal::Malformed));
    let mut with = without.clone();
    with.headers.insert("x-nonce", HeaderValue::from_static("1"));
    // The signed message, and the nonce.
    assert_eq!(keys(&github, &with).len(), 2);
    with.headers.append("x-nonce", HeaderValue::from_static("2"));
    assert_eq!(refusal(&github, &with), Some(Refusal::Malformed));
}

#[test]
fn a_plain_hash_cannot_be_extended() {
    let hubspot = preset("hubspot-v1", "");
    assert_eq!(refusal(&hubspot, &signed(&hubspot, json(r#"{"a":1}"#))), None);
    // What an attacker would send: the padding of SHA-256 behind the first body, then his own.
    let extended = [br#"{"a":1}"#.as_slice(), &[0x80], &[0; 40], br#"{"b":2}"#].concat();
    let delivery = signed(&hubspot, draft("application/json", extended));
    assert_eq!(refusal(&hubspot, &delivery), Some(Refusal::MalformedSignature));
}

#[test]
fn a_form_counts_only_as_the_one_field_that_is_signed() {
    let gitea = preset("gitea", "");
    let form = signed(&gitea, draft("application/x-www-form-urlencoded; charset=utf-8", "payload=%7B%22a%22%3A1%7D"));
    assert_eq!(refusal(&gitea, &form), None);
    // The same event by JSON is the same message.
    let by_json = signed(&gitea, json(r#"{"a":1}"#));
    assert_eq!(keys(&gitea, &form), keys(&gitea, &by_json));
    for body in ["payload=%7B%22a%22%3A1%7D&x=1", "payload=%7B%22a%22%3A1%7D&payload=%7B%7D", "x=1", ""] {
        assert_eq!(refusal(&gitea, &with_body(&form, body)), Some(Refusal::MalformedSignature), "{body}");
    }
}

#[test]
fn a_batch_passes_only_where_it_was_asked_for_and_is_a_replay_of_its_first_event() {
    let one = r#"{"messageId":"1"}"#;
    let (strict, lenient) = (preset("segment", ""), preset("segment", "verify.batch = \"first_item\"\n"));
    let single = signed(&strict, json(one));
    let batch = with_body(&single, format!("[{one},{{\"messageId\":\"2\"}}]"));
    assert_eq!(refusal(&strict, &single), None);
    assert_eq!(refusal(&strict, &batch), Some(Refusal::BadSignature));
    assert_eq!(keys(&lenient, &batch), keys(&lenient, &single));
    let other_first = with_body(&single, format!("[{{\"messageId\":\"2\"}},{one}]"));
    assert_eq!(refusal(&lenient, &other_first), Some(Refusal::BadSignature));
}

#[test]
fn a_url_that_holds_the_bodys_hash_holds_the_body() {
    let twilio = preset("twilio-body", "");
    let delivery = signed(&twilio, json("{}"));
    assert!(delivery.query.as_deref().is_some_and(|query| query.starts_with("bodySHA256=")));
    assert_eq!(keys(&twilio, &delivery).len(), 1);
    assert_eq!(refusal(&twilio, &with_body(&delivery, "[]")), Some(Refusal::BodyMismatch));
    let query = delivery.query.clone().unwrap();
    let twice = Delivery { query: Some(format!("{query}&{query}")), ..delivery };
    assert_eq!(refusal(&twilio, &twice), Some(Refusal::BadSignature));
    let told_with_query = "provider = \"twilio-body\"\nsecrets = [{ value = \"0123456789abcdef\" }]\n\
                           public_url = \"https://hooks.example.com/in?x=1\"\n";
    assert!(source(told_with_query).err().unwrap().contains("names a query"));
}

#[test]
fn the_port_of_the_url_may_be_spelled_or_not_and_no_other() {
    let told = |url: &str| {
        source(&format!("provider = \"twilio\"\nsecrets = [{{ value = \"{SECRET}\" }}]\npublic_url = \"{url}\"\n"))
            .unwrap()
    };
    let form = || draft("application/x-www-form-urlencoded", "a=1");
    let (plain, with_port) = (told("https://h.example.com/in"), told("https://h.example.com:443/in"));
    let other_port = told("https://h.example.com:8443/in");
    assert_eq!(refusal(&plain, &signed(&with_port, form())), None);
    assert_eq!(refusal(&with_port, &signed(&plain, form())), None);
    assert_eq!(refusal(&other_port, &signed(&plain, form())), None);
    assert_eq!(refusal(&plain, &signed(&other_port, form())), Some(Refusal::BadSignature));
    assert_eq!(refusal(&plain, &signed(&told("http://h.example.com/in"), form())), Some(Refusal::BadSignature));
}

#[test]
fn the_time_cannot_be_taken_out_of_contentfuls_signed_headers() {
    let contentful = preset("contentful", "");
    let delivery = signed(&contentful, json("{}"));
    assert_eq!(refusal(&contentful, &delivery), None);
    let list = HeaderName::from_static("x-contentful-signed-headers");
    let time = HeaderName::from_static("x-contentful-timestamp");
    // One header's value says what two headers said; the time stands apart, and could be any.
    let mut regrouped = delivery.clone();
    let said = |name: &HeaderName| delivery.headers.get(name).unwrap().to_str().unwrap().to_owned();
    let folded = format!("application/json;{list}:{};{time}:{}", said(&list), said(&time));
    regrouped.headers.insert(CONTENT_TYPE, HeaderValue::from_str(&folded).unwrap());
    regrouped.headers.insert(&list, HeaderValue::from_static("content-type"));
    assert_eq!(refusal(&contentful, &regrouped), Some(Refusal::MalformedSignature));
}

#[test]
fn a_value_cannot_stand_for_the_segment_behind_it() {
    let mercado_pago = preset("mercadopago", "");
    let mut asked = json("{}");
    asked.query = Some("data.id=1".into());
    asked.headers.insert("x-request-id", HeaderValue::from_static("r"));
    let delivery = signed(&mercado_pago, asked);
    assert_eq!(refusal(&mercado_pago, &delivery), None);
    let mut folded = Delivery { query: Some("data.id=1%3Brequest-id%3Ar".into()), ..delivery };
    folded.headers.remove("x-request-id");
    assert_eq!(refusal(&mercado_pago, &folded), Some(Refusal::MalformedSignature));
}

#[test]
fn what_box_signs_may_be_escaped_as_php_does() {
    let boxed = preset("box", "");
    let escaped = signed(&boxed, json(r#"{"a":"\u00e9\/"}"#));
    assert_eq!(refusal(&boxed, &with_body(&escaped, r#"{"a":"é/"}"#)), None);
    assert_eq!(refusal(&boxed, &with_body(&escaped, r#"{"a":"è/"}"#)), Some(Refusal::BadSignature));
    let mut other_version = escaped.clone();
    other_version.headers.insert("box-signature-version", HeaderValue::from_static("2"));
    assert_eq!(refusal(&boxed, &other_version), Some(Refusal::MalformedSignature));
}

#[test]
fn hook0s_older_form_does_not_pass_for_the_newer() {
    let hook0 = preset("coinbase-cdp", "");
    let mut asked = json("{}");
    asked.headers.insert("x-event-type", HeaderValue::from_static("made"));
    let delivery = signed(&hook0, asked);
    let name = HeaderName::from_static("x-hook0-signature");
    let value = delivery.headers.get(&name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(refusal(&hook0, &delivery), None);
    let mut older = with_body(&delivery, "x-event-type.made.{}");
    older.headers.insert(&name, HeaderValue::from_str(&value.replace("v1=", "v0=")).unwrap());
    assert_eq!(refusal(&hook0, &older), Some(Refusal::MissingSignature));
}

#[test]
fn a_preset_by_token_or_password_takes_the_sources_own_secrets() {
    let token = preset("telegram", "");
    assert_eq!(refusal(&token, &signed(&token, json("{}"))), None);
    assert_eq!(refusal(&token, &json("{}")), Some(Refusal::MissingCredentials));
    assert!(token.verifier.is_guessable());

    let basic = source("provider = \"chargebee\"\nsecrets = [{ value = \"hook:pass:word-0123\" }]\n").unwrap();
    assert_eq!(refusal(&basic, &signed(&basic, json("{}"))), None);
    let named =
        "provider = \"chargebee\"\nbasic = { username = \"hook\", password = { value = \"pass:word-0123\" } }\n";
    assert_eq!(refusal(&source(named).unwrap(), &signed(&basic, json("{}"))), None);
    assert!(source("provider = \"chargebee\"\nsecrets = [{ value = \"no-colon-in-here\" }]\n").is_err());
    assert!(source("provider = \"telegram\"\n").err().unwrap().contains("`secrets` is missing"));
}

fn has(delivery: &Delivery, name: &'static str, value: &str) -> Delivery {
    let mut delivery = delivery.clone();
    delivery.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    delivery
}

fn said<'d>(delivery: &'d Delivery, name: &str) -> &'d str {
    delivery.headers.get(name).unwrap().to_str().unwrap()
}

#[test]
fn a_digit_that_moves_between_mailguns_time_and_token_makes_no_new_delivery() {
    let mailgun = preset("mailgun", "");
    let draft = json(r#"{"event-data":{"event":"opened"}}"#);
    let delivery = mailgun.verifier.sign(draft, "4d2f", NOW, None).unwrap().delivery;
    let (time, token) = (r#""timestamp":1760000000"#, r#""token":"4d2f""#);
    assert!(text(&delivery).contains(token) && text(&delivery).contains(time), "{}", text(&delivery));
    for (other_time, other_token) in [("17600000004", "d2f"), ("176000000", "04d2f"), ("1", "7600000004d2f")] {
        let moved = text(&delivery).replace(token, &format!(r#""token":"{other_token}""#));
        let moved = moved.replace(time, &format!(r#""timestamp":"{other_time}""#));
        let moved = with_body(&delivery, moved);
        assert_eq!(keys(&mailgun, &moved), keys(&mailgun, &delivery), "{other_time} {other_token}");
    }
}

#[test]
fn however_its_slashes_are_escaped_a_delivery_of_box_is_one_delivery() {
    let boxed = preset("box", "");
    let escaped = signed(&boxed, json(r#"{"a":"\u00e9\/\/"}"#));
    for spelling in [r#"{"a":"é//"}"#, r#"{"a":"\u00e9/\/"}"#, r#"{"a":"é\//"}"#] {
        assert_eq!(keys(&boxed, &with_body(&escaped, spelling)), keys(&boxed, &escaped), "{spelling}");
    }
    let other = signed(&boxed, json(r#"{"a":"//"}"#));
    assert_ne!(keys(&boxed, &other), keys(&boxed, &escaped));
}

#[test]
fn no_digit_moves_from_a_time_that_nobody_judges_into_the_body() {
    for name in ["ghost", "klaviyo", "cloudinary"] {
        let source = preset(name, "");
        let delivery = signed(&source, json(r#"{"a":1}"#));
        assert_eq!(refusal(&source, &delivery), None, "{name}");
        let number = signed(&source, json("12"));
        assert_eq!(refusal(&source, &number), Some(Refusal::MalformedSignature), "{name}");
    }
    let klaviyo = preset("klaviyo", "");
    let delivery = signed(&klaviyo, json(r#"{"a":1}"#));
    let moved = has(&with_body(&delivery, r#"{"a":1}17"#), "klaviyo-timestamp", "60000000");
    assert_eq!(refusal(&klaviyo, &moved), Some(Refusal::MalformedSignature));
    // Where the time is judged, a moved digit makes it another one.
    let retell = preset("retell", "");
    assert_eq!(refusal(&retell, &signed(&retell, json("12"))), None);
}

#[test]
fn an_id_cannot_take_in_the_time_and_the_beginning_of_the_body() {
    let source = preset("standard-webhooks", "");
    // The customer whose text this is knows when he will send it again.
    let delivery = signed(&source, json(r#"{"text":".1760000100.[7]"}"#));
    assert_eq!(refusal(&source, &delivery), None);
    let id = format!("{}.{}.{{\"text\":\"", said(&delivery, "webhook-id"), said(&delivery, "webhook-timestamp"));
    let moved = has(&has(&delivery, "webhook-id", &id), "webhook-timestamp", "1760000100");
    assert_eq!(refusal(&source, &with_body(&moved, r#"[7]"}"#)), Some(Refusal::MalformedSignature));

    let twitch = preset("twitch", "");
    let delivery = signed(&twitch, json(r#"{"ends_at":"2025-10-09T08:53:30Z[7]"}"#));
    assert_eq!(refusal(&twitch, &delivery), None);
    let (id, time) = ("twitch-eventsub-message-id", "twitch-eventsub-message-timestamp");
    let folded = format!("{}{}{{\"ends_at\":\"", said(&delivery, id), said(&delivery, time));
    let moved = has(&has(&delivery, id, &folded), time, "2025-10-09T08:53:30Z");
    assert_eq!(refusal(&twitch, &with_body(&moved, r#"[7]"}"#)), Some(Refusal::MalformedSignature));

    let sinch = preset("sinch", "");
    let delivery = signed(&sinch, json(r#"{"a":1.5}"#));
    assert_eq!(refusal(&sinch, &delivery), None);
    let nonce = "x-sinch-webhook-signature-nonce";
    let moved = has(&delivery, nonce, &format!("5}}.{}", said(&delivery, nonce)));
    assert_eq!(refusal(&sinch, &with_body(&moved, r#"{"a":1"#)), Some(Refusal::MalformedSignature));
}

#[test]
fn the_beginning_of_a_body_cannot_stand_in_a_header_that_hook0_signs() {
    let hook0 = preset("coinbase-cdp", "");
    let delivery = signed(&hook0, has(&json(r#"{"a":1.[7]}"#), "x-event-type", "wallet.made"));
    assert_eq!(refusal(&hook0, &delivery), None);
    let moved = has(&with_body(&delivery, "[7]}"), "x-event-type", r#"wallet.made.{"a":1"#);
    assert_eq!(refusal(&hook0, &moved), Some(Refusal::MalformedSignature));
}

#[test]
fn a_header_that_contentful_lists_cannot_hide_in_the_value_of_another() {
    let contentful = preset("contentful", "");
    let mut asked = json("{}");
    asked.headers.insert(
        "x-contentful-signed-headers",
        HeaderValue::from_static(
            "content-type,x-contentful-signed-headers,x-contentful-timestamp,x-contentful-topic,x-contentful-version",
        ),
    );
    asked.headers.insert("x-contentful-topic", HeaderValue::from_static("Entry.publish"));
    asked.headers.insert("x-contentful-version", HeaderValue::from_static("1"));
    let delivery = signed(&contentful, asked);
    assert_eq!(refusal(&contentful, &delivery), None);
    let folded = format!("{};x-contentful-version:1", said(&delivery, "x-contentful-topic"));
    let mut moved = has(&delivery, "x-contentful-topic", &folded);
    moved.headers.remove("x-contentful-version");
    assert_eq!(refusal(&contentful, &moved), Some(Refusal::MalformedSignature));
}

#[test]
fn what_unpacks_to_more_than_its_size_is_work_for_another_thread() {
    let gzip = Bytes::from_static(b"\x1f\x8b\x08\x00");
    assert!(preset("stream", "").verifier.inflates(&draft("application/json", gzip.clone())));
    assert!(!preset("stream", "").verifier.inflates(&json("{}")));
    assert!(!preset("github", "").verifier.inflates(&draft("application/json", gzip)));
}

#[test]
fn beside_a_signed_key_there_is_none_that_a_lax_parser_takes_for_it() {
    let adyen = preset("adyen", "");
    let item = r#"{"NotificationRequestItem":{"pspReference":"1","success":"false"}}"#;
    let delivery = signed(&adyen, json(&format!(r#"{{"notificationItems":[{item}],"live":"false"}}"#)));
    assert_eq!(refusal(&adyen, &delivery), None);
    for (key, beside) in [
        (r#""live":"#, r#""NotificationItems":[],"live":"#),
        (r#""pspReference":"1""#, r#""pspReference":"1","PSPReference":"2""#),
        (r#""pspReference":"1""#, r#""PSPReference":"2","pspReference":"1""#),
        (r#""success":"false""#, r#""\u017fuccess":"true","success":"false""#),
    ] {
        let laxly = with_body(&delivery, text(&delivery).replace(key, beside));
        assert_ne!(laxly.body, delivery.body);
        assert_eq!(refusal(&adyen, &laxly), Some(Refusal::MalformedSignature), "{beside}");
    }
    // Where the whole body is signed, nobody adds a key.
    let stripe = preset("stripe", "");
    let both = signed(&stripe, json(r#"{"id":"evt_1","ID":"evt_2"}"#));
    assert_eq!(judged(&stripe, &both).unwrap().event_id(), Some("evt_1"));
}

/// What whoever reads a broker could present again with a body of his own, whichever header it came in.
#[test]
fn a_token_that_does_not_stand_for_the_body_is_a_credential_and_one_that_does_is_not() {
    let token = |rest: &str| {
        let keys = format!(
            "secrets = [{{ value = \"{SECRET}\" }}]\njwt.header = \"X-Token\"\njwt.algorithms = [\"HS256\"]\n{rest}"
        );
        source(&keys).unwrap().verifier.credential_headers()
    };
    assert_eq!(token(""), ["x-token"]);
    assert!(token("jwt.body_hash = { claim = \"sha256\", hash = \"sha256\", encoding = \"hex\" }").is_empty());
}
