//! Signatures, timestamps and credentials that are not what they should be.

use super::{SECRET, assert_refused, preset, source, start};
use crate::support::gateway::{Folder, PLAIN, hookward};
use crate::support::{Answer, Request, Upstream, sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Signs `{timestamp}.{body}` in hex, in two headers.
fn acme() -> String {
    source(
        "acme",
        &format!(
            r#"secrets = [{{ value = "{SECRET}" }}]
[sources.acme.verify]
algorithm = "hmac-sha256"
signature = {{ header = "X-Acme-Signature", encoding = "hex", prefix = "v1=" }}
message = "{{timestamp}}.{{body}}"
timestamp = {{ header = "X-Acme-Timestamp", unit = "s", tolerance = "5m" }}"#
        ),
    )
}

fn mac(parts: &[&str]) -> String {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    hex::encode(sign::hmac_sha256(SECRET.as_bytes(), &parts))
}

#[test]
fn a_signature_header_that_is_doubled_empty_over_long_or_not_ascii_is_refused() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github")]);
    let body = "{\"n\":1}";
    let right = sign::github(SECRET, body.as_bytes());
    let digits = right.trim_start_matches("sha256=").to_owned();
    let over_long = format!("sha256={}", "0".repeat(9 * 1024));
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("none", vec![], "missing_signature"),
        ("empty", vec![b"".to_vec()], "missing_signature"),
        ("blank", vec![b" \t ".to_vec()], "missing_signature"),
        ("twice the right one", vec![right.clone().into(), right.clone().into()], "malformed_signature"),
        ("a wrong one behind the right one", vec![right.clone().into(), b"sha256=00".to_vec()], "malformed_signature"),
        ("both in one, by a comma", vec![format!("{right}, {right}").into()], "malformed_signature"),
        ("over 8 KiB", vec![over_long.into()], "malformed_signature"),
        ("not ASCII", vec![[right.as_bytes(), b"\xff"].concat()], "malformed_signature"),
        ("UTF-8", vec![format!("sha256=ä{digits}").into()], "malformed_signature"),
        ("no prefix", vec![digits.clone().into()], "malformed_signature"),
        ("another prefix", vec![format!("sha1={digits}").into()], "malformed_signature"),
        ("the prefix in upper case", vec![format!("SHA256={digits}").into()], "malformed_signature"),
        ("the prefix alone", vec![b"sha256=".to_vec()], "malformed_signature"),
        ("the prefix twice", vec![format!("sha256=sha256={digits}").into()], "malformed_signature"),
        ("a digit less", vec![right[..right.len() - 1].into()], "malformed_signature"),
        ("a byte less", vec![right[..right.len() - 2].into()], "malformed_signature"),
        ("a byte more", vec![format!("{right}00").into()], "malformed_signature"),
        ("no hex", vec![format!("sha256={}", "g".repeat(64)).into()], "malformed_signature"),
        ("another message's", vec![sign::github(SECRET, b"{\"n\":2}").into()], "bad_signature"),
        ("another secret's", vec![sign::github("another-secret", body.as_bytes()).into()], "bad_signature"),
        ("of an empty key", vec![sign::github("", body.as_bytes()).into()], "bad_signature"),
    ];
    for (what, values, reason) in cases {
        let sent =
            values.iter().fold(Request::post("/github", body), |sent, value| sent.header("X-Hub-Signature-256", value));
        assert_refused(&gateway, &sent.send(gateway.public()), 401, reason, what);
    }
    assert_eq!(upstream.count(), 0);
    let genuine = Request::post("/github", body).header("X-Hub-Signature-256", &right);
    assert_eq!(genuine.send(gateway.public()).status, 200);
}

#[test]
fn sixteen_signatures_are_tried_and_seventeen_are_refused_unseen() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("stripe")]);
    let time = sign::now().to_string();
    let with = |others: usize, body: &str| {
        let wrong = format!(",v1={}", "0".repeat(64)).repeat(others);
        let signature = format!("t={time}{wrong},v1={}", mac(&[&time, ".", body]));
        Request::post("/stripe", body).header("Stripe-Signature", signature).send(gateway.public())
    };
    assert_refused(&gateway, &with(16, "{\"n\":17}"), 401, "malformed_signature", "the right one is the seventeenth");
    assert_eq!(with(15, "{\"n\":16}").status, 200);
    assert_eq!(upstream.count(), 1);
}

