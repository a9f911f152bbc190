//! Which endpoint takes the next request: a pure choice.
//!
//! Invariant: an endpoint that is believed bad is chosen only when no good one is left to try, and then it is: refusing
//! would be a certain failure where trying may succeed.

use super::health::Standing;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    LeastRequests,
    RoundRobin,
}

/// One endpoint that this request has not tried yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) position: usize,
    pub(super) in_flight: usize,
    pub(super) has_room: bool,
    pub(super) standing: Standing,
}

/// `turn` is the position that goes first among equals, of `many` in all. None: wait, or give up. A full good endpoint
/// is worth waiting for, so its presence keeps requests off the bad ones.
///
/// The lists are short, so all of them are looked at: two random choices would only add variance.
pub(super) fn choose(
    balance: Balance,
    turn: usize,
    many: usize,
    candidates: impl Iterator<Item = Candidate> + Clone,
) -> Option<usize> {
    let is_hopeful = |candidate: &Candidate| candidate.standing != Standing::Bad;
    let any_hopeful = candidates.clone().any(|candidate| is_hopeful(&candidate));
    candidates
        .filter(|candidate| candidate.has_room && is_hopeful(candidate) == any_hopeful)
        .min_by_key(|candidate| {
            let load = match balance {
                Balance::LeastRequests => candidate.in_flight,
                Balance::RoundRobin => 0,
            };
            (load, (candidate.position + many - turn % many) % many)
        })
        .map(|candidate| candidate.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(loads: &[(usize, Standing)]) -> Vec<Candidate> {
        let of =
            |(position, &(in_flight, standing))| Candidate { position, in_flight, has_room: in_flight < 4, standing };
        loads.iter().enumerate().map(of).collect()
    }

    fn chosen(balance: Balance, turn: usize, loads: &[(usize, Standing)]) -> Option<usize> {
        choose(balance, turn, loads.len(), candidates(loads).into_iter())
    }

    use Standing::{Bad, Good, Trial};

    #[test]
    fn least_requests_takes_the_idlest_and_turns_among_equals() {
        assert_eq!(chosen(Balance::LeastRequests, 0, &[(2, Good), (1, Good), (3, Good)]), Some(1));
        assert_eq!(chosen(Balance::LeastRequests, 2, &[(1, Good), (1, Good), (1, Good)]), Some(2));
    }

    #[test]
    fn round_robin_goes_by_turn_and_skips_the_full() {
        assert_eq!(chosen(Balance::RoundRobin, 1, &[(0, Good), (3, Good), (0, Good)]), Some(1));
        assert_eq!(chosen(Balance::RoundRobin, 1, &[(0, Good), (4, Good), (0, Good)]), Some(2));
    }

    #[test]
    fn a_bad_endpoint_is_tried_when_nothing_better_is_left_and_only_then() {
        assert_eq!(chosen(Balance::LeastRequests, 0, &[(0, Bad), (3, Good)]), Some(1));
        assert_eq!(chosen(Balance::LeastRequests, 0, &[(0, Bad), (4, Good)]), None, "a full good one is waited for");
        assert_eq!(chosen(Balance::LeastRequests, 0, &[(1, Bad), (0, Bad)]), Some(1));
        assert_eq!(chosen(Balance::LeastRequests, 0, &[(0, Bad), (1, Trial)]), Some(1));
        assert_eq!(chosen(Balance::LeastRequests, 0, &[]), None);
    }
}
