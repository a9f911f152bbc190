//! The house keeps its shape: each room imports only from rooms below it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top floor down. A room may use what stands in later lines; `cli` and `lib.rs` use everything.
const FLOORS: &[(&str, &[&str])] = &[
    (
        "measuring",
        &[
            "config",
            "gateway",
            "inbox",
            "parcel",
            "telemetry",
            "verify",
            "state",
            "server",
            "delivery",
            "fetched",
            "secret",
            "client",
            "clock",
            "fields",
        ],
    ),
    (
        "fuzzing",
        &[
            "cli", "config", "gateway", "deliver", "inbox", "parcel", "verify", "server", "delivery", "fetched",
            "secret", "clock", "fields",
        ],
    ),
    (
        "cli",
        &[
            "admin",
            "config",
            "gateway",
            "deliver",
            "inbox",
            "parcel",
            "telemetry",
            "verify",
            "fetch",
            "state",
            "server",
            "redis_link",
            "delivery",
            "refusal",
            "fetched",
            "secret",
            "client",
            "threads",
            "clock",
            "fields",
        ],
    ),
    ("admin", &["gateway", "inbox", "telemetry", "verify", "server", "secret", "clock"]),
    // Its vectors make deliveries and name refusals.
    (
        "config",
        &[
            "gateway",
            "deliver",
            "inbox",
            "verify",
            "fetch",
            "state",
            "server",
            "telemetry",
            "redis_link",
            "tls_client",
            "dial",
            "delivery",
            "refusal",
            "fetched",
            "secret",
            "clock",
            "fields",
        ],
    ),
    (
        "gateway",
        &[
            "deliver",
            "inbox",
            "parcel",
            "telemetry",
            "verify",
            "fetch",
            "state",
            "server",
            "delivery",
            "refusal",
            "fetched",
            "client",
            "clock",
            "secret",
            "fields",
            "timer",
        ],
    ),
    (
        "deliver",
        &[
            "parcel",
            "redis_link",
            "tls_client",
            "dial",
            "threads",
            "framing",
            "timer",
            "secret",
            "clock",
            "client",
            "fields",
        ],
    ),
    ("inbox", &["parcel", "secret", "database", "clock", "fields"]),
    ("parcel", &["verify", "delivery", "clock", "fields"]),
    ("telemetry", &["refusal", "clock"]),
    ("verify", &["delivery", "refusal", "fetched", "secret", "clock", "fields"]),
    ("fetch", &["fetched", "clock"]),
    ("state", &["redis_link", "secret", "client", "database", "clock"]),
    ("server", &["secret", "client", "clock", "threads", "framing", "fields"]),
    ("redis_link", &["tls_client", "dial", "secret"]),
    ("tls_client", &["secret"]),
    ("fetched", &["clock"]),
    ("delivery", &["fields"]),
    ("refusal", &[]),
    ("secret", &[]),
    ("client", &[]),
    ("database", &["clock"]),
    ("dial", &[]),
    ("threads", &[]),
    ("framing", &[]),
    ("fields", &[]),
    ("timer", &[]),
    ("clock", &[]),
];

#[test]
fn arrows_between_rooms_point_down_only() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in sources(Path::new("src")) {
        let room = room_of(&file);
        if room == "lib" || room == "main" {
            continue;
        }
        let (_, allowed) = FLOORS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{} is in no room of the plan", file.display()));
        seen.insert(room.clone());
        let text = fs::read_to_string(&file).expect("a source file");
        for used in rooms_used(&text) {
            if used != room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: uses {used}", file.display()));
            }
        }
    }
    assert_eq!(seen.len(), FLOORS.len(), "rooms of the plan without a file: {seen:?}");
    assert!(wrong.is_empty(), "arrows that point up or aside:\n{}", wrong.join("\n"));
}

#[test]
fn the_plan_itself_points_down() {
    for (position, (room, allowed)) in FLOORS.iter().enumerate() {
        for below in *allowed {
            let floor = FLOORS.iter().position(|(name, _)| name == below).expect("a room of the plan");
            assert!(floor > position, "{room} may not use {below}");
        }
    }
}

