//! Configurations that would fit: the secret read in another way, one setting of the scheme changed, another preset.

use super::Change;
use super::headers::unquoted;
use super::hints::Search;

type Rewrite = fn(&str) -> Option<String>;

/// Kind, what is amiss, what to try, and the secret as it would be.
const SECRETS: &[(&str, &str, &str, Rewrite)] = &[
    (
        "secret_whitespace",
        "the configured secret has white space around it, and the sender's has not",
        "store it without: printf %s, not echo",
        |text| other(text, text.trim()),
    ),
    (
        "secret_whitespace",
        "the sender's secret ends with a line end, and the configured one does not",
        "enter it at the provider again, without the line end",
        |text| Some(format!("{text}\n")),
    ),
    (
        "secret_quotes",
        "the configured secret stands in quotation marks, and the sender's does not",
        "take the quotation marks away; .env files and shells differ in whether they do",
        |text| unquoted(text).map(str::to_owned),
    ),
    (
        "secret_prefix",
        "the configured secret has a prefix that the key has not",
        "verify.key.strip_prefix, or store it without",
        |text| {
            let (_, behind) = text.split_once('_')?;
            let behind = behind.rsplit('_').next().unwrap_or(behind);
            other(text, behind)
        },
    ),
    (
        "secret_prefix",
        "the configured secret lacks the prefix `whsec_`, which belongs to the key",
        "copy the whole secret, prefix included",
        |text| (!text.starts_with("whsec_")).then(|| format!("whsec_{text}")),
    ),
    ("secret_case", "the secret was written in the other case", "copy it as the provider shows it", |text| {
        other(text, &text.to_ascii_lowercase())
    }),
    ("secret_case", "the secret was written in the other case", "copy it as the provider shows it", |text| {
        other(text, &text.to_ascii_uppercase())
    }),
    (
        "secret_url_encoded",
        "the configured secret is percent-encoded, and the sender's is not",
        "decode it once",
        |text| {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8().ok()?;
            other(text, &decoded)
        },
    ),
    (
        "secret_base64_twice",
        "the configured secret is the base64 of the sender's",
        "decode it once; a Kubernetes manifest encodes what it holds",
        |text| {
            use base64::Engine as _;
            let bytes = super::super::key::BASE64.decode(text.trim()).ok()?;
            let decoded = String::from_utf8(bytes).ok()?;
            let decoded = decoded.trim_end_matches('\n');
            // What decodes to anything else is a key in base64.
            decoded.bytes().all(|byte| byte.is_ascii_graphic()).then(|| decoded.to_owned())
        },
    ),
];

/// Templates that providers like to use.
const MESSAGES: &[&str] = &[
    "{body}",
    "{timestamp}.{body}",
    "{timestamp}{body}",
    "{timestamp}:{body}",
    "v0:{timestamp}:{body}",
    "{body}{timestamp}",
    "{body}.{timestamp}",
    "{url}{body}",
    "{body|sha256|hex}",
    "{method}{path}{body}",
    "{timestamp}{method}{path}{body}",
    "{method}{url}{body}",
];

fn other(text: &str, changed: &str) -> Option<String> {
    (changed != text && !changed.is_empty()).then(|| changed.to_owned())
}

fn setting(search: &Search<'_>, key: &str) -> Option<String> {
    search.case.workshop.setting(search.case.source, key)
}

pub(super) fn try_secrets(search: &mut Search<'_>) {
    for (kind, says, try_this, rewrite) in SECRETS {
        if let Some(passed) = search.passes_with(&Change::Secrets(*rewrite)) {
            search.tell_passed(passed, kind, *says, *try_this);
        }
    }
    let now = setting(search, "verify.key.encoding").unwrap_or_else(|| "utf8".to_owned());
    for encoding in ["utf8", "hex", "base64", "base64url"] {
        for prefix in [None, Some("whsec_")] {
            let change = [("verify.key.encoding", Some(encoding)), ("verify.key.strip_prefix", prefix)];
            if let Some(passed) = search.passes_with(&Change::Set(&change)) {
                if encoding == now {
                    let says = "the key is the secret with, or without, its prefix";
                    let value = prefix.map_or("leave it out".to_owned(), |prefix| format!("{prefix:?}"));
                    search.tell_passed(passed, "secret_prefix", says, format!("verify.key.strip_prefix: {value}"));
                } else {
                    let says = format!("the sender reads the secret as {encoding}, and here it is read as {now}");
                    search.tell_passed(
                        passed,
                        "secret_encoding",
                        says,
                        format!("verify.key.encoding = \"{encoding}\""),
                    );
                }
            }
        }
    }
}

