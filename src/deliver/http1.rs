//! One HTTP/1.1 connection to an upstream, and the request that is on it.
//!
//! Own code, because this is what every proxied delivery passes, and because whether a delivery may be repeated hangs on
//! exactly how many bytes have passed: a general client drives its connection in a task of its own, to which a request is
//! handed over and from which the answer is handed back, and says neither for certain.
//! Invariant: whoever has the connection drives it, and nobody else; a connection rests only after an answer was read to
//! its clean end, with nothing behind it and nothing of the request left.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use ::http::Method;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::wire::{self, Head};
use crate::framing::{Left, Piece};
use crate::threads;

/// What an answer's head and a small body fit into.
const READ_AT_ONCE: usize = 4 * 1024;
/// Of a longer body.
const LARGE_READ: usize = 16 * 1024;

pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(super) struct Connection {
    transport: Transport,
    /// Read and not yet taken.
    buffer: BytesMut,
    out: Outgoing,
    answer: Stage,
    /// Of an answer's head, and of its trailers.
    longest: usize,
    /// It has brought an answer before this request.
    was_used: bool,
    /// Bytes of this request's answer.
    read: u64,
}

/// A request on its way out.
#[derive(Default)]
struct Outgoing {
    head: Vec<u8>,
    body: Bytes,
    /// Of the head.
    sent: usize,
    written: u64,
    is_flushed: bool,
    /// Why the rest cannot be sent.
    failed: Option<String>,
}

enum Stage {
    /// Nothing is asked, or nothing is answered yet.
    None,
    Coming {
        left: Left,
        keeps: bool,
    },
}

/// Why there is no answer, and what the upstream can have seen of the request.
pub(super) struct NoAnswer {
    pub(super) nothing_written: bool,
    /// The connection had served before, and ended without a byte of an answer to this request.
    pub(super) was_stale: bool,
    pub(super) detail: String,
}

impl Connection {
    pub(super) fn new(transport: Transport, longest: usize) -> Box<Self> {
        Box::new(Self {
            transport,
            buffer: BytesMut::new(),
            out: Outgoing::default(),
            answer: Stage::None,
            longest,
            was_used: false,
            read: 0,
        })
    }

    /// Room for a request's head: what the last one took.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        &mut self.out.head
    }

    /// Sends the head that was written into `head()`, and the body; ends when the answer's head has come. The caller holds
    /// the deadline; a connection whose request was given up is of no more use.
    pub(super) async fn ask(&mut self, body: Bytes, method: &Method) -> Result<Head, NoAnswer> {
        let head = std::mem::take(&mut self.out.head);
        self.out = Outgoing { head, body, ..Outgoing::default() };
        (self.answer, self.read) = (Stage::None, 0);
        threads::behind_others().await;
        let answered = poll_fn(|cx| self.poll_head(cx, method)).await;
        answered.map_err(|detail| NoAnswer {
            nothing_written: self.out.written == 0,
            was_stale: self.was_used && self.read == 0,
            detail,
        })
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, method: &Method) -> Poll<Result<Head, String>> {
        self.send(cx);
        loop {
            if !self.buffer.is_empty()
                && let Some(begun) = wire::take_head(&mut self.buffer, method, self.longest)?
            {
                self.answer = Stage::Coming { left: begun.left, keeps: begun.keeps };
                return Poll::Ready(Ok(begun.head));
            }
            match self.poll_read(cx, READ_AT_ONCE) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.failed("the connection was closed"))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(&error.to_string()))),
                // Who cannot take the request may have said why before it closed; it has not.
                Poll::Pending if self.out.failed.is_some() => return Poll::Ready(Err(self.failed("it takes no more"))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn failed(&mut self, reading: &str) -> String {
        match self.out.failed.take() {
            Some(sending) => format!("{sending}; {reading}"),
            None => format!("{reading} before the answer's head was whole"),
        }
    }

    /// As far as it goes now; the rest goes on whenever somebody waits for the answer.
    fn send(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            self.out.failed = Some(format!("sending: {error}"));
            self.out.body = Bytes::new();
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Outgoing { head, body, sent, written, is_flushed, failed } = &mut self.out;
        if failed.is_some() || *is_flushed {
            return Poll::Ready(Ok(()));
        }
        let transport = &mut self.transport;
        loop {
            let rest = head.get(*sent..).unwrap_or_default();
            let count = match (rest.is_empty(), body.is_empty()) {
                (true, true) => break,
                (false, false) => ready!(
                    Pin::new(&mut *transport).poll_write_vectored(cx, &[IoSlice::new(rest), IoSlice::new(body)])
                )?,
                (false, true) => ready!(Pin::new(&mut *transport).poll_write(cx, rest))?,
                (true, false) => ready!(Pin::new(&mut *transport).poll_write(cx, body))?,
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count as u64;
            let of_head = count.min(rest.len());
            *sent += of_head;
            body.advance(count - of_head);
        }
        // An empty rest would hold on to the whole of it for as long as the connection rests.
        *body = Bytes::new();
        ready!(Pin::new(transport).poll_flush(cx))?;
        *is_flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.buffer.reserve(room);
        let count = ready!(pin!(self.transport.read_buf(&mut self.buffer)).poll(cx))?;
        self.read += count as u64;
        Poll::Ready(Ok(count))
    }

    /// The next of the answer's body; None: it has ended cleanly.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        self.send(cx);
        loop {
            let Stage::Coming { left, .. } = &mut self.answer else { return Poll::Ready(None) };
            match left.take(&mut self.buffer, self.longest) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::Nothing) => {}
                Err(error) => return Poll::Ready(Some(Err(error.to_owned()))),
            }
            let until_close = *left == Left::UntilClose;
            match ready!(self.poll_read(cx, LARGE_READ)) {
                Ok(0) if until_close => {
                    self.answer = Stage::Coming { left: Left::Length(0), keeps: false };
                }
                Ok(0) => return Poll::Ready(Some(Err("the connection was closed".to_owned()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.to_string()))),
            }
        }
    }

    /// The answer's body has ended, as far as is known without reading on.
    pub(super) fn is_end(&self) -> bool {
        matches!(&self.answer, Stage::Coming { left, .. } if left.is_over())
    }

    /// What is left of the answer's body, where that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match &self.answer {
            Stage::None => None,
            Stage::Coming { left, .. } => left.length(),
        }
    }

    /// Whether another request may follow the one that was answered; if so, it is ready for it.
    pub(super) fn comes_to_rest(&mut self) -> bool {
        let keeps = matches!(&self.answer, Stage::Coming { left, keeps: true } if left.is_over());
        self.was_used = true;
        keeps && self.buffer.is_empty() && self.out.is_flushed && self.out.failed.is_none()
    }

    /// Nothing was heard of the upstream since: neither its end nor what nobody asked for. `cx` is told of either.
    pub(super) fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        Pin::new(&mut self.transport).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}
