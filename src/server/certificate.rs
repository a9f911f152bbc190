//! What certificates say: ours, about the names we serve; a client's, about who it is.
//!
//! Invariant: a name is one of the subject's alternative names, never the common name: a CA that checks the former may
//! not have looked at the latter (RFC 9525). Nothing here is a proof; rustls has verified the chain before.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use super::distinguished_name::DistinguishedName;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

/// The certificate a client proved to hold the key of: the leaf, the first of its chain.
pub(crate) struct ClientCertificate {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) intermediates: Vec<CertificateDer<'static>>,
    pub(crate) sha256: [u8; 32],
    /// In lower case.
    pub(crate) dns_names: Vec<String>,
    pub(crate) uris: Vec<String>,
    pub(crate) subject: DistinguishedName,
    /// As headers and logs show it.
    pub(crate) subject_text: String,
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate cannot be read as X.509")]
pub(crate) struct Unreadable;

impl ClientCertificate {
    /// Whether it was read from these very bytes.
    fn is_of(&self, chain: &[CertificateDer<'_>]) -> bool {
        chain.split_first().is_some_and(|(leaf, rest)| self.der == *leaf && self.intermediates == rest)
    }

    fn parse(chain: &[CertificateDer<'_>]) -> Result<Self, Unreadable> {
        let (leaf, intermediates) = chain.split_first().ok_or(Unreadable)?;
        let parsed = parse(leaf)?;
        let mut dns_names = Vec::new();
        let mut uris = Vec::new();
        for name in alternative_names(&parsed)? {
            match name {
                GeneralName::DNSName(name) => dns_names.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        let subject = DistinguishedName::of(parsed.subject());
        Ok(Self {
            sha256: Sha256::digest(leaf).into(),
            der: leaf.clone().into_owned(),
            intermediates: intermediates.iter().map(|one| one.clone().into_owned()).collect(),
            dns_names,
            uris,
            subject_text: subject.to_string(),
            subject,
        })
    }
}

/// What the clients of late have shown, read: a sender that connects anew for each delivery is read once, and its
/// connections share what was read. Only chains that were verified for their own connection come here.
#[derive(Default)]
pub(super) struct Lately(Mutex<VecDeque<Arc<ClientCertificate>>>);

/// More senders at once than most gateways have, and few enough to compare with each; about 64 KiB.
const MOST_LATELY: usize = 32;

impl Lately {
    pub(super) fn read(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<ClientCertificate>, Unreadable> {
        let lately = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = lately().iter().find(|one| one.is_of(chain)) {
            return Ok(Arc::clone(same));
        }
        let read = Arc::new(ClientCertificate::parse(chain)?);
        let mut lately = lately();
        if lately.len() == MOST_LATELY {
            lately.pop_front();
        }
        lately.push_back(Arc::clone(&read));
        Ok(read)
    }
}

/// The names a server certificate is good for.
#[derive(Clone)]
pub(crate) struct ServedNames {
    exact: Vec<String>,
    /// `example.com` for `*.example.com`.
    parents: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl ServedNames {
    /// `host` as a request or SNI names it, without a port; IPv6 with or without its brackets.
    pub(crate) fn serves(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self.addresses.contains(&address);
        }
        self.serves_exactly(host) || self.serves_by_wildcard(host)
    }

    pub(super) fn serves_exactly(&self, host: &str) -> bool {
        let host = without_root(host);
        self.exact.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// A wildcard stands for one whole label, the left-most.
    pub(super) fn serves_by_wildcard(&self, host: &str) -> bool {
        let Some((label, parent)) = without_root(host).split_once('.') else { return false };
        !label.is_empty() && self.parents.iter().any(|name| name.eq_ignore_ascii_case(parent))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.parents.is_empty() && self.addresses.is_empty()
    }
}

fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// What an operator wants to know of one of our own certificates, or of a CA.
pub(super) struct Facts {
    pub(super) served: ServedNames,
    /// Unix seconds.
    pub(super) not_after: i64,
    pub(super) subject: String,
    pub(super) subject_der: Vec<u8>,
    pub(super) rsa_bits: Option<usize>,
}

impl Facts {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, Unreadable> {
        let parsed = parse(certificate)?;
        let mut served = ServedNames { exact: Vec::new(), parents: Vec::new(), addresses: Vec::new() };
        for name in alternative_names(&parsed)? {
            match name {
                GeneralName::DNSName(name) => match name.strip_prefix("*.") {
                    Some(parent) => served.parents.push(parent.to_ascii_lowercase()),
                    None => served.exact.push(name.to_ascii_lowercase()),
                },
                GeneralName::IPAddress(bytes) => served.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let rsa_bits = match parsed.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => Some(key.key_size()),
            _ => None,
        };
        Ok(Self {
            served,
            not_after: parsed.validity().not_after.timestamp(),
            subject: parsed.subject().to_string(),
            subject_der: parsed.subject().as_raw().to_vec(),
            rsa_bits,
        })
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Unreadable> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unreadable)?;
    if rest.is_empty() { Ok(parsed) } else { Err(Unreadable) }
}

fn alternative_names<'a>(parsed: &'a X509Certificate<'_>) -> Result<&'a [GeneralName<'a>], Unreadable> {
    let extension = parsed.subject_alternative_name().map_err(|_| Unreadable)?;
    Ok(extension.map_or(&[], |extension| extension.value.general_names.as_slice()))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "common.example");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.subject_alt_names.push(SanType::URI("spiffe://example/Sender".try_into().unwrap()));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn serves_its_exact_names_one_label_under_a_wildcard_and_its_addresses() {
        let served = Facts::of(&certificate(&["Hooks.Example.com", "*.example.org", "192.0.2.1", "2001:db8::1"]))
            .unwrap()
            .served;
        for host in
            ["hooks.example.com", "HOOKS.example.COM.", "a.example.org", "192.0.2.1", "[2001:db8::1]", "2001:db8::1"]
        {
            assert!(served.serves(host), "{host}");
        }
        for host in [
            "example.com",
            "x.hooks.example.com",
            "example.org",
            "a.b.example.org",
            ".example.org",
            "common.example",
            "192.0.2.2",
            "",
        ] {
            assert!(!served.serves(host), "{host}");
        }
    }

    #[test]
    fn a_client_is_known_by_its_alternative_names_its_subject_and_its_fingerprint() {
        let der = certificate(&["Sender.Example.com"]);
        let client = ClientCertificate::parse(std::slice::from_ref(&der)).unwrap();
        assert_eq!(client.dns_names, ["sender.example.com"]);
        assert_eq!(client.uris, ["spiffe://example/Sender"]);
        assert_eq!(client.subject_text, "O=Example,CN=common.example");
        assert_eq!(client.sha256, <[u8; 32]>::from(Sha256::digest(&der)));
        assert!(client.intermediates.is_empty());
    }

    #[test]
    fn a_chain_is_read_once_and_another_for_itself() {
        let (one, other) = (certificate(&["one.example"]), certificate(&["other.example"]));
        let lately = Lately::default();
        let read = |chain: &[&CertificateDer<'static>]| {
            lately.read(&chain.iter().map(|one| (*one).clone()).collect::<Vec<_>>()).unwrap()
        };
        let first = read(&[&one]);
        assert!(Arc::ptr_eq(&first, &read(&[&one])));
        assert_eq!(read(&[&other]).dns_names, ["other.example"]);
        let longer = read(&[&one, &other]);
        assert_eq!((longer.sha256, longer.intermediates.len()), (first.sha256, 1), "its intermediates are its own");
        assert_eq!(read(&[&other, &one]).dns_names, ["other.example"], "the first is the leaf");
        assert!(lately.read(&[CertificateDer::from(vec![0x30, 0x00])]).is_err());
    }

    #[test]
    fn the_chains_of_late_are_bounded_and_the_oldest_is_read_anew() {
        let lately = Lately::default();
        let chains: Vec<_> = (0..=MOST_LATELY).map(|number| [certificate(&[&format!("{number}.example")])]).collect();
        let read: Vec<_> = chains.iter().map(|chain| lately.read(chain).unwrap()).collect();
        assert_eq!(lately.0.lock().unwrap().len(), MOST_LATELY);
        assert!(Arc::ptr_eq(&read[MOST_LATELY], &lately.read(&chains[MOST_LATELY]).unwrap()));
        assert!(!Arc::ptr_eq(&read[0], &lately.read(&chains[0]).unwrap()));
    }

    #[test]
    fn refuses_bytes_that_are_no_certificate() {
        assert!(ClientCertificate::parse(&[]).is_err());
        assert!(ClientCertificate::parse(&[CertificateDer::from(vec![0x30, 0x00])]).is_err());
        let mut longer = certificate(&["a.example"]).to_vec();
        longer.push(0);
        assert!(ClientCertificate::parse(&[CertificateDer::from(longer)]).is_err());
    }
}
