//! The inbox as the operator sees it: `/inbox/deliveries`, `/inbox/deliveries/ID`, `/inbox/export`, `/inbox/stats`,
//! `/inbox/quarantine`, and
//! with POST `/inbox/retry` and `/inbox/discard`.
//!
//! Invariant: one answer is one page, made in a bounded time of bounded parts; whoever wants more asks again with the
//! cursor it brings. The command line asks in the same words, over the port or, where no gateway runs, right here: there
//! are no two answers to one question. Credentials in headers and queries are masked unless `reveal=1` asks for them.

use super::quarantine;
use crate::clock::UnixMillis;
use crate::inbox::search::{self, Change, Cursor, Filter, Found, Glob, Id, MOST_IDS, Order};
use crate::inbox::{Inbox, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, Method, StatusCode};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::form_urlencoded;
use uuid::Uuid;

/// Rows of one page.
const MOST_ROWS: usize = 1_000;

/// Tasks of one page of an export.
const MOST_EXPORTED: usize = 500;

/// An exported page ends with the delivery that takes it beyond this many bytes.
const EXPORT_BYTES: usize = 4 << 20;

/// Other deliveries under the id that one is shown for.
const MOST_OTHERS: usize = 10;

/// Filters are short, but for ids.
const LONGEST_QUERY: usize = 64 << 10;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// JSON where the status is a good one, a line of text where it is not.
    pub(crate) body: Bytes,
    /// The methods there are, where this one is not among them.
    pub(crate) allow: Option<&'static str>,
}

impl Answer {
    fn good(value: &Value) -> Self {
        Self { status: StatusCode::OK, body: format!("{value}\n").into(), allow: None }
    }

    fn bad(status: StatusCode, why: &str) -> Self {
        Self { status, body: format!("{why}\n").into(), allow: None }
    }
}

/// `path` is what stands behind `/inbox/`, as it came. `now`: the wall clock.
pub(crate) async fn answer(inbox: &Arc<Inbox>, method: &Method, path: &str, query: &str, now: UnixMillis) -> Answer {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let (allow, allowed) = match path {
        "retry" | "discard" | "reverify" => ("POST", *method == Method::POST),
        _ => ("GET, HEAD", reads),
    };
    if !allowed {
        return Answer { allow: Some(allow), ..Answer::bad(StatusCode::METHOD_NOT_ALLOWED, allow) };
    }
    let asked = match Asked::read(query, now) {
        Ok(asked) => asked,
        Err(why) => return Answer::bad(StatusCode::BAD_REQUEST, &why),
    };
    let answered = match path {
        "deliveries" => blocking(inbox, move |inbox| list(inbox, &asked)).await,
        "export" => blocking(inbox, move |inbox| export(inbox, &asked)).await,
        "stats" => blocking(inbox, move |inbox| stats(inbox, now)).await,
        "retry" | "discard" => change(inbox, path, asked).await,
        "quarantine" => blocking(inbox, move |inbox| Ok(quarantine::list(inbox, &asked.filter.sources)?)).await,
        // The running gateway's own: it does not come here with it.
        "reverify" => Err(Failure::Nothing(
            "judging again needs the gateway running: it has the keys, and knows what was accepted since; start it, and ask once more",
        )),
        _ => match path.strip_prefix("deliveries/") {
            Some(id) => match decoded(id).and_then(|id| Id::parse(&id)) {
                Ok(id) => blocking(inbox, move |inbox| show(inbox, id, asked.reveals)).await,
                Err(why) => Err(Failure::Usage(why)),
            },
            None => Err(Failure::Nothing(
                "below /inbox are deliveries, deliveries/ID, export, stats and quarantine, and with POST retry, discard and reverify",
            )),
        },
    };
    match answered {
        Ok(value) => Answer::good(&value),
        Err(Failure::Usage(why)) => Answer::bad(StatusCode::BAD_REQUEST, &why),
        Err(Failure::Nothing(why)) => Answer::bad(StatusCode::NOT_FOUND, why),
        Err(Failure::Store(why)) => Answer::bad(StatusCode::SERVICE_UNAVAILABLE, &format!("the inbox: {why}")),
    }
}

