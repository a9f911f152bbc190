//! What a token may be, and what was tried with tokens elsewhere.

use std::borrow::Cow;
use std::sync::Mutex;

use crate::fields::Fields;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Method};
use serde_json::json;

use super::super::hmac::{Hash, Keyed};
use super::super::key::{Key, KeyEncoding, KeyFormat};
use super::super::presented::Encoding;
use super::super::{Settings, Verified, Verifier};
use super::*;
use crate::clock::UnixMillis;
use crate::fetched::{Document, Library, NamedBy, NoLibrary};
use crate::secret::Secret;

const NOW: UnixMillis = UnixMillis::from_secs(1_785_542_400);
const SECRET: &str = "a shared secret of forty characters long";
const BODY: &[u8] = br#"{"amount":100}"#;

fn key(secret: &str) -> Key {
    Key::decode(&Secret::new(secret.into()), &KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None }).unwrap()
}

fn bearer() -> TokenAt {
    let scheme = Some(Scheme { word: "Bearer".into(), optional: false });
    TokenAt::Header { name: http::header::AUTHORIZATION, scheme }
}

fn body_hash() -> DigestClaim {
    let (hash, encoding) = (ClaimHash::Sha256, Encoding::Hex);
    DigestClaim { claim: "payload_hash".into(), hash, encoding, absent_when_empty: false }
}

/// HS256 in the `Authorization` header, bound to the body.
fn shared() -> Jwt {
    let algorithms = vec![JwsAlgorithm::Hs256];
    let rules = Rules { issuer: vec!["acme".into()], require_exp: true, ..Rules::default() };
    let claims = Claims { rules, body_hash: Some(body_hash()), ..Claims::default() };
    Jwt {
        label: "jwt".into(),
        places: vec![bearer()],
        keys: KeyRing::shared(&[key("an older secret of forty characters long"), key(SECRET)], &algorithms).unwrap(),
        algorithms,
        key_id: KeyId::Header,
        set_url: None,
        payload: Payload::Claims(Box::new(claims)),
    }
}

struct Signer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), kid }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "alg": "ES256", "use": "sig", "x": part(1..33), "y": part(33..65) })
    }

    fn pem(&self) -> String {
        let prefix = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        let spki = [prefix.as_slice(), self.pair.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki))
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = signed(header, claims);
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// ES256 in the `Authorization` header, not bound to the body.
fn public(keys: &[&str]) -> Jwt {
    let secrets: Vec<_> = keys.iter().map(|text| Secret::new((*text).into())).collect();
    let rules = Rules { require_exp: true, ..Rules::default() };
    Jwt {
        algorithms: vec![JwsAlgorithm::Es256],
        keys: KeyRing::public(secrets.iter().map(|secret| (None, secret)), &[JwsAlgorithm::Es256]).unwrap(),
        payload: Payload::Claims(Box::new(Claims { rules, ..Claims::default() })),
        ..shared()
    }
}

