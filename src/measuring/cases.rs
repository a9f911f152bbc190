//! One piece of work a case, the same in every run: keys, bodies and times are fixed, and what is looked up goes round
//! a table, so that no single hash decides.
//!
//! Invariant: a case says of every call whether it ended as it should, and what is made before the first call is no part
//! of it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::fields::Fields;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, Version, header};

use super::sources::{loaded, verifier, without_sources};
use super::{NOW, TIME, body, delivery, signed};
use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::NoLibrary;
use crate::gateway::measured::{Arrival, Heads, client, headers};
use crate::inbox::{Packing, SealingKey};
use crate::parcel::{Parcel, Statement};
use crate::secret::Secret;
use crate::server::Head;
use crate::state::{Ask, Claimed, KeyedRate, Ledger, Ledgers, Limits, Per, Quota, Rate, RateLimit, State};
use crate::telemetry::{Format, Metrics, Outcome, Record};
use crate::verify::{
    Encoding, Facts, Json, Layout, Place, Pointers, SignatureAt, Template, UrlForm, Verified, Verifier,
};

pub type Run = Box<dyn FnMut() -> bool>;

pub struct Case {
    pub name: &'static str,
    /// How often it runs to be counted: whole rounds of what it goes round.
    pub times: u32,
    pub make: fn() -> Run,
}

/// Cheap ones are counted over more calls.
const CHEAP: u32 = 4_000;
const DEAR: u32 = 200;

/// Of bodies whose hashing is not to hide the rest: where valgrind runs, SHA-256 takes 58 instructions a byte.
const SHORT: usize = 128;

