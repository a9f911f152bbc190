//! HAProxy in front of several gateways.

use super::super::gateway::Folder;
use super::{Running, output_to, program, start_on_a_free_port, tail};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

pub(crate) struct HaProxy {
    pub port: u16,
    pub folder: Folder,
    _running: Running,
}

impl HaProxy {
    /// `configuration`: as in its file; `BIND` stands for the address that it is to listen on.
    pub(crate) fn start(configuration: &str) -> Self {
        assert!(configuration.contains("BIND"), "it must listen somewhere");
        let folder = Folder::new();
        let (port, running) = start_on_a_free_port(
            "haproxy",
            |port| {
                folder.write("haproxy.cfg", configuration.replace("BIND", &format!("127.0.0.1:{port}")));
                let mut command = Command::new(program("haproxy"));
                command.current_dir(&folder.0).args(["-db", "-f", "haproxy.cfg"]);
                let [stdout, stderr] = output_to(&folder, "haproxy.log");
                command.stdout(stdout).stderr(stderr);
                command
            },
            |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
            || tail(&folder, "haproxy.log"),
        );
        Self { port, folder, _running: running }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}
