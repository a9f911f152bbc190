//! TLS: which certificate is shown, which clients' certificates are accepted.
//!
//! Owns the rustls configuration of one listener. Invariants:
//! - Nothing that remembers a session outlives its `Tls`, and no two share it. rustls resumes a session with the client
//!   chain stored in it, and does not verify that chain again; so a reload (a new `Tls`) forgets all sessions, and where
//!   clients present certificates nothing is resumed at all: a resumed session begets the next, and so a chain that was
//!   good once would outlive its own expiry and revocation.
//! - No early data: 0-RTT can be replayed by anybody who saw it.
//! - A certificate that was presented and is not good fails the handshake, under `request` as under `require`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig, SupportedCipherSuite};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::certificate::{ClientCertificate, Facts, Lately, ServedNames};
use super::known_signatures;
use super::records::Records;
use super::transport::{Protocol, Socket};
use crate::clock::UnixMillis;
use crate::secret::Secret;

/// What the operator's files hold; nothing of it has been looked at yet.
pub(crate) struct Settings {
    /// The first is shown to clients that name no server, or one that no certificate serves.
    pub(crate) certificates: Vec<CertifiedKeyFiles>,
    /// PEM: the authorities that sign client certificates.
    pub(crate) client_ca: Option<Vec<u8>>,
    pub(crate) client_auth: ClientAuth,
    /// PEM (any number of lists) or DER (one).
    pub(crate) client_crl: Option<Vec<u8>>,
}

pub(crate) struct CertifiedKeyFiles {
    /// What an error calls this pair: the file's path.
    pub(crate) label: String,
    /// PEM: the leaf first, then its intermediates.
    pub(crate) chain: Vec<u8>,
    /// PEM.
    pub(crate) key: Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    None,
    /// Each source decides; no certificate is fine, a bad one is not.
    Request,
    Require,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("there is no certificate; a TLS listener needs at least one")]
    NoCertificate,
    #[error("{label}: no certificate can be read ({detail}); expected PEM, the server's own certificate first")]
    Certificate { label: String, detail: String },
    #[error("{label}: no private key can be read; expected PEM with an unencrypted PKCS#8, PKCS#1 or SEC1 key")]
    Key { label: String },
    #[error(
        "{label}: the kind or size of the private key is not supported; use RSA (2048 bits or more), ECDSA or Ed25519"
    )]
    KeyKind { label: String },
    #[error("{label}: the private key does not belong to the certificate; look for a key left over from a renewal")]
    KeyMismatch { label: String },
    #[error("client certificates are asked for, but there is no client_ca to judge them by")]
    NoClientCa,
    #[error("client_ca or client_crl is set, but client_auth asks for no certificate; remove one or the other")]
    ClientCaUnused,
    #[error("client_ca: {0}; expected PEM with at least one CA certificate")]
    ClientCa(String),
    #[error(
        "client_crl: {0}; expected PEM or DER, and version 2 with a CRL number (OpenSSL: `crl_extensions` with \
         authorityKeyIdentifier)"
    )]
    ClientCrl(String),
    #[error("TLS cannot be set up: {0}")]
    Internal(String),
}

/// One listener's TLS, ready to use.
pub(crate) struct Tls {
    /// Each connection's own copy differs in who chooses the certificate.
    config: ServerConfig,
    /// Never empty.
    identities: Arc<[Identity]>,
    client_rules: ClientRules,
    lately: Lately,
    deadlines: Vec<Deadline>,
    notes: Vec<String>,
}

/// What clients' certificates are judged by: equal where the files are. The server's own certificates are no part of it;
/// a renewal concerns nobody who is connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientRules([u8; 32]);

