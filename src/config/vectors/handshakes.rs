//! Questions that a provider asks of a new endpoint, signed and unsigned.

use std::fmt::Write;

use serde_json::Value;

use super::{preset_with, quoted, texts, tolerance};

/// A key that no vector of a handshake was signed with: the source has to have one.
const UNUSED: &str = "not-what-this-handshake-is-about";

pub(super) fn toml(provider: &str, config: &Value) -> Option<String> {
    let text = |name: &str| config[name].as_str();
    let signed = |preset: &str, secret: Option<&str>| {
        Some(preset_with(preset, &[secret?]) + &tolerance(config["signing"].get("tolerance_seconds")))
    };
    let keyed = |preset: &str| preset_with(preset, &[UNUSED]);
    // A warning where the preset has a proof after all.
    let unproven = |preset: &str| keyed(preset) + "danger_accept_unverified = true\n";
    let token = |name: &str| Some(format!("handshake.token = {{ value = {} }}\n", quoted(text(name)?)));
    let list = |name: &str, values: &Value| {
        let values: Vec<_> = texts(values).into_iter().map(quoted).collect();
        format!("handshake.{name} = [{}]\n", values.join(", "))
    };
    Some(match provider {
        "hs_discord" => preset_with("discord", &[text("public_key")?]),
        "hs_slack" => signed("slack", config["signing"]["secret"].as_str())?,
        "hs_zoom" => signed("zoom", text("secret"))?,
        "hs_twitch" => signed("twitch", text("secret"))?,
        "hs_xero" => signed("xero", text("secret"))?,
        "hs_meta" => keyed("meta") + &token("verify_token")?,
        "hs_strava" => unproven("strava") + &token("verify_token")?,
        "hs_fitbit" => keyed("fitbit") + &token("expected")?,
        "hs_websub" => keyed("websub") + &list("topics", &config["topics"]) + &list("modes", &config["allow_modes"]),
        "hs_twitter_crc" => preset_with("x-twitter", &[text("consumer_secret")?]),
        "hs_ms_graph" => keyed("ms-graph"),
        "hs_azure_event_grid" => {
            let topics = list("topics", &config["topics"]);
            let token = "jwt.issuer = [\"https://sts.windows.net/tenant/\"]\njwt.audience = [\"app\"]\n";
            format!("provider = \"azure-event-grid\"\n{topics}{token}")
        }
        "hs_cloudevents" => {
            let mut keys = unproven("cloudevents") + &list("origins", &config["allowed_origins"]);
            if let Some(rate) = text("allowed_rate") {
                let _ = writeln!(keys, "handshake.rate = {rate}");
            }
            keys
        }
        "hs_dropbox" => keyed("dropbox"),
        "hs_nylas" => keyed("nylas"),
        "hs_adobe_io" => "provider = \"adobe-io\"\nplatform.client_id = \"client1\"\n".to_owned(),
        "hs_okta" => preset_with("okta", &[text("authorization")?]),
        "hs_asana" | "hs_notion" => {
            let preset = if provider == "hs_asana" { "asana" } else { "notion" };
            match text("state")? {
                "awaiting" => format!("provider = {}\nhandshake.await_secret = \"first\"\n", quoted(preset)),
                _ => keyed(preset),
            }
        }
        "hs_trello" => keyed("trello"),
        "hs_mailchimp" => unproven("mailchimp"),
        "hs_google_push" => preset_with("google-push", &[text("channel_token")?]),
        "hs_monday" => keyed("monday"),
        "hs_wechat_mp" => unproven("wechat-mp") + &token("token")?,
        "hs_lark" => preset_with("lark", &[text("verification_token")?]),
        "hs_ringcentral" => keyed("ringcentral"),
        "hs_vk" => {
            let group = quoted(&config["group_id"].to_string());
            let answer = quoted(config["respond"]["body"].as_str()?);
            let keys = preset_with("vk", &[text("secret")?]);
            format!("{keys}handshake.topics = [{group}]\nhandshake.answer = {answer}\n")
        }
        "hs_qq_bot" => preset_with("qq-bot", &[text("bot_secret")?]),
        "hs_dropbox_sign" => preset_with("dropbox-sign", &[text("api_key")?]),
        "hs_aws_sns" => super::platforms::toml(provider, config)?,
        _ => return None,
    })
}
