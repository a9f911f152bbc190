//! What is wrong with a configuration, where, and what to try.
//!
//! Invariant: a problem never repeats a value that could be a secret: it names the key, not what stands behind it.

use std::fmt;
use std::sync::Arc;

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) file: Arc<str>,
    /// From 1; 0 where the whole file is meant.
    pub(crate) line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// The configuration is unusable.
    Error,
    /// It loads, and is probably not what was meant.
    Warning,
    /// It loads as meant; this is what it does not protect against.
    Note,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) at: Option<At>,
    /// `sources.github.secrets`; empty where no key is meant.
    pub(crate) key: String,
    pub(crate) what: String,
    /// What to try; empty where `what` says it all.
    pub(crate) hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some(At { file, line: 0 }) => write!(f, "{file}: ")?,
            Some(At { file, line }) => write!(f, "{file}:{line}: ")?,
            None => {}
        }
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
            Severity::Note => "note: ",
        })?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if !self.hint.is_empty() {
            write!(f, "\n    try: {}", self.hint)?;
        }
        Ok(())
    }
}
