//! What a message says, whoever wrote the request; and which logins are any.

use std::sync::Arc;
use std::time::Duration;

use crate::fields::Fields;
use async_nats::HeaderMap;
use bytes::Bytes;
use http::Method;
use http::header::{HeaderName, HeaderValue};
use nkeys::KeyPair;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::event::Event;
use super::super::settings::{Engine, Format, NatsAuth, NatsTarget, Settings};
use super::super::template::{Alphabet, Template};
use super::{Sink, headers, login};
use crate::clock::UnixMillis;
use crate::deliver::failure::Fault;
use crate::dial::Address;
use crate::parcel::{Parcel, Tag};
use crate::secret::Secret;

fn tag(delivery_id: &str) -> Tag {
    Tag {
        source: "shop".into(),
        delivery_id: delivery_id.into(),
        generation: 0,
        received: UnixMillis(1_719_750_896_123),
    }
}

fn parcel(sent: &[(&str, &[u8])]) -> Parcel {
    let mut map = Fields::new();
    for (name, value) in sent {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    Parcel {
        method: Method::POST,
        path_and_query: "/shop".to_owned(),
        headers: map,
        body: Bytes::from_static(b"{}"),
        credentials: vec![HeaderName::from_static("x-token")],
    }
}

fn made(sent: &[(&str, &[u8])], delivery_id: &str) -> HeaderMap {
    headers::of(&Event::of(&parcel(sent), &tag(delivery_id)), Format::Binary, Some("HOOKS"))
}

fn value(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.as_str().to_owned())
}

/// As the client writes them.
fn lines(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for (name, values) in headers.iter() {
        lines.extend(values.iter().map(|value| (name.to_string(), value.as_str().to_owned())));
    }
    lines
}

#[test]
fn a_message_says_what_happened_and_what_the_sender_wrote() {
    let sent: &[(&str, &[u8])] = &[
        ("content-type", b"application/json"),
        ("x-github-event", b"push"),
        ("x-twice", b"1"),
        ("x-twice", b"2"),
        ("x-hookward-event-type", b"push"),
        ("x-hookward-verified", b"github"),
        ("x-request-id", b"r1"),
        ("traceparent", b"00-1-1-00"),
        ("authorization", b"Bearer secret"),
        ("cookie", b"secret"),
        ("x-token", b"secret"),
    ];
    let headers = made(sent, "id-1");
    for (name, wanted) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "id-1"),
        ("ce-source", "/shop"),
        ("ce-type", "webhook.shop.push"),
        ("ce-time", "2024-06-30T12:34:56.123Z"),
        ("content-type", "application/json"),
        ("Nats-Msg-Id", "shop:id-1"),
        ("Nats-Expected-Stream", "HOOKS"),
        ("traceparent", "00-1-1-00"),
        ("hookward-request-id", "r1"),
        ("hookward-verified", "github"),
        ("hookward-event-type", "push"),
        ("http-x-github-event", "push"),
        ("http-content-type", "application/json"),
    ] {
        assert_eq!(value(&headers, name).as_deref(), Some(wanted), "{name}");
    }
    let twice: Vec<_> = headers.get_all("http-x-twice").map(|value| value.as_str()).collect();
    assert_eq!(twice, ["1", "2"]);
    assert!(lines(&headers).iter().all(|(_, value)| !value.contains("secret")), "{headers:?}");
}

#[test]
fn a_structured_event_is_called_one() {
    let parcel = parcel(&[("content-type", b"text/plain")]);
    let headers = headers::of(&Event::of(&parcel, &tag("1")), Format::CloudEvents, None);
    assert_eq!(value(&headers, "content-type").as_deref(), Some("application/cloudevents+json"));
    assert_eq!(value(&headers, "http-content-type").as_deref(), Some("text/plain"));
    assert_eq!(value(&headers, "Nats-Msg-Id").as_deref(), Some("shop:1"));
    assert_eq!(value(&headers, "Nats-Expected-Stream"), None);
    assert_eq!(value(&headers, "ce-id"), None);
}

