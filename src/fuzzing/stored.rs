//! What lies in the inbox's file: the content of a row, and the parcel within.

use crate::inbox::{Packing, SealingKey};
use crate::parcel::Parcel;
use crate::secret::Secret;
use std::sync::OnceLock;

const ROW: [u8; 16] = [7; 16];

/// A row of a damaged or altered store. The first byte is the form that the row says it has; the rest is what lies in it
/// as it is, what lies in it behind a checksum that is right, a parcel, and something to be packed.
pub fn stored(data: &[u8]) {
    static PACKINGS: OnceLock<[Packing; 2]> = OnceLock::new();
    let packings = PACKINGS.get_or_init(|| {
        let key = SealingKey::parse(&Secret::new(
            b"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f".to_vec(),
        ));
        [Packing::default(), Packing::new(key.into_iter().collect())]
    });
    let Some((form, rest)) = data.split_first() else { return };
    for packing in packings {
        let packed = packing.pack(&ROW, rest.to_vec()).expect("room for it, and random numbers");
        let key = packed.key.map(|key| key.as_bytes().to_vec());
        for content in [rest.to_vec(), Packing::checksummed(&ROW, *form, rest)] {
            for key in [None, key.as_deref()] {
                let length = content.len();
                if let Ok(plain) = packing.unpack(&ROW, key, i64::from(*form), content.clone()) {
                    assert!(plain.len() <= length * Packing::MOST_PER_BYTE, "{length} bytes became {}", plain.len());
                    parcel(&plain);
                }
            }
        }
        let back = packing.unpack(&ROW, key.as_deref(), i64::from(packed.packing), packed.content);
        assert_eq!(back.as_deref(), Ok(rest));
    }
    parcel(rest);
}

/// What is a parcel is one for ever: encoded it is the same, and no longer than it was.
fn parcel(bytes: &[u8]) {
    let Ok(parcel) = Parcel::decode(bytes) else { return };
    let encoded = parcel.encode();
    assert!(encoded.len() <= bytes.len(), "{} bytes became {}", bytes.len(), encoded.len());
    assert_eq!(Parcel::decode(&encoded), Ok(parcel));
}
