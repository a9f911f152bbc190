//! Signatures whose payload is not in the token: the body itself, or TrueLayer's composition of method, path, headers and
//! body.
//!
//! Invariant: the token's middle part is empty. What a sender may choose (which headers it signs, where its keys are) is
//! held against the configuration before anything is computed.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderName;

use super::super::presented::{HeaderText, header_text};
use super::super::proof::{Failure, Question};
use super::super::{Fault, Unit};
use super::algorithm::JwsAlgorithm;
use super::claims::Life;
use super::compact::Compact;
use super::keys::Presented;
use super::{Jwt, MISSING, Proven, fault, malformed, stands_for};
use crate::delivery::Delivery;
use crate::refusal::Refusal;

const MAX_SIGNED_HEADERS: usize = 32;
pub(super) const VERSION: &str = "2";

/// <https://github.com/TrueLayer/truelayer-signing>
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrueLayer {
    /// The sender signs these, whatever else it signs.
    pub(crate) required_headers: Vec<HeaderName>,
    /// Where the sender's key sets may be. A token names one of these.
    pub(crate) key_urls: Vec<Arc<str>>,
    /// Among the signed headers: the time, its unit, and how far it may be off.
    pub(crate) timestamp: Option<(HeaderName, Unit, Duration)>,
}

impl Jwt {
    pub(super) fn judge_body(
        &self,
        algorithm: JwsAlgorithm,
        compact: &Compact<'_>,
        question: &Question<'_>,
    ) -> Result<Proven, Failure> {
        let message = signing_input(compact, &[&question.delivery.body])?;
        let presented = presented(algorithm, compact, &message, question);
        let secret = self.verify(&presented, self.set_url.as_ref(), question)?;
        Ok(Proven { secret, life: None, replay_key: Some(stands_for(&message)), claims: None })
    }

    pub(super) fn judge_truelayer(
        &self,
        form: &TrueLayer,
        algorithm: JwsAlgorithm,
        compact: &Compact<'_>,
        question: &Question<'_>,
    ) -> Result<Proven, Failure> {
        let delivery = question.delivery;
        if compact.text("tl_version") != Some(VERSION) {
            return Err(fault(Refusal::AlgorithmNotAllowed, "the signature is not of the one version known").into());
        }
        let stated = compact.text("jku");
        let Some(url) = form.key_urls.iter().find(|url| stated == Some(url)) else {
            return Err(fault(Refusal::UntrustedKey, "the key set is at none of the configured addresses").into());
        };
        let headers = form.headers(compact.text("tl_headers").unwrap_or_default(), delivery)?;
        // Who lists keys wants no others.
        let url = Some(url).filter(|_| self.keys.is_empty());
        // Senders and receivers disagree on the slash at the end of a path.
        let path = delivery.path.as_str();
        let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
        let mut failure = None;
        for path in [path, &other] {
            let line = format!("{} {path}\n", delivery.method.as_str().to_ascii_uppercase());
            let message = signing_input(compact, &[line.as_bytes(), headers.as_bytes(), &delivery.body])?;
            match self.verify(&presented(algorithm, compact, &message, question), url, question) {
                Ok(secret) => {
                    let life = form.life(question)?;
                    return Ok(Proven { secret, life, replay_key: Some(stands_for(&message)), claims: None });
                }
                Err(failed) => failure = failure.or(Some(failed)),
            }
        }
        Err(failure.unwrap_or_else(|| MISSING.into()))
    }
}

impl TrueLayer {
    /// The lines of the signed headers, named as the token spells them.
    pub(super) fn headers(&self, listed: &str, delivery: &Delivery) -> Result<String, Fault> {
        let spelled: Vec<&str> = listed.split(',').filter(|name| !name.is_empty()).collect();
        if spelled.len() > MAX_SIGNED_HEADERS {
            return Err(malformed("the token lists too many headers"));
        }
        let not_a_name = malformed("the token lists what is not the name of a header");
        let names: Vec<HeaderName> =
            spelled.iter().map(|name| name.parse()).collect::<Result<_, _>>().map_err(|_| not_a_name)?;
        if self.required_headers.iter().any(|required| !names.contains(required)) {
            return Err(fault(Refusal::NotCovered, "the signature does not stand for a header that it has to"));
        }
        let mut lines = String::new();
        for (spelled, name) in spelled.iter().zip(&names) {
            match header_text(delivery, name) {
                HeaderText::One(text) => {
                    for piece in [spelled, ": ", text.trim(), "\n"] {
                        lines.push_str(piece);
                    }
                }
                HeaderText::None => return Err(MISSING),
                HeaderText::Several => return Err(malformed("a header that the token lists stands there twice")),
                HeaderText::Unreadable => return Err(malformed("a header that the token lists is not visible ASCII")),
            }
        }
        Ok(lines)
    }

    /// Only where the signature was right is the time worth anything.
    fn life(&self, question: &Question<'_>) -> Result<Option<Life>, Fault> {
        let Some((name, unit, tolerance)) = &self.timestamp else { return Ok(None) };
        let stated = match header_text(question.delivery, name) {
            HeaderText::One(text) => unit.parse(text.trim()),
            HeaderText::None | HeaderText::Several | HeaderText::Unreadable => None,
        };
        let stated =
            stated.ok_or(fault(Refusal::MalformedTimestamp, "the signed time is not of the configured unit"))?;
        if question.now.distance(stated) > *tolerance {
            return Err(fault(Refusal::Stale, "the signed time is outside the tolerance"));
        }
        Ok(Some(Life { stated, until: stated.after(*tolerance) }))
    }
}

fn presented<'a>(
    algorithm: JwsAlgorithm,
    compact: &'a Compact<'_>,
    message: &'a [u8],
    question: &Question<'_>,
) -> Presented<'a> {
    let (key_id, signature) = (compact.text("kid"), compact.signature.as_slice());
    Presented { algorithm, key_id, message, signature, now: question.now }
}

/// The token's header, a dot, and the payload in base64url.
fn signing_input(compact: &Compact<'_>, payload: &[&[u8]]) -> Result<Vec<u8>, Fault> {
    if !compact.payload_text.is_empty() {
        return Err(malformed("the token brings a payload of its own"));
    }
    Ok(input(compact.header_text, payload))
}

pub(super) fn input(header_text: &str, payload: &[&[u8]]) -> Vec<u8> {
    let payload = match payload {
        [one] => URL_SAFE_NO_PAD.encode(one),
        several => URL_SAFE_NO_PAD.encode(several.concat()),
    };
    [header_text.as_bytes(), b".", payload.as_bytes()].concat()
}
