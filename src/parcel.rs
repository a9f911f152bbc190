//! What leaves: the body byte for byte, and the headers that go with it.
//!
//! Invariant: a parcel is packed from a `Verified`, or (in observe mode only, and marked) from a delivery that was not
//! proven. What the sender wrote into the gateway's own header names never gets through.

use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fields::Fields;
use crate::verify::Verified;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, Method};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parcel {
    pub(crate) method: Method,
    /// Begins with `/`; the query included.
    pub(crate) path_and_query: String,
    /// Complete but for `Host` and `Content-Length`, which the sender of the parcel writes; no hop-by-hop headers.
    pub(crate) headers: Fields,
    pub(crate) body: Bytes,
    /// Names of those headers with which the sender proved itself and whoever reads them could prove the same: services
    /// may check them again, onto a broker they never go.
    pub(crate) credentials: Vec<HeaderName>,
}

/// What a delivery is called where it goes: the same at every attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) source: Arc<str>,
    /// The source's own name for it, the same for every retry of its sender. Empty where nobody hears it.
    pub(crate) delivery_id: String,
    /// Above zero: sent again because an operator wanted it.
    pub(crate) generation: u32,
    pub(crate) received: UnixMillis,
}

impl Tag {
    /// By which receivers and brokers tell a repetition: `{source}:{delivery id}`, and `:{n}` for an operator's nth
    /// redelivery.
    pub(crate) fn publish_key(&self) -> String {
        let Self { source, delivery_id, generation, .. } = self;
        match generation {
            0 => format!("{source}:{delivery_id}"),
            n => format!("{source}:{delivery_id}:{n}"),
        }
    }
}

/// What the gateway says of a delivery, in headers.
#[derive(Debug)]
pub(crate) struct Statement<'a> {
    pub(crate) source: HeaderValue,
    pub(crate) request_id: &'a str,
    /// The subject of the client's certificate, where it presented one.
    pub(crate) client_certificate: Option<&'a str>,
    /// `X-Forwarded-*` and `Forwarded`, extended or made anew.
    pub(crate) forwarding: &'a [(HeaderName, HeaderValue)],
    pub(crate) traceparent: HeaderValue,
    /// Further headers (a signature of our own) that replace what the sender wrote there.
    pub(crate) added: Vec<(HeaderName, HeaderValue)>,
    /// The headers in which this source's senders present a password or token.
    pub(crate) credentials: Vec<HeaderName>,
}

impl Parcel {
    pub(crate) fn pack(verified: Verified, path_and_query: String, checks: &str, statement: Statement<'_>) -> Self {
        let (id, kind) = (verified.event_id().unwrap_or_default(), verified.event_type().unwrap_or_default());
        let said = Said::of(&statement, [checks, id, kind, ""]);
        Self::wrap(verified.into_delivery(), path_and_query, statement, said)
    }

    /// Observe mode: not proven, or one that would have been refused. Says so, and claims nothing else of it.
    pub(crate) fn pack_unproven(
        delivery: Delivery,
        path_and_query: String,
        would_refuse: &str,
        statement: Statement<'_>,
    ) -> Self {
        let said = Said::of(&statement, ["", "", "", would_refuse]);
        Self::wrap(delivery, path_and_query, statement, said)
    }

    fn wrap(delivery: Delivery, path_and_query: String, statement: Statement<'_>, said: Said) -> Self {
        let mut headers = delivery.headers;
        strip(&mut headers);
        // Once, and not each time that it is full.
        let said_count = said.lengths.iter().filter(|length| **length > 0).count();
        headers.reserve(statement.forwarding.len() + statement.added.len() + said_count + 2);
        // None of these names is left: they are ours.
        for (name, value) in statement.forwarding {
            headers.append(name, value.clone());
        }
        headers.append(TRACEPARENT, statement.traceparent);
        let credentials = statement.credentials;
        let mut parcel = Self { method: delivery.method, path_and_query, headers, body: delivery.body, credentials };
        let is_alone = statement.added.is_empty();
        for (name, value) in statement.added {
            parcel.replace(name, value);
        }
        let mut say = |name: &HeaderName, value: HeaderValue| match is_alone {
            true => parcel.headers.append(name, value),
            // Over whatever was to be added under the same name.
            false => parcel.headers.insert(name, value),
        };
        say(&SOURCE, statement.source);
        let mut begins = 0;
        for (name, length) in SAID.iter().zip(said.lengths) {
            let part = begins..begins + length;
            begins = part.end;
            // Left out is what would be empty or what no header can hold.
            if length > 0
                && let Ok(value) = HeaderValue::from_maybe_shared(said.text.slice(part))
            {
                say(name, value);
            }
        }
        parcel
    }

