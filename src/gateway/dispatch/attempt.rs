//! One attempt at delivering one task: what is sent, what became of it, and that this is written down.
//!
//! Invariant: a task is let go of only when its settlement is committed. Every attempt carries the delivery's one
//! `X-Request-Id` and `Idempotency-Key`, by which receivers tell a repetition; its number and its signature are its own.

use super::breaker::Sign;
use super::flow::Passage;
use super::line::Line;
use crate::clock::UnixMillis;
use crate::deliver::{AnswerBody, Destination, Ended, Fault, Schedule, SendError, Sent, Verdict, retry_after};
use crate::gateway::Gateway;
use crate::inbox::{Attempt, End, Lease, Loaded, Task};
use crate::parcel::{Parcel, Tag};
use crate::verify::SigningKey;
use http::header::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Of an answer that nobody reads: enough for a connection to be used again after most of them.
const MOST_OF_AN_ANSWER: usize = 256 * 1024;

/// Before the upstream is asked for a place again: others, who wait for an answer, use the same ones.
const AFTER_BUSY: Duration = Duration::from_millis(100);

/// How an attempt went, as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    Retried,
    Dead,
}

impl Outcome {
    pub(crate) const ALL: [Self; 3] = [Self::Delivered, Self::Retried, Self::Dead];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retried => "retried",
            Self::Dead => "dead",
        }
    }
}

impl Line {
    pub(super) async fn attempt(self: Arc<Self>, lease: Lease, mut passage: Passage) {
        let Loaded::Task(task) = lease.loaded() else { return };
        let gateway = self.door.snapshot();
        // A reload took the upstream away: the task waits until it is back.
        let Some(destination) = gateway.upstreams.get(&*self.upstream) else { return };
        let tag = Tag {
            source: task.source.clone(),
            delivery_id: task.delivery_id.clone(),
            generation: task.key.generation,
            received: task.received,
        };
        let parcel = match destination.is_broker() {
            true => undress(task, &gateway),
            false => dress(task, &tag, gateway.signing.get(&*self.upstream).map(AsRef::as_ref), self.door.clock.now()),
        };
        let (ended, note) = match self.send(destination, &parcel, &tag).await {
            Ok(Sent::Confirmed) => (Ended::Confirmed, "confirmed".to_owned()),
            Ok(Sent::Answered(answer)) => {
                let retry_after = retry_after(&answer.headers, self.door.clock.now());
                read_away(answer.body).await;
                let note = format!("answered {}", answer.status.as_u16());
                (Ended::Status { status: answer.status, retry_after }, note)
            }
            Err(error) if error.fault == Fault::Busy => {
                passage.pause(AFTER_BUSY);
                lease.put_back();
                return;
            }
            Err(error) => (Ended::Fault(error.fault), error.detail),
        };
        let made = task.attempts.saturating_add(1);
        // As it is configured now: it may have been mended while the upstream was asked.
        let (verdict, fails) = with_schedule(&self.door.snapshot(), &task.source, |schedule| {
            (schedule.verdict(ended, made, rand::random()), schedule.speaks_against_the_upstream(ended))
        });
        passage.saw(if fails { Sign::Failure } else { Sign::Life });
        self.settle(lease, ended, verdict, note).await;
        drop(passage);
    }

    /// Senders that wait for the upstream's answer share its places. What is stored takes those that nobody waits for; one
    /// at a time waits in line with them, so that it has its share where they never leave one free.
    async fn send(&self, destination: &Destination, parcel: &Parcel, tag: &Tag) -> Result<Sent, SendError> {
        match destination.send_at_once(parcel, tag).await {
            Err(error) if error.fault == Fault::Busy => match self.in_line.try_acquire() {
                Ok(_turn) => destination.send(parcel, tag).await,
                Err(_) => Err(error),
            },
            sent => sent,
        }
    }

