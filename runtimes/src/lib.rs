//! What a node's container runtime has to know to pull through its peer, and how that is taken back.
//!
//! ```text
//! registries ──names──> wanted files ──(pure: each runtime's own format)──> text ──Root──> the node's disk
//! ```
//!
//! Everything that decides is pure: a runtime's module makes the new text of a file out of the old one. [`Node`] alone reads
//! and writes, through `Root`, which no symbolic link leads out of. A file is changed or deleted only where it says in its
//! own text that it is ours, or that a part of it is; the state file helps to tell drift, and nothing is lost with it.

mod containerd;
mod containers;
mod cri;
mod docker;
mod edit;
mod facts;
mod hosts;
mod keeper;
mod listeners;
mod mark;
mod names;
mod node;
mod processes;
mod report;
mod root;
mod runtimes;
mod state;
mod wanted;

pub use keeper::{Keeper, KeeperConfig, RestartAt};
pub use listeners::Listener;
pub use names::{Names, Registry, Upstream, registries};
pub use node::{Node, NodeError, Restart, Settings};
pub use report::{FileReport, Line, Outcome, Report, RuntimeReport, Standing, Status, StatusFile};
pub use runtimes::RuntimeKind;
