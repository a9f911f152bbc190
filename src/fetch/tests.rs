//! The fetcher against real TLS servers on loopback addresses.

use super::*;
use crate::clock::UnixMillis;
use crate::fetched::Document;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

const NAME: &str = "keys.example.test";

/// A TLS server that gives each connection the next of its answers, the last one for ever.
struct Server {
    port: u16,
    ca: Vec<u8>,
    asked: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

struct Reply {
    bytes: Vec<u8>,
    /// Waited for before the answer.
    gate: Option<Arc<Notify>>,
    /// The connection stays open behind the answer.
    hang: bool,
}

fn reply(head: &str, body: &str) -> Reply {
    let bytes = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    Reply { bytes, gate: None, hang: false }
}

impl Server {
    async fn start(replies: Vec<Reply>) -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST, replies).await
    }

    async fn start_on(address: Ipv4Addr, replies: Vec<Reply>) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem().into_bytes();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let chain = vec![CertificateDer::from(leaf.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, heads): (Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>) = Default::default();
        let (counts, notes) = (asked.clone(), heads.clone());
        let replies = Arc::new(replies);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, replies, counts, notes) =
                    (acceptor.clone(), replies.clone(), counts.clone(), notes.clone());
                tokio::spawn(async move {
                    // A client that breaks off is what some of the tests are about.
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = tls.read_u8().await else { return };
                        head.push(byte);
                    }
                    notes.lock().unwrap().push(String::from_utf8(head).unwrap());
                    let turn = counts.fetch_add(1, Ordering::SeqCst);
                    let reply = &replies[turn.min(replies.len() - 1)];
                    if let Some(gate) = &reply.gate {
                        gate.notified().await;
                    }
                    if tls.write_all(&reply.bytes).await.is_err() {
                        return;
                    }
                    let _ = tls.flush().await;
                    if reply.hang {
                        std::future::pending::<()>().await;
                    }
                    let _ = tls.shutdown().await;
                });
            }
        });
        Self { port, ca, asked, heads }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn url(&self, path: &str) -> Arc<str> {
        format!("https://{NAME}:{}{path}", self.port).into()
    }

    fn settings(&self) -> Settings {
        Settings::new(Some(&self.ca), vec!["127.0.0.1/32".parse().unwrap()], vec![self.port]).unwrap()
    }

    fn fetcher(&self) -> Arc<Fetcher> {
        resolving(self.settings(), |_| vec![Ipv4Addr::LOCALHOST.into()])
    }
}

fn resolving(settings: Settings, script: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static) -> Arc<Fetcher> {
    let names = Names::Scripted(Box::new(script));
    Fetcher::with_names(settings, names, Arc::default(), Meters::unregistered())
}

fn wanted(url: &Arc<str>) -> Wanted {
    Wanted { url: url.clone(), newer_than: None, named_by: NamedBy::Configuration }
}

fn here(fetcher: &Fetcher, url: &str) -> Option<Arc<Document>> {
    match fetcher.look_up(url) {
        Lookup::Here(document) => Some(document),
        Lookup::Missing | Lookup::Unavailable => None,
    }
}

async fn fails(replies: Vec<Reply>) -> FetchError {
    let server = Server::start(replies).await;
    let (fetcher, url) = (server.fetcher(), server.url("/keys.json"));
    let error = fetcher.fetch(&wanted(&url)).await.unwrap_err();
    assert!(matches!(fetcher.look_up(&url), Lookup::Unavailable), "{error}");
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Err(FetchError::TooSoon));
    error
}

#[tokio::test]
async fn a_document_is_fetched_once_and_then_looked_up() {
    let server = Server::start(vec![reply("200 OK", "the keys")]).await;
    let (fetcher, url) = (server.fetcher(), server.url("/keys.json?v=1"));
    assert!(matches!(fetcher.look_up(&url), Lookup::Missing));
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Ok(()));
    assert_eq!(here(&fetcher, &url).unwrap().bytes, "the keys");
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Ok(()));
    assert_eq!(server.asked(), 1);
    let head = server.heads.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /keys.json?v=1 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {NAME}:{}\r\n", server.port)), "{head}");
    for absent in ["authorization", "cookie", "referer"] {
        assert!(!head.contains(absent), "{head}");
    }
}

