//! `[upstreams.NAME]`: where parcels go.

use super::brokers;
use super::engine;
use super::reader::Table;
use crate::deliver::{self, Balance, HealthCheck, HttpSettings as Settings, Protocol};
use crate::gateway::UpstreamSettings;
use crate::tls_client::TlsSettings;
use crate::verify::SigningKey;
use http::Uri;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const MINUTES: Duration = Duration::from_secs(600);

/// What its sources have to know of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) re_signs: bool,
    pub(super) is_broker: bool,
    pub(super) is_nats: bool,
}

/// `max_body`: the largest that any source takes, as far as it is known.
pub(super) fn read(name: &str, table: Table<'_>, max_body: u64) -> Option<UpstreamSettings> {
    let kinds = [
        ("http", None),
        ("celery", Some(brokers::Kind::Celery)),
        ("amqp", Some(brokers::Kind::Amqp)),
        ("nats", Some(brokers::Kind::Nats)),
        ("redis-stream", Some(brokers::Kind::RedisStream)),
    ];
    if table.has("url") && !table.has("urls") && !table.has("kind") {
        let what = "`kind` is missing: a broker has a `url`, a service over HTTP has `urls`";
        table.error("", what, r#"kind = "celery", "amqp" or "redis-stream"; or urls = ["http://10.0.0.7:9000"]"#);
        return None;
    }
    // Of a kind that is none, nobody knows which keys it has: the rest is judged once it is mended.
    let default = (!table.has("kind")).then_some("http");
    match table.choice("kind", default, &kinds)? {
        None => http(name, table),
        Some(kind) => {
            let settings = brokers::read(name, kind, &table, max_body);
            table.finish();
            Some(UpstreamSettings { settings: deliver::Settings::Broker(settings?), signs: None })
        }
    }
}

fn http(name: &str, table: Table<'_>) -> Option<UpstreamSettings> {
    let defaults = Settings::new(name.into(), Vec::new());
    let urls = table.all_parsed("urls", url);
    if !table.has("urls") {
        table.error("", "`urls` is missing", r#"urls = ["http://10.0.0.7:9000"]"#);
    }
    let millisecond = Duration::from_millis(1);
    let timeout = table.duration("timeout", defaults.timeout, millisecond..=MINUTES);
    let connect_timeout = table.duration("connect_timeout", defaults.connect_timeout, millisecond..=MINUTES);
    let max_in_flight = count(table.count("max_in_flight", defaults.max_in_flight as u64, 1..=100_000));
    let queue_timeout = table.duration("queue_timeout", defaults.queue_timeout, Duration::ZERO..=MINUTES);
    let balance = table.choice(
        "balance",
        Some("least_requests"),
        &[("least_requests", Balance::LeastRequests), ("round_robin", Balance::RoundRobin)],
    );
    let protocol = table.choice(
        "protocol",
        Some("auto"),
        &[("auto", Protocol::Auto), ("http1", Protocol::Http1), ("http2", Protocol::Http2)],
    );
    let repeat_on_stale = table.flag("repeat_on_stale", true);
    let max_idle_per_url = count(table.count("max_idle_per_url", defaults.max_idle_per_url as u64, 0..=10_000));
    let idle_timeout = table.duration("idle_timeout", defaults.idle_timeout, Duration::from_millis(100)..=MINUTES);
    let second = Duration::from_secs(1);
    let resolve_interval = table.duration("resolve_interval", defaults.resolve_interval, second..=3600 * second);
    let health = table.table("health").and_then(|health| {
        let path = health.needed_text("path", r#"health = { path = "/healthz", interval = "5s" }"#);
        if path.as_ref().is_some_and(|path| !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err())
        {
            health.error("path", "is not a path that begins with `/`", "");
        }
        let interval = health.duration("interval", Duration::from_secs(5), Duration::from_millis(50)..=MINUTES);
        let timeout = health.duration("timeout", deliver::DEFAULT_PROBE_TIMEOUT, Duration::from_millis(10)..=MINUTES);
        health.finish();
        Some(HealthCheck { path: path?, interval, timeout })
    });
    let tls = read_tls(&table, &urls);
    let signs = table.table("sign").and_then(|sign| {
        let secret = sign.secret("secret");
        if !sign.has("secret") {
            sign.error("", "`secret` is missing", r#"sign = { secret = { env = "INTERNAL_SECRET" } }"#);
        }
        let key = secret.and_then(|named| match SigningKey::standard_webhooks(&named.secret) {
            Ok(key) => Some(key),
            Err(error) => {
                sign.error(
                    "secret",
                    error.to_string(),
                    "whsec_ and the base64 of 24 to 64 random bytes: echo whsec_$(openssl rand -base64 32)",
                );
                None
            }
        });
        sign.finish();
        key.map(Arc::new)
    });
    let is_address = |url: &Uri| url.host().is_some_and(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok());
    if table.has("resolve_interval") && urls.iter().all(is_address) {
        table.warn("resolve_interval", "has no effect: no url has a name", "");
    }
    let settings = Settings {
        urls,
        timeout,
        connect_timeout,
        max_in_flight,
        queue_timeout,
        balance: balance?,
        health,
        tls,
        protocol: protocol?,
        repeat_on_stale,
        max_idle_per_url,
        idle_timeout,
        resolve_interval,
        ..defaults
    };
    if !settings.urls.is_empty()
        && let Err(error) = deliver::check(&settings)
    {
        table.error("", error.to_string(), "");
    }
    table.finish();
    Some(UpstreamSettings { settings: deliver::Settings::Http(settings), signs })
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn url(text: &str) -> Result<Uri, String> {
    // The text is not repeated: a user may have put a password into it.
    let uri: Uri = text.parse().map_err(|_| "holds something that is no URL".to_owned())?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err("holds a URL that does not begin with http:// or https://".to_owned()),
    }
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    if authority.contains('@') {
        return Err("holds a URL with user information; upstreams take credentials from nowhere".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(format!("{text:?} holds a path; the path is the source's `upstream_path`"));
    }
    Ok(uri)
}

fn read_tls(table: &Table<'_>, urls: &[Uri]) -> TlsSettings {
    let Some(tls) = table.table("tls") else { return TlsSettings::default() };
    if urls.iter().all(|url| url.scheme_str() != Some("https")) {
        tls.warn("", "has no effect: no url begins with https://", "");
    }
    engine::read_tls(tls)
}
