//! What message signatures promise, and what somebody without a key would try.

use super::keyring::SignerKeyError;
use super::rfc9421::signature_base;
use super::structured::{Dictionary, Member};
use super::*;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::fields::Fields;
use crate::secret::Secret;
use crate::verify::fields::Json;
use crate::verify::hmac::{Hash, Keyed};
use crate::verify::key::{Key, KeyEncoding, KeyFormat};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method};
use proptest::prelude::*;

const NOW: UnixMillis = UnixMillis::from_secs(1_700_000_000);
const BODY: &str = r#"{"hello":"world"}"#;
const SECRET: &str = "a secret of more than sixteen bytes";
/// RFC 8410, section 10.1.
const PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
const UTF8: KeyFormat = KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None };

fn key(text: &str, id: Option<&str>, algorithm: MessageAlgorithm) -> SignerKey {
    SignerKey::read(&Secret::new(text.into()), id, algorithm, &UTF8, false).unwrap()
}

fn hmac(text: &str, id: Option<&str>) -> SignerKey {
    key(text, id, MessageAlgorithm::HmacSha256)
}

fn rules(standard: Standard, components: &[&str]) -> HttpSignature {
    let required = components.iter().map(|text| Required::parse(text, &standard).expect("a component"));
    HttpSignature {
        label: "http_signature".into(),
        required: required.collect(),
        standard,
        keys: vec![hmac(SECRET, Some("mac")), key(PEM, Some("ed"), MessageAlgorithm::Ed25519)],
        max_age: Duration::from_secs(300),
        clock_skew: Duration::from_secs(60),
    }
}

fn rfc9421(components: &[&str]) -> HttpSignature {
    rules(Standard::Rfc9421 { tag: None, nonce: false }, components)
}

fn strict() -> HttpSignature {
    rfc9421(&["@method", "@target-uri", "content-digest"])
}

fn cavage(components: &[&str]) -> HttpSignature {
    let signature = CavagePlace::Header(HeaderName::from_static("signature"));
    rules(Standard::Cavage { places: vec![signature, CavagePlace::Authorization] }, components)
}

fn strict_cavage() -> HttpSignature {
    cavage(&["(request-target)", "host", "date", "digest"])
}

fn delivery(headers: &[(&str, &str)]) -> Delivery {
    let mut map = Fields::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: Some("a=1".into()),
        headers: map,
        body: BODY.into(),
    }
}

fn examined(rules: &HttpSignature, delivery: &Delivery, now: UnixMillis) -> Result<Findings, Refusal> {
    let json = Json::default();
    let question = Question { delivery, json: &json, public_url: None, now, library: &NoLibrary };
    rules.examine(&question).map_err(|failure| failure.fault.refusal)
}

fn judged(rules: &HttpSignature, delivery: &Delivery) -> Result<(), Refusal> {
    examined(rules, delivery, NOW).map(drop)
}

/// Signs whatever `input` says, as the holder of the HMAC key would, and adds it to what is there.
fn add_signature(delivery: &mut Delivery, label: &str, input: &str) {
    add_signature_with(delivery, label, input, SECRET);
}

fn add_signature_with(delivery: &mut Delivery, label: &str, input: &str, secret: &str) {
    let text = format!("{label}={input}");
    let parsed = Dictionary::parse(&text).expect("a dictionary");
    let Some(Member::List(list)) = parsed.find(label) else { panic!("a list") };
    let base = signature_base(list, delivery, &Target::of(delivery, None)).map(|(_, base)| base);
    // Not through `SignerKey`, which takes no public key for a secret.
    let secret = Key::decode(&Secret::new(secret.into()), &UTF8).unwrap();
    let signature = Keyed::new(Hash::Sha256, &secret).mac(&[base.unwrap_or_default().as_bytes().into()]).to_vec();
    append(delivery, "signature-input", &text);
    append(delivery, "signature", &format!("{label}=:{}:", STANDARD.encode(signature)));
}

fn append(delivery: &mut Delivery, name: &'static str, value: &str) {
    delivery.headers.append(name, HeaderValue::from_str(value).unwrap());
}

fn replace(delivery: &Delivery, name: &'static str, from: &str, to: &str) -> Delivery {
    let mut changed = delivery.clone();
    let value = changed.headers.get(name).unwrap().to_str().unwrap().replace(from, to);
    changed.headers.insert(name, HeaderValue::from_str(&value).unwrap());
    changed
}

const COVERED: &str = r#"("@method" "@target-uri" "content-digest")"#;

fn signed(parameters: &str) -> Delivery {
    signed_over(COVERED, parameters)
}

fn signed_over(covered: &str, parameters: &str) -> Delivery {
    let mut delivery = delivery(&[("content-digest", &digest::content_digest(BODY.as_bytes())), ("x-a", "1")]);
    add_signature(&mut delivery, "sig1", &format!("{covered}{parameters}"));
    delivery
}

const GOOD: &str = r#";created=1700000000;keyid="mac""#;

