//! The inverse: the token that the sender would put into a request.
//!
//! Invariant: digests and payloads are made by the very code that judges them, so that the two cannot drift apart.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::super::public_key::{SignatureAlgorithm, private};
use super::super::sign::{Draft, SignError, Signing};
use super::super::{Unit, template};
use super::algorithm::JwsAlgorithm;
use super::compact::{Object, object};
use super::detached::{TrueLayer, VERSION, input};
use super::{Claims, Jwt, KeyId, Payload, TokenAt};

/// How long a token is good that says when it ends.
const LIFETIME_SECONDS: u64 = 300;

impl Jwt {
    pub(super) fn put_token(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        let algorithm = *self.algorithms.first().ok_or(SignError::Incomplete)?;
        let shared = self.keys.signer(algorithm);
        let key_id = match shared {
            Some((id, _)) => id,
            None => self.own_key(algorithm, signing)?,
        };
        let mut header = Object::new();
        header.insert("alg".into(), algorithm.name().into());
        if let (Some(id), KeyId::Header) = (key_id, &self.key_id) {
            header.insert("kid".into(), id.into());
        }
        let make = |message: &[u8]| match shared {
            Some((_, keyed)) => Ok(URL_SAFE_NO_PAD.encode(keyed.mac(&[Cow::Borrowed(message)]).as_slice())),
            None => sign_with_private(algorithm, message, signing).map(|made| URL_SAFE_NO_PAD.encode(made)),
        };
        let token = match &self.payload {
            Payload::Claims(claims) => {
                header.insert("typ".into(), "JWT".into());
                let payload = self.claims(claims, key_id, draft, signing)?;
                let signed = format!("{}.{}", encoded(header), encoded(payload));
                let signature = make(signed.as_bytes())?;
                format!("{signed}.{signature}")
            }
            Payload::Body => {
                let header_text = encoded(header);
                let signature = make(&input(&header_text, &[&draft.delivery.body]))?;
                format!("{header_text}..{signature}")
            }
            Payload::TrueLayer(form) => {
                let names = form.add_headers(draft, signing)?;
                let url = form.key_urls.first().ok_or(SignError::Incomplete)?;
                for (name, text) in [("tl_version", VERSION), ("tl_headers", &names), ("jku", url)] {
                    header.insert(name.into(), text.into());
                }
                let header_text = encoded(header);
                let delivery = &draft.delivery;
                let line = format!("{} {}\n", delivery.method.as_str().to_ascii_uppercase(), delivery.path);
                let headers = form.headers(&names, delivery).map_err(|_| SignError::Incomplete)?;
                let signature = make(&input(&header_text, &[line.as_bytes(), headers.as_bytes(), &delivery.body]))?;
                format!("{header_text}..{signature}")
            }
        };
        self.put(draft, token)
    }

    fn put(&self, draft: &mut Draft, token: String) -> Result<(), SignError> {
        match self.places.first().ok_or(SignError::Incomplete)? {
            TokenAt::Header { name, scheme: None } => draft.add(name, &token),
            TokenAt::Header { name, scheme: Some(scheme) } => draft.add(name, &format!("{} {token}", scheme.word)),
            TokenAt::Query(name) => {
                let query = draft.delivery.query.take().filter(|query| !query.is_empty());
                draft.delivery.query = Some(match query {
                    Some(query) => format!("{query}&{name}={token}"),
                    None => format!("{name}={token}"),
                });
                Ok(())
            }
            TokenAt::Body => {
                draft.delivery.body = token.into_bytes().into();
                Ok(())
            }
            TokenAt::Each(pointer) | TokenAt::Json(pointer) => {
                let mut body = object(&draft.delivery.body).ok_or(SignError::Incomplete)?;
                let name = pointer.strip_prefix('/').filter(|name| !name.contains(['/', '~']));
                let one_or_list = match self.places.first() {
                    Some(TokenAt::Each(_)) => json!([token]),
                    _ => token.into(),
                };
                body.insert(name.ok_or(SignError::Incomplete)?.to_owned(), one_or_list);
                draft.delivery.body = Value::Object(body).to_string().into_bytes().into();
                Ok(())
            }
        }
    }

