//! Where Redis is: the same keys in `[state]` and at the upstreams that are Redis.
//!
//! Invariant: exactly one of a server, a cluster's nodes and sentinels is named; a password stands in no plain URL.

use super::engine::{self, Located};
use super::reader::Table;
use crate::redis_link::{Address, Settings, Topology};
use std::time::Duration;

const EXAMPLE: &str = r#"url = "redis://127.0.0.1:6379/0", or { env = "REDIS_URL" } for one with a password"#;
const KEYS: [&str; 5] = ["url", "cluster", "sentinels", "master", "connect_timeout"];
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Of a table that may have other keys too; `kind` for its errors.
pub(super) fn read(table: &Table<'_>) -> Option<Settings> {
    let ways = ["url", "cluster", "sentinels"].into_iter().filter(|key| table.has(key)).count();
    if ways != 1 {
        let what = if ways == 0 { "`url` is missing" } else { "`url`, `cluster` and `sentinels` exclude each other" };
        table.error("", what, EXAMPLE);
        engine::ignore_server(table);
        table.ignore(&KEYS);
        return None;
    }
    let nodes = |key: &'static str, port: u16| {
        let found = table.all_parsed(key, |text| engine::host_and_port(text, &["redis", "rediss"], port));
        let tls = found.iter().any(|(_, tls)| *tls);
        let addresses: Vec<Address> = found.into_iter().map(|(address, _)| address).collect();
        (!addresses.is_empty()).then_some((addresses, tls))
    };
    let (topology, located) = if table.has("cluster") {
        let (nodes, tls) = nodes("cluster", PORT)?;
        (Topology::Cluster(nodes), Located { tls, ..Located::default() })
    } else if table.has("sentinels") {
        let master = table.needed_text("master", r#"master = "mymaster""#);
        let (sentinels, tls) = nodes("sentinels", SENTINEL_PORT)?;
        (Topology::Sentinel { sentinels, master: master? }, Located { tls, ..Located::default() })
    } else {
        let located = engine::url(table, "url", &[("redis", false), ("rediss", true)], PORT, EXAMPLE)?;
        (Topology::Single(Address { host: located.host.clone(), port: located.port }), located)
    };
    table.ignore(&KEYS);
    let database = match &*located.path {
        "" => Some(0),
        path => path.parse().ok().filter(|number| (0..1_000_000).contains(number)),
    };
    let Some(database) = database else {
        table.error("url", "ends in something that is no number of a database", EXAMPLE);
        return None;
    };
    let tls = engine::tls(table, located.tls);
    let (username, password) = engine::login(table, &located);
    let defaults = Settings::new(topology);
    let millisecond = Duration::from_millis(1);
    let connect_timeout =
        table.duration("connect_timeout", defaults.connect_timeout, millisecond..=Duration::from_secs(600));
    Some(Settings { username, password, database, tls, connect_timeout, ..defaults })
}
