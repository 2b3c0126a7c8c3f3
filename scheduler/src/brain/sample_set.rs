//! A set of seat numbers that can be sampled in constant time.

/// An unordered list with each number's place in it; equal histories give equal lists.
#[derive(Default)]
pub(super) struct SampleSet {
    list: Vec<u32>,
    /// Place in `list` by seat; [`ABSENT`] when it is not there.
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

    pub(super) fn contains(&self, seat: u32) -> bool {
        self.places.get(seat as usize).is_some_and(|&place| place != ABSENT)
    }

    /// Puts `seat` in or takes it out.
    pub(super) fn set(&mut self, seat: u32, present: bool) {
        let index = seat as usize;
        if present == self.contains(seat) {
            return;
        }
        if present {
            if self.places.len() <= index {
                self.places.resize(index + 1, ABSENT);
            }
            self.places[index] = u32::try_from(self.list.len()).expect("seats are u32");
            self.list.push(seat);
        } else {
            let place = std::mem::replace(&mut self.places[index], ABSENT);
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
    fn a_roll_keeps_its_places_when_members_move() {
        let mut roll = SampleSet::default();
        for seat in [3, 1, 7] {
            roll.set(seat, true);
            roll.set(seat, true);
        }
        roll.set(3, false);
        assert_eq!(roll.as_slice(), [7, 1]);
        roll.set(7, false);
        roll.set(99, false);
        assert!(roll.contains(1) && !roll.contains(7) && !roll.contains(99));
        assert_eq!(roll.len(), 1);
    }
}
