//! Public keys by their ids, from a list that the sender publishes: GitHub's, or a set of JSON Web Keys.
//!
//! Invariant: the list's url is the configuration's; a request says only which of its keys it means. A list that lacks
//! the key is asked for anew when it is older than a minute, so that a rotation is noticed and a stranger's invented ids
//! cost one fetch a minute.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::Fault;
use super::proof::{Failure, Question};
use super::public_key::{KeySet, Listed, PublicKey};
use crate::fetched::{Lookup, NamedBy, Wanted};
use crate::refusal::Refusal;

const OLD: Duration = Duration::from_secs(60);
const MOST_KEYS: usize = 256;

const UNREADABLE: Fault =
    Fault { refusal: Refusal::KeyUnavailable, note: "what stands under keys_url is no list of keys" };
const UNAVAILABLE: Fault = Fault { refusal: Refusal::KeyUnavailable, note: "the list of keys could not be fetched" };
const UNKNOWN: Fault = Fault { refusal: Refusal::UntrustedKey, note: "the sender's list has no key of this id" };

/// GitHub's form.
#[derive(Deserialize)]
struct Published {
    public_keys: Vec<PublishedKey>,
}

#[derive(Deserialize)]
struct PublishedKey {
    key_identifier: String,
    key: String,
}

/// The list's keys of this id; never empty.
pub(super) fn named(question: &Question<'_>, url: &Arc<str>, id: &str) -> Result<Vec<Listed>, Failure> {
    let document = match question.library.look_up(url) {
        Lookup::Here(document) => document,
        Lookup::Missing => {
            return Err(Failure::wanting(Wanted {
                url: url.clone(),
                newer_than: None,
                named_by: NamedBy::Configuration,
            }));
        }
        Lookup::Unavailable => return Err(UNAVAILABLE.into()),
    };
    let list = document.read_as(read);
    let named = list.iter().flat_map(|list| list.iter()).filter(|listed| listed.id.as_deref() == Some(id));
    let named: Vec<_> = named.cloned().collect();
    if !named.is_empty() {
        return Ok(named);
    }
    // It may be a new key; or what was read is no list, but a server's apology with status 200.
    if question.now > document.fetched_at.after(OLD) {
        return Err(Failure::wanting(Wanted {
            url: url.clone(),
            newer_than: Some(document.fetched_at),
            named_by: NamedBy::Configuration,
        }));
    }
    Err(if list.is_some() { UNKNOWN } else { UNREADABLE }.into())
}

/// Keys that cannot be read are passed over.
fn read(text: &[u8]) -> Option<Vec<Listed>> {
    let listed = |id: &str, key: PublicKey| Listed { id: Some(id.into()), key, seed: None };
    if let Ok(Published { public_keys }) = serde_json::from_slice(text) {
        let keys = public_keys.iter().take(MOST_KEYS).filter_map(|published| {
            Some(listed(&published.key_identifier, PublicKey::from_text(published.key.as_bytes()).ok()?))
        });
        return Some(keys.collect());
    }
    let set = KeySet::from_jwks(text).ok()?;
    Some(set.keys().iter().filter_map(|key| Some(listed(key.id.as_deref()?, key.key.clone()))).collect())
}
