//! A cluster: which node has a key's slot, and the way there when that changes.
//!
//! Invariant: a command goes to another node only when the first has said that it did nothing with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::{Arg, Cmd, Value};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::connect::Manner;
use super::node::{Failed, Node, Place};
use super::{Address, LinkError};

const SLOTS: usize = 16384;

/// Of one command, until it is given up: more than one is rare already.
const MOST_REDIRECTIONS: usize = 5;

/// While a slot moves, a command with keys on both sides has to wait a little.
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// The map is asked for so often when all is well, and when it is not.
const LOOK_EVERY: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const LOOK_WITHIN: Duration = Duration::from_millis(500);

pub(super) struct Cluster {
    shared: Arc<Shared>,
    looker: AbortHandle,
}

struct Shared {
    seeds: Vec<Address>,
    scheme: &'static str,
    manner: Manner,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    map: ArcSwapOption<Map>,
    outdated: Notify,
    came_up: watch::Sender<u64>,
}

struct Map {
    /// Of every slot the number of its master, or one that there is not.
    slots: Vec<u16>,
    masters: Vec<Arc<Node>>,
    ranges: Vec<(u16, u16, Address)>,
}

impl Cluster {
    pub(super) fn start(
        seeds: Vec<Address>,
        scheme: &'static str,
        manner: Manner,
        came_up: watch::Sender<u64>,
    ) -> Self {
        let shared = Arc::new(Shared {
            seeds,
            scheme,
            manner,
            nodes: Mutex::default(),
            map: ArcSwapOption::empty(),
            outdated: Notify::new(),
            came_up,
        });
        shared.seeds.iter().for_each(|seed| drop(shared.node(seed)));
        let looker = tokio::spawn(look(shared.clone())).abort_handle();
        Self { shared, looker }
    }

