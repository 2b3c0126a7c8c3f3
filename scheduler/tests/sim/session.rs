//! Daemons start, connect, say what they have and want, sit at the end of a client's patience, and go.

use piecemeal_proto::{FillId, NodeId, PieceSet};
use piecemeal_scheduler::brain::{Event, Features, Member, MemberId, Role};

use crate::{
    link::SECOND,
    node::{digest, forged, genuine},
    plan::MIRROR,
    world::{Happening, World},
};

impl World {
    pub(crate) fn start(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if state.running {
            return;
        }
        state.running = true;
        state.life += 1;
        let (life, now) = (state.life, self.now);
        state.up.reset(now);
        state.down.reset(now);
        for (index, blob) in state.blobs.iter_mut().enumerate() {
            if state.forger {
                for piece in 0..self.plan.pieces {
                    blob.store(piece, forged(index, piece), now);
                }
            }
            blob.wanted = !state.mirror && !blob.complete;
            blob.fed_at = now;
        }
        if node == MIRROR {
            self.fill_on();
        } else if self.plan.head_start && life == 1 {
            self.hand_out(node);
        }
        self.connect(node);
        self.at(now, Happening::Beat { node, life });
    }

    /// A random part is on the node's disk already.
    fn hand_out(&mut self, node: usize) {
        for blob in 0..self.plan.blobs {
            self.nodes[node].blobs[blob].fill = self.fill;
            for piece in 0..self.plan.pieces {
                if self.chance.happens(300) {
                    self.nodes[node].blobs[blob].store(piece, genuine(blob, piece), 0);
                }
            }
            let holding = &mut self.nodes[node].blobs[blob];
            if holding.have.is_full() {
                holding.have.remove(0);
                holding.prefix = 0;
            }
        }
    }

    pub(crate) fn connect(&mut self, node: usize) {
        let member = MemberId(self.members_ever);
        self.members_ever += 1;
        self.members.insert(member, node);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(node as u64).to_le_bytes());
        self.nodes[node].member = Some(member);
        self.nodes[node].connected_at = self.now;
        let info = Member {
            node: NodeId(id),
            signed: true,
            role: if node == MIRROR { Role::Mirror } else { Role::Peer },
            pool: "site".into(),
            zone: format!("rack {}", node % 2),
            may_use_upstream: !node.is_multiple_of(3) || self.plan.peers < 3,
            features: Features {
                piece_hashes: true,
                drop: !node.is_multiple_of(4),
            },
        };
        self.say(node, Event::Joined { member, info });
        for blob in 0..self.plan.blobs {
            self.introduce(node, blob);
        }
    }

    pub(crate) fn disconnect(&mut self, node: usize) {
        self.nodes[node].fetches.clear();
        if let Some(member) = self.nodes[node].member.take() {
            self.members.remove(&member);
            self.say(node, Event::Left { member });
        }
    }

    /// What a daemon says of a blob after it connects.
    fn introduce(&mut self, node: usize, blob: usize) {
        let fill = self.fill_that(node, blob);
        let state = &self.nodes[node];
        let (holding, digest) = (&state.blobs[blob], digest(blob));
        let member = state.member.expect("it has just connected");
        if state.forger {
            let have = PieceSet::new(self.map.count());
            self.say_want(node, blob, fill, have);
            if self.plan.forgers_are_complete {
                self.say(node, Event::Complete { member, digest });
            }
            self.forge(node, blob);
        } else if holding.complete {
            self.say(node, Event::Complete { member, digest });
        } else if holding.wanted || (state.mirror && !holding.have.is_empty()) {
            let have = holding.have.clone();
            self.say_want(node, blob, fill, have);
        }
    }

    pub(crate) fn say_want(&mut self, node: usize, blob: usize, fill: FillId, have: PieceSet) {
        let Some(member) = self.nodes[node].member else {
            return;
        };
        let event = Event::Want {
            member,
            digest: digest(blob),
            map: self.map,
            fill,
            have,
            window: None,
        };
        self.say(node, event);
    }

    /// A forger states the hashes of its own bytes, under the fill that the mirror names.
    fn forge(&mut self, node: usize, blob: usize) {
        self.nodes[node].blobs[blob].fill = self.fill;
        let all = PieceSet::full(self.map.count());
        self.tell_pieces(node, blob, &all);
    }

    /// The fill that a node speaks of: its own, or the one that the mirror's answer named.
    pub(crate) fn fill_that(&mut self, node: usize, blob: usize) -> FillId {
        let mirror_answers = self.nodes[MIRROR].running && !self.nodes[MIRROR].frozen;
        let (fill, holding) = (self.fill, &mut self.nodes[node].blobs[blob]);
        if mirror_answers && holding.have.is_empty() && !holding.complete {
            holding.fill = fill;
        }
        holding.fill
    }

    /// A heartbeat, and what the node's clients wait for.
    pub(crate) fn beat(&mut self, node: usize, life: u32) {
        if self.nodes[node].life != life || !self.nodes[node].running {
            return;
        }
        self.at(self.now + SECOND / 2, Happening::Beat { node, life });
        let Some(member) = self.nodes[node].member.filter(|_| !self.nodes[node].frozen) else {
            return;
        };
        self.say(node, Event::Heard { member });
        for blob in 0..self.plan.blobs {
            if self.nodes[node].forger {
                self.forge(node, blob);
                continue;
            }
            self.check_held(node, blob);
            let holding = &self.nodes[node].blobs[blob];
            let (piece, waited) = (holding.prefix, self.now - holding.fed_at);
            if holding.wanted && waited >= SECOND {
                if self.plan.clients_are_fed {
                    let mirror = &self.nodes[MIRROR].blobs[blob];
                    let held = self.now - mirror.stored_at[piece as usize];
                    let starves = mirror.have.contains(piece) && held.min(waited) >= 5 * SECOND;
                    assert!(!starves, "seed {}: node {node} starves", self.plan.seed);
                }
                self.say(
                    node,
                    Event::Waiting {
                        member,
                        digest: digest(blob),
                        piece,
                    },
                );
            }
        }
    }
}
