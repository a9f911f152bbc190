//! `providers`: which senders are known, how each was proven, and what a source needs for it.

use super::{NO, UNUSABLE_CONFIGURATION, complain, say};
use crate::config::{self, Provider, Severity};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// For programs: an array of objects, or one object.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// All of them: those that come with hookward and those of the configuration's `provider_files`.
    List {
        /// As docs/providers.md.
        #[arg(long)]
        markdown: bool,
    },
    /// One of them whole: what is known of it, a source to begin with, and the preset itself.
    Show { name: String },
    /// Those whose name, page, headers or notes hold a text.
    Search { text: String },
}

/// The columns of the table; the page's are these as well.
const COLUMNS: [&str; 7] = ["preset", "name", "scheme", "proven by", "body", "replay key", "handshake"];

pub(super) fn providers(path: &Path, arguments: &Arguments) -> ExitCode {
    // Nobody needs a configuration to ask what there is; one that was named has to be there.
    let is_absent = path == Path::new(super::DEFAULT_CONFIGURATION) && !path.exists();
    let (known, problems) = config::providers((!is_absent).then_some(path));
    for problem in &problems {
        complain(&problem.to_string());
    }
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return ExitCode::from(UNUSABLE_CONFIGURATION);
    }
    match &arguments.what {
        None | Some(What::List { markdown: false }) => list(&known.iter().collect::<Vec<_>>(), arguments.json),
        Some(What::List { markdown: true }) => page(&known),
        Some(What::Show { name }) => return show(&known, name, arguments.json),
        Some(What::Search { text }) => {
            let found = search(&known, text);
            if found.is_empty() && !arguments.json {
                complain(&format!("no provider of {} has {text:?} in it", known.len()));
            }
            list(&found, arguments.json);
            if found.is_empty() {
                return ExitCode::from(NO);
            }
        }
    }
    ExitCode::SUCCESS
}

fn list(providers: &[&Provider], as_json: bool) {
    if as_json {
        let all: Vec<_> = providers.iter().map(|provider| Value::Object(object(provider))).collect();
        return say(&Value::Array(all).to_string());
    }
    if providers.is_empty() {
        return;
    }
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(providers.iter().map(|provider| row(provider)));
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..COLUMNS.len()).map(|column| width(column).unwrap_or_default()).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        say(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn row(provider: &Provider) -> [String; 7] {
    let about = |key| provider.about(key).unwrap_or("-").to_owned();
    // Which code agreed stands behind the colon: `show` and the page have it whole.
    let proven: String = about("proven_by").split([':', ';', ',', '(']).next().unwrap_or_default().trim().to_owned();
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        provider.preset.clone(),
        provider.name().to_owned(),
        provider.scheme.clone(),
        proven,
        about("body"),
        provider.replay_key.clone(),
        or_none(&provider.handshake),
    ]
}

/// The names first, then whatever else holds the text.
fn search<'a>(known: &'a [Provider], text: &str) -> Vec<&'a Provider> {
    let text = text.to_lowercase();
    let holds = |hay: &str| hay.to_lowercase().contains(&text);
    let named = |provider: &&Provider| holds(&provider.preset) || holds(provider.name());
    let (mut found, rest): (Vec<&Provider>, Vec<&Provider>) = known.iter().partition(named);
    found.extend(rest.into_iter().filter(|provider| holds(&provider.text)));
    found
}

fn show(known: &[Provider], name: &str, as_json: bool) -> ExitCode {
    let Some(provider) = known.iter().find(|provider| provider.preset == name) else {
        let near = config::nearest(name, known.iter().map(|provider| provider.preset.as_str()));
        let near = near.map(|near| format!("did you mean {near:?}? ")).unwrap_or_default();
        complain(&format!("there is no provider {name:?}; {near}try: hookward providers search {name}"));
        return ExitCode::from(NO);
    };
    if as_json {
        let mut object = object(provider);
        object.insert("preset_file".to_owned(), provider.text.clone().into());
        say(&Value::Object(object).to_string());
        return ExitCode::SUCCESS;
    }
    say(&format!("{}: {}", provider.preset, provider.name()));
    let or_none = |text: &str| if text.is_empty() { "none known".to_owned() } else { text.to_owned() };
    let derived = [
        ("scheme", provider.scheme.clone()),
        ("replay key", provider.replay_key.clone()),
        ("handshake", or_none(&provider.handshake)),
    ];
    let file = provider.file.iter().map(|file| ("file", file.clone()));
    let about = provider.about.iter().filter(|(key, _)| *key != "name");
    let lines = file.chain(derived).chain(about.map(|(key, value)| (*key, value.clone())));
    for (key, value) in lines {
        say(&format!("{:20} {value}", key.replace('_', " ")));
    }
    say("\nA source to begin with:\n");
    say(&source(provider));
    say("The preset; what a source writes itself wins:\n");
    say(provider.text.trim_end());
    ExitCode::SUCCESS
}

