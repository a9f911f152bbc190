//! What does the request say under the name of a component? (RFC 9421, section 2)
//!
//! Invariant: a component that the request does not have exactly once, or that several readers would spell differently,
//! has no value. The URL is the one that the sender was told: behind a proxy that is `public_url`, never the `Host` that
//! happens to arrive here; `host` itself is a header like others, and must agree with it.

use std::borrow::Cow;

use http::HeaderName;
use http::header::HOST;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Flaw;
use super::structured::{Bare, Dictionary, Item, Parameters};
use crate::delivery::Delivery;

/// RFC 9421, 2.2.8: what `application/x-www-form-urlencoded` leaves as it is, and a space is `%20`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// The URL as the sender was told it, in its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) scheme: &'a str,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// A URL that was told without a query takes the request's own, as senders append parameters to it.
    pub(super) fn of(delivery: &'a Delivery, public_url: Option<&'a str>) -> Self {
        let seen = Self {
            scheme: delivery.scheme,
            authority: &delivery.authority,
            path: &delivery.path,
            query: delivery.query.as_deref(),
        };
        let Some((scheme, rest)) = public_url.and_then(|url| url.split_once("://")) else { return seen };
        let end_of_authority = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end_of_authority).unwrap_or((rest, ""));
        let (path, query) = rest.split_once('?').map_or((rest, seen.query), |(path, query)| (path, Some(query)));
        Self { scheme, authority, path, query }
    }

    /// In lower case and without the scheme's own port.
    fn normal_authority(&self) -> String {
        self.normal(self.authority)
    }

    fn normal(&self, authority: &str) -> String {
        let authority = authority.to_ascii_lowercase();
        let own_port = match self.scheme {
            "https" => ":443",
            "http" => ":80",
            _ => "",
        };
        authority.strip_suffix(own_port).map(str::to_owned).unwrap_or(authority)
    }

    fn path(&self) -> &str {
        if self.path.is_empty() { "/" } else { self.path }
    }

    /// What stands in the first line of an HTTP/1.1 request.
    pub(super) fn request_target(&self) -> String {
        match self.query {
            Some(query) => format!("{}?{query}", self.path()),
            None => self.path().to_owned(),
        }
    }

    /// One parameter, in the one spelling that RFC 9421 gives it. `name` is encoded the same way.
    fn query_parameter(&self, name: &str) -> Result<String, Flaw> {
        let mut values = self.query.unwrap_or_default().split('&').filter_map(|field| {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            (form_normal(key).as_deref() == Some(name)).then(|| form_normal(value))
        });
        match (values.next(), values.next()) {
            // Readers differ in which of two they take.
            (Some(Some(value)), None) => Ok(value),
            _ => Err(Flaw::Malformed("a covered query parameter is missing, doubled or not text")),
        }
    }
}

fn form_normal(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
    Some(utf8_percent_encode(&decoded, FORM).to_string())
}

/// Writes the component's value behind its identifier.
pub(super) fn write_value(
    item: &Item<'_>,
    delivery: &Delivery,
    target: &Target<'_>,
    out: &mut String,
) -> Result<(), Flaw> {
    let Bare::Text(name) = &item.value else { return Err(Flaw::Malformed("a component's name is not a string")) };
    match name.strip_prefix('@') {
        Some(derived) => write_derived(derived, &item.parameters, delivery, target, out),
        None => write_field(name, &item.parameters, delivery, target, out),
    }
}

/// Can a request have it? For the configuration, which requires components before there is a request.
pub(super) fn is_possible(item: &Item<'_>) -> bool {
    let Bare::Text(name) = &item.value else { return false };
    let mut parameters = item.parameters.iter();
    let (first, second) = (parameters.next(), parameters.next());
    match name.strip_prefix('@') {
        Some("query-param") => matches!((first, second), (Some(("name", Bare::Text(_))), None)),
        Some(derived) => {
            let known = ["method", "scheme", "authority", "path", "query", "request-target", "target-uri"];
            first.is_none() && known.contains(&derived)
        }
        None => {
            let is_field = HeaderName::from_bytes(name.as_bytes()).is_ok_and(|header| header.as_str() == name);
            let fits = match first {
                None | Some(("bs", Bare::Boolean(true)) | ("key", Bare::Text(_))) => true,
                Some(("sf", Bare::Boolean(true))) => is_dictionary(name),
                Some(_) => false,
            };
            is_field && fits && second.is_none()
        }
    }
}

