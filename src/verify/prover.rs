//! One signature scheme, judged: what was presented, what it must stand for, which key made it, and when.
//!
//! Invariant: one path for what is missing, malformed or wrong. The MACs are computed over what there is and compared
//! with what candidates there are; then the first thing that was amiss is told. Freshness comes last, for an unsigned
//! time is hearsay.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::explain::{self, Story};
use super::fields::Pointers;
use super::freshness::{Future, Timestamp};
use super::key_choice;
use super::key_list;
use super::presented::{HeaderText, Locator, Place, Presented, TimestampPlace, header_text};
use super::proof::{Coverage, Failure, Proof, Question, signs_query_as_sent};
use super::public_key::SignatureAlgorithm;
use super::scheme::{Algorithm, Scheme};
use super::sign::{Draft, SignError, Signing};
use super::template::{Facts, Message, Template, UrlForm};
use super::{BuildError, Fault, Findings, document, hmac, parts, public_key};
use crate::delivery::Delivery;
use crate::refusal::Refusal;

pub(super) struct Prover {
    label: Arc<str>,
    pub(super) scheme: Scheme,
    pub(super) keys: Keys,
    /// The signature itself cannot be judged without a look into the body.
    pub(super) needs_json: bool,
    pub(super) time_is_signed: bool,
    pub(super) has_replay_key: bool,
    lengths: RangeInclusive<usize>,
    /// Of each item, where every item of an array has a proof of its own.
    pub(super) item_pointers: Pointers,
}

pub(super) enum Keys {
    Hmac(Vec<hmac::Keyed>),
    Hashed(Vec<hmac::Hashed>),
    Public(SignatureAlgorithm, Vec<public_key::Listed>),
}

impl Keys {
    fn lists(&self, id: &str) -> bool {
        match self {
            // An HMAC is tried under every secret, so that the time taken does not depend on which.
            Self::Hmac(_) | Self::Hashed(_) => true,
            Self::Public(_, keys) => keys.iter().any(|listed| listed.id.as_deref() == Some(id)),
        }
    }
}

/// Which secret's signature was among the candidates, and what stands for this message in the memory of replays.
pub(super) struct Matched {
    pub(super) secret_index: Option<usize>,
    pub(super) replay_keys: ReplayKeys,
}

/// Made only of what is accepted: nothing of a forgery is remembered.
pub(super) enum ReplayKeys {
    OfMacs(hmac::Macs),
    Of([u8; 32]),
}

impl ReplayKeys {
    pub(super) fn told(&self) -> Vec<[u8; 32]> {
        match self {
            Self::OfMacs(macs) => macs.replay_keys(),
            Self::Of(key) => vec![*key],
        }
    }
}

impl Prover {
    pub(super) fn build(mut scheme: Scheme, label: Arc<str>) -> Result<Self, BuildError> {
        scheme.check()?;
        scheme.key_choice.check(&scheme.signature.place)?;
        let keys = std::mem::take(&mut scheme.keys);
        if keys.is_empty() && scheme.key_choice.url.is_none() {
            return Err(BuildError::NoKeys);
        }
        if scheme.key_choice.id.is_some() && keys.iter().any(|key| key.id.is_none()) {
            return Err(BuildError::KeyWithoutId);
        }
        let secrets_in_messages = usize::from(scheme.algorithm.is_plain_hash());
        if scheme.messages().any(|message| message.secrets() != secrets_in_messages) {
            return Err(BuildError::SecretInMessage);
        }
        let keys = match scheme.algorithm {
            Algorithm::Sha1 | Algorithm::Sha256 | Algorithm::Sha512 => {
                let hash = scheme.algorithm.hash().expect("it is one");
                Keys::Hashed(keys.into_iter().map(|key| hmac::Hashed::new(hash, key)).collect())
            }
            Algorithm::Signature(algorithm) => Keys::Public(algorithm, public_key::listed(algorithm, &keys)?),
            Algorithm::HmacSha1 | Algorithm::HmacSha256 | Algorithm::HmacSha384 | Algorithm::HmacSha512 => {
                let hash = scheme.algorithm.hash().expect("an HMAC has one");
                Keys::Hmac(keys.iter().map(|key| hmac::Keyed::new(hash, key)).collect())
            }
        };
        let mut item_pointers = Pointers::default();
        let of_items = scheme.more.for_each.is_some();
        for pointer in scheme.proof_pointers().filter(|_| of_items) {
            item_pointers.add(pointer).map_err(|_| BuildError::NotAPointer(pointer.to_owned()))?;
        }
        let item_pointers = item_pointers.in_any_case();
        let needs_json = !of_items && scheme.proof_pointers().next().is_some();
        let time_is_signed = scheme
            .timestamp
            .as_ref()
            .is_some_and(|timestamp| scheme.messages().all(|message| timestamp.place.is_covered_by(message)));
        // A batch of which the first item is signed is a replay of that item.
        let has_replay_key =
            scheme.message.covers_body() || scheme.hash_covers_body(&scheme.message) || scheme.single_use;
        let lengths = match &keys {
            Keys::Hmac(_) | Keys::Hashed(_) => scheme.algorithm.signature_lengths(),
            Keys::Public(algorithm, keys) => public_key::signature_lengths(*algorithm, keys),
        };
        Ok(Self { label, scheme, keys, needs_json, time_is_signed, has_replay_key, lengths, item_pointers })
    }
}

