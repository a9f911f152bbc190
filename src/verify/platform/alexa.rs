//! Alexa skills: a certificate chain under a url of the request, in the name of Alexa, over the whole body.
//!
//! Alexa signs the requests of everybody's skills: whose skill it is, only the application's id in the body tells.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::certificate::Roots;
use super::super::freshness::Unit;
use super::super::presented::Locator;
use super::super::proof::{Coverage, Failure, Proof, Question};
use super::super::public_key::{Hash, SignatureAlgorithm};
use super::super::url_rule::{HostRule, PathRule, UrlRule};
use super::super::{Fault, Findings};
use super::{BAD_SIGNATURE, URL_NOT_ALLOWED, base64, chain, fault, header, json};
use crate::clock::UnixMillis;
use crate::refusal::Refusal;

const NAME: &str = "echo-api.amazon.com";

#[derive(Clone, Debug)]
pub(crate) struct Alexa {
    label: Arc<str>,
    /// Of our skills; empty: of any.
    applications: Vec<String>,
    roots: Roots,
    tolerance: Duration,
    url: UrlRule,
}

#[derive(Deserialize)]
struct Body {
    context: Option<Context>,
    session: Option<Session>,
    request: Option<Request>,
}

#[derive(Deserialize)]
struct Context {
    #[serde(rename = "System")]
    system: Option<Session>,
}

/// The system's part of the context has the same form.
#[derive(Deserialize)]
struct Session {
    application: Option<Application>,
}

#[derive(Deserialize)]
struct Application {
    #[serde(rename = "applicationId")]
    id: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    timestamp: Option<String>,
}

impl Body {
    fn application(&self) -> Option<&str> {
        let system = self.context.as_ref().and_then(|context| context.system.as_ref());
        system.or(self.session.as_ref())?.application.as_ref()?.id.as_deref()
    }
}

impl Alexa {
    pub(crate) fn new(label: Arc<str>, applications: Vec<String>, roots: Roots, tolerance: Duration) -> Self {
        let host = HostRule::OneOf(vec!["s3.amazonaws.com".to_owned()]);
        let url = UrlRule { host, path: PathRule::Below("/echo.api/"), port_may_be_said: true };
        Self { label, applications, roots, tolerance, url }
    }

    fn check_what_is_said(&self, question: &Question<'_>) -> Result<UnixMillis, Fault> {
        let body: Body = json(&question.delivery.body, Refusal::MalformedSignature)?;
        let ours = |id: &str| self.applications.iter().any(|known| known == id);
        if !self.applications.is_empty() && !body.application().is_some_and(ours) {
            return Err(fault(Refusal::BadClaims, "the request is for another skill"));
        }
        let missing = fault(Refusal::MissingTimestamp, "the request states no time");
        let time = body.request.and_then(|request| request.timestamp).ok_or(missing)?;
        let unreadable = fault(Refusal::MalformedTimestamp, "the request's time is not RFC 3339");
        let stated = Unit::Rfc3339.parse(&time).ok_or(unreadable)?;
        if question.now.distance(stated) > self.tolerance {
            return Err(fault(Refusal::Stale, "the request's time is outside the tolerance"));
        }
        Ok(stated)
    }
}

impl Proof for Alexa {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn tolerance(&self) -> Option<Duration> {
        Some(self.tolerance)
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
        let signature = header(delivery, "signature-256")?;
        let url = header(delivery, "signaturecertchainurl")?;
        let url = self.url.allows(url).ok_or(URL_NOT_ALLOWED)?;
        let signature = base64(signature)?;
        let said = self.check_what_is_said(question);

        let chain = match (chain(question, &url), &said) {
            (Err(Failure { wanted: Some(_), .. }), Err(fault)) => return Err((*fault).into()),
            (chain, _) => chain?,
        };
        chain.check(&self.roots, question.now)?;
        if !chain.has_dns_name(NAME) {
            return Err(fault(Refusal::UntrustedKey, "the certificate is not in Alexa's name").into());
        }
        let algorithm = SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha256 };
        if !chain.key().verify(algorithm, &delivery.body, &signature) {
            return Err(BAD_SIGNATURE.into());
        }
        Ok(Findings {
            signed_at: Some(said?),
            tolerance: Some(self.tolerance),
            replay_keys: vec![Sha256::digest(&delivery.body).into()],
            ..Findings::default()
        })
    }
}
