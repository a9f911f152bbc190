//! What was refused for its signature alone, set aside; and judged again when the operator has mended the secret.
//!
//! Invariant: the sender's 401 waits for nothing that is done here, and says the same whether the request is kept or not.
//! What is judged again is judged as it came and at the time it came, and passes the same claims as a first delivery, so
//! that nothing that was accepted before, by whichever way, is accepted a second time. Only one such round runs at a time.
//!
//! One file: what is kept, and how it is judged again, is one argument.

use super::Door;
use super::journey::{Journey, Judged};
use super::source::{OnDuplicate, Source, Way};
use super::visit::{Again, Visit};
use crate::client::ClientKey;
use crate::clock::UnixMillis;
use crate::delivery::Delivery;
use crate::fields::Fields;
use crate::inbox::{Dropped, Inbox, Suspect};
use crate::parcel::Parcel;
use crate::refusal::Refusal;
use crate::state::{Claim, Reservation, StateError};
use crate::verify::{Refused, Verified};
use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderValue, Method};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Bytes of what was set aside and is not yet written, of all sources together: what comes beyond is dropped.
const UNWRITTEN: usize = 64 << 20;

/// Each counts for this much at least, which bounds their number.
const LEAST: usize = 64 << 10;

/// A proof asks for one key at a time, and has few.
const MOST_KEYS: usize = 4;

const LONGEST_KEY_WAIT: Duration = Duration::from_secs(6);

/// A copy is under way just now; it is decided in less than this, or left for the next round.
const LONGEST_IN_FLIGHT: Duration = Duration::from_secs(5);

const LOOKS_AGAIN: Duration = Duration::from_millis(100);

/// Whoever asked hears what was done so far, and asks for the rest: nobody waits for long without a word.
const LONGEST_ROUND: Duration = Duration::from_secs(20);

/// What the process holds of this, beside the store.
pub(super) struct Aside {
    unwritten: Arc<Semaphore>,
    round: Arc<Semaphore>,
    expiring: Arc<Semaphore>,
}

impl Default for Aside {
    fn default() -> Self {
        let turn = || Arc::new(Semaphore::new(1));
        Self { unwritten: Arc::new(Semaphore::new(UNWRITTEN)), round: turn(), expiring: turn() }
    }
}

/// A request as it came, and what was known of how it came.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) delivery: Delivery,
    pub(super) client: IpAddr,
    pub(super) listener: Arc<str>,
    /// The subject of the client's certificate, where it presented one.
    pub(super) certificate: Option<String>,
    /// The source asked for that certificate, and it passed.
    pub(super) with_certificate: bool,
    pub(super) forwarding: Vec<(HeaderName, HeaderValue)>,
    pub(super) traceparent: HeaderValue,
}

/// What became of all that was kept of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reverified {
    pub(crate) accepted: u64,
    /// Proven, and accepted before.
    pub(crate) replays: u64,
    /// Proven, with an event id that was accepted before.
    pub(crate) duplicates: u64,
    /// Proven, and questions to the gateway, which nobody waits for any more.
    pub(crate) challenges: u64,
    /// Kept still, by the reason.
    pub(crate) still_refused: BTreeMap<&'static str, u64>,
    /// Proven, and a copy of it was under way. Kept.
    pub(crate) in_flight: u64,
    /// Too old to be judged, and about to be let go.
    pub(crate) expired: u64,
    /// What is stored of it cannot be read. Kept.
    pub(crate) unreadable: u64,
    /// Why the round ended before its end. What was not reached is kept.
    pub(crate) stopped: Option<String>,
    /// There are more; they are asked for with this.
    pub(crate) next: Option<i64>,
}

/// Why nothing was judged again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRound {
    #[error("another round of judging again is under way; ask again when it has ended")]
    Busy,
    #[error("no source of this name is configured")]
    NoSource,
    #[error("the source does not deliver by the inbox; set delivery = \"inbox\"")]
    NoInbox,
    #[error("the inbox failed: {0}")]
    Store(String),
}

/// How it went with one of them.
enum End {
    Accepted,
    Replay,
    Duplicate,
    Challenge,
    Refused(Refusal),
    InFlight,
    Gone,
    Unreadable,
    Stop(String),
}

