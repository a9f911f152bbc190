//! Work that outlives whoever waits for it.
//!
//! Invariant: once begun it is brought to its end. While somebody waits it runs in their task, which spares every
//! delivery a task of its own; when they go (hyper drops the handler of a sender that hangs up) it goes on in one. A
//! panic in it is the work's end and not theirs. What one took in memory the next of the thread takes over: it is
//! some KiB.

use super::respond::Reply;
use futures_util::FutureExt as _;
use std::cell::RefCell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio_util::sync::ReusableBoxFuture;

/// Of one thread: a few KiB each.
const MOST_AT_REST: usize = 16;

type Work = ReusableBoxFuture<'static, std::thread::Result<Reply>>;

thread_local! {
    /// Over, with nothing left in them but their room.
    static AT_REST: RefCell<Vec<Work>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct Detached(Option<Work>);

/// A bug: the work panicked.
#[derive(Debug)]
pub(super) struct Panicked;

impl Detached {
    #[inline]
    pub(super) fn new(work: impl Future<Output = Reply> + Send + 'static) -> Self {
        // Wrapped no further: each layer is a copy of some KiB.
        let work = AssertUnwindSafe(work).catch_unwind();
        let room = AT_REST.with_borrow_mut(Vec::pop);
        Self(Some(match room {
            Some(mut room) => {
                room.set(work);
                room
            }
            None => ReusableBoxFuture::new(work),
        }))
    }
}

impl Future for Detached {
    type Output = Result<Reply, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let ended = std::task::ready!(work.poll(cx));
        let over = self.0.take();
        AT_REST.with_borrow_mut(|at_rest| {
            if at_rest.len() < MOST_AT_REST {
                at_rest.extend(over);
            }
        });
        Poll::Ready(ended.map_err(|_| Panicked))
    }
}

impl Drop for Detached {
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
    use crate::gateway::respond::{self, Details};
    use crate::refusal::Refusal;
    use http::StatusCode;
    use std::sync::Arc;
    use tokio::sync::oneshot;

    fn reply(refusal: Refusal) -> Reply {
        respond::refuse(refusal, "", &Details::default())
    }

    fn at_rest() -> usize {
        AT_REST.with_borrow(Vec::len)
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits_for_it_any_more() {
        for polled in [false, true] {
            let (go, wait) = oneshot::channel::<()>();
            let (done, result) = oneshot::channel();
            let mut work = Box::pin(Detached::new(async move {
                wait.await.expect("told to go on");
                done.send(7).expect("somebody listens");
                reply(Refusal::NoSource)
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
        for _ in 0..2 {
            let well = Detached::new(async { reply(Refusal::NoSource) }).await;
            assert_eq!(well.ok().map(|reply| reply.status), Some(StatusCode::NOT_FOUND));
            assert!(Detached::new(async { panic!("a bug") }).await.is_err());
        }
    }

    #[tokio::test]
    async fn what_is_over_has_let_go_of_all_that_it_held_and_leaves_its_room_to_the_next() {
        let held = Arc::new(());
        let work = |held: Arc<()>| async move {
            tokio::task::yield_now().await;
            drop(held);
            reply(Refusal::NoSource)
        };
        for _ in 0..3 {
            assert!(Detached::new(work(held.clone())).await.is_ok());
            assert_eq!((Arc::strong_count(&held), at_rest()), (1, 1));
        }
        let many: Vec<_> = (0..2 * MOST_AT_REST).map(|_| Detached::new(work(held.clone()))).collect();
        futures_util::future::join_all(many).await;
        assert_eq!((Arc::strong_count(&held), at_rest()), (1, MOST_AT_REST));
        // Broken by a panic, it holds nothing either.
        let breaks = {
            let held = held.clone();
            Detached::new(async move {
                let _held = held;
                panic!("a bug")
            })
        };
        assert!(breaks.await.is_err());
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
