//! A bound socket and its accept loop.
//!
//! Invariants: the socket lives as long as the process serves, whatever is reloaded; nothing in the loop waits for a peer;
//! no error of `accept` ends the loop; a connection that the kernel has completed is served, also while we stop; and
//! nobody stays connected on the word of a CA or a proxy that is no longer trusted.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body::Body;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::connection::{self, Accepted, Arriving, canonical};
use super::permits::{ClientPermit, Permit, Permits};
use super::{Meters, Peer, Settings, Stop};
use crate::client::ClientKey;
use crate::threads::{Seat, Threads};

/// Connections that the kernel completes before we take them. 128, the standard library's choice, is a few milliseconds of
/// a burst; the kernel cuts this to `net.core.somaxconn` (4096).
const BACKLOG: i32 = 4096;
/// Long enough for connections to end and give descriptors back, short against anybody's connect time-out.
const EXHAUSTED_BACKOFF: Duration = Duration::from_millis(75);

pub(crate) struct Listener {
    /// `None` once it is served: the accept loop owns it then, and closes it.
    socket: Mutex<Option<std::net::TcpListener>>,
    local_addr: SocketAddr,
    settings: ArcSwap<Settings>,
    /// Changes when peers would now be judged differently than those that are connected were.
    judgement: watch::Sender<()>,
    meters: Arc<Meters>,
    permits: Arc<Permits>,
    /// Where connections are served.
    threads: Arc<Threads>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("listener {name}: {address} is in use; stop the other program, or change `address`")]
    InUse { name: Arc<str>, address: SocketAddr },
    #[error("listener {name}: {address} is not an address of this machine; use one that is, or 0.0.0.0 or [::]")]
    NotOurs { name: Arc<str>, address: SocketAddr },
    #[error(
        "listener {name}: no permission for {address}; ports below 1024 need CAP_NET_BIND_SERVICE, or a socket passed by \
         systemd"
    )]
    NotAllowed { name: Arc<str>, address: SocketAddr },
    #[error("listener {name}: {address}: {error}")]
    Other { name: Arc<str>, address: SocketAddr, error: io::Error },
}

