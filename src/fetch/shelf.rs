//! What was fetched, what failed, and what is on its way: by url.
//!
//! Invariant: pure, `now` goes in. At most one flight per url; a url that failed is left alone for a while; a document
//! is never pushed out by urls that never answered, nor one of the configuration's urls by what requests name, so
//! strangers who invent urls cannot make us forget a key. They cannot keep us from a url of the configuration either: that
//! one always has room. All of it is bounded: documents, their bytes, and what requests name within a while.

use super::failure::FetchError;
use crate::clock::UnixMillis;
use crate::fetched::{Document, Lookup, NamedBy, Wanted};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a document counts as fresh, whatever its server says: shorter would ask all the time, longer would trust a
/// withdrawn key for days.
const SHORTEST_LIFE: Duration = Duration::from_secs(5 * 60);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Where the server says nothing.
const USUAL_LIFE: Duration = Duration::from_secs(3600);
/// The last known good is served while its server fails, so long and no longer.
const STALE_FOR: Duration = Duration::from_secs(24 * 3600);
/// A url that failed is not asked for again before.
const FAILED_FOR: Duration = Duration::from_secs(45);
/// A document that lacks a key is fetched again so often at most.
const REFETCH_AFTER: Duration = Duration::from_secs(60);
/// Keys in use are fetched anew when four fifths of their life are over, so that no delivery waits.
const REFRESH_AT: (u32, u32) = (4, 5);

const MOST_DOCUMENTS: usize = 256;
const MOST_BYTES: usize = 16 << 20;
/// Urls that requests named and that are on their way, have failed, or came just now, whatever they answered: of one
/// host, and of all. A sender can name as many as it likes.
const MOST_UNKNOWN_OF_A_HOST: usize = 16;
const MOST_UNKNOWN: usize = 128;

/// What a flight ended with.
pub(super) type Landing = Option<Result<(), FetchError>>;

#[derive(Default)]
pub(super) struct Shelf {
    entries: HashMap<Arc<str>, Entry>,
}

struct Entry {
    host: String,
    named_by: NamedBy,
    first_seen: UnixMillis,
    kept: Option<Kept>,
    /// The last failure, and until when the url is left alone.
    failed: Option<(FetchError, UnixMillis)>,
    flight: Option<watch::Receiver<Landing>>,
    tried_at: UnixMillis,
    used_at: UnixMillis,
}

struct Kept {
    document: Arc<Document>,
    fresh_until: UnixMillis,
    refresh_at: UnixMillis,
}

pub(super) enum Begin {
    /// It is here, and new enough.
    Here,
    Join(watch::Receiver<Landing>),
    /// The caller flies, and lands with `keep` or `fail`.
    Fly(watch::Sender<Landing>, watch::Receiver<Landing>),
    Refused(FetchError),
}

impl Shelf {
    pub(super) fn look_up(&mut self, url: &str, now: UnixMillis) -> Lookup {
        let Some(entry) = self.entries.get_mut(url) else { return Lookup::Missing };
        let failed = entry.failed.as_ref().is_some_and(|(_, until)| now < *until);
        match &entry.kept {
            Some(kept) if now < kept.fresh_until || (failed && now < kept.fresh_until.after(STALE_FOR)) => {
                entry.used_at = now;
                Lookup::Here(kept.document.clone())
            }
            _ if failed => Lookup::Unavailable,
            _ => Lookup::Missing,
        }
    }

    pub(super) fn begin(&mut self, wanted: &Wanted, host: &str, now: UnixMillis) -> Begin {
        let Wanted { url, newer_than, named_by } = wanted;
        if let Some(entry) = self.entries.get(url) {
            if let Some(kept) = &entry.kept
                && now < kept.fresh_until
                && newer_than.is_none_or(|than| kept.document.fetched_at > than)
            {
                return Begin::Here;
            }
            // A flight whose task died has closed its channel without a word.
            if let Some(flight) = &entry.flight
                && (flight.borrow().is_some() || flight.has_changed().is_ok())
            {
                return Begin::Join(flight.clone());
            }
            if let Some((_, until)) = &entry.failed
                && now < *until
            {
                return Begin::Refused(FetchError::TooSoon);
            }
            if newer_than.is_some() && entry.kept.is_some() && now < entry.tried_at.after(REFETCH_AFTER) {
                return Begin::Refused(FetchError::TooSoon);
            }
        } else if !self.has_room_for(host, now) && *named_by == NamedBy::Request {
            return Begin::Refused(FetchError::Crowded);
        }
        let entry = self.entries.entry(url.clone()).or_insert_with(|| Entry {
            host: host.to_owned(),
            named_by: *named_by,
            first_seen: now,
            kept: None,
            failed: None,
            flight: None,
            tried_at: now,
            used_at: now,
        });
        let (landing, flight) = watch::channel(None);
        entry.flight = Some(flight.clone());
        entry.tried_at = now;
        Begin::Fly(landing, flight)
    }

