//! The HMAC and shared-secret family: secrets, and what else its vectors are configured with.

use serde_json::Value;

use super::{preset_with, texts, tolerance};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    let preset = provider.replace('_', "-");
    Some(preset_with(&preset, &texts(&config["secrets"])) + &tolerance(config.get("tolerance_s")))
}
