//! Does this request prove itself?
//!
//! Pure: the request, the configuration and the time go in; `Verified` or a refusal comes out. Invariant: a `Verified` is
//! made in one place, `Verifier::judge`, after every configured proof was judged; nothing that the signature does not
//! cover is called signed. All proofs are judged before the first failure is told, so that the time taken does not say
//! which of them failed. One file, for what is configured, judged and told of it is one argument.

mod canonical;
mod captured;
mod certificate;
mod cloud_event;
mod credential;
mod document;
mod each_member;
mod explain;
mod fields;
mod freshness;
mod handshake;
mod hmac;
mod jwt;
mod key;
mod key_choice;
mod key_list;
mod message_signature;
mod more;
mod parts;
mod platform;
mod presented;
mod proof;
mod prover;
mod public_key;
mod resign;
#[cfg(test)]
mod samples;
mod scheme;
mod sign;
mod template;
#[cfg(test)]
mod tests;
mod url_rule;
#[cfg(test)]
mod wycheproof;

use std::sync::Arc;
use std::time::Duration;

use crate::fields::Fields;
use http::Method;
use thiserror::Error;

use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fetched::{Library, Wanted};
use crate::refusal::Refusal;
use crate::secret::Secret;

use captured::Captured;
use credential::Credentials;
use prover::Prover;
use sha2::{Digest, Sha256};

#[cfg(fuzzing)]
pub(crate) use certificate::Chain;
pub(crate) use certificate::Roots;
pub(crate) use cloud_event::CloudEvents;
pub(crate) use credential::{Basic, Token, TokenPlace};
pub(crate) use document::{Document, Part};
pub(crate) use each_member::EachMember;
pub(crate) use explain::{Case, Change, Explanation, NoWorkshop, Step, Verdict, Workshop};
pub(crate) use fields::{Found, Json, NotAPointer, Pointers, is_pointer};
pub(crate) use freshness::{Future, Timestamp, Unit};
pub(crate) use handshake::{
    Alphabet, Answer, AnswerBody, Asked, Computed, Condition, Declined, Function, Granted, Guard, Handshake, Member,
    Piece, Reply,
};
pub(crate) use hmac::Hash;
pub(crate) use jwt::{
    ClaimHash, Claims as JwtClaims, DigestClaim, JwsAlgorithm, Jwt, KeyId as JwtKeyId, KeyRing, Payload as JwtPayload,
    QueryHash, RingError, Rules, Scheme as JwtScheme, TokenAt, TrueLayer,
};
pub(crate) use key::{Key, KeyEncoding, KeyError, KeyFormat, normalised};
pub(crate) use key_choice::{Declared, KeyChoice, Stated};
pub(crate) use message_signature::{
    CavagePlace, HttpSignature, MessageAlgorithm, Required, SignerKey, Standard as SignatureStandard, looks_public,
};
pub(crate) use more::{BodyHash, MessageWhen, More, When};
pub(crate) use platform::{Adobe, Alexa, Apple, Environment, PayPal, Sns, SnsVersion};
pub(crate) use presented::{Encoding, Layout, Locator, MAX_NUMBERED, Place, SignatureAt, TimestampPlace};
pub(crate) use proof::{Coverage, Failure, Proof, Question};
pub(crate) use public_key::SignatureAlgorithm;
pub(crate) use resign::SigningKey;
pub(crate) use scheme::{Algorithm, Scheme};
pub(crate) use sign::Draft;
#[cfg(test)]
pub(crate) use sign::SignError;
pub(crate) use template::{Facts, Template, UrlForm};
#[cfg(fuzzing)]
pub(crate) use url_rule::{HostRule, PathRule, UrlRule};