    /// `life`: what the server says.
    pub(super) fn keep(&mut self, url: &str, bytes: Bytes, life: Option<Duration>, now: UnixMillis) {
        let Some(entry) = self.entries.get_mut(url) else { return };
        let life = life.unwrap_or(USUAL_LIFE).clamp(SHORTEST_LIFE, LONGEST_LIFE);
        // Unchanged bytes are the same document to whoever parsed it, yet with a new time.
        entry.kept = Some(Kept {
            document: Arc::new(Document::new(bytes, now)),
            fresh_until: now.after(life),
            refresh_at: now.after(life * REFRESH_AT.0 / REFRESH_AT.1),
        });
        entry.failed = None;
        entry.flight = None;
        entry.used_at = now;
        self.make_room(url);
    }

    pub(super) fn fail(&mut self, url: &str, error: FetchError, now: UnixMillis) {
        let Some(entry) = self.entries.get_mut(url) else { return };
        entry.failed = Some((error, now.after(FAILED_FOR)));
        entry.flight = None;
    }

    /// Documents in use whose life is nearly over. One that nobody has asked for since it was fetched may run out.
    pub(super) fn due(&self, now: UnixMillis) -> Vec<Wanted> {
        let due = self.entries.iter().filter_map(|(url, entry)| {
            let kept = entry.kept.as_ref().filter(|kept| kept.refresh_at <= now)?;
            let idle = entry.flight.is_none() && entry.failed.as_ref().is_none_or(|(_, until)| *until <= now);
            let in_use = entry.used_at > kept.document.fetched_at;
            let newer_than = Some(kept.document.fetched_at);
            (idle && in_use).then(|| Wanted { url: url.clone(), newer_than, named_by: entry.named_by })
        });
        due.collect()
    }

