//! HTTP Message Signatures, their drafts, and the other standards of HTTP.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::vector::{Expect, Vector};
use super::{preset_with, quoted, texts};
use crate::secret::Secret;
use crate::verify::{KeyEncoding, KeyFormat, MessageAlgorithm, SignerKey};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    match config["scheme"].as_str()? {
        "rfc9421" => Some(rfc9421(config)),
        "cavage" => Some(cavage(provider, config)),
        "websub" => {
            let methods = format!("http_signature.methods = {}\n", list(&texts(&config["methods"])));
            Some(preset_with("websub", &[config["secret"].as_str()?]) + &methods)
        }
        "bearer-static" => {
            let origins = "handshake.origins = [\"eventemitter.example.com\"]\n";
            Some(preset_with("cloudevents-bearer", &[config["token"].as_str()?]) + origins)
        }
        _ => None,
    }
}

fn rfc9421(config: &Value) -> String {
    let mut components = texts(&config["required_components"]);
    if config["content_digest"] == "required" && !components.contains(&"content-digest") {
        components.push("content-digest");
    }
    let unsigned =
        if components.contains(&"content-digest") { "" } else { "http_signature.allow_unsigned_body = true\n" };
    let age = format!(
        "http_signature.max_age = \"{}s\"\nhttp_signature.clock_skew = \"{}s\"\n",
        config["max_age_seconds"], config["clock_skew_seconds"]
    );
    let key = "http_signature.key.encoding = \"base64\"\n";
    let components = format!("http_signature.components = {}\n", list(&components));
    of_preset("rfc9421", &config["keys"], "alg") + key + &components + unsigned + &age
}

fn cavage(provider: &str, config: &Value) -> String {
    let required = texts(&config["required_headers"]);
    let unsigned = if required.contains(&"digest") { "" } else { "http_signature.allow_unsigned_body = true\n" };
    let tolerance = &config["clock_skew_seconds"];
    let age = format!("http_signature.max_age = \"{tolerance}s\"\nhttp_signature.clock_skew = \"{tolerance}s\"\n");
    let headers = texts(&config["signature_location"]);
    let headers: Vec<_> = headers.iter().map(|header| header.split(':').next().unwrap_or_default()).collect();
    let components =
        format!("http_signature.components = {}\nhttp_signature.headers = {}\n", list(&required), list(&headers));
    // The key of the draft's own examples has 1024 bits.
    let is_draft = config["keys"].as_object().is_some_and(|keys| keys.contains_key("Test"));
    let short = if is_draft { "http_signature.allow_short_rsa = true\n" } else { "" };
    of_preset(&provider.replace('_', "-"), &config["keys"], "algorithm") + &components + unsigned + &age + short
}

/// Each key with its id and its algorithm.
fn of_preset(preset: &str, keys: &Value, algorithm: &str) -> String {
    let secrets = keys.as_object().into_iter().flatten().map(|(id, key)| {
        let material = ["public_key_pem", "public_key_hex", "secret_base64", "secret"];
        let value = material.iter().find_map(|name| key[*name].as_str()).unwrap_or_default();
        let algorithm = key[algorithm].as_str().unwrap_or_default();
        format!("{{ value = {}, id = {}, algorithm = {} }}", quoted(value), quoted(id), quoted(algorithm))
    });
    let secrets = secrets.collect::<Vec<_>>().join(", ");
    format!("provider = {}\nsecrets = [{secrets}]\n", quoted(preset))
}

/// RFC 9421, B.2.4: the example that signs a response, of which the base and the signature are given.
pub(super) fn primitive(vector: &Vector) -> Result<(), String> {
    let decoded = |name: &str| STANDARD.decode(vector.0[name].as_str().unwrap_or_default()).map_err(|e| e.to_string());
    let pem = Secret::new(vector.config()["public_key_pem"].as_str().unwrap_or_default().into());
    let format = KeyFormat { encoding: KeyEncoding::Utf8, strip_prefix: None };
    let key = SignerKey::read(&pem, None, MessageAlgorithm::EcdsaP256, &format, false).map_err(|e| e.to_string())?;
    let (message, signature) = (decoded("message_base64")?, decoded("signature_base64")?);
    match key.makes(&message, &signature) {
        made if made == (vector.expect() == Expect::Accept) => Ok(()),
        made => Err(format!("the signature is judged {made}")),
    }
}

fn list(texts: &[&str]) -> String {
    format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
}
