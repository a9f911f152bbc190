//! Which bodies may stand in an event as JSON, and which only as a text in it.
//!
//! Invariant: what is let through is JSON that a Python worker's decoder (its `json` module, and kombu's on top of it)
//! takes without an error: a message that a worker cannot decode is lost, and its sender was told that it arrived. One
//! pass over the text, and no memory but for the depth.

use serde_json::value::RawValue;

/// Python's decoder recurses, and gives up at some thousand levels; nobody's events have a hundred.
const DEEPEST: usize = 128;

/// Python makes no integer of a longer text (`sys.int_info.default_max_str_digits`). What has a fraction or an exponent
/// is a float to it, of any length.
const MOST_DIGITS: usize = 4300;

/// kombu takes an object of the keys `__type__` and `__value__` for something that another Celery has packed, and fails
/// on one that is none.
const PACKED: &str = "__type__";

/// As short as it can be written, and as long: each character as `\u005f`.
const PACKED_LENGTHS: std::ops::RangeInclusive<usize> = PACKED.len()..=PACKED.len() * 6;

/// A body as it may stand in an event besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data<'a> {
    /// JSON, to be copied: every number as the sender wrote it.
    Json(&'a str),
    Text(&'a str),
    /// Nothing but base64 can hold it.
    Bytes,
}

impl<'a> Data<'a> {
    pub(super) fn of(content_type: Option<&str>, body: &'a [u8]) -> Self {
        let Ok(text) = std::str::from_utf8(body) else { return Self::Bytes };
        match content_type.is_some_and(is_json) && is_harmless(text) {
            true => Self::Json(text),
            false => Self::Text(text),
        }
    }
}

/// `application/json` and whatever calls itself `+json`; parameters say nothing about it.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.split_once('/') {
        Some(("application", "json")) => true,
        Some((kind, subtype)) => !kind.is_empty() && subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty()),
        None => false,
    }
}

/// The grammar is serde_json's to judge (it neither recurses nor makes numbers for this); the rest is what Python adds.
fn is_harmless(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok() && Scan::new(text).all_taken()
}

/// Of a text that is JSON.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn all_taken(mut self) -> bool {
        let mut depth: usize = 0;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    let inside = self.string();
                    self.skip(|byte| byte.is_ascii_whitespace());
                    if self.peek() == Some(b':') && is_packed(inside) {
                        return false;
                    }
                }
                b'[' | b'{' => {
                    depth += 1;
                    self.at += 1;
                    if depth > DEEPEST {
                        return false;
                    }
                }
                b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                b'0'..=b'9' => {
                    let digits = self.skip(|byte| byte.is_ascii_digit());
                    let is_float = matches!(self.peek(), Some(b'.' | b'e' | b'E'));
                    if digits > MOST_DIGITS && !is_float {
                        return false;
                    }
                    self.skip(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
                }
                _ => self.at += 1,
            }
        }
        true
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// How many.
    fn skip(&mut self, while_it: impl Fn(u8) -> bool) -> usize {
        let from = self.at;
        while self.peek().is_some_and(&while_it) {
            self.at += 1;
        }
        self.at - from
    }

    /// From a quote to behind the one that ends it; what is between them, escapes and all.
    fn string(&mut self) -> &'a str {
        self.at += 1;
        let from = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        let inside = self.text.get(from..self.at).unwrap_or_default();
        self.at += 1;
        inside
    }
}

