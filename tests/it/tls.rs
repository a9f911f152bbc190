//! Who may shake hands, and what a certificate proves. The peers are curl and openssl, the certificates openssl's.

use crate::support::certs::{Authority, Pair, path, x509};
use crate::support::curl::{Fetched, s_client};
use crate::support::gateway::Folder;
use crate::support::{Curl, Gateway, Upstream, eventually, http, sign};
use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

const URL: &str = "https://hooks.example.com";
const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n";

/// A server certificate for hooks.example.com, and a folder for everything else.
struct Stage {
    folder: Arc<Folder>,
    ca: Authority,
    server: Pair,
}

impl Stage {
    fn new() -> Self {
        let folder = Arc::new(Folder::new());
        let ca = Authority::new(&folder, "server-ca");
        let server = ca.server("hooks.example.com", "DNS:hooks.example.com");
        Self { folder, ca, server }
    }

    fn tls(&self, more: &str) -> String {
        let (certificate, key) = (path(&self.server.certificate), path(&self.server.key));
        format!(
            "[listeners.public]\naddress = \"127.0.0.1:0\"\ntls.certificate = {certificate:?}\ntls.private_key = {key:?}\n{more}\n{ADMIN}"
        )
    }

    fn start(&self, listener: &str, sources: &str) -> Gateway {
        Gateway::start_in(self.folder.clone(), &format!("{}{sources}", self.tls(listener)))
    }

    fn curl(&self, gateway: &Gateway) -> Curl {
        Curl::to(gateway.public(), &self.ca.pem())
    }
}

#[test]
fn an_early_refusal_reaches_an_http_2_client_that_is_still_sending() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let gateway = stage.start("", &github(&upstream));
    let small = stage.folder.write("small", b"{}");
    let large = stage.folder.write("large", vec![b' '; 3 << 20]);
    for round in 0..10 {
        for body in [&small, &large] {
            let body = format!("@{}", path(body));
            let fetched =
                stage.curl(&gateway).with(&["--http2", "--data-binary", &body]).run(&format!("{URL}/nobody"), b"");
            assert_eq!((fetched.exit, fetched.status), (0, 404), "round {round}: {fetched:?}");
        }
    }
}

fn github(upstream: &Upstream) -> String {
    crate::accepts::github(upstream)
}

/// A GitHub push, signed, each with a body of its own.
fn signed(curl: Curl, body: &str) -> Fetched {
    curl.header("X-Hub-Signature-256", &sign::github(crate::accepts::SECRET, body.as_bytes()))
        .post(&format!("{URL}/github"), body.as_bytes())
}

/// A source that a certificate alone opens.
fn by_certificate(name: &str, rule: &str) -> String {
    format!("\n[sources.{name}]\npath = \"/{name}\"\nupstream = \"app\"\nclient_cert = {{ {rule} }}\n")
}

fn handshakes(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric("hookward_tls_handshakes_total", &[("listener", "public"), ("result", result)])
}

/// No request was answered: TLS itself failed.
fn assert_no_handshake(fetched: &Fetched) {
    assert_ne!(fetched.exit, 0, "{fetched:?}");
    assert_eq!(fetched.status, 0, "{fetched:?}");
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_1_1_is_not() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let gateway = stage.start("", &github(&upstream));
    for version in ["1.2", "1.3"] {
        let curl = stage.curl(&gateway).with(&[&format!("--tlsv{version}"), "--tls-max", version]);
        assert_eq!(signed(curl, &format!("{{\"tls\":{version}}}")).status, 200, "TLS {version}");
    }
    assert_eq!(handshakes(&gateway, "ok"), 2.0);
    // The twin shows that this openssl would speak old versions if it were let.
    let old = |version: &str| {
        s_client(gateway.public(), &[version, "-cipher", "ALL:@SECLEVEL=0", "-servername", "hooks.example.com"], "Q\n")
    };
    let (worked, text) = old("-tls1_2");
    assert!(worked && text.contains("Protocol  : TLSv1.2"), "{text}");
    let (worked, text) = old("-tls1_1");
    assert!(!worked && text.contains("SSL alert number"), "{text}");
    eventually("the failure is counted", || (handshakes(&gateway, "failed") == 1.0).then_some(()));
}

