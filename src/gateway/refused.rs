//! The last deliveries whose proof was refused, kept for the operator who asks why.
//!
//! Invariant: bounded in number and bytes, and in memory alone: so many deliveries, none with a body of more than 64 KiB,
//! and one client fills at most a quarter of the places, so that whoever forges cannot push out what others sent. Nothing
//! is copied: a body is shared with the request it came in. What was accepted is never kept.

use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::refusal::Refusal;
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Of a larger body nothing is kept: half a body explains nothing.
const LARGEST_BODY: usize = 64 * 1024;

pub(crate) struct Kept {
    /// The request id, as the sender and the audit log have it.
    pub(crate) id: String,
    pub(crate) at: UnixMillis,
    pub(crate) source: Arc<str>,
    pub(crate) client: IpAddr,
    key: ClientKey,
    pub(crate) refusal: Refusal,
    pub(crate) note: &'static str,
    /// Of the body as it came.
    pub(crate) body_bytes: usize,
    /// Without its body, where that was too large.
    pub(crate) delivery: Delivery,
}

impl Kept {
    pub(crate) fn has_body(&self) -> bool {
        self.body_bytes == self.delivery.body.len()
    }
}

/// What a request knows of itself when its proof is refused.
pub(super) struct Circumstances<'a> {
    pub(super) id: &'a str,
    pub(super) at: UnixMillis,
    pub(super) source: &'a Arc<str>,
    pub(super) client: IpAddr,
    pub(super) key: ClientKey,
    pub(super) refusal: Refusal,
    pub(super) note: &'static str,
}

pub(crate) struct Refusals {
    most: AtomicUsize,
    /// Oldest first. Guards only this list; held for a push or a copy of pointers.
    kept: Mutex<VecDeque<Arc<Kept>>>,
}

impl Refusals {
    pub(super) fn new(most: usize) -> Self {
        Self { most: AtomicUsize::new(most), kept: Mutex::default() }
    }

    pub(super) fn is_off(&self) -> bool {
        self.most.load(Ordering::Relaxed) == 0
    }

    pub(super) fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() > most {
            kept.pop_front();
        }
    }

    pub(super) fn keep(&self, mut delivery: Delivery, of: &Circumstances<'_>) {
        let most = self.most.load(Ordering::Relaxed);
        if most == 0 {
            return;
        }
        let body_bytes = delivery.body.len();
        if body_bytes > LARGEST_BODY {
            delivery.body = Bytes::new();
        }
        let entry = Arc::new(Kept {
            id: of.id.to_owned(),
            at: of.at,
            source: of.source.clone(),
            client: of.client,
            key: of.key,
            refusal: of.refusal,
            note: of.note,
            body_bytes,
            delivery,
        });
        let a_clients_share = (most / 4).max(1);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut theirs = kept.iter().enumerate().filter(|(_, kept)| kept.key == of.key).map(|(at, _)| at);
        let oldest_of_theirs = theirs.next();
        let gone = if oldest_of_theirs.is_some() && theirs.count() + 1 >= a_clients_share {
            oldest_of_theirs.and_then(|at| kept.remove(at))
        } else if kept.len() >= most {
            kept.pop_front()
        } else {
            None
        };
        kept.push_back(entry);
        drop(kept);
        // Freed when nobody waits for the list.
        drop(gone);
    }

    /// The newest first.
    pub(crate) fn all(&self) -> Vec<Arc<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|kept| kept.id == id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use http::Method;

    fn keep(refusals: &Refusals, id: &str, client: [u8; 4], body: usize) {
        let delivery = Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "h".to_owned(),
            path: "/x".to_owned(),
            query: None,
            headers: Fields::new(),
            body: vec![b'a'; body].into(),
        };
        let client = IpAddr::from(client);
        let of = Circumstances {
            id,
            at: UnixMillis(1),
            source: &"s".into(),
            client,
            key: ClientKey::of(client),
            refusal: Refusal::BadSignature,
            note: "",
        };
        refusals.keep(delivery, &of);
    }

    fn ids(refusals: &Refusals) -> Vec<String> {
        refusals.all().iter().map(|kept| kept.id.clone()).collect()
    }

    #[test]
    fn the_newest_are_kept_and_one_client_cannot_push_out_the_others() {
        let refusals = Refusals::new(8);
        keep(&refusals, "genuine", [192, 0, 2, 1], 10);
        for number in 0..100 {
            keep(&refusals, &format!("forged{number}"), [192, 0, 2, 2], 10);
        }
        assert_eq!(ids(&refusals), ["forged99", "forged98", "genuine"]);
        for number in 3..20 {
            keep(&refusals, &format!("other{number}"), [192, 0, 2, number], 10);
        }
        assert_eq!(ids(&refusals).len(), 8);
        assert_eq!(ids(&refusals)[0], "other19");
        assert!(refusals.find("other19").is_some() && refusals.find("genuine").is_none());
    }

    #[test]
    fn a_large_body_is_not_kept_and_off_keeps_nothing() {
        let refusals = Refusals::new(4);
        keep(&refusals, "small", [192, 0, 2, 1], LARGEST_BODY);
        keep(&refusals, "large", [192, 0, 2, 2], LARGEST_BODY + 1);
        let [large, small] = [0, 1].map(|at: usize| refusals.all()[at].clone());
        assert!(small.has_body() && !large.has_body());
        assert_eq!((large.body_bytes, large.delivery.body.len()), (LARGEST_BODY + 1, 0));
        refusals.resize(0);
        keep(&refusals, "more", [192, 0, 2, 1], 1);
        assert!(refusals.is_off() && refusals.all().is_empty());
    }
}
