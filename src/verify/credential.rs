//! Did the sender present the password or token that we expect? Proofs that can be guessed or stolen, and cover nothing.
//!
//! Invariant: every configured value is compared, in constant time, whether or not an earlier one matched; a header that
//! holds a credential stands there once.

use base64::Engine;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use super::key::BASE64;
use super::{BuildError, Fault};
use crate::delivery::Delivery;
use crate::refusal::Refusal;
use crate::secret::Secret;

#[derive(Clone, Debug)]
pub(crate) struct Basic {
    pub(crate) username: String,
    pub(crate) passwords: Vec<Secret>,
}

/// A header that holds nothing but the token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) header: HeaderName,
    pub(crate) secrets: Vec<Secret>,
}

#[derive(Debug, Default)]
pub(crate) struct Credentials {
    basic: Option<Vec<Login>>,
    bearer: Option<Vec<Secret>>,
    token: Option<Token>,
}

/// `username:password` in the encodings that senders use. Browsers' Latin-1 form survives in old HTTP clients.
#[derive(Debug)]
struct Login {
    utf8: Secret,
    latin1: Option<Secret>,
}

const fn missing(note: &'static str) -> Fault {
    Fault { refusal: Refusal::MissingCredentials, note }
}

const fn bad(note: &'static str) -> Fault {
    Fault { refusal: Refusal::BadCredentials, note }
}

impl Credentials {
    pub(crate) fn build(
        basic: Option<Basic>,
        bearer: Option<Vec<Secret>>,
        token: Option<Token>,
    ) -> Result<Self, BuildError> {
        let token_takes_authorization = token.as_ref().is_some_and(|token| token.header == AUTHORIZATION);
        let claims = [basic.is_some(), bearer.is_some(), token_takes_authorization];
        if claims.iter().filter(|claims| **claims).count() > 1 {
            return Err(BuildError::AuthorizationTwice);
        }
        if basic.as_ref().is_some_and(|basic| basic.username.contains(':')) {
            return Err(BuildError::ColonInUsername);
        }
        check("basic", basic.as_ref().map(|basic| basic.passwords.as_slice()))?;
        check("bearer", bearer.as_deref())?;
        check("token", token.as_ref().map(|token| token.secrets.as_slice()))?;
        let basic =
            basic.map(|basic| basic.passwords.iter().map(|password| Login::new(&basic.username, password)).collect());
        Ok(Self { basic, bearer, token })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        let basic = self.basic.as_ref().map(|_| "basic");
        let bearer = self.bearer.as_ref().map(|_| "bearer");
        let token = self.token.as_ref().map(|_| "token");
        [basic, bearer, token].into_iter().flatten()
    }

    /// All that are configured must pass. Says which of its secrets each matched, counted through all of them in the
    /// order basic, bearer, token.
    pub(crate) fn judge(&self, delivery: &Delivery) -> Result<[Option<usize>; 3], Fault> {
        let basic = self.basic.as_ref().map(|logins| {
            let presented = authorization(delivery, "basic")?;
            let decoded = BASE64.decode(presented).map_err(|_| bad("the Basic credentials are not base64"))?;
            first(logins.iter().map(|login| login.matches(&decoded)))
        });
        let bearer = self.bearer.as_ref().map(|secrets| {
            let presented = authorization(delivery, "bearer")?;
            first(secrets.iter().map(|secret| secret.matches(presented)))
        });
        let token = self.token.as_ref().map(|token| {
            let presented = only(delivery, &token.header)?.as_bytes();
            first(token.secrets.iter().map(|secret| secret.matches(presented)))
        });
        let (token, bearer, basic) = (token.transpose()?, bearer.transpose()?, basic.transpose()?);
        let before_bearer = self.basic.as_ref().map_or(0, Vec::len);
        let before_token = before_bearer + self.bearer.as_ref().map_or(0, Vec::len);
        Ok([basic, bearer.map(|position| before_bearer + position), token.map(|position| before_token + position)])
    }

