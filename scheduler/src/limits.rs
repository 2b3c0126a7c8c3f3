//! Limits of connections and sessions: their numbers, and how long a connection may take to become a session.
//!
//! Invariant: an admitted node counts by its identity among the connections, and by its address among the sessions, since a
//! site's key lets one host be many nodes. A connection without a session is idle.

use piecemeal_http::{Gate, Share, Slot, SlotPolicy, descriptors_max};
use piecemeal_proto::NodeId;
use tokio::time::Duration;

/// Sessions at once: twice the peers that one scheduler is built for.
const SESSIONS_MAX: usize = 20_000;
/// Sessions for each connection without a session, which a daemon has while it connects or reconnects.
const IDLE_PART: usize = 4;
/// Longest time to the end of the TLS handshake.
const GREET_MAX: Duration = Duration::from_secs(15);
/// Longest time to the first byte.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
/// Longest time from a connection's first byte to its session.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Longest time that a connection may outlive its session.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Longest time that a connection may read nothing. Unread orders end the session sooner.
const TAKE_MAX: Duration = Duration::from_secs(30);
/// Longest time to the hello.
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
        let policy = |slots| SlotPolicy {
            slots,
            share,
            greet_max: GREET_MAX,
            first_byte_max: FIRST_BYTE_MAX,
            head_max: HEAD_MAX,
            idle_max: IDLE_MAX,
            take_max: TAKE_MAX,
            busy_give_way: false,
        };
        // The session's own timeouts end it: this gate is not swept.
        let session = SlotPolicy {
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

/// The two slots of a stream.
pub(crate) struct StreamSlots {
    pub(crate) connection: Slot,
    pub(crate) session: Slot,
}

impl StreamSlots {
    /// From now on `node` has a session here, until the guard is dropped.
    pub(crate) fn begin_session(&self, node: NodeId) -> SessionGuard<'_> {
        self.connection.belongs_to(node);
        self.connection.begin();
        self.session.begin();
        SessionGuard(self)
    }
}

/// Keeps both slots of a stream busy while its session lasts.
pub(crate) struct SessionGuard<'a>(&'a StreamSlots);

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.0.session.finish();
        self.0.connection.finish();
    }
}
