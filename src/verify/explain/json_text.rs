//! A JSON text, written anew in the ways in which the usual libraries would have written it.
//!
//! Invariant: the order of the keys and the text of every number stay as they were, except where a style says otherwise;
//! nesting is bounded. `serde_json::Value` would keep neither.

const DEEPEST: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tree<'t> {
    Text(String),
    /// A number, `true`, `false` or `null`, as it stood.
    Plain(&'t str),
    List(Vec<Self>),
    Table(Vec<(String, Self)>),
}

#[derive(Clone, Copy, Default)]
pub(super) struct Style {
    pub(super) comma_space: bool,
    pub(super) colon_space: bool,
    pub(super) indent: Option<usize>,
    pub(super) sorted: bool,
    /// `\u00e9` for `é`.
    pub(super) ascii: bool,
    /// `\/` for `/`.
    pub(super) slashes: bool,
    /// `\u003c`, `\u003e` and `\u0026`.
    pub(super) html: bool,
    /// `1` for `1.0`.
    pub(super) whole_numbers: bool,
    pub(super) newline: bool,
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

pub(super) fn read(text: &str) -> Option<Tree<'_>> {
    let mut reader = Reader { text, at: 0 };
    let tree = reader.value(0)?;
    reader.skip_space();
    (reader.at == text.len()).then_some(tree)
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    fn takes(&mut self, c: char) -> bool {
        self.skip_space();
        let there = self.rest().starts_with(c);
        self.at += usize::from(there);
        there
    }

    fn value(&mut self, depth: usize) -> Option<Tree<'t>> {
        if depth > DEEPEST {
            return None;
        }
        if self.takes('{') {
            let mut entries = Vec::new();
            if self.takes('}') {
                return Some(Tree::Table(entries));
            }
            loop {
                self.skip_space();
                let key = self.string()?;
                if !self.takes(':') {
                    return None;
                }
                entries.push((key, self.value(depth + 1)?));
                if self.takes('}') {
                    return Some(Tree::Table(entries));
                }
                if !self.takes(',') {
                    return None;
                }
            }
        }
        if self.takes('[') {
            let mut items = Vec::new();
            if self.takes(']') {
                return Some(Tree::List(items));
            }
            loop {
                items.push(self.value(depth + 1)?);
                if self.takes(']') {
                    return Some(Tree::List(items));
                }
                if !self.takes(',') {
                    return None;
                }
            }
        }
        self.skip_space();
        if self.rest().starts_with('"') {
            return self.string().map(Tree::Text);
        }
        let rest = self.rest();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let end = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).filter(|plain| !plain.is_empty()).map(Tree::Plain)
    }

    fn string(&mut self) -> Option<String> {
        let rest = self.rest();
        let mut bytes = rest.bytes().enumerate();
        if bytes.next()?.1 != b'"' {
            return None;
        }
        let mut escaped = false;
        for (at, byte) in bytes {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.at += at + 1;
                    return serde_json::from_str(rest.get(..=at)?).ok();
                }
                _ => {}
            }
        }
        None
    }
}

impl Tree<'_> {
    pub(super) fn write(&self, style: Style) -> String {
        let mut out = String::new();
        self.put(style, 0, &mut out);
        if style.newline {
            out.push('\n');
        }
        out
    }

    fn put(&self, style: Style, depth: usize, out: &mut String) {
        match self {
            Self::Text(text) => put_text(text, style, out),
            Self::Plain(text) => {
                let whole = text.trim_end_matches('0').strip_suffix('.').filter(|_| style.whole_numbers);
                out.push_str(whole.unwrap_or(text));
            }
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    between(at, style, depth + 1, out);
                    item.put(style, depth + 1, out);
                }
                close(items.is_empty(), style, depth, out);
                out.push(']');
            }
            Self::Table(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if style.sorted {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                out.push('{');
                for (at, (key, value)) in entries.iter().enumerate() {
                    between(at, style, depth + 1, out);
                    put_text(key, style, out);
                    out.push(':');
                    if style.colon_space {
                        out.push(' ');
                    }
                    value.put(style, depth + 1, out);
                }
                close(entries.is_empty(), style, depth, out);
                out.push('}');
            }
        }
    }
}

fn between(at: usize, style: Style, depth: usize, out: &mut String) {
    if at > 0 {
        out.push(',');
    }
    match style.indent {
        Some(width) => {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
        None if at > 0 && style.comma_space => out.push(' '),
        None => {}
    }
}

fn close(is_empty: bool, style: Style, depth: usize, out: &mut String) {
    if let (Some(width), false) = (style.indent, is_empty) {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
}

fn put_text(text: &str, style: Style, out: &mut String) {
    use std::fmt::Write as _;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '/' if style.slashes => out.push_str("\\/"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' '
                || (style.html && matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'))
                || (style.ascii && !c.is_ascii()) =>
            {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SENT: &str = "{\"z\":1.0,\"a\":[true,null,{}],\"é/\":\"<\\u00e9\\ud83d\\ude00\\n>\"}";

    #[test]
    fn every_style_is_the_library_s_own() {
        let tree = read(SENT).unwrap();
        let compact = Style::default();
        assert_eq!(tree.write(compact), "{\"z\":1.0,\"a\":[true,null,{}],\"é/\":\"<é😀\\n>\"}");
        let python = Style { comma_space: true, colon_space: true, ascii: true, ..compact };
        assert_eq!(
            tree.write(python),
            "{\"z\": 1.0, \"a\": [true, null, {}], \"\\u00e9/\": \"<\\u00e9\\ud83d\\ude00\\n>\"}"
        );
        let php = Style { slashes: true, ascii: true, ..compact };
        assert!(tree.write(php).contains("\"\\u00e9\\/\""));
        let go = Style { html: true, newline: true, ..compact };
        assert!(tree.write(go).ends_with("\"\\u003cé😀\\n\\u003e\"}\n"));
        let sorted = Style { sorted: true, whole_numbers: true, ..compact };
        assert!(tree.write(sorted).starts_with("{\"a\":[true,null,{}],\"z\":1,"));
        let pretty = Style { indent: Some(2), colon_space: true, ..compact };
        assert!(tree.write(pretty).starts_with("{\n  \"z\": 1.0,\n  \"a\": [\n    true,\n    null,\n    {}\n  ],\n"));
    }

    #[test]
    fn what_is_no_json_or_too_deep_is_left_alone() {
        for text in ["", "{", "{\"a\"}", "[1,]", "{} x", "\"a", &"[".repeat(100_000)] {
            assert!(read(text).is_none(), "{text:.20}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_written_reads_the_same(text in "[\\[\\]{}:,\"\\\\a-z0-9 é/]{0,40}") {
            if let Some(tree) = read(&text) {
                for style in [Style::default(), Style { ascii: true, slashes: true, html: true, indent: Some(1), ..Style::default() }] {
                    let written = tree.write(style);
                    let again = read(&written);
                    prop_assert_eq!(again.as_ref(), Some(&tree));
                }
            }
        }
    }
}
