//! The scheduler: knows which daemon holds which piece, and leases pieces to peers.
//!
//! [`brain`] decides, without I/O, clock or randomness of its own; [`Scheduler`] is the service around it. Invariant: all state
//! is soft, and daemons that reconnect tell it again.
//!
//! A daemon's connection comes in through `listener`, its stream through `service`. A `session` checks the hello (`admission`)
//! and every report (`report`), and writes the orders of its `outbox`. One task, the `driver`, owns the brain and the table of
//! `members`; `supervisor` restarts it.

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
mod report_fields;
mod service;
mod session;
mod session_end;
mod status;
mod supervisor;
mod tickets;

pub use config::SchedulerConfig;
pub use service::{Scheduler, StartSchedulerError};
