//! The presets: what each provider's webhooks look like, one TOML file a provider, in the language that users write.
//!
//! Invariant: a preset is data. It is laid under a source's table, key by key, and what the user wrote wins.

use super::node::{self, Kind, Node};
use super::problem::Problem;
use std::collections::BTreeMap;

/// Name and text, in the order of the names; see build.rs.
const PRESETS: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// What describes the provider and is no key of a source: `body` is how much of it the proof stands for, `console` what
/// to paste where at the provider.
const ABOUT: [&str; 10] = [
    "name",
    "docs",
    "proven_by",
    "body",
    "timeout",
    "retries",
    "delivery_confidence",
    "largest_payload",
    "console",
    "notes",
];
/// Without these nobody could tell what a preset is worth.
#[cfg(test)]
const NEEDED: [&str; 2] = ["name", "docs"];

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Lays the preset that a source names under the source's table. Err: there is no such preset.
pub(super) fn apply(source: &mut Node) -> Result<(), Node> {
    let Kind::Table(table) = &mut source.kind else { return Ok(()) };
    let Some(provider) = table.get("provider") else { return Ok(()) };
    let Kind::Text(name) = &provider.kind else { return Err(provider.clone()) };
    let Some(preset) = preset(name) else { return Err(provider.clone()) };
    node::lay_under(table, &preset);
    Ok(())
}

fn preset(name: &str) -> Option<BTreeMap<String, Node>> {
    let (name, text) = PRESETS.iter().find(|(known, _)| *known == name)?;
    let mut problems: Vec<Problem> = Vec::new();
    let file = format!("preset {name}");
    let parsed = node::parse(&file.as_str().into(), text, &mut problems);
    debug_assert!(problems.is_empty(), "the preset {name} is not valid: {problems:?}");
    let Kind::Table(mut table) = parsed.kind else { return None };
    for about in ABOUT {
        table.remove(about);
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_says_who_it_is_and_where_its_page_is() {
        for &(name, text) in PRESETS {
            let mut problems = Vec::new();
            let Kind::Table(table) = node::parse(&name.into(), text, &mut problems).kind else { panic!("a table") };
            assert!(problems.is_empty(), "{name}: {problems:?}");
            for about in NEEDED {
                assert!(matches!(table.get(about).map(|node| &node.kind), Some(Kind::Text(_))), "{name} lacks {about}");
            }
            let proofs = ["verify", "token", "basic", "jwt", "each_secret"];
            assert!(preset(name).is_some_and(|table| proofs.iter().any(|proof| table.contains_key(*proof))), "{name}");
        }
    }
}
