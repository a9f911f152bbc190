//! The way of a request, one step a line: its order is the security argument (README, "The way of a request").
//!
//! Invariant: nothing is claimed before it is proven, nothing is forwarded before it is claimed, and from the claim on
//! the work is detached from the connection: hyper drops the handler when a sender hangs up, and that must not strand a
//! claim or leave a request without a record.

use super::budget::{Place, Share};
use super::detached::Detached;
use super::journey::{Journey, Judged};
use super::quarantine::Kept;
use super::refused::Circumstances;
use super::respond::{self, Details, Reply};
use super::source::{Source, Way};
use super::visit::Visit;
use super::{Door, Gateway, admit, body, forwarded};
use crate::client::ClientKey;
use crate::clock::{self, UnixMillis};
use crate::delivery::Delivery;
use crate::fetched::Wanted;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::server::{Body, Head, Peer, Request};
use crate::telemetry::Outcome;
use crate::verify::{Refused, Verified};
use http::header::{self, HeaderName};
use http::{HeaderValue, Version};
use rand::Rng as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{timeout, timeout_at};

/// Judging more than this is work for a thread of its own: hashing it takes longer than a task may hold its worker.
pub(super) const LARGE_BODY: usize = 256 * 1024;

/// How long a client that failed too often waits for its signature to be judged at all.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// A request waits so long for the keys that its proofs lack, all of them together: senders give up after ten seconds
/// or more, and try again when they get 503.
const LONGEST_KEY_WAIT: Duration = Duration::from_secs(6);

/// A proof asks for one key at a time; none has more than two, and a source few such proofs.
const MOST_KEYS: usize = 4;

/// Not let in; and what is to be kept of it.
struct Turned {
    refusal: Refusal,
    aside: Option<Box<Delivery>>,
}

impl From<Refusal> for Turned {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, aside: None }
    }
}

