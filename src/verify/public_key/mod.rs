//! Was this message signed with the private half of a key that we know? Ed25519, ECDSA and RSA.
//!
//! Invariants: a key verifies only algorithms of its own kind, and which algorithm that is comes from whoever calls,
//! never from the message. Ed25519 is strict: a key or a commitment of small order, and an `S` beyond the group's order,
//! are refused; with them several keys or several signatures would pass for one message. ECDSA has two valid signatures
//! for every message (`s` and its negation) and both are accepted, so a signature is no replay key; the message is.

mod algorithm;
pub(super) mod private;
mod read;
mod set;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::signature as aws;
use aws_lc_rs::signature::{ParsedPublicKey, VerificationAlgorithm};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::BuildError;
use super::key::Key;
use super::prover::{Matched, ReplayKeys};
use super::template::Message;
use crate::secret::Secret;

pub(crate) use algorithm::{Curve, Form, Hash, SignatureAlgorithm};
pub(crate) use set::{KeySet, SetKey};

/// Shorter RSA keys can be factored by those who care to (NIST SP 800-131A disallows them since 2014).
const SHORTEST_RSA: u32 = 2048;
/// What a configuration can ask for at the least: 1024 bits are within reach of few; 512 are within everybody's.
const SHORTEST_RSA_BY_REQUEST: u32 = 1024;
/// Beyond it one verification costs milliseconds, and key sets come from the network.
const LONGEST_RSA: u32 = 8192;

#[derive(Clone, Debug)]
pub(crate) struct PublicKey(Kind);

#[derive(Clone)]
enum Kind {
    Ed25519(VerifyingKey),
    Ec { curve: Curve, point: Box<[u8]>, parsed: Parsed },
    Rsa { bits: u32, only_pss: bool, der: Box<[u8]>, pkcs1: Parsed, pss: Parsed },
}

/// The key as the library wants it: one object for each hash, made when it is first used, for most keys have one use.
type Parsed = Box<[OnceLock<Option<ParsedPublicKey>>; 4]>;

/// None of these says what the key was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum KeyError {
    #[error("the key is empty; set it")]
    Empty,
    #[error(
        "the key is in no form that is known: a PEM public key or certificate, base64 of one, a JWK, or 32 bytes of \
         Ed25519 in hex or base64; was it copied whole?"
    )]
    Unreadable,
    #[error(
        "this is a private key, which has no business here; hookward wants its public half: openssl pkey -in KEY -pubout"
    )]
    Private,
    #[error("several keys stand in one text; list each as a secret of its own")]
    Several,
    #[error("this is a shared secret, not a public key")]
    Symmetric,
    #[error("the key is of a kind that signs no webhooks here: use Ed25519, P-256, P-384, P-521, secp256k1 or RSA")]
    Unsupported,
    #[error("the key is not a point of its curve or not a valid modulus; was it copied whole?")]
    Invalid,
    #[error("the key is weak: anybody can make signatures that it accepts")]
    Weak,
    #[error("the RSA key has {0} bits; 2048 are the least (1024 with `allow_short_rsa`), 8192 the most")]
    RsaLength(u32),
    #[error("the key is marked for another use than signatures")]
    OtherUse,
    #[error("the key set is no JSON object with `keys`, or holds more keys than anybody needs")]
    NotAKeySet,
}

impl PublicKey {
    /// Any of the forms in which providers hand out keys; `read` lists them.
    pub(crate) fn from_text(text: &[u8]) -> Result<Self, KeyError> {
        read::text(text)?.at_least(SHORTEST_RSA)
    }

    /// RSA keys of 1024 bits too, for a sender that has no other and an operator who knows what that is worth.
    pub(crate) fn from_text_with_short_rsa(text: &[u8]) -> Result<Self, KeyError> {
        read::text(text)?.at_least(SHORTEST_RSA_BY_REQUEST)
    }

