//! Real engines (Redis, NATS, RabbitMQ, HAProxy), each on ports and in a folder of its own, on loopback only.
//! Invariant: nothing global is touched, and whatever way a test ends, its engines end with it: by process group when the
//! value is dropped, and by a watchdog when the test process itself is killed.

mod haproxy;
mod nats;
mod rabbit;
mod redis;

pub(crate) use haproxy::HaProxy;
pub(crate) use nats::Nats;
pub(crate) use rabbit::Rabbit;
pub(crate) use redis::Redis;

use super::PATIENCE;
use super::gateway::Folder;
use rustix::process::{Pid, Signal, kill_process_group};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Below what the kernel gives to outgoing connections (32768 and up), so that nobody takes the port of an engine while it
/// is being restarted.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port on loopback that was free a moment ago. Whoever starts an engine on it tries another when it was taken since.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let many = u32::from(PORTS.end - PORTS.start);
    // Two test processes at once start far from each other.
    let start = std::process::id().wrapping_mul(2_654_435_761) % many;
    for _ in 0..many {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = u16::try_from(start.wrapping_add(step) % many).expect("less than all ports");
        let port = PORTS.start + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free in {PORTS:?}");
}

/// Where a program is; which one is missing, and what installs it.
fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    // Debian puts servers there, and not everybody's PATH has it.
    let places = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    let found = places.map(|folder| PathBuf::from(folder).join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; tests/run installs it"))
}

/// A program in a process group of its own.
pub(super) struct Running {
    child: Child,
    /// Kills the group when its standard input ends, which it does when this process is gone, whatever ended it.
    watchdog: Child,
    ended: bool,
}

impl Running {
    pub(super) fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).process_group(0).spawn().expect("the engine starts");
        let watchdog = Command::new("sh")
            // Debian's shell takes no group after -KILL.
            .args(["-c", "read -r _; kill -s KILL -- \"-$1\"", "sh", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell");
        Self { child, watchdog, ended: false }
    }

    fn signal(&self, signal: Signal) {
        if self.ended {
            return;
        }
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        // The last of the group may be gone already.
        let _ = kill_process_group(group, signal);
        if signal == Signal::STOP {
            self.wait_until_stopped();
        }
    }

    /// Each of its threads stops by itself, a moment later, and answers until it has.
    fn wait_until_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        let until = Instant::now() + PATIENCE;
        while !std::fs::read_dir(&tasks).expect("it runs").flatten().all(is_stopped) {
            assert!(Instant::now() < until, "the engine does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the program has ended by itself.
    fn has_ended(&mut self) -> bool {
        self.ended || self.child.try_wait().expect("a child").is_some()
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// The group with all its children; its number is not used again.
    fn kill(&mut self) {
        if self.ended {
            return;
        }
        // First, or it would kill whoever bears this number next.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        self.ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts what `command` makes for a port, and waits until `is_ready`. One that ends before is tried on another port:
/// somebody took this one. `output` is shown when it never gets ready.
fn start_on_a_free_port(
    name: &str,
    command: impl Fn(u16) -> Command,
    is_ready: impl Fn(u16) -> bool,
    output: impl Fn() -> String,
) -> (u16, Running) {
    for _ in 0..5 {
        let port = free_port();
        if let Some(running) = start_on(name, port, &command, &is_ready, &output) {
            return (port, running);
        }
    }
    panic!("{name} ends when it is started:\n{}", output());
}

/// Nothing when it ended before it was ready.
fn start_on(
    name: &str,
    port: u16,
    command: &impl Fn(u16) -> Command,
    is_ready: &impl Fn(u16) -> bool,
    output: &impl Fn() -> String,
) -> Option<Running> {
    let mut running = Running::start(command(port));
    let start = Instant::now();
    // RabbitMQ takes long to start on a loaded machine.
    while start.elapsed() < 4 * PATIENCE {
        if running.has_ended() {
            return None;
        }
        if is_ready(port) {
            return Some(running);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{name} does not get ready:\n{}", output());
}

/// What the engine says first, or in answer to `greeting`; nothing when it does not within a second.
fn answer_to(port: u16, greeting: &[u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut answer = vec![0; 512];
    let mut asked = || -> std::io::Result<usize> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(greeting)?;
        stream.read(&mut answer)
    };
    let read = asked().unwrap_or(0);
    answer.truncate(read);
    answer
}

/// The end of a file of the engine's own.
pub(super) fn tail(folder: &Folder, name: &str) -> String {
    let text = std::fs::read(folder.path(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Both outputs into a file of the folder, appended to.
pub(super) fn output_to(folder: &Folder, name: &str) -> [Stdio; 2] {
    let file =
        std::fs::OpenOptions::new().create(true).append(true).open(folder.path(name)).expect("a file in our folder");
    [file.try_clone().expect("another handle").into(), file.into()]
}

/// A command of the engine's own tools, run to its end: what it printed. One that fails ends the test.
fn printed(mut command: Command) -> String {
    let done = command.stdin(Stdio::null()).output().expect("the tool runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
    said
}

#[test]
fn an_engine_ends_with_the_test_process_whatever_ended_that() {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 600 & wait"]);
    let mut running = Running::start(command);
    // What the kernel does when this process is gone.
    drop(running.watchdog.stdin.take());
    super::eventually("the watchdog ends it", || running.has_ended().then_some(()));
}

#[test]
fn an_engine_that_is_stopped_killed_and_paused_does_what_is_said() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let port = redis.port;
    assert_eq!(redis.cli(&["set", "a", "1"]), "OK\n");
    redis.kill();
    redis.restart();
    assert_eq!((redis.port, redis.cli(&["get", "a"]).as_str()), (port, "1\n"));
    redis.pause();
    assert!(answer_to(port, b"PING\r\n").is_empty());
    redis.resume();
    assert_eq!(redis.cli(&["ping"]), "PONG\n");
    redis.stop();
    assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
}

#[test]
fn a_nats_server_that_is_killed_keeps_its_name_and_its_streams() {
    let mut nats = Nats::start();
    let greeting = |nats: &Nats| String::from_utf8_lossy(&answer_to(nats.port, b"")).into_owned();
    assert!(greeting(&nats).contains("\"jetstream\":true"), "{}", greeting(&nats));
    let port = nats.port;
    nats.kill();
    nats.restart();
    assert_eq!(nats.port, port);
    assert!(greeting(&nats).contains("\"jetstream\":true"));
}

#[test]
fn two_rabbits_live_side_by_side_and_leave_nothing() {
    let rabbits = [Rabbit::start(), Rabbit::start()];
    let queues: Vec<String> = rabbits.iter().map(|rabbit| rabbit.ctl(&["-q", "list_queues", "name"])).collect();
    assert_eq!(queues, ["", ""]);
    let groups: Vec<u32> = rabbits.iter().flat_map(Rabbit::pids).collect();
    assert_eq!(groups.len(), 4);
    drop(rabbits);
    for group in groups {
        let id = i32::try_from(group).ok().and_then(Pid::from_raw).expect("a process id");
        assert!(kill_process_group(id, Signal::CONT).is_err(), "{group} lives on");
    }
}
