//! Somebody is told when a provider goes quiet.

use crate::accepts::{github, push};
use crate::support::gateway::PLAIN;
use crate::support::{Gateway, Upstream, eventually};
use std::sync::Arc;

const SILENT: &str = "hookward_source_silent";
const LAST_ACCEPTED: &str = "hookward_source_last_accepted_timestamp_seconds";
const OF_GITHUB: &[(&str, &str)] = &[("source", "github")];

#[test]
fn a_provider_that_goes_quiet_is_told_of_once_and_so_is_its_return() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&format!("{}expect_every = \"10s\"\n", github(&upstream)));
    assert_eq!(gateway.metric(SILENT, OF_GITHUB), 0.0);
    assert_eq!(gateway.metric(LAST_ACCEPTED, OF_GITHUB), 0.0);
    // What is refused ends no silence.
    let mut forged = push(b"{}");
    forged.body = b"[]".to_vec();
    assert_eq!(forged.send(gateway.public()).status, 401);
    let told = gateway.wait_for_log("expect_every");
    assert!(told.contains("\"WARN\"") && told.contains("github"), "{told}");
    assert_eq!(gateway.metric(SILENT, OF_GITHUB), 1.0);
    assert_eq!(gateway.metric(LAST_ACCEPTED, OF_GITHUB), 0.0);

    let before = crate::support::sign::now();
    assert_eq!(push(b"{}").send(gateway.public()).status, 200);
    // Counted before it was answered, and not only at the next look.
    assert_eq!(gateway.metric(SILENT, OF_GITHUB), 0.0);
    assert!(gateway.metric(LAST_ACCEPTED, OF_GITHUB) >= before as f64);
    let told = gateway.wait_for_log("accepted again");
    assert!(told.contains("\"INFO\""), "{told}");
    eventually("the second silence", || (gateway.metric(SILENT, OF_GITHUB) == 1.0).then_some(()));
    // A replay is nothing new.
    assert_eq!(push(b"{}").send(gateway.public()).status, 202);
    assert_eq!(gateway.metric(SILENT, OF_GITHUB), 1.0);
    eventually("told a second time", || (gateway.log_text().matches("expect_every").count() == 2).then_some(()));
}

#[test]
fn nobody_is_expected_who_is_not_said_to_be_and_a_reload_begins_to_count() {
    let upstream = Upstream::start();
    let plain = format!("{PLAIN}{}", github(&upstream));
    let mut gateway = Gateway::start_in(Arc::default(), &plain);
    assert!(!gateway.metrics().contains(SILENT));
    assert_eq!(push(b"{}").send(gateway.public()).status, 200);
    assert!(gateway.metric(LAST_ACCEPTED, OF_GITHUB) > 0.0);
    assert!(gateway.reload(&format!("{plain}expect_every = \"10s\"\n")));
    assert!(gateway.metrics().contains(SILENT));
    gateway.wait_for_log("expect_every");
    // One that keeps it keeps what it knows; one that drops it has no alarm.
    assert!(gateway.reload(&format!("{plain}expect_every = \"10s\"\ndedupe_window = \"1h\"\n")));
    assert_eq!(gateway.metric(SILENT, OF_GITHUB), 1.0);
    assert!(gateway.reload(&plain));
    assert!(!gateway.metrics().contains(SILENT));
}
