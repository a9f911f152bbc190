//! One sender's whole contract, and finding it.
//!
//! Invariant: a source is found by host and path alone, compared as sent: nothing is decoded or folded, and no header
//! or body can lead a request to another source.

use super::route::Routes;
use super::silence::Silence;
use crate::deliver::{Destination, Schedule};
use crate::server::DistinguishedName;
use crate::state::{KeyedRate, Ledger, Limits, Quota, Rate, RateLimit, Throttle};
use crate::telemetry::SourceMeters;
use crate::verify::{SigningKey, Verifier};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use rustls::server::danger::ClientCertVerifier;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the configuration says of a source. Everything in it has been checked.
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) host: Option<String>,
    pub(crate) path: PathRule,
    /// Empty: all.
    pub(crate) listeners: Vec<String>,
    pub(crate) methods: Vec<Method>,
    /// Lower case, without parameters; empty: any.
    pub(crate) content_types: Vec<String>,
    /// Empty: any.
    pub(crate) allow_ips: Vec<IpNet>,
    pub(crate) client_cert: Option<ClientCertRule>,
    pub(crate) verifier: Arc<Verifier>,
    /// The references of the secrets, in the order listed; never their values.
    pub(crate) secret_names: Vec<String>,
    pub(crate) max_body: u64,
    pub(crate) max_claims: usize,
    pub(crate) delivery: Way,
    /// Of what the inbox delivers.
    pub(crate) retry: Schedule,
    /// What is refused for its signature alone is kept, to be judged again.
    pub(crate) quarantine: bool,
    pub(crate) routes: Routes,
    pub(crate) acknowledge: Acknowledge,
    pub(crate) rate_limits: Vec<RateLimit>,
    pub(crate) on_replay: OnReplay,
    pub(crate) on_duplicate: OnDuplicate,
    pub(crate) replay_window: Duration,
    pub(crate) dedupe_window: Duration,
    pub(crate) observe: bool,
    /// A sender that is quiet for longer is told of.
    pub(crate) expect_every: Option<Duration>,
    /// The 401's `WWW-Authenticate`: the same for every cause.
    pub(crate) challenge: HeaderValue,
    /// Refusals have no body: there are providers that want it so.
    pub(crate) refuses_without_body: bool,
    /// The name under which the secret is kept that the source waits for.
    pub(crate) awaits: Option<String>,
    /// The operator is shown that secret, to paste it at the provider's.
    pub(crate) shows_captured: bool,
}

/// What is waited for before the sender is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The upstream's answer.
    Proxy,
    /// That it is stored; it is delivered later.
    Inbox,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PathRule {
    Exact(String),
    /// `/x/*`, kept as `/x/`.
    Prefix(String),
}

impl PathRule {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("{text:?} does not begin with `/`"));
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#' | '\\')) {
            return Err(format!("{text:?} holds {c:?}; write the path as senders send it, percent-encoded"));
        }
        match text.strip_suffix('*') {
            Some(prefix) if prefix.ends_with('/') && !prefix.contains('*') => Ok(Self::Prefix(prefix.to_owned())),
            None if !text.contains('*') => Ok(Self::Exact(text.to_owned())),
            _ => Err(format!("{text:?}: a `*` stands alone at the end, behind a `/`: \"/github/*\"")),
        }
    }
}

impl std::fmt::Display for PathRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamPath {
    Whole(String),
    /// Stands in for the source's own prefix; ends in `/`.
    Prefix(String),
}

#[derive(Debug)]
pub(crate) struct ClientCertRule {
    pub(crate) required: bool,
    /// This source's own roots, where it has some.
    pub(crate) roots: Option<Roots>,
    pub(crate) names: Vec<AlternativeName>,
    /// The whole of it.
    pub(crate) subject: Option<DistinguishedName>,
    pub(crate) fingerprints: Vec<[u8; 32]>,
}

/// A name in a certificate, compared whole, and only with names of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AlternativeName {
    /// In lower case.
    Dns(String),
    /// As it is: only a scheme and a host have no case, and nobody but the CA wrote it.
    Uri(String),
}

/// A source's own roots, and which leaf certificates they were found to sign.
pub(crate) struct Roots {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
    /// Leaf fingerprint to the unix second until which the answer is good: building a chain costs as much as a
    /// handshake. Guards only this map; held for a look-up.
    known: Mutex<HashMap<[u8; 32], (bool, u64)>>,
}

/// A sender has a handful of certificates; a client with its own CA could make any number.
const MOST_KNOWN_LEAVES: usize = 1024;

/// How long a chain that was found good counts as good: an expiry shows within this time.
const CHAIN_GOOD_FOR_SECS: u64 = 60;

