//! When is a parcel that did not arrive offered again, and when is it given up? Pure: time and chance are arguments.
//!
//! Invariant: every way an attempt can end has exactly one verdict. A wait is never shorter than the upstream asked for,
//! and never longer than a day and what chance adds to the schedule: an upstream cannot park a delivery for ever.

use super::failure::Fault;
use crate::clock::UnixMillis;
use crate::fields::Fields;
use ::http::{StatusCode, header};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

/// The waits of the Standard Webhooks specification between its ten attempts: an hour's outage costs minutes, one over a
/// weekend costs nothing.
const STANDARD: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(14 * 3600),
    Duration::from_secs(20 * 3600),
    Duration::from_secs(24 * 3600),
];

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The longest that an upstream's `Retry-After` may ask for.
const LONGEST_RETRY_AFTER: Duration = DAY;

/// How often, when, and after what a delivery is tried again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    /// The first one counted; at least 1.
    pub(crate) attempts: u32,
    /// The wait after the first attempt, doubling from there. None: the waits of Standard Webhooks.
    pub(crate) first: Option<Duration>,
    /// No wait of the schedule is longer, chance aside.
    pub(crate) max: Duration,
    /// The share of a wait by which it may be shorter or longer, so that what failed together does not come back
    /// together. From 0 to 1.
    pub(crate) jitter: f64,
    pub(crate) statuses: Statuses,
}

impl Schedule {
    pub(crate) const DEFAULT_ATTEMPTS: u32 = STANDARD.len() as u32 + 1;
    pub(crate) const DEFAULT_MAX: Duration = DAY;
    pub(crate) const DEFAULT_JITTER: f64 = 0.1;

    /// `attempts`: how many were made, this one included. `random`: from 0 to 1.
    pub(crate) fn verdict(&self, ended: Ended, attempts: u32, random: f64) -> Verdict {
        let (treatment, retry_after) = match ended {
            Ended::Status { status, retry_after } => (self.statuses.treatment(status), retry_after),
            Ended::Confirmed => (Treatment::Delivered, None),
            Ended::Fault(fault) => (of_fault(fault), None),
        };
        match treatment {
            Treatment::Delivered => Verdict::Delivered,
            Treatment::Dead => Verdict::Dead,
            Treatment::Retry if attempts >= self.attempts => Verdict::Dead,
            Treatment::Retry => {
                let own = spread(self.wait(attempts), self.jitter, random * 2.0 - 1.0);
                // What the upstream asked for is spread too, but only to the later side.
                let asked = retry_after.map(|asked| spread(asked, self.jitter, random).min(LONGEST_RETRY_AFTER));
                Verdict::Retry(own.max(asked.unwrap_or_default()))
            }
        }
    }

    /// Whether this is a failure of the upstream itself, and not of the parcel.
    pub(crate) fn speaks_against_the_upstream(&self, ended: Ended) -> bool {
        match ended {
            // What the operator has given up or taken for delivered is the receiver's judgement.
            Ended::Status { status, .. } => {
                status.as_u16() >= 500 && self.statuses.treatment(status) == Treatment::Retry
            }
            Ended::Confirmed | Ended::Fault(Fault::Busy | Fault::TooLarge) => false,
            Ended::Fault(Fault::Unavailable | Fault::TimedOut | Fault::Broken) => true,
        }
    }

    /// After so many attempts.
    fn wait(&self, attempts: u32) -> Duration {
        let position = attempts.saturating_sub(1);
        let wait = match self.first {
            Some(first) => first.saturating_mul(1_u32.checked_shl(position).unwrap_or(u32::MAX)),
            None => *STANDARD.get(position as usize).unwrap_or(&DAY),
        };
        wait.min(self.max)
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            attempts: Self::DEFAULT_ATTEMPTS,
            first: None,
            max: Self::DEFAULT_MAX,
            jitter: Self::DEFAULT_JITTER,
            statuses: Statuses::default(),
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    /// A broker has it.
    Confirmed,
    Fault(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    /// After so long.
    Retry(Duration),
    Dead,
}

/// What an operator can say of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    Delivered,
    Retry,
    Dead,
}

impl Treatment {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Dead => "dead",
        }
    }
}

impl FromStr for Treatment {
    type Err = BadStatusRule;

    fn from_str(text: &str) -> Result<Self, BadStatusRule> {
        [Self::Delivered, Self::Retry, Self::Dead].into_iter().find(|known| known.word() == text).ok_or(BadStatusRule)
    }
}

/// `404` or `4xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StatusRule {
    Code(u16),
    /// The hundreds.
    Class(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadStatusRule;

impl FromStr for StatusRule {
    type Err = BadStatusRule;

    /// From 200 on: what comes before is no end of an attempt.
    fn from_str(text: &str) -> Result<Self, BadStatusRule> {
        let known = |code: &u16| (200..600).contains(code);
        let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse::<u16>().map_err(|_| BadStatusRule),
            false => Err(BadStatusRule),
        };
        match text.strip_suffix("xx") {
            Some(class) => {
                let class = number(class)?;
                known(&class.saturating_mul(100)).then_some(Self::Class(class)).ok_or(BadStatusRule)
            }
            None if text.len() == 3 => Ok(Self::Code(number(text).ok().filter(known).ok_or(BadStatusRule)?)),
            None => Err(BadStatusRule),
        }
    }
}

