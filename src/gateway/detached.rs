//! Work that outlives whoever waits for it.
//!
//! Invariant: once begun it is brought to its end. While somebody waits it runs in their task, which spares every
//! delivery a task of its own; when they go (hyper drops the handler of a sender that hangs up) it goes on in one. A
//! panic in it is the work's end and not theirs.

use futures_util::FutureExt as _;
use futures_util::future::CatchUnwind;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;

type Work<T> = CatchUnwind<AssertUnwindSafe<Pin<Box<dyn Future<Output = T> + Send>>>>;

pub(super) struct Detached<T: Send + 'static>(Option<Work<T>>);

/// A bug: the work panicked.
#[derive(Debug)]
pub(super) struct Panicked;

impl<T: Send + 'static> Detached<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        let work: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(work);
        Self(Some(AssertUnwindSafe(work).catch_unwind()))
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let ended = std::task::ready!(work.poll_unpin(cx));
        self.0 = None;
        Poll::Ready(ended.map_err(|_| Panicked))
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and what is left of the work is cut with it.
        if let Some(work) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits_for_it_any_more() {
        for polled in [false, true] {
            let (go, wait) = oneshot::channel::<()>();
            let (done, result) = oneshot::channel();
            let mut work = Box::pin(Detached::new(async move {
                wait.await.expect("told to go on");
                done.send(7).expect("somebody listens");
            }));
            if polled {
                assert!((&mut work).now_or_never().is_none());
            }
            drop(work);
            go.send(()).expect("it still waits");
            assert_eq!(result.await, Ok(7));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_and_not_who_waits_for_it() {
        assert_eq!(Detached::new(async { 7 }).await.ok(), Some(7));
        assert!(Detached::<()>::new(async { panic!("a bug") }).await.is_err());
    }
}
