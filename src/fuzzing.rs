//! The doors for fuzz targets: each takes bytes that a stranger could have chosen and must neither panic nor hang.
//!
//! Built with `--cfg fuzzing` alone (cargo fuzz sets it), so that no other build has them.

use crate::cli::saved_request::SavedRequest;
use crate::clock::UnixMillis;
use crate::config;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::verify::{Chain, HostRule, PathRule, Roots, Template, UrlRule};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rustls_pki_types::CertificateDer;
use std::sync::OnceLock;

/// One source of each layout: plain, pairs, list, public key, and one that looks everywhere.
const SOURCES: &str = r#"
[listeners.a]
address = "127.0.0.1:1"
[upstreams.u]
urls = ["http://127.0.0.1:1"]
[sources.github]
path = "/github"
provider = "github"
secrets = [{ value = "0123456789abcdef" }]
upstream = "u"
[sources.stripe]
path = "/stripe"
provider = "stripe"
secrets = [{ value = "0123456789abcdef" }]
upstream = "u"
[sources.slack]
path = "/slack"
provider = "slack"
secrets = [{ value = "0123456789abcdef" }]
upstream = "u"
[sources.standard]
path = "/standard"
provider = "standard-webhooks"
secrets = [{ value = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" }]
upstream = "u"
[sources.discord]
path = "/discord"
provider = "discord"
secrets = [{ value = "e5a174f2a69dd48056de1b374d70c6123c918d63982c0be7cac55e27f5c62d80" }]
upstream = "u"
[sources.everywhere]
path = "/everywhere"
secrets = [{ value = "0123456789abcdef" }]
upstream = "u"
public_url = "https://hooks.example.com/everywhere"
[sources.everywhere.verify]
algorithm = "hmac-sha512"
signature = { form = "sig", encoding = "base64url" }
message = "{method}{url}{query:a}{header:x-a}{form:sorted}{json:/a/b}[[{json:/c|lower}]]{timestamp}{body|sha256|hex}{body|crc32}"
timestamp = { json = "/t", unit = "rfc3339" }
allow_unsigned_body = true
id = [{ query = "id" }, { form = "id" }]
"#;

/// The first byte chooses the source; then header values, the query and the body, parted by 0x00.
pub fn judge(data: &[u8]) {
    static SOURCES_READ: OnceLock<Vec<config::Source>> = OnceLock::new();
    let sources = SOURCES_READ.get_or_init(|| {
        let loaded = config::load_text(SOURCES, &|_| None);
        loaded.config.expect("the sources above load").plan.sources
    });
    let Some((first, rest)) = data.split_first() else { return };
    let Some(source) = sources.get(usize::from(*first) % sources.len()) else { return };
    let mut parts = rest.splitn(5, |byte| *byte == 0);
    let mut headers = HeaderMap::new();
    let names: [&[&str]; 3] = [
        &["x-hub-signature-256", "stripe-signature", "x-slack-signature", "webhook-signature", "x-signature-ed25519"],
        &["x-slack-request-timestamp", "webhook-timestamp", "x-signature-timestamp"],
        &["webhook-id", "x-a", "content-type", "x-github-delivery"],
    ];
    for names in names {
        if let Some(value) = parts.next().and_then(|value| HeaderValue::from_bytes(value).ok()) {
            for name in names {
                headers.append(HeaderName::from_static(name), value.clone());
            }
        }
    }
    let query = parts.next().map(|query| String::from_utf8_lossy(query).into_owned());
    let body = Bytes::copy_from_slice(parts.next().unwrap_or_default());
    let delivery = Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".to_owned(),
        path: "/x".to_owned(),
        query,
        headers,
        body,
    };
    // Whoever has no key is never believed.
    assert!(
        source.verifier.judge(delivery, UnixMillis::from_secs(1_760_000_000), &NoLibrary).is_err(),
        "proven without a key"
    );
}

/// One source of each standard, without a component that has to be covered: whatever is read is read to the end.
const STANDARDS: &str = r#"
[listeners.a]
address = "127.0.0.1:1"
[upstreams.u]
urls = ["http://127.0.0.1:1"]
[sources.rfc9421]
path = "/rfc9421"
secrets = [
  { value = "0123456789abcdef", id = "m", algorithm = "hmac-sha256" },
  { value = "e5a174f2a69dd48056de1b374d70c6123c918d63982c0be7cac55e27f5c62d80", algorithm = "ed25519" },
]
upstream = "u"
http_signature = { components = [], allow_unsigned_body = true, max_age = "1d" }
[sources.cavage]
path = "/cavage"
secrets = [{ value = "0123456789abcdef", algorithm = "hmac-sha256" }]
upstream = "u"
http_signature = { version = "cavage", components = [], allow_unsigned_body = true, max_age = "1d" }
[sources.websub]
path = "/websub"
secrets = [{ value = "0123456789abcdef" }]
upstream = "u"
http_signature = { version = "websub" }
"#;

/// Structured fields and signature headers. The first byte chooses the source; then the values of Signature-Input,
/// Signature, Content-Digest, another field, the query and the body, parted by 0x00.
pub fn message_signature(data: &[u8]) {
    static SOURCES_READ: OnceLock<Vec<config::Source>> = OnceLock::new();
    let sources = SOURCES_READ.get_or_init(|| {
        let loaded = config::load_text(STANDARDS, &|_| None);
        loaded.config.expect("the sources above load").plan.sources
    });
    let Some((first, rest)) = data.split_first() else { return };
    let Some(source) = sources.get(usize::from(*first) % sources.len()) else { return };
    let mut parts = rest.splitn(6, |byte| *byte == 0);
    let mut headers = HeaderMap::new();
    let names: [&[&str]; 4] =
        [&["signature-input"], &["signature", "x-hub-signature"], &["content-digest", "digest"], &["x-a", "date"]];
    for names in names {
        if let Some(value) = parts.next().and_then(|value| HeaderValue::from_bytes(value).ok()) {
            for name in names {
                headers.append(HeaderName::from_static(name), value.clone());
            }
        }
    }
    let query = parts.next().map(|query| String::from_utf8_lossy(query).into_owned());
    let delivery = Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".to_owned(),
        path: "/x".to_owned(),
        query,
        headers,
        body: Bytes::copy_from_slice(parts.next().unwrap_or_default()),
    };
    let judged = source.verifier.judge(delivery, UnixMillis::from_secs(1_760_000_000), &NoLibrary);
    assert!(judged.is_err(), "proven without a key");
}

