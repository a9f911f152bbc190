//! What is said in reply to a provider's question: constants, echoes, and what is computed from echoes and secrets.
//!
//! Invariant: whatever of a request goes into an answer, or into what a secret of ours is applied to, is short and of a
//! named alphabet; no alphabet holds a control character, and none that a key is applied to holds what JSON begins with.
//! Nothing is answered as a kind of text that a browser would run.

use std::fmt;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::Fault;
use super::super::fields::Found;
use super::super::presented::{Encoding, Locator};
use super::Asking;
use crate::refusal::Refusal;
use crate::secret::Secret;

/// Slack's challenge has 52 characters, Okta's 40, Microsoft's some 120.
const MAX_ECHO: usize = 512;

/// What the gateway answers in place of forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    /// Besides the content type.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) headers: Vec<(HeaderName, Vec<Piece>)>,
    pub(crate) body: AnswerBody,
    /// What `Piece::Computed` stands for.
    pub(crate) computed: Option<Computed>,
    /// Of what is echoed, and of what a secret is applied to.
    pub(crate) alphabet: Alphabet,
}

#[derive(Clone, Debug)]
pub(crate) enum AnswerBody {
    Fixed(Bytes),
    Text(Vec<Piece>),
    /// An object, its texts escaped as JSON wants it.
    Json(Vec<(String, Member)>),
}

#[derive(Clone, Debug)]
pub(crate) enum Member {
    Text(Vec<Piece>),
    Constant(Value),
}

/// A text is made of these, one behind the other.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Literal(String),
    Echo(Locator),
    Computed,
    /// Goes into what is computed, never into an answer: configuration has it so.
    Secret(Secret),
    /// `WebHook-Request-Rate`, at most this; the whole text is left out where no rate was asked for.
    Rate(Option<u64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Letters, digits and `-._~`.
    Word,
    /// And `+/=`: base64 in all its forms.
    Token,
    /// And what sentences and URLs are made of; neither quotes nor brackets nor markup.
    Text,
    /// All of visible ASCII, and the space: markup too. Only as `text/plain`, and never under a key.
    Printable,
}

#[derive(Clone, Debug)]
pub(crate) struct Computed {
    pub(crate) of: Vec<Piece>,
    pub(crate) with: Function,
    pub(crate) encoding: Encoding,
}

#[derive(Clone)]
pub(crate) enum Function {
    Sha256,
    HmacSha256(Secret),
    Ed25519(Box<SigningKey>),
}

/// The kind alone: the others hold keys.
impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "Sha256",
            Self::HmacSha256(_) => "HmacSha256(…)",
            Self::Ed25519(_) => "Ed25519(…)",
        })
    }
}

impl Function {
    /// A key of Ed25519 whose seed is the secret, repeated until it is long enough: QQ derives it so.
    pub(crate) fn ed25519_of_repeated(secret: &Secret) -> Option<Self> {
        let mut seed = zeroize::Zeroizing::new([0_u8; 32]);
        let endless = secret.expose().iter().cycle();
        (!secret.is_empty()).then(|| seed.iter_mut().zip(endless).for_each(|(to, from)| *to = *from))?;
        Some(Self::Ed25519(Box::new(SigningKey::from_bytes(&seed))))
    }

    fn of(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::HmacSha256(key) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes a key of any length");
                mac.update(message);
                mac.finalize().into_bytes().to_vec()
            }
            Self::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
        }
    }

    /// Does it apply a key to what a stranger may have written?
    pub(crate) fn is_keyed(&self) -> bool {
        !matches!(self, Self::Sha256)
    }
}

impl Alphabet {
    pub(crate) fn has(self, byte: u8) -> bool {
        match self {
            Self::Word => byte.is_ascii_alphanumeric() || b"-._~".contains(&byte),
            Self::Token => Self::Word.has(byte) || b"+/=".contains(&byte),
            Self::Text => Self::Token.has(byte) || b" !#$%()*,:;?@^|".contains(&byte),
            Self::Printable => matches!(byte, b' '..=b'~'),
        }
    }
}

