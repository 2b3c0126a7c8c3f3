//! The scheduler: knows which daemon holds which piece, and leases pieces to peers.
//!
//! [`brain`] decides, without I/O, clock or randomness of its own; [`Scheduler`] is the service around it. Each daemon has
//! one stream (`session`), which checks what the daemon says (`admission`, `report`) and writes what it is told (`outbox`).
//! One task (`driver`) owns the brain and the table of members. All state is soft: daemons that reconnect tell it again.

mod admission;
mod ambient;
pub mod brain;
mod config;
mod connection;
mod driver;
mod event_batch;
mod input;
mod limits;
mod listener;
mod members;
mod metrics;
mod orders;
mod outbox;
mod report;
mod service;
mod session;
mod session_end;
mod status;
mod supervisor;
mod tickets;

pub use config::SchedulerConfig;
pub use service::{Scheduler, StartSchedulerError};
