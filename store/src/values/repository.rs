//! Repository of an upstream.

/// A repository of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// Such as `docker.io`.
    pub upstream: String,
    /// Such as `library/alpine`.
    pub name: String,
}
