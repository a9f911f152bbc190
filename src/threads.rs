//! The threads that serve connections, each with a runtime of its own.
//!
//! Invariant: what begins on one of these threads stays there: its sockets are registered with that thread's poll alone,
//! its tasks are woken without a word to another thread, and nothing is stolen. What is shared between them is shared on
//! purpose. A connection is given to the thread that has the fewest, when it is accepted, and never moved.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// At the end of the process: for what a thread still does on its blocking threads.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
    /// Since somebody was polled last, something in it has fallen behind.
    static IS_BEHIND: Cell<bool> = const { Cell::new(false) };
}

/// Which of these threads this is, from 1 on; 0: none of them.
pub(crate) fn number() -> usize {
    NUMBER.get()
}

/// As many as the process may use processors at once: affinity and quotas of its control group are counted in.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Ends when all who are ready on this thread have had a turn.
///
/// Mostly a write wakes a process on another processor, which costs several times what the write does. Who is behind the
/// others when writing writes right behind them, and wakes nobody who is awake.
pub(crate) fn behind_others() -> impl Future<Output = ()> {
    let mut is_behind = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        fall_behind(cx);
        Poll::Pending
    })
}

/// As [`behind_others`]: whoever calls it is to return, and will be polled again.
pub(crate) fn fall_behind(cx: &Context<'_>) {
    IS_BEHIND.set(true);
    cx.waker().wake_by_ref();
}

/// What comes of polling something, and whether it did no more than fall behind: then it is polled again in any case.
pub(crate) fn falls_behind<T>(poll: impl FnOnce() -> Poll<T>) -> (Poll<T>, bool) {
    IS_BEHIND.set(false);
    let polled = poll();
    let is_behind = polled.is_pending() && IS_BEHIND.get();
    (polled, is_behind)
}

pub(crate) struct Threads {
    /// Empty: everything runs where it is asked for.
    threads: Vec<Thread>,
    turn: AtomicUsize,
    stop: watch::Sender<bool>,
    /// Taken by whoever waits for their end.
    running: Mutex<Vec<thread::JoinHandle<()>>>,
}

struct Thread {
    runtime: Handle,
    /// How many seats are taken.
    taken: Arc<AtomicUsize>,
}

/// A place on one of the threads, for as long as it lives.
pub(crate) struct Seat {
    /// `None`: it is on the thread that asked.
    elsewhere: Option<Handle>,
    taken: Option<Arc<AtomicUsize>>,
}

impl Threads {
    pub(crate) fn start(count: usize) -> io::Result<Arc<Self>> {
        let (stop, stopped) = watch::channel(false);
        let (mut threads, mut running) = (Vec::new(), Vec::new());
        for number in 1..=count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            threads.push(Thread { runtime: runtime.handle().clone(), taken: Arc::default() });
            let mut stopped = stopped.clone();
            let run = move || {
                NUMBER.set(number);
                // An error means that nobody is left to say it.
                runtime.block_on(async { drop(stopped.wait_for(|stop| *stop).await) });
                runtime.shutdown_timeout(ENDS_WITHIN);
            };
            running.push(thread::Builder::new().name(format!("serve-{number}")).spawn(run)?);
        }
        Ok(Arc::new(Self { threads, turn: AtomicUsize::new(0), stop, running: Mutex::new(running) }))
    }

    /// None: what is asked for runs in the runtime of whoever asks.
    pub(crate) fn none() -> Arc<Self> {
        let (threads, running) = (Vec::new(), Mutex::default());
        Arc::new(Self { threads, turn: AtomicUsize::new(0), stop: watch::Sender::new(false), running })
    }

    /// On the next thread in turn.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match self.threads.get(turn % self.threads.len().max(1)) {
            Some(thread) => thread.runtime.spawn(task),
            None => tokio::spawn(task),
        }
    }

    /// On the thread with the fewest seats taken; of equals this one, which needs no waking.
    pub(crate) fn seat(&self) -> Seat {
        let here = number();
        let others_first = self.threads.iter().enumerate().map(|(position, thread)| (position + 1, thread));
        let fewest =
            others_first.min_by_key(|(number, thread)| (thread.taken.load(Ordering::Relaxed), *number != here));
        let Some((number, thread)) = fewest else { return Seat { elsewhere: None, taken: None } };
        thread.taken.fetch_add(1, Ordering::Relaxed);
        let elsewhere = (number != here).then(|| thread.runtime.clone());
        Seat { elsewhere, taken: Some(Arc::clone(&thread.taken)) }
    }

    /// Ends them: what runs there is dropped. Blocking, for a second at most where something there blocks.
    pub(crate) fn end(&self) {
        self.stop.send_replace(true);
        for thread in std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner)) {
            // Its tasks' panics are caught by its runtime; its own would be told of by the standard library.
            drop(thread.join());
        }
    }
}

impl Seat {
    pub(crate) fn elsewhere(&self) -> Option<&Handle> {
        self.elsewhere.as_ref()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_behind_the_others_goes_on_when_all_who_are_ready_have_had_a_turn() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|number| {
                let done = Arc::clone(&done);
                tokio::spawn(async move {
                    done.lock().unwrap().push(("computed", number));
                    behind_others().await;
                    done.lock().unwrap().push(("wrote", number));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let in_order = ["computed", "wrote"].map(|what| [0, 1, 2].map(|number| (what, number))).concat();
        assert_eq!(*done.lock().unwrap(), in_order);
    }

    #[tokio::test]
    async fn each_seat_is_on_the_thread_that_has_the_fewest() {
        let threads = Threads::start(2).unwrap();
        let seats: Vec<Seat> = (0..4).map(|_| threads.seat()).collect();
        let taken = || threads.threads.iter().map(|thread| thread.taken.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert_eq!(taken(), [2, 2]);
        let mut numbers = Vec::new();
        for seat in &seats {
            let there = seat.elsewhere().expect("this thread is none of them");
            numbers.push(there.spawn(async { number() }).await.unwrap());
        }
        assert_eq!(numbers, [1, 2, 1, 2]);
        drop(seats);
        assert_eq!(taken(), [0, 0]);
        tokio::task::spawn_blocking(move || threads.end()).await.unwrap();
    }

    #[tokio::test]
    async fn of_equals_the_thread_that_asks_is_taken_and_needs_no_waking() {
        let threads = Threads::start(2).unwrap();
        let (on_second, second) = (Arc::clone(&threads), threads.threads[1].runtime.clone());
        let stays = second.spawn(async move { on_second.seat().elsewhere().is_none() }).await.unwrap();
        assert!(stays);
        assert!(Threads::none().seat().elsewhere().is_none());
        tokio::task::spawn_blocking(move || threads.end()).await.unwrap();
    }

    #[tokio::test]
    async fn when_the_threads_end_what_runs_there_is_dropped() {
        let threads = Threads::start(1).unwrap();
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let task = threads.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        tokio::task::spawn_blocking(move || threads.end()).await.unwrap();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(weak.upgrade().is_none());
    }
}
