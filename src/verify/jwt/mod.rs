//! Tokens that prove a request: JSON Web Tokens (RFC 7519), detached signatures (RFC 7515 appendix F) and what platforms
//! made of them.
//!
//! Invariant: which algorithms and keys may prove anything is configured; a token's header only chooses among them, and
//! what it brings along (`jwk`, `jku`, `x5u`, `x5c`) is not looked at, but for one form where the configured list of
//! addresses is asked first. The signature is judged before any claim is believed.

mod algorithm;
mod binding;
mod claims;
mod compact;
mod detached;
mod keys;
mod sign;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fields::{self, Found};
use super::presented::{HeaderText, Locator, header_text};
use super::proof::{Coverage, Failure, Proof, Question, signs_query_as_sent};
use super::sign::{Draft, SignError, Signing};
use super::{Fault, Findings};
use crate::delivery::Delivery;
use crate::fetched::{Lookup, NamedBy, Wanted};
use crate::refusal::Refusal;
use claims::{Life, claim};
use compact::{Compact, MAX_TOKEN};
use keys::{NotVerified, Presented};

pub(crate) use algorithm::JwsAlgorithm;
pub(crate) use binding::{ClaimHash, DigestClaim, QueryHash};
pub(crate) use claims::{Rules, claim_text};
pub(crate) use compact::{Object, value as distinct_json};
pub(crate) use detached::TrueLayer;
pub(crate) use keys::{KeyRing, RingError};

/// A delivery that brings a list of tokens; each costs an operation with a public key.
const MAX_TOKENS: usize = 32;
/// A key set that lacks a key is fetched again for it, but not sooner than this.
const SET_IS_FRESH: Duration = Duration::from_secs(60);

/// One token that a source asks for.
#[derive(Clone)]
pub(crate) struct Jwt {
    /// Among the checks that passed.
    pub(crate) label: Arc<str>,
    /// Where it may stand. It stands in one of these.
    pub(crate) places: Vec<TokenAt>,
    /// Of one family: all with a shared secret, or all with public keys.
    pub(crate) algorithms: Vec<JwsAlgorithm>,
    pub(crate) keys: KeyRing,
    pub(crate) key_id: KeyId,
    /// A key set from elsewhere, where `keys` are none.
    pub(crate) set_url: Option<Arc<str>>,
    pub(crate) payload: Payload,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenAt {
    Header {
        name: HeaderName,
        scheme: Option<Scheme>,
    },
    Query(String),
    Json(String),
    /// Every item of an array in the body.
    Each(String),
    /// The body is the token.
    Body,
}

/// The word before the token in a header: `Bearer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    pub(crate) word: String,
    /// The token may also stand there alone.
    pub(crate) optional: bool,
}

/// What says which of the keys made the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyId {
    /// `kid` in the header.
    Header,
    /// A claim, such as a tenant's name. Hearsay until the signature is judged, and used for this alone.
    Claim(String),
}

#[derive(Clone)]
pub(crate) enum Payload {
    Claims(Box<Claims>),
    /// The signature stands for the body, which is not in the token.
    Body,
    TrueLayer(TrueLayer),
}

/// What a token's claims have to say, and what they are bound to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) rules: Rules,
    pub(crate) body_hash: Option<DigestClaim>,
    pub(crate) url_hash: Option<DigestClaim>,
    pub(crate) query_hash: Option<QueryHash>,
    /// A claim whose value is used once: what stands for the token in the memory of replays.
    pub(crate) single_use: Option<String>,
}

pub(super) const fn fault(refusal: Refusal, note: &'static str) -> Fault {
    Fault { refusal, note }
}

const fn malformed(note: &'static str) -> Fault {
    fault(Refusal::MalformedSignature, note)
}

const MISSING: Fault = fault(Refusal::MissingSignature, "no token was presented");

/// What one token proved.
struct Proven {
    secret: Option<usize>,
    life: Option<Life>,
    replay_key: Option<[u8; 32]>,
    claims: Option<Object>,
}

