//! What did the sender present? From headers and fields to candidate signatures, a timestamp and names.
//!
//! Invariant: nothing here trusts or guesses. A header that decides anything stands there once; a candidate has exactly
//! the length of a real signature and decodes in one way only; their number is bounded before any is decoded.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base64::Engine;
use data_encoding::HEXLOWER_PERMISSIVE;
use http::HeaderName;
use smallvec::SmallVec;

use super::Fault;
use super::fields::{self, Found, Json, Pointers};
use super::jwt::{self, Object};
use super::key::{BASE64, BASE64URL};
use super::template::Template;
use crate::delivery::Delivery;
use crate::refusal::Refusal;

/// A provider that rolls its secret sends two or three. Each candidate costs a comparison, or a public-key operation.
const MAX_CANDIDATES: usize = 16;
/// No sender writes more than a handful beside its signatures.
const MAX_PAIRS: usize = 64;
/// Sixteen signatures of the longest algorithm, with their labels, fit several times.
const MAX_SIGNATURE_TEXT: usize = 8 * 1024;
/// Ids become store keys, header values and log fields.
const MAX_NAME_LENGTH: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignatureAt {
    pub(crate) place: Place,
    pub(crate) layout: Layout,
    pub(crate) encoding: Encoding,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Alternative names; the first that is present counts.
    Header(Vec<HeaderName>),
    /// In JSON that a header holds in base64 (eBay).
    HeaderJson {
        names: Vec<HeaderName>,
        pointer: String,
    },
    /// Each that is present holds signatures of its own.
    EveryHeader(Vec<HeaderName>),
    Query(String),
    Form(String),
    Json(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Plain {
        prefix: String,
    },
    /// `t=1700000000,v1=…,v1=…`: every `key` is a candidate, other keys are somebody else's.
    Pairs {
        separator: char,
        equals: char,
        key: String,
        /// Between groups of pairs: `t=1,v1=… t=1,v1=…`. All must agree on what is not a signature.
        groups: Option<char>,
    },
    /// `v1,… v1,…`: items without the prefix are another scheme's.
    List {
        separator: char,
        prefix: String,
    },
    /// `1700000000,…,…`: all but the timestamp are candidates.
    Positional {
        separator: char,
        timestamp_index: usize,
    },
    /// `key-a|… & key-b|…`: the signatures of the named keys are candidates, others are another receiver's.
    Entries {
        separator: char,
        equals: char,
        /// The ids of the configured secrets.
        names: Vec<Arc<str>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Of either case.
    Hex,
    /// Standard alphabet; the padding may be missing, stray bits behind the end may not be set.
    Base64,
    Base64Url,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TimestampPlace {
    Header(HeaderName),
    /// A key among the signature's pairs.
    Pair(String),
    /// The signature's own layout says where.
    Position,
    Json(String),
}

/// Where an event's id or type stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Locator {
    Header(HeaderName),
    Json(String),
    Query(String),
    Form(String),
    /// Of a token that proved the request, by name or JSON pointer; `json` points into a claim that is itself a JSON text.
    Claim {
        name: String,
        json: Option<String>,
    },
    /// In JSON that a form field holds (Travis CI).
    FormJson {
        form: String,
        pointer: String,
    },
}

/// As the configuration names it.
impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => f.write_str(name.as_str()),
            Self::Json(name) | Self::Query(name) | Self::Form(name) | Self::Claim { name, .. } => f.write_str(name),
            Self::FormJson { form, pointer } => write!(f, "{form}{pointer}"),
        }
    }
}

/// The signature's text, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Presented<'t> {
    /// Decoded, each of exactly the algorithm's length.
    pub(crate) candidates: SmallVec<[Vec<u8>; 2]>,
    /// The pairs that are not signatures.
    pub(crate) pairs: Vec<(&'t str, &'t str)>,
    /// The timestamp of a positional layout.
    pub(crate) position: Option<&'t str>,
}

/// Numbered headers are asked for up to as many.
pub(crate) const MAX_NUMBERED: usize = MAX_CANDIDATES;

