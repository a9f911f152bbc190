//! The gateway changes under load and ends without losing anything: SIGHUP, SIGTERM, systemd.

use crate::support::certs::{Authority, x509};
use crate::support::curl::s_client;
use crate::support::gateway::{BINARY, Folder, PLAIN};
use crate::support::http::{connect, read_answer};
use crate::support::upstream::{Gate, Reply};
use crate::support::{Answer, Gateway, PATIENCE, Request, Upstream, eventually, sign};
use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const OLD: &str = "the-old-secret-of-these-tests";
const NEW: &str = "the-new-secret-of-these-tests";

/// A plaintext gateway with one source that signs with `secret`.
fn configuration(upstream: &Upstream, secret: &str, more: &str) -> String {
    format!("{PLAIN}{}{}{more}\n", upstream.table(), source("github", secret))
}

fn source(name: &str, secret: &str) -> String {
    format!(
        "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"github\"\nsecrets = [{{ value = \"{secret}\" }}]\nupstream = \"app\"\n"
    )
}

fn start(configuration: &str) -> Gateway {
    Gateway::start_in(Arc::new(Folder::new()), configuration)
}

fn signed(secret: &str, body: &str) -> Request {
    Request::post("/github", body).header("X-Hub-Signature-256", sign::github(secret, body.as_bytes()))
}

fn status(gateway: &Gateway, secret: &str, body: &str) -> u16 {
    signed(secret, body).send(gateway.public()).status
}

/// An upstream that holds back its answer to bodies that begin with `held`.
fn holding() -> (Upstream, Gate) {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::with(move |request, _| match request.body.starts_with(b"held") {
        true => Reply::Held(held.clone(), Box::new(Reply::Status(200))),
        false => Reply::Status(200),
    });
    (upstream, gate)
}

fn in_background(request: Request, to: SocketAddr) -> JoinHandle<std::io::Result<Answer>> {
    thread::spawn(move || request.try_send(to))
}

/// Senders that never stop: some connect anew for each delivery, one keeps its connection while it is let.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(to: SocketAddr, secret: &'static str) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sender = |number: usize| {
            let (stop, sent) = (stop.clone(), sent.clone());
            thread::spawn(move || {
                let mut failures = Vec::new();
                let mut kept: Option<BufReader<TcpStream>> = None;
                // Bounded, should nobody say stop.
                for count in 0..20_000 {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let request = signed(secret, &format!("{{\"sender\":{number},\"count\":{count}}}"));
                    let answer = match number {
                        0 => send_kept(&mut kept, &request, to),
                        _ => request.try_send(to),
                    };
                    match answer {
                        Ok(answer) if answer.status == 200 => {}
                        other => failures.push(format!("{number}/{count}: {other:?}")),
                    }
                    sent.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(2));
                }
                failures
            })
        };
        let senders = (0..3).map(sender).collect();
        Self { stop, sent, senders }
    }

    /// Waits until this many more deliveries have been answered.
    fn goes_on(&self, count: usize) {
        let enough = self.sent.load(Ordering::SeqCst) + count;
        eventually("the load goes on", || (self.sent.load(Ordering::SeqCst) >= enough).then_some(()));
    }

    /// How many were sent, all of them accepted.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let failures: Vec<_> = self.senders.into_iter().flat_map(|sender| sender.join().expect("a sender")).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        self.sent.load(Ordering::SeqCst)
    }
}

/// As clients with keep-alive do: on the connection at hand, on a new one after `Connection: close`, and once more where
/// the one at hand was closed before a byte of an answer (RFC 9112 §9.3.1): an idle connection may end at any time. Had
/// the first attempt been processed, the second would be a replay and not be answered with 200.
fn send_kept(kept: &mut Option<BufReader<TcpStream>>, request: &Request, to: SocketAddr) -> std::io::Result<Answer> {
    let exchange = |mut connection: BufReader<TcpStream>| {
        connection.get_mut().write_all(&request.bytes())?;
        read_answer(&mut connection).map(|answer| (answer, connection))
    };
    let on_kept = kept.take().and_then(|connection| exchange(connection).ok());
    let (answer, connection) = match on_kept {
        Some(done) => done,
        None => exchange(BufReader::new(connect(to)?))?,
    };
    if answer.header("connection") != Some("close") {
        *kept = Some(connection);
    }
    Ok(answer)
}

