//! The bytes of a stored delivery: made smaller where that pays, encrypted where a key is configured, and back.
//! Invariant: what comes back is what went in, or an error that says what to do. No damage passes for content, no length
//! that the file claims is believed beyond what its bytes could hold, and without a key nothing of it can be read.
//!
//! # Format
//!
//! `packing` is a set of bits: [`SMALLER`] (zstd), [`SEALED`] (AES-256-GCM). The content, from the inside out:
//!
//! - with [`SMALLER`]: the length of the plain bytes (u32, little endian), then one zstd frame; otherwise the plain bytes.
//! - with [`SEALED`]: salt (16), nonce (12), the above encrypted, tag (16). Its key is HKDF-SHA256 of the configured key
//!   over the salt: each row has its own, so the number of rows that one configured key may seal needs no count.
//!   Authenticated with it are the request id and the bits, so that rows cannot be exchanged or relabelled.
//! - otherwise the above, then CRC-32 (little endian) of the request id, the bits and the above: SQLite has no checksum of
//!   its own, and a flipped bit must not reach an upstream as if the sender had written it.
//!
//! The key's id beside it is the beginning of SHA-256 over a label and the key: it tells which key is missing and nothing
//! about the key itself.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, rand};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secret::Secret;

const SMALLER: u8 = 1;
const SEALED: u8 = 2;

/// Below it the frame's own overhead and the time outweigh what is saved; a typical webhook stays as it is.
const WORTH_PACKING: usize = 4 << 10;

/// zstd's default: JSON to a fifth or so, at a speed far above what a disk syncs.
const LEVEL: i32 = 3;

/// What a zstd block of four bytes can stand for at most is 128 KiB: a length beyond this multiple is a lie.
const MOST_PER_BYTE: usize = 32 << 10;

/// SQLite's own limit of a blob is a little above.
const MAX_PLAIN: usize = 900_000_000;

const KEY: usize = 32;
const SALT: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
const CRC: usize = 4;
const LENGTH: usize = 4;

const ID_LABEL: &[u8] = b"hookward inbox key id\0";
const ROW_LABEL: &[u8] = b"hookward inbox row";

/// Which configured key a row was encrypted with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyId([u8; 8]);

impl KeyId {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// One key of `[inbox] encryption_key`.
#[derive(Clone)]
pub(crate) struct SealingKey {
    id: KeyId,
    key: Secret,
}

impl SealingKey {
    /// 32 bytes, written as hex or as base64 in either alphabet, padded or not. The error never contains what was written.
    pub(crate) fn parse(written: &Secret) -> Result<Self, String> {
        let bytes = decoded(written.expose()).ok_or_else(|| {
            "an encryption key is 32 random bytes, written as 64 hex digits or as base64 (44 characters); \
             `openssl rand -base64 32` makes one"
                .to_owned()
        })?;
        if bytes.windows(2).all(|pair| matches!(pair, [a, b] if a == b)) {
            return Err("this encryption key is one byte repeated; `openssl rand -base64 32` makes a random one".into());
        }
        let digest = Sha256::new().chain_update(ID_LABEL).chain_update(&*bytes).finalize();
        let mut id = [0; 8];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Ok(Self { id: KeyId(id), key: Secret::new(bytes.to_vec()) })
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> KeyId {
        self.id
    }

    fn for_row(&self, salt: &[u8]) -> Result<RandomizedNonceKey, aws_lc_rs::error::Unspecified> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.key.expose());
        let mut key = Zeroizing::new([0; KEY]);
        secret.expand(&[ROW_LABEL], hkdf::HKDF_SHA256)?.fill(&mut *key)?;
        RandomizedNonceKey::new(&AES_256_GCM, &*key)
    }
}

/// Two keys of one id are one key; comparing ids needs no care about time, they stand in the file.
impl PartialEq for SealingKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for SealingKey {}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

