//! The real fill of a simulated node: the requests, bodies and breaks of its download over the WAN.
//!
//! A mirror's fill brings a blob, and so does that of a peer outside the swarm. Others bring what a lease of upstream names, or all that is missing. How many connections the
//! fills of a node may use is the plan's.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use piecemeal_peer::download::Ended as FetchEnded;
use piecemeal_proto::{PieceSet, wire::Outcome};
use piecemeal_proxy::fill::{Action, Answer, Beginning, Ended, Facts, Fault, Fill};

use crate::{
    download::{FROZEN_DELAY, nanos},
    fetch::Work,
    node::genuine,
    plan::MIRROR,
    world::{Happening, World},
};

/// How long upstream may send nothing new.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a lease: its first failure ends it, since the scheduler knows other peers.
const LEASE_PATIENCE: Duration = Duration::ZERO;

/// A fill under way.
pub(crate) struct Filling {
    machine: Fill,
    pub(crate) node: usize,
    blob: usize,
    /// The fetch of a peer's download that it is for.
    fetch: Option<u64>,
    /// By connection.
    bodies: BTreeMap<u64, Body>,
    /// A tick is in the queue.
    ticks: bool,
}

/// A body under way.
struct Body {
    /// Pieces that are still to come.
    pieces: Range<u32>,
    /// A piece has come.
    progressed: bool,
}

/// What happens to one fill.
#[derive(Clone, Copy)]
pub(crate) enum FillStep {
    Tick,
    /// Upstream answers a request.
    Answered(u64),
    /// The next piece of a body arrives.
    Piece(u64),
}

impl World {
    /// Fetches these pieces from upstream.
    pub(crate) fn fill(&mut self, node: usize, blob: usize, pieces: Vec<u32>, fetch: Option<u64>) {
        let mut landed = PieceSet::full(self.map.count());
        pieces.into_iter().for_each(|piece| _ = landed.remove(piece));
        let beginning = Beginning {
            map: self.map,
            landed,
            within: 0..self.map.blob_bytes(),
            patience: self.patience(node, fetch),
            opens: false,
            unstored: false,
            has_callers: false,
        };
        let filling = Filling {
            machine: Fill::new(Duration::from_nanos(self.now), &beginning),
            node,
            blob,
            fetch,
            bodies: BTreeMap::new(),
            ticks: false,
        };
        let serial = self.serial();
        self.fills.insert(serial, filling);
        self.drive_fill(serial);
    }

    fn patience(&self, node: usize, fetch: Option<u64>) -> Duration {
        match fetch.map(|fetch| &self.nodes[node].fetches[&fetch].work) {
            Some(Work::Lease(_)) => LEASE_PATIENCE,
            Some(Work::Piece(_) | Work::Rest) | None => PATIENCE,
        }
    }

    /// A node's fills end with its process, and the WAN is free for others.
    pub(crate) fn drop_fills(&mut self, node: usize) {
        self.fills.retain(|_, filling| filling.node != node);
        if self.fills.is_empty() {
            self.wan.reset(self.now);
        }
    }

    /// A piece that a client waits for comes first: at the mirror, one of a peer that asked without a lease, or that the scheduler has told of.
    fn fill_facts(&self, filling: &Filling) -> Facts {
        let of_blob = (filling.blob, 0)..(filling.blob + 1, 0);
        let landed = &self.nodes[filling.node].blobs[filling.blob].have;
        let awaited = self.awaited.range(of_blob.clone()).map(|(key, _)| key);
        let awaited = awaited.chain(self.waits_elsewhere.range(of_blob));
        let awaited: BTreeSet<u32> = awaited.map(|(_, piece)| *piece).collect();
        let awaited = awaited.into_iter().filter(|piece| !landed.contains(*piece));
        let connections = self.plan.connections;
        let fills = self.fills.values().filter(|other| other.node == filling.node).count();
        Facts {
            share: (connections / fills.max(1)).max(1),
            connection_rate: self.plan.wan / connections as u64,
            waited_for: match filling.node {
                MIRROR => awaited.map(|piece| piece..piece + 1).collect(),
                node => {
                    let next = self.nodes[node].blobs[filling.blob].prefix;
                    let reads = (next < self.map.count()).then(|| next..self.map.count());
                    reads.into_iter().collect()
                }
            },
            landed: landed.clone(),
            has_readers: true,
        }
    }

    /// Carries out what the machine decides; then its timeout is in the queue.
    fn drive_fill(&mut self, fill: u64) {
        let now = Duration::from_nanos(self.now);
        while let Some(filling) = self.fills.get(&fill) {
            let facts = self.fill_facts(filling);
            let filling = self.fills.get_mut(&fill).expect("it was there just now");
            match filling.machine.poll_action(now, &facts) {
                Some(action) => self.act_fill(fill, action),
                None => break,
            }
        }
        let Some(filling) = self.fills.get_mut(&fill).filter(|filling| !filling.ticks) else {
            return;
        };
        if let Some(at) = filling.machine.poll_timeout() {
            filling.ticks = true;
            let step = FillStep::Tick;
            self.at(nanos(at), Happening::Fill(fill, step));
        }
    }