#[test]
fn a_reload_takes_the_new_secret_refuses_the_old_and_lets_requests_under_way_finish_as_they_began() {
    let (upstream, gate) = holding();
    let mut gateway = start(&configuration(&upstream, OLD, ""));
    assert_eq!((status(&gateway, OLD, "1"), status(&gateway, NEW, "2")), (200, 401));
    let held = in_background(signed(OLD, "held"), gateway.public());
    upstream.wait_for(2);

    let other = Upstream::start();
    assert!(gateway.reload(&configuration(&other, NEW, "")));
    assert_eq!((status(&gateway, OLD, "3"), status(&gateway, NEW, "4")), (401, 200));
    assert_eq!(other.wait_for(1).remove(0).body, b"4");
    gate.open();
    let answer = held.join().expect("a sender").expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "accepted");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn twenty_reloads_under_load_refuse_nobody() {
    let upstream = Upstream::start();
    let mut gateway = start(&configuration(&upstream, OLD, ""));
    let load = Load::start(gateway.public(), OLD);
    load.goes_on(10);
    for number in 0..20 {
        let more = format!("replay_window = \"{}h\"\n{}", number + 1, source(&format!("s{number}"), NEW));
        assert!(gateway.reload(&configuration(&upstream, OLD, &more)), "reload {number}");
        load.goes_on(5);
    }
    let sent = load.end();
    assert!(sent >= 100, "{sent}");
    assert_eq!(upstream.count(), sent);
    assert_eq!(gateway.metric("hookward_config_reloads_total", &[("result", "success")]), 20.0);
}

#[test]
fn a_broken_file_is_refused_with_all_its_errors_and_the_old_one_serves_on() {
    let upstream = Upstream::start();
    let mut gateway = start(&configuration(&upstream, OLD, ""));
    let loaded = gateway.metric("hookward_config_last_reload_success_timestamp_seconds", &[]);
    for (text, said) in [
        (
            configuration(&upstream, NEW, "secrest = 1\npaht = 2"),
            &["did you mean `secrets`?", "did you mean `path`?"][..],
        ),
        (format!("{}\n[sources.\n", configuration(&upstream, NEW, "")), &["not valid TOML"]),
        (configuration(&upstream, "", ""), &["the secret of value is empty"]),
    ] {
        assert!(!gateway.reload(&text));
        for what in said {
            let line = gateway.wait_for_log(what);
            assert!(line.contains("\"ERROR\"") && line.contains("gateway.toml:"), "{line}");
        }
    }
    gateway.wait_for_log("not reloaded: the file has errors; the configuration in force serves on");
    assert_eq!((status(&gateway, OLD, "1"), status(&gateway, NEW, "2")), (200, 401));
    assert_eq!(gateway.metric("hookward_config_reloads_total", &[("result", "failure")]), 3.0);
    assert_eq!(gateway.metric("hookward_config_reloads_total", &[("result", "success")]), 0.0);
    assert_eq!(gateway.metric("hookward_config_last_reload_success_timestamp_seconds", &[]), loaded);
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 200);
    assert!(gateway.reload(&configuration(&upstream, NEW, "")), "and a good one is taken again");
}

