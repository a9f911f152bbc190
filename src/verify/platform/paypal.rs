//! PayPal: a certificate under a url of the request, over the transmission's id and time, the webhook's id and a CRC32.
//!
//! CRC32 is no hash: whoever holds one delivery can make another body with the same checksum. It still is the same
//! transmission, and the memory of replays knows it; `check` says that the body is proven in part.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::Findings;
use super::super::certificate::Roots;
use super::super::freshness::Unit;
use super::super::presented::Locator;
use super::super::proof::{Coverage, Failure, Proof, Question};
use super::super::public_key::{Hash, SignatureAlgorithm};
use super::super::url_rule::{HostRule, PathRule, UrlRule};
use super::{BAD_SIGNATURE, URL_NOT_ALLOWED, base64, chain, fault, header};
use crate::refusal::Refusal;

/// Production's and the sandbox's.
const HOSTS: [&str; 2] = ["api.paypal.com", "api.sandbox.paypal.com"];
/// With its dot: `evilpaypal.com` ends otherwise.
const NAME_ENDS_IN: &str = ".paypal.com";

#[derive(Clone, Debug)]
pub(crate) struct PayPal {
    label: Arc<str>,
    webhook_id: String,
    roots: Roots,
    tolerance: Option<Duration>,
    url: UrlRule,
}

impl PayPal {
    /// `webhook_id`: signed and not sent; what tells this webhook from all others of PayPal.
    pub(crate) fn new(label: Arc<str>, webhook_id: String, roots: Roots, tolerance: Option<Duration>) -> Self {
        let host = HostRule::OneOf(HOSTS.map(str::to_owned).to_vec());
        let url = UrlRule { host, path: PathRule::Plain, port_may_be_said: true };
        Self { label, webhook_id, roots, tolerance, url }
    }
}

impl Proof for PayPal {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn tolerance(&self) -> Option<Duration> {
        self.tolerance
    }

    /// The transmission's id is signed.
    fn replay_keys_each(&self) -> usize {
        1
    }

    fn coverage(&self) -> Coverage {
        Coverage::Partly
    }

    fn covers(&self, locator: &Locator, _public_url: Option<&str>) -> bool {
        const SIGNED: [&str; 2] = ["paypal-transmission-id", "paypal-transmission-time"];
        matches!(locator, Locator::Header(name) if SIGNED.contains(&name.as_str()))
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let delivery = question.delivery;
        let signature = header(delivery, "paypal-transmission-sig")?;
        let url = header(delivery, "paypal-cert-url")?;
        let algorithm = header(delivery, "paypal-auth-algo")?;
        let time = header(delivery, "paypal-transmission-time")?;
        let id = header(delivery, "paypal-transmission-id")?;
        let unreadable = fault(Refusal::MalformedTimestamp, "the transmission's time is not RFC 3339");
        let stated = Unit::Rfc3339.parse(time).ok_or(unreadable)?;
        if algorithm != "SHA256withRSA" {
            return Err(fault(Refusal::AlgorithmNotAllowed, "PayPal signs with SHA256withRSA").into());
        }
        let url = self.url.allows(url).ok_or(URL_NOT_ALLOWED)?;
        let signature = base64(signature)?;
        let stale = self.tolerance.is_some_and(|tolerance| question.now.distance(stated) > tolerance);
        let stale = stale.then_some(fault(Refusal::Stale, "the transmission's time is outside the tolerance"));

        let chain = match (chain(question, &url), stale) {
            (Err(Failure { wanted: Some(_), .. }), Some(stale)) => return Err(stale.into()),
            (chain, _) => chain?,
        };
        chain.check(&self.roots, question.now)?;
        if !chain.common_name().is_some_and(|name| name.to_ascii_lowercase().ends_with(NAME_ENDS_IN)) {
            return Err(fault(Refusal::UntrustedKey, "the certificate is not in PayPal's name").into());
        }
        let checksum = crc32fast::hash(&delivery.body);
        let message = format!("{id}|{time}|{}|{checksum}", self.webhook_id);
        let algorithm = SignatureAlgorithm::RsaPkcs1 { hash: Hash::Sha256 };
        if !chain.key().verify(algorithm, message.as_bytes(), &signature) {
            return Err(BAD_SIGNATURE.into());
        }
        match stale {
            Some(stale) => Err(stale.into()),
            None => Ok(Findings {
                signed_at: self.tolerance.map(|_| stated),
                tolerance: self.tolerance,
                replay_keys: vec![Sha256::digest(&message).into()],
                ..Findings::default()
            }),
        }
    }
}
