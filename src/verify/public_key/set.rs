//! JSON Web Keys and sets of them (RFC 7517, 7518, 8037, 8812).
//!
//! Invariant: what a set holds beside public keys for signatures (shared secrets, private halves, keys to encrypt with,
//! kinds that are unknown) is left out, so that no choice by `kid` can land on it.

use base64::Engine;
use serde_json::Value;

use super::super::key::BASE64URL;
use super::{Curve, KeyError, LONGEST_RSA, PublicKey, SHORTEST_RSA, SignatureAlgorithm};

/// Entra, the largest publisher seen, has about ten.
const MOST_KEYS: usize = 256;
/// A longer one is nobody's name for a key.
const LONGEST_ID: usize = 512;

#[derive(Clone, Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<SetKey>,
}

#[derive(Clone, Debug)]
pub(crate) struct SetKey {
    pub(crate) id: Option<String>,
    /// Where the publisher binds the key to one algorithm, in the words of JSON Web Signatures.
    pub(crate) algorithm: Option<String>,
    /// Unix seconds, from which on its publisher disowns the key (Plaid's `expired_at`).
    pub(crate) expired_at: Option<u64>,
    pub(crate) key: PublicKey,
}

impl KeySet {
    /// `{"keys": […]}`, or one JWK alone. Keys that cannot verify signatures are skipped, and an empty set may remain.
    pub(crate) fn from_jwks(text: &[u8]) -> Result<Self, KeyError> {
        let value: Value = serde_json::from_slice(text).map_err(|_| KeyError::NotAKeySet)?;
        let Some(listed) = value.get("keys") else {
            return Ok(Self { keys: vec![jwk(&value)?] });
        };
        let listed = listed.as_array().filter(|keys| keys.len() <= MOST_KEYS).ok_or(KeyError::NotAKeySet)?;
        Ok(Self { keys: listed.iter().filter_map(|key| jwk(key).ok()).collect() })
    }

    pub(crate) fn keys(&self) -> &[SetKey] {
        &self.keys
    }
}

impl FromIterator<SetKey> for KeySet {
    fn from_iter<I: IntoIterator<Item = SetKey>>(keys: I) -> Self {
        Self { keys: keys.into_iter().collect() }
    }
}

impl SetKey {
    /// Its publisher allows it: the `alg` beside the key, where there is one, is this one.
    pub(crate) fn allows(&self, algorithm: SignatureAlgorithm) -> bool {
        self.key.fits(algorithm)
            && self.algorithm.as_deref().is_none_or(|bound| SignatureAlgorithm::of_jose(bound) == Some(algorithm))
    }
}

pub(super) fn jwk(jwk: &Value) -> Result<SetKey, KeyError> {
    let SetKey { id, algorithm, expired_at, key } = jwk_of_any_length(jwk)?;
    Ok(SetKey { id, algorithm, expired_at, key: key.at_least(SHORTEST_RSA)? })
}

pub(super) fn jwk_of_any_length(jwk: &Value) -> Result<SetKey, KeyError> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if !jwk.is_object() {
        return Err(KeyError::Unreadable);
    }
    if jwk.get("d").is_some() {
        return Err(KeyError::Private);
    }
    let verifies = |operations: &Value| {
        operations.as_array().is_some_and(|listed| listed.iter().any(|operation| operation == "verify"))
    };
    if jwk.get("use").is_some_and(|purpose| purpose != "sig") || jwk.get("key_ops").is_some_and(|ops| !verifies(ops)) {
        return Err(KeyError::OtherUse);
    }
    let key = match text("kty") {
        Some("OKP") => match text("crv") {
            Some("Ed25519") => PublicKey::ed25519(&number(jwk, "x")?)?,
            _ => return Err(KeyError::Unsupported),
        },
        Some("EC") => {
            let curve = match text("crv") {
                Some("P-256") => Curve::P256,
                Some("P-384") => Curve::P384,
                Some("P-521") => Curve::P521,
                Some("secp256k1") => Curve::Secp256k1,
                _ => return Err(KeyError::Unsupported),
            };
            let mut point = vec![0x04];
            point.extend(coordinate(jwk, "x", curve)?);
            point.extend(coordinate(jwk, "y", curve)?);
            PublicKey::ec(curve, &point)?
        }
        Some("RSA") => PublicKey::rsa(&rsa_public_key(&number(jwk, "n")?, &number(jwk, "e")?)?, false)?,
        Some("oct") => return Err(KeyError::Symmetric),
        _ => return Err(KeyError::Unsupported),
    };
    let id = text("kid").filter(|id| id.len() <= LONGEST_ID).map(str::to_owned);
    if id.is_none() && jwk.get("kid").is_some_and(|id| !id.is_null()) {
        return Err(KeyError::Unreadable);
    }
    let expired_at = match jwk.get("expired_at") {
        None | Some(Value::Null) => None,
        Some(time) => Some(time.as_u64().ok_or(KeyError::Unreadable)?),
    };
    Ok(SetKey { id, algorithm: text("alg").map(str::to_owned), expired_at, key })
}

fn number(jwk: &Value, name: &str) -> Result<Vec<u8>, KeyError> {
    let text = jwk.get(name).and_then(Value::as_str).ok_or(KeyError::Unreadable)?;
    BASE64URL.decode(text).map_err(|_| KeyError::Unreadable)
}

/// RFC 7518 wants full width; TrueLayer's sets lack the leading zeros.
fn coordinate(jwk: &Value, name: &str, curve: Curve) -> Result<Vec<u8>, KeyError> {
    let digits = number(jwk, name)?;
    let missing = curve.width().checked_sub(digits.len()).ok_or(KeyError::Invalid)?;
    let mut full = vec![0; missing];
    full.extend(digits);
    Ok(full)
}

/// An RSAPublicKey (RFC 8017): the sequence of modulus and exponent.
fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Result<Vec<u8>, KeyError> {
    // With room for the sign byte and a few zeros in front.
    if modulus.len() > LONGEST_RSA as usize / 8 + 8 || exponent.len() > 16 {
        return Err(KeyError::Invalid);
    }
    let content = [integer(modulus), integer(exponent)].concat();
    Ok(tagged(0x30, &content))
}

fn integer(number: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = number.iter().copied().skip_while(|digit| *digit == 0).collect();
    let sign = match digits.first() {
        Some(first) if *first < 0x80 => None,
        Some(_) | None => Some(0),
    };
    tagged(0x02, &sign.into_iter().chain(digits).collect::<Vec<u8>>())
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|digit| *digit == 0).collect();
    let mut der = vec![tag];
    match length.as_slice() {
        [] => der.push(0),
        [short @ 0..=0x7f] => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).unwrap_or(0x7f));
            der.extend(long);
        }
    }
    der.extend(content);
    der
}
