//! Reading the whole body under a cap, a deadline and a budget.
//!
//! Invariant: nothing is allocated for what was only declared; what is allocated is counted before it is, spare room
//! included; and a body always ends, because its deadline follows from its length: ten seconds and what `min_body_rate`
//! needs, at most `body_timeout`. Not counted: what a connection has read and not yet handed over, which `server` bounds,
//! and the old room of a body that grows, for as long as it takes to copy it.

use super::budget::Share;
use crate::clock;
use crate::refusal::Refusal;
use crate::server::{Body, BodyError};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use std::time::Duration;
use tokio::time::{timeout, timeout_at};

/// What a body of any length gets before its rate counts: a slow link's handshake, a cold sender.
const GRACE: Duration = Duration::from_secs(10);

/// As much of a refused body as a client may have sent before it hears the answer: a stream's first window.
const REFUSED_BODY_BYTES: usize = 64 * 1024;
const REFUSED_BODY_TIME: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bytes a second.
    pub(crate) min_rate: u64,
    pub(crate) longest: Duration,
}

impl Pace {
    fn allowed(self, length: u64) -> Duration {
        let needed = Duration::from_secs_f64(length as f64 / self.min_rate.max(1) as f64);
        (GRACE + needed).min(self.longest)
    }
}

/// What the head says of the body's length: more than `most` is refused before a byte is read.
pub(crate) fn declared_too_large(body: &Body, most: u64) -> bool {
    body.size_hint().lower() > most
}

pub(crate) async fn read(body: &mut Body, most: u64, pace: Pace, share: &Share) -> Result<Bytes, Refusal> {
    let started = clock::steady();
    let declared = body.size_hint().exact();
    // No body has more room than it can use: what it says it is, or what it may be.
    let ceiling = usize::try_from(declared.unwrap_or(most).min(most)).unwrap_or(usize::MAX);
    let mut first = Bytes::new();
    let mut joined: Vec<u8> = Vec::new();
    let mut counted = 0;
    let mut length = 0_u64;
    loop {
        let deadline = started + pace.allowed(declared.unwrap_or(length));
        let frame = tokio::select! {
            frame = timeout_at(deadline, body.frame()) => frame,
            () = share.cut() => return Err(Refusal::BufferFull),
        };
        let data = match frame {
            Err(_) => return Err(Refusal::BodyTimeout),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "the body ended early");
                return Err(if matches!(error, BodyError::Malformed(_)) {
                    Refusal::Malformed
                } else {
                    Refusal::ClientGone
                });
            }
            // Trailers are dropped: nothing that comes behind the body is part of what was signed.
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(_) => continue,
            },
        };
        length += data.len() as u64;
        if length > most {
            return Err(Refusal::TooLarge);
        }
        // Most bodies are one frame, and are kept as they came.
        if length == data.len() as u64 && declared == Some(length) && body.is_end_stream() {
            share.hold_whole(data.len()).map_err(|_| Refusal::BufferFull)?;
            return Ok(data);
        }
        if first.is_empty() && joined.is_empty() {
            share.grow(data.len()).map_err(|_| Refusal::BufferFull)?;
            counted = data.len();
            first = data;
            continue;
        }
        let needed = first.len() + joined.len() + data.len();
        if needed > joined.capacity() {
            share.grow(needed - counted).map_err(|_| Refusal::BufferFull)?;
            // Four times as much each time, so that a body is not copied at every frame; nobody is cut for that.
            let wished = joined.capacity().saturating_mul(4).min(ceiling);
            let spare = wished.saturating_sub(needed);
            counted = if share.grow_if_free(spare) { needed + spare } else { needed };
            joined.reserve_exact(counted - joined.len());
            joined.extend_from_slice(&std::mem::take(&mut first));
        }
        joined.extend_from_slice(&data);
    }
    share.finish().map_err(|_| Refusal::BufferFull)?;
    Ok(if joined.is_empty() { first } else { Bytes::from(joined) })
}

/// In HTTP/2, lets a body that was refused unread come to its end, for a moment and up to a bound.
///
/// Dropped at once, its stream is reset right behind the answer. RFC 9113 §8.1 allows that (NO_ERROR), but clients in
/// use, curl 7.88 among them, take the reset for a failure and throw the answer away. In HTTP/1 there is no such reset.
pub(crate) fn let_end(mut body: Body) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(timeout(REFUSED_BODY_TIME, async move {
        let mut length = 0;
        while length < REFUSED_BODY_BYTES {
            match body.frame().await {
                Some(Ok(frame)) => length += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) | None => return,
            }
        }
        // Not dropped yet: that would reset the stream under a client that is still sending. It is read no further, so
        // the client runs out of window, with the answer already in its hands.
        std::future::pending::<()>().await;
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bodys_deadline_follows_from_its_length() {
        let pace = Pace { min_rate: 64 * 1024, longest: Duration::from_secs(480) };
        assert_eq!(pace.allowed(0), Duration::from_secs(10));
        assert_eq!(pace.allowed(1024 * 1024), Duration::from_secs(26));
        assert_eq!(pace.allowed(u64::MAX), Duration::from_secs(480));
    }
}