#[tokio::test]
async fn many_who_want_one_url_cause_one_request() {
    let gate = Arc::new(Notify::new());
    let slow = Reply { gate: Some(gate.clone()), ..reply("200 OK", "k") };
    let server = Server::start(vec![slow]).await;
    let (fetcher, url) = (server.fetcher(), server.url("/a.pem"));
    let many: Vec<_> = (0..20)
        .map(|_| {
            let (fetcher, url) = (fetcher.clone(), url.clone());
            tokio::spawn(async move { fetcher.fetch(&wanted(&url)).await })
        })
        .collect();
    // One who no longer waits takes nothing from the others.
    let gone = tokio::time::timeout(Duration::from_millis(1), fetcher.fetch(&wanted(&url))).await;
    assert!(gone.is_err());
    gate.notify_one();
    for one in many {
        assert_eq!(one.await.unwrap(), Ok(()));
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let elsewhere = Server::start(vec![reply("200 OK", "evil")]).await;
    let to = format!("302 Found\r\nlocation: {}", elsewhere.url("/"));
    assert_eq!(fails(vec![reply(&to, "")]).await, FetchError::Redirect);
    assert_eq!(elsewhere.asked(), 0);
}

#[tokio::test]
async fn another_status_than_200_is_no_document() {
    for (head, status) in [("404 Not Found", 404), ("500 Oops", 500), ("204 No Content", 204)] {
        assert_eq!(fails(vec![reply(head, "")]).await, FetchError::Status(status));
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_cut_whether_it_says_so_or_not() {
    let declared = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", (1 << 20) + 1).into_bytes();
    let declared = Reply { bytes: declared, gate: None, hang: true };
    assert_eq!(fails(vec![declared]).await, FetchError::TooLarge(1 << 20));
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(2 << 20, b'x');
    assert_eq!(fails(vec![Reply { bytes: endless, gate: None, hang: true }]).await, FetchError::TooLarge(1 << 20));
}

#[tokio::test]
async fn a_certificate_may_be_64_kib_and_a_key_set_a_mib() {
    let body = "x".repeat((64 << 10) + 1);
    let server = Server::start(vec![reply("200 OK", &body)]).await;
    let fetcher = server.fetcher();
    for path in ["/a.pem", "/v1/notifications/certs/CERT-1"] {
        assert_eq!(fetcher.fetch(&wanted(&server.url(path))).await, Err(FetchError::TooLarge(64 << 10)), "{path}");
    }
    assert_eq!(fetcher.fetch(&wanted(&server.url("/keys.json"))).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drips_is_given_five_seconds() {
    let mut partial = reply("200 OK", "whole");
    partial.bytes.truncate(partial.bytes.len() - 1);
    partial.hang = true;
    let server = Server::start(vec![partial]).await;
    let (fetcher, url) = (server.fetcher(), server.url("/"));
    let begun = Instant::now();
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Err(FetchError::TimedOut));
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_cut_or_compressed_answer_is_no_document() {
    let mut cut = reply("200 OK", "whole");
    cut.bytes.truncate(cut.bytes.len() - 1);
    assert!(matches!(fails(vec![cut]).await, FetchError::Answer(_)));
    assert!(matches!(fails(vec![reply("200 OK\r\ncontent-encoding: gzip", "x")]).await, FetchError::Answer(_)));
    let garbage = Reply { bytes: b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), gate: None, hang: false };
    assert!(matches!(fails(vec![garbage]).await, FetchError::Answer(_)));
}

#[tokio::test]
async fn a_server_without_the_right_certificate_is_not_believed() {
    let server = Server::start(vec![reply("200 OK", "k")]).await;
    let strange = Settings::new(None, vec!["127.0.0.1/32".parse().unwrap()], vec![server.port]).unwrap();
    let fetcher = resolving(strange, |_| vec![Ipv4Addr::LOCALHOST.into()]);
    assert!(matches!(fetcher.fetch(&wanted(&server.url("/"))).await, Err(FetchError::Tls(_))));
    let other = Arc::from(format!("https://other.example.test:{}/", server.port));
    assert!(matches!(server.fetcher().fetch(&wanted(&other)).await, Err(FetchError::Tls(_))));
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_to_an_internal_address_is_not_connected_to() {
    let server = Server::start(vec![reply("200 OK", "k")]).await;
    let closed = Settings::new(Some(&server.ca), Vec::new(), vec![server.port]).unwrap();
    for address in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1", "fd00::1", "0.0.0.0"] {
        let address: IpAddr = address.parse().unwrap();
        let fetcher = resolving(closed.clone(), move |_| vec![address]);
        assert_eq!(fetcher.fetch(&wanted(&server.url("/"))).await, Err(FetchError::Address), "{address}");
    }
    // Nor one that is written out.
    let literal = Arc::from(format!("https://127.0.0.1:{}/", server.port));
    assert_eq!(resolving(closed, |_| Vec::new()).fetch(&wanted(&literal)).await, Err(FetchError::Address));
    assert_eq!(server.asked(), 0);
    assert_eq!(server.fetcher().fetch(&wanted(&server.url("/"))).await, Ok(()));
}

#[tokio::test]
async fn a_name_that_resolves_anew_to_an_internal_address_gains_nothing() {
    let server = Server::start(vec![reply("200 OK", "k")]).await;
    let inside = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), server.port)).await.unwrap();
    let resolved = Arc::new(AtomicUsize::new(0));
    let counts = resolved.clone();
    let fetcher = resolving(server.settings(), move |_| match counts.fetch_add(1, Ordering::SeqCst) {
        0 => vec![Ipv4Addr::LOCALHOST.into()],
        _ => vec![Ipv4Addr::new(127, 0, 0, 2).into()],
    });
    assert_eq!(fetcher.fetch(&wanted(&server.url("/a"))).await, Ok(()));
    assert_eq!(resolved.load(Ordering::SeqCst), 1, "what was judged is what was connected to");
    assert_eq!(fetcher.fetch(&wanted(&server.url("/b"))).await, Err(FetchError::Address));
    let met = tokio::time::timeout(Duration::from_millis(50), inside.accept()).await;
    assert!(met.is_err(), "the inside was connected to");
}

#[tokio::test]
async fn of_several_addresses_only_those_that_may_be_reached_are_tried() {
    let server = Server::start(vec![reply("200 OK", "k")]).await;
    let inside = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), server.port)).await.unwrap();
    let both = [Ipv4Addr::new(127, 0, 0, 2).into(), Ipv4Addr::LOCALHOST.into()];
    let fetcher = resolving(server.settings(), move |_| both.to_vec());
    assert_eq!(fetcher.fetch(&wanted(&server.url("/"))).await, Ok(()));
    let met = tokio::time::timeout(Duration::from_millis(50), inside.accept()).await;
    assert!(met.is_err(), "the inside was connected to");
}