/// How the requests of one source prove themselves, as `config` assembles it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// The name of the scheme among the checks that passed: `github`, `hmac-sha256`.
    pub(crate) label: Arc<str>,
    pub(crate) scheme: Option<Scheme>,
    /// The scheme's key comes later, from the sender; those it has stand in for it.
    pub(crate) awaits_key: bool,
    /// Further proofs, all of which must pass.
    pub(crate) proofs: Vec<Arc<dyn Proof>>,
    /// Questions to the gateway itself.
    pub(crate) handshakes: Vec<Handshake>,
    /// Deliveries begin with `{` or `[`: for a handshake applies the very key that signs them to a stranger's text,
    /// which never holds either.
    pub(crate) only_json: bool,
    pub(crate) basic: Option<Basic>,
    pub(crate) bearer: Option<Vec<Secret>>,
    pub(crate) token: Option<Token>,
    /// Where the event's id stands: alternatives, the first that is present counts.
    pub(crate) id: Vec<Locator>,
    /// Where the event's type stands, likewise.
    pub(crate) event: Vec<Locator>,
    pub(crate) public_url: Option<String>,
    /// What the locators and handshakes speak of.
    pub(crate) document: Document,
    /// What stands for a delivery in the memory of replays where no signature stands for its body.
    pub(crate) replay: Option<Template>,
}

/// Settings that would refuse everything, or worse, accept what proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum BuildError {
    #[error("the scheme has no key; set `secrets`")]
    NoKeys,
    #[error("secret {} has {length} bytes, a public key of Ed25519 has 32; check its encoding", .index + 1)]
    KeyLength { index: usize, length: usize },
    #[error("secret {} is not a public key of Ed25519; was it copied whole?", .index + 1)]
    NotAPublicKey { index: usize },
    #[error("secret {} is a weak key, under which anybody can make signatures", .index + 1)]
    WeakKey { index: usize },
    #[error("secret {} is a key of another kind than {algorithm} takes; compare it with the provider's page", .index + 1)]
    KeyOfAnotherKind { index: usize, algorithm: &'static str },
    #[error(
        "`key_id` picks a key by its id, and a secret has none; write secrets = [{{ file = \"k.pem\", id = \"…\" }}]"
    )]
    KeyWithoutId,
    #[error("only a signature in `header_json` has something beside it")]
    NothingBesideTheSignature,
    #[error("no header is named for the signature; set `signature.header`")]
    NoSignatureHeader,
    #[error("the prefix, key or separator of the signature cannot work: {0}")]
    Layout(&'static str),
    #[error("the timestamp is to be among the signature's {expected}, and the signature is not laid out so")]
    TimestampLayout { expected: &'static str },
    #[error("the message needs {{timestamp}} and no timestamp is configured; add `timestamp`")]
    NoTimestamp,
    #[error("a plain hash takes {{secret}} in `message`, once, and no other algorithm does")]
    SecretInMessage,
    #[error("`replay` draws on what a request shows: not on {{timestamp}}, {{secret}}, {{pair:…}} or the signature")]
    ReplayOfSignature,
    #[error("the message needs {{pair:…}} and the signature is not laid out in pairs")]
    NoPairs,
    #[error("`{0}` is not a JSON pointer; begin it with `/`")]
    NotAPointer(String),
    #[error("a source asks for at most {most} signatures and tokens at once")]
    TooManyProofs { most: usize },
    #[error("a handshake without marks would be recognised in every delivery; say what it matches")]
    HandshakeMatchesEverything,
    #[error("a handshake that comes with every proof comes with the source's own methods, and brings no secret")]
    HandshakeSignedAndNew,
    #[error("a handshake matches strings, whole numbers, booleans and null; `{0}` is compared with something else")]
    HandshakeNotScalar(String),
    #[error(
        "a handshake in a body that the signature does not cover would answer anybody; sign `{{body}}`, or say signed = false"
    )]
    HandshakeNotSigned,
    #[error("`{credential}` has no secret; set one")]
    NoSecrets { credential: &'static str },
    #[error("`{credential}` has an empty secret; set it")]
    EmptySecret { credential: &'static str },
    #[error("a username of Basic credentials cannot hold `:`")]
    ColonInUsername,
    #[error("two credentials want the one Authorization header; keep one of basic, bearer and token")]
    AuthorizationTwice,
}

impl BuildError {
    /// It is the keys that do not fit, and not what is said of the scheme.
    pub(crate) fn is_of_a_secret(&self) -> bool {
        matches!(
            self,
            Self::KeyLength { .. }
                | Self::NotAPublicKey { .. }
                | Self::WeakKey { .. }
                | Self::KeyOfAnotherKind { .. }
                | Self::KeyWithoutId
        )
    }
}

/// More proofs of one source than this would be a mistake; so would more kinds of credentials.
const MAX_PROOFS: usize = 5;

/// All proofs of one source that live in the request; keys scheduled and templates parsed.
pub(crate) struct Verifier {
    proofs: Vec<Arc<dyn Proof>>,
    reads_json: bool,
    /// Those that come with every proof.
    handshakes: Vec<Handshake>,
    unsigned: handshake::Unsigned,
    captured: Option<Arc<Captured>>,
    only_json: bool,
    credentials: Credentials,
    id: Vec<Locator>,
    event: Vec<Locator>,
    public_url: Option<String>,
    document: Document,
    replay: Option<Template>,
    /// Everything that is ever looked up in a body, so that one walk finds it.
    pointers: Pointers,
    /// The names of all of them, as the upstream and the audit line have them.
    checks: Arc<str>,
    credential_headers: Vec<http::HeaderName>,
}

/// A refusal, with a note that is fit for a log: it names a form, never a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    refusal: Refusal,
    note: &'static str,
}

