//! What a preset tells people: who the provider is, how the preset was proven, what its webhooks promise.
//!
//! Invariant: nothing here has an effect on a request. What follows from the preset's own keys (the scheme, where the id
//! is) is read from them, so that a table of providers cannot say something else than what is verified.

use super::node::{Kind, Node};
use super::problem::Problem;
use super::providers::wrong;
use std::collections::BTreeMap;

/// The keys of a preset that are no keys of a source.
pub(super) const KEYS: [&str; 10] = [
    "name",
    "docs",
    "proven_by",
    "body",
    "timeout",
    "retries",
    "delivery_confidence",
    "largest_payload",
    "console",
    "notes",
];

/// How much of the body the proof stands for.
const BODY: [&str; 3] = ["authenticated", "partly", "not"];

/// One preset, described.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// What a source writes: `provider = "…"`.
    pub(crate) preset: String,
    /// A user's own file; none for those that come with the program.
    pub(crate) file: Option<String>,
    /// The preset as it stands in its file.
    pub(crate) text: String,
    /// The metadata that is there, in the order of `KEYS`.
    pub(crate) about: Vec<(&'static str, String)>,
    pub(crate) scheme: String,
    pub(crate) replay_key: String,
    /// Empty: none is known.
    pub(crate) handshake: String,
    pub(crate) needs: Vec<&'static str>,
}

impl Provider {
    pub(super) fn describe(preset: &str, file: Option<String>, text: &str, mut table: BTreeMap<String, Node>) -> Self {
        let about = take(&mut table, &mut Vec::new());
        Self {
            preset: preset.to_owned(),
            file,
            text: text.to_owned(),
            scheme: scheme(&table),
            replay_key: replay_key(&table, of(&about, "body")),
            handshake: handshake(&table),
            needs: needs(&table),
            about,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.about("name").unwrap_or(&self.preset)
    }

    pub(crate) fn about(&self, key: &str) -> Option<&str> {
        of(&self.about, key)
    }
}

fn of<'a>(about: &'a [(&str, String)], key: &str) -> Option<&'a str> {
    about.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
}

/// Takes the metadata out of a preset: what is left are keys of a source.
pub(super) fn take(table: &mut BTreeMap<String, Node>, problems: &mut Vec<Problem>) -> Vec<(&'static str, String)> {
    let mut about = Vec::new();
    for key in KEYS {
        let Some(Node { at, kind }) = table.remove(key) else { continue };
        let Kind::Text(text) = kind else {
            problems.push(wrong(at, key, format!("is {}, not a string", kind.name()), ""));
            continue;
        };
        if key == "docs" && !text.starts_with("https://") {
            problems.push(wrong(at, key, format!("{text:?} does not begin with https://"), "the provider's page"));
        } else if key == "body" && !BODY.contains(&text.as_str()) {
            let hint = "\"authenticated\", \"partly\" or \"not\": how much of the body the proof stands for";
            problems.push(wrong(at, key, format!("{text:?} is none of the choices"), hint));
        } else {
            about.push((key, text));
        }
    }
    about
}

/// The tables whose proofs stand for a message.
const SIGNING: [&str; 4] = ["verify", "jwt", "http_signature", "platform"];

fn at<'a>(table: &'a BTreeMap<String, Node>, path: &[&str]) -> Option<&'a Node> {
    let (last, tables) = path.split_last()?;
    let inner = tables.iter().try_fold(table, |table, name| match &table.get(*name)?.kind {
        Kind::Table(inner) => Some(inner),
        _ => None,
    })?;
    inner.get(*last)
}

/// A string, or the first of several alternatives.
fn text(node: Option<&Node>) -> Option<&str> {
    match &node?.kind {
        Kind::Text(text) => Some(text),
        Kind::Array(items) => text(items.first()),
        _ => None,
    }
}

/// `verify` says its algorithm; the other kinds of proofs are named after their tables.
fn scheme(table: &BTreeMap<String, Node>) -> String {
    let mut proofs: Vec<String> = Vec::new();
    for (key, detail, said) in [
        ("verify", "algorithm", ""),
        ("jwt", "algorithms", "JWT"),
        ("http_signature", "version", "HTTP signature"),
        ("cloudevents", "", "bearer token"),
        ("platform", "kind", "platform"),
        ("each_secret", "", "secret in the body"),
        ("token", "", "token"),
        ("basic", "", "basic"),
        ("bearer", "", "bearer"),
    ] {
        if at(table, &[key]).is_some() {
            let words = [said, text(at(table, &[key, detail])).unwrap_or_default()];
            proofs.push(words.join(" ").trim().to_owned());
        }
    }
    if proofs.is_empty() { "handshake only".to_owned() } else { proofs.join(" + ") }
}

