//! JSON Web Tokens, and other tokens that prove who sends.

use serde_json::Value;

pub(super) fn toml(_provider: &str, _config: &Value) -> Option<String> {
    None
}
