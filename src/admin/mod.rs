//! The operator's port: another listener, another trust.
//!
//! Invariant: `/metrics`, `/healthz` and `/readyz` are open to whoever reaches the port; everything else wants the
//! token, and without a configured token nobody has it. No secret is shown to anyone, but for those that a provider
//! brought and wants to have pasted back (Notion): these are shown to whoever has the token. No signature that was expected
//! is shown either: whoever has the token may read, not forge.

pub(crate) mod inbox;
mod quarantine;

use crate::gateway::Door;
use crate::gateway::explain::{Question, explain};
use crate::gateway::refused::Kept;
use crate::secret::Secret;
use crate::server::{Request, Response};
use crate::verify::Workshop;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::Full;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) struct AdminPort {
    door: Arc<Door>,
    token: ArcSwapOption<Secret>,
    workshop: OpenWorkshop,
    /// One explanation at a time: each may try thousands of ways.
    explaining: Arc<Semaphore>,
    /// Walks through the inbox: the disk belongs to the deliveries first.
    searching: Arc<Semaphore>,
}

/// More than this would only make each other slow.
const SEARCHES: usize = 2;

/// The configuration as it is now, for as long as something is tried with it.
pub(crate) type OpenWorkshop = Box<dyn Fn() -> Box<dyn Workshop> + Send + Sync>;

/// How long whoever asks for an explanation waits for the one before.
const LONGEST_TURN: Duration = Duration::from_secs(10);

type Reply = Response<Full<Bytes>>;

impl AdminPort {
    pub(crate) fn new(door: Arc<Door>, token: Option<Secret>, workshop: OpenWorkshop) -> Self {
        Self {
            door,
            token: ArcSwapOption::from_pointee(token),
            workshop,
            explaining: Arc::new(Semaphore::new(1)),
            searching: Arc::new(Semaphore::new(SEARCHES)),
        }
    }

    /// The new one counts from now on, and the old one no longer.
    pub(crate) fn change_token(&self, token: Option<Secret>) {
        self.token.store(token.map(Arc::new));
    }

