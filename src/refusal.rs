//! Every reason to say no to a sender: one vocabulary for status, metric label, audit line and tests.
//!
//! Invariant: what a sender learns is the status alone. All refusals of credentials share one status and one body, so
//! that nobody can tell a wrong secret from a stale time; the reason goes to the log, the metrics and `explain`.

use http::StatusCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    // The request itself
    Malformed,
    TransferCoding,
    Misdirected,
    NoSource,
    MethodNotAllowed,
    UnsupportedMediaType,
    TooLarge,
    BodyTimeout,
    ClientGone,
    // Who asks
    AddressNotAllowed,
    ClientCertMissing,
    ClientCertNotAllowed,
    // What they prove
    MissingSignature,
    MalformedSignature,
    BadSignature,
    MissingTimestamp,
    MalformedTimestamp,
    Stale,
    UntrustedKey,
    AlgorithmNotAllowed,
    BodyMismatch,
    NotCovered,
    BadClaims,
    KeyUnavailable,
    MissingCredentials,
    BadCredentials,
    MissingChallenge,
    NotAwaited,
    // What we have seen
    Replay,
    Duplicate,
    InFlight,
    // How much
    RateLimited,
    AuthThrottled,
    ChallengeLimited,
    ClientBusy,
    BufferFull,
    ClaimsFull,
    StateError,
    InboxFull,
    InboxError,
    // Behind us
    UpstreamBusy,
    UpstreamUnavailable,
    UpstreamTimeout,
    UpstreamError,
    ConfirmationFailed,
    Internal,
}

