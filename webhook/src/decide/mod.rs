//! Decision about one pod. Pure: the pull secrets that count are passed in.

pub(crate) mod image;
pub(crate) mod keyring;
pub(crate) mod mode;
pub(crate) mod naming;
pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod registries;
#[cfg(test)]
mod tests;
