//! Keys that the gateway fetches: from where it may, once for many, kept, and never waited for in vain.

use crate::support::certs::Authority;
use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Answer, Gate, Gateway, Request, Upstream, eventually};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// An https server on a loopback address, whose answer can be changed, and which counts.
struct KeyServer {
    port: u16,
    answer: Arc<Mutex<Vec<u8>>>,
    asked: Arc<Mutex<usize>>,
}

impl KeyServer {
    /// Answers wait until the gate is open.
    fn start(folder: &Folder, authority: &Authority, gate: Gate) -> Self {
        let pair = authority.server("keys", "DNS:localhost");
        let certificate =
            CertificateDer::from_pem_slice(&std::fs::read(pair.certificate).expect("written")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(&std::fs::read(pair.key).expect("written")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider's own versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("the key is the certificate's");
        folder.write("keys-ca.pem", std::fs::read(authority.pem()).expect("written"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("any port");
        let server =
            Self { port: listener.local_addr().expect("bound").port(), answer: Arc::default(), asked: Arc::default() };
        let (config, answer, asked) = (Arc::new(config), server.answer.clone(), server.asked.clone());
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let (config, answer, asked, gate) = (config.clone(), answer.clone(), asked.clone(), gate.clone());
                std::thread::spawn(move || {
                    let mut tls =
                        rustls::StreamOwned::new(rustls::ServerConnection::new(config).expect("a connection"), tcp);
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") {
                        // A client that does not trust this server breaks off.
                        if !matches!(tls.read(&mut byte), Ok(1)) {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    *asked.lock().expect("no other panicked") += 1;
                    gate.pass();
                    let answer = answer.lock().expect("no other panicked").clone();
                    // It may have given up meanwhile.
                    let _ = tls.write_all(&answer).and_then(|()| tls.flush());
                    tls.conn.send_close_notify();
                    let _ = tls.flush();
                });
            }
        });
        server
    }

    fn say(&self, head: &str, body: &str) {
        let answer = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        *self.answer.lock().expect("no other panicked") = answer.into_bytes();
    }

    fn asked(&self) -> usize {
        *self.asked.lock().expect("no other panicked")
    }

    fn configuration(&self, upstream: &Upstream, fetch: &str) -> String {
        format!(
            "{PLAIN}{}\n[sources.tokens]\npath = \"/tokens\"\nupstream = \"app\"\n{}\n{fetch}",
            upstream.table(),
            format_args!(
                "jwt = {{ header = \"Authorization\", prefix = \"Bearer \", algorithms = [\"ES256\"], \
                 issuer = [\"https://issuer.example.com\"], audience = [\"me\"], \
                 jwks_url = \"https://localhost:{}/jwks.json\" }}",
                self.port
            )
        )
    }

    fn fetch_table(&self) -> String {
        format!("[fetch]\nca = \"keys-ca.pem\"\nallow_addresses = [\"127.0.0.0/8\"]\nallow_ports = [{}]\n", self.port)
    }
}

struct Signer {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("just made");
        Self { id, pair }
    }

    fn set(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let coordinate = |range: std::ops::Range<usize>| BASE64URL.encode(&point[range]);
        serde_json::json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": coordinate(1..33), "y": coordinate(33..65),
        }] })
        .to_string()
    }

    fn request(&self) -> Request {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let header = serde_json::json!({ "alg": "ES256", "kid": self.id });
        let claims = serde_json::json!({
            "iss": "https://issuer.example.com", "aud": "me", "iat": now, "exp": now + 300,
        });
        let encoded = |value: &serde_json::Value| BASE64URL.encode(value.to_string());
        let signed = format!("{}.{}", encoded(&header), encoded(&claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        let token = format!("{signed}.{}", BASE64URL.encode(signature.as_ref()));
        Request::post("/tokens", "{}").header("Authorization", format!("Bearer {token}"))
    }
}

struct Stage {
    folder: Arc<Folder>,
    keys: KeyServer,
    upstream: Upstream,
}

impl Stage {
    fn set() -> Self {
        let open = Gate::default();
        open.open();
        Self::behind(open)
    }

    fn behind(gate: Gate) -> Self {
        let folder = Arc::new(Folder::new());
        let authority = Authority::new(&folder, "key-authority");
        let keys = KeyServer::start(&folder, &authority, gate);
        Self { folder, keys, upstream: Upstream::start() }
    }

    fn gateway(&self, fetch: &str) -> Gateway {
        Gateway::start_in(self.folder.clone(), &self.keys.configuration(&self.upstream, fetch))
    }
}

fn reason(gateway: &Gateway, answer: &Answer) -> String {
    gateway.audit_of(&answer.request_id())["outcome"].as_str().unwrap_or_default().to_owned()
}

fn fetches(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric("hookward_fetches_total", &[("host", "localhost"), ("result", result)])
}

#[test]
fn a_token_is_proven_by_a_key_set_that_is_fetched_once() {
    let stage = Stage::set();
    let signer = Signer::new("one");
    stage.keys.say("200 OK", &signer.set());
    let gateway = stage.gateway(&stage.keys.fetch_table());
    for _ in 0..3 {
        assert_eq!(signer.request().send(gateway.public()).status, 200);
    }
    assert_eq!(stage.keys.asked(), 1);
    assert_eq!(fetches(&gateway, "ok") as u64, 1);
    // One of another key under the same name is a forgery, and not worth a fetch.
    let forged = Signer::new("one").request().send(gateway.public());
    assert_eq!((forged.status, reason(&gateway, &forged).as_str()), (401, "bad_signature"));
    // Nor is a name that the set, fetched this minute, lacks.
    let unknown = Signer::new("two").request().send(gateway.public());
    assert_eq!((unknown.status, reason(&gateway, &unknown).as_str()), (401, "untrusted_key"));
    assert_eq!((stage.keys.asked(), stage.upstream.count()), (1, 3));
}

#[test]
fn many_at_once_cause_one_fetch_and_wait_for_it() {
    let gate = Gate::default();
    let stage = Stage::behind(gate.clone());
    let signer = Signer::new("one");
    stage.keys.say("200 OK", &signer.set());
    let gateway = stage.gateway(&stage.keys.fetch_table());
    let address = gateway.public();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let request = signer.request();
            std::thread::spawn(move || request.send(address).status)
        })
        .collect();
    eventually("the key server is asked", || (stage.keys.asked() == 1).then_some(()));
    gate.open();
    for one in waiting {
        assert_eq!(one.join().unwrap(), 200);
    }
    assert_eq!(stage.keys.asked(), 1);
}

