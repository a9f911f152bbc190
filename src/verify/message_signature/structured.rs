//! Structured fields (RFC 8941) as signatures use them: dictionaries of items and inner lists, and how they are written.
//!
//! Invariant: one value, one reading. What RFC 8941 lets a receiver settle by taking the last (a name that stands there
//! twice, among members or parameters) is refused here, for the signer may have meant the first; so are stray bits behind
//! base64. What is written is the canonical form of what was read, in the order in which it was read. Numbers of members,
//! items and parameters are bounded.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::verify::key::BASE64;

/// Sixteen signatures of the longest algorithm with their labels, or as many lists of components, fit several times.
const MAX_TEXT: usize = 16 * 1024;
pub(super) const MAX_MEMBERS: usize = 16;
const MAX_ITEMS: usize = 64;
const MAX_PARAMETERS: usize = 16;
/// RFC 8941 bounds integers to 15 digits and decimals to 12 with 3 behind the point.
const MAX_DIGITS: usize = 15;
const MAX_WHOLE_DIGITS: usize = 12;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bare<'t> {
    Integer(i64),
    /// In thousandths.
    Decimal(i64),
    Text(Cow<'t, str>),
    Token(&'t str),
    Bytes(Vec<u8>),
    Boolean(bool),
}

/// In their order; each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters<'t>(Vec<(&'t str, Bare<'t>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item<'t> {
    pub(super) value: Bare<'t>,
    pub(super) parameters: Parameters<'t>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InnerList<'t> {
    pub(super) items: Vec<Item<'t>>,
    pub(super) parameters: Parameters<'t>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member<'t> {
    Item(Item<'t>),
    List(InnerList<'t>),
}

/// In their order; each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dictionary<'t>(Vec<(&'t str, Member<'t>)>);

impl<'t> Dictionary<'t> {
    /// `None` for what is no dictionary, names something twice or is larger than anything that signers send.
    pub(super) fn parse(text: &'t str) -> Option<Self> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let mut reader = Reader { rest: text.trim_matches(' ') };
        let mut members: Vec<(&str, Member<'_>)> = Vec::new();
        while !reader.rest.is_empty() {
            let name = reader.key()?;
            let member = match reader.eat('=') {
                true => reader.member()?,
                false => Member::Item(Item { value: Bare::Boolean(true), parameters: reader.parameters()? }),
            };
            if members.len() == MAX_MEMBERS || members.iter().any(|(known, _)| *known == name) {
                return None;
            }
            members.push((name, member));
            reader.skip_blanks();
            if reader.rest.is_empty() {
                break;
            }
            let separated = reader.eat(',');
            reader.skip_blanks();
            if !separated || reader.rest.is_empty() {
                return None;
            }
        }
        Some(Self(members))
    }

    pub(super) fn find(&self, name: &str) -> Option<&Member<'t>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, member)| member)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'t str, &Member<'t>)> {
        self.0.iter().map(|(name, member)| (*name, member))
    }

    pub(super) fn write(&self, out: &mut String) {
        for (index, (name, member)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            out.push_str(name);
            match member {
                // A dictionary says `name` for true, not `name=?1`.
                Member::Item(Item { value: Bare::Boolean(true), parameters }) => parameters.write(out),
                member => {
                    out.push('=');
                    member.write(out);
                }
            }
        }
    }
}

impl<'t> Parameters<'t> {
    pub(super) fn find(&self, name: &str) -> Option<&Bare<'t>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'t str, &Bare<'t>)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    pub(super) fn write(&self, out: &mut String) {
        for (name, value) in &self.0 {
            out.push(';');
            out.push_str(name);
            if *value != Bare::Boolean(true) {
                out.push('=');
                value.write(out);
            }
        }
    }
}

impl<'t> FromIterator<(&'t str, Bare<'t>)> for Parameters<'t> {
    fn from_iter<I: IntoIterator<Item = (&'t str, Bare<'t>)>>(parameters: I) -> Self {
        Self(parameters.into_iter().collect())
    }
}

impl<'t> Item<'t> {
    /// One item and nothing behind it.
    pub(super) fn parse(text: &'t str) -> Option<Self> {
        let mut reader = Reader { rest: text };
        let item = reader.item()?;
        (text.len() <= MAX_TEXT && reader.rest.is_empty()).then_some(item)
    }

    pub(super) fn write(&self, out: &mut String) {
        self.value.write(out);
        self.parameters.write(out);
    }
}

impl InnerList<'_> {
    pub(super) fn write(&self, out: &mut String) {
        out.push('(');
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                out.push(' ');
            }
            item.write(out);
        }
        out.push(')');
        self.parameters.write(out);
    }
}

impl Member<'_> {
    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Item(item) => item.write(out),
            Self::List(list) => list.write(out),
        }
    }
}