#[test]
fn a_signature_over_what_is_required_is_accepted_and_its_message_remembered() {
    let good = signed(GOOD);
    let findings = examined(&strict(), &good, NOW).unwrap();
    assert_eq!(findings.signed_at, Some(NOW));
    assert_eq!(findings.tolerance, Some(Duration::from_secs(300)));
    assert_eq!(findings.secret_used, Some(0));
    assert_eq!(findings.replay_keys.len(), 1);
    let again = examined(&strict(), &good, NOW).unwrap();
    assert_eq!(again.replay_keys, findings.replay_keys);
    let other = examined(&strict(), &signed(r#";created=1700000001;keyid="mac""#), NOW).unwrap();
    assert_ne!(other.replay_keys, findings.replay_keys);
}

#[test]
fn anything_that_is_covered_cannot_be_changed() {
    let good = signed(GOOD);
    assert_eq!(judged(&strict(), &good), Ok(()));
    for changed in [
        Delivery { method: Method::PUT, ..good.clone() },
        Delivery { path: "/out".into(), ..good.clone() },
        Delivery { query: Some("a=2".into()), ..good.clone() },
        Delivery { query: None, ..good.clone() },
        Delivery { authority: "evil.example.com".into(), ..good.clone() },
        Delivery { scheme: "http", ..good.clone() },
        replace(&good, "signature-input", "1700000000", "1700000001"),
        replace(&good, "signature-input", r#";keyid="mac""#, r#";keyid="mac";x"#),
        replace(&good, "signature-input", r#""@method" "@target-uri""#, r#""@target-uri" "@method""#),
    ] {
        assert_eq!(judged(&strict(), &changed), Err(Refusal::BadSignature), "{changed:?}");
    }
    let other_body = Delivery { body: "{}".into(), ..good.clone() };
    assert_eq!(judged(&strict(), &other_body), Err(Refusal::BodyMismatch));
    let mut both = other_body;
    both.headers.insert("content-digest", HeaderValue::from_str(&digest::content_digest(b"{}")).unwrap());
    assert_eq!(judged(&strict(), &both), Err(Refusal::BadSignature));
    // What is not covered may change: here as well.
    let mut more = good;
    more.headers.insert("x-a", HeaderValue::from_static("2"));
    assert_eq!(judged(&strict(), &more), Ok(()));
}

#[test]
fn a_valid_signature_that_covers_too_little_proves_nothing() {
    for covered in [
        "()",
        r#"("@method" "@target-uri")"#,
        r#"("@method" "@path" "content-digest")"#,
        r#"("@method" "@target-uri" "content-digest";key="sha-256")"#,
        r#"("@target-uri" "content-digest")"#,
    ] {
        let little = signed_over(covered, GOOD);
        assert_eq!(judged(&strict(), &little), Err(Refusal::NotCovered), "{covered}");
        assert_eq!(judged(&rfc9421(&[]), &little), Ok(()), "{covered}");
    }
    for whole in [r#""content-digest";sf"#, r#""content-digest";bs"#] {
        let covered = COVERED.replace(r#""content-digest""#, whole);
        assert_eq!(judged(&strict(), &signed_over(&covered, GOOD)), Ok(()), "{whole}");
    }
    let parameter = rfc9421(&[r#"@query-param;name="a""#]);
    assert_eq!(judged(&parameter, &signed_over(r#"("@query-param";name="a")"#, GOOD)), Ok(()));
    assert_eq!(judged(&parameter, &signed_over(r#"("@query")"#, GOOD)), Err(Refusal::NotCovered));
}

#[test]
fn what_was_signed_for_another_host_does_not_pass_here_in_any_spelling_of_the_host() {
    let rules = rfc9421(&["host"]);
    let judged_for = |host: &'static str, covered: &str| {
        let mut message = Delivery { authority: host.into(), ..delivery(&[("host", host)]) };
        add_signature(&mut message, "sig1", &format!("({covered}){GOOD}"));
        let public_url = Some("https://hooks.example.com/in");
        let json = Json::default();
        let question = Question { delivery: &message, json: &json, public_url, now: NOW, library: &NoLibrary };
        rules.examine(&question).map(drop).map_err(|failure| failure.fault.refusal)
    };
    for covered in [r#""host""#, r#""host";bs"#] {
        assert_eq!(judged_for("hooks.example.com", covered), Ok(()), "{covered}");
        assert_eq!(judged_for("other.example.com", covered), Err(Refusal::BadSignature), "{covered}");
    }
}

#[test]
fn a_component_twice_or_of_another_kind_is_malformed() {
    for covered in [
        r#"("@method" "@method")"#,
        r#"("content-digest" "@method" "content-digest")"#,
        r#"("X-A")"#,
        r#"("@status")"#,
        r#"("@signature-params")"#,
        r#"("x-a";req)"#,
        r#"("x-a";tr)"#,
        r#"("@method";req)"#,
        "(method)",
        "(1)",
        r#"("@query-param")"#,
        r#"("@query-param";name="gone")"#,
    ] {
        assert_eq!(judged(&rfc9421(&[]), &signed_over(covered, GOOD)), Err(Refusal::MalformedSignature), "{covered}");
    }
    assert_eq!(judged(&rfc9421(&[]), &signed_over(r#"("x-gone")"#, GOOD)), Err(Refusal::MissingSignature));
}

#[test]
fn the_times_have_edges_and_created_is_not_optional() {
    let at = |created: i64, more: &str, now: u64| {
        let delivery = signed(&format!(r#";created={created};keyid="mac"{more}"#));
        examined(&strict(), &delivery, UnixMillis::from_secs(now)).map(|findings| findings.signed_at)
    };
    let created = Some(UnixMillis::from_secs(1000));
    assert_eq!(at(1000, "", 1300), Ok(created));
    assert_eq!(at(1000, "", 1301), Err(Refusal::Stale));
    assert_eq!(at(1000, "", 940), Ok(created));
    assert_eq!(at(1000, "", 939), Err(Refusal::Stale));
    assert_eq!(at(1000, ";expires=1010", 1010), Ok(created));
    assert_eq!(at(1000, ";expires=1010", 1011), Err(Refusal::Stale));
    assert_eq!(at(-5, "", 1), Err(Refusal::MalformedSignature));
    assert_eq!(at(999_999_999_999_999, "", 1000), Err(Refusal::Stale));
    for odd in [r#"created="1700000000""#, "created=1700000000.0", "created", "created=1700000000;expires=?0"] {
        let delivery = signed(&format!(r#";{odd};keyid="mac""#));
        assert_eq!(judged(&strict(), &delivery), Err(Refusal::MalformedSignature), "{odd}");
    }
    assert_eq!(judged(&strict(), &signed(r#";keyid="mac""#)), Err(Refusal::MissingTimestamp));
}

#[test]
fn the_algorithm_is_the_keys_own_whatever_the_message_says() {
    assert_eq!(judged(&strict(), &signed(r#";created=1700000000;keyid="mac";alg="hmac-sha256""#)), Ok(()));
    for alg in ["ed25519", "none", "", "HMAC-SHA256"] {
        let delivery = signed(&format!(r#";created=1700000000;keyid="mac";alg="{alg}""#));
        assert_eq!(judged(&strict(), &delivery), Err(Refusal::AlgorithmNotAllowed), "{alg}");
    }
    // The public key's text as an HMAC secret, under that key's name.
    for alg in ["", r#";alg="hmac-sha256""#] {
        let mut forged = delivery(&[("content-digest", &digest::content_digest(BODY.as_bytes()))]);
        let input = format!(r#"{COVERED};created=1700000000;keyid="ed"{alg}"#);
        add_signature_with(&mut forged, "sig1", &input, PEM);
        assert!(judged(&strict(), &forged).is_err(), "{alg}");
    }
    let as_secret = SignerKey::read(&Secret::new(PEM.into()), None, MessageAlgorithm::HmacSha256, &UTF8, false);
    assert_eq!(as_secret.unwrap_err(), SignerKeyError::PublicKeyAsSecret);
    let inside = PEM.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    for public in [inside.as_str(), r#"{"kty":"OKP","crv":"Ed25519","x":"A"}"#, r#"{"keys":[]}"#] {
        assert!(keyring::looks_public(public.as_bytes()), "{public}");
    }
    for secret in [SECRET, "MFkwEwYHKoZIzj0CAQYI", r#"{"kty":"oct","k":"c2VjcmV0"}"#, "{}"] {
        assert!(!keyring::looks_public(secret.as_bytes()), "{secret}");
    }
    let as_rsa = SignerKey::read(&Secret::new(PEM.into()), None, MessageAlgorithm::RsaPssSha512, &UTF8, false);
    assert_eq!(as_rsa.unwrap_err(), SignerKeyError::OtherKind);
}

#[test]
fn the_key_is_the_one_that_the_signature_names() {
    assert_eq!(judged(&strict(), &signed(r#";created=1700000000;keyid="nobody""#)), Err(Refusal::UntrustedKey));
    assert_eq!(judged(&strict(), &signed(";created=1700000000")), Err(Refusal::MissingSignature));
    assert_eq!(judged(&strict(), &signed(";created=1700000000;keyid=mac")), Err(Refusal::MalformedSignature));
    // A key without an id is for whoever names none, or one that is not configured.
    let keys = vec![hmac("another secret, of somebody else", None), hmac(SECRET, None)];
    let unnamed = HttpSignature { keys, ..strict() };
    for id in ["", r#";keyid="nobody""#] {
        let findings = examined(&unnamed, &signed(&format!(";created=1700000000{id}")), NOW).unwrap();
        assert_eq!(findings.secret_used, Some(1), "{id}");
    }
    // Two under one name: a key is changed.
    let keys = vec![hmac("the secret that comes after it", Some("mac")), hmac(SECRET, Some("mac"))];
    assert_eq!(examined(&HttpSignature { keys, ..strict() }, &signed(GOOD), NOW).unwrap().secret_used, Some(1));
}

#[test]
fn labels_and_headers_that_do_not_fit_together_are_refused() {
    let good = signed(GOOD);
    let without = |name: &str| {
        let mut delivery = good.clone();
        delivery.headers.remove(name);
        delivery
    };
    assert_eq!(judged(&strict(), &without("signature")), Err(Refusal::MissingSignature));
    assert_eq!(judged(&strict(), &without("signature-input")), Err(Refusal::MissingSignature));
    assert_eq!(judged(&strict(), &without("content-digest")), Err(Refusal::MissingSignature));
    assert_eq!(judged(&strict(), &replace(&good, "signature", "sig1", "sig2")), Err(Refusal::MissingSignature));
    for (from, to) in [("sig1=:", "sig1="), (":", ""), ("=:", "=?1;x=:"), ("sig1", "SIG1"), ("sig1=", "sig1 =")] {
        let broken = replace(&good, "signature", from, to);
        assert_eq!(judged(&strict(), &broken), Err(Refusal::MalformedSignature), "{from} {to}");
    }
    let input = good.headers.get("signature-input").unwrap().to_str().unwrap().to_owned();
    // The same label twice, in one line or in two.
    let mut twice = good.clone();
    append(&mut twice, "signature-input", &input);
    assert_eq!(judged(&strict(), &twice), Err(Refusal::MalformedSignature));
    let mut twice = good.clone();
    append(&mut twice, "signature", "sig1=:AAAA:");
    assert_eq!(judged(&strict(), &twice), Err(Refusal::MalformedSignature));
    let listed = replace(&good, "signature-input", "sig1=", "sig1=1, other=");
    assert_eq!(judged(&strict(), &listed), Err(Refusal::MalformedSignature));
    let mut unreadable = good.clone();
    unreadable.headers.insert("signature", HeaderValue::from_bytes(b"sig1=:\xff:").unwrap());
    assert_eq!(judged(&strict(), &unreadable), Err(Refusal::MalformedSignature));
    let huge = format!("sig1=({})", r#""x" "#.repeat(10_000));
    let mut flooded = good;
    flooded.headers.insert("signature-input", HeaderValue::from_str(&huge).unwrap());
    assert_eq!(judged(&strict(), &flooded), Err(Refusal::MalformedSignature));
}

/// What a stranger can have us do without a key is bounded.
#[test]
fn covering_without_measure_is_malformed() {
    let covered = |count: usize| {
        let keys: Vec<_> = (0..count).map(|number| format!(r#""x-d";key="k{number}""#)).collect();
        format!("({})", keys.join(" "))
    };
    let fields: Vec<_> = (0..9).map(|number| format!("k{number}=1")).collect();
    let with = |covered: String| {
        let mut delivery = delivery(&[("x-d", &fields.join(", ")), ("x-long", &"x".repeat(100_000))]);
        add_signature(&mut delivery, "sig1", &format!("{covered}{GOOD}"));
        judged(&rfc9421(&[]), &delivery)
    };
    assert_eq!(with(covered(4)), Ok(()));
    assert_eq!(with(covered(5)), Err(Refusal::MalformedSignature));
    assert_eq!(with(r#"("x-long")"#.to_owned()), Ok(()));
    assert_eq!(with(r#"("x-long" "x-long";bs)"#.to_owned()), Err(Refusal::MalformedSignature));
}

/// A signature that is not canonical on the wire is the same signature, and remembered as the same.
#[test]
fn another_spelling_of_the_same_signature_is_the_same_message() {
    let good = signed(GOOD);
    let spaced = replace(&good, "signature-input", r#"" ""#, r#""   ""#);
    let first = examined(&strict(), &good, NOW).unwrap().replay_keys;
    assert_eq!(examined(&strict(), &spaced, NOW).unwrap().replay_keys, first);
}

#[test]
fn one_good_signature_is_enough_and_every_good_one_is_remembered() {
    let mut two = signed(r#";created=1700000000;keyid="nobody""#);
    add_signature(&mut two, "sig2", &format!("{COVERED}{GOOD}"));
    let alone = examined(&strict(), &two, NOW).unwrap().replay_keys;
    assert_eq!(alone.len(), 1);
    add_signature(&mut two, "sig3", &format!(r#"{COVERED};created=1700000005;keyid="mac""#));
    let findings = examined(&strict(), &two, NOW).unwrap();
    assert_eq!(findings.replay_keys.len(), 2);
    assert_eq!(findings.signed_at, Some(UnixMillis::from_secs(1_700_000_005)), "as long as the younger one is good");
    assert!(findings.replay_keys.contains(&alone[0]), "a copy without sig3 is a copy");
    // One that covers everything and is forged, beside one that is good and covers nothing: neither suffices.
    let mut forged = signed_over("()", GOOD);
    append(&mut forged, "signature-input", &format!("sig2={COVERED}{GOOD}"));
    append(&mut forged, "signature", &format!("sig2=:{}:", STANDARD.encode([0; 32])));
    assert_eq!(judged(&strict(), &forged), Err(Refusal::NotCovered));
}

#[test]
fn a_nonce_is_accepted_once_and_a_tag_chooses() {
    let nonce = rules(Standard::Rfc9421 { tag: None, nonce: true }, &["@method"]);
    assert_eq!(nonce.replay_keys_each(), 1);
    let with = |nonce: &str, method: &str| {
        signed_over(&format!(r#"("@method" {method})"#), &format!(r#"{GOOD};nonce="{nonce}""#))
    };
    let keys = |delivery: &Delivery| examined(&nonce, delivery, NOW).unwrap().replay_keys;
    assert_eq!(keys(&with("n1", r#""x-a""#)), keys(&with("n1", r#""@path""#)));
    assert_ne!(keys(&with("n1", r#""x-a""#)), keys(&with("n2", r#""x-a""#)));
    assert_eq!(judged(&nonce, &signed_over(r#"("@method")"#, GOOD)), Err(Refusal::NotCovered));
    for odd in ["nonce=\"\"".to_owned(), "nonce=1".to_owned(), format!("nonce=\"{}\"", "n".repeat(257))] {
        let delivery = signed_over(r#"("@method")"#, &format!("{GOOD};{odd}"));
        assert_eq!(judged(&nonce, &delivery), Err(Refusal::MalformedSignature), "{odd}");
    }
    let tagged = rules(Standard::Rfc9421 { tag: Some("ours".into()), nonce: false }, &["@method"]);
    assert_eq!(judged(&tagged, &signed(&format!(r#"{GOOD};tag="ours""#))), Ok(()));
    assert_eq!(judged(&tagged, &signed(&format!(r#"{GOOD};tag="theirs""#))), Err(Refusal::MissingSignature));
    assert_eq!(judged(&tagged, &signed(GOOD)), Err(Refusal::MissingSignature));
}

#[test]
fn digests_that_are_weak_or_partly_wrong_do_not_stand_for_the_body() {
    let right = digest::content_digest(BODY.as_bytes());
    for (field, expected) in [
        (right.clone(), Ok(())),
        (format!("md5=:AAAA:, {right}"), Ok(())),
        ("md5=:AAAA:".to_owned(), Err(Refusal::AlgorithmNotAllowed)),
        (format!("{right}, sha-512=:AAAA:"), Err(Refusal::BodyMismatch)),
        (format!("{right}, {right}"), Err(Refusal::MalformedSignature)),
        ("nonsense here".to_owned(), Err(Refusal::MalformedSignature)),
    ] {
        let mut delivery = delivery(&[("content-digest", &field)]);
        add_signature(&mut delivery, "sig1", &format!("{COVERED}{GOOD}"));
        assert_eq!(judged(&strict(), &delivery), expected, "{field}");
    }
    // In two lines, of which only together they are what was signed.
    let mut split = delivery(&[("content-digest", &right)]);
    append(&mut split, "content-digest", "sha-512=:AAAA:");
    add_signature(&mut split, "sig1", &format!("{COVERED}{GOOD}"));
    assert_eq!(judged(&strict(), &split), Err(Refusal::BodyMismatch));
}

#[test]
fn what_is_required_says_what_is_covered() {
    let header = |name| Locator::Header(HeaderName::from_static(name));
    let rules = rfc9421(&["@method", "@target-uri", "content-digest", "x-id"]);
    assert_eq!(rules.coverage(), Coverage::Whole);
    assert!(rules.covers(&Locator::Json("/id".into()), None));
    assert!(rules.covers(&header("x-id"), None));
    assert!(!rules.covers(&header("x-other"), None));
    assert!(rules.covers(&Locator::Query("a".into()), Some("https://told/in")));
    assert!(!rules.covers(&Locator::Query("a".into()), Some("https://told/in?b=c")));
    let little = rfc9421(&["@authority", r#"@query-param;name="a""#]);
    assert_eq!(little.coverage(), Coverage::Nothing);
    assert_eq!(little.replay_keys_each(), 0);
    assert!(little.covers(&Locator::Query("a".into()), None));
    assert!(!little.covers(&Locator::Query("b".into()), None));
    assert!(!little.covers(&Locator::Json("/id".into()), None));
    let uncovered = Uncovered { body: true, receiver: false, method: true, time: false };
    assert_eq!(little.uncovered(), uncovered);
}

#[test]
fn what_no_request_has_cannot_be_required() {
    let standard = Standard::Rfc9421 { tag: None, nonce: false };
    for text in ["", "@status", "@query-param", "Date", "x a", "x;req", "x;bs;sf", "x;", "@method;x", "\"x\"", "x-a;sf"]
    {
        assert_eq!(Required::parse(text, &standard), None, "{text}");
    }
    let standard = cavage(&[]).standard;
    for text in ["", "(status)", "Date", "x a", "(Request-Target)"] {
        assert_eq!(Required::parse(text, &standard), None, "{text}");
    }
}

fn signed_cavage(names: &str, more: &str) -> Delivery {
    let headers = [
        ("date", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("digest", &digest::digest(BODY.as_bytes())),
        ("content-type", "application/json"),
    ];
    let mut delivery = delivery(&headers);
    let mut message = Vec::new();
    for name in names.to_ascii_lowercase().split(' ') {
        let value = match name {
            "(request-target)" => "post /in?a=1".to_owned(),
            "host" => "hooks.example.com".to_owned(),
            "(created)" => "1700000000".to_owned(),
            "(expires)" => "1700000100".to_owned(),
            name => delivery.headers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned()),
        };
        message.push(format!("{name}: {value}"));
    }
    let signature = STANDARD.encode(hmac(SECRET, None).sign(message.join("\n").as_bytes(), None).unwrap());
    let text = format!(r#"keyId="mac",headers="{names}",signature="{signature}"{more}"#);
    append(&mut delivery, "signature", &text);
    delivery
}

const NAMES: &str = "(request-target) host date digest";

#[test]
fn a_cavage_signature_over_what_is_required_is_accepted() {
    let good = signed_cavage(NAMES, "");
    let findings = examined(&strict_cavage(), &good, NOW).unwrap();
    assert_eq!((findings.signed_at, findings.replay_keys.len()), (Some(NOW), 1));
    for more in [r#",algorithm="hs2019""#, r#", algorithm="hmac-sha256""#, r#",other="x",n=5"#] {
        assert_eq!(judged(&strict_cavage(), &signed_cavage(NAMES, more)), Ok(()), "{more}");
    }
    assert_eq!(judged(&strict_cavage(), &signed_cavage("(request-target) Host Date Digest", "")), Ok(()));
    assert_eq!(judged(&strict_cavage(), &replace(&good, "signature", "keyId", "keyid")), Ok(()));
    let mut moved = good.clone();
    let text = moved.headers.remove("signature").unwrap();
    append(&mut moved, "authorization", &format!("Signature {}", text.to_str().unwrap()));
    assert_eq!(judged(&strict_cavage(), &moved), Ok(()));
    append(&mut moved, "authorization", "Basic x");
    assert_eq!(judged(&strict_cavage(), &moved), Err(Refusal::MalformedSignature));
}

#[test]
fn nothing_that_a_cavage_signature_covers_can_be_changed() {
    let good = signed_cavage(NAMES, "");
    for changed in [
        Delivery { method: Method::PUT, ..good.clone() },
        Delivery { path: "/IN".into(), ..good.clone() },
        Delivery { query: None, ..good.clone() },
        Delivery { authority: "other.example.com".into(), ..good.clone() },
        replace(&good, "date", "22:13:20", "22:13:21"),
        replace(&good, "signature", "(request-target) host", "host (request-target)"),
    ] {
        assert_eq!(judged(&strict_cavage(), &changed), Err(Refusal::BadSignature), "{changed:?}");
    }
    let other_body = Delivery { body: "{}".into(), ..good.clone() };
    assert_eq!(judged(&strict_cavage(), &other_body), Err(Refusal::BodyMismatch));
    let weak = replace(&good, "digest", "SHA-256", "MD5");
    assert_eq!(judged(&strict_cavage(), &weak), Err(Refusal::BadSignature));
    let mut doubled = good;
    append(&mut doubled, "date", "Tue, 14 Nov 2023 22:13:20 GMT");
    assert_eq!(judged(&strict_cavage(), &doubled), Err(Refusal::BadSignature));
}

#[test]
fn a_cavage_signature_that_covers_too_little_proves_nothing() {
    for names in ["date", "(request-target) host date", "host date digest", "(request-target) host digest"] {
        assert_eq!(judged(&strict_cavage(), &signed_cavage(names, "")), Err(Refusal::NotCovered), "{names}");
    }
    // Without `headers` the drafts sign the date, or `(created)` where that is stated.
    let only_date = replace(&signed_cavage("date", ""), "signature", r#"headers="date","#, "");
    assert_eq!(judged(&cavage(&["date"]), &only_date), Ok(()));
    assert_eq!(judged(&strict_cavage(), &only_date), Err(Refusal::NotCovered));
    let only_created = signed_cavage("(created)", ",created=1700000000");
    let only_created = replace(&only_created, "signature", r#"headers="(created)","#, "");
    assert_eq!(judged(&cavage(&["(created)"]), &only_created), Ok(()));
    assert_eq!(judged(&cavage(&["date"]), &only_created), Err(Refusal::NotCovered));
}

#[test]
fn the_times_of_a_cavage_signature_are_signed_and_fresh() {
    let at = |names: &str, more: &str, now: u64| {
        let rules = cavage(&["(request-target)"]);
        examined(&rules, &signed_cavage(names, more), UnixMillis::from_secs(now)).map(drop)
    };
    let names = "(request-target) date";
    assert_eq!(at(names, "", 1_700_000_300), Ok(()));
    assert_eq!(at(names, "", 1_700_000_301), Err(Refusal::Stale));
    assert_eq!(at(names, "", 1_699_999_940), Ok(()));
    assert_eq!(at(names, "", 1_699_999_939), Err(Refusal::Stale));
    let names = "(request-target) (created) (expires)";
    let both = ",created=1700000000,expires=1700000100";
    assert_eq!(at(names, both, 1_700_000_100), Ok(()));
    assert_eq!(at(names, both, 1_700_000_101), Err(Refusal::Stale));
    assert_eq!(at(names, ",created=1700000000", 1_700_000_000), Err(Refusal::MissingTimestamp));
    assert_eq!(
        at(names, &format!(r#"{both},algorithm="hmac-sha256""#), 1_700_000_000),
        Err(Refusal::MalformedSignature)
    );
    assert!(!cavage(&["(request-target)"]).signs_time());
    assert!(strict_cavage().signs_time());
}

#[test]
fn a_cavage_header_that_can_be_read_in_two_ways_is_malformed() {
    let good = signed_cavage(NAMES, "");
    for (from, to) in [
        (r#"keyId="mac""#, r#"keyId="mac",keyid="ed""#),
        (r#"keyId="mac""#, r#"keyId="m\"ac""#),
        (r#"keyId="mac""#, "keyId=mac"),
        (r#"keyId="mac","#, ""),
        (r#""mac","#, r#""mac" "#),
        (r#""mac","#, r#""mac",,"#),
        (NAMES, "(request-target)  host date digest"),
        (NAMES, "(request-target) host date digest date"),
        (NAMES, "(request-target) host date DIGEST digest"),
        (NAMES, "(request-target) host date digest (status)"),
        (NAMES, ""),
        (r#"signature=""#, r#"signature="!"#),
        (r#"signature="#, "sig="),
    ] {
        let broken = replace(&good, "signature", from, to);
        assert_eq!(judged(&strict_cavage(), &broken), Err(Refusal::MalformedSignature), "{to}");
    }
    let stranger = replace(&good, "signature", "mac", "nobody");
    assert_eq!(judged(&strict_cavage(), &stranger), Err(Refusal::UntrustedKey));
    let other = signed_cavage(NAMES, r#",algorithm="rsa-sha256""#);
    assert_eq!(judged(&strict_cavage(), &other), Err(Refusal::AlgorithmNotAllowed));
    let mut twice = good.clone();
    append(&mut twice, "signature", good.headers.get("signature").unwrap().to_str().unwrap());
    assert_eq!(judged(&strict_cavage(), &twice), Err(Refusal::MalformedSignature));
    let mut huge = good.clone();
    huge.headers.insert("signature", HeaderValue::from_str(&"a=\"b\",".repeat(3000)).unwrap());
    assert_eq!(judged(&strict_cavage(), &huge), Err(Refusal::MalformedSignature));
    for missing in ["signature", "date", "digest"] {
        let mut without = good.clone();
        without.headers.remove(missing);
        assert_eq!(judged(&strict_cavage(), &without), Err(Refusal::MissingSignature), "{missing}");
    }
}

fn websub() -> HttpSignature {
    let methods = [MessageAlgorithm::HmacSha256, MessageAlgorithm::HmacSha512];
    let secrets = ["the secret that comes after it", SECRET];
    let keys = secrets.iter().flat_map(|secret| methods.map(|method| key(secret, None, method))).collect();
    let header = HeaderName::from_static("x-hub-signature");
    HttpSignature { keys, ..rules(Standard::WebSub { header, keys_each: 2 }, &[]) }
}

#[test]
fn a_hub_names_its_hash_among_those_that_are_allowed() {
    let with = |name: &str, digits: &str| delivery(&[("x-hub-signature", &format!("{name}={digits}"))]);
    let mac = |method| hex::encode(key(SECRET, None, method).sign(BODY.as_bytes(), None).unwrap());
    let (sha256, sha512) = (mac(MessageAlgorithm::HmacSha256), mac(MessageAlgorithm::HmacSha512));
    let findings = examined(&websub(), &with("sha256", &sha256), NOW).unwrap();
    assert_eq!((findings.secret_used, findings.signed_at), (Some(1), None));
    let same = examined(&websub(), &with("sha512", &sha512.to_uppercase()), NOW).unwrap();
    assert_eq!(same.replay_keys, findings.replay_keys, "the same body under another hash is the same delivery");
    assert_eq!(websub().secrets(), 2);
    for (name, digits, expected) in [
        ("sha1", mac(MessageAlgorithm::HmacSha1), Refusal::AlgorithmNotAllowed),
        ("SHA256", sha256.clone(), Refusal::AlgorithmNotAllowed),
        ("", sha256.clone(), Refusal::AlgorithmNotAllowed),
        ("sha512", sha256.clone(), Refusal::MalformedSignature),
        ("sha256", "xyz".to_owned(), Refusal::MalformedSignature),
        ("sha256", String::new(), Refusal::MalformedSignature),
        ("sha256", hex::encode([0; 32]), Refusal::BadSignature),
    ] {
        assert_eq!(judged(&websub(), &with(name, &digits)), Err(expected), "{name}={digits}");
    }
    let other_body = Delivery { body: "{}".into(), ..with("sha256", &sha256) };
    assert_eq!(judged(&websub(), &other_body), Err(Refusal::BadSignature));
    assert_eq!(judged(&websub(), &delivery(&[])), Err(Refusal::MissingSignature));
    let mut twice = with("sha256", &sha256);
    append(&mut twice, "x-hub-signature", &format!("sha256={sha256}"));
    assert_eq!(judged(&websub(), &twice), Err(Refusal::MalformedSignature));
}

/// With the right secret everything else would have let it pass: the times, what is covered, the digest of the body.
#[test]
fn a_signature_is_the_only_thing_amiss_where_another_secret_alone_would_have_made_it_pass() {
    let only = |rules: HttpSignature, delivery: &Delivery, now: UnixMillis| {
        let keys = rules.keys.iter().map(|key| match key.id.as_deref() {
            Some("ed") => self::key(PEM, Some("ed"), MessageAlgorithm::Ed25519),
            id => self::key("a secret that is none of the sender's", id, key.algorithm),
        });
        let mistyped = HttpSignature { keys: keys.collect(), ..rules };
        let question = Question { delivery, json: &Json::default(), public_url: None, now, library: &NoLibrary };
        let failure = mistyped.examine(&question).unwrap_err();
        (failure.fault.refusal, failure.only_signature)
    };
    let (late, bad) = (NOW.after(Duration::from_secs(301)), Refusal::BadSignature);
    let mac = hex::encode(hmac(SECRET, None).sign(BODY.as_bytes(), None).unwrap());
    let of_hub = delivery(&[("x-hub-signature", &format!("sha256={mac}"))]);
    for (rules, good) in
        [(strict as fn() -> HttpSignature, signed(GOOD)), (strict_cavage, signed_cavage(NAMES, "")), (websub, of_hub)]
    {
        assert_eq!(judged(&rules(), &good), Ok(()));
        assert_eq!(only(rules(), &good, NOW), (bad, true));
        // A hub signs no time, and no digest stands beside the body.
        let ages = rules().signs_time();
        assert_eq!(only(rules(), &good, late), (bad, !ages));
        assert_eq!(only(rules(), &Delivery { body: "{}".into(), ..good }, NOW), (bad, !ages));
    }
    assert_eq!(only(strict(), &signed_over(r#"("@method")"#, GOOD), NOW), (bad, false));
    assert_eq!(only(strict_cavage(), &signed_cavage("date", ""), NOW), (bad, false));
    assert_eq!(only(strict(), &delivery(&[]), NOW), (Refusal::MissingSignature, false));
}

#[test]
fn what_a_sender_signs_is_accepted() {
    let tagged = Standard::Rfc9421 { tag: Some("ours".into()), nonce: true };
    let components = ["@method", "@target-uri", "content-digest", r#"@query-param;name="a""#];
    for rules in [
        strict(),
        rules(tagged, &components),
        strict_cavage(),
        cavage(&["(request-target)", "(created)", "digest"]),
        websub(),
    ] {
        let mut draft = Draft::new(delivery(&[]));
        let signing = Signing { id: "n1", now: NOW, private: None, public_url: None };
        rules.sign(&mut draft, &signing).unwrap();
        assert_eq!(judged(&rules, &draft.delivery), Ok(()), "{draft:?}");
        let changed = Delivery { body: "{}".into(), ..draft.delivery };
        assert!(judged(&rules, &changed).is_err());
    }
}

#[test]
fn a_sender_with_a_private_key_signs_for_its_public_half_alone() {
    let made = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap();
    for (pair, algorithm, standard) in [
        (made(&rcgen::PKCS_ED25519), MessageAlgorithm::Ed25519, strict()),
        (made(&rcgen::PKCS_ECDSA_P256_SHA256), MessageAlgorithm::EcdsaP256, strict()),
        (made(&rcgen::PKCS_ECDSA_P384_SHA384), MessageAlgorithm::EcdsaP384, strict()),
        (made(&rcgen::PKCS_RSA_SHA256), MessageAlgorithm::RsaPssSha512, strict()),
        (made(&rcgen::PKCS_ED25519), MessageAlgorithm::Ed25519, strict_cavage()),
        (made(&rcgen::PKCS_ECDSA_P256_SHA256), MessageAlgorithm::EcdsaP256Der, strict_cavage()),
        (made(&rcgen::PKCS_RSA_SHA256), MessageAlgorithm::RsaSha256, strict_cavage()),
    ] {
        let keys = vec![key(&pair.public_key_pem(), Some("k"), algorithm)];
        let rules = HttpSignature { keys, ..standard };
        let signed = |private: Option<&str>| {
            let private = private.map(|pem| Secret::new(pem.into()));
            let mut draft = Draft::new(delivery(&[]));
            let signing = Signing { id: "n1", now: NOW, private: private.as_ref(), public_url: None };
            rules.sign(&mut draft, &signing).map(|()| draft.delivery)
        };
        let delivery = signed(Some(&pair.serialize_pem())).unwrap();
        assert_eq!(judged(&rules, &delivery), Ok(()), "{algorithm:?}");
        assert!(judged(&rules, &Delivery { method: Method::PUT, ..delivery }).is_err());
        assert_eq!(signed(None).unwrap_err(), SignError::NeedsPrivateKey);
        assert!(signed(Some(&made(&rcgen::PKCS_ED25519).serialize_pem())).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_headers_make_the_verifier_panic_or_believe(
        input in "\\PC{0,80}|[a-z]{1,3}=\\(\"[@a-z-]{0,12}\"(;[a-z]{1,4}(=[0-9\":a-z]{0,6})?)?\\);created=1700000000;keyid=\"(mac|ed)\"",
        signature in "\\PC{0,80}|[a-z]{1,3}=:[A-Za-z0-9+/]{0,88}={0,2}:|keyId=\"mac\",headers=\"[(a-z) -]{0,30}\",signature=\"[A-Za-z0-9+/=]{0,44}\""
    ) {
        let mut delivery = delivery(&[("date", "Tue, 14 Nov 2023 22:13:20 GMT")]);
        for (name, text) in [("signature-input", &input), ("signature", &signature), ("x-hub-signature", &signature)] {
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                delivery.headers.append(name, value);
            }
        }
        for rules in [rfc9421(&[]), cavage(&[]), websub()] {
            prop_assert!(judged(&rules, &delivery).is_err());
        }
    }
}
