//! Where deliveries go: every request is answered with 200 at once. It runs on the generator's own thread, so that the two
//! need no switch between them, and counts what arrives: a gateway that answers by itself would make its run void.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::message::Head;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

pub(crate) struct Upstream {
    pub(crate) port: u16,
    answered: Arc<AtomicU64>,
}

impl Upstream {
    pub(crate) fn start(runtime: &Runtime) -> Self {
        let answered = Arc::<AtomicU64>::default();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let counter = answered.clone();
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(answer(connection, counter.clone()));
            }
        });
        Self { port, answered }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

async fn answer(mut connection: TcpStream, answered: Arc<AtomicU64>) {
    connection.set_nodelay(true).expect("a socket");
    let mut buffer = vec![0; 128 * 1024];
    // Bytes of an unfinished head, and how much of a body is still to come.
    let (mut held, mut awaited) = (0, 0);
    loop {
        match connection.read(&mut buffer[held..]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => held += read,
        }
        loop {
            if awaited == 0 {
                let Some(head) = Head::parse(&buffer[..held]) else { break };
                awaited = head.whole();
            }
            let taken = awaited.min(held);
            buffer.copy_within(taken..held, 0);
            held -= taken;
            awaited -= taken;
            if awaited > 0 {
                break;
            }
            answered.fetch_add(1, Ordering::Relaxed);
            if connection.write_all(ANSWER).await.is_err() {
                return;
            }
        }
        assert!(held < buffer.len(), "void: a head that does not fit");
    }
}
