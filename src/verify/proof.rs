//! What every kind of proof has in common: a signature over a template, a token, a message signature, a platform's own.
//!
//! Invariant: a proof judges what the request holds and what is already known; it never waits. One that lacks a document
//! says which, and is asked again when the document is there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::explain::Story;
use super::fields::Json;
use super::presented::Locator;
use super::sign::{Draft, SignError, Signing};
use super::{Fault, Findings};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::{Library, Wanted};
use crate::refusal::Refusal;

/// One proof that a source asks for, its keys read and its rules compiled. Of what it does not say it claims the least.
pub(crate) trait Proof: Send + Sync {
    /// Among the checks that passed, as `X-Hookward-Verified` tells the upstream.
    fn name(&self) -> Arc<str>;

    /// Judges everything before it tells the first thing that is amiss.
    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure>;

    /// The same judgement in words: what was found, and what it had to stand for. Nobody but `explain` asks.
    fn narrate(&self, question: &Question<'_>, story: &mut Story) {
        story.judged(&self.name(), &self.examine(question));
    }

    /// The headers without which this proof cannot pass; for `explain`.
    fn headers(&self) -> Vec<HeaderName> {
        Vec::new()
    }

    /// The headers in which it can stand, whichever a sender chooses: for whoever is not to see them.
    fn places(&self) -> Vec<HeaderName> {
        self.headers()
    }

    /// JSON pointers into the body that are looked up for this proof.
    fn pointers(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Is the body looked into before the sender is known?
    fn reads_json(&self) -> bool {
        false
    }

    /// Does what is proven include a time?
    fn signs_time(&self) -> bool {
        self.tolerance().is_some()
    }

    /// Of the signed time.
    fn tolerance(&self) -> Option<Duration> {
        None
    }

    /// How many keys of the replay memory one delivery claims; 0: this proof cannot tell a replay.
    fn replay_keys_each(&self) -> usize {
        0
    }

    /// How many of the source's listed secrets are this proof's own.
    fn secrets(&self) -> usize {
        0
    }

    /// What of the body this proof stands for.
    fn coverage(&self) -> Coverage {
        Coverage::Nothing
    }

    /// Does this proof stand for what is found there? `public_url`: as configured.
    fn covers(&self, _locator: &Locator, _public_url: Option<&str>) -> bool {
        false
    }

    /// Can this proof tell that nothing but its signature is amiss?
    fn tells_signature_alone(&self) -> bool {
        false
    }

    /// Could a stranger find it by trying? Then failures are throttled before the proof is judged.
    fn is_guessable(&self) -> bool {
        false
    }

    /// Puts the proof into a draft, as the sender would.
    fn sign(&self, _draft: &mut Draft, _signing: &Signing<'_>) -> Result<(), SignError> {
        Err(SignError::OnlyThePlatform)
    }
}

/// The name alone: proofs hold keys.
impl fmt::Debug for dyn Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({})", self.name())
    }
}

/// How much of a body a proof stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Coverage {
    Nothing,
    Partly,
    Whole,
}

/// What a proof is asked.
pub(crate) struct Question<'a> {
    pub(crate) delivery: &'a Delivery,
    /// What the body says at the pointers of all proofs; empty where none reads it before the sender is known.
    pub(crate) json: &'a Json,
    /// The URL the provider was told, where it is configured.
    pub(crate) public_url: Option<&'a str>,
    pub(crate) now: UnixMillis,
    pub(crate) library: &'a dyn Library,
}

/// Does a signature over the URL stand for the query as it came? One that was told to the provider with a query of its
/// own replaces it.
pub(crate) fn signs_query_as_sent(public_url: Option<&str>) -> bool {
    !public_url.is_some_and(|url| url.contains('?'))
}

/// Not proven: for good, or for want of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) fault: Fault,
    pub(crate) wanted: Option<Wanted>,
    /// Of this proof everything else was judged and found right, the stated time included: with another key the same
    /// request would have passed at the same moment.
    pub(crate) only_signature: bool,
}

impl Failure {
    /// No live key makes the presented signature, and nothing else is amiss.
    pub(super) fn of_signature_alone(note: &'static str) -> Self {
        Self { fault: Fault { refusal: Refusal::BadSignature, note }, wanted: None, only_signature: true }
    }

    /// Better said where it is so: the request brings a secret, and none is awaited.
    pub(super) fn or_not_awaited(self, brings_a_secret: impl FnOnce() -> bool) -> Self {
        match self.fault.refusal {
            Refusal::MissingSignature if brings_a_secret() => {
                let note = "the request brings a secret, and the source awaits none";
                Fault { refusal: Refusal::NotAwaited, note }.into()
            }
            _ => self,
        }
    }

    /// The document is worth fetching, and the proof worth judging again.
    pub(crate) fn wanting(wanted: Wanted) -> Self {
        let fault = Fault { refusal: Refusal::KeyUnavailable, note: "a key that the proof needs is not here yet" };
        Self { fault, wanted: Some(wanted), only_signature: false }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { fault, wanted: None, only_signature: false }
    }
}
