//! What is known of documents that only the network has: key sets, certificates, public keys.
//!
//! Ground floor, so that verification stays pure: it looks a document up and never waits; whoever fetches is elsewhere.
//! Invariant: a URL is looked up only after the source's own rule allowed it.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::clock::UnixMillis;

/// What was fetched so far.
pub(crate) trait Library: Send + Sync {
    /// `url`: whole and normalised, as the rule that allowed it wrote it.
    fn look_up(&self, url: &str) -> Lookup;
}

#[derive(Clone, Debug)]
pub(crate) enum Lookup {
    Here(Arc<Document>),
    /// Worth fetching.
    Missing,
    /// Fetching failed a moment ago, and is not tried again yet.
    Unavailable,
}

/// A document that a proof needs, and that is not here or too old.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    pub(crate) url: Arc<str>,
    /// A copy fetched at or before this time will not do: it was looked into, and lacks the key.
    pub(crate) newer_than: Option<UnixMillis>,
    /// Who wrote the url. What strangers name shares its room and its turns with nothing but its like.
    pub(crate) named_by: NamedBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum NamedBy {
    /// A request, within the platform's rule.
    Request,
    Configuration,
}

/// One document as it was fetched, and what it was read as.
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) fetched_at: UnixMillis,
    read: OnceLock<Option<Arc<dyn Any + Send + Sync>>>,
}

impl Document {
    pub(crate) fn new(bytes: Bytes, fetched_at: UnixMillis) -> Self {
        Self { bytes, fetched_at, read: OnceLock::new() }
    }

    /// What `read` makes of the bytes, made once. `None`: they are not that, or were first read as something else.
    pub(crate) fn read_as<T: Send + Sync + 'static>(&self, read: impl FnOnce(&[u8]) -> Option<T>) -> Option<Arc<T>> {
        let kept = self.read.get_or_init(|| Some(Arc::new(read(&self.bytes)?) as Arc<dyn Any + Send + Sync>));
        Arc::downcast(kept.clone()?).ok()
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("bytes", &self.bytes.len()).field("fetched_at", &self.fetched_at).finish()
    }
}

/// For whoever fetches nothing.
pub(crate) struct NoLibrary;

impl Library for NoLibrary {
    fn look_up(&self, _url: &str) -> Lookup {
        Lookup::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_once_and_as_one_thing() {
        let document = Document::new(Bytes::from_static(b"17"), UnixMillis::from_secs(1));
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u32>().ok();
        assert_eq!(document.read_as(number).as_deref(), Some(&17));
        assert_eq!(document.read_as(|_| Some(18_u32)).as_deref(), Some(&17));
        assert!(document.read_as(|_| Some("seventeen")).is_none());
    }
}
