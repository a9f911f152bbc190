//! What is known of one request so far, and the one record of how it ended.
//!
//! Invariant: every request is recorded exactly once, on every way out: answered, or dropped because the sender left,
//! or because a bug made its task panic.

use super::Door;
use super::forwarded::Client;
use super::respond::{self, Details, Reply};
use super::source::Source;
use crate::clock::{self, UnixMillis};
use crate::refusal::Refusal;
use crate::server::ClientCertificate;
use crate::telemetry::{Outcome, Record};
use crate::verify::Verified;
use http::StatusCode;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One word wide: it goes through many hands.
pub(super) struct Visit(Box<Known>);

pub(super) struct Known {
    door: Arc<Door>,
    pub(super) at: UnixMillis,
    pub(super) started: Instant,
    pub(super) request_id: String,
    pub(super) listener: Arc<str>,
    pub(super) method: http::Method,
    pub(super) path: String,
    pub(super) client: Client,
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    /// Of the certificate that came with a request which was kept since.
    kept_subject: Option<String>,
    pub(super) source: Option<Arc<Source>>,
    /// Observe mode: what enforcing would have said.
    pub(super) would_refuse: Option<Refusal>,
    /// What exactly was amiss with a proof: a form, never a value.
    pub(super) note: &'static str,
    pub(super) checks: Arc<str>,
    event_id: String,
    event_type: String,
    pub(super) body_bytes: usize,
    pub(super) verifying: Duration,
    pub(super) forwarding: Duration,
    /// Where it went, if it did.
    pub(super) upstreams: Arc<str>,
    recorded: bool,
}

/// What a request that was kept knows of itself.
pub(super) struct Again {
    pub(super) at: UnixMillis,
    pub(super) request_id: String,
    pub(super) listener: Arc<str>,
    pub(super) client: IpAddr,
    /// Its subject.
    pub(super) certificate: Option<String>,
    pub(super) with_certificate: bool,
}

impl Visit {
    pub(super) fn begin(
        door: Arc<Door>,
        listener: Arc<str>,
        method: http::Method,
        path: String,
        client: Client,
    ) -> Self {
        let at = door.clock.now();
        // Version 7: told by time, so that an index of them grows at its end.
        let id = uuid::Builder::from_unix_timestamp_millis(at.0, &rand::random()).into_uuid();
        Self(Box::new(Known {
            door,
            at,
            started: clock::steady().into_std(),
            request_id: id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).to_owned(),
            listener,
            method,
            path,
            client,
            certificate: None,
            kept_subject: None,
            source: None,
            would_refuse: None,
            note: "",
            checks: Arc::default(),
            event_id: String::new(),
            event_type: String::new(),
            body_bytes: 0,
            verifying: Duration::ZERO,
            forwarding: Duration::ZERO,
            upstreams: Arc::default(),
            recorded: false,
        }))
    }

    /// Of a request that was refused when it came, and is proven now. It has the time and the id that it had.
    pub(super) fn again(door: Arc<Door>, source: Arc<Source>, again: Again, verified: &Verified) -> Self {
        let delivery = verified.delivery();
        let client = Client { address: again.client, is_certain: true };
        let mut visit = Self::begin(door, again.listener, delivery.method.clone(), delivery.path.clone(), client);
        visit.at = again.at;
        visit.request_id = again.request_id;
        visit.source = Some(source);
        visit.kept_subject = again.certificate;
        visit.body_bytes = delivery.body.len();
        visit.proven(verified, again.with_certificate);
        visit
    }

    pub(super) fn proven(&mut self, verified: &Verified, with_certificate: bool) {
        self.event_id = verified.event_id().unwrap_or_default().to_owned();
        self.event_type = verified.event_type().unwrap_or_default().to_owned();
        self.checks = match (with_certificate, &**verified.checks()) {
            (false, _) => verified.checks().clone(),
            (true, "") => "client_cert".into(),
            (true, checks) => format!("{checks}, client_cert").into(),
        };
    }

    /// Of the client's certificate, where it presented one.
    pub(super) fn subject(&self) -> Option<&str> {
        let presented = self.certificate.as_ref().map(|certificate| certificate.subject_text.as_str());
        presented.or(self.kept_subject.as_deref())
    }

    /// The answer to a refusal, and its record.
    pub(super) fn refuse(self, refusal: Refusal) -> Reply {
        self.refuse_for(refusal, None)
    }

    /// `wait`: how long until it is worth trying again, where that is known.
    pub(super) fn refuse_for(self, refusal: Refusal, wait: Option<Duration>) -> Reply {
        self.refuse_with(refusal, wait, None)
    }

    /// With the status that the provider documents, where it does.
    pub(super) fn refuse_as(self, refusal: Refusal, status: Option<StatusCode>) -> Reply {
        self.refuse_with(refusal, None, status)
    }

    fn refuse_with(mut self, refusal: Refusal, wait: Option<Duration>, status: Option<StatusCode>) -> Reply {
        let details = Details {
            status,
            source: self.source.as_deref(),
            wait,
            // What is left of a body that was not read is of no use to anybody.
            close: self.body_bytes == 0
                && matches!(
                    refusal,
                    Refusal::TooLarge | Refusal::BodyTimeout | Refusal::TransferCoding | Refusal::Malformed
                ),
        };
        let reply = respond::refuse(refusal, &self.request_id, &details);
        self.record(Outcome::Refused(refusal), reply.status);
        reply
    }

    pub(super) fn record(&mut self, outcome: Outcome, status: StatusCode) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let ended = clock::read().into_std();
        let whole = ended.saturating_duration_since(self.started);
        let would_refuse = self.would_refuse.map(Outcome::Refused);
        match &self.source {
            Some(source) => {
                source.meters.count(outcome);
                if outcome.is_taken() && would_refuse.is_none() {
                    source.silence.hear(ended);
                    source.meters.last_accepted.set(self.door.clock.now().as_secs() as f64);
                }
                if let Some(would) = would_refuse {
                    source.meters.count_would_refuse(would);
                }
                source.meters.duration.observe(whole.as_secs_f64());
            }
            None => self.door.metrics.unrouted.with_label_values(&[outcome.label()]).inc(),
        }
        if let Outcome::Refused(refusal) = outcome {
            tracing::debug!(
                request_id = self.request_id,
                source = self.source.as_ref().map_or("", |source| &source.settings.name),
                refusal = refusal.label(),
                note = self.note,
                "{}",
                refusal.sentence()
            );
        }
        self.door.audit.write(&Record {
            at: self.at,
            request_id: &self.request_id,
            listener: &self.listener,
            source: self.source.as_ref().map_or("", |source| &source.settings.name),
            outcome,
            would_refuse,
            status: status.as_u16(),
            method: self.method.as_str(),
            path: &self.path,
            client: self.client.address,
            certificate: self.subject().unwrap_or_default(),
            verified: &self.checks,
            event_id: &self.event_id,
            event_type: &self.event_type,
            upstream: &self.upstreams,
            body_bytes: self.body_bytes,
            whole,
            verify: self.verifying,
            forward: self.forwarding,
        });
    }
}

impl Deref for Visit {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.0
    }
}

impl DerefMut for Visit {
    fn deref_mut(&mut self) -> &mut Known {
        &mut self.0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let refusal = if std::thread::panicking() { Refusal::Internal } else { Refusal::ClientGone };
        self.record(Outcome::Refused(refusal), refusal.status());
    }
}