fn write_derived(
    name: &str,
    parameters: &Parameters<'_>,
    delivery: &Delivery,
    target: &Target<'_>,
    out: &mut String,
) -> Result<(), Flaw> {
    if name == "query-param" {
        let mut parameters = parameters.iter();
        let (Some(("name", Bare::Text(wanted))), None) = (parameters.next(), parameters.next()) else {
            return Err(Flaw::Malformed("@query-param takes a name and nothing else"));
        };
        out.push_str(&target.query_parameter(wanted)?);
        return Ok(());
    }
    if !parameters.is_empty() {
        return Err(Flaw::Malformed("a derived component with a parameter that it does not take"));
    }
    match name {
        "method" => out.push_str(delivery.method.as_str()),
        "scheme" => out.push_str(target.scheme),
        "authority" => out.push_str(&target.normal_authority()),
        "path" => out.push_str(target.path()),
        "query" => {
            out.push('?');
            out.push_str(target.query.unwrap_or_default());
        }
        "request-target" => out.push_str(&target.request_target()),
        "target-uri" => {
            out.push_str(target.scheme);
            out.push_str("://");
            out.push_str(target.authority);
            out.push_str(&target.request_target());
        }
        // `@status` is a response's, `@signature-params` is no component; others are not known.
        _ => return Err(Flaw::Malformed("a derived component that a request does not have")),
    }
    Ok(())
}

fn write_field(
    name: &str,
    parameters: &Parameters<'_>,
    delivery: &Delivery,
    target: &Target<'_>,
    out: &mut String,
) -> Result<(), Flaw> {
    // RFC 9421 has names in lower case alone; another spelling would be another identifier for the same field.
    let lower = HeaderName::from_bytes(name.as_bytes()).ok().filter(|header| header.as_str() == name);
    let header = lower.ok_or(Flaw::Malformed("a component's name is not a field's name in lower case"))?;
    let mut parameters = parameters.iter();
    match (parameters.next(), parameters.next()) {
        (None, _) => {
            out.push_str(&field(delivery, target, &header)?);
            Ok(())
        }
        (Some(("bs", Bare::Boolean(true))), None) => {
            // The receiver that is named has to be ours in this spelling too.
            if header == HOST {
                field(delivery, target, &header)?;
            }
            write_bytes(delivery, &header, out)
        }
        (Some(("key", Bare::Text(key))), None) => {
            let text = field(delivery, target, &header)?;
            let dictionary =
                Dictionary::parse(&text).ok_or(Flaw::Malformed("a field covered by key is no dictionary"))?;
            let member = dictionary.find(key).ok_or(Flaw::Missing("a covered member of a field is missing"))?;
            member.write(out);
            Ok(())
        }
        // Whether a field is an item, a list or a dictionary is its own definition's to say.
        (Some(("sf", Bare::Boolean(true))), None) if is_dictionary(name) => {
            let text = field(delivery, target, &header)?;
            Dictionary::parse(&text).ok_or(Flaw::Malformed("a field covered by sf is no dictionary"))?.write(out);
            Ok(())
        }
        // `req` is a response's; trailers (`tr`) end at the gateway.
        _ => Err(Flaw::Malformed("a parameter of a component that is not known, or not for this field")),
    }
}

fn is_dictionary(name: &str) -> bool {
    ["content-digest", "repr-digest", "want-content-digest", "signature", "signature-input", "priority"].contains(&name)
}

