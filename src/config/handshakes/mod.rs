//! `handshakes` (which questions there are, usually a preset's) and `handshake` (what a source's owner answers them with).
//!
//! Invariant: a handshake whose guard lacks its value is off, and said to be: it is never asked without the guard. One
//! that applies a key of the deliveries to what strangers write is taken only where no delivery can be made of it.

mod answer;

use super::node::{Kind, Node};
use super::reader::Table;
use super::scheme::locator;
use super::secret_ref::Named;
use crate::secret::Secret;
use crate::verify::{Alphabet, Answer, Computed, Condition, Encoding, Function, Guard, Handshake, Locator};
use http::{Method, StatusCode};

/// A token below this many bytes can be found by trying.
const SHORT_TOKEN: usize = 12;

/// What a source's handshakes come to.
#[derive(Default)]
pub(super) struct Read {
    pub(super) handshakes: Vec<Handshake>,
    /// Deliveries begin with `{` or `[`, for a handshake signs other texts with their key.
    pub(super) only_json: bool,
    /// The name under which the secret is kept that the source waits for.
    pub(super) awaits: Option<String>,
    /// The operator has to see it, to paste it where the provider asks for it.
    pub(super) shows_captured: bool,
    /// Some of them compare with or compute from `secrets`.
    pub(super) uses_secrets: bool,
}

/// `handshake = { … }`.
struct Params<'s> {
    token: Option<Secret>,
    topics: Option<Vec<String>>,
    origins: Option<Vec<String>>,
    modes: Option<Vec<String>>,
    rate: Option<u64>,
    answer: Option<String>,
    awaits: Option<String>,
    secrets: &'s [Named],
    public_url: Option<&'s str>,
    /// Something verifies deliveries by a key, and may do so by one of `secrets`.
    has_signature: bool,
    /// What the deliveries' signature stands for, as it is written.
    message: Option<String>,
}

/// Why a handshake is not made: it is wrong, and that was told; or it lacks a value.
enum Unmade {
    Wrong,
    Off(&'static str),
}

pub(super) fn read(
    source: &Table<'_>,
    verify: Option<&Table<'_>>,
    secrets: &[Named],
    public_url: Option<&str>,
) -> Read {
    let message = verify.and_then(|verify| verify.peek_text("message"));
    let params = params(source, secrets, public_url, message);
    let mut read = Read { awaits: params.awaits.clone(), ..Read::default() };
    let mut captures = false;
    for table in source.tables("handshakes") {
        match handshake(&table, source, &params, &mut read) {
            Ok(handshake) => {
                captures |= handshake.capture.is_some();
                read.handshakes.push(handshake);
            }
            Err(Unmade::Wrong) => {}
            Err(Unmade::Off(missing)) => {
                let hint = match missing {
                    "token" => r#"handshake.token = { env = "VERIFY_TOKEN" }, if the provider is to ask it"#.to_owned(),
                    "answer" => r#"handshake.answer = "…": what the provider's page gives you"#.to_owned(),
                    list => format!(r#"handshake.{list} = ["…"], if the provider is to ask it"#),
                };
                table.remark("", format!("is off: there is no handshake.{missing}"), &hint);
            }
        }
        table.finish();
    }
    if read.awaits.is_some() && !captures {
        source.error(
            "handshake",
            "awaits a secret, and none of the source's handshakes brings one",
            "await_secret is for providers that choose the secret themselves",
        );
        read.awaits = None;
    }
    if read.awaits.is_some() && source.has("secrets") {
        source.error("handshake", "awaits a secret, and `secrets` has one already", "remove one of the two");
    }
    read
}

fn params<'s>(
    source: &Table<'_>,
    secrets: &'s [Named],
    public_url: Option<&'s str>,
    message: Option<String>,
) -> Params<'s> {
    let table = source.table_or_empty("handshake");
    let list = |name| table.has(name).then(|| table.texts(name));
    let token = table.secret("token").map(|named| named.secret);
    if token.as_ref().is_some_and(|token| token.len() < SHORT_TOKEN) {
        table.remark(
            "token",
            format!("has less than {SHORT_TOKEN} bytes, and can be found by trying"),
            "openssl rand -hex 16",
        );
    }
    let rate = table.has("rate").then(|| table.count("rate", 1, 1..=100_000_000));
    let awaits = table.parsed("await_secret", |name| match name.len() {
        1..=64 if name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name.to_owned()),
        _ => Err("is not a name of 1 to 64 visible characters".to_owned()),
    });
    let (topics, origins, modes) = (list("topics"), list("origins"), list("modes"));
    let answer = table.text("answer");
    if origins.iter().flatten().any(|origin| origin == "*") {
        table.warn(
            "origins",
            "lets every origin in: whoever asks is told that it may deliver here",
            r#"origins = ["eventgrid.azure.net"]"#,
        );
    }
    table.finish();
    let has_signature = ["verify", "jwt", "http_signature"].iter().any(|proof| source.has(proof));
    Params { token, topics, origins, modes, rate, answer, awaits, secrets, public_url, has_signature, message }
}

