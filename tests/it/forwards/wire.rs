//! Upstreams that speak HTTP/2 or TLS, and senders that show a certificate.

use super::{delivery, source};
use crate::support::gateway::{Folder, PLAIN, hookward};
use crate::support::http::{connect, read_answer};
use crate::support::{Gateway, Reply, Upstream};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio_rustls::TlsAcceptor;

/// What a service saw of one request and its connection.
#[derive(Clone, Debug)]
struct Seen {
    version: http::Version,
    uri: http::Uri,
    headers: http::HeaderMap,
    body: bytes::Bytes,
    connection: usize,
    server_name: Option<String>,
    has_certificate: bool,
}

/// A service made of hyper and rustls, unlike the recording upstream: these protocols are not written by hand.
struct Service {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Service {
    /// Without TLS it speaks HTTP/2 and nothing else; with it, what is agreed.
    fn start(tls: Option<ServerConfig>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let record = seen.clone();
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        runtime.spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(serve(stream, acceptor.clone(), connection, record.clone()));
            }
        });
        Self { address, seen, runtime: Some(runtime) }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("the record").clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    stream: tokio::net::TcpStream,
    acceptor: Option<TlsAcceptor>,
    connection: usize,
    record: Arc<Mutex<Vec<Seen>>>,
) {
    let answer = move |server_name: Option<String>, has_certificate: bool| {
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (record, server_name) = (record.clone(), server_name.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (version, uri, headers) = (head.version, head.uri, head.headers);
                let seen = Seen { version, uri, headers, body, connection, server_name, has_certificate };
                record.lock().expect("the record").push(seen);
                Ok::<_, hyper::Error>(http::Response::new(Full::new(bytes::Bytes::from_static(b"served"))))
            }
        })
    };
    // How these connections end is what the gateway's answers show.
    let Some(acceptor) = acceptor else {
        let service = answer(None, false);
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http2.serve_connection(TokioIo::new(stream), service).await;
        return;
    };
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let session = stream.get_ref().1;
    let service = answer(session.server_name().map(str::to_owned), session.peer_certificates().is_some());
    if session.alpn_protocol() == Some(b"h2") {
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http2.serve_connection(TokioIo::new(stream), service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

#[test]
fn an_answer_that_is_cut_is_reset_towards_an_http_2_sender() {
    let upstream = Upstream::with(|_, number| {
        let length = if number == 0 { 100 } else { 9 };
        Reply::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nonly this").into_bytes())
    });
    let gateway = Gateway::start(&format!("{}{}", upstream.table(), source("github", "/github", "")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.public()).await.expect("a connection");
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.expect("HTTP/2");
        tokio::spawn(connection);
        for (number, whole) in [(0, false), (1, true)] {
            let delivery = delivery("/github", number);
            let mut request = http::Request::post("http://hooks.example.com/github");
            for (name, value) in &delivery.headers {
                request = request.header(name, value.as_slice());
            }
            let body = Full::new(bytes::Bytes::from(delivery.body));
            // The reset may overtake the head.
            let arrived = match sender.send_request(request.body(body).expect("a request")).await {
                Ok(answer) => answer.status() == 200 && answer.into_body().collect().await.is_ok(),
                Err(_) => false,
            };
            assert_eq!(arrived, whole, "{number}");
        }
    });
}

/// A CA, a server for `host` and a client, as PEM files in `FOLDER/NAME`.
fn authority(folder: &Folder, name: &str, host: &str) {
    let (code, _, said) = hookward(&folder.0, &["certs", name, "--host", host, "--client", "gateway.internal"]);
    assert_eq!(code, 0, "{said}");
}

fn chain(folder: &Folder, file: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(folder.path(file)).expect("a file").map(|one| one.expect("a certificate")).collect()
}

fn key(folder: &Folder, file: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(folder.path(file)).expect("a key")
}

fn roots(folder: &Folder, file: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in chain(folder, file) {
        roots.add(certificate).expect("a CA");
    }
    roots
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Shows `NAME`'s server certificate, and takes only clients of the same CA.
fn mutual_tls(folder: &Folder, name: &str, protocols: &[&str]) -> ServerConfig {
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(folder, &format!("{name}/ca.pem"))),
        provider(),
    );
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(chain(folder, &format!("{name}/server.pem")), key(folder, &format!("{name}/server.key")))
        .expect("a certificate");
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

#[test]
fn an_http_2_upstream_shares_a_connection_and_gets_the_same_headers() {
    let service = Service::start(None);
    let gateway = Gateway::start(&format!(
        "[upstreams.app]\nurls = [\"http://{}\"]\nprotocol = \"http2\"\n{}",
        service.address,
        source("github", "/github", "")
    ));
    let to = gateway.public();
    let answer = delivery("/github?a=1", 0)
        .header("Connection", "X-Hop")
        .header("X-Hop", "1")
        .header("TE", "trailers")
        .header("X-Tag", "b")
        .header("X-Tag", "a")
        .send(to);
    assert_eq!((answer.status, answer.text().as_str()), (200, "served"));
    std::thread::scope(|scope| {
        for number in 1..20 {
            scope.spawn(move || assert_eq!(delivery("/github", number).send(to).status, 200));
        }
    });
    let seen = service.seen();
    assert_eq!(seen.len(), 20);
    assert!(seen.iter().all(|one| one.version == http::Version::HTTP_2 && one.connection == 0));
    let first = &seen[0];
    // RFC 9113 §8.3.1: :authority, and no Host beside it that could say something else.
    assert_eq!(first.uri.to_string(), format!("http://{}/github?a=1", service.address));
    assert_eq!(first.body, "{\"number\":0}");
    let tags: Vec<_> = first.headers.get_all("x-tag").iter().collect();
    assert_eq!(tags, ["b", "a"]);
    for absent in ["host", "connection", "x-hop", "te", "transfer-encoding"] {
        assert!(!first.headers.contains_key(absent), "{absent}");
    }
    assert_eq!(first.headers.get("x-hookward-verified").map(|value| value.as_bytes()), Some(b"github".as_slice()));
    assert_eq!(first.headers.get("content-length").map(|value| value.as_bytes()), Some(b"12".as_slice()));
    assert_eq!(
        first.headers.get("x-forwarded-host").map(|value| value.as_bytes()),
        Some(b"hooks.example.com".as_slice())
    );
}

#[test]
fn a_tls_upstream_is_known_by_its_own_ca_and_name_and_knows_the_gateway_by_its_certificate() {
    let folder = Arc::new(Folder::new());
    authority(&folder, "internal", "orders.internal");
    for (protocols, version) in
        [(["h2", "http/1.1"].as_slice(), http::Version::HTTP_2), (&["http/1.1"], http::Version::HTTP_11)]
    {
        let service = Service::start(Some(mutual_tls(&folder, "internal", protocols)));
        let tls = "tls = { ca = \"internal/ca.pem\", certificate = \"internal/client.pem\", private_key = \"internal/client.key\", server_name = \"orders.internal\" }";
        let gateway = Gateway::start_in(
            folder.clone(),
            &format!(
                "{PLAIN}[upstreams.app]\nurls = [\"https://{}\"]\nconnect_timeout = \"20s\"\ntimeout = \"20s\"\n{tls}\n{}",
                service.address,
                source("github", "/github", "")
            ),
        );
        let answer = delivery("/github", 0).send(gateway.public());
        assert_eq!((answer.status, answer.text().as_str()), (200, "served"), "{version:?}");
        let seen = service.seen().remove(0);
        assert_eq!((seen.version, seen.has_certificate), (version, true));
        assert_eq!(seen.server_name.as_deref(), Some("orders.internal"));
    }
}

#[test]
fn a_tls_upstream_that_cannot_prove_itself_or_that_does_not_know_us_gets_nothing() {
    let folder = Arc::new(Folder::new());
    authority(&folder, "internal", "orders.internal");
    authority(&folder, "other", "orders.internal");
    let service = Service::start(Some(mutual_tls(&folder, "internal", &["http/1.1"])));
    let identity = |name: &str| format!("certificate = \"{name}/client.pem\", private_key = \"{name}/client.key\"");
    let upstream = |name: &str, tls: &str| {
        format!(
            "[upstreams.{name}]\nurls = [\"https://{}\"]\nconnect_timeout = \"20s\"\ntimeout = \"20s\"\ntls = {{ {tls} }}\n{}",
            service.address,
            source(name, &format!("/{name}"), &format!("upstream = \"{name}\""))
        )
    };
    let name = "server_name = \"orders.internal\"";
    let ours = identity("internal");
    let gateway = Gateway::start_in(
        folder.clone(),
        &[
            PLAIN.to_owned(),
            upstream("right", &format!("ca = \"internal/ca.pem\", {ours}, {name}")),
            upstream("wrong-ca", &format!("ca = \"other/ca.pem\", {ours}, {name}")),
            upstream("public-ca", &format!("{ours}, {name}")),
            upstream("wrong-name", &format!("ca = \"internal/ca.pem\", {ours}, server_name = \"users.internal\"")),
            // The certificate holds no address, and the url names one.
            upstream("no-name", &format!("ca = \"internal/ca.pem\", {ours}")),
            upstream("no-identity", &format!("ca = \"internal/ca.pem\", {name}")),
            upstream("wrong-identity", &format!("ca = \"internal/ca.pem\", {}, {name}", identity("other"))),
        ]
        .concat(),
    );
    assert_eq!(delivery("/right", 0).send(gateway.public()).status, 200);
    for wrong in ["wrong-ca", "public-ca", "wrong-name", "no-name"] {
        let answer = delivery(&format!("/{wrong}"), 0).send(gateway.public());
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{wrong}");
    }
    // TLS 1.3 tells a client of its refused certificate after the handshake: whether the request was written by then
    // is a matter of luck.
    for wrong in ["no-identity", "wrong-identity"] {
        let answer = delivery(&format!("/{wrong}"), 0).send(gateway.public());
        assert!(matches!(answer.status, 502 | 503), "{wrong}: {}", answer.status);
    }
    assert_eq!(service.seen().len(), 1);
}

#[test]
fn the_upstream_is_told_whose_certificate_the_sender_showed_and_that_it_came_over_https() {
    let folder = Arc::new(Folder::new());
    authority(&folder, "public", "hooks.example.com");
    let upstream = Upstream::start();
    let listener = "[listeners.public]\naddress = \"127.0.0.1:0\"\ntls = { certificate = \"public/server.pem\", private_key = \"public/server.key\", client_ca = \"public/ca.pem\" }\n";
    let configuration = format!(
        "{listener}{}{}{}",
        PLAIN.replace("[listeners.public]", "[listeners.plain]"),
        upstream.table(),
        source("github", "/github", "client_cert = { names = [\"gateway.internal\"] }")
    );
    let gateway = Gateway::start_in(folder.clone(), &configuration);
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots(&folder, "public/ca.pem"))
        .with_client_auth_cert(chain(&folder, "public/client.pem"), key(&folder, "public/client.key"))
        .expect("a certificate");
    let name = "hooks.example.com".try_into().expect("a name");
    let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
    let stream = connect(gateway.public()).expect("a connection");
    let mut stream = rustls::StreamOwned::new(session, stream);
    stream.write_all(&delivery("/github", 0).header("X-Hookward-Client-Cert", "CN=root").bytes()).expect("sent");
    assert_eq!(read_answer(&mut BufReader::new(stream)).expect("an answer").status, 200);

    let received = upstream.wait_for(1).remove(0);
    let subject = received.all("x-hookward-client-cert");
    assert_eq!(subject.len(), 1, "{subject:?}");
    assert!(subject[0].contains("CN=gateway.internal"), "{subject:?}");
    assert_eq!(received.header("x-hookward-verified").as_deref(), Some("github, client_cert"));
    assert_eq!(received.header("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(received.header("x-forwarded-port"), Some(gateway.public().port().to_string()));
    assert_eq!(received.header("forwarded").as_deref(), Some("for=127.0.0.1;host=\"hooks.example.com\";proto=https"));
}
