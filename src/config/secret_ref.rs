//! Where a secret comes from: `{ env = "X" }`, `{ file = "p" }`, `{ credential = "name" }` or, spelled out,
//! `{ value = "…" }`.
//!
//! Invariant: a bare string is never a secret, so that none lands in a repository by accident; a reference that leads
//! nowhere is an error and never an empty key.

use super::Environment;
use super::node::{Kind, Node};
use crate::secret::Secret;
use std::path::{Path, PathBuf};

/// A key file larger than this is not a key.
const LARGEST_SECRET: u64 = 1024 * 1024;

/// A secret and the name under which logs and metrics may speak of it.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// `env:GITHUB_SECRET`, `file:keys/x`, `credential:x`, or `value` (never the value).
    pub(crate) name: String,
    /// Under which a sender names this one among several: a key id, a `kid`, a tenant.
    pub(crate) id: Option<String>,
    /// What it signs with, where a source's keys differ in that.
    pub(crate) algorithm: Option<String>,
    pub(crate) secret: Secret,
}

/// Resolves a reference. The error is (what is wrong, what to try).
pub(super) fn resolve(node: &Node, base: &Path, environment: Environment<'_>) -> Result<Named, (String, String)> {
    let forms = r#"{ env = "NAME" }, { file = "path" }, { credential = "name" } or { value = "…" }"#.to_owned();
    let table = match &node.kind {
        Kind::Table(table) => table,
        Kind::Text(_) => {
            let what = "a secret is written as a reference, so that none lands in a repository by accident";
            return Err((what.to_owned(), forms));
        }
        other => return Err((format!("is {}, not a secret reference", other.name()), forms)),
    };
    let word = |key: &str, example: &str| match table.get(key).map(|node| &node.kind) {
        None => Ok(None),
        Some(Kind::Text(word)) if !word.is_empty() => Ok(Some(word.clone())),
        Some(_) => Err((format!("`{key}` is not a name"), example.to_owned())),
    };
    let id = word("id", r#"{ file = "key.pem", id = "k1" }"#)?;
    let algorithm = word("algorithm", r#"{ file = "key.pem", algorithm = "ed25519" }"#)?;
    let mut entries = table.iter().filter(|(key, _)| !["id", "algorithm"].contains(&key.as_str()));
    let (Some((kind, value)), None) = (entries.next(), entries.next()) else {
        return Err(("a secret reference has exactly one of env, file, credential and value".to_owned(), forms));
    };
    let Kind::Text(text) = &value.kind else {
        return Err((format!("`{kind}` is {}, not a string", value.kind.name()), forms));
    };
    let (name, bytes) = match kind.as_str() {
        "env" => {
            let found = environment(text).ok_or_else(|| {
                (
                    format!("environment variable {text} is not set"),
                    format!(r#"export {text}, or use {{ file = "path" }}"#),
                )
            })?;
            (format!("env:{text}"), found.into_encoded_bytes())
        }
        "file" => (format!("file:{text}"), read(&base.join(text))?),
        "credential" => {
            if text.is_empty() || text.contains('/') || text.starts_with('.') {
                return Err((
                    format!("`{text}` is no credential name"),
                    "the ID of LoadCredential=, without a path".to_owned(),
                ));
            }
            let folder = environment("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                let what = "CREDENTIALS_DIRECTORY is not set: not started by systemd with LoadCredential=";
                (what.to_owned(), format!("add LoadCredential={text}:/path to the unit"))
            })?;
            (format!("credential:{text}"), read(&PathBuf::from(folder).join(text))?)
        }
        "value" => ("value".to_owned(), text.clone().into_bytes()),
        other => return Err((format!("`{other}` is not a kind of secret reference"), forms)),
    };
    if bytes.is_empty() {
        return Err((format!("the secret of {name} is empty"), "an empty key would let anyone sign".to_owned()));
    }
    Ok(Named { name, id, algorithm, secret: Secret::new(bytes) })
}

/// A file's bytes without the newline that editors put at its end.
fn read(path: &Path) -> Result<Vec<u8>, (String, String)> {
    let fail = |error: std::io::Error| {
        (format!("{}: {error}", path.display()), "relative paths are relative to the configuration file".to_owned())
    };
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > LARGEST_SECRET {
        return Err((
            format!("{} has {length} bytes; a secret has at most {LARGEST_SECRET}", path.display()),
            String::new(),
        ));
    }
    let mut bytes = std::fs::read(path).map_err(fail)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(bytes)
}
