//! Pool: the members that can reach each other, and whether they have a mirror.
//!
//! Invariant: `mirrors` counts the connected mirrors that are not silent.

use super::Time;

/// The members of one site that can reach each other.
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) members: usize,
    /// Mirrors that are connected and not silent.
    pub(super) mirrors: usize,
    /// The slots of its mirrors, silent ones included.
    pub(super) mirror_slots: Vec<u32>,
    /// When a mirror last came or went.
    pub(super) mirrors_changed: Time,
    /// When a mirror last brought a new piece, or a new hash, of any blob.
    pub(super) progress_at: Time,
    /// When the pool lost its last mirror, or a member first wanted a blob without one; `None` while there is a mirror.
    pub(super) lost_since: Option<Time>,
}

impl Pool {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            members: 0,
            mirrors: 0,
            mirror_slots: Vec::new(),
            mirrors_changed: Time::ZERO,
            progress_at: Time::ZERO,
            lost_since: None,
        }
    }

    /// A mirror came (back).
    pub(super) fn gain_mirror(&mut self, now: Time) {
        self.mirrors += 1;
        self.mirrors_changed = now;
        self.lost_since = None;
    }

    /// A mirror left or fell silent.
    pub(super) fn lose_mirror(&mut self, now: Time) {
        self.mirrors -= 1;
        self.mirrors_changed = now;
        self.miss_mirror(now);
    }

    /// Starts the grace if there is no mirror and the grace has not started yet.
    pub(super) fn miss_mirror(&mut self, now: Time) {
        if self.mirrors == 0 {
            self.lost_since.get_or_insert(now);
        }
    }

    /// Whether there has been no mirror for longer than streams wait for one.
    pub(super) fn is_on_its_own(&self, now: Time, grace: Time) -> bool {
        self.lost_since.is_some_and(|since| now >= since + grace)
    }
}
