//! What a handshake answers: `status`, `headers`, and one of `body`, `echo` and `json`, with their templates.
//!
//! Invariant: an answer is plain text or JSON, never what a browser would run; and what is secret goes into what is
//! computed alone.

use super::super::node::{Kind, Node};
use super::super::reader::Table;
use super::super::scheme::locator;
use super::super::units::{header_name, header_value};
use super::{Params, Unmade};
use crate::verify::{AnswerBody, Locator, Member, Piece};
use bytes::Bytes;
use http::HeaderName;

pub(super) fn body(table: &Table<'_>, params: &Params<'_>) -> Result<AnswerBody, Unmade> {
    let json = table.node("json").map(|node| json_body(table, node, params));
    let text = table.text("body");
    let echo = table.table("echo").map(|at| locator(at).ok_or(Unmade::Wrong));
    match (json, text, echo) {
        (Some(json), None, None) => json,
        (None, None, Some(at)) => Ok(AnswerBody::Text(vec![Piece::Echo(at?)])),
        (None, Some(text), None) if text == "{answer}" => {
            let answer = params.answer.clone().ok_or(Unmade::Off("answer"))?;
            Ok(AnswerBody::Fixed(answer.into()))
        }
        (None, text, None) => Ok(AnswerBody::Fixed(Bytes::from(text.unwrap_or_default()))),
        _ => {
            table.error("", "says more than one of `body`, `echo` and `json`", "keep one of them");
            Err(Unmade::Wrong)
        }
    }
}

fn json_body(table: &Table<'_>, node: &Node, params: &Params<'_>) -> Result<AnswerBody, Unmade> {
    let Kind::Table(entries) = &node.kind else {
        table.error(
            "json",
            "is not a table of what the answer's object holds",
            r#"json = { challenge = "{json:/challenge}" }"#,
        );
        return Err(Unmade::Wrong);
    };
    let mut members = Vec::new();
    for (name, node) in entries {
        let member = match &node.kind {
            Kind::Text(text) => Member::Text(pieces(table, "json", text, params, false)?),
            Kind::Integer(number) => Member::Constant((*number).into()),
            Kind::Boolean(flag) => Member::Constant((*flag).into()),
            Kind::Table(_) | Kind::Array(_) | Kind::Float(_) | Kind::Other(_) => {
                table.error("json", format!("{name} is neither a string nor a number nor a flag"), "");
                return Err(Unmade::Wrong);
            }
        };
        members.push((name.clone(), member));
    }
    table.note_shown("json", &format!("{:?}", entries.keys().collect::<Vec<_>>()));
    Ok(AnswerBody::Json(members))
}

pub(super) fn headers(table: &Table<'_>, params: &Params<'_>) -> Result<Vec<(HeaderName, Vec<Piece>)>, Unmade> {
    let Some(node) = table.node("headers") else { return Ok(Vec::new()) };
    let Kind::Table(entries) = &node.kind else {
        table.error("headers", "is not a table of headers", r#"headers = { Allow = "POST" }"#);
        return Err(Unmade::Wrong);
    };
    let mut headers = Vec::new();
    for (name, node) in entries {
        let Kind::Text(text) = &node.kind else {
            table.error("headers", format!("{name} is not a string"), "");
            return Err(Unmade::Wrong);
        };
        let parsed = header_name(name).map_err(|what| {
            table.error("headers", what, "");
            Unmade::Wrong
        })?;
        headers.push((parsed, pieces(table, "headers", text, params, false)?));
    }
    table.note_shown("headers", &format!("{:?}", entries.keys().collect::<Vec<_>>()));
    Ok(headers)
}

/// Nothing that a browser would run.
pub(super) fn content_type(
    table: &Table<'_>,
    body: &Result<AnswerBody, Unmade>,
) -> Result<Option<http::HeaderValue>, Unmade> {
    let said = table.parsed("content_type", |text| {
        let essence = text.split(';').next().unwrap_or_default().trim();
        if essence != "text/plain" && essence != "application/json" {
            return Err(format!("{text:?} is neither text/plain nor application/json"));
        }
        header_value(text)
    });
    if table.has("content_type") && said.is_none() {
        return Err(Unmade::Wrong);
    }
    Ok(said.or(match body {
        Ok(AnswerBody::Json(_)) => Some(http::HeaderValue::from_static("application/json")),
        Ok(AnswerBody::Text(_)) => Some(http::HeaderValue::from_static("text/plain")),
        Ok(AnswerBody::Fixed(bytes)) if !bytes.is_empty() => Some(http::HeaderValue::from_static("text/plain")),
        Ok(AnswerBody::Fixed(_)) | Err(_) => None,
    }))
}

/// `sha256={computed}`: what stands in braces is replaced, and nothing else is special.
pub(super) fn pieces(
    table: &Table<'_>,
    key: &'static str,
    text: &str,
    params: &Params<'_>,
    computing: bool,
) -> Result<Vec<Piece>, Unmade> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        if !before.is_empty() {
            pieces.push(Piece::Literal(before.to_owned()));
        }
        let Some((name, after)) = behind.split_once('}') else {
            table.error(key, format!("{text:?} has a `{{` without its `}}`"), "");
            return Err(Unmade::Wrong);
        };
        pieces.push(piece(table, key, name, params, computing)?);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest.to_owned()));
    }
    Ok(pieces)
}

fn piece(
    table: &Table<'_>,
    key: &'static str,
    name: &str,
    params: &Params<'_>,
    computing: bool,
) -> Result<Piece, Unmade> {
    let wrong = |what: String, hint: &str| {
        table.error(key, what, hint);
        Err(Unmade::Wrong)
    };
    match name.split_once(':') {
        Some(("json", pointer)) if pointer.starts_with('/') => Ok(Piece::Echo(Locator::Json(pointer.to_owned()))),
        Some(("query", name)) => Ok(Piece::Echo(Locator::Query(name.to_owned()))),
        Some(("form", name)) => Ok(Piece::Echo(Locator::Form(name.to_owned()))),
        Some(("header", name)) => match header_name(name) {
            Ok(name) => Ok(Piece::Echo(Locator::Header(name))),
            Err(what) => wrong(what, ""),
        },
        None if name == "computed" && !computing => match table.has("compute") {
            true => Ok(Piece::Computed),
            false => wrong("names {computed}, and there is no `compute`".to_owned(), ""),
        },
        None if name == "token" && computing => params.token.clone().map(Piece::Secret).ok_or(Unmade::Off("token")),
        None if name == "public_url" => {
            params.public_url.map(|url| Piece::Literal(url.to_owned())).ok_or(Unmade::Off("token or `public_url`"))
        }
        None if name == "answer" => params.answer.clone().map(Piece::Literal).ok_or(Unmade::Off("answer")),
        None if name == "rate" => Ok(Piece::Rate(params.rate)),
        None if name == "origin" => match params.origins.iter().flatten().any(|origin| origin == "*") {
            true => Ok(Piece::Literal("*".to_owned())),
            false => Ok(Piece::Echo(Locator::Header(HeaderName::from_static("webhook-request-origin")))),
        },
        _ => wrong(
            format!("{{{name}}} is nothing that stands in an answer"),
            "{query:x}, {header:X}, {json:/x}, {form:x}, {computed}, {answer}, {public_url}, {origin} or {rate}; {token} in `compute` alone",
        ),
    }
}