impl ClientRules {
    fn of(settings: &Settings) -> Self {
        let mut digest = Sha256::new();
        digest.update([match settings.client_auth {
            ClientAuth::None => 0,
            ClientAuth::Request => 1,
            ClientAuth::Require => 2,
        }]);
        for file in [&settings.client_ca, &settings.client_crl] {
            digest.update([u8::from(file.is_some())]);
            let bytes = file.as_deref().unwrap_or_default();
            // So that no byte can move from one file to the next.
            digest.update((bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        }
        Self(digest.finalize().into())
    }
}

struct Identity {
    certified: Arc<CertifiedKey>,
    served: Arc<ServedNames>,
    not_after: i64,
}

/// Chooses one connection's certificate within rustls, and remembers what it chose and for whom.
struct Chooser {
    identities: Arc<[Identity]>,
    chosen: Mutex<Option<Chosen>>,
}

#[derive(Clone)]
struct Chosen {
    server_name: Option<String>,
    served: Arc<ServedNames>,
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chooser")
    }
}

impl Chooser {
    fn new(identities: &Arc<[Identity]>) -> Arc<Self> {
        Arc::new(Self { identities: Arc::clone(identities), chosen: Mutex::new(None) })
    }

    fn choose(&self, hello: &ClientHello<'_>) -> Option<&Identity> {
        let name = hello.server_name().unwrap_or_default();
        let usable = |identity: &&Identity| identity.certified.key.choose_scheme(hello.signature_schemes()).is_some();
        // An RSA and an ECDSA certificate may serve one name: then the first that the client can check.
        let by_name = |serves: fn(&ServedNames, &str) -> bool| {
            let mut serving = self.identities.iter().filter(move |identity| serves(&identity.served, name));
            serving.clone().find(usable).or_else(|| serving.next())
        };
        by_name(ServedNames::serves_exactly)
            .or_else(|| by_name(ServedNames::serves_by_wildcard))
            .or_else(|| self.identities.first())
    }

    fn chosen(&self) -> MutexGuard<'_, Option<Chosen>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Chooser {
    /// rustls asks in each handshake, also where it then resumes a session; where it asks for another hello, again.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let identity = self.choose(&hello)?;
        *self.chosen() = Some(Chosen {
            server_name: hello.server_name().map(str::to_ascii_lowercase),
            served: Arc::clone(&identity.served),
        });
        Some(Arc::clone(&identity.certified))
    }
}

/// Something that stops working at a known time.
struct Deadline {
    what: String,
    at: i64,
    /// What happens then.
    effect: &'static str,
}

/// What a handshake told of the client.
pub(crate) struct TlsPeer {
    /// As the client named it (SNI), in lower case.
    pub(crate) server_name: Option<String>,
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
    /// Of the certificate that was shown.
    pub(crate) served: Arc<ServedNames>,
}

/// Renewal by ACME happens 30 days ahead: two weeks before the end it has failed several times.
const WARN_BEFORE_SECS: i64 = 14 * 24 * 60 * 60;
/// The least that the CA/Browser Forum allows.
const LEAST_RSA_BITS: usize = 2048;

/// All that rustls offers, in our order, which outranks the client's (see `server_config`). AES-128-GCM with SHA-256 first:
/// it is as strong as the key exchange and the certificates around it (128 bits), and every processor of the last years has
/// instructions for both halves; SHA-384 has none, and was a fifth of a handshake. A client that wants 256 bits offers
/// nothing else.
const CIPHER_SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];
/// Senders keep the newest ticket, and every resumption brings the next; a second one is seldom used and always paid for.
const TICKETS: usize = 1;

