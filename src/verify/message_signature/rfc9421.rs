//! HTTP Message Signatures, RFC 9421: `Signature-Input` says what is signed, `Signature` signs it.
//!
//! Invariant: the signature base is written anew from the request and from what was parsed; a component twice, a label
//! without its signature or a parameter of another type is refused, never passed over.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;

use super::component::{self, Target};
use super::keyring::{self, MessageAlgorithm};
use super::structured::{Bare, Dictionary, InnerList, Item, Member, Parameters};
use super::{Accepted, Flaw, HttpSignature, Required, digest, judge_both, replay_key};
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::verify::proof::Question;
use crate::verify::sign::{Draft, SignError, Signing};

const INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
/// Nonces become keys of the replay memory and are hashed for it; nobody needs a longer one.
const MAX_NONCE: usize = 256;
/// Covering single members of fields has each field read anew; a stranger can ask for it sixteen times a request.
const MAX_MEMBERS_COVERED: usize = 4;
/// More than all headers of a request and its URL together, each covered in one way or two.
const MAX_BASE: usize = 128 * 1024;
/// What `sign` calls its signature.
const LABEL: &str = "sig1";

impl HttpSignature {
    pub(super) fn judge_rfc9421(
        &self,
        tag: Option<&str>,
        question: &Question<'_>,
        target: &Target<'_>,
    ) -> Result<Accepted, Flaw> {
        const NO_INPUT: Flaw = Flaw::Missing("there is no Signature-Input");
        const NO_SIGNATURE: Flaw = Flaw::Missing("there is no Signature");
        let (inputs, signatures) = (lines(question, target, &INPUT), lines(question, target, &SIGNATURE));
        let (inputs, signatures) = (
            inputs.map_err(|flaw| flaw.unwrap_or(NO_INPUT))?,
            signatures.map_err(|flaw| flaw.unwrap_or(NO_SIGNATURE))?,
        );
        let inputs = Dictionary::parse(&inputs).ok_or(Flaw::Malformed("Signature-Input is not a dictionary"))?;
        let signatures = Dictionary::parse(&signatures).ok_or(Flaw::Malformed("Signature is not a dictionary"))?;

        let mut accepted: Option<Accepted> = None;
        let mut furthest = None;
        for (label, input) in inputs.iter() {
            match self.judge_one(tag, input, signatures.find(label), question, target) {
                Ok(one) => match &mut accepted {
                    Some(accepted) => {
                        // Remembered as long as the youngest of them can be shown again.
                        accepted.signed_at = accepted.signed_at.max(one.signed_at);
                        accepted.replay_keys.extend(one.replay_keys);
                    }
                    None => accepted = Some(one),
                },
                Err(flaw) => furthest = Some(flaw.further(furthest)),
            }
        }
        accepted.ok_or(furthest.unwrap_or(NO_SIGNATURE))
    }

    fn judge_one(
        &self,
        tag: Option<&str>,
        input: &Member<'_>,
        signature: Option<&Member<'_>>,
        question: &Question<'_>,
        target: &Target<'_>,
    ) -> Result<Accepted, Flaw> {
        let Member::List(input) = input else {
            return Err(Flaw::Malformed("a member of Signature-Input is not a list of components"));
        };
        let signature = match signature {
            Some(Member::Item(Item { value: Bare::Bytes(signature), .. })) => signature,
            Some(_) => return Err(Flaw::Malformed("a signature is not a byte sequence")),
            None => return Err(Flaw::Missing("Signature lacks the label that Signature-Input has")),
        };
        let stated = Stated::read(&input.parameters)?;
        if tag.is_some() && stated.tag != tag {
            return Err(Flaw::Missing("no signature has the configured tag"));
        }
        let keys = keyring::meant(&self.keys, stated.key_id, |algorithm| {
            stated.algorithm.is_none_or(|name| algorithm.is_called(name, &MessageAlgorithm::RFC_9421))
        })?;
        let created = stated.created.ok_or(Flaw::MissingTime("the signature has no `created`"))?;
        let (covered, base) = signature_base(input, question.delivery, target)?;
        let by_key = keyring::verified_by(&keys, base.as_bytes(), signature);
        let (key, ()) = judge_both(by_key, || {
            self.check_age(created, question.now)?;
            if stated.expires.is_some_and(|expires| expires < question.now) {
                return Err(Flaw::Stale("the signature has expired by its own word"));
            }
            let is_met = |required: &Required| {
                input.items.iter().zip(&covered).any(|(item, identifier)| required.is_met_by(item, identifier))
            };
            if !self.required.iter().all(is_met) {
                return Err(Flaw::NotCovered("the signature does not cover every required component"));
            }
            if self.wants_nonce() && stated.nonce.is_none() {
                return Err(Flaw::NotCovered("the signature has no `nonce`"));
            }
            let names_digest =
                |item: &Item<'_>| matches!(&item.value, Bare::Text(name) if *name == CONTENT_DIGEST.as_str());
            if input.items.iter().any(names_digest) {
                let field = component::field(question.delivery, target, &CONTENT_DIGEST)?;
                digest::check_content_digest(&field, &question.delivery.body)?;
            }
            Ok(())
        })?;

        let mut replay_keys = Vec::new();
        if self.covers_body() {
            replay_keys.push(replay_key("rfc9421", &[&base]));
        }
        if let Some(nonce) = stated.nonce.filter(|_| self.wants_nonce()) {
            replay_keys.push(replay_key("nonce", &[stated.key_id.unwrap_or_default(), nonce]));
        }
        Ok(Accepted { key, signed_at: Some(created), replay_keys })
    }

