//! Do the roots vouch for this certificate, at this time, and for this name?
//!
//! Invariant: a certificate is believed only along signatures to a root that the configuration or this build pins, each
//! one of them a CA and valid at the time that is asked about; keys are of a kind and size that is still good. Nothing
//! here fetches: revocation is left to the platforms, whose certificates live for months.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use thiserror::Error;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, VerifiedPath};
use webpki::{Error, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::Fault;
use super::public_key::PublicKey;
use crate::clock::UnixMillis;
use crate::refusal::Refusal;

/// Platforms send a leaf and one or two above it. Building paths costs more with each.
const LONGEST_CHAIN: usize = 6;
/// A root list of one's own; all of Mozilla's are some 150.
const MOST_ROOTS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RootsError {
    #[error("it holds no certificate in PEM or DER")]
    NoCertificate,
    #[error("a certificate in it cannot be read; was it copied whole?")]
    Unreadable,
    #[error("a certificate in it is none of a CA, and could vouch for nothing")]
    NotACa,
    #[error("it holds more than {MOST_ROOTS} certificates")]
    TooMany,
}

/// Whom we believe.
#[derive(Clone, Debug)]
pub(crate) struct Roots(Vec<Root>);

#[derive(Clone, Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    /// None: of the list that browsers use, which drops a root before it ends.
    validity: Option<Validity>,
}

#[derive(Clone, Copy, Debug)]
struct Validity {
    /// Unix seconds, both within.
    not_before: i64,
    not_after: i64,
}

/// A certificate and what came with it to lead to a root; the first is what it is about.
#[derive(Debug)]
pub(crate) struct Chain {
    der: Vec<CertificateDer<'static>>,
    leaf: Leaf,
}

#[derive(Debug)]
struct Leaf {
    key: PublicKey,
    validity: Validity,
    common_name: Option<String>,
    dns_names: Vec<String>,
}

const NOT_VOUCHED_FOR: Fault =
    Fault { refusal: Refusal::UntrustedKey, note: "no configured root vouches for the certificate at that time" };
const NOT_VALID: Fault =
    Fault { refusal: Refusal::UntrustedKey, note: "the certificate was not valid yet, or not any more" };

impl Roots {
    /// The list that browsers use.
    pub(crate) fn public() -> Self {
        let anchors = webpki_roots::TLS_SERVER_ROOTS.iter();
        Self(anchors.map(|anchor| Root { anchor: anchor.clone(), validity: None }).collect())
    }

    fn are_public(&self) -> bool {
        self.0.iter().all(|root| root.validity.is_none())
    }

    /// PEM, of one certificate or more, or the DER of one.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, RootsError> {
        let mut ders: Vec<CertificateDer<'static>> = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(bytes) {
            ders.push(certificate.map_err(|_| RootsError::Unreadable)?.into_owned());
        }
        if ders.is_empty() && bytes.first() == Some(&0x30) {
            ders.push(CertificateDer::from(bytes.to_vec()));
        }
        match ders.len() {
            0 => return Err(RootsError::NoCertificate),
            1..=MOST_ROOTS => {}
            _ => return Err(RootsError::TooMany),
        }
        ders.iter().map(Root::read).collect::<Result<_, _>>().map(Self)
    }
}

impl Root {
    fn read(der: &CertificateDer<'static>) -> Result<Self, RootsError> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| RootsError::Unreadable)?;
        if !parsed.is_ca() {
            return Err(RootsError::NotACa);
        }
        let anchor = anchor_from_trusted_cert(der).map_err(|_| RootsError::Unreadable)?.to_owned();
        Ok(Self { anchor, validity: Some(Validity::of(&parsed)) })
    }
}

impl Validity {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() }
    }

    fn holds_at(&self, when: UnixMillis) -> bool {
        i64::try_from(when.as_secs()).is_ok_and(|when| (self.not_before..=self.not_after).contains(&when))
    }
}

/// Of a root of one's own, what a certificate may be used for is told by its name or a mark, not by this. The public
/// roots vouch for names on the web alone: under the same roots stand those who certify mail, where a name is whatever
/// somebody is called.
enum Use {
    Any,
    Web,
}

impl ExtendedKeyUsageValidator for Use {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        match self {
            Self::Any => Ok(()),
            Self::Web => KeyUsage::server_auth().validate(purposes),
        }
    }
}

impl Chain {
    pub(crate) fn from_pem(text: &[u8]) -> Option<Self> {
        let ders = CertificateDer::pem_slice_iter(text).take(LONGEST_CHAIN + 1);
        Self::from_der(ders.map(|der| der.ok().map(CertificateDer::into_owned)).collect::<Option<_>>()?)
    }

