//! What the operator sees: metrics, health, sources, the audit log; and what nobody ever sees.

use crate::accepts::{SECRET, github, push};
use crate::support::gateway::{Folder, hookward};
use crate::support::upstream::Reply;
use crate::support::{Answer, Gateway, PATIENCE, Request, Upstream, eventually, sign};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// The ways for a request to end that are no refusal.
const NO_REFUSALS: [&str; 4] = ["accepted", "challenge", "upstream_refused", "unrouted"];

/// Every reason to say no. Dashboards depend on these words.
const REFUSALS: [&str; 46] = [
    "confirmation_failed",
    "malformed",
    "unsupported_transfer_coding",
    "misdirected",
    "no_source",
    "method_not_allowed",
    "unsupported_media_type",
    "too_large",
    "body_timeout",
    "client_gone",
    "address_not_allowed",
    "client_cert_missing",
    "client_cert_not_allowed",
    "missing_signature",
    "malformed_signature",
    "bad_signature",
    "missing_timestamp",
    "malformed_timestamp",
    "stale",
    "missing_credentials",
    "bad_credentials",
    "replay",
    "duplicate",
    "in_flight",
    "rate_limited",
    "auth_throttled",
    "challenge_limited",
    "client_busy",
    "buffer_full",
    "claims_full",
    "state_error",
    "inbox_full",
    "inbox_error",
    "upstream_busy",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_error",
    "internal",
    "untrusted_key",
    "algorithm_not_allowed",
    "body_mismatch",
    "not_covered",
    "bad_claims",
    "key_unavailable",
    "missing_challenge",
    "not_awaited",
];

/// Each with the labels that dashboards may rely on.
const METRICS: [(&str, &str, &[&str]); 39] = [
    ("hookward_deliveries_total", "counter", &["source", "outcome"]),
    ("hookward_delivery_duration_seconds", "histogram", &["source"]),
    ("hookward_verify_duration_seconds", "histogram", &["source"]),
    ("hookward_upstream_requests_total", "counter", &["upstream", "result"]),
    ("hookward_upstream_duration_seconds", "histogram", &["upstream"]),
    ("hookward_upstream_addresses", "gauge", &["upstream", "url"]),
    ("hookward_upstream_healthy", "gauge", &["upstream", "url"]),
    ("hookward_upstream_healthy_addresses", "gauge", &["upstream", "url"]),
    ("hookward_secret_last_used_timestamp_seconds", "gauge", &["source", "secret"]),
    ("hookward_tls_handshakes_total", "counter", &["listener", "result"]),
    ("hookward_connections", "gauge", &["listener"]),
    ("hookward_buffered_bytes", "gauge", &[]),
    ("hookward_claims", "gauge", &["source"]),
    ("hookward_state_errors_total", "counter", &[]),
    ("hookward_state_duration_seconds", "histogram", &["operation"]),
    ("hookward_state_fallback_total", "counter", &["source"]),
    ("hookward_state_lost_total", "counter", &[]),
    ("hookward_state_clock_skew_seconds", "gauge", &[]),
    ("hookward_inbox_append_duration_seconds", "histogram", &[]),
    ("hookward_inbox_commit_duration_seconds", "histogram", &[]),
    ("hookward_inbox_batch_size", "histogram", &[]),
    ("hookward_inbox_errors_total", "counter", &[]),
    ("hookward_config_reloads_total", "counter", &["result"]),
    ("hookward_build_info", "gauge", &["version"]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_start_time_seconds", "gauge", &[]),
    ("hookward_unmatched_requests_total", "counter", &["reason"]),
    ("hookward_claims_limit", "gauge", &["source"]),
    ("hookward_connections_refused_total", "counter", &["listener"]),
    ("hookward_accept_errors_total", "counter", &["listener"]),
    ("hookward_upstream_in_flight", "gauge", &["upstream"]),
    ("hookward_upstream_repeats_total", "counter", &["upstream"]),
    ("hookward_upstream_resolve_failures_total", "counter", &["upstream", "url"]),
    ("hookward_claim_commit_failures_total", "counter", &[]),
    ("hookward_audit_dropped_total", "counter", &[]),
    ("hookward_config_last_reload_success_timestamp_seconds", "gauge", &[]),
];

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    assert_eq!(push(b"{}").send(gateway.public()).status, 200);
    assert_eq!(Request::post("/nobody", "x").send(gateway.public()).status, 404);
    let text = gateway.metrics();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (Debian package prometheus) is installed");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
    let done = promtool.wait_with_output().expect("promtool ends");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn every_documented_metric_is_there_with_its_kind_and_labels() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    assert_eq!(push(b"{}").send(gateway.public()).status, 200);
    assert_eq!(Request::post("/nobody", "x").send(gateway.public()).status, 404);
    let text = gateway.metrics();
    for (name, kind, labels) in METRICS {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        let series = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) || rest.starts_with("_count"))
        });
        let series = series.unwrap_or_else(|| panic!("{name} has no series"));
        for label in labels {
            assert!(series.contains(&format!("{label}=\"")), "{series} has no {label}");
        }
    }
    let answer = gateway.get("/metrics").expect("an answer");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
}

