//! SQLite's write-ahead log, read by ourselves: is it whole, and what of a damaged one can still be used?
//! Invariant: nothing here writes to a log, and no number found in one is believed before its checksum.
//!
//! SQLite takes the log up to the first frame whose checksum is wrong and drops the rest without a word. That is right
//! for the end of a write that power loss tore, which nobody had been told of. It is wrong for a bit that flipped in the
//! middle: behind it are transactions that were synced and acknowledged. The two can be told apart, because every commit
//! here is synced before the next one begins: where a bad frame has a *commit and then another frame* of the same log
//! behind it, the bad one had been on the disk, whole. Damage within the very last transaction, or a log that was cut,
//! is told by the index beside it, which a killed process leaves and which knows what was committed ([`is_short`]). Where
//! there is none, the former looks like a torn write; that is said as a warning and the start goes on.
//!
//! The format is SQLite's (sqlite.org/fileformat2.html#walformat): a header of 32 bytes, then frames of 24 bytes and one
//! page each. Checksums are cumulative, each seeded with the one stored before it. So a single bad frame does not spoil
//! those after it: they can be judged by what is stored in front of them.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

const HEADER: usize = 32;
const FRAME: usize = 24;
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;

/// What there is to say of a log before SQLite sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it can be used, or there is none.
    Whole,
    /// Its last transaction is not whole, as power loss leaves it.
    Torn,
    /// Transactions that had been synced cannot be read: from this byte on.
    Damaged { at: u64 },
}

/// Reads the log from end to end. One that is not there is whole: so a clean stop leaves it.
pub(super) fn examine(path: &Path, page_size: usize) -> io::Result<Verdict> {
    let Some(mut log) = Log::open(path, page_size)? else {
        return Ok(Verdict::Whole);
    };
    // Without its header SQLite would take none of it.
    let mut bad = (!log.header_is_right).then_some(Bad { at: 0, committed: false });
    while let Some(frame) = log.next()? {
        match &mut bad {
            None if frame.follows && frame.is_current => {}
            // The salts are not under the checksum: that it is right and they are not, no torn write does.
            None if frame.follows => return Ok(Verdict::Damaged { at: frame.at }),
            None if frame.is_current => bad = Some(Bad { at: frame.at, committed: frame.size_after > 0 }),
            // A frame of an earlier round, which this one has not overwritten yet: the end, unless more of ours follow.
            None => bad = Some(Bad { at: frame.at, committed: false }),
            Some(bad) if frame.is_current && bad.committed => return Ok(Verdict::Damaged { at: bad.at }),
            Some(bad) => bad.committed |= frame.is_current && frame.size_after > 0,
        }
        if bad.is_some() && frame.is_current {
            log.saw_current_after_bad = true;
        }
    }
    Ok(if log.saw_current_after_bad { Verdict::Torn } else { Verdict::Whole })
}

/// Does the log hold less than had been committed to it? The index beside it (sqlite.org/walformat.html) outlives a killed
/// process, and says how many frames the last commit ended at: it was told so after these had been synced. A log that was
/// cut, or is gone, looks like one that had never been longer, and nothing else would tell.
///
/// False where the index says nothing: there is none, it was being written, or it is another log's, as beside a store that
/// was restored from a copy.
pub(super) fn is_short(log: &Path, index: &Path, page_size: usize) -> io::Result<bool> {
    let Some((salts, frames)) = committed(index, page_size)? else { return Ok(false) };
    let Some(mut log) = Log::open(log, page_size)? else { return Ok(true) };
    if log.header_is_right && log.salts != salts {
        return Ok(false);
    }
    let mut found = 0;
    while found < frames {
        match log.next()? {
            Some(frame) if frame.is_current && frame.follows => found += 1,
            Some(_) | None => return Ok(true),
        }
    }
    Ok(false)
}

/// The round and the number of frames that the index speaks of; None: nothing that is not in the database anyway. Its
/// numbers are in the machine's own order.
fn committed(index: &Path, page_size: usize) -> io::Result<Option<([u8; 8], u32)>> {
    const COPY: usize = 48;
    let mut bytes = [0; 2 * COPY + 4];
    let mut file = match File::open(index) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !filled(&mut file, &mut bytes)? {
        return Ok(None);
    }
    let (copy, rest) = bytes.split_at(COPY);
    let native = |from: &[u8], at: usize| {
        from.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |found| u32::from_ne_bytes(*found))
    };
    let is_big = cfg!(target_endian = "big");
    let is_right = Some(copy) == rest.get(..COPY)
        && copy.get(12) == Some(&1)
        && checksum((0, 0), copy.get(..40).unwrap_or_default(), is_big) == (native(copy, 40), native(copy, 44));
    let size = copy.get(14..16).and_then(|size| size.first_chunk()).map_or(0, |size| u16::from_ne_bytes(*size));
    let (frames, written_back) = (native(copy, 16), native(rest, COPY));
    if !is_right || usize::from(size) != page_size || written_back >= frames {
        return Ok(None);
    }
    Ok(copy.get(32..40).and_then(|salts| salts.first_chunk()).map(|salts| (*salts, frames)))
}

