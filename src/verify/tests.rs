//! The promises of `judge`, each with its twin that passes; and `sign` against `judge`.

use crate::fields::Fields;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::samples::{discord, github, shopify, slack, standard_webhooks, stripe};
use super::*;
use crate::fetched::{NamedBy, NoLibrary};

const NOW: UnixMillis = UnixMillis(1_760_000_000_000);
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn draft(body: &[u8]) -> Delivery {
    Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: Some("a=1".into()),
        headers: Fields::new(),
        body: Bytes::copy_from_slice(body),
    }
}

fn signed(settings: &Settings, body: &[u8], at: UnixMillis) -> Delivery {
    signed_by(&Verifier::build(settings.clone()).unwrap(), draft(body), at)
}

fn signed_by(verifier: &Verifier, delivery: Delivery, at: UnixMillis) -> Delivery {
    let private = Secret::new(SEED.into());
    verifier.sign(delivery, "msg_1", at, Some(&private)).unwrap().delivery
}

fn judge(settings: &Settings, delivery: &Delivery) -> Result<Verified, Refusal> {
    let verifier = Verifier::build(settings.clone()).unwrap();
    verifier.judge(delivery.clone(), NOW, &NoLibrary).map_err(|refused| refused.refusal)
}

fn refusal(settings: &Settings, delivery: &Delivery) -> Option<Refusal> {
    judge(settings, delivery).err()
}

fn presets() -> [Settings; 6] {
    let whsec = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
    [github(&["s"]), stripe(&["s"]), slack(&["s"]), shopify(&["s"]), standard_webhooks(&whsec), discord(&[PUBLIC])]
}

fn signature_header(settings: &Settings) -> HeaderName {
    match &settings.scheme.as_ref().unwrap().signature.place {
        Place::Header(names) => names[0].clone(),
        other => panic!("{other:?}"),
    }
}

fn set(delivery: &mut Delivery, name: &HeaderName, value: &str) {
    delivery.headers.insert(name, HeaderValue::from_str(value).unwrap());
}

fn text<'a>(delivery: &'a Delivery, name: &HeaderName) -> &'a str {
    delivery.headers[name].to_str().unwrap()
}

