//! Redis as others run it: with TLS and a user of its own, as a cluster, and behind sentinels.

use super::stage::{Client, event, gateways, ready, refused_for_now, source};
use crate::support::certs::{Authority, path};
use crate::support::engines::{Redis, free_port};
use crate::support::gateway::Folder;
use crate::support::{Gateway, Request, Upstream, eventually};
use std::thread;
use std::time::{Duration, Instant};

const PASSWORD: &str = "the-password-of-the-gateways";

#[test]
fn over_tls_with_client_certificates_as_a_user_who_may_touch_nothing_else() {
    let upstream = Upstream::start();
    let folder = Folder::new();
    let authority = Authority::new(&folder, "redis");
    let server = authority.server("redis.example.com", "DNS:redis.example.com");
    let client = authority.client("gateway.example.com", "DNS:gateway.example.com");
    let tls_port = free_port();
    let tls = [
        ("--tls-port", tls_port.to_string()),
        ("--tls-cert-file", path(&server.certificate).to_owned()),
        ("--tls-key-file", path(&server.key).to_owned()),
        ("--tls-ca-cert-file", path(&authority.pem()).to_owned()),
        ("--tls-auth-clients", "yes".to_owned()),
        // What an operator gives them: their keys, and nothing that looks at or changes the server.
        ("--user", format!("gateway on >{PASSWORD} ~hookward:* resetchannels +@all -@admin -@dangerous")),
    ];
    let arguments: Vec<&str> =
        tls.iter().flat_map(|(key, value)| std::iter::once(*key).chain(value.split(' '))).collect();
    let redis = Redis::start_with(&arguments);
    let state = |password: &str| {
        format!(
            "[state]\nkind = \"redis\"\nurl = \"rediss://127.0.0.1:{tls_port}/0\"\nusername = \"gateway\"\ntimeout = \"10s\"\n\
             password = {{ value = \"{password}\" }}\n\
             tls = {{ ca = \"{}\", certificate = \"{}\", private_key = \"{}\", server_name = \"redis.example.com\" }}\n",
            path(&authority.pem()),
            path(&client.certificate),
            path(&client.key)
        )
    };
    let gateways = gateways(2, &state(PASSWORD), &upstream, &source("shop", ""));
    let delivery = event("shop", "evt_1");
    assert_eq!(delivery.send(gateways[0].public()).status, 200);
    assert_eq!(delivery.send(gateways[1].public()).status, 409);
    assert!(redis.cli(&["client", "list"]).contains("user=gateway"));
    // With a wrong password it starts, refuses, and says why without saying the password.
    let wrong = Gateway::start(&format!("{}{}{}", state("not-the-password"), upstream.table(), source("shop", "")));
    assert!(refused_for_now(&event("shop", "evt_2").send(wrong.public())));
    assert_eq!(ready(&wrong).0, 503);
    assert!(!wrong.log_text().contains("not-the-password"));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn three_nodes_of_a_cluster_share_the_sources_among_them() {
    let upstream = Upstream::start();
    let start = || {
        let bus = free_port().to_string();
        Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"])
    };
    let nodes = [start(), start(), start()];
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let create = ["--cluster", "create", &addresses[0], &addresses[1], &addresses[2], "--cluster-yes"];
    nodes[0].cli(&create);
    for node in &nodes {
        eventually("the cluster stands", || node.cli(&["cluster", "info"]).contains("cluster_state:ok").then_some(()));
    }
    let state = format!("[state]\nkind = \"redis\"\ncluster = [\"{}\"]\ntimeout = \"10s\"\n", addresses[0]);
    let names: Vec<String> = (0..12).map(|n| format!("shop{n}")).collect();
    let sources: String =
        names.iter().map(|name| source(name, "rate_limit = { rate = \"1000/s\", burst = 1000 }")).collect();
    let gateways = gateways(2, &state, &upstream, &sources);
    for name in &names {
        let delivery = event(name, "evt_1");
        assert_eq!(delivery.send(gateways[0].public()).status, 200, "{name}");
        assert_eq!(delivery.send(gateways[1].public()).status, 409, "{name}");
    }
    assert_eq!(upstream.count(), names.len());
    for node in &nodes {
        assert_ne!(node.cli(&["dbsize"]), "0\n", "every node has its share");
    }
}

#[test]
fn when_sentinels_make_another_the_master_it_serves_within_five_seconds_and_knows_what_was_accepted() {
    let upstream = Upstream::start();
    let mut master = Redis::start();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let sentinels: Vec<Redis> = (0..3)
        .map(|_| {
            let folder = Folder::new();
            folder.write(
                "sentinel.conf",
                format!(
                    "sentinel monitor shared 127.0.0.1 {} 2\nsentinel down-after-milliseconds shared 1000\n\
                     sentinel failover-timeout shared 5000\n",
                    master.port
                ),
            );
            Redis::start_in(folder, &["sentinel.conf", "--sentinel"])
        })
        .collect();
    for sentinel in &sentinels {
        eventually("the sentinels know all", || {
            let known = sentinel.cli(&["sentinel", "master", "shared"]);
            let field = |name: &str| known.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
            let all = [field("num-slaves")?, field("num-other-sentinels")?];
            (all == ["1", "2"]).then_some(())
        });
    }
    eventually("the replica follows", || replica.replication().filter(|told| told.contains("master_link_status:up")));
    let list: Vec<String> = sentinels.iter().map(|sentinel| format!("\"127.0.0.1:{}\"", sentinel.port)).collect();
    let state = format!("[state]\nkind = \"redis\"\nsentinels = [{}]\nmaster = \"shared\"\n", list.join(", "));
    let gateways = gateways(2, &state, &upstream, &source("shop", ""));
    // A provider: one event after the other, each until it is accepted.
    let mut accepted: Vec<Request> = Vec::new();
    let mut deliver = |n: usize| {
        let delivery = event("shop", &format!("evt_{n}"));
        eventually("it is accepted", || {
            let answer = Client::new(gateways[n % 2].public()).send(&delivery);
            assert!(answer.status == 200 || refused_for_now(&answer), "{answer:?}");
            (answer.status == 200).then_some(())
        });
        accepted.push(delivery);
    };
    (0..50).for_each(&mut deliver);
    master.kill();
    let promoted = thread::scope(|scope| {
        let promotion = scope.spawn(|| {
            eventually("the replica is promoted", || replica.replication().filter(|told| told.contains("role:master")));
            Instant::now()
        });
        // This one waits for the new master.
        deliver(50);
        let served = Instant::now();
        served.saturating_duration_since(promotion.join().expect("the watcher"))
    });
    assert!(promoted < Duration::from_secs(5), "{promoted:?}");
    (51..100).for_each(&mut deliver);
    // Replication is asynchronous: what was accepted in the last moment before may be known to its own gateway alone.
    let mut again = 0;
    for (n, delivery) in accepted.iter().enumerate() {
        match delivery.send(gateways[(n + 1) % 2].public()).status {
            409 => {}
            200 => again += 1,
            other => panic!("evt_{n}: {other}"),
        }
    }
    assert!(again <= 1, "{again} were accepted once more");
    assert_eq!(upstream.count(), accepted.len() + again);
    eprintln!("a new master: served after {promoted:?}; {again} of {} accepted once more", accepted.len());
}
