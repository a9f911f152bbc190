//! Which addresses may be connected to for a name that somebody else's DNS resolves.
//!
//! Invariant: what is not known to be public is refused; the cloud's metadata services are refused even where the
//! configuration allows their network.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// AWS, Google, Azure and most others; ECS tasks and EKS pods; Azure's wire server; Alibaba; Oracle.
const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// AWS: instances, and EKS pods. Google.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// `allowed`: networks of the configuration, for those who keep a key server of their own.
pub(super) fn may_be_reached(address: IpAddr, allowed: &[IpNet]) -> bool {
    // Neither 127.0.0.1 nor a metadata address gets by in the spelling of IPv6.
    let plain = address.to_canonical();
    if is_metadata(plain) || plain.is_multicast() || plain.is_unspecified() {
        return false;
    }
    is_public(address) || allowed.iter().any(|net| net.contains(&address))
}

fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => METADATA_V6.contains(&v6) || embedded(v6).is_some_and(|v4| METADATA_V4.contains(&v4)),
    }
}

/// Translators and tunnels reach the IPv4 address that the IPv6 one spells.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = v6.segments();
    match (a, b, c, d, e, f) {
        // NAT64, the well-known prefix and the local one at its /96.
        (0x64, 0xff9b, 0 | 1, 0, 0, 0) | (0, 0, 0, 0, 0, 0 | 0xffff) => Some(joined(high, low)),
        // 6to4.
        (0x2002, ..) => Some(joined(b, c)),
        _ => None,
    }
}

fn joined(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// All but the entries of IANA's registry of special-purpose addresses, multicast and what is reserved.
fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = match (a, b, c) {
        // This network, private, loopback, link-local.
        (0 | 10 | 127, ..) | (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => true,
        // Carriers' NAT, protocol assignments, 6to4 relays, benchmarks.
        (100, 64..=127, _) | (192, 0, 0) | (192, 88, 99) | (198, 18 | 19, _) => true,
        // Documentation.
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224.., ..) => true,
        _ => false,
    };
    !special
}

/// Global unicast alone: loopback, mapped, NAT64, unique-local, link-local and multicast all lie outside of it.
fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [a, b, ..] = v6.segments();
    let global = (0x2000..0x4000).contains(&a);
    let special = match (a, b) {
        // Teredo, ORCHID, benchmarks and the other protocol assignments; documentation.
        (0x2001, 0..=0x1ff | 0xdb8) | (0x3fff, 0..=0xfff) => true,
        // 6to4 spells an IPv4 address.
        (0x2002, _) => true,
        _ => false,
    };
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
    }

    #[test]
    fn public_addresses_may_be_reached() {
        for text in
            ["1.1.1.1", "52.94.236.248", "172.32.0.1", "100.63.255.255", "100.128.0.1", "192.0.1.1", "223.255.255.255"]
        {
            assert!(may_be_reached(ip(text), &[]), "{text}");
        }
        for text in ["2606:4700::1111", "2600:1f18::1", "2a00:1450:4001::1", "2001:200::1", "3ffe::1"] {
            assert!(may_be_reached(ip(text), &[]), "{text}");
        }
    }

    #[test]
    fn private_loopback_link_local_multicast_and_reserved_addresses_are_refused() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!may_be_reached(ip(text), &[]), "{text}");
        }
        for text in [
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "64:ff9b::7f00:1",
            "64:ff9b::101:101",
            "64:ff9b:1::a00:1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:101:101::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!may_be_reached(ip(text), &[]), "{text}");
        }
    }

    #[test]
    fn a_network_of_the_configuration_may_be_reached_and_its_neighbour_not() {
        let allowed = ["10.1.0.0/16".parse().expect("a network"), "::1/128".parse().expect("a network")];
        assert!(may_be_reached(ip("10.1.2.3"), &allowed));
        assert!(may_be_reached(ip("::1"), &allowed));
        assert!(!may_be_reached(ip("10.2.0.1"), &allowed));
        assert!(!may_be_reached(ip("::ffff:10.1.2.3"), &allowed), "allowed is the spelling that was allowed");
    }

    #[test]
    fn metadata_services_are_refused_even_where_everything_is_allowed() {
        let allowed = ["0.0.0.0/0".parse().expect("a network"), "::/0".parse().expect("a network")];
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::a9fe:a9fe",
            "0.0.0.0",
            "::",
            "224.0.0.1",
        ] {
            assert!(!may_be_reached(ip(text), &allowed), "{text}");
        }
        assert!(may_be_reached(ip("127.0.0.1"), &allowed));
    }
}
