//! HTTP/2: one connection, many streams, and the same shares.

use super::{open, start};
use crate::support::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, PING,
    REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, post,
};
use crate::support::upstream::{Gate, Reply};
use crate::support::{Gateway, Request, Upstream};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::{Duration, Instant};

type Sender = SendRequest<Full<Bytes>>;

async fn client(gateway: &Gateway) -> Sender {
    let stream = tokio::net::TcpStream::connect(gateway.public()).await.expect("a connection");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://hooks.example.com{path}"))
}

fn body() -> Full<Bytes> {
    Full::new(Bytes::from_static(b"{}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_requests_of_their_client() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |_, _| Reply::Held(held.clone(), Box::new(Reply::Status(200))));
    let gateway = start(&upstream, "max_requests_per_client = 2", &[open("a")]);
    let sender = client(&gateway).await;
    let send = || {
        let mut sender = sender.clone();
        tokio::spawn(async move { sender.send_request(request("/a").body(body()).expect("a request")).await })
    };
    let waiting = [send(), send()];
    tokio::task::block_in_place(|| upstream.wait_for(2));
    let third = send().await.expect("a task").expect("an answer");
    assert_eq!((third.status().as_u16(), third.headers().get("retry-after").is_some()), (429, true));
    gate.open();
    for one in waiting {
        assert_eq!(one.await.expect("a task").expect("an answer").status(), 200);
    }
}

#[test]
fn a_connection_has_a_hundred_streams_and_the_next_one_is_refused() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[open("a")]);
    let mut frames = Frames::connect(gateway.public());
    // Heads whose bodies never come.
    for n in 0..101 {
        frames.send(HEADERS, END_HEADERS, 2 * n + 1, &post("/a")).expect("written");
    }
    let refused = frames.next_of(RST_STREAM).expect("a reset");
    assert_eq!((refused.stream, refused.error_code()), (201, REFUSED_STREAM));
    assert_eq!(Request::post("/a", "{}").send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_list_is_as_long_as_configured_and_no_longer() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "max_header_bytes = \"8KiB\"", &[open("a")]);
    let mut sender = client(&gateway).await;
    let with = |length: usize| request("/a").header("x-long", "x".repeat(length)).body(body()).expect("a request");
    let over = sender.send_request(with(9 * 1024)).await.expect("an answer");
    assert_eq!(over.status(), 431);
    assert_eq!(sender.send_request(with(7 * 1024)).await.expect("an answer").status(), 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn streams_opened_and_reset_by_the_thousand_end_their_connection_and_hurt_nobody() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[open("a")]);
    let to = gateway.public();
    let (done, flooding) = (std::sync::atomic::AtomicBool::new(false), std::sync::Barrier::new(3));
    std::thread::scope(|scope| {
        let flood = || {
            let mut connections = 0;
            let mut calmed = 0;
            let mut streams = 0_u32;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || streams < 5_000 {
                let mut frames = Frames::connect(to);
                connections += 1;
                let mut burst = Vec::new();
                for n in 0..1000 {
                    burst.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &post("/a")));
                    burst.extend(frame(RST_STREAM, 0, 2 * n + 1, &CANCEL.to_be_bytes()));
                }
                streams += 1000;
                // It may close before it has read all of it.
                let written = std::io::Write::write_all(&mut frames.stream, &burst);
                if connections == 1 {
                    flooding.wait();
                }
                match frames.next_of(GOAWAY) {
                    Ok(goaway) => {
                        assert_eq!(goaway.error_code(), ENHANCE_YOUR_CALM);
                        calmed += 1;
                    }
                    Err(error) => {
                        assert!(written.is_err() || error.kind() != std::io::ErrorKind::WouldBlock, "{error}")
                    }
                }
            }
            (connections, calmed)
        };
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        flooding.wait();
        let mut worst = Duration::ZERO;
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(super::send_from(9, to, &Request::post("/a", "{}")).status, 200);
            worst = worst.max(begun.elapsed());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for flood in floods {
            let (connections, calmed) = flood.join().expect("a flood");
            assert!(connections >= 5 && calmed >= 1, "{connections} connections, {calmed} told to be calm");
        }
        assert!(worst < Duration::from_secs(2), "{worst:?}");
    });
    assert_eq!(upstream.count(), 20, "not one of the thousands got through");
}

#[test]
fn frames_that_carry_nothing_hurt_nobody() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "", &[open("a")]);
    let open_body = frame(HEADERS, END_HEADERS, 1, &post("/a"));
    let open_head = frame(HEADERS, 0, 1, &post("/a"));
    let floods = [
        (Vec::new(), frame(PING, 0, 0, &[0; 8])),
        (Vec::new(), frame(SETTINGS, 0, 0, &[])),
        (Vec::new(), frame(0x77, 0, 0, b"unknown")),
        (open_body.clone(), frame(DATA, 0, 1, b"")),
        (open_body, frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())),
        (open_head.clone(), frame(CONTINUATION, 0, 1, b"")),
        (open_head, frame(CONTINUATION, 0, 1, &block(&[("x-more", "of the same")]))),
    ];
    for (first, again) in floods {
        let mut frames = Frames::connect(gateway.public());
        let mut stream = frames.stream.try_clone().expect("a socket");
        // Whoever floods and does not read is not written to for ever.
        let reading = std::thread::spawn(move || while frames.next().is_ok() {});
        let flood = [first, again.repeat(20_000)].concat();
        // It may close before it has read all of it.
        let _ = std::io::Write::write_all(&mut stream, &flood);
        let begun = Instant::now();
        assert_eq!(super::send_from(9, gateway.public(), &Request::post("/a", "{}")).status, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // It may be closed already.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        reading.join().expect("a reader");
    }
    assert_eq!(upstream.count(), 7);
}

#[test]
fn a_head_whose_end_never_comes_ends_its_connection() {
    let upstream = Upstream::start();
    let gateway = start(&upstream, "header_timeout = \"300ms\"\nidle_timeout = \"30s\"", &[open("a")]);
    let mut frames = Frames::connect(gateway.public());
    frames.send(HEADERS, END_STREAM, 1, &post("/a")).expect("written");
    let begun = Instant::now();
    // Read and not acted upon: any other frame of ours would be an error here.
    std::io::Read::read_to_end(&mut frames.stream, &mut Vec::new()).expect("an end");
    assert!((Duration::from_millis(250)..Duration::from_secs(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(upstream.count(), 0);
}