    /// Under another path, with the query that it has.
    pub(crate) fn go_to(&mut self, path: &str) {
        self.path_and_query = match self.path_and_query.split_once('?') {
            Some((_, query)) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
    }

    /// A header of the gateway's own, in place of the sender's in whatever spelling.
    pub(crate) fn replace(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.retain(|other| *other == name || !is_folded_into(other.as_str(), name.as_str()));
        self.headers.insert(name, value);
    }

    /// The first byte of an encoding.
    const ENCODING: u8 = 2;

    /// What was written before there were names of credentials.
    const ENCODING_WITHOUT_CREDENTIALS: u8 = 1;

    /// For the store: the encoding's version, then method, path and query, the number of headers, each one's name and
    /// value, the number of headers that hold credentials, each one's name, and the body to the end. Every part but the last begins with its length in four bytes, the least first.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 8).sum();
        let mut text = Vec::with_capacity(64 + self.path_and_query.len() + headers + self.body.len());
        text.push(Self::ENCODING);
        put(&mut text, self.method.as_str().as_bytes());
        put(&mut text, self.path_and_query.as_bytes());
        text.extend(length(self.headers.len()));
        for (name, value) in self.headers.iter() {
            put(&mut text, name.as_str().as_bytes());
            put(&mut text, value.as_bytes());
        }
        text.extend(length(self.credentials.len()));
        for name in &self.credentials {
            put(&mut text, name.as_str().as_bytes());
        }
        text.extend_from_slice(&self.body);
        text
    }

    pub(crate) fn decode(mut text: &[u8]) -> Result<Self, Undecodable> {
        let text = &mut text;
        let names_credentials = match text.split_off_first() {
            Some(&Self::ENCODING) => true,
            Some(&Self::ENCODING_WITHOUT_CREDENTIALS) => false,
            Some(other) => return Err(Undecodable::Version(*other)),
            None => return Err(Undecodable::Cut),
        };
        let method = Method::from_bytes(take(text)?).map_err(|_| Undecodable::Part("method"))?;
        let path_and_query = String::from_utf8(take(text)?.to_vec()).map_err(|_| Undecodable::Part("path"))?;
        let mut headers = Fields::new();
        for _ in 0..number(text)? {
            let name = HeaderName::from_bytes(take(text)?).map_err(|_| Undecodable::Part("header name"))?;
            let value = HeaderValue::from_bytes(take(text)?).map_err(|_| Undecodable::Part("header value"))?;
            headers.append(name, value);
        }
        let mut credentials = Vec::new();
        for _ in 0..if names_credentials { number(text)? } else { 0 } {
            credentials.push(HeaderName::from_bytes(take(text)?).map_err(|_| Undecodable::Part("header name"))?);
        }
        Ok(Self { method, path_and_query, headers, body: Bytes::copy_from_slice(text), credentials })
    }
}

/// What the gateway says in headers of its own: one text, of which every value is a part.
struct Said {
    text: Bytes,
    /// Of the parts, in the order of `SAID`; none: it is not said.
    lengths: [usize; SAID.len()],
}

impl Said {
    fn of(statement: &Statement<'_>, [checks, id, kind, would_refuse]: [&str; 4]) -> Self {
        let certificate = statement.client_certificate.unwrap_or_default();
        let all = [statement.request_id, certificate, checks, id, kind, would_refuse];
        let lengths = all.map(str::len);
        let mut text = Vec::with_capacity(lengths.iter().sum());
        all.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
        Self { text: text.into(), lengths }
    }
}

static SAID: [HeaderName; 6] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-hookward-client-cert"),
    HeaderName::from_static("x-hookward-verified"),
    HeaderName::from_static("x-hookward-event-id"),
    HeaderName::from_static("x-hookward-event-type"),
    HeaderName::from_static("x-hookward-would-refuse"),
];
static SOURCE: HeaderName = HeaderName::from_static("x-hookward-source");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Why stored bytes are no parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Undecodable {
    #[error("its encoding has version {0}, which this hookward does not know")]
    Version(u8),
    #[error("its encoding ends too early")]
    Cut,
    #[error("its {0} is none")]
    Part(&'static str),
}

/// What is longer than four bytes can say is never held in memory: bodies are at most 1 GiB.
fn length(of: usize) -> [u8; 4] {
    u32::try_from(of).unwrap_or(u32::MAX).to_le_bytes()
}

fn put(text: &mut Vec<u8>, part: &[u8]) {
    text.extend(length(part.len()));
    text.extend_from_slice(part);
}

fn number(text: &mut &[u8]) -> Result<usize, Undecodable> {
    let (length, rest) = text.split_first_chunk::<4>().ok_or(Undecodable::Cut)?;
    *text = rest;
    usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Undecodable::Cut)
}

