//! Bodies that something rewrote between the sender's signature and us.

use bytes::Bytes;
use http::header;

use super::super::fields;
use super::hints::Search;
use super::json_text::{self, Style};
use crate::delivery::Delivery;

/// Rewriting a larger one costs more than the hint is worth.
const LARGEST_REWRITTEN: usize = 4 << 20;
const BOM: &[u8] = b"\xef\xbb\xbf";

type Rewrite = fn(&[u8]) -> Option<Vec<u8>>;

/// Kind, what is amiss, and how the body would have been.
const REWRITES: &[(&str, &str, Rewrite)] = &[
    ("body_newline", "the sender signed the body without the line end that it has here", |body| {
        let without = body.strip_suffix(b"\n")?;
        Some(without.strip_suffix(b"\r").unwrap_or(without).to_vec())
    }),
    ("body_newline", "the sender signed the body with a line end behind it, which is gone", |body| {
        Some([body, b"\n"].concat())
    }),
    ("body_newline", "the sender signed the body with a CRLF behind it, which is gone", |body| {
        Some([body, b"\r\n"].concat())
    }),
    ("body_whitespace", "the sender signed the body without the white space around it", |body| {
        changed(body, body.trim_ascii().to_vec())
    }),
    ("body_line_ends", "the sender signed CRLF line ends, and they are LF here", |body| {
        let text = replaced(body, b"\r\n", b"\n");
        changed(body, replaced(&text, b"\n", b"\r\n"))
    }),
    ("body_line_ends", "the sender signed LF line ends, and they are CRLF here", |body| {
        changed(body, replaced(body, b"\r\n", b"\n"))
    }),
    ("body_charset", "the sender signed the body without the byte order mark that it has here", |body| {
        Some(body.strip_prefix(BOM)?.to_vec())
    }),
    ("body_charset", "the sender signed the body with a byte order mark, which is gone", |body| {
        Some([BOM, body].concat())
    }),
    ("body_charset", "the sender signed the body in Latin-1, and it is UTF-8 here", |body| {
        let text = std::str::from_utf8(body).ok().filter(|text| !text.is_ascii())?;
        text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
    }),
    ("body_charset", "the sender signed the body in UTF-8, and it was read as Latin-1 on its way", |body| {
        changed(body, body.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes())
    }),
    ("body_chunk_framing", "the body still has the framing of its chunks, which nobody signs", unchunked),
    ("body_chunk_framing", "the sender signed the body and then framed it as one chunk", |body| {
        Some([format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat())
    }),
    ("body_empty", "the signature stands for an empty body", |body| changed(body, Vec::new())),
    ("body_in_json_string", "the body is a JSON text inside a JSON string", |body| {
        serde_json::from_slice::<String>(body).ok().map(String::into_bytes)
    }),
    ("body_in_json_string", "the sender signed the body as one JSON string", |body| {
        serde_json::to_vec(std::str::from_utf8(body).ok()?).ok()
    }),
    ("body_form_decoded", "the sender signed the form as decoded", |body| changed(body, form_decoded(body))),
    ("body_form_decoded", "the sender signed the form as encoded, and it was decoded on its way", |body| {
        changed(body, form_encoded(body))
    }),
    ("body_base64", "the sender signed the body in base64", |body| {
        Some(super::super::presented::Encoding::Base64.encode(body).into_bytes())
    }),
    ("body_base64", "the body is in base64, and what it decodes to was signed", |body| {
        use base64::Engine as _;
        super::super::key::BASE64.decode(body.trim_ascii()).ok()
    }),
];

const COMPACT: Style = Style {
    comma_space: false,
    colon_space: false,
    indent: None,
    sorted: false,
    ascii: false,
    slashes: false,
    html: false,
    whole_numbers: false,
    newline: false,
};
const SPACED: Style = Style { comma_space: true, colon_space: true, ..COMPACT };
const PRETTY: Style = Style { colon_space: true, indent: Some(2), ..COMPACT };

/// How the text is written in the usual libraries. The sorted ones come last: they are tried with every style before them.
const STYLES: &[(&str, Style)] = &[
    ("compact, as JSON.stringify writes", COMPACT),
    ("compact with whole numbers, as JSON.stringify writes", Style { whole_numbers: true, ..COMPACT }),
    ("with spaces and \\u escapes, as Python's json.dumps writes", Style { ascii: true, ..SPACED }),
    ("with spaces, as Python's json.dumps(ensure_ascii=False) writes", SPACED),
    ("compact with \\u escapes, as many APIs write", Style { ascii: true, ..COMPACT }),
    ("compact with \\/ and \\u escapes, as PHP's json_encode writes", Style { ascii: true, slashes: true, ..COMPACT }),
    ("compact with \\/, as PHP's json_encode(JSON_UNESCAPED_UNICODE) writes", Style { slashes: true, ..COMPACT }),
    ("compact with \\u003c for <, as Go's json.Marshal writes", Style { html: true, ..COMPACT }),
    ("with a line end behind it, as Go's json.Encoder writes", Style { html: true, newline: true, ..COMPACT }),
    ("indented by two, as JSON.stringify(…, 2) writes", PRETTY),
    ("indented by four", Style { indent: Some(4), ..PRETTY }),
    (
        "indented by four with \\u escapes, as Python's json.dumps(indent=4) writes",
        Style { ascii: true, indent: Some(4), ..PRETTY },
    ),
    (
        "indented by four with \\/ and \\u escapes, as PHP's JSON_PRETTY_PRINT writes",
        Style { ascii: true, slashes: true, indent: Some(4), ..PRETTY },
    ),
];

pub(super) fn try_all(search: &mut Search<'_>) {
    let original = search.case.delivery;
    let body = original.body.clone();
    if body.len() > LARGEST_REWRITTEN {
        return;
    }
    for (kind, says, rewrite) in REWRITES {
        if search.is_done() {
            return;
        }
        if let Some(changed) = rewrite(&body)
            && let Some(passed) = search.passes(with_body(original, changed))
        {
            search.tell_passed(passed, kind, *says, RAW);
        }
    }
    try_json(search, &body);
    try_fields(search, &body);
}

/// What is compressed, or no longer is: to compress anew would not give the sender's bytes.
pub(super) fn suppose_compressed(search: &mut Search<'_>) {
    let Delivery { headers, body, .. } = search.case.delivery;
    let is_compressed = body.starts_with(b"\x1f\x8b");
    let says_so = headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let (says, try_this) = match (is_compressed, says_so) {
        (true, _) => (
            "the body is compressed with gzip, and senders mostly sign what they had before compressing",
            "let the sender, or the proxy that compresses, leave it as it is",
        ),
        (false, true) => (
            "the head names a Content-Encoding and the body is not compressed: something decompressed it on its way",
            "hand the body on as it came, with its Content-Encoding",
        ),
        (false, false) => return,
    };
    search.tell("body_compressed", says, try_this);
}

/// An empty body under a head that speaks of one.
pub(super) fn suppose_lost(search: &mut Search<'_>) {
    let Delivery { headers, body, .. } = search.case.delivery;
    let declared = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if body.is_empty() && (declared || headers.contains_key(header::CONTENT_TYPE)) {
        let says = "the body is empty, though the head speaks of one: it was lost before it was saved or signed";
        let try_this = "save the body too; in a framework, take the raw body before a parser consumes it";
        search.tell("body_lost", says, try_this);
    }
}

const RAW: &str = "hand the body on byte for byte: no parsing and writing anew, no text mode (curl: --data-binary)";

fn try_json(search: &mut Search<'_>, body: &[u8]) {
    let text = body.strip_prefix(BOM).unwrap_or(body);
    let Some(tree) = std::str::from_utf8(text).ok().and_then(json_text::read) else { return };
    if matches!(tree, json_text::Tree::Plain(_) | json_text::Tree::Text(_)) {
        return;
    }
    for sorted in [false, true] {
        for (says, style) in STYLES {
            if search.is_done() {
                return;
            }
            let written = tree.write(Style { sorted, ..*style });
            if written.as_bytes() == body {
                continue;
            }
            if let Some(passed) = search.passes(with_body(search.case.delivery, written.into_bytes())) {
                let keys = if sorted { ", with its keys sorted" } else { "" };
                let says =
                    format!("the sender signed the JSON {says}{keys}; it was parsed and written anew on its way");
                search.tell_passed(passed, "body_reserialised", says, RAW);
            }
        }
    }
}

/// A field of a form that is the body the sender signed.
fn try_fields(search: &mut Search<'_>, body: &[u8]) {
    let original = search.case.delivery;
    for pair in body.split(|byte| *byte == b'&').take(16) {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| (1..=64).contains(&name.len())) else { continue };
        if search.is_done() {
            return;
        }
        if let fields::Found::Value(value) = fields::field(body, name)
            && let Some(passed) = search.passes(with_body(original, value.to_vec()))
        {
            let says = format!("the sender signed the value of the form field {name:?} alone");
            search.tell_passed(
                passed,
                "body_form_field",
                says,
                "let the sender send JSON, or sign the field: message = \"{form:…}\"",
            );
        }
    }
}

