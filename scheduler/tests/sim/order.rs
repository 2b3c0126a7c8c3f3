//! What daemons do when the scheduler tells them something, and what they state of their pieces.

use piecemeal_peer::download::Order;
use piecemeal_proto::{Digest, PieceSet};
use piecemeal_scheduler::brain::{Command, Event, Lease, MemberId, Outcome};

use crate::{
    download::FROZEN_DELAY,
    node::{digest, hash, signed_list},
    world::{Happening, World},
};

impl World {
    /// A message reaches the daemon that it was sent to.
    pub(crate) fn told(&mut self, node: usize, member: MemberId, command: Command) {
        if self.nodes[node].member != Some(member) {
        } else if self.nodes[node].frozen {
            let later = self.now + FROZEN_DELAY;
            self.at(later, Happening::Told { node, member, command });
        } else {
            self.obey(node, command);
        }
    }

    /// As a peer's dispatch of its session's events: each order goes to the download that it is about.
    fn obey(&mut self, node: usize, command: Command) {
        match command {
            Command::Lease { lease, .. } => self.take_lease(node, lease),
            Command::Cancel { lease, .. } => {
                for blob in 0..self.plan.blobs {
                    self.order(node, blob, Order::Cancel(lease.0));
                }
            }
            Command::Revoked { digest, fill, .. } => {
                self.order(node, self.blob(digest), Order::Revoked(fill.0));
            }
            Command::Drop {
                digest, fill, pieces, ..
            } => {
                let (fill, pieces) = (fill.0, pieces.to_vec());
                self.order(node, self.blob(digest), Order::Drop { fill, pieces });
            }
            Command::PieceHashes { list, .. } => {
                let blob = self.blob(*list.digest());
                if !self.order(node, blob, Order::PieceHashes(list.clone())) && self.nodes[node].blobs[blob].complete {
                    self.nodes[node].blobs[blob].list = Some(list);
                }
            }
            Command::Describe { digest, .. } => self.describe(node, self.blob(digest)),
            Command::Clients { digest, waiting, .. } => {
                let blob = self.blob(digest);
                self.waits_elsewhere
                    .extend(waiting.into_iter().map(|piece| (blob, piece)));
            }
        }
    }

    fn take_lease(&mut self, node: usize, lease: Lease) {
        let blob = self.blob(lease.digest);
        if self.nodes[node].forger {
            self.end_lease(node, lease.id, Outcome::Done);
        } else if self.nodes[node].idle {
            self.idle(node, blob, &lease);
        } else {
            self.order_lease(node, blob, lease);
        }
    }

    fn describe(&mut self, node: usize, blob: usize) {
        let state = &self.nodes[node];
        let holding = &state.blobs[blob];
        let proven = (state.mirror && holding.complete).then(|| signed_list(blob, self.map));
        if let (Some(list), Some(member)) = (holding.list.clone().or(proven), state.member) {
            self.say(node, Event::PieceHashes { member, list });
        }
        let have = self.nodes[node].blobs[blob].have.clone();
        self.tell_pieces(node, blob, &have);
    }

    pub(crate) fn tell_piece(&mut self, node: usize, blob: usize, piece: u32) {
        let mut pieces = PieceSet::new(self.map.count());
        pieces.insert(piece);
        self.tell_pieces(node, blob, &pieces);
    }

    /// `Have` for runs of the pieces, with their hashes.
    pub(crate) fn tell_pieces(&mut self, node: usize, blob: usize, pieces: &PieceSet) {
        let Some(member) = self.nodes[node].member else {
            return;
        };
        let pieces: Vec<u32> = pieces.iter().collect();
        for run in pieces.chunk_by(|a, b| a + 1 == *b) {
            let holding = &self.nodes[node].blobs[blob];
            let hashes = run.iter().map(|&piece| Some(hash(holding.content[piece as usize])));
            let event = Event::Have {
                member,
                digest: digest(blob),
                map: self.map,
                fill: holding.fill,
                first: run[0],
                hashes: hashes.collect(),
            };
            self.say(node, event);
        }
    }

    pub(crate) fn blob(&self, of: Digest) -> usize {
        (0..self.plan.blobs)
            .find(|&blob| digest(blob) == of)
            .expect("only known blobs")
    }
}