    async fn settle(&self, lease: Lease, ended: Ended, verdict: Verdict, note: String) {
        let Loaded::Task(task) = lease.loaded() else { return };
        let (source, upstream): (&str, &str) = (&task.source, &self.upstream);
        let status = match ended {
            Ended::Status { status, .. } => Some(status.as_u16()),
            Ended::Confirmed | Ended::Fault(_) => None,
        };
        let (end, result) = match verdict {
            Verdict::Delivered => (End::Delivered, Outcome::Delivered),
            Verdict::Retry(after) => (End::Retry { after }, Outcome::Retried),
            Verdict::Dead => (End::Dead, Outcome::Dead),
        };
        let request_id = task.request_id;
        match verdict {
            Verdict::Delivered => {
                let took = self.door.clock.now().distance(task.received);
                self.meters.duration.observe(took.as_secs_f64());
            }
            Verdict::Retry(after) => {
                tracing::debug!(source, upstream, %request_id, note, seconds = after.as_secs(), "not delivered; tried again");
            }
            Verdict::Dead => {
                tracing::warn!(source, upstream, %request_id, note, "not delivered, and given up: a dead letter");
            }
        }
        let dead = (result == Outcome::Dead).then(|| self.door.metrics.inbox_dead(source, upstream));
        self.write_down(lease, Attempt { end, counted: true, status, note }).await;
        // What is counted is written: whoever sees the number finds the delivery.
        self.meters.count(result);
        dead.inspect(|dead| dead.inc());
    }

    /// What cannot be read cannot be sent.
    pub(super) async fn bury(self: Arc<Self>, lease: Lease) {
        let Loaded::Unreadable { why, .. } = lease.loaded() else { return };
        let (seq, upstream, why): (_, &str, _) = (lease.loaded().key().seq, &self.upstream, why.clone());
        tracing::error!(upstream, seq, why, "a delivery cannot be read from the inbox: a dead letter");
        self.write_down(lease, Attempt { end: End::Dead, counted: false, status: None, note: why }).await;
    }

    async fn write_down(&self, lease: Lease, attempt: Attempt) {
        let end = attempt.end;
        match (self.inbox.settle(lease.loaded().key(), attempt).await, end) {
            (Ok(()), End::Delivered | End::Dead) => lease.ended(),
            (Ok(()), End::Retry { after }) => lease.due_at(self.inbox.now().after(after)),
            (Err(why), _) => {
                let (seq, upstream): (_, &str) = (lease.loaded().key().seq, &self.upstream);
                tracing::error!(
                    upstream,
                    seq,
                    why,
                    "what became of a delivery could not be written: it is sent again after the next start"
                );
                lease.keep();
            }
        }
    }
}

/// A source that is no longer configured leaves what it accepted to the usual schedule.
fn with_schedule<T>(gateway: &Gateway, source: &str, judge: impl FnOnce(&Schedule) -> T) -> T {
    match gateway.sources.named(source) {
        Some(source) => judge(&source.settings.retry),
        None => judge(&Schedule::default()),
    }
}

/// For a broker, which is told the key in its own way. A header that was no credential when the delivery came may be one
/// as the source is configured now; and what was stored by an older hookward does not say.
fn undress(task: &Task, gateway: &Gateway) -> Parcel {
    let mut parcel = (*task.parcel).clone();
    if let Some(source) = gateway.sources.named(&task.source) {
        parcel.credentials.extend(source.settings.verifier.credential_headers());
    }
    parcel
}

fn dress(task: &Task, tag: &Tag, signs: Option<&SigningKey>, now: UnixMillis) -> Parcel {
    let mut parcel = (*task.parcel).clone();
    let id = header_safe(&task.delivery_id);
    if let Some(key) = signs {
        for (name, value) in key.sign(&id, now, &parcel.body) {
            parcel.replace(name, value);
        }
    }
    let key = Tag { delivery_id: id, ..tag.clone() }.publish_key();
    if let Ok(key) = HeaderValue::from_str(&key) {
        parcel.replace(HeaderName::from_static("idempotency-key"), key);
    }
    let attempt = HeaderValue::from(u64::from(task.attempts) + 1);
    parcel.headers.insert(HeaderName::from_static("x-hookward-attempt"), attempt);
    parcel
}

/// An id that no header can hold is replaced by its digest, which is as much its own.
fn header_safe(id: &str) -> String {
    match id.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => id.to_owned(),
        false => hex::encode(Sha256::digest(id)),
    }
}

/// To its end, so that the connection can be used again; a long one is left. What is cut was answered all the same.
async fn read_away(mut body: AnswerBody) {
    let mut read = 0;
    while read < MOST_OF_AN_ANSWER
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, |data| data.len());
    }
}