#[test]
fn a_key_that_cannot_be_fetched_is_503_and_worth_trying_again() {
    for (head, result) in [
        ("302 Found\r\nlocation: https://localhost/", "redirect"),
        ("500 Internal Server Error", "bad_status"),
        ("404 Not Found", "bad_status"),
    ] {
        let stage = Stage::set();
        stage.keys.say(head, "");
        let gateway = stage.gateway(&stage.keys.fetch_table());
        for _ in 0..3 {
            let answer = Signer::new("one").request().send(gateway.public());
            assert_eq!((answer.status, reason(&gateway, &answer).as_str()), (503, "key_unavailable"), "{head}");
            assert!(answer.header("retry-after").is_some(), "{head}");
        }
        assert_eq!((stage.keys.asked(), stage.upstream.count()), (1, 0), "{head}: not again within the minute");
        assert_eq!(fetches(&gateway, result) as u64, 1, "{head}");
    }
}

#[test]
fn internal_addresses_and_ports_are_fetched_from_only_where_the_configuration_says_so() {
    let without = |line: &str, stage: &Stage| {
        let table = stage.keys.fetch_table();
        table.lines().filter(|kept| !kept.starts_with(line)).collect::<Vec<_>>().join("\n")
    };
    for (line, host, result) in [
        ("allow_addresses", "localhost", "refused_address"),
        ("allow_ports", "other", "refused_url"),
        ("ca", "localhost", "tls_error"),
    ] {
        let stage = Stage::set();
        let signer = Signer::new("one");
        stage.keys.say("200 OK", &signer.set());
        let mut gateway = stage.gateway(&without(line, &stage));
        let answer = signer.request().send(gateway.public());
        assert_eq!((answer.status, reason(&gateway, &answer).as_str()), (503, "key_unavailable"), "{line}");
        assert_eq!(stage.keys.asked(), 0, "{line}");
        let counted = gateway.metric("hookward_fetches_total", &[("host", host), ("result", result)]);
        assert_eq!(counted as u64, 1, "{line}");
        if line == "allow_ports" {
            // Nothing was tried, so nothing is waited for: a reload that allows it is in force at once.
            assert!(gateway.reload(&stage.keys.configuration(&stage.upstream, &stage.keys.fetch_table())));
            assert_eq!(signer.request().send(gateway.public()).status, 200);
        }
    }
}

