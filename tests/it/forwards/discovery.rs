//! Names with several addresses: a real resolver (the system's, reading a hosts file of the test's own through
//! libnss_wrapper) and upstreams on several loopback addresses at one port.

use super::{delivery, source};
use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Gateway, Reply, Upstream, eventually};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

const NAME: &str = "app.cluster.example";

/// The hosts file of one gateway: what `NAME` resolves to.
struct Hosts {
    folder: Arc<Folder>,
    written: AtomicU64,
}

impl Hosts {
    fn new(last_bytes: &[u8]) -> Self {
        let hosts = Self { folder: Arc::default(), written: AtomicU64::new(0) };
        hosts.say(last_bytes);
        hosts
    }

    /// From now on the name has these addresses in 127.0.0.0/24.
    fn say(&self, last_bytes: &[u8]) {
        let lines: String = last_bytes.iter().map(|last| format!("127.0.0.{last} {NAME}\n")).collect();
        let new = self.folder.write("hosts.new", lines);
        // The library reads the file again when it has another time, in seconds.
        let later = Duration::from_secs(self.written.fetch_add(2, Ordering::SeqCst));
        let file = std::fs::File::options().append(true).open(&new).expect("the file");
        file.set_modified(SystemTime::now() + later).expect("a time");
        std::fs::rename(new, self.folder.path("hosts")).expect("a rename");
    }

    fn gateway(&self, port: u16, more: &str) -> Gateway {
        let configuration = format!(
            "{PLAIN}[upstreams.app]\nurls = [\"http://{NAME}:{port}\"]\nresolve_interval = \"1s\"\n{more}\n{}",
            source("github", "/github", "")
        );
        let gateway = Gateway::start_with(self.folder.clone(), &configuration, |command| {
            command.env("LD_PRELOAD", "libnss_wrapper.so").env("NSS_WRAPPER_HOSTS", self.folder.path("hosts"));
        });
        let log = gateway.log_text();
        assert!(!log.contains("cannot be preloaded"), "install libnss-wrapper (tests/run does): {log}");
        gateway
    }
}

/// Upstreams on these loopback addresses, at one port.
fn upstreams<const N: usize>(last_bytes: [u8; N]) -> (u16, [Upstream; N]) {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let bind = |last: u8| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).ok();
        let bound: Vec<_> = last_bytes.into_iter().filter_map(bind).collect();
        if let Ok(all) = <[_; N]>::try_from(bound) {
            return (port, all.map(|listener| Upstream::on(listener, |_, _| Reply::Status(200))));
        }
    }
}

/// A series of the name's url.
fn of_url(gateway: &Gateway, port: u16, name: &str) -> f64 {
    let url = format!("http://{NAME}:{port}");
    gateway.metric(&format!("hookward_upstream_{name}"), &[("upstream", "app"), ("url", &url)])
}

/// Deliveries without a pause from four senders, until `until` has returned; what they were answered.
fn under_load(gateway: &Gateway, until: impl FnOnce()) -> Vec<u16> {
    let (next, over) = (AtomicUsize::new(1000), AtomicBool::new(false));
    let to = gateway.public();
    std::thread::scope(|scope| {
        let send = || {
            let mut statuses = Vec::new();
            while !over.load(Ordering::SeqCst) {
                statuses.push(delivery("/github", next.fetch_add(1, Ordering::SeqCst)).send(to).status);
            }
            statuses
        };
        let senders: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(until));
        over.store(true, Ordering::SeqCst);
        let statuses = senders.into_iter().flat_map(|sender| sender.join().expect("a sender")).collect();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        statuses
    })
}

#[test]
fn each_address_of_a_name_gets_its_share_under_the_names_own_host() {
    let (port, apps) = upstreams([2, 3]);
    let hosts = Hosts::new(&[2, 3]);
    let gateway = hosts.gateway(port, "");
    for number in 0..20 {
        assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
    }
    assert_eq!((apps[0].count(), apps[1].count()), (10, 10));
    for received in apps.iter().flat_map(Upstream::received) {
        assert_eq!(received.all("host"), [format!("{NAME}:{port}")]);
    }
    assert_eq!((of_url(&gateway, port, "addresses"), of_url(&gateway, port, "healthy_addresses")), (2.0, 2.0));
    assert_eq!(of_url(&gateway, port, "healthy"), 1.0);
}

