//! Repository of an upstream.
//!
//! Its name means nothing without its upstream.

/// A repository of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// Such as `docker.io`.
    pub upstream: String,
    /// Such as `library/alpine`.
    pub name: String,
}
