//! The two directions of an HTTP/1 connection: what was read and not yet taken, what is to be written.
//!
//! Shared by the connection and the body of the request that is on it, which take turns: the handler that reads the body
//! runs within the connection's own turn. Invariants: what is read ahead is bounded by what a head may be; a body that
//! belongs to an earlier request reads nothing of a later one.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};

use super::request::BodyError;
use super::transport::Watched;
use crate::framing::{Left, Piece};

/// What a request of the usual size fits into, head and body.
const READ_AT_ONCE: usize = 8 * 1024;
/// Of a long body: a TLS record.
const LARGE_READ: usize = 16 * 1024;
/// An answer's data up to this length is written with what stands before it; longer data is not copied.
const COPIED: usize = 4 * 1024;
/// What was written is written over, unless it was a lot.
const KEPT_ROOM: usize = 16 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

pub(super) struct Wire {
    pub(super) io: Watched,
    pub(super) buffer: BytesMut,
    out: Vec<u8>,
    /// Of `out`.
    sent: usize,
    /// Behind `out`.
    data: Bytes,
    is_flushed: bool,
    /// Of the request's body.
    left: Left,
    /// The sender waits for a word before it sends it.
    expects: bool,
    /// Which request on this connection it is.
    number: u64,
    /// So much is read ahead at most: a head, or a body that is no longer.
    longest: usize,
    /// What the last request of this connection took, head and body: the next one is most likely like it.
    usual: usize,
}

impl Wire {
    pub(super) fn new(io: Watched, longest: usize) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            out: Vec::new(),
            sent: 0,
            data: Bytes::new(),
            is_flushed: true,
            left: Left::Length(0),
            expects: false,
            number: 0,
            longest,
            usual: READ_AT_ONCE,
        }
    }

    /// A request's head of so many bytes has been taken off; its number.
    pub(super) fn begin(&mut self, head: usize, left: Left, expects: bool) -> u64 {
        let body =
            left.length().and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= self.longest);
        self.usual = body.map_or(READ_AT_ONCE, |body| READ_AT_ONCE.max(head + body + READ_AT_ONCE / 8));
        (self.left, self.expects) = (left, expects);
        self.number += 1;
        self.number
    }

    /// What is left of that request's body; None: another one is on the wire.
    pub(super) fn left(&self, number: u64) -> Option<&Left> {
        (number == self.number).then_some(&self.left)
    }

    /// Nothing of the request is still to come.
    pub(super) fn is_read(&self) -> bool {
        self.left.is_over()
    }

    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>, number: u64) -> Poll<Option<Result<Bytes, BodyError>>> {
        if number != self.number {
            return Poll::Ready(Some(Err(BodyError::Left)));
        }
        loop {
            if !self.is_gathering() {
                match self.left.take(&mut self.buffer, self.longest) {
                    Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(data))),
                    Ok(Piece::End) => return Poll::Ready(None),
                    Ok(Piece::Nothing) => {}
                    Err(what) => return Poll::Ready(Some(Err(BodyError::Malformed(what)))),
                }
            }
            if std::mem::take(&mut self.expects) {
                self.write(CONTINUE);
            }
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Some(Err(BodyError::Broken(error.into()))));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(BodyError::Left))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(BodyError::Broken(error.into())))),
                // Whoever counts what is held is told before anybody waits.
                Poll::Pending if self.is_gathering() && !self.buffer.is_empty() => {
                    return match self.left.take(&mut self.buffer, self.longest) {
                        Ok(Piece::Data(data)) => Poll::Ready(Some(Ok(data))),
                        Ok(Piece::Nothing | Piece::End) | Err(_) => Poll::Pending,
                    };
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// A short body of which more has come is given away in one piece, as it lies there: nobody has to join it.
    fn is_gathering(&self) -> bool {
        let room = self.longest as u64;
        matches!(self.left, Left::Length(length) if length <= room && self.buffer.len() < length as usize)
    }

    /// What has come of the rest of a body that nobody wants is passed over. True: that was all.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        let mut passed = 0;
        // Whoever waits for a word sends nothing, or begins another request.
        while !self.expects && passed <= self.longest {
            match self.left.take(&mut self.buffer, self.longest) {
                Ok(Piece::End) => return true,
                Ok(Piece::Data(data)) => passed += data.len(),
                Ok(Piece::Nothing) => match self.poll_read(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) | Poll::Pending => return false,
                },
                Err(_) => return false,
            }
        }
        false
    }

    /// The number of bytes that came; 0: the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // At rest there is no room, and none is made for what has not come.
        if self.buffer.capacity() == 0 && self.io.poll_readable(cx).is_pending() {
            self.io.waits(cx);
            return Poll::Pending;
        }
        let room = self.room();
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare * 2 < room || (self.buffer.is_empty() && spare < room) {
            // What lies here and nobody else holds any more is used again.
            self.buffer.reserve(room);
        }
        pin!(self.io.read_buf(&mut self.buffer)).poll(cx)
    }

    /// What is declared is made room for as it comes: as much as did already.
    fn room(&self) -> usize {
        match self.left {
            Left::Length(0) if self.buffer.is_empty() => self.usual,
            Left::Length(0) => READ_AT_ONCE,
            Left::Length(length) if length <= self.longest as u64 => {
                let rest = (length as usize).saturating_sub(self.buffer.len());
                rest.clamp(1, READ_AT_ONCE.max(2 * self.buffer.len()))
            }
            Left::Length(_) | Left::Chunked(_) | Left::UntilClose => LARGE_READ,
        }
    }

    /// To be written, behind what is waiting already.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.out().extend_from_slice(bytes);
    }

    /// Where what is to be written next goes; nothing may stand behind it yet.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.data.is_empty(), "data would be overtaken");
        self.is_flushed = false;
        &mut self.out
    }

    /// To be written; no more fits behind it until it has been.
    pub(super) fn write_data(&mut self, data: Bytes) {
        if data.len() <= COPIED {
            self.write(&data);
        } else {
            self.is_flushed = false;
            self.data = data;
        }
    }

    /// Whether more can be put behind what waits.
    pub(super) fn has_room(&self) -> bool {
        self.data.is_empty() && self.out.len() - self.sent <= KEPT_ROOM
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flushed {
            return Poll::Ready(Ok(()));
        }
        loop {
            let rest = self.out.get(self.sent..).unwrap_or_default();
            let io = Pin::new(&mut self.io);
            let count = match (rest.is_empty(), self.data.is_empty()) {
                (true, true) => break,
                (false, true) => ready!(io.poll_write(cx, rest))?,
                (true, false) => ready!(io.poll_write(cx, &self.data))?,
                (false, false) => ready!(io.poll_write_vectored(cx, &[IoSlice::new(rest), IoSlice::new(&self.data)]))?,
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_out = count.min(rest.len());
            self.sent += of_out;
            self.data.advance(count - of_out);
        }
        self.out.clear();
        self.sent = 0;
        if self.out.capacity() > KEPT_ROOM {
            self.out = Vec::new();
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    /// Gives back the memory that only requests need.
    pub(super) fn rest(&mut self) {
        // What was read of a head stays, without the room behind it.
        self.buffer = BytesMut::from(&self.buffer[..]);
        if self.is_flushed {
            self.out = Vec::new();
        }
        self.io.rest();
    }
}