/// Proven genuine and fresh. The only way to one is `Verifier::judge`.
#[derive(Debug)]
pub(crate) struct Verified {
    delivery: Box<Delivery>,
    checks: Arc<str>,
    outcome: Box<Outcome>,
}

/// What one proof found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Proven with the rest, and only then.
    pub(crate) signed_at: Option<UnixMillis>,
    /// Of `signed_at`.
    pub(crate) tolerance: Option<Duration>,
    pub(crate) replay_keys: Vec<[u8; 32]>,
    /// The first of this proof's own secrets that matched.
    pub(crate) secret_used: Option<usize>,
    /// What a token said, proven with the rest.
    pub(crate) claims: Option<jwt::Object>,
    /// A page to be asked for once, which confirms a subscription; allowed by the proof's own rule.
    pub(crate) visit: Option<Arc<str>>,
}

/// What all proofs found, and what the body is about.
#[derive(Debug, Default)]
struct Outcome {
    /// Of several proofs, the time of the one that passes longest.
    signed_at: Option<UnixMillis>,
    tolerance: Option<Duration>,
    replay_keys: Vec<[u8; 32]>,
    /// Some of the keys are of a proof that never grows old.
    ageless: bool,
    secrets_used: [Option<usize>; MAX_PROOFS + 3],
    claims: Option<jwt::Object>,
    event_id: Option<String>,
    event_id_is_signed: bool,
    event_type: Option<String>,
    challenge: Option<Reply>,
    visit: Option<Arc<str>>,
}

/// Not proven. Gives the delivery back, for a source in observe mode.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) delivery: Box<Delivery>,
    pub(crate) refusal: Refusal,
    pub(crate) note: &'static str,
    /// Worth fetching; with it the same delivery may be judged otherwise.
    pub(crate) wanted: Option<Wanted>,
    /// A signature that no live key made, and nothing else: under the right secret the same delivery would have been
    /// proven at the same moment.
    pub(crate) only_signature: bool,
}

