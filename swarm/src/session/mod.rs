//! Session of a daemon with its site's scheduler.
//!
//! Invariant: each new stream begins with a report of all local content, from the [`Inventory`], since the scheduler's state is
//! soft. So reports without a stream are dropped, and reports that overflow the queue cost the connection, never memory.

mod backoff;
mod config;
mod connect;
mod connection;
mod end;
mod hello;
mod order;
mod queue;
mod run;
mod state;
mod stream;

pub use config::{Inventory, SessionConfig, SessionEvent};
pub use run::Session;
