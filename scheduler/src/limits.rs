//! Limits of connections and sessions: their numbers, and how long a connection may take to become a session.
//!
//! A connection without a session is idle. A node that has been admitted counts by its identity among the connections; sessions
//! count by address, since a site's key lets one host be many nodes.

use piecemeal_http::{Gate, Policy, Share, Slot, descriptors_max};
use piecemeal_proto::NodeId;
use tokio::time::Duration;

/// Twice the peers that one scheduler is built for.
const SESSIONS_MAX: usize = 20_000;
/// For every four sessions there is room for one more connection without a session: a daemon that connects or reconnects.
const IDLE_PART: usize = 4;
/// As long as the first byte and a TLS handshake may take.
const GREET_MAX: Duration = Duration::from_secs(15);
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
/// From a connection's first byte to the session.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long a connection may outlive its session.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Orders that are not read end a session sooner than this ends its connection.
const TAKE_MAX: Duration = Duration::from_secs(30);
/// How long a connection may take until its hello.
pub(crate) const HELLO_WAIT: Duration = Duration::from_secs(5);

/// The two gates of a scheduler.
#[derive(Clone)]
pub(crate) struct Gates {
    pub(crate) connections: Gate,
    pub(crate) sessions: Gate,
    pub(crate) sessions_max: usize,
}

impl Gates {
    pub(crate) fn new(share: Share) -> Self {
        // A quarter of the descriptors is for everything else.
        let connections_max = (SESSIONS_MAX + SESSIONS_MAX / IDLE_PART).min(descriptors_max() / 4 * 3);
        let sessions_max = connections_max / (IDLE_PART + 1) * IDLE_PART;
        let policy = |slots| Policy {
            slots,
            share,
            greet_max: GREET_MAX,
            first_byte_max: FIRST_BYTE_MAX,
            head_max: HEAD_MAX,
            idle_max: IDLE_MAX,
            take_max: TAKE_MAX,
            busy_give_way: false,
        };
        // A session's own waits end it: this gate is not swept.
        let session = Policy {
            greet_max: HELLO_WAIT,
            ..policy(sessions_max)
        };
        Self {
            connections: Gate::new("scheduler", policy(connections_max)),
            sessions: Gate::new("scheduler's session", session),
            sessions_max,
        }
    }
}

/// A stream's places: its connection's, and its own among the sessions.
pub(crate) struct Places {
    pub(crate) connection: Slot,
    pub(crate) session: Slot,
}

impl Places {
    /// From now on `node` has a session here, until what is returned is dropped.
    pub(crate) fn seat(&self, node: NodeId) -> Seated<'_> {
        self.connection.belongs_to(node);
        self.connection.begin();
        self.session.begin();
        Seated(self)
    }
}

/// A session in force.
pub(crate) struct Seated<'a>(&'a Places);

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.0.session.finish();
        self.0.connection.finish();
    }
}
