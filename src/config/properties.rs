//! Whatever stands in the file, loading it ends with words, and the words hold no secret.

use super::vectors::loaded;
use super::{Environment, Loaded, load};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::path::Path;

/// Spelled out in the file, or found in the environment.
const SECRET: &str = "Zq7pXw9vK3mT5rB8";

/// The shipped example with its secrets spelled out, and one of every other table that takes a secret.
fn example() -> String {
    let shipped = include_str!("../../gateway.example.toml");
    let mut text = shipped.to_owned();
    for name in ["HOOKWARD_ADMIN_TOKEN", "STRIPE_SECRET", "SHOPIFY_SECRET", "ACME_SECRET"] {
        let spelled_out = text.replace(&format!("{{ env = \"{name}\" }}"), &format!("{{ value = \"{SECRET}\" }}"));
        assert_ne!(text, spelled_out, "{name} is in the example");
        text = spelled_out;
    }
    let _ = write!(
        text,
        r#"
[upstreams.signed]
urls = ["http://127.0.0.1:9001"]
sign = {{ secret = {{ value = "whsec_{SECRET}" }} }}

[sources.tokens]
path = "/tokens/*"
upstream = "signed"
bearer = [{{ value = "{SECRET}" }}, {{ env = "GITHUB_SECRET" }}]

[sources.passwords]
path = "/passwords"
upstream = "app"
basic = {{ username = "hooks", password = {{ value = "{SECRET}" }} }}
token = {{ header = "X-Token", secrets = [{{ value = "{SECRET}" }}] }}
"#
    );
    text
}

fn said(loaded: &Loaded) -> String {
    let mut words = String::new();
    for problem in &loaded.problems {
        let _ = writeln!(words, "{problem}");
    }
    for effective in &loaded.effective {
        let _ = writeln!(words, "{effective:?}");
    }
    words
}

fn without_secret(text: &str) -> Result<(), TestCaseError> {
    let words = said(&loaded(text));
    // A piece of it is a leak too.
    for piece in SECRET.as_bytes().windows(8) {
        let piece = String::from_utf8_lossy(piece);
        prop_assert!(!words.contains(&*piece), "{piece} in:\n{words}\nof:\n{text}");
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Change {
    Removed(usize),
    Inserted(usize, char),
    Cut(usize),
    LineRemoved(usize),
    LineDoubled(usize),
    LinesSwapped(usize, usize),
}

impl Change {
    fn made(&self, text: &str) -> String {
        let at = |position: usize| {
            let mut at = position % (text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let mut lines: Vec<_> = text.lines().collect();
        let count = lines.len();
        if count == 0 {
            return text.to_owned();
        }
        match *self {
            Self::Removed(position) => {
                let (head, tail) = text.split_at(at(position));
                format!("{head}{}", tail.chars().skip(1).collect::<String>())
            }
            Self::Inserted(position, c) => {
                let (head, tail) = text.split_at(at(position));
                format!("{head}{c}{tail}")
            }
            Self::Cut(position) => text[..at(position)].to_owned(),
            Self::LineRemoved(line) => {
                lines.remove(line % count);
                lines.join("\n")
            }
            Self::LineDoubled(line) => {
                lines.insert(line % count, lines[line % count]);
                lines.join("\n")
            }
            Self::LinesSwapped(one, other) => {
                lines.swap(one % count, other % count);
                lines.join("\n")
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let c = prop_oneof![
        proptest::sample::select(r#"[]{}=".,'#\ _-0aé"#.chars().collect::<Vec<_>>()),
        Just('\n'),
        any::<char>()
    ];
    prop_oneof![
        4 => any::<usize>().prop_map(Change::Removed),
        4 => (any::<usize>(), c).prop_map(|(at, c)| Change::Inserted(at, c)),
        1 => any::<usize>().prop_map(Change::Cut),
        1 => any::<usize>().prop_map(Change::LineRemoved),
        1 => any::<usize>().prop_map(Change::LineDoubled),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Change::LinesSwapped(one, other)),
    ]
}

#[test]
fn what_is_wrong_and_what_is_in_effect_is_told_without_any_secret() {
    let loaded = loaded(&example());
    let words = said(&loaded);
    // It was read to its end: everything is there but the certificates and the environment.
    assert!(words.contains("sources.passwords.basic") && words.contains("<secret value>"), "{words}");
    assert!(!words.contains(SECRET), "{words}");
}

/// One stray character makes the secret a key here, and keys are named in problems.
#[test]
fn a_file_that_is_not_toml_is_not_read_on() {
    let slipped = example().replacen("{ value = \"", "{ value = = \"", 1);
    assert_ne!(slipped, example());
    let loaded = loaded(&slipped);
    assert!(loaded.config.is_none() && loaded.effective.is_empty());
    assert!(!loaded.problems.is_empty());
    for problem in &loaded.problems {
        assert!(problem.what.starts_with("not valid TOML: "), "{problem}");
    }
    assert!(!said(&loaded).contains(SECRET));
}

#[test]
fn a_secret_of_the_environment_is_named_by_its_variable() {
    let path = Path::new("gateway.example.toml");
    let environment: Environment<'_> = &|_| Some(SECRET.into());
    let words = said(&load(path, environment));
    assert!(words.contains("<secret env:GITHUB_SECRET>"), "{words}");
    assert!(!words.contains(SECRET), "{words}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_loads_or_is_told_wrong(text in r#"\PC{0,80}|([\[\]{}=".,' \n]|sources|provider|"github"|verify|a|1){0,40}"#) {
        let loaded = loaded(&text);
        // Nothing loads without a listener and a source.
        prop_assert!(loaded.config.is_none() && !loaded.problems.is_empty());
    }

    #[test]
    fn a_slip_of_the_pen_in_a_good_file_never_shows_a_secret(slip in change()) {
        without_secret(&slip.made(&example()))?;
    }

    #[test]
    fn nor_do_several(slips in proptest::collection::vec(change(), 2..6)) {
        without_secret(&slips.iter().fold(example(), |text, slip| slip.made(&text)))?;
    }
}