    pub(super) fn sign_rfc9421(
        &self,
        tag: Option<&str>,
        nonce: bool,
        draft: &mut Draft,
        signing: &Signing<'_>,
    ) -> Result<(), SignError> {
        let key = self.keys.first().ok_or(SignError::Incomplete)?;
        if self.covers_body() {
            let digest = digest::content_digest(&draft.delivery.body);
            draft.add(&CONTENT_DIGEST, &digest)?;
        }
        let created = i64::try_from(signing.now.as_secs()).map_err(|_| SignError::UnspeakableTime)?;
        let text = |text| Bare::Text(Cow::Borrowed(text));
        let key_id = key.id.as_deref().map(|id| ("keyid", text(id)));
        let nonce = nonce.then(|| ("nonce", text(signing.id)));
        let tag = tag.map(|tag| ("tag", text(tag)));
        let parameters: Parameters<'_> =
            [Some(("created", Bare::Integer(created))), key_id, nonce, tag].into_iter().flatten().collect();
        let items = self.required.iter().map(|required| Item::parse(&required.identifier));
        let items = items.collect::<Option<Vec<_>>>().ok_or(SignError::Incomplete)?;
        let input = InnerList { items, parameters };

        let (_, base) = {
            let target = Target::of(&draft.delivery, signing.public_url);
            signature_base(&input, &draft.delivery, &target).map_err(|_| SignError::Incomplete)?
        };
        let signature = key.sign(base.as_bytes(), signing.private)?;
        let mut stated = format!("{LABEL}=");
        input.write(&mut stated);
        draft.add(&INPUT, &stated)?;
        draft.add(&SIGNATURE, &format!("{LABEL}=:{}:", STANDARD.encode(signature)))
    }
}

/// All lines of a field. `Err(None)`: there are none.
fn lines<'a>(question: &Question<'a>, target: &Target<'a>, name: &HeaderName) -> Result<Cow<'a, str>, Option<Flaw>> {
    match component::field(question.delivery, target, name) {
        Ok(text) if !text.is_empty() => Ok(text),
        Ok(_) | Err(Flaw::Missing(_)) => Err(None),
        Err(flaw) => Err(Some(flaw)),
    }
}

/// The parameters that RFC 9421 gives a meaning. Others are signed with the rest and mean nothing to us.
struct Stated<'p> {
    created: Option<UnixMillis>,
    expires: Option<UnixMillis>,
    key_id: Option<&'p str>,
    algorithm: Option<&'p str>,
    nonce: Option<&'p str>,
    tag: Option<&'p str>,
}

impl<'p> Stated<'p> {
    fn read(parameters: &'p Parameters<'_>) -> Result<Self, Flaw> {
        let time = |name| match parameters.find(name) {
            None => Ok(None),
            Some(Bare::Integer(seconds)) => match u64::try_from(*seconds) {
                Ok(seconds) => Ok(Some(UnixMillis::from_secs(seconds))),
                Err(_) => Err(Flaw::Malformed("a time before 1970")),
            },
            Some(_) => Err(Flaw::Malformed("a time that is not a whole number")),
        };
        let text = |name| match parameters.find(name) {
            None => Ok(None),
            Some(Bare::Text(text)) => Ok(Some(text.as_ref())),
            Some(_) => Err(Flaw::Malformed("a parameter of the signature that is not a string")),
        };
        let nonce = text("nonce")?;
        if nonce.is_some_and(|nonce| nonce.is_empty() || nonce.len() > MAX_NONCE) {
            return Err(Flaw::Malformed("a nonce that is empty or too long"));
        }
        Ok(Self {
            created: time("created")?,
            expires: time("expires")?,
            key_id: text("keyid")?,
            algorithm: text("alg")?,
            nonce,
            tag: text("tag")?,
        })
    }
}

/// RFC 9421, section 2.5. Also the components' identifiers, in their order.
pub(super) fn signature_base(
    input: &InnerList<'_>,
    delivery: &Delivery,
    target: &Target<'_>,
) -> Result<(Vec<String>, String), Flaw> {
    let mut base = String::new();
    let mut covered: Vec<String> = Vec::with_capacity(input.items.len());
    let of_members = input.items.iter().filter(|item| item.parameters.find("key").is_some());
    if of_members.count() > MAX_MEMBERS_COVERED {
        return Err(Flaw::Malformed("more than four single members of fields are covered"));
    }
    for item in &input.items {
        let mut identifier = String::new();
        item.write(&mut identifier);
        if covered.contains(&identifier) {
            return Err(Flaw::Malformed("a component is covered twice"));
        }
        base.push_str(&identifier);
        base.push_str(": ");
        component::write_value(item, delivery, target, &mut base)?;
        base.push('\n');
        if base.len() > MAX_BASE {
            return Err(Flaw::Malformed("what is covered is too long"));
        }
        covered.push(identifier);
    }
    base.push_str("\"@signature-params\": ");
    input.write(&mut base);
    Ok((covered, base))
}
