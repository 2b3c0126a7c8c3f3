//! Connections of one fill: which bytes each of them brings. Pure.
//!
//! A piece is assigned to at most one connection, but for a body that carries the rest of the blob because upstream knows no ranges: it
//! brings again what another connection has asked for. A fill has at most [`TOTAL_MAX`] connections.
//!
//! A connection whose body would take long gives what lies at its end to another one, and stops before that. What its body has under way
//! by then has come for nothing: at most what the path holds, once for each such stop.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use piecemeal_proto::PieceSet;
use piecemeal_upstream::FILL_CONNECTIONS_MAX;

use super::{
    facts::Facts,
    plan::{Pace, Plan, READER_BYTES_MAX},
};

/// The most connections beyond the fill's share for clients that wait for pieces which come late.
pub(super) const READERS_MAX: usize = 4;
/// The most connections of a fill: its share, and those for clients that wait.
pub(super) const TOTAL_MAX: usize = FILL_CONNECTIONS_MAX + READERS_MAX;
/// How late a piece comes that a waiting client gets over a connection of its own.
const LATE: Duration = Duration::from_secs(1);
/// A client that waits for one of the next pieces of a body reads on: daemons without a scheduler ask for some in advance. A body that stopped
/// before one of them would waste what it has under way, and win little.
const READ_AHEAD_PIECES: u32 = 8;
/// How much a body has to bring, in time, before an idle connection takes a part of it: below that, what the body has under way when it stops
/// costs more than another connection saves.
const SPLIT_TIME: Duration = Duration::from_secs(30);
/// The piece that a body brings now and the one behind it stay with it: the facts about it may be a moment old.
const KEPT_PIECES: u32 = 2;

/// The connections of a fill, and what none of them brings yet.
#[derive(Debug)]
pub(super) struct Connections {
    plan: Plan,
    open: BTreeMap<u64, Connection>,
    /// The number of the next connection.
    next: u64,
    /// One of the bodies carries all that is missing. Nothing is asked for until the bodies have ended.
    whole: bool,
    /// Upstream has refused a request that was not needed, asks for fewer, or knows no ranges: no more of those are made.
    takes_one: bool,
}

/// One request and its answer.
#[derive(Debug)]
struct Connection {
    /// What it is to bring. The end moves when another connection takes what lies there.
    bytes: Range<u64>,
    /// The end of what was asked for.
    asked_to: u64,
    /// The number of the right that the request was made with.
    right: u32,
    state: State,
    /// When its body began.
    begun: Duration,
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

/// Another end for what a connection receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MovedEnd {
    pub(super) connection: u64,
    pub(super) end: u64,
}

/// A request on another connection.
#[derive(Debug)]
pub(super) struct Requested {
    pub(super) connection: u64,
    pub(super) bytes: Range<u64>,
    /// The connection that brought these bytes until now.
    pub(super) moved: Option<MovedEnd>,
}

/// What a connection leaves behind.
#[derive(Debug)]
pub(super) struct Left {
    /// The number of the right that its request was made with.
    pub(super) right: u32,
    /// The connection whose body carries all that it was to bring, and brings it again.
    pub(super) moved: Option<MovedEnd>,
}

impl Connections {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            open: BTreeMap::new(),
            next: 0,
            whole: false,
            takes_one: false,
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

    /// Assigns bytes to another connection, if the fill may have one more. `right`: the number of the right that it asks with.
    pub(super) fn request(&mut self, now: Duration, facts: &Facts, right: u32) -> Option<Requested> {
        let (share, busy) = (facts.share.clamp(1, FILL_CONNECTIONS_MAX), self.busy());
        if self.whole || self.open.len() >= TOTAL_MAX {
            return None;
        }
        let pace = Pace {
            connections: share,
            busy,
            connection_rate: facts.connection_rate,
            left_bytes: self.plan.left_bytes(&facts.landed),
        };
        let (bytes, moved) = if busy < share && self.open.len() < FILL_CONNECTIONS_MAX {
            self.within_share(now, facts, pace)?
        } else if !self.takes_one && busy < share + READERS_MAX && self.receiving() == self.open.len() {
            // A waiting client gets an extra connection at once, rather than wait for a segment to end.
            self.for_reader(now, facts, READER_BYTES_MAX)?
        } else {
            return None;
        };
        let connection = self.open(bytes.clone(), right, State::RequestedRange);
        Some(Requested {
            connection,
            bytes,
            moved,
        })
    }

