//! A running hookward, ended by its process id when the test lets go of it.

pub(crate) use super::folder::Folder;
use super::{PATIENCE, eventually};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_hookward");

/// `hookward ARGUMENTS`, run to its end: exit code, standard output, standard error.
pub(crate) fn hookward(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let done = Command::new(BINARY).current_dir(folder).args(arguments).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (done.status.code().unwrap_or(-1), text(done.stdout), text(done.stderr))
}

pub(crate) struct Gateway {
    child: Child,
    pub folder: Arc<Folder>,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    addresses: BTreeMap<String, SocketAddr>,
}

/// The operator's port and a plaintext listener called `public`, both on ports of their own. Tests append to it.
pub(crate) const PLAIN: &str = r#"
[listeners.public]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
token = { value = "an-admin-token-for-tests" }
[log]
format = "json"
level = "debug"
"#;

impl Gateway {
    /// Starts on `PLAIN` and what is given, and waits until it is ready.
    pub(crate) fn start(configuration: &str) -> Self {
        Self::start_in(Arc::new(Folder::new()), &format!("{PLAIN}{configuration}"))
    }

    /// Starts on exactly this text, in a folder that may hold certificates or an earlier run's state.
    pub(crate) fn start_in(folder: Arc<Folder>, configuration: &str) -> Self {
        Self::start_with(folder, configuration, |_| {})
    }

    pub(crate) fn start_with(folder: Arc<Folder>, configuration: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        folder.write("gateway.toml", configuration);
        let mut command = Command::new(BINARY);
        command.current_dir(&folder.0).args(["run", "--config", "gateway.toml"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        let log: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                writer.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                writer.1.notify_all();
            }
        });
        let mut gateway = Self { child, folder, log, addresses: BTreeMap::new() };
        let listeners =
            configuration.matches("[listeners.").filter(|_| true).count() - configuration.matches(".tls]").count();
        let wanted = listeners + configuration.matches("[admin]").count();
        for _ in 0..wanted {
            gateway.read_next_address();
        }
        // The ports are bound before the state is opened; ready is when the operator's port answers.
        if gateway.addresses.contains_key("admin") {
            eventually("the gateway answers", || gateway.get("/healthz").filter(|answer| answer.status == 200));
        }
        gateway
    }

    fn read_next_address(&mut self) {
        let known = self.addresses.len();
        let (name, address) = eventually("the listeners are announced", || {
            let status = self.child.try_wait().expect("a child");
            assert!(status.is_none(), "the gateway ended: {status:?}\n{}", self.log_text());
            self.announced().into_iter().nth(known)
        });
        self.addresses.insert(name, address);
    }

    /// `listening` lines, in their order.
    pub(crate) fn announced(&self) -> Vec<(String, SocketAddr)> {
        let lines = self.lines();
        lines
            .iter()
            .filter(|line| line.contains("\"listening\"") || line.contains(" listening "))
            .filter_map(|line| {
                if !line.starts_with('{') {
                    let field = |name: &str| line.split(' ').find_map(|part| part.strip_prefix(name));
                    let listener = field("listener=")?.trim_matches('"').to_owned();
                    return Some((listener, field("address=")?.parse().ok()?));
                }
                let json: serde_json::Value = serde_json::from_str(line).ok()?;
                Some((json.get("listener")?.as_str()?.to_owned(), json.get("address")?.as_str()?.parse().ok()?))
            })
            .collect()
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        *self.addresses.get(listener).unwrap_or_else(|| panic!("no listener {listener}:\n{}", self.log_text()))
    }

    pub(crate) fn public(&self) -> SocketAddr {
        self.address("public")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log_text(&self) -> String {
        self.lines().join("\n")
    }

    /// Also once somebody has failed while he held them: whoever shows the log of a failed test must not fail himself.
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the log says this.
    pub(crate) fn wait_for_log(&self, needle: &str) -> String {
        let mut lines = self.lines();
        let start = Instant::now();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(needle)) {
                return line.clone();
            }
            let left = PATIENCE
                .checked_sub(start.elapsed())
                .unwrap_or_else(|| panic!("the log never said {needle:?}:\n{}", lines.join("\n")));
            lines = self.log.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The audit lines so far, as JSON.
    pub(crate) fn audit(&self) -> Vec<serde_json::Value> {
        let lines = self.lines();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        parsed.filter(|line| line.get("type").is_some_and(|kind| kind == "audit")).collect()
    }

    /// Waits for the audit line of a request.
    pub(crate) fn audit_of(&self, request_id: &str) -> serde_json::Value {
        eventually("the request is in the audit log", || {
            self.audit().into_iter().find(|line| line["request_id"] == request_id)
        })
    }

    pub(crate) fn get(&self, path: &str) -> Option<super::Answer> {
        super::Request::new("GET", path).try_send(self.address("admin")).ok()
    }

    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics").expect("the operator's port answers").text()
    }

    /// A series' value; 0 where it is not there.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics();
        let found = text.lines().find(|line| {
            let series = line.split([' ', '{']).next() == Some(name);
            series && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        });
        found.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    pub(crate) fn outcome(&self, source: &str, outcome: &str) -> u64 {
        self.metric("hookward_deliveries_total", &[("source", source), ("outcome", outcome)]) as u64
    }

    pub(crate) fn signal(&self, name: &str) {
        // The shell's own: the program is not on every machine.
        let words = ["-c", "kill -s \"$1\" \"$2\"", "sh", name, &self.child.id().to_string()];
        let done = Command::new("sh").args(words).status();
        assert!(done.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Another configuration in the same file, and SIGHUP; waits until the gateway says how that went.
    pub(crate) fn reload(&mut self, configuration: &str) -> bool {
        let count = |result: &str| self.metric("hookward_config_reloads_total", &[("result", result)]);
        let before = (count("success"), count("failure"));
        self.folder.write("gateway.toml", configuration);
        self.signal("HUP");
        let succeeded = eventually("the reload is counted", || {
            let now = (count("success"), count("failure"));
            (now != before).then_some(now.0 > before.0)
        });
        for (name, address) in self.announced() {
            self.addresses.insert(name, address);
        }
        succeeded
    }

    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        eventually("the gateway ends", || self.child.try_wait().expect("a child"))
    }

    /// kill -9: no drain, no flush.
    pub(crate) fn kill(mut self) -> Arc<Folder> {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
        self.folder.clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log_text());
        }
    }
}

#[test]
fn a_test_that_fails_while_it_reads_the_log_shows_it_and_ends_alone() {
    let source = "[sources.some]\npath = \"/some\"\nprovider = \"github\"\nupstream = \"app\"\n\
                  secrets = [{ value = \"a-secret-of-this-test\" }]\n[upstreams.app]\nurls = [\"http://127.0.0.1:9\"]\n";
    let gateway = Gateway::start(source);
    let child = gateway.pid();
    let failed = std::thread::spawn(move || {
        let _lines = gateway.lines();
        panic!("failed, as meant");
    });
    assert!(failed.join().is_err());
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "the gateway ended with it");
}
