//! Opening a store: the folder is claimed and closed to others, the node's key is read, disk and rows are brought together.

pub(crate) mod claim;
pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod node_key;
mod private;
pub(crate) mod recover;