impl Listener {
    /// Connections queue from now on, and are answered once `serve` runs. An `inherited` socket is taken as it is.
    pub(crate) fn bind(
        settings: Settings,
        inherited: Option<std::net::TcpListener>,
        meters: Meters,
        permits: Arc<Permits>,
        threads: Arc<Threads>,
    ) -> Result<Arc<Self>, BindError> {
        let bound = match inherited {
            Some(socket) => Ok(socket),
            None => open(settings.address),
        };
        let ready = bound.and_then(|socket| {
            socket.set_nonblocking(true)?;
            // Small answers must not wait for an acknowledgement. What is accepted inherits it (tcp(7)).
            rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
            let local_addr = socket.local_addr()?;
            Ok((socket, local_addr))
        });
        let (socket, local_addr) = ready.map_err(|error| BindError::new(&settings, error))?;
        show_expiry(&settings, &meters);
        Ok(Arc::new(Self {
            socket: Mutex::new(Some(socket)),
            local_addr,
            settings: ArcSwap::from_pointee(settings),
            judgement: watch::Sender::new(()),
            meters: Arc::new(meters),
            permits,
            threads,
        }))
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// For connections accepted from now on. Those that are open keep what they began with; but where peers are judged
    /// differently from now on, they finish what is in flight and are closed, and their clients connect anew. The socket
    /// stays, and so the address must be the same.
    pub(crate) fn update(&self, settings: Settings) {
        show_expiry(&settings, &self.meters);
        let name = Arc::clone(&settings.name);
        let settings = Arc::new(settings);
        let before = self.settings.swap(Arc::clone(&settings));
        if !settings.judges_peers_like(&before) {
            tracing::info!(listener = &*name, "peers are judged differently; open connections are told to go");
            // Behind the swap: who subscribes after this has the new settings.
            self.judgement.send_replace(());
        }
    }

    /// Serves until `stop` moves on; returns when every connection has ended, or at once after `Abort` (or when the sender
    /// of `stop` is gone, which is the same). A listener is served once: a second call returns immediately.
    pub(crate) async fn serve<H, F, B>(self: Arc<Self>, handler: H, stop: watch::Receiver<Stop>)
    where
        H: Fn(super::Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = super::Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(socket) = socket else { return };
        let name = Arc::clone(&self.settings.load().name);
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(listener = %name, %error, "the runtime does not take the socket"),
        };
        let mut connections = JoinSet::new();
        let spawn = |connections: &mut JoinSet<()>, admitted: Admitted, permit: Permit| {
            let seat = self.threads.seat();
            let there = seat.elsewhere().cloned();
            let Ok(accepted) = admitted.with(self.local_addr, permit, seat, Arc::clone(&self.permits)) else { return };
            let serving = connection::run(accepted, Arc::clone(&self.meters), handler.clone(), stop.clone());
            match there {
                None => connections.spawn(serving),
                Some(there) => connections.spawn_on(serving, &there),
            };
        };
        let mut signal = stop.clone();

        let in_hand = loop {
            tokio::select! {
                biased;
                () = leaves(&mut signal, Stop::Serve) => break None,
                Some(ended) = connections.join_next() => report(&name, ended),
                accepted = socket.accept() => {
                    let Some(admitted) = self.admit(accepted, &name).await else { continue };
                    // Room is waited for with one connection in hand and the others in the kernel's queue, where they cost
                    // nothing and are in order. Accepting only to close would turn a short burst into errors; taking the
                    // permit before accepting would let every quiet listener hold one.
                    tokio::select! {
                        biased;
                        () = leaves(&mut signal, Stop::Serve) => break Some(admitted),
                        permit = self.permits.acquire() => spawn(&mut connections, admitted, permit),
                    }
                }
            }
        };

        // Closing the socket resets what waits in its queue, and those clients believe they are connected. Room comes
        // free while we take them: every open connection watches `stop` too, and is finishing already.
        let finish = async {
            if let Some(admitted) = in_hand {
                let permit = self.permits.acquire().await;
                spawn(&mut connections, admitted, permit);
            }
            self.take_backlog(socket, &name, |admitted, permit| spawn(&mut connections, admitted, permit)).await;
            while let Some(ended) = connections.join_next().await {
                report(&name, ended);
            }
        };
        let aborted = tokio::select! {
            biased;
            () = leaves(&mut signal, Stop::StopAccepting) => true,
            () = finish => false,
        };
        if aborted {
            connections.shutdown().await;
        }
    }

    async fn take_backlog(&self, socket: TcpListener, name: &str, mut spawn: impl FnMut(Admitted, Permit)) {
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(listener = name, %error, "the backlog cannot be taken"),
        };
        // Under constant load there would always be one more; but the queue was never longer than this when we began.
        for _ in 0..BACKLOG {
            let accepted = socket.accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                Ok((TcpStream::from_std(stream)?, address))
            });
            if matches!(&accepted, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
            if let Some(admitted) = self.admit(accepted, name).await {
                let permit = self.permits.acquire().await;
                spawn(admitted, permit);
            }
        }
    }

    /// What can be decided by the address alone. Waits only when the process is out of something.
    async fn admit(&self, accepted: io::Result<(TcpStream, SocketAddr)>, name: &str) -> Option<Admitted> {
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.meters.accept_errors.inc();
                match after_error(&error) {
                    AfterError::GoOn => {
                        tracing::debug!(listener = name, %error, "a connection ended before it was accepted")
                    }
                    AfterError::BackOff => {
                        tracing::warn!(listener = name, %error, "accepting pauses; raise the limit of open files or memory");
                        sleep(EXHAUSTED_BACKOFF).await;
                    }
                }
                return None;
            }
        };
        let address = canonical(address);
        // In this order: a reload between the two tells a connection to go that could have stayed, never the reverse.
        let judgement = self.judgement.subscribe();
        let settings = self.settings.load_full();
        let trusted_proxy = settings.trusts(address.ip());
        if settings.proxy_protocol && !trusted_proxy {
            self.meters.refused_connections.inc();
            tracing::debug!(listener = name, %address, "refused: not in trusted_proxies");
            return None;
        }
        let client = if trusted_proxy {
            None
        } else {
            let key = ClientKey::of(address.ip());
            let client = self.permits.acquire_client(key, settings.limits.max_connections_per_client);
            if client.is_none() {
                self.meters.refused_connections.inc();
                tracing::debug!(listener = name, %address, "refused: the client has its share of connections");
                return None;
            }
            client
        };
        Some(Admitted { tcp, address, settings, client, judgement })
    }
}

