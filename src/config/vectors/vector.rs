//! One vector, in either of the two formats: what the receiver was configured with, what arrived and when, and what
//! must become of it.

use crate::fields::Fields;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use crate::clock::UnixMillis;
use crate::delivery::Delivery;

#[derive(Clone)]
pub(super) struct Vector(pub(super) Value);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of the HMAC and shared-secret family: the file without `kind`.
    Hmac,
    Signature,
    Handshake,
    /// A message and a signature without a request around them.
    Primitive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Accept,
    Reject,
    Challenge,
}

impl Vector {
    pub(super) fn id(&self) -> &str {
        self.0["id"].as_str().expect("every vector has an id")
    }

    pub(super) fn provider(&self) -> &str {
        self.0["provider"].as_str().expect("every vector has a provider")
    }

    pub(super) fn config(&self) -> &Value {
        &self.0["config"]
    }

    pub(super) fn kind(&self) -> Kind {
        match self.0["kind"].as_str() {
            None => Kind::Hmac,
            Some("signature") => Kind::Signature,
            Some("handshake") => Kind::Handshake,
            Some("primitive") => Kind::Primitive,
            Some(other) => panic!("{}: there is no kind {other}", self.id()),
        }
    }

    pub(super) fn expect(&self) -> Expect {
        match self.0["expect"].as_str() {
            Some("accept") => Expect::Accept,
            Some("reject") => Expect::Reject,
            Some("challenge") => Expect::Challenge,
            other => panic!("{}: nobody can expect {other:?}", self.id()),
        }
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        super::texts(&self.0["tags"]).contains(&tag)
    }

    pub(super) fn now(&self) -> UnixMillis {
        UnixMillis::from_secs(self.0["now_unix"].as_u64().expect("every vector has its time"))
    }

    /// The URL as the provider was told it, without the query, which is the request's own.
    pub(super) fn public_url(&self) -> Option<&str> {
        self.0["request"]["url"].as_str().map(|url| url.split('?').next().unwrap_or(url))
    }

    /// What arrived, as the gateway would hand it on. Err: it could not have arrived.
    pub(super) fn delivery(&self) -> Result<Delivery, String> {
        let request = &self.0["request"];
        let uri: Uri = text(&request["url"])?.parse().map_err(|error| format!("the url: {error}"))?;
        let mut headers = Fields::new();
        for header in request["headers"].as_array().into_iter().flatten() {
            let (name, value) = (text(&header[0])?, text(&header[1])?);
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| format!("{name}: {error}"))?;
            // Space around a value is no part of it (RFC 9110 §5.5).
            let value = HeaderValue::from_bytes(value.trim_matches([' ', '\t']).as_bytes())
                .map_err(|error| format!("{name}: {error}"))?;
            headers.append(name, value);
        }
        let told = headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
        Ok(Delivery {
            method: Method::from_bytes(text(&request["method"])?.as_bytes()).map_err(|error| error.to_string())?,
            scheme: if uri.scheme_str() == Some("http") { "http" } else { "https" },
            authority: told.or(uri.authority().map(ToString::to_string)).ok_or("the url names no host")?,
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            headers,
            body: STANDARD.decode(text(&request["body_base64"])?).map_err(|error| error.to_string())?.into(),
        })
    }

    /// The labels of the refusals that are right; the vectors tell reasons apart that no receiver can.
    pub(super) fn reasons(&self) -> Vec<&'static str> {
        let mut labels = Vec::new();
        match self.kind() {
            Kind::Hmac => {
                for reason in self.0["reason"].as_str().into_iter().chain(super::texts(&self.0["reason_alt"])) {
                    labels.extend(of_reason(reason));
                }
            }
            _ => labels.extend(of_class(self.0["reason_class"].as_str().unwrap_or_default())),
        }
        labels
    }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("{value} is no text"))
}

fn of_reason(reason: &str) -> &'static [&'static str] {
    match reason {
        "missing_signature" => &["missing_signature", "missing_credentials"],
        "malformed_signature" => &["malformed_signature", "bad_credentials"],
        "bad_signature" => &["bad_signature", "bad_credentials", "body_mismatch"],
        "wrong_secret" | "wrong_key" => &["bad_signature", "bad_credentials"],
        "missing_timestamp" => &["missing_timestamp"],
        "malformed_timestamp" => &["malformed_timestamp"],
        "stale_timestamp" | "future_timestamp" => &["stale"],
        _ => &[],
    }
}

fn of_class(class: &str) -> &'static [&'static str] {
    match class {
        "missing" => &["missing_signature", "missing_timestamp", "missing_credentials"],
        "malformed" => &["malformed_signature", "malformed_timestamp"],
        "bad_signature" => &["bad_signature", "bad_credentials"],
        "body_mismatch" => &["body_mismatch"],
        "stale" => &["stale"],
        "untrusted_key" => &["untrusted_key"],
        "claims" => &["bad_claims", "bad_credentials"],
        "algorithm" => &["algorithm_not_allowed"],
        "policy" => &["not_covered"],
        _ => &[],
    }
}
