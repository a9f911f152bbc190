//! WebSub's authenticated distribution (W3C WebSub, section 7.1): `X-Hub-Signature: sha256=…` over the whole body.
//!
//! Invariant: the hub names its hash, and only the configured ones are taken; each secret has a key for every one of
//! them, so that a name chooses among keys that the configuration made.

use http::HeaderName;
use sha2::{Digest, Sha256};

use super::keyring::{self, MessageAlgorithm};
use super::{Accepted, Flaw, HttpSignature, judge_both};
use crate::verify::presented::{HeaderText, header_text};
use crate::verify::proof::Question;
use crate::verify::sign::{Draft, SignError, Signing};

/// Twice the longest MAC, with its name.
const MAX_TEXT: usize = 256;

impl HttpSignature {
    pub(super) fn judge_websub(&self, header: &HeaderName, question: &Question<'_>) -> Result<Accepted, Flaw> {
        let text = match header_text(question.delivery, header) {
            HeaderText::One(text) if !text.trim().is_empty() => text.trim(),
            HeaderText::One(_) | HeaderText::None => return Err(Flaw::Missing("no signature was presented")),
            HeaderText::Several => return Err(Flaw::Malformed("several signature headers")),
            HeaderText::Unreadable => return Err(Flaw::Malformed("the signature header is not visible ASCII")),
        };
        if text.len() > MAX_TEXT {
            return Err(Flaw::Malformed("the signature's text is too long"));
        }
        let (name, digits) = text.split_once('=').unwrap_or((text, ""));
        let keys = keyring::meant(&self.keys, None, |algorithm| algorithm.is_called(name, &MessageAlgorithm::WEBSUB))?;
        let signature = hex::decode(digits).map_err(|_| Flaw::Malformed("the signature is not hexadecimal"))?;
        let body = &question.delivery.body;
        // A hub signs the body and nothing else, so that nothing else can be wrong.
        let (key, ()) = judge_both(keyring::verified_by(&keys, body, &signature), || Ok(()))?;
        let replay_key = Sha256::new().chain_update("websub").chain_update([0]).chain_update(body).finalize().into();
        Ok(Accepted { key, signed_at: None, replay_keys: vec![replay_key] })
    }

    pub(super) fn sign_websub(
        &self,
        header: &HeaderName,
        draft: &mut Draft,
        signing: &Signing<'_>,
    ) -> Result<(), SignError> {
        let key = self.keys.first().ok_or(SignError::Incomplete)?;
        let name = key.algorithm.name(&MessageAlgorithm::WEBSUB).ok_or(SignError::Incomplete)?;
        let signature = hex::encode(key.sign(&draft.delivery.body, signing.private)?);
        draft.add(header, &format!("{name}={signature}"))
    }
}
