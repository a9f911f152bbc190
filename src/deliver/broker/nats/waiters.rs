//! Those who wait for an answer over one connection.
//!
//! Invariant: nobody is kept who no longer waits, and when the connection has ended nobody waits: neither those who did,
//! nor whoever comes later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

pub(super) struct Waiters<A> {
    next: AtomicU64,
    /// None: it has ended.
    waiting: Mutex<Option<HashMap<u64, Waiting<A>>>>,
}

struct Waiting<A> {
    subject: String,
    answer: oneshot::Sender<A>,
}

impl<A> Default for Waiters<A> {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), waiting: Mutex::new(Some(HashMap::new())) }
    }
}

impl<A> Waiters<A> {
    /// For an answer from whoever has this subject. None: the connection has ended. The receiver learns of that end, and
    /// whoever drops the place no longer waits.
    pub(super) fn wait(&self, subject: &str) -> Option<(Place<'_, A>, oneshot::Receiver<A>)> {
        let (answer, receiver) = oneshot::channel();
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().as_mut()?.insert(token, Waiting { subject: subject.to_owned(), answer });
        Some((Place { waiters: self, token }, receiver))
    }

    pub(super) fn answer(&self, token: u64, answer: A) {
        let waiting = self.waiting().as_mut().and_then(|waiting| waiting.remove(&token));
        if let Some(waiting) = waiting {
            // Who has just given up is not there.
            let _ = waiting.answer.send(answer);
        }
    }

    /// To all who wait for one from this subject.
    pub(super) fn answer_all(&self, subject: &str, answer: impl Fn() -> A) {
        let theirs: Vec<_> = match self.waiting().as_mut() {
            Some(waiting) => waiting.extract_if(|_, waiting| waiting.subject == subject).collect(),
            None => Vec::new(),
        };
        for (_, waiting) in theirs {
            let _ = waiting.answer.send(answer());
        }
    }

    pub(super) fn end(&self) {
        *self.waiting() = None;
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiting<A>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that waits, for as long as it waits.
pub(super) struct Place<'a, A> {
    waiters: &'a Waiters<A>,
    token: u64,
}

impl<A> Place<'_, A> {
    /// By which the answer finds it.
    pub(super) fn token(&self) -> u64 {
        self.token
    }
}

impl<A> Drop for Place<'_, A> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiters.waiting().as_mut() {
            waiting.remove(&self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oneshot::error::TryRecvError;

    fn count(waiters: &Waiters<u8>) -> Option<usize> {
        waiters.waiting().as_ref().map(HashMap::len)
    }

    #[test]
    fn each_gets_its_own_answer_and_nobody_is_kept_who_gave_up() {
        let waiters = Waiters::<u8>::default();
        let (one, mut first) = waiters.wait("a").unwrap();
        let (two, mut second) = waiters.wait("a").unwrap();
        waiters.answer(two.token(), 2);
        assert_eq!((first.try_recv(), second.try_recv()), (Err(TryRecvError::Empty), Ok(2)));
        // An answer that comes twice or too late is nobody's.
        waiters.answer(two.token(), 2);
        waiters.answer(77, 7);
        let token = one.token();
        drop((one, first));
        assert_eq!(count(&waiters), Some(0));
        waiters.answer(token, 1);
    }

    #[test]
    fn what_is_said_of_a_subject_is_said_to_those_who_wait_for_it() {
        let waiters = Waiters::<u8>::default();
        let (_one, mut first) = waiters.wait("a").unwrap();
        let (_two, mut second) = waiters.wait("b").unwrap();
        waiters.answer_all("a", || 9);
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(9), Err(TryRecvError::Empty)));
        assert_eq!(count(&waiters), Some(1));
    }

    #[test]
    fn after_the_end_nobody_waits() {
        let waiters = Waiters::<u8>::default();
        let (place, mut answer) = waiters.wait("a").unwrap();
        waiters.end();
        assert_eq!(answer.try_recv(), Err(TryRecvError::Closed));
        assert!(waiters.wait("a").is_none());
        drop(place);
        assert_eq!(count(&waiters), None);
    }
}
