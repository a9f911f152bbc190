//! Parts of a body as they came: an array's items, a multipart body's fields.
//!
//! Invariant: their number is bounded, and what stands there twice on the way to a part, or under its name, is no part.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::Found;

/// The first item of a JSON array, as it came.
pub(crate) fn first_item(body: &[u8]) -> Found<'_> {
    let Some(inside) = body.trim_ascii_start().strip_prefix(b"[") else { return Found::Absent };
    let inside = inside.trim_ascii_start();
    let mut items = serde_json::Deserializer::from_slice(inside).into_iter::<IgnoredAny>();
    match items.next() {
        Some(Ok(IgnoredAny)) => match inside.get(..items.byte_offset()) {
            Some(item) => Found::Value(item.trim_ascii_end().into()),
            None => Found::Ambiguous,
        },
        Some(Err(_)) | None => Found::Ambiguous,
    }
}

/// More items than any sender puts into one delivery; each costs a MAC under every secret.
const MAX_ITEMS: usize = 256;

/// The items of the array at a pointer, each as it came. `None`: there is no such array, it is empty, or a key on the
/// way to it stands there twice.
pub(crate) fn items<'a>(body: &'a [u8], pointer: &str) -> Option<Vec<&'a [u8]>> {
    let path: Vec<String> =
        pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let found = Descend { path: &path }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    let items = found.filter(|items| (1..=MAX_ITEMS).contains(&items.len()))?;
    Some(items.into_iter().map(|item| item.get().as_bytes()).collect())
}

struct Descend<'p> {
    path: &'p [String],
}

impl<'de> DeserializeSeed<'de> for Descend<'_> {
    type Value = Option<Vec<&'de RawValue>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.path {
            [] => Vec::deserialize(deserializer).map(Some),
            _ => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Descend<'_> {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let (wanted, rest) = self.path.split_first().ok_or_else(|| A::Error::custom("no path"))?;
        while let Some(key) = map.next_key::<String>()? {
            if key != *wanted {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_some() {
                return Err(A::Error::custom("the key stands there twice"));
            } else {
                found = Some(map.next_value_seed(Descend { path: rest })?);
            }
        }
        Ok(found.flatten())
    }
}

/// One part of a `multipart/form-data` body, by the name of its field.
pub(crate) fn part<'a>(body: &'a [u8], content_type: &str, name: &str) -> Found<'a> {
    let Some(boundary) = boundary(content_type) else { return Found::Absent };
    let delimiter = format!("--{boundary}");
    let delimiter = delimiter.as_bytes();
    let mut found = Found::Absent;
    let mut rest = body;
    let mut before_first = true;
    loop {
        let at = position(rest, delimiter);
        let (part, next) = match at {
            Some(at) => (rest.get(..at), rest.get(at + delimiter.len()..)),
            // What follows the last delimiter is no part.
            None => return found,
        };
        if let (Some(part), false) = (part, before_first)
            && let Some(value) = named_part(part, name)
        {
            if found != Found::Absent {
                return Found::Ambiguous;
            }
            found = Found::Value(value.into());
        }
        before_first = false;
        rest = next.unwrap_or_default();
    }
}

/// The boundary that a `multipart/form-data` content type names.
pub(crate) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    kind.trim().eq_ignore_ascii_case("multipart/form-data").then_some(())?;
    let value = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    })?;
    // RFC 2046 §5.1.1.
    (1..=70).contains(&value.len()).then_some(value)
}

fn named_part<'a>(part: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let part = part.strip_prefix(b"\r\n")?;
    let end = position(part, b"\r\n\r\n")?;
    let head = std::str::from_utf8(part.get(..end)?).ok()?;
    let is_named = head.split("\r\n").any(|line| {
        let mut words = line.split(';').map(str::trim);
        let is_disposition = words.next().is_some_and(|first| {
            first.split_once(':').is_some_and(|(header, kind)| {
                header.trim().eq_ignore_ascii_case("content-disposition")
                    && kind.trim().eq_ignore_ascii_case("form-data")
            })
        });
        is_disposition
            && words.any(|word| {
                word.split_once('=').is_some_and(|(key, value)| {
                    key.trim().eq_ignore_ascii_case("name") && value.trim().trim_matches('"') == name
                })
            })
    });
    let value = part.get(end + 4..)?;
    is_named.then(|| value.strip_suffix(b"\r\n").unwrap_or(value))
}

fn position(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_item_of_an_array_is_found_as_it_came() {
        let first = |body: &'static str| first_item(body.as_bytes());
        assert_eq!(first(" [ {\"a\": 1.0 } ,{}]"), Found::Value(b"{\"a\": 1.0 }"[..].into()));
        assert_eq!(first("[\"x\"]"), Found::Value(b"\"x\""[..].into()));
        assert_eq!(first("{}"), Found::Absent);
        for none in ["[]", "[", "[nonsense]"] {
            assert_eq!(first(none), Found::Ambiguous, "{none}");
        }
    }

    #[test]
    fn items_are_all_of_an_array_that_is_there_once() {
        let of = |body: &'static str| items(body.as_bytes(), "/a/b").map(|items| items.len());
        assert_eq!(of(r#"{"x":[0],"a":{"b":[{"c":1}, 2]}}"#), Some(2));
        for none in [
            r#"{"a":{"b":[]}}"#,
            r#"{"a":{"b":{}}}"#,
            r#"{"a":{}}"#,
            r#"{"a":{"b":[1],"b":[2]}}"#,
            r#"{"a":{"b":[1]},"a":{"b":[2]}}"#,
            r#"{"a":{"b":[1]}} x"#,
            "[1]",
            "",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
        let many = |count: usize| format!("{{\"a\":{{\"b\":[{}0]}}}}", "0,".repeat(count - 1));
        assert_eq!(items(many(MAX_ITEMS).as_bytes(), "/a/b").map(|items| items.len()), Some(MAX_ITEMS));
        assert_eq!(items(many(MAX_ITEMS + 1).as_bytes(), "/a/b"), None);
    }

    proptest! {
        #[test]
        fn no_body_makes_a_search_panic(
            body in "(\\[|\\{|\"a\":|\"b\":|--b|\r\n|\\PC){0,40}",
            content_type in "(multipart/form-data|; boundary=|b|\"|=|\\PC){0,6}",
        ) {
            let _ = first_item(body.as_bytes());
            let _ = items(body.as_bytes(), "/a/b");
            let _ = part(body.as_bytes(), &content_type, "a");
            let _ = part(body.as_bytes(), "multipart/form-data; boundary=b", "a");
        }
    }
}