#[test]
fn addresses_are_replaced_one_after_the_other_under_load_and_no_delivery_fails() {
    let (port, mut apps) = upstreams([2, 3, 4, 5]);
    let hosts = Hosts::new(&[2, 3]);
    let gateway = hosts.gateway(port, "");
    let statuses = under_load(&gateway, || {
        apps[0].wait_for(10);
        apps[1].wait_for(10);
        for (serving, gone, new) in [(&[3, 4][..], 0, 2), (&[4, 5], 1, 3)] {
            hosts.say(serving);
            let before = apps[new].count();
            apps[new].wait_for(before + 10);
            // What was under way there ends, what rested is closed: then it can be stopped.
            apps[gone].wait_until_left();
            apps[gone].stop();
        }
        let before = apps[2].count();
        apps[2].wait_for(before + 50);
    });
    assert!(statuses.len() > 100 && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(gateway.metric("hookward_upstream_repeats_total", &[("upstream", "app")]), 0.0);
    assert_eq!(of_url(&gateway, port, "addresses"), 2.0);
    gateway.wait_for_log("the upstream's addresses changed");
}

#[test]
fn an_address_that_dies_while_its_name_still_has_it_costs_no_delivery() {
    let (port, mut apps) = upstreams([2, 3]);
    let hosts = Hosts::new(&[2, 3]);
    let gateway = hosts.gateway(port, "");
    for number in 0..10 {
        assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
    }
    apps[1].stop();
    for number in 10..40 {
        assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
    }
    assert_eq!((of_url(&gateway, port, "addresses"), of_url(&gateway, port, "healthy_addresses")), (2.0, 1.0));
    assert_eq!(of_url(&gateway, port, "healthy"), 1.0, "a url is as well as its best address");
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 200);
}

#[test]
fn a_name_that_resolves_no_longer_keeps_the_addresses_it_had() {
    let (port, apps) = upstreams([2]);
    let hosts = Hosts::new(&[2]);
    let gateway = hosts.gateway(port, "");
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200);
    hosts.say(&[]);
    eventually("two lookups have failed", || (of_url(&gateway, port, "resolve_failures_total") >= 2.0).then_some(()));
    for number in 1..10 {
        assert_eq!(delivery("/github", number).send(gateway.public()).status, 200);
    }
    assert_eq!((apps[0].count(), of_url(&gateway, port, "addresses")), (10, 1.0));
    let told = gateway.log_text().matches("the addresses known before stay in use").count();
    assert_eq!(told, 1, "once, not with every lookup");
    hosts.say(&[2]);
    gateway.wait_for_log("the upstream's name is resolved again");
}

#[test]
fn a_name_that_does_not_resolve_at_the_start_is_no_error_and_is_served_as_soon_as_it_does() {
    let (port, apps) = upstreams([2]);
    let hosts = Hosts::new(&[]);
    let gateway = hosts.gateway(port, "");
    let answer = delivery("/github", 0).send(gateway.public());
    assert_eq!(answer.status, 503);
    assert_eq!(gateway.audit_of(&answer.request_id())["outcome"], "upstream_unavailable");
    assert_eq!(gateway.get("/readyz").expect("an answer").status, 503);
    assert_eq!((of_url(&gateway, port, "healthy"), of_url(&gateway, port, "addresses")), (0.0, 0.0));
    hosts.say(&[2]);
    eventually("it is ready", || (gateway.get("/readyz").expect("an answer").status == 200).then_some(()));
    assert_eq!(delivery("/github", 0).send(gateway.public()).status, 200, "the claim was let go");
    assert_eq!((apps[0].count(), of_url(&gateway, port, "healthy")), (1, 1.0));
}
