//! From the claim on: the part of the way that is detached from the connection.
//!
//! Invariant: a claim that was taken is committed on the upstream's 2xx and released on everything else, 4xx included:
//! the provider will try again, and its retry must get through.

use super::Door;
use super::bound::Bound;
use super::budget::{Place, Share};
use super::respond::{self, Reply};
use super::route::Target;
use super::source::{OnDuplicate, OnReplay, Outlet, Source, Way};
use super::visit::Visit;
use crate::client::ClientKey;
use crate::clock::{self, UnixMillis};
use crate::deliver::{Fault, SendError, Sent};
use crate::delivery::Delivery;
use crate::inbox::{AppendError, Claims, Entry, NewTask, Suspect};
use crate::parcel::{Parcel, Tag};
use crate::refusal::Refusal;
use crate::state::{Ask, Claimed, Committed, HandedOver, Record, Reservation, StateError};
use crate::telemetry::Outcome;
use crate::timer;
use crate::verify::Verified;
use http::HeaderValue;
use http::header::HeaderName;
use sha2::{Digest, Sha256};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

/// A claim outlives its signed time's tolerance by this much: clocks and slow bodies.
const CLAIM_MARGIN: Duration = Duration::from_secs(60);

/// A reservation outlives the longest that forwarding can take by this much.
const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// A commit is a write to a local file; an answer waits this long for one, and no longer when the disk hangs.
const COMMIT_WAIT: Duration = Duration::from_secs(5);

/// A sender waits so long for its delivery to be stored: several times what a busy disk takes for a sync.
const APPEND_WAIT: Duration = Duration::from_secs(10);

/// How often a commit that failed after the upstream's 2xx is tried again, until its lease ends.
const COMMIT_RETRY: Duration = Duration::from_millis(250);

/// Judged: proven, or (in observe mode alone) known to be one that enforcing would refuse.
pub(super) enum Judged {
    Proven(Verified),
    Unproven(Box<Delivery>, Refusal),
}

/// One delivery on its way.
pub(super) struct Journey {
    pub(super) door: Arc<Door>,
    pub(super) source: Arc<Source>,
    pub(super) key: ClientKey,
    pub(super) forwarding: Vec<(HeaderName, HeaderValue)>,
    pub(super) traceparent: HeaderValue,
    /// It was in the quarantine until now.
    pub(super) suspect: Option<Suspect>,
}

/// What the claim says.
enum Step {
    Go {
        reservation: Option<Reservation>,
        is_duplicate: bool,
    },
    Stop(Refusal),
    /// Over the source's rate, for so long.
    Limited(Duration),
    /// Answered as accepted, and not forwarded.
    Acknowledge(Refusal),
}

impl Journey {
    /// Steps 8 to 10. The permits are held until the upstream has answered, or nothing waits for the inbox any more; `_work`
    /// is this piece of work's until its end.
    pub(super) async fn conclude(
        self,
        judged: Judged,
        mut visit: Visit,
        permits: (Share, Place),
        _work: OwnedSemaphorePermit,
    ) -> Reply {
        let observes = self.source.settings.observe;
        let (judged, bound) = match self.bind(judged).await {
            Ok(bound) => bound,
            Err(refusal) => return visit.refuse(refusal),
        };
        let lease = self.lease(&bound);
        let mut claimed = (None, false);
        if let Judged::Proven(verified) = &judged {
            match self.claim(verified, lease).await {
                Step::Go { reservation, is_duplicate } => claimed = (reservation, is_duplicate),
                Step::Stop(refusal) | Step::Acknowledge(refusal) if observes => visit.would_refuse = Some(refusal),
                Step::Limited(_) if observes => visit.would_refuse = Some(Refusal::RateLimited),
                Step::Limited(wait) => return visit.refuse_for(Refusal::RateLimited, Some(wait)),
                Step::Stop(refusal) => return visit.refuse(refusal),
                Step::Acknowledge(refusal) => {
                    let reply = respond::acknowledge(&self.source.settings.acknowledge, &visit.request_id);
                    visit.record(Outcome::Refused(refusal), reply.status);
                    return reply;
                }
            }
        }
        let (reservation, is_duplicate) = claimed;
        let delivery_id = match self.source.is_asked_for_names() {
            true => self.delivery_id(&judged, &visit, is_duplicate),
            false => String::new(),
        };
        match (self.source.settings.delivery, judged) {
            _ if bound.targets.is_empty() => Box::pin(self.keep_to_ourselves(reservation, lease, visit)).await,
            (Way::Inbox, Judged::Proven(verified)) => {
                Box::pin(self.store(verified, bound, delivery_id, reservation, visit, permits)).await
            }
            (Way::Proxy, judged) | (Way::Inbox, judged) => {
                let target = bound.targets.first();
                let Some((target, outlet)) =
                    target.and_then(|target| Some((target, self.source.outlet(&target.upstream)?)))
                else {
                    return visit.refuse(Refusal::Internal);
                };
                self.forward(judged, (target, outlet), delivery_id, reservation, lease, visit).await
            }
        }
    }

