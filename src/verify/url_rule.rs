//! Which urls a platform's request may name for its certificate or key.
//!
//! Invariant: a url is parsed before it is judged, and what is looked up is what was parsed, never the text. Hosts are
//! compared whole; a path is judged as the server will see it.

use std::sync::Arc;
use url::{Host, Url};

/// SNS's confirmations have some 400 characters.
const LONGEST: usize = 2048;

#[derive(Clone, Debug)]
pub(crate) struct UrlRule {
    pub(crate) host: HostRule,
    pub(crate) path: PathRule,
    /// `:443` may be written out.
    pub(crate) port_may_be_said: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum HostRule {
    OneOf(Vec<String>),
    /// `sns.REGION.amazonaws.com` or `….com.cn`. Not `sns.s3.amazonaws.com`: a bucket can be named so.
    Sns,
}

#[derive(Clone, Debug)]
pub(crate) enum PathRule {
    /// `/SimpleNotificationService-` and 32 letters and digits, `.pem`.
    SnsCertificate,
    /// `/`, with a query: the one place where there is one.
    SnsConfirmation,
    /// Letters, digits, `_`, `-` and `/` alone.
    Plain,
    /// Below this folder, once dots are resolved.
    Below(&'static str),
    /// As `Plain`, and ends in `.pem`.
    Key,
}

impl UrlRule {
    /// The url to look up, where the rule allows it.
    pub(crate) fn allows(&self, text: &str) -> Option<Arc<str>> {
        // Percent-encodings and `\` are where servers, proxies and parsers disagree; no platform needs them in these.
        let odd = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b'@' | b'#' | b'"' | b'<' | b'>');
        let may_query = matches!(self.path, PathRule::SnsConfirmation);
        if text.len() > LONGEST || text.bytes().any(odd) || (!may_query && text.contains(['?', '%'])) {
            return None;
        }
        let url = Url::parse(text).ok()?;
        let Some(Host::Domain(host)) = url.host() else { return None };
        let behind = text.split_once("://")?.1;
        let authority = behind.split(['/', '?']).next()?;
        // The parser resolves dots; where no platform writes any, they are a trick.
        let has_dots = behind.strip_prefix(authority)?.split('?').next()? != url.path();
        let says_port = authority.contains(':');
        let is_plain = url.scheme() == "https"
            && url.port().is_none()
            && (!says_port || self.port_may_be_said)
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none();
        let query_is_right = match self.path {
            PathRule::SnsConfirmation => {
                url.query_pairs().filter(|(name, _)| name == "Action").count() == 1
                    && url.query_pairs().any(|pair| pair == ("Action".into(), "ConfirmSubscription".into()))
            }
            _ => url.query().is_none(),
        };
        (is_plain && query_is_right && self.host.allows(host) && self.path.allows(url.path(), has_dots))
            .then(|| Arc::from(url.as_str()))
    }
}

impl HostRule {
    /// `host`: in lower case, as the parser has it.
    fn allows(&self, host: &str) -> bool {
        match self {
            Self::OneOf(hosts) => hosts.iter().any(|known| known == host),
            Self::Sns => {
                let host = host.strip_suffix(".cn").unwrap_or(host);
                let region = host.strip_prefix("sns.").and_then(|rest| rest.strip_suffix(".amazonaws.com"));
                region.is_some_and(is_region)
            }
        }
    }
}

/// `us-east-1`, `us-gov-west-1`: two letters, words, one digit.
fn is_region(text: &str) -> bool {
    let Some((words, [b'0'..=b'9'])) = text.rsplit_once('-').map(|(words, digit)| (words, digit.as_bytes())) else {
        return false;
    };
    let mut words = words.split('-');
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let country = words.next().is_some_and(|word| word.len() == 2 && is_word(word));
    let mut named = 0;
    country
        && words.all(|word| {
            named += 1;
            is_word(word)
        })
        && named > 0
}

impl PathRule {
    /// `path`: its dots are resolved.
    fn allows(&self, path: &str, had_dots: bool) -> bool {
        let plain = |path: &str| {
            path.starts_with('/')
                && !path.contains("//")
                && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte))
        };
        match self {
            Self::Below(folder) => path.starts_with(folder) && path.len() > folder.len(),
            _ if had_dots => false,
            Self::SnsCertificate => path
                .strip_prefix("/SimpleNotificationService-")
                .and_then(|rest| rest.strip_suffix(".pem"))
                .is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())),
            Self::SnsConfirmation => path == "/",
            Self::Plain => plain(path),
            Self::Key => path.strip_suffix(".pem").is_some_and(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SNS: UrlRule = UrlRule { host: HostRule::Sns, path: PathRule::SnsCertificate, port_may_be_said: false };

    fn alexa() -> UrlRule {
        let host = HostRule::OneOf(vec!["s3.amazonaws.com".to_owned()]);
        UrlRule { host, path: PathRule::Below("/echo.api/"), port_may_be_said: true }
    }

    fn paypal() -> UrlRule {
        let host = HostRule::OneOf(vec!["api.paypal.com".to_owned(), "api.sandbox.paypal.com".to_owned()]);
        UrlRule { host, path: PathRule::Plain, port_may_be_said: true }
    }

    #[test]
    fn the_urls_that_platforms_send_are_allowed() {
        let pem = "SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem";
        for host in
            ["sns.us-east-1.amazonaws.com", "sns.us-gov-west-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn"]
        {
            let url = format!("https://{host}/{pem}");
            assert_eq!(SNS.allows(&url).as_deref(), Some(url.as_str()));
        }
        let url = "https://api.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594-5a29e601";
        assert_eq!(paypal().allows(url).as_deref(), Some(url));
        let plain = Some("https://s3.amazonaws.com/echo.api/echo-api-cert.pem");
        for text in [
            "https://s3.amazonaws.com/echo.api/echo-api-cert.pem",
            "HTTPS://S3.AmazonAWS.com:443/echo.api/echo-api-cert.pem",
            "https://s3.amazonaws.com/echo.api/../echo.api/echo-api-cert.pem",
        ] {
            assert_eq!(alexa().allows(text).as_deref(), plain, "{text}");
        }
    }

    #[test]
    fn look_alikes_of_a_host_are_not() {
        for host in [
            "api.paypal.com.evil.test",
            "evil-api.paypal.com",
            "evilapi.paypal.com",
            "api.paypal.com.",
            "xn--api-paypal-com",
            "paypal.com",
            "169.254.169.254",
            "0xa9fea9fe",
            "[::1]",
            "api.paypal.com:80",
            "api.paypal.com:444",
            "u@api.paypal.com",
            "api.paypal.com@evil.test",
            "api.paypal.com:443@evil.test",
            "@api.paypal.com",
            "evil.test\\.api.paypal.com",
            "api.paypal.com\\@evil.test",
            "evil.test#api.paypal.com",
            "evil.test?api.paypal.com",
            "evil.test%2f.api.paypal.com",
            "api.paypal.com%00.evil.test",
            "аpi.paypal.com",
            "api。paypal。com",
            "api.pay\tpal.com",
            "",
        ] {
            let text = format!("https://{host}/v1/certs/C");
            assert_eq!(paypal().allows(&text), None, "{text}");
        }
        for host in [
            "sns.s3.amazonaws.com",
            "sns.us-east-1.amazonaws.com.evil.test",
            "sns.us-east-1.amazonaws.com.cn.evil.test",
            "sns.us-east-1-amazonaws.com",
            "sns.us-east-1.s3.amazonaws.com",
            "sns.usa-east-1.amazonaws.com",
            "sns.us-east-12.amazonaws.com",
            "sns.us-1.amazonaws.com",
            "sns.us--1.amazonaws.com",
            "sns..amazonaws.com",
            "evil.sns.us-east-1.amazonaws.com",
            "sns.us-east-1.amazonaws.com.cn.cn",
            "sns.us-east-1.amazonaws.com:443",
            "SNS.us-east-1.amazonaws.com@evil.test",
        ] {
            let text = format!("https://{host}/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem");
            assert_eq!(SNS.allows(&text), None, "{text}");
        }
    }

    #[test]
    fn other_schemes_and_paths_are_not() {
        for text in [
            "http://api.paypal.com/v1/certs/C",
            "ftp://api.paypal.com/v1/certs/C",
            "//api.paypal.com/v1/certs/C",
            "https:/api.paypal.com/v1/certs/C",
            "https:\\\\api.paypal.com\\v1",
            "https://api.paypal.com/v1/certs/C?x",
            "https://api.paypal.com/v1/certs/C#x",
            "https://api.paypal.com/v1/../evil",
            "https://api.paypal.com/v1/%2e%2e/evil",
            "https://api.paypal.com/v1/certs/C.pem",
            "https://api.paypal.com//evil",
            "https://api.paypal.com/a;b",
            "javascript:alert(1)",
        ] {
            assert_eq!(paypal().allows(text), None, "{text}");
        }
        for path in [
            "",
            "/",
            "/SimpleNotificationService-.pem",
            "/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec113.pem",
            "/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec11366.pem",
            "/x/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem",
            "/x/../SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem",
            "/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem/x",
            "/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem?x",
            "/simplenotificationservice-9c6465fa7f48f5cacd23014631ec1136.pem",
        ] {
            let text = format!("https://sns.us-east-1.amazonaws.com{path}");
            assert_eq!(SNS.allows(&text), None, "{text}");
        }
        for path in [
            "/echo.api/../evil/x.pem",
            "/EchO.api/x.pem",
            "/echo.apix/x.pem",
            "/echo.api/",
            "/echo.api/%2e%2e/evil/x",
            "/invalid/x",
        ] {
            assert_eq!(alexa().allows(&format!("https://s3.amazonaws.com{path}")), None, "{path}");
        }
    }

    #[test]
    fn a_confirmation_is_one_of_sns_for_a_subscription() {
        let rule = UrlRule { host: HostRule::Sns, path: PathRule::SnsConfirmation, port_may_be_said: false };
        let at = "https://sns.us-east-1.amazonaws.com/";
        assert!(
            rule.allows(&format!("{at}?Action=ConfirmSubscription&TopicArn=arn:aws:sns:us-east-1:1:T&Token=2336"))
                .is_some()
        );
        for text in [
            "https://evil.test/?Action=ConfirmSubscription",
            "https://169.254.169.254/latest/meta-data",
            "https://sns.us-east-1.amazonaws.com/?Action=DeleteTopic",
            "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Action=DeleteTopic",
            "https://sns.us-east-1.amazonaws.com/x?Action=ConfirmSubscription",
            "https://sns.us-east-1.amazonaws.com/",
            "https://sns.us-east-1.amazonaws.com:8443/?Action=ConfirmSubscription",
        ] {
            assert_eq!(rule.allows(text), None, "{text}");
        }
    }

    proptest! {
        /// Whatever is written around it, what is allowed is on the platform's own host.
        #[test]
        fn any_url_that_is_allowed_is_on_the_platforms_host(
            text in "(https|http|HTTPS|ftp)?:?[/\\\\]{0,3}[a-z0-9@:.]{0,6}(api|API)?[.@#?%/\\\\:;]{0,2}(paypal|evil)[.@]{0,2}(com|test)[a-z0-9@:.#?%/\\\\ \t-]{0,12}",
        ) {
            if let Some(url) = paypal().allows(&text) {
                let url = Url::parse(&url).unwrap();
                prop_assert!(["api.paypal.com", "api.sandbox.paypal.com"].contains(&url.host_str().unwrap()), "{text}");
                prop_assert_eq!((url.scheme(), url.port(), url.username(), url.query()), ("https", None, "", None));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            for rule in [paypal(), alexa(), SNS] {
                let _ = rule.allows(&text);
                let _ = rule.allows(&format!("https://{text}"));
            }
        }
    }
}