impl Door {
    pub(crate) async fn receive(self: Arc<Self>, request: Request, peer: Arc<Peer>) -> Reply {
        let gateway = self.snapshot();
        let Request { head, body: mut incoming } = request;
        let client = forwarded::client(peer.address.ip(), &head.headers, gateway.trusted(&peer.listener));
        let path = head.uri.path().to_owned();
        let mut visit = Visit::begin(self.clone(), peer.listener.clone(), head.method.clone(), path, client);
        visit.certificate = peer.tls.as_ref().and_then(|tls| tls.certificate.clone());
        // Bytes behind a chunked body could be another parser's idea of where it ended: that connection ends with it.
        let close = head.version == Version::HTTP_11 && head.headers.contains_key(header::TRANSFER_ENCODING);
        let is_http2 = head.version == Version::HTTP_2;
        let mut reply = self.pass(&gateway, head, &mut incoming, &peer, visit).await;
        if is_http2 {
            body::let_end(incoming);
            // HTTP/2 has no such header (RFC 9113 §8.2.2).
            reply.headers.retain(|name| *name != header::CONNECTION);
        }
        // While it drains, other gateways are there already: whoever asks here opens the next connection there, and none is
        // left to be closed just when its peer writes into it.
        if close || (!is_http2 && self.is_draining()) {
            reply.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }

    async fn pass(
        self: &Arc<Self>,
        gateway: &Arc<Gateway>,
        head: Head,
        incoming: &mut Body,
        peer: &Peer,
        mut visit: Visit,
    ) -> Reply {
        let key = ClientKey::of(visit.client.address);

        let authority = match find(gateway, &head, peer, &mut visit) {
            Ok(authority) => authority,
            Err(refusal) => return visit.refuse(refusal),
        };
        let Some(source) = visit.source.clone() else { return visit.refuse(Refusal::NoSource) };
        let (place, with_certificate) = match self.admit(&source, &head, incoming, key, &visit) {
            Ok(admitted) => admitted,
            Err(refusal) => return visit.refuse(refusal),
        };

        let share = self.buffer.share(key, source.settings.name.clone(), visit.started);
        let body = match body::read(incoming, source.settings.max_body, gateway.pace, &share).await {
            Ok(body) => body,
            Err(refusal) => return visit.refuse(refusal),
        };
        visit.body_bytes = body.len();
        let delivery = Delivery {
            method: head.method,
            scheme: if peer.tls.is_some() { "https" } else { "http" },
            query: head.uri.query().map(str::to_owned),
            path: visit.path.clone(),
            authority,
            headers: head.headers,
            body,
        };

        if let Some(asked) = source.settings.verifier.ask(&delivery) {
            return Box::pin(self.answer_question(&source, asked, key, visit)).await;
        }
        if !source.settings.methods.contains(&delivery.method) {
            return visit.refuse(Refusal::MethodNotAllowed);
        }
        let judging = self.judge(&source, Box::new(delivery), key, with_certificate, (share, place), &mut visit);
        let (judged, permits) = match judging.await {
            Ok(judged) => judged,
            Err(Turned { refusal, aside }) => {
                if let Some(delivery) = aside {
                    let (forwarding, traceparent) = told(gateway, peer, &delivery);
                    let kept = Kept {
                        delivery: *delivery,
                        client: visit.client.address,
                        listener: visit.listener.clone(),
                        certificate: visit.subject().map(str::to_owned),
                        with_certificate,
                        forwarding,
                        traceparent,
                    };
                    self.set_aside(&source, kept, &visit.request_id);
                }
                return visit.refuse(refusal);
            }
        };
        if let Judged::Proven(verified) = &judged
            && let Some(answer) = verified.challenge()
        {
            if source.budgets.handshakes.take().is_err() {
                return visit.refuse(Refusal::ChallengeLimited);
            }
            // The sender tries again where this fails, with the same signed message.
            if let Some(page) = verified.visit()
                && let Err(error) = Box::pin(self.fetcher.visit(page)).await
            {
                tracing::warn!(source = &*source.settings.name, %error, "a subscription could not be confirmed");
                return visit.refuse(Refusal::ConfirmationFailed);
            }
            let reply = respond::challenge(answer, &visit.request_id);
            visit.record(Outcome::Challenge, reply.status);
            return reply;
        }

        let Ok(work) = self.detached.clone().try_acquire_owned() else { return visit.refuse(Refusal::ClientBusy) };
        let (forwarding, traceparent) = told(gateway, peer, judged.delivery());
        let journey = Journey { door: self.clone(), source, key, forwarding, traceparent, suspect: None };
        let concluding = Detached::new(journey.conclude(judged, visit, permits, work));
        // A panic in there was recorded by the visit's Drop; this request is lost, the process goes on.
        concluding.await.unwrap_or_else(|_| respond::refuse(Refusal::Internal, "", &Details::default()))
    }

    fn admit(
        &self,
        source: &Source,
        head: &Head,
        incoming: &Body,
        key: ClientKey,
        visit: &Visit,
    ) -> Result<(Place, bool), Refusal> {
        let is_a_method_of_deliveries = admit::method(source, head)?;
        if is_a_method_of_deliveries {
            admit::content_type(source, &head.headers)?;
        }
        if body::declared_too_large(incoming, source.settings.max_body) {
            return Err(Refusal::TooLarge);
        }
        admit::address(source, visit.client)?;
        let with_certificate = admit::certificate(source, visit.certificate.as_deref(), || self.clock.now())?;
        admit::not_guessing(source, key)?;
        let place = self.in_flight.enter(key).ok_or(Refusal::ClientBusy)?;
        // Where routes choose among several, one that has room may be meant.
        let is_saturated =
            !source.outlets.is_empty() && source.outlets.iter().all(|outlet| outlet.destination.is_saturated());
        if source.settings.delivery == Way::Proxy && is_saturated {
            return Err(Refusal::UpstreamBusy);
        }
        Ok((place, with_certificate))
    }

    /// Step 6. In observe mode a refusal is only noted.
    async fn judge(
        &self,
        source: &Arc<Source>,
        delivery: Box<Delivery>,
        key: ClientKey,
        with_certificate: bool,
        permits: (Share, Place),
        visit: &mut Visit,
    ) -> Result<(Judged, (Share, Place)), Turned> {
        let throttled = source.budgets.failed_auth.is_spent(key) && !source.settings.observe;
        let _turn = match throttled {
            // The genuine share an address with forgers: they wait for a turn, though not for long.
            true => match timeout(LONGEST_TURN, self.throttled.acquire()).await {
                Ok(Ok(turn)) => Some(turn),
                Ok(Err(_)) | Err(_) => return Err(Refusal::AuthThrottled.into()),
            },
            false => None,
        };
        let mut until = None;
        let mut rounds = 0;
        let (mut delivery, mut permits) = (delivery, permits);
        let mut now;
        let (judged, permits) = loop {
            let begun = clock::read();
            now = self.clock.now();
            let (judged, kept) = self.judge_once(source, delivery, permits, now).await?;
            visit.verifying += clock::read() - begun;
            match judged {
                // Whoever fails often must not have us fetch: it is for them that there are turns.
                Err(Refused { delivery: unproven, wanted: Some(wanted), .. }) if rounds < MOST_KEYS && !throttled => {
                    let until = *until.get_or_insert_with(|| tokio::time::Instant::now() + LONGEST_KEY_WAIT);
                    rounds =
                        if Box::pin(self.has_fetched(source, &wanted, until)).await { rounds + 1 } else { MOST_KEYS };
                    (delivery, permits) = (unproven, kept);
                }
                judged => break (judged, kept),
            }
        };
        source.meters.verify.observe(visit.verifying.as_secs_f64());
        match judged {
            Ok(verified) => {
                visit.proven(&verified, with_certificate);
                for gauge in verified.secrets_used().filter_map(|index| source.meters.secrets_last_used.get(index)) {
                    gauge.set(now.as_secs() as f64);
                }
                Ok((Judged::Proven(verified), permits))
            }
            Err(Refused { delivery, refusal, note, .. }) if source.settings.observe => {
                visit.note = note;
                visit.would_refuse = Some(refusal);
                if !self.refusals.is_off() {
                    self.keep_refused(source, (*delivery).clone(), key, refusal, visit);
                }
                Ok((Judged::Unproven(delivery, refusal), permits))
            }
            Err(Refused { delivery, refusal, note, only_signature, .. }) => {
                visit.note = note;
                let over = refusal.is_unproven() && source.budgets.failed_auth.take(key).is_err();
                if over {
                    // Whoever is over the limit has places enough already.
                    return Err(Refusal::AuthThrottled.into());
                }
                let aside = (only_signature && source.settings.quarantine).then(|| delivery.clone());
                self.keep_refused(source, *delivery, key, refusal, visit);
                Err(Turned { refusal, aside })
            }
        }
    }

    /// With the keys that are known now.
    async fn judge_once(
        &self,
        source: &Arc<Source>,
        delivery: Box<Delivery>,
        permits: (Share, Place),
        now: UnixMillis,
    ) -> Result<(Result<Verified, Refused>, (Share, Place)), Refusal> {
        if delivery.body.len() <= LARGE_BODY && !source.settings.verifier.inflates(&delivery) {
            return Ok((source.settings.verifier.judge(delivery, now, &*self.fetcher), permits));
        }
        let turn = self.large_bodies.clone().acquire_owned().await.map_err(|_| Refusal::Internal)?;
        let (source, fetcher) = (source.clone(), self.fetcher.clone());
        // The permits go along: a sender who hangs up lets go of a body only when nothing works on it any more.
        let judging = tokio::task::spawn_blocking(move || {
            let judged = source.settings.verifier.judge(delivery, now, &*fetcher);
            drop(turn);
            (judged, permits)
        });
        judging.await.map_err(|_| Refusal::Internal)
    }

    /// Judging again is worth it even where fetching failed: what is kept may now do as the last known good.
    pub(super) async fn has_fetched(&self, source: &Source, wanted: &Wanted, until: tokio::time::Instant) -> bool {
        match timeout_at(until, self.fetcher.fetch(wanted)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(source = &*source.settings.name, %error, "no key to judge by");
                false
            }
            Err(_) => false,
        }
    }

