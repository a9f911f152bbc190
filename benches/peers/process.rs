//! What the kernel tells of a process and its children, and where it may run.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The gateway has the first to itself; generator and upstream share the second.
pub(crate) const GATEWAY_CORE: &str = "0";
pub(crate) const OTHER_CORE: &str = "1";

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The kernel counts in hundredths of a second here, whatever its own tick (USER_HZ).
const TICK: f64 = 0.01;

pub(crate) fn pin_ourselves() {
    let pid = std::process::id().to_string();
    let status = Command::new("taskset").args(["-pc", OTHER_CORE, &pid]).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "two cores and taskset (Debian: util-linux) are needed");
}

/// It and its children: nginx works in one.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return all };
    for task in tasks.flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
            all.extend(family(child));
        }
    }
    all
}

/// Seconds in user and kernel mode, of ended threads too, of all the family.
pub(crate) fn cpu(pid: u32) -> f64 {
    family(pid).into_iter().map(cpu_alone).sum()
}

pub(crate) fn cpu_alone(pid: u32) -> f64 {
    let stat = read(format!("/proc/{pid}/stat"));
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = |index: usize| fields.split(' ').nth(index).and_then(|field| field.parse::<f64>().ok());
    (ticks(11).expect("utime") + ticks(12).expect("stime")) * TICK
}

/// Seconds in which the gateways' core was not idle, whoever it worked for; time that the machine's host took is in it.
pub(crate) fn core() -> f64 {
    let stat = read("/proc/stat");
    let name = format!("cpu{GATEWAY_CORE} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)).expect("the core is there");
    let ticks: Vec<f64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in the first two already.
    ticks.iter().enumerate().filter(|(index, _)| !matches!(index, 3 | 4 | 8..)).map(|(_, ticks)| ticks * TICK).sum()
}

/// Proportional set size, in bytes.
pub(crate) fn memory(pid: u32) -> f64 {
    let of = |pid: u32| -> f64 {
        let rollup = read(format!("/proc/{pid}/smaps_rollup"));
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a kernel that counts it");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("kilobytes") * 1024.0
    };
    family(pid).into_iter().map(of).sum()
}

pub(crate) fn free_port() -> u16 {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    probe.local_addr().expect("it is bound").port()
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn machine() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} cores, {}", model.map_or("unknown processor", |(_, model)| model.trim()))
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