    pub(crate) async fn answer(self: Arc<Self>, request: Request) -> Reply {
        let path = request.head.uri.path();
        // Without the token, not even what is here and what is not.
        if !matches!(path, "/metrics" | "/healthz" | "/readyz") && !self.is_operator(&request) {
            let mut reply = text(StatusCode::UNAUTHORIZED, "the admin token, as a bearer token; see [admin] token\n");
            reply.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return reply;
        }
        if path == "/inbox/reverify" {
            return self.reverify(&request.head.method, request.head.uri.query().unwrap_or_default()).await;
        }
        if let Some(rest) = path.strip_prefix("/inbox/") {
            return self.inbox(&request.head.method, rest, request.head.uri.query().unwrap_or_default()).await;
        }
        if !matches!(request.head.method, Method::GET | Method::HEAD) {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD\n");
            reply.headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.door.unready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}\n")),
            },
            "/metrics" => {
                let door = self.door.clone();
                let written = tokio::task::spawn_blocking(move || {
                    door.refresh_gauges();
                    door.metrics.text()
                });
                match written.await {
                    Ok(text) => typed(StatusCode::OK, text.into(), "text/plain; version=0.0.4; charset=utf-8"),
                    Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
                }
            }
            "/sources" => typed(StatusCode::OK, self.sources().into(), "application/json"),
            "/captured" => typed(StatusCode::OK, self.captured().into(), "application/json"),
            "/refusals" => typed(StatusCode::OK, self.refusals().into(), "application/json"),
            _ => match path.strip_prefix("/refusals/") {
                Some(id) => self.clone().explained(id.to_owned()).await,
                None => text(
                    StatusCode::NOT_FOUND,
                    "here are /metrics, /healthz, /readyz and, with the token, /sources, /captured, /refusals and /inbox/…\n",
                ),
            },
        }
    }

    /// `path` is what stands behind `/inbox/`.
    async fn inbox(&self, method: &Method, path: &str, query: &str) -> Reply {
        let Some(inbox) = self.door.inbox.load_full() else {
            return text(StatusCode::NOT_FOUND, "there is no inbox: no source has delivery = \"inbox\"\n");
        };
        let Ok(Ok(turn)) = timeout(LONGEST_TURN, self.searching.clone().acquire_owned()).await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the inbox is being searched by others; ask again\n");
        };
        let (method, path, query, now) = (method.clone(), path.to_owned(), query.to_owned(), self.door.clock.now());
        // Whoever asks and hangs up must not have more made at a time.
        let answered = tokio::spawn(async move {
            let answer = inbox::answer(&inbox, &method, &path, &query, now).await;
            drop(turn);
            answer
        });
        let Ok(answer) = answered.await else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the question could not be answered\n");
        };
        let kind = if answer.status.is_success() { "application/json" } else { "text/plain; charset=utf-8" };
        let mut reply = typed(answer.status, answer.body, kind);
        if let Some(allow) = answer.allow {
            reply.headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        reply
    }

    fn is_operator(&self, request: &Request) -> bool {
        let mut values = request.head.headers.get_all(header::AUTHORIZATION);
        let (Some(token), Some(value), None) = (&*self.token.load(), values.next(), values.next()) else {
            return false;
        };
        let presented = value.as_bytes().split_at_checked(7);
        presented.is_some_and(|(scheme, presented)| scheme.eq_ignore_ascii_case(b"bearer ") && token.matches(presented))
    }

    /// What sources wait for, whether it has come, and the secret itself where the provider's page asks for it.
    fn captured(&self) -> String {
        let gateway = self.door.snapshot();
        let all = gateway.sources.all().iter();
        let captured: Vec<_> = all
            .filter_map(|source| {
                let settings = &source.settings;
                let awaited = settings.awaits.as_ref()?;
                let kept = self.door.state.captured(&settings.name, awaited).ok().flatten();
                let shown = kept.as_ref().filter(|_| settings.shows_captured);
                Some(serde_json::json!({
                    "source": &*settings.name,
                    "awaited": awaited,
                    "has_come": kept.is_some(),
                    "secret": shown.map(|secret| String::from_utf8_lossy(secret.expose())),
                }))
            })
            .collect();
        format!("{}\n", serde_json::json!({ "captured": captured }))
    }

    /// The last refused deliveries, the newest first.
    fn refusals(&self) -> String {
        let all: Vec<_> = self.door.refusals.all().iter().map(|kept| about(kept)).collect();
        format!("{}\n", serde_json::json!({ "refusals": all }))
    }

    /// One of them judged again at its own time, by the configuration in force, and explained.
    async fn explained(self: Arc<Self>, id: String) -> Reply {
        let Some(kept) = self.door.refusals.find(&id) else {
            return text(StatusCode::NOT_FOUND, "no such refusal is kept; see /refusals\n");
        };
        let gateway = self.door.snapshot();
        let source = gateway.sources.named(&kept.source).cloned();
        let Some(source) = source else {
            return text(StatusCode::NOT_FOUND, "its source is no longer configured\n");
        };
        let Ok(Ok(turn)) = timeout(LONGEST_TURN, self.explaining.clone().acquire_owned()).await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "another explanation is being made; ask again\n");
        };
        let explainer = self.clone();
        let explained = tokio::task::spawn_blocking(move || {
            let workshop = (explainer.workshop)();
            let explanation = explain(&Question {
                settings: &source.settings,
                delivery: &kept.delivery,
                now: kept.at,
                library: &*explainer.door.fetcher,
                workshop: &*workshop,
                for_its_owner: false,
            });
            // Not before: whoever asks and hangs up must not have two made at a time.
            drop(turn);
            let mut object = about(&kept);
            if let (Some(object), serde_json::Value::Object(told)) = (object.as_object_mut(), explanation.to_json()) {
                // What was refused then and what is said now may differ: the configuration may have been mended.
                object.insert("was_refused".to_owned(), kept.refusal.label().into());
                object.extend(told);
            }
            object
        });
        match explained.await {
            Ok(object) => typed(StatusCode::OK, format!("{object}\n").into(), "application/json"),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the explanation failed\n"),
        }
    }

    /// What is configured and how full its memory is: what one asks first when a provider says its webhooks fail.
    fn sources(&self) -> String {
        let gateway = self.door.snapshot();
        let sources: Vec<_> = gateway
            .sources
            .all()
            .iter()
            .map(|source| {
                let settings = &source.settings;
                serde_json::json!({
                    "name": &*settings.name,
                    "host": settings.host,
                    "path": settings.path.to_string(),
                    "listeners": settings.listeners,
                    "upstream": settings.routes.otherwise().map(|target| &*target.upstream),
                    "upstreams": settings.routes.upstreams().iter().map(|name| &***name).collect::<Vec<&str>>(),
                    "upstream_can_forward": source.outlets.iter().any(|outlet| outlet.destination.can_forward()),
                    "mode": if settings.observe { "observe" } else { "enforce" },
                    "secrets": settings.secret_names,
                    "claims": source.ledger.len(),
                    "max_claims": source.ledger.capacity(),
                })
            })
            .collect();
        format!("{}\n", serde_json::json!({ "sources": sources }))
    }
}

/// No header, no query and no body: the explanation shows what it needs of them.
fn about(kept: &Kept) -> serde_json::Value {
    serde_json::json!({
        "id": kept.id,
        "at": kept.at.as_secs(),
        "source": &*kept.source,
        "client": kept.client.to_string(),
        "refusal": kept.refusal.label(),
        "note": kept.note,
        "method": kept.delivery.method.as_str(),
        "path": kept.delivery.path,
        "body_bytes": kept.body_bytes,
        "body_kept": kept.has_body(),
    })
}

fn text(status: StatusCode, body: &str) -> Reply {
    typed(status, Bytes::from(body.to_owned()), "text/plain; charset=utf-8")
}

fn typed(status: StatusCode, body: Bytes, content_type: &'static str) -> Reply {
    let mut reply = Response::new(Full::new(body));
    reply.status = status;
    reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
