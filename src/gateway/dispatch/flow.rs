//! How many tasks of one upstream are under way, and whether another may be.
//!
//! Invariant: never more than the configured number, and only one where the breaker is asking. A `Passage` is one of
//! them; dropped, it makes room, whatever became of its task.

use super::breaker::{Answer, Breaker, Sign};
use prometheus::IntGauge;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

pub(super) struct Flow {
    // Guards the numbers and the breaker: one decision. Never held across an await.
    state: Mutex<State>,
    /// For the one who waits in `clear`.
    changed: Notify,
    upstream: Arc<str>,
    stage: IntGauge,
}

struct State {
    breaker: Breaker,
    under_way: usize,
    /// As of the configuration in force when it was last asked.
    most: usize,
    paused_until: Option<Instant>,
}

impl Flow {
    pub(super) fn new(upstream: Arc<str>, stage: IntGauge) -> Arc<Self> {
        let state = State { breaker: Breaker::new(), under_way: 0, most: 1, paused_until: None };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), upstream, stage })
    }

    /// Until another may be sent, as far as is known now.
    pub(super) async fn clear(&self, most: usize) {
        loop {
            let answer = {
                let mut state = self.lock();
                state.most = most;
                state.ask(Instant::now())
            };
            match answer {
                Answer::Go => return,
                Answer::Later => self.changed.notified().await,
                Answer::At(time) => tokio::select! {
                    () = sleep_until(time) => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }

    /// None: it is not so any more.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Passage> {
        let mut state = self.lock();
        if state.ask(Instant::now()) != Answer::Go {
            return None;
        }
        let is_probe = state.breaker.begin();
        state.under_way += 1;
        self.stage.set(state.breaker.number());
        Some(Passage { flow: self.clone(), is_probe, has_told: false })
    }

    fn saw(&self, sign: Sign, is_probe: bool) {
        let mut state = self.lock();
        let was_open = state.breaker.is_open();
        let most = state.most;
        state.breaker.saw(sign, is_probe, most, Instant::now(), rand::random());
        self.stage.set(state.breaker.number());
        let is_open = state.breaker.is_open();
        drop(state);
        let upstream: &str = &self.upstream;
        match (was_open, is_open) {
            (false, true) => tracing::warn!(
                upstream,
                "the upstream fails time after time: what waits for it in the inbox goes on waiting, and one at a time is tried"
            ),
            (true, false) => {
                tracing::warn!(upstream, "the upstream works again: what waits for it in the inbox follows")
            }
            (true, true) | (false, false) => {}
        }
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ask(&mut self, now: Instant) -> Answer {
        match self.paused_until {
            Some(until) if now < until => return Answer::At(until),
            Some(_) => self.paused_until = None,
            None => {}
        }
        self.breaker.ask(self.under_way, self.most, now)
    }
}

pub(super) struct Passage {
    flow: Arc<Flow>,
    is_probe: bool,
    has_told: bool,
}

impl Passage {
    /// What the attempt says of the upstream, as soon as that is known: its settlement takes a moment longer.
    pub(super) fn saw(&mut self, sign: Sign) {
        self.has_told = true;
        self.flow.saw(sign, self.is_probe);
    }

    /// No other is sent for so long: there is no place at the upstream.
    pub(super) fn pause(&self, wait: Duration) {
        self.flow.lock().paused_until = Some(Instant::now() + wait);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.flow.lock().under_way -= 1;
        if self.has_told {
            self.flow.changed.notify_one();
        } else {
            self.flow.saw(Sign::Nothing, self.is_probe);
        }
    }
}