impl Refusal {
    /// All of them, in order: metrics are made once for each, when a source is loaded.
    pub(crate) const ALL: [Self; 46] = [
        Self::Malformed,
        Self::TransferCoding,
        Self::Misdirected,
        Self::NoSource,
        Self::MethodNotAllowed,
        Self::UnsupportedMediaType,
        Self::TooLarge,
        Self::BodyTimeout,
        Self::ClientGone,
        Self::AddressNotAllowed,
        Self::ClientCertMissing,
        Self::ClientCertNotAllowed,
        Self::MissingSignature,
        Self::MalformedSignature,
        Self::BadSignature,
        Self::MissingTimestamp,
        Self::MalformedTimestamp,
        Self::Stale,
        Self::UntrustedKey,
        Self::AlgorithmNotAllowed,
        Self::BodyMismatch,
        Self::NotCovered,
        Self::BadClaims,
        Self::KeyUnavailable,
        Self::MissingCredentials,
        Self::BadCredentials,
        Self::MissingChallenge,
        Self::NotAwaited,
        Self::Replay,
        Self::Duplicate,
        Self::InFlight,
        Self::RateLimited,
        Self::AuthThrottled,
        Self::ChallengeLimited,
        Self::ClientBusy,
        Self::BufferFull,
        Self::ClaimsFull,
        Self::StateError,
        Self::InboxFull,
        Self::InboxError,
        Self::UpstreamBusy,
        Self::UpstreamUnavailable,
        Self::UpstreamTimeout,
        Self::UpstreamError,
        Self::ConfirmationFailed,
        Self::Internal,
    ];

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::ClientGone | Self::MissingChallenge => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NoSource => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::AddressNotAllowed | Self::ClientCertMissing | Self::ClientCertNotAllowed => StatusCode::FORBIDDEN,
            Self::MissingSignature
            | Self::MalformedSignature
            | Self::BadSignature
            | Self::MissingTimestamp
            | Self::MalformedTimestamp
            | Self::Stale
            | Self::UntrustedKey
            | Self::AlgorithmNotAllowed
            | Self::BodyMismatch
            | Self::NotCovered
            | Self::BadClaims
            | Self::MissingCredentials
            | Self::BadCredentials
            | Self::NotAwaited => StatusCode::UNAUTHORIZED,
            Self::Replay | Self::Duplicate => StatusCode::CONFLICT,
            Self::RateLimited | Self::AuthThrottled | Self::ChallengeLimited | Self::ClientBusy => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::InFlight
            | Self::KeyUnavailable
            | Self::BufferFull
            | Self::ClaimsFull
            | Self::StateError
            | Self::InboxFull
            | Self::InboxError
            | Self::UpstreamBusy
            | Self::UpstreamUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::UpstreamError | Self::ConfirmationFailed => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The metric's `outcome` label and the audit line's `reason`. Dashboards depend on these words.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TransferCoding => "unsupported_transfer_coding",
            Self::Misdirected => "misdirected",
            Self::NoSource => "no_source",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::TooLarge => "too_large",
            Self::BodyTimeout => "body_timeout",
            Self::ClientGone => "client_gone",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::ClientCertMissing => "client_cert_missing",
            Self::ClientCertNotAllowed => "client_cert_not_allowed",
            Self::MissingSignature => "missing_signature",
            Self::MalformedSignature => "malformed_signature",
            Self::BadSignature => "bad_signature",
            Self::MissingTimestamp => "missing_timestamp",
            Self::MalformedTimestamp => "malformed_timestamp",
            Self::Stale => "stale",
            Self::UntrustedKey => "untrusted_key",
            Self::AlgorithmNotAllowed => "algorithm_not_allowed",
            Self::BodyMismatch => "body_mismatch",
            Self::NotCovered => "not_covered",
            Self::BadClaims => "bad_claims",
            Self::KeyUnavailable => "key_unavailable",
            Self::MissingCredentials => "missing_credentials",
            Self::BadCredentials => "bad_credentials",
            Self::MissingChallenge => "missing_challenge",
            Self::NotAwaited => "not_awaited",
            Self::Replay => "replay",
            Self::Duplicate => "duplicate",
            Self::InFlight => "in_flight",
            Self::RateLimited => "rate_limited",
            Self::AuthThrottled => "auth_throttled",
            Self::ChallengeLimited => "challenge_limited",
            Self::ClientBusy => "client_busy",
            Self::BufferFull => "buffer_full",
            Self::ClaimsFull => "claims_full",
            Self::StateError => "state_error",
            Self::InboxFull => "inbox_full",
            Self::InboxError => "inbox_error",
            Self::UpstreamBusy => "upstream_busy",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamError => "upstream_error",
            Self::ConfirmationFailed => "confirmation_failed",
            Self::Internal => "internal",
        }
    }

    /// One sentence for the operator's log: what happened, and where to look.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "the request is not valid HTTP for a gateway (host, target or framing)",
            Self::TransferCoding => "the transfer coding is not exactly `chunked`",
            Self::Misdirected => "the request names a host that the certificate of its connection does not serve",
            Self::NoSource => "no source has this host and path",
            Self::MethodNotAllowed => "the source does not take this method; see its `methods`",
            Self::UnsupportedMediaType => "the source does not take this content type; see its `content_types`",
            Self::TooLarge => "the body is larger than the source's `max_body`",
            Self::BodyTimeout => "the body came slower than `min_body_rate` or took longer than `body_timeout`",
            Self::ClientGone => "the sender left before its request was whole",
            Self::AddressNotAllowed => "the client's address is not in the source's `allow_ips`",
            Self::ClientCertMissing => "the source asks for a client certificate and none was presented",
            Self::ClientCertNotAllowed => "the client certificate is not one that the source's `client_cert` names",
            Self::MissingSignature => "the signature is not where the source expects it",
            Self::MalformedSignature => {
                "the signature is there, but not of the expected form, or there is more than one"
            }
            Self::BadSignature => "no live secret makes the presented signature over this message",
            Self::MissingTimestamp => "the timestamp is not where the source expects it",
            Self::MalformedTimestamp => "the timestamp is not of the expected unit, or there is more than one",
            Self::Stale => "the signed time is outside the tolerance; compare both clocks",
            Self::UntrustedKey => {
                "the proof names a key, a certificate or an address of one that the source does not trust"
            }
            Self::AlgorithmNotAllowed => "the proof was made with an algorithm that the source does not take",
            Self::BodyMismatch => "the proof is genuine, and made for another body or url",
            Self::NotCovered => "the signature is genuine, and leaves out what the source wants covered",
            Self::BadClaims => {
                "the token is genuine, and made by or for somebody else; see the claims that the source wants"
            }
            Self::KeyUnavailable => "a key that has to be fetched could not be, or is not here yet",
            Self::MissingCredentials => "the source asks for a password or token and none was presented",
            Self::BadCredentials => "the presented password or token is none of the configured ones",
            Self::MissingChallenge => "a handshake came without what it wants to be answered with",
            Self::NotAwaited => "the request brings a secret, and the source awaits none; see `handshake.await_secret`",
            Self::Replay => "this very message was accepted before",
            Self::Duplicate => "a newly signed delivery carries an event id that was accepted before",
            Self::InFlight => "a copy of this delivery is under way and may yet fail",
            Self::RateLimited => "the source's `rate_limit` is spent",
            Self::AuthThrottled => "too many failed proofs from this client for this source",
            Self::ChallengeLimited => "too many handshakes for this source in a second",
            Self::ClientBusy => "the client has `max_requests_per_client` requests in flight",
            Self::BufferFull => "`max_buffered` bytes of bodies are held",
            Self::ClaimsFull => "the source's claim table is full (`max_claims`); nothing is forgotten to make room",
            Self::StateError => "the state store did not answer",
            Self::InboxFull => "the inbox takes no more: `max_size`, `max_age` or the free disk is at its limit",
            Self::InboxError => "the delivery could not be stored, and so was not acknowledged",
            Self::UpstreamBusy => "the upstream's `max_in_flight` is reached and nothing came free in `queue_timeout`",
            Self::UpstreamUnavailable => "no url of the upstream could be tried",
            Self::UpstreamTimeout => "the upstream did not answer within its `timeout`",
            Self::UpstreamError => "the upstream closed, reset or broke the exchange",
            Self::ConfirmationFailed => "the page that confirms the subscription could not be asked for; see the log",
            Self::Internal => "a bug in hookward: the request was abandoned, the process goes on",
        }
    }

    /// Seconds for `Retry-After`, on the answers that promise it is worth trying again.
    pub(crate) fn retry_after(self) -> Option<u32> {
        match self.status() {
            StatusCode::TOO_MANY_REQUESTS => Some(1),
            StatusCode::SERVICE_UNAVAILABLE => Some(match self {
                Self::InboxFull => 60,
                Self::ClaimsFull => 30,
                Self::InFlight | Self::InboxError | Self::UpstreamUnavailable => 5,
                _ => 1,
            }),
            _ => None,
        }
    }

    /// Credentials were judged and failed: the 401s. These count against `failed_auth`.
    pub(crate) fn is_unproven(self) -> bool {
        self.status() == StatusCode::UNAUTHORIZED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_refusal_is_listed_once_with_a_label_of_its_own() {
        let labels: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.label()).collect();
        assert_eq!(labels.len(), Refusal::ALL.len());
        for (position, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, position, "{refusal:?} is out of order in ALL");
        }
    }

    #[test]
    fn the_readmes_table_of_answers_has_every_status_a_sender_can_hear() {
        for refusal in Refusal::ALL {
            let row = format!("| {} |", refusal.status().as_u16());
            assert!(include_str!("../README.md").contains(&row), "README.md has no row {row} for {refusal:?}");
        }
    }

    #[test]
    fn every_429_and_503_says_when_to_come_back() {
        for refusal in Refusal::ALL {
            let expected = matches!(refusal.status().as_u16(), 429 | 503);
            assert_eq!(refusal.retry_after().is_some(), expected, "{refusal:?}");
        }
    }
}
