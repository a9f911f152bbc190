//! A raw HTTP/1.1 message: a head with CRLF or LF line ends, an empty line, and the body.
//!
//! Invariant: the body is what stands behind the first empty line, cut at Content-Length or taken out of its chunks; it
//! is never trimmed. Where the file has more or fewer bytes than the head says, that is a note, for it is often the cause.

use super::{Format, LARGEST_HEAD, SavedRequest, Unreadable, add_header, host_of, request_line};
use crate::fields::Fields;
use bytes::Bytes;
use http::header;

const TRY: &str = "save a raw HTTP message, the output of curl -v, an audit line or a HAR export";

pub(super) fn parse(bytes: &[u8], entry: Option<usize>) -> Result<SavedRequest, Unreadable> {
    if entry.is_some_and(|entry| entry != 1) {
        return Err(Unreadable::new("a raw HTTP message is one request", "leave --entry out"));
    }
    let head = Head::read(bytes)?;
    let Head { lines, rest: after } = head;
    let mut lines = lines.into_iter();
    let first = lines.next().unwrap_or_default();
    let (method, target) = std::str::from_utf8(first)
        .ok()
        .and_then(request_line)
        .ok_or_else(|| Unreadable::at_line(1, format!("{} begins no request", shown(first)), TRY))?;
    let mut headers = Fields::new();
    for (line, number) in lines.zip(2..) {
        let at_line = |what: &str, try_this: &str| Unreadable::at_line(number, what, try_this);
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(at_line("a folded header", "write it on one line; the gateway refuses folded headers"));
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Err(at_line(
                &format!("{} is no header", shown(line)),
                "one empty line ends the head, and the body follows",
            ));
        };
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let value = value.get(1..).unwrap_or_default();
        add_header(&mut headers, name, value)
            .map_err(|what| at_line(&format!("{}: {what}", shown(line)), "write \"Name: value\""))?;
    }
    let mut notes = Vec::new();
    let body = match after {
        Some(after) => body(&headers, after, &mut notes),
        None => {
            notes.push("no empty line ends the head, so that there is no body".to_owned());
            Bytes::new()
        }
    };
    let authority = target.authority.or_else(|| host_of(&headers));
    Ok(SavedRequest {
        method,
        scheme: target.scheme,
        authority,
        path: target.path,
        query: target.query,
        headers,
        body: Some(body),
        source: None,
        format: Format::Http,
        notes,
    })
}

struct Head<'a> {
    lines: Vec<&'a [u8]>,
    /// Behind the empty line.
    rest: Option<&'a [u8]>,
}

impl<'a> Head<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        loop {
            let (line, behind) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) => (rest.get(..end).unwrap_or_default(), rest.get(end + 1..)),
                None => (rest, None),
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                return Ok(Self { lines, rest: behind });
            }
            lines.push(line);
            let Some(behind) = behind else { return Ok(Self { lines, rest: None }) };
            rest = behind;
            if bytes.len() - rest.len() > LARGEST_HEAD {
                return Err(Unreadable::at_line(lines.len(), "a megabyte and no empty line that ends the head", TRY));
            }
        }
    }
}

fn body(headers: &Fields, after: &[u8], notes: &mut Vec<String>) -> Bytes {
    let chunked = headers
        .get_all(header::TRANSFER_ENCODING)
        .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    if chunked {
        return match unchunked(after) {
            Some(body) => body,
            None => {
                notes.push(
                    "the head says chunked and the body is not in chunks: it is taken as it stands, as tools that \
                     decode save it"
                        .to_owned(),
                );
                Bytes::copy_from_slice(after)
            }
        };
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH);
    let declared = match (lengths.next(), lengths.next()) {
        (None, _) => return Bytes::copy_from_slice(after),
        (Some(one), None) => one.to_str().ok().and_then(|text| text.parse::<usize>().ok()),
        (Some(_), Some(_)) => None,
    };
    let Some(declared) = declared else {
        notes.push("Content-Length is doubled or no number, and does not count".to_owned());
        return Bytes::copy_from_slice(after);
    };
    match after.get(..declared) {
        Some(body) => {
            let left = after.len() - declared;
            // One line end at the end of a file is an editor's.
            if left > 0 && !matches!(after.get(declared..), Some(b"\n" | b"\r\n")) {
                notes.push(format!(
                    "{left} bytes stand behind the {declared} that Content-Length says, and are left out"
                ));
            }
            Bytes::copy_from_slice(body)
        }
        None => {
            notes.push(format!(
                "Content-Length says {declared} bytes and the file holds {}: the body is not the one that was sent",
                after.len()
            ));
            Bytes::copy_from_slice(after)
        }
    }
}