    pub(crate) fn from_der(der: Vec<CertificateDer<'static>>) -> Option<Self> {
        if der.len() > LONGEST_CHAIN {
            return None;
        }
        let (rest, leaf) = X509Certificate::from_der(der.first()?).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let leaf = Leaf {
            key: PublicKey::from_spki_der(leaf.public_key().raw).ok()?,
            validity: Validity::of(&leaf),
            common_name: only(leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok())),
            dns_names: dns_names(&leaf),
        };
        Some(Self { der, leaf })
    }

    /// Is there a way from the first certificate to a root, all of it valid then?
    pub(crate) fn check(&self, roots: &Roots, when: UnixMillis) -> Result<(), Fault> {
        self.check_way(roots, when, &|_| Ok(()))
    }

    /// The same, by way of the second certificate and no other: what that one says of itself is then true of the way.
    pub(crate) fn check_through_second(&self, roots: &Roots, when: UnixMillis) -> Result<(), Fault> {
        self.check_way(roots, when, &|path| {
            let mut way = path.intermediate_certificates().map(|certificate| certificate.der());
            match (way.next(), way.next()) {
                (Some(only), None) if self.der.get(1) == Some(&only) => Ok(()),
                _ => Err(Error::UnknownIssuer),
            }
        })
    }

    fn check_way(
        &self,
        roots: &Roots,
        when: UnixMillis,
        is_right: &dyn Fn(&VerifiedPath<'_>) -> Result<(), Error>,
    ) -> Result<(), Fault> {
        let (leaf, others) = self.der.split_first().ok_or(NOT_VOUCHED_FOR)?;
        let anchors: Vec<TrustAnchor<'_>> = roots
            .0
            .iter()
            .filter(|root| root.validity.is_none_or(|validity| validity.holds_at(when)))
            .map(|root| root.anchor.clone())
            .collect();
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| NOT_VOUCHED_FOR)?;
        let time = UnixTime::since_unix_epoch(Duration::from_millis(when.0));
        let usage = if roots.are_public() { Use::Web } else { Use::Any };
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, others, time, usage, None, Some(is_right))
            .map(|_| ())
            .map_err(|_| NOT_VOUCHED_FOR)
    }

    /// Of the first certificate alone.
    pub(crate) fn check_time(&self, when: UnixMillis) -> Result<(), Fault> {
        if self.leaf.validity.holds_at(when) { Ok(()) } else { Err(NOT_VALID) }
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.leaf.key
    }

    /// Only where there is exactly one.
    pub(crate) fn common_name(&self) -> Option<&str> {
        self.leaf.common_name.as_deref()
    }

    /// Whole, and without regard to case; a wildcard names nobody here.
    pub(crate) fn has_dns_name(&self, name: &str) -> bool {
        self.leaf.dns_names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// `position`: 0 is the leaf. `oid`: in dots.
    pub(crate) fn has_extension(&self, position: usize, oid: &str) -> bool {
        let certificate = self.der.get(position).and_then(|der| X509Certificate::from_der(der).ok());
        certificate.is_some_and(|(_, certificate)| {
            certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == oid)
        })
    }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let names = names.flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    names.collect()
}

