//! Copies of pull secrets: what they hold, and that they are there.

pub(crate) mod copy;
pub(crate) mod ensure;
pub(crate) mod keeper;
pub(crate) mod keyring;
pub(crate) mod sources;
