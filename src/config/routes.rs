//! Where a source's deliveries go: `upstream`, `upstream_path` and `[[sources.NAME.routes]]`.
//!
//! Invariant: a route that can never have an effect is told, and so is one whose effect depends on its place among the
//! others; what goes nowhere does so because somebody was told that it would.

use super::reader::Table;
use super::units::header_name;
use super::upstreams::{self, Facts};
use crate::gateway::lane::Order;
use crate::gateway::route::{Conditions, Glob, MOST_ALTERNATIVES, MOST_ROUTES, Route, Routes, Target};
use crate::gateway::source::{PathRule, UpstreamPath, Way};
use crate::verify::{Coverage, Locator, Verifier, is_pointer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What decides of a source's routes beside themselves.
pub(super) struct Around<'a> {
    /// By name.
    pub(super) upstreams: &'a BTreeMap<String, upstreams::Facts>,
    pub(super) way: Way,
    pub(super) order: Order,
    pub(super) observes: bool,
    /// The source's own; none where it is wrong.
    pub(super) path: Option<&'a PathRule>,
    /// None where the proofs are wrong.
    pub(super) verifier: Option<&'a Verifier>,
}

/// A route as it stands in the file.
struct Read<'t> {
    table: Table<'t>,
    when: Conditions,
    /// None: what it names is wrong.
    target: Option<Target>,
    /// Its conditions are as they stand in the file.
    is_whole: bool,
}

