//! The mirror's download from upstream: piece by piece, one blob after the other, and once in a while a bad one.

use piecemeal_proto::{FillId, PieceSet};
use piecemeal_scheduler::brain::{Event, MemberId};

use crate::{
    node::{digest, genuine, signed_list},
    plan::MIRROR,
    world::{Happening, World},
};

impl World {
    /// The mirror goes on with what it is filling.
    pub(crate) fn fill_on(&mut self) {
        let life = self.nodes[MIRROR].life;
        for blob in 0..self.plan.blobs {
            let missing = self.nodes[MIRROR].blobs[blob].have.missing().next();
            if let Some(piece) = missing {
                let at = self.wan.send(self.now, self.map.len(piece));
                return self.at(at, Happening::Filled { life, blob, piece });
            }
        }
    }

    pub(crate) fn filled(&mut self, life: u32, blob: usize, piece: u32) {
        let mirror = &mut self.nodes[MIRROR];
        if mirror.life != life || !mirror.running {
            return;
        }
        let bad = self.fill.0 % 2 == 1;
        let holding = &mut mirror.blobs[blob];
        holding.store(piece, genuine(blob, piece) ^ u64::from(bad) << 50, self.now);
        self.upstream_pieces += 1;
        if bad
            && self
                .plan
                .revoked_at
                .is_some_and(|at| holding.have.count() > at || holding.have.is_full())
        {
            return self.revoke();
        }
        let mut filled = PieceSet::new(self.map.count());
        filled.insert(piece);
        self.tell_pieces(MIRROR, blob, &filled);
        self.answer_awaited(blob, piece);
        if self.nodes[MIRROR].blobs[blob].have.is_full() {
            self.nodes[MIRROR].blobs[blob].complete = true;
            if let Some(member) = self.nodes[MIRROR].member {
                let (digest, fill) = (digest(blob), self.fill);
                self.say(MIRROR, Event::Proven { member, digest, fill });
                self.say(MIRROR, Event::Complete { member, digest });
                let list = signed_list(blob, self.map);
                self.say(MIRROR, Event::PieceHashes { member, list });
            }
        }
        self.fill_on();
    }

    /// The mirror finds its fill to be bad, and begins another.
    fn revoke(&mut self) {
        let bad = self.fill;
        self.fill = FillId(bad.0 + 1);
        let member: Option<MemberId> = self.nodes[MIRROR].member;
        for blob in 0..self.plan.blobs {
            self.nodes[MIRROR].blobs[blob].restart(self.fill);
            self.refuse_awaited();
            if let Some(member) = member {
                self.say(
                    MIRROR,
                    Event::Revoke {
                        member,
                        digest: digest(blob),
                        fill: bad,
                    },
                );
            }
        }
        self.fill_on();
    }
}
