//! The files as written: one tree of values, each knowing its file and line.
//!
//! Own, because the errors of a `serde` pass stop at the first and lose the line as soon as a value is optional or
//! shared; here every file is read to its end, tables of several files are merged, a preset is laid under a source,
//! and whatever is wrong later can still say where it stands.

use super::problem::{At, Problem, Severity};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

/// A configuration larger than this is a mistake (a log, a core): it is refused, not read.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// `include` goes this deep at most; an include of an include is rare, a loop is a mistake.
const DEEPEST_INCLUDE: usize = 8;

pub(super) const OUT_OF_RANGE: &str = "an integer out of range";

#[derive(Clone)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Text(String),
    Integer(i64),
    Boolean(bool),
    Float(f64),
    /// Dates and integers out of range: no key takes one.
    Other(&'static str),
}

impl Node {
    pub(super) fn is_integer(&self) -> bool {
        matches!(self.kind, Kind::Integer(_))
    }
}

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "an array",
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::Float(_) => "a float",
            Self::Other(name) => name,
        }
    }
}

/// Reads a file and all that it includes, merged. `None` where nothing could be read, or a file is not TOML; the problems
/// say why.
///
/// What the parser makes of a broken file is a guess, and not read on: one stray character can turn a secret into a key,
/// and keys are named in problems.
pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut is_toml = true;
    read_within(path, &mut Vec::new(), problems, &mut is_toml).filter(|_| is_toml)
}

/// `around`: the files that include this one, from the outermost.
fn read_within(
    path: &Path,
    around: &mut Vec<PathBuf>,
    problems: &mut Vec<Problem>,
    is_toml: &mut bool,
) -> Option<Node> {
    let at = At { file: path.display().to_string().into(), line: 0 };
    let fail = |what: String, hint: &str| Problem {
        severity: Severity::Error,
        at: Some(at.clone()),
        key: String::new(),
        what,
        hint: hint.to_owned(),
    };
    let text = match std::fs::metadata(path) {
        Ok(found) if found.len() > LARGEST_FILE => {
            problems.push(fail(
                format!("the file has {} bytes; a configuration has at most {LARGEST_FILE}", found.len()),
                "",
            ));
            return None;
        }
        Ok(_) => match std::fs::read(path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(_) => {
                    problems
                        .push(fail("the file is not UTF-8".to_owned(), "save it as UTF-8; TOML allows nothing else"));
                    return None;
                }
            },
            Err(error) => {
                problems.push(fail(format!("cannot be read: {error}"), "check the path and its permissions"));
                return None;
            }
        },
        Err(error) => {
            let hint = match around.is_empty() {
                true => "name the file with --config FILE",
                false => "an include is relative to the file that includes it",
            };
            problems.push(fail(format!("cannot be read: {error}"), hint));
            return None;
        }
    };
    let problems_before = problems.len();
    let mut root = parse(&at.file, &text, problems);
    *is_toml &= problems.len() == problems_before;
    let Kind::Table(table) = &mut root.kind else { return Some(root) };
    let Some(include) = table.remove("include") else { return Some(root) };
    let base = path.parent().unwrap_or(Path::new("."));
    around.push(path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    for included in included_files(&include, base, around.len(), problems) {
        if included.canonicalize().is_ok_and(|included| around.contains(&included)) {
            problems.push(Problem {
                severity: Severity::Error,
                at: Some(include.at.clone()),
                key: "include".to_owned(),
                what: format!("{} includes itself", included.display()),
                hint: String::new(),
            });
        } else if let Some(other) = read_within(&included, around, problems, is_toml) {
            merge(&mut root, other, "", problems);
        }
    }
    around.pop();
    Some(root)
}

/// Parses one text. Everything that is wrong in it is told; what could be read is returned.
pub(super) fn parse(file: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> Node {
    let lines = Lines::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(0, |span| lines.line(span.start));
        problems.push(Problem {
            severity: Severity::Error,
            at: Some(At { file: file.clone(), line }),
            key: String::new(),
            // The parser's own sentence; never its excerpt of the line, which may hold a secret.
            what: format!("not valid TOML: {}", error.message()),
            hint: "compare with gateway.example.toml".to_owned(),
        });
    }
    let at = At { file: file.clone(), line: 0 };
    Node { at, kind: Kind::Table(table(root.get_ref(), file, &lines)) }
}

