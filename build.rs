//! Embeds the provider presets: every `src/providers/NAME.toml`, so that adding a provider is adding a file.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src/providers");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("src/providers is there")
        .filter_map(|entry| entry.expect("a readable folder").file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    let mut list = String::from("[\n");
    for name in &names {
        let path = folder.join(format!("{name}.toml"));
        writeln!(list, "    ({name:?}, include_str!({path:?})),").expect("a String takes it");
    }
    list.push_str("]\n");
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("presets.rs");
    fs::write(out, list).expect("OUT_DIR can be written");
}
