//! HTTP/1 off the wire: requests of strangers, and answers of upstreams.

use crate::{deliver, server};

const LONGEST: usize = 2048;

/// The first byte says where the rest is cut: what comes in two pieces is read as what comes in one, or byte by byte.
pub fn http1(data: &[u8]) {
    let Some((cut, message)) = data.split_first() else { return };
    let (first, second) = message.split_at(usize::from(*cut).min(message.len()));
    let bytes: Vec<&[u8]> = message.chunks(1).collect();
    let whole = server::read_request(&[message], LONGEST);
    for pieces in [&[first, second][..], &bytes] {
        assert_eq!(server::read_request(pieces, LONGEST), whole);
    }
    let whole = deliver::read_answer(&[message], LONGEST);
    for pieces in [&[first, second][..], &bytes] {
        assert_eq!(deliver::read_answer(pieces, LONGEST), whole);
    }
}
