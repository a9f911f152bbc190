//! HTTP/1 as it stands on the wire to a client (RFC 9112): a request's head read, an answer's head written.
//!
//! Pure: bytes in, bytes out; http1.rs moves them. Invariants: a head says one thing about where its body ends, or it is
//! none; what is held of a head that is not whole yet is bounded; an answer's framing is ours alone.

use std::cell::Cell;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Buf as _, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Uri, Version};
use httparse::Status;

use super::request::Head;
use crate::clock;
use crate::fields::{self, Fields};
use crate::framing::{self, Chunk, Left};

/// More than any provider sends, by a factor of three.
const MAX_HEADERS: usize = 100;
/// `http::Uri` holds no longer ones.
const LONGEST_TARGET: usize = u16::MAX as usize - 1;

/// A request has begun.
pub(super) struct Begun {
    pub(super) head: Head,
    /// In bytes.
    pub(super) length: usize,
    pub(super) left: Left,
    /// Another request may follow.
    pub(super) keeps: bool,
    /// It waits for a word before it sends the body (RFC 9110 §10.1.1).
    pub(super) expects: bool,
}

/// What a head that is none is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadHead(pub(super) StatusCode);

const MALFORMED: BadHead = BadHead(StatusCode::BAD_REQUEST);
const TOO_LARGE: BadHead = BadHead(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);

/// Takes a request's head off the buffer. None: it is not whole yet. `seen`: so much of the buffer is known to hold no end
/// of a head, so that one that drips in is not read over from its beginning with each drop.
pub(super) fn take_head(buffer: &mut BytesMut, seen: &mut usize, longest: usize) -> Result<Option<Begun>, BadHead> {
    // RFC 9112 §2.2: old clients end a body with an empty line that is not of it.
    while let Some(blank) = [&b"\r\n"[..], b"\n"].into_iter().find(|blank| buffer.starts_with(blank)) {
        buffer.advance(blank.len());
        *seen = 0;
    }
    if buffer.is_empty() {
        return Ok(None);
    }
    if *seen > 0 && !has_end(buffer, *seen) {
        return wait(buffer, seen, longest);
    }
    let mut room = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, buffer, &mut room);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return wait(buffer, seen, longest),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_LARGE),
        Err(_) => return Err(MALFORMED),
    };
    if length > longest {
        return Err(TOO_LARGE);
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(MALFORMED);
    };
    if target.len() > LONGEST_TARGET {
        return Err(BadHead(StatusCode::URI_TOO_LONG));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| MALFORMED)?;
    let target = framing::part_of(buffer, target.as_bytes());
    // The names and values borrow what is about to be taken off.
    let mut places = [[0_u32; 4]; MAX_HEADERS];
    let count = request.headers.len();
    for (place, field) in places.iter_mut().zip(request.headers.iter()) {
        let (name, value) = (framing::part_of(buffer, field.name.as_bytes()), framing::part_of(buffer, field.value));
        *place = [name.start as u32, name.end as u32, value.start as u32, value.end as u32];
    }
    let is_http_1_1 = version == 1;
    *seen = 0;
    let bytes = buffer.split_to(length).freeze();
    let uri = Uri::from_maybe_shared(bytes.slice(target)).map_err(|_| MALFORMED)?;

    let mut headers = Fields::with_capacity(count + Fields::ADDED);
    let mut declared: Option<u64> = None;
    let mut is_chunked = None;
    let (mut keeps, mut closes, mut expects) = (is_http_1_1, false, false);
    for place in places.iter().take(count) {
        let [name, name_end, value, value_end] = place.map(|at| at as usize);
        let name = bytes.get(name..name_end).and_then(fields::name).ok_or(MALFORMED)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(value..value_end)).map_err(|_| MALFORMED)?;
        match name.as_str() {
            "content-length" => {
                let length = framing::length_of(value.as_bytes()).ok_or(MALFORMED)?;
                match declared {
                    Some(before) if before != length => return Err(MALFORMED),
                    // Said twice and the same: it goes on once.
                    Some(_) => continue,
                    None => declared = Some(length),
                }
            }
            "transfer-encoding" => {
                // Of several codings the last one frames the body; what the others are is not for us to judge.
                let last = value.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
                is_chunked = Some(trimmed(last).eq_ignore_ascii_case(b"chunked"));
            }
            "connection" => {
                let words = value.as_bytes().split(|byte| *byte == b',').map(trimmed);
                let has = |word: &[u8]| words.clone().any(|one| one.eq_ignore_ascii_case(word));
                closes |= has(b"close");
                keeps |= has(b"keep-alive");
            }
            "expect" => expects = is_http_1_1 && value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        headers.append(name, value);
    }
    let left = match (is_chunked, declared) {
        // RFC 9112 §6.1: an old version has no codings. §6.3: a coding that does not end in chunks has no end.
        (Some(_), _) if !is_http_1_1 => return Err(MALFORMED),
        (Some(false), _) => return Err(MALFORMED),
        (Some(true), _) => Left::Chunked(Chunk::Size),
        (None, Some(length)) => Left::Length(length),
        (None, None) => Left::Length(0),
    };
    if is_chunked.is_some() && declared.is_some() {
        // RFC 9112 §6.3: both is what smuggling looks like; the chunks stand, and nothing follows them.
        headers.retain(|name| name != CONTENT_LENGTH);
        closes = true;
    }
    let version = if is_http_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let expects = expects && !left.is_over();
    Ok(Some(Begun { head: Head { method, uri, version, headers }, length, left, keeps: keeps && !closes, expects }))
}

