//! What does the sender sign? A message template, parsed once when the configuration loads.
//!
//! Invariant: rendering never fails half-way and never guesses. A value that the message needs and the request lacks, or
//! has twice, leaves the message incomplete, and an incomplete message proves nothing. The body enters as one borrowed
//! piece: it is never copied and never parsed on its way into the MAC.
//!
//! One file, though a long one: what parses, what renders and what is covered must agree on every token.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderName;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use smallvec::SmallVec;
use thiserror::Error;

use super::fields::{self, Found, Json};
use super::presented::Locator;
use super::proof::Coverage;
use super::{canonical, parts};
use crate::delivery::Delivery;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Value(Value),
    /// Vanishes whole when a value inside is absent or empty.
    Optional(Vec<Part>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    token: Token,
    filters: Vec<Filter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Body,
    Timestamp,
    Method,
    Url,
    Path,
    Query(String),
    Header(HeaderName),
    Json(String),
    Form(String),
    FormSorted,
    /// The body's only form field: with another beside it there is no value, so the signature stands for the whole.
    OnlyForm(String),
    /// All form fields but these, sorted, as `name=value` joined by `&` (Alipay).
    FormPairs(Vec<String>),
    /// All form fields but these, sorted, as PHP would serialize the array (Paddle Classic).
    FormPhp(Vec<String>),
    Pair(String),
    /// The first item of a JSON array, as it came.
    FirstItem,
    /// The key itself, for a plain hash. It never enters the rendered message.
    Secret,
    /// Hook0: the headers that a pair names (`a b`), and their values: `a b.1.2`.
    NamedHeaders(String),
    /// Contentful: the headers that a header names, sorted: `a:1;b:2`.
    SignedHeaders {
        list: HeaderName,
        /// What the list must name beside itself.
        needed: Vec<HeaderName>,
    },
    /// Contentful: path and query, encoded once more.
    EncodedTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Sha1,
    Sha256,
    Sha512,
    Crc32,
    Hex,
    Base64,
    /// Without padding, as everywhere that speaks base64url.
    Base64Url,
    /// ASCII letters only.
    Lower,
    /// A JSON string, quotes and all.
    Json,
    /// What is absent is the empty text.
    OrEmpty,
}

/// In which of several spellings the sender may have signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UrlForm {
    #[default]
    AsIs,
    /// Without the port that the URL names.
    WithoutPort,
    /// With the scheme's own port, where the URL names none.
    DefaultPort,
}

/// Where the template is wrong (a byte offset), what is wrong there, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("at character {position}: {what}; {try_this}")]
pub(crate) struct TemplateError {
    pub(crate) position: usize,
    pub(crate) what: String,
    pub(crate) try_this: String,
}

/// What a template can draw on.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) delivery: &'a Delivery,
    /// The URL the provider was told, when it is not the one the request shows.
    pub(crate) public_url: Option<&'a str>,
    /// Exactly as presented.
    pub(crate) timestamp: Option<&'a str>,
    /// The pairs beside the signature, when it is laid out in pairs.
    pub(crate) pairs: &'a [(&'a str, &'a str)],
    pub(crate) json: &'a Json,
    /// The body in the form that is signed, when it is not the one that came.
    pub(crate) body: Option<&'a [u8]>,
    pub(crate) url_form: UrlForm,
}

/// The signed message in pieces, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) pieces: SmallVec<[Cow<'a, [u8]>; 4]>,
    pub(crate) complete: bool,
    /// Before which piece the secret goes, where a plain hash takes it.
    pub(crate) secret_at: Option<usize>,
}

