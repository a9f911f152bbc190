//! Which upstreams does a delivery go to?
//!
//! Pure: an event type, headers and what a body says go in; targets come out. Invariant: all conditions of a route must
//! hold, and what is absent, doubled, unreadable or longer than `LONGEST_MATCHED` fulfils none: such a delivery goes
//! where no route is asked for, and is never dropped for it. Matching a pattern takes at most the product of two
//! bounded lengths, whatever a sender writes.

use super::lane::Order;
use super::source::{UpstreamPath, Way};
use crate::fields::Fields;
use crate::verify::{Json, NotAPointer, Pointers};
use http::HeaderName;
use serde_json::Value;
use smallvec::SmallVec;
use std::str::Chars;
use std::sync::Arc;

/// Of a source. Each is looked at for every delivery.
pub(crate) const MOST_ROUTES: usize = 64;

/// Of one condition: patterns or values.
pub(crate) const MOST_ALTERNATIVES: usize = 32;

/// In bytes; event types are a few words.
pub(crate) const LONGEST_GLOB: usize = 128;

/// In bytes. An event type or a header's value beyond it matches no pattern.
const LONGEST_MATCHED: usize = 1024;

/// Where a parcel goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) upstream: Arc<str>,
    pub(crate) path: Option<UpstreamPath>,
}

#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) when: Conditions,
    pub(crate) target: Target,
}

/// All of them must hold; of the alternatives of each, any one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    /// Empty: any event, and none.
    pub(crate) events: Vec<Glob>,
    pub(crate) headers: Vec<(HeaderName, Vec<Glob>)>,
    /// By JSON pointer.
    pub(crate) json: Vec<(String, Vec<Value>)>,
}

/// What the routes ask of a delivery.
pub(crate) struct Traits<'a> {
    pub(crate) event: Option<&'a str>,
    pub(crate) headers: &'a Fields,
    /// What the body says at `Routes::pointers`.
    pub(crate) json: &'a Json,
}

/// Where the deliveries of one source go, and which of them in order.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    routes: Vec<Route>,
    /// Takes what no route does.
    otherwise: Option<Target>,
    order: Order,
    pointers: Pointers,
}

impl Routes {
    /// Fails on a condition or an order whose pointer is none.
    pub(crate) fn new(routes: Vec<Route>, otherwise: Option<Target>, order: Order) -> Result<Self, NotAPointer> {
        let mut pointers = Pointers::default();
        for (pointer, _) in routes.iter().flat_map(|route| &route.when.json) {
            pointers.add(pointer)?;
        }
        order.pointer().map_or(Ok(()), |pointer| pointers.add(pointer))?;
        Ok(Self { routes, otherwise, order, pointers })
    }

    /// As `Pointers::in_any_case`.
    pub(crate) fn in_any_case(self) -> Self {
        Self { pointers: self.pointers.in_any_case(), ..self }
    }

    /// What is to be looked up in a body; empty where nothing in it decides.
    pub(crate) fn pointers(&self) -> &Pointers {
        &self.pointers
    }

    /// None: the delivery is for nobody here. An answer can be relayed from one upstream alone, so that the first route
    /// that matches takes a proxied delivery; a stored one goes to every upstream that one of its routes leads to.
    pub(crate) fn targets(&self, way: Way, of: &Traits<'_>) -> SmallVec<[&Target; 2]> {
        let mut targets: SmallVec<[&Target; 2]> = SmallVec::new();
        for Route { when, target } in &self.routes {
            let is_new = targets.iter().all(|taken| taken.upstream != target.upstream);
            if is_new && when.hold(of) {
                targets.push(target);
                if way == Way::Proxy {
                    break;
                }
            }
        }
        if targets.is_empty() {
            targets.extend(&self.otherwise);
        }
        targets
    }

    /// Every upstream that a delivery can go to, each once, in the order of the routes.
    pub(crate) fn upstreams(&self) -> Vec<&Arc<str>> {
        let mut upstreams = Vec::new();
        for target in self.routes.iter().map(|route| &route.target).chain(&self.otherwise) {
            if !upstreams.contains(&&target.upstream) {
                upstreams.push(&target.upstream);
            }
        }
        upstreams
    }