#[test]
fn what_sign_makes_judge_accepts_and_a_changed_body_it_refuses() {
    for settings in presets() {
        let mut delivery = signed(&settings, br#"{"id":"evt_1","type":"a.b"}"#, NOW);
        let verified = judge(&settings, &delivery).unwrap();
        assert_eq!(verified.checks(), &settings.label);
        assert_eq!(verified.delivery().body, delivery.body);
        delivery.body = Bytes::from_static(br#"{"id":"evt_2","type":"a.b"}"#);
        assert_eq!(refusal(&settings, &delivery), Some(Refusal::BadSignature), "{}", settings.label);
    }
}

#[test]
fn a_refusal_gives_the_delivery_back() {
    let verifier = Verifier::build(github(&["s"])).unwrap();
    let refused = verifier.judge(draft(b"kept"), NOW, &NoLibrary).unwrap_err();
    assert_eq!((refused.refusal, &refused.delivery.body[..]), (Refusal::MissingSignature, &b"kept"[..]));
}

#[test]
fn an_old_secret_is_accepted_and_says_so() {
    let delivery = signed(&github(&["old"]), b"{}", NOW);
    let verified = judge(&github(&["new", "old"]), &delivery).unwrap();
    assert_eq!(verified.secrets_used().collect::<Vec<_>>(), [1]);
    assert_eq!(refusal(&github(&["new"]), &delivery), Some(Refusal::BadSignature));
}

#[test]
fn the_replay_key_is_of_the_message_and_not_of_its_spelling() {
    let settings = stripe(&["one", "two"]);
    let name = signature_header(&settings);
    let delivery = signed(&settings, b"{}", NOW);
    let original = judge(&settings, &delivery).unwrap().replay_keys().to_vec();
    assert_eq!(original.len(), 2);

    let presented = text(&delivery, &name).to_owned();
    let (stamp, mac) = presented.split_once(",v1=").unwrap();
    let under_two = signed(&stripe(&["two"]), b"{}", NOW);
    for spelling in [
        format!("{stamp},v1={}", mac.to_uppercase()),
        format!("v1={mac}, {stamp}"),
        format!("{presented},v1={},v0=x", "00".repeat(32)),
        text(&under_two, &name).to_owned(),
    ] {
        let mut copy = delivery.clone();
        set(&mut copy, &name, &spelling);
        copy.headers.insert("x-unsigned", HeaderValue::from_static("changed"));
        assert_eq!(judge(&settings, &copy).unwrap().replay_keys(), original, "{spelling}");
    }
    let later = signed(&settings, b"{}", UnixMillis(NOW.0 + 1000));
    assert!(!judge(&settings, &later).unwrap().replay_keys().iter().any(|key| original.contains(key)));
}

#[test]
fn missing_padding_is_the_same_signature() {
    let settings = shopify(&["s"]);
    let name = signature_header(&settings);
    let mut delivery = signed(&settings, b"{}", NOW);
    let keys = judge(&settings, &delivery).unwrap().replay_keys().to_vec();
    let bare = text(&delivery, &name).trim_end_matches('=').to_owned();
    set(&mut delivery, &name, &bare);
    assert_eq!(judge(&settings, &delivery).unwrap().replay_keys(), keys);
}

#[test]
fn a_proof_that_does_not_cover_the_body_is_no_replay_key_unless_it_is_single_use() {
    let mut settings = slack(&["s"]);
    settings.handshakes.clear();
    for (message, single_use, keys) in [
        ("{timestamp}.{body|sha256|hex}", false, 1),
        ("{timestamp}.{body|crc32}", false, 0),
        ("{timestamp}", false, 0),
        ("{timestamp}", true, 1),
    ] {
        let mut settings = settings.clone();
        let scheme = settings.scheme.as_mut().unwrap();
        scheme.message = Template::parse(message).unwrap();
        scheme.single_use = single_use;
        let delivery = signed(&settings, b"{}", NOW);
        assert_eq!(judge(&settings, &delivery).unwrap().replay_keys().len(), keys, "{message}");
    }
}

#[test]
fn the_window_is_judged_after_the_signature_and_on_both_sides() {
    let settings = slack(&["s"]);
    let at = |offset: i64| UnixMillis(NOW.0.checked_add_signed(offset * 1000).unwrap());
    for inside in [-300, 0, 300] {
        let verified = judge(&settings, &signed(&settings, b"{}", at(inside))).unwrap();
        assert_eq!(verified.signed_at(), Some(at(inside)));
        assert_eq!(verified.tolerance(), Some(Duration::from_secs(300)));
    }
    for outside in [-301, 301] {
        let mut delivery = signed(&settings, b"{}", at(outside));
        assert_eq!(refusal(&settings, &delivery), Some(Refusal::Stale));
        delivery.body = Bytes::from_static(b"forged");
        assert_eq!(refusal(&settings, &delivery), Some(Refusal::BadSignature));
    }
}

#[test]
fn a_time_that_is_not_signed_is_judged_but_proves_nothing() {
    let mut settings = slack(&["s"]);
    let stamp = HeaderName::from_static("x-slack-request-timestamp");
    let scheme = settings.scheme.as_mut().unwrap();
    scheme.message = Template::parse("{body}").unwrap();
    let mut delivery = signed(&settings, b"{}", NOW);
    let verified = judge(&settings, &delivery).unwrap();
    assert_eq!((verified.signed_at(), verified.tolerance()), (None, None));
    set(&mut delivery, &stamp, "1");
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::Stale));
    delivery.headers.remove(&stamp);
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::MissingTimestamp));
}

