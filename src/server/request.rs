//! A request as the handler gets it and the response that it gives, whatever they go over: the request's head is whole, its
//! body still to be read.
//!
//! Invariant: no more is read of it than somebody asks for; one that does not end as it should ends in an error.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, StatusCode, Uri, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::wire::Wire;
use crate::fields::Fields;

pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Body,
}

pub(crate) struct Head {
    pub(crate) method: Method,
    /// As sent: in HTTP/1 mostly the path alone.
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: Fields,
}

pub(crate) struct Response<B> {
    pub(crate) status: StatusCode,
    /// The framing is the connection's own; in HTTP/1 a `Connection: close` is heeded.
    pub(crate) headers: Fields,
    pub(crate) body: B,
}

pub(crate) struct Body(Kind);

enum Kind {
    Empty,
    /// It is read from the connection when it is asked for. The number is the request's on that connection.
    Http1(Arc<Mutex<Wire>>, u64),
    Http2(Incoming),
}

/// Why a body did not end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("its framing is none: {0}")]
    Malformed(&'static str),
    #[error("the sender left before its end")]
    Left,
    #[error("{0}")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl Body {
    pub(super) fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub(super) fn http1(wire: Arc<Mutex<Wire>>, number: u64) -> Self {
        Self(Kind::Http1(wire, number))
    }
}

impl<B> Response<B> {
    pub(crate) fn new(body: B) -> Self {
        Self { status: StatusCode::OK, headers: Fields::new(), body }
    }

    /// For HTTP/2.
    pub(super) fn map_into_http<C>(self, change: impl FnOnce(B) -> C) -> http::Response<C> {
        let mut response = http::Response::new(change(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.into();
        response
    }
}

impl From<http::Request<Incoming>> for Request {
    fn from(request: http::Request<Incoming>) -> Self {
        let (parts, incoming) = request.into_parts();
        let head =
            Head { method: parts.method, uri: parts.uri, version: parts.version, headers: Fields::from(parts.headers) };
        Self { head, body: Body(Kind::Http2(incoming)) }
    }
}

pub(super) fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    // Held for one poll of one side, never across a handler's; whoever panics in it ends the connection.
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Http1(wire, number) => {
                let data = ready!(lock(wire).poll_body(cx, *number));
                Poll::Ready(data.map(|data| data.map(Frame::data)))
            }
            Kind::Http2(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::Broken(error.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Http1(wire, number) => lock(wire).left(*number).is_none_or(|left| left.is_over()),
            Kind::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Http1(wire, number) => match lock(wire).left(*number) {
                Some(left) => left.length().map_or_else(SizeHint::default, SizeHint::with_exact),
                None => SizeHint::with_exact(0),
            },
            Kind::Http2(incoming) => incoming.size_hint(),
        }
    }
}
