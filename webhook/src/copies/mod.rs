//! Copies of pull secrets: what they hold, and that they are there.

pub(crate) mod copy;
pub(crate) mod keyring;