enum Failure {
    Usage(String),
    Nothing(&'static str),
    Store(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Store(why)
    }
}

async fn blocking(
    inbox: &Arc<Inbox>,
    work: impl FnOnce(&Inbox) -> Result<Value, Failure> + Send + 'static,
) -> Result<Value, Failure> {
    let inbox = Arc::clone(inbox);
    let done = tokio::task::spawn_blocking(move || work(&inbox)).await;
    done.unwrap_or_else(|_| Err(Failure::Store("the search failed".to_owned())))
}

/// A question's parameters.
#[derive(Default)]
struct Asked {
    filter: Filter,
    oldest_first: bool,
    after: Option<Cursor>,
    limit: Option<usize>,
    reveals: bool,
    is_for_all: bool,
    is_trial: bool,
    /// Microseconds between two dues.
    gap: u64,
    due_from: Option<UnixMillis>,
}

impl Asked {
    /// Unknown parameters and unknown words are refused: a misspelt filter would find, or change, everything.
    fn read(query: &str, now: UnixMillis) -> Result<Self, String> {
        if query.len() > LONGEST_QUERY {
            return Err("the question is too long; ask with fewer ids at a time".to_owned());
        }
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let wrong = |what: &str| format!("{name}: {value:?} is not {what}");
            let flag = || match &*value {
                "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                _ => Err(wrong("1 or 0")),
            };
            let filter = &mut asked.filter;
            match &*name {
                "source" => filter.sources.push(value.into_owned()),
                "upstream" => filter.upstreams.push(value.into_owned()),
                "state" => filter
                    .states
                    .push(State::parse(&value).ok_or_else(|| wrong("waiting, behind, delivered, dead or discarded"))?),
                "since" => filter.since = Some(time_of(&value, now).ok_or_else(|| wrong(A_TIME))?),
                "until" => filter.until = Some(time_of(&value, now).ok_or_else(|| wrong(A_TIME))?),
                "event" => filter.events.push(Glob::new(&value)),
                "id" => filter.ids.push(Id::parse(&value)?),
                "order" => {
                    asked.oldest_first = match &*value {
                        "oldest" => true,
                        "newest" => false,
                        _ => return Err(wrong("oldest or newest")),
                    }
                }
                "after" => asked.after = Some(Cursor::parse(&value).ok_or_else(|| wrong("a cursor"))?),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| *limit > 0);
                    asked.limit = Some(limit.ok_or_else(|| wrong("a number above 0"))?);
                }
                "reveal" => asked.reveals = flag()?,
                "all" => asked.is_for_all = flag()?,
                "dry_run" => asked.is_trial = flag()?,
                "rate" => asked.gap = gap(&value).ok_or_else(|| wrong("a rate: 50/s, 30/m, 100/h"))?,
                "due_from" => asked.due_from = Some(UnixMillis(value.parse().map_err(|_| wrong("a time in ms"))?)),
                _ => return Err(format!("{name:?} is no parameter of this")),
            }
        }
        match asked.filter.ids.len() > MOST_IDS {
            true => Err(format!("more than {MOST_IDS} ids; ask with fewer at a time")),
            false => Ok(asked),
        }
    }

    fn limit(&self, most: usize) -> usize {
        self.limit.unwrap_or(most).min(most)
    }
}

const A_TIME: &str = "a time: RFC 3339 (2026-11-22T08:00:00Z) or an age (90s, 15m, 2h, 3d)";

fn time_of(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().map(UnixMillis);
    }
    let number = text.get(..text.len().checked_sub(1)?)?;
    let unit = match text.as_bytes().last()? {
        b's' => 1_000,
        b'm' => 60_000,
        b'h' => 3_600_000,
        b'd' => 86_400_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some(UnixMillis(now.0.saturating_sub(number.checked_mul(unit)?)))
}

fn gap(rate: &str) -> Option<u64> {
    let (number, unit) = rate.split_once('/')?;
    let micros: u64 = match unit {
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))?;
    micros.checked_div(number)
}

fn rfc3339(time: UnixMillis) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1_000_000).ok()?;
    time.format(&Rfc3339).ok()
}

