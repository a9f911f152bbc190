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
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::watch;
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
/// cleanly. The upstream's slot is held until the end is reached or this is dropped, and not a moment longer.
pub(crate) struct AnswerBody {
    /// None once the end is reached, whichever end it was.
    live: Option<Live>,
    deadline: Pin<Box<Sleep>>,
    authority: Arc<str>,
}

struct Live {
    incoming: Incoming,
    exchange: Exchange,
}

impl AnswerBody {
    fn new(incoming: Incoming, exchange: Exchange, deadline: Instant, authority: Arc<str>) -> Self {
        let mut body = Self {
            live: Some(Live { incoming, exchange }),
            deadline: Box::pin(tokio::time::sleep_until(deadline)),
            authority,
        };
        body.end_if_whole();
        body
    }

    /// The last byte is known to be the last without asking again when the length was declared. Servers do not ask
    /// again then, so the slot and the connection must be given back here.
    fn end_if_whole(&mut self) {
        if self.live.as_ref().is_some_and(|live| live.incoming.is_end_stream()) {
            self.end(Ending::of);
        }
    }

    fn end(&mut self, ending: impl FnOnce(StatusCode) -> Ending) {
        if let Some(live) = self.live.take() {
            let ending = ending(live.exchange.status());
            live.exchange.end(ending);
        }
    }

    fn too_late(&mut self) -> SendError {
        self.end(|_| Ending::TimedOut);
        SendError::new(Fault::TimedOut, &self.authority, "the answer's body was not whole at the deadline")
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            live.exchange.leave();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = SendError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let this = self.get_mut();
        loop {
            let Some(live) = &mut this.live else {
                return Poll::Ready(None);
            };
            // A body that never stops coming never leaves the timer a turn below.
            if Instant::now() >= this.deadline.deadline() {
                return Poll::Ready(Some(Err(this.too_late())));
            }
            match Pin::new(&mut live.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers could smuggle a header past whoever judged the head: they are dropped.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    this.end_if_whole();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => {
                    this.end(|_| Ending::Broken);
                    let what = format!("the answer's body was cut: {}", cause(&error));
                    return Poll::Ready(Some(Err(SendError::new(Fault::Broken, &this.authority, &what))));
                }
                Poll::Ready(None) => {
                    this.end(Ending::of);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    ready!(this.deadline.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(this.too_late())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.live.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.live {
            Some(live) => live.incoming.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