/// More has to come, if it may.
fn wait(buffer: &[u8], seen: &mut usize, longest: usize) -> Result<Option<Begun>, BadHead> {
    *seen = buffer.len();
    if buffer.len() > longest { Err(TOO_LARGE) } else { Ok(None) }
}

/// Whether an empty line stands in what has come since.
fn has_end(buffer: &[u8], seen: usize) -> bool {
    let news = buffer.get(seen.saturating_sub(3)..).unwrap_or_default();
    news.windows(2).any(|pair| pair == b"\n\n") || news.windows(3).any(|three| three == b"\n\r\n")
}

/// Of the white space that may stand there (RFC 9110 §5.6.3), and of no other.
fn trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// How an answer's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Length(u64),
    Chunked,
    UntilClose,
    /// There is none, whatever the headers say: the answer to HEAD, 204 and 304.
    None,
}

impl Coding {
    /// `length`: the body's, where it is known.
    pub(super) fn of(status: StatusCode, is_head: bool, is_http_1_1: bool, length: Option<u64>) -> Self {
        let has_none = is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match length {
            _ if has_none => Self::None,
            Some(length) => Self::Length(length),
            None if is_http_1_1 => Self::Chunked,
            None => Self::UntilClose,
        }
    }
}

/// An answer's head. `length`: its body's, or what that of the answer to GET would be.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &Fields,
    (coding, length): (Coding, Option<u64>),
    connection: Option<&'static str>,
) {
    // A status without a name has an empty one (RFC 9112 §4).
    let reason = status.canonical_reason().unwrap_or_default();
    let declares = coding == Coding::None && headers.contains_key(CONTENT_LENGTH);
    let fields: usize = headers.iter().map(|(name, value)| framing::line_of(name.as_str(), value.as_bytes())).sum();
    let most = LONGEST_OF_OURS + reason.len() + fields + connection.map_or(0, str::len);
    framing::fill(out, most, |room| {
        room.put_few(*b"HTTP/1.1 ");
        room.put(status.as_str().as_bytes());
        room.put_few(*b" ");
        room.put(reason.as_bytes());
        room.put_few(*b"\r\n");
        let mut has_date = false;
        for (name, value) in headers.iter() {
            let is_ours = *name == TRANSFER_ENCODING || *name == CONNECTION || (*name == CONTENT_LENGTH && !declares);
            if !is_ours {
                has_date |= *name == DATE;
                room.put_line(name.as_str(), value.as_bytes());
            }
        }
        let told = match coding {
            Coding::Length(length) => Some(length),
            Coding::None if !declares && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => length,
            Coding::None | Coding::UntilClose | Coding::Chunked => None,
        };
        if let Some(length) = told {
            room.put_few(*b"content-length: ");
            room.put_number(length);
            room.put_few(*b"\r\n");
        }
        if coding == Coding::Chunked {
            room.put_few(*b"transfer-encoding: chunked\r\n");
        }
        if let Some(word) = connection {
            room.put_line("connection", word.as_bytes());
        }
        if !has_date {
            room.put_line("date", &date());
        }
        room.put_few(*b"\r\n");
    });
}

/// What an answer's head takes at most beside its reason, its fields and what is said of the connection.
const LONGEST_OF_OURS: usize = "HTTP/1.1 200 \r\n".len()
    + "content-length: \r\n".len()
    + framing::MOST_OF_A_NUMBER
    + "transfer-encoding: chunked\r\n".len()
    + "connection: \r\n".len()
    + "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n".len()
    + "\r\n".len();

type Date = [u8; 29];

/// Now, as RFC 9110 §5.6.7 spells it: made once a second.
fn date() -> Date {
    thread_local! {
        static LAST: Cell<(u64, Date)> = const { Cell::new((0, *b"Thu, 01 Jan 1970 00:00:00 GMT")) };
    }
    let second = clock::unjudged().as_secs();
    let (last, mut date) = LAST.get();
    if last != second {
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        if let Ok(made) = text.as_bytes().try_into() {
            date = made;
            LAST.set((second, date));
        }
    }
    date
}