/// What is said of a task, without the delivery it belongs to.
fn task(found: &Found, steady: UnixMillis) -> Map<String, Value> {
    let mut object = Map::new();
    let mut say = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    say("upstream", json!(&*found.upstream));
    say("state", json!(found.state.label()));
    say("attempts", json!(found.attempts));
    say("generation", json!(found.generation));
    if found.state == State::Waiting {
        say("due_in_ms", json!(i128::from(found.due.0) - i128::from(steady.0)));
    }
    say("finished", json!(found.finished.and_then(rfc3339)));
    say("status", json!(found.status));
    say("note", json!(found.note));
    object
}

/// What is said of a delivery, without its content.
fn delivery(found: &Found) -> Map<String, Value> {
    let mut object = Map::new();
    let mut say = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    say("seq", json!(found.seq));
    say("received", json!(rfc3339(found.received)));
    say("request_id", json!(found.request_id.to_string()));
    say("delivery_id", json!(found.delivery_id));
    say("event_id", json!(found.event_id));
    say("event_type", json!(found.event_type));
    say("source", json!(&*found.source));
    say("body_bytes", json!(found.length));
    object
}

fn list(inbox: &Inbox, asked: &Asked) -> Result<Value, Failure> {
    let order = if asked.oldest_first { Order::OldestFirst } else { Order::NewestFirst };
    let page = search::page(inbox, &asked.filter, order, asked.after, asked.limit(MOST_ROWS))?;
    let steady = inbox.now();
    let rows: Vec<_> = page
        .found
        .iter()
        .map(|found| {
            let mut object = delivery(found);
            object.extend(task(found, steady));
            object
        })
        .collect();
    Ok(json!({ "deliveries": rows, "next": page.next.map(|next| next.to_string()) }))
}

fn show(inbox: &Inbox, id: Id, reveals: bool) -> Result<Value, Failure> {
    let filter = Filter { ids: vec![id], ..Filter::default() };
    let (mut after, mut seqs, mut others) = (None, Vec::new(), Vec::new());
    // The newest is shown as soon as it is found; of the others those that are met on the way.
    while seqs.is_empty() {
        let page = search::page(inbox, &filter, Order::NewestFirst, after, MOST_ROWS)?;
        for found in &page.found {
            if !seqs.contains(&found.seq) {
                seqs.push(found.seq);
                others.push(found.request_id);
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let Some(seq) = seqs.first() else { return Err(Failure::Nothing("nothing in the inbox has this id")) };
    let mut object = whole(inbox, *seq, reveals)?;
    let others: Vec<_> = others.iter().skip(1).take(MOST_OTHERS).map(Uuid::to_string).collect();
    object.insert("others".to_owned(), json!(others));
    Ok(Value::Object(object))
}

/// A delivery with its content and all its tasks.
fn whole(inbox: &Inbox, seq: i64, reveals: bool) -> Result<Map<String, Value>, Failure> {
    let filter = Filter { ids: vec![Id::Seq(seq)], ..Filter::default() };
    let page = search::page(inbox, &filter, Order::OldestFirst, None, MOST_ROWS)?;
    let Some(first) = page.found.first() else { return Err(Failure::Nothing("it was removed meanwhile")) };
    let steady = inbox.now();
    let mut object = delivery(first);
    let tasks: Vec<_> = page.found.iter().map(|found| task(found, steady)).collect();
    object.insert("tasks".to_owned(), json!(tasks));
    let mut say = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    match inbox.content(seq) {
        Ok(parcel) => {
            say("method", json!(parcel.method.as_str()));
            let path = if reveals { parcel.path_and_query.clone() } else { masked_query(&parcel.path_and_query) };
            say("path", json!(path));
            if path != parcel.path_and_query {
                say("masked", json!(true));
            }
            let headers = parcel.headers.iter().map(|(name, value)| header(name, value.as_bytes(), reveals));
            say("headers", json!(headers.collect::<Vec<_>>()));
            say("body_base64", json!(STANDARD.encode(&parcel.body)));
        }
        Err(why) => say("unreadable", json!(why)),
    }
    Ok(object)
}

fn header(name: &HeaderName, value: &[u8], reveals: bool) -> Value {
    if !reveals && names_a_credential(name.as_str()) {
        return json!({ "name": name.as_str(), "masked": true });
    }
    match std::str::from_utf8(value) {
        Ok(value) => json!({ "name": name.as_str(), "value": value }),
        Err(_) => json!({ "name": name.as_str(), "value_base64": STANDARD.encode(value) }),
    }
}

/// Whoever reads the value could act as the sender. A signature is none: it proves one message, which is known already.
fn names_a_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let words = ["token", "secret", "password", "passwd", "passphrase", "apikey", "credential", "authorization"];
    let ends = ["key", "auth", "pass", "pwd", "jwt", "bearer", "session", "cookie"];
    let last = name.rsplit(['-', '.']).next().unwrap_or(&name);
    name != "idempotency-key" && (ends.contains(&last) || words.iter().any(|word| name.contains(word)))
}

/// Names stay, so that one sees what there is.
fn masked_query(path_and_query: &str) -> String {
    let Some((path, query)) = path_and_query.split_once('?') else { return path_and_query.to_owned() };
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some((name, _)) if decoded(name).map_or(true, |name| names_a_credential(&name)) => format!("{name}=…"),
        _ => part.to_owned(),
    });
    format!("{path}?{}", parts.collect::<Vec<_>>().join("&"))
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| format!("{text:?} is no UTF-8"))
}

