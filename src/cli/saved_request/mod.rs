//! A request that somebody saved, read back: a raw HTTP/1.1 message, what `curl -v` printed, an audit line or a HAR export.
//!
//! Invariant: the bytes are a stranger's. Reading them is bounded in size and never panics; the body is kept byte for
//! byte; what had to be guessed or left out is said in a note. Which format it is follows from the first bytes alone.

mod curl;
mod http1;
mod json;

use crate::delivery::Delivery;
use crate::fields::Fields;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use thiserror::Error;

/// A HAR export of a busy page has several megabytes; a webhook's body seldom has one.
pub(crate) const LARGEST_FILE: usize = 64 << 20;

/// A head is a few kilobytes; servers take some tens.
const LARGEST_HEAD: usize = 1 << 20;
const MOST_HEADERS: usize = 1000;

/// One request, as far as the file tells it.
#[derive(Clone, Debug)]
pub(crate) struct SavedRequest {
    pub(crate) method: Method,
    /// `None`: the file does not say.
    pub(crate) scheme: Option<&'static str>,
    pub(crate) authority: Option<String>,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: Fields,
    /// `None`: the format does not show bodies, or this file lacks it.
    pub(crate) body: Option<Bytes>,
    /// The source that an audit line names.
    pub(crate) source: Option<String>,
    pub(crate) format: Format,
    /// What was guessed or left out, for a person.
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Http,
    Curl,
    Audit,
    Har,
}

/// Where a saved request cannot be read, what is wrong there, and what to try.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}{what}; {try_this}")]
pub(crate) struct Unreadable {
    place: String,
    pub(crate) what: String,
    pub(crate) try_this: String,
}

impl Unreadable {
    fn new(what: impl Into<String>, try_this: impl Into<String>) -> Self {
        Self { place: String::new(), what: what.into(), try_this: try_this.into() }
    }

    fn at_line(line: usize, what: impl Into<String>, try_this: impl Into<String>) -> Self {
        Self { place: format!("line {line}: "), what: what.into(), try_this: try_this.into() }
    }
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "an HTTP message",
            Self::Curl => "the output of curl -v",
            Self::Audit => "an audit line",
            Self::Har => "a HAR export",
        }
    }
}

impl SavedRequest {
    /// `entry`: which request of a file with several, from 1. `body`: instead of the file's own.
    pub(crate) fn parse(bytes: &[u8], entry: Option<usize>, body: Option<Bytes>) -> Result<Self, Unreadable> {
        if bytes.len() > LARGEST_FILE {
            return Err(Unreadable::new(
                format!("the file has more than {} MiB", LARGEST_FILE >> 20),
                "save the one request alone",
            ));
        }
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let start = text.trim_ascii_start();
        if start.is_empty() {
            return Err(Unreadable::new("there is nothing in it", "was the request saved?"));
        }
        let mut saved = if start.starts_with(b"{") {
            json::parse(start, entry)?
        } else if curl::is_one(text) {
            curl::parse(text, entry)?
        } else if json::is_text_line(start) {
            json::parse_text_lines(start, entry)?
        } else {
            http1::parse(start, entry)?
        };
        if let Some(body) = body {
            saved.body = Some(body);
        }
        Ok(saved)
    }

    /// The delivery that the gateway would have judged. `scheme` and `authority` stand in for what the file leaves open.
    pub(crate) fn into_delivery(self, scheme: &'static str, authority: &str) -> Delivery {
        Delivery {
            method: self.method,
            scheme: self.scheme.unwrap_or(scheme),
            authority: self.authority.unwrap_or_else(|| authority.to_owned()),
            path: self.path,
            query: self.query,
            headers: self.headers,
            body: self.body.unwrap_or_default(),
        }
    }
}

/// Where a request goes, from the target of its first line or from a whole url.
struct Target {
    scheme: Option<&'static str>,
    authority: Option<String>,
    path: String,
    query: Option<String>,
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic() || byte >= 0x80) {
            return None;
        }
        let text = text.split('#').next().unwrap_or_default();
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some("https"), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some("http"), rest),
            // A `://` may well stand in a query.
            _ if text.starts_with('/') => (None, text),
            _ => return None,
        };
        let (authority, path) = match scheme {
            None => (None, rest),
            Some(_) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let (authority, path) = rest.split_at_checked(end)?;
                (Some(authority), path)
            }
        };
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (path, None),
        };
        let authority = authority.filter(|authority| !authority.is_empty()).map(str::to_owned);
        if scheme.is_some() && authority.is_none() {
            return None;
        }
        let path = if path.is_empty() { "/" } else { path };
        Some(Self { scheme, authority, path: path.to_owned(), query })
    }
}

