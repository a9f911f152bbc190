//! Requests inside JSON: an audit line, or an entry of a HAR export. And the audit line's other form, plain text.
//!
//! Invariant: the gateway itself writes neither headers nor bodies into its audit log (telemetry/audit.rs says why). A
//! line that is to be explained was given them by whoever saved it: `headers`, `query`, `host`, and the body as `body`
//! (text) or `body_base64`. The same names serve whoever saves requests as JSON by other means.

use super::{Format, MOST_HEADERS, SavedRequest, Target, Unreadable, add_header, base64, choose, host_of};
use crate::fields::Fields;
use bytes::Bytes;
use http::Method;
use serde_json::Value;

const TRY_HAR: &str = "export the HAR anew, with contents";
const TRY_LINE: &str =
    "an audit line, with \"headers\": {\"Name\": \"value\"} and \"body\" or \"body_base64\", or a HAR export";
const MOST_ENTRIES: usize = 10_000;

pub(super) fn parse(text: &[u8], entry: Option<usize>) -> Result<SavedRequest, Unreadable> {
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        let value = value.map_err(|error| {
            Unreadable::at_line(error.line(), format!("it is not JSON at column {}", error.column()), TRY_LINE)
        })?;
        if values.len() >= MOST_ENTRIES {
            return Err(Unreadable::new("more than 10000 lines", "save the one line alone"));
        }
        values.push(value);
    }
    if let Some(entries) = values.first().and_then(|first| first.pointer("/log/entries")) {
        let entries = entries.as_array().ok_or_else(|| Unreadable::new("log.entries is no list", TRY_HAR))?;
        let requests: Vec<_> = entries.iter().filter_map(|one| one.get("request")).collect();
        let chosen = choose(requests, entry, "entry with a request", |one| {
            let text = |key| one.get(key).and_then(Value::as_str).unwrap_or("?");
            format!("{} {}", text("method"), shortened(text("url")))
        })?;
        return har(chosen);
    }
    let chosen = choose(values, entry, "audit line", |one| {
        let text = |key| one.get(key).and_then(Value::as_str).unwrap_or("?");
        format!("{} {} {}", text("method"), shortened(text("path")), text("outcome"))
    })?;
    line(&chosen)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn method(value: &Value, try_this: &str) -> Result<Method, Unreadable> {
    let text = value.get("method").and_then(Value::as_str);
    text.and_then(|text| Method::from_bytes(text.as_bytes()).ok())
        .ok_or_else(|| Unreadable::new("the request has no method", try_this))
}

fn har(request: &Value) -> Result<SavedRequest, Unreadable> {
    let method = method(request, TRY_HAR)?;
    let url = request.get("url").and_then(Value::as_str);
    let target = url
        .and_then(Target::parse)
        .filter(|target| target.scheme.is_some())
        .ok_or_else(|| Unreadable::new("the entry's request has no url", TRY_HAR))?;
    let headers = headers(request.get("headers"), TRY_HAR)?;
    let mut notes = Vec::new();
    let data = request.get("postData");
    let text = data.and_then(|data| data.get("text")).and_then(Value::as_str);
    let is_base64 = data.and_then(|data| data.get("encoding")).and_then(Value::as_str) == Some("base64");
    let body = match text {
        Some(text) if is_base64 => {
            Some(base64(text).ok_or_else(|| Unreadable::new("postData.text is not base64", TRY_HAR))?)
        }
        Some(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        None if data.and_then(|data| data.get("params")).is_some() => {
            notes
                .push("the export has the form's fields and not the body as sent; give it with --body FILE".to_owned());
            None
        }
        None if request.get("bodySize").and_then(Value::as_i64).is_some_and(|size| size > 0) => {
            notes.push("the export lacks the body; give it with --body FILE".to_owned());
            None
        }
        None => Some(Bytes::new()),
    };
    Ok(SavedRequest {
        method,
        scheme: target.scheme,
        authority: target.authority,
        path: target.path,
        query: target.query,
        headers,
        body,
        source: None,
        format: Format::Har,
        notes,
    })
}

fn line(value: &Value) -> Result<SavedRequest, Unreadable> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let method = method(value, TRY_LINE)?;
    let target = text("path").or_else(|| text("url"));
    let target = target.and_then(Target::parse).ok_or_else(|| Unreadable::new("the line has no path", TRY_LINE))?;
    let mut notes = Vec::new();
    let headers = match value.get("headers") {
        None => {
            notes.push("the line has no headers, as the gateway writes none: no proof can be found in it".to_owned());
            Fields::new()
        }
        given => headers(given, TRY_LINE)?,
    };
    let body = match (text("body_base64"), text("body")) {
        (Some(coded), _) => Some(
            base64(coded).ok_or_else(|| Unreadable::new("body_base64 is not base64", "with padding, in one line"))?,
        ),
        (None, Some(body)) => Some(Bytes::copy_from_slice(body.as_bytes())),
        (None, None) => {
            value.get("body_bytes").and_then(Value::as_u64).filter(|bytes| *bytes == 0).map(|_| Bytes::new())
        }
    };
    let scheme = match text("scheme") {
        Some("https") => Some("https"),
        Some("http") => Some("http"),
        _ => target.scheme,
    };
    let query = text("query").map(|query| query.strip_prefix('?').unwrap_or(query).to_owned());
    Ok(SavedRequest {
        method,
        scheme,
        authority: text("host").map(str::to_owned).or(target.authority).or_else(|| host_of(&headers)),
        path: target.path,
        query: query.filter(|query| !query.is_empty()).or(target.query),
        headers,
        body,
        source: text("source").filter(|name| !name.is_empty()).map(str::to_owned),
        format: Format::Audit,
        notes,
    })
}

