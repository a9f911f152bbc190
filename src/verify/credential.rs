//! Did the sender present the password or token that we expect? Proofs that can be guessed or stolen, and cover nothing.
//!
//! Invariant: every configured value is compared, in constant time, whether or not an earlier one matched; a header that
//! holds a credential stands there once.

use std::borrow::Cow;

use base64::Engine;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use super::fields::{self, Found, Json};
use super::key::BASE64;
use super::{BuildError, Fault};
use crate::delivery::Delivery;
use crate::refusal::Refusal;
use crate::secret::Secret;

/// Any of these will do.
#[derive(Clone, Debug)]
pub(crate) struct Basic {
    pub(crate) logins: Vec<(String, Secret)>,
}

/// A header, field or JSON string that holds nothing but the token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) place: TokenPlace,
    pub(crate) secrets: Vec<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenPlace {
    Header(HeaderName),
    Query(String),
    Form(String),
    Json(String),
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
        let token_takes_authorization =
            token.as_ref().is_some_and(|token| token.place == TokenPlace::Header(AUTHORIZATION));
        let claims = [basic.is_some(), bearer.is_some(), token_takes_authorization];
        if claims.iter().filter(|claims| **claims).count() > 1 {
            return Err(BuildError::AuthorizationTwice);
        }
        if basic.iter().flat_map(|basic| &basic.logins).any(|(username, _)| username.contains(':')) {
            return Err(BuildError::ColonInUsername);
        }
        check("basic", basic.as_ref().map(|basic| basic.logins.iter().map(|(_, password)| password).collect()))?;
        check("bearer", bearer.as_ref().map(|secrets| secrets.iter().collect()))?;
        check("token", token.as_ref().map(|token| token.secrets.iter().collect()))?;
        let login = |(username, password): &(String, Secret)| Login::new(username, password);
        let basic = basic.map(|basic| basic.logins.iter().map(login).collect());
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

    /// The header that holds nothing but the token. What stands in `Authorization` is known to be a credential anyhow.
    pub(crate) fn header(&self) -> Option<&HeaderName> {
        match &self.token.as_ref()?.place {
            TokenPlace::Header(name) => Some(name),
            TokenPlace::Query(_) | TokenPlace::Form(_) | TokenPlace::Json(_) => None,
        }
    }

    /// Where in a body the token is.
    pub(crate) fn pointer(&self) -> Option<&str> {
        match &self.token.as_ref()?.place {
            TokenPlace::Json(pointer) => Some(pointer),
            TokenPlace::Header(_) | TokenPlace::Query(_) | TokenPlace::Form(_) => None,
        }
    }

    /// A token that stands in no header, for a sender to put there.
    pub(crate) fn token_elsewhere(&self) -> Option<(&TokenPlace, &Secret)> {
        let token = self.token.as_ref()?;
        let secret = token.secrets.first()?;
        (!matches!(token.place, TokenPlace::Header(_))).then_some((&token.place, secret))
    }

    /// All that are configured must pass. Says which of its secrets each matched, counted through all of them in the
    /// order basic, bearer, token.
    pub(crate) fn judge(&self, delivery: &Delivery, json: &Json) -> Result<[Option<usize>; 3], Fault> {
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
            let presented = token.place.find(delivery, json)?;
            first(token.secrets.iter().map(|secret| secret.matches(&presented)))
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
        let token = self.token.iter().filter_map(|token| match &token.place {
            TokenPlace::Header(header) => Some((header.clone(), sensitive(token.secrets.first()?.expose()))),
            TokenPlace::Query(_) | TokenPlace::Form(_) | TokenPlace::Json(_) => None,
        });
        basic.chain(bearer).chain(token).collect()
    }
}

