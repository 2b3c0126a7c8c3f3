//! What becomes of a pod. Pure: the secrets that count are handed in.

pub(crate) mod image;
pub(crate) mod mode;
pub(crate) mod naming;
pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod registries;
#[cfg(test)]
mod tests;
