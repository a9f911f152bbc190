//! The forms in which providers hand out public keys, told apart by their looks.
//!
//! Known: PEM of a public key or a certificate, with its line breaks, without them or with `\n` spelled out; the base64,
//! base64url or hex inside such a PEM alone; a JWK; the 32 bytes of an Ed25519 key, raw, hex, base64 or behind `whpk_`.
//! A certificate is only an envelope here: its dates and its issuer are for whoever trusts it to judge.
//!
//! Invariant: one text, one reading. A private key and a text with several keys are refused, not guessed at.

use base64::Engine;
use x509_parser::asn1_rs::Oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::key::{BASE64, BASE64URL};
use super::{Curve, KeyError, PublicKey, set};

/// The public key prefix of Standard Webhooks.
const STANDARD_WEBHOOKS: &str = "whpk_";
/// No key needs as much: 8192 bits of RSA in a certificate chain are a few KiB.
const LONGEST_TEXT: usize = 64 * 1024;

pub(super) fn text(text: &[u8]) -> Result<PublicKey, KeyError> {
    if text.len() > LONGEST_TEXT {
        return Err(KeyError::Unreadable);
    }
    // DER begins with what could be the character `0`; its object identifiers begin with a byte that no text has.
    if text.first() == Some(&0x30) && text.contains(&0x06) {
        return der(text);
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return if text.len() == ed25519_dalek::PUBLIC_KEY_LENGTH {
            PublicKey::ed25519(text)
        } else {
            Err(KeyError::Unreadable)
        };
    };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(KeyError::Empty);
    }
    if let Some(key) = trimmed.strip_prefix(STANDARD_WEBHOOKS) {
        return PublicKey::ed25519(&base64(key)?);
    }
    if trimmed.contains("-----BEGIN") {
        return pem(trimmed);
    }
    if trimmed.starts_with('{') {
        let jwk: serde_json::Value = serde_json::from_str(trimmed).map_err(|_| KeyError::Unreadable)?;
        if jwk.get("keys").is_some() {
            return Err(KeyError::Several);
        }
        return Ok(set::jwk_of_any_length(&jwk)?.key);
    }
    if let Ok(bytes) = hex::decode(trimmed) {
        return bare(&bytes);
    }
    match base64(trimmed) {
        Ok(bytes) => bare(&bytes),
        // A file may hold the 32 bytes themselves, and they may happen to be text.
        Err(_) if text.len() == ed25519_dalek::PUBLIC_KEY_LENGTH => PublicKey::ed25519(text.as_bytes()),
        Err(error) => Err(error),
    }
}

/// Wrapped base64 is base64 still.
fn base64(text: &str) -> Result<Vec<u8>, KeyError> {
    let text: String = text.chars().filter(|character| !character.is_whitespace()).collect();
    BASE64.decode(&text).or_else(|_| BASE64URL.decode(&text)).map_err(|_| KeyError::Unreadable)
}

pub(super) fn bare(bytes: &[u8]) -> Result<PublicKey, KeyError> {
    match bytes.len() {
        ed25519_dalek::PUBLIC_KEY_LENGTH => PublicKey::ed25519(bytes),
        _ => der(bytes),
    }
}

/// The first certificate of a chain is the sender's own; of public keys there may be one.
fn pem(text: &str) -> Result<PublicKey, KeyError> {
    let mut found = None;
    let mut rest = text;
    while let Some((_, begun)) = rest.split_once("-----BEGIN ") {
        let (label, begun) = begun.split_once("-----").ok_or(KeyError::Unreadable)?;
        let end = format!("-----END {label}-----");
        let (body, after) = begun.split_once(&end).ok_or(KeyError::Unreadable)?;
        rest = after;
        if label.contains("PRIVATE KEY") {
            return Err(KeyError::Private);
        }
        let body = body.replace("\\n", "").replace("\\r", "");
        match (label, &found) {
            ("CERTIFICATE" | "PUBLIC KEY" | "RSA PUBLIC KEY", None) => found = Some((label, base64(&body)?)),
            ("CERTIFICATE", Some(("CERTIFICATE", _))) => {}
            ("CERTIFICATE" | "PUBLIC KEY" | "RSA PUBLIC KEY", Some(_)) => return Err(KeyError::Several),
            // `EC PARAMETERS` and such.
            _ => {}
        }
    }
    match found {
        Some(("CERTIFICATE", der)) => certificate(&der),
        Some(("RSA PUBLIC KEY", der)) => PublicKey::rsa(&der, false),
        Some((_, der)) => spki(&der),
        None => Err(KeyError::Unreadable),
    }
}

/// What it is, only its content tells.
fn der(der: &[u8]) -> Result<PublicKey, KeyError> {
    match spki(der) {
        Err(KeyError::Unreadable) => {}
        read => return read,
    }
    match certificate(der) {
        Err(KeyError::Unreadable) => PublicKey::rsa(der, false).map_err(|_| KeyError::Unreadable),
        read => read,
    }
}

fn certificate(der: &[u8]) -> Result<PublicKey, KeyError> {
    match x509_parser::certificate::X509Certificate::from_der(der) {
        Ok(([], certificate)) => spki(certificate.public_key().raw),
        Ok(_) | Err(_) => Err(KeyError::Unreadable),
    }
}

pub(super) fn spki(der: &[u8]) -> Result<PublicKey, KeyError> {
    let Ok(([], info)) = SubjectPublicKeyInfo::from_der(der) else {
        return Err(KeyError::Unreadable);
    };
    if info.subject_public_key.unused_bits != 0 {
        return Err(KeyError::Invalid);
    }
    let key = &*info.subject_public_key.data;
    match info.algorithm.algorithm.to_id_string().as_str() {
        "1.3.101.112" => PublicKey::ed25519(key),
        "1.2.840.113549.1.1.1" => PublicKey::rsa(key, false),
        // Such a key may say which hash and salt; whoever wrote it meant PSS at least.
        "1.2.840.113549.1.1.10" => PublicKey::rsa(key, true),
        "1.2.840.10045.2.1" => {
            // Curves by name alone: spelled-out parameters are how CVE-2020-0601 was done.
            let parameters = info.algorithm.parameters.as_ref().ok_or(KeyError::Unsupported)?;
            let name = Oid::try_from(parameters).map_err(|_| KeyError::Unsupported)?;
            let curve = match name.to_id_string().as_str() {
                "1.2.840.10045.3.1.7" => Curve::P256,
                "1.3.132.0.34" => Curve::P384,
                "1.3.132.0.35" => Curve::P521,
                "1.3.132.0.10" => Curve::Secp256k1,
                _ => return Err(KeyError::Unsupported),
            };
            PublicKey::ec(curve, key)
        }
        _ => Err(KeyError::Unsupported),
    }
}