/// What the claim of a request says that was kept in the quarantine.
enum Claimed {
    First { reservation: Option<Reservation>, is_duplicate: bool },
    Replay,
    Duplicate,
    InFlight,
}

impl Door {
    /// Hands a refused request over to be kept. Never waits.
    pub(super) fn set_aside(&self, source: &Source, kept: Kept, request_id: &str) {
        let name = source.settings.name.clone();
        if let Err(dropped) = self.take_place(&name, kept, request_id) {
            self.count_dropped(&name, dropped);
        }
    }

    fn take_place(&self, source: &Arc<str>, kept: Kept, request_id: &str) -> Result<(), Dropped> {
        let Some(inbox) = self.inbox.load_full() else { return Err(Dropped::Unwritten) };
        let Ok(request_id) = request_id.parse() else { return Err(Dropped::Unwritten) };
        let received = self.clock.now();
        let size = kept.size();
        let client = ClientKey::of(kept.client).to_string().into();
        let place = inbox.quarantine.admit(source, &client, u64::try_from(size).unwrap_or(u64::MAX))?;
        let weight = u32::try_from(size.max(LEAST)).map_err(|_| Dropped::TooLarge)?;
        let held = self.aside.unwritten.clone().try_acquire_many_owned(weight).map_err(|_| Dropped::Busy)?;
        let work = self.detached.clone().try_acquire_owned().map_err(|_| Dropped::Busy)?;
        let (source, dropped) = (source.clone(), self.metrics.quarantine_dropped.clone());
        tokio::spawn(async move {
            // Copying megabytes is not for a thread that others wait for.
            let content = tokio::task::spawn_blocking(move || kept.encode()).await;
            let written = match content {
                Ok(content) => inbox.confine(place, received, request_id, content).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = written {
                tracing::warn!(source = &*source, error, "a request could not be kept in the quarantine");
                dropped.with_label_values(&[&*source, Dropped::Unwritten.label()]).inc();
            }
            drop((held, work));
        });
        Ok(())
    }

    fn count_dropped(&self, source: &str, dropped: Dropped) {
        self.metrics.quarantine_dropped.with_label_values(&[source, dropped.label()]).inc();
    }

    /// Lets go of what has grown too old. Never waits.
    pub(super) fn expire_quarantine(&self) {
        let Some(inbox) = self.inbox.load_full() else { return };
        let Ok(turn) = self.aside.expiring.clone().try_acquire_owned() else { return };
        let now = self.clock.now();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                loop {
                    match inbox.expire_quarantine(now).await {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(error) => {
                            tracing::warn!(error, "the quarantine could not let go of what is too old");
                            break;
                        }
                    }
                }
                drop(turn);
            });
        }
    }

    /// How much longer a source must remember what it accepted, for a copy of it may lie in the quarantine.
    pub(super) fn quarantine_age(&self, source: &Source) -> Duration {
        let inbox = self.inbox.load();
        let Some(inbox) = inbox.as_ref().filter(|_| source.settings.delivery == Way::Inbox) else {
            return Duration::ZERO;
        };
        // What is kept stays when the source's configuration takes no more of it.
        let keeps = source.settings.quarantine || inbox.quarantine.holds_any_of(&source.settings.name);
        if keeps { inbox.quarantine.max_age() } else { Duration::ZERO }
    }

    /// Judges what is kept of a source again, in order of arrival: all that came behind `after`, or as much of it as a
    /// round has time for. Goes on to its end though nobody waits for it.
    pub(crate) async fn reverify(self: &Arc<Self>, source: &str, after: i64) -> Result<Reverified, NoRound> {
        let gateway = self.snapshot();
        let source = gateway.sources.named(source).ok_or(NoRound::NoSource)?.clone();
        let inbox =
            self.inbox.load_full().filter(|_| source.settings.delivery == Way::Inbox).ok_or(NoRound::NoInbox)?;
        let turn = self.aside.round.clone().try_acquire_owned().map_err(|_| NoRound::Busy)?;
        let door = self.clone();
        let round = tokio::spawn(async move {
            let done = door.round(&source, &inbox, after).await;
            drop(turn);
            done
        });
        round.await.unwrap_or_else(|error| Err(NoRound::Store(error.to_string())))
    }

    async fn round(
        self: &Arc<Self>,
        source: &Arc<Source>,
        inbox: &Arc<Inbox>,
        after: i64,
    ) -> Result<Reverified, NoRound> {
        let begun = Instant::now();
        let (reading, name) = (inbox.clone(), source.settings.name.clone());
        let suspects = tokio::task::spawn_blocking(move || reading.suspects(&name, after)).await;
        let suspects = suspects.map_err(|error| error.to_string()).and_then(|read| read).map_err(NoRound::Store)?;
        let mut done = Reverified::default();
        let mut last = after;
        for suspect in suspects {
            if begun.elapsed() > LONGEST_ROUND {
                done.next = Some(last);
                break;
            }
            last = suspect.id;
            let now = self.clock.now();
            if suspect.expires.min(suspect.received.after(inbox.quarantine.max_age())) <= now {
                done.expired += 1;
                continue;
            }
            if self.is_draining() {
                done.stopped = Some("the gateway is about to end; ask again when it runs".to_owned());
                break;
            }
            // One after the other, each stored before the next is judged: in order, and never more than the store takes.
            let end = self.judge_again(source, inbox, suspect).await;
            let label = end.label();
            self.metrics.reverified.with_label_values(&[&*source.settings.name, label]).inc();
            match end {
                End::Accepted => done.accepted += 1,
                End::Replay => done.replays += 1,
                End::Duplicate => done.duplicates += 1,
                End::Challenge => done.challenges += 1,
                End::Refused(refusal) => *done.still_refused.entry(refusal.label()).or_default() += 1,
                End::InFlight => done.in_flight += 1,
                End::Gone => {}
                End::Unreadable => done.unreadable += 1,
                End::Stop(why) => {
                    done.stopped = Some(why);
                    break;
                }
            }
        }
        tracing::info!(
            source = &*source.settings.name,
            accepted = done.accepted,
            replays = done.replays,
            duplicates = done.duplicates,
            still_refused = done.still_refused.values().sum::<u64>(),
            stopped = done.stopped.as_deref().unwrap_or_default(),
            "what the quarantine kept was judged again"
        );
        Ok(done)
    }

    async fn judge_again(self: &Arc<Self>, source: &Arc<Source>, inbox: &Arc<Inbox>, suspect: Suspect) -> End {
        let reading = inbox.clone();
        let read = tokio::task::spawn_blocking(move || reading.confined(suspect)).await;
        let kept = match read.map_err(|error| error.to_string()).and_then(|read| read) {
            Ok(Some(Ok(content))) => match Kept::decode(&content) {
                Some(kept) => kept,
                None => return End::Unreadable,
            },
            Ok(Some(Err(why))) => {
                let request_id = suspect.request_id.to_string();
                tracing::error!(request_id, %why, "what the quarantine keeps of a request cannot be read");
                return End::Unreadable;
            }
            Ok(None) => return End::Gone,
            Err(error) => return End::Stop(format!("the inbox failed: {error}")),
        };
        let Kept { delivery, client, listener, certificate, with_certificate, forwarding, traceparent } = kept;
        let verified = match self.prove(source, delivery, suspect.received).await {
            Ok(verified) => verified,
            Err(refusal) => return End::Refused(refusal),
        };
        let dismissed = |end: End| async move {
            match inbox.dismiss(suspect).await {
                Ok(()) => end,
                Err(error) => End::Stop(format!("the inbox failed: {error}")),
            }
        };
        if verified.challenge().is_some() {
            return dismissed(End::Challenge).await;
        }
        let key = ClientKey::of(client);
        let journey = Journey {
            door: self.clone(),
            source: source.clone(),
            key,
            forwarding,
            traceparent,
            suspect: Some(suspect),
        };
        let (verified, bound) = match journey.bind(Judged::Proven(verified)).await {
            Ok((Judged::Proven(verified), bound)) => (verified, bound),
            Ok((Judged::Unproven(_, refusal), _)) | Err(refusal) => {
                return End::Stop(refusal.sentence().to_owned());
            }
        };
        let lease = journey.lease(&bound);
        let begun = Instant::now();
        let (reservation, is_duplicate) = loop {
            match journey.claim_again(&verified, suspect.received, lease).await {
                Ok(Claimed::First { reservation, is_duplicate }) => break (reservation, is_duplicate),
                Ok(Claimed::Replay) => return dismissed(End::Replay).await,
                Ok(Claimed::Duplicate) => return dismissed(End::Duplicate).await,
                Ok(Claimed::InFlight) if begun.elapsed() > LONGEST_IN_FLIGHT => return End::InFlight,
                Ok(Claimed::InFlight) => sleep(LOOKS_AGAIN).await,
                Err(refusal) => return End::Stop(refusal.sentence().to_owned()),
            }
        };
        let again = Again {
            at: suspect.received,
            request_id: suspect.request_id.to_string(),
            listener,
            client,
            certificate,
            with_certificate,
        };
        let visit = Visit::again(self.clone(), source.clone(), again, &verified);
        let judged = Judged::Proven(verified);
        let delivery_id = journey.delivery_id(&judged, &visit, is_duplicate);
        let Judged::Proven(verified) = judged else { return End::Stop("it is not proven any more".to_owned()) };
        let reply = match bound.targets.is_empty() {
            true => journey.keep_to_ourselves(reservation, lease, visit).await,
            false => journey.store(verified, bound, delivery_id, reservation, visit, ()).await,
        };
        match reply.status {
            // Its row went with the append, unless no upstream is for it.
            status if status.is_success() => dismissed(End::Accepted).await,
            _ => End::Stop("the inbox does not take it now; see the log".to_owned()),
        }
    }

    /// At the time of arrival, by the secrets of now.
    async fn prove(&self, source: &Arc<Source>, mut delivery: Delivery, at: UnixMillis) -> Result<Verified, Refusal> {
        let until = Instant::now() + LONGEST_KEY_WAIT;
        let mut rounds = 0;
        loop {
            let (judge, fetcher) = (source.clone(), self.fetcher.clone());
            let judging = tokio::task::spawn_blocking(move || judge.settings.verifier.judge(delivery, at, &*fetcher));
            match judging.await.map_err(|_| Refusal::Internal)? {
                Ok(verified) => return Ok(verified),
                Err(Refused { delivery: unproven, wanted: Some(wanted), .. }) if rounds < MOST_KEYS => {
                    rounds = if self.has_fetched(source, &wanted, until).await { rounds + 1 } else { MOST_KEYS };
                    delivery = *unproven;
                }
                Err(refused) => return Err(refused.refusal),
            }
        }
    }
}

