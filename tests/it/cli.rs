//! What a person types: the words that come back, and the exit codes that scripts rely on.

use crate::support::certs::{path, x509};
use crate::support::gateway::{BINARY, Folder, Gateway, PLAIN, hookward};
use crate::support::{Curl, Upstream};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const SECRET: &str = "a-secret-of-28-letters-0001";
const WHSEC: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd";

/// RFC 8032 §7.1, TEST 1.
const ED25519_PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
const ED25519_PRIVATE: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

/// tests/configs/KIND with certificates, in a folder of its own, and the names of its configurations.
fn configurations(kind: &str, least: usize) -> (Folder, Vec<String>) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            let target = to.join(entry.file_name());
            match entry.path().is_dir() {
                true => copy(&entry.path(), &target),
                false => drop(fs::copy(entry.path(), target).expect("a copy")),
            }
        }
    }
    let folder = Folder::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(kind);
    copy(&from, &folder.0);
    assert_eq!(hookward(&folder.0, &["certs", "certs"]).0, 0);
    let mut names = BTreeSet::new();
    let mut words = BTreeSet::new();
    for entry in fs::read_dir(&from).expect("a folder") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if let Some(stem) = name.strip_suffix(".toml") {
            names.insert(stem.to_owned());
        } else if let Some(stem) = name.strip_suffix(".stderr") {
            words.insert(stem.to_owned());
        }
    }
    assert!(names.len() >= least, "{kind} has {} configurations", names.len());
    assert!(kind == "good" || names == words, "each has its words: {names:?} {words:?}");
    (folder, names.into_iter().collect())
}

/// `hookward check --config NAME.toml`, in an environment of the test's own.
fn check(folder: &Folder, name: &str, more: &[&str]) -> (i32, String, String) {
    let done = Command::new(BINARY)
        .current_dir(&folder.0)
        .env("GITHUB_SECRET", "a-secret-of-28-letters-0002")
        .env_remove("HOOKWARD_TESTS_NEVER_SET")
        .env_remove("CREDENTIALS_DIRECTORY")
        .args(["check", "--config", &format!("{name}.toml")])
        .args(more)
        .output()
        .expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (done.status.code().expect("a code"), text(done.stdout), text(done.stderr))
}

#[test]
fn good_configurations_are_usable() {
    let (folder, names) = configurations("good", 5);
    for name in names {
        let (code, out, said) = check(&folder, &name, &["--strict"]);
        assert_eq!(code, 0, "{name}: {said}");
        assert!(out.starts_with(&format!("{name}.toml: usable: ")), "{out}");
        assert!(!said.contains("error: ") && !said.contains("warning: "), "{name}: {said}");
    }
}

