//! The `jwt` table: where the token is, who may have signed it, and what it has to say.
//!
//! Invariant: what would accept somebody else's token does not load. Algorithms are named, and of one family; a platform
//! that signs for everyone needs the claim that names this sender.

use super::node::Kind;
use super::reader::Table;
use super::scheme::{SHORT_KEY, unit};
use super::secret_ref::Named;
use super::units::header_name;
use crate::verify::{
    ClaimHash, DigestClaim, EachMember, Encoding, JwsAlgorithm, Jwt, JwtClaims, JwtKeyId, JwtPayload, JwtScheme, Key,
    KeyEncoding, KeyFormat, KeyRing, QueryHash, RingError, Rules, TokenAt, TrueLayer, Unit,
};
use http::HeaderName;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// In `audience`, `subject` and the claims: the URL that the sender was told.
const PUBLIC_URL: &str = "{public_url}";

/// Platforms that sign tokens for everyone with one set of keys: who signed says nothing about who sent.
struct Platform {
    name: &'static str,
    /// Of `iss`, or of the key set's address.
    hosts: &'static [&'static str],
    /// Claims of which one names the sender.
    senders: &'static [&'static str],
    example: &'static str,
}

const PLATFORMS: [Platform; 2] = [
    Platform {
        name: "Google",
        hosts: &["accounts.google.com", "www.googleapis.com"],
        senders: &["email", "sub", "azp"],
        example: r#"jwt.claims = { email = "push@my-project.iam.gserviceaccount.com", email_verified = true }"#,
    },
    Platform {
        name: "Microsoft Entra",
        hosts: &["sts.windows.net", "login.microsoftonline.com", "login.microsoftonline.us", "login.windows.net"],
        senders: &["appid", "azp", "oid", "sub"],
        example: r#"jwt.claims_any = { appid = "<the sender's application id>", azp = "<the same>" }"#,
    },
];

/// `secrets`: the source's own, where the table has none. With the names of the keys that the table lists.
pub(super) fn read(
    source: &Table<'_>,
    table: &Table<'_>,
    secrets: &[Named],
    public_url: Option<&str>,
    label: Option<&str>,
) -> Option<(Jwt, Vec<String>)> {
    let places = read_places(table);
    let algorithms = read_algorithms(table);
    let set_url = table.parsed("jwks_url", |text| match text.strip_prefix("https://") {
        Some(rest) if !rest.is_empty() && !rest.contains(['#', ' ', '@', '\\']) => Ok(Arc::from(text)),
        _ => Err(format!("{text:?} is not a plain https URL, such as \"https://id.example.com/jwks.json\"")),
    });
    let own = table.secrets("keys");
    let listed = if table.has("keys") { own.as_slice() } else { secrets };
    let told = |what: String, hint: &str| match table.has("keys") {
        true => table.error("keys", what, hint),
        false => source.error("secrets", what, hint),
    };
    let keys =
        algorithms.as_deref().and_then(|algorithms| read_keys(table, algorithms, listed, set_url.is_some(), &told));
    if algorithms.is_none() {
        table.ignore(&["key"]);
    }
    let key_id = table.text("key_claim").map_or(JwtKeyId::Header, JwtKeyId::Claim);
    let payloads = [("claims", Form::Claims), ("body", Form::Body), ("truelayer", Form::TrueLayer)];
    let form = table.choice("payload", Some("claims"), &payloads);
    if matches!(form, Some(Form::Body | Form::TrueLayer)) && key_id != JwtKeyId::Header {
        table.error("key_claim", "has no effect with this `payload`, which has no claims", "remove it");
    }
    let payload = match form {
        Some(Form::Claims) => {
            let claims = read_claims(source, table, places.as_deref(), set_url.as_deref(), public_url);
            Some(JwtPayload::Claims(Box::new(claims)))
        }
        Some(Form::Body) => Some(JwtPayload::Body),
        Some(Form::TrueLayer) => Some(JwtPayload::TrueLayer(read_truelayer(table))),
        None => None,
    };
    // Who lists keys wants no others.
    let set_url = set_url.filter(|_| listed.is_empty());
    let (places, algorithms, keys, payload) = (places?, algorithms?, keys?, payload?);
    let jwt = Jwt { label: label.unwrap_or("jwt").into(), places, algorithms, keys, key_id, set_url, payload };
    if !jwt.has_keys() && table.has("jwks_url") {
        // What is wrong with it was told.
        return None;
    }
    if !jwt.has_keys() {
        table.error(
            "",
            "has no keys: neither `secrets`, `jwt.keys` nor `jwt.jwks_url`",
            r#"secrets = [{ file = "key.pem" }], or jwt.jwks_url = "https://…""#,
        );
        return None;
    }
    Some((jwt, own.into_iter().map(|named| named.name).collect()))
}

