//! The inverse of verification: the headers that the sender would add. For `sign`, `send`, `demo` and the tests.
//!
//! Invariant: the message is rendered by the very template that verifies it, so that the two cannot drift apart.

use base64::Engine;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signer, SigningKey};
use http::{HeaderName, HeaderValue};
use thiserror::Error;
use zeroize::Zeroizing;

use super::Verifier;
use super::fields::Pointers;
use super::key::BASE64;
use super::presented::{Layout, Locator, Place, Presented, TimestampPlace};
use super::proof::Proof;
use super::prover::{Keys, Prover};
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
    #[error("the private key is neither 32 bytes (hex or base64) nor a PKCS#8 PEM of Ed25519")]
    BadPrivateKey,
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
            Locator::Json(_) | Locator::Query(_) | Locator::Form(_) | Locator::Claim { .. } => None,
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
        let signature = match &self.keys {
            Keys::Hmac(secrets) => {
                secrets.first().expect("a prover has at least one key").mac(&message.pieces).to_vec()
            }
            Keys::Ed25519(keys) => {
                let private = signing_key(signing.private.ok_or(SignError::NeedsPrivateKey)?)?;
                if !keys.iter().any(|key| key.as_dalek() == Some(&private.verifying_key())) {
                    return Err(SignError::OtherPrivateKey);
                }
                private.sign(&message.whole()).to_bytes().to_vec()
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
        draft.add(signature_header, &laid_out)
    }
}

/// A seed as it is, in hex or in base64, or a PKCS#8 PEM.
fn signing_key(private: &Secret) -> Result<SigningKey, SignError> {
    let bytes = private.expose();
    if let Ok(seed) = <&[u8; 32]>::try_from(bytes) {
        return Ok(SigningKey::from_bytes(seed));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| SignError::BadPrivateKey)?.trim();
    if text.starts_with("-----BEGIN") {
        return SigningKey::from_pkcs8_pem(text).map_err(|_| SignError::BadPrivateKey);
    }
    let seed = hex::decode(text).ok().or_else(|| BASE64.decode(text).ok()).map(Zeroizing::new);
    let seed = seed.as_ref().and_then(|seed| <&[u8; 32]>::try_from(seed.as_slice()).ok());
    seed.map(SigningKey::from_bytes).ok_or(SignError::BadPrivateKey)
}