/// The map in `lib.rs` and the line in CONTRIBUTING.md: all rooms, those above the ground floor in the plan's order.
#[test]
fn the_maps_that_people_read_agree_with_the_plan() {
    let planned: Vec<&str> =
        FLOORS.iter().map(|(room, _)| *room).filter(|room| !["measuring", "fuzzing"].contains(room)).collect();
    let names = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let map = fs::read_to_string("src/lib.rs").expect("a source file");
    let rows: Vec<&str> = map.lines().filter_map(|line| line.strip_prefix("//! | `")?.split(" |").next()).collect();
    let (ground, above) = rows.split_last().expect("a row of the map");
    let told = fs::read_to_string("CONTRIBUTING.md").expect("a page");
    let line = told.lines().find(|line| line.starts_with("cli → ")).expect("the rooms in a line");
    let (upper, lower) = line.rsplit_once('→').expect("arrows");
    for (page, upper, ground) in [("lib.rs", above.join(" "), *ground), ("CONTRIBUTING.md", upper.to_owned(), lower)] {
        let (upper, ground) = (names(&upper), names(ground));
        let (above, below): (Vec<&str>, Vec<&str>) =
            planned.iter().partition(|room| upper.iter().any(|one| one == *room));
        assert_eq!(upper, above, "{page}");
        assert_eq!(ground.iter().map(String::as_str).collect::<BTreeSet<_>>(), below.into_iter().collect(), "{page}");
    }
}

