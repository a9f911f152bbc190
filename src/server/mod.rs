//! The edge of the process: listeners, TLS and connections. It knows no webhook.
//!
//! Owns every socket that a sender touches. Invariant: whatever a peer does, or leaves undone, is bounded in time and in
//! memory before the handler sees a request, and nothing that waits for one peer makes another peer wait, except for
//! the one limit that is meant to: the number of connections in all.

mod activity;
mod certificate;
mod connection;
mod descriptors;
mod distinguished_name;
mod frames;
mod head;
mod http1;
mod known_signatures;
mod listen;
mod parting;
mod permits;
mod proxy_protocol;
mod records;
mod request;
mod roots;
pub(crate) mod tls;
mod transport;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use certificate::ClientCertificate;
pub(crate) use descriptors::{inherited_sockets, raise_open_files};
pub(crate) use distinguished_name::DistinguishedName;
#[cfg(fuzzing)]
pub(crate) use head::read as read_request;
pub(crate) use listen::Listener;
pub(crate) use permits::Permits;
pub(crate) use request::{Body, BodyError, Head, Request, Response};
pub(crate) use roots::{count_certificates, roots_verifier};
pub(crate) use tls::TlsPeer;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prometheus::{IntCounter, IntGauge, IntGaugeVec};

/// One listener, as configured. A reload replaces all of it but the address.
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Arc<tls::Tls>>,
    /// A PROXY header (v1 or v2) is required from peers in `trusted_proxies`, and nobody else may connect.
    pub(crate) proxy_protocol: bool,
    pub(crate) trusted_proxies: Arc<[IpNet]>,
    pub(crate) limits: Limits,
}

impl Settings {
    fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    /// Whether whoever is let in by the one is let in by the other, as the same peer. A reload builds everything anew, so
    /// this compares what the files said.
    fn judges_peers_like(&self, other: &Self) -> bool {
        let clients = |settings: &Self| settings.tls.as_ref().map(|tls| tls.client_rules());
        clients(self) == clients(other)
            && self.proxy_protocol == other.proxy_protocol
            && self.trusted_proxies == other.trusted_proxies
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_connections_per_client: usize,
    pub(crate) max_header_bytes: usize,
    /// From the first byte of a request's head to its last.
    pub(crate) header_timeout: Duration,
    /// For the PROXY header and the TLS handshake together.
    pub(crate) handshake_timeout: Duration,
    /// Without a request in flight, or without progress of an answer towards a peer that does not read.
    pub(crate) idle_timeout: Duration,
    pub(crate) max_concurrent_streams: u32,
}

/// Who is at the other end of a connection.
pub(crate) struct Peer {
    pub(crate) listener: Arc<str>,
    /// The client's: the PROXY header's where there is one, never one out of a request. An IPv4 address that arrives
    /// mapped into IPv6 is given as IPv4, so that address lists need to name it once.
    pub(crate) address: SocketAddr,
    /// Where the client connected to: the PROXY header's destination where it names one, else our socket's.
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<TlsPeer>,
}

#[derive(Clone)]
pub(crate) struct Meters {
    pub(crate) connections: IntGauge,
    pub(crate) handshakes_ok: IntCounter,
    pub(crate) handshakes_failed: IntCounter,
    pub(crate) handshakes_timed_out: IntCounter,
    /// Closed before TLS or HTTP: the client has its share of connections, or the PROXY header was missing, malformed
    /// or from a peer that is not trusted.
    pub(crate) refused_connections: IntCounter,
    pub(crate) accept_errors: IntCounter,
    /// Unix seconds: the earliest end of the listener's own certificates.
    /// By listener, and there only while it has certificates: a zero would ring every alert on "ends soon".
    pub(crate) certificate_expiry: IntGaugeVec,
}

impl Meters {
    /// Counts for nobody.
    #[cfg(test)]
    pub(crate) fn unregistered() -> Self {
        let counter = |name: &str| IntCounter::new(name, name).expect("a plain word is a valid metric name");
        let gauge = |name: &str| IntGauge::new(name, name).expect("a plain word is a valid metric name");
        Self {
            connections: gauge("connections"),
            handshakes_ok: counter("handshakes_ok"),
            handshakes_failed: counter("handshakes_failed"),
            handshakes_timed_out: counter("handshakes_timed_out"),
            refused_connections: counter("refused_connections"),
            accept_errors: counter("accept_errors"),
            certificate_expiry: IntGaugeVec::new(prometheus::Opts::new("certificate_expiry", "expiry"), &["listener"])
                .expect("a plain word is a valid metric name"),
        }
    }
}

/// What the owner of the process wants of its listeners. It only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "`Stop::Accepting` would say the opposite")]
pub(crate) enum Stop {
    Serve,
    /// Take what has already connected, then finish what is in flight and close.
    StopAccepting,
    /// Drop everything now.
    Abort,
}
