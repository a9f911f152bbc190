//! Real Redis servers for unit tests: each on its own port and folder, on loopback, killed when it is dropped.
//!
//! Invariant: what is returned answers; the tests talk to it beside the link through a socket of its own, which is
//! neither TLS nor counted among the link's connections.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use redis::{Client, ConnectionLike, RedisResult, Value};
use rustix::process::{Pid, Signal, kill_process};

use super::{Address, Settings, Topology};
use crate::secret::Secret;
use crate::tls_client::{ClientIdentity, TlsSettings};

const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(10);

pub(crate) struct Redis {
    pub(crate) port: u16,
    folder: Folder,
    sentinel: bool,
    password: Option<String>,
    child: Option<Child>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// Lines as in redis.conf: `requirepass secret`, `user hookward on >secret ~* +@all`, `appendonly yes`.
    pub(crate) fn with(lines: &[&str]) -> Self {
        Self::launch(lines, None, false)
    }

    /// With a server certificate for "localhost" and 127.0.0.1. Clients need not show one, unless a line says so:
    /// `tls-auth-clients yes`.
    pub(crate) fn with_tls(authority: &Authority, lines: &[&str]) -> Self {
        Self::launch(lines, Some(authority), false)
    }

    /// One that looks after the master at this port, named so, and is sure of its death after half a second.
    pub(crate) fn sentinel(master: &str, port: u16, quorum: u32, lines: &[&str]) -> Self {
        let about = [
            format!("sentinel monitor {master} 127.0.0.1 {port} {quorum}"),
            format!("sentinel down-after-milliseconds {master} 500"),
            format!("sentinel failover-timeout {master} 2000"),
        ];
        let lines: Vec<&str> = about.iter().map(String::as_str).chain(lines.iter().copied()).collect();
        Self::launch(&lines, None, true)
    }

    fn launch(lines: &[&str], authority: Option<&Authority>, sentinel: bool) -> Self {
        // Between finding a free port and the server's taking it, another may have been faster.
        for _ in 0..20 {
            let folder = Folder::new();
            let port = free_port();
            let path = folder.0.display();
            let mut text = format!("bind 127.0.0.1\ndir {path}\nunixsocket {path}/socket\nlogfile {path}/log\n");
            match authority {
                Some(authority) => {
                    let (certificate, key) = authority.issue(&["localhost", "127.0.0.1"]);
                    for (name, pem) in [("ca", &authority.pem()), ("certificate", &certificate), ("key", &key)] {
                        fs::write(folder.0.join(name), pem).unwrap();
                    }
                    text += &format!("port 0\ntls-port {port}\ntls-auth-clients no\n");
                    text += &format!("tls-ca-cert-file {path}/ca\ntls-cert-file {path}/certificate\n");
                    text += &format!("tls-key-file {path}/key\n");
                }
                None => text += &format!("port {port}\n"),
            }
            if !sentinel {
                text += "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n";
            }
            if lines.contains(&"cluster-enabled yes") {
                text += &format!("cluster-port {}\ncluster-node-timeout 1000\n", free_port());
            }
            for line in lines {
                text += line;
                text += "\n";
            }
            fs::write(folder.0.join("redis.conf"), text).unwrap();
            let password = lines.iter().find_map(|line| line.strip_prefix("requirepass ")).map(str::to_owned);
            let mut redis = Self { port, folder, sentinel, password, child: None };
            if redis.spawn() {
                return redis;
            }
        }
        panic!("no redis-server came up in 20 attempts");
    }

    /// False when it ended by itself.
    fn spawn(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command.arg(self.folder.0.join("redis.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if self.sentinel {
            command.arg("--sentinel");
        }
        let child = command.spawn().expect("redis-server is needed for this test: install the package redis-server");
        self.child = Some(child);
        let begun = Instant::now();
        loop {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.child = None;
                return false;
            }
            if self.answers() {
                return true;
            }
            assert!(begun.elapsed() < PATIENCE, "redis-server does not answer; its log: {}", self.log());
            sleep(STEP);
        }
    }

    /// An answer that it may not be spoken to is one too.
    fn answers(&self) -> bool {
        match self.try_cli(&["PING"]) {
            Ok(_) => true,
            Err(error) => matches!(error.code(), Some("NOAUTH" | "NOPERM")),
        }
    }

