//! The sources whose deliveries are judged: one of each scheme, with keys that are the same in every run.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::{HMAC_SECRET, signed};
use crate::config;
use crate::verify::Verifier;

pub(super) const SOURCES: &str = r#"
[listeners.a]
address = "127.0.0.1:1"
[upstreams.u]
urls = ["http://127.0.0.1:1"]
[sources.hmac]
path = "/hmac"
secrets = [{ env = "HMAC" }]
upstream = "u"
[sources.hmac.verify]
algorithm = "hmac-sha256"
signature = { header = "X-Signature", encoding = "hex", prefix = "v1=" }
message = "{timestamp}.{body}"
timestamp = { header = "X-Timestamp" }
id = { header = "X-Id" }
[sources.github]
path = "/github"
provider = "github"
secrets = [{ env = "HMAC" }]
upstream = "u"
[sources.stripe]
path = "/stripe"
provider = "stripe"
secrets = [{ env = "HMAC" }]
upstream = "u"
[sources.slack]
path = "/slack"
provider = "slack"
secrets = [{ env = "HMAC" }]
upstream = "u"
[sources.standard]
path = "/standard"
provider = "standard-webhooks"
secrets = [{ env = "STANDARD" }]
upstream = "u"
[sources.ed25519]
path = "/ed25519"
provider = "discord"
secrets = [{ env = "ED25519" }]
upstream = "u"
[sources.p256]
path = "/p256"
provider = "sendgrid"
secrets = [{ env = "P256" }]
upstream = "u"
[sources.rsa]
path = "/rsa"
provider = "wechat-pay"
secrets = [{ env = "RSA", id = "key-1" }]
upstream = "u"
[sources.jwt]
path = "/jwt"
provider = "plaid"
secrets = [{ env = "JWK" }]
upstream = "u"
[sources.token]
path = "/token"
provider = "gitlab"
secrets = [{ env = "HMAC" }]
upstream = "u"
[sources.basic]
path = "/basic"
upstream = "u"
basic = { username = "sender", password = { env = "HMAC" } }
[sources.bearer]
path = "/bearer"
upstream = "u"
bearer = [{ env = "HMAC" }]
"#;

pub(super) fn loaded(text: &str) -> config::Config {
    loaded_with(text, |name| match name {
        "P256" => Some(signed::P256.to_owned()),
        "RSA" => Some(signed::RSA.to_owned()),
        "JWK" => Some(signed::JWK.to_owned()),
        _ => None,
    })
}

/// With other keys of those algorithms whose signatures are not the same in every run.
pub(super) fn loaded_with(text: &str, keys: impl Fn(&str) -> Option<String> + Sync) -> config::Config {
    let environment = |name: &str| {
        let value = match name {
            "HMAC" => HMAC_SECRET.to_owned(),
            "STANDARD" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
            "ED25519" => hex::encode(SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes()),
            _ => keys(name)?,
        };
        Some(value.into())
    };
    let loaded = config::load_text(text, &environment);
    let told: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
    loaded.config.unwrap_or_else(|| panic!("the sources above load: {told:?}"))
}

pub(super) fn verifier(name: &str) -> Arc<Verifier> {
    let sources = loaded(SOURCES).plan.sources;
    sources.iter().find(|source| &*source.name == name).expect("one of the sources above").verifier.clone()
}

/// What stands before the first of them, for others.
pub(super) fn without_sources() -> String {
    SOURCES.split("[sources").next().unwrap_or_default().to_owned()
}