impl<'a> Message<'a> {
    /// The message in one piece: a copy, unless it is one already.
    pub(crate) fn whole(&self) -> Cow<'_, [u8]> {
        match self.pieces.as_slice() {
            [only] => Cow::Borrowed(only),
            pieces => Cow::Owned(pieces.concat()),
        }
    }
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        Parser { text, at: 0 }.template()
    }

    pub(crate) fn render<'a>(&'a self, facts: &Facts<'a>) -> Message<'a> {
        let mut message =
            Message { pieces: SmallVec::with_capacity(self.parts.len()), complete: true, secret_at: None };
        for (position, part) in self.parts.iter().enumerate() {
            match part {
                Part::Optional(inner) => match segment(inner, facts) {
                    Segment::Vanishes => {}
                    Segment::Stays(pieces) => message.pieces.extend(pieces),
                    Segment::Ambiguous => message.complete = false,
                },
                Part::Literal(text) => message.pieces.push(Cow::Borrowed(text.as_bytes())),
                Part::Value(Value { token: Token::Secret, .. }) => message.secret_at = Some(message.pieces.len()),
                Part::Value(value) => match value.render(facts) {
                    Found::Value(bytes) => {
                        message.complete &= !value.is_free() || self.ends_are_certain(position, &bytes);
                        message.pieces.push(bytes);
                    }
                    Found::Absent | Found::Ambiguous => message.complete = false,
                },
            }
        }
        message
    }

    /// Can the value at this position be told from what stands around it? Where it holds the separator, a part of the body
    /// could move into it, or a part of it into the body, under the same signature.
    fn ends_are_certain(&self, position: usize, bytes: &[u8]) -> bool {
        let is_word = || bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
        let behind = match self.parts.get(position + 1) {
            Some(Part::Optional(inner)) => inner.first(),
            next => next,
        };
        let ends = match behind {
            None | Some(Part::Optional(_)) => true,
            Some(Part::Value(_)) => is_word(),
            Some(Part::Literal(literal)) => {
                first_of(literal.as_bytes(), &[bytes, literal.as_bytes()].concat()) == Some(bytes.len())
            }
        };
        // A time or a method before it ends by itself.
        let before = self.parts.get(..position).unwrap_or_default();
        let has_free_before = before.iter().any(|part| match part {
            Part::Value(value) => !matches!(value.token, Token::Timestamp | Token::Method | Token::Secret),
            Part::Literal(_) | Part::Optional(_) => false,
        });
        let begins = match before.last() {
            _ if !has_free_before => true,
            None | Some(Part::Optional(_)) => true,
            Some(Part::Value(_)) => is_word(),
            Some(Part::Literal(literal)) => {
                let backwards = |text: &[u8]| text.iter().rev().copied().collect::<Vec<_>>();
                let literal = backwards(literal.as_bytes());
                first_of(&literal, &[backwards(bytes), literal.clone()].concat()) == Some(bytes.len())
            }
        };
        ends && begins
    }

    /// Does the time stand directly before the body, or directly behind it?
    pub(crate) fn time_beside_body(&self) -> (bool, bool) {
        let is_time = |part: &Part| matches!(part, Part::Value(Value { token: Token::Timestamp, .. }));
        let is_body = |part: &Part| matches!(part, Part::Value(Value { token: Token::Body, .. }));
        let meet = |one: &dyn Fn(&Part) -> bool, other: &dyn Fn(&Part) -> bool| {
            self.parts.windows(2).any(|pair| matches!(pair, [first, second] if one(first) && other(second)))
        };
        (meet(&is_time, &is_body), meet(&is_body, &is_time))
    }

    /// Does the signature stand for every byte of the body? A digest stands for it where nobody can find two bodies with
    /// the same one: not SHA-1, and never CRC-32.
    pub(crate) fn covers_body(&self) -> bool {
        self.covers(Token::stands_for_the_body)
    }

    /// What of the body the message holds.
    pub(crate) fn coverage(&self) -> Coverage {
        let of_body = |token: &Token| {
            matches!(token, Token::Json(_) | Token::Form(_) | Token::FormSorted | Token::FirstItem)
                || token.stands_for_the_body()
        };
        match self.covers_body() {
            true => Coverage::Whole,
            false if self.tokens().any(of_body) => Coverage::Partly,
            false => Coverage::Nothing,
        }
    }

    pub(crate) fn covers_timestamp(&self) -> bool {
        self.covers(|token| *token == Token::Timestamp)
    }

    pub(crate) fn covers_header(&self, name: &HeaderName) -> bool {
        self.covers(|token| match token {
            Token::Header(covered) => covered == name,
            Token::SignedHeaders { list, needed } => list == name || needed.contains(name),
            _ => false,
        })
    }

    pub(crate) fn covers_json(&self, pointer: &str) -> bool {
        self.covers_body() || self.covers(|token| matches!(token, Token::Json(covered) if covered == pointer))
    }

    /// Sorted fields run together without separators, so that several forms have one spelling: they do not count.
    pub(crate) fn covers_form(&self, name: &str) -> bool {
        self.covers_body() || self.covers(|token| matches!(token, Token::Form(covered) if covered == name))
    }

    pub(crate) fn covers_query(&self, name: &str) -> bool {
        self.covers(|token| matches!(token, Token::Query(covered) if covered == name))
    }

    pub(crate) fn covers_pair(&self, name: &str) -> bool {
        self.covers(|token| matches!(token, Token::Pair(covered) if covered == name))
    }

    /// Does the signature stand for the URL, and so for the query in it?
    pub(crate) fn covers_url(&self) -> bool {
        self.covers(|token| *token == Token::Url)
    }

    pub(crate) fn uses_url(&self) -> bool {
        self.tokens().any(|token| *token == Token::Url)
    }

    pub(crate) fn uses_timestamp(&self) -> bool {
        self.tokens().any(|token| *token == Token::Timestamp)
    }

    pub(crate) fn uses_pairs(&self) -> bool {
        self.pairs().next().is_some()
    }

    /// The pairs beside the signature that the message draws on.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &str> {
        self.tokens().filter_map(|token| match token {
            Token::Pair(name) | Token::NamedHeaders(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// How often the secret stands in the message itself.
    pub(crate) fn secrets(&self) -> usize {
        self.tokens().filter(|token| **token == Token::Secret).count()
    }

    /// The headers that name the signed headers, with those that each must name.
    pub(crate) fn header_lists(&self) -> impl Iterator<Item = (&HeaderName, &[HeaderName])> {
        self.tokens().filter_map(|token| match token {
            Token::SignedHeaders { list, needed } => Some((list, needed.as_slice())),
            _ => None,
        })
    }

    /// JSON values without which no message is complete.
    pub(crate) fn needed_json(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(Value { token: Token::Json(pointer), filters }) if !filters.contains(&Filter::OrEmpty) => {
                Some(pointer.as_str())
            }
            _ => None,
        })
    }

    /// Form fields without which no message is complete.
    pub(crate) fn needed_forms(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(Value { token: Token::Form(name) | Token::OnlyForm(name), .. }) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Pairs that name signed headers.
    pub(crate) fn header_pairs(&self) -> impl Iterator<Item = &str> {
        self.tokens().filter_map(|token| match token {
            Token::NamedHeaders(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The query parameters that the message draws on.
    pub(crate) fn needed_queries(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(Value { token: Token::Query(name), .. }) => Some(name.as_str()),
            _ => None,
        })
    }

    pub(crate) fn json_pointers(&self) -> impl Iterator<Item = &str> {
        self.tokens().filter_map(|token| match token {
            Token::Json(pointer) => Some(pointer.as_str()),
            _ => None,
        })
    }

    /// Where the values stand of which it is made.
    pub(crate) fn locators(&self) -> Vec<Locator> {
        let locators = self.tokens().filter_map(|token| match token {
            Token::Header(name) => Some(Locator::Header(name.clone())),
            Token::Json(pointer) => Some(Locator::Json(pointer.clone())),
            Token::Query(name) => Some(Locator::Query(name.clone())),
            Token::Form(name) => Some(Locator::Form(name.clone())),
            _ => None,
        });
        locators.collect()
    }

    /// The headers without which no message is complete.
    pub(crate) fn needed_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(Value { token: Token::Header(name), .. }) => Some(name),
            _ => None,
        })
    }

    /// A value counts as covered where it always stands in the message and no filter on its way loses anything.
    fn covers(&self, wanted: impl Fn(&Token) -> bool) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Value(value) => wanted(&value.token) && value.keeps_everything(),
            Part::Literal(_) | Part::Optional(_) => false,
        })
    }

    fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.parts.iter().flat_map(Part::inside).filter_map(|part| match part {
            Part::Value(value) => Some(&value.token),
            Part::Literal(_) | Part::Optional(_) => None,
        })
    }
}