    /// A SubjectPublicKeyInfo (RFC 5280), as it stands in certificates.
    pub(crate) fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        read::spki(der)?.at_least(SHORTEST_RSA)
    }

    fn ed25519(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes: &[u8; 32] = bytes.try_into().map_err(|_| KeyError::Invalid)?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Invalid)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self(Kind::Ed25519(key)))
    }

    /// `point` as SEC 1 writes it, compressed or not.
    fn ec(curve: Curve, point: &[u8]) -> Result<Self, KeyError> {
        let parsed: Parsed = Default::default();
        // Every curve is used with SHA-256; making that one proves the point.
        let algorithm = ecdsa(curve, Hash::Sha256).ok_or(KeyError::Unsupported)?;
        // The library would take a SubjectPublicKeyInfo in a point's place.
        let lengths = [1 + curve.width(), 1 + 2 * curve.width()];
        if !lengths.contains(&point.len()) {
            return Err(KeyError::Invalid);
        }
        let first = ParsedPublicKey::new(algorithm, point).map_err(|_| KeyError::Invalid)?;
        let [_, sha256, ..] = &*parsed;
        sha256.get_or_init(|| Some(first));
        Ok(Self(Kind::Ec { curve, point: point.into(), parsed }))
    }

    /// `der` is an RSAPublicKey (RFC 8017). Its length is judged by `at_least`.
    fn rsa(der: &[u8], only_pss: bool) -> Result<Self, KeyError> {
        let bits = aws::RsaParameters::public_modulus_len(der).map_err(|_| KeyError::Invalid)?;
        Ok(Self(Kind::Rsa { bits, only_pss, der: der.into(), pkcs1: Default::default(), pss: Default::default() }))
    }

    fn at_least(self, shortest: u32) -> Result<Self, KeyError> {
        match self.0 {
            Kind::Rsa { bits, .. } if !(shortest..=LONGEST_RSA).contains(&bits) => Err(KeyError::RsaLength(bits)),
            Kind::Ed25519(_) | Kind::Ec { .. } | Kind::Rsa { .. } => Ok(self),
        }
    }

    /// Could a signature of this algorithm be this key's at all? A configuration in which it cannot should not load.
    pub(crate) fn fits(&self, algorithm: SignatureAlgorithm) -> bool {
        match (&self.0, algorithm) {
            (Kind::Ed25519(_), SignatureAlgorithm::Ed25519) => true,
            (Kind::Ec { curve: own, .. }, SignatureAlgorithm::Ecdsa { curve, hash, .. }) => {
                *own == curve && ecdsa(curve, hash).is_some()
            }
            (Kind::Rsa { bits, only_pss: false, .. }, SignatureAlgorithm::RsaPkcs1 { hash }) => {
                rsa_pkcs1(hash, *bits).is_some()
            }
            (Kind::Rsa { bits, .. }, SignatureAlgorithm::RsaPss { hash }) => rsa_pss(hash, *bits).is_some(),
            (Kind::Ed25519(_) | Kind::Ec { .. } | Kind::Rsa { .. }, _) => false,
        }
    }

    /// `false` also where the key's kind and the algorithm do not belong together.
    pub(crate) fn verify(&self, algorithm: SignatureAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.0, algorithm) {
            (Kind::Ed25519(key), SignatureAlgorithm::Ed25519) => {
                Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
            }
            (Kind::Ec { curve: own, point, parsed }, SignatureAlgorithm::Ecdsa { curve, hash, form })
                if *own == curve =>
            {
                let Some(key) = ecdsa(curve, hash).and_then(|algorithm| prepared(parsed, hash, algorithm, point))
                else {
                    return false;
                };
                match form {
                    Form::Der => key.verify_sig(message, signature).is_ok(),
                    Form::Raw => Der::of_raw(curve, signature)
                        .is_some_and(|signature| key.verify_sig(message, signature.bytes()).is_ok()),
                }
            }
            (Kind::Rsa { bits, only_pss: false, der, pkcs1, .. }, SignatureAlgorithm::RsaPkcs1 { hash }) => {
                rsa_pkcs1(hash, *bits)
                    .and_then(|algorithm| prepared(pkcs1, hash, algorithm, der))
                    .is_some_and(|key| key.verify_sig(message, signature).is_ok())
            }
            (Kind::Rsa { bits, der, pss, .. }, SignatureAlgorithm::RsaPss { hash }) => rsa_pss(hash, *bits)
                .and_then(|algorithm| prepared(pss, hash, algorithm, der))
                .is_some_and(|key| key.verify_sig(message, signature).is_ok()),
            (Kind::Ed25519(_) | Kind::Ec { .. } | Kind::Rsa { .. }, _) => false,
        }
    }

    /// Does the whole work of a first verification, so that no delivery has to.
    pub(crate) fn warm(&self, algorithm: SignatureAlgorithm) {
        self.verify(algorithm, &[], &[]);
    }

    /// The key's own bytes: 32 of Ed25519, an uncompressed or compressed point, an RSAPublicKey.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Ed25519(key) => key.as_bytes(),
            Kind::Ec { point, .. } => point,
            Kind::Rsa { der, .. } => der,
        }
    }

    pub(crate) fn rsa_bits(&self) -> Option<u32> {
        match &self.0 {
            Kind::Rsa { bits, .. } => Some(*bits),
            Kind::Ed25519(_) | Kind::Ec { .. } => None,
        }
    }

    /// As a scheme of this algorithm wants it.
    pub(crate) fn of(key: &Key, index: usize, algorithm: SignatureAlgorithm) -> Result<Self, BuildError> {
        let public = match key.public() {
            Some(public) => public.clone(),
            None if key.bytes().len() == ed25519_dalek::PUBLIC_KEY_LENGTH => {
                Self::ed25519(key.bytes()).map_err(|error| match error {
                    KeyError::Weak => BuildError::WeakKey { index },
                    _ => BuildError::NotAPublicKey { index },
                })?
            }
            None => return Err(BuildError::KeyLength { index, length: key.bytes().len() }),
        };
        if !public.fits(algorithm) {
            return Err(BuildError::KeyOfAnotherKind { index, algorithm: algorithm.name() });
        }
        public.warm(algorithm);
        Ok(public)
    }

    /// What a decoder left: 32 bytes of Ed25519, or DER.
    pub(super) fn from_bytes(bytes: &[u8], short_rsa: bool) -> Result<Self, KeyError> {
        read::bare(bytes)?.at_least(if short_rsa { SHORTEST_RSA_BY_REQUEST } else { SHORTEST_RSA })
    }

    pub(super) fn of_seed(seed: &[u8; 32]) -> Self {
        Self(Kind::Ed25519(ed25519_dalek::SigningKey::from_bytes(seed).verifying_key()))
    }

    #[cfg(test)]
    fn as_dalek(&self) -> Option<&VerifyingKey> {
        match &self.0 {
            Kind::Ed25519(key) => Some(key),
            Kind::Ec { .. } | Kind::Rsa { .. } => None,
        }
    }
}

