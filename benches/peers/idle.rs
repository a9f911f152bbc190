//! Memory: at rest, and with many idle TLS connections, each after one request. One gateway at a time, for two that map the
//! same library would share its pages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::message::{Head, Letters, status};
use crate::process;

/// Open before the first look, so that what is shared by all connections is not counted as one's own.
const WARM: usize = 100;
const AT_ONCE: usize = 16;
const BODY: usize = 1024;
/// Buffers that are given back a while after the answer are idle memory no more.
const SETTLED: Duration = Duration::from_secs(2);

pub(crate) struct Memory {
    /// In bytes; after one request.
    pub(crate) rest: f64,
    pub(crate) each: f64,
}

pub(crate) async fn measure(address: SocketAddr, pid: u32, tls: &Arc<ClientConfig>, count: usize) -> Memory {
    drop(open(address, tls, 1).await);
    tokio::time::sleep(SETTLED).await;
    let rest = process::memory(pid);
    let warm = open(address, tls, WARM).await;
    tokio::time::sleep(SETTLED).await;
    let before = process::memory(pid);
    let idle = open(address, tls, count).await;
    tokio::time::sleep(SETTLED).await;
    let each = (process::memory(pid) - before) / count as f64;
    for stream in warm.iter().chain(&idle) {
        let closed = matches!(stream.try_read(&mut [0]), Ok(0));
        assert!(!closed, "void: an idle connection was closed");
    }
    Memory { rest, each }
}

/// The sockets alone: our own side of TLS need not be kept to keep them open.
async fn open(address: SocketAddr, tls: &Arc<ClientConfig>, count: usize) -> Vec<TcpStream> {
    let (mut tasks, mut open) = (JoinSet::new(), Vec::new());
    for first in 0..AT_ONCE.min(count) {
        let tls = tls.clone();
        tasks.spawn(async move {
            let (mut letters, mut streams) = (Letters::new(BODY, false), Vec::new());
            for _ in (first..count).step_by(AT_ONCE) {
                let stream = TcpStream::connect(address).await.expect("the gateway accepts");
                let name = ServerName::try_from("localhost").expect("a name");
                let mut wire = TlsConnector::from(tls.clone()).connect(name, stream).await.expect("a handshake");
                wire.write_all(letters.next()).await.expect("an open connection");
                let mut answer = Vec::with_capacity(1024);
                while Head::parse(&answer).is_none_or(|head| head.whole() > answer.len()) {
                    assert!(wire.read_buf(&mut answer).await.expect("an answer") > 0, "void: closed");
                }
                assert_eq!(status(&answer), 200, "void: an answer other than 200");
                streams.push(wire.into_inner().0);
            }
            streams
        });
    }
    while let Some(streams) = tasks.join_next().await {
        open.extend(streams.expect("a task that ends"));
    }
    open
}