/// GitHub's form of a list: each key in PEM, under its id.
fn published(signer: &Signer) -> String {
    let spki = [
        hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").expect("hex"),
        signer.pair.public_key().as_ref().to_vec(),
    ];
    let key = base64::engine::general_purpose::STANDARD.encode(spki.concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n");
    serde_json::json!({ "public_keys": [{ "key_identifier": signer.id, "key": pem, "is_current": true }] }).to_string()
}

#[test]
fn a_signature_is_proven_by_a_key_of_the_senders_published_list() {
    let stage = Stage::set();
    let signer = Signer::new("one");
    stage.keys.say("200 OK", &published(&signer));
    let source = format!(
        "{PLAIN}{}\n[sources.scanning]\npath = \"/scanning\"\nupstream = \"app\"\n\
         [sources.scanning.verify]\nalgorithm = \"ecdsa-p256-sha256-raw\"\nmessage = \"{{body}}\"\n\
         signature = {{ header = \"X-Signature\", encoding = \"base64\" }}\nkey_id = {{ header = \"X-Key\" }}\n\
         keys_url = \"https://localhost:{}/keys\"\n{}",
        stage.upstream.table(),
        stage.keys.port,
        stage.keys.fetch_table()
    );
    let gateway = Gateway::start_in(stage.folder.clone(), &source);
    let send = |signer: &Signer, id: &str, body: &str, signed: &str| {
        let signature = signer.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        let signature = base64::engine::general_purpose::STANDARD.encode(signature.as_ref());
        let request = Request::post("/scanning", body).header("X-Key", id).header("X-Signature", signature);
        let answer = request.send(gateway.public());
        (answer.status, reason(&gateway, &answer))
    };
    // Who says no more than that costs us no fetch.
    let bare = Request::post("/scanning", "1").header("X-Key", "one").send(gateway.public());
    assert_eq!((bare.status, stage.keys.asked()), (401, 0));
    assert_eq!(send(&signer, "one", "1", "1"), (200, "accepted".to_owned()));
    assert_eq!(send(&signer, "one", "2", "1"), (401, "bad_signature".to_owned()));
    assert_eq!(send(&Signer::new("one"), "one", "3", "3"), (401, "bad_signature".to_owned()));
    assert_eq!(send(&signer, "two", "4", "4"), (401, "untrusted_key".to_owned()));
    assert_eq!((stage.keys.asked(), stage.upstream.count()), (1, 1));
}

#[test]
fn a_reload_keeps_the_keys() {
    let stage = Stage::set();
    let signer = Signer::new("one");
    stage.keys.say("200 OK", &signer.set());
    let mut gateway = stage.gateway(&stage.keys.fetch_table());
    assert_eq!(signer.request().send(gateway.public()).status, 200);
    stage.keys.say("500 Oops", "");
    assert!(gateway.reload(&stage.keys.configuration(&stage.upstream, &stage.keys.fetch_table())));
    assert_eq!(signer.request().send(gateway.public()).status, 200);
    assert_eq!(stage.keys.asked(), 1);
}

#[test]
fn a_source_that_observes_fetches_too() {
    let stage = Stage::set();
    let signer = Signer::new("one");
    stage.keys.say("200 OK", &signer.set());
    let configuration = stage.keys.configuration(&stage.upstream, &stage.keys.fetch_table());
    let observing = configuration.replace("path = \"/tokens\"", "path = \"/tokens\"\nmode = \"observe\"");
    let gateway = Gateway::start_in(stage.folder.clone(), &observing);
    let answer = signer.request().send(gateway.public());
    assert_eq!(answer.status, 200);
    let verified = stage.upstream.received()[0].header("x-hookward-verified");
    assert!(verified.is_some(), "what was proven is told to the upstream");
    assert_eq!(stage.keys.asked(), 1);
}
