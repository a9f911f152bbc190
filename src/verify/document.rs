//! Where in a body is the JSON document that a scheme and the locators speak of, and in which form is a body signed?
//!
//! Invariant: what is decoded is bounded before it is decoded; a body that is not what the scheme says has no document,
//! and nothing in it is absent.

use std::borrow::Cow;
use std::io::Read;

use flate2::bufread::GzDecoder;

use super::fields::{self, Found, Json, Pointers};
use super::parts;
use super::presented::{HeaderText, header_text};
use crate::delivery::Delivery;
use http::header::CONTENT_TYPE;

/// A compressed body may grow to this, which is more than any sender that compresses documents.
const MAX_INFLATED: u64 = 8 * 1024 * 1024;
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) part: Part,
    /// A body that begins as gzip does is signed, and read, as what it unpacks to.
    pub(crate) gunzip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    #[default]
    Body,
    /// A field of a `multipart/form-data` body.
    Multipart(String),
    /// A field of a form body.
    Form(String),
}

impl Document {
    /// What the document says at the pointers.
    pub(crate) fn read(&self, delivery: &Delivery, pointers: &Pointers) -> Json {
        match self.text(delivery) {
            Some(text) => pointers.read(&text),
            None => Json::broken(),
        }
    }

    pub(crate) fn text<'a>(&self, delivery: &'a Delivery) -> Option<Cow<'a, [u8]>> {
        let found = match &self.part {
            Part::Body => return self.signed_body(delivery),
            Part::Form(name) => fields::field(&delivery.body, name),
            Part::Multipart(name) => match header_text(delivery, &CONTENT_TYPE) {
                HeaderText::One(content_type) => parts::part(&delivery.body, content_type, name),
                HeaderText::None | HeaderText::Several | HeaderText::Unreadable => Found::Ambiguous,
            },
        };
        match found {
            Found::Value(text) => Some(text),
            Found::Absent | Found::Ambiguous => None,
        }
    }

    pub(crate) fn inflates(&self, delivery: &Delivery) -> bool {
        self.gunzip && delivery.body.starts_with(GZIP_MAGIC)
    }

    /// The body as the sender signed it. `None`: it claims to be compressed and is not, or is too large.
    pub(crate) fn signed_body<'a>(&self, delivery: &'a Delivery) -> Option<Cow<'a, [u8]>> {
        let body = &delivery.body[..];
        match self.inflates(delivery) {
            true => inflated(body).map(Cow::Owned),
            false => Some(Cow::Borrowed(body)),
        }
    }
}

fn inflated(body: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut decoder = GzDecoder::new(body).take(MAX_INFLATED + 1);
    decoder.read_to_end(&mut plain).ok()?;
    // Bytes behind the stream would be part of the body and of nothing signed.
    let is_whole = decoder.into_inner().into_inner().is_empty();
    (is_whole && plain.len() as u64 <= MAX_INFLATED).then_some(plain)
}

/// The body as PHP's `json_encode` writes it: everything beyond ASCII as `\uXXXX`, and `/` as `\/`. `None` where that is
/// the body as it came, or it is no text.
pub(crate) fn php_escaped(body: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(body).ok()?;
    if text.bytes().all(|byte| byte < 0x7f && byte != b'/') {
        return None;
    }
    let mut escaped = String::with_capacity(text.len() * 2);
    let mut before = '\0';
    let mut units = [0; 2];
    for character in text.chars() {
        match character {
            '/' if before != '\\' => escaped.push_str("\\/"),
            _ if (character as u32) < 0x7f => escaped.push(character),
            _ => {
                for unit in character.encode_utf16(&mut units) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        before = character;
    }
    Some(escaped.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use flate2::Compression;
    use flate2::read::GzEncoder;
    use http::{HeaderValue, Method};

    fn delivery(content_type: &'static str, body: Vec<u8>) -> Delivery {
        let mut headers = Fields::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "h".into(),
            path: "/".into(),
            query: None,
            headers,
            body: Bytes::from(body),
        }
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        GzEncoder::new(plain, Compression::best()).read_to_end(&mut packed).unwrap();
        packed
    }

    #[test]
    fn a_compressed_body_is_read_whole_or_not_at_all() {
        let document = Document { part: Part::Body, gunzip: true };
        let text = |body: Vec<u8>| document.text(&delivery("application/json", body)).map(Cow::into_owned);
        assert_eq!(text(gzip(b"{}")), Some(b"{}".to_vec()));
        assert_eq!(text(b"{}".to_vec()), Some(b"{}".to_vec()));
        let mut cut = gzip(b"{\"a\":1}");
        cut.pop();
        assert_eq!(text(cut), None);
        assert_eq!(text([gzip(b"{}"), b"x".to_vec()].concat()), None);
        assert_eq!(text([gzip(b"{}"), gzip(b"{}")].concat()), None);
        let most = usize::try_from(MAX_INFLATED).unwrap();
        assert!(text(gzip(&vec![0; most])).is_some());
        assert_eq!(text(gzip(&vec![0; most + 1])), None);
        let as_it_came = Document::default().text(&delivery("application/json", gzip(b"{}"))).map(Cow::into_owned);
        assert_eq!(as_it_came, Some(gzip(b"{}")));
    }

    #[test]
    fn a_document_is_one_part_of_a_multipart_body() {
        let document = Document { part: Part::Multipart("json".into()), gunzip: false };
        let of = |content_type, body: &str| {
            let found = document.text(&delivery(content_type, body.into())).map(Cow::into_owned);
            found.map(|text| String::from_utf8(text).unwrap())
        };
        let json = "--b\r\nContent-Disposition: form-data; name=\"json\"\r\n\r\n{\"a\":\"--c\"}\r\n";
        let file = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"json\"\r\n\r\nx\r\n";
        let kind = "multipart/form-data; boundary=b";
        assert_eq!(of(kind, &format!("{file}{json}--b--\r\n")).as_deref(), Some("{\"a\":\"--c\"}"));
        assert_eq!(
            of("Multipart/Form-Data; boundary=\"b\"", &format!("{json}--b--")).as_deref(),
            Some("{\"a\":\"--c\"}")
        );
        // Twice, and nobody can tell which of them the upstream reads.
        assert_eq!(of(kind, &format!("{json}{json}--b--\r\n")), None);
        assert_eq!(of(kind, &format!("{file}--b--\r\n")), None);
        assert_eq!(of(kind, json), None);
        assert_eq!(of("application/json", json), None);
        assert_eq!(of("multipart/form-data", json), None);
    }

    #[test]
    fn the_escapes_of_php_are_made_once() {
        let escaped = |text: &str| php_escaped(text.as_bytes()).map(|text| String::from_utf8(text).unwrap());
        assert_eq!(escaped("{}"), None);
        assert_eq!(escaped("\"é/\\/🎉\"").as_deref(), Some("\"\\u00e9\\/\\/\\ud83c\\udf89\""));
        assert_eq!(php_escaped(b"\xff"), None);
    }
}