impl Part {
    fn inside(&self) -> &[Self] {
        match self {
            Self::Optional(inner) => inner,
            Self::Literal(_) | Self::Value(_) => std::slice::from_ref(self),
        }
    }
}

enum Segment<'a> {
    Vanishes,
    Stays(Vec<Cow<'a, [u8]>>),
    Ambiguous,
}

fn segment<'a>(parts: &'a [Part], facts: &Facts<'a>) -> Segment<'a> {
    let mut pieces = Vec::with_capacity(parts.len());
    let mut vanishes = false;
    // What a value may not hold: else one value could stand for itself and for the segment behind, which then vanishes.
    let end = match parts.last() {
        Some(Part::Literal(text)) => text.as_bytes(),
        _ => b"",
    };
    for part in parts {
        match part {
            Part::Literal(text) => pieces.push(Cow::Borrowed(text.as_bytes())),
            Part::Value(value) => match value.render(facts) {
                Found::Ambiguous => return Segment::Ambiguous,
                Found::Absent => vanishes = true,
                Found::Value(bytes) => {
                    if !end.is_empty() && bytes.windows(end.len()).any(|window| window == end) {
                        return Segment::Ambiguous;
                    }
                    vanishes |= bytes.is_empty();
                    pieces.push(bytes);
                }
            },
            Part::Optional(_) => unreachable!("the parser refuses a segment inside a segment"),
        }
    }
    if vanishes { Segment::Vanishes } else { Segment::Stays(pieces) }
}

impl Value {
    fn render<'a>(&self, facts: &Facts<'a>) -> Found<'a> {
        let mut bytes = match self.token.read(facts) {
            Found::Value(bytes) => bytes,
            Found::Absent if self.filters.contains(&Filter::OrEmpty) => Cow::Borrowed(&b""[..]),
            without @ (Found::Absent | Found::Ambiguous) => return without,
        };
        for (position, filter) in self.filters.iter().enumerate() {
            let is_last = position + 1 == self.filters.len();
            bytes = match filter {
                Filter::OrEmpty => continue,
                // A body that is no text has no such spelling.
                Filter::Json => match std::str::from_utf8(&bytes).ok().and_then(|text| serde_json::to_vec(text).ok()) {
                    Some(quoted) => Cow::Owned(quoted),
                    None => return Found::Ambiguous,
                },
                _ => Cow::Owned(filter.apply(&bytes, is_last)),
            };
        }
        Found::Value(bytes)
    }

    /// Is it of the sender's choice, and not of the body, and stands there as it came?
    fn is_free(&self) -> bool {
        matches!(self.token, Token::Header(_) | Token::Query(_) | Token::Pair(_))
            && self.filters.iter().all(|filter| matches!(filter, Filter::Lower | Filter::OrEmpty))
    }

    fn keeps_everything(&self) -> bool {
        let mut case_matters = true;
        self.filters.iter().all(|filter| match filter {
            Filter::Hex => {
                case_matters = false;
                true
            }
            Filter::Json | Filter::OrEmpty => true,
            Filter::Sha256 | Filter::Sha512 | Filter::Base64 | Filter::Base64Url => {
                case_matters = true;
                true
            }
            Filter::Lower => !case_matters,
            Filter::Sha1 | Filter::Crc32 => false,
        })
    }
}