impl Proof for Prover {
    fn name(&self) -> Arc<str> {
        self.label.clone()
    }

    fn narrate(&self, question: &Question<'_>, story: &mut Story) {
        explain::tell(self, question, story);
    }

    fn headers(&self) -> Vec<HeaderName> {
        let signature = match &self.scheme.signature.place {
            Place::Header(names) | Place::EveryHeader(names) | Place::HeaderJson { names, .. } => names.first(),
            Place::Query(_) | Place::Form(_) | Place::Json(_) => None,
        };
        let timestamp = self.scheme.timestamp.as_ref().and_then(|timestamp| match &timestamp.place {
            TimestampPlace::Header(name) => Some(name),
            TimestampPlace::Pair(_) | TimestampPlace::Position | TimestampPlace::Json(_) => None,
        });
        let needed = self.scheme.message.needed_headers().chain(&self.scheme.required_headers);
        signature.into_iter().chain(timestamp).chain(needed).cloned().collect()
    }

    fn places(&self) -> Vec<HeaderName> {
        let spelled = match &self.scheme.signature.place {
            Place::Header(names) | Place::EveryHeader(names) | Place::HeaderJson { names, .. } => names.as_slice(),
            Place::Query(_) | Place::Form(_) | Place::Json(_) => &[],
        };
        spelled.iter().cloned().chain(self.headers()).collect()
    }

    fn pointers(&self) -> Vec<&str> {
        match self.scheme.more.for_each {
            // They are looked up in each item.
            Some(_) => Vec::new(),
            None => self.scheme.proof_pointers().collect(),
        }
    }

    fn reads_json(&self) -> bool {
        self.needs_json
    }

    fn signs_time(&self) -> bool {
        // One that is not judged ends nothing.
        self.time_is_signed && self.tolerance().is_some()
    }

    fn tolerance(&self) -> Option<Duration> {
        self.scheme.timestamp.as_ref().filter(|_| self.time_is_signed)?.tolerance
    }

    fn tells_signature_alone(&self) -> bool {
        true
    }

    fn replay_keys_each(&self) -> usize {
        match &self.keys {
            _ if !self.has_replay_key => 0,
            Keys::Hmac(secrets) => secrets.len(),
            Keys::Hashed(secrets) => secrets.len(),
            Keys::Public(..) => 1,
        }
    }

    fn secrets(&self) -> usize {
        match &self.keys {
            Keys::Hmac(secrets) => secrets.len(),
            Keys::Hashed(secrets) => secrets.len(),
            Keys::Public(_, keys) => keys.len(),
        }
    }

    fn coverage(&self) -> Coverage {
        match self.scheme.covers_body() {
            true => Coverage::Whole,
            // Of a whole item it would still be only that.
            false => {
                self.scheme.messages().map(Template::coverage).min().map_or(Coverage::Nothing, |least| match least {
                    Coverage::Whole | Coverage::Partly => Coverage::Partly,
                    Coverage::Nothing => Coverage::Nothing,
                })
            }
        }
    }

    fn covers(&self, locator: &Locator, public_url: Option<&str>) -> bool {
        let signs_url_as_sent = signs_query_as_sent(public_url);
        // The pointers of an item are not those of the body.
        let is_of_body = self.scheme.more.for_each.is_none() || !matches!(locator, Locator::Json(_));
        let of_body = matches!(locator, Locator::Json(_) | Locator::Form(_)) && self.scheme.covers_body();
        let covered = |message| locator.is_covered_by(message, signs_url_as_sent);
        let is_time = || match (locator, self.scheme.timestamp.as_ref().map(|timestamp| &timestamp.place)) {
            (Locator::Json(pointer), Some(TimestampPlace::Json(place))) => pointer == place,
            (Locator::Header(name), Some(TimestampPlace::Header(place))) => name == place,
            _ => false,
        };
        is_of_body && (of_body || self.time_is_signed && is_time() || self.scheme.messages().all(covered))
    }

    fn sign(&self, draft: &mut Draft, signing: &Signing<'_>) -> Result<(), SignError> {
        self.put_signature(draft, signing)
    }

