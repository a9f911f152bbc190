//! What keys accept and refuse, and in which forms they are read.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature as aws;
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use smallvec::smallvec;
use std::borrow::Cow;

use super::*;
use crate::secret::Secret;
use crate::verify::key::{KeyEncoding, KeyFormat};

// RFC 8032, section 7.1, test 3.
const PUBLIC: &str = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025";
const MESSAGE: &[u8] = &[0xaf, 0x82];
const SIGNATURE: &str = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
                         18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";

fn build(hex_key: &str) -> Result<PublicKey, BuildError> {
    let format = KeyFormat { encoding: KeyEncoding::Hex, strip_prefix: None };
    PublicKey::of(&Key::decode(&Secret::new(hex_key.into()), &format).unwrap(), 0, SignatureAlgorithm::Ed25519)
}

fn matched(keys: &[PublicKey], message: &[u8], signature: &[u8]) -> Option<usize> {
    let (head, tail) = message.split_at(1);
    let message =
        Message { pieces: smallvec![Cow::Borrowed(head), Cow::Borrowed(tail)], complete: true, secret_at: None };
    let listed: Vec<_> = keys.iter().map(|key| Listed { id: None, key: key.clone(), seed: None }).collect();
    judge(SignatureAlgorithm::Ed25519, &listed, None, &message, &[vec![0; 64], signature.to_vec()]).secret_index
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
    assert!(ed25519_dalek::Verifier::verify(key.as_dalek().unwrap(), MESSAGE, &lax).is_ok());
    assert_eq!(matched(&[key], MESSAGE, &signature), None);
}

#[test]
fn keys_that_prove_nothing_do_not_load() {
    assert_eq!(build("00ff").unwrap_err(), BuildError::KeyLength { index: 0, length: 2 });
    let identity = format!("01{}", "00".repeat(31));
    assert_eq!(build(&identity).unwrap_err(), BuildError::WeakKey { index: 0 });
    assert_eq!(PublicKey::from_text(identity.as_bytes()).unwrap_err(), KeyError::Weak);
    let not_on_the_curve = format!("02{}", "00".repeat(31));
    assert_eq!(build(&not_on_the_curve).unwrap_err(), BuildError::NotAPublicKey { index: 0 });
}

struct EcPair {
    curve: Curve,
    hash: Hash,
    der: EcdsaKeyPair,
    raw: EcdsaKeyPair,
}

/// A pair of each curve, with the hash that the library signs with.
fn ec_pairs() -> Vec<EcPair> {
    [
        (Curve::P256, Hash::Sha256, &aws::ECDSA_P256_SHA256_ASN1_SIGNING, &aws::ECDSA_P256_SHA256_FIXED_SIGNING),
        (Curve::P384, Hash::Sha384, &aws::ECDSA_P384_SHA384_ASN1_SIGNING, &aws::ECDSA_P384_SHA384_FIXED_SIGNING),
        (Curve::P521, Hash::Sha512, &aws::ECDSA_P521_SHA512_ASN1_SIGNING, &aws::ECDSA_P521_SHA512_FIXED_SIGNING),
        (
            Curve::Secp256k1,
            Hash::Sha256,
            &aws::ECDSA_P256K1_SHA256_ASN1_SIGNING,
            &aws::ECDSA_P256K1_SHA256_FIXED_SIGNING,
        ),
    ]
    .into_iter()
    .map(|(curve, hash, der, raw)| {
        let private = EcdsaKeyPair::generate(der).unwrap().to_pkcs8v1().unwrap();
        let pair = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref()).unwrap();
        EcPair { curve, hash, der: pair(der), raw: pair(raw) }
    })
    .collect()
}

impl EcPair {
    fn spki(&self) -> Vec<u8> {
        AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(self.der.public_key()).unwrap().as_ref().to_vec()
    }

    fn algorithm(&self, form: Form) -> SignatureAlgorithm {
        SignatureAlgorithm::Ecdsa { curve: self.curve, hash: self.hash, form }
    }
}

