//! A source's credentials: the `verify` table and its neighbours, made into what `verify` works with.

use super::handshakes;
use super::http_signature;
use super::jwt;
use super::platform;
use super::reader::Table;
use super::scheme::{exactly_one, locators, read_scheme};
use super::secret_ref::Named;
use super::units::header_name;
use crate::secret::Secret;
use crate::state::Quota;
use crate::verify::{Basic, CloudEvents, Proof, Settings, Template, Token, TokenPlace, Verifier};
use http::HeaderValue;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A password below this many bytes can be found by trying.
const SHORT_PASSWORD: usize = 12;

/// What resending looks like, for the default of `on_replay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resends {
    Resigned,
    SameBytes,
    Unknown,
}

pub(super) struct Credentials {
    pub(super) verifier: Arc<Verifier>,
    /// The references of the secrets, in the order listed.
    pub(super) secret_names: Vec<String>,
    /// SHA-256 of each signing secret, to see one that two sources share. Never shown.
    pub(super) secret_prints: Vec<[u8; 32]>,
    pub(super) proves_something: bool,
    pub(super) signs_time: bool,
    pub(super) has_replay_key: bool,
    pub(super) has_id: bool,
    pub(super) resends: Resends,
    /// The name under which the secret is kept that the source waits for.
    pub(super) awaits: Option<String>,
    pub(super) shows_captured: bool,
    pub(super) challenge: HeaderValue,
}

