//! Names whose addresses come, go, fail and hang: a scripted resolver, and real sockets on several loopback addresses.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::deliver::names::Names;

const SOON: Duration = Duration::from_millis(20);

type Found = Result<Vec<IpAddr>, String>;

/// What the resolver says from now on.
#[derive(Clone)]
struct Dns(Arc<Mutex<Found>>, Arc<AtomicUsize>);

impl Dns {
    fn new(last_bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(addresses(last_bytes))), Arc::default())
    }

    fn say(&self, found: Found) {
        *self.0.lock().unwrap() = found;
    }

    fn asked(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }

    fn names(&self) -> Names {
        let dns = self.clone();
        Names::Scripted(Box::new(move |_| {
            dns.1.fetch_add(1, Ordering::SeqCst);
            dns.0.lock().unwrap().clone()
        }))
    }
}

fn addresses(last_bytes: &[u8]) -> Found {
    Ok(last_bytes.iter().map(|last| Ipv4Addr::new(127, 0, 0, *last).into()).collect())
}

/// What a resolver calls to hang until the first of the two is dropped.
fn hang() -> (std::sync::mpsc::Sender<()>, impl Fn() + Send + Sync) {
    let (release, released) = std::sync::mpsc::channel();
    let released = Mutex::new(released);
    // Nothing is ever sent: this is the other end's drop.
    (release, move || assert!(released.lock().unwrap().recv().is_err()))
}

/// Listens on these loopback addresses, at one port. Each answers with its last byte.
async fn listening<const N: usize>(last_bytes: [u8; N]) -> (u16, [Raw; N]) {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut bound = Vec::new();
        for last in last_bytes {
            bound.extend(TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).await.ok().map(|it| (last, it)));
        }
        if let Ok(all) = <[_; N]>::try_from(bound) {
            return (port, all.map(|(last, listener)| answering(listener, last)));
        }
    }
}

fn answering(listener: TcpListener, last: u8) -> Raw {
    Raw::on(listener, move |mut wire, _| async move {
        while let Some((head, _)) = wire.request().await {
            assert!(head.contains("\r\nhost: app.internal:"), "the url's name, whatever the address: {head}");
            let body = last.to_string();
            wire.write(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        }
    })
}

fn named(port: u16) -> Settings {
    let mut settings = settings(&[format!("http://app.internal:{port}")]);
    settings.resolve_interval = SOON;
    settings
}

fn started(dns: &Dns, settings: Settings) -> (Arc<Upstream>, Meters, watch::Sender<bool>) {
    let meters = Meters::unregistered(settings.urls.len());
    let upstream = Upstream::asking(dns.names(), settings, meters.clone()).unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::clone(&upstream).tend(stopped));
    (upstream, meters, stop)
}

async fn answer(upstream: &Upstream) -> String {
    text(upstream.send(&parcel()).await.unwrap()).await.unwrap()
}

/// Who answers so many requests, one after the other, sorted.
async fn answers(upstream: &Upstream, many: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..many {
        all.push(answer(upstream).await);
    }
    all.sort();
    all
}

fn known_and_healthy(meters: &Meters) -> (i64, i64, i64) {
    let of = &meters.addresses[0];
    (of.known.get(), of.healthy.get(), meters.healthy[0].get())
}

#[tokio::test]
async fn each_address_of_a_name_gets_its_share_with_the_first_request_too() {
    let (port, _raws) = listening([2, 3]).await;
    let (upstream, meters, _stop) = started(&Dns::new(&[3, 2, 3]), named(port));
    assert_eq!(answers(&upstream, 6).await, ["2", "2", "2", "3", "3", "3"]);
    assert_eq!(known_and_healthy(&meters), (2, 2, 1));
    assert_eq!((meters.repeats.get(), upstream.addresses()), (0, 2));
}