/// `{"Name": "value" | ["value", …]}`, `[["Name", "value"], …]` or HAR's `[{"name": …, "value": …}, …]`.
fn headers(value: Option<&Value>, try_this: &str) -> Result<Fields, Unreadable> {
    let mut map = Fields::new();
    let mut add = |name: Option<&str>, value: Option<&Value>| {
        let name = name.ok_or_else(|| Unreadable::new("a header has no name", try_this))?;
        let value = match value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => return Err(Unreadable::new(format!("the header {:?} is no text", shortened(name)), try_this)),
        };
        // HTTP/2's pseudo headers (`:authority`) say what the url says.
        if name.starts_with(':') {
            return Ok(());
        }
        add_header(&mut map, name.as_bytes(), value.as_bytes())
            .map_err(|what| Unreadable::new(format!("the header {:?}: {what}", shortened(name)), try_this))
    };
    match value {
        None | Some(Value::Null) => {}
        Some(Value::Object(object)) => {
            for (name, value) in object.iter().take(MOST_HEADERS + 1) {
                match value {
                    Value::Array(values) => {
                        values.iter().take(MOST_HEADERS + 1).try_for_each(|value| add(Some(name), Some(value)))?;
                    }
                    one => add(Some(name), Some(one))?,
                }
            }
        }
        Some(Value::Array(list)) => {
            for one in list.iter().take(MOST_HEADERS + 1) {
                match one {
                    Value::Array(pair) => add(pair.first().and_then(Value::as_str), pair.get(1))?,
                    one => add(one.get("name").and_then(Value::as_str), one.get("value"))?,
                }
            }
        }
        Some(_) => return Err(Unreadable::new("the headers are no table", try_this)),
    }
    Ok(map)
}

/// `2026-01-01T00:00:00Z audit client=… method=POST path=/x …`
pub(super) fn is_text_line(text: &[u8]) -> bool {
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words: Vec<_> = first.splitn(3, |byte| *byte == b' ').collect();
    matches!(words.as_slice(), [_, b"audit", rest] if rest.starts_with(b"client="))
}

pub(super) fn parse_text_lines(text: &[u8], entry: Option<usize>) -> Result<SavedRequest, Unreadable> {
    let text = std::str::from_utf8(text).map_err(|_| Unreadable::new("the audit line is not UTF-8", TRY_LINE))?;
    let lines: Vec<_> = text.lines().filter(|line| is_text_line(line.as_bytes())).take(MOST_ENTRIES).collect();
    let chosen = choose(lines, entry, "audit line", |line| shortened(line))?;
    let mut object = serde_json::Map::new();
    for (name, value) in fields(chosen) {
        object.insert(name.to_owned(), value.into());
    }
    line(&Value::Object(object))
}

