//! Is this signature one that our key would make over these bytes? Every HMAC provider is this file plus data.
//!
//! Invariant: the MAC under every live secret is computed, and every candidate is compared with every one of them, in
//! constant time, before we answer. No MAC leaves this file in the open but to sign: what leaves is a position, or a digest
//! of it.

use std::borrow::Cow;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use smallvec::SmallVec;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::key::Key;
use super::prover::{Matched, ReplayKeys};
use super::scheme::Algorithm;
use super::template::Message;

/// One secret's key schedule, computed when the configuration loads and cloned for each request. Boxed, since the
/// states differ much in size.
#[derive(Clone)]
pub(crate) enum Keyed {
    Sha1(Box<Hmac<Sha1>>),
    Sha256(Box<Hmac<Sha256>>),
    Sha384(Box<Hmac<Sha384>>),
    Sha512(Box<Hmac<Sha512>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    pub(crate) fn hash(self) -> Option<Hash> {
        match self {
            Self::Sha1 => Some(Hash::Sha1),
            Self::Sha256 => Some(Hash::Sha256),
            Self::Sha512 => Some(Hash::Sha512),
            Self::HmacSha1 => Some(Hash::Sha1),
            Self::HmacSha256 => Some(Hash::Sha256),
            Self::HmacSha384 => Some(Hash::Sha384),
            Self::HmacSha512 => Some(Hash::Sha512),
            Self::Signature(_) => None,
        }
    }
}

impl Keyed {
    pub(crate) fn new(hash: Hash, key: &Key) -> Self {
        match hash {
            Hash::Sha1 => Self::Sha1(Box::new(schedule(key))),
            Hash::Sha256 => Self::Sha256(Box::new(schedule(key))),
            Hash::Sha384 => Self::Sha384(Box::new(schedule(key))),
            Hash::Sha512 => Self::Sha512(Box::new(schedule(key))),
        }
    }

    /// For `sign.rs` too, which acts as the sender. Wiped when dropped: a MAC is a working signature.
    pub(super) fn mac(&self, pieces: &[Cow<'_, [u8]>]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Sha1(keyed) => fed(&**keyed, pieces).finalize().into_bytes().to_vec(),
            Self::Sha256(keyed) => fed(&**keyed, pieces).finalize().into_bytes().to_vec(),
            Self::Sha384(keyed) => fed(&**keyed, pieces).finalize().into_bytes().to_vec(),
            Self::Sha512(keyed) => fed(&**keyed, pieces).finalize().into_bytes().to_vec(),
        })
    }
}

fn schedule<M: KeyInit>(key: &Key) -> M {
    M::new_from_slice(key.bytes()).expect("HMAC takes a key of any length")
}

fn fed<M: Mac + Clone>(keyed: &M, pieces: &[Cow<'_, [u8]>]) -> M {
    let mut mac = keyed.clone();
    for piece in pieces {
        mac.update(piece);
    }
    mac
}

/// A secret that goes into the hashed message itself, at the place that the template names.
#[derive(Clone, Debug)]
pub(crate) struct Hashed {
    hash: Hash,
    secret: Key,
}

impl Hashed {
    pub(crate) fn new(hash: Hash, secret: Key) -> Self {
        Self { hash, secret }
    }

    pub(super) fn digest(&self, message: &Message<'_>) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self.hash {
            Hash::Sha1 => self.feed(Sha1::new(), message),
            Hash::Sha256 => self.feed(Sha256::new(), message),
            Hash::Sha384 => self.feed(Sha384::new(), message),
            Hash::Sha512 => self.feed(Sha512::new(), message),
        })
    }

    fn feed<D: Digest>(&self, mut digest: D, message: &Message<'_>) -> Vec<u8> {
        for (position, piece) in message.pieces.iter().enumerate() {
            if message.secret_at == Some(position) {
                digest.update(self.secret.bytes());
            }
            digest.update(piece);
        }
        if message.secret_at == Some(message.pieces.len()) {
            digest.update(self.secret.bytes());
        }
        digest.finalize().to_vec()
    }
}

/// A plain hash over `secret + message` can be continued by whoever knows it, without the secret: behind the padding,
/// which holds a zero byte in every case, for the length of a message is far below 2^56 bits. No genuine text has one.
pub(super) fn may_be_extended(message: &Message<'_>) -> bool {
    let behind = message.secret_at.and_then(|at| message.pieces.get(at..)).unwrap_or_default();
    behind.iter().any(|piece| piece.contains(&0))
}

