//! The fill: one download of a blob from upstream into the store, whatever the number of its readers.
//!
//! It uses as many connections as the path to upstream needs, each for one segment after the other. It resumes by Range after
//! every cut and across restarts, in mid-piece if need be, gives up only when upstream has sent nothing new for
//! `FILL_PATIENCE`, and keeps what it has for the next try. A body that does not have the digest is revoked as a whole.

mod download;
mod follow;
mod observer;
mod plan;
mod publish;
mod registry_source;
mod run;
mod sample;
mod segment;

pub use observer::FillObserver;
pub use publish::pass;
pub use registry_source::RegistrySource;
