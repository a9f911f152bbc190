//! `check`: load the configuration, print everything that is wrong with it, open no socket.

use super::{NO, UNUSABLE_CONFIGURATION, complain, say};
use crate::config::{self, Effective, Loaded, Severity};
use std::path::Path;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Print every setting with its value and where it comes from; secrets are named, never shown.
    #[arg(long)]
    effective: bool,
    /// Warnings count as errors.
    #[arg(long)]
    strict: bool,
}

pub(super) fn check(path: &Path, arguments: &Arguments) -> ExitCode {
    let Loaded { config, problems, effective } = config::load(path, &config::process_environment);
    for problem in &problems {
        complain(&problem.to_string());
    }
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if arguments.effective {
        print_effective(effective);
    }
    let Some(config) = config else {
        complain(&format!("{}: unusable: {errors} errors, {warnings} warnings", path.display()));
        return ExitCode::from(UNUSABLE_CONFIGURATION);
    };
    let sources = config.plan.sources.len();
    say(&format!("{}: usable: {sources} sources, {warnings} warnings", path.display()));
    if arguments.strict && warnings > 0 { ExitCode::from(NO) } else { ExitCode::SUCCESS }
}

fn print_effective(mut effective: Vec<Effective>) {
    effective.sort_by(|a, b| a.key.cmp(&b.key));
    effective.dedup_by(|a, b| a.key == b.key && a.value == b.value);
    for Effective { key, value, from } in effective {
        say(&format!("{key} = {value}  # {from}"));
    }
}
