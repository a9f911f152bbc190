//! `nats-server` with JetStream in its folder.

use super::super::gateway::Folder;
use super::{Running, answer_to, output_to, program, start_on, start_on_a_free_port, tail};
use rustix::process::Signal;
use std::process::Command;

pub(crate) struct Nats {
    pub port: u16,
    pub folder: Folder,
    running: Running,
}

impl Nats {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// With further lines of its configuration: `max_payload: 64KB`, `authorization { … }`, `tls { … }`.
    pub(crate) fn start_with(configuration: &str) -> Self {
        Self::start_in(Folder::new(), configuration)
    }

    /// In a folder that may hold certificates.
    pub(crate) fn start_in(folder: Folder, configuration: &str) -> Self {
        folder.write("nats.conf", configuration);
        let (port, running) =
            start_on_a_free_port("nats-server", |port| command(&folder, port), is_ready, || tail(&folder, "nats.log"));
        Self { port, folder, running }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self) {
        self.running.stop();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.running.kill();
    }

    /// Runs again, on the same port and in the same folder, with the streams that it kept.
    pub(crate) fn restart(&mut self) {
        self.running.stop();
        let start = || {
            start_on("nats-server", self.port, &|port| command(&self.folder, port), &is_ready, &|| {
                tail(&self.folder, "nats.log")
            })
        };
        self.running = start().unwrap_or_else(|| panic!("nats-server ended:\n{}", tail(&self.folder, "nats.log")));
    }

    /// SIGSTOP: connections stay open, and nothing answers.
    pub(crate) fn pause(&self) {
        self.running.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.running.signal(Signal::CONT);
    }
}

fn command(folder: &Folder, port: u16) -> Command {
    let mut command = Command::new(program("nats-server"));
    command.current_dir(&folder.0).args(["-c", "nats.conf", "-a", "127.0.0.1", "-p", &port.to_string()]);
    command.args(["-js", "-sd", "streams"]);
    let [stdout, stderr] = output_to(folder, "nats.log");
    command.stdout(stdout).stderr(stderr);
    command
}

fn is_ready(port: u16) -> bool {
    answer_to(port, b"").starts_with(b"INFO ")
}
