//! A lasting connection to Redis (or Valkey): one server, one that sentinels name, or a cluster.
//!
//! Invariant: one connection to a server is shared by all who ask (their commands are pipelined), it is made anew by
//! itself for as long as the link lives, and no question waits longer than its asker allows. Nothing is sent twice
//! unless the server has said that it did nothing. Neither a password nor the text of a command gets into an error.

mod cluster;
mod connect;
mod node;
mod script;
mod sentinel;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dial::Address;
use cluster::Cluster;
use connect::Manner;
use node::{Failed, Node, Place};
pub(crate) use script::Script;
pub(crate) use settings::{Settings, Topology};

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LinkError {
    /// Nothing was sent.
    #[error("no connection to Redis: {0}")]
    Down(String),
    /// It may have been carried out.
    #[error("Redis did not answer in time")]
    TimedOut,
    /// It may have been carried out.
    #[error("the connection to Redis broke: {0}")]
    Broken(String),
    /// The server said no: nothing was done, except by a script that failed on its way. The code is the first word of
    /// its answer: `OOM`, `READONLY`, `NOPERM`.
    #[error("Redis refused: {code}")]
    Refused { code: String },
}

pub(crate) struct Link {
    servers: Servers,
}

enum Servers {
    One(Arc<Node>),
    Cluster(Cluster),
}

impl Link {
    /// Begins to connect; needs a runtime. What is asked before there is a connection is told so at once.
    pub(crate) fn start(settings: Settings) -> Result<Arc<Self>, String> {
        let manner = Manner::of(&settings)?;
        let label = settings.label();
        let sender = watch::Sender::new(0);
        let one = |place: Place, sender| {
            Servers::One(Node::start(place, label.clone(), manner.clone(), settings.database, sender))
        };
        let servers = match settings.topology.clone() {
            Topology::Single(address) => one(Place::Fixed(address), sender),
            Topology::Sentinel { sentinels, master } => one(Place::Master { sentinels, name: master }, sender),
            Topology::Cluster(_) if settings.database != 0 => {
                return Err("a cluster has one database only, number 0".to_owned());
            }
            Topology::Cluster(nodes) => {
                Servers::Cluster(Cluster::start(nodes, settings.scheme(), manner.clone(), sender))
            }
        };
        Ok(Arc::new(Self { servers }))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.known_up() == Some(true)
    }

    /// None: the first attempt to connect goes on. Of a cluster: whether all slots can be reached.
    pub(crate) fn known_up(&self) -> Option<bool> {
        match &self.servers {
            Servers::One(node) => node.up(),
            Servers::Cluster(cluster) => cluster.up(),
        }
    }

    /// How often a connection was made, or slots of a cluster got another master.
    #[cfg(test)]
    pub(crate) fn came_up(&self) -> u64 {
        match &self.servers {
            Servers::One(node) => node.came_up(),
            Servers::Cluster(cluster) => cluster.came_up(),
        }
    }

    /// All keys of a command are of one slot. A node of a cluster is chosen by the first word after the command's name,
    /// or by a script's first key.
    pub(crate) async fn ask(&self, command: &Cmd, within: Duration) -> Result<Value, LinkError> {
        let until = Instant::now() + within;
        let answer = match &self.servers {
            Servers::One(node) => node.ask(command, until).await,
            Servers::Cluster(cluster) => cluster.ask(command, until).await,
        };
        answer.map_err(|failed| match failed {
            Failed::Link(error) => error,
            Failed::Refused(error) => LinkError::Refused { code: error.code().unwrap_or("ERR").to_owned() },
        })
    }
}
