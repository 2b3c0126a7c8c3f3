//! The mirror's fills, and once in a while a bad one.

use piecemeal_proto::FillId;
use piecemeal_scheduler::brain::Event;

use crate::{
    node::{genuine, signed_list},
    plan::MIRROR,
    world::World,
};

impl World {
    /// The mirror fetches what is missing of all blobs.
    pub(crate) fn fill_on(&mut self) {
        self.drop_fills(MIRROR);
        (0..self.plan.blobs).for_each(|blob| self.fill_blob(blob));
    }

    pub(crate) fn fill_blob(&mut self, blob: usize) {
        let have = &self.nodes[MIRROR].blobs[blob].have;
        if !have.is_full() {
            let missing = have.missing().collect();
            self.fill(MIRROR, blob, missing, None);
        }
    }

    /// A piece has arrived from upstream.
    pub(crate) fn filled(&mut self, blob: usize, piece: u32) {
        let is_bad = self.fill.0 % 2 == 1;
        let holding = &mut self.nodes[MIRROR].blobs[blob];
        holding.store(piece, genuine(blob, piece) ^ u64::from(is_bad) << 50, self.now);
        let (count, is_full) = (holding.have.count(), holding.have.is_full());
        self.upstream_pieces += 1;
        if is_bad && self.plan.revoked_at.is_some_and(|at| count > at || is_full) {
            return self.revoke();
        }
        self.tell_piece(MIRROR, blob, piece);
        self.answer_awaited(blob, piece);
    }

    /// The blob is here, and proven.
    pub(crate) fn filled_all(&mut self, blob: usize) {
        let fill = self.fill;
        self.nodes[MIRROR].blobs[blob].complete = true;
        self.say_of(MIRROR, blob, |member, digest| Event::Proven { member, digest, fill });
        self.say_of(MIRROR, blob, |member, digest| Event::Complete { member, digest });
        let list = signed_list(blob, self.map);
        self.say_of(MIRROR, blob, |member, _| Event::PieceHashes { member, list });
    }

    /// The mirror finds its fill to be bad, and begins another.
    fn revoke(&mut self) {
        let fill = self.fill;
        self.fill = FillId(fill.0 + 1);
        for blob in 0..self.plan.blobs {
            self.nodes[MIRROR].blobs[blob].restart(self.fill);
            self.say_of(MIRROR, blob, |member, digest| Event::Revoke { member, digest, fill });
        }
        self.refuse_awaited();
        self.fill_on();
    }
}
