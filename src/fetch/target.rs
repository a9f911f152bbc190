//! A url that may be asked for: parsed, and nothing but https to a host.
//!
//! Invariant: what is connected to, asked for and kept under is one parsed url; no text is joined to another. Which
//! hosts and paths a provider may name is the proof's rule; this holds for all of them.

use super::failure::FetchError;
use rustls::pki_types::ServerName;
use std::net::IpAddr;
use url::{Host, Url};

/// Certificates and key sets live at short addresses; SNS's confirmations, the longest, stay below 1 KiB.
const LONGEST: usize = 2048;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Name,
    /// As in the `Host` header and in metrics.
    pub(super) host_text: String,
    pub(super) port: u16,
    pub(super) path_and_query: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Domain(String),
    Address(IpAddr),
}

impl Target {
    /// `ports`: those allowed besides 443.
    pub(super) fn parse(text: &str, ports: &[u16]) -> Result<Self, FetchError> {
        if text.len() > LONGEST {
            return Err(FetchError::Url("it is longer than any that is known"));
        }
        // The parser takes `\` for `/`, drops tabs and line ends, and encodes what is not ASCII: nobody honest relies on it.
        if text.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b'"' | b'<' | b'>' | b'^' | b'`'))
        {
            return Err(FetchError::Url("it holds characters that no url has"));
        }
        let url = Url::parse(text).map_err(|_| FetchError::Url("it is not a url"))?;
        if url.scheme() != "https" {
            return Err(FetchError::Url("it is not https"));
        }
        if !url.username().is_empty() || url.password().is_some() || authority(text).contains('@') {
            return Err(FetchError::Url("it carries a user"));
        }
        if url.fragment().is_some() {
            return Err(FetchError::Url("it carries a fragment"));
        }
        let port = url.port_or_known_default().unwrap_or(443);
        if port != 443 && !ports.contains(&port) {
            return Err(FetchError::Url("its port is neither 443 nor in fetch.allow_ports"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => Name::Domain(name.to_owned()),
            Some(Host::Ipv4(address)) => Name::Address(address.into()),
            Some(Host::Ipv6(address)) => Name::Address(address.into()),
            _ => return Err(FetchError::Url("it has no host")),
        };
        let mut path_and_query = url.path().to_owned();
        if let Some(query) = url.query() {
            path_and_query.push('?');
            path_and_query.push_str(query);
        }
        let host_text = url.host_str().unwrap_or_default().to_owned();
        Ok(Self { host, host_text, port, path_and_query })
    }

    /// The name that the server's certificate must carry.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>, FetchError> {
        let name = match &self.host {
            Name::Address(address) => return Ok(ServerName::IpAddress((*address).into())),
            // A certificate names the host without its trailing dot.
            Name::Domain(name) => name.trim_end_matches('.').to_owned(),
        };
        ServerName::try_from(name).map_err(|_| FetchError::Url("its host is no DNS name"))
    }

    pub(super) fn host_header(&self) -> String {
        match self.port {
            443 => self.host_text.clone(),
            port => format!("{}:{port}", self.host_text),
        }
    }
}

/// The parser forgets an empty user (`https://@host/`), which still is a trick.
fn authority(text: &str) -> &str {
    let behind = text.split_once("://").map_or("", |(_, rest)| rest);
    behind.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> &'static str {
        match Target::parse(text, &[]) {
            Err(FetchError::Url(why)) => why,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_https_url_is_taken_apart() {
        let target = Target::parse("https://Keys.Example.com/a/b?x=1", &[]).expect("a url");
        assert_eq!(target.host, Name::Domain("keys.example.com".to_owned()));
        assert_eq!((target.port, target.path_and_query.as_str()), (443, "/a/b?x=1"));
        assert_eq!(target.host_header(), "keys.example.com");
        assert_eq!(Target::parse("https://h.example:443/", &[]).expect("a url").port, 443);
    }

    #[test]
    fn other_schemes_users_fragments_and_ports_are_refused() {
        for text in ["http://h.example/", "ftp://h.example/", "file:///etc/passwd", "gopher://h.example/"] {
            assert_eq!(refused(text), "it is not https", "{text}");
        }
        for text in [
            "https://u@h.example/",
            "https://u:p@h.example/",
            "https://@h.example/",
            "https://good.example@evil.example/",
        ] {
            assert_eq!(refused(text), "it carries a user", "{text}");
        }
        for text in ["https://h.example/#", "https://h.example/a#b", "https://evil.example#good.example/"] {
            assert_eq!(refused(text), "it carries a fragment", "{text}");
        }
        for text in ["https://h.example:80/", "https://h.example:22/", "https://h.example:8443/"] {
            assert_eq!(refused(text), "its port is neither 443 nor in fetch.allow_ports", "{text}");
        }
        assert_eq!(Target::parse("https://h.example:8443/", &[8443]).expect("a url").host_header(), "h.example:8443");
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        for text in [
            "https:\\\\h.example\\x",
            "https://evil.example\\@h.example/",
            "https://h.example/\tx",
            "https://h.exa\nmple/",
            " https://h.example/",
            "https://h.example/ x",
            "https://bücher.example/",
            "https://h.example/ü",
            "https://h．example/",
        ] {
            assert_eq!(refused(text), "it holds characters that no url has", "{text:?}");
        }
        assert_eq!(refused(&format!("https://h.example/{}", "a".repeat(2048))), "it is longer than any that is known");
        for text in ["", "h.example", "//h.example/", "https://", "https://h.example:99999/"] {
            assert_eq!(refused(text), "it is not a url", "{text}");
        }
    }

    #[test]
    fn addresses_in_odd_spellings_are_seen_as_addresses() {
        let loopback = Name::Address("127.0.0.1".parse().expect("an address"));
        for text in
            ["https://127.0.0.1/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://127.1/"]
        {
            assert_eq!(Target::parse(text, &[]).expect("a url").host, loopback, "{text}");
        }
        let mapped = Target::parse("https://[::ffff:169.254.169.254]/", &[]).expect("a url");
        assert_eq!(mapped.host, Name::Address("::ffff:169.254.169.254".parse().expect("an address")));
    }
}
