//! Typed reading of a table: each read names its key, its kind and its default, and keeps reading when one is wrong.
//!
//! Invariant: whatever a table holds that nobody asked for is reported when the table is finished, so a misspelt key is
//! an error and never silently without effect. Every value read, written or default, is noted for `check --effective`;
//! secrets are noted by their reference. One file, because all kinds of values share this bookkeeping and little else.

use super::Environment;
use super::node::{Kind, Node, OUT_OF_RANGE};
use super::problem::{At, Problem, Severity};
use super::secret_ref::{self, Named};
use super::units::{duration, nearest, show_duration, show_size, size};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What all readers of one load share.
pub(super) struct Ledger<'e> {
    base: PathBuf,
    environment: Environment<'e>,
    problems: RefCell<Vec<Problem>>,
    effective: RefCell<Vec<Effective>>,
}

/// One line of `check --effective`.
#[derive(Clone, Debug)]
pub(crate) struct Effective {
    pub(crate) key: String,
    pub(crate) value: String,
    /// `default`, or the file and line.
    pub(crate) from: String,
}

impl<'e> Ledger<'e> {
    pub(super) fn new(base: &Path, problems: Vec<Problem>, environment: Environment<'e>) -> Self {
        Self { base: base.to_owned(), environment, problems: RefCell::new(problems), effective: RefCell::default() }
    }

    /// Another ledger of the same file, for what is only tried.
    pub(super) fn beside(&self) -> Ledger<'e> {
        Self::new(&self.base, Vec::new(), self.environment)
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn add(&self, severity: Severity, at: Option<At>, key: &str, what: String, hint: &str) {
        let problem = Problem { severity, at, key: key.to_owned(), what, hint: hint.to_owned() };
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn into_parts(self) -> (Vec<Problem>, Vec<Effective>) {
        (self.problems.into_inner(), self.effective.into_inner())
    }
}

pub(super) struct Table<'a> {
    entries: Option<&'a BTreeMap<String, Node>>,
    /// `sources.github`; empty for the whole file.
    path: String,
    at: Option<At>,
    ledger: &'a Ledger<'a>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Table<'a> {
    pub(super) fn root(node: &'a Node, ledger: &'a Ledger<'a>) -> Self {
        Self::of(node, String::new(), ledger)
    }

    fn of(node: &'a Node, path: String, ledger: &'a Ledger<'a>) -> Self {
        let entries = match &node.kind {
            Kind::Table(entries) => Some(entries),
            other => {
                let what = format!("is {}, not a table", other.name());
                ledger.add(Severity::Error, Some(node.at.clone()), &path, what, "");
                None
            }
        };
        Self { entries, path, at: Some(node.at.clone()), ledger, asked: RefCell::default() }
    }

