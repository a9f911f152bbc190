//! Apple's App Store Server Notifications, version 2: a JSON Web Signature that brings its own certificates.
//!
//! The certificates lead to a root that this build pins, or the configuration. They must be Apple's own for this use,
//! which marks of Apple say: its root vouches for every developer's certificates too. They are judged at the time of
//! signing, as Apple asks: a notification that is delivered late outlives its certificate.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use super::super::certificate::{Chain, Roots, RootsError};
use super::super::key::{BASE64, BASE64URL};
use super::super::presented::Locator;
use super::super::proof::{Coverage, Failure, Proof, Question};
use super::super::public_key::{Curve, Form, Hash, SignatureAlgorithm};
use super::super::{Fault, Findings};
use super::{BAD_SIGNATURE, fault, json};
use crate::clock::UnixMillis;
use crate::refusal::Refusal;

/// Apple Root CA - G3, whose SHA-256 Apple publishes at <https://www.apple.com/certificateauthority/>.
const ROOT: &[u8] = include_bytes!("apple_root_ca_g3.pem");
/// "Mac App Store and iTunes Store Receipt Signing", and the authority above it.
const LEAF_MARK: &str = "1.2.840.113635.100.6.11.1";
const INTERMEDIATE_MARK: &str = "1.2.840.113635.100.6.2.1";
/// Leaf, intermediate, root: Apple sends all three.
const CHAIN_LENGTH: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    Production,
    Sandbox,
}

#[derive(Clone, Debug)]
pub(crate) struct Apple {
    pub(crate) label: Arc<str>,
    pub(crate) bundle_id: String,
    pub(crate) environment: Environment,
    /// Of the app in the store; said, and compared, in production alone.
    pub(crate) app_apple_id: Option<u64>,
    pub(crate) roots: Roots,
    pub(crate) tolerance: Option<Duration>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "signedPayload")]
    signed_payload: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: Option<String>,
    x5c: Option<Vec<String>>,
    /// Nothing that must be understood is.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    signed_date: Option<u64>,
    data: Option<Data>,
    summary: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    bundle_id: Option<String>,
    environment: Option<String>,
    app_apple_id: Option<u64>,
}

impl Environment {
    fn name(self) -> &'static str {
        match self {
            Self::Production => "Production",
            Self::Sandbox => "Sandbox",
        }
    }
}

const MALFORMED: Fault =
    fault(Refusal::MalformedSignature, "signedPayload is not a JSON Web Signature of Apple's form");
const UNTRUSTED: Fault = fault(Refusal::UntrustedKey, "the certificates are not Apple's for this use");

impl Apple {
    pub(crate) fn root() -> Result<Roots, RootsError> {
        Roots::read(ROOT)
    }

    fn check_claims(&self, payload: &Payload) -> Result<(), Fault> {
        let wrong = |note| Err(fault(Refusal::BadClaims, note));
        let Some(data) = payload.data.as_ref().or(payload.summary.as_ref()) else {
            return wrong("the notification is about no app");
        };
        if data.bundle_id.as_deref() != Some(&self.bundle_id) {
            return wrong("the notification is about another app");
        }
        if data.environment.as_deref() != Some(self.environment.name()) {
            return wrong("the notification is of another environment");
        }
        if self.environment == Environment::Production && data.app_apple_id != self.app_apple_id {
            return wrong("the notification is about another app of the store");
        }
        Ok(())
    }
}

impl Proof for Apple {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn tolerance(&self) -> Option<Duration> {
        self.tolerance
    }

    /// Each notification has an id of its own, which is signed.
    fn replay_keys_each(&self) -> usize {
        1
    }

    /// Anything could stand beside `signedPayload`.
    fn coverage(&self) -> Coverage {
        Coverage::Partly
    }

    fn covers(&self, locator: &Locator, _public_url: Option<&str>) -> bool {
        matches!(locator, Locator::Json(pointer) if pointer == "/signedPayload")
            || matches!(locator, Locator::Claim { .. })
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let body: Body = json(&question.delivery.body, Refusal::MalformedSignature)?;
        let missing = fault(Refusal::MissingSignature, "the body has no signedPayload");
        let token = body.signed_payload.filter(|token| !token.is_empty()).ok_or(missing)?;
        let (signed, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let (header, payload) = signed.split_once('.').ok_or(MALFORMED)?;
        let decoded = |text: &str| BASE64URL.decode(text).map_err(|_| MALFORMED);
        let (header, payload, signature) = (decoded(header)?, decoded(payload)?, decoded(signature)?);
        let header: Header = serde_json::from_slice(&header).map_err(|_| MALFORMED)?;
        if header.alg.as_deref() != Some("ES256") || header.crit.is_some() {
            return Err(fault(Refusal::AlgorithmNotAllowed, "Apple signs with ES256").into());
        }
        let without = fault(Refusal::MissingSignature, "the signature brings no certificates");
        let certificates = header.x5c.filter(|certificates| !certificates.is_empty()).ok_or(without)?;
        if certificates.len() != CHAIN_LENGTH {
            return Err(UNTRUSTED.into());
        }
        let claims = serde_json::from_slice(&payload).map_err(|_| MALFORMED)?;
        let payload: Payload = serde_json::from_slice(&payload).map_err(|_| MALFORMED)?;
        let signed_at = UnixMillis(payload.signed_date.ok_or(MALFORMED)?);

        let der = certificates.iter().map(|text| Some(CertificateDer::from(BASE64.decode(text).ok()?)));
        let chain = der.collect::<Option<Vec<_>>>().and_then(Chain::from_der).ok_or(UNTRUSTED)?;
        chain.check_through_second(&self.roots, signed_at)?;
        if !chain.has_extension(0, LEAF_MARK) || !chain.has_extension(1, INTERMEDIATE_MARK) {
            return Err(UNTRUSTED.into());
        }
        let algorithm = SignatureAlgorithm::Ecdsa { curve: Curve::P256, hash: Hash::Sha256, form: Form::Raw };
        if !chain.key().verify(algorithm, signed.as_bytes(), &signature) {
            return Err(BAD_SIGNATURE.into());
        }
        self.check_claims(&payload)?;
        if self.tolerance.is_some_and(|tolerance| question.now.distance(signed_at) > tolerance) {
            return Err(fault(Refusal::Stale, "the time of signing is outside the tolerance").into());
        }
        Ok(Findings {
            signed_at: self.tolerance.map(|_| signed_at),
            tolerance: self.tolerance,
            replay_keys: vec![Sha256::digest(signed).into()],
            claims: Some(claims),
            ..Findings::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject;

    #[test]
    fn the_pinned_root_is_the_one_that_apple_publishes() {
        let der = CertificateDer::from_pem_slice(ROOT).unwrap();
        let published = "63343abfb89a6a03ebb57e9b3f5fa7be7c4f5c756f3017b3a8c488c3653e9179";
        assert_eq!(hex::encode(Sha256::digest(&der)), published);
        assert!(Apple::root().is_ok());
    }
}
