//! Is the token made for this very request? Claims that hold a digest of the body or of the URL.
//!
//! Invariant: digests are compared as bytes and in constant time; a claim that is missing, of another type or not in the
//! configured encoding does not match. Only a token whose signature was judged comes here.

use base64::Engine;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

use super::super::Fault;
use super::super::fields;
use super::super::key::{BASE64, BASE64URL};
use super::super::presented::Encoding;
use super::claims::claim;
use super::compact::Object;
use super::fault;
use crate::delivery::Delivery;
use crate::refusal::Refusal;

/// A claim that holds the digest of what was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DigestClaim {
    pub(crate) claim: String,
    pub(crate) hash: ClaimHash,
    pub(crate) encoding: Encoding,
    /// A request without a body has no such claim (and may not have one).
    pub(crate) absent_when_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimHash {
    Sha256,
    Sha384,
    Sha512,
}

/// Atlassian's digest of method, path and query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueryHash {
    pub(crate) claim: String,
    /// The path of the app's own base URL, which the sender leaves off. No slash at its end.
    pub(crate) base_path: String,
}

const MISMATCH: Fault = fault(Refusal::BodyMismatch, "the token was made for another body or URL");

const UNESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl ClaimHash {
    pub(super) fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}

impl DigestClaim {
    pub(super) fn judge(&self, claims: &Object, bytes: &[u8]) -> Result<(), Fault> {
        let stated = claim(claims, &self.claim);
        if self.absent_when_empty && bytes.is_empty() {
            return if stated.is_none() { Ok(()) } else { Err(MISMATCH) };
        }
        let stated = stated.and_then(Value::as_str).and_then(|text| match self.encoding {
            Encoding::Hex => hex::decode(text).ok(),
            Encoding::Base64 => BASE64.decode(text).ok(),
            Encoding::Base64Url => BASE64URL.decode(text).ok(),
        });
        let same = stated.is_some_and(|stated| self.hash.digest(bytes).ct_eq(&stated).into());
        if same { Ok(()) } else { Err(MISMATCH) }
    }

    /// What a sender writes into the claim; `None` where it leaves the claim out.
    pub(super) fn state(&self, bytes: &[u8]) -> Option<String> {
        let left_out = self.absent_when_empty && bytes.is_empty();
        (!left_out).then(|| self.encoding.encode(&self.hash.digest(bytes)))
    }
}

impl QueryHash {
    /// `token_parameter` is the query parameter that holds the token itself, and is no part of what it stands for.
    pub(super) fn judge(
        &self,
        claims: &Object,
        delivery: &Delivery,
        token_parameter: Option<&str>,
    ) -> Result<(), Fault> {
        let stated = claim(claims, &self.claim).and_then(Value::as_str).and_then(|text| hex::decode(text).ok());
        let (stated, forms) = stated.zip(self.forms(delivery, token_parameter)).ok_or(MISMATCH)?;
        let same = forms.iter().any(|form| Sha256::digest(form).as_slice().ct_eq(&stated).into());
        if same { Ok(()) } else { Err(MISMATCH) }
    }

    pub(super) fn state(&self, delivery: &Delivery, token_parameter: Option<&str>) -> Option<String> {
        self.forms(delivery, token_parameter)?.first().map(|form| hex::encode(Sha256::digest(form)))
    }

