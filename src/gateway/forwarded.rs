//! Whose request is it, when a proxy of ours brings it? And what do we tell the upstream of that?
//!
//! Invariant: only listed proxies are believed, hop by hop from the right: the first address that is not one of ours is
//! the client. What stands left of it was written by a stranger. Nothing here affects routing or verification.

use crate::fields::Fields;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{self, HeaderName};
use ipnet::IpNet;
use std::cell::RefCell;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Hops that are read; a chain of more proxies of one's own is not a chain, it is an attack.
const MOST_HOPS: usize = 32;

/// Whose request it is, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    /// False: a proxy of ours brought it, and what it says of the client cannot be read or contradicts itself. The
    /// address is then the proxy's own, and passes no list of addresses.
    pub(crate) is_certain: bool,
}

/// The client's address, given who the connection is from and what that peer says.
pub(crate) fn client(peer: IpAddr, headers: &Fields, trusted: &[IpNet]) -> Client {
    let peer = peer.to_canonical();
    let certain = |address| Client { address, is_certain: true };
    if !is_trusted(peer, trusted) {
        return certain(peer);
    }
    let by_list = headers.contains_key("x-forwarded-for").then(|| walk(peer, list(headers), trusted));
    let by_rfc7239 = headers.contains_key("forwarded").then(|| walk(peer, elements(headers), trusted));
    match (by_list, by_rfc7239) {
        (Some(client), None) | (None, Some(client)) => client,
        (Some(one), Some(other)) if one == other => one,
        (None, None) => certain(peer),
        // A proxy writes one of the two and may pass the other on as the sender wrote it. We cannot know which, so
        // neither is believed, and the request counts as the proxy's own.
        (Some(_), Some(_)) => Client { address: peer, is_certain: false },
    }
}

pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// From right to left: the first that is not ours. A hop that cannot be read ends the walk in uncertainty.
fn walk(peer: IpAddr, hops: Vec<Option<IpAddr>>, trusted: &[IpNet]) -> Client {
    let mut client = Client { address: peer, is_certain: true };
    for hop in hops.into_iter().rev().take(MOST_HOPS) {
        match hop {
            None => return Client { is_certain: false, ..client },
            Some(address) => client.address = address,
        }
        if !is_trusted(client.address, trusted) {
            break;
        }
    }
    client
}

/// The hops of all lines, in order. Each is read by itself, so that what a stranger wrote to the left cannot make what
/// our proxy wrote to the right unreadable.
fn hops<'h>(headers: &'h Fields, name: &str) -> impl Iterator<Item = Option<&'h str>> {
    let values = headers.get_all(name);
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(|hop| std::str::from_utf8(hop).ok())
}

fn list(headers: &Fields) -> Vec<Option<IpAddr>> {
    hops(headers, "x-forwarded-for").map(|hop| node(hop?.trim())).collect()
}

/// RFC 7239 §4: elements parted by commas, each a list of pairs parted by semicolons. Quoted commas and semicolons do
/// not occur in the `for` of an honest proxy; an element that cannot be read ends the walk.
fn elements(headers: &Fields) -> Vec<Option<IpAddr>> {
    let element = |element: &str| {
        element.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            if !name.trim().eq_ignore_ascii_case("for") {
                return None;
            }
            node(value.trim().trim_matches('"'))
        })
    };
    hops(headers, "forwarded").map(|hop| element(hop?)).collect()
}

/// `192.0.2.1`, `192.0.2.1:8080`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:8080`.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.parse().ok();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.or_else(bracketed).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

/// How a request reached us.
pub(crate) struct Arrival<'a> {
    /// Of the connection (behind PROXY protocol).
    pub(crate) peer: IpAddr,
    pub(crate) scheme: &'static str,
    pub(crate) authority: &'a str,
    pub(crate) port: u16,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// The forwarding headers for the upstream: a trusted proxy's are extended, anybody else's begin anew.
pub(crate) fn headers(arrival: &Arrival<'_>, sent: &Fields, trusted: &[IpNet]) -> Vec<(HeaderName, HeaderValue)> {
    let peer = arrival.peer.to_canonical();
    let own = own(arrival, peer);
    let all = if is_trusted(peer, trusted) { behind(own, sent) } else { own };
    let [by, proto, host, port, element] = all;
    let mut headers = Vec::with_capacity(5);
    let mut say = |name: HeaderName, value: Option<HeaderValue>| headers.extend(value.map(|value| (name, value)));
    say(X_FORWARDED_FOR, by);
    say(X_FORWARDED_PROTO, proto);
    say(X_FORWARDED_HOST, host);
    say(X_FORWARDED_PORT, port);
    say(header::FORWARDED, element);
    headers
}

