//! The webhook's certificate, and the CA by which API servers verify it.

pub(crate) mod authority;
mod files;
pub(crate) mod reconciler;
