//! One line for each request, whatever became of it: who, what, how it ended and how long it took.
//!
//! Invariant: the request path never waits for the log: lines go into a bounded text that one thread takes away, and what
//! does not fit is counted as lost. Nobody else waits for it without a bound either: its reader may have stopped reading.

use super::line::{self, Record};
use super::metrics::Metrics;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines waiting for the writer, and their bytes: half a second of the busiest gateway. As much again is being written.
const MOST_LINES: usize = 8192;
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// Room that is kept for what comes next; a burst's is given back.
const KEPT_ROOM: usize = 256 * 1024;

/// How long lines gather before they are written together. At 100,000 a second there is room for 16 times as many.
const GATHER: Duration = Duration::from_millis(5);

/// Orders to go on elsewhere that wait for the writer; of more, the last counts.
const MOST_ORDERS: usize = 16;

/// Of a new file, at most: whose requests came when is nobody else's business. The umask may take more away.
const FILE_MODE: u32 = 0o640;

/// For how long the end of the process waits for the log.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

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

/// What waits for the writer.
#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    lines: usize,
    /// What stands behind this place in the text is written there.
    orders: Vec<(usize, Target)>,
    flushes: Vec<SyncSender<()>>,
    /// The writer sleeps until it is told.
    sleeps: bool,
    /// Nothing more comes.
    is_over: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.orders.is_empty() && self.flushes.is_empty()
    }
}

/// Between those who say something and the writer.
#[derive(Default)]
struct Desk {
    /// Guards only this value. Held for the copy of one line, or for taking all of it away.
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While the writer does not sleep nobody has to wake it: one wake for all lines of this time, not one each.
    fn tell(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let sleeps = std::mem::take(&mut waiting.sleeps);
        drop(waiting);
        if sleeps {
            self.wake.notify_one();
        }
    }
}

pub(crate) struct Audit {
    desk: Arc<Desk>,
    format: Format,
    metrics: Arc<Metrics>,
    /// As the target says, so that no line is made in vain.
    off: AtomicBool,
}

thread_local! {
    /// The line that is being made, so that nobody waits for it.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Audit {
    /// Fails where the file cannot be opened for appending: an audit log that is asked for and silently absent is worse than no start.
    pub(crate) fn start(target: &Target, format: Format, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let sink = Sink::open(target)?;
        let desk = Arc::<Desk>::default();
        let writer = Writer { sink, failing: false, desk: Arc::clone(&desk) };
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run())?;
        Ok(Self { desk, format, metrics, off: AtomicBool::new(*target == Target::Off) })
    }

    pub(crate) fn write(&self, record: &Record<'_>) {
        if self.off.load(Ordering::Relaxed) {
            return;
        }
        let fits = LINE.with_borrow_mut(|line| {
            line.clear();
            match self.format {
                Format::Text => line::text(line, record),
                Format::Json => line::json(line, record),
            }
            self.put(line)
        });
        if !fits {
            self.metrics.audit_dropped.inc();
        }
    }

    fn put(&self, line: &[u8]) -> bool {
        let mut waiting = self.desk.lock();
        let fits = waiting.lines < MOST_LINES && line.len() <= MOST_BYTES - waiting.text.len();
        if fits {
            waiting.text.extend_from_slice(line);
            waiting.lines += 1;
        }
        self.desk.tell(waiting);
        fits
    }

    /// Opens the file anew, as log rotation asks with SIGHUP, or goes on elsewhere. Does not wait for it.
    pub(crate) fn reopen(&self, target: &Target) {
        let mut waiting = self.desk.lock();
        let place = waiting.text.len();
        if waiting.orders.len() >= MOST_ORDERS {
            waiting.orders.pop();
        }
        waiting.orders.push((place, target.clone()));
        self.desk.tell(waiting);
        self.off.store(*target == Target::Off, Ordering::Relaxed);
    }

    /// Waits, with a bound, until what has been said is written. A log that hangs must not hold up the end of the process.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        let mut waiting = self.desk.lock();
        waiting.flushes.push(done);
        self.desk.tell(waiting);
        // Late or never: nobody waits any longer.
        let _ = written.recv_timeout(FLUSH_WITHIN);
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let mut waiting = self.desk.lock();
        waiting.is_over = true;
        self.desk.tell(waiting);
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
    failing: bool,
    desk: Arc<Desk>,
}

impl Writer {
    fn run(mut self) {
        let mut text = Vec::new();
        while self.wait() {
            let (orders, flushes) = {
                let mut waiting = self.desk.lock();
                waiting.lines = 0;
                std::mem::swap(&mut text, &mut waiting.text);
                (std::mem::take(&mut waiting.orders), std::mem::take(&mut waiting.flushes))
            };
            let mut written = 0;
            for (place, target) in orders {
                self.put(text.get(written..place).unwrap_or_default());
                written = place;
                self.follow(&target);
            }
            self.put(text.get(written..).unwrap_or_default());
            text.clear();
            text.shrink_to(KEPT_ROOM);
            for done in flushes {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }

    /// Until there is something to do. False: nothing more comes.
    fn wait(&self) -> bool {
        let mut waiting = self.desk.lock();
        while waiting.is_empty() {
            if waiting.is_over {
                return false;
            }
            waiting.sleeps = true;
            waiting = self.desk.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.sleeps = false;
        let gathers = waiting.flushes.is_empty() && waiting.orders.is_empty() && !waiting.is_over;
        drop(waiting);
        if gathers {
            std::thread::sleep(GATHER);
        }
        true
    }

    fn follow(&mut self, target: &Target) {
        match Sink::open(target) {
            Ok(opened) => self.sink = opened,
            Err(error) => {
                tracing::error!(%error, ?target, "the audit log cannot be reopened; the old one is written on")
            }
        }
    }

    fn put(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        match self.sink.write(text) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "the audit log cannot be written; its lines are lost until it can");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::tests::record;
    use super::*;
    use std::time::Instant;

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
        // The pipe is full, and so is the room for what waits: first by its bytes, then by its lines.
        let long = "\u{1b}".repeat(256);
        while metrics.audit_dropped.get() == 0 {
            audit.write(&record(&long));
        }
        assert!((MOST_BYTES - 4096..=MOST_BYTES).contains(&audit.desk.lock().text.len()));
        assert!(audit.desk.lock().lines < MOST_LINES);
        for _ in 0..MOST_LINES {
            audit.write(&record("e1"));
        }
        assert!(audit.desk.lock().text.len() <= MOST_BYTES && audit.desk.lock().lines <= MOST_LINES);
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
