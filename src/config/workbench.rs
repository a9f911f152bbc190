//! Verifiers as they would be if one thing in the file were another, for `explain`.
//!
//! Invariant: each is built by the reader that builds the real ones, from the same tables; what would not load is no
//! verifier. Secrets are resolved for as long as a verifier is built and kept nowhere.

use super::node::{self, Kind, Node};
use super::problem::Severity;
use super::providers::Presets;
use super::reader::{Ledger, Table};
use super::{Environment, secret_ref, verification};
use crate::secret::Secret;
use crate::verify::{Change, Verifier, Workshop};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SECRET_KINDS: [&str; 4] = ["env", "file", "credential", "value"];

pub(crate) struct Workbench<'e> {
    /// As written, without presets.
    root: Node,
    base: PathBuf,
    environment: Environment<'e>,
    presets: Presets,
}

impl<'e> Workbench<'e> {
    /// `None` where the file cannot be read; `load` says why.
    pub(crate) fn read(path: &Path, environment: Environment<'e>) -> Option<Self> {
        let root = node::read(path, &mut Vec::new())?;
        let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let presets = Presets::of(&root, &Ledger::new(base, Vec::new(), environment));
        Some(Self { root, base: base.to_owned(), environment, presets })
    }

    fn sources(&self) -> Option<&BTreeMap<String, Node>> {
        let Kind::Table(root) = &self.root.kind else { return None };
        match &root.get("sources")?.kind {
            Kind::Table(sources) => Some(sources),
            _ => None,
        }
    }

    fn source(&self, name: &str) -> Option<&Node> {
        self.sources()?.get(name)
    }

    /// The source with its preset under it.
    fn laid(&self, name: &str) -> Option<Node> {
        let mut node = self.source(name)?.clone();
        self.lay(&mut node)?;
        Some(node)
    }

    fn lay(&self, node: &mut Node) -> Option<()> {
        self.presets.lay_under(node, &Ledger::new(&self.base, Vec::new(), self.environment)).ok()
    }

    fn build(&self, node: &Node) -> Option<Arc<Verifier>> {
        let ledger = Ledger::new(&self.base, Vec::new(), self.environment);
        let found = {
            let table = Table::root(node, &ledger);
            let preset = table.peek_text("provider");
            verification::read(&table, preset.as_deref())
        };
        let (problems, _) = ledger.into_parts();
        let loads = !problems.iter().any(|problem| problem.severity == Severity::Error);
        found.filter(|_| loads).map(|found| found.verifier)
    }

    /// Every secret reference in a table, resolved. `change`: what it becomes; `None` leaves it.
    fn each_secret(&self, node: &mut Node, change: &mut dyn FnMut(&str) -> Option<String>) {
        match &mut node.kind {
            Kind::Array(items) => items.iter_mut().for_each(|item| self.each_secret(item, change)),
            Kind::Table(table) if SECRET_KINDS.iter().any(|kind| table.contains_key(*kind)) => {
                let Ok(named) = secret_ref::resolve(node, &self.base, self.environment) else { return };
                let Some(changed) = std::str::from_utf8(named.secret.expose()).ok().and_then(change) else { return };
                if let Kind::Table(table) = &mut node.kind {
                    table.retain(|key, _| key == "id");
                    table.insert("value".to_owned(), text(changed));
                }
            }
            Kind::Table(table) => table.values_mut().for_each(|value| self.each_secret(value, change)),
            Kind::Text(_) | Kind::Integer(_) | Kind::Boolean(_) | Kind::Float(_) | Kind::Other(_) => {}
        }
    }

    /// The source's own secrets, wherever they stand.
    fn secrets_of(&self, name: &str) -> Option<Node> {
        let Kind::Table(table) = &self.source(name)?.kind else { return None };
        let inside = |key: &str| match table.get(key).map(|node| &node.kind) {
            Some(Kind::Table(table)) => table.get("secrets").cloned(),
            _ => None,
        };
        table.get("secrets").cloned().or_else(|| inside("token")).or_else(|| table.get("bearer").cloned())
    }
}

