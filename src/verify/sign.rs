//! The inverse of verification: what the sender would add to headers, query and body. For `sign`, `send`, `demo` and the tests.
//!
//! Invariant: the message is rendered by the very template that verifies it, so that the two cannot drift apart.

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use thiserror::Error;

use super::Verifier;
use super::credential::TokenPlace;
use super::document::Part;
use super::fields::{self, Found, Json, Pointers};
use super::key_choice::Stated;
use super::presented::{Layout, Locator, Place, Presented, TimestampPlace, query};
use super::proof::Proof;
use super::prover::{Keys, Prover};
use super::public_key::private;
use super::scheme::Scheme;
use super::template::{Facts, UrlForm};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::secret::Secret;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum SignError {
    #[error("no place for the signature is configured")]
    NotInAHeader,
    #[error("this scheme writes into the JSON of the body, and there is none (or no items in it); give a JSON body")]
    NotJson,
    #[error("a public key cannot sign; give the private key (--private-key FILE)")]
    NeedsPrivateKey,
    #[error(
        "the private key is neither a PEM of the configured kind (PKCS#8, SEC 1, PKCS#1) nor 32 bytes of Ed25519 (hex or base64)"
    )]
    BadPrivateKey,
    #[error("signatures of this algorithm are verified and never made here; sign with another tool")]
    CannotMake,
    #[error("the private key belongs to none of the configured public keys")]
    OtherPrivateKey,
    #[error("the sender signs a header, field or query parameter that the request lacks; add it")]
    Incomplete,
    #[error("the body lacks the timestamp, which this scheme puts there")]
    NoTimestampInBody,
    #[error("the time is beyond what the timestamp's form can say")]
    UnspeakableTime,
    #[error("only the platform can sign this: its certificate is checked")]
    OnlyThePlatform,
    #[error("the id or a secret cannot stand in a header")]
    NotAHeaderValue,
    #[error("the secret is awaited from the sender; nothing can be signed before it is here")]
    NoKeyYet,
}

/// A delivery on its way to being signed, and what was added to it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) delivery: Delivery,
    /// The headers that were added, in order. They replaced those of the same names.
    pub(crate) added: Vec<(HeaderName, HeaderValue)>,
}

/// What a sender signs with.
pub(crate) struct Signing<'a> {
    /// For a header that wants an id and has none.
    pub(crate) id: &'a str,
    pub(crate) now: UnixMillis,
    /// For public-key schemes alone.
    pub(crate) private: Option<&'a Secret>,
    /// The URL the provider was told, where it is configured.
    pub(crate) public_url: Option<&'a str>,
}

impl Draft {
    pub(crate) fn new(delivery: Delivery) -> Self {
        Self { delivery, added: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &HeaderName, text: &str) -> Result<(), SignError> {
        let value = HeaderValue::from_str(text).map_err(|_| SignError::NotAHeaderValue)?;
        self.add_value(name, value);
        Ok(())
    }

    fn add_value(&mut self, name: &HeaderName, value: HeaderValue) {
        self.delivery.headers.insert(name, value.clone());
        self.added.push((name.clone(), value));
    }
}

impl Verifier {
    /// `draft` has everything but the proof.
    pub(crate) fn sign(
        &self,
        draft: Delivery,
        id: &str,
        now: UnixMillis,
        private: Option<&Secret>,
    ) -> Result<Draft, SignError> {
        let mut draft = Draft::new(draft);
        if let Some(wanted) = self.missing_id_header(&draft.delivery) {
            draft.add(&wanted, id)?;
        }
        let signing = Signing { id, now, private, public_url: self.public_url.as_deref() };
        for proof in &self.proofs {
            proof.sign(&mut draft, &signing)?;
        }
        if let Some((place, secret)) = self.credentials.token_elsewhere() {
            draft.add_token(place, secret)?;
        }
        for (name, value) in self.credentials.headers() {
            draft.add_value(&name, value.ok_or(SignError::NotAHeaderValue)?);
        }
        Ok(draft)
    }