/// What the operator said of statuses; the rest is as it ever is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statuses(pub(crate) BTreeMap<StatusRule, Treatment>);

impl Statuses {
    fn treatment(&self, status: StatusCode) -> Treatment {
        let code = status.as_u16();
        let said = self.0.get(&StatusRule::Code(code)).or_else(|| self.0.get(&StatusRule::Class(code / 100)));
        said.copied().unwrap_or_else(|| usual(code))
    }
}

fn usual(code: u16) -> Treatment {
    match code {
        200..300 => Treatment::Delivered,
        // Late, too early, too many: not of the parcel, but of the moment.
        408 | 425 | 429 => Treatment::Retry,
        // The receiver judged the parcel, and would judge it the same again; 410 says so in words.
        400..500 => Treatment::Dead,
        // A redirect is a mistake of the configuration, which is mended without losing what came meanwhile; statuses
        // beyond 599 count as the server's errors.
        _ => Treatment::Retry,
    }
}

fn of_fault(fault: Fault) -> Treatment {
    match fault {
        Fault::Busy | Fault::Unavailable | Fault::TimedOut | Fault::Broken => Treatment::Retry,
        Fault::TooLarge => Treatment::Dead,
    }
}

/// `by`: from -1 to 1.
fn spread(wait: Duration, jitter: f64, by: f64) -> Duration {
    let factor = (1.0 + jitter.clamp(0.0, 1.0) * by.clamp(-1.0, 1.0)).max(0.0);
    Duration::try_from_secs_f64(wait.as_secs_f64() * factor).unwrap_or(wait)
}