    fn examine(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let Some(for_each) = &self.scheme.more.for_each else { return self.examine_one(question) };
        let document = self.scheme.more.document.text(question.delivery);
        let items = document.as_deref().and_then(|document| parts::items(document, for_each));
        let Some(items) = items else {
            let note = "the body has no items where the configuration says";
            return Err(Fault { refusal: Refusal::MalformedSignature, note }.into());
        };
        // All of them, whatever the first says; and each is a replay by itself.
        let mut all = Ok(Findings::default());
        for item in items {
            let json = self.item_pointers.read(item);
            let found = self.examine_one(&Question { json: &json, ..*question });
            all = match (all, found) {
                (Ok(mut all), Ok(found)) => {
                    all.signed_at = match (all.signed_at, found.signed_at) {
                        (Some(one), Some(other)) => Some(one.min(other)),
                        (one, other) => one.or(other),
                    };
                    all.tolerance = all.tolerance.or(found.tolerance);
                    all.secret_used = all.secret_used.max(found.secret_used);
                    all.replay_keys.extend(found.replay_keys);
                    Ok(all)
                }
                (Err(first), Err(other)) => {
                    Err(Failure { only_signature: first.only_signature && other.only_signature, ..first })
                }
                (Err(failure), _) | (Ok(_), Err(failure)) => Err(failure),
            };
        }
        all
    }
}

impl Prover {
    fn examine_one(&self, question: &Question<'_>) -> Result<Findings, Failure> {
        let Question { delivery, json, public_url, now, library: _ } = *question;
        let scheme = &self.scheme;
        let text = scheme.signature.find(delivery, json);
        let parsed = match &text {
            Ok(text) => match scheme.signature.parse(text, &self.lengths) {
                Err(_) if scheme.key_choice.is_of_another_algorithm(text) => Err(key_choice::NOT_ALLOWED),
                parsed => parsed,
            },
            Err(fault) => Err(*fault),
        };
        let (presented, mut fault) = match parsed {
            Ok(presented) => (presented, None),
            Err(fault) => (Presented::default(), Some(fault)),
        };

        let mut stamp = None;
        let mut stated_time = None;
        if let Some(timestamp) = &scheme.timestamp {
            const UNREADABLE: Fault =
                Fault { refusal: Refusal::MalformedTimestamp, note: "the timestamp is not of the configured unit" };
            match timestamp.place.find(delivery, &presented, json) {
                Ok(text) => {
                    stated_time = timestamp.unit.parse(&text);
                    fault = fault.or(stated_time.is_none().then_some(UNREADABLE));
                    stamp = Some(text);
                }
                Err(missing) => fault = fault.or(Some(missing)),
            }
        }
        if scheme.required_headers.iter().any(|name| !delivery.headers.contains_key(name)) {
            let note = "a header that the scheme requires is missing";
            fault = fault.or(Some(Fault { refusal: Refusal::MissingSignature, note }));
        }
        if scheme.required_headers.iter().any(|name| !stands_once(delivery, name)) {
            let note = "a header that the scheme requires is empty or doubled";
            fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
        }

        if let Some(note) = scheme.more.unmet(delivery) {
            fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
        }
        let body = scheme.more.document.signed_body(delivery);
        if body.is_none() {
            let note = "the body claims to be compressed, and is not or is too large";
            fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
        }

        let place = &scheme.signature.place;
        fault = fault.or_else(|| scheme.key_choice.algorithm_fault(place, delivery, json));
        let wanted = match scheme.key_choice.id(place, delivery, json) {
            Ok(wanted) => wanted,
            Err(missing) => {
                fault = fault.or(Some(missing));
                None
            }
        };
        let fetched = match (&wanted, &scheme.key_choice.url) {
            (Some(id), Some(url)) if !self.keys.lists(id) => Some(key_list::named(question, url, id)),
            _ => None,
        };
        if let Some(wanted) = &wanted
            && fetched.is_none()
            && !self.keys.lists(wanted)
        {
            let note = "the sender names a key that is not among the configured ones";
            fault = fault.or(Some(Fault { refusal: Refusal::UntrustedKey, note }));
        }
        let theirs = fetched.as_ref().and_then(|fetched| fetched.as_deref().ok());
        let facts = Facts {
            delivery,
            public_url,
            timestamp: stamp.as_deref(),
            pairs: &presented.pairs,
            json,
            body: body.as_deref(),
            url_form: UrlForm::AsIs,
        };
        let template = scheme.message_of(delivery);
        let mut matched = match template.render(&facts) {
            message if !message.complete => {
                let note = "a value that the sender signs is missing from the request, or there twice";
                fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
                None
            }
            _ if stamp.as_deref().is_some_and(|stamp| self.body_runs_into_time(template, stamp, &facts)) => {
                let note = "a digit at the end of the body that meets a time which nobody judges";
                fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
                None
            }
            message if scheme.algorithm.is_plain_hash() && hmac::may_be_extended(&message) => {
                let note = "a zero byte behind the secret of a plain hash, as an extended message has";
                fault = fault.or(Some(Fault { refusal: Refusal::MalformedSignature, note }));
                None
            }
            message => Some(self.judge(&message, &presented, wanted.as_deref(), theirs)),
        };
        let mut secret_index = matched.as_ref().and_then(|matched| matched.secret_index);
        let escaped = scheme.more.php_escape.then(|| document::php_escaped(facts.body.unwrap_or_default())).flatten();
        let bodies = std::iter::once(facts.body).chain(escaped.as_deref().map(Some));
        for (body, url_form) in bodies.flat_map(|body| scheme.more.url_forms().map(move |form| (body, form))).skip(1) {
            let message = template.render(&Facts { body, url_form, ..facts });
            let found = self.judge(&message, &presented, wanted.as_deref(), theirs);
            secret_index = secret_index.or(found.secret_index.filter(|_| message.complete));
            // Each slash may be escaped or not: all these spellings of one body are one delivery.
            if let (Some(matched), UrlForm::AsIs) = (&mut matched, url_form) {
                matched.replay_keys = found.replay_keys;
            }
        }
        let lacking = fetched.as_ref().and_then(|fetched| fetched.as_ref().err());
        let by_no_key = secret_index.is_none() && lacking.is_none();
        let mut rest = scheme.more.body_hash.as_ref().and_then(|hash| hash.fault(delivery));
        // Only behind a signature is the stated time worth anything.
        if let (Some(timestamp), Some(stated)) = (&scheme.timestamp, stated_time)
            && !timestamp.is_fresh(stated, now)
        {
            let note = if stated < now { "the stated time is too old" } else { "the stated time lies in the future" };
            rest = rest.or(Some(Fault { refusal: Refusal::Stale, note }));
        }
        const BY_NO_KEY: &str = "no configured secret makes any of the signatures over this message";
        if by_no_key && fault.is_none() && rest.is_none() {
            return Err(Failure::of_signature_alone(BY_NO_KEY));
        }
        if by_no_key {
            fault = fault.or(Some(Fault { refusal: Refusal::BadSignature, note: BY_NO_KEY }));
        }

        match (fault.or(rest), lacking) {
            (Some(fault), _) => Err(fault.into()),
            // Nothing else is wrong, as far as can be told: the key is worth fetching.
            (None, Some(lacking)) => Err(lacking.clone()),
            (None, None) => Ok(Findings {
                signed_at: stated_time.filter(|_| self.signs_time()),
                tolerance: self.tolerance(),
                // Of the message as it is, or as PHP escapes it, whichever of its variants was signed.
                replay_keys: matched
                    .filter(|_| self.has_replay_key)
                    .map(|it| it.replay_keys.told())
                    .unwrap_or_default(),
                // A key of the sender's list is none of ours.
                secret_used: secret_index.filter(|_| fetched.is_none()),
                ..Findings::default()
            }),
        }
    }

