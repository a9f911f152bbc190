//! One line for each request, whatever became of it: who, what, how it ended and how long it took.
//!
//! Invariant: no header value but the ids that the source is configured to read, no body, no credential, no query
//! string. Text that a stranger chose is escaped, so that nobody can write a line of their own. The request path never
//! waits for the log: lines go through a bounded queue to one thread, and what does not fit is counted as lost. Nobody
//! else waits for it without a bound either: its reader may have stopped reading.

use super::metrics::Metrics;
use super::outcome::Outcome;
use crate::clock::UnixMillis;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Lines waiting for the writer: at 300 bytes a line some 2.5 MB, and half a second of the busiest gateway.
const QUEUE: usize = 8192;

/// How long lines gather before they are written together. At 100,000 a second the queue holds 16 times as many.
const GATHER: Duration = Duration::from_millis(5);

/// Text of a stranger's choosing (event ids, names in certificates) is cut at this many bytes.
const LONGEST_FIELD: usize = 256;

/// Of a new file, at most: whose requests came when is nobody else's business. The umask may take more away.
const FILE_MODE: u32 = 0o640;

/// For how long the end of the process waits for the log, and how often it looks for room in the queue.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Off,
    Stderr,
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

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

enum Job {
    Line(String),
    Reopen(Order),
    Flush(SyncSender<()>),
}

/// Where the writer is to go on.
struct Order {
    /// From 1, in the order in which they were given.
    number: u64,
    target: Target,
}

/// Orders for which there was no room in the queue, the last of them: the writer looks here before it writes. Guards only
/// this value; held for a moment.
#[derive(Default)]
struct Urgent {
    given: u64,
    order: Option<Order>,
}

pub(crate) struct Audit {
    jobs: SyncSender<Job>,
    format: Format,
    metrics: Arc<Metrics>,
    urgent: Arc<Mutex<Urgent>>,
    /// As the target says, so that no line is made in vain.
    off: AtomicBool,
}

impl Audit {
    /// Fails where the file cannot be opened for appending: an audit log that is asked for and silently absent is worse than no start.
    pub(crate) fn start(target: &Target, format: Format, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let sink = Sink::open(target)?;
        let (jobs, queue) = sync_channel(QUEUE);
        let urgent = Arc::<Mutex<Urgent>>::default();
        let writer = Writer { sink, follows: 0, failing: false, urgent: Arc::clone(&urgent) };
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { jobs, format, metrics, urgent, off: AtomicBool::new(*target == Target::Off) })
    }

    pub(crate) fn write(&self, record: &Record<'_>) {
        if self.off.load(Ordering::Relaxed) {
            return;
        }
        let line = match self.format {
            Format::Text => text(record),
            Format::Json => json(record),
        };
        if self.jobs.try_send(Job::Line(line)).is_err() {
            self.metrics.audit_dropped.inc();
        }
    }

    /// Opens the file anew, as log rotation asks with SIGHUP, or goes on elsewhere. Does not wait for it.
    pub(crate) fn reopen(&self, target: &Target) {
        let mut urgent = self.urgent.lock().unwrap_or_else(PoisonError::into_inner);
        urgent.given += 1;
        let order = Order { number: urgent.given, target: target.clone() };
        match self.jobs.try_send(Job::Reopen(order)) {
            Err(TrySendError::Full(Job::Reopen(order))) => urgent.order = Some(order),
            Err(TrySendError::Disconnected(_)) => tracing::error!("the audit log's writer is gone"),
            Ok(()) | Err(TrySendError::Full(_)) => {}
        }
        drop(urgent);
        self.off.store(*target == Target::Off, Ordering::Relaxed);
    }

    /// Waits, with a bound, until what has been said is written. A log that hangs must not hold up the end of the process.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_WITHIN;
        let (done, written) = sync_channel(1);
        let mut job = Job::Flush(done);
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => job = back,
                Err(_) => return,
            }
            std::thread::sleep(LOOK_FOR_ROOM_EVERY);
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

enum Sink {
    Off,
    Stderr,
    File(File),
}

impl Sink {
    fn open(target: &Target) -> std::io::Result<Self> {
        Ok(match target {
            Target::Off => Self::Off,
            Target::Stderr => Self::Stderr,
            Target::File(path) => Self::File(OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path)?),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Off => Ok(()),
            Self::Stderr => std::io::stderr().lock().write_all(bytes),
            Self::File(file) => file.write_all(bytes),
        }
    }
}

