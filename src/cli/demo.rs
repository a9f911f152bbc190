//! `demo`: the whole way on this machine, with nothing to set up. The shipped example configuration, development
//! certificates, a small upstream, and senders of every kind; then a table of what became of each.
//!
//! What the table says of an answer's cause is read from the gateway's own audit log, not assumed.

use super::certs;
use super::reload::Running;
use super::send::Sender;
use super::{NO, UNUSABLE_CONFIGURATION, complain, say};
use crate::clock::UnixMillis;
use crate::config::{self, Loaded, Severity};
use crate::delivery::Delivery;
use crate::fields::Fields;
use crate::verify::{NoWorkshop, Verifier};
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

const EXAMPLE: &str = include_str!("../../gateway.example.toml");

/// Secrets of the demonstration; the example names them, the environment is not asked.
const SECRETS: [(&str, &str); 5] = [
    ("GITHUB_SECRET", "demo-github-secret-0123456789"),
    ("STRIPE_SECRET", "whsec_demo-stripe-secret-0123456789"),
    ("SHOPIFY_SECRET", "demo-shopify-secret-0123456789"),
    ("ACME_SECRET", "demo-acme-secret-0123456789"),
    ("HOOKWARD_ADMIN_TOKEN", "demo-admin-token-0123456789"),
];

const LARGEST_BODY: usize = 32 * 1024 * 1024;

/// More than the example's burst of 40 and what its rate gives back meanwhile.
const TOO_MANY: usize = 90;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Print the table and end, with 1 where something went otherwise than it should.
    #[arg(long)]
    exit: bool,
}

pub(super) fn demo(arguments: &Arguments) -> ExitCode {
    let folder = std::env::temp_dir().join(format!("hookward-demo-{}", std::process::id()));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime cannot start: {error}"));
            return ExitCode::from(UNUSABLE_CONFIGURATION);
        }
    };
    let shown = runtime.block_on(show(&folder, arguments.exit));
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        complain(&format!("{}: {error}", folder.display()));
    }
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        Err(why) => {
            complain(&why);
            ExitCode::from(UNUSABLE_CONFIGURATION)
        }
    }
}

async fn show(folder: &Path, exit: bool) -> Result<bool, String> {
    let seen = Arc::new(AtomicUsize::new(0));
    let upstream = start_upstream(seen.clone()).await.map_err(|error| format!("the upstream cannot start: {error}"))?;
    let stage = Stage::set(folder, upstream, exit)?;
    let environment =
        |name: &str| SECRETS.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
    let file = folder.join("gateway.toml");
    let load = || -> Result<config::Config, String> {
        let Loaded { config, problems, .. } = config::load(&file, &environment);
        let errors: Vec<_> =
            problems.iter().filter(|problem| problem.severity == Severity::Error).map(ToString::to_string).collect();
        config.ok_or_else(|| errors.join("\n"))
    };
    // A second reading gives the verifiers that sign; the first goes to work.
    let signers: BTreeMap<String, Arc<Verifier>> =
        load()?.plan.sources.into_iter().map(|source| (source.name.to_string(), source.verifier)).collect();
    let mut running = Running::start(load()?, Vec::new(), Box::new(|| Box::new(NoWorkshop))).await?;
    let addresses: BTreeMap<_, _> = running.addresses().collect();
    let at = |name: &str| addresses.get(name).copied().ok_or_else(|| format!("there is no {name} listener"));
    let (public, admin) = (at("public")?, at("admin")?);

    let mut play = Play { stage: &stage, signers, public, running: &running, rows: Vec::new() };
    play.all().await?;
    let good = play.print(seen.load(Ordering::Relaxed));
    if !exit {
        say(&format!("\nThe gateway is up until Ctrl-C.\n\n  metrics   curl http://{admin}/metrics"));
        say(&format!(
            "  refused   curl --cacert {} -d '{{}}' https://localhost:{}/github",
            folder.join("certs/dev/ca.pem").display(),
            public.port()
        ));
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("hookward"));
        let secrets: Vec<_> = SECRETS.iter().map(|(name, value)| format!("{name}={value}")).collect();
        say(&format!(
            "  accepted  echo '{{\"zen\":\"Speak like a human.\"}}' | {} {} send --config {} --source github --to https://localhost:{} --cacert {}",
            secrets.join(" "),
            program.display(),
            file.display(),
            public.port(),
            folder.join("certs/dev/ca.pem").display()
        ));
        tokio::signal::ctrl_c().await.map_err(|error| error.to_string())?;
    }
    running.stop_accepting();
    // What is under way in a demonstration may be cut.
    let _ = tokio::time::timeout(Duration::from_secs(2), running.finished()).await;
    running.close().await;
    Ok(good)
}