pub(super) fn try_settings(search: &mut Search<'_>) {
    if setting(search, "verify.message").is_none() {
        return;
    }
    let algorithm_now = setting(search, "verify.algorithm").unwrap_or_default();
    for algorithm in ["hmac-sha256", "hmac-sha1", "hmac-sha512", "hmac-sha384"] {
        one(search, "algorithm", "verify.algorithm", algorithm, &algorithm_now, "the sender signs with");
    }
    let encoding_now = setting(search, "verify.signature.encoding").unwrap_or_else(|| "hex".to_owned());
    for encoding in ["hex", "base64", "base64url"] {
        let what = "the signature is written in";
        one(search, "signature_encoding", "verify.signature.encoding", encoding, &encoding_now, what);
    }
    try_prefixes(search);
    let message_now = setting(search, "verify.message").unwrap_or_default();
    for message in MESSAGES {
        one(search, "message", "verify.message", message, &message_now, "the sender signs the message");
    }
    // Two that often come together: another hash in another writing.
    for algorithm in ["hmac-sha256", "hmac-sha1", "hmac-sha512"] {
        for encoding in ["hex", "base64", "base64url"] {
            let change = [("verify.algorithm", Some(algorithm)), ("verify.signature.encoding", Some(encoding))];
            if let Some(passed) = search.passes_with(&Change::Set(&change)) {
                let says = format!("the sender signs with {algorithm} and writes the signature in {encoding}");
                let try_this =
                    format!("verify.algorithm = \"{algorithm}\", verify.signature.encoding = \"{encoding}\"");
                search.tell_passed(passed, "algorithm", says, try_this);
            }
        }
    }
}

fn one(search: &mut Search<'_>, kind: &'static str, key: &'static str, value: &str, now: &str, what: &str) {
    if value == now {
        return;
    }
    if let Some(passed) = search.passes_with(&Change::Set(&[(key, Some(value))])) {
        let says = format!("{what} {value}, and the source expects {now}");
        search.tell_passed(passed, kind, says, format!("{key} = \"{value}\""));
    }
}

/// `sha256=…` where none is expected, or none where it is.
fn try_prefixes(search: &mut Search<'_>) {
    let now = setting(search, "verify.signature.prefix").unwrap_or_default();
    let header = setting(search, "verify.signature.header");
    let value = header.and_then(|name| search.case.delivery.headers.get(name.as_str()));
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Padding is no prefix.
    let bare = value.trim().trim_end_matches('=');
    let found = bare.rfind(['=', ',', ':', ' ']).and_then(|end| bare.get(..=end)).unwrap_or_default();
    for prefix in [found, "", "sha256=", "sha1=", "sha512=", "v0=", "v1=", "v1,"] {
        if prefix == now {
            continue;
        }
        if let Some(passed) = search.passes_with(&Change::Set(&[("verify.signature.prefix", Some(prefix))])) {
            let says = format!("the signature begins with {prefix:?}, and the source expects {now:?} before it");
            let try_this = format!("verify.signature.prefix = {prefix:?}");
            search.tell_passed(passed, "signature_prefix", says, try_this);
        }
    }
}

pub(super) fn try_units(search: &mut Search<'_>) {
    let now = setting(search, "verify.timestamp.unit").unwrap_or_else(|| "s".to_owned());
    for unit in ["s", "ms", "rfc3339", "http-date"] {
        one(search, "timestamp_unit", "verify.timestamp.unit", unit, &now, "the timestamp is written in");
    }
}

pub(super) fn try_other_sources(search: &mut Search<'_>) {
    for source in search.case.workshop.other_sources(search.case.source).into_iter().take(200) {
        if let Some(passed) = search.passes_with(&Change::SecretsOf(&source)) {
            let says =
                format!("it is signed with the secret of sources.{source}: another environment, or another endpoint");
            let try_this = "give the provider's endpoint and the source the same secret; test and live secrets differ";
            search.tell_passed(passed, "secret_of_another_source", says, try_this);
        }
    }
}

pub(super) fn try_providers(search: &mut Search<'_>) {
    let now = setting(search, "provider").unwrap_or_default();
    for provider in search.case.workshop.providers() {
        if provider == now {
            continue;
        }
        if let Some(passed) = search.passes_with(&Change::Provider(&provider)) {
            let says = format!("this is signed as {provider} signs, with the source's secret");
            search.tell_passed(passed, "other_provider", says, format!("provider = \"{provider}\""));
        }
    }
}
