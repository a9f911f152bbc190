//! Does a token whose signature was right say what it has to say: by whom, for whom, until when?
//!
//! Invariant: a claim has the type that it should have. A time that is a string, a flag that is the text "true" and a
//! number for a name are refused, never converted. Only a token whose signature was judged comes here.

use std::time::Duration;

use serde_json::Value;

use super::super::Fault;
use super::compact::Object;
use super::fault;
use crate::clock::UnixMillis;
use crate::refusal::Refusal;

/// The end of the year 9999, in seconds: a later time is a mistake or an attempt.
const LAST_SECOND: u64 = 253_402_300_799;
/// An audience may list several parties.
const MAX_AUDIENCES: usize = 64;

/// What a token's claims have to say. An empty list asks for nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rules {
    /// One of these is `iss`.
    pub(crate) issuer: Vec<String>,
    /// One of these is `aud`, or is listed there.
    pub(crate) audience: Vec<String>,
    /// One of these is `sub`.
    pub(crate) subject: Vec<String>,
    /// All of these, value and type.
    pub(crate) claims: Vec<(String, Value)>,
    /// One of these.
    pub(crate) claims_any: Vec<(String, Value)>,
    /// These are there, whatever they say.
    pub(crate) require: Vec<String>,
    pub(crate) require_exp: bool,
    /// Since `iat`, which then has to be there.
    pub(crate) max_age: Option<Duration>,
    pub(crate) leeway: Duration,
}

/// How long the token can be used; `None` where it says nothing that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) stated: UnixMillis,
    pub(super) until: UnixMillis,
}

const fn bad(note: &'static str) -> Fault {
    fault(Refusal::BadClaims, note)
}

const fn stale(note: &'static str) -> Fault {
    fault(Refusal::Stale, note)
}

impl Rules {
    pub(super) fn judge(&self, claims: &Object, now: UnixMillis) -> Result<Option<Life>, Fault> {
        let life = self.judge_times(claims, now)?;
        if self.require.iter().any(|name| claim(claims, name).is_none_or(Value::is_null)) {
            return Err(bad("the token lacks a claim that the source requires"));
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if !self.issuer.is_empty() && !text("iss").is_some_and(|issuer| self.issuer.iter().any(|one| one == issuer)) {
            return Err(bad("the token's issuer is none of the configured ones"));
        }
        if !self.audience.is_empty() && !self.is_for_us(claims.get("aud")) {
            return Err(bad("the token's audience is none of the configured ones"));
        }
        if !self.subject.is_empty() && !text("sub").is_some_and(|subject| self.subject.iter().any(|one| one == subject))
        {
            return Err(bad("the token's subject is none of the configured ones"));
        }
        if self.claims.iter().any(|(name, value)| claim(claims, name) != Some(value)) {
            return Err(bad("one of the token's claims has not the configured value"));
        }
        if !self.claims_any.is_empty()
            && !self.claims_any.iter().any(|(name, value)| claim(claims, name) == Some(value))
        {
            return Err(bad("none of the token's claims has a configured value"));
        }
        Ok(life)
    }

    fn is_for_us(&self, audience: Option<&Value>) -> bool {
        let is_ours = |value: &Value| value.as_str().is_some_and(|text| self.audience.iter().any(|one| one == text));
        match audience {
            Some(Value::Array(all)) => all.len() <= MAX_AUDIENCES && all.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        }
    }

    fn judge_times(&self, claims: &Object, now: UnixMillis) -> Result<Option<Life>, Fault> {
        let (expires, not_before, issued) = (time(claims, "exp")?, time(claims, "nbf")?, time(claims, "iat")?);
        let latest = now.after(self.leeway);
        if expires.is_some_and(|expires| now >= expires.after(self.leeway)) {
            return Err(stale("the token has expired"));
        }
        if self.require_exp && expires.is_none() {
            return Err(bad("the token says no time at which it expires"));
        }
        if not_before.is_some_and(|not_before| not_before > latest) {
            return Err(stale("the token is not valid yet"));
        }
        if issued.is_some_and(|issued| issued > latest) {
            return Err(stale("the token was issued in the future"));
        }
        let too_old = match (self.max_age, issued) {
            (None, _) => None,
            (Some(_), None) => return Err(bad("the token does not say when it was issued")),
            (Some(max_age), Some(issued)) => Some(issued.after(max_age)),
        };
        if too_old.is_some_and(|too_old| now > too_old) {
            return Err(stale("the token is older than `max_age`"));
        }
        let until = match (expires.map(|expires| expires.after(self.leeway)), too_old) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Ok(until.map(|until| Life { stated: issued.or(not_before).unwrap_or(until).min(until), until }))
    }
}

/// Top-level by name; `/a/b` is a JSON pointer.
pub(super) fn claim<'c>(claims: &'c Object, name: &str) -> Option<&'c Value> {
    let Some(inner) = name.strip_prefix('/') else { return claims.get(name) };
    let unescape = |token: &str| token.replace("~1", "/").replace("~0", "~");
    let (first, rest) = match inner.split_once('/') {
        Some((first, _)) => (first, inner.get(first.len()..)?),
        None => (inner, ""),
    };
    claims.get(&unescape(first))?.pointer(rest)
}