/// All lines of the field, as one.
pub(super) fn field<'a>(delivery: &'a Delivery, target: &Target<'a>, name: &HeaderName) -> Result<Cow<'a, str>, Flaw> {
    if *name == HOST {
        // HTTP/2 has none and names the authority instead. The receiver that was told and the one that is named have to
        // be the same: what was signed for another does not pass here under the other's name.
        if target.normal_authority() != target.normal(&delivery.authority) {
            return Err(Flaw::BadSignature("the Host that arrived is not the one of `public_url`"));
        }
        return Ok(Cow::Borrowed(&delivery.authority));
    }
    let mut lines = delivery.headers.get_all(name).map(|value| value.to_str().map(str::trim));
    let first = lines.next().ok_or(Flaw::Missing("a header that the signature covers is missing"))?;
    const UNREADABLE: Flaw = Flaw::Malformed("a header that the signature covers is not visible ASCII");
    let mut text = Cow::Borrowed(first.map_err(|_| UNREADABLE)?);
    for line in lines {
        let line = line.map_err(|_| UNREADABLE)?;
        text.to_mut().push_str(", ");
        text.to_mut().push_str(line);
    }
    Ok(text)
}

/// Each line by itself as a byte sequence: for fields whose commas are not separators.
fn write_bytes(delivery: &Delivery, name: &HeaderName, out: &mut String) -> Result<(), Flaw> {
    let mut separator = "";
    for line in delivery.headers.get_all(name) {
        out.push_str(separator);
        let item =
            Item { value: Bare::Bytes(line.as_bytes().trim_ascii().to_vec()), parameters: Parameters::default() };
        item.write(out);
        separator = ", ";
    }
    match separator {
        "" => Err(Flaw::Missing("a header that the signature covers is missing")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use bytes::Bytes;
    use http::{HeaderValue, Method};

    fn delivery(headers: &[(&'static str, &[u8])]) -> Delivery {
        let mut map = Fields::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        Delivery {
            method: Method::POST,
            scheme: "https",
            authority: "WWW.Example.com:443".into(),
            path: "/path".into(),
            query: Some("param=value&baz=batman&qux=".into()),
            headers: map,
            body: Bytes::new(),
        }
    }

    fn said(component: &str, delivery: &Delivery, public_url: Option<&str>) -> Result<String, Flaw> {
        let mut out = String::new();
        let item = Item::parse(component).expect("an item");
        write_value(&item, delivery, &Target::of(delivery, public_url), &mut out).map(|()| out)
    }

    fn is_malformed(component: &str, delivery: &Delivery) -> bool {
        matches!(said(component, delivery, None), Err(Flaw::Malformed(_)))
    }

    #[test]
    fn derived_components_say_what_rfc_9421_says() {
        let request = delivery(&[]);
        for (component, expected) in [
            (r#""@method""#, "POST"),
            (r#""@authority""#, "www.example.com"),
            (r#""@scheme""#, "https"),
            (r#""@path""#, "/path"),
            (r#""@query""#, "?param=value&baz=batman&qux="),
            (r#""@request-target""#, "/path?param=value&baz=batman&qux="),
            (r#""@query-param";name="baz""#, "batman"),
            (r#""@query-param";name="qux""#, ""),
        ] {
            assert_eq!(said(component, &request, None).as_deref(), Ok(expected), "{component}");
        }
        let bare = Delivery { query: None, authority: "example.com:8443".into(), path: "/".into(), ..request };
        assert_eq!(said(r#""@query""#, &bare, None).unwrap(), "?");
        assert_eq!(said(r#""@target-uri""#, &bare, None).unwrap(), "https://example.com:8443/");
        assert_eq!(said(r#""@authority""#, &bare, None).unwrap(), "example.com:8443");
    }

    /// The examples of RFC 9421, section 2.2.8.
    #[test]
    fn a_query_parameter_has_one_spelling() {
        let query =
            "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something";
        let request = Delivery { query: Some(query.into()), ..delivery(&[]) };
        for (name, expected) in [
            ("var", "this%20is%20a%20big%0Amultiline%20value"),
            ("bar", "with%20plus%20whitespace"),
            ("fa%C3%A7ade%22%3A%20", "something"),
        ] {
            let component = format!(r#""@query-param";name="{name}""#);
            assert_eq!(said(&component, &request, None).as_deref(), Ok(expected), "{name}");
        }
    }

    #[test]
    fn a_query_parameter_that_is_missing_or_doubled_has_no_value() {
        let request = Delivery { query: Some("a=1&b=2&b=2&c=%FF&d=1&%64=2".into()), ..delivery(&[]) };
        assert_eq!(said(r#""@query-param";name="a""#, &request, None).as_deref(), Ok("1"));
        for component in [
            r#""@query-param";name="b""#,
            r#""@query-param";name="c""#,
            r#""@query-param";name="d""#,
            r#""@query-param";name="e""#,
            r#""@query-param""#,
            r#""@query-param";name=a"#,
            r#""@query-param";name="a";req"#,
        ] {
            assert!(is_malformed(component, &request), "{component}");
        }
    }

    #[test]
    fn the_url_is_the_one_that_the_sender_was_told() {
        let request = delivery(&[("host", b"10.0.0.7")]);
        let told = Some("https://hooks.example.org/in");
        assert_eq!(said(r#""@authority""#, &request, told).unwrap(), "hooks.example.org");
        assert!(matches!(said(r#""host""#, &request, told), Err(Flaw::BadSignature(_))));
        let kept = Delivery { authority: "Hooks.Example.org:443".into(), ..request.clone() };
        assert_eq!(said(r#""host""#, &kept, told).unwrap(), "Hooks.Example.org:443");
        assert_eq!(said(r#""@path""#, &request, told).unwrap(), "/in");
        assert_eq!(
            said(r#""@target-uri""#, &request, told).unwrap(),
            "https://hooks.example.org/in?param=value&baz=batman&qux="
        );
        assert_eq!(said(r#""@target-uri""#, &request, Some("http://h?a=b")).unwrap(), "http://h/?a=b");
    }

    #[test]
    fn lines_of_a_field_are_trimmed_and_joined() {
        let request = delivery(&[("x-list", b" a "), ("x-list", b"b"), ("x-empty", b"")]);
        assert_eq!(said(r#""x-list""#, &request, None).unwrap(), "a, b");
        assert_eq!(said(r#""x-empty""#, &request, None).unwrap(), "");
        assert_eq!(said(r#""x-list";bs"#, &request, None).unwrap(), ":YQ==:, :Yg==:");
        assert_eq!(
            said(r#""x-gone""#, &request, None),
            Err(Flaw::Missing("a header that the signature covers is missing"))
        );
        assert!(matches!(said(r#""x-gone";bs"#, &request, None), Err(Flaw::Missing(_))));
    }

    #[test]
    fn members_of_a_dictionary_are_covered_by_themselves() {
        let request =
            delivery(&[("x-dict", b"a=1,    b=2;x=1;y=2,   c=(a   b   c), d"), ("content-digest", b"x=:AAE:")]);
        for (component, expected) in [
            (r#""x-dict";key="a""#, "1"),
            (r#""x-dict";key="b""#, "2;x=1;y=2"),
            (r#""x-dict";key="c""#, "(a b c)"),
            (r#""x-dict";key="d""#, "?1"),
            (r#""content-digest";sf"#, "x=:AAE=:"),
        ] {
            assert_eq!(said(component, &request, None).as_deref(), Ok(expected), "{component}");
        }
        assert!(matches!(said(r#""x-dict";key="e""#, &request, None), Err(Flaw::Missing(_))));
        assert!(is_malformed(r#""x-dict";sf"#, &request), "nobody says what x-dict is");
    }

    #[test]
    fn what_a_request_does_not_have_or_spells_otherwise_is_refused() {
        let request = delivery(&[("date", b"now"), ("x-raw", b"\xff")]);
        assert_eq!(said(r#""date""#, &request, None).unwrap(), "now");
        for component in [
            r#""Date""#,
            r#""da te""#,
            r#""""#,
            "date",
            r#""@status""#,
            r#""@signature-params""#,
            r#""@unknown""#,
            r#""@Method""#,
            r#""@method";req"#,
            r#""@path";tr"#,
            r#""date";req"#,
            r#""date";tr"#,
            r#""date";bs;sf"#,
            r#""date";bs=?0"#,
            r#""date";unknown"#,
            r#""x-raw""#,
        ] {
            assert!(is_malformed(component, &request), "{component}");
        }
    }
}
