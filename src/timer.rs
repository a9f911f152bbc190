//! Limits on waiting, without a timer that is registered and taken back for each.
//!
//! A registered timer is set to a later time by exchanging one word; to register one takes the runtime's lock, and may
//! wake its poll. Most limits are as long as the last one was, so the timer that one leaves here serves the next.
//! Invariant: a timer serves the runtime that it is registered with and no other. At rest it is registered still, and
//! wakes nobody.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// Of one thread: about as many requests as it has under way at once.
const MOST_AT_REST: usize = 128;

/// So many are looked through for one that fits.
const MOST_LOOKED_AT: usize = 8;

/// The time was over first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Late;

struct Timer {
    sleep: Pin<Box<Sleep>>,
    runtime: Id,
}

thread_local! {
    static AT_REST: RefCell<Vec<Timer>> = const { RefCell::new(Vec::new()) };
}

/// There is no timer while there is nothing to wait for.
struct Limit(Option<Timer>);

/// Ends with the work or at `until`, whichever is first.
pub(crate) async fn within<F: Future + Unpin>(until: Instant, mut work: F) -> Result<F::Output, Late> {
    let mut limit = Limit(None);
    poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => limit.poll(cx, until).map(Err),
    })
    .await
}

/// The same, `longest` from when there is something to wait for.
pub(crate) async fn for_at_most<F: Future + Unpin>(longest: Duration, mut work: F) -> Result<F::Output, Late> {
    let (mut limit, mut until) = (Limit(None), None);
    poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => limit.poll(cx, *until.get_or_insert_with(|| Instant::now() + longest)).map(Err),
    })
    .await
}

impl Limit {
    fn poll(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<Late> {
        let timer = self.0.get_or_insert_with(|| Timer::take(until));
        // Work that has used up its turn must not keep the time from ending it.
        ready!(Pin::new(&mut unconstrained(timer.sleep.as_mut())).poll(cx));
        Poll::Ready(Late)
    }
}

impl Timer {
    fn take(until: Instant) -> Self {
        let runtime = Handle::current().id();
        match Self::fitting(runtime, until) {
            Some(mut timer) => {
                timer.sleep.as_mut().reset(until);
                timer
            }
            None => Self { sleep: Box::pin(sleep_until(until)), runtime },
        }
    }

    /// The latest of those that are set to no later a time; they need not be registered anew.
    fn fitting(runtime: Id, until: Instant) -> Option<Self> {
        let (timer, others) = AT_REST.with(|at_rest| {
            let mut at_rest = at_rest.try_borrow_mut().ok()?;
            // Of a runtime that this thread has left.
            let others: Vec<Self> = match at_rest.last() {
                Some(last) if last.runtime != runtime => std::mem::take(&mut *at_rest),
                Some(_) | None => Vec::new(),
            };
            let lately = at_rest.iter().enumerate().rev().take(MOST_LOOKED_AT);
            let fitting = lately.filter(|(_, timer)| timer.runtime == runtime && timer.sleep.deadline() <= until);
            let latest = fitting.max_by_key(|(_, timer)| timer.sleep.deadline()).map(|(position, _)| position);
            Some((latest.map(|position| at_rest.swap_remove(position)), others))
        })?;
        // What they would have woken may go with them, so not under the borrow.
        drop(others);
        timer
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let Some(mut timer) = self.0.take() else { return };
        // Of a runtime that has ended, or elsewhere.
        if !Handle::try_current().is_ok_and(|runtime| runtime.id() == timer.runtime) {
            return;
        }
        // It lets go of whoever it would wake: their task may be over, or waits for something else by then.
        let _ = Pin::new(&mut unconstrained(timer.sleep.as_mut())).poll(&mut Context::from_waker(Waker::noop()));
        let mut timer = Some(timer);
        // Where it cannot rest it goes, after the borrow.
        let _ = AT_REST.try_with(|at_rest| {
            if let Ok(mut at_rest) = at_rest.try_borrow_mut()
                && at_rest.len() < MOST_AT_REST
            {
                at_rest.extend(timer.take());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::pending;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use tokio::runtime::Builder;
    use tokio::time::sleep;

    fn at_rest() -> usize {
        AT_REST.with_borrow(Vec::len)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_its_work_or_at_its_limit_whichever_timer_serves_it() {
        for seconds in [5, 10, 1, 1, 20, 3] {
            let (begun, limit) = (Instant::now(), Duration::from_secs(seconds));
            assert_eq!(within(begun + limit, pending::<()>()).await, Err(Late));
            assert_eq!(begun.elapsed(), limit);
            assert_eq!(within(Instant::now() + limit, pin!(sleep(limit / 2))).await, Ok(()));
            assert_eq!(begun.elapsed(), limit + limit / 2);
            assert_eq!(for_at_most(limit, pending::<()>()).await, Err(Late));
            assert_eq!(begun.elapsed(), 2 * limit + limit / 2);
        }
        assert!((1..=3).contains(&at_rest()), "{} timers for one wait at a time", at_rest());
    }

    #[tokio::test(start_paused = true)]
    async fn waits_at_one_time_have_a_timer_each_and_keep_no_more_than_a_bound() {
        let begun = Instant::now();
        let waits = (0..2 * MOST_AT_REST as u64).map(|n| async move {
            let limit = Duration::from_millis(1000 - n);
            assert_eq!(within(begun + limit, pending::<()>()).await, Err(Late));
            assert_eq!(begun.elapsed(), limit);
        });
        futures_util::future::join_all(waits).await;
        assert_eq!(at_rest(), MOST_AT_REST);
    }

    #[tokio::test]
    async fn what_is_ready_at_once_needs_no_timer() {
        assert_eq!(within(Instant::now(), std::future::ready(7)).await, Ok(7));
        assert_eq!(for_at_most(Duration::ZERO, std::future::ready(7)).await, Ok(7));
        assert_eq!(at_rest(), 0);
    }

    #[test]
    fn a_timer_of_a_runtime_that_is_gone_serves_nobody() {
        for _ in 0..3 {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
            runtime.block_on(async {
                assert_eq!(for_at_most(Duration::from_secs(1), pending::<()>()).await, Err(Late));
                assert_eq!(for_at_most(Duration::from_secs(60), pin!(sleep(Duration::from_secs(1)))).await, Ok(()));
            });
            assert!((1..=2).contains(&at_rest()));
        }
    }

    #[test]
    fn a_wait_that_outlives_its_runtime_ends_with_it() {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let mut wait = Box::pin(for_at_most(Duration::from_secs(60), pending::<()>()));
        assert!(runtime.block_on(async { (&mut wait).now_or_never() }).is_none());
        drop(runtime);
        drop(wait);
        assert_eq!(at_rest(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_at_rest_wakes_nobody() {
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let (waker, limit) = (Waker::from(woken.clone()), Duration::from_secs(1));
        let mut wait = Box::pin(for_at_most(limit, pending::<()>()));
        assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(wait);
        sleep(2 * limit).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        // Its twin, which still waits, is woken.
        let mut wait = Box::pin(for_at_most(limit, pending::<()>()));
        assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        sleep(2 * limit).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
