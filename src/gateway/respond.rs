//! The only maker of responses.
//!
//! Invariant: a sender learns a status, a request id and when to come back, never a reason: the body of a refusal is
//! made of its status alone, so that all 401s of a source are the same bytes.

use super::source::{Acknowledge, Source};
use crate::deliver::{Answer, AnswerBody};
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::server::Response;
use crate::verify;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// As many fields as an answer of our own has, and `Connection`.
const MOST_SAID: usize = 5;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(crate) enum ReplyBody {
    Whole(Option<Bytes>),
    Relayed(AnswerBody),
}

pub(crate) type Reply = Response<ReplyBody>;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relayed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Relayed(body) => body.size_hint(),
        }
    }
}

/// What else a refusal says, where its cause knows it.
#[derive(Default)]
pub(crate) struct Details<'a> {
    pub(crate) source: Option<&'a Source>,
    /// How long until a rate has room again.
    pub(crate) wait: Option<Duration>,
    /// In place of the refusal's own.
    pub(crate) status: Option<StatusCode>,
    pub(crate) close: bool,
}

/// RFC 9457, with the members that are the same for every cause of a status.
pub(crate) fn refuse(refusal: Refusal, request_id: &str, details: &Details<'_>) -> Reply {
    let status = details.status.unwrap_or(refusal.status());
    let title = status.canonical_reason().unwrap_or("Error");
    let body =
        ["{\"title\":\"", title, "\",\"status\":", status.as_str(), ",\"request_id\":\"", request_id, "\"}\n"].concat();
    let mut response = match details.source {
        Some(source) if source.settings.refuses_without_body => whole(status, Bytes::new(), None, request_id),
        _ => whole(status, Bytes::from(body), Some(HeaderValue::from_static("application/problem+json")), request_id),
    };
    let headers = &mut response.headers;
    if let Some(seconds) = refusal.retry_after() {
        let known = details.wait.map(|wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1));
        headers.insert(header::RETRY_AFTER, HeaderValue::from(known.unwrap_or(seconds)));
    }
    if let Some(source) = details.source {
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, source.settings.challenge.clone());
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let methods: Vec<_> = source.settings.methods.iter().map(http::Method::as_str).collect();
            if let Ok(value) = HeaderValue::from_str(&methods.join(", ")) {
                headers.insert(header::ALLOW, value);
            }
        }
    }
    if details.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// In the upstream's place: a replay or duplicate that is acknowledged.
pub(crate) fn acknowledge(acknowledge: &Acknowledge, request_id: &str) -> Reply {
    whole(acknowledge.status, acknowledge.body.clone(), acknowledge.content_type.clone(), request_id)
}

/// A handshake's answer: exactly what the provider documents.
pub(crate) fn challenge(reply: &verify::Reply, request_id: &str) -> Reply {
    let mut response = whole(reply.status, reply.body.clone(), reply.content_type.clone(), request_id);
    reply.headers.iter().cloned().for_each(|(name, value)| response.headers.append(name, value));
    response
}

pub(crate) fn relay(answer: Answer, request_id: &str) -> Reply {
    let body = ReplyBody::Relayed(answer.body);
    let mut response = Response { status: answer.status, headers: answer.headers, body };
    name(&mut response, request_id);
    response
}

fn whole(status: StatusCode, body: Bytes, content_type: Option<HeaderValue>, request_id: &str) -> Reply {
    let body = ReplyBody::Whole((!body.is_empty()).then_some(body));
    let mut response = Response { status, headers: Fields::with_capacity(MOST_SAID), body };
    if let Some(content_type) = content_type {
        response.headers.insert(header::CONTENT_TYPE, content_type);
    }
    name(&mut response, request_id);
    response
}

fn name(response: &mut Response<ReplyBody>, request_id: &str) {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers.insert(REQUEST_ID, value);
    }
}