fn handshake(table: &Table<'_>, source: &Table<'_>, params: &Params<'_>, read: &mut Read) -> Result<Handshake, Unmade> {
    let signed = table.flag("signed", true);
    let methods = methods(table, source);
    let conditions: Vec<_> = table.tables("match").into_iter().map(condition).collect();
    let asked = conditions.len();
    let when: Vec<_> = conditions.into_iter().flatten().collect();
    let guards: Vec<_> =
        table.tables("guard").into_iter().map(|guard_table| guard(guard_table, params, read)).collect();
    let mut is_wrong = when.len() < asked;
    if when.is_empty() && !table.has("match") && (signed || methods.is_empty() || methods.contains(&Method::POST)) {
        let hint = r#"match = { json = "/type", equals = "url_verification" }"#;
        table.error("", "a handshake needs a `match`, or it would swallow every delivery", hint);
        is_wrong = true;
    }
    if signed && (table.has("methods") || table.has("capture")) {
        let what = "comes with every proof, and so with the source's own methods, and brings no secret";
        table.error("signed", what, "signed = false");
        is_wrong = true;
    }
    let alphabets = [
        ("word", Alphabet::Word),
        ("token", Alphabet::Token),
        ("text", Alphabet::Text),
        ("printable", Alphabet::Printable),
    ];
    let alphabet = table.choice("alphabet", Some("token"), &alphabets).ok_or(Unmade::Wrong);
    let computed = table.table("compute").map(|of| compute(of, params, signed, &alphabet, read)).transpose();
    let capture = table.table("capture").map(|at| {
        read.shows_captured |= at.flag("show", false);
        locator(at).ok_or(Unmade::Wrong)
    });
    let capture = capture.transpose();
    let status = status(table, "status", 200..=299, Some(200));
    let refused_with = table.has("refuse").then(|| status_of(table, "refuse")).flatten();
    let body = answer::body(table, params);
    let headers = answer::headers(table, params);
    let content_type = answer::content_type(table, &body);

    if is_wrong {
        return Err(Unmade::Wrong);
    }
    let guards = guards.into_iter().collect::<Result<Vec<_>, _>>()?;
    let answer = Answer {
        status: status.ok_or(Unmade::Wrong)?,
        content_type: content_type?,
        headers: headers?,
        body: body?,
        computed: computed?,
        alphabet: alphabet?,
    };
    let echoes_markup = alphabet_is_printable(&answer) && !is_plain(&answer);
    if echoes_markup {
        table.error("alphabet", "lets markup through, and the answer is not text/plain", r#"alphabet = "token""#);
        return Err(Unmade::Wrong);
    }
    let guards = guards.into_iter().flatten().collect();
    Ok(Handshake { methods, when, signed, guards, answer, refused_with, capture: capture? })
}

fn alphabet_is_printable(answer: &Answer) -> bool {
    answer.alphabet == Alphabet::Printable
}

fn is_plain(answer: &Answer) -> bool {
    answer.content_type.as_ref().is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"))
}

fn methods(table: &Table<'_>, source: &Table<'_>) -> Vec<Method> {
    let methods = table.all_parsed("methods", |text| match text {
        "GET" | "HEAD" | "OPTIONS" | "POST" | "PUT" => Method::from_bytes(text.as_bytes()).map_err(|e| e.to_string()),
        _ => Err(format!("{text:?} is no method that a handshake comes with; GET, HEAD, OPTIONS, POST, PUT")),
    });
    // What deliveries come with as well marks no handshake.
    if !table.has("match")
        && let Some(Node { kind: Kind::Array(theirs), .. }) = source.node("methods")
        && theirs
            .iter()
            .any(|node| matches!(&node.kind, Kind::Text(text) if methods.iter().any(|m| m.as_str() == text)))
    {
        table.error(
            "methods",
            "would be recognised in every delivery, for the source takes this method too",
            "`match` tells them apart",
        );
    }
    methods
}

fn condition(table: Table<'_>) -> Option<Condition> {
    let example = r#"match = { json = "/type", equals = "url_verification" }"#;
    if table.has("empty_body") {
        let empty = table.flag("empty_body", true);
        if !empty {
            table.error("empty_body", "is true, or left out", "");
        }
        table.finish();
        return Some(Condition::EmptyBody);
    }
    let value = table.scalar("equals");
    let absent = table.flag("absent", false);
    let empty_array = table.flag("empty_array", false);
    let has_value = table.has("equals");
    let pointer = table.peek_text("json");
    let problem = |what: &str| {
        table.error("", what, example);
        None
    };
    let kind = match (has_value, absent, empty_array) {
        (true, true, _) | (true, _, true) | (_, true, true) => {
            problem("says more than one of `equals`, `absent` and `empty_array`")
        }
        (_, _, true) if pointer.is_none() => problem("`empty_array` is said of `json`"),
        (false, false, true) => Some(3),
        (true, ..) => Some(0),
        (_, true, _) => Some(1),
        (false, false, false) => Some(2),
    };
    let at = locator(table)?;
    match (kind?, at) {
        (0, at) => Some(Condition::Equals(at, value?)),
        (1, at) => Some(Condition::Absent(at)),
        (3, Locator::Json(pointer)) => Some(Condition::EmptyArray(pointer)),
        (_, at) => Some(Condition::Present(at)),
    }
}

/// None: nothing is asked, for the owner lets everything in.
fn guard(table: Table<'_>, params: &Params<'_>, read: &mut Read) -> Result<Option<Guard>, Unmade> {
    let choices = [("token", 0), ("secret", 1)];
    let is = table.choice("is", None, &choices);
    let lists = [("topics", 0), ("origins", 1), ("modes", 2)];
    let within = table.choice("in", None, &lists);
    let equals = table.scalar("equals");
    let sorted = table.has("sorted_sha1").then(|| table.texts("sorted_sha1"));
    if is.is_none() && within.is_none() && equals.is_none() && sorted.is_none() {
        table.error(
            "",
            "says not what is asked: `is`, `in`, `equals` or `sorted_sha1`",
            r#"guard = { query = "hub.verify_token", is = "token" }"#,
        );
    }
    let at = locator(table).ok_or(Unmade::Wrong)?;
    let listed = |name, values: &Option<Vec<String>>| match values {
        Some(values) => Ok(values.clone()),
        None => Err(Unmade::Off(name)),
    };
    Ok(Some(match (is, within, equals, sorted) {
        (Some(0), ..) => {
            let token = params.token.clone().ok_or(Unmade::Off("token"))?;
            Guard::Secret { at, secrets: vec![token] }
        }
        (Some(_), ..) => {
            let secrets = listed_secrets(params, read)?;
            Guard::Secret { at, secrets }
        }
        (_, Some(1), ..) => {
            let values = listed("origins", &params.origins)?;
            if values.iter().any(|origin| origin == "*") {
                return Ok(None);
            }
            Guard::OneOf { at, values }
        }
        (_, Some(0), ..) => Guard::OneOf { at, values: listed("topics", &params.topics)? },
        (_, Some(_), ..) => Guard::OneOf { at, values: listed("modes", &params.modes)? },
        (_, _, Some(value), _) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Guard::OneOf { at, values: vec![text] }
        }
        (_, _, _, Some(names)) => {
            let secret = params.token.clone().ok_or(Unmade::Off("token"))?;
            let Ok([first, second]) = <[String; 2]>::try_from(names) else { return Err(Unmade::Wrong) };
            Guard::SortedSha1 { at, secret, with: [Locator::Query(first), Locator::Query(second)] }
        }
        (None, None, None, None) => return Err(Unmade::Wrong),
    }))
}

