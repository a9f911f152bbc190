//! Why was it refused? For each usual mistake the hint that names it, found by the real binary on a saved request.

use crate::support::gateway::{BINARY, Folder, Gateway, hookward};
use crate::support::http::Request;
use crate::support::sign::{self, hmac_sha256, now};
use crate::support::{Upstream, eventually};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};

const SECRET: &str = "a-secret-of-28-letters-0001";
const TIME: u64 = 1_760_000_000;
const BODY: &[u8] = br#"{"zen":"caf\u00e9 / keep it simple","n":[1.0,2],"a":true}"#;

const GITHUB: &str = "provider = \"github\"\nsecrets = [{ value = \"a-secret-of-28-letters-0001\" }]\n";
const STRIPE: &str = "provider = \"stripe\"\nsecrets = [{ value = \"a-secret-of-28-letters-0001\" }]\n";
const SLACK: &str = "provider = \"slack\"\nsecrets = [{ value = \"a-secret-of-28-letters-0001\" }]\n";

/// A scheme that signs the URL and the body.
const BY_URL: &str = r#"
secrets = [{ value = "a-secret-of-28-letters-0001" }]
public_url = "https://hooks.example.com:8443/hook"
verify = { algorithm = "hmac-sha256", signature = { header = "X-Sig" }, message = "{url}{body}" }
"#;

struct Told {
    code: i32,
    json: Value,
}

impl Told {
    fn kinds(&self) -> Vec<&str> {
        let hints = self.json["hints"].as_array().expect("hints");
        hints.iter().map(|hint| hint["kind"].as_str().expect("a kind")).collect()
    }
}

fn folder(source: &str) -> Folder {
    let folder = Folder::new();
    folder.write(
        "gateway.toml",
        format!(
            "[listeners.public]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:1\"]\n\
             [sources.it]\npath = \"/hook\"\nupstream = \"app\"\n{source}"
        ),
    );
    folder
}

fn explained_in(folder: &Folder, request: &[u8], more: &[&str]) -> Told {
    folder.write("request", request);
    let time = TIME.to_string();
    let mut arguments = vec!["explain", "--request", "request", "--json", "--now", &time];
    arguments.extend(more);
    let (code, out, err) = hookward(&folder.0, &arguments);
    let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{code}: {error}: {out}{err}"));
    Told { code, json }
}

fn explained(source: &str, request: &Request) -> Told {
    explained_in(&folder(source), &request.bytes(), &["--source", "it"])
}

/// The mistake is refused with this label and named by this hint, the first; made right, the request passes.
fn mistaken(source: &str, wrong: &Request, refusal: &str, kind: &str, right: (&str, &Request)) {
    let told = explained(source, wrong);
    assert_eq!((told.code, &told.json["verdict"], &told.json["refusal"]), (1, &"refuse".into(), &refusal.into()));
    assert_eq!(told.kinds().first(), Some(&kind), "{:#}", told.json);
    let told = explained(right.0, right.1);
    assert_eq!((told.code, &told.json["verdict"]), (0, &"accept".into()), "{:#}", told.json);
    assert_eq!(told.json["hints"], serde_json::json!([]));
}

fn github(signed: &[u8], sent: &[u8]) -> Request {
    Request::post("/hook", sent).header("X-Hub-Signature-256", sign::github(SECRET, signed))
}

/// What the sender signed is not what came: the hint names how they differ.
fn rewritten(signed: &[u8], sent: &[u8], kind: &str) {
    mistaken(GITHUB, &github(signed, sent), "bad_signature", kind, (GITHUB, &github(sent, sent)));
}

fn by_url(url: &str, target: &str) -> Request {
    let signature = hex::encode(hmac_sha256(SECRET.as_bytes(), &[url.as_bytes(), BODY]));
    Request::post(target, BODY).header("X-Sig", signature).header("Host", "hooks.example.com")
}

fn other_url(url: &str, kind: &str) {
    let right = by_url("https://hooks.example.com:8443/hook", "/hook");
    mistaken(BY_URL, &by_url(url, "/hook"), "bad_signature", kind, (BY_URL, &right));
}

#[test]
fn a_body_that_lost_or_gained_a_line_end_is_told() {
    rewritten(BODY, &[BODY, b"\n"].concat(), "body_newline");
    rewritten(&[BODY, b"\n"].concat(), BODY, "body_newline");
    rewritten(&[BODY, b"\r\n"].concat(), BODY, "body_newline");
}