fn take<'a>(text: &mut &'a [u8]) -> Result<&'a [u8], Undecodable> {
    let length = number(text)?;
    let (part, rest) = text.split_at_checked(length).ok_or(Undecodable::Cut)?;
    *text = rest;
    Ok(part)
}

/// Hop-by-hop fields (RFC 9110 §7.6.1), framing and what names the host we were reached by.
fn is_forwarded(name: &str) -> bool {
    // The first letter tells it of nearly all.
    let may_end_here = matches!(name.as_bytes().first(), Some(b'c' | b'e' | b'h' | b'k' | b'p' | b't' | b'u'));
    !may_end_here
        || !matches!(
            name,
            "connection"
                | "content-length"
                | "expect"
                | "host"
                | "http2-settings"
                | "keep-alive"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        )
}

fn strip(headers: &mut Fields) {
    // What `Connection` names goes with the rest; what we add ourselves comes after all of this, so that
    // `Connection: X-Hookward-Verified` can take nothing of ours away.
    if headers.contains_key(header::CONNECTION) {
        let connection = headers.get_all(header::CONNECTION).filter_map(|value| value.to_str().ok());
        let named = connection.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
        headers.remove_every(named.collect());
    }
    headers.retain(|name| is_forwarded(name.as_str()) && !is_ours(name.as_str()));
}

