//! One authority, one server and one client, all P-256: every gateway of a run shows and trusts the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

pub(crate) struct Certificates {
    folder: PathBuf,
    server: CertificateDer<'static>,
    client: (CertificateDer<'static>, PrivateKeyDer<'static>),
}

impl Certificates {
    /// `ca.pem`, `server.pem`, `server.key` and both of them in `both.pem`, as HAProxy wants them.
    pub(crate) fn make(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let issue = |name, purpose| {
            let key = KeyPair::generate().expect("a key");
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).expect("sound names");
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![purpose];
            let certificate = params.signed_by(&key, &authority).expect("a signed certificate");
            (certificate, key)
        };
        let (server, server_key) = issue("server", ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = issue("sender", ExtendedKeyUsagePurpose::ClientAuth);
        let files = [
            ("ca.pem", authority.pem()),
            ("server.pem", server.pem()),
            ("server.key", server_key.serialize_pem()),
            ("both.pem", server.pem() + &server_key.serialize_pem()),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("a folder of our own");
        }
        let client_key = PrivateKeyDer::try_from(client_key.serialize_der()).expect("a key in PKCS#8");
        Self { folder: folder.to_owned(), server: server.der().clone(), client: (client.der().clone(), client_key) }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// One suite and one group, so that every gateway shakes hands in the same way; nothing is resumed.
    pub(crate) fn client(&self, mutual: bool, protocol: Option<&[u8]>) -> Arc<ClientConfig> {
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the suite is of this version")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ThisOne(self.server.clone())));
        let mut config = if mutual {
            let (certificate, key) = &self.client;
            builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).expect("a key of its own")
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        Arc::new(config)
    }

    /// Of the floor, which reads the files that the others read.
    pub(crate) fn server(folder: &Path, mutual: bool) -> Arc<ServerConfig> {
        use rustls::pki_types::pem::PemObject;
        let certificate = |name| CertificateDer::from_pem_file(folder.join(name)).expect("a certificate");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("suites of this version");
        let builder = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(certificate("ca.pem")).expect("an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).expect("a key");
        Arc::new(builder.with_single_cert(vec![certificate("server.pem")], key).expect("a key of its own"))
    }
}

/// The generator shares its core with the upstream, so it compares the certificate with the only one it can be instead of
/// verifying a chain that it has made itself.
#[derive(Debug)]
struct ThisOne(CertificateDer<'static>);

impl ServerCertVerifier for ThisOne {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if certificate.as_ref() == self.0.as_ref() {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("another certificate than the one of this run".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