#[derive(Clone, Copy)]
enum Form {
    Claims,
    Body,
    TrueLayer,
}

fn read_places(table: &Table<'_>) -> Option<Vec<TokenAt>> {
    let mut places = Vec::new();
    let word = table.text("prefix");
    let optional = table.flag("prefix_optional", false);
    if let Some(name) = table.parsed("header", header_name) {
        let scheme = word.map(|word| JwtScheme { word: word.trim_end().to_owned(), optional });
        places.push(TokenAt::Header { name, scheme });
    } else if word.is_some() {
        table.error("prefix", "has no effect without `header`", "remove it, or name the header");
    }
    places.extend(table.text("query").map(TokenAt::Query));
    for (name, place) in [("json", TokenAt::Json as fn(String) -> TokenAt), ("each", TokenAt::Each)] {
        if let Some(pointer) = table.text(name) {
            if !pointer.starts_with('/') {
                table.error(name, "is not a JSON pointer", "begin it with `/`");
                return None;
            }
            places.push(place(pointer));
        }
    }
    if table.flag("body", false) {
        places.push(TokenAt::Body);
    }
    if places.is_empty() {
        table.error(
            "",
            "says no place: one or several of header, query, json, each, body",
            r#"jwt = { header = "Authorization", prefix = "Bearer", … }"#,
        );
    } else if places.len() > 1 && places.iter().any(|place| matches!(place, TokenAt::Body | TokenAt::Each(_))) {
        table.error("", "`body` and `each` leave no room for another place", "keep one place");
        return None;
    }
    (!places.is_empty()).then_some(places)
}

fn read_algorithms(table: &Table<'_>) -> Option<Vec<JwsAlgorithm>> {
    let example = r#"algorithms = ["RS256"]"#;
    if !table.has("algorithms") {
        table.error("", "`algorithms` is missing: a token must not choose its own", example);
    }
    let known: Vec<_> = JwsAlgorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
    let read = |text: &str| match JwsAlgorithm::named(text) {
        Some(algorithm) => Ok(algorithm),
        None if text.eq_ignore_ascii_case("none") => Err("\"none\" would let everybody in".to_owned()),
        None => Err(format!("{text:?} is none of {}", known.join(", "))),
    };
    let algorithms = table.all_parsed("algorithms", read);
    if algorithms.is_empty() {
        return None;
    }
    let shared = algorithms.iter().filter(|algorithm| algorithm.is_shared()).count();
    if shared > 0 && shared < algorithms.len() {
        table.error(
            "algorithms",
            "mixes HS… with public keys: whoever knows a public key could sign with it",
            "keep one family; two senders are two sources",
        );
        return None;
    }
    Some(algorithms)
}