/// The files of the demonstration.
struct Stage {
    folder: PathBuf,
    ca: String,
    client: (String, String),
    /// A client whose certificate another CA signed.
    stranger: (String, String),
}

impl Stage {
    fn set(folder: &Path, upstream: SocketAddr, exit: bool) -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let make = || certs::make(&hosts, "sender.example.com", 1).map_err(|error| error.to_string());
        let (made, other) = (make()?, make()?);
        std::fs::create_dir(folder).map_err(fail)?;
        certs::write(&made, &folder.join("certs/dev"), false)?;
        // A script asks nobody to connect, and several may run at once: then a port that looked free may be taken.
        let port = |port| if exit { "127.0.0.1:0".to_owned() } else { free_or_any(port) };
        let text = EXAMPLE
            .replace("0.0.0.0:8443", &port(8443))
            .replace("127.0.0.1:9090", &port(9090))
            .replace("http://127.0.0.1:9000", &format!("http://{upstream}"));
        let text = format!("{text}\n[log]\nformat = \"json\"\nlevel = \"error\"\naudit = \"audit.log\"\n");
        std::fs::write(folder.join("gateway.toml"), text).map_err(fail)?;
        Ok(Self { folder: folder.to_owned(), ca: made.ca, client: made.client, stranger: other.client })
    }

    /// What the gateway's audit log says of a request: its outcome.
    fn outcome(&self, request_id: &str) -> Option<String> {
        let log = std::fs::read_to_string(self.folder.join("audit.log")).ok()?;
        let line = log.lines().find(|line| line.contains(request_id))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line.get("outcome")?.as_str().map(str::to_owned)
    }
}

/// The example's port on loopback, or any where that is taken.
fn free_or_any(port: u16) -> String {
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    format!("127.0.0.1:{}", if free { port } else { 0 })
}

#[derive(Clone, Copy)]
enum Who {
    Anybody,
    WithCertificate,
    WithForeignCertificate,
}

struct Play<'a> {
    stage: &'a Stage,
    signers: BTreeMap<String, Arc<Verifier>>,
    public: SocketAddr,
    running: &'a Running,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    answer: String,
    outcome: String,
    as_it_should: bool,
}

struct Webhook {
    path: &'static str,
    headers: Fields,
    body: Bytes,
}