/// Each text is signed as it stands: the signature is right, and the time is none.
#[test]
fn a_timestamp_that_is_not_plain_digits_is_refused_though_its_signature_is_right() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("stripe"), preset("slack"), acme()]);
    let now = sign::now();
    let texts = [
        "NaN".to_owned(),
        "inf".to_owned(),
        "-inf".to_owned(),
        "1e9".to_owned(),
        format!("+{now}"),
        format!("-{now}"),
        format!("{now}.0"),
        format!("{now}.5"),
        format!("{now}e0"),
        format!("{now} 0"),
        format!("0x{now:x}"),
        "18446744073709551615".to_owned(),
        "18446744073709551616".to_owned(),
        "9223372036854775808".to_owned(),
        format!("{}", u128::from(u64::MAX) + 1 + u128::from(now)),
    ];
    let send = |path: &str, time: &str| {
        let body = "{\"type\":\"x\"}";
        let sent = Request::post(path, body);
        let sent = match path {
            "/stripe" => sent.header("Stripe-Signature", format!("t={time},v1={}", mac(&[time, ".", body]))),
            "/slack" => sent
                .header("X-Slack-Request-Timestamp", time)
                .header("X-Slack-Signature", format!("v0={}", mac(&["v0:", time, ":", body]))),
            _ => sent
                .header("X-Acme-Timestamp", time)
                .header("X-Acme-Signature", format!("v1={}", mac(&[time, ".", body]))),
        };
        sent.send(gateway.public())
    };
    for path in ["/stripe", "/slack", "/acme"] {
        for text in &texts {
            assert_refused(&gateway, &send(path, text), 401, "malformed_timestamp", &format!("{path} {text}"));
        }
        for far in ["0".to_owned(), "999999999999".to_owned(), (now - 310).to_string(), (now + 310).to_string()] {
            assert_refused(&gateway, &send(path, &far), 401, "stale", &format!("{path} {far}"));
        }
    }
    assert_eq!(upstream.count(), 0);
    for path in ["/stripe", "/slack", "/acme"] {
        assert_eq!(send(path, &now.to_string()).status, 200, "{path}");
    }
    // A space that HTTP takes for the header's own is none of the time's; in the middle of a header it is.
    assert_refused(&gateway, &send("/stripe", &format!(" {now}")), 401, "malformed_timestamp", "a leading space");
}

#[test]
fn a_timestamp_that_is_missing_empty_or_doubled_is_refused() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("stripe"), preset("slack"), acme()]);
    let now = sign::now().to_string();
    let earlier = (sign::now() - 1).to_string();
    let body = "{}";
    let stripe = |text: String| Request::post("/stripe", body).header("Stripe-Signature", text).send(gateway.public());
    let signed = |time: &str| mac(&[time, ".", body]);
    assert_refused(&gateway, &stripe(format!("v1={}", signed(""))), 401, "missing_timestamp", "none");
    assert_refused(&gateway, &stripe(format!("t=,v1={}", signed(""))), 401, "malformed_timestamp", "empty");
    for times in [[&now, &now], [&earlier, &now], [&now, &earlier]] {
        let answer = stripe(format!("t={},t={},v1={}", times[0], times[1], signed(&now)));
        assert_refused(&gateway, &answer, 401, "malformed_timestamp", "two");
    }
    for (path, signature, timestamp, prefix, before, between) in [
        ("/slack", "X-Slack-Signature", "X-Slack-Request-Timestamp", "v0=", "v0:", ":"),
        ("/acme", "X-Acme-Signature", "X-Acme-Timestamp", "v1=", "", "."),
    ] {
        let send = |times: &[&str], signed: &str| {
            let proof = format!("{prefix}{}", mac(&[before, signed, between, body]));
            let sent = Request::post(path, body).header(signature, proof);
            times.iter().fold(sent, |sent, time| sent.header(timestamp, time)).send(gateway.public())
        };
        assert_refused(&gateway, &send(&[], ""), 401, "missing_timestamp", path);
        assert_refused(&gateway, &send(&[""], ""), 401, "missing_timestamp", path);
        assert_refused(&gateway, &send(&[&now, &now], &now), 401, "malformed_timestamp", path);
        assert_refused(&gateway, &send(&[&earlier, &now], &now), 401, "malformed_timestamp", path);
        assert_eq!(upstream.count(), 0);
    }
}

