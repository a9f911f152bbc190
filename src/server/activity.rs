//! What has a connection been doing, and since when? Written by its socket, its service and its answers; read by the
//! watchdog in connection.rs.
//!
//! hyper, which speaks HTTP/2 here, tells none of this, and HTTP/1 is watched by the same rules: one small record for each
//! connection.
//! Invariant: `handling` and `answering` are counted by guards, so a panic or a cancelled future is an end like any other.
//! The fields are independent statistics, each written at one place: relaxed ordering is enough, and a value that is read
//! a moment too early only makes the watchdog look once more.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::Limits;
use super::frames::Progress;

pub(super) struct Activity {
    began: Instant,
    /// When the turn began that the connection is in, or was in last: in HTTP/1 everything here happens in its turns, and
    /// to know the time costs more than all else.
    turn: Moment,
    requests: AtomicU64,
    /// Handlers that have not answered.
    handling: AtomicU32,
    /// Answers whose body has not been taken to its end.
    answering: AtomicU32,
    /// Those of them that have been asked for more, and have none yet: the peer is not to blame.
    awaiting: AtomicU32,
    progress: AtomicU64,
    /// An incomplete head, or what HTTP/2 needs before one, began to arrive.
    head_since: Moment,
    /// The peer has not taken a byte we want to send.
    stalled_since: Moment,
    was_busy: AtomicBool,
    body_may_be_unread: AtomicBool,
    has_ended: AtomicBool,
    answer_was_cut: AtomicBool,
    is_stopping: AtomicBool,
    /// What the peer was judged by is no longer in force.
    outdated_since: Moment,
}

/// Looking again is cheap, but not free.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// What the watchdog is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    LookAgain(Instant),
    /// A head has been incomplete for too long.
    HeadTimedOut,
    /// Nothing in flight, and nothing came.
    Idle,
    /// The peer does not read.
    Stalled,
}

impl Activity {
    /// `head_since`: a request's first byte has already come, or is owed.
    pub(super) fn new(head_since: Option<Instant>) -> Arc<Self> {
        // A first byte that was read while the protocol was found out lies before now.
        let began = head_since.unwrap_or_else(Instant::now);
        let activity = Self {
            began,
            turn: Moment::default(),
            requests: AtomicU64::new(0),
            handling: AtomicU32::new(0),
            answering: AtomicU32::new(0),
            awaiting: AtomicU32::new(0),
            progress: AtomicU64::new(0),
            head_since: Moment::default(),
            stalled_since: Moment::default(),
            was_busy: AtomicBool::new(false),
            body_may_be_unread: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            answer_was_cut: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            outdated_since: Moment::default(),
        };
        if head_since.is_some() {
            activity.head_since.set(0);
        }
        activity.progressed();
        Arc::new(activity)
    }

    pub(super) fn verdict(&self, now: Instant, limits: &Limits) -> Verdict {
        let head = self.head_since.get().map(|since| (self.at(since) + limits.header_timeout, Verdict::HeadTimedOut));
        let stalled = self.stalled_since.get().map(|since| (self.at(since) + limits.idle_timeout, Verdict::Stalled));
        let idle = if self.handling.load(Relaxed) > 0 || self.awaiting.load(Relaxed) > 0 {
            // The handler and its answer have deadlines of their own. When they end, the idle time begins anew.
            (now + limits.idle_timeout.max(LEAST_WAIT), Verdict::LookAgain(now))
        } else {
            // An answer that could go on, and does not, waits for the peer.
            let verdict = if self.is_busy() || self.is_stalled() { Verdict::Stalled } else { Verdict::Idle };
            (self.at(self.progress.load(Relaxed)) + limits.idle_timeout, verdict)
        };
        let mut due = idle;
        for other in [head, stalled].into_iter().flatten() {
            if other.0 < due.0 {
                due = other;
            }
        }
        if due.0 > now { Verdict::LookAgain(due.0) } else { due.1 }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.handling.load(Relaxed) > 0 || self.answering.load(Relaxed) > 0
    }

