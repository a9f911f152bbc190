//! Amazon SNS: messages and confirmations of subscriptions.
//!
//! Any AWS account can have SNS sign messages of its own topics, with the certificate that signs everybody's: the topic
//! is what tells ours from theirs, and so is part of the proof. `UnsubscribeURL` and `MessageAttributes` are not signed.
//! Invariant: a subscription is confirmed only for a topic of the configuration, after the message was proven, and by a
//! visit to SNS itself.

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
use super::{BAD_SIGNATURE, URL_NOT_ALLOWED, base64, chain, fault, json};
use crate::refusal::Refusal;

const CERTIFICATE: UrlRule = UrlRule { host: HostRule::Sns, path: PathRule::SnsCertificate, port_may_be_said: false };
const CONFIRMATION: UrlRule = UrlRule { host: HostRule::Sns, path: PathRule::SnsConfirmation, port_may_be_said: false };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnsVersion {
    /// SHA-1; what a topic uses that was never told otherwise.
    One,
    /// SHA-256.
    Two,
}

#[derive(Clone, Debug)]
pub(crate) struct Sns {
    pub(crate) label: Arc<str>,
    /// Whole ARNs; never empty.
    pub(crate) topics: Vec<String>,
    pub(crate) versions: Vec<SnsVersion>,
    pub(crate) tolerance: Option<Duration>,
    /// Beyond the url's host, which is Amazon's: whom the certificate must lead to.
    pub(crate) roots: Option<Roots>,
    /// Are subscriptions of these topics confirmed?
    pub(crate) confirms: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    #[serde(rename = "Type")]
    kind: Option<String>,
    message_id: Option<String>,
    topic_arn: Option<String>,
    subject: Option<String>,
    message: Option<String>,
    timestamp: Option<String>,
    token: Option<String>,
    #[serde(rename = "SubscribeURL")]
    subscribe_url: Option<String>,
    signature_version: Option<String>,
    signature: Option<String>,
    #[serde(rename = "SigningCertURL")]
    signing_cert_url: Option<String>,
}

impl Envelope {
    /// The members that this type of message signs, in the order of their names; None: it lacks one of them.
    fn signed_text(&self) -> Option<String> {
        let notification = [
            ("Message", Some(self.message.as_ref()?)),
            ("MessageId", Some(self.message_id.as_ref()?)),
            ("Subject", self.subject.as_ref()),
            ("Timestamp", Some(self.timestamp.as_ref()?)),
            ("TopicArn", Some(self.topic_arn.as_ref()?)),
            ("Type", Some(self.kind.as_ref()?)),
        ];
        let confirmation = || {
            Some([
                ("Message", Some(self.message.as_ref()?)),
                ("MessageId", Some(self.message_id.as_ref()?)),
                ("SubscribeURL", Some(self.subscribe_url.as_ref()?)),
                ("Timestamp", Some(self.timestamp.as_ref()?)),
                ("Token", Some(self.token.as_ref()?)),
                ("TopicArn", Some(self.topic_arn.as_ref()?)),
                ("Type", Some(self.kind.as_ref()?)),
            ])
        };
        let members = match self.kind.as_deref()? {
            "Notification" => notification.to_vec(),
            "SubscriptionConfirmation" | "UnsubscribeConfirmation" => confirmation()?.to_vec(),
            _ => return None,
        };
        let mut text = String::new();
        for (name, value) in members {
            if let Some(value) = value {
                text.extend([name, "\n", value, "\n"]);
            }
        }
        Some(text)
    }
}

const INCOMPLETE: Fault =
    fault(Refusal::MalformedSignature, "the message lacks what its type signs, or has no known type");

impl Proof for Sns {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn tolerance(&self) -> Option<Duration> {
        self.tolerance
    }

    /// Each message has an id of its own, which is signed: no two of them are signed alike.
    fn replay_keys_each(&self) -> usize {
        1
    }

    fn coverage(&self) -> Coverage {
        Coverage::Partly
    }

    fn covers(&self, locator: &Locator, _public_url: Option<&str>) -> bool {
        const SIGNED: [&str; 6] = ["/Message", "/MessageId", "/Subject", "/Timestamp", "/TopicArn", "/Type"];
        matches!(locator, Locator::Json(pointer) if SIGNED.contains(&pointer.as_str()))
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let envelope: Envelope = json(&question.delivery.body, Refusal::MissingSignature)?;
        let Some(signature) = envelope.signature.as_deref() else {
            let note = "the message is not signed; raw delivery is not, turn it off";
            return Err(fault(Refusal::MissingSignature, note).into());
        };
        let version = match envelope.signature_version.as_deref() {
            Some("1") => Some(SnsVersion::One),
            Some("2") => Some(SnsVersion::Two),
            _ => None,
        };
        let Some(version) = version.filter(|version| self.versions.contains(version)) else {
            let note = "the signature's version is none of the configured ones";
            return Err(fault(Refusal::AlgorithmNotAllowed, note).into());
        };
        let url =
            envelope.signing_cert_url.as_deref().and_then(|url| CERTIFICATE.allows(url)).ok_or(URL_NOT_ALLOWED)?;
        let signature = base64(signature)?;
        let text = envelope.signed_text().ok_or(INCOMPLETE)?;
        let said = self.check_what_is_said(&envelope, question);

        let chain = match (chain(question, &url), &said) {
            // Not worth fetching for.
            (Err(Failure { wanted: Some(_), .. }), Err(fault)) => return Err((*fault).into()),
            (chain, _) => chain?,
        };
        chain.check_time(question.now)?;
        if let Some(roots) = &self.roots {
            chain.check(roots, question.now)?;
        }
        let hash = match version {
            SnsVersion::One => Hash::Sha1,
            SnsVersion::Two => Hash::Sha256,
        };
        if !chain.key().verify(SignatureAlgorithm::RsaPkcs1 { hash }, text.as_bytes(), &signature) {
            return Err(BAD_SIGNATURE.into());
        }
        let stated = said?;
        let visit = match envelope.kind.as_deref() {
            Some("SubscriptionConfirmation") if self.confirms => {
                let url = envelope.subscribe_url.as_deref().and_then(|url| CONFIRMATION.allows(url));
                let note = "the confirmation's url is none of SNS";
                Some(url.ok_or(fault(Refusal::UntrustedKey, note))?)
            }
            _ => None,
        };
        Ok(Findings {
            signed_at: self.tolerance.map(|_| stated),
            tolerance: self.tolerance,
            replay_keys: vec![Sha256::digest(&text).into()],
            visit,
            ..Findings::default()
        })
    }
}

impl Sns {
    fn check_what_is_said(
        &self,
        envelope: &Envelope,
        question: &Question<'_>,
    ) -> Result<crate::clock::UnixMillis, Fault> {
        if !envelope.topic_arn.as_ref().is_some_and(|topic| self.topics.contains(topic)) {
            return Err(fault(Refusal::BadClaims, "the topic is none of the configured ones"));
        }
        let unreadable = fault(Refusal::MalformedTimestamp, "the message's timestamp is not RFC 3339");
        let stated = envelope.timestamp.as_deref().and_then(|text| Unit::Rfc3339.parse(text)).ok_or(unreadable)?;
        if self.tolerance.is_some_and(|tolerance| question.now.distance(stated) > tolerance) {
            return Err(fault(Refusal::Stale, "the message's timestamp is outside the tolerance"));
        }
        Ok(stated)
    }
}
