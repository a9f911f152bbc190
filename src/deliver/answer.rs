//! An upstream's answer, and for how long it may hold a place and a connection.
//!
//! Invariant: the place and the connection are given back when the answer's end has come, when the deadline has passed
//! or when nobody wants the answer any more, whichever is first, and whether or not anybody reads: a reader that
//! stands still must cost its own answer, not others their place. An answer that is cut, or late, ends in an error, so
//! that whoever relays it resets instead of ending cleanly.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use ::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::failure::{Fault, SendError, cause};
use super::http::Exchange;
use super::meters::Ending;
use super::pool::Lease;
use crate::clock;
use crate::fields::Fields;
use crate::timer::{self, Late};

/// An answer that says it is no longer than this is read before it is relayed, so that its place is free at once. Most
/// answers to webhooks are a few bytes; a longer one is relayed as it comes and never held whole.
const READ_AT_ONCE: u64 = 64 * 1024;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Without hop-by-hop headers; a `Content-Length` is there only if it is that of the body.
    pub(crate) headers: Fields,
    pub(crate) body: AnswerBody,
}

pub(crate) struct AnswerBody(Kind);

enum Kind {
    /// What came, and how it broke off if it did: its place is free.
    Read {
        data: Bytes,
        cut: Option<SendError>,
    },
    Coming(Coming),
}

/// An answer on its way, and the task that ends it at its deadline.
struct Coming {
    relay: Arc<Relay>,
    deadline: AbortHandle,
}

struct Relay {
    /// Guards who ends the exchange, the reader or the deadline; never held across an await.
    stage: Mutex<Stage>,
    deadline: Instant,
    authority: Arc<str>,
}

enum Stage {
    Live {
        live: Live,
        /// Who waits for the upstream. None: the upstream waits for the reader.
        reader: Option<Waker>,
    },
    /// The deadline passed; the reader has yet to hear of it.
    Late,
    Over,
}

pub(super) struct Live {
    /// HTTP/2. HTTP/1 has it on the connection that the exchange holds.
    pub(super) incoming: Option<Incoming>,
    pub(super) exchange: Exchange,
}

/// What came of a body that was read.
pub(super) struct Read {
    data: Bytes,
    cut: Option<SendError>,
    /// When the last of it came, if that was waited for.
    ended: Option<Instant>,
}

impl AnswerBody {
    /// Of a short answer: its place and its connection are free now.
    pub(super) fn read(live: Live, Read { data, cut, ended }: Read) -> Self {
        match &cut {
            Some(error) => live.end(Ending::by(error.fault), ended),
            None => live.end_well(ended),
        }
        Self(Kind::Read { data, cut })
    }

    /// Watches over a long one. Dropped half-way it lets go of the place and the connection.
    pub(super) fn coming(live: Live, deadline: Instant, authority: Arc<str>) -> Self {
        let stage = Mutex::new(Stage::Live { live, reader: None });
        let relay = Arc::new(Relay { stage, deadline, authority });
        let watched = Arc::clone(&relay);
        let deadline = tokio::spawn(async move {
            sleep_until(watched.deadline).await;
            watched.expire();
        });
        Self(Kind::Coming(Coming { relay, deadline: deadline.abort_handle() }))
    }
}

