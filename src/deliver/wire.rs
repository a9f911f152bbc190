//! HTTP/1.1 as it stands on the wire to an upstream (RFC 9112): a request's head written, an answer read.
//!
//! Pure: bytes in, bytes out; http1.rs moves them. Invariants: an answer is read the same however its bytes were cut on
//! the way; what its head says twice and differently, or in a form that two parsers could read in two ways, is no answer;
//! nothing is held beyond the bounds given; hop-by-hop fields and the answer's own framing end here.

use std::ops::Range;

use crate::fields::{self, Fields};
use ::http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue};
use ::http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};
use httparse::Status;
use smallvec::SmallVec;

use crate::framing::{self, Chunk, Left};

const MAX_ANSWER_HEADERS: usize = 100;

/// RFC 9110 §7.6.1, and what of old is taken for the like.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    is_of_the_connection(name.as_str())
}

fn is_of_the_connection(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// What `Connection` names. Framing is judged by itself; naming it here must not unframe the message.
pub(super) fn named_by_connection<'v>(values: impl Iterator<Item = &'v HeaderValue>) -> Vec<HeaderName> {
    values.flat_map(|value| named(value.as_bytes())).collect()
}

/// The field `keep-alive`, which most name, goes in any case.
fn named(value: &[u8]) -> impl Iterator<Item = HeaderName> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| name != CONTENT_LENGTH)
}

/// Whether a header of a parcel is written as it is: the framing is ours alone, and so is the host.
pub(super) fn is_passed_on(name: &HeaderName, named: &[HeaderName]) -> bool {
    let text = name.as_str();
    // The first letter tells it of nearly all.
    let may_end_here = matches!(text.as_bytes().first(), Some(b'c' | b'e' | b'h' | b'k' | b'p' | b't' | b'u'));
    let ends_here =
        may_end_here && (matches!(text, "content-length" | "expect" | "host") || is_of_the_connection(text));
    !ends_here && !named.contains(name)
}

/// A request's head, its body being `length` bytes.
pub(super) fn write_head(
    head: &mut Vec<u8>,
    (method, path): (&Method, &str),
    host: &HeaderValue,
    headers: &Fields,
    length: Option<usize>,
) {
    const LINE_END: [u8; 2] = *b"\r\n";
    const PARTS: usize = " ".len() + " HTTP/1.1\r\nhost: ".len() + 2 * LINE_END.len();
    const LENGTH: usize = "content-length: \r\n".len() + framing::MOST_OF_A_NUMBER;
    // Room for all of it at once, and for what is then not passed on.
    let fields: usize = headers.iter().map(|(name, value)| framing::line_of(name.as_str(), value.as_bytes())).sum();
    let named =
        if headers.contains_key(CONNECTION) { named_by_connection(headers.get_all(CONNECTION)) } else { Vec::new() };
    head.clear();
    framing::fill(head, method.as_str().len() + path.len() + host.len() + fields + PARTS + LENGTH, |room| {
        room.put(method.as_str().as_bytes());
        room.put_few(*b" ");
        room.put(path.as_bytes());
        room.put_few(*b" HTTP/1.1\r\nhost: ");
        room.put(host.as_bytes());
        room.put_few(LINE_END);
        for (name, value) in headers.iter().filter(|(name, _)| is_passed_on(name, &named)) {
            room.put_line(name.as_str(), value.as_bytes());
        }
        if let Some(length) = length {
            room.put_few(*b"content-length: ");
            room.put_number(length as u64);
            room.put_few(LINE_END);
        }
        room.put_few(LINE_END);
    });
}

/// An answer's head, without what concerned this connection alone. A `Content-Length` is there only if it is that of the
/// body, or the answer to HEAD.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: Fields,
}

/// An answer has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) head: Head,
    pub(super) left: Left,
    /// Another request may follow, once the answer was read.
    pub(super) keeps: bool,
}

/// Takes an answer's head off the buffer; interim answers (RFC 9110 §15.2) are passed over. None: it is not whole yet.
pub(super) fn take_head(buffer: &mut BytesMut, method: &Method, longest: usize) -> Result<Option<Begun>, String> {
    loop {
        let Some(read) = read_head(buffer)? else {
            // Between two looks at most one buffer comes in: what is held is bounded by a little more.
            return if buffer.len() > longest { Err("the answer's head is too large".to_owned()) } else { Ok(None) };
        };
        if read.length > longest {
            return Err("the answer's head is too large".to_owned());
        }
        let bytes = buffer.split_to(read.length).freeze();
        match read.status {
            // Nobody asked to switch protocols; what follows is not HTTP.
            StatusCode::SWITCHING_PROTOCOLS => return Err("the upstream switched protocols unasked".to_owned()),
            status if status.is_informational() => {}
            _ => return begin(&read, &bytes, method).map(Some),
        }
    }
}

