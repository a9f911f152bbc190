//! Questions that a provider asks of a new endpoint, signed and unsigned.

use serde_json::Value;

use super::{preset_with, tolerance};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    match provider {
        "hs_discord" => Some(preset_with("discord", &[config["public_key"].as_str()?])),
        "hs_slack" => {
            let signing = &config["signing"];
            let tolerance = tolerance(signing.get("tolerance_seconds"));
            Some(preset_with("slack", &[signing["secret"].as_str()?]) + &tolerance)
        }
        _ => None,
    }
}
