//! What all engines behind the gateway share in the configuration: a URL, a login, TLS.
//!
//! Invariant: no password stands in a plain string of the file, and none gets into an error or `check --effective`.

use super::node::Kind;
use super::reader::Table;
use crate::dial::Address;
use crate::secret::Secret;
use crate::tls_client::{ClientIdentity, TlsSettings};
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use url::Url;

const NO_URL: &str = "is no URL";

/// What a URL says.
#[derive(Default)]
pub(super) struct Located {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// Decoded, without the slash before it.
    pub(super) path: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

/// A string without a password, or a reference to a secret, which may have one.
pub(super) fn url(
    table: &Table<'_>,
    key: &'static str,
    schemes: &[(&str, bool)],
    port: u16,
    example: &str,
) -> Option<Located> {
    let Some(node) = table.node(key) else {
        table.error("", format!("`{key}` is missing"), example);
        return None;
    };
    let located = match &node.kind {
        Kind::Text(text) => {
            let located = locate(text, schemes, port);
            if located.as_ref().is_ok_and(|located| located.password.is_some()) {
                let what = "holds a password, which would stand in the file";
                table.error(
                    key,
                    what,
                    &format!("{key} = {{ env = \"NAME\" }}, or `username` and `password` beside it"),
                );
                return None;
            }
            if located.is_ok() {
                table.note_shown(key, &format!("{text:?}"));
            }
            located
        }
        _ => {
            let text = table.secret(key)?.secret;
            locate(&String::from_utf8_lossy(text.expose()), schemes, port).map_err(|what| match &*what {
                NO_URL => format!("{what}; in a login / # @ : and % are written %2F %23 %40 %3A and %25"),
                _ => what,
            })
        }
    };
    match located {
        Ok(located) => Some(located),
        Err(what) => {
            table.error(key, what, example);
            None
        }
    }
}

/// The text is in no error: it may hold a password.
fn locate(text: &str, schemes: &[(&str, bool)], port: u16) -> Result<Located, String> {
    let url = Url::parse(text).map_err(|_| NO_URL.to_owned())?;
    let Some((_, tls)) = schemes.iter().find(|(scheme, _)| *scheme == url.scheme()) else {
        let known: Vec<_> = schemes.iter().map(|(scheme, _)| format!("{scheme}://")).collect();
        return Err(format!("does not begin with {}", known.join(" or ")));
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("has no host")?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query, which nothing here reads; say it with keys".to_owned());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Ok(Located {
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: url.port().unwrap_or(port),
        tls: *tls,
        path: decoded(url.path().trim_start_matches('/')),
        username: Some(decoded(url.username())).filter(|name| !name.is_empty()),
        password: url.password().map(|password| Secret::new(decoded(password).into_bytes())),
    })
}

/// One of several, without credentials: `host`, `host:port`, or either with a scheme before it. The flag: TLS.
pub(super) fn host_and_port(text: &str, [plain, tls]: &[&str; 2], port: u16) -> Result<(Address, bool), String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("{plain}://{text}") };
    let located = locate(&with_scheme, &[(plain, false), (tls, true)], port)?;
    if located.username.is_some() || located.password.is_some() || !located.path.is_empty() {
        return Err("holds more than a host and a port; `username` and `password` stand beside it".to_owned());
    }
    Ok((Address { host: located.host, port: located.port }, located.tls))
}

/// Beside the URL, or in it.
pub(super) fn login(table: &Table<'_>, located: &Located) -> (Option<String>, Option<Secret>) {
    let (username, password) = (table.text("username"), table.secret("password").map(|named| named.secret));
    if (username.is_some() && located.username.is_some()) || (password.is_some() && located.password.is_some()) {
        table.error("", "the URL has a login already", "one of them");
    }
    (username.or_else(|| located.username.clone()), password.or_else(|| located.password.clone()))
}

/// `wanted`: what the URL's scheme says.
pub(super) fn tls(table: &Table<'_>, wanted: bool) -> Option<TlsSettings> {
    let Some(tls) = table.table("tls") else { return wanted.then(TlsSettings::default) };
    if !wanted {
        tls.warn("", "has no effect: the URL's scheme is one without TLS", "");
    }
    let settings = read_tls(tls);
    let usable = settings.client_config();
    if let Err(error) = usable {
        table.error("", error.to_string(), "");
    }
    if settings.server_name.clone().is_some_and(|name| ServerName::try_from(name).is_err()) {
        table.error("tls.server_name", "is neither a name nor an address", r#"server_name = "redis.internal""#);
    }
    wanted.then_some(settings)
}

/// The table of an upstream, of whatever kind.
pub(super) fn read_tls(tls: Table<'_>) -> TlsSettings {
    let ca = tls.file("ca").map(|(_, pem)| pem);
    let certificate = tls.file("certificate").map(|(_, pem)| pem);
    let private_key = tls.file("private_key").map(|(_, pem)| Secret::new(pem));
    if tls.has("certificate") != tls.has("private_key") {
        tls.error("", "`certificate` and `private_key` go together", "");
    }
    let server_name = tls.text("server_name");
    tls.finish();
    let identity =
        certificate.zip(private_key).map(|(certificate, private_key)| ClientIdentity { certificate, private_key });
    TlsSettings { ca, identity, server_name }
}

/// Of a table that has more wrong with it.
pub(super) fn ignore_server(table: &Table<'_>) {
    table.ignore(&["username", "password", "tls"]);
}