#[tokio::test]
async fn max_in_flight_is_for_each_address() {
    let (raw, mut arrivals, go) = on_command().await;
    // One listener for all loopback addresses would need a wildcard: two names of one address do as well.
    let dns = Dns::new(&[1]);
    let mut settings = settings(&[
        format!("http://one.internal:{}", raw.address.port()),
        format!("http://other.internal:{}", raw.address.port()),
    ]);
    (settings.max_in_flight, settings.queue_timeout) = (1, SOON);
    let (upstream, _, _stop) = started(&dns, settings);
    eventually("both are known", || upstream.addresses() == 2).await;
    let mut sending = send_many(&upstream, 2);
    for _ in 0..2 {
        arrivals.recv().await.unwrap();
    }
    assert_eq!(fault(&upstream).await, Fault::Busy);
    go.send_replace(true);
    while let Some(sent) = sending.join_next().await {
        sent.unwrap().unwrap();
    }
}

#[tokio::test]
async fn requests_follow_the_addresses_and_those_at_rest_with_the_old_ones_are_closed() {
    let (port, _raws) = listening([2, 3, 4]).await;
    let dns = Dns::new(&[2, 3]);
    let mut settings = named(port);
    settings.balance = Balance::RoundRobin;
    let (upstream, meters, _stop) = started(&dns, settings);
    assert_eq!(answers(&upstream, 4).await, ["2", "2", "3", "3"]);
    assert_eq!(meters.idle_connections.get(), 2);
    dns.say(addresses(&[4]));
    eventually("they have moved", || known_and_healthy(&meters) == (1, 1, 1)).await;
    assert_eq!(meters.idle_connections.get(), 0);
    assert_eq!(answers(&upstream, 4).await, ["4"; 4]);
    assert_eq!((meters.idle_connections.get(), meters.repeats.get()), (1, 0));
}

#[tokio::test]
async fn what_is_under_way_at_an_address_that_vanishes_is_finished_and_its_connection_is_not_kept() {
    let (raw, mut arrivals, go) = on_command().await;
    let dns = Dns::new(&[1]);
    let (upstream, meters, _stop) = started(&dns, named(raw.address.port()));
    let mut sending = send_many(&upstream, 1);
    arrivals.recv().await.unwrap();
    dns.say(addresses(&[9]));
    eventually("it is gone", || dns.asked() > 3).await;
    assert_eq!(meters.in_flight.get(), 1);
    go.send_replace(true);
    assert!(sending.join_next().await.unwrap().unwrap().is_ok());
    assert_eq!((meters.in_flight.get(), meters.idle_connections.get()), (0, 0));
    assert_eq!(fault(&upstream).await, Fault::Unavailable, "nothing listens at the new one");
}

#[tokio::test]
async fn an_http2_answer_under_way_at_an_address_that_vanishes_is_read_to_its_end() {
    let raw = http2(100, |_, _| Some("x".repeat(LONG))).await;
    let dns = Dns::new(&[1]);
    let mut settings = named(raw.address.port());
    settings.protocol = Protocol::Http2;
    let (upstream, meters, _stop) = started(&dns, settings);
    let held = upstream.send(&parcel()).await.unwrap();
    dns.say(addresses(&[9]));
    let asked = dns.asked();
    eventually("it is gone", || dns.asked() > asked + 2).await;
    assert_eq!(fault(&upstream).await, Fault::Unavailable, "no new request joins the old connection");
    assert_eq!(text(held).await.unwrap().len(), LONG);
    assert_eq!((raw.connections(), meters.in_flight.get()), (1, 0));
}