impl std::fmt::Debug for Kind {
    /// Public keys are no secret, and in a log they are noise.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ed25519(_) => write!(out, "Ed25519"),
            Self::Ec { curve, .. } => write!(out, "{curve:?}"),
            Self::Rsa { bits, .. } => write!(out, "RSA {bits}"),
        }
    }
}

fn prepared<'a>(
    parsed: &'a Parsed,
    hash: Hash,
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: &[u8],
) -> Option<&'a ParsedPublicKey> {
    let [sha1, sha256, sha384, sha512] = &**parsed;
    let cell = match hash {
        Hash::Sha1 => sha1,
        Hash::Sha256 => sha256,
        Hash::Sha384 => sha384,
        Hash::Sha512 => sha512,
    };
    cell.get_or_init(|| ParsedPublicKey::new(algorithm, bytes).ok()).as_ref()
}

/// In the DER form, of which the library has more than of the raw one.
fn ecdsa(curve: Curve, hash: Hash) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (curve, hash) {
        (Curve::P256, Hash::Sha1) => &aws::ECDSA_P256_SHA1_ASN1,
        (Curve::P256, Hash::Sha256) => &aws::ECDSA_P256_SHA256_ASN1,
        (Curve::P256, Hash::Sha384) => &aws::ECDSA_P256_SHA384_ASN1,
        (Curve::P256, Hash::Sha512) => &aws::ECDSA_P256_SHA512_ASN1,
        (Curve::P384, Hash::Sha256) => &aws::ECDSA_P384_SHA256_ASN1,
        (Curve::P384, Hash::Sha384) => &aws::ECDSA_P384_SHA384_ASN1,
        (Curve::P384, Hash::Sha512) => &aws::ECDSA_P384_SHA512_ASN1,
        (Curve::P521, Hash::Sha1) => &aws::ECDSA_P521_SHA1_ASN1,
        (Curve::P521, Hash::Sha256) => &aws::ECDSA_P521_SHA256_ASN1,
        (Curve::P521, Hash::Sha384) => &aws::ECDSA_P521_SHA384_ASN1,
        (Curve::P521, Hash::Sha512) => &aws::ECDSA_P521_SHA512_ASN1,
        (Curve::Secp256k1, Hash::Sha256) => &aws::ECDSA_P256K1_SHA256_ASN1,
        // The library has none, and no sender was seen that uses them.
        (Curve::P384, Hash::Sha1) | (Curve::Secp256k1, Hash::Sha1 | Hash::Sha384 | Hash::Sha512) => return None,
    })
}

fn rsa_pkcs1(hash: Hash, bits: u32) -> Option<&'static dyn VerificationAlgorithm> {
    let short = bits < SHORTEST_RSA;
    Some(match hash {
        Hash::Sha1 if short => &aws::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha1 => &aws::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 if short => &aws::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 => &aws::RSA_PKCS1_2048_8192_SHA256,
        Hash::Sha384 if short => return None,
        Hash::Sha384 => &aws::RSA_PKCS1_2048_8192_SHA384,
        Hash::Sha512 if short => &aws::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        Hash::Sha512 => &aws::RSA_PKCS1_2048_8192_SHA512,
    })
}

