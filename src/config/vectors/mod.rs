//! Recorded and published deliveries of real providers, each judged at the time it was made for, by presets that are
//! loaded the way that users load them.
//!
//! Invariant: what a vector states is turned into the text of a configuration and nothing else; between that text and
//! the verdict stands only what the gateway itself runs. How a vector's `config` is spelled as TOML is written down
//! once for each family: `hmac`, `asymmetric_keys`, `tokens`, `http_signatures`, `platforms`, `handshakes`.

mod asymmetric_keys;
mod handshakes;
mod hmac;
mod http_signatures;
mod judged;
mod language;
mod platforms;
mod presets;
mod run;
mod signed;
mod tokens;
mod vector;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::{Loaded, Severity, load};
use crate::gateway::source::Settings;

/// Loads a text from a folder of its own, without any environment.
pub(super) fn loaded(text: &str) -> Loaded {
    let folder = Folder::new();
    let file = folder.0.join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    load(&file, &|_| None)
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hookward-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is a small file among temporary ones.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A configuration with one source, whose own keys are these, and the folder of further presets.
fn configuration(keys: &str, provider_files: Option<&Path>) -> String {
    let provider_files = provider_files
        .map(|folder| format!("provider_files = {}\n", quoted(&folder.to_string_lossy())))
        .unwrap_or_default();
    format!(
        "{provider_files}[listeners.public]\naddress = \"127.0.0.1:0\"\n\
         [upstreams.app]\nurls = [\"http://127.0.0.1:9000\"]\n\
         [sources.it]\npath = \"/in/*\"\nupstream = \"app\"\n{keys}"
    )
}

/// The preset that a source's keys name.
fn preset_of(keys: &str) -> Option<String> {
    let named = keys.lines().find_map(|line| line.strip_prefix("provider = \""))?;
    Some(named.trim_end_matches('"').to_owned())
}

fn source(keys: &str, provider_files: Option<&Path>) -> Result<Settings, String> {
    let Loaded { config, problems, .. } = loaded(&configuration(keys, provider_files));
    let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    match (config, errors.is_empty()) {
        (Some(mut config), true) => Ok(config.plan.sources.pop().unwrap()),
        _ => {
            let told = errors.iter().map(|problem| format!("{}: {} ({})", problem.key, problem.what, problem.hint));
            Err(format!("does not load: {}", told.collect::<Vec<_>>().join("; ")))
        }
    }
}

/// The lines of a source whose preset and secrets are these.
fn preset_with(preset: &str, secrets: &[&str]) -> String {
    let secrets: Vec<_> = secrets.iter().map(|secret| format!("{{ value = {} }}", quoted(secret))).collect();
    format!("provider = {}\nsecrets = [{}]\n", quoted(preset), secrets.join(", "))
}

/// TOML's own spelling, whatever characters a text has.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The line that sets what a vector states of the tolerance. Where it states that there is none, the largest that can
/// be set; where it states nothing, the preset's own.
fn tolerance(seconds: Option<&Value>) -> String {
    match seconds {
        Some(Value::Null) => "verify.timestamp.tolerance = \"1d\"\n".to_owned(),
        Some(seconds) => format!("verify.timestamp.tolerance = \"{seconds}s\"\n"),
        None => String::new(),
    }
}