#[test]
fn what_is_no_printable_ascii_is_written_with_percent_signs_and_can_be_read_back() {
    let cases: [(&[u8], &str); 6] = [
        ("Grüße".as_bytes(), "Gr%C3%BC%C3%9Fe"),
        (b"a\tb", "a%09b"),
        (b"100%25", "100%2525"),
        (b"\xff", "%FF"),
        (b" edges ", "%20edges%20"),
        (b"t=1,v1=\"x y\"", "t=1,v1=\"x y\""),
    ];
    for (sent, wanted) in cases {
        let headers = made(&[("x-a", sent)], "1");
        assert_eq!(value(&headers, "http-x-a").as_deref(), Some(wanted));
        let back: Vec<u8> = percent_encoding::percent_decode_str(wanted).collect();
        assert_eq!(back, sent);
    }
}

#[test]
fn a_sender_writes_none_of_jetstreams_own_headers() {
    let headers = made(
        &[("nats-msg-id", b"mine"), ("x-a", b"Nats-Msg-Id: mine"), ("x-b", b"NATS-Rollup: all")],
        "Nats-Expected-Last-Sequence: 7",
    );
    assert_eq!(value(&headers, "http-x-a").as_deref(), Some("%4Eats-Msg-Id: mine"));
    assert_eq!(value(&headers, "http-x-b").as_deref(), Some("%4EATS-Rollup: all"));
    assert_eq!(value(&headers, "Nats-Msg-Id").as_deref(), Some("shop:%4Eats-Expected-Last-Sequence:%207"));
    assert_eq!(value(&headers, "http-nats-msg-id").as_deref(), Some("mine"));
}

proptest! {
    #[test]
    fn no_header_breaks_the_protocol(
        sent in proptest::collection::vec(
            ("[!#$%&'*+.^_`|~0-9a-zA-Z-]{1,40}", proptest::collection::vec(any::<u8>(), 0..200)),
            0..20,
        ),
        id in ".{0,200}",
        event in ".{0,200}",
    ) {
        let mut map = Fields::new();
        for (name, value) in &sent {
            // What no request can hold does not get here.
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                map.append(name, value);
            }
        }
        if let Ok(event) = HeaderValue::from_bytes(event.as_bytes()) {
            map.insert("x-hookward-event-type", event);
        }
        let mut parcel = parcel(&[]);
        parcel.headers = map;
        let tag = tag(&id);
        for format in [Format::Binary, Format::CloudEvents] {
            let headers = headers::of(&Event::of(&parcel, &tag), format, Some("HOOKS"));
            let lines = lines(&headers);
            for (name, value) in &lines {
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'), "{name:?}");
                prop_assert!(value.bytes().all(|byte| matches!(byte, 0x20..=0x7e)), "{value:?}");
                prop_assert!(!value.to_ascii_lowercase().contains("nats-"), "{value:?}");
            }
            let ids = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case("nats-msg-id")).count();
            prop_assert_eq!(ids, 1);
        }
    }

    #[test]
    fn no_two_deliveries_have_one_message_id(one in ".{0,40}", two in ".{0,40}") {
        prop_assume!(one != two);
        let id = |id: &str| value(&made(&[], id), "Nats-Msg-Id");
        prop_assert_ne!(id(&one), id(&two));
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

#[test]
fn credentials_are_read_as_a_file_has_them_and_without_its_last_line_end() {
    let seed = KeyPair::new_user().seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJKV1QifQ.e30.c2ln\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\nKeep it.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    for text in [text.as_str(), text.trim_end()] {
        assert_eq!(NatsAuth::Credentials(secret(text)).check(), Ok(()));
    }
}

#[test]
fn what_is_no_login_is_refused_without_repeating_it() {
    let seed = KeyPair::new_user().seed().unwrap();
    let account = KeyPair::new_account().seed().unwrap();
    assert_eq!(NatsAuth::NKey(secret(&format!("{seed}\n"))).check(), Ok(()));
    let half = &seed[..20];
    let not_utf8 = Secret::new(vec![0xff, 0xfe]);
    for auth in [
        NatsAuth::NKey(secret(&account)),
        NatsAuth::NKey(secret(half)),
        NatsAuth::NKey(secret("")),
        NatsAuth::NKey(secret(&KeyPair::new_user().public_key())),
        NatsAuth::Credentials(secret(&seed)),
        NatsAuth::Credentials(secret(&format!("-----A-----\n{half}\n-----B-----\n-----A-----\n{half}\n-----B-----"))),
        NatsAuth::Token(not_utf8),
    ] {
        let error = login::options(&auth).err().unwrap();
        assert!(!error.contains(half) && !error.contains(&account[..20]), "{error}");
    }
}

/// A peer that does what no nats-server can be brought to do at a given moment.
async fn peer() -> (TcpListener, Arc<Sink>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = NatsTarget {
        servers: vec![Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() }],
        subject: Template::parse("hooks.{source}", Alphabet::Dotted).unwrap(),
        stream: None,
        auth: NatsAuth::None,
        tls: None,
        connect_timeout: Duration::from_secs(10),
        format: Format::Binary,
        max_body: 1024,
    };
    let settings = Settings {
        name: "stream".into(),
        engine: Engine::Nats(target),
        timeout: Duration::from_secs(30),
        max_in_flight: 256,
        queue_timeout: Duration::from_secs(1),
    };
    (listener, Arc::new(Sink::start(&settings).unwrap()))
}

