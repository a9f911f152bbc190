//! What people read: tables, one delivery whole, and what a program reads from a terminal.
//!
//! Invariant: whatever was chosen by a stranger is shown with its control characters escaped, those of C1 and those that
//! turn the direction of the text included, so that no id, header or body can drive the terminal or forge a line of ours.

use super::say;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fmt::Write as _;

pub(super) const COLUMNS: [&str; 9] =
    ["received", "request id", "source", "event", "upstream", "state", "attempts", "next or end", "last"];

/// Of a stranger's text in a table.
const LONGEST_CELL: usize = 48;

/// Of a body, unless --body asks for all of it: some screens of text.
const LONGEST_TEXT: usize = 16 << 10;
const LONGEST_DUMP: usize = 1 << 10;

/// Control characters, and what turns or hides text (bidirectional marks, zero widths, line separators).
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One line of it.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if is_harmless(c) => out.push(c),
            c => out.extend(c.escape_default()),
        }
    }
    out
}

/// JSON that says the same and holds none of these characters: they can only stand in strings.
pub(super) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_harmless(c) {
            true => out.push(c),
            false => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing into a string does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out
}

pub(super) fn could_drive_a_terminal(body: &[u8]) -> bool {
    match std::str::from_utf8(body) {
        Ok(text) => text.chars().any(|c| !is_harmless(c) && !matches!(c, '\n' | '\t')),
        Err(_) => true,
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn cell(text: &str) -> String {
    match text.char_indices().nth(LONGEST_CELL) {
        Some((end, _)) => format!("{}…", plain(text.get(..end).unwrap_or_default())),
        None => plain(text),
    }
}

/// `2026-11-22T08:07:16.123Z` to the second.
fn time(text: &str) -> String {
    match text.split_once('.') {
        Some((seconds, _)) => format!("{}Z", plain(seconds)),
        None => plain(text),
    }
}

/// 4m 10s: the two largest units.
fn span(millis: u64) -> String {
    let secs = millis.div_ceil(1000);
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m {}s", secs / 60, secs % 60),
        3600..86_400 => format!("{}h {}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d {}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

fn next_or_end(task: &Value) -> String {
    match task["due_in_ms"].as_i64() {
        Some(millis) => match u64::try_from(millis) {
            Ok(0) | Err(_) => "now".to_owned(),
            Ok(millis) => format!("in {}", span(millis)),
        },
        None if text(task, "state") == "behind" => "in its turn".to_owned(),
        None => time(text(task, "finished")),
    }
}

/// The note, which tells the status where there was one.
fn last(task: &Value) -> String {
    let note = text(task, "note");
    match task["status"].as_u64() {
        Some(status) if !note.contains(&status.to_string()) => format!("{status} {note}").trim_end().to_owned(),
        _ => note.to_owned(),
    }
}

fn attempts(task: &Value) -> String {
    let again = task["generation"].as_u64().filter(|generation| *generation > 0);
    let attempts = task["attempts"].as_u64().unwrap_or_default();
    again.map_or_else(|| attempts.to_string(), |generation| format!("{attempts} (again {generation})"))
}

pub(super) fn row(task: &Value) -> [String; 9] {
    [
        time(text(task, "received")),
        cell(text(task, "request_id")),
        cell(text(task, "source")),
        cell(text(task, "event_type")),
        cell(text(task, "upstream")),
        cell(text(task, "state")),
        attempts(task),
        next_or_end(task),
        cell(&last(task)),
    ]
}

pub(super) fn table<const N: usize>(columns: &[&str; N], rows: &[[String; N]]) {
    let widths = columns.iter().enumerate().map(|(column, name)| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([name.chars().count()]).max().unwrap_or_default()
    });
    let widths: Vec<_> = widths.collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end());
    };
    line(&mut columns.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

pub(super) fn delivery(delivery: &Value) {
    let said = |name: &str, value: &str| say(format!("{name:<12}{value}").trim_end());
    said("request id", &plain(text(delivery, "request_id")));
    said("number", &delivery["seq"].to_string());
    said("delivery id", &plain(text(delivery, "delivery_id")));
    said("source", &plain(text(delivery, "source")));
    if let Some(event) = delivery["event_type"].as_str() {
        said("event", &plain(event));
    }
    if let Some(id) = delivery["event_id"].as_str() {
        said("event id", &plain(id));
    }
    said("received", &time(text(delivery, "received")));
    if let Some(others) = delivery["others"].as_array().filter(|others| !others.is_empty()) {
        let others: Vec<_> = others.iter().filter_map(Value::as_str).map(plain).collect();
        said("the same id", &format!("{} (older)", others.join(", ")));
    }
    for task in delivery["tasks"].as_array().into_iter().flatten() {
        let last = Some(plain(&last(task))).filter(|last| !last.is_empty());
        let last = last.map(|last| format!(", last: {last}")).unwrap_or_default();
        let when = next_or_end(task);
        let state = plain(text(task, "state"));
        let value = format!("{}: {state}, {when}, attempts {}{last}", plain(text(task, "upstream")), attempts(task));
        said("upstream", &value);
    }
    if let Some(why) = delivery["unreadable"].as_str() {
        return say(&format!("\nits content cannot be read: {}", plain(why)));
    }
    say(&format!("\n{} {}", plain(text(delivery, "method")), plain(text(delivery, "path"))));
    for header in delivery["headers"].as_array().into_iter().flatten() {
        let value = match (header["value"].as_str(), header["value_base64"].as_str()) {
            (Some(value), _) => plain(value),
            (None, Some(bytes)) => plain(&String::from_utf8_lossy(&STANDARD.decode(bytes).unwrap_or_default())),
            (None, None) => "(masked; --reveal shows it)".to_owned(),
        };
        say(&format!("{}: {value}", plain(text(header, "name"))));
    }
    let body = STANDARD.decode(text(delivery, "body_base64")).unwrap_or_default();
    say(&format!("\nbody, {} bytes", body.len()));
    for line in body_lines(&body) {
        say(&format!("  {line}"));
    }
}

/// Each on a line of its own behind two spaces: nothing in it can look like a line of ours.
fn body_lines(body: &[u8]) -> Vec<String> {
    let (shown, mut lines) = match std::str::from_utf8(body) {
        Ok(text) => {
            let end = (0..=LONGEST_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            let shown = text.get(..end).unwrap_or_default();
            (end, shown.split('\n').map(|line| plain_line(line.strip_suffix('\r').unwrap_or(line))).collect())
        }
        Err(_) => {
            let shown = body.get(..LONGEST_DUMP.min(body.len())).unwrap_or_default();
            (shown.len(), shown.chunks(16).enumerate().map(|(at, chunk)| dump(at * 16, chunk)).collect::<Vec<_>>())
        }
    };
    if shown < body.len() {
        lines.push(format!("… and {} bytes more; --body writes all of it", body.len() - shown));
    }
    lines
}

/// As `plain`, but for what JSON is full of.
fn plain_line(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '\t' => out.push_str("    "),
            c if is_harmless(c) => out.push(c),
            c => out.extend(c.escape_default()),
        }
    }
    out
}

fn dump(at: usize, chunk: &[u8]) -> String {
    let mut hex = String::new();
    for byte in chunk {
        // Writing into a string does not fail.
        let _ = write!(hex, "{byte:02x} ");
    }
    let shown: String =
        chunk.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' }).collect();
    format!("{at:08x}  {hex:<48} {shown}")
}

pub(super) fn stats(stats: &Value) {
    let rows = stats["tasks"].as_array().into_iter().flatten().map(|row| {
        [
            cell(text(row, "source")),
            cell(text(row, "upstream")),
            cell(text(row, "state")),
            row["count"].as_u64().unwrap_or_default().to_string(),
            row["oldest_ms"].as_u64().map(span).unwrap_or_default(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        say("the inbox is empty");
    } else {
        table(&["source", "upstream", "state", "count", "oldest"], &rows);
    }
    let number = |name: &str| stats[name].as_u64().unwrap_or_default();
    say("");
    say(&format!("waiting       {}", number("waiting")));
    if let Some(oldest) = stats["oldest_waiting_ms"].as_u64() {
        say(&format!("oldest        {}", span(oldest)));
    }
    say(&format!("dead letters  {}", number("dead")));
    say(&format!("size          {:.1} MiB", number("size_bytes") as f64 / f64::from(1 << 20)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_stranger_chose_drives_the_terminal() {
        for (text, shown) in [
            ("evt_1", "evt_1"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("zürich 東京", "zürich 東京"),
            ("\\u{1b}", "\\\\u{1b}"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn json_for_programs_says_the_same_without_a_control_character() {
        let value = serde_json::json!({ "id": "\u{9b}2J\u{202e}x\u{7f}\n\u{e0041}", "ü": "ß" });
        let shown = json(&value.to_string());
        assert!(shown.chars().all(is_harmless), "{shown:?}");
        assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON"), value);
    }

    #[test]
    fn a_body_is_shown_as_text_or_as_bytes_and_never_as_it_is() {
        assert_eq!(
            body_lines(b"{\n\t\"a\": \"\\u001b\"\r\n}\x1b]0;x\x07"),
            ["{", "    \"a\": \"\\u001b\"", "}\\u{1b}]0;x\\u{7}"]
        );
        assert_eq!(
            body_lines(b"\xff\x1b[2Jok"),
            ["00000000  ff 1b 5b 32 4a 6f 6b                             ..[2Jok"]
        );
        let long = "é".repeat(LONGEST_TEXT);
        let lines = body_lines(long.as_bytes());
        assert_eq!(lines.last().map(String::as_str), Some("… and 16384 bytes more; --body writes all of it"));
    }

    #[test]
    fn raw_bytes_go_to_a_terminal_only_where_they_are_text() {
        assert!(!could_drive_a_terminal(b"{\n\t\"a\": 1\n}"));
        for body in [&b"\x1b[2J"[..], b"\r", "\u{9b}".as_bytes(), b"\xff", b"\x07"] {
            assert!(could_drive_a_terminal(body), "{body:?}");
        }
    }

    #[test]
    fn spans_are_told_in_their_two_largest_units() {
        for (millis, told) in
            [(1, "1s"), (59_000, "59s"), (250_000, "4m 10s"), (7_260_000, "2h 1m"), (90_000_000, "1d 1h")]
        {
            assert_eq!(span(millis), told);
        }
    }
}
