//! What `curl -v` printed: the request's head in the lines that begin with `> `.
//!
//! Invariant: curl does not show the body, so that there is none here; whoever explains such a request gives the body in
//! a file of its own, unless the head says that there was none.

use super::{Format, LARGEST_HEAD, SavedRequest, Target, Unreadable, add_header, choose, host_of, request_line};
use crate::fields::Fields;
use bytes::Bytes;
use http::{Method, header};

const TRY: &str = "give the whole of what curl -v printed";

pub(super) fn is_one(text: &[u8]) -> bool {
    let head = text.get(..text.len().min(LARGEST_HEAD)).unwrap_or_default();
    head.split(|byte| *byte == b'\n').any(|line| request_of(line).is_some())
}

fn request_of(line: &[u8]) -> Option<(Method, Target)> {
    let line = line.strip_prefix(b"> ")?;
    request_line(std::str::from_utf8(line).ok()?.trim_end()).filter(|_| line.windows(5).any(|word| word == b"HTTP/"))
}

pub(super) fn parse(text: &[u8], entry: Option<usize>) -> Result<SavedRequest, Unreadable> {
    let mut requests: Vec<SavedRequest> = Vec::new();
    let mut secure = false;
    let mut in_head = false;
    for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some((method, target)) = request_of(line) {
            if requests.len() >= 1000 {
                return Err(Unreadable::at_line(number, "more than 1000 requests", "save the one request alone"));
            }
            requests.push(SavedRequest {
                method,
                scheme: Some(target.scheme.unwrap_or(if secure { "https" } else { "http" })),
                authority: target.authority,
                path: target.path,
                query: target.query,
                headers: Fields::new(),
                body: None,
                source: None,
                format: Format::Curl,
                notes: Vec::new(),
            });
            in_head = true;
        } else if let Some(header) = line.strip_prefix(b">") {
            let header = header.trim_ascii();
            if header.is_empty() {
                in_head = false;
            }
            if let (true, Some(request)) = (in_head, requests.last_mut()) {
                let colon = header.iter().position(|byte| *byte == b':');
                let (name, value) = colon.and_then(|colon| header.split_at_checked(colon)).unwrap_or((header, b":"));
                add_header(&mut request.headers, name, value.get(1..).unwrap_or_default())
                    .map_err(|what| Unreadable::at_line(number, what, TRY))?;
            }
        } else if line.starts_with(b"* ") {
            secure |= line.starts_with(b"* SSL connection") || line.starts_with(b"* ALPN");
            secure &= !line.starts_with(b"* Closing connection");
        }
    }
    let mut request = choose(requests, entry, "request (a line `> POST /x HTTP/1.1`)", |request| {
        format!("{} {}", request.method, request.path)
    })?;
    if request.authority.is_none() {
        request.authority = host_of(&request.headers);
    }
    let has_body = request.headers.contains_key(header::TRANSFER_ENCODING)
        || request.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if !has_body {
        request.body = Some(Bytes::new());
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "* Host localhost:8443 was resolved.\n*   Trying 127.0.0.1:8443...\n* ALPN: curl offers h2,http/1.1\n\
        } [5 bytes data]\n* SSL connection using TLSv1.3 / TLS_AES_256_GCM_SHA384\n> POST /github?x=1 HTTP/1.1\r\n\
        > Host: localhost:8443\r\n> X-Hub-Signature-256: sha256=00\r\n> Content-Length: 2\r\n> \r\n} [2 bytes data]\n\
        * upload completely sent off: 2 bytes\n< HTTP/1.1 401 Unauthorized\r\n< x-request-id: 1\r\n< \r\n{ [4 bytes data]\n";

    fn read(text: &str, entry: Option<usize>) -> Result<SavedRequest, Unreadable> {
        SavedRequest::parse(text.as_bytes(), entry, None)
    }

    #[test]
    fn the_request_of_a_trace_is_read_and_its_body_is_open() {
        let saved = read(TRACE, None).unwrap();
        assert_eq!(saved.format, Format::Curl);
        assert_eq!(
            (saved.method.as_str(), saved.path.as_str(), saved.query.as_deref()),
            ("POST", "/github", Some("x=1"))
        );
        assert_eq!((saved.scheme, saved.authority.as_deref()), (Some("https"), Some("localhost:8443")));
        assert_eq!(saved.headers.get("x-hub-signature-256").unwrap(), "sha256=00");
        assert!(!saved.headers.contains_key("x-request-id"));
        assert_eq!(saved.body, None);
        let with = SavedRequest::parse(TRACE.as_bytes(), None, Some(Bytes::from_static(b"{}"))).unwrap();
        assert_eq!(with.body.unwrap(), "{}");
    }

    #[test]
    fn a_trace_without_tls_is_http_and_one_without_a_body_needs_none() {
        let saved =
            read("* Connected to localhost\n> GET /x HTTP/2\n> Host: h\n> Accept: */*\n> \n< HTTP/2 200\n", None);
        let saved = saved.unwrap();
        assert_eq!((saved.scheme, saved.body), (Some("http"), Some(Bytes::new())));
    }

    #[test]
    fn of_several_requests_one_must_be_chosen() {
        let two = format!("{TRACE}> GET /other HTTP/1.1\n> Host: h\n> \n");
        let error = read(&two, None).unwrap_err().to_string();
        assert_eq!(error, "it holds 2 requests (1: POST /github, 2: GET /other); choose one with --entry N");
        assert_eq!(read(&two, Some(2)).unwrap().path, "/other");
        for none in [0, 3] {
            assert_eq!(
                read(&two, Some(none)).unwrap_err().to_string(),
                format!("there is no entry {none}; --entry 1 to 2")
            );
        }
    }
}
