//! Why a parcel did not arrive, and whose fault that is.
//!
//! Invariant: a detail names the upstream's authority and the cause, never a header, a body or a path.

use std::error::Error;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Ours to wait: as many requests are in flight as may be, and none ended in time. Nothing was sent.
    Busy,
    /// The upstream's: no url could be reached. Nothing was sent.
    Unavailable,
    /// The upstream's: it was late. It may have done the work.
    TimedOut,
    /// The upstream's: it closed, reset or did not speak HTTP. It may have done the work.
    Broken,
    /// Nobody's: it is larger than the broker takes. Nothing was sent, and sending it again would be no use.
    TooLarge,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SendError {
    pub(crate) fault: Fault,
    /// For the operator's log.
    pub(crate) detail: String,
}

impl SendError {
    pub(super) fn new(fault: Fault, who: &str, what: &str) -> Self {
        Self { fault, detail: format!("{who}: {what}") }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for SendError {}

/// An error with its sources: hyper's own sentence says only in which step it failed.
pub(crate) fn cause(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    // What rustls calls an answer that is none of TLS.
    if text.contains("InvalidContentType") {
        text.push_str("; does this port speak TLS?");
    }
    text
}
