//! The four that are compared, each with the same certificates, secret and upstream, and a folder of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::certificates::Certificates;
use crate::message::SECRET;
use crate::process::{GATEWAY_CORE, free_port, read, wait_until};

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Hookward(PathBuf),
    Nginx,
    Haproxy,
    Floor,
    /// It stores what it takes and delivers later, so it has a row of its own.
    Qhook(PathBuf),
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// How a row speaks to the gateways.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
    Mutual,
}

pub(crate) struct Setting<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) certificates: &'a Certificates,
    pub(crate) transport: Transport,
    pub(crate) upstream: u16,
    /// Of the bodies.
    pub(crate) length: usize,
    /// Acknowledged once it is stored, in place of the upstream's own answer.
    pub(crate) stored: bool,
}

pub(crate) struct Gateway {
    pub(crate) peer: Peer,
    pub(crate) address: SocketAddr,
    folder: PathBuf,
    process: Child,
}

const NGINX: &str = "nginx";
const HAPROXY: &str = "haproxy";
/// Where Debian puts what only an administrator is thought to start.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is missing on this machine, by its Debian package.
pub(crate) fn missing() -> Vec<&'static str> {
    let program = |name: &str| FOLDERS.split(':').any(|folder| Path::new(folder).join(name).exists());
    let mut packages = Vec::new();
    if !program(NGINX) {
        packages.push("nginx");
    }
    if !Path::new("/usr/lib/nginx/modules/ngx_http_lua_module.so").exists() {
        packages.push("libnginx-mod-http-lua");
    }
    if !program(HAPROXY) {
        packages.push("haproxy");
    }
    if !program("taskset") || !program("setpriv") {
        packages.push("util-linux");
    }
    packages
}

pub(crate) fn version(kind: &Kind) -> String {
    let (program, argument) = match kind {
        Kind::Hookward(path) => (path.clone(), "--version"),
        // It does not tell; cargo, which installed it, knows.
        Kind::Qhook(path) => return installed(path).unwrap_or_else(|| "qhook of an unknown version".to_owned()),
        Kind::Nginx => (NGINX.into(), "-v"),
        Kind::Haproxy => (HAPROXY.into(), "-v"),
        Kind::Floor => return "benches/peers/floor.rs".to_owned(),
    };
    let output = Command::new(program).arg(argument).env("PATH", FOLDERS).output().expect("it is there");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}

/// Name and version, of the list that cargo keeps beside bin/.
fn installed(program: &Path) -> Option<String> {
    let list = fs::read_to_string(program.parent()?.with_file_name(".crates.toml")).ok()?;
    let line = list.lines().find(|line| line.contains(&format!("{:?}", program.file_name().unwrap_or_default())))?;
    Some(line.trim_start_matches('"').split(" (").next()?.to_owned())
}

impl Gateway {
    pub(crate) fn start(peer: &Peer, setting: &Setting<'_>) -> Self {
        let folder = setting.folder.join(peer.name.replace([' ', '/'], "_"));
        fs::create_dir_all(&folder).expect("a folder of our own");
        let port = free_port();
        let mut command = pinned();
        match &peer.kind {
            Kind::Hookward(path) => {
                fs::write(folder.join("gateway.toml"), hookward(setting)).expect("room on the disk");
                command.arg(path).arg("run");
            }
            Kind::Nginx => {
                fs::write(folder.join("check.lua"), fill(include_str!("check.lua"), &[])).expect("room on the disk");
                fs::write(folder.join("nginx.conf"), nginx(setting, &folder, port)).expect("room on the disk");
                command.arg(NGINX).arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
                command.arg("-e").arg(folder.join("start.log"));
            }
            Kind::Haproxy => {
                fs::write(folder.join("haproxy.cfg"), haproxy(setting, port)).expect("room on the disk");
                command.args([HAPROXY, "-db", "-f", "haproxy.cfg"]);
            }
            Kind::Qhook(path) => {
                let (port, upstream) = (port.to_string(), setting.upstream.to_string());
                let text = fill(include_str!("qhook.yaml"), &[("PORT", &port), ("UPSTREAM", &upstream)]);
                fs::write(folder.join("qhook.yaml"), text).expect("room on the disk");
                command.arg(path).arg("start");
            }
            Kind::Floor => {
                command.arg(std::env::current_exe().expect("this program"));
                command.args(["floor", &port.to_string(), &setting.upstream.to_string()]);
                if setting.transport != Transport::Plain {
                    command.arg("--certificates").arg(setting.certificates.file(""));
                }
                if setting.transport == Transport::Mutual {
                    command.arg("--mutual");
                }
            }
        }
        let path = folder.join("log");
        let log = || File::options().create(true).append(true).open(&path).expect("room on the disk");
        command.current_dir(&folder).stdin(Stdio::null()).stdout(log()).stderr(log());
        let process = command.spawn().expect("taskset and setpriv");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut gateway = Self { peer: peer.clone(), address, folder, process };
        gateway.wait(&path);
        gateway
    }

