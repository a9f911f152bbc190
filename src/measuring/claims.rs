//! The memory of what was accepted, as the gateway asks it: a claim with its limit, and its commit.
//!
//! Invariant: every call says whether it was judged as it should be.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::state::{Ask, Claimed, Committed, Key, Ledger, Ledgers, Limits, Per, Quota, RateLimit, State};

/// Of the gateway's default lease: `queue_timeout`, `timeout` and ten seconds.
const LEASE: Duration = Duration::from_millis(20_250);

pub struct Claims {
    sources: Vec<(Arc<Ledger>, Limits)>,
    client: ClientKey,
}

impl Claims {
    /// In memory, for so many sources.
    pub fn of_sources(sources: usize, max_claims: usize) -> Self {
        let state = State::Memory(Ledgers::default());
        let quota = Quota::parse("1000000/s", Some(1_000_000)).expect("a rate");
        let limit = RateLimit { quota, per: Per::Source };
        let source =
            |number| (state.ledger(&format!("source-{number}"), max_claims), Limits::new(std::slice::from_ref(&limit)));
        Self {
            sources: (0..sources).map(source).collect(),
            client: ClientKey::of(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7))),
        }
    }

    /// One delivery accepted at this millisecond and remembered until that one: claimed, counted against the source's
    /// limit, and committed. `number` stands for the message.
    pub fn accept(&self, source: usize, number: u64, now: u64, until: u64) -> bool {
        match self.claim(source, number, now, until) {
            Some(Claimed::First(Some(mut reservation))) => {
                reservation.commit(UnixMillis(now)).now_or_never() == Some(Ok(Committed::Yes))
            }
            _ => false,
        }
    }

    /// The same again: whether it is known.
    pub fn is_replay(&self, source: usize, number: u64, now: u64) -> bool {
        matches!(self.claim(source, number, now, now + 1), Some(Claimed::Replay))
    }

    fn claim(&self, source: usize, number: u64, now: u64, until: u64) -> Option<Claimed> {
        let (ledger, limits) = self.sources.get(source)?;
        let ask = Ask {
            replay: vec![key(number)],
            keep_until: UnixMillis(until),
            event: None,
            event_keep_until: UnixMillis(until),
            lease: LEASE,
        };
        ledger.claim(Some(ask), false, limits, self.client, UnixMillis(now)).now_or_never()?.ok()
    }

    /// How many are remembered.
    pub fn remembered(&self) -> usize {
        self.sources.iter().map(|(ledger, _)| ledger.len()).sum()
    }
}

/// As even as a MAC, and cheap: it is not what is measured.
fn key(number: u64) -> Key {
    let mut key = Key::default();
    let mut mixed = number;
    for part in key.chunks_exact_mut(8) {
        mixed = mixed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        part.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    key
}
