//! The drafts before RFC 9421 (draft-cavage-http-signatures), as ActivityPub, Keygen and others still send them.
//!
//! Invariant: a parameter, a header name or a digest that stands there twice is refused; the label of an algorithm never
//! chooses one. The drafts' default for `headers` changed (`date`, then `(created)`); whichever a message means, what the
//! source requires has to be covered.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use http::header::{AUTHORIZATION, DATE, HOST};

use super::component::{self, Target};
use super::keyring::{self, MessageAlgorithm};
use super::{Accepted, Flaw, HttpSignature, digest, judge_both, replay_key};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::verify::freshness::Unit;
use crate::verify::key::BASE64;
use crate::verify::presented::{HeaderText, header_text};
use crate::verify::proof::Question;
use crate::verify::sign::{Draft, SignError, Signing};

const DIGEST: HeaderName = HeaderName::from_static("digest");
const TARGET: &str = "(request-target)";
const CREATED: &str = "(created)";
const EXPIRES: &str = "(expires)";
/// The algorithm is the key's own, says the message.
const LOOK_AT_THE_KEY: &str = "hs2019";
/// A signature of the longest key, and as many header names as anybody signs.
const MAX_TEXT: usize = 8 * 1024;
const MAX_PARAMETERS: usize = 16;
const MAX_NAMES: usize = 64;

/// Where the signature is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The whole of a header.
    Header(HeaderName),
    /// `Authorization: Signature …`.
    Authorization,
}

/// Can this be covered?
pub(super) fn is_possible(name: &str) -> bool {
    let is_field = HeaderName::from_bytes(name.as_bytes()).is_ok_and(|header| header.as_str() == name);
    is_field || [TARGET, CREATED, EXPIRES].contains(&name)
}

impl Place {
    fn find<'a>(&self, delivery: &'a Delivery) -> Result<Option<&'a str>, Flaw> {
        let name = match self {
            Self::Header(name) => name,
            Self::Authorization => &AUTHORIZATION,
        };
        let text = match header_text(delivery, name) {
            HeaderText::One(text) => text.trim(),
            HeaderText::None => return Ok(None),
            HeaderText::Several => return Err(Flaw::Malformed("several signature headers")),
            HeaderText::Unreadable => return Err(Flaw::Malformed("the signature header is not visible ASCII")),
        };
        let text = match self {
            Self::Header(_) => Some(text),
            Self::Authorization => text
                .split_once(' ')
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("signature"))
                .map(|(_, rest)| rest),
        };
        Ok(text.filter(|text| !text.is_empty()))
    }
}

/// The signature header, taken apart.
struct Stated<'t> {
    key_id: &'t str,
    signature: Vec<u8>,
    algorithm: Option<&'t str>,
    /// In lower case, in the order in which they are signed.
    names: Vec<Cow<'t, str>>,
    created: Option<&'t str>,
    expires: Option<&'t str>,
}

impl<'t> Stated<'t> {
    fn read(text: &'t str) -> Result<Self, Flaw> {
        const MALFORMED: Flaw = Flaw::Malformed("the signature header is not a list of parameters, each once");
        let parameters = parameters(text).ok_or(MALFORMED)?;
        let find = |wanted: &str| {
            parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
        };
        let (Some(key_id), Some(signature)) = (find("keyid"), find("signature")) else {
            return Err(Flaw::Malformed("the signature header lacks keyId or signature"));
        };
        let signature = BASE64.decode(signature).map_err(|_| Flaw::Malformed("the signature is not base64"))?;
        let created = find("created");
        let names = match find("headers") {
            Some(names) => names.split(' ').map(lower).collect(),
            None if created.is_some() => vec![Cow::Borrowed(CREATED)],
            None => vec![Cow::Borrowed("date")],
        };
        let twice = names.iter().enumerate().any(|(index, name)| names.iter().take(index).any(|known| known == name));
        if names.len() > MAX_NAMES || twice || !names.iter().all(|name| is_possible(name)) {
            return Err(Flaw::Malformed("`headers` names something twice, or what cannot be signed"));
        }
        Ok(Self { key_id, signature, algorithm: find("algorithm"), names, created, expires: find("expires") })
    }
}