impl Tls {
    pub(crate) fn build(settings: Settings) -> Result<Self, TlsError> {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: CIPHER_SUITES.to_vec(),
            signature_verification_algorithms: known_signatures::algorithms(),
            ..aws_lc_rs::default_provider()
        });
        let mut deadlines = Vec::new();
        let mut notes = Vec::new();
        let verifier = client_verifier(&settings, &provider, &mut deadlines, &mut notes)?;
        let client_rules = ClientRules::of(&settings);
        let mut identities = Vec::new();
        for files in settings.certificates {
            let label = files.label.clone();
            let (identity, facts) = Identity::build(files, &provider)?;
            if facts.served.is_empty() {
                notes.push(format!("{label}: the certificate has no alternative names, so no client will accept it"));
            }
            if facts.rsa_bits.is_some_and(|bits| bits < LEAST_RSA_BITS) {
                notes.push(format!(
                    "{label}: an RSA key of less than {LEAST_RSA_BITS} bits can be broken; make a new one"
                ));
            }
            deadlines.push(Deadline { what: label, at: facts.not_after, effect: "clients refuse it" });
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        let identities: Arc<[Identity]> = identities.into();
        let config = server_config(&identities, &provider, verifier).map_err(|e| TlsError::Internal(e.to_string()))?;
        Ok(Self { config, identities, client_rules, lately: Lately::default(), deadlines, notes })
    }

    pub(super) fn client_rules(&self) -> ClientRules {
        self.client_rules
    }

    /// Unix seconds: the earliest end of the server's own certificates.
    pub(crate) fn not_after(&self) -> i64 {
        self.identities.iter().map(|identity| identity.not_after).min().unwrap_or(0)
    }

    /// The names of each server certificate, in the order of the configuration.
    #[cfg(test)]
    pub(crate) fn served(&self) -> impl Iterator<Item = &Arc<ServedNames>> {
        self.identities.iter().map(|identity| &identity.served)
    }

    /// One sentence each, for `check` and the log.
    pub(crate) fn warnings(&self, now: UnixMillis) -> Vec<String> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut warnings = self.notes.clone();
        for Deadline { what, at, effect } in &self.deadlines {
            if *at <= now {
                warnings.push(format!("{what}: expired {} days ago; {effect}", (now - at) / 86_400));
            } else if *at - now < WARN_BEFORE_SECS {
                warnings.push(format!("{what}: expires in {} days; then {effect}", (at - now) / 86_400));
            }
        }
        warnings
    }

    /// The caller sets the deadline. A failure has told the client why (an alert) before this returns.
    pub(super) async fn handshake(&self, socket: Socket) -> io::Result<(Box<Records<Socket>>, TlsPeer, Protocol)> {
        let chooser = Chooser::new(&self.identities);
        let mut config = self.config.clone();
        config.cert_resolver = Arc::clone(&chooser) as _;
        let records = Box::new(Records::accept(socket, Arc::new(config)).await?);
        let chosen = chooser.chosen().take();
        let Chosen { server_name, served } =
            chosen.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no certificate was chosen"))?;
        let session = records.session();
        let certificate = match session.peer_certificates() {
            None | Some([]) => None,
            Some(chain) => {
                let client = self
                    .lately
                    .read(chain)
                    .map_err(|unreadable| io::Error::new(io::ErrorKind::InvalidData, unreadable))?;
                Some(client)
            }
        };
        let protocol = match session.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let peer = TlsPeer { server_name, certificate, served };
        Ok((records, peer, protocol))
    }
}

impl Identity {
    fn build(files: CertifiedKeyFiles, provider: &Arc<CryptoProvider>) -> Result<(Self, Facts), TlsError> {
        let CertifiedKeyFiles { label, chain, key } = files;
        let chain = match certificates(&chain) {
            Ok(chain) => chain,
            Err(detail) => return Err(TlsError::Certificate { label, detail }),
        };
        let facts = match chain.first().map(Facts::of) {
            Some(Ok(facts)) => facts,
            _ => return Err(TlsError::Certificate { label, detail: "not X.509".to_owned() }),
        };
        // The parser's own words can quote the file, and so the key.
        let Ok(key) = PrivateKeyDer::from_pem_slice(key.expose()) else { return Err(TlsError::Key { label }) };
        let Ok(key) = provider.key_provider.load_private_key(key) else { return Err(TlsError::KeyKind { label }) };
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(TlsError::KeyMismatch { label }),
            Err(error) => return Err(TlsError::Certificate { label, detail: error.to_string() }),
        }
        let served = facts.served.clone();
        let identity = Self { certified: Arc::new(certified), served: Arc::new(served), not_after: facts.not_after };
        Ok((identity, facts))
    }
}

fn server_config(
    identities: &Arc<[Identity]>,
    provider: &Arc<CryptoProvider>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(&versions)?;
    let takes_certificates = verifier.is_some();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Chooser::new(identities));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    // OpenSSL's clients name AES-256 with SHA-384 first, because it is the longest and not because they need it.
    config.ignore_client_order = true;
    // Tickets, sealed with keys that die with this configuration, instead of a table of sessions: strangers could fill a
    // table, and it would be memory for connections that are gone.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if takes_certificates {
        // The default ticketer issues none, and without it or a table there is nothing to resume (see the head).
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = TICKETS;
    }
    Ok(config)
}