/// One source of each form of token. The secrets are anybody's; that nothing is accepted holds for whoever lacks them.
const TOKENS: &str = r#"
[listeners.a]
address = "127.0.0.1:1"
[upstreams.u]
urls = ["http://127.0.0.1:1"]
[sources.header]
path = "/header"
secrets = [{ value = "0123456789abcdef0123456789abcdef" }]
upstream = "u"
public_url = "https://hooks.example.com/header"
id = { claim = "data", json = "/id" }
[sources.header.jwt]
header = "Authorization"
prefix = "Bearer"
prefix_optional = true
query = "jwt"
json = "/token"
algorithms = ["HS256", "HS384", "HS512"]
require_exp = false
[sources.tenant]
path = "/tenant"
secrets = [{ value = "0123456789abcdef0123456789abcdef", id = "a" }]
upstream = "u"
jwt = { header = "Authorization", query = "jwt", algorithms = ["HS256"], key_claim = "/iss", qsh = {} }
[sources.body]
path = "/body"
upstream = "u"
jwt = { body = true, algorithms = ["RS256", "ES256"], jwks_url = "https://keys.example.com/" }
[sources.each]
path = "/each"
upstream = "u"
jwt = { each = "/tokens", algorithms = ["RS256"], jwks_url = "https://keys.example.com/" }
[sources.detached]
path = "/detached"
upstream = "u"
jwt = { header = "Authorization", payload = "body", algorithms = ["RS512"], jwks_url = "https://keys.example.com/" }
[sources.composed]
path = "/composed"
upstream = "u"
[sources.composed.jwt]
header = "Authorization"
payload = "truelayer"
algorithms = ["ES512"]
jku = ["https://keys.example.com/"]
required_headers = ["X-A"]
[sources.secret]
path = "/secret"
secrets = [{ value = "0123456789abcdef0123456789abcdef" }]
upstream = "u"
each_secret = { array = "/value", member = "/clientState" }
"#;

