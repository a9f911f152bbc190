//! A certificate's subject as a list of parts, written and read as RFC 4514 says.
//!
//! Invariant: names are compared part by part and never as text. A value may hold a comma and an equals sign, so one
//! part can read like two, and a CA that lets its clients choose one part of their name would let them choose all.

use std::fmt::{self, Write as _};
use x509_parser::prelude::{AttributeTypeAndValue, X509Name};

/// The parts in the order of the certificate; a part may have several attributes, which have no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DistinguishedName(Vec<Vec<Attribute>>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    /// One of `TYPES`, or a dotted OID.
    kind: String,
    value: String,
}

/// The names of RFC 4514 §3, and what openssl calls others that are in use. The first spelling is ours.
const TYPES: [(&str, &[&str]); 15] = [
    ("2.5.4.3", &["CN"]),
    ("2.5.4.10", &["O"]),
    ("2.5.4.11", &["OU"]),
    ("2.5.4.6", &["C"]),
    ("2.5.4.7", &["L"]),
    ("2.5.4.8", &["ST", "S"]),
    ("2.5.4.9", &["STREET"]),
    ("2.5.4.4", &["SN"]),
    ("2.5.4.42", &["GN"]),
    ("2.5.4.5", &["serialNumber"]),
    ("2.5.4.12", &["title"]),
    ("2.5.4.97", &["organizationIdentifier"]),
    ("0.9.2342.19200300.100.1.25", &["DC"]),
    ("0.9.2342.19200300.100.1.1", &["UID"]),
    ("1.2.840.113549.1.9.1", &["emailAddress", "E"]),
];

impl DistinguishedName {
    pub(super) fn of(name: &X509Name<'_>) -> Self {
        Self(name.iter_rdn().map(|part| sorted(part.iter().map(Attribute::of).collect())).collect())
    }

    /// `CN=sender,O=Example\, Inc.`, or as openssl prints it: with spaces, quotes and in the other order.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { rest: text };
        let mut parts = Vec::new();
        let mut part = Vec::new();
        loop {
            part.push(reader.attribute()?);
            match reader.separator()? {
                Some('+') => {}
                Some(_) => parts.push(sorted(std::mem::take(&mut part))),
                None => break,
            }
        }
        parts.push(sorted(part));
        Ok(Self(parts))
    }

    /// The same parts, in one order or the other: RFC 4514 begins at the end that X.509 stops at.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.iter().eq(other.0.iter()) || self.0.iter().eq(other.0.iter().rev())
    }
}

fn sorted(mut part: Vec<Attribute>) -> Vec<Attribute> {
    part.sort();
    part
}

impl Attribute {
    fn of(attribute: &AttributeTypeAndValue<'_>) -> Self {
        let oid = attribute.attr_type().to_id_string();
        let known = TYPES.iter().find(|(known, _)| *known == oid).and_then(|(_, names)| names.first());
        let kind = known.map_or(oid, |name| (*name).to_owned());
        let value = match attribute.as_str() {
            Ok(text) => text.to_owned(),
            Err(_) => format!("#{}", hex::encode(attribute.as_slice())),
        };
        Self { kind, value }
    }
}