    fn keep_refused(&self, source: &Source, delivery: Delivery, key: ClientKey, refusal: Refusal, visit: &Visit) {
        let at = self.clock.now();
        let (id, client, note) = (visit.request_id.as_str(), visit.client.address, visit.note);
        let source = &source.settings.name;
        self.refusals.keep(delivery, &Circumstances { id, at, source, client, key, refusal, note });
    }
}

/// Steps 2 and 3: which source is meant, on this listener and under this name.
fn find(gateway: &Gateway, head: &Head, peer: &Peer, visit: &mut Visit) -> Result<String, Refusal> {
    admit::framing(head)?;
    let authority = admit::authority(head)?;
    let host = admit::host_of(&authority);
    if let Some(tls) = &peer.tls
        && let Some(asked) = &tls.server_name
        && !asked.eq_ignore_ascii_case(&host)
        && !tls.served.serves(&host)
    {
        return Err(Refusal::Misdirected);
    }
    let source = gateway.sources.find(&host, head.uri.path(), &peer.listener).ok_or(Refusal::NoSource)?;
    visit.source = Some(source.clone());
    Ok(authority)
}

/// What we tell the upstream of how a request came: made of what goes on alone.
fn told(gateway: &Gateway, peer: &Peer, delivery: &Delivery) -> (Vec<(HeaderName, HeaderValue)>, HeaderValue) {
    let Delivery { scheme, authority, headers, .. } = delivery;
    let arrival = forwarded::Arrival { peer: peer.address.ip(), scheme, authority, port: peer.local.port() };
    let trusted = gateway.trusted(&peer.listener);
    let believed = forwarded::is_trusted(arrival.peer.to_canonical(), trusted);
    (forwarded::headers(&arrival, headers, trusted), traceparent(headers, believed))
}

