//! A genuine webhook comes in and reaches the service behind, whole.

use crate::support::http::{connect, read_answer};
use crate::support::upstream::Reply;
use crate::support::{Gateway, PATIENCE, Request, Upstream, eventually, sign};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub(crate) const SECRET: &str = "a-github-secret-for-tests";

pub(crate) fn github(upstream: &Upstream) -> String {
    format!(
        "{}\n[sources.github]\npath = \"/github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n",
        upstream.table()
    )
}

pub(crate) fn push(body: &[u8]) -> Request {
    Request::post("/github", body)
        .header("X-Hub-Signature-256", sign::github(SECRET, body))
        .header("X-GitHub-Event", "push")
        .header("X-GitHub-Delivery", "d-1")
        .header("Content-Type", "application/json")
}

#[test]
fn a_genuine_delivery_reaches_the_upstream_byte_for_byte_with_what_was_proven() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    // Not UTF-8, a NUL, CRLF, trailing spaces: whatever was signed arrives.
    let body = b"{\"ref\":\"\xff\x00\r\n\"}  \n";
    let answer = push(body).send(gateway.public());
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));

    let received = upstream.wait_for(1).remove(0);
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/github"));
    assert_eq!(received.body, body);
    assert_eq!(received.header("x-hookward-source").as_deref(), Some("github"));
    assert_eq!(received.header("x-hookward-verified").as_deref(), Some("github"));
    assert_eq!(received.header("x-hookward-event-id").as_deref(), Some("d-1"));
    assert_eq!(received.header("x-hookward-event-type").as_deref(), Some("push"));
    assert_eq!(received.header("x-request-id"), Some(answer.request_id()));
    // Apps may verify again.
    assert_eq!(received.header("x-hub-signature-256"), Some(sign::github(SECRET, body)));
    assert_eq!(received.header("host"), Some(upstream.address.to_string()));
    assert_eq!(received.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(received.header("x-forwarded-host").as_deref(), Some("hooks.example.com"));
    assert_eq!(received.header("x-forwarded-proto").as_deref(), Some("http"));

    let audit = gateway.audit_of(&answer.request_id());
    assert_eq!(
        (&audit["outcome"], &audit["source"], &audit["event_id"]),
        (&"accepted".into(), &"github".into(), &"d-1".into())
    );
    assert_eq!(gateway.outcome("github", "accepted"), 1);
}

#[test]
fn a_forged_delivery_does_not_and_the_sender_learns_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    let genuine = push(b"{}");
    let mut forged = genuine.clone();
    forged.body = b"[]".to_vec();
    let answer = forged.send(gateway.public());
    assert_eq!(answer.status, 401);
    assert!(!answer.text().contains("signature"), "{}", answer.text());
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "bad_signature");
    assert_eq!(gateway.outcome("github", "bad_signature"), 1);
    // Its twin, unharmed, passes.
    assert_eq!(genuine.send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_hundred_copies_at_once_reach_the_upstream_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    let to = gateway.public();
    let senders: Vec<_> =
        (0..100).map(|_| std::thread::spawn(move || push(b"{\"copy\":true}").send(to).status)).collect();
    let statuses: Vec<u16> = senders.into_iter().map(|sender| sender.join().expect("a sender")).collect();
    assert_eq!(statuses.len(), 100);
    assert_eq!(upstream.count(), 1, "{statuses:?}");
    // One got the upstream's answer; the others were told to come back, or that it is done.
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 202 | 429 | 503)), "{statuses:?}");
}

/// All but the last byte of a body that would be a client's whole eighth of the smallest `max_buffered`, 1 MiB.
fn stall(to: SocketAddr, client: &str) -> TcpStream {
    let mut request = push(&[b' '; 128 * 1024]).header("X-Forwarded-For", client).bytes();
    request.pop();
    let mut stream = connect(to).expect("a connection");
    stream.write_all(&request).expect("the gateway reads");
    stream
}