#[tokio::test]
async fn a_lookup_that_fails_or_finds_nothing_leaves_what_was_known() {
    let (port, _raws) = listening([2, 3]).await;
    let dns = Dns::new(&[2, 3]);
    let (upstream, meters, _stop) = started(&dns, named(port));
    assert_eq!(answers(&upstream, 2).await, ["2", "3"]);
    for nothing in [Err("the server is down".to_owned()), Ok(Vec::new()), Ok(vec![Ipv4Addr::UNSPECIFIED.into()])] {
        let before = meters.addresses[0].resolve_failures.get();
        dns.say(nothing);
        eventually("it failed twice", || meters.addresses[0].resolve_failures.get() >= before + 2).await;
        assert_eq!(answers(&upstream, 4).await, ["2", "2", "3", "3"]);
        assert_eq!(known_and_healthy(&meters), (2, 2, 1));
        assert!(upstream.can_forward());
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_at_the_start_is_unavailable_until_it_does() {
    let (port, _raws) = listening([2]).await;
    let dns = Dns::new(&[]);
    dns.say(Err("no such name".to_owned()));
    let (upstream, meters, _stop) = started(&dns, named(port));
    assert!(upstream.can_forward(), "not known to be bad");
    let before = Instant::now();
    let error = upstream.send(&parcel()).await.err().unwrap();
    assert_eq!(error.fault, Fault::Unavailable);
    assert!(error.detail.ends_with(&format!("resolving: app.internal:{port}: no such name")), "{}", error.detail);
    assert!(before.elapsed() < NEVER / 2, "nobody waits for a name that is known not to resolve");
    assert!(!upstream.can_forward());
    assert_eq!(known_and_healthy(&meters), (0, 0, 0));
    assert_eq!(meters.of(Ending::Unavailable).get(), 1);
    let at_once = upstream.send_at_once(&parcel()).await.err().unwrap();
    assert_eq!(at_once.fault, Fault::Unavailable);
    dns.say(addresses(&[2]));
    eventually("it resolves", || upstream.can_forward()).await;
    assert_eq!(answer(&upstream).await, "2");
    assert_eq!(known_and_healthy(&meters), (1, 1, 1));
}

#[tokio::test]
async fn a_resolver_that_hangs_holds_up_no_request_and_no_more_than_one_thread() {
    let (port, _raws) = listening([2]).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (counted, (release, hang)) = (asked.clone(), hang());
    let names = Names::Scripted(Box::new(move |_| {
        if counted.fetch_add(1, Ordering::SeqCst) > 0 {
            hang();
        }
        addresses(&[2])
    }));
    let meters = Meters::unregistered(1);
    let upstream = Upstream::asking(names, named(port), meters.clone()).unwrap();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::clone(&upstream).tend(stopped));
    eventually("it hangs", || asked.load(Ordering::SeqCst) == 2).await;
    for _ in 0..20 {
        assert_eq!(answer(&upstream).await, "2");
        tokio::time::sleep(SOON / 4).await;
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    eventually("it is told of", || meters.addresses[0].resolve_failures.get() == 1).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the next one waits for the last one");
    assert_eq!(answer(&upstream).await, "2");
    drop(release);
    eventually("it goes on", || asked.load(Ordering::SeqCst) > 3).await;
}

#[tokio::test]
async fn a_resolver_that_hangs_from_the_start_makes_a_request_wait_for_connect_timeout_and_no_longer() {
    let (release, hang) = hang();
    let names = Names::Scripted(Box::new(move |_| {
        hang();
        addresses(&[2])
    }));
    let mut settings = named(1);
    settings.connect_timeout = Duration::from_millis(100);
    let upstream = Upstream::asking(names, settings, Meters::unregistered(1)).unwrap();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::clone(&upstream).tend(stopped));
    let before = Instant::now();
    let error = upstream.send(&parcel()).await.err().unwrap();
    assert_eq!(error.fault, Fault::Unavailable);
    assert!(error.detail.ends_with("resolving: no answer yet"), "{}", error.detail);
    assert!((100..3000).contains(&before.elapsed().as_millis()));
    drop(release);
}

#[tokio::test]
async fn what_the_inbox_kept_over_a_restart_is_not_failed_by_a_name_that_is_still_being_looked_up() {
    let (port, _raws) = listening([2]).await;
    let (release, hang) = hang();
    let names = Names::Scripted(Box::new(move |_| {
        hang();
        addresses(&[2])
    }));
    let upstream = Upstream::asking(names, named(port), Meters::unregistered(1)).unwrap();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::clone(&upstream).tend(stopped));
    let sending = tokio::spawn(async move { text(upstream.send_at_once(&parcel()).await?).await });
    tokio::task::yield_now().await;
    drop(release);
    assert_eq!(sending.await.unwrap().unwrap(), "2");
}

