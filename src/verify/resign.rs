//! Signing for the services behind us, in the Standard Webhooks form, so that they check one scheme whoever sent.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use super::key::{BASE64, Key, KeyEncoding, KeyError, KeyFormat};
use crate::clock::UnixMillis;
use crate::secret::Secret;
use base64::Engine;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue};
use sha2::Sha256;
use thiserror::Error;

/// The specification asks for 24 to 64 random bytes; more is no harm.
const SHORTEST: usize = 24;

pub(crate) struct SigningKey(Hmac<Sha256>);

#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum SigningKeyError {
    #[error("the signing secret is not base64 behind an optional whsec_: {0}")]
    Encoding(#[from] KeyError),
    #[error("the signing secret has {0} bytes; Standard Webhooks asks for {SHORTEST} at least")]
    Short(usize),
}

impl SigningKey {
    pub(crate) fn standard_webhooks(secret: &Secret) -> Result<Self, SigningKeyError> {
        let format = KeyFormat { encoding: KeyEncoding::Base64, strip_prefix: Some("whsec_".to_owned()) };
        let key = Key::decode(secret, &format)?;
        let length = key.bytes().len();
        if length < SHORTEST {
            return Err(SigningKeyError::Short(length));
        }
        Ok(Self(Hmac::new_from_slice(key.bytes()).expect("HMAC takes a key of any length")))
    }

    /// `webhook-id`, `webhook-timestamp` and `webhook-signature` for these bytes. The id must be one that a header can
    /// hold; one that is not is left out of everything, and the receiver refuses.
    pub(crate) fn sign(&self, id: &str, now: UnixMillis, body: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
        let time = now.as_secs().to_string();
        let mut mac = self.0.clone();
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(time.as_bytes());
        mac.update(b".");
        mac.update(body);
        let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        [("webhook-id", id), ("webhook-timestamp", &time), ("webhook-signature", &signature)]
            .into_iter()
            .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_makes_the_published_signature() {
        // The vector of the reference libraries.
        let secret = Secret::new(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_vec());
        let key = SigningKey::standard_webhooks(&secret).expect("a key");
        let signed =
            key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", UnixMillis::from_secs(1_614_265_330), br#"{"test": 2432232314}"#);
        let signature =
            signed.iter().find(|(name, _)| name == "webhook-signature").map(|(_, value)| value.as_bytes().to_vec());
        assert_eq!(signature.as_deref(), Some(&b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="[..]));
    }

    #[test]
    fn a_key_that_can_be_guessed_is_refused() {
        assert_eq!(
            SigningKey::standard_webhooks(&Secret::new(b"whsec_c2hvcnQ=".to_vec())).err(),
            Some(SigningKeyError::Short(5))
        );
        assert!(SigningKey::standard_webhooks(&Secret::new(b"not base64!".to_vec())).is_err());
    }
}
