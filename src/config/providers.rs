//! The presets: what each provider's webhooks look like, one TOML file a provider, in the language that users write.
//!
//! Invariant: a preset is data. It is laid under a source's table, key by key, and what the user wrote wins. The ones
//! that come with the program and a user's own (`provider_files`) are read by the same code and judged by the same rules.

use super::about::{self, Provider};
use super::node::{self, Kind, Node};
use super::problem::{At, Problem, Severity};
use super::reader::{Ledger, is_name};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Name and text, in the order of the names; see build.rs.
const BUILT_IN: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// The largest preset that comes with the program has some 3 KB.
const LARGEST_FILE: u64 = 256 * 1024;

/// What belongs to one source and to no provider. A preset that could say these would open a door, or name a secret,
/// where nobody looks for it.
const OF_A_SOURCE: [&str; 6] = ["danger_accept_unverified", "path", "provider", "public_url", "secrets", "upstream"];

/// All presets that one load knows. Each is parsed once, however many sources name it.
pub(super) struct Presets {
    texts: BTreeMap<String, Text>,
    parsed: RefCell<BTreeMap<String, Rc<BTreeMap<String, Node>>>>,
    used: RefCell<BTreeSet<String>>,
    /// Whose file cannot be read: nothing can be said of a source that names one.
    broken: RefCell<BTreeSet<String>>,
}

struct Text {
    /// `preset github`, or the path of a user's own file.
    file: Arc<str>,
    text: Rc<str>,
    is_own: bool,
}

impl Presets {
    pub(super) fn built_in() -> Self {
        let texts = BUILT_IN.iter().map(|(name, text)| {
            let file = format!("preset {name}").into();
            ((*name).to_owned(), Text { file, text: (*text).into(), is_own: false })
        });
        let texts = texts.collect();
        Self { texts, parsed: RefCell::default(), used: RefCell::default(), broken: RefCell::default() }
    }

    /// The built-in ones, and those of the folder that a file's `provider_files` names.
    pub(super) fn of(root: &Node, ledger: &Ledger<'_>) -> Self {
        let mut presets = Self::built_in();
        let Kind::Table(table) = &root.kind else { return presets };
        let Some(Node { at, kind: Kind::Text(folder) }) = table.get("provider_files") else { return presets };
        // Shown as includes are: without the `./` of a configuration in the working directory.
        let folder = ledger.base().join(folder);
        presets.take_in(folder.strip_prefix(".").unwrap_or(&folder), at, ledger);
        presets
    }

