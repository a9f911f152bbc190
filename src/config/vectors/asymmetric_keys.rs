//! Public keys that are configured: Ed25519, ECDSA and RSA over a template.

use serde_json::Value;

use super::{preset_with, tolerance};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    match provider {
        "discord" => Some(preset_with("discord", &[config["public_key"].as_str()?]) + &tolerance_of(config)),
        _ => None,
    }
}

fn tolerance_of(config: &Value) -> String {
    tolerance(config.get("tolerance_seconds"))
}
