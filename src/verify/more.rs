//! What few senders need of a scheme beside signature, message and time: constant headers, several messages, several
//! spellings of one message, an item at a time, a hash of the body beside the signature.
//!
//! Invariant: each of these is configured; nothing in a request can switch one on.

use http::HeaderName;
use http::header::CONTENT_TYPE;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

use super::Fault;
use super::document::Document;
use super::fields::{self, Found};
use super::hmac::Hash;
use super::presented::{Encoding, HeaderText, header_text, query};
use super::template::{Template, UrlForm};
use crate::delivery::Delivery;
use crate::refusal::Refusal;

#[derive(Clone, Debug, Default)]
pub(crate) struct More {
    /// Where the JSON of the body is, and how the body is signed.
    pub(crate) document: Document,
    /// The first whose condition holds takes the place of the message.
    pub(crate) message_when: Vec<MessageWhen>,
    /// A pointer to an array: every item has a proof of its own, and pointers are the item's.
    pub(crate) for_each: Option<String>,
    /// Headers that must say just this.
    pub(crate) fixed_headers: Vec<(HeaderName, String)>,
    pub(crate) url_variants: Vec<UrlForm>,
    /// The sender may have signed the body as PHP escapes it.
    pub(crate) php_escape: bool,
    pub(crate) body_hash: Option<BodyHash>,
}

#[derive(Clone, Debug)]
pub(crate) struct MessageWhen {
    pub(crate) when: When,
    pub(crate) message: Template,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The content type, without its parameters.
    ContentType(String),
    /// The body is a JSON array.
    Batch,
}

/// A query parameter that holds a hash of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BodyHash {
    pub(crate) query: String,
    pub(crate) hash: Hash,
    pub(crate) encoding: Encoding,
}

impl More {
    /// Which of the constant headers is not as it must be.
    pub(super) fn unmet(&self, delivery: &Delivery) -> Option<&'static str> {
        let met = self.fixed_headers.iter().all(
            |(name, wanted)| matches!(header_text(delivery, name), HeaderText::One(text) if text.trim() == wanted),
        );
        (!met).then_some("a header that has one value only is missing, doubled or has another")
    }

    /// The spellings to try, the one that came first.
    pub(super) fn url_forms(&self) -> impl Iterator<Item = UrlForm> {
        std::iter::once(UrlForm::AsIs).chain(self.url_variants.iter().copied())
    }
}

impl When {
    pub(super) fn holds(&self, delivery: &Delivery) -> bool {
        match self {
            Self::Batch => delivery.body.trim_ascii_start().starts_with(b"["),
            Self::ContentType(wanted) => match header_text(delivery, &CONTENT_TYPE) {
                HeaderText::One(text) => text.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted),
                HeaderText::None | HeaderText::Several | HeaderText::Unreadable => false,
            },
        }
    }
}

impl BodyHash {
    /// Can nobody find a second body with the same hash?
    pub(super) fn is_strong(&self) -> bool {
        self.hash != Hash::Sha1
    }

    pub(super) fn of(&self, body: &[u8]) -> Vec<u8> {
        match self.hash {
            Hash::Sha1 => Sha1::digest(body).to_vec(),
            Hash::Sha256 => Sha256::digest(body).to_vec(),
            Hash::Sha384 => sha2::Sha384::digest(body).to_vec(),
            Hash::Sha512 => Sha512::digest(body).to_vec(),
        }
    }

    pub(super) fn fault(&self, delivery: &Delivery) -> Option<Fault> {
        const MISSING: Fault =
            Fault { refusal: Refusal::MissingSignature, note: "the hash of the body is missing from the query" };
        const OTHER: Fault =
            Fault { refusal: Refusal::BodyMismatch, note: "the body is not the one whose hash the query holds" };
        let hash = self.of(&delivery.body);
        let stated = match fields::field(query(delivery), &self.query) {
            Found::Value(text) => text,
            Found::Absent => return Some(MISSING),
            Found::Ambiguous => return Some(OTHER),
        };
        let stated =
            std::str::from_utf8(&stated).ok().and_then(|text| self.encoding.decode(text, &(hash.len()..=hash.len())));
        let is_same = stated.is_some_and(|stated| bool::from(stated.ct_eq(&hash)));
        (!is_same).then_some(OTHER)
    }
}