/// What no header can hold, between those of `Place::EveryHeader`.
const BETWEEN_HEADERS: char = '\n';

const MISSING: Fault = Fault { refusal: Refusal::MissingSignature, note: "no signature was presented" };

const fn malformed(note: &'static str) -> Fault {
    Fault { refusal: Refusal::MalformedSignature, note }
}

const fn bad_time(note: &'static str) -> Fault {
    Fault { refusal: Refusal::MalformedTimestamp, note }
}

impl SignatureAt {
    pub(crate) fn find<'a>(&self, delivery: &'a Delivery, json: &'a Json) -> Result<Cow<'a, str>, Fault> {
        let text = match &self.place {
            Place::Header(names) => Cow::Borrowed(first_present(delivery, names)?),
            Place::HeaderJson { names, pointer } => Cow::Owned(header_json(delivery, names, pointer)?),
            Place::EveryHeader(names) => Cow::Owned(every_header(delivery, names)?),
            Place::Query(name) => utf8(fields::field(query(delivery), name))?,
            Place::Form(name) => utf8(fields::field(&delivery.body, name))?,
            Place::Json(pointer) => utf8(json.at(pointer))?,
        };
        match text.len() {
            _ if text.trim().is_empty() => Err(MISSING),
            length if length > MAX_SIGNATURE_TEXT => Err(malformed("the signature's text is too long")),
            _ => Ok(text),
        }
    }

    /// Takes the text apart and decodes the candidates. Those that cannot be a signature, because they are shorter or
    /// longer than `lengths`, are dropped; when none is left there was no signature of ours.
    pub(crate) fn parse<'t>(&self, text: &'t str, lengths: &RangeInclusive<usize>) -> Result<Presented<'t>, Fault> {
        let text = text.trim();
        let mut presented = Presented::default();
        let (mut count, mut candidates) = (0_usize, SmallVec::new());
        // Those beyond the bound are counted and not decoded.
        let mut take = |text: &str| {
            count += 1;
            if count <= MAX_CANDIDATES {
                candidates.extend(self.encoding.decode(text, lengths));
            }
        };
        match &self.layout {
            Layout::Plain { prefix } if matches!(self.place, Place::EveryHeader(_)) => {
                let items = text.split(BETWEEN_HEADERS);
                items.filter_map(|item| item.trim().strip_prefix(prefix.as_str())).for_each(take);
            }
            Layout::Plain { prefix } => text.strip_prefix(prefix.as_str()).into_iter().for_each(take),
            Layout::Pairs { separator, equals, key, groups } => {
                let items = text.split(|c| c == *separator || Some(c) == *groups);
                for (name, value) in items.filter_map(|item| item.trim().split_once(*equals)) {
                    if name == key {
                        take(value);
                    } else if presented.pairs.len() >= MAX_PAIRS {
                        return Err(malformed("more than 64 pairs"));
                    } else if groups.is_none() || !presented.pairs.contains(&(name, value)) {
                        presented.pairs.push((name, value));
                    }
                }
            }
            Layout::Entries { separator, equals, names } => {
                let entries = text.split(*separator).filter_map(|item| item.trim().split_once(*equals));
                let ours = entries.filter(|(id, _)| names.iter().any(|name| **name == **id));
                ours.for_each(|(_, value)| take(value));
            }
            Layout::List { separator, prefix } => {
                text.split(*separator).filter_map(|item| item.trim().strip_prefix(prefix.as_str())).for_each(take);
            }
            Layout::Positional { separator, timestamp_index } => {
                for (index, item) in text.split(*separator).map(str::trim).enumerate() {
                    if index == *timestamp_index {
                        presented.position = Some(item);
                    } else {
                        take(item);
                    }
                }
            }
        }
        if count == 0 && !presented.pairs.is_empty() {
            // Signatures of other versions are not ours.
            return Err(MISSING);
        }
        if count == 0 {
            return Err(malformed("the signature is not laid out as configured (prefix, key or separator)"));
        }
        if count > MAX_CANDIDATES {
            return Err(malformed("more than 16 signatures"));
        }
        presented.candidates = candidates;
        if presented.candidates.is_empty() {
            return Err(malformed("no signature decodes to the algorithm's length"));
        }
        Ok(presented)
    }
}

