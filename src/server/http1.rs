//! HTTP/1 with a client: one request after the other, each handed to the handler and answered (RFC 9112).
//!
//! Own code, because this is what every delivery passes: a general server keeps a channel, a task's worth of state and a
//! second table of headers for each request, and tells neither what it has read nor what it has not. Invariants: requests
//! on one connection are answered in their order, and the next is not read before the last was answered; what follows a
//! body that was not read to its end is never taken for a request; an answer that breaks off ends the connection in a way
//! that no client can take for its end; a sender that leaves ends its handler.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{Method, Version};
use http_body::Body as _;
use tokio::io::AsyncWrite as _;

use super::activity::{Answer, Handling};
use super::connection::{BoxError, Requests};
use super::head::{self, BadHead, Begun, Coding};
use super::request::{Body, Request, Response, lock};
use super::transport::Watched;
use super::wire::Wire;
use super::{Limits, Peer};
use crate::fields::Fields;
use crate::threads;

/// Requests that have come already are served in turn with other connections.
const MOST_AT_ONCE: usize = 16;

pub(super) struct Connection<H, F, B> {
    wire: Arc<Mutex<Wire>>,
    requests: Requests<H>,
    stage: Stage<F, B>,
    longest: usize,
    /// Of what has come of a head, so much holds no end of it.
    seen: usize,
    /// The next answer is the last.
    closes: bool,
    rests: bool,
    /// Where the next handler will work, since the last one is done.
    room: Option<Room<F>>,
}

/// A handler's: some KiB, kept while the connection is in use.
type Room<F> = Pin<Box<Option<F>>>;

enum Stage<F, B> {
    Head,
    Handling {
        asked: Asked,
        handling: Handling,
        answer: Room<F>,
    },
    Answering {
        body: Answer<B>,
        coding: Coding,
        begun: bool,
        keeps: bool,
    },
    /// What is to be written last goes out when the others on this thread have had their turns (threads.rs).
    Answered {
        keeps: bool,
    },
    /// It is on its way.
    Ending {
        keeps: bool,
    },
    Closing,
}

/// What the answer has to know of its request.
#[derive(Clone, Copy)]
struct Asked {
    is_head: bool,
    is_http_1_1: bool,
    keeps: bool,
}