/// What tells a delivery that was accepted before.
fn replay_key(table: &BTreeMap<String, Node>, body: Option<&str>) -> String {
    let signs = SIGNING.iter().any(|key| at(table, &[key]).is_some());
    let single = at(table, &["jwt", "single_use"]);
    let id = at(table, &["id"]).or_else(|| at(table, &["verify", "id"]));
    match (text(single), text(at(table, &["replay"])), id) {
        (Some(claim), ..) => format!("the claim {claim}"),
        (None, Some(template), _) => format!("`{template}`"),
        _ if signs && body.is_none_or(|body| body == "authenticated") => "the signed message".to_owned(),
        (.., Some(id)) => format!("its id alone ({})", place(id)),
        _ => "none".to_owned(),
    }
}

/// `header X-GitHub-Delivery`, and so many more.
fn place(node: &Node) -> String {
    match &node.kind {
        Kind::Table(table) => {
            let words = table.iter().filter_map(|(kind, node)| Some(format!("{kind} {}", text(Some(node))?)));
            words.collect::<Vec<_>>().join(", ")
        }
        Kind::Array(items) => items.iter().map(place).collect::<Vec<_>>().join(", or "),
        _ => String::new(),
    }
}

/// In which requests a provider asks the endpoint something.
fn handshake(table: &BTreeMap<String, Node>) -> String {
    let mut said: Vec<String> = Vec::new();
    for handshake in listed(table.get("handshakes")) {
        let method = text(handshake.get("methods")).unwrap_or("POST");
        let is_unsigned = matches!(handshake.get("signed").map(|node| &node.kind), Some(Kind::Boolean(false)));
        let one = if is_unsigned { format!("{method}, unsigned") } else { method.to_owned() };
        if !said.contains(&one) {
            said.push(one);
        }
    }
    said.join("; ")
}

/// What a source has to bring along, beside its path and upstream: the keys, in the order to write them.
fn needs(table: &BTreeMap<String, Node>) -> Vec<&'static str> {
    let has = |path: &[&str]| at(table, path).is_some();
    let fetches =
        ["jwks_url", "jku"].iter().any(|key| has(&["jwt", key])) && !has(&["verify"]) && !has(&["each_secret"]);
    let logins = has(&["basic"]) && !has(&["basic", "username"]);
    let proofs = ["verify", "jwt", "http_signature", "each_secret", "token", "cloudevents"];
    let proves = logins || proofs.iter().any(|key| has(&[key]));
    let token = table.get("jwt");
    let by_entra =
        token.is_some_and(|node| mentions(node, "microsoftonline.com")) || has(&["jwt", "claims_any", "appid"]);
    let by_google = token.is_some_and(|node| mentions(node, "accounts.google.com"));
    let asks = |part: &str| table.get("handshakes").is_some_and(|node| mentions(node, part));
    let message = text(at(table, &["verify", "message"])).unwrap_or_default();
    let mut needs = Vec::new();
    if proves && !fetches {
        needs.push("secrets");
        let by_name = text(at(table, &["verify", "signature", "layout"])) == Some("entries");
        if by_name || has(&["verify", "key_id"]) {
            needs.push("secrets.id");
        }
        let standard = text(at(table, &["http_signature", "version"])) != Some("websub");
        if has(&["http_signature"]) && standard && !has(&["http_signature", "algorithm"]) {
            needs.push("secrets.algorithm");
        }
    }
    if has(&["jwt", "url_hash"])
        || message.contains("{url")
        || table.values().any(|node| mentions(node, "{public_url}"))
    {
        needs.push("public_url");
    }
    for guard in listed(table.get("handshakes")).flat_map(|handshake| listed(at(handshake, &["guard"]))) {
        let need = match (text(guard.get("is")), text(guard.get("in"))) {
            (Some("token"), _) => "handshake.token",
            (_, Some("topics")) => "handshake.topics",
            (_, Some("origins")) => "handshake.origins",
            _ if guard.contains_key("sorted_sha1") => "handshake.token",
            _ => continue,
        };
        if !needs.contains(&need) {
            needs.push(need);
        }
    }
    if asks("{token}") && !needs.contains(&"handshake.token") {
        needs.push("handshake.token");
    }
    if asks("{answer}") {
        needs.push("handshake.answer");
    }
    for (is_so, need, path) in [
        (by_entra, "jwt.issuer", ["jwt", "issuer"].as_slice()),
        (by_entra, "jwt.audience", &["jwt", "audience"]),
        (by_google, "jwt.claims.email", &["jwt", "claims", "email"]),
    ] {
        if is_so && !has(path) {
            needs.push(need);
        }
    }
    if !proves && !has(&["platform"]) && !has(&["client_cert"]) && has(&["handshakes"]) {
        needs.push("danger_accept_unverified");
    }
    for (kind, needed) in [
        ("aws-sns", &["platform.topics"] as &[_]),
        ("paypal", &["platform.webhook_id"]),
        ("apple-app-store", &["platform.bundle_id", "platform.app_apple_id"]),
        ("alexa", &["platform.application_ids"]),
        ("adobe-io", &["platform.client_id"]),
    ] {
        if text(at(table, &["platform", "kind"])) == Some(kind) {
            needs.extend(needed);
        }
    }
    needs
}