pub fn cases() -> Vec<Case> {
    let case = |times, name, make: fn() -> Run| Case { name, times, make };
    vec![
        case(CHEAP, "parse: signature, plain hex", || presented("v1=", plain("v1="))),
        case(CHEAP, "parse: signature, pairs", || presented("t=1760000000,v1=", pairs())),
        case(CHEAP, "parse: signature, list of two", list),
        case(CHEAP, "parse: JSON, 3 pointers, 1 KiB", || json(1024)),
        case(CHEAP, "parse: JSON, 3 pointers, 16 KiB", || json(16 * 1024)),
        case(CHEAP, "template: {timestamp}.{body}", || template("{timestamp}.{body}")),
        case(CHEAP, "template: of everything", || {
            template("{method}\n{url}\n{query:a}\n{header:content-type}\n{json:/id}\n{timestamp}\n{body|sha256|hex}")
        }),
        case(CHEAP, "scheme: HMAC-SHA256, 1 KiB", || judged("hmac", 1024, &[], None)),
        case(DEAR, "scheme: HMAC-SHA256, 16 KiB", || judged("hmac", 16 * 1024, &[], None)),
        case(CHEAP, "scheme: HMAC-SHA256, forged", forged),
        case(CHEAP, "scheme: GitHub", || judged("github", SHORT, &[("x-github-event", "push")], None)),
        case(CHEAP, "scheme: Stripe", || judged("stripe", SHORT, &[], None)),
        case(CHEAP, "scheme: Slack", || judged("slack", SHORT, &[], None)),
        case(CHEAP, "scheme: Standard Webhooks", || judged("standard", SHORT, &[], None)),
        case(DEAR, "scheme: Ed25519", || judged("ed25519", 1024, &[], Some(hex::encode([7; 32])))),
        case(DEAR, "scheme: ECDSA P-256", || {
            presenting(
                "p256",
                &[
                    ("x-twilio-email-event-webhook-signature", signed::BY_P256),
                    ("x-twilio-email-event-webhook-timestamp", TIME),
                ],
            )
        }),
        case(DEAR, "scheme: RSA-2048", || {
            presenting(
                "rsa",
                &[
                    ("wechatpay-signature", signed::BY_RSA),
                    ("wechatpay-serial", "key-1"),
                    ("wechatpay-nonce", signed::NONCE),
                    ("wechatpay-timestamp", TIME),
                ],
            )
        }),
        case(DEAR, "scheme: JWT ES256", || presenting("jwt", &[("plaid-verification", signed::TOKEN)])),
        case(CHEAP, "scheme: token", || judged("token", SHORT, &[], None)),
        case(CHEAP, "scheme: basic", || judged("basic", SHORT, &[], None)),
        case(CHEAP, "scheme: bearer", || judged("bearer", SHORT, &[], None)),
        case(CHEAP * 4, "claim: first, committed", || claimed(false, &[])),
        case(CHEAP * 4, "claim: first with an event id, committed", || claimed(true, &[])),
        case(CHEAP * 4, "claim: first under two limits, committed", || claimed(false, &["s", "c"])),
        case(CHEAP * 4, "claim: first, let go", let_go),
        case(CHEAP, "claim: replay", || repeated(true)),
        case(CHEAP, "claim: duplicate", || repeated(false)),
        case(CHEAP, "limit: of a source", || {
            let rate = Rate::new(slow());
            Box::new(move || rate.take().is_ok())
        }),
        case(1024 * 4, "limit: of one among 1,024 clients", || {
            let rate = KeyedRate::new(slow(), 4096);
            let mut clients = (0..1024).map(address).map(ClientKey::of).collect::<Vec<_>>().into_iter().cycle();
            clients.by_ref().take(1024).for_each(|client| assert!(rate.take(client).is_ok()));
            Box::new(move || clients.next().is_some_and(|client| rate.take(client).is_ok()))
        }),
        case(1024 * 4, "limit: of a newcomer to a full table", || {
            let rate = KeyedRate::new(slow(), 1024);
            (0..1024).map(address).for_each(|client| assert!(rate.take(ClientKey::of(client)).is_ok()));
            let mut newcomers = (1024..u32::MAX).map(address);
            Box::new(move || newcomers.next().is_some_and(|client| rate.take(ClientKey::of(client)).is_ok()))
        }),
        case(CHEAP, "head: client, from a stranger", || from("192.0.2.1")),
        case(CHEAP, "head: client, from a trusted proxy", || from("10.0.0.1")),
        case(CHEAP, "head: forwarding headers", forwarding),
        case(4000, "head: admitted, 10 sources", || admitted(10)),
        case(4000, "head: admitted, 1,000 sources", || admitted(1000)),
        case(CHEAP, "encode: a parcel packed", packed),
        case(CHEAP, "encode: a parcel for the inbox, 1 KiB", || {
            let parcel = parcel(1024);
            Box::new(move || parcel.encode().len() > 1024)
        }),
        case(CHEAP, "encode: a parcel from the inbox, 1 KiB", || {
            let text = parcel(1024).encode();
            Box::new(move || Parcel::decode(&text).is_ok())
        }),
        case(CHEAP, "encode: an inbox row and back, 1 KiB", || row(1024, false)),
        case(DEAR, "encode: an inbox row and back, 16 KiB, compressed", || row(16 * 1024, false)),
        case(DEAR, "encode: an inbox row and back, 1 KiB, encrypted", || row(1024, true)),
        case(CHEAP, "encode: an audit line, text", || audit(Format::Text)),
        case(CHEAP, "encode: an audit line, JSON", || audit(Format::Json)),
        case(10, "encode: metrics, 10 sources", metrics),
    ]
}

fn of_length(length: usize) -> Delivery {
    Delivery { body: Bytes::from(body(length)), ..delivery() }
}

fn insert(headers: &mut Fields, added: &[(&'static str, &'static str)]) {
    headers.extend(added.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))));
}

/// The whole verifier over a delivery that it signed itself.
fn judged(name: &str, length: usize, added: &[(&'static str, &'static str)], private: Option<String>) -> Run {
    let verifier = verifier(name);
    let private = private.map(|private| Secret::new(private.into()));
    let mut draft = of_length(length);
    insert(&mut draft.headers, added);
    let delivery = verifier.sign(draft, "id-1", NOW, private.as_ref()).expect("a signature").delivery;
    judging(verifier, delivery, true)
}

/// The whole verifier over a signature made elsewhere.
fn presenting(name: &str, added: &[(&'static str, &'static str)]) -> Run {
    let mut delivery = of_length(1024);
    insert(&mut delivery.headers, added);
    judging(verifier(name), delivery, true)
}

