//! Reactions of the scheduler and of honest daemons to forgers, and the checks on them.

use piecemeal_scheduler::brain::Event;

use crate::{
    link::{Nanos, SECOND},
    node::{digest, genuine, hash},
    plan::MIRROR,
    world::World,
};

/// From a mirror's word to the last honest daemon's dropping of what differs: a question, its answer and an order, each a hop, and
/// a second between two questions.
const DROPPED_WITHIN: Nanos = 3 * SECOND;

impl World {
    /// The mirror's word has reached the scheduler.
    pub(crate) fn note_spoken(&mut self, event: &Event) {
        let Event::Have {
            member,
            digest: of,
            first,
            hashes,
            ..
        } = event
        else {
            return;
        };
        if self.members.get(member) != Some(&MIRROR) {
            return;
        }
        let Some(blob) = (0..self.plan.blobs).find(|&blob| digest(blob) == *of) else {
            return;
        };
        for (piece, stated) in (*first as usize..).zip(hashes) {
            if *stated == Some(hash(genuine(blob, u32::try_from(piece).expect("a small number")))) {
                self.spoken[blob][piece].get_or_insert(self.now);
            }
        }
    }

    /// The mirror's word is so new that a piece that was asked for before may still come.
    pub(crate) fn is_news(&self, node: usize, blob: usize, piece: u32) -> bool {
        let spoken = self.spoken[blob][piece as usize];
        let since = spoken.map(|at| at.max(self.nodes[node].connected_at));
        since.is_none_or(|since| self.now < since + DROPPED_WITHIN)
    }

    /// Some time after the mirror has spoken no honest daemon that is connected holds a piece that is another.
    pub(crate) fn check_held(&self, node: usize, blob: usize) {
        let holding = &self.nodes[node].blobs[blob];
        if self.plan.revoked_at.is_some() || self.nodes[node].mirror {
            return;
        }
        for piece in holding.have.iter() {
            assert!(
                holding.content[piece as usize] == genuine(blob, piece) || self.is_news(node, blob, piece),
                "seed {}: node {node} keeps a forged piece {piece}",
                self.plan.seed
            );
        }
    }
}