#[test]
fn alpn_chooses_between_http_2_and_http_1_1() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let gateway = stage.start("", &github(&upstream));
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let fetched = signed(stage.curl(&gateway).with(&[option]), &format!("{{\"http\":{version}}}"));
        assert_eq!((fetched.status, fetched.version.as_str()), (200, version), "{option}");
    }
    let offered = |protocols: &str| s_client(gateway.public(), &["-alpn", protocols], "Q\n").1;
    assert!(offered("http/1.1,h2").contains("ALPN protocol: h2"));
    assert!(offered("http/1.1").contains("ALPN protocol: http/1.1"));
    let text = offered("gopher");
    assert!(text.contains("no application protocol"), "{text}");
}

#[test]
fn the_server_name_picks_the_certificate_and_another_host_on_that_connection_is_misdirected() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let other = stage.ca.server("other", "DNS:other.example.org,DNS:*.wild.example.org");
    let listener = format!(
        "[listeners.public]\naddress = \"127.0.0.1:0\"\ntls.certificates = [{}]\n{ADMIN}",
        [&stage.server, &other]
            .map(|pair| format!(
                "{{ certificate = {:?}, private_key = {:?} }}",
                path(&pair.certificate),
                path(&pair.key)
            ))
            .join(", ")
    );
    let gateway = Gateway::start_in(stage.folder.clone(), &format!("{listener}{}", github(&upstream)));
    let shown = |arguments: &[&str]| s_client(gateway.public(), arguments, "Q\n").1;
    for (name, subject) in [
        ("hooks.example.com", "hooks.example.com"),
        ("OTHER.example.org", "other"),
        ("a.wild.example.org", "other"),
        // Nobody's name, and none: the first certificate.
        ("stranger.example.net", "hooks.example.com"),
    ] {
        let text = shown(&["-servername", name]);
        assert!(text.contains(&format!("subject=CN = {subject}\n")), "{name}: {text}");
    }
    assert!(shown(&["-noservername"]).contains("subject=CN = hooks.example.com\n"));

    let to = |host: &str, body: &str| signed(stage.curl(&gateway).with(&["--http1.1"]).header("Host", host), body);
    let misdirected = to("other.example.org", "{\"n\":1}");
    assert_eq!(misdirected.status, 421);
    assert_eq!(gateway.audit_of(&misdirected.request_id)["outcome"], "misdirected");
    // HTTP/2 says it in :authority.
    let curl = stage.curl(&gateway).with(&["--http2"]).header("Host", "other.example.org");
    assert_eq!(signed(curl, "{\"n\":2}").status, 421);
    assert_eq!(upstream.count(), 0);
    for (number, host) in ["hooks.example.com", "HOOKS.example.com:8443", "hooks.example.com."].into_iter().enumerate()
    {
        assert_eq!(to(host, &format!("{{\"n\":1{number}}}")).status, 200, "{host}");
    }
}

/// Everybody who might knock: one of ours, and those who are not, or not any more, or not yet.
struct Clients {
    good: Pair,
    stranger: Pair,
    expired: Pair,
    future: Pair,
    revoked: Pair,
    tls: String,
}

impl Clients {
    fn new(stage: &Stage) -> Self {
        let ca = Authority::new(&stage.folder, "client-ca");
        let names = "DNS:sender.example.com";
        let good = ca.client("good", names);
        let stranger = Authority::new(&stage.folder, "other-ca").client("stranger", names);
        let expired = ca.expired_client("expired", names);
        let future = ca.future_client("future", names);
        let revoked = ca.client("revoked", names);
        ca.revoke(&revoked);
        let tls = format!("tls.client_ca = {:?}\ntls.client_crl = {:?}\n", path(&ca.pem()), path(&ca.list()));
        Self { good, stranger, expired, future, revoked, tls }
    }

    fn bad(&self) -> [(&'static str, &Pair); 4] {
        [
            ("other CA", &self.stranger),
            ("expired", &self.expired),
            ("not yet valid", &self.future),
            ("revoked", &self.revoked),
        ]
    }
}

#[test]
fn asked_for_a_certificate_a_client_may_have_none_and_then_the_source_decides() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let clients = Clients::new(&stage);
    let sources = format!("{}{}", github(&upstream), by_certificate("acme", "names = [\"sender.example.com\"]"));
    let gateway = stage.start(&clients.tls, &sources);
    let acme = format!("{URL}/acme");

    let refused = stage.curl(&gateway).post(&acme, b"{}");
    assert_eq!(refused.status, 403);
    assert_eq!(gateway.audit_of(&refused.request_id)["outcome"], "client_cert_missing");
    assert_eq!(signed(stage.curl(&gateway), "{\"n\":1}").status, 200, "a source that asks for none");
    assert_eq!(stage.curl(&gateway).presenting(&clients.good).post(&acme, b"{}").status, 200);
    assert_eq!(signed(stage.curl(&gateway).presenting(&clients.good), "{\"n\":2}").status, 200);