struct Bad {
    at: u64,
    /// A commit has been seen at it or behind it.
    committed: bool,
}

/// What of a log went into a copy of its database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) pages: u64,
    pub(super) bad: u64,
}

/// Writes every frame that can be trusted into `database`, a copy that nothing has open: what SQLite does up to the
/// first bad frame, this does beyond it. A page whose newest frame is bad keeps its older content.
pub(super) fn apply(path: &Path, page_size: usize, database: &mut File) -> io::Result<Applied> {
    let mut applied = Applied::default();
    let Some(mut log) = Log::open(path, page_size)? else {
        return Ok(applied);
    };
    // Frames behind the last commit belong to a transaction that nobody was told of. They must not be applied.
    let mut last_commit = None;
    while let Some(frame) = log.next()? {
        if frame.is_current && frame.follows && frame.size_after > 0 {
            last_commit = Some((frame.at, frame.size_after));
        }
    }
    let Some((last, pages)) = last_commit else {
        return Ok(applied);
    };
    log.rewind()?;
    while let Some(frame) = log.next()? {
        if frame.at > last {
            break;
        }
        if !(frame.is_current && frame.follows && frame.page > 0) {
            applied.bad += 1;
            continue;
        }
        let at = u64::from(frame.page - 1) * page_size as u64;
        database.seek(SeekFrom::Start(at))?;
        database.write_all(log.page())?;
        applied.pages += 1;
    }
    database.set_len(u64::from(pages) * page_size as u64)?;
    Ok(applied)
}

struct Log {
    file: BufReader<File>,
    page_size: usize,
    header_is_right: bool,
    big_endian: bool,
    salts: [u8; 8],
    /// Of the header.
    seed: (u32, u32),
    /// The checksum that the frame before the next one has stored.
    before: (u32, u32),
    at: u64,
    buffer: Vec<u8>,
    saw_current_after_bad: bool,
}

struct Frame {
    at: u64,
    page: u32,
    /// The database's size in pages after the commit that this frame ends; 0 within a transaction.
    size_after: u32,
    /// It belongs to the log's present round.
    is_current: bool,
    /// Its checksum is right, given the one stored before it.
    follows: bool,
}

impl Log {
    fn open(path: &Path, page_size: usize) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut header = [0; HEADER];
        if !filled(&mut file, &mut header)? {
            // Not even a header: nothing had been committed to it.
            return Ok(None);
        }
        let big_endian = number(&header, 0) == MAGIC_BIG;
        let seed = checksum((0, 0), header.get(..24).unwrap_or_default(), big_endian);
        let header_is_right = (number(&header, 0) == MAGIC_LITTLE || big_endian)
            && usize::try_from(number(&header, 8)) == Ok(page_size)
            && seed == (number(&header, 24), number(&header, 28));
        let mut salts = [0; 8];
        salts.copy_from_slice(header.get(16..24).unwrap_or(&[0; 8]));
        let mut log = Self {
            file,
            page_size,
            header_is_right,
            big_endian: if header_is_right { big_endian } else { cfg!(target_endian = "big") },
            salts,
            seed,
            before: seed,
            at: HEADER as u64,
            buffer: vec![0; FRAME + page_size],
            saw_current_after_bad: false,
        };
        if !header_is_right {
            // Its frames still say which round they belong to; the first one's word is taken, and its checksum not.
            let mut first = [0; FRAME];
            if !filled(&mut log.file, &mut first)? {
                return Ok(None);
            }
            log.salts.copy_from_slice(first.get(8..16).unwrap_or(&[0; 8]));
            log.rewind()?;
        }
        Ok(Some(log))
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.before = self.seed;
        self.at = HEADER as u64;
        self.file.seek(SeekFrom::Start(self.at)).map(drop)
    }

    fn next(&mut self) -> io::Result<Option<Frame>> {
        if !filled(&mut self.file, &mut self.buffer)? {
            return Ok(None);
        }
        let at = self.at;
        self.at += self.buffer.len() as u64;
        let frame = &self.buffer;
        let stored = (number(frame, 16), number(frame, 20));
        let found = checksum(self.before, frame.get(..8).unwrap_or_default(), self.big_endian);
        let found = checksum(found, frame.get(FRAME..).unwrap_or_default(), self.big_endian);
        self.before = stored;
        Ok(Some(Frame {
            at,
            page: number(frame, 0),
            size_after: number(frame, 4),
            is_current: frame.get(8..16) == Some(&self.salts[..]) && self.salts != [0; 8],
            follows: found == stored,
        }))
    }

    fn page(&self) -> &[u8] {
        self.buffer.get(FRAME..FRAME + self.page_size).unwrap_or_default()
    }
}