#[test]
fn certificates_secrets_and_the_admin_token_are_read_again_from_their_files() {
    let (upstream, folder) = (Upstream::start(), Arc::new(Folder::new()));
    let ca = Authority::new(&folder, "ca");
    let (first, second) = (ca.server("first", "DNS:hooks.example.com"), ca.server("second", "DNS:hooks.example.com"));
    let install = |pair: &crate::support::certs::Pair| {
        fs::copy(&pair.certificate, folder.path("server.pem")).expect("a copy");
        fs::copy(&pair.key, folder.path("server.key")).expect("a copy");
    };
    install(&first);
    folder.write("secret", format!("{OLD}\n"));
    folder.write("token", "the-old-token-of-these-tests\n");
    let text = format!(
        "[listeners.public]\naddress = \"127.0.0.1:0\"\n[listeners.secure]\naddress = \"127.0.0.1:0\"\n\
         tls.certificate = \"server.pem\"\ntls.private_key = \"server.key\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\ntoken = {{ file = \"token\" }}\n[log]\nformat = \"json\"\nlevel = \"debug\"\n\
         {}{}",
        upstream.table(),
        source("github", OLD).replace("value = \"the-old-secret-of-these-tests\"", "file = \"secret\"")
    );
    let mut gateway = Gateway::start_in(folder.clone(), &text);
    let shown = |gateway: &Gateway| {
        let text = s_client(gateway.address("secure"), &["-servername", "hooks.example.com"], "Q\n").1;
        let begin = text.find("-----BEGIN").unwrap_or_else(|| panic!("no certificate: {text}"));
        let end = text.find("-----END CERTIFICATE-----").expect("an end") + "-----END CERTIFICATE-----\n".len();
        x509(&folder.write("shown.pem", &text[begin..end]), &["-serial"])
    };
    let sources = |gateway: &Gateway, token: &str| {
        let request = Request::new("GET", "/sources").header("Authorization", format!("Bearer {token}"));
        request.send(gateway.address("admin")).status
    };
    assert_eq!(shown(&gateway), x509(&first.certificate, &["-serial"]));
    assert_eq!(sources(&gateway, "the-old-token-of-these-tests"), 200);

    install(&second);
    folder.write("secret", NEW);
    folder.write("token", "the-new-token-of-these-tests\n");
    assert_eq!(status(&gateway, NEW, "1"), 401, "not before it is told");
    assert!(gateway.reload(&text));
    assert_eq!(shown(&gateway), x509(&second.certificate, &["-serial"]));
    assert_eq!((status(&gateway, OLD, "2"), status(&gateway, NEW, "3")), (401, 200));
    assert_eq!(sources(&gateway, "the-old-token-of-these-tests"), 401);
    assert_eq!(sources(&gateway, "the-new-token-of-these-tests"), 200);

    // Half of a renewal: the old key beside the new certificate.
    fs::copy(&first.key, folder.path("server.key")).expect("a copy");
    assert!(!gateway.reload(&text));
    gateway.wait_for_log("the private key does not belong to the certificate");
    assert_eq!(shown(&gateway), x509(&second.certificate, &["-serial"]));
}

#[test]
fn listeners_come_go_and_move() {
    let (upstream, gate) = holding();
    let listener = |name: &str, address: &str| format!("\n[listeners.{name}]\naddress = \"{address}:0\"\n");
    let with = |listeners: &str| configuration(&upstream, OLD, listeners);
    let mut gateway = start(&with(&listener("going", "127.0.0.1")));
    let (public, going) = (gateway.public(), gateway.address("going"));
    let send = |to: SocketAddr, body: &str| signed(OLD, body).try_send(to).map(|answer| answer.status);
    let held = in_background(signed(OLD, "held"), going);
    upstream.wait_for(1);

    // One goes, one comes.
    assert!(gateway.reload(&with(&listener("coming", "127.0.0.1"))));
    let coming = gateway.address("coming");
    assert_eq!(send(coming, "1").expect("an answer"), 200);
    assert_eq!(send(public, "2").expect("an answer"), 200);
    assert_eq!(gateway.public(), public, "one whose address stays is not bound anew");
    eventually("the listener that went is closed", || send(going, "3").is_err().then_some(()));
    gate.open();
    assert_eq!(held.join().expect("a sender").expect("an answer").status, 200, "what it had begun, it finished");

    // It moves.
    assert!(gateway.reload(&with(&listener("coming", "127.0.0.2"))));
    let moved = gateway.address("coming");
    assert_ne!(moved, coming);
    assert_eq!(send(moved, "4").expect("an answer"), 200);
    eventually("its old address is closed", || send(coming, "5").is_err().then_some(()));
    let series = |name: &str| gateway.metrics().contains(&format!("hookward_connections{{listener=\"{name}\"}}"));
    assert!(series("coming") && series("public") && !series("going"));
}

#[test]
fn a_reload_that_cannot_bind_its_port_changes_nothing() {
    let upstream = Upstream::start();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let mut gateway = start(&configuration(&upstream, OLD, ""));
    let more = format!(
        "[listeners.free]\naddress = \"127.0.0.1:0\"\n[listeners.taken]\naddress = \"{address}\"\n{}",
        source("fresh", NEW)
    );
    assert!(!gateway.reload(&configuration(&upstream, NEW, &more)));
    gateway.wait_for_log(&format!("{address} is in use; stop the other program, or change `address`"));
    assert_eq!((status(&gateway, OLD, "1"), status(&gateway, NEW, "2")), (200, 401));
    assert!(!gateway.metrics().contains("source=\"fresh\""));
    // What could be bound was let go again.
    let free = gateway.announced().into_iter().find(|(name, _)| name == "free");
    if let Some((_, free)) = free {
        assert!(TcpStream::connect(free).is_err());
    }
    drop(taken);
    assert!(gateway.reload(&configuration(&upstream, NEW, &more)), "once it is free");
    assert_eq!(status(&gateway, NEW, "3"), 200);
}