    /// Method, path and query, canonical. Senders agree to sort the parameters by name, and not on whether the names are
    /// then percent-encoded; either order stands for the same request.
    fn forms(&self, delivery: &Delivery, token_parameter: Option<&str>) -> Option<[String; 2]> {
        let path = delivery.path.strip_prefix(self.base_path.as_str())?;
        if !path.is_empty() && !path.starts_with('/') {
            return None;
        }
        let path = match path.trim_end_matches('/') {
            "" => "/".to_owned(),
            path => path.replace('&', "%26"),
        };
        let query = delivery.query.as_deref().unwrap_or_default().as_bytes();
        let mut pairs: Vec<_> = fields::fields(query)
            .filter(|(name, _)| token_parameter.is_none_or(|parameter| name.as_ref() != parameter.as_bytes()))
            .collect();
        pairs.sort();
        let escape = |bytes: &[u8]| percent_encode(bytes, UNESCAPED).to_string();
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut last: Option<&[u8]> = None;
        for (name, value) in &pairs {
            match parameters.last_mut() {
                Some((_, values)) if last == Some(name.as_ref()) => {
                    values.push(',');
                    values.push_str(&escape(value));
                }
                _ => parameters.push((escape(name), escape(value))),
            }
            last = Some(name);
        }
        let form = |parameters: &[(String, String)]| {
            let query: Vec<_> = parameters.iter().map(|(name, values)| format!("{name}={values}")).collect();
            format!("{}&{path}&{}", delivery.method.as_str().to_ascii_uppercase(), query.join("&"))
        };
        let by_name = form(&parameters);
        parameters.sort();
        Some([by_name, form(&parameters)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::Method;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    fn judged(binding: &DigestClaim, claims: Value, body: &[u8]) -> Option<Refusal> {
        binding.judge(&object(claims), body).err().map(|fault| fault.refusal)
    }

    const MISMATCHED: Option<Refusal> = Some(Refusal::BodyMismatch);

    #[test]
    fn a_digest_is_read_in_its_own_encoding_only() {
        let digest = Sha256::digest(b"body");
        let spelled = |encoding: Encoding| encoding.encode(&digest);
        for encoding in [Encoding::Hex, Encoding::Base64, Encoding::Base64Url] {
            let binding =
                DigestClaim { claim: "h".into(), hash: ClaimHash::Sha256, encoding, absent_when_empty: false };
            assert_eq!(judged(&binding, json!({ "h": spelled(encoding) }), b"body"), None, "{encoding:?}");
            assert_eq!(judged(&binding, json!({ "h": binding.state(b"body") }), b"body"), None, "{encoding:?}");
            assert_eq!(judged(&binding, json!({ "h": spelled(encoding) }), b"Body"), MISMATCHED);
            assert_eq!(judged(&binding, json!({ "h": spelled(encoding) }), b""), MISMATCHED);
            for other in [json!(null), json!(""), json!(1), json!([spelled(encoding)]), json!("äö")] {
                assert_eq!(judged(&binding, json!({ "h": other }), b"body"), MISMATCHED, "{other}");
            }
            assert_eq!(judged(&binding, json!({}), b"body"), MISMATCHED);
        }
        let hex =
            |encoding| DigestClaim { claim: "h".into(), hash: ClaimHash::Sha256, encoding, absent_when_empty: false };
        assert_eq!(judged(&hex(Encoding::Base64), json!({ "h": spelled(Encoding::Hex) }), b"body"), MISMATCHED);
        assert_eq!(judged(&hex(Encoding::Hex), json!({ "h": spelled(Encoding::Base64) }), b"body"), MISMATCHED);
        let cut = spelled(Encoding::Hex).get(..32).unwrap().to_owned();
        assert_eq!(judged(&hex(Encoding::Hex), json!({ "h": cut }), b"body"), MISMATCHED);
    }

    #[test]
    fn a_request_without_a_body_has_no_digest_where_the_sender_leaves_it_out() {
        let binding = DigestClaim {
            claim: "h".into(),
            hash: ClaimHash::Sha256,
            encoding: Encoding::Hex,
            absent_when_empty: true,
        };
        assert_eq!(judged(&binding, json!({}), b""), None);
        assert_eq!(judged(&binding, json!({}), b"added"), MISMATCHED);
        assert_eq!(judged(&binding, json!({ "h": hex::encode(Sha256::digest(b"taken")) }), b""), MISMATCHED);
        assert_eq!(binding.state(b""), None);
    }

    fn get(path: &str, query: Option<&str>) -> Delivery {
        Delivery {
            method: Method::GET,
            scheme: "https",
            authority: "h".into(),
            path: path.into(),
            query: query.map(str::to_owned),
            headers: Fields::new(),
            body: Bytes::new(),
        }
    }

    fn form(base_path: &str, delivery: &Delivery) -> Option<String> {
        let hash = QueryHash { claim: "qsh".into(), base_path: base_path.into() };
        hash.forms(delivery, Some("jwt")).map(|[form, _]| form)
    }

    #[test]
    fn method_path_and_query_have_one_canonical_form() {
        let said = |path, query| form("/app", &get(path, query)).unwrap();
        assert_eq!(said("/app/x", Some("b=2&a=x%20y&a=z&c=%7E*")), "GET&/x&a=x%20y,z&b=2&c=~%2A");
        assert_eq!(said("/app/x/", Some("jwt=aa.bb.cc&a=1+2")), "GET&/x&a=1%202");
        assert_eq!(said("/app", None), "GET&/&");
        assert_eq!(said("/app/", Some("")), "GET&/&");
        assert_eq!(said("/app/a&b", Some("x")), "GET&/a%26b&x=");
        assert_eq!(form("/app", &get("/application/x", None)), None);
        assert_eq!(form("/app", &get("/other", None)), None);
    }

    #[test]
    fn a_token_for_one_query_is_of_no_use_with_another() {
        let hash = QueryHash { claim: "qsh".into(), base_path: String::new() };
        let asked = get("/x", Some("a=1"));
        let claims = object(json!({ "qsh": hash.state(&asked, None) }));
        assert!(hash.judge(&claims, &asked, None).is_ok());
        for other in [get("/x", Some("a=2")), get("/x", Some("a=1&a=1")), get("/x", None), get("/y", Some("a=1"))] {
            assert_eq!(hash.judge(&claims, &other, None).unwrap_err().refusal, Refusal::BodyMismatch);
        }
        let posted = Delivery { method: Method::POST, ..get("/x", Some("a=1")) };
        assert_eq!(hash.judge(&claims, &posted, None).unwrap_err().refusal, Refusal::BodyMismatch);
        assert!(hash.judge(&object(json!({})), &asked, None).is_err());
        assert!(hash.judge(&object(json!({ "qsh": "context-qsh" })), &asked, None).is_err());
    }
}
