//! The engines as the tests start them.

#[path = "../../tests/it/support/engines/mod.rs"]
pub(crate) mod engines;
#[path = "../../tests/it/support/folder.rs"]
mod folder;

use std::time::Duration;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) mod gateway {
    //! What the engines want of the tests' gateway: a folder.

    pub(crate) use super::folder::Folder;
}
