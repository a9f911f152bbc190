//! A token taken apart: the compact serialization of RFC 7515, strictly.
//!
//! Invariant: a token has one spelling. Three parts in the alphabet of base64url without padding, no bits behind the end,
//! no member named twice; what the header asks for that nobody here understands (`crit`, an unencoded payload) is
//! refused. Keys that a header brings along (`jwk`, `jku`, `x5u`, `x5c`) are never looked at here.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::super::Fault;
use super::malformed;

pub(crate) type Object = Map<String, Value>;

/// Of a token beside the body: in a header, a query or a field of the body. Real ones have one to two kilobytes.
pub(super) const MAX_TOKEN: usize = 16 * 1024;
const MAX_HEADER: usize = 8 * 1024;
/// The signature of an RSA key of 8192 bits, in base64url.
const MAX_SIGNATURE: usize = 1366;
/// Key ids and names of algorithms: longer ones are nobody's.
const MAX_NAME: usize = 512;

/// Not judged yet: everything but its form may be a lie.
#[derive(Debug)]
pub(super) struct Compact<'t> {
    /// As it stands in the token, encoded.
    pub(super) header_text: &'t str,
    /// As it stands in the token, encoded; empty when it is detached.
    pub(super) payload_text: &'t str,
    pub(super) header: Object,
    pub(super) signature: Vec<u8>,
    /// Header and payload with their dot: what an attached signature stands for.
    pub(super) signed: &'t str,
}

impl<'t> Compact<'t> {
    pub(super) fn parse(token: &'t str) -> Result<Self, Fault> {
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed("the token has not three parts"))?;
        let (header_text, payload_text) = signed.split_once('.').ok_or(malformed("the token has not three parts"))?;
        if payload_text.contains('.') {
            return Err(malformed("the token has not three parts"));
        }
        if header_text.len() > MAX_HEADER || signature.len() > MAX_SIGNATURE {
            return Err(malformed("the token's header or signature is too long"));
        }
        if !payload_text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Err(malformed("the token's payload is not base64url without padding"));
        }
        let not_base64 = malformed("the token's header or signature is not base64url without padding");
        let header = URL_SAFE_NO_PAD.decode(header_text).map_err(|_| not_base64)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| not_base64)?;
        let header = object(&header).ok_or(malformed("the token's header is not a JSON object of distinct members"))?;
        if header.contains_key("crit") || header.get("b64").is_some_and(|value| *value != Value::Bool(true)) {
            return Err(malformed("the token's header asks for an extension that is not understood here"));
        }
        if header.get("kid").is_some_and(|kid| !kid.is_string()) {
            return Err(malformed("the token's key id is not a string"));
        }
        Ok(Self { header_text, payload_text, header, signature, signed })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.header.get(name)?.as_str().filter(|text| text.len() <= MAX_NAME)
    }

    /// Decoded, whether or not the signature was judged: whoever calls this before knows that it is hearsay.
    pub(super) fn claims(&self) -> Result<Object, Fault> {
        let unreadable = malformed("the token's payload is not a JSON object of distinct members");
        let bytes = URL_SAFE_NO_PAD.decode(self.payload_text).map_err(|_| unreadable)?;
        object(&bytes).ok_or(unreadable)
    }
}

/// A JSON object, no member of which, at any depth, is named twice.
pub(super) fn object(bytes: &[u8]) -> Option<Object> {
    match value(bytes)? {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// A JSON text, no member of which, at any depth, is named twice. `serde_json` bounds the depth to 128.
pub(crate) fn value(bytes: &[u8]) -> Option<Value> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let Distinct(value) = Distinct::deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    Some(value)
}

struct Distinct(Value);

struct Members;

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Members).map(Self)
    }
}