impl Roots {
    pub(crate) fn new(verifier: Arc<dyn ClientCertVerifier>) -> Self {
        Self { verifier, known: Mutex::default() }
    }

    pub(crate) fn signed(&self, certificate: &crate::server::ClientCertificate, now_secs: u64) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((good, until)) = known.get(&certificate.sha256)
            && *until > now_secs
        {
            return *good;
        }
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now_secs));
        let good = self.verifier.verify_client_cert(&certificate.der, &certificate.intermediates, now).is_ok();
        if known.len() >= MOST_KNOWN_LEAVES {
            known.clear();
        }
        known.insert(certificate.sha256, (good, now_secs + CHAIN_GOOD_FOR_SECS));
        good
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Roots")
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Acknowledge {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) content_type: Option<HeaderValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnReplay {
    Reject,
    Acknowledge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDuplicate {
    Acknowledge,
    Reject,
    Forward,
}

/// A source at work.
pub(crate) struct Source {
    pub(crate) settings: Settings,
    /// As the upstream hears it.
    pub(crate) name: HeaderValue,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) meters: Arc<SourceMeters>,
    /// One for each upstream that a route leads to.
    pub(crate) outlets: Vec<Outlet>,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) silence: Arc<Silence>,
}

/// An upstream at work.
pub(crate) struct Outlet {
    pub(crate) upstream: Arc<str>,
    pub(crate) destination: Arc<Destination>,
    /// Signs what leaves, where the upstream asks for it.
    pub(crate) signs: Option<Arc<SigningKey>>,
}

impl Source {
    /// Does anybody behind it hear what a delivery is called? An HTTP upstream does in our signature alone.
    pub(crate) fn is_asked_for_names(&self) -> bool {
        let asks = |outlet: &Outlet| outlet.signs.is_some() || outlet.destination.is_broker();
        self.settings.delivery == Way::Inbox || self.outlets.iter().any(asks)
    }

    pub(crate) fn outlet(&self, upstream: &str) -> Option<&Outlet> {
        self.outlets.iter().find(|outlet| *outlet.upstream == *upstream)
    }
}

/// A source's counters; they outlive reloads that do not change their quotas.
pub(crate) struct Budgets {
    failed_auth_quota: Quota,
    /// What first deliveries spend.
    pub(crate) limits: Limits,
    /// Failed proofs, per client.
    pub(crate) failed_auth: Throttle,
    /// Answering replays and duplicates, per client: they spend nothing of the source's rate.
    pub(crate) repeats: KeyedRate,
    /// Handshakes, whoever sends them.
    pub(crate) handshakes: Rate,
    /// Handshakes that anybody may ask for, per client: one stranger shall not spend what all share.
    pub(crate) strangers: KeyedRate,
    /// Telling somebody that the state store fails: an outage is one thing, not as many as there are deliveries.
    pub(crate) tells_of_state: Rate,
    /// Somebody was told that the claims are running full.
    pub(crate) told_of_claims: AtomicBool,
}

impl Budgets {
    pub(crate) fn new(limits: &[RateLimit], failed_auth_quota: Quota, failed_auth: Throttle) -> Self {
        Self {
            limits: Limits::new(limits),
            failed_auth_quota,
            failed_auth,
            repeats: KeyedRate::new(constant("20/s", 100), KeyedRate::DEFAULT_MAX_CLIENTS),
            handshakes: Rate::new(constant("5/s", 5)),
            strangers: KeyedRate::new(constant("1/s", 5), KeyedRate::DEFAULT_MAX_CLIENTS),
            tells_of_state: Rate::new(constant("6/m", 1)),
            told_of_claims: AtomicBool::new(false),
        }
    }

    pub(crate) fn are_for(&self, limits: &[RateLimit], failed_auth: Quota) -> bool {
        self.limits.are(limits) && self.failed_auth_quota == failed_auth
    }
}

fn constant(rate: &str, burst: u32) -> Quota {
    Quota::parse(rate, Some(burst)).expect("the constants above are rates")
}

/// All sources, ready to be looked up.
#[derive(Default)]
pub(crate) struct Sources {
    by_host: HashMap<String, Paths>,
    hostless: Paths,
    by_name: HashMap<Arc<str>, Arc<Source>>,
    all: Vec<Arc<Source>>,
}

#[derive(Default)]
struct Paths {
    exact: HashMap<String, Arc<Source>>,
    /// Longest first.
    prefixes: Vec<(String, Arc<Source>)>,
}