/// The one thread that writes.
struct Writer {
    sink: Sink,
    /// The number of the last order that was followed.
    follows: u64,
    failing: bool,
    urgent: Arc<Mutex<Urgent>>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut batch = Vec::with_capacity(16 * 1024);
        loop {
            let mut next = match queue.recv_timeout(Duration::from_secs(3600)) {
                Ok(job) => {
                    // While this thread sleeps nobody has to wake it: one wake for all lines of this time, not one each.
                    if matches!(job, Job::Line(_)) {
                        std::thread::sleep(GATHER);
                    }
                    Some(job)
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut flushed = None;
            while let Some(job) = next {
                match job {
                    Job::Line(line) => batch.extend_from_slice(line.as_bytes()),
                    Job::Flush(done) => flushed = Some(done),
                    Job::Reopen(order) => {
                        self.put(&mut batch);
                        self.follow(order);
                    }
                }
                next = if batch.len() < 64 * 1024 { queue.try_recv().ok() } else { None };
            }
            let urgent = self.urgent.lock().unwrap_or_else(PoisonError::into_inner).order.take();
            if let Some(order) = urgent {
                self.follow(order);
            }
            self.put(&mut batch);
            if let Some(done) = flushed {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }

    fn follow(&mut self, Order { number, target }: Order) {
        // An urgent one overtakes those in the queue.
        if number < self.follows {
            return;
        }
        self.follows = number;
        match Sink::open(&target) {
            Ok(opened) => self.sink = opened,
            Err(error) => {
                tracing::error!(%error, ?target, "the audit log cannot be reopened; the old one is written on")
            }
        }
    }

    fn put(&mut self, batch: &mut Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        match self.sink.write(batch) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "the audit log cannot be written; its lines are lost until it can");
            }
            Err(_) => {}
        }
        batch.clear();
    }
}

fn timestamp(at: UnixMillis) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> &str {
    match text.char_indices().find(|(position, c)| position + c.len_utf8() > LONGEST_FIELD) {
        Some((position, _)) => text.get(..position).unwrap_or_default(),
        None => text,
    }
}

/// The fields in order, those that are empty left out.
fn fields<'a>(record: &'a Record<'a>) -> impl Iterator<Item = (&'static str, &'a str)> {
    [
        ("request_id", record.request_id),
        ("listener", record.listener),
        ("source", record.source),
        ("outcome", record.outcome.label()),
        ("would_refuse", record.would_refuse.map_or("", Outcome::label)),
        ("method", record.method),
        ("path", record.path),
        ("certificate", record.certificate),
        ("verified", record.verified),
        ("event_id", record.event_id),
        ("event_type", record.event_type),
        ("upstream", record.upstream),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name, cut(value)))
}

fn numbers(record: &Record<'_>) -> [(&'static str, u64); 5] {
    [
        ("status", u64::from(record.status)),
        ("body_bytes", record.body_bytes as u64),
        ("duration_us", micros(record.whole)),
        ("verify_us", micros(record.verify)),
        ("forward_us", micros(record.forward)),
    ]
}

fn text(record: &Record<'_>) -> String {
    let mut line = format!("{} audit client={}", timestamp(record.at), record.client);
    for (name, value) in fields(record) {
        let plain = value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'=' && b != b'\\');
        // Writing to a String cannot fail.
        let _ = if plain { write!(line, " {name}={value}") } else { write!(line, " {name}={value:?}") };
    }
    for (name, value) in numbers(record) {
        let _ = write!(line, " {name}={value}");
    }
    line.push('\n');
    line
}

