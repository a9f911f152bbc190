//! A source's credentials: the `verify` table and its neighbours, made into what `verify` works with.

use super::reader::Table;
use crate::secret::Secret;
use crate::state::Quota;
use crate::verify::{
    Algorithm, Answer, AnswerBody, Basic, Encoding, Handshake, Key, KeyEncoding, KeyFormat, Layout, Locator, Place,
    Scheme, Settings, SignatureAt, Template, Timestamp, TimestampPlace, Token, Unit, Verifier,
};
use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderValue, StatusCode};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Below this many bytes a key or password can be found by trying: RFC 2104 §3 wants an HMAC key as long as the hash.
const SHORT_KEY: usize = 16;
const SHORT_PASSWORD: usize = 12;

const DAY: Duration = Duration::from_secs(86_400);

/// What resending looks like, for the default of `on_replay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resends {
    Resigned,
    SameBytes,
    Unknown,
}

pub(super) struct Credentials {
    pub(super) verifier: Arc<Verifier>,
    /// The references of the secrets, in the order listed.
    pub(super) secret_names: Vec<String>,
    /// SHA-256 of each signing secret, to see one that two sources share. Never shown.
    pub(super) secret_prints: Vec<[u8; 32]>,
    pub(super) proves_something: bool,
    pub(super) signs_time: bool,
    pub(super) has_replay_key: bool,
    pub(super) has_id: bool,
    pub(super) resends: Resends,
    pub(super) challenge: HeaderValue,
}