impl Sources {
    pub(crate) fn new(all: Vec<Arc<Source>>) -> Self {
        let mut sources = Self { all, ..Self::default() };
        for source in &sources.all {
            sources.by_name.insert(source.settings.name.clone(), source.clone());
            let paths = match &source.settings.host {
                Some(host) => sources.by_host.entry(host.clone()).or_default(),
                None => &mut sources.hostless,
            };
            match &source.settings.path {
                PathRule::Exact(path) => {
                    paths.exact.insert(path.clone(), source.clone());
                }
                PathRule::Prefix(prefix) => paths.prefixes.push((prefix.clone(), source.clone())),
            }
        }
        for paths in sources.by_host.values_mut().chain([&mut sources.hostless]) {
            paths.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        sources
    }

    /// `host` in lower case and without a port; `path` as sent.
    pub(crate) fn find(&self, host: &str, path: &str, listener: &str) -> Option<&Arc<Source>> {
        let named = if self.by_host.is_empty() { None } else { self.by_host.get(host) };
        let mut tables = named.into_iter().chain([&self.hostless]);
        tables.find_map(|paths| paths.find(path)).filter(|source| {
            let listeners = &source.settings.listeners;
            listeners.is_empty() || listeners.iter().any(|name| name == listener)
        })
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Source>> {
        self.by_name.get(name)
    }

    pub(crate) fn all(&self) -> &[Arc<Source>] {
        &self.all
    }
}

impl Paths {
    fn find(&self, path: &str) -> Option<&Arc<Source>> {
        if let Some(source) = self.exact.get(path) {
            return Some(source);
        }
        if self.prefixes.is_empty() || could_mean_another_path(path) {
            return None;
        }
        self.prefixes.iter().find(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, source)| source)
    }
}

/// Behind a prefix the rest of the path goes to the upstream, which may decode and fold it; what folds could leave the
/// prefix, so it never enters.
fn could_mean_another_path(path: &str) -> bool {
    /// What stands for a separator, a dot or the beginning of an overlong form of them, behind a `%`.
    const CODED: [&str; 7] = ["2e", "2f", "5c", "00", "3b", "c0", "c1"];
    let lower = path.to_ascii_lowercase();
    // Coded once, or twice: `%25` is a coded `%`.
    let is_coded = |behind: &str| {
        let behind = behind.strip_prefix("25").unwrap_or(behind);
        CODED.iter().any(|coded| behind.starts_with(coded))
    };
    lower.contains("//")
        || lower.contains('\\')
        || lower.split('%').skip(1).any(is_coded)
        // Some servers take what stands behind `;` for a parameter and `..;` for `..`.
        || lower.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    #[test]
    fn a_path_is_exact_or_a_prefix_and_nothing_else() {
        assert_eq!(PathRule::parse("/github"), Ok(PathRule::Exact("/github".to_owned())));
        assert_eq!(PathRule::parse("/github/*"), Ok(PathRule::Prefix("/github/".to_owned())));
        assert_eq!(PathRule::parse("/*"), Ok(PathRule::Prefix("/".to_owned())));
        for wrong in ["", "github", "/a*", "/a/*/b", "/a b", "/a?x=1", "/a#b", "/a\\b", "/é", "/**"] {
            assert!(PathRule::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_that_an_upstream_could_fold_are_seen() {
        for wrong in [
            "/x/../y",
            "/x/.",
            "/x//y",
            "/x/%2e%2E/y",
            "/x/a%2Fb",
            "/x/a\\b",
            "/x/%5cb",
            "/x/%00",
            "/x/a%2f..b",
            "/x/..;/y",
            "/x/%252e",
            "/x/%c0%ae/y",
            "/x/..%3b/y",
        ] {
            assert!(could_mean_another_path(wrong), "{wrong}");
        }
        for right in ["/x/100%25", "/x/y", "/x/y.z", "/x/..y", "/x/%20y", "/x/a.b..c/", "/x/a;..;b"] {
            assert!(!could_mean_another_path(right), "{right}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_path_rule_or_is_not(text in r"\PC{0,24}|/[a-c/*.%?#\\]{0,12}") {
            if let Ok(rule) = PathRule::parse(&text) {
                prop_assert!(text.starts_with('/'));
                prop_assert_eq!(rule.to_string(), &*text);
                let (PathRule::Exact(path) | PathRule::Prefix(path)) = rule;
                prop_assert!(!path.contains('*'), "{path}");
            }
        }

        #[test]
        fn what_enters_a_prefix_stays_behind_it_when_it_is_decoded(
            path in r"/x/([a/.\\]|%2[eEfF]|%5[cC]|%00|%25|%61){0,8}",
        ) {
            if !could_mean_another_path(&path) {
                let decoded = percent_decode_str(&path).decode_utf8_lossy().into_owned();
                prop_assert!(decoded.starts_with("/x/"));
                prop_assert!(!decoded.contains("//") && !decoded.contains(['\\', '\0']), "{decoded}");
                prop_assert!(decoded.split('/').all(|segment| segment != "." && segment != ".."), "{decoded}");
            }
        }
    }
}
