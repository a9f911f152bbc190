//! What does a body or a query say under a name?
//!
//! Invariant: a name that occurs twice on the way to a value has no value here. Parsers differ in which of the two they
//! take, so whatever we chose, the upstream might choose the other one. "Twice" is told apart from "not there", because
//! a segment of a signed message that may vanish must not vanish for being doubled.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use percent_encoding::percent_decode;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// More fields than any provider's form has; sorting needs them all in memory at once.
const MAX_SORTED_FIELDS: usize = 4096;

/// What was found under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Absent,
    /// There, and not to be relied on: twice, unreadable, or of a kind that has several spellings.
    Ambiguous,
    Value(Cow<'a, [u8]>),
}

/// The JSON pointers (RFC 6901) that one source asks for, so that one walk over a body finds them all without building
/// the document in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pointers {
    root: Node,
    /// A key that differs in case alone is a second one.
    any_case: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// The pointer that ends here.
    pointer: Option<String>,
    children: Vec<Child>,
}

#[derive(Clone, Debug)]
struct Child {
    key: String,
    /// The key as a position in an array: digits without a leading zero.
    index: Option<usize>,
    node: Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAPointer;

impl Pointers {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.children.is_empty()
    }

    pub(crate) fn add(&mut self, pointer: &str) -> Result<(), NotAPointer> {
        if !is_pointer(pointer) {
            return Err(NotAPointer);
        }
        let mut node = &mut self.root;
        for token in pointer.split('/').skip(1) {
            let key = token.replace("~1", "/").replace("~0", "~");
            let position = node.children.iter().position(|child| child.key == key).unwrap_or_else(|| {
                node.children.push(Child { index: array_index(&key), key, node: Node::default() });
                node.children.len() - 1
            });
            node = &mut node.children.get_mut(position).expect("found there, or put there a line above").node;
        }
        node.pointer = Some(pointer.to_owned());
        Ok(())
    }

    /// For a body that is not signed as a whole: there a key can be added that some parsers take for the signed one.
    pub(crate) fn in_any_case(self) -> Self {
        Self { any_case: true, ..self }
    }

    /// One walk over the body. A body that is not JSON to us may be JSON to a laxer upstream, so it leaves every value
    /// ambiguous rather than absent. `serde_json` bounds the depth of what is walked to 128.
    pub(crate) fn read(&self, body: &[u8]) -> Json {
        let mut found = BTreeMap::new();
        let mut reader = serde_json::Deserializer::from_slice(body);
        let walked = Walk { node: &self.root, found: &mut found, any_case: self.any_case }
            .deserialize(&mut reader)
            .and_then(|()| reader.end());
        match walked {
            Ok(()) => Json { found, broken: false },
            Err(_) => Json::broken(),
        }
    }
}

pub(crate) fn is_pointer(text: &str) -> bool {
    let escapes_are_whole =
        text.split('~').skip(1).all(|after_tilde| after_tilde.starts_with('0') || after_tilde.starts_with('1'));
    text.starts_with('/') && escapes_are_whole
}

fn array_index(key: &str) -> Option<usize> {
    let canonical = key == "0" || !key.starts_with('0');
    (canonical && key.bytes().all(|byte| byte.is_ascii_digit())).then(|| key.parse().ok())?
}

/// What one body says at the pointers that were asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Json {
    found: BTreeMap<String, Scalar>,
    broken: bool,
}

#[derive(Clone, Debug)]
enum Scalar {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    /// An object or an array: there, but not a value that anything here compares or signs.
    Container,
    EmptyArray,
    Doubled,
}

impl Json {
    /// Of a body in which no document was found.
    pub(crate) fn broken() -> Self {
        Self { found: BTreeMap::new(), broken: true }
    }