#[test]
fn bad_configurations_are_refused_in_exactly_these_words() {
    let (folder, names) = configurations("bad", 35);
    let mut wrong = Vec::new();
    for name in names {
        let (code, _, said) = check(&folder, &name, &[]);
        let words = fs::read_to_string(folder.path(&format!("{name}.stderr"))).expect("the words");
        assert!(words.contains("error: ") && words.contains(": unusable: "), "{name}: {words}");
        if code != 78 || said != words {
            wrong.push(format!("== {name}: exit code {code}, and said\n{said}-- not\n{words}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_probably_not_meant_is_said_in_exactly_these_words_and_strictly_refused() {
    let (folder, names) = configurations("warned", 9);
    for name in names {
        let (code, out, said) = check(&folder, &name, &[]);
        let words = fs::read_to_string(folder.path(&format!("{name}.stderr"))).expect("the words");
        assert!(words.contains("warning: ") && !words.contains("error: "), "{name}: {words}");
        assert_eq!((code, said), (0, words), "{name}");
        assert!(out.contains(": usable: "), "{out}");
        assert_eq!(check(&folder, &name, &["--strict"]).0, 1, "{name}");
    }
}

#[test]
fn effective_shows_every_key_that_is_written_with_its_line() {
    let (folder, _) = configurations("good", 5);
    let (code, out, _) = check(&folder, "everything", &["--effective"]);
    assert_eq!(code, 0);
    let text = fs::read_to_string(folder.path("everything.toml")).expect("the configuration");
    let mut table = "";
    let mut keys = 0;
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']');
        } else if let Some((key, value)) = line.split_once(" = ") {
            keys += 1;
            let shown = out.lines().any(|shown| {
                let rest = shown.strip_prefix(&format!("{table}.{key}"));
                rest.is_some_and(|rest| rest.starts_with([' ', '.', '[']))
                    && shown.ends_with(&format!("  # everything.toml:{number}"))
            });
            assert!(shown, "{table}.{key} = {value} of line {number} is not shown:\n{out}");
        }
    }
    assert!(keys > 60, "{keys}");
    for (key, value) in [
        ("limits.min_body_rate", "\"64KiB/s\"  # everything.toml:23"),
        ("sources.github.secrets", "<secret env:GITHUB_SECRET>  # everything.toml:66"),
        ("sources.github.verify.algorithm", "\"hmac-sha256\"  # preset github:16"),
        ("admin.token", "<secret file:secret>  # everything.toml:15"),
    ] {
        assert!(out.contains(&format!("{key} = {value}\n")), "{key}:\n{out}");
    }
    assert!(!out.contains(SECRET) && !out.contains(WHSEC) && !out.contains("a-token-of-some"), "{out}");
}

#[test]
fn effective_shows_every_default() {
    let (folder, _) = configurations("good", 5);
    let (code, out, _) = check(&folder, "minimal", &["--effective"]);
    assert_eq!(code, 0);
    for default in [
        "limits.max_body = \"1MiB\"",
        "limits.max_buffered = \"256MiB\"",
        "limits.max_requests_per_client = 256",
        "limits.max_header_bytes = \"32KiB\"",
        "limits.header_timeout = \"10s\"",
        "limits.min_body_rate = \"64KiB/s\"",
        "limits.body_timeout = \"8m\"",
        "limits.handshake_timeout = \"10s\"",
        "limits.idle_timeout = \"75s\"",
        "limits.max_connections = 10000",
        "limits.max_connections_per_client = 256",
        "limits.failed_auth = { rate = \"10/s\", burst = 50 }",
        "limits.drain_delay = \"0s\"",
        "limits.drain_timeout = \"30s\"",
        "state.kind = \"memory\"",
        "state.max_claims = 2000000",
        "log.format = \"text\"",
        "log.level = \"info\"",
        "log.audit = \"stderr\"",
        "upstreams.app.timeout = \"10s\"",
        "upstreams.app.connect_timeout = \"2s\"",
        "upstreams.app.max_in_flight = 256",
        "upstreams.app.queue_timeout = \"250ms\"",
        "upstreams.app.balance = \"least_requests\"",
        "upstreams.app.repeat_on_stale = true",
        "sources.stripe.listeners = all",
        "sources.stripe.methods = [\"POST\"]",
        "sources.stripe.delivery = \"proxy\"",
        "sources.stripe.acknowledge = 202",
        "sources.stripe.on_replay = \"reject\"",
        "sources.stripe.on_duplicate = \"acknowledge\"",
        "sources.stripe.replay_window = \"1d\"",
        "sources.stripe.dedupe_window = \"1d\"",
        "sources.stripe.mode = \"enforce\"",
        "sources.stripe.max_body = \"1MiB\"",
        "sources.stripe.danger_accept_unverified = false",
    ] {
        assert!(out.contains(&format!("{default}  # default\n")), "{default}:\n{out}");
    }
}

#[test]
fn exit_codes_tell_a_wrong_command_line_from_an_unusable_configuration() {
    let (folder, _) = configurations("good", 5);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let text = fs::read_to_string(folder.path("minimal.toml")).expect("a configuration");
    folder.write("taken.toml", text.replace("127.0.0.1:8080", &taken.local_addr().expect("an address").to_string()));
    for (arguments, code, says) in [
        (&["--version"][..], 0, "hookward "),
        (&["--help"], 0, "Usage:"),
        (&["check", "--help"], 0, "--effective"),
        (&[], 64, "Usage:"),
        (&["chek"], 64, "check"),
        (&["check", "--stict"], 64, "--strict"),
        (&["sign"], 64, "--source"),
        (&["send", "--source", "stripe", "--to", "https://localhost", "--cert", "x"], 64, "--key"),
        (&["certs", "--days", "0"], 64, "--days"),
        (&["check"], 78, "gateway.toml: error: cannot be read"),
        (&["run"], 78, "gateway.toml: error: cannot be read"),
        (&["run", "--config", "taken.toml"], 78, "is in use; stop the other program, or change `address`"),
        (&["sign", "--source", "stripe"], 78, "gateway.toml: error: cannot be read"),
        (
            &["sign", "--source", "strip", "--config", "minimal.toml"],
            1,
            "there is no source \"strip\"; there are: stripe",
        ),
        (&["sign", "--source", "stripe", "--config", "minimal.toml", "--body", "nowhere"], 1, "nowhere: "),
        (&["check", "--config", "minimal.toml"], 0, "minimal.toml: usable: 1 sources, 0 warnings"),
    ] {
        let (exit, out, said) = hookward(&folder.0, arguments);
        assert_eq!(exit, code, "{arguments:?}: {out}{said}");
        // What was asked for goes to standard output, complaints to standard error.
        let (right, other) = if code == 0 { (&out, &said) } else { (&said, &out) };
        assert!(right.contains(says) && other.is_empty(), "{arguments:?}: {out} | {said}");
    }
}

#[test]
fn check_says_what_a_source_does_not_protect_against() {
    let folder = Folder::new();
    let whole = "secrets = [{ value = \"0123456789abcdef0123456789abcdef\" }]\npublic_url = \"https://h.example/s\"\n";
    let (parts, nothing) = ("stands for parts of the body", "stands for nothing of the body");
    let (id, replay) = ("the id is not signed", "names nothing that is signed");
    for (keys, says) in [
        ("provider = \"stripe\"", &[] as &[_]),
        ("provider = \"twilio\"", &[parts, id]),
        ("provider = \"gitlab\"", &[nothing, id]),
        ("provider = \"mailgun\"", &[parts]),
        ("provider = \"mailgun\"\nreplay = \"{header:X-Nonce}\"", &[parts, replay]),
        ("provider = \"telegram\"", &[nothing, id]),
        ("provider = \"github\"\nreplay = \"{header:X-Nonce}\"", &[]),
    ] {
        let text = format!(
            "[listeners.a]\naddress = \"127.0.0.1:0\"\n[upstreams.app]\nurls = [\"http://127.0.0.1:9\"]\n\
             [sources.s]\npath = \"/s\"\nupstream = \"app\"\n{whole}{keys}\n"
        );
        folder.write("asked.toml", text);
        let (code, _, said) = check(&folder, "asked", &[]);
        assert_eq!(code, 0, "{keys}: {said}");
        for what in [parts, nothing, id, replay] {
            assert_eq!(said.contains(what), says.contains(&what), "{keys}, {what}: {said}");
        }
    }
}

#[test]
fn check_opens_no_socket() {
    let (folder, _) = configurations("good", 5);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let text = fs::read_to_string(folder.path("minimal.toml")).expect("a configuration");
    folder.write("taken.toml", text.replace("127.0.0.1:8080", &taken.local_addr().expect("an address").to_string()));
    assert_eq!(check(&folder, "taken", &[]).0, 0);
}

#[test]
fn a_configuration_that_cannot_be_read_is_named_with_the_reason() {
    let folder = Folder::new();
    fs::create_dir(folder.path("folder")).expect("a folder");
    folder.write("bytes.toml", b"a = \"\xff\"\n");
    folder.write("file", "");
    std::os::unix::fs::symlink("loop.toml", folder.path("loop.toml")).expect("a link");
    for (name, why) in [
        ("nowhere.toml", "nowhere.toml: error: cannot be read: No such file or directory"),
        ("folder", "folder: error: cannot be read: Is a directory"),
        ("file/gateway.toml", "file/gateway.toml: error: cannot be read: Not a directory"),
        ("loop.toml", "loop.toml: error: cannot be read: Too many levels of symbolic links"),
        ("bytes.toml", "bytes.toml: error: the file is not UTF-8"),
    ] {
        for command in ["check", "run"] {
            let (code, _, said) = hookward(&folder.0, &[command, "--config", name]);
            assert_eq!(code, 78, "{command} {name}: {said}");
            assert!(said.starts_with(why), "{command} {name}: {said}");
        }
    }
}

#[test]
fn paths_are_relative_to_the_file_and_not_to_where_one_stands() {
    let upstream = Upstream::start();
    let folder = Arc::new(Folder::new());
    folder.write("etc/keys/secret", format!("{SECRET}\n"));
    folder.write(
        "etc/parts/source.toml",
        source("github", "provider = \"github\"\nsecrets = [{ file = \"keys/secret\" }]"),
    );
    let text = format!(
        "include = [\"parts/*.toml\"]\n{}\n[state]\nkind = \"disk\"\npath = \"state.db\"\n{}",
        PLAIN.replace("[log]", "[log]\naudit = \"audit.log\""),
        upstream.table()
    );
    folder.write("etc/gateway.toml", &text);
    assert_eq!(hookward(&folder.0, &["check", "--strict", "--config", "etc/gateway.toml"]).0, 0);
    let gateway = Gateway::start_with(folder.clone(), &text, |command| {
        let mut elsewhere = Command::new(BINARY);
        elsewhere.current_dir(&folder.0).args(["run", "--config", "etc/gateway.toml"]);
        elsewhere.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = elsewhere;
    });
    let request = crate::support::Request::post("/github", "{}")
        .header("X-Hub-Signature-256", crate::support::sign::github(SECRET, b"{}"));
    assert_eq!(request.send(gateway.public()).status, 200);
    assert!(folder.path("etc/state.db").exists() && folder.path("etc/audit.log").exists());
    assert!(!folder.path("state.db").exists() && !folder.path("audit.log").exists());
}

#[test]
fn certs_makes_files_that_work_with_private_keys_and_replaces_none() {
    let folder = Folder::new();
    let files = ["ca.pem", "server.pem", "server.key", "client.pem", "client.key"];
    let made = |more: &[&str]| hookward(&folder.0, &[&["certs", "made"][..], more].concat());
    let (code, out, _) = made(&["--host", "gateway.example", "--host", "192.0.2.1", "--client", "peer.example"]);
    assert_eq!(code, 0);
    assert_eq!(out.lines().collect::<Vec<_>>(), files.map(|file| format!("made/{file}")));
    let file = |name: &str| folder.path(&format!("made/{name}"));
    let mode = |name: &str| fs::metadata(file(name)).expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode("server.key"), mode("client.key"), mode("server.pem")), (0o600, 0o600, 0o644));
    for (name, purpose) in [("server.pem", "sslserver"), ("client.pem", "sslclient")] {
        let (ca, leaf) = (file("ca.pem"), file(name));
        let done = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile", path(&ca), path(&leaf)])
            .output()
            .expect("openssl runs");
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let names = x509(&file("server.pem"), &["-ext", "subjectAltName"]);
    assert!(names.contains("DNS:gateway.example, IP Address:192.0.2.1"), "{names}");
    assert!(x509(&file("client.pem"), &["-ext", "subjectAltName"]).contains("DNS:peer.example"));

    let read = || files.map(|name| fs::read(file(name)).ok());
    let before = read();
    let (code, _, said) = made(&[]);
    assert_eq!(code, 1);
    assert!(said.contains("is there already; --force replaces it"), "{said}");
    assert!(read() == before);
    // One that is left is enough: half of a set belongs to nothing.
    for name in ["ca.pem", "server.pem", "client.pem", "client.key"] {
        fs::remove_file(file(name)).expect("removed");
    }
    let left = read();
    assert_eq!(made(&[]).0, 1);
    assert!(read() == left);
    // A key that anybody could read before is private after.
    fs::set_permissions(file("server.key"), fs::Permissions::from_mode(0o644)).expect("a mode");
    assert_eq!(made(&["--force"]).0, 0);
    assert!(read()[2] != before[2]);
    assert_eq!((mode("server.key"), mode("client.key")), (0o600, 0o600));
}