impl Token {
    /// Can the body be told from it? Of the forms only those that no two forms have in common; the fields that are left
    /// out are the signature's own.
    fn stands_for_the_body(&self) -> bool {
        matches!(self, Self::Body | Self::OnlyForm(_) | Self::FormPairs(_) | Self::FormPhp(_))
    }

    fn read<'a>(&self, facts: &Facts<'a>) -> Found<'a> {
        let delivery = facts.delivery;
        match self {
            Self::Body => Found::Value(Cow::Borrowed(facts.body.unwrap_or(&delivery.body))),
            Self::Timestamp => facts.timestamp.map_or(Found::Absent, |text| Found::Value(text.as_bytes().into())),
            Self::Method => Found::Value(delivery.method.as_str().as_bytes().into()),
            Self::Url => Found::Value(url_as(delivery, facts.public_url, facts.url_form).into_bytes().into()),
            Self::Path => Found::Value(delivery.path.as_bytes().into()),
            Self::Query(name) => fields::field(delivery.query.as_deref().unwrap_or_default().as_bytes(), name),
            Self::Header(name) => header(delivery, name),
            Self::Json(pointer) => facts.json.at(pointer),
            Self::Form(name) => fields::field(&delivery.body, name),
            Self::FormSorted => fields::sorted_fields(&delivery.body),
            Self::OnlyForm(name) => fields::only_field(&delivery.body, name),
            Self::FormPairs(without) => fields::sorted_pairs(&delivery.body, without),
            Self::FormPhp(without) => fields::php_serialized(&delivery.body, without),
            Self::Pair(name) => match pair(facts, name) {
                Ok(value) => Found::Value(value.as_bytes().into()),
                Err(without) => without,
            },
            Self::FirstItem => parts::first_item(&delivery.body),
            // Rendered by its caller, who keeps it out of the pieces.
            Self::Secret => Found::Absent,
            Self::NamedHeaders(name) => match pair(facts, name) {
                Ok(names) => canonical::named_headers(delivery, names),
                Err(without) => without,
            },
            Self::SignedHeaders { list, needed } => canonical::signed_headers(delivery, list, needed),
            Self::EncodedTarget => Found::Value(canonical::encoded_target(delivery).into_bytes().into()),
        }
    }
}

fn first_of(wanted: &[u8], text: &[u8]) -> Option<usize> {
    text.windows(wanted.len().max(1)).position(|window| window == wanted)
}

/// A pair that stands beside the signature, once.
fn pair<'a>(facts: &Facts<'a>, name: &str) -> Result<&'a str, Found<'static>> {
    let mut values = facts.pairs.iter().filter(|(key, _)| *key == name);
    match (values.next(), values.next()) {
        (None, _) => Err(Found::Absent),
        (Some((_, value)), None) => Ok(value),
        (Some(_), Some(_)) => Err(Found::Ambiguous),
    }
}

/// A header that stands there twice is nobody's to choose from.
pub(super) fn header<'a>(delivery: &'a Delivery, name: &HeaderName) -> Found<'a> {
    let mut values = delivery.headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Found::Absent,
        (Some(value), None) => Found::Value(value.as_bytes().into()),
        (Some(_), Some(_)) => Found::Ambiguous,
    }
}

/// The URL as the provider was told it. Providers sign the query too, and one that was registered without a query still
/// appends its own parameters.
pub(super) fn url(delivery: &Delivery, public_url: Option<&str>) -> String {
    url_as(delivery, public_url, UrlForm::AsIs)
}

fn url_as(delivery: &Delivery, public_url: Option<&str>, form: UrlForm) -> String {
    let (base, query) = match public_url {
        Some(told) if told.contains('?') => (told.to_owned(), None),
        Some(told) => (told.to_owned(), delivery.query.as_deref()),
        None => (format!("{}://{}{}", delivery.scheme, delivery.authority, delivery.path), delivery.query.as_deref()),
    };
    let base = ported(base, form);
    match query {
        Some(query) => format!("{base}?{query}"),
        None => base,
    }
}

