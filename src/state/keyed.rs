//! A hash for tables whose keys are prints, tokens or clients: sixteen bytes that are a digest already, a number of our
//! own, or the word that a client is.
//!
//! Invariant: a key is hashed with secrets of this table alone, so that nobody outside can choose keys which crowd one
//! place of it: any two different keys, chosen without knowing the secrets, meet with a chance of 2^-64 (multiply-shift,
//! strongly universal: M. Dietzfelbinger, STACS 1996). A digest needs no more mixing than that, nor does a client, of whom there
//! are 2^64; and SipHash took a fifth of a claim.

use std::hash::{BuildHasher, Hasher};

/// Two words and no more: a print has two, a token one.
const WORDS: usize = 2;

#[derive(Clone)]
pub(crate) struct Keyed {
    factors: [u128; WORDS],
    start: u128,
}

pub(crate) struct Hashing {
    factors: [u128; WORDS],
    sum: u128,
    at: usize,
}

impl Default for Keyed {
    fn default() -> Self {
        Self { factors: rand::random(), start: rand::random() }
    }
}

impl BuildHasher for Keyed {
    type Hasher = Hashing;

    #[inline]
    fn build_hasher(&self) -> Hashing {
        Hashing { factors: self.factors, sum: self.start, at: 0 }
    }
}

impl Hasher for Hashing {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len().is_multiple_of(8), "words");
        for word in bytes.chunks_exact(8) {
            let mut whole = [0; 8];
            whole.copy_from_slice(word);
            self.write_u64(u64::from_le_bytes(whole));
        }
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        debug_assert!(self.at < WORDS, "a longer key has nothing to be multiplied with");
        let factor = self.factors.get(self.at).copied().unwrap_or_default();
        self.sum = self.sum.wrapping_add(factor.wrapping_mul(u128::from(word)));
        self.at += 1;
    }

    /// The length of an array, which is the same for all.
    #[inline]
    fn write_usize(&mut self, _: usize) {}

    /// The sum is linear in the key, and numbers that follow one another would lie in steps: these two turns, which can be
    /// undone and so make no two keys meet, break the steps up.
    #[inline]
    fn finish(&self) -> u64 {
        let high = (self.sum >> 64) as u64;
        let turned = (high ^ (high >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        turned ^ (turned >> 29)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Of 64 places, how many keys are in the fullest, which is found by the lowest bits and by the highest.
    fn fullest(keyed: &Keyed, keys: impl Iterator<Item = [u8; 16]> + Clone) -> usize {
        let places = |shift: u32| {
            let mut places = [0_usize; 64];
            keys.clone().for_each(|key| places[(keyed.hash_one(key) >> shift) as usize & 63] += 1);
            places.into_iter().max().unwrap_or_default()
        };
        places(0).max(places(58))
    }

    fn key(low: u64, high: u64) -> [u8; 16] {
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }

    #[test]
    fn keys_that_differ_in_little_are_spread_evenly() {
        let keyed = Keyed::default();
        // 100 a place are expected, and 160 are never seen.
        for shift in [0, 8, 32, 57] {
            let low = (0..6400_u64).map(|n| key(n.rotate_left(shift), 7));
            let high = (0..6400_u64).map(|n| key(7, n.rotate_left(shift)));
            let both = (0..6400_u64).map(|n| key(n.rotate_left(shift), n.rotate_left(shift)));
            let most = fullest(&keyed, low).max(fullest(&keyed, high)).max(fullest(&keyed, both));
            assert!(most < 200, "{most} of 6400 in one place of 64");
        }
    }

    #[test]
    fn every_table_hashes_in_its_own_way() {
        let hashes: HashSet<u64> = (0..100).map(|_| Keyed::default().hash_one([7_u8; 16])).collect();
        assert_eq!(hashes.len(), 100);
        let keyed = Keyed::default();
        assert_eq!(keyed.hash_one([7_u8; 16]), keyed.clone().hash_one([7_u8; 16]));
        assert_ne!(keyed.hash_one(1_u64), keyed.hash_one(2_u64));
    }
}
