//! Passwords and tokens: what can be guessed or stolen, and stands for no body.
//!
//! Invariant: a secret that is short enough to be found by trying is complained of where the user wrote it.

use super::reader::Table;
use super::scheme::exactly_one;
use super::secret_ref::Named;
use super::units::header_name;
use crate::secret::Secret;
use crate::verify::{Basic, Token, TokenPlace};

/// A password below this many bytes can be found by trying.
const SHORT_PASSWORD: usize = 12;

pub(super) struct Guessable {
    pub(super) basic: Option<Basic>,
    pub(super) bearer: Option<Vec<Secret>>,
    pub(super) token: Option<Token>,
    /// Of all secrets so far, in the order in which they are counted.
    pub(super) names: Vec<String>,
}

/// `lent`: the source's own secrets, where `token` or `basic` takes them.
pub(super) fn read(source: &Table<'_>, mut lent: Vec<Named>, mut names: Vec<String>) -> Option<Guessable> {
    let mut failed = false;
    let basic = source.table("basic").and_then(|table| {
        if !lent.is_empty() && !table.has("username") && !table.has("password") {
            table.finish();
            let logins: Vec<_> = lent.iter().filter_map(|named| login(source, named, &mut names)).collect();
            if logins.is_empty() {
                source.error("secrets", "none is `username:password`", "LOGIN=hooks:$(openssl rand -hex 16)");
            }
            failed |= logins.is_empty();
            return (!logins.is_empty()).then_some(Basic { logins });
        }
        if lent.is_empty() && !table.has("username") && !table.has("password") {
            table.finish();
            if !source.has("secrets") {
                let what = "`secrets` is missing: Basic credentials are one `username:password`";
                source.error("", what, r#"secrets = [{ env = "LOGIN" }]"#);
            }
            failed = true;
            return None;
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
            warn_if_short(source, "basic", &named.secret);
            names.push(named.name);
            Basic { logins: vec![(username, named.secret)] }
        })
    });
    let bearer =
        source.has("bearer").then(|| source.secrets("bearer")).filter(|secrets| !secrets.is_empty()).map(|named| {
            named
                .into_iter()
                .map(|named| {
                    warn_if_short(source, "bearer", &named.secret);
                    names.push(named.name);
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
                warn_if_short(source, written, &named.secret);
                names.push(named.name);
                named.secret
            })
            .collect();
        Some(Token { place, secrets })
    });
    if basic.is_some() && bearer.is_some() {
        source.error(
            "bearer",
            "a request has one Authorization header: `basic` and `bearer` cannot both pass",
            "keep one of the two",
        );
        failed = true;
    }
    (!failed).then_some(Guessable { basic, bearer, token, names })
}

/// Do `token` or `basic` take the source's own secrets? So that presets can say where they go.
pub(super) fn lends(source: &Table<'_>) -> bool {
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
            warn_if_short(source, "secrets", &password);
            names.push(named.name.clone());
            Some((username.to_owned(), password))
        }
        Ok(_) | Err(_) => {
            source.warn("secrets", "a secret for Basic credentials is `username:password`; this one fits nothing", "");
            None
        }
    }
}

pub(super) fn warn_if_short(table: &Table<'_>, key: &str, secret: &Secret) {
    if secret.len() < SHORT_PASSWORD {
        table.warn(
            key,
            format!("the secret has {} bytes; one under {SHORT_PASSWORD} can be found by trying", secret.len()),
            "openssl rand -hex 32",
        );
    }
}
