//! The door for benchmarks of pieces: `cases`, each one piece of work, and `pairs`, the whole verifier as the gateway
//! calls it beside the bare primitive over a message of the same length.
//!
//! Behind the feature `measure`, which nothing but `benches` asks for, so that the library's public face stays
//! `main` alone. A feature and not a `cfg` flag as for fuzzing, because a flag would have every dependency built anew.

mod cases;
mod claims;
mod signed;
mod sources;

pub use cases::{Case, Run, cases};
pub use claims::Claims;

use crate::fields::Fields;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as aws, EcdsaKeyPair, KeyPair, ParsedPublicKey, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderValue, Method};
use sha2::{Digest, Sha256};

use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::secret::Secret;

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);
const TIME: &str = "1760000000";
const HMAC_SECRET: &str = "whsec_0123456789abcdef0123456789abcdef";
const BODY_LENGTH: usize = 1024;

/// Both say whether what they judged is genuine. It is.
pub struct Pair {
    pub name: &'static str,
    pub whole: Box<dyn FnMut() -> bool>,
    pub bare: Box<dyn FnMut() -> bool>,
    /// What the whole may take, in microseconds.
    pub most: f64,
    pub allowed: Allowed,
}

/// What the whole may cost beside the primitive.
pub enum Allowed {
    Times(f64),
    MoreMicroseconds(f64),
}