    fn within_share(&mut self, now: Duration, facts: &Facts, pace: Pace) -> Option<(Range<u64>, Option<MovedEnd>)> {
        self.for_reader(now, facts, self.plan.segment_bytes(pace))
            .or_else(|| self.plan.take(pace).map(|bytes| (bytes, None)))
            .or_else(|| self.split(now, facts))
    }

    /// Takes what the first client waits for that no connection brings, or that one brings late.
    fn for_reader(&mut self, now: Duration, facts: &Facts, bytes_max: u64) -> Option<(Range<u64>, Option<MovedEnd>)> {
        for pieces in &facts.waited_for {
            if let Some(bytes) = self.plan.take_wanted(pieces.clone(), bytes_max) {
                return Some((bytes, None));
            }
            let taken = self.late(now, facts, pieces.start).and_then(|connection| {
                let end = self.plan.pieces(&self.open[&connection].bytes).end;
                self.take_end(connection, pieces.start..end, pieces.end, bytes_max)
            });
            if let Some((bytes, moved)) = taken {
                return Some((bytes, Some(moved)));
            }
        }
        None
    }

    /// The connection that would bring a piece, if that is late.
    fn late(&self, now: Duration, facts: &Facts, piece: u32) -> Option<u64> {
        let is_late = |connection: &Connection| {
            let pieces = self.plan.pieces(&connection.bytes);
            let at = self.position(connection, &facts.landed);
            pieces.contains(&piece)
                && piece >= at + READ_AHEAD_PIECES
                && self.time(now, connection, at, u64::from(piece - at)) >= LATE
        };
        self.giving()
            .find(|(_, connection)| is_late(connection))
            .map(|(number, _)| number)
    }

    /// Takes a part of the segment that would take longest, when that is long: so that both connections end at the same time.
    fn split(&mut self, now: Duration, facts: &Facts) -> Option<(Range<u64>, Option<MovedEnd>)> {
        // Without a rate there is nothing to compare it with.
        let own_rate = Some(facts.connection_rate).filter(|rate| *rate > 0)?;
        let left = self.giving().map(|(number, connection)| {
            let at = self.position(connection, &facts.landed);
            let left = self.plan.pieces(&connection.bytes).end.saturating_sub(at);
            (self.time(now, connection, at, u64::from(left)), number, left)
        });
        let (time, connection, left) = left.max()?;
        if time < SPLIT_TIME || left <= KEPT_PIECES {
            return None;
        }
        let rate = u64::from(left) * self.plan.piece_bytes() * 1000 / u64::try_from(time.as_millis()).ok()?.max(1);
        let taken = u128::from(left) * u128::from(own_rate) / u128::from(own_rate + rate);
        let taken = u32::try_from(taken).ok()?.clamp(1, left - KEPT_PIECES);
        let end = self.plan.pieces(&self.open[&connection].bytes).end;
        let (bytes, moved) = self.take_end(connection, end - taken..end, end, u64::MAX)?;
        Some((bytes, Some(moved)))
    }

    /// Connections that may give a part of their segment to another one.
    fn giving(&self) -> impl Iterator<Item = (u64, &Connection)> {
        let gives = |connection: &Connection| connection.state == State::Receiving && !connection.carries_rest;
        let open = self.open.iter().filter(move |(_, connection)| gives(connection));
        open.filter(|_| !self.takes_one)
            .map(|(number, connection)| (*number, connection))
    }

    /// The piece that a body has come to.
    fn position(&self, connection: &Connection, landed: &PieceSet) -> u32 {
        let mut pieces = self.plan.pieces(&connection.bytes);
        let end = pieces.end;
        pieces.find(|piece| !landed.contains(*piece)).unwrap_or(end)
    }

