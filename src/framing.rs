//! Where an HTTP/1.1 message's body ends (RFC 9112 §6 and §7): of requests that come in, and of answers that come back.
//!
//! Pure: bytes in, bytes out. Invariants: a body is read the same however its bytes were cut on the way; what two parsers
//! could read in two ways is an error; no more is looked at than the bounds given; trailers end here, because they could
//! smuggle a header past whoever judged the head.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Of a chunk's size with its extensions, which nobody uses.
const LONGEST_CHUNK_LINE: usize = 4 * 1024;
/// Of a chunk's size: 64 bits.
const MOST_DIGITS: usize = 16;

/// What of a body is still to come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Length(u64),
    Chunked(Chunk),
    /// Whatever comes until the peer closes.
    UntilClose,
}

/// Where in a chunked body the next byte stands (RFC 9112 §7.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size,
    Data(u64),
    /// The line end behind a chunk's data.
    DataEnd,
    /// Bytes of trailers so far.
    Trailers(usize),
}

/// What the bytes so far give.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    /// More has to be read first.
    Nothing,
    End,
}

impl Left {
    pub(crate) fn is_over(&self) -> bool {
        *self == Self::Length(0)
    }

    /// The rest, where it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Length(length) => Some(*length),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes off the buffer what belongs to the body. `longest`: of all trailers together.
    pub(crate) fn take(&mut self, buffer: &mut BytesMut, longest: usize) -> Result<Piece, &'static str> {
        loop {
            match self {
                Self::Length(0) => return Ok(Piece::End),
                Self::Length(left) => return Ok(take_data(left, buffer)),
                Self::UntilClose if buffer.is_empty() => return Ok(Piece::Nothing),
                Self::UntilClose => return Ok(Piece::Data(buffer.split().freeze())),
                Self::Chunked(Chunk::Data(0)) => *self = Self::Chunked(Chunk::DataEnd),
                Self::Chunked(Chunk::Data(left)) => return Ok(take_data(left, buffer)),
                Self::Chunked(Chunk::Size) => {
                    let Some(line) = chunk_line(buffer)? else { return Ok(Piece::Nothing) };
                    let size = chunk_size(line).ok_or("a chunk's size is none")?;
                    let _ = buffer.split_to(line.len() + 2);
                    *self = Self::Chunked(if size == 0 { Chunk::Trailers(0) } else { Chunk::Data(size) });
                }
                Self::Chunked(Chunk::DataEnd) => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        let _ = buffer.split_to(2);
                        *self = Self::Chunked(Chunk::Size);
                    }
                    None if b"\r\n".starts_with(buffer) => return Ok(Piece::Nothing),
                    Some(_) | None => return Err("a chunk is longer than its size"),
                },
                Self::Chunked(Chunk::Trailers(passed)) => match buffer.iter().position(|byte| *byte == b'\n') {
                    Some(end) if *passed + end <= longest => {
                        let line = buffer.split_to(end + 1);
                        *passed += line.len();
                        match line.strip_suffix(b"\r\n").or_else(|| line.strip_suffix(b"\n")) {
                            Some(b"") => *self = Self::Length(0),
                            Some(field) if is_field(field) => {}
                            Some(_) | None => return Err("a trailer is no field"),
                        }
                    }
                    None if *passed + buffer.len() <= longest => return Ok(Piece::Nothing),
                    Some(_) | None => return Err("its trailers are too large"),
                },
            }
        }
    }
}

fn take_data(left: &mut u64, buffer: &mut BytesMut) -> Piece {
    if buffer.is_empty() {
        return Piece::Nothing;
    }
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= taken as u64;
    Piece::Data(buffer.split_to(taken).freeze())
}

