//! HTTP/1.1 as far as the ends of this benchmark need it: where a message ends, and requests whose next one is made by
//! writing into the holes of the last.

use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// 32 bytes, in each gateway's configuration.
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
const ANOTHER_SECRET: &str = "another secret of 32 characters.";

/// The first line and headers of a message. Its length is written there: no end of this benchmark sends chunks.
pub(crate) struct Head {
    /// Of the head, the empty line included.
    pub(crate) end: usize,
    pub(crate) body: usize,
    /// The sender closes the connection behind it.
    pub(crate) last: bool,
}

impl Head {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let (mut body, mut last) = (0, false);
        for line in bytes[..end].split(|&byte| byte == b'\n') {
            if let Some(value) = field(line, b"content-length:") {
                body = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
            } else if let Some(value) = field(line, b"connection:") {
                last = value.trim_ascii().eq_ignore_ascii_case(b"close");
            } else {
                assert!(field(line, b"transfer-encoding:").is_none(), "void: a message in chunks");
            }
        }
        Some(Self { end, body, last })
    }

    pub(crate) fn whole(&self) -> usize {
        self.end + self.body
    }
}

/// What follows the name, written with its colon.
pub(crate) fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

pub(crate) fn status(answer: &[u8]) -> u16 {
    answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

/// What changes from one request to the next: the body ends with its number, so that all before is hashed once.
const TAIL: usize = 64;
const NUMBER: &str = "0000000000000000";

/// Requests as GitHub sends them, each with a body, an id and a signature of its own: none is a replay.
pub(crate) struct Letters {
    bytes: Vec<u8>,
    delivery: usize,
    signature: usize,
    body: usize,
    /// Has hashed the body without its tail.
    keyed: Hmac<Sha256>,
}

impl Letters {
    pub(crate) fn new(length: usize, forged: bool) -> Self {
        assert!(length > 2 * TAIL, "a body with a tail");
        let head = format!(
            "POST /webhooks/github HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: "
        );
        let (start, end) = (r#"{"ref":"refs/heads/main","padding":""#, format!(r#"","number":"{NUMBER}"}}"#));
        let mut bytes = head.into_bytes();
        let delivery = bytes.len();
        bytes.extend_from_slice(NUMBER.as_bytes());
        bytes.extend_from_slice(b"\r\nX-Hub-Signature-256: sha256=");
        let signature = bytes.len();
        bytes.extend_from_slice(NUMBER.repeat(4).as_bytes());
        bytes.extend_from_slice(b"\r\n\r\n");
        let body = bytes.len();
        bytes.extend_from_slice(start.as_bytes());
        bytes.resize(body + length - end.len(), b'x');
        bytes.extend_from_slice(end.as_bytes());
        let secret = if forged { ANOTHER_SECRET } else { SECRET };
        let mut keyed = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes()).expect("any length");
        keyed.update(&bytes[body..bytes.len() - TAIL]);
        Self { bytes, delivery, signature, body, keyed }
    }

    pub(crate) fn next(&mut self) -> &[u8] {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let mut number = [0; NUMBER.len()];
        let value = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        hex::encode_to_slice(value.to_be_bytes(), &mut number).expect("sixteen digits");
        let end = self.bytes.len();
        self.fill(end - 2 - NUMBER.len(), &number);
        self.fill(self.delivery, &number);
        let mut keyed = self.keyed.clone();
        keyed.update(&self.bytes[end - TAIL..]);
        let mut signature = [0; 64];
        hex::encode_to_slice(keyed.finalize().into_bytes(), &mut signature).expect("64 digits");
        self.fill(self.signature, &signature);
        &self.bytes
    }

    /// The parts of the last one, for HTTP/2: id, signature, body.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        let of = |at: usize, length: usize| &self.bytes[at..at + length];
        [of(self.delivery, NUMBER.len()), of(self.signature - 7, 71), &self.bytes[self.body..]]
    }

    fn fill(&mut self, at: usize, with: &[u8]) {
        self.bytes[at..at + with.len()].copy_from_slice(with);
    }
}