/// As `judge`, for plain hashes.
pub(super) fn judge_hashed(secrets: &[Hashed], message: &Message<'_>, candidates: &[Vec<u8>]) -> Matched {
    compare(secrets.iter().map(|secret| secret.digest(message)), candidates)
}

/// The replay keys are the MACs under all the secrets, not the presented one alone: whoever knows an old secret could
/// else present the same message a second time under another signature. They are hashed, so that the memory of what was
/// accepted holds no working signatures.
pub(super) fn judge(secrets: &[Keyed], message: &Message<'_>, candidates: &[Vec<u8>]) -> Matched {
    compare(secrets.iter().map(|secret| secret.mac(&message.pieces)), candidates)
}

/// The MACs of one message, of which nobody sees more than digests.
pub(super) struct Macs(SmallVec<[Zeroizing<Vec<u8>>; 1]>);

impl Macs {
    pub(super) fn replay_keys(&self) -> Vec<[u8; 32]> {
        self.0.iter().map(|mac| Sha256::new().chain_update(b"hmac").chain_update(mac).finalize().into()).collect()
    }
}

/// The first secret whose MAC is among the candidates, found without a branch on any of them.
fn compare(macs: impl Iterator<Item = Zeroizing<Vec<u8>>>, candidates: &[Vec<u8>]) -> Matched {
    let macs = Macs(macs.collect());
    let mut first = 0_u32;
    for (position, mac) in (1..).zip(&macs.0) {
        let any = candidates.iter().fold(Choice::from(0), |any, candidate| any | mac.ct_eq(candidate));
        first.conditional_assign(&position, any & first.ct_eq(&0));
    }
    let secret_index = first.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    Matched { secret_index, replay_keys: ReplayKeys::OfMacs(macs) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::verify::key::{KeyEncoding, KeyFormat};

    fn keyed(hash: Hash, secret: &[u8]) -> Keyed {
        let format = KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None };
        Keyed::new(hash, &Key::decode(&Secret::new(secret.to_vec()), &format).unwrap())
    }

    fn message<'a>(pieces: &[&'a [u8]]) -> Message<'a> {
        Message { pieces: pieces.iter().map(|piece| Cow::Borrowed(*piece)).collect(), complete: true, secret_at: None }
    }

    /// RFC 2202 and RFC 4231, test case 2.
    #[test]
    fn the_published_macs_are_ours() {
        let pieces = message(&[b"what do ya ", b"want for ", b"nothing?"]).pieces;
        for (hash, expected) in [
            (Hash::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (Hash::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Hash::Sha384,
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
            ),
            (
                Hash::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd\
                 caeab1a34d4a6b4b636e070a38bce737",
            ),
        ] {
            assert_eq!(hex::encode(keyed(hash, b"Jefe").mac(&pieces).as_slice()), expected, "{hash:?}");
        }
    }

    #[test]
    fn any_secret_may_match_any_candidate() {
        let secrets = [keyed(Hash::Sha256, b"new"), keyed(Hash::Sha256, b"old")];
        let message = message(&[b"m"]);
        let [new, old] = [0, 1].map(|index: usize| secrets[index].mac(&message.pieces).to_vec());
        let wrong = vec![0; 32];
        assert_eq!(judge(&secrets, &message, &[wrong.clone(), old.clone()]).secret_index, Some(1));
        assert_eq!(judge(&secrets, &message, &[old, new]).secret_index, Some(0));
        assert_eq!(judge(&secrets, &message, &[wrong]).secret_index, None);
        assert_eq!(judge(&secrets, &message, &[]).secret_index, None);
    }

    #[test]
    fn replay_keys_stand_for_the_message_under_every_secret() {
        let secrets = [keyed(Hash::Sha512, b"new"), keyed(Hash::Sha512, b"old")];
        let one = judge(&secrets, &message(&[b"a", b"b"]), &[]).replay_keys.told();
        assert_eq!(one.len(), 2);
        assert_eq!(judge(&secrets, &message(&[b"ab"]), &[vec![1; 64]]).replay_keys.told(), one);
        let other = judge(&secrets, &message(&[b"ac"]), &[]).replay_keys.told();
        assert!(one.iter().all(|key| !other.contains(key)));
    }
}