/// One signature has many spellings, and a replay is a replay in each of them.
#[test]
fn another_spelling_of_a_signature_is_a_replay() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("github"), preset("shopify"), acme()]);
    let now = sign::now().to_string();
    let body = "{\"spelling\":1}";
    let acme = |signature: String| {
        let sent = Request::post("/acme", body).header("X-Acme-Timestamp", &now);
        sent.header("X-Acme-Signature", signature).send(gateway.public())
    };
    let digits = mac(&[&now, ".", body]);
    assert_eq!(acme(format!("v1={digits}")).status, 200);
    let upper = acme(format!("v1={}", digits.to_uppercase()));
    assert_refused(&gateway, &upper, 409, "replay", "upper-case hex");

    let github = |signature: &str| {
        Request::post("/github", body).header("X-Hub-Signature-256", signature).send(gateway.public())
    };
    let digits = mac(&[body]);
    assert_eq!(github(&format!("sha256={}", digits.to_uppercase())).status, 200);
    // GitHub's preset answers a copy as accepted, and does not forward it.
    assert_refused(&gateway, &github(&format!("sha256={digits}")), 202, "replay", "lower-case hex");

    let shopify = |header: &str, signature: &str| {
        Request::post("/shopify", body).header(header, signature).send(gateway.public())
    };
    let padded = STANDARD.encode(sign::hmac_sha256(SECRET.as_bytes(), &[body.as_bytes()]));
    assert_eq!(shopify("X-Shopify-Hmac-Sha256", &padded).status, 200);
    let unpadded = shopify("X-Shopify-Hmac-Sha256", padded.trim_end_matches('='));
    assert_refused(&gateway, &unpadded, 200, "replay", "without padding");
    assert_refused(&gateway, &shopify("Shopify-Hmac-Sha256", &padded), 200, "replay", "in the other header");
    // The last character's unused bits: another text for the same bytes, that no encoder writes.
    let stem = padded.trim_end_matches('=');
    let (head, last) = stem.split_at(stem.len() - 1);
    let next = char::from(last.as_bytes()[0] + 1);
    let stray = shopify("X-Shopify-Hmac-Sha256", &format!("{head}{next}="));
    assert_refused(&gateway, &stray, 401, "malformed_signature", "stray bits");
    assert_eq!(upstream.count(), 3);
}

/// Shopify's two header families: either carries a delivery, and one cannot be played off against the other.
#[test]
fn the_second_header_family_of_shopify_neither_doubles_nor_replaces_the_first() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[preset("shopify")]);
    let proof = |body: &str| STANDARD.encode(sign::hmac_sha256(SECRET.as_bytes(), &[body.as_bytes()]));
    let send = |body: &str, headers: &[(&str, &str)]| {
        let sent = headers.iter().fold(Request::post("/shopify", body), |sent, (name, value)| sent.header(name, value));
        sent.send(gateway.public())
    };
    let body = "{\"id\":1}";
    let (right, wrong) = (proof(body), proof("{}"));
    let first_wrong = [("X-Shopify-Hmac-Sha256", wrong.as_str()), ("Shopify-Hmac-Sha256", right.as_str())];
    assert_refused(&gateway, &send(body, &first_wrong), 401, "bad_signature", "the first family decides");
    let doubled = [("Shopify-Hmac-Sha256", right.as_str()), ("Shopify-Hmac-Sha256", right.as_str())];
    assert_refused(&gateway, &send(body, &doubled), 401, "malformed_signature", "the second family, twice");
    let empty = [("X-Shopify-Hmac-Sha256", ""), ("Shopify-Hmac-Sha256", right.as_str())];
    assert_refused(&gateway, &send(body, &empty), 401, "missing_signature", "the first is there and empty");
    assert_eq!(upstream.count(), 0);

    let second =
        [("Shopify-Hmac-Sha256", right.as_str()), ("Shopify-Topic", "orders/create"), ("Shopify-Webhook-Id", "w-1")];
    assert_eq!(send(body, &second).status, 200);
    let received = upstream.wait_for(1).remove(0);
    assert_eq!(received.header("x-hookward-event-type").as_deref(), Some("orders/create"));
    assert_eq!(received.header("x-hookward-event-id").as_deref(), Some("w-1"));
    let other = "{\"id\":2}";
    let other_proof = proof(other);
    let same_id = [("X-Shopify-Hmac-Sha256", other_proof.as_str()), ("X-Shopify-Webhook-Id", "w-1")];
    assert_refused(&gateway, &send(other, &same_id), 200, "duplicate", "one id in both families");
}

