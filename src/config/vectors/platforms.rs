//! Schemes that one platform has: certificates that are fetched, and keys that are named by URL.

use serde_json::Value;

use super::{quoted, texts};

pub(super) fn toml(_provider: &str, config: &Value) -> Option<String> {
    let one =
        |key: &str, name: &str| format!("platform.{key} = {}\n", quoted(config[name].as_str().unwrap_or_default()));
    let many = |key: &str, name: &str| {
        let listed: Vec<_> = texts(&config[name]).into_iter().map(quoted).collect();
        format!("platform.{key} = [{}]\n", listed.join(", "))
    };
    // None is stated: as long as can be said.
    let tolerance = match &config["tolerance_seconds"] {
        Value::Null => "platform.tolerance = \"90d\"\n".to_owned(),
        seconds => format!("platform.tolerance = \"{seconds}s\"\n"),
    };
    let (preset, keys) = match config["scheme"].as_str()? {
        "aws-sns" => {
            ("aws-sns", many("topics", "topic_arns") + &many("signature_versions", "signature_versions") + &tolerance)
        }
        "paypal" => ("paypal", one("webhook_id", "webhook_id") + &one("roots", "trust_roots_pem") + &tolerance),
        "alexa" => ("alexa", one("roots", "trust_roots_pem") + &tolerance),
        "adobe-io" => ("adobe-io", one("client_id", "client_id")),
        "apple-jws" => {
            let root = config["trust_roots_der_b64"][0].as_str().unwrap_or_default();
            let pem = format!("-----BEGIN CERTIFICATE-----\n{root}\n-----END CERTIFICATE-----\n");
            let app = config["app_apple_id"].as_u64().map(|id| format!("platform.app_apple_id = {id}\n"));
            let keys = one("bundle_id", "bundle_id") + &one("environment", "environment") + &app.unwrap_or_default();
            ("apple-app-store", keys + &format!("platform.roots = {}\n", quoted(&pem)))
        }
        _ => return None,
    };
    Some(format!("provider = {}\n{keys}", quoted(preset)))
}