impl Bare<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Integer(number) => out.push_str(&number.to_string()),
            Self::Decimal(thousandths) => {
                let sign = if *thousandths < 0 { "-" } else { "" };
                let (whole, fraction) = (thousandths.unsigned_abs() / 1000, thousandths.unsigned_abs() % 1000);
                let fraction = format!("{fraction:03}");
                let fraction = match fraction.trim_end_matches('0') {
                    "" => "0",
                    shorter => shorter,
                };
                out.push_str(&format!("{sign}{whole}.{fraction}"));
            }
            Self::Text(text) => {
                out.push('"');
                for character in text.chars() {
                    if matches!(character, '"' | '\\') {
                        out.push('\\');
                    }
                    out.push(character);
                }
                out.push('"');
            }
            Self::Token(token) => out.push_str(token),
            Self::Bytes(bytes) => {
                out.push(':');
                STANDARD.encode_string(bytes, out);
                out.push(':');
            }
            Self::Boolean(yes) => out.push_str(if *yes { "?1" } else { "?0" }),
        }
    }
}

/// What is left to read.
struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn eat(&mut self, wanted: char) -> bool {
        let found = self.rest.strip_prefix(wanted);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'t str {
        let end = self.rest.bytes().position(|byte| !wanted(byte)).unwrap_or(self.rest.len());
        // Whatever is wanted is ASCII, so that the end lies between characters.
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or(("", self.rest));
        self.rest = rest;
        taken
    }

    fn key(&mut self) -> Option<&'t str> {
        let starts = self.rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '*');
        let key = self.take_while(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.' | b'*')
        });
        starts.then_some(key)
    }

    fn member(&mut self) -> Option<Member<'t>> {
        if !self.eat('(') {
            return self.item().map(Member::Item);
        }
        let mut items = Vec::new();
        loop {
            self.skip_spaces();
            if self.eat(')') {
                break;
            }
            if items.len() == MAX_ITEMS {
                return None;
            }
            items.push(self.item()?);
            if !self.rest.starts_with([' ', ')']) {
                return None;
            }
        }
        Some(Member::List(InnerList { items, parameters: self.parameters()? }))
    }

    fn item(&mut self) -> Option<Item<'t>> {
        Some(Item { value: self.bare()?, parameters: self.parameters()? })
    }

    fn parameters(&mut self) -> Option<Parameters<'t>> {
        let mut parameters: Vec<(&str, Bare<'_>)> = Vec::new();
        while self.eat(';') {
            self.skip_spaces();
            let name = self.key()?;
            let value = if self.eat('=') { self.bare()? } else { Bare::Boolean(true) };
            if parameters.len() == MAX_PARAMETERS || parameters.iter().any(|(known, _)| *known == name) {
                return None;
            }
            parameters.push((name, value));
        }
        Some(Parameters(parameters))
    }

    fn bare(&mut self) -> Option<Bare<'t>> {
        match self.rest.bytes().next()? {
            b'"' => self.text().map(Bare::Text),
            b':' => {
                let (encoded, rest) = self.rest.get(1..)?.split_once(':')?;
                self.rest = rest;
                BASE64.decode(encoded).ok().map(Bare::Bytes)
            }
            b'?' => {
                let (boolean, rest) = self.rest.split_at_checked(2)?;
                self.rest = rest;
                match boolean {
                    "?1" => Some(Bare::Boolean(true)),
                    "?0" => Some(Bare::Boolean(false)),
                    _ => None,
                }
            }
            b'-' | b'0'..=b'9' => self.number(),
            first if first.is_ascii_alphabetic() || first == b'*' => Some(Bare::Token(
                self.take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)),
            )),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<Cow<'t, str>> {
        let inside = self.rest.strip_prefix('"')?;
        let mut unescaped: Option<String> = None;
        let mut characters = inside.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = inside.get(at + 1..)?;
                    return match unescaped {
                        Some(text) => Some(Cow::Owned(text)),
                        None => inside.get(..at).map(Cow::Borrowed),
                    };
                }
                '\\' => {
                    let (_, escaped) = characters.next().filter(|(_, escaped)| matches!(escaped, '"' | '\\'))?;
                    unescaped.get_or_insert(inside.get(..at)?.to_owned()).push(escaped);
                }
                ' '..='~' => {
                    if let Some(text) = &mut unescaped {
                        text.push(character);
                    }
                }
                _ => return None,
            }
        }
        None
    }

    fn number(&mut self) -> Option<Bare<'t>> {
        let sign = if self.eat('-') { -1 } else { 1 };
        let whole = self.take_while(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() > MAX_DIGITS {
            return None;
        }
        let magnitude: i64 = whole.parse().ok()?;
        if !self.eat('.') {
            return Some(Bare::Integer(sign * magnitude));
        }
        let fraction = self.take_while(|byte| byte.is_ascii_digit());
        if whole.len() > MAX_WHOLE_DIGITS || !(1..=3).contains(&fraction.len()) {
            return None;
        }
        let thousandths: i64 = format!("{fraction:0<3}").parse().ok()?;
        Some(Bare::Decimal(sign * (magnitude * 1000 + thousandths)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewritten(text: &str) -> Option<String> {
        let mut out = String::new();
        Dictionary::parse(text)?.write(&mut out);
        Some(out)
    }

    #[test]
    fn what_is_canonical_is_written_as_it_was_read() {
        for text in [
            r#"sig-b22=("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="k";tag="t""#,
            r#"a=();created=1;nonce="b3k2pp5k7z-50gnwp.yemd""#,
            "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:, sha-512=:AAEC:",
            r#"a, b;x, c=?0, d="q\"\\", e=tok/en:1, f=-12, g=1.5, h=(1 2.25;q=?0)"#,
            "",
        ] {
            assert_eq!(rewritten(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn another_spelling_is_written_in_the_one_canonical_form() {
        assert_eq!(
            rewritten(r#"  s=(  "a"   "b" );  created=007,	 t=?1;x=?1 "#).unwrap(),
            r#"s=("a" "b");created=7, t;x"#
        );
        assert_eq!(rewritten("a=1.50, b=-0, c=1.0, d=-0.125").unwrap(), "a=1.5, b=0, c=1.0, d=-0.125");
        assert_eq!(rewritten("a=:AAE:").unwrap(), "a=:AAE=:");
    }

    /// Where RFC 8941 takes the last of two, the signer may have meant the first.
    #[test]
    fn a_name_that_stands_there_twice_is_refused() {
        for text in ["a=1, a=2", "a=1;x=1;x=2", r#"a=("b";key="x";key="y")"#, "a, a"] {
            assert_eq!(rewritten(text), None, "{text}");
        }
        assert!(rewritten("a=1;x=1, b=1;x=1").is_some());
    }

    #[test]
    fn what_is_no_dictionary_is_refused() {
        for text in [
            "A=1",
            "a=",
            "a=1,",
            ",a=1",
            "a=1 b=2",
            "a=(1",
            "a=(1)2",
            "a=(1,2)",
            "a=(\"x\"\"y\")",
            "a=(\t1)",
            "a=\"open",
            "a=\"bad\\escape\"",
            "a=\"é\"",
            "a=\"line\nbreak\"",
            "a=:no end",
            "a=:QR==:",
            "a=:a b:",
            "a=?2",
            "a=?",
            "a=-",
            "a=1.",
            "a=.5",
            "a=1.2345",
            "a=1234567890123456",
            "a=1234567890123.5",
            "a=+1",
            "a=@1659578233",
            "a=%\"x\"",
            "a=1;",
            "a=1;X=1",
            "a==1",
            "é=1",
            "a=é",
            "a=1\n",
        ] {
            assert_eq!(rewritten(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_is_read_without_a_bound() {
        let list = |count: usize| format!("a=({})", "1 ".repeat(count));
        assert!(rewritten(&list(MAX_ITEMS)).is_some());
        assert_eq!(rewritten(&list(MAX_ITEMS + 1)), None);
        let members = |count: usize| (0..count).map(|i| format!("a{i}=1")).collect::<Vec<_>>().join(", ");
        assert!(rewritten(&members(MAX_MEMBERS)).is_some());
        assert_eq!(rewritten(&members(MAX_MEMBERS + 1)), None);
        let parameters = |count: usize| format!("a=1{}", (0..count).map(|i| format!(";p{i}")).collect::<String>());
        assert!(rewritten(&parameters(MAX_PARAMETERS)).is_some());
        assert_eq!(rewritten(&parameters(MAX_PARAMETERS + 1)), None);
        assert_eq!(rewritten(&format!("a=\"{}\"", "x".repeat(MAX_TEXT))), None);
    }

    #[test]
    fn one_item_has_nothing_behind_it() {
        assert!(Item::parse(r#""@query-param";name="a""#).is_some());
        assert!(Item::parse(r#""a" "b""#).is_none());
        assert!(Item::parse("").is_none());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_and_what_is_written_reads_the_same(
            text in "\\PC{0,60}|([a-c*]=?[(:?\"@;,=. 0-9a-z\\\\)-]{0,12},? ?){0,6}"
        ) {
            if let Some(dictionary) = Dictionary::parse(&text) {
                let mut written = String::new();
                dictionary.write(&mut written);
                let again = Dictionary::parse(&written);
                prop_assert_eq!(again.as_ref(), Some(&dictionary), "{}", written);
            }
        }
    }
}