/// What the answer asks for (RFC 9110, section 10.2.3): seconds or a date. What is neither, and a date that is over, ask
/// for nothing.
pub(crate) fn retry_after(headers: &Fields, now: UnixMillis) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number can have ask for longer than anybody gets.
        text.parse().map_or(LONGEST_RETRY_AFTER, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        date.checked_sub(Duration::from_millis(now.0))?
    };
    Some(asked.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;

    const MIDDLE: f64 = 0.5;

    fn ended(status: u16) -> Ended {
        Ended::Status { status: StatusCode::from_u16(status).unwrap(), retry_after: None }
    }

    fn secs(secs: u64) -> Verdict {
        Verdict::Retry(Duration::from_secs(secs))
    }

    fn schedule(statuses: &[(&str, &str)]) -> Schedule {
        let statuses = statuses.iter().map(|(rule, treatment)| (rule.parse().unwrap(), treatment.parse().unwrap()));
        Schedule { statuses: Statuses(statuses.collect()), ..Schedule::default() }
    }

    #[test]
    fn by_default_there_are_the_ten_attempts_of_standard_webhooks() {
        let schedule = Schedule::default();
        let waits: Vec<_> = (1..=9).map(|made| schedule.verdict(ended(503), made, MIDDLE)).collect();
        let hours = |hours: u64| secs(hours * 3600);
        let wanted = [secs(5), secs(300), secs(1800), hours(2), hours(5), hours(10), hours(14), hours(20), hours(24)];
        assert_eq!(waits, wanted);
        assert_eq!(schedule.verdict(ended(503), 10, MIDDLE), Verdict::Dead);
    }

    #[test]
    fn waits_double_from_the_first_up_to_the_longest() {
        let schedule = Schedule {
            attempts: 100,
            first: Some(Duration::from_secs(1)),
            max: Duration::from_secs(60),
            ..Schedule::default()
        };
        let waits: Vec<_> = (1..=8).map(|made| schedule.verdict(ended(500), made, MIDDLE)).collect();
        assert_eq!(waits, [secs(1), secs(2), secs(4), secs(8), secs(16), secs(32), secs(60), secs(60)]);
        assert_eq!(schedule.verdict(ended(500), 99, MIDDLE), secs(60));
    }

    #[test]
    fn the_standard_waits_are_cut_to_fewer_attempts_and_the_last_is_repeated_for_more() {
        let few = Schedule { attempts: 2, ..Schedule::default() };
        assert_eq!(few.verdict(ended(500), 1, MIDDLE), secs(5));
        assert_eq!(few.verdict(ended(500), 2, MIDDLE), Verdict::Dead);
        let many = Schedule { attempts: 20, ..Schedule::default() };
        assert_eq!(many.verdict(ended(500), 19, MIDDLE), secs(24 * 3600));
        let short = Schedule { max: Duration::from_secs(60), ..Schedule::default() };
        assert_eq!(short.verdict(ended(500), 5, MIDDLE), secs(60));
    }

    #[test]
    fn what_is_retried_and_what_is_given_up() {
        let schedule = Schedule::default();
        let verdict = |status| schedule.verdict(ended(status), 1, MIDDLE);
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(verdict(status), Verdict::Delivered, "{status}");
        }
        for status in [301, 302, 307, 308, 408, 425, 429, 500, 501, 502, 503, 504, 599, 700, 999] {
            assert_eq!(verdict(status), secs(5), "{status}");
        }
        for status in [400, 401, 403, 404, 409, 410, 413, 415, 422, 499] {
            assert_eq!(verdict(status), Verdict::Dead, "{status}");
        }
        for fault in [Fault::Busy, Fault::Unavailable, Fault::TimedOut, Fault::Broken] {
            assert_eq!(schedule.verdict(Ended::Fault(fault), 1, MIDDLE), secs(5), "{fault:?}");
        }
    }

    #[test]
    fn a_table_says_otherwise_and_a_code_goes_before_its_class() {
        let schedule = schedule(&[("404", "retry"), ("409", "delivered"), ("5xx", "dead"), ("503", "retry")]);
        let verdict = |status| schedule.verdict(ended(status), 1, MIDDLE);
        assert_eq!(verdict(404), secs(5));
        assert_eq!(verdict(409), Verdict::Delivered);
        assert_eq!(verdict(500), Verdict::Dead);
        assert_eq!(verdict(503), secs(5));
        assert_eq!(verdict(410), Verdict::Dead);
        assert_eq!(verdict(200), Verdict::Delivered);
    }

    #[test]
    fn only_what_the_upstream_itself_fails_at_speaks_against_it() {
        let schedule = schedule(&[("503", "dead"), ("404", "retry")]);
        let speaks = |ended| schedule.speaks_against_the_upstream(ended);
        for status in [500, 502, 504, 599] {
            assert!(speaks(ended(status)), "{status}");
        }
        for status in [200, 302, 400, 404, 408, 410, 429, 503] {
            assert!(!speaks(ended(status)), "{status}");
        }
        for fault in [Fault::Unavailable, Fault::TimedOut, Fault::Broken] {
            assert!(speaks(Ended::Fault(fault)), "{fault:?}");
        }
        assert!(!speaks(Ended::Fault(Fault::Busy)));
    }

    #[test]
    fn rules_that_name_no_status_are_refused() {
        for text in ["200", "404", "599", "2xx", "5xx"] {
            assert!(text.parse::<StatusRule>().is_ok(), "{text}");
        }
        for text in ["", "xx", "1xx", "6xx", "44xx", "4XX", "199", "600", "99", "0404", "+40", "-4xx", "404 ", "4x4"] {
            assert_eq!(text.parse::<StatusRule>(), Err(BadStatusRule), "{text}");
        }
        assert_eq!("ignore".parse::<Treatment>(), Err(BadStatusRule));
    }

    #[test]
    fn the_upstream_is_waited_for_as_long_as_it_asks_and_never_less_than_the_schedule_says() {
        let schedule = Schedule::default();
        let verdict = |asked, random| {
            let ended = Ended::Status {
                status: StatusCode::SERVICE_UNAVAILABLE,
                retry_after: Some(Duration::from_secs(asked)),
            };
            schedule.verdict(ended, 1, random)
        };
        assert_eq!(verdict(120, 0.0), secs(120));
        assert_eq!(verdict(120, 1.0), secs(132));
        assert_eq!(verdict(1, MIDDLE), secs(5));
        assert_eq!(verdict(86_400, 1.0), secs(86_400));
    }

    #[test]
    fn chance_moves_a_wait_by_its_share_and_no_more() {
        let schedule = Schedule::default();
        let wait = |random| match schedule.verdict(ended(500), 2, random) {
            Verdict::Retry(after) => after.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!((wait(0.0), wait(1.0)), (270_000, 330_000));
        let still = Schedule { jitter: 0.0, ..Schedule::default() };
        assert_eq!(still.verdict(ended(500), 1, 0.93), secs(5));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_day() {
        let now = UnixMillis::from_secs(784_111_777);
        let asked = |text: &str| {
            let mut headers = Fields::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers, now).map(|asked| asked.as_secs())
        };
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("0"), Some(0));
        assert_eq!(asked("90000"), Some(86_400));
        assert_eq!(asked("99999999999999999999999999"), Some(86_400));
        // RFC 9110, section 5.6.7: its three forms of Sun, 06 Nov 1994 08:49:37 GMT.
        assert_eq!(asked("Sun, 06 Nov 1994 08:51:37 GMT"), Some(120));
        assert_eq!(asked("Sunday, 06-Nov-94 08:51:37 GMT"), Some(120));
        assert_eq!(asked("Sun Nov  6 08:51:37 1994"), Some(120));
        assert_eq!(asked("Fri, 31 Dec 2049 23:59:59 GMT"), Some(86_400));
        for nothing in ["", "soon", "-1", "1.5", "12 s", "Sun, 06 Nov 1994 08:49:36 GMT"] {
            assert_eq!(asked(nothing), None, "{nothing}");
        }
        assert_eq!(retry_after(&Fields::new(), now), None);
    }
}
