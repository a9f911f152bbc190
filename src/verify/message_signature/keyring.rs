//! The keys of those who may sign, each with its one algorithm and, where there are several, its id.
//!
//! Invariant: an algorithm belongs to a configured key; what a message calls it can refuse the message and never choose
//! another. A public key is never taken for an HMAC secret, for everybody knows it.

use std::sync::Arc;

use base64::Engine;
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::Flaw;
use crate::secret::Secret;
use crate::verify::hmac::{self, Keyed};
use crate::verify::key::{BASE64, Key, KeyError, KeyFormat};
use crate::verify::public_key::{self, Curve, Form, Hash, PublicKey, SignatureAlgorithm, private};
use crate::verify::sign::SignError;

/// What both standards know, by the names that each gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageAlgorithm {
    Ed25519,
    /// The two numbers side by side.
    EcdsaP256,
    EcdsaP384,
    /// In DER, as the drafts' implementations have it.
    EcdsaP256Der,
    RsaSha256,
    RsaSha512,
    RsaPssSha512,
    HmacSha1,
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

impl MessageAlgorithm {
    /// The registry of RFC 9421, section 6.2.2.
    pub(crate) const RFC_9421: [(&'static str, Self); 6] = [
        ("ed25519", Self::Ed25519),
        ("ecdsa-p256-sha256", Self::EcdsaP256),
        ("ecdsa-p384-sha384", Self::EcdsaP384),
        ("rsa-pss-sha512", Self::RsaPssSha512),
        ("rsa-v1_5-sha256", Self::RsaSha256),
        ("hmac-sha256", Self::HmacSha256),
    ];

    /// What the drafts' `hs2019` stands for is the key's own algorithm, one of these.
    pub(crate) const CAVAGE: [(&'static str, Self); 7] = [
        ("rsa-sha256", Self::RsaSha256),
        ("rsa-sha512", Self::RsaSha512),
        ("ed25519", Self::Ed25519),
        ("ecdsa-sha256", Self::EcdsaP256Der),
        ("hmac-sha256", Self::HmacSha256),
        ("hmac-sha512", Self::HmacSha512),
        ("rsa-pss-sha512", Self::RsaPssSha512),
    ];

    /// The hashes that a hub can name.
    pub(crate) const WEBSUB: [(&'static str, Self); 4] = [
        ("sha256", Self::HmacSha256),
        ("sha384", Self::HmacSha384),
        ("sha512", Self::HmacSha512),
        ("sha1", Self::HmacSha1),
    ];

    pub(super) fn is_called(self, name: &str, names: &[(&str, Self)]) -> bool {
        names.iter().any(|(known, algorithm)| *known == name && *algorithm == self)
    }

    pub(super) fn name(self, names: &[(&'static str, Self)]) -> Option<&'static str> {
        names.iter().find(|(_, algorithm)| *algorithm == self).map(|(name, _)| *name)
    }

    fn kind(self) -> Kind {
        let ecdsa = |curve, hash, form| Kind::Public(SignatureAlgorithm::Ecdsa { curve, hash, form });
        match self {
            Self::Ed25519 => Kind::Public(SignatureAlgorithm::Ed25519),
            Self::EcdsaP256 => ecdsa(Curve::P256, Hash::Sha256, Form::Raw),
            Self::EcdsaP384 => ecdsa(Curve::P384, Hash::Sha384, Form::Raw),
            Self::EcdsaP256Der => ecdsa(Curve::P256, Hash::Sha256, Form::Der),
            Self::RsaSha256 => Kind::Public(SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha256 }),
            Self::RsaSha512 => Kind::Public(SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha512 }),
            Self::RsaPssSha512 => Kind::Public(SignatureAlgorithm::RsaPss { hash: Hash::Sha512 }),
            Self::HmacSha1 => Kind::Hmac(hmac::Hash::Sha1),
            Self::HmacSha256 => Kind::Hmac(hmac::Hash::Sha256),
            Self::HmacSha384 => Kind::Hmac(hmac::Hash::Sha384),
            Self::HmacSha512 => Kind::Hmac(hmac::Hash::Sha512),
        }
    }

    pub(crate) fn is_hmac(self) -> bool {
        matches!(self.kind(), Kind::Hmac(_))
    }
}

enum Kind {
    Hmac(hmac::Hash),
    Public(SignatureAlgorithm),
}

/// Not a word of these says what the key was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum SignerKeyError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("this is a public key, which everybody knows; as an HMAC secret it would let everybody sign")]
    PublicKeyAsSecret,
    #[error("this is a public key of another kind than `algorithm` takes")]
    OtherKind,
    #[error(transparent)]
    PublicKey(#[from] public_key::KeyError),
}

/// One who may sign.
#[derive(Clone)]
pub(crate) struct SignerKey {
    pub(super) id: Option<Arc<str>>,
    pub(super) algorithm: MessageAlgorithm,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Hmac(Keyed),
    Public { key: Box<PublicKey>, algorithm: SignatureAlgorithm },
}

impl std::fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignerKey").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl SignerKey {
    /// `format` says how an HMAC secret is written; a public key says that itself. `short_rsa`: 1024 bits will do.
    pub(crate) fn read(
        secret: &Secret,
        id: Option<&str>,
        algorithm: MessageAlgorithm,
        format: &KeyFormat,
        short_rsa: bool,
    ) -> Result<Self, SignerKeyError> {
        let text = secret.expose();
        let material = match algorithm.kind() {
            Kind::Hmac(_) if looks_public(text) => return Err(SignerKeyError::PublicKeyAsSecret),
            Kind::Hmac(hash) => Material::Hmac(Keyed::new(hash, &Key::decode(secret, format)?)),
            Kind::Public(algorithm) => {
                let read = if short_rsa { PublicKey::from_text_with_short_rsa } else { PublicKey::from_text };
                let key = read(text)?;
                if !key.fits(algorithm) {
                    return Err(SignerKeyError::OtherKind);
                }
                key.warm(algorithm);
                Material::Public { key: Box::new(key), algorithm }
            }
        };
        Ok(Self { id: id.map(Arc::from), algorithm, material })
    }

    /// In constant time where the key is secret.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Flaw> {
        const LENGTH: Flaw = Flaw::Malformed("the signature is not as long as the key's algorithm makes them");
        let matched = match &self.material {
            Material::Hmac(keyed) => {
                let mac = keyed.mac(&[message.into()]);
                if mac.len() != signature.len() {
                    return Err(LENGTH);
                }
                mac.ct_eq(signature).into()
            }
            Material::Public { key, algorithm } => {
                let of_rsa = key.rsa_bits().and_then(|bits| usize::try_from(bits.div_ceil(8)).ok());
                let fits = match of_rsa {
                    Some(length) => signature.len() == length,
                    None => algorithm.signature_lengths().contains(&signature.len()),
                };
                if !fits {
                    return Err(LENGTH);
                }
                key.verify(*algorithm, message, signature)
            }
        };
        if matched { Ok(()) } else { Err(Flaw::BadSignature("the key does not make this signature over this message")) }
    }

    #[cfg(test)]
    pub(crate) fn makes(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verify(message, signature).is_ok()
    }

    pub(super) fn sign(&self, message: &[u8], private: Option<&Secret>) -> Result<Vec<u8>, SignError> {
        match &self.material {
            Material::Hmac(keyed) => Ok(keyed.mac(&[message.into()]).to_vec()),
            Material::Public { key, algorithm } => {
                let signature = private::sign(private.ok_or(SignError::NeedsPrivateKey)?, *algorithm, message)?;
                match key.verify(*algorithm, message, &signature) {
                    true => Ok(signature),
                    false => Err(SignError::OtherPrivateKey),
                }
            }
        }
    }
}

/// A PEM, a JWK or bare base64 of what everybody may know, whoever took it for a secret.
pub(crate) fn looks_public(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let is_pem = || text.contains("-----BEGIN") && (text.contains("PUBLIC KEY") || text.contains("CERTIFICATE"));
    let is_jwk = || {
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        let value = Some(text.trim()).filter(|text| text.starts_with('{')).and_then(read);
        value.is_some_and(|value| value.get("keys").is_some() || value.get("kty").is_some_and(|kind| kind != "oct"))
    };
    // The inside of a PEM. Ed25519's 32 bytes alone look like any secret.
    let is_bare = || {
        let der = Some(text.trim()).filter(|text| text.starts_with('M')).and_then(|text| BASE64.decode(text).ok());
        der.is_some_and(|der| PublicKey::from_spki_der(&der).is_ok())
    };
    is_pem() || is_jwk() || is_bare()
}

/// Those among `keys` that a signature can mean, with their positions: the ones of its key id, or else those without any
/// id. Then those of the algorithm that it names.
pub(super) fn meant<'k>(
    keys: &'k [SignerKey],
    id: Option<&str>,
    fits: impl Fn(MessageAlgorithm) -> bool,
) -> Result<Vec<(usize, &'k SignerKey)>, Flaw> {
    let named = |(_, key): &(usize, &SignerKey)| id.is_some() && key.id.as_deref() == id;
    let mut found: Vec<_> = keys.iter().enumerate().filter(named).collect();
    if found.is_empty() {
        found = keys.iter().enumerate().filter(|(_, key)| key.id.is_none()).collect();
    }
    match (found.is_empty(), id) {
        (true, None) => return Err(Flaw::Missing("the signature names no key, and every configured key has an id")),
        (true, Some(_)) => return Err(Flaw::UntrustedKey("the signature names a key that is not configured")),
        (false, _) => {}
    }
    found.retain(|(_, key)| fits(key.algorithm));
    if found.is_empty() {
        return Err(Flaw::Algorithm("the signature names another algorithm than its key has"));
    }
    Ok(found)
}

/// The first key that made the signature; all are tried.
pub(super) fn verified_by(keys: &[(usize, &SignerKey)], message: &[u8], signature: &[u8]) -> Result<usize, Flaw> {
    let mut verdict = Err(Flaw::BadSignature("no key was tried"));
    let mut furthest = None;
    for (position, key) in keys {
        match key.verify(message, signature) {
            Ok(()) if verdict.is_err() => verdict = Ok(*position),
            Ok(()) => {}
            Err(flaw) => furthest = Some(flaw.further(furthest)),
        }
    }
    verdict.map_err(|none| furthest.unwrap_or(none))
}