impl Answer {
    pub(super) fn locators(&self) -> impl Iterator<Item = &Locator> {
        let body: Vec<&[Piece]> = match &self.body {
            AnswerBody::Fixed(_) => Vec::new(),
            AnswerBody::Text(pieces) => vec![pieces],
            AnswerBody::Json(members) => members
                .iter()
                .filter_map(|(_, member)| match member {
                    Member::Text(pieces) => Some(pieces.as_slice()),
                    Member::Constant(_) => None,
                })
                .collect(),
        };
        let headers = self.headers.iter().map(|(_, pieces)| pieces.as_slice());
        let computed = self.computed.iter().map(|computed| computed.of.as_slice());
        body.into_iter().chain(headers).chain(computed).flatten().filter_map(|piece| match piece {
            Piece::Echo(locator) => Some(locator),
            Piece::Literal(_) | Piece::Computed | Piece::Secret(_) | Piece::Rate(_) => None,
        })
    }

    pub(super) fn reply(&self, asking: &Asking<'_>) -> Result<Reply, Fault> {
        let computed = match &self.computed {
            Some(computed) => {
                let message = self.render(&computed.of, asking, "")?.unwrap_or_default();
                let message = zeroize::Zeroizing::new(message);
                computed.encoding.encode(&computed.with.of(message.as_bytes()))
            }
            None => String::new(),
        };
        let text = |pieces: &[Piece]| self.render(pieces, asking, &computed);
        let mut headers = vec![(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        for (name, pieces) in &self.headers {
            if let Some(value) = text(pieces)? {
                headers.push((name.clone(), HeaderValue::from_str(&value).map_err(|_| UNECHOABLE)?));
            }
        }
        let body = match &self.body {
            AnswerBody::Fixed(bytes) => bytes.clone(),
            AnswerBody::Text(pieces) => text(pieces)?.unwrap_or_default().into(),
            AnswerBody::Json(members) => {
                let mut object = serde_json::Map::new();
                for (name, member) in members {
                    let value = match member {
                        Member::Text(pieces) => Value::String(text(pieces)?.unwrap_or_default()),
                        Member::Constant(value) => value.clone(),
                    };
                    object.insert(name.clone(), value);
                }
                Value::Object(object).to_string().into()
            }
        };
        Ok(Reply { status: self.status, content_type: self.content_type.clone(), headers, body })
    }

    /// None: the text is to be left out.
    fn render(&self, pieces: &[Piece], asking: &Asking<'_>, computed: &str) -> Result<Option<String>, Fault> {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Echo(locator) => text.push_str(&echo(locator, self.alphabet, asking)?),
                Piece::Computed => text.push_str(computed),
                Piece::Secret(secret) => text.push_str(std::str::from_utf8(secret.expose()).map_err(|_| UNECHOABLE)?),
                Piece::Rate(most) => match rate(*most, asking) {
                    Some(rate) => text.push_str(&rate),
                    None => return Ok(None),
                },
            }
        }
        Ok(Some(text))
    }
}

const UNECHOABLE: Fault = Fault {
    refusal: Refusal::Malformed,
    note: "the handshake's challenge is too long, doubled or not of its alphabet",
};

/// What stands there, if it is fit to be said again.
pub(super) fn echo(locator: &Locator, alphabet: Alphabet, asking: &Asking<'_>) -> Result<String, Fault> {
    const MISSING: Fault = Fault { refusal: Refusal::MissingChallenge, note: "the handshake lacks its challenge" };
    let bytes = match asking.text(locator) {
        Found::Absent => return Err(MISSING),
        Found::Value(bytes) if bytes.is_empty() => return Err(MISSING),
        Found::Value(bytes) => bytes,
        Found::Ambiguous => return Err(UNECHOABLE),
    };
    if bytes.len() > MAX_ECHO || !bytes.iter().all(|byte| alphabet.has(*byte)) {
        return Err(UNECHOABLE);
    }
    String::from_utf8(bytes.into_owned()).map_err(|_| UNECHOABLE)
}

/// CloudEvents' HTTP webhook, §4.2: requests a minute. What cannot be read as a number asks for no number.
fn rate(most: Option<u64>, asking: &Asking<'_>) -> Option<String> {
    let asked = match asking.text(&Locator::Header(HeaderName::from_static("webhook-request-rate"))) {
        Found::Absent => return None,
        Found::Value(bytes) => std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<u64>().ok()),
        Found::Ambiguous => None,
    };
    Some(match (asked, most) {
        (Some(asked), Some(most)) => asked.min(most).to_string(),
        (Some(one), None) | (None, Some(one)) => one.to_string(),
        (None, None) => "*".to_owned(),
    })
}