pub(super) fn read(source: &Table<'_>, label: Option<&str>) -> Option<Credentials> {
    let secrets = source.secrets("secrets");
    let public_url = source.text("public_url");
    let mut secret_names: Vec<String> = secrets.iter().map(|named| named.name.clone()).collect();
    let secret_prints = secrets.iter().map(|named| Sha256::digest(named.secret.expose()).into()).collect();
    let mut keys_shown: Vec<Secret> = secrets.into_iter().map(|named| named.secret).collect();

    let mut resends = Resends::Unknown;
    let mut id = locators(source, "id");
    let mut event = locators(source, "event");
    let verify = source.table("verify");
    let mut scheme = None;
    let mut scheme_failed = false;
    if let Some(table) = verify {
        let (theirs_id, theirs_event) = (locators(&table, "id"), locators(&table, "event"));
        id = if id.is_empty() { theirs_id } else { id };
        event = if event.is_empty() { theirs_event } else { event };
        let choices =
            [("resigned", Resends::Resigned), ("same_bytes", Resends::SameBytes), ("unknown", Resends::Unknown)];
        resends = table.choice("resends", Some("unknown"), &choices).unwrap_or(Resends::Unknown);
        if keys_shown.is_empty() {
            if !source.has("secrets") {
                source.error(
                    "",
                    "`secrets` is missing: `verify` needs at least one",
                    r#"secrets = [{ env = "NAME" }]"#,
                );
            }
            scheme_failed = true;
        }
        scheme = read_scheme(source, &table, &keys_shown, public_url.as_deref());
        scheme_failed |= scheme.is_none();
        table.finish();
    } else if !keys_shown.is_empty() && source.has("provider") {
        // There is no such preset: then nobody knows what they are for.
        scheme_failed = true;
    } else if !keys_shown.is_empty() {
        source.error(
            "secrets",
            "nothing uses these: there is neither `provider` nor a `verify` table",
            r#"provider = "github", or a table [sources.NAME.verify]"#,
        );
        keys_shown.clear();
        secret_names.clear();
    }

    let basic = source.table("basic").and_then(|table| {
        let username =
            table.needed_text("username", r#"basic = { username = "hooks", password = { env = "PASSWORD" } }"#);
        let password = table.secret("password");
        if !table.has("password") {
            table.error("", "`password` is missing", r#"password = { env = "PASSWORD" }"#);
        }
        if username.as_ref().is_some_and(|name| name.is_empty() || name.contains(':')) {
            table.error("username", "is empty or holds a `:`, which RFC 7617 does not allow", "");
        }
        let pair = username.zip(password);
        table.finish();
        pair.map(|(username, named)| {
            warn_if_short(source, "basic", &named.secret, SHORT_PASSWORD);
            secret_names.push(named.name);
            Basic { username, passwords: vec![named.secret] }
        })
    });
    let bearer =
        source.has("bearer").then(|| source.secrets("bearer")).filter(|secrets| !secrets.is_empty()).map(|named| {
            named
                .into_iter()
                .map(|named| {
                    warn_if_short(source, "bearer", &named.secret, SHORT_PASSWORD);
                    secret_names.push(named.name);
                    named.secret
                })
                .collect::<Vec<_>>()
        });
    let token = source.table("token").and_then(|table| {
        let example = r#"token = { header = "X-Gitlab-Token", secrets = [{ env = "TOKEN" }] }"#;
        if !table.has("header") {
            table.error("", "`header` is missing", example);
        }
        let header = table.parsed("header", header_name);
        let named = table.secrets("secrets");
        if !table.has("secrets") {
            table.error("", "`secrets` is missing", example);
        }
        table.finish();
        let header = header.filter(|_| !named.is_empty())?;
        let secrets = named
            .into_iter()
            .map(|named| {
                warn_if_short(source, "token", &named.secret, SHORT_PASSWORD);
                secret_names.push(named.name);
                named.secret
            })
            .collect();
        Some(Token { header, secrets })
    });
    if basic.is_some() && bearer.is_some() {
        source.error(
            "bearer",
            "a request has one Authorization header: `basic` and `bearer` cannot both pass",
            "keep one of the two",
        );
        return None;
    }
    if scheme_failed {
        return None;
    }

    let challenge = match (&basic, &bearer) {
        (Some(_), _) => r#"Basic realm="webhooks", charset="UTF-8""#,
        (_, Some(_)) => "Bearer",
        _ => "Signature",
    };
    let proves_something = scheme.is_some() || basic.is_some() || bearer.is_some() || token.is_some();
    let label: Arc<str> = match (label, &scheme) {
        (Some(label), _) => label.into(),
        (None, Some(scheme)) => scheme.algorithm.name().into(),
        (None, None) => "".into(),
    };
    let has_id = !id.is_empty();
    let settings = Settings { label, scheme, basic, bearer, token, id, event, public_url };
    match Verifier::build(settings) {
        Ok(verifier) => Some(Credentials {
            signs_time: verifier.signs_time(),
            has_replay_key: verifier.has_replay_keys(),
            verifier: Arc::new(verifier),
            secret_names,
            secret_prints,
            proves_something,
            has_id,
            resends,
            challenge: HeaderValue::from_static(challenge),
        }),
        Err(error) => {
            source.error("verify", error.to_string(), "");
            None
        }
    }
}

fn warn_if_short(table: &Table<'_>, key: &str, secret: &Secret, least: usize) {
    if secret.len() < least {
        table.warn(
            key,
            format!("the secret has {} bytes; one under {least} can be found by trying", secret.len()),
            "openssl rand -hex 32",
        );
    }
}

fn read_scheme(source: &Table<'_>, table: &Table<'_>, secrets: &[Secret], public_url: Option<&str>) -> Option<Scheme> {
    let algorithms = [
        ("hmac-sha256", Algorithm::HmacSha256),
        ("hmac-sha1", Algorithm::HmacSha1),
        ("hmac-sha384", Algorithm::HmacSha384),
        ("hmac-sha512", Algorithm::HmacSha512),
        ("ed25519", Algorithm::Ed25519),
    ];
    if !table.has("algorithm") {
        table.error("", "`algorithm` is missing", r#"algorithm = "hmac-sha256""#);
    }
    let algorithm = table.choice("algorithm", None, &algorithms);
    // Where there is none, the rest is read all the same: everything that is wrong is told at once.
    let keys = match algorithm {
        Some(algorithm) => read_keys(source, table, algorithm, secrets),
        None => {
            table.ignore(&["key"]);
            None
        }
    };
    let signature = read_signature(table);
    let message = table.needed_text("message", r#"message = "{timestamp}.{body}""#).and_then(|text| {
        match Template::parse(&text) {
            Ok(template) => Some(template),
            Err(error) => {
                table.error("message", format!("at character {}: {}", error.position + 1, error.what), &error.try_this);
                None
            }
        }
    });
    let timestamp = table.has("timestamp").then(|| read_timestamp(table));
    let required_headers = table.all_parsed("required_headers", header_name);
    let handshakes: Vec<_> = table.tables("handshakes").into_iter().filter_map(read_handshake).collect();
    let unsigned_body = table.flag("allow_unsigned_body", false);
    let timestamp = match timestamp {
        Some(None) => return None,
        Some(found) => found,
        None => None,
    };
    let (keys, signature, message) = (keys?, signature?, message?);

    if message.uses_url() && public_url.is_none() {
        source.error(
            "",
            "the signature covers the URL that the provider was told, and `public_url` is missing",
            r#"public_url = "https://hooks.example.com/path""#,
        );
    }
    if message.uses_timestamp() && timestamp.is_none() {
        table.error(
            "message",
            "names {timestamp}, and there is no `timestamp`",
            r#"timestamp = { header = "X-Timestamp", unit = "s", tolerance = "5m" }"#,
        );
        return None;
    }
    if timestamp.is_some() && !message.covers_timestamp() {
        table.warn(
            "timestamp",
            "is not part of `message`, so anyone can write a fresh one: it proves nothing",
            "name {timestamp} in `message`, if the provider signs it",
        );
    }
    if !message.covers_body() && !unsigned_body {
        table.error(
            "message",
            "does not name {body}: a stranger who sees one delivery can send any body under its signature",
            "name {body}, or say allow_unsigned_body = true",
        );
    }
    if matches!(algorithm, Some(Algorithm::HmacSha1)) {
        table.remark("algorithm", "HMAC with SHA-1 is not broken, but no new sender should choose it", "");
    }
    Some(Scheme {
        algorithm: algorithm?,
        keys,
        signature,
        message,
        timestamp,
        required_headers,
        handshakes,
        single_use: false,
    })
}

fn read_keys(source: &Table<'_>, table: &Table<'_>, algorithm: Algorithm, secrets: &[Secret]) -> Option<Vec<Key>> {
    let is_hmac = algorithm != Algorithm::Ed25519;
    let of = table.table_or_empty("key");
    let encodings = [
        ("utf8", KeyEncoding::Utf8),
        ("hex", KeyEncoding::Hex),
        ("base64", KeyEncoding::Base64),
        ("base64url", KeyEncoding::Base64Url),
        ("pem", KeyEncoding::Pem),
    ];
    let encoding = of.choice("encoding", Some(if is_hmac { "utf8" } else { "hex" }), &encodings)?;
    let format = KeyFormat { encoding, strip_prefix: of.text("strip_prefix") };
    of.finish();
    let mut keys = Vec::new();
    for (position, secret) in secrets.iter().enumerate() {
        match Key::decode(secret, &format) {
            Ok(key) => {
                if is_hmac && key.bytes().len() < SHORT_KEY {
                    let what = format!(
                        "secret {} makes a key of {} bytes; one under {SHORT_KEY} can be found by trying",
                        position + 1,
                        key.bytes().len()
                    );
                    source.warn("secrets", what, "openssl rand -hex 32");
                }
                keys.push(key);
            }
            Err(error) => source.error(
                "secrets",
                format!("secret {}: {error}", position + 1),
                "compare `verify.key.encoding` with the provider's page",
            ),
        }
    }
    (keys.len() == secrets.len()).then_some(keys)
}

fn read_signature(table: &Table<'_>) -> Option<SignatureAt> {
    let Some(at) = table.table("signature") else {
        if !table.has("signature") {
            table.error("", "`signature` is missing", r#"signature = { header = "X-Signature", encoding = "hex" }"#);
        }
        return None;
    };
    let headers = if at.has("headers") {
        at.all_parsed("headers", header_name)
    } else {
        at.parsed("header", header_name).into_iter().collect()
    };
    let places = [
        (at.has("header") || at.has("headers")).then_some(Place::Header(headers)),
        at.text("query").map(Place::Query),
        at.text("form").map(Place::Form),
        at.text("json").map(Place::Json),
    ];
    let place = exactly_one(&at, places, r#"header = "X-Signature""#, "one of header, headers, query, form, json");
    let encodings = [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("base64url", Encoding::Base64Url)];
    let encoding = at.choice("encoding", Some("hex"), &encodings);
    let prefix = at.text("prefix").unwrap_or_default();
    let separator = character(&at, "separator", ',');
    #[derive(Clone, Copy)]
    enum Shape {
        Plain,
        Pairs,
        List,
        Positional,
    }
    let shapes =
        [("plain", Shape::Plain), ("pairs", Shape::Pairs), ("list", Shape::List), ("positional", Shape::Positional)];
    let layout = match at.choice("layout", Some("plain"), &shapes) {
        Some(Shape::Plain) => Some(Layout::Plain { prefix }),
        Some(Shape::List) => Some(Layout::List { separator, prefix }),
        Some(Shape::Positional) => {
            let timestamp_index = usize::try_from(at.count("timestamp_index", 0, 0..=15)).unwrap_or(0);
            Some(Layout::Positional { separator, timestamp_index })
        }
        Some(Shape::Pairs) => {
            let equals = character(&at, "equals", '=');
            at.needed_text("key", r#"key = "v1": the name of the pair that holds the signature"#)
                .map(|key| Layout::Pairs { separator, equals, key })
        }
        None => None,
    };
    at.finish();
    Some(SignatureAt { place: place?, layout: layout?, encoding: encoding? })
}

fn read_timestamp(table: &Table<'_>) -> Option<Timestamp> {
    let at = table.table("timestamp")?;
    let position = at.has("position").then(|| at.flag("position", true)).filter(|flag| *flag);
    let places = [
        at.parsed("header", header_name).map(TimestampPlace::Header),
        at.text("key").map(TimestampPlace::Pair),
        at.text("json").map(TimestampPlace::Json),
        position.map(|_| TimestampPlace::Position),
    ];
    let place = exactly_one(&at, places, r#"header = "X-Timestamp""#, "one of header, key, json, position");
    let units = [
        ("s", Unit::Seconds),
        ("ms", Unit::Millis),
        ("rfc3339", Unit::Rfc3339),
        ("http-date", Unit::HttpDate),
        ("auto", Unit::Auto),
    ];
    let unit = at.choice("unit", Some("s"), &units);
    let tolerance = at.duration("tolerance", Duration::from_secs(300), Duration::from_secs(1)..=DAY);
    at.finish();
    Some(Timestamp { place: place?, unit: unit?, tolerance })
}

fn read_handshake(table: Table<'_>) -> Option<Handshake> {
    let mut match_json = Vec::new();
    let mut absent_json = Vec::new();
    for condition in table.tables("match") {
        let pointer = condition.needed_text("json", r#"match = { json = "/type", equals = "url_verification" }"#);
        let value = condition.scalar("equals");
        match (condition.flag("absent", false), condition.has("equals")) {
            (true, false) => absent_json.extend(pointer),
            (false, true) => match_json.extend(pointer.zip(value)),
            _ => condition.error(
                "",
                "says either `equals` or `absent = true`",
                r#"match = { json = "/type", equals = "url_verification" }"#,
            ),
        }
        condition.finish();
    }
    if match_json.is_empty() {
        table.error(
            "",
            "a handshake needs a `match`, or it would swallow every delivery",
            r#"match = { json = "/type", equals = "url_verification" }"#,
        );
    }
    let status =
        u16::try_from(table.count("status", 200, 200..=299)).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let content_type = table.parsed("content_type", header_value);
    let body = match (table.text("echo"), table.text("body")) {
        (Some(pointer), None) => Some(AnswerBody::Echo(pointer)),
        (None, body) => Some(AnswerBody::Fixed(Bytes::from(body.unwrap_or_default()))),
        (Some(_), Some(_)) => {
            table.error("echo", "stands beside `body`", "keep one of the two");
            None
        }
    };
    table.finish();
    (!match_json.is_empty()).then_some(())?;
    Some(Handshake { match_json, absent_json, answer: Answer { status: status?, content_type, body: body? } })
}

/// One place, or several of which the first present counts.
fn locators(table: &Table<'_>, name: &'static str) -> Vec<Locator> {
    table.tables(name).into_iter().filter_map(locator).collect()
}

fn locator(at: Table<'_>) -> Option<Locator> {
    let places = [
        at.parsed("header", header_name).map(Locator::Header),
        at.text("json").map(Locator::Json),
        at.text("query").map(Locator::Query),
        at.text("form").map(Locator::Form),
    ];
    let found = exactly_one(&at, places, r#"header = "X-Delivery-Id""#, "one of header, json, query, form");
    at.finish();
    found
}

fn exactly_one<T, const N: usize>(table: &Table<'_>, found: [Option<T>; N], example: &str, choices: &str) -> Option<T> {
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(one), None) => Some(one),
        (None, _) => {
            table.error("", format!("says no place: {choices}"), example);
            None
        }
        (Some(_), Some(_)) => {
            table.error("", "says more than one place", choices);
            None
        }
    }
}

fn character(table: &Table<'_>, name: &'static str, default: char) -> char {
    let one = |text: &str| {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.is_ascii() => Ok(c),
            _ => Err(format!("{text:?} is not one ASCII character")),
        }
    };
    table.parsed(name, one).unwrap_or(default)
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| format!("{text:?} is not a header name"))
}

pub(super) fn header_value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| format!("{text:?} is not a header value"))
}

/// `{ rate = "100/s", burst = 200 }`.
pub(super) fn quota(table: &Table<'_>) -> Option<Quota> {
    let burst =
        table.has("burst").then(|| table.count("burst", 1, 1..=1_000_000)).and_then(|burst| u32::try_from(burst).ok());
    let rate = table.needed_text("rate", r#"{ rate = "100/s", burst = 200 }"#)?;
    match Quota::parse(&rate, burst) {
        Ok(quota) => Some(quota),
        Err(error) => {
            table.error("rate", error.to_string(), r#""100/s", "30/m" or "5/h""#);
            None
        }
    }
}
