//! The server of every port of a daemon: HTTP/1.1 over plain connections and TLS.
//!
//! `slots` decides which caller may hold a connection, and for how long; `gate` carries it out, and `watched` tells it how each
//! connection does. `serve` speaks HTTP over them, `clients` is the port of OCI clients. What lies in files leaves without a copy
//! (`sendfile`). Nothing here knows what is served.

mod clients;
mod gate;
mod sendfile;
mod serve;
mod slots;
mod watched;

pub use clients::{Clients, bind};
pub use gate::{Gate, Slot, descriptors_max};
pub use sendfile::{EXTENT_BYTES_MAX, SendfileQueue};
pub use serve::{Greet, Limits, serve_http};
pub use slots::{Admitted, Block, Expired, Policy, Share, SlotId, Slots};
pub use watched::Watched;