impl Proof for Jwt {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let tokens = self.find(question)?;
        let mut failure = None;
        let mut proven = Vec::with_capacity(tokens.len());
        for token in &tokens {
            match self.judge(token, question) {
                Ok(one) => proven.push(one),
                Err(failed) => failure = failure.or(Some(failed)),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let mut findings = Findings::default();
        let life = proven.iter().filter_map(|one| one.life).min_by_key(|life| life.until);
        findings.signed_at = life.map(|life| life.stated);
        findings.tolerance = life.map(|life| life.until.distance(life.stated));
        findings.replay_keys = proven.iter().filter_map(|one| one.replay_key).collect();
        findings.secret_used = proven.iter().find_map(|one| one.secret);
        findings.claims = proven.into_iter().next().and_then(|one| one.claims);
        Ok(findings)
    }

    fn places(&self) -> Vec<HeaderName> {
        let headers = self.places.iter().filter_map(|place| match place {
            TokenAt::Header { name, .. } => Some(name.clone()),
            TokenAt::Query(_) | TokenAt::Json(_) | TokenAt::Each(_) | TokenAt::Body => None,
        });
        headers.collect()
    }

    fn pointers(&self) -> Vec<&str> {
        let pointers = self.places.iter().filter_map(|place| match place {
            TokenAt::Json(pointer) => Some(pointer.as_str()),
            TokenAt::Header { .. } | TokenAt::Query(_) | TokenAt::Each(_) | TokenAt::Body => None,
        });
        pointers.collect()
    }

    fn reads_json(&self) -> bool {
        self.places.iter().any(|place| matches!(place, TokenAt::Json(_)))
    }

    fn signs_time(&self) -> bool {
        match &self.payload {
            Payload::Claims(claims) => claims.rules.require_exp || claims.rules.max_age.is_some(),
            Payload::TrueLayer(form) => form.timestamp.is_some(),
            Payload::Body => false,
        }
    }

    fn tolerance(&self) -> Option<Duration> {
        match &self.payload {
            Payload::Claims(claims) => claims.rules.max_age,
            Payload::TrueLayer(form) => form.timestamp.as_ref().map(|(_, _, tolerance)| *tolerance),
            Payload::Body => None,
        }
    }

    fn replay_keys_each(&self) -> usize {
        usize::from(self.tells_replays())
    }

    fn secrets(&self) -> usize {
        self.keys.secrets()
    }

    fn coverage(&self) -> Coverage {
        match &self.payload {
            Payload::Body | Payload::TrueLayer(_) => Coverage::Whole,
            Payload::Claims(claims) if claims.body_hash.is_some() || self.is_body() => Coverage::Whole,
            Payload::Claims(_) => Coverage::Nothing,
        }
    }

    fn covers(&self, locator: &Locator, public_url: Option<&str>) -> bool {
        let signs_query = match &self.payload {
            Payload::Claims(claims) => {
                let signs_url_as_sent = signs_query_as_sent(public_url);
                claims.query_hash.is_some() || (claims.url_hash.is_some() && signs_url_as_sent)
            }
            Payload::Body | Payload::TrueLayer(_) => false,
        };
        match locator {
            Locator::Claim { .. } => matches!(self.payload, Payload::Claims(_)),
            Locator::Json(_) | Locator::Form(_) | Locator::FormJson { .. } => self.coverage() == Coverage::Whole,
            Locator::Query(_) => signs_query,
            Locator::Header(name) => match &self.payload {
                Payload::TrueLayer(form) => form.required_headers.contains(name),
                Payload::Claims(_) | Payload::Body => false,
            },
        }
    }

    fn sign(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        self.put_token(draft, signing)
    }
}

impl Jwt {
    /// Is there any key that a token could be judged with?
    pub(crate) fn has_keys(&self) -> bool {
        let in_token = matches!(&self.payload, Payload::TrueLayer(form) if !form.key_urls.is_empty());
        !self.keys.is_empty() || self.set_url.is_some() || in_token
    }

    fn is_body(&self) -> bool {
        self.places.iter().all(|place| *place == TokenAt::Body)
    }

    /// Only where the token stands for the body, or is used once, does it tell a replay from an event of the same kind.
    fn tells_replays(&self) -> bool {
        match &self.payload {
            Payload::Claims(claims) => claims.single_use.is_some() || self.coverage() == Coverage::Whole,
            Payload::Body | Payload::TrueLayer(_) => true,
        }
    }

    /// The query parameter that holds the token, if one may.
    fn token_parameter(&self) -> Option<&str> {
        self.places.iter().find_map(|place| match place {
            TokenAt::Query(name) => Some(name.as_str()),
            TokenAt::Header { .. } | TokenAt::Json(_) | TokenAt::Each(_) | TokenAt::Body => None,
        })
    }