    let before = upstream.count();
    for (position, (what, pair)) in clients.bad().into_iter().enumerate() {
        for version in ["1.2", "1.3"] {
            let curl = stage.curl(&gateway).presenting(pair).with(&["--tls-max", version]);
            let fetched = curl.post(&acme, b"{}");
            assert_no_handshake(&fetched);
        }
        let counted = 2.0 * (position + 1) as f64;
        eventually(what, || (handshakes(&gateway, "failed") == counted).then_some(()));
    }
    // Not even at a source that asks for no certificate.
    assert_no_handshake(&signed(stage.curl(&gateway).presenting(&clients.revoked), "{\"n\":3}"));
    assert_eq!(upstream.count(), before);
    assert_eq!(gateway.outcome("acme", "accepted"), 1);
}

#[test]
fn where_certificates_are_required_nobody_without_a_good_one_gets_as_far_as_http() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let clients = Clients::new(&stage);
    let gateway = stage.start(&format!("{}tls.client_auth = \"require\"", clients.tls), &github(&upstream));
    assert_no_handshake(&signed(stage.curl(&gateway), "{\"n\":1}"));
    for (_, pair) in clients.bad() {
        assert_no_handshake(&signed(stage.curl(&gateway).presenting(pair), "{\"n\":1}"));
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(signed(stage.curl(&gateway).presenting(&clients.good), "{\"n\":1}").status, 200);
    assert_eq!(handshakes(&gateway, "ok"), 1.0);
    eventually("each failure is counted", || (handshakes(&gateway, "failed") == 5.0).then_some(()));
}

#[test]
fn a_source_takes_the_certificates_it_names_and_no_others() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let ca = Authority::new(&stage.folder, "client-ca");
    let by_dns = ca.client("by-dns", "DNS:Sender.Example.com");
    let by_uri = ca.client("by-uri", "URI:spiffe://example.com/Sender");
    // Whoever can have a common name signed, but no alternative name, is nobody.
    let by_common_name = ca.client_called("by-cn", "/CN=sender.example.com", "");
    let other = ca.client("other", "DNS:other.example.com,DNS:x.sender.example.com");
    let wildcard = ca.client("wildcard", "DNS:*.example.com");
    let fingerprint = x509(&by_dns.certificate, &["-fingerprint", "-sha256"]);
    let fingerprint = fingerprint.split_once('=').expect("a fingerprint").1.to_owned();
    let sources = [
        upstream.table(),
        by_certificate("dns", "names = [\"sender.example.com\"]"),
        by_certificate("uri", "names = [\"spiffe://example.com/Sender\"]"),
        by_certificate("print", &format!("fingerprints = [\"sha256:{fingerprint}\"]")),
        by_certificate("any", "required = true"),
    ]
    .concat();
    let gateway = stage.start(&format!("tls.client_ca = {:?}", path(&ca.pem())), &sources);
    let status = |pair: &Pair, source: &str| {
        let fetched = stage.curl(&gateway).presenting(pair).post(&format!("{URL}/{source}"), b"{}");
        assert_eq!(fetched.exit, 0, "{fetched:?}");
        let outcome = gateway.audit_of(&fetched.request_id)["outcome"].as_str().expect("an outcome").to_owned();
        (fetched.status, outcome)
    };
    let yes = (200, "accepted".to_owned());
    let no = (403, "client_cert_not_allowed".to_owned());
    for (pair, name, taken) in [
        (&by_dns, "by dNSName", [true, false, true, true]),
        (&by_uri, "by URI", [false, true, false, true]),
        (&by_common_name, "by common name alone", [false, false, false, true]),
        (&other, "another name", [false, false, false, true]),
        (&wildcard, "a wildcard", [false, false, false, true]),
    ] {
        for (source, taken) in ["dns", "uri", "print", "any"].into_iter().zip(taken) {
            assert_eq!(status(pair, source), if taken { yes.clone() } else { no.clone() }, "{name} at {source}");
        }
    }
}