    /// Until it accepts. hookward chooses its port and announces it.
    fn wait(&mut self, log: &Path) {
        let name = self.peer.name.clone();
        wait_until(&name, || {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("{name}: {status}\n{}", read(log));
            }
            if matches!(self.peer.kind, Kind::Hookward(_)) {
                let text = read(log);
                let announced = text.lines().find_map(|line| {
                    let words = line.split_once("listening listener=")?.1.split_ascii_whitespace();
                    let mut words = words.skip_while(|word| !word.starts_with("address="));
                    line.contains("public").then(|| words.next()?.strip_prefix("address=")?.parse().ok())?
                });
                let Some(address) = announced else { return false };
                self.address = address;
            }
            TcpStream::connect(self.address).is_ok()
        });
    }

    /// Its answer to a forgery.
    pub(crate) fn refusal(&self) -> u16 {
        if matches!(self.peer.kind, Kind::Qhook(_)) { 400 } else { 401 }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Gateway {
    /// nginx ends its worker when it is asked to, not when it is killed.
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.process.id() as i32) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = Instant::now();
        while let Ok(None) = self.process.try_wait() {
            if start.elapsed() > Duration::from_secs(3) {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if !std::thread::panicking() {
            // The logs of a run that went well tell nothing more.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// To the gateways' core, and ending when we do.
fn pinned() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "taskset", "-c", GATEWAY_CORE]).env("PATH", FOLDERS);
    command
}

fn fill(text: &str, holes: &[(&str, &str)]) -> String {
    let text = text.replace("@SECRET@", SECRET);
    let text = holes.iter().fold(text, |text, (hole, with)| text.replace(&format!("@{hole}@"), with));
    assert!(!text.contains("@\n") && !text.contains("@TLS"), "every hole is filled");
    text
}

fn hookward(setting: &Setting<'_>) -> String {
    let file = |name| setting.certificates.file(name);
    let server = format!("tls.certificate = {:?}\ntls.private_key = {:?}\n", file("server.pem"), file("server.key"));
    let (tls, source) = match setting.transport {
        Transport::Plain => (String::new(), ""),
        Transport::Tls => (server, ""),
        Transport::Mutual => {
            let mutual = format!("tls.client_ca = {:?}\ntls.client_auth = \"require\"\n", file("ca.pem"));
            (server + &mutual, "client_cert = { required = true }")
        }
    };
    let inbox = "delivery = \"inbox\"\nacknowledge = 200\n[inbox]\npath = \"inbox\"";
    let source = if setting.stored { inbox } else { source };
    let upstream = setting.upstream.to_string();
    fill(include_str!("hookward.toml"), &[("TLS", &tls), ("SOURCE", source), ("UPSTREAM", &upstream)])
}

fn nginx(setting: &Setting<'_>, folder: &Path, port: u16) -> String {
    let file = |name| setting.certificates.file(name);
    let server = format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
        file("server.pem"),
        file("server.key")
    );
    let (listen, tls) = match setting.transport {
        Transport::Plain => ("", String::new()),
        Transport::Tls => ("ssl http2", server),
        Transport::Mutual => {
            ("ssl", format!("{server} ssl_client_certificate {}; ssl_verify_client on;", file("ca.pem")))
        }
    };
    let (port, upstream, folder) = (port.to_string(), setting.upstream.to_string(), folder.display().to_string());
    let holes = [("LISTEN", listen), ("TLS", &tls), ("PORT", &port), ("UPSTREAM", &upstream), ("FOLDER", &folder)];
    fill(include_str!("nginx.conf"), &holes)
}

fn haproxy(setting: &Setting<'_>, port: u16) -> String {
    let file = |name| setting.certificates.file(name);
    let server = format!("ssl crt {} alpn h2,http/1.1", file("both.pem"));
    let bind = match setting.transport {
        Transport::Plain => String::new(),
        Transport::Tls => server,
        Transport::Mutual => format!("{server} ca-file {} verify required", file("ca.pem")),
    };
    // Its own default, unless a body would not fit.
    let buffer = (setting.length + 8 * 1024).max(16 * 1024).to_string();
    let secret = base64::engine::general_purpose::STANDARD.encode(SECRET);
    let (port, upstream) = (port.to_string(), setting.upstream.to_string());
    let holes =
        [("PORT", &*port), ("BIND", &bind), ("BUFFER", &buffer), ("SECRET64", &secret), ("UPSTREAM", &upstream)];
    fill(include_str!("haproxy.cfg"), &holes)
}