const INFO: &[u8] = b"INFO {\"version\":\"2.9.10\",\"headers\":true,\"jetstream\":true,\"max_payload\":8388608}\r\n";

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.windows(end.len()).any(|part| part == end.as_bytes()) {
        assert!(stream.read_buf(&mut text).await.unwrap() > 0, "{}", String::from_utf8_lossy(&text));
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn greet(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(INFO).await.unwrap();
    read_until(&mut stream, "PING\r\n").await;
    stream.write_all(b"PONG\r\n").await.unwrap();
    stream
}

async fn connected(sink: &Sink) {
    while sink.is_up() != Some(true) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn publish(sink: Arc<Sink>, id: String, size: usize) -> Result<(), Fault> {
    let mut parcel = parcel(&[]);
    parcel.body = Bytes::from(vec![b'x'; size]);
    let tag = tag(&id);
    sink.publish(&Event::of(&parcel, &tag), Instant::now()).await.map_err(|error| error.fault)
}

#[tokio::test]
async fn nothing_of_an_ended_connection_comes_over_the_next() {
    let (listener, sink) = peer().await;
    let mut first = greet(&listener).await;
    let mut sending = JoinSet::new();
    // More than two sockets hold: the rest waits in the client.
    for n in 0..64 {
        sending.spawn(publish(sink.clone(), format!("old-{n}"), 1 << 20));
    }
    read_until(&mut first, "shop:old-").await;
    drop(first);
    while let Some(sent) = sending.join_next().await {
        // Their senders are told to come again, at once.
        assert!(matches!(sent.unwrap(), Err(Fault::Broken | Fault::Unavailable)));
    }
    let mut second = greet(&listener).await;
    connected(&sink).await;
    sending.spawn(publish(sink.clone(), "new".to_owned(), 10));
    let sent = read_until(&mut second, "shop:new").await;
    assert!(!sent.contains("shop:old"), "{sent}");
}

#[tokio::test]
async fn a_peer_that_speaks_nonsense_is_tried_again() {
    let (listener, sink) = peer().await;
    // At the first of these the client panics.
    for nonsense in ["-ERR\r\n", "-ERR 'x'\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "\u{0}\r\n"] {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(INFO).await.unwrap();
        read_until(&mut stream, "PING\r\n").await;
        stream.write_all(nonsense.as_bytes()).await.unwrap();
    }
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"+OK\r\nINFO {}\r\n").await.unwrap();
    assert_eq!(sink.is_up(), Some(false));
    let mut stream = greet(&listener).await;
    connected(&sink).await;
    let sent = tokio::spawn(publish(sink, "one".to_owned(), 10));
    // One that answers, and is no stream.
    let text = read_until(&mut stream, "shop:one").await;
    let line = text.lines().find(|line| line.starts_with("HPUB hooks.shop ")).unwrap();
    let reply = line.split(' ').nth(2).unwrap();
    stream.write_all(format!("MSG {reply} 1 2\r\nhi\r\n").as_bytes()).await.unwrap();
    assert_eq!(sent.await.unwrap(), Err(Fault::Unavailable));
}