/// The URL with another spelling of its port.
fn ported(url: String, form: UrlForm) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    // Behind the brackets of an IPv6 address; before an `@` there may be credentials with a colon.
    let host_from = authority.rfind('@').map_or(0, |at| at + 1);
    let search_from = authority.rfind(']').unwrap_or(host_from);
    let port_at = authority.get(search_from..).and_then(|host| host.find(':')).map(|at| search_from + at);
    match (form, port_at) {
        (UrlForm::WithoutPort, Some(at)) => format!("{scheme}://{}{rest}", authority.get(..at).unwrap_or_default()),
        (UrlForm::DefaultPort, None) => {
            let port = if scheme == "https" { 443 } else { 80 };
            format!("{scheme}://{authority}:{port}{rest}")
        }
        (UrlForm::AsIs, _) | (UrlForm::WithoutPort, None) | (UrlForm::DefaultPort, Some(_)) => url,
    }
}

impl Filter {
    const ALL: [(&'static str, Self); 10] = [
        ("sha1", Self::Sha1),
        ("sha256", Self::Sha256),
        ("sha512", Self::Sha512),
        ("crc32", Self::Crc32),
        ("hex", Self::Hex),
        ("base64", Self::Base64),
        ("base64url", Self::Base64Url),
        ("lower", Self::Lower),
        ("json", Self::Json),
        ("or_empty", Self::OrEmpty),
    ];

    fn apply(self, bytes: &[u8], is_last: bool) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(bytes).to_vec(),
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
            // PayPal signs the checksum as a decimal number; behind an encoder it is four bytes, the highest first.
            Self::Crc32 if is_last => crc32fast::hash(bytes).to_string().into_bytes(),
            Self::Crc32 => crc32fast::hash(bytes).to_be_bytes().to_vec(),
            Self::Hex => hex::encode(bytes).into_bytes(),
            Self::Base64 => STANDARD.encode(bytes).into_bytes(),
            Self::Base64Url => URL_SAFE_NO_PAD.encode(bytes).into_bytes(),
            Self::Lower => bytes.to_ascii_lowercase(),
            Self::Json | Self::OrEmpty => bytes.to_vec(),
        }
    }

    fn is_digest(self) -> bool {
        matches!(self, Self::Sha1 | Self::Sha256 | Self::Sha512 | Self::Crc32)
    }

    fn is_encoder(self) -> bool {
        matches!(self, Self::Hex | Self::Base64 | Self::Base64Url)
    }
}

const TOKENS: [&str; 19] = [
    "body",
    "timestamp",
    "method",
    "url",
    "path",
    "query:",
    "header:",
    "json:",
    "form:",
    "form:sorted",
    "only_form:",
    "form_pairs:",
    "form_php:",
    "pair:",
    "first_item",
    "secret",
    "named_headers:",
    "signed_headers:",
    "encoded_target",
];

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn template(mut self) -> Result<Template, TemplateError> {
        let mut outside: Vec<Part> = Vec::new();
        let mut inside: Option<(usize, Vec<Part>)> = None;
        loop {
            let start = self.at;
            let rest = self.text.get(start..).unwrap_or_default();
            let Some(next) = rest.chars().next() else { break };
            let parts = inside.as_mut().map_or(&mut outside, |(_, parts)| parts);
            if rest.starts_with("{{") || rest.starts_with("}}") {
                push_literal(parts, next);
                self.at += 2;
            } else if next == '{' {
                parts.push(Part::Value(self.value()?));
            } else if next == '}' {
                return Err(error(start, "`}` closes nothing", "write `}}` for a literal brace"));
            } else if rest.starts_with("[[") {
                if inside.is_some() {
                    return Err(error(start, "`[[` inside a segment", "close the outer segment with `]]` first"));
                }
                inside = Some((start, Vec::new()));
                self.at += 2;
            } else if rest.starts_with("]]") {
                let Some((opened, parts)) = inside.take() else {
                    return Err(error(start, "`]]` closes nothing", "open the segment with `[[`"));
                };
                if !parts.iter().any(|part| matches!(part, Part::Value(_))) {
                    let what = "a segment without a value can never vanish";
                    return Err(error(opened, what, "put a value inside, or drop the brackets"));
                }
                outside.push(Part::Optional(parts));
                self.at += 2;
            } else {
                push_literal(parts, next);
                self.at += next.len_utf8();
            }
        }
        if let Some((opened, _)) = inside {
            return Err(error(opened, "`[[` is never closed", "end the segment with `]]`"));
        }
        let secrets = |parts: &[Part]| {
            parts.iter().filter(|part| matches!(part, Part::Value(value) if value.token == Token::Secret)).count()
        };
        let in_segments = outside.iter().any(|part| matches!(part, Part::Optional(inner) if secrets(inner) > 0));
        if in_segments || secrets(&outside) > 1 {
            return Err(error(
                0,
                "`{secret}` stands once, and in no segment",
                "sha256(secret + body) is {secret}{body}",
            ));
        }
        if !outside.iter().any(|part| matches!(part, Part::Value(_) | Part::Optional(_))) {
            let what = "the message holds nothing of the request";
            return Err(error(0, what, "name what the sender signs, such as `{timestamp}.{body}`"));
        }
        Ok(Template { parts: outside })
    }

    fn value(&mut self) -> Result<Value, TemplateError> {
        let opened = self.at;
        let rest = self.text.get(opened + 1..).unwrap_or_default();
        let Some(length) = rest.find('}') else {
            return Err(error(opened, "`{` is never closed", "write `}` behind the name, or `{{` for a literal brace"));
        };
        let inner = rest.get(..length).unwrap_or_default();
        self.at = opened + 1 + length + 1;

        let mut position = opened + 1;
        let mut words = inner.split('|');
        let name = words.next().unwrap_or_default();
        let token = token(name, position)?;
        position += name.len() + 1;
        let mut filters = Vec::new();
        for word in words {
            filters.push(filter(word.trim(), position)?);
            position += word.len() + 1;
        }
        check_chain(&filters, opened)?;
        if token == Token::Secret && !filters.is_empty() {
            return Err(error(opened, "`{secret}` takes no filter", "a secret is read by `key.encoding`"));
        }
        Ok(Value { token, filters })
    }
}