/// The tables of an array, or the one that stands in its place.
fn listed(node: Option<&Node>) -> impl Iterator<Item = &BTreeMap<String, Node>> {
    let items = match node.map(|node| &node.kind) {
        Some(Kind::Array(items)) => items.as_slice(),
        _ => node.map(std::slice::from_ref).unwrap_or_default(),
    };
    items.iter().filter_map(|node| match &node.kind {
        Kind::Table(table) => Some(table),
        _ => None,
    })
}

/// Does any string at or below a node hold this?
fn mentions(node: &Node, part: &str) -> bool {
    match &node.kind {
        Kind::Text(text) => text.contains(part),
        Kind::Array(items) => items.iter().any(|item| mentions(item, part)),
        Kind::Table(table) => table.values().any(|node| mentions(node, part)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node;

    fn described(text: &str) -> Provider {
        let Kind::Table(table) = node::parse(&"a.toml".into(), text, &mut Vec::new()).kind else { panic!("a table") };
        Provider::describe("acme", None, text, table)
    }

    #[test]
    fn what_a_preset_verifies_is_what_it_is_said_to_verify() {
        let acme = described(
            "name = \"Acme\"\nbody = \"authenticated\"\n[verify]\nalgorithm = \"hmac-sha1\"\nmessage = \"{url}{body}\"\n\
             id = { header = \"X-Id\" }\n[[handshakes]]\nguard = { query = \"t\", is = \"token\" }\n",
        );
        assert_eq!((acme.name(), acme.scheme.as_str()), ("Acme", "hmac-sha1"));
        assert_eq!((acme.replay_key.as_str(), acme.handshake.as_str()), ("the signed message", "POST"));
        assert_eq!(acme.needs, ["secrets", "public_url", "handshake.token"]);
        let asked = described(
            "[[handshakes]]\nguard = [{ query = \"t\", is = \"token\" }]\nbody = \"{answer}\"\n\
             [jwt]\nalgorithms = [\"RS256\"]\naudience = [\"{public_url}\"]\njwks_url = \"https://a.example/\"\n",
        );
        assert_eq!((asked.scheme.as_str(), asked.handshake.as_str()), ("JWT RS256", "POST"));
        assert_eq!(asked.needs, ["public_url", "handshake.token", "handshake.answer"]);

        let token =
            described("body = \"not\"\nid = [{ header = \"X-Id\" }, { json = \"/id\" }]\n[token]\nheader = \"T\"\n");
        assert_eq!((token.name(), token.scheme.as_str()), ("acme", "token"));
        assert_eq!(token.replay_key, "its id alone (header X-Id, or json /id)");
        assert_eq!(described("[[handshakes]]\nmatch = { json = \"/x\" }\n").needs, ["danger_accept_unverified"]);
        assert_eq!(described("[[handshakes]]\nmethods = [\"GET\"]\nsigned = false\n").handshake, "GET, unsigned");
    }

    #[test]
    fn metadata_of_another_kind_is_told_with_its_line() {
        let mut problems = Vec::new();
        let text = "name = 7\ndocs = \"http://example.com\"\nbody = \"all\"\nnotes = \"fine\"\nmore = 1\n";
        let Kind::Table(mut table) = node::parse(&"a.toml".into(), text, &mut problems).kind else { panic!("a table") };
        assert_eq!(take(&mut table, &mut problems), [("notes", "fine".to_owned())]);
        let told: Vec<_> = problems.iter().map(|problem| problem.at.as_ref().map(|at| at.line)).collect();
        assert_eq!(told, [Some(1), Some(2), Some(3)]);
        assert_eq!(table.into_keys().collect::<Vec<_>>(), ["more"]);
    }
}
