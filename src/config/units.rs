//! Durations, sizes and headers as people write them, and words that were nearly right.

use http::HeaderValue;
use http::header::HeaderName;
use std::time::Duration;

/// The candidate at most two edits away, if there is one.
pub(crate) fn nearest<'s>(word: &str, candidates: impl Iterator<Item = &'s str>) -> Option<&'s str> {
    candidates
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= 2 && *edits < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let substitution = row.get(j).copied().unwrap_or(0) + usize::from(x != *y);
            let deletion = row.get(j + 1).copied().unwrap_or(0) + 1;
            let insertion = next.last().copied().unwrap_or(0) + 1;
            next.push(substitution.min(deletion).min(insertion));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

pub(super) fn show_duration(duration: &Duration) -> String {
    let millis = duration.as_millis();
    for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= length && millis.is_multiple_of(length) {
            return format!("{}{unit}", millis / length);
        }
    }
    if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") }
}

pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(bytes)
}

pub(super) fn show_size(size: u64) -> String {
    for (unit, length) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if size >= length && size.is_multiple_of(length) {
            return format!("{}{unit}", size / length);
        }
    }
    format!("{size}B")
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| format!("{text:?} is not a header name"))
}

pub(super) fn header_value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| format!("{text:?} is not a header value"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes_carry_units_and_do_not_overflow() {
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(size("1 MiB"), Some(1 << 20));
        for wrong in ["5", "m", "-5m", "5 minutes", "", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
        for wrong in ["1", "MiB", "17179869184GiB", "0x10B", "1mib"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for text in ["1d", "36h", "90s", "1500ms", "0s"] {
            assert_eq!(duration(&show_duration(&duration(text).expect("valid"))), duration(text));
        }
        for text in ["1GiB", "1536KiB", "1000B"] {
            assert_eq!(size(&show_size(size(text).expect("valid"))), size(text));
        }
    }

    #[test]
    fn a_misspelt_key_is_met_with_the_right_one() {
        assert_eq!(nearest("secrest", ["secrets", "path"].into_iter()), Some("secrets"));
        assert_eq!(nearest("zzz", ["secrets", "path"].into_iter()), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_duration_or_is_not(text in r"\PC{0,24}|[0-9]{0,24} ?[a-zA-Z]{0,4}|[0-9]{1,3}[eé³٣]s") {
            if let Some(found) = duration(&text) {
                prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{text}");
                prop_assert_eq!(duration(&show_duration(&found)), Some(found));
            }
            if let Some(found) = size(&text) {
                prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{text}");
                prop_assert_eq!(size(&show_size(found)), Some(found));
            }
        }

        #[test]
        fn every_duration_and_size_is_read_back(number: u64) {
            let duration_of = Duration::from_millis(number);
            prop_assert_eq!(duration(&show_duration(&duration_of)), Some(duration_of));
            prop_assert_eq!(size(&show_size(number)), Some(number));
        }

        #[test]
        fn any_word_has_a_nearest_or_none(word in r"\PC{0,24}") {
            let known = ["secrets", "path", "", "a"];
            if let Some(near) = nearest(&word, known.into_iter()) {
                prop_assert!(known.contains(&near));
            }
            prop_assert_eq!(edits(&word, &word), 0);
        }
    }
}
