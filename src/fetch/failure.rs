//! Why a document could not be had.
//!
//! Invariant: a failure names the step and never what the other side wrote.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum FetchError {
    #[error("the url may not be fetched: {0}")]
    Url(&'static str),
    #[error("resolving failed: {0}")]
    Resolve(String),
    #[error(
        "the name resolves to no address that may be reached; an internal server's belongs in fetch.allow_addresses"
    )]
    Address,
    #[error("connecting failed: {0}")]
    Connect(String),
    #[error("the TLS handshake failed: {0}")]
    Tls(String),
    #[error("no whole answer in time")]
    TimedOut,
    #[error("the answer was a redirect, and none is followed")]
    Redirect,
    #[error("the answer's status was {0}")]
    Status(u16),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer could not be read: {0}")]
    Answer(String),
    #[error("too many urls that were never seen before are being asked for")]
    Crowded,
    #[error("it failed less than a minute ago and is not tried again yet")]
    TooSoon,
}

impl FetchError {
    /// The metric's `result`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Url(_) => "refused_url",
            Self::Resolve(_) => "resolve_error",
            Self::Address => "refused_address",
            Self::Connect(_) => "connect_error",
            Self::Tls(_) => "tls_error",
            Self::TimedOut => "timeout",
            Self::Redirect => "redirect",
            Self::Status(_) => "bad_status",
            Self::TooLarge(_) => "too_large",
            Self::Answer(_) => "bad_answer",
            Self::Crowded => "crowded",
            Self::TooSoon => "too_soon",
        }
    }
}
