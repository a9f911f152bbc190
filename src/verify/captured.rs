//! A signature whose key the sender brings, in a handshake, after the configuration was loaded.
//!
//! Invariant: until the key is there nothing passes, and once it is there it stays: whether a second one may take its
//! place is not for a request to say.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderName;

use super::key::{Key, KeyEncoding, KeyError, KeyFormat};
use super::presented::Locator;
use super::proof::{Coverage, Failure, Proof, Question};
use super::prover::Prover;
use super::scheme::Scheme;
use super::sign::{Draft, SignError, Signing};
use super::{BuildError, Fault, Findings};
use crate::refusal::Refusal;
use crate::secret::Secret;

pub(super) struct Captured {
    label: Arc<str>,
    scheme: Scheme,
    /// Built with a key that nobody knows: it answers what does not depend on the key, and judges nothing.
    shape: Prover,
    prover: ArcSwapOption<Prover>,
}

impl Captured {
    /// The keys in `scheme` stand in for the one to come, and must be known to nobody.
    pub(super) fn build(scheme: Scheme, label: Arc<str>) -> Result<Self, BuildError> {
        let shape = Prover::build(scheme.clone(), label.clone())?;
        Ok(Self { label, scheme, shape, prover: ArcSwapOption::empty() })
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.prover.load().is_none()
    }

    pub(super) fn install(&self, secret: &Secret) -> Result<(), KeyError> {
        let key = Key::decode(secret, &KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None })?;
        let scheme = Scheme { keys: vec![key], ..self.scheme.clone() };
        // It was built before, with another key: only a key can be wrong.
        let prover = Prover::build(scheme, self.label.clone()).map_err(|_| KeyError::Empty)?;
        self.prover.store(Some(Arc::new(prover)));
        Ok(())
    }
}

impl Proof for Captured {
    fn name(&self) -> Arc<str> {
        self.shape.name()
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        const NO_KEY: Fault =
            Fault { refusal: Refusal::MissingSignature, note: "the source's secret is awaited, and not here yet" };
        match &*self.prover.load() {
            Some(prover) => prover.examine(question),
            None => Err(NO_KEY.into()),
        }
    }

    fn places(&self) -> Vec<HeaderName> {
        self.shape.places()
    }

    fn pointers(&self) -> Vec<&str> {
        self.shape.pointers()
    }

    fn reads_json(&self) -> bool {
        self.shape.reads_json()
    }

    fn signs_time(&self) -> bool {
        self.shape.signs_time()
    }

    fn tolerance(&self) -> Option<Duration> {
        self.shape.tolerance()
    }

    fn tells_signature_alone(&self) -> bool {
        self.shape.tells_signature_alone()
    }

    fn replay_keys_each(&self) -> usize {
        self.shape.replay_keys_each()
    }

    fn secrets(&self) -> usize {
        self.shape.secrets()
    }

    fn coverage(&self) -> Coverage {
        self.shape.coverage()
    }

    fn covers(&self, locator: &Locator, public_url: Option<&str>) -> bool {
        self.shape.covers(locator, public_url)
    }

    fn sign(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        match &*self.prover.load() {
            Some(prover) => prover.sign(draft, signing),
            None => Err(SignError::NoKeyYet),
        }
    }
}