    /// What must arrive one after the other shares a lane.
    pub(crate) fn lane(&self, source: &str, of: &Traits<'_>) -> Option<i64> {
        self.order.lane(source, of.headers, of.json)
    }

    /// Where everything goes that no route takes.
    pub(crate) fn otherwise(&self) -> Option<&Target> {
        self.otherwise.as_ref()
    }

    pub(crate) fn has_routes(&self) -> bool {
        !self.routes.is_empty()
    }
}

impl Conditions {
    fn hold(&self, of: &Traits<'_>) -> bool {
        let event = || of.event.is_some_and(|event| any_matches(&self.events, event));
        let header = |(name, globs): &(HeaderName, Vec<Glob>)| {
            let mut values = of.headers.get_all(name);
            // A byte that is no text stands for a character that no pattern spells.
            values.any(|value| any_matches(globs, &String::from_utf8_lossy(value.as_bytes())))
        };
        let json = |(pointer, values): &(String, Vec<Value>)| values.iter().any(|value| of.json.equals(pointer, value));
        (self.events.is_empty() || event()) && self.headers.iter().all(header) && self.json.iter().all(json)
    }

    /// Does a delivery that fulfils the other always fulfil these? A no may be mistaken, a yes is not.
    pub(crate) fn cover(&self, other: &Self) -> bool {
        let events = self.events.is_empty() || (!other.events.is_empty() && all_covered(&self.events, &other.events));
        let header = |(name, globs): &(HeaderName, Vec<Glob>)| {
            other.headers.iter().any(|(theirs, narrower)| name == theirs && all_covered(globs, narrower))
        };
        let json = |(pointer, values): &(String, Vec<Value>)| {
            let within = |narrower: &[Value]| narrower.iter().all(|value| values.contains(value));
            other.json.iter().any(|(theirs, narrower)| pointer == theirs && within(narrower))
        };
        events && self.headers.iter().all(header) && self.json.iter().all(json)
    }

    /// Can one delivery fulfil both? A header counts as having one value.
    pub(crate) fn meet(&self, other: &Self) -> bool {
        let any_meets = |ours: &[Glob], theirs: &[Glob]| ours.iter().any(|one| theirs.iter().any(|two| one.meets(two)));
        let events = self.events.is_empty() || other.events.is_empty() || any_meets(&self.events, &other.events);
        let headers = self.headers.iter().all(|(name, globs)| {
            other.headers.iter().all(|(theirs, others)| name != theirs || any_meets(globs, others))
        });
        let json = self.json.iter().all(|(pointer, values)| {
            let shared = |others: &[Value]| others.iter().any(|value| values.contains(value));
            other.json.iter().all(|(theirs, others)| pointer != theirs || shared(others))
        });
        events && headers && json
    }
}

fn any_matches(globs: &[Glob], text: &str) -> bool {
    text.len() <= LONGEST_MATCHED && globs.iter().any(|glob| glob.matches(text))
}

fn all_covered(wider: &[Glob], narrower: &[Glob]) -> bool {
    narrower.iter().all(|narrow| wider.iter().any(|wide| wide.covers(narrow)))
}

/// A text in which `*` stands for any run of characters, the empty one too, and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob(Box<str>);

impl Glob {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("holds an empty pattern; `*` stands for anything".to_owned());
        }
        if text.len() > LONGEST_GLOB {
            return Err(format!("holds a pattern of {} bytes; {LONGEST_GLOB} are the most", text.len()));
        }
        Ok(Self(text.into()))
    }

    /// One state is kept and no more: the last `*` takes one character more each time what follows it does not fit.
    fn matches(&self, text: &str) -> bool {
        let (mut pattern, mut text) = (self.0.chars(), text.chars());
        let mut last_star: Option<(Chars<'_>, Chars<'_>)> = None;
        loop {
            let rest = text.clone();
            match (pattern.next(), text.next()) {
                (None, None) => return true,
                (Some('*'), _) => {
                    text = rest;
                    last_star = Some((pattern.clone(), text.clone()));
                }
                (Some('?'), Some(_)) => {}
                (Some(wanted), Some(found)) if wanted == found => {}
                _ => {
                    let Some((behind, from)) = &mut last_star else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (pattern, text) = (behind.clone(), from.clone());
                }
            }
        }
    }

    /// Does it match whatever the other matches? The other's text is read as if a `*` were a letter that only `*` takes.
    fn covers(&self, other: &Self) -> bool {
        table(self, other, |wide, narrow, step| match (wide, narrow) {
            (Some('*'), Some(_)) => step(1, 0) || step(0, 1),
            (Some('*'), None) => step(1, 0),
            (Some('?'), Some(narrow)) => narrow != '*' && step(1, 1),
            (Some(wide), Some(narrow)) => wide == narrow && step(1, 1),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        })
    }

    /// Is there a text that both match?
    fn meets(&self, other: &Self) -> bool {
        table(self, other, |one, two, step| match (one, two) {
            (None, None) => true,
            (Some('*'), _) => step(1, 0) || (two.is_some() && step(0, 1)),
            (_, Some('*')) => step(0, 1) || (one.is_some() && step(1, 0)),
            (Some(one), Some(two)) => (one == '?' || two == '?' || one == two) && step(1, 1),
            (Some(_), None) | (None, Some(_)) => false,
        })
    }
}