impl Verifier {
    pub(crate) fn build(settings: Settings) -> Result<Self, BuildError> {
        let Settings { label, scheme, mut proofs, handshakes, only_json, awaits_key, .. } = settings;
        let Settings { basic, bearer, token, id, event, public_url, document, replay, .. } = settings;
        let credentials = Credentials::build(basic, bearer, token)?;
        let mut captured = None;
        if let Some(scheme) = scheme {
            if awaits_key {
                let awaited = Arc::new(Captured::build(scheme, label)?);
                proofs.insert(0, awaited.clone());
                captured = Some(awaited);
            } else {
                proofs.insert(0, Arc::new(Prover::build(scheme, label)?));
            }
        }
        if proofs.len() > MAX_PROOFS {
            return Err(BuildError::TooManyProofs { most: MAX_PROOFS });
        }
        let signs_body = proofs.iter().any(|proof| proof.coverage() == Coverage::Whole);
        handshakes.iter().try_for_each(Handshake::check)?;
        let (handshakes, unsigned): (Vec<_>, Vec<_>) = handshakes.into_iter().partition(|handshake| handshake.signed);
        // Whoever knows a password or token is no stranger; whoever saw one signature may be.
        let known = signs_body || !credentials.is_empty();
        if !known && (handshakes.iter().any(Handshake::echoes) || !handshakes.is_empty() && proofs.is_empty()) {
            return Err(BuildError::HandshakeNotSigned);
        }
        let unsigned = handshake::Unsigned::new(unsigned).map_err(BuildError::NotAPointer)?;

        let mut pointers = Pointers::default();
        let locators = id.iter().chain(&event).filter_map(|locator| match locator {
            Locator::Json(pointer) => Some(pointer.as_str()),
            Locator::Header(_)
            | Locator::Query(_)
            | Locator::Form(_)
            | Locator::FormJson { .. }
            | Locator::Claim { .. } => None,
        });
        let proving = proofs.iter().flat_map(|proof| proof.pointers()).chain(credentials.pointer());
        let proving = proving.chain(replay.iter().flat_map(Template::json_pointers));
        if replay.iter().any(|it| it.uses_timestamp() || it.uses_pairs() || it.secrets() > 0) {
            return Err(BuildError::ReplayOfSignature);
        }
        for pointer in locators.chain(proving).chain(handshakes.iter().flat_map(Handshake::pointers)) {
            pointers.add(pointer).map_err(|_| BuildError::NotAPointer(pointer.to_owned()))?;
        }
        let pointers = if signs_body { pointers } else { pointers.in_any_case() };
        let names = proofs.iter().map(|proof| proof.name());
        let names: Vec<Arc<str>> = names.chain(credentials.names().map(Arc::from)).collect();
        let checks = names.join(", ").into();
        let partly = proofs.iter().filter(|proof| proof.coverage() != Coverage::Whole);
        let places = partly.flat_map(|proof| proof.places());
        let credential_headers = credentials.header().cloned().into_iter().chain(places).collect();
        let reads_json = proofs.iter().any(|proof| proof.reads_json()) || credentials.pointer().is_some();
        Ok(Self {
            proofs,
            reads_json,
            handshakes,
            unsigned,
            captured,
            only_json,
            credentials,
            id,
            event,
            public_url,
            document,
            replay,
            pointers,
            checks,
            credential_headers,
        })
    }

    pub(crate) fn judge(
        &self,
        delivery: impl Into<Box<Delivery>>,
        now: UnixMillis,
        library: &dyn Library,
    ) -> Result<Verified, Refused> {
        let delivery = delivery.into();
        match self.examine(&delivery, now, library) {
            Ok(outcome) => Ok(Verified { delivery, checks: self.checks.clone(), outcome: Box::new(outcome) }),
            Err(Failure { fault: Fault { refusal, note }, wanted, only_signature }) => {
                Err(Refused { delivery, refusal, note, wanted, only_signature })
            }
        }
    }

    /// Is a request of this method let in, that the source does not take, for what a handshake of its kind could be?
    pub(crate) fn admits(&self, method: &Method, headers: &Fields, query: Option<&str>) -> bool {
        self.unsigned.admits(method, headers, query)
    }

    /// Is judging it work for more than its own size, for what it unpacks to is signed?
    pub(crate) fn inflates(&self, delivery: &Delivery) -> bool {
        self.document.inflates(delivery)
    }

    /// Can a delivery's event type be known?
    pub(crate) fn knows_events(&self) -> bool {
        !self.event.is_empty()
    }

