//! Names that depend on the delivery: of a task, a routing key, a subject, a stream.
//!
//! Invariant: what a sender wrote (the event's type) gets into a name only within its alphabet and up to a length: it
//! can neither leave its place in the name nor make one that the broker refuses.

use std::fmt;

/// Of what a sender wrote: longer types exist in no provider's documentation.
const LONGEST_PART: usize = 128;

/// In place of an event's type where there is none, or none that has a character of the alphabet.
const NO_EVENT: &str = "unknown";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Source,
    Event,
}

/// What may stand in a name besides letters, digits, `_` and `-`; a dot divides parts, none of which is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Python's dotted names, NATS subjects, routing keys of topic exchanges.
    Dotted,
    /// Keys and queues: `:` and `/` too.
    Key,
}

impl Alphabet {
    fn has(self, c: char) -> bool {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || self == Self::Key && matches!(c, ':' | '/')
    }
}

impl Template {
    /// `hooks.{event}`; `{source}` and `{event}` are what there is.
    pub(crate) fn parse(text: &str, alphabet: Alphabet) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            pieces.push(Piece::Text(before.to_owned()));
            let (name, behind) = behind.split_once('}').ok_or_else(|| format!("{text:?} has a `{{` without a `}}`"))?;
            pieces.push(match name {
                "source" => Piece::Source,
                "event" => Piece::Event,
                _ => return Err(format!("{text:?}: {{{name}}} is unknown; there are {{source}} and {{event}}")),
            });
            rest = behind;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        let strange = pieces.iter().find_map(|piece| match piece {
            Piece::Text(text) => text.chars().find(|c| !alphabet.has(*c)),
            Piece::Source | Piece::Event => None,
        });
        if let Some(c) = strange {
            let made_of = match alphabet {
                Alphabet::Dotted => "letters, digits, `_`, `-` and `.`",
                Alphabet::Key => "letters, digits, `_`, `-`, `.`, `:` and `/`",
            };
            return Err(format!("{text:?} holds {c:?}; {made_of} make a name"));
        }
        let template = Self { pieces };
        let example = template.fill("source", Some("event"));
        match example.is_empty() || alphabet == Alphabet::Dotted && example.split('.').any(str::is_empty) {
            true => Err(format!("{text:?} is no name, or has an empty part between its dots")),
            false => Ok(template),
        }
    }

    pub(crate) fn fill(&self, source: &str, event: Option<&str>) -> String {
        let mut name = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Source => name.push_str(source),
                Piece::Event => name.push_str(&safe(event.unwrap_or_default())),
            }
        }
        name
    }

    /// Without what depends on the delivery.
    pub(crate) fn fixed(&self) -> Option<&str> {
        match &*self.pieces {
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Source => f.write_str("{source}"),
            Piece::Event => f.write_str("{event}"),
        })
    }
}

/// Whatever is not in the alphabet becomes `_`, and so does a dot that would leave an empty part.
fn safe(event: &str) -> String {
    let mut safe = String::new();
    for c in event.chars().take(LONGEST_PART) {
        match c {
            '.' if safe.is_empty() || safe.ends_with('.') => safe.push('_'),
            '.' | '_' | '-' => safe.push(c),
            c if c.is_ascii_alphanumeric() => safe.push(c),
            _ => safe.push('_'),
        }
    }
    if safe.ends_with('.') {
        safe.pop();
        safe.push('_');
    }
    if safe.is_empty() { NO_EVENT.to_owned() } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, event: Option<&str>) -> String {
        Template::parse(template, Alphabet::Dotted).unwrap().fill("shop", event)
    }

    #[test]
    fn a_name_is_made_of_the_source_and_the_event() {
        assert_eq!(filled("hooks.{event}", Some("invoice.paid")), "hooks.invoice.paid");
        assert_eq!(filled("hooks.{source}.{event}", Some("push")), "hooks.shop.push");
        assert_eq!(filled("hooks.handle", Some("push")), "hooks.handle");
        assert_eq!(filled("hooks.{event}", None), "hooks.unknown");
    }

    #[test]
    fn what_a_sender_writes_cannot_leave_its_place() {
        for (event, safe) in [
            ("a b", "a_b"),
            ("*.>", "_._"),
            ("..", "__"),
            ("a..b.", "a._b_"),
            ("x\r\n\0é", "x____"),
            ("customers/update", "customers_update"),
            ("", "unknown"),
        ] {
            assert_eq!(filled("hooks.{event}", Some(event)), format!("hooks.{safe}"), "{event:?}");
        }
        assert_eq!(filled("{event}", Some(&"x".repeat(10_000))).len(), LONGEST_PART);
    }

    #[test]
    fn a_template_that_makes_no_name_is_refused() {
        for template in ["", "a b", "a..b", ".a", "{x}", "{event", "a*", "hooks.{event}."] {
            assert!(Template::parse(template, Alphabet::Dotted).is_err(), "{template:?}");
        }
        assert!(Template::parse("queue:a/b", Alphabet::Key).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_event_the_name_has_no_empty_part(event in ".*") {
            let name = filled("hooks.{event}", Some(&event));
            proptest::prop_assert!(name.split('.').all(|part| !part.is_empty()));
            proptest::prop_assert!(name.chars().all(|c| Alphabet::Dotted.has(c)));
        }
    }
}