/// Reads exactly so much; false at the end of the file, a piece that is too short included.
fn filled(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |found| u32::from_be_bytes(*found))
}

fn checksum((mut first, mut second): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let read = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
    let (pairs, _) = bytes.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in pairs {
        first = first.wrapping_add(read([*a, *b, *c, *d])).wrapping_add(second);
        second = second.wrapping_add(read([*e, *f, *g, *h])).wrapping_add(first);
    }
    (first, second)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::Connection;

    use super::*;
    use crate::inbox::tests::Folder;

    const PAGE: usize = 4096;

    /// A database with nine transactions in its log, as a crash would leave it: (its folder, its bytes, the log's).
    fn crashed() -> (Folder, Vec<u8>, Vec<u8>) {
        let folder = Folder::new();
        fs::create_dir_all(&folder.0).unwrap();
        let path = folder.0.join("db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size = 4096; PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE t (id INTEGER PRIMARY KEY, filler BLOB NOT NULL);",
            )
            .unwrap();
        for _ in 0..8 {
            connection.execute("INSERT INTO t (filler) VALUES (randomblob(6000))", []).unwrap();
        }
        let (database, log) = (fs::read(&path).unwrap(), fs::read(folder.0.join("db-wal")).unwrap());
        (folder, database, log)
    }

    fn verdict(folder: &Path, log: &[u8]) -> Verdict {
        let path = folder.join("examined");
        fs::write(&path, log).unwrap();
        examine(&path, PAGE).unwrap()
    }

    fn rows(database: &[u8], folder: &Path) -> i64 {
        let path = folder.join("counted");
        fs::write(&path, database).unwrap();
        let connection = Connection::open(&path).unwrap();
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    /// Where the frames are that end a transaction.
    fn commits(log: &[u8]) -> Vec<usize> {
        (HEADER..log.len()).step_by(FRAME + PAGE).filter(|at| number(log, at + 4) > 0).collect()
    }

    #[test]
    fn a_whole_log_and_none_at_all_are_whole() {
        let (folder, _, log) = crashed();
        assert_eq!(commits(&log).len(), 9);
        assert_eq!(verdict(&folder.0, &log), Verdict::Whole);
        assert_eq!(verdict(&folder.0, &[]), Verdict::Whole);
        assert_eq!(verdict(&folder.0, &log[..20]), Verdict::Whole);
        assert_eq!(examine(&folder.0.join("absent"), PAGE).unwrap(), Verdict::Whole);
    }

    #[test]
    fn a_bit_flipped_before_the_last_transaction_is_damage_wherever_it_is() {
        let (folder, _, log) = crashed();
        let last_begins = commits(&log)[7] + FRAME + PAGE;
        for at in
            (0..last_begins).step_by(997).chain(0..HEADER + FRAME).chain(last_begins - PAGE - FRAME..last_begins - PAGE)
        {
            let mut flipped = log.clone();
            flipped[at] ^= 0x10;
            assert!(matches!(verdict(&folder.0, &flipped), Verdict::Damaged { .. }), "byte {at}");
        }
    }

    #[test]
    fn a_write_that_power_loss_tore_is_no_damage() {
        let (folder, _, log) = crashed();
        let last_begins = commits(&log)[7] + FRAME + PAGE;
        for at in last_begins..log.len() {
            if at % 512 == 0 {
                let cut = &log[..at];
                assert_ne!(verdict(&folder.0, cut), Verdict::Damaged { at: last_begins as u64 }, "cut at {at}");
                let mut hole = log.clone();
                let end = (at + 512).min(log.len());
                hole[at..end].fill(0);
                assert!(!matches!(verdict(&folder.0, &hole), Verdict::Damaged { .. }), "a hole at {at}");
            }
        }
    }

    #[test]
    fn frames_of_an_earlier_round_are_not_damage() {
        let (folder, _, _) = crashed();
        let path = folder.0.join("rounds");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size = 4096; PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE t (id INTEGER PRIMARY KEY, filler BLOB NOT NULL);
                 INSERT INTO t (filler) VALUES (randomblob(60000)); INSERT INTO t (filler) VALUES (randomblob(60000));",
            )
            .unwrap();
        connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
        connection.execute("INSERT INTO t (filler) VALUES (randomblob(10))", []).unwrap();
        let log = fs::read(folder.0.join("rounds-wal")).unwrap();
        assert!(log.len() > 100_000, "the earlier round is still there");
        assert_eq!(verdict(&folder.0, &log), Verdict::Whole);
    }

    #[test]
    fn what_is_whole_of_a_damaged_log_can_be_applied() {
        let (folder, database, log) = crashed();
        let apply_to = |log: &[u8]| {
            let (wal, copy) = (folder.0.join("wal"), folder.0.join("copy"));
            fs::write(&wal, log).unwrap();
            fs::write(&copy, &database).unwrap();
            let mut file = fs::OpenOptions::new().read(true).write(true).open(&copy).unwrap();
            let applied = apply(&wal, PAGE, &mut file).unwrap();
            (applied, fs::read(&copy).unwrap())
        };
        let frames = ((log.len() - HEADER) / (FRAME + PAGE)) as u64;
        let (applied, whole) = apply_to(&log);
        assert_eq!(applied, Applied { pages: frames, bad: 0 });
        assert_eq!(rows(&whole, &folder.0), 8);

        // A frame in the middle, of a page that is written again by the last transaction: nothing is lost.
        let mut flipped = log.clone();
        let at = (HEADER..log.len())
            .step_by(FRAME + PAGE)
            .filter(|at| number(&log, *at) == 2)
            .nth(2)
            .expect("the table's own page is written by each transaction");
        flipped[at + FRAME + 100] ^= 1;
        let (applied, mended) = apply_to(&flipped);
        assert_eq!(applied, Applied { pages: frames - 1, bad: 1 });
        assert_eq!(mended, whole);

        // What no commit follows is not applied.
        let uncommitted = &log[..commits(&log)[7]];
        let (_, before) = apply_to(uncommitted);
        assert_eq!(rows(&before, &folder.0), 6);
    }

    #[test]
    fn a_log_that_lacks_what_its_index_had_seen_committed_is_short_and_another_stores_index_says_nothing() {
        let (folder, _, _) = crashed();
        let folder = &folder.0;
        let crashed = |name: &str| {
            let path = folder.join(name);
            let connection = Connection::open(&path).unwrap();
            connection
                .execute_batch(
                    "PRAGMA page_size = 4096; PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;
                     CREATE TABLE t (filler BLOB); INSERT INTO t VALUES (randomblob(6000));
                     INSERT INTO t VALUES (randomblob(6000));",
                )
                .unwrap();
            let read = |ending: &str| fs::read(folder.join(format!("{name}-{ending}"))).unwrap();
            let found = (read("wal"), read("shm"));
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
            (found, read("shm"))
        };
        let ((log, index), written_back) = crashed("one");
        let ((other, _), _) = crashed("other");
        let (at_log, at_index) = (folder.join("log"), folder.join("index"));
        let short = |log: &[u8], index: &[u8]| {
            fs::write(&at_log, log).unwrap();
            fs::write(&at_index, index).unwrap();
            is_short(&at_log, &at_index, PAGE).unwrap()
        };
        assert!(!short(&log, &index));
        for cut in [0, 31, HEADER, HEADER + FRAME + PAGE, log.len() - 1] {
            assert!(short(&log[..cut], &index), "cut to {cut} of {}", log.len());
            // What is in the database anyway is not missed.
            assert!(!short(&log[..cut], &written_back), "cut to {cut} of {}", log.len());
        }
        // A log that was restored from a copy; an index that was being written, is cut, or is not there.
        assert!(!short(&other[..other.len() / 2], &index));
        for at in [0, 16, 40, 60] {
            let mut torn = index.clone();
            torn[at] ^= 1;
            assert!(!short(&log[..HEADER], &torn), "{at}");
        }
        assert!(!short(&log[..HEADER], &index[..90]));
        fs::remove_file(&at_index).unwrap();
        assert!(!is_short(&at_log, &at_index, PAGE).unwrap());
    }
}
