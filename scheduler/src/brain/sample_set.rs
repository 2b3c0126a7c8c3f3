//!
//! Set of indexes that can be sampled in constant time.
//!
//! Invariant: equal histories give equal lists.

/// An unordered list, with the place of each index in it.
#[derive(Default)]
pub(super) struct SampleSet {
    list: Vec<u32>,
    /// Place in `list` by index; [`ABSENT`] when it is not there.
    places: Vec<u32>,
}

impl SampleSet {
    pub(super) fn as_slice(&self) -> &[u32] {
        &self.list
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.places.get(index as usize).is_some_and(|&place| place != ABSENT)
    }

    /// Puts `index` in or takes it out.
    pub(super) fn set(&mut self, index: u32, present: bool) {
        let at = index as usize;
        if present == self.contains(index) {
            return;
        }
        if present {
            if self.places.len() <= at {
                self.places.resize(at + 1, ABSENT);
            }
            self.places[at] = u32::try_from(self.list.len()).expect("indexes are u32");
            self.list.push(index);
        } else {
            let place = std::mem::replace(&mut self.places[at], ABSENT);
            self.list.swap_remove(place as usize);
            if let Some(&moved) = self.list.get(place as usize) {
                self.places[moved as usize] = place;
            }
        }
    }
}

const ABSENT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_its_places_when_indexes_move() {
        let mut set = SampleSet::default();
        for index in [3, 1, 7] {
            set.set(index, true);
            set.set(index, true);
        }
        set.set(3, false);
        assert_eq!(set.as_slice(), [7, 1]);
        set.set(7, false);
        set.set(99, false);
        assert!(set.contains(1) && !set.contains(7) && !set.contains(99));
        assert_eq!(set.len(), 1);
    }
}
