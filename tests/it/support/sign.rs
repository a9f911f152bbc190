//! What providers write into their headers, made here from their documentation and not by the code under test.

use base64::Engine;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

pub(crate) fn github(secret: &str, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(hmac_sha256(secret.as_bytes(), &[body])))
}

pub(crate) fn stripe(secret: &str, time: u64, body: &[u8]) -> String {
    let time = time.to_string();
    format!("t={time},v1={}", hex::encode(hmac_sha256(secret.as_bytes(), &[time.as_bytes(), b".", body])))
}

pub(crate) fn slack(secret: &str, time: u64, body: &[u8]) -> String {
    let time = time.to_string();
    format!("v0={}", hex::encode(hmac_sha256(secret.as_bytes(), &[b"v0:", time.as_bytes(), b":", body])))
}

/// `key`: the bytes behind whsec_, decoded.
pub(crate) fn standard_webhooks(key: &[u8], id: &str, time: u64, body: &[u8]) -> String {
    let time = time.to_string();
    let mac = hmac_sha256(key, &[id.as_bytes(), b".", time.as_bytes(), b".", body]);
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac))
}
