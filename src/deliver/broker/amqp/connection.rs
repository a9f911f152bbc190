//! A lasting connection to RabbitMQ, made anew when it ends; and its channels.
//!
//! Invariant: a channel carries one publication at a time: what
//! comes back on it (a returned message, a confirmation, a refusal) can only be that publication's. A channel whose
//! publication has no confirmation is never used again.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_core::Stream;
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::RustlsConnector;
use lapin::{Channel, Connection, ErrorKind, Event as Happened};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::super::settings::{AmqpServer, Declare};
use super::handshake::{EndUnlessKept, connect, declare, end};
use super::message::MOST_SHORT;
use crate::deliver::failure::cause;
use crate::dial::Waits;

/// How often whoever waits for the first attempt looks whether it has ended.
const MOMENT: Duration = Duration::from_millis(5);

/// A broker that answers nothing for so long is given up, and with it the connection.
const SILENCE: Duration = Duration::from_secs(2);

/// What the log has of a broker that refuses again and again for the same reason: one line in so long.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// What a link needs to know.
pub(super) struct Wanted {
    /// The upstream's name.
    pub(super) name: Arc<str>,
    /// Without credentials.
    pub(super) label: String,
    pub(super) server: AmqpServer,
    pub(super) declare: Declare,
    pub(super) max_in_flight: usize,
}

pub(super) struct Link {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    wanted: Wanted,
    tls: Option<RustlsConnector>,
    session: ArcSwapOption<Session>,
    /// Why there is none, for whoever asks meanwhile.
    why: ArcSwapOption<String>,
    told: Mutex<Told>,
    known: AtomicBool,
}

/// What was last said in the log of a refusal.
#[derive(Default)]
struct Told {
    what: String,
    at: Option<Instant>,
}

impl Link {
    /// Begins to connect; needs a runtime.
    pub(super) fn start(wanted: Wanted) -> Result<Self, String> {
        if wanted.server.vhost.len() > MOST_SHORT {
            return Err("the virtual host's name is longer than AMQP's 255 bytes".to_owned());
        }
        let tls = wanted.server.tls.as_ref().map(|tls| tls.client_config()).transpose();
        let tls = tls.map_err(|error| error.to_string())?.map(RustlsConnector::from);
        let shared = Arc::new(Shared {
            wanted,
            tls,
            session: ArcSwapOption::empty(),
            why: ArcSwapOption::empty(),
            told: Mutex::default(),
            known: AtomicBool::new(false),
        });
        let keeper = tokio::spawn(keep(shared.clone())).abort_handle();
        Ok(Self { shared, keeper })
    }

    /// None: not known yet. A broker that takes nothing for want of memory or disk space is not up.
    pub(super) fn is_up(&self) -> Option<bool> {
        match self.shared.session.load().as_deref() {
            Some(session) => Some(session.is_usable()),
            None => self.shared.known.load(Ordering::Relaxed).then_some(false),
        }
    }

    /// After a start or a reload the first deliveries come before the connection is there. It is a matter of
    /// milliseconds, and no reason to send anybody away.
    pub(super) async fn first_tried(&self) {
        while self.is_up().is_none() {
            sleep(MOMENT).await;
        }
    }

    /// The connection there is now, or why nothing can be published. The error is for the operator.
    pub(super) fn session(&self) -> Result<Arc<Session>, String> {
        let Some(session) = self.shared.session.load_full() else {
            let why = self.shared.why.load_full();
            return Err(why.map_or_else(|| "not yet connected".to_owned(), |why| why.to_string()));
        };
        match &*session.blocked.borrow() {
            Some(reason) => Err(blocked(reason)),
            None if session.connection.status().blocked() => Err(blocked("")),
            None => Ok(session.clone()),
        }
    }

    /// A refusal, for the log: when it is another than before, and now and then while it lasts.
    pub(super) fn tell(&self, what: &str) {
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        let since = told.at.map(|at| at.elapsed());
        let is_due = match since {
            None => true,
            Some(since) if told.what == what => since >= TOLD_AGAIN,
            Some(since) => since >= Waits::LONGEST,
        };
        if is_due {
            warn!(upstream = %self.shared.wanted.name, "{} took no message: {what}", self.shared.wanted.label);
            *told = Told { what: what.to_owned(), at: Some(Instant::now()) };
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

fn blocked(reason: &str) -> String {
    let reason = if reason.is_empty() { "an alarm" } else { reason };
    format!("the broker takes no messages: {reason}")
}

async fn keep(shared: Arc<Shared>) {
    let mut waits = Waits::new();
    let mut told = String::new();
    let Wanted { name, label, .. } = &shared.wanted;
    loop {
        let began = Instant::now();
        let why = match Session::open(&shared).await {
            Ok((session, happens)) => {
                told.clear();
                let session = Arc::new(session);
                shared.session.store(Some(session.clone()));
                shared.known.store(true, Ordering::Relaxed);
                // Whoever reads it may rely on it.
                info!(upstream = %name, "connected to {label}");
                let why = watch_over(&session, happens, name, label).await;
                shared.session.store(None);
                session.end("the connection ended");
                if began.elapsed() > Waits::LONGEST {
                    waits = Waits::new();
                }
                why
            }
            Err(why) => why,
        };
        shared.why.store(Some(Arc::new(why.clone())));
        shared.known.store(true, Ordering::Relaxed);
        if told != why {
            warn!(upstream = %name, "{label} cannot be used, and is tried again until it can: {why}");
            told = why;
        }
        sleep(waits.take()).await;
    }
}

type Happens = Pin<Box<dyn Stream<Item = Happened> + Send>>;

/// Until the connection is no longer good; why that is.
async fn watch_over(session: &Session, mut happens: Happens, name: &str, label: &str) -> String {
    loop {
        let happened = tokio::select! {
            happened = std::future::poll_fn(|context| happens.as_mut().poll_next(context)) => happened,
            () = session.ended.notified() => return session.why_ended(),
            // An end of which no event tells.
            () = sleep(Waits::LONGEST) => None,
        };
        match happened {
            Some(Happened::ConnectionBlocked(reason)) => {
                let why = blocked(&reason);
                session.blocked.send_replace(Some(reason));
                warn!(upstream = %name, "{label}: {why}");
            }
            Some(Happened::ConnectionUnblocked) => {
                session.blocked.send_replace(None);
                info!(upstream = %name, "{label} takes messages again");
            }
            // A channel's errors come this way too, and the connection lives on.
            Some(Happened::Error(error)) if !session.connection.status().connected() => return told(&error),
            _ if !session.connection.status().connected() => return "the connection ended".to_owned(),
            _ => {}
        }
    }
}

/// For the operator.
pub(super) fn told(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
            "the broker closed the connection".to_owned()
        }
        ErrorKind::IOError(error) => cause(&**error),
        ErrorKind::MissingHeartbeatError => "nothing came from the broker for too long".to_owned(),
        ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_) => {
            "the connection ended".to_owned()
        }
        _ => error.to_string(),
    }
}

