//! Connections of one fill: which bytes each of them brings. Pure.
//!
//! A piece is assigned to at most one connection, but for a body that carries the rest of the blob because upstream knows no ranges: it
//! brings again what another connection has asked for. A fill has at most [`TOTAL_MAX`] connections.

use std::{collections::BTreeMap, ops::Range};

use piecemeal_proto::PieceSet;
use piecemeal_upstream::FILL_CONNECTIONS_MAX;

use super::{
    facts::Facts,
    plan::{Pace, Plan},
};

/// The most connections of a fill: its share, and one for a client that waits.
pub(super) const TOTAL_MAX: usize = FILL_CONNECTIONS_MAX + 1;

/// The connections of a fill, and what none of them brings yet.
#[derive(Debug)]
pub(super) struct Connections {
    plan: Plan,
    open: BTreeMap<u64, Connection>,
    /// The number of the next connection.
    next: u64,
    /// One of the bodies carries all that is missing. Nothing is asked for until the bodies have ended.
    whole: bool,
}

/// One request and its answer.
#[derive(Debug)]
pub(super) struct Connection {
    bytes: Range<u64>,
    /// The number of the right that the request was made with.
    pub(super) right: u32,
    state: State,
    /// Its body carries the rest of the blob, what other connections have asked for included.
    carries_rest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    RequestedRange,
    Receiving,
    /// Receiving, and ended by the time an answer to another request could be here.
    Ending,
}

impl Connections {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            open: BTreeMap::new(),
            next: 0,
            whole: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether all bytes have landed.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty() && self.plan.is_done()
    }

    /// Whether a piece is missing and no connection brings it yet.
    pub(super) fn lacks(&self, piece: u32) -> bool {
        self.plan.lacks(piece)
    }

    /// The number of connections in use: those that are about to end do not count.
    pub(super) fn busy(&self) -> usize {
        let is_ending = |connection: &&Connection| connection.state == State::Ending;
        self.open.len() - self.open.values().filter(is_ending).count()
    }

    /// The number of connections whose body has begun.
    pub(super) fn receiving(&self) -> usize {
        let is_receiving = |connection: &&Connection| connection.state != State::RequestedRange;
        self.open.values().filter(is_receiving).count()
    }

    /// Assigns the next segment to another connection, if the fill may have one more. `right`: the number of the right that it asks with.
    pub(super) fn request(&mut self, facts: &Facts, right: u32) -> Option<(u64, Range<u64>)> {
        let (share, busy) = (facts.share.clamp(1, FILL_CONNECTIONS_MAX), self.busy());
        // A waiting client gets an extra connection at once, rather than wait for a segment to end.
        let client_waits = facts.waited_for.is_some_and(|piece| self.plan.lacks(piece));
        let all_receive = self.receiving() == self.open.len();
        let allowed = share + usize::from(client_waits && all_receive && share > 1);
        if self.whole || busy >= allowed || self.open.len() >= allowed.max(FILL_CONNECTIONS_MAX) {
            return None;
        }
        let pace = Pace {
            connections: share,
            busy,
            connection_rate: facts.connection_rate,
        };
        let bytes = self.plan.take(facts.waited_for, pace)?;
        Some((self.open(bytes.clone(), right, State::RequestedRange), bytes))
    }

    /// The body that a connection has asked for has begun. `None`: the connection is not open.
    pub(super) fn receive(&mut self, connection: u64) -> Option<Range<u64>> {
        let connection = self.open.get_mut(&connection)?;
        connection.state = State::Receiving;
        Some(connection.bytes.clone())
    }

    /// A body has begun that carries everything from the start of the blob on: the connection takes all that follows the first of its bytes.
    pub(super) fn receive_rest(&mut self, connection: u64) -> Option<Range<u64>> {
        let connection = self.open.get_mut(&connection)?;
        connection.bytes = self.plan.take_rest(connection.bytes.start);
        (connection.state, connection.carries_rest) = (State::Receiving, true);
        self.whole = true;
        Some(connection.bytes.clone())
    }

    /// A body has begun that carries the whole blob and that no connection of the fill has asked for. `None`: the blob is empty.
    pub(super) fn receive_all(&mut self, right: u32) -> Option<(u64, Range<u64>)> {
        let all = self.plan.all();
        if all.is_empty() {
            return None;
        }
        let connection = self.open(all, right, State::RequestedRange);
        self.receive_rest(connection).map(|bytes| (connection, bytes))
    }

    /// Whether a connection has asked for the whole blob.
    pub(super) fn asks_for_all(&self, connection: u64) -> bool {
        let bytes = self.open.get(&connection).map(|connection| &connection.bytes);
        bytes.is_some_and(|bytes| *bytes == self.plan.all())
    }

    /// A body has little more to come.
    pub(super) fn end_in_sight(&mut self, connection: u64) {
        if let Some(connection) = self.open.get_mut(&connection)
            && connection.state == State::Receiving
        {
            connection.state = State::Ending;
        }
    }

    /// A connection has ended: what has not landed of its bytes is assigned again. `None`: the connection is not open.
    pub(super) fn end(&mut self, connection: u64, landed: &PieceSet) -> Option<Connection> {
        let ended = self.open.remove(&connection)?;
        self.whole &= self.receiving() > 0;
        let others: Vec<Range<u32>> = self.open.values().map(|other| self.plan.pieces(&other.bytes)).collect();
        let is_elsewhere = |piece| others.iter().any(|pieces| pieces.contains(&piece));
        self.plan.give_back(&ended.bytes, landed, is_elsewhere);
        Some(ended)
    }

    /// The fill is over.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.plan.give_all_back();
    }

    fn open(&mut self, bytes: Range<u64>, right: u32, state: State) -> u64 {
        self.next += 1;
        let connection = Connection {
            bytes,
            right,
            state,
            carries_rest: false,
        };
        self.open.insert(self.next, connection);
        self.next
    }

    /// # Panics
    /// When there are too many connections, or a missing piece is not either to be assigned or assigned to exactly one of them.
    pub(super) fn assert_invariants(&self) {
        assert!(self.open.len() <= TOTAL_MAX, "{} connections", self.open.len());
        let mut assigned = self.plan.assigned().clone();
        for connection in self.open.values().filter(|connection| !connection.carries_rest) {
            for piece in self.plan.pieces(&connection.bytes) {
                assert!(
                    assigned.remove(piece),
                    "piece {piece} is not assigned to one connection"
                );
            }
        }
        for connection in self.open.values().filter(|connection| connection.carries_rest) {
            self.plan
                .pieces(&connection.bytes)
                .for_each(|piece| _ = assigned.remove(piece));
        }
        assert!(assigned.is_empty(), "pieces {assigned:?} are assigned to no connection");
    }
}
