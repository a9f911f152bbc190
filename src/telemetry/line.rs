//! How the audit log's line is spelled, as text or as JSON.
//!
//! Invariant: no header value but the ids that the source is configured to read, no body, no credential, no query
//! string. Text that a stranger chose is escaped, so that nobody can write a line of their own, and cut, so that a line
//! has a bounded length. A line is written into the room of its caller, without any of its own.

use super::outcome::Outcome;
use crate::clock::UnixMillis;
use std::cell::Cell;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// Text of a stranger's choosing (event ids, names in certificates) is cut at this many bytes.
const LONGEST_FIELD: usize = 256;

/// What is said of one request. Empty where it is not known.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) at: UnixMillis,
    pub(crate) request_id: &'a str,
    pub(crate) listener: &'a str,
    pub(crate) source: &'a str,
    pub(crate) outcome: Outcome,
    /// In observe mode: what enforcing would have said.
    pub(crate) would_refuse: Option<Outcome>,
    pub(crate) status: u16,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) client: IpAddr,
    pub(crate) certificate: &'a str,
    pub(crate) verified: &'a str,
    pub(crate) event_id: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) upstream: &'a str,
    pub(crate) body_bytes: usize,
    pub(crate) whole: Duration,
    pub(crate) verify: Duration,
    pub(crate) forward: Duration,
}

pub(super) fn text(line: &mut Vec<u8>, record: &Record<'_>) {
    put_time(line, record.at);
    line.extend_from_slice(b" audit client=");
    put_address(line, record.client);
    // Names as arrays: what has a constant length is copied without a call.
    put_field(line, b" request_id=", record.request_id);
    put_field(line, b" listener=", record.listener);
    put_field(line, b" source=", record.source);
    put_field(line, b" outcome=", record.outcome.label());
    put_field(line, b" would_refuse=", record.would_refuse.map_or("", Outcome::label));
    put_field(line, b" method=", record.method);
    put_field(line, b" path=", record.path);
    put_field(line, b" certificate=", record.certificate);
    put_field(line, b" verified=", record.verified);
    put_field(line, b" event_id=", record.event_id);
    put_field(line, b" event_type=", record.event_type);
    put_field(line, b" upstream=", record.upstream);
    line.extend_from_slice(b" status=");
    put_number(line, u64::from(record.status));
    line.extend_from_slice(b" body_bytes=");
    put_number(line, record.body_bytes as u64);
    line.extend_from_slice(b" duration_us=");
    put_number(line, micros(record.whole));
    line.extend_from_slice(b" verify_us=");
    put_number(line, micros(record.verify));
    line.extend_from_slice(b" forward_us=");
    put_number(line, micros(record.forward));
    line.push(b'\n');
}

#[inline]
fn put_field<const LENGTH: usize>(line: &mut Vec<u8>, name: &[u8; LENGTH], value: &str) {
    if !value.is_empty() {
        line.extend_from_slice(name);
        put_value(line, value);
    }
}

fn put_value(line: &mut Vec<u8>, value: &str) {
    let value = cut(value);
    if value.bytes().all(|byte| PLAIN[usize::from(byte)]) {
        line.extend_from_slice(value.as_bytes());
    } else {
        // Writing to a Vec cannot fail.
        let _ = write!(line, "{value:?}");
    }
}

/// What stands in a line without quotes.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        plain[byte as usize] = !matches!(byte, b'"' | b'=' | b'\\');
        byte += 1;
    }
    plain
};

