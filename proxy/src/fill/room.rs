//! Room of a fill: its place among the fills of its upstream, which it leaves to others once no client waits for it.

use parking_lot::Mutex;
use piecemeal_upstream::Place;

/// The place of one fill.
pub(super) struct Room(Mutex<Held>);

struct Held {
    place: Place,
    /// The place is one of those for fills that no client waits for.
    is_unattended: bool,
}

impl Room {
    pub(super) fn new(place: Place) -> Self {
        Self(Mutex::new(Held {
            place,
            is_unattended: false,
        }))
    }

    /// No client waits for the fill: it takes the place that `take` gives, if any, and leaves its own.
    pub(super) fn leave(&self, take: impl FnOnce() -> Option<Place>) {
        let mut held = self.0.lock();
        if !held.is_unattended
            && let Some(place) = take()
        {
            (held.place, held.is_unattended) = (place, true);
        }
    }
}
