//! Is this request really a question to us, may its sender ask it, and what is the answer?
//!
//! Two kinds. A *signed* handshake is asked for only after every proof of the source passed, and only of what these
//! cover. An *unsigned* one is recognised before that: it has no proof, so what it can be made to say must be of no use
//! to a stranger (`answer.rs`), and its guards stand in for a proof where the provider offers one.
//!
//! Invariant: what is recognised is answered or refused here, and never becomes a delivery; a request that a handshake
//! alone let in (a GET, say) is a handshake or nothing.

mod answer;

use std::borrow::Cow;

use crate::fields::Fields;
use http::{HeaderName, Method, StatusCode};
use serde_json::Value;
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

use super::fields::{self, Found, Json};
use super::presented::Locator;
use super::{BuildError, Fault};
use crate::delivery::Delivery;
use crate::refusal::Refusal;
use crate::secret::Secret;

pub(crate) use answer::{Alphabet, Answer, AnswerBody, Computed, Function, Member, Piece, Reply};

/// A question is a line or two. What is larger is a delivery, and not read twice.
const LARGEST_QUESTION: usize = 16 * 1024;

/// A captured secret becomes a key: RFC 2104 §3 wants one that cannot be found by trying.
const SHORTEST_CAPTURE: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    /// Empty: whatever the source takes. Otherwise these alone, and the source need not take them.
    pub(crate) methods: Vec<Method>,
    /// All must hold.
    pub(crate) when: Vec<Condition>,
    /// Asked only of requests that every proof of the source passed.
    pub(crate) signed: bool,
    /// All must hold, or the question is refused.
    pub(crate) guards: Vec<Guard>,
    pub(crate) answer: Answer,
    /// What the provider documents for a refusal; without it, the refusal's own.
    pub(crate) refused_with: Option<StatusCode>,
    /// The secret that the sender brings: taken while one is awaited, and at no other time.
    pub(crate) capture: Option<Locator>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Condition {
    /// A string, a whole number, a boolean or null.
    Equals(Locator, Value),
    Present(Locator),
    Absent(Locator),
    /// Of JSON.
    EmptyArray(String),
    EmptyBody,
}

#[derive(Clone, Debug)]
pub(crate) enum Guard {
    /// One of the secrets, compared in constant time.
    Secret { at: Locator, secrets: Vec<Secret> },
    /// One of the values, whole: never a prefix or a part.
    OneOf { at: Locator, values: Vec<String> },
    /// The hexadecimal SHA-1 of the secret and what stands in two other places, sorted and joined.
    SortedSha1 { at: Locator, secret: Secret, with: [Locator; 2] },
}

/// A question that was recognised.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) answer: Result<Granted, Declined>,
    /// Its sender showed something that a stranger does not know, or tried to.
    pub(crate) is_guarded: bool,
}

#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) reply: Reply,
    /// To be kept before the reply is sent.
    pub(crate) captured: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declined {
    pub(crate) refusal: Refusal,
    pub(crate) note: &'static str,
    pub(crate) status: Option<StatusCode>,
}

/// What a question is read from.
pub(super) struct Asking<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a Fields,
    pub(super) query: Option<&'a str>,
    pub(super) body: &'a [u8],
    pub(super) json: &'a Json,
}

impl<'a> Asking<'a> {
    pub(super) fn of(delivery: &'a Delivery, json: &'a Json) -> Self {
        let Delivery { method, headers, query, body, .. } = delivery;
        Self { method, headers, query: query.as_deref(), body, json }
    }

    /// As a text: a number or a flag of JSON is none.
    fn text(&self, locator: &Locator) -> Found<'a> {
        match locator {
            Locator::Json(pointer) => self.json.text_at(pointer),
            _ => self.scalar(locator),
        }
    }

    fn scalar(&self, locator: &Locator) -> Found<'a> {
        match locator {
            Locator::Json(pointer) => self.json.at(pointer),
            Locator::Query(name) => fields::field(self.query.unwrap_or_default().as_bytes(), name),
            Locator::Form(name) => fields::field(self.body, name),
            Locator::Header(name) => header(self.headers, name),
            // A token's, and questions have none.
            Locator::Claim { .. } => Found::Absent,
            // No question was seen that looks there.
            Locator::FormJson { .. } => Found::Absent,
        }
    }

    fn has(&self, locator: &Locator) -> bool {
        match locator {
            Locator::Json(pointer) => self.json.has(pointer),
            _ => self.scalar(locator) != Found::Absent,
        }
    }

    fn lacks(&self, locator: &Locator) -> bool {
        match locator {
            Locator::Json(pointer) => self.json.lacks(pointer),
            _ => self.scalar(locator) == Found::Absent,
        }
    }

    fn equals(&self, locator: &Locator, expected: &Value) -> bool {
        if let Locator::Json(pointer) = locator {
            return self.json.equals(pointer, expected);
        }
        let Found::Value(found) = self.scalar(locator) else { return false };
        match expected {
            Value::String(text) => *found == *text.as_bytes(),
            Value::Number(_) | Value::Bool(_) => *found == *expected.to_string().as_bytes(),
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        }
    }
}

