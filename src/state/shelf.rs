//! Prints, each remembered until a time: found by print, and given up in the order in which they expire.
//!
//! Built by hand because of its size: a million entries must fit in 50 MB, where a `HashMap` beside a queue of
//! expiries takes 80 to 130; and because a busy one lies in no cache: to remember, to find that something is not there and
//! to move what is indexed read one place of the index, and no slot. What must stay true:
//! - every live slot is in the index once and in exactly one queue of `due`;
//! - a slot whose time was extended stays in its old queue until that comes up, and then moves to the right one. So a
//!   slot's queue may be too early, never too late;
//! - no single operation takes long. The index is cut into parts, so that one of them growing moves a 64th of it, and
//!   slots come in chunks that never move, once there are as many as fill one.

use std::collections::BTreeMap;
use std::hash::BuildHasher;

use super::keyed::Keyed;
use crate::clock::UnixMillis;

/// The first half of the SHA-256 of a key (made in `ledger.rs`). Half is enough: to have a message refused that is not
/// a replay, a forger needs a second preimage (2^128); the collision that costs 2^64 only buys a sender two messages of
/// its own of which we take one. Nobody can get a replay *accepted* by a collision.
pub(crate) type Print = [u8; 16];

const NONE: u32 = u32::MAX;

/// Growing one part at a million entries moves 16,000 slots' numbers: well under a millisecond.
const PARTS: usize = 64;

/// Slots are allocated so many at a time: 28 KiB. The first chunk grows up to it by doubling, or a thousand sources that see
/// ten deliveries a day would take 28 MiB for next to nothing, and again for event ids.
const CHUNK: usize = 1024;

/// Queues of `due` are 1.024 s wide: a day has at most 84,375 of them.
const QUEUE_SHIFT: u32 = 10;

/// Slot numbers are 32 bits, one of which means none.
pub(super) const MAX_ENTRIES: usize = (u32::MAX >> 1) as usize;

pub(super) struct Shelf {
    chunks: Vec<Vec<Slot>>,
    free: u32,
    parts: Vec<Part>,
    /// By `until >> QUEUE_SHIFT`: first and last slot of the queue, linked through `Slot::next`.
    due: BTreeMap<u64, (u32, u32)>,
    len: usize,
    /// Keyed by chance, so that nobody can choose ids which crowd one place of the index.
    hasher: Keyed,
}

#[derive(Clone, Copy)]
struct Slot {
    print: Print,
    /// A `u64` as bytes: its alignment would make 32 bytes out of 28.
    until: [u8; 8],
    next: u32,
}

/// Open addressing with linear probing and deletion by shifting back; at most three quarters full.
#[derive(Clone, Default)]
struct Part {
    places: Vec<Place>,
    used: usize,
}

#[derive(Clone, Copy)]
struct Place {
    /// Of the slot, or `NONE`.
    id: u32,
    /// Of the slot's print, in part: where it belongs, and most of what tells it from others.
    hash: u32,
}

const EMPTY: Place = Place { id: NONE, hash: 0 };

impl Default for Shelf {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            free: NONE,
            parts: vec![Part::default(); PARTS],
            due: BTreeMap::new(),
            len: 0,
            hasher: Keyed::default(),
        }
    }
}

impl Shelf {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn until(&self, print: &Print) -> Option<UnixMillis> {
        self.find(print).map(|id| self.slot(id).until())
    }

    /// Remembers `print`; one that is there already is kept until the later of both times.
    pub(super) fn put(&mut self, print: Print, until: UnixMillis) {
        if let Some(id) = self.find(&print) {
            let later = self.slot(id).until().max(until);
            self.slot_mut(id).until = later.0.to_ne_bytes();
            return;
        }
        let id = self.allocate(Slot { print, until: until.0.to_ne_bytes(), next: NONE });
        self.index(id);
        self.enqueue(id);
        self.len += 1;
    }

    /// All in one of its parts, which are numbered from zero; None behind the last.
    pub(super) fn part(&self, number: usize) -> Option<Vec<(Print, UnixMillis)>> {
        let slots = self.chunks.get(number)?.iter().enumerate();
        // A slot that was given up is in no index, whatever its print still says.
        let live =
            slots.filter(|(at, slot)| self.find(&slot.print).is_some_and(|id| id as usize == number * CHUNK + at));
        Some(live.map(|(_, slot)| (slot.print, slot.until())).collect())
    }