    /// The time in which a body that has come to the piece `at` brings so many pieces. It counts as having brought one piece more than it has.
    fn time(&self, now: Duration, connection: &Connection, at: u32, pieces: u64) -> Duration {
        let brought = u64::from(at - self.plan.pieces(&connection.bytes).start) + 1;
        let millis = now.saturating_sub(connection.begun).as_millis() * u128::from(pieces) / u128::from(brought);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// Takes the end of a connection's segment from it, and assigns so much of that as is wanted.
    fn take_end(
        &mut self,
        connection: u64,
        pieces: Range<u32>,
        wanted_to: u32,
        bytes_max: u64,
    ) -> Option<(Range<u64>, MovedEnd)> {
        let taken = self.plan.bytes(pieces.clone());
        self.open.get_mut(&connection)?.bytes.end = taken.start;
        self.plan
            .give_back(&taken, &PieceSet::new(self.plan.assigned().capacity()), |_| false);
        let bytes = self
            .plan
            .take_wanted(pieces.start..pieces.end.min(wanted_to), bytes_max)?;
        let end = taken.start;
        Some((bytes, MovedEnd { connection, end }))
    }

    /// The body that a connection has asked for has begun. `None`: the connection is not open.
    pub(super) fn receive(&mut self, now: Duration, connection: u64) -> Option<Range<u64>> {
        let connection = self.open.get_mut(&connection)?;
        (connection.state, connection.begun) = (State::Receiving, now);
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
    pub(super) fn receive_all(&mut self, now: Duration, right: u32) -> Option<(u64, Range<u64>)> {
        let all = self.plan.all();
        if all.is_empty() {
            return None;
        }
        let is_untouched = self.plan.is_untouched();
        let connection = self.open(all, right, State::RequestedRange);
        let bytes = match is_untouched {
            true => {
                self.plan.take_rest(0);
                self.receive(now, connection)
            }
            false => self.receive_rest(connection),
        };
        bytes.map(|bytes| (connection, bytes))
    }

    /// Whether a connection has asked for the whole blob.
    pub(super) fn asks_for_all(&self, connection: u64) -> bool {
        let bytes = self.open.get(&connection).map(|connection| &connection.bytes);
        bytes.is_some_and(|bytes| *bytes == self.plan.all())
    }

    /// No more requests are made beyond the share, nor for what a body brings.
    pub(super) fn takes_one(&mut self) {
        self.takes_one = true;
    }

    /// A body has little more to come.
    pub(super) fn end_in_sight(&mut self, connection: u64) {
        if let Some(connection) = self.open.get_mut(&connection)
            && connection.state == State::Receiving
        {
            connection.state = State::Ending;
        }
    }

    /// A connection has ended: what has not landed of its bytes is assigned again, at once to a connection whose body carries all of them.
    /// `None`: the connection is not open.
    pub(super) fn end(&mut self, connection: u64, landed: &PieceSet) -> Option<Left> {
        let ended = self.open.remove(&connection)?;
        self.whole &= self.receiving() > 0;
        let others: Vec<Range<u32>> = self.open.values().map(|other| self.plan.pieces(&other.bytes)).collect();
        let is_elsewhere = |piece| others.iter().any(|pieces| pieces.contains(&piece));
        self.plan.give_back(&ended.bytes, landed, is_elsewhere);
        Some(Left {
            right: ended.right,
            moved: self.give_to_carrier(&ended.bytes, landed),
        })
    }

    fn give_to_carrier(&mut self, bytes: &Range<u64>, landed: &PieceSet) -> Option<MovedEnd> {
        let carries = |connection: &Connection| {
            connection.state != State::RequestedRange
                && !connection.carries_rest
                && connection.bytes.end == bytes.start
                && connection.asked_to >= bytes.end
        };
        let (&connection, carrier) = self.open.iter_mut().find(|(_, connection)| carries(connection))?;
        let mut carried = self.plan.pieces(&(bytes.start..carrier.asked_to));
        let first = carried.start;
        let end = carried.find(|piece| !self.plan.lacks(*piece) || landed.contains(*piece));
        let pieces = first..end.unwrap_or(carried.end);
        if pieces.end < self.plan.pieces(bytes).end {
            return None;
        }
        let end = self.plan.bytes(pieces.clone()).end;
        (carrier.bytes.end, carrier.state) = (end, State::Receiving);
        self.plan.assign(pieces);
        Some(MovedEnd { connection, end })
    }

    /// Whether one of the bodies carries all that is missing, in its order.
    pub(super) fn has_rest(&self) -> bool {
        self.whole
    }

    /// All connections have ended: as [`Connections::end`].
    pub(super) fn end_all(&mut self, landed: &PieceSet) {
        while let Some((&connection, _)) = self.open.first_key_value() {
            self.end(connection, landed);
        }
    }

    /// The fill is over.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.plan.give_all_back();
    }

    fn open(&mut self, bytes: Range<u64>, right: u32, state: State) -> u64 {
        self.next += 1;
        let connection = Connection {
            asked_to: bytes.end,
            bytes,
            right,
            state,
            begun: Duration::ZERO,
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
            assert!(
                connection.asked_to >= connection.bytes.end,
                "nothing is received that was not asked for"
            );
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
