//! One signature scheme, judged: what was presented, what it must stand for, which key made it, and when.
//!
//! Invariant: one path for what is missing, malformed or wrong. The MACs are computed over what there is and compared
//! with what candidates there are; then the first thing that was amiss is told. Freshness comes last, for an unsigned
//! time is hearsay.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::freshness::Timestamp;
use super::key::Key;
use super::key_choice::{self, KeyChoice};
use super::presented::{HeaderText, Layout, Locator, Place, Presented, SignatureAt, TimestampPlace, header_text};
use super::proof::{Coverage, Failure, Proof, Question};
use super::public_key::SignatureAlgorithm;
use super::sign::{Draft, SignError, Signing};
use super::template::{Facts, Template};
use super::{BuildError, Fault, Findings, hmac, public_key};
use crate::delivery::Delivery;
use crate::refusal::Refusal;

#[derive(Clone, Debug)]
pub(crate) struct Scheme {
    pub(crate) algorithm: Algorithm,
    pub(crate) keys: Vec<Key>,
    pub(crate) key_choice: KeyChoice,
    pub(crate) signature: SignatureAt,
    pub(crate) message: Template,
    pub(crate) timestamp: Option<Timestamp>,
    pub(crate) required_headers: Vec<HeaderName>,
    /// The sender never makes one proof twice, so that it is a replay key even where it does not cover the body.
    pub(crate) single_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    HmacSha1,
    HmacSha256,
    HmacSha384,
    HmacSha512,
    /// A public key's.
    Signature(SignatureAlgorithm),
}

impl Algorithm {
    /// As the configuration spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmac-sha1",
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
            Self::Signature(algorithm) => algorithm.name(),
        }
    }

    fn signature_lengths(self) -> RangeInclusive<usize> {
        match self {
            Self::HmacSha1 => 20..=20,
            Self::HmacSha256 => 32..=32,
            Self::HmacSha384 => 48..=48,
            Self::HmacSha512 => 64..=64,
            Self::Signature(algorithm) => algorithm.signature_lengths(),
        }
    }
}

pub(super) struct Prover {
    label: Arc<str>,
    pub(super) scheme: Scheme,
    pub(super) keys: Keys,
    /// The signature itself cannot be judged without a look into the body.
    pub(super) needs_json: bool,
    pub(super) time_is_signed: bool,
    pub(super) has_replay_key: bool,
    lengths: RangeInclusive<usize>,
}

pub(super) enum Keys {
    Hmac(Vec<hmac::Keyed>),
    Public(SignatureAlgorithm, Vec<public_key::Listed>),
}

impl Keys {
    fn lists(&self, id: &str) -> bool {
        match self {
            // An HMAC is tried under every secret, so that the time taken does not depend on which.
            Self::Hmac(_) => true,
            Self::Public(_, keys) => keys.iter().any(|listed| listed.id.as_deref() == Some(id)),
        }
    }
}

/// Which secret's signature was among the candidates, and what stands for this message in the memory of replays.
pub(super) struct Matched {
    pub(super) secret_index: Option<usize>,
    pub(super) replay_keys: Vec<[u8; 32]>,
}

impl Scheme {
    /// What is looked up in the body before the signature is judged.
    fn proof_pointers(&self) -> impl Iterator<Item = &str> {
        let signature = match &self.signature.place {
            Place::Json(pointer) => Some(pointer.as_str()),
            Place::Header(_) | Place::HeaderJson { .. } | Place::Query(_) | Place::Form(_) => None,
        };
        let timestamp = self.timestamp.iter().find_map(|timestamp| match &timestamp.place {
            TimestampPlace::Json(pointer) => Some(pointer.as_str()),
            TimestampPlace::Header(_) | TimestampPlace::Pair(_) | TimestampPlace::Position => None,
        });
        signature.into_iter().chain(timestamp).chain(self.message.json_pointers()).chain(self.key_choice.pointers())
    }
}

