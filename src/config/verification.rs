//! A source's credentials: the `verify` table and its neighbours, made into what `verify` works with.

use super::guessable::{self, Guessable, lends, warn_if_short};
use super::handshakes;
use super::http_signature;
use super::jwt;
use super::platform;
use super::reader::Table;
use super::scheme::{locators, read_scheme};
use super::secret_ref::Named;
use crate::secret::Secret;
use crate::state::Quota;
use crate::verify::{CloudEvents, Proof, Scheme, Settings, Template, Verifier};
use http::HeaderValue;
use sha2::{Digest, Sha256};
use std::sync::Arc;

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

/// What is found while a source's tables are read, one proof after the other.
struct Reading<'t> {
    source: &'t Table<'t>,
    label: Option<&'t str>,
    public_url: Option<String>,
    /// The source's own. They belong to one proof: the first that asks for some.
    secrets: Vec<Named>,
    /// Of those that are in use, in the order in which proofs count them.
    names: Vec<String>,
    proofs: Vec<Arc<dyn Proof>>,
    /// What the first table says that says it.
    resends: Option<Resends>,
    wants_bearer: bool,
    /// A handshake brings the secret, if one is awaited.
    brings: bool,
    failed: bool,
}

pub(super) fn read(source: &Table<'_>, label: Option<&str>) -> Option<Credentials> {
    let secrets = source.secrets("secrets");
    let secret_prints = secrets.iter().map(|named| Sha256::digest(named.secret.expose()).into()).collect();
    if !source.has("http_signature") && secrets.iter().any(|named| named.algorithm.is_some()) {
        source.error("secrets", "an `algorithm` beside a secret has no effect here", "it belongs to `http_signature`");
    }
    let mut reading = Reading {
        source,
        label,
        public_url: source.text("public_url"),
        names: secrets.iter().map(|named| named.name.clone()).collect(),
        secrets,
        proofs: Vec::new(),
        resends: None,
        wants_bearer: false,
        brings: false,
        failed: false,
    };
    let mut id = locators(source, "id");
    let mut event = locators(source, "event");
    let replay = reading.replay();
    let verify = source.table("verify");
    let asked = handshakes::read(source, verify.as_ref(), &reading.secrets, reading.public_url.as_deref());
    let awaits_key = asked.awaits.is_some() && reading.secrets.is_empty();
    reading.brings = asked.handshakes.iter().any(|handshake| handshake.capture.is_some());
    if let (true, Some(name), Some(table)) = (awaits_key, &asked.awaits, &verify) {
        reading.awaited(name, table);
    }
    let mut scheme = None;
    if let Some(table) = &verify {
        let (theirs_id, theirs_event) = (locators(table, "id"), locators(table, "event"));
        id = if id.is_empty() { theirs_id } else { id };
        event = if event.is_empty() { theirs_event } else { event };
        scheme = reading.scheme(table);
        table.check_unknown();
    }
    let lent = if lends(source) && verify.is_none() { reading.lend() } else { Vec::new() };
    if verify.is_none() {
        reading.unused(asked.uses_secrets);
    }
    reading.each_secret();
    reading.jwt();
    reading.http_signature();
    reading.platform();
    reading.cloudevents();
    let Reading { public_url, names: secret_names, proofs, resends, wants_bearer, failed, .. } = reading;

    let guessable = guessable::read(source, lent, secret_names);
    if failed {
        return None;
    }
    let Guessable { basic, bearer, token, names: secret_names } = guessable?;
    let challenge = match (&basic, &bearer) {
        (Some(_), _) => r#"Basic realm="webhooks", charset="UTF-8""#,
        (_, Some(_)) => "Bearer",
        _ if wants_bearer => "Bearer",
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
            resends: resends.unwrap_or(Resends::Unknown),
            awaits,
            shows_captured,
            challenge: HeaderValue::from_static(challenge),
        }),
        Err(error) => {
            let key = if error.is_of_a_secret() && source.has("secrets") { "secrets" } else { "verify" };
            source.error(key, error.to_string(), "");
            None
        }
    }
}

