//! An upstream that serves so many at once and takes so long for each; whoever comes meanwhile waits in its own queue.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::sender::Head;

pub(crate) struct Limited {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    places: Semaphore,
    service: Duration,
    present: AtomicUsize,
    most: AtomicUsize,
}

impl Limited {
    pub(crate) fn start(places: usize, service: Duration) -> Self {
        let shared =
            Shared { places: Semaphore::new(places), service, present: AtomicUsize::new(0), most: AtomicUsize::new(0) };
        let shared = Arc::new(shared);
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("it is bound").port();
        let serving = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listening socket");
                while let Ok((connection, _)) = listener.accept().await {
                    tokio::spawn(answer(connection, serving.clone()));
                }
            });
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Served and waiting.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }
}

async fn answer(mut connection: TcpStream, shared: Arc<Shared>) {
    let mut buffer = vec![0; 16 * 1024];
    let mut held = 0;
    loop {
        match connection.read(&mut buffer[held..]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => held += read,
        }
        // Nobody sends two requests at once on one connection.
        if Head::parse(&buffer[..held]).is_none_or(|head| head.whole > held) {
            assert!(held < buffer.len(), "a request that does not fit");
            continue;
        }
        held = 0;
        let present = shared.present.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most.fetch_max(present, Ordering::Relaxed);
        {
            let _place = shared.places.acquire().await.expect("it is never closed");
            tokio::time::sleep(shared.service).await;
        }
        shared.present.fetch_sub(1, Ordering::Relaxed);
        if connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}