impl Prover {
    pub(super) fn build(mut scheme: Scheme, label: Arc<str>) -> Result<Self, BuildError> {
        check_layout(&scheme)?;
        scheme.key_choice.check(&scheme.signature.place)?;
        let keys = std::mem::take(&mut scheme.keys);
        if keys.is_empty() {
            return Err(BuildError::NoKeys);
        }
        if scheme.key_choice.id.is_some() && keys.iter().any(|key| key.id.is_none()) {
            return Err(BuildError::KeyWithoutId);
        }
        let keys = match scheme.algorithm {
            Algorithm::Signature(algorithm) => Keys::Public(algorithm, public_key::listed(algorithm, &keys)?),
            Algorithm::HmacSha1 | Algorithm::HmacSha256 | Algorithm::HmacSha384 | Algorithm::HmacSha512 => {
                let hash = scheme.algorithm.hash().expect("an HMAC has one");
                Keys::Hmac(keys.iter().map(|key| hmac::Keyed::new(hash, key)).collect())
            }
        };
        let needs_json = scheme.proof_pointers().next().is_some();
        let time_is_signed =
            scheme.timestamp.as_ref().is_some_and(|timestamp| timestamp.place.is_covered_by(&scheme.message));
        let has_replay_key = scheme.message.covers_body() || scheme.single_use;
        let lengths = match &keys {
            Keys::Hmac(_) => scheme.algorithm.signature_lengths(),
            Keys::Public(algorithm, keys) => public_key::signature_lengths(*algorithm, keys),
        };
        Ok(Self { label, scheme, keys, needs_json, time_is_signed, has_replay_key, lengths })
    }
}

impl Proof for Prover {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn pointers(&self) -> Vec<&str> {
        self.scheme.proof_pointers().collect()
    }

    fn reads_json(&self) -> bool {
        self.needs_json
    }

    fn signs_time(&self) -> bool {
        self.time_is_signed
    }

    fn tolerance(&self) -> Option<Duration> {
        self.scheme.timestamp.as_ref().filter(|_| self.time_is_signed).map(|timestamp| timestamp.tolerance)
    }

    fn replay_keys_each(&self) -> usize {
        match &self.keys {
            _ if !self.has_replay_key => 0,
            Keys::Hmac(secrets) => secrets.len(),
            Keys::Public(..) => 1,
        }
    }

    fn secrets(&self) -> usize {
        match &self.keys {
            Keys::Hmac(secrets) => secrets.len(),
            Keys::Public(_, keys) => keys.len(),
        }
    }

    fn coverage(&self) -> Coverage {
        self.scheme.message.coverage()
    }

    fn covers(&self, locator: &Locator, public_url: Option<&str>) -> bool {
        let signs_url_as_sent = !public_url.is_some_and(|url| url.contains('?'));
        locator.is_covered_by(&self.scheme.message, signs_url_as_sent)
    }

