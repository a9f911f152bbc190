//! Signatures of the HTTP standards: RFC 9421, where the sender chooses what it signs, the cavage drafts before it, and
//! WebSub, which signs the body.
//!
//! Invariant: what the sender chose to sign proves nothing by itself. Every component that the source requires is
//! covered, a covered digest is the body's, the time is signed and fresh, and the algorithm is the configured key's
//! own, whatever the message calls it. Of several signatures each is judged; one that satisfies all of this is enough,
//! and all that do are remembered, so that a copy with one of them taken off is still a copy.

mod cavage;
mod component;
mod digest;
mod keyring;
mod rfc9421;
mod structured;
mod websub;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use sha2::{Digest, Sha256};

use super::presented::Locator;
use super::proof::{Coverage, Failure, Proof, Question, signs_query_as_sent};
use super::sign::{Draft, SignError, Signing};
use super::{Fault, Findings};
use crate::clock::UnixMillis;
use crate::refusal::Refusal;

use component::Target;
use structured::{Bare, Item};

pub(crate) use cavage::Place as CavagePlace;
pub(crate) use keyring::{MessageAlgorithm, SignerKey, looks_public};

/// The rules of one source.
#[derive(Clone, Debug)]
pub(crate) struct HttpSignature {
    /// Among the checks that passed.
    pub(crate) label: Arc<str>,
    pub(crate) standard: Standard,
    pub(crate) keys: Vec<SignerKey>,
    /// What a signature has to cover to count.
    pub(crate) required: Vec<Required>,
    pub(crate) max_age: Duration,
    /// How far a sender's clock may be ahead of ours.
    pub(crate) clock_skew: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum Standard {
    Rfc9421 {
        /// Signatures with another tag, or with none, are for somebody else.
        tag: Option<String>,
        /// A nonce has to be there, and is accepted once.
        nonce: bool,
    },
    Cavage {
        /// Alternatives; the first that is present counts.
        places: Vec<CavagePlace>,
    },
    WebSub {
        header: HeaderName,
        /// For each secret, one for every hash that a hub may name.
        keys_each: usize,
    },
}

/// A component that has to be covered: `@method`, `content-digest`, `@query-param;name="id"`, `(request-target)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Required {
    name: String,
    /// As the signature base spells it.
    identifier: String,
    plain: bool,
}

impl Required {
    /// `None` for what is no component of this standard.
    pub(crate) fn parse(text: &str, standard: &Standard) -> Option<Self> {
        match standard {
            Standard::Rfc9421 { .. } => {
                let (name, parameters) = text.split_at_checked(text.find(';').unwrap_or(text.len()))?;
                let quoted = format!("\"{name}\"{parameters}");
                let item = Item::parse(&quoted)?;
                if !component::is_possible(&item) {
                    return None;
                }
                let mut identifier = String::new();
                item.write(&mut identifier);
                Some(Self { name: name.to_owned(), identifier, plain: item.parameters.is_empty() })
            }
            Standard::WebSub { .. } => None,
            Standard::Cavage { .. } => cavage::is_possible(text).then(|| Self {
                name: text.to_owned(),
                identifier: text.to_owned(),
                plain: true,
            }),
        }
    }

