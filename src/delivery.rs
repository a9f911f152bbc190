//! One inbound request, whole and unjudged.
//!
//! Invariant: `body` is the bytes as they came off the wire, `path` and `query` are as sent (nothing decoded), and
//! `headers` are the sender's own, duplicates kept. Nothing here has been believed yet.

use crate::fields::Fields;
use bytes::Bytes;
use http::Method;

#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) method: Method,
    /// `https` or `http`: how the sender reached us, as far as we can tell.
    pub(crate) scheme: &'static str,
    /// The host (and port, if any) the sender named: `hooks.example.com:8443`.
    pub(crate) authority: String,
    /// As sent, undecoded; begins with `/`.
    pub(crate) path: String,
    /// Behind the `?`, as sent, undecoded; `None` where there was no `?`.
    pub(crate) query: Option<String>,
    pub(crate) headers: Fields,
    pub(crate) body: Bytes,
}
