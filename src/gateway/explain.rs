//! A delivery judged for a person: what the request path would have said before the verifier, and then the verifier.
//!
//! Invariant: nothing is claimed, counted, recorded or forwarded.

use super::admit;
use super::source::{PathRule, Settings};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::Library;
use crate::refusal::Refusal;
use crate::verify::{Case, Explanation, Step, Verdict, Workshop};

/// The source that a request with this authority and path is for, whatever the listener.
pub(crate) fn source_for<'s>(
    sources: impl Iterator<Item = &'s Settings> + Clone,
    authority: &str,
    path: &str,
) -> Option<&'s Settings> {
    let host = admit::host_of(authority);
    let fit = |of_host: bool| {
        let length = |settings: &&Settings| match &settings.path {
            PathRule::Exact(exact) if exact == path => Some(usize::MAX),
            PathRule::Prefix(prefix) if path.starts_with(prefix.as_str()) => Some(prefix.len()),
            PathRule::Exact(_) | PathRule::Prefix(_) => None,
        };
        sources
            .clone()
            .filter(|settings| match &settings.host {
                Some(named) => of_host && *named == host,
                None => !of_host,
            })
            .filter_map(|settings| Some((length(&settings)?, settings)))
            .max_by_key(|(length, _)| *length)
            .map(|(_, settings)| settings)
    };
    fit(true).or_else(|| fit(false))
}

pub(crate) struct Question<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) delivery: &'a Delivery,
    pub(crate) now: UnixMillis,
    pub(crate) library: &'a dyn Library,
    pub(crate) workshop: &'a dyn Workshop,
    /// Whoever reads this holds the configuration.
    pub(crate) for_its_owner: bool,
}

pub(crate) fn explain(question: &Question<'_>) -> Explanation {
    let Question { settings, delivery, now, library, workshop, for_its_owner } = *question;
    let case = Case { source: &settings.name, delivery, now, library, workshop, for_its_owner };
    let (mut before, refusal) = before_the_proofs(settings, delivery);
    if let Some(asked) = settings.verifier.ask(delivery) {
        let (verdict, refused) = match asked.answer {
            Ok(granted) => {
                let kept = if granted.captured.is_some() { ", and keeps the secret that it brings" } else { "" };
                let says = format!("a question that needs no proof: the gateway answers it itself{kept}");
                before.push(Step::new("handshake", Some(true), says));
                (Verdict::Challenge, None)
            }
            Err(declined) => {
                let says = format!("a question that needs no proof: {}: {}", declined.refusal.label(), declined.note);
                before.push(Step::new("handshake", Some(false), says));
                (Verdict::Refuse, Some(declined.refusal))
            }
        };
        let answered = Explanation { verdict, refusal: refused, steps: Vec::new(), hints: Vec::new() };
        return answered.after(before, refusal);
    }
    let refusal = refusal.or((!settings.methods.contains(&delivery.method)).then_some(Refusal::MethodNotAllowed));
    settings.verifier.explain(&case).after(before, refusal)
}

/// Steps 4 and 5 of a request's way, as far as a saved one can tell: no address, no certificate, no rates.
fn before_the_proofs(settings: &Settings, delivery: &Delivery) -> (Vec<Step>, Option<Refusal>) {
    let listed = |taken: bool, refusal| if taken { Ok(()) } else { Err(refusal) };
    let host = settings.host.as_ref().is_none_or(|host| *host == admit::host_of(&delivery.authority));
    let path = match &settings.path {
        PathRule::Exact(exact) => *exact == delivery.path,
        PathRule::Prefix(prefix) => delivery.path.starts_with(prefix.as_str()),
    };
    let size = u64::try_from(delivery.body.len()).unwrap_or(u64::MAX);
    let is_taken = settings.methods.contains(&delivery.method);
    let asks = settings.verifier.admits(&delivery.method, &delivery.headers, delivery.query.as_deref());
    let media_type = delivery.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let checks = [
        ("host", delivery.authority.clone(), listed(host, Refusal::NoSource)),
        ("path", delivery.path.clone(), listed(path, Refusal::NoSource)),
        ("method", delivery.method.to_string(), listed(is_taken || asks, Refusal::MethodNotAllowed)),
        (
            "content type",
            media_type.unwrap_or("none").to_owned(),
            if is_taken { admit::media_type(&settings.content_types, &delivery.headers) } else { Ok(()) },
        ),
        ("size", format!("{size} bytes"), listed(size <= settings.max_body, Refusal::TooLarge)),
    ];
    let mut steps = Vec::new();
    let mut refused = None;
    for (about, found, outcome) in checks {
        // Text of a stranger's: as Rust would write it.
        let found: String = found.chars().take(200).collect::<String>().escape_debug().collect();
        match outcome {
            Ok(()) => steps.push(Step::new(about, Some(true), found)),
            Err(refusal) => {
                steps.push(Step::new(about, Some(false), format!("{found}: {}", refusal.sentence())));
                refused = refused.or(Some(refusal));
            }
        }
    }
    (steps, refused)
}
