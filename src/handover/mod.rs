//! Handover of a daemon's listening sockets to the process that comes after it, so that no client is refused in between.
//!
//! A socket that both processes have keeps the clients that connect while neither accepts. Nothing but sockets is handed over, and
//! only to a process of the same user.
//!
//! | file | what it does |
//! |---|---|
//! | `service_manager.rs` | systemd keeps the sockets over a restart |
//! | `process.rs` | a process that is started while this one drains gets them through the cache folder |
//! | `descriptors.rs` | file descriptors in messages |

mod descriptors;
mod process;
mod service_manager;

pub(crate) use process::{Offer, ask};
pub(crate) use service_manager::{forget, keep, take};