impl Play<'_> {
    async fn all(&mut self) -> Result<(), String> {
        let now = self.running.door.clock.now();
        let hour_ago = UnixMillis(now.0.saturating_sub(3_600_000));
        let push = self.signed("github", "/github", r#"{"ref":"refs/heads/main"}"#, "delivery-1", now)?;
        self.send("GitHub push, genuine", &push, Who::Anybody, 200, "accepted").await?;
        self.send("the same again: a redelivery, answered and not forwarded", &push, Who::Anybody, 202, "replay")
            .await?;
        let tampered = Webhook {
            body: Bytes::from_static(br#"{"ref":"refs/heads/evil"}"#),
            headers: push.headers.clone(),
            ..push
        };
        self.send("GitHub push, its body changed on the way", &tampered, Who::Anybody, 401, "bad_signature").await?;
        let unsigned = Webhook { path: "/github", headers: Fields::new(), body: Bytes::from_static(b"{}") };
        self.send("GitHub push, not signed at all", &unsigned, Who::Anybody, 401, "missing_signature").await?;

        let event = self.signed("stripe", "/stripe", r#"{"id":"evt_1","type":"invoice.paid"}"#, "", now)?;
        self.send("Stripe event, genuine", &event, Who::Anybody, 200, "accepted").await?;
        self.send("the same bytes again: a replay", &event, Who::Anybody, 409, "replay").await?;
        let stale = self.signed("stripe", "/stripe", r#"{"id":"evt_2","type":"invoice.paid"}"#, "", hour_ago)?;
        self.send("Stripe event, genuine and signed an hour ago", &stale, Who::Anybody, 401, "stale").await?;
        let again =
            self.signed("stripe", "/stripe", r#"{"id":"evt_1","type":"invoice.paid"}"#, "", UnixMillis(now.0 + 1000))?;
        self.send("Stripe's retry of evt_1, signed anew: a duplicate", &again, Who::Anybody, 202, "duplicate").await?;

        let order = self.signed("acme", "/acme", r#"{"type":"order.created"}"#, "order-1", now)?;
        self.send("Acme order over mTLS, genuine", &order, Who::WithCertificate, 200, "accepted").await?;
        let next = self.signed("acme", "/acme", r#"{"type":"order.paid"}"#, "order-2", now)?;
        self.send("Acme order, signed, without a client certificate", &next, Who::Anybody, 403, "client_cert_missing")
            .await?;
        self.send_over_foreign_tls("Acme order, with another CA's certificate", &next).await;
        self.send("nobody's path", &Webhook { path: "/wp-login.php", ..unsigned }, Who::Anybody, 404, "no_source")
            .await?;
        self.flood(now).await
    }

    fn signed(
        &self,
        source: &str,
        path: &'static str,
        body: &str,
        id: &str,
        at: UnixMillis,
    ) -> Result<Webhook, String> {
        let signer = self.signers.get(source).ok_or_else(|| format!("the example has no source {source}"))?;
        let draft = Delivery {
            method: Method::POST,
            scheme: "https",
            authority: format!("localhost:{}", self.public.port()),
            path: path.to_owned(),
            query: None,
            headers: Fields::new(),
            body: Bytes::from(body.to_owned()),
        };
        let signed = signer.sign(draft, id, at, None).map_err(|error| error.to_string())?.delivery;
        Ok(Webhook { path, headers: signed.headers, body: signed.body })
    }

    fn sender(&self, who: Who) -> Result<Sender, String> {
        let to: Uri = format!("https://localhost:{}", self.public.port()).parse().map_err(|_| "no url".to_owned())?;
        let identity = match who {
            Who::Anybody => None,
            Who::WithCertificate => Some(&self.stage.client),
            Who::WithForeignCertificate => Some(&self.stage.stranger),
        };
        Sender::new(&to, Some(self.stage.ca.as_bytes()), identity.map(|(c, k)| (c.as_bytes(), k.as_bytes())))
    }

    async fn send(
        &mut self,
        what: &str,
        webhook: &Webhook,
        who: Who,
        status: u16,
        outcome: &str,
    ) -> Result<(), String> {
        let sender = self.sender(who)?;
        let answer = sender.send(&Method::POST, None, webhook.path, &webhook.headers, webhook.body.clone()).await?;
        let request_id =
            answer.headers.get("x-request-id").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        self.running.door.audit.flush();
        let said = self.stage.outcome(&request_id).unwrap_or_default();
        let as_it_should = answer.status.as_u16() == status && said == outcome;
        self.rows.push(Row {
            what: what.to_owned(),
            answer: answer.status.as_u16().to_string(),
            outcome: said,
            as_it_should,
        });
        Ok(())
    }

    async fn send_over_foreign_tls(&mut self, what: &str, webhook: &Webhook) {
        let sent = match self.sender(Who::WithForeignCertificate) {
            Ok(sender) => sender.send(&Method::POST, None, webhook.path, &webhook.headers, webhook.body.clone()).await,
            Err(why) => Err(why),
        };
        let as_it_should = sent.is_err();
        self.rows.push(Row {
            what: what.to_owned(),
            answer: "none".to_owned(),
            outcome: "TLS handshake refused".to_owned(),
            as_it_should,
        });
    }

    /// More genuine events at once than the source's rate.
    async fn flood(&mut self, now: UnixMillis) -> Result<(), String> {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..TOO_MANY {
            let event = self.signed(
                "stripe",
                "/stripe",
                &format!(r#"{{"id":"evt_f{number}","type":"invoice.paid"}}"#),
                "",
                now,
            )?;
            let sender = self.sender(Who::Anybody)?;
            tasks.spawn(async move { sender.send(&Method::POST, None, event.path, &event.headers, event.body).await });
        }
        let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            let answer = done.map_err(|error| error.to_string())??;
            *counts.entry(answer.status.as_u16()).or_default() += 1;
        }
        let shown: Vec<_> = counts.iter().map(|(status, count)| format!("{count} × {status}")).collect();
        let as_it_should = counts.contains_key(&200) && counts.contains_key(&429) && counts.len() == 2;
        self.rows.push(Row {
            what: format!("{TOO_MANY} genuine Stripe events at once, 40 and 20 a second allowed"),
            answer: shown.join(", "),
            outcome: "accepted, rate_limited".to_owned(),
            as_it_should,
        });
        Ok(())
    }

    fn print(&self, seen: usize) -> bool {
        say(&format!("{:<60} {:<18} {}", "what was sent", "answer", "outcome (from the audit log)"));
        for row in &self.rows {
            let mark = if row.as_it_should { "" } else { "   <- not as it should be" };
            say(&format!("{:<60} {:<18} {}{mark}", row.what, row.answer, row.outcome));
        }
        say(&format!("\nThe upstream saw {seen} requests: what was accepted, and nothing else."));
        self.rows.iter().all(|row| row.as_it_should)
    }
}

/// Says 200 to everything and counts.
async fn start_upstream(seen: Arc<AtomicUsize>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let seen = seen.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    Limited::new(request.into_body(), LARGEST_BODY).collect().await?;
                    seen.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(Full::new(Bytes::from_static(
                        b"ok\n",
                    ))))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Ok(address)
}