#[test]
fn a_reload_refills_no_budget_and_forgets_no_delivery() {
    let upstream = Upstream::start();
    let limit = "rate_limit = { rate = \"1/h\", burst = 2 }\n";
    let mut gateway = start(&configuration(&upstream, OLD, limit));
    assert_eq!((status(&gateway, OLD, "1"), status(&gateway, OLD, "2")), (200, 200));
    assert_eq!(status(&gateway, OLD, "3"), 429);
    assert!(gateway.reload(&configuration(&upstream, OLD, &format!("{limit}max_body = \"2MiB\"\n"))));
    assert_eq!(status(&gateway, OLD, "4"), 429);
    assert_eq!(status(&gateway, OLD, "1"), 202, "a copy of what was accepted before");
    assert_eq!(gateway.outcome("github", "replay"), 1);
    assert_eq!(upstream.count(), 2);
    // Another limit is another budget.
    assert!(gateway.reload(&configuration(&upstream, OLD, "rate_limit = { rate = \"1/h\", burst = 3 }\n")));
    assert_eq!(status(&gateway, OLD, "5"), 200);
}

#[test]
fn the_series_of_what_a_reload_removed_are_gone() {
    let upstream = Upstream::start();
    let gone = format!(
        "[upstreams.other]\nurls = [\"http://127.0.0.1:9\", \"http://127.0.0.1:10\"]\n[listeners.side]\naddress = \"127.0.0.1:0\"\n{}{}",
        source("gone", OLD).replace("\"app\"", "\"other\""),
        source("kept", OLD).replace("secrets = [", "secrets = [{ file = \"idle\" }, "),
    );
    let folder = Arc::new(Folder::new());
    folder.write("idle", "a-secret-that-nobody-uses");
    let mut gateway = Gateway::start_in(folder, &configuration(&upstream, OLD, &gone));
    let before = gateway.metrics();
    for label in ["source=\"gone\"", "upstream=\"other\"", "listener=\"side\"", "secret=\"file:idle\""] {
        assert!(before.contains(label), "{label}");
    }
    assert!(gateway.reload(&configuration(&upstream, OLD, &source("kept", OLD))));
    let after = gateway.metrics();
    for label in ["source=\"gone\"", "upstream=\"other\"", "listener=\"side\"", "secret=\"file:idle\""] {
        assert!(!after.contains(label), "{label}:\n{after}");
    }
    for label in ["source=\"github\"", "source=\"kept\"", "upstream=\"app\"", "listener=\"public\"", "secret=\"value\""]
    {
        assert!(after.contains(label), "{label}");
    }
}

#[test]
fn a_rotated_audit_log_is_opened_anew_and_loses_no_line() {
    let upstream = Upstream::start();
    let text = configuration(&upstream, OLD, "").replace("[log]", "[log]\naudit = \"audit.log\"");
    let mut gateway = start(&text);
    let (log, rotated) = (gateway.folder.path("audit.log"), gateway.folder.path("audit.log.1"));
    let send = |gateway: &Gateway, body: &str| signed(OLD, body).send(gateway.public()).request_id();
    let holds = |file: &std::path::Path, id: &str| {
        let found = || fs::read_to_string(file).is_ok_and(|text| text.contains(id)).then_some(());
        eventually(&format!("{} holds the line", file.display()), found);
    };
    let first = send(&gateway, "1");
    holds(&log, &first);
    fs::rename(&log, &rotated).expect("renamed");
    let second = send(&gateway, "2");
    holds(&rotated, &second);
    assert!(gateway.reload(&text));
    let third = send(&gateway, "3");
    holds(&log, &third);
    let lines = |file: &std::path::Path| fs::read_to_string(file).expect("a log").lines().count();
    assert_eq!((lines(&rotated), lines(&log)), (2, 1));
    // Off and on again.
    let off = text.replace("audit = \"audit.log\"", "audit = \"off\"");
    assert!(gateway.reload(&off));
    send(&gateway, "4");
    assert!(gateway.reload(&text));
    let fifth = send(&gateway, "5");
    holds(&log, &fifth);
    assert_eq!(lines(&log), 2);
}