    /// The event type that a request states. Of one that was not proven it is hearsay.
    pub(crate) fn stated_event(&self, delivery: &Delivery) -> Option<String> {
        let in_body = self.event.iter().any(|locator| matches!(locator, Locator::Json(_)));
        let json = if in_body { self.document.read(delivery, &self.pointers) } else { Json::default() };
        self.event.iter().find_map(|locator| locator.find(delivery, &json, None).ok().flatten())
    }

    /// What the document in a delivery says at the pointers.
    pub(crate) fn look_up(&self, delivery: &Delivery, pointers: &Pointers) -> Json {
        if pointers.is_empty() { Json::default() } else { self.document.read(delivery, pointers) }
    }

    /// A secret that a sender is to bring is not here yet.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.captured.as_ref().is_some_and(|captured| captured.is_awaited())
    }

    /// The question that an unproven request is, if it is one.
    pub(crate) fn ask(&self, delivery: &Delivery) -> Option<Asked> {
        self.unsigned.ask(delivery, self.is_awaiting())
    }

    /// Takes the secret that the source waited for as its key.
    pub(crate) fn install(&self, secret: &Secret) -> Result<(), KeyError> {
        self.captured.as_ref().map_or(Ok(()), |captured| captured.install(secret))
    }

    /// The headers in which a sender presents what whoever reads it could present again with a body of his own: a
    /// token, or a proof that does not stand for the whole body.
    pub(crate) fn credential_headers(&self) -> Vec<http::HeaderName> {
        self.credential_headers.clone()
    }

    /// Passwords and tokens can be guessed, so that failures must be throttled before they are judged.
    pub(crate) fn is_guessable(&self) -> bool {
        !self.credentials.is_empty() || self.proofs.iter().any(|proof| proof.is_guessable())
    }

    /// A token of its own is no signature.
    pub(crate) fn has_signature(&self) -> bool {
        self.proofs.iter().any(|proof| !proof.is_guessable())
    }

    /// Is there a proof that tells when its signature alone is amiss?
    pub(crate) fn tells_signature_alone(&self) -> bool {
        self.proofs.iter().any(|proof| proof.tells_signature_alone())
    }

    /// Does a signature stand for the time? One that does not proves nothing, and `check` says so.
    pub(crate) fn signs_time(&self) -> bool {
        self.proofs.iter().any(|proof| proof.signs_time())
    }

    /// Can a replay be told? Only where the signature stands for the whole body, or no proof is made twice.
    pub(crate) fn has_replay_keys(&self) -> bool {
        self.replay.is_some() || self.proofs.iter().any(|proof| proof.replay_keys_each() > 0)
    }

    /// How many keys one delivery claims: a MAC under each live secret, or one digest.
    pub(crate) fn replay_keys_each(&self) -> usize {
        let of_proofs = self.proofs.iter().map(|proof| proof.replay_keys_each()).sum::<usize>();
        (of_proofs + usize::from(self.replay.is_some())).max(1)
    }

    /// Is what tells a replay signed, so that nobody can write another? Where a signed message tells it, it is.
    pub(crate) fn replay_is_signed(&self) -> bool {
        let public_url = self.public_url.as_deref();
        let covers = |locator: &Locator| self.proofs.iter().any(|proof| proof.covers(locator, public_url));
        let by_message = self.proofs.iter().any(|proof| proof.replay_keys_each() > 0);
        let parts = self.replay.as_ref().map(Template::locators).unwrap_or_default();
        by_message || !parts.is_empty() && parts.iter().all(covers)
    }

    /// Does an id that can be one of this source's stand for what was signed?
    pub(crate) fn id_is_signed(&self) -> bool {
        let public_url = self.public_url.as_deref();
        let covers = |locator: &Locator| self.proofs.iter().any(|proof| proof.covers(locator, public_url));
        !self.id.is_empty() && self.id.iter().all(covers)
    }

    /// Does a signature stand for what is found there?
    pub(crate) fn signs(&self, locator: &Locator) -> bool {
        self.proofs.iter().any(|proof| proof.covers(locator, self.public_url.as_deref()))
    }

    /// Wherever the event's type may stand.
    pub(crate) fn signs_events(&self) -> bool {
        self.event.iter().all(|locator| self.signs(locator))
    }

    /// What of the body all the proofs together stand for.
    pub(crate) fn coverage(&self) -> Coverage {
        self.proofs.iter().map(|proof| proof.coverage()).max().unwrap_or(Coverage::Nothing)
    }

    /// Of the signed time.
    pub(crate) fn tolerance(&self) -> Option<Duration> {
        self.proofs.iter().find(|proof| proof.signs_time())?.tolerance()
    }

    fn examine(&self, delivery: &Delivery, now: UnixMillis, library: &dyn Library) -> Result<Outcome, Failure> {
        let mut json = if self.reads_json { self.document.read(delivery, &self.pointers) } else { Json::default() };
        let credentials = self.credentials.judge(delivery, &json);
        let mut outcome = Outcome::default();
        let mut failure = None;
        let mut only_signature = credentials.is_ok() && !self.is_no_json(delivery);
        let mut listed_before = 0;
        let question = Question { delivery, json: &json, public_url: self.public_url.as_deref(), now, library };
        // All of them, whatever the first says.
        for (proof, used) in self.proofs.iter().zip(&mut outcome.secrets_used) {
            match proof.examine(&question) {
                Ok(findings) => {
                    *used = findings.secret_used.map(|position| listed_before + position);
                    outcome.claims = outcome.claims.take().or(findings.claims);
                    outcome.visit = outcome.visit.or(findings.visit);
                    // The proofs of two deliveries can be put together: each must be remembered as long as it passes.
                    let ends =
                        |at: Option<UnixMillis>, wait: Option<Duration>| Some(at?.after(wait.unwrap_or_default()));
                    if ends(findings.signed_at, findings.tolerance) > ends(outcome.signed_at, outcome.tolerance) {
                        outcome.signed_at = findings.signed_at;
                        outcome.tolerance = findings.tolerance;
                    }
                    outcome.ageless |= findings.signed_at.is_none() && !findings.replay_keys.is_empty();
                    if outcome.replay_keys.is_empty() {
                        outcome.replay_keys = findings.replay_keys;
                    } else {
                        outcome.replay_keys.extend(findings.replay_keys);
                    }
                }
                Err(failed) => {
                    only_signature &= failed.only_signature;
                    // A stranger must not make us fetch what cannot help him: what is final is told first.
                    let is_final = failure.as_ref().is_some_and(|kept: &Failure| kept.wanted.is_none());
                    if failure.is_none() || (!is_final && failed.wanted.is_none()) {
                        failure = Some(failed);
                    }
                }
            }
            listed_before += proof.secrets();
        }
        let credentials = match (failure, credentials) {
            (Some(Failure { wanted: Some(_), .. }), Err(fault)) => return Err(fault.into()),
            (Some(failure), _) => {
                let failure = failure.or_not_awaited(|| self.unsigned.brings_a_secret(delivery));
                return Err(Failure { only_signature, ..failure });
            }
            (None, credentials) => credentials?,
        };
        if self.is_no_json(delivery) {
            let note = "a handshake of this source applies its key to texts of this form for anybody";
            return Err(Fault { refusal: Refusal::NotCovered, note }.into());
        }
        for (used, position) in outcome.secrets_used.iter_mut().skip(self.proofs.len()).zip(credentials) {
            *used = position.map(|position| listed_before + position);
        }
        // From here on the sender is known; only now is its body parsed, unless the signature itself lay in there.
        if !self.reads_json && !self.pointers.is_empty() {
            json = self.document.read(delivery, &self.pointers);
        }
        if let Some(replay) = &self.replay {
            outcome.replay_keys.push(self.replay_key(replay, delivery, &json)?);
        }
        self.read_names(&mut outcome, delivery, &json)?;
        if outcome.visit.is_some() {
            let (status, body) = (http::StatusCode::OK, bytes::Bytes::new());
            outcome.challenge = Some(Reply { status, content_type: None, headers: Vec::new(), body });
        }
        Ok(outcome)
    }

    /// Space before it makes no difference: what a handshake signs has no bracket anywhere.
    fn is_no_json(&self, delivery: &Delivery) -> bool {
        self.only_json && !matches!(delivery.body.trim_ascii_start().first(), Some(b'{' | b'['))
    }

    /// Whoever leaves out what tells deliveries apart is not let in without.
    fn replay_key(&self, replay: &Template, delivery: &Delivery, json: &Json) -> Result<[u8; 32], Fault> {
        let facts = Facts {
            delivery,
            public_url: self.public_url.as_deref(),
            timestamp: None,
            pairs: &[],
            json,
            body: None,
            url_form: UrlForm::AsIs,
        };
        let rendered = replay.render(&facts);
        let empty = rendered.pieces.iter().all(|piece| piece.is_empty());
        if !rendered.complete || empty {
            let note = "what tells a replay is missing from the request, or there twice";
            return Err(Fault { refusal: Refusal::Malformed, note });
        }
        let mut digest = Sha256::new().chain_update(b"replay");
        for piece in &rendered.pieces {
            digest.update(piece);
        }
        Ok(digest.finalize().into())
    }

    fn read_names(&self, outcome: &mut Outcome, delivery: &Delivery, json: &Json) -> Result<(), Fault> {
        for locator in &self.event {
            outcome.event_type = locator.find(delivery, json, outcome.claims.as_ref())?;
            if outcome.event_type.is_some() {
                break;
            }
        }
        for locator in &self.id {
            outcome.event_id = locator.find(delivery, json, outcome.claims.as_ref())?;
            if outcome.event_id.is_some() {
                let public_url = self.public_url.as_deref();
                outcome.event_id_is_signed = self.proofs.iter().any(|proof| proof.covers(locator, public_url));
                break;
            }
        }
        let asking = handshake::Asking::of(delivery, json);
        if let Some(handshake) = self.handshakes.iter().find(|handshake| handshake.recognises(&asking)) {
            outcome.challenge = Some(handshake.grant(&asking)?.reply);
        }
        Ok(())
    }
}

