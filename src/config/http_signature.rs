//! The `http_signature` table: which parts of a message its sender has to sign, with which keys, and how fresh.
//!
//! Invariant: a table that names no components asks for those which bind the method, the URL and the body; asking for
//! less is said out loud, and `check` says what then is not covered.

use super::node::Kind;
use super::reader::Table;
use super::secret_ref::Named;
use super::units::header_name;
use crate::secret::Secret;
use crate::verify::{
    CavagePlace, HttpSignature, KeyEncoding, KeyFormat, MessageAlgorithm, Required, SignatureStandard, SignerKey,
};
use http::HeaderName;
use http::header::AUTHORIZATION;
use std::sync::Arc;
use std::time::Duration;

/// Below this many bytes a key can be found by trying.
const SHORT_KEY: usize = 16;
/// ActivityPub's receivers take signatures of twelve hours; a day is beyond all.
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Rfc9421,
    Cavage,
    WebSub,
}

pub(super) fn read(
    source: &Table<'_>,
    table: &Table<'_>,
    secrets: &[Named],
    label: Option<&str>,
    public_url: Option<&str>,
) -> Option<HttpSignature> {
    let versions = [("rfc9421", Version::Rfc9421), ("cavage", Version::Cavage), ("websub", Version::WebSub)];
    let version = table.choice("version", Some("rfc9421"), &versions)?;
    let (default_components, algorithms): (&[&str], &[(&str, MessageAlgorithm)]) = match version {
        Version::Rfc9421 => (&["@method", "@target-uri", "content-digest"], &MessageAlgorithm::RFC_9421),
        Version::Cavage => (&["(request-target)", "host", "date", "digest"], &MessageAlgorithm::CAVAGE),
        Version::WebSub => (&[], &MessageAlgorithm::WEBSUB),
    };
    let of: &[(&'static str, &[Version])] = &[
        ("tag", &[Version::Rfc9421]),
        ("require_nonce", &[Version::Rfc9421]),
        ("headers", &[Version::Cavage]),
        ("components", &[Version::Rfc9421, Version::Cavage]),
        ("max_age", &[Version::Rfc9421, Version::Cavage]),
        ("clock_skew", &[Version::Rfc9421, Version::Cavage]),
        ("allow_unsigned_body", &[Version::Rfc9421, Version::Cavage]),
        ("allow_short_rsa", &[Version::Rfc9421, Version::Cavage]),
        ("algorithm", &[Version::Rfc9421, Version::Cavage]),
        ("methods", &[Version::WebSub]),
        ("header", &[Version::WebSub]),
    ];
    for (key, versions) in of {
        if !versions.contains(&version) && table.has(key) {
            table.ignore(&[key]);
            table.error(key, "has no effect with this `version`", "remove it");
        }
    }
    if secrets.is_empty() && !source.has("secrets") {
        let example = r#"secrets = [{ file = "key.pem", id = "key-1", algorithm = "ed25519" }]"#;
        source.error("", "`secrets` is missing: `http_signature` needs at least one", example);
    }
    let label: Arc<str> = label.unwrap_or("http_signature").into();
    if version == Version::WebSub {
        return read_websub(source, table, secrets, label);
    }
    let standard = match version {
        Version::Rfc9421 | Version::WebSub => {
            SignatureStandard::Rfc9421 { tag: table.text("tag"), nonce: table.flag("require_nonce", false) }
        }
        Version::Cavage => SignatureStandard::Cavage { places: read_places(table) },
    };
    let required = read_required(table, &standard, default_components);
    let max_age = table.duration("max_age", Duration::from_secs(300), Duration::from_secs(1)..=DAY);
    let clock_skew = table.duration("clock_skew", Duration::from_secs(60), Duration::ZERO..=DAY);
    let keys = read_keys(source, table, secrets, algorithms);
    let unsigned_body = table.flag("allow_unsigned_body", false);
    let signature = HttpSignature { label, standard, keys: keys?, required: required?, max_age, clock_skew };
    remark(source, table, &signature, unsigned_body, public_url);
    Some(signature)
}

/// A hub names its hash; every secret gets a key for each that is allowed.
fn read_websub(source: &Table<'_>, table: &Table<'_>, secrets: &[Named], label: Arc<str>) -> Option<HttpSignature> {
    let header = match table.has("header") {
        true => table.parsed("header", header_name)?,
        false => {
            table.note_default("header", r#""x-hub-signature""#);
            HeaderName::from_static("x-hub-signature")
        }
    };
    let known = MessageAlgorithm::WEBSUB;
    let named = |name: &str| {
        let found = known.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm);
        found.ok_or_else(|| format!("`{name}` is no hash of WebSub; there are sha256, sha384, sha512 and sha1"))
    };
    let methods = match table.has("methods") {
        true => table.all_parsed("methods", named),
        false => {
            table.note_default("methods", r#"["sha256", "sha384", "sha512"]"#);
            known
                .iter()
                .map(|(_, algorithm)| *algorithm)
                .filter(|method| *method != MessageAlgorithm::HmacSha1)
                .collect()
        }
    };
    let format = read_key_format(table);
    if secrets.iter().any(|named| named.algorithm.is_some()) {
        source.error("secrets", "an `algorithm` beside a secret has no effect with this `version`", "see `methods`");
    }
    let mut keys = Vec::new();
    for (position, Named { secret, .. }) in secrets.iter().enumerate() {
        warn_if_short(source, position + 1, secret);
        for method in &methods {
            match SignerKey::read(secret, None, *method, &format, false) {
                Ok(key) => keys.push(key),
                Err(error) => {
                    source.error("secrets", format!("secret {}: {error}", position + 1), "");
                    break;
                }
            }
        }
    }
    let whole = !methods.is_empty() && !keys.is_empty() && keys.len() == secrets.len() * methods.len();
    let standard = SignatureStandard::WebSub { header, keys_each: methods.len() };
    let (required, max_age, clock_skew) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    whole.then_some(HttpSignature { label, standard, keys, required, max_age, clock_skew })
}

fn read_key_format(table: &Table<'_>) -> KeyFormat {
    let of = table.table_or_empty("key");
    let encodings = [
        ("utf8", KeyEncoding::Utf8),
        ("hex", KeyEncoding::Hex),
        ("base64", KeyEncoding::Base64),
        ("base64url", KeyEncoding::Base64Url),
    ];
    let encoding = of.choice("encoding", Some("utf8"), &encodings).unwrap_or(KeyEncoding::Utf8);
    let format = KeyFormat { encoding, strip_prefix: of.text("strip_prefix") };
    of.finish();
    format
}

fn warn_if_short(source: &Table<'_>, position: usize, secret: &Secret) {
    if secret.len() < SHORT_KEY {
        let length = secret.len();
        let what = format!("secret {position} has {length} bytes; a key under {SHORT_KEY} can be found by trying");
        source.warn("secrets", what, "openssl rand -hex 32");
    }
}

fn read_places(table: &Table<'_>) -> Vec<CavagePlace> {
    let one = |text: &str| {
        let header = header_name(text)?;
        Ok(if header == AUTHORIZATION { CavagePlace::Authorization } else { CavagePlace::Header(header) })
    };
    if !table.has("headers") {
        table.note_default("headers", r#"["signature", "authorization"]"#);
        let signature = CavagePlace::Header(HeaderName::from_static("signature"));
        return vec![signature, CavagePlace::Authorization];
    }
    let places = table.all_parsed("headers", one);
    if places.is_empty() {
        table.error("headers", "names no header", r#"headers = ["Signature"]"#);
    }
    places
}

/// What RFC 9421 calls `@…`; no header is called so.
const OF_THE_REQUEST: [&str; 7] = ["method", "target-uri", "authority", "scheme", "request-target", "path", "query"];

fn read_required(table: &Table<'_>, standard: &SignatureStandard, default: &[&str]) -> Option<Vec<Required>> {
    let parse = |text: &str| {
        if matches!(standard, SignatureStandard::Rfc9421 { .. }) && OF_THE_REQUEST.contains(&text) {
            return Err(format!("`{text}` would be a header of that name; the request's own is `@{text}`"));
        }
        let wrong = || format!("`{text}` is no component that a signature of this version can cover");
        Required::parse(text, standard).ok_or_else(wrong)
    };
    match table.node("components").map(|node| &node.kind) {
        None => {
            table.note_default("components", &format!("{default:?}"));
            default.iter().map(|text| parse(text).ok()).collect()
        }
        // Whatever the sender covers will do; without `allow_unsigned_body` it does not load.
        Some(Kind::Array(listed)) if listed.is_empty() => {
            table.note_default("components", "[]");
            Some(Vec::new())
        }
        Some(Kind::Array(listed)) => {
            let read = table.all_parsed("components", parse);
            (read.len() == listed.len()).then_some(read)
        }
        Some(_) => {
            table.texts("components");
            None
        }
    }
}

fn read_keys(
    source: &Table<'_>,
    table: &Table<'_>,
    secrets: &[Named],
    algorithms: &[(&str, MessageAlgorithm)],
) -> Option<Vec<SignerKey>> {
    let known = || algorithms.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let named = |name: &str| {
        let found = algorithms.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm);
        found.ok_or_else(|| format!("`{name}` is no algorithm of this version; it has {}", known()))
    };
    let for_all = table.parsed("algorithm", named);
    let short_rsa = table.flag("allow_short_rsa", false);
    let format = read_key_format(table);
    let mut keys = Vec::new();
    for (position, Named { secret, id, algorithm, .. }) in secrets.iter().enumerate() {
        let position = position + 1;
        let algorithm = match algorithm.as_deref().map(named) {
            Some(Ok(algorithm)) => algorithm,
            Some(Err(what)) => {
                source.error("secrets", format!("secret {position}: {what}"), "");
                continue;
            }
            None if table.has("algorithm") => match for_all {
                Some(algorithm) => algorithm,
                // What is wrong with it was told.
                None => continue,
            },
            None => {
                let what = format!("secret {position} has no algorithm, and a message must not choose it");
                source.error("secrets", what, r#"{ file = "key.pem", id = "key-1", algorithm = "ed25519" }"#);
                continue;
            }
        };
        match SignerKey::read(secret, id.as_deref(), algorithm, &format, short_rsa) {
            Ok(key) => {
                if algorithm.is_hmac() {
                    warn_if_short(source, position, secret);
                }
                keys.push(key);
            }
            Err(error) => source.error(
                "secrets",
                format!("secret {position}: {error}"),
                "compare its `algorithm` with the sender's page; `http_signature.key.encoding` is for HMAC",
            ),
        }
    }
    (keys.len() == secrets.len() && !keys.is_empty()).then_some(keys)
}

/// What is allowed and proves less than it seems to.
fn remark(
    source: &Table<'_>,
    table: &Table<'_>,
    signature: &HttpSignature,
    unsigned_body: bool,
    public_url: Option<&str>,
) {
    let uncovered = signature.uncovered();
    if uncovered.body && !unsigned_body {
        table.error(
            "components",
            "lacks the body's digest: a stranger who sees one delivery can send any body under its signature",
            "add \"content-digest\" (\"digest\" in the drafts), or say allow_unsigned_body = true",
        );
    }
    if uncovered.receiver {
        let what = "does not name the receiver: a delivery signed for another receiver with the same key passes here";
        table.warn("components", what, "add \"@target-uri\" (\"host\" in the drafts)");
    }
    if uncovered.method {
        table.remark("components", "does not name the method: a delivery can be repeated with another", "");
    }
    if uncovered.time {
        let what =
            "names neither date nor (created): a signature never grows old, and only `replay_window` stops copies";
        table.warn("components", what, "add \"date\" or \"(created)\"");
    }
    if !uncovered.receiver && public_url.is_none() {
        let what = "the signature covers the URL that the sender was told; without `public_url` it is taken from the \
                    request, where a proxy may have changed it, and a stranger may name another receiver's";
        source.warn("", what, r#"public_url = "https://hooks.example.com/path""#);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::vectors::loaded;

    const MAC: &str = r#"{ value = "0123456789abcdef0123456789abcdef", id = "k", algorithm = "hmac-sha256" }"#;

    /// What is said of a source with this secret and table; `key: what`.
    fn told(secret: &str, table: &str) -> (bool, String) {
        let text = format!(
            "[listeners.a]\naddress = \"127.0.0.1:0\"\n[upstreams.u]\nurls = [\"http://127.0.0.1:9000\"]\n\
             [sources.s]\npath = \"/s\"\nupstream = \"u\"\nsecrets = [{secret}]\n\
             public_url = \"https://hooks.example.com/s\"\nhttp_signature = {{ {table} }}\n"
        );
        let loaded = loaded(&text);
        let problems: Vec<_> = loaded.problems.iter().map(|p| format!("{}: {}", p.key, p.what)).collect();
        (loaded.config.is_some(), problems.join("\n"))
    }

    fn refused(secret: &str, table: &str, what: &str) {
        let (loads, said) = told(secret, table);
        assert!(!loads && said.contains(what), "{table}: {loads}\n{said}");
    }

    fn warned(table: &str, what: &str) {
        let (loads, said) = told(MAC, table);
        assert!(loads && said.contains(what), "{table}: {loads}\n{said}");
    }

    #[test]
    fn what_would_prove_nothing_does_not_load() {
        assert!(told(MAC, "").0, "{}", told(MAC, "").1);
        refused(MAC, r#"components = ["@method"]"#, "lacks the body's digest");
        refused(MAC, "components = []", "lacks the body's digest");
        refused(MAC, r#"components = ["@status", "content-digest"]"#, "`@status` is no component");
        refused(MAC, r#"version = "cavage", components = ["@method", "digest"]"#, "`@method` is no component");
        refused(MAC, r#"version = "cavage", tag = "t""#, "has no effect with this `version`");
        refused(MAC, r#"version = "websub""#, "has no effect with this `version`");
        refused(MAC, r#"colour = "red""#, "unknown key");
        refused(r#"{ value = "0123456789abcdef0123" }"#, "", "has no algorithm");
        refused(r#"{ value = "0123456789abcdef0123" }"#, r#"algorithm = "md5""#, "`md5` is no algorithm");
        refused(r#"{ value = "0123456789abcdef0123", algorithm = "rsa-sha256" }"#, "", "`rsa-sha256` is no algorithm");
        let pem = "{ value = \"\"\"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                   -----END PUBLIC KEY-----\"\"\", algorithm = \"hmac-sha256\" }";
        refused(pem, "", "everybody knows");
        assert!(told(&pem.replace("hmac-sha256", "ed25519"), "").0);
        refused(&pem.replace("hmac-sha256", "rsa-pss-sha512"), "", "another kind");
    }

    #[test]
    fn check_says_what_is_not_covered() {
        warned(r#"components = ["content-digest"]"#, "does not name the receiver");
        warned(r#"components = ["content-digest", "@target-uri"]"#, "does not name the method");
        warned(r#"version = "cavage", components = ["(request-target)", "host", "digest"]"#, "never grows old");
        let text = r#"components = ["@method", "@authority"], allow_unsigned_body = true"#;
        assert!(told(MAC, text).0, "{}", told(MAC, text).1);
    }
}