/// One connection.
pub(super) struct Session {
    connection: Connection,
    /// The same socket: to end it without a word, and whatever is still to be written with it.
    socket: std::net::TcpStream,
    free: Mutex<Vec<Seat>>,
    /// For channels: as many as the broker allows.
    places: Arc<Semaphore>,
    /// After the broker closed a channel.
    held: Mutex<Held>,
    blocked: watch::Sender<Option<String>>,
    /// Since when it owes an answer without having given any.
    silent_since: Mutex<Option<Instant>>,
    ended: Notify,
    why: Mutex<String>,
}

/// A channel in confirm mode, and its place among those that the broker allows.
pub(super) struct Seat {
    pub(super) channel: Channel,
    _place: OwnedSemaphorePermit,
}

struct Held {
    until: Instant,
    waits: Waits,
    why: String,
}

impl Session {
    async fn open(shared: &Shared) -> Result<(Self, Happens), String> {
        let server = &shared.wanted.server;
        let (connection, socket) = connect(server, shared.tls.as_ref(), shared.wanted.max_in_flight).await?;
        let guard = EndUnlessKept::new(&socket);
        let declaring = timeout(server.connect_timeout, declare(&connection, &shared.wanted.declare));
        declaring.await.map_err(|_| "declaring the queue took longer than connect_timeout".to_owned())??;
        guard.keep();
        let happens: Happens = Box::pin(connection.events_listener());
        let channels = usize::from(connection.configuration().channel_max()).max(1);
        let now = Instant::now();
        let session = Self {
            connection,
            socket,
            free: Mutex::default(),
            places: Arc::new(Semaphore::new(channels)),
            held: Mutex::new(Held { until: now, waits: Waits::new(), why: String::new() }),
            blocked: watch::Sender::new(None),
            silent_since: Mutex::default(),
            ended: Notify::new(),
            why: Mutex::default(),
        };
        // What happened before anybody listened.
        if session.connection.status().blocked() {
            session.blocked.send_replace(Some(String::new()));
        }
        Ok((session, happens))
    }

    fn is_usable(&self) -> bool {
        let status = self.connection.status();
        status.connected() && !status.blocked()
    }

    pub(super) fn frame_max(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// A channel that nobody uses. The error is for the operator.
    pub(super) async fn seat(&self) -> Result<Seat, String> {
        loop {
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match free {
                Some(seat) if seat.channel.status().connected() => return Ok(seat),
                Some(_) => {}
                None => break,
            }
        }
        if let Some(why) = self.held_back() {
            return Err(why);
        }
        let place = self.places.clone().acquire_owned().await.map_err(|_| "the connection ended".to_owned())?;
        self.asked();
        let channel = self.connection.create_channel().await.map_err(|error| told(&error))?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| told(&error))?;
        self.heard();
        Ok(Seat { channel, _place: place })
    }

    /// After its publication was confirmed or refused.
    pub(super) fn give_back(&self, seat: Seat) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
    }

    /// The broker closed a channel: none is opened for a while, and whoever asks is told why.
    pub(super) fn hold_back(&self, why: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.until = Instant::now() + held.waits.take();
        why.clone_into(&mut held.why);
    }

    /// A publication was taken.
    pub(super) fn go_on(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).waits = Waits::new();
    }

    fn held_back(&self) -> Option<String> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        (Instant::now() < held.until).then(|| held.why.clone())
    }

    /// The broker was asked for something.
    pub(super) fn asked(&self) {
        self.silent_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    pub(super) fn heard(&self) {
        *self.silent_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// An answer did not come in time: a broker that says nothing at all for a while is not there.
    pub(super) fn end_if_silent(&self) {
        let since = *self.silent_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some_and(|since| since.elapsed() >= SILENCE) && self.is_usable() {
            self.end("the broker says nothing");
        }
    }

    /// Ends it without a word. What was not written never will be.
    fn end(&self, why: &str) {
        let mut reason = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if reason.is_empty() {
            why.clone_into(&mut reason);
        }
        drop(reason);
        end(&self.socket);
        self.ended.notify_one();
    }

    fn why_ended(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the broker has been refusing everything for so long.
    pub(super) async fn blocked_for(&self, grace: Duration) {
        let mut blocked = self.blocked.subscribe();
        loop {
            if blocked.wait_for(Option::is_some).await.is_err() {
                return std::future::pending().await;
            }
            if timeout(grace, blocked.wait_for(Option::is_none)).await.is_err() {
                return;
            }
        }
    }
}
