//! The inverse of verification: the headers that the sender would add. For `sign`, `send`, `demo` and the tests.
//!
//! Invariant: the message is rendered by the very template that verifies it, so that the two cannot drift apart.

use http::{HeaderName, HeaderValue};
use thiserror::Error;

use super::Verifier;
use super::fields::Pointers;
use super::key_choice::Stated;
use super::presented::{Layout, Locator, Place, Presented, TimestampPlace};
use super::proof::Proof;
use super::prover::{Keys, Prover};
use super::public_key::private;
use super::template::Facts;
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::secret::Secret;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum SignError {
    #[error("this scheme puts its signature into the query or the body; only signatures in headers can be made here")]
    NotInAHeader,
    #[error("a public key cannot sign; give the private key")]
    NeedsPrivateKey,
    #[error(
        "the private key is neither a PEM of the configured kind (PKCS#8, SEC 1, PKCS#1) nor 32 bytes of Ed25519 (hex or base64)"
    )]
    BadPrivateKey,
    #[error("signatures of this algorithm are verified and never made here; sign with another tool")]
    CannotMake,
    #[error("the private key belongs to none of the configured public keys")]
    OtherPrivateKey,
    #[error("the sender signs a header, field or query parameter that the request lacks; add it")]
    Incomplete,
    #[error("the body lacks the timestamp, which this scheme puts there")]
    NoTimestampInBody,
    #[error("the time is beyond what the timestamp's form can say")]
    UnspeakableTime,
    #[error("only the platform can sign this: its certificate is checked")]
    OnlyThePlatform,
    #[error("the id or a secret cannot stand in a header")]
    NotAHeaderValue,
    #[error("the secret is awaited from the sender; nothing can be signed before it is here")]
    NoKeyYet,
}

/// A delivery on its way to being signed, and what was added to it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) delivery: Delivery,
    /// The headers that were added, in order. They replaced those of the same names.
    pub(crate) added: Vec<(HeaderName, HeaderValue)>,
}

/// What a sender signs with.
pub(crate) struct Signing<'a> {
    /// For a header that wants an id and has none.
    pub(crate) id: &'a str,
    pub(crate) now: UnixMillis,
    /// For public-key schemes alone.
    pub(crate) private: Option<&'a Secret>,
    /// The URL the provider was told, where it is configured.
    pub(crate) public_url: Option<&'a str>,
}

impl Draft {
    pub(crate) fn new(delivery: Delivery) -> Self {
        Self { delivery, added: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &HeaderName, text: &str) -> Result<(), SignError> {
        let value = HeaderValue::from_str(text).map_err(|_| SignError::NotAHeaderValue)?;
        self.add_value(name, value);
        Ok(())
    }

    fn add_value(&mut self, name: &HeaderName, value: HeaderValue) {
        self.delivery.headers.insert(name, value.clone());
        self.added.push((name.clone(), value));
    }
}

impl Verifier {
    /// `draft` has everything but the proof.
    pub(crate) fn sign(
        &self,
        draft: Delivery,
        id: &str,
        now: UnixMillis,
        private: Option<&Secret>,
    ) -> Result<Draft, SignError> {
        let mut draft = Draft::new(draft);
        if let Some(wanted) = self.missing_id_header(&draft.delivery) {
            draft.add(&wanted, id)?;
        }
        let signing = Signing { id, now, private, public_url: self.public_url.as_deref() };
        for proof in &self.proofs {
            proof.sign(&mut draft, &signing)?;
        }
        for (name, value) in self.credentials.headers() {
            draft.add_value(&name, value.ok_or(SignError::NotAHeaderValue)?);
        }
        Ok(draft)
    }