/// A claim as the name of an event: a string or a whole number. `json` points into a claim that is itself a JSON text.
pub(crate) fn claim_text(claims: &Object, name: &str, json: Option<&str>) -> Option<String> {
    let inside;
    let found = match (claim(claims, name)?, json) {
        (found, None) => found,
        (Value::String(text), Some(pointer)) => {
            inside = super::compact::value(text.as_bytes())?;
            inside.pointer(pointer)?
        }
        (found, Some(pointer)) => found.pointer(pointer)?,
    };
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
        _ => None,
    }
}

/// A NumericDate of RFC 7519: seconds, which may have a fraction.
fn time(claims: &Object, name: &str) -> Result<Option<UnixMillis>, Fault> {
    const NOT_A_TIME: Fault = bad("one of the token's times is not a number of seconds");
    let Some(value) = claims.get(name) else { return Ok(None) };
    let Value::Number(number) = value else { return Err(NOT_A_TIME) };
    if let Some(seconds) = number.as_u64() {
        return if seconds <= LAST_SECOND { Ok(Some(UnixMillis::from_secs(seconds))) } else { Err(NOT_A_TIME) };
    }
    // What is not a whole number from 0 up: -1, 1.5, 1e300.
    let seconds = number.as_f64().filter(|seconds| number.is_f64() && *seconds >= 0.0).ok_or(NOT_A_TIME)?;
    let millis = Duration::try_from_secs_f64(seconds).map_err(|_| NOT_A_TIME)?;
    if millis.as_secs() > LAST_SECOND {
        return Err(NOT_A_TIME);
    }
    Ok(Some(UnixMillis::default().after(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: UnixMillis = UnixMillis::from_secs(1_000_000);

    fn judged(rules: &Rules, claims: Value) -> Result<Option<Life>, Refusal> {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        rules.judge(&claims, NOW).map_err(|fault| fault.refusal)
    }

    fn passed(rules: &Rules, claims: Value) -> Option<Refusal> {
        judged(rules, claims).err()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    const BAD: Option<Refusal> = Some(Refusal::BadClaims);
    const STALE: Option<Refusal> = Some(Refusal::Stale);

    #[test]
    fn a_token_is_used_before_it_expires_and_not_at_that_very_second() {
        let rules = Rules { require_exp: true, ..Rules::default() };
        assert_eq!(passed(&rules, json!({"exp": 1_000_001})), None);
        assert_eq!(passed(&rules, json!({"exp": 1_000_000.5})), None);
        assert_eq!(passed(&rules, json!({"exp": 1_000_000})), STALE);
        assert_eq!(passed(&rules, json!({"exp": 999_999.999})), STALE);
        assert_eq!(passed(&rules, json!({"exp": 0})), STALE);
        assert_eq!(passed(&rules, json!({})), BAD);
        let lenient = Rules { leeway: Duration::from_secs(5), ..rules };
        assert_eq!(passed(&lenient, json!({"exp": 999_996})), None);
        assert_eq!(passed(&lenient, json!({"exp": 999_995})), STALE);
    }

    #[test]
    fn a_time_that_is_no_number_of_seconds_is_refused_even_where_none_is_required() {
        let rules = Rules::default();
        for time in [
            json!("1000001"),
            json!(-1),
            json!(-0.5),
            json!(1e300),
            json!(253_402_300_800_u64),
            json!(u64::MAX),
            json!(true),
            json!(null),
            json!([1_000_001]),
        ] {
            for name in ["exp", "nbf", "iat"] {
                assert_eq!(passed(&rules, json!({ name: time })), BAD, "{name} {time}");
            }
        }
    }

    #[test]
    fn a_token_from_the_future_is_refused() {
        let rules = Rules { leeway: Duration::from_secs(1), ..Rules::default() };
        for name in ["nbf", "iat"] {
            assert_eq!(passed(&rules, json!({ name: 1_000_001 })), None, "{name}");
            assert_eq!(passed(&rules, json!({ name: 1_000_002 })), STALE, "{name}");
        }
    }

    #[test]
    fn an_age_is_counted_from_the_time_of_issue_which_has_to_be_there() {
        let rules = Rules { max_age: Some(Duration::from_secs(300)), ..Rules::default() };
        assert_eq!(passed(&rules, json!({"iat": 999_700})), None);
        assert_eq!(passed(&rules, json!({"iat": 999_699})), STALE);
        assert_eq!(passed(&rules, json!({"exp": 2_000_000})), BAD);
    }

    #[test]
    fn the_life_of_a_token_ends_with_the_first_of_its_ends() {
        let life = |stated, until| {
            Ok(Some(Life { stated: UnixMillis::from_secs(stated), until: UnixMillis::from_secs(until) }))
        };
        let rules = Rules { max_age: Some(Duration::from_secs(300)), ..Rules::default() };
        assert_eq!(judged(&rules, json!({"iat": 999_900})), life(999_900, 1_000_200));
        assert_eq!(judged(&rules, json!({"iat": 999_900, "exp": 1_000_010})), life(999_900, 1_000_010));
        assert_eq!(judged(&rules, json!({"iat": 999_900, "exp": 1_009_000})), life(999_900, 1_000_200));
        let lenient = Rules { leeway: Duration::from_secs(5), ..Rules::default() };
        assert_eq!(judged(&lenient, json!({"exp": 1_000_010})), life(1_000_015, 1_000_015));
        assert_eq!(judged(&lenient, json!({"nbf": 5, "exp": 1_000_010})), life(5, 1_000_015));
        assert_eq!(judged(&lenient, json!({"iat": 5})), Ok(None));
    }

    #[test]
    fn an_audience_is_one_of_ours_or_lists_one_of_ours() {
        let rules = Rules { audience: texts(&["a", "b"]), ..Rules::default() };
        assert_eq!(passed(&rules, json!({"aud": "b"})), None);
        assert_eq!(passed(&rules, json!({"aud": ["x", "a"]})), None);
        for other in [json!("c"), json!("A"), json!(["c"]), json!([["a"]]), json!({"a": "a"}), json!(1), json!(null)] {
            assert_eq!(passed(&rules, json!({ "aud": other })), BAD, "{other}");
        }
        assert_eq!(passed(&rules, json!({})), BAD);
        assert_eq!(passed(&rules, json!({ "aud": vec!["a"; MAX_AUDIENCES + 1] })), BAD);
    }

    #[test]
    fn an_issuer_and_a_subject_are_one_text_and_exact() {
        let rules = Rules { issuer: texts(&["i", "j"]), subject: texts(&["s"]), ..Rules::default() };
        assert_eq!(passed(&rules, json!({"iss": "j", "sub": "s"})), None);
        assert_eq!(passed(&rules, json!({"iss": "k", "sub": "s"})), BAD);
        assert_eq!(passed(&rules, json!({"iss": ["j"], "sub": "s"})), BAD);
        assert_eq!(passed(&rules, json!({"iss": "j", "sub": "s2"})), BAD);
        assert_eq!(passed(&rules, json!({"iss": "j"})), BAD);
    }

    #[test]
    fn a_claim_has_the_configured_value_and_type() {
        let rules = Rules {
            claims: vec![("email_verified".into(), json!(true)), ("/org/id".into(), json!(7))],
            claims_any: vec![("appid".into(), json!("x")), ("azp".into(), json!("x"))],
            require: texts(&["jti"]),
            ..Rules::default()
        };
        let good = json!({"email_verified": true, "org": {"id": 7}, "azp": "x", "appid": "y", "jti": "1"});
        assert_eq!(passed(&rules, good.clone()), None);
        let changes = [
            ("email_verified", json!("true")),
            ("email_verified", json!(1)),
            ("email_verified", json!(false)),
            ("org", json!({"id": "7"})),
            ("org", json!({"id": 7.5})),
            ("org", json!([7])),
            ("azp", json!("X")),
            ("azp", json!(["x"])),
            ("jti", json!(null)),
        ];
        for (name, value) in changes {
            let mut changed = good.clone();
            changed[name] = value;
            assert_eq!(passed(&rules, changed.clone()), BAD, "{changed}");
        }
        for name in ["email_verified", "org", "azp", "jti"] {
            let mut lacking = good.clone();
            lacking.as_object_mut().unwrap().remove(name);
            assert_eq!(passed(&rules, lacking), BAD, "{name}");
        }
    }
}