    pub(super) fn base(&self) -> &Path {
        &self.ledger.base
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where a key stands, or its table where the key is absent.
    fn place(&self, name: &str) -> Option<At> {
        self.entries.and_then(|entries| entries.get(name)).map(|node| node.at.clone()).or_else(|| self.at.clone())
    }

    pub(super) fn error(&self, name: &str, what: impl Into<String>, hint: &str) {
        self.report(Severity::Error, name, what.into(), hint);
    }

    pub(super) fn warn(&self, name: &str, what: impl Into<String>, hint: &str) {
        self.report(Severity::Warning, name, what.into(), hint);
    }

    pub(super) fn remark(&self, name: &str, what: impl Into<String>, hint: &str) {
        self.report(Severity::Note, name, what.into(), hint);
    }

    fn report(&self, severity: Severity, name: &str, what: String, hint: &str) {
        let key = if name.is_empty() { self.path.clone() } else { self.key(name) };
        self.ledger.add(severity, self.place(name), &key, what, hint);
    }

    fn note(&self, name: &str, value: String, node: Option<&Node>) {
        let from = node.map_or_else(
            || "default".to_owned(),
            |node| match node.at.line {
                0 => node.at.file.to_string(),
                line => format!("{}:{line}", node.at.file),
            },
        );
        self.ledger.effective.borrow_mut().push(Effective { key: self.key(name), value, from });
    }

    pub(super) fn node(&self, name: &'static str) -> Option<&'a Node> {
        self.asked.borrow_mut().insert(name);
        self.entries.and_then(|entries| entries.get(name))
    }

    /// False: it stands in no file, and all reads give their defaults.
    pub(super) fn is_written(&self) -> bool {
        self.entries.is_some()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(name))
    }

    fn wrong_kind(&self, name: &str, node: &Node, wanted: &str) {
        self.error(name, format!("is {}, not {wanted}", node.kind.name()), "");
    }

    pub(super) fn text(&self, name: &'static str) -> Option<String> {
        let text = self.unnoted_text(name)?;
        self.note(name, format!("{text:?}"), self.node(name));
        Some(text)
    }

    fn unnoted_text(&self, name: &'static str) -> Option<String> {
        let node = self.node(name)?;
        match &node.kind {
            Kind::Text(text) => Some(text.clone()),
            _ => {
                self.wrong_kind(name, node, "a string");
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn needed_text(&self, name: &'static str, example: &str) -> Option<String> {
        if !self.has(name) {
            self.asked.borrow_mut().insert(name);
            // Where something else stands in the table's place, that was told.
            if self.entries.is_some() {
                self.error("", format!("`{name}` is missing"), example);
            }
            return None;
        }
        self.text(name)
    }

    /// A string that `parse` turns into what is meant; its error is (what is wrong, what to try).
    pub(super) fn parsed<T>(&self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.unnoted_text(name)?;
        match parse(&text) {
            Ok(value) => {
                self.note(name, format!("{text:?}"), self.node(name));
                Some(value)
            }
            // Not noted: what stands where it should not may be a password.
            Err(what) => {
                self.error(name, what, "");
                None
            }
        }
    }

    /// A string, an integer or a boolean, to be compared with a JSON value.
    pub(super) fn scalar(&self, name: &'static str) -> Option<serde_json::Value> {
        let node = self.node(name)?;
        let Some(value) = plain(&node.kind) else {
            self.wrong_kind(name, node, "a string, an integer or a boolean");
            return None;
        };
        self.note(name, value.to_string(), Some(node));
        Some(value)
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> bool {
        let Some(node) = self.node(name) else {
            self.note(name, default.to_string(), None);
            return default;
        };
        match node.kind {
            Kind::Boolean(flag) => {
                self.note(name, flag.to_string(), Some(node));
                flag
            }
            _ => {
                self.wrong_kind(name, node, "true or false");
                default
            }
        }
    }

    pub(super) fn count(&self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(node) = self.node(name) else {
            self.note(name, default.to_string(), None);
            return default;
        };
        match node.kind {
            Kind::Integer(number) if u64::try_from(number).is_ok_and(|number| range.contains(&number)) => {
                self.note(name, number.to_string(), Some(node));
                number.unsigned_abs()
            }
            Kind::Integer(number) => {
                self.error(name, format!("{number} is out of range"), &format!("{} to {}", range.start(), range.end()));
                default
            }
            Kind::Other(OUT_OF_RANGE) => {
                self.error(name, "is out of range", &format!("{} to {}", range.start(), range.end()));
                default
            }
            _ => {
                self.wrong_kind(name, node, "an integer");
                default
            }
        }
    }

    /// A part of the whole: `0.1`, `"10%"`, or 0 or 1.
    pub(super) fn share(&self, name: &'static str, default: f64) -> f64 {
        let Some(node) = self.node(name) else {
            self.note(name, default.to_string(), None);
            return default;
        };
        let percent =
            |text: &str| text.strip_suffix('%')?.trim_end().parse::<f64>().ok().map(|percent| percent / 100.0);
        let share = match &node.kind {
            Kind::Float(number) => Some(*number),
            Kind::Integer(number) => Some(*number as f64),
            Kind::Text(text) => percent(text),
            _ => None,
        };
        // No comparison holds for what is not a number.
        match share.filter(|share| (0.0..=1.0).contains(share)) {
            Some(share) => {
                self.note(name, share.to_string(), Some(node));
                share
            }
            None => {
                self.error(name, "is no part of a whole", r#"0.1 or "10%", from 0 to 1"#);
                default
            }
        }
    }

    pub(super) fn duration(&self, name: &'static str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        self.measure(name, default, &range, duration, show_duration, r#""500ms", "10s", "5m", "24h" or "7d""#)
    }

    pub(super) fn size(&self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.measure(name, default, &range, size, |size| show_size(*size), r#""512B", "64KiB", "1MiB" or "1GiB""#)
    }

    fn measure<T: Copy + PartialOrd>(
        &self,
        name: &'static str,
        default: T,
        range: &RangeInclusive<T>,
        parse: impl Fn(&str) -> Option<T>,
        show: impl Fn(&T) -> String,
        forms: &str,
    ) -> T {
        let Some(node) = self.node(name) else {
            self.note(name, format!("{:?}", show(&default)), None);
            return default;
        };
        let Kind::Text(text) = &node.kind else {
            self.error(name, format!("is {}, not a string with a unit", node.kind.name()), forms);
            return default;
        };
        match parse(text) {
            Some(value) if range.contains(&value) => {
                self.note(name, format!("{:?}", show(&value)), Some(node));
                value
            }
            Some(_) => {
                let hint = format!("{:?} to {:?}", show(range.start()), show(range.end()));
                self.error(name, format!("{text:?} is out of range"), &hint);
                default
            }
            None => {
                self.error(name, format!("{text:?} cannot be read"), forms);
                default
            }
        }
    }

    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        default: Option<&'static str>,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let of = |word: &str| choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        let Some(node) = self.node(name) else {
            let default = default?;
            self.note(name, format!("{default:?}"), None);
            return of(default);
        };
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let Kind::Text(text) = &node.kind else {
            self.error(name, format!("is {}, not a string", node.kind.name()), &words.join(", "));
            return default.and_then(of);
        };
        if let Some(value) = of(text) {
            self.note(name, format!("{text:?}"), Some(node));
            return Some(value);
        }
        self.error(name, format!("{text:?} is none of the choices"), &words.join(", "));
        default.and_then(of)
    }

    /// An array of ports; absent is empty.
    pub(super) fn ports(&self, name: &'static str) -> Vec<u16> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Kind::Array(items) = &node.kind else {
            self.wrong_kind(name, node, "an array of ports");
            return Vec::new();
        };
        let mut ports = Vec::new();
        for item in items {
            match item.kind {
                Kind::Integer(number @ 1..=65_535) => ports.extend(u16::try_from(number)),
                _ => self.error(name, "holds what is no port", "1 to 65535"),
            }
        }
        if items.is_empty() {
            self.error(name, "is empty", "leave it out for its default, or list something");
        }
        self.note(name, format!("{ports:?}"), Some(node));
        ports
    }

    /// An array of strings; absent is empty.
    pub(super) fn texts(&self, name: &'static str) -> Vec<String> {
        let texts = self.unnoted_texts(name);
        self.note_texts(name, &texts);
        texts
    }

    fn note_texts(&self, name: &'static str, texts: &[String]) {
        if let Some(node) = self.node(name) {
            self.note(name, format!("{texts:?}"), Some(node));
        }
    }

    fn unnoted_texts(&self, name: &'static str) -> Vec<String> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Kind::Array(items) = &node.kind else {
            self.wrong_kind(name, node, "an array of strings");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items {
            match &item.kind {
                Kind::Text(text) => texts.push(text.clone()),
                other => self.ledger.add(
                    Severity::Error,
                    Some(item.at.clone()),
                    &self.key(name),
                    format!("holds {}, not a string", other.name()),
                    "",
                ),
            }
        }
        if items.is_empty() {
            // "None" and "any" look alike in an empty list, and one of the two would let everybody in.
            self.error(name, "is empty", "leave it out for its default, or list something");
        }
        texts
    }

    /// An array of strings, each of which `parse` turns into what is meant.
    pub(super) fn all_parsed<T>(&self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let texts = self.unnoted_texts(name);
        let mut values = Vec::new();
        for text in &texts {
            match parse(text) {
                Ok(value) => values.push(value),
                Err(what) => self.error(name, what, ""),
            }
        }
        // As in `parsed`.
        if values.len() == texts.len() {
            self.note_texts(name, &texts);
        }
        values
    }

    pub(super) fn table(&self, name: &'static str) -> Option<Table<'a>> {
        let node = self.node(name)?;
        Some(Table::of(node, self.key(name), self.ledger))
    }

    /// The table, or an empty one whose reads all give their defaults.
    pub(super) fn table_or_empty(&self, name: &'static str) -> Table<'a> {
        self.table(name).unwrap_or_else(|| Table {
            entries: None,
            path: self.key(name),
            at: self.at.clone(),
            ledger: self.ledger,
            asked: RefCell::default(),
        })
    }

    /// An array of tables; one table counts as an array of one.
    pub(super) fn tables(&self, name: &'static str) -> Vec<Table<'a>> {
        let Some(node) = self.node(name) else { return Vec::new() };
        match &node.kind {
            Kind::Array(items) => items
                .iter()
                .enumerate()
                .map(|(position, item)| Table::of(item, format!("{}[{position}]", self.key(name)), self.ledger))
                .collect(),
            _ => vec![Table::of(node, self.key(name), self.ledger)],
        }
    }

    /// The tables in a table of names: `[sources.NAME]`.
    pub(super) fn named(&self, name: &'static str) -> Vec<(String, Table<'a>)> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Kind::Table(entries) = &node.kind else {
            self.wrong_kind(name, node, "a table of names");
            return Vec::new();
        };
        let mut named = Vec::new();
        for (entry, node) in entries {
            let path = format!("{name}.{entry}");
            if is_name(entry) {
                named.push((entry.clone(), Table::of(node, path, self.ledger)));
            } else {
                let what = format!("{entry:?} is not a name");
                let hint = "names are [a-z0-9][a-z0-9_-]*, at most 63 long";
                self.ledger.add(Severity::Error, Some(node.at.clone()), &path, what, hint);
            }
        }
        named
    }

    /// A table of whatever names, each with a string, an integer or a boolean.
    pub(super) fn scalars(&self, name: &'static str) -> Vec<(String, serde_json::Value)> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Kind::Table(entries) = &node.kind else {
            self.wrong_kind(name, node, "a table");
            return Vec::new();
        };
        let mut scalars = Vec::new();
        for (entry, node) in entries {
            let Some(value) = plain(&node.kind) else {
                self.not_plain(name, entry, node);
                continue;
            };
            scalars.push((entry.clone(), value));
        }
        let shown: Vec<_> = scalars.iter().map(|(entry, value)| format!("{entry} = {value}")).collect();
        self.note(name, format!("{{ {} }}", shown.join(", ")), Some(node));
        scalars
    }

    /// A table of whatever names, each with a string, an integer or a boolean, or with an array of them.
    pub(super) fn alternatives(&self, name: &'static str) -> Vec<(String, Vec<serde_json::Value>)> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Kind::Table(entries) = &node.kind else {
            self.wrong_kind(name, node, "a table");
            return Vec::new();
        };
        let mut all = Vec::new();
        for (entry, node) in entries {
            let items = match &node.kind {
                Kind::Array(items) => items.as_slice(),
                _ => std::slice::from_ref(node),
            };
            if items.is_empty() {
                let key = self.key(&format!("{name}.{entry}"));
                let hint = "leave it out, or list something";
                self.ledger.add(Severity::Error, Some(node.at.clone()), &key, "is empty".to_owned(), hint);
            }
            for item in items.iter().filter(|item| plain(&item.kind).is_none()) {
                self.not_plain(name, entry, item);
            }
            all.push((entry.clone(), items.iter().filter_map(|item| plain(&item.kind)).collect::<Vec<_>>()));
        }
        let shown: Vec<_> = all
            .iter()
            .map(|(entry, values)| format!("{entry:?} = {}", serde_json::Value::from(values.clone())))
            .collect();
        self.note(name, format!("{{ {} }}", shown.join(", ")), Some(node));
        all
    }

    fn not_plain(&self, name: &str, entry: &str, node: &Node) {
        let what = format!("is {}, not a string, an integer or a boolean", node.kind.name());
        let key = self.key(&format!("{name}.{entry}"));
        self.ledger.add(Severity::Error, Some(node.at.clone()), &key, what, "");
    }

    pub(super) fn secret(&self, name: &'static str) -> Option<Named> {
        let node = self.node(name)?;
        self.resolve(name, node)
    }

    /// One reference or an array of them. The flag says whether all could be resolved.
    pub(super) fn secrets(&self, name: &'static str) -> Vec<Named> {
        let Some(node) = self.node(name) else { return Vec::new() };
        match &node.kind {
            Kind::Array(items) if items.is_empty() => {
                self.error(name, "is empty", r#"secrets = [{ env = "NAME" }]"#);
                Vec::new()
            }
            Kind::Array(items) => items.iter().filter_map(|item| self.resolve(name, item)).collect(),
            _ => self.resolve(name, node).into_iter().collect(),
        }
    }

    fn resolve(&self, name: &str, node: &Node) -> Option<Named> {
        match secret_ref::resolve(node, self.base(), self.ledger.environment) {
            Ok(named) => {
                self.note(name, format!("<secret {}>", named.name), Some(node));
                Some(named)
            }
            Err((what, hint)) => {
                self.ledger.add(Severity::Error, Some(node.at.clone()), &self.key(name), what, &hint);
                None
            }
        }
    }

    pub(super) fn file(&self, name: &'static str) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.base().join(self.text(name)?);
        match read_bounded(&path) {
            Ok(bytes) => Some((path, bytes)),
            Err(what) => {
                self.error(name, what, "relative paths are relative to the configuration file");
                None
            }
        }
    }

    pub(super) fn at(&self) -> Option<At> {
        self.at.clone()
    }

    /// A string that is read by somebody else as well, and reported there.
    pub(super) fn peek_text(&self, name: &str) -> Option<String> {
        match self.entries?.get(name).map(|node| &node.kind) {
            Some(Kind::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Keys that were reported already, or that belong to a neighbour.
    pub(super) fn ignore(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend(names);
    }

    /// A value that was read by hand.
    pub(super) fn note_shown(&self, name: &'static str, shown: &str) {
        self.note(name, shown.to_owned(), self.node(name));
    }

    pub(super) fn note_default(&self, name: &str, shown: &str) {
        self.note(name, shown.to_owned(), None);
    }

    /// The last thing done with a table.
    pub(super) fn finish(self) {
        self.check_unknown();
    }

    /// Reports what nobody asked for, and the nearest key that somebody did ask for.
    pub(super) fn check_unknown(&self) {
        let Some(entries) = self.entries else { return };
        let asked = self.asked.borrow();
        for (name, node) in entries {
            if asked.contains(name.as_str()) {
                continue;
            }
            let hint = match nearest(name, asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", asked.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            self.ledger.add(Severity::Error, Some(node.at.clone()), &self.key(name), "unknown key".to_owned(), &hint);
        }
    }
}

/// What can be compared with a JSON value.
fn plain(kind: &Kind) -> Option<serde_json::Value> {
    match kind {
        Kind::Text(text) => Some(text.as_str().into()),
        Kind::Integer(number) => Some((*number).into()),
        Kind::Boolean(flag) => Some((*flag).into()),
        _ => None,
    }
}

/// A certificate bundle of all public roots has some 250 KB; nothing that a key names is larger than this.
const LARGEST_FILE: u64 = 8 * 1024 * 1024;

fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > LARGEST_FILE {
        return Err(format!("{} has {length} bytes, more than {LARGEST_FILE}", path.display()));
    }
    std::fs::read(path).map_err(fail)
}

/// A name of a table, and of a provider.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 63 && bytes.next().is_some_and(plain) && bytes.all(|b| plain(b) || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_lower_case_words() {
        for good in ["a", "github", "a-b_c", "0x"] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "-a", "_a", "A", "a.b", "a b", "é", &"a".repeat(64)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