    /// Up while every slot has a master that can be reached.
    pub(super) fn up(&self) -> Option<bool> {
        match self.shared.map.load_full() {
            Some(map) if map.is_whole() => {
                map.masters.iter().map(|node| node.up()).try_fold(true, |all, up| Some(all && up?))
            }
            Some(_) => Some(false),
            None => {
                let nodes = self.shared.nodes();
                nodes.values().all(|node| node.up() == Some(false)).then_some(false)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn came_up(&self) -> u64 {
        *self.shared.came_up.borrow()
    }

    pub(super) async fn ask(&self, command: &Cmd, until: Instant) -> Result<Value, Failed> {
        let shared = &*self.shared;
        let mut node = shared.node_for(key(command))?;
        let mut moving = false;
        for _ in 0..MOST_REDIRECTIONS {
            let answer = match std::mem::take(&mut moving) {
                false => node.ask(command, until).await,
                true => node.ask_while_moving(command, until).await,
            };
            let refused = match answer {
                Err(Failed::Refused(refused)) => refused,
                Err(failed) => {
                    shared.outdated.notify_one();
                    return Err(failed);
                }
                value => return value,
            };
            match (refused.code(), refused.redirect_node().and_then(|(there, _)| redirection(there, node.host()))) {
                (Some(code @ ("MOVED" | "ASK")), Some(address)) => {
                    moving = code == "ASK";
                    if !moving {
                        shared.outdated.notify_one();
                    }
                    node = shared.node(&address);
                    // One that was unknown until now.
                    node.tried(until).await;
                }
                (Some("TRYAGAIN"), _) if Instant::now() + BETWEEN_TRIES < until => sleep(BETWEEN_TRIES).await,
                (Some("CLUSTERDOWN" | "READONLY" | "MASTERDOWN"), _) => {
                    shared.outdated.notify_one();
                    return Err(Failed::Refused(refused));
                }
                _ => return Err(Failed::Refused(refused)),
            }
        }
        Err(Failed::Link(LinkError::Down("the cluster's nodes send one to another".to_owned())))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.looker.abort();
    }
}

impl Map {
    fn is_whole(&self) -> bool {
        self.slots.iter().all(|number| usize::from(*number) < self.masters.len())
    }
}

impl Shared {
    fn nodes(&self) -> std::sync::MutexGuard<'_, HashMap<Address, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Known, or begun to be known.
    fn node(&self, address: &Address) -> Arc<Node> {
        let start = || {
            let label = format!("{}://{address}", self.scheme);
            Node::start(Place::Fixed(address.clone()), label, self.manner.clone(), 0, self.came_up.clone())
        };
        self.nodes().entry(address.clone()).or_insert_with(start).clone()
    }

    fn node_for(&self, key: Option<&[u8]>) -> Result<Arc<Node>, Failed> {
        let down = |why: &str| Failed::Link(LinkError::Down(why.to_owned()));
        let map =
            self.map.load_full().ok_or_else(|| down("no node of the cluster has told yet who has which slots"))?;
        match key {
            Some(key) => {
                let number = map.slots.get(usize::from(slot(key))).copied().unwrap_or(u16::MAX);
                let node = map.masters.get(usize::from(number));
                node.cloned().ok_or_else(|| down("no node of the cluster has this key's slot"))
            }
            None => {
                let up = map.masters.iter().find(|node| node.up() == Some(true));
                up.cloned().ok_or_else(|| down("no node of the cluster can be reached"))
            }
        }
    }

    /// Asks one after the other until one knows.
    async fn look(&self) -> bool {
        let candidates: Vec<(Address, Arc<Node>)> =
            self.nodes().iter().map(|(address, node)| (address.clone(), node.clone())).collect();
        for (address, node) in candidates.into_iter().filter(|(_, node)| node.up() == Some(true)) {
            let answer = node.ask(redis::cmd("CLUSTER").arg("SLOTS"), Instant::now() + LOOK_WITHIN).await;
            if let Err(Failed::Refused(refused)) = &answer {
                tracing::warn!(
                    server = %address, code = refused.code().unwrap_or_default(),
                    "Redis: CLUSTER SLOTS is refused"
                );
            }
            let Some(ranges) = answer.ok().and_then(|answer| ranges(&answer, &address)) else { continue };
            self.settle(&ranges);
            return true;
        }
        false
    }

    fn settle(&self, ranges: &[Range]) {
        let mut sorted: Vec<_> = ranges.iter().map(|range| (range.first, range.last, range.master.clone())).collect();
        sorted.sort_by_key(|(first, ..)| *first);
        let mut map = Map { slots: vec![u16::MAX; SLOTS], masters: Vec::new(), ranges: sorted };
        let mut numbers: HashMap<&Address, u16> = HashMap::new();
        for range in ranges {
            let number = *numbers.entry(&range.master).or_insert_with(|| {
                map.masters.push(self.node(&range.master));
                u16::try_from(map.masters.len() - 1).unwrap_or(u16::MAX)
            });
            if let Some(slots) = map.slots.get_mut(usize::from(range.first)..=usize::from(range.last)) {
                slots.fill(number);
            }
            // Connected already when one of them becomes the master.
            range.replicas.iter().for_each(|replica| drop(self.node(replica)));
        }
        let map = Arc::new(map);
        let before = self.map.swap(Some(map.clone()));
        // A replica that took over, long connected: it may not have all that its master had.
        if before.is_some_and(|before| before.ranges != map.ranges) {
            self.came_up.send_modify(|times| *times += 1);
        }
        self.nodes().retain(|address, _| {
            let named = |range: &Range| range.master == *address || range.replicas.contains(address);
            self.seeds.contains(address) || ranges.iter().any(named)
        });
    }
}

async fn look(shared: Arc<Shared>) {
    loop {
        let found = shared.look().await;
        let is_well = |map: Arc<Map>| map.is_whole() && map.masters.iter().all(|node| node.up() == Some(true));
        match found && shared.map.load_full().is_some_and(is_well) {
            true => {
                tokio::select! {
                    () = sleep(LOOK_EVERY) => {}
                    () = shared.outdated.notified() => {}
                }
                // However many ask for it.
                sleep(LOOK_AGAIN / 5).await;
            }
            false => {
                let mut came_up = shared.came_up.subscribe();
                tokio::select! {
                    () = sleep(LOOK_AGAIN) => {}
                    _ = came_up.changed() => {}
                }
            }
        }
    }
}

/// All keys of a command are in one slot, so the first decides; of a script they follow their number.
fn key(command: &Cmd) -> Option<&[u8]> {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => b"0",
    });
    let name = words.next()?.to_ascii_uppercase();
    match &*name {
        b"EVAL" | b"EVALSHA" | b"FCALL" => {
            let number = words.nth(1)?;
            if number == b"0" { None } else { words.next() }
        }
        b"PING" | b"TIME" | b"INFO" | b"SCRIPT" | b"WAIT" | b"CLUSTER" | b"CONFIG" | b"DBSIZE" | b"ROLE" => None,
        _ => words.next(),
    }
}

/// `host:port`, or `:port` for the same host.
fn redirection(there: &str, asked: &str) -> Option<Address> {
    let (host, port) = there.rsplit_once(':')?;
    let host = if host.is_empty() { asked } else { host.trim_start_matches('[').trim_end_matches(']') };
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

/// Of what stands between the first brace and the next that closes, when anything does.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        let close = rest.iter().position(|byte| *byte == b'}').filter(|close| *close > 0)?;
        rest.get(..close)
    });
    crc16(tag.unwrap_or(key)) % 16384
}

/// CRC-16/XMODEM.
pub(super) fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

struct Range {
    first: u16,
    last: u16,
    master: Address,
    replicas: Vec<Address>,
}

/// A node that does not know its own address stands there without one: then it is where it was asked.
fn ranges(answer: &Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(entries) = answer else { return None };
    let address = |value: &Value| {
        let Value::Array(parts) = value else { return None };
        let host = match parts.first()? {
            Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok()?,
            _ => String::new(),
        };
        let Some(Value::Int(port)) = parts.get(1) else { return None };
        let host = if host.is_empty() || host == "?" { asked.host.clone() } else { host };
        Some(Address { host, port: u16::try_from(*port).ok()? })
    };
    let range = |entry: &Value| {
        let Value::Array(parts) = entry else { return None };
        let [Value::Int(first), Value::Int(last), master, replicas @ ..] = &**parts else { return None };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        (first <= last && usize::from(last) < SLOTS).then_some(())?;
        Some(Range { first, last, master: address(master)?, replicas: replicas.iter().filter_map(address).collect() })
    };
    let ranges: Option<Vec<Range>> = entries.iter().map(range).collect();
    ranges.filter(|ranges| !ranges.is_empty())
}