#[tokio::test]
async fn an_address_that_is_dead_costs_no_request_and_does_not_make_its_url_look_bad() {
    let (port, _raws) = listening([2, 4]).await;
    let (upstream, meters, _stop) = started(&Dns::new(&[2, 3, 4]), named(port));
    assert_eq!(answers(&upstream, 12).await.len(), 12);
    assert_eq!(known_and_healthy(&meters), (3, 2, 1));
    assert_eq!(meters.repeats.get(), 1, "it is found out once");
    assert!(upstream.can_forward());
}

#[tokio::test]
async fn a_name_whose_addresses_are_all_dead_is_looked_up_at_once_and_not_more_than_once_a_second() {
    let (port, _raws) = listening([2]).await;
    let dns = Dns::new(&[3]);
    let mut settings = named(port);
    settings.resolve_interval = NEVER;
    let (upstream, meters, _stop) = started(&dns, settings);
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(fault(&upstream).await, Fault::Unavailable);
    }
    dns.say(addresses(&[2]));
    assert_eq!(fault(&upstream).await, Fault::Unavailable);
    eventually("it moved", || known_and_healthy(&meters) == (1, 1, 1)).await;
    assert_eq!(answer(&upstream).await, "2");
    let most = 2 + begun.elapsed().as_secs() as usize;
    assert!((2..=most).contains(&dns.asked()), "{} in {:?}", dns.asked(), begun.elapsed());
}

#[tokio::test]
async fn all_addresses_are_probed_from_when_they_come_until_they_go() {
    let (port, raws) = listening([2, 3]).await;
    let dns = Dns::new(&[2, 7]);
    let mut settings = named(port);
    settings.health = Some(HealthCheck { path: "/healthz".to_owned(), interval: SOON, timeout: NEVER });
    let (upstream, meters, _stop) = started(&dns, settings);
    eventually("the dead one is found", || known_and_healthy(&meters) == (2, 1, 1)).await;
    assert!(upstream.can_forward());
    dns.say(addresses(&[3]));
    eventually("the new one is probed", || raws[1].connections() > 2).await;
    assert_eq!(known_and_healthy(&meters), (1, 1, 1));
    let before = raws[0].connections();
    let probed = raws[1].connections();
    eventually("more probes", || raws[1].connections() > probed + 2).await;
    assert_eq!(raws[0].connections(), before, "what is gone is not probed");
}

#[tokio::test]
async fn another_configuration_of_an_upstream_begins_with_the_addresses_that_were_known() {
    let (port, _raws) = listening([2, 3]).await;
    let dns = Dns::new(&[2, 3]);
    let (old, _, _stop) = started(&dns, named(port));
    assert_eq!(answers(&old, 2).await, ["2", "3"]);
    dns.say(Err("the server is down".to_owned()));
    let mut changed = named(port);
    changed.urls.insert(0, "http://127.0.0.9:1".parse().unwrap());
    let meters = Meters::unregistered(2);
    let new = Upstream::asking(dns.names(), changed, meters.clone()).unwrap();
    new.inherit(&old);
    assert_eq!(new.addresses(), 3);
    assert_eq!(answers(&new, 4).await, ["2", "2", "3", "3"]);
    // Another port is another service.
    let other = Upstream::asking(dns.names(), named(port ^ 1), Meters::unregistered(1)).unwrap();
    other.inherit(&old);
    assert_eq!(other.addresses(), 0);
}

#[tokio::test]
async fn tls_asks_every_address_for_the_urls_name() {
    let pki = Pki::new();
    let (raw, _) = pki.serve("app.internal", &[b"http/1.1"], false).await;
    for (name, served) in [("app.internal", true), ("other.internal", false)] {
        let mut settings = pki.settings(format!("https://{name}:{}", raw.address.port()));
        settings.resolve_interval = NEVER;
        let (upstream, _, _stop) = started(&Dns::new(&[1]), settings);
        match upstream.send(&parcel()).await {
            Ok(answer) => assert!(served && answer.status == 200),
            Err(error) => assert!(!served && error.detail.contains("TLS handshake"), "{}", error.detail),
        }
    }
}