fn text(text: String) -> Node {
    let at = super::problem::At { file: "explain".into(), line: 0 };
    Node { at, kind: Kind::Text(text) }
}

/// Sets, or takes away, what stands under a dotted key. `None`: there is no table that could hold it.
fn set(node: &mut Node, key: &str, value: Option<&str>) -> Option<()> {
    let (tables, last) = match key.rsplit_once('.') {
        Some((tables, last)) => (Some(tables), last),
        None => (None, key),
    };
    let mut node = node;
    for name in tables.into_iter().flat_map(|tables| tables.split('.')) {
        let at = node.at.clone();
        let Kind::Table(table) = &mut node.kind else { return None };
        node = table.entry(name.to_owned()).or_insert_with(|| Node { at, kind: Kind::Table(BTreeMap::new()) });
    }
    let Kind::Table(table) = &mut node.kind else { return None };
    match value {
        Some(value) => drop(table.insert(last.to_owned(), text(value.to_owned()))),
        None => drop(table.remove(last)),
    }
    Some(())
}

impl Workshop for Workbench<'_> {
    fn rebuilt(&self, source: &str, change: &Change<'_>) -> Option<Arc<Verifier>> {
        let node = match change {
            Change::Set(changes) => {
                let mut node = self.laid(source)?;
                for (key, value) in *changes {
                    set(&mut node, key, *value)?;
                }
                node
            }
            Change::Provider(provider) => {
                let mut kept = BTreeMap::from([("provider".to_owned(), text((*provider).to_owned()))]);
                kept.insert("secrets".to_owned(), self.secrets_of(source)?);
                if let Some(Kind::Table(table)) = self.source(source).map(|node| &node.kind)
                    && let Some(url) = table.get("public_url")
                {
                    kept.insert("public_url".to_owned(), url.clone());
                }
                let mut node = Node { at: self.root.at.clone(), kind: Kind::Table(kept) };
                self.lay(&mut node)?;
                node
            }
            Change::Secrets(rewrite) => {
                let mut node = self.laid(source)?;
                let mut any = false;
                self.each_secret(&mut node, &mut |secret| {
                    let changed = rewrite(secret).filter(|changed| !changed.is_empty())?;
                    any = true;
                    Some(changed)
                });
                any.then_some(node)?
            }
            Change::SecretsOf(other) => {
                let mut node = self.laid(source)?;
                let secrets = self.secrets_of(other)?;
                let Kind::Table(table) = &mut node.kind else { return None };
                table.get("secrets")?;
                table.insert("secrets".to_owned(), secrets);
                node
            }
        };
        self.build(&node)
    }

    fn providers(&self) -> Vec<String> {
        self.presets.names().map(str::to_owned).collect()
    }

    fn other_sources(&self, source: &str) -> Vec<String> {
        let names = self.sources().into_iter().flat_map(BTreeMap::keys);
        names.filter(|name| *name != source).cloned().collect()
    }

    fn setting(&self, source: &str, key: &str) -> Option<String> {
        let laid = self.laid(source)?;
        let mut node = &laid;
        for name in key.split('.') {
            let Kind::Table(table) = &node.kind else { return None };
            // Alternative names of a header: the first is the one to speak of.
            node = table.get(name).or_else(|| table.get("headers").filter(|_| name == "header"))?;
        }
        match &node.kind {
            Kind::Text(text) => Some(text.clone()),
            Kind::Array(items) => items.first().and_then(|first| match &first.kind {
                Kind::Text(text) => Some(text.clone()),
                _ => None,
            }),
            _ => None,
        }
    }

    fn secrets(&self, source: &str) -> Option<Vec<Secret>> {
        let mut node = self.laid(source)?;
        let mut secrets = Vec::new();
        self.each_secret(&mut node, &mut |secret| {
            secrets.push(Secret::new(secret.as_bytes().to_vec()));
            None
        });
        Some(secrets)
    }
}
