//! Daemons start, connect, say what they have and want, sit at the end of a client's patience, and go.

use piecemeal_peer::download::Order;
use piecemeal_proto::{Digest, NodeId, PieceSet};
use piecemeal_scheduler::brain::{Event, Features, Member, MemberId, Role};

use crate::{
    download::Step,
    link::{Nanos, SECOND},
    node::{digest, forged, genuine, may_use_upstream},
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
        if !self.nodes[node].forger && !self.nodes[node].idle {
            (0..self.plan.blobs).for_each(|blob| self.open(now, node, blob));
        }
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
            may_use_upstream: may_use_upstream(&self.plan, node),
            features: Features {
                piece_hashes: true,
                drop: !node.is_multiple_of(4),
                clients: true,
            },
        };
        self.say(node, Event::Joined { member, info });
        for blob in 0..self.plan.blobs {
            self.introduce(node, blob);
        }
        self.come_up(node);
    }

    /// The scheduler speaks, or speaks again: each download says once more what it wants.
    pub(crate) fn come_up(&mut self, node: usize) {
        if self.nodes[node].member.is_some() && !self.nodes[node].frozen {
            (0..self.plan.blobs).for_each(|blob| _ = self.order(node, blob, Order::Up));
        }
    }

    pub(crate) fn disconnect(&mut self, node: usize) {
        if let Some(member) = self.nodes[node].member.take() {
            self.members.remove(&member);
            self.say(node, Event::Left { member });
        }
    }

    /// What a daemon says of a blob after it connects.
    fn introduce(&mut self, node: usize, blob: usize) {
        let state = &self.nodes[node];
        let holding = &state.blobs[blob];
        if state.forger {
            self.say_nothing_held(node, blob);
            if self.plan.forgers_are_complete {
                self.say_of(node, blob, |member, digest| Event::Complete { member, digest });
            }
            self.forge(node, blob);
        } else if holding.complete {
            self.say_of(node, blob, |member, digest| Event::Complete { member, digest });
        } else if state.idle {
            self.say_nothing_held(node, blob);
        } else if holding.download.is_some() || (state.mirror && !holding.have.is_empty()) {
            self.say_want(node, blob);
        }
    }

    /// Says something of a blob, if the node is connected.
    pub(crate) fn say_of(&mut self, node: usize, blob: usize, event: impl FnOnce(MemberId, Digest) -> Event) {
        if let Some(member) = self.nodes[node].member {
            self.say(node, event(member, digest(blob)));
        }
    }

    /// A member without a download wants the blob: it has the fill from the mirror, if that answers.
    fn say_nothing_held(&mut self, node: usize, blob: usize) {
        if self.mirror_answers() {
            self.nodes[node].blobs[blob].fill = self.fill;
        }
        self.say_want_of(node, blob, PieceSet::new(self.map.count()));
    }

    /// The scheduler refuses a want whose grant is old.
    pub(crate) fn say_want(&mut self, node: usize, blob: usize) {
        let download = &self.nodes[node].blobs[blob].download;
        if download.as_ref().is_some_and(|running| running.has_old_grant) {
            let at = self.now + self.hop() + self.hop();
            return self.step_later(at, (node, blob), Step::Refused);
        }
        let have = self.nodes[node].blobs[blob].have.clone();
        self.say_want_of(node, blob, have);
    }

    fn say_want_of(&mut self, node: usize, blob: usize, have: PieceSet) {
        let (map, fill, window) = (self.map, self.nodes[node].blobs[blob].fill, None);
        self.say_of(node, blob, |member, digest| Event::Want {
            member,
            digest,
            map,
            fill,
            have,
            window,
        });
    }

    /// A forger states the hashes of its own bytes, under the fill that the mirror names.
    fn forge(&mut self, node: usize, blob: usize) {
        self.nodes[node].blobs[blob].fill = self.fill;
        let all = PieceSet::full(self.map.count());
        self.tell_pieces(node, blob, &all);
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
            self.check_fed(node, blob, 5 * SECOND);
        }
    }

    /// A piece is asked for directly although the scheduler is there: its client has starved.
    pub(crate) fn check_rescue(&self, node: usize, blob: usize, piece: u32) {
        if self.nodes[node].member.is_some() && self.nodes[node].blobs[blob].prefix == piece {
            self.check_fed(node, blob, 3 * SECOND);
        }
    }

    /// No client waits for so long in a piece that the mirror has held for as long.
    fn check_fed(&self, node: usize, blob: usize, limit: Nanos) {
        let holding = &self.nodes[node].blobs[blob];
        let (piece, waited) = (holding.prefix, self.now - holding.fed_at);
        if self.plan.clients_are_fed && holding.wanted && waited >= limit {
            let mirror = &self.nodes[MIRROR].blobs[blob];
            let held = self.now - mirror.stored_at[piece as usize];
            let starves = mirror.have.contains(piece) && held.min(waited) >= limit;
            assert!(!starves, "seed {}: node {node} starves", self.plan.seed);
        }
    }
}
