//! Copies of pull secrets: their content, and how they are created and kept.

pub(crate) mod copy;
pub(crate) mod ensure;
pub(crate) mod reconciler;
pub(crate) mod sources;
