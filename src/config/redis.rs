//! Where Redis is: the same keys in `[state]` and at the upstreams that are Redis.
//!
//! Invariant: exactly one of a server, a cluster's nodes and sentinels is named; a password stands in no plain URL.

use super::engine::{self, Located};
use super::reader::Table;
use crate::dial::Address;
use crate::redis_link::{Settings, Topology};
use std::time::Duration;

const EXAMPLE: &str = r#"url = "redis://127.0.0.1:6379/0", or { env = "REDIS_URL" } for one with a password"#;
const KEYS: [&str; 5] = ["url", "cluster", "sentinels", "master", "connect_timeout"];
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTES: Duration = Duration::from_secs(600);

/// Of a table that may have other keys too.
pub(super) fn read(table: &Table<'_>) -> Option<Settings> {
    read_either(table, EXAMPLE)
}

/// `example`: where the URL may be another broker's too.
pub(super) fn read_either(table: &Table<'_>, example: &str) -> Option<Settings> {
    let settings = read_whole(table, example);
    if settings.is_none() {
        // What was not looked at any more is not unknown.
        engine::ignore_server(table);
        table.ignore(&KEYS);
    }
    settings
}

fn read_whole(table: &Table<'_>, example: &str) -> Option<Settings> {
    let ways = ["url", "cluster", "sentinels"].into_iter().filter(|key| table.has(key)).count();
    if ways != 1 {
        let what = if ways == 0 { "`url` is missing" } else { "`url`, `cluster` and `sentinels` exclude each other" };
        table.error("", what, example);
        return None;
    }
    if table.has("master") && !table.has("sentinels") {
        table.error("master", "belongs to `sentinels`, which are asked where it is", "");
        table.ignore(&["master"]);
    }
    let (topology, located) = if table.has("cluster") {
        let (nodes, tls) = several(table, "cluster", PORT)?;
        (Topology::Cluster(nodes), Located { tls, ..Located::default() })
    } else if table.has("sentinels") {
        let master = table.needed_text("master", r#"master = "mymaster""#);
        let (sentinels, tls) = several(table, "sentinels", SENTINEL_PORT)?;
        (Topology::Sentinel { sentinels, master: master? }, Located { tls, ..Located::default() })
    } else {
        let located = engine::url(table, "url", &[("redis", false), ("rediss", true)], PORT, example)?;
        (Topology::Single(Address { host: located.host.clone(), port: located.port }), located)
    };
    let database = match &*located.path {
        "" => Some(0),
        path => path.parse().ok().filter(|number| (0..1_000_000).contains(number)),
    };
    let Some(database) = database else {
        table.error("url", "ends in something that is no number of a database", example);
        return None;
    };
    let tls = engine::tls(table, located.tls);
    let (username, password) = engine::login(table, &located);
    if username.is_some() && password.is_none() && !table.has("password") {
        table.error("", "a username without a password is no login", r#"password = { env = "REDIS_PASSWORD" }"#);
    }
    let defaults = Settings::new(topology);
    let connect_timeout = table.duration("connect_timeout", defaults.connect_timeout, MILLISECOND..=MINUTES);
    Some(Settings { username, password, database, tls, connect_timeout, ..defaults })
}

/// All of them, or none: the flag says whether with TLS.
fn several(table: &Table<'_>, key: &'static str, port: u16) -> Option<(Vec<Address>, bool)> {
    let found = table.all_parsed(key, |text| engine::host_and_port(text, &["redis", "rediss"], port));
    let tls = found.iter().filter(|(_, tls)| *tls).count();
    if tls != 0 && tls != found.len() {
        table.error(key, "is in part with TLS and in part without", "rediss:// before each, or before none");
    }
    let addresses: Vec<Address> = found.into_iter().map(|(address, _)| address).collect();
    (!addresses.is_empty()).then_some((addresses, tls != 0))
}