pub(super) fn read(source: &Table<'_>, around: Around<'_>) -> Option<Routes> {
    let path = upstream_path(source, &around);
    let otherwise = match source.has("routes") {
        true if !source.has("upstream") => {
            source.ignore(&["upstream"]);
            None
        }
        _ => {
            let found = target(source, &around, path.as_ref());
            if let Some((what, hint)) = found.as_ref().and_then(|(_, facts)| unfit_to_observe(*facts, &around)) {
                source.error("mode", what, hint);
            }
            Some(found.map(|(target, _)| target))
        }
    };
    let tables = source.tables("routes");
    if source.has("routes") && tables.is_empty() {
        source.error("routes", "is empty", "leave it out, or list something");
    }
    if tables.len() > MOST_ROUTES {
        source.error(
            "routes",
            format!("{} are more than {MOST_ROUTES}", tables.len()),
            "several values in a condition",
        );
    }
    let all: Vec<_> = tables.into_iter().map(|table| route(table, &around, path.as_ref())).collect();
    let is_whole = all.iter().all(|route| route.is_whole);
    if is_whole {
        compare(&all, &around);
    }
    let takes_all = all.iter().any(|route| route.when.cover(&Conditions::default()));
    if !all.is_empty() && is_whole && otherwise.is_none() && !takes_all {
        let what =
            "there is no `upstream`: what no route takes is acknowledged, counted as `unrouted`, and goes nowhere";
        source.warn("", what, r#"upstream = "app", for all the rest"#);
    }
    if let Some(verifier) = around.verifier.filter(|verifier| verifier.has_signature()) {
        for route in all.iter().filter(|route| route.is_whole) {
            tell_unsigned(&route.table, &route.when, verifier);
        }
        let lane = match &around.order {
            Order::Header(name) => Some(Locator::Header(name.clone())),
            Order::Json(pointer) => Some(Locator::Json(pointer.clone())),
            Order::None | Order::Source => None,
        };
        if lane.is_some_and(|locator| !verifier.signs(&locator)) {
            let what =
                "is not signed: whoever changes a delivery on its way chooses what it waits for, and what waits for it";
            source.remark("order_by", what, "a value that the signature stands for");
        }
    }
    let routes: Vec<_> = all
        .into_iter()
        .map(|Read { table, when, target, .. }| {
            table.finish();
            Some(Route { when, target: target? })
        })
        .collect();
    let routes = routes.into_iter().collect::<Option<Vec<_>>>()?;
    let otherwise = match otherwise {
        Some(target) => Some(target?),
        None => None,
    };
    // Every pointer was looked at where it stands.
    let routes = Routes::new(routes, otherwise, around.order).ok()?;
    let signs_whole_body = around.verifier.is_some_and(|verifier| verifier.coverage() == Coverage::Whole);
    Some(if signs_whole_body { routes } else { routes.in_any_case() })
}

fn upstream_path(table: &Table<'_>, around: &Around<'_>) -> Option<UpstreamPath> {
    let path = table.parsed("upstream_path", |text| match PathRule::parse(text)? {
        PathRule::Exact(path) => Ok(UpstreamPath::Whole(path)),
        PathRule::Prefix(prefix) => Ok(UpstreamPath::Prefix(prefix)),
    });
    if let (Some(UpstreamPath::Prefix(_)), Some(PathRule::Exact(_))) = (&path, around.path) {
        table.error(
            "upstream_path",
            "ends in `/*`, and `path` is no prefix that it could replace",
            r#"upstream_path = "/hooks""#,
        );
    }
    path
}

/// And what there is to know of its upstream.
fn target(table: &Table<'_>, around: &Around<'_>, path: Option<&UpstreamPath>) -> Option<(Target, Facts)> {
    let name = table.needed_text("upstream", r#"upstream = "app""#)?;
    let Some(facts) = around.upstreams.get(&name) else {
        let known: Vec<_> = around.upstreams.keys().map(String::as_str).collect();
        let hint = format!("one of: {}", known.join(", "));
        table.error("upstream", format!("there is no [upstreams.{name}]"), &hint);
        return None;
    };
    Some((Target { upstream: Arc::from(name), path: path.cloned() }, *facts))
}

/// Observe mode lets pass what is not proven, and not everything may be handed that.
fn unfit_to_observe(facts: Facts, around: &Around<'_>) -> Option<(&'static str, &'static str)> {
    match facts {
        _ if !around.observes => None,
        Facts { re_signs: true, .. } => Some((
            "the source observes, and the upstream re-signs: what is not proven must not carry our signature",
            "another upstream without `sign`",
        )),
        Facts { is_broker: true, .. } => Some((
            "the source observes, and the upstream is a broker: what is not proven would be taken for proven by whoever consumes it",
            "an upstream of kind = \"http\", while it observes",
        )),
        Facts { .. } => None,
    }
}

fn route<'t>(table: Table<'t>, around: &Around<'_>, path_of_all: Option<&UpstreamPath>) -> Read<'t> {
    let events = table.all_parsed("events", Glob::parse);
    let knows_events = around.verifier.is_none_or(Verifier::knows_events);
    if !events.is_empty() && !knows_events {
        let what = "the source does not say where the event's type stands, so that no pattern can match";
        table.error("events", what, r#"event = { json = "/type" }"#);
    }
    let mut is_whole = table.has("events") != events.is_empty();
    is_whole &= few_enough(&table, "events", events.len());
    let mut headers = Vec::new();
    for (name, values) in table.alternatives("headers") {
        is_whole &= few_enough(&table, "headers", values.len());
        let mut globs = Vec::new();
        for value in &values {
            let text = value.as_str().ok_or_else(|| format!("{value} is not a string"));
            match text.and_then(Glob::parse) {
                Ok(glob) => globs.push(glob),
                Err(what) => table.error("headers", format!("{name}: {what}"), r#"headers = { "X-Shop" = "eu-*" }"#),
            }
        }
        is_whole &= !globs.is_empty();
        match header_name(&name) {
            Ok(name) => headers.push((name, globs)),
            Err(what) => {
                table.error("headers", what, "");
                is_whole = false;
            }
        }
    }
    let mut json = Vec::new();
    for (pointer, values) in table.alternatives("json") {
        is_whole &= few_enough(&table, "json", values.len()) && !values.is_empty();
        if is_pointer(&pointer) {
            json.push((pointer, values));
        } else {
            let hint = format!("\"/{}\"", pointer.replace('.', "/"));
            table.error("json", format!("{pointer:?} is not a JSON pointer"), &hint);
            is_whole = false;
        }
    }
    let path = upstream_path(&table, around);
    let found = target(&table, around, path.as_ref().or(path_of_all));
    if let Some((what, hint)) = found.as_ref().and_then(|(_, facts)| unfit_to_observe(*facts, around)) {
        table.error("upstream", what, hint);
    }
    let target = found.map(|(target, _)| target);
    Read { when: Conditions { events, headers, json }, target, is_whole, table }
}

/// A sender is proven before a route is chosen; what the choice goes by may not be.
fn tell_unsigned(table: &Table<'_>, when: &Conditions, verifier: &Verifier) {
    let told = |key: &str, what: &str| {
        let what = format!("{what} is not signed: whoever changes a delivery on its way can choose this route");
        table.remark(key, what, "");
    };
    if !when.events.is_empty() && !verifier.signs_events() {
        told("events", "the event's type");
    }
    let header = when.headers.iter().find(|(name, _)| !verifier.signs(&Locator::Header(name.clone())));
    if let Some((name, _)) = header {
        told("headers", name.as_str());
    }
    let json = when.json.iter().find(|(pointer, _)| !verifier.signs(&Locator::Json(pointer.clone())));
    if let Some((pointer, _)) = json {
        told("json", pointer);
    }
}

fn few_enough(table: &Table<'_>, name: &str, count: usize) -> bool {
    if count > MOST_ALTERNATIVES {
        let what = format!("{count} alternatives are more than {MOST_ALTERNATIVES}");
        table.error(name, what, "fewer, with `*`, or another route");
    }
    count <= MOST_ALTERNATIVES
}

/// A route and those before it. Of several things to be said of it, the first is enough.
fn compare(routes: &[Read<'_>], around: &Around<'_>) {
    let way = around.way;
    let is_nats = |route: &Read<'_>| {
        let facts = route.target.as_ref().and_then(|target| around.upstreams.get(&*target.upstream));
        facts.is_some_and(|facts| facts.is_nats)
    };
    for (position, route) in routes.iter().enumerate() {
        let same_upstream = |other: &Read<'_>| {
            route.target.as_ref().map(|it| &it.upstream) == other.target.as_ref().map(|it| &it.upstream)
        };
        let earlier = || routes.iter().enumerate().take(position);
        let takes_all = earlier().find(|(_, other)| match way {
            Way::Proxy => other.when.cover(&route.when),
            Way::Inbox => same_upstream(other) && other.when.cover(&route.when),
        });
        if let Some((before, _)) = takes_all {
            let what = match way {
                Way::Proxy => format!("never has an effect: routes[{before}] takes all that it would"),
                Way::Inbox => {
                    format!("never has an effect: routes[{before}] sends all of it to the same upstream already")
                }
            };
            route.table.warn("", what, "put it before that one, or remove it");
            continue;
        }
        let both_publish = |other: &Read<'_>| {
            way == Way::Inbox
                && is_nats(route)
                && is_nats(other)
                && !same_upstream(other)
                && other.when.meet(&route.when)
        };
        if let Some((before, _)) = earlier().find(|(_, other)| both_publish(other)) {
            let what = format!(
                "and routes[{before}] can publish one delivery twice with one Nats-Msg-Id: a stream that has both subjects keeps the first alone, and confirms both"
            );
            route.table.remark(
                "",
                what,
                "a stream for each of the two subjects, or one subject that both consumers read",
            );
        }
        let takes_some = earlier().find(|(_, other)| {
            let is_its_general_case = route.when.cover(&other.when);
            way == Way::Proxy && route.target != other.target && other.when.meet(&route.when) && !is_its_general_case
        });
        if let Some((before, _)) = takes_some {
            let what = format!("can match what routes[{before}] matches too, and that one, being first, takes it");
            route.table.warn(
                "",
                what,
                "conditions that exclude each other, or delivery = \"inbox\" for both to get it",
            );
        }
    }
}
