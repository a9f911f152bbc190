//! What is kept of a source because its signature alone did not match: which source wants it, and how much of it.
//!
//! Invariant: a source that can keep nothing, or could not deliver what it keeps, does not ask for it.

use super::reader::Table;
use super::sources::Around;
use super::verification::Credentials;
use crate::gateway::source::Way;
use crate::inbox::QuarantineLimits;
use std::time::Duration;

/// `quarantine` of a source; how long it keeps what it keeps.
pub(super) fn wanted(
    table: &Table<'_>,
    delivery: Way,
    found: Option<&Credentials>,
    around: &Around<'_>,
) -> Option<Duration> {
    let quarantine = table.flag("quarantine", false);
    if quarantine && delivery == Way::Proxy {
        let what =
            "what it keeps is delivered by the inbox when it proves genuine, and this source waits for its upstream";
        table.error("quarantine", what, r#"delivery = "inbox", or leave it out"#);
    } else if quarantine && found.is_some_and(|found| !found.verifier.tells_signature_alone()) {
        let what = "keeps what is refused for its signature alone, and none of this source's proofs can tell that";
        table.error("quarantine", what, "leave it out: a signature over the body, as in `verify`, is what it is for");
    }
    quarantine.then_some(around.quarantine_age)
}

/// `[inbox] quarantine`.
pub(super) fn limits(table: &Table<'_>) -> QuarantineLimits {
    const LONGEST: Duration = Duration::from_secs(30 * 86_400);
    let default = QuarantineLimits::default();
    let limits = QuarantineLimits {
        max_count: table.count("max_count", default.max_count, 1..=1_000_000),
        max_size: table.size("max_size", default.max_size, (64 << 10)..=(64 << 30)),
        max_age: table.duration("max_age", default.max_age, Duration::from_secs(1)..=LONGEST),
    };
    table.check_unknown();
    limits
}
