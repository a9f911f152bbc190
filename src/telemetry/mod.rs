//! One outcome for each request in; counters and an audit line out. Also the process's own log.

mod audit;
mod line;
mod log;
mod metrics;
mod outcome;

pub(crate) use audit::{Audit, Format, Target};
pub(crate) use line::Record;
pub(crate) use log::{Level, start_log};
pub(crate) use metrics::{Metrics, SourceMeters};
pub(crate) use outcome::Outcome;
