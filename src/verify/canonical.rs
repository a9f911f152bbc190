//! The canonical forms that single senders sign: lists of headers that a request names itself, a target encoded once more.
//!
//! Invariant: a list holds names and nothing else, so that no header's value can stand for two headers, or a name for a
//! value; and what must be in a list is in it.

use std::borrow::Cow;

use http::HeaderName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::fields::Found;
use super::template::header;
use crate::delivery::Delivery;

/// More signed headers than this no sender names.
const MAX_SIGNED_HEADERS: usize = 64;

/// `a b.1.2`. A name with a dot could swallow values, and so shift what is signed: it is refused. So is a value with what
/// JSON begins with: the start of the body could stand in the last one. Dots in values stay, for names of events have them.
pub(super) fn named_headers(delivery: &Delivery, names: &str) -> Found<'static> {
    let names = names.to_ascii_lowercase();
    let names: Vec<&str> = names.split(' ').filter(|name| !name.is_empty()).collect();
    if names.len() > MAX_SIGNED_HEADERS || names.iter().any(|name| name.contains('.')) {
        return Found::Ambiguous;
    }
    let mut message = names.join(" ").into_bytes();
    message.push(b'.');
    for (position, name) in names.iter().enumerate() {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return Found::Ambiguous };
        match header(delivery, &name) {
            Found::Value(value) if value.iter().any(|byte| b"{[".contains(byte)) => return Found::Ambiguous,
            Found::Value(value) => {
                if position > 0 {
                    message.push(b'.');
                }
                message.extend_from_slice(&value);
            }
            Found::Absent | Found::Ambiguous => return Found::Ambiguous,
        }
    }
    Found::Value(Cow::Owned(message))
}

/// `a:1;b:2`, sorted by name. The list must name itself and hold nothing but names: else a header's value could stand
/// for several headers, and the time would no longer be signed.
pub(super) fn signed_headers(delivery: &Delivery, list: &HeaderName, needed: &[HeaderName]) -> Found<'static> {
    let names = match header(delivery, list) {
        Found::Value(names) => String::from_utf8(names.into_owned()),
        Found::Absent => return Found::Absent,
        Found::Ambiguous => return Found::Ambiguous,
    };
    let Ok(names) = names else { return Found::Ambiguous };
    let mut named: Vec<(&str, HeaderName)> = Vec::new();
    for name in names.split(',').take(MAX_SIGNED_HEADERS + 1) {
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else { return Found::Ambiguous };
        named.push((name, header));
    }
    let lacks = |wanted: &HeaderName| !named.iter().any(|(_, name)| name == wanted);
    if named.len() > MAX_SIGNED_HEADERS || lacks(list) || needed.iter().any(lacks) {
        return Found::Ambiguous;
    }
    named.sort_by_key(|(text, _)| *text);
    let mut lines: Vec<Vec<u8>> = Vec::with_capacity(named.len());
    let mut absent: Vec<String> = Vec::new();
    for (text, name) in &named {
        match header(delivery, name) {
            Found::Value(value) => lines.push([text.as_bytes(), b":", &value].concat()),
            // The sender leaves out what it does not send.
            Found::Absent => absent.push(format!(";{text}:")),
            Found::Ambiguous => return Found::Ambiguous,
        }
    }
    // What is left out must not stand in the value of another.
    let folds = |line: &[u8]| absent.iter().any(|name| line.windows(name.len()).any(|part| part == name.as_bytes()));
    if lines.iter().any(|line| folds(line)) {
        return Found::Ambiguous;
    }
    Found::Value(Cow::Owned(lines.join(&b";"[..])))
}

/// What `encodeURI` leaves alone, and what `querystring.escape` does: Contentful's sender runs one over the other.
const URI: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'?')
    .remove(b'@')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn encoded_target(delivery: &Delivery) -> String {
    let target = match delivery.query.as_deref() {
        Some(query) if !query.is_empty() => format!("{}?{}", delivery.path, utf8_percent_encode(query, QUERY)),
        Some(_) | None => delivery.path.clone(),
    };
    utf8_percent_encode(&target, URI).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::{HeaderValue, Method};

    fn with(headers: &[(&'static str, &'static str)], path: &str, query: Option<&str>) -> Delivery {
        let mut map = Fields::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "h".into(),
            path: path.into(),
            query: query.map(str::to_owned),
            headers: map,
            body: Bytes::new(),
        }
    }

    fn text(found: Found<'_>) -> Option<String> {
        match found {
            Found::Value(text) => String::from_utf8(text.into_owned()).ok(),
            Found::Absent | Found::Ambiguous => None,
        }
    }

    #[test]
    fn named_headers_are_there_once_and_have_no_dot_in_their_names() {
        let delivery = with(&[("x-a", "1"), ("x-b", "2.3"), ("x-c", "4"), ("x-c", "5"), ("x-a.1", "6")], "/", None);
        let named = |names| text(named_headers(&delivery, names));
        assert_eq!(named("x-a X-B").as_deref(), Some("x-a x-b.1.2.3"));
        assert_eq!(named("").as_deref(), Some("."));
        // A name with a dot could hold what is a value to the sender.
        for refused in ["x-a.1", "x-d", "x-c", "x-a\tx-b"] {
            assert_eq!(named(refused), None, "{refused}");
        }
        let many = vec!["x-a"; MAX_SIGNED_HEADERS + 1].join(" ");
        assert_eq!(text(named_headers(&delivery, &many)), None);
    }

    #[test]
    fn a_list_of_signed_headers_names_itself_and_the_time_and_holds_only_names() {
        let (list, time) = (HeaderName::from_static("x-list"), HeaderName::from_static("x-time"));
        let signed = |names: &'static str| {
            let delivery = with(&[("x-list", names), ("x-time", "9"), ("a", "1;x-list:a"), ("b", "2")], "/", None);
            text(signed_headers(&delivery, &list, std::slice::from_ref(&time)))
        };
        assert_eq!(signed("x-time,b,x-list").as_deref(), Some("b:2;x-list:x-time,b,x-list;x-time:9"));
        assert_eq!(signed("x-time,gone,x-list").as_deref(), Some("x-list:x-time,gone,x-list;x-time:9"));
        // Without the time it would not be signed; with `;` or `:` in a name one header could read as two.
        for refused in ["b,x-list", "x-time,b", "x-time,x-list;b:2", "x-time, x-list", "x-time,,x-list", ""] {
            assert_eq!(signed(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_target_is_encoded_once_more() {
        let target = |path: &str, query| encoded_target(&with(&[], path, query));
        assert_eq!(target("/a%20b", None), "/a%2520b");
        assert_eq!(target("/in", Some("a=b&c=d%20e")), "/in?a%253Db%2526c%253Dd%252520e");
        assert_eq!(target("/in", Some("")), "/in");
    }
}