#[test]
fn a_subject_is_the_whole_name_however_it_is_spaced_and_ordered_and_cannot_be_forged_from_within() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let ca = Authority::new(&stage.folder, "client-ca");
    let genuine = ca.client_called("genuine", "/O=Example/CN=sender", "");
    let longer = ca.client_called("longer", "/O=Example/OU=Guests/CN=sender", "");
    // One part whose value reads like two.
    let forged = ca.client_called("forged", "/O=Example, CN=sender", "");
    let comma = ca.client_called("comma", "/O=Example, Inc./CN=sender", "");
    let sources = [
        upstream.table(),
        by_certificate("rfc4514", "subject = \"CN=sender,O=Example\""),
        by_certificate("spaced", "subject = \"CN=sender, O=Example\""),
        by_certificate("openssl", "subject = \"O = Example, CN = sender\""),
        by_certificate("escaped", "subject = 'CN=sender,O=Example\\, Inc.'"),
    ]
    .concat();
    let gateway = stage.start(&format!("tls.client_ca = {:?}", path(&ca.pem())), &sources);
    let status = |pair: &Pair, source: &str| {
        stage.curl(&gateway).presenting(pair).post(&format!("{URL}/{source}"), b"{}").status
    };
    for source in ["rfc4514", "spaced", "openssl"] {
        assert_eq!(status(&genuine, source), 200, "{source}");
        for (what, pair) in [("longer", &longer), ("forged", &forged), ("comma", &comma)] {
            assert_eq!(status(pair, source), 403, "{what} at {source}");
        }
    }
    assert_eq!(status(&comma, "escaped"), 200);
    assert_eq!(status(&genuine, "escaped"), 403);
}

#[test]
fn behind_a_listener_that_trusts_two_authorities_a_source_takes_its_own_alone() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let (ours, theirs) = (Authority::new(&stage.folder, "our-ca"), Authority::new(&stage.folder, "their-ca"));
    let names = "DNS:sender.example.com";
    let (our_client, their_client) = (ours.client("client", names), theirs.client("client", names));
    let both = [ours.pem(), theirs.pem()].map(|pem| fs::read_to_string(pem).expect("a certificate")).concat();
    let both = stage.folder.write("both.pem", both);
    let rule = |ca: &Authority| format!("names = [\"sender.example.com\"], ca = {:?}", path(&ca.pem()));
    let sources =
        [upstream.table(), by_certificate("ours", &rule(&ours)), by_certificate("theirs", &rule(&theirs))].concat();
    let gateway = stage.start(&format!("tls.client_ca = {:?}", path(&both)), &sources);
    for (pair, name) in [(&our_client, "ours"), (&their_client, "theirs")] {
        for source in ["ours", "theirs"] {
            let fetched = stage.curl(&gateway).presenting(pair).post(&format!("{URL}/{source}"), b"{}");
            assert_eq!(fetched.status, if name == source { 200 } else { 403 }, "{name} at {source}: {fetched:?}");
        }
    }
    assert_eq!((gateway.outcome("ours", "client_cert_not_allowed"), gateway.outcome("ours", "accepted")), (1, 1));
}

#[test]
fn the_upstream_learns_whose_certificate_it_was_and_that_it_was_checked() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let ca = Authority::new(&stage.folder, "client-ca");
    let client = ca.client_called("client", "/O=Exämple, Inc./CN=sender", "DNS:sender.example.com");
    let sources = format!(
        "{}client_cert = {{ names = [\"sender.example.com\"] }}\n{}",
        github(&upstream),
        by_certificate("acme", "required = true")
    );
    let gateway = stage.start(&format!("tls.client_ca = {:?}", path(&ca.pem())), &sources);
    let curl = stage.curl(&gateway).presenting(&client).header("X-Hookward-Client-Cert", "CN=forged");
    let first = signed(curl.clone(), "{}");
    let second = curl.post(&format!("{URL}/acme"), b"{}");
    assert_eq!((first.status, second.status), (200, 200));
    let received = upstream.wait_for(2);
    // RFC 4514, in ASCII: what a header can carry.
    let subject = "CN=sender,O=Ex\\C3\\A4mple\\, Inc.";
    for (request, verified) in received.iter().zip(["github, client_cert", "client_cert"]) {
        assert_eq!(request.all("x-hookward-client-cert"), [subject]);
        assert_eq!(request.all("x-hookward-verified"), [verified]);
    }
    assert_eq!(gateway.audit_of(&first.request_id)["certificate"], subject);
}