#[test]
fn ecdsa_is_accepted_in_the_configured_form_alone() {
    let random = SystemRandom::new();
    let pairs = ec_pairs();
    assert_eq!(pairs.len(), 4);
    for pair in &pairs {
        let key = PublicKey::from_spki_der(&pair.spki()).unwrap();
        let (der, raw) = (pair.algorithm(Form::Der), pair.algorithm(Form::Raw));
        // Often enough that numbers with leading zeros and with a set sign bit come by.
        for round in 0..64_u8 {
            let message = [round; 40];
            let in_der = pair.der.sign(&random, &message).unwrap();
            let in_raw = pair.raw.sign(&random, &message).unwrap();
            assert!(der.signature_lengths().contains(&in_der.as_ref().len()));
            assert!(raw.signature_lengths().contains(&in_raw.as_ref().len()));
            assert!(key.verify(der, &message, in_der.as_ref()), "{:?}", pair.curve);
            assert!(key.verify(raw, &message, in_raw.as_ref()), "{:?}", pair.curve);
            assert!(!key.verify(raw, &message, in_der.as_ref()));
            assert!(!key.verify(der, &message, in_raw.as_ref()));
            assert!(!key.verify(der, b"another message", in_der.as_ref()));
        }
        let mut zero = vec![0; 2 * pair.curve.width()];
        assert!(!key.verify(raw, b"", &zero), "the signature of all zeros is nobody's (CVE-2022-21449)");
        zero.push(0);
        assert!(!key.verify(raw, b"", &zero));
        assert!(!key.verify(raw, b"", &[]));
        assert!(!key.verify(der, b"", &[]));
    }
}

#[test]
fn a_key_verifies_no_algorithm_of_another_kind() {
    let random = SystemRandom::new();
    let pairs = ec_pairs();
    let message = b"the message";
    for signer in &pairs {
        let signature = signer.der.sign(&random, message).unwrap();
        for other in &pairs {
            let key = PublicKey::from_spki_der(&other.spki()).unwrap();
            let is_own = signer.curve == other.curve;
            assert_eq!(key.verify(signer.algorithm(Form::Der), message, signature.as_ref()), is_own);
            assert_eq!(key.fits(signer.algorithm(Form::Der)), is_own);
            for foreign in [
                SignatureAlgorithm::Ed25519,
                SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha256 },
                SignatureAlgorithm::RsaPss { hash: Hash::Sha256 },
            ] {
                assert!(!key.fits(foreign));
                assert!(!key.verify(foreign, message, signature.as_ref()));
            }
        }
    }
    let edwards = PublicKey::from_text(PUBLIC.as_bytes()).unwrap();
    assert!(edwards.verify(SignatureAlgorithm::Ed25519, MESSAGE, &hex::decode(SIGNATURE).unwrap()));
    let raw = SignatureAlgorithm::Ecdsa { curve: Curve::P256, hash: Hash::Sha256, form: Form::Raw };
    assert!(!edwards.verify(raw, MESSAGE, &hex::decode(SIGNATURE).unwrap()));
}

#[test]
fn rsa_is_accepted_in_the_configured_padding_alone() {
    let random = SystemRandom::new();
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let key = PublicKey::from_text(&pem("RSA PUBLIC KEY", pair.public_key().as_ref())).unwrap();
    assert_eq!(key.rsa_bits(), Some(2048));
    let spki = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap().as_ref().to_vec();
    assert_eq!(PublicKey::from_spki_der(&spki).unwrap().bytes(), key.bytes());
    for (signing, algorithm) in [
        (&aws::RSA_PKCS1_SHA256, SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha256 }),
        (&aws::RSA_PKCS1_SHA384, SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha384 }),
        (&aws::RSA_PKCS1_SHA512, SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha512 }),
        (&aws::RSA_PSS_SHA256, SignatureAlgorithm::RsaPss { hash: Hash::Sha256 }),
        (&aws::RSA_PSS_SHA384, SignatureAlgorithm::RsaPss { hash: Hash::Sha384 }),
        (&aws::RSA_PSS_SHA512, SignatureAlgorithm::RsaPss { hash: Hash::Sha512 }),
    ] {
        let mut signature = vec![0; 256];
        pair.sign(signing, &random, b"the message", &mut signature).unwrap();
        assert!(key.verify(algorithm, b"the message", &signature), "{algorithm:?}");
        assert!(!key.verify(algorithm, b"the messagf", &signature), "{algorithm:?}");
        for name in SignatureAlgorithm::names() {
            let other = SignatureAlgorithm::named(name).unwrap();
            assert_eq!(key.verify(other, b"the message", &signature), other == algorithm, "{algorithm:?} as {name}");
        }
    }
}

