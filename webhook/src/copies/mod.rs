//! Copies of pull secrets: their content, and how they are created and kept.

pub(crate) mod copy;
pub(crate) mod ensure;
mod in_use;
pub(crate) mod reconciler;
pub(crate) mod sources;
mod unused;
mod work_queue;