    /// Longer than what is ahead of it can take.
    pub(super) fn lease(&self, bound: &Bound) -> Duration {
        bound.longest(&self.source) + LEASE_MARGIN
    }

    async fn claim(&self, verified: &Verified, lease: Duration) -> Step {
        let now = self.door.clock.now();
        let ask = match self.ask(verified, now, now, lease) {
            Ok(ask) => ask,
            Err(refusal) => return Step::Stop(refusal),
        };
        let settings = &self.source.settings;
        let forwards_duplicates = settings.on_duplicate == OnDuplicate::Forward;
        let repeat = |refusal: Refusal, acknowledged: bool| match self.source.budgets.repeats.take(self.key) {
            Err(_) => Step::Stop(Refusal::RateLimited),
            Ok(()) if acknowledged => Step::Acknowledge(refusal),
            Ok(()) => Step::Stop(refusal),
        };
        // First deliveries alone spend the source's rate: neither a forgery nor a replay gets so far.
        let (ledger, limits) = (&self.source.ledger, &self.source.budgets.limits);
        let claimed = match ledger.claim_at_once(ask, forwards_duplicates, limits, self.key, now) {
            Ok(claimed) => claimed,
            // Boxed: whoever has no Redis shall not carry what waiting for it takes.
            Err(ask) => Box::pin(ledger.claim(ask, forwards_duplicates, limits, self.key, now)).await,
        };
        match claimed {
            Ok(Claimed::First(reservation)) => Step::Go { reservation, is_duplicate: false },
            Ok(Claimed::InFlight) => Step::Stop(Refusal::InFlight),
            Ok(Claimed::Replay) => repeat(Refusal::Replay, settings.on_replay == OnReplay::Acknowledge),
            Ok(Claimed::Duplicate(reservation @ Some(_))) => Step::Go { reservation, is_duplicate: true },
            Ok(Claimed::Duplicate(None)) => {
                repeat(Refusal::Duplicate, settings.on_duplicate == OnDuplicate::Acknowledge)
            }
            Ok(Claimed::Limited(wait)) => Step::Limited(wait),
            Err(StateError::Full) => Step::Stop(Refusal::ClaimsFull),
            Err(StateError::Store(what)) => {
                if self.source.budgets.tells_of_state.take().is_ok() {
                    tracing::error!(source = &*settings.name, what, "the state store cannot reserve");
                }
                Step::Stop(Refusal::StateError)
            }
        }
    }