    fn missing_id_header(&self, draft: &Delivery) -> Option<HeaderName> {
        let mut names = self.id.iter().filter_map(|locator| match locator {
            Locator::Header(name) => Some(name),
            Locator::Json(_)
            | Locator::Query(_)
            | Locator::Form(_)
            | Locator::FormJson { .. }
            | Locator::Claim { .. } => None,
        });
        let first = names.next()?;
        let is_there = draft.headers.contains_key(first) || names.any(|name| draft.headers.contains_key(name));
        (!is_there).then(|| first.clone())
    }
}

impl Prover {
    pub(super) fn put_signature(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        let scheme = &self.scheme;
        draft.prepare(scheme, signing)?;
        let Some(for_each) = &scheme.more.for_each else {
            let mut pointers = Pointers::default();
            let added = self.pointers().iter().try_for_each(|pointer| pointers.add(pointer));
            added.map_err(|_| SignError::Incomplete)?;
            let json = scheme.more.document.read(&draft.delivery, &pointers);
            let made = self.make(draft, &json, signing)?;
            return draft.place(scheme, made);
        };
        let mut body: Value = serde_json::from_slice(&draft.delivery.body).map_err(|_| SignError::NotJson)?;
        let items = body.pointer_mut(for_each).and_then(Value::as_array_mut).ok_or(SignError::NotJson)?;
        for item in items {
            let json = self.item_pointers.read(item.to_string().as_bytes());
            let made = self.make(draft, &json, signing)?;
            let Place::Json(pointer) = &scheme.signature.place else { return Err(SignError::NotInAHeader) };
            *at(item, pointer)? = Value::String(made.laid_out);
        }
        draft.delivery.body = body.to_string().into();
        Ok(())
    }