fn source(provider: &Provider) -> String {
    let preset = &provider.preset;
    let mut text = format!("[sources.{preset}]\npath = \"/{preset}\"\nprovider = \"{preset}\"\n");
    for need in &provider.needs {
        text.push_str(&match *need {
            "secrets" => {
                let name = preset.to_uppercase().replace('-', "_");
                let id = if provider.needs.contains(&"secrets.id") { ", id = \"…\"" } else { "" };
                let algorithm =
                    if provider.needs.contains(&"secrets.algorithm") { ", algorithm = \"ed25519\"" } else { "" };
                format!("secrets = [{{ env = \"{name}_SECRET\"{id}{algorithm} }}]\n")
            }
            "secrets.id" | "secrets.algorithm" => String::new(),
            "public_url" => format!("public_url = \"https://hooks.example.com/{preset}\"\n"),
            "handshake.token" => "handshake.token = { env = \"VERIFY_TOKEN\" }\n".to_owned(),
            "platform.topics" => {
                "platform.topics = [\"arn:aws:sns:us-east-1:123456789012:my-topic\"]\n".to_owned()
            }
            "platform.app_apple_id" => "platform.app_apple_id = 1234567890\n".to_owned(),
            "jwt.issuer" => {
                let tenant = "\"https://login.microsoftonline.com/TENANT/v2.0\", \"https://sts.windows.net/TENANT/\"";
                format!("jwt.issuer = [{tenant}]\n")
            }
            "jwt.audience" => "jwt.audience = [\"the id of your application\"]\n".to_owned(),
            "jwt.claims.email" => {
                "jwt.claims.email = \"push@my-project.iam.gserviceaccount.com\"\n".to_owned()
            }
            "danger_accept_unverified" => {
                "# It signs nothing. Choose a path that nobody guesses; better `token`, `basic` or `client_cert`, if it can.\n\
                 danger_accept_unverified = true\n"
                    .to_owned()
            }
            list if list.ends_with('s') => format!("{list} = [\"…\"]\n"),
            word => format!("{word} = \"…\"\n"),
        });
    }
    text.push_str("upstream = \"app\"\n");
    text
}

fn object(provider: &Provider) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("preset".to_owned(), json!(provider.preset));
    object.insert("name".to_owned(), json!(provider.name()));
    for (key, value) in provider.about.iter().filter(|(key, _)| *key != "name") {
        object.insert((*key).to_owned(), json!(value));
    }
    object.insert("scheme".to_owned(), json!(provider.scheme));
    object.insert("replay_key".to_owned(), json!(provider.replay_key));
    object.insert("handshake".to_owned(), json!((!provider.handshake.is_empty()).then_some(&provider.handshake)));
    object.insert("needs".to_owned(), json!(provider.needs));
    object.insert("file".to_owned(), json!(provider.file));
    object
}

fn page(known: &[Provider]) {
    say("# Providers\n");
    say("<!-- Made by `hookward providers list --markdown > docs/providers.md`; a test holds it to that. -->\n");
    say(&format!(
        "{} presets come with hookward. `hookward providers show NAME` prints one whole: what is known of the provider, \
         a source to begin with, and the preset, which is written in the language of \
         [configuration.md](configuration.md). [providers-own.md](providers-own.md) says how to write one.\n",
        known.len()
    ));
    say(
        "- **proven by**: whose code agreed with the preset on genuine and on spoiled requests; \"its own code\" is the \
         provider's library, executed.\n\
         - **body**: does the proof stand for the whole body? Where it does so partly or not at all, whoever learns the \
         credential, or sees one delivery, can send another body.\n\
         - **replay key**: what tells a delivery that was accepted before. An id that the proof does not cover tells \
         duplicates, and keeps no attacker away.\n\
         - **handshake**: in which requests the provider asks the endpoint something; the gateway answers.\n",
    );
    say(&format!("| {} | time limit | retries | docs |", COLUMNS.join(" | ")));
    say(&format!("{}|", "| --- ".repeat(COLUMNS.len() + 3)));
    for provider in known {
        let mut cells = row(provider);
        cells[0] = format!("`{}`", provider.preset);
        cells[3] = provider.about("proven_by").unwrap_or("-").to_owned();
        let about = |key| provider.about(key).unwrap_or("-").to_owned();
        let link = provider.about("docs").map_or("-".to_owned(), |url| format!("[page]({url})"));
        let more = [about("timeout"), about("retries"), link];
        let cells: Vec<_> = cells.iter().chain(&more).map(|cell| cell.replace('|', "\\|")).collect();
        say(&format!("| {} |", cells.join(" | ")));
    }
    say("\nTime limits and retry rules are the providers' own to change; `delivery_confidence` in each preset says \
         whether they were documented when it was written, or come from memory.");
}
