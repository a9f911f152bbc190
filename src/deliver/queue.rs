//! Who waits for a place, for how long, and who goes first.
//!
//! A burst is absorbed: whoever can hope for a place within `queue_timeout` waits for it, and whoever has waited longest
//! goes first. When more come than that, it is no burst. Were everybody to wait on in turn, each would be served when it
//! is about to give up, and all would be slow for as long as the flood lasts. So from then on newcomers wait *briefly*,
//! the latest of them goes first, and they are as few as can be served in that time; everybody else is told at once. Who
//! came before keeps its time: it is served from what newcomers leave, and in turn again when the flood is over. (The
//! idea is that of adaptive LIFO with a controlled delay, B. Maurer, "Fail at Scale", ACM Queue 13/8, 2015.)
//!
//! Invariant: nobody waits longer than `queue_timeout`; nobody is turned away who would be among the first of the queue
//! and there is a time to wait; how many wait is bounded, whatever is believed of the upstream.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Nobody knows how fast places come free: four rounds of them, or a thousand, is more than any upstream serves in the
/// time one may wait.
pub(super) const QUEUED_PER_PLACE: usize = 4;
const LEAST_QUEUE: usize = 1024;

/// Briefly is an eighth of `queue_timeout`. Not less than 20 ms, or a process that stands still for a moment would find
/// nobody waiting when it goes on.
const BRIEF_PART: u32 = 8;
const LEAST_BRIEF: Duration = Duration::from_millis(20);

/// Places that came free all at once are taken at once again, up to so many.
const MOST_BRIEF_AT_ONCE: usize = 32;

/// A flood is over when nobody had to be turned away for `queue_timeout`, or for this long.
const LONGEST_MEMORY: Duration = Duration::from_secs(1);

/// What is older says nothing of how fast places come free now.
const NEWS: Duration = Duration::from_secs(1);

/// Each observation counts for an eighth.
const WEIGHT: u32 = 8;

pub(super) struct Queue<T> {
    longest: Duration,
    brief: Duration,
    /// Those who came while there was hope for all. In each of the two all wait equally long, so those who gave up are at
    /// the front.
    patient: VecDeque<Waiting<T>>,
    /// Those who came in a flood. They go first, from the back.
    hasty: VecDeque<Waiting<T>>,
    /// When a newcomer last had no hope of a place in `queue_timeout`.
    pressed: Option<Instant>,
    /// For how long places are held, as was seen lately while somebody waited.
    held: Option<(Duration, Instant)>,
}

struct Waiting<T> {
    since: Instant,
    place: oneshot::Sender<T>,
}

/// To be waited for.
pub(super) struct Wait<T> {
    pub(super) place: oneshot::Receiver<T>,
    pub(super) at_most: Duration,
}

impl<T> Queue<T> {
    pub(super) fn new(queue_timeout: Duration) -> Self {
        Self {
            longest: queue_timeout,
            brief: (queue_timeout / BRIEF_PART).max(LEAST_BRIEF).min(queue_timeout),
            patient: VecDeque::new(),
            hasty: VecDeque::new(),
            pressed: None,
            held: None,
        }
    }

    /// Whether nobody waits. Most of the time nobody does.
    #[inline]
    pub(super) fn is_empty(&mut self) -> bool {
        (self.hasty.is_empty() && self.patient.is_empty()) || self.are_all_gone()
    }