pub(super) fn read(source: &Table<'_>, label: Option<&str>) -> Option<Credentials> {
    let secrets = source.secrets("secrets");
    let public_url = source.text("public_url");
    let mut secret_names: Vec<String> = secrets.iter().map(|named| named.name.clone()).collect();
    let secret_prints = secrets.iter().map(|named| Sha256::digest(named.secret.expose()).into()).collect();
    let mut keys_shown = secrets;

    let mut resends = Resends::Unknown;
    let mut id = locators(source, "id");
    let mut event = locators(source, "event");
    let verify = source.table("verify");
    let mut scheme = None;
    let mut scheme_failed = false;
    let asked = handshakes::read(source, verify.as_ref(), &keys_shown, public_url.as_deref());
    let awaits_key = asked.awaits.is_some() && keys_shown.is_empty();
    if let (true, Some(name), Some(table)) = (awaits_key, &asked.awaits, &verify) {
        if table.has("key") || !table.peek_text("algorithm").is_some_and(|name| name.starts_with("hmac")) {
            table.error("", "takes a secret that a sender brings for HMAC alone, and as it is", "`secrets`");
        }
        // In the place of the one to come; nobody knows it.
        let secret = Secret::new(rand::random::<[u8; 32]>().to_vec());
        let name = format!("captured:{name}");
        secret_names.push(name.clone());
        keys_shown.push(Named { name, id: None, algorithm: None, secret });
    }
    let mut proofs: Vec<Arc<dyn Proof>> = Vec::new();
    // What `token` and `basic` take of the source's own secrets, where they have none.
    let mut lent = Vec::new();
    let replay = source.text("replay").and_then(|text| match Template::parse(&text) {
        Ok(template) => Some(template),
        Err(error) => {
            source.error("replay", format!("at character {}: {}", error.position + 1, error.what), &error.try_this);
            scheme_failed = true;
            None
        }
    });
    if let Some(table) = verify {
        let (theirs_id, theirs_event) = (locators(&table, "id"), locators(&table, "event"));
        id = if id.is_empty() { theirs_id } else { id };
        event = if event.is_empty() { theirs_event } else { event };
        resends = read_resends(&table);
        // The sender's own list of keys is enough.
        if keys_shown.is_empty() && (source.has("secrets") || !table.has("keys_url")) {
            if !source.has("secrets") {
                source.error(
                    "",
                    "`secrets` is missing: `verify` needs at least one",
                    r#"secrets = [{ env = "NAME" }]"#,
                );
            }
            scheme_failed = true;
        }
        scheme = read_scheme(source, &table, &keys_shown, public_url.as_deref());
        scheme_failed |= scheme.is_none();
        table.finish();
    } else if !keys_shown.is_empty() && lends(source) {
        lent = std::mem::take(&mut keys_shown);
        secret_names.clear();
    } else if ["jwt", "each_secret", "http_signature", "cloudevents"].iter().any(|proof| source.has(proof)) {
        // Theirs, and judged below.
    } else if !keys_shown.is_empty() && (asked.uses_secrets || label.is_some()) {
        if !asked.uses_secrets {
            source.warn("secrets", "nothing uses these: the preset verifies nothing by itself", "remove them");
        }
    } else if !keys_shown.is_empty() && source.has("provider") {
        // There is no such preset: then nobody knows what they are for.
        scheme_failed = true;
    } else if !keys_shown.is_empty() {
        source.error(
            "secrets",
            "nothing uses these: there is neither `provider` nor a `verify`, `jwt`, `http_signature` or `cloudevents` table",
            r#"provider = "github", or a table [sources.NAME.verify]"#,
        );
        keys_shown.clear();
        secret_names.clear();
    }

    // `secrets` belong to one proof: the first of these that there is.
    let mut secrets_left = if source.has("verify") { &[][..] } else { keys_shown.as_slice() };
    if let Some(table) = source.table("each_secret") {
        match jwt::read_each(&table, std::mem::take(&mut secrets_left), label) {
            Some(each) => proofs.push(Arc::new(each)),
            None => scheme_failed = true,
        }
        table.finish();
    }
    let mut bearer_token = false;
    if let Some(table) = source.table("jwt") {
        resends = if source.has("verify") { resends } else { read_resends(&table) };
        bearer_token = table.peek_text("prefix").is_some_and(|word| word.trim_end().eq_ignore_ascii_case("bearer"));
        match jwt::read(source, &table, std::mem::take(&mut secrets_left), public_url.as_deref(), label) {
            Some((token, names)) => {
                secret_names.extend(names);
                proofs.push(Arc::new(token));
            }
            None => scheme_failed = true,
        }
        table.finish();
    }
    if let Some(table) = source.table("http_signature") {
        resends = if source.has("verify") || source.has("jwt") { resends } else { read_resends(&table) };
        let secrets = std::mem::take(&mut secrets_left);
        match http_signature::read(source, &table, secrets, label, public_url.as_deref()) {
            Some(signature) => proofs.push(Arc::new(signature)),
            None => scheme_failed = true,
        }
        table.finish();
    } else if keys_shown.iter().any(|named| named.algorithm.is_some()) {
        source.error("secrets", "an `algorithm` beside a secret has no effect here", "it belongs to `http_signature`");
    }

    if let Some(table) = source.table("platform") {
        resends = if source.has("verify") { resends } else { read_resends(&table) };
        match platform::read(&table, label) {
            Some(proof) => proofs.push(proof),
            None => scheme_failed = true,
        }
        table.finish();
    }

    if let Some(table) = source.table("cloudevents") {
        bearer_token = true;
        let query = table.text("query").unwrap_or_else(|| {
            table.note_default("query", r#""access_token""#);
            "access_token".to_owned()
        });
        let secrets = std::mem::take(&mut secrets_left);
        if secrets.is_empty() && !source.has("secrets") {
            source.error(
                "",
                "`secrets` is missing: `cloudevents` needs at least one",
                r#"secrets = [{ env = "TOKEN" }]"#,
            );
        }
        secrets.iter().for_each(|named| warn_if_short(source, "secrets", &named.secret, SHORT_PASSWORD));
        let tokens: Vec<_> = secrets.iter().map(|named| named.secret.clone()).collect();
        scheme_failed |= tokens.is_empty();
        proofs.push(Arc::new(CloudEvents::new(label.unwrap_or("cloudevents").into(), tokens, query)));
        table.finish();
    }

    let basic = source.table("basic").and_then(|table| {
        if !lent.is_empty() && !table.has("username") && !table.has("password") {
            table.finish();
            let logins: Vec<_> = lent.iter().filter_map(|named| login(source, named, &mut secret_names)).collect();
            if logins.is_empty() {
                source.error("secrets", "none is `username:password`", "");
            }
            scheme_failed |= logins.is_empty();
            return (!logins.is_empty()).then_some(Basic { logins });
        }
        let username =
            table.needed_text("username", r#"basic = { username = "hooks", password = { env = "PASSWORD" } }"#);
        let password = table.secret("password");
        if !table.has("password") {
            table.error("", "`password` is missing", r#"password = { env = "PASSWORD" }"#);
        }
        if username.as_ref().is_some_and(|name| name.is_empty() || name.contains(':')) {
            table.error("username", "is empty or holds a `:`, which RFC 7617 does not allow", "");
        }
        let pair = username.zip(password);
        table.finish();
        pair.map(|(username, named)| {
            warn_if_short(source, "basic", &named.secret, SHORT_PASSWORD);
            secret_names.push(named.name);
            Basic { logins: vec![(username, named.secret)] }
        })
    });
    let bearer =
        source.has("bearer").then(|| source.secrets("bearer")).filter(|secrets| !secrets.is_empty()).map(|named| {
            named
                .into_iter()
                .map(|named| {
                    warn_if_short(source, "bearer", &named.secret, SHORT_PASSWORD);
                    secret_names.push(named.name);
                    named.secret
                })
                .collect::<Vec<_>>()
        });
    let token = source.table("token").and_then(|table| {
        let example = r#"token = { header = "X-Gitlab-Token", secrets = [{ env = "TOKEN" }] }"#;
        let places = [
            table.parsed("header", header_name).map(TokenPlace::Header),
            table.text("json").map(TokenPlace::Json),
            table.text("query").map(TokenPlace::Query),
            table.text("form").map(TokenPlace::Form),
        ];
        let place = exactly_one(&table, places, example, "one of header, json, query, form");
        // Where a short one is complained of: at what the user wrote.
        let (named, written) = match table.has("secrets") {
            true => (table.secrets("secrets"), "token"),
            false => (std::mem::take(&mut lent), "secrets"),
        };
        if !table.has("secrets") && named.is_empty() {
            table.ignore(&["secrets"]);
            table.error("", "`secrets` is missing", example);
        }
        table.finish();
        let place = place.filter(|_| !named.is_empty())?;
        let secrets = named
            .into_iter()
            .map(|named| {
                warn_if_short(source, written, &named.secret, SHORT_PASSWORD);
                secret_names.push(named.name);
                named.secret
            })
            .collect();
        Some(Token { place, secrets })
    });
    if source.has("cloudevents") && (basic.is_some() || bearer.is_some()) {
        source.error(
            "cloudevents",
            "a request has one Authorization header: this token and `basic` or `bearer` cannot both pass",
            "keep one of them",
        );
        return None;
    }
    if basic.is_some() && bearer.is_some() {
        source.error(
            "bearer",
            "a request has one Authorization header: `basic` and `bearer` cannot both pass",
            "keep one of the two",
        );
        return None;
    }
    if scheme_failed {
        return None;
    }

    let challenge = match (&basic, &bearer) {
        (Some(_), _) => r#"Basic realm="webhooks", charset="UTF-8""#,
        (_, Some(_)) => "Bearer",
        _ if bearer_token => "Bearer",
        _ => "Signature",
    };
    let proves_something =
        scheme.is_some() || !proofs.is_empty() || basic.is_some() || bearer.is_some() || token.is_some();
    let label: Arc<str> = match (label, &scheme) {
        (Some(label), _) => label.into(),
        (None, Some(scheme)) => scheme.algorithm.name().into(),
        (None, None) => "".into(),
    };
    let has_id = !id.is_empty();
    let handshakes::Read { handshakes, only_json, awaits, shows_captured, .. } = asked;
    let document = scheme.as_ref().map(|scheme| scheme.more.document.clone()).unwrap_or_default();
    let settings = Settings {
        label,
        scheme,
        awaits_key,
        proofs,
        handshakes,
        only_json,
        basic,
        bearer,
        token,
        id,
        event,
        public_url,
        document,
        replay,
    };
    match Verifier::build(settings) {
        Ok(verifier) => Some(Credentials {
            signs_time: verifier.signs_time(),
            has_replay_key: verifier.has_replay_keys(),
            verifier: Arc::new(verifier),
            secret_names,
            secret_prints,
            proves_something,
            has_id,
            resends,
            awaits,
            shows_captured,
            challenge: HeaderValue::from_static(challenge),
        }),
        Err(error) => {
            source.error("verify", error.to_string(), "");
            None
        }
    }
}

fn read_resends(table: &Table<'_>) -> Resends {
    let choices = [("resigned", Resends::Resigned), ("same_bytes", Resends::SameBytes), ("unknown", Resends::Unknown)];
    table.choice("resends", Some("unknown"), &choices).unwrap_or(Resends::Unknown)
}

/// Do `token` or `basic` take the source's own secrets? So that presets can say where they go.
fn lends(source: &Table<'_>) -> bool {
    let token = source.table("token").is_some_and(|token| !token.has("secrets"));
    let basic = source.table("basic").is_some_and(|basic| !basic.has("username") && !basic.has("password"));
    token || basic
}

/// A secret that is `username:password`; the password may hold further colons.
fn login(source: &Table<'_>, named: &Named, names: &mut Vec<String>) -> Option<(String, Secret)> {
    let bytes = named.secret.expose();
    let colon = bytes.iter().position(|byte| *byte == b':');
    let (username, password) = bytes.split_at(colon.unwrap_or(0));
    let password = Secret::new(password.strip_prefix(b":").unwrap_or(password).to_vec());
    match std::str::from_utf8(username) {
        Ok(username) if colon.is_some() && !username.is_empty() && !password.is_empty() => {
            warn_if_short(source, "secrets", &password, SHORT_PASSWORD);
            names.push(named.name.clone());
            Some((username.to_owned(), password))
        }
        Ok(_) | Err(_) => {
            source.warn("secrets", "a secret for Basic credentials is `username:password`; this one fits nothing", "");
            None
        }
    }
}

fn warn_if_short(table: &Table<'_>, key: &str, secret: &Secret, least: usize) {
    if secret.len() < least {
        table.warn(
            key,
            format!("the secret has {} bytes; one under {least} can be found by trying", secret.len()),
            "openssl rand -hex 32",
        );
    }
}

/// `{ rate = "100/s", burst = 200 }`.
pub(super) fn quota(table: &Table<'_>) -> Option<Quota> {
    let burst =
        table.has("burst").then(|| table.count("burst", 1, 1..=1_000_000)).and_then(|burst| u32::try_from(burst).ok());
    let rate = table.needed_text("rate", r#"{ rate = "100/s", burst = 200 }"#)?;
    match Quota::parse(&rate, burst) {
        Ok(quota) => Some(quota),
        Err(error) => {
            table.error("rate", error.to_string(), r#""100/s", "30/m" or "5/h""#);
            None
        }
    }
}