/// One object, its members in the order of their names.
pub(super) fn json(line: &mut Vec<u8>, record: &Record<'_>) {
    line.push(b'{');
    json_number(line, "body_bytes", record.body_bytes as u64);
    json_text(line, "certificate", record.certificate);
    json_name(line, "client");
    line.push(b'"');
    put_address(line, record.client);
    line.push(b'"');
    json_number(line, "duration_us", micros(record.whole));
    json_text(line, "event_id", record.event_id);
    json_text(line, "event_type", record.event_type);
    json_number(line, "forward_us", micros(record.forward));
    json_text(line, "listener", record.listener);
    json_text(line, "method", record.method);
    json_text(line, "outcome", record.outcome.label());
    json_text(line, "path", record.path);
    json_text(line, "request_id", record.request_id);
    json_text(line, "source", record.source);
    json_number(line, "status", u64::from(record.status));
    json_name(line, "time");
    line.push(b'"');
    put_time(line, record.at);
    line.push(b'"');
    json_text(line, "type", "audit");
    json_text(line, "upstream", record.upstream);
    json_text(line, "verified", record.verified);
    json_number(line, "verify_us", micros(record.verify));
    json_text(line, "would_refuse", record.would_refuse.map_or("", Outcome::label));
    line.extend_from_slice(b"}\n");
}

#[cfg(feature = "measure")]
impl Record<'_> {
    pub(crate) fn put(&self, line: &mut Vec<u8>, format: super::Format) {
        match format {
            super::Format::Text => text(line, self),
            super::Format::Json => json(line, self),
        }
    }
}

fn json_name(line: &mut Vec<u8>, name: &str) {
    if line.last() != Some(&b'{') {
        line.push(b',');
    }
    line.push(b'"');
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
}

fn json_number(line: &mut Vec<u8>, name: &str, value: u64) {
    json_name(line, name);
    put_number(line, value);
}

fn json_text(line: &mut Vec<u8>, name: &str, value: &str) {
    let value = cut(value);
    if !value.is_empty() {
        json_name(line, name);
        // Writing a text to a Vec cannot fail.
        let _ = serde_json::to_writer(line, value);
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()))
}

fn cut(text: &str) -> &str {
    if text.len() <= LONGEST_FIELD {
        return text;
    }
    let end = (0..=LONGEST_FIELD).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

fn put_address(line: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (position, octet) in v4.octets().into_iter().enumerate() {
                if position > 0 {
                    line.push(b'.');
                }
                put_number(line, u64::from(octet));
            }
        }
        IpAddr::V6(v6) => {
            // Writing to a Vec cannot fail.
            let _ = write!(line, "{v6}");
        }
    }
}

fn put_number(line: &mut Vec<u8>, mut number: u64) {
    let count = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    // The longest has 20 digits. All of the array are copied, which is no call, and those behind the last taken back.
    let mut digits = [0; 20];
    for digit in digits.iter_mut().take(count).rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line.extend_from_slice(&digits);
    line.truncate(line.len() - (digits.len() - count));
}

/// With so many digits, zeros before it; more than fit are cut.
fn put_padded(line: &mut Vec<u8>, digits: u32, number: u64) {
    for position in (0..digits).rev() {
        line.push(b'0' + (number / 10_u64.pow(position) % 10) as u8);
    }
}

thread_local! {
    /// The last second that was spelled here, and how.
    static SECOND: Cell<(u64, [u8; 19])> = const { Cell::new((0, *b"1970-01-01T00:00:00")) };
}

/// RFC 3339, to the millisecond, without zeros at its end. A time beyond the year 9999 has no such form and is left out.
fn put_time(line: &mut Vec<u8>, UnixMillis(millis): UnixMillis) {
    const BEYOND: u64 = 253_402_300_800_000;
    if millis >= BEYOND {
        return;
    }
    let (second, fraction) = (millis / 1000, millis % 1000);
    let (spelled, mut text) = SECOND.get();
    if spelled != second {
        text = spell_second(second);
        SECOND.set((second, text));
    }
    line.extend_from_slice(&text);
    if fraction > 0 {
        line.push(b'.');
        put_padded(line, 3, fraction);
        while line.last() == Some(&b'0') {
            line.pop();
        }
    }
    line.push(b'Z');
}

