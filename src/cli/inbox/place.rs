//! Where the answers come from: the store itself, or the operator's port of the gateway that has it open.
//!
//! Invariant: whoever works on the store holds its lock and has made the checks of a start; where another process holds
//! it, that one is asked and the file is left alone. Of the configuration only what names the place is needed, so that a
//! question can be asked in a shell that does not have the sources' secrets.

use super::{Failure, NO, UNUSABLE_CONFIGURATION, USAGE, complain};
use crate::admin;
use crate::cli::send::{Answer, Sender};
use crate::clock::Clock;
use crate::config::{self, Admin, Office, Problem, Severity};
use crate::fields::Fields;
use crate::inbox::{self, Inbox, OpenError};
use crate::secret::Secret;
use crate::telemetry::Metrics;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// One delivery with the largest body that a source can take (1 GiB), as base64 in JSON; what comes in pages stays far
/// below.
const LONGEST_ANSWER: usize = 1536 << 20;

/// A page is made within a second or two; a disk that hangs should not look like a terminal that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Place {
    runtime: Runtime,
    kind: Kind,
}

enum Kind {
    Store(Arc<Inbox>, Clock),
    Port(Port),
}

struct Port {
    /// As people write it.
    named: String,
    sender: Sender,
    headers: Fields,
}

impl Place {
    pub(super) fn find(config: &Path, named: Option<&Uri>) -> Result<Self, Failure> {
        let unusable = |why: String| Failure::new(UNUSABLE_CONFIGURATION, why);
        let Office { admin, inbox, problems } = config::office(config, &config::process_environment);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| unusable(format!("the runtime cannot start: {error}")))?;
        // A token says nothing about a file, and the store's key nothing about a port: neither is needed for the other.
        let is_asked = named.is_some() || inbox.as_ref().is_some_and(is_held);
        let table = if is_asked { "admin" } else { "inbox" };
        let matters = |problem: &&Problem| {
            problem.severity == Severity::Error
                && (inbox.is_none() || problem.key.split('.').next().is_some_and(|first| first == table))
        };
        let mut errors = problems.iter().filter(matters).peekable();
        let Some(settings) = inbox.as_ref().filter(|_| errors.peek().is_none()) else {
            errors.for_each(|problem| complain(&problem.to_string()));
            return Err(unusable(format!("{}: unusable: see above", config.display())));
        };
        let store = if is_asked { None } else { open(settings)? };
        let kind = match store {
            Some(store) => Kind::Store(store, Clock::default()),
            None => Kind::Port(Port::of(config, admin.as_ref(), named)?),
        };
        Ok(Self { runtime, kind })
    }

    /// The body of a good answer.
    pub(super) fn ask(&self, method: &Method, path: &str, query: &str) -> Result<Bytes, Failure> {
        let (status, body, named) = match &self.kind {
            Kind::Store(inbox, clock) => {
                let rest = path.strip_prefix("/inbox/").unwrap_or(path);
                let answer = self.runtime.block_on(admin::inbox::answer(inbox, method, rest, query, clock.now()));
                (answer.status, answer.body, "the inbox")
            }
            Kind::Port(port) => {
                let Answer { status, body, .. } = self.runtime.block_on(port.ask(method, path, query))?;
                (status, body, &*port.named)
            }
        };
        let says = super::print::plain(String::from_utf8_lossy(&body).trim_end());
        match status {
            status if status.is_success() => Ok(body),
            StatusCode::BAD_REQUEST => Err(Failure::new(USAGE, says)),
            StatusCode::UNAUTHORIZED => Err(Failure::new(
                UNUSABLE_CONFIGURATION,
                format!(
                    "{named}: the operator's port does not take the [admin] token of this configuration; was it changed without a reload?"
                ),
            )),
            StatusCode::NOT_FOUND => Err(Failure::new(NO, says)),
            status => Err(Failure::new(NO, format!("{named}: {status}: {says}"))),
        }
    }

    /// What was written is in the file, and its log is folded into it.
    pub(super) fn leave(self) {
        if let Kind::Store(inbox, _) = &self.kind {
            self.runtime.block_on(inbox.close());
        }
    }
}

