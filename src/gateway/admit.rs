//! The cheap refusals, before any byte of body: each looks at the head or at a table, and none spends anything of the
//! source's budget.

use super::forwarded::Client;
use super::source::{AlternativeName, ClientCertRule, Settings, Source};
use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::server::{ClientCertificate, Head};
use http::{Version, header};
use std::borrow::Cow;

/// The authority that a request names: exactly one, and nothing but a host and perhaps a port.
///
/// RFC 9112 §3.2: a request with no `Host`, or more than one, or an invalid one, is answered with 400; an authority in
/// the target wins over `Host`. In HTTP/2 it is `:authority` (RFC 9113 §8.3.1).
pub(super) fn authority(head: &Head) -> Result<String, Refusal> {
    let mut hosts = head.headers.get_all(header::HOST);
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::Malformed),
        (Some(value), None) => Some(value.to_str().map_err(|_| Refusal::Malformed)?),
        (None, None) => None,
    };
    if host.is_none() && head.version == Version::HTTP_11 {
        return Err(Refusal::Malformed);
    }
    // An invalid `Host` is refused even where it does not count.
    if !host.is_none_or(is_authority) {
        return Err(Refusal::Malformed);
    }
    let Some(target) = head.uri.authority().map(http::uri::Authority::as_str) else {
        return host.map(str::to_owned).ok_or(Refusal::Malformed);
    };
    // RFC 9113 §8.3.1: in HTTP/2 a `Host` that names another is malformed; in HTTP/1.1 the target simply wins.
    let contradicts = |host: &str| head.version == Version::HTTP_2 && host_of(host) != host_of(target);
    if !is_authority(target) || host.is_some_and(contradicts) {
        return Err(Refusal::Malformed);
    }
    Ok(target.to_owned())
}

/// A host, and perhaps a port; no user, no path.
fn is_authority(text: &str) -> bool {
    is_plain_authority(text) || is_any_authority(text)
}

/// As nearly all are spelled: a name or an IPv4 address, and perhaps a port of at most four digits.
fn is_plain_authority(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&host.len())
        && host.bytes().all(is_of_host)
        && (1..=4).contains(&port.len())
        && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_any_authority(text: &str) -> bool {
    let Ok(parsed) = text.parse::<http::uri::Authority>() else { return false };
    let host = parsed.host();
    let is_plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~[]:%".contains(&b));
    // The `http` crate takes any text for a port.
    let is_port =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && (text.is_empty() || text.parse::<u16>().is_ok());
    let port_or_none =
        text.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
    !text.contains('@') && !host.is_empty() && is_plain && port_or_none
}

/// The host of an authority: lower case, without port and without a final dot.
pub(super) fn host_of(authority: &str) -> Cow<'_, str> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    };
    let host = host.trim_end_matches('.');
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => host.to_ascii_lowercase().into(),
        false => host.into(),
    }
}

/// The framing that a connection can go on with and we do not want: a chunked body whose coding is not spelled exactly so, which another
/// parser in the chain may read in another way.
pub(super) fn framing(head: &Head) -> Result<(), Refusal> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING);
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if head.version == Version::HTTP_11 && one.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Ok(())
        }
        _ => Err(Refusal::TransferCoding),
    }
}

/// True: the source takes this method. False: it is let in for what it may be, a handshake, and nothing else.
pub(super) fn method(source: &Source, head: &Head) -> Result<bool, Refusal> {
    let Settings { methods, verifier, .. } = &source.settings;
    if methods.contains(&head.method) {
        return Ok(true);
    }
    let asks = verifier.admits(&head.method, &head.headers, head.uri.query());
    if asks { Ok(false) } else { Err(Refusal::MethodNotAllowed) }
}

pub(super) fn content_type(source: &Source, headers: &Fields) -> Result<(), Refusal> {
    media_type(&source.settings.content_types, headers)
}

/// Empty: any.
pub(super) fn media_type(allowed: &[String], headers: &Fields) -> Result<(), Refusal> {
    if allowed.is_empty() {
        return Ok(());
    }
    let mut values = headers.get_all(header::CONTENT_TYPE);
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::UnsupportedMediaType) };
    let text = value.to_str().map_err(|_| Refusal::UnsupportedMediaType)?;
    let essence = text.split(';').next().unwrap_or_default().trim();
    let known = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(essence));
    if known { Ok(()) } else { Err(Refusal::UnsupportedMediaType) }
}

