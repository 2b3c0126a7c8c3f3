//! The fill: one download of a blob from upstream into the store, whatever the number of its readers.
//!
//! It uses as many connections as the path to upstream needs, each for one segment after the other. It resumes by Range after
//! every cut and across restarts, in mid-piece if need be, gives up only when upstream has sent nothing new for its patience, and keeps
//! what it has for the next try. A body that does not have the digest is revoked as a whole.
//!
//! `Fill` is the machine, which decides and is pure; the task does its I/O. `follow` is for a digest that two upstreams send at once.

mod action;
mod body_checks;
mod checkpoint;
mod connections;
mod download;
mod facts;
mod fault;
mod flow;
mod follow;
mod machine;
mod observer;
mod patience;
mod plan;
mod publish;
mod registry_source;
mod room;
mod sample;
mod segment;
#[cfg(test)]
mod stories;
mod task;
mod turn;
#[cfg(test)]
mod worlds;

pub use {
    action::{Action, Failure},
    facts::Facts,
    fault::Fault,
    flow::{Flow, Flowing},
    machine::{Answer, Beginning, Ended, Fill},
    observer::FillObserver,
    publish::pass,
    registry_source::RegistrySource,
};