    /// HTTP/1: the last answer has been written, and nothing has come since.
    pub(super) fn is_quiet_since(&self) -> Option<Instant> {
        let is_quiet = !self.is_busy() && !self.is_in_head() && !self.is_stalled();
        is_quiet.then(|| self.at(self.progress.load(Relaxed)))
    }

    pub(super) fn is_in_head(&self) -> bool {
        self.head_since.get().is_some()
    }

    /// Nothing has been asked yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_since.get().is_some()
    }

    /// Bytes of a request may still be on their way: closing at once would reset the connection under our answer.
    pub(super) fn may_have_unread(&self) -> bool {
        !self.has_ended.load(Relaxed) && (self.is_in_head() || self.body_may_be_unread.load(Relaxed))
    }

    /// The peer must be able to tell that its answer is not whole.
    pub(super) fn is_cut(&self) -> bool {
        self.answer_was_cut.load(Relaxed) || self.answering.load(Relaxed) > 0 || self.is_stalled()
    }

    /// The next answer is to be the last.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Relaxed)
    }

    /// The peer was judged by what is no longer in force: it is told to go, and after a while it has been told.
    pub(super) fn outdate(&self) {
        self.stop();
        self.outdated_since.set_once(self.millis());
    }

    /// It has been outdated for longer than this.
    pub(super) fn is_outdated_for(&self, grace: Duration) -> bool {
        self.outdated_since.get().is_some_and(|since| self.at(since) + grace < Instant::now())
    }

    /// Before the connection is polled. `now`: everything that happens until the next turn happens then.
    pub(super) fn turn_begins(&self, now: Option<Instant>) {
        self.was_busy.store(self.is_busy(), Relaxed);
        if let Some(now) = now {
            self.turn.set(self.millis_until(now));
        }
    }

    /// HTTP/1: bytes came. Between two requests they begin a head.
    ///
    /// In the turn in which an answer ends, the rest of a body that the handler did not want may still be read; that
    /// is no head. A head that does begin in that turn is timed from its next bytes, or as idleness.
    pub(super) fn received(&self) {
        if !self.was_busy.load(Relaxed) && !self.is_busy() {
            self.head_since.set_once(self.millis());
        }
    }

    /// HTTP/2: bytes came, and this is what they did.
    pub(super) fn received_frames(&self, progress: Progress) {
        if progress.settled {
            self.head_since.clear();
        }
        if progress.owes {
            self.head_since.set_once(self.millis());
        }
    }

    /// The peer will send no more, and what it sent was read: nothing can be on its way.
    pub(super) fn peer_has_ended(&self) {
        self.has_ended.store(true, Relaxed);
    }

    pub(super) fn sent(&self, progressed: bool) {
        if progressed {
            self.stalled_since.clear();
        } else {
            self.stalled_since.set_once(self.millis());
        }
    }

    /// A request's head is whole. HTTP/2 heads are followed by their frames instead.
    pub(super) fn request_begins(self: &Arc<Self>, is_http1: bool, has_body: bool) -> Handling {
        self.requests.fetch_add(1, Relaxed);
        self.handling.fetch_add(1, Relaxed);
        self.body_may_be_unread.store(has_body, Relaxed);
        if is_http1 {
            self.head_since.clear();
        }
        Handling(Arc::clone(self))
    }

    /// HTTP/1: nothing of the request is on its way any more.
    pub(super) fn body_was_read(&self) {
        self.body_may_be_unread.store(false, Relaxed);
    }

    pub(super) fn progressed(&self) {
        self.progress.store(self.millis(), Relaxed);
    }

    fn millis(&self) -> u64 {
        self.turn.get().unwrap_or_else(|| self.millis_until(Instant::now()))
    }

    fn millis_until(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, millis: u64) -> Instant {
        self.began + Duration::from_millis(millis)
    }
}