/// `secrets`, or nothing to compare with or to compute from.
fn listed_secrets(params: &Params<'_>, read: &mut Read) -> Result<Vec<Secret>, Unmade> {
    read.uses_secrets = true;
    let secrets: Vec<_> = params.secrets.iter().map(|named| named.secret.clone()).collect();
    if secrets.is_empty() { Err(Unmade::Off("token, and there are no `secrets`")) } else { Ok(secrets) }
}

fn compute(
    table: Table<'_>,
    params: &Params<'_>,
    signed: bool,
    alphabet: &Result<Alphabet, Unmade>,
    read: &mut Read,
) -> Result<Computed, Unmade> {
    let functions = [("sha256", 0), ("hmac-sha256", 1), ("ed25519", 2)];
    let with = table.choice("with", None, &functions);
    let encodings = [("hex", Encoding::Hex), ("base64", Encoding::Base64)];
    let encoding = table.choice("encoding", Some("hex"), &encodings);
    let key = table.choice("key", Some("secret"), &[("secret", false), ("token", true)]).unwrap_or(false);
    let text = table.needed_text("of", r#"compute = { of = "{query:crc_token}", with = "hmac-sha256" }"#);
    let of =
        text.map(|text| answer::pieces(&table, "of", &text, params, true)).ok_or(Unmade::Wrong).and_then(|made| made);
    if with.is_none() && !table.has("with") {
        table.error("", "`with` is missing", "sha256, hmac-sha256 or ed25519");
    }
    let key_of = |read: &mut Read| match key {
        true => params.token.clone().ok_or(Unmade::Off("token")),
        false => listed_secrets(params, read).and_then(|secrets| secrets.into_iter().next().ok_or(Unmade::Wrong)),
    };
    let function = match with {
        Some(0) => Ok(Function::Sha256),
        Some(1) => key_of(read).map(Function::HmacSha256),
        Some(_) => key_of(read).and_then(|secret| Function::ed25519_of_repeated(&secret).ok_or(Unmade::Wrong)),
        None => Err(Unmade::Wrong),
    };
    if let (Ok(function), Ok(alphabet), false, false) = (&function, alphabet, signed, key)
        && function.is_keyed()
        && params.has_signature
    {
        match apartness(params.message.as_deref(), *alphabet) {
            Apartness::Certain => {}
            Apartness::OfJson => read.only_json = true,
            Apartness::None => table.error(
                "key",
                "signs for anybody: what strangers have signed here could be sent as a delivery",
                r#"key = "token", or a `verify.message` that names {body} or a separator that the alphabet lacks"#,
            ),
        }
    }
    table.finish();
    Ok(Computed { of: of?, with: function?, encoding: encoding.ok_or(Unmade::Wrong)? })
}

/// What keeps a text of an alphabet from being the message of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Apartness {
    /// Every message has a character that the alphabet lacks.
    Certain,
    /// Every message holds the body; one that begins with `{` or `[` holds that.
    OfJson,
    None,
}

fn apartness(message: Option<&str>, alphabet: Alphabet) -> Apartness {
    let Some(message) = message else { return Apartness::None };
    let mut depth = 0_usize;
    let mut has_foreign_byte = false;
    for byte in message.bytes() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => has_foreign_byte |= depth == 0 && !alphabet.has(byte),
        }
    }
    // No alphabet that a key is applied to may hold what JSON begins with.
    let lacks_json = !alphabet.has(b'{') && !alphabet.has(b'[');
    match (has_foreign_byte, message.contains("{body}") && lacks_json) {
        (true, _) => Apartness::Certain,
        (false, true) => Apartness::OfJson,
        (false, false) => Apartness::None,
    }
}

fn status(
    table: &Table<'_>,
    name: &'static str,
    range: std::ops::RangeInclusive<u64>,
    default: Option<u64>,
) -> Option<StatusCode> {
    let code = table.count(name, default.unwrap_or(*range.start()), range);
    u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok())
}

fn status_of(table: &Table<'_>, name: &'static str) -> Option<StatusCode> {
    status(table, name, 400..=499, None)
}