    fn find<'a>(&self, question: &Question<'a>) -> Result<Vec<Cow<'a, str>>, Fault> {
        let mut tokens = Vec::new();
        let mut places = 0;
        for place in &self.places {
            let found = place.find(question)?;
            places += usize::from(!found.is_empty());
            tokens.extend(found);
        }
        match places {
            0 => Err(MISSING),
            1 => Ok(tokens),
            // We and the upstream could believe different ones.
            _ => Err(malformed("tokens stand in two places of the request")),
        }
    }

    fn judge(&self, token: &str, question: &Question<'_>) -> Result<Proven, Failure> {
        let compact = Compact::parse(token)?;
        let algorithm = compact.text("alg").and_then(JwsAlgorithm::named);
        let Some(algorithm) = algorithm.filter(|algorithm| self.algorithms.contains(algorithm)) else {
            let note = "the token's algorithm is none of the configured ones";
            return Err(fault(Refusal::AlgorithmNotAllowed, note).into());
        };
        match &self.payload {
            Payload::Claims(claims) => self.judge_claims(claims, algorithm, &compact, question),
            Payload::Body => self.judge_body(algorithm, &compact, question),
            Payload::TrueLayer(form) => self.judge_truelayer(form, algorithm, &compact, question),
        }
    }

    fn judge_claims(
        &self,
        rules: &Claims,
        algorithm: JwsAlgorithm,
        compact: &Compact<'_>,
        question: &Question<'_>,
    ) -> Result<Proven, Failure> {
        let early = match &self.key_id {
            KeyId::Claim(_) => Some(compact.claims()?),
            KeyId::Header => None,
        };
        let key_id = match (&self.key_id, &early) {
            (KeyId::Claim(name), Some(claims)) => claim(claims, name).and_then(Value::as_str),
            _ => compact.text("kid"),
        };
        let presented = Presented {
            algorithm,
            key_id,
            message: compact.signed.as_bytes(),
            signature: &compact.signature,
            now: question.now,
        };
        let secret = self.verify(&presented, self.set_url.as_ref(), question)?;
        let claims = match early {
            Some(claims) => claims,
            None => compact.claims()?,
        };
        let life = rules.rules.judge(&claims, question.now)?;
        let delivery = question.delivery;
        if let Some(body_hash) = &rules.body_hash {
            body_hash.judge(&claims, &delivery.body)?;
        }
        if let Some(url_hash) = &rules.url_hash {
            url_hash.judge(&claims, super::template::url(delivery, question.public_url).as_bytes())?;
        }
        if let Some(query_hash) = &rules.query_hash {
            query_hash.judge(&claims, delivery, self.token_parameter())?;
        }
        let replay_key = match &rules.single_use {
            Some(name) => Some(used_once(&claims, name)?),
            None => self.tells_replays().then(|| stands_for(compact.signed.as_bytes())),
        };
        Ok(Proven { secret, life, replay_key, claims: Some(claims) })
    }

    /// With the configured keys, or with a key set from elsewhere where there are none. The position of
    /// the secret that made the signature, if a configured one did.
    fn verify(
        &self,
        presented: &Presented<'_>,
        set_url: Option<&Arc<str>>,
        question: &Question<'_>,
    ) -> Result<Option<usize>, Failure> {
        let configured = self.keys.judge(presented);
        let (Some(url), Err(NotVerified::NoKey)) = (set_url, configured) else {
            return Ok(Some(configured.map_err(Fault::from)?));
        };
        let document = match question.library.look_up(url) {
            Lookup::Here(document) => document,
            Lookup::Missing => {
                return Err(Failure::wanting(Wanted {
                    url: url.clone(),
                    newer_than: None,
                    named_by: NamedBy::Configuration,
                }));
            }
            Lookup::Unavailable => {
                let note = "the key set could not be fetched a moment ago";
                return Err(fault(Refusal::KeyUnavailable, note).into());
            }
        };
        let Some(set) = document.read_as(keys::read_set) else {
            // A server's apology with status 200 must not stand in for its keys until it runs out.
            if question.now > document.fetched_at.after(SET_IS_FRESH) {
                return Err(Failure::wanting(Wanted {
                    url: url.clone(),
                    newer_than: Some(document.fetched_at),
                    named_by: NamedBy::Configuration,
                }));
            }
            return Err(fault(Refusal::KeyUnavailable, "what was fetched is not a key set").into());
        };
        match keys::judge_set(&set, presented) {
            Ok(()) => Ok(None),
            // A sender that rolls its keys signs with one that we have not heard of.
            Err(NotVerified::NoKey)
                if presented.key_id.is_some() && question.now > document.fetched_at.after(SET_IS_FRESH) =>
            {
                Err(Failure::wanting(Wanted {
                    url: url.clone(),
                    newer_than: Some(document.fetched_at),
                    named_by: NamedBy::Configuration,
                }))
            }
            Err(failed) => Err(Fault::from(failed).into()),
        }
    }
}

