//! Swarm member: one member's pieces, leases and wants in one swarm.
//!
//! Invariant: for a receiver every piece is in exactly one state: `have`, `leased`, or neither, which is missing.

use std::ops::Range;

use piecemeal_proto::{PieceSet, wire::WAITING_MAX};

use super::{Time, backoff::Backoff};

#[derive(Default)]
pub(super) struct SwarmMember {
    /// The member's slot in the brain.
    pub(super) slot: u32,
    pub(super) mirror: bool,
    /// Hash of the zone, equal for members of one zone.
    pub(super) zone: u64,
    pub(super) wants: bool,
    /// It holds the whole verified blob; `have` and `leased` are empty sets over no pieces then.
    pub(super) complete: bool,
    /// It sent other bytes than it claimed: it may still fetch, but for as long as it is connected its claims are void.
    pub(super) banned: bool,
    /// It holds the whole blob and stated other hashes than a mirror whose download is not proven yet: its claims are void
    /// until the bytes are proven.
    pub(super) disputed: bool,
    /// While it is active, the member is not asked for hashes of its own: its claims were doubted, or it did not answer.
    pub(super) claim_backoff: Backoff,
    pub(super) have: PieceSet,
    /// Pieces of `have` that it brought along and has not stated the hash of: not offered until their hashes are compared.
    /// Empty: none.
    pub(super) unproven: PieceSet,
    /// When it was last asked for the hashes of `unproven`.
    pub(super) asked_at: Option<Time>,
    pub(super) leased: PieceSet,
    /// The pieces that it has room for; `None`: all.
    pub(super) window: Option<Range<u32>>,
    /// Leases to it in this swarm.
    pub(super) leases: u32,
    /// Pieces that it had plus pieces that it was leased. Claims to have less never lower it, so they gain nothing.
    pub(super) taken: u32,
    /// When it last got a lease; before the first, when it began to want the blob.
    pub(super) fed_at: Time,
    /// Leases stolen from its sources, less those that came through. The next lease gets twice the time for each.
    pub(super) stolen: u32,
    /// A piece of its leases in this swarm has landed.
    pub(super) landed: bool,
    /// The member had landed pieces of other blobs when it began to want this one.
    pub(super) is_known: bool,
    /// It was leased pieces in this swarm and has never landed any, although it had the time.
    pub(super) idle: bool,
    /// It wants the blob, and no client of its own is connected that waits for it.
    pub(super) is_absent: bool,
    /// The missing pieces that connected clients wait for, the latest last; at most [`WAITING_MAX`].
    pub(super) waiting: Vec<u32>,
    /// While it is active, the member is not chosen to fetch from upstream: its fetches failed.
    pub(super) upstream_backoff: Backoff,
    /// Pieces that its bitmaps count for in the member's budget.
    pub(super) reserved: u64,
}

impl SwarmMember {
    /// Another fill of `pieces` pieces is in force, of which the member has none yet.
    pub(super) fn begin_fill(&mut self, pieces: u32) {
        self.have = PieceSet::new(pieces);
        self.unproven = PieceSet::default();
        self.leased = PieceSet::new(pieces);
        self.taken = 0;
        self.waiting.clear();
    }

    /// A connected client waits for the piece.
    pub(super) fn note_waiting(&mut self, piece: u32) {
        self.waiting.retain(|&other| other != piece);
        if self.waiting.len() == WAITING_MAX {
            self.waiting.remove(0);
        }
        self.waiting.push(piece);
    }

    /// Whether it holds the piece and may serve it.
    pub(super) fn holds(&self, piece: u32) -> bool {
        self.complete || self.have.contains(piece) && !self.unproven.contains(piece)
    }

    pub(super) fn lacks(&self, piece: u32) -> bool {
        let has_room = self.window.as_ref().is_none_or(|window| window.contains(&piece));
        has_room && !self.complete && !self.have.contains(piece) && !self.leased.contains(piece)
    }

    /// The pieces that it may serve, as a bitmap word.
    pub(super) fn held_word(&self, word: usize) -> u64 {
        if self.complete {
            return !0;
        }
        let held = self.have.words().get(word).copied().unwrap_or(0);
        held & !self.unproven.words().get(word).copied().unwrap_or(0)
    }

    /// The pieces that it is missing, as a bitmap word; bits beyond the last piece are set.
    pub(super) fn missing_word(&self, word: usize) -> u64 {
        if self.complete {
            return 0;
        }
        match (self.have.words().get(word), self.leased.words().get(word)) {
            (Some(have), Some(leased)) => !(have | leased) & self.window_word(word),
            _ => 0,
        }
    }

    /// The pieces that it has room for, as a bitmap word.
    fn window_word(&self, word: usize) -> u64 {
        let Some(window) = &self.window else {
            return !0;
        };
        let first = u64::try_from(word).unwrap_or(u64::MAX).saturating_mul(64);
        let below = |piece: u32| match u64::from(piece).saturating_sub(first) {
            bits @ 0..64 => (1 << bits) - 1,
            _ => !0_u64,
        };
        below(window.end) & !below(window.start)
    }

    /// Whether one of `pieces` pieces could be leased to it.
    pub(super) fn is_lacking(&self, pieces: u32) -> bool {
        match &self.window {
            None => self.accounted() < pieces,
            Some(window) => (window.start..window.end.min(pieces)).any(|piece| self.lacks(piece)),
        }
    }

    /// Pieces that it has or is being sent.
    pub(super) fn accounted(&self) -> u32 {
        self.have.count() + self.leased.count()
    }

    /// Whether its pieces are copies that rarity counts. A mirror's are not: a piece that only a mirror holds is still to be
    /// injected.
    pub(super) fn counts(&self) -> bool {
        !self.mirror && self.is_believed()
    }

    /// Whether its pieces may be offered.
    pub(super) fn is_believed(&self) -> bool {
        !self.banned && !self.disputed
    }

    /// Whether nothing is known of it that would be missed.
    pub(super) fn is_vacant(&self) -> bool {
        !self.wants && !self.complete && !self.banned && self.have.is_empty()
    }

    /// Its rank among receivers: the least complete first; a member without a lease for `aging` as if it held nothing.
    pub(super) fn rank(&self, pieces: u32, now: Time, aging: Time) -> u32 {
        let credit = millis(now.saturating_sub(self.fed_at)) * u64::from(pieces) / millis(aging).max(1);
        self.taken.saturating_sub(u32::try_from(credit).unwrap_or(u32::MAX))
    }
}

fn millis(time: Time) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}