    fn act_fill(&mut self, fill: u64, action: Action) {
        match action {
            Action::Request { connection, .. } => {
                let at = self.now + self.hop() + self.hop();
                let step = FillStep::Answered(connection);
                self.at(at, Happening::Fill(fill, step));
            }
            Action::Receive { connection, bytes } => {
                let piece_at = |offset| self.map.piece_at(offset).expect("it is within the blob");
                let pieces = piece_at(bytes.start)..piece_at(bytes.end - 1) + 1;
                let filling = self.fills.get_mut(&fill).expect("it acts");
                let progressed = false;
                filling.bodies.insert(connection, Body { pieces, progressed });
                self.send_upstream(fill, connection);
            }
            Action::MoveEnd { connection, end } => {
                let end = self.map.piece_at(end).unwrap_or(self.map.count());
                let filling = self.fills.get_mut(&fill).expect("it acts");
                if let Some(body) = filling.bodies.get_mut(&connection) {
                    body.pieces.end = end.max(body.pieces.start + 1);
                }
            }
            Action::Finish => self.end_fill(fill, true),
            Action::Fail(_) => self.end_fill(fill, false),
            Action::Close(_)
            | Action::CloseAll
            | Action::Open
            | Action::NextRight
            | Action::NoteTooManyRequests
            | Action::NoteNoRanges => {
                unreachable!("upstream knows ranges, and refuses nothing")
            }
        }
    }

    /// A connection's next piece is on the WAN. During the last one the next request may go out.
    fn send_upstream(&mut self, fill: u64, connection: u64) {
        let filling = self.fills.get_mut(&fill).expect("a body comes");
        let pieces = filling.bodies[&connection].pieces.clone();
        if pieces.len() == 1 {
            filling.machine.handle_end_in_sight(connection);
        }
        if filling.node != MIRROR {
            self.upstream_pieces += 1;
        }
        let at = self.wan.send(self.now, self.map.len(pieces.start));
        let step = FillStep::Piece(connection);
        self.at(at, Happening::Fill(fill, step));
    }

    pub(crate) fn step_fill(&mut self, fill: u64, step: FillStep) {
        let now = Duration::from_nanos(self.now);
        let Some(filling) = self.fills.get(&fill) else {
            return;
        };
        let (node, blob) = (filling.node, filling.blob);
        let is_given_up = |fetch| !self.nodes[node].fetches.contains_key(&fetch);
        if filling.fetch.is_some_and(is_given_up) {
            self.fills.remove(&fill);
            return;
        }
        if self.nodes[node].frozen {
            return self.at(self.now + FROZEN_DELAY, Happening::Fill(fill, step));
        }
        let facts = self.fill_facts(filling);
        let filling = self.fills.get_mut(&fill).expect("it was there just now");
        match step {
            FillStep::Tick => {
                filling.ticks = false;
                filling.machine.handle_timeout(now, &facts);
            }
            FillStep::Answered(connection) => {
                let have = &self.nodes[node].blobs[blob].have;
                filling.machine.handle_answered(now, connection, Answer::Part, have);
            }
            FillStep::Piece(connection) => self.piece_came(fill, connection),
        }
        self.drive_fill(fill);
    }

    fn piece_came(&mut self, fill: u64, connection: u64) {
        if self.chance.happens(self.plan.loss) {
            return self.end_body(fill, connection, Some(Fault::Passing));
        }
        let filling = self.fills.get_mut(&fill).expect("a piece came");
        let (node, blob) = (filling.node, filling.blob);
        let body = filling.bodies.get_mut(&connection).expect("its body is open");
        let piece = body.pieces.next().expect("a piece came");
        body.progressed = true;
        let is_last = body.pieces.is_empty();
        match node {
            MIRROR => self.filled(blob, piece),
            _ => self.land(node, blob, piece, genuine(blob, piece)),
        }
        if !self.fills.contains_key(&fill) {
        } else if is_last {
            self.end_body(fill, connection, None);
        } else {
            self.send_upstream(fill, connection);
        }
    }

    fn end_body(&mut self, fill: u64, connection: u64, fault: Option<Fault>) {
        let filling = self.fills.get_mut(&fill).expect("a body ends");
        let body = filling.bodies.remove(&connection);
        let progressed = body.is_some_and(|body| body.progressed);
        let have = &self.nodes[filling.node].blobs[filling.blob].have;
        let now = Duration::from_nanos(self.now);
        filling
            .machine
            .handle_ended(now, connection, Ended { progressed, fault }, have);
    }

    fn end_fill(&mut self, fill: u64, succeeded: bool) {
        let Filling { node, blob, fetch, .. } = self.fills.remove(&fill).expect("it ends");
        let outcome = match succeeded {
            true => Outcome::Done,
            false => Outcome::Unreachable,
        };
        if !succeeded && node != MIRROR {
            self.upstream_failures += 1;
        }
        match fetch {
            Some(fetch) => self.end_fetch(node, fetch, FetchEnded { outcome, piece: 0 }),
            None if node != MIRROR => self.filled_alone(node, blob, succeeded),
            None if succeeded => self.filled_all(blob),
            None => self.fill_blob(blob),
        }
    }
}
