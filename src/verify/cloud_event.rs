//! CloudEvents over HTTP (http-webhook.md, section 3): a token in `Authorization: Bearer`, or in the query where the sender
//! has no other way.
//!
//! Invariant: every configured token is compared, in constant time; one in the query counts only where there is no
//! Authorization at all. What the event calls itself (`source` and `id` together) is read when the sender is known, and
//! nothing stands for it: a token covers no body.

use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;
use serde_json::Value;

use super::fields::{self, Found, Pointers};
use super::jwt::Object;
use super::presented::{HeaderText, header_text};
use super::proof::{Failure, Proof, Question};
use super::sign::{Draft, SignError, Signing};
use super::{Fault, Findings};
use crate::delivery::Delivery;
use crate::refusal::Refusal;
use crate::secret::Secret;

const ATTRIBUTES: [&str; 3] = ["id", "source", "type"];
/// The attributes as claims, and this one besides: a CloudEvent is known by its source and its id together.
const IDENTITY: &str = "identity";

#[derive(Clone, Debug)]
pub(crate) struct CloudEvents {
    label: Arc<str>,
    tokens: Vec<Secret>,
    query: String,
    pointers: Pointers,
}

const fn missing(note: &'static str) -> Fault {
    Fault { refusal: Refusal::MissingCredentials, note }
}

const fn bad(note: &'static str) -> Fault {
    Fault { refusal: Refusal::BadCredentials, note }
}

impl CloudEvents {
    /// `query`: the parameter's name.
    pub(crate) fn new(label: Arc<str>, tokens: Vec<Secret>, query: String) -> Self {
        let mut pointers = Pointers::default();
        for name in ATTRIBUTES {
            // A name of letters makes a pointer.
            let _ = pointers.add(&format!("/{name}"));
        }
        Self { label, tokens, query, pointers }
    }

    fn judge(&self, delivery: &Delivery) -> Result<usize, Fault> {
        let found = match header_text(delivery, &AUTHORIZATION) {
            HeaderText::One(text) => match text.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                    Found::Value(token.trim().as_bytes().into())
                }
                Some(_) | None => return Err(missing("the Authorization header is of another scheme")),
            },
            HeaderText::None => fields::field(delivery.query.as_deref().unwrap_or_default().as_bytes(), &self.query),
            HeaderText::Several | HeaderText::Unreadable => {
                return Err(bad("the header of the credentials stands there twice, or is not visible ASCII"));
            }
        };
        let presented = match found {
            Found::Value(token) if !token.is_empty() => token,
            Found::Value(_) | Found::Absent => return Err(missing("no token was presented")),
            Found::Ambiguous => return Err(bad("the token stands in the query twice")),
        };
        // All of them, whichever matches.
        let matches: Vec<bool> = self.tokens.iter().map(|token| token.matches(&presented)).collect();
        matches.iter().position(|matched| *matched).ok_or(bad("none of the configured tokens was presented"))
    }

    /// In the headers (`ce-…`), or in the body's own JSON.
    fn attributes(&self, delivery: &Delivery) -> Object {
        let in_headers = delivery.headers.contains_key("ce-id");
        let json = if in_headers { None } else { Some(self.pointers.read(&delivery.body)) };
        let mut found = Object::new();
        for name in ATTRIBUTES {
            let text = match &json {
                Some(json) => match json.at(&format!("/{name}")) {
                    Found::Value(text) => String::from_utf8(text.into_owned()).ok(),
                    Found::Absent | Found::Ambiguous => None,
                },
                None => match HeaderName::from_bytes(format!("ce-{name}").as_bytes()) {
                    Ok(header) => match header_text(delivery, &header) {
                        HeaderText::One(text) => Some(text.to_owned()),
                        HeaderText::None | HeaderText::Several | HeaderText::Unreadable => None,
                    },
                    Err(_) => None,
                },
            };
            if let Some(text) = text {
                found.insert(name.to_owned(), Value::String(text));
            }
        }
        if let (Some(Value::String(source)), Some(Value::String(id))) = (found.get("source"), found.get("id")) {
            let identity = format!("{source} {id}");
            found.insert(IDENTITY.to_owned(), Value::String(identity));
        }
        found
    }
}