    /// One step of giving up what has expired; false when no queue is over. A queue is over when all that belongs in
    /// it has expired, so an entry may outstay its time by a second; whoever asks compares `until` itself.
    pub(super) fn reclaim_one(&mut self, now: UnixMillis) -> bool {
        match self.due.first_key_value() {
            Some((&queue, _)) if queue < now.0 >> QUEUE_SHIFT => {
                self.step();
                true
            }
            _ => false,
        }
    }

    /// Gives up the entry that would expire first (within one queue: the one that came first).
    pub(super) fn pop_soonest(&mut self) {
        let before = self.len;
        while self.len == before && before > 0 {
            self.step();
        }
    }

    /// Takes the first slot of the first queue: removes it, or moves it to the queue it belongs in by now.
    fn step(&mut self) {
        let Some(mut first) = self.due.first_entry() else {
            return;
        };
        let queue = *first.key();
        let (id, last) = *first.get();
        if id == last {
            first.remove();
        } else {
            first.get_mut().0 = self.chunks[id as usize / CHUNK][id as usize % CHUNK].next;
        }
        if self.slot(id).queue() > queue {
            self.slot_mut(id).next = NONE;
            self.enqueue(id);
        } else {
            self.unindex(id);
            self.slot_mut(id).next = self.free;
            self.free = id;
            self.len -= 1;
            // After a peak has passed its memory is given back; a shelf in steady use never gets here.
            if self.len == 0 && self.chunks.len() > 1 {
                *self = Self::default();
            }
        }
    }

    fn enqueue(&mut self, id: u32) {
        let queue = self.slot(id).queue();
        match self.due.get_mut(&queue) {
            Some((_, last)) => {
                let before = std::mem::replace(last, id);
                self.slot_mut(before).next = id;
            }
            None => {
                self.due.insert(queue, (id, id));
            }
        }
    }

