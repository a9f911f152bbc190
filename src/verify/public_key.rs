//! Was this message signed with the private half of a key that we know? Ed25519.
//!
//! Invariant: strict verification. A key or a commitment of small order, and an `S` beyond the group's order, are
//! refused; with them several keys or several signatures would pass for one message.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use super::BuildError;
use super::key::Key;
use super::prover::Matched;
use super::template::Message;

pub(crate) const SIGNATURE_LENGTH: usize = ed25519_dalek::SIGNATURE_LENGTH;

#[derive(Clone, Debug)]
pub(crate) struct PublicKey(VerifyingKey);

impl PublicKey {
    pub(crate) fn new(key: &Key, index: usize) -> Result<Self, BuildError> {
        let bytes: &[u8; 32] =
            key.bytes().try_into().map_err(|_| BuildError::KeyLength { index, length: key.bytes().len() })?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| BuildError::NotAPublicKey { index })?;
        if key.is_weak() {
            return Err(BuildError::WeakKey { index });
        }
        Ok(Self(key))
    }

    pub(super) fn as_dalek(&self) -> &VerifyingKey {
        &self.0
    }
}

/// The replay key is the message's own digest, for nothing forbids a signer to sign one message twice.
///
/// The message is copied into one piece: strict verification has no form that takes several.
pub(super) fn judge(keys: &[PublicKey], message: &Message<'_>, candidates: &[Vec<u8>]) -> Matched {
    let message = message.whole();
    let mut secret_index = None;
    for (index, key) in keys.iter().enumerate() {
        for candidate in candidates {
            let verified = Signature::from_slice(candidate)
                .is_ok_and(|signature| key.0.verify_strict(&message, &signature).is_ok());
            if verified && secret_index.is_none() {
                secret_index = Some(index);
            }
        }
    }
    Matched { secret_index, replay_keys: vec![Sha256::digest(&message).into()] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::verify::key::{KeyEncoding, KeyFormat};
    use std::borrow::Cow;

    // RFC 8032, section 7.1, test 3.
    const PUBLIC: &str = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025";
    const MESSAGE: &[u8] = &[0xaf, 0x82];
    const SIGNATURE: &str = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
                             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";

    fn build(hex_key: &str) -> Result<PublicKey, BuildError> {
        let format = KeyFormat { encoding: KeyEncoding::Hex, strip_prefix: None };
        PublicKey::new(&Key::decode(&Secret::new(hex_key.into()), &format).unwrap(), 0)
    }

    fn matched(keys: &[PublicKey], message: &[u8], signature: &[u8]) -> Option<usize> {
        let (head, tail) = message.split_at(1);
        let message = Message { pieces: vec![Cow::Borrowed(head), Cow::Borrowed(tail)], complete: true };
        judge(keys, &message, &[vec![0; 64], signature.to_vec()]).secret_index
    }

    #[test]
    fn the_published_signature_is_accepted_and_no_other_message() {
        let other = build("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        let keys = [other.clone(), build(PUBLIC).unwrap()];
        let signature = hex::decode(SIGNATURE).unwrap();
        assert_eq!(matched(&keys, MESSAGE, &signature), Some(1));
        assert_eq!(matched(&keys, &[0xaf, 0x83], &signature), None);
        assert_eq!(matched(&[other], MESSAGE, &signature), None);
    }

    /// `R` is the neutral element: made with the private key, and accepted by verification that is not strict.
    #[test]
    fn a_commitment_of_small_order_is_refused() {
        let key = build("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        let signature = hex::decode(
            "0100000000000000000000000000000000000000000000000000000000000000\
             659069bb651cbcb260da2fca54a1ab47e41a7be3917dd1d9e1816df6aba8a70f",
        )
        .unwrap();
        let lax = Signature::from_slice(&signature).unwrap();
        assert!(ed25519_dalek::Verifier::verify(&key.0, MESSAGE, &lax).is_ok());
        assert_eq!(matched(&[key], MESSAGE, &signature), None);
    }

    #[test]
    fn keys_that_prove_nothing_do_not_load() {
        assert_eq!(build("00ff").unwrap_err(), BuildError::KeyLength { index: 0, length: 2 });
        let identity = format!("01{}", "00".repeat(31));
        assert_eq!(build(&identity).unwrap_err(), BuildError::WeakKey { index: 0 });
        let not_on_the_curve = format!("02{}", "00".repeat(31));
        assert_eq!(build(&not_on_the_curve).unwrap_err(), BuildError::NotAPublicKey { index: 0 });
    }
}
