//! Decision about one pod. Pure: the pull secrets that count are passed in.

pub(crate) mod image;
pub(crate) mod image_field;
pub(crate) mod keyring;
pub(crate) mod mode;
pub(crate) mod naming;
pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod pull_secret;
pub(crate) mod registries;
pub(crate) mod rules;
pub(crate) mod skip;
#[cfg(test)]
mod tests;