fn only<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<String> {
    let name = names.next()?;
    names.next().is_none().then(|| name.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    pub(crate) const NOW: UnixMillis = UnixMillis::from_secs(1_800_000_000);

    /// An authority and what it issues, at a time of its own.
    pub(crate) struct Authority {
        pub(crate) pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    pub(crate) struct Made {
        pub(crate) der: CertificateDer<'static>,
        pub(crate) pem: String,
    }

    fn params(name: &str, years: std::ops::Range<i32>, dns: &[&str], oids: &[&[u64]]) -> CertificateParams {
        let names = dns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        params.custom_extensions =
            oids.iter().map(|oid| CustomExtension::from_oid_content(oid, vec![0x05, 0x00])).collect();
        params
    }

    impl Authority {
        pub(crate) fn root(years: std::ops::Range<i32>) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = params("Root", years, &[], &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            Self { pem, issuer: Issuer::new(params, key) }
        }

        pub(crate) fn roots(&self) -> Roots {
            Roots::read(self.pem.as_bytes()).unwrap()
        }

        pub(crate) fn issue(&self, name: &str, years: std::ops::Range<i32>, dns: &[&str], oids: &[&[u64]]) -> Made {
            let key = KeyPair::generate().unwrap();
            let made = params(name, years, dns, oids).signed_by(&key, &self.issuer).unwrap();
            Made { der: made.der().clone(), pem: made.pem() }
        }

        pub(crate) fn intermediate(&self, years: std::ops::Range<i32>, is_ca: bool, oids: &[&[u64]]) -> (Made, Self) {
            let key = KeyPair::generate().unwrap();
            let mut params = params("Intermediate", years, &[], oids);
            if is_ca {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            }
            let made = params.signed_by(&key, &self.issuer).unwrap();
            let (der, pem) = (made.der().clone(), made.pem());
            let below = Self { pem: pem.clone(), issuer: Issuer::new(params, key) };
            (Made { der, pem }, below)
        }
    }

    fn checked(chain: &[&Made], roots: &Roots, when: UnixMillis) -> Result<(), Refusal> {
        let text: String = chain.iter().map(|made| made.pem.as_str()).collect();
        Chain::from_pem(text.as_bytes()).unwrap().check(roots, when).map_err(|fault| fault.refusal)
    }

    #[test]
    fn a_certificate_leads_to_a_configured_root_directly_or_through_others() {
        let root = Authority::root(2020..2040);
        let leaf = root.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(checked(&[&leaf], &root.roots(), NOW), Ok(()));
        let (made, below) = root.intermediate(2020..2040, true, &[]);
        let leaf = below.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(checked(&[&leaf, &made], &root.roots(), NOW), Ok(()));
        assert_eq!(checked(&[&leaf], &root.roots(), NOW), Err(Refusal::UntrustedKey), "the way has a hole");
        let stranger = Authority::root(2020..2040);
        assert_eq!(checked(&[&leaf, &made], &stranger.roots(), NOW), Err(Refusal::UntrustedKey));
    }

    #[test]
    fn what_is_issued_by_a_certificate_that_is_no_ca_is_not_believed() {
        let root = Authority::root(2020..2040);
        let (made, below) = root.intermediate(2020..2040, false, &[]);
        let leaf = below.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(checked(&[&leaf, &made], &root.roots(), NOW), Err(Refusal::UntrustedKey));
    }

    #[test]
    fn every_certificate_of_the_way_must_be_valid_at_the_time_asked_about() {
        let in_2021 = UnixMillis::from_secs(1_620_000_000);
        for (root_years, middle_years, leaf_years) in [
            (2020..2022, 2020..2040, 2020..2040),
            (2020..2040, 2020..2022, 2020..2040),
            (2020..2040, 2020..2040, 2020..2022),
        ] {
            let root = Authority::root(root_years);
            let (made, below) = root.intermediate(middle_years, true, &[]);
            let leaf = below.issue("leaf", leaf_years, &[], &[]);
            assert_eq!(checked(&[&leaf, &made], &root.roots(), in_2021), Ok(()));
            assert_eq!(checked(&[&leaf, &made], &root.roots(), NOW), Err(Refusal::UntrustedKey));
        }
    }

    #[test]
    fn a_certificate_that_signs_itself_is_believed_by_nobody_else() {
        let root = Authority::root(2020..2040);
        let key = KeyPair::generate().unwrap();
        let own = params("Root", 2020..2040, &["api.example.com"], &[]).self_signed(&key).unwrap();
        let chain = Chain::from_pem(own.pem().as_bytes()).unwrap();
        assert!(chain.check(&root.roots(), NOW).is_err() && chain.check(&Roots::public(), NOW).is_err());
    }

    #[test]
    fn a_certificate_that_only_lies_beside_the_way_lends_it_nothing() {
        let root = Authority::root(2020..2040);
        let (marked, below) = root.intermediate(2020..2040, true, &[&[1, 2, 840, 7]]);
        let (other, below_other) = root.intermediate(2020..2040, true, &[]);
        let through_second = |chain: &[&Made]| {
            let text: String = chain.iter().map(|made| made.pem.as_str()).collect();
            let checked = Chain::from_pem(text.as_bytes()).unwrap().check_through_second(&root.roots(), NOW);
            checked.map_err(|fault| fault.refusal)
        };
        let leaf = below.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(through_second(&[&leaf, &marked]), Ok(()));
        let of_the_other = below_other.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(checked(&[&of_the_other, &marked, &other], &root.roots(), NOW), Ok(()), "there is a way");
        assert_eq!(through_second(&[&of_the_other, &marked, &other]), Err(Refusal::UntrustedKey));
        let of_the_root = root.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(through_second(&[&of_the_root, &marked]), Err(Refusal::UntrustedKey));
    }

    #[test]
    fn the_public_roots_vouch_for_names_on_the_web_and_not_for_what_a_mail_address_says() {
        let root = Authority::root(2020..2040);
        let with_use = |purposes: &[ExtendedKeyUsagePurpose]| {
            let key = KeyPair::generate().unwrap();
            let mut params = params("me@mail.paypal.com", 2020..2040, &[], &[]);
            params.extended_key_usages = purposes.to_vec();
            let made = params.signed_by(&key, &root.issuer).unwrap();
            Made { der: made.der().clone(), pem: made.pem() }
        };
        let own = root.roots();
        let public = Roots(own.0.iter().map(|root| Root { anchor: root.anchor.clone(), validity: None }).collect());
        let (web, mail) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::EmailProtection);
        assert_eq!(checked(&[&with_use(&[web])], &public, NOW), Ok(()));
        assert_eq!(checked(&[&with_use(&[])], &public, NOW), Ok(()));
        let of_mail = with_use(&[mail]);
        assert_eq!(checked(&[&of_mail], &public, NOW), Err(Refusal::UntrustedKey));
        assert_eq!(checked(&[&of_mail], &own, NOW), Ok(()), "one's own root says whom it certifies");
    }

    #[test]
    fn names_and_marks_are_compared_whole() {
        let root = Authority::root(2020..2040);
        let leaf = root.issue("x.paypal.com", 2020..2040, &["echo-api.amazon.com", "*.amazon.com"], &[&[1, 2, 840, 7]]);
        let chain = Chain::from_pem(leaf.pem.as_bytes()).unwrap();
        assert_eq!(chain.common_name(), Some("x.paypal.com"));
        assert!(chain.has_dns_name("Echo-API.amazon.com"));
        for other in ["api.amazon.com", "amazon.com", "echo-api.amazon.com.evil.test", "x.paypal.com"] {
            assert!(!chain.has_dns_name(other), "{other}");
        }
        assert!(chain.has_extension(0, "1.2.840.7"));
        assert!(!chain.has_extension(0, "1.2.840") && !chain.has_extension(1, "1.2.840.7"));
        let two = {
            let key = KeyPair::generate().unwrap();
            let mut params = params("a.paypal.com", 2020..2040, &[], &[]);
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "evil.test");
            params.self_signed(&key).unwrap().pem()
        };
        let common_name = Chain::from_pem(two.as_bytes()).and_then(|chain| chain.common_name().map(str::to_owned));
        assert_ne!(common_name.as_deref(), Some("a.paypal.com"), "one of two names is not the name");
    }

    #[test]
    fn roots_must_be_those_of_a_ca() {
        let root = Authority::root(2020..2040);
        let leaf = root.issue("leaf", 2020..2040, &[], &[]);
        assert_eq!(Roots::read(leaf.pem.as_bytes()).err(), Some(RootsError::NotACa));
        assert_eq!(Roots::read(b"").err(), Some(RootsError::NoCertificate));
        assert_eq!(Roots::read(b"0 not der").err(), Some(RootsError::Unreadable));
        assert!(Roots::read(&CertificateDer::from_pem_slice(root.pem.as_bytes()).unwrap()).is_ok());
    }

    #[test]
    fn what_is_no_certificate_or_too_many_is_no_chain() {
        let root = Authority::root(2020..2040);
        let leaf = root.issue("leaf", 2020..2040, &[], &[]);
        assert!(Chain::from_pem(leaf.pem.repeat(LONGEST_CHAIN).as_bytes()).is_some());
        assert!(Chain::from_pem(leaf.pem.repeat(LONGEST_CHAIN + 1).as_bytes()).is_none());
        for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Chain::from_pem(text.as_bytes()).is_none(), "{text}");
        }
        let mut longer = leaf.der.to_vec();
        longer.push(0);
        assert!(Chain::from_der(vec![CertificateDer::from(longer)]).is_none());
    }

    #[test]
    fn no_byte_of_a_certificate_can_be_changed() {
        let root = Authority::root(2020..2040);
        let leaf = root.issue("leaf", 2020..2040, &["example.com"], &[&[1, 2, 3]]);
        let roots = root.roots();
        let good = Chain::from_der(vec![leaf.der.clone()]).unwrap();
        assert_eq!(good.check(&roots, NOW), Ok(()));
        for position in 0..leaf.der.len() {
            let mut der = leaf.der.to_vec();
            der[position] ^= 1;
            let chain = Chain::from_der(vec![CertificateDer::from(der)]);
            assert!(chain.is_none_or(|chain| chain.check(&roots, NOW).is_err()), "byte {position}");
        }
    }
}