/// `POST /x HTTP/1.1`, with what a person may have left off behind the target.
fn request_line(line: &str) -> Option<(Method, Target)> {
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next()?, words.next()?);
    let version = words.next();
    if words.next().is_some() || !version.is_none_or(|version| version.starts_with("HTTP/")) {
        return None;
    }
    let is_method = method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    let method = Method::from_bytes(method.as_bytes()).ok().filter(|_| is_method)?;
    Some((method, Target::parse(target)?))
}

/// Appends a header; the error says what is wrong with it.
fn add_header(headers: &mut Fields, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    let name = HeaderName::from_bytes(name).map_err(|_| "this is no name of a header")?;
    let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| "the value holds a control character")?;
    if headers.len() >= MOST_HEADERS {
        return Err("more than 1000 headers");
    }
    headers.append(name, value);
    Ok(())
}

/// The only `Host`, where the target named none.
fn host_of(headers: &Fields) -> Option<String> {
    let mut values = headers.get_all(http::header::HOST);
    match (values.next(), values.next()) {
        (Some(host), None) => host.to_str().ok().filter(|host| !host.is_empty()).map(str::to_owned),
        _ => None,
    }
}

/// One of several, or the only one. `list` tells a person what there is.
fn choose<T>(
    mut found: Vec<T>,
    entry: Option<usize>,
    what: &str,
    list: impl Fn(&T) -> String,
) -> Result<T, Unreadable> {
    let count = found.len();
    let position = match (entry, count) {
        (_, 0) => return Err(Unreadable::new(format!("there is no {what} in it"), "was it saved whole?")),
        (None, 1) => 0,
        (None, _) => {
            let mut shown: Vec<_> =
                found.iter().take(20).enumerate().map(|(at, one)| format!("{}: {}", at + 1, list(one))).collect();
            if count > shown.len() {
                shown.push("…".to_owned());
            }
            return Err(Unreadable::new(
                format!("it holds {count} requests ({})", shown.join(", ")),
                "choose one with --entry N",
            ));
        }
        (Some(entry), _) => entry.wrapping_sub(1),
    };
    if position >= count {
        return Err(Unreadable::new(
            format!("there is no entry {}", entry.unwrap_or_default()),
            format!("--entry 1 to {count}"),
        ));
    }
    Ok(found.swap_remove(position))
}

fn base64(text: &str) -> Option<Bytes> {
    STANDARD.decode(text.trim()).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_target_is_a_path_or_a_whole_url() {
        let of = |text: &str| {
            let target = Target::parse(text)?;
            Some((target.scheme, target.authority, target.path, target.query))
        };
        let owned = |text: &str| Some(text.to_owned());
        assert_eq!(of("/a?b=://c"), Some((None, None, "/a".into(), owned("b=://c"))));
        assert_eq!(
            of("https://h.example:8443/a/?b#c"),
            Some((Some("https"), owned("h.example:8443"), "/a/".into(), owned("b")))
        );
        assert_eq!(of("HTTP://h"), Some((Some("http"), owned("h"), "/".into(), None)));
        assert_eq!(of("https://h?x=1"), Some((Some("https"), owned("h"), "/".into(), owned("x=1"))));
        for none in ["", "x", "ftp://h/", "https:///x", "/a b"] {
            assert!(of(none).is_none(), "{none}");
        }
    }

    #[test]
    fn a_file_that_is_no_request_is_told_what_would_be_one() {
        let told = |bytes: &[u8]| SavedRequest::parse(bytes, None, None).unwrap_err().to_string();
        assert_eq!(told(b" \n"), "there is nothing in it; was the request saved?");
        assert!(told(b"hello\n").contains("a raw HTTP message, the output of curl -v, an audit line or a HAR export"));
        assert!(told(&vec![b'a'; LARGEST_FILE + 1]).starts_with("the file has more than 64 MiB"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), entry in proptest::option::of(0_usize..3)) {
            let _ = SavedRequest::parse(&bytes, entry, None);
        }

        #[test]
        fn no_nearly_right_text_panics(
            text in "(POST|> GET|\\{|\\* ) ?/?[a-z ?:/#]{0,9} ?(HTTP/1.1)?\r?\n((> )?[a-zA-Z-]{0,9}: ?[0-9a-z]{0,9}\r?\n){0,4}(> )?\r?\n\\PC{0,30}"
        ) {
            let _ = SavedRequest::parse(text.as_bytes(), None, None);
        }
    }
}
