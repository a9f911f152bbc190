//! Which addresses the host of a url has: the address that it is, or what the system's resolver says of a name.
//!
//! Invariant: a lookup is a blocking call that nobody can end, so it has a thread of its own. There are never more than
//! `MOST_LOOKUPS` of them, they hold up neither a request nor the end of the process, and whoever wants the next answer
//! waits for the last one. What comes out is in a stable order, without repeats, and bounded.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

/// Of one name. More of them would be used by turns all the same; the bound is against a resolver gone mad.
pub(super) const MOST_ADDRESSES: usize = 64;
/// Of the whole process: a resolver that hangs takes a thread for each name that is asked for, and no more.
const MOST_LOOKUPS: usize = 64;

static LOOKUPS: Semaphore = Semaphore::const_new(MOST_LOOKUPS);

/// Where one endpoint listens: one address as a rule, several where they lead to the same machine for certain, tried in
/// this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address(pub(super) Arc<[SocketAddr]>);

pub(super) enum Host {
    Literal(IpAddr),
    Name(Arc<str>),
}

#[cfg(test)]
pub(super) type Script = Box<dyn Fn(&str) -> Result<Vec<IpAddr>, String> + Send + Sync>;

/// Who is asked.
pub(super) enum Names {
    System,
    #[cfg(test)]
    Scripted(Script),
}

impl Host {
    /// As it stands in a url: an IPv6 address has its brackets.
    pub(super) fn new(host: &str) -> Self {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.parse().map_or_else(|_| Self::Name(bare.into()), Self::Literal)
    }
}

impl Names {
    /// The endpoints of a name, at least one. Dropping this ends the waiting, not the thread.
    pub(super) async fn look_up(self: Arc<Self>, name: Arc<str>, port: u16) -> Result<Vec<Address>, String> {
        let permit = LOOKUPS.acquire().await.map_err(|error| error.to_string())?;
        let (give, found) = oneshot::channel();
        let asked = Arc::clone(&name);
        let begun = std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            // Whoever asked may have gone.
            let _ = give.send(self.ask(&asked, port));
            drop(permit);
        });
        begun.map_err(|error| format!("no thread for it: {error}"))?;
        let found = found.await.map_err(|_| "the resolver ended without an answer".to_owned())??;
        endpoints(&name, found)
    }

    fn ask(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        match self {
            Self::System => (name, port).to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string()),
            #[cfg(test)]
            Self::Scripted(script) => {
                script(name).map(|found| found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
            }
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self([address].into())
    }
}

/// `localhost` is one machine however many addresses it has, and what runs there listens on one of them more often than
/// on all: one endpoint. Of any other name each address is one.
fn endpoints(name: &str, mut found: Vec<SocketAddr>) -> Result<Vec<Address>, String> {
    for address in &mut found {
        address.set_ip(address.ip().to_canonical());
    }
    // An answer that is to say "nowhere", and to which connecting would lead to this machine.
    found.retain(|address| !address.ip().is_unspecified());
    if found.is_empty() {
        return Err("the name has no address".to_owned());
    }
    if is_this_machine(name) {
        let mut distinct: Vec<SocketAddr> = Vec::new();
        for address in found.into_iter().take(MOST_ADDRESSES) {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        return Ok(vec![Address(distinct.into())]);
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST_ADDRESSES);
    Ok(found.into_iter().map(Address::from).collect())
}

fn is_this_machine(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn found(ips: &[&str]) -> Vec<SocketAddr> {
        ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 80)).collect()
    }

    fn shown(name: &str, ips: &[&str]) -> Result<Vec<Vec<String>>, String> {
        let one = |address: &Address| address.0.iter().map(|one| one.ip().to_string()).collect();
        endpoints(name, found(ips)).map(|all| all.iter().map(one).collect())
    }

    #[test]
    fn each_address_is_an_endpoint_once_in_an_order_that_does_not_depend_on_the_answers() {
        let one = shown("app", &["10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1"]).unwrap();
        assert_eq!(one, [["10.0.0.1"], ["10.0.0.2"], ["fd00::1"]]);
        assert_eq!(shown("app", &["fd00::1", "10.0.0.2", "10.0.0.1"]).unwrap(), one);
    }

    #[test]
    fn localhost_is_one_endpoint_with_both_its_addresses_and_a_name_that_only_looks_like_it_is_not() {
        for name in ["localhost", "LOCALHOST.", "app.localhost"] {
            assert_eq!(shown(name, &["::1", "127.0.0.1", "::1"]).unwrap(), [["::1", "127.0.0.1"]], "{name}");
        }
        for name in ["localhost.example", "notlocalhost"] {
            assert_eq!(shown(name, &["::1", "127.0.0.1"]).unwrap(), [["127.0.0.1"], ["::1"]], "{name}");
        }
    }

    #[test]
    fn no_address_is_an_error_and_so_is_one_that_means_none() {
        assert_eq!(shown("app", &[]).unwrap_err(), "the name has no address");
        assert_eq!(shown("app", &["0.0.0.0", "::"]).unwrap_err(), "the name has no address");
        assert_eq!(shown("app", &["0.0.0.0", "10.0.0.1"]).unwrap(), [["10.0.0.1"]]);
    }

    #[test]
    fn a_name_with_thousands_of_addresses_has_sixty_four() {
        let many = (0..5000_u32).map(|n| SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + n).into(), 80)).collect();
        assert_eq!(endpoints("app", many).unwrap().len(), MOST_ADDRESSES);
        let many = (0..5000_u128).map(|n| SocketAddr::new(Ipv6Addr::from(n + 2).into(), 80)).collect();
        assert_eq!(endpoints("localhost", many).unwrap()[0].0.len(), MOST_ADDRESSES);
    }

    #[test]
    fn an_address_in_a_url_is_no_name() {
        for literal in ["10.0.0.7", "[::1]", "[fd00::7]"] {
            assert!(matches!(Host::new(literal), Host::Literal(_)), "{literal}");
        }
        for name in ["app", "app.internal", "10.0.0.7.example", "localhost"] {
            assert!(matches!(Host::new(name), Host::Name(_)), "{name}");
        }
    }

    #[tokio::test]
    async fn the_system_knows_localhost_and_says_why_it_does_not_know_another() {
        let ask = |name: &str| Arc::new(Names::System).look_up(name.into(), 7);
        let known = ask("localhost").await.unwrap();
        assert!(known.iter().all(|address| address.0.iter().all(|one| one.ip().is_loopback() && one.port() == 7)));
        assert!(!ask("no-such-name.invalid").await.unwrap_err().is_empty());
    }
}