fn source(name: &str, rest: &str) -> String {
    format!("\n[sources.{name}]\npath = \"/{name}\"\nupstream = \"app\"\n{rest}\n")
}

/// Every preset, and a scheme of one's own.
fn every_scheme() -> String {
    let secret = format!("secrets = [{{ value = \"{SECRET}\" }}]");
    let preset = |name: &str, secret: &str| source(name, &format!("provider = \"{name}\"\n{secret}"));
    [
        preset("github", &secret),
        preset("stripe", &secret),
        preset("slack", &secret),
        preset("shopify", &secret),
        preset("standard-webhooks", &format!("secrets = [{{ value = \"{WHSEC}\" }}]")),
        preset("discord", &format!("secrets = [{{ value = \"{ED25519_PUBLIC}\" }}]")),
        source(
            "acme",
            &format!(
                "{secret}\ntoken = {{ header = \"X-Token\", secrets = [{{ value = \"a-token-of-some-letters-01\" }}] }}\n\
                 verify = {{ algorithm = \"hmac-sha512\", signature = {{ header = \"X-Acme\", encoding = \"base64\", layout = \"pairs\", \
                 key = \"v1\" }}, timestamp = {{ key = \"t\", unit = \"ms\" }}, id = {{ header = \"X-Acme-Id\" }}, \
                 message = \"{{method}} {{path}} {{header:x-acme-id}} {{query:k}} {{timestamp}}.{{body|sha256|hex}}\" }}"
            ),
        ),
        source("certified", "client_cert = { names = [\"sender.example.com\"] }"),
    ]
    .concat()
}