/// As a CGI-like receiver tells names apart: `_`, `-` and, by PHP and others, `.` are one to it.
const fn folded(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

fn is_folded_into(name: &str, other: &str) -> bool {
    name.len() == other.len() && name.bytes().map(folded).eq(other.bytes().map(folded))
}

/// Names that only the gateway may write, in any spelling that a CGI-like receiver would fold into ours.
fn is_ours(name: &str) -> bool {
    let begins = |with: &str| name.get(..with.len()).is_some_and(|start| is_folded_into(start, with));
    match name.as_bytes() {
        [b'x', _, b'h', ..] => begins("x-hookward-"),
        [b'x', _, b'f', ..] => begins("x-forwarded-"),
        [b'x', _, b'r', ..] => is_folded_into(name, "x-request-id") || is_folded_into(name, "x-real-ip"),
        [b'x', ..] => false,
        _ => matches!(name, "forwarded" | "traceparent" | "tracestate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    static FORWARDING: LazyLock<[(HeaderName, HeaderValue); 1]> =
        LazyLock::new(|| [(HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static("192.0.2.1"))]);

    fn statement() -> Statement<'static> {
        Statement {
            source: HeaderValue::from_static("github"),
            request_id: "r1",
            client_certificate: None,
            forwarding: &*FORWARDING,
            traceparent: HeaderValue::from_static("00-1-1-00"),
            added: Vec::new(),
            credentials: vec![HeaderName::from_static("x-token")],
        }
    }

    fn delivery(headers: &[(&'static str, &'static str)]) -> Delivery {
        let mut map = Fields::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "a".to_owned(),
            path: "/x".to_owned(),
            query: None,
            headers: map,
            body: Bytes::from_static(b"body"),
        }
    }

    #[test]
    fn what_was_encoded_is_decoded_to_the_same() {
        let sent = delivery(&[("x-a", "1"), ("x-a", "2"), ("content-type", "application/json")]);
        let parcel = Parcel::pack_unproven(sent, "/x?y=z".to_owned(), "stale", statement());
        let text = parcel.encode();
        assert_eq!(Parcel::decode(&text), Ok(parcel.clone()));
        let head = text.len() - parcel.body.len();
        for cut in 0..head {
            assert!(Parcel::decode(&text[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(Parcel::decode(&[9]), Err(Undecodable::Version(9)));
    }

    #[test]
    fn what_was_stored_before_parcels_knew_of_credentials_is_read_as_before() {
        let mut parcel = Parcel::pack_unproven(delivery(&[("x-a", "1")]), "/x".to_owned(), "stale", statement());
        let mut text = parcel.encode();
        let names = 4 + 4 + "x-token".len();
        let behind = text.len() - parcel.body.len();
        text.drain(behind - names..behind);
        text[0] = Parcel::ENCODING_WITHOUT_CREDENTIALS;
        parcel.credentials.clear();
        assert_eq!(Parcel::decode(&text), Ok(parcel));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_parcel_or_are_not(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let mut bytes = bytes;
            bytes.insert(0, 1 + bytes.len() as u8 % 2);
            if let Ok(parcel) = Parcel::decode(&bytes) {
                proptest::prop_assert_eq!(Parcel::decode(&parcel.encode()), Ok(parcel));
            }
        }
    }

    /// As many fields as a server lets in, and a `Connection` that names thousands.
    #[test]
    fn a_hostile_head_is_packed_as_soon_as_it_is_read() {
        let mut sent = delivery(&[("x-kept", "1")]);
        for number in 0..99 {
            let name = HeaderName::from_bytes(format!("x_forwarded_{}", number % 50).as_bytes()).expect("a name");
            sent.headers.append(name, HeaderValue::from_static("evil"));
        }
        let named: Vec<String> = (0..8000).map(|number| format!("x{number}")).collect();
        sent.headers.append(header::CONNECTION, HeaderValue::try_from(named.join(",")).expect("a value"));
        sent.headers.append(HeaderName::from_static("x7999"), HeaderValue::from_static("named"));
        let signed =
            (0..50).map(|number| HeaderName::from_bytes(format!("x-signed-{number}").as_bytes()).expect("a name"));
        let added: Vec<_> = signed.map(|name| (name, HeaderValue::from_static("1"))).collect();
        let begun = std::time::Instant::now();
        for _ in 0..10 {
            let statement = Statement { added: added.clone(), ..statement() };
            let parcel = Parcel::pack_unproven(sent.clone(), "/x".to_owned(), "stale", statement);
            assert_eq!(parcel.headers.len(), 1 + added.len() + 5);
            assert_eq!(parcel.headers["x-kept"], "1");
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_sender_cannot_speak_in_the_gateways_name() {
        let sent = delivery(&[
            ("x-hookward-verified", "github"),
            ("x_hookward_source", "stripe"),
            ("x.hookward.verified", "stripe"),
            ("x-hookward-attempt", "1"),
            ("x_hookward.attempt", "1"),
            ("x-request-id", "mine"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x_forwarded_host", "evil"),
            ("forwarded", "for=10.0.0.1"),
            ("traceparent", "00-2-2-01"),
            ("x-github-event", "push"),
        ]);
        let parcel = Parcel::pack_unproven(sent, "/x".to_owned(), "bad_signature", statement());
        let mut names: Vec<_> =
            parcel.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "traceparent: 00-1-1-00",
                "x-forwarded-for: 192.0.2.1",
                "x-github-event: push",
                "x-hookward-source: github",
                "x-hookward-would-refuse: bad_signature",
                "x-request-id: r1",
            ]
        );
    }

    proptest::proptest! {
        /// The definition, word for word.
        #[test]
        fn a_name_is_the_gateways_own_in_every_spelling(
            name in "(x|f|t)[-_.](hookward|forwarded|request|real)[-_.+](id|ip|x)?|forwarded|[-_.a-z!#$%&'*+^`|~0-9]{1,24}",
        ) {
            let folded: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            let own = ["x-request-id", "forwarded", "traceparent", "tracestate", "x-real-ip"];
            let begins = folded.starts_with("x-hookward-") || folded.starts_with("x-forwarded-");
            proptest::prop_assert_eq!(is_ours(&name), begins || own.contains(&&*folded));
        }
    }

    #[test]
    fn what_the_gateway_adds_stands_there_once_whatever_the_sender_spells_it() {
        let mut statement = statement();
        statement.added.push((HeaderName::from_static("webhook-id"), HeaderValue::from_static("ours")));
        let sent = delivery(&[
            ("webhook-id", "a"),
            ("webhook_id", "b"),
            ("webhook.id", "c"),
            ("idempotency_key", "d"),
            ("idempotency-key", "e"),
            ("webhook-idea", "kept"),
        ]);
        let mut parcel = Parcel::pack_unproven(sent, "/x".to_owned(), "stale", statement);
        parcel.replace(HeaderName::from_static("idempotency-key"), HeaderValue::from_static("ours"));
        let mut ids: Vec<_> = parcel
            .headers
            .iter()
            .filter(|(name, _)| ["ide", "webhook"].iter().any(|part| name.as_str().contains(part)))
            .collect();
        ids.sort_by_key(|(name, _)| name.as_str());
        let ids: Vec<_> = ids.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(ids, [("idempotency-key", &b"ours"[..]), ("webhook-id", b"ours"), ("webhook-idea", b"kept")]);
    }

    #[test]
    fn connection_takes_away_what_it_names_and_nothing_of_ours() {
        let sent = delivery(&[
            ("connection", "X-Hookward-Source, x-secret-hop, close"),
            ("x-secret-hop", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
            ("accept", "text/html"),
        ]);
        let parcel = Parcel::pack_unproven(sent, "/x".to_owned(), "stale", statement());
        assert!(!parcel.headers.contains_key("x-secret-hop") && !parcel.headers.contains_key("upgrade"));
        assert!(!parcel.headers.contains_key("te") && !parcel.headers.contains_key("connection"));
        assert_eq!(parcel.headers.get("x-hookward-source").map(HeaderValue::as_bytes), Some(&b"github"[..]));
        assert_eq!(parcel.headers.get_all("accept").count(), 2);
    }
}
