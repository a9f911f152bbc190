//! Two gateways behind HAProxy, replaced one after the other while deliveries keep coming.

use super::stage::{Client, event, kept, source, state, wait_until_ready};
use crate::support::engines::{HaProxy, Redis, free_port};
use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Gateway, Upstream, eventually};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Of each kind: those that keep their connection, and those that open one for every delivery.
const SENDERS: usize = 4;
/// Between the deliveries of one sender.
const PAUSE: Duration = Duration::from_millis(10);

#[test]
fn a_rolling_restart_of_two_gateways_behind_haproxy_drops_nothing() {
    let (redis, upstream) = (Redis::start(), Upstream::start());
    let ports = [(free_port(), free_port()), (free_port(), free_port())];
    let start = |folder: Arc<Folder>, (public, admin): (u16, u16)| {
        let plain = PLAIN.replacen("127.0.0.1:0", &format!("127.0.0.1:{public}"), 1).replacen(
            "127.0.0.1:0",
            &format!("127.0.0.1:{admin}"),
            1,
        );
        let limits = "[limits]\ndrain_delay = \"2s\"\n";
        let rest = format!("{limits}{}{}{}", state(&redis, "timeout = \"10s\""), upstream.table(), source("shop", ""));
        let gateway = Gateway::start_in(folder, &format!("{plain}{rest}"));
        wait_until_ready(&gateway);
        gateway
    };
    let mut gateways: Vec<Gateway> = ports.iter().map(|ports| start(Arc::new(Folder::new()), *ports)).collect();
    let balancer = HaProxy::start(&format!(
        "defaults\n mode tcp\n option redispatch 1\n retries 3\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n \
         timeout check 5s\n\
         frontend webhooks\n bind BIND\n default_backend gateways\n\
         backend gateways\n balance roundrobin\n option httpchk GET /readyz\n http-check expect status 200\n \
         default-server inter 100ms fall 2 rise 1\n \
         server one 127.0.0.1:{} check port {}\n server two 127.0.0.1:{} check port {}\n",
        ports[0].0, ports[0].1, ports[1].0, ports[1].1
    ));
    let served = |gateway: &Gateway| gateway.outcome("shop", "accepted") > 0;
    let go_on = Arc::new(AtomicBool::new(true));
    let senders: Vec<JoinHandle<Sent>> =
        (0..2 * SENDERS).map(|n| send(balancer.address(), n, n < SENDERS, go_on.clone())).collect();
    for gateway in &gateways {
        eventually("both serve", || served(gateway).then_some(()));
    }
    for _ in 0..2 {
        for (n, ports) in ports.iter().enumerate() {
            let mut old = gateways.remove(n);
            old.signal("TERM");
            assert!(old.wait_for_exit().success(), "{}", old.log_text());
            let new = start(old.folder.clone(), *ports);
            // Before the other one goes: HAProxy knows that this one is back.
            eventually("the new one serves", || served(&new).then_some(()));
            gateways.insert(n, new);
        }
    }
    go_on.store(false, Ordering::SeqCst);
    let sent: Vec<Sent> = senders.into_iter().map(|sender| sender.join().expect("a sender")).collect();
    let failed: Vec<&String> = sent.iter().flat_map(|sent| &sent.failed).collect();
    let delivered: usize = sent.iter().map(|sent| sent.delivered).sum();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), delivered + failed.len());
    assert_eq!(upstream.count(), delivered, "each once");
    assert_eq!(kept(&redis, "shop"), delivered, "and each is known to whoever comes next");
    eprintln!("4 restarts: {delivered} deliveries from {} senders, none failed", sent.len());
}

#[derive(Default)]
struct Sent {
    delivered: usize,
    failed: Vec<String>,
}

fn send(to: SocketAddr, name: usize, keeps: bool, go_on: Arc<AtomicBool>) -> JoinHandle<Sent> {
    thread::spawn(move || {
        let mut sent = Sent::default();
        let mut client = Client::new(to);
        for n in 0.. {
            if !go_on.load(Ordering::SeqCst) {
                break;
            }
            if !keeps {
                client = Client::new(to);
            }
            match client.try_send(&event("shop", &format!("evt_{name}_{n}"))) {
                Ok(answer) if answer.status == 200 => sent.delivered += 1,
                Ok(answer) => sent.failed.push(format!("{} {}", answer.status, answer.text())),
                Err(error) => sent.failed.push(format!("keeps: {keeps}: {error}")),
            }
            // A steady load, and not all that the machine bears.
            thread::sleep(PAUSE);
        }
        sent
    })
}

#[test]
fn while_a_gateway_drains_every_answer_tells_its_sender_to_connect_anew() {
    let upstream = Upstream::start();
    let mut gateway =
        Gateway::start(&format!("[limits]\ndrain_delay = \"3s\"\n{}{}", upstream.table(), source("shop", "")));
    let answer = event("shop", "evt_1").send(gateway.public());
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    gateway.signal("TERM");
    eventually("it drains", || (super::stage::ready(&gateway).0 == 503).then_some(()));
    let answer = event("shop", "evt_2").send(gateway.public());
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(gateway.wait_for_exit().success());
}