    /// What to claim, and for how long; None: this source has nothing to tell one delivery from another. `judged`: when
    /// it was fresh.
    pub(super) fn ask(
        &self,
        verified: &Verified,
        judged: UnixMillis,
        now: UnixMillis,
        lease: Duration,
    ) -> Result<Option<Ask>, Refusal> {
        let settings = &self.source.settings;
        let event = verified.event_id().map(|id| digest(b"event", id));
        let keep_until = match (verified.signed_at(), verified.tolerance()) {
            (Some(signed), Some(tolerance)) => {
                let grown_old = signed.after(tolerance).after(CLAIM_MARGIN);
                match verified.is_ageless_in_part() {
                    true => grown_old.max(now.after(settings.replay_window)),
                    false => grown_old,
                }
            }
            _ => now.after(settings.replay_window),
        };
        let (mut replay, mut event) = match (verified.replay_keys(), event) {
            // Password, token or certificate alone: the id, where the configuration names one, stands for the delivery.
            ([], Some(id)) if !settings.verifier.has_signature() => (vec![id], None),
            (keys, event) => (keys.to_vec(), event),
        };
        match verified.signed_at() {
            // It was fresh when it was judged, and waited so long since that nothing would remember it.
            Some(_) if keep_until <= judged => return Err(Refusal::Stale),
            // `replay_window` is zero.
            None if keep_until <= now => replay.clear(),
            Some(_) | None => {}
        }
        if settings.dedupe_window.is_zero() {
            event = None;
        }
        if replay.is_empty() && event.is_none() {
            return Ok(None);
        }
        // A copy that comes as late as can be may lie in the quarantine for as long as anything does, and must still be
        // known when it is judged again.
        let quarantine = self.door.quarantine_age(&self.source);
        let (keep_until, event_keep_until) = match quarantine.is_zero() {
            true => (keep_until, now.after(settings.dedupe_window)),
            false => (
                keep_until.max(now).after(quarantine).after(CLAIM_MARGIN),
                now.after(settings.dedupe_window).after(quarantine).after(CLAIM_MARGIN),
            ),
        };
        Ok(Some(Ask { replay, keep_until, event, event_keep_until, lease }))
    }

    /// Step 9: forward, relay the answer; commit on 2xx, release on everything else.
    async fn forward(
        &self,
        judged: Judged,
        (target, outlet): (&Target, &Outlet),
        delivery_id: String,
        reservation: Option<Reservation>,
        lease: Duration,
        mut visit: Visit,
    ) -> Reply {
        let parcel = self.pack(judged, target, &visit, &delivery_id, outlet.signs.as_deref());
        let tag = Tag { source: self.source.settings.name.clone(), delivery_id, generation: 0, received: visit.at };
        let begun = clock::read();
        visit.upstreams = target.upstream.clone();
        let sent = self.send(&parcel, &tag, outlet, reservation.as_ref(), lease, begun).await;
        visit.forwarding = clock::steady() - begun;
        let refusal = match sent {
            Ok(Sent::Confirmed) => {
                if let Some(reservation) = reservation {
                    self.commit(reservation, lease).await;
                }
                let reply = respond::acknowledge(&self.source.settings.acknowledge, &visit.request_id);
                visit.record(Outcome::Accepted, reply.status);
                return reply;
            }
            Ok(Sent::Answered(answer)) if answer.status.is_success() => {
                if let Some(reservation) = reservation {
                    self.commit(reservation, lease).await;
                }
                visit.record(Outcome::Accepted, answer.status);
                return respond::relay(answer, &visit.request_id);
            }
            Ok(Sent::Answered(answer)) => {
                if let Some(reservation) = reservation {
                    reservation.release().await;
                }
                let outcome = if answer.status.is_server_error() {
                    Outcome::Refused(Refusal::UpstreamError)
                } else {
                    Outcome::UpstreamRefused
                };
                visit.record(outcome, answer.status);
                return respond::relay(answer, &visit.request_id);
            }
            Err(error) => {
                let upstream: &str = &target.upstream;
                tracing::warn!(upstream, request_id = visit.request_id, "not forwarded: {error}");
                match error.fault {
                    Fault::Busy => Refusal::UpstreamBusy,
                    Fault::TooLarge => Refusal::TooLarge,
                    // Whatever it was: the broker has not said that it has it, and the sender is to come again.
                    _ if outlet.destination.is_broker() => Refusal::UpstreamUnavailable,
                    Fault::Unavailable => Refusal::UpstreamUnavailable,
                    Fault::TimedOut => Refusal::UpstreamTimeout,
                    Fault::Broken => Refusal::UpstreamError,
                }
            }
        };
        if let Some(reservation) = reservation {
            reservation.release().await;
        }
        visit.refuse(refusal)
    }