    /// The id of the configured key that the private one belongs to; none where keys are fetched.
    fn own_key(&self, algorithm: JwsAlgorithm, signing: &Signing<'_>) -> Result<Option<&str>, SignError> {
        const PROBE: &[u8] = b"which key is this?";
        let signature = sign_with_private(algorithm, PROBE, signing)?;
        match self.keys.owner(algorithm, PROBE, &signature) {
            Some(id) => Ok(id),
            None if self.keys.is_empty() => Ok(None),
            None => Err(SignError::OtherPrivateKey),
        }
    }

    fn claims(
        &self,
        wanted: &Claims,
        key_id: Option<&str>,
        draft: &Draft,
        signing: &Signing<'_>,
    ) -> Result<Object, SignError> {
        let rules = &wanted.rules;
        let (delivery, seconds) = (&draft.delivery, signing.now.as_secs());
        // Where the body is the token, what the sender has to say is in its claims.
        let mut claims = match object(&delivery.body) {
            Some(said) if self.is_body() => said,
            _ => Object::new(),
        };
        claims.insert("iat".into(), seconds.into());
        claims.insert("jti".into(), signing.id.into());
        if rules.require_exp {
            claims.insert("exp".into(), (seconds + LIFETIME_SECONDS).into());
        }
        for (name, texts) in [("iss", &rules.issuer), ("aud", &rules.audience), ("sub", &rules.subject)] {
            if let Some(first) = texts.first() {
                claims.insert(name.into(), first.as_str().into());
            }
        }
        for (name, value) in rules.claims.iter().chain(rules.claims_any.first()) {
            put_claim(&mut claims, name, value.clone())?;
        }
        if let (KeyId::Claim(name), Some(id)) = (&self.key_id, key_id) {
            put_claim(&mut claims, name, id.into())?;
        }
        if let Some(name) = &wanted.single_use {
            put_claim(&mut claims, name, signing.id.into())?;
        }
        for name in &rules.require {
            if super::claim(&claims, name).is_none() {
                let value = if name == "nbf" || name == "exp" { seconds.into() } else { Value::from(signing.id) };
                put_claim(&mut claims, name, value)?;
            }
        }
        if let Some(hash) = &wanted.body_hash
            && let Some(stated) = hash.state(&delivery.body)
        {
            put_claim(&mut claims, &hash.claim, stated.into())?;
        }
        if let Some(hash) = &wanted.url_hash
            && let Some(stated) = hash.state(template::url(delivery, signing.public_url).as_bytes())
        {
            put_claim(&mut claims, &hash.claim, stated.into())?;
        }
        if let Some(hash) = &wanted.query_hash {
            let stated = hash.state(delivery, self.token_parameter()).ok_or(SignError::Incomplete)?;
            put_claim(&mut claims, &hash.claim, stated.into())?;
        }
        Ok(claims)
    }
}

impl TrueLayer {
    /// Adds the headers that have to be signed and are not there; the names of those that are to be signed.
    fn add_headers(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<String, SignError> {
        for name in &self.required_headers {
            if !draft.delivery.headers.contains_key(name) {
                let of_time = self.timestamp.as_ref().filter(|(timed, ..)| timed == name);
                let unit = of_time.map_or(Unit::Rfc3339, |(_, unit, _)| *unit);
                let text = unit.format(signing.now).ok_or(SignError::UnspeakableTime)?;
                draft.add(name, &text)?;
            }
        }
        let names: Vec<_> = self.required_headers.iter().map(http::HeaderName::as_str).collect();
        Ok(names.join(","))
    }
}

fn sign_with_private(algorithm: JwsAlgorithm, message: &[u8], signing: &Signing<'_>) -> Result<Vec<u8>, SignError> {
    let private_key = signing.private.ok_or(SignError::NeedsPrivateKey)?;
    let algorithm = SignatureAlgorithm::of_jose(algorithm.name()).ok_or(SignError::CannotMake)?;
    private::sign(private_key, algorithm, message)
}

fn encoded(object: Object) -> String {
    URL_SAFE_NO_PAD.encode(Value::Object(object).to_string())
}

/// As `claim` finds it.
fn put_claim(claims: &mut Object, name: &str, value: Value) -> Result<(), SignError> {
    let Some(path) = name.strip_prefix('/') else {
        claims.insert(name.to_owned(), value);
        return Ok(());
    };
    let mut at = claims;
    let mut path = path.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).peekable();
    while let Some(token) = path.next() {
        if path.peek().is_none() {
            at.insert(token, value);
            return Ok(());
        }
        at = at.entry(token).or_insert_with(|| json!({})).as_object_mut().ok_or(SignError::Incomplete)?;
    }
    Err(SignError::Incomplete)
}