#[test]
fn stalled_bodies_of_four_clients_do_not_keep_a_genuine_delivery_out_of_their_source() {
    a_delivery_passes_stalled_bodies_of(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"], "192.0.2.5");
}

#[test]
fn a_stalled_body_does_not_keep_out_a_genuine_delivery_from_the_same_address() {
    a_delivery_passes_stalled_bodies_of(&["192.0.2.1"], "192.0.2.1");
}

fn a_delivery_passes_stalled_bodies_of(clients: &[&str], newcomer: &str) {
    let upstream = Upstream::start();
    let limits = "\n[limits]\nmax_buffered = \"1MiB\"\n";
    let public = "[listeners.public]\ntrusted_proxies = [\"127.0.0.1/32\"]\n";
    let plain = crate::support::gateway::PLAIN.replace("[listeners.public]\n", public);
    let gateway = Gateway::start_in(
        std::sync::Arc::new(crate::support::gateway::Folder::new()),
        &format!("{plain}{limits}{}max_body = \"128KiB\"\n", github(&upstream)),
    );
    let stalled: Vec<_> = clients.iter().map(|client| stall(gateway.public(), client)).collect();
    let held = clients.len() * 128 * 1024;
    eventually("the stalled bodies are held", || {
        (gateway.metric("hookward_buffered_bytes", &[]) as usize + clients.len() >= held).then_some(())
    });
    // The source's half, or the client's eighth, is full to the last byte; from one second on a body counts as slow.
    std::thread::sleep(Duration::from_secs(1));
    let genuine = push(b"{\"small\":true}").header("X-Forwarded-For", newcomer);
    assert_eq!(genuine.send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 1);
    eventually("one is cut", || (gateway.outcome("github", "buffer_full") == 1).then_some(()));
    // Whoever was not cut is not hurt: with its last byte it is judged like any other.
    let mut statuses: Vec<_> = stalled
        .into_iter()
        .map(|mut stream| {
            // The one that was cut may have been closed already.
            let _ = stream.write_all(b" ");
            read_answer(&mut BufReader::new(stream)).map(|answer| answer.status).unwrap_or(503)
        })
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 1, "{statuses:?}");
    eventually("all is given back", || (gateway.metric("hookward_buffered_bytes", &[]) == 0.0).then_some(()));
}

/// An upstream with one place, whose answers are so long.
fn one_place(answer: usize, timeout: &str) -> (Upstream, Gateway) {
    let upstream =
        Upstream::with(move |_, _| Reply::Full { status: 200, headers: Vec::new(), body: vec![b'x'; answer] });
    let limits = format!("max_in_flight = 1\nqueue_timeout = \"10s\"\ntimeout = \"{timeout}\"\n");
    let table = format!("{}{limits}", upstream.table());
    let gateway = Gateway::start(&github(&upstream).replace(&upstream.table(), &table));
    (upstream, gateway)
}

fn event(id: &str) -> Request {
    let mut request = push(id.as_bytes());
    request.headers.retain(|(name, _)| name != "X-GitHub-Delivery");
    request.header("X-GitHub-Delivery", id)
}

/// Over HTTP/2, with a window of so many bytes for the answer. The head has come, and nothing is read yet.
async fn unread(to: SocketAddr, request: &Request, window: u32) -> hyper::Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(to).await.expect("a connection");
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(window);
    let (mut sender, connection) =
        client.handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.expect("an HTTP/2 handshake");
    tokio::spawn(connection);
    let mut sent = hyper::Request::post(format!("http://hooks.example.com{}", request.target));
    for (name, value) in &request.headers {
        sent = sent.header(name.as_str(), value.as_slice());
    }
    let sent = sent.body(Full::new(Bytes::from(request.body.clone()))).expect("a request");
    sender.send_request(sent).await.expect("an answer")
}

#[test]
fn a_sender_that_does_not_read_its_answer_holds_an_upstreams_place_until_the_deadline_and_is_reset() {
    let (upstream, gateway) = one_place(128 * 1024, "500ms");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let started = Instant::now();
    let stuck = runtime.block_on(unread(gateway.public(), &event("e-0"), 0));
    let reads_late = runtime.block_on(unread(gateway.public(), &event("e-1"), 16 * 1024));
    assert_eq!((stuck.status(), reads_late.status()), (hyper::StatusCode::OK, hyper::StatusCode::OK));
    let next = event("e-2").send(gateway.public());
    assert_eq!((next.status, next.body.len()), (200, 128 * 1024));
    assert!(started.elapsed() >= Duration::from_millis(900), "both held the place for their time");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(upstream.count(), 3);
    // A cut answer is an error, never a clean end.
    let read = runtime.block_on(async { tokio::time::timeout(PATIENCE, reads_late.into_body().collect()).await });
    assert!(read.expect("the answer ends").is_err());
    // That nobody read did not speak against the upstream.
    assert_eq!(gateway.metric("hookward_upstream_healthy", &[("upstream", "app")]), 1.0);
    drop(stuck);
}

#[test]
fn a_short_answer_that_nobody_reads_holds_no_place() {
    // More than one frame: the first is taken ahead of the window.
    let (upstream, gateway) = one_place(60 * 1024, "30s");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stuck = ["e-0", "e-1", "e-2"].map(|id| runtime.block_on(unread(gateway.public(), &event(id), 0)));
    assert!(stuck.iter().all(|answer| answer.status() == hyper::StatusCode::OK));
    assert_eq!(event("e-3").send(gateway.public()).status, 200);
    assert_eq!(upstream.count(), 4);
    drop(stuck);
}