#[tokio::test]
async fn a_url_that_may_not_be_fetched_is_not_resolved() {
    let server = Server::start(vec![reply("200 OK", "k")]).await;
    let fetcher = resolving(server.settings(), |name| panic!("{name} was resolved"));
    for url in [
        "http://keys.example.test/",
        "https://u@keys.example.test/",
        "https://keys.example.test:22/",
        "https://keys.example.test/#x",
    ] {
        assert!(matches!(fetcher.fetch(&wanted(&Arc::from(url))).await, Err(FetchError::Url(_))), "{url}");
    }
}

#[tokio::test]
async fn a_reload_keeps_what_was_fetched() {
    let server = Server::start(vec![reply("200 OK", "k")]).await;
    let (fetcher, url) = (server.fetcher(), server.url("/"));
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Ok(()));
    fetcher.configure(server.settings());
    assert!(here(&fetcher, &url).is_some());
}

/// A CA that was taken out of the configuration may be in other hands.
#[tokio::test]
async fn a_reload_with_other_rules_forgets_what_was_fetched_by_the_old_ones() {
    let gate = Arc::new(Notify::new());
    let slow = Reply { gate: Some(gate.clone()), ..reply("200 OK", "slow") };
    let server = Server::start(vec![reply("200 OK", "k"), slow]).await;
    let (fetcher, url, late) = (server.fetcher(), server.url("/"), server.url("/late"));
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Ok(()));
    let flying = tokio::spawn({
        let (fetcher, late) = (fetcher.clone(), late.clone());
        async move { fetcher.fetch(&wanted(&late)).await }
    });
    while server.asked() < 2 {
        tokio::task::yield_now().await;
    }
    fetcher.configure(Settings::new(None, Vec::new(), Vec::new()).unwrap());
    assert!(here(&fetcher, &url).is_none());
    gate.notify_one();
    assert_eq!(flying.await.unwrap(), Ok(()), "whoever waits looks again");
    assert!(here(&fetcher, &late).is_none(), "nor what was under way");
}

#[test]
fn roots_that_are_no_certificates_are_told() {
    assert_eq!(
        Settings::new(Some(b"no certificate"), Vec::new(), Vec::new()).err().as_deref(),
        Some("no certificate in it")
    );
}

#[tokio::test]
async fn a_key_that_is_not_in_the_set_yet_does_not_cause_a_fetch_within_the_minute() {
    let server = Server::start(vec![reply("200 OK", "one"), reply("200 OK", "two")]).await;
    let (fetcher, url) = (server.fetcher(), server.url("/"));
    assert_eq!(fetcher.fetch(&wanted(&url)).await, Ok(()));
    let newer_than: Option<UnixMillis> = Some(here(&fetcher, &url).unwrap().fetched_at);
    assert_eq!(fetcher.fetch(&Wanted { newer_than, ..wanted(&url) }).await, Err(FetchError::TooSoon));
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_visit_wants_a_2xx_and_keeps_nothing() {
    let server =
        Server::start(vec![reply("204 Fine", ""), reply("302 Found\r\nlocation: /", ""), reply("403 No", "")]).await;
    let (fetcher, url) = (server.fetcher(), server.url("/?Action=ConfirmSubscription&Token=t"));
    assert_eq!(fetcher.visit(&url).await, Ok(()));
    assert_eq!(fetcher.visit(&url).await, Err(FetchError::Redirect));
    assert_eq!(fetcher.visit(&url).await, Err(FetchError::Status(403)));
    assert!(matches!(fetcher.visit("http://keys.example.test/").await, Err(FetchError::Url(_))));
    assert!(matches!(fetcher.look_up(&url), Lookup::Missing));
    assert_eq!(server.asked(), 3);
}
