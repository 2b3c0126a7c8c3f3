//! A Kubernetes without nodes: a real API server with its etcd and its controllers, on loopback. [`KubeSite`] has nodes.
//!
//! A start takes seconds, so the tests of a binary share [`KubeApi::shared`] and keep apart by a namespace each. What belongs
//! to no namespace (roles, webhooks) needs names, and webhooks selectors, of the test's own.
//!
//! Without nodes nothing is scheduled and nothing runs: pods are admitted, stored and stay pending.

mod assets;
mod caretaker;
mod client;
mod identity;
mod kinds;
mod node;
mod programs;
mod server;
mod site;

pub use self::{
    client::{ApiError, KubeClient, runtime, wait_until, wait_within},
    identity::Identity,
    node::Node,
    programs::waiting_program,
    server::{KubeApi, KubeOptions},
    site::KubeSite,
};
