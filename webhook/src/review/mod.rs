//! The API server's questions about pods, and their answers.

pub(crate) mod desk;
pub(crate) mod message;
pub(crate) mod server;