type Values = [Option<HeaderValue>; 5];

/// A longer name of a host is not kept.
const LONGEST_KEPT: usize = 256;

/// What `Own` makes of an arrival, kept for the next request of the same peer: most come on one connection, or through one
/// proxy.
struct Made {
    peer: IpAddr,
    port: u16,
    scheme: &'static str,
    authority: Box<str>,
    values: Values,
}

fn own(arrival: &Arrival<'_>, peer: IpAddr) -> Values {
    thread_local! {
        static LAST: RefCell<Option<Made>> = const { RefCell::new(None) };
    }
    let Arrival { peer: _, scheme, authority, port } = *arrival;
    let is_same =
        |made: &&Made| made.peer == peer && made.port == port && made.scheme == scheme && *made.authority == *authority;
    let kept = LAST.with_borrow(|last| last.as_ref().filter(is_same).map(|made| made.values.clone()));
    kept.unwrap_or_else(|| {
        let values = Own::of(arrival, peer).alone();
        if authority.len() <= LONGEST_KEPT {
            let made = Made { peer, port, scheme, authority: authority.into(), values: values.clone() };
            LAST.set(Some(made));
        }
        values
    })
}

/// What we say ourselves of how a request reached us: one text, of which every header is a part.
struct Own {
    /// An element of `Forwarded`, and behind it the port.
    text: Bytes,
    element: usize,
    address: Range<usize>,
    host: Range<usize>,
    scheme: &'static str,
}

impl Own {
    fn of(arrival: &Arrival<'_>, peer: IpAddr) -> Self {
        // Longer than an IPv6 address and all that stands around it.
        let mut text = Vec::with_capacity(arrival.authority.len() + 96);
        let (before, behind) = if peer.is_ipv4() { ("for=", "") } else { ("for=\"[", "]\"") };
        text.extend_from_slice(before.as_bytes());
        let address = text.len();
        // Writing to a list of bytes cannot fail.
        let _ = match peer {
            IpAddr::V4(v4) => {
                for (position, octet) in v4.octets().into_iter().enumerate() {
                    if position > 0 {
                        text.push(b'.');
                    }
                    put_number(&mut text, octet.into());
                }
                Ok(())
            }
            IpAddr::V6(v6) => write!(text, "{v6}"),
        };
        let address = address..text.len();
        text.extend_from_slice(behind.as_bytes());
        text.extend_from_slice(b";host=\"");
        let host = text.len()..text.len() + arrival.authority.len();
        // It was checked to be one, so it holds no quote.
        text.extend_from_slice(arrival.authority.as_bytes());
        text.extend_from_slice(b"\";proto=");
        text.extend_from_slice(arrival.scheme.as_bytes());
        let element = text.len();
        put_number(&mut text, arrival.port);
        Self { text: Bytes::from(text), element, address, host, scheme: arrival.scheme }
    }

    fn part(&self, of: Range<usize>) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(self.text.slice(of)).ok()
    }

    fn alone(&self) -> Values {
        [
            self.part(self.address.clone()),
            Some(HeaderValue::from_static(self.scheme)),
            self.part(self.host.clone()),
            self.part(self.element..self.text.len()),
            self.part(0..self.element),
        ]
    }
}

/// A proxy of ours was reached first: its address and its element come behind what it says, and what it says of how
/// it was reached stands.
fn behind([own_for, own_proto, own_host, own_port, own_element]: Values, sent: &Fields) -> Values {
    let or = |name: HeaderName, own: Option<HeaderValue>| {
        let kept = said(sent, &name);
        if kept.is_empty() { own } else { HeaderValue::try_from(kept).ok() }
    };
    let appended = |name: HeaderName, own: Option<HeaderValue>| {
        let mut chain = said(sent, &name);
        if chain.is_empty() {
            return own;
        }
        chain.push_str(", ");
        chain.push_str(own.as_ref()?.to_str().ok()?);
        HeaderValue::try_from(chain).ok()
    };
    [
        appended(X_FORWARDED_FOR, own_for),
        or(X_FORWARDED_PROTO, own_proto),
        or(X_FORWARDED_HOST, own_host),
        or(X_FORWARDED_PORT, own_port),
        appended(header::FORWARDED, own_element),
    ]
}

