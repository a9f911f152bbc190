//! Which times does a request speak of? For judging it at its own time.
//!
//! Invariant: bounded, and a guess: what is found here is only ever tried.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::super::freshness::Unit;
use crate::clock::UnixMillis;
use crate::delivery::Delivery;

const MOST: usize = 12;
/// Of the body; a time stands near its beginning or in a header.
const BODY_READ: usize = 16 * 1024;

pub(super) fn stated(delivery: &Delivery) -> Vec<UnixMillis> {
    let mut times = Vec::new();
    for value in delivery.headers.values().filter_map(|value| value.to_str().ok()).take(200) {
        read(value, &mut times);
    }
    read(delivery.query.as_deref().unwrap_or_default(), &mut times);
    let body = delivery.body.get(..delivery.body.len().min(BODY_READ)).unwrap_or_default();
    read(&String::from_utf8_lossy(body), &mut times);
    times.truncate(MOST);
    times
}

fn read(text: &str, times: &mut Vec<UnixMillis>) {
    let mut add = |time: Option<UnixMillis>| {
        if let Some(time) = time.filter(|time| times.len() < MOST && !times.contains(time)) {
            times.push(time);
        }
    };
    add(Unit::Rfc3339.parse(text));
    add(Unit::HttpDate.parse(text));
    for run in text.split(|c: char| !c.is_ascii_digit()) {
        match run.len() {
            10 => add(Unit::Seconds.parse(run)),
            13 => add(Unit::Millis.parse(run)),
            _ => {}
        }
    }
    // Dates among other text.
    for word in text.split(['"', ',', ';', '&']).take(500) {
        if (20..=40).contains(&word.len()) && word.contains('T') {
            add(Unit::Rfc3339.parse(word.trim()));
        }
    }
    // A token's claims.
    for token in
        text.split(|c: char| c.is_whitespace() || c == '"').filter(|word| word.matches('.').count() == 2).take(4)
    {
        let claims = token.split('.').nth(1).filter(|claims| claims.len() <= BODY_READ);
        if let Some(claims) = claims.and_then(|claims| URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()) {
            for run in
                String::from_utf8_lossy(&claims).split(|c: char| !c.is_ascii_digit()).filter(|run| run.len() == 10)
            {
                add(Unit::Seconds.parse(run));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_in_every_form_that_senders_write() {
        let of = |text: &str| {
            let mut times = Vec::new();
            read(text, &mut times);
            times.iter().map(|time| time.as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(of("t=1700000000,v1=ab12345678901"), [1_700_000_000]);
        assert_eq!(of("1700000000123"), [1_700_000_000]);
        assert_eq!(of("2023-11-14T22:13:20Z"), [1_700_000_000]);
        assert_eq!(of(r#"{"at":"2023-11-14T22:13:20Z","n":12}"#), [1_700_000_000]);
        assert_eq!(of("Tue, 14 Nov 2023 22:13:20 GMT"), [1_700_000_000]);
        let token = format!("Bearer e30.{}.x", URL_SAFE_NO_PAD.encode(br#"{"iat":1700000000}"#));
        assert_eq!(of(&token), [1_700_000_000]);
        assert!(of("x").is_empty());
        let many: String = (0..100).map(|n| format!("17000000{n:02} ")).collect();
        assert_eq!(of(&many).len(), MOST);
    }
}
