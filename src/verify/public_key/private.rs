//! The other half, for acting as a sender: `sign`, `send` and the tests.
//!
//! Invariant: nothing here takes part in verification. SHA-1 is verified where a sender knows no other, and never made.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature as aws;
use aws_lc_rs::signature::{EcdsaKeyPair, EcdsaSigningAlgorithm, RsaEncoding, RsaKeyPair};
use base64::Engine;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signer, SigningKey};
use zeroize::Zeroizing;

use super::super::key::BASE64;
use super::super::sign::SignError;
use super::{Curve, Form, Hash, SignatureAlgorithm};
use crate::secret::Secret;

/// `private`: a seed of Ed25519 as it is, in hex or in base64, or a PEM: PKCS#8, SEC 1 or PKCS#1.
pub(in super::super) fn sign(
    private: &Secret,
    algorithm: SignatureAlgorithm,
    message: &[u8],
) -> Result<Vec<u8>, SignError> {
    let random = SystemRandom::new();
    match algorithm {
        SignatureAlgorithm::Ed25519 => Ok(edwards(private)?.sign(message).to_bytes().to_vec()),
        SignatureAlgorithm::Ecdsa { curve, hash, form } => {
            let signing = ecdsa(curve, hash, form).ok_or(SignError::CannotMake)?;
            let der = pem(private)?;
            let pair = EcdsaKeyPair::from_pkcs8(signing, &der)
                .or_else(|_| EcdsaKeyPair::from_private_key_der(signing, &der))
                .map_err(|_| SignError::BadPrivateKey)?;
            let signature = pair.sign(&random, message).map_err(|_| SignError::CannotMake)?;
            Ok(signature.as_ref().to_vec())
        }
        SignatureAlgorithm::RsaPkcs1 { hash } => {
            let encoding: &'static dyn RsaEncoding = match hash {
                Hash::Sha1 => return Err(SignError::CannotMake),
                Hash::Sha256 => &aws::RSA_PKCS1_SHA256,
                Hash::Sha384 => &aws::RSA_PKCS1_SHA384,
                Hash::Sha512 => &aws::RSA_PKCS1_SHA512,
            };
            rsa(private, encoding, &random, message)
        }
        SignatureAlgorithm::RsaPss { hash } => {
            let encoding: &'static dyn RsaEncoding = match hash {
                Hash::Sha1 => return Err(SignError::CannotMake),
                Hash::Sha256 => &aws::RSA_PSS_SHA256,
                Hash::Sha384 => &aws::RSA_PSS_SHA384,
                Hash::Sha512 => &aws::RSA_PSS_SHA512,
            };
            rsa(private, encoding, &random, message)
        }
    }
}

fn rsa(
    private: &Secret,
    encoding: &'static dyn RsaEncoding,
    random: &SystemRandom,
    message: &[u8],
) -> Result<Vec<u8>, SignError> {
    let der = pem(private)?;
    let pair =
        RsaKeyPair::from_pkcs8(&der).or_else(|_| RsaKeyPair::from_der(&der)).map_err(|_| SignError::BadPrivateKey)?;
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(encoding, random, message, &mut signature).map_err(|_| SignError::CannotMake)?;
    Ok(signature)
}

fn ecdsa(curve: Curve, hash: Hash, form: Form) -> Option<&'static EcdsaSigningAlgorithm> {
    Some(match (curve, hash, form) {
        (Curve::P256, Hash::Sha256, Form::Der) => &aws::ECDSA_P256_SHA256_ASN1_SIGNING,
        (Curve::P256, Hash::Sha256, Form::Raw) => &aws::ECDSA_P256_SHA256_FIXED_SIGNING,
        (Curve::P384, Hash::Sha384, Form::Der) => &aws::ECDSA_P384_SHA384_ASN1_SIGNING,
        (Curve::P384, Hash::Sha384, Form::Raw) => &aws::ECDSA_P384_SHA384_FIXED_SIGNING,
        (Curve::P521, Hash::Sha256, Form::Der) => &aws::ECDSA_P521_SHA256_ASN1_SIGNING,
        (Curve::P521, Hash::Sha256, Form::Raw) => &aws::ECDSA_P521_SHA256_FIXED_SIGNING,
        (Curve::P521, Hash::Sha384, Form::Der) => &aws::ECDSA_P521_SHA384_ASN1_SIGNING,
        (Curve::P521, Hash::Sha384, Form::Raw) => &aws::ECDSA_P521_SHA384_FIXED_SIGNING,
        (Curve::P521, Hash::Sha512, Form::Der) => &aws::ECDSA_P521_SHA512_ASN1_SIGNING,
        (Curve::P521, Hash::Sha512, Form::Raw) => &aws::ECDSA_P521_SHA512_FIXED_SIGNING,
        (Curve::Secp256k1, Hash::Sha256, Form::Der) => &aws::ECDSA_P256K1_SHA256_ASN1_SIGNING,
        (Curve::Secp256k1, Hash::Sha256, Form::Raw) => &aws::ECDSA_P256K1_SHA256_FIXED_SIGNING,
        // The library makes none of the others.
        _ => return None,
    })
}

fn pem(private: &Secret) -> Result<Zeroizing<Vec<u8>>, SignError> {
    let text = std::str::from_utf8(private.expose()).map_err(|_| SignError::BadPrivateKey)?;
    // The last block: parameters of a curve may stand before the key.
    let (_, begun) = text.rsplit_once("-----BEGIN ").ok_or(SignError::BadPrivateKey)?;
    let (_, begun) = begun.split_once("-----").ok_or(SignError::BadPrivateKey)?;
    let (body, _) = begun.split_once("-----END").ok_or(SignError::BadPrivateKey)?;
    let body: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    BASE64.decode(body.as_bytes()).map(Zeroizing::new).map_err(|_| SignError::BadPrivateKey)
}

fn edwards(private: &Secret) -> Result<SigningKey, SignError> {
    let bytes = private.expose();
    if let Ok(seed) = <&[u8; 32]>::try_from(bytes) {
        return Ok(SigningKey::from_bytes(seed));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| SignError::BadPrivateKey)?.trim();
    if text.starts_with("-----BEGIN") {
        return SigningKey::from_pkcs8_pem(text).map_err(|_| SignError::BadPrivateKey);
    }
    // Standard Webhooks calls its private keys so.
    let text = text.strip_prefix("whsk_").unwrap_or(text);
    let seed = hex::decode(text).ok().or_else(|| BASE64.decode(text).ok()).map(Zeroizing::new);
    let seed = seed.as_ref().and_then(|seed| match seed.as_slice().split_first_chunk::<32>() {
        // The public half may stand behind the seed.
        Some((seed, [])) => Some(seed),
        Some((seed, public)) if public.len() == 32 => Some(seed),
        Some(_) | None => None,
    });
    seed.map(SigningKey::from_bytes).ok_or(SignError::BadPrivateKey)
}
