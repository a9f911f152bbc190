//! One signature scheme as it is configured: algorithm, keys, where the signature is, what it stands for.
//!
//! Invariant: which algorithm that is never depends on a message.

use std::ops::RangeInclusive;

use http::HeaderName;

use super::BuildError;
use super::freshness::Timestamp;
use super::key::Key;
use super::key_choice::KeyChoice;
use super::more::More;
use super::presented::{Layout, Place, SignatureAt, TimestampPlace};
use super::public_key::SignatureAlgorithm;
use super::template::Template;
use crate::delivery::Delivery;

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
    /// What few senders need.
    pub(crate) more: More,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    HmacSha1,
    HmacSha256,
    HmacSha384,
    HmacSha512,
    /// A plain hash over a message that holds the secret.
    Sha1,
    Sha256,
    Sha512,
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
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Signature(algorithm) => algorithm.name(),
        }
    }

    /// Does the message hold the secret?
    pub(crate) fn is_plain_hash(self) -> bool {
        matches!(self, Self::Sha1 | Self::Sha256 | Self::Sha512)
    }

    pub(super) fn signature_lengths(self) -> RangeInclusive<usize> {
        match self {
            Self::HmacSha1 | Self::Sha1 => 20..=20,
            Self::HmacSha256 | Self::Sha256 => 32..=32,
            Self::HmacSha384 => 48..=48,
            Self::HmacSha512 | Self::Sha512 => 64..=64,
            Self::Signature(algorithm) => algorithm.signature_lengths(),
        }
    }
}

impl Scheme {
    /// What is looked up in the body before the signature is judged.
    pub(super) fn proof_pointers(&self) -> impl Iterator<Item = &str> {
        let signature = match &self.signature.place {
            Place::Json(pointer) => Some(pointer.as_str()),
            Place::Header(_) | Place::EveryHeader(_) | Place::HeaderJson { .. } | Place::Query(_) | Place::Form(_) => {
                None
            }
        };
        let timestamp = self.timestamp.iter().find_map(|timestamp| match &timestamp.place {
            TimestampPlace::Json(pointer) => Some(pointer.as_str()),
            TimestampPlace::Header(_) | TimestampPlace::Pair(_) | TimestampPlace::Position => None,
        });
        let messages = self.messages().flat_map(Template::json_pointers);
        signature.into_iter().chain(timestamp).chain(messages).chain(self.key_choice.pointers())
    }

    /// Does the proof stand for the whole body, whichever message the sender signed?
    pub(crate) fn covers_body(&self) -> bool {
        self.messages().all(|message| message.covers_body() || self.hash_covers_body(message))
    }

    /// A hash of the body that stands in the signed URL binds the body to it.
    pub(super) fn hash_covers_body(&self, message: &Template) -> bool {
        let hash = self.more.body_hash.as_ref();
        hash.is_some_and(|hash| hash.is_strong() && (message.covers_url() || message.covers_query(&hash.query)))
    }

    /// All that the sender may have signed.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.message).chain(self.more.message_when.iter().map(|special| &special.message))
    }

    /// What the sender has signed, by the form of its body.
    pub(super) fn message_of(&self, delivery: &Delivery) -> &Template {
        let special = self.more.message_when.iter().find(|special| special.when.holds(delivery));
        special.map_or(&self.message, |special| &special.message)
    }

    /// Could a request pass at all?
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let layout = &self.signature.layout;
        match layout {
            Layout::Pairs { key, separator, equals, groups: _ } if key.is_empty() || separator == equals => {
                return Err(BuildError::Layout("pairs need a key, and a separator that is not the equals sign"));
            }
            Layout::Positional { timestamp_index, .. } if *timestamp_index > 1 => {
                return Err(BuildError::Layout("a positional timestamp stands first or second"));
            }
            Layout::Entries { separator, equals, names } if names.is_empty() || separator == equals => {
                return Err(BuildError::Layout(
                    "entries are named by the `id` of each secret, and need two separators",
                ));
            }
            Layout::Plain { .. }
            | Layout::Pairs { .. }
            | Layout::List { .. }
            | Layout::Positional { .. }
            | Layout::Entries { .. } => {}
        }
        if matches!(&self.signature.place, Place::EveryHeader(names) if names.is_empty()) {
            return Err(BuildError::NoSignatureHeader);
        }
        if matches!(self.signature.place, Place::EveryHeader(_)) && !matches!(layout, Layout::Plain { .. }) {
            return Err(BuildError::Layout("each of several headers holds one plain signature"));
        }
        if matches!(&self.signature.place, Place::Header(names) | Place::HeaderJson { names, .. } if names.is_empty()) {
            return Err(BuildError::NoSignatureHeader);
        }
        let in_pairs = matches!(layout, Layout::Pairs { .. });
        match self.timestamp.as_ref().map(|timestamp| &timestamp.place) {
            Some(TimestampPlace::Pair(_)) if !in_pairs => {
                return Err(BuildError::TimestampLayout { expected: "pairs" });
            }
            Some(TimestampPlace::Position) if !matches!(layout, Layout::Positional { .. }) => {
                return Err(BuildError::TimestampLayout { expected: "positions" });
            }
            None if self.messages().any(Template::uses_timestamp) => return Err(BuildError::NoTimestamp),
            Some(_) | None => {}
        }
        if self.messages().any(Template::uses_pairs) && !in_pairs {
            return Err(BuildError::NoPairs);
        }
        Ok(())
    }
}
