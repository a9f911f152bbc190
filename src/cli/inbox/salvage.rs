//! `inbox salvage`: what is readable of a damaged store, in a new one beside it.
//!
//! Invariant: the damaged store is left as it is; what was lost is said in numbers, and the exit code says that there was.

use super::place::not_as_root;
use super::{Done, Failure, NO, UNUSABLE_CONFIGURATION, say};
use crate::config::{self, Office};
use crate::inbox;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Salvaging {
    /// Where the new store is made; the folder's name and `.salvaged`, where nothing is said.
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
}

pub(super) fn salvage(config: &Path, asked: &Salvaging) -> Done {
    // The rest of the configuration, secrets included, is not needed for it, and may be unusable.
    let Office { inbox: Some(settings), .. } = config::office(config, &config::process_environment) else {
        return Err(Failure::new(UNUSABLE_CONFIGURATION, format!("{}: it cannot be read", config.display())));
    };
    // Of the folder itself too: whoever owns it may put any link where the database was.
    for file in [settings.folder.clone(), settings.folder.join("inbox.db")] {
        if let Ok(found) = file.symlink_metadata() {
            not_as_root(&file, found.uid())?;
        }
    }
    let beside = || {
        let mut name = settings.folder.as_os_str().to_owned();
        name.push(".salvaged");
        PathBuf::from(name)
    };
    let to = asked.to.clone().unwrap_or_else(beside);
    let salvaged = inbox::salvage(&settings.folder, &to).map_err(|error| Failure::new(NO, error.to_string()))?;
    for (table, rows) in &salvaged.saved {
        say(&format!("{rows:>10} {table}"));
    }
    let (old, new) = (settings.folder.display(), to.display());
    if salvaged.lost.is_empty() {
        say("nothing was lost");
    }
    for line in &salvaged.lost {
        say(&format!("lost: {line}"));
    }
    say(&format!("{old} was left as it is. Move it away, and {new} into its place, to go on with what was saved"));
    Ok(if salvaged.lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}
