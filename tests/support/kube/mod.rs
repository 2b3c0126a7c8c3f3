//! A Kubernetes without nodes: a real API server with its etcd and its controllers, on loopback.
//!
//! A start takes seconds, so the tests of a binary share [`KubeApi::shared`] and keep apart by a namespace each. What belongs
//! to no namespace (roles, webhooks) needs names, and webhooks selectors, of the test's own.
//!
//! Nothing is scheduled and nothing runs: pods are admitted, stored and stay pending.

mod assets;
mod caretaker;
mod client;
mod identity;
mod kinds;
mod server;

pub use self::{
    client::{ApiError, KubeClient, runtime, wait_until},
    identity::Identity,
    server::{KubeApi, KubeOptions},
};
