//! The connection to one of the servers: made in the background, and made anew when it ends.
//!
//! Invariant: a client has one connection in its life. Left to itself it would connect again and then write all that
//! had queued up in it meanwhile, minutes after the senders were told 503; so it is led to an address where nobody
//! answers, gives up at once, and what it held is dropped with it. Whoever waits for an answer over a connection learns
//! of its end at once, and whoever no longer waits is forgotten at once.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_nats::connection::State;
use async_nats::{
    Client, ConnectError, ConnectErrorKind, Event, HeaderMap, Message, PublishErrorKind, ReconnectToServer, ServerAddr,
    ServerError, Subscriber,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::super::settings::NatsTarget;
use super::login;
use super::waiters::Waiters;
use crate::deliver::failure::cause;
use crate::dial::{Address, Waits};

/// A connection that ended sooner was none: the next attempt waits longer.
const SETTLED: Duration = Duration::from_secs(5);

/// A server that says nothing for so long is asked whether it lives; at the third question without an answer it does
/// not.
const PING_EVERY: Duration = Duration::from_secs(1);

/// A name may stand for so many addresses that are tried in turn, each for `connect_timeout`.
const ADDRESSES: u32 = 4;

/// What the client has to tell beside answers: what does not fit is a repetition.
const EVENTS: usize = 64;

/// Complaints of a server are logged once each on a connection, and so many of them: subjects stand in them.
const COMPLAINTS: usize = 16;

/// Beside a body: headers of a request at most, somewhat longer where they are written as `http-…`.
const ROOM_FOR_HEADERS: u64 = 64 << 10;

/// Port 0 belongs to nobody.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Nothing was sent.
    Down(String),
    /// Nothing was sent: it is more than the server takes.
    TooLarge(String),
    /// The account may not publish there: nothing was stored.
    Forbidden,
    /// It may have arrived.
    Lost,
}

pub(super) struct Link {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    /// The upstream's name, for the log.
    who: Arc<str>,
    target: NatsTarget,
    tls: ClientConfig,
    connection: ArcSwapOption<Connection>,
    /// Why there is none, for whoever asks meanwhile.
    why: ArcSwapOption<String>,
    /// None: the first attempt at all servers is under way.
    is_up: watch::Sender<Option<bool>>,
}

impl Link {
    /// Begins to connect; needs a runtime.
    pub(super) fn start(who: Arc<str>, target: NatsTarget) -> Result<Self, String> {
        login::options(&target.auth)?;
        // In the clear too: a server may insist on TLS, and then its certificate is verified.
        let tls = target.tls.clone().unwrap_or_default().client_config_by_name().map_err(|error| error.to_string())?;
        let shared = Arc::new(Shared {
            who,
            target,
            tls,
            connection: ArcSwapOption::empty(),
            why: ArcSwapOption::empty(),
            is_up: watch::Sender::new(None),
        });
        let keeper = tokio::spawn(keep(shared.clone())).abort_handle();
        Ok(Self { shared, keeper })
    }

    /// None: not known yet.
    pub(super) fn is_up(&self) -> Option<bool> {
        *self.shared.is_up.borrow()
    }

    /// What answers to the subject, whenever that is.
    pub(super) async fn request(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Message, Unanswered> {
        let down = || {
            let why = self.shared.why.load_full();
            Unanswered::Down(why.map_or_else(|| "not yet connected".to_owned(), |why| why.to_string()))
        };
        // After a start or a reload it is a matter of milliseconds, and no reason to send anybody away.
        if self.is_up().is_none() {
            let _ = self.shared.is_up.subscribe().wait_for(Option::is_some).await;
        }
        let connection = self.shared.connection.load_full().ok_or_else(down)?;
        // The client hears of the end a little earlier than its keeper.
        if connection.client.connection_state() != State::Connected {
            return Err(Unanswered::Down("the connection has just ended".to_owned()));
        }
        let (place, answer) = connection.waiters.wait(subject).ok_or_else(down)?;
        let reply = format!("{}{}", connection.inbox, place.token());
        let publishing =
            connection.client.publish_with_reply_and_headers(subject.to_owned(), reply, headers, payload).await;
        if let Err(error) = publishing {
            return Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Unanswered::TooLarge(cause(&error)),
                PublishErrorKind::InvalidSubject | PublishErrorKind::Send => Unanswered::Down(cause(&error)),
            });
        }
        answer.await.unwrap_or(Err(Unanswered::Lost))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // What it holds of the client goes with it, and the client with the last that holds it.
        self.keeper.abort();
        self.shared.connection.store(None);
    }
}

