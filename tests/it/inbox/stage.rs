//! A gateway with an inbox, senders of events that are all different, and a look into the stored file.

use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Answer, Gateway, Request, Upstream, eventually, sign};
use rusqlite::{Connection, OpenFlags};
use std::path::PathBuf;

pub(super) const SECRET: &str = "a-secret-of-some-length";

/// The listeners, `[inbox]` with these further keys, and what is given.
pub(super) fn configuration(inbox: &str, rest: &str) -> String {
    format!("{PLAIN}\n[inbox]\npath = \"inbox\"\n{inbox}\n{rest}")
}

/// `[upstreams.NAME]` with further keys.
pub(super) fn upstream(name: &str, at: &Upstream, more: &str) -> String {
    format!("\n[upstreams.{name}]\nurls = [\"{}\"]\n{more}\n", at.url())
}

/// `[sources.NAME]` at `/NAME`, as GitHub signs, stored for `upstream`, with further keys. A replay is refused with 409,
/// so that a test can tell it from what was accepted (202).
pub(super) fn source(name: &str, upstream: &str, more: &str) -> String {
    format!(
        "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         delivery = \"inbox\"\nupstream = \"{upstream}\"\non_replay = \"reject\"\n{more}\n"
    )
}

/// A body like no other: its name, bytes that are no text, and as many more as are asked for.
pub(super) fn body(name: &str, padding: usize) -> Vec<u8> {
    let mut body = format!("{{ \"event\" :\t\"{name}\" }}\r\n").into_bytes();
    body.extend_from_slice(&[0, 0xff, 0xfe, b'\n']);
    // Nothing that compresses to nothing: what is stored is as long as what was sent.
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    for _ in 0..padding {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        body.push((state >> 56) as u8);
    }
    body
}

/// The delivery of such a body to a source, signed; its event id is `name`.
pub(super) fn event(source: &str, name: &str, padding: usize) -> Request {
    let body = body(name, padding);
    let signature = sign::github(SECRET, &body);
    Request::post(&format!("/{source}"), body)
        .header("X-Hub-Signature-256", signature)
        .header("X-GitHub-Delivery", name)
        .header("X-GitHub-Event", "push")
}

/// 503, and when to come again.
pub(super) fn refused_for_now(answer: &Answer) -> bool {
    answer.status == 503
        && answer.header("retry-after").is_some_and(|seconds| seconds.parse().is_ok_and(|s: u32| s > 0))
}

/// The store's main file.
pub(super) fn store(folder: &Folder) -> PathBuf {
    folder.path("inbox/inbox.db")
}

/// The one number that a query of the stored file yields; another process may have it open.
pub(super) fn number(folder: &Folder, query: &str) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(store(folder), flags).expect("the store opens");
    file.query_row(query, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{query}: {error}"))
}

/// How many deliveries the operator's port counts in this state.
pub(super) fn counted(gateway: &Gateway, state: &str) -> u64 {
    let request = Request::new("GET", "/inbox/stats").header("Authorization", "Bearer an-admin-token-for-tests");
    let answer = request.send(gateway.address("admin"));
    let stats: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let rows = stats["tasks"].as_array().expect("rows by source, upstream and state");
    rows.iter().filter(|row| row["state"] == state).filter_map(|row| row["count"].as_u64()).sum()
}

/// Waits until so many are settled as delivered, which is a moment after the upstream has them.
pub(super) fn wait_until_settled(gateway: &Gateway, count: u64) {
    eventually(&format!("{count} are settled"), || (counted(gateway, "delivered") == count).then_some(()));
}

/// Whether the operator's port says that the gateway is ready, and its words.
pub(super) fn ready(gateway: &Gateway) -> (u16, String) {
    let answer = gateway.get("/readyz").expect("the operator's port answers");
    (answer.status, answer.text())
}
