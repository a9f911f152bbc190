//! Schemes that one platform has: certificates that are fetched, and keys that are named by URL.

use serde_json::Value;

pub(super) fn toml(_provider: &str, _config: &Value) -> Option<String> {
    None
}