#[test]
fn every_way_to_end_is_a_series_from_the_start() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    let text = gateway.metrics();
    let count = text.lines().filter(|line| line.starts_with("hookward_deliveries_total{")).count();
    assert_eq!(count, REFUSALS.len() + NO_REFUSALS.len());
    for outcome in REFUSALS.into_iter().chain(NO_REFUSALS) {
        let series = format!("hookward_deliveries_total{{outcome=\"{outcome}\",source=\"github\"}} 0\n");
        assert!(text.contains(&series), "{series}");
    }
}

#[test]
fn healthy_is_alive_and_ready_is_able_to_forward() {
    let upstream = Upstream::with(|request, number| match request.target.as_str() {
        "/up" if number > 0 => Reply::Status(200),
        _ => Reply::Status(500),
    });
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("an address");
    drop(nobody);
    for (url, becomes) in [(upstream.address, 200), (address, 503)] {
        let table = format!(
            "\n[upstreams.app]\nurls = [\"http://{url}\"]\nhealth = {{ path = \"/up\", interval = \"50ms\" }}\n"
        );
        let gateway = Gateway::start(&github(&upstream).replace(&upstream.table(), &table));
        let answer = eventually(&format!("/readyz says {becomes}"), || {
            gateway.get("/readyz").filter(|answer| answer.status == becomes)
        });
        let said = if becomes == 200 { "ready\n" } else { "not ready: no upstream can be reached\n" };
        assert_eq!(answer.text(), said);
        assert_eq!(
            gateway.get("/healthz").map(|answer| (answer.status, answer.text())),
            Some((200, "ok\n".to_owned()))
        );
    }
}

#[test]
fn everything_but_metrics_and_health_wants_the_token() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&github(&upstream));
    let ask = |method: &str, path: &str, headers: &[&str]| -> Answer {
        let request = Request::new(method, path);
        let request = headers.iter().fold(request, |request, value| request.header("Authorization", value));
        request.send(gateway.address("admin"))
    };
    let token = "Bearer an-admin-token-for-tests";
    let given = ask("GET", "/sources", &[token]);
    assert_eq!(given.status, 200);
    let listed: serde_json::Value = serde_json::from_slice(&given.body).expect("JSON");
    let source = &listed["sources"][0];
    assert_eq!(
        (&source["name"], &source["path"], &source["upstream"]),
        (&"github".into(), &"/github".into(), &"app".into())
    );
    assert_eq!(source["secrets"], serde_json::json!(["value"]));
    assert_eq!(ask("GET", "/sources", &["bearer an-admin-token-for-tests"]).status, 200);
    for (what, headers) in [
        ("no token", &[][..]),
        ("another", &["Bearer an-admin-token-for-test"]),
        ("a longer one", &["Bearer an-admin-token-for-tests2"]),
        ("none at all", &["Bearer "]),
        ("another scheme", &["Basic an-admin-token-for-tests"]),
        ("two", &[token, token]),
    ] {
        let refused = ask("GET", "/sources", headers);
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")), "{what}");
        assert!(!refused.text().contains("github"), "{what}");
    }
    // Nor does a stranger learn what else is here.
    assert_eq!(ask("GET", "/nothing", &[]).status, 401);
    assert_eq!(ask("POST", "/sources", &[]).status, 401);
    assert_eq!(ask("GET", "/nothing", &[token]).status, 404);
    assert_eq!(ask("POST", "/sources", &[token]).status, 405);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask("GET", path, &[]).status, 200, "{path}");
        let refused = ask("POST", path, &[]);
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
    // The public listener has none of it.
    assert_eq!(Request::new("GET", "/metrics").send(gateway.public()).status, 404);
}

