//! Why does this request not prove itself, and what would make it?
//!
//! The verdict is `Verifier::judge`'s own; the steps are told by the proofs themselves; the hints are found by trying: the
//! same verifier with a changed request, or a verifier rebuilt from the same configuration with one setting changed.
//! Invariant: nothing told here helps to forge. No secret, no whole MAC: an expected one is shown by its first four bytes,
//! and on the command line alone; the message is escaped and cut. And the work is bounded, whatever the request.

mod bodies;
mod headers;
mod hints;
mod json_text;
mod schemes;
mod story;
mod times;
mod urls;
mod veil;

use std::sync::Arc;

use serde_json::json;

use super::Verifier;
use super::fields::Json;
use super::proof::Question;
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::Library;
use crate::refusal::Refusal;
use crate::secret::Secret;

pub(super) use story::tell;
pub(crate) use story::{Step, Story};
use veil::Veil;

/// What is to be explained, and with what.
pub(crate) struct Case<'a> {
    /// The source's name, as the workshop knows it.
    pub(crate) source: &'a str,
    pub(crate) delivery: &'a Delivery,
    pub(crate) now: UnixMillis,
    pub(crate) library: &'a dyn Library,
    pub(crate) workshop: &'a dyn Workshop,
    /// Whoever reads this holds the configuration: the beginning of an expected signature may be shown.
    pub(crate) for_its_owner: bool,
}

/// Verifiers as they would be if one thing in the configuration were another.
pub(crate) trait Workshop {
    /// `None`: with this change the source would not load.
    fn rebuilt(&self, source: &str, change: &Change<'_>) -> Option<Arc<Verifier>>;

    /// The names of all presets.
    fn providers(&self) -> Vec<String>;

    fn other_sources(&self, source: &str) -> Vec<String>;

    /// What the source says under a dotted key, its preset included, where that is a text.
    fn setting(&self, source: &str, key: &str) -> Option<String>;

    /// The source's secrets, so that none is shown. `None`: nobody knows them, and nothing of the request is shown.
    fn secrets(&self, source: &str) -> Option<Vec<Secret>>;
}

/// One thing that is another.
pub(crate) enum Change<'a> {
    /// Dotted keys of the source, and what they would say; `None`: nothing.
    Set(&'a [(&'a str, Option<&'a str>)]),
    /// Another preset, with the same secrets.
    Provider(&'a str),
    /// Every secret of the source, rewritten; `None`: this one stays as it is. Where all stay, nothing was changed.
    Secrets(fn(&str) -> Option<String>),
    /// The secrets of another source.
    SecretsOf(&'a str),
}

/// The configuration cannot be read: nothing is tried but the request itself, and nothing of it is shown.
pub(crate) struct NoWorkshop;

impl Workshop for NoWorkshop {
    fn rebuilt(&self, _source: &str, _change: &Change<'_>) -> Option<Arc<Verifier>> {
        None
    }

    fn providers(&self) -> Vec<String> {
        Vec::new()
    }

    fn other_sources(&self, _source: &str) -> Vec<String> {
        Vec::new()
    }

    fn setting(&self, _source: &str, _key: &str) -> Option<String> {
        None
    }

    fn secrets(&self, _source: &str) -> Option<Vec<Secret>> {
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Refuse,
    /// A handshake, which the gateway answers itself.
    Challenge,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Refuse => "refuse",
            Self::Challenge => "challenge",
        }
    }
}

/// A mistake that explains the refusal: with it undone, the request passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    /// A word for scripts: `body_newline`.
    pub(crate) kind: &'static str,
    pub(crate) says: String,
    pub(crate) try_this: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Explanation {
    pub(crate) verdict: Verdict,
    pub(crate) refusal: Option<Refusal>,
    pub(crate) steps: Vec<Step>,
    pub(crate) hints: Vec<Hint>,
}

impl Verifier {
    pub(crate) fn explain(&self, case: &Case<'_>) -> Explanation {
        let Case { delivery, now, library, .. } = *case;
        let veil = Veil::new(case.workshop.secrets(case.source));
        let mut story = Story::new(case.for_its_owner, veil);
        let json = if self.reads_json { self.pointers.read(&delivery.body) } else { Json::default() };
        let question = Question { delivery, json: &json, public_url: self.public_url.as_deref(), now, library };
        for proof in &self.proofs {
            proof.narrate(&question, &mut story);
        }
        if !self.credentials.is_empty() {
            let names: Vec<_> = self.credentials.names().collect();
            let about = names.join(", ");
            match self.credentials.judge(delivery, &json) {
                Ok(_) => story.good(about, "what was presented is configured"),
                Err(fault) => story.bad(about, fault.note),
            }
        }
        let (verdict, refusal) = match self.judge(delivery.clone(), now, library) {
            Ok(verified) => {
                let position = verified.secrets_used().next();
                if let Some(position) = position {
                    story.good("secret", format!("listed secret {} made it", position + 1));
                }
                if let Some(id) = verified.event_id() {
                    let signed = if verified.event_id_is_signed() { "signed" } else { "not signed" };
                    story.fact("event id", format!("{id:?}, {signed}"));
                }
                if let Some(event) = verified.event_type() {
                    story.fact("event type", format!("{event:?}"));
                }
                match verified.challenge() {
                    Some(_) => {
                        story.good("handshake", "the gateway answers this itself and forwards nothing");
                        (Verdict::Challenge, None)
                    }
                    None => (Verdict::Accept, None),
                }
            }
            Err(refused) => {
                if let Some(wanted) = &refused.wanted {
                    story.bad("document", format!("{} is needed and not here", wanted.url));
                }
                (Verdict::Refuse, Some(refused.refusal))
            }
        };
        let hints = match refusal {
            Some(refusal) => hints::find(self, case, refusal),
            None => Vec::new(),
        };
        let (steps, veil) = story.into_parts();
        let mut explanation = Explanation { verdict, refusal, steps, hints };
        explanation.conceal(&veil);
        explanation
    }
}

impl Explanation {
    /// What went before the verifier: a refusal there stands, whatever the proofs say.
    pub(crate) fn after(mut self, before: Vec<Step>, refusal: Option<Refusal>) -> Self {
        self.steps.splice(0..0, before);
        if let Some(refusal) = refusal {
            self.verdict = Verdict::Refuse;
            self.refusal = Some(refusal);
        }
        self
    }

    fn conceal(&mut self, veil: &Veil) {
        let texts = self.steps.iter_mut().map(|step| &mut step.says);
        let hints = self.hints.iter_mut().flat_map(|hint| [&mut hint.says, &mut hint.try_this]);
        for text in texts.chain(hints) {
            *text = veil.text(std::mem::take(text));
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let steps: Vec<_> =
            self.steps.iter().map(|step| json!({ "step": step.about, "ok": step.ok, "says": step.says })).collect();
        let hints: Vec<_> = self
            .hints
            .iter()
            .map(|hint| json!({ "kind": hint.kind, "says": hint.says, "try": hint.try_this }))
            .collect();
        json!({
            "verdict": self.verdict.name(),
            "refusal": self.refusal.map(Refusal::label),
            "steps": steps,
            "hints": hints,
        })
    }
}
