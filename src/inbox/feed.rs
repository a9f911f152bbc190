//! Which tasks of an upstream are in memory, and which to send next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Task;

#[derive(Default)]
pub(crate) struct Feeds {
    // Guards the map alone.
    by_upstream: Mutex<HashMap<Arc<str>, Arc<Feed>>>,
}

#[derive(Default)]
pub(crate) struct Feed {}

impl Feeds {
    pub(super) fn of(&self, upstream: &str) -> Arc<Feed> {
        let mut feeds = self.by_upstream.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.entry(upstream.into()).or_default().clone()
    }
}

impl Feed {
    /// A task that was committed just now.
    pub(super) fn offer(&self, _task: Task) {}

    /// There may be more on disk than was offered.
    pub(crate) fn look_again(&self) {}
}