/// All but the request's own id and the date.
fn uniform(mut answer: Answer) -> (u16, Vec<(String, String)>, String) {
    let id = answer.request_id();
    answer.headers.retain(|(name, _)| !["x-request-id", "date"].iter().any(|own| name.eq_ignore_ascii_case(own)));
    let body = answer.text().replace(&id, "ID");
    (answer.status, answer.headers, body)
}

#[test]
fn all_401s_of_a_source_are_the_same_bytes() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[acme(), source("login", BASIC), source("bearer", BEARER), source("token", TOKEN)]);
    let body = "{}";
    let now = sign::now().to_string();
    let old = (sign::now() - 3600).to_string();
    let signed = |time: &str| format!("v1={}", mac(&[time, ".", body]));
    let acme = |time: &str, signature: &str| {
        let sent = Request::post("/acme", body).header("X-Acme-Timestamp", time);
        uniform(sent.header("X-Acme-Signature", signature).send(gateway.public()))
    };
    let missing = uniform(Request::post("/acme", body).send(gateway.public()));
    assert_eq!(missing.0, 401);
    assert!(missing.1.contains(&("www-authenticate".to_owned(), "Signature".to_owned())), "{missing:?}");
    assert!(missing.1.contains(&("content-type".to_owned(), "application/problem+json".to_owned())), "{missing:?}");
    for other in [
        acme(&now, "garbage"),
        acme(&now, &signed("1")),
        acme(&old, &signed(&old)),
        acme("NaN", &signed("NaN")),
        acme("", &signed("")),
        acme(&now, &"x".repeat(9000)),
    ] {
        assert_eq!(other, missing);
    }
    for (path, challenge) in
        [("/login", "Basic realm=\"webhooks\", charset=\"UTF-8\""), ("/bearer", "Bearer"), ("/token", "Signature")]
    {
        let send = |headers: &[(&str, &str)]| {
            let sent = headers.iter().fold(Request::post(path, body), |sent, (name, value)| sent.header(name, value));
            uniform(sent.send(gateway.public()))
        };
        let missing = send(&[]);
        assert_eq!(missing.0, 401);
        assert!(missing.1.contains(&("www-authenticate".to_owned(), challenge.to_owned())), "{missing:?}");
        for wrong in ["Basic Zm9vOmJhcg==", "Basic ???", "Bearer wrong", "Bearer", "nonsense", ""] {
            assert_eq!(send(&[("Authorization", wrong), ("X-Token", wrong)]), missing, "{path} {wrong}");
        }
    }
    assert_eq!(upstream.count(), 0);
}

const BASIC: &str = r#"basic = { username = "hook", password = { value = "pässwörd-for-tests" } }"#;
const BEARER: &str = r#"bearer = [{ value = "the-new-bearer-token" }, { value = "the-old-bearer-token" }]"#;
const TOKEN: &str = r#"token = { header = "X-Token", secrets = [{ value = "a-token-for-the-tests" }] }"#;

