//! A daemon's stream to its site's scheduler.
//!
//! The scheduler's state is soft, and so is the session's: each new stream begins with a report of everything that is here,
//! from the [`Inventory`]. Reports without a stream are therefore dropped, and reports that overflow the queue cost the
//! connection, never memory.

mod config;
mod connection;
mod order;
mod queue;
mod run;
mod state;

pub use config::{Inventory, SessionConfig, SessionEvent};
pub use run::Session;