/// W3C Trace Context: a trusted proxy's trace goes on with a new parent id; anybody else's begins here.
fn traceparent(headers: &Fields, believed: bool) -> HeaderValue {
    let kept = if believed { headers.get(TRACEPARENT).and_then(|sent| trace_of(sent.as_bytes())) } else { None };
    let random: [u8; 24] = {
        let mut random = [0; 24];
        rand::rng().fill_bytes(&mut random);
        random
    };
    let (trace, parent) = random.split_at(16);
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    let (trace_part, rest) = text.split_at_mut(35);
    let (parent_part, flags_part) = rest.split_at_mut(17);
    match kept {
        Some((trace, flags)) => {
            trace_part[3..].copy_from_slice(trace);
            flags_part[1..].copy_from_slice(flags);
        }
        None => write_hex(trace, &mut trace_part[3..]),
    }
    write_hex(parent, &mut parent_part[1..]);
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace and the flags of a valid header.
fn trace_of(sent: &[u8]) -> Option<(&[u8; 32], &[u8; 2])> {
    let mut parts = sent.split(|byte| *byte == b'-');
    let (version, trace, _, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |text: &[u8]| text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let valid = version == b"00" && lower_hex(trace) && lower_hex(flags) && trace.iter().any(|byte| *byte != b'0');
    let (trace, flags) = (trace.try_into().ok()?, flags.try_into().ok()?);
    valid.then_some((trace, flags))
}

/// As much as there is room for.
fn write_hex(bytes: &[u8], room: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, room) in bytes.iter().zip(room.as_chunks_mut::<2>().0) {
        *room = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trusted_proxys_trace_goes_on_and_a_strangers_does_not() {
        let mut headers = Fields::new();
        let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        headers.insert("traceparent", HeaderValue::from_static(sent));
        let text = |believed| traceparent(&headers, believed).to_str().expect("text").to_owned();
        assert!(text(true).starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        assert!(text(true).ends_with("-00") && text(true) != sent);
        assert!(!text(false).contains("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(text(false).len(), sent.len());
    }
}