fn lower(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    }
}

/// `name="value"` or `name=123`, parted by commas. Each name once, whatever its case.
fn parameters(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    let mut rest = text;
    if text.len() > MAX_TEXT {
        return None;
    }
    loop {
        let (name, behind) = rest.trim_start().split_once('=')?;
        let (value, behind) = match behind.strip_prefix('"') {
            // Nothing that a parameter holds needs an escape.
            Some(quoted) => quoted.split_once('"').filter(|(value, _)| !value.contains('\\'))?,
            None => {
                let end = behind.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(behind.len());
                behind.split_at_checked(end).filter(|(digits, _)| !digits.is_empty())?
            }
        };
        let is_word = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let known = found.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        if !is_word || known || found.len() == MAX_PARAMETERS {
            return None;
        }
        found.push((name, value));
        let behind = behind.trim_start();
        if behind.is_empty() {
            return Some(found);
        }
        rest = behind.strip_prefix(',')?;
    }
}

impl HttpSignature {
    pub(super) fn judge_cavage(
        &self,
        places: &[Place],
        question: &Question<'_>,
        target: &Target<'_>,
    ) -> Result<Accepted, Flaw> {
        let delivery = question.delivery;
        let mut text = None;
        for place in places {
            // The first that is present counts; one that stands there twice is refused wherever it is.
            text = text.or(place.find(delivery)?);
        }
        let stated = Stated::read(text.ok_or(Flaw::Missing("no signature was presented"))?)?;
        let keys = keyring::meant(&self.keys, Some(stated.key_id), |algorithm| {
            stated
                .algorithm
                .is_none_or(|name| name == LOOK_AT_THE_KEY || algorithm.is_called(name, &MessageAlgorithm::CAVAGE))
        })?;
        for required in &self.required {
            let header = HeaderName::from_bytes(required.name.as_bytes()).ok().filter(|header| *header != HOST);
            if header.is_some_and(|header| !delivery.headers.contains_key(header)) {
                return Err(Flaw::Missing("a header that has to be signed is missing"));
            }
        }
        let message = signing_string(&stated, delivery, target)?;
        let by_key = keyring::verified_by(&keys, message.as_bytes(), &stated.signature);
        let (key, signed_at) = judge_both(by_key, || {
            if !self.required.iter().all(|required| stated.names.iter().any(|name| *name == required.name)) {
                return Err(Flaw::NotCovered("the signature does not cover every required header"));
            }
            let signed_at = self.check_times(&stated, delivery, target, question.now)?;
            if stated.names.iter().any(|name| name == DIGEST.as_str()) {
                digest::check_digest(&component::field(delivery, target, &DIGEST)?, &delivery.body)?;
            }
            Ok(signed_at)
        })?;
        let replay_keys = self.covers_body().then(|| replay_key("cavage", &[&message])).into_iter().collect();
        Ok(Accepted { key, signed_at, replay_keys })
    }

    /// All times that are signed must be right; the youngest is the message's.
    fn check_times(
        &self,
        stated: &Stated<'_>,
        delivery: &Delivery,
        target: &Target<'_>,
        now: UnixMillis,
    ) -> Result<Option<UnixMillis>, Flaw> {
        const UNREADABLE: Flaw = Flaw::Malformed("a signed time cannot be read");
        let mut signed_at = None;
        for name in &stated.names {
            let time = match name.as_ref() {
                "date" => Unit::HttpDate.parse(&component::field(delivery, target, &DATE)?).ok_or(UNREADABLE)?,
                CREATED => seconds(stated.created)?,
                EXPIRES => {
                    if seconds(stated.expires)? < now {
                        return Err(Flaw::Stale("the signature has expired by its own word"));
                    }
                    continue;
                }
                _ => continue,
            };
            self.check_age(time, now)?;
            signed_at = signed_at.max(Some(time));
        }
        Ok(signed_at)
    }

