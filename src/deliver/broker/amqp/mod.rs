//! RabbitMQ (AMQP 0-9-1): plain events, and Celery's tasks.
//!
//! Invariant: delivered is what the broker confirmed and did not return. Nothing is written while the broker is blocked,
//! nothing is published twice within one send, and a publication that was given up while its connection lives is not
//! made again: whoever asks for it meanwhile is told that it is under way, and afterwards how it ended.

mod connection;
mod handshake;
mod late;
mod message;

use std::sync::Arc;
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Confirmation, ErrorKind};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Settings;
use super::event::Event;
use super::settings::{AmqpTarget, CeleryTask, Engine};
use crate::deliver::failure::{Fault, SendError};
use connection::{Link, Seat, Session, Wanted, told};
use late::{Late, Standing, Waiting};
use message::{Message, Unsendable, short};

/// Confirmations that were on their way when the broker announced that it blocks.
const GRACE: Duration = Duration::from_millis(100);

pub(super) struct Sink {
    name: Arc<str>,
    target: AmqpTarget,
    exchange: ShortString,
    /// None: plain events.
    task: Option<CeleryTask>,
    link: Link,
    late: Arc<Late>,
}

/// How a publication ended that the broker did not take.
enum Failure {
    /// It said so: returned, or refused with a nack.
    Refused(String),
    /// It closed the channel because of it.
    Closed(String),
    /// No broker of this configuration will ever take it.
    TooLarge(String),
    /// Nobody knows.
    Broken(String),
}

impl Sink {
    /// Begins to connect; needs a runtime.
    pub(super) fn start(settings: &Settings) -> Result<Self, String> {
        let (server, task, target) = match &settings.engine {
            Engine::CeleryOverAmqp { server, task, target } => (server, Some(task), target),
            Engine::Amqp { server, target } => (server, None, target),
            _ => return Err("is no AMQP broker".to_owned()),
        };
        let exchange = short(&target.exchange).ok_or("the exchange's name is longer than AMQP's 255 bytes")?;
        let link = Link::start(Wanted {
            name: settings.name.clone(),
            label: settings.label(),
            server: server.clone(),
            declare: target.declare.clone(),
            max_in_flight: settings.max_in_flight,
        })?;
        let late = Arc::default();
        Ok(Self { name: settings.name.clone(), target: target.clone(), exchange, task: task.cloned(), link, late })
    }

    pub(super) async fn publish(&self, event: &Event<'_>, deadline: Instant) -> Result<(), SendError> {
        let error = |fault, what: &str| SendError::new(fault, &self.name, what);
        match self.late.standing(&event.key) {
            Some(Standing::Confirmed) => return Ok(()),
            Some(Standing::UnderWay) => {
                return Err(error(
                    Fault::Unavailable,
                    "an earlier publication of this delivery has no confirmation yet",
                ));
            }
            None => {}
        }
        let _ = timeout_at(deadline, self.link.first_tried()).await;
        let session = self.link.session().map_err(|why| error(Fault::Unavailable, &why))?;
        let message = Message::of(event, &self.target, self.task.as_ref(), session.frame_max());
        let message = message.map_err(|Unsendable(what)| error(Fault::TooLarge, what))?;
        let seat = tokio::select! {
            seat = timeout_at(deadline, session.seat()) => seat,
            () = session.blocked_for(Duration::ZERO) => {
                return Err(error(Fault::Unavailable, "the broker takes no messages"));
            }
        };
        let seat = match seat {
            Ok(Ok(seat)) => seat,
            Ok(Err(why)) => return Err(error(Fault::Unavailable, &why)),
            Err(_) => {
                session.end_if_silent();
                return Err(error(Fault::TimedOut, "no channel at the deadline"));
            }
        };
        let publishing = tokio::spawn(put(session.clone(), seat, self.exchange.clone(), message));
        // Whatever becomes of this send: the publication is followed to its end.
        let mut waiting = Waiting::new(self.late.clone(), event.key.clone(), publishing);
        let ended = tokio::select! {
            biased;
            ended = waiting.end() => ended,
            () = session.blocked_for(GRACE) => {
                return Err(error(Fault::Unavailable, "the broker blocks: no confirmation before its alarm ends"));
            }
            () = sleep_until(deadline) => {
                session.end_if_silent();
                return Err(error(Fault::TimedOut, "no confirmation at the deadline"));
            }
        };
        let Err(failure) = ended else {
            session.go_on();
            return Ok(());
        };
        let (fault, what) = match failure {
            Failure::Refused(what) => (Fault::Unavailable, what),
            Failure::Closed(what) => {
                session.hold_back(&what);
                (Fault::Unavailable, what)
            }
            Failure::TooLarge(what) => (Fault::TooLarge, what),
            Failure::Broken(what) => return Err(error(Fault::Broken, &what)),
        };
        self.link.tell(&what);
        Err(error(fault, &what))
    }

    pub(super) fn is_up(&self) -> Option<bool> {
        self.link.is_up()
    }
}

/// One publication, to its end. Its channel is used again only when the broker has spoken of it.
async fn put(session: Arc<Session>, seat: Seat, exchange: ShortString, message: Message) -> Result<(), Failure> {
    let Message { routing_key, properties, body } = message;
    let key = routing_key.to_string();
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    session.asked();
    let written = seat.channel.basic_publish(exchange, routing_key, options, &body, properties).await;
    // A confirmation may take long, and the body has been written.
    drop(body);
    let confirmation = match written {
        Ok(confirmation) => confirmation.await,
        Err(error) => Err(error),
    };
    match confirmation {
        Ok(confirmation) => {
            session.heard();
            session.give_back(seat);
            match confirmation {
                Confirmation::Ack(None) => Ok(()),
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => Err(Failure::Refused(
                    format!("returned, as no queue takes {key:?}: {} {}", returned.reply_code, returned.reply_text),
                )),
                Confirmation::Nack(None) => Err(Failure::Refused(format!("the queue of {key:?} refused it (nack)"))),
                Confirmation::NotRequested => Err(Failure::Broken("the channel confirms nothing".to_owned())),
            }
        }
        Err(error) => {
            session.heard();
            Err(failure(&error))
        }
    }
}

fn failure(error: &lapin::Error) -> Failure {
    let text = told(error);
    match error.kind() {
        // RabbitMQ's words for a message above its max_message_size.
        ErrorKind::ProtocolError(_) if text.contains("message size") && text.contains("larger than") => {
            Failure::TooLarge(text)
        }
        ErrorKind::ProtocolError(_) if error.is_amqp_soft_error() => Failure::Closed(text),
        _ => Failure::Broken(text),
    }
}