    /// What a sender would add, with the first secret of each.
    pub(crate) fn headers(&self) -> Vec<(HeaderName, Option<HeaderValue>)> {
        let sensitive = |bytes: &[u8]| {
            let mut value = HeaderValue::from_bytes(bytes).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let basic = self.basic.iter().flatten().take(1).map(|login| {
            let encoded = base64::engine::general_purpose::STANDARD.encode(login.utf8.expose());
            (AUTHORIZATION, sensitive(format!("Basic {encoded}").as_bytes()))
        });
        let bearer = self
            .bearer
            .iter()
            .flatten()
            .take(1)
            .map(|secret| (AUTHORIZATION, sensitive(&[b"Bearer ", secret.expose()].concat())));
        let token = self
            .token
            .iter()
            .filter_map(|token| Some((token.header.clone(), sensitive(token.secrets.first()?.expose()))));
        basic.chain(bearer).chain(token).collect()
    }
}

impl Login {
    fn new(username: &str, password: &Secret) -> Self {
        let utf8 = Secret::new([username.as_bytes(), b":", password.expose()].concat());
        let latin1 = std::str::from_utf8(utf8.expose())
            .ok()
            .and_then(|text| text.chars().map(|character| u8::try_from(character).ok()).collect())
            .map(Secret::new);
        Self { utf8, latin1 }
    }

    fn matches(&self, presented: &[u8]) -> bool {
        let as_utf8 = self.utf8.matches(presented);
        let as_latin1 = self.latin1.as_ref().is_some_and(|latin1| latin1.matches(presented));
        as_utf8 | as_latin1
    }
}

fn check(credential: &'static str, secrets: Option<&[Secret]>) -> Result<(), BuildError> {
    match secrets {
        Some([]) => Err(BuildError::NoSecrets { credential }),
        Some(secrets) if secrets.iter().any(Secret::is_empty) => Err(BuildError::EmptySecret { credential }),
        Some(_) | None => Ok(()),
    }
}

/// The first that matched, after all were compared.
fn first(matches: impl Iterator<Item = bool>) -> Result<usize, Fault> {
    let matches: Vec<bool> = matches.collect();
    matches.iter().position(|matched| *matched).ok_or(bad("none of the configured secrets was presented"))
}

/// What stands behind the scheme's name in the one `Authorization` header.
fn authorization<'a>(delivery: &'a Delivery, scheme: &str) -> Result<&'a [u8], Fault> {
    let value = only(delivery, &AUTHORIZATION)?.as_bytes();
    let end_of_scheme = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (named, credentials) = value.split_at(end_of_scheme);
    if !named.eq_ignore_ascii_case(scheme.as_bytes()) {
        return Err(missing("the Authorization header is of another scheme"));
    }
    Ok(credentials.trim_ascii())
}