fn table(table: &DeTable<'_>, file: &Arc<str>, lines: &Lines) -> BTreeMap<String, Node> {
    let entries = table.iter().map(|(key, value)| {
        // A table's own span is its header or its first key; the key's line is where an editor should jump.
        let at = At { file: file.clone(), line: lines.line(key.span().start) };
        (key.get_ref().clone().into_owned(), node(value.get_ref(), at, file, lines))
    });
    entries.collect()
}

fn node(value: &DeValue<'_>, at: At, file: &Arc<str>, lines: &Lines) -> Node {
    let kind = match value {
        DeValue::Table(inner) => Kind::Table(table(inner, file, lines)),
        DeValue::Array(items) => Kind::Array(
            items
                .iter()
                .map(|item| {
                    let at = At { file: file.clone(), line: lines.line(item.span().start) };
                    node(item.get_ref(), at, file, lines)
                })
                .collect(),
        ),
        DeValue::String(text) => Kind::Text(text.clone().into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
            Ok(number) => Kind::Integer(number),
            Err(_) => Kind::Other(OUT_OF_RANGE),
        },
        DeValue::Boolean(flag) => Kind::Boolean(*flag),
        // Without a radix: what this cannot read is no float.
        DeValue::Float(number) => match number.as_str().replace('_', "").parse() {
            Ok(number) => Kind::Float(number),
            Err(_) => Kind::Other("a float"),
        },
        DeValue::Datetime(_) => Kind::Other("a date"),
    };
    Node { at, kind }
}

fn included_files(include: &Node, base: &Path, depth: usize, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let mut fail = |at: &At, what: String, hint: &str| {
        problems.push(Problem {
            severity: Severity::Error,
            at: Some(at.clone()),
            key: "include".to_owned(),
            what,
            hint: hint.to_owned(),
        });
    };
    let Kind::Array(patterns) = &include.kind else {
        fail(
            &include.at,
            format!("is {}, not an array of strings", include.kind.name()),
            r#"include = ["sources.d/*.toml"]"#,
        );
        return Vec::new();
    };
    if depth > DEEPEST_INCLUDE {
        fail(&include.at, format!("includes go more than {DEEPEST_INCLUDE} deep"), "");
        return Vec::new();
    }
    let mut files = Vec::new();
    for pattern in patterns {
        let Kind::Text(text) = &pattern.kind else {
            fail(
                &pattern.at,
                format!("holds {}, not a string", pattern.kind.name()),
                r#"include = ["sources.d/*.toml"]"#,
            );
            continue;
        };
        match matching(base, text) {
            Ok(found) => files.extend(found),
            Err(what) => {
                fail(&pattern.at, what, "a file, or a folder and one `*` in the last part: \"sources.d/*.toml\"")
            }
        }
    }
    files
}

