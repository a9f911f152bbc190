//! The keys that a token's signature may have been made with.
//!
//! Invariant: a key does one kind of work. A shared secret never verifies an algorithm with a public key and the other way
//! round, whatever the token says; a key that names its algorithm verifies that one only. A key with an id is tried for
//! tokens that name this id alone.

use std::borrow::Cow;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::super::hmac::Keyed;
use super::super::key::Key;
use super::super::public_key::{KeySet, PublicKey, SetKey, SignatureAlgorithm};
use super::super::{Fault, hmac};
use super::algorithm::JwsAlgorithm;
use super::fault;
use crate::clock::UnixMillis;
use crate::refusal::Refusal;
use crate::secret::Secret;

/// A token that names no key is tried with every key that has no name.
const MAX_KEYS: usize = 64;
/// Of a key set from elsewhere: strangers choose when it is looked into, so that its size must not be their lever.
const MAX_TRIED: usize = 16;

/// Keys that are configured. Those of a key set from elsewhere are `KeySet`s.
#[derive(Clone)]
pub(crate) struct KeyRing {
    keys: Vec<RingKey>,
    /// How many listed secrets they come from: a secret may be a whole key set.
    secrets: usize,
}

#[derive(Clone)]
struct RingKey {
    id: Option<Arc<str>>,
    /// The position of its secret in the list.
    secret: usize,
    material: Material,
}

#[derive(Clone)]
enum Material {
    /// One schedule for each algorithm that the source takes.
    Shared(Vec<(JwsAlgorithm, Keyed)>),
    Public(Box<SetKey>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RingError {
    /// An HMAC keyed with a public key is a signature that anybody can make.
    PublicKeyAsSecret {
        index: usize,
    },
    NotAPublicKey {
        index: usize,
        what: String,
    },
    TooMany,
}

/// What a token's signature is judged with.
pub(super) struct Presented<'t> {
    pub(super) algorithm: JwsAlgorithm,
    pub(super) key_id: Option<&'t str>,
    pub(super) message: &'t [u8],
    pub(super) signature: &'t [u8],
    pub(super) now: UnixMillis,
}

/// Why no key took the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotVerified {
    /// There is no such key, or it is no longer to be used.
    NoKey,
    BadSignature,
}

impl From<NotVerified> for Fault {
    fn from(failed: NotVerified) -> Self {
        match failed {
            NotVerified::NoKey => fault(Refusal::UntrustedKey, "no usable key has the id that the token names"),
            NotVerified::BadSignature => fault(Refusal::BadSignature, "no configured key made the token's signature"),
        }
    }
}

impl KeyRing {
    pub(crate) fn shared(keys: &[Key], algorithms: &[JwsAlgorithm]) -> Result<Self, RingError> {
        let ring = keys.iter().enumerate().map(|(index, key)| {
            if looks_public(key.bytes()) {
                return Err(RingError::PublicKeyAsSecret { index });
            }
            let schedules =
                algorithms.iter().filter_map(|algorithm| Some((*algorithm, Keyed::new(algorithm.mac()?, key))));
            Ok(RingKey { id: key.id.clone(), secret: index, material: Material::Shared(schedules.collect()) })
        });
        Ok(Self { keys: ring.collect::<Result<_, _>>()?, secrets: keys.len() })
    }

