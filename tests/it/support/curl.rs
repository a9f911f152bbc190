//! The `curl` and `openssl s_client` of this machine: clients that nobody here wrote.

use super::PATIENCE;
use super::certs::{Pair, path};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

/// One run of curl against a listener, whatever host its url names.
#[derive(Clone)]
pub(crate) struct Curl {
    to: SocketAddr,
    arguments: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Fetched {
    /// curl's own exit code; 0 where an answer came.
    pub exit: i32,
    pub status: u16,
    /// `1.1` or `2`.
    pub version: String,
    pub request_id: String,
    pub body: String,
    pub complaint: String,
}

impl Curl {
    pub(crate) fn to(address: SocketAddr, ca: &Path) -> Self {
        let arguments = ["-sS", "--max-time", &PATIENCE.as_secs().to_string(), "--cacert", path(ca)];
        Self { to: address, arguments: arguments.map(str::to_owned).to_vec() }
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// With this client certificate.
    pub(crate) fn presenting(self, pair: &Pair) -> Self {
        self.with(&["--cert", path(&pair.certificate), "--key", path(&pair.key)])
    }

    pub(crate) fn header(self, name: &str, value: &str) -> Self {
        self.with(&["-H", &format!("{name}: {value}")])
    }

    /// POSTs `body` byte for byte.
    pub(crate) fn post(&self, url: &str, body: &[u8]) -> Fetched {
        self.clone().with(&["--data-binary", "@-"]).run(url, body)
    }

    pub(crate) fn run(&self, url: &str, input: &[u8]) -> Fetched {
        let mut child = Command::new("curl")
            .args(&self.arguments)
            .args(["--connect-to", &format!("::{}:{}", self.to.ip(), self.to.port())])
            .args(["-w", "\n%{http_code} %{http_version} %header{x-request-id}", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("curl starts");
        // A curl that could not connect does not read.
        let _ = child.stdin.take().expect("piped").write_all(input);
        let done = child.wait_with_output().expect("curl ends");
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        let (body, facts) = out.rsplit_once('\n').unwrap_or(("", &out));
        let mut facts = facts.split(' ');
        let mut fact = || facts.next().unwrap_or_default().to_owned();
        Fetched {
            exit: done.status.code().unwrap_or(-1),
            status: fact().parse().unwrap_or(0),
            version: fact(),
            request_id: fact(),
            body: body.to_owned(),
            complaint: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }
}

/// `openssl s_client`, given `input` once it is connected; everything it printed.
pub(crate) fn s_client(to: SocketAddr, arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &to.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    // One that was refused does not read.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let done = child.wait_with_output().expect("openssl ends");
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done.status.success(), text)
}
