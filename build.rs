//! Embeds the provider presets: every `src/providers/NAME.toml`, so that adding a provider is adding a file. And has a
//! release's functions laid in the order of `benches/order.ld`, where the linker can.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

fn main() {
    presets();
    order();
}

fn presets() {
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

/// Not every linker takes such a script: this one is tried on a program that does nothing, and without it all works as well.
fn order() {
    let var = |name: &str| env::var(name).unwrap_or_default();
    let script = Path::new(&var("CARGO_MANIFEST_DIR")).join("benches/order.ld");
    println!("cargo::rerun-if-changed=benches/order.ld");
    // Of other systems nothing was measured.
    let is_measured = var("TARGET") == "x86_64-unknown-linux-gnu" && var("HOST") == var("TARGET");
    // A comma would end the path.
    let Some(script) = script.to_str().filter(|path| is_measured && !path.contains(',')) else { return };
    if var("PROFILE") != "release" || !Path::new(script).exists() {
        return;
    }
    let argument = format!("-Wl,-T,{script}");
    let folder = var("OUT_DIR");
    let [source, program] = ["probe.rs", "probe"].map(|name| Path::new(&folder).join(name));
    fs::write(&source, "fn main() {}").expect("OUT_DIR can be written");
    let mut rustc = Command::new(var("RUSTC"));
    rustc.arg(&source).arg("-o").arg(&program).arg(format!("-Clink-arg={argument}"));
    rustc.args(var("CARGO_ENCODED_RUSTFLAGS").split('\x1f').filter(|flag| !flag.is_empty()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let runs = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if runs(&mut rustc) && runs(&mut Command::new(&program)) {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
