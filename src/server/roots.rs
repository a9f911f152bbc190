//! Client certificates judged by a source's own roots, behind a listener that trusts more than those.

use super::tls::TlsError;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;

/// What builds a chain from a leaf to one of these roots, as a TLS handshake would.
pub(crate) fn roots_verifier(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let fail = |error: String| TlsError::ClientCa(error);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|error| fail(error.to_string()))?).map_err(|error| fail(error.to_string()))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map(|verifier| verifier as _)
        .map_err(|error| fail(error.to_string()))
}

/// How many certificates a PEM file holds, as far as it can be read.
pub(crate) fn count_certificates(pem: &[u8]) -> usize {
    CertificateDer::pem_slice_iter(pem).filter(Result::is_ok).count()
}