impl<H, F, B> Connection<H, F, B>
where
    H: Fn(Request, Arc<Peer>) -> F,
    F: Future<Output = Response<B>>,
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(io: Watched, requests: Requests<H>, limits: &Limits) -> Self {
        Self {
            wire: Arc::new(Mutex::new(Wire::new(io, limits.max_header_bytes))),
            requests,
            stage: Stage::Head,
            longest: limits.max_header_bytes,
            seen: 0,
            closes: false,
            rests: true,
            room: None,
        }
    }

    /// Ready when the connection has ended and was closed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut answered = 0;
        while answered < MOST_AT_ONCE {
            match &mut self.stage {
                Stage::Head => ready!(self.poll_head(cx))?,
                Stage::Handling { .. } => ready!(self.poll_handler(cx))?,
                Stage::Answering { .. } => ready!(self.poll_answer(cx))?,
                Stage::Answered { keeps } => {
                    // Not done, and nobody is to take it for idle.
                    self.requests.activity.sent(false);
                    self.stage = Stage::Ending { keeps: *keeps };
                    threads::fall_behind(cx);
                    return Poll::Pending;
                }
                Stage::Ending { keeps } => {
                    let keeps = *keeps;
                    ready!(lock(&self.wire).poll_flush(cx))?;
                    // There may have been nothing left to write.
                    self.requests.activity.sent(true);
                    // Told to close, it does so also behind an answer that did not say it.
                    self.stage = if keeps && !self.closes { Stage::Head } else { Stage::Closing };
                    answered += 1;
                }
                Stage::Closing => {
                    // A failure means that the peer left before us.
                    let _ = ready!(Pin::new(&mut lock(&self.wire).io).poll_shutdown(cx));
                    return Poll::Ready(Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut wire = lock(&self.wire);
        let head = loop {
            if wire.buffer.len() > self.seen {
                match head::take_head(&mut wire.buffer, &mut self.seen, self.longest) {
                    Ok(Some(head)) => break head,
                    Ok(None) => {}
                    Err(BadHead(status)) => {
                        let headers = Fields::new();
                        head::write_head(wire.out(), status, &headers, (Coding::Length(0), None), Some("close"));
                        drop(wire);
                        self.stage = Stage::Answered { keeps: false };
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            let came = ready!(wire.poll_read(cx))?;
            self.rests = false;
            if came == 0 {
                let is_between = wire.buffer.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
                drop(wire);
                self.stage = Stage::Closing;
                let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the client left in the middle of a head");
                return Poll::Ready(if is_between { Ok(()) } else { Err(ended().into()) });
            }
        };
        let Begun { head, length, left, keeps, expects } = head;
        let has_body = !left.is_over();
        let number = wire.begin(length, left, expects);
        drop(wire);
        let body = if has_body { Body::http1(Arc::clone(&self.wire), number) } else { Body::empty() };
        let (is_head, is_http_1_1) = (head.method == Method::HEAD, head.version == Version::HTTP_11);
        let asked = Asked { is_head, is_http_1_1, keeps };
        let handling = self.requests.activity.request_begins(true, has_body);
        let mut answer = self.room.take().unwrap_or_else(|| Box::pin(None));
        answer.set(Some((self.requests.handler)(Request { head, body }, Arc::clone(&self.requests.peer))));
        self.stage = Stage::Handling { asked, handling, answer };
        Poll::Ready(Ok(()))
    }

    fn poll_handler(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Stage::Handling { asked, answer, .. } = &mut self.stage else { return Poll::Ready(Ok(())) };
        let asked = *asked;
        let Some(handler) = answer.as_mut().as_pin_mut() else { return Poll::Ready(Err("nobody answers".into())) };
        let Poll::Ready(answer) = handler.poll(cx) else {
            return match poll_leaving(&mut lock(&self.wire), cx) {
                Poll::Ready(left) => {
                    self.stage = Stage::Closing;
                    Poll::Ready(Err(left.into()))
                }
                Poll::Pending => Poll::Pending,
            };
        };
        let Stage::Handling { handling, answer: mut room, .. } = std::mem::replace(&mut self.stage, Stage::Closing)
        else {
            return Poll::Ready(Ok(()));
        };
        room.set(None);
        self.room = Some(room);
        let Response { status, headers, body } = answer;
        let body = handling.answered_with(body);
        let mut wire = lock(&self.wire);
        let is_read = wire.is_read() || wire.poll_drain(cx);
        if is_read {
            self.requests.activity.body_was_read();
        }
        let wants = headers.get_all(CONNECTION).any(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        let keeps = asked.keeps && is_read && !wants && !self.closes && !self.requests.activity.is_stopping();
        let connection = match (keeps, asked.is_http_1_1) {
            (false, _) => Some("close"),
            // An old client takes silence for the end.
            (true, false) => Some("keep-alive"),
            (true, true) => None,
        };
        let length = body.size_hint().exact();
        let coding = Coding::of(status, asked.is_head, asked.is_http_1_1, length);
        let keeps = keeps && coding != Coding::UntilClose;
        head::write_head(wire.out(), status, &headers, (coding, length), connection);
        drop(wire);
        self.stage = match coding {
            Coding::None | Coding::Length(0) => Stage::Answered { keeps },
            _ => Stage::Answering { body, coding, begun: false, keeps },
        };
        Poll::Ready(Ok(()))
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Stage::Answering { body, coding, begun, keeps } = &mut self.stage else { return Poll::Ready(Ok(())) };
        let keeps = *keeps;
        loop {
            if !lock(&self.wire).has_room() {
                ready!(lock(&self.wire).poll_flush(cx))?;
            }
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let mut wire = lock(&self.wire);
                    // What there is goes out now; the rest is not known to come soon.
                    if let Poll::Ready(flushed) = wire.poll_flush(cx) {
                        flushed?;
                    }
                    return match poll_leaving(&mut wire, cx) {
                        Poll::Ready(left) => Poll::Ready(Err(left.into())),
                        Poll::Pending => Poll::Pending,
                    };
                }
            };
            let mut wire = lock(&self.wire);
            let Some(frame) = frame.transpose().map_err(Into::into)? else {
                match coding {
                    // It said that there is more.
                    Coding::Length(1..) => return Poll::Ready(Err("the answer is shorter than its length".into())),
                    Coding::Chunked if *begun => wire.write(b"\r\n0\r\n\r\n"),
                    Coding::Chunked => wire.write(b"0\r\n\r\n"),
                    Coding::Length(0) | Coding::UntilClose | Coding::None => {}
                }
                drop(wire);
                self.stage = Stage::Answered { keeps };
                return Poll::Ready(Ok(()));
            };
            // Trailers of an answer are nobody's here.
            let Ok(data) = frame.into_data() else { continue };
            match coding {
                Coding::Length(left) => match left.checked_sub(data.len() as u64) {
                    Some(rest) => *left = rest,
                    None => return Poll::Ready(Err("the answer is longer than its length".into())),
                },
                Coding::Chunked if data.is_empty() => continue,
                Coding::Chunked => {
                    let end_of_last = if std::mem::replace(begun, true) { "\r\n" } else { "" };
                    wire.write(format!("{end_of_last}{:x}\r\n", data.len()).as_bytes());
                }
                Coding::UntilClose | Coding::None => {}
            }
            wire.write_data(data);
            if *coding == Coding::Length(0) {
                drop(wire);
                self.stage = Stage::Answered { keeps };
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Behind the answer in flight.
    pub(super) fn graceful_shutdown(&mut self) {
        self.closes = true;
    }

    /// Gives back, between two requests, what only they need.
    pub(super) fn rest(&mut self) {
        if matches!(self.stage, Stage::Head) {
            lock(&self.wire).rest();
            self.room = None;
            self.rests = true;
        }
    }

    pub(super) fn rests(&self) -> bool {
        self.rests
    }

    /// A head has begun, or something that is none.
    pub(super) fn is_asked(&self) -> bool {
        lock(&self.wire).buffer.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// Writes what may still be said and closes.
    pub(super) async fn close(self, last_word: &[u8]) {
        let mut last_word = last_word;
        std::future::poll_fn(|cx| {
            let mut wire = lock(&self.wire);
            if !last_word.is_empty() {
                wire.write(std::mem::take(&mut last_word));
            }
            // A failure means that the peer left before us.
            if ready!(wire.poll_flush(cx)).is_ok() {
                let _ = ready!(Pin::new(&mut wire.io).poll_shutdown(cx));
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// While its request is worked on a sender is only listened to for its leaving; what else it says is kept for later.
fn poll_leaving(wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Error> {
    // A word that it waits for may not have fitted into the socket.
    if let Poll::Ready(Err(error)) = wire.poll_flush(cx) {
        return Poll::Ready(error);
    }
    if !wire.is_read() || !wire.buffer.is_empty() || wire.io.poll_readable(cx).is_pending() {
        return Poll::Pending;
    }
    match ready!(wire.poll_read(cx)) {
        Ok(0) => Poll::Ready(io::Error::new(io::ErrorKind::UnexpectedEof, "the client left before its answer")),
        Ok(_) => Poll::Pending,
        Err(error) => Poll::Ready(error),
    }
}
