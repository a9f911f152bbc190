//! Which of the listed keys does the sender say it used, and which algorithm?
//!
//! Invariant: what a message says can only narrow. An id picks among the keys that the configuration lists, and a named
//! algorithm is compared with the configured one and never followed.

use std::sync::Arc;

use super::fields::Json;
use super::presented::{self, Locator, Place};
use super::{BuildError, Fault};
use crate::delivery::Delivery;
use crate::refusal::Refusal;

#[derive(Clone, Debug, Default)]
pub(crate) struct KeyChoice {
    /// Where the id of the key stands. Without: every key is tried.
    pub(crate) id: Option<Stated>,
    /// The sender's list of keys, for ids that no listed key has.
    pub(crate) url: Option<Arc<str>>,
    /// What the sender says of its algorithm, and may say.
    pub(crate) declared: Vec<Declared>,
    /// How entries of a signature list begin that another algorithm made. They are passed over, unless nothing else is
    /// there: that is an attempt to choose for us.
    pub(crate) other_prefixes: Vec<String>,
}

/// A statement beside the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stated {
    At(Locator),
    /// A JSON pointer into the JSON that holds the signature too.
    BesideSignature(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) at: Stated,
    pub(crate) one_of: Vec<String>,
}

impl KeyChoice {
    pub(super) fn pointers(&self) -> impl Iterator<Item = &str> {
        self.stated().filter_map(|stated| match stated {
            Stated::At(Locator::Json(pointer)) => Some(pointer.as_str()),
            Stated::At(_) | Stated::BesideSignature(_) => None,
        })
    }

    pub(super) fn check(&self, place: &Place) -> Result<(), BuildError> {
        let beside = self.stated().any(|stated| matches!(stated, Stated::BesideSignature(_)));
        match place {
            Place::HeaderJson { .. } => Ok(()),
            _ if beside => Err(BuildError::NothingBesideTheSignature),
            _ => Ok(()),
        }
    }

    fn stated(&self) -> impl Iterator<Item = &Stated> {
        self.id.iter().chain(self.declared.iter().map(|declared| &declared.at))
    }

    /// The id of the key to use; `None`: any.
    pub(super) fn id(&self, place: &Place, delivery: &Delivery, json: &Json) -> Result<Option<String>, Fault> {
        let Some(stated) = &self.id else { return Ok(None) };
        let note = "the sender does not say which key it used";
        match stated.read(place, delivery, json)? {
            Some(id) => Ok(Some(id)),
            None => Err(Fault { refusal: Refusal::MissingSignature, note }),
        }
    }

    /// Does the sender speak of an algorithm that is not the configured one? What it leaves unsaid is no matter.
    pub(super) fn algorithm_fault(&self, place: &Place, delivery: &Delivery, json: &Json) -> Option<Fault> {
        self.declared.iter().find_map(|declared| match declared.at.read(place, delivery, json) {
            Ok(Some(said)) if !declared.one_of.contains(&said) => Some(NOT_ALLOWED),
            Ok(_) | Err(Fault { refusal: Refusal::MissingSignature, .. }) => None,
            Err(fault) => Some(fault),
        })
    }

    /// Of a signature's text in which no signature of ours was found.
    pub(super) fn is_of_another_algorithm(&self, text: &str) -> bool {
        let mut items = text.split([' ', ',']).map(str::trim).filter(|item| !item.is_empty());
        let begins =
            |item: &str| self.other_prefixes.iter().any(|prefix| item.starts_with(prefix.trim_end_matches(',')));
        !self.other_prefixes.is_empty() && items.next().is_some_and(begins)
    }
}

pub(super) const NOT_ALLOWED: Fault = Fault {
    refusal: Refusal::AlgorithmNotAllowed,
    note: "the sender names an algorithm that the configuration does not allow",
};

impl Stated {
    fn read(&self, place: &Place, delivery: &Delivery, json: &Json) -> Result<Option<String>, Fault> {
        match self {
            Self::At(locator) => locator.find(delivery, json, None),
            Self::BesideSignature(pointer) => match place {
                Place::HeaderJson { names, .. } => presented::header_json(delivery, names, pointer).map(Some),
                Place::Header(_) | Place::EveryHeader(_) | Place::Query(_) | Place::Form(_) | Place::Json(_) => {
                    Ok(None)
                }
            },
        }
    }
}