impl Journey {
    /// Of one that was judged at the time it came, and is remembered from now on.
    async fn claim_again(&self, verified: &Verified, came: UnixMillis, lease: Duration) -> Result<Claimed, Refusal> {
        let now = self.door.clock.now();
        let Some(ask) = self.ask(verified, came, now, lease)? else {
            return Ok(Claimed::First { reservation: None, is_duplicate: false });
        };
        match self.source.ledger.reserve(ask, now).await {
            Ok(Claim::First(reservation)) => Ok(Claimed::First { reservation: Some(reservation), is_duplicate: false }),
            Ok(Claim::InFlight) => Ok(Claimed::InFlight),
            Ok(Claim::Replay) => Ok(Claimed::Replay),
            Ok(Claim::Duplicate(reservation)) if self.source.settings.on_duplicate == OnDuplicate::Forward => {
                Ok(Claimed::First { reservation: Some(reservation), is_duplicate: true })
            }
            Ok(Claim::Duplicate(reservation)) => {
                reservation.release().await;
                Ok(Claimed::Duplicate)
            }
            Err(StateError::Full) => Err(Refusal::ClaimsFull),
            Err(StateError::Store(what)) => {
                tracing::error!(source = &*self.source.settings.name, what, "the state store cannot reserve");
                Err(Refusal::StateError)
            }
        }
    }
}