impl Reading<'_> {
    fn resends(&mut self, table: &Table<'_>) {
        let choices =
            [("resigned", Resends::Resigned), ("same_bytes", Resends::SameBytes), ("unknown", Resends::Unknown)];
        if self.resends.is_none() {
            self.resends = Some(table.choice("resends", Some("unknown"), &choices).unwrap_or(Resends::Unknown));
        }
    }

    fn replay(&mut self) -> Option<Template> {
        let text = self.source.text("replay")?;
        match Template::parse(&text) {
            Ok(template) => Some(template),
            Err(error) => {
                let what = format!("at character {}: {}", error.position + 1, error.what);
                self.source.error("replay", what, &error.try_this);
                self.failed = true;
                None
            }
        }
    }

    /// Stands in the place of a secret that its sender will bring; nobody knows this one.
    fn awaited(&mut self, name: &str, verify: &Table<'_>) {
        if verify.has("key") || !verify.peek_text("algorithm").is_some_and(|name| name.starts_with("hmac")) {
            verify.error("", "takes a secret that a sender brings for HMAC alone, and as it is", "`secrets`");
        }
        let secret = Secret::new(rand::random::<[u8; 32]>().to_vec());
        let name = format!("captured:{name}");
        self.names.push(name.clone());
        self.secrets.push(Named { name, id: None, algorithm: None, secret });
    }

    fn scheme(&mut self, table: &Table<'_>) -> Option<Scheme> {
        self.resends(table);
        // The sender's own list of keys is enough.
        if self.secrets.is_empty() && (self.source.has("secrets") || !table.has("keys_url")) {
            if !self.source.has("secrets") {
                let what = "`secrets` is missing: `verify` needs at least one";
                let hint = match self.brings {
                    true => {
                        r#"secrets = [{ env = "NAME" }], or handshake.await_secret = "NAME": the provider brings it"#
                    }
                    false => r#"secrets = [{ env = "NAME" }]"#,
                };
                self.source.error("", what, hint);
            }
            self.failed = true;
        }
        let secrets = std::mem::take(&mut self.secrets);
        let scheme = read_scheme(self.source, table, &secrets, self.public_url.as_deref());
        self.failed |= scheme.is_none();
        scheme
    }

    /// For `token` and `basic`, which name them themselves.
    fn lend(&mut self) -> Vec<Named> {
        self.names.clear();
        std::mem::take(&mut self.secrets)
    }

    /// Secrets that no table asks for.
    fn unused(&mut self, in_handshakes: bool) {
        let theirs = ["jwt", "each_secret", "http_signature", "cloudevents"];
        if self.secrets.is_empty() || in_handshakes || theirs.iter().any(|proof| self.source.has(proof)) {
            return;
        }
        if self.label.is_some() {
            let what = "nothing uses these: the preset verifies nothing by itself";
            self.source.warn("secrets", what, "remove them");
        } else if self.source.has("provider") {
            // There is no such preset: then nobody knows what they are for.
            self.failed = true;
        } else {
            self.source.error(
                "secrets",
                "nothing uses these: there is neither `provider` nor a `verify`, `jwt`, `http_signature` or `cloudevents` table",
                r#"provider = "github", or a table [sources.NAME.verify]"#,
            );
            self.secrets.clear();
            self.names.clear();
        }
    }

    fn push(&mut self, proof: Option<Arc<dyn Proof>>) {
        self.failed |= proof.is_none();
        self.proofs.extend(proof);
    }

    fn each_secret(&mut self) {
        let Some(table) = self.source.table("each_secret") else { return };
        let secrets = std::mem::take(&mut self.secrets);
        let each = jwt::read_each(&table, &secrets, self.label);
        self.push(each.map(|each| Arc::new(each) as Arc<dyn Proof>));
        table.finish();
    }

    fn jwt(&mut self) {
        let Some(table) = self.source.table("jwt") else { return };
        self.resends(&table);
        self.wants_bearer |=
            table.peek_text("prefix").is_some_and(|word| word.trim_end().eq_ignore_ascii_case("bearer"));
        let secrets = std::mem::take(&mut self.secrets);
        let read = jwt::read(self.source, &table, &secrets, self.public_url.as_deref(), self.label);
        let token = read.map(|(token, names)| {
            self.names.extend(names);
            Arc::new(token) as Arc<dyn Proof>
        });
        self.push(token);
        table.finish();
    }

    fn http_signature(&mut self) {
        let Some(table) = self.source.table("http_signature") else { return };
        self.resends(&table);
        let secrets = std::mem::take(&mut self.secrets);
        let read = http_signature::read(self.source, &table, &secrets, self.label, self.public_url.as_deref());
        self.push(read.map(|signature| Arc::new(signature) as Arc<dyn Proof>));
        table.finish();
    }

    fn platform(&mut self) {
        let Some(table) = self.source.table("platform") else { return };
        self.resends(&table);
        let proof = platform::read(&table, self.label);
        self.push(proof);
        table.finish();
    }

    fn cloudevents(&mut self) {
        let Some(table) = self.source.table("cloudevents") else { return };
        if self.source.has("basic") || self.source.has("bearer") {
            self.source.error(
                "cloudevents",
                "a request has one Authorization header: this token and `basic` or `bearer` cannot both pass",
                "keep one of them",
            );
            self.failed = true;
        }
        self.wants_bearer = true;
        let query = table.text("query").unwrap_or_else(|| {
            table.note_default("query", r#""access_token""#);
            "access_token".to_owned()
        });
        let secrets = std::mem::take(&mut self.secrets);
        if secrets.is_empty() && !self.source.has("secrets") {
            let what = "`secrets` is missing: `cloudevents` needs at least one";
            self.source.error("", what, r#"secrets = [{ env = "TOKEN" }]"#);
        }
        secrets.iter().for_each(|named| warn_if_short(self.source, "secrets", &named.secret));
        let tokens: Vec<_> = secrets.into_iter().map(|named| named.secret).collect();
        let label = self.label.unwrap_or("cloudevents").into();
        let proof = (!tokens.is_empty()).then(|| Arc::new(CloudEvents::new(label, tokens, query)) as Arc<dyn Proof>);
        self.push(proof);
        table.finish();
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

#[cfg(test)]
mod tests {
    use super::super::vectors::loaded;

    #[test]
    fn an_algorithm_beside_a_secret_is_an_error_wherever_nothing_reads_it() {
        let said = |secret: &str, proof: &str| {
            let text = format!(
                "[listeners.a]\naddress = \"127.0.0.1:0\"\n[upstreams.u]\nurls = [\"http://127.0.0.1:9000\"]\n\
                 [sources.s]\npath = \"/s\"\nupstream = \"u\"\nsecrets = [{{ value = \"0123456789abcdef\"{secret} }}]\n\
                 {proof}\n"
            );
            let problems = loaded(&text).problems;
            problems.iter().any(|problem| problem.what == "an `algorithm` beside a secret has no effect here")
        };
        for proof in [
            "provider = \"github\"",
            "token = { header = \"X-Token\" }",
            "cloudevents = {}",
            "jwt = { header = \"X-Token\", algorithms = [\"HS256\"] }",
        ] {
            assert!(said(", algorithm = \"hmac-sha256\"", proof), "{proof}");
            assert!(!said("", proof), "{proof}");
        }
    }
}