impl Encoding {
    pub(super) fn decode(self, text: &str, lengths: &RangeInclusive<usize>) -> Option<Vec<u8>> {
        // Longer than any spelling of a signature: not worth decoding.
        if text.len() > lengths.end() * 2 + 2 {
            return None;
        }
        let bytes = match self {
            Self::Hex => {
                let length = HEXLOWER_PERMISSIVE.decode_len(text.len()).ok()?;
                #[expect(
                    clippy::slow_vector_initialization,
                    reason = "glibc has small blocks at hand, but no cleared ones"
                )]
                let mut bytes = Vec::with_capacity(length);
                bytes.resize(length, 0);
                HEXLOWER_PERMISSIVE.decode_mut(text.as_bytes(), &mut bytes).ok().map(|_| bytes)
            }
            Self::Base64 => BASE64.decode(text).ok(),
            Self::Base64Url => BASE64URL.decode(text).ok(),
        };
        bytes.filter(|bytes| lengths.contains(&bytes.len()))
    }

    pub(crate) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => hex::encode(bytes),
            Self::Base64 => base64::engine::general_purpose::STANDARD.encode(bytes),
            Self::Base64Url => base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes),
        }
    }
}

impl TimestampPlace {
    /// The timestamp's text, as it goes into the message.
    pub(crate) fn find<'a>(
        &self,
        delivery: &'a Delivery,
        presented: &Presented<'a>,
        json: &'a Json,
    ) -> Result<Cow<'a, str>, Fault> {
        const MISSING: Fault = Fault { refusal: Refusal::MissingTimestamp, note: "no timestamp was presented" };
        match self {
            Self::Header(name) => match header_text(delivery, name) {
                HeaderText::One("") | HeaderText::None => Err(MISSING),
                HeaderText::One(text) => Ok(Cow::Borrowed(text)),
                HeaderText::Several => Err(bad_time("several timestamp headers")),
                HeaderText::Unreadable => Err(bad_time("the timestamp header is not visible ASCII")),
            },
            Self::Pair(name) => {
                let mut values = presented.pairs.iter().filter(|(key, _)| key == name);
                match (values.next(), values.next()) {
                    (Some((_, text)), None) => Ok(Cow::Borrowed(text)),
                    // Whoever adds a second one hopes that we sign with one and judge the other.
                    (Some(_), Some(_)) => Err(bad_time("several timestamps beside the signature")),
                    (None, _) => Err(MISSING),
                }
            }
            Self::Position => presented.position.map(Cow::Borrowed).ok_or(MISSING),
            Self::Json(pointer) => match json.at(pointer) {
                Found::Value(Cow::Borrowed(text)) => std::str::from_utf8(text)
                    .map(Cow::Borrowed)
                    .map_err(|_| bad_time("the timestamp in the body is not text")),
                Found::Value(Cow::Owned(text)) => String::from_utf8(text)
                    .map(Cow::Owned)
                    .map_err(|_| bad_time("the timestamp in the body is not text")),
                Found::Absent => Err(MISSING),
                Found::Ambiguous => Err(bad_time("the timestamp in the body is not one string or whole number")),
            },
        }
    }

    /// Does the signature stand for the time?
    pub(crate) fn is_covered_by(&self, template: &Template) -> bool {
        template.covers_timestamp()
            || match self {
                Self::Header(name) => template.covers_header(name),
                Self::Pair(name) => template.covers_pair(name),
                Self::Json(pointer) => template.covers_json(pointer),
                Self::Position => false,
            }
    }
}

