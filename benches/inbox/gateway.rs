//! The built binary in a folder of its own, killed by its process id at the end; and what the kernel and its own metrics tell of it.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{MIB, read};

pub(crate) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// What is told between them: the state, the inbox, the upstreams.
const LISTENERS: &str = r#"
[listeners.public]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[limits]
max_connections_per_client = 2000
max_requests_per_client = 2000
[log]
audit = "audit.log"
"#;

const SOURCE: &str = r#"
[sources.acme]
path = "/acme"
secrets = [{ value = "SECRET" }]
rate_limit = { rate = "1000000/s", burst = 1000000 }
FURTHER
[sources.acme.verify]
algorithm = "hmac-sha256"
signature = { header = "X-Acme-Signature", encoding = "hex", prefix = "v1=" }
message = "{timestamp}.{body}"
timestamp = { header = "X-Acme-Timestamp", unit = "s", tolerance = "5m" }
id = { header = "X-Acme-Delivery" }
event = { json = "/type" }
"#;

pub(crate) struct Gateway {
    folder: PathBuf,
    process: Child,
    pub(crate) public: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    /// `tables` of the configuration, and further keys of its only source.
    pub(crate) fn start(folder: &Path, tables: &str, source: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = folder.join(format!("hookward-bench-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder of our own");
        let secret = std::str::from_utf8(SECRET).expect("text");
        let source = SOURCE.replace("SECRET", secret).replace("FURTHER", source);
        fs::write(folder.join("gateway.toml"), format!("{LISTENERS}{tables}{source}")).expect("room on the disk");
        let (process, public, admin) = run(&folder);
        Self { folder, process, public, admin }
    }

    /// As after a crash. Another port: it is announced anew.
    pub(crate) fn kill_and_start(&mut self) {
        end(&mut self.process);
        (self.process, self.public, self.admin) = run(&self.folder);
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = read(format!("/proc/{}/status", self.pid()));
        let rollup = read(format!("/proc/{}/smaps_rollup", self.pid()));
        let kib = |text: &str, key: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
        };
        Memory {
            resident: kib(&status, "VmRSS:"),
            most: kib(&status, "VmHWM:"),
            anonymous: kib(&status, "RssAnon:"),
            proportional: kib(&rollup, "Pss:"),
        }
    }

    /// The sum of a metric over its labels; nothing where there is none of that name.
    fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "")
    }

    /// The same of those series alone that have this in their line.
    pub(crate) fn metric_of(&self, name: &str, label: &str) -> f64 {
        let metrics = get(self.admin, "/metrics").expect("the admin port answers");
        let lines = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.filter(|line| line.contains(label)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        end(&mut self.process);
        if std::thread::panicking() {
            return; // The log may say why.
        }
        fs::remove_dir_all(&self.folder).expect("a folder of our own");
    }
}

fn run(folder: &Path) -> (Child, SocketAddr, SocketAddr) {
    let path = folder.join("log");
    let log = File::create(&path).expect("room on the disk");
    let binary = std::env::var_os("HOOKWARD").unwrap_or_else(|| env!("CARGO_BIN_EXE_hookward").into());
    let mut command = Command::new(binary);
    command.arg("run").current_dir(folder).stdin(Stdio::null()).stderr(log);
    let mut process = command.spawn().expect("the built binary");
    let start = Instant::now();
    loop {
        let told = read(&path);
        if let (Some(public), Some(admin)) = (address(&told, "public"), address(&told, "admin"))
            && get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            return (process, public, admin);
        }
        let has_ended = process.try_wait().is_ok_and(|ended| ended.is_some());
        if has_ended || start.elapsed() > Duration::from_secs(300) {
            end(&mut process);
            panic!("the gateway is not ready; its log:\n{told}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(process: &mut Child) {
    process.kill().and_then(|()| process.wait()).expect("a process of our own");
}

fn address(log: &str, listener: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| {
        line.contains(" listening ")
            && (line.contains(&format!("=\"{listener}\"")) || line.contains(&format!("={listener} ")))
    })?;
    line.split_once("address=")?.1.split_ascii_whitespace().next()?.parse().ok()
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// In bytes.
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) proportional: f64,
    anonymous: f64,
    pub(crate) most: f64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [resident, proportional, anonymous, most] =
            [self.resident, self.proportional, self.anonymous, self.most].map(|bytes| bytes / MIB);
        write!(f, "RSS {resident:>6.1}  PSS {proportional:>6.1}  anonymous {anonymous:>6.1}  most {most:>6.1} MiB")
    }
}

/// Counted from the start of the processes; of use as a difference.
pub(crate) struct Usage {
    /// Seconds.
    pub(crate) gateway_cpu: f64,
    pub(crate) own_cpu: f64,
    /// Bytes that the gateway had the disk write.
    pub(crate) written: f64,
    pub(crate) commits: f64,
}

impl Usage {
    pub(crate) fn now(gateway: &Gateway) -> Self {
        let io = read(format!("/proc/{}/io", gateway.pid()));
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        Self {
            gateway_cpu: cpu(gateway.pid()),
            own_cpu: cpu(std::process::id()),
            written: written.unwrap_or(f64::NAN),
            commits: gateway.metric("hookward_inbox_batch_size_count"),
        }
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            gateway_cpu: self.gateway_cpu - before.gateway_cpu,
            own_cpu: self.own_cpu - before.own_cpu,
            written: self.written - before.written,
            commits: self.commits - before.commits,
        }
    }
}

/// Of CPU time, as /proc tells it: the same on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of user and system time.
pub(crate) fn cpu(pid: u32) -> f64 {
    let stat = read(format!("/proc/{pid}/stat"));
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    ticks / TICKS_PER_SECOND
}

pub(crate) fn machine() -> String {
    let information = read("/proc/cpuinfo");
    let model =
        information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = information.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} cores, {}", model.unwrap_or("unknown processor"))
}