fn forged() -> Run {
    let verifier = verifier("hmac");
    let mut delivery = verifier.sign(of_length(SHORT), "id-1", NOW, None).expect("a signature").delivery;
    let forged = format!("v1={}", "5a".repeat(32));
    delivery.headers.insert("x-signature", HeaderValue::from_str(&forged).expect("a header's value"));
    judging(verifier, delivery, false)
}

fn judging(verifier: Arc<Verifier>, delivery: Delivery, genuine: bool) -> Run {
    let mut kept = Some(delivery);
    Box::new(move || {
        let delivery = kept.take().expect("given back each time");
        let judged = verifier.judge(delivery, NOW, &NoLibrary);
        let is_proven = judged.is_ok();
        kept = Some(match judged {
            Ok(verified) => verified.into_delivery(),
            Err(refused) => *refused.delivery,
        });
        is_proven == genuine
    })
}

fn plain(prefix: &str) -> Layout {
    Layout::Plain { prefix: prefix.to_owned() }
}

fn pairs() -> Layout {
    Layout::Pairs { separator: ',', equals: '=', key: "v1".to_owned(), groups: None }
}

fn presented(before: &str, layout: Layout) -> Run {
    let name = HeaderName::from_static("x-signature");
    let at = SignatureAt { place: Place::Header(vec![name.clone()]), layout, encoding: Encoding::Hex };
    let mut delivery = delivery();
    let text = format!("{before}{}", "5a".repeat(32));
    delivery.headers.insert(name, HeaderValue::from_str(&text).expect("a header's value"));
    let json = Json::default();
    Box::new(move || {
        let Ok(text) = at.find(&delivery, &json) else { return false };
        at.parse(&text, &(32..=32)).is_ok_and(|presented| presented.candidates.len() == 1)
    })
}

fn list() -> Run {
    let item = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
    let layout = Layout::List { separator: ' ', prefix: "v1,".to_owned() };
    let name = HeaderName::from_static("webhook-signature");
    let at = SignatureAt { place: Place::Header(vec![name]), layout, encoding: Encoding::Base64 };
    let text = format!("v1,{item} v1,{item}");
    Box::new(move || at.parse(&text, &(32..=32)).is_ok_and(|presented| presented.candidates.len() == 2))
}

fn json(length: usize) -> Run {
    let mut pointers = Pointers::default();
    for pointer in ["/id", "/type", "/data/object/id"] {
        pointers.add(pointer).expect("a pointer");
    }
    let member = |number| format!(r#""member-{number}":{{"amount":{number},"paid":true,"note":"of a \"kind\""}}"#);
    let mut body = r#"{"id":"evt_1","data":{"object":{"id":"in_1"}},"#.to_owned();
    let mut members = (0..).map(member);
    while body.len() < length {
        body.extend(members.next());
        body.push(',');
    }
    body.push_str(r#""type":"invoice.paid"}"#);
    Box::new(move || pointers.read(body.as_bytes()).has("/type"))
}

fn template(text: &str) -> Run {
    let template = Template::parse(text).expect("a template");
    let mut delivery = delivery();
    delivery.query = Some("a=1&b=2".to_owned());
    let mut pointers = Pointers::default();
    pointers.add("/id").expect("a pointer");
    let json = pointers.read(&delivery.body);
    Box::new(move || {
        let facts = Facts {
            delivery: &delivery,
            public_url: Some("https://hooks.example.com/in"),
            timestamp: Some(TIME),
            pairs: &[],
            json: &json,
            body: None,
            url_form: UrlForm::default(),
        };
        template.render(&facts).complete
    })
}

fn ledger() -> Arc<Ledger> {
    State::Memory(Ledgers::default()).ledger("a", 1_000_000)
}

/// A limit that no run spends, and whose budgets never fill up again while it lasts.
fn slow() -> Quota {
    Quota::parse("1/s", Some(1_000_000)).expect("a rate")
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | (number & 0x00ff_ffff)))
}

/// How many claims stand at any time: what is committed is forgotten as soon as so many others have come.
const STANDING: u64 = 4096;

