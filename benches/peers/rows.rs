//! What is measured, and what is wanted of it.

use crate::gateways::{Kind, Transport};
use crate::load::Pattern;

pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) transport: Transport,
    pub(crate) body: usize,
    pub(crate) work: Work,
    pub(crate) bars: &'static [Bar],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Load {
        pattern: Pattern,
        forged: bool,
    },
    /// Kept connections, and what is acknowledged is in a store, to be delivered later. For gateways that do that alone.
    Stored,
    /// Memory at rest, and of idle connections.
    Idle,
}

/// What is wanted of hookward's figure divided by that of another, or of the figure itself.
pub(crate) struct Bar {
    pub(crate) against: Option<&'static str>,
    pub(crate) bar: f64,
    pub(crate) aim: f64,
}

const NGINX: &str = "nginx + Lua";
const HAPROXY: &str = "HAProxy";
const FLOOR: &str = "floor";

const KEPT: Work = Work::Load { pattern: Pattern::Kept, forged: false };
const ANEW: Work = Work::Load { pattern: Pattern::Anew, forged: false };

pub(crate) const ALL: &[Row] = &[
    Row {
        key: "plain-1k",
        title: "1 KiB, plain, keep-alive",
        transport: Transport::Plain,
        body: 1 << 10,
        work: KEPT,
        bars: &[Bar { against: Some(NGINX), bar: 0.80, aim: 0.65 }],
    },
    Row {
        key: "tls-1k",
        title: "1 KiB, TLS 1.3, keep-alive",
        transport: Transport::Tls,
        body: 1 << 10,
        work: KEPT,
        bars: &[Bar { against: Some(HAPROXY), bar: 0.75, aim: 0.60 }, Bar { against: Some(FLOOR), bar: 1.8, aim: 1.5 }],
    },
    Row {
        key: "tls-16k",
        title: "16 KiB, TLS 1.3, keep-alive",
        transport: Transport::Tls,
        body: 16 << 10,
        work: KEPT,
        bars: &[Bar { against: Some(NGINX), bar: 0.85, aim: 0.72 }],
    },
    Row {
        key: "tls-256k",
        title: "256 KiB, TLS 1.3, keep-alive",
        transport: Transport::Tls,
        body: 256 << 10,
        work: KEPT,
        bars: &[Bar { against: Some(NGINX), bar: 0.65, aim: 0.55 }],
    },
    Row {
        key: "http2-1k",
        title: "1 KiB, HTTP/2 over TLS 1.3: 8 connections, 4 streams each",
        transport: Transport::Tls,
        body: 1 << 10,
        work: Work::Load { pattern: Pattern::Streams, forged: false },
        bars: &[Bar { against: Some(NGINX), bar: 1.10, aim: 0.95 }],
    },
    Row {
        key: "handshake",
        title: "1 KiB, a new TLS 1.3 connection for each (P-256, not resumed)",
        transport: Transport::Tls,
        body: 1 << 10,
        work: ANEW,
        bars: &[Bar { against: Some(NGINX), bar: 0.45, aim: 0.38 }],
    },
    Row {
        key: "mtls-handshake",
        title: "1 KiB, a new mutual TLS 1.3 connection for each (P-256 on both sides, not resumed)",
        transport: Transport::Mutual,
        body: 1 << 10,
        work: ANEW,
        bars: &[Bar { against: Some(NGINX), bar: 0.30, aim: 0.25 }],
    },
    Row {
        key: "forged",
        title: "1 KiB, plain, keep-alive, every signature forged",
        transport: Transport::Plain,
        body: 1 << 10,
        work: Work::Load { pattern: Pattern::Kept, forged: true },
        bars: &[Bar { against: Some(NGINX), bar: 0.75, aim: 0.60 }],
    },
    Row {
        key: "paced",
        title: "1 KiB, TLS 1.3, 2,000 a second at fixed times; latency from the planned time",
        transport: Transport::Tls,
        body: 1 << 10,
        work: Work::Load { pattern: Pattern::Paced, forged: false },
        bars: &[Bar { against: Some(NGINX), bar: 1.0, aim: 0.9 }, Bar { against: Some(HAPROXY), bar: 1.0, aim: 0.9 }],
    },
    Row {
        key: "stored-1k",
        title: "1 KiB, plain, keep-alive, answered once it is stored; delivered meanwhile and afterwards",
        transport: Transport::Plain,
        body: 1 << 10,
        work: Work::Stored,
        bars: &[],
    },
    Row {
        key: "idle",
        title: "idle connections of TLS 1.3, each after one request",
        transport: Transport::Tls,
        body: 1 << 10,
        work: Work::Idle,
        bars: &[Bar { against: None, bar: 20.0, aim: 15.0 }],
    },
];

/// Measured with the idle connections, before they come.
pub(crate) const REST: &[Bar] = &[Bar { against: None, bar: 11.0, aim: 6.0 }];

impl Row {
    pub(crate) fn is_for(&self, kind: &Kind) -> bool {
        match (kind, self.work) {
            (Kind::Hookward(_), _) => true,
            (Kind::Qhook(_), work) => work == Work::Stored,
            (_, Work::Stored) => false,
            // It speaks no HTTP/2.
            (Kind::Floor, Work::Load { pattern: Pattern::Streams, .. }) => false,
            (Kind::Floor | Kind::Nginx | Kind::Haproxy, _) => true,
        }
    }
}

impl Bar {
    pub(crate) fn verdict(&self, value: f64) -> &'static str {
        match value {
            _ if value <= self.aim => "aim reached",
            _ if value <= self.bar => "bar held",
            _ => "BAR MISSED",
        }
    }
}