    pub(crate) fn at(&self, pointer: &str) -> Found<'_> {
        match self.found.get(pointer) {
            _ if self.broken => Found::Ambiguous,
            None | Some(Scalar::Null) => Found::Absent,
            Some(Scalar::Text(text)) => Found::Value(text.as_bytes().into()),
            Some(Scalar::Bool(true)) => Found::Value(b"true"[..].into()),
            Some(Scalar::Bool(false)) => Found::Value(b"false"[..].into()),
            // Only an integer has one spelling; 1.50, 1.5 and 15e-1 are the same number here.
            Some(Scalar::Number(number)) if number.is_u64() || number.is_i64() => {
                Found::Value(number.to_string().into_bytes().into())
            }
            Some(Scalar::Number(_) | Scalar::Container | Scalar::EmptyArray | Scalar::Doubled) => Found::Ambiguous,
        }
    }

    /// A string, and nothing that would only be written as one.
    pub(crate) fn text_at(&self, pointer: &str) -> Found<'_> {
        match self.found.get(pointer) {
            Some(Scalar::Bool(_) | Scalar::Number(_)) => Found::Ambiguous,
            _ => self.at(pointer),
        }
    }

    pub(crate) fn is_empty_array(&self, pointer: &str) -> bool {
        !self.broken && matches!(self.found.get(pointer), Some(Scalar::EmptyArray))
    }

    /// Is there anything at this pointer, in a body that is JSON?
    pub(crate) fn has(&self, pointer: &str) -> bool {
        !self.broken && self.found.contains_key(pointer)
    }

    /// Is there nothing at all at this pointer (in a body that is JSON)?
    pub(crate) fn lacks(&self, pointer: &str) -> bool {
        !self.broken && !self.found.contains_key(pointer)
    }

    pub(crate) fn equals(&self, pointer: &str, expected: &Value) -> bool {
        match (self.found.get(pointer), expected) {
            (Some(Scalar::Null), Value::Null) => true,
            (Some(Scalar::Bool(here)), Value::Bool(there)) => here == there,
            (Some(Scalar::Number(here)), Value::Number(there)) => here == there,
            (Some(Scalar::Text(here)), Value::String(there)) => here == there,
            _ => false,
        }
    }
}

struct Walk<'n, 'f> {
    node: &'n Node,
    found: &'f mut BTreeMap<String, Scalar>,
    any_case: bool,
}

impl Walk<'_, '_> {
    fn meet(self, scalar: Scalar) {
        if let Some(pointer) = &self.node.pointer {
            self.found.insert(pointer.clone(), scalar);
        }
    }

    fn meet_container(&mut self) {
        if let Some(pointer) = &self.node.pointer {
            self.found.insert(pointer.clone(), Scalar::Container);
        }
    }
}