fn ask(number: u64, event: bool, now: UnixMillis) -> Ask {
    let key = |of: u8| {
        let mut key = [of; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    };
    Ask {
        replay: vec![key(1)],
        keep_until: UnixMillis(now.0 + STANDING),
        event: event.then(|| key(2)),
        event_keep_until: UnixMillis(now.0 + STANDING),
        lease: Duration::from_secs(30),
    }
}

fn claim(ledger: &Ledger, ask: Ask, limits: &Limits, now: UnixMillis) -> Claimed {
    let claim = ledger.claim(Some(ask), true, limits, ClientKey::of(address(1)), now);
    claim.now_or_never().expect("memory does not wait").expect("there is room")
}

fn taken(ledger: &Ledger, ask: Ask, limits: &Limits, now: UnixMillis) -> bool {
    match claim(ledger, ask, limits, now) {
        Claimed::First(Some(mut held)) => held.commit(now).now_or_never().is_some_and(|committed| committed.is_ok()),
        _ => false,
    }
}

/// A new delivery each time, one a millisecond.
fn claimed(event: bool, limits: &[&str]) -> Run {
    let limit = |of: &&str| RateLimit { quota: slow(), per: if *of == "c" { Per::Client } else { Per::Source } };
    let limits = Limits::new(&limits.iter().map(limit).collect::<Vec<_>>());
    let ledger = ledger();
    let mut asks =
        (0..).map(move |number| (UnixMillis(NOW.0 + number), ask(number, event, UnixMillis(NOW.0 + number))));
    let mut run = move || asks.next().is_some_and(|(now, ask)| taken(&ledger, ask, &limits, now));
    // Until as many are given up as come.
    (0..STANDING * 3).for_each(|_| assert!(run(), "not the first"));
    Box::new(run)
}

fn let_go() -> Run {
    let (ledger, limits) = (ledger(), Limits::new(&[]));
    let mut asks = (0..).map(|number| ask(number, true, NOW));
    Box::new(move || {
        asks.next().is_some_and(|ask| matches!(claim(&ledger, ask, &limits, NOW), Claimed::First(Some(_))))
    })
}

/// A thousand deliveries that were accepted, again: the same message, or the same event signed anew.
fn repeated(same: bool) -> Run {
    let (ledger, limits) = (ledger(), Limits::new(&[]));
    let lasting = |number: u64| {
        let mut ask = ask(number, true, NOW);
        (ask.keep_until, ask.event_keep_until) = (UnixMillis(NOW.0 + 1_000_000), UnixMillis(NOW.0 + 1_000_000));
        ask
    };
    (0..1000).for_each(|number| assert!(taken(&ledger, lasting(number), &limits, NOW), "not the first"));
    let mut numbers = (0..1000).cycle();
    Box::new(move || {
        let mut ask = lasting(numbers.next().unwrap_or_default());
        if same {
            return matches!(claim(&ledger, ask, &limits, NOW), Claimed::Replay);
        }
        ask.replay.iter_mut().flatten().for_each(|byte| *byte ^= 0x5a);
        matches!(claim(&ledger, ask, &limits, NOW), Claimed::Duplicate(Some(_)))
    })
}

/// As a proxy of ours would hand it on.
fn handed_on() -> Fields {
    let mut sent = delivery().headers;
    insert(&mut sent, &[("x-forwarded-for", "198.51.100.7, 10.0.0.2"), ("x-forwarded-proto", "https")]);
    sent
}

fn from(peer: &str) -> Run {
    let (peer, sent, trusted): (IpAddr, _, _) =
        (peer.parse().expect("an address"), handed_on(), ["10.0.0.0/8".parse().expect("a network")]);
    Box::new(move || client(peer, &sent, &trusted).is_certain)
}

fn forwarding() -> Run {
    let sent = handed_on();
    Box::new(move || {
        let peer = address(1);
        let arrival = Arrival { peer, scheme: "https", authority: "hooks.example.com", port: 443 };
        headers(&arrival, &sent, &[]).len() == 5
    })
}

fn admitted(sources: usize) -> Run {
    let mut text = without_sources();
    for number in 0..sources {
        text.push_str(&format!(
            "[sources.s{number}]\nhost = \"hooks.example.com\"\npath = \"/in/{number}\"\nprovider = \"github\"\n\
             secrets = [{{ env = \"HMAC\" }}]\nupstream = \"u\"\n"
        ));
    }
    let heads = Heads::new(loaded(&text).plan).expect("a snapshot");
    let head = |number| {
        let uri = format!("/in/{number}").parse().expect("a target");
        let mut headers = delivery().headers;
        headers.insert(header::HOST, HeaderValue::from_static("hooks.example.com"));
        Head { method: Method::POST, uri, version: Version::HTTP_11, headers }
    };
    let all: Vec<_> = (0..sources).map(head).collect();
    let mut numbers = (0..sources).cycle();
    Box::new(move || {
        numbers.next().and_then(|number| all.get(number)).is_some_and(|head| heads.admit(head, address(1)))
    })
}

fn proven(verifier: &Verifier, signed: &Delivery) -> Verified {
    verifier.judge(signed.clone(), NOW, &NoLibrary).expect("it is genuine")
}

static FORWARDING: LazyLock<Vec<(HeaderName, HeaderValue)>> = LazyLock::new(|| {
    let arrival = Arrival { peer: address(1), scheme: "https", authority: "hooks.example.com", port: 443 };
    headers(&arrival, &Fields::new(), &[])
});

fn statement() -> Statement<'static> {
    Statement {
        source: HeaderValue::from_static("hmac"),
        request_id: "0199c6e2-7c00-7000-8000-000000000000",
        client_certificate: None,
        forwarding: &FORWARDING,
        traceparent: HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        added: Vec::new(),
        credentials: Vec::new(),
    }
}