    fn take_in(&mut self, folder: &Path, at: &At, ledger: &Ledger<'_>) {
        let fail = |what: String| {
            let hint = "a folder with one file NAME.toml for each provider, relative to the configuration file";
            ledger.add(Severity::Error, Some(at.clone()), "provider_files", what, hint);
        };
        let listed = std::fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let mut entries = match listed {
            Ok(entries) => entries,
            Err(error) => return fail(format!("{}: {error}", folder.display())),
        };
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for path in entries.into_iter().map(|entry| entry.path()) {
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(name) = file_name.strip_suffix(".toml").filter(|_| !file_name.starts_with('.')) else { continue };
            let here = || Some(At { file: path.display().to_string().into(), line: 0 });
            if !is_name(name) {
                let hint = "names are [a-z0-9][a-z0-9_-]*, at most 63 long";
                ledger.add(Severity::Error, here(), "", format!("{name:?} is not a name of a provider"), hint);
                continue;
            }
            let text = match read_bounded(&path) {
                Ok(text) => text,
                Err(what) => {
                    ledger.add(Severity::Error, here(), "", what, "");
                    continue;
                }
            };
            let file: Arc<str> = path.display().to_string().into();
            let own = Text { file, text: text.into(), is_own: true };
            if self.texts.insert(name.to_owned(), own).is_some() {
                let what = format!("takes the place of the preset {name:?} that comes with hookward");
                ledger.add(Severity::Warning, here(), "", what, "another file name, if both are wanted");
            }
            self.table(name, ledger);
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    /// Lays the preset that a source names under the source's table. Err: there is no such preset.
    pub(super) fn lay_under(&self, source: &mut Node, ledger: &Ledger<'_>) -> Result<(), Node> {
        let Kind::Table(table) = &mut source.kind else { return Ok(()) };
        let Some(provider) = table.get("provider") else { return Ok(()) };
        let Kind::Text(name) = &provider.kind else { return Err(provider.clone()) };
        let Some(preset) = self.table(name, ledger) else { return Err(provider.clone()) };
        self.used.borrow_mut().insert(name.clone());
        node::lay_under(table, &preset);
        Ok(())
    }

    /// A user's own presets that no source names, each as a source of its own that has nothing else: what is wrong in
    /// their files can still be told.
    pub(super) fn unused(&self, ledger: &Ledger<'_>) -> Vec<(String, Node)> {
        let used = self.used.borrow();
        let mut unused = Vec::new();
        for name in self.texts.iter().filter(|(name, text)| text.is_own && !used.contains(*name)).map(|(name, _)| name)
        {
            let Some(preset) = self.table(name, ledger) else { continue };
            let at = At { file: "".into(), line: 0 };
            let provider = Node { at: at.clone(), kind: Kind::Text(name.clone()) };
            let mut table = BTreeMap::from([("provider".to_owned(), provider)]);
            node::lay_under(&mut table, &preset);
            unused.push((name.clone(), Node { at, kind: Kind::Table(table) }));
        }
        unused
    }

    /// The file of a user's own preset.
    pub(super) fn own_file(&self, name: &str) -> Option<&Arc<str>> {
        self.texts.get(name).filter(|text| text.is_own).map(|text| &text.file)
    }

    /// Could its file be read as TOML?
    pub(super) fn is_whole(&self, name: &str) -> bool {
        !self.broken.borrow().contains(name)
    }

    /// A preset's keys, without what describes the provider. What is wrong with a file is told when it is first read.
    fn table(&self, name: &str, ledger: &Ledger<'_>) -> Option<Rc<BTreeMap<String, Node>>> {
        if let Some(table) = self.parsed.borrow().get(name) {
            return Some(table.clone());
        }
        let Text { file, text, .. } = self.texts.get(name)?;
        let mut problems = Vec::new();
        let mut table = parsed(file, text, &mut problems);
        if !problems.is_empty() {
            // As with a configuration: what the parser makes of a broken file is a guess, and not read on.
            table.clear();
            self.broken.borrow_mut().insert(name.to_owned());
            for problem in &mut problems {
                problem.hint = "compare with docs/providers-own.md, or `hookward providers show github`".to_owned();
            }
        }
        about::take(&mut table, &mut problems);
        for key in OF_A_SOURCE {
            if let Some(node) = table.remove(key) {
                let what = "belongs to a source, and not to a provider".to_owned();
                problems.push(wrong(node.at, key, what, "write it into each source that names the provider"));
            }
        }
        for Problem { severity, at, key, what, hint } in problems {
            ledger.add(severity, at, &key, what, &hint);
        }
        let table = Rc::new(table);
        self.parsed.borrow_mut().insert(name.to_owned(), table.clone());
        Some(table)
    }

    /// What a person wants to know of each.
    pub(super) fn described(&self) -> Vec<Provider> {
        let described = self.texts.iter().map(|(name, Text { file, text, is_own })| {
            let table = parsed(file, text, &mut Vec::new());
            Provider::describe(name, is_own.then(|| file.to_string()), text, table)
        });
        described.collect()
    }
}

fn parsed(file: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> BTreeMap<String, Node> {
    match node::parse(file, text, problems).kind {
        Kind::Table(table) => table,
        _ => BTreeMap::new(),
    }
}

pub(super) fn wrong(at: At, key: &str, what: String, hint: &str) -> Problem {
    Problem { severity: Severity::Error, at: Some(at), key: key.to_owned(), what, hint: hint.to_owned() }
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if length > LARGEST_FILE {
        return Err(format!("the file has {length} bytes; a provider's has at most {LARGEST_FILE}"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nobody should have to guess of a preset that comes with the program.
    const NEEDED: [&str; 5] = ["name", "docs", "proven_by", "body", "console"];

    #[test]
    fn every_preset_says_who_it_is_and_what_it_is_worth() {
        let presets = Presets::built_in();
        assert!(BUILT_IN.len() >= 6);
        let mut wrong = Vec::new();
        for (name, Text { file, text, .. }) in &presets.texts {
            let mut problems = Vec::new();
            let mut table = parsed(file, text, &mut problems);
            let about: BTreeMap<_, _> = about::take(&mut table, &mut problems).into_iter().collect();
            wrong.extend(problems.iter().map(|problem| format!("{name}: {problem}")));
            wrong.extend(NEEDED.iter().filter(|key| !about.contains_key(*key)).map(|key| format!("{name}: no {key}")));
            let promises = ["timeout", "retries"].iter().any(|key| about.contains_key(key));
            if promises && !about.contains_key("delivery_confidence") {
                wrong.push(format!("{name}: where are the time limit and the retries from?"));
            }
            wrong
                .extend(OF_A_SOURCE.iter().filter(|key| table.contains_key(**key)).map(|key| format!("{name}: {key}")));
            if table.is_empty() || !is_name(name) {
                wrong.push(format!("{name}: says nothing, or is no name"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