impl Locator {
    /// The name that stands there; `None` also for one that could not be kept, compared or passed on safely. Only a
    /// header that stands there twice is refused: we and the upstream could read different ones.
    pub(crate) fn find(
        &self,
        delivery: &Delivery,
        json: &Json,
        claims: Option<&Object>,
    ) -> Result<Option<String>, Fault> {
        let found = match self {
            Self::Header(name) => match header_text(delivery, name) {
                HeaderText::One(text) => Some(text.to_owned()),
                HeaderText::None | HeaderText::Unreadable => None,
                HeaderText::Several => {
                    let note = "the header of the event's id or type stands there twice";
                    return Err(Fault { refusal: Refusal::Malformed, note });
                }
            },
            Self::Json(pointer) => text(json.at(pointer)),
            Self::Query(name) => text(fields::field(query(delivery), name)),
            Self::Form(name) => text(fields::field(&delivery.body, name)),
            Self::Claim { name, json } => claims.and_then(|claims| jwt::claim_text(claims, name, json.as_deref())),
            Self::FormJson { form, pointer } => match fields::field(&delivery.body, form) {
                Found::Value(inner) => text(json_inside(&inner, pointer).at(pointer)),
                Found::Absent | Found::Ambiguous => None,
            },
        };
        Ok(found.filter(|name| (1..=MAX_NAME_LENGTH).contains(&name.len()) && !name.chars().any(char::is_control)))
    }

    pub(crate) fn is_covered_by(&self, template: &Template, url_is_as_sent: bool) -> bool {
        match self {
            Self::Header(name) => template.covers_header(name),
            Self::Json(pointer) => template.covers_json(pointer),
            Self::Form(name) | Self::FormJson { form: name, .. } => template.covers_form(name),
            Self::Query(name) => template.covers_query(name) || (url_is_as_sent && template.covers_url()),
            Self::Claim { .. } => false,
        }
    }
}

/// The one text of the first of these headers that is there.
fn first_present<'a>(delivery: &'a Delivery, names: &[HeaderName]) -> Result<&'a str, Fault> {
    let mut found = names.iter().map(|name| header_text(delivery, name));
    match found.find(|found| !matches!(found, HeaderText::None)).unwrap_or(HeaderText::None) {
        HeaderText::One(text) => Ok(text),
        HeaderText::None => Err(MISSING),
        HeaderText::Several => Err(malformed("several signature headers")),
        HeaderText::Unreadable => Err(malformed("the signature header is not visible ASCII")),
    }
}

/// A text in the JSON that a header holds in base64.
pub(crate) fn header_json(delivery: &Delivery, names: &[HeaderName], pointer: &str) -> Result<String, Fault> {
    let text = first_present(delivery, names)?.trim();
    if text.len() > MAX_SIGNATURE_TEXT {
        return Err(malformed("the signature's text is too long"));
    }
    let decoded = BASE64.decode(text).map_err(|_| malformed("the signature header is not base64"))?;
    utf8(json_inside(&decoded, pointer).at(pointer)).map(Cow::into_owned)
}

/// JSON inside something else is small, and read when it is wanted.
fn json_inside(text: &[u8], pointer: &str) -> Json {
    let mut pointers = Pointers::default();
    // One that is no pointer was refused when the configuration was read; it would find nothing.
    let _ = pointers.add(pointer);
    pointers.read(text)
}

/// What stands in all of these headers, each of them once or not at all.
fn every_header(delivery: &Delivery, names: &[HeaderName]) -> Result<String, Fault> {
    let mut texts = String::new();
    for name in names {
        match header_text(delivery, name) {
            HeaderText::One(text) if text.trim().is_empty() => {}
            HeaderText::One(text) => {
                if !texts.is_empty() {
                    texts.push(BETWEEN_HEADERS);
                }
                texts.push_str(text);
            }
            HeaderText::None => {}
            HeaderText::Several => return Err(malformed("a signature header stands there twice")),
            HeaderText::Unreadable => return Err(malformed("a signature header is not visible ASCII")),
        }
    }
    Ok(texts)
}

/// What stands under a header's name.
pub(crate) enum HeaderText<'a> {
    None,
    One(&'a str),
    Several,
    Unreadable,
}

