//! JSON Web Tokens, and other tokens that prove who sends.

use std::fmt::Write;

use serde_json::Value;

use super::{quoted, texts};

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    match config["scheme"].as_str()? {
        "jwt" => Some(preset(provider) + &keys(config) + &jwt(config)),
        "jws-detached" => Some(preset("fireblocks_jws") + &keys(config) + &algorithms(config)),
        "truelayer" => {
            Some(preset(provider) + &keys(config) + &algorithms(config) + &list("jku", &config["allowed_jku"]))
        }
        "atlassian-connect" => Some(preset(provider) + &atlassian(config)),
        "ms-graph" => Some(graph(config)),
        _ => None,
    }
}

fn preset(provider: &str) -> String {
    format!("provider = {}\n", quoted(&provider.replace('_', "-")))
}

/// The secrets of a source: shared ones, a PEM or a whole key set.
fn keys(config: &Value) -> String {
    let mut secrets: Vec<String> = texts(&config["hmac_secrets"]).into_iter().map(str::to_owned).collect();
    secrets.extend(["hmac_secret", "public_key"].iter().filter_map(|name| Some(config[name].as_str()?.to_owned())));
    if !config["jwks"].is_null() {
        secrets.push(config["jwks"].to_string());
    }
    let secrets: Vec<_> = secrets.iter().map(|secret| format!("{{ value = {} }}", quoted(secret))).collect();
    format!("secrets = [{}]\n", secrets.join(", "))
}

fn list(key: &str, texts_of: &Value) -> String {
    match texts_of {
        Value::String(text) => format!("jwt.{key} = [{}]\n", quoted(text)),
        Value::Array(_) => {
            let texts: Vec<_> = texts(texts_of).into_iter().map(quoted).collect();
            format!("jwt.{key} = [{}]\n", texts.join(", "))
        }
        _ => String::new(),
    }
}

fn algorithms(config: &Value) -> String {
    list("algorithms", &config["algorithms"])
}

/// What the vector states; what it does not state is the preset's.
fn jwt(config: &Value) -> String {
    let mut lines = algorithms(config);
    for (key, stated) in
        [("issuer", "issuer"), ("audience", "audience"), ("subject", "subject"), ("require", "require_claims")]
    {
        lines += &list(key, &config[stated]);
    }
    for table in ["claims", "claims_any"] {
        for (name, value) in config[table].as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), quoted);
            let _ = writeln!(lines, "jwt.{table}.{} = {value}", quoted(name));
        }
    }
    if let Some(required) = config["require_exp"].as_bool() {
        let _ = writeln!(lines, "jwt.require_exp = {required}");
    }
    for (key, stated) in [("leeway", "leeway_seconds"), ("max_age", "max_age_seconds")] {
        if let Some(seconds) = config[stated].as_u64() {
            let _ = writeln!(lines, "jwt.{key} = \"{seconds}s\"");
        }
    }
    lines
}

fn atlassian(config: &Value) -> String {
    let tenants = config["tenants"].as_object().into_iter().flatten();
    let secrets: Vec<_> = tenants
        .map(|(id, secret)| {
            format!("{{ value = {}, id = {} }}", quoted(secret.as_str().unwrap_or_default()), quoted(id))
        })
        .collect();
    let base_path = quoted(config["base_path"].as_str().unwrap_or_default());
    format!("secrets = [{}]\njwt.qsh.base_path = {base_path}\n", secrets.join(", ")) + &jwt(config)
}

fn graph(config: &Value) -> String {
    let secret = format!("secrets = [{{ value = {} }}]\n", quoted(config["client_state"].as_str().unwrap_or_default()));
    if config["require_validation_tokens"] != true {
        return preset("ms_graph") + &secret;
    }
    let tokens = &config["jwt"];
    let publisher = quoted(tokens["publisher_app_id"].as_str().unwrap_or_default());
    let mut lines = preset("ms_graph_rich") + &secret + &jwt(tokens);
    let _ = writeln!(lines, "jwt.keys = [{{ value = {} }}]", quoted(&tokens["jwks"].to_string()));
    for claim in texts(&tokens["publisher_claims"]) {
        let _ = writeln!(lines, "jwt.claims_any.{claim} = {publisher}");
    }
    lines
}