/// The salt is as long as the hash, which RFC 9421 and JWA demand and everybody else does.
fn rsa_pss(hash: Hash, bits: u32) -> Option<&'static dyn VerificationAlgorithm> {
    if bits < SHORTEST_RSA {
        return None;
    }
    Some(match hash {
        Hash::Sha1 => return None,
        Hash::Sha256 => &aws::RSA_PSS_2048_8192_SHA256,
        Hash::Sha384 => &aws::RSA_PSS_2048_8192_SHA384,
        Hash::Sha512 => &aws::RSA_PSS_2048_8192_SHA512,
    })
}

/// The longest signature, of P-521: two integers of 66 bytes with a two-byte head each, and a three-byte head.
const LONGEST_DER: usize = 3 + 2 * (2 + 66);

/// An ECDSA signature rewritten, on the stack.
struct Der {
    bytes: [u8; LONGEST_DER],
    length: usize,
}

impl Der {
    fn of_raw(curve: Curve, raw: &[u8]) -> Option<Self> {
        let width = curve.width();
        if raw.len() != 2 * width {
            return None;
        }
        let (r, s) = raw.split_at_checked(width)?;
        let (r, s) = (Integer::of(r), Integer::of(s));
        let content = r.length() + s.length();
        let mut der = Self { bytes: [0; LONGEST_DER], length: 0 };
        der.push(0x30)?;
        if content > 0x7f {
            der.push(0x81)?;
        }
        der.push(u8::try_from(content).ok()?)?;
        for integer in [r, s] {
            der.push(0x02)?;
            der.push(u8::try_from(integer.length() - 2).ok()?)?;
            if integer.padded {
                der.push(0)?;
            }
            for byte in integer.digits {
                der.push(*byte)?;
            }
        }
        Some(der)
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.length)? = byte;
        self.length += 1;
        Some(())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// A number without its leading zeros; `padded` where the first bit would read as a sign.
struct Integer<'a> {
    digits: &'a [u8],
    padded: bool,
}

impl<'a> Integer<'a> {
    fn of(number: &'a [u8]) -> Self {
        let mut digits = number;
        while let [0, rest @ ..] = digits
            && !rest.is_empty()
        {
            digits = rest;
        }
        Self { digits, padded: digits.first().is_some_and(|first| *first >= 0x80) }
    }

    /// With tag and length.
    fn length(&self) -> usize {
        2 + usize::from(self.padded) + self.digits.len()
    }
}

/// A key and the id under which the sender may name it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) id: Option<Arc<str>>,
    pub(super) key: PublicKey,
    /// Where both halves come from a shared secret, which is what the receiver was given.
    pub(super) seed: Option<Secret>,
}

pub(super) fn listed(algorithm: SignatureAlgorithm, keys: &[Key]) -> Result<Vec<Listed>, BuildError> {
    let listed = keys.iter().enumerate().map(|(index, key)| {
        let public = PublicKey::of(key, index, algorithm)?;
        let seed = (key.bytes() != public.bytes()).then(|| Secret::new(key.bytes().to_vec()));
        Ok(Listed { id: key.id.clone(), key: public, seed })
    });
    listed.collect()
}

/// Of RSA they are the keys' own.
pub(super) fn signature_lengths(algorithm: SignatureAlgorithm, keys: &[Listed]) -> RangeInclusive<usize> {
    let own = || keys.iter().filter_map(|listed| listed.key.rsa_bits()).map(|bits| bits.div_ceil(8) as usize);
    match own().min().zip(own().max()) {
        Some((shortest, longest)) => shortest..=longest,
        None => algorithm.signature_lengths(),
    }
}

/// The replay key is the message's own digest, for nothing forbids a signer to sign one message twice, and ECDSA lets
/// anybody make a second signature from a first.
///
/// `wanted`: the id of the key, where the sender names one; the others are not tried. The message is copied into one
/// piece: the libraries have no form that takes several.
pub(super) fn judge(
    algorithm: SignatureAlgorithm,
    keys: &[Listed],
    wanted: Option<&str>,
    message: &Message<'_>,
    candidates: &[Vec<u8>],
) -> Matched {
    let message = message.whole();
    let tried = |listed: &Listed| wanted.is_none_or(|wanted| listed.id.as_deref() == Some(wanted));
    let verified =
        |listed: &Listed| candidates.iter().any(|candidate| listed.key.verify(algorithm, &message, candidate));
    // Keys and signatures are public, so the first match may end the search.
    let secret_index = keys.iter().position(|listed| tried(listed) && verified(listed));
    Matched { secret_index, replay_keys: ReplayKeys::Of(Sha256::digest(&message).into()) }
}