pub(crate) fn header_text<'a>(delivery: &'a Delivery, name: &HeaderName) -> HeaderText<'a> {
    let mut values = delivery.headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => HeaderText::None,
        (Some(_), Some(_)) => HeaderText::Several,
        (Some(value), None) => value.to_str().map_or(HeaderText::Unreadable, HeaderText::One),
    }
}

pub(super) fn query(delivery: &Delivery) -> &[u8] {
    delivery.query.as_deref().unwrap_or_default().as_bytes()
}

fn utf8(found: Found<'_>) -> Result<Cow<'_, str>, Fault> {
    match found {
        Found::Absent => Err(MISSING),
        Found::Ambiguous => Err(malformed("the field of the signature is doubled or not a string")),
        Found::Value(bytes) => {
            text(Found::Value(bytes)).map(Cow::Owned).ok_or(malformed("the field of the signature is not text"))
        }
    }
}

fn text(found: Found<'_>) -> Option<String> {
    match found {
        Found::Value(bytes) => String::from_utf8(bytes.into_owned()).ok(),
        Found::Absent | Found::Ambiguous => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::{HeaderValue, Method};
    use proptest::prelude::*;

    const HEX: &str = "00ff";

    fn at(layout: Layout, encoding: Encoding) -> SignatureAt {
        SignatureAt { place: Place::Header(vec![HeaderName::from_static("sig")]), layout, encoding }
    }

    fn pairs() -> Layout {
        Layout::Pairs { separator: ',', equals: '=', key: "v1".into(), groups: None }
    }

    fn plain(prefix: &str) -> Layout {
        Layout::Plain { prefix: prefix.into() }
    }

    fn with_headers(headers: &[(&'static str, &[u8])]) -> Delivery {
        let mut map = Fields::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "h".into(),
            path: "/".into(),
            query: Some("sig=00ff&id=q".into()),
            headers: map,
            body: Bytes::from_static(b"sig=00ff"),
        }
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T, Fault>) -> Refusal {
        result.unwrap_err().refusal
    }

    #[test]
    fn each_layout_yields_its_candidates() {
        let one = vec![vec![0x00, 0xff]];
        let parse = |layout, text| at(layout, Encoding::Hex).parse(text, &(2..=2)).unwrap().candidates.into_vec();
        assert_eq!(parse(plain("sha256="), "sha256=00ff"), one);
        assert_eq!(parse(pairs(), "t=1, v1=00FF ,v0=11ee"), one);
        assert_eq!(parse(pairs(), "t=1,v1=00ff,v1=11ee").len(), 2);
        assert_eq!(parse(Layout::List { separator: ' ', prefix: "v1,".into() }, "v1a,zz v1,00ff"), one);
        let positional = Layout::Positional { separator: ',', timestamp_index: 0 };
        assert_eq!(parse(positional, "1700000000,00ff"), one);
    }

    #[test]
    fn pairs_without_a_signature_of_ours_hold_none() {
        for text in ["t=1,v2=00ff", "t=1"] {
            let parsed = at(pairs(), Encoding::Hex).parse(text, &(2..=2));
            assert_eq!(refusal(parsed), Refusal::MissingSignature, "{text}");
        }
        assert_eq!(at(pairs(), Encoding::Hex).parse("t=1,v1=00ff", &(2..=2)).map(|it| it.candidates.len()), Ok(1));
    }

    #[test]
    fn groups_of_pairs_agree_or_have_no_value() {
        let grouped = Layout::Pairs { separator: ',', equals: '=', key: "v1".into(), groups: Some(' ') };
        let at = at(grouped, Encoding::Hex);
        let parsed = at.parse("t=1,v1=00ff t=1,v1=11ee", &(2..=2)).unwrap();
        assert_eq!((parsed.candidates.len(), parsed.pairs), (2, vec![("t", "1")]));
        assert_eq!(at.parse("t=1,v1=00ff t=2,v1=11ee", &(2..=2)).unwrap().pairs.len(), 2);
    }

    #[test]
    fn entries_of_other_receivers_are_passed_over() {
        let names = vec!["mine".into()];
        let at = at(Layout::Entries { separator: '&', equals: '|', names }, Encoding::Hex);
        let parse = |text| at.parse(text, &(2..=2)).map(|presented| presented.candidates.into_vec());
        assert_eq!(parse("other|0000&mine|00ff"), Ok(vec![vec![0x00, 0xff]]));
        assert_eq!(parse("other|00ff").map_err(|fault| fault.refusal), Err(Refusal::MalformedSignature));
    }

    #[test]
    fn what_is_not_laid_out_as_configured_is_malformed() {
        let parse = |layout, text| refusal(at(layout, Encoding::Hex).parse(text, &(2..=2)));
        for (layout, text) in [
            (plain("sha256="), "00ff"),
            (plain("sha256="), "SHA256=00ff"),
            (plain(""), "00f"),
            (plain(""), "00ff00"),
            (plain(""), "00fg"),
            (plain(""), "00 ff"),
            (pairs(), "garbage"),
            (Layout::List { separator: ' ', prefix: "v1,".into() }, "00ff"),
            (Layout::Positional { separator: ',', timestamp_index: 0 }, "1700000000"),
        ] {
            assert_eq!(parse(layout, text), Refusal::MalformedSignature, "{text}");
        }
    }

    #[test]
    fn so_many_pairs_are_looked_at_and_no_more() {
        let text = |pairs: usize| format!("v1=00ff,{}", vec!["a=b"; pairs].join(","));
        for groups in [None, Some(' ')] {
            let layout = Layout::Pairs { separator: ',', equals: '=', key: "v1".into(), groups };
            assert!(at(layout.clone(), Encoding::Hex).parse(&text(MAX_PAIRS), &(2..=2)).is_ok());
            let one_more = at(layout, Encoding::Hex).parse(&text(MAX_PAIRS + 1), &(2..=2)).map(|it| it.pairs.len());
            assert_eq!(one_more, if groups.is_some() { Ok(1) } else { Err(malformed("more than 64 pairs")) });
        }
    }

    #[test]
    fn sixteen_candidates_are_tried_and_seventeen_refused() {
        let text = |count| vec!["v1=00ff"; count].join(",");
        let at = at(pairs(), Encoding::Hex);
        assert_eq!(at.parse(&text(16), &(2..=2)).unwrap().candidates.len(), 16);
        assert_eq!(refusal(at.parse(&text(17), &(2..=2))), Refusal::MalformedSignature);
    }

    #[test]
    fn base64_may_lack_padding_but_has_one_spelling() {
        let decode = |encoding: Encoding, text| encoding.decode(text, &(1..=1));
        assert_eq!(decode(Encoding::Base64, "/w=="), Some(vec![0xff]));
        assert_eq!(decode(Encoding::Base64, "/w"), Some(vec![0xff]));
        assert_eq!(decode(Encoding::Base64, "/x=="), None);
        assert_eq!(decode(Encoding::Base64, "_w=="), None);
        assert_eq!(decode(Encoding::Base64Url, "_w"), Some(vec![0xff]));
        assert_eq!(decode(Encoding::Base64Url, "/w"), None);
        assert_eq!(decode(Encoding::Base64, "/w==\n"), None);
    }

    #[test]
    fn the_first_header_that_is_present_counts_and_only_once() {
        let mut at = at(plain(""), Encoding::Hex);
        at.place = Place::Header(vec![HeaderName::from_static("sig"), HeaderName::from_static("other")]);
        let json = Json::default();
        let find = |headers: &[(&'static str, &[u8])]| at.find(&with_headers(headers), &json).map(Cow::into_owned);
        assert_eq!(find(&[("other", b"b")]).unwrap(), "b");
        assert_eq!(find(&[("other", b"b"), ("sig", b"a")]).unwrap(), "a");
        assert_eq!(refusal(find(&[])), Refusal::MissingSignature);
        assert_eq!(refusal(find(&[("sig", b" ")])), Refusal::MissingSignature);
        assert_eq!(refusal(find(&[("sig", b"a"), ("sig", b"a")])), Refusal::MalformedSignature);
        assert_eq!(refusal(find(&[("sig", b"\xff")])), Refusal::MalformedSignature);
        assert_eq!(refusal(find(&[("sig", &[b'a'; MAX_SIGNATURE_TEXT + 1])])), Refusal::MalformedSignature);
    }

    #[test]
    fn a_signature_may_stand_in_the_query_a_form_or_the_body() {
        let mut at = at(plain(""), Encoding::Hex);
        let delivery = with_headers(&[]);
        let json = Json::default();
        for place in [Place::Query("sig".into()), Place::Form("sig".into())] {
            at.place = place;
            assert_eq!(at.find(&delivery, &json).unwrap(), HEX);
        }
        at.place = Place::Query("gone".into());
        assert_eq!(refusal(at.find(&delivery, &json)), Refusal::MissingSignature);
        at.place = Place::Json("/sig".into());
        let mut pointers = fields::Pointers::default();
        pointers.add("/sig").unwrap();
        assert_eq!(at.find(&delivery, &pointers.read(br#"{"sig":"00ff"}"#)).unwrap(), HEX);
        assert_eq!(
            refusal(at.find(&delivery, &pointers.read(br#"{"sig":"a","sig":"b"}"#))),
            Refusal::MalformedSignature
        );
    }

    #[test]
    fn there_is_one_timestamp_or_none_counts() {
        let json = Json::default();
        let header = TimestampPlace::Header(HeaderName::from_static("ts"));
        let none = Presented::default();
        let find =
            |headers: &[(&'static str, &[u8])]| header.find(&with_headers(headers), &none, &json).map(Cow::into_owned);
        assert_eq!(find(&[("ts", b"17")]).unwrap(), "17");
        assert_eq!(refusal(find(&[])), Refusal::MissingTimestamp);
        assert_eq!(refusal(find(&[("ts", b"17"), ("ts", b"17")])), Refusal::MalformedTimestamp);
        assert_eq!(refusal(find(&[("ts", b"\xff")])), Refusal::MalformedTimestamp);

        let at = at(pairs(), Encoding::Hex);
        let delivery = with_headers(&[]);
        let find = |text| {
            let presented = at.parse(text, &(2..=2)).unwrap();
            TimestampPlace::Pair("t".into()).find(&delivery, &presented, &json).map(Cow::into_owned)
        };
        assert_eq!(find("t=17,v1=00ff").unwrap(), "17");
        assert_eq!(refusal(find("t=17,t=18,v1=00ff")), Refusal::MalformedTimestamp);
        assert_eq!(refusal(find("v1=00ff")), Refusal::MissingTimestamp);
    }

    #[test]
    fn an_id_that_cannot_be_kept_is_absent_and_a_doubled_one_refused() {
        let json = Json::default();
        let id = Locator::Header(HeaderName::from_static("id"));
        let find = |headers: &[(&'static str, &[u8])]| id.find(&with_headers(headers), &json, None);
        assert_eq!(find(&[("id", b"msg_1")]).unwrap().as_deref(), Some("msg_1"));
        assert_eq!(find(&[("id", &[b'a'; 256])]).unwrap().map(|id| id.len()), Some(256));
        for unfit in [&[b'a'; 257][..], b"", b"a\tb", b"\xff"] {
            assert_eq!(find(&[("id", unfit)]).unwrap(), None);
        }
        assert_eq!(refusal(find(&[("id", b"a"), ("id", b"a")])), Refusal::Malformed);
        assert_eq!(Locator::Query("id".into()).find(&with_headers(&[]), &json, None).unwrap().as_deref(), Some("q"));
    }

    proptest! {
        #[test]
        fn no_signature_text_panics(text in "\\PC{0,60}|[tv01=,; a-f]{0,60}") {
            for layout in [plain("v1="), pairs(), Layout::List { separator: ' ', prefix: "v1,".into() },
                Layout::Positional { separator: ',', timestamp_index: 3 }] {
                for encoding in [Encoding::Hex, Encoding::Base64, Encoding::Base64Url] {
                    let _ = at(layout.clone(), encoding).parse(&text, &(2..=2));
                }
            }
        }
    }
}
