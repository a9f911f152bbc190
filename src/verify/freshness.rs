//! Is the time that the sender states inside the window?
//!
//! Invariant: a timestamp has one spelling. Digits alone, so that neither `+1700000000` nor `1700000000.5` nor
//! ` 1700000000` reads as a time: under `{timestamp}.{body}` a fraction would let the first bytes of the body move into
//! the timestamp without changing the message.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::presented::TimestampPlace;
use crate::clock::UnixMillis;

/// Enough for the year 33658 in either unit.
const MAX_SECONDS_DIGITS: usize = 12;
const MAX_MILLIS_DIGITS: usize = 15;
/// RFC 3339 with nanoseconds and an offset has 35 characters, an HTTP date of the oldest form 33.
const MAX_DATE_LENGTH: usize = 64;
/// A count above this is milliseconds: as seconds it would be the year 5138, as milliseconds it is 1973.
const LARGEST_SECONDS: u64 = 100_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) place: TimestampPlace,
    pub(crate) unit: Unit,
    /// `None`: the time is signed and not judged, for nobody says how old a delivery may be.
    pub(crate) tolerance: Option<Duration>,
    pub(crate) future: Future,
}

/// How far ahead of ours the sender's clock may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Future {
    /// As far as behind: senders' clocks run ahead as often.
    #[default]
    Tolerance,
    Any,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Millis,
    Rfc3339,
    HttpDate,
    /// Seconds or milliseconds, by magnitude.
    Auto,
}

impl Timestamp {
    pub(crate) fn is_fresh(&self, stated: UnixMillis, now: UnixMillis) -> bool {
        let Some(tolerance) = self.tolerance else { return true };
        match self.future {
            Future::Any if stated > now => true,
            Future::None if stated > now => false,
            Future::Any | Future::None | Future::Tolerance => now.distance(stated) <= tolerance,
        }
    }
}

impl Unit {
    pub(crate) fn parse(self, text: &str) -> Option<UnixMillis> {
        match self {
            Self::Seconds => digits(text, MAX_SECONDS_DIGITS).map(UnixMillis::from_secs),
            Self::Millis => digits(text, MAX_MILLIS_DIGITS).map(UnixMillis),
            Self::Auto => digits(text, MAX_MILLIS_DIGITS)
                .map(|count| if count > LARGEST_SECONDS { UnixMillis(count) } else { UnixMillis::from_secs(count) }),
            Self::Rfc3339 if text.len() <= MAX_DATE_LENGTH => {
                let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
                u64::try_from(nanos.div_euclid(1_000_000)).ok().map(UnixMillis)
            }
            Self::HttpDate if text.len() <= MAX_DATE_LENGTH => {
                let since = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                u64::try_from(since.as_millis()).ok().map(UnixMillis)
            }
            Self::Rfc3339 | Self::HttpDate => None,
        }
    }

    /// How a sender writes this time; `None` for a time beyond what the calendar holds.
    pub(crate) fn format(self, at: UnixMillis) -> Option<String> {
        match self {
            Self::Seconds | Self::Auto => Some(at.as_secs().to_string()),
            Self::Millis => Some(at.0.to_string()),
            Self::Rfc3339 => {
                let nanos = i128::from(at.0) * 1_000_000;
                OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
            }
            Self::HttpDate => {
                let last_day_of_9999 = 253_402_300_799;
                (at.as_secs() <= last_day_of_9999)
                    .then(|| httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_secs())))
            }
        }
    }
}

fn digits(text: &str, at_most: usize) -> Option<u64> {
    let is_count = (1..=at_most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_count.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_unit_reads_its_own_form() {
        let at = UnixMillis(1_700_000_000_000);
        assert_eq!(Unit::Seconds.parse("1700000000"), Some(at));
        assert_eq!(Unit::Millis.parse("1700000000000"), Some(at));
        assert_eq!(Unit::Auto.parse("1700000000"), Some(at));
        assert_eq!(Unit::Auto.parse("1700000000000"), Some(at));
        assert_eq!(Unit::Rfc3339.parse("2023-11-14T22:13:20Z"), Some(at));
        assert_eq!(Unit::Rfc3339.parse("2023-11-14T23:13:20.000000000+01:00"), Some(at));
        assert_eq!(Unit::HttpDate.parse("Tue, 14 Nov 2023 22:13:20 GMT"), Some(at));
    }

    #[test]
    fn what_merely_looks_like_a_time_is_none() {
        for text in [
            "",
            "+1700000000",
            "-1",
            " 1700000000",
            "1700000000 ",
            "1700000000.5",
            "1e9",
            "NaN",
            "0x10",
            "١",
            "1234567890123",
        ] {
            assert_eq!(Unit::Seconds.parse(text), None, "{text}");
        }
        assert_eq!(Unit::Millis.parse("1234567890123456"), None);
        for text in
            ["", "yesterday", "1969-12-31T23:59:59Z", "2023-11-14", "2023-13-14T22:13:20Z", "2023-11-14T22:13:20"]
        {
            assert_eq!(Unit::Rfc3339.parse(text), None, "{text}");
        }
        assert_eq!(Unit::HttpDate.parse("soon"), None);
    }

    fn timestamp(tolerance: Option<Duration>, future: Future) -> Timestamp {
        Timestamp { place: TimestampPlace::Position, unit: Unit::Seconds, tolerance, future }
    }

    #[test]
    fn the_future_is_as_open_as_the_scheme_says() {
        let (minute, now) = (Some(Duration::from_secs(60)), UnixMillis(1_000_000));
        let ahead = UnixMillis(1_000_001);
        let far_ahead = UnixMillis(u64::MAX);
        assert!(timestamp(minute, Future::Any).is_fresh(far_ahead, now));
        assert!(!timestamp(minute, Future::Any).is_fresh(UnixMillis(939_999), now));
        assert!(!timestamp(minute, Future::None).is_fresh(ahead, now));
        assert!(timestamp(minute, Future::None).is_fresh(now, now));
        assert!(!timestamp(minute, Future::None).is_fresh(UnixMillis(939_999), now));
        for future in [Future::Tolerance, Future::Any, Future::None] {
            assert!(timestamp(None, future).is_fresh(UnixMillis(0), now));
            assert!(timestamp(None, future).is_fresh(far_ahead, now));
        }
    }

    #[test]
    fn the_window_is_open_on_both_sides_and_includes_its_edges() {
        let minute = Duration::from_secs(60);
        let stamp = timestamp(Some(minute), Future::Tolerance);
        let now = UnixMillis(1_000_000);
        assert!(stamp.is_fresh(UnixMillis(940_000), now));
        assert!(stamp.is_fresh(UnixMillis(1_060_000), now));
        assert!(!stamp.is_fresh(UnixMillis(939_999), now));
        assert!(!stamp.is_fresh(UnixMillis(1_060_001), now));
        assert!(!stamp.is_fresh(UnixMillis(u64::MAX), now));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_unit_panic(text in "\\PC{0,40}|[0-9TZ:+. -]{0,40}") {
            for unit in [Unit::Seconds, Unit::Millis, Unit::Rfc3339, Unit::HttpDate, Unit::Auto] {
                let _ = unit.parse(&text);
            }
        }

        #[test]
        fn what_is_formatted_is_read_back(seconds in 0..250_000_000_000u64) {
            for unit in [Unit::Seconds, Unit::Rfc3339, Unit::HttpDate] {
                let at = UnixMillis::from_secs(seconds);
                prop_assert_eq!(unit.format(at).and_then(|text| unit.parse(&text)), Some(at));
            }
        }
    }
}