pub(super) fn address(source: &Source, client: Client) -> Result<(), Refusal> {
    let allowed = &source.settings.allow_ips;
    let listed = || client.is_certain && allowed.iter().any(|network| network.contains(&client.address));
    if allowed.is_empty() || listed() { Ok(()) } else { Err(Refusal::AddressNotAllowed) }
}

/// Whether the client certificate (if any) is one that the source takes. True: it was checked and passed.
pub(super) fn certificate(
    source: &Source,
    presented: Option<&ClientCertificate>,
    now: impl Fn() -> UnixMillis,
) -> Result<bool, Refusal> {
    let Some(rule) = &source.settings.client_cert else { return Ok(false) };
    match presented {
        Some(certificate) if rule.takes(certificate, now()) => Ok(true),
        Some(_) => Err(Refusal::ClientCertNotAllowed),
        None if rule.required => Err(Refusal::ClientCertMissing),
        None => Ok(false),
    }
}

impl ClientCertRule {
    /// The roots, if the source has its own, and then any one of the names, the subject or the fingerprints, if it
    /// lists some. The names are SANs, exact, never the common name (RFC 9525 §2).
    fn takes(&self, certificate: &ClientCertificate, now: UnixMillis) -> bool {
        if let Some(roots) = &self.roots
            && !roots.signed(certificate, now.as_secs())
        {
            return false;
        }
        if self.names.is_empty() && self.subject.is_none() && self.fingerprints.is_empty() {
            return true;
        }
        let named = self.names.iter().any(|name| match name {
            AlternativeName::Dns(name) => certificate.dns_names.contains(name),
            AlternativeName::Uri(uri) => certificate.uris.contains(uri),
        });
        let subject = self.subject.as_ref().is_some_and(|subject| subject.is(&certificate.subject));
        named || subject || self.fingerprints.contains(&certificate.sha256)
    }
}

