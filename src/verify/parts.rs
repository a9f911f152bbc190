//! Parts of a body as they came: an array's items, a multipart body's fields.
//!
//! Invariant: their number is bounded, and what stands there twice on the way to a part, or under its name, is no part.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::{self, Found};

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
            if fields::differs_in_case(&key, wanted) {
                return Err(A::Error::custom("a key that some parsers take for the wanted one"));
            } else if key != *wanted {
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

/// One part of a `multipart/form-data` body, by the name of its field. Parsers are lax in many ways, each in its own: what
/// is not spelled as senders spell it is nobody's to choose from.
pub(crate) fn part<'a>(body: &'a [u8], content_type: &str, name: &str) -> Found<'a> {
    let Some(boundary) = boundary(content_type) else { return Found::Absent };
    let delimiter = format!("--{boundary}");
    let Some(mut rest) = body.strip_prefix(delimiter.as_bytes()) else { return Found::Ambiguous };
    let mut found = Found::Absent;
    loop {
        match rest {
            b"--" | b"--\r\n" => return found,
            _ => {}
        }
        let Some(part) = rest.strip_prefix(b"\r\n") else { return Found::Ambiguous };
        // A delimiter that does not begin a line is one to some parsers.
        let Some(end) = position(part, delimiter.as_bytes()) else { return Found::Ambiguous };
        let (Some(inside), Some(behind)) = (part.get(..end), part.get(end + delimiter.len()..)) else {
            return Found::Ambiguous;
        };
        let Some((theirs, value)) = inside.strip_suffix(b"\r\n").and_then(named) else { return Found::Ambiguous };
        if theirs.eq_ignore_ascii_case(name) {
            if found != Found::Absent || theirs != name {
                return Found::Ambiguous;
            }
            found = Found::Value(value.into());
        }
        rest = behind;
    }
}

/// The boundary that a `multipart/form-data` content type names, once and without anything to unescape.
pub(crate) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    kind.trim().eq_ignore_ascii_case("multipart/form-data").then_some(())?;
    let begins =
        |parameter: &&str| parameter.trim_start().get(..8).is_some_and(|start| start.eq_ignore_ascii_case("boundary"));
    let mut theirs = parameters.split(';').filter(begins);
    let (parameter, None) = (theirs.next()?, theirs.next()) else { return None };
    let (name, value) = parameter.split_once('=')?;
    name.trim().eq_ignore_ascii_case("boundary").then_some(())?;
    let value = unquoted(value.trim())?;
    // RFC 2046 §5.1.1.
    let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte));
    ((1..=70).contains(&value.len()) && is_plain).then_some(value)
}

/// The name of a part's field, and its value. `None`: its head is not one `Content-Disposition` with one plain name, and
/// other headers.
fn named(part: &[u8]) -> Option<(&str, &[u8])> {
    let end = position(part, b"\r\n\r\n")?;
    let head = std::str::from_utf8(part.get(..end)?).ok()?;
    let value = part.get(end + 4..)?;
    let mut name = None;
    for line in head.split("\r\n") {
        let (header, content) = line.split_once(':')?;
        // A folded line, or one that ends in a lone CR or LF to somebody.
        if header.is_empty() || line.bytes().any(|byte| byte.is_ascii_control()) || line.starts_with(' ') {
            return None;
        }
        if !header.trim().eq_ignore_ascii_case("content-disposition") {
            continue;
        }
        let mut words = content.split(';').map(str::trim);
        if name.is_some() || !words.next().is_some_and(|kind| kind.eq_ignore_ascii_case("form-data")) {
            return None;
        }
        for word in words {
            let (key, value) = word.split_once('=')?;
            let key = key.trim();
            if key.eq_ignore_ascii_case("name") && name.is_none() {
                name = Some(unquoted(value.trim())?);
            } else if key.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("name")) {
                // Twice, or `name*=`.
                return None;
            }
        }
    }
    Some((name?, value))
}

/// A word, or one between quotes that holds nothing to unescape.
fn unquoted(text: &str) -> Option<&str> {
    let inside = match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => text,
    };
    (!inside.contains(['"', '\\', '%'])).then_some(inside)
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

    #[test]
    fn a_field_of_a_multipart_body_is_one_that_every_parser_finds() {
        let plain = "multipart/form-data; boundary=b";
        let one = "--b\r\nContent-Disposition: form-data; name=\"json\"\r\n\r\n{}\r\n--b--\r\n";
        let value = Found::Value(b"{}"[..].into());
        assert_eq!(part(one.as_bytes(), plain, "json"), value);
        assert_eq!(part(one.as_bytes(), "multipart/form-data; charset=utf-8; boundary=\"b\"", "json"), value);
        assert_eq!(part(one.as_bytes(), plain, "other"), Found::Absent);
        for unclear in ["boundary=b; boundary=c", "boundary*=b", "boundary=\"b", "boundary=\"\\b\"", "x=b"] {
            assert_eq!(part(one.as_bytes(), &format!("multipart/form-data; {unclear}"), "json"), Found::Absent);
        }
        let other = "Content-Disposition: form-data; name=\"json\"\r\n\r\n[]\r\n";
        let refused = [
            // A second one, told apart by some parsers only.
            one.replace("--b--", &format!("--b\r\n{other}--b--")),
            one.replace("--b--", &format!("--b \t\r\n{other}--b--")),
            one.replace("--b--", &format!("--b\n{other}--b--")),
            one.replace("--b--", &format!("--b\r\n{}--b--", other.replace("name=", "name*=utf-8''"))),
            one.replace("--b--", &format!("--b\r\n{}--b--", other.replace("name=", "filename=x; name=x; name="))),
            one.replace("--b--", &format!("--b\r\n{}--b--", other.replace("json", "JSON"))),
            one.replace("--b--", &format!("--b\r\n{}--b--", other.replace("json", "js\\on"))),
            one.replace("--b--", &format!("--b\r\n{}--b--", other.replace("form-data; ", "form-data;\r\n "))),
            one.replace("{}", &format!("{{\"--b\r\n{other}\"}}")),
            format!("preamble\r\n{one}"),
            format!("{one}epilogue"),
            one.replace("--b--\r\n", "--b"),
            one.replace("--b--\r\n", ""),
        ];
        for body in refused {
            assert_eq!(part(body.as_bytes(), plain, "json"), Found::Ambiguous, "{body}");
        }
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