    /// Each secret is a PEM, a JWK, a whole key set or another form of a public key. `id` is what the configuration says.
    pub(crate) fn public<'s>(
        secrets: impl Iterator<Item = (Option<&'s str>, &'s Secret)>,
        algorithms: &[JwsAlgorithm],
    ) -> Result<Self, RingError> {
        let mut ring = Self { keys: Vec::new(), secrets: 0 };
        for (index, (id, secret)) in secrets.enumerate() {
            let wrong = |what: String| RingError::NotAPublicKey { index, what };
            let text = secret.expose().trim_ascii();
            let mut fits = false;
            let mut push = |key: SetKey| {
                fits |= algorithms.iter().any(|algorithm| allows(&key, *algorithm).is_some());
                let id = id.or(key.id.as_deref()).map(Arc::from);
                ring.keys.push(RingKey { id, secret: index, material: Material::Public(Box::new(key)) });
            };
            if text.starts_with(b"{") {
                let set = KeySet::from_jwks(text).map_err(|error| wrong(error.to_string()))?;
                if set.keys().is_empty() {
                    return Err(wrong("the key set holds no public key for signatures".to_owned()));
                }
                set.keys().iter().cloned().for_each(&mut push);
            } else {
                let key = PublicKey::from_text(text).map_err(|error| wrong(error.to_string()))?;
                push(SetKey { id: None, algorithm: None, expired_at: None, key });
            }
            if !fits {
                return Err(wrong("the key verifies none of the configured algorithms".to_owned()));
            }
            ring.secrets = index + 1;
        }
        if ring.keys.len() > MAX_KEYS { Err(RingError::TooMany) } else { Ok(ring) }
    }

    pub(crate) fn secrets(&self) -> usize {
        self.secrets
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The position of the first secret that made the signature. All that could have are tried.
    pub(super) fn judge(&self, presented: &Presented<'_>) -> Result<usize, NotVerified> {
        let mut found = None;
        let mut any = false;
        for ring_key in &self.keys {
            if !names(ring_key.id.as_deref(), presented.key_id) {
                continue;
            }
            let verified = match &ring_key.material {
                Material::Shared(schedules) => {
                    let schedule = schedules.iter().find(|(algorithm, _)| *algorithm == presented.algorithm);
                    let Some((_, keyed)) = schedule else { continue };
                    any = true;
                    let mac = keyed.mac(&[Cow::Borrowed(presented.message)]);
                    bool::from(mac.as_slice().ct_eq(presented.signature))
                }
                Material::Public(key) => {
                    if !is_usable(key, presented.now) {
                        continue;
                    }
                    any = true;
                    verifies(key, presented)
                }
            };
            if verified && found.is_none() {
                found = Some(ring_key.secret);
            }
        }
        found.ok_or(if any { NotVerified::BadSignature } else { NotVerified::NoKey })
    }

    /// For `sign`: the first shared secret, and the id it goes by.
    pub(super) fn signer(&self, algorithm: JwsAlgorithm) -> Option<(Option<&str>, &hmac::Keyed)> {
        self.keys.iter().find_map(|ring_key| match &ring_key.material {
            Material::Shared(schedules) => {
                let (_, keyed) = schedules.iter().find(|(known, _)| *known == algorithm)?;
                Some((ring_key.id.as_deref(), keyed))
            }
            Material::Public(_) => None,
        })
    }

    /// For `sign`: the id of the public key that verifies this signature, if one does.
    pub(super) fn owner(&self, algorithm: JwsAlgorithm, message: &[u8], signature: &[u8]) -> Option<Option<&str>> {
        self.keys.iter().find_map(|ring_key| match &ring_key.material {
            Material::Public(key) => {
                let verified = key.key.verify(allows(key, algorithm)?, message, signature);
                verified.then_some(ring_key.id.as_deref())
            }
            Material::Shared(_) => None,
        })
    }
}

/// Judges with a key set that came from elsewhere.
pub(super) fn judge_set(set: &KeySet, presented: &Presented<'_>) -> Result<(), NotVerified> {
    let fits = |key: &&SetKey| names(key.id.as_deref(), presented.key_id) && is_usable(key, presented.now);
    let mut any = false;
    let mut verified = false;
    for key in set.keys().iter().filter(fits).take(MAX_TRIED) {
        any = true;
        verified |= verifies(key, presented);
    }
    match (verified, any) {
        (true, _) => Ok(()),
        (false, true) => Err(NotVerified::BadSignature),
        (false, false) => Err(NotVerified::NoKey),
    }
}

/// A key without an id is nobody's in particular, and is tried for everybody.
fn names(key: Option<&str>, asked: Option<&str>) -> bool {
    key.is_none_or(|key| asked == Some(key))
}

fn is_usable(key: &SetKey, now: UnixMillis) -> bool {
    key.expired_at.is_none_or(|expired_at| now < UnixMillis::from_secs(expired_at))
}

/// `ES256` and its kin are raw there: two numbers, not DER.
fn allows(key: &SetKey, algorithm: JwsAlgorithm) -> Option<SignatureAlgorithm> {
    SignatureAlgorithm::of_jose(algorithm.name()).filter(|algorithm| key.allows(*algorithm))
}

fn verifies(key: &SetKey, presented: &Presented<'_>) -> bool {
    allows(key, presented.algorithm)
        .is_some_and(|algorithm| key.key.verify(algorithm, presented.message, presented.signature))
}

/// A PEM, a certificate, a JWK: what is published, whoever took it for a secret. A private key is not: it is a secret,
/// if an odd one, but nobody means it to be one.
fn looks_public(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii();
    let is_jwk = || {
        text.starts_with(b"{")
            && serde_json::from_slice::<serde_json::Value>(text)
                .is_ok_and(|value| value.get("keys").is_some() || value.get("kty").is_some())
    };
    text.starts_with(b"-----BEGIN") || text.starts_with(b"ssh-") || is_jwk()
}

/// For a document from elsewhere.
pub(super) fn read_set(bytes: &[u8]) -> Option<KeySet> {
    KeySet::from_jwks(bytes).ok()
}