/// For the fuzz target: a request that comes in these pieces, its fields and its body. None: it is none, or not whole.
#[cfg(fuzzing)]
pub(crate) fn read(pieces: &[&[u8]], longest: usize) -> Option<(Fields, Vec<u8>)> {
    let (mut buffer, mut seen, mut pieces) = (BytesMut::new(), 0, pieces.iter());
    let begun = loop {
        match take_head(&mut buffer, &mut seen, longest).ok()? {
            Some(begun) => break begun,
            None => buffer.extend_from_slice(pieces.next()?),
        }
    };
    Some((begun.head.headers, framing::read(begun.left, buffer, pieces, longest)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONGEST: usize = 4096;

    /// Reads one head that comes in these pieces. None: it is not whole.
    fn read(pieces: &[&[u8]]) -> Result<Option<(Begun, Vec<u8>)>, BadHead> {
        let (mut buffer, mut seen) = (BytesMut::new(), 0);
        for (position, piece) in pieces.iter().enumerate() {
            buffer.extend_from_slice(piece);
            if let Some(head) = take_head(&mut buffer, &mut seen, LONGEST)? {
                let behind = [&buffer[..], &pieces[position + 1..].concat()].concat();
                return Ok(Some((head, behind)));
            }
        }
        Ok(None)
    }

    fn whole(head: &str) -> Result<Begun, BadHead> {
        read(&[head.as_bytes()]).map(|read| read.expect("a whole head").0)
    }

    fn with(fields: &str) -> Result<Begun, BadHead> {
        whole(&format!("POST /x?y HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
    }

    #[test]
    fn a_head_says_where_its_body_ends() {
        let head = with("X-A: 1\r\nx-a: 2\r\nContent-Length: 07\r\n").unwrap();
        assert_eq!(
            (head.head.method, head.head.uri.to_string(), head.head.version),
            (Method::POST, "/x?y".into(), Version::HTTP_11)
        );
        assert_eq!((head.left, head.keeps, head.head.headers.get_all("x-a").count()), (Left::Length(7), true, 2));
        assert_eq!(with("").unwrap().left, Left::Length(0));
        assert_eq!(with("Transfer-Encoding: Chunked\r\n").unwrap().left, Left::Chunked(Chunk::Size));
        let twice = with("Content-Length: 2\r\nContent-Length: 2\r\n").unwrap();
        assert_eq!((twice.left, twice.head.headers.get_all("content-length").count()), (Left::Length(2), 1));
        let both = with("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n").unwrap();
        assert_eq!((both.left, both.keeps), (Left::Chunked(Chunk::Size), false));
        assert!(!both.head.headers.contains_key("content-length"));
        for wrong in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding: \x0cchunked\r\n",
            "X: 1\r\n folded\r\n",
            "X : 1\r\n",
        ] {
            assert_eq!(with(wrong).err().unwrap(), MALFORMED, "{wrong:?}");
        }
        let old = whole("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(old.err().unwrap(), MALFORMED);
    }

    #[test]
    fn a_connection_is_kept_where_both_the_version_and_the_word_allow_it() {
        let keeps =
            |version: &str, word: &str| whole(&format!("GET / HTTP/{version}\r\nHost: a\r\n{word}\r\n")).unwrap().keeps;
        assert!(keeps("1.1", "") && keeps("1.1", "Connection: x, Keep-Alive\r\n"));
        assert!(keeps("1.0", "Connection: keep-alive\r\n") && !keeps("1.0", ""));
        assert!(!keeps("1.1", "Connection: x,\tClose\r\n"));
        assert!(!keeps("1.1", "Connection: close\r\nConnection: keep-alive\r\n"));
        assert!(!keeps("1.0", "Connection: keep-alive\r\nConnection: close\r\n"));
    }

    #[test]
    fn a_word_is_waited_for_only_before_a_body_and_by_nobody_old() {
        let expects = |head: &str| whole(head).unwrap().expects;
        assert!(expects("POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n"));
        assert!(!expects("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"));
        assert!(!expects("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"));
        assert!(!expects("POST / HTTP/1.1\r\nExpect: x\r\nContent-Length: 1\r\n\r\n"));
    }

    #[test]
    fn a_head_is_bounded_in_bytes_fields_and_target() {
        let status = |head: String| whole(&head).err().unwrap().0.as_u16();
        assert_eq!(with(&"x: y\r\n".repeat(MAX_HEADERS - 1)).unwrap().head.headers.len(), MAX_HEADERS);
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(MAX_HEADERS + 1))), 431);
        assert_eq!(status(format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(LONGEST))), 431);
        assert_eq!(status(format!("GET /{}", "y".repeat(LONGEST))), 431, "whole or not");
        let target = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(LONGEST_TARGET));
        let read = take_head(&mut BytesMut::from(target.as_bytes()), &mut 0, 2 * LONGEST_TARGET);
        assert_eq!(read.err().unwrap().0.as_u16(), 414);
    }

    #[test]
    fn a_head_that_drips_in_is_not_read_over_with_each_drop() {
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(3000));
        let (mut buffer, mut seen) = (BytesMut::new(), 0);
        for (position, byte) in head.bytes().enumerate() {
            buffer.extend_from_slice(&[byte]);
            let read = take_head(&mut buffer, &mut seen, LONGEST).unwrap();
            assert_eq!(read.is_some(), position + 1 == head.len());
            assert_eq!(seen, if read.is_some() { 0 } else { position + 1 });
        }
    }

    #[test]
    fn empty_lines_ahead_of_a_head_are_passed_over_and_not_gathered() {
        let (mut buffer, mut seen) = (BytesMut::new(), 0);
        for _ in 0..LONGEST {
            buffer.extend_from_slice(b"\r\n");
            assert!(take_head(&mut buffer, &mut seen, LONGEST).unwrap().is_none() && buffer.is_empty());
        }
        buffer.extend_from_slice(b"\nGET / HTTP/1.1\r\n\r\n");
        assert!(take_head(&mut buffer, &mut seen, LONGEST).unwrap().is_some());
        assert_eq!(whole("\rGET / HTTP/1.1\r\n\r\n").err().unwrap(), MALFORMED);
    }

    fn written(status: u16, headers: &[(&'static str, &'static str)], coding: Coding, length: Option<u64>) -> String {
        let mut map = Fields::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        write_head(&mut out, StatusCode::from_u16(status).unwrap(), &map, (coding, length), None);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answers_framing_is_ours_alone() {
        let theirs = [("content-length", "7"), ("transfer-encoding", "gzip"), ("connection", "x"), ("date", "then")];
        assert_eq!(
            written(200, &theirs, Coding::Length(2), Some(2)),
            "HTTP/1.1 200 OK\r\ndate: then\r\ncontent-length: 2\r\n\r\n"
        );
        assert!(written(200, &theirs, Coding::Chunked, None).contains("\r\ntransfer-encoding: chunked\r\n\r\n"));
        assert_eq!(written(200, &theirs, Coding::UntilClose, None), "HTTP/1.1 200 OK\r\ndate: then\r\n\r\n");
        // The answer to HEAD tells what that to GET would be.
        assert!(written(200, &theirs, Coding::None, Some(0)).contains("content-length: 7\r\n"));
        assert!(written(200, &[], Coding::None, Some(3)).contains("content-length: 3\r\n"));
        assert!(!written(204, &[], Coding::None, Some(0)).contains("content-length"));
        assert!(
            written(299, &[("a", "1"), ("a", "2")], Coding::None, None)
                .starts_with("HTTP/1.1 299 \r\na: 1\r\na: 2\r\ndate: ")
        );
    }

    fn heads() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("POST / HTTP/1.1\r\n".to_owned()),
            Just("Host: a\r\n".to_owned()),
            Just("Content-Length: 5\r\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("\r\n".to_owned()),
            Just("\n".to_owned()),
            "[a-z:\r\n 0-9]{0,12}",
        ];
        proptest::collection::vec(line, 0..10).prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn a_head_is_read_the_same_however_it_was_cut(rest in heads(), cuts in proptest::collection::vec(0..200_usize, 0..6)) {
            let head = [b"POST /x HTTP/1.1\r\n", &rest[..]].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (head.len() + 1)).collect();
            cuts.extend([0, head.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &head[pair[0]..pair[1]]).collect();
            match (read(&[&head]), read(&pieces)) {
                (Ok(Some((one, behind))), Ok(Some((other, behind_too)))) => {
                    prop_assert_eq!((one.head.headers, one.left, behind), (other.head.headers, other.left, behind_too));
                }
                (Ok(None), Ok(None)) => {}
                // What is wrong may be seen only when the head is whole, and a part that has its end may come first.
                (Err(_), Ok(None) | Err(_)) => {}
                (one, other) => prop_assert!(false, "{:?} {:?}", one.is_ok(), other.is_ok()),
            }
        }

        #[test]
        fn any_bytes_are_a_head_or_are_not(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = read(&[&bytes]);
            let _ = read(&[b"GET / HTTP/1.1\r\n", &bytes]);
        }
    }
}