#[test]
fn a_body_with_white_space_around_it_is_told() {
    rewritten(BODY, &[b"  ", BODY, b" "].concat(), "body_whitespace");
}

#[test]
fn a_body_with_other_line_ends_is_told() {
    rewritten(b"a\r\nb\r\nc", b"a\nb\nc", "body_line_ends");
    rewritten(b"a\nb\nc", b"a\r\nb\r\nc", "body_line_ends");
}

#[test]
fn a_body_with_a_byte_order_mark_or_in_another_charset_is_told() {
    rewritten(BODY, &[b"\xef\xbb\xbf", BODY].concat(), "body_charset");
    rewritten(b"caf\xe9 x", "café x".as_bytes(), "body_charset");
    rewritten("café x".as_bytes(), "cafÃ© x".as_bytes(), "body_charset");
}

#[test]
fn a_json_body_that_was_parsed_and_written_anew_is_told_in_every_style() {
    // The sender's own spelling on the left; what a framework made of it was sent on.
    let compact = r#"{"zen":"café / <x>","n":[1.0,2],"a":{"z":1,"b":null}}"#;
    for signed in [
        r#"{"zen": "caf\u00e9 / <x>", "n": [1.0, 2], "a": {"z": 1, "b": null}}"#,
        r#"{"zen": "café / <x>", "n": [1.0, 2], "a": {"z": 1, "b": null}}"#,
        r#"{"zen":"caf\u00e9 \/ <x>","n":[1.0,2],"a":{"z":1,"b":null}}"#,
        r#"{"zen":"café / \u003cx\u003e","n":[1.0,2],"a":{"z":1,"b":null}}"#,
        r#"{"a":{"b":null,"z":1},"n":[1.0,2],"zen":"café / <x>"}"#,
        r#"{"zen":"café / <x>","n":[1,2],"a":{"z":1,"b":null}}"#,
        "{\n  \"zen\": \"café / <x>\",\n  \"n\": [\n    1.0,\n    2\n  ],\n  \"a\": {\n    \"z\": 1,\n    \"b\": null\n  }\n}",
    ] {
        let told = explained(GITHUB, &github(signed.as_bytes(), compact.as_bytes()));
        assert_eq!((told.code, told.kinds()), (1, vec!["body_reserialised"]), "{signed}");
    }
    let spaced = r#"{ "zen" : "x" }"#;
    rewritten(br#"{"zen":"x"}"#, spaced.as_bytes(), "body_reserialised");
}

#[test]
fn a_form_that_was_decoded_or_whose_field_was_signed_is_told() {
    rewritten(b"a=b c&d=\xc3\xa9", b"a=b+c&d=%C3%A9", "body_form_decoded");
    rewritten(b"a=b+c&d=%C3%A9", b"a=b c&d=\xc3\xa9", "body_form_decoded");
    rewritten(br#"{"a":1}"#, b"payload=%7B%22a%22%3A1%7D", "body_form_field");
}

#[test]
fn a_body_in_chunks_in_base64_or_in_a_string_is_told() {
    rewritten(b"abc", b"3\r\nabc\r\n0\r\n\r\n", "body_chunk_framing");
    rewritten(BODY, STANDARD.encode(BODY).as_bytes(), "body_base64");
    rewritten(br#"{"a":1}"#, br#""{\"a\":1}""#, "body_in_json_string");
}

#[test]
fn a_body_that_was_lost_is_told() {
    rewritten(b"", BODY, "body_empty");
    let lost = Request::post("/hook", "")
        .header("Content-Length", "57")
        .header("X-Hub-Signature-256", sign::github(SECRET, BODY));
    let told = explained(GITHUB, &lost);
    assert_eq!((told.code, told.kinds()), (1, vec!["body_lost"]));
}

#[test]
fn a_body_that_is_compressed_or_was_decompressed_is_told() {
    // The header of gzip (RFC 1952), and what stands for its contents.
    let compressed = github(BODY, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03rest");
    let told = explained(GITHUB, &compressed);
    assert_eq!((told.code, told.kinds()), (1, vec!["body_compressed"]));
    let decompressed = github(b"\x1f\x8b\x08rest", BODY).header("Content-Encoding", "gzip");
    let told = explained(GITHUB, &decompressed);
    assert_eq!((told.code, told.kinds()), (1, vec!["body_compressed"]));
}

#[test]
fn http_for_https_is_told() {
    other_url("http://hooks.example.com:8443/hook", "url_scheme");
}

#[test]
fn another_port_in_the_url_is_told() {
    other_url("https://hooks.example.com/hook", "url_port");
    other_url("https://hooks.example.com:443/hook", "url_port");
}

#[test]
fn a_trailing_slash_in_the_url_is_told() {
    other_url("https://hooks.example.com:8443/hook/", "url_trailing_slash");
}

#[test]
fn a_query_that_was_or_was_not_signed_is_told() {
    let url = "https://hooks.example.com:8443/hook";
    let right = by_url(&format!("{url}?a=1"), "/hook?a=1");
    mistaken(BY_URL, &by_url(url, "/hook?a=1"), "bad_signature", "url_query", (BY_URL, &right));
}

#[test]
fn the_host_as_seen_and_not_as_configured_is_told() {
    let elsewhere = BY_URL.replace("https://hooks.example.com:8443/hook", "https://other.example/hook");
    let request = by_url("https://hooks.example.com/hook", "/hook");
    let right = BY_URL.replace(":8443", "");
    mistaken(&elsewhere, &request, "bad_signature", "url_host", (&right, &request));
}

/// The request is right, and the source's settings are not.
fn misconfigured(wrong: &str, request: &Request, refusal: &str, kind: &str, right: &str) {
    mistaken(wrong, request, refusal, kind, (right, request));
}

fn with_secret(provider: &str, secret: &str) -> String {
    format!("provider = \"{provider}\"\nsecrets = [{{ value = {secret:?} }}]\n")
}

#[test]
fn a_secret_with_white_space_quotes_or_a_prefix_is_told() {
    let request = github(BODY, BODY);
    for (secret, kind) in [
        (format!("{SECRET}\n"), "secret_whitespace"),
        (format!(" {SECRET}"), "secret_whitespace"),
        (format!("\"{SECRET}\""), "secret_quotes"),
        (format!("'{SECRET}'"), "secret_quotes"),
        (format!("whsec_{SECRET}"), "secret_prefix"),
        (SECRET.to_ascii_uppercase(), "secret_case"),
        (SECRET.replace('-', "%2D"), "secret_url_encoded"),
        (STANDARD.encode(SECRET), "secret_base64_twice"),
    ] {
        misconfigured(&with_secret("github", &secret), &request, "bad_signature", kind, GITHUB);
    }
    let signature = sign::github(&format!("{SECRET}\n"), BODY);
    let request = Request::post("/hook", BODY).header("X-Hub-Signature-256", signature);
    let told = explained(GITHUB, &request);
    assert_eq!(told.kinds(), ["secret_whitespace"]);
}

#[test]
fn a_secret_whose_prefix_belongs_to_the_key_is_told() {
    let full = "whsec_a-secret-of-28-letters-0001";
    let request = Request::post("/hook", BODY).header("X-Hub-Signature-256", sign::github(full, BODY));
    misconfigured(GITHUB, &request, "bad_signature", "secret_prefix", &with_secret("github", full));
}

#[test]
fn a_secret_that_is_read_in_another_encoding_is_told() {
    let key = [7_u8; 32];
    for (secret, encoding) in [(hex::encode(key), "hex"), (STANDARD.encode(key), "base64")] {
        let signature = format!("sha256={}", hex::encode(hmac_sha256(&key, &[BODY])));
        let request = Request::post("/hook", BODY).header("X-Hub-Signature-256", signature);
        let wrong = with_secret("github", &secret);
        let right = format!("{wrong}verify = {{ key = {{ encoding = \"{encoding}\" }} }}\n");
        misconfigured(&wrong, &request, "bad_signature", "secret_encoding", &right);
    }
}

#[test]
fn the_secret_of_another_environment_is_told() {
    let test_secret = "a-test-secret-of-some-letters";
    let request = Request::post("/hook", BODY).header("X-Hub-Signature-256", sign::github(test_secret, BODY));
    let both =
        format!("{GITHUB}[sources.test]\npath = \"/test\"\nupstream = \"app\"\n{}", with_secret("github", test_secret));
    let right = with_secret("github", test_secret);
    misconfigured(&both, &request, "bad_signature", "secret_of_another_source", &right);
    let told = explained(&both, &request);
    assert!(told.json["hints"][0]["says"].as_str().expect("words").contains("sources.test"));
}

fn plain(settings: &str) -> String {
    format!("secrets = [{{ value = \"{SECRET}\" }}]\nverify = {{ {settings} }}\n")
}

#[test]
fn another_algorithm_is_told() {
    let sha1 = {
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(SECRET.as_bytes()).expect("any length");
        mac.update(BODY);
        hex::encode(mac.finalize().into_bytes())
    };
    let sha512 = {
        let mut mac = Hmac::<sha2::Sha512>::new_from_slice(SECRET.as_bytes()).expect("any length");
        mac.update(BODY);
        hex::encode(mac.finalize().into_bytes())
    };
    for (signature, name) in [(sha1, "hmac-sha1"), (sha512, "hmac-sha512")] {
        let request = Request::post("/hook", BODY).header("X-Sig", signature);
        let of = |name: &str| {
            plain(&format!("algorithm = \"{name}\", signature = {{ header = \"X-Sig\" }}, message = \"{{body}}\""))
        };
        misconfigured(&of("hmac-sha256"), &request, "malformed_signature", "algorithm", &of(name));
    }
}

#[test]
fn a_signature_in_another_writing_is_told() {
    let signature = STANDARD.encode(hmac_sha256(SECRET.as_bytes(), &[BODY]));
    let request = Request::post("/hook", BODY).header("X-Sig", signature);
    let of = |encoding: &str| {
        plain(&format!(
            "algorithm = \"hmac-sha256\", signature = {{ header = \"X-Sig\", encoding = \"{encoding}\" }}, message = \"{{body}}\""
        ))
    };
    misconfigured(&of("hex"), &request, "malformed_signature", "signature_encoding", &of("base64"));
}

#[test]
fn a_missing_or_unexpected_prefix_is_told() {
    let bare = hex::encode(hmac_sha256(SECRET.as_bytes(), &[BODY]));
    let of = |prefix: &str| {
        plain(&format!(
            "algorithm = \"hmac-sha256\", signature = {{ header = \"X-Sig\", prefix = \"{prefix}\" }}, message = \"{{body}}\""
        ))
    };
    for (sent, wrong, right) in [("", "sha256=", ""), ("sha256=", "", "sha256="), ("hmac ", "sha256=", "hmac ")] {
        let request = Request::post("/hook", BODY).header("X-Sig", format!("{sent}{bare}"));
        misconfigured(&of(wrong), &request, "malformed_signature", "signature_prefix", &of(right));
    }
}

#[test]
fn a_signature_or_timestamp_in_another_header_is_told() {
    let request = Request::post("/hook", BODY).header("X-Signature", sign::github(SECRET, BODY));
    mistaken(GITHUB, &request, "missing_signature", "header_name", (GITHUB, &github(BODY, BODY)));
    let slack = |header: &str| {
        Request::post("/hook", BODY)
            .header(header, TIME.to_string())
            .header("X-Slack-Signature", sign::slack(SECRET, TIME, BODY))
    };
    let right = slack("X-Slack-Request-Timestamp");
    mistaken(SLACK, &slack("X-Timestamp"), "missing_timestamp", "timestamp_header_name", (SLACK, &right));
}

#[test]
fn a_header_that_is_missing_is_told() {
    let key = [9_u8; 32];
    let standard =
        format!("provider = \"standard-webhooks\"\nsecrets = [{{ value = \"whsec_{}\" }}]\n", STANDARD.encode(key));
    let with = |id: bool| {
        let request = Request::post("/hook", BODY)
            .header("webhook-timestamp", TIME.to_string())
            .header("webhook-signature", sign::standard_webhooks(&key, "msg_1", TIME, BODY));
        if id { request.header("webhook-id", "msg_1") } else { request }
    };
    mistaken(&standard, &with(false), "missing_signature", "header_missing", (&standard, &with(true)));
}

#[test]
fn a_doubled_or_quoted_header_is_told() {
    let good = github(BODY, BODY);
    let doubled = good.clone().header("X-Hub-Signature-256", sign::github("another", BODY));
    mistaken(GITHUB, &doubled, "malformed_signature", "header_doubled", (GITHUB, &good));
    let value = sign::github(SECRET, BODY);
    let joined = Request::post("/hook", BODY).header("X-Hub-Signature-256", format!("{value}, {value}"));
    mistaken(GITHUB, &joined, "malformed_signature", "header_doubled", (GITHUB, &good));
    let quoted = Request::post("/hook", BODY).header("X-Hub-Signature-256", format!("\"{value}\""));
    mistaken(GITHUB, &quoted, "malformed_signature", "header_quoted", (GITHUB, &good));
}

fn stripe(time: u64) -> Request {
    Request::post("/hook", BODY).header("Stripe-Signature", sign::stripe(SECRET, time, BODY))
}

#[test]
fn a_genuine_message_with_a_time_that_is_off_is_told_by_how_much() {
    mistaken(STRIPE, &stripe(TIME - 4000), "stale", "clock", (STRIPE, &stripe(TIME - 200)));
    let told = explained(STRIPE, &stripe(TIME - 4000));
    assert!(told.json["hints"][0]["says"].as_str().expect("words").contains("66 min 40 s before"), "{:#}", told.json);
    let told = explained(STRIPE, &stripe(TIME + 2 * 3600));
    assert!(told.json["hints"][0]["try"].as_str().expect("words").contains("local time"), "{:#}", told.json);
}

#[test]
fn two_mistakes_of_which_one_is_the_time_are_told_together() {
    let request = Request::post("/hook", [BODY, b"\n"].concat())
        .header("Stripe-Signature", sign::stripe(SECRET, TIME - 86_400, BODY));
    let told = explained(STRIPE, &request);
    assert_eq!((&told.json["refusal"], told.kinds()), (&"bad_signature".into(), vec!["body_newline"]));
    assert!(told.json["hints"][0]["says"].as_str().expect("words").contains("24 h 0 min off"), "{:#}", told.json);
}

#[test]
fn a_timestamp_in_another_unit_is_told() {
    let of = |unit: &str| {
        plain(&format!(
            "algorithm = \"hmac-sha256\", signature = {{ header = \"X-Sig\" }}, message = \"{{timestamp}}{{body}}\", \
             timestamp = {{ header = \"X-Time\", unit = \"{unit}\" }}"
        ))
    };
    for (time, wrong, right, refusal) in [(TIME * 1000, "s", "ms", "malformed_timestamp"), (TIME, "ms", "s", "stale")] {
        let time = time.to_string();
        let signature = hex::encode(hmac_sha256(SECRET.as_bytes(), &[time.as_bytes(), BODY]));
        let request = Request::post("/hook", BODY).header("X-Time", time).header("X-Sig", signature);
        misconfigured(&of(wrong), &request, refusal, "timestamp_unit", &of(right));
    }
}

#[test]
fn another_message_under_the_same_headers_is_told() {
    let of = |message: &str| {
        plain(&format!(
            "algorithm = \"hmac-sha256\", signature = {{ header = \"X-Sig\" }}, message = \"{message}\", \
             timestamp = {{ header = \"X-Time\" }}"
        ))
    };
    let time = TIME.to_string();
    let signature = hex::encode(hmac_sha256(SECRET.as_bytes(), &[time.as_bytes(), b".", BODY]));
    let request = Request::post("/hook", BODY).header("X-Time", &time).header("X-Sig", signature);
    misconfigured(&of("{timestamp}{body}"), &request, "bad_signature", "message", &of("{timestamp}.{body}"));
}

#[test]
fn another_providers_scheme_is_told_by_its_name() {
    let slack = Request::post("/hook", BODY)
        .header("X-Slack-Request-Timestamp", TIME.to_string())
        .header("X-Slack-Signature", sign::slack(SECRET, TIME, BODY));
    let told = explained(GITHUB, &slack);
    assert_eq!(&told.json["refusal"], "missing_signature");
    let hints = told.json["hints"].as_array().expect("hints");
    let named = hints.iter().find(|hint| hint["kind"] == "other_provider").unwrap_or_else(|| panic!("{hints:#?}"));
    assert!(named["says"].as_str().expect("words").contains("slack"), "{named}");
    assert_eq!(explained(SLACK, &slack).code, 0);
}

#[test]
fn a_credential_in_another_header_or_form_is_told() {
    let token = format!("token = {{ header = \"X-Token\", secrets = [{{ value = \"{SECRET}\" }}] }}\n");
    let bearer = format!("bearer = [{{ value = \"{SECRET}\" }}]\n");
    let with = |name: &str, value: String| Request::post("/hook", BODY).header(name, value);
    let right = with("X-Token", SECRET.to_owned());
    for wrong in [with("X-Api-Key", SECRET.to_owned()), with("Authorization", format!("Bearer {SECRET}"))] {
        mistaken(&token, &wrong, "missing_credentials", "credential_place", (&token, &right));
    }
    let right = with("Authorization", format!("Bearer {SECRET}"));
    let bare = with("Authorization", SECRET.to_owned());
    let told = explained(&bearer, &bare);
    assert_eq!((told.code, told.kinds()), (1, vec!["credential_place"]), "{:#}", told.json);
    assert_eq!(explained(&bearer, &right).code, 0);
}

#[test]
fn a_forgery_has_no_hint_and_every_live_secret_counts() {
    let two = format!(
        "provider = \"github\"\nsecrets = [{{ value = \"the-new-secret-of-the-source\" }}, {{ value = \"{SECRET}\" }}]\n"
    );
    let told = explained(&two, &github(BODY, BODY));
    assert_eq!(told.code, 0);
    let steps = told.json["steps"].to_string();
    assert!(steps.contains("listed secret 2 made it"), "{steps}");
    let forged = Request::post("/hook", BODY).header("X-Hub-Signature-256", sign::github("guessed", BODY));
    let told = explained(&two, &forged);
    assert_eq!((told.code, told.kinds().len()), (1, 0));
}

#[test]
fn a_handshake_is_a_challenge_and_exits_with_zero() {
    let body = br#"{"type":"url_verification","challenge":"abc","token":"x"}"#;
    let request = Request::post("/hook", &body[..])
        .header("Content-Type", "application/json")
        .header("X-Slack-Request-Timestamp", TIME.to_string())
        .header("X-Slack-Signature", sign::slack(SECRET, TIME, body));
    let told = explained(SLACK, &request);
    assert_eq!((told.code, &told.json["verdict"], &told.json["refusal"]), (0, &"challenge".into(), &Value::Null));
}

#[test]
fn a_question_that_needs_no_proof_is_a_challenge_as_the_gateway_answers_it() {
    let dropbox = format!("provider = \"dropbox\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n");
    let told = explained(&dropbox, &Request::new("GET", "/hook?challenge=abc"));
    assert_eq!((told.code, &told.json["verdict"]), (0, &"challenge".into()), "{:#}", told.json);
    let told = explained(&dropbox, &Request::new("GET", "/hook"));
    assert_eq!((told.code, &told.json["refusal"]), (1, &"missing_challenge".into()), "{:#}", told.json);
}

#[test]
fn the_words_for_people_say_what_was_found_signed_and_compared_and_no_secret() {
    let folder = folder(GITHUB);
    folder.write("request", github(BODY, &[BODY, b"\n"].concat()).bytes());
    let (code, out, err) = hookward(&folder.0, &["explain", "--source", "it", "--request", "request"]);
    assert_eq!((code, err.as_str()), (1, ""));
    for said in [
        "sources.it, an HTTP message: POST /hook",
        "header x-hub-signature-256: \"sha256=",
        "bytes were signed: \"{\\\"zen\\\"",
        "in hmac-sha256; presented:",
        "refused: bad_signature: no live secret makes the presented signature",
        "body_newline: the sender signed the body without the line end",
        "try: hand the body on byte for byte",
    ] {
        assert!(out.contains(said), "{said:?} in\n{out}");
    }
    assert!(!out.contains(SECRET));
    // The whole expected signature would be a working one.
    let expected = hex::encode(hmac_sha256(SECRET.as_bytes(), &[BODY, b"\n"]));
    assert!(out.contains(&expected[..8]) && !out.contains(&expected[..12]), "{out}");
}

#[test]
fn every_format_of_saved_request_is_read_and_its_source_found() {
    let folder = folder(GITHUB);
    let signature = sign::github(SECRET, BODY);
    let body = String::from_utf8(BODY.to_vec()).expect("text");
    folder.write("body", BODY);
    let http = github(BODY, BODY).bytes();
    let curl = format!(
        "* Connected to localhost\n> POST /hook HTTP/1.1\r\n> Host: x\r\n> X-Hub-Signature-256: {signature}\r\n\
         > Content-Length: {}\r\n> \r\n< HTTP/1.1 401\r\n",
        BODY.len()
    );
    let audit = serde_json::json!({ "time": "x", "type": "audit", "source": "it", "method": "POST", "path": "/hook",
        "headers": { "X-Hub-Signature-256": signature }, "body": body });
    let har = serde_json::json!({ "log": { "entries": [ { "request": { "method": "POST", "url": "https://x/hook",
        "headers": [{ "name": "X-Hub-Signature-256", "value": signature }], "postData": { "text": body } } } ] } });
    for (request, more) in [
        (http.clone(), &[][..]),
        (curl.clone().into_bytes(), &["--body", "body"]),
        (audit.to_string().into_bytes(), &[]),
        (har.to_string().into_bytes(), &["--entry", "1"]),
    ] {
        let told = explained_in(&folder, &request, more);
        assert_eq!((told.code, &told.json["source"]), (0, &"it".into()), "{:#}", told.json);
    }
    // Without the body, and from standard input.
    folder.write("request", curl);
    let (code, _, err) = hookward(&folder.0, &["explain", "--request", "request"]);
    assert_eq!((code, err.contains("give it with --body FILE")), (64, true), "{err}");
    let mut child = Command::new(BINARY)
        .current_dir(&folder.0)
        .args(["explain", "--request", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().expect("piped").write_all(&http).expect("taken");
    let done = child.wait_with_output().expect("an end");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn what_cannot_be_explained_has_its_own_exit_code() {
    let folder = folder(GITHUB);
    folder.write("request", "hello\n");
    let run = |arguments: &[&str]| hookward(&folder.0, &[&["explain"], arguments].concat());
    let (code, _, err) = run(&["--request", "request"]);
    assert_eq!(code, 64);
    assert!(err.contains("request: line 1: \"hello\" begins no request; save a raw HTTP message"), "{err}");
    assert_eq!(run(&["--request", "gone"]).0, 64);
    assert_eq!(run(&[]).0, 64);
    folder.write("request", github(BODY, BODY).bytes());
    let (code, _, err) = run(&["--request", "request", "--source", "other"]);
    assert_eq!((code, err.trim_end()), (64, "there is no source \"other\"; there are: it"));
    assert_eq!(run(&["--config", "gone.toml", "--request", "request"]).0, 78);
    // Nobody's path, and a method that the source does not take, are refusals.
    let nobodys = explained_in(&folder, &Request::post("/other", BODY).bytes(), &[]);
    assert_eq!((nobodys.code, &nobodys.json["refusal"]), (1, &"no_source".into()));
    let signature = sign::github(SECRET, b"");
    let get = Request::new("GET", "/hook").header("X-Hub-Signature-256", signature);
    let told = explained_in(&folder, &get.bytes(), &[]);
    assert_eq!((told.code, &told.json["refusal"]), (1, &"method_not_allowed".into()));
}

const TOKEN: &str = "Bearer an-admin-token-for-tests";

#[test]
fn the_operator_asks_the_admin_port_why_the_last_deliveries_were_refused() {
    let upstream = Upstream::start();
    let configuration = format!(
        "[upstreams.app]\nurls = [\"http://{}\"]\n[sources.it]\npath = \"/hook\"\nupstream = \"app\"\n{GITHUB}",
        upstream.address
    );
    let gateway = Gateway::start(&configuration);
    assert_eq!(github(BODY, BODY).send(gateway.public()).status, 200);
    let refused = github(BODY, &[BODY, b"\n"].concat()).send(gateway.public());
    assert_eq!(refused.status, 401);
    let ask = |path: &str, token: Option<&str>| {
        let request = Request::new("GET", path);
        let request = token.iter().fold(request, |request, token| request.header("Authorization", token));
        request.send(gateway.address("admin"))
    };
    let id = refused.request_id();
    let one = format!("/refusals/{id}");
    for path in ["/refusals", &one] {
        assert_eq!(ask(path, None).status, 401);
    }
    let listed: Value = serde_json::from_slice(&ask("/refusals", Some(TOKEN)).body).expect("JSON");
    let listed = listed["refusals"].as_array().expect("a list").clone();
    assert_eq!(listed.len(), 1, "what was accepted is not kept: {listed:?}");
    assert_eq!((&listed[0]["id"], &listed[0]["refusal"]), (&id.as_str().into(), &"bad_signature".into()));
    let answer = ask(&one, Some(TOKEN));
    let told: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((&told["verdict"], &told["was_refused"]), (&"refuse".into(), &"bad_signature".into()));
    assert_eq!(told["hints"][0]["kind"], "body_newline", "{told:#}");
    // Nobody who may only read this port can make a signature of what it says.
    let expected = hex::encode(hmac_sha256(SECRET.as_bytes(), &[BODY, b"\n"]));
    assert!(!answer.text().contains(SECRET) && !answer.text().contains(&expected[..8]));
    assert_eq!(ask("/refusals/other", Some(TOKEN)).status, 404);
}

#[test]
fn only_so_many_refusals_are_kept_and_none_where_it_is_off() {
    let upstream = Upstream::start();
    for (keep, expected) in [(8, 2), (0, 0)] {
        let configuration = format!(
            "[listeners.public]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\nkeep_refused = {keep}\n\
             token = {{ value = \"an-admin-token-for-tests\" }}\n[log]\nformat = \"json\"\n[upstreams.app]\n\
             urls = [\"http://{}\"]\n[sources.it]\npath = \"/hook\"\nupstream = \"app\"\n{GITHUB}",
            upstream.address
        );
        let gateway = Gateway::start_in(std::sync::Arc::new(Folder::new()), &configuration);
        for number in 0..6 {
            let forged = Request::post("/hook", BODY).header("X-Hub-Signature-256", sign::github("guessed", &[number]));
            assert_eq!(forged.send(gateway.public()).status, 401);
        }
        let listed = Request::new("GET", "/refusals").header("Authorization", TOKEN).send(gateway.address("admin"));
        let listed: Value = serde_json::from_slice(&listed.body).expect("JSON");
        // One client has a quarter of the places.
        assert_eq!(listed["refusals"].as_array().map(Vec::len), Some(expected));
    }
}

#[test]
fn a_refusal_that_the_configuration_was_mended_for_is_accepted_when_asked_again() {
    let upstream = Upstream::start();
    let configuration = |secret: &str| {
        format!(
            "{}[upstreams.app]\nurls = [\"http://{}\"]\n[sources.it]\npath = \"/hook\"\nupstream = \"app\"\n{}",
            crate::support::gateway::PLAIN,
            upstream.address,
            with_secret("stripe", secret)
        )
    };
    let mut gateway =
        Gateway::start_in(std::sync::Arc::new(Folder::new()), &configuration("another-secret-of-29-letters"));
    let refused = stripe(now()).send(gateway.public());
    assert_eq!(refused.status, 401);
    assert!(gateway.reload(&configuration(SECRET)));
    let path = format!("/refusals/{}", refused.request_id());
    let told = eventually("the new secret is in force", || {
        let answer = Request::new("GET", &path).header("Authorization", TOKEN).send(gateway.address("admin"));
        let told: Value = serde_json::from_slice(&answer.body).expect("JSON");
        (told["verdict"] == "accept").then_some(told)
    });
    assert_eq!(told["was_refused"], "bad_signature");
}

/// Every kind of hint in the code is in the page's table, and no other.
#[test]
fn the_page_names_every_kind_of_hint() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/explain.md")).expect("the page");
    let table =
        page.split("| kind | the mistake |").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a table");
    let documented: std::collections::BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let mut code = String::new();
    for entry in std::fs::read_dir(root.join("src/verify/explain")).expect("a folder") {
        code += &std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
    }
    for kind in &documented {
        assert!(code.contains(&format!("\"{kind}\"")), "{kind} is in the page alone");
    }
    let families = ["body_", "url_", "secret_", "header_", "signature_", "timestamp_", "credential_", "other_"];
    let literals = code.split('"').skip(1).step_by(1).filter(|text| {
        families.iter().any(|family| text.starts_with(family))
            && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    });
    for kind in literals {
        assert!(documented.contains(kind), "{kind} is not in the page");
    }
    assert!(documented.len() >= 30, "{documented:?}");
}