#[test]
fn a_password_or_token_is_the_right_one_once_or_a_401() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, &[source("login", BASIC), source("bearer", BEARER), source("token", TOKEN)]);
    let basic = |login: &[u8]| format!("Basic {}", STANDARD.encode(login));
    let utf8 = basic("hook:pässwörd-for-tests".as_bytes());
    let latin1 = basic(b"hook:p\xe4ssw\xf6rd-for-tests");
    let right: [(&str, &str, &str); 6] = [
        ("/login", "Authorization", &utf8),
        ("/login", "authorization", &latin1),
        ("/bearer", "Authorization", "Bearer the-new-bearer-token"),
        ("/bearer", "Authorization", "bearer the-old-bearer-token"),
        ("/token", "X-Token", "a-token-for-the-tests"),
        ("/token", "x-token", "a-token-for-the-tests"),
    ];
    for (path, header, value) in right {
        let sent = Request::post(path, "{}").header(header, value);
        assert_eq!(sent.send(gateway.public()).status, 200, "{path} {value}");
        // The very same twice could be read as one or the other by whoever stands behind.
        let twice = sent.header(header, value).send(gateway.public());
        assert_refused(&gateway, &twice, 401, "bad_credentials", &format!("{path} {value}, twice"));
    }
    assert_eq!(upstream.count(), right.len());
    let wrong: Vec<(&str, &str, String, &str)> = vec![
        ("/login", "Authorization", basic(b"hook:"), "bad_credentials"),
        ("/login", "Authorization", basic("hook:passwort-for-tests".as_bytes()), "bad_credentials"),
        ("/login", "Authorization", basic("Hook:pässwörd-for-tests".as_bytes()), "bad_credentials"),
        ("/login", "Authorization", basic("hook:pässwörd-for-tests\n".as_bytes()), "bad_credentials"),
        ("/login", "Authorization", utf8.replace("Basic ", "Bearer "), "missing_credentials"),
        ("/login", "Authorization", "Basic".to_owned(), "bad_credentials"),
        ("/bearer", "Authorization", "Bearer the-new-bearer-toke".to_owned(), "bad_credentials"),
        ("/bearer", "Authorization", "Bearer THE-NEW-BEARER-TOKEN".to_owned(), "bad_credentials"),
        ("/bearer", "Authorization", "the-new-bearer-token".to_owned(), "missing_credentials"),
        ("/bearer", "X-Token", "the-new-bearer-token".to_owned(), "missing_credentials"),
        ("/token", "X-Token", "a-token-for-the-tests, a-token-for-the-tests".to_owned(), "bad_credentials"),
        ("/token", "X-Token", String::new(), "missing_credentials"),
        ("/token", "Authorization", "Bearer a-token-for-the-tests".to_owned(), "missing_credentials"),
    ];
    for (path, header, value, reason) in wrong {
        let answer = Request::post(path, "{}").header(header, &value).send(gateway.public());
        assert_refused(&gateway, &answer, 401, reason, &format!("{path} {header}: {value}"));
    }
    // In the query, where logs keep it, a token is none.
    let answer = Request::post("/token?X-Token=a-token-for-the-tests", "{}").send(gateway.public());
    assert_refused(&gateway, &answer, 401, "missing_credentials", "in the query");
    assert_eq!(upstream.count(), right.len());
}

#[test]
fn all_credentials_that_a_source_asks_for_must_pass() {
    let upstream = Upstream::start();
    let gateway = start(
        &upstream,
        &[source("github", &format!("provider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n{TOKEN}"))],
    );
    let body = "{\"both\":true}";
    let signed = Request::post("/github", body).header("X-Hub-Signature-256", sign::github(SECRET, body.as_bytes()));
    let token = |sent: Request, value: &str| sent.header("X-Token", value);
    assert_refused(&gateway, &signed.send(gateway.public()), 401, "missing_credentials", "the signature alone");
    let wrong = token(signed.clone(), "another").send(gateway.public());
    assert_refused(&gateway, &wrong, 401, "bad_credentials", "the signature and a wrong token");
    let unsigned = token(Request::post("/github", body), "a-token-for-the-tests").send(gateway.public());
    assert_refused(&gateway, &unsigned, 401, "missing_signature", "the token alone");
    assert_eq!(upstream.count(), 0);
    assert_eq!(token(signed, "a-token-for-the-tests").send(gateway.public()).status, 200);
    let verified = upstream.wait_for(1).remove(0).header("x-hookward-verified");
    assert_eq!(verified.as_deref(), Some("github, token"));
}

#[test]
fn a_signature_that_does_not_cover_the_body_does_not_load() {
    let folder = Folder::new();
    let with = |message: &str, more: &str| {
        let upstream = "[upstreams.app]\nurls = [\"http://127.0.0.1:9\"]\n";
        let table = format!(
            "secrets = [{{ value = \"{SECRET}\" }}]\n[sources.x.verify]\nalgorithm = \"hmac-sha256\"\n{more}\
             signature = {{ header = \"X-Signature\" }}\nmessage = \"{message}\"\n\
             timestamp = {{ header = \"X-Time\" }}"
        );
        folder.write("gateway.toml", format!("{PLAIN}{upstream}{}", source("x", &table)));
        hookward(&folder.0, &["check", "--config", "gateway.toml"])
    };
    let (code, out, err) = with("{timestamp}.{header:x-id}", "");
    assert_eq!(code, 78, "{out}{err}");
    let said = format!("{out}{err}");
    assert!(said.contains("sources.x.verify.message") && said.contains("does not name {body}"), "{said}");
    let (code, out, err) = with("{timestamp}.{body}", "");
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, err) = with("{timestamp}.{header:x-id}", "allow_unsigned_body = true\n");
    assert_eq!(code, 0, "{out}{err}");
}