fn push_literal(parts: &mut Vec<Part>, next: char) {
    match parts.last_mut() {
        Some(Part::Literal(text)) => text.push(next),
        _ => parts.push(Part::Literal(next.to_string())),
    }
}

fn token(name: &str, position: usize) -> Result<Token, TemplateError> {
    let name = name.trim();
    let (kind, argument) = name.split_once(':').map_or((name, None), |(kind, argument)| (kind, Some(argument)));
    let token = match (kind, argument) {
        ("body", None) => Token::Body,
        ("timestamp", None) => Token::Timestamp,
        ("method", None) => Token::Method,
        ("url", None) => Token::Url,
        ("path", None) => Token::Path,
        ("form", Some("sorted")) => Token::FormSorted,
        ("first_item", None) => Token::FirstItem,
        ("secret", None) => Token::Secret,
        ("encoded_target", None) => Token::EncodedTarget,
        (
            "query" | "header" | "json" | "form" | "pair" | "only_form" | "named_headers" | "signed_headers",
            None | Some(""),
        ) => {
            let example = if kind == "json" { "/id" } else { "name" };
            return Err(error(position, format!("`{{{kind}}}` of what?"), format!("write `{{{kind}:{example}}}`")));
        }
        ("query", Some(argument)) => Token::Query(argument.to_owned()),
        ("header", Some(argument)) => match HeaderName::from_bytes(argument.as_bytes()) {
            Ok(header) => Token::Header(header),
            Err(_) => {
                let what = format!("`{argument}` is not the name of a header");
                return Err(error(position, what, "use letters, digits and `-`"));
            }
        },
        ("json", Some(pointer)) if fields::is_pointer(pointer) => Token::Json(pointer.to_owned()),
        ("json", Some(argument)) => {
            let what = format!("`{argument}` is not a JSON pointer");
            return Err(error(position, what, "begin it with `/`, as in `{json:/data/id}`; `~` is spelled `~0`"));
        }
        ("form", Some(argument)) => Token::Form(argument.to_owned()),
        ("form_pairs", without) => Token::FormPairs(listed(without)),
        ("form_php", without) => Token::FormPhp(listed(without)),
        ("pair", Some(argument)) => Token::Pair(argument.to_owned()),
        ("only_form", Some(argument)) => Token::OnlyForm(argument.to_owned()),
        ("named_headers", Some(argument)) => Token::NamedHeaders(argument.to_owned()),
        ("signed_headers", Some(argument)) => {
            let mut names = argument.split(',').map(|name| HeaderName::from_bytes(name.trim().as_bytes()));
            let list = names.next().transpose().ok().flatten();
            match (list, names.collect::<Result<Vec<_>, _>>()) {
                (Some(list), Ok(needed)) => Token::SignedHeaders { list, needed },
                _ => {
                    let what = format!("`{argument}` are not names of headers");
                    return Err(error(
                        position,
                        what,
                        "first the header that lists the others, then those it must list",
                    ));
                }
            }
        }
        _ => {
            return Err(error(position, format!("unknown name `{name}`"), suggestion(kind, TOKENS)));
        }
    };
    Ok(token)
}

/// The fields to leave out: the signature's own.
fn listed(names: Option<&str>) -> Vec<String> {
    names.into_iter().flat_map(|names| names.split(',')).map(|name| name.trim().to_owned()).collect()
}

fn filter(word: &str, position: usize) -> Result<Filter, TemplateError> {
    Filter::ALL.iter().find(|(name, _)| *name == word).map(|(_, filter)| *filter).ok_or_else(|| {
        error(position, format!("unknown filter `{word}`"), suggestion(word, Filter::ALL.map(|(name, _)| name)))
    })
}