fn header<'a>(headers: &'a Fields, name: &HeaderName) -> Found<'a> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Found::Absent,
        (Some(_), Some(_)) => Found::Ambiguous,
        (Some(value), None) => Found::Value(Cow::Borrowed(value.as_bytes().trim_ascii())),
    }
}

impl Condition {
    fn holds(&self, asking: &Asking<'_>) -> bool {
        match self {
            Self::Equals(locator, value) => asking.equals(locator, value),
            Self::Present(locator) => asking.has(locator),
            Self::Absent(locator) => asking.lacks(locator),
            Self::EmptyArray(pointer) => asking.json.is_empty_array(pointer),
            Self::EmptyBody => asking.body.is_empty(),
        }
    }

    /// Where it looks into the body, this cannot be said from the head.
    fn holds_for_head(&self, asking: &Asking<'_>) -> bool {
        match self {
            Self::Equals(Locator::Header(_) | Locator::Query(_), _)
            | Self::Present(Locator::Header(_) | Locator::Query(_))
            | Self::Absent(Locator::Header(_) | Locator::Query(_)) => self.holds(asking),
            _ => true,
        }
    }

    fn pointer(&self) -> Option<&str> {
        match self {
            Self::Equals(Locator::Json(pointer), _)
            | Self::Present(Locator::Json(pointer))
            | Self::Absent(Locator::Json(pointer))
            | Self::EmptyArray(pointer) => Some(pointer),
            _ => None,
        }
    }
}

impl Guard {
    fn judge(&self, asking: &Asking<'_>) -> Result<(), Fault> {
        match self {
            Self::Secret { at, secrets } => {
                let (presented, missing) = match asking.text(at) {
                    Found::Value(bytes) if !bytes.is_empty() => (bytes, false),
                    Found::Value(_) | Found::Absent | Found::Ambiguous => (Cow::Borrowed(&b""[..]), true),
                };
                let matches = secrets.iter().fold(false, |any, secret| secret.matches(&presented) | any);
                match (missing, matches) {
                    (false, true) => Ok(()),
                    (true, _) => Err(fault(Refusal::MissingCredentials, "the handshake lacks its token")),
                    (false, false) => Err(fault(Refusal::BadCredentials, "the handshake's token is another one")),
                }
            }
            Self::OneOf { at, values } => match asking.scalar(at) {
                Found::Value(found) if values.iter().any(|value| *found == *value.as_bytes()) => Ok(()),
                Found::Absent => Err(fault(Refusal::MissingChallenge, "the handshake does not say what it is about")),
                Found::Value(_) | Found::Ambiguous => {
                    Err(fault(Refusal::BadClaims, "the handshake is about something that was not asked for"))
                }
            },
            Self::SortedSha1 { at, secret, with } => {
                let presented = match asking.text(at) {
                    Found::Value(bytes) => hex::decode(&*bytes).unwrap_or_default(),
                    Found::Absent | Found::Ambiguous => {
                        return Err(fault(Refusal::MissingSignature, "the handshake lacks its signature"));
                    }
                };
                let [first, second] = with.each_ref().map(|part| match asking.text(part) {
                    Found::Value(bytes) => bytes,
                    Found::Absent | Found::Ambiguous => Cow::Borrowed(&b""[..]),
                });
                let mut parts = [secret.expose(), &first, &second];
                parts.sort_unstable();
                let digest = parts.iter().fold(Sha1::new(), |hash, part| hash.chain_update(part)).finalize();
                if bool::from(digest.as_slice().ct_eq(&presented)) {
                    Ok(())
                } else {
                    Err(fault(Refusal::BadSignature, "the handshake's signature is not ours"))
                }
            }
        }
    }

    fn locators(&self) -> Vec<&Locator> {
        match self {
            Self::Secret { at, .. } | Self::OneOf { at, .. } => vec![at],
            Self::SortedSha1 { at, with: [first, second], .. } => vec![at, first, second],
        }
    }

    fn is_secret(&self) -> bool {
        matches!(self, Self::Secret { .. } | Self::SortedSha1 { .. })
    }
}

const fn fault(refusal: Refusal, note: &'static str) -> Fault {
    Fault { refusal, note }
}

impl Handshake {
    pub(crate) fn pointers(&self) -> Vec<&str> {
        let locators = self.answer.locators().chain(self.guards.iter().flat_map(Guard::locators)).chain(&self.capture);
        let theirs = locators.filter_map(|locator| match locator {
            Locator::Json(pointer) => Some(pointer.as_str()),
            _ => None,
        });
        self.when.iter().filter_map(Condition::pointer).chain(theirs).collect()
    }

