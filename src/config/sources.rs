//! `[sources.NAME]`: one sender's whole contract, and what of it fails open.

use super::inbox;
use super::problem::{At, Severity};
use super::quarantine;
use super::reader::Table;
use super::routes;
use super::units::header_value;
use super::upstreams;
use super::verification::{self, Credentials, Resends};
use crate::gateway::source::{
    Acknowledge, AlternativeName, ClientCertRule, OnDuplicate, OnReplay, PathRule, Roots, Settings, Way,
};
use crate::server::{DistinguishedName, roots_verifier};
use crate::state::{Per, RateLimit};
use crate::verify::Coverage;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
/// Shorter, and every pause would be a silence.
const SHORTEST_SILENCE: Duration = Duration::from_secs(10);
const LONGEST_WINDOW: Duration = Duration::from_secs(90 * 86_400);

/// What a source needs to know of the rest of the configuration.
pub(super) struct Around<'a> {
    pub(super) listeners: &'a BTreeMap<String, ListenerFacts>,
    /// By name.
    pub(super) upstreams: &'a BTreeMap<String, upstreams::Facts>,
    pub(super) max_body: u64,
    pub(super) max_claims: u64,
    pub(super) state_is_memory: bool,
    pub(super) bytes_per_claim: usize,
    /// How long a request stays in the quarantine.
    pub(super) quarantine_age: Duration,
}

pub(super) struct ListenerFacts {
    pub(super) has_tls: bool,
    pub(super) asks_for_certificates: bool,
    /// How many certificates the listener's `client_ca` holds.
    pub(super) client_roots: usize,
    pub(super) is_loopback: bool,
}

/// A source, where it stands, and the prints of its signing secrets.
pub(super) struct Read {
    pub(super) settings: Settings,
    pub(super) at: Option<At>,
    pub(super) secret_prints: Vec<[u8; 32]>,
}

