//! The doors for fuzz targets: each takes bytes that a stranger could have chosen and must neither panic nor hang.
//!
//! Built with `--cfg fuzzing` alone (cargo fuzz sets it), so that no other build has them.

mod http1;
mod route;
mod stored;

pub use http1::http1;
pub use route::route;
pub use stored::stored;

use crate::cli::saved_request::SavedRequest;
use crate::clock::UnixMillis;
use crate::config;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::fields::Fields;
use crate::gateway::explain::{self, Question};
use crate::secret::Secret;
use crate::verify::{Chain, Change, HostRule, PathRule, Roots, Template, UrlRule, Verifier, Workshop};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use rustls_pki_types::CertificateDer;
use std::sync::{Arc, OnceLock};

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);

fn sources(text: &str) -> Vec<config::Source> {
    config::load_text(text, &|_| None).config.expect("the sources of a target load").plan.sources
}

fn delivery(query: Option<&[u8]>, headers: Fields, body: &[u8]) -> Delivery {
    Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".to_owned(),
        path: "/x".to_owned(),
        query: query.map(|query| String::from_utf8_lossy(query).into_owned()),
        headers,
        body: Bytes::copy_from_slice(body),
    }
}

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

/// The sources above, and one of every preset: with what the preset says that a source has to bring along, and with the
/// first of these texts that it takes for a secret.
fn judged_sources() -> Vec<Probe> {
    const SECRETS: [&str; 5] = [
        r#"[{ value = "0123456789abcdef0123456789abcdef", id = "a" }]"#,
        r#"[{ value = "0123456789abcdef0123456789abcdef" }]"#,
        r#"[{ value = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" }]"#,
        r#"[{ value = "e5a174f2a69dd48056de1b374d70c6123c918d63982c0be7cac55e27f5c62d80" }]"#,
        r#"[{ value = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D7gS2XpJFbZiItSs3m9+9Ue6GnvHw/GW2ZZaVtszggXIw==", id = "a" }]"#,
    ];
    let mut text = SOURCES.to_owned();
    let mut left_out = Vec::new();
    let head = &SOURCES[..SOURCES.find("[sources").unwrap_or_default()];
    let presets = config::providers(None).0;
    for provider in &presets {
        let name = &provider.preset;
        let mut source =
            format!("[sources.preset-{name}]\npath = \"/preset/{name}\"\nprovider = {name:?}\nupstream = \"u\"\n");
        for need in provider.needs.iter().filter(|need| **need != "secrets") {
            source.push_str(&match *need {
                "public_url" => "public_url = \"https://hooks.example.com/x\"\n".to_owned(),
                "handshake.token" => "handshake.token = { value = \"0123456789abcdef\" }\n".to_owned(),
                list if list.ends_with('s') => format!("{list} = [\"https://example.com\"]\n"),
                word => format!("{word} = \"answer\"\n"),
            });
        }
        let with_secrets = |secrets: &&str| format!("{source}secrets = {secrets}\n");
        let loads = |source: &String| config::load_text(&format!("{head}{source}"), &|_| None).config.is_some();
        match SECRETS.iter().map(with_secrets).chain([source.clone()]).find(loads) {
            Some(source) => text.push_str(&source),
            None => left_out.push(&provider.preset),
        }
    }
    // Those that take a certificate, another form of key, or more than one secret.
    assert!(left_out.len() < 30, "too many presets take none of these secrets: {left_out:?}");
    let preset = |source: &config::Source| {
        let named = presets.iter().find(|preset| source.name.strip_prefix("preset-") == Some(&preset.preset));
        named.map_or("", |preset| &preset.text)
    };
    sources(&text)
        .into_iter()
        .map(|source| (preset(&source), source))
        .map(|(preset, source)| Probe::new(source, preset))
        .collect()
}

/// The headers that stand in code alone.
const PLATFORMS: [(&str, &[&str]); 3] = [
    ("alexa", &["signature-256", "signaturecertchainurl"]),
    (
        "paypal",
        &[
            "paypal-auth-algo",
            "paypal-cert-url",
            "paypal-transmission-id",
            "paypal-transmission-sig",
            "paypal-transmission-time",
        ],
    ),
    (
        "adobe-io",
        &[
            "x-adobe-digital-signature-1",
            "x-adobe-public-key1-path",
            "x-adobe-digital-signature-2",
            "x-adobe-public-key2-path",
        ],
    ),
];

/// A source, and the headers that its sender writes.
struct Probe {
    source: config::Source,
    headers: Vec<HeaderName>,
}

impl Probe {
    fn new(source: config::Source, preset: &str) -> Self {
        let mut headers = Vec::new();
        // Not all of them are headers, which does no harm.
        for line in preset.lines().filter(|line| line.contains("header")) {
            headers.extend(line.split('"').skip(1).step_by(2).filter_map(|name| name.parse::<HeaderName>().ok()));
        }
        let theirs = PLATFORMS.iter().find(|(preset, _)| source.name.ends_with(preset)).map(|(_, headers)| *headers);
        headers.extend(theirs.into_iter().flatten().map(|name| HeaderName::from_static(name)));
        // A standard's headers stand in no preset.
        if let Ok(draft) = source.verifier.sign(delivery(None, Fields::new(), b"{}"), "id-1", NOW, None) {
            headers.extend(draft.delivery.headers.into_iter().map(|(name, _)| name));
        }
        headers.extend(["authorization", "content-type"].map(HeaderName::from_static));
        headers.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        headers.dedup();
        Self { source, headers }
    }