struct Read {
    length: usize,
    status: StatusCode,
    is_http_1_1: bool,
    fields: SmallVec<[(Range<usize>, Range<usize>); 24]>,
}

fn read_head(buffer: &BytesMut) -> Result<Option<Read>, String> {
    let mut room = [const { std::mem::MaybeUninit::uninit() }; MAX_ANSWER_HEADERS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, buffer, &mut room);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("what came is no answer: {error}")),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| "what came is no answer: its status is none".to_owned())?;
    let fields = framing::places(buffer, answer.headers);
    Ok(Some(Read { length, status, is_http_1_1: answer.version == Some(1), fields }))
}

fn begin(read: &Read, bytes: &Bytes, method: &Method) -> Result<Begun, String> {
    let ambiguous = |what: &str| Err(format!("the answer's framing is ambiguous: {what}"));
    let mut headers = Fields::with_capacity(read.fields.len() + 1);
    let mut declared: Option<u64> = None;
    let mut told_length = None;
    let mut is_chunked = false;
    let (mut keeps, mut closes) = (read.is_http_1_1, false);
    let mut dropped = Vec::new();
    for (name, value) in &read.fields {
        let unreadable = || "what came is no answer: a header is none".to_owned();
        let name = fields::name(bytes.get(name.clone()).unwrap_or_default()).ok_or_else(unreadable)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(value.clone())).map_err(|_| unreadable())?;
        match name.as_str() {
            "content-length" => {
                match (framing::length_of(value.as_bytes()), declared) {
                    (None, _) => return ambiguous("its Content-Length is no number"),
                    (Some(length), Some(before)) if length != before => return ambiguous("two Content-Lengths"),
                    (Some(length), _) => declared = Some(length),
                }
                told_length = Some(value);
            }
            "transfer-encoding" => {
                if is_chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") || !read.is_http_1_1 {
                    return ambiguous("its Transfer-Encoding is not exactly `chunked`");
                }
                is_chunked = true;
            }
            "connection" => {
                let words = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                let has = |word: &[u8]| words.clone().any(|one| one.eq_ignore_ascii_case(word));
                closes |= has(b"close");
                keeps |= has(b"keep-alive");
                dropped.extend(named(value.as_bytes()));
            }
            _ if is_hop_by_hop(&name) => {}
            _ => {
                headers.append(name, value);
            }
        }
    }
    if !dropped.is_empty() {
        headers.remove_every(dropped);
    }
    let has_none = method == Method::HEAD || matches!(read.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let left = match (has_none, is_chunked, declared) {
        (true, ..) => Left::Length(0),
        (false, true, _) => Left::Chunked(Chunk::Size),
        (false, false, Some(length)) => Left::Length(length),
        (false, false, None) => Left::UntilClose,
    };
    let is_true = !is_chunked && (!has_none || method == Method::HEAD);
    if let (Some(length), Some(told)) = (declared.filter(|_| is_true), told_length) {
        // As it came, but for zeros before it.
        let is_plain = told.as_bytes().first().is_some_and(|digit| *digit != b'0');
        headers.append(CONTENT_LENGTH, if is_plain { told } else { length.into() });
    }
    // RFC 9112 §6.3: both is what smuggling looks like; the chunks stand, and nothing follows them.
    keeps &= !closes && left != Left::UntilClose && !(is_chunked && declared.is_some());
    Ok(Begun { head: Head { status: read.status, headers }, left, keeps })
}