fn client_verifier(
    settings: &Settings,
    provider: &Arc<CryptoProvider>,
    deadlines: &mut Vec<Deadline>,
    notes: &mut Vec<String>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let optional = match (settings.client_auth, &settings.client_ca, &settings.client_crl) {
        (ClientAuth::None, None, None) => return Ok(None),
        // A CA that is configured and not used looks like protection and is none.
        (ClientAuth::None, _, _) => return Err(TlsError::ClientCaUnused),
        (ClientAuth::Request, ..) => true,
        (ClientAuth::Require, ..) => false,
    };
    let pem = settings.client_ca.as_deref().ok_or(TlsError::NoClientCa)?;
    let mut roots = RootCertStore::empty();
    let mut authorities = Vec::new();
    for authority in certificates(pem).map_err(TlsError::ClientCa)? {
        let facts = Facts::of(&authority).map_err(|error| TlsError::ClientCa(error.to_string()))?;
        roots.add(authority).map_err(|error| TlsError::ClientCa(error.to_string()))?;
        // Trust anchors have no end in webpki (RFC 5280 leaves it open), and operators should know.
        let effect = "its clients are accepted all the same, until it is removed from client_ca";
        deadlines.push(Deadline { what: format!("client_ca {}", facts.subject), at: facts.not_after, effect });
        authorities.push(facts);
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if let Some(crl) = &settings.client_crl {
        let lists = revocation_lists(crl)?;
        check_coverage(&lists, &authorities, deadlines, notes)?;
        // Revocation stays as strict as webpki makes it: every certificate of the chain below the CA is looked up, and one
        // whose issuer has no list here is refused. The milder settings (only the leaf, unknown is fine) would
        // accept whatever an intermediate signs after it was revoked, or everything once a list is misplaced. And a
        // list past its nextUpdate counts as none, as in nginx: else holding back new lists would be enough to
        // keep a revoked certificate alive.
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    if optional {
        builder = builder.allow_unauthenticated();
    }
    match builder.build() {
        Ok(verifier) => Ok(Some(verifier)),
        Err(VerifierBuilderError::InvalidCrl(error)) => Err(TlsError::ClientCrl(format!("{error:?}"))),
        Err(error) => Err(TlsError::ClientCa(error.to_string())),
    }
}

fn revocation_lists(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let is_pem = bytes.windows(11).any(|window| window == b"-----BEGIN ");
    if !is_pem {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err(TlsError::ClientCrl("it holds no revocation list".to_owned())),
        Ok(lists) => Ok(lists),
        Err(error) => Err(TlsError::ClientCrl(error.to_string())),
    }
}

fn check_coverage(
    lists: &[CertificateRevocationListDer<'_>],
    authorities: &[Facts],
    deadlines: &mut Vec<Deadline>,
    notes: &mut Vec<String>,
) -> Result<(), TlsError> {
    let mut issuers = Vec::new();
    for list in lists {
        let (_, parsed) = CertificateRevocationList::from_der(list)
            .map_err(|_| TlsError::ClientCrl("it is no X.509 revocation list".to_owned()))?;
        let issuer = parsed.issuer().to_string();
        if let Some(next) = parsed.next_update() {
            let what = format!("client_crl of {issuer}");
            deadlines.push(Deadline { what, at: next.timestamp(), effect: "every client it covers is refused" });
        }
        issuers.push(parsed.issuer().as_raw().to_vec());
    }
    for authority in authorities {
        if !issuers.contains(&authority.subject_der) {
            notes.push(format!(
                "client_crl holds no list of {}: every certificate that it signs itself is refused; add its list",
                authority.subject
            ));
        }
    }
    Ok(())
}

/// All certificates of a PEM file, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err("no CERTIFICATE block".to_owned()),
        Ok(chain) => Ok(chain),
        Err(_) => Err("damaged PEM".to_owned()),
    }
}