/// `None`: these are no chunks. Trailers are dropped, as the gateway drops them.
fn unchunked(mut rest: &[u8]) -> Option<Bytes> {
    let mut body = Vec::new();
    loop {
        let end = rest.iter().take(64).position(|byte| *byte == b'\n')?;
        let line = rest.get(..end)?.trim_ascii();
        let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
        if size.is_empty() || size.len() > 8 {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        rest = rest.get(end + 1..)?;
        if size == 0 {
            return Some(body.into());
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?;
        rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n"))?;
    }
}

/// The beginning of a line, fit for a message.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.get(..line.len().min(40)).unwrap_or_default()).into_owned();
    format!("{text:?}{}", if line.len() > 40 { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SavedRequest {
        SavedRequest::parse(text.as_bytes(), None, None).unwrap()
    }

    fn told(text: &str) -> String {
        SavedRequest::parse(text.as_bytes(), None, None).unwrap_err().to_string()
    }

    #[test]
    fn a_message_with_either_line_end_is_read_and_its_body_kept_byte_for_byte() {
        for eol in ["\r\n", "\n"] {
            let text = format!(
                "POST /x?a=1 HTTP/1.1{eol}Host: h.example{eol}X-Sig:  abc {eol}X-Sig: d{eol}{eol}{{\"a\":1}}\r\n\n"
            );
            let saved = read(&text);
            assert_eq!(saved.method, http::Method::POST);
            assert_eq!((saved.path.as_str(), saved.query.as_deref()), ("/x", Some("a=1")));
            assert_eq!(saved.authority.as_deref(), Some("h.example"));
            let values: Vec<_> = saved.headers.get_all("x-sig").map(|value| value.to_str().unwrap()).collect();
            assert_eq!(values, ["abc", "d"]);
            assert_eq!(saved.body.unwrap(), "{\"a\":1}\r\n\n");
            assert!(saved.notes.is_empty());
        }
    }

    #[test]
    fn content_length_ends_the_body_and_a_body_of_another_length_is_noted() {
        let of = |body: &str| read(&format!("POST /x HTTP/1.1\nContent-Length: 3\n\n{body}"));
        let exact = of("abc\n");
        assert_eq!((exact.body.unwrap().as_ref(), exact.notes.len()), (&b"abc"[..], 0));
        let more = of("abcdef");
        assert_eq!(more.body.unwrap(), "abc");
        assert_eq!(more.notes, ["3 bytes stand behind the 3 that Content-Length says, and are left out"]);
        let fewer = of("ab");
        assert_eq!(fewer.body.unwrap(), "ab");
        assert!(fewer.notes[0].starts_with("Content-Length says 3 bytes and the file holds 2"));
    }

    #[test]
    fn chunks_are_joined_and_a_body_that_only_claims_chunks_is_kept() {
        let of = |body: &str| read(&format!("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        assert_eq!(of("3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n").body.unwrap(), "abc0123456789");
        for whole in ["{\"a\":1}", "ffffffffffff\r\nabc", "5\r\nabc\r\n0\r\n\r\n", "-1\r\nabc"] {
            let saved = of(whole);
            assert_eq!(saved.body.unwrap(), whole);
            assert_eq!(saved.notes.len(), 1);
        }
    }

    #[test]
    fn a_head_that_is_none_is_refused_with_its_line() {
        assert!(told("hello\n\n").starts_with("line 1: \"hello\" begins no request; save a raw HTTP message"));
        assert!(told("POST /x HTTP/1.1\nA: b\n c\n\n").starts_with("line 3: a folded header"));
        assert!(told("POST /x HTTP/1.1\nA: b\n{\"a\"}\n").starts_with("line 3: \"{\\\"a\\\"}\" is no header"));
        assert!(told("POST /x HTTP/1.1\nA b: c\n\n").starts_with("line 2: \"A b: c\": this is no name"));
        assert!(told(&format!("POST /x HTTP/1.1\n{}", "A: b\n".repeat(1001))).contains("more than 1000 headers"));
        assert!(told(&format!("POST /x HTTP/1.1\nA: {}\n\n", "b".repeat(LARGEST_HEAD))).contains("a megabyte"));
    }

    #[test]
    fn a_head_alone_has_no_body_and_says_so() {
        let saved = read("GET /x HTTP/1.1\nHost: h");
        assert_eq!(saved.body.unwrap(), "");
        assert_eq!(saved.notes.len(), 1);
    }
}
