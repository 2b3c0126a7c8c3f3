//! A member's place in one swarm.
//!
//! Invariant: of every piece a receiver is in exactly one state: `have`, `leased`, or neither, which is missing.

use std::ops::Range;

use piecemeal_proto::PieceSet;

use super::{Time, backoff::Backoff};

#[derive(Default)]
pub(super) struct SwarmMember {
    /// The member's slot.
    pub(super) slot: u32,
    pub(super) mirror: bool,
    /// Equal for members of one zone.
    pub(super) zone: u64,
    pub(super) wants: bool,
    /// Holds the whole verified blob; `have` and `leased` are empty sets over no pieces then.
    pub(super) complete: bool,
    /// Sent other bytes than it claimed: it may take, but its claims are void for as long as it is connected.
    pub(super) banned: bool,
    /// Holds the whole blob and stated other hashes than a mirror does whose download is not proven yet: likewise, until it is proven
    /// which of the two is wrong.
    pub(super) disputed: bool,
    /// What it stated is doubted, or it did not answer: for a while it is not asked for hashes on its own word.
    pub(super) claim_backoff: Backoff,
    pub(super) have: PieceSet,
    /// Of `have`, what it brought along and has not stated the hash of: not offered until that is compared. Empty: none.
    pub(super) unproven: PieceSet,
    /// When it was last asked to.
    pub(super) asked_at: Option<Time>,
    pub(super) leased: PieceSet,
    /// The pieces that it has room for, where that is not all.
    pub(super) window: Option<Range<u32>>,
    /// Leases out to it in this swarm.
    pub(super) leases: u32,
    /// What it had plus what it was leased. Claims to have less never lower it, so they gain nothing.
    pub(super) taken: u32,
    /// When it last got a lease; when it began to want, before the first.
    pub(super) fed_at: Time,
    /// Leases stolen from its sources, less those that came through: the next one gets twice the time for each.
    pub(super) stolen: u32,
    /// A piece that it was leased here has landed.
    pub(super) landed: bool,
    /// The member had landed pieces of other blobs when it began to want this one.
    pub(super) is_known: bool,
    /// It was leased pieces here, has never landed any, and had the time to.
    pub(super) idle: bool,
    /// The piece in which a connected client waits.
    pub(super) waiting: Option<u32>,
    /// Its fetches from upstream failed.
    pub(super) upstream_backoff: Backoff,
    /// What its bitmaps count for in the member's budget.
    pub(super) reserved: u64,
}

impl SwarmMember {
    /// Another fill of `pieces` pieces is in force, of which the member has none yet.
    pub(super) fn begin_fill(&mut self, pieces: u32) {
        self.have = PieceSet::new(pieces);
        self.unproven = PieceSet::default();
        self.leased = PieceSet::new(pieces);
        self.taken = 0;
        self.waiting = None;
    }

    /// It holds the piece and may give it.
    pub(super) fn holds(&self, piece: u32) -> bool {
        self.complete || self.have.contains(piece) && !self.unproven.contains(piece)
    }

    pub(super) fn lacks(&self, piece: u32) -> bool {
        let has_room = self.window.as_ref().is_none_or(|window| window.contains(&piece));
        has_room && !self.complete && !self.have.contains(piece) && !self.leased.contains(piece)
    }

    /// What it may give, as a bitmap word.
    pub(super) fn held_word(&self, word: usize) -> u64 {
        if self.complete {
            return !0;
        }
        let held = self.have.words().get(word).copied().unwrap_or(0);
        held & !self.unproven.words().get(word).copied().unwrap_or(0)
    }

    /// What it is missing, as a bitmap word; bits beyond the last piece are set.
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

    /// Whether there is a piece, of `pieces`, that it could be sent.
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

    /// Whether its pieces are copies that rarity counts. A mirror's are not: what only it holds is still to be injected.
    pub(super) fn counts(&self) -> bool {
        !self.mirror && self.is_believed()
    }

    /// Whether its pieces may be offered.
    pub(super) fn is_believed(&self) -> bool {
        !self.banned && !self.disputed
    }

    /// Nothing is known of it that would be missed.
    pub(super) fn is_vacant(&self) -> bool {
        !self.wants && !self.complete && !self.banned && self.have.is_empty()
    }

    /// How far down the queue it stands: least complete first, and a seat that got nothing for `aging` as if it held nothing.
    pub(super) fn rank(&self, pieces: u32, now: Time, aging: Time) -> u32 {
        let credit = millis(now.saturating_sub(self.fed_at)) * u64::from(pieces) / millis(aging).max(1);
        self.taken.saturating_sub(u32::try_from(credit).unwrap_or(u32::MAX))
    }
}

fn millis(time: Time) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}