fn parcel(length: usize) -> Parcel {
    let verifier = verifier("hmac");
    let signed = verifier.sign(of_length(length), "id-1", NOW, None).expect("a signature").delivery;
    Parcel::pack(proven(&verifier, &signed), "/in".to_owned(), "hmac-sha256", statement())
}

/// With what goes in made beforehand, for it is used up.
fn packed() -> Run {
    let verifier = verifier("hmac");
    let signed = verifier.sign(of_length(1024), "id-1", NOW, None).expect("a signature").delivery;
    let made = |_| (proven(&verifier, &signed), "/in".to_owned(), statement());
    let mut made: Vec<_> = (0..CHEAP + 1).map(made).collect();
    let mut remade = move || made.pop().map(|(verified, path, said)| Parcel::pack(verified, path, "hmac-sha256", said));
    Box::new(move || remade().is_some_and(|parcel| parcel.headers.len() > 10))
}

fn row(length: usize, sealed: bool) -> Run {
    let key = || SealingKey::parse(&Secret::new("00112233445566778899aabbccddeeff".repeat(2).into())).expect("a key");
    let packing = Packing::new(sealed.then(key).into_iter().collect());
    let plain = parcel(length).encode();
    Box::new(move || {
        let Ok(row) = packing.pack(&[7; 16], plain.clone()) else { return false };
        let key = row.key.map(|key| key.as_bytes().to_vec());
        let read = packing.unpack(&[7; 16], key.as_deref(), i64::from(row.packing), row.content);
        read.is_ok_and(|read| read.len() == plain.len())
    })
}

fn audit(format: Format) -> Run {
    let record = Record {
        at: NOW,
        request_id: "0199c6e2-7c00-7000-8000-000000000000",
        listener: "public",
        source: "github",
        outcome: Outcome::Accepted,
        would_refuse: None,
        status: 200,
        method: "POST",
        path: "/github",
        client: address(1),
        certificate: "",
        verified: "github",
        event_id: "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        event_type: "push",
        upstream: "orders",
        body_bytes: 1024,
        whole: Duration::from_micros(480),
        verify: Duration::from_micros(4),
        forward: Duration::from_micros(350),
    };
    let mut line = Vec::with_capacity(1024);
    Box::new(move || {
        line.clear();
        record.put(&mut line, format);
        line.ends_with(b"\n")
    })
}

fn metrics() -> Run {
    let metrics = Metrics::new();
    let sources: Vec<_> =
        (0..10).map(|number| metrics.source(&format!("s{number}"), &["HMAC".to_owned()], false, false)).collect();
    for source in &sources {
        source.count(Outcome::Accepted);
        source.duration.observe(0.000_48);
    }
    Box::new(move || metrics.text().len() > 1024)
}