impl Node {
    fn mark_doubled(&self, found: &mut BTreeMap<String, Scalar>) {
        if let Some(pointer) = &self.pointer {
            found.insert(pointer.clone(), Scalar::Doubled);
        }
        for child in &self.children {
            child.node.mark_doubled(found);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.meet(Scalar::Null);
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.meet(Scalar::Bool(value));
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.meet(Scalar::Number(value.into()));
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.meet(Scalar::Number(value.into()));
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.meet(Number::from_f64(value).map_or(Scalar::Container, Scalar::Number));
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        // The copy is made only where a pointer ends.
        if self.node.pointer.is_some() {
            self.meet(Scalar::Text(value.to_owned()));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.meet_container();
        for position in 0.. {
            let wanted = self.node.children.iter().find(|child| child.index == Some(position));
            let went_on = match wanted {
                Some(child) => seq
                    .next_element_seed(Walk { node: &child.node, found: self.found, any_case: self.any_case })?
                    .is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !went_on {
                if position == 0 {
                    self.meet(Scalar::EmptyArray);
                }
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.meet_container();
        let mut seen = vec![false; self.node.children.len()];
        while let Some(key) = map.next_key::<String>()? {
            let wanted = self.node.children.iter().zip(&mut seen).find(|(child, _)| child.key == key);
            match wanted {
                None => {
                    map.next_value::<IgnoredAny>()?;
                    let mut similar = self.node.children.iter().zip(&mut seen);
                    let similar = similar.find(|(child, _)| self.any_case && differs_in_case(&child.key, &key));
                    if let Some((child, seen)) = similar {
                        *seen = true;
                        child.node.mark_doubled(self.found);
                    }
                }
                Some((child, seen)) if *seen => {
                    map.next_value::<IgnoredAny>()?;
                    child.node.mark_doubled(self.found);
                }
                Some((child, seen)) => {
                    *seen = true;
                    map.next_value_seed(Walk { node: &child.node, found: self.found, any_case: self.any_case })?;
                }
            }
        }
        Ok(())
    }
}

/// As Go's `encoding/json` compares keys, to which `ſ` and the sign for Kelvin are letters of ASCII.
pub(super) fn differs_in_case(one: &str, other: &str) -> bool {
    let folded = |character: char| match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        _ => character.to_ascii_lowercase(),
    };
    one != other && one.chars().map(folded).eq(other.chars().map(folded))
}

/// The value of one field of an `application/x-www-form-urlencoded` text: a form body or a query.
pub(crate) fn field<'a>(text: &'a [u8], name: &str) -> Found<'a> {
    let mut values = fields(text).filter(|(key, _)| key.as_ref() == name.as_bytes());
    match (values.next(), values.next()) {
        (None, _) => Found::Absent,
        (Some((_, value)), None) => Found::Value(value),
        (Some(_), Some(_)) => Found::Ambiguous,
    }
}

/// Every field's name and value, run together in the order of the names; a name's values in their order, each once.
/// This is the form that Twilio and its kin sign.
pub(crate) fn sorted_fields(text: &[u8]) -> Found<'static> {
    let mut all: Vec<_> = fields(text).take(MAX_SORTED_FIELDS + 1).collect();
    if all.len() > MAX_SORTED_FIELDS {
        return Found::Ambiguous;
    }
    all.sort();
    all.dedup();
    Found::Value(all.iter().flat_map(|(key, value)| [key.as_ref(), value.as_ref()]).collect::<Vec<_>>().concat().into())
}

/// The value of the one field that a form consists of.
pub(crate) fn only_field<'a>(text: &'a [u8], name: &str) -> Found<'a> {
    let mut all = fields(text);
    match (all.next(), all.next()) {
        (None, _) => Found::Absent,
        (Some((key, value)), None) if key.as_ref() == name.as_bytes() => Found::Value(value),
        (Some(_), _) => Found::Ambiguous,
    }
}

/// `name=value`, sorted by name and joined by `&`, of all fields but some. Values are decoded and not encoded again, so
/// that one holding `&…=` would read like two fields: it has no value here, lest fields be regrouped under a signature.
pub(crate) fn sorted_pairs(text: &[u8], without: &[String]) -> Found<'static> {
    let Some(all) = distinct_fields(text, without) else { return Found::Ambiguous };
    let mut joined = Vec::with_capacity(text.len());
    for (name, value) in &all {
        let splits =
            value.iter().position(|byte| *byte == b'&').is_some_and(|at| value.iter().skip(at).any(|b| *b == b'='));
        if splits || name.iter().any(|byte| matches!(byte, b'&' | b'=')) {
            return Found::Ambiguous;
        }
        if !joined.is_empty() {
            joined.push(b'&');
        }
        joined.extend_from_slice(name);
        joined.push(b'=');
        joined.extend_from_slice(value);
    }
    Found::Value(joined.into())
}

/// What PHP's `serialize` makes of the sorted fields, all of them strings. A name of digits alone would be a number to
/// PHP, and is not guessed at.
pub(crate) fn php_serialized(text: &[u8], without: &[String]) -> Found<'static> {
    let Some(all) = distinct_fields(text, without) else { return Found::Ambiguous };
    let mut serialized = format!("a:{}:{{", all.len()).into_bytes();
    for (name, value) in &all {
        if name.iter().all(u8::is_ascii_digit) {
            return Found::Ambiguous;
        }
        for part in [name, value] {
            serialized.extend_from_slice(format!("s:{}:\"", part.len()).as_bytes());
            serialized.extend_from_slice(part);
            serialized.extend_from_slice(b"\";");
        }
    }
    serialized.push(b'}');
    Found::Value(serialized.into())
}

