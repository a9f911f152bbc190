//! RabbitMQ in the foreground, with a port mapper (epmd), a cookie, a node name and files of its own: no service manager,
//! no particular user, and nothing of the machine's own RabbitMQ if it has one.

use super::super::gateway::Folder;
use super::{Running, answer_to, free_port, output_to, printed, program, start_on, start_on_a_free_port, tail};
use rustix::process::Signal;
use std::path::PathBuf;
use std::process::Command;

pub(crate) struct Rabbit {
    pub port: u16,
    pub folder: Folder,
    ports: Ports,
    running: Running,
    /// Last, so that it ends after the node.
    mapper: Running,
}

/// Of Erlang's distribution, which `rabbitmqctl` needs.
struct Ports {
    mapper: u16,
    node: u16,
    tool: u16,
}

impl Rabbit {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// With further lines of its `rabbitmq.conf`.
    pub(crate) fn start_with(configuration: &str) -> Self {
        Self::start_in(Folder::new(), configuration)
    }

    /// In a folder that may hold certificates.
    pub(crate) fn start_in(folder: Folder, configuration: &str) -> Self {
        folder.write("further.conf", configuration);
        // Scripts of the package read it; the machine's own is not for us.
        folder.write("environment.conf", "");
        folder.write("plugins", "[].\n");
        let (mapper_port, mapper) = start_on_a_free_port(
            "epmd",
            |port| {
                let mut command = Command::new(program("epmd"));
                command.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
                let [stdout, stderr] = output_to(&folder, "epmd.log");
                command.stdout(stdout).stderr(stderr);
                command
            },
            // NAMES_REQ, of the port mapper's protocol; it answers with its port.
            |port| answer_to(port, &[0, 1, b'n']).ends_with(&port.to_be_bytes()),
            || tail(&folder, "epmd.log"),
        );
        let ports = Ports { mapper: mapper_port, node: free_port(), tool: free_port() };
        let (port, running) = start_on_a_free_port(
            "rabbitmq-server",
            |port| server(&folder, &ports, port),
            is_ready,
            || tail(&folder, "rabbit.log"),
        );
        Self { port, folder, ports, running, mapper }
    }

    /// The virtual host is `/`.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// What `rabbitmqctl` prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = script("rabbitmqctl", &self.folder, &self.ports, self.port);
        command.args(arguments);
        printed(command)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// SIGTERM: the node shuts down in order.
    pub(crate) fn stop(&mut self) {
        self.running.stop();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.running.kill();
    }

    /// Runs again, on the same port and in the same folder, with what it kept.
    pub(crate) fn restart(&mut self) {
        self.running.stop();
        // The mapper forgets the name when the killed node's connection is gone, which may be a moment later.
        for _ in 0..10 {
            let started = start_on(
                "rabbitmq-server",
                self.port,
                &|port| server(&self.folder, &self.ports, port),
                &is_ready,
                &|| tail(&self.folder, "rabbit.log"),
            );
            if let Some(running) = started {
                self.running = running;
                return;
            }
        }
        panic!("rabbitmq-server ended:\n{}", tail(&self.folder, "rabbit.log"));
    }

    /// SIGSTOP: connections stay open, and nothing answers.
    pub(crate) fn pause(&self) {
        self.running.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.running.signal(Signal::CONT);
    }

    pub(super) fn pids(&self) -> [u32; 2] {
        [self.pid(), self.mapper.child.id()]
    }
}

fn server(folder: &Folder, ports: &Ports, port: u16) -> Command {
    let further = std::fs::read_to_string(folder.path("further.conf")).expect("written at the start");
    folder.write(
        "rabbitmq.conf",
        format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nlog.file = false\nlog.console = true\n\
             disk_free_limit.absolute = 64MB\n{further}\n"
        ),
    );
    let mut command = script("rabbitmq-server", folder, ports, port);
    let [stdout, stderr] = output_to(folder, "rabbit.log");
    command.stdout(stdout).stderr(stderr);
    command
}

/// One of RabbitMQ's own scripts, which run for any user; those in the PATH of Debian are wrapped to run for its user only.
fn script(name: &str, folder: &Folder, ports: &Ports, port: u16) -> Command {
    let wrapped: PathBuf = program(name).canonicalize().expect("it is there");
    let bare = wrapped.with_file_name(name);
    let mut command = Command::new(if bare.is_file() { bare } else { wrapped });
    command
        .current_dir(&folder.0)
        // The cookie is made there.
        .env("HOME", &folder.0)
        // The node in this process, without a shell that waits for it.
        .env("RUNNING_UNDER_SYSTEMD", "true")
        .env_remove("NOTIFY_SOCKET")
        .env("LC_ALL", "C.UTF-8")
        .env("ERL_EPMD_PORT", ports.mapper.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", format!("rabbit{port}@localhost"))
        .env("RABBITMQ_CONF_ENV_FILE", folder.path("environment.conf"))
        .env("RABBITMQ_CONFIG_FILE", folder.path("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.path("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.path("plugins"))
        .env("RABBITMQ_MNESIA_BASE", folder.path("store"))
        .env("RABBITMQ_MNESIA_DIR", folder.path("store/node"))
        .env("RABBITMQ_LOG_BASE", folder.path("log"))
        .env("RABBITMQ_SCHEMA_DIR", folder.path("schema"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", folder.path("generated"))
        .env("RABBITMQ_PID_FILE", folder.path("rabbit.pid"))
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_DIST_PORT", ports.node.to_string())
        .env("RABBITMQ_CTL_DIST_PORT_MIN", ports.tool.to_string())
        .env("RABBITMQ_CTL_DIST_PORT_MAX", (ports.tool + 100).to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}");
    command
}

/// It listens when it has started: `Connection.Start` is the first method of a server.
fn is_ready(port: u16) -> bool {
    answer_to(port, b"AMQP\x00\x00\x09\x01").starts_with(&[1, 0, 0])
}