/// Compares two patterns from their ends: `holds` is asked for each pair of positions, and may ask what was found for
/// those one further on.
fn table(
    one: &Glob,
    two: &Glob,
    holds: impl Fn(Option<char>, Option<char>, &dyn Fn(usize, usize) -> bool) -> bool,
) -> bool {
    let (one, two): (Vec<char>, Vec<char>) = (one.0.chars().collect(), two.0.chars().collect());
    let width = two.len() + 1;
    let mut known = vec![false; (one.len() + 1) * width];
    for row in (0..=one.len()).rev() {
        for column in (0..width).rev() {
            let step =
                |down: usize, right: usize| known.get((row + down) * width + column + right).copied().unwrap_or(false);
            let found = holds(one.get(row).copied(), two.get(column).copied(), &step);
            if let Some(place) = known.get_mut(row * width + column) {
                *place = found;
            }
        }
    }
    known.first().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;
    use serde_json::json;

    fn glob(text: &str) -> Glob {
        Glob::parse(text).expect("a pattern")
    }

    fn globs(texts: &[&str]) -> Vec<Glob> {
        texts.iter().map(|text| glob(text)).collect()
    }

    fn events(texts: &[&str]) -> Conditions {
        Conditions { events: globs(texts), ..Conditions::default() }
    }

    fn target(upstream: &str) -> Target {
        Target { upstream: upstream.into(), path: None }
    }

    fn to(upstream: &str, when: Conditions) -> Route {
        Route { when, target: target(upstream) }
    }

    fn routes(routes: Vec<Route>, otherwise: Option<&str>, way: Way) -> (Routes, Way) {
        (Routes::new(routes, otherwise.map(target), Order::None).expect("pointers"), way)
    }

    fn taken(
        (routes, way): &(Routes, Way),
        event: Option<&str>,
        headers: &[(&'static str, &[u8])],
        body: &str,
    ) -> Vec<String> {
        let mut map = Fields::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("a value"));
        }
        let json = routes.pointers().read(body.as_bytes());
        let traits = Traits { event, headers: &map, json: &json };
        routes.targets(*way, &traits).iter().map(|target| target.upstream.to_string()).collect()
    }

    #[test]
    fn a_pattern_stands_for_runs_and_single_characters_and_nothing_else() {
        for (pattern, text) in [
            ("invoice.*", "invoice.paid"),
            ("invoice.*", "invoice."),
            ("*", ""),
            ("*.paid", "invoice.paid"),
            ("*.paid", "a.paid.paid"),
            ("a?c", "aéc"),
            ("a*b*c", "a-b-b-c"),
            ("**", "x"),
            ("x", "x"),
            ("[a]", "[a]"),
        ] {
            assert!(glob(pattern).matches(text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("invoice.*", "invoices.paid"),
            ("invoice.*", "Invoice.paid"),
            ("invoice.*", "an.invoice.paid"),
            ("?", ""),
            ("?", "ab"),
            ("*.paid", "paid"),
            ("a*b*c", "a-c-b"),
            ("[a]", "a"),
            (r"\*", "*"),
        ] {
            assert!(!glob(pattern).matches(text), "{pattern} {text}");
        }
        assert!(Glob::parse("").is_err());
        assert!(Glob::parse(&"a".repeat(LONGEST_GLOB)).is_ok());
        assert!(Glob::parse(&"a".repeat(LONGEST_GLOB + 1)).is_err());
    }

    #[test]
    fn the_worst_pattern_on_the_longest_text_is_no_work() {
        let (pattern, text) = ("*a".repeat(63) + "b", "a".repeat(LONGEST_MATCHED));
        let begun = std::time::Instant::now();
        assert!(!glob(&pattern).matches(&text));
        // Some 1,000 times what it takes; going back to every star would take longer than the universe is old.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
        let when = events(&["*"]);
        let one = routes(vec![to("a", when)], None, Way::Proxy);
        assert_eq!(taken(&one, Some(&text), &[], ""), ["a"]);
        assert!(taken(&one, Some(&(text + "a")), &[], "").is_empty());
    }

    #[test]
    fn the_first_route_that_matches_takes_a_proxied_delivery() {
        let all = vec![to("billing", events(&["invoice.*"])), to("books", events(&["invoice.paid", "refund"]))];
        let with_rest = routes(all.clone(), Some("rest"), Way::Proxy);
        assert_eq!(taken(&with_rest, Some("invoice.paid"), &[], ""), ["billing"]);
        assert_eq!(taken(&with_rest, Some("refund"), &[], ""), ["books"]);
        assert_eq!(taken(&with_rest, Some("ping"), &[], ""), ["rest"]);
        assert_eq!(taken(&with_rest, None, &[], ""), ["rest"]);
        let without = routes(all, None, Way::Proxy);
        assert!(taken(&without, Some("ping"), &[], "").is_empty());
    }

    #[test]
    fn every_upstream_whose_route_matches_gets_a_stored_delivery_once() {
        let all = vec![
            to("billing", events(&["invoice.*"])),
            to("audit", Conditions::default()),
            to("billing", events(&["*"])),
            to("books", events(&["invoice.paid"])),
        ];
        let all = routes(all, Some("rest"), Way::Inbox);
        assert_eq!(taken(&all, Some("invoice.paid"), &[], ""), ["billing", "audit", "books"]);
        assert_eq!(taken(&all, None, &[], ""), ["audit"]);
        assert_eq!(
            all.0.upstreams().iter().map(|name| &***name).collect::<Vec<_>>(),
            ["billing", "audit", "books", "rest"]
        );
    }

    #[test]
    fn all_conditions_of_a_route_must_hold() {
        let when = Conditions {
            events: globs(&["order.*"]),
            headers: vec![(HeaderName::from_static("x-shop"), globs(&["eu-*", "uk"]))],
            json: vec![("/data/kind".to_owned(), vec![json!("a"), json!(7), json!(true)])],
        };
        let one = routes(vec![to("eu", when)], None, Way::Proxy);
        let is_taken = |event, headers: &[(&'static str, &[u8])], body| !taken(&one, event, headers, body).is_empty();
        let (event, shop, body) = (Some("order.made"), ("x-shop", &b"eu-3"[..]), r#"{"data":{"kind":"a"}}"#);
        assert!(is_taken(event, &[shop], body));
        assert!(is_taken(event, &[("x-shop", b"us"), ("x-shop", b"uk")], r#"{"data":{"kind":7}}"#));
        assert!(is_taken(event, &[shop], r#"{"data":{"kind":true}}"#));
        assert!(!is_taken(Some("invoice"), &[shop], body));
        assert!(!is_taken(None, &[shop], body));
        assert!(!is_taken(event, &[("x-shop", b"us-1")], body));
        assert!(!is_taken(event, &[("x-shop", b"\xffeu-1")], body));
        assert!(!is_taken(event, &[], body));
        for other in [
            "",
            "kind=a",
            "{}",
            r#"{"data":{"kind":"b"}}"#,
            r#"{"data":{"kind":"7"}}"#,
            r#"{"data":{"kind":null}}"#,
            r#"{"data":{"kind":["a"]}}"#,
            // Of two values nobody knows which one the upstream reads.
            r#"{"data":{"kind":"a","kind":"a"}}"#,
            r#"{"data":{"kind":"a"}} x"#,
        ] {
            assert!(!is_taken(event, &[shop], other), "{other}");
        }
    }

    #[test]
    fn a_body_that_nests_without_end_breaks_nothing() {
        let when = Conditions { json: vec![("/a/0".to_owned(), vec![json!(1)])], ..Conditions::default() };
        let one = routes(vec![to("a", when)], Some("rest"), Way::Proxy);
        let (open, shut) = ("[".repeat(100_000), "]".repeat(100_000));
        // Beside what is looked for it is passed over, without going down into it.
        assert_eq!(taken(&one, None, &[], &format!(r#"{{"b":{open}{shut},"a":[1]}}"#)), ["a"]);
        assert_eq!(taken(&one, None, &[], &format!(r#"{{"a":{open}{shut}}}"#)), ["rest"]);
        assert_eq!(taken(&one, None, &[], &format!(r#"{{"a":[1],"b":{open}}}"#)), ["rest"]);
    }

    #[test]
    fn conditions_are_compared_as_check_tells_them() {
        let header = |name: &'static str, patterns: &[&str]| Conditions {
            headers: vec![(HeaderName::from_static(name), globs(patterns))],
            ..Conditions::default()
        };
        let json = |values: &[i64]| Conditions {
            json: vec![("/a".to_owned(), values.iter().map(|value| json!(value)).collect())],
            ..Conditions::default()
        };
        for (wide, narrow) in [
            (Conditions::default(), events(&["a"])),
            (events(&["*"]), events(&["a", "b.*"])),
            (events(&["a*", "b"]), events(&["b", "a?", "a"])),
            (header("x-a", &["*"]), header("x-a", &["1"])),
            (json(&[1, 2]), json(&[2])),
        ] {
            assert!(wide.cover(&narrow) && wide.meet(&narrow) && narrow.meet(&wide), "{wide:?} {narrow:?}");
            assert!(!narrow.cover(&wide), "{narrow:?} {wide:?}");
        }
        for (one, two) in [
            (events(&["a.*"]), events(&["*.b"])),
            (header("x-a", &["1"]), header("x-b", &["1"])),
            (events(&["a"]), json(&[1])),
        ] {
            assert!(one.meet(&two) && two.meet(&one) && !one.cover(&two) && !two.cover(&one), "{one:?} {two:?}");
        }
        for (one, two) in [
            (events(&["a.*"]), events(&["b.*", "ab"])),
            (header("x-a", &["1*"]), header("x-a", &["2"])),
            (json(&[1]), json(&[2])),
        ] {
            assert!(!one.meet(&two) && !two.meet(&one), "{one:?} {two:?}");
        }
    }

    /// The definition, word for word; slow.
    fn defined(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => defined(rest, text),
            (Some(('*', rest)), Some((_, others))) => defined(rest, text) || defined(pattern, others),
            (Some((wanted, rest)), Some((found, others))) => {
                (*wanted == '?' || wanted == found) && defined(rest, others)
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_it_is_defined(pattern in "[ab.?*é]{1,8}", text in "[ab.é]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(glob(&pattern).matches(&text), defined(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn patterns_are_compared_truly(one in "[ab?*]{1,5}", two in "[ab?*]{1,5}", text in "[ab]{0,6}") {
            let (one, two) = (glob(&one), glob(&two));
            if one.matches(&text) && two.matches(&text) {
                prop_assert!(one.meets(&two) && two.meets(&one));
            }
            if one.covers(&two) {
                prop_assert!(one.meets(&two));
                prop_assert!(!two.matches(&text) || one.matches(&text));
            }
            prop_assert!(one.covers(&one));
        }

        #[test]
        fn any_event_header_and_body_are_routed(
            event in proptest::option::of(r"\PC{0,12}"), value in proptest::collection::vec(32u8..=255, 0..12), body in r"\PC{0,40}",
        ) {
            let when = Conditions {
                events: globs(&["*a?"]),
                headers: vec![(HeaderName::from_static("x-a"), globs(&["*é", "?"]))],
                json: vec![("/a/0".to_owned(), vec![json!(1)])],
            };
            let all = routes(vec![to("a", when)], Some("rest"), Way::Inbox);
            let value: Vec<u8> = value.into_iter().filter(|byte| *byte != 127).collect();
            let found = taken(&all, event.as_deref(), &[("x-a", &value)], &body);
            prop_assert_eq!(found.len(), 1);
        }
    }
}