    fn allocate(&mut self, slot: Slot) -> u32 {
        if self.free != NONE {
            let id = self.free;
            self.free = self.slot(id).next;
            *self.slot_mut(id) = slot;
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            let room = if self.chunks.is_empty() { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        let full = (self.chunks.len() - 1) * CHUNK;
        let chunk = self.chunks.last_mut().expect("a chunk was just seen or pushed");
        chunk.push(slot);
        u32::try_from(full + chunk.len() - 1).expect("the table keeps a shelf under MAX_ENTRIES")
    }

    fn slot(&self, id: u32) -> &Slot {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    fn slot_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    /// Which part of the index a print is in, and what its place there holds of its hash.
    fn home(&self, print: &Print) -> (usize, u32) {
        let hash = self.hasher.hash_one(print);
        // No part has so many places that the bits which choose one reach those that choose the part.
        ((hash >> 58) as usize, hash as u32)
    }

    fn find(&self, print: &Print) -> Option<u32> {
        let (part, hash) = self.home(print);
        let places = &self.parts[part].places;
        let mask = places.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let place = places[at];
            if place.id == NONE {
                return None;
            }
            if place.hash == hash && self.slot(place.id).print == *print {
                return Some(place.id);
            }
            at = (at + 1) & mask;
        }
    }

    fn index(&mut self, id: u32) {
        let (part, hash) = self.home(&self.slot(id).print);
        let part = &mut self.parts[part];
        if part.used * 4 >= part.places.len() * 3 {
            let wider = (part.places.len() * 2).max(8);
            let old = std::mem::replace(&mut part.places, vec![EMPTY; wider]);
            old.into_iter().filter(|place| place.id != NONE).for_each(|place| part.place(place));
        }
        part.place(Place { id, hash });
        part.used += 1;
    }

    fn unindex(&mut self, id: u32) {
        let (part, hash) = self.home(&self.slot(id).print);
        let Part { places, used } = &mut self.parts[part];
        let mask = places.len() - 1;
        let mut hole = hash as usize & mask;
        while places[hole].id != id {
            hole = (hole + 1) & mask;
        }
        // Whatever was pushed past the hole moves back into it, so that no search stops short at the hole.
        let mut at = (hole + 1) & mask;
        while places[at].id != NONE {
            if at.wrapping_sub(places[at].hash as usize) & mask >= at.wrapping_sub(hole) & mask {
                places[hole] = places[at];
                hole = at;
            }
            at = (at + 1) & mask;
        }
        places[hole] = EMPTY;
        *used -= 1;
    }
}

impl Slot {
    fn until(&self) -> UnixMillis {
        UnixMillis(u64::from_ne_bytes(self.until))
    }

    fn queue(&self) -> u64 {
        self.until().0 >> QUEUE_SHIFT
    }
}

impl Part {
    fn place(&mut self, place: Place) {
        let mask = self.places.len() - 1;
        let mut at = place.hash as usize & mask;
        while self.places[at].id != NONE {
            at = (at + 1) & mask;
        }
        self.places[at] = place;
    }
}

#[cfg(test)]
impl Shelf {
    fn bytes(&self) -> usize {
        let slots: usize = self.chunks.iter().map(|chunk| chunk.capacity() * size_of::<Slot>()).sum();
        let index: usize = self.parts.iter().map(|part| part.places.capacity() * size_of::<Place>()).sum();
        // A B-tree's nodes are at least half full.
        slots + index + self.due.len() * 2 * size_of::<(u64, (u32, u32))>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn print(n: u64) -> Print {
        let mut print = [0; 16];
        print[..8].copy_from_slice(&n.to_le_bytes());
        print
    }

    #[test]
    fn a_million_entries_over_a_day_stay_under_the_bytes_we_promise() {
        let mut shelf = Shelf::default();
        for n in 0..1_000_000 {
            shelf.put(print(n), UnixMillis(n * 86));
            if n % 10_000 == 9_999 {
                let promised = shelf.len() * crate::state::BYTES_PER_CLAIM;
                // The queues of a day are a fixed cost of 4 MB at most, whatever the number of entries.
                let queues = shelf.due.len() * 2 * size_of::<(u64, (u32, u32))>();
                assert!(shelf.bytes() <= promised + queues, "{} entries take {}", shelf.len(), shelf.bytes());
            }
        }
        assert_eq!(shelf.len(), 1_000_000);
        assert!(shelf.bytes() < 54_000_000, "{}", shelf.bytes());
    }

    #[test]
    fn entries_that_come_and_expire_take_no_more_room_than_those_alive_at_once() {
        let mut shelf = Shelf::default();
        let mut peak = 0;
        for n in 0..200_000_u64 {
            let now = UnixMillis(n * 10);
            shelf.put(print(n), UnixMillis(now.0 + 60_000));
            shelf.reclaim_one(now);
            shelf.reclaim_one(now);
            peak = peak.max(shelf.len());
        }
        assert!((6_000..6_300).contains(&peak), "{peak}");
        assert!(shelf.chunks.len() <= 7, "{}", shelf.chunks.len());
    }

    #[test]
    fn a_shelf_of_few_entries_is_small() {
        let mut shelf = Shelf::default();
        (0..16).for_each(|n| shelf.put(print(n), UnixMillis(5_000)));
        assert!(shelf.bytes() < 2_500, "{}", shelf.bytes());
    }

    #[test]
    fn a_peak_gives_its_memory_back() {
        let mut shelf = Shelf::default();
        (0..100_000).for_each(|n| shelf.put(print(n), UnixMillis(5_000)));
        while shelf.reclaim_one(UnixMillis(10_000)) {}
        assert_eq!((shelf.len(), shelf.bytes()), (0, 0));
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0..5_u8, 0..40_u64, 0..20_000_u64), 1..400)) {
            let mut shelf = Shelf::default();
            let mut model = BTreeMap::<Print, u64>::new();
            for (what, key, time) in steps {
                match what {
                    0..3 => {
                        shelf.put(print(key), UnixMillis(time));
                        let until = model.entry(print(key)).or_default();
                        *until = time.max(*until);
                    }
                    3 => {
                        while shelf.reclaim_one(UnixMillis(time)) {}
                        model.retain(|_, until| *until >> QUEUE_SHIFT >= time >> QUEUE_SHIFT);
                    }
                    _ => {
                        shelf.pop_soonest();
                        let soonest = model.values().min().map(|until| until >> QUEUE_SHIFT);
                        let gone = model.iter().find(|(print, _)| shelf.until(print).is_none()).map(|(p, u)| (*p, *u));
                        prop_assert_eq!(gone.map(|(_, until)| until >> QUEUE_SHIFT), soonest);
                        if let Some((print, _)) = gone { model.remove(&print); }
                    }
                }
                prop_assert_eq!(shelf.len(), model.len());
                for key in 0..40 {
                    prop_assert_eq!(shelf.until(&print(key)), model.get(&print(key)).map(|&until| UnixMillis(until)));
                }
            }
        }
    }
}