/// Let in by its address; still without a permit.
struct Admitted {
    tcp: TcpStream,
    address: SocketAddr,
    settings: Arc<Settings>,
    client: Option<ClientPermit>,
    judgement: watch::Receiver<()>,
}

impl Admitted {
    /// An error means that the socket cannot leave this thread's poll.
    fn with(self, bound: SocketAddr, permit: Permit, seat: Seat, permits: Arc<Permits>) -> io::Result<Accepted> {
        let Self { tcp, address, settings, client, judgement } = self;
        let tcp = match seat.elsewhere() {
            None => Arriving::Here(tcp),
            Some(_) => Arriving::Elsewhere(tcp.into_std()?),
        };
        Ok(Accepted { tcp, address, bound, settings, permits, permit, client, judgement, seat })
    }
}

fn open(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    // Sets SO_REUSEADDR, so that a restart does not wait for old connections' TIME_WAIT.
    let socket = std::net::TcpListener::bind(address)?;
    // On a socket that listens already this only changes the length of its queue.
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn show_expiry(settings: &Settings, meters: &Meters) {
    match &settings.tls {
        Some(tls) => meters.certificate_expiry.with_label_values(&[&*settings.name]).set(tls.not_after()),
        // Failing means that there was none.
        None => drop(meters.certificate_expiry.remove_label_values(&[&*settings.name])),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum AfterError {
    GoOn,
    BackOff,
}

/// Out of descriptors or memory, `accept` fails at once, and would again: a loop without a pause takes a whole core while
/// the connections that could give something back starve. All other errors belong to the one connection.
fn after_error(error: &io::Error) -> AfterError {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AfterError::BackOff,
        _ => AfterError::GoOn,
    }
}

fn report(name: &str, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(listener = name, "a bug in hookward: a connection's task panicked; the process goes on");
    }
}

/// Ends when `stop` is no longer at `stage` or before it.
async fn leaves(stop: &mut watch::Receiver<Stop>, stage: Stop) {
    let is_past = |now: &Stop| match stage {
        Stop::Serve => *now != Stop::Serve,
        Stop::StopAccepting | Stop::Abort => *now == Stop::Abort,
    };
    // An error means that the sender is gone: then there is nothing to wait for any more.
    let _ = stop.wait_for(is_past).await;
}

impl BindError {
    fn new(settings: &Settings, error: io::Error) -> Self {
        let (name, address) = (Arc::clone(&settings.name), settings.address);
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { name, address },
            io::ErrorKind::AddrNotAvailable => Self::NotOurs { name, address },
            io::ErrorKind::PermissionDenied => Self::NotAllowed { name, address },
            _ => Self::Other { name, address, error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn only_a_want_of_resources_makes_accepting_pause() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(after_error(&errno.into()), AfterError::BackOff, "{errno:?}");
        }
        for errno in [Errno::CONNABORTED, Errno::INTR, Errno::PROTO, Errno::HOSTUNREACH, Errno::NETDOWN, Errno::PERM] {
            assert_eq!(after_error(&errno.into()), AfterError::GoOn, "{errno:?}");
        }
    }
}
