//! What lies in deploy/ fits the program: its configurations load, its metrics are there, systemd's own hand-over works.
//! Whether the tools take the files themselves is asked by tests/deploy/check.py.

use crate::docs::{check, page, stage};
use crate::support::engines::{HaProxy, free_port};
use crate::support::gateway::{BINARY, Folder, PLAIN};
use crate::support::{Gateway, PATIENCE, Request, Upstream, eventually};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Where the files of a machine or a pod are, as the units and manifests mount them; and where the test has them.
const MOUNTED: [(&str, &str); 6] = [
    ("/etc/hookward/tls/tls.crt", "certs/dev/server.pem"),
    ("/etc/hookward/tls/tls.key", "certs/dev/server.key"),
    ("/etc/hookward/tls/server.pem", "certs/dev/server.pem"),
    ("/run/credentials/hookward.service/server.key", "certs/dev/server.key"),
    ("/var/lib/hookward/", "state/"),
    ("/var/log/hookward/", "log/"),
];

/// `but`: warnings that have their reason, in the file.
fn loads_without_a_warning(name: &str, but: &[&str]) {
    let mut text = page(name);
    for (there, here) in MOUNTED {
        text = text.replace(there, here);
    }
    let folder = stage(&text);
    folder.write("log/none", "");
    let (code, _, err) = check(&folder, &[]);
    assert_eq!(code, 0, "{name}: {err}");
    let warnings: Vec<_> = err.lines().filter(|line| line.contains(": warning: ")).collect();
    let known = warnings.iter().filter(|line| but.iter().any(|known| line.contains(known))).count();
    assert_eq!((warnings.len(), known), (but.len(), but.len()), "{name}: {err}");
    // Its twin: one key that is not known, and it does not.
    let folder = stage(&text.replace("[admin]", "[admin]\ntokn = 1\n"));
    let (code, _, err) = check(&folder, &[]);
    assert_eq!(code, 78, "{name}: {err}");
}

#[test]
fn the_configuration_for_the_systemd_unit_loads_without_a_warning() {
    loads_without_a_warning("deploy/systemd/gateway.toml", &[]);
}

#[test]
fn the_configurations_of_the_kubernetes_manifests_load_without_a_warning() {
    loads_without_a_warning("deploy/kubernetes/stateless/gateway.toml", &[]);
    let in_the_pod = ["admin.token: crosses the network in the clear"];
    loads_without_a_warning("deploy/kubernetes/inbox/gateway.toml", &in_the_pod);
}

/// Names of metrics, without what histograms put behind them.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("hookward_") && !word.ends_with('_'));
    names.map(|word| word.trim_end_matches("_bucket").trim_end_matches("_count").to_owned()).collect()
}

#[test]
fn every_metric_of_the_dashboard_and_of_the_alerts_is_one_that_the_gateway_has() {
    // The README's table is held to the gateway's own answer by tests/it/docs.rs.
    let known = metrics_in(&page("README.md"));
    for name in ["deploy/grafana/hookward.json", "deploy/prometheus/alerts.yml", "deploy/prometheus/alerts.test.yml"] {
        let asked = metrics_in(&page(name));
        assert!(asked.len() > 5, "{name}: {asked:?}");
        let absent: Vec<_> = asked.difference(&known).collect();
        assert!(absent.is_empty(), "{name} asks for metrics that are not there: {absent:?}");
    }
}

#[test]
fn the_readme_says_what_to_do_about_every_alert_that_it_names_and_names_no_other() {
    let alerts = page("deploy/prometheus/alerts.yml");
    let known: BTreeSet<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(known.len() > 8, "{known:?}");
    let said = page("README.md") + &page("docs/many-gateways.md");
    let told: BTreeSet<&str> = said
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.starts_with("Hookward") && word.len() > "Hookward".len())
        .collect();
    assert_eq!(told, known, "README.md and docs/many-gateways.md, and deploy/prometheus/alerts.yml");
}