fn export(inbox: &Inbox, asked: &Asked) -> Result<Value, Failure> {
    let page = search::page(inbox, &asked.filter, Order::OldestFirst, asked.after, asked.limit(MOST_EXPORTED))?;
    let mut seqs: Vec<_> = page.found.iter().map(|found| found.seq).collect();
    seqs.dedup();
    let (mut deliveries, mut bytes, mut last) = (Vec::new(), 0, None);
    for seq in &seqs {
        if bytes >= EXPORT_BYTES {
            break;
        }
        last = Some(*seq);
        // Of what was removed meanwhile there is nothing to export.
        if let Ok(object) = whole(inbox, *seq, asked.reveals) {
            bytes += object.get("body_base64").and_then(Value::as_str).map_or(0, str::len);
            deliveries.push(object);
        }
    }
    // A delivery is exported once, whichever of its tasks matched.
    let next = match (last, page.next) {
        (Some(seq), next) if next.is_some() || seqs.last() != Some(&seq) => Some(page.behind(seq)),
        (_, next) => next,
    };
    Ok(json!({ "deliveries": deliveries, "next": next.map(|next| next.to_string()) }))
}

fn stats(inbox: &Inbox, now: UnixMillis) -> Result<Value, Failure> {
    let oldest = search::oldest(inbox)?;
    let age = |received: UnixMillis| now.0.saturating_sub(received.0);
    let mut counts: Vec<_> = inbox.counts().into_iter().filter(|count| count.tasks > 0).collect();
    counts.sort_by(|a, b| (&a.source, &a.upstream, a.state).cmp(&(&b.source, &b.upstream, b.state)));
    let all = |state: State| counts.iter().filter(|count| count.state == state).map(|count| count.tasks).sum::<i64>();
    let (waiting, dead) = (all(State::Waiting) + all(State::Behind), all(State::Dead));
    let rows: Vec<_> = counts
        .iter()
        .map(|count| {
            let mut row = json!({
                "source": &*count.source, "upstream": &*count.upstream, "state": count.state.label(), "count": count.tasks
            });
            let first = oldest.iter().find(|old| old.source == count.source && old.upstream == count.upstream);
            if let (State::Waiting, Some(first), Some(row)) = (count.state, first, row.as_object_mut()) {
                row.insert("oldest_ms".to_owned(), json!(age(first.received)));
            }
            row
        })
        .collect();
    let (size, free) = search::size(inbox)?;
    Ok(json!({
        "tasks": rows,
        "waiting": waiting,
        "dead": dead,
        "oldest_waiting_ms": oldest.iter().map(|old| age(old.received)).max(),
        "size_bytes": size,
        "free_bytes": free,
    }))
}