    pub(super) fn check(&self) -> Result<(), BuildError> {
        // A method that deliveries come with marks nothing.
        let marked =
            !self.when.is_empty() || !self.signed && !self.methods.is_empty() && !self.methods.contains(&Method::POST);
        if !marked {
            return Err(BuildError::HandshakeMatchesEverything);
        }
        if self.signed && (!self.methods.is_empty() || self.capture.is_some()) {
            return Err(BuildError::HandshakeSignedAndNew);
        }
        let compound = |value: &Value| value.is_array() || value.is_object() || value.is_f64();
        for condition in &self.when {
            match condition {
                Condition::Equals(locator, value) if compound(value) => {
                    return Err(BuildError::HandshakeNotScalar(locator.to_string()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Does something that the sender wrote become part of the answer?
    pub(super) fn echoes(&self) -> bool {
        self.answer.locators().next().is_some()
    }

    /// As far as method, headers and query tell.
    pub(super) fn may_be(&self, method: &Method, headers: &Fields, query: Option<&str>) -> bool {
        let asking = Asking { method, headers, query, body: b"", json: &Json::default() };
        self.takes(method) && self.when.iter().all(|condition| condition.holds_for_head(&asking))
    }

    /// A method that this handshake brings with it.
    pub(super) fn brings(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    fn takes(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    pub(super) fn recognises(&self, asking: &Asking<'_>) -> bool {
        self.takes(asking.method) && self.when.iter().all(|condition| condition.holds(asking))
    }

    /// All guards are judged before the first failure is told.
    pub(super) fn grant(&self, asking: &Asking<'_>) -> Result<Granted, Fault> {
        let mut failed = None;
        for guard in &self.guards {
            failed = failed.or(guard.judge(asking).err());
        }
        if let Some(fault) = failed {
            return Err(fault);
        }
        let captured = match &self.capture {
            Some(locator) => {
                let text = answer::echo(locator, Alphabet::Word, asking)?;
                if text.len() < SHORTEST_CAPTURE {
                    return Err(fault(
                        Refusal::Malformed,
                        "the secret that the handshake brings is too short for a key",
                    ));
                }
                Some(Secret::new(text.into_bytes()))
            }
            None => None,
        };
        Ok(Granted { reply: self.answer.reply(asking)?, captured })
    }

    fn is_guarded(&self) -> bool {
        self.guards.iter().any(Guard::is_secret)
    }
}

/// The questions of one source that need no proof.
#[derive(Debug, Default)]
pub(super) struct Unsigned {
    handshakes: Vec<Handshake>,
    pointers: fields::Pointers,
}

impl Unsigned {
    pub(super) fn new(handshakes: Vec<Handshake>) -> Result<Self, String> {
        let mut pointers = fields::Pointers::default();
        for pointer in handshakes.iter().flat_map(Handshake::pointers) {
            pointers.add(pointer).map_err(|_| pointer.to_owned())?;
        }
        Ok(Self { handshakes, pointers })
    }

    /// Is a request let in that has this head and a method that the source does not take?
    pub(super) fn admits(&self, method: &Method, headers: &Fields, query: Option<&str>) -> bool {
        let never = matches!(*method, Method::CONNECT | Method::TRACE);
        !never && self.handshakes.iter().any(|shake| shake.brings(method) && shake.may_be(method, headers, query))
    }

    /// `awaits`: the source has no secret yet, and is to take the one that is brought.
    pub(super) fn ask(&self, delivery: &Delivery, awaits: bool) -> Option<Asked> {
        if self.handshakes.is_empty() || delivery.body.len() > LARGEST_QUESTION {
            return None;
        }
        let may_be = |shake: &&Handshake| shake.may_be(&delivery.method, &delivery.headers, delivery.query.as_deref());
        let candidates: Vec<&Handshake> = self.handshakes.iter().filter(may_be).collect();
        let json = match candidates.iter().any(|shake| !shake.pointers().is_empty()) {
            true => self.pointers.read(&delivery.body),
            false => Json::default(),
        };
        let asking = Asking::of(delivery, &json);
        let shake = candidates.into_iter().find(|shake| {
            let in_time = awaits || shake.capture.is_none();
            in_time && shake.recognises(&asking)
        })?;
        let answer = shake.grant(&asking).map_err(|Fault { refusal, note }| Declined {
            refusal,
            note,
            status: shake.refused_with,
        });
        Some(Asked { answer, is_guarded: shake.is_guarded() })
    }

    /// Would it be a handshake, were a secret awaited?
    pub(super) fn brings_a_secret(&self, delivery: &Delivery) -> bool {
        if !self.handshakes.iter().any(|shake| shake.capture.is_some()) || delivery.body.len() > LARGEST_QUESTION {
            return false;
        }
        let json = self.pointers.read(&delivery.body);
        let asking = Asking::of(delivery, &json);
        self.handshakes.iter().any(|shake| shake.capture.is_some() && shake.recognises(&asking))
    }
}

#[cfg(test)]
mod tests;
