//! The server of every port of a daemon: HTTP/1.1 over plain connections and TLS.
//!
//! Nothing here knows what is served. Invariant: no host that holds connections keeps another out.
//!
//! | file | what it does |
//! |---|---|
//! | `serve.rs`, `answer.rs` | HTTP over the connections of one listener; `clients.rs` is the port of OCI clients |
//! | `sockets.rs` | the listening sockets, also those that another process has handed over |
//! | `linger.rs` | decides how long a port that is told to stop still takes connections |
//! | `gate.rs`, `slot.rs`, `connections.rs` | carry out which connections a port holds |
//! | `slots.rs`, `parties.rs`, `slot_policy.rs`, `share.rs`, `address_block.rs` | decide it, without I/O or a clock |
//! | `watched.rs`, `pulse.rs` | notice which receivers are stuck |
//! | `sendfile.rs` | files leave without a copy |

mod address_block;
mod answer;
mod clients;
mod connections;
mod gate;
mod linger;
mod parties;
mod pulse;
mod sendfile;
mod serve;
mod share;
mod slot;
mod slot_policy;
mod slots;
mod sockets;
mod watched;

pub use address_block::AddressBlock;
pub use clients::Clients;
pub use gate::{Gate, descriptors_max};
pub use linger::Linger;
pub use sendfile::{EXTENT_BYTES_MAX, SendfileQueue};
pub use serve::{Greet, Limits, serve_http};
pub use share::Share;
pub use slot::Slot;
pub use slot_policy::SlotPolicy;
pub use sockets::Sockets;
pub use watched::Watched;
