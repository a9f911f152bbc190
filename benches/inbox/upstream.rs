//! Where deliveries go: a port that refuses connections until it serves, then answers every request with 200 at once.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sender::Head;

pub(crate) struct Upstream {
    /// Bound from the start, so that the port stays ours; who connects is refused until it listens.
    listener: TcpListener,
    answered: Arc<AtomicU64>,
}

impl Upstream {
    pub(crate) fn reserve() -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        Self { listener: TcpListener::from(socket), answered: Arc::default() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().expect("it is bound").port()
    }

    pub(crate) fn serve(&self) {
        listen(&self.listener, 1024).expect("a bound socket listens");
        let listener = self.listener.try_clone().expect("another handle");
        listener.set_nonblocking(true).expect("a socket");
        let answered = self.answered.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
                while let Ok((connection, _)) = listener.accept().await {
                    tokio::spawn(answer(connection, answered.clone()));
                }
            });
        });
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// True when so many were answered in time.
    pub(crate) fn wait_for(&self, number: u64, longest: Duration) -> bool {
        let start = Instant::now();
        while self.answered() < number {
            if start.elapsed() > longest {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

async fn answer(mut connection: tokio::net::TcpStream, answered: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut held = 0;
    loop {
        match connection.read(&mut buffer[held..]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => held += read,
        }
        while let Some(head) = Head::parse(&buffer[..held]) {
            if head.whole > held {
                break;
            }
            buffer.copy_within(head.whole..held, 0);
            held -= head.whole;
            if connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                return;
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
        assert!(held < buffer.len(), "a request that does not fit");
    }
}
