//! Why a connection is to end from our side, whatever its peer does.
//!
//! Invariant: a connection hears of everything that happened since it was accepted, also of what came before it listened.

use std::future::pending;

use tokio::sync::watch;

use super::Stop;

#[derive(Clone)]
pub(super) struct Signals {
    pub(super) stop: watch::Receiver<Stop>,
    /// Changes when what the peer is judged by is replaced.
    pub(super) judgement: watch::Receiver<()>,
}

pub(super) enum Parting {
    /// The process stops accepting, or its owner is gone.
    Stopping,
    /// What the peer was judged by is no longer in force.
    Outdated,
}

impl Signals {
    pub(super) async fn parting(&mut self) -> Parting {
        let replaced = async {
            // An error means that nobody can replace anything any more.
            if self.judgement.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            // An error means that nobody is left to say anything else.
            _ = self.stop.wait_for(|stop| *stop != Stop::Serve) => Parting::Stopping,
            () = replaced => Parting::Outdated,
        }
    }
}