const SCHEMES: [&str; 7] = ["github", "stripe", "slack", "shopify", "standard-webhooks", "discord", "acme"];

/// A TLS gateway with certificates of `hookward certs` in certs/dev.
fn secure(upstream: &Upstream) -> Gateway {
    let folder = Arc::new(Folder::new());
    assert_eq!(hookward(&folder.0, &["certs"]).0, 0);
    folder.write("private", ED25519_PRIVATE);
    folder.write("body", "{\"zen\": \"Speak like a human.\",\"n\":\u{20ac}}\r\n");
    let listener = "[listeners.public]\naddress = \"127.0.0.1:0\"\ntls.certificate = \"certs/dev/server.pem\"\n\
                    tls.private_key = \"certs/dev/server.key\"\ntls.client_ca = \"certs/dev/ca.pem\"\n\
                    [admin]\naddress = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n";
    Gateway::start_in(folder, &format!("{listener}{}{}", upstream.table(), every_scheme()))
}

#[test]
fn what_sign_prints_is_taken_from_curl_for_every_scheme() {
    let upstream = Upstream::start();
    let gateway = secure(&upstream);
    let folder = &gateway.folder;
    let body = fs::read(folder.path("body")).expect("a body");
    for (number, scheme) in SCHEMES.into_iter().enumerate() {
        let mut arguments = vec!["sign", "--source", scheme, "--body", "body", "--query", "k=v"];
        if scheme == "discord" {
            let (code, _, said) = hookward(&folder.0, &arguments);
            assert_eq!(
                (code, said.trim()),
                (1, "sources.discord: a public key cannot sign; give the private key (--private-key FILE)")
            );
            arguments.extend(["--private-key", "private"]);
        }
        let (code, out, said) = hookward(&folder.0, &arguments);
        assert_eq!((code, said.as_str()), (0, ""), "{scheme}");
        let mut curl = Curl::to(gateway.public(), &folder.path("certs/dev/ca.pem"));
        for header in out.lines() {
            curl = curl.with(&["-H", header]);
        }
        let url = format!("https://localhost/{scheme}?k=v");
        assert_eq!(curl.post(&url, b"another body").status, 401, "{scheme}");
        let fetched = curl.post(&url, &body);
        assert_eq!(fetched.status, 200, "{scheme}: {out}");
        assert_eq!(upstream.wait_for(number + 1)[number].body, body, "{scheme}");
    }
    // An old one is signed as well, and stale.
    let (_, out, _) = hookward(&folder.0, &["sign", "--source", "stripe", "--body", "body", "--time", "1700000000"]);
    assert!(out.starts_with("stripe-signature: t=1700000000,v1="), "{out}");
    let curl = Curl::to(gateway.public(), &folder.path("certs/dev/ca.pem")).with(&["-H", out.trim()]);
    let fetched = curl.post("https://localhost/stripe", &body);
    assert_eq!(gateway.audit_of(&fetched.request_id)["outcome"], "stale");
}

