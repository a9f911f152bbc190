//! `[listeners.NAME]` and `[admin]`: where requests come in.

use super::reader::Table;
use super::secret_ref::Named;
use super::sources::{self, ListenerFacts};
use crate::clock::UnixMillis;
use crate::secret::Secret;
use crate::server::{self, tls};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// As many HTTP/2 streams at once as RFC 9113 §6.5.2 recommends at least, and no more.
const MAX_CONCURRENT_STREAMS: u32 = 100;

/// The part of `[limits]` that listeners keep.
pub(super) struct ServerLimits {
    pub(super) max_header_bytes: usize,
    pub(super) header_timeout: Duration,
    pub(super) handshake_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) max_connections_per_client: usize,
}

pub(crate) struct ListenerPlan {
    pub(crate) settings: server::Settings,
}

pub(crate) struct Admin {
    pub(crate) settings: server::Settings,
    pub(crate) token: Option<Secret>,
    /// Refused deliveries that whoever has the token can have explained.
    pub(crate) keep_refused: usize,
}

pub(super) fn read(
    file: &Table<'_>,
    limits: &ServerLimits,
    now: UnixMillis,
) -> (Vec<ListenerPlan>, BTreeMap<String, ListenerFacts>) {
    let mut plans: Vec<ListenerPlan> = Vec::new();
    let mut facts = BTreeMap::new();
    for (name, table) in file.named("listeners") {
        if name == "admin" {
            // Metrics and inherited sockets are told apart by these names.
            table.error("", "the name is that of the operator's port", "another name");
        }
        let address = address(&table, r#"address = "0.0.0.0:8443""#);
        let trusted = table.all_parsed("trusted_proxies", sources::network);
        let proxy_protocol = table.flag("proxy_protocol", false);
        if proxy_protocol && trusted.is_empty() {
            table.error(
                "proxy_protocol",
                "needs `trusted_proxies`: anyone could write the header, and with it their address",
                r#"trusted_proxies = ["10.0.0.0/8"]"#,
            );
        }
        for network in trusted.iter().filter(|network| network.prefix_len() == 0) {
            table.warn(
                "trusted_proxies",
                format!("{network} is everybody: any client can then choose its own address"),
                "list your proxies",
            );
        }
        let mut fact = ListenerFacts {
            has_tls: false,
            asks_for_certificates: false,
            client_roots: 0,
            is_loopback: address.is_some_and(|a| a.ip().is_loopback()),
        };
        let mut broken = false;
        let tls = table.table("tls").and_then(|tls| {
            fact.has_tls = true;
            let built = read_tls(&tls, &mut fact, now);
            broken = built.is_none();
            tls.finish();
            built
        });
        if let Some(address) = address
            && address.port() != 0
            && let Some(twin) = plans.iter().find(|plan| plan.settings.address == address)
        {
            table.error(
                "address",
                format!("is also that of listeners.{}", twin.settings.name),
                "give each listener its own",
            );
        }
        table.finish();
        facts.insert(name.clone(), fact);
        if let Some(address) = address.filter(|_| !broken) {
            plans
                .push(ListenerPlan { settings: settings(&name, address, tls, proxy_protocol, trusted.into(), limits) });
        }
    }
    (plans, facts)
}

fn settings(
    name: &str,
    address: SocketAddr,
    tls: Option<Arc<tls::Tls>>,
    proxy_protocol: bool,
    trusted_proxies: Arc<[ipnet::IpNet]>,
    limits: &ServerLimits,
) -> server::Settings {
    server::Settings {
        name: name.into(),
        address,
        tls,
        proxy_protocol,
        trusted_proxies,
        limits: server::Limits {
            max_connections_per_client: limits.max_connections_per_client,
            max_header_bytes: limits.max_header_bytes,
            header_timeout: limits.header_timeout,
            handshake_timeout: limits.handshake_timeout,
            idle_timeout: limits.idle_timeout,
            max_concurrent_streams: MAX_CONCURRENT_STREAMS,
        },
    }
}

fn read_tls(table: &Table<'_>, fact: &mut ListenerFacts, now: UnixMillis) -> Option<Arc<tls::Tls>> {
    let mut pairs = Vec::new();
    let several = table.tables("certificates");
    let single = table.has("certificate") || table.has("private_key");
    if single && !several.is_empty() {
        table.error("certificates", "stands beside `certificate`", "put all of them into `certificates`");
    }
    pairs.extend(read_pair(table, single || several.is_empty()));
    for pair in several {
        pairs.extend(read_pair(&pair, true));
        pair.finish();
    }
    let client_ca = table.file("client_ca").map(|(_, pem)| pem);
    let modes = [("request", tls::ClientAuth::Request), ("require", tls::ClientAuth::Require)];
    let client_auth = match &client_ca {
        Some(pem) => {
            fact.asks_for_certificates = true;
            fact.client_roots = server::count_certificates(pem);
            table.choice("client_auth", Some("request"), &modes).unwrap_or(tls::ClientAuth::Request)
        }
        None => {
            if table.has("client_auth") && !table.has("client_ca") {
                table.error(
                    "client_auth",
                    "needs `client_ca`: without it nothing says whose certificates are good",
                    r#"client_ca = "certs/client-ca.pem""#,
                );
            }
            table.ignore(&["client_auth"]);
            tls::ClientAuth::None
        }
    };
    let client_crl = table.file("client_crl").map(|(_, bytes)| bytes);
    if client_crl.is_some() && !table.has("client_ca") {
        table.error("client_crl", "needs `client_ca`", "");
    }
    if pairs.is_empty()
        || (table.has("client_ca") && client_ca.is_none())
        || (table.has("client_crl") && (client_crl.is_none() || !table.has("client_ca")))
    {
        return None;
    }
    match tls::Tls::build(tls::Settings { certificates: pairs, client_ca, client_auth, client_crl }) {
        Ok(built) => {
            for warning in built.warnings(now) {
                table.warn("certificate", warning.to_string(), "");
            }
            Some(Arc::new(built))
        }
        Err(error) => {
            table.error("", error.to_string(), "hookward certs makes development certificates");
            None
        }
    }
}

fn read_pair(table: &Table<'_>, wanted: bool) -> Option<tls::CertifiedKeyFiles> {
    for key in ["certificate", "private_key"] {
        if wanted && !table.has(key) {
            table.error(
                "",
                format!("`{key}` is missing"),
                r#"certificate = "certs/server.pem", private_key = "certs/server.key""#,
            );
        }
    }
    let (path, certificate) = table.file("certificate").unzip();
    let key = table.file("private_key").map(|(_, pem)| Secret::new(pem));
    Some(tls::CertifiedKeyFiles { label: path?.display().to_string(), chain: certificate?, key: key? })
}

/// A port without an address would mean every interface, or none, depending on whom one asks: both are spelled out.
fn address(table: &Table<'_>, example: &str) -> Option<SocketAddr> {
    let text = table.needed_text("address", example)?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let hint = match text.strip_prefix(':') {
                Some(port) => format!("\"0.0.0.0:{port}\" for every interface, \"127.0.0.1:{port}\" for this machine"),
                None => "an IP address and a port: \"0.0.0.0:8443\", \"[::]:8443\"".to_owned(),
            };
            table.error("address", format!("{text:?} is not an address and a port"), &hint);
            None
        }
    }
}