    /// The signature as the sender lays it out, and what goes with it.
    fn make(&self, draft: &Draft, json: &Json, signing: &Signing<'_>) -> Result<Made, SignError> {
        let scheme = &self.scheme;
        let mut stamp = None;
        if let Some(timestamp) = &scheme.timestamp {
            stamp = Some(match &timestamp.place {
                TimestampPlace::Json(_) => timestamp
                    .place
                    .find(&draft.delivery, &Presented::default(), json)
                    .map_err(|_| SignError::NoTimestampInBody)?
                    .into_owned(),
                TimestampPlace::Header(_) | TimestampPlace::Pair(_) | TimestampPlace::Position => {
                    timestamp.unit.format(signing.now).ok_or(SignError::UnspeakableTime)?
                }
            });
        }
        let stamp = stamp.as_deref();
        let template = scheme.message_of(&draft.delivery);
        let named = named_headers(&draft.delivery);
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        if let Some(TimestampPlace::Pair(name)) = scheme.timestamp.as_ref().map(|timestamp| &timestamp.place) {
            pairs.push((name, stamp.unwrap_or_default()));
        }
        for name in template.pairs() {
            let of_headers = template.header_pairs().any(|pair| pair == name);
            if !pairs.iter().any(|(there, _)| *there == name) {
                pairs.push((name, if of_headers { named.as_str() } else { signing.id }));
            }
        }
        let facts = Facts {
            delivery: &draft.delivery,
            public_url: signing.public_url,
            timestamp: stamp,
            pairs: &pairs,
            json,
            body: None,
            url_form: UrlForm::AsIs,
        };
        let message = template.render(&facts);
        if !message.complete {
            return Err(SignError::Incomplete);
        }
        let mut key_id = None;
        let signature = match &self.keys {
            Keys::Hmac(secrets) => {
                secrets.first().expect("a prover has at least one key").mac(&message.pieces).to_vec()
            }
            Keys::Hashed(secrets) => secrets.first().expect("a prover has at least one key").digest(&message).to_vec(),
            Keys::Public(algorithm, keys) => {
                let derived = keys.iter().find_map(|listed| listed.seed.as_ref());
                let private = signing.private.or(derived).ok_or(SignError::NeedsPrivateKey)?;
                let message = message.whole();
                let signature = private::sign(private, *algorithm, &message)?;
                let own = keys.iter().find(|listed| listed.key.verify(*algorithm, &message, &signature));
                key_id = own.ok_or(SignError::OtherPrivateKey)?.id.as_deref().map(str::to_owned);
                signature
            }
        };
        let encoded = scheme.signature.encoding.encode(&signature);
        let laid_out = match &scheme.signature.layout {
            Layout::Plain { prefix } | Layout::List { prefix, .. } => format!("{prefix}{encoded}"),
            Layout::Pairs { separator, equals, key, groups: _ } => {
                let beside: String =
                    pairs.iter().map(|(name, value)| format!("{name}{equals}{value}{separator}")).collect();
                format!("{beside}{key}{equals}{encoded}")
            }
            Layout::Entries { equals, names, .. } => {
                format!("{}{equals}{encoded}", names.first().ok_or(SignError::NotInAHeader)?)
            }
            Layout::Positional { separator, timestamp_index } => {
                let stamp = stamp.unwrap_or_default();
                match timestamp_index {
                    0 => format!("{stamp}{separator}{encoded}"),
                    _ => format!("{encoded}{separator}{stamp}"),
                }
            }
        };
        Ok(Made { laid_out, key_id })
    }
}

struct Made {
    laid_out: String,
    /// Of the configured key that belongs to the private one.
    key_id: Option<String>,
}

impl Draft {
    /// Everything but the signature: what the scheme wants beside it, and the draft lacks.
    fn prepare(&mut self, scheme: &Scheme, signing: &Signing<'_>) -> Result<(), SignError> {
        if let Some(timestamp) = &scheme.timestamp {
            let text = timestamp.unit.format(signing.now).ok_or(SignError::UnspeakableTime)?;
            match &timestamp.place {
                TimestampPlace::Header(name) => self.add(name, &text)?,
                TimestampPlace::Json(pointer) => self.set_json(scheme, pointer, &text, false)?,
                TimestampPlace::Pair(_) | TimestampPlace::Position => {}
            }
        }
        if scheme.more.for_each.is_none() {
            for pointer in scheme.message_of(&self.delivery).needed_json() {
                self.set_json(scheme, pointer, signing.id, false)?;
            }
        }
        let signed: &[HeaderName] = match &scheme.signature.place {
            Place::Header(names) | Place::EveryHeader(names) | Place::HeaderJson { names, .. } => names,
            Place::Query(_) | Place::Form(_) | Place::Json(_) => &[],
        };
        for (name, value) in &scheme.more.fixed_headers {
            self.add(name, value)?;
        }
        let needed = scheme.message_of(&self.delivery).needed_headers().chain(&scheme.required_headers);
        for wanted in needed {
            if !self.delivery.headers.contains_key(wanted) && !signed.contains(wanted) {
                self.add(wanted, signing.id)?;
            }
        }
        for field in scheme.message_of(&self.delivery).needed_forms() {
            if fields::field(&self.delivery.body, field) == Found::Absent {
                let value = String::from_utf8_lossy(&self.delivery.body).into_owned();
                self.delivery.body = format!("{field}={}", form_encoded(&value)).into();
                self.add(&CONTENT_TYPE, "application/x-www-form-urlencoded")?;
            }
        }
        for name in scheme.message_of(&self.delivery).needed_queries() {
            if fields::field(query(&self.delivery), name) == Found::Absent {
                self.add_query(name, signing.id);
            }
        }
        if let Some(hash) = &scheme.more.body_hash {
            let encoded = hash.encoding.encode(&hash.of(&self.delivery.body));
            self.add_query(&hash.query, &encoded);
        }
        for (list, needed) in scheme.message_of(&self.delivery).header_lists() {
            let mut names: Vec<String> = self.delivery.headers.keys().map(ToString::to_string).collect();
            names.extend(needed.iter().chain([list]).map(ToString::to_string));
            names.sort();
            names.dedup();
            self.add(list, &names.join(","))?;
        }
        Ok(())
    }

    fn place(&mut self, scheme: &Scheme, made: Made) -> Result<(), SignError> {
        if let (Some(Stated::At(Locator::Header(header))), Some(id)) = (&scheme.key_choice.id, &made.key_id)
            && !self.delivery.headers.contains_key(header)
        {
            self.add(header, id)?;
        }
        match &scheme.signature.place {
            Place::Header(names) | Place::EveryHeader(names) => {
                self.add(names.first().ok_or(SignError::NotInAHeader)?, &made.laid_out)
            }
            Place::Query(name) => {
                self.add_query(name, &made.laid_out);
                Ok(())
            }
            Place::Form(name) => self.add_form(name, &made.laid_out),
            Place::Json(pointer) => self.set_json(scheme, pointer, &made.laid_out, true),
            Place::HeaderJson { .. } => Err(SignError::NotInAHeader),
        }
    }

    /// In place of one of the same name.
    fn add_query(&mut self, name: &str, value: &str) {
        let kept = self.delivery.query.iter().flat_map(|query| query.split('&'));
        let kept = kept.filter(|part| !part.is_empty() && part.split('=').next() != Some(name)).map(str::to_owned);
        let parts: Vec<_> = kept.chain([format!("{name}={}", form_encoded(value))]).collect();
        self.delivery.query = Some(parts.join("&"));
    }

