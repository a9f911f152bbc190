//! The disk without the gateway: what one fdatasync costs, how much room there is and how much is used.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::quantile;

/// A page of the store, as its log appends it.
const APPENDED: [u8; 8192] = [7; 8192];
const TIMES: usize = 2_000;
const LONGEST: Duration = Duration::from_secs(5);

/// Microseconds of one fdatasync, in ascending order.
pub(crate) struct Syncs(Vec<u32>);

impl Syncs {
    pub(crate) fn measure(folder: &Path) -> Self {
        let path = folder.join("syncs");
        let mut file = File::create(&path).expect("a file beside the gateway's");
        let start = Instant::now();
        let mut took = Vec::with_capacity(TIMES);
        while took.len() < TIMES && start.elapsed() < LONGEST {
            let start = Instant::now();
            file.write_all(&APPENDED).expect("room on the disk");
            file.sync_data().expect("a disk that syncs");
            took.push(start.elapsed().as_micros() as u32);
        }
        std::fs::remove_file(path).expect("a file of our own");
        took.sort_unstable();
        Self(took)
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.0.extend(other.0);
        self.0.sort_unstable();
    }

    pub(crate) fn at(&self, share: f64) -> f64 {
        quantile(&self.0, share)
    }
}

impl fmt::Display for Syncs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {:.0} us, p99 {:.0} us, max {:.0} us ({} times)",
            self.at(0.5),
            self.at(0.99),
            self.at(1.0),
            self.0.len()
        )
    }
}

/// Ends the run where it would fill the disk.
pub(crate) fn demand_room(folder: &Path, bytes: u64) {
    std::fs::create_dir_all(folder).expect("the folder to work in");
    let disk = rustix::fs::statvfs(folder).expect("a folder on some disk");
    let free = disk.f_bavail * disk.f_frsize;
    let (free, needed) = (free >> 20, bytes >> 20);
    assert!(free > needed, "{}: {free} MiB are free, and {needed} MiB may be needed", folder.display());
}

/// What the store takes: all that lies in the gateway's folder but its log and its audit lines.
pub(crate) fn usage(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => usage(&entry.path()),
        Ok(metadata) if !entry.file_name().to_string_lossy().ends_with("log") => metadata.len(),
        // Or a file that went between the listing and the look at it.
        _ => 0,
    });
    sizes.sum()
}
