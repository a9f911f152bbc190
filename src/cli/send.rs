//! `send`: a correctly signed webhook, delivered as a source's sender would; and the small client that does it.

use super::sign::{self, Signed};
use super::{NO, complain, say};
use crate::fields::Fields;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An answer longer than this is cut; a person reads it.
const LONGEST_ANSWER: usize = 1024 * 1024;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    webhook: sign::Arguments,
    /// Where to send it: scheme and authority, as https://localhost:8443. The path is the source's.
    #[arg(long, value_name = "URL")]
    to: Uri,
    /// The CA that signed the server's certificate; default: the Mozilla roots.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The client certificate, for mTLS.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

pub(super) fn send(config: &Path, arguments: &Arguments) -> ExitCode {
    let signed = match sign::make(config, &arguments.webhook) {
        Ok(signed) => signed,
        Err(refused) => return refused,
    };
    let answer = deliver(&signed, arguments);
    match answer {
        Ok(answer) => {
            say(&format!("{}", answer.status));
            for (name, value) in &answer.headers {
                say(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
            }
            say("");
            say(&String::from_utf8_lossy(&answer.body));
            if answer.status.is_success() { ExitCode::SUCCESS } else { ExitCode::from(NO) }
        }
        Err(why) => {
            complain(&why);
            ExitCode::from(NO)
        }
    }
}

fn deliver(signed: &Signed, arguments: &Arguments) -> Result<Answer, String> {
    let read = |path: &Option<PathBuf>| match path {
        Some(path) => std::fs::read(path).map(Some).map_err(|error| format!("{}: {error}", path.display())),
        None => Ok(None),
    };
    let identity = read(&arguments.cert)?.zip(read(&arguments.key)?);
    let sender = Sender::new(
        &arguments.to,
        read(&arguments.cacert)?.as_deref(),
        identity.as_ref().map(|(c, k)| (&c[..], &k[..])),
    )?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let host = signed.source.host.as_deref();
    let sending = sender.send(&signed.method, host, &signed.path_and_query, &signed.headers, signed.body.clone());
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(arguments.timeout), sending).await })
        .map_err(|_| format!("no answer within {} s", arguments.timeout))?
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// One connection a request: what a provider does is what is tried here, not speed.
pub(super) struct Sender {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    longest_answer: usize,
}

impl Sender {
    pub(super) fn new(to: &Uri, ca: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Self, String> {
        let host = to
            .host()
            .ok_or_else(|| format!("{to} names no host; write https://localhost:8443"))?
            .trim_matches(['[', ']'])
            .to_owned();
        let (secure, default_port) = match to.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(format!("{to} does not begin with http:// or https://")),
        };
        let tls = match secure {
            true => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| format!("{host:?} is no name that TLS can ask for"))?;
                Some((TlsConnector::from(Arc::new(client_config(ca, identity)?)), name))
            }
            false => None,
        };
        Ok(Self { host, port: to.port_u16().unwrap_or(default_port), tls, longest_answer: LONGEST_ANSWER })
    }

    /// Answers up to so many bytes.
    pub(super) fn taking(mut self, bytes: usize) -> Self {
        self.longest_answer = bytes;
        self
    }

    pub(super) async fn send(
        &self,
        method: &Method,
        host: Option<&str>,
        path_and_query: &str,
        headers: &Fields,
        body: Bytes,
    ) -> Result<Answer, String> {
        let to = format!("{}:{}", self.host, self.port);
        let stream =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| format!("{to}: {error}"))?;
        let mut request = Request::builder()
            .method(method)
            .uri(path_and_query)
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = headers.clone().into();
        let authority = host.map_or(to.clone(), str::to_owned);
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_str(&authority).map_err(|error| error.to_string())?);
        match &self.tls {
            Some((connector, name)) => {
                let stream =
                    connector.connect(name.clone(), stream).await.map_err(|error| format!("{to}: TLS: {error}"))?;
                exchange(TokioIo::new(stream), request, self.longest_answer).await
            }
            None => exchange(TokioIo::new(stream), request, self.longest_answer).await,
        }
        .map_err(|error| format!("{to}: {error}"))
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, longest: usize) -> Result<Answer, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, longest).collect().await.map_err(|error| error.to_string())?.to_bytes();
    connection.abort();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

fn client_config(ca: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots
                    .add(certificate.map_err(|error| format!("the CA: {error}"))?)
                    .map_err(|error| format!("the CA: {error}"))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match identity {
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("the client certificate: {error}"))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the client's key: {error}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| format!("the client certificate: {error}"))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}
