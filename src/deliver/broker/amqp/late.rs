//! Publications whose sender was told that there is no confirmation, and that may still get one.
//!
//! Invariant: while such a publication is under way it is not made a second time, and when it was confirmed late, its
//! repetition counts as delivered. The memory is bounded, and is lost with the process: the message's identifier is
//! what a consumer tells a repetition by.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Failure;

/// Late confirmations that are remembered: some MB of keys.
const MOST_CONFIRMED: usize = 10_000;

/// A queue that has lost the majority of its replicas confirms when it has it again. One that takes longer than this may
/// never, and the channel is given up.
const FOLLOWED: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    UnderWay,
    Confirmed,
}

#[derive(Default)]
pub(super) struct Late {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    standings: HashMap<String, Standing>,
    /// Of those that are confirmed, the oldest first.
    confirmed: VecDeque<String>,
}

impl Late {
    pub(super) fn standing(&self, key: &str) -> Option<Standing> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).standings.get(key).copied()
    }

    fn under_way(&self, key: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.standings.insert(key.to_owned(), Standing::UnderWay);
    }

    fn ended(&self, key: String, is_confirmed: bool) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_confirmed {
            kept.standings.remove(&key);
            return;
        }
        kept.standings.insert(key.clone(), Standing::Confirmed);
        kept.confirmed.push_back(key);
        if kept.confirmed.len() > MOST_CONFIRMED
            && let Some(oldest) = kept.confirmed.pop_front()
            && kept.standings.get(&oldest) == Some(&Standing::Confirmed)
        {
            kept.standings.remove(&oldest);
        }
    }
}

/// One who waits for a publication's end. Going away without it leaves the publication under way.
pub(super) struct Waiting {
    late: Arc<Late>,
    key: String,
    publishing: Option<JoinHandle<Result<(), Failure>>>,
}

impl Waiting {
    pub(super) fn new(late: Arc<Late>, key: String, publishing: JoinHandle<Result<(), Failure>>) -> Self {
        Self { late, key, publishing: Some(publishing) }
    }

    pub(super) async fn end(&mut self) -> Result<(), Failure> {
        let gone = || Err(Failure::Broken("the publication was given up".to_owned()));
        let Some(publishing) = &mut self.publishing else { return gone() };
        let ended = publishing.await;
        self.publishing = None;
        ended.unwrap_or_else(|_| gone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(mut publishing) = self.publishing.take() else { return };
        let (late, key) = (self.late.clone(), std::mem::take(&mut self.key));
        late.under_way(&key);
        tokio::spawn(async move {
            let ended = timeout(FOLLOWED, &mut publishing).await;
            publishing.abort();
            late.ended(key, matches!(ended, Ok(Ok(Ok(())))));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn publication(late: &Arc<Late>) -> (Waiting, oneshot::Sender<Result<(), Failure>>) {
        let (sender, receiver) = oneshot::channel();
        let publishing = tokio::spawn(async move { receiver.await.unwrap() });
        (Waiting::new(late.clone(), "shop:1".to_owned(), publishing), sender)
    }

    async fn until(late: &Late, standing: Option<Standing>) {
        while late.standing("shop:1") != standing {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_publication_that_was_given_up_and_confirmed_late_counts_as_delivered() {
        let late = Arc::<Late>::default();
        let (waiting, confirm) = publication(&late);
        assert_eq!(late.standing("shop:1"), None);
        drop(waiting);
        assert_eq!(late.standing("shop:1"), Some(Standing::UnderWay));
        assert!(confirm.send(Ok(())).is_ok());
        until(&late, Some(Standing::Confirmed)).await;
    }

    #[tokio::test]
    async fn a_publication_that_was_given_up_and_failed_may_be_made_again() {
        let late = Arc::<Late>::default();
        let (waiting, fail) = publication(&late);
        drop(waiting);
        assert!(fail.send(Err(Failure::Broken(String::new()))).is_ok());
        until(&late, None).await;
    }

    #[tokio::test]
    async fn one_that_ended_while_its_sender_waited_leaves_nothing_behind() {
        let late = Arc::<Late>::default();
        let (mut waiting, confirm) = publication(&late);
        assert!(confirm.send(Ok(())).is_ok());
        assert!(waiting.end().await.is_ok());
        drop(waiting);
        assert_eq!(late.standing("shop:1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_ends_is_given_up() {
        let late = Arc::<Late>::default();
        let (waiting, confirm) = publication(&late);
        drop(waiting);
        tokio::time::sleep(FOLLOWED - Duration::from_secs(1)).await;
        assert_eq!(late.standing("shop:1"), Some(Standing::UnderWay));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(late.standing("shop:1"), None);
        assert!(confirm.is_closed());
    }

    #[test]
    fn of_late_confirmations_the_newest_are_remembered() {
        let late = Late::default();
        for number in 0..=MOST_CONFIRMED {
            late.ended(number.to_string(), true);
        }
        assert_eq!(late.standing("0"), None);
        assert_eq!(late.standing("1"), Some(Standing::Confirmed));
        assert_eq!(late.kept.lock().unwrap().standings.len(), MOST_CONFIRMED);
    }
}