type Field<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Sorted by name. `None` where a name stands there twice, be it one that is left out.
fn distinct_fields<'a>(text: &'a [u8], without: &[String]) -> Option<Vec<Field<'a>>> {
    let mut all: Vec<_> = fields(text).take(MAX_SORTED_FIELDS + 1).collect();
    all.sort();
    let doubled = all.windows(2).any(|pair| matches!(pair, [(one, _), (other, _)] if one == other));
    if doubled || all.len() > MAX_SORTED_FIELDS {
        return None;
    }
    all.retain(|(name, _)| !without.iter().any(|left_out| left_out.as_bytes() == name.as_ref()));
    Some(all)
}

pub(super) fn fields(text: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    text.split(|byte| *byte == b'&').filter(|part| !part.is_empty()).map(|part| {
        let end_of_name = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
        let (name, rest) = part.split_at(end_of_name);
        (form_decode(name), form_decode(rest.strip_prefix(b"=").unwrap_or(rest)))
    })
}

fn form_decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Found<'_> {
        Found::Value(text.as_bytes().into())
    }

    fn read(pointers: &[&str], body: &str) -> Json {
        let mut wanted = Pointers::default();
        for pointer in pointers {
            wanted.add(pointer).unwrap();
        }
        wanted.read(body.as_bytes())
    }

    #[test]
    fn a_walk_finds_what_is_asked_for_and_nothing_else() {
        let body =
            r#"{"skip":[{"a":1}],"a":{"b":"deep","c/d":7,"":"empty"},"list":["x",{"id":"y"}],"yes":true,"no":null}"#;
        let json = read(&["/a/b", "/a/c~1d", "/a/", "/list/1/id", "/yes", "/no", "/a", "/gone"], body);
        assert_eq!(json.at("/a/b"), value("deep"));
        assert_eq!(json.at("/a/c~1d"), value("7"));
        assert_eq!(json.at("/a/"), value("empty"));
        assert_eq!(json.at("/list/1/id"), value("y"));
        assert_eq!(json.at("/yes"), value("true"));
        assert_eq!(json.at("/no"), Found::Absent);
        assert!(!json.lacks("/no"));
        assert_eq!(json.at("/gone"), Found::Absent);
        assert!(json.lacks("/gone"));
        assert_eq!(json.at("/a"), Found::Ambiguous);
    }

    #[test]
    fn a_key_that_occurs_twice_has_no_value() {
        assert_eq!(read(&["/id"], r#"{"id":"a","id":"b"}"#).at("/id"), Found::Ambiguous);
        assert_eq!(read(&["/a/id"], r#"{"a":{"id":"a"},"a":{}}"#).at("/a/id"), Found::Ambiguous);
        assert_eq!(read(&["/a/id"], r#"{"a":{"id":"a"},"b":1,"b":2}"#).at("/a/id"), value("a"));
    }

    #[test]
    fn a_body_that_is_not_json_leaves_values_ambiguous_rather_than_absent() {
        for broken in ["", "{", r#"{"id":"a"} x"#, r#"{"id":NaN}"#, "\u{feff}{\"id\":\"a\"}"] {
            assert_eq!(read(&["/id"], broken).at("/id"), Found::Ambiguous, "{broken}");
            assert!(!read(&["/id"], broken).lacks("/id"));
        }
        assert_eq!(read(&["/id"], "{}").at("/id"), Found::Absent);
    }

    #[test]
    fn only_integers_have_one_spelling() {
        assert_eq!(read(&["/n"], r#"{"n":-12}"#).at("/n"), value("-12"));
        for many in ["1.0", "1e3", "123456789012345678901234567890"] {
            assert_eq!(read(&["/n"], &format!(r#"{{"n":{many}}}"#)).at("/n"), Found::Ambiguous, "{many}");
        }
    }

    #[test]
    fn depth_does_not_overflow_the_stack() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(read(&["/0/0"], &deep).at("/0/0"), Found::Ambiguous);
        let deep = format!("{{\"x\":{}{},\"id\":\"a\"}}", "[".repeat(200_000), "]".repeat(200_000));
        let _either_way_no_crash = read(&["/id"], &deep).at("/id");
    }

    #[test]
    fn a_pointer_begins_with_a_slash_and_escapes_whole() {
        let mut pointers = Pointers::default();
        assert_eq!(pointers.add("id"), Err(NotAPointer));
        assert_eq!(pointers.add("/a~2"), Err(NotAPointer));
        assert_eq!(pointers.add("/a~"), Err(NotAPointer));
        assert_eq!(pointers.add("/a~1b"), Ok(()));
    }

    #[test]
    fn fields_are_decoded_and_doubled_ones_have_no_value() {
        let text = b"a=1+2&b%5B%5D=%C3%A9&c&d=x&d=y&&e==";
        assert_eq!(field(text, "a"), value("1 2"));
        assert_eq!(field(text, "b[]"), value("é"));
        assert_eq!(field(text, "c"), value(""));
        assert_eq!(field(text, "d"), Found::Ambiguous);
        assert_eq!(field(text, "e"), value("="));
        assert_eq!(field(text, "f"), Found::Absent);
    }

    #[test]
    fn sorted_fields_run_names_and_values_together() {
        assert_eq!(sorted_fields(b"b=2&a=1&b=1&b=2"), value("a1b1b2"));
        assert_eq!(sorted_fields(b""), value(""));
        assert_eq!(sorted_fields(&b"a&".repeat(MAX_SORTED_FIELDS + 1)), Found::Ambiguous);
    }

    proptest! {
        #[test]
        fn no_body_makes_a_walk_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut pointers = Pointers::default();
            pointers.add("/a/0").unwrap();
            let _ = pointers.read(&body).at("/a/0");
            let _ = field(&body, "a");
            let _ = sorted_fields(&body);
        }
    }

    #[test]
    fn pairs_are_sorted_decoded_and_joined_without_the_signatures_own() {
        let without = ["sign".to_owned(), "sign_type".to_owned()];
        let body = b"sign_type=RSA2&b=2+%26+3&a=%E6%89%8B&sign=x&c=";
        assert_eq!(sorted_pairs(body, &without), value("a=手&b=2 & 3&c="));
        assert_eq!(sorted_pairs(b"", &without), value(""));
    }

    /// One signature over `a=1&b=2` must not stand for the single field `a` of value `1&b=2` as well.
    #[test]
    fn fields_cannot_be_regrouped_under_one_signature() {
        assert_eq!(sorted_pairs(b"a=1&b=2", &[]), value("a=1&b=2"));
        for body in ["a=1%26b%3D2", "a%3D1%26b=2", "a%3D1=x", "a=1&a=2", "sign=1&sign=2&a=1"] {
            assert_eq!(sorted_pairs(body.as_bytes(), &["sign".to_owned()]), Found::Ambiguous, "{body}");
        }
    }

    #[test]
    fn php_counts_bytes_and_sorts_by_name() {
        let without = ["p_signature".to_owned()];
        let serialized = r#"a:2:{s:1:"a";s:0:"";s:1:"b";s:3:"手";}"#;
        assert_eq!(php_serialized("b=手&p_signature=x&a=".as_bytes(), &without), value(serialized));
        assert_eq!(php_serialized(b"5=x", &[]), Found::Ambiguous, "a number to PHP");
        assert_eq!(php_serialized(b"a=1&a=1", &[]), Found::Ambiguous);
    }

    #[test]
    fn the_only_field_has_nothing_beside_it() {
        assert_eq!(only_field(b"payload=%7B%7D", "payload"), value("{}"));
        assert_eq!(only_field(b"", "payload"), Found::Absent);
        for body in ["payload=1&other=2", "other=2", "payload=1&payload=1"] {
            assert_eq!(only_field(body.as_bytes(), "payload"), Found::Ambiguous, "{body}");
        }
    }
}
