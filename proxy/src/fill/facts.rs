//! Facts that a fill's decisions depend on besides its own state.

/// The state of upstream's connections and of the blob's readers, as the task reads it before each step.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The connections that the fill may use: its share of those of its upstream. None while no client waits for it and it is not its turn.
    pub share: usize,
    /// The rate of one connection, in bytes a second; 0 while it is unknown.
    pub connection_rate: u64,
    /// The lowest piece that a client waits for, of this daemon or of another, and that no connection brings yet.
    pub waited_for: Option<u32>,
    /// An unstored blob has clients. A stored one counts as read.
    pub has_readers: bool,
}
