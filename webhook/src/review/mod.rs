//! The API server's questions about pods, and their answers.

pub(crate) mod message;
pub(crate) mod reviewer;
pub(crate) mod server;
