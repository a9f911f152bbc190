//! What few senders need of a `verify` table: several messages, items, constant headers, variants, a hash of the body.

use super::reader::Table;
use super::units::header_name;
use crate::verify::{BodyHash, Document, Encoding, Hash, MessageWhen, More, Part, Template, UrlForm, When};

pub(super) fn read_more(source: &Table<'_>, table: &Table<'_>, public_url: Option<&str>) -> Option<More> {
    let document = read_document(table);
    let mut message_when: Vec<Option<MessageWhen>> =
        table.tables("message_when").into_iter().map(read_message_when).collect();
    let batch = table.choice("batch", Some("refuse"), &[("refuse", false), ("first_item", true)]);
    if batch == Some(true) {
        table.warn(
            "batch",
            "of an array the signature covers the first item only: whoever sees one delivery can append others",
            "batching switched off at the provider",
        );
        let first = Template::parse("{first_item}").expect("the token is known");
        message_when.push(Some(MessageWhen { when: When::Batch, message: first }));
    }
    let for_each = table.text("for_each");
    let fixed_headers = table.tables("fixed_headers").into_iter().map(|at| {
        let pair = at.parsed("header", header_name).zip(at.text("value"));
        if pair.is_none() {
            at.error("", "says no header and its value", r#"{ header = "X-Version", value = "1" }"#);
        }
        at.finish();
        pair
    });
    let fixed_headers: Vec<_> = fixed_headers.collect();
    let url_variants = table.all_parsed("url_variants", |text| match text {
        "without_port" => Ok(UrlForm::WithoutPort),
        "default_port" => Ok(UrlForm::DefaultPort),
        _ => Err(format!("{text:?} is no variant; there are \"without_port\" and \"default_port\"")),
    });
    let bodies = table.all_parsed("body_variants", |text| match text {
        "php_json_escape" => Ok(()),
        _ => Err(format!("{text:?} is no variant; there is \"php_json_escape\"")),
    });
    let has_hash = table.has("body_hash");
    let body_hash = read_body_hash(table);
    if has_hash && public_url.is_some_and(|url| url.contains('?')) {
        source.error(
            "public_url",
            "names a query, so that the one that was sent, and the hash of the body in it, would not be signed",
            "the URL up to the `?`",
        );
    }
    Some(More {
        document: document?,
        message_when: message_when.into_iter().collect::<Option<_>>()?,
        for_each,
        fixed_headers: fixed_headers.into_iter().collect::<Option<_>>()?,
        url_variants,
        php_escape: !bodies.is_empty(),
        body_hash: if has_hash { Some(body_hash?) } else { None },
    })
}

fn read_document(table: &Table<'_>) -> Option<Document> {
    let gunzip = table.choice("decode_body", Some("none"), &[("none", false), ("gzip", true)]);
    let Some(at) = table.table("document") else { return Some(Document { part: Part::Body, gunzip: gunzip? }) };
    let part = match (at.text("multipart"), at.text("form")) {
        (Some(name), None) => Some(Part::Multipart(name)),
        (None, Some(name)) => Some(Part::Form(name)),
        _ => {
            at.error("", "says one place: multipart or form", r#"document = { form = "payload" }"#);
            None
        }
    };
    at.finish();
    if gunzip == Some(true) {
        table.error("decode_body", "is for a body that is the document", "keep one of `document` and `decode_body`");
        return None;
    }
    Some(Document { part: part?, gunzip: false })
}

fn read_message_when(at: Table<'_>) -> Option<MessageWhen> {
    let when = at.needed_text("content_type", r#"content_type = "application/x-www-form-urlencoded""#);
    let message = at.needed_text("message", r#"message = "{only_form:payload}""#).and_then(|text| template(&at, &text));
    at.finish();
    Some(MessageWhen { when: When::ContentType(when?), message: message? })
}

/// Of the key `message`.
pub(super) fn template(at: &Table<'_>, text: &str) -> Option<Template> {
    match Template::parse(text) {
        Ok(template) => Some(template),
        Err(error) => {
            at.error("message", format!("at character {}: {}", error.position + 1, error.what), &error.try_this);
            None
        }
    }
}

fn read_body_hash(table: &Table<'_>) -> Option<BodyHash> {
    let at = table.table("body_hash")?;
    let query =
        at.needed_text("query", r#"body_hash = { query = "bodySHA256", algorithm = "sha256", encoding = "hex" }"#);
    let hashes = [("sha256", Hash::Sha256), ("sha384", Hash::Sha384), ("sha512", Hash::Sha512)];
    let hash = at.choice("algorithm", Some("sha256"), &hashes);
    let encodings = [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("base64url", Encoding::Base64Url)];
    let encoding = at.choice("encoding", Some("hex"), &encodings);
    at.finish();
    Some(BodyHash { query: query?, hash: hash?, encoding: encoding? })
}
