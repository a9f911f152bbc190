//! A Lua script that runs at the server in one step: sent by its digest, and whole where the server has forgotten it.

use std::time::Duration;

use redis::Value;
use sha1::{Digest, Sha1};

use super::{Link, LinkError};

pub(crate) struct Script {
    text: &'static str,
    sha1: String,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, sha1: hex::encode(Sha1::digest(text)) }
    }
}

impl Link {
    /// All keys of a script have one hash tag, so that a cluster runs it on one node.
    pub(crate) async fn run(
        &self,
        script: &Script,
        keys: &[&[u8]],
        arguments: &[&[u8]],
        within: Duration,
    ) -> Result<Value, LinkError> {
        let begun = tokio::time::Instant::now();
        let command = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len());
            keys.iter().chain(arguments).for_each(|part| {
                command.arg(*part);
            });
            command
        };
        match self.ask(&command("EVALSHA", &script.sha1), within).await {
            Err(LinkError::Refused { code }) if code == "NOSCRIPT" => {
                self.ask(&command("EVAL", script.text), within.saturating_sub(begun.elapsed())).await
            }
            answer => answer,
        }
    }
}