async fn change(inbox: &Arc<Inbox>, verb: &str, asked: Asked) -> Result<Value, Failure> {
    let Asked { mut filter, after, limit, is_for_all, is_trial, gap, due_from, .. } = asked;
    if filter.is_empty() && !is_for_all {
        return Err(Failure::Usage(format!(
            "{verb} what? Name ids or a filter, or say --all (all=1) for every dead letter"
        )));
    }
    if filter.states.is_empty() && filter.ids.is_empty() {
        filter.states.push(State::Dead);
    }
    let change = match verb {
        "retry" => Change::Retry { from: due_from.unwrap_or_else(|| inbox.now()), gap },
        _ => Change::Discard,
    };
    let changed = search::change(inbox, filter, change, after, limit.unwrap_or(usize::MAX), is_trial).await?;
    Ok(json!({
        "matched": changed.matched,
        "changed": changed.changed,
        "behind": changed.behind,
        "due_from": changed.from.map(|from| from.0),
        "next": changed.next.map(|next| next.to_string()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    #[test]
    fn times_are_rfc_3339_or_ages() {
        for (text, millis) in [
            ("2027-01-15T08:00:00Z", 1_800_000_000_000),
            ("2027-01-15T09:00:00.250+01:00", 1_800_000_000_250),
            ("90s", 1_799_999_910_000),
            ("15m", 1_799_999_100_000),
            ("2h", 1_799_992_800_000),
            ("3d", 1_799_740_800_000),
            ("99999999999d", 0),
        ] {
            assert_eq!(time_of(text, NOW), Some(UnixMillis(millis)), "{text}");
        }
        for wrong in
            ["", "h", "-1h", "+1h", "1.5h", "1w", "2h ", "yesterday", "2027-01-15", "999999999999999999999h", "é"]
        {
            assert_eq!(time_of(wrong, NOW), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_rate_is_a_number_and_a_unit_of_time() {
        assert_eq!(gap("50/s"), Some(20_000));
        assert_eq!(gap("30/m"), Some(2_000_000));
        assert_eq!(gap("1/h"), Some(3_600_000_000));
        for wrong in ["", "50", "0/s", "-1/s", "1/d", "/s", "1.5/s", "99999999999999999999/s"] {
            assert_eq!(gap(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_misspelt_filter_is_refused_and_never_finds_everything() {
        let why = |query: &str| Asked::read(query, NOW).err().unwrap_or_else(|| panic!("{query} was taken"));
        assert_eq!(why("sorce=a"), "\"sorce\" is no parameter of this");
        assert!(why("state=alive").starts_with("state: \"alive\" is not waiting, behind"));
        assert!(why("since=yesterday").starts_with("since: \"yesterday\" is not a time"));
        assert!(why("id=").contains("an id is empty"));
        assert!(why("id=seq:x").contains("is no number"));
        assert!(why("limit=0").contains("a number above 0"));
        assert!(why("limit=-1").contains("a number above 0"));
        assert!(why("after=1-2").contains("a cursor"));
        assert!(why("dry_run=yes").contains("1 or 0"));
        assert!(why(&"id=1&".repeat(MOST_IDS + 1)).contains("more than 1000 ids"));
        assert!(why(&format!("id={}", "x".repeat(LONGEST_QUERY))).contains("too long"));
        assert!(Asked::read("source=a&state=dead&since=2h&id=1&limit=5&after=1-2-3&dry_run=1", NOW).is_ok());
    }

    #[test]
    fn what_lets_one_act_as_the_sender_is_masked() {
        for name in [
            "authorization",
            "proxy-authorization",
            "x-forwarded-authorization",
            "cookie",
            "x-gitlab-token",
            "x-telegram-bot-api-secret-token",
            "x-goog-channel-token",
            "X-API-Key",
            "x_api_key",
            "x-shared-secret",
            "x-webhook-password",
            "x-shared-key",
            "x-acme-auth",
            "api.key",
            "key",
        ] {
            assert!(names_a_credential(name), "{name}");
        }
        for name in
            ["content-type", "x-hub-signature-256", "stripe-signature", "x-request-id", "x-github-event", "user-agent"]
        {
            assert!(!names_a_credential(name), "{name}");
        }
        assert_eq!(masked_query("/a?x=1&token=s&api%5Fkey=t&token&%ff=u"), "/a?x=1&token=…&api%5Fkey=…&token&%ff=…");
        assert_eq!(masked_query("/token=1"), "/token=1");
    }
}