impl Proof for CloudEvents {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let token = self.judge(question.delivery)?;
        let claims = Some(self.attributes(question.delivery));
        Ok(Findings { secret_used: Some(token), claims, ..Findings::default() })
    }

    fn secrets(&self) -> usize {
        self.tokens.len()
    }

    fn is_guessable(&self) -> bool {
        true
    }

    fn sign(&self, draft: &mut Draft, _signing: &Signing<'_>) -> Result<(), SignError> {
        let token = self.tokens.first().ok_or(SignError::Incomplete)?;
        let text = std::str::from_utf8(token.expose()).map_err(|_| SignError::NotAHeaderValue)?;
        draft.add(&AUTHORIZATION, &format!("Bearer {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::fetched::NoLibrary;
    use crate::fields::Fields;
    use crate::verify::fields::Json;
    use http::{HeaderValue, Method};

    fn cloud_events() -> CloudEvents {
        let tokens = ["new", "old"].map(|text| Secret::new(text.into())).to_vec();
        CloudEvents::new("cloudevents".into(), tokens, "access_token".to_owned())
    }

    fn delivery(headers: &[(&'static str, &str)], query: Option<&str>, body: &str) -> Delivery {
        let headers: Fields =
            headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect();
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "h".into(),
            path: "/".into(),
            query: query.map(str::to_owned),
            headers,
            body: body.to_owned().into(),
        }
    }

    fn examined(delivery: &Delivery) -> Result<Findings, Refusal> {
        let json = Json::default();
        let now = UnixMillis::from_secs(1);
        let question = Question { delivery, json: &json, public_url: None, now, library: &NoLibrary };
        cloud_events().examine(&question).map_err(|failure| failure.fault.refusal)
    }

    fn judged(headers: &[(&'static str, &str)], query: Option<&str>) -> Result<Option<usize>, Refusal> {
        examined(&delivery(headers, query, "{}")).map(|findings| findings.secret_used)
    }

    #[test]
    fn a_token_stands_in_the_header_or_else_in_the_query() {
        assert_eq!(judged(&[("authorization", "Bearer new")], None), Ok(Some(0)));
        assert_eq!(judged(&[("authorization", "bearer old")], None), Ok(Some(1)));
        assert_eq!(judged(&[], Some("p=q&access_token=old")), Ok(Some(1)));
        for (headers, query, expected) in [
            (&[][..], None, Refusal::MissingCredentials),
            (&[], Some("access_token="), Refusal::MissingCredentials),
            (&[], Some("access_token=nope"), Refusal::BadCredentials),
            (&[], Some("access_token=new&access_token=new"), Refusal::BadCredentials),
            (&[("authorization", "Bearer nope")], Some("access_token=new"), Refusal::BadCredentials),
            (&[("authorization", "Basic new")], Some("access_token=new"), Refusal::MissingCredentials),
            (&[("authorization", "new")], None, Refusal::MissingCredentials),
        ] {
            assert_eq!(judged(headers, query), Err(expected), "{headers:?} {query:?}");
        }
    }

    #[test]
    fn an_event_is_known_by_its_source_and_its_id_together() {
        let claim = |delivery: &Delivery, name: &str| {
            examined(delivery).unwrap().claims.and_then(|claims| claims.get(name)?.as_str().map(str::to_owned))
        };
        let token = ("authorization", "Bearer new");
        let structured = delivery(&[token], None, r#"{"id":"1","source":"/s","type":"t"}"#);
        assert_eq!(claim(&structured, "identity").as_deref(), Some("/s 1"));
        assert_eq!(claim(&structured, "type").as_deref(), Some("t"));
        let headers = [token, ("ce-id", "2"), ("ce-source", "/h"), ("ce-type", "u")];
        let binary = delivery(&headers, None, r#"{"id":"1","source":"/s"}"#);
        assert_eq!(claim(&binary, "identity").as_deref(), Some("/h 2"));
        let doubled = delivery(&[token], None, r#"{"id":"1","id":"2","source":"/s"}"#);
        assert_eq!(claim(&doubled, "identity"), None);
    }

    #[test]
    fn what_a_sender_adds_is_accepted() {
        let mut draft = Draft::new(delivery(&[], None, "{}"));
        let signing = Signing { id: "", now: UnixMillis::from_secs(1), private: None, public_url: None };
        cloud_events().sign(&mut draft, &signing).unwrap();
        assert_eq!(examined(&draft.delivery).unwrap().secret_used, Some(0));
    }
}