/// A client and those who wait for an answer over it.
struct Connection {
    client: Client,
    /// With the dot behind it.
    inbox: String,
    waiters: Waiters<Result<Message, Unanswered>>,
}

impl Connection {
    fn answer(&self, message: Message) {
        let token = message.subject.strip_prefix(&*self.inbox).and_then(|token| token.parse().ok());
        if let Some(token) = token {
            self.waiters.answer(token, Ok(message));
        }
    }
}

/// A connection, and what comes over it.
struct Session {
    connection: Arc<Connection>,
    server: String,
    answers: Subscriber,
    events: mpsc::Receiver<Event>,
}

async fn keep(shared: Arc<Shared>) {
    let who = &*shared.who;
    let mut waits = Waits::new();
    // What the log has heard last: each state is told once.
    let mut told = None;
    let mut warned_of = None;
    loop {
        let mut reasons = Vec::new();
        for address in &shared.target.servers {
            // In a task of its own: the client takes some of what a server says for granted, and its panic is not to be
            // the end of all attempts.
            let mut opening = JoinSet::new();
            opening.spawn(Session::open(shared.clone(), address.clone()));
            let session = match opening.join_next().await {
                Some(Ok(Ok(session))) => session,
                Some(Ok(Err(why))) => {
                    reasons.push(format!("{address}: {why}"));
                    continue;
                }
                Some(Err(_)) | None => {
                    reasons.push(format!("{address}: what it says is not understood"));
                    continue;
                }
            };
            shared.look_at(&session, &mut warned_of);
            shared.connection.store(Some(session.connection.clone()));
            shared.is_up.send_replace(Some(true));
            // Whoever reads it may rely on it.
            tracing::info!(upstream = who, server = session.server, "connected to NATS");
            let begun = Instant::now();
            let why = session.run(who).await;
            shared.go_down(&why);
            tracing::warn!(upstream = who, server = %address, why, "the connection to NATS has ended");
            if begun.elapsed() > SETTLED {
                waits = Waits::new();
            }
            told = None;
            reasons.clear();
            break;
        }
        if !reasons.is_empty() {
            let reasons = reasons.join("; ");
            shared.go_down(&reasons);
            if told.as_ref() != Some(&reasons) {
                tracing::warn!(upstream = who, why = reasons, "NATS cannot be reached; it is tried on");
            }
            told = Some(reasons);
        }
        sleep(waits.take()).await;
    }
}

impl Shared {
    fn go_down(&self, why: &str) {
        self.why.store(Some(Arc::new(why.to_owned())));
        self.connection.store(None);
        self.is_up.send_replace(Some(false));
    }

    /// What an operator should know of a server before something fails for it.
    fn look_at(&self, session: &Session, warned_of: &mut Option<usize>) {
        let who = &*self.who;
        let info = session.connection.client.server_info();
        if !info.jetstream {
            tracing::warn!(upstream = who, server = session.server, "the server has no JetStream: nothing is stored");
        }
        let max_body = self.target.max_body;
        let most = u64::try_from(info.max_payload).unwrap_or(u64::MAX);
        if max_body > most.saturating_sub(ROOM_FOR_HEADERS) && *warned_of != Some(info.max_payload) {
            *warned_of = Some(info.max_payload);
            tracing::warn!(
                upstream = who,
                max_body,
                max_payload = most,
                "bodies as large as `max_body` do not fit the server's max_payload with their headers: they are answered 413"
            );
        }
    }
}

