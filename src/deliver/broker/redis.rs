//! SKELETON
use super::Settings;
use super::event::Event;
use crate::deliver::failure::{Fault, SendError};
use tokio::time::Instant;

pub(super) struct Sink;

impl Sink {
    pub(super) fn start(_settings: &Settings) -> Result<Self, String> {
        Ok(Self)
    }

    pub(super) async fn publish(&self, _event: &Event<'_>, _deadline: Instant) -> Result<(), SendError> {
        Err(SendError::new(Fault::Unavailable, "broker", "not built"))
    }

    /// None: not known yet.
    pub(super) fn is_up(&self) -> Option<bool> {
        None
    }
}