impl End {
    fn label(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Replay => "replay",
            Self::Duplicate => "duplicate",
            Self::Challenge => "challenge",
            Self::Refused(refusal) => refusal.label(),
            Self::InFlight => "in_flight",
            Self::Gone => "gone",
            Self::Unreadable => "unreadable",
            Self::Stop(_) => "stopped",
        }
    }
}

/// Before the name of a header that we tell the upstream of the client.
const FORWARDING: &str = "forwarding-";

impl Kept {
    fn size(&self) -> usize {
        let Delivery { headers, body, path, query, .. } = &self.delivery;
        let headers: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        headers + body.len() + path.len() + query.as_ref().map_or(0, String::len)
    }

    /// A parcel in a parcel: the outer one's headers are what we know of how it came, its body is the request with the
    /// sender's own headers, so that neither can be taken for the other.
    fn encode(self) -> Vec<u8> {
        let Delivery { method, scheme, authority, path, query, headers, body } = self.delivery;
        let path_and_query = match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let inner = Parcel { method, path_and_query, headers, body, credentials: Vec::new() };
        let mut facts = Fields::new();
        let mut say = |name: &'static str, text: &str| {
            // What no header can hold is not told to an upstream either.
            if let Ok(value) = HeaderValue::from_str(text) {
                facts.append(HeaderName::from_static(name), value);
            }
        };
        say("scheme", scheme);
        say("authority", &authority);
        say("client", &self.client.to_string());
        say("listener", &self.listener);
        if let Some(subject) = &self.certificate {
            say("certificate", subject);
        }
        if self.with_certificate {
            say("with-certificate", "1");
        }
        facts.append(HeaderName::from_static("traceparent"), self.traceparent);
        for (name, value) in self.forwarding {
            if let Ok(name) = HeaderName::from_bytes(format!("{FORWARDING}{name}").as_bytes()) {
                facts.append(name, value);
            }
        }
        let outer = Parcel {
            method: Method::POST,
            path_and_query: String::new(),
            headers: facts,
            body: Bytes::from(inner.encode()),
            credentials: Vec::new(),
        };
        outer.encode()
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let Parcel { headers: facts, body, .. } = Parcel::decode(content).ok()?;
        let Parcel { method, path_and_query, headers, body, .. } = Parcel::decode(&body).ok()?;
        let text = |name: &str| facts.get(name)?.to_str().ok();
        let scheme = match text("scheme")? {
            "https" => "https",
            "http" => "http",
            _ => return None,
        };
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (path_and_query, None),
        };
        let authority = text("authority")?.to_owned();
        let forwarding = facts.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix(FORWARDING)?.parse().ok()?;
            Some((name, value.clone()))
        });
        Some(Self {
            client: text("client")?.parse().ok()?,
            listener: text("listener").unwrap_or_default().into(),
            certificate: text("certificate").map(str::to_owned),
            with_certificate: facts.contains_key("with-certificate"),
            traceparent: facts.get("traceparent")?.clone(),
            forwarding: forwarding.collect(),
            delivery: Delivery { method, scheme, authority, path, query, headers, body },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_came_whatever_its_headers_call_themselves() {
        let mut headers = Fields::new();
        for (name, value) in
            [("x-a", "1"), ("x-a", "2"), ("client", "10.0.0.1"), ("forwarding-x-forwarded-for", "evil")]
        {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.append("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").expect("opaque bytes"));
        for query in [None, Some(""), Some("a=1?b")] {
            let kept = || Kept {
                delivery: Delivery {
                    method: Method::POST,
                    scheme: "https",
                    authority: "hooks.example.com:8443".to_owned(),
                    path: "/in".to_owned(),
                    query: query.map(str::to_owned),
                    headers: headers.clone(),
                    body: Bytes::from_static(b"\x00\xffbody"),
                },
                client: IpAddr::from([192, 0, 2, 1]),
                listener: "public".into(),
                certificate: Some("CN=sender".to_owned()),
                with_certificate: true,
                forwarding: vec![(HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static("192.0.2.1"))],
                traceparent: HeaderValue::from_static("00-1-1-00"),
            };
            let back = Kept::decode(&kept().encode()).expect("what was encoded");
            assert_eq!(format!("{back:?}"), format!("{:?}", kept()));
        }
        assert!(Kept::decode(b"").is_none() && Kept::decode(&[1, 0, 0]).is_none());
    }
}
