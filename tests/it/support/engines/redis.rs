//! `redis-server`, and `redis-cli` to look into it. Without persistence unless it is asked for: a restart is empty then.

use super::super::gateway::Folder;
use super::{Running, answer_to, output_to, printed, program, start_on, start_on_a_free_port, tail};
use rustix::process::Signal;
use std::process::{Command, Stdio};

pub(crate) struct Redis {
    pub port: u16,
    pub folder: Folder,
    arguments: Vec<String>,
    running: Running,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments, as on its command line: `--requirepass`, `secret`. They win over ours.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(Folder::new(), arguments)
    }

    /// In a folder that may hold certificates or a list of users.
    pub(crate) fn start_in(folder: Folder, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (port, running) = start_on_a_free_port(
            "redis-server",
            |port| command(&folder, port, &arguments),
            is_ready,
            || tail(&folder, "redis.log"),
        );
        Self { port, folder, arguments, running }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// What `redis-cli` prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        printed(self.redis_cli(arguments))
    }

    /// What is said of replication; nothing while a sentinel gives the server another part, which closes all connections.
    pub(crate) fn replication(&self) -> Option<String> {
        let done = self.redis_cli(&["info", "replication"]).output().expect("redis-cli runs");
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn redis_cli(&self, arguments: &[&str]) -> Command {
        let mut cli = Command::new(program("redis-cli"));
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(arguments).stdin(Stdio::null());
        cli
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// SIGTERM: what it keeps is written.
    pub(crate) fn stop(&mut self) {
        self.running.stop();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.running.kill();
    }

    /// Runs again, on the same port and in the same folder.
    pub(crate) fn restart(&mut self) {
        self.running.stop();
        let start = || {
            start_on(
                "redis-server",
                self.port,
                &|port| command(&self.folder, port, &self.arguments),
                &is_ready,
                &|| tail(&self.folder, "redis.log"),
            )
        };
        self.running = start().unwrap_or_else(|| panic!("redis-server ended:\n{}", tail(&self.folder, "redis.log")));
    }

    /// SIGSTOP: connections stay open, and nothing answers.
    pub(crate) fn pause(&self) {
        self.running.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.running.signal(Signal::CONT);
    }
}

fn command(folder: &Folder, port: u16, arguments: &[String]) -> Command {
    let sentinel = arguments.iter().any(|argument| argument == "--sentinel");
    let mut command = Command::new(program("redis-server"));
    command.current_dir(&folder.0);
    if sentinel {
        // It writes what it learns into its file, which is the first argument.
        command.args(arguments.iter().filter(|argument| *argument != "--sentinel"));
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--sentinel"]);
    } else {
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no", "--save", ""]);
        command.args(["--enable-debug-command", "local"]).args(arguments);
    }
    let [stdout, stderr] = output_to(folder, "redis.log");
    command.stdout(stdout).stderr(stderr);
    command
}

/// Not while it loads what it kept; one that wants a password is ready.
fn is_ready(port: u16) -> bool {
    let answer = answer_to(port, b"PING\r\n");
    answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH")
}