/// RFC 4514 §2, in ASCII: what is not, is written byte for byte, so that a header or a log line can hold it.
impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, part) in self.0.iter().rev().enumerate() {
            if position > 0 {
                f.write_char(',')?;
            }
            for (position, Attribute { kind, value }) in part.iter().enumerate() {
                if position > 0 {
                    f.write_char('+')?;
                }
                write!(f, "{kind}=")?;
                let last = value.len().saturating_sub(1);
                for (position, byte) in value.bytes().enumerate() {
                    match byte {
                        b' ' if position == 0 || position == last => f.write_str("\\ ")?,
                        b'#' if position == 0 => f.write_str("\\#")?,
                        b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                        b' '..=b'~' => f.write_char(char::from(byte))?,
                        _ => write!(f, "\\{byte:02X}")?,
                    }
                }
            }
        }
        Ok(())
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn attribute(&mut self) -> Result<Attribute, String> {
        let wanted = || "is not a whole subject like \"CN=sender,O=Example\"".to_owned();
        let (name, rest) = self.rest.split_once('=').ok_or_else(wanted)?;
        self.rest = rest.trim_start_matches(' ');
        let name = name.trim_matches(' ');
        let is_oid = name.contains('.') && name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let known = TYPES
            .iter()
            .find(|(oid, names)| *oid == name || names.iter().any(|known| known.eq_ignore_ascii_case(name)))
            .and_then(|(_, names)| names.first());
        let kind = match known {
            Some(known) => (*known).to_owned(),
            None if is_oid => name.to_owned(),
            None => return Err(format!("{name:?} is no attribute of a subject that is known here; write its OID")),
        };
        Ok(Attribute { kind, value: self.value()? })
    }

    fn value(&mut self) -> Result<String, String> {
        let quoted = self.rest.starts_with('"');
        let mut bytes = Vec::new();
        // What an escape made is kept, a space at the end is not.
        let mut kept = 0;
        let mut chars = self.rest.char_indices().skip(usize::from(quoted));
        let mut end = self.rest.len();
        let mut closed = !quoted;
        while let Some((at, c)) = chars.next() {
            match c {
                '"' if quoted => {
                    (end, closed) = (at + 1, true);
                    break;
                }
                ',' | '+' | ';' if !quoted => {
                    end = at;
                    break;
                }
                '\\' => {
                    let (_, first) = chars.next().ok_or("ends in a `\\`")?;
                    let pair = first.to_digit(16).zip(chars.clone().next().and_then(|(_, second)| second.to_digit(16)));
                    match pair {
                        Some((high, low)) => {
                            chars.next();
                            bytes.extend(u8::try_from(high * 16 + low));
                        }
                        None => bytes.extend(first.encode_utf8(&mut [0; 4]).bytes()),
                    }
                    kept = bytes.len();
                }
                c => {
                    bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                    if c != ' ' || quoted {
                        kept = bytes.len();
                    }
                }
            }
        }
        if !closed {
            return Err("has a quote that is not closed".to_owned());
        }
        self.rest = self.rest.get(end..).unwrap_or_default();
        bytes.truncate(kept);
        String::from_utf8(bytes).map_err(|_| "has an escape that makes no UTF-8".to_owned())
    }

    fn separator(&mut self) -> Result<Option<char>, String> {
        self.rest = self.rest.trim_start_matches(' ');
        let Some(c) = self.rest.chars().next() else { return Ok(None) };
        if !matches!(c, ',' | '+' | ';') {
            return Err("has something behind a quoted value".to_owned());
        }
        self.rest = self.rest.get(1..).unwrap_or_default();
        Ok(Some(c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DistinguishedName {
        DistinguishedName::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn one_name_has_many_spellings() {
        let same = name("CN=sender,O=Example\\, Inc.");
        for text in [
            "cn=sender, o=Example\\2C Inc.",
            "O = \"Example, Inc.\", CN = sender",
            "2.5.4.10=Example\\, Inc.,CN=sender",
            "O=Example\\, Inc.;CN=sender ",
        ] {
            assert!(name(text).is(&same), "{text}");
        }
        assert!(name("CN=a+UID=b,O=c").is(&name("UID=b+CN=a,O=c")));
        assert!(name("emailAddress=a@b").is(&name("E=a@b")));
    }

    #[test]
    fn other_names_are_others() {
        let one = name("CN=sender,O=Example");
        for text in [
            "CN=sender",
            "CN=sender+O=Example",
            "CN=sender\\,O=Example",
            "CN=Sender,O=Example",
            "CN=sender,O=Example,C=DE",
            "OU=sender,O=Example",
            "CN=sender,O=Example\\ ",
        ] {
            assert!(!name(text).is(&one), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in
            ["CN=sender,O=Example\\, Inc.", "CN=\\ a\\ ,O=\\#b\\+\\\"\\\\", "CN=\\C3\\A4\\0A,1.2.3=x", "CN=a+UID=b"]
        {
            // The order of a certificate is the other one.
            let mut read = name(text);
            read.0.reverse();
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "sender", "CN=a,", "CN=a,b", "XY=a", "CN=\"a", "CN=\"a\" b", "CN=a\\", "CN=\\FF"] {
            assert!(DistinguishedName::parse(text).is_err(), "{text}");
        }
    }
}