/// Tokens. The first byte chooses the source; then the values of Authorization and another header, the query and the
/// body, parted by 0x00. A second form of the same bytes is a header, a payload and a signature that are put together
/// into a token, so that what stands in them is reached.
pub fn jwt(data: &[u8]) {
    static SOURCES_READ: OnceLock<Vec<config::Source>> = OnceLock::new();
    let sources = SOURCES_READ.get_or_init(|| {
        let loaded = config::load_text(TOKENS, &|_| None);
        loaded.config.expect("the sources above load").plan.sources
    });
    let Some((first, rest)) = data.split_first() else { return };
    let Some(source) = sources.get(usize::from(*first & 0x7f) % sources.len()) else { return };
    let mut parts = rest.splitn(4, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (one, other, query, body) = (next(), next(), next(), next());
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let token = format!("{}.{}.{}", encode(one), encode(other), encode(query)).into_bytes();
    let (token, body) = if *first & 0x80 == 0 { (one, body) } else { (token.as_slice(), token.as_slice()) };
    let mut headers = HeaderMap::new();
    for (name, value) in [("authorization", token), ("x-a", other)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let delivery = Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".to_owned(),
        path: "/x".to_owned(),
        query: Some(String::from_utf8_lossy(query).into_owned()),
        headers,
        body: Bytes::copy_from_slice(body),
    };
    let judged = source.verifier.judge(delivery, UnixMillis::from_secs(1_760_000_000), &NoLibrary);
    assert!(judged.is_err(), "proven without a key");
}

/// A certificate, as a request could name or bring it, and whom it is said to lead to; and the url that it is named by.
pub fn certificate(data: &[u8]) {
    static PUBLIC: OnceLock<Roots> = OnceLock::new();
    let roots = PUBLIC.get_or_init(Roots::public);
    let now = UnixMillis::from_secs(1_760_000_000);
    let der = vec![CertificateDer::from(data.to_vec())];
    for chain in [Chain::from_pem(data), Chain::from_der(der)].into_iter().flatten() {
        // A real one may well be there.
        let _ = chain.check(roots, now);
        let _ = (chain.check_time(now), chain.common_name(), chain.has_dns_name("example.com"));
        let _ = chain.has_extension(0, "1.2.840.113635.100.6.11.1");
    }
    // Nor is it wrong to be a root.
    let _ = Roots::read(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let sns = UrlRule { host: HostRule::Sns, path: PathRule::SnsCertificate, port_may_be_said: false };
        if let Some(url) = sns.allows(text) {
            let host = url.split('/').nth(2).unwrap_or_default();
            assert!(
                host.starts_with("sns.") && (host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn"))
            );
        }
    }
}

/// A message template, as a user could write it.
pub fn template(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        // Most texts are no template; that is the point.
        let _ = Template::parse(text);
    }
}

/// A saved request in any of its formats; the first byte chooses an entry.
pub fn saved_request(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let entry = (*first < 8).then_some(usize::from(*first));
    if let Ok(saved) = SavedRequest::parse(rest, entry, None) {
        let delivery = saved.into_delivery("https", "hooks.example.com");
        assert!(delivery.path.starts_with('/') && delivery.body.len() <= rest.len());
    }
}

/// A whole configuration, as a user could write it.
pub fn configuration(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        for problem in config::load_text(text, &|_| None).problems {
            // What is told must be tellable.
            assert!(!problem.to_string().is_empty());
        }
    }
}