/// A client that has failed too often, at a source whose proof can be guessed, is not listened to.
pub(super) fn not_guessing(source: &Source, client: ClientKey) -> Result<(), Refusal> {
    let verifier = &source.settings.verifier;
    let guessing = verifier.is_guessable() && !verifier.has_signature() && source.budgets.failed_auth.is_spent(client);
    if guessing { Err(Refusal::AuthThrottled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::DistinguishedName;
    use http::{HeaderValue, Method};
    use proptest::prelude::*;

    fn presented(dns: &[&str], uris: &[&str], subject: &str) -> ClientCertificate {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ClientCertificate {
            der: vec![0x30, 0].into(),
            intermediates: Vec::new(),
            sha256: [7; 32],
            dns_names: owned(dns),
            uris: owned(uris),
            subject: DistinguishedName::parse(subject).expect("a name"),
            subject_text: subject.to_owned(),
        }
    }

    #[test]
    fn a_certificate_is_taken_for_a_name_of_the_same_kind_and_nothing_like_it() {
        let rule = |names: Vec<AlternativeName>, subject: Option<&str>| {
            let subject = subject.map(|subject| DistinguishedName::parse(subject).expect("a name"));
            ClientCertRule { required: true, roots: None, names, subject, fingerprints: Vec::new() }
        };
        let takes = |rule: &ClientCertRule, dns: &[&str], uris: &[&str], subject: &str| {
            rule.takes(&presented(dns, uris, subject), UnixMillis(0))
        };
        let uri = rule(vec![AlternativeName::Uri("spiffe://Example/Billing".to_owned())], None);
        assert!(takes(&uri, &[], &["spiffe://other/x", "spiffe://Example/Billing"], "CN=x"));
        assert!(!takes(&uri, &[], &["spiffe://example/billing"], "CN=x"));
        assert!(!takes(&uri, &[], &["spiffe://Example/Billing/more"], "CN=x"));
        assert!(!takes(&uri, &["spiffe://Example/Billing"], &[], "CN=x"));
        let dns = rule(vec![AlternativeName::Dns("hooks.example".to_owned())], None);
        assert!(takes(&dns, &["hooks.example"], &[], "CN=x"));
        assert!(!takes(&dns, &["x.hooks.example"], &["hooks.example"], "CN=hooks.example"));
        let subject = rule(Vec::new(), Some("CN=billing,O=Acme"));
        assert!(takes(&subject, &[], &[], "cn = billing, o = Acme"));
        assert!(!takes(&subject, &[], &[], r"CN=billing\,O\=Acme"));
        assert!(!takes(&subject, &[], &[], r"CN=billing\, O=Acme"));
        assert!(!takes(&subject, &[], &[], "CN=billing,O=Acme,C=DE"));
    }

    fn head(version: Version, uri: &str, headers: &[(&'static str, &'static str)]) -> Head {
        let mut fields = Fields::new();
        for (name, value) in headers {
            fields.append(*name, HeaderValue::from_static(value));
        }
        Head { method: Method::GET, uri: uri.parse().expect("a target"), version, headers: fields }
    }

    #[test]
    fn a_request_names_exactly_one_valid_host() {
        let h11 = |headers: &[(&'static str, &'static str)]| authority(&head(Version::HTTP_11, "/x", headers));
        assert_eq!(h11(&[("host", "Hooks.example.com:8443")]), Ok("Hooks.example.com:8443".to_owned()));
        for wrong in [
            &[][..],
            &[("host", "")],
            &[("host", "a"), ("host", "a")],
            &[("host", "local host")],
            &[("host", "a/x")],
            &[("host", "u@a")],
            &[("host", "a:80,b")],
            &[("host", "a:+80")],
            &[("host", "a:65536")],
            &[("host", "[::1]x")],
            &[("host", "a:b")],
            &[("host", "a:80:80")],
            &[("host", "a:123456")],
        ] {
            assert_eq!(h11(wrong), Err(Refusal::Malformed), "{wrong:?}");
        }
        let absolute = head(Version::HTTP_11, "http://right.test/x", &[("host", "wrong.test")]);
        assert_eq!(authority(&absolute), Ok("right.test".to_owned()));
        let invalid_beside = head(Version::HTTP_11, "http://right.test/x", &[("host", "u@wrong.test")]);
        assert_eq!(authority(&invalid_beside), Err(Refusal::Malformed));
        let h2 = |headers: &[(&'static str, &'static str)]| {
            authority(&head(Version::HTTP_2, "https://right.test/x", headers))
        };
        for agreeing in [&[][..], &[("host", "RIGHT.test")]] {
            assert_eq!(h2(agreeing), Ok("right.test".to_owned()));
        }
        assert_eq!(h2(&[("host", "wrong.test")]), Err(Refusal::Malformed));
    }

    #[test]
    fn a_host_is_compared_without_case_port_and_final_dot() {
        for text in ["Hooks.Example.com", "hooks.example.com:443", "hooks.example.com.", "hooks.example.com.:8443"] {
            assert_eq!(host_of(text), "hooks.example.com");
        }
        assert_eq!(host_of("[2001:DB8::1]:8443"), "[2001:db8::1]");
        assert_eq!(host_of("[2001:db8::1]"), "[2001:db8::1]");
    }

    #[test]
    fn only_exactly_chunked_is_a_transfer_coding() {
        let te = |values: &[&'static str]| {
            let headers: Vec<_> = values.iter().map(|value| ("transfer-encoding", *value)).collect();
            framing(&head(Version::HTTP_11, "/x", &headers))
        };
        assert_eq!(te(&[]), Ok(()));
        assert_eq!(te(&["chunked"]), Ok(()));
        assert_eq!(te(&["Chunked"]), Ok(()));
        for wrong in [
            &["gzip, chunked"][..],
            &["chunked, chunked"],
            &[",chunked"],
            &["identity"],
            &["chunked", "chunked"],
            &[""],
        ] {
            assert_eq!(te(wrong), Err(Refusal::TransferCoding), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_host_is_sent_it_is_refused_or_has_one_spelling(
            sent in r"\PC{0,24}|[a-cA-C.:\[\]@%0-9/_-]{0,24}|[a-zA-Z0-9-]{1,8}(\.[a-zA-Z]{1,3}){0,2}\.?(:[0-9]{0,5})?",
        ) {
            let Ok(value) = http::HeaderValue::from_bytes(sent.as_bytes()) else { return Ok(()) };
            let mut request = head(Version::HTTP_11, "/x", &[]);
            request.headers.insert(header::HOST, value);
            if let Ok(named) = authority(&request) {
                let host = host_of(&named);
                prop_assert!(!host.bytes().any(|b| b.is_ascii_uppercase()) && !host.ends_with('.'), "{host}");
                prop_assert_eq!(host_of(&host), &*host);
                prop_assert!(is_any_authority(&named), "{named}");
                let upper = named.to_ascii_uppercase();
                prop_assert_eq!(host_of(&upper), &*host);
            }
        }
    }
}