fn signed(header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

fn mac(secret: &str, hash: Hash, message: &str) -> String {
    URL_SAFE_NO_PAD.encode(Keyed::new(hash, &key(secret)).mac(&[Cow::Borrowed(message.as_bytes())]).as_slice())
}

fn hs256(secret: &str, header: &Value, claims: &Value) -> String {
    let signed = signed(header, claims);
    format!("{signed}.{}", mac(secret, Hash::Sha256, &signed))
}

fn claims_for(body: &[u8]) -> Value {
    json!({ "iss": "acme", "exp": NOW.as_secs() + 60, "payload_hash": hex::encode(Sha256::digest(body)) })
}

fn header() -> Value {
    json!({ "alg": "HS256", "typ": "JWT" })
}

fn delivery(headers: &[(&'static str, &str)], query: Option<&str>, body: &[u8]) -> Delivery {
    let mut map = Fields::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    Delivery {
        method: Method::POST,
        scheme: "https",
        authority: "hooks.example.com".into(),
        path: "/in".into(),
        query: query.map(str::to_owned),
        headers: map,
        body: Bytes::copy_from_slice(body),
    }
}

fn with_token(token: &str, body: &[u8]) -> Delivery {
    delivery(&[("authorization", &format!("Bearer {token}"))], None, body)
}

fn verifier(jwt: Jwt) -> Verifier {
    let settings = Settings {
        label: "it".into(),
        proofs: vec![Arc::new(jwt)],
        id: vec![Locator::Claim { name: "jti".into(), json: None }],
        event: vec![Locator::Claim { name: "data".into(), json: Some("/type".into()) }],
        public_url: Some("https://hooks.example.com/in".into()),
        ..Settings::default()
    };
    Verifier::build(settings).unwrap()
}

fn judged(jwt: &Jwt, delivery: Delivery) -> Result<Verified, Refusal> {
    verifier(jwt.clone()).judge(delivery, NOW, &NoLibrary).map_err(|refused| refused.refusal)
}

fn refusal(jwt: &Jwt, delivery: Delivery) -> Option<Refusal> {
    judged(jwt, delivery).err()
}

fn refused_token(jwt: &Jwt, token: &str) -> Option<Refusal> {
    refusal(jwt, with_token(token, BODY))
}

#[test]
fn a_token_of_ours_for_this_body_is_accepted_and_says_which_secret_made_it() {
    let verified = judged(&shared(), with_token(&hs256(SECRET, &header(), &claims_for(BODY)), BODY)).unwrap();
    assert_eq!(verified.secrets_used().collect::<Vec<_>>(), [1]);
    assert_eq!(verified.replay_keys().len(), 1);
    let until = verified.signed_at().unwrap().after(verified.tolerance().unwrap());
    assert_eq!(until, UnixMillis::from_secs(NOW.as_secs() + 60));
}

#[test]
fn a_stolen_token_is_of_no_use_with_another_body() {
    let token = hs256(SECRET, &header(), &claims_for(BODY));
    assert_eq!(refusal(&shared(), with_token(&token, br#"{"amount":999}"#)), Some(Refusal::BodyMismatch));
    assert_eq!(refusal(&shared(), with_token(&token, b"")), Some(Refusal::BodyMismatch));
    let unbound = json!({ "iss": "acme", "exp": NOW.as_secs() + 60 });
    assert_eq!(refused_token(&shared(), &hs256(SECRET, &header(), &unbound)), Some(Refusal::BodyMismatch));
}

#[test]
fn no_token_without_a_signature_is_accepted_however_none_is_spelled() {
    for none in ["none", "None", "NONE", "nOnE", "", "NoNe "] {
        for jwt in [shared(), public(&[&Signer::new("k").pem()])] {
            let header = json!({ "alg": none });
            let unsigned = format!("{}.", signed(&header, &claims_for(BODY)));
            assert_eq!(refused_token(&jwt, &unsigned), Some(Refusal::AlgorithmNotAllowed), "{none:?}");
            let signed = hs256(SECRET, &header, &claims_for(BODY));
            assert_eq!(refused_token(&jwt, &signed), Some(Refusal::AlgorithmNotAllowed), "{none:?}");
        }
    }
    for header in [json!({}), json!({ "alg": null }), json!({ "alg": ["HS256"] }), json!({ "alg": 256 })] {
        let token = hs256(SECRET, &header, &claims_for(BODY));
        assert_eq!(refused_token(&shared(), &token), Some(Refusal::AlgorithmNotAllowed), "{header}");
    }
    let cut = hs256(SECRET, &header(), &claims_for(BODY)).rsplit_once('.').unwrap().0.to_owned() + ".";
    assert_eq!(refused_token(&shared(), &cut), Some(Refusal::BadSignature));
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let signer = Signer::new("k");
    let jwt = public(&[&signer.pem()]);
    let claims = json!({ "exp": NOW.as_secs() + 60 });
    let good = signer.token(&json!({ "alg": "ES256", "kid": "k" }), &claims);
    assert_eq!(refused_token(&jwt, &good), None);
    // Every spelling of the public key as the HMAC's key.
    for spelled in [signer.pem(), signer.pem().trim().to_owned(), signer.jwk().to_string()] {
        let token = hs256(&spelled, &json!({ "alg": "HS256", "kid": "k" }), &claims);
        assert_eq!(refused_token(&jwt, &token), Some(Refusal::AlgorithmNotAllowed));
        let token = hs256(&spelled, &json!({ "alg": "ES256", "kid": "k" }), &claims);
        assert_eq!(refused_token(&jwt, &token), Some(Refusal::BadSignature));
        let built = KeyRing::shared(&[key(SECRET), key(&spelled)], &[JwsAlgorithm::Hs256]).err();
        assert_eq!(built, Some(RingError::PublicKeyAsSecret { index: 1 }));
    }
}

#[test]
fn an_algorithm_of_the_same_family_that_is_not_configured_is_refused() {
    let header = json!({ "alg": "HS512" });
    let signed = signed(&header, &claims_for(BODY));
    let token = format!("{signed}.{}", mac(SECRET, Hash::Sha512, &signed));
    assert_eq!(refused_token(&shared(), &token), Some(Refusal::AlgorithmNotAllowed));
    let algorithms = vec![JwsAlgorithm::Hs256, JwsAlgorithm::Hs512];
    let both = Jwt { keys: KeyRing::shared(&[key(SECRET)], &algorithms).unwrap(), algorithms, ..shared() };
    assert_eq!(refused_token(&both, &token), None);
    // The header says one, the signature is of the other.
    let token = hs256(SECRET, &header, &claims_for(BODY));
    assert_eq!(refused_token(&both, &token), Some(Refusal::BadSignature));
}

#[test]
fn keys_that_a_token_brings_along_are_not_looked_at() {
    let (ours, theirs) = (Signer::new("k"), Signer::new("k"));
    let jwt = public(&[&json!({ "keys": [ours.jwk()] }).to_string()]);
    let claims = json!({ "exp": NOW.as_secs() + 60 });
    for brought in [
        json!({ "alg": "ES256", "kid": "k", "jwk": theirs.jwk() }),
        json!({ "alg": "ES256", "jwk": theirs.jwk() }),
        json!({ "alg": "ES256", "kid": "k", "jku": "https://evil.example/jwks.json" }),
        json!({ "alg": "ES256", "kid": "k", "x5u": "https://evil.example/chain.pem" }),
        json!({ "alg": "ES256", "kid": "k", "x5c": ["MIIB"], "x5t": "abc" }),
    ] {
        let refused = refused_token(&jwt, &theirs.token(&brought, &claims));
        let named = if brought.get("kid").is_some() { Refusal::BadSignature } else { Refusal::UntrustedKey };
        assert_eq!(refused, Some(named), "{brought}");
        if brought.get("kid").is_some() {
            assert_eq!(refused_token(&jwt, &ours.token(&brought, &claims)), None, "{brought}");
        }
    }
}

#[test]
fn a_key_id_chooses_among_our_keys_and_opens_nothing_else() {
    let (one, other) = (Signer::new("one"), Signer::new("other"));
    let jwt = public(&[&json!({ "keys": [one.jwk(), other.jwk()] }).to_string()]);
    let claims = json!({ "exp": NOW.as_secs() + 60 });
    let token = |signer: &Signer, kid: Value| signer.token(&json!({ "alg": "ES256", "kid": kid }), &claims);
    assert_eq!(refused_token(&jwt, &token(&one, json!("one"))), None);
    assert_eq!(refused_token(&jwt, &token(&other, json!("other"))), None);
    assert_eq!(refused_token(&jwt, &token(&one, json!("other"))), Some(Refusal::BadSignature));
    for unknown in ["", "One", "../../dev/null", "one' OR 1=1 --", "one\u{0}", "https://evil.example/k"] {
        assert_eq!(refused_token(&jwt, &token(&one, json!(unknown))), Some(Refusal::UntrustedKey), "{unknown:?}");
    }
    for no_name in [json!(1), json!(null), json!(["one"]), json!({ "one": 1 })] {
        assert_eq!(refused_token(&jwt, &token(&one, no_name)), Some(Refusal::MalformedSignature));
    }
    let unnamed = one.token(&json!({ "alg": "ES256" }), &claims);
    assert_eq!(refused_token(&jwt, &unnamed), Some(Refusal::UntrustedKey));
}

#[test]
fn a_key_that_is_over_or_for_another_algorithm_is_not_used() {
    let signer = Signer::new("k");
    let token = signer.token(&json!({ "alg": "ES256", "kid": "k" }), &json!({ "exp": NOW.as_secs() + 60 }));
    let with = |name: &str, value: Value| {
        let mut jwk = signer.jwk();
        jwk[name] = value;
        refused_token(&public(&[&json!({ "keys": [jwk, Signer::new("other").jwk()] }).to_string()]), &token)
    };
    assert_eq!(with("expired_at", json!(null)), None);
    assert_eq!(with("expired_at", json!(NOW.as_secs() + 1)), None);
    assert_eq!(with("expired_at", json!(NOW.as_secs())), Some(Refusal::UntrustedKey));
    assert_eq!(with("alg", json!("ES384")), Some(Refusal::BadSignature));
    assert_eq!(with("use", json!("enc")), Some(Refusal::UntrustedKey));
}

#[test]
fn a_changed_byte_anywhere_in_a_token_is_refused() {
    let signer = Signer::new("k");
    let jwts = [
        (shared(), hs256(SECRET, &header(), &claims_for(BODY))),
        (public(&[&signer.pem()]), signer.token(&json!({ "alg": "ES256" }), &json!({ "exp": NOW.as_secs() + 60 }))),
    ];
    for (jwt, token) in &jwts {
        assert_eq!(refused_token(jwt, token), None);
        for position in 0..token.len() {
            for other in [b'A', b'b', b'.', b'=', b'-', b'~'] {
                let mut changed = token.clone().into_bytes();
                if changed[position] == other {
                    continue;
                }
                changed[position] = other;
                let changed = String::from_utf8(changed).unwrap();
                assert!(refused_token(jwt, &changed).is_some(), "{position} {changed}");
            }
        }
    }
}

#[test]
fn a_token_stands_in_one_place_once() {
    let jwt = Jwt { places: vec![bearer(), TokenAt::Query("jwt".into())], ..shared() };
    let token = hs256(SECRET, &header(), &claims_for(BODY));
    let authorization = format!("Bearer {token}");
    let in_query = format!("a=1&jwt={token}");
    assert_eq!(refusal(&jwt, delivery(&[("authorization", &authorization)], None, BODY)), None);
    assert_eq!(refusal(&jwt, delivery(&[], Some(&in_query), BODY)), None);
    let twice = delivery(&[("authorization", &authorization)], Some(&in_query), BODY);
    assert_eq!(refusal(&jwt, twice), Some(Refusal::MalformedSignature));
    let doubled = delivery(&[("authorization", &authorization), ("authorization", &authorization)], None, BODY);
    assert_eq!(refusal(&jwt, doubled), Some(Refusal::MalformedSignature));
    let doubled = delivery(&[], Some(&format!("jwt={token}&jwt={token}")), BODY);
    assert_eq!(refusal(&jwt, doubled), Some(Refusal::MalformedSignature));
    assert_eq!(refusal(&jwt, delivery(&[], None, BODY)), Some(Refusal::MissingSignature));
    assert_eq!(
        refusal(&jwt, delivery(&[("authorization", "Basic YTpi")], None, BODY)),
        Some(Refusal::MissingSignature)
    );
    // Of another scheme, and so not ours: the query's token counts.
    assert_eq!(refusal(&jwt, delivery(&[("authorization", "Basic YTpi")], Some(&in_query), BODY)), None);
}

#[test]
fn the_word_before_a_token_is_of_any_case_and_left_out_only_where_it_may_be() {
    let token = hs256(SECRET, &header(), &claims_for(BODY));
    let of = |value: &str| delivery(&[("authorization", value)], None, BODY);
    for good in [format!("Bearer {token}"), format!("bEARER {token}"), format!("Bearer  {token}")] {
        assert_eq!(refusal(&shared(), of(&good)), None, "{good}");
    }
    assert_eq!(refusal(&shared(), of(&token)), Some(Refusal::MissingSignature));
    assert_eq!(refusal(&shared(), of(&format!("Bearer{token}"))), Some(Refusal::MissingSignature));
    assert_eq!(refusal(&shared(), of("Bearer")), Some(Refusal::MissingSignature));
    assert_eq!(refusal(&shared(), of(&format!("Bearer {token} {token}"))), Some(Refusal::MalformedSignature));
    assert_eq!(refusal(&shared(), of(&format!("Bearer {token}, {token}"))), Some(Refusal::MalformedSignature));
    let scheme = Some(Scheme { word: "Bearer".into(), optional: true });
    let place = TokenAt::Header { name: http::header::AUTHORIZATION, scheme };
    let optional = Jwt { places: vec![place], ..shared() };
    assert_eq!(refusal(&optional, of(&token)), None);
    assert_eq!(refusal(&optional, of(&format!("Bearer {token}"))), None);
    assert_eq!(refusal(&optional, of(&format!("Basic {token}"))), Some(Refusal::MissingSignature));
}

#[test]
fn a_token_longer_than_any_real_one_is_not_judged() {
    let mut claims = claims_for(BODY);
    claims["filler"] = "x".repeat(MAX_TOKEN).into();
    let token = hs256(SECRET, &header(), &claims);
    assert_eq!(refused_token(&shared(), &token), Some(Refusal::MalformedSignature));
    claims["filler"] = "x".repeat(MAX_TOKEN / 2).into();
    assert_eq!(refused_token(&shared(), &hs256(SECRET, &header(), &claims)), None);
}

#[test]
fn claims_are_believed_only_where_the_signature_is_right() {
    let mut expired = claims_for(BODY);
    expired["exp"] = (NOW.as_secs() - 60).into();
    assert_eq!(refused_token(&shared(), &hs256(SECRET, &header(), &expired)), Some(Refusal::Stale));
    let wrong = "not the secret of the source at all";
    assert_eq!(refused_token(&shared(), &hs256(wrong, &header(), &expired)), Some(Refusal::BadSignature));
    let mut other = claims_for(BODY);
    other["iss"] = "evil".into();
    assert_eq!(refused_token(&shared(), &hs256(SECRET, &header(), &other)), Some(Refusal::BadClaims));
    assert_eq!(refused_token(&shared(), &hs256(wrong, &header(), &other)), Some(Refusal::BadSignature));
    assert_eq!(refused_token(&shared(), &hs256(wrong, &header(), &json!([]))), Some(Refusal::BadSignature));
    assert_eq!(refused_token(&shared(), &hs256(SECRET, &header(), &json!([]))), Some(Refusal::MalformedSignature));
}

#[test]
fn a_tenant_is_judged_with_its_own_secret_alone() {
    let algorithms = vec![JwsAlgorithm::Hs256];
    let (a, b) = ("the secret of tenant a, long enough", "the secret of tenant b, long enough");
    let keys = [key(a).named(Some("a")), key(b).named(Some("b"))];
    let claims = Claims { rules: Rules { require_exp: true, ..Rules::default() }, ..Claims::default() };
    let jwt = Jwt {
        keys: KeyRing::shared(&keys, &algorithms).unwrap(),
        key_id: KeyId::Claim("iss".into()),
        payload: Payload::Claims(Box::new(claims)),
        ..shared()
    };
    let token =
        |secret: &str, tenant: Value| hs256(secret, &header(), &json!({ "iss": tenant, "exp": NOW.as_secs() + 9 }));
    assert_eq!(refused_token(&jwt, &token(a, json!("a"))), None);
    assert_eq!(refused_token(&jwt, &token(b, json!("b"))), None);
    assert_eq!(refused_token(&jwt, &token(a, json!("b"))), Some(Refusal::BadSignature));
    assert_eq!(refused_token(&jwt, &token(a, json!("c"))), Some(Refusal::UntrustedKey));
    assert_eq!(refused_token(&jwt, &token(a, json!(["a"]))), Some(Refusal::UntrustedKey));
    // A `kid` says nothing here.
    let claims = json!({ "iss": "b", "exp": NOW.as_secs() + 9 });
    let token = hs256(a, &json!({ "alg": "HS256", "kid": "a" }), &claims);
    assert_eq!(refused_token(&jwt, &token), Some(Refusal::BadSignature));
}

#[test]
fn a_token_that_is_used_once_is_known_by_its_id_whatever_else_it_says() {
    let mut jwt = shared();
    if let Payload::Claims(claims) = &mut jwt.payload {
        claims.body_hash = None;
        claims.single_use = Some("jti".into());
    }
    let keys = |issued: u64, id: Value| {
        let claims = json!({ "iss": "acme", "exp": NOW.as_secs() + 60, "iat": issued, "jti": id });
        judged(&jwt, with_token(&hs256(SECRET, &header(), &claims), BODY))
            .map(|verified| verified.replay_keys().to_vec())
    };
    let first = keys(NOW.as_secs() - 1, json!("id-1")).unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(keys(NOW.as_secs() - 2, json!("id-1")).unwrap(), first);
    assert_ne!(keys(NOW.as_secs() - 1, json!("id-2")).unwrap(), first);
    for no_id in [json!(""), json!(1), json!(null), json!(["id-1"]), json!("x".repeat(513))] {
        assert_eq!(keys(NOW.as_secs(), no_id).unwrap_err(), Refusal::BadClaims);
    }
}

#[test]
fn a_token_that_does_not_stand_for_the_body_tells_no_replay() {
    let signer = Signer::new("k");
    let jwt = public(&[&signer.pem()]);
    let token = signer.token(&json!({ "alg": "ES256" }), &json!({ "exp": NOW.as_secs() + 60 }));
    assert!(judged(&jwt, with_token(&token, BODY)).unwrap().replay_keys().is_empty());
    assert_eq!((jwt.coverage(), jwt.replay_keys_each()), (Coverage::Nothing, 0));
    assert_eq!((shared().coverage(), shared().replay_keys_each()), (Coverage::Whole, 1));
}

/// A public-key signature can be made again over the same token: the message stands for it, not the signature.
#[test]
fn the_same_message_signed_again_is_the_same_replay() {
    let signer = Signer::new("k");
    let jwt = Jwt { places: vec![TokenAt::Body], ..public(&[&signer.pem()]) };
    let claims = json!({ "exp": NOW.as_secs() + 60, "jti": "evt_1", "data": "{\"type\":\"paid\"}" });
    let tokens = [0; 2].map(|_| signer.token(&json!({ "alg": "ES256" }), &claims));
    assert_ne!(tokens[0], tokens[1]);
    let [one, other] = tokens.map(|token| judged(&jwt, delivery(&[], None, token.as_bytes())).unwrap());
    assert_eq!(one.replay_keys(), other.replay_keys());
    assert_eq!((one.event_id(), one.event_id_is_signed()), (Some("evt_1"), true));
    assert_eq!(one.event_type(), Some("paid"));
}

#[test]
fn a_body_that_is_to_be_a_token_is_nothing_else() {
    let signer = Signer::new("k");
    let jwt = Jwt { places: vec![TokenAt::Body], ..public(&[&signer.pem()]) };
    let token = signer.token(&json!({ "alg": "ES256" }), &json!({ "exp": NOW.as_secs() + 60 }));
    let refused = |body: &[u8]| refusal(&jwt, delivery(&[], None, body));
    assert_eq!(refused(token.as_bytes()), None);
    assert_eq!(refused(b""), Some(Refusal::MissingSignature));
    assert_eq!(refused(b"{}"), Some(Refusal::MalformedSignature));
    assert_eq!(refused(b"\xff\xfe"), Some(Refusal::MalformedSignature));
    for padded in [format!("{token}\n"), format!(" {token}"), format!("\"{token}\""), format!("\u{feff}{token}")] {
        assert_eq!(refused(padded.as_bytes()), Some(Refusal::MalformedSignature));
    }
}

#[test]
fn every_token_of_a_list_is_judged() {
    let (signer, theirs) = (Signer::new("k"), Signer::new("k"));
    let jwt = Jwt { places: vec![TokenAt::Each("/tokens".into())], ..public(&[&signer.jwk().to_string()]) };
    let (header, claims) = (json!({ "alg": "ES256", "kid": "k" }), json!({ "exp": NOW.as_secs() + 60 }));
    let (good, forged) = (signer.token(&header, &claims), theirs.token(&header, &claims));
    let refused = |body: Value| refusal(&jwt, delivery(&[], None, body.to_string().as_bytes()));
    assert_eq!(refused(json!({ "tokens": [good] })), None);
    assert_eq!(refused(json!({ "tokens": [good, good] })), None);
    assert_eq!(refused(json!({ "tokens": [good, forged] })), Some(Refusal::BadSignature));
    assert_eq!(refused(json!({ "tokens": [forged, good] })), Some(Refusal::BadSignature));
    assert_eq!(refused(json!({ "tokens": [good, 1] })), Some(Refusal::MalformedSignature));
    assert_eq!(refused(json!({ "tokens": good })), Some(Refusal::MalformedSignature));
    assert_eq!(refused(json!({ "tokens": vec![good.clone(); MAX_TOKENS + 1] })), Some(Refusal::MalformedSignature));
    for nothing in [json!({}), json!({ "tokens": [] }), json!({ "tokens": null })] {
        assert_eq!(refused(nothing), Some(Refusal::MissingSignature));
    }
    let doubled = format!(r#"{{"tokens":["{forged}"],"tokens":["{good}"]}}"#);
    assert_eq!(refusal(&jwt, delivery(&[], None, doubled.as_bytes())), Some(Refusal::MalformedSignature));
}

/// What was asked for, and one document that is known.
#[derive(Default)]
struct Shelf {
    asked: Mutex<Vec<String>>,
    document: Option<(String, Arc<Document>)>,
    unavailable: bool,
}

impl Library for Shelf {
    fn look_up(&self, url: &str) -> Lookup {
        self.asked.lock().unwrap().push(url.to_owned());
        match &self.document {
            Some((known, document)) if known == url => Lookup::Here(document.clone()),
            _ if self.unavailable => Lookup::Unavailable,
            _ => Lookup::Missing,
        }
    }
}

const SET_URL: &str = "https://keys.example.com/jwks.json";

fn shelf(keys: &Value, fetched_at: UnixMillis) -> Shelf {
    let document = Arc::new(Document::new(keys.to_string().into_bytes().into(), fetched_at));
    Shelf { document: Some((SET_URL.into(), document)), ..Shelf::default() }
}

#[test]
fn a_key_set_from_elsewhere_is_asked_for_once_a_token_could_be_right() {
    let signer = Signer::new("k");
    let jwt = Jwt { set_url: Some(SET_URL.into()), ..public(&[]) };
    let verifier = verifier(jwt);
    let (header, claims) = (json!({ "alg": "ES256", "kid": "k" }), json!({ "exp": NOW.as_secs() + 60 }));
    let good = signer.token(&header, &claims);
    let judge = |token: &str, shelf: &Shelf| {
        let judged = verifier.judge(with_token(token, BODY), NOW, shelf);
        judged.map(|_| ()).map_err(|refused| (refused.refusal, refused.wanted))
    };
    let wanted = |newer_than| {
        Err((
            Refusal::KeyUnavailable,
            Some(Wanted { url: SET_URL.into(), newer_than, named_by: NamedBy::Configuration }),
        ))
    };
    // What cannot be right whatever the keys are costs nobody a fetch.
    let nothing = Shelf::default();
    for hopeless in ["", "a.b.c", &hs256(SECRET, &json!({ "alg": "HS256" }), &claims), &good.replacen('.', "..", 1)] {
        assert!(matches!(judge(hopeless, &nothing), Err((_, None))));
    }
    assert!(nothing.asked.lock().unwrap().is_empty());
    assert_eq!(judge(&good, &nothing), wanted(None));
    let failing = Shelf { unavailable: true, ..Shelf::default() };
    assert_eq!(judge(&good, &failing), Err((Refusal::KeyUnavailable, None)));

    let keys = json!({ "keys": [signer.jwk()] });
    assert_eq!(judge(&good, &shelf(&keys, NOW)), Ok(()));
    let forged = Signer::new("k").token(&header, &claims);
    assert_eq!(judge(&forged, &shelf(&keys, NOW)), Err((Refusal::BadSignature, None)));
    assert_eq!(judge(&good, &shelf(&json!("no set"), NOW)), Err((Refusal::KeyUnavailable, None)));

    let two_minutes_ago = UnixMillis::from_secs(NOW.as_secs() - 120);
    assert_eq!(judge(&good, &shelf(&json!("no set"), two_minutes_ago)), wanted(Some(two_minutes_ago)));

    // However many keys without a name it holds, a stranger's token costs sixteen attempts.
    let unnamed = |signer: &Signer| {
        let mut jwk = signer.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let mut many: Vec<Value> = vec![unnamed(&Signer::new("")); 15];
    many.push(unnamed(&signer));
    assert_eq!(judge(&good, &shelf(&json!({ "keys": many }), NOW)), Ok(()));
    many.insert(0, unnamed(&Signer::new("")));
    assert_eq!(judge(&good, &shelf(&json!({ "keys": many }), NOW)), Err((Refusal::BadSignature, None)));

    // A key id that the set lacks may be a new one, but not one that is newer than a set of a minute ago.
    let rolled = Signer::new("k2").token(&json!({ "alg": "ES256", "kid": "k2" }), &claims);
    let an_hour_ago = UnixMillis::from_secs(NOW.as_secs() - 3600);
    assert_eq!(judge(&rolled, &shelf(&keys, an_hour_ago)), wanted(Some(an_hour_ago)));
    let a_minute_ago = UnixMillis::from_secs(NOW.as_secs() - 60);
    assert_eq!(judge(&rolled, &shelf(&keys, a_minute_ago)), Err((Refusal::UntrustedKey, None)));
}

#[test]
fn a_detached_signature_stands_for_the_body_and_brings_none_along() {
    let signer = Signer::new("k");
    let jwt = Jwt { payload: Payload::Body, ..public(&[&signer.pem()]) };
    let header_text = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256" }).to_string());
    let signature = |message: &[u8]| {
        let signature = signer.pair.sign(&SystemRandom::new(), message).unwrap();
        URL_SAFE_NO_PAD.encode(signature.as_ref())
    };
    let message = detached::input(&header_text, &[BODY]);
    let token = format!("{header_text}..{}", signature(&message));
    assert_eq!(refused_token(&jwt, &token), None);
    assert_eq!(refusal(&jwt, with_token(&token, b"{}")), Some(Refusal::BadSignature));
    let attached = format!("{}.{}", std::str::from_utf8(&message).unwrap(), signature(&message));
    assert_eq!(refused_token(&jwt, &attached), Some(Refusal::MalformedSignature));
    // RFC 7797: the payload as it is, not in base64url. Another message under the same signature.
    let unencoded = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256", "b64": false, "crit": ["b64"] }).to_string());
    let message = [unencoded.as_bytes(), b".", BODY].concat();
    let token = format!("{unencoded}..{}", signature(&message));
    assert_eq!(refused_token(&jwt, &token), Some(Refusal::MalformedSignature));
}

#[test]
fn what_sign_makes_is_accepted_and_a_changed_body_is_not() {
    let url_hash = DigestClaim { claim: "url_hash".into(), ..body_hash() };
    let query_hash = QueryHash { claim: "qsh".into(), base_path: String::new() };
    let rules = Rules {
        issuer: vec!["acme".into()],
        audience: vec!["us".into()],
        subject: vec!["sub".into()],
        claims: vec![("/org/id".into(), json!(7)), ("verified".into(), json!(true))],
        claims_any: vec![("appid".into(), json!("x")), ("azp".into(), json!("y"))],
        require: vec!["nbf".into(), "jti".into()],
        require_exp: true,
        max_age: Some(Duration::from_secs(60)),
        leeway: Duration::ZERO,
    };
    let claims = Claims {
        rules,
        body_hash: Some(body_hash()),
        url_hash: Some(url_hash),
        query_hash: Some(query_hash),
        single_use: Some("jti".into()),
    };
    for places in [vec![bearer(), TokenAt::Query("jwt".into())], vec![TokenAt::Query("jwt".into())]] {
        let mut claims = claims.clone();
        if !matches!(places.first(), Some(TokenAt::Header { .. })) {
            // The URL as it was before the token was put into it.
            claims.url_hash = None;
        }
        let jwt = Jwt { places, payload: Payload::Claims(Box::new(claims)), ..shared() };
        let verifier = verifier(jwt);
        let sign = |body: &[u8]| {
            verifier.sign(delivery(&[], Some("a=1&b=2"), body), "id-1", NOW, None).map(|draft| draft.delivery)
        };
        let made = sign(BODY).unwrap();
        let judge = |delivery: Delivery| verifier.judge(delivery, NOW, &NoLibrary).map_err(|refused| refused.refusal);
        assert_eq!(judge(made.clone()).unwrap().event_id(), Some("id-1"));
        assert_eq!(judge(Delivery { body: Bytes::from_static(b"x"), ..made }).unwrap_err(), Refusal::BodyMismatch);
    }
}

#[test]
fn a_private_key_signs_under_the_id_of_its_public_half_and_no_other_signs() {
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref()).unwrap();
    let pem = STANDARD.encode(der.as_ref());
    let private = Secret::new(format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n").into());
    let signer = Signer { pair, kid: "ours" };
    let set = json!({ "keys": [Signer::new("first").jwk(), signer.jwk()] }).to_string();
    for payload in [public(&[&set]).payload, Payload::Body] {
        let verifier = verifier(Jwt { payload, ..public(&[&set]) });
        let sign = |private: Option<&Secret>| verifier.sign(delivery(&[], None, BODY), "id-1", NOW, private);
        let made = sign(Some(&private)).unwrap().delivery;
        assert!(verifier.judge(made, NOW, &NoLibrary).is_ok());
        assert_eq!(sign(None).unwrap_err(), SignError::NeedsPrivateKey);
    }
    let other = verifier(public(&[&Signer::new("first").jwk().to_string()]));
    let made = other.sign(delivery(&[], None, BODY), "id-1", NOW, Some(&private));
    assert_eq!(made.unwrap_err(), SignError::OtherPrivateKey);
}