#[test]
fn send_delivers_for_every_scheme_and_its_exit_code_is_the_answer() {
    let upstream = Upstream::start();
    let gateway = secure(&upstream);
    let folder = &gateway.folder;
    let to = format!("https://localhost:{}", gateway.public().port());
    let send = |source: &str, more: &[&str]| {
        let fixed = ["send", "--source", source, "--to", &to, "--body", "body", "--cacert", "certs/dev/ca.pem"];
        hookward(&folder.0, &[&fixed[..], more].concat())
    };
    for scheme in SCHEMES {
        let private = ["--private-key", "private"];
        let query = ["--query", "k=v"];
        let (code, out, said) = send(scheme, if scheme == "discord" { &private } else { &query });
        assert_eq!(code, 0, "{scheme}: {out}{said}");
        assert!(out.starts_with("200 OK\n") && out.contains("x-request-id: ") && out.ends_with("\n\nok\n"), "{out}");
    }
    let with = ["--cert", "certs/dev/client.pem", "--key", "certs/dev/client.key"];
    assert_eq!(send("certified", &with).0, 0, "over mTLS");
    let count = upstream.count();
    assert_eq!(count, SCHEMES.len() + 1);

    let (code, out, _) = send("certified", &[]);
    assert_eq!(code, 1, "without a certificate");
    assert!(out.starts_with("403 Forbidden\n"), "{out}");
    let (code, out, _) = send("stripe", &["--time", "1700000000"]);
    assert_eq!(code, 1, "stale");
    assert!(out.starts_with("401 Unauthorized\n"), "{out}");
    // A server that the CA did not sign, and none at all.
    let to_it = ["send", "--source", "stripe", "--to", &to, "--body", "body"];
    let (code, _, said) = hookward(&folder.0, &to_it);
    assert_eq!(code, 1);
    assert!(said.contains("TLS: invalid peer certificate: UnknownIssuer"), "{said}");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (code, _, said) =
        hookward(&folder.0, &["send", "--source", "stripe", "--to", &format!("http://{nobody}"), "--body", "body"]);
    assert_eq!(code, 1);
    assert!(said.contains("refused"), "{said}");
    assert_eq!(upstream.count(), count);
}

#[test]
fn the_demonstration_goes_as_it_should() {
    let folder = Folder::new();
    let (code, out, said) = hookward(&folder.0, &["demo", "--exit"]);
    assert_eq!(code, 0, "{out}{said}");
    assert!(!out.contains("not as it should be"), "{out}");
    for outcome in [
        "accepted",
        "replay",
        "bad_signature",
        "missing_signature",
        "stale",
        "duplicate",
        "client_cert_missing",
        "TLS handshake refused",
        "no_source",
        "rate_limited",
    ] {
        assert!(out.contains(outcome), "{outcome}: {out}");
    }
    assert!(out.contains("what was accepted, and nothing else"), "{out}");
    assert_eq!(fs::read_dir(&folder.0).expect("a folder").count(), 0, "it leaves nothing behind");
}
