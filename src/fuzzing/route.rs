//! Where a delivery goes: patterns and conditions that a user could write, on events, headers and bodies of strangers.

use crate::fields::Fields;
use crate::gateway::lane::Order;
use crate::gateway::route::{Conditions, Glob, Route, Routes, Target, Traits};
use crate::gateway::source::Way;
use http::{HeaderName, HeaderValue};
use serde_json::Value;

/// The lines: an event type, a header's value, a body; then two routes' conditions in turn. The first letter of one says
/// of what it is: `h` of the header, `j` of the body (pointer and value, parted by a space), anything else of the event.
pub fn route(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (event, value, body) = (lines.next(), lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let name = HeaderName::from_static("x-a");
    let mut sets = [Conditions::default(), Conditions::default()];
    let mut order = Order::Source;
    for (number, line) in lines.take(64).enumerate() {
        let Some(Conditions { events, headers, json }) = sets.get_mut(number % 2) else { return };
        let rest = line.get(1..).unwrap_or_default();
        match line.get(..1) {
            Some("h") => headers.extend(Glob::parse(rest).map(|glob| (name.clone(), vec![glob]))),
            Some("j") => {
                let Some((pointer, value)) = rest.split_once(' ') else { continue };
                order = Order::Json(pointer.to_owned());
                json.push((pointer.to_owned(), vec![serde_json::from_str(value).unwrap_or(Value::Null)]));
            }
            _ => events.extend(Glob::parse(line)),
        }
    }
    let [one, two] = &sets;
    let routes: Vec<_> = sets.iter().zip(["one", "two"]).map(|(when, upstream)| to(upstream, when.clone())).collect();
    // A pointer that is none.
    let Ok(routes) = Routes::new(routes, None, order) else { return };
    let mut headers = Fields::new();
    headers.extend(HeaderValue::from_str(value).map(|value| (name, value)));
    let json = routes.pointers().read(body.as_bytes());
    let of = Traits { event, headers: &headers, json: &json };
    let stored = taken(&routes, Way::Inbox, &of);
    let [takes_one, takes_two] = ["one", "two"].map(|name| stored.iter().any(|taken| taken == name));

    // A proxied delivery takes the first of these ways, and none that is not among them.
    assert_eq!(taken(&routes, Way::Proxy, &of).first(), stored.first());
    for (wide, narrow, takes_wide, takes_narrow) in [(one, two, takes_one, takes_two), (two, one, takes_two, takes_one)]
    {
        assert!(!wide.cover(narrow) || !takes_narrow || takes_wide, "{wide:?} covers {narrow:?}, and did not take it");
        assert!(wide.cover(wide), "{wide:?} does not cover itself");
    }
    assert!(one.meet(two) || !(takes_one && takes_two), "{one:?} and {two:?} met");
    assert_eq!(one.meet(two), two.meet(one));
    assert_eq!(routes.lane("source", &of), routes.lane("source", &of));
}

fn to(upstream: &str, when: Conditions) -> Route {
    Route { when, target: Target { upstream: upstream.into(), path: None } }
}

fn taken(routes: &Routes, way: Way, of: &Traits<'_>) -> Vec<String> {
    routes.targets(way, of).iter().map(|target| target.upstream.to_string()).collect()
}
