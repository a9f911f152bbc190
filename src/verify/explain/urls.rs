//! Schemes that sign the URL: the one the provider was told, and its near relatives.

use http::uri::Authority;

use super::Change;
use super::hints::Search;
use crate::delivery::Delivery;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    scheme: String,
    host: String,
    port: Option<u16>,
    path: String,
    query: Option<String>,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at_checked(end)?;
        let authority: Authority = authority.parse().ok()?;
        let (path, query) = match behind.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (behind, None),
        };
        Some(Self {
            scheme: scheme.to_owned(),
            host: authority.host().to_owned(),
            port: authority.port_u16(),
            path: path.to_owned(),
            query,
        })
    }

    fn seen(delivery: &Delivery) -> Option<Self> {
        let seen = Self::parse(&format!("{}://{}{}", delivery.scheme, delivery.authority, delivery.path))?;
        Some(Self { query: delivery.query.clone(), ..seen })
    }

    fn base(&self) -> String {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{}{port}{}", self.scheme, self.host, self.path)
    }

    /// Which parts differ, the most telling first.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let mut parts = Vec::new();
        let without_slash = |path: &str| path.trim_end_matches('/').to_owned();
        if self.host != other.host {
            parts.push("url_host");
        }
        if self.scheme != other.scheme {
            parts.push("url_scheme");
        }
        if self.port != other.port {
            parts.push("url_port");
        }
        if self.path != other.path {
            let same = without_slash(&self.path) == without_slash(&other.path);
            parts.push(if same { "url_trailing_slash" } else { "url_path" });
        }
        if self.query != other.query {
            parts.push("url_query");
        }
        parts
    }
}

pub(super) fn try_all(search: &mut Search<'_>) {
    let original = search.case.delivery;
    let Some(seen) = Url::seen(original) else { return };
    let told = search.case.workshop.setting(search.case.source, "public_url").and_then(|text| Url::parse(&text));
    let told = told.map(|told| Url { query: told.query.clone().or_else(|| seen.query.clone()), ..told });
    let current = told.clone().unwrap_or_else(|| seen.clone());

    let mut candidates: Vec<Url> = Vec::new();
    for base in [Some(current.clone()), Some(seen.clone()), told].into_iter().flatten() {
        let mut paths = vec![base.path.clone(), format!("{}/", base.path)];
        paths.extend(base.path.strip_suffix('/').map(str::to_owned));
        for scheme in ["https", "http"] {
            for port in [base.port, None, Some(443), Some(80), seen.port] {
                for path in &paths {
                    for query in [base.query.clone(), None, seen.query.clone()] {
                        let candidate =
                            Url { scheme: scheme.to_owned(), port, path: path.clone(), query, ..base.clone() };
                        if !candidates.contains(&candidate) {
                            candidates.push(candidate);
                        }
                    }
                }
            }
        }
    }
    candidates.retain(|candidate| *candidate != current);
    candidates.sort_by_key(|candidate| candidate.differences(&current).len());
    for candidate in candidates {
        if search.is_done() {
            return;
        }
        let differences = candidate.differences(&current);
        let Some(kind) = differences.first().copied() else { continue };
        let base = candidate.base();
        // For what signs the path or the query by themselves, the request has them as well.
        let delivery = Delivery {
            scheme: if candidate.scheme == "https" { "https" } else { "http" },
            path: if candidate.path.is_empty() { "/".to_owned() } else { candidate.path.clone() },
            query: candidate.query.clone(),
            ..original.clone()
        };
        if let Some(passed) = search.passes_both(&Change::Set(&[("public_url", Some(base.as_str()))]), delivery) {
            let query = candidate.query.as_deref().map(|query| format!("?{query}")).unwrap_or_default();
            let says = format!("the sender signed the URL {base}{query}, and here it counts as {}", current.base());
            let try_this = match kind {
                "url_query" => "keep the query as the sender sends it; public_url may hold one of its own".to_owned(),
                _ => format!("public_url = \"{base}\", as it is entered at the provider"),
            };
            search.tell_passed(passed, kind, says, try_this);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_by_its_most_telling_part() {
        let url = |text: &str| Url::parse(text).unwrap();
        let a = url("https://h.example:8443/x/?q");
        assert_eq!(a.base(), "https://h.example:8443/x/");
        assert_eq!(a.differences(&url("http://h.example:8443/x?q")), ["url_scheme", "url_trailing_slash"]);
        assert_eq!(a.differences(&url("https://h.example/x/")), ["url_port", "url_query"]);
        assert_eq!(a.differences(&url("https://other:8443/y?q")), ["url_host", "url_path"]);
        assert!(Url::parse("nothing").is_none() && Url::parse("https://a b/").is_none());
    }
}
