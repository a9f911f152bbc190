//! Reading the whole body under a cap, a deadline and a budget.
//!
//! Invariant: nothing is allocated for what was only declared; what has come is counted before it is kept; and a body
//! always ends, because its deadline follows from its length: ten seconds and what `min_body_rate` needs, at most
//! `body_timeout`.

use super::budget::Share;
use crate::refusal::Refusal;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

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
pub(crate) fn declared_too_large(body: &Incoming, most: u64) -> bool {
    body.size_hint().lower() > most
}

pub(crate) async fn read(body: &mut Incoming, most: u64, pace: Pace, share: &Share) -> Result<Bytes, Refusal> {
    let started = Instant::now();
    let declared = body.size_hint().exact();
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
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
                return Err(if is_malformed(&error) { Refusal::Malformed } else { Refusal::ClientGone });
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
        share.grow(data.len()).map_err(|_| Refusal::BufferFull)?;
        match &mut rest {
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::with_capacity(first.len() + data.len());
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                rest = Some(joined);
            }
            Some(joined) => joined.extend_from_slice(&data),
        }
    }
    share.finish();
    Ok(rest.map_or(first, BytesMut::freeze))
}

/// In HTTP/2, lets a body that was refused unread come to its end, for a moment and up to a bound.
///
/// Dropped at once, its stream is reset right behind the answer. RFC 9113 §8.1 allows that (NO_ERROR), but clients in
/// use, curl 7.88 among them, take the reset for a failure and throw the answer away. In HTTP/1 there is no such reset.
pub(crate) fn let_end(mut body: Incoming) {
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
    }));
}

/// A chunk that is none, told from a sender that left: hyper says both with an `io::Error` as the cause.
fn is_malformed(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData))
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
