//! The `verify` table: where the proof is, what it signs, and with which keys.

use super::more::{read_more, template};
use super::reader::Table;
use super::secret_ref::Named;
use super::units::header_name;
use crate::verify::{
    Algorithm, Declared, Encoding, Future, Key, KeyChoice, KeyEncoding, KeyFormat, Layout, Locator, MAX_NUMBERED,
    Place, Scheme, SignatureAlgorithm, SignatureAt, Stated, Template, Timestamp, TimestampPlace, Unit, looks_public,
    normalised,
};
use std::sync::Arc;
use std::time::Duration;

/// Below this many bytes a key can be found by trying: RFC 2104 §3 wants one as long as the hash.
pub(super) const SHORT_KEY: usize = 16;

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn read_scheme(
    source: &Table<'_>,
    table: &Table<'_>,
    secrets: &[Named],
    public_url: Option<&str>,
) -> Option<Scheme> {
    let macs = [
        ("hmac-sha256", Algorithm::HmacSha256),
        ("hmac-sha1", Algorithm::HmacSha1),
        ("hmac-sha384", Algorithm::HmacSha384),
        ("hmac-sha512", Algorithm::HmacSha512),
        ("sha1", Algorithm::Sha1),
        ("sha256", Algorithm::Sha256),
        ("sha512", Algorithm::Sha512),
    ];
    let signatures = SignatureAlgorithm::all().map(|(name, algorithm)| (name, Algorithm::Signature(algorithm)));
    let algorithms: Vec<_> = macs.into_iter().chain(signatures).collect();
    if !table.has("algorithm") {
        table.error("", "`algorithm` is missing", r#"algorithm = "hmac-sha256""#);
    }
    let unknown = table.peek_text("algorithm").filter(|text| !algorithms.iter().any(|(name, _)| name == text));
    let algorithm = match unknown {
        // There are too many to list them all at a slip of the pen.
        Some(text) => {
            table.ignore(&["algorithm"]);
            let hint = r#""hmac-sha256", "hmac-sha1", "hmac-sha384", "hmac-sha512", "ed25519", "ecdsa-p256-sha256", "rsa-pkcs1-sha256" …: docs/configuration.md"#;
            table.error("algorithm", format!("{text:?} is none of the choices"), hint);
            None
        }
        None => table.choice("algorithm", None, &algorithms),
    };
    // Where there is none, the rest is read all the same: everything that is wrong is told at once.
    let keys = match algorithm {
        Some(algorithm) => read_keys(source, table, algorithm, secrets),
        None => {
            table.ignore(&["key"]);
            None
        }
    };
    let sha1_is_allowed = table.flag("allow_sha1", false);
    if let Some(Algorithm::Signature(algorithm)) = algorithm
        && algorithm.uses_sha1()
        && !sha1_is_allowed
    {
        table.error(
            "algorithm",
            "signs a SHA-1 digest: two texts with one digest can be made, and one signature then stands for both",
            "another algorithm; or, where the sender knows no other, allow_sha1 = true",
        );
    }
    let signature = read_signature(table, secrets);
    let mut key_choice = KeyChoice { id: None, url: None, declared: read_declared(table), other_prefixes: Vec::new() };
    key_choice.id = table.table("key_id").and_then(stated);
    key_choice.url = table.parsed("keys_url", |text| match url::Url::parse(text) {
        Ok(url) if url.scheme() == "https" && !text.contains(['@', '#', '\\']) => Ok(Arc::from(url.as_str())),
        _ => Err(format!("{text:?} is not a plain https URL")),
    });
    if key_choice.url.is_some() && (key_choice.id.is_none() || !matches!(algorithm, Some(Algorithm::Signature(_)))) {
        table.error(
            "keys_url",
            "lists public keys by their ids: it wants `key_id`, and an algorithm of public keys",
            r#"key_id = { header = "X-Key-Id" }"#,
        );
        return None;
    }
    let message =
        table.needed_text("message", r#"message = "{timestamp}.{body}""#).and_then(|text| template(table, &text));
    let timestamp = table.has("timestamp").then(|| read_timestamp(table));
    let required_headers = table.all_parsed("required_headers", header_name);
    let unsigned_body = table.flag("allow_unsigned_body", false);
    let single_use = table.flag("single_use", false);
    let more = read_more(source, table, public_url);
    let timestamp = match timestamp {
        Some(None) => return None,
        Some(found) => found,
        None => None,
    };
    let (keys, (signature, other_prefixes), message, algorithm) = (keys?, signature?, message?, algorithm?);
    let more = more?;
    key_choice.other_prefixes = other_prefixes;
    if key_choice.id.is_some() && !matches!(algorithm, Algorithm::Signature(_)) {
        table.error("key_id", "picks among public keys; a MAC is tried under every secret anyway", "remove it");
        return None;
    }
    if key_choice.id.is_some() && secrets.iter().any(|named| named.id.is_none()) {
        source.error(
            "secrets",
            "the sender says which key it used (`verify.key_id`), and a secret here has no `id`",
            r#"secrets = [{ file = "key.pem", id = "the key's id" }]"#,
        );
        return None;
    }

    let scheme =
        Scheme { algorithm, keys, key_choice, signature, message, timestamp, required_headers, single_use, more };
    if scheme.messages().any(Template::uses_url) && public_url.is_none() {
        source.error(
            "",
            "the signature covers the URL that the provider was told, and `public_url` is missing",
            r#"public_url = "https://hooks.example.com/path""#,
        );
    }
    if scheme.messages().any(Template::uses_timestamp) && scheme.timestamp.is_none() {
        table.error(
            "message",
            "names {timestamp}, and there is no `timestamp`",
            r#"timestamp = { header = "X-Timestamp", unit = "s", tolerance = "5m" }"#,
        );
        return None;
    }
    if let Some(timestamp) = &scheme.timestamp
        && !scheme.messages().all(|message| timestamp.place.is_covered_by(message))
    {
        table.warn(
            "timestamp",
            "is not part of `message`, so anyone can write a fresh one: it proves nothing",
            "name {timestamp} in `message`, if the provider signs it",
        );
    }
    if !scheme.message.covers_body() && !scheme.covers_body() && !unsigned_body {
        table.error(
            "message",
            "does not name {body}: a stranger who sees one delivery can send any body under its signature",
            "name {body}, or say allow_unsigned_body = true",
        );
    }
    match algorithm {
        Algorithm::HmacSha1 => {
            table.remark("algorithm", "HMAC with SHA-1 is not broken, but no new sender should choose it", "");
        }
        Algorithm::Sha1 | Algorithm::Sha256 | Algorithm::Sha512 => table.remark(
            "algorithm",
            "a plain hash over the secret is weaker than an HMAC; messages with a zero byte are refused, for they may be extended ones",
            "",
        ),
        _ => {}
    }
    Some(scheme)
}

fn read_keys(source: &Table<'_>, table: &Table<'_>, algorithm: Algorithm, secrets: &[Named]) -> Option<Vec<Key>> {
    let is_hmac = !matches!(algorithm, Algorithm::Signature(_));
    let of = table.table_or_empty("key");
    let shared = [
        ("utf8", KeyEncoding::Utf8),
        ("hex", KeyEncoding::Hex),
        ("base64", KeyEncoding::Base64),
        ("base64url", KeyEncoding::Base64Url),
    ];
    let public = [
        ("any", KeyEncoding::Any),
        ("pem", KeyEncoding::Pem),
        ("hex", KeyEncoding::Hex),
        ("base64", KeyEncoding::Base64),
        ("base64url", KeyEncoding::Base64Url),
        ("repeated_seed", KeyEncoding::RepeatedSeed),
    ];
    let encoding = match is_hmac {
        true => of.choice("encoding", Some("utf8"), &shared),
        false => of.choice("encoding", Some("any"), &public),
    };
    let normalise = of.choice("normalize", Some("none"), &[("none", false), ("nfkd", true)]);
    let hashed = of.choice("digest", Some("none"), &[("none", false), ("sha1", true)]);
    let short_rsa = !is_hmac && of.flag("allow_short_rsa", false);
    let format = encoding.map(|encoding| KeyFormat { encoding, strip_prefix: of.text("strip_prefix") });
    of.finish();
    let format = format?;
    let hint = match is_hmac {
        true => "the whole secret as the provider shows it; or compare `verify.key.encoding` with its page",
        false => "the sender's public key, whole, as its page or console shows it; each key a secret of its own",
    };
    let mut keys = Vec::new();
    for (position, Named { secret, id, .. }) in secrets.iter().enumerate() {
        let normal = (normalise == Some(true)).then(|| normalised(secret));
        let secret = normal.as_ref().unwrap_or(secret);
        if is_hmac && looks_public(secret.expose()) {
            let what = format!("secret {} is a public key: everybody who knows it could sign", position + 1);
            source.error("secrets", what, "the secret that the provider shares with you alone; or another `algorithm`");
            continue;
        }
        let decoded = match is_hmac {
            true if hashed == Some(true) => {
                Key::decode(secret, &format).map(Key::hashed_with_sha1).map_err(|error| error.to_string())
            }
            true => Key::decode(secret, &format).map_err(|error| error.to_string()),
            false => Key::decode_public(secret, &format, short_rsa).map_err(|error| error.to_string()),
        };
        match decoded {
            Ok(key) => {
                let key = key.named(id.as_deref());
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
            Err(error) => source.error("secrets", format!("secret {}: {error}", position + 1), hint),
        }
    }
    (keys.len() == secrets.len()).then_some(keys)
}

/// What the sender may say of its algorithm, beside what is configured.
fn read_declared(table: &Table<'_>) -> Vec<Declared> {
    let read = |at: Table<'_>| {
        let one_of = at.texts("one_of");
        if one_of.is_empty() {
            at.error(
                "",
                "says no name that is allowed",
                r#"declared_algorithm = { form = "sign_type", one_of = ["RSA2"] }"#,
            );
        }
        stated(at).map(|at| Declared { at, one_of })
    };
    table.tables("declared_algorithm").into_iter().filter_map(read).collect()
}

fn stated(at: Table<'_>) -> Option<Stated> {
    match at.text("header_json") {
        Some(pointer) => {
            at.finish();
            Some(Stated::BesideSignature(pointer))
        }
        None => locator(at).map(Stated::At),
    }
}

/// With how the entries of other algorithms begin.
fn read_signature(table: &Table<'_>, secrets: &[Named]) -> Option<(SignatureAt, Vec<String>)> {
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
    let inside = at.text("header_json");
    let all = at.has("headers") && at.flag("all", false);
    let in_header = (at.has("header") || at.has("headers")).then(|| match inside {
        Some(pointer) => Place::HeaderJson { names: headers, pointer },
        None if all => Place::EveryHeader(headers),
        None => Place::Header(headers),
    });
    let numbered = at.parsed("numbered_headers", |text| {
        (1..=MAX_NUMBERED).map(|number| header_name(&format!("{text}{number}"))).collect::<Result<Vec<_>, _>>()
    });
    let places = [
        in_header,
        numbered.map(Place::EveryHeader),
        at.text("query").map(Place::Query),
        at.text("form").map(Place::Form),
        at.text("json").map(Place::Json),
    ];
    let place = exactly_one(
        &at,
        places,
        r#"header = "X-Signature""#,
        "one of header, headers, numbered_headers, query, form, json",
    );
    let encodings = [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("base64url", Encoding::Base64Url)];
    let encoding = at.choice("encoding", Some("hex"), &encodings);
    let prefix = || at.text("prefix").unwrap_or_default();
    let separator = || character(&at, "separator", ',');
    #[derive(Clone, Copy)]
    enum Shape {
        Plain,
        Pairs,
        List,
        Positional,
        Entries,
    }
    let shapes = [
        ("plain", Shape::Plain),
        ("pairs", Shape::Pairs),
        ("list", Shape::List),
        ("positional", Shape::Positional),
        ("entries", Shape::Entries),
    ];
    let shape = at.choice("layout", Some("plain"), &shapes);
    let used: &[&str] = match shape {
        Some(Shape::Plain) => &["prefix"],
        Some(Shape::List) => &["separator", "prefix", "other_prefixes"],
        Some(Shape::Positional) => &["separator", "timestamp_index"],
        Some(Shape::Pairs) => &["separator", "equals", "key", "groups"],
        Some(Shape::Entries) => &["separator", "equals"],
        None => &["prefix", "separator", "equals", "key", "groups", "timestamp_index", "other_prefixes"],
    };
    for key in ["prefix", "separator", "equals", "key", "groups", "timestamp_index", "other_prefixes"] {
        if at.has(key) && !used.contains(&key) {
            at.ignore(&[key]);
            at.error(
                key,
                "has no effect with this `layout`",
                &format!("remove it; this layout takes {}", used.join(", ")),
            );
        }
    }
    let layout = match shape {
        Some(Shape::Plain) => Some(Layout::Plain { prefix: prefix() }),
        Some(Shape::List) => Some(Layout::List { separator: separator(), prefix: prefix() }),
        Some(Shape::Positional) => {
            let timestamp_index = usize::try_from(at.count("timestamp_index", 0, 0..=1)).unwrap_or(0);
            Some(Layout::Positional { separator: separator(), timestamp_index })
        }
        Some(Shape::Pairs) => {
            let equals = character(&at, "equals", '=');
            at.needed_text("key", r#"key = "v1": the name of the pair that holds the signature"#)
                .map(|key| Layout::Pairs { separator: separator(), equals, key, groups: one_character(&at, "groups") })
        }
        Some(Shape::Entries) => {
            let names: Vec<Arc<str>> = secrets.iter().filter_map(|named| named.id.as_deref().map(Arc::from)).collect();
            if names.len() < secrets.len() {
                at.error(
                    "layout",
                    "names the key of each entry, and a secret has no `id`",
                    r#"secrets = [{ env = "PRIVATE_KEY", id = "the public key" }]"#,
                );
                at.ignore(&["separator", "equals"]);
                None
            } else {
                Some(Layout::Entries { separator: separator(), equals: character(&at, "equals", '='), names })
            }
        }
        None => None,
    };
    let other_prefixes = match shape {
        Some(Shape::List) => at.texts("other_prefixes"),
        _ => Vec::new(),
    };
    at.finish();
    Some((SignatureAt { place: place?, layout: layout?, encoding: encoding? }, other_prefixes))
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
    let unit = unit(&at);
    let tolerance = match at.peek_text("tolerance").as_deref() {
        Some("none") => {
            at.ignore(&["tolerance"]);
            None
        }
        _ => Some(at.duration("tolerance", Duration::from_secs(300), Duration::from_secs(1)..=DAY)),
    };
    let futures = [("tolerance", Future::Tolerance), ("any", Future::Any), ("none", Future::None)];
    let future = at.choice("future", Some("tolerance"), &futures);
    at.finish();
    Some(Timestamp { place: place?, unit: unit?, tolerance, future: future? })
}

pub(super) fn unit(table: &Table<'_>) -> Option<Unit> {
    let units = [
        ("s", Unit::Seconds),
        ("ms", Unit::Millis),
        ("rfc3339", Unit::Rfc3339),
        ("http-date", Unit::HttpDate),
        ("auto", Unit::Auto),
    ];
    table.choice("unit", Some("s"), &units)
}

/// One place, or several of which the first present counts.
pub(super) fn locators(table: &Table<'_>, name: &'static str) -> Vec<Locator> {
    table.tables(name).into_iter().filter_map(locator).collect()
}

pub(super) fn locator(at: Table<'_>) -> Option<Locator> {
    if let (Some(form), true) = (at.peek_text("form"), at.has("json")) {
        at.ignore(&["form"]);
        let found = pointer(&at).map(|pointer| Locator::FormJson { form, pointer });
        at.finish();
        return found;
    }
    let claim = at.text("claim");
    let in_claim = claim.as_ref().and_then(|_| at.text("json"));
    let places = [
        claim.map(|name| Locator::Claim { name, json: in_claim }),
        at.parsed("header", header_name).map(Locator::Header),
        if at.has("claim") { None } else { pointer(&at).map(Locator::Json) },
        at.text("query").map(Locator::Query),
        at.text("form").map(Locator::Form),
    ];
    if at.has("json") && places.iter().all(Option::is_none) {
        // What is wrong with it was told.
        at.finish();
        return None;
    }
    let found = exactly_one(&at, places, r#"header = "X-Delivery-Id""#, "one of header, json, query, form, claim");
    at.finish();
    found
}

/// `json`, told where it stands if it leads nowhere.
fn pointer(at: &Table<'_>) -> Option<String> {
    let pointer = at.text("json")?;
    if pointer.is_empty() || pointer.starts_with('/') {
        return Some(pointer);
    }
    at.error("json", "is not a JSON pointer", &format!("\"/{}\"", pointer.replace('.', "/")));
    None
}

pub(super) fn exactly_one<T, const N: usize>(
    table: &Table<'_>,
    found: [Option<T>; N],
    example: &str,
    choices: &str,
) -> Option<T> {
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
    one_character(table, name).unwrap_or(default)
}

fn one_character(table: &Table<'_>, name: &'static str) -> Option<char> {
    let one = |text: &str| {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.is_ascii() => Ok(c),
            _ => Err(format!("{text:?} is not one ASCII character")),
        }
    };
    table.parsed(name, one)
}