impl TokenPlace {
    fn find<'a>(&self, delivery: &'a Delivery, json: &'a Json) -> Result<Cow<'a, [u8]>, Fault> {
        let found = match self {
            Self::Header(name) => Found::Value(only(delivery, name)?.as_bytes().into()),
            Self::Query(name) => fields::field(delivery.query.as_deref().unwrap_or_default().as_bytes(), name),
            Self::Form(name) => fields::field(&delivery.body, name),
            Self::Json(pointer) => json.at(pointer),
        };
        match found {
            Found::Value(text) if text.is_empty() => Err(missing("the token is empty")),
            Found::Value(text) => Ok(text),
            Found::Absent => Err(missing("the token is missing")),
            Found::Ambiguous => Err(bad("the token is there twice, or is no text")),
        }
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

fn check(credential: &'static str, secrets: Option<Vec<&Secret>>) -> Result<(), BuildError> {
    match secrets.as_deref() {
        Some([]) => Err(BuildError::NoSecrets { credential }),
        Some(secrets) if secrets.iter().any(|secret| secret.is_empty()) => Err(BuildError::EmptySecret { credential }),
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
    let mut values = delivery.headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Err(missing("the header of the credentials is missing")),
        (Some(value), None) => Ok(value),
        (Some(_), Some(_)) => Err(bad("the header of the credentials stands there twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::Method;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    fn presented(name: &HeaderName, values: &[&[u8]]) -> Delivery {
        let mut headers = Fields::new();
        for value in values {
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let (method, body) = (Method::POST, Bytes::new());
        Delivery { method, scheme: "https", authority: "h".into(), path: "/".into(), query: None, headers, body }
    }

    fn basic(password: &str) -> Credentials {
        let logins = [secret("new"), secret(password)].map(|password| ("hook".to_owned(), password)).to_vec();
        Credentials::build(Some(Basic { logins }), None, None).unwrap()
    }

    fn judged(credentials: &Credentials, values: &[&[u8]]) -> Result<Option<usize>, Refusal> {
        let judged =
            credentials.judge(&presented(&AUTHORIZATION, values), &Json::default()).map_err(|fault| fault.refusal);
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
        let credentials =
            Credentials::build(None, None, Some(Token { place: TokenPlace::Header(header.clone()), secrets })).unwrap();
        let judge = |value: &[u8]| {
            credentials.judge(&presented(&header, &[value]), &Json::default()).map_err(|fault| fault.refusal)
        };
        assert_eq!(judge(b"b"), Ok([None, None, Some(1)]));
        assert_eq!(judge(b"ab"), Err(Refusal::BadCredentials));
        assert_eq!(judge(b""), Err(Refusal::MissingCredentials));
    }

    #[test]
    fn a_token_may_stand_in_the_body_or_the_query() {
        let at = |place: TokenPlace| {
            Credentials::build(None, None, Some(Token { place, secrets: vec![secret("a b")] })).unwrap()
        };
        let judge = |credentials: &Credentials, query: &str, body: &str| {
            let mut pointers = crate::verify::fields::Pointers::default();
            credentials.pointer().map(|pointer| pointers.add(pointer));
            let mut delivery = presented(&AUTHORIZATION, &[]);
            delivery.query = Some(query.to_owned());
            delivery.body = Bytes::from(body.to_owned());
            let json = pointers.read(body.as_bytes());
            credentials.judge(&delivery, &json).map(|[_, _, token]| token).map_err(|fault| fault.refusal)
        };
        let query = at(TokenPlace::Query("t".into()));
        assert_eq!(judge(&query, "t=a+b", ""), Ok(Some(0)));
        assert_eq!(judge(&query, "t=a+b&t=a+b", ""), Err(Refusal::BadCredentials));
        assert_eq!(judge(&query, "", ""), Err(Refusal::MissingCredentials));
        let form = at(TokenPlace::Form("t".into()));
        assert_eq!(judge(&form, "", "x=1&t=a%20b"), Ok(Some(0)));
        assert_eq!(judge(&form, "", "x=1&t=a"), Err(Refusal::BadCredentials));
        let json = at(TokenPlace::Json("/t".into()));
        assert_eq!(judge(&json, "", r#"{"t":"a b"}"#), Ok(Some(0)));
        assert_eq!(judge(&json, "", r#"{"t":["a b"]}"#), Err(Refusal::BadCredentials));
        assert_eq!(judge(&json, "", r#"{"t":null}"#), Err(Refusal::MissingCredentials));
        assert_eq!(judge(&json, "", r#"{"t":"a b","t":"a b"}"#), Err(Refusal::BadCredentials));
        assert_eq!(judge(&json, "", "t"), Err(Refusal::BadCredentials));
    }

    #[test]
    fn what_would_fail_open_does_not_load() {
        let build = |basic: Option<Basic>, bearer, token| Credentials::build(basic, bearer, token).unwrap_err();
        let login = |username: &str| Some(Basic { logins: vec![(username.into(), secret("p"))] });
        let token = |header| Some(Token { place: TokenPlace::Header(header), secrets: vec![secret("t")] });
        assert_eq!(build(None, Some(vec![]), None), BuildError::NoSecrets { credential: "bearer" });
        assert_eq!(build(None, Some(vec![secret("")]), None), BuildError::EmptySecret { credential: "bearer" });
        assert_eq!(build(login("a:b"), None, None), BuildError::ColonInUsername);
        assert_eq!(build(login("a"), Some(vec![secret("b")]), None), BuildError::AuthorizationTwice);
        assert_eq!(build(login("a"), None, token(AUTHORIZATION)), BuildError::AuthorizationTwice);
    }

    #[test]
    fn what_a_sender_would_add_is_accepted() {
        let place = TokenPlace::Header(HeaderName::from_static("x-token"));
        let token = Token { place, secrets: vec![secret("t")] };
        let logins = vec![("u".to_owned(), secret("p"))];
        let credentials = Credentials::build(Some(Basic { logins }), None, Some(token)).unwrap();
        let mut delivery = presented(&AUTHORIZATION, &[]);
        for (name, value) in credentials.headers() {
            delivery.headers.insert(name, value.unwrap());
        }
        assert_eq!(credentials.judge(&delivery, &Json::default()).unwrap(), [Some(0), None, Some(1)]);
        delivery.headers.remove("x-token");
        assert_eq!(credentials.judge(&delivery, &Json::default()).unwrap_err().refusal, Refusal::MissingCredentials);
    }
}