    /// Step 9, for what no route takes: it was proven, and the sender need not send it again.
    pub(super) async fn keep_to_ourselves(
        &self,
        reservation: Option<Reservation>,
        lease: Duration,
        mut visit: Visit,
    ) -> Reply {
        if let Some(reservation) = reservation {
            self.commit(reservation, lease).await;
        }
        let reply = respond::acknowledge(&self.source.settings.acknowledge, &visit.request_id);
        visit.record(Outcome::Unrouted, reply.status);
        reply
    }

    /// Step 9, by the inbox: the delivery and its claim become durable together, and only then is it acknowledged.
    /// `permits` go with the body: one that waits for a disk that hangs takes its room for as long as it waits, though its
    /// sender was told to come again.
    pub(super) async fn store(
        &self,
        verified: Verified,
        bound: Bound,
        delivery_id: String,
        reservation: Option<Reservation>,
        mut visit: Visit,
        permits: impl Send + 'static,
    ) -> Reply {
        let Some(inbox) = self.door.inbox.load_full() else { return visit.refuse(Refusal::InboxError) };
        let claim = match reservation.map(|reservation| reservation.hand_over(self.door.clock.now())) {
            Some(None) => return visit.refuse(Refusal::InFlight),
            claim => claim.flatten(),
        };
        let Ok(request_id) = visit.request_id.parse() else { return visit.refuse(Refusal::Internal) };
        let event_id = verified.event_id().map(str::to_owned);
        let event_type = verified.event_type().map(str::to_owned);
        let source = &self.source.settings;
        visit.upstreams = bound.names().into();
        let [target, ..] = &*bound.targets else { return visit.refuse(Refusal::Internal) };
        let path_of = |target: &Target| target.path(&self.source, verified.delivery());
        let paths: Vec<String> = bound.targets.iter().map(path_of).collect();
        let of_parcel = path_of(target);
        let parcel = Arc::new(self.pack(Judged::Proven(verified), target, &visit, &delivery_id, None));
        let tasks = bound.targets.iter().zip(paths).map(|(target, path)| NewTask {
            upstream: target.upstream.clone(),
            path: (path != of_parcel).then_some(path),
            lane: bound.lane,
        });
        let tasks = tasks.collect();
        let entry = Entry {
            source: source.name.clone(),
            received: visit.at,
            request_id,
            delivery_id,
            event_id,
            event_type,
            parcel,
            claims: claim.as_ref().map(|claim| claims(claim.record())).unwrap_or_default(),
            tasks,
        };
        let (work, suspect) = (self.door.detached.clone().try_acquire_owned(), self.suspect);
        let mut storing = Box::pin(async move {
            let appended = match suspect {
                Some(suspect) => inbox.append_released(entry, suspect).await,
                None => inbox.append(entry).await,
            };
            if let Some(claim) = claim {
                decide(claim, &appended);
            }
            drop((work, permits));
            appended
        });
        match timeout(APPEND_WAIT, &mut storing).await {
            Ok(appended) => self.conclude_stored(appended, visit),
            Err(_) => {
                // It may yet be written: until that is known its claim is held, and copies are told to come again.
                tokio::spawn(storing);
                tracing::error!(
                    source = &*self.source.settings.name,
                    "the inbox takes long; the sender is told to try again"
                );
                visit.refuse(Refusal::InboxError)
            }
        }
    }

