//! What sentinels are asked: where the master of a name is.
//!
//! Invariant: a sentinel's word is not enough: whoever it names must say itself that it is a master.

use std::time::Duration;

use redis::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Address;
use super::connect::{self, Connected, Manner};

/// A sentinel that does not answer within this is not waited for; the others were asked at the same time.
const WITHIN: Duration = Duration::from_secs(1);

/// In the order in which they answer.
pub(super) fn named(manner: &Manner, sentinels: &[Address], master: &str) -> JoinSet<Result<Address, String>> {
    let mut answers = JoinSet::new();
    for sentinel in sentinels {
        let (manner, sentinel, master) = (manner.clone(), sentinel.clone(), master.to_owned());
        answers.spawn(async move {
            match timeout(WITHIN, one(&manner, &sentinel, &master)).await {
                Ok(answer) => answer.map_err(|why| format!("sentinel {why}")),
                Err(_) => Err(format!("sentinel {sentinel}: no answer within {WITHIN:?}")),
            }
        });
    }
    answers
}

async fn one(manner: &Manner, sentinel: &Address, master: &str) -> Result<Address, String> {
    // Many sentinels want no login, and refuse one; the password then stays here.
    match ask(&manner.without_login(), sentinel, master).await {
        Err(why) if manner.has_login() && connect::wants_login(&why) => ask(manner, sentinel, master).await,
        answer => answer,
    }
}

async fn ask(manner: &Manner, sentinel: &Address, master: &str) -> Result<Address, String> {
    let connection = manner.connect(sentinel, 0, || {}).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(master);
    let answer = connection.ask(&command).await.map_err(|error| connect::why(&error, "SENTINEL"));
    let found: Option<(String, u16)> =
        redis::from_redis_value(answer?).map_err(|_| format!("{sentinel}: answers as no sentinel does"))?;
    match found {
        Some((host, port)) => Ok(Address { host, port }),
        None => Err(format!("{sentinel}: knows no master named {master:?}")),
    }
}

pub(super) async fn is_master(connection: &Connected) -> Result<(), String> {
    let answer = connection.ask(&redis::cmd("ROLE")).await.map_err(|error| connect::why(&error, "ROLE"))?;
    match &answer {
        Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"master".to_vec())) => Ok(()),
        _ => Err("is named by a sentinel, and is no master itself (yet)".to_owned()),
    }
}

/// Whether most of those that answer still mean this one. True when none answers.
pub(super) async fn agree(manner: &Manner, sentinels: &[Address], master: &str, address: &Address) -> bool {
    let mut answers = named(manner, sentinels, master);
    let (mut same, mut others) = (0, 0);
    while let Some(answer) = answers.join_next().await {
        match answer {
            Ok(Ok(one)) if one == *address => same += 1,
            Ok(Ok(_)) => others += 1,
            _ => {}
        }
    }
    others <= same
}