#[test]
fn a_required_header_stands_there_once_and_says_something() {
    let mut settings = github(&["s"]);
    settings.scheme.as_mut().unwrap().required_headers = vec![HeaderName::from_static("x-version")];
    let mut delivery = signed(&settings, b"{}", NOW);
    assert_eq!(refusal(&settings, &delivery), None);
    set(&mut delivery, &HeaderName::from_static("x-version"), "");
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::MalformedSignature));
    delivery.headers.remove("x-version");
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::MissingSignature));
}

#[test]
fn doubled_headers_are_refused() {
    let settings = standard_webhooks(&["whsec_AAEC"]);
    let delivery = signed(&settings, b"{}", NOW);
    for (name, expected) in [
        ("webhook-signature", Refusal::MalformedSignature),
        ("webhook-timestamp", Refusal::MalformedTimestamp),
        ("webhook-id", Refusal::MalformedSignature),
    ] {
        let mut doubled = delivery.clone();
        doubled.headers.append(name, delivery.headers[name].clone());
        assert_eq!(refusal(&settings, &doubled), Some(expected), "{name}");
    }
    let settings = github(&["s"]);
    let mut doubled = signed(&settings, b"{}", NOW);
    doubled.headers.append("x-github-delivery", HeaderValue::from_static("msg_2"));
    assert_eq!(refusal(&settings, &doubled), Some(Refusal::Malformed));
    doubled.body = Bytes::from_static(b"forged");
    assert_eq!(refusal(&settings, &doubled), Some(Refusal::BadSignature));
}

#[test]
fn a_doubled_header_does_not_make_its_segment_vanish() {
    let mut settings = github(&["s"]);
    settings.scheme.as_mut().unwrap().message = Template::parse("[[{header:x-tenant}.]]{body}").unwrap();
    let mut delivery = signed(&settings, b"{}", NOW);
    assert_eq!(refusal(&settings, &delivery), None);
    delivery.headers.append("x-tenant", HeaderValue::from_static("a"));
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::BadSignature));
    delivery.headers.append("x-tenant", HeaderValue::from_static("b"));
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::MalformedSignature));
}

#[test]
fn ids_are_signed_where_the_signature_covers_them() {
    let body = br#"{"id":"evt_1","type":"a.b","event_id":"Ev1"}"#;
    let named = |settings: &Settings| {
        let mut draft = draft(body);
        draft.headers.insert("x-github-event", HeaderValue::from_static("push"));
        let delivery = signed_by(&Verifier::build(settings.clone()).unwrap(), draft, NOW);
        let verified = judge(settings, &delivery).unwrap();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        (owned(verified.event_id()), verified.event_id_is_signed(), owned(verified.event_type()))
    };
    let expected = |id: &str, signed: bool, kind: &str| (Some(id.to_owned()), signed, Some(kind.to_owned()));
    assert_eq!(named(&stripe(&["s"])), expected("evt_1", true, "a.b"));
    assert_eq!(named(&slack(&["s"])), expected("Ev1", true, "a.b"));
    assert_eq!(named(&standard_webhooks(&["whsec_AAEC"])), expected("msg_1", true, "a.b"));
    assert_eq!(named(&github(&["s"])), expected("msg_1", false, "push"));
}

#[test]
fn a_handshake_is_recognised_only_when_it_is_signed_and_fresh() {
    let settings = slack(&["s"]);
    let body = br#"{"type":"url_verification","challenge":"abc123"}"#;
    let verified = judge(&settings, &signed(&settings, body, NOW)).unwrap();
    assert_eq!(verified.challenge().map(|reply| &reply.body[..]), Some(&b"abc123"[..]));
    assert_eq!(refusal(&settings, &draft(body)), Some(Refusal::MissingSignature));
    assert_eq!(refusal(&settings, &signed(&slack(&["x"]), body, NOW)), Some(Refusal::BadSignature));
    assert_eq!(refusal(&settings, &signed(&settings, body, UnixMillis(0))), Some(Refusal::Stale));
    let oracle = br#"{"type":"url_verification","challenge":"<script>"}"#;
    assert_eq!(refusal(&settings, &signed(&settings, oracle, NOW)), Some(Refusal::Malformed));
}

