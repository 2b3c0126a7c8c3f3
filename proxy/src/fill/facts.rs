//! Facts that a fill's decisions depend on besides its own state.

use std::ops::Range;

use piecemeal_proto::PieceSet;

/// The state of upstream's connections and of the blob's readers, as the task reads it before each step.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The connections that the fill may use: its share of those of its upstream. None while no client waits for it and it is not its turn.
    pub share: usize,
    /// The rate of one connection, in bytes a second; 0 while it is unknown.
    pub connection_rate: u64,
    /// The pieces that clients want to read, of this daemon or of another: each range from the piece that its client waits for, ascending.
    pub waited_for: Vec<Range<u32>>,
    /// An unstored blob has clients. A stored one counts as read.
    pub has_readers: bool,
    /// The pieces that are in the store.
    pub landed: PieceSet,
}
