//! Node set-up: the files with which a node's container runtimes resolve accelerated names, and their removal.
//!
//! ```text
//! registries ──names──> wanted files ──(pure: each runtime's own format)──> text ──Root──> the node's disk
//! ```
//!
//! Everything that decides is pure: a runtime's module makes the new text of a file out of the old one. [`Node`] alone reads
//! and writes, through `Root`, which no symbolic link leads out of. A file is changed or deleted only where it says in its
//! own text that it is ours, or that a part of it is; the state file helps to tell drift, and nothing is lost with it.

mod addresses;
mod containerd;
mod containers;
mod controller;
mod cri;
mod disk;
mod docker;
mod edit;
mod facts;
mod hosts;
mod kind;
mod listeners;
mod lock;
mod mark;
mod metrics;
mod mounts;
mod names;
mod node;
mod problem;
mod processes;
mod remedy;
mod replace;
mod report;
mod restart;
mod root;
mod run;
mod runtime;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod trust;
mod wanted;

pub use controller::{Controller, ControllerConfig, RestartAt};
pub use kind::RuntimeKind;
pub use listeners::Listener;
pub use names::{Names, Registry, Upstream, registries};
pub use node::{Node, NodeError};
pub use problem::Remedy;
pub use report::{FileCondition, FileOutcome, FileReport, Report, RuntimeReport, Status, StatusFile};
pub use restart::Restart;
pub use settings::Settings;