impl TokenAt {
    fn find<'a>(&self, question: &Question<'a>) -> Result<Vec<Cow<'a, str>>, Fault> {
        let delivery: &'a Delivery = question.delivery;
        let text = match self {
            Self::Header { name, scheme } => match header_text(delivery, name) {
                HeaderText::None => None,
                HeaderText::Several => return Err(malformed("the header of the token stands there twice")),
                HeaderText::Unreadable => return Err(malformed("the header of the token is not visible ASCII")),
                HeaderText::One(text) => match scheme {
                    None => Some(Cow::Borrowed(text.trim())),
                    Some(scheme) => scheme.token(text.trim()).map(Cow::Borrowed),
                },
            },
            Self::Query(name) => field(fields::field(delivery.query.as_deref().unwrap_or_default().as_bytes(), name))?,
            Self::Json(pointer) => field(question.json.at(pointer))?,
            Self::Each(pointer) => return each(&delivery.body, pointer),
            Self::Body => {
                let not_text = malformed("the body is not a token");
                let text = std::str::from_utf8(&delivery.body).map_err(|_| not_text)?;
                return Ok(Some(text).filter(|text| !text.is_empty()).map(Cow::Borrowed).into_iter().collect());
            }
        };
        let text = text.filter(|text| !text.is_empty());
        if text.as_ref().is_some_and(|text| text.len() > MAX_TOKEN) {
            return Err(malformed("the token is too long"));
        }
        Ok(text.into_iter().collect())
    }
}

impl Scheme {
    /// What stands behind the word; `None` where another word or, if it must be there, none stands.
    fn token<'t>(&self, text: &'t str) -> Option<&'t str> {
        match text.split_once(' ') {
            Some((word, token)) if word.eq_ignore_ascii_case(&self.word) => Some(token.trim_start_matches(' ')),
            None if self.optional => Some(text),
            Some(_) | None => None,
        }
    }
}

fn field(found: Found<'_>) -> Result<Option<Cow<'static, str>>, Fault> {
    match found {
        Found::Absent => Ok(None),
        Found::Ambiguous => Err(malformed("the field of the token is doubled or not a string")),
        Found::Value(bytes) => match String::from_utf8(bytes.into_owned()) {
            Ok(text) => Ok(Some(Cow::Owned(text))),
            Err(_) => Err(malformed("the field of the token is not text")),
        },
    }
}

fn each(body: &[u8], pointer: &str) -> Result<Vec<Cow<'static, str>>, Fault> {
    let body = compact::value(body).ok_or(malformed("the body is not JSON of distinct members"))?;
    let items = match body.pointer(pointer) {
        None | Some(Value::Null) => return Err(MISSING),
        Some(Value::Array(items)) if items.is_empty() => return Err(MISSING),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(malformed("the field of the tokens is not an array")),
    };
    if items.len() > MAX_TOKENS {
        return Err(malformed("more tokens than a delivery may bring"));
    }
    let tokens = items.iter().map(|item| match item {
        Value::String(text) if text.len() <= MAX_TOKEN => Ok(Cow::Owned(text.clone())),
        _ => Err(malformed("one of the tokens is not a string, or too long")),
    });
    tokens.collect()
}

/// What stands for a signed message in the memory of replays. A token has one spelling, so that this has one too.
fn stands_for(signed: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(b"jws").chain_update(signed).finalize().into()
}

/// What stands for a token that is used once, whatever else it says.
fn used_once(claims: &Object, name: &str) -> Result<[u8; 32], Fault> {
    const MAX_ID: usize = 512;
    let id = match claim(claims, name) {
        Some(Value::String(id)) if !id.is_empty() && id.len() <= MAX_ID => id,
        _ => return Err(fault(Refusal::BadClaims, "the token lacks the id that makes it good for one use")),
    };
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    let mut digest = Sha256::new().chain_update(b"jti");
    digest.update(issuer.len().to_be_bytes());
    Ok(digest.chain_update(issuer).chain_update(id).finalize().into())
}