#[test]
fn without_a_configured_token_nobody_has_it() {
    let upstream = Upstream::start();
    let text = format!(
        "[listeners.public]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n{}",
        github(&upstream)
    );
    let gateway = Gateway::start_in(Arc::new(Folder::new()), &text);
    for value in [None, Some("Bearer "), Some("Bearer"), Some("Bearer x")] {
        let request = Request::new("GET", "/sources");
        let request = match value {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        assert_eq!(request.send(gateway.address("admin")).status, 401, "{value:?}");
    }
    assert_eq!(gateway.get("/healthz").expect("an answer").status, 200);
}

#[test]
fn no_secret_is_ever_shown_to_anybody() {
    let upstream = Upstream::start();
    let folder = Arc::new(Folder::new());
    folder.write("file-secret", "needle-in-a-file-0123456789\n");
    let configuration = format!(
        r#"
[listeners.public]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
token = {{ value = "needle-admin-0123456789" }}
[log]
format = "json"
level = "debug"
[upstreams.app]
urls = ["http://{address}"]
sign = {{ secret = {{ value = "whsec_bmVlZGxlLXNpZ25pbmctMDEyMzQ1Njc4OWFiY2Q=" }} }}
[sources.github]
path = "/github"
provider = "github"
secrets = [{{ value = "needle-value-0123456789" }}, {{ file = "file-secret" }}, {{ env = "NEEDLE" }}]
upstream = "app"
[sources.token]
path = "/token"
token = {{ header = "X-Token", secrets = [{{ value = "needle-token-0123456789" }}] }}
upstream = "app"
[sources.bearer]
path = "/bearer"
bearer = [{{ value = "needle-bearer-0123456789" }}]
upstream = "app"
[sources.basic]
path = "/basic"
basic = {{ username = "hooks", password = {{ value = "needle-basic-0123456789" }} }}
upstream = "app"
"#,
        address = upstream.address
    );
    let environment = "needle-environment-0123456789";
    let gateway = Gateway::start_with(folder.clone(), &configuration, |command| {
        command.env("NEEDLE", environment).env("RUST_LOG", "trace");
    });
    let basic = "Basic aG9va3M6bmVlZGxlLWJhc2ljLTAxMjM0NTY3ODk=";
    let body = br#"{"needle-body":1}"#;
    let genuine = sign::github(environment, body);
    let query = "?key=needle-query";
    let send = |path: &str, name: &str, value: &str| {
        let request = Request::post(&format!("{path}{query}"), body.as_slice()).header(name, value);
        request.header("X-Other", "needle-header").send(gateway.public()).status
    };
    // The right one, and one that is nearly right and as secret.
    for (path, name, right) in [
        ("/github", "X-Hub-Signature-256", genuine.as_str()),
        ("/token", "X-Token", "needle-token-0123456789"),
        ("/bearer", "Authorization", "Bearer needle-bearer-0123456789"),
        ("/basic", "Authorization", basic),
    ] {
        assert_eq!(send(path, name, right), 200, "{path}");
        assert_eq!(send(path, name, &format!("{}x", &right[..right.len() - 1])), 401, "{path}");
    }
    let with_token = Request::new("GET", "/sources").header("Authorization", "Bearer needle-admin-0123456789");
    let sources = with_token.send(gateway.address("admin"));
    assert_eq!(sources.status, 200);
    let last = Request::post("/github", "").send(gateway.public());
    gateway.audit_of(&last.request_id());

    let effective = Command::new(crate::support::gateway::BINARY)
        .current_dir(&folder.0)
        .env("NEEDLE", environment)
        .args(["check", "--effective", "--config", "gateway.toml"])
        .output()
        .expect("the binary runs");
    assert_eq!(effective.status.code(), Some(0));
    let effective = [effective.stdout, effective.stderr].concat();
    let hexadecimal = genuine.strip_prefix("sha256=").expect("a prefix").to_owned();
    for (what, text) in [
        ("/metrics", gateway.metrics()),
        ("/sources", sources.text()),
        ("the log and the audit log", gateway.log_text()),
        ("check --effective", String::from_utf8_lossy(&effective).into_owned()),
    ] {
        assert!(text.len() > 200, "{what} says nothing: {text}");
        let lower = text.to_lowercase();
        for needle in ["needle-", "bmvlzgxl", "ag9va3m6", hexadecimal.as_str()] {
            let shown = lower.lines().find(|line| line.contains(needle) && !line.contains("file:file-secret"));
            assert!(shown.is_none(), "{what} shows a secret: {shown:?}");
        }
    }
}

#[test]
fn no_problem_of_a_configuration_repeats_a_secret() {
    let folder = Folder::new();
    folder.write(
        "gateway.toml",
        r#"
[listeners.public]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
token = "needle-one"
[upstreams.app]
urls = ["http://user:needle-two@127.0.0.1:9000", "redis://:needle-three@127.0.0.1"]
sign = { secret = { value = "needle-four" } }
[sources.a]
path = "/a"
provider = "standard-webhooks"
secrets = [{ value = "needle-five!" }, "needle-six", { valeu = "needle-seven" }, { value = ["needle-eight"] }]
upstream = "app"
[sources.b]
path = "/b"
secret = "needle-nine"
bearer = [{ value = "needle-ten" }]
upstream = "app"
"#,
    );
    let (code, out, said) = hookward(&folder.0, &["check", "--effective"]);
    assert_eq!(code, 78);
    assert!(said.matches("error: ").count() >= 8, "{said}");
    assert!(!out.contains("needle") && !said.contains("needle"), "{out}\n{said}");
    folder.write("gateway.toml", "[sources.a]\nsecrets = [{ value = \"needle-eleven }]\ntoken = needle-twelve\n");
    let (code, out, said) = hookward(&folder.0, &["check", "--effective"]);
    assert_eq!(code, 78);
    assert!(!out.contains("needle") && !said.contains("needle"), "{out}\n{said}");
}

#[test]
fn the_audit_line_says_who_what_and_how_it_ended() {
    let upstream = Upstream::start();
    for format in ["json", "text"] {
        let text = format!(
            "[listeners.public]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\nformat = \"{format}\"\n{}",
            github(&upstream)
        );
        let gateway = Gateway::start_in(Arc::new(Folder::new()), &text);
        let body = format!("{{\"format\":\"{format}\"}}");
        let good = push(body.as_bytes()).send(gateway.public()).request_id();
        let bad = Request::post("/github?secret=1", "x").send(gateway.public()).request_id();
        let strange = Request::post("/no%22body", "x").send(gateway.public()).request_id();
        let line = |id: &str| gateway.wait_for_log(id);
        let fields = [
            ("client", "127.0.0.1"),
            ("listener", "public"),
            ("source", "github"),
            ("outcome", "accepted"),
            ("status", "200"),
            ("method", "POST"),
            ("path", "/github"),
            ("verified", "github"),
            ("event_id", "d-1"),
            ("event_type", "push"),
            ("upstream", "app"),
            ("body_bytes", &body.len().to_string()),
        ];
        if format == "json" {
            let json: serde_json::Value = serde_json::from_str(&line(&good)).expect("JSON");
            for (name, value) in fields {
                let said = json[name].as_str().map_or_else(|| json[name].to_string(), str::to_owned);
                assert_eq!(said, value, "{name}");
            }
            for name in ["duration_us", "forward_us", "verify_us"] {
                assert!(json[name].as_u64().is_some_and(|micros| micros > 0), "{name}: {json}");
            }
            assert_eq!(json["type"], "audit");
            assert!(json["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{json}");
        } else {
            let said = line(&good);
            for (name, value) in fields {
                assert!(
                    said.contains(&format!(" {name}={value} ")) || said.contains(&format!(" {name}={value}")),
                    "{said}"
                );
            }
            assert!(said.contains("Z audit client=127.0.0.1 request_id="), "{said}");
        }
        assert!(line(&bad).contains("missing_signature") && !line(&bad).contains("secret=1"), "{}", line(&bad));
        assert!(line(&strange).contains("no_source"), "{}", line(&strange));
    }
}

#[test]
fn a_stranger_cannot_write_a_line_into_the_log() {
    let upstream = Upstream::start();
    for format in ["json", "text"] {
        let text = format!(
            "[listeners.public]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\nformat = \"{format}\"\nlevel = \"debug\"\n{}\n\
             [sources.stripe]\npath = \"/stripe\"\nprovider = \"stripe\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\n",
            github(&upstream)
        );
        let gateway = Gateway::start_in(Arc::new(Folder::new()), &text);
        // A genuine sender whose customer chose the id.
        let forged =
            r#"e\n2026-01-01T00:00:00Z audit client=10.0.0.1 request_id=forged outcome=accepted\u2028\u001b[31m"#;
        let body = format!(r#"{{"id":"{forged}","type":"a\r\nb=\"c\""}}"#);
        let signature = sign::stripe(SECRET, sign::now(), body.as_bytes());
        let answer = Request::post("/stripe", body).header("Stripe-Signature", signature).send(gateway.public());
        assert_eq!(answer.status, 200);
        gateway.wait_for_log(&answer.request_id());
        // A stranger whose path, host and header are all they have.
        let id = Request::post("/x\u{85}request_id=forged", "")
            .header("Host", "a.example")
            .header("X-GitHub-Event", b"push\tb=\xff\xfe")
            .try_send(gateway.public());
        if let Ok(answer) = id {
            gateway.wait_for_log(&answer.request_id());
        }
        for line in gateway.log_text().lines() {
            assert!(
                !line.starts_with("2026-01-01") && !line.contains('\u{1b}') && !line.contains('\u{2028}'),
                "{line:?}"
            );
            assert!(format == "text" || serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line:?}");
        }
        let forged =
            gateway.log_text().lines().filter(|line| line.starts_with("2026-01-01") || line.starts_with("b=")).count();
        assert_eq!(forged, 0);
    }
}

#[test]
fn a_secret_is_used_when_it_is_the_first_that_matches() {
    let upstream = Upstream::start();
    let twice = "a-secret-that-is-listed-twice";
    let folder = Arc::new(Folder::new());
    for (name, secret) in
        [("new", "the-new-secret-of-two"), ("old", "the-old-secret-of-two"), ("one", twice), ("two", twice)]
    {
        folder.write(name, secret);
    }
    let source = |name: &str, secrets: [&str; 2]| {
        let secrets = secrets.map(|secret| format!("{{ file = \"{secret}\" }}")).join(", ");
        format!(
            "\n[sources.{name}]\npath = \"/{name}\"\nprovider = \"github\"\nsecrets = [{secrets}]\nupstream = \"app\"\n"
        )
    };
    let text = format!(
        "{}{}{}{}\n[sources.token]\npath = \"/token\"\ntoken = {{ header = \"X-Token\", secrets = [{{ file = \"new\" }}, {{ file = \"old\" }}] }}\nupstream = \"app\"\n",
        crate::support::gateway::PLAIN,
        upstream.table(),
        source("rotating", ["new", "old"]),
        source("twins", ["one", "two"])
    );
    let gateway = Gateway::start_in(folder, &text);
    let used = |source: &str, secret: &str| {
        gateway.metric(
            "hookward_secret_last_used_timestamp_seconds",
            &[("source", source), ("secret", &format!("file:{secret}"))],
        )
    };
    let send = |source: &str, secret: &str, body: &str| {
        let request = Request::post(&format!("/{source}"), body);
        request.header("X-Hub-Signature-256", sign::github(secret, body.as_bytes())).send(gateway.public()).status
    };
    let before = sign::now() as f64;
    assert_eq!((used("rotating", "new"), used("rotating", "old")), (0.0, 0.0));
    assert_eq!(send("rotating", "nobodys-secret-at-all", "0"), 401);
    assert_eq!((used("rotating", "new"), used("rotating", "old")), (0.0, 0.0));
    assert_eq!(send("rotating", "the-old-secret-of-two", "1"), 200);
    assert_eq!(used("rotating", "new"), 0.0);
    let last = used("rotating", "old");
    assert!(last >= before && last <= before + PATIENCE.as_secs_f64(), "{last}");
    assert_eq!(send("rotating", "the-new-secret-of-two", "2"), 200);
    assert!(used("rotating", "new") >= last);
    assert_eq!(used("rotating", "old"), last);
    // Both match: the first is counted, so that the second is seen to be idle.
    assert_eq!(send("twins", twice, "3"), 200);
    assert!(used("twins", "one") >= before);
    assert_eq!(used("twins", "two"), 0.0);
    let token = Request::post("/token", "4").header("X-Token", "the-old-secret-of-two");
    assert_eq!(token.send(gateway.public()).status, 200);
    assert_eq!(used("token", "new"), 0.0);
    assert!(used("token", "old") >= before);
}