fn only<'a>(delivery: &'a Delivery, name: &HeaderName) -> Result<&'a HeaderValue, Fault> {
    let mut values = delivery.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Err(missing("the header of the credentials is missing")),
        (Some(value), None) => Ok(value),
        (Some(_), Some(_)) => Err(bad("the header of the credentials stands there twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, Method};

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    fn presented(name: &HeaderName, values: &[&[u8]]) -> Delivery {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let (method, body) = (Method::POST, Bytes::new());
        Delivery { method, scheme: "https", authority: "h".into(), path: "/".into(), query: None, headers, body }
    }

    fn basic(password: &str) -> Credentials {
        let passwords = vec![secret("new"), secret(password)];
        Credentials::build(Some(Basic { username: "hook".into(), passwords }), None, None).unwrap()
    }

    fn judged(credentials: &Credentials, values: &[&[u8]]) -> Result<Option<usize>, Refusal> {
        let judged = credentials.judge(&presented(&AUTHORIZATION, values)).map_err(|fault| fault.refusal);
        judged.map(|[basic, bearer, _]| basic.or(bearer))
    }

    fn encoded(login: &[u8]) -> Vec<u8> {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login)).into_bytes()
    }

    #[test]
    fn a_password_is_taken_in_utf8_and_in_latin1() {
        let credentials = basic("pässword");
        assert_eq!(judged(&credentials, &[&encoded("hook:pässword".as_bytes())]), Ok(Some(1)));
        assert_eq!(judged(&credentials, &[&encoded(b"hook:p\xe4ssword")]), Ok(Some(1)));
        assert_eq!(judged(&credentials, &[&encoded(b"hook:new")]), Ok(Some(0)));
        assert_eq!(judged(&credentials, &[&encoded(b"hook:password")]), Err(Refusal::BadCredentials));
        assert_eq!(judged(&credentials, &[&encoded(b"other:new")]), Err(Refusal::BadCredentials));
        assert_eq!(judged(&credentials, &[&encoded(b"hook:")]), Err(Refusal::BadCredentials));
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_the_header_stands_once() {
        let credentials = Credentials::build(None, Some(vec![secret("s3cret")]), None).unwrap();
        assert_eq!(judged(&credentials, &[b"Bearer s3cret"]), Ok(Some(0)));
        assert_eq!(judged(&credentials, &[b"bEARER   s3cret"]), Ok(Some(0)));
        assert_eq!(judged(&credentials, &[b"Bearer S3cret"]), Err(Refusal::BadCredentials));
        assert_eq!(judged(&credentials, &[b"Bearer"]), Err(Refusal::BadCredentials));
        assert_eq!(judged(&credentials, &[b"Bearer \xff"]), Err(Refusal::BadCredentials));
        assert_eq!(judged(&credentials, &[b"Bearers3cret"]), Err(Refusal::MissingCredentials));
        assert_eq!(judged(&credentials, &[b"s3cret"]), Err(Refusal::MissingCredentials));
        assert_eq!(judged(&credentials, &[]), Err(Refusal::MissingCredentials));
        assert_eq!(judged(&credentials, &[b"Bearer s3cret", b"Bearer s3cret"]), Err(Refusal::BadCredentials));
    }

    #[test]
    fn a_token_is_the_whole_header() {
        let header = HeaderName::from_static("x-gitlab-token");
        let secrets = vec![secret("a"), secret("b")];
        let credentials = Credentials::build(None, None, Some(Token { header: header.clone(), secrets })).unwrap();
        let judge = |value: &[u8]| credentials.judge(&presented(&header, &[value])).map_err(|fault| fault.refusal);
        assert_eq!(judge(b"b"), Ok([None, None, Some(1)]));
        assert_eq!(judge(b"ab"), Err(Refusal::BadCredentials));
        assert_eq!(judge(b""), Err(Refusal::BadCredentials));
    }

    #[test]
    fn what_would_fail_open_does_not_load() {
        let build = |basic: Option<Basic>, bearer, token| Credentials::build(basic, bearer, token).unwrap_err();
        let login = |username: &str| Some(Basic { username: username.into(), passwords: vec![secret("p")] });
        let token = |header| Some(Token { header, secrets: vec![secret("t")] });
        assert_eq!(build(None, Some(vec![]), None), BuildError::NoSecrets { credential: "bearer" });
        assert_eq!(build(None, Some(vec![secret("")]), None), BuildError::EmptySecret { credential: "bearer" });
        assert_eq!(build(login("a:b"), None, None), BuildError::ColonInUsername);
        assert_eq!(build(login("a"), Some(vec![secret("b")]), None), BuildError::AuthorizationTwice);
        assert_eq!(build(login("a"), None, token(AUTHORIZATION)), BuildError::AuthorizationTwice);
    }

    #[test]
    fn what_a_sender_would_add_is_accepted() {
        let token = Token { header: HeaderName::from_static("x-token"), secrets: vec![secret("t")] };
        let passwords = vec![secret("p")];
        let credentials =
            Credentials::build(Some(Basic { username: "u".into(), passwords }), None, Some(token)).unwrap();
        let mut delivery = presented(&AUTHORIZATION, &[]);
        for (name, value) in credentials.headers() {
            delivery.headers.insert(name, value.unwrap());
        }
        assert_eq!(credentials.judge(&delivery).unwrap(), [Some(0), None, Some(1)]);
        delivery.headers.remove("x-token");
        assert_eq!(credentials.judge(&delivery).unwrap_err().refusal, Refusal::MissingCredentials);
    }
}
