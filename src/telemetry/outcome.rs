//! How a request ended: exactly one `Outcome` for each, on every way out.

use crate::refusal::Refusal;

/// What happened, in the words of the `outcome` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The upstream answered 2xx.
    Accepted,
    /// A provider's handshake, answered by the gateway.
    Challenge,
    /// Genuine, forwarded, and answered by the upstream with a status that is not 2xx (its own, relayed).
    UpstreamRefused,
    /// Genuine, and for none of the source's upstreams: acknowledged.
    Unrouted,
    /// Not let in, or (replays and duplicates that are acknowledged) let in no further.
    Refused(Refusal),
}

impl Outcome {
    /// One for each way to refuse, and the four that are no refusal.
    pub(super) const COUNT: usize = Refusal::ALL.len() + 4;

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Challenge => "challenge",
            Self::UpstreamRefused => "upstream_refused",
            Self::Unrouted => "unrouted",
            Self::Refused(refusal) => refusal.label(),
        }
    }

    /// It was proven, and nobody need send it again.
    pub(crate) fn is_taken(self) -> bool {
        matches!(self, Self::Accepted | Self::Unrouted)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Self::Accepted, Self::Challenge, Self::UpstreamRefused, Self::Unrouted]
            .into_iter()
            .chain(Refusal::ALL.into_iter().map(Self::Refused))
    }

    /// The position in `all`, so that counting is an array access.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Accepted => 0,
            Self::Challenge => 1,
            Self::UpstreamRefused => 2,
            Self::Unrouted => 3,
            Self::Refused(refusal) => 4 + refusal as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_counts_at_its_own_position() {
        assert_eq!(Outcome::all().count(), Outcome::COUNT);
        for (position, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), position, "{}", outcome.label());
        }
    }
}
