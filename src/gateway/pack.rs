//! What was judged, made into what leaves: the last place that sees the request as a request.
//!
//! Invariant: our own signature is on what was proven, and on nothing else.

use super::journey::{Journey, Judged};
use super::route::Target;
use super::visit::Visit;
use crate::parcel::{Parcel, Statement};
use crate::verify::SigningKey;
use sha2::{Digest, Sha256};

/// Receivers keep these ids in columns and keys.
const LONGEST_ID: usize = 128;

/// Enough to tell the copies of one event apart.
const DUPLICATE_DIGITS: usize = 12;

impl Journey {
    pub(super) fn pack(
        &self,
        judged: Judged,
        target: &Target,
        visit: &Visit,
        delivery_id: &str,
        signs: Option<&SigningKey>,
    ) -> Parcel {
        let delivery = judged.delivery();
        let path_and_query = target.path_and_query(&self.source, delivery);
        let added = match (&judged, signs) {
            (Judged::Proven(_), Some(key)) => key.sign(delivery_id, self.door.clock.now(), &delivery.body),
            _ => Vec::new(),
        };
        let statement = Statement {
            source: self.source.name.clone(),
            request_id: &visit.request_id,
            client_certificate: visit.subject(),
            forwarding: &self.forwarding,
            traceparent: self.traceparent.clone(),
            added,
            credentials: self.source.settings.verifier.credential_headers(),
        };
        match (judged, visit.would_refuse) {
            (Judged::Proven(verified), None) => Parcel::pack(verified, path_and_query, &visit.checks, statement),
            (Judged::Proven(verified), Some(would)) => {
                Parcel::pack_unproven(verified.into_delivery(), path_and_query, would.label(), statement)
            }
            (Judged::Unproven(delivery, would), _) => {
                Parcel::pack_unproven(*delivery, path_and_query, would.label(), statement)
            }
        }
    }

    /// One name for a delivery, the same for every retry of it: the id if the signature covers it, else the digest of
    /// what was signed, else this request's own. A duplicate that is forwarded on purpose is told from the first by what
    /// was signed anew, or receivers would drop it.
    pub(super) fn delivery_id(&self, judged: &Judged, visit: &Visit, is_duplicate: bool) -> String {
        let Judged::Proven(verified) = judged else { return visit.request_id.clone() };
        let signed = || verified.replay_keys().first().map(|key| hex::encode(Sha256::digest(key)));
        let mut name = match verified.event_id().filter(|_| verified.event_id_is_signed()) {
            Some(id) if id.len() <= LONGEST_ID => id.to_owned(),
            Some(id) => hex::encode(Sha256::digest(id)),
            None => return signed().unwrap_or_else(|| visit.request_id.clone()),
        };
        if is_duplicate {
            let other = signed().unwrap_or_else(|| visit.request_id.clone());
            name.push(':');
            name.push_str(other.get(..DUPLICATE_DIGITS).unwrap_or(&other));
        }
        name
    }
}
