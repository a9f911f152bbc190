//! What was judged, made into what leaves: the last place that sees the request as a request.
//!
//! Invariant: our own signature is on what was proven, and on nothing else.

use super::journey::{Journey, Judged};
use super::route::Target;
use super::visit::Visit;
use crate::parcel::{Parcel, Statement};
use crate::verify::{SigningKey, Verified};
use sha2::{Digest, Sha256};

/// Receivers keep these ids in columns and keys.
const LONGEST_ID: usize = 128;

impl Journey {
    pub(super) fn pack(&self, judged: Judged, target: &Target, visit: &Visit, signs: Option<&SigningKey>) -> Parcel {
        let delivery = judged.delivery();
        let path_and_query = target.path_and_query(&self.source, delivery);
        let added = match (&judged, signs) {
            (Judged::Proven(verified), Some(key)) => {
                key.sign(&self.delivery_id(verified, visit), self.door.clock.now(), &delivery.body)
            }
            _ => Vec::new(),
        };
        let statement = Statement {
            source: &self.source.settings.name,
            request_id: &visit.request_id,
            client_certificate: visit.subject(),
            forwarding: self.forwarding.clone(),
            traceparent: self.traceparent.clone(),
            added,
        };
        match (judged, visit.would_refuse) {
            (Judged::Proven(verified), None) => Parcel::pack(*verified, path_and_query, &visit.checks, statement),
            (Judged::Proven(verified), Some(would)) => {
                Parcel::pack_unproven(verified.into_delivery(), path_and_query, would.label(), statement)
            }
            (Judged::Unproven(delivery, would), _) => {
                Parcel::pack_unproven(*delivery, path_and_query, would.label(), statement)
            }
        }
    }

    /// One name for a delivery, the same for every retry of it: the id if the signature covers it, else the digest of
    /// what was signed, else this request's own.
    pub(super) fn delivery_id(&self, verified: &Verified, visit: &Visit) -> String {
        match (verified.event_id(), verified.replay_keys()) {
            (Some(id), _) if verified.event_id_is_signed() && id.len() <= LONGEST_ID => id.to_owned(),
            (Some(id), _) if verified.event_id_is_signed() => hex::encode(Sha256::digest(id)),
            (_, [key, ..]) => hex::encode(Sha256::digest(key)),
            _ => visit.request_id.clone(),
        }
    }
}