fn is_packed(key: &str) -> bool {
    match PACKED_LENGTHS.contains(&key.len()) && key.contains('\\') {
        true => serde_json::from_str::<String>(&format!("\"{key}\"")).is_ok_and(|key| key == PACKED),
        false => key == PACKED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_data(text: &str) -> bool {
        match Data::of(Some("application/json"), text.as_bytes()) {
            Data::Json(json) => {
                assert_eq!(json, text);
                true
            }
            Data::Text(kept) => {
                assert_eq!(kept, text);
                false
            }
            Data::Bytes => panic!("{text:?} is UTF-8"),
        }
    }

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn json_is_data_when_its_content_type_says_json() {
        for content_type in
            ["application/json", "Application/JSON; charset=utf-8", "application/vnd.a.b+json", "a/b+json"]
        {
            assert_eq!(Data::of(Some(content_type), b"{}"), Data::Json("{}"), "{content_type}");
        }
        for content_type in ["text/plain", "application/jsonp", "json", "/+json", "a/+json", "application/json-seq", ""]
        {
            assert_eq!(Data::of(Some(content_type), b"{}"), Data::Text("{}"), "{content_type}");
        }
        assert_eq!(Data::of(None, b"{}"), Data::Text("{}"));
    }

    #[test]
    fn bytes_that_are_no_utf8_are_neither_json_nor_text() {
        assert_eq!(Data::of(Some("application/json"), b"\"\xff\""), Data::Bytes);
        assert_eq!(Data::of(Some("application/json"), b"\"\xed\xa0\x80\""), Data::Bytes, "a lone surrogate in bytes");
        assert!(!is_data("\u{feff}{}"), "a BOM");
    }

    #[test]
    fn what_python_would_not_take_is_only_a_text() {
        for text in
            ["", " ", "{", "{}x", "{'a': 1}", "[1,]", "NaN", "[Infinity]", "01", "1.", "\"a\nb\"", "\"\\x\"", "[1]\0"]
        {
            assert!(!is_data(text), "{text:?}");
        }
    }

    #[test]
    fn what_python_takes_is_data_whatever_it_looks_like() {
        for text in [
            "12345678901234567890123",
            "-50.750",
            "1e400",
            "-0",
            r#"{"a": 1, "a": 2}"#,
            r#""\ud800""#,
            r#""\u0000""#,
            " \r\n\t[ ] ",
            r#"{"type": "__type__", "a": ["__type__"], "__value__": 1, "__type": 2}"#,
        ] {
            assert!(is_data(text), "{text:?}");
        }
    }

    #[test]
    fn nesting_is_taken_up_to_128_levels() {
        for (depth, taken) in [(127, true), (128, true), (129, false), (1000, false), (100_000, false)] {
            assert_eq!(is_data(&nested(depth)), taken, "{depth}");
            assert_eq!(is_data(&format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))), taken, "{depth}");
        }
        let wide = format!("[{}]", vec!["[[]]"; 1000].join(","));
        assert!(is_data(&wide), "many beside each other are not deep");
        assert!(is_data(&format!("[\"{}\"]", "[".repeat(1000))), "brackets in a string");
        assert!(!is_data(&format!("[\"\\\\\",{}]", nested(128))), "a backslash that ends a string");
    }

    #[test]
    fn integers_are_taken_up_to_4300_digits() {
        for sign in ["", "-"] {
            assert!(is_data(&format!("[{sign}{}]", "7".repeat(4300))));
            assert!(!is_data(&format!("[{sign}{}]", "7".repeat(4301))));
        }
        assert!(is_data(&format!("[{0}.5, {0}e5, {0}E+5, 0.{0}, 1e{0}]", "7".repeat(5000))), "floats");
        assert!(is_data(&format!("[\"{}\"]", "7".repeat(5000))), "a string");
    }

    #[test]
    fn what_kombu_would_unpack_is_only_a_text() {
        for text in [
            r#"{"__type__": "uuid", "__value__": 1}"#,
            r#"[{"__value__": {}, "__type__": []}]"#,
            "{\"\\u005f_type_\\u005f\"\n:1,\"__value__\":2}",
            r#"{"\u005F\u005f\u0074\u0079\u0070\u0065\u005f\u005f" : 1, "__value__": 2}"#,
        ] {
            assert!(!is_data(text), "{text:?}");
        }
    }
}