    fn missing_id_header(&self, draft: &Delivery) -> Option<HeaderName> {
        let mut names = self.id.iter().filter_map(|locator| match locator {
            Locator::Header(name) => Some(name),
            Locator::Json(_)
            | Locator::Query(_)
            | Locator::Form(_)
            | Locator::FormJson { .. }
            | Locator::Claim { .. } => None,
        });
        let first = names.next()?;
        let is_there = draft.headers.contains_key(first) || names.any(|name| draft.headers.contains_key(name));
        (!is_there).then(|| first.clone())
    }
}

impl Prover {
    pub(super) fn put_signature(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        let scheme = &self.scheme;
        let Place::Header(names) = &scheme.signature.place else {
            return Err(SignError::NotInAHeader);
        };
        let signature_header = names.first().ok_or(SignError::NotInAHeader)?;
        let mut pointers = Pointers::default();
        self.pointers().iter().try_for_each(|pointer| pointers.add(pointer)).map_err(|_| SignError::Incomplete)?;
        let json = pointers.read(&draft.delivery.body);

        let mut stamp = None;
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        if let Some(timestamp) = &scheme.timestamp {
            stamp = Some(match &timestamp.place {
                TimestampPlace::Json(_) => timestamp
                    .place
                    .find(&draft.delivery, &Presented::default(), &json)
                    .map_err(|_| SignError::NoTimestampInBody)?
                    .into_owned(),
                TimestampPlace::Header(_) | TimestampPlace::Pair(_) | TimestampPlace::Position => {
                    timestamp.unit.format(signing.now).ok_or(SignError::UnspeakableTime)?
                }
            });
        }
        let stamp = stamp.as_deref();
        match scheme.timestamp.as_ref().map(|timestamp| &timestamp.place) {
            Some(TimestampPlace::Header(name)) => draft.add(name, stamp.unwrap_or_default())?,
            Some(TimestampPlace::Pair(name)) => pairs.push((name, stamp.unwrap_or_default())),
            Some(TimestampPlace::Position | TimestampPlace::Json(_)) | None => {}
        }
        for wanted in scheme.message.needed_headers().chain(&scheme.required_headers) {
            if !draft.delivery.headers.contains_key(wanted) && !names.contains(wanted) {
                draft.add(wanted, signing.id)?;
            }
        }

        let facts = Facts {
            delivery: &draft.delivery,
            public_url: signing.public_url,
            timestamp: stamp,
            pairs: &pairs,
            json: &json,
        };
        let message = scheme.message.render(&facts);
        if !message.complete {
            return Err(SignError::Incomplete);
        }
        let mut key_id = None;
        let signature = match &self.keys {
            Keys::Hmac(secrets) => {
                secrets.first().expect("a prover has at least one key").mac(&message.pieces).to_vec()
            }
            Keys::Public(algorithm, keys) => {
                let derived = keys.iter().find_map(|listed| listed.seed.as_ref());
                let private = signing.private.or(derived).ok_or(SignError::NeedsPrivateKey)?;
                let message = message.whole();
                let signature = private::sign(private, *algorithm, &message)?;
                let own = keys.iter().find(|listed| listed.key.verify(*algorithm, &message, &signature));
                key_id = Some(own.ok_or(SignError::OtherPrivateKey)?.id.as_deref());
                signature
            }
        };
        let encoded = scheme.signature.encoding.encode(&signature);
        let laid_out = match &scheme.signature.layout {
            Layout::Plain { prefix } | Layout::List { prefix, .. } => format!("{prefix}{encoded}"),
            Layout::Pairs { separator, equals, key } => {
                let beside: String =
                    pairs.iter().map(|(name, value)| format!("{name}{equals}{value}{separator}")).collect();
                format!("{beside}{key}{equals}{encoded}")
            }
            Layout::Positional { separator, timestamp_index } => {
                let stamp = stamp.unwrap_or_default();
                match timestamp_index {
                    0 => format!("{stamp}{separator}{encoded}"),
                    _ => format!("{encoded}{separator}{stamp}"),
                }
            }
        };
        if let (Some(Stated::At(Locator::Header(header))), Some(Some(id))) = (&scheme.key_choice.id, key_id)
            && !draft.delivery.headers.contains_key(header)
        {
            draft.add(header, id)?;
        }
        draft.add(signature_header, &laid_out)
    }
}
