//! A broker: what is published there is delivered when the broker has confirmed it, and not before.
//!
//! Invariant: no more is under way than `max_in_flight`, what waits for a place is bounded and waits `queue_timeout` at
//! most, and one deadline covers the publishing and its confirmation. Nothing is published twice within one `send`: a
//! broker that was slow may have it already, and the repetition, under the same key, is the caller's.

mod amqp;
mod celery;
mod data;
mod event;
mod nats;
mod redis;
mod settings;
mod template;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::{Fault, SendError};
use super::meters::{Ending, Meters};
use super::queue::QUEUED_PER_PLACE;
use super::settings::BuildError;
use crate::parcel::{Parcel, Tag};
use event::Event;

pub(crate) use nats::LONGEST_SUBJECT;
pub(crate) use settings::{
    AmqpServer, AmqpTarget, CeleryTask, DEFAULT_DEDUPE, DEFAULT_TIMEOUT, Declare, Engine, Format, Login, NatsAuth,
    NatsTarget, Payload, RedisList, Settings, StreamTarget,
};
pub(crate) use template::{Alphabet, Template};

pub(crate) struct Broker {
    settings: Settings,
    sink: Sink,
    places: Semaphore,
    waiting: AtomicUsize,
    meters: Meters,
}

enum Sink {
    Redis(redis::Sink),
    Amqp(amqp::Sink),
    Nats(nats::Sink),
}

impl Broker {
    /// Begins to connect; needs a runtime.
    pub(crate) fn start(settings: Settings, meters: Meters) -> Result<Self, BuildError> {
        let sink = match &settings.engine {
            Engine::CeleryOverRedis { .. } | Engine::Stream { .. } => redis::Sink::start(&settings).map(Sink::Redis),
            Engine::CeleryOverAmqp { .. } | Engine::Amqp { .. } => amqp::Sink::start(&settings).map(Sink::Amqp),
            Engine::Nats { .. } => nats::Sink::start(&settings).map(Sink::Nats),
        };
        let places = Semaphore::new(settings.max_in_flight.clamp(1, Semaphore::MAX_PERMITS));
        let sink = sink.map_err(BuildError::Broker)?;
        Ok(Self { settings, sink, places, waiting: AtomicUsize::new(0), meters })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) async fn send(&self, parcel: &Parcel, tag: &Tag) -> Result<(), SendError> {
        let started = Instant::now();
        match self.place().await {
            Some(place) => self.publish(parcel, tag, place, started).await,
            None => {
                let busy = SendError::new(Fault::Busy, &self.settings.name, "max_in_flight are under way");
                self.meters.record(Ending::by(busy.fault), started);
                Err(busy)
            }
        }
    }

    /// Without waiting for a place, and without a line in the metrics where there is none.
    pub(crate) async fn send_at_once(&self, parcel: &Parcel, tag: &Tag) -> Result<(), SendError> {
        let started = Instant::now();
        let busy = || SendError::new(Fault::Busy, &self.settings.name, "there is no place now");
        let place = self.places.try_acquire().map_err(|_| busy())?;
        self.publish(parcel, tag, place, started).await
    }

    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        if self.is_saturated() {
            return None;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        timeout(self.settings.queue_timeout, self.places.acquire()).await.ok()?.ok()
    }

    async fn publish(
        &self,
        parcel: &Parcel,
        tag: &Tag,
        place: SemaphorePermit<'_>,
        started: Instant,
    ) -> Result<(), SendError> {
        let deadline = Instant::now() + self.settings.timeout;
        self.meters.in_flight.inc();
        let event = Event::of(parcel, tag);
        let publishing = async {
            match &self.sink {
                Sink::Redis(sink) => sink.publish(&event, deadline).await,
                Sink::Amqp(sink) => sink.publish(&event, deadline).await,
                Sink::Nats(sink) => sink.publish(&event, deadline).await,
            }
        };
        let late = || SendError::new(Fault::TimedOut, &self.settings.name, "no confirmation at the deadline");
        let published = timeout_at(deadline, publishing).await.unwrap_or_else(|_| Err(late()));
        self.meters.in_flight.dec();
        drop(place);
        let ending = published.as_ref().err().map_or(Ending::Success, |error| Ending::by(error.fault));
        self.meters.record(ending, started);
        published
    }

    pub(crate) fn is_saturated(&self) -> bool {
        self.places.available_permits() == 0
            && self.waiting.load(Ordering::Relaxed) >= self.settings.max_in_flight.saturating_mul(QUEUED_PER_PLACE)
    }

    /// Connected, or not yet known to be unreachable.
    pub(crate) fn can_forward(&self) -> bool {
        self.is_up() != Some(false)
    }

    /// None: not known yet.
    fn is_up(&self) -> Option<bool> {
        match &self.sink {
            Sink::Redis(sink) => sink.is_up(),
            Sink::Amqp(sink) => sink.is_up(),
            Sink::Nats(sink) => sink.is_up(),
        }
    }

    /// Gauges that are read, not kept.
    pub(crate) fn refresh_gauges(&self) {
        for gauge in &self.meters.healthy {
            gauge.set(i64::from(self.can_forward()));
        }
    }

    pub(crate) fn longest(&self) -> Duration {
        self.settings.queue_timeout + self.settings.timeout
    }
}

/// One that waits for a place.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