/// A file, or all files of a folder whose names match a pattern with one `*`, sorted by name. An empty folder is no
/// error (an operator may have no sources yet); a file or folder that is not there is.
fn matching(base: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = base.join(pattern);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let folder = path.parent().unwrap_or(base);
    if pattern.matches('*').count() > usize::from(name.contains('*')) {
        return Err(format!("{pattern}: only one `*`, and only in the last part of the path"));
    }
    let Some((head, tail)) = name.split_once('*') else {
        return Ok(vec![path]);
    };
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let long_enough = name.len() >= head.len() + tail.len();
        if long_enough && !name.starts_with('.') && name.starts_with(head) && name.ends_with(tail) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Adds what another file says. Tables merge; anything else that both say is an error naming both.
fn merge(into: &mut Node, other: Node, key: &str, problems: &mut Vec<Problem>) {
    match (&mut into.kind, other.kind) {
        (Kind::Table(mine), Kind::Table(theirs)) if key.split('.').count() <= 1 => {
            for (name, node) in theirs {
                let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                match mine.get_mut(&name) {
                    Some(present) => merge(present, node, &path, problems),
                    None => {
                        mine.insert(name, node);
                    }
                }
            }
        }
        _ => problems.push(Problem {
            severity: Severity::Error,
            at: Some(other.at),
            key: key.to_owned(),
            what: format!("is also in {}:{}", into.at.file, into.at.line),
            hint: "keep one of the two; a name belongs to one file".to_owned(),
        }),
    }
}

/// Lays a preset under what the user wrote: tables merge to any depth, and what the user wrote wins.
pub(super) fn lay_under(user: &mut BTreeMap<String, Node>, preset: &BTreeMap<String, Node>) {
    for (name, theirs) in preset {
        match user.get_mut(name) {
            None => {
                user.insert(name.clone(), theirs.clone());
            }
            Some(mine) => {
                if let (Kind::Table(mine), Kind::Table(theirs)) = (&mut mine.kind, &theirs.kind) {
                    lay_under(mine, theirs);
                }
            }
        }
    }
}

/// Where each line begins, so that a byte offset becomes a line number.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> (Node, Vec<Problem>) {
        let mut problems = Vec::new();
        let node = parse(&"a.toml".into(), text, &mut problems);
        (node, problems)
    }

    #[test]
    fn a_syntax_error_names_its_line_and_never_shows_the_line() {
        let (_, problems) = parsed("a = 1\ntoken = \"hunter2\nb = 2\n");
        assert!(!problems.is_empty());
        for problem in &problems {
            assert!(!problem.to_string().contains("hunter2"), "{problem}");
        }
        assert_eq!(problems.first().and_then(|p| p.at.clone()).map(|at| at.line), Some(2));
    }

    #[test]
    fn every_syntax_error_is_told() {
        let (_, problems) = parsed("a = \n[x]\nb = = 2\nc = 1\n");
        assert!(problems.len() >= 2, "{problems:?}");
    }

    #[test]
    fn one_name_in_two_files_is_an_error_that_names_both() {
        let (mut first, _) = parsed("[sources.a]\npath = \"/a\"\n[sources.b]\npath = \"/b\"\n");
        let mut problems = Vec::new();
        let second =
            parse(&"b.toml".into(), "\n[sources.b]\npath = \"/c\"\n[sources.c]\npath = \"/d\"\n", &mut problems);
        merge(&mut first, second, "", &mut problems);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let text = problems.first().expect("one").to_string();
        assert!(text.starts_with("b.toml:2: error: sources.b: is also in a.toml:3"), "{text}");
    }

    #[test]
    fn what_the_user_wrote_wins_over_the_preset() {
        let (user, _) = parsed("[timestamp]\ntolerance = \"1m\"\n");
        let (preset, _) = parsed("algorithm = \"x\"\n[timestamp]\ntolerance = \"5m\"\nunit = \"s\"\n");
        let (Kind::Table(mut user), Kind::Table(preset)) = (user.kind, preset.kind) else { panic!("tables") };
        lay_under(&mut user, &preset);
        let Some(Kind::Table(timestamp)) = user.get("timestamp").map(|node| &node.kind) else { panic!("a table") };
        assert!(matches!(timestamp.get("tolerance").map(|n| &n.kind), Some(Kind::Text(text)) if text == "1m"));
        assert!(timestamp.contains_key("unit") && user.contains_key("algorithm"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_told_wrong_on_one_of_its_lines(
            text in r#"\PC{0,80}|([\[\]{}=".,'# \n\r\\_+-]|[a-c0-9x]|true|inf|"{3}|'{3}|é){0,60}"#,
        ) {
            let (_, problems) = parsed(&text);
            let lines = text.matches('\n').count() + 1;
            for problem in problems {
                let line = problem.at.map_or(0, |at| at.line);
                prop_assert!((1..=lines).contains(&line), "line {line} of {lines}");
            }
        }
    }
}
