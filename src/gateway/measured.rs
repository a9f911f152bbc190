//! What `measuring` runs by itself: this room's modules stay closed to everybody else.

use super::{Gateway, Plan, admit};
use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::deliver::BuildError;
use crate::server::Head;
use crate::state::{Ledgers, State};
use crate::telemetry::Metrics;
use std::net::IpAddr;

pub(crate) use super::forwarded::{Arrival, client, headers};

/// A snapshot without a door.
pub(crate) struct Heads {
    gateway: Gateway,
    /// Upstreams are looked after in it.
    _runtime: tokio::runtime::Runtime,
}

impl Heads {
    pub(crate) fn new(plan: Plan) -> Result<Self, BuildError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let entered = runtime.enter();
        let gateway = Gateway::build(plan, None, &Metrics::new(), &State::Memory(Ledgers::default()), None)?;
        drop(entered);
        Ok(Self { gateway, _runtime: runtime })
    }

    /// What `receive` asks of a head before it reads a body.
    pub(crate) fn admit(&self, head: &Head, peer: IpAddr) -> bool {
        let admitted = || {
            let found = client(peer, &head.headers, &[]);
            admit::framing(head)?;
            let authority = admit::authority(head)?;
            let host = admit::host_of(&authority);
            let source = self.gateway.sources.find(&host, head.uri.path(), "a");
            let source = source.ok_or(crate::refusal::Refusal::NoSource)?;
            if admit::method(source, head)? {
                admit::content_type(source, &head.headers)?;
            }
            admit::address(source, found)?;
            admit::certificate(source, None, UnixMillis::default)?;
            admit::not_guessing(source, ClientKey::of(found.address))
        };
        admitted().is_ok()
    }
}