pub(super) fn read_admin(table: Table<'_>, listeners: &[ListenerPlan]) -> Option<Admin> {
    let address = address(&table, r#"address = "127.0.0.1:9090""#);
    let token = table.secret("token");
    if let Some(Named { secret, .. }) = &token
        && secret.len() < 16
    {
        table.warn(
            "token",
            format!("has {} bytes; one under 16 can be found by trying", secret.len()),
            "openssl rand -hex 32",
        );
    }
    if let Some(address) = address {
        if address.port() != 0 && listeners.iter().any(|plan| plan.settings.address == address) {
            table.error(
                "address",
                "is also that of a listener: the operator's port is never the public one",
                r#"address = "127.0.0.1:9090""#,
            );
        }
        if !address.ip().is_loopback() {
            table.remark("address", "is not loopback: whoever reaches it can read the metrics", "");
            if token.is_some() {
                table.warn(
                    "token",
                    "crosses the network in the clear: the operator's port has no TLS",
                    r#"address = "127.0.0.1:9090""#,
                );
            }
        }
    }
    let keep_refused = table.count("keep_refused", 32, 0..=1024);
    table.finish();
    // The operator's port has bounds of its own, so that a flood of senders cannot keep a scrape out.
    let limits = ServerLimits {
        max_header_bytes: 16 << 10,
        header_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(75),
        max_connections_per_client: 64,
    };
    let settings = settings("admin", address?, None, false, Vec::new().into(), &limits);
    // Without a token nobody could ask.
    let keep_refused = if token.is_some() { usize::try_from(keep_refused).unwrap_or(0) } else { 0 };
    Some(Admin { settings, token: token.map(|named| named.secret), keep_refused })
}
