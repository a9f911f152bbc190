//! How is a configured secret read as key material?
//!
//! Invariant: a `Key` holds at least one byte. An empty HMAC key is a key that everybody knows.

use std::sync::Arc;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};
use thiserror::Error;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::public_key::{self, PublicKey};
use crate::secret::Secret;

/// Padding may be left off, for that is the same value; bits behind the end may not be set, for that is a second spelling.
const FORGIVING_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, FORGIVING_PADDING);
pub(crate) const BASE64URL: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, FORGIVING_PADDING);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFormat {
    pub(crate) encoding: KeyEncoding,
    /// Stripped when it is there: people paste secrets with and without their `whsec_`.
    pub(crate) strip_prefix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyEncoding {
    /// The secret's own bytes.
    Utf8,
    Base64,
    Base64Url,
    Hex,
    /// A public key, `-----BEGIN PUBLIC KEY-----`.
    Pem,
    /// A public key in whichever form it is handed out.
    Any,
    /// A shared secret from which both halves of an Ed25519 pair are made: repeated until 32 bytes are full (QQ).
    RepeatedSeed,
}

/// The bytes that the algorithm takes.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Under which a sender can name this one among several.
    pub(crate) id: Option<Arc<str>>,
    bytes: Secret,
    /// Where the bytes are, or make, a public key that has been read.
    public: Option<PublicKey>,
}

/// None of these says what the secret was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum KeyError {
    #[error("the secret is empty, and an empty key is known to everybody; set it")]
    Empty,
    #[error("the secret is not hexadecimal; check `key.encoding`, or whether the whole secret was copied")]
    NotHex,
    #[error("the secret is not base64; check `key.encoding`, or whether the whole secret was copied")]
    NotBase64,
    #[error("this form is one of public keys, and the algorithm takes a shared secret; set `key.encoding`")]
    NotShared,
}

impl Key {
    pub(crate) fn decode(secret: &Secret, format: &KeyFormat) -> Result<Self, KeyError> {
        let text = secret.expose();
        let prefix = format.strip_prefix.as_deref().unwrap_or_default().as_bytes();
        let text = text.strip_prefix(prefix).unwrap_or(text);
        let bytes = Zeroizing::new(match format.encoding {
            KeyEncoding::Utf8 => text.to_vec(),
            KeyEncoding::Base64 => BASE64.decode(text).map_err(|_| KeyError::NotBase64)?,
            KeyEncoding::Base64Url => BASE64URL.decode(text).map_err(|_| KeyError::NotBase64)?,
            KeyEncoding::Hex => hex::decode(text).map_err(|_| KeyError::NotHex)?,
            KeyEncoding::Pem | KeyEncoding::Any | KeyEncoding::RepeatedSeed => return Err(KeyError::NotShared),
        });
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(Self { id: None, bytes: Secret::new(bytes.to_vec()), public: None })
    }

    /// A public key, or the secret that makes one. `short_rsa`: RSA keys of 1024 bits will do.
    pub(crate) fn decode_public(
        secret: &Secret,
        format: &KeyFormat,
        short_rsa: bool,
    ) -> Result<Self, public_key::KeyError> {
        let prefix = format.strip_prefix.as_deref().unwrap_or_default().as_bytes();
        let text = secret.expose();
        let text = text.strip_prefix(prefix).unwrap_or(text);
        let (bytes, public) = match format.encoding {
            KeyEncoding::RepeatedSeed => {
                let seed = repeated_seed(text).ok_or(public_key::KeyError::Empty)?;
                let public = PublicKey::of_seed(&seed);
                (Secret::new(seed.to_vec()), public)
            }
            KeyEncoding::Hex | KeyEncoding::Base64 | KeyEncoding::Base64Url => {
                let format = KeyFormat { strip_prefix: None, ..format.clone() };
                let decoded = Self::decode(&Secret::new(text.to_vec()), &format).map_err(|error| match error {
                    KeyError::Empty => public_key::KeyError::Empty,
                    KeyError::NotHex | KeyError::NotBase64 | KeyError::NotShared => public_key::KeyError::Unreadable,
                })?;
                let public = PublicKey::from_bytes(decoded.bytes(), short_rsa)?;
                (Secret::new(public.bytes().to_vec()), public)
            }
            KeyEncoding::Utf8 | KeyEncoding::Pem | KeyEncoding::Any => {
                let public =
                    if short_rsa { PublicKey::from_text_with_short_rsa(text)? } else { PublicKey::from_text(text)? };
                (Secret::new(public.bytes().to_vec()), public)
            }
        };
        Ok(Self { id: None, bytes, public: Some(public) })
    }