/// 1024 bits: RFC 9421 and its drafts use such a key in their examples.
#[test]
fn a_short_rsa_key_loads_only_where_it_is_asked_for() {
    let modulus = format!("{}1", "F".repeat(255));
    let jwk = |digits: usize| {
        let bytes = hex::decode(&modulus[256 - digits..]).unwrap();
        json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(bytes), "e": "AQAB" }).to_string()
    };
    assert_eq!(PublicKey::from_text(jwk(256).as_bytes()).unwrap_err(), KeyError::RsaLength(1024));
    assert_eq!(PublicKey::from_text_with_short_rsa(jwk(256).as_bytes()).unwrap().rsa_bits(), Some(1024));
    assert_eq!(PublicKey::from_text_with_short_rsa(jwk(192).as_bytes()).unwrap_err(), KeyError::RsaLength(768));
    let set = json!({ "keys": [serde_json::from_str::<serde_json::Value>(&jwk(256)).unwrap()] }).to_string();
    assert_eq!(KeySet::from_jwks(set.as_bytes()).unwrap().keys().len(), 0);
}

#[test]
fn an_rsa_exponent_that_signs_for_everybody_does_not_load() {
    let modulus = hex::decode(format!("{}1", "F".repeat(511))).unwrap();
    for (exponent, loads) in [("AQAB", true), ("Aw", true), ("AQ", false), ("Ag", false), ("AA", false)] {
        let jwk = json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(&modulus), "e": exponent });
        assert_eq!(set::jwk(&jwk).is_ok(), loads, "{exponent}");
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let encoded = STANDARD.encode(der);
    let lines: Vec<String> = encoded.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
}

#[test]
fn every_form_in_which_keys_are_handed_out_gives_the_same_key() {
    for pair in ec_pairs() {
        let spki = pair.spki();
        let key = PublicKey::from_spki_der(&spki).unwrap();
        let pem = String::from_utf8(pem("PUBLIC KEY", &spki)).unwrap();
        for text in [
            pem.clone(),
            pem.replace('\n', "\r\n"),
            pem.replace('\n', ""),
            pem.replace('\n', "\\n"),
            pem.replace('\n', " "),
            format!("\n  {pem}\n"),
            STANDARD.encode(&spki),
            URL_SAFE_NO_PAD.encode(&spki),
            hex::encode(&spki),
        ] {
            assert_eq!(PublicKey::from_text(text.as_bytes()).unwrap().bytes(), key.bytes(), "{text}");
        }
        assert_eq!(PublicKey::from_text(&spki).unwrap().bytes(), key.bytes());
    }
    let key = PublicKey::from_text(PUBLIC.as_bytes()).unwrap();
    let bytes = hex::decode(PUBLIC).unwrap();
    for text in [
        STANDARD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
        format!("whpk_{}", STANDARD.encode(&bytes)),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(&bytes) }).to_string(),
    ] {
        assert_eq!(PublicKey::from_text(text.as_bytes()).unwrap().bytes(), key.bytes(), "{text}");
    }
    assert_eq!(PublicKey::from_text(&bytes).unwrap().bytes(), key.bytes());
    // RFC 8410, section 10.1.
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    let expected = hex::decode("19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1").unwrap();
    assert_eq!(PublicKey::from_text(pem.as_bytes()).unwrap().bytes(), expected);
}

#[test]
fn the_first_certificate_of_a_chain_gives_its_key() {
    let leaf = rcgen::KeyPair::generate().unwrap();
    let certificate = |pair: &rcgen::KeyPair| {
        rcgen::CertificateParams::new(vec!["sender.example".to_owned()]).unwrap().self_signed(pair).unwrap().pem()
    };
    let chain = format!("{}{}", certificate(&leaf), certificate(&rcgen::KeyPair::generate().unwrap()));
    let key = PublicKey::from_text(chain.as_bytes()).unwrap();
    assert_eq!(key.bytes(), rcgen::PublicKeyData::der_bytes(&leaf));
}

