//! Does every item of a list in the body name the secret that the sender was given? Microsoft Graph's `clientState`.
//!
//! Invariant: every item and every configured secret is compared, in constant time, before we answer. It is a password in
//! the body: it proves who sent, and stands for nothing else.

use std::sync::Arc;

use serde_json::Value;

use super::proof::{Failure, Proof, Question};
use super::sign::{Draft, SignError, Signing};
use super::{Fault, Findings, jwt};
use crate::refusal::Refusal;
use crate::secret::Secret;

/// Senders gather events, but not so many.
const MAX_ITEMS: usize = 4096;

#[derive(Clone, Debug)]
pub(crate) struct EachMember {
    /// Among the checks that passed.
    pub(crate) label: Arc<str>,
    /// JSON pointer to the list.
    pub(crate) array: String,
    /// JSON pointer from an item to its secret.
    pub(crate) member: String,
    pub(crate) secrets: Vec<Secret>,
}

const fn fault(refusal: Refusal, note: &'static str) -> Fault {
    Fault { refusal, note }
}

impl EachMember {
    fn judge(&self, body: &[u8]) -> Result<Option<usize>, Fault> {
        const MISSING: Fault = fault(Refusal::MissingSignature, "an item in the body lacks the sender's secret");
        let malformed = |note| fault(Refusal::MalformedSignature, note);
        let body = jwt::distinct_json(body).ok_or(malformed("the body is not JSON of distinct members"))?;
        let items = match body.pointer(&self.array) {
            Some(Value::Array(items)) if items.is_empty() => return Err(MISSING),
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => return Err(MISSING),
            Some(_) => return Err(malformed("the field of the items is not an array")),
        };
        if items.len() > MAX_ITEMS {
            return Err(malformed("more items than a delivery may hold"));
        }
        let mut used = None;
        let mut failure = None;
        for item in items {
            let stated = match item.pointer(&self.member) {
                Some(Value::String(text)) if !text.is_empty() => text,
                _ => {
                    failure = failure.or(Some(MISSING));
                    continue;
                }
            };
            let matches: Vec<bool> = self.secrets.iter().map(|secret| secret.matches(stated.as_bytes())).collect();
            match matches.iter().position(|matched| *matched) {
                Some(position) => used = used.or(Some(position)),
                None => failure = failure.or(Some(fault(Refusal::BadClaims, "an item in the body has another secret"))),
            }
        }
        failure.map_or(Ok(used), Err)
    }
}

impl Proof for EachMember {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let secret_used = self.judge(&question.delivery.body)?;
        Ok(Findings { secret_used, ..Findings::default() })
    }

    fn secrets(&self) -> usize {
        self.secrets.len()
    }

    fn is_guessable(&self) -> bool {
        true
    }

    /// The secret goes into every item that is there.
    fn sign(&self, draft: &mut Draft, _signing: &Signing<'_>) -> Result<(), SignError> {
        let mut body = jwt::distinct_json(&draft.delivery.body).ok_or(SignError::Incomplete)?;
        let secret = self.secrets.first().and_then(|secret| std::str::from_utf8(secret.expose()).ok());
        let secret = secret.ok_or(SignError::NotAHeaderValue)?;
        let items = body.pointer_mut(&self.array).and_then(Value::as_array_mut).ok_or(SignError::Incomplete)?;
        let name =
            self.member.strip_prefix('/').filter(|name| !name.contains(['/', '~'])).ok_or(SignError::Incomplete)?;
        for item in items {
            item.as_object_mut().ok_or(SignError::Incomplete)?.insert(name.to_owned(), secret.into());
        }
        draft.delivery.body = body.to_string().into_bytes().into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(body: &str) -> Result<Option<usize>, Refusal> {
        let secrets = ["old-client-state", "new-client-state"].map(|text| Secret::new(text.into())).to_vec();
        let each = EachMember { label: "g".into(), array: "/value".into(), member: "/clientState".into(), secrets };
        each.judge(body.as_bytes()).map_err(|fault| fault.refusal)
    }

    #[test]
    fn every_item_names_a_secret_that_we_gave() {
        assert_eq!(judged(r#"{"value":[{"clientState":"new-client-state"}]}"#), Ok(Some(1)));
        let both = r#"{"value":[{"clientState":"old-client-state"},{"clientState":"new-client-state"}]}"#;
        assert_eq!(judged(both), Ok(Some(0)));
        let second = r#"{"value":[{"clientState":"old-client-state"},{"clientState":"Old-client-state"}]}"#;
        assert_eq!(judged(second), Err(Refusal::BadClaims));
        assert_eq!(judged(r#"{"value":[{"clientState":"old-client-state"},{}]}"#), Err(Refusal::MissingSignature));
    }

    #[test]
    fn a_body_that_two_parsers_could_read_differently_is_refused() {
        let doubled = r#"{"value":[{"clientState":"old-client-state","clientState":"x"}]}"#;
        assert_eq!(judged(doubled), Err(Refusal::MalformedSignature));
        let hidden = r#"{"value":[{"clientState":"x"}],"value":[{"clientState":"old-client-state"}]}"#;
        assert_eq!(judged(hidden), Err(Refusal::MalformedSignature));
        assert_eq!(judged(r#"{"value":{"clientState":"old-client-state"}}"#), Err(Refusal::MalformedSignature));
        for nothing in ["{}", r#"{"value":[]}"#, r#"{"value":null}"#] {
            assert_eq!(judged(nothing), Err(Refusal::MissingSignature), "{nothing}");
        }
        assert_eq!(judged("old-client-state"), Err(Refusal::MalformedSignature));
    }
}