/// `name=value` and `name="value with \"escapes\""`; what is neither is skipped.
fn fields(line: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((name, behind)) = rest.split_once('=') {
        let name = name.rsplit(' ').next().unwrap_or_default();
        let value;
        (value, rest) = match behind.strip_prefix('"') {
            Some(quoted) => {
                let mut text = String::new();
                let mut chars = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
                        c => text.push(c),
                    }
                }
                (text, quoted.get(end..).unwrap_or_default())
            }
            None => {
                let end = behind.find(' ').unwrap_or(behind.len());
                (behind.get(..end).unwrap_or_default().to_owned(), behind.get(end..).unwrap_or_default())
            }
        };
        found.push((name, value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, entry: Option<usize>) -> Result<SavedRequest, Unreadable> {
        SavedRequest::parse(text.as_bytes(), entry, None)
    }

    const LINE: &str = r#"{"time":"2026-01-01T00:00:00Z","type":"audit","source":"github","outcome":"bad_signature","method":"POST","path":"/github""#;

    #[test]
    fn an_audit_line_with_headers_and_a_body_is_a_request() {
        for body in [r#""body":"{\"a\":1}\n""#, r#""body_base64":"eyJhIjoxfQo=""#] {
            for headers in [
                r#"{"X-Sig":"abc","Host":"h.example"}"#,
                r#"[["X-Sig","abc"],["Host","h.example"]]"#,
                r#"{"x-sig":["abc"],"host":"h.example"}"#,
            ] {
                let saved = read(&format!(r#"{LINE},"query":"?q=1","headers":{headers},{body}}}"#), None).unwrap();
                assert_eq!(saved.format, Format::Audit);
                assert_eq!((saved.path.as_str(), saved.query.as_deref()), ("/github", Some("q=1")));
                assert_eq!(saved.source.as_deref(), Some("github"));
                assert_eq!(saved.authority.as_deref(), Some("h.example"));
                assert_eq!(saved.headers.get("x-sig").unwrap(), "abc");
                assert_eq!(saved.body.unwrap(), "{\"a\":1}\n");
            }
        }
    }

    #[test]
    fn an_audit_line_as_the_gateway_writes_it_names_the_request_and_has_no_body() {
        let text = "2025-10-09T08:53:20.123Z audit client=192.0.2.1 request_id=r1 source=github outcome=replay method=POST \
                    path=\"/git \\\"hub\" body_bytes=12\n";
        assert_eq!(read(text, None).unwrap_err().what, "the line has no path");
        let text = text.replace("\"/git \\\"hub\"", "\"/git\\\"hub=\"");
        for text in [text.as_str(), &format!("{LINE},\"body_bytes\":12}}")] {
            let saved = read(text, None).unwrap();
            assert!(saved.path.starts_with("/git"));
            assert_eq!((saved.body, saved.source.as_deref()), (None, Some("github")));
            assert!(saved.notes[0].starts_with("the line has no headers"));
        }
    }

    #[test]
    fn one_line_of_several_is_chosen() {
        let two = format!("{LINE},\"headers\":{{}}}}\n{LINE},\"headers\":{{}},\"body\":\"second\"}}\n");
        assert!(read(&two, None).unwrap_err().to_string().contains("2: POST /github bad_signature"));
        assert_eq!(read(&two, Some(2)).unwrap().body.unwrap(), "second");
    }

    #[test]
    fn an_entry_of_a_har_export_is_a_request() {
        let har = r#"{"log":{"version":"1.2","entries":[
            {"request":{"method":"GET","url":"https://h.example/","headers":[],"bodySize":0}},
            {"request":{"method":"POST","url":"https://h.example/x?a=1","headers":[{"name":":authority","value":"h"},{"name":"X-Sig","value":"abc"}],
             "postData":{"mimeType":"application/json","text":"{}"}}},
            {"request":{"method":"POST","url":"https://h.example/x","headers":[],"postData":{"text":"AP8=","encoding":"base64"}}},
            {"request":{"method":"POST","url":"https://h.example/x","headers":[],"postData":{"params":[]}}}]}}"#;
        assert!(read(har, None).unwrap_err().to_string().contains("2: POST https://h.example/x?a=1"));
        let saved = read(har, Some(2)).unwrap();
        assert_eq!((saved.scheme, saved.authority.as_deref()), (Some("https"), Some("h.example")));
        assert_eq!((saved.path.as_str(), saved.query.as_deref()), ("/x", Some("a=1")));
        assert_eq!(
            (saved.headers.len(), saved.headers.get("x-sig").unwrap()),
            (1, &http::HeaderValue::from_static("abc"))
        );
        assert_eq!(saved.body.unwrap(), "{}");
        assert_eq!(read(har, Some(3)).unwrap().body.unwrap(), &b"\x00\xff"[..]);
        let without = read(har, Some(4)).unwrap();
        assert_eq!((without.body, without.notes.len()), (None, 1));
    }

    #[test]
    fn json_that_is_no_request_is_told_where_and_what_to_try() {
        let told = |text: &str| read(text, None).unwrap_err().to_string();
        assert!(told("{\"method\":\n x").starts_with("line 2: it is not JSON at column"));
        assert!(told("{}").starts_with("the request has no method; an audit line"));
        assert!(told(r#"{"log":{"entries":[]}}"#).starts_with("there is no entry with a request"));
        assert!(
            told(r#"{"method":"POST","path":"/x","headers":{"a b":"c"}}"#)
                .starts_with("the header \"a b\": this is no")
        );
        assert!(told(r#"{"method":"POST","path":"/x","body_base64":"%"}"#).starts_with("body_base64 is not base64"));
        assert!(told(&"{\"a\":".repeat(100_000)).contains("it is not JSON"));
    }
}