pub(super) fn read(name: &str, table: Table<'_>, preset: Option<&str>, around: &Around<'_>) -> Option<Read> {
    // Used, and complained of, by whoever laid the preset under this table.
    match preset {
        Some(_) => drop(table.text("provider")),
        None => table.ignore(&["provider"]),
    }
    let credentials = verification::read(&table, preset);
    let host = table.parsed("host", host);
    let path = table.needed_text("path", r#"path = "/github""#).and_then(|text| match PathRule::parse(&text) {
        Ok(path) => Some(path),
        Err(what) => {
            table.error("path", what, r#"path = "/github", or "/github/*" for a prefix"#);
            None
        }
    });
    let listeners = listeners(&table, around);
    let allow_ips: Vec<IpNet> = table.all_parsed("allow_ips", network);
    let client_cert = table.table("client_cert").and_then(|rule| read_client_cert(rule, &listeners, around));
    let accept_unverified = table.flag("danger_accept_unverified", false);
    let observe = table.choice("mode", Some("enforce"), &[("enforce", false), ("observe", true)]).unwrap_or(false);
    let delivery =
        table.choice("delivery", Some("proxy"), &[("proxy", Way::Proxy), ("inbox", Way::Inbox)]).unwrap_or(Way::Proxy);
    let inbox::OfSource { retry, order } = inbox::of_source(&table, delivery, observe);
    let quarantine = quarantine::wanted(&table, delivery, credentials.as_ref(), around);
    let routes = routes::read(
        &table,
        routes::Around {
            upstreams: around.upstreams,
            way: delivery,
            order,
            observes: observe,
            path: path.as_ref(),
            verifier: credentials.as_ref().map(|found| &*found.verifier),
        },
    );
    let expect_every =
        table.has("expect_every").then(|| table.duration("expect_every", DAY, SHORTEST_SILENCE..=LONGEST_WINDOW));
    table.ignore(&["expect_every"]);
    let methods = methods(&table);
    let content_types = table.all_parsed("content_types", |text| {
        let lower = text.to_ascii_lowercase();
        if lower.contains('/') && !lower.contains([';', ' ', ',']) {
            Ok(lower)
        } else {
            Err(format!("{text:?} is no media type without parameters"))
        }
    });
    let max_body = table.size("max_body", around.max_body, 1..=(1 << 30));
    let max_claims = table.count("max_claims", around.max_claims, 1_000..=100_000_000);
    let rate_limits: Vec<_> = table
        .tables("rate_limit")
        .into_iter()
        .filter_map(|limit| {
            let per = limit.choice("per", Some("source"), &[("source", Per::Source), ("client", Per::Client)]);
            let quota = verification::quota(&limit);
            limit.finish();
            Some(RateLimit { quota: quota?, per: per? })
        })
        .collect();
    let signs_time = credentials.as_ref().is_some_and(|found| found.signs_time);
    let has_replay_key = credentials.as_ref().is_some_and(|found| found.has_replay_key);
    let default_on_replay = match credentials.as_ref().map(|found| found.resends) {
        Some(Resends::Resigned) => "reject",
        Some(Resends::Unknown) if preset.is_none() && signs_time => "reject",
        _ => "acknowledge",
    };
    let on_replay = table
        .choice(
            "on_replay",
            Some(default_on_replay),
            &[("reject", OnReplay::Reject), ("acknowledge", OnReplay::Acknowledge)],
        )
        .unwrap_or(OnReplay::Reject);
    let duplicates =
        [("acknowledge", OnDuplicate::Acknowledge), ("reject", OnDuplicate::Reject), ("forward", OnDuplicate::Forward)];
    let on_duplicate =
        table.choice("on_duplicate", Some("acknowledge"), &duplicates).unwrap_or(OnDuplicate::Acknowledge);
    let replay_window = table.duration("replay_window", DAY, Duration::ZERO..=LONGEST_WINDOW);
    let dedupe_window = table.duration("dedupe_window", DAY, Duration::ZERO..=LONGEST_WINDOW);
    let acknowledge = acknowledge(&table);
    let bodies = [("problem", false), ("empty", true)];
    let refuses_without_body = table.choice("refusal_body", Some("problem"), &bodies).unwrap_or(false);

    if let Some(found) = &credentials {
        // What the inbox has accepted it remembers itself.
        let forgets = around.state_is_memory && delivery == Way::Proxy;
        let facts = (preset.is_some(), accept_unverified, forgets);
        say_what_is_not_protected(&table, found, &client_cert, &allow_ips, facts, replay_window);
        say_what_a_capture_needs(&table, found, around);
        guessable_in_the_clear(&table, found, &listeners, around);
        if has_replay_key {
            let windows = (replay_window, quarantine.unwrap_or_default());
            claims_for_the_rate(&table, &rate_limits, max_claims, windows, found, around);
        }
    }
    let at = table.at();
    table.finish();
    let credentials = credentials?;
    let settings = Settings {
        name: name.into(),
        host,
        path: path?,
        listeners,
        methods,
        content_types,
        allow_ips,
        client_cert,
        verifier: credentials.verifier,
        secret_names: distinct(credentials.secret_names),
        max_body,
        max_claims: usize::try_from(max_claims).unwrap_or(usize::MAX),
        delivery,
        retry,
        quarantine: quarantine.is_some(),
        routes: routes?,
        acknowledge: acknowledge?,
        rate_limits,
        on_replay,
        on_duplicate,
        replay_window,
        dedupe_window,
        observe,
        expect_every,
        challenge: credentials.challenge,
        refuses_without_body,
        awaits: credentials.awaits,
        shows_captured: credentials.shows_captured,
    };
    Some(Read { settings, at, secret_prints: credentials.secret_prints })
}

/// Two secrets of one reference (two inline values, say) are told apart by their position.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for name in &names {
        *seen.entry(name.clone()).or_default() += 1;
    }
    let numbered = names.into_iter().enumerate().map(|(position, name)| match seen.get(&name) {
        Some(count) if *count > 1 => format!("{name}#{}", position + 1),
        _ => name,
    });
    numbered.collect()
}