fn json(record: &Record<'_>) -> String {
    let mut object = serde_json::Map::new();
    object.insert("time".to_owned(), timestamp(record.at).into());
    object.insert("type".to_owned(), "audit".into());
    object.insert("client".to_owned(), record.client.to_string().into());
    for (name, value) in fields(record) {
        object.insert(name.to_owned(), value.into());
    }
    for (name, value) in numbers(record) {
        object.insert(name.to_owned(), value.into());
    }
    let mut line = serde_json::Value::Object(object).to_string();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;

    fn record(event_id: &str) -> Record<'_> {
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

    #[test]
    fn a_line_says_who_what_and_how_it_ended() {
        assert_eq!(
            text(&record("e1")),
            "2025-10-09T08:53:20.123Z audit client=192.0.2.1 request_id=r1 listener=public source=github outcome=replay \
             method=POST path=/github verified=github event_id=e1 event_type=push status=409 body_bytes=12 duration_us=480 \
             verify_us=4 forward_us=0\n"
        );
    }

    #[test]
    fn a_stranger_cannot_write_a_line_of_their_own() {
        let hostile = "x\n2026-01-01T00:00:00Z audit outcome=accepted \u{2028}\u{1b}[31m";
        for line in [text(&record(hostile)), json(&record(hostile))] {
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
        let long = "é".repeat(1000);
        assert!(text(&record(&long)).len() < 1000);
    }

    /// A folder of its own, gone with the value.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hookward-audit-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str) -> Target {
            Target::File(self.0.join(name))
        }

        fn text(&self, name: &str) -> String {
            std::fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // What cannot be removed lies in the folder for temporary files.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn start(target: &Target) -> Audit {
        Audit::start(target, Format::Text, Arc::new(Metrics::new())).unwrap()
    }

    #[test]
    fn the_log_follows_its_target_from_off_to_a_file_and_back() {
        let folder = Folder::new("follow");
        let audit = start(&Target::Off);
        audit.write(&record("e0"));
        for (target, event_id) in [
            (folder.file("a"), "e1"),
            (folder.file("b"), "e2"),
            (Target::Off, "e3"),
            (folder.file("a"), "e4"),
            (folder.file("b"), "e5"),
        ] {
            audit.reopen(&target);
            audit.write(&record(event_id));
        }
        audit.flush();
        let ids = |name: &str| {
            let text = folder.text(name);
            text.lines().map(|line| line.split("event_id=").nth(1).unwrap()[..2].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids("a"), ["e1", "e4"]);
        assert_eq!(ids("b"), ["e2", "e5"]);
    }

    #[test]
    fn a_target_that_cannot_be_opened_leaves_the_old_one() {
        let folder = Folder::new("old");
        let audit = start(&folder.file("a"));
        audit.reopen(&folder.file("no/such/folder"));
        audit.write(&record("e1"));
        audit.flush();
        assert!(folder.text("a").contains("event_id=e1"));
    }

    #[test]
    fn a_new_file_is_nobody_elses_and_an_old_one_stays_as_it_is() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::new("mode");
        let mode = |name: &str| std::fs::metadata(folder.0.join(name)).unwrap().permissions().mode() & 0o777;
        std::fs::write(folder.0.join("old"), "").unwrap();
        std::fs::set_permissions(folder.0.join("old"), std::fs::Permissions::from_mode(0o604)).unwrap();
        let audit = start(&folder.file("new"));
        assert_eq!(mode("new") & !0o640, 0);
        assert_eq!(mode("new") & 0o600, 0o600);
        audit.reopen(&folder.file("old"));
        audit.flush();
        assert_eq!(mode("old"), 0o604);
    }

    #[test]
    fn a_reader_that_stopped_reading_holds_up_nobody_and_no_reopening_is_lost() {
        use rustix::fs::{CWD, Mode, mkfifoat};
        let folder = Folder::new("stuck");
        let pipe = folder.0.join("pipe");
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        let opening = std::thread::spawn({
            let pipe = pipe.clone();
            move || File::open(pipe).unwrap()
        });
        let metrics = Arc::new(Metrics::new());
        let audit = Audit::start(&Target::File(pipe), Format::Text, metrics.clone()).unwrap();
        let mut reader = opening.join().unwrap();
        // The pipe is full, and so is the queue.
        while metrics.audit_dropped.get() == 0 {
            audit.write(&record("e1"));
        }
        let began = Instant::now();
        audit.reopen(&folder.file("next"));
        assert!(began.elapsed() < FLUSH_WITHIN / 2, "{:?}", began.elapsed());
        audit.flush();
        assert!(began.elapsed() < 2 * FLUSH_WITHIN, "{:?}", began.elapsed());
        // Whoever reads it at last ends at its end: the writer has gone on to the file.
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        audit.write(&record("e2"));
        audit.flush();
        assert!(folder.text("next").contains("event_id=e2"));
    }
}