#[test]
fn what_is_no_single_public_key_is_refused_by_name() {
    let read = |text: &str| PublicKey::from_text(text.as_bytes()).unwrap_err();
    let spki = ec_pairs()[0].spki();
    let one = String::from_utf8(pem("PUBLIC KEY", &spki)).unwrap();
    assert_eq!(read(""), KeyError::Empty);
    assert_eq!(read(" \n"), KeyError::Empty);
    assert_eq!(read("nonsense"), KeyError::Unreadable);
    assert_eq!(read(&format!("{one}{one}")), KeyError::Several);
    assert_eq!(read(&one.replace("-----END", "")), KeyError::Unreadable);
    assert_eq!(read(&String::from_utf8(pem("PRIVATE KEY", b"x")).unwrap()), KeyError::Private);
    assert_eq!(read(&String::from_utf8(pem("EC PRIVATE KEY", b"x")).unwrap()), KeyError::Private);
    assert_eq!(read(r#"{"kty":"oct","k":"AAAA"}"#), KeyError::Symmetric);
    assert_eq!(read(r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA","d":"AAAA"}"#), KeyError::Private);
    assert_eq!(read(r#"{"kty":"OKP","crv":"X25519","x":"AAAA"}"#), KeyError::Unsupported);
    let mut longer = spki.clone();
    longer.push(0);
    assert_eq!(PublicKey::from_spki_der(&longer).unwrap_err(), KeyError::Unreadable);
    let mut moved = spki;
    *moved.last_mut().unwrap() ^= 1;
    assert_eq!(PublicKey::from_spki_der(&moved).unwrap_err(), KeyError::Invalid);
}

#[test]
fn a_key_set_keeps_what_verifies_and_nothing_else() {
    let x = URL_SAFE_NO_PAD.encode(hex::decode(PUBLIC).unwrap());
    let okp = |more: serde_json::Value| {
        let mut key = json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let set = json!({ "keys": [
        okp(json!({ "kid": "plain" })),
        okp(json!({ "kid": "full", "use": "sig", "alg": "EdDSA", "key_ops": ["verify"], "expired_at": 1_700_000_000 })),
        okp(json!({ "kid": "still-good", "expired_at": null })),
        okp(json!({ "kid": "encrypts", "use": "enc" })),
        okp(json!({ "kid": "signs", "key_ops": ["sign"] })),
        okp(json!({ "kid": "private", "d": x })),
        okp(json!({ "kid": 5 })),
        json!({ "kid": "shared", "kty": "oct", "k": "AAAA" }),
        json!({ "kid": "unknown", "kty": "AKP" }),
        json!("nothing"),
    ] });
    let set = KeySet::from_jwks(set.to_string().as_bytes()).unwrap();
    let ids: Vec<_> = set.keys().iter().map(|key| key.id.as_deref().unwrap_or_default()).collect();
    assert_eq!(ids, ["plain", "full", "still-good"]);
    let full = &set.keys()[1];
    assert_eq!((full.algorithm.as_deref(), full.expired_at), (Some("EdDSA"), Some(1_700_000_000)));
    assert!(full.allows(SignatureAlgorithm::Ed25519));

    let bound = json!({ "keys": [okp(json!({ "alg": "ES256" }))] }).to_string();
    let bound = KeySet::from_jwks(bound.as_bytes()).unwrap();
    assert!(!bound.keys()[0].allows(SignatureAlgorithm::Ed25519), "its publisher says otherwise");

    for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":1}"#] {
        assert!(KeySet::from_jwks(text.as_bytes()).is_err(), "{text}");
    }
    let many = json!({ "keys": vec![okp(json!({})); 257] }).to_string();
    assert_eq!(KeySet::from_jwks(many.as_bytes()).unwrap_err(), KeyError::NotAKeySet);
}

#[test]
fn coordinates_without_their_leading_zeros_are_read() {
    // Pairs are made until one has such a coordinate: one in 128 has.
    let short = std::iter::repeat_with(|| EcdsaKeyPair::generate(&aws::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
        .find(|pair| pair.public_key().as_ref()[1] == 0 || pair.public_key().as_ref()[33] == 0)
        .unwrap();
    let point = short.public_key().as_ref();
    let trimmed = |digits: &[u8]| {
        URL_SAFE_NO_PAD.encode(digits.iter().copied().skip_while(|digit| *digit == 0).collect::<Vec<u8>>())
    };
    let jwk =
        json!({ "kty": "EC", "crv": "P-256", "x": trimmed(&point[1..33]), "y": trimmed(&point[33..]), "kid": "a" });
    let SetKey { id, key, .. } = set::jwk(&jwk).unwrap();
    assert_eq!((id.as_deref(), key.bytes()), (Some("a"), point));
    let too_long = URL_SAFE_NO_PAD.encode([&[0], &point[1..33]].concat());
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": too_long, "y": trimmed(&point[33..]) });
    assert_eq!(set::jwk(&jwk).unwrap_err(), KeyError::Invalid);
}

#[test]
fn every_name_means_one_algorithm_and_back() {
    assert_eq!(SignatureAlgorithm::names().count(), 32);
    for name in SignatureAlgorithm::names() {
        assert_eq!(SignatureAlgorithm::named(name).map(SignatureAlgorithm::name), Some(name));
        assert_eq!(name.contains("sha1"), SignatureAlgorithm::named(name).unwrap().uses_sha1());
    }
    assert_eq!(SignatureAlgorithm::named("none"), None);
    assert_eq!(SignatureAlgorithm::of_jose("none"), None);
    assert_eq!(SignatureAlgorithm::of_jose("HS256"), None);
}