fn decoded(written: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let lax = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = if written.len() == 2 * KEY {
        hex::decode(written).ok()?
    } else if written.iter().any(|byte| matches!(byte, b'-' | b'_')) {
        GeneralPurpose::new(&alphabet::URL_SAFE, lax).decode(written).ok()?
    } else {
        GeneralPurpose::new(&alphabet::STANDARD, lax).decode(written).ok()?
    };
    let bytes = Zeroizing::new(bytes);
    (bytes.len() == KEY).then_some(bytes)
}

/// How this store packs: with the first key, if there is one. All of them open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packing {
    keys: Vec<SealingKey>,
}

/// What goes into the columns of one row.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) key: Option<KeyId>,
    pub(crate) packing: u8,
    pub(crate) content: Vec<u8>,
}

/// Why a row's content cannot be given back. Nothing of the content is in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("it is encrypted with the key {id}, which is not configured; add that key to [inbox] encryption_key")]
    KeyMissing { id: String },
    #[error("it is damaged or was altered: it does not open with its key {id}")]
    NotGenuine { id: KeyId },
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("its form {0} is unknown to this version of hookward")]
    Unknown(i64),
}

impl Packing {
    pub(crate) fn new(keys: Vec<SealingKey>) -> Self {
        Self { keys }
    }

    /// Compresses (which takes some milliseconds for each MiB: not for the writer's thread) and encrypts.
    pub(crate) fn pack(&self, request_id: &[u8; 16], plain: Vec<u8>) -> Result<Packed, String> {
        if plain.len() > MAX_PLAIN {
            return Err(format!("a delivery of {} bytes is more than the inbox can hold", plain.len()));
        }
        let mut packing = 0;
        let mut content = plain;
        if let Some(smaller) = compressed(&content)? {
            packing |= SMALLER;
            content = smaller;
        }
        let Some(key) = self.keys.first() else {
            let crc = checksum(request_id, packing, &content);
            content.extend_from_slice(&crc);
            return Ok(Packed { key: None, packing, content });
        };
        packing |= SEALED;
        let failed = |_unspecified| "the system's random numbers or the cipher failed".to_owned();
        let mut salt = [0; SALT];
        rand::fill(&mut salt).map_err(failed)?;
        let aad = Aad::from(bound(request_id, packing));
        let nonce = key.for_row(&salt).map_err(failed)?.seal_in_place_append_tag(aad, &mut content).map_err(failed)?;
        let mut sealed = Vec::with_capacity(SALT + NONCE + content.len());
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut content);
        Ok(Packed { key: Some(key.id), packing, content: sealed })
    }

    /// Any bytes as a row without a key would have them, so that a fuzzer need not guess a checksum.
    #[cfg(fuzzing)]
    pub(crate) fn checksummed(request_id: &[u8; 16], packing: u8, content: &[u8]) -> Vec<u8> {
        let crc = checksum(request_id, packing, content);
        [content, &crc].concat()
    }

    #[cfg(fuzzing)]
    pub(crate) const MOST_PER_BYTE: usize = MOST_PER_BYTE;

    pub(crate) fn unpack(
        &self,
        request_id: &[u8; 16],
        key: Option<&[u8]>,
        packing: i64,
        content: Vec<u8>,
    ) -> Result<Vec<u8>, Unreadable> {
        let bits = u8::try_from(packing).map_err(|_| Unreadable::Unknown(packing))?;
        if bits & !(SMALLER | SEALED) != 0 {
            return Err(Unreadable::Unknown(packing));
        }
        let content = match (bits & SEALED != 0, key) {
            (true, Some(id)) => self.open(request_id, id, bits, content)?,
            (false, None) => checked(request_id, bits, content)?,
            _ => return Err(Unreadable::Damaged("it says both that it is encrypted and that it is not")),
        };
        if bits & SMALLER != 0 { restored(&content) } else { Ok(content) }
    }

    fn open(&self, request_id: &[u8; 16], id: &[u8], bits: u8, content: Vec<u8>) -> Result<Vec<u8>, Unreadable> {
        // An id of damaged length is printed no longer than a right one would be.
        let missing = || Unreadable::KeyMissing { id: hex::encode(id.get(..8).unwrap_or(id)) };
        let key = self.keys.iter().find(|key| key.id.as_bytes() == id).ok_or_else(missing)?;
        let refused = || Unreadable::NotGenuine { id: key.id };
        let (salt, rest) = content.split_at_checked(SALT).ok_or_else(refused)?;
        let (nonce, rest) = rest.split_at_checked(NONCE).filter(|(_, rest)| rest.len() >= TAG).ok_or_else(refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
        let aad = Aad::from(bound(request_id, bits));
        let mut rest = rest.to_vec();
        let cipher = key.for_row(salt).map_err(|_| refused())?;
        let length = cipher.open_in_place(nonce, aad, &mut rest).map_err(|_| refused())?.len();
        rest.truncate(length);
        Ok(rest)
    }
}

