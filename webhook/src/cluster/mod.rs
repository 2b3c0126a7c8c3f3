//! The Kubernetes API, through kube's own client.

mod client;
mod error;
mod objects;

pub use client::Cluster;
pub use error::ClusterError;
pub use objects::{Objects, is_object_name};