/// What a `Content-Length` says (RFC 9110 §8.6): digits, that fit into 64 bits.
pub(crate) fn length_of(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// Without its end, which is CRLF and nothing else.
fn chunk_line(buffer: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let looked_at = buffer.get(..LONGEST_CHUNK_LINE).unwrap_or(buffer);
    match looked_at.iter().position(|byte| *byte == b'\n') {
        Some(end) => match looked_at.get(..end).and_then(|line| line.strip_suffix(b"\r")) {
            Some(line) => Ok(Some(line)),
            None => Err("a chunk's size is none"),
        },
        None if looked_at.len() < buffer.len() => Err("a chunk's size is none"),
        // What cannot become a size need not be waited for.
        None if chunk_size(looked_at.strip_suffix(b"\r").unwrap_or(looked_at)).is_none() && !looked_at.is_empty() => {
            Err("a chunk's size is none")
        }
        None => Ok(None),
    }
}

/// Digits, and perhaps blanks and extensions (RFC 9112 §7.1.1), which are passed over.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, rest) = line.split_at_checked(end)?;
    let rest = rest.trim_ascii_start();
    let is_extension = rest.is_empty() || rest.starts_with(b";");
    let is_printed = line.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    if digits.is_empty() || digits.len() > MOST_DIGITS || !is_extension || !is_printed {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A name and a colon; what stands behind it counts for nothing.
fn is_field(line: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let name = line.iter().position(|byte| *byte == b':').and_then(|colon| line.get(..colon));
    name.is_some_and(|name| !name.is_empty() && name.iter().all(is_token)) && !line.contains(&b'\r')
}

/// Where in the bytes that were parsed each field's name and value stand.
pub(crate) fn places(parsed: &[u8], fields: &[httparse::Header<'_>]) -> SmallVec<[(Range<usize>, Range<usize>); 24]> {
    let place = |part: &[u8]| part_of(parsed, part);
    fields.iter().map(|field| (place(field.name.as_bytes()), place(field.value))).collect()
}

/// `part` lies within `whole`; where it does not, nothing does.
pub(crate) fn part_of(whole: &[u8], part: &[u8]) -> Range<usize> {
    let from = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    from..from + part.len()
}

/// Digits of a 64-bit number.
pub(crate) const MOST_OF_A_NUMBER: usize = 20;

/// Bytes that a field's line takes.
pub(crate) fn line_of(name: &str, value: &[u8]) -> usize {
    name.len() + ": ".len() + value.len() + "\r\n".len()
}

/// Appends what `write` puts, which is `most` at most: room for all of it is made at once.
#[inline(always)]
pub(crate) fn fill(out: &mut Vec<u8>, most: usize, write: impl FnOnce(&mut Room<'_>)) {
    let begun = out.len();
    out.resize(begun + most, 0);
    let mut room = Room(out.get_mut(begun..).unwrap_or_default());
    write(&mut room);
    let left = room.0.len();
    out.truncate(out.len() - left);
}

/// What is still to be written of a head.
pub(crate) struct Room<'h>(&'h mut [u8]);

impl Room<'_> {
    /// There is room: it was measured.
    #[inline(always)]
    pub(crate) fn put(&mut self, part: &[u8]) {
        let (here, rest) = std::mem::take(&mut self.0).split_at_mut(part.len());
        here.copy_from_slice(part);
        self.0 = rest;
    }

    /// As many as the compiler knows of: no loop and no call.
    #[inline(always)]
    pub(crate) fn put_few<const N: usize>(&mut self, part: [u8; N]) {
        if let Some((here, rest)) = std::mem::take(&mut self.0).split_first_chunk_mut() {
            *here = part;
            self.0 = rest;
        }
    }

    #[inline(always)]
    pub(crate) fn put_line(&mut self, name: &str, value: &[u8]) {
        self.put(name.as_bytes());
        self.put_few(*b": ");
        self.put(value);
        self.put_few(*b"\r\n");
    }

    pub(crate) fn put_number(&mut self, number: u64) {
        let mut digits = [b'0'; MOST_OF_A_NUMBER];
        let (mut first, mut left) = (digits.len() - 1, number);
        digits[first] += (left % 10) as u8;
        while left >= 10 {
            left /= 10;
            first -= 1;
            digits[first] += (left % 10) as u8;
        }
        self.put(&digits[first..]);
    }
}

/// For the fuzz targets: the whole body, of which this has come and these pieces do.
#[cfg(fuzzing)]
pub(crate) fn read<'p>(
    mut left: Left,
    mut buffer: BytesMut,
    mut pieces: impl Iterator<Item = &'p &'p [u8]>,
    longest: usize,
) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        match left.take(&mut buffer, longest).ok()? {
            Piece::Data(data) => body.extend_from_slice(&data),
            Piece::End => return Some(body),
            Piece::Nothing => match pieces.next() {
                Some(piece) => buffer.extend_from_slice(piece),
                None => return (left == Left::UntilClose).then_some(body),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &str) -> Result<Option<Vec<u8>>, &'static str> {
        let (mut buffer, mut left, mut body) = (BytesMut::from(chunks), Left::Chunked(Chunk::Size), Vec::new());
        loop {
            match left.take(&mut buffer, 100)? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::Nothing => return Ok(None),
                Piece::End => return Ok(Some(body)),
            }
        }
    }

    #[test]
    fn chunks_are_read_in_every_spelling_that_the_rfc_allows() {
        for spelling in
            ["2\r\nhi\r\n0\r\n\r\n", "02\r\nhi\r\n00\r\nX: 1\r\ny:\r\n\r\n", "2;a=\"b\" \r\nhi\r\n0 \t;x\r\n\r\n"]
        {
            assert_eq!(read(spelling), Ok(Some(b"hi".to_vec())), "{spelling:?}");
        }
        assert_eq!(read("00000000000000002\r\nhi\r\n0\r\n\r\n"), Err("a chunk's size is none"), "more than 64 bits");
    }

    #[test]
    fn what_another_parser_could_read_in_another_way_is_no_chunk() {
        for size in ["", " 2", "+2", "-2", "0x2", "2 2", "2,", "2\x0b", "2;a\nb", "2;\x00", "2\r", "g", "ï", "2h"] {
            assert_eq!(read(&format!("{size}\r\nhi\r\n0\r\n\r\n")), Err("a chunk's size is none"), "{size:?}");
        }
        assert_eq!(read("2\nhi\r\n0\r\n\r\n"), Err("a chunk's size is none"));
        assert_eq!(read("2\r\nhi\n0\r\n\r\n"), Err("a chunk is longer than its size"));
        for trailer in ["no trailer", ": none", "a b: c", "a: b\rc: d", " a: b"] {
            assert_eq!(read(&format!("0\r\n{trailer}\r\n\r\n")), Err("a trailer is no field"), "{trailer:?}");
        }
    }

    #[test]
    fn what_is_not_whole_yet_is_waited_for_up_to_a_bound() {
        for begun in
            ["", "2", "2\r", "2;x", "2\r\n", "2\r\nh", "2\r\nhi\r", "2\r\nhi\r\n0\r\n", "0\r\nx: y", "0\r\nx: y\r\n"]
        {
            assert_eq!(read(begun), Ok(None), "{begun:?}");
        }
        assert_eq!(read(&format!("2;{}", "x".repeat(LONGEST_CHUNK_LINE))), Err("a chunk's size is none"));
        assert_eq!(read(&format!("0\r\nx: {}", "y".repeat(100))), Err("its trailers are too large"));
    }
}