fn compressed(plain: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if plain.len() <= WORTH_PACKING {
        return Ok(None);
    }
    let length = u32::try_from(plain.len()).map_err(|_| "too long to be compressed".to_owned())?;
    let frame = zstd::bulk::compress(plain, LEVEL).map_err(|error| format!("it cannot be compressed: {error}"))?;
    // An eighth at least: pictures and archives are as small as they get, and reading them back should cost nothing.
    if frame.len() + LENGTH > plain.len() - plain.len() / 8 {
        return Ok(None);
    }
    let mut content = Vec::with_capacity(LENGTH + frame.len());
    content.extend_from_slice(&length.to_le_bytes());
    content.extend_from_slice(&frame);
    Ok(Some(content))
}

fn restored(content: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let (length, frame) =
        content.split_first_chunk::<LENGTH>().ok_or(Unreadable::Damaged("its compressed form is cut"))?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_PLAIN || length > frame.len().saturating_mul(MOST_PER_BYTE) {
        return Err(Unreadable::Damaged("it claims to be longer than its bytes can stand for"));
    }
    // The buffer is as long as the length says, and what does not fit into it is an error, not more memory.
    let plain = zstd::bulk::decompress(frame, length)
        .map_err(|_| Unreadable::Damaged("its compressed form cannot be read, or is longer than its length says"))?;
    if plain.len() == length { Ok(plain) } else { Err(Unreadable::Damaged("it is shorter than its length says")) }
}

fn checked(request_id: &[u8; 16], bits: u8, mut content: Vec<u8>) -> Result<Vec<u8>, Unreadable> {
    let (plain, crc) = content.split_last_chunk::<CRC>().ok_or(Unreadable::Damaged("it is cut"))?;
    if checksum(request_id, bits, plain) != *crc {
        return Err(Unreadable::Damaged("its checksum is wrong"));
    }
    content.truncate(content.len() - CRC);
    Ok(content)
}

fn checksum(request_id: &[u8; 16], bits: u8, content: &[u8]) -> [u8; CRC] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bound(request_id, bits));
    crc.update(content);
    crc.finalize().to_le_bytes()
}