    fn conclude_stored(&self, appended: Result<(), AppendError>, mut visit: Visit) -> Reply {
        match appended {
            Ok(()) => {
                let reply = respond::acknowledge(&self.source.settings.acknowledge, &visit.request_id);
                visit.record(Outcome::Accepted, reply.status);
                reply
            }
            Err(AppendError::Full | AppendError::NoRoomOnDisk | AppendError::TooOld) => {
                visit.refuse(Refusal::InboxFull)
            }
            Err(AppendError::Store(_)) => visit.refuse(Refusal::InboxError),
        }
    }

    /// Sends, and renews the lease while that takes its time: the lease is longer than any sending, but it is counted
    /// by the wall clock, and that may be set forward meanwhile.
    async fn send(
        &self,
        parcel: &Parcel,
        tag: &Tag,
        outlet: &Outlet,
        reservation: Option<&Reservation>,
        lease: Duration,
        begun: Instant,
    ) -> Result<Sent, SendError> {
        let mut sending = pin!(outlet.destination.send(parcel, tag));
        let Some(reservation) = reservation else { return sending.await };
        let mut renewed = begun;
        loop {
            if let Ok(sent) = timer::within(renewed + lease / 4, sending.as_mut()).await {
                return sent;
            }
            Box::pin(reservation.renew(self.door.clock.now(), lease)).await;
            renewed = Instant::now();
        }
    }

    /// Makes the claim lasting. Where the store fails the upstream's 2xx stands; the store is tried again until the
    /// lease ends, and copies that come meanwhile are told that one is in flight.
    async fn commit(&self, mut reservation: Reservation, lease: Duration) {
        let source: &str = &self.source.settings.name;
        let now = self.door.clock.now();
        match timer::for_at_most(COMMIT_WAIT, pin!(reservation.commit(now))).await {
            Ok(Ok(committed)) => return self.door.note_commit(source, committed),
            Ok(Err(_)) | Err(_) if self.source.budgets.tells_of_state.take().is_err() => {}
            Ok(Err(error)) => tracing::error!(source, %error, "the claim could not be committed; trying on"),
            Err(_) => tracing::error!(source, "the state store takes long to commit; the answer does not wait for it"),
        }
        let (door, source) = (self.door.clone(), self.source.clone());
        let until = now.after(lease);
        let work = door.detached.clone().try_acquire_owned();
        tokio::spawn(async move {
            let name: &str = &source.settings.name;
            loop {
                sleep(COMMIT_RETRY).await;
                if let Ok(committed) = reservation.commit(door.clock.now()).await {
                    door.note_commit(name, committed);
                    break;
                }
                let now = door.clock.now();
                if now >= until {
                    door.metrics.commit_failures.inc();
                    let kept = reservation.keep_unwritten(now);
                    tracing::error!(
                        source = name,
                        kept,
                        "a claim could not be written; kept, it lasts until the process ends"
                    );
                    break;
                }
                // The wall clock may be set forward; the lease is to last as long as this loop.
                reservation.renew(now, COMMIT_RETRY * 8).await;
            }
            drop(work);
        });
    }
}

impl Door {
    fn note_commit(&self, source: &str, committed: Committed) {
        if committed == Committed::Lost {
            self.metrics.commit_failures.inc();
            tracing::warn!(source, "the claim's lease ended before the upstream answered; a copy may have passed");
        }
    }
}

/// A claim in the inbox's words.
fn claims(record: &Record) -> Claims {
    let Record { prints, keep_until, event, event_keep_until } = record.clone();
    Claims { prints, keep_until, event, event_keep_until }
}

fn decide(claim: HandedOver, appended: &Result<(), AppendError>) {
    match appended {
        Ok(()) => claim.written(),
        Err(_) => claim.not_written(),
    }
}

fn digest(kind: &[u8], text: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(kind);
    hash.update([0]);
    hash.update(text.as_bytes());
    hash.finalize().into()
}
