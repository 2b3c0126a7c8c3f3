//! A daemon's stream to its site's scheduler.
//!
//! The scheduler's state is soft, and so is ours: whenever the stream is new, everything that is here is told again, from
//! the [`Inventory`]. What is reported while there is no stream is therefore dropped, and what does not fit the queue costs
//! the connection, never memory.

mod config;
mod connection;
mod order;
mod queue;
mod run;

pub use config::{Inventory, SessionConfig, SessionEvent};
pub use run::Session;