#[test]
fn systemds_own_activation_hands_over_the_socket_by_name_and_the_connection_that_woke_it_is_served() {
    let upstream = Upstream::start();
    // `systemd-socket-activate` does not say which port it took.
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let name = std::env::temp_dir().join(format!("hookward-it-{}-activated", std::process::id()));
    let _ = std::fs::remove_file(&name);
    let told = UnixDatagram::bind(&name).expect("a socket");
    told.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let source = "[sources.any]\npath = \"/any\"\ndanger_accept_unverified = true\nupstream = \"app\"\n";
    let plain = PLAIN.replacen("127.0.0.1:0", &address.to_string(), 1);
    let text = format!("{plain}{}{source}", upstream.table());
    let first = std::thread::spawn(move || {
        eventually("the first delivery is answered", || Request::post("/any", "first").try_send(address).ok())
    });
    let folder = Arc::new(Folder::new());
    let mut gateway = Gateway::start_with(folder, &text, |command| {
        let mut activator = Command::new("systemd-socket-activate");
        activator.current_dir(command.get_current_dir().expect("a folder"));
        activator.args(["--listen", &address.to_string(), "--fdname", "public"]);
        activator.arg("--setenv").arg(format!("NOTIFY_SOCKET={}", name.display()));
        activator.args([BINARY, "run", "--config", "gateway.toml"]);
        activator.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = activator;
    });
    assert_eq!(gateway.public(), address);
    let mut word = [0; 512];
    let length = told.recv(&mut word).expect("a word");
    assert_eq!(String::from_utf8_lossy(&word[..length]).trim_end(), "READY=1");
    assert_eq!(first.join().expect("an answer").status, 200);
    assert_eq!(upstream.wait_for(1).remove(0).body, b"first");
    gateway.signal("TERM");
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    std::fs::remove_file(&name).expect("removed");
}

#[test]
fn the_shipped_haproxy_brings_deliveries_to_both_gateways_and_to_those_that_are_not_ready_where_none_is() {
    let upstream = Upstream::start();
    let (public, admin) = (free_port(), free_port());
    let source = "[sources.any]\npath = \"/any\"\ndanger_accept_unverified = true\nupstream = \"app\"\n";
    let gateways = ["127.0.0.5", "127.0.0.6"].map(|host| {
        // Whoever brings no PROXY header is turned away.
        let listener = format!("[listeners.public]\naddress = \"{host}:{public}\"\nproxy_protocol = true\n");
        let rest = format!(
            "trusted_proxies = [\"127.0.0.0/8\"]\n[admin]\naddress = \"{host}:{admin}\"\n\
             [limits]\ndrain_delay = \"60s\"\n[log]\nformat = \"json\"\n"
        );
        Gateway::start_in(Arc::new(Folder::new()), &format!("{listener}{rest}{}{source}", upstream.table()))
    });
    // The machines of the file are here on loopback.
    let file = page("deploy/haproxy/haproxy.cfg").replace("bind :8443", "bind BIND");
    let file = file.replace("10.0.0.", "127.0.0.").replace("9090", &admin.to_string());
    let balancer = HaProxy::start(&file.replace(":8443", &format!(":{public}")));
    let send = || Request::post("/any", "{}").send(balancer.address()).status;
    for gateway in &gateways {
        eventually("it serves", || {
            assert_eq!(send(), 200);
            (gateway.outcome("any", "accepted") > 0).then_some(())
        });
    }
    for gateway in &gateways {
        gateway.signal("TERM");
    }
    eventually("HAProxy has noticed", || {
        let log = std::fs::read_to_string(balancer.folder.path("haproxy.log")).expect("its log");
        log.contains("0 active and 2 backup servers left").then_some(())
    });
    assert_eq!(gateways[0].get("/readyz").expect("an answer").status, 503);
    assert_eq!(send(), 200);
}