impl<'de> DeserializeSeed<'de> for Members {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Object::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Self)?;
            if members.insert(key, value).is_some() {
                return Err(A::Error::custom("a member is named twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;
    use proptest::prelude::*;

    fn token(header: &str, payload: &str, signature: &str) -> String {
        format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
    }

    fn refused(token: &str) -> Option<Refusal> {
        Compact::parse(token).and_then(|token| token.claims()).err().map(|fault| fault.refusal)
    }

    const MALFORMED: Option<Refusal> = Some(Refusal::MalformedSignature);

    #[test]
    fn a_token_is_taken_apart_in_one_way_only() {
        let good = token(r#"{"alg":"HS256","kid":"k"}"#, r#"{"a":1}"#, "AAEC");
        let parsed = Compact::parse(&good).unwrap();
        assert_eq!((parsed.text("alg"), parsed.text("kid")), (Some("HS256"), Some("k")));
        assert_eq!(parsed.signature, [0, 1, 2]);
        assert_eq!(format!("{}.AAEC", parsed.signed), good);
        assert_eq!(refused(&good), None);
        for bad in [
            String::new(),
            ".".into(),
            "..".into(),
            "...".into(),
            good.replacen('.', "..", 1),
            format!("{good}."),
            format!(".{good}"),
            format!("{good}.AAEC"),
            format!(" {good}"),
            format!("{good} "),
            format!("{good}\n"),
            format!("{good}="),
            good.replacen('.', "=.", 1),
            good.replacen('.', "\n.", 1),
            good.replace("AAEC", "AA+C"),
            good.replace("AAEC", "AA/C"),
            good.replace("AAEC", "AAF"),   // bits behind the end
            good.replace("AAEC", "AAECA"), // no length of base64
            good.replace("AAEC", "ÄÄEC"),
        ] {
            assert_eq!(refused(&bad), MALFORMED, "{bad:?}");
        }
    }

    #[test]
    fn a_member_that_is_named_twice_is_refused_in_the_header_and_in_the_claims() {
        let header = r#"{"alg":"HS256"}"#;
        assert_eq!(refused(&token(header, r#"{"aud":"x","b":{"aud":"y"}}"#, "")), None);
        assert_eq!(refused(&token(r#"{"alg":"HS256","alg":"none"}"#, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256","\u0061lg":"none"}"#, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(header, r#"{"aud":"x","aud":"y"}"#, "")), MALFORMED);
        assert_eq!(refused(&token(header, r#"{"a":[{"b":1,"b":2}]}"#, "")), MALFORMED);
        assert_eq!(refused(&token(header, "[]", "")), MALFORMED);
        assert_eq!(refused(&token(header, "{} {}", "")), MALFORMED);
        assert_eq!(refused(&token("null", "{}", "")), MALFORMED);
        assert_eq!(refused(&token(header, &format!("{}{}", "[".repeat(200), "]".repeat(200)), "")), MALFORMED);
    }

    #[test]
    fn extensions_that_are_not_understood_are_refused() {
        assert_eq!(refused(&token(r#"{"alg":"HS256","b64":true}"#, "{}", "")), None);
        assert_eq!(refused(&token(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256","b64":false}"#, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256","crit":["exp"]}"#, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256","crit":[]}"#, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256","kid":{"a":1}}"#, "{}", "")), MALFORMED);
    }

    #[test]
    fn what_is_longer_than_any_header_or_signature_is_not_decoded() {
        let long = format!(r#"{{"alg":"HS256","x":"{}"}}"#, "a".repeat(MAX_HEADER));
        assert_eq!(refused(&token(&long, "{}", "")), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256"}"#, "{}", &"A".repeat(MAX_SIGNATURE + 2))), MALFORMED);
        assert_eq!(refused(&token(r#"{"alg":"HS256"}"#, "{}", &"A".repeat(MAX_SIGNATURE))), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}|[A-Za-z0-9_=.-]{0,80}") {
            let _ = refused(&text);
        }

        #[test]
        fn no_header_or_payload_makes_it_panic(header in "\\PC{0,40}", payload in "\\PC{0,40}") {
            let _ = refused(&token(&header, &payload, "AAEC"));
        }
    }
}
