//! The quarantine as the operator sees it: `GET /inbox/quarantine`, and `POST /inbox/reverify`.
//!
//! Invariant: nothing of a kept request is shown, for strangers wrote it and nobody has proven it: how many there are,
//! how large, how old, and what came of judging them again.

use super::{AdminPort, Reply, text, typed};
use crate::gateway::quarantine::{NoRound, Reverified};
use crate::inbox::{Inbox, QuarantineSummary};
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::form_urlencoded;

impl AdminPort {
    /// For as long as a round takes; whoever hangs up does not end it.
    pub(super) async fn reverify(&self, method: &Method, query: &str) -> Reply {
        if *method != Method::POST {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "POST\n");
            reply.headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            return reply;
        }
        let (mut source, mut after) = (None, 0);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match (&*name, value.parse()) {
                ("source", _) if source.is_none() => source = Some(value.into_owned()),
                ("after", Ok(number)) => after = number,
                _ => return text(StatusCode::BAD_REQUEST, "wanted is source=NAME, once\n"),
            }
        }
        let Some(source) = source else { return text(StatusCode::BAD_REQUEST, "wanted is source=NAME\n") };
        match self.door.reverify(&source, after).await {
            Ok(done) => typed(StatusCode::OK, format!("{}\n", told(&done)).into(), "application/json"),
            Err(why) => text(status(&why), &format!("{why}\n")),
        }
    }
}

/// Of every source, or of these. Blocking.
pub(super) fn list(inbox: &Inbox, sources: &[String]) -> Result<Value, String> {
    let mut all = inbox.quarantined()?;
    all.retain(|one| sources.is_empty() || sources.contains(&one.source));
    Ok(json!({ "quarantine": all.iter().map(summary).collect::<Vec<_>>() }))
}

fn summary(of: &QuarantineSummary) -> Value {
    json!({
        "source": of.source,
        "count": of.count,
        "bytes": of.bytes,
        "clients": of.clients,
        "oldest": written(of.oldest.as_secs()),
        "newest": written(of.newest.as_secs()),
    })
}

fn written(secs: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(secs).ok()?).ok()?;
    at.format(&Rfc3339).ok()
}

fn told(done: &Reverified) -> Value {
    json!({
        "accepted": done.accepted,
        "replays": done.replays,
        "duplicates": done.duplicates,
        "challenges": done.challenges,
        "still_refused": done.still_refused,
        "in_flight": done.in_flight,
        "expired": done.expired,
        "unreadable": done.unreadable,
        "stopped": done.stopped,
        "next": done.next,
    })
}

fn status(why: &NoRound) -> StatusCode {
    match why {
        NoRound::Busy | NoRound::NoInbox => StatusCode::CONFLICT,
        NoRound::NoSource => StatusCode::NOT_FOUND,
        NoRound::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