    fn sign(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        self.put_signature(draft, signing)
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let Question { delivery, json, public_url, now, library: _ } = *question;
        let scheme = &self.scheme;
        let text = scheme.signature.find(delivery, json);
        let parsed = match &text {
            Ok(text) => match scheme.signature.parse(text, &self.lengths) {
                Err(_) if scheme.key_choice.is_of_another_algorithm(text) => Err(key_choice::NOT_ALLOWED),
                parsed => parsed,
            },
            Err(fault) => Err(*fault),
        };
        let (presented, mut fault) = match parsed {
            Ok(presented) => (presented, None),
            Err(fault) => (Presented::default(), Some(fault)),
        };

        let mut stamp = None;
        let mut stated_time = None;
        if let Some(timestamp) = &scheme.timestamp {
            const UNREADABLE: Fault =
                Fault { refusal: Refusal::MalformedTimestamp, note: "the timestamp is not of the configured unit" };
            match timestamp.place.find(delivery, &presented, json) {
                Ok(text) => {
                    stated_time = timestamp.unit.parse(&text);
                    fault = fault.or(stated_time.is_none().then_some(UNREADABLE));
                    stamp = Some(text);
                }
                Err(missing) => fault = fault.or(Some(missing)),
            }
        }
        if scheme.required_headers.iter().any(|name| !delivery.headers.contains_key(name)) {
            let note = "a header that the scheme requires is missing";
            fault = fault.or(Some(Fault { refusal: Refusal::MissingSignature, note }));
        }
        if scheme.required_headers.iter().any(|name| !stands_once(delivery, name)) {
            let note = "a header that the scheme requires is empty or doubled";
            fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
        }

        let facts = Facts { delivery, public_url, timestamp: stamp.as_deref(), pairs: &presented.pairs, json };
        let message = scheme.message.render(&facts);
        if !message.complete {
            let note = "a value that the sender signs is missing from the request, or there twice";
            fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
        }
        let place = &scheme.signature.place;
        fault = fault.or_else(|| scheme.key_choice.algorithm_fault(place, delivery, json));
        let wanted = match scheme.key_choice.id(place, delivery, json) {
            Ok(wanted) => wanted,
            Err(missing) => {
                fault = fault.or(Some(missing));
                None
            }
        };
        if let Some(wanted) = &wanted
            && !self.keys.lists(wanted)
        {
            let note = "the sender names a key that is not among the configured ones";
            fault = fault.or(Some(Fault { refusal: Refusal::UntrustedKey, note }));
        }
        let matched = match &self.keys {
            Keys::Hmac(secrets) => hmac::judge(secrets, &message, &presented.candidates),
            Keys::Public(algorithm, keys) => {
                public_key::judge(*algorithm, keys, wanted.as_deref(), &message, &presented.candidates)
            }
        };
        if matched.secret_index.is_none() {
            let note = "no configured secret makes any of the signatures over this message";
            fault = fault.or(Some(Fault { refusal: Refusal::BadSignature, note }));
        }
        // Only now is the stated time worth anything.
        if let (Some(timestamp), Some(stated)) = (&scheme.timestamp, stated_time)
            && !timestamp.is_fresh(stated, now)
        {
            let note = if stated < now { "the stated time is too old" } else { "the stated time lies in the future" };
            fault = fault.or(Some(Fault { refusal: Refusal::Stale, note }));
        }

        match fault {
            Some(fault) => Err(fault.into()),
            None => Ok(Findings {
                signed_at: stated_time.filter(|_| self.time_is_signed),
                tolerance: self.tolerance(),
                replay_keys: if self.has_replay_key { matched.replay_keys } else { Vec::new() },
                secret_used: matched.secret_index,
                ..Findings::default()
            }),
        }
    }
}

fn stands_once(delivery: &Delivery, name: &HeaderName) -> bool {
    matches!(header_text(delivery, name), HeaderText::One(text) if !text.trim().is_empty())
}

fn check_layout(scheme: &Scheme) -> Result<(), BuildError> {
    let layout = &scheme.signature.layout;
    match layout {
        Layout::Pairs { key, separator, equals } if key.is_empty() || separator == equals => {
            return Err(BuildError::Layout("pairs need a key, and a separator that is not the equals sign"));
        }
        Layout::Positional { timestamp_index, .. } if *timestamp_index > 1 => {
            return Err(BuildError::Layout("a positional timestamp stands first or second"));
        }
        Layout::Plain { .. } | Layout::Pairs { .. } | Layout::List { .. } | Layout::Positional { .. } => {}
    }
    if matches!(&scheme.signature.place, Place::Header(names) | Place::HeaderJson { names, .. } if names.is_empty()) {
        return Err(BuildError::NoSignatureHeader);
    }
    let in_pairs = matches!(layout, Layout::Pairs { .. });
    match scheme.timestamp.as_ref().map(|timestamp| &timestamp.place) {
        Some(TimestampPlace::Pair(_)) if !in_pairs => return Err(BuildError::TimestampLayout { expected: "pairs" }),
        Some(TimestampPlace::Position) if !matches!(layout, Layout::Positional { .. }) => {
            return Err(BuildError::TimestampLayout { expected: "positions" });
        }
        None if scheme.message.uses_timestamp() => return Err(BuildError::NoTimestamp),
        Some(_) | None => {}
    }
    if scheme.message.uses_pairs() && !in_pairs {
        return Err(BuildError::NoPairs);
    }
    Ok(())
}