    pub(crate) fn named(self, id: Option<&str>) -> Self {
        Self { id: id.map(Arc::from), ..self }
    }

    /// The key that is the SHA-1 of what was configured, as Braintree's is.
    pub(crate) fn hashed_with_sha1(self) -> Self {
        Self { bytes: Secret::new(Sha1::digest(self.bytes.expose()).to_vec()), ..self }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.expose()
    }

    pub(crate) fn public(&self) -> Option<&PublicKey> {
        self.public.as_ref()
    }
}

/// The secret's bytes over and over, cut to the length of a seed. `None`: there are none.
pub(crate) fn repeated_seed(secret: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    if secret.is_empty() {
        return None;
    }
    for (place, byte) in seed.iter_mut().zip(secret.iter().cycle()) {
        *place = *byte;
    }
    Some(seed)
}

/// The secret in Unicode's form NFKD; one that is no text stays as it is.
pub(crate) fn normalised(secret: &Secret) -> Secret {
    match std::str::from_utf8(secret.expose()) {
        Ok(text) => Secret::new(text.nfkd().collect::<String>().into_bytes()),
        Err(_) => secret.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str, encoding: KeyEncoding, prefix: Option<&str>) -> Result<Vec<u8>, KeyError> {
        let format = KeyFormat { encoding, strip_prefix: prefix.map(str::to_owned) };
        Key::decode(&Secret::new(text.into()), &format).map(|key| key.bytes().to_vec())
    }

    #[test]
    fn a_prefix_is_stripped_only_where_the_format_says_so() {
        assert_eq!(decode("whsec_AAEC", KeyEncoding::Base64, Some("whsec_")), Ok(vec![0, 1, 2]));
        assert_eq!(decode("AAEC", KeyEncoding::Base64, Some("whsec_")), Ok(vec![0, 1, 2]));
        assert_eq!(decode("whsec_AAEC", KeyEncoding::Utf8, None), Ok(b"whsec_AAEC".to_vec()));
    }

    #[test]
    fn every_encoding_is_read() {
        assert_eq!(decode("0aFF", KeyEncoding::Hex, None), Ok(vec![10, 255]));
        assert_eq!(decode("+/8", KeyEncoding::Base64, None), Ok(vec![0xfb, 0xff]));
        assert_eq!(decode("-_8=", KeyEncoding::Base64Url, None), Ok(vec![0xfb, 0xff]));
        assert_eq!(decode("x", KeyEncoding::Pem, None), Err(KeyError::NotShared));
    }

    #[test]
    fn a_secret_can_be_normalised_and_a_key_hashed() {
        assert_eq!(normalised(&Secret::new("ﬁ é".into())).expose(), "fi e\u{301}".as_bytes());
        assert_eq!(normalised(&Secret::new(vec![0xff])).expose(), [0xff]);
        let format = KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None };
        let key = Key::decode(&Secret::new("abc".into()), &format).unwrap().hashed_with_sha1();
        assert_eq!(hex::encode(key.bytes()), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn a_key_that_is_empty_or_undecodable_does_not_load() {
        assert_eq!(decode("", KeyEncoding::Utf8, None), Err(KeyError::Empty));
        assert_eq!(decode("whsec_", KeyEncoding::Base64, Some("whsec_")), Err(KeyError::Empty));
        assert_eq!(decode("abc", KeyEncoding::Hex, None), Err(KeyError::NotHex));
        assert_eq!(decode("a b=", KeyEncoding::Base64, None), Err(KeyError::NotBase64));
        assert_eq!(decode("QR==", KeyEncoding::Base64, None), Err(KeyError::NotBase64));
    }
}
