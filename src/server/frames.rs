//! Where in its HTTP/2 frames is a client: between two of them, or in the middle of a request's head?
//!
//! hyper sets no deadline for the preface, nor for a header block whose END_HEADERS never comes, and does not tell us
//! that it waits for one. So the lengths and flags of frames are followed here, beside the real parser.
//! Invariant: this decides nothing but when a clock starts and stops. A client that lies about lengths is turned away by
//! the parser.

const PREFACE: &[u8] = super::transport::HTTP2_PREFACE;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

pub(super) struct Frames {
    at: At,
    /// A header block has begun and its END_HEADERS has not been seen.
    block_is_open: bool,
}

#[derive(Clone, Copy)]
enum At {
    Preface { seen: usize },
    FrameHeader { bytes: [u8; FRAME_HEADER], seen: usize },
    Payload { left: usize, ends_block: bool },
}

const BETWEEN_FRAMES: At = At::FrameHeader { bytes: [0; FRAME_HEADER], seen: 0 };

/// What the bytes of one read did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// The client owes us the rest of a preface, a frame's header or a header block.
    pub(super) owes: bool,
    /// Somewhere in these bytes it owed nothing: what it owes now is a new debt.
    pub(super) settled: bool,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { at: At::Preface { seen: 0 }, block_is_open: false }
    }

    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> Progress {
        let mut settled = !self.owes();
        while !bytes.is_empty() {
            bytes = self.step(bytes);
            settled |= !self.owes();
        }
        Progress { owes: self.owes(), settled }
    }

    fn owes(&self) -> bool {
        self.block_is_open
            || match self.at {
                At::Preface { .. } => true,
                At::FrameHeader { seen, .. } => seen > 0,
                At::Payload { .. } => false,
            }
    }

    /// Takes as much as belongs to the present state, and returns the rest. Always takes something.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match &mut self.at {
            At::Preface { seen } => {
                let taken = bytes.len().min(PREFACE.len() - *seen);
                *seen += taken;
                if *seen == PREFACE.len() {
                    self.at = BETWEEN_FRAMES;
                }
                &bytes[taken..]
            }
            At::FrameHeader { bytes: header, seen } => {
                let taken = bytes.len().min(FRAME_HEADER - *seen);
                header[*seen..*seen + taken].copy_from_slice(&bytes[..taken]);
                *seen += taken;
                if *seen == FRAME_HEADER {
                    let header = *header;
                    self.enter_frame(header);
                }
                &bytes[taken..]
            }
            At::Payload { left, ends_block } => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    if *ends_block {
                        self.block_is_open = false;
                    }
                    self.at = BETWEEN_FRAMES;
                }
                &bytes[taken..]
            }
        }
    }

    fn enter_frame(&mut self, header: [u8; FRAME_HEADER]) {
        let [high, middle, low, kind, flags, ..] = header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let is_head = matches!(kind, HEADERS | CONTINUATION);
        let ends_block = is_head && flags & END_HEADERS != 0;
        self.block_is_open |= is_head;
        if length == 0 {
            self.block_is_open &= !ends_block;
            self.at = BETWEEN_FRAMES;
        } else {
            self.at = At::Payload { left: length, ends_block };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWES: Progress = Progress { owes: true, settled: false };
    const SETTLED: Progress = Progress { owes: false, settled: true };

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn a_preface_is_owed_until_its_last_byte() {
        let mut frames = Frames::new();
        assert_eq!(frames.follow(&PREFACE[..23]), OWES);
        assert_eq!(frames.follow(&PREFACE[23..]), SETTLED);
    }

    #[test]
    fn a_header_block_is_owed_until_end_headers_however_it_is_cut() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(0x4, 0, &[]));
        let before = bytes.len();
        bytes.extend(frame(HEADERS, 0, b"abc"));
        bytes.extend(frame(CONTINUATION, END_HEADERS, b"de"));
        for at_once in [1, 2, 5, 7] {
            let mut frames = Frames::new();
            let mut fed = 0;
            for piece in bytes.chunks(at_once) {
                fed += piece.len();
                let progress = frames.follow(piece);
                if fed > before {
                    assert_eq!(progress.owes, fed < bytes.len(), "after {fed} of {} bytes", bytes.len());
                }
            }
        }
    }

    #[test]
    fn a_block_that_begins_behind_a_whole_one_is_a_new_debt() {
        let mut frames = Frames::new();
        frames.follow(PREFACE);
        assert_eq!(frames.follow(&frame(HEADERS, 0, b"a")), Progress { owes: true, settled: true });
        assert_eq!(frames.follow(b"\0"), OWES);
        let mut rest = frame(CONTINUATION, END_HEADERS, b"a")[1..].to_vec();
        rest.extend(frame(HEADERS, 0, b"a"));
        assert_eq!(frames.follow(&rest), Progress { owes: true, settled: true });
    }

    #[test]
    fn a_slow_body_owes_no_head() {
        let mut frames = Frames::new();
        frames.follow(PREFACE);
        assert_eq!(frames.follow(&frame(0x0, 0, b"body")[..10]), SETTLED);
    }
}