    fn add_form(&mut self, name: &str, value: &str) -> Result<(), SignError> {
        let body = String::from_utf8_lossy(&self.delivery.body).into_owned();
        let kept = body.split('&').filter(|part| !part.is_empty() && part.split('=').next() != Some(name));
        let parts: Vec<_> = kept.map(str::to_owned).chain([format!("{name}={}", form_encoded(value))]).collect();
        self.delivery.body = parts.join("&").into();
        self.add(&CONTENT_TYPE, "application/x-www-form-urlencoded")
    }

    /// Writes into the document of the body; what is there stays, unless it is to be replaced.
    fn set_json(&mut self, scheme: &Scheme, pointer: &str, text: &str, replace: bool) -> Result<(), SignError> {
        let document = &scheme.more.document;
        if let (Part::Multipart(name), None) = (&document.part, document.text(&self.delivery)) {
            // A boundary that no JSON holds: it would have to be in a string, and there it has no dash before it.
            let boundary = "hookward-7d9f2c";
            let mut body =
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").into_bytes();
            body.extend_from_slice(&self.delivery.body);
            body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
            self.delivery.body = body.into();
            self.add(&CONTENT_TYPE, &format!("multipart/form-data; boundary={boundary}"))?;
        }
        let before = document.text(&self.delivery).ok_or(SignError::NotJson)?.into_owned();
        let mut json: Value = serde_json::from_slice(&before).map_err(|_| SignError::NotJson)?;
        let place = at(&mut json, pointer)?;
        if !place.is_null() && !replace {
            return Ok(());
        }
        let is_count = text.bytes().all(|byte| byte.is_ascii_digit()) && !replace;
        *place =
            text.parse::<u64>().ok().filter(|_| is_count).map_or_else(|| Value::String(text.to_owned()), Value::from);
        let after = json.to_string().into_bytes();
        self.delivery.body = match &document.part {
            Part::Body => after.into(),
            Part::Multipart(_) => {
                let body = &self.delivery.body;
                let start = body.windows(before.len()).position(|window| window == before).ok_or(SignError::NotJson)?;
                let (head, rest) = body.split_at(start);
                [head, &after, rest.get(before.len()..).unwrap_or_default()].concat().into()
            }
            Part::Form(name) => {
                let text = String::from_utf8_lossy(&after).into_owned();
                return self.add_form(name, &text);
            }
        };
        Ok(())
    }

    /// Puts a token where its sender puts it, when that is no header.
    fn add_token(&mut self, place: &TokenPlace, secret: &Secret) -> Result<(), SignError> {
        let text = std::str::from_utf8(secret.expose()).map_err(|_| SignError::NotAHeaderValue)?;
        match place {
            TokenPlace::Header(_) => {}
            TokenPlace::Query(name) => self.add_query(name, text),
            TokenPlace::Form(name) => self.add_form(name, text)?,
            TokenPlace::Json(pointer) => {
                let mut json: Value = serde_json::from_slice(&self.delivery.body).map_err(|_| SignError::NotJson)?;
                *at(&mut json, pointer)? = Value::String(text.to_owned());
                self.delivery.body = json.to_string().into();
            }
        }
        Ok(())
    }
}

/// The value at a pointer, and the objects on the way to it where they are missing.
fn at<'j>(json: &'j mut Value, pointer: &str) -> Result<&'j mut Value, SignError> {
    let mut place = json;
    for token in pointer.split('/').skip(1) {
        let key = token.replace("~1", "/").replace("~0", "~");
        if place.is_null() {
            *place = Value::Object(serde_json::Map::new());
        }
        place = match place {
            Value::Object(map) => map.entry(key).or_insert(Value::Null),
            Value::Array(items) => {
                key.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or(SignError::NotJson)?
            }
            _ => return Err(SignError::NotJson),
        };
    }
    Ok(place)
}

/// The sender's own headers, as Hook0 names them; one whose name has a dot cannot be signed.
fn named_headers(delivery: &Delivery) -> String {
    let own = |name: &&str| name.starts_with("x-") && !name.contains('.') && !name.ends_with("signature");
    let mut names: Vec<&str> = delivery.headers.keys().map(HeaderName::as_str).filter(own).collect();
    names.sort_unstable();
    names.join(" ")
}

fn form_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
