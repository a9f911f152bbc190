//! The process's own log, on stderr: what an operator should know, never what a sender sent.
//!
//! Invariant: the HTTP and TLS libraries stay at `warn` whatever level is configured. At `trace` they print whole
//! request heads, credentials included; and no environment variable changes the level behind the configuration's back.
//! The AMQP library says nothing at all: at `warn` it prints whole messages that a broker returned.

use super::audit::Format;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Lines waiting for stderr: with a reader that stands still, some MB, and then the newest are lost.
const QUEUE: usize = 8192;

/// Whoever holds the guard lets the last lines be written, within a second, when it goes.
#[must_use = "dropping the guard ends the log"]
pub(crate) fn start_log(format: Format, level: Level) -> WorkerGuard {
    let ours = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("lapin", LevelFilter::OFF)
        // It has a line for each attempt at a server that is gone; ours tell when it goes and when it is back.
        .with_target("async_nats", LevelFilter::OFF)
        .with_target("hookward", ours);
    // No request waits for whoever reads stderr, and no end of the process does.
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(QUEUE).finish(std::io::stderr());
    let lines = fmt::layer().with_writer(writer).with_target(false);
    let layer = match format {
        Format::Text => lines.with_ansi(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // A second start (tests in one process) keeps the first log.
    let _ = Registry::default().with(layer.with_filter(filter)).try_init();
    guard
}