/// What a row's content belongs to.
fn bound(request_id: &[u8; 16], bits: u8) -> [u8; 17] {
    let mut bound = [bits; 17];
    bound.iter_mut().zip(request_id).for_each(|(to, from)| *to = *from);
    bound
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: [u8; 16] = [7; 16];

    fn key(seed: u8) -> SealingKey {
        let bytes: Vec<u8> = (0..32).map(|n| seed.wrapping_add(n)).collect();
        SealingKey::parse(&Secret::new(hex::encode(bytes).into_bytes())).expect("32 bytes in hex")
    }

    fn sealing() -> Packing {
        Packing::new(vec![key(1)])
    }

    fn back(packing: &Packing, packed: Packed) -> Result<Vec<u8>, Unreadable> {
        let key = packed.key.map(|key| key.as_bytes().to_vec());
        packing.unpack(&ID, key.as_deref(), i64::from(packed.packing), packed.content)
    }

    /// Compressible and not, short and long: all four combinations come about.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let noise = proptest::collection::vec(any::<u8>(), 0..12_000);
        let prose = (proptest::collection::vec(any::<u8>(), 1..40), 1..2000_usize);
        prop_oneof![noise, prose.prop_map(|(unit, times)| unit.repeat(times))]
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_back_as_it_was(plain in content(), sealed: bool) {
            let packing = if sealed { sealing() } else { Packing::default() };
            let packed = packing.pack(&ID, plain.clone()).unwrap();
            prop_assert_eq!(packed.packing & SEALED != 0, sealed);
            prop_assert!(packed.content.len() <= plain.len() + SALT + NONCE + TAG);
            prop_assert_eq!(back(&packing, packed), Ok(plain));
        }

        #[test]
        fn one_flipped_bit_anywhere_is_an_error(plain in content(), sealed: bool, at: prop::sample::Index, bit in 0..8_u8) {
            let packing = if sealed { sealing() } else { Packing::default() };
            let mut packed = packing.pack(&ID, plain).unwrap();
            let at = at.index(packed.content.len());
            packed.content[at] ^= 1 << bit;
            prop_assert!(back(&packing, packed).is_err());
        }

        #[test]
        fn no_bytes_of_a_damaged_file_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), form in 0..6_i64, id: Option<[u8; 8]>, own: bool,
        ) {
            let id = if own { Some(key(1).id.0) } else { id };
            let _any = sealing().unpack(&ID, id.as_ref().map(|id| &id[..]), form, bytes.clone());
            let _any = restored(&bytes);
        }
    }

    #[test]
    fn all_four_forms_are_used() {
        let noise: Vec<u8> = (0..9000_u32).flat_map(|n| Sha256::digest(n.to_le_bytes())[..1].to_vec()).collect();
        for (packing, sealed) in [(Packing::default(), 0), (sealing(), SEALED)] {
            for (plain, form) in [(vec![b'a'; 9000], SMALLER), (vec![b'a'; 4096], 0), (noise.clone(), 0)] {
                let packed = packing.pack(&ID, plain).unwrap();
                assert_eq!(packed.packing, sealed | form);
            }
        }
    }

    #[test]
    fn nothing_of_a_sealed_delivery_can_be_read_in_it_and_no_two_are_alike() {
        let plain = b"MARKER-a-customers-name".to_vec();
        let first = sealing().pack(&ID, plain.clone()).unwrap();
        let second = sealing().pack(&ID, plain.clone()).unwrap();
        assert!(!first.content.windows(6).any(|window| window == b"MARKER"));
        assert_ne!(first.content, second.content);
        assert_ne!(first.content[..SALT], second.content[..SALT]);
    }

    #[test]
    fn a_new_key_seals_and_the_old_one_still_opens() {
        let before = sealing().pack(&ID, b"old".to_vec()).unwrap();
        let rotated = Packing::new(vec![key(2), key(1)]);
        assert_eq!(back(&rotated, before), Ok(b"old".to_vec()));
        let after = rotated.pack(&ID, b"new".to_vec()).unwrap();
        assert_eq!(after.key, Some(key(2).id()));
        assert_eq!(back(&Packing::new(vec![key(2)]), after), Ok(b"new".to_vec()));
    }

    #[test]
    fn a_missing_key_is_named_by_its_id_with_what_to_change() {
        for packing in [Packing::default(), Packing::new(vec![key(2)])] {
            let error = back(&packing, sealing().pack(&ID, b"x".to_vec()).unwrap()).unwrap_err();
            assert_eq!(error, Unreadable::KeyMissing { id: key(1).id().to_string() });
            let text = error.to_string();
            assert!(text.contains(&key(1).id().to_string()) && text.contains("[inbox] encryption_key"), "{text}");
        }
    }

    #[test]
    fn a_row_cannot_stand_for_another_or_lose_its_seal() {
        let sealed = || sealing().pack(&ID, vec![b'a'; 9000]).unwrap();
        let id = key(1).id();
        let open = |request: [u8; 16], key: Option<&[u8]>, form: u8, content: Vec<u8>| {
            sealing().unpack(&request, key, i64::from(form), content)
        };
        let right = open(ID, Some(id.as_bytes()), SMALLER | SEALED, sealed().content);
        assert_eq!(right, Ok(vec![b'a'; 9000]));
        let moved = open([8; 16], Some(id.as_bytes()), SMALLER | SEALED, sealed().content);
        assert_eq!(moved, Err(Unreadable::NotGenuine { id }));
        let relabelled = open(ID, Some(id.as_bytes()), SEALED, sealed().content);
        assert_eq!(relabelled, Err(Unreadable::NotGenuine { id }));
        let stripped = open(ID, None, SMALLER | SEALED, sealed().content);
        assert!(matches!(stripped, Err(Unreadable::Damaged(_))));
        let unmarked = open(ID, None, SMALLER, sealed().content);
        assert_eq!(unmarked, Err(Unreadable::Damaged("its checksum is wrong")));
        let plain = Packing::default().pack(&ID, b"x".to_vec()).unwrap();
        let moved = Packing::default().unpack(&[8; 16], None, 0, plain.content);
        assert_eq!(moved, Err(Unreadable::Damaged("its checksum is wrong")));
    }

    #[test]
    fn a_compressed_bomb_is_an_error_before_it_is_memory() {
        let frame = zstd::bulk::compress(&vec![0; 50 << 20], 19).unwrap();
        assert!(frame.len() < 10_000, "{}", frame.len());
        let claiming = |length: u32| [&length.to_le_bytes()[..], &frame].concat();
        assert_eq!(restored(&claiming(50 << 20)).map(|plain| plain.len()), Ok(50 << 20));
        for lie in [0, 1, 1000, (50 << 20) - 1, (50 << 20) + 1] {
            assert!(matches!(restored(&claiming(lie)), Err(Unreadable::Damaged(_))), "{lie}");
        }
        let beyond = Err(Unreadable::Damaged("it claims to be longer than its bytes can stand for"));
        assert_eq!(restored(&claiming(u32::MAX)), beyond);
        assert_eq!(restored(&[&(800_u32 << 20).to_le_bytes()[..], &frame[..100]].concat()), beyond);
    }

    #[test]
    fn a_form_from_the_future_is_refused_by_its_number() {
        for form in [4, 255, 256, -1, i64::MAX] {
            assert_eq!(Packing::default().unpack(&ID, None, form, vec![0; 50]), Err(Unreadable::Unknown(form)));
        }
    }

    #[test]
    fn keys_are_32_bytes_in_hex_or_base64_and_nothing_else() {
        let bytes: Vec<u8> = (200..232).collect();
        let parse = |text: &str| SealingKey::parse(&Secret::new(text.as_bytes().to_vec()));
        let standard = base64::engine::general_purpose::STANDARD.encode(&bytes);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&bytes);
        let written = [hex::encode(&bytes), hex::encode_upper(&bytes), standard.clone(), url];
        let ids: Vec<KeyId> = written.iter().map(|text| parse(text).expect("a key").id()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(parse(standard.trim_end_matches('=')).expect("a key").id(), ids[0]);
        let short = hex::encode(&bytes[..31]);
        let long = format!("{}00", hex::encode(&bytes));
        for bad in
            ["", "password", &short, &long, &format!("{}zz", &hex::encode(&bytes)[..62]), &format!(" {standard}")]
        {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains("32 random bytes") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
        let error = parse(&"00".repeat(32)).unwrap_err();
        assert!(error.contains("one byte repeated"), "{error}");
    }

    #[test]
    fn a_key_does_not_print_itself() {
        let text = format!("{:?}", sealing());
        assert_eq!(text, format!("Packing {{ keys: [SealingKey({})] }}", key(1).id()));
    }

    /// The format is a promise to files that exist. The bytes were made by other programs than this one.
    #[test]
    fn a_row_of_the_first_version_still_opens() {
        let plain = Packing::default().unpack(&ID, None, 0, hex::decode("6869953e0890").unwrap());
        assert_eq!(plain, Ok(b"hi".to_vec()));
        let sealed = "000102030405060708090a0b0c0d0e0f000102030405060708090a0b6c29b97221b853a10879cc2b196eac92cdec";
        let id = key(1).id();
        let plain = sealing().unpack(&ID, Some(id.as_bytes()), 2, hex::decode(sealed).unwrap());
        assert_eq!(plain, Ok(b"hi".to_vec()));
    }
}