    /// What was fetched by other rules.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(super) fn documents(&self) -> usize {
        self.entries.values().filter(|entry| entry.kept.is_some()).count()
    }

    fn has_room_for(&mut self, host: &str, now: UnixMillis) -> bool {
        self.entries.retain(|_, entry| {
            let still_failed = entry.failed.as_ref().is_some_and(|(_, until)| now < *until);
            let worth_keeping = entry.kept.as_ref().is_some_and(|kept| now < kept.fresh_until.after(STALE_FOR));
            worth_keeping || still_failed || entry.flight.as_ref().is_some_and(|flight| flight.has_changed().is_ok())
        });
        let unknown = self.entries.values().filter(|entry| {
            let is_new = entry.kept.is_none() || now < entry.first_seen.after(FAILED_FOR);
            entry.named_by == NamedBy::Request && is_new
        });
        let (mut all, mut of_the_host) = (0, 0);
        for entry in unknown {
            all += 1;
            of_the_host += usize::from(entry.host == host);
        }
        all < MOST_UNKNOWN && of_the_host < MOST_UNKNOWN_OF_A_HOST
    }

    /// The document that was used longest ago goes first; what the configuration names, last.
    fn make_room(&mut self, newest: &str) {
        loop {
            let kept = self.entries.iter().filter_map(|(url, entry)| Some((url, entry, entry.kept.as_ref()?)));
            let (count, bytes) =
                kept.fold((0, 0), |(count, bytes), (_, _, kept)| (count + 1, bytes + kept.document.bytes.len()));
            if count <= MOST_DOCUMENTS && bytes <= MOST_BYTES {
                return;
            }
            let others = self.entries.iter().filter(|(url, entry)| entry.kept.is_some() && &***url != newest);
            let Some(oldest) =
                others.min_by_key(|(_, entry)| (entry.named_by, entry.used_at)).map(|(url, _)| url.clone())
            else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: UnixMillis = UnixMillis::from_secs(1_800_000_000);

    fn wanted(url: &str, newer_than: Option<UnixMillis>) -> Wanted {
        Wanted { url: Arc::from(url), newer_than, named_by: NamedBy::Request }
    }

    fn of_the_configuration(url: &str) -> Wanted {
        Wanted { named_by: NamedBy::Configuration, ..wanted(url, None) }
    }

    fn later(secs: u64) -> UnixMillis {
        T0.after(Duration::from_secs(secs))
    }

    fn filled(life: Option<u64>) -> Shelf {
        let mut shelf = Shelf::default();
        fill(&mut shelf, "https://h/a", b"one", life, T0);
        shelf
    }

    fn fill(shelf: &mut Shelf, name: &str, bytes: &'static [u8], life: Option<u64>, now: UnixMillis) {
        assert!(matches!(shelf.begin(&wanted(name, None), "h", now), Begin::Fly(..)), "{name}");
        shelf.keep(name, Bytes::from_static(bytes), life.map(Duration::from_secs), now);
    }

    fn here(shelf: &mut Shelf, now: UnixMillis) -> &'static str {
        match shelf.look_up("https://h/a", now) {
            Lookup::Here(_) => "here",
            Lookup::Missing => "missing",
            Lookup::Unavailable => "unavailable",
        }
    }

    #[test]
    fn a_document_lives_as_long_as_its_server_says_within_five_minutes_and_a_day() {
        for (said, lives) in [(None, 3600), (Some(0), 300), (Some(600), 600), (Some(10_000_000), 86_400)] {
            let mut shelf = filled(said);
            assert_eq!(here(&mut shelf, later(lives - 1)), "here", "{said:?}");
            assert_eq!(here(&mut shelf, later(lives)), "missing", "{said:?}");
        }
    }

    #[test]
    fn a_url_that_failed_is_left_alone_for_45_seconds() {
        let mut shelf = Shelf::default();
        assert_eq!(here(&mut shelf, T0), "missing");
        assert!(matches!(shelf.begin(&wanted("https://h/a", None), "h", T0), Begin::Fly(..)));
        shelf.fail("https://h/a", FetchError::TimedOut, T0);
        assert_eq!(here(&mut shelf, later(44)), "unavailable");
        assert!(matches!(
            shelf.begin(&wanted("https://h/a", None), "h", later(44)),
            Begin::Refused(FetchError::TooSoon)
        ));
        assert_eq!(here(&mut shelf, later(45)), "missing");
        assert!(matches!(shelf.begin(&wanted("https://h/a", None), "h", later(45)), Begin::Fly(..)));
    }

    #[test]
    fn the_last_known_good_is_served_while_the_server_fails_and_not_for_ever() {
        let mut shelf = filled(Some(300));
        for at in [300, 1_000, 86_000] {
            assert_eq!(here(&mut shelf, later(at)), "missing", "first it is asked for");
            assert!(matches!(shelf.begin(&wanted("https://h/a", None), "h", later(at)), Begin::Fly(..)));
            shelf.fail("https://h/a", FetchError::TimedOut, later(at));
            assert_eq!(here(&mut shelf, later(at)), "here");
        }
        let too_old = 300 + 86_400;
        assert!(matches!(shelf.begin(&wanted("https://h/a", None), "h", later(too_old)), Begin::Fly(..)));
        shelf.fail("https://h/a", FetchError::TimedOut, later(too_old));
        assert_eq!(here(&mut shelf, later(too_old)), "unavailable");
    }

    #[test]
    fn a_key_that_is_missing_has_its_set_fetched_again_once_a_minute_at_most() {
        let mut shelf = filled(Some(3600));
        let newer_than = Some(T0);
        assert!(matches!(
            shelf.begin(&wanted("https://h/a", newer_than), "h", later(59)),
            Begin::Refused(FetchError::TooSoon)
        ));
        assert!(matches!(shelf.begin(&wanted("https://h/a", newer_than), "h", later(60)), Begin::Fly(..)));
        shelf.keep("https://h/a", Bytes::from_static(b"two"), None, later(60));
        assert!(matches!(shelf.begin(&wanted("https://h/a", newer_than), "h", later(61)), Begin::Here));
        let newest = Some(later(60));
        assert!(matches!(shelf.begin(&wanted("https://h/a", newest), "h", later(61)), Begin::Refused(_)));
    }

    #[test]
    fn one_flight_per_url_and_a_dead_one_is_flown_again() {
        let mut shelf = Shelf::default();
        let Begin::Fly(landing, _flight) = shelf.begin(&wanted("https://h/a", None), "h", T0) else {
            panic!("a flight")
        };
        assert!(matches!(shelf.begin(&wanted("https://h/a", None), "h", T0), Begin::Join(_)));
        drop(landing);
        assert!(matches!(shelf.begin(&wanted("https://h/a", None), "h", T0), Begin::Fly(..)));
    }

    #[test]
    fn documents_in_use_are_due_before_they_run_out_and_others_are_not() {
        let mut shelf = filled(Some(1000));
        assert!(shelf.due(later(900)).is_empty(), "nobody asked for it");
        assert_eq!(here(&mut shelf, later(10)), "here");
        assert!(shelf.due(later(799)).is_empty());
        assert_eq!(shelf.due(later(800)).len(), 1);
        assert!(matches!(shelf.begin(&wanted("https://h/a", Some(T0)), "h", later(800)), Begin::Fly(..)));
        shelf.fail("https://h/a", FetchError::TimedOut, later(800));
        assert!(shelf.due(later(820)).is_empty(), "it has just failed");
        assert_eq!(shelf.due(later(850)).len(), 1);
    }

    #[test]
    fn invented_urls_are_few_and_push_no_document_out() {
        let mut shelf = filled(Some(3600));
        let mut flights = Vec::new();
        for n in 0..MOST_UNKNOWN_OF_A_HOST {
            let Begin::Fly(landing, _) = shelf.begin(&wanted(&format!("https://h/{n}"), None), "h", later(100)) else {
                panic!("the first sixteen fly")
            };
            flights.push(landing);
        }
        assert!(matches!(
            shelf.begin(&wanted("https://h/more", None), "h", later(100)),
            Begin::Refused(FetchError::Crowded)
        ));
        assert!(
            matches!(shelf.begin(&wanted("https://other/", None), "other", later(100)), Begin::Fly(..)),
            "another host may"
        );
        for n in 0..MOST_UNKNOWN_OF_A_HOST {
            shelf.fail(&format!("https://h/{n}"), FetchError::Status(404), later(100));
        }
        assert!(matches!(shelf.begin(&wanted("https://h/more", None), "h", later(144)), Begin::Refused(_)));
        assert!(matches!(shelf.begin(&wanted("https://h/more", None), "h", later(145)), Begin::Fly(..)));
        assert_eq!(here(&mut shelf, later(146)), "here");
    }

    /// Regions, paths and files can be invented without end, and the senders of other sources must not feel it.
    #[test]
    fn what_the_configuration_names_has_room_whatever_strangers_name() {
        let mut shelf = Shelf::default();
        let mut flights = Vec::new();
        for n in 0..MOST_UNKNOWN {
            let host = format!("h{}", n / MOST_UNKNOWN_OF_A_HOST);
            let Begin::Fly(landing, _) = shelf.begin(&wanted(&format!("https://{host}/{n}"), None), &host, T0) else {
                panic!("{n} flies")
            };
            flights.push(landing);
        }
        assert!(matches!(shelf.begin(&wanted("https://k/", None), "k", T0), Begin::Refused(FetchError::Crowded)));
        assert!(matches!(shelf.begin(&of_the_configuration("https://k/"), "k", T0), Begin::Fly(..)));
    }

    /// Where a host answers 200 to whatever it is asked, urls are invented that bring documents.
    #[test]
    fn invented_urls_that_answer_are_as_few_and_push_no_key_of_the_configuration_out() {
        let mut shelf = Shelf::default();
        assert!(matches!(shelf.begin(&of_the_configuration("https://h/a"), "h", T0), Begin::Fly(..)));
        shelf.keep("https://h/a", Bytes::from_static(b"keys"), Some(Duration::from_secs(86_400)), T0);
        for n in 0..MOST_UNKNOWN_OF_A_HOST {
            fill(&mut shelf, &format!("https://h/{n}"), b"page", None, later(1));
        }
        let more = wanted("https://h/more", None);
        assert!(matches!(shelf.begin(&more, "h", later(45)), Begin::Refused(FetchError::Crowded)));
        assert!(matches!(shelf.begin(&more, "h", later(46)), Begin::Fly(..)));
        for n in 0..MOST_DOCUMENTS as u64 {
            fill(&mut shelf, &format!("https://h/later/{n}"), b"page", None, later(100 + 3 * n));
        }
        assert_eq!(shelf.documents(), MOST_DOCUMENTS);
        assert_eq!(here(&mut shelf, later(1000)), "here");
    }

    #[test]
    fn documents_and_their_bytes_are_bounded_and_the_one_unused_longest_goes() {
        let mut shelf = filled(Some(86_400));
        for n in 0..MOST_DOCUMENTS as u64 {
            fill(&mut shelf, &format!("https://h/{n}"), b"x", Some(86_400), later(3 * (n + 1)));
        }
        assert_eq!(shelf.documents(), MOST_DOCUMENTS);
        assert_eq!(here(&mut shelf, later(1000)), "missing");
        let large: &'static [u8] = vec![0; MOST_BYTES / 2 + 1].leak();
        fill(&mut shelf, "https://h/large", large, None, later(2000));
        fill(&mut shelf, "https://h/larger", large, None, later(2001));
        assert_eq!(shelf.documents(), 1);
    }
}
