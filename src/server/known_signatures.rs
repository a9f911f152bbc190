//! Signatures on certificates and revocation lists that have been found good.
//!
//! A sender that connects anew for each delivery shows the same certificate each time, and checking its CA's signature again
//! is a fifth of the handshake. Owns the memory of them. Invariants:
//! - Only what the real algorithm accepted is in it, under the SHA-256 of all that the algorithm was told (which one it is,
//!   key, message, signature): a hit says what it would say again, for as long as the process lives.
//! - Nothing else is remembered. Whether the CA is trusted, the dates, revocation and purposes are judged by webpki for each
//!   connection, and so is the client's own signature in its handshake, which never comes twice.
//! - It is bounded, the oldest goes first, and a stranger cannot fill it: from the trusted CA downwards, the first signature
//!   that is not good ends the search.

use std::collections::{HashSet, VecDeque};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use sha2::{Digest, Sha256};

/// Clients' certificates, their intermediates and the lists on them; of a larger crowd the newest gain. 100 KiB.
const MOST: usize = 1024;

type Print = [u8; 32];

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
static REMEMBERING: LazyLock<Vec<Remembering>> = LazyLock::new(|| {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    algorithms.all.iter().map(|algorithm| Remembering { algorithm: *algorithm, known: &KNOWN }).collect()
});
static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
    LazyLock::new(|| REMEMBERING.iter().map(|one| one as &dyn SignatureVerificationAlgorithm).collect());

/// What rustls offers, with a memory where certificates are judged (`all`), and as it was for handshakes (`mapping`).
pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    WebPkiSupportedAlgorithms { all: &ALL, ..aws_lc_rs::default_provider().signature_verification_algorithms }
}

#[derive(Debug)]
struct Remembering {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    known: &'static Mutex<Known>,
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let (key_kind, signature_kind) = (self.algorithm.public_key_alg_id(), self.algorithm.signature_alg_id());
        let print = print(&[key_kind.as_ref(), signature_kind.as_ref(), public_key, message, signature]);
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known().prints.contains(&print) {
            return Ok(());
        }
        self.algorithm.verify_signature(public_key, message, signature)?;
        known().remember(print);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

fn print(parts: &[&[u8]]) -> Print {
    let mut digest = Sha256::new();
    for part in parts {
        // So that no byte can move from one part to the next.
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[derive(Debug, Default)]
struct Known {
    prints: HashSet<Print>,
    /// The same, the oldest first.
    order: VecDeque<Print>,
}

impl Known {
    fn remember(&mut self, print: Print) {
        if !self.prints.insert(print) {
            return;
        }
        self.order.push_back(print);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.prints.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::aws_lc_rs::rand::SystemRandom;
    use ::aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    static FEW: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

    #[test]
    fn what_was_good_once_is_good_again_and_not_a_bit_beside_it() {
        let all = algorithms().all;
        let plain = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        assert_eq!(all.len(), plain.len());
        let position =
            plain.iter().position(|one| one.signature_alg_id() == rustls_pki_types::alg_id::ECDSA_SHA256).unwrap();
        let judge = Remembering { algorithm: plain[position], known: &FEW };
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let signature = key.sign(&SystemRandom::new(), b"certificate").unwrap();
        let (key, signature) = (key.public_key().as_ref(), signature.as_ref());
        let changed = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        };
        for round in 0..3 {
            assert!(judge.verify_signature(&changed(key), b"certificate", signature).is_err(), "{round}");
            assert!(judge.verify_signature(key, b"certificatf", signature).is_err(), "{round}");
            assert!(judge.verify_signature(key, b"certificate", &changed(signature)).is_err(), "{round}");
            assert!(judge.verify_signature(key, b"certificate", signature).is_ok(), "{round}");
            assert_eq!(FEW.lock().unwrap().order.len(), 1, "only what was good, and once");
        }
    }

    #[test]
    fn the_memory_is_bounded_and_lets_the_oldest_go() {
        let mut known = Known::default();
        let prints: Vec<Print> = (0..=MOST as u64).map(|number| print(&[&number.to_be_bytes()])).collect();
        for one in &prints {
            known.remember(*one);
            known.remember(*one);
        }
        assert_eq!((known.prints.len(), known.order.len()), (MOST, MOST));
        assert!(!known.prints.contains(&prints[0]), "the oldest is gone");
        assert!(known.prints.contains(&prints[1]) && known.prints.contains(&prints[MOST]));
    }

    #[test]
    fn a_byte_that_moves_from_one_part_to_the_next_is_another_print() {
        assert_ne!(print(&[b"ab", b"c"]), print(&[b"a", b"bc"]));
    }
}
