//! How daemons act: they work their leases off piece by piece, verify, report, and drop what is revoked.

use piecemeal_proto::{FillId, PieceSet};
use piecemeal_scheduler::brain::{Command, Event, Lease, LeaseId, Outcome, Source};

use crate::{
    link::{MILLISECOND, SECOND},
    node::{Fetch, digest, forged, genuine, hash, signed_list},
    plan::MIRROR,
    world::{Happening, World},
};

impl World {
    pub(crate) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Told { node, member, command } => {
                if self.nodes[node].member != Some(member) {
                } else if self.nodes[node].frozen {
                    let later = self.now + 50 * MILLISECOND;
                    self.at(later, Happening::Told { node, member, command });
                } else {
                    self.obey(node, command);
                }
            }
            Happening::Beat { node, life } => self.beat(node, life),
            Happening::Filled { life, blob, piece } => self.filled(life, blob, piece),
            Happening::Asked { by, lease, piece } => self.asked(by, lease, piece),
            Happening::Sent {
                to,
                lease,
                piece,
                content,
            } => {
                if let Some(fetch) = self.fetch(to, lease).filter(|fetch| fetch.next == piece) {
                    let from = fetch.source;
                    let gone = from.is_some_and(|(node, life)| self.nodes[node].life != life);
                    let lost = gone || self.chance.happens(self.plan.loss);
                    if lost {
                        self.nodes[to.0]
                            .fetches
                            .get_mut(&lease)
                            .expect("it is being worked off")
                            .lost = true;
                        return;
                    }
                    let bytes = self.map.len(piece);
                    let at = self.nodes[to.0].down.receive(self.now, bytes);
                    self.at(
                        at,
                        Happening::Landed {
                            to,
                            lease,
                            piece,
                            content,
                        },
                    );
                }
            }
            Happening::Landed {
                to,
                lease,
                piece,
                content,
            } => self.landed(to, lease, piece, content),
            Happening::Failed { to, lease, outcome } => {
                if self.fetch(to, lease).is_some() {
                    self.end(to.0, lease, outcome);
                }
            }
            Happening::Checked { by, lease, piece } => self.look(by, lease, piece),
            Happening::Said { .. } | Happening::Timer | Happening::Fault(_) | Happening::Connect { .. } => {
                unreachable!()
            }
        }
    }

    fn fetch(&self, (node, life): (usize, u32), lease: LeaseId) -> Option<&Fetch> {
        let state = &self.nodes[node];
        (state.life == life && state.running).then_some(())?;
        state.fetches.get(&lease)
    }

    fn obey(&mut self, node: usize, command: Command) {
        match command {
            Command::Lease { lease, .. } => self.take_lease(node, lease),
            Command::Cancel { lease, .. } => {
                self.nodes[node].fetches.remove(&lease);
            }
            Command::Revoked { digest, fill, .. } => {
                let blob = self.blob(digest);
                let state = &mut self.nodes[node];
                if !state.mirror && !state.forger && state.blobs[blob].fill == fill && !state.blobs[blob].complete {
                    state.blobs[blob].restart(FillId(0));
                    state.fetches.retain(|_, fetch| fetch.blob != blob);
                    // The download ends, and the client's next try begins it from the start.
                    if let Some(member) = state.member {
                        self.say(node, Event::Unwant { member, digest });
                        let fill = self.fill_that(node, blob);
                        self.say_want(node, blob, fill, PieceSet::new(self.map.count()));
                    }
                }
            }
            Command::Drop {
                digest, fill, pieces, ..
            } => self.drop_pieces(node, self.blob(digest), fill, &pieces),
            Command::PieceHashes { list, .. } => {
                let blob = self.blob(*list.digest());
                if !self.nodes[node].forger {
                    self.nodes[node].blobs[blob].list = Some(list);
                }
            }
            Command::Describe { digest, .. } => {
                let blob = self.blob(digest);
                let mirror = self.nodes[node].mirror && self.nodes[node].blobs[blob].complete;
                let list = self.nodes[node].blobs[blob].list.clone();
                let list = list.or_else(|| mirror.then(|| signed_list(blob, self.map)));
                if let (Some(list), Some(member)) = (list, self.nodes[node].member) {
                    self.say(node, Event::PieceHashes { member, list });
                }
                let have = self.nodes[node].blobs[blob].have.clone();
                self.tell_pieces(node, blob, &have);
            }
        }
    }

    fn blob(&self, of: piecemeal_proto::Digest) -> usize {
        (0..self.plan.blobs)
            .find(|&blob| digest(blob) == of)
            .expect("only known blobs")
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

    fn take_lease(&mut self, node: usize, lease: Lease) {
        let blob = self.blob(lease.digest);
        if self.nodes[node].forger {
            return self.end(node, lease.id, Outcome::Done);
        }
        if self.nodes[node].idle {
            return self.idle(node, blob, &lease);
        }
        let holding = &mut self.nodes[node].blobs[blob];
        if holding.complete {
            return self.end(node, lease.id, Outcome::Done);
        }
        if holding.fill != lease.fill {
            holding.restart(lease.fill);
        }
        let id = lease.id;
        let source = match lease.source {
            Source::Upstream => Ok(None),
            Source::Member(member) => match self.members.get(&member) {
                Some(&source) => Ok(Some((source, self.nodes[source].life))),
                None => Err(()),
            },
        };
        let fetch = Fetch {
            blob,
            next: lease.first,
            source: source.unwrap_or(None),
            lost: false,
            lease,
        };
        self.nodes[node].fetches.insert(id, fetch);
        match source {
            Ok(_) => self.advance(node, id),
            Err(()) => {
                let (at, to) = (self.now + self.hop(), (node, self.nodes[node].life));
                self.at(
                    at,
                    Happening::Failed {
                        to,
                        lease: id,
                        outcome: Outcome::Unreachable,
                    },
                );
            }
        }
    }

    /// Asks for the lease's next piece, or ends it.
    fn advance(&mut self, node: usize, id: LeaseId) {
        let by = (node, self.nodes[node].life);
        let state = &mut self.nodes[node];
        let fetch = state.fetches.get_mut(&id).expect("it is being worked off");
        let have = &state.blobs[fetch.blob].have;
        let end = fetch.lease.first + fetch.lease.count;
        while fetch.next < end && have.contains(fetch.next) {
            fetch.next += 1;
        }
        let (piece, source, blob) = (fetch.next, fetch.source, fetch.blob);
        if piece == end {
            return self.end(node, id, Outcome::Done);
        }
        let hop = self.hop();
        match source {
            Some(_) => self.at(self.now + hop, Happening::Asked { by, lease: id, piece }),
            None => {
                self.upstream_pieces += 1;
                let sent = self.wan.send(self.now, self.map.len(piece));
                let content = genuine(blob, piece);
                self.at(
                    sent + hop,
                    Happening::Sent {
                        to: by,
                        lease: id,
                        piece,
                        content,
                    },
                );
            }
        }
        self.at(self.now + SECOND, Happening::Checked { by, lease: id, piece });
    }

    /// A request is at its source.
    fn asked(&mut self, by: (usize, u32), lease: LeaseId, piece: u32) {
        let Some(fetch) = self.fetch(by, lease) else {
            return;
        };
        let (Some((source, life)), blob, fill) = (fetch.source, fetch.blob, fetch.lease.fill) else {
            return;
        };
        let state = &self.nodes[source];
        if !state.running || state.life != life {
            let at = self.now + self.hop();
            self.at(
                at,
                Happening::Failed {
                    to: by,
                    lease,
                    outcome: Outcome::Unreachable,
                },
            );
            return;
        }
        if state.frozen {
            self.nodes[by.0].fetches.get_mut(&lease).expect("it asked").lost = true;
            return;
        }
        let holding = &state.blobs[blob];
        if !holding.have.contains(piece) || (holding.fill != fill && !holding.complete) {
            let at = self.now + self.hop();
            self.at(
                at,
                Happening::Failed {
                    to: by,
                    lease,
                    outcome: Outcome::Missing { piece },
                },
            );
            return;
        }
        let lie = state.liar && self.chance.happens(500);
        let content = self.nodes[source].blobs[blob].content[piece as usize] ^ u64::from(lie);
        self.nodes[source].sent += 1;
        let summed = self.plan.summed && source != MIRROR;
        let state = &mut self.nodes[source];
        let link = if summed { &mut state.down } else { &mut state.up };
        let at = link.send(self.now, self.map.len(piece)) + self.hop();
        self.at(
            at,
            Happening::Sent {
                to: by,
                lease,
                piece,
                content,
            },
        );
    }

    fn landed(&mut self, to: (usize, u32), lease: LeaseId, piece: u32, content: u64) {
        let Some(fetch) = self.fetch(to, lease).filter(|fetch| fetch.next == piece) else {
            return;
        };
        if self.nodes[to.0].frozen {
            let later = self.now + 50 * MILLISECOND;
            return self.at(
                later,
                Happening::Landed {
                    to,
                    lease,
                    piece,
                    content,
                },
            );
        }
        let (blob, fill, upstream) = (fetch.blob, fetch.lease.fill, fetch.source.is_none());
        let stated = fetch.lease.hashes[(piece - fetch.lease.first) as usize];
        if stated.is_some_and(|stated| stated != hash(content)) {
            return self.end(to.0, lease, Outcome::Corrupt { piece });
        }
        let bad_fill = fill.0 % 2 == 1 && self.plan.revoked_at.is_some();
        let was_claimed = content == forged(blob, piece) && self.spoken[blob][piece as usize].is_none();
        assert!(
            bad_fill || content == genuine(blob, piece) || was_claimed || self.is_news(to.0, blob, piece),
            "seed {}: unverified bytes were accepted",
            self.plan.seed
        );
        let node = &mut self.nodes[to.0];
        node.blobs[blob].store(piece, content, self.now);
        let mut landed = PieceSet::new(self.map.count());
        landed.insert(piece);
        if upstream {
            self.tell_pieces(to.0, blob, &landed);
        } else if let Some(member) = node.member {
            let event = Event::Have {
                member,
                digest: digest(blob),
                map: self.map,
                fill,
                first: piece,
                hashes: vec![Some(hash(content))],
            };
            self.say(to.0, event);
        }
        self.advance(to.0, lease);
        self.finish(to.0, blob);
    }

    fn finish(&mut self, node: usize, blob: usize) {
        if self.nodes[node].blobs[blob].have.is_full() && !self.nodes[node].blobs[blob].is_genuine(blob) {
            return self.end_wrong(node, blob);
        }
        let state = &mut self.nodes[node];
        let holding = &mut state.blobs[blob];
        if holding.complete || !holding.have.is_full() {
            return;
        }
        holding.complete = true;
        holding.wanted = false;
        state.fetches.retain(|_, fetch| fetch.blob != blob);
        if state.blobs.iter().all(|blob| blob.complete) {
            state.finished_at = Some(self.now);
        }
        if let Some(member) = state.member {
            self.say(
                node,
                Event::Complete {
                    member,
                    digest: digest(blob),
                },
            );
        }
    }

    fn end(&mut self, node: usize, lease: LeaseId, outcome: Outcome) {
        self.nodes[node].fetches.remove(&lease);
        if let Some(member) = self.nodes[node].member {
            self.say(node, Event::LeaseEnded { member, lease, outcome });
        }
    }

    fn look(&mut self, by: (usize, u32), lease: LeaseId, piece: u32) {
        let Some(fetch) = self.fetch(by, lease).filter(|fetch| fetch.next == piece) else {
            return;
        };
        let silent = fetch.source.is_some_and(|(node, life)| {
            let source = &self.nodes[node];
            !source.running || source.life != life || source.frozen
        });
        if fetch.lost || silent {
            self.end(by.0, lease, Outcome::Stalled);
        } else {
            self.at(self.now + SECOND, Happening::Checked { by, lease, piece });
        }
    }
}