/// `told`: where the keys are listed.
fn read_keys(
    table: &Table<'_>,
    algorithms: &[JwsAlgorithm],
    listed: &[Named],
    has_set: bool,
    told: &dyn Fn(String, &str),
) -> Option<KeyRing> {
    let name = if table.has("keys") { "keys" } else { "" };
    let is_shared = algorithms.iter().any(|algorithm| algorithm.is_shared());
    let ring = if is_shared {
        let format = table.table_or_empty("key");
        let encodings = [
            ("utf8", KeyEncoding::Utf8),
            ("hex", KeyEncoding::Hex),
            ("base64", KeyEncoding::Base64),
            ("base64url", KeyEncoding::Base64Url),
        ];
        let encoding = format.choice("encoding", Some("utf8"), &encodings);
        let strip_prefix = format.text("strip_prefix");
        format.finish();
        if has_set {
            table.error("jwks_url", "holds public keys, and HS… algorithms have none", "remove one of the two");
            return None;
        }
        let format = KeyFormat { encoding: encoding?, strip_prefix };
        let mut keys = Vec::new();
        for (index, named) in listed.iter().enumerate() {
            match Key::decode(&named.secret, &format) {
                Ok(key) if key.bytes().len() < SHORT_KEY => {
                    let what =
                        format!("secret {} has {} bytes; it can be found by trying", index + 1, key.bytes().len());
                    table.warn(name, what, "openssl rand -hex 32");
                    keys.push(key.named(named.id.as_deref()));
                }
                Ok(key) => keys.push(key.named(named.id.as_deref())),
                Err(error) => {
                    told(format!("secret {}: {error}", index + 1), "compare `jwt.key.encoding`");
                    return None;
                }
            }
        }
        KeyRing::shared(&keys, algorithms)
    } else {
        if table.has("key") {
            table.ignore(&["key"]);
            table.error("key", "has no effect: public keys say themselves how they are written", "remove it");
        }
        KeyRing::public(listed.iter().map(|named| (named.id.as_deref(), &named.secret)), algorithms)
    };
    match ring {
        Ok(ring) => Some(ring),
        Err(RingError::PublicKeyAsSecret { index }) => {
            let what = format!("secret {} is a public key, and HS… would let everybody sign who knows it", index + 1);
            told(what, r#"the sender's shared secret, or jwt.algorithms = ["RS256"]"#);
            None
        }
        Err(RingError::NotAPublicKey { index, what }) => {
            told(format!("secret {}: {what}", index + 1), "a PEM, a JWK or a JWKS as the sender publishes it");
            None
        }
        Err(RingError::TooMany) => {
            told("hold more keys than a token could be tried with".to_owned(), "64 at most");
            None
        }
    }
}

fn read_claims(
    source: &Table<'_>,
    table: &Table<'_>,
    places: Option<&[TokenAt]>,
    set_url: Option<&str>,
    public_url: Option<&str>,
) -> JwtClaims {
    let told = |text: String| match public_url {
        Some(url) if text == PUBLIC_URL => url.to_owned(),
        None if text == PUBLIC_URL => {
            needs_public_url(source, "the token names the URL that the sender was told");
            text
        }
        _ => text,
    };
    let told_value = |value: Value| match value {
        Value::String(text) => Value::String(told(text)),
        other => other,
    };
    let pairs = |name| table.scalars(name).into_iter().map(|(name, value)| (name, told_value(value))).collect();
    let rules = Rules {
        issuer: one_or_many(table, "issuer"),
        audience: one_or_many(table, "audience").into_iter().map(told).collect(),
        subject: one_or_many(table, "subject").into_iter().map(told).collect(),
        claims: pairs("claims"),
        claims_any: pairs("claims_any"),
        require: table.texts("require"),
        require_exp: table.flag("require_exp", true),
        max_age: table
            .has("max_age")
            .then(|| table.duration("max_age", Duration::from_secs(300), Duration::from_secs(1)..=7 * DAY)),
        leeway: table.duration("leeway", Duration::ZERO, Duration::ZERO..=Duration::from_secs(600)),
    };
    let body_hash = table.table("body_hash").and_then(|table| read_digest(table, true));
    let url_hash = table.table("url_hash").and_then(|table| read_digest(table, false));
    if url_hash.is_some() && public_url.is_none() {
        needs_public_url(source, "the token holds a digest of the URL that the sender was told");
    }
    let query_hash = table.table("qsh").map(|table| {
        let claim = table.text("claim").unwrap_or_else(|| "qsh".to_owned());
        let base_path = table.text("base_path").unwrap_or_default();
        if !base_path.is_empty() && (!base_path.starts_with('/') || base_path.ends_with('/')) {
            table.error("base_path", "begins with a slash and does not end with one", r#"base_path = "/jira""#);
        }
        table.finish();
        QueryHash { claim, base_path }
    });
    let single_use = table.text("single_use");
    if body_hash.is_some() && places.is_some_and(|places| places.contains(&TokenAt::Body)) {
        table.error("body_hash", "cannot be right where the body is the token", "remove it");
    }
    let claims = JwtClaims { rules, body_hash, url_hash, query_hash, single_use };
    check_platform(table, &claims, set_url);
    if claims.body_hash.is_none() && !places.is_some_and(|places| places.contains(&TokenAt::Body)) {
        table.remark(
            "",
            "the token does not stand for the body: one that is stolen passes with any body until it ends",
            "",
        );
    }
    claims
}

fn needs_public_url(source: &Table<'_>, why: &str) {
    source.error("", format!("{why}, and `public_url` is missing"), r#"public_url = "https://hooks.example.com/path""#);
}

fn check_platform(table: &Table<'_>, claims: &JwtClaims, set_url: Option<&str>) {
    let hosts = |platform: &Platform, text: &str| {
        let host = text.strip_prefix("https://").unwrap_or(text).split(['/', ':', '?']).next().unwrap_or_default();
        platform.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    };
    for platform in &PLATFORMS {
        let theirs = claims.rules.issuer.iter().map(String::as_str).chain(set_url).any(|text| hosts(platform, text));
        if !theirs {
            continue;
        }
        let name = platform.name;
        if claims.rules.issuer.is_empty() {
            table.error(
                "",
                format!("{name} signs for many issuers with these keys, and `issuer` is missing"),
                r#"jwt.issuer = ["https://…"]"#,
            );
        }
        if claims.rules.audience.is_empty() {
            table.error(
                "",
                format!("{name} signs tokens for everyone's receivers, and `audience` is missing"),
                r#"jwt.audience = ["https://hooks.example.com/path"]"#,
            );
        }
        let named = |pairs: &[(String, Value)], claim: &str| {
            pairs.iter().any(|(name, value)| name == claim && value.is_string())
        };
        let by_claims = platform.senders.iter().find(|claim| named(&claims.rules.claims, claim));
        // Of alternatives, each has to name a sender: the one that does not would let everybody in.
        let by_any = !claims.rules.claims_any.is_empty()
            && claims
                .rules
                .claims_any
                .iter()
                .all(|(name, value)| platform.senders.contains(&name.as_str()) && value.is_string());
        if by_claims.is_none() && !by_any && claims.rules.subject.is_empty() {
            let what = format!(
                "{name} signs tokens for everyone, and no claim names this sender ({})",
                platform.senders.join(", ")
            );
            table.error("", what, platform.example);
        }
        let verified =
            claims.rules.claims.iter().any(|(name, value)| name == "email_verified" && *value == Value::Bool(true));
        if by_claims == Some(&"email") && !verified && !named(&claims.rules.claims, "sub") {
            table.error("claims", "`email` alone may be one that nobody verified", "add email_verified = true");
        }
    }
}

fn read_digest(table: Table<'_>, may_be_absent: bool) -> Option<DigestClaim> {
    let claim = table.needed_text("claim", r#"claim = "payload_hash""#);
    let hashes = [("sha256", ClaimHash::Sha256), ("sha384", ClaimHash::Sha384), ("sha512", ClaimHash::Sha512)];
    let hash = table.choice("hash", Some("sha256"), &hashes);
    let encodings = [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("base64url", Encoding::Base64Url)];
    let encoding = table.choice("encoding", Some("hex"), &encodings);
    let absent_when_empty = may_be_absent && table.flag("absent_when_empty", false);
    table.finish();
    Some(DigestClaim { claim: claim?, hash: hash?, encoding: encoding?, absent_when_empty })
}

fn read_truelayer(table: &Table<'_>) -> TrueLayer {
    let required_headers: Vec<HeaderName> = table.all_parsed("required_headers", header_name);
    let key_urls: Vec<Arc<str>> = table.all_parsed("jku", |text| match text.starts_with("https://") {
        true => Ok(Arc::from(text)),
        false => Err(format!("{text:?} is not an https URL")),
    });
    if key_urls.is_empty() && !table.has("jku") {
        table.error("", "`jku` is missing: the addresses at which the sender's keys may be", r#"jku = ["https://…"]"#);
    }
    let timestamp = table.table("timestamp").and_then(|at| {
        let header = at.parsed("header", header_name);
        let unit: Option<Unit> = unit(&at);
        let tolerance = at.duration("tolerance", Duration::from_secs(300), Duration::from_secs(1)..=7 * DAY);
        at.finish();
        Some((header?, unit?, tolerance))
    });
    if timestamp.as_ref().is_some_and(|(header, ..)| !required_headers.contains(header)) {
        table.error(
            "timestamp",
            "need not be signed, so that it proves nothing",
            "list its header in `required_headers`",
        );
    }
    TrueLayer { required_headers, key_urls, timestamp }
}

/// One text, or a list of which any may be right.
fn one_or_many(table: &Table<'_>, name: &'static str) -> Vec<String> {
    match table.node(name).map(|node| &node.kind) {
        Some(Kind::Text(_)) => table.text(name).into_iter().collect(),
        _ => table.texts(name),
    }
}

/// The `each_secret` table: one of the source's `secrets` in every item of an array in the body.
pub(super) fn read_each(table: &Table<'_>, secrets: &[Named], label: Option<&str>) -> Option<EachMember> {
    let pointer = |name: &'static str, example: &str| {
        table.needed_text(name, example).filter(|text| {
            let is_pointer = text.starts_with('/');
            if !is_pointer {
                table.error(name, "is not a JSON pointer", "begin it with `/`");
            }
            is_pointer
        })
    };
    let array = pointer("array", r#"array = "/value""#);
    let member = pointer("member", r#"member = "/clientState""#);
    if secrets.is_empty() {
        table.error("", "there are no `secrets` to compare with", r#"secrets = [{ env = "CLIENT_STATE" }]"#);
        return None;
    }
    for named in secrets.iter().filter(|named| named.secret.len() < SHORT_KEY) {
        let what =
            format!("{} has {} bytes; one under {SHORT_KEY} can be found by trying", named.name, named.secret.len());
        table.warn("", what, "openssl rand -hex 32");
    }
    let secrets = secrets.iter().map(|named| named.secret.clone()).collect();
    Some(EachMember { label: label.unwrap_or("each_secret").into(), array: array?, member: member?, secrets })
}

#[cfg(test)]
mod tests {
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::Method;

    use crate::clock::UnixMillis;
    use crate::config::Severity;
    use crate::config::vectors::loaded;
    use crate::delivery::Delivery;
    use crate::fetched::NoLibrary;
    use crate::secret::Secret;

    const PEM: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE1s+ItDdoXhRkM10tFbz6PUjTnDie\nc90DVWH7KAxSWAs257Wbe3lpyOPVkUrNXI5qJNjS04OxCbWFXMDkDxYYsQ==\n-----END PUBLIC KEY-----";
    const SECRET: &str = "a shared secret of forty characters long";

    /// The errors of a source with these keys, each as `key: what`.
    fn errors(keys: &str) -> Vec<String> {
        let text = format!(
            "[listeners.public]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n\
             [sources.it]\npath = \"/in\"\nupstream = \"app\"\n{keys}\n"
        );
        let problems = loaded(&text).problems;
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        errors.map(|problem| format!("{}: {}", problem.key, problem.what)).collect()
    }

    fn shared(jwt: &str) -> Vec<String> {
        errors(&format!("secrets = [{{ value = {SECRET:?} }}]\n[sources.it.jwt]\nheader = \"X-Token\"\n{jwt}"))
    }

    fn public(jwt: &str) -> Vec<String> {
        errors(&format!("secrets = [{{ value = {PEM:?} }}]\n[sources.it.jwt]\nheader = \"X-Token\"\n{jwt}"))
    }

    /// One error, which is about `key` and says `what`.
    #[track_caller]
    fn tells(errors: &[String], key: &str, what: &str) {
        let [error] = errors else { panic!("{what}: {errors:?}") };
        assert!(error.starts_with(&format!("sources.it{key}: ")) && error.contains(what), "{error}");
    }

    #[test]
    fn a_token_with_a_pinned_algorithm_and_its_key_loads() {
        assert_eq!(shared(r#"algorithms = ["HS256", "HS512"]"#), [""; 0]);
        assert_eq!(public(r#"algorithms = ["ES256"]"#), [""; 0]);
    }

    #[test]
    fn algorithms_are_named_and_of_one_family() {
        tells(&shared(""), ".jwt", "`algorithms` is missing");
        tells(&shared("algorithms = []"), ".jwt.algorithms", "is empty");
        tells(&shared(r#"algorithms = ["none"]"#), ".jwt.algorithms", "would let everybody in");
        tells(&shared(r#"algorithms = ["None"]"#), ".jwt.algorithms", "would let everybody in");
        tells(&shared(r#"algorithms = ["hs256"]"#), ".jwt.algorithms", "is none of HS256");
        tells(&shared(r#"algorithms = ["HS256", "RS256"]"#), ".jwt.algorithms", "mixes HS…");
        tells(&public(r#"algorithms = ["HS256", "ES256"]"#), ".jwt.algorithms", "mixes HS…");
    }

    #[test]
    fn a_key_is_of_the_kind_that_the_algorithms_take() {
        tells(&public(r#"algorithms = ["HS256"]"#), ".secrets", "secret 1 is a public key");
        tells(&shared(r#"algorithms = ["RS256"]"#), ".secrets", "secret 1: ");
        tells(&public(r#"algorithms = ["RS256"]"#), ".secrets", "secret 1: the key verifies none");
        tells(&public(r#"algorithms = ["ES384"]"#), ".secrets", "secret 1: the key verifies none");
        let set = "algorithms = [\"HS256\"]\njwks_url = \"https://keys.example.com/\"";
        tells(&shared(set), ".jwt.jwks_url", "holds public keys");
        let nothing = errors("[sources.it.jwt]\nheader = \"X-Token\"\nalgorithms = [\"RS256\"]");
        tells(&nothing, ".jwt", "has no keys");
        let own = format!("algorithms = [\"ES256\"]\nkeys = [{{ value = {PEM:?} }}]");
        assert_eq!(errors(&format!("[sources.it.jwt]\nheader = \"X-Token\"\n{own}")), [""; 0]);
    }

    #[test]
    fn a_key_set_has_a_plain_https_address() {
        for bad in ["http://keys.example.com/", "https://", "https://a@keys.example.com/", "https://k/#x", "file:///k"]
        {
            let jwt = format!("algorithms = [\"RS256\"]\njwks_url = {bad:?}");
            let told = errors(&format!("[sources.it.jwt]\nheader = \"X-Token\"\n{jwt}"));
            tells(&told, ".jwt.jwks_url", "is not a plain https URL");
        }
    }

    #[test]
    fn a_platform_that_signs_for_everyone_needs_the_claim_that_names_the_sender() {
        let google = |more: &str| {
            public(&format!("algorithms = [\"ES256\"]\nissuer = [\"https://accounts.google.com\"]\n{more}"))
        };
        let sender = r#"claims = { email = "push@p.iam.gserviceaccount.com", email_verified = true }"#;
        let audience = r#"audience = ["https://hooks.example.com/in"]"#;
        assert_eq!(google(&format!("{audience}\n{sender}")), [""; 0]);
        assert_eq!(google(&format!("{audience}\nsubject = \"1137\"")), [""; 0]);
        tells(&google(audience), ".jwt", "no claim names this sender (email, sub, azp)");
        tells(&google(sender), ".jwt", "`audience` is missing");
        let verified = "claims = { email_verified = true }";
        tells(&google(&format!("{audience}\n{verified}")), ".jwt", "no claim names this sender");
        let unverified = r#"claims = { email = "push@p.iam.gserviceaccount.com" }"#;
        tells(&google(&format!("{audience}\n{unverified}")), ".jwt.claims", "nobody verified");

        let entra = |more: &str| {
            let issuer = "https://sts.windows.net/84bd8158-6d4d-4958-8b9f-9d6445542f95/";
            public(&format!("algorithms = [\"ES256\"]\nissuer = [{issuer:?}]\n{audience}\n{more}"))
        };
        assert_eq!(entra(r#"claims_any = { appid = "4962773b", azp = "4962773b" }"#), [""; 0]);
        tells(&entra(""), ".jwt", "no claim names this sender (appid, azp, oid, sub)");
        // The alternative that names nobody would let everybody in.
        tells(&entra(r#"claims_any = { appid = "4962773b", ver = "2.0" }"#), ".jwt", "no claim names this sender");

        // By the keys alone.
        let keys = "jwks_url = \"https://login.microsoftonline.com/common/discovery/v2.0/keys\"";
        let told = public(&format!("algorithms = [\"ES256\"]\n{audience}\n{keys}\nsubject = \"s\""));
        tells(&told, ".jwt", "`issuer` is missing");
    }

    #[test]
    fn a_preset_of_a_platform_does_not_load_without_its_sender() {
        let google = "public_url = \"https://hooks.example.com/in\"\nprovider = \"google-pubsub\"\n";
        tells(&errors(google), ".jwt", "no claim names this sender");
        assert_eq!(errors(&format!("{google}jwt.claims.email = \"push@p.iam.gserviceaccount.com\"")), [""; 0]);
        let grid = errors("provider = \"azure-event-grid\"");
        assert!(grid.iter().any(|error| error.contains("`issuer` is missing")), "{grid:?}");
        assert!(grid.iter().any(|error| error.contains("`audience` is missing")), "{grid:?}");
    }

    #[test]
    fn what_names_the_public_url_needs_it() {
        let asks = |jwt: &str| {
            let keys = format!("secrets = [{{ value = {SECRET:?} }}]\n[sources.it.jwt]\nheader = \"X-Token\"\n");
            errors(&format!("{keys}algorithms = [\"HS256\"]\n{jwt}"))
        };
        tells(&asks("subject = \"{public_url}\""), "", "`public_url` is missing");
        tells(&asks("audience = [\"{public_url}\"]"), "", "`public_url` is missing");
        tells(&asks("url_hash = { claim = \"url_hash\" }"), "", "`public_url` is missing");
        assert_eq!(asks("audience = \"us\""), [""; 0]);
    }

    #[test]
    fn a_place_is_named_and_a_form_takes_only_its_own_keys() {
        let keys = format!("secrets = [{{ value = {SECRET:?} }}]\n[sources.it.jwt]\nalgorithms = [\"HS256\"]\n");
        tells(&errors(&keys), ".jwt", "says no place");
        tells(&errors(&format!("{keys}body = true\nheader = \"X-Token\"")), ".jwt", "leave no room");
        tells(&errors(&format!("{keys}json = \"token\"")), ".jwt.json", "is not a JSON pointer");
        let hashed = "body = true\nbody_hash = { claim = \"h\" }";
        tells(&errors(&format!("{keys}{hashed}")), ".jwt.body_hash", "cannot be right");
        tells(&shared("algorithms = [\"HS256\"]\npayload = \"body\"\nissuer = \"acme\""), ".jwt.issuer", "unknown key");
        tells(&shared("algorithms = [\"HS256\"]\nisuer = \"acme\""), ".jwt.isuer", "unknown key");
        tells(&public("algorithms = [\"ES256\"]\npayload = \"truelayer\""), ".jwt", "`jku` is missing");
        let unsigned = "jku = [\"https://k\"]\ntimestamp = { header = \"X-Time\", unit = \"rfc3339\" }";
        tells(
            &public(&format!("algorithms = [\"ES256\"]\npayload = \"truelayer\"\n{unsigned}")),
            ".jwt.timestamp",
            "proves nothing",
        );
    }

    #[test]
    fn secrets_belong_to_one_proof() {
        let both = format!(
            "secrets = [{{ value = {SECRET:?} }}]\n[sources.it.verify]\nalgorithm = \"hmac-sha256\"\n\
             signature = {{ header = \"X-Signature\" }}\nmessage = \"{{body}}\"\n\
             [sources.it.jwt]\nheader = \"X-Token\"\nalgorithms = [\"HS256\"]\n"
        );
        tells(&errors(&both), ".jwt", "has no keys");
        assert_eq!(errors(&format!("{both}keys = [{{ value = {SECRET:?} }}]")), [""; 0]);
    }

    /// A key pair of P-256, made for this test.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSulZfzpmqhmlIZZ2sQhlpcsmheuNq57aLY8/X6vKN0ChRANCAAQXlaxI49qHhh72LSgLxna+m0ctzj0d93Is0oYHUA0MLi7GqAAZWNJDuyKre+Ts9+7Ik+jNG7ywjdNemnDD4RXj\n-----END PRIVATE KEY-----";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEF5WsSOPah4Ye9i0oC8Z2vptHLc49HfdyLNKGB1ANDC4uxqgAGVjSQ7siq3vk7PfuyJPozRu8sI3TXppww+EV4w==\n-----END PUBLIC KEY-----";

    #[test]
    fn what_every_token_preset_signs_it_accepts_and_nothing_that_was_changed() {
        let shared = format!("secrets = [{{ value = {SECRET:?} }}]");
        let tenant = format!("secrets = [{{ value = {SECRET:?}, id = \"tenant-1\" }}]");
        let public = format!("secrets = [{{ value = {PUBLIC:?} }}]\njwt.algorithms = [\"ES256\"]");
        let entra = "jwt.issuer = \"https://sts.windows.net/t/\"\njwt.audience = \"us\"";
        let graph = format!("{shared}\njwt.keys = [{{ value = {PUBLIC:?} }}]\njwt.algorithms = [\"ES256\"]\n{entra}");
        let google = format!("{public}\njwt.claims.email = \"push@p.iam.gserviceaccount.com\"");
        let event = r#"{"id":"evt_1","value":[{"id":"1"}]}"#;
        for (preset, keys, body, stands_for_body) in [
            ("plaid", &public, event, true),
            ("google-pubsub", &google, event, false),
            ("azure-event-grid", &format!("{public}\n{entra}"), event, false),
            ("monday", &shared, event, false),
            ("vonage", &shared, event, true),
            ("messagebird", &shared, event, true),
            ("messagebird", &shared, "", true),
            ("netlify", &shared, event, true),
            ("upstash-qstash", &shared, event, true),
            ("fusionauth", &shared, event, true),
            ("fusionauth", &public, event, true),
            ("wix", &public, r#"{"data":"{\"eventType\":\"paid\"}"}"#, true),
            ("kinde", &public, r#"{"event_id":"evt_1","type":"paid"}"#, true),
            ("atlassian-connect", &tenant, event, false),
            ("truelayer", &public, event, true),
            ("fireblocks-jws", &public, event, true),
            ("ms-graph", &shared, event, false),
            ("ms-graph-rich", &graph, event, false),
        ] {
            let url = "https://hooks.example.com/in";
            let text = format!(
                "[listeners.public]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n\
                 [sources.it]\npath = \"/in\"\nupstream = \"app\"\nprovider = {preset:?}\npublic_url = {url:?}\n{keys}\n"
            );
            let loaded = loaded(&text);
            let Some(mut config) = loaded.config else { panic!("{preset}: {:?}", loaded.problems) };
            let verifier = config.plan.sources.pop().unwrap().verifier;
            let draft = Delivery {
                method: Method::POST,
                scheme: "https",
                authority: "hooks.example.com".into(),
                path: "/in".into(),
                query: Some("a=1".into()),
                headers: Fields::new(),
                body: Bytes::from_static(body.as_bytes()),
            };
            let now = UnixMillis::from_secs(1_785_542_400);
            let private = Secret::new(PRIVATE.into());
            let made =
                verifier.sign(draft, "id-1", now, Some(&private)).unwrap_or_else(|error| panic!("{preset}: {error}"));
            let judge =
                |delivery: Delivery| verifier.judge(delivery, now, &NoLibrary).map_err(|refused| refused.refusal);
            let verified = judge(made.delivery.clone()).unwrap_or_else(|refusal| panic!("{preset}: {refusal:?}"));
            assert_eq!(verified.replay_keys().len(), usize::from(stands_for_body), "{preset}");
            for position in 0..made.delivery.body.len() {
                let mut changed = made.delivery.clone();
                let mut bytes = changed.body.to_vec();
                bytes[position] ^= 1;
                changed.body = bytes.into();
                assert!(judge(changed).is_err() || !stands_for_body, "{preset}: byte {position}");
            }
            let unsigned =
                Delivery { headers: Fields::new(), body: Bytes::from_static(body.as_bytes()), ..made.delivery };
            assert!(judge(unsigned).is_err(), "{preset}");
        }
    }
}
