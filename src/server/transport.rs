//! The bytes of one connection, in the clear or under TLS, watched on their way.
//!
//! Invariants: bytes that were read to find something out (a PROXY header, the protocol) are read again by whoever comes
//! next, exactly once; an answer that was cut ends in a reset, never in an end that could be taken for whole; a
//! connection that ends well says so (close_notify, FIN) before it goes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::activity::Activity;
use super::frames::Frames;
use super::records::Records;

pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// For how long a peer that is still sending is listened to after our last word. Closing while unread bytes arrive
/// makes the kernel reset the connection, and the reset can overtake the answer (a 413, 431 or 408) in the peer's
/// buffers. A peer that reads its answer closes within a round trip.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// A TCP stream and what was already read of it.
pub(super) struct Socket {
    tcp: TcpStream,
    /// To be read again, from the front. Empty, without an allocation, whenever a connection waits for more.
    replay: Vec<u8>,
    /// Of `replay`.
    replayed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, replay: Vec::new(), replayed: 0 }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.replay.is_empty() { self.tcp.poll_read_ready(cx).map(drop) } else { Poll::Ready(()) }
    }

    /// Gives back what was read too far. Nothing may be waiting to be read again.
    pub(super) fn replay(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.replay.is_empty(), "bytes given back would come out of order");
        self.replay = bytes;
    }

    /// In the clear there is no ALPN: HTTP/2 is known by its preface, which no HTTP/1 request begins with.
    ///
    /// Returns when the first byte came too; `None` if the peer left before. hyper-util's automatic choice waits
    /// for these bytes without a deadline; the caller sets two here, one for the first byte and one for the rest.
    pub(super) async fn first_byte(&mut self) -> io::Result<bool> {
        if !self.replay.is_empty() {
            return Ok(true);
        }
        let mut bytes = Vec::with_capacity(HTTP2_PREFACE.len());
        let read = (&mut self.tcp).take(HTTP2_PREFACE.len() as u64).read_buf(&mut bytes).await?;
        self.replay = bytes;
        Ok(read > 0)
    }

    /// Reads on until it is clear what is spoken; a peer that stops within what might be a preface is told apart by the
    /// caller's deadline. Safe to cancel: what was read is kept.
    pub(super) async fn protocol(&mut self) -> io::Result<Protocol> {
        loop {
            let common = self.replay.len().min(HTTP2_PREFACE.len());
            if self.replay[..common] != HTTP2_PREFACE[..common] {
                return Ok(Protocol::Http1);
            }
            if common == HTTP2_PREFACE.len() {
                return Ok(Protocol::Http2);
            }
            let room = (HTTP2_PREFACE.len() - common) as u64;
            if (&mut self.tcp).take(room).read_buf(&mut self.replay).await? == 0 {
                // HTTP/1 then says what is wrong with it.
                return Ok(Protocol::Http1);
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        let rest = self.replay.get(self.replayed..).unwrap_or_default();
        let taken = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..taken).unwrap_or_default());
        self.replayed += taken;
        if self.replayed == self.replay.len() {
            // Frees it.
            (self.replay, self.replayed) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<Records<Socket>>),
}

impl Transport {
    fn socket(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(records) => records.io(),
        }
    }
}

/// What HTTP reads from and writes to.
pub(super) struct Watched {
    transport: Transport,
    activity: Arc<Activity>,
    /// HTTP/2 only.
    frames: Option<Frames>,
    is_shut: bool,
    /// Boxed, as nearly all connections never need it.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(transport: Transport, protocol: Protocol, activity: Arc<Activity>) -> Self {
        let frames = (protocol == Protocol::Http2).then(Frames::new);
        Self { transport, activity, frames, is_shut: false, lingering: None }
    }

    /// Ready when a read would find something, or the end, or only may: it takes no buffer to wait.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What TLS has decrypted already, or the end that it was told of, the socket will not tell again.
        if let Transport::Tls(records) = &self.transport
            && records.is_readable()
        {
            return Poll::Ready(());
        }
        // An error is found by the read.
        self.transport.socket().poll_readable(cx)
    }

    /// A request is waited for.
    pub(super) fn waits(&mut self, cx: &mut Context<'_>) {
        if let Transport::Tls(records) = &mut self.transport {
            records.waits(cx);
        }
    }

    /// The connection is idle: no room is kept.
    pub(super) fn rest(&mut self) {
        if let Transport::Tls(records) = &mut self.transport {
            records.rest();
        }
    }

    fn wrote<T>(&self, written: &Poll<io::Result<T>>) {
        self.activity.sent(written.is_ready());
        // In HTTP/2 pings are written too, and prove nothing.
        if written.is_ready() && self.frames.is_none() {
            self.activity.progressed();
        }
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        // Beneath TLS: what comes is thrown away, and need not be decrypted first.
        let tcp = &mut self.transport.socket().tcp;
        let mut scratch = [0; 4096];
        loop {
            // A peer that sends without a pause would keep the timer from being polled.
            if Instant::now() >= timer.deadline() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *tcp).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return timer.as_mut().poll(cx),
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let (before, had_room) = (buf.filled().len(), buf.remaining() > 0);
        ready!(match &mut me.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Transport::Tls(records) => Pin::new(&mut **records).poll_read(cx, buf),
        })?;
        let came = &buf.filled()[before..];
        if came.is_empty() && had_room {
            me.activity.peer_has_ended();
        } else if !came.is_empty() {
            match &mut me.frames {
                None => me.activity.received(),
                Some(frames) => me.activity.received_frames(frames.follow(came)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Transport::Tls(records) => Pin::new(&mut **records).poll_write(cx, buf),
        };
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Transport::Tls(records) => Pin::new(&mut **records).poll_write_vectored(cx, bufs),
        };
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(socket) => socket.is_write_vectored(),
            Transport::Tls(records) => records.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(records) => Pin::new(&mut **records).poll_flush(cx),
        };
        // Not `wrote`: hyper flushes when there is nothing to write, too.
        self.activity.sent(flushed.is_ready());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if !me.is_shut {
            ready!(match &mut me.transport {
                Transport::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
                Transport::Tls(records) => Pin::new(&mut **records).poll_shutdown(cx),
            })?;
            me.is_shut = true;
        }
        if me.activity.may_have_unread() {
            ready!(me.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // HTTP/2 resets the stream. In HTTP/1 only the chunked and the declared length tell a cut answer from a whole one,
        // and HTTP/1.0 has neither.
        if self.frames.is_none() && self.activity.is_cut() {
            // Failing means that the connection is gone already.
            let _ = self.transport.socket().tcp.set_zero_linger();
        }
    }
}