impl Session {
    /// The error is for the log, and for whoever sends meanwhile.
    async fn open(shared: Arc<Shared>, address: Address) -> Result<Self, String> {
        let target = &shared.target;
        let server: ServerAddr = format!("nats://{address}").parse().map_err(|_| "is no address".to_owned())?;
        let nowhere: ServerAddr = NOWHERE.parse().map_err(|_| "is no address".to_owned())?;
        let (told, events) = mpsc::channel(EVENTS);
        let has_connected = AtomicBool::new(false);
        let choice = (server.clone(), nowhere.clone());
        let options = login::options(&target.auth)?
            .name("hookward")
            .connection_timeout(target.connect_timeout)
            .ping_interval(PING_EVERY)
            // Whoever asks has a deadline.
            .request_timeout(None)
            // Those that are configured are known to be the operator's.
            .ignore_discovered_servers()
            .retain_servers_order()
            .require_tls(target.tls.is_some())
            .tls_client_config(shared.tls.clone())
            .max_reconnects(1)
            .reconnect_to_server_callback(move |_, _| {
                let (server, nowhere) = &choice;
                let addr = if has_connected.swap(true, Ordering::Relaxed) { nowhere } else { server };
                ready(Some(ReconnectToServer { addr: addr.clone(), delay: Some(Duration::ZERO) }))
            })
            .event_callback(move |event| {
                let _ = told.try_send(event);
                ready(())
            });
        let pool = [server, nowhere];
        let connecting = options.connect(pool.as_slice());
        let client = match timeout(target.connect_timeout * ADDRESSES, connecting).await {
            Ok(connected) => connected.map_err(|error| reason(&error))?,
            Err(_) => return Err("timed out".to_owned()),
        };
        let inbox = format!("{}.", client.new_inbox());
        let answers = client.subscribe(format!("{inbox}*")).await.map_err(|error| cause(&error))?;
        let connection = Arc::new(Connection { client, inbox, waiters: Waiters::default() });
        Ok(Self { connection, server: address.to_string(), answers, events })
    }

    /// Until it has ended; says why.
    async fn run(mut self, who: &str) -> String {
        let server = &*self.server;
        let mut complaints = BTreeSet::new();
        let mut last = None;
        loop {
            tokio::select! {
                message = self.answers.next() => match message {
                    Some(message) => self.connection.answer(message),
                    None => break,
                },
                event = self.events.recv() => match event {
                    None | Some(Event::Disconnected | Event::Closed) => break,
                    Some(Event::LameDuckMode) => {
                        tracing::warn!(upstream = who, server, "the NATS server is going to stop, and says so");
                    }
                    Some(Event::SlowConsumer(_)) => {
                        tracing::warn!(upstream = who, server, "acknowledgements came faster than they were read");
                    }
                    Some(Event::ServerError(error)) => {
                        let complaint = complaint(&error);
                        if let Some(subject) = forbidden_subject(&complaint) {
                            self.connection.waiters.answer_all(subject, || Err(Unanswered::Forbidden));
                        }
                        if complaints.len() < COMPLAINTS && complaints.insert(complaint.clone()) {
                            tracing::warn!(upstream = who, server, complaint, "the NATS server complains");
                        }
                        last = Some(complaint);
                    }
                    Some(Event::Connected | Event::Draining | Event::ClientError(_)) => {}
                },
            }
        }
        // What came before the end has arrived.
        while let Some(Some(message)) = self.answers.next().now_or_never() {
            self.connection.answer(message);
        }
        self.connection.waiters.end();
        last.unwrap_or_else(|| "the server closed it, or does not answer".to_owned())
    }
}

fn complaint(error: &ServerError) -> String {
    match error {
        ServerError::Other(text) => text.clone(),
        ServerError::AuthorizationViolation | ServerError::SlowConsumer(_) => error.to_string(),
    }
}

/// `Permissions Violation for Publish to "hooks.shop"`
fn forbidden_subject(complaint: &str) -> Option<&str> {
    let (_, behind) = complaint.split_once("Permissions Violation for Publish to \"")?;
    behind.split_once('"').map(|(subject, _)| subject)
}

fn reason(error: &ConnectError) -> String {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => "the server refuses the login".to_owned(),
        _ => cause(error),
    }
}