#[test]
fn told_to_stop_it_finishes_what_is_under_way_and_closes_what_is_idle() {
    let (upstream, gate) = holding();
    let mut gateway = start(&configuration(&upstream, OLD, ""));
    let mut idle = connect(gateway.public()).expect("a connection");
    idle.write_all(&signed(OLD, "1").bytes()).expect("sent");
    assert_eq!(read_answer(&mut BufReader::new(&idle)).expect("an answer").status, 200);
    let held = in_background(signed(OLD, "held"), gateway.public());
    upstream.wait_for(2);

    gateway.signal("TERM");
    // Closed without a word, while the other is still waiting.
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("a clean end");
    assert!(rest.is_empty(), "{rest:?}");
    assert!(!held.is_finished());
    eventually("new connections are refused", || TcpStream::connect(gateway.public()).is_err().then_some(()));
    let unready = gateway.get("/readyz").expect("the operator's port answers to the end");
    assert_eq!((unready.status, unready.text().as_str()), (503, "not ready: draining\n"));
    gate.open();
    let answer = held.join().expect("a sender").expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    gateway.wait_for_log("\"stopped\"");
    assert!(gateway.audit_of(&answer.request_id())["outcome"] == "accepted");
}

#[test]
fn during_the_drain_delay_it_is_not_ready_and_still_accepts() {
    let upstream = Upstream::start();
    let mut gateway = start(&configuration(&upstream, OLD, "[limits]\ndrain_delay = \"1500ms\"\n"));
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 200);
    let told = Instant::now();
    gateway.signal("TERM");
    eventually("it is not ready", || gateway.get("/readyz").filter(|answer| answer.status == 503));
    assert_eq!(gateway.get("/healthz").expect("an answer").status, 200);
    assert_eq!(status(&gateway, OLD, "1"), 200);
    assert!(told.elapsed() < Duration::from_millis(1500), "this machine is too slow for this test");
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    assert!(told.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn connections_that_wait_in_the_backlog_when_it_is_told_to_stop_are_served() {
    let (upstream, gate) = holding();
    // One at a time: the others wait in the kernel's queue.
    let mut gateway = start(&configuration(&upstream, OLD, "[limits]\nmax_connections = 1\n"));
    let to = gateway.public();
    let held = in_background(signed(OLD, "held"), to);
    upstream.wait_for(1);
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            let mut stream = connect(to).expect("the kernel completes it");
            stream.write_all(&signed(OLD, &format!("{number}")).bytes()).expect("sent");
            stream
        })
        .collect();
    assert_eq!(upstream.count(), 1);
    gateway.signal("TERM");
    gateway.wait_for_log("draining");
    gate.open();
    assert_eq!(held.join().expect("a sender").expect("an answer").status, 200);
    for stream in waiting {
        assert_eq!(read_answer(&mut BufReader::new(stream)).expect("an answer").status, 200);
    }
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    assert_eq!(upstream.count(), 21);
}

#[test]
fn a_second_word_or_the_end_of_the_drain_cuts_what_is_left() {
    for second in [true, false] {
        let (upstream, gate) = holding();
        let limits = |timeout: &str| format!("[limits]\ndrain_timeout = \"{timeout}\"\n");
        let mut gateway = start(&configuration(&upstream, OLD, &limits("1h")));
        if !second {
            // A reload's limits count.
            assert!(gateway.reload(&configuration(&upstream, OLD, &limits("300ms"))));
        }
        let held = in_background(signed(OLD, "held"), gateway.public());
        upstream.wait_for(1);
        gateway.signal("TERM");
        gateway.wait_for_log("draining");
        if second {
            gateway.signal("TERM");
        }
        assert_eq!(gateway.wait_for_exit().code(), Some(0));
        assert!(held.join().expect("a sender").is_err(), "cut");
        gateway.wait_for_log(if second { "told again" } else { "drain_timeout is over" });
        gate.open();
    }
}

#[test]
fn systemd_is_told_of_being_ready_reloading_and_stopping() {
    let upstream = Upstream::start();
    let folder = Arc::new(Folder::new());
    // Not in the test's folder: a socket's path has at most 108 bytes.
    let name = std::env::temp_dir().join(format!("hookward-it-{}-notify", std::process::id()));
    let _ = fs::remove_file(&name);
    let socket = UnixDatagram::bind(&name).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let next = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("a word");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let text = configuration(&upstream, OLD, "");
    let mut gateway = Gateway::start_with(folder, &text, |command| {
        command.env("NOTIFY_SOCKET", &name);
    });
    assert_eq!(next().trim_end(), "READY=1");
    // Ready means that a delivery passes.
    assert_eq!(status(&gateway, OLD, "1"), 200);
    for good in [true, false] {
        assert_eq!(gateway.reload(if good { &text } else { "nonsense" }), good);
        let reloading = next();
        let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(reloading.lines().any(|line| line == "RELOADING=1"), "{reloading}");
        assert!(since.and_then(|since| since.parse::<u64>().ok()).is_some_and(|since| since > 0), "{reloading}");
        assert_eq!(next().trim_end(), "READY=1");
    }
    gateway.signal("TERM");
    assert_eq!(next().trim_end(), "STOPPING=1");
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    fs::remove_file(&name).expect("removed");
}