/// Every file tells what it owns, and one of more than 500 lines without its tests says why it is one.
#[test]
fn every_file_opens_with_what_it_owns() {
    let files = sources(Path::new("src"));
    assert!(files.len() > 40, "{}", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        if room_of(&file) != "main" {
            assert!(text.starts_with("//! "), "{} does not say what it owns", file.display());
        }
        let production = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let is_test = file.file_name().is_some_and(|name| {
            ["tests.rs", "vectors.rs", "contract.rs", "survival.rs"].iter().any(|test| name == *test)
        });
        let lines = production.lines().count();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(
            is_test || lines <= 500 || head.contains("One file"),
            "{} has {lines} lines and does not say why (\"One file, …\")",
            file.display()
        );
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn room_of(file: &Path) -> String {
    let mut parts = file.strip_prefix("src").expect("below src").components();
    let first = parts.next().expect("a file").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a file names behind `crate::`, wherever it does.
fn rooms_used(text: &str) -> BTreeSet<String> {
    text.match_indices("crate::")
        .filter(|(at, _)| !text[..*at].ends_with('$'))
        .map(|(at, found)| {
            text[at + found.len()..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>()
        })
        .filter(|room| !room.is_empty())
        .collect()
}

/// What stands for a secret or a proof, alone or at the end of a longer name.
const COMPARED_IN_CONSTANT_TIME: &[&str] = &[
    "signature",
    "mac",
    "hmac",
    "tag",
    "digest",
    "token",
    "password",
    "secret",
    "credential",
    "expected",
    "presented",
];
/// What only looks at the same bytes in another way.
const VIEWS: &[&str] = &[
    "as_bytes",
    "as_slice",
    "as_str",
    "as_ref",
    "as_deref",
    "to_vec",
    "to_string",
    "to_owned",
    "clone",
    "expose",
    "trim",
    "into_bytes",
    "finalize",
    "bytes",
];
/// Comparisons that decide nothing about a request, and why.
const NOT_OF_SECRETS: &[(&str, &str)] = &[
    // Two addresses.
    ("src/cli/reload.rs", "if found != expected {"),
    // A number that the configuration's condition names, in public.
    ("src/verify/handshake/mod.rs", "*found == *expected.to_string().as_bytes()"),
    // What a signature is for, which the message says in clear.
    ("src/verify/message_signature/rfc9421.rs", "stated.tag != tag {"),
    // Takes secrets out of what an operator is told.
    ("src/verify/explain/veil.rs", ".any(|window| window == secret);"),
    ("src/verify/explain/veil.rs", ".position(|window| window == secret) }"),
];

/// `==` stops at the first byte that differs, and so tells a stranger how much of a guess was right.
#[test]
fn no_signature_token_or_password_is_compared_with_equals() {
    let mut found = Vec::new();
    let mut excused = BTreeSet::new();
    for file in sources(Path::new("src")) {
        let name = file.display().to_string();
        if name.ends_with("tests.rs") || name.contains("/vectors/") || name.ends_with("wycheproof.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        for line in compared_with_equals(&text) {
            match NOT_OF_SECRETS.iter().find(|(of, excuse)| *of == name && line.contains(excuse)) {
                Some(excuse) => drop(excused.insert(excuse)),
                None => found.push(format!("{name}: {line}")),
            }
        }
    }
    assert!(found.is_empty(), "use ct_eq, or Secret::matches:\n{}", found.join("\n"));
    assert_eq!(excused.len(), NOT_OF_SECRETS.len(), "an excuse that nothing needs: {excused:?}");
}

#[test]
fn a_planted_comparison_of_secrets_is_found() {
    for line in [
        "if signature == expected {",
        "if mac.as_slice() != presented {",
        "let same = secret.expose() == given.as_bytes();",
        "let same = given == *self.admin_token;",
        "tokens.iter().any(|token| token == given)",
        "tokens.iter().any(|known| given == known.token.as_str())",
        "(digest(body).as_slice() == stated).then_some(())",
        "if Sha256::digest(&body)[..] == stated[..] {",
        "if user == self.user && password != self.password {",
        "Some(key) if key.signature == text => {}",
        "assert!(left\n    == user_password);",
    ] {
        assert_eq!(compared_with_equals(line).len(), 1, "{line}");
    }
    for line in [
        "if mac.len() != signature.len() {",
        "parts.any(|token| *token == Token::Secret)",
        "if token.place == Place::Header {",
        "if secrets.len() == 1 { \"token\" } else { \"tokens\" }",
        "let secret = if count == 0 { None } else { secret };",
        "// if token == expected",
        "message.secret_at == Some(position)",
        "if hash == Some(true) && verify(secret) {",
        "token.as_bytes().ct_eq(expected)",
        "#[cfg(test)]\nmod tests {\n    fn same() -> bool { token == expected }",
    ] {
        assert_eq!(compared_with_equals(line), [""; 0], "{line}");
    }
}

/// The lines of production code in which `==` or `!=` has a secret or a proof on either side.
fn compared_with_equals(text: &str) -> Vec<&str> {
    let production = ["", "pub(crate) "].iter().fold(text, |text, visible| {
        text.split(&format!("#[cfg(test)]\n{visible}mod tests {{")).next().unwrap_or_default()
    });
    let lines = production.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let is_suspect = |line: &&str| {
        ["== ", "!= "].iter().any(|operator| {
            line.match_indices(operator).any(|(at, _)| {
                let (left, right) = (operand_before(&line[..at]), operand_behind(&line[at + operator.len()..]));
                // A variant or a literal is no secret, and neither is then what it is compared with.
                ![left, right].iter().any(|side| is_constant(side)) && (is_secret(left) || is_secret(right))
            })
        })
    };
    lines.filter(is_suspect).collect()
}

/// From the end back to what is not part of one expression.
fn operand_before(text: &str) -> &str {
    let text = text.trim_end();
    let mut open = 0_i32;
    let start = text.char_indices().rev().find(|(_, character)| {
        open += match character {
            ')' | ']' => 1,
            '(' | '[' => -1,
            _ => 0,
        };
        open < 0 || (open == 0 && !is_of_an_operand(*character))
    });
    &text[start.map_or(0, |(at, character)| at + character.len_utf8())..]
}

fn operand_behind(text: &str) -> &str {
    let mut open = 0_i32;
    let end = text.char_indices().find(|(_, character)| {
        open += match character {
            '(' | '[' => 1,
            ')' | ']' => -1,
            _ => 0,
        };
        open < 0 || (open == 0 && !is_of_an_operand(*character))
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

fn is_of_an_operand(character: char) -> bool {
    character.is_alphanumeric() || "_.:&*?()[]\"'".contains(character)
}

fn is_constant(operand: &str) -> bool {
    let operand = operand.trim_start_matches(['&', '*']);
    let name = operand.split('(').next().unwrap_or_default();
    let last = name.rsplit("::").next().unwrap_or_default();
    let is_variant = last.starts_with(char::is_uppercase) && !operand.contains(").");
    is_variant || operand.starts_with(|first: char| first.is_ascii_digit() || first == '"' || first == '\'')
}

/// Is what the operand names, once views of it are taken off, a secret?
fn is_secret(operand: &str) -> bool {
    let mut outside = String::new();
    let mut open = 0;
    for character in operand.chars() {
        match character {
            '(' | '[' => open += 1,
            ')' | ']' => open -= 1,
            other if open == 0 => outside.push(other),
            _ => {}
        }
    }
    let mut names: Vec<&str> = outside.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    names.retain(|name| !name.is_empty());
    let named = names.iter().rev().find(|name| !VIEWS.contains(name)).copied().unwrap_or_default();
    COMPARED_IN_CONSTANT_TIME.iter().any(|word| named == *word || named.ends_with(&format!("_{word}")))
}