    fn client(&self) -> Client {
        let login = self.password.as_ref().map(|password| format!("?pass={password}")).unwrap_or_default();
        Client::open(format!("unix://{}/socket{login}", self.folder.0.display())).unwrap()
    }

    pub(crate) fn address(&self) -> Address {
        Address { host: "127.0.0.1".to_owned(), port: self.port }
    }

    /// Of a link to it.
    pub(crate) fn settings(&self) -> Settings {
        Settings::new(Topology::Single(self.address()))
    }

    /// Beside the link, as the default user.
    pub(crate) fn cli(&self, words: &[&str]) -> Value {
        self.try_cli(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub(crate) fn try_cli(&self, words: &[&str]) -> RedisResult<Value> {
        let mut command = redis::Cmd::new();
        words.iter().for_each(|word| {
            command.arg(*word);
        });
        self.client().get_connection()?.req_command(&command)?.extract_error()
    }

    /// `INFO`'s value of this name.
    pub(crate) fn info(&self, name: &str) -> String {
        let text: String = redis::from_redis_value(self.cli(&["INFO", "everything"])).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO has no {name}")).to_owned()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.0.join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    /// Alive and mute, with all its connections, until `resume`.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// At once; what was not written to disk is lost.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// On the same port: empty, unless a line made it keep what it has.
    pub(crate) fn restart(&mut self) {
        self.kill();
        drop(fs::remove_file(self.folder.0.join("socket")));
        let begun = Instant::now();
        while !self.spawn() {
            assert!(begun.elapsed() < PATIENCE, "redis-server does not come back; its log: {}", self.log());
            sleep(STEP);
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Masters that share the slots evenly, the last of them holding the rest.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
}

impl Cluster {
    pub(crate) fn start(masters: u16) -> Self {
        let nodes: Vec<Redis> = (0..masters).map(|_| Redis::with(&["cluster-enabled yes"])).collect();
        let share = 16384 / masters;
        for (at, node) in (0..masters).zip(&nodes) {
            let last = if at + 1 == masters { 16383 } else { (at + 1) * share - 1 };
            node.cli(&["CLUSTER", "ADDSLOTSRANGE", &(at * share).to_string(), &last.to_string()]);
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
        }
        let cluster = Self { nodes };
        cluster.nodes[1..].iter().for_each(|node| cluster.join(node));
        let whole = |node: &Redis| {
            let known: String = redis::from_redis_value(node.cli(&["CLUSTER", "INFO"])).unwrap();
            known.contains("cluster_state:ok") && known.contains(&format!("cluster_known_nodes:{masters}\r"))
        };
        until("the cluster is whole", || cluster.nodes.iter().all(whole));
        cluster
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::new(Topology::Cluster(self.nodes.iter().map(Redis::address).collect()))
    }

    /// As a node without slots; it knows the others some time later.
    pub(crate) fn join(&self, node: &Redis) {
        self.nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &node.cluster_port()]);
    }

    /// Its number among the nodes.
    pub(crate) fn holder_of(&self, key: &str) -> usize {
        let held = |node: &Redis| node.try_cli(&["TYPE", key]).is_ok();
        self.nodes.iter().position(held).expect("some node has it")
    }
}

impl Redis {
    fn cluster_port(&self) -> String {
        let lines = fs::read_to_string(self.folder.0.join("redis.conf")).unwrap();
        lines.lines().find_map(|line| line.strip_prefix("cluster-port ")).unwrap().to_owned()
    }
}

/// Who vouches for servers and clients.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two of the same name would be told apart by their signatures alone.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:016x}", rand::random::<u64>()));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate and its key.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Of a client that trusts it alone.
    pub(crate) fn trusted(&self) -> TlsSettings {
        TlsSettings { ca: Some(self.pem().into_bytes()), ..TlsSettings::default() }
    }

    pub(crate) fn identity(&self) -> ClientIdentity {
        let (certificate, key) = self.issue(&["client"]);
        ClientIdentity { certificate: certificate.into_bytes(), private_key: Secret::new(key.into_bytes()) }
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: a Unix socket's path has room for some hundred bytes.
        let path = std::env::temp_dir().join(format!("hookward-redis-{}-{number}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(Path::new(&self.0)));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Blocks the thread; for what no event tells.
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(STEP);
    }
}
