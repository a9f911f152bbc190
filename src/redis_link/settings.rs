//! Where Redis is, and as whom it is spoken to.

use std::time::Duration;

use crate::dial::Address;
use crate::secret::Secret;
use crate::tls_client::TlsSettings;

pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) topology: Topology,
    /// Of an ACL (Redis 6 and later); the password alone is `requirepass`.
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: i64,
    /// None: in the clear.
    pub(crate) tls: Option<TlsSettings>,
    pub(crate) connect_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    Single(Address),
    /// The master of this name, as these say. They are asked with the same credentials and TLS.
    Sentinel {
        sentinels: Vec<Address>,
        master: String,
    },
    /// Some nodes of it; they know the others.
    Cluster(Vec<Address>),
}

impl Settings {
    pub(crate) fn new(topology: Topology) -> Self {
        let connect_timeout = DEFAULT_CONNECT_TIMEOUT;
        Self { topology, username: None, password: None, database: 0, tls: None, connect_timeout }
    }

    /// As metrics and logs name it: without credentials.
    pub(crate) fn label(&self) -> String {
        let scheme = self.scheme();
        let list = |addresses: &[Address]| addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        match &self.topology {
            Topology::Single(address) if self.database == 0 => format!("{scheme}://{address}"),
            Topology::Single(address) => format!("{scheme}://{address}/{}", self.database),
            Topology::Sentinel { sentinels, master } => format!("{scheme}+sentinel://{}/{master}", list(sentinels)),
            Topology::Cluster(nodes) => format!("{scheme}+cluster://{}", list(nodes)),
        }
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "rediss" } else { "redis" }
    }

    /// Equal in everything. Written out, so that a new setting cannot be left out unseen.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let Self { topology, username, password, database, tls, connect_timeout } = self;
        let same_password = match (password, &other.password) {
            (None, None) => true,
            (Some(one), Some(two)) => one.matches(two.expose()),
            _ => false,
        };
        let same_tls = match (tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(two)) => one.is_same(two),
            _ => false,
        };
        *topology == other.topology
            && *username == other.username
            && (*database, *connect_timeout) == (other.database, other.connect_timeout)
            && same_password
            && same_tls
    }
}