    fn are_all_gone(&mut self) -> bool {
        for queue in [&mut self.hasty, &mut self.patient] {
            while queue.front().is_some_and(|first| first.place.is_closed()) {
                queue.pop_front();
            }
        }
        self.hasty.is_empty() && self.patient.is_empty()
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<oneshot::Sender<T>> {
        self.hasty.pop_back().or_else(|| self.patient.pop_front()).map(|first| first.place)
    }

    /// None: it would wait in vain. All of `places` are taken, or others wait for them.
    pub(super) fn join(&mut self, places: usize, now: Instant) -> Option<Wait<T>> {
        if !self.is_flooded(now) && self.patient.len() >= self.room(places, now) {
            self.pressed = Some(now);
        }
        let (queue, at_most) = match self.is_flooded(now) {
            false if self.patient.len() >= self.room(places, now) => return None,
            false => (&mut self.patient, self.longest),
            true if self.hasty.len() >= self.brief_room(places, now) => {
                self.pressed = Some(now);
                return None;
            }
            true => (&mut self.hasty, self.brief),
        };
        let (give, place) = oneshot::channel();
        queue.push_back(Waiting { since: now, place: give });
        Some(Wait { place, at_most })
    }

    /// A newcomer, whose body is still to be read, would wait in vain.
    pub(super) fn is_hopeless(&mut self, places: usize, now: Instant) -> bool {
        if self.is_empty() {
            return false;
        }
        // Nothing comes free: those who wait are many, and the first of them has used up half its time.
        let stands = self.held_lately(now).is_none()
            && self.patient.len() >= places
            && self.patient.front().is_some_and(|first| now - first.since >= self.longest / 2);
        let is_hopeless = stands || (self.is_flooded(now) && self.hasty.len() >= self.brief_room(places, now));
        if is_hopeless {
            self.pressed = Some(now);
        }
        is_hopeless
    }

    /// Somebody gave back the place that it held for so long, while others waited.
    pub(super) fn saw(&mut self, held: Duration, now: Instant) {
        let mean = match self.held_lately(now) {
            Some(before) => (before * (WEIGHT - 1) + held) / WEIGHT,
            None => held,
        };
        self.held = Some((mean, now));
    }

    fn is_flooded(&self, now: Instant) -> bool {
        self.pressed.is_some_and(|at| now - at < self.longest.min(LONGEST_MEMORY))
    }

    fn held_lately(&self, now: Instant) -> Option<Duration> {
        self.held.filter(|(_, at)| now - *at < NEWS).map(|(held, _)| held)
    }

    /// So many may wait for `queue_timeout`.
    fn room(&self, places: usize, now: Instant) -> usize {
        let most = LEAST_QUEUE.max(QUEUED_PER_PLACE.saturating_mul(places));
        self.freed_in(self.longest, places, now).map_or(most, |freed| freed.clamp(1, most))
    }

    /// So many may wait briefly.
    fn brief_room(&self, places: usize, now: Instant) -> usize {
        let at_once = places.clamp(1, MOST_BRIEF_AT_ONCE);
        self.freed_in(self.brief, places, now).map_or(at_once, |freed| freed.clamp(at_once, LEAST_QUEUE))
    }

    /// So many places come free in this time, if it goes on as it went lately.
    fn freed_in(&self, time: Duration, places: usize, now: Instant) -> Option<usize> {
        let held = self.held_lately(now)?.as_micros().max(1);
        let freed = time.as_micros().saturating_mul(places as u128) / held;
        Some(usize::try_from(freed).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(240);
    const BRIEF: Duration = Duration::from_millis(30);

    /// Ten places, each held for 50 ms: 48 come free in the time one may wait.
    fn queue(now: Instant) -> Queue<u32> {
        let mut queue = Queue::new(LONGEST);
        queue.saw(Duration::from_millis(50), now);
        queue
    }

    const PLACES: usize = 10;
    const HOPE: usize = 48;

    fn wait(queue: &mut Queue<u32>, now: Instant) -> Wait<u32> {
        queue.join(PLACES, now).expect("there is hope")
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_wait_their_whole_time_as_can_be_served_in_it_and_the_next_is_no_burst_any_more() {
        let now = Instant::now();
        let mut queue = queue(now);
        let burst: Vec<_> = (0..HOPE).map(|_| wait(&mut queue, now)).collect();
        assert!(burst.iter().all(|wait| wait.at_most == LONGEST));
        assert!(!queue.is_hopeless(PLACES, now), "it may be the first of a flood, and they go first");
        let hasty: Vec<_> = (0..PLACES).map(|_| wait(&mut queue, now)).collect();
        assert!(hasty.iter().all(|wait| wait.at_most == BRIEF));
        assert!(queue.is_hopeless(PLACES, now));
        assert!(queue.join(PLACES, now).is_none(), "it is told at once");
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_flood_the_latest_go_first_and_after_them_those_who_waited_before_in_turn() {
        let now = Instant::now();
        let mut queue = queue(now);
        let mut waits: Vec<_> = (0..HOPE + 2).map(|_| wait(&mut queue, now)).collect();
        let mut served = || {
            let turn = queue.pop().expect("somebody waits");
            turn.send(0).expect("and still does");
            waits.iter_mut().position(|wait| wait.place.try_recv().is_ok()).expect("one of them")
        };
        assert_eq!([served(), served(), served(), served()], [HOPE + 1, HOPE, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_over_when_nobody_was_turned_away_for_as_long_as_one_may_wait() {
        let now = Instant::now();
        let mut queue = queue(now);
        let waits: Vec<_> = (0..=HOPE).map(|_| wait(&mut queue, now)).collect();
        drop(waits);
        assert!(queue.is_empty());
        let late = now + LONGEST - Duration::from_millis(1);
        assert_eq!(wait(&mut queue, late).at_most, BRIEF);
        assert_eq!(wait(&mut queue, now + LONGEST).at_most, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_was_slow_a_while_ago_is_not_thought_to_be_slow_now() {
        let now = Instant::now();
        let mut queue = Queue::<u32>::new(LONGEST);
        queue.saw(Duration::from_secs(60), now);
        let first = wait(&mut queue, now);
        assert_eq!(first.at_most, LONGEST, "one may always hope");
        assert_eq!(wait(&mut queue, now).at_most, BRIEF);
        let later = now + NEWS + LONGEST;
        let waits: Vec<_> = (0..1000).map(|_| wait(&mut queue, later)).collect();
        assert!(waits.iter().all(|wait| wait.at_most == LONGEST));
    }

    #[tokio::test(start_paused = true)]
    async fn how_many_wait_is_bounded_whatever_is_believed() {
        let now = Instant::now();
        for held in [None, Some(Duration::ZERO), Some(Duration::from_nanos(1)), Some(Duration::MAX / 16)] {
            let mut queue = Queue::<u32>::new(Duration::from_secs(600));
            held.into_iter().for_each(|held| queue.saw(held, now));
            let waits: Vec<_> = std::iter::from_fn(|| queue.join(PLACES, now)).take(100_000).collect();
            assert!((1..=2 * LEAST_QUEUE).contains(&waits.len()), "{held:?}: {}", waits.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_up_is_not_counted() {
        let now = Instant::now();
        let mut queue = queue(now);
        for _ in 0..3 * HOPE {
            drop(wait(&mut queue, now));
            assert!(queue.is_empty());
        }
    }
}