    pub(super) fn sign_cavage(
        &self,
        places: &[Place],
        draft: &mut Draft,
        signing: &Signing<'_>,
    ) -> Result<(), SignError> {
        let key = self.keys.first().ok_or(SignError::Incomplete)?;
        let created = signing.now.as_secs().to_string();
        let mut names: Vec<Cow<'_, str>> = Vec::new();
        for required in &self.required {
            match required.name.as_str() {
                EXPIRES => return Err(SignError::Incomplete),
                "date" => draft.add(&DATE, &Unit::HttpDate.format(signing.now).ok_or(SignError::UnspeakableTime)?)?,
                "digest" => {
                    let digest = digest::digest(&draft.delivery.body);
                    draft.add(&DIGEST, &digest)?;
                }
                _ => {}
            }
            names.push(Cow::Borrowed(&required.name));
        }
        let is_dated = names.iter().any(|name| name == CREATED);
        let stated = Stated {
            key_id: key.id.as_deref().unwrap_or(signing.id),
            signature: Vec::new(),
            // The drafts forbid the old names of algorithms beside `(created)`.
            algorithm: if is_dated { None } else { key.algorithm.name(&MessageAlgorithm::CAVAGE) },
            names,
            created: is_dated.then_some(created.as_str()),
            expires: None,
        };
        let target = Target::of(&draft.delivery, signing.public_url);
        let message = signing_string(&stated, &draft.delivery, &target).map_err(|_| SignError::Incomplete)?;
        let signature = STANDARD.encode(key.sign(message.as_bytes(), signing.private)?);
        let algorithm = stated.algorithm.unwrap_or(LOOK_AT_THE_KEY);
        let dated = if is_dated { format!("created={created},") } else { String::new() };
        let text = format!(
            r#"keyId="{}",algorithm="{algorithm}",{dated}headers="{}",signature="{signature}""#,
            stated.key_id,
            stated.names.join(" ")
        );
        match places.first() {
            Some(Place::Header(name)) => draft.add(name, &text),
            Some(Place::Authorization) => draft.add(&AUTHORIZATION, &format!("Signature {text}")),
            None => Err(SignError::NotInAHeader),
        }
    }
}

fn seconds(text: Option<&str>) -> Result<UnixMillis, Flaw> {
    let text = text.ok_or(Flaw::MissingTime("a time that is signed is not stated"))?;
    Unit::Seconds.parse(text).ok_or(Flaw::Malformed("a signed time is not a whole number"))
}

fn signing_string(stated: &Stated<'_>, delivery: &Delivery, target: &Target<'_>) -> Result<String, Flaw> {
    let mut message = String::new();
    for name in &stated.names {
        if !message.is_empty() {
            message.push('\n');
        }
        message.push_str(name);
        message.push_str(": ");
        match name.as_ref() {
            TARGET => {
                message.push_str(&delivery.method.as_str().to_ascii_lowercase());
                message.push(' ');
                message.push_str(&target.request_target());
            }
            CREATED | EXPIRES => {
                let old = ["rsa", "hmac", "ecdsa"];
                if stated.algorithm.is_some_and(|named| old.iter().any(|old| named.starts_with(old))) {
                    return Err(Flaw::Malformed("(created) and (expires) do not go with the old names of algorithms"));
                }
                let time = if name == CREATED { stated.created } else { stated.expires };
                message.push_str(time.ok_or(Flaw::MissingTime("a time that is signed is not stated"))?);
            }
            name => {
                let header = HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| Flaw::Malformed("`headers` names what cannot be signed"))?;
                message.push_str(&component::field(delivery, target, &header)?);
            }
        }
    }
    Ok(message)
}