fn spell_second(second: u64) -> [u8; 19] {
    let (days, second) = (second / 86_400, second % 86_400);
    let (year, month, day) = date(days);
    let mut room = Vec::with_capacity(19);
    put_padded(&mut room, 4, year);
    for (before, number) in
        [(b'-', month), (b'-', day), (b'T', second / 3600), (b':', second / 60 % 60), (b':', second % 60)]
    {
        room.push(before);
        put_padded(&mut room, 2, number);
    }
    let mut text = [0; 19];
    text.copy_from_slice(&room);
    text
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Counted from 1 March of the year 0, so that
/// a leap day is a year's last; 400 years have 146,097 days.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::refusal::Refusal;
    use proptest::prelude::*;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    pub(in super::super) fn record(event_id: &str) -> Record<'_> {
        Record {
            at: UnixMillis(1_760_000_000_123),
            request_id: "r1",
            listener: "public",
            source: "github",
            outcome: Outcome::Refused(Refusal::Replay),
            would_refuse: None,
            status: 409,
            method: "POST",
            path: "/github",
            client: IpAddr::from([192, 0, 2, 1]),
            certificate: "",
            verified: "github",
            event_id,
            event_type: "push",
            upstream: "",
            body_bytes: 12,
            whole: Duration::from_micros(480),
            verify: Duration::from_micros(4),
            forward: Duration::ZERO,
        }
    }

    fn spelled(how: fn(&mut Vec<u8>, &Record<'_>), record: &Record<'_>) -> String {
        let mut line = Vec::new();
        how(&mut line, record);
        String::from_utf8(line).expect("a line is text")
    }

    #[test]
    fn a_line_says_who_what_and_how_it_ended() {
        assert_eq!(
            spelled(text, &record("e1")),
            "2025-10-09T08:53:20.123Z audit client=192.0.2.1 request_id=r1 listener=public source=github outcome=replay \
             method=POST path=/github verified=github event_id=e1 event_type=push status=409 body_bytes=12 duration_us=480 \
             verify_us=4 forward_us=0\n"
        );
        assert_eq!(
            spelled(json, &Record { client: "2001:db8::1".parse().expect("an address"), ..record("e\"1") }),
            "{\"body_bytes\":12,\"client\":\"2001:db8::1\",\"duration_us\":480,\"event_id\":\"e\\\"1\",\
             \"event_type\":\"push\",\"forward_us\":0,\"listener\":\"public\",\"method\":\"POST\",\"outcome\":\"replay\",\
             \"path\":\"/github\",\"request_id\":\"r1\",\"source\":\"github\",\"status\":409,\
             \"time\":\"2025-10-09T08:53:20.123Z\",\"type\":\"audit\",\"verified\":\"github\",\"verify_us\":4}\n"
        );
    }

    #[test]
    fn a_stranger_cannot_write_a_line_of_their_own() {
        let hostile = "x\n2026-01-01T00:00:00Z audit outcome=accepted \u{2028}\u{1b}[31m";
        for line in [spelled(text, &record(hostile)), spelled(json, &record(hostile))] {
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
        let long = "é".repeat(1000);
        assert!(spelled(text, &record(&long)).len() < 1000);
        assert_eq!(cut(&format!("x{long}")), format!("x{}", "é".repeat(127)));
    }

    proptest! {
        #[test]
        fn a_time_is_spelled_as_rfc_3339_says(millis in prop_oneof![0..=253_402_300_800_100_u64, any::<u64>()]) {
            let known = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok();
            let mut line = Vec::new();
            put_time(&mut line, UnixMillis(millis));
            let known = known.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
            prop_assert_eq!(String::from_utf8(line).expect("text"), known);
        }

        #[test]
        fn any_text_is_one_member_of_one_object(value in r"\PC{0,40}|[\x00-\x7f]{0,40}", number in any::<u64>(), address in any::<IpAddr>()) {
            let whole = Duration::from_micros(number);
            let record = Record { client: address, whole, path: &value, ..record(&value) };
            let line = spelled(json, &record);
            let back: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            prop_assert_eq!(back["event_id"].as_str().unwrap_or_default(), &value);
            prop_assert_eq!(back["duration_us"].as_u64(), Some(number));
            prop_assert_eq!(back["client"].as_str(), Some(&*address.to_string()));
            let members = back.as_object().expect("an object");
            let named: Vec<_> = line.match_indices("\":").collect();
            prop_assert!(members.len() <= named.len());
            let text = spelled(text, &record);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let expected = format!(" duration_us={number} ");
            prop_assert!(text.contains(&expected));
        }
    }
}
