//! Proofs that one platform has and no other: its certificates, its canonical text, its rules.
//!
//! Invariant: what costs nothing is judged first, so that a stranger cannot make us fetch; where a document is here, the
//! signature is judged before what only a signed text can say. A url from a request is looked up only where the
//! platform's own rule allows it.

mod adobe;
mod alexa;
mod apple;
mod paypal;
mod sns;

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Fault;
use super::certificate::Chain;
use super::presented::{HeaderText, header_text};
use super::proof::{Failure, Question};
use crate::delivery::Delivery;
use crate::fetched::{Lookup, NamedBy, Wanted};
use crate::refusal::Refusal;
use http::HeaderName;

pub(crate) use adobe::Adobe;
pub(crate) use alexa::Alexa;
pub(crate) use apple::{Apple, Environment};
pub(crate) use paypal::PayPal;
pub(crate) use sns::{Sns, SnsVersion};

/// A certificate chain or a key in PEM takes a few KiB.
const MOST_BYTES: usize = 64 << 10;

const fn fault(refusal: Refusal, note: &'static str) -> Fault {
    Fault { refusal, note }
}

const BAD_SIGNATURE: Fault = fault(Refusal::BadSignature, "the platform's key did not make this signature");
const URL_NOT_ALLOWED: Fault = fault(Refusal::UntrustedKey, "the key's url is none that the platform uses");
const NOT_A_KEY: Fault = fault(Refusal::UntrustedKey, "what stands under the key's url is not a key or certificate");
const UNAVAILABLE: Fault = fault(Refusal::KeyUnavailable, "the key could not be fetched");

/// What stands under a url that was allowed, read once.
fn look_up<T: Send + Sync + 'static>(
    question: &Question<'_>,
    url: &Arc<str>,
    read: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Arc<T>, Failure> {
    match question.library.look_up(url) {
        Lookup::Here(document) if document.bytes.len() > MOST_BYTES => Err(NOT_A_KEY.into()),
        Lookup::Here(document) => document.read_as(read).ok_or(NOT_A_KEY.into()),
        Lookup::Missing => {
            Err(Failure::wanting(Wanted { url: url.clone(), newer_than: None, named_by: NamedBy::Request }))
        }
        Lookup::Unavailable => Err(UNAVAILABLE.into()),
    }
}

fn chain(question: &Question<'_>, url: &Arc<str>) -> Result<Arc<Chain>, Failure> {
    look_up(question, url, Chain::from_pem)
}

/// One that is there once and says something.
fn header<'a>(delivery: &'a Delivery, name: &'static str) -> Result<&'a str, Fault> {
    match header_text(delivery, &HeaderName::from_static(name)) {
        HeaderText::None | HeaderText::One("") => {
            Err(fault(Refusal::MissingSignature, "a header of the platform's proof is missing"))
        }
        HeaderText::One(text) => Ok(text),
        HeaderText::Several | HeaderText::Unreadable => {
            Err(fault(Refusal::MalformedSignature, "a header of the platform's proof is doubled or not visible ASCII"))
        }
    }
}

fn base64(text: &str) -> Result<Vec<u8>, Fault> {
    use base64::Engine;
    // Longer than any signature of a key that we take.
    let decoded = (text.len() <= 2048).then(|| super::key::BASE64.decode(text).ok()).flatten();
    decoded.filter(|bytes| !bytes.is_empty()).ok_or(fault(Refusal::MalformedSignature, "the signature is not base64"))
}

/// Named members that stand there twice are an error of `serde`: parsers differ in which of the two they take.
/// `otherwise`: what a body is refused for that is no JSON at all.
fn json<T: DeserializeOwned>(body: &[u8], otherwise: Refusal) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            fault(Refusal::MalformedSignature, "the body's members are doubled, missing or of the wrong kind")
        }
        _ => fault(otherwise, "the body is not the platform's JSON"),
    })
}