/// Milliseconds since the connection began, or never: one more than the value, and 0.
#[derive(Default)]
struct Moment(AtomicU64);

impl Moment {
    fn get(&self) -> Option<u64> {
        self.0.load(Relaxed).checked_sub(1)
    }

    fn set(&self, millis: u64) {
        self.0.store(millis.saturating_add(1), Relaxed);
    }

    fn set_once(&self, millis: u64) {
        if self.get().is_none() {
            self.set(millis);
        }
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// A request is with the handler.
pub(super) struct Handling(Arc<Activity>);

impl Handling {
    pub(super) fn answered_with<B>(self, body: B) -> Answer<B> {
        self.0.answering.fetch_add(1, Relaxed);
        Answer { body, activity: Arc::clone(&self.0), is_awaited: false }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.handling.fetch_sub(1, Relaxed);
        self.0.progressed();
    }
}

/// The body of an answer, watched.
pub(super) struct Answer<B> {
    body: B,
    activity: Arc<Activity>,
    is_awaited: bool,
}

impl<B> Answer<B> {
    fn set_awaited(&mut self, is_awaited: bool) {
        match (self.is_awaited, is_awaited) {
            (false, true) => self.activity.awaiting.fetch_add(1, Relaxed),
            (true, false) => self.activity.awaiting.fetch_sub(1, Relaxed),
            _ => return,
        };
        self.is_awaited = is_awaited;
    }
}

impl<B> Body for Answer<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.set_awaited(frame.is_pending());
        let frame = ready!(frame);
        self.activity.progressed();
        if matches!(frame, Some(Err(_))) {
            self.activity.answer_was_cut.store(true, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.set_awaited(false);
        self.activity.answering.fetch_sub(1, Relaxed);
        self.activity.progressed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const LIMITS: Limits = Limits {
        max_connections_per_client: 1,
        max_header_bytes: 8192,
        header_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(75),
        max_concurrent_streams: 1,
    };

    fn verdict(activity: &Activity) -> Verdict {
        activity.verdict(Instant::now(), &LIMITS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_timed_from_its_first_byte_and_dripping_does_not_help() {
        let activity = Activity::new(None);
        advance(Duration::from_secs(60)).await;
        for _ in 0..9 {
            activity.received();
            advance(Duration::from_secs(1)).await;
            assert!(matches!(verdict(&activity), Verdict::LookAgain(_)));
        }
        activity.received();
        advance(Duration::from_secs(1)).await;
        assert_eq!(verdict(&activity), Verdict::HeadTimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_is_never_idle_and_the_idle_time_begins_at_its_end() {
        let activity = Activity::new(None);
        let handling = activity.request_begins(true, false);
        advance(Duration::from_secs(300)).await;
        assert!(matches!(verdict(&activity), Verdict::LookAgain(_)));
        drop(handling.answered_with(()));
        advance(Duration::from_secs(74)).await;
        assert!(matches!(verdict(&activity), Verdict::LookAgain(_)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(verdict(&activity), Verdict::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_given_up() {
        let activity = Activity::new(None);
        let answer = activity.request_begins(true, false).answered_with(());
        activity.sent(false);
        advance(Duration::from_secs(74)).await;
        activity.sent(true);
        activity.progressed();
        activity.sent(false);
        advance(Duration::from_secs(74)).await;
        assert!(matches!(verdict(&activity), Verdict::LookAgain(_)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(verdict(&activity), Verdict::Stalled);
        assert!(activity.is_cut());
        activity.sent(true);
        drop(answer);
        assert!(!activity.is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_an_unwanted_body_is_not_taken_for_a_head() {
        let activity = Activity::new(None);
        let answer = activity.request_begins(true, true).answered_with(());
        activity.turn_begins(None);
        drop(answer);
        activity.received();
        assert!(!activity.is_in_head());
        activity.turn_begins(None);
        activity.received();
        assert!(activity.is_in_head());
    }
}
