//! How is a configured secret read as key material?
//!
//! Invariant: a `Key` holds at least one byte. An empty HMAC key is a key that everybody knows.

use std::sync::Arc;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey;
use thiserror::Error;
use zeroize::Zeroizing;

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
}

/// The bytes that the algorithm takes.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Under which a sender can name this one among several.
    pub(crate) id: Option<Arc<str>>,
    bytes: Secret,
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
    #[error("the key is not a PEM public key of Ed25519 (`-----BEGIN PUBLIC KEY-----`)")]
    NotPem,
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
            KeyEncoding::Pem => std::str::from_utf8(text)
                .ok()
                .and_then(|pem| VerifyingKey::from_public_key_pem(pem.trim()).ok())
                .ok_or(KeyError::NotPem)?
                .to_bytes()
                .to_vec(),
        });
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(Self { id: None, bytes: Secret::new(bytes.to_vec()) })
    }

    pub(crate) fn named(self, id: Option<&str>) -> Self {
        Self { id: id.map(Arc::from), ..self }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.expose()
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
        // The public key of RFC 8410, section 10.1.
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = hex::decode("19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1").unwrap();
        assert_eq!(decode(pem, KeyEncoding::Pem, None), Ok(key));
    }

    #[test]
    fn a_key_that_is_empty_or_undecodable_does_not_load() {
        assert_eq!(decode("", KeyEncoding::Utf8, None), Err(KeyError::Empty));
        assert_eq!(decode("whsec_", KeyEncoding::Base64, Some("whsec_")), Err(KeyError::Empty));
        assert_eq!(decode("abc", KeyEncoding::Hex, None), Err(KeyError::NotHex));
        assert_eq!(decode("a b=", KeyEncoding::Base64, None), Err(KeyError::NotBase64));
        assert_eq!(decode("QR==", KeyEncoding::Base64, None), Err(KeyError::NotBase64));
        assert_eq!(decode("nonsense", KeyEncoding::Pem, None), Err(KeyError::NotPem));
    }
}
