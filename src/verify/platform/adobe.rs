//! Adobe I/O Events: two signatures over the body, each with the path of its key on Adobe's host; one must be right.
//!
//! Adobe signs everybody's events with the same keys: the client's id in the body tells ours.

use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::Findings;
use super::super::presented::Locator;
use super::super::proof::{Coverage, Failure, Proof, Question};
use super::super::public_key::{Hash, PublicKey, SignatureAlgorithm};
use super::super::url_rule::{HostRule, PathRule, UrlRule};
use super::{BAD_SIGNATURE, URL_NOT_ALLOWED, base64, fault, header, json, look_up};
use crate::refusal::Refusal;

const HOST: &str = "static.adobeioevents.com";
const PAIRS: [(&str, &str); 2] = [
    ("x-adobe-digital-signature-1", "x-adobe-public-key1-path"),
    ("x-adobe-digital-signature-2", "x-adobe-public-key2-path"),
];

#[derive(Clone, Debug)]
pub(crate) struct Adobe {
    label: Arc<str>,
    client_id: String,
    url: UrlRule,
}

#[derive(Deserialize)]
struct Body {
    recipient_client_id: Option<String>,
}

impl Adobe {
    pub(crate) fn new(label: Arc<str>, client_id: String) -> Self {
        let host = HostRule::OneOf(vec![HOST.to_owned()]);
        Self { label, client_id, url: UrlRule { host, path: PathRule::Key, port_may_be_said: false } }
    }

    fn judge_pair(&self, question: &Question<'_>, signature: &str, path: &str) -> Result<(), Failure> {
        // A path that does not begin with a slash would become part of the host.
        let url = path.starts_with('/').then(|| self.url.allows(&format!("https://{HOST}{path}"))).flatten();
        let url = url.ok_or(URL_NOT_ALLOWED)?;
        let signature = base64(signature)?;
        let key = look_up(question, &url, |text| PublicKey::from_text(text).ok())?;
        let algorithm = SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha256 };
        if key.verify(algorithm, &question.delivery.body, &signature) { Ok(()) } else { Err(BAD_SIGNATURE.into()) }
    }
}

impl Proof for Adobe {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn replay_keys_each(&self) -> usize {
        1
    }

    fn coverage(&self) -> Coverage {
        Coverage::Whole
    }

    fn covers(&self, locator: &Locator, _public_url: Option<&str>) -> bool {
        matches!(locator, Locator::Json(_))
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let delivery = question.delivery;
        let body: Result<Body, _> = json(&delivery.body, Refusal::MalformedSignature);
        let ours = body.is_ok_and(|body| body.recipient_client_id.as_deref() == Some(&self.client_id));
        let not_ours = fault(Refusal::BadClaims, "the event is for another client");

        // Whichever is judged, the better answer of the two stands: proven, then worth fetching for, then wrong.
        let mut best: Option<Failure> = None;
        let mut missing = None;
        for (signature, path) in PAIRS {
            let judged = match (header(delivery, signature), header(delivery, path)) {
                (Ok(signature), Ok(path)) => self.judge_pair(question, signature, path),
                (Err(fault), _) | (_, Err(fault)) => {
                    missing = missing.or(Some(fault));
                    continue;
                }
            };
            match judged {
                Ok(()) if ours => {
                    let replay_keys = vec![Sha256::digest(&delivery.body).into()];
                    return Ok(Findings { replay_keys, ..Findings::default() });
                }
                Ok(()) => return Err(not_ours.into()),
                // A path that is a trick is told whatever the other signature says.
                Err(failure) if failure.fault == URL_NOT_ALLOWED => return Err(failure),
                Err(failure) if failure.fault.refusal == Refusal::KeyUnavailable => {
                    let is_better = best.as_ref().is_none_or(|best| best.wanted.is_none());
                    best = if is_better { Some(failure) } else { best };
                }
                Err(failure) => best = best.or(Some(failure)),
            }
        }
        match (best, missing) {
            (Some(Failure { wanted: Some(_), .. }), _) if !ours => Err(not_ours.into()),
            (Some(failure), _) => Err(failure),
            (None, Some(missing)) => Err(missing.into()),
            (None, None) => Err(BAD_SIGNATURE.into()),
        }
    }
}