#[test]
fn a_session_carries_nobodys_identity_to_another_connection() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let clients = Clients::new(&stage);
    let sources = format!("{}{}", upstream.table(), by_certificate("acme", "names = [\"sender.example.com\"]"));
    let gateway = stage.start(&clients.tls, &sources);
    let request = "POST /acme HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let session = stage.folder.path("session.pem");
    let ca = stage.ca.pem();
    for version in ["-tls1_2", "-tls1_3"] {
        let run = |more: &[&str]| {
            let fixed = [version, "-servername", "hooks.example.com", "-CAfile", path(&ca), "-ign_eof"];
            s_client(gateway.public(), &[&fixed[..], more].concat(), request).1
        };
        let _ = fs::remove_file(&session);
        let (certificate, key) = (path(&clients.good.certificate), path(&clients.good.key));
        let text = run(&["-cert", certificate, "-key", key, "-sess_out", path(&session)]);
        assert!(text.contains("HTTP/1.1 200"), "{version}: {text}");
        if !session.exists() {
            // Nothing was given that could be resumed: as good.
            continue;
        }
        let text = run(&["-sess_in", path(&session)]);
        assert!(text.contains("HTTP/1.1 403"), "{version}: {text}");
        assert!(text.contains("New, TLS") && !text.contains("Reused, TLS"), "{version}: {text}");
    }
    assert_eq!(gateway.outcome("acme", "accepted"), 2);
}

#[test]
fn a_session_resumes_and_ends_with_the_reload() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let mut gateway = stage.start("", &github(&upstream));
    let session = stage.folder.path("session.pem");
    let ca = stage.ca.pem();
    let request = "GET /nobody HTTP/1.1\r\nHost: hooks.example.com\r\nConnection: close\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let run_as = |gateway: &Gateway, name: &str, more: &[&str]| {
            let fixed = [version, "-servername", name, "-CAfile", path(&ca), "-ign_eof"];
            s_client(gateway.public(), &[&fixed[..], more].concat(), request).1
        };
        let run = |gateway: &Gateway, more: &[&str]| {
            let text = run_as(gateway, "hooks.example.com", more);
            assert!(text.contains("HTTP/1.1 404"), "{version}: {text}");
            text
        };
        run(&gateway, &["-sess_out", path(&session)]);
        assert!(run(&gateway, &["-sess_in", path(&session)]).contains("Reused, TLS"), "{version} resumes");
        // Another name may have another certificate.
        let text = run_as(&gateway, "other.example.com", &["-sess_in", path(&session)]);
        assert!(text.contains("New, TLS") && !text.contains("Reused, TLS"), "{version}: {text}");
        let text = fs::read_to_string(stage.folder.path("gateway.toml")).expect("the configuration");
        assert!(gateway.reload(&text));
        let text = run(&gateway, &["-sess_in", path(&session)]);
        assert!(text.contains("New, TLS") && !text.contains("Reused, TLS"), "{version}: {text}");
    }
}

#[test]
fn a_client_that_never_shakes_hands_is_closed_in_time() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let gateway = stage.start("[limits]\nhandshake_timeout = \"600ms\"", &github(&upstream));
    let begun = Instant::now();
    let mut silent = http::connect(gateway.public()).expect("a connection");
    let mut buffer = [0; 16];
    assert!(matches!(silent.read(&mut buffer), Ok(0) | Err(_)));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(550) && took < Duration::from_secs(5), "{took:?}");
    eventually("it is counted", || (handshakes(&gateway, "timeout") == 1.0).then_some(()));
    assert_eq!(signed(stage.curl(&gateway), "{}").status, 200);
    assert_eq!((handshakes(&gateway, "ok"), handshakes(&gateway, "failed")), (1.0, 0.0));
}

#[test]
fn the_certificates_end_is_a_metric_where_there_is_a_certificate() {
    let (stage, upstream) = (Stage::new(), Upstream::start());
    let sources = format!("\n[listeners.plain]\naddress = \"127.0.0.1:0\"\n{}", github(&upstream));
    let gateway = stage.start("", &sources);
    let end = x509(&stage.server.certificate, &["-enddate"]);
    let end = end.strip_prefix("notAfter=").expect("an end");
    let done = std::process::Command::new("date").args(["-u", "-d", end, "+%s"]).output().expect("date runs");
    let seconds: f64 = String::from_utf8_lossy(&done.stdout).trim().parse().expect("seconds");
    let name = "hookward_tls_certificate_expiry_timestamp_seconds";
    assert_eq!(gateway.metric(name, &[("listener", "public")]), seconds);
    // An alert on "ends soon" must not ring for a listener without one.
    let series: Vec<_> = gateway.metrics().lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect();
    assert_eq!(series.len(), 1, "{series:?}");
    assert!(sign::now() < seconds as u64);
}