/// Files that root made beside it would be root's, and the gateway could not open them at its next start; and root would
/// write wherever that user's links lead.
pub(super) fn not_as_root(file: &Path, owner: u32) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() && owner != 0 {
        let why =
            format!("the inbox belongs to user {owner}; do this as that user: sudo -u '#{owner}' hookward inbox …");
        return Err(Failure::new(NO, format!("{}: {why}", file.display())));
    }
    Ok(())
}

/// `None`: a gateway has it open.
fn open(settings: &inbox::Settings) -> Result<Option<Arc<Inbox>>, Failure> {
    let database = settings.folder.join("inbox.db");
    let owner = match database.metadata() {
        Ok(found) => found.uid(),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && !settings.folder.join("inbox.db-wal").exists() =>
        {
            let why =
                "there is no inbox here: is this the gateway's configuration, and has a source delivery = \"inbox\"?";
            return Err(Failure::new(NO, format!("{}: {why}", settings.folder.display())));
        }
        Err(error) => {
            let hint = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "; run this as the user that the gateway runs as",
                _ => "",
            };
            return Err(Failure::new(UNUSABLE_CONFIGURATION, format!("{}: {error}{hint}", database.display())));
        }
    };
    not_as_root(&database, owner)?;
    let metrics = Metrics::new();
    let meters = inbox::Meters {
        append: metrics.inbox_append_seconds.clone(),
        commit: metrics.inbox_commit_seconds.clone(),
        batch: metrics.inbox_batch_size.clone(),
        errors: metrics.inbox_errors.clone(),
    };
    match Inbox::open(settings, Clock::default().now(), meters) {
        Ok(inbox) => Ok(Some(inbox)),
        Err(OpenError::InUse { .. }) => Ok(None),
        Err(error) => Err(Failure::new(UNUSABLE_CONFIGURATION, format!("[inbox]: {error}"))),
    }
}

/// By another process, as far as can be seen without making anything.
fn is_held(settings: &inbox::Settings) -> bool {
    let lock = std::fs::File::open(settings.folder.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

impl Port {
    fn of(config: &Path, admin: Option<&Admin>, named: Option<&Uri>) -> Result<Self, Failure> {
        let unusable = |why: &str| Failure::new(UNUSABLE_CONFIGURATION, format!("{}: {why}", config.display()));
        let Some(admin) = admin else {
            return Err(unusable(
                "a gateway has the inbox open, and can only be asked through its operator's port: write [admin] with \
                 `address` and `token` and start it again, or stop it and ask once more",
            ));
        };
        let Some(token) = &admin.token else {
            return Err(unusable(
                "the operator's port wants a token for this, and none is configured: write [admin] token and reload, or \
                 stop the gateway and ask once more",
            ));
        };
        let address = named.map_or_else(|| reachable(admin.settings.address), |named| Ok(named.clone()))?;
        let sender = Sender::new(&address, None, None).map_err(|why| Failure::new(USAGE, why))?.taking(LONGEST_ANSWER);
        Ok(Self { named: address.to_string(), sender, headers: Fields::from_iter([bearer(token)?]) })
    }

    async fn ask(&self, method: &Method, path: &str, query: &str) -> Result<Answer, Failure> {
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let asking = self.sender.send(method, None, &target, &self.headers, Bytes::new());
        let silent = |why: String| {
            let hint = "does the gateway run with this configuration, and is this its [admin] address? --admin URL names another";
            Failure::new(NO, format!("the operator's port does not answer: {why}; {hint}"))
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answer) => answer.map_err(silent),
            Err(_) => Err(silent(format!("{}: nothing within {} s", self.named, PATIENCE.as_secs()))),
        }
    }
}

fn bearer(token: &Secret) -> Result<(header::HeaderName, HeaderValue), Failure> {
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat()).map_err(|_| {
        Failure::new(UNUSABLE_CONFIGURATION, "[admin] token has bytes that no header can carry; openssl rand -hex 32")
    })?;
    value.set_sensitive(true);
    Ok((header::AUTHORIZATION, value))
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