/// What no source can know by itself: two on one host and path are an error, for which of them is asked would depend on
/// their order; and one secret in two sources lets what one of them accepted be sent again to the other.
pub(super) fn compare(sources: &[Read], mut report: impl FnMut(Severity, &Read, String, &str)) {
    let mut places: HashMap<(Option<&str>, &PathRule), &str> = HashMap::new();
    let mut secrets: HashMap<[u8; 32], &str> = HashMap::new();
    for source in sources {
        let Settings { name, host, path, .. } = &source.settings;
        if let Some(other) = places.insert((host.as_deref(), path), name) {
            let host = host.as_deref().unwrap_or("any host");
            let what = format!("has the same host and path ({host}, {path}) as sources.{other}");
            report(Severity::Error, source, what, "give one of them another `path` or `host`");
        }
        for print in &source.secret_prints {
            if let Some(other) = secrets.insert(*print, name).filter(|other| **other != **name) {
                let what = format!(
                    "shares a secret with sources.{other}: what one of them accepted can be sent again to the other"
                );
                report(Severity::Warning, source, what, "a secret of its own for each");
            }
        }
    }
}

fn say_what_is_not_protected(
    table: &Table<'_>,
    found: &Credentials,
    client_cert: &Option<ClientCertRule>,
    allow_ips: &[IpNet],
    (has_preset, accept_unverified, forgets): (bool, bool, bool),
    replay_window: Duration,
) {
    let by_certificate = client_cert.as_ref().is_some_and(|rule| rule.required);
    if !found.proves_something && table.has("provider") && !has_preset {
        // There is no such preset, and that was told.
        return;
    }
    if !found.proves_something && !by_certificate {
        let hint = "`provider`, `verify`, `basic`, `bearer`, `token`, or `client_cert` with required = true; or say danger_accept_unverified = true";
        match (accept_unverified, allow_ips.is_empty()) {
            (true, _) => table.warn("danger_accept_unverified", "anyone can send to this source", ""),
            (false, true) if has_preset => table.error(
                "",
                "proves nothing: this preset answers the provider's questions, and the provider signs no deliveries; anyone could send to it",
                "a `path` that nobody guesses, and danger_accept_unverified = true; better `token`, `basic` or `client_cert`, if the provider can",
            ),
            (false, true) => table.error("", "proves nothing: anyone could send to it", hint),
            (false, false) => table.error(
                "allow_ips",
                "stands alone, and an address proves little: providers share theirs with their customers",
                hint,
            ),
        }
        return;
    }
    if accept_unverified {
        table.warn(
            "danger_accept_unverified",
            "has no effect: the source has credentials, and they are checked",
            "remove it",
        );
    }
    if found.has_replay_key && !found.signs_time {
        if replay_window.is_zero() {
            table.warn(
                "replay_window",
                "is zero and the signature holds no time: a captured delivery can be sent again for ever",
                r#"replay_window = "24h""#,
            );
        } else {
            if forgets {
                table.warn("", "the signature holds no time, and [state] is in memory: a restart forgets what was accepted, and captured deliveries pass again", r#"[state] kind = "disk""#);
            }
            table.remark(
                "replay_window",
                "the signature holds no time: a captured delivery passes again when `replay_window` is over",
                "",
            );
        }
    }
    match found.verifier.coverage() {
        _ if !found.proves_something => {}
        Coverage::Whole => {}
        Coverage::Partly => table.remark(
            "",
            "the proof stands for parts of the body: whoever captures a delivery can send the rest changed",
            "believe the signed parts alone, or ask the provider for what a delivery names",
        ),
        Coverage::Nothing => table.remark(
            "",
            "the proof stands for nothing of the body: whoever learns the credential, or captures a delivery, can send any",
            "ask the provider for what a delivery names",
        ),
    }
    if found.has_replay_key && !found.verifier.replay_is_signed() {
        let what =
            "names nothing that is signed: whoever captures a delivery can write another value, and send it again";
        table.remark("replay", what, "a value that the signature stands for");
    }
    if !found.has_replay_key && found.proves_something && found.has_id && !found.verifier.id_is_signed() {
        let what = "nothing signed tells one delivery from another, and the id is not signed: whoever captures a delivery, or learns the credential, can send it again under another id";
        table.remark("", what, "");
    }
    if !found.has_replay_key && found.proves_something && !found.has_id {
        table.remark("", "nothing signed tells one delivery from another: whoever learns the credential, or captures a delivery, can send it again", "`id`, if the sender has one");
    }
}

fn say_what_a_capture_needs(table: &Table<'_>, found: &Credentials, around: &Around<'_>) {
    if found.awaits.is_none() {
        return;
    }
    let what = "takes the secret that the first comer brings, until one has come: whoever knows the URL may be first";
    table.warn("handshake", what, "set await_secret just before the webhook is created");
    if around.state_is_memory {
        let what = "the secret that a sender brings is kept in [state], which is in memory: a restart forgets it, and every delivery is refused until the sender brings another";
        table.warn("handshake", what, r#"[state] kind = "disk""#);
    }
}

fn guessable_in_the_clear(table: &Table<'_>, found: &Credentials, listeners: &[String], around: &Around<'_>) {
    if !found.verifier.is_guessable() {
        return;
    }
    for (name, facts) in around.listeners {
        let used = listeners.is_empty() || listeners.contains(name);
        if used && !facts.has_tls && !facts.is_loopback {
            let what = format!("a password or token would cross the network in the clear on listener {name}");
            table.error("", what, "give that listener `tls`, bind it to 127.0.0.1, or name others with `listeners`");
        }
    }
}

/// Full means 503, so the table must hold what the rate lets in during a window.
fn claims_for_the_rate(
    table: &Table<'_>,
    limits: &[RateLimit],
    max_claims: u64,
    (replay_window, quarantine): (Duration, Duration),
    found: &Credentials,
    around: &Around<'_>,
) {
    // Until signed time + tolerance + 60 s, and that time may lie a tolerance ahead; longer for what is in quarantine.
    let signed = found.verifier.tolerance().map(|tolerance| 2 * tolerance + Duration::from_secs(60));
    let window = signed.unwrap_or(replay_window) + quarantine;
    let keys_each = found.verifier.replay_keys_each();
    for limit in limits.iter().filter(|limit| limit.per == Per::Source) {
        let needed = limit.quota.per_second() * window.as_secs_f64() * keys_each as f64;
        if needed > max_claims as f64 {
            let mib = needed * around.bytes_per_claim as f64 / f64::from(1 << 20);
            let what = format!(
                "{max_claims} are fewer than `rate_limit` lets in during a window of {} s ({needed:.0}, one for each live secret of a delivery): the table would fill, and senders get 503",
                window.as_secs()
            );
            table.warn(
                "max_claims",
                what,
                &format!("max_claims = {needed:.0}, which takes some {mib:.0} MiB, or a lower rate"),
            );
        }
    }
}

fn listeners(table: &Table<'_>, around: &Around<'_>) -> Vec<String> {
    let names = table.texts("listeners");
    if !table.has("listeners") {
        table.note_default("listeners", "all");
    }
    for name in &names {
        if !around.listeners.contains_key(name) {
            let known: Vec<_> = around.listeners.keys().map(String::as_str).collect();
            table.error(
                "listeners",
                format!("there is no [listeners.{name}]"),
                &format!("one of: {}", known.join(", ")),
            );
        }
    }
    names
}

fn methods(table: &Table<'_>) -> Vec<Method> {
    if !table.has("methods") {
        table.ignore(&["methods"]);
        table.note_default("methods", "[\"POST\"]");
        return vec![Method::POST];
    }
    table.all_parsed("methods", |text| match text {
        "CONNECT" | "TRACE" => Err(format!("{text} is never let in")),
        _ if text.bytes().all(|b| b.is_ascii_uppercase()) => text.parse().map_err(|_| format!("{text:?} is no method")),
        _ => Err(format!("{text:?} is no method; they are in upper case")),
    })
}

fn acknowledge(table: &Table<'_>) -> Option<Acknowledge> {
    let status = |code: u64| u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    if table.node("acknowledge").is_none_or(|node| node.is_integer()) {
        let status = status(table.count("acknowledge", 202, 200..=299))?;
        return Some(Acknowledge { status, body: Bytes::new(), content_type: None });
    }
    let of = table.table("acknowledge")?;
    let status = status(of.count("status", 202, 200..=299));
    let body = of.text("body").unwrap_or_default();
    let content_type = of.parsed("content_type", header_value);
    of.finish();
    let default = (!body.is_empty()).then_some(HeaderValue::from_static("text/plain; charset=utf-8"));
    Some(Acknowledge { status: status?, body: Bytes::from(body), content_type: content_type.or(default) })
}

fn read_client_cert(rule: Table<'_>, listeners: &[String], around: &Around<'_>) -> Option<ClientCertRule> {
    let required = rule.flag("required", true);
    let roots = rule.file("ca").and_then(|(path, pem)| match roots_verifier(&pem) {
        Ok(verifier) => Some(Roots::new(verifier)),
        Err(error) => {
            rule.error("ca", format!("{}: {error}", path.display()), "PEM certificates of the CA");
            None
        }
    });
    let names = rule.all_parsed("names", alternative_name);
    let subject = rule.parsed("subject", DistinguishedName::parse);
    let fingerprints = rule.all_parsed("fingerprints", |text| {
        let hex = text.strip_prefix("sha256:").ok_or_else(|| format!("{text:?} does not begin with `sha256:`"))?;
        let bytes = hex::decode(hex.replace(':', "")).map_err(|_| format!("{text:?} is not hexadecimal"))?;
        <[u8; 32]>::try_from(bytes).map_err(|_| format!("{text:?} is not 32 bytes"))
    });
    let used: Vec<_> =
        around.listeners.iter().filter(|(name, _)| listeners.is_empty() || listeners.contains(name)).collect();
    if required && used.iter().all(|(_, facts)| !facts.asks_for_certificates) {
        rule.error(
            "required",
            "no listener of this source asks for a client certificate: nothing could pass",
            "tls.client_ca on the listener",
        );
    }
    if roots.is_none() && !rule.has("ca") && used.iter().any(|(_, facts)| facts.client_roots > 1) {
        rule.error(
            "",
            "`ca` is missing: a listener of this source trusts several CAs, and any of them could issue these names",
            r#"ca = "certs/github-ca.pem""#,
        );
    }
    if !["ca", "names", "subject", "fingerprints"].iter().any(|key| rule.has(key)) {
        rule.remark("", "any certificate of the listener's CA will do", r#"names = ["hooks.example.com"]"#);
    }
    rule.finish();
    Some(ClientCertRule { required, roots, names, subject, fingerprints })
}

/// No DNS name has a colon, and no URI is without.
fn alternative_name(text: &str) -> Result<AlternativeName, String> {
    if text.contains('*') {
        return Err(format!("{text:?} holds a `*`: a name is compared whole"));
    }
    if text.is_empty() || text.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("{text:?} is neither a DNS name nor a URI; addresses belong into `allow_ips`"));
    }
    Ok(if text.contains(':') {
        AlternativeName::Uri(text.to_owned())
    } else {
        AlternativeName::Dns(text.to_ascii_lowercase())
    })
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let network: IpNet = text
        .parse()
        .ok()
        .or_else(single)
        .ok_or_else(|| format!("{text:?} is no address and no network (192.0.2.0/24)"))?;
    if network.trunc() != network {
        return Err(format!("{text:?} has bits behind its prefix; meant {}?", network.trunc()));
    }
    Ok(network)
}

fn host(text: &str) -> Result<String, String> {
    let plain =
        !text.is_empty() && text.len() <= 253 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let address = text.starts_with('[') && text.ends_with(']');
    if plain || address {
        Ok(text.trim_end_matches('.').to_ascii_lowercase())
    } else {
        Err(format!("{text:?} is no host name (no scheme, no port, no `*`)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_colon_is_a_uri_and_keeps_its_case() {
        let uri = |text: &str| Ok(AlternativeName::Uri(text.to_owned()));
        for text in ["spiffe://Example/Sender", "urn:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6", "mailto:A@b.example"] {
            assert_eq!(alternative_name(text), uri(text));
        }
        assert_eq!(alternative_name("Hooks.Example.com"), Ok(AlternativeName::Dns("hooks.example.com".to_owned())));
        for wrong in ["", "*.example.com", "spiffe://example/*", "192.0.2.1", "2001:db8::1"] {
            assert!(alternative_name(wrong).is_err(), "{wrong}");
        }
    }
}