pub fn pairs() -> Vec<Pair> {
    let random = SystemRandom::new();
    let seed = SigningKey::from_bytes(&[7; 32]);
    let p256 = EcdsaKeyPair::generate(&aws::ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key pair");
    let pkcs8 = p256.to_pkcs8v1().expect("its encoding");
    let raw = EcdsaKeyPair::from_pkcs8(&aws::ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("the same pair");
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key pair");
    let rsa_pkcs8: Pkcs8V1Der<'_> = rsa.as_der().expect("its encoding");
    let spki: PublicKeyX509Der<'_> = p256.public_key().as_der().expect("its encoding");
    let (x, y) = p256.public_key().as_ref()[1..].split_at(32);
    let jwk = serde_json::json!({
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "key-1",
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    });

    let keys = |name: &str| match name {
        "P256" => Some(STANDARD.encode(spki.as_ref())),
        "RSA" => Some(pem("RSA PUBLIC KEY", rsa.public_key().as_ref())),
        "JWK" => Some(jwk.to_string()),
        _ => None,
    };
    let sources = sources::loaded_with(sources::SOURCES, keys).plan.sources;
    let whole = |name: &str, headers: &[(&'static str, String)], private: Option<String>| {
        let source = sources.iter().find(|source| &*source.name == name).expect("one of the sources above");
        let verifier = source.verifier.clone();
        let mut draft = delivery();
        for (name, value) in headers {
            draft.headers.insert(*name, HeaderValue::from_str(value).expect("a header's value"));
        }
        let private = private.map(|private| Secret::new(private.into()));
        // The token is made below: no private key of ECDSA signs tokens here.
        let mut kept = Some(match name {
            "jwt" => draft,
            _ => verifier.sign(draft, "id-1", NOW, private.as_ref()).expect("a signature").delivery,
        });
        Box::new(move || {
            let delivery = kept.take().expect("given back each time");
            let judged = verifier.judge(delivery, NOW, &NoLibrary);
            let is_proven = judged.is_ok();
            kept = Some(match judged {
                Ok(verified) => verified.into_delivery(),
                Err(refused) => *refused.delivery,
            });
            is_proven
        }) as Box<dyn FnMut() -> bool>
    };

    let message = [TIME.as_bytes(), b".", &body(BODY_LENGTH)].concat();
    let keyed: Hmac<Sha256> = Hmac::new_from_slice(HMAC_SECRET.as_bytes()).expect("any length");
    let mac = keyed.clone().chain_update(&message).finalize().into_bytes();
    let bare_hmac = || {
        let (message, keyed) = (message.clone(), keyed.clone());
        Box::new(move || keyed.clone().chain_update(&message).verify_slice(&mac).is_ok()) as Box<dyn FnMut() -> bool>
    };
    let signature = seed.sign(&message);
    let bare_ed25519 = {
        let (key, message) = (seed.verifying_key(), message.clone());
        move || key.verify_strict(&message, &signature).is_ok()
    };
    let bare_p256 = |message: Vec<u8>| {
        let key = ParsedPublicKey::new(&aws::ECDSA_P256_SHA256_ASN1, p256.public_key().as_ref()).expect("a key");
        let signature = p256.sign(&random, &message).expect("a signature");
        Box::new(move || key.verify_sig(&message, signature.as_ref()).is_ok()) as Box<dyn FnMut() -> bool>
    };
    let bare_rsa = {
        let key = ParsedPublicKey::new(&aws::RSA_PKCS1_2048_8192_SHA256, rsa.public_key().as_ref()).expect("a key");
        let mut signature = vec![0; 256];
        rsa.sign(&aws::RSA_PKCS1_SHA256, &random, &message, &mut signature).expect("a signature");
        let message = message.clone();
        move || key.verify_sig(&message, &signature).is_ok()
    };
    let signed = signed_part();
    let token = {
        let signature = raw.sign(&random, signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    };

    vec![
        Pair {
            name: "HMAC-SHA256",
            whole: whole("hmac", &[], None),
            bare: bare_hmac(),
            most: 1.5,
            allowed: Allowed::MoreMicroseconds(0.5),
        },
        // The same, and the event's id and type looked up in the body afterwards.
        Pair {
            name: "with JSON",
            whole: whole("stripe", &[], None),
            bare: bare_hmac(),
            most: 3.0,
            allowed: Allowed::MoreMicroseconds(2.0),
        },
        Pair {
            name: "Ed25519",
            whole: whole("ed25519", &[], Some(hex::encode(seed.to_bytes()))),
            bare: Box::new(bare_ed25519),
            most: 60.0,
            allowed: Allowed::Times(1.3),
        },
        Pair {
            name: "ECDSA P-256",
            whole: whole("p256", &[], Some(pem("PRIVATE KEY", pkcs8.as_ref()))),
            bare: bare_p256(message.clone()),
            most: 120.0,
            allowed: Allowed::Times(1.3),
        },
        Pair {
            name: "RSA-2048",
            whole: whole("rsa", &[], Some(pem("PRIVATE KEY", rsa_pkcs8.as_ref()))),
            bare: Box::new(bare_rsa),
            most: 40.0,
            allowed: Allowed::Times(1.3),
        },
        Pair {
            name: "JWT ES256",
            whole: whole("jwt", &[("plaid-verification", token)], None),
            bare: bare_p256(signed.into_bytes()),
            most: 130.0,
            allowed: Allowed::Times(1.3),
        },
    ]
}

fn body(length: usize) -> Vec<u8> {
    let mut body = br#"{"id":"evt_1","type":"invoice.paid","event_type":"A.B","webhook_type":"C","pad":""#.to_vec();
    body.resize(length - 2, b'x');
    body.extend_from_slice(b"\"}");
    body
}

fn delivery() -> Delivery {
    Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".to_owned(),
        path: "/in".to_owned(),
        query: None,
        headers: Fields::from_iter([
            (http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (http::header::USER_AGENT, HeaderValue::from_static("sender/1.0")),
        ]),
        body: Bytes::from(body(BODY_LENGTH)),
    }
}

/// Header and claims of a token that binds the body.
fn signed_part() -> String {
    let header = serde_json::json!({ "alg": "ES256", "kid": "key-1", "typ": "JWT" });
    let claims = serde_json::json!({ "iat": NOW.as_secs(), "request_body_sha256": hex::encode(Sha256::digest(body(BODY_LENGTH))) });
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}
