//! Is this verified delivery really a question to us, and what is the answer?
//!
//! Invariant: asked only after the signature and its freshness were verified, and only of a body that the signature
//! covers. What is echoed is short and of an alphabet in which neither markup nor a signed message can be written, so
//! that the answer is of no use to anybody but the provider.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::fields::{Found, Json};
use super::{BuildError, Fault};
use crate::refusal::Refusal;

/// Slack's challenge has 52 characters, Okta's 40.
const MAX_ECHO: usize = 512;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Handshake {
    /// All must hold; strings, whole numbers, booleans and null only.
    pub(crate) match_json: Vec<(String, Value)>,
    /// None may be there. Discord's interaction PING and its webhook events both have type 1; only an event has `/event`.
    pub(crate) absent_json: Vec<String>,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: AnswerBody,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AnswerBody {
    Fixed(Bytes),
    /// The string at this JSON pointer.
    Echo(String),
}

/// What the gateway answers in place of forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: Bytes,
}

impl Handshake {
    pub(crate) fn pointers(&self) -> impl Iterator<Item = &str> {
        let echoed = match &self.answer.body {
            AnswerBody::Echo(pointer) => Some(pointer.as_str()),
            AnswerBody::Fixed(_) => None,
        };
        let matched = self.match_json.iter().map(|(pointer, _)| pointer.as_str());
        matched.chain(self.absent_json.iter().map(String::as_str)).chain(echoed)
    }

    pub(super) fn check(&self) -> Result<(), BuildError> {
        if self.match_json.is_empty() {
            return Err(BuildError::HandshakeMatchesEverything);
        }
        let compound = |value: &Value| value.is_array() || value.is_object() || value.is_f64();
        match self.match_json.iter().find(|(_, value)| compound(value)) {
            Some((pointer, _)) => Err(BuildError::HandshakeNotScalar(pointer.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn recognises(&self, json: &Json) -> bool {
        self.match_json.iter().all(|(pointer, value)| json.equals(pointer, value))
            && self.absent_json.iter().all(|pointer| json.lacks(pointer))
    }

    pub(crate) fn reply(&self, json: &Json) -> Result<Reply, Fault> {
        let body = match &self.answer.body {
            AnswerBody::Fixed(bytes) => bytes.clone(),
            AnswerBody::Echo(pointer) => match json.at(pointer) {
                Found::Value(text) if is_echoable(&text) => Bytes::copy_from_slice(&text),
                Found::Value(_) | Found::Absent | Found::Ambiguous => {
                    let note = "the handshake's challenge is missing, too long, or not of the plain alphabet";
                    return Err(Fault { refusal: Refusal::Malformed, note });
                }
            },
        };
        Ok(Reply { status: self.answer.status, content_type: self.answer.content_type.clone(), body })
    }
}

fn is_echoable(text: &[u8]) -> bool {
    (1..=MAX_ECHO).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::super::fields::Pointers;
    use super::*;
    use serde_json::json;

    fn slack() -> Handshake {
        Handshake {
            match_json: vec![("/type".into(), json!("url_verification"))],
            absent_json: vec!["/event".into()],
            answer: Answer {
                status: StatusCode::OK,
                content_type: Some(HeaderValue::from_static("text/plain")),
                body: AnswerBody::Echo("/challenge".into()),
            },
        }
    }

    fn asked(handshake: &Handshake, body: &str) -> Option<Result<Bytes, Refusal>> {
        let mut pointers = Pointers::default();
        handshake.pointers().for_each(|pointer| pointers.add(pointer).unwrap());
        let json = pointers.read(body.as_bytes());
        let reply = || handshake.reply(&json).map(|reply| reply.body).map_err(|fault| fault.refusal);
        handshake.recognises(&json).then(reply)
    }

    #[test]
    fn a_challenge_is_recognised_by_all_its_marks_and_echoed() {
        let answer = asked(&slack(), r#"{"type":"url_verification","challenge":"3eZb.rw1~a+B/m2=-_"}"#);
        assert_eq!(answer, Some(Ok(Bytes::from_static(b"3eZb.rw1~a+B/m2=-_"))));
        for other in [
            r#"{"type":"event_callback","challenge":"abc"}"#,
            r#"{"type":"url_verification","challenge":"abc","event":{}}"#,
            r#"{"type":"url_verification","challenge":"abc","event":null}"#,
            r#"{"type":"url_verification","type":"url_verification","challenge":"abc"}"#,
            "url_verification",
            "",
        ] {
            assert_eq!(asked(&slack(), other), None, "{other}");
        }
    }

    #[test]
    fn what_could_serve_a_stranger_is_not_echoed() {
        let challenge = |text: &str| {
            let body = json!({"type": "url_verification", "challenge": text}).to_string();
            asked(&slack(), &body).unwrap()
        };
        assert_eq!(challenge(&"a".repeat(512)), Ok("a".repeat(512).into()));
        for refused in ["", "<script>", "a b", "a\r\nb", "v0:1:{}", "ä", &"a".repeat(513)] {
            assert_eq!(challenge(refused), Err(Refusal::Malformed), "{refused}");
        }
        assert_eq!(asked(&slack(), r#"{"type":"url_verification"}"#), Some(Err(Refusal::Malformed)));
    }
}
