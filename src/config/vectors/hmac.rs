//! The HMAC and shared-secret family: secrets, and what else its vectors are configured with.

use serde_json::Value;

use super::{preset_with, quoted, texts, tolerance};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    let preset = provider.replace('_', "-");
    let secrets = texts(&config["secrets"]);
    // Braintree names the key of each signature.
    let with_preset = match config["public_key"].as_str() {
        Some(id) => {
            let secrets: Vec<_> =
                secrets.iter().map(|secret| format!("{{ value = {}, id = {} }}", quoted(secret), quoted(id))).collect();
            format!("provider = {}\nsecrets = [{}]\n", quoted(&preset), secrets.join(", "))
        }
        None => preset_with(&preset, &secrets),
    };
    Some(with_preset + &tolerance(config.get("tolerance_s")))
}

/// The two of the family that the other file has vectors of as well.
pub(super) fn among_signatures(provider: &str, config: &Value) -> Option<String> {
    let secret = [config["secret"].as_str()?];
    let tolerance = tolerance(config.get("tolerance_seconds"));
    match provider {
        "mercado_pago" => Some(preset_with("mercadopago", &secret) + &tolerance),
        "coinbase_cdp" if texts(&config["versions"]) == ["v0"] => {
            let older = "verify.signature.key = \"v0\"\nverify.message = \"{timestamp}.{body}\"\n";
            Some(preset_with("coinbase-cdp", &secret) + &tolerance + older)
        }
        "coinbase_cdp" => Some(preset_with("coinbase-cdp", &secret) + &tolerance),
        _ => None,
    }
}