/// In decimal; for this the machinery of `fmt` would cost more than all the rest.
fn put_number(text: &mut Vec<u8>, number: u16) {
    for power in [10_000, 1000, 100, 10] {
        if number >= power {
            text.push(b'0' + (number / power % 10) as u8);
        }
    }
    text.push(b'0' + (number % 10) as u8);
}

/// All that a header says, in one line.
fn said(sent: &Fields, name: &HeaderName) -> String {
    let values = sent.get_all(name).filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().expect("a network"), "fd00::/8".parse().expect("a network")]
    }

    fn client_of(peer: &str, sent: &[(&'static str, &'static str)]) -> String {
        let mut headers = Fields::new();
        for (name, value) in sent {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let found = client(peer.parse().expect("an address"), &headers, &trusted());
        format!("{}{}", found.address, if found.is_certain { "" } else { "?" })
    }

    #[test]
    fn what_was_said_of_one_request_is_not_said_of_another() {
        let text = |peer: &str, scheme, authority: &str, port| {
            let arrival = Arrival { peer: peer.parse().expect("an address"), scheme, authority, port };
            let all = headers(&arrival, &Fields::new(), &[]);
            all.iter().map(|(_, value)| value.to_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        let long = "a".repeat(LONGEST_KEPT + 1);
        for _ in 0..2 {
            for (peer, said) in
                [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("192.0.2.11", "192.0.2.11")]
            {
                for (scheme, authority, port) in [
                    ("https", "a.test", 443),
                    ("https", "a.test", 8443),
                    ("http", "a.test", 443),
                    ("https", "A.test", 443),
                    ("https", &*long, 443),
                ] {
                    let element = format!("for={said};host=\"{authority}\";proto={scheme}");
                    let wanted = [said, scheme, authority, &port.to_string(), &element].map(str::to_owned);
                    assert_eq!(text(peer, scheme, authority, port), wanted);
                    assert_eq!(text(peer, scheme, authority, port), wanted);
                }
            }
        }
    }

    #[test]
    fn a_stranger_is_who_the_connection_is_from() {
        assert_eq!(client_of("192.0.2.1", &[("x-forwarded-for", "10.0.0.1")]), "192.0.2.1");
    }

    #[test]
    fn a_listed_proxy_is_believed_from_the_right() {
        assert_eq!(client_of("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, 192.0.2.7")]), "192.0.2.7");
        assert_eq!(client_of("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, 192.0.2.7, 10.0.0.2")]), "192.0.2.7");
        assert_eq!(
            client_of("10.0.0.1", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "192.0.2.7")]),
            "192.0.2.7"
        );
        assert_eq!(client_of("::ffff:10.0.0.1", &[("x-forwarded-for", "192.0.2.7:4711")]), "192.0.2.7");
        assert_eq!(
            client_of("fd00::1", &[("forwarded", "for=1.1.1.1, for=\"[2001:db8::7]:1\";proto=https")]),
            "2001:db8::7"
        );
    }

    #[test]
    fn what_cannot_be_read_ends_the_walk() {
        assert_eq!(client_of("10.0.0.1", &[("x-forwarded-for", "192.0.2.7, unknown")]), "10.0.0.1?");
        assert_eq!(client_of("10.0.0.1", &[("x-forwarded-for", "192.0.2.7, junk, 10.0.0.2")]), "10.0.0.2?");
        assert_eq!(client_of("10.0.0.1", &[("x-forwarded-for", "")]), "10.0.0.1?");
    }

    #[test]
    fn a_header_that_the_proxy_did_not_write_is_not_believed() {
        let sent = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=10.9.9.9")];
        assert_eq!(client_of("10.0.0.1", &sent), "10.0.0.1?");
        let agreeing = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.7")];
        assert_eq!(client_of("10.0.0.1", &agreeing), "192.0.2.7");
    }

    #[test]
    fn the_upstream_hears_a_trusted_proxys_chain_and_nobody_elses() {
        let mut sent = Fields::new();
        sent.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.7"));
        sent.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let told = |peer: &str| {
            let arrival =
                Arrival { peer: peer.parse().expect("an address"), scheme: "http", authority: "hooks.test", port: 80 };
            let all = headers(&arrival, &sent, &trusted());
            all.into_iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect::<Vec<_>>()
        };
        assert_eq!(
            told("10.0.0.1"),
            [
                "x-forwarded-for: 192.0.2.7, 10.0.0.1",
                "x-forwarded-proto: https",
                "x-forwarded-host: hooks.test",
                "x-forwarded-port: 80",
                "forwarded: for=10.0.0.1;host=\"hooks.test\";proto=http",
            ]
        );
        assert_eq!(
            told("198.51.100.9"),
            [
                "x-forwarded-for: 198.51.100.9",
                "x-forwarded-proto: http",
                "x-forwarded-host: hooks.test",
                "x-forwarded-port: 80",
                "forwarded: for=198.51.100.9;host=\"hooks.test\";proto=http",
            ]
        );
    }

    /// What can stand in a header value.
    fn value_bytes() -> impl Strategy<Value = Vec<u8>> {
        let plausible = r#"([a-z0-9.:,;="\[\]_ ]|for=|10\.0\.0\.|fd00::|192\.0\.2\.){0,24}"#;
        let byte = prop_oneof![0x20..=0x7e_u8, 0x80..=0xff_u8, Just(b'\t'), Just(b',')];
        prop_oneof![proptest::collection::vec(byte, 0..24), plausible.prop_map(String::into_bytes)]
    }

    fn sent(values: &[(&'static str, Vec<u8>)]) -> Fields {
        let pair = |(name, bytes): &(&'static str, Vec<u8>)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(bytes).expect("visible bytes"))
        };
        let mut headers = Fields::new();
        for (name, value) in values.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_is_no_text_does_not_hide_what_the_proxy_wrote_behind_it() {
        let sent = sent(&[("x-forwarded-for", b"\xff, 192.0.2.7".to_vec())]);
        let proxy: IpAddr = "10.0.0.1".parse().expect("an address");
        assert_eq!(client(proxy, &sent, &trusted()).address.to_string(), "192.0.2.7");
    }

    proptest! {
        #[test]
        fn whoever_comes_from_wherever_is_told_as_he_is(address in any::<IpAddr>(), port in any::<u16>()) {
            let arrival = Arrival { peer: address, scheme: "https", authority: "hooks.test:1", port };
            let all = headers(&arrival, &Fields::new(), &[]);
            let said: Vec<_> = all.iter().map(|(_, value)| value.to_str().expect("text")).collect();
            let address = address.to_canonical();
            let node = if address.is_ipv4() { address.to_string() } else { format!("\"[{address}]\"") };
            let element = format!("for={node};host=\"hooks.test:1\";proto=https");
            prop_assert_eq!(said, [&*address.to_string(), "https", "hooks.test:1", &*port.to_string(), &*element]);
        }

        #[test]
        fn nothing_that_a_stranger_sends_makes_him_somebody_else(list in value_bytes(), elements in value_bytes()) {
            let sent = sent(&[("x-forwarded-for", list), ("forwarded", elements)]);
            let stranger: IpAddr = "192.0.2.1".parse().expect("an address");
            prop_assert_eq!(client(stranger, &sent, &trusted()).address, stranger);
        }

        #[test]
        fn nothing_that_a_stranger_writes_before_what_a_listed_proxy_adds_is_believed(written in value_bytes()) {
            let proxy: IpAddr = "10.0.0.1".parse().expect("an address");
            let stranger: IpAddr = "192.0.2.1".parse().expect("an address");
            for (name, added) in [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1;proto=https")] {
                let in_one_line = [&written[..], b", ", added.as_bytes()].concat();
                prop_assert_eq!(client(proxy, &sent(&[(name, in_one_line)]), &trusted()).address, stranger);
                let in_two = sent(&[(name, written.clone()), (name, added.into())]);
                prop_assert_eq!(client(proxy, &in_two, &trusted()).address, stranger);
            }
        }

        #[test]
        fn whatever_was_sent_the_upstream_hears_five_headers(list in value_bytes(), elements in value_bytes()) {
            let sent = sent(&[("x-forwarded-for", list), ("forwarded", elements)]);
            for peer in ["10.0.0.1", "192.0.2.1", "fd00::1"] {
                let peer = peer.parse().expect("an address");
                let arrival = Arrival { peer, scheme: "http", authority: "hooks.test", port: 80 };
                prop_assert_eq!(headers(&arrival, &sent, &trusted()).len(), 5);
            }
        }

        #[test]
        fn any_text_is_an_address_or_is_not(text in r"\PC{0,24}|[0-9a-f:.\[\]]{0,40}") {
            if let Some(address) = node(&text) {
                prop_assert_eq!(node(&address.to_string()), Some(address));
            }
        }
    }
}