    /// Which probe, what it is asked, and is that to be signed before? Two bytes choose; then the query, the body and
    /// the values of the probe's own headers, parted by 0x00.
    fn of(data: &[u8]) -> Option<(&'static Self, Delivery, bool)> {
        static PROBES: OnceLock<Vec<Probe>> = OnceLock::new();
        let probes = PROBES.get_or_init(judged_sources);
        let ([first, second], rest) = data.split_first_chunk()?;
        let probe = probes.get(usize::from(*first) % probes.len())?;
        let mut parts = rest.splitn(2 + probe.headers.len(), |byte| *byte == 0);
        let (query, body) = (parts.next().filter(|query| !query.is_empty()), parts.next().unwrap_or_default());
        let named = probe.headers.iter().zip(parts).filter_map(|(name, value)| {
            (!value.is_empty()).then(|| Some((name.clone(), HeaderValue::from_bytes(value).ok()?)))?
        });
        Some((probe, delivery(query, named.collect(), body), second % 4 == 0))
    }
}

/// Two bytes choose a source, and whether its sender signs what follows: whoever has no key is never believed, and the
/// provider's own customers choose bytes too.
pub fn judge(data: &[u8]) {
    let Some((Probe { source, .. }, delivery, is_signed)) = Probe::of(data) else { return };
    if is_signed {
        if let Ok(draft) = source.verifier.sign(delivery, "id-1", NOW, None) {
            // It may well hold what its sender would not write.
            let _ = source.verifier.judge(draft.delivery, NOW, &NoLibrary);
        }
        return;
    }
    let _ = source.verifier.ask(&delivery);
    match source.verifier.judge(delivery, NOW, &NoLibrary) {
        Err(_) => {}
        Ok(verified) => assert!(!source.verifier.has_signature(), "proven without a key: {:?}", verified.checks()),
    }
}

/// What `judge` takes, explained.
pub fn explain(data: &[u8]) {
    struct Bench(Arc<Verifier>);
    /// Whatever is changed changes nothing, so that every hint is tried to its end.
    impl Workshop for Bench {
        fn rebuilt(&self, _source: &str, _change: &Change<'_>) -> Option<Arc<Verifier>> {
            Some(self.0.clone())
        }
        fn providers(&self) -> Vec<String> {
            vec!["github".to_owned()]
        }
        fn other_sources(&self, _source: &str) -> Vec<String> {
            vec!["stripe".to_owned()]
        }
        fn setting(&self, _source: &str, _key: &str) -> Option<String> {
            None
        }
        fn secrets(&self, _source: &str) -> Option<Vec<Secret>> {
            Some(vec![Secret::new("0123456789abcdef".into())])
        }
    }
    let Some((Probe { source, .. }, delivery, _)) = Probe::of(data) else { return };
    let workshop = Bench(source.verifier.clone());
    let question = Question {
        settings: source,
        delivery: &delivery,
        now: NOW,
        library: &NoLibrary,
        workshop: &workshop,
        for_its_owner: data.len() % 2 == 0,
    };
    let _ = explain::explain(&question);
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
    let sources = SOURCES_READ.get_or_init(|| sources(STANDARDS));
    let Some((first, rest)) = data.split_first() else { return };
    let Some(source) = sources.get(usize::from(*first) % sources.len()) else { return };
    let mut parts = rest.splitn(6, |byte| *byte == 0);
    let mut headers = Fields::new();
    let names: [&[&str]; 4] =
        [&["signature-input"], &["signature", "x-hub-signature"], &["content-digest", "digest"], &["x-a", "date"]];
    for names in names {
        if let Some(value) = parts.next().and_then(|value| HeaderValue::from_bytes(value).ok()) {
            for name in names {
                headers.append(HeaderName::from_static(name), value.clone());
            }
        }
    }
    let delivery = delivery(parts.next(), headers, parts.next().unwrap_or_default());
    let judged = source.verifier.judge(delivery, NOW, &NoLibrary);
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
    let sources = SOURCES_READ.get_or_init(|| sources(TOKENS));
    let Some((first, rest)) = data.split_first() else { return };
    let Some(source) = sources.get(usize::from(*first & 0x7f) % sources.len()) else { return };
    let mut parts = rest.splitn(4, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (one, other, query, body) = (next(), next(), next(), next());
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let token = format!("{}.{}.{}", encode(one), encode(other), encode(query)).into_bytes();
    let (token, body) = if *first & 0x80 == 0 { (one, body) } else { (token.as_slice(), token.as_slice()) };
    let mut headers = Fields::new();
    for (name, value) in [("authorization", token), ("x-a", other)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let judged = source.verifier.judge(delivery(Some(query), headers, body), NOW, &NoLibrary);
    assert!(judged.is_err(), "proven without a key");
}

/// A certificate, as a request could name or bring it, and whom it is said to lead to; and the url that it is named by.
pub fn certificate(data: &[u8]) {
    static PUBLIC: OnceLock<Roots> = OnceLock::new();
    let roots = PUBLIC.get_or_init(Roots::public);
    let der = vec![CertificateDer::from(data.to_vec())];
    for chain in [Chain::from_pem(data), Chain::from_der(der)].into_iter().flatten() {
        // A real one may well be there.
        let _ = chain.check(roots, NOW);
        let _ = (chain.check_time(NOW), chain.common_name(), chain.has_dns_name("example.com"));
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
