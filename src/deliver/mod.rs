//! Getting a parcel to the one it is for, and its answer back.
//!
//! Invariant: a parcel is offered a second time only where the first offer certainly did nothing (nothing was written),
//! or where the operator accepts the doubt (`repeat_on_stale`); every wait in here has a deadline; what an upstream
//! sends is bounded and never trusted to be well formed.

mod balance;
mod connect;
mod failure;
mod gate;
mod health;
pub(crate) mod http;
mod meters;
mod pool;
mod settings;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};

pub(crate) use self::balance::Balance;
pub(crate) use self::connect::{ClientIdentity, Protocol, TlsSettings};
pub(crate) use self::failure::{Fault, SendError, cause};
use self::http::Exchange;
pub(crate) use self::meters::{Ending, Meters};
pub(crate) use self::settings::{BuildError, DEFAULT_PROBE_TIMEOUT, HealthCheck, Settings};
use crate::parcel::Parcel;

/// Where a parcel can go. A closed set, chosen by the configuration.
pub(crate) enum Destination {
    Http {
        upstream: Arc<http::Upstream>,
        settings: Box<Settings>,
        /// Dropped with the destination: the health checks end.
        _probing: watch::Sender<bool>,
    },
}

impl Destination {
    /// Builds it and starts its health checks. Needs a runtime.
    pub(crate) fn start(settings: Settings, meters: Meters) -> Result<Arc<Self>, BuildError> {
        let upstream = http::Upstream::new(settings.clone(), meters)?;
        let (probing, stop) = watch::channel(false);
        tokio::spawn(upstream.clone().probe_forever(stop));
        Ok(Arc::new(Self::Http { upstream, settings: Box::new(settings), _probing: probing }))
    }

    /// Whether it was started with these settings, so that a reload can leave it as it is.
    pub(crate) fn has(&self, other: &Settings) -> bool {
        match self {
            Self::Http { settings, .. } => settings.is_same(other),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        match self {
            Self::Http { settings, .. } => settings,
        }
    }

    pub(crate) async fn send(&self, parcel: &Parcel) -> Result<Answer, SendError> {
        match self {
            Self::Http { upstream, .. } => upstream.send(parcel).await,
        }
    }

    /// Worth refusing a delivery before its body is read.
    pub(crate) fn is_saturated(&self) -> bool {
        match self {
            Self::Http { upstream, .. } => upstream.is_saturated(),
        }
    }

    /// For readiness: something behind this is healthy, or not yet known to be bad.
    pub(crate) fn can_forward(&self) -> bool {
        match self {
            Self::Http { upstream, .. } => upstream.can_forward(),
        }
    }

    /// The longest that `send` and the reading of its answer can take: the lease of a claim is longer.
    pub(crate) fn longest(&self) -> Duration {
        match self {
            Self::Http { upstream, .. } => upstream.longest(),
        }
    }
}

/// Whether these settings can be put to work: certificates that parse, keys that fit, urls that can be asked.
pub(crate) fn check(settings: &Settings) -> Result<(), BuildError> {
    http::Upstream::new(settings.clone(), Meters::unregistered(settings.urls.len())).map(drop)
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Without hop-by-hop headers; a `Content-Length` is there only if it is that of the body.
    pub(crate) headers: HeaderMap,
    pub(crate) body: AnswerBody,
}

/// The answer's body as it comes, under what is left of the upstream's deadline.
///
/// Invariant: an answer that is cut, or late, ends in an error, so that whoever relays it resets instead of ending
/// cleanly. The upstream's slot is held until the end is reached, this is dropped or the deadline is over, and not a
/// moment longer: a sender who does not read its answer leaves this unpolled, and must not keep the place.
pub(crate) struct AnswerBody {
    progress: Arc<Mutex<Progress>>,
    deadline: Pin<Box<Sleep>>,
    /// Ends the exchange at the deadline though nobody polls. None: it has ended already.
    reaper: Option<AbortHandle>,
    authority: Arc<str>,
}

/// Shared with the reaper; locked for one poll, or to end it.
enum Progress {
    Live(Live),
    Late,
    /// The end is told, whichever end it was.
    Over,
}

struct Live {
    incoming: Incoming,
    exchange: Exchange,
}

impl AnswerBody {
    fn new(incoming: Incoming, exchange: Exchange, deadline: Instant, authority: Arc<str>) -> Self {
        let progress = Arc::new(Mutex::new(Progress::Live(Live { incoming, exchange })));
        let late = Arc::downgrade(&progress);
        let mut body =
            Self { progress, deadline: Box::pin(tokio::time::sleep_until(deadline)), reaper: None, authority };
        if body.lock().end_if_whole() {
            return body;
        }
        let reaper = tokio::spawn(async move {
            tokio::time::sleep_until(deadline).await;
            if let Some(progress) = late.upgrade() {
                lock(&progress).expire();
            }
        });
        body.reaper = Some(reaper.abort_handle());
        body
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    fn too_late(&self) -> SendError {
        SendError::new(Fault::TimedOut, &self.authority, "the answer's body was not whole at the deadline")
    }

    fn retire_reaper(&mut self) {
        if let Some(reaper) = self.reaper.take() {
            reaper.abort();
        }
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    // Every change is one assignment.
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    /// The last byte is known to be the last without asking again when the length was declared. Servers do not ask
    /// again then, so the slot and the connection must be given back here.
    fn end_if_whole(&mut self) -> bool {
        let is_whole = matches!(self, Self::Live(live) if live.incoming.is_end_stream());
        if is_whole {
            self.end(Ending::of);
        }
        is_whole
    }

    fn end(&mut self, ending: impl FnOnce(StatusCode) -> Ending) {
        if let Self::Live(live) = std::mem::replace(self, Self::Over) {
            let ending = ending(live.exchange.status());
            live.exchange.end(ending);
        }
    }

    /// The deadline is over; whoever polls next is told.
    fn expire(&mut self) {
        if matches!(self, Self::Live(_)) {
            self.end(|_| Ending::TimedOut);
            *self = Self::Late;
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.retire_reaper();
        if let Progress::Live(live) = std::mem::replace(&mut *self.lock(), Progress::Over) {
            live.exchange.leave();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = SendError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let this = self.get_mut();
        let polled = this.poll(cx);
        if this.is_end_stream() {
            this.retire_reaper();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        matches!(*self.lock(), Progress::Over)
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.lock() {
            Progress::Live(live) => live.incoming.size_hint(),
            Progress::Late => SizeHint::default(),
            Progress::Over => SizeHint::with_exact(0),
        }
    }
}

impl AnswerBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let mut progress = lock(&self.progress);
        // A body that never stops coming never leaves the timer a turn below.
        if Instant::now() >= self.deadline.deadline() {
            progress.expire();
        }
        loop {
            let live = match &mut *progress {
                Progress::Live(live) => live,
                Progress::Late => {
                    *progress = Progress::Over;
                    return Poll::Ready(Some(Err(self.too_late())));
                }
                Progress::Over => return Poll::Ready(None),
            };
            match Pin::new(&mut live.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers could smuggle a header past whoever judged the head: they are dropped.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    progress.end_if_whole();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => {
                    progress.end(|_| Ending::Broken);
                    let what = format!("the answer's body was cut: {}", cause(&error));
                    return Poll::Ready(Some(Err(SendError::new(Fault::Broken, &self.authority, &what))));
                }
                Poll::Ready(None) => {
                    progress.end(Ending::of);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    ready!(self.deadline.as_mut().poll(cx));
                    progress.expire();
                }
            }
        }
    }
}