impl Live {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        match (&mut self.incoming, &mut self.exchange.lease) {
            (Some(incoming), _) => loop {
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                match frame.map(|frame| frame.map(Frame::into_data)) {
                    Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(data))),
                    // Trailers could smuggle a header past whoever judged the head: they are dropped.
                    Some(Ok(Err(_))) => {}
                    Some(Err(error)) => return Poll::Ready(Some(Err(cause(&error)))),
                    None => return Poll::Ready(None),
                }
            },
            (None, Lease::Single(single)) => single.poll_data(cx),
            // Its body is above.
            (None, Lease::Shared(_)) => Poll::Ready(None),
        }
    }

    fn is_end(&self) -> bool {
        match (&self.incoming, &self.exchange.lease) {
            (Some(incoming), _) => incoming.is_end_stream(),
            (None, Lease::Single(single)) => single.is_end(),
            (None, Lease::Shared(_)) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.incoming, &self.exchange.lease) {
            (Some(incoming), _) => incoming.size_hint(),
            (None, Lease::Single(single)) => single.length().map_or_else(SizeHint::default, SizeHint::with_exact),
            (None, Lease::Shared(_)) => SizeHint::with_exact(0),
        }
    }

    pub(super) fn is_short(&self) -> bool {
        self.is_end() || self.size_hint().exact().is_some_and(|length| length <= READ_AT_ONCE)
    }

    /// Reads a short body to its end. The connection enforces the declared length, so what is held here is at most
    /// `READ_AT_ONCE`.
    pub(super) async fn read(&mut self, deadline: Instant, authority: &str) -> Read {
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        let mut ended = None;
        let cut = loop {
            // The last byte is known to be the last without asking again: the length was declared.
            if self.is_end() {
                break None;
            }
            let next = match timer::within(deadline, poll_fn(|cx| self.poll_data(cx))).await {
                Ok(next) => next,
                Err(Late) => break Some(late(authority)),
            };
            // Frames that never stop coming never leave the timer a turn, nor the turn an end.
            let now = if ended.is_none() { clock::steady() } else { clock::read() };
            ended = Some(now);
            if now >= deadline {
                break Some(late(authority));
            }
            match next {
                Some(Ok(data)) if first.is_empty() => first = data,
                Some(Ok(data)) => {
                    if joined.is_empty() {
                        joined.extend_from_slice(&first);
                    }
                    joined.extend_from_slice(&data);
                }
                Some(Err(error)) => break Some(broken(authority, &error)),
                None => break None,
            }
        };
        Read { data: if joined.is_empty() { first } else { joined.freeze() }, cut, ended }
    }

    /// `ended`: when, for whoever knows; else now.
    fn end(self, ending: Ending, ended: Option<Instant>) {
        // What was not read goes before its connection does.
        drop(self.incoming);
        self.exchange.end(ending, ended.unwrap_or_else(clock::steady));
    }

    fn end_well(self, ended: Option<Instant>) {
        let ending = Ending::of(self.exchange.status());
        self.end(ending, ended);
    }

    fn leave(self) {
        drop(self.incoming);
        self.exchange.leave();
    }
}

impl Relay {
    /// At the deadline, whether anybody reads or not.
    fn expire(&self) {
        let mut stage = self.lock();
        let Stage::Live { live, reader } = std::mem::replace(&mut *stage, Stage::Late) else {
            *stage = Stage::Over;
            return;
        };
        drop(stage);
        match reader {
            Some(reader) => {
                live.end(Ending::TimedOut, None);
                reader.wake();
            }
            // The upstream had more to give and nobody took it: that must not speak against the upstream.
            None => live.leave(),
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let mut stage = self.lock();
        let (live, reader) = match &mut *stage {
            Stage::Live { live, reader } => (live, reader),
            Stage::Late => {
                *stage = Stage::Over;
                return Poll::Ready(Some(Err(late(&self.authority))));
            }
            Stage::Over => return Poll::Ready(None),
        };
        // A body that never stops coming may keep the deadline's task from its turn.
        if Instant::now() >= self.deadline {
            take(stage, |live| live.end(Ending::TimedOut, None));
            return Poll::Ready(Some(Err(late(&self.authority))));
        }
        *reader = None;
        match live.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                // Servers do not ask again after the last declared byte: this is the end.
                if live.is_end() {
                    take(stage, |live| live.end_well(None));
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(error))) => {
                take(stage, |live| live.end(Ending::Broken, None));
                Poll::Ready(Some(Err(broken(&self.authority, &error))))
            }
            Poll::Ready(None) => {
                take(stage, |live| live.end_well(None));
                Poll::Ready(None)
            }
            Poll::Pending => {
                *reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        // A stage is whole between any two statements.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what is live, if anything is, after letting go of the lock.
fn take(mut stage: MutexGuard<'_, Stage>, end: impl FnOnce(Live)) {
    let ended = std::mem::replace(&mut *stage, Stage::Over);
    drop(stage);
    if let Stage::Live { live, .. } = ended {
        end(live);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.deadline.abort();
        take(self.relay.lock(), Live::leave);
    }
}

fn late(authority: &str) -> SendError {
    SendError::new(Fault::TimedOut, authority, "the answer's body was not whole at the deadline")
}

fn broken(authority: &str, error: &str) -> SendError {
    SendError::new(Fault::Broken, authority, &format!("the answer's body was cut: {error}"))
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = SendError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        match &mut self.get_mut().0 {
            Kind::Read { data, .. } if !data.is_empty() => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
            Kind::Read { cut, .. } => Poll::Ready(cut.take().map(Err)),
            Kind::Coming(coming) => coming.relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Read { data, cut } => data.is_empty() && cut.is_none(),
            Kind::Coming(coming) => matches!(*coming.relay.lock(), Stage::Over),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Read { data, cut: None } => SizeHint::with_exact(data.len() as u64),
            // How long it would have been is of no use to anybody, and what came is not all.
            Kind::Read { cut: Some(_), .. } => SizeHint::default(),
            Kind::Coming(coming) => match &*coming.relay.lock() {
                Stage::Live { live, .. } => live.size_hint(),
                Stage::Late => SizeHint::default(),
                Stage::Over => SizeHint::with_exact(0),
            },
        }
    }
}
