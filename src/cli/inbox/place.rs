//! Where the answers come from: the operator's port of the gateway that serves from the inbox.
//!
//! Invariant: of the configuration only what names the place is needed, so that a question can be asked in a shell that
//! does not have the sources' secrets.

use super::{Failure, NO, UNUSABLE_CONFIGURATION, USAGE, complain};
use crate::cli::send::{Answer, Sender};
use crate::config::{self, Office, Severity};
use crate::secret::Secret;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;

/// One delivery with the largest body that a source can take (1 GiB), as base64 in JSON; what comes in pages stays far
/// below.
const LONGEST_ANSWER: usize = 1536 << 20;

/// A page is made within a second or two; a disk that hangs should not look like a terminal that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Place {
    runtime: Runtime,
    port: Port,
}

struct Port {
    /// As people write it.
    named: String,
    sender: Sender,
    headers: HeaderMap,
}

impl Place {
    pub(super) fn find(config: &Path, named: Option<&Uri>) -> Result<Self, Failure> {
        let unusable = |why: String| Failure::new(UNUSABLE_CONFIGURATION, why);
        let Office { admin, problems } = config::office(config, &config::process_environment);
        let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
        if !errors.is_empty() {
            errors.iter().for_each(|problem| complain(&problem.to_string()));
            return Err(unusable(format!("{}: not usable", config.display())));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| unusable(format!("the runtime cannot start: {error}")))?;
        let Some(admin) = admin else {
            let why = "a running gateway is asked through its operator's port, and there is none; write [admin] with \
                       `address` and `token`, and start it again (or stop it, and ask once more)";
            return Err(unusable(format!("{}: {why}", config.display())));
        };
        let Some(token) = &admin.token else {
            let why =
                "the operator's port wants a token for this, and none is configured; write [admin] token, and reload";
            return Err(unusable(format!("{}: {why}", config.display())));
        };
        let address = match named {
            Some(named) => named.clone(),
            None => reachable(admin.settings.address)?,
        };
        Ok(Self { runtime, port: Port::new(&address, token)? })
    }

    /// The body of a good answer.
    pub(super) fn ask(&self, method: &Method, path: &str, query: &str) -> Result<Bytes, Failure> {
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let Port { named, sender, headers } = &self.port;
        let asking = sender.send(method, None, &target, headers, Bytes::new());
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await });
        let silent = |why: String| {
            let hint = "is the gateway running with this configuration, and is [admin] address its address? --admin URL names another";
            Failure::new(NO, format!("the operator's port does not answer: {why}; {hint}"))
        };
        let answer = answer.map_err(|_| silent(format!("{named}: nothing within {} s", PATIENCE.as_secs())))?;
        judge(answer.map_err(silent)?, named)
    }
}

impl Port {
    fn new(address: &Uri, token: &Secret) -> Result<Self, Failure> {
        let sender = Sender::new(address, None, None).map_err(|why| Failure::new(USAGE, why))?.taking(LONGEST_ANSWER);
        let mut bearer = HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat()).map_err(|_| {
            Failure::new(
                UNUSABLE_CONFIGURATION,
                "[admin] token has bytes that no header can carry; openssl rand -hex 32",
            )
        })?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bearer)]);
        Ok(Self { named: address.to_string(), sender, headers })
    }
}

fn judge(answer: Answer, named: &str) -> Result<Bytes, Failure> {
    let says = super::print::plain(String::from_utf8_lossy(&answer.body).trim_end());
    match answer.status {
        status if status.is_success() => Ok(answer.body),
        StatusCode::BAD_REQUEST => Err(Failure::new(USAGE, says)),
        StatusCode::UNAUTHORIZED => Err(Failure::new(
            UNUSABLE_CONFIGURATION,
            format!(
                "{named}: the operator's port does not take this configuration's [admin] token; was it changed without a reload?"
            ),
        )),
        StatusCode::NOT_FOUND => Err(Failure::new(NO, says)),
        status => Err(Failure::new(NO, format!("{named}: {status}: {says}"))),
    }
}

/// Where a port that listens on every interface is reached from here.
fn reachable(address: SocketAddr) -> Result<Uri, Failure> {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    if address.port() == 0 {
        let why = "[admin] address has port 0, any that is free; name the one it is with --admin http://127.0.0.1:PORT";
        return Err(Failure::new(UNUSABLE_CONFIGURATION, why));
    }
    let text = format!("http://{}", SocketAddr::new(ip, address.port()));
    text.parse().map_err(|error| Failure::new(UNUSABLE_CONFIGURATION, format!("{text}: {error}")))
}
