//! TLS as a client of servers that the operator names: upstreams, brokers, Redis.
//!
//! Invariant: the provider of cryptography and the roots are the ones given here, never a process-wide default.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;
use thiserror::Error;

use crate::secret::Secret;

/// All parts as they were read from files: PEM, not yet parsed.
#[derive(Clone, Default)]
pub(crate) struct TlsSettings {
    /// None: the Mozilla roots.
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) identity: Option<ClientIdentity>,
    /// The name to ask for and to find in the certificate, in place of the url's host.
    pub(crate) server_name: Option<String>,
}

#[derive(Clone)]
pub(crate) struct ClientIdentity {
    pub(crate) certificate: Vec<u8>,
    pub(crate) private_key: Secret,
}

impl TlsSettings {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same_identity = match (&self.identity, &other.identity) {
            (None, None) => true,
            (Some(one), Some(two)) => {
                one.certificate == two.certificate && one.private_key.matches(two.private_key.expose())
            }
            _ => false,
        };
        self.ca == other.ca && self.server_name == other.server_name && same_identity
    }

    /// Without ALPN: the caller knows what it speaks.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Other(error.to_string()))?
            .with_root_certificates(roots(self.ca.as_deref())?);
        let Some(identity) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(TlsError::Certificate("no certificate in it".to_owned()));
        }
        // The parser's error could quote what it could not parse, and this is a key.
        let key = PrivateKeyDer::from_pem_slice(identity.private_key.expose()).map_err(|_| TlsError::PrivateKey)?;
        builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Certificate(error.to_string()))
    }
}

impl TlsSettings {
    /// For a client that looks for the name in its url and takes no other: `server_name` is what the certificate must
    /// bear, whatever the client looks for.
    pub(crate) fn client_config_by_name(&self) -> Result<ClientConfig, TlsError> {
        let mut config = self.client_config()?;
        if let Some(name) = &self.server_name {
            let other = |error: &dyn std::error::Error| TlsError::Other(error.to_string());
            let name = ServerName::try_from(name.clone()).map_err(|error| other(&error))?;
            let roots = Arc::new(roots(self.ca.as_deref())?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, config.crypto_provider().clone())
                .build()
                .map_err(|error| other(&error))?;
            config.dangerous().set_certificate_verifier(Arc::new(ByName { name, verifier }));
        }
        Ok(config)
    }
}

/// The verification of rustls, for one name.
#[derive(Debug)]
struct ByName {
    name: ServerName<'static>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ByName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _asked_for: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_server_cert(certificate, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn roots(ca: Option<&[u8]>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = ca else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TlsError::Ca(error.to_string()))?;
        roots.add(certificate).map_err(|error| TlsError::Ca(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Ca("no certificate in it".to_owned()));
    }
    Ok(roots)
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum TlsError {
    #[error("tls.ca cannot be used: {0}")]
    Ca(String),
    #[error("tls.certificate cannot be used: {0}")]
    Certificate(String),
    #[error("tls.private_key cannot be used: it is not one private key in PEM")]
    PrivateKey,
    #[error("TLS cannot be set up: {0}")]
    Other(String),
}
