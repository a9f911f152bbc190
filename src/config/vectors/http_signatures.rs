//! HTTP Message Signatures, their drafts, and the other standards of HTTP.

use serde_json::Value;

pub(super) fn toml(_provider: &str, _config: &Value) -> Option<String> {
    None
}
