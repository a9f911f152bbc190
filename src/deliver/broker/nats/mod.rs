//! NATS JetStream: a delivery is there when the stream has acknowledged it.
//!
//! Invariant: nothing is handed to the client while there is no connection, and what it had not written when a
//! connection ended goes with it (`link.rs`): no delivery that its sender was told to send again comes out of a buffer
//! later. What had been written may be stored though its acknowledgement was lost; the sender's repetition then has
//! the same `Nats-Msg-Id`, and the stream drops it within its `duplicate_window`.

mod headers;
mod link;
mod login;
#[cfg(test)]
mod tests;
mod waiters;

use std::sync::Arc;

use async_nats::StatusCode;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use bytes::Bytes;
use tokio::time::Instant;

use super::event::Event;
use super::settings::{Engine, Format, NatsAuth, Payload, Settings};
use super::template::Template;
use crate::deliver::failure::{Fault, SendError};
use link::{Link, Unanswered};

/// A server reads no line of the protocol that is longer than 4096 bytes, and the subject stands in one beside another
/// and two numbers.
pub(crate) const LONGEST_SUBJECT: usize = 1024;

pub(super) struct Sink {
    who: Arc<str>,
    subject: Template,
    stream: Option<String>,
    format: Format,
    link: Link,
}

impl Sink {
    pub(super) fn start(settings: &Settings) -> Result<Self, String> {
        let Engine::Nats(target) = &settings.engine else { return Err("is no NATS upstream".to_owned()) };
        Ok(Self {
            who: settings.name.clone(),
            subject: target.subject.clone(),
            stream: target.stream.clone(),
            format: target.format,
            link: Link::start(settings.name.clone(), target.clone())?,
        })
    }

    /// The caller keeps the deadline: whoever no longer waits is forgotten.
    pub(super) async fn publish(&self, event: &Event<'_>, _deadline: Instant) -> Result<(), SendError> {
        let subject = self.subject.fill(event.name, event.event_type);
        if subject.len() > LONGEST_SUBJECT {
            return Err(self.error(Fault::TooLarge, "the subject would be longer than a server reads"));
        }
        let headers = headers::of(event, self.format, self.stream.as_deref());
        let payload = match self.format {
            Format::Binary => event.body.clone(),
            Format::CloudEvents => Bytes::from(event.json(Payload::Data, true)),
        };
        let message = self.link.request(&subject, headers, payload).await.map_err(|error| match error {
            Unanswered::Down(why) => self.error(Fault::Unavailable, &format!("no connection to NATS: {why}")),
            Unanswered::TooLarge(what) => self.error(Fault::TooLarge, &what),
            Unanswered::Forbidden => {
                self.error(Fault::Unavailable, &format!("the server forbids publishing to {subject}"))
            }
            Unanswered::Lost => self.error(Fault::Broken, "the connection ended before the stream acknowledged"),
        })?;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(self.error(Fault::Unavailable, &format!("no stream takes the subject {subject}")));
        }
        match serde_json::from_slice(&message.payload) {
            // A duplicate is one that the stream has.
            Ok(Response::Ok(PublishAck { .. })) => Ok(()),
            Ok(Response::Err { error }) => {
                let fault = match error.error_code() {
                    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => Fault::TooLarge,
                    _ => Fault::Unavailable,
                };
                Err(self.error(fault, &format!("the stream that has {subject} refuses: {error}")))
            }
            Err(_) => {
                let what = format!("what answers to {subject} is no JetStream stream");
                Err(self.error(Fault::Unavailable, &what))
            }
        }
    }

    /// None: not known yet.
    pub(super) fn is_up(&self) -> Option<bool> {
        self.link.is_up()
    }

    fn error(&self, fault: Fault, what: &str) -> SendError {
        SendError::new(fault, &self.who, what)
    }
}

impl NatsAuth {
    /// Whether a login can be made of it; the error repeats nothing of it.
    pub(crate) fn check(&self) -> Result<(), String> {
        login::options(self).map(drop)
    }
}