impl Verified {
    pub(crate) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(crate) fn into_delivery(self) -> Delivery {
        *self.delivery
    }

    /// The names of the proofs that passed: all that are configured, with commas between them.
    pub(crate) fn checks(&self) -> &Arc<str> {
        &self.checks
    }

    /// The stated time, only where the signature covers it; another proves nothing.
    pub(crate) fn signed_at(&self) -> Option<UnixMillis> {
        self.outcome.signed_at
    }

    /// Of the signed time: `None` when there is none.
    pub(crate) fn tolerance(&self) -> Option<Duration> {
        self.outcome.tolerance
    }

    /// A part of what stands for the message was signed without a time, and passes at any age.
    pub(crate) fn is_ageless_in_part(&self) -> bool {
        self.outcome.ageless
    }

    /// What stands for the signed message, to be claimed together; empty where the signature does not stand for the
    /// whole body.
    pub(crate) fn replay_keys(&self) -> &[[u8; 32]] {
        &self.outcome.replay_keys
    }

    pub(crate) fn event_id(&self) -> Option<&str> {
        self.outcome.event_id.as_deref()
    }

    pub(crate) fn event_id_is_signed(&self) -> bool {
        self.outcome.event_id_is_signed
    }

    pub(crate) fn event_type(&self) -> Option<&str> {
        self.outcome.event_type.as_deref()
    }

    /// The first listed secret that matched: the signature's, or that of the token, bearer or basic credentials.
    pub(crate) fn secrets_used(&self) -> impl Iterator<Item = usize> {
        self.outcome.secrets_used.into_iter().flatten()
    }

    /// To be visited before the handshake is answered; it was confirmed only when that succeeds.
    pub(crate) fn visit(&self) -> Option<&str> {
        self.outcome.visit.as_deref()
    }

    /// A handshake, which the gateway answers and does not forward.
    pub(crate) fn challenge(&self) -> Option<&Reply> {
        self.outcome.challenge.as_ref()
    }
}