/// For the fuzz target: the answer to POST that comes in these pieces, its fields and its body. None: it is none, or not whole.
#[cfg(fuzzing)]
pub(crate) fn read(pieces: &[&[u8]], longest: usize) -> Option<(Fields, Vec<u8>)> {
    let (mut buffer, mut pieces) = (BytesMut::new(), pieces.iter());
    let begun = loop {
        match take_head(&mut buffer, &Method::POST, longest).ok()? {
            Some(begun) => break begun,
            None => buffer.extend_from_slice(pieces.next()?),
        }
    };
    Some((begun.head.headers, framing::read(begun.left, buffer, pieces, longest)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Piece;
    use proptest::prelude::*;

    const LONGEST: usize = 4096;

    #[derive(Debug, PartialEq, Eq)]
    struct Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        /// None: it was not whole.
        keeps: Option<bool>,
        behind: usize,
    }

    /// Reads an answer that comes in these pieces, and then the end.
    fn read(pieces: &[&[u8]], method: &Method) -> Result<Option<Answer>, String> {
        let mut buffer = BytesMut::new();
        let mut pieces = pieces.iter();
        let mut begun = loop {
            if let Some(begun) = take_head(&mut buffer, method, LONGEST)? {
                break begun;
            }
            let Some(piece) = pieces.next() else { return Ok(None) };
            buffer.extend_from_slice(piece);
        };
        let mut body = Vec::new();
        let keeps = loop {
            match begun.left.take(&mut buffer, LONGEST)? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::End => break Some(begun.keeps),
                Piece::Nothing => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => break (begun.left == Left::UntilClose).then_some(begun.keeps),
                },
            }
        };
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = begun.head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let behind = buffer.len() + pieces.map(|piece| piece.len()).sum::<usize>();
        Ok(Some(Answer { status: begun.head.status.as_u16(), headers, body, keeps, behind }))
    }

    fn post(answer: &str) -> Result<Answer, String> {
        read(&[answer.as_bytes()], &Method::POST).map(|answer| answer.expect("a whole head"))
    }

    #[test]
    fn an_answers_length_is_what_its_head_says_of_it() {
        let of = |head: &str, rest: &str| post(&format!("HTTP/1.1 200 OK\r\n{head}\r\n{rest}")).unwrap();
        let declared = of("Content-Length: 2\r\n", "ok");
        assert_eq!((declared.body.as_slice(), declared.keeps), (&b"ok"[..], Some(true)));
        assert_eq!(declared.headers, [("content-length".to_owned(), "2".to_owned())]);
        let twice = of("Content-Length: 2\r\nContent-Length: 2\r\n", "ok!");
        assert_eq!((twice.headers.len(), twice.behind), (1, 1));
        let chunked = of("Transfer-Encoding: Chunked\r\n", "2;x=y\r\nok\r\n1\r\n!\r\n0\r\nX: 1\r\n\r\n");
        assert_eq!((chunked.body.as_slice(), chunked.keeps, chunked.headers.len()), (&b"ok!"[..], Some(true), 0));
        let until_close = of("", "ok");
        assert_eq!((until_close.body.as_slice(), until_close.keeps), (&b"ok"[..], Some(false)));
        assert_eq!(of("Content-Length: 3\r\n", "ok").keeps, None, "it was cut");
        assert_eq!(of("Transfer-Encoding: chunked\r\n", "2\r\nok\r\n").keeps, None, "it was cut");
        let both = of("Content-Length: 9\r\nTransfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n");
        assert_eq!((both.body.as_slice(), both.keeps, both.headers.len()), (&b"ok"[..], Some(false), 0));
    }

    #[test]
    fn some_answers_have_no_body_whatever_they_declare() {
        for status in [204, 304] {
            let answer =
                post(&format!("HTTP/1.1 {status} X\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"));
            let answer = answer.unwrap();
            assert!(answer.body.is_empty() && answer.headers.is_empty());
        }
        let to_head = read(&[b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"], &Method::HEAD).unwrap().unwrap();
        assert_eq!((to_head.keeps, to_head.headers.len()), (Some(true), 1));
    }

    #[test]
    fn a_connection_is_kept_where_both_the_version_and_the_word_allow_it() {
        let keeps = |version: &str, word: &str| {
            post(&format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{word}\r\n")).unwrap().keeps == Some(true)
        };
        assert!(
            keeps("1.1", "")
                && keeps("1.1", "Connection: x, Keep-Alive\r\n")
                && keeps("1.0", "Connection: keep-alive\r\n")
        );
        assert!(!keeps("1.0", "") && !keeps("1.1", "Connection: x, Close\r\n"));
        assert!(!keeps("1.1", "Connection: close\r\nConnection: keep-alive\r\n"));
        assert!(!keeps("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
    }

    #[test]
    fn what_two_parsers_could_read_in_two_ways_is_no_answer() {
        for head in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "X: 1\r\n folded\r\n",
            "X : 1\r\n",
        ] {
            assert!(post(&format!("HTTP/1.1 200 OK\r\n{head}\r\n")).is_err(), "{head}");
        }
        assert!(post("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").is_err());
        for chunks in ["x\r\n", "-1\r\n", "2\r\nokay\r\n", "fffffffffffffffff\r\n", "2\r\nok\n\n0\r\n\r\n"] {
            assert!(
                post(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).is_err(),
                "{chunks}"
            );
        }
        let endless = format!("1;{}", "x".repeat(8 * 1024));
        assert!(post(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{endless}")).is_err());
        let trailers = format!("0\r\n{}", "X: 1\r\n".repeat(LONGEST));
        assert!(post(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{trailers}")).is_err());
    }

    #[test]
    fn a_request_has_one_host_and_one_length_whatever_the_parcel_says() {
        let mut headers = Fields::new();
        for (name, value) in [
            ("host", "evil"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-hop, content-length"),
            ("x-hop", "1"),
            ("expect", "100-continue"),
            ("x-kept", "1"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut head = b"left over".to_vec();
        let host = HeaderValue::from_static("app:80");
        write_head(&mut head, (&Method::POST, "/x?y"), &host, &headers, Some(3));
        let written = String::from_utf8(head).unwrap();
        assert_eq!(written, "POST /x?y HTTP/1.1\r\nhost: app:80\r\nx-kept: 1\r\ncontent-length: 3\r\n\r\n");
    }

    #[test]
    fn a_length_is_told_as_it_came_but_without_zeros_before_it() {
        for (sent, told) in [("5", "5"), ("0005", "5"), ("0", "0"), ("00", "0")] {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {sent}\r\nContent-Length: {sent}\r\n\r\nhello");
            assert_eq!(post(&answer).unwrap().headers, [("content-length".to_owned(), told.to_owned())], "{sent}");
        }
        let answer = "HTTP/1.1 200 OK\r\nConnection: Keep-Alive, x-hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nX-Kept: 1\r\n\r\n";
        assert_eq!(post(answer).unwrap().headers, [("x-kept".to_owned(), "1".to_owned())]);
    }

    const NAMES: [&str; 22] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "content-length",
        "expect",
        "host",
        // From here on they go along.
        "content-type",
        "user-agent",
        "traceparent",
        "tea",
        "x-a",
        "x-b",
        "accept",
        "hosts",
        "priority",
    ];

    proptest! {
        #[test]
        fn a_head_holds_every_field_that_goes_along_once_and_in_order(
            fields in proptest::collection::vec((1..NAMES.len(), "[ -~]{0,40}"), 0..30),
            named in proptest::option::of("x-a|x-b, content-length|keep-alive,accept"),
            (path, length) in ("/[a-z?=]{0,80}", proptest::option::of(0..usize::MAX)),
        ) {
            let mut headers = Fields::new();
            let mut wanted = format!("POST {path} HTTP/1.1\r\nhost: a\r\n");
            for (name, value) in &fields {
                let (name, value) = (NAMES[*name], value.trim());
                headers.append(name, HeaderValue::try_from(value).unwrap());
                if NAMES[13..].contains(&name) && !named.as_ref().is_some_and(|named| named.contains(name)) {
                    wanted += &format!("{name}: {value}\r\n");
                }
            }
            if let Some(named) = &named {
                headers.append("connection", HeaderValue::try_from(named).unwrap());
            }
            if let Some(length) = length {
                wanted += &format!("content-length: {length}\r\n");
            }
            let mut head = Vec::new();
            write_head(&mut head, (&Method::POST, &path), &HeaderValue::from_static("a"), &headers, length);
            prop_assert_eq!(String::from_utf8(head).unwrap(), wanted + "\r\n");
        }
    }

    fn answers() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("HTTP/1.1 200 OK\r\n".to_owned()),
            Just("HTTP/1.1 100 Continue\r\n\r\n".to_owned()),
            Just("Content-Length: 5\r\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("Connection: close, x\r\n".to_owned()),
            Just("\r\n".to_owned()),
            Just("5\r\nhello\r\n".to_owned()),
            Just("0\r\n\r\n".to_owned()),
            "[a-z:\r\n 0-9]{0,12}",
        ];
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn an_answer_is_read_the_same_however_it_was_cut(answer in answers(), cuts in proptest::collection::vec(0..200_usize, 0..6)) {
            let whole = read(&[&answer], &Method::POST);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (answer.len() + 1)).collect();
            cuts.extend([0, answer.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]).collect();
            let in_pieces = read(&pieces, &Method::POST);
            // Where something is wrong, the words for it may depend on how much was there to see.
            match (whole, in_pieces) {
                (Ok(whole), Ok(in_pieces)) => prop_assert_eq!(whole, in_pieces),
                (whole, in_pieces) => prop_assert!(whole.is_err() && in_pieces.is_err(), "{:?} {:?}", whole, in_pieces),
            }
        }

        #[test]
        fn any_bytes_are_an_answer_or_are_not(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), chunked: bool) {
            let head: &[u8] = if chunked { b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" } else { b"HTTP/1.1 200 OK\r\n" };
            let _ = read(&[head, &bytes], &Method::POST);
            let _ = read(&[&bytes], &Method::POST);
        }
    }
}
