//! Passage of an unstored fill's pieces through its window.
//!
//! A piece goes once it is hashed into the digest, every reader has passed it, and a writer needs its room. A fill that is stored has no
//! window, and nothing here changes it.

use std::{io, ops::Range, time::Duration};

use bytes::Bytes;

use super::{
    fill::Fill,
    window::{Position, Window},
};
use crate::disk::files::OpenFile as _;

impl Fill {
    /// The pieces that an unstored fill would have room for.
    pub(crate) fn window(&self) -> Option<Range<u32>> {
        let state = self.state.lock();
        let range = state.window.as_ref()?.room(state.hashed);
        let count = self.map().count();
        Some(range.start.min(count)..range.end.min(count))
    }

    /// Whether an unstored fill has let `piece` go already.
    pub(crate) fn has_passed(&self, piece: u32) -> bool {
        let state = self.state.lock();
        let window = state.window.as_ref();
        window.is_some_and(|window| window.position(piece) == Position::Passed)
    }

    /// A stored fill counts as read.
    pub(crate) fn has_readers(&self) -> bool {
        self.state.lock().window.as_ref().is_none_or(Window::has_readers)
    }

    /// A writer has a piece for which there is no room yet: lets go of the pieces that may go. On a blocking thread.
    pub(crate) fn make_way(&self, piece: u32, now: Duration) -> io::Result<()> {
        if let Some(window) = &mut self.state.lock().window {
            window.want(piece);
        }
        self.catch_up(None, now)
    }

    /// Hashes all that continues the prefix, and lets the window move. On a blocking thread.
    pub(crate) fn catch_up(&self, fresh: Option<(u32, &Bytes)>, now: Duration) -> io::Result<()> {
        let result = self.hash_all(fresh);
        self.slide(now);
        // The room has grown, whether or not anything had to go for it.
        self.changed();
        result
    }

    /// A reader of an unstored fill is at `piece`; `None` when that has passed.
    pub(crate) fn sit(&self, piece: u32, now: Duration) -> Option<u64> {
        let seat = self.state.lock().window.as_mut()?.sit(piece, now);
        self.slide(now);
        seat
    }

    pub(crate) fn move_to(&self, seat: u64, piece: u32, now: Duration) -> bool {
        let moved = match &mut self.state.lock().window {
            Some(window) => window.move_to(seat, piece, now),
            None => true,
        };
        self.slide(now);
        moved
    }

    pub(crate) fn leave(&self, seat: u64, now: Duration) {
        if let Some(window) = &mut self.state.lock().window {
            window.leave(seat);
        }
        self.slide(now);
        // Wakes tasks that act on an unstored fill without readers.
        self.changed();
    }

    fn slide(&self, now: Duration) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(window) = &mut state.window else {
            return;
        };
        let gone = window.slide(state.hashed, now);
        if gone.is_empty() {
            return;
        }
        let stays = |piece| state.on_disk.as_ref().is_some_and(|kept| kept.contains(piece));
        for piece in gone.filter(|&piece| !stays(piece)) {
            state.pieces.let_go(piece);
        }
        self.changed();
    }

    /// Frees the memory of pieces that have gone.
    pub(crate) fn free_gone(&self) {
        let gone = self.state.lock().window.as_mut().map(Window::take_gone);
        for piece in gone.into_iter().flatten() {
            self.file().forget(self.map().range(piece));
        }
    }
}
