//! How the scripts are spoken to: numbers and prints as arguments, and what they answer.
//!
//! Invariant: no number is sent that a double does not hold exactly, and nothing of an answer is believed but its form.

use std::time::Duration;

use redis::Value;

use super::super::table::Record;
use crate::clock::UnixMillis;

/// Scores are doubles: whole milliseconds up to here.
const LATEST: u64 = 1 << 52;

/// What all scripts but `renew` answer.
pub(super) struct Told {
    pub(super) verdict: u64,
    pub(super) wait: u64,
    pub(super) claims: u64,
    pub(super) time: i64,
    pub(super) mark: Option<Vec<u8>>,
}

impl Told {
    pub(super) fn of(value: Value) -> Option<Self> {
        let Value::Array(parts) = value else { return None };
        let mut parts = parts.into_iter();
        let mut number = || match parts.next() {
            Some(Value::Int(number)) => u64::try_from(number).ok(),
            _ => None,
        };
        let (verdict, wait, claims, time) = (number()?, number()?, number()?, number()?);
        let mark = match parts.next() {
            Some(Value::BulkString(mark)) => Some(mark),
            _ => None,
        };
        Some(Self { verdict, wait, claims, time: i64::try_from(time).ok()?, mark })
    }
}

pub(super) fn push_prints(arguments: &mut Vec<Vec<u8>>, record: Option<&Record>) {
    let prints = record.map_or(&[][..], |record| &record.prints);
    let event = record.and_then(|record| record.event);
    arguments.push(number(prints.len() as u64));
    arguments.push(event.map(Vec::from).unwrap_or_default());
    arguments.extend(prints.iter().map(|print| print.to_vec()));
}

pub(super) fn number(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

pub(super) fn score(time: UnixMillis) -> Vec<u8> {
    number(time.0.min(LATEST))
}

pub(super) fn micros(time: Duration) -> Vec<u8> {
    format!("{}.{:03}", time.as_micros(), time.subsec_nanos() % 1000).into_bytes()
}

pub(super) fn millis(time: Duration) -> Vec<u8> {
    number(u64::try_from(time.as_millis()).unwrap_or(LATEST).min(LATEST))
}