/// Starts the gateway as a service manager does: the socket is descriptor 3, and LISTEN_PID its own pid.
fn start_with_socket(folder: Arc<Folder>, configuration: &str, socket: &TcpListener, name: &str) -> Gateway {
    let inherited = OwnedFd::from(socket.try_clone().expect("a descriptor"));
    Gateway::start_with(folder, configuration, |command| {
        let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
        let mut launcher = Command::new("sh");
        launcher.args(["-c", script, "sh", BINARY, "run", "--config", "gateway.toml"]);
        launcher.current_dir(command.get_current_dir().expect("a folder")).env("LISTEN_FDNAMES", name);
        launcher.stdin(Stdio::from(inherited)).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = launcher;
    })
}

#[test]
fn a_socket_of_systemd_is_served_and_so_are_connections_from_before_the_start() {
    let upstream = Upstream::start();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    for (by_name, configured, name) in [(true, "127.0.0.1:0".to_owned(), "public"), (false, address.to_string(), "")] {
        let early: Vec<_> = (0..5)
            .map(|number| {
                let mut stream = connect(address).expect("the kernel completes it");
                stream.write_all(&signed(OLD, &format!("{by_name} {number}")).bytes()).expect("sent");
                stream
            })
            .collect();
        let text = configuration(&upstream, OLD, "").replacen("127.0.0.1:0", &configured, 1);
        let mut gateway = start_with_socket(Arc::new(Folder::new()), &text, &socket, name);
        assert_eq!(gateway.public(), address);
        for stream in early {
            assert_eq!(read_answer(&mut BufReader::new(stream)).expect("an answer").status, 200);
        }
        assert!(gateway.reload(&text), "and it stays through a reload");
        assert_eq!(status(&gateway, OLD, &format!("{by_name} last")), 200);
        gateway.signal("TERM");
        assert_eq!(gateway.wait_for_exit().code(), Some(0));
    }
    assert_eq!(upstream.count(), 12);
}

#[test]
fn an_upgrade_behind_a_socket_of_systemd_loses_nothing() {
    let upstream = Upstream::start();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let text = configuration(&upstream, OLD, "");
    let begin = || start_with_socket(Arc::new(Folder::new()), &text, &socket, "public");
    let mut old = begin();
    let load = Load::start(old.public(), OLD);
    load.goes_on(20);
    // As `systemctl restart` does: the old one ends, then the new one begins. Nobody serves in between, and the socket
    // holds the connections.
    old.signal("TERM");
    assert_eq!(old.wait_for_exit().code(), Some(0));
    let mut new = begin();
    load.goes_on(20);
    // And with both at once.
    let newer = begin();
    new.signal("TERM");
    assert_eq!(new.wait_for_exit().code(), Some(0));
    load.goes_on(20);
    let sent = load.end();
    assert_eq!(upstream.count(), sent);
    drop(newer);
}

#[test]
fn the_bounds_of_the_inbox_are_those_of_the_configuration_in_force() {
    let upstream = Upstream::start();
    let with = |min_free: &str| {
        format!(
            "{PLAIN}{}\n[inbox]\nmin_free = \"{min_free}\"\n[sources.stored]\npath = \"/stored\"\nupstream = \"app\"\n\
             delivery = \"inbox\"\ndanger_accept_unverified = true\n",
            upstream.table()
        )
    };
    // More than any disk has.
    let mut gateway = Gateway::start_in(Arc::new(Folder::new()), &with("1000000GiB"));
    let send = |gateway: &Gateway| Request::post("/stored", "{}").send(gateway.public());
    let refused = send(&gateway);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("60")));
    assert!(gateway.reload(&with("1MiB")));
    // The disk is looked at once a second.
    eventually("there is room", || (send(&gateway).status == 202).then_some(()));
}
