//! What a stranger may be told, what only those who know a token, and what nobody.

use super::*;
use crate::verify::samples::{answer, handshake};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

fn query(name: &str) -> Locator {
    Locator::Query(name.into())
}

fn json_at(pointer: &str) -> Locator {
    Locator::Json(pointer.into())
}

fn header_at(name: &'static str) -> Locator {
    Locator::Header(HeaderName::from_static(name))
}

/// A GET with `challenge`, echoed as text.
fn dropbox() -> Handshake {
    let echo = AnswerBody::Text(vec![Piece::Echo(query("challenge"))]);
    let methods = vec![Method::GET];
    Handshake { methods, signed: false, ..handshake(Vec::new(), answer(200, Some("text/plain"), echo)) }
}

fn unsigned(handshakes: Vec<Handshake>) -> Unsigned {
    handshakes.iter().for_each(|shake| shake.check().unwrap());
    Unsigned::new(handshakes).unwrap()
}

fn request(method: Method, query: &str, body: &str) -> Delivery {
    Delivery {
        method,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: (!query.is_empty()).then(|| query.to_owned()),
        headers: Fields::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn with(mut delivery: Delivery, name: &'static str, value: &'static str) -> Delivery {
    delivery.headers.append(name, http::HeaderValue::from_static(value));
    delivery
}

/// The body of the answer, or why there is none; None: it is no question.
fn asked(handshakes: &Unsigned, delivery: &Delivery) -> Option<Result<String, Refusal>> {
    let answer = handshakes.ask(delivery, false)?.answer;
    Some(answer.map(|granted| String::from_utf8(granted.reply.body.to_vec()).unwrap()).map_err(|no| no.refusal))
}

fn secret(text: &str) -> Secret {
    Secret::new(text.into())
}

#[test]
fn a_question_by_get_is_no_question_by_post() {
    let shakes = unsigned(vec![dropbox()]);
    assert_eq!(asked(&shakes, &request(Method::GET, "challenge=abc123", "")), Some(Ok("abc123".into())));
    assert_eq!(asked(&shakes, &request(Method::POST, "challenge=abc123", "")), None);
    assert_eq!(asked(&shakes, &request(Method::GET, "", "")), Some(Err(Refusal::MissingChallenge)));
    assert_eq!(asked(&shakes, &request(Method::GET, "challenge=", "")), Some(Err(Refusal::MissingChallenge)));
}

#[test]
fn a_method_is_let_in_for_its_match_alone_and_connect_and_trace_never() {
    let marked = Handshake { when: vec![Condition::Present(query("hub.mode"))], ..dropbox() };
    let mut traced = dropbox();
    traced.methods.extend([Method::TRACE, Method::CONNECT]);
    let admits =
        |shake: &Handshake, method, query| unsigned(vec![shake.clone()]).admits(&method, &Fields::new(), Some(query));
    assert!(admits(&marked, Method::GET, "hub.mode=subscribe"));
    assert!(!admits(&marked, Method::GET, "hub.topic=x"));
    assert!(!admits(&marked, Method::HEAD, "hub.mode=subscribe"));
    assert!(!admits(&traced, Method::TRACE, "") && !admits(&traced, Method::CONNECT, ""));
}

#[test]
fn what_is_echoed_is_short_of_its_alphabet_and_there_once() {
    let shakes = unsigned(vec![dropbox()]);
    let echoed = |challenge: &str| asked(&shakes, &request(Method::GET, &format!("challenge={challenge}"), ""));
    assert_eq!(echoed(&"a".repeat(512)), Some(Ok("a".repeat(512))));
    assert_eq!(echoed("a%2Bb"), Some(Ok("a+b".into())));
    let too_long = "a".repeat(513);
    for refused in ["%3Cscript%3E", "a%0D%0Ab", "a%00", "%C3%A4", "%FF", "a&challenge=b", "%7B%22a%22%7D", &too_long] {
        assert_eq!(echoed(refused), Some(Err(Refusal::Malformed)), "{refused}");
    }
}

#[test]
fn every_answer_forbids_browsers_to_guess_what_it_is() {
    let granted =
        unsigned(vec![dropbox()]).ask(&request(Method::GET, "challenge=a", ""), false).unwrap().answer.unwrap();
    assert!(granted.reply.headers.iter().any(|(name, value)| name == "x-content-type-options" && value == "nosniff"));
    assert_eq!(granted.reply.content_type.unwrap(), "text/plain");
}

#[test]
fn a_token_is_asked_for_before_anything_is_said_and_the_documented_status_is_told() {
    let guards = vec![Guard::Secret { at: query("verify_token"), secrets: vec![secret("right"), secret("old")] }];
    let shakes = unsigned(vec![Handshake { guards, refused_with: Some(StatusCode::NOT_FOUND), ..dropbox() }]);
    let asked_with = |token: &str| {
        let asked = shakes.ask(&request(Method::GET, &format!("challenge=abc{token}"), ""), false).unwrap();
        assert!(asked.is_guarded);
        asked.answer.map(|granted| granted.reply.body).map_err(|declined| (declined.refusal, declined.status))
    };
    assert_eq!(asked_with("&verify_token=right"), Ok("abc".into()));
    assert_eq!(asked_with("&verify_token=old"), Ok("abc".into()));
    let not_found = Some(StatusCode::NOT_FOUND);
    assert_eq!(asked_with("&verify_token=wrong"), Err((Refusal::BadCredentials, not_found)));
    assert_eq!(asked_with("&verify_token=Right"), Err((Refusal::BadCredentials, not_found)));
    for missing in ["", "&verify_token=", "&verify_token=right&verify_token=right"] {
        assert_eq!(asked_with(missing), Err((Refusal::MissingCredentials, not_found)), "{missing}");
    }
}

#[test]
fn an_allow_list_is_of_whole_values() {
    let guards = vec![Guard::OneOf { at: query("topic"), values: vec!["https://a.example/feed".into()] }];
    let shakes = unsigned(vec![Handshake { guards, ..dropbox() }]);
    let about = |topic: &str| asked(&shakes, &request(Method::GET, &format!("challenge=x&topic={topic}"), ""));
    assert_eq!(about("https://a.example/feed"), Some(Ok("x".into())));
    assert_eq!(about("https%3A%2F%2Fa.example%2Ffeed"), Some(Ok("x".into())));
    for other in ["https://a.example/feed2", "https://a.example/fee", "https://A.example/feed", ""] {
        assert_eq!(about(other), Some(Err(Refusal::BadClaims)), "{other}");
    }
    assert_eq!(asked(&shakes, &request(Method::GET, "challenge=x", "")), Some(Err(Refusal::MissingChallenge)));
}

#[test]
fn a_body_is_looked_into_only_where_it_is_small_and_json_with_one_meaning() {
    let when = vec![Condition::Equals(json_at("/type"), json!("url_verification"))];
    let echo = AnswerBody::Json(vec![("challenge".into(), Member::Text(vec![Piece::Echo(json_at("/challenge"))]))]);
    let shake = Handshake { signed: false, ..handshake(when, answer(200, Some("application/json"), echo)) };
    let shakes = unsigned(vec![shake]);
    let posted = |body: &str| asked(&shakes, &request(Method::POST, "", body));
    let question = r#"{"type":"url_verification","challenge":"abc"}"#;
    assert_eq!(posted(question), Some(Ok(r#"{"challenge":"abc"}"#.into())));
    assert_eq!(posted(&question.replace("url_v", "other_v")), None);
    assert_eq!(posted(&question.replace("\"abc\"", "{\"a\":1}")), Some(Err(Refusal::Malformed)));
    assert_eq!(posted(&question.replace("\"abc\"", "7")), Some(Err(Refusal::Malformed)));
    assert_eq!(posted(&question.replace("\"abc\"", "\"a\\u0022b\"")), Some(Err(Refusal::Malformed)));
    assert_eq!(posted(r#"{"type":"url_verification"}"#), Some(Err(Refusal::MissingChallenge)));
    for no_question in [r#"{"type":"url_verification","type":"url_verification","challenge":"abc"}"#, "{", ""] {
        assert_eq!(posted(no_question), None, "{no_question}");
    }
    let padded = |spaces| format!("{}{question}", " ".repeat(spaces));
    assert!(posted(&padded(LARGEST_QUESTION - question.len())).is_some());
    assert_eq!(posted(&padded(LARGEST_QUESTION - question.len() + 1)), None);
}

#[test]
fn an_array_is_empty_only_where_it_is_one_and_empty() {
    let when = vec![Condition::EmptyArray("/events".into())];
    let shake = handshake(when, answer(200, None, AnswerBody::Fixed(Bytes::new())));
    let mut pointers = fields::Pointers::default();
    shake.pointers().into_iter().for_each(|pointer| pointers.add(pointer).unwrap());
    let recognised = |body: &str| {
        let delivery = request(Method::POST, "", body);
        let json = pointers.read(&delivery.body);
        shake.recognises(&Asking::of(&delivery, &json))
    };
    assert!(recognised(r#"{"events":[],"entropy":"x"}"#) && recognised(r#"{"events":[ ]}"#));
    for other in [r#"{"events":[1]}"#, r#"{"events":{}}"#, r#"{"events":null}"#, "{}", r#"{"events":[],"events":[]}"#] {
        assert!(!recognised(other), "{other}");
    }
}

#[test]
fn a_number_is_what_it_equals_whatever_place_it_stands_in() {
    let delivery = with(request(Method::POST, "n=13", r#"{"op":13,"s":"13"}"#), "x-n", "13");
    let mut pointers = fields::Pointers::default();
    ["/op", "/s"].into_iter().for_each(|pointer| pointers.add(pointer).unwrap());
    let json = pointers.read(&delivery.body);
    let asking = Asking::of(&delivery, &json);
    let equals = |at: Locator, value: Value| Condition::Equals(at, value).holds(&asking);
    assert!(
        equals(json_at("/op"), json!(13)) && equals(query("n"), json!(13)) && equals(header_at("x-n"), json!("13"))
    );
    assert!(!equals(json_at("/op"), json!("13")) && !equals(json_at("/s"), json!(13)));
}

#[test]
fn a_header_is_echoed_into_a_header_and_a_doubled_or_foreign_one_is_not() {
    let name = HeaderName::from_static("validation-token");
    let when = vec![Condition::Present(Locator::Header(name.clone())), Condition::EmptyBody];
    let mut shake = handshake(when, answer(200, None, AnswerBody::Fixed(Bytes::new())));
    shake.signed = false;
    shake.answer.headers = vec![(name.clone(), vec![Piece::Echo(Locator::Header(name.clone()))])];
    let shakes = unsigned(vec![shake]);
    let sent = |delivery: Delivery| {
        let granted = shakes.ask(&delivery, false)?.answer.map_err(|declined| declined.refusal);
        let value = |reply: Reply| reply.headers.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value);
        Some(granted.map(|granted| value(granted.reply).unwrap().to_str().unwrap().to_owned()))
    };
    let empty = || request(Method::POST, "", "");
    assert_eq!(sent(with(empty(), "validation-token", "2b1f-9d")), Some(Ok("2b1f-9d".into())));
    assert_eq!(sent(with(empty(), "validation-token", "")), Some(Err(Refusal::MissingChallenge)));
    assert_eq!(sent(with(empty(), "validation-token", "a b")), Some(Err(Refusal::Malformed)));
    let doubled = with(with(empty(), "validation-token", "a"), "validation-token", "b");
    assert_eq!(sent(doubled), Some(Err(Refusal::Malformed)));
    assert_eq!(sent(with(request(Method::POST, "", "{}"), "validation-token", "a")), None);
}

#[test]
fn a_rate_is_granted_up_to_the_configured_one_and_only_where_one_was_asked_for() {
    let granted = |most: Option<u64>, asked: Option<&'static str>| {
        let mut shake = dropbox();
        shake.answer.body = AnswerBody::Fixed(Bytes::new());
        shake.answer.headers = vec![(HeaderName::from_static("webhook-allowed-rate"), vec![Piece::Rate(most)])];
        let get = request(Method::GET, "", "");
        let delivery = asked.map_or_else(|| get.clone(), |rate| with(get.clone(), "webhook-request-rate", rate));
        let reply = unsigned(vec![shake]).ask(&delivery, false).unwrap().answer.unwrap().reply;
        reply.headers.get(1).map(|(_, value)| value.to_str().unwrap().to_owned())
    };
    assert_eq!(granted(Some(120), None), None);
    assert_eq!(granted(Some(120), Some("60")).as_deref(), Some("60"));
    assert_eq!(granted(Some(120), Some("100000")).as_deref(), Some("120"));
    assert_eq!(granted(Some(120), Some("99999999999999999999")).as_deref(), Some("120"));
    assert_eq!(granted(Some(120), Some("<b>")).as_deref(), Some("120"));
    assert_eq!(granted(None, Some("60")).as_deref(), Some("60"));
    assert_eq!(granted(None, Some("many")).as_deref(), Some("*"));
}

#[test]
fn a_secret_is_taken_only_while_it_is_awaited_and_only_where_it_can_be_a_key() {
    let when = vec![Condition::Present(header_at("x-hook-secret"))];
    let mut shake = handshake(when, answer(200, None, AnswerBody::Fixed(Bytes::new())));
    (shake.signed, shake.capture) = (false, Some(header_at("x-hook-secret")));
    let shakes = unsigned(vec![shake]);
    let sent = |value| with(request(Method::POST, "", "{}"), "x-hook-secret", value);
    let asked = shakes.ask(&sent("b537207f20cbfa02"), true).unwrap();
    assert_eq!(asked.answer.unwrap().captured.unwrap().expose(), b"b537207f20cbfa02");
    assert!(shakes.ask(&sent("b537207f20cbfa02"), false).is_none());
    assert!(shakes.brings_a_secret(&sent("b537207f20cbfa02")));
    assert!(!shakes.brings_a_secret(&request(Method::POST, "", "{}")));
    for (refused, refusal) in [
        ("b537207f20cbfa0", Refusal::Malformed),
        ("", Refusal::MissingChallenge),
        ("b537207f20cbfa02 b537207f20cbfa02", Refusal::Malformed),
    ] {
        assert_eq!(shakes.ask(&sent(refused), true).unwrap().answer.unwrap_err().refusal, refusal, "{refused}");
    }
}

#[test]
fn sorted_parts_are_hashed_with_the_secret() {
    let guard = |token: &str| Guard::SortedSha1 {
        at: query("signature"),
        secret: secret(token),
        with: [query("timestamp"), query("nonce")],
    };
    let shakes = |token: &str| unsigned(vec![Handshake { guards: vec![guard(token)], ..dropbox() }]);
    let told = "signature=56289c420181647fb5d5f31d9e785006cd0e3a33&timestamp=1785542398&nonce=1320562132&challenge=58";
    assert_eq!(asked(&shakes("wechat-token"), &request(Method::GET, told, "")), Some(Ok("58".into())));
    let refused = |token: &str, query: &str| asked(&shakes(token), &request(Method::GET, query, ""));
    assert_eq!(refused("wechat-tokem", told), Some(Err(Refusal::BadSignature)));
    assert_eq!(refused("wechat-token", &told.replace("98&", "99&")), Some(Err(Refusal::BadSignature)));
    assert_eq!(refused("wechat-token", &told.replace("5628", "zz28")), Some(Err(Refusal::BadSignature)));
    assert_eq!(refused("wechat-token", "challenge=58"), Some(Err(Refusal::MissingSignature)));
}

#[test]
fn a_handshake_that_every_delivery_would_be_is_none() {
    let matches_all = Handshake { methods: Vec::new(), ..dropbox() };
    assert_eq!(matches_all.check(), Err(BuildError::HandshakeMatchesEverything));
    let takes_posts = Handshake { methods: vec![Method::GET, Method::POST], ..dropbox() };
    assert_eq!(takes_posts.check(), Err(BuildError::HandshakeMatchesEverything));
    let of_floats = Handshake { when: vec![Condition::Equals(json_at("/a"), json!(1.5))], ..dropbox() };
    assert_eq!(of_floats.check(), Err(BuildError::HandshakeNotScalar("/a".into())));
    let signed_by_get = Handshake { signed: true, when: vec![Condition::EmptyBody], ..dropbox() };
    assert_eq!(signed_by_get.check(), Err(BuildError::HandshakeSignedAndNew));
}

#[test]
fn nothing_that_holds_a_key_shows_it() {
    let computed = Function::HmacSha256(secret("hunter2"));
    let guard = Guard::Secret { at: query("a"), secrets: vec![secret("hunter2")] };
    let key = Function::ed25519_of_repeated(&secret("hunter2")).unwrap();
    assert!(!format!("{computed:?}{guard:?}{key:?}").contains("hunter2"));
    assert!(Function::ed25519_of_repeated(&secret("")).is_none());
}

proptest! {
    /// What a keyed handshake can be made to sign never begins as a delivery does, nor has any other byte of JSON's
    /// containers in it.
    #[test]
    fn no_alphabet_under_a_key_can_spell_json(byte in any::<u8>()) {
        for alphabet in [Alphabet::Word, Alphabet::Token, Alphabet::Text] {
            let is_structural = b"{}[]\"<>&\\".contains(&byte) || byte.is_ascii_control() || !byte.is_ascii();
            prop_assert!(!(is_structural && alphabet.has(byte)));
        }
    }

    #[test]
    fn no_request_makes_a_question_panic(query in "\\PC{0,40}", body in prop::collection::vec(any::<u8>(), 0..80)) {
        let when = vec![Condition::Present(json_at("/a/0"))];
        let capturing = Handshake {
            methods: Vec::new(),
            when,
            capture: Some(Locator::Form("b".into())),
            ..dropbox()
        };
        let shakes = unsigned(vec![dropbox(), capturing]);
        let mut delivery = request(Method::GET, &query, "");
        delivery.body = body.into();
        let _ = shakes.ask(&delivery, true);
    }
}