fn with_body(delivery: &Delivery, body: Vec<u8>) -> Delivery {
    Delivery { body: Bytes::from(body), ..delivery.clone() }
}

/// `None` where it is what it was.
fn changed(body: &[u8], other: Vec<u8>) -> Option<Vec<u8>> {
    (other != body).then_some(other)
}

fn replaced(body: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(rest.get(..at).unwrap_or_default());
        out.extend_from_slice(to);
        rest = rest.get(at + from.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

fn unchunked(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = body;
    loop {
        let end = rest.iter().take(32).position(|byte| *byte == b'\n')?;
        let line = rest.get(..end)?.trim_ascii();
        let size =
            usize::from_str_radix(std::str::from_utf8(line).ok()?, 16).ok().filter(|_| !line.starts_with(b"+"))?;
        rest = rest.get(end + 1..)?;
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?;
        rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n"))?;
    }
}

fn form_decoded(body: &[u8]) -> Vec<u8> {
    let spaces: Vec<u8> = body.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_encoding::percent_decode(&spaces).collect()
}

/// Values only: `&` and `=` stay.
fn form_encoded(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    for byte in body {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' | b'&' | b'=' => out.push(*byte),
            b' ' => out.push(b'+'),
            other => out.extend_from_slice(format!("%{other:02X}").as_bytes()),
        }
    }
    out
}