/// A digest is raw bytes, which nobody writes into a message as they are. Only the CRC has a plain spelling.
fn check_chain(filters: &[Filter], position: usize) -> Result<(), TemplateError> {
    let mut digest_is_raw = false;
    for (index, filter) in filters.iter().enumerate() {
        if *filter == Filter::Lower && digest_is_raw {
            let what = "`lower` on the raw bytes of a digest";
            return Err(error(position, what, "encode the digest first: `|hex`"));
        }
        if filter.is_digest() {
            let prints_decimal = *filter == Filter::Crc32 && index + 1 == filters.len();
            digest_is_raw = !prints_decimal;
        } else if filter.is_encoder() {
            digest_is_raw = false;
        }
    }
    if digest_is_raw {
        let what = "a digest without an encoding";
        return Err(error(position, what, "add `|hex`, `|base64` or `|base64url` behind it"));
    }
    Ok(())
}

fn error(position: usize, what: impl Into<String>, try_this: impl Into<String>) -> TemplateError {
    TemplateError { position, what: what.into(), try_this: try_this.into() }
}

fn suggestion<const N: usize>(word: &str, known: [&'static str; N]) -> String {
    /// Beyond so many edits a word is another word, not a slip.
    const SLIPS: usize = 3;
    let nearest = known.iter().map(|name| (distance(word, name.trim_end_matches(':')), name)).min();
    match nearest {
        Some((edits, name)) if edits <= SLIPS => format!("did you mean `{name}`?"),
        _ => format!("known are: {}", known.join(" ")),
    }
}

/// Levenshtein's distance, over a row. The words come from the configuration and are short; a long one is simply far.
fn distance(left: &str, right: &str) -> usize {
    if left.len() > 64 {
        return left.len();
    }
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut beside = i + 1;
        if let Some(first) = row.first_mut() {
            *first = beside;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(&right) {
            let above = *cell;
            *cell = (diagonal + usize::from(from != *to)).min(above + 1).min(beside + 1);
            beside = *cell;
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::fields::Pointers;
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::{HeaderValue, Method};
    use proptest::prelude::*;

    fn delivery(body: &'static [u8]) -> Delivery {
        let mut headers = Fields::new();
        headers.insert("webhook-id", HeaderValue::from_static("msg_1"));
        headers.append("twice", HeaderValue::from_static("a"));
        headers.append("twice", HeaderValue::from_static("b"));
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "hooks.example.com:8443".into(),
            path: "/in/a".into(),
            query: Some("x=1&y=%41&z=1&z=2".into()),
            headers,
            body: Bytes::from_static(body),
        }
    }

    fn rendered(template: &str, delivery: &Delivery, public_url: Option<&str>) -> Option<String> {
        let template = Template::parse(template).unwrap();
        let mut pointers = Pointers::default();
        template.json_pointers().for_each(|pointer| pointers.add(pointer).unwrap());
        let json = pointers.read(&delivery.body);
        let pairs = [("t", "17"), ("h", "a"), ("h", "b")];
        let facts = Facts {
            delivery,
            public_url,
            timestamp: Some("1700000000"),
            pairs: &pairs,
            json: &json,
            body: None,
            url_form: UrlForm::AsIs,
        };
        let message = template.render(&facts);
        message.complete.then(|| String::from_utf8(message.whole().into_owned()).unwrap())
    }

    fn says(template: &str, expected: &str) {
        assert_eq!(
            rendered(template, &delivery(br#"{"id":"e1","n":5}"#), None).as_deref(),
            Some(expected),
            "{template}"
        );
    }

    #[test]
    fn every_token_says_what_the_request_says() {
        says("{timestamp}.{body}", r#"1700000000.{"id":"e1","n":5}"#);
        says("v0:{method}:{path}", "v0:POST:/in/a");
        says("{url}", "https://hooks.example.com:8443/in/a?x=1&y=%41&z=1&z=2");
        says("{query:y}|{header:Webhook-Id}", "A|msg_1");
        says("{json:/id}/{json:/n}", "e1/5");
        says("{pair:t}{{}}", "17{}");
    }

    #[test]
    fn the_public_url_stands_in_for_the_one_we_saw() {
        let request = delivery(b"");
        let told = |url| rendered("{url}", &request, Some(url)).unwrap();
        assert_eq!(told("https://told/x"), "https://told/x?x=1&y=%41&z=1&z=2");
        assert_eq!(told("https://told/x?a=b"), "https://told/x?a=b");
    }

    #[test]
    fn digests_are_encoded_and_the_crc_is_a_decimal_number() {
        let request = delivery(b"hello");
        let said = |template| rendered(template, &request, None).unwrap();
        assert_eq!(said("{body|sha256|hex}"), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(said("{body|sha1|base64}"), "qvTGHdzF6KLavt4PO0gs2a6pQ00=");
        assert_eq!(said("{body|crc32}"), "907060870");
        assert_eq!(said("{body|crc32|hex}"), "3610a686");
        assert_eq!(said("{header:webhook-id|base64url}"), "bXNnXzE");
        assert_eq!(said("{method|lower}"), "post");
    }

    #[test]
    fn forms_are_sorted_and_read_by_name() {
        let request = delivery(b"b=2&a=1");
        assert_eq!(rendered("{form:sorted}", &request, None).unwrap(), "a1b2");
        assert_eq!(rendered("{form:a}", &request, None).unwrap(), "1");
    }

    #[test]
    fn a_segment_vanishes_with_its_absent_value() {
        says("[[id:{query:x};]]ts:{timestamp};", "id:1;ts:1700000000;");
        says("[[id:{query:gone};]]ts:{timestamp};", "ts:1700000000;");
        says("[[{json:/gone}{json:/id}]].", ".");
    }

    #[test]
    fn a_doubled_value_does_not_make_its_segment_vanish() {
        let request = delivery(br#"{"id":1,"id":2}"#);
        for template in
            ["[[{header:twice}]]x{path}", "[[{query:z}]]{path}", "[[{json:/id}]]{path}", "[[{pair:h}]]{path}"]
        {
            assert_eq!(rendered(template, &request, None), None, "{template}");
        }
    }

    #[test]
    fn a_message_that_lacks_a_value_is_incomplete() {
        for template in
            ["{header:gone}{body}", "{query:gone}", "{json:/gone}", "{form:gone}", "{pair:gone}", "{header:twice}"]
        {
            assert_eq!(rendered(template, &delivery(b"{}"), None), None, "{template}");
        }
    }

    #[test]
    fn the_body_is_one_borrowed_piece() {
        let request = delivery(b"payload");
        let json = Json::default();
        let facts = Facts {
            delivery: &request,
            public_url: None,
            timestamp: Some("1"),
            pairs: &[],
            json: &json,
            body: None,
            url_form: UrlForm::AsIs,
        };
        let template = Template::parse("{timestamp}.{body}").unwrap();
        let message = template.render(&facts);
        assert!(matches!(message.pieces.last(), Some(Cow::Borrowed(body)) if body.as_ptr() == request.body.as_ptr()));
    }

    #[test]
    fn only_the_whole_body_or_a_strong_digest_of_it_counts_as_covered() {
        let covers = |text| Template::parse(text).unwrap().covers_body();
        for whole in
            ["{body}", "{timestamp}{body}", "{body|sha256|hex}", "{body|sha512|base64}", "{body|sha256|hex|lower}"]
        {
            assert!(covers(whole), "{whole}");
        }
        for part in [
            "{timestamp}",
            "{body|crc32}",
            "{body|sha1|hex}",
            "{body|lower}",
            "[[{body}]]",
            "{form:sorted}",
            "{json:/id}",
            "{body|base64|lower}",
            "{body|sha1|hex|sha256|hex}",
        ] {
            assert!(!covers(part), "{part}");
        }
    }

    #[test]
    fn what_is_covered_is_what_always_stands_in_the_message() {
        let template = Template::parse("{header:webhook-id}.[[{header:other}]]{json:/id}{url}").unwrap();
        assert!(template.covers_header(&HeaderName::from_static("webhook-id")));
        assert!(!template.covers_header(&HeaderName::from_static("other")));
        assert!(template.covers_json("/id"));
        assert!(!template.covers_json("/type"));
        assert!(template.uses_url());
        assert!(!template.covers_timestamp());
        assert!(Template::parse("{body}").unwrap().covers_json("/type"));
        assert!(Template::parse("{timestamp}.{body}").unwrap().covers_timestamp());
        assert!(!Template::parse("[[{timestamp}.]]{body}").unwrap().covers_timestamp());
    }

    #[test]
    fn errors_say_where_and_what_to_write() {
        let refused = |text: &str, position: usize, try_this: &str| {
            let error = Template::parse(text).unwrap_err();
            assert_eq!(error.position, position, "{error}");
            assert!(error.try_this.contains(try_this), "{error}");
        };
        refused("{timestmp}.{body}", 1, "`timestamp`");
        refused("{body|sha265|hex}", 6, "`sha256`");
        refused("{body|sha256}", 0, "|hex");
        refused("{body|sha256|lower|hex}", 0, "|hex");
        refused("{zzzzzzzzzzzz}", 1, "known are");
        refused("x{body", 1, "`}`");
        refused("x}", 1, "}}");
        refused("[[{body}", 0, "]]");
        refused("{body}]]", 6, "[[");
        refused("[[{body}[[x]]]]", 8, "]]");
        refused("[[x]]{body}", 0, "brackets");
        refused("{header}", 1, "{header:name}");
        refused("{json:id}", 1, "`/`");
        refused("{header:a b}", 1, "letters");
        refused("nothing", 0, "{timestamp}.{body}");
        refused("", 0, "{timestamp}.{body}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}|[\\[\\]{}|:/a-z0-9é]{0,40}") {
            if let Ok(template) = Template::parse(&text) {
                let request = delivery(b"{}");
                let json = Json::default();
                let facts = Facts { delivery: &request, public_url: None, timestamp: None, pairs: &[], json: &json, body: None, url_form: UrlForm::AsIs };
                let _ = template.render(&facts).whole().len();
            }
        }
    }
}