    /// Covering a field in its strict form, or as bytes, covers all of it; covering one member does not.
    fn is_met_by(&self, item: &Item<'_>, identifier: &str) -> bool {
        let whole = item.parameters.iter().all(|(name, _)| matches!(name, "sf" | "bs"));
        let same_name = matches!(&item.value, Bare::Text(name) if *name == self.name);
        identifier == self.identifier || (self.plain && same_name && whole)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uncovered {
    pub(crate) body: bool,
    /// The authority for which a delivery was signed.
    pub(crate) receiver: bool,
    pub(crate) method: bool,
    pub(crate) time: bool,
}

/// What a signature lacks, in the order in which a better one would come further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Missing(&'static str),
    MissingTime(&'static str),
    UntrustedKey(&'static str),
    Malformed(&'static str),
    Algorithm(&'static str),
    BadSignature(&'static str),
    /// And nothing else is amiss.
    OnlySignature(&'static str),
    Stale(&'static str),
    NotCovered(&'static str),
    BodyMismatch(&'static str),
}

impl Flaw {
    fn depth(self) -> u8 {
        match self {
            Self::Missing(_) | Self::MissingTime(_) => 0,
            Self::UntrustedKey(_) => 1,
            Self::Malformed(_) => 2,
            Self::Algorithm(_) => 3,
            Self::BadSignature(_) => 4,
            Self::OnlySignature(_) => 5,
            Self::Stale(_) => 6,
            Self::NotCovered(_) => 7,
            Self::BodyMismatch(_) => 8,
        }
    }

    /// Of two signatures that failed, what the one says that came further.
    fn further(self, other: Option<Self>) -> Self {
        other.filter(|other| other.depth() >= self.depth()).unwrap_or(self)
    }
}

impl From<Flaw> for Fault {
    fn from(flaw: Flaw) -> Self {
        let (refusal, note) = match flaw {
            Flaw::Missing(note) => (Refusal::MissingSignature, note),
            Flaw::MissingTime(note) => (Refusal::MissingTimestamp, note),
            Flaw::UntrustedKey(note) => (Refusal::UntrustedKey, note),
            Flaw::Malformed(note) => (Refusal::MalformedSignature, note),
            Flaw::Algorithm(note) => (Refusal::AlgorithmNotAllowed, note),
            Flaw::BadSignature(note) | Flaw::OnlySignature(note) => (Refusal::BadSignature, note),
            Flaw::Stale(note) => (Refusal::Stale, note),
            Flaw::NotCovered(note) => (Refusal::NotCovered, note),
            Flaw::BodyMismatch(note) => (Refusal::BodyMismatch, note),
        };
        Self { refusal, note }
    }
}

/// What a key says of a signature, and what else there is to judge of it: that is judged whatever the key says.
fn judge_both<T>(by_key: Result<usize, Flaw>, rest: impl FnOnce() -> Result<T, Flaw>) -> Result<(usize, T), Flaw> {
    match (by_key, rest()) {
        (Ok(key), Ok(rest)) => Ok((key, rest)),
        (Err(Flaw::BadSignature(note)), Ok(_)) => Err(Flaw::OnlySignature(note)),
        (Err(flaw), _) | (Ok(_), Err(flaw)) => Err(flaw),
    }
}

/// What satisfied everything.
#[derive(Debug, PartialEq, Eq)]
struct Accepted {
    key: usize,
    signed_at: Option<UnixMillis>,
    replay_keys: Vec<[u8; 32]>,
}

impl HttpSignature {
    fn covers_body(&self) -> bool {
        let field = match self.standard {
            Standard::Rfc9421 { .. } => "content-digest",
            Standard::Cavage { .. } => "digest",
            Standard::WebSub { .. } => return true,
        };
        self.requires(|required| required.name == field && required.plain)
    }

    fn wants_nonce(&self) -> bool {
        matches!(self.standard, Standard::Rfc9421 { nonce: true, .. })
    }

    fn keys_each(&self) -> usize {
        match self.standard {
            Standard::WebSub { keys_each, .. } => keys_each.max(1),
            Standard::Rfc9421 { .. } | Standard::Cavage { .. } => 1,
        }
    }

    /// What a configuration that asks for these components gives up.
    pub(crate) fn uncovered(&self) -> Uncovered {
        let is_websub = matches!(self.standard, Standard::WebSub { .. });
        Uncovered {
            body: !self.covers_body(),
            receiver: is_websub || !self.requires_any(&["@target-uri", "@authority", "host"]),
            method: is_websub || !self.requires_any(&["@method", "(request-target)"]),
            time: !self.signs_time(),
        }
    }

    fn requires(&self, wanted: impl Fn(&Required) -> bool) -> bool {
        self.required.iter().any(wanted)
    }

    fn requires_any(&self, names: &[&str]) -> bool {
        self.requires(|required| required.plain && names.contains(&required.name.as_str()))
    }

    /// Both edges are inside the window.
    fn check_age(&self, created: UnixMillis, now: UnixMillis) -> Result<(), Flaw> {
        if created > now.after(self.clock_skew) {
            return Err(Flaw::Stale("the signed time lies in the future"));
        }
        if now > created.after(self.max_age) {
            return Err(Flaw::Stale("the signed time is too old"));
        }
        Ok(())
    }

    fn judge(&self, question: &Question<'_>) -> Result<Accepted, Flaw> {
        let target = Target::of(question.delivery, question.public_url);
        match &self.standard {
            Standard::Rfc9421 { tag, .. } => self.judge_rfc9421(tag.as_deref(), question, &target),
            Standard::Cavage { places } => self.judge_cavage(places, question, &target),
            Standard::WebSub { header, .. } => self.judge_websub(header, question),
        }
    }
}

impl Proof for HttpSignature {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let accepted = self.judge(question).map_err(|flaw| match flaw {
            Flaw::OnlySignature(note) => Failure::of_signature_alone(note),
            flaw => Fault::from(flaw).into(),
        })?;
        Ok(Findings {
            signed_at: accepted.signed_at.filter(|_| self.signs_time()),
            tolerance: self.tolerance(),
            replay_keys: accepted.replay_keys,
            secret_used: Some(accepted.key / self.keys_each()),
            ..Findings::default()
        })
    }

    fn signs_time(&self) -> bool {
        match self.standard {
            // `created` is not optional here.
            Standard::Rfc9421 { .. } => true,
            Standard::Cavage { .. } => self.requires_any(&["date", "(created)"]),
            Standard::WebSub { .. } => false,
        }
    }

    fn tolerance(&self) -> Option<Duration> {
        self.signs_time().then_some(self.max_age)
    }

    fn tells_signature_alone(&self) -> bool {
        true
    }

    fn replay_keys_each(&self) -> usize {
        usize::from(self.covers_body()) + usize::from(self.wants_nonce())
    }

    fn secrets(&self) -> usize {
        self.keys.len() / self.keys_each()
    }

    fn coverage(&self) -> Coverage {
        if self.covers_body() { Coverage::Whole } else { Coverage::Nothing }
    }

    fn covers(&self, locator: &Locator, public_url: Option<&str>) -> bool {
        match locator {
            Locator::Json(_) | Locator::Form(_) | Locator::FormJson { .. } => self.covers_body(),
            Locator::Header(name) => self.requires_any(&[name.as_str()]),
            Locator::Claim { .. } => false,
            Locator::Query(name) => {
                let as_sent = signs_query_as_sent(public_url);
                let whole = ["@query", "@target-uri", "@request-target", "(request-target)"];
                let alone = format!("\"@query-param\";name=\"{name}\"");
                as_sent && (self.requires_any(&whole) || self.requires(|required| required.identifier == alone))
            }
        }
    }

    fn sign(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        // The sender goes where it was told to, and says so.
        draft.delivery.authority = Target::of(&draft.delivery, signing.public_url).authority.to_owned();
        match &self.standard {
            Standard::Rfc9421 { tag, nonce } => self.sign_rfc9421(tag.as_deref(), *nonce, draft, signing),
            Standard::Cavage { places } => self.sign_cavage(places, draft, signing),
            Standard::WebSub { header, .. } => self.sign_websub(header, draft, signing),
        }
    }
}

/// What stands for a message in the memory of replays. The message and not the proof: with ECDSA one message has many.
fn replay_key(kind: &str, message: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new().chain_update(kind);
    for part in message {
        digest.update([0]);
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests;