    /// Under `{body}{timestamp}` digits move between the two without changing the message. A time that is judged is then
    /// stale; where its age is no matter, no body may end in what could be the time's.
    fn body_runs_into_time(&self, template: &Template, stamp: &str, facts: &Facts<'_>) -> bool {
        let is_judged = |timestamp: &Timestamp| timestamp.tolerance.is_some() && timestamp.future != Future::Any;
        if self.scheme.timestamp.as_ref().is_none_or(is_judged) || !stamp.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        let body = facts.body.unwrap_or(&facts.delivery.body);
        let (meets_start, meets_end) = template.time_beside_body();
        let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
        meets_start && is_digit(body.first()) || meets_end && is_digit(body.last())
    }

    /// `theirs`: keys of the sender's own list, in place of the configured ones.
    fn judge(
        &self,
        message: &Message<'_>,
        presented: &Presented<'_>,
        wanted: Option<&str>,
        theirs: Option<&[public_key::Listed]>,
    ) -> Matched {
        match &self.keys {
            Keys::Hmac(secrets) => hmac::judge(secrets, message, &presented.candidates),
            Keys::Hashed(secrets) => hmac::judge_hashed(secrets, message, &presented.candidates),
            Keys::Public(algorithm, keys) => {
                public_key::judge(*algorithm, theirs.unwrap_or(keys), wanted, message, &presented.candidates)
            }
        }
    }
}

fn stands_once(delivery: &Delivery, name: &HeaderName) -> bool {
    matches!(header_text(delivery, name), HeaderText::One(text) if !text.trim().is_empty())
}