#[test]
fn a_discord_webhook_event_is_not_taken_for_a_ping() {
    let settings = discord(&[PUBLIC]);
    let answered = |body: &[u8]| {
        let verified = judge(&settings, &signed(&settings, body, NOW)).unwrap();
        verified.challenge().map(|reply| (reply.status.as_u16(), reply.body.clone()))
    };
    assert_eq!(answered(br#"{"type":1}"#), Some((200, Bytes::from_static(br#"{"type":1}"#))));
    assert_eq!(answered(br#"{"type":0}"#), Some((204, Bytes::new())));
    assert_eq!(answered(br#"{"type":1,"event":{"type":"ENTITLEMENT_CREATE"}}"#), None);
    assert_eq!(answered(br#"{"type":2}"#), None);
}

#[test]
fn all_configured_proofs_must_pass() {
    let mut settings = github(&["s"]);
    let header = HeaderName::from_static("x-token");
    settings.bearer = Some(vec![Secret::new(b"b".to_vec())]);
    settings.token =
        Some(Token { place: TokenPlace::Header(header.clone()), secrets: vec![Secret::new(b"t".to_vec())] });
    let delivery = signed(&settings, b"{}", NOW);
    let verified = judge(&settings, &delivery).unwrap();
    assert_eq!(&**verified.checks(), "github, bearer, token");

    let mut without = delivery.clone();
    without.headers.remove("x-hub-signature-256");
    assert_eq!(refusal(&settings, &without), Some(Refusal::MissingSignature));
    let mut without = delivery.clone();
    without.headers.remove(&header);
    assert_eq!(refusal(&settings, &without), Some(Refusal::MissingCredentials));
    let mut wrong = delivery;
    set(&mut wrong, &http::header::AUTHORIZATION, "Bearer c");
    assert_eq!(refusal(&settings, &wrong), Some(Refusal::BadCredentials));
}

#[test]
fn a_signed_url_is_the_one_the_provider_was_told() {
    let mut settings = github(&["s"]);
    settings.scheme.as_mut().unwrap().message = Template::parse("{method}{url}{body}").unwrap();
    settings.public_url = Some("https://public.example.com/hook".into());
    let mut delivery = signed(&settings, b"{}", NOW);
    delivery.authority = "internal:8080".into();
    delivery.scheme = "http";
    assert_eq!(refusal(&settings, &delivery), None);
    delivery.query = Some("a=2".into());
    assert_eq!(refusal(&settings, &delivery), Some(Refusal::BadSignature));
}

#[test]
fn settings_that_would_fail_open_do_not_build() {
    let built = |change: &dyn Fn(&mut Settings)| {
        let mut settings = slack(&["s"]);
        change(&mut settings);
        Verifier::build(settings).err()
    };
    let build = |change: &dyn Fn(&mut Scheme)| built(&|settings| change(settings.scheme.as_mut().unwrap()));
    assert_eq!(build(&|_| {}), None);
    assert_eq!(build(&|scheme| scheme.keys.clear()), Some(BuildError::NoKeys));
    assert_eq!(build(&|scheme| scheme.timestamp = None), Some(BuildError::NoTimestamp));
    let unmarked = |settings: &mut Settings| settings.handshakes[0].when.clear();
    assert_eq!(built(&unmarked), Some(BuildError::HandshakeMatchesEverything));
    let unsigned = |scheme: &mut Scheme| scheme.message = Template::parse("{timestamp}").unwrap();
    assert_eq!(build(&unsigned), Some(BuildError::HandshakeNotSigned));
    let misplaced = |scheme: &mut Scheme| scheme.timestamp.as_mut().unwrap().place = TimestampPlace::Pair("t".into());
    assert_eq!(build(&misplaced), Some(BuildError::TimestampLayout { expected: "pairs" }));
    let nowhere = |scheme: &mut Scheme| scheme.signature.place = Place::Header(Vec::new());
    assert_eq!(build(&nowhere), Some(BuildError::NoSignatureHeader));
}

#[test]
fn a_public_key_scheme_signs_only_with_its_own_private_key() {
    let verifier = Verifier::build(discord(&[PUBLIC])).unwrap();
    let sign = |private: Option<&str>| {
        let private = private.map(|text| Secret::new(text.into()));
        verifier.sign(draft(b"{}"), "id", NOW, private.as_ref()).map(|draft| draft.added.len()).err()
    };
    assert_eq!(sign(None), Some(SignError::NeedsPrivateKey));
    assert_eq!(sign(Some("short")), Some(SignError::BadPrivateKey));
    assert_eq!(sign(Some(&"11".repeat(32))), Some(SignError::OtherPrivateKey));
    assert_eq!(sign(Some(SEED)), None);
}

#[test]
fn a_signature_is_made_where_the_scheme_puts_it() {
    for (place, header, query) in [
        (Place::Header(vec![HeaderName::from_static("sig")]), Some("sig"), false),
        (Place::EveryHeader(vec![HeaderName::from_static("sig-1")]), Some("sig-1"), false),
        (Place::Query("sig".into()), None, true),
    ] {
        let mut settings = github(&["s"]);
        settings.scheme.as_mut().unwrap().signature.place = place;
        let verifier = Verifier::build(settings).unwrap();
        let signed = verifier.sign(draft(b"{}"), "id", NOW, None).unwrap().delivery;
        assert_eq!(header.is_some_and(|name| signed.headers.contains_key(name)), header.is_some());
        assert_eq!(signed.query.as_deref().is_some_and(|text| text.contains("sig=sha256")), query);
        assert_eq!(verifier.judge(signed, NOW, &NoLibrary).err().map(|refused| refused.refusal), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_signed_is_accepted_and_no_bit_can_be_flipped(
        which in 0..6usize,
        body in prop::collection::vec(any::<u8>(), 1..200),
        position in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let settings = &presets()[which];
        let delivery = signed(settings, &body, NOW);
        prop_assert_eq!(refusal(settings, &delivery), None);

        let mut changed = body.clone();
        *position.get_mut(&mut changed) ^= 1 << bit;
        let mut tampered = delivery.clone();
        tampered.body = changed.into();
        prop_assert_eq!(refusal(settings, &tampered), Some(Refusal::BadSignature));
    }

    #[test]
    fn no_character_of_the_proof_can_be_changed(
        which in 0..6usize,
        position in any::<prop::sample::Index>(),
        replacement in "[0-9a-zA-Z+/=,. -]",
    ) {
        let settings = &presets()[which];
        let delivery = signed(settings, b"{}", NOW);
        let keys = judge(settings, &delivery).unwrap().replay_keys().to_vec();
        let scheme = settings.scheme.as_ref().unwrap();
        let mut names = vec![signature_header(settings)];
        if let Some(Timestamp { place: TimestampPlace::Header(name), .. }) = &scheme.timestamp {
            names.push(name.clone());
        }
        for name in names {
            let mut value = text(&delivery, &name).to_owned();
            let at = position.index(value.len());
            value.replace_range(at..=at, &replacement);
            let mut tampered = delivery.clone();
            set(&mut tampered, &name, &value);
            // Another spelling of the very same proof may pass: upper-case hex, padding cut off. It is no new message.
            match judge(settings, &tampered) {
                Ok(verified) => prop_assert_eq!(verified.replay_keys(), &keys),
                Err(refusal) => prop_assert!(refusal.is_unproven()),
            }
        }
    }

    #[test]
    fn no_header_makes_judge_panic(
        which in 0..6usize,
        signature in prop::collection::vec(0x20..=0xffu8, 0..80),
        stamp in prop::collection::vec(0x20..=0xffu8, 0..20),
    ) {
        let settings = &presets()[which];
        let mut delivery = draft(b"{}");
        for (name, bytes) in [(signature_header(settings), &signature), ("x-slack-request-timestamp".parse().unwrap(), &stamp)] {
            if let Ok(value) = HeaderValue::from_bytes(bytes) {
                delivery.headers.insert(name, value);
            }
        }
        prop_assert!(refusal(settings, &delivery).is_some_and(Refusal::is_unproven));
    }
}

#[derive(Clone, Copy)]
enum Says {
    Yes,
    /// Signed now, and good for so long; or signed without a time.
    Signed(Option<Duration>),
    No(Refusal),
    /// A signature that no key made, and nothing else.
    OtherKey,
    Wants,
}

impl Proof for Says {
    fn name(&self) -> Arc<str> {
        "says".into()
    }

    fn examine(&self, _question: &Question<'_>) -> Result<Findings, Failure> {
        match *self {
            Self::Yes => Ok(Findings { secret_used: Some(0), ..Findings::default() }),
            Self::Signed(good_for) => Ok(Findings {
                signed_at: good_for.map(|_| NOW),
                tolerance: good_for,
                replay_keys: vec![[7; 32]],
                ..Findings::default()
            }),
            Self::No(refusal) => Err(Fault { refusal, note: "no" }.into()),
            Self::OtherKey => Err(Failure::of_signature_alone("no")),
            Self::Wants => Err(Failure::wanting(Wanted {
                url: "https://keys.example.com/".into(),
                newer_than: None,
                named_by: NamedBy::Configuration,
            })),
        }
    }

    fn tolerance(&self) -> Option<Duration> {
        None
    }

    fn replay_keys_each(&self) -> usize {
        0
    }

    fn secrets(&self) -> usize {
        1
    }

    fn coverage(&self) -> Coverage {
        Coverage::Nothing
    }

    fn covers(&self, _locator: &Locator, _public_url: Option<&str>) -> bool {
        false
    }

    fn sign(&self, _draft: &mut Draft, _signing: &sign::Signing<'_>) -> Result<(), SignError> {
        Ok(())
    }
}

/// Whoever captured two deliveries can send the lasting proof of the one with the young proof of the other.
#[test]
fn of_several_proofs_the_one_that_passes_longest_says_how_long_a_delivery_is_remembered() {
    let (short, long) = (Duration::from_secs(60), Duration::from_secs(3600));
    let judged = |base: Settings, says: &[Option<Duration>]| {
        let proofs = says.iter().map(|good_for| Arc::new(Says::Signed(*good_for)) as Arc<dyn Proof>).collect();
        let settings = Settings { proofs, ..base };
        let verified = judge(&settings, &signed(&settings, b"{}", NOW)).unwrap();
        (verified.tolerance(), verified.is_ageless_in_part())
    };
    let five_minutes = Some(Duration::from_secs(300));
    assert_eq!(judged(slack(&["s"]), &[]), (five_minutes, false));
    assert_eq!(judged(slack(&["s"]), &[Some(short)]), (five_minutes, false));
    assert_eq!(judged(slack(&["s"]), &[Some(short), Some(long)]), (Some(long), false));
    assert_eq!(judged(slack(&["s"]), &[None]), (five_minutes, true));
    assert_eq!(judged(github(&["s"]), &[Some(short)]), (Some(short), true));
    assert_eq!(judged(github(&["s"]), &[]), (None, true));
}

#[test]
fn every_proof_must_pass_and_nothing_is_fetched_for_one_that_fails_anyway() {
    let judged = |says: &[Says], token: &[&str]| {
        let proofs = says.iter().map(|says| Arc::new(*says) as Arc<dyn Proof>).collect();
        let mut settings = Settings { proofs, ..github(&["s", "t"]) };
        let mut delivery = signed(&settings, b"{}", NOW);
        settings.bearer = (!token.is_empty()).then(|| vec![Secret::new("right".into())]);
        for token in token {
            set(&mut delivery, &http::header::AUTHORIZATION, &format!("Bearer {token}"));
        }
        let verifier = Verifier::build(settings).unwrap();
        match verifier.judge(delivery, NOW, &NoLibrary) {
            Ok(verified) => (None, false, verified.secrets_used().collect::<Vec<_>>()),
            Err(refused) => (Some(refused.refusal), refused.wanted.is_some(), Vec::new()),
        }
    };
    let no = Says::No(Refusal::BadClaims);
    assert_eq!(judged(&[Says::Yes], &["right"]), (None, false, vec![0, 2, 3]));
    assert_eq!(judged(&[Says::Yes, no], &[]), (Some(Refusal::BadClaims), false, vec![]));
    assert_eq!(judged(&[Says::Wants], &[]), (Some(Refusal::KeyUnavailable), true, vec![]));
    assert_eq!(judged(&[Says::Wants, no], &[]), (Some(Refusal::BadClaims), false, vec![]));
    assert_eq!(judged(&[no, Says::Wants], &[]), (Some(Refusal::BadClaims), false, vec![]));
    assert_eq!(judged(&[Says::Wants], &["wrong"]), (Some(Refusal::BadCredentials), false, vec![]));
}

/// What is set aside until the operator has mended the secret must not be what anybody can send at any time.
#[test]
fn a_signature_is_the_only_thing_amiss_where_another_secret_alone_would_have_made_it_pass() {
    let only = |settings: &Settings, delivery: &Delivery, at: UnixMillis| {
        let verifier = Verifier::build(settings.clone()).unwrap();
        let refused = verifier.judge(delivery.clone(), at, &NoLibrary).unwrap_err();
        (refused.refusal, refused.only_signature)
    };
    let bad = Refusal::BadSignature;
    for settings in [github as fn(&[&str]) -> Settings, stripe, slack, shopify] {
        let theirs = signed(&settings(&["right"]), b"{}", NOW);
        assert_eq!(only(&settings(&["wrong"]), &theirs, NOW), (bad, true));
        assert!(!only(&settings(&["wrong"]), &draft(b"{}"), NOW).1, "no signature at all");
    }
    // Out of its time it will never pass, whatever the secret: a copy of it fills nothing.
    let (wrong, theirs) = (stripe(&["wrong"]), signed(&stripe(&["right"]), b"{}", NOW));
    for at in [NOW.after(Duration::from_secs(301)), UnixMillis(NOW.0 - 301_000)] {
        assert_eq!(only(&wrong, &theirs, at), (bad, false));
    }
    assert_eq!(only(&wrong, &theirs, NOW.after(Duration::from_secs(300))), (bad, true));

    let with_token = Settings { bearer: Some(vec![Secret::new("token".into())]), ..github(&["wrong"]) };
    let mut delivery = signed(&github(&["right"]), b"{}", NOW);
    assert_eq!(only(&with_token, &delivery, NOW), (bad, false));
    set(&mut delivery, &http::header::AUTHORIZATION, "Bearer guessed");
    assert_eq!(only(&with_token, &delivery, NOW), (bad, false));
    set(&mut delivery, &http::header::AUTHORIZATION, "Bearer token");
    assert_eq!(only(&with_token, &delivery, NOW), (bad, true));

    let beside = |says: &[Says]| {
        let proofs = says.iter().map(|says| Arc::new(*says) as Arc<dyn Proof>).collect();
        only(&Settings { proofs, ..github(&["wrong"]) }, &delivery, NOW)
    };
    assert_eq!(beside(&[Says::Yes]), (bad, true));
    assert_eq!(beside(&[Says::OtherKey]), (bad, true));
    assert_eq!(beside(&[Says::No(bad)]), (bad, false));
    assert_eq!(beside(&[Says::OtherKey, Says::No(Refusal::BadClaims)]), (bad, false));
    assert_eq!(beside(&[Says::Wants]), (bad, false));
}
