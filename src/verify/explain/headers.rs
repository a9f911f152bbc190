//! Headers that something doubled, renamed, quoted or took away.

use crate::fields::Fields;
use http::{HeaderName, HeaderValue};

use super::Change;
use super::hints::Search;
use crate::delivery::Delivery;

/// Those that hold no proof.
const PLAIN: [&str; 14] = [
    "accept",
    "accept-encoding",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "forwarded",
    "host",
    "transfer-encoding",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
];
const MOST_NAMES: usize = 64;

pub(super) fn try_all(search: &mut Search<'_>) {
    let original = search.case.delivery;
    let names: Vec<HeaderName> = original.headers.keys().take(MOST_NAMES).cloned().collect();
    for name in &names {
        try_doubled(search, name);
        try_quoted(search, name);
    }
    for name in names.iter().filter(|name| !PLAIN.contains(&name.as_str())) {
        for (key, kind, what) in [
            ("verify.signature", "header_name", "signature"),
            ("verify.timestamp", "timestamp_header_name", "timestamp"),
        ] {
            let header = format!("{key}.header");
            let headers = format!("{key}.headers");
            let Some(expected) = search.case.workshop.setting(search.case.source, &header) else { continue };
            if expected.eq_ignore_ascii_case(name.as_str()) {
                continue;
            }
            let change = [(header.as_str(), Some(name.as_str())), (headers.as_str(), None)];
            if let Some(passed) = search.passes_with(&Change::Set(&change)) {
                let says = format!("the {what} stands in the header {name}, and the source looks for {expected}");
                let try_this = format!("{key}.header = \"{name}\", or let whoever renames it keep the name");
                search.tell_passed(passed, kind, says, try_this);
            }
        }
    }
    try_credentials(search, &names);
}

/// The same header twice is refused; one of the two, or of the halves of `a, a`, may be the sender's.
fn try_doubled(search: &mut Search<'_>, name: &HeaderName) {
    let values: Vec<_> = search.case.delivery.headers.get_all(name).take(3).cloned().collect();
    let candidates: Vec<HeaderValue> = match values.as_slice() {
        [one] => {
            let halves = one.to_str().ok().and_then(|text| {
                let middle = text
                    .match_indices(',')
                    .map(|(at, _)| at)
                    .find(|at| text.get(..*at).map(str::trim) == text.get(at + 1..).map(str::trim))?;
                HeaderValue::from_str(text.get(..middle)?.trim()).ok()
            });
            halves.into_iter().collect()
        }
        several => several.to_vec(),
    };
    for value in candidates {
        if let Some(passed) = search.passes(with_header(search.case.delivery, name, value)) {
            let says = format!("the header {name} is doubled; with one of them alone the request passes");
            search.tell_passed(passed, "header_doubled", says, "find the proxy or client that adds it a second time");
            return;
        }
    }
}

fn try_quoted(search: &mut Search<'_>, name: &HeaderName) {
    let value = search.case.delivery.headers.get(name).and_then(|value| value.to_str().ok());
    let Some(bare) = value.and_then(unquoted).and_then(|bare| HeaderValue::from_str(bare).ok()) else { return };
    if let Some(passed) = search.passes(with_header(search.case.delivery, name, bare)) {
        let says = format!("the value of the header {name} stands in quotation marks");
        search.tell_passed(passed, "header_quoted", says, "send the value as it is");
    }
}

pub(super) fn unquoted(text: &str) -> Option<&str> {
    let text = text.trim();
    ['"', '\'', '`'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

/// A bearer token or password without, or with, its scheme; in the header of another credential.
fn try_credentials(search: &mut Search<'_>, names: &[HeaderName]) {
    let original = search.case.delivery;
    let authorization = http::header::AUTHORIZATION;
    let wanted: Vec<HeaderName> = [
        search.case.workshop.setting(search.case.source, "token.header").and_then(|name| name.parse().ok()),
        Some(authorization.clone()),
    ]
    .into_iter()
    .flatten()
    .collect();
    for target in &wanted {
        for name in names.iter().filter(|name| !PLAIN.contains(&name.as_str())) {
            let Some(text) = original.headers.get(name).and_then(|value| value.to_str().ok()) else { continue };
            let bare = text.split_once(' ').map_or(text, |(_, bare)| bare).trim();
            for candidate in [text.to_owned(), bare.to_owned(), format!("Bearer {bare}"), format!("Basic {bare}")] {
                if name == target && candidate == text {
                    continue;
                }
                let Ok(value) = HeaderValue::from_str(&candidate) else { continue };
                if let Some(passed) = search.passes(with_header(original, target, value)) {
                    let says = if name == target {
                        format!(
                            "the credential in {name} is right, and its form is not (`Bearer …`, `Basic …` or bare)"
                        )
                    } else {
                        format!("the credential stands in the header {name}, and the source looks for it in {target}")
                    };
                    search.tell_passed(
                        passed,
                        "credential_place",
                        says,
                        "compare `basic`, `bearer` and `token` with what the sender sends",
                    );
                }
            }
        }
    }
}

/// What the proofs look for and the request lacks: not tried, for nobody knows the value.
pub(super) fn suppose_missing(search: &mut Search<'_>) {
    let mut missing: Vec<_> = search.verifier.proofs.iter().flat_map(|proof| proof.headers()).collect();
    missing.retain(|name| !search.case.delivery.headers.contains_key(name));
    missing.dedup();
    if missing.is_empty() {
        return;
    }
    let names: Vec<_> = missing.iter().map(|name| name.as_str()).collect();
    let says = format!("the proof needs the header {}, and the request lacks it", names.join(", "));
    let underscored = |name: &HeaderName| search.case.delivery.headers.contains_key(&*name.as_str().replace('-', "_"));
    let try_this = match missing.iter().any(underscored) {
        true => "a proxy wrote `_` for `-` in its name".to_owned(),
        false => "let every proxy in front pass it on; was the request saved with all its headers?".to_owned(),
    };
    search.tell("header_missing", says, try_this);
}

fn with_header(delivery: &Delivery, name: &HeaderName, value: HeaderValue) -> Delivery {
    let mut headers: Fields = delivery.headers.clone();
    headers.insert(name, value);
    Delivery { headers, ..delivery.clone() }
}
