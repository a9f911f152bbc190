//! What is known of one request so far, and the one record of how it ended.
//!
//! Invariant: every request is recorded exactly once, on every way out: answered, or dropped because the sender left,
//! or because a bug made its task panic.

use super::Door;
use super::forwarded::Client;
use super::respond::{self, Details, Reply};
use super::source::Source;
use crate::clock::UnixMillis;
use crate::refusal::Refusal;
use crate::server::ClientCertificate;
use crate::telemetry::{Outcome, Record};
use crate::verify::Verified;
use http::StatusCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Visit {
    door: Arc<Door>,
    pub(super) at: UnixMillis,
    pub(super) started: Instant,
    pub(super) request_id: String,
    pub(super) listener: Arc<str>,
    pub(super) method: http::Method,
    pub(super) path: String,
    pub(super) client: Client,
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    pub(super) source: Option<Arc<Source>>,
    /// Observe mode: what enforcing would have said.
    pub(super) would_refuse: Option<Refusal>,
    /// What exactly was amiss with a proof: a form, never a value.
    pub(super) note: &'static str,
    pub(super) checks: String,
    event_id: String,
    event_type: String,
    pub(super) body_bytes: usize,
    pub(super) verifying: Duration,
    pub(super) forwarding: Duration,
    pub(super) forwarded: bool,
    recorded: bool,
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
        Self {
            door,
            at,
            started: Instant::now(),
            // Version 7: told by time, so that an index of them grows at its end.
            request_id: uuid::Builder::from_unix_timestamp_millis(at.0, &rand::random()).into_uuid().to_string(),
            listener,
            method,
            path,
            client,
            certificate: None,
            source: None,
            would_refuse: None,
            note: "",
            checks: String::new(),
            event_id: String::new(),
            event_type: String::new(),
            body_bytes: 0,
            verifying: Duration::ZERO,
            forwarding: Duration::ZERO,
            forwarded: false,
            recorded: false,
        }
    }

    pub(super) fn proven(&mut self, verified: &Verified) {
        self.event_id = verified.event_id().unwrap_or_default().to_owned();
        self.event_type = verified.event_type().unwrap_or_default().to_owned();
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
        self.record(Outcome::Refused(refusal), reply.status());
        reply
    }

    pub(super) fn record(&mut self, outcome: Outcome, status: StatusCode) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let whole = self.started.elapsed();
        let would_refuse = self.would_refuse.map(Outcome::Refused);
        match &self.source {
            Some(source) => {
                source.meters.count(outcome);
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
            certificate: self.certificate.as_ref().map_or("", |certificate| &certificate.subject_text),
            verified: &self.checks,
            event_id: &self.event_id,
            event_type: &self.event_type,
            upstream: match &self.source {
                Some(source) if self.forwarded => &source.settings.upstream,
                _ => "",
            },
            body_bytes: self.body_bytes,
            whole,
            verify: self.verifying,
            forward: self.forwarding,
        });
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let refusal = if std::thread::panicking() { Refusal::Internal } else { Refusal::ClientGone };
        self.record(Outcome::Refused(refusal), refusal.status());
    }
}
